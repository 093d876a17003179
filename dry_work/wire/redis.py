"""Messages on Redis channels: registrations in; prices, bars, order updates and log lines out. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

import msgpack
import msgspec
import orjson

from dry_work.clock import SECOND_NS
from dry_work.errors import CodecError
from dry_work.market.symbols import ALLOWED, is_crypto, is_option, is_symbol
from dry_work.wire.alpaca_stream import CRYPTO_CHANNELS, STOCK_CHANNELS, WATERMARKS
from dry_work.wire.pubsub import encode_time, parse_time

REGISTRATION = "broker:registration"
LEGACY_REGISTRATION = "BROKER_REGISTRATION"
LOGS = "broker:logs"
PRICE, BAR, ORDER = "price:", "bar:", "order:"  # symbol or account id follows
LEGACY_UPDATES = "TICKER_UPDATES_"  # ticker follows
PROFIT_REPORT = "PROFIT_REPORT"  # between programs, as the next; the hub sends nothing there
LEGACY_PERFORMANCE = "TICKER_PERFORMANCE_"
SENDER = "alpaca_broker"

TRADES, BARS, NEWS = "trades", "bars", "news"
ACTIONS: Mapping[str, bool] = {"register": True, "unregister": False, "subscribe": True, "unsubscribe": False}
LARGEST_REGISTRATION = 1_000_000  # bytes
MOST_SYMBOLS = 10_000  # of one registration
LONGEST_ID = 128

# Of an order in the legacy form; the second ones are strings or null.
_ORDER_KEYS = (
    *("id", "client_order_id", "created_at", "updated_at", "submitted_at", "filled_at", "expired_at", "canceled_at"),
    *("failed_at", "replaced_at", "replaced_by", "replaces", "asset_id", "symbol", "asset_class", "order_class"),
    *("order_type", "type", "side", "time_in_force", "status", "extended_hours", "legs"),
)
_ORDER_NUMBERS = (
    *("notional", "qty", "filled_qty", "filled_avg_price", "limit_price", "stop_price"),
    *("trail_percent", "trail_price", "hwm"),
)


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """What a program wants, or wants no more."""

    adds: bool
    symbols: tuple[str, ...] = ()  # canonical, each once
    channels: tuple[str, ...] = ()  # empty: not said
    account_id: str = ""  # as the program spells it
    client_id: str = ""


def price_channel(symbol: str) -> str:
    """Return the channel of a symbol's prices."""
    return PRICE + symbol


def bar_channel(symbol: str) -> str:
    """Return the channel of a symbol's minute bars."""
    return BAR + symbol


def order_channel(account_id: str) -> str:
    """Return the channel of an account's order updates."""
    return ORDER + account_id


def legacy_channel(symbol: str) -> str:
    """Return the legacy channel of a symbol's prices and order updates."""
    return LEGACY_UPDATES + symbol


def stream_key(feed: str, channel: str, name: str) -> str:
    """Return the key of the stream of a feed's channel, of a symbol or, for order updates, an account id."""
    return f"stream:{feed}:{channel}:{name}"


# --- registrations


def parse_registration(data: bytes | str) -> Registration:
    """Return what a message on a registration channel asks for: bare, or in the legacy envelope.

    Raises:
        CodecError: it asks for nothing that can be done; the reason names the value and what is allowed.
    """
    if len(data) > LARGEST_REGISTRATION:
        raise CodecError(f"{len(data)} bytes: expected at most {LARGEST_REGISTRATION}", data=data)
    try:
        body = orjson.loads(data)
    except ValueError as error:
        raise CodecError(f"no JSON: {error}", data=data) from None
    if isinstance(body, dict) and "action" not in body and isinstance(body.get("data"), dict):
        body = body["data"]
    if not isinstance(body, dict):
        raise CodecError("no JSON object", data=data)
    return validate_registration(body)


def validate_registration(body: Mapping[str, Any]) -> Registration:
    """Return what a registration without envelope asks for.

    Raises:
        CodecError: as `parse_registration`.
    """
    action = body.get("action")
    if not isinstance(action, str) or action not in ACTIONS:
        said = "action is missing" if action is None else f"action {_show(action)}"
        raise CodecError(f"{said}: expected one of {', '.join(ACTIONS)}")
    symbols = _parse_symbols(body)
    channels = _parse_channels(body.get("channels"), symbols)
    account_id, client_id = _parse_name(body, "account_id"), _parse_name(body, "client_id")
    adds = ACTIONS[action]
    if not symbols and not account_id and (adds or not client_id):
        raise CodecError("symbols are missing: expected symbols (a list), ticker (one), or account_id")
    return Registration(adds=adds, symbols=symbols, channels=channels, account_id=account_id, client_id=client_id)


