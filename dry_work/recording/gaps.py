"""What is missing in recorded times, against the trading calendar. Pure.

Stocks are measured by the sessions of their exchange, crypto pairs around the clock. A day without any row is a missing
day; within the days that are there, bars that the regular session could have are counted. A stock's minute without a
trade has no bar, so missing minutes are normal for symbols that are traded little.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dry_work.clock import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS
from dry_work.errors import ConfigError
from dry_work.market.calendar import SessionCalendar
from dry_work.market.symbols import is_crypto, is_option

GAPS_KEPT = 3

Ints = NDArray[np.int64]


class Gap(msgspec.Struct, frozen=True):
    """A run of bars that are not there, within one session."""

    first_ns: int  # start of the first missing bar
    last_ns: int  # start of the last missing bar
    bars: int


class GapReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is missing between the first and the last time."""

    days: int = 0  # trading days with rows
    missing_days: tuple[date, ...] = ()
    expected_bars: int | None = None  # in the regular sessions of the days that are there; None: not measured
    missing_bars: int = 0
    largest: tuple[Gap, ...] = ()  # the longest runs, longest first


def find_gaps(times: Ints, symbol: str, calendar: SessionCalendar, *, length_ns: int | None) -> GapReport:
    """Return what is missing in `times` of a symbol.

    Args:
        times: rising and unique, nanoseconds since 1970 UTC; of bars their starts.
        length_ns: of the bars; None: these are trades or quotes, or the length is not known; only days are looked at.
    """
    if not len(times):
        return GapReport()
    dates = sorted({_date_of(int(day) * DAY_NS) for day in np.unique(times // DAY_NS)})
    if is_option(symbol) or (length_ns is not None and length_ns > DAY_NS):
        return GapReport(days=len(dates))  # many have no trade for days; weeks and months are not looked at
    if is_crypto(symbol):
        return _around_the_clock(times, dates, length_ns)
    try:
        return _by_session(times, dates, calendar, length_ns)
    except ConfigError:  # beyond the calendar
        return GapReport(days=len(dates))


def _around_the_clock(times: Ints, dates: list[date], length_ns: int | None) -> GapReport:
    span = (dates[-1] - dates[0]).days + 1
    every = {dates[0] + timedelta(days=number) for number in range(span)}
    missing = tuple(sorted(every - set(dates)))
    if length_ns is None or DAY_NS % length_ns or length_ns == DAY_NS:
        return GapReport(days=len(dates), missing_days=missing)
    grid = np.arange(times[0], times[-1] + 1, length_ns, dtype=np.int64)
    starts = np.array([_midnight_ns(day) for day in dates], dtype=np.int64)
    owners = np.searchsorted(starts, grid, side="right") - 1
    is_there = grid - starts[owners] < DAY_NS
    return _measure(times, grid[is_there], owners[is_there], len(dates), missing, length_ns)


def _by_session(times: Ints, dates: list[date], calendar: SessionCalendar, length_ns: int | None) -> GapReport:
    is_daily = length_ns == DAY_NS
    # The last hours of an extended session are on the next UTC day.
    sessions = calendar.sessions(dates[0] - timedelta(days=1), dates[-1])
    if is_daily:
        held = set(dates)
        found = [session for session in sessions if session.date in held]
    else:
        opens = np.array([session.pre_open_ns for session in sessions], dtype=np.int64)
        closes = np.array([session.post_close_ns for session in sessions], dtype=np.int64)
        owners = np.searchsorted(opens, times, side="right") - 1
        inside = owners >= 0
        inside[inside] = times[inside] < closes[owners[inside]]
        found = [sessions[index] for index in np.unique(owners[inside])]
    if not found:
        return GapReport(days=len(dates))
    between = calendar.sessions(found[0].date, found[-1].date)
    held = {session.date for session in found}
    missing = tuple(session.date for session in between if session.date not in held)
    if length_ns is None or is_daily or (HOUR_NS // 2) % length_ns:
        return GapReport(days=len(found), missing_days=missing)
    grids = [np.arange(session.open_ns, session.close_ns, length_ns, dtype=np.int64) for session in found]
    grid = np.concatenate(grids)
    owners = np.repeat(np.arange(len(grids)), [len(each) for each in grids])
    is_between = (grid >= times[0]) & (grid <= times[-1])
    return _measure(times, grid[is_between], owners[is_between], len(found), missing, length_ns)


def _measure(
    times: Ints, grid: Ints, owners: NDArray[Any], days: int, missing_days: tuple[date, ...], length_ns: int
) -> GapReport:
    """Compare times with the grid on which bars were possible; a gap does not reach beyond its owner."""
    is_missing = ~np.isin(grid, times - times % length_ns)
    lost, owner = grid[is_missing], owners[is_missing]
    largest: list[Gap] = []
    if len(lost):
        edges = np.flatnonzero((np.diff(lost) != length_ns) | (np.diff(owner) != 0)) + 1
        begins = np.concatenate([[0], edges])
        ends = np.concatenate([edges, [len(lost)]])
        order = np.lexsort((begins, begins - ends))[:GAPS_KEPT]
        largest = [Gap(int(lost[begins[at]]), int(lost[ends[at] - 1]), int(ends[at] - begins[at])) for at in order]
    return GapReport(
        days=days,
        missing_days=missing_days,
        expected_bars=len(grid),
        missing_bars=len(lost),
        largest=tuple(largest),
    )


def infer_length(times: Ints) -> int | None:
    """Return the most frequent distance of rising times, None when there are not two of them."""
    if len(times) < 2:
        return None
    distances, counts = np.unique(np.diff(times), return_counts=True)
    return int(distances[np.argmax(counts)])


def describe_gap(gap: Gap, length_ns: int) -> str:
    """Return a gap for people: 2013-10-08 14:31–14:35 (5 minutes)."""
    first = datetime.fromtimestamp(gap.first_ns // SECOND_NS, UTC)
    last = datetime.fromtimestamp(gap.last_ns // SECOND_NS, UTC)
    if length_ns == MINUTE_NS:
        what = f"{gap.bars:,} minute{'s' if gap.bars != 1 else ''}"
    else:
        what = f"{gap.bars:,} bar{'s' if gap.bars != 1 else ''}"
    return f"{first:%Y-%m-%d %H:%M}" + (f"–{last:%H:%M}" if gap.bars > 1 else "") + f" ({what})"


def _date_of(time_ns: int) -> date:
    return datetime.fromtimestamp(time_ns // SECOND_NS, UTC).date()


def _midnight_ns(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * SECOND_NS
