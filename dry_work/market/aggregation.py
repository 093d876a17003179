"""Trades and quotes into bars, and bars into longer ones, as columns. Pure.

A bar of length L that starts at s holds what happened from s to just before s + L; a bar exists only where something
happened. Bars shorter than a day are counted from midnight UTC, as in Backtrader's resampling; daily bars begin
at midnight of a zone. Bars of trades are plain: every trade counts, whatever its sale conditions.

Recordings are aggregated by the functions at once; a stream is aggregated by `TradeAggregator` and `QuoteAggregator`,
which keep what is still open and close it with the same functions. So both give the same bars.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, tzinfo

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dry_work.clock import DAY_NS, HOUR_NS, SECOND_NS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Columns = dict[str, NDArray[np.float64] | NDArray[np.int64]]

TIME = "ts_event_ns"

_SUMMED = ("volume", "trade_count", "quote_count")


def check_length(length_ns: int) -> int:
    """Return a length that bars can have.

    Raises:
        ValueError: it does not divide a day.
    """
    if length_ns <= 0 or DAY_NS % length_ns:
        raise ValueError(f"bars of {length_ns} ns: expected a length that divides a day, such as a minute or an hour")
    return length_ns


def find_starts(times: Ints, length_ns: int, zone: tzinfo = UTC) -> Ints:
    """Return the start of the bar that holds each time (nanoseconds since 1970 UTC); `zone` matters for days only."""
    check_length(length_ns)
    if length_ns < DAY_NS or zone is UTC:
        return np.asarray(times // length_ns * length_ns, dtype=np.int64)
    # Zones change at full hours and have offsets of quarters of one, so that one look a quarter is enough.
    quarters = times // (HOUR_NS // 4)
    changes = np.concatenate([np.zeros(min(len(times), 1), dtype=np.int64), np.flatnonzero(np.diff(quarters)) + 1])
    midnights: dict[int, int] = {}
    for quarter in set(quarters[changes].tolist()):
        local = datetime.fromtimestamp(quarter * 900, zone)
        midnights[quarter] = round(local.replace(hour=0, minute=0, second=0, fold=0).timestamp()) * SECOND_NS
    found = np.array([midnights[quarter] for quarter in quarters[changes].tolist()], dtype=np.int64)
    return np.repeat(found, np.diff(np.append(changes, len(times))))


def aggregate_trades(times: Ints, prices: Floats, sizes: Floats, length_ns: int, zone: tzinfo = UTC) -> Columns:
    """Return the bars of some trades: `ts_event_ns` (start), open, high, low, close, volume, trade_count, vwap.

    Args:
        times: nanoseconds since 1970 UTC; trades of one time count in the order in which they stand.
        prices: above 0.
        sizes: not negative. The vwap of a bar of size 0 is NaN.
        length_ns: length of the bars; divides a day.
        zone: whose midnight begins a daily bar.

    Raises:
        ValueError: columns of different lengths, or a length that does not divide a day.
    """
    starts, heads, prices, sizes = _group(times, length_ns, zone, prices, sizes)
    if not len(heads):
        return _no_bars("volume", "trade_count", "vwap")
    volume = _sum(sizes, heads)
    with np.errstate(invalid="ignore", divide="ignore"):
        vwap = _sum(prices * sizes, heads) / volume
    return {
        TIME: starts[heads],
        **_prices(prices, heads),
        "volume": volume,
        "trade_count": np.diff(np.append(heads, len(starts))).astype(np.float64),
        "vwap": np.where(volume > 0, vwap, np.nan),
    }


def aggregate_quotes(times: Ints, bids: Floats, asks: Floats, length_ns: int, zone: tzinfo = UTC) -> Columns:
    """Return the bars of the middle between bid and ask, of quotes that have both: a price of 0 means no such side.

    The columns are `ts_event_ns` (start), open, high, low, close, volume, which is 0 since nothing was traded, and
    `quote_count`. Arguments and errors are those of `aggregate_trades`.
    """
    both = (np.asarray(bids) > 0) & (np.asarray(asks) > 0)
    middles = (bids[both] + asks[both]) / 2
    starts, heads, middles = _group(times[both], length_ns, zone, middles)
    if not len(heads):
        return _no_bars("volume", "quote_count")
    return {
        TIME: starts[heads],
        **_prices(middles, heads),
        "volume": np.zeros(len(heads)),
        "quote_count": np.diff(np.append(heads, len(starts))).astype(np.float64),
    }


def carry_sides(bids: Floats, asks: Floats) -> tuple[Floats, Floats]:
    """Return bids and asks in which a side that is not there (0) has its last price before.

    For quotes in which every row tells of one side alone. Before the first price of a side it stays 0.
    """
    carried = []
    for side in (np.asarray(bids, dtype=np.float64), np.asarray(asks, dtype=np.float64)):
        last = np.maximum.accumulate(np.where(side > 0, np.arange(len(side)), 0))
        carried.append(side[last])
    return carried[0], carried[1]


def aggregate_bars(columns: Mapping[str, ArrayLike], length_ns: int, zone: tzinfo = UTC) -> Columns:
    """Return longer bars: first open, highest high, lowest low, last close.

    Volume, trade_count and quote_count are summed, vwap is weighted by volume; of other columns the last value that is
    there (not NaN) stays.

    Args:
        columns: `ts_event_ns` (start of each bar), open, high, low, close, volume and further ones, equally long. The
            length of these bars divides `length_ns`.
        length_ns: length of the longer bars; divides a day.
        zone: whose midnight begins a daily bar.
    """
    names = [name for name in columns if name != TIME]
    times = np.asarray(columns[TIME], dtype=np.int64)
    starts, heads, *values = _group(times, length_ns, zone, *(np.asarray(columns[name]) for name in names))
    given = dict(zip(names, values, strict=True))
    result: Columns = {TIME: starts[heads]}
    if not len(heads):
        return result | {name: np.empty(0) for name in names}
    tails = np.append(heads[1:], len(starts)) - 1
    for name in names:
        column = given[name]
        if name == "open":
            result[name] = column[heads]
        elif name == "high":
            result[name] = np.maximum.reduceat(column, heads)
        elif name == "low":
            result[name] = np.minimum.reduceat(column, heads)
        elif name == "close":
            result[name] = column[tails]
        elif name in _SUMMED:
            result[name] = _sum_given(column, heads)
        elif name == "vwap":
            result[name] = _weigh(column, given["volume"], heads)
        else:
            result[name] = _last_given(column, heads, tails)
    return result


def _no_bars(*names: str) -> Columns:
    return {TIME: np.empty(0, np.int64), **{name: np.empty(0) for name in ("open", "high", "low", "close", *names)}}


def _group(times: Ints, length_ns: int, zone: tzinfo, *columns: ArrayLike) -> tuple[NDArray, ...]:  # type: ignore[type-arg]
    """Return the start of the bar of each row, the rows at which bars begin, and the columns, all by rising time."""
    times = np.asarray(times, dtype=np.int64)
    values = [np.asarray(column, dtype=np.float64) for column in columns]
    if any(column.shape != times.shape for column in values):
        raise ValueError("columns differ in length")
    if np.any(times[1:] < times[:-1]):
        order = np.argsort(times, kind="stable")
        times, values = times[order], [column[order] for column in values]
    starts = find_starts(times, length_ns, zone)
    changes = np.flatnonzero(starts[1:] != starts[:-1]) + 1
    heads = np.concatenate([np.zeros(min(len(starts), 1), dtype=np.int64), changes])
    return (starts, heads, *values)


def _prices(prices: Floats, heads: Ints) -> Columns:
    return {
        "open": prices[heads],
        "high": np.maximum.reduceat(prices, heads),
        "low": np.minimum.reduceat(prices, heads),
        "close": prices[np.append(heads[1:], len(prices)) - 1],
    }


def _sum(column: Floats, heads: Ints) -> Floats:
    """Return the sum of each bar's values, one added after the other as a running bar adds them: to the last digit."""
    bars = np.repeat(np.arange(len(heads)), np.diff(np.append(heads, len(column))))
    return np.asarray(np.bincount(bars, weights=column, minlength=len(heads)), dtype=np.float64)


