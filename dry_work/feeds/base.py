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

from dry_work.clock import MINUTE_NS, SECOND_NS
from dry_work.feeds.line_time import line_time, line_time_ns
from dry_work.feeds.resamplers import next_closing, next_of_source, replayer_for, resampler_for
from dry_work.market.messages import Bar
from dry_work.market.symbols import parse_symbol
from dry_work.settings import TimeFrame

__all__ = ["KnownTime", "LiveClone", "LiveFeed", "line_time", "line_time_ns", "resampling"]

_BAR_LINES = ("vwap", "trade_count")


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


def _timeoffset(self: Any) -> dt.timedelta:
    """Tell Backtrader's resamplers the market's time where they would read the machine's clock."""
    if self.market_time is None:
        return dt.timedelta()
    offset: dt.timedelta = self.market_time - dt.datetime.utcnow()  # noqa: DTZ003 - what the resampler adds it to
    return offset


# Plain functions, not a mixin: a second base class would make Backtrader declare all lines of a feed twice.
def _resample(self: Any, **kwargs: Any) -> None:
    self.addfilter(resampler_for(**kwargs), **kwargs)


def _replay(self: Any, **kwargs: Any) -> None:
    self.addfilter(replayer_for(**kwargs), **kwargs)


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
    """A clone of a feed of ours, or of such a clone, plain or resampled; it has the symbol of the feed.

    It sees every bar of its source once. Backtrader's own clones lose the bar after one that was taken back.
    """

    symbol: str
    bar_length_ns: int

    def __init__(self) -> None:
        super().__init__()
        source = self.p.dataname
        self.symbol = source.symbol
        self.bar_length_ns = source.bar_length_ns
        self._copies: list[LiveClone] = []
        source._copies.append(self)

    market_time: dt.datetime | None = None
    resample = _resample
    replay = _replay
    _timeoffset = _timeoffset

    def start(self) -> None:
        super().start()
        self._taken = 0  # length of the source at its last bar that was seen here

    def clone(self, **kwargs: Any) -> LiveClone:
        return LiveClone(dataname=self, **kwargs)  # type: ignore[call-arg]

    def next(self, datamaster: Any = None, ticks: bool = True) -> Any:
        if not self.replaying or self._preloading or self._barstack:
            return super().next(datamaster=datamaster, ticks=ticks)
        # A minute that is put into a bar cannot be taken out again, so it must not be ahead of the turn's time.
        if datamaster is None or not self._has_due(datamaster.datetime[0]):
            return False
        return super().next(datamaster=datamaster, ticks=ticks)

    def _has_due(self, time: float) -> bool:
        return len(self.data) > self._taken and bool(self.data.lines.datetime[0] <= time)

    def _load(self) -> bool:
        if self._preloading:
            return bool(super()._load())
        length = len(self.data)
        if length <= self._taken:
            return False
        self._taken = length
        for line, source in zip(self.lines, self.data.lines, strict=False):  # the source may have more lines
            line[0] = source[0]
        return True

    def _check(self, forcedata: Any = None) -> None:
        if self.replaying and self._has_due(math.inf if forcedata is None else forcedata.datetime[0]):
            return  # a bar of its own decides
        self._take_in()
        super()._check(forcedata=forcedata)

    def _last(self, datamaster: Any = None) -> bool:
        self._take_in()
        return bool(super()._last(datamaster=datamaster))

    def _take_in(self) -> None:
        """Put a bar that the source has just got into the longer one, before the time decides whether that is over."""
        if not self.resampling or self.replaying or len(self._filters) != 1 or len(self.data) <= self._taken:
            return
        self.forward()
        self._load()
        [(resampler, _, _)] = self._filters
        resampler(self)


class _Tick:
    """An attribute in which Backtrader holds a value of the newest bar; it can be filled when it is read.

    To fill seven of them with every bar of hundreds of feeds takes as long as the bars do, and few strategies look.
    """

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._name = name

    def __get__(self, feed: Any, owner: type[Any]) -> Any:
        if feed is None:
            return self
        self._fill(feed)
        try:
            return feed.__dict__[self._name]
        except KeyError:
            raise AttributeError(f"{owner.__name__!r} object has no attribute {self._name!r}") from None

    def __set__(self, feed: Any, value: Any) -> None:
        self._fill(feed)
        feed.__dict__[self._name] = value

    @staticmethod
    def _fill(feed: Any) -> None:
        if feed._ticks_due:
            feed._ticks_due = False
            feed._tick_fill(force=True)


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
    _ticks_due = False  # the ticks are to be those of the newest bar once somebody asks

    tick_open = _Tick()
    tick_high = _Tick()
    tick_low = _Tick()
    tick_close = _Tick()
    tick_volume = _Tick()
    tick_openinterest = _Tick()
    tick_last = _Tick()

    def __init__(self) -> None:
        super().__init__()
        given = self.p.symbol or self.p.dataname
        if not isinstance(given, str):
            raise ValueError(f"symbol={given!r}: give the feed a symbol, for example symbol='AAPL'")
        self.symbol: str = parse_symbol(given)
        self.bar_length_ns = _bar_length_ns(self.p.timeframe, self.p.compression)
        self._copies: list[LiveClone] = []
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
        self._ticks_due = False
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

    def next(self, datamaster: Any = None, ticks: bool = True) -> Any:
        if self._copies and not self.engine_driven:
            return next_of_source(self, super().next, datamaster, ticks, is_over=self._is_over)
        return super().next(datamaster=datamaster, ticks=ticks)

    def _getnexteos(self) -> Any:
        return next_closing(self, super()._getnexteos)

    def _is_over(self) -> bool:
        return self._finished and not self._offered

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
