"""Market data on Pub/Sub, plain form: one JSON object a message. Pure.

Attributes: `symbol` with `/` as `-`, `type` on all but bars, and `epoch` with `seq` when the publisher numbers its
messages. The body is written and read by `encode_*` and `parse_message`.
"""

from __future__ import annotations

import json
import keyword
import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import msgspec
import orjson

from dry_work.clock import MINUTE_NS
from dry_work.errors import CodecError
from dry_work.market.messages import (
    NO_EXTRA,
    Bar,
    BarBatch,
    Envelope,
    MarketMessage,
    News,
    PriceBands,
    TradingStatus,
    Watermark,
)
from dry_work.market.symbols import encode_attribute, is_symbol, parse_attribute
from dry_work.wire.statuses import BANDS, STATUS, build_status_body, parse_status_body
from dry_work.wire.times import TIME_LIMIT_NS, encode_time, parse_time

__all__ = [
    "RESERVED_NAMES",
    "encode_bar",
    "encode_batch",
    "encode_news",
    "encode_order_update",
    "encode_status",
    "encode_time",
    "encode_watermark",
    "is_extra_name",
    "parse_message",
    "parse_sequence",
    "parse_time",
]

BATCH_ENCODING = "batch"

_PRICES = ("open", "high", "low", "close")
_BAR_KEYS = frozenset(
    (*_PRICES, "volume", "vwap", "trade_count", "timestamp", "symbol", "type", "source", "revision"),
)

# What a Backtrader data, or our feed, has under a name of its own: an extra field would hide it, or be hidden.
# fmt: off
RESERVED_NAMES = frozenset((
    "CONNBROKEN", "CONNECTED", "Close", "DELAYED", "DISCONNECTED", "DateTime", "High", "IndType", "LIVE",
    "LineOrder", "Low", "NOTSUBSCRIBED", "NOTSUPPORTED_TF", "ObsType", "Open", "OpenInterest", "StratType",
    "UNKNOWN", "Volume", "addfilter", "addfilter_simple", "addminperiod", "advance", "advance_peek", "alias",
    "aliased", "array", "backwards", "bar_length_ns", "bars_delivered", "bars_dropped", "buflen", "clone", "close",
    "compensate", "completeness", "copyas", "csv", "date2num", "datetime", "do_qcheck", "engine_driven", "extend",
    "extra_names", "extrasize", "finish", "forward", "fromdate", "frompackages", "fullsize", "get",
    "get_notifications", "getenvironment", "getfeed", "getlinealiases", "getwriterheaders", "getwriterinfo",
    "getwritervalues", "haslivedata", "high", "home", "incminperiod", "islive", "itersize", "l", "last_end_ns",
    "line", "linealias", "lines", "load", "low", "market_time", "minbuffer", "next", "nextstart", "notifs",
    "num2date", "offer", "once", "oncestart", "open", "openinterest", "p", "packages", "params", "plotinfo",
    "plotlabel", "plotlines", "preload", "prenext", "preonce", "put_notification", "qbuffer", "replay", "replaying",
    "resample", "resampling", "reset", "rewind", "sessionend", "sessionstart", "setenvironment", "setminperiod",
    "size", "start", "stop", "symbol", "tick_close", "tick_datetime", "tick_high", "tick_last", "tick_low",
    "tick_open", "tick_openinterest", "tick_volume", "todate", "topic", "trading", "updateminperiod", "volume",
))
# fmt: on
_NUMBERED_LINE = re.compile(r"line_?\d+", re.ASCII)

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf(inity)?)", re.ASCII | re.IGNORECASE)
_INTEGER = re.compile(r"\d{1,18}", re.ASCII)


def is_extra_name(name: str) -> bool:
    """Tell whether a bar's further field may be called `name` as a line of Backtrader."""
    return (
        name.isidentifier()
        and not keyword.iskeyword(name)
        and not name.startswith("_")
        and name not in RESERVED_NAMES
        and not _NUMBERED_LINE.fullmatch(name)
    )


