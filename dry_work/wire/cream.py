"""Messages of `cream.v1` from Alpaca's items and order updates. Pure.

An item is a map as the upstream sent it, with times of MessagePack or as text. What a message has no place for is never
lost in silence: a size with a fraction is rounded down, a number beyond its field is put at the field's limit, and a
field of an order update that cannot be read is left out; `Losses` counts each of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgpack

from dry_work.clock import SECOND_NS
from dry_work.errors import CodecError
from dry_work.proto.cream.v1 import common_pb2 as common
from dry_work.proto.cream.v1 import execution_pb2 as execution
from dry_work.proto.cream.v1 import stream_proxy_pb2 as cream
from dry_work.wire.alpaca_fields import encode_decimal
from dry_work.wire.pubsub import parse_time

OFFSET_TAG = b"\xa0\x06"  # of the field `offset` (100, varint) of every response

Item = Mapping[str, Any]

_INT32 = 2**31 - 1
_INT64 = 2**63 - 1
_SMALLEST_SECOND = -62_135_596_800  # year 1, as protobuf's Timestamp has it
_LARGEST_SECOND = 253_402_300_799  # year 9999
_TEXT_LENGTH = 256  # of a number as text; none is that long


class Losses:
    """What did not fit into messages, by message and field."""

    def __init__(self) -> None:
        self.rounded: Counter[str] = Counter()  # sizes with a fraction
        self.limited: Counter[str] = Counter()  # numbers beyond their field
        self.unread: Counter[str] = Counter()  # fields of order updates


# --- market data


def build_stock_quote(item: Item, losses: Losses) -> cream.StreamQuotesResponse:
    """Return a quote.

    Raises:
        CodecError: when symbol or time is missing, or a field is of the wrong kind.
    """
    response = cream.StreamQuotesResponse()
    quote = response.quote
    _fill_quote(quote, item, losses, "StockQuote")
    quote.conditions.extend(_read_texts(item, "c"))
    quote.tape = _read_text(item, "z")
    return response


def build_option_quote(item: Item, losses: Losses) -> cream.StreamOptionQuotesResponse:
    """Return a quote of an option; see `build_stock_quote`."""
    response = cream.StreamOptionQuotesResponse()
    quote = response.quote
    _fill_quote(quote, item, losses, "OptionQuoteUpdate")
    quote.condition = ",".join(_read_texts(item, "c"))
    return response


def build_stock_trade(item: Item, losses: Losses) -> cream.StreamTradesResponse:
    """Return a trade; see `build_stock_quote`."""
    response = cream.StreamTradesResponse()
    trade = response.trade
    trade.symbol = _require_symbol(item)
    _set_time(trade.timestamp, item.get("t"))
    trade.trade_id = _read_id(item, losses)
    trade.exchange = _read_text(item, "x")
    trade.price = _read_number(item, "p")
    trade.size = _read_size(item, "s", losses, "StockTrade.size")
    trade.conditions.extend(_read_texts(item, "c"))
    trade.tape = _read_text(item, "z")
    return response


def build_option_trade(item: Item, losses: Losses) -> cream.StreamOptionTradesResponse:
    """Return a trade of an option; see `build_stock_quote`."""
    response = cream.StreamOptionTradesResponse()
    trade = response.trade
    trade.symbol = _require_symbol(item)
    _set_time(trade.timestamp, item.get("t"))
    trade.price = _read_number(item, "p")
    trade.size = _read_size(item, "s", losses, "OptionTrade.size")
    trade.exchange = _read_text(item, "x")
    trade.condition = ",".join(_read_texts(item, "c"))
    return response


def build_stock_bar(item: Item, losses: Losses) -> cream.StreamBarsResponse:
    """Return a minute bar; its time is the start. See `build_stock_quote`."""
    response = cream.StreamBarsResponse()
    bar = response.bar
    bar.symbol = _require_symbol(item)
    _set_time(bar.timestamp, item.get("t"))
    bar.open = _read_number(item, "o")
    bar.high = _read_number(item, "h")
    bar.low = _read_number(item, "l")
    bar.close = _read_number(item, "c")
    bar.volume = _read_size(item, "v", losses, "StockBar.volume", limit=_INT64)
    bar.vwap = _read_number(item, "vw")
    bar.trade_count = _read_size(item, "n", losses, "StockBar.trade_count")
    return response


def encode_offset(offset: int) -> bytes:
    """Return the field `offset`, to be put behind the bytes of any response."""
    encoded = bytearray(OFFSET_TAG)
    while offset > 0x7F:
        encoded.append(offset & 0x7F | 0x80)
        offset >>= 7
    encoded.append(offset)
    return bytes(encoded)


# --- order updates


def build_order_update(data: Item, event_id: str, losses: Losses) -> cream.StreamOrderUpdatesResponse:
    """Return an order update; whatever of it cannot be read is left out and counted, nothing of it is an error.

    Args:
        data: the `data` of the venue's update.
        event_id: the same for every delivery.
    """
    response = cream.StreamOrderUpdatesResponse()
    update = response.update
    update.event = _find(cream.OrderEvent, "ORDER_EVENT_", data.get("event"))
    update.event_id = _clean(event_id)
    _set_optional_time(update, "timestamp", data.get("timestamp") or data.get("at"), losses)
    for name in ("execution_id", "price", "qty", "position_qty"):
        _set_optional_text(update, name, data.get(name), losses)
    order = data.get("order")
    if isinstance(order, Mapping):
        _fill_order(update.order, order, losses)
        if not update.order.HasField("commission"):
            _set_optional_text(update.order, "commission", data.get("commission"), losses)
    else:
        losses.unread["order"] += 1
    return response


def _fill_order(details: cream.OrderDetails, order: Item, losses: Losses) -> None:
    for name in ("id", "client_order_id", "symbol", "qty", "filled_qty", "filled_avg_price", "status"):
        setattr(details, name, _read_loose_text(order, name, losses))
    details.asset_class = _find(cream.AssetClass, "ASSET_CLASS_", order.get("asset_class"))
    details.order_class = _find(cream.OrderClass, "ORDER_CLASS_", order.get("order_class") or "simple")
    details.order_type = _find(common.OrderType, "ORDER_TYPE_", order.get("type") or order.get("order_type"))
    details.side = _find(execution.OrderSide, "ORDER_SIDE_", order.get("side"))
    details.time_in_force = _find(common.TimeInForce, "TIME_IN_FORCE_", order.get("time_in_force"))
    details.extended_hours = order.get("extended_hours") is True
    for name in ("limit_price", "stop_price", "commission"):
        _set_optional_text(details, name, order.get(name), losses)
    for name in ("created_at", "updated_at", "submitted_at", "filled_at", "canceled_at", "expired_at", "failed_at"):
        _set_optional_time(details, name, order.get(name), losses)
    legs = order.get("legs")
    for leg in legs if isinstance(legs, list) else ():
        if not isinstance(leg, Mapping):
            losses.unread["legs"] += 1
            continue
        told = details.legs.add()
        for name in ("id", "symbol", "qty", "filled_qty", "filled_avg_price", "ratio_qty", "status"):
            setattr(told, name, _read_loose_text(leg, name, losses))
        told.side = _find(execution.OrderSide, "ORDER_SIDE_", leg.get("side"))


# --- fields


def _fill_quote(quote: Any, item: Item, losses: Losses, message: str) -> None:
    quote.symbol = _require_symbol(item)
    _set_time(quote.timestamp, item.get("t"))
    quote.bid_exchange = _read_text(item, "bx")
    quote.bid_price = _read_number(item, "bp")
    quote.bid_size = _read_size(item, "bs", losses, f"{message}.bid_size")
    quote.ask_exchange = _read_text(item, "ax")
    quote.ask_price = _read_number(item, "ap")
    quote.ask_size = _read_size(item, "as", losses, f"{message}.ask_size")


def _require_symbol(item: Item) -> str:
    symbol = _read_text(item, "S")
    if not symbol:
        raise CodecError("missing symbol")
    return symbol


def _read_text(item: Item, name: str) -> str:
    value = item.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CodecError(f"{name} is no text")
    return _clean(value)


def _read_texts(item: Item, name: str) -> list[str]:
    """Return a list of texts; of stocks it comes as such, of options as one text."""
    value = item.get(name)
    if value is None:
        return []
    values = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(text, str) for text in values):
        raise CodecError(f"{name} is no list of texts")
    return [_clean(text) for text in values]


def _clean(text: str) -> str:
    """Return the text without half characters, which JSON can write and protobuf cannot."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _read_number(item: Item, name: str) -> float:
    value = item.get(name)
    if value is None:
        return 0.0
    return _finite(value, name)


