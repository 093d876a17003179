"""What a live run keeps of each bar: with the look-back as it is, and with whole lines as Backtrader has them."""

from __future__ import annotations

import gc
import tracemalloc
from collections import deque
from collections.abc import Iterator, Mapping

import backtrader as bt

from benchmarks.market import make_bar, name_symbols, slice_of
from benchmarks.table import Row
from dry_work.engine.kept_line import WHOLE
from dry_work.engine.live import LiveCerebro
from dry_work.engine.lookback import BLOCK_VALUES, LookBack
from dry_work.feeds.base import LiveFeed
from dry_work.market.messages import Slice
from dry_work.ports import SourceEvent
from dry_work.wakeup import Wakeup

_SYMBOLS = 20


class Means(bt.Strategy):
    """Two averages on each symbol, and whether they cross."""

    def __init__(self) -> None:
        for data in self.datas:
            bt.ind.CrossOver(bt.ind.SMA(data, period=10), bt.ind.EMA(data, period=30))


class _MeasuringSource:
    """Makes its slices when they are asked for, and notes the memory at some of them."""

    def __init__(self, symbols: list[str], slices: int, at: tuple[int, int]) -> None:
        self._left = self._make(symbols, slices)
        self._at = deque(at)
        self.bytes: list[int] = []

    @staticmethod
    def _make(symbols: list[str], slices: int) -> Iterator[Slice]:
        for minute in range(slices):
            yield slice_of(make_bar(symbol, minute) for symbol in symbols)
        yield Slice(end_ns=0, bars=(), last=True)

    def start(self, wakeup: Wakeup) -> None:
        """Nothing is to be started."""

    def stop(self, timeout_s: float = 5.0) -> None:
        """Nothing is to be stopped."""

    def take(self) -> SourceEvent | None:
        piece = next(self._left, None)
        if self._at and piece is not None and len(self.bytes) < 2:
            self._at[0] -= 1
            if self._at[0] <= 0:
                self._at.popleft()
                gc.collect()
                self.bytes.append(tracemalloc.get_traced_memory()[0])
        return piece

    def wait_s(self) -> float | None:
        return None

    def counters(self) -> Mapping[str, int]:
        return {}


def bytes_a_bar(look_back: LookBack, *, slices: int) -> float:
    """Return the bytes by which a run grows with a bar, once it has run for a third of its slices."""
    symbols = name_symbols(_SYMBOLS)
    # Lines let go of a block at a time: over whole blocks what they hold is as before.
    measured = slices * 2 // 3
    measured -= measured % BLOCK_VALUES if measured > BLOCK_VALUES else 0
    begin = slices - measured - 1
    source = _MeasuringSource(symbols, slices, (begin, measured))
    tracemalloc.start()
    try:
        cerebro = LiveCerebro(source=source, wakeup=Wakeup(), look_back=look_back)
        for symbol in symbols:
            cerebro.adddata(LiveFeed(symbol=symbol))
        cerebro.addstrategy(Means)
        cerebro.run()
    finally:
        tracemalloc.stop()
        look_back.close()
    before, after = source.bytes
    return (after - before) / (measured * _SYMBOLS)


def measure(*, tiny: bool) -> list[Row]:
    """Return the bytes that stay in memory of a bar with two averages and a crossing."""
    slices = 3000 if not tiny else 60
    keep = None if not tiny else 4
    return [
        Row(
            what="memory that stays of a bar, two averages on it",
            ours=max(0.01, bytes_a_bar(LookBack(keep), slices=slices)),
            other=bytes_a_bar(LookBack(WHOLE), slices=slices),
            other_name="whole lines",
            unit="B",
        )
    ]
