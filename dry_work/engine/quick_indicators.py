"""Indicators run call by call as Backtrader runs them, without its detours. Engine thread only.

`quicken` makes of an indicator a function that does what its `_next` does: move it when its clock has moved, run the
inner ones, call `prenext`, `nextstart` or `next`. It asks lines where Backtrader asks objects that ask lines. For some
of Backtrader's own `next` the same arithmetic is done on the arrays, in the same order, so that every value is the same
float. What is not exactly Backtrader's own is left to Backtrader.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import backtrader as bt
from backtrader.indicators import basicops
from backtrader.linebuffer import LineActions, LineBuffer, LinesOperation, _LineDelay
from backtrader.lineiterator import LineIterator
from backtrader.lineseries import LineSeries, LineSeriesStub

from dry_work.engine.kept_line import KeptLine, plain_class

Turn = Callable[[], None]

_NAN = math.nan
_MOVED = ("_next", "_clk_update", "_notify", "forward", "__len__")  # what is replaced here


def quicken(node: Any) -> Turn | None:
    """Return a function that does what `node._next()` does, None when only that does.

    Args:
        node: an indicator of a started strategy; it and what is inside it are not changed any more.
    """
    lines = _lines_of(node)
    clock = _first_line(node._clock)
    if lines is None or clock is None or not _is_plain(node):
        return None
    inner: list[Turn] = []
    if not isinstance(node, LineActions):
        for each in node._lineiterators[LineIterator.IndType]:
            inner.append(quicken(each) or each._next)
    return _build(node, lines, clock, inner)


def _build(node: Any, lines: list[Any], clock: Any, inner: list[Turn]) -> Turn:
    first = lines[0]
    calculate = _shortcut(node) or node.next
    is_operation = isinstance(node, LineActions)
    is_silent = plain_class(node).next is LineIterator.next and "next" not in node.__dict__

    def turn() -> None:
        length = clock.lencount
        if length > first.lencount or (length != first.lencount and not is_operation):
            for line in lines:
                line._kept.append(_NAN)
                line.lencount += 1
                line._idx += 1
                if line._idx >= line._limit:
                    line._let_go()
        for run in inner:
            run()
        period = node._minperiod
        if length > period:
            if not is_silent:
                calculate()
        elif length == period:
            node.nextstart()
        elif length or is_operation:
            node.prenext()

    return turn


def _is_plain(node: Any) -> bool:
    base = LineActions if isinstance(node, LineActions) else bt.Indicator
    kind = plain_class(node)
    return not any(
        name in node.__dict__ or getattr(kind, name, None) is not getattr(base, name, None) for name in _MOVED
    )


def _lines_of(node: Any) -> list[Any] | None:
    found = [node] if isinstance(node, LineActions) else list(node.lines.lines)
    return found if found and all(isinstance(line, KeptLine) for line in found) else None


def _first_line(clock: Any) -> Any:
    """Return the line whose length is the clock's."""
    if isinstance(clock, LineSeries) and type(clock).__len__ is LineSeries.__len__ and clock.lines.lines:
        clock = clock.lines.lines[0]
    return clock if isinstance(clock, LineBuffer) and type(clock).__len__ is LineBuffer.__len__ else None


# The arithmetic of some of Backtrader's own


def _shortcut(node: Any) -> Turn | None:
    maker = _SHORTCUTS.get(plain_class(node).next)
    return None if maker is None or "next" in node.__dict__ else maker(node)


def _kept(thing: Any) -> Any:
    """Return the line that is read when `thing` is; None when it is not certain."""
    if isinstance(thing, LineSeriesStub | bt.Indicator | bt.DataBase):
        kind = type(thing)
        if kind.__getitem__ is not LineSeries.__getitem__ or hasattr(kind, "get"):
            return None
        thing = thing.lines.lines[0]
    return thing if isinstance(thing, KeptLine) and type(thing).__getitem__ is KeptLine.__getitem__ else None


def _writer(line: Any) -> Callable[[float], None]:
    """Return what `line[0] = value` does."""
    bound = list(line.bindings)
    if len(bound) == 1 and type(bound[0]) is KeptLine and not bound[0].bindings:
        [other] = bound

        def write(value: float) -> None:
            line._kept[line._idx] = value
            other._kept[other._idx] = value

    elif not bound:

        def write(value: float) -> None:
            line._kept[line._idx] = value

    else:

        def write(value: float) -> None:
            line[0] = value

    return write


def _average(node: Any) -> Turn | None:
    source, period = _kept(node.data), node.p.period
    if source is None or not isinstance(period, int) or period < 1:
        return None
    fsum, write = math.fsum, _writer(node.lines.lines[0])

    def calculate() -> None:
        stop = source._idx + 1
        values = source._kept[stop - period : stop] if stop >= period else source.get(size=period)
        write(fsum(values) / period)

    return calculate


def _smoothing(node: Any) -> Turn | None:
    source, line = _kept(node.data), _kept(node.lines.lines[0])
    alpha, rest = node.alpha, node.alpha1
    if source is None or line is None or not isinstance(alpha, float) or not isinstance(rest, float):
        return None
    write = _writer(line)

    def calculate() -> None:
        write(line[-1] * rest + source._kept[source._idx] * alpha)

    return calculate


def _operation(node: Any) -> Turn | None:
    first, operate = _kept(node.a), node.operation
    if node.bline:
        second = _kept(node.b)
        if first is None or second is None:
            return None
        write = _writer(node)

        def calculate_lines() -> None:
            write(operate(first._kept[first._idx], second._kept[second._idx]))

        return calculate_lines
    if node.r or node.btime or first is None:
        return None
    constant, write = node.b, _writer(node)

    def calculate() -> None:
        write(operate(first._kept[first._idx], constant))

    return calculate


def _delay(node: Any) -> Turn | None:
    source, ago = _kept(node.a), node.ago
    if source is None:
        return None
    write = _writer(node)

    def calculate() -> None:
        write(source[ago])

    return calculate


def _apply(node: Any) -> Turn | None:
    source, period, function = _kept(node.data), node.p.period, node.func
    if source is None or not isinstance(period, int) or period < 1:
        return None
    write = _writer(node.lines.lines[0])

    def calculate() -> None:
        stop = source._idx + 1
        write(function(source._kept[stop - period : stop] if stop >= period else source.get(size=period)))

    return calculate


_SHORTCUTS: dict[Any, Callable[[Any], Turn | None]] = {
    basicops.Average.next: _average,
    basicops.ExponentialSmoothing.next: _smoothing,
    basicops.OperationN.next: _apply,
    LinesOperation.next: _operation,
    _LineDelay.next: _delay,
}