def encode_bar(bar: Bar, *, epoch: str = "", seq: int = 0, hub_ns: int = 0) -> tuple[bytes, dict[str, str]]:
    """Return payload and attributes of a bar; fields that are not finite numbers are left out.

    Args:
        hub_ns: when the publisher received it, 0: that is not told.
    """
    body: dict[str, Any] = {
        "type": "bar",
        "symbol": bar.symbol,
        "timestamp": encode_time(bar.ts_event_ns),
        "open": bar.open,
        "high": bar.high,
        "low": bar.low,
        "close": bar.close,
        "volume": bar.volume,
    }
    if bar.source:
        body["source"] = bar.source
    if bar.revision:
        body["revision"] = bar.revision
    for name, value in (("vwap", bar.vwap), ("trade_count", bar.trade_count)):
        if value is not None and math.isfinite(value):
            body[name] = value
    for name, value in bar.extra.items():
        if math.isfinite(value):
            body.setdefault(name, value)
    return orjson.dumps(body), _build_attributes(symbol=bar.symbol, epoch=epoch, seq=seq, hub_ns=hub_ns)


def encode_watermark(mark: Watermark, *, epoch: str = "", seq: int = 0) -> tuple[bytes, dict[str, str]]:
    """Return payload and attributes of a watermark."""
    body: dict[str, Any] = {
        "type": "watermark",
        "slice": mark.slice,
        "end": encode_time(mark.end_ns),
        "bars": mark.bars,
        "event_id": mark.event_id,
    }
    if mark.last:
        body["last"] = True
    return orjson.dumps(body), _build_attributes(kind="watermark", epoch=epoch, seq=seq)


def encode_status(status: TradingStatus | PriceBands, *, epoch: str = "", seq: int = 0) -> tuple[bytes, dict[str, str]]:
    """Return payload and attributes of a trading status or of price bands."""
    body = build_status_body(status)
    return orjson.dumps(body), _build_attributes(kind=body["type"], symbol=status.symbol, epoch=epoch, seq=seq)


def encode_news(news: News, *, epoch: str = "", seq: int = 0) -> tuple[bytes, dict[str, str]]:
    """Return payload and attributes of a news item; its attribute `symbol` is the first of its symbols."""
    body = {
        "type": "news",
        "symbols": list(news.symbols),
        "headline": news.headline,
        "summary": news.summary,
        "author": news.author,
        "url": news.url,
        "created_at": news.created_at,
        "updated_at": news.updated_at,
        "source": news.source,
        "ingested_at": news.ingested_at,
    }
    first = news.symbols[0] if news.symbols else ""
    return orjson.dumps(body), _build_attributes(kind="news", symbol=first, epoch=epoch, seq=seq)


def encode_order_update(
    frame: bytes, *, account: str, symbol: str, event: str, event_id: str, epoch: str = "", seq: int = 0
) -> tuple[bytes, dict[str, str]]:
    """Return payload and attributes of an order update; its payload is the frame of `trade_updates`, unchanged."""
    attributes = _build_attributes(symbol=symbol, epoch=epoch, seq=seq)
    facts = {"account": account, "event": event, "event_id": event_id}
    return frame, {**attributes, **{name: value for name, value in facts.items() if value}}


def parse_message(
    topic: str, data: bytes, attributes: Mapping[str, str], *, recv_ns: int, length_ns: int = MINUTE_NS
) -> Envelope:
    """Return the message that `topic` delivered at `recv_ns`; bars are `length_ns` long.

    Raises:
        CodecError: when it cannot be used. Its `reason` is one of a fixed set of texts without values, so that drops
            can be counted by reason.
    """
    if attributes.get("encoding") == BATCH_ENCODING:
        return _parse_batch(topic, data, attributes, recv_ns=recv_ns, length_ns=length_ns)
    if attributes.get("type", "bar") == "bar":
        hub_ns = _parse_hub_time(attributes)
        bar = _read_plain(data, attributes.get("symbol", ""), recv_ns=recv_ns, hub_ns=hub_ns, length_ns=length_ns)
        if bar is not None:
            epoch, seq = parse_sequence(attributes)
            return Envelope(topic=topic, message=bar, epoch=epoch, seq=seq)
    body = _parse_object(data)
    kind = body.get("type")
    if kind is None:
        kind = attributes.get("type") or "bar"
    ignored: tuple[str, ...] = ()
    message: MarketMessage
    if kind == "bar":
        message, ignored = _parse_bar(data, body, attributes, recv_ns=recv_ns, length_ns=length_ns)
    elif kind == "watermark":
        message = _parse_watermark(data, body)
    elif kind == "news":
        message = _parse_news(data, body, recv_ns=recv_ns)
    elif kind in (STATUS, BANDS):
        message = parse_status_body(body, recv_ns=recv_ns)
    else:
        raise CodecError("unknown type", data=data)
    epoch, seq = parse_sequence(attributes)
    return Envelope(topic=topic, message=message, epoch=epoch, seq=seq, ignored_fields=ignored)


