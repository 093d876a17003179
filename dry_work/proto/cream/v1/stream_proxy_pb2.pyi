# ruff: noqa
# fmt: off
# mypy: disable-error-code="type-arg"
import datetime

from dry_work.proto.cream.v1 import common_pb2 as _common_pb2
from dry_work.proto.cream.v1 import execution_pb2 as _execution_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OrderEvent(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORDER_EVENT_UNSPECIFIED: _ClassVar[OrderEvent]
    ORDER_EVENT_NEW: _ClassVar[OrderEvent]
    ORDER_EVENT_FILL: _ClassVar[OrderEvent]
    ORDER_EVENT_PARTIAL_FILL: _ClassVar[OrderEvent]
    ORDER_EVENT_CANCELED: _ClassVar[OrderEvent]
    ORDER_EVENT_EXPIRED: _ClassVar[OrderEvent]
    ORDER_EVENT_REJECTED: _ClassVar[OrderEvent]
    ORDER_EVENT_PENDING_NEW: _ClassVar[OrderEvent]
    ORDER_EVENT_STOPPED: _ClassVar[OrderEvent]
    ORDER_EVENT_REPLACED: _ClassVar[OrderEvent]
    ORDER_EVENT_SUSPENDED: _ClassVar[OrderEvent]
    ORDER_EVENT_PENDING_CANCEL: _ClassVar[OrderEvent]
    ORDER_EVENT_PENDING_REPLACE: _ClassVar[OrderEvent]
    ORDER_EVENT_CALCULATED: _ClassVar[OrderEvent]
    ORDER_EVENT_DONE_FOR_DAY: _ClassVar[OrderEvent]
    ORDER_EVENT_TRADE_BUST: _ClassVar[OrderEvent]

class AssetClass(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ASSET_CLASS_UNSPECIFIED: _ClassVar[AssetClass]
    ASSET_CLASS_US_EQUITY: _ClassVar[AssetClass]
    ASSET_CLASS_US_OPTION: _ClassVar[AssetClass]
    ASSET_CLASS_CRYPTO: _ClassVar[AssetClass]

class OrderClass(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORDER_CLASS_UNSPECIFIED: _ClassVar[OrderClass]
    ORDER_CLASS_SIMPLE: _ClassVar[OrderClass]
    ORDER_CLASS_BRACKET: _ClassVar[OrderClass]
    ORDER_CLASS_OCO: _ClassVar[OrderClass]
    ORDER_CLASS_OTO: _ClassVar[OrderClass]
    ORDER_CLASS_MLEG: _ClassVar[OrderClass]

class FeedType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEED_TYPE_UNSPECIFIED: _ClassVar[FeedType]
    FEED_TYPE_SIP: _ClassVar[FeedType]
    FEED_TYPE_IEX: _ClassVar[FeedType]
    FEED_TYPE_OPRA: _ClassVar[FeedType]
    FEED_TYPE_INDICATIVE: _ClassVar[FeedType]
    FEED_TYPE_TRADE_UPDATES: _ClassVar[FeedType]

class ConnectionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONNECTION_STATE_UNSPECIFIED: _ClassVar[ConnectionState]
    CONNECTION_STATE_DISCONNECTED: _ClassVar[ConnectionState]
    CONNECTION_STATE_CONNECTING: _ClassVar[ConnectionState]
    CONNECTION_STATE_AUTHENTICATING: _ClassVar[ConnectionState]
    CONNECTION_STATE_CONNECTED: _ClassVar[ConnectionState]
    CONNECTION_STATE_RECONNECTING: _ClassVar[ConnectionState]
    CONNECTION_STATE_ERROR: _ClassVar[ConnectionState]
ORDER_EVENT_UNSPECIFIED: OrderEvent
ORDER_EVENT_NEW: OrderEvent
ORDER_EVENT_FILL: OrderEvent
ORDER_EVENT_PARTIAL_FILL: OrderEvent
ORDER_EVENT_CANCELED: OrderEvent
ORDER_EVENT_EXPIRED: OrderEvent
ORDER_EVENT_REJECTED: OrderEvent
ORDER_EVENT_PENDING_NEW: OrderEvent
ORDER_EVENT_STOPPED: OrderEvent
ORDER_EVENT_REPLACED: OrderEvent
ORDER_EVENT_SUSPENDED: OrderEvent
ORDER_EVENT_PENDING_CANCEL: OrderEvent
ORDER_EVENT_PENDING_REPLACE: OrderEvent
ORDER_EVENT_CALCULATED: OrderEvent
ORDER_EVENT_DONE_FOR_DAY: OrderEvent
ORDER_EVENT_TRADE_BUST: OrderEvent
ASSET_CLASS_UNSPECIFIED: AssetClass
ASSET_CLASS_US_EQUITY: AssetClass
ASSET_CLASS_US_OPTION: AssetClass
ASSET_CLASS_CRYPTO: AssetClass
ORDER_CLASS_UNSPECIFIED: OrderClass
ORDER_CLASS_SIMPLE: OrderClass
ORDER_CLASS_BRACKET: OrderClass
ORDER_CLASS_OCO: OrderClass
ORDER_CLASS_OTO: OrderClass
ORDER_CLASS_MLEG: OrderClass
FEED_TYPE_UNSPECIFIED: FeedType
FEED_TYPE_SIP: FeedType
FEED_TYPE_IEX: FeedType
FEED_TYPE_OPRA: FeedType
FEED_TYPE_INDICATIVE: FeedType
FEED_TYPE_TRADE_UPDATES: FeedType
CONNECTION_STATE_UNSPECIFIED: ConnectionState
CONNECTION_STATE_DISCONNECTED: ConnectionState
CONNECTION_STATE_CONNECTING: ConnectionState
CONNECTION_STATE_AUTHENTICATING: ConnectionState
CONNECTION_STATE_CONNECTED: ConnectionState
CONNECTION_STATE_RECONNECTING: ConnectionState
CONNECTION_STATE_ERROR: ConnectionState

class StreamQuotesRequest(_message.Message):
    __slots__ = ("symbols",)
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    symbols: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, symbols: _Optional[_Iterable[str]] = ...) -> None: ...

class StreamQuotesResponse(_message.Message):
    __slots__ = ("quote", "offset")
    QUOTE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    quote: StockQuote
    offset: int
    def __init__(self, quote: _Optional[_Union[StockQuote, _Mapping]] = ..., offset: _Optional[int] = ...) -> None: ...

class StreamTradesRequest(_message.Message):
    __slots__ = ("symbols",)
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    symbols: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, symbols: _Optional[_Iterable[str]] = ...) -> None: ...

class StreamTradesResponse(_message.Message):
    __slots__ = ("trade", "offset")
    TRADE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    trade: StockTrade
    offset: int
    def __init__(self, trade: _Optional[_Union[StockTrade, _Mapping]] = ..., offset: _Optional[int] = ...) -> None: ...

class StreamBarsRequest(_message.Message):
    __slots__ = ("symbols",)
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    symbols: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, symbols: _Optional[_Iterable[str]] = ...) -> None: ...

