"""From a bar in the engine's hands to `next`: ours beside stock Backtrader's loop.

Both run in one thread: the bar is handed over at the start of a turn, which is the best that can happen to the stock
loop (on average a bar waits for half a turn). Its feeds do not wait (`qcheck=0`), so that it is never asleep.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import backtrader as bt
import msgspec

from benchmarks.market import make_bar, make_queue_feeds, name_symbols, slice_of
from benchmarks.table import Row, median, percentile
from dry_work.engine.live import LiveCerebro
from dry_work.feeds.base import LiveFeed
from dry_work.market.messages import Slice
from dry_work.ports import SourceEvent
from dry_work.wakeup import Wakeup

PERIOD = 20
BARS = {(1, False): "0.3 ms", (100, False): "1 ms", (500, False): "2 ms", (500, True): "2×"}  # of the design


class Times:
    """When each measured bar was handed over, when its `next` began, and when the next turn could begin."""

    def __init__(self) -> None:
        self.handed: list[int] = []
        self.begun: list[int] = []
        self.ended: list[int] = []

    def to_begin_ms(self) -> list[float]:
        """Return milliseconds until `next` began."""
        return [(b - a) / 1e6 for a, b in zip(self.handed, self.begun, strict=True)]

    def to_end_ms(self) -> list[float]:
        """Return milliseconds until the whole turn was over."""
        return [(b - a) / 1e6 for a, b in zip(self.handed, self.ended, strict=True)]


class Figures(msgspec.Struct, frozen=True):
    """Of one round, in milliseconds."""

    begin_p50: float
    begin_p99: float
    end_p50: float


class Averages(bt.Strategy):
    """An SMA on each symbol; `next` notes the time."""

    params = (("times", None),)

    def __init__(self) -> None:
        self.averages = [bt.ind.SMA(data, period=PERIOD) for data in self.datas]

    def next(self) -> None:
        begun = time.perf_counter_ns()
        if self.p.times.handed:
            self.p.times.begun.append(begun)


class _Script:
    """Slices to hand over: the first ones fill the averages, the others are measured."""

    def __init__(self, slices: Sequence[Slice], filling: int, times: Times) -> None:
        self._left = deque(slices)
        self._filling = filling
        self._times = times
        self._running = False

    def hand_over(self) -> Slice | None:
        """Note the end of the last turn and return the next slice, None at the end."""
        now = time.perf_counter_ns()
        if self._running:
            self._times.ended.append(now)
            self._running = False
        if not self._left:
            return None
        piece = self._left.popleft()
        self._filling -= 1
        self._running = self._filling < 0
        if self._running:
            self._times.handed.append(time.perf_counter_ns())
        return piece


class _ScriptSource:
    def __init__(self, script: _Script) -> None:
        self._script = script
        self._ended = False

    def start(self, wakeup: Wakeup) -> None:
        """Nothing is to be started."""

    def stop(self, timeout_s: float = 5.0) -> None:
        """Nothing is to be stopped."""

    def take(self) -> SourceEvent | None:
        if self._ended:
            return None
        piece = self._script.hand_over()
        if piece is None:
            self._ended = True
            return Slice(end_ns=0, bars=(), last=True)
        return piece

    def wait_s(self) -> float | None:
        return None

    def counters(self) -> Mapping[str, int]:
        return {}


class _ScriptedStock(bt.Cerebro):
    """Stock's own loop; what it calls first in each turn fills the queues."""

    script: _Script
    feeds_by_symbol: Mapping[str, Any]

    def _storenotify(self) -> None:
        super()._storenotify()
        piece = self.script.hand_over()
        if piece is None:
            for feed in self.feeds_by_symbol.values():
                feed.bars.put(None)
            return
        for bar in piece.bars:
            self.feeds_by_symbol[bar.symbol].bars.put(bar)


def _plan(symbols: Sequence[str], *, full: bool, measured: int) -> list[Slice]:
    filling = [slice_of(make_bar(symbol, minute) for symbol in symbols) for minute in range(PERIOD)]
    moving = symbols if full else symbols[:1]
    return filling + [
        slice_of(make_bar(symbol, minute) for symbol in moving) for minute in range(PERIOD, PERIOD + measured)
    ]


def _figures(times: Times) -> Figures:
    begin = times.to_begin_ms()
    return Figures(percentile(begin, 0.5), percentile(begin, 0.99), percentile(times.to_end_ms(), 0.5))


def run_ours(symbols: Sequence[str], slices: Sequence[Slice]) -> Figures:
    """Measure the live engine once."""
    times = Times()
    source = _ScriptSource(_Script(slices, PERIOD, times))
    cerebro = LiveCerebro(source=source, wakeup=Wakeup())
    for symbol in symbols:
        cerebro.adddata(LiveFeed(symbol=symbol))
    cerebro.addstrategy(Averages, times=times)
    cerebro.run()
    return _figures(times)


def run_stock(symbols: Sequence[str], slices: Sequence[Slice]) -> Figures:
    """Measure stock Backtrader's loop once."""
    times = Times()
    cerebro = _ScriptedStock(stdstats=False, quicknotify=True)
    cerebro.script = _Script(slices, PERIOD, times)
    feeds = make_queue_feeds(symbols, qcheck=0.0)
    cerebro.feeds_by_symbol = dict(zip(symbols, feeds, strict=True))
    for feed in feeds:
        cerebro.adddata(feed)
    cerebro.addstrategy(Averages, times=times)
    cerebro.run()
    return _figures(times)


def measure(*, tiny: bool) -> list[Row]:
    """Return p50 and p99 to the begin of `next`, and p50 of the whole turn, of one bar and of a full slice."""
    rows: list[Row] = []
    for count in (1, 3) if tiny else (1, 100, 500, 2000):
        symbols = name_symbols(count)
        for full in (False,) if count == 1 else (False, True):
            measured = 5 if tiny else {1: 2000, 100: 300, 500: 100, 2000: 40}[count]
            slices = _plan(symbols, full=full, measured=measured)
            ours, stock = [], []
            for _ in range(1 if tiny else {2000: 3, 500: 9}.get(count, 5)):
                gc.collect()  # what the run before left is not cleared away in the time of the next one
                stock.append(run_stock(symbols, slices))
                gc.collect()
                ours.append(run_ours(symbols, slices))
            case = f"{count} symbols, " + ("a bar of each" if full else "one bar, the others silent")
            case = "1 symbol" if count == 1 else case
            for name, label in (
                ("begin_p50", "`next` begins, p50"),
                ("begin_p99", "`next` begins, p99"),
                ("end_p50", "turn over, p50"),
            ):
                our_times = [getattr(each, name) for each in ours]
                stock_times = [getattr(each, name) for each in stock]
                rows.append(
                    Row(
                        what=f"bar in → {label}: {case}",
                        ours=median(our_times),
                        other=median(stock_times),
                        gains=tuple(theirs / our for theirs, our in zip(stock_times, our_times, strict=True)),
                        other_name="stock loop",
                        unit="ms",
                        bar=BARS.get((count, full), "") if name == "begin_p50" else "",
                    )
                )
    return rows