def encode_batch(
    bars: Iterable[Bar], *, epoch: str = "", seq: int = 0, hub_ns: int = 0
) -> tuple[bytes, dict[str, str]]:
    """Return payload and attributes of the batch form: an array of bars, for subscriptions without a filter.

    Args:
        hub_ns: when the publisher received the last of them, 0: that is not told.
    """
    payload = b"[" + b",".join(encode_bar(bar)[0] for bar in bars) + b"]"
    return payload, {**_build_attributes(epoch=epoch, seq=seq, hub_ns=hub_ns), "encoding": BATCH_ENCODING}


class _PlainBar(msgspec.Struct, forbid_unknown_fields=True):
    """A bar as `encode_bar` writes it, without extra fields: what a decoder in C can check by itself."""

    symbol: str
    timestamp: str
    open: float
    high: float
    low: float
    close: float
    volume: float
    type: str = "bar"
    vwap: float | None = None
    trade_count: float | None = None
    source: str = ""
    revision: int = 0


_plain_bar = msgspec.json.Decoder(_PlainBar)
_plain_bars = msgspec.json.Decoder(list[_PlainBar])


def _read_plain(data: bytes, symbol: str, *, recv_ns: int, hub_ns: int, length_ns: int) -> Bar | None:
    """Return a bar of the usual form; None when the body is any other, which `_parse_bar` then reads or refuses."""
    try:
        body = _plain_bar.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return _build_plain(body, symbol or body.symbol, recv_ns=recv_ns, hub_ns=hub_ns, length_ns=length_ns)


def _read_plain_batch(data: bytes, *, recv_ns: int, hub_ns: int, length_ns: int) -> tuple[Bar, ...] | None:
    try:
        bodies = _plain_bars.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    bars: list[Bar] = []
    for body in bodies:
        bar = _build_plain(body, body.symbol, recv_ns=recv_ns, hub_ns=hub_ns, length_ns=length_ns)
        if bar is None:
            return None
        bars.append(bar)
    return tuple(bars)


def _build_plain(body: _PlainBar, symbol: str, *, recv_ns: int, hub_ns: int, length_ns: int) -> Bar | None:
    canonical, start_ns = _known_symbol(symbol), _known_time(body.timestamp)
    volume, revision, vwap, trade_count = body.volume, body.revision, body.vwap, body.trade_count
    if (
        not canonical
        or start_ns < 0
        or body.type != "bar"
        or not (body.open > 0 and body.high > 0 and body.low > 0 and body.close > 0)
        or body.open + body.high + body.low + body.close + volume == math.inf
        or volume < 0
        or not 0 <= revision < TIME_LIMIT_NS
        or (vwap is not None and not math.isfinite(vwap))
        or (trade_count is not None and not math.isfinite(trade_count))
    ):
        return None
    return Bar(
        symbol=canonical,
        ts_event_ns=start_ns,
        open=body.open,
        high=body.high,
        low=body.low,
        close=body.close,
        volume=volume,
        length_ns=length_ns,
        trade_count=trade_count,
        vwap=vwap,
        revision=revision,
        source=body.source,
        extra=NO_EXTRA,
        ts_recv_ns=recv_ns,
        ts_hub_ns=hub_ns,
    )


@lru_cache(maxsize=16_384)
def _known_symbol(text: str) -> str:
    """Return the canonical form of a symbol, empty when it is none."""
    symbol = parse_attribute(text)
    return symbol if is_symbol(symbol) else ""