def _finite(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise CodecError(f"{name} is no number")
    try:
        number = float(value)
    except OverflowError:
        raise CodecError(f"{name} is out of range") from None
    except ValueError:  # a NaN of Decimal that signals
        raise CodecError(f"{name} is not finite") from None
    if not math.isfinite(number):
        raise CodecError(f"{name} is not finite")
    return number


def _read_size(item: Item, name: str, losses: Losses, field: str, *, limit: int = _INT32) -> int:
    value = item.get(name)
    if value is None:
        return 0
    if type(value) is not int:
        whole = math.floor(_finite(value, name))
        if whole != value:
            losses.rounded[field] += 1
        value = whole
    if not -limit <= value <= limit:
        losses.limited[field] += 1
        return limit if value > 0 else -limit
    return value


def _read_id(item: Item, losses: Losses) -> int:
    value = item.get("i")
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int):
        raise CodecError("i is no integer")
    if not -_INT64 <= value <= _INT64:  # half an id names another trade
        losses.limited["StockTrade.trade_id"] += 1
        return 0
    return value


def _set_time(stamp: Any, value: object) -> None:
    if isinstance(value, msgpack.Timestamp):
        seconds, nanos = value.seconds, value.nanoseconds
        if not _SMALLEST_SECOND <= seconds <= _LARGEST_SECOND:
            raise CodecError("t is out of range")
    elif isinstance(value, str):
        try:
            seconds, nanos = divmod(parse_time(value), SECOND_NS)
        except ValueError:
            raise CodecError("malformed time") from None
    else:
        raise CodecError("missing time")
    stamp.seconds = seconds
    stamp.nanos = nanos
    stamp.SetInParent()  # 1970 is a time too


def _set_optional_time(message: Any, name: str, value: object, losses: Losses) -> None:
    if value is None or value == "":
        return
    try:
        _set_time(getattr(message, name), value)
    except CodecError:
        losses.unread[name] += 1


def _set_optional_text(message: Any, name: str, value: object, losses: Losses) -> None:
    text = _write(value, name, losses)
    if text:
        setattr(message, name, text)


def _read_loose_text(item: Item, name: str, losses: Losses) -> str:
    return _write(item.get(name), name, losses)


def _write(value: object, name: str, losses: Losses) -> str:
    """Return a text, or a number as a decimal without exponent; empty when nothing is given."""
    if value is None:
        return ""
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
        if number.is_finite() and abs(number.adjusted()) < _TEXT_LENGTH:
            return encode_decimal(number)
    losses.unread[name] += 1
    return ""


def _find(enum: Any, prefix: str, word: object) -> Any:
    """Return the number of a word of the venue; one that has none is unspecified."""
    name = f"{prefix}{word.upper()}" if isinstance(word, str) else ""
    return enum.Value(name) if name in enum.keys() else 0  # noqa: SIM118  (an enum of protobuf is no mapping)
