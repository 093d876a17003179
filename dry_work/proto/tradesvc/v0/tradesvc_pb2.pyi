# ruff: noqa
# fmt: off
# mypy: ignore-errors
import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Side(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SIDE_UNSPECIFIED: _ClassVar[Side]
    SIDE_BUY: _ClassVar[Side]
    SIDE_SELL: _ClassVar[Side]

class OrderType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORDER_TYPE_UNSPECIFIED: _ClassVar[OrderType]
    ORDER_TYPE_MARKET: _ClassVar[OrderType]
    ORDER_TYPE_LIMIT: _ClassVar[OrderType]
    ORDER_TYPE_STOP: _ClassVar[OrderType]
    ORDER_TYPE_STOP_LIMIT: _ClassVar[OrderType]
    ORDER_TYPE_TRAILING_STOP: _ClassVar[OrderType]

class OrderClass(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORDER_CLASS_UNSPECIFIED: _ClassVar[OrderClass]
    ORDER_CLASS_BRACKET: _ClassVar[OrderClass]
    ORDER_CLASS_OTO: _ClassVar[OrderClass]
    ORDER_CLASS_OCO: _ClassVar[OrderClass]
    ORDER_CLASS_SIMPLE: _ClassVar[OrderClass]

class TimeInForce(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIME_IN_FORCE_UNSPECIFIED: _ClassVar[TimeInForce]
    TIME_IN_FORCE_DAY: _ClassVar[TimeInForce]
    TIME_IN_FORCE_GTC: _ClassVar[TimeInForce]
    TIME_IN_FORCE_OPG: _ClassVar[TimeInForce]
    TIME_IN_FORCE_IOC: _ClassVar[TimeInForce]
    TIME_IN_FORCE_FOK: _ClassVar[TimeInForce]
    TIME_IN_FORCE_GTX: _ClassVar[TimeInForce]
    TIME_IN_FORCE_GTD: _ClassVar[TimeInForce]
    TIME_IN_FORCE_CLS: _ClassVar[TimeInForce]

class PositionIntent(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POSITION_INTENT_UNSPECIFIED: _ClassVar[PositionIntent]
    POSITION_INTENT_BUY_TO_OPEN: _ClassVar[PositionIntent]
    POSITION_INTENT_BUY_TO_CLOSE: _ClassVar[PositionIntent]
    POSITION_INTENT_SELL_TO_OPEN: _ClassVar[PositionIntent]
    POSITION_INTENT_SELL_TO_CLOSE: _ClassVar[PositionIntent]

class AssetClass(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ASSET_CLASS_UNSPECIFIED: _ClassVar[AssetClass]
    ASSET_CLASS_US_EQUITY: _ClassVar[AssetClass]
    ASSET_CLASS_CRYPTO: _ClassVar[AssetClass]
SIDE_UNSPECIFIED: Side
SIDE_BUY: Side
SIDE_SELL: Side
ORDER_TYPE_UNSPECIFIED: OrderType
ORDER_TYPE_MARKET: OrderType
ORDER_TYPE_LIMIT: OrderType
ORDER_TYPE_STOP: OrderType
ORDER_TYPE_STOP_LIMIT: OrderType
ORDER_TYPE_TRAILING_STOP: OrderType
ORDER_CLASS_UNSPECIFIED: OrderClass
ORDER_CLASS_BRACKET: OrderClass
ORDER_CLASS_OTO: OrderClass
ORDER_CLASS_OCO: OrderClass
ORDER_CLASS_SIMPLE: OrderClass
TIME_IN_FORCE_UNSPECIFIED: TimeInForce
TIME_IN_FORCE_DAY: TimeInForce
TIME_IN_FORCE_GTC: TimeInForce
TIME_IN_FORCE_OPG: TimeInForce
TIME_IN_FORCE_IOC: TimeInForce
TIME_IN_FORCE_FOK: TimeInForce
TIME_IN_FORCE_GTX: TimeInForce
TIME_IN_FORCE_GTD: TimeInForce
TIME_IN_FORCE_CLS: TimeInForce
POSITION_INTENT_UNSPECIFIED: PositionIntent
POSITION_INTENT_BUY_TO_OPEN: PositionIntent
POSITION_INTENT_BUY_TO_CLOSE: PositionIntent
POSITION_INTENT_SELL_TO_OPEN: PositionIntent
POSITION_INTENT_SELL_TO_CLOSE: PositionIntent
ASSET_CLASS_UNSPECIFIED: AssetClass
ASSET_CLASS_US_EQUITY: AssetClass
ASSET_CLASS_CRYPTO: AssetClass

class Trade(_message.Message):
    __slots__ = ("symbol", "qty", "notional", "side", "order_type", "tif", "limit_price", "extended_hours", "stop_price", "take_profit", "stop_loss", "trail_price", "trail_percent", "position_intent")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    QTY_FIELD_NUMBER: _ClassVar[int]
    NOTIONAL_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    ORDER_TYPE_FIELD_NUMBER: _ClassVar[int]
    TIF_FIELD_NUMBER: _ClassVar[int]
    LIMIT_PRICE_FIELD_NUMBER: _ClassVar[int]
    EXTENDED_HOURS_FIELD_NUMBER: _ClassVar[int]
    STOP_PRICE_FIELD_NUMBER: _ClassVar[int]
    CLASS_FIELD_NUMBER: _ClassVar[int]
    TAKE_PROFIT_FIELD_NUMBER: _ClassVar[int]
    STOP_LOSS_FIELD_NUMBER: _ClassVar[int]
    TRAIL_PRICE_FIELD_NUMBER: _ClassVar[int]
    TRAIL_PERCENT_FIELD_NUMBER: _ClassVar[int]
    POSITION_INTENT_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    qty: str
    notional: str
    side: Side
    order_type: OrderType
    tif: TimeInForce
    limit_price: str
    extended_hours: bool
    stop_price: str
    take_profit: TakeProfit
    stop_loss: StopLoss
    trail_price: str
    trail_percent: str
    position_intent: PositionIntent
    def __init__(self, symbol: _Optional[str] = ..., qty: _Optional[str] = ..., notional: _Optional[str] = ..., side: _Optional[_Union[Side, str]] = ..., order_type: _Optional[_Union[OrderType, str]] = ..., tif: _Optional[_Union[TimeInForce, str]] = ..., limit_price: _Optional[str] = ..., extended_hours: _Optional[bool] = ..., stop_price: _Optional[str] = ..., take_profit: _Optional[_Union[TakeProfit, _Mapping]] = ..., stop_loss: _Optional[_Union[StopLoss, _Mapping]] = ..., trail_price: _Optional[str] = ..., trail_percent: _Optional[str] = ..., position_intent: _Optional[_Union[PositionIntent, str]] = ..., **kwargs) -> None: ...

class TakeProfit(_message.Message):
    __slots__ = ("limit_price",)
    LIMIT_PRICE_FIELD_NUMBER: _ClassVar[int]
    limit_price: str
    def __init__(self, limit_price: _Optional[str] = ...) -> None: ...

class StopLoss(_message.Message):
    __slots__ = ("limit", "stop")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    limit: str
    stop: str
    def __init__(self, limit: _Optional[str] = ..., stop: _Optional[str] = ...) -> None: ...

class TradeUpdate(_message.Message):
    __slots__ = ("at", "event", "event_id", "execution_id", "order", "position_qty", "price", "qty", "timestamp")
    AT_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    POSITION_QTY_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    QTY_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    at: _timestamp_pb2.Timestamp
    event: str
    event_id: str
    execution_id: str
    order: Order
    position_qty: str
    price: str
    qty: str
    timestamp: _timestamp_pb2.Timestamp
    def __init__(self, at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., event: _Optional[str] = ..., event_id: _Optional[str] = ..., execution_id: _Optional[str] = ..., order: _Optional[_Union[Order, _Mapping]] = ..., position_qty: _Optional[str] = ..., price: _Optional[str] = ..., qty: _Optional[str] = ..., timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Order(_message.Message):
    __slots__ = ("id", "client_order_id", "created_at", "updated_at", "submitted_at", "filled_at", "expired_at", "canceled_at", "failed_at", "replaced_at", "replaced_by", "replaces", "asset_id", "symbol", "asset_class", "order_class", "type", "side", "time_in_force", "status", "notional", "qty", "filled_qty", "filled_avg_price", "limit_price", "stop_price", "trail_price", "trail_percent", "hwm", "ext_hours", "legs")
    ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    FILLED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_AT_FIELD_NUMBER: _ClassVar[int]
    CANCELED_AT_FIELD_NUMBER: _ClassVar[int]
    FAILED_AT_FIELD_NUMBER: _ClassVar[int]
    REPLACED_AT_FIELD_NUMBER: _ClassVar[int]
    REPLACED_BY_FIELD_NUMBER: _ClassVar[int]
    REPLACES_FIELD_NUMBER: _ClassVar[int]
    ASSET_ID_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    ASSET_CLASS_FIELD_NUMBER: _ClassVar[int]
    ORDER_CLASS_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    TIME_IN_FORCE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    NOTIONAL_FIELD_NUMBER: _ClassVar[int]
    QTY_FIELD_NUMBER: _ClassVar[int]
    FILLED_QTY_FIELD_NUMBER: _ClassVar[int]
    FILLED_AVG_PRICE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_PRICE_FIELD_NUMBER: _ClassVar[int]
    STOP_PRICE_FIELD_NUMBER: _ClassVar[int]
    TRAIL_PRICE_FIELD_NUMBER: _ClassVar[int]
    TRAIL_PERCENT_FIELD_NUMBER: _ClassVar[int]
    HWM_FIELD_NUMBER: _ClassVar[int]
    EXT_HOURS_FIELD_NUMBER: _ClassVar[int]
    LEGS_FIELD_NUMBER: _ClassVar[int]
    id: str
    client_order_id: str
    created_at: _timestamp_pb2.Timestamp
    updated_at: _timestamp_pb2.Timestamp
    submitted_at: _timestamp_pb2.Timestamp
    filled_at: _timestamp_pb2.Timestamp
    expired_at: _timestamp_pb2.Timestamp
    canceled_at: _timestamp_pb2.Timestamp
    failed_at: _timestamp_pb2.Timestamp
    replaced_at: _timestamp_pb2.Timestamp
    replaced_by: str
    replaces: str
    asset_id: str
    symbol: str
    asset_class: AssetClass
    order_class: OrderClass
    type: OrderType
    side: Side
    time_in_force: TimeInForce
    status: str
    notional: str
    qty: str
    filled_qty: str
    filled_avg_price: str
    limit_price: str
    stop_price: str
    trail_price: str
    trail_percent: str
    hwm: str
    ext_hours: bool
    legs: _containers.RepeatedCompositeFieldContainer[Order]
    def __init__(self, id: _Optional[str] = ..., client_order_id: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., updated_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., submitted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., filled_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expired_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., canceled_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., failed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., replaced_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., replaced_by: _Optional[str] = ..., replaces: _Optional[str] = ..., asset_id: _Optional[str] = ..., symbol: _Optional[str] = ..., asset_class: _Optional[_Union[AssetClass, str]] = ..., order_class: _Optional[_Union[OrderClass, str]] = ..., type: _Optional[_Union[OrderType, str]] = ..., side: _Optional[_Union[Side, str]] = ..., time_in_force: _Optional[_Union[TimeInForce, str]] = ..., status: _Optional[str] = ..., notional: _Optional[str] = ..., qty: _Optional[str] = ..., filled_qty: _Optional[str] = ..., filled_avg_price: _Optional[str] = ..., limit_price: _Optional[str] = ..., stop_price: _Optional[str] = ..., trail_price: _Optional[str] = ..., trail_percent: _Optional[str] = ..., hwm: _Optional[str] = ..., ext_hours: _Optional[bool] = ..., legs: _Optional[_Iterable[_Union[Order, _Mapping]]] = ...) -> None: ...

class Position(_message.Message):
    __slots__ = ("asset_id", "symbol", "exchange", "asset_class", "asset_marginable", "qty", "qty_available", "avg_entry_price", "side", "market_value", "cost_basis", "unrealized_pl", "unrealized_plpc", "unrealized_intraday_pl", "unrealized_intraday_plpc", "current_price", "lastday_price", "change_today")
    ASSET_ID_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    ASSET_CLASS_FIELD_NUMBER: _ClassVar[int]
    ASSET_MARGINABLE_FIELD_NUMBER: _ClassVar[int]
    QTY_FIELD_NUMBER: _ClassVar[int]
    QTY_AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    AVG_ENTRY_PRICE_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    MARKET_VALUE_FIELD_NUMBER: _ClassVar[int]
    COST_BASIS_FIELD_NUMBER: _ClassVar[int]
    UNREALIZED_PL_FIELD_NUMBER: _ClassVar[int]
    UNREALIZED_PLPC_FIELD_NUMBER: _ClassVar[int]
    UNREALIZED_INTRADAY_PL_FIELD_NUMBER: _ClassVar[int]
    UNREALIZED_INTRADAY_PLPC_FIELD_NUMBER: _ClassVar[int]
    CURRENT_PRICE_FIELD_NUMBER: _ClassVar[int]
    LASTDAY_PRICE_FIELD_NUMBER: _ClassVar[int]
    CHANGE_TODAY_FIELD_NUMBER: _ClassVar[int]
    asset_id: str
    symbol: str
    exchange: str
    asset_class: AssetClass
    asset_marginable: bool
    qty: str
    qty_available: str
    avg_entry_price: str
    side: str
    market_value: str
    cost_basis: str
    unrealized_pl: str
    unrealized_plpc: str
    unrealized_intraday_pl: str
    unrealized_intraday_plpc: str
    current_price: str
    lastday_price: str
    change_today: str
    def __init__(self, asset_id: _Optional[str] = ..., symbol: _Optional[str] = ..., exchange: _Optional[str] = ..., asset_class: _Optional[_Union[AssetClass, str]] = ..., asset_marginable: _Optional[bool] = ..., qty: _Optional[str] = ..., qty_available: _Optional[str] = ..., avg_entry_price: _Optional[str] = ..., side: _Optional[str] = ..., market_value: _Optional[str] = ..., cost_basis: _Optional[str] = ..., unrealized_pl: _Optional[str] = ..., unrealized_plpc: _Optional[str] = ..., unrealized_intraday_pl: _Optional[str] = ..., unrealized_intraday_plpc: _Optional[str] = ..., current_price: _Optional[str] = ..., lastday_price: _Optional[str] = ..., change_today: _Optional[str] = ...) -> None: ...

class Positions(_message.Message):
    __slots__ = ("positions",)
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    positions: _containers.RepeatedCompositeFieldContainer[Position]
    def __init__(self, positions: _Optional[_Iterable[_Union[Position, _Mapping]]] = ...) -> None: ...