def _sum_given(column: Floats, heads: Ints) -> Floats:
    """Return the sums of the values that are there, NaN where there is none."""
    missing = np.isnan(column)
    if not missing.any():
        return _sum(column, heads)
    sums = _sum(np.where(missing, 0.0, column), heads)
    return np.where(np.logical_and.reduceat(missing, heads), np.nan, sums)


def _weigh(vwap: Floats, volume: Floats, heads: Ints) -> Floats:
    weights = np.where(np.isnan(vwap), 0.0, volume)
    total = _sum(weights, heads)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = _sum(np.where(weights > 0, vwap, 0.0) * weights, heads) / total
    return np.where(total > 0, mean, np.nan)


def _last_given(column: Floats, heads: Ints, tails: Ints) -> Floats:
    rows = np.maximum.accumulate(np.where(np.isnan(column), -1, np.arange(len(column))))[tails]
    return np.where(rows >= heads, column[rows], np.nan)


class _TickAggregator:
    """Keeps the rows of the open bar, and closes it when a later row or the time says that it is over.

    Args:
        length_ns: length of the bars; divides a day.
        zone: whose midnight begins a daily bar.
    """

    _aggregate: Callable[[Ints, Floats, Floats, int, tzinfo], Columns]

    def __init__(self, length_ns: int, zone: tzinfo = UTC) -> None:
        self.length_ns = check_length(length_ns)
        self.zone = zone
        self.late = 0  # rows that came after their bar was closed; they are dropped
        self._closed_ns: int | None = None  # start of the open bar: what is before it is late
        self._rows: list[tuple[Ints, Floats, Floats]] = []  # all of the open bar

    def advance(self, time_ns: int) -> Columns | None:
        """Return the bar that ended at or before `time_ns`, if one did; what comes later for it is counted as late."""
        return self._close_before(self._start_of(time_ns))

    def finish(self) -> Columns | None:
        """Return the bar that is still open, if one is."""
        if not self._rows:
            return None
        start = self._start_of(int(self._rows[0][0][0]))
        # A day of a zone has 23 to 25 hours.
        return self._close_before(self._start_of(start + self.length_ns * 3 // 2))

    def _take(self, times: ArrayLike, first: ArrayLike, second: ArrayLike) -> Columns | None:
        rows = (
            np.array(times, dtype=np.int64),
            np.array(first, dtype=np.float64),
            np.array(second, dtype=np.float64),
        )
        if any(column.shape != rows[0].shape for column in rows):
            raise ValueError("columns differ in length")
        if self._closed_ns is not None and np.any(rows[0] < self._closed_ns):
            in_time = rows[0] >= self._closed_ns
            self.late += int(np.count_nonzero(~in_time))
            rows = (rows[0][in_time], rows[1][in_time], rows[2][in_time])
        if not len(rows[0]):
            return None
        self._rows.append(rows)
        return self._close_before(self._start_of(int(rows[0].max())))

    def _start_of(self, time_ns: int) -> int:
        return int(find_starts(np.array([time_ns], dtype=np.int64), self.length_ns, self.zone)[0])

    def _close_before(self, until_ns: int) -> Columns | None:
        """Close the bars of all rows before `until_ns`, which is the start of a bar."""
        if self._closed_ns is not None and until_ns <= self._closed_ns:
            return None
        self._closed_ns = until_ns
        if not self._rows:
            return None
        times, first, second = (np.concatenate(columns) for columns in zip(*self._rows, strict=True))
        over = times < until_ns
        self._rows = [] if over.all() else [(times[~over], first[~over], second[~over])]
        bars = self._aggregate(times[over], first[over], second[over], self.length_ns, self.zone)
        return bars if len(bars[TIME]) else None


class TradeAggregator(_TickAggregator):
    """Makes bars of a stream of trades, the same as `aggregate_trades` makes of all of them at once."""

    _aggregate = staticmethod(aggregate_trades)

    def add(self, times: ArrayLike, prices: ArrayLike, sizes: ArrayLike) -> Columns | None:
        """Take trades and return the bars that they closed, None when there are none."""
        return self._take(times, prices, sizes)


class QuoteAggregator(_TickAggregator):
    """Makes bars of a stream of quotes, the same as `aggregate_quotes` makes of all of them at once."""

    _aggregate = staticmethod(aggregate_quotes)

    def add(self, times: ArrayLike, bids: ArrayLike, asks: ArrayLike) -> Columns | None:
        """Take quotes and return the bars that they closed, None when there are none."""
        return self._take(times, bids, asks)