class StreamBarsResponse(_message.Message):
    __slots__ = ("bar", "offset")
    BAR_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    bar: StockBar
    offset: int
    def __init__(self, bar: _Optional[_Union[StockBar, _Mapping]] = ..., offset: _Optional[int] = ...) -> None: ...

class StreamOptionQuotesRequest(_message.Message):
    __slots__ = ("symbols", "underlyings")
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    UNDERLYINGS_FIELD_NUMBER: _ClassVar[int]
    symbols: _containers.RepeatedScalarFieldContainer[str]
    underlyings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, symbols: _Optional[_Iterable[str]] = ..., underlyings: _Optional[_Iterable[str]] = ...) -> None: ...

class StreamOptionQuotesResponse(_message.Message):
    __slots__ = ("quote", "offset")
    QUOTE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    quote: OptionQuoteUpdate
    offset: int
    def __init__(self, quote: _Optional[_Union[OptionQuoteUpdate, _Mapping]] = ..., offset: _Optional[int] = ...) -> None: ...

class StreamOptionTradesRequest(_message.Message):
    __slots__ = ("symbols", "underlyings")
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    UNDERLYINGS_FIELD_NUMBER: _ClassVar[int]
    symbols: _containers.RepeatedScalarFieldContainer[str]
    underlyings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, symbols: _Optional[_Iterable[str]] = ..., underlyings: _Optional[_Iterable[str]] = ...) -> None: ...

