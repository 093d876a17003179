"""Backtrader's vector mode (`once`) with its own loops over bars done by numpy, to the last digit.

`compute_once` does what `Strategy._once` does. Every line operation and every indicator whose `once` is Backtrader's
own is computed by its equal in `lean_vectors`; where that says no, the object's own `once` runs. What users have
written runs as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from backtrader import linebuffer as lines
from backtrader.indicator import Indicator
from backtrader.lineiterator import LineIterator
from backtrader.lineroot import LineRoot
from backtrader.lineseries import LineSeries

from dry_work.backtest.lean_next import compute_via_next
from dry_work.backtest.lean_vectors import KNOWN
from dry_work.feeds.columnar import column_array


def compute_once(iterator: LineIterator) -> None:
    """Compute all indicators below a strategy or an indicator, then itself, as its `_once` does."""
    kind = type(iterator)
    if "_once" in iterator.__dict__ or kind._once is not LineIterator._once or not _moves_plainly(iterator):
        iterator._once()
        return
    _forward(iterator, iterator._clock.buflen())
    indicators = iterator._lineiterators[LineIterator.IndType]
    observers = iterator._lineiterators[LineIterator.ObsType]
    for indicator in indicators:
        if isinstance(indicator, LineIterator):
            compute_once(indicator)
        else:
            _compute_action(indicator)
    for observer in observers:
        _forward(observer, iterator.buflen())
    for moved in (*iterator.datas, *indicators, *observers, iterator):
        moved.home()
    _run_once(iterator)
    for line in iterator.lines:
        line.oncebinding()


def _compute_action(action: Any) -> None:
    """Compute a line operation as `LineActions._once` does."""
    kind = type(action)
    own = "_once" in action.__dict__ or kind._once is not lines.LineActions._once
    if own or kind.forward is not lines.LineBuffer.forward or action.mode != action.UnBounded:
        action._once()
        return
    _forward_line(action, action._clock.buflen())
    action.home()
    _run_once(action)
    action.oncebinding()


def _moves_plainly(iterator: Any) -> bool:
    kind = type(iterator)
    return kind.forward is LineSeries.forward and kind.home is LineSeries.home


def _forward(iterator: Any, size: int) -> None:
    if not _moves_plainly(iterator):
        iterator.forward(size=size)
        return
    for line in iterator.lines:
        if type(line).forward is lines.LineBuffer.forward and line.mode == line.UnBounded:
            _forward_line(line, size)
        else:
            line.forward(size=size)


def _forward_line(line: Any, size: int) -> None:
    if len(line.array):
        line.array.extend(column_array(size))
    else:
        line.array = column_array(size)
    line.idx += size
    line.lencount += size


def _run_once(computed: Any) -> None:
    """Call the three parts of vector mode; a known `once` by its equal."""
    first = computed._minperiod
    end = computed.buflen()
    kind = type(computed)
    own = any(name in computed.__dict__ for name in ("preonce", "oncestart", "once"))
    if not own and first <= end:
        if kind.once is Indicator.once_via_next and compute_via_next(computed, first, end):
            return
        known = KNOWN.get(kind.once)
        if known is not None and kind.preonce in _NO_PREONCE:
            start = first - 1
            if kind.oncestart not in _ONCE_FROM_START:
                computed.oncestart(first - 1, first)
                start = first
            with np.errstate(all="ignore"):
                if start >= end or known(computed, start, end):
                    return
            computed.once(start, end)
            return
    computed.preonce(0, first - 1)
    computed.oncestart(first - 1, first)
    computed.once(first, end)


_NO_PREONCE = (LineIterator.preonce, LineRoot.preonce)
_ONCE_FROM_START = (LineIterator.oncestart, LineRoot.oncestart)
