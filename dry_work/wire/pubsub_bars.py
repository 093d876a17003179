"""Bars as JSON objects, in messages on Pub/Sub. Pure."""

from __future__ import annotations

import keyword
import math
import re
from functools import lru_cache
from typing import Any

import msgspec

from dry_work.errors import CodecError
from dry_work.market.messages import NO_EXTRA, Bar
from dry_work.market.symbols import is_symbol, parse_attribute
from dry_work.wire.times import TIME_LIMIT_NS, encode_time, parse_time

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
INTEGER = re.compile(r"\d{1,18}", re.ASCII)


def is_extra_name(name: str) -> bool:
    """Tell whether a bar's further field may be called `name` as a line of Backtrader."""
    return (
        name.isidentifier()
        and not keyword.iskeyword(name)
        and not name.startswith("_")
        and name not in RESERVED_NAMES
        and not _NUMBERED_LINE.fullmatch(name)
    )


def build_bar_body(bar: Bar) -> dict[str, Any]:
    """Return the body of a bar; fields that are not finite numbers are left out."""
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
    return body


class _PlainBar(msgspec.Struct, forbid_unknown_fields=True):
    """A bar as `build_bar_body` makes it, without extra fields: what a decoder in C can check by itself."""

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


def read_plain(data: bytes, symbol: str, *, recv_ns: int, hub_ns: int, length_ns: int) -> Bar | None:
    """Return a bar of the usual form; None when the body is any other, which `parse_bar` then reads or refuses."""
    try:
        body = _plain_bar.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return _build_plain(body, symbol or body.symbol, recv_ns=recv_ns, hub_ns=hub_ns, length_ns=length_ns)


def read_plain_batch(data: bytes, *, recv_ns: int, hub_ns: int, length_ns: int) -> tuple[Bar, ...] | None:
    """Return the bars of an array, all of the usual form; None when one is not."""
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


def parse_bar(
    data: bytes, body: dict[str, Any], symbol: str, *, recv_ns: int, hub_ns: int, length_ns: int
) -> tuple[Bar, tuple[str, ...]]:
    """Return a bar from its body, and the names of fields that cannot be taken.

    Args:
        data: the message, for the error.
        symbol: as an attribute told it; empty: that of the body.
        hub_ns: when the publisher received it, 0: not told.

    Raises:
        CodecError: it cannot be used.
    """
    prices = [_parse_price(data, body.get(key)) for key in _PRICES]
    volume = _parse_volume(data, body.get("volume"))
    revision = parse_integer(0 if body.get("revision") is None else body["revision"])
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
        symbol=_parse_symbol(data, symbol or body.get("symbol")),
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
        ts_hub_ns=hub_ns,
    )
    return bar, tuple(ignored)


def _parse_symbol(data: bytes, text: object) -> str:
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


def parse_integer(value: object) -> int | None:
    """Return a whole number, or text of one, that is not negative; None for anything else."""
    if isinstance(value, str):
        return int(value) if INTEGER.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < TIME_LIMIT_NS:
        return None
    return int(value) if value == int(value) else None