class StreamOptionTradesResponse(_message.Message):
    __slots__ = ("trade", "offset")
    TRADE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    trade: OptionTrade
    offset: int
    def __init__(self, trade: _Optional[_Union[OptionTrade, _Mapping]] = ..., offset: _Optional[int] = ...) -> None: ...

class StreamOrderUpdatesRequest(_message.Message):
    __slots__ = ("order_ids", "symbols")
    ORDER_IDS_FIELD_NUMBER: _ClassVar[int]
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    order_ids: _containers.RepeatedScalarFieldContainer[str]
    symbols: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, order_ids: _Optional[_Iterable[str]] = ..., symbols: _Optional[_Iterable[str]] = ...) -> None: ...

class StreamOrderUpdatesResponse(_message.Message):
    __slots__ = ("update", "offset")
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    update: OrderUpdate
    offset: int
    def __init__(self, update: _Optional[_Union[OrderUpdate, _Mapping]] = ..., offset: _Optional[int] = ...) -> None: ...

class GetConnectionStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetConnectionStatusResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: ConnectionStatus
    def __init__(self, status: _Optional[_Union[ConnectionStatus, _Mapping]] = ...) -> None: ...

class StockQuote(_message.Message):
    __slots__ = ("symbol", "timestamp", "bid_exchange", "bid_price", "bid_size", "ask_exchange", "ask_price", "ask_size", "conditions", "tape")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    BID_EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    BID_PRICE_FIELD_NUMBER: _ClassVar[int]
    BID_SIZE_FIELD_NUMBER: _ClassVar[int]
    ASK_EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    ASK_PRICE_FIELD_NUMBER: _ClassVar[int]
    ASK_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    TAPE_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    timestamp: _timestamp_pb2.Timestamp
    bid_exchange: str
    bid_price: float
    bid_size: int
    ask_exchange: str
    ask_price: float
    ask_size: int
    conditions: _containers.RepeatedScalarFieldContainer[str]
    tape: str
    def __init__(self, symbol: _Optional[str] = ..., timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., bid_exchange: _Optional[str] = ..., bid_price: _Optional[float] = ..., bid_size: _Optional[int] = ..., ask_exchange: _Optional[str] = ..., ask_price: _Optional[float] = ..., ask_size: _Optional[int] = ..., conditions: _Optional[_Iterable[str]] = ..., tape: _Optional[str] = ...) -> None: ...

class StockTrade(_message.Message):
    __slots__ = ("symbol", "timestamp", "trade_id", "exchange", "price", "size", "conditions", "tape")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    TRADE_ID_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    TAPE_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    timestamp: _timestamp_pb2.Timestamp
    trade_id: int
    exchange: str
    price: float
    size: int
    conditions: _containers.RepeatedScalarFieldContainer[str]
    tape: str
    def __init__(self, symbol: _Optional[str] = ..., timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., trade_id: _Optional[int] = ..., exchange: _Optional[str] = ..., price: _Optional[float] = ..., size: _Optional[int] = ..., conditions: _Optional[_Iterable[str]] = ..., tape: _Optional[str] = ...) -> None: ...

class StockBar(_message.Message):
    __slots__ = ("symbol", "timestamp", "open", "high", "low", "close", "volume", "vwap", "trade_count")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    VWAP_FIELD_NUMBER: _ClassVar[int]
    TRADE_COUNT_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    timestamp: _timestamp_pb2.Timestamp
    open: float
    high: float
    low: float
    close: float
    volume: int
    vwap: float
    trade_count: int
    def __init__(self, symbol: _Optional[str] = ..., timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., open: _Optional[float] = ..., high: _Optional[float] = ..., low: _Optional[float] = ..., close: _Optional[float] = ..., volume: _Optional[int] = ..., vwap: _Optional[float] = ..., trade_count: _Optional[int] = ...) -> None: ...

