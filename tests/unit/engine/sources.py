"""Market sources and feeds that play bars given to them."""

from __future__ import annotations

import datetime as dt
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any

import backtrader as bt
from backtrader.feed import DataClone

from dry_work.feeds.base import LiveClone, line_time
from dry_work.feeds.resamplers import next_of_source, owes_bar, replayer_for, resampler_for
from dry_work.market.messages import Bar, Slice
from dry_work.ports import SourceEvent
from dry_work.wakeup import Wakeup

MINUTE_NS = 60_000_000_000
DAY_START_NS = 1_381_104_000_000_000_000  # 2013-10-07T00:00Z, a Monday


class ListSource:
    """Gives the events it was made with, then nothing."""

    def __init__(self, events: Iterable[SourceEvent]) -> None:
        self.events = deque(events)
        self.started = False

    def start(self, wakeup: Wakeup) -> None:
        self.started = True

    def stop(self, timeout_s: float = 5.0) -> None:
        self.started = False

    def take(self) -> SourceEvent | None:
        return self.events.popleft() if self.events else None

    def wait_s(self) -> float | None:
        return None

    def counters(self) -> Mapping[str, int]:
        return {}


class RecordedBars(bt.DataBase):
    """Stock Backtrader's way: one bar after the other, as fast as the loop asks."""

    params = (("bars", ()), ("timeframe", bt.TimeFrame.Minutes))

    def start(self) -> None:
        super().start()
        self._left = deque(self.p.bars)

    def _load(self) -> bool:
        if not self._left:
            return False
        write_bar(self, self._left.popleft())
        return True


class SlicePlayer:
    """Lets stock Backtrader's loop see one slice in each of its turns, through `SlicedBars` feeds."""

    def __init__(self, slices: Iterable[Slice]) -> None:
        self._left = deque(slices)
        self._first: object = None
        self.now = dt.datetime(1970, 1, 1)
        self.over = False
        self.holders: list[Any] = []  # feeds that may need one more turn, for a bar that is complete

    def turn(self, feed: object) -> None:
        """Called by every feed before it is asked for its bar; the first of them begins a turn of the loop."""
        if self._first is None:
            self._first = feed
        if feed is not self._first or any(owes_bar(each) or each._barstack for each in self.holders):
            return
        self.current: dict[str, Bar] = {}
        if self._left:
            piece = self._left.popleft()
            self.current = {bar.symbol: bar for bar in piece.bars}
            self.now = dt.datetime.fromtimestamp(piece.end_ns / 1e9, dt.UTC).replace(tzinfo=None)
        else:
            self.over = True


class SlicedBars(bt.DataBase):
    """A live feed for stock Backtrader's own loop: it has a bar in a turn, or none."""

    params = (("player", None), ("symbol", ""), ("timeframe", bt.TimeFrame.Minutes))

    def islive(self) -> bool:
        return True

    def do_qcheck(self, onoff: bool, qlapse: float) -> None:
        super().do_qcheck(onoff, qlapse)
        self.p.player.turn(self)

    def _timeoffset(self) -> dt.timedelta:
        return self.p.player.now - dt.datetime.utcnow()

    def clone(self, **kwargs: Any) -> DataClone:
        copy = DataClone(dataname=self, **kwargs)
        copy._timeoffset = self._timeoffset
        return copy

    def _load(self) -> bool | None:
        bar = self.p.player.current.pop(self.p.symbol, None)
        if bar is None:
            return False if self.p.player.over else None
        write_bar(self, bar)
        return True


class GridBars(SlicedBars):
    """The same for stock Backtrader's own loop with our clones and resamplers."""

    def __init__(self) -> None:
        super().__init__()
        self.symbol = self.p.symbol
        self.bar_length_ns = MINUTE_NS
        self._copies: list[LiveClone] = []
        self.p.player.holders.append(self)

    def next(self, datamaster: Any = None, ticks: bool = True) -> Any:
        return next_of_source(self, super().next, datamaster, ticks, is_over=lambda: self.p.player.over)

    def resample(self, **kwargs: Any) -> None:
        self.addfilter(resampler_for(**kwargs), **kwargs)

    def replay(self, **kwargs: Any) -> None:
        self.addfilter(replayer_for(**kwargs), **kwargs)

    def clone(self, **kwargs: Any) -> Any:
        copy = LiveClone(dataname=self, **kwargs)
        copy._timeoffset = self._timeoffset
        return copy


def write_bar(data: Any, bar: Bar) -> None:
    data.lines.datetime[0] = line_time(bar.end_ns)
    for name in ("open", "high", "low", "close", "volume"):
        getattr(data.lines, name)[0] = getattr(bar, name)
    data.lines.openinterest[0] = 0.0


def make_bar(symbol: str, minute: int, price: float, **fields: Any) -> Bar:
    """Return a bar that starts `minute` minutes after the start of the day."""
    return Bar(
        symbol=symbol,
        ts_event_ns=DAY_START_NS + minute * MINUTE_NS,
        open=fields.pop("open", price),
        high=fields.pop("high", price + 0.5),
        low=fields.pop("low", price - 0.5),
        close=price,
        volume=fields.pop("volume", 100.0),
        **fields,
    )


def slices_of(bars: Iterable[Bar], *, last: bool = True) -> list[Slice]:
    """Group bars by end time, as the barrier does."""
    groups: dict[int, list[Bar]] = {}
    for bar in bars:
        groups.setdefault(bar.end_ns, []).append(bar)
    ends = sorted(groups)
    return [
        Slice(end_ns=end, bars=tuple(groups[end]), number=number, last=last and end == ends[-1])
        for number, end in enumerate(ends, 1)
    ]


def count_symbols(bars: Iterable[Bar]) -> Counter[str]:
    return Counter(bar.symbol for bar in bars)
