"""Runs of which every bar and every turn is kept, to be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import backtrader as bt
import numpy as np

from dry_work.feeds.recorded import Recording
from dry_work.market.messages import Bar

Row = tuple[float, ...]  # what a bar's `datetime` line holds, open, high, low, close, volume
Rows = dict[str, list[Row]]
Turns = list[tuple[float, tuple[int, ...]]]  # the time, and how many bars each data has by then
Add = Callable[[Any, list[Any]], None]


class Keeper(bt.Strategy):
    """Keeps the last values of each bar of all datas, and what it saw in each turn."""

    params = (("rows", None), ("turns", None))

    def prenext(self) -> None:
        self.next()

    def next(self) -> None:
        for data in self.datas:
            if len(data):
                lines = data.lines
                row = (lines.datetime[0], lines.open[0], lines.high[0], lines.low[0], lines.close[0], lines.volume[0])
                self.p.rows.setdefault(data._name, {})[len(data)] = row
        self.p.turns.append((self.datetime[0], tuple(len(data) for data in self.datas)))


def keep_run(cerebro: Any, feeds: list[Any], add: Add) -> tuple[Rows, Turns]:
    """Let `add` add the feeds, run, and return all that a strategy saw."""
    rows: dict[str, dict[int, Row]] = {}
    turns: Turns = []
    add(cerebro, feeds)
    cerebro.addstrategy(Keeper, rows=rows, turns=turns)
    cerebro.run()
    for name, found in rows.items():
        assert list(found) == list(range(1, len(found) + 1)), f"{name}: a bar that nobody saw"
    return {name: list(found.values()) for name, found in rows.items()}, turns


def record(bars: Mapping[str, Sequence[Bar]]) -> Recording:
    """Return the bars of each symbol as a recording."""
    columns: dict[str, Any] = {}
    for symbol, held in bars.items():
        columns[symbol] = {"ts_event_ns": np.array([bar.ts_event_ns for bar in held], dtype=np.int64)}
        for name in ("open", "high", "low", "close", "volume"):
            columns[symbol][name] = np.array([float(getattr(bar, name)) for bar in held])
    return Recording(columns)