class OptionQuoteUpdate(_message.Message):
    __slots__ = ("symbol", "timestamp", "bid_exchange", "bid_price", "bid_size", "ask_exchange", "ask_price", "ask_size", "condition")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    BID_EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    BID_PRICE_FIELD_NUMBER: _ClassVar[int]
    BID_SIZE_FIELD_NUMBER: _ClassVar[int]
    ASK_EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    ASK_PRICE_FIELD_NUMBER: _ClassVar[int]
    ASK_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    timestamp: _timestamp_pb2.Timestamp
    bid_exchange: str
    bid_price: float
    bid_size: int
    ask_exchange: str
    ask_price: float
    ask_size: int
    condition: str
    def __init__(self, symbol: _Optional[str] = ..., timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., bid_exchange: _Optional[str] = ..., bid_price: _Optional[float] = ..., bid_size: _Optional[int] = ..., ask_exchange: _Optional[str] = ..., ask_price: _Optional[float] = ..., ask_size: _Optional[int] = ..., condition: _Optional[str] = ...) -> None: ...

class OptionTrade(_message.Message):
    __slots__ = ("symbol", "timestamp", "price", "size", "exchange", "condition")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    timestamp: _timestamp_pb2.Timestamp
    price: float
    size: int
    exchange: str
    condition: str
    def __init__(self, symbol: _Optional[str] = ..., timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., price: _Optional[float] = ..., size: _Optional[int] = ..., exchange: _Optional[str] = ..., condition: _Optional[str] = ...) -> None: ...

class OrderUpdate(_message.Message):
    __slots__ = ("event", "event_id", "timestamp", "order", "execution_id", "price", "qty", "position_qty")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    QTY_FIELD_NUMBER: _ClassVar[int]
    POSITION_QTY_FIELD_NUMBER: _ClassVar[int]
    event: OrderEvent
    event_id: str
    timestamp: _timestamp_pb2.Timestamp
    order: OrderDetails
    execution_id: str
    price: str
    qty: str
    position_qty: str
    def __init__(self, event: _Optional[_Union[OrderEvent, str]] = ..., event_id: _Optional[str] = ..., timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., order: _Optional[_Union[OrderDetails, _Mapping]] = ..., execution_id: _Optional[str] = ..., price: _Optional[str] = ..., qty: _Optional[str] = ..., position_qty: _Optional[str] = ...) -> None: ...

class OrderDetails(_message.Message):
    __slots__ = ("id", "client_order_id", "symbol", "asset_class", "order_class", "order_type", "side", "time_in_force", "qty", "filled_qty", "filled_avg_price", "limit_price", "stop_price", "status", "extended_hours", "created_at", "updated_at", "submitted_at", "filled_at", "canceled_at", "expired_at", "failed_at", "legs", "commission")
    ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    ASSET_CLASS_FIELD_NUMBER: _ClassVar[int]
    ORDER_CLASS_FIELD_NUMBER: _ClassVar[int]
    ORDER_TYPE_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    TIME_IN_FORCE_FIELD_NUMBER: _ClassVar[int]
    QTY_FIELD_NUMBER: _ClassVar[int]
    FILLED_QTY_FIELD_NUMBER: _ClassVar[int]
    FILLED_AVG_PRICE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_PRICE_FIELD_NUMBER: _ClassVar[int]
    STOP_PRICE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    EXTENDED_HOURS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    FILLED_AT_FIELD_NUMBER: _ClassVar[int]
    CANCELED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_AT_FIELD_NUMBER: _ClassVar[int]
    FAILED_AT_FIELD_NUMBER: _ClassVar[int]
    LEGS_FIELD_NUMBER: _ClassVar[int]
    COMMISSION_FIELD_NUMBER: _ClassVar[int]
    id: str
    client_order_id: str
    symbol: str
    asset_class: AssetClass
    order_class: OrderClass
    order_type: _common_pb2.OrderType
    side: _execution_pb2.OrderSide
    time_in_force: _common_pb2.TimeInForce
    qty: str
    filled_qty: str
    filled_avg_price: str
    limit_price: str
    stop_price: str
    status: str
    extended_hours: bool
    created_at: _timestamp_pb2.Timestamp
    updated_at: _timestamp_pb2.Timestamp
    submitted_at: _timestamp_pb2.Timestamp
    filled_at: _timestamp_pb2.Timestamp
    canceled_at: _timestamp_pb2.Timestamp
    expired_at: _timestamp_pb2.Timestamp
    failed_at: _timestamp_pb2.Timestamp
    legs: _containers.RepeatedCompositeFieldContainer[OrderUpdateLeg]
    commission: str
    def __init__(self, id: _Optional[str] = ..., client_order_id: _Optional[str] = ..., symbol: _Optional[str] = ..., asset_class: _Optional[_Union[AssetClass, str]] = ..., order_class: _Optional[_Union[OrderClass, str]] = ..., order_type: _Optional[_Union[_common_pb2.OrderType, str]] = ..., side: _Optional[_Union[_execution_pb2.OrderSide, str]] = ..., time_in_force: _Optional[_Union[_common_pb2.TimeInForce, str]] = ..., qty: _Optional[str] = ..., filled_qty: _Optional[str] = ..., filled_avg_price: _Optional[str] = ..., limit_price: _Optional[str] = ..., stop_price: _Optional[str] = ..., status: _Optional[str] = ..., extended_hours: _Optional[bool] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., updated_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., submitted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., filled_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., canceled_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expired_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., failed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., legs: _Optional[_Iterable[_Union[OrderUpdateLeg, _Mapping]]] = ..., commission: _Optional[str] = ...) -> None: ...

