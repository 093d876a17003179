"""Alpaca's market-data WebSocket: frames and messages, in MessagePack and JSON. Pure.

A server's frame is an array of items. `encode_item` makes one item's bytes, so that an item that goes to many sessions
is encoded once, and `join_items` makes frames of them; `parse_frame` reads a frame into values. A client's message is
one map: `encode_message` and `parse_message`. In MessagePack times are of its timestamp type (nanoseconds), in JSON
RFC 3339 text. Beside Alpaca's items there are two own ones: the watermark `w`, sent only to sessions that asked for it,
and the key `extra` of a bar.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgpack
import msgspec
import orjson

from dry_work.clock import MINUTE_NS
from dry_work.errors import CodecError
from dry_work.market.messages import Bar
from dry_work.market.symbols import is_crypto, is_symbol
from dry_work.wire.times import encode_time, parse_item_time

FRAME_LIMIT_BYTES = 1_000_000  # clients close the connection above 1 MiB
DEEPEST = 64  # levels of an item that cannot go on as it came

STOCK_CHANNELS = ("trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "lulds")
CRYPTO_CHANNELS = ("trades", "quotes", "orderbooks", "bars", "updatedBars", "dailyBars")
IMPLIED_CHANNELS = ("corrections", "cancelErrors")  # come with the trades of stocks
WATERMARKS = "watermarks"  # own channel
CONTROLS = ("success", "error", "subscription")  # types of items that are no market data

ERROR_MESSAGES = {
    400: "invalid syntax",
    401: "not authenticated",
    402: "auth failed",
    403: "already authenticated",
    404: "auth timeout",
    405: "symbol limit exceeded",
    406: "connection limit exceeded",
    407: "slow client",
    409: "insufficient subscription",
    408: "v2 not enabled",
    410: "invalid subscribe action for this feed",
    411: "insufficient scope",
    412: "option messages are only available in MsgPack format",
    500: "internal error",
}


class StreamCodec(StrEnum):
    """How a session writes its messages; the client chooses by the `Content-Type` header of its handshake."""

    JSON = "application/json"
    MSGPACK = "application/msgpack"


class StreamWatermark(msgspec.Struct, frozen=True, kw_only=True):
    """The exchange's word that a slice is complete."""

    slice: int  # counts up by one from 1
    end_ns: int
    event_id: str = ""  # the last trade event of any account up to this slice, empty when none
    last: bool = False  # no slice follows


class StreamControl(msgspec.Struct, frozen=True, kw_only=True):
    """A control message: `kind` is success, error or subscription."""

    kind: str
    message: str = ""  # of success ("connected", "authenticated") and error
    code: int = 0  # of error
    watermarks: bool = False  # of the welcome: this server offers the own channel
    channels: Mapping[str, tuple[str, ...]] = {}  # of subscription: the whole state


class StreamUnread(msgspec.Struct, frozen=True, kw_only=True):
    """An item that gives no value here. `reason` is empty for a well-formed item of a type that is not read."""

    kind: str  # the item's T, empty when it has none
    reason: str = ""
    symbol: str = ""


StreamItem = Bar | StreamWatermark | StreamControl | StreamUnread


# Items ----------------------------------------------------------------------------------------------------------------


def encode_bar_item(bar: Bar, kind: str = "b") -> dict[str, Any]:
    """Return a bar as an item; its time is the start of the bar. What is not finite is null, in `extra` left out.

    `kind` is b for a minute bar, d for a daily bar, u for a corrected one.
    """
    item: dict[str, Any] = {
        "T": kind,
        "S": bar.symbol,
        "o": bar.open,
        "h": bar.high,
        "l": bar.low,
        "c": bar.close,
        "v": bar.volume if is_crypto(bar.symbol) else _as_integer(bar.volume),
        "n": None if (count := _finite(bar.trade_count)) is None else _as_integer(count),
        "vw": _finite(bar.vwap),
        "t": msgpack.Timestamp.from_unix_nano(bar.ts_event_ns),
    }
    extra = {name: value for name, value in bar.extra.items() if math.isfinite(value)}
    if extra:
        item["extra"] = extra
    return item