def channels_of(symbol: str) -> tuple[str, ...]:
    """Return the channels that there are of a canonical symbol."""
    if is_option(symbol):
        return (BARS, TRADES, "quotes", NEWS, WATERMARKS)
    return (*(CRYPTO_CHANNELS if is_crypto(symbol) else STOCK_CHANNELS), NEWS, WATERMARKS)


def _parse_symbols(body: Mapping[str, Any]) -> tuple[str, ...]:
    given = body.get("symbols")
    if given is None:
        given = []
    if not isinstance(given, list):
        raise CodecError(f'symbols {_show(given)}: expected a list such as ["AAPL"]')
    ticker = body.get("ticker")
    texts = [*given, *([] if ticker is None else [ticker])]
    if len(texts) > MOST_SYMBOLS:
        raise CodecError(f"{len(texts)} symbols: expected at most {MOST_SYMBOLS} in a message")
    found: dict[str, None] = {}
    for text in texts:
        symbol = text.strip().upper() if isinstance(text, str) else ""
        if not is_symbol(symbol):
            raise CodecError(f"{_show(text)} is not a symbol: expected {ALLOWED}")
        found[symbol] = None
    return tuple(found)


def _parse_channels(given: object, symbols: Sequence[str]) -> tuple[str, ...]:
    if given is None:
        return ()
    if not isinstance(given, list) or not given:
        raise CodecError(f'channels {_show(given)}: expected a list such as ["trades", "bars"]')
    for channel in given:
        for symbol in symbols or ("A",):
            allowed = channels_of(symbol)
            if channel not in allowed:
                raise CodecError(f"channel {_show(channel)} of {symbol}: expected one of {', '.join(allowed)}")
    return tuple(dict.fromkeys(given))


