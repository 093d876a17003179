"""Which lines of a strategy's indicators are drawn with which symbol. Engine thread only; changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from backtrader.feed import AbstractDataBase

from dry_work.broker.tickets import symbol_of
from dry_work.dashboard.snapshot import LineFacts

LINES_KEPT = 8  # of each symbol
_DEEPEST = 50  # indicators of indicators


class DrawnLine:
    """One line of an indicator."""

    def __init__(self, facts: LineFacts, line: Any) -> None:
        self.facts = facts
        self._line = line

    def value(self) -> float:
        """Return its newest value, NaN before the first."""
        line = self._line
        return float(line[0]) if len(line) else math.nan

    def last(self, count: int) -> list[float]:
        """Return its newest values, at most `count`."""
        size = min(count, len(self._line))
        return [float(value) for value in self._line.get(size=size)] if size else []


def list_lines(strategies: Iterable[Any]) -> Mapping[str, list[DrawnLine]]:
    """Return the lines to be drawn by symbol: those that Backtrader would plot."""
    found: dict[str, list[DrawnLine]] = {}
    for strategy in strategies:
        for indicator in strategy.getindicators_lines():
            plot = indicator.plotinfo
            if not plot.plot or plot.plotskip:
                continue
            data = _find_data(indicator)
            if data is None:
                continue
            lines = found.setdefault(symbol_of(data), [])
            below = bool(plot.subplot and not plot.plotmaster)
            for number, name in enumerate(indicator.lines.getlinealiases()):
                if len(lines) < LINES_KEPT:
                    label = _describe(indicator, name)
                    lines.append(DrawnLine(LineFacts(label=label, below=below), indicator.lines[number]))
    return found


def _find_data(indicator: Any) -> Any:
    """Return the data whose bars an indicator follows, None where there is none."""
    node = indicator
    for _ in range(_DEEPEST):
        clock = getattr(node, "_clock", None)
        # An indicator of a line, such as `data.close`, has a stub as its clock, which the data owns.
        for found in (clock, getattr(clock, "_owner", None)):
            if isinstance(found, AbstractDataBase):
                return found
        if clock is None or clock is node:
            return None
        node = clock
    return None


def _describe(indicator: Any, line: str) -> str:
    try:
        label = str(indicator.plotlabel())
    except Exception:
        label = type(indicator).__name__  # what only a plot would notice
    if len(indicator.lines.getlinealiases()) == 1:
        return label[:60]
    return f"{label} {line}"[:60]
