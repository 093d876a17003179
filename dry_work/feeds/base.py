"""The Backtrader side of a live feed: bars in, lines out. Engine thread only.

Bars carry their end time in the `datetime` line, since Backtrader's intraday resampling groups bars by their end.
For days and longer, `LiveFeed` and its clones decide the session from the start of the bar instead, so that a bar
that ends at midnight stays in its day.
"""

from __future__ import annotations

import datetime as dt
import math
from array import array
from collections import deque
from typing import Any

import backtrader as bt
from backtrader.feed import DataClone
from backtrader.linebuffer import LineBuffer
from backtrader.resamplerfilter import DTFaker, Replayer, Resampler

from dry_work.clock import MINUTE_NS, SECOND_NS
from dry_work.market.messages import Bar
from dry_work.market.symbols import parse_symbol
from dry_work.settings import TimeFrame

_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - Backtrader's own times are naive UTC
_EPOCH_DAYS = float(_EPOCH.toordinal())
_BAR_LINES = ("vwap", "trade_count")


def line_time(time_ns: int) -> float:
    """Return a time as Backtrader's `datetime` line holds it: days as a float, UTC, microseconds at most."""
    return float(bt.date2num(_EPOCH + dt.timedelta(microseconds=time_ns // 1000)))


def line_time_ns(value: float) -> int:
    """Return what a `datetime` line holds as nanoseconds, to the millisecond: floats of days hold no more."""
    return round((value - _EPOCH_DAYS) * 86_400_000) * 1_000_000


def resampling(frame: TimeFrame) -> dict[str, Any]:
    """Return Backtrader's arguments for a time frame."""
    units = {
        "s": (bt.TimeFrame.Seconds, 1),
        "m": (bt.TimeFrame.Minutes, 1),
        "h": (bt.TimeFrame.Minutes, 60),
        "d": (bt.TimeFrame.Days, 1),
        "w": (bt.TimeFrame.Weeks, 1),
    }
    unit, factor = units[frame.unit]
    return {"timeframe": unit, "compression": frame.count * factor}


class _SessionByStart:
    """Resampling to days and longer that looks at the start of each bar.

    The line of the data at hand is set back by one bar while Backtrader's own code decides, and is put right again
    where the bar stays in the data.
    """

    def __call__(self, data: Any, fromcheck: bool = False, forcedata: Any = None) -> bool:
        if fromcheck:
            return bool(super().__call__(data, fromcheck=fromcheck, forcedata=forcedata))  # type: ignore[misc]
        line = data.lines.datetime
        end = line[0]
        start = _start_of(data, end)
        line[0] = start
        removed = bool(super().__call__(data, fromcheck=fromcheck, forcedata=forcedata))  # type: ignore[misc]
        if not removed and line[0] == start:
            line[0] = end
        return removed

    def _eosset(self) -> None:
        # Backtrader takes the UTC date of the newest bar's end; the session is that of the open bar's start in the
        # feed's zone.
        if self._nexteos is not None:  # type: ignore[has-type]
            return
        root = self.data  # type: ignore[attr-defined]
        while root._clone:
            root = root.data
        bar = self.bar  # type: ignore[attr-defined]
        start = bar.datetime if bar.isopen() else _start_of(root, root.lines.datetime[0])
        if root._calendar is None:
            end = session_end(root, line_time_ns(start))
            self._nexteos, self._nextdteos = bt.num2date(end), end
        else:
            _, closing = root._calendar.schedule(bt.num2date(start), root._tz)
            self._nexteos, self._nextdteos = closing, bt.date2num(closing)


class SessionResampler(_SessionByStart, Resampler):
    """Backtrader's Resampler for days and longer, with the session decided by the start of each bar.

    It also closes the bar of a silent symbol with the first slice after the session, as a backtest does. Stock
    Backtrader forgets the end of the session there and merges two days.
    """

    _counted: float | None = None  # time of the bar whose period was counted as over without a bar of its own

    def _barover(self, data: Any) -> bool:
        if self._counted is not None and self._counted == self.bar.datetime:
            return False
        return bool(super()._barover(data))

    def check(self, data: Any, _forcedata: Any = None) -> None:
        if _forcedata is None or not self.bar.isopen() or not self._barover(DTFaker(data, _forcedata)):
            return
        self.compcount += 1
        if self.compcount % self.p.compression:
            self._counted = self.bar.datetime
            return
        if self.doadjusttime:
            self._adjusttime(greater=True)
        data._add2stack(self.bar.lvalues())
        self.bar.bstart(maxdate=True)


class SessionReplayer(_SessionByStart, Replayer):
    """Backtrader's Replayer for days and longer, with the session decided by the start of each bar."""


def session_end(data: Any, start_ns: int) -> float:
    """Return the end of the session in which a bar of `data` starts, as a line holds it.

    The session is that of the start's date in the data's zone, or the next one when the bar starts after the session's
    end. What comes out has the right date when Backtrader reads it, which rounds the last microseconds of a day up.
    """
    zone = data._tz or dt.UTC
    moment = _EPOCH.replace(tzinfo=dt.UTC) + dt.timedelta(microseconds=start_ns // 1000)
    date = moment.astimezone(zone).date()
    if float(data.date2num(dt.datetime.combine(date, data.p.sessionend))) < line_time(start_ns):
        date += dt.timedelta(days=1)
    end = float(data.date2num(dt.datetime.combine(date, data.p.sessionend)))
    while bt.num2date(end, data._tz).date() != date:
        end = math.nextafter(end, 0.0)
    return end


def _start_of(data: Any, end: float) -> float:
    return line_time(line_time_ns(end) - data.bar_length_ns)


def _timeoffset(self: Any) -> dt.timedelta:
    """Tell Backtrader's resamplers the market's time where they would read the machine's clock."""
    if self.market_time is None:
        return dt.timedelta()
    offset: dt.timedelta = self.market_time - dt.datetime.utcnow()  # noqa: DTZ003 - what the resampler adds it to
    return offset


# Plain functions, not a mixin: a second base class would make Backtrader declare all lines of a feed twice.
def _resample(self: Any, **kwargs: Any) -> None:
    daily = kwargs.get("timeframe", bt.TimeFrame.Days) >= bt.TimeFrame.Days
    self.addfilter(SessionResampler if daily else Resampler, **kwargs)


def _replay(self: Any, **kwargs: Any) -> None:
    daily = kwargs.get("timeframe", bt.TimeFrame.Days) >= bt.TimeFrame.Days
    self.addfilter(SessionReplayer if daily else Replayer, **kwargs)


class KnownTime:
    """The time up to which all bars are there, as Backtrader's resamplers take it: one bar before that of a data.

    Args:
        data: whose time it is.
        time: of its last bar, as a line holds it.
    """

    def __init__(self, data: Any, time: float) -> None:
        self._time = line_time(line_time_ns(time) - data.bar_length_ns)
        self._moment = data.num2date(self._time)
        self.datetime = self

    def __getitem__(self, _ago: int) -> float:
        return self._time

    def __call__(self, _ago: int = 0) -> dt.datetime:
        moment: dt.datetime = self._moment
        return moment


class LiveClone(DataClone):
    """A clone of a `LiveFeed`, plain or resampled; it has the symbol of the feed."""

    symbol: str
    bar_length_ns: int

    def __init__(self) -> None:
        super().__init__()
        self.symbol = self.p.dataname.symbol
        self.bar_length_ns = self.p.dataname.bar_length_ns

    market_time: dt.datetime | None = None
    resample = _resample
    replay = _replay
    _timeoffset = _timeoffset

    def clone(self, **kwargs: Any) -> LiveClone:
        return LiveClone(dataname=self, **kwargs)  # type: ignore[call-arg]

    def rewind(self, size: int = 1) -> None:
        super().rewind(size)
        # Backtrader counts a bar of the original when it is loaded, and once more when a bar that was taken back is
        # delivered at last; its own clones lose the bar after it.
        self._dlen -= size


class LiveFeed(bt.DataBase):
    """A feed that delivers the bars it is offered.

    Params (beside Backtrader's own):

      - ``symbol`` (default: ``None``): the symbol in canonical form; ``dataname`` is taken when it is not given

      - ``extra_fields`` (default: ``()``): names of further numeric fields that are lines from the first bar on. A
        field that is not named here becomes a line with the first bar that carries it. A bar without the field
        reads NaN.

      - ``qcheck`` (default: ``0.5``): seconds that stock Backtrader's loop lets the feed wait for a bar
    """

    params = (
        ("symbol", None),
        ("extra_fields", ()),
        ("qcheck", 0.5),
        ("timeframe", bt.TimeFrame.Minutes),
        ("compression", 1),
    )

    engine_driven = False  # True: our engine offers the bars; False: `_fetch` gets them

    def __init__(self) -> None:
        super().__init__()
        given = self.p.symbol or self.p.dataname
        if not isinstance(given, str):
            raise ValueError(f"symbol={given!r}: give the feed a symbol, for example symbol='AAPL'")
        self.symbol: str = parse_symbol(given)
        self.bar_length_ns = _bar_length_ns(self.p.timeframe, self.p.compression)
        if not self._name:  # type: ignore[has-type]
            self._name = self.symbol
        self._dataname = self.symbol
        self._offered: deque[Bar] = deque()
        self._finished = False
        self.last_end_ns = 0
        self.bars_delivered = 0
        self.bars_dropped = 0
        self.extra_names: list[str] = []
        for name in self.p.extra_fields:
            if not self._can_be_line(name):
                raise ValueError(f"extra_fields: {name!r} cannot be a line: it is no identifier or Backtrader uses it")
            self._add_line(name)

    # Backtrader's interface

    def islive(self) -> bool:
        return True

    def haslivedata(self) -> bool:
        return bool(self._offered)

    def start(self) -> None:
        super().start()
        self._offered.clear()
        self._finished = False
        self.last_end_ns = 0
        self.bars_delivered = 0
        self.bars_dropped = 0
        self.put_notification(self.DELAYED)

    market_time: dt.datetime | None = None
    resample = _resample
    replay = _replay
    _timeoffset = _timeoffset

    def clone(self, **kwargs: Any) -> LiveClone:
        return LiveClone(dataname=self, **kwargs)  # type: ignore[call-arg]

    def copyas(self, _dataname: str, **kwargs: Any) -> LiveClone:
        copy = LiveClone(dataname=self, **kwargs)  # type: ignore[call-arg]
        copy._dataname = _dataname
        copy._name = _dataname
        return copy

    def _load(self) -> bool | None:
        if not self._offered and not self.engine_driven and not self._finished:
            self._fetch()
        if not self._offered:
            return False if self._finished else None
        self._write(self._offered.popleft())
        return True

    # Ours

    def offer(self, bar: Bar) -> bool:
        """Hand over a bar for the next `_load`; False when its time is not after the last bar (it is then counted)."""
        if bar.end_ns <= (self._offered[-1].end_ns if self._offered else self.last_end_ns):
            self.bars_dropped += 1
            return False
        self._offered.append(bar)
        return True

    def finish(self) -> None:
        """End the feed once what was offered is delivered."""
        self._finished = True

    def _fetch(self) -> None:
        """Get bars when the engine does not bring them; the base class gets none."""

    def _write(self, bar: Bar) -> None:
        lines = self.lines
        lines.datetime[0] = line_time(bar.end_ns)
        lines.open[0] = bar.open
        lines.high[0] = bar.high
        lines.low[0] = bar.low
        lines.close[0] = bar.close
        lines.volume[0] = bar.volume
        lines.openinterest[0] = 0.0
        for name in _BAR_LINES:
            value = getattr(bar, name)
            if value is not None:
                self._write_extra(name, value)
        for name, value in bar.extra.items():
            self._write_extra(name, value)
        self.last_end_ns = bar.end_ns
        self.bars_delivered += 1

    def _write_extra(self, name: str, value: float) -> None:
        if name not in self.extra_names:
            if not self._can_be_line(name):
                return
            self._add_line(name)
        if math.isfinite(value):
            getattr(self.lines, name)[0] = value

    def _can_be_line(self, name: str) -> bool:
        if name in self.lines.getlinealiases() and name not in _STANDARD:
            return True  # a subclass declared it with `lines = (...)`
        return (
            name.isidentifier()
            and not name.startswith("_")
            and not hasattr(type(self), name)
            and not (hasattr(self.lines, name) or name in self.__dict__)
        )

    def _add_line(self, name: str) -> None:
        """Make a line beside those of the class, as long as they are, with NaN in the past."""
        self.extra_names.append(name)
        if hasattr(self.lines, name):
            return
        model = self.lines.datetime
        line = LineBuffer()
        line._owner = self
        line._minperiod = model._minperiod
        line.mode = model.mode
        if model.mode == LineBuffer.QBuffer:
            line.maxlen, line.extrasize, line.lenmark = model.maxlen, model.extrasize, model.lenmark
            line.reset()
            line.array.extend([math.nan] * len(model.array))
        else:
            # Not from its array: the model may hold no more than its newest values.
            line.array = array("d", [math.nan]) * (model.buflen() + model.extension)
        line._idx = model.idx
        line.lencount = model.lencount
        line.extension = model.extension
        self.lines.lines.append(line)
        # The alias belongs to this feed alone: on the class it would appear on every other feed.
        self.lines.__dict__[name] = line


_STANDARD = frozenset(bt.DataBase.lines._getlines())


def _bar_length_ns(timeframe: int, compression: int) -> int:
    if timeframe == bt.TimeFrame.Seconds:
        return SECOND_NS * int(compression)
    if timeframe == bt.TimeFrame.Minutes:
        return MINUTE_NS * int(compression)
    name = bt.TimeFrame.getname(timeframe, compression)
    raise ValueError(f"timeframe {name}: a live feed takes bars of seconds or minutes; resample them to longer ones")
