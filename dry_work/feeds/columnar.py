"""Feeds over whole columns: a recording as a Backtrader feed, and the columns of a `PandasData` feed.

Whatever is loaded at once is what Backtrader's own loading row by row gives, bit by bit; where that cannot be said
(filters, input in another zone, values that are no numbers) the rows are loaded one by one.
"""

from __future__ import annotations

import datetime as dt
import math
from array import array
from collections.abc import Mapping
from typing import Any

import backtrader as bt
import numpy as np
from backtrader.feed import AbstractDataBase
from backtrader.linebuffer import LineBuffer

from dry_work.clock import MINUTE_NS, SECOND_NS
from dry_work.feeds.announced import Announcement
from dry_work.feeds.base import LiveClone
from dry_work.feeds.recorded import Recording
from dry_work.feeds.recorded_files import Column, Floats, Ints
from dry_work.feeds.resamplers import next_closing, next_of_source, replayer_for, resampler_for, session_end

DAY_NS = 1440 * MINUTE_NS

_DAY_US = 86_400_000_000
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_EPOCH_ORDINAL = dt.date(1970, 1, 1).toordinal()
_FIRST_US = -(_EPOCH_ORDINAL - 1) * _DAY_US  # year 1
_LAST_US = (dt.date(9999, 12, 31).toordinal() + 1 - _EPOCH_ORDINAL) * _DAY_US
_CHUNK_ROWS = 4096
_STANDARD = frozenset(bt.DataBase.lines._getlines())
# What a subclass of PandasData may bring without changing how rows are loaded.
_DECLARATIONS = frozenset(
    ("lines", "params", "plotinfo", "plotlines", "linealias", "alias", "aliased", "packages", "frompackages")
)


def line_times(times_us: Ints) -> Floats:
    """Return UTC microseconds since 1970 as Backtrader's `datetime` line holds them: days as floats, like `date2num`.

    `date2num` adds the terms of hours, minutes, seconds and microseconds to the day with one rounding. Between two
    powers of two all days are rounded to the same grid, so what a time of day adds is the same for each of them, and
    is computed once for each time of day there is.
    """
    days = times_us // _DAY_US
    ordinals = (days + _EPOCH_ORDINAL).astype(np.float64)
    of_day, which = np.unique(times_us - days * _DAY_US, return_inverse=True)
    grids = np.frexp(ordinals)[1]
    result = np.empty(len(times_us), dtype=np.float64)
    for grid in np.unique(grids):
        base = math.ldexp(0.5, int(grid))
        added = np.array([_day_fraction(base, int(value)) for value in of_day], dtype=np.float64)
        here = grids == grid
        if here.all():
            np.add(ordinals, added[which], out=result)
        else:
            result[here] = ordinals[here] + added[which[here]]
    return result


