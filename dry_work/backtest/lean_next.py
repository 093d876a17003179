"""Indicators written with `next` in vector mode: the same calls, with all that moves along on one shared index."""

from __future__ import annotations

from typing import Any

from backtrader.feed import AbstractDataBase
from backtrader.indicator import Indicator
from backtrader.linebuffer import LineActions, LineBuffer
from backtrader.lineiterator import LineIterator
from backtrader.lineseries import LineSeriesStub

from dry_work.backtest.lean_lines import Cursor, Shortcuts, Ticks, can_share, share, unshare


def compute_via_next(indicator: Indicator, first: int, end: int) -> bool:
    """Do what `once_via_next` and its companions do from the first bar to the last; False, with nothing done, when it
    cannot be said that all datas and inner indicators move with the indicator."""
    kind = type(indicator)
    if (
        kind.preonce is not Indicator.preonce_via_prenext
        or kind.oncestart is not Indicator.oncestart_via_nextstart
        or first < 1
        or first > end
    ):
        return False
    moved = _find_moved(indicator)
    if moved is None:
        return False
    lines, actions, feeds = moved
    cursor = Cursor()
    shortcuts = Shortcuts()
    ticks = [Ticks(feed) for feed in feeds]
    for line in lines:
        share(line, cursor)
    for owner in (*feeds, indicator):
        shortcuts.add(owner)
    try:
        for index in range(end):
            cursor.advance()
            for action in actions:
                action._idx += 1
                action.lencount += 1
            if index >= first:
                indicator.next()
            elif index == first - 1:
                indicator.nextstart()
            else:
                indicator.prenext()
    finally:
        shortcuts.remove()
        for tick in ticks:
            tick.restore()
        for line in lines:
            unshare(line)
    return True


def _find_moved(indicator: Indicator) -> tuple[list[LineBuffer], list[LineActions], list[AbstractDataBase]] | None:
    """Return all lines, line operations and feeds that a step moves by one; None when it may be otherwise."""
    lines: list[LineBuffer] = []
    actions: list[LineActions] = []
    feeds: list[AbstractDataBase] = []
    known: set[int] = set()
    inner = indicator._lineiterators[LineIterator.IndType]
    for place, item in enumerate((*indicator.datas, *inner, indicator)):
        kind = type(item)
        own: list[Any]
        if isinstance(item, LineActions):
            if kind.advance is not LineBuffer.advance or item._idx != -1 or item.lencount or item.mode:
                return None
            actions.append(item)
            own = [item]
        elif isinstance(item, AbstractDataBase):
            if kind.advance is not AbstractDataBase.advance or _changes_ticks(kind):
                return None
            feeds.append(item)
            own = list(item.lines.lines)
        elif isinstance(item, LineSeriesStub) and place < len(indicator.datas):
            if kind.advance is not LineSeriesStub.advance or item.slave:
                return None
            own = list(item.lines.lines)
        elif isinstance(item, Indicator):
            # Such a one only moves while it is behind its clock.
            if kind.advance is not Indicator.advance or id(_first_line(item._clock)) not in known:
                return None
            own = list(item.lines.lines)
        else:
            return None
        for line in own:
            if id(line) in known or not (isinstance(line, LineActions) or can_share(line)):
                return None
            known.add(id(line))
            if not isinstance(line, LineActions):
                lines.append(line)
            elif line is not item:
                if line._idx != -1 or line.lencount or line.mode:
                    return None
                actions.append(line)
    return lines, actions, feeds


def _first_line(clock: Any) -> Any:
    return clock if isinstance(clock, LineBuffer) else clock.lines[0]


def _changes_ticks(kind: type[AbstractDataBase]) -> bool:
    return (
        kind._tick_nullify is not AbstractDataBase._tick_nullify or kind._tick_fill is not AbstractDataBase._tick_fill
    )
