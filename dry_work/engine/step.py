"""One turn of a strategy at a cost that grows with the datas that moved. Engine thread only.

`StrategyStep.run` does what `Strategy._next` does, call by call, and leaves out only what cannot change anything: the
lengths and times of datas that were not touched are remembered instead of read again, and indicators that depend on
such datas alone are not calculated again where that is proven to change nothing (see `idempotence`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import backtrader as bt
from backtrader.lineiterator import LineIterator

from dry_work.engine.idempotence import find_sources
from dry_work.engine.quick_indicators import Turn, quicken
from dry_work.feeds.resamplers import settles_by_length

_REPLACED = ("_next", "_clk_update", "_getminperstatus")


class StrategyStep:
    """Runs the turns of one strategy.

    Args:
        strat: a started strategy. One that overrides what is replaced here, or runs with `exactbars`, is run by
            Backtrader's own `_next`.
    """

    def __init__(self, strat: Any) -> None:
        self._strat = strat
        self._datas: list[Any] = list(strat.datas)
        self._index = {id(data): index for index, data in enumerate(self._datas)}
        self._sparse = (
            all(getattr(type(strat), name) is getattr(bt.Strategy, name) for name in _REPLACED)
            and not any(name in strat.__dict__ for name in _REPLACED)
            and not strat._oldsync
            and not strat.cerebro._exactbars
            and len(self._index) == len(self._datas)
        )
        # An indicator moves by one position in a turn. When its clock moved by more, it catches up in the turns that
        # follow, whether anything arrives or not.
        self._lagging = any(strat._dlens)
        self._lengths: list[int] = strat._dlens  # read by nobody else while the strategy runs
        self._times = [data.lines.datetime[0] if len(data) else -math.inf for data in self._datas]
        self._settled = [settles_by_length(data) for data in self._datas]
        self._firsts = [data.lines.lines[0] for data in self._datas]  # a data is as long as its first line
        self._clocks = [data.lines.datetime for data in self._datas]
        # As planned, None before the first turn: the attributes of each and its turn.
        self._indicators: list[tuple[dict[str, Any], Turn]] | None = None
        self._made_in_time = 0
        self._always: set[int] = set()
        self._by_data: list[set[int]] = []

    def run(self, stirred: Iterable[Any]) -> None:
        """Do what `Strategy._next` does.

        Args:
            stirred: the datas that may have changed since the last turn.
        """
        strat = self._strat
        if not self._sparse:
            strat._next()
            return
        self._calculate(stirred)
        strat._notify()
        status = self._minperiod_status()
        if status < 0:
            strat.next()
        elif status == 0:
            strat.nextstart()
        else:
            strat.prenext()
        status = self._minperiod_status()  # again, as Backtrader does: the strategy may have changed its periods
        strat._next_analyzers(status)
        strat._next_observers(status)
        strat.clear()

    def warm(self, stirred: Iterable[Any]) -> bool:
        """Move clock and indicators only; tell whether the strategy's minimum period is reached with this very turn."""
        strat = self._strat
        if self._sparse:
            self._calculate(stirred)
            reached = self._minperiod_status() == 0
        else:
            strat._clk_update()
            for indicator in strat._lineiterators[LineIterator.IndType]:
                indicator._next()
            reached = strat._getminperstatus() == 0
        strat.clear()
        return reached

    def _calculate(self, stirred: Iterable[Any]) -> None:
        strat, lengths = self._strat, self._lengths
        changed: list[int] = []
        grown = False
        for data in stirred:
            index = self._index[id(data)]
            length = len(self._firsts[index])
            if length != lengths[index] or not self._settled[index]:
                changed.append(index)
                grown = grown or length > lengths[index]
                self._lagging = self._lagging or length not in (lengths[index], lengths[index] + 1)
                lengths[index] = length
                self._times[index] = self._clocks[index][0] if length else -math.inf
        if grown:
            strat.forward()
        strat.lines.datetime[0] = max(self._times)
        for own, turn in self._choose_indicators(changed):
            if "_next" in own:  # somebody looks on
                own["_next"]()
            else:
                turn()

    def _choose_indicators(self, changed: list[int]) -> list[tuple[dict[str, Any], Turn]]:
        """Return own attributes of the indicators that have something to calculate, in Backtrader's order, and how."""
        current: list[Any] = self._strat._lineiterators[LineIterator.IndType]
        planned = self._indicators
        if planned is None or len(current) != len(planned):  # the first turn, or the strategy made one while it ran
            return self._plan(current)
        if self._lagging or len(changed) == len(self._datas):
            return planned
        chosen = self._always.union(*(self._by_data[index] for index in changed))
        return [planned[number] for number in sorted(chosen)]

    def _plan(self, indicators: list[Any]) -> list[tuple[dict[str, Any], Turn]]:
        if self._indicators is None:
            self._made_in_time = len(indicators)
        self._indicators = [(vars(indicator), quicken(indicator) or indicator._next) for indicator in indicators]
        self._always = set()
        self._by_data = [set() for _ in self._datas]
        for number, sources in enumerate(find_sources(indicators)):
            # One that was made while the strategy ran is shorter than its clock, and catches up for ever.
            if number >= self._made_in_time or sources is None or not sources <= self._index.keys():
                self._always.add(number)
                continue
            for source in sources:
                self._by_data[self._index[source]].add(number)
        return self._indicators

    def _minperiod_status(self) -> int:
        strat = self._strat
        status: int = max(map(operator.sub, strat._minperiods, self._lengths))
        strat._minperstatus = status
        return status