def encode_trade_item(
    symbol: str,
    *,
    time_ns: int,
    price: float,
    size: float,
    trade_id: int,
    exchange: str = "",
    conditions: Sequence[str] = (),
    tape: str = "",
    taker_side: str = "",
) -> dict[str, Any]:
    """Return a trade as an item; a stock's tells venue, conditions and tape, a coin's the side of the taker."""
    item: dict[str, Any] = {"T": "t", "S": symbol, "i": trade_id}
    if is_crypto(symbol):
        item |= {"p": price, "s": size, "tks": taker_side}
    else:
        item |= {"x": exchange, "p": price, "s": _as_integer(size), "c": list(conditions), "z": tape}
    item["t"] = msgpack.Timestamp.from_unix_nano(time_ns)
    return item


def encode_quote_item(
    symbol: str,
    *,
    time_ns: int,
    bid_price: float,
    bid_size: float,
    ask_price: float,
    ask_size: float,
    bid_exchange: str = "",
    ask_exchange: str = "",
    conditions: Sequence[str] = (),
    tape: str = "",
) -> dict[str, Any]:
    """Return a quote as an item; a side of price 0 means none."""
    item: dict[str, Any] = {"T": "q", "S": symbol}
    if is_crypto(symbol):
        item |= {"bp": bid_price, "bs": bid_size, "ap": ask_price, "as": ask_size}
    else:
        item |= {"bx": bid_exchange, "bp": bid_price, "bs": _as_integer(bid_size)}
        item |= {"ax": ask_exchange, "ap": ask_price, "as": _as_integer(ask_size)}
        item |= {"c": list(conditions), "z": tape}
    item["t"] = msgpack.Timestamp.from_unix_nano(time_ns)
    return item