@lru_cache(maxsize=1_024)
def _known_time(text: str) -> int:
    """Return the time in nanoseconds, -1 when it is none. All bars of a minute have the same."""
    try:
        return parse_time(text)
    except ValueError:
        return -1


def _parse_batch(topic: str, data: bytes, attributes: Mapping[str, str], *, recv_ns: int, length_ns: int) -> Envelope:
    plain = _read_plain_batch(data, recv_ns=recv_ns, hub_ns=_parse_hub_time(attributes), length_ns=length_ns)
    if plain is not None:
        epoch, seq = parse_sequence(attributes)
        return Envelope(topic=topic, message=BarBatch(bars=plain), epoch=epoch, seq=seq)
    body = _parse_json(data)
    if not isinstance(body, list):
        raise CodecError("not a JSON array", data=data)
    own = {name: value for name, value in attributes.items() if name not in ("symbol", "type")}
    bars: list[Bar] = []
    dropped: list[str] = []
    ignored: list[str] = []
    for entry in body:
        try:
            if not isinstance(entry, dict):
                raise CodecError("not a JSON object", data=data)
            if entry.get("type", "bar") != "bar":
                raise CodecError("unknown type", data=data)
            bar, names = _parse_bar(data, entry, own, recv_ns=recv_ns, length_ns=length_ns)
        except CodecError as error:
            dropped.append(error.reason)
        else:
            bars.append(bar)
            ignored.extend(names)
    epoch, seq = parse_sequence(attributes)
    message = BarBatch(bars=tuple(bars), dropped=tuple(dropped))
    return Envelope(topic=topic, message=message, epoch=epoch, seq=seq, ignored_fields=tuple(ignored))


def parse_sequence(attributes: Mapping[str, str]) -> tuple[str, int]:
    """Return epoch and seq; an empty epoch when one of them is missing or not of our form."""
    epoch, seq = attributes.get("epoch", ""), attributes.get("seq", "")
    if not epoch or not _INTEGER.fullmatch(seq):
        return "", 0
    return epoch, int(seq)


def _build_attributes(*, kind: str = "", symbol: str = "", epoch: str, seq: int, hub_ns: int = 0) -> dict[str, str]:
    attributes = {}
    if symbol:
        attributes["symbol"] = encode_attribute(symbol)
    if kind:
        attributes["type"] = kind
    if epoch:
        attributes["epoch"] = epoch
        attributes["seq"] = str(seq)
    if hub_ns:
        attributes["hub_ns"] = str(hub_ns)
    return attributes


def _parse_hub_time(attributes: Mapping[str, str]) -> int:
    text = attributes.get("hub_ns", "")
    return int(text) if len(text) <= 19 and text.isascii() and text.isdigit() else 0


def _parse_object(data: bytes) -> dict[str, Any]:
    body = _parse_json(data)
    if not isinstance(body, dict):
        raise CodecError("not a JSON object", data=data)
    return body