def _parse_name(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > LONGEST_ID or not value.isprintable():
        raise CodecError(f"{key} {_show(value)}: expected text of at most {LONGEST_ID} printable characters")
    return value.strip()


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- what the hub tells


def encode_price(symbol: str, item: Mapping[str, Any]) -> bytes:
    """Return the message of a trade, an item of Alpaca's market data.

    Raises:
        CodecError: it has no price or no time.
    """
    price = _parse_price(item)
    at = _read_time(item)
    body = {
        "type": "price_update",
        "symbol": symbol,
        "price": price,
        "timestamp": _parse_seconds(at),
        "at": at,
        "size": item.get("s"),
    }
    return orjson.dumps(body, default=_encode_value)


def encode_bar(symbol: str, item: Mapping[str, Any], *, epoch: str, offset: int) -> bytes:
    """Return the message of a minute bar, an item of Alpaca's market data.

    Raises:
        CodecError: it has no time.
    """
    body: dict[str, Any] = {"type": "bar", "symbol": symbol, "timestamp": _read_time(item)}
    body |= {name: item.get(key) for name, key in _BAR_KEYS}
    return orjson.dumps(body | {"epoch": epoch, "offset": offset}, default=_encode_value)


_BAR_KEYS = (
    ("open", "o"),
    ("high", "h"),
    ("low", "l"),
    ("close", "c"),
    ("volume", "v"),
    ("trade_count", "n"),
    ("vwap", "vw"),
)


def encode_order(data: Mapping[str, Any], *, event_id: str, seq: int) -> bytes:
    """Return the message of an order update.

    Args:
        data: of Alpaca's `trade_updates`.
        seq: counts up over the updates of an account.
    """
    order = _read_order(data)
    at = str(data.get("timestamp") or data.get("at") or "")
    body = {
        "type": "order_update",
        "order_id": order.get("id"),
        "status": order.get("status"),
        "filled_qty": _encode_number(order.get("filled_qty")),
        "filled_avg_price": _encode_number(order.get("filled_avg_price")),
        "side": order.get("side"),
        "timestamp": _parse_seconds(at),
        "at": at,
        "symbol": order.get("symbol"),
        "client_order_id": order.get("client_order_id"),
        "event": data.get("event"),
        "event_id": event_id,
        "qty": _encode_number(order.get("qty")),
        "seq": seq,
    }
    return orjson.dumps(body, default=_encode_value)


def encode_item(item: Mapping[str, Any]) -> bytes:
    """Return an upstream's item as JSON.

    Raises:
        CodecError: JSON cannot hold it.
    """
    try:
        return orjson.dumps(item, default=_encode_value)
    except TypeError:
        pass
    try:  # slower, and takes numbers of any length
        return json.dumps(item, default=str, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CodecError(f"an item that is no JSON: {error}") from None


def encode_log(time_ns: int, level: str, event: str, message: str, facts: Mapping[str, Any]) -> bytes:
    """Return a line of `broker:logs`."""
    body = {"timestamp": encode_time(time_ns), "level": level, "event": event, "message": message, **facts}
    return orjson.dumps(body, default=str)


# --- legacy channels


def encode_envelope(data: Mapping[str, Any], *, time_ns: int, sender: str = SENDER) -> bytes:
    """Return a message for a legacy channel."""
    body = {"data": data, "timestamp": encode_time(time_ns), "sender": sender}
    return orjson.dumps(body, default=_encode_value)


def encode_legacy_price(symbol: str, item: Mapping[str, Any], *, time_ns: int) -> bytes:
    """Return the legacy message of a trade.

    Raises:
        CodecError: it has no price or no time.
    """
    data = {
        "type": "price",
        "timestamp": _encode_legacy_time(_read_time(item)),
        "price": _encode_text(_parse_price(item)),
        "volume": None,
        "symbol": symbol,
    }
    return encode_envelope(data, time_ns=time_ns)


def encode_legacy_order(data: Mapping[str, Any], *, time_ns: int) -> bytes:
    """Return the legacy message of an order update."""
    order = _read_order(data)
    told = {key: order.get(key) for key in _ORDER_KEYS}
    told |= {key: _encode_text(order.get(key)) for key in _ORDER_NUMBERS}
    at = data.get("timestamp") or data.get("at")
    body = {
        "type": "order",
        "timestamp": _encode_legacy_time(at),
        "symbol": order.get("symbol"),
        "order_data": {
            "event": data.get("event"),
            "execution_id": data.get("execution_id"),
            "timestamp": at,
            "position_qty": _encode_text(data.get("position_qty")),
            "price": _encode_text(data.get("price")),
            "qty": _encode_text(data.get("qty")),
            "order": told | {"source": "alpaca"},
        },
    }
    return encode_envelope(body, time_ns=time_ns)


# --- values


def _parse_price(item: Mapping[str, Any]) -> float | int:
    price = item.get("p")
    if not isinstance(price, float | int) or isinstance(price, bool) or not math.isfinite(price):
        raise CodecError(f"a trade with the price {_show(price)}")
    return price


def _read_time(item: Mapping[str, Any]) -> str:
    at = item.get("t")
    if isinstance(at, str) and at:
        return at
    if isinstance(at, msgpack.Timestamp):
        return encode_time(at.to_unix_nano())
    raise CodecError(f"an item with the time {_show(at)}")


def _read_order(data: Mapping[str, Any]) -> Mapping[str, Any]:
    order = data.get("order")
    return order if isinstance(order, Mapping) else {}


def _parse_seconds(at: str) -> int | None:
    """Return a time in whole seconds since 1970, None when it is no time."""
    if len(at) > 20 and at[19] == "." and at[-1] == "Z":
        return _parse_whole_seconds(at[:19])  # the same for all trades of a second
    return _parse_whole_seconds(at)


@lru_cache(maxsize=1_024)
def _parse_whole_seconds(at: str) -> int | None:
    try:
        return parse_time(at) // SECOND_NS
    except ValueError:
        return None


def _encode_legacy_time(at: object) -> str | None:
    if not isinstance(at, str):
        return None
    try:
        seconds, nanos = divmod(parse_time(at), SECOND_NS)
    except ValueError:
        return at
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S") + f".{nanos // 1_000:06d}+00:00"


def _parse_decimal(value: object) -> Decimal | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return number if number.is_finite() and -64 < number.adjusted() < 64 else None


def _encode_number(value: object) -> Any:
    """Return a number of Alpaca's, which are strings, as a JSON number with all its digits."""
    number = _parse_decimal(value)
    return None if number is None else orjson.Fragment(_write_decimal(number))


def _encode_text(value: object) -> str | None:
    if value is None:
        return None
    number = _parse_decimal(value) if not isinstance(value, str) else None
    return str(value) if number is None else _write_decimal(number)


def _write_decimal(number: Decimal) -> str:
    text = f"{number:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _encode_value(value: object) -> Any:
    if isinstance(value, msgpack.Timestamp):
        return encode_time(value.to_unix_nano())
    if isinstance(value, Decimal):
        return orjson.Fragment(_write_decimal(value)) if value.is_finite() else None
    return str(value)
