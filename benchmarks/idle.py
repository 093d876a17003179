"""CPU of an engine that waits, with many feeds and no bar: ours beside stock Backtrader's loop.

The stock loop gets the usual waiting feeds (`qcheck=0.5`), which say honestly whether they have a bar: with feeds whose
`haslivedata` is always true it does not wait once their statuses differ, and takes a whole core.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import backtrader as bt

from benchmarks.market import make_bar, make_queue_feeds, name_symbols, slice_of
from benchmarks.table import Row
from dry_work.engine.live import LiveCerebro
from dry_work.feeds.base import LiveFeed
from dry_work.market.messages import Slice
from dry_work.wakeup import Wakeup

START_LIMIT_S = 60.0


class _OneSlice:
    """A source that has one slice, and then nothing."""

    def __init__(self, piece: Slice) -> None:
        self._left: list[Slice] = [piece]

    def start(self, wakeup: Wakeup) -> None:
        """Nothing is to be started."""

    def stop(self, timeout_s: float = 5.0) -> None:
        """Nothing is to be stopped."""

    def take(self) -> Slice | None:
        return self._left.pop() if self._left else None

    def wait_s(self) -> float | None:
        return None

    def counters(self) -> dict[str, int]:
        return {}


class _Idler(bt.Strategy):
    """An SMA on each symbol; says when the first bar came."""

    params = (("started", None),)

    def __init__(self) -> None:
        for data in self.datas:
            bt.ind.SMA(data, period=1)

    def next(self) -> None:
        self.p.started.set()


def _measure_cpu(cerebro: Any, seconds: float, begin: Callable[[], None], end: Callable[[], None]) -> float:
    """Return the CPU of this process in per cent of a core, while only `cerebro` runs in it."""
    started = threading.Event()
    cerebro.addstrategy(_Idler, started=started)
    thread = threading.Thread(target=cerebro.run, name="idle engine")
    thread.start()
    try:
        begin()
        if not started.wait(START_LIMIT_S):
            raise RuntimeError(f"the engine did not start within {START_LIMIT_S:g} s")
        time.sleep(min(1.0, seconds))  # past what the first bar caused
        cpu, wall = time.process_time(), time.monotonic()
        time.sleep(seconds)
        return 100 * (time.process_time() - cpu) / (time.monotonic() - wall)
    finally:
        cerebro.runstop()
        end()
        thread.join(START_LIMIT_S)


def measure(*, tiny: bool) -> list[Row]:
    """Return the CPU of both engines in per cent of a core."""
    count, seconds = (3, 0.3) if tiny else (100, 10.0)
    symbols = name_symbols(count)
    bars = [make_bar(symbol, 0) for symbol in symbols]

    ours = LiveCerebro(source=_OneSlice(slice_of(bars)), wakeup=Wakeup())
    for symbol in symbols:
        ours.adddata(LiveFeed(symbol=symbol))
    our_cpu = _measure_cpu(ours, seconds, lambda: None, lambda: None)

    stock = bt.Cerebro(stdstats=False)
    feeds = make_queue_feeds(symbols, qcheck=0.5)
    for feed in feeds:
        stock.adddata(feed)

    def feed_all(bars: list[Any]) -> None:
        for feed, bar in zip(feeds, bars, strict=True):
            feed.bars.put(bar)

    stock_cpu = _measure_cpu(stock, seconds, lambda: feed_all(bars), lambda: feed_all([None] * count))
    return [
        Row(
            what=f"idle CPU, {count} feeds",
            ours=our_cpu,
            other=stock_cpu,
            other_name="stock loop",
            unit="% of a core",
            bar="1 %",
        )
    ]
