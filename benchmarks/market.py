"""Bars to measure with, and the simple live feed of stock Backtrader that is measured beside ours."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Sequence
from typing import Any

import backtrader as bt

from dry_work.clock import MINUTE_NS
from dry_work.feeds.base import line_time
from dry_work.market.messages import Bar, Slice

START_NS = 1_704_205_800_000_000_000  # 2024-01-02T14:30Z


def name_symbols(count: int) -> list[str]:
    """Return `count` symbols."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return [letters[n // 676] + letters[n // 26 % 26] + letters[n % 26] for n in range(count)]


def make_bar(symbol: str, minute: int) -> Bar:
    """Return a bar with made-up prices that go up and down."""
    price = 100.0 + (minute * 7 + len(symbol)) % 13
    return Bar(
        symbol=symbol,
        ts_event_ns=START_NS + minute * MINUTE_NS,
        open=price,
        high=price + 1.0,
        low=price - 1.0,
        close=price + 0.5,
        volume=1000.0,
    )


def slice_of(bars: Iterable[Bar]) -> Slice:
    """Return a slice of bars that end at the same time."""
    found = tuple(bars)
    return Slice(end_ns=found[0].end_ns, bars=found)


class QueueFeed(bt.DataBase):
    """A live feed as most are written for stock Backtrader: a queue of its own, which the loop asks in every turn."""

    params = (("qcheck", 0.0), ("timeframe", bt.TimeFrame.Minutes))

    def __init__(self) -> None:
        super().__init__()
        self.bars: queue.SimpleQueue[Bar | None] = queue.SimpleQueue()

    def islive(self) -> bool:
        return True

    def haslivedata(self) -> bool:
        return not self.bars.empty()

    def start(self) -> None:
        super().start()
        self.put_notification(self.LIVE)

    def _load(self) -> bool | None:
        try:
            bar = self.bars.get(timeout=self._qcheck) if self._qcheck else self.bars.get_nowait()
        except queue.Empty:
            return None
        if bar is None:
            return False
        lines = self.lines
        lines.datetime[0] = line_time(bar.end_ns)
        lines.open[0] = bar.open
        lines.high[0] = bar.high
        lines.low[0] = bar.low
        lines.close[0] = bar.close
        lines.volume[0] = bar.volume
        lines.openinterest[0] = 0.0
        return True


def make_queue_feeds(symbols: Sequence[str], *, qcheck: float) -> list[Any]:
    """Return a `QueueFeed` for each symbol."""
    return [QueueFeed(name=symbol, qcheck=qcheck) for symbol in symbols]
