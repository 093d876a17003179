"""What a download consists of: series, times, units of work, and what is there already. Pure.

A span is a pair of nanoseconds since 1970 UTC, its start included and its end not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import msgspec

from dry_work.clock import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS
from dry_work.errors import ConfigError
from dry_work.market.symbols import encode_attribute, is_crypto, is_option
from dry_work.recording.tables import KINDS, Kind
from dry_work.wire.pubsub import encode_time, parse_time

Span = tuple[int, int]

# Of bars: Alpaca's name, length, and the calendar period that one unit of work covers, which is about one page.
TIMEFRAMES: Mapping[str, tuple[str, int, str]] = {
    "1m": ("1Min", MINUTE_NS, "month"),
    "5m": ("5Min", 5 * MINUTE_NS, "month"),
    "1h": ("1Hour", HOUR_NS, "year"),
    "1d": ("1Day", DAY_NS, "year"),
}
FEEDS = ("sip", "iex", "delayed_sip")
ADJUSTMENTS = ("raw", "split", "all")
PAGE_ROWS = 10_000  # Alpaca's most

# Without a subscription Alpaca gives stocks of the SIP and options only this long after the fact.
DELAY_NS = 15 * MINUTE_NS
# So long after its end a day is not expected to change any more.
SETTLE_NS = 15 * MINUTE_NS

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
# Bars on a busy day, for the estimate of requests: extended hours of a stock, regular ones of an option.
_STOCK_BARS = {"1m": 800, "5m": 192, "1h": 16, "1d": 1}
_OPTION_BARS = {"1m": 390, "5m": 78, "1h": 7, "1d": 1}


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of data of one symbol. What does not apply to it is empty."""

    symbol: str
    kind: Kind
    timeframe: str = ""  # of bars
    feed: str = ""  # of stocks
    adjustment: str = ""  # of the bars of stocks

    @property
    def name(self) -> str:
        """Its place in the catalog, for example `bars/1m/BTC-USD`."""
        return "/".join(part for part in (self.kind, self.timeframe, encode_attribute(self.symbol)) if part)

    @property
    def source(self) -> str:
        """What distinguishes it from other data for the same place, for people."""
        return ", ".join(part for part in (self.feed and f"feed {self.feed}", self.adjustment) if part) or "one source"

    def describe(self) -> str:
        """Return what it is, for people."""
        return " ".join(part for part in (self.symbol, self.timeframe, self.kind) if part)


class Unit(msgspec.Struct, frozen=True):
    """What is downloaded and recorded as done at once."""

    series: Series
    start_ns: int
    end_ns: int

    def describe(self) -> str:
        """Return what it is, for people."""
        first, last = day_of(self.start_ns), day_of(self.end_ns - 1)
        return f"{self.series.describe()} {first}" + (f" to {last}" if last != first else "")


def build_series(
    symbols: Iterable[str], *, kind: Kind, timeframe: str = "1m", feed: str = "sip", adjustment: str = "raw"
) -> list[Series]:
    """Return the series of canonical symbols.

    Raises:
        ConfigError: a word is not known, or Alpaca has no such history.
    """
    for option, word, allowed in (
        ("--kind", kind, KINDS),
        ("--timeframe", timeframe, tuple(TIMEFRAMES)),
        ("--feed", feed, FEEDS),
        ("--adjustment", adjustment, ADJUSTMENTS),
    ):
        if word not in allowed:
            raise ConfigError(f"{option} {word!r}: expected one of {', '.join(allowed)}")
    found = []
    for symbol in symbols:
        if kind == "quotes" and is_option(symbol):
            raise ConfigError(
                f"{symbol}: Alpaca has no history of quotes of options; take it out, or give --kind trades"
            )
        is_stock = not is_crypto(symbol) and not is_option(symbol)
        found.append(
            Series(
                symbol=symbol,
                kind=kind,
                timeframe=timeframe if kind == "bars" else "",
                feed=feed if is_stock else "",
                adjustment=adjustment if is_stock and kind == "bars" else "",
            )
        )
    return found


def parse_bound(text: str, *, option: str, is_end: bool = False) -> int:
    """Return a date or time in nanoseconds. A date is its beginning in UTC, as the end of a range its end.

    Raises:
        ConfigError: naming the option and what is allowed.
    """
    try:
        time_ns = parse_time(text)
    except ValueError:
        raise ConfigError(
            f"{option} {text!r}: expected a date such as 2024-01-31 or a time such as 2024-01-31T14:30:00Z"
        ) from None
    return time_ns + DAY_NS if is_end and _is_date(text) else time_ns