class OrderUpdateLeg(_message.Message):
    __slots__ = ("id", "symbol", "side", "qty", "filled_qty", "filled_avg_price", "ratio_qty", "status")
    ID_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    QTY_FIELD_NUMBER: _ClassVar[int]
    FILLED_QTY_FIELD_NUMBER: _ClassVar[int]
    FILLED_AVG_PRICE_FIELD_NUMBER: _ClassVar[int]
    RATIO_QTY_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    id: str
    symbol: str
    side: _execution_pb2.OrderSide
    qty: str
    filled_qty: str
    filled_avg_price: str
    ratio_qty: str
    status: str
    def __init__(self, id: _Optional[str] = ..., symbol: _Optional[str] = ..., side: _Optional[_Union[_execution_pb2.OrderSide, str]] = ..., qty: _Optional[str] = ..., filled_qty: _Optional[str] = ..., filled_avg_price: _Optional[str] = ..., ratio_qty: _Optional[str] = ..., status: _Optional[str] = ...) -> None: ...

class FeedStatus(_message.Message):
    __slots__ = ("feed_type", "state", "last_connected_at", "error_message", "subscription_count", "reconnect_attempts", "messages_received")
    FEED_TYPE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LAST_CONNECTED_AT_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIPTION_COUNT_FIELD_NUMBER: _ClassVar[int]
    RECONNECT_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    feed_type: FeedType
    state: ConnectionState
    last_connected_at: _timestamp_pb2.Timestamp
    error_message: str
    subscription_count: int
    reconnect_attempts: int
    messages_received: int
    def __init__(self, feed_type: _Optional[_Union[FeedType, str]] = ..., state: _Optional[_Union[ConnectionState, str]] = ..., last_connected_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., error_message: _Optional[str] = ..., subscription_count: _Optional[int] = ..., reconnect_attempts: _Optional[int] = ..., messages_received: _Optional[int] = ...) -> None: ...

class ConnectionStatus(_message.Message):
    __slots__ = ("version", "started_at", "current_time", "feeds", "client_count", "environment")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    CURRENT_TIME_FIELD_NUMBER: _ClassVar[int]
    FEEDS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    version: str
    started_at: _timestamp_pb2.Timestamp
    current_time: _timestamp_pb2.Timestamp
    feeds: _containers.RepeatedCompositeFieldContainer[FeedStatus]
    client_count: int
    environment: _common_pb2.Environment
    def __init__(self, version: _Optional[str] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., current_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., feeds: _Optional[_Iterable[_Union[FeedStatus, _Mapping]]] = ..., client_count: _Optional[int] = ..., environment: _Optional[_Union[_common_pb2.Environment, str]] = ...) -> None: ...