def encode_rest_row(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item as the market-data REST API writes it: without type and symbol, the time as RFC 3339 text."""
    row = {name: value for name, value in item.items() if name not in ("T", "S", "extra")}
    return {"t": encode_time(row.pop("t").to_unix_nano()), **row}


def encode_watermark_item(mark: StreamWatermark) -> dict[str, Any]:
    """Return a watermark as an item."""
    end = msgpack.Timestamp.from_unix_nano(mark.end_ns)
    return {"T": "w", "slice": mark.slice, "end": end, "event_id": mark.event_id, "last": mark.last}


def encode_success_item(message: str, *, watermarks: bool = False) -> dict[str, Any]:
    """Return a success item; `watermarks` marks a welcome whose server offers the own channel."""
    item: dict[str, Any] = {"T": "success", "msg": message}
    if watermarks:
        item["watermarks"] = True
    return item


def encode_error_item(code: int) -> dict[str, Any]:
    """Return an error item with Alpaca's text for `code`."""
    return {"T": "error", "code": code, "msg": ERROR_MESSAGES[code]}


def encode_subscription_item(channels: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Return the answer to a subscription: the session's whole state, symbols in order of their names."""
    return {"T": "subscription", **{name: sorted(symbols) for name, symbols in channels.items()}}


def parse_bar_item(item: Mapping[str, Any], *, recv_ns: int, length_ns: int = MINUTE_NS) -> Bar:
    """Read a bar.

    Raises:
        CodecError: when symbol or time is missing or malformed, or a price or the volume missing, not finite or
            negative. Whatever is no finite number among count, vwap and extra fields is left out.
    """
    symbol = item.get("S")
    if not isinstance(symbol, str) or not is_symbol(symbol):
        raise CodecError("malformed symbol")
    extra = item.get("extra")
    fields = extra if isinstance(extra, Mapping) else {}
    return Bar(
        symbol=symbol,
        ts_event_ns=parse_item_time(item.get("t")),
        open=_require_amount(item, "o"),
        high=_require_amount(item, "h"),
        low=_require_amount(item, "l"),
        close=_require_amount(item, "c"),
        volume=_require_amount(item, "v"),
        length_ns=length_ns,
        trade_count=_finite(item.get("n")),
        vwap=_finite(item.get("vw")),
        source="alpaca_crypto" if is_crypto(symbol) else "alpaca_stock",
        extra={str(name): number for name, value in fields.items() if (number := _finite(value)) is not None},
        ts_recv_ns=recv_ns,
    )


def parse_watermark_item(item: Mapping[str, Any]) -> StreamWatermark:
    """Read a watermark.

    Raises:
        CodecError: when its slice or end is missing or malformed.
    """
    number = item.get("slice")
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise CodecError("malformed slice number")
    return StreamWatermark(
        slice=number,
        end_ns=parse_item_time(item.get("end")),
        event_id=str(item.get("event_id") or ""),
        last=item.get("last") is True,
    )


def parse_control_item(item: Mapping[str, Any]) -> StreamControl:
    """Read an item of `CONTROLS`; what it lacks is empty."""
    kind, code = str(item["T"]), item.get("code")
    channels = {}
    if kind == "subscription":
        for name, symbols in item.items():
            if isinstance(symbols, list):
                channels[str(name)] = tuple(str(symbol) for symbol in symbols)
    return StreamControl(
        kind=kind,
        message=str(item.get("msg") or ""),
        code=code if isinstance(code, int) else 0,
        watermarks=item.get("watermarks") is True,
        channels=channels,
    )


# Frames of the server -------------------------------------------------------------------------------------------------


def encode_item(item: Mapping[str, Any], codec: StreamCodec) -> bytes:
    """Return one item's bytes, for `join_items`. What the other encoding has and this one has not goes on as text."""
    if codec is StreamCodec.MSGPACK:
        try:
            packed = msgpack.packb(item)
        except (ValueError, TypeError, OverflowError):
            packed = msgpack.packb(make_plain(item))
        assert isinstance(packed, bytes)
        return packed
    try:
        return orjson.dumps(item, default=_encode_json_value)
    except TypeError:
        return orjson.dumps(make_plain(item))


def make_plain(value: Any, depth: int = 0) -> Any:
    """Return a value with nothing but what both encodings have; what is nested too deeply is cut off."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else float(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if depth >= DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        return {str(make_plain(name, DEEPEST)): make_plain(part, depth + 1) for name, part in value.items()}
    if isinstance(value, msgpack.ExtType):
        return value.data.hex()
    if isinstance(value, list | tuple):
        return [make_plain(part, depth + 1) for part in value]
    if isinstance(value, msgpack.Timestamp):
        try:
            return encode_time(value.to_unix_nano())
        except (ValueError, OverflowError, OSError):  # no calendar goes so far
            return f"{value.seconds}.{value.nanoseconds:09d}"
    return str(value)


def join_items(
    items: Iterable[bytes], codec: StreamCodec, *, limit_bytes: int = FRAME_LIMIT_BYTES
) -> Iterator[bytes | str]:
    """Yield the frames that hold the encoded items in order: bytes in MessagePack, text in JSON.

    Every frame has at least one item, and no more than `limit_bytes` when its items allow it.
    """
    for frame in join_bytes(items, codec, limit_bytes=limit_bytes):
        yield frame.decode() if codec is StreamCodec.JSON else frame


def join_bytes(items: Iterable[bytes], codec: StreamCodec, *, limit_bytes: int = FRAME_LIMIT_BYTES) -> Iterator[bytes]:
    """Yield the same frames as bytes, those of JSON too."""
    batch: list[bytes] = []
    size = 8
    for item in items:
        if batch and size + len(item) + 1 > limit_bytes:
            yield _join_frame(batch, codec)
            batch, size = [], 8
        batch.append(item)
        size += len(item) + 1
    if batch:
        yield _join_frame(batch, codec)


def parse_frame(frame: bytes | str, *, recv_ns: int, length_ns: int = MINUTE_NS) -> list[StreamItem]:
    """Read a server's frame: text is JSON, bytes are MessagePack or, when they begin with `[`, JSON.

    One bad item costs only itself: it comes as a `StreamUnread` with its reason.

    Raises:
        CodecError: when the frame as a whole cannot be decoded or is no array of maps.
    """
    return [_parse_item(item, recv_ns, length_ns) for item in decode_frame(frame)]


def decode_frame(frame: bytes | str) -> list[Any]:
    """Return the items of a server's frame as they are; see `parse_frame`.

    Raises:
        CodecError: when it cannot be decoded or is no array.
    """
    decoded = _decode(frame, json_mark=b"[")
    if not isinstance(decoded, list):
        raise CodecError("the frame is no array", data=frame)
    return decoded


# Messages of a client -------------------------------------------------------------------------------------------------


def encode_message(message: Mapping[str, Any], codec: StreamCodec) -> bytes | str:
    """Return a client's message: bytes in MessagePack, text in JSON."""
    data = encode_item(message, codec)
    return data if codec is StreamCodec.MSGPACK else data.decode()


def build_auth(key_id: str, secret: str) -> dict[str, Any]:
    """Return the message that authenticates a session."""
    return {"action": "auth", "key": key_id, "secret": secret}


def build_subscription(action: str, channels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return a message that subscribes or unsubscribes (`action`) symbols by channel."""
    return {"action": action, **{name: list(symbols) for name, symbols in channels.items()}}


def parse_message(data: bytes | str) -> dict[str, Any]:
    """Read a client's message: text is JSON, bytes are MessagePack or, when they begin with `{`, JSON.

    Raises:
        CodecError: when it cannot be decoded or is no map with a text as `action`.
    """
    decoded = _decode(data, json_mark=b"{")
    if not isinstance(decoded, dict) or not isinstance(decoded.get("action"), str):
        raise CodecError("the message is no map with an action", data=data)
    return decoded


# Private --------------------------------------------------------------------------------------------------------------


def _as_integer(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _require_amount(item: Mapping[str, Any], name: str) -> float:
    what = "volume" if name == "v" else "price"
    value = item.get(name)
    if value is None:
        raise CodecError(f"missing {what}")
    number = _finite(value)
    if number is None:
        raise CodecError(f"non-finite {what}")
    if number < 0:
        raise CodecError(f"negative {what}")
    return number


def _encode_json_value(value: object) -> str:
    if isinstance(value, msgpack.Timestamp):
        return encode_time(value.to_unix_nano())
    raise TypeError(f"{type(value).__name__} cannot be encoded")


def _join_frame(items: list[bytes], codec: StreamCodec) -> bytes:
    if codec is StreamCodec.JSON:
        return b"[" + b",".join(items) + b"]"
    header = msgpack.Packer().pack_array_header(len(items))
    return b"".join((header, *items))


def _decode(data: bytes | str, *, json_mark: bytes) -> Any:
    try:
        if isinstance(data, str) or data[:1] == json_mark:
            return orjson.loads(data)
        return msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException, RecursionError, TypeError, OverflowError) as error:
        raise CodecError(f"cannot be decoded: {error}", data=data) from None


def _parse_item(item: object, recv_ns: int, length_ns: int) -> StreamItem:
    if not isinstance(item, dict):
        return StreamUnread(kind="", reason="no map")
    kind = item.get("T")
    if not isinstance(kind, str):
        return StreamUnread(kind="", reason="no type")
    try:
        if kind == "b":
            return parse_bar_item(item, recv_ns=recv_ns, length_ns=length_ns)
        if kind == "w":
            return parse_watermark_item(item)
        if kind in CONTROLS:
            return parse_control_item(item)
    except CodecError as error:
        symbol = item.get("S")
        return StreamUnread(kind=kind, reason=error.reason, symbol=symbol if isinstance(symbol, str) else "")
    return StreamUnread(kind=kind)