def choose_span(series: Series, *, start: str | None, end: str | None, days: int | None, now_ns: int) -> Span:
    """Return the span to download; it is empty when nothing of it has happened yet.

    Without an end, or with a date that is not over, it reaches up to now, for stocks of the SIP and for options up to
    15 minutes ago. A time as the end is taken at its word, but for one in the future, which is now. Bars that have not
    ended do not belong to it.

    Args:
        series: whose asset class and time frame count.
        start: date or time.
        end: date (included) or time.
        days: so many days up to the end instead of `start`, the last one included.

    Raises:
        ConfigError: what is given makes no span.
    """
    if (start is None) == (days is None):
        raise ConfigError("give --start or --days, one of them: --start 2024-01-02, or --days 30 for the last 30 days")
    if days is not None and not 1 <= days <= 36_525:
        raise ConfigError(f"--days {days}: expected a number from 1 to 36525")
    delayed = is_option(series.symbol) or series.feed in ("sip", "delayed_sip")
    length_ns = TIMEFRAMES[series.timeframe][1] if series.kind == "bars" else MINUTE_NS
    latest_ns = now_ns - (DELAY_NS if delayed and (end is None or _is_date(end)) else 0)
    latest_ns -= latest_ns % length_ns
    end_ns = latest_ns if end is None else min(parse_bound(end, option="--end", is_end=True), latest_ns)
    if start is None:
        assert days is not None
        start_ns = max(floor_day(end_ns - 1) - (days - 1) * DAY_NS, 0)
    else:
        start_ns = parse_bound(start, option="--start")
        if end is not None and parse_bound(end, option="--end", is_end=True) <= start_ns:
            raise ConfigError(f"--start {start} is not before --end {end}")
        if start_ns >= now_ns:
            raise ConfigError(f"--start {start} is in the future; it is {encode_time(now_ns - now_ns % SECOND_NS)} now")
    return start_ns, max(end_ns, start_ns)


def floor_day(time_ns: int) -> int:
    """Return the beginning of the UTC day of a time."""
    return time_ns - time_ns % DAY_NS


def day_of(time_ns: int) -> date:
    """Return the UTC date of a time."""
    return datetime.fromtimestamp(time_ns // SECOND_NS, UTC).date()


def start_of(day: date) -> int:
    """Return the time at which a UTC day begins."""
    return (day - date(1970, 1, 1)).days * DAY_NS


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Return spans in order, none of which touch each other; empty ones are left out."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if end <= start:
            continue
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def subtract_spans(spans: Iterable[Span], removed: Iterable[Span]) -> list[Span]:
    """Return what of `spans` is in none of `removed`, in order."""
    found = []
    gone = merge_spans(removed)
    for start, end in merge_spans(spans):
        at = start
        for gone_start, gone_end in gone:
            if gone_end <= at or gone_start >= end:
                continue
            if gone_start > at:
                found.append((at, gone_start))
            at = gone_end
        if at < end:
            found.append((at, end))
    return found


def cut_units(series: Series, spans: Iterable[Span]) -> list[Unit]:
    """Return the units of a series, oldest first: days of trades and quotes, months or years of bars."""
    period = TIMEFRAMES[series.timeframe][2] if series.kind == "bars" else "day"
    units = []
    for start, end in merge_spans(spans):
        at = start
        while at < end:
            cut = min(_next_period(at, period), end)
            units.append(Unit(series, at, cut))
            at = cut
    return units


def closed_part(span: Span, *, now_ns: int) -> Span:
    """Return what of a span will not change any more: up to the last day that is over."""
    return span[0], max(min(span[1], floor_day(now_ns - SETTLE_NS)), span[0])


def estimate_requests(units: Sequence[Unit]) -> int:
    """Return about how many requests units of bars take; for trades and quotes the least, one for each unit."""
    return sum(max(math.ceil(_estimate_rows(unit) / PAGE_ROWS), 1) for unit in units)


def _is_date(text: str) -> bool:
    return _DATE.fullmatch(text.strip()) is not None


def _estimate_rows(unit: Unit) -> float:
    series = unit.series
    days = (unit.end_ns - unit.start_ns) / DAY_NS
    if series.kind != "bars":
        return 0.0
    if is_crypto(series.symbol):
        return days * DAY_NS / TIMEFRAMES[series.timeframe][1]
    a_day = (_OPTION_BARS if is_option(series.symbol) else _STOCK_BARS)[series.timeframe]
    return days * 5 / 7 * a_day


def _next_period(time_ns: int, period: str) -> int:
    day = day_of(time_ns)
    if period == "day":
        return start_of(day + timedelta(days=1))
    if period == "month":
        return start_of((day.replace(day=1) + timedelta(days=32)).replace(day=1))
    return start_of(date(day.year + 1, 1, 1))