def _parse_json(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # Python's own json writes NaN, Infinity and numbers of any size: read them, so that the drop has its reason.
        try:
            body = json.loads(data.decode("utf-8"))
            json.dumps(body, ensure_ascii=False).encode(
                "utf-8"
            )  # half a surrogate pair can be read, but never be written again
        except (ValueError, RecursionError):
            raise CodecError("not JSON", data=data) from None
        return body


def _parse_number(value: object) -> float | None:
    """Return a number or numeric string as float (maybe not finite), None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if isinstance(value, str):
        text = value.strip()
        if len(text) <= 400 and _NUMBER.fullmatch(text):
            return float(text)
    return None


def _parse_integer(value: object) -> int | None:
    """Return a whole number, or text of one, that is not negative; None for anything else."""
    if isinstance(value, str):
        return int(value) if _INTEGER.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < TIME_LIMIT_NS:
        return None
    return int(value) if value == int(value) else None


def _parse_bar(
    data: bytes, body: dict[str, Any], attributes: Mapping[str, str], *, recv_ns: int, length_ns: int
) -> tuple[Bar, tuple[str, ...]]:
    prices = [_parse_price(data, body.get(key)) for key in _PRICES]
    volume = _parse_volume(data, body.get("volume"))
    revision = _parse_integer(0 if body.get("revision") is None else body["revision"])
    if revision is None:
        raise CodecError("bad revision", data=data)
    timestamp = body.get("timestamp")
    start_ns = recv_ns - length_ns if timestamp is None else _parse_start(data, timestamp)
    optional: dict[str, float] = {}
    extra: dict[str, float] = {}
    ignored: list[str] = []
    for name, value in body.items():
        if name in _BAR_KEYS and name not in ("vwap", "trade_count"):
            continue
        number = _parse_number(value)
        if number is None or not math.isfinite(number):
            if value is not None:
                ignored.append(name)
        elif name in _BAR_KEYS:
            optional[name] = number
        elif is_extra_name(name):
            extra[name] = number
        else:
            ignored.append(name)
    source = body.get("source")
    opened, high, low, close = prices
    bar = Bar(
        symbol=_parse_symbol(data, body, attributes),
        ts_event_ns=start_ns,
        open=opened,
        high=high,
        low=low,
        close=close,
        volume=volume,
        length_ns=length_ns,
        trade_count=optional.get("trade_count"),
        vwap=optional.get("vwap"),
        revision=revision,
        source=source if isinstance(source, str) else "",
        extra=extra,
        ts_recv_ns=recv_ns,
        ts_hub_ns=_parse_hub_time(attributes),
    )
    return bar, tuple(ignored)


def _parse_symbol(data: bytes, body: dict[str, Any], attributes: Mapping[str, str]) -> str:
    text = attributes.get("symbol") or body.get("symbol")
    if text is None:
        raise CodecError("missing symbol", data=data)
    symbol = parse_attribute(text) if isinstance(text, str) else ""
    if not is_symbol(symbol):
        raise CodecError("bad symbol", data=data)
    return symbol


def _parse_price(data: bytes, value: object) -> float:
    if value is None:
        raise CodecError("missing price", data=data)
    price = _parse_number(value)
    if price is None:
        raise CodecError("non-numeric price", data=data)
    if not math.isfinite(price):
        raise CodecError("non-finite price", data=data)
    if price < 0:
        raise CodecError("negative price", data=data)
    if price == 0:
        raise CodecError("zero price", data=data)
    return price


def _parse_volume(data: bytes, value: object) -> float:
    if value is None:
        return 0.0
    volume = _parse_number(value)
    if volume is None or not math.isfinite(volume) or volume < 0:
        raise CodecError("bad volume", data=data)
    return volume


def _parse_start(data: bytes, value: object) -> int:
    if not isinstance(value, str):
        raise CodecError("bad timestamp", data=data)
    try:
        return parse_time(value)
    except ValueError:
        raise CodecError("bad timestamp", data=data) from None


def _parse_watermark(data: bytes, body: dict[str, Any]) -> Watermark:
    number, bars = _parse_integer(body.get("slice")), _parse_integer(body.get("bars"))
    end, event_id, last = body.get("end"), body.get("event_id"), body.get("last", False)
    if (
        not number
        or bars is None
        or not isinstance(end, str)
        or not isinstance(event_id or "", str)
        or not isinstance(last, bool)
    ):
        raise CodecError("bad watermark", data=data)
    try:
        end_ns = parse_time(end)
    except ValueError:
        raise CodecError("bad watermark", data=data) from None
    return Watermark(slice=number, end_ns=end_ns, bars=bars, event_id=event_id or "", last=last)


def _parse_news(data: bytes, body: dict[str, Any], *, recv_ns: int) -> News:
    symbols, headline = body.get("symbols"), body.get("headline")
    if symbols is None:
        symbols = []
    if not isinstance(symbols, list) or not isinstance(headline, str):
        raise CodecError("bad news", data=data)

    def text(key: str) -> str:
        value = body.get(key)
        return value if isinstance(value, str) else ""

    return News(
        symbols=tuple(symbol.strip().upper() for symbol in symbols if isinstance(symbol, str)),
        headline=headline,
        summary=text("summary"),
        author=text("author"),
        url=text("url"),
        source=text("source"),
        created_at=text("created_at"),
        updated_at=text("updated_at"),
        ingested_at=text("ingested_at"),
        ts_recv_ns=recv_ns,
    )