def _day_fraction(base: float, of_day_us: int) -> float:
    seconds, microsecond = divmod(of_day_us, 1_000_000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    # The terms of bt.date2num.
    terms = (hour / 24.0, minute / 1440.0, second / 86400.0, microsecond / 86400e6)
    return math.fsum((base, *terms)) - base


def column_array(size: int) -> array[float]:
    """Return an array of `size` NaNs that takes no more memory than that."""
    return array("d", (math.nan,)) * size


def fill_line(line: LineBuffer, values: Column | None, size: int) -> None:
    """Make `values` (None: NaN) the content of a line and set it before its first value."""
    line.array = column_array(size)
    if values is not None and size:
        np.frombuffer(line.array, dtype=np.float64)[:] = values
    line.home()


def can_fill(feed: AbstractDataBase) -> bool:
    """Say whether a feed of rising indices without filters can be given its columns at once."""
    return not (
        feed._filters
        or feed._ffilters
        or feed._barstack
        or feed._barstash
        or feed._tzinput is not None
        or any(line.mode != LineBuffer.UnBounded or line.extension or line.bindings for line in feed.lines.lines)
    )


def rows_between(times: Floats, begin: float, end: float) -> tuple[slice | Ints, int | None]:
    """Return the rows Backtrader's `load` would deliver, and the row at which it would stop (None: after the last).

    It leaves out what is before `begin` and stops at the first row that is after `end`.
    """
    stop = None
    if end != math.inf:
        late = np.flatnonzero((times > end) & ~(times < begin))
        if len(late):
            stop = int(late[0])
            times = times[:stop]
    if begin != -math.inf:
        early = times < begin
        if early.any():
            return np.flatnonzero(~early), stop
    return slice(0, len(times)), stop


def fill_feed(feed: AbstractDataBase, times: Floats, columns: Mapping[str, Column]) -> int | None:
    """Give a feed its columns by line name, within its dates; lines without a column are NaN.

    Returns the row at which loading row by row would have stopped, None when that is after the last.
    """
    rows, stop = rows_between(times, feed.fromdate, feed.todate)
    size = len(times[rows])
    given = {id(getattr(feed.lines, name)): column for name, column in (*columns.items(), ("datetime", times))}
    for line in feed.lines.lines:
        values = given.get(id(line))
        fill_line(line, None if values is None else values[rows], size)
    return stop


class ColumnarFeed(bt.DataBase):
    """A feed over the columns of one symbol of a recording; make it with `columnar_feed`.

    The `datetime` line is the end of the bar. Bars of a day and longer carry the end of the session of their last day
    in the feed's zone, as bars do that Backtrader resamples from shorter ones. The columns `vwap`, `trade_count` and
    extra fields are lines beside Backtrader's own, NaN where a bar has none; `openinterest` is 0.

    Params (beside Backtrader's own):
        columns: the columns by name, as `Recording.columns` gives them.
        bar_length_ns: length of a bar in nanoseconds.
        extra_fields: names of further lines; NaN when there is no column of that name.
    """

    params = (("columns", None), ("bar_length_ns", MINUTE_NS), ("extra_fields", ()))

    def __init__(self) -> None:
        super().__init__()
        self.symbol: str = self.p.dataname
        self.bar_length_ns: int = self.p.bar_length_ns
        columns = self.p.columns
        if columns is None:
            raise ValueError(f"{self.symbol}: a columnar feed needs columns; columnar_feed() makes it from a recording")
        self._copies: list[LiveClone] = []
        self._announced = Announcement(self)
        self._row = 0
        self._times: Floats | None = None
        self._chunk: list[tuple[float, ...]] = []
        carried = [name for name in columns if name not in _STANDARD and name != "ts_event_ns"]
        for name in dict.fromkeys((*carried, *self.p.extra_fields)):
            if not self._can_be_line(name):
                raise ValueError(
                    f"{self.symbol}: the field {name!r} cannot be a line: it is no identifier or Backtrader uses it"
                )
            if not hasattr(self.lines, name):
                line = LineBuffer()
                line._owner = self
                self.lines.lines.append(line)
                # The alias belongs to this feed alone: on the class it would appear on every other feed.
                self.lines.__dict__[name] = line
        self._columns: dict[str, Column] = {name: columns[name] for name in (*_PRICED, *carried)}

    def start(self) -> None:
        super().start()
        self._row = 0
        self._times = None
        self._chunk = []

    def stop(self) -> None:
        super().stop()
        self._times = None
        self._chunk = []

    def preload(self) -> None:
        if not can_fill(self) or type(self)._load is not ColumnarFeed._load:
            super().preload()
            return
        count = self._count()
        stop = fill_feed(self, self._compute_times(), {**self._columns, "openinterest": _zeros(count)})
        self._row = count if stop is None else stop + 1

    def next(self, datamaster: Any = None, ticks: bool = True) -> Any:
        if self._copies:
            return next_of_source(self, super().next, datamaster, ticks, is_over=self._is_over)
        if self.replaying and datamaster is None and self._can_announce():
            time = self._find_coming()
            if time is not None:
                self._announced.make(time)
                return True
        return super().next(datamaster=datamaster, ticks=ticks)

    def _can_announce(self) -> bool:
        """Tell whether the next bar is one of the columns, and goes into the longer bar and nowhere else."""
        return (
            len(self._filters) == 1
            and not self._barstack
            and not self._barstash
            and self._tzinput is None
            and len(self) == self.buflen()
            and type(self)._load is ColumnarFeed._load
        )

    def _find_coming(self) -> float | None:
        """Return the time of the bar that `load` takes next."""
        if self._times is None:
            self._times = self._compute_times()
        times = self._times
        for row in range(self._row, len(times)):
            if times[row] >= self.fromdate:
                return float(times[row]) if times[row] <= self.todate else None
        return None

    def _getnexteos(self) -> Any:
        return next_closing(self, super()._getnexteos)

    def resample(self, **kwargs: Any) -> None:
        self.addfilter(resampler_for(by_session=self.bar_length_ns < DAY_NS, **kwargs), **kwargs)

    def replay(self, **kwargs: Any) -> None:
        self.addfilter(replayer_for(by_session=self.bar_length_ns < DAY_NS, **kwargs), **kwargs)

    def clone(self, **kwargs: Any) -> LiveClone:
        return LiveClone(dataname=self, **kwargs)  # type: ignore[call-arg]

    def copyas(self, _dataname: str, **kwargs: Any) -> LiveClone:
        copy = self.clone(**kwargs)
        copy._dataname = _dataname
        copy._name = _dataname
        return copy

    def _is_over(self) -> bool:
        return self._row >= self._count()

    def _load(self) -> bool:
        place = self._row % _CHUNK_ROWS
        if self._is_over():
            return False
        if place == 0 or not self._chunk:
            self._read_chunk(self._row - place)
        lines = self.lines
        lines.datetime[0], *values = self._chunk[place]
        for name, value in zip(self._columns, values, strict=True):
            getattr(lines, name)[0] = value
        lines.openinterest[0] = 0.0
        self._row += 1
        return True

    def _read_chunk(self, low: int) -> None:
        if self._times is None:
            self._times = self._compute_times()
        rows = slice(low, low + _CHUNK_ROWS)
        parts = (self._times, *self._columns.values())
        self._chunk = list(zip(*(part[rows].tolist() for part in parts), strict=True))

    def _count(self) -> int:
        return len(self.p.columns["ts_event_ns"])

    def _compute_times(self) -> Floats:
        starts: Ints = self.p.columns["ts_event_ns"]
        if self.bar_length_ns < DAY_NS:
            return line_times((starts + self.bar_length_ns) // 1000)
        last_days_us = (starts + (self.bar_length_ns - DAY_NS)) // 1000
        return np.array([session_end(self, start_us * 1000) for start_us in last_days_us.tolist()], dtype=np.float64)

    def _can_be_line(self, name: str) -> bool:
        if name in self.lines.getlinealiases():
            return name not in _STANDARD  # a subclass declared it with `lines = (...)`
        return (
            name.isidentifier()
            and not name.startswith("_")
            and not hasattr(type(self), name)
            and not hasattr(self.lines, name)
            and name not in self.__dict__
        )


_PRICED = ("open", "high", "low", "close", "volume")


def _zeros(size: int) -> Floats:
    # One zero seen `size` times: the line makes the copy.
    return np.broadcast_to(np.zeros(1), size)


def columnar_feed(
    recording: Recording, symbol: str, *, tz: Any = None, extra_fields: tuple[str, ...] = (), **params: Any
) -> ColumnarFeed:
    """Return a feed over the bars of `symbol`, stamped at their end.

    Args:
        recording: where the bars are.
        symbol: one of `recording.symbols`; the feed's name and `dataname`.
        tz: the feed's zone, as Backtrader takes it: a name or a pytz zone.
        extra_fields: names of lines that are there even when no bar carries them.
        params: further params of Backtrader's feeds, such as `fromdate`, `todate`, `sessionend`.

    Raises:
        ValueError: the recording has no such symbol, its bars have a length that Backtrader cannot name, or a field
            cannot be a line.
    """
    if symbol not in recording.symbols:
        raise ValueError(f"no bars of {symbol!r} in the recording: symbols in it are {', '.join(recording.symbols)}")
    timeframe, compression = _timeframe_of(recording.length_ns)
    return ColumnarFeed(  # type: ignore[call-arg]  # Backtrader's metaclass takes params
        dataname=symbol,
        columns=dict(recording.columns(symbol)),
        bar_length_ns=recording.length_ns,
        extra_fields=tuple(extra_fields),
        tz=tz,
        timeframe=timeframe,
        compression=compression,
        **params,
    )


def _timeframe_of(length_ns: int) -> tuple[int, int]:
    units = ((DAY_NS, bt.TimeFrame.Days), (MINUTE_NS, bt.TimeFrame.Minutes), (SECOND_NS, bt.TimeFrame.Seconds))
    for unit_ns, timeframe in units:
        if length_ns >= unit_ns and length_ns % unit_ns == 0:
            return timeframe, length_ns // unit_ns
    raise ValueError(f"bars of {length_ns} ns: a feed takes bars of whole seconds, minutes or days")


def is_plain_pandas(feed: AbstractDataBase) -> bool:
    """Say whether a feed is a `PandasData`, or one that only adds lines and params to it."""
    kinds = type(feed).__mro__
    if bt.feeds.PandasData not in kinds:
        return False
    for kind in kinds[: kinds.index(bt.feeds.PandasData)]:
        for name in vars(kind):
            known = name in _DECLARATIONS or name in ("__doc__", "__module__", "datafields")
            if not known and hasattr(bt.feeds.PandasData, name):
                return False
    methods = ("_load", "load", "preload", "forward", "backwards", "home", "_last")
    return not any(name in feed.__dict__ for name in methods)


def pandas_columns(feed: AbstractDataBase) -> tuple[Floats, dict[str, Column]] | None:
    """Return the times and columns of a started `PandasData` feed; None when its rows must be read one by one."""
    times_us = _frame_times_us(feed)
    if times_us is None:
        return None
    frame = feed.p.dataname
    columns: dict[str, Column] = {}
    for name in feed.getlinealiases():
        place = feed._colmapping[name]
        if name == "datetime" or place is None:
            continue
        if not -frame.shape[1] <= place < frame.shape[1]:
            return None
        values = frame.iloc[:, place]
        if not isinstance(values.dtype, np.dtype) or values.dtype.kind not in "iuf" or values.dtype.itemsize > 8:
            return None
        columns[name] = values.to_numpy()
    return line_times(times_us), columns


def _frame_times_us(feed: AbstractDataBase) -> Ints | None:
    import pandas as pd

    place = feed._colmapping["datetime"]
    frame = feed.p.dataname
    if place is not None and not -frame.shape[1] <= place < frame.shape[1]:
        return None
    stamps = frame.index if place is None else frame.iloc[:, place]
    if isinstance(stamps, pd.Series):
        if not pd.api.types.is_datetime64_any_dtype(stamps.dtype):
            return None
        stamps = pd.DatetimeIndex(stamps)
    if not isinstance(stamps, pd.DatetimeIndex):
        return None
    ticks = stamps.asi8
    if stamps.hasnans:
        return None
    per_us = {"s": 1_000_000, "ms": 1000, "us": 1}.get(stamps.unit)
    if per_us is not None:
        if len(ticks) and (ticks.min() < _FIRST_US // per_us or ticks.max() >= _LAST_US // per_us):
            return None
        times_us: Ints = ticks * per_us
    else:
        if (ticks % 1000).any():
            return None  # Backtrader's loading warns about the nanoseconds it drops
        times_us = ticks // 1000
    if len(times_us) and (times_us.min() < _FIRST_US or times_us.max() >= _LAST_US):
        return None
    return times_us


def preload_pandas(feed: AbstractDataBase) -> bool:
    """Load a plain `PandasData` feed at once; False, with nothing done, when its rows must be read one by one."""
    if not can_fill(feed):
        return False
    found = pandas_columns(feed)
    if found is None:
        return False
    times, columns = found
    stop = fill_feed(feed, times, columns)
    feed._idx = len(times) if stop is None else stop  # where Backtrader's own loading would stand
    return True


class PandasRows:
    """The `_load` of a plain `PandasData` feed, reading rows from columns that are converted once.

    For lines that are arrays: a line that keeps few values would show that Backtrader's own loading stores numpy's
    floats.
    """

    def __init__(self, feed: AbstractDataBase) -> None:
        self._feed = feed
        self._columns: list[tuple[LineBuffer, Column]] | None = None
        self._chunk: list[tuple[float, ...]] = []
        self._low = -1

    def __call__(self) -> bool:
        """Load the next row; False when there is none."""
        feed = self._feed
        if self._columns is None:
            self._columns = self._find_columns()
        if not self._columns:
            return bool(type(feed)._load(feed))
        feed._idx += 1
        index = feed._idx
        if index >= len(self._columns[0][1]):
            return False
        low = index - index % _CHUNK_ROWS
        if low != self._low:
            rows = slice(low, low + _CHUNK_ROWS)
            self._chunk = list(zip(*(column[rows].tolist() for _, column in self._columns), strict=True))
            self._low = low
        for (line, _), value in zip(self._columns, self._chunk[index - low], strict=True):
            line[0] = value
        return True

    def _find_columns(self) -> list[tuple[LineBuffer, Column]]:
        """Return the lines and their columns, the time last; none when the rows must be read by the feed itself."""
        feed = self._feed
        found = pandas_columns(feed)
        if found is None or any(line.mode != LineBuffer.UnBounded for line in feed.lines.lines):
            return []
        times, columns = found
        named = [(getattr(feed.lines, name), column) for name, column in columns.items()]
        return [*named, (feed.lines.datetime, times)]
