"""Indicators run call by call as Backtrader runs them, without its detours. Engine thread only.

`quicken` makes of an indicator a function that does what its `_next` does: move it when its clock has moved, run the
inner ones, call `prenext`, `nextstart` or `next`. It asks lines where Backtrader asks objects that ask lines.

In the usual turn the clock has one more bar and all minimum periods are over. What is to do then is always the same, so
it is a list made once: move this line, calculate that, in Backtrader's order. For some of Backtrader's own `next` the
same arithmetic is done on the arrays, in the same order, so that every value is the same float. What is not exactly
Backtrader's own is left to Backtrader, and so is every other turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import backtrader as bt
from backtrader.indicators import basicops
from backtrader.linebuffer import LineActions, LineBuffer, LinesOperation, _LineDelay
from backtrader.lineiterator import LineIterator
from backtrader.lineseries import LineSeries, LineSeriesStub

from dry_work.engine.kept_line import KeptLine, make_room, plain_class

Turn = Callable[[], None]

_NAN = math.nan
_MOVED = ("_next", "_clk_update", "_notify", "forward", "__len__")  # what is replaced here


def quicken(node: Any) -> Turn | None:
    """Return a function that does what `node._next()` does, None when only that does.

    Args:
        node: an indicator of a started strategy; it and what is inside it are not changed any more.
    """
    found = _read(node, ())
    return None if found is None else _build(found)


class _Tree:
    """An indicator and those inside it, read once."""

    def __init__(self, node: Any, lines: list[Any], clock: Any) -> None:
        self.clock = clock  # the line whose length is that of the indicator's clock
        self.first = lines[0]
        self.lines = lines  # of the whole tree
        self.period: int = node._minperiod  # the longest of the whole tree
        self.steps: list[Turn] = []  # of the usual turn
        self.again: list[Turn] = []  # of a turn in which nothing moves: the values are calculated again
        self.follows = True  # the clocks of all inner ones move when this one's does
        self.read: list[Any] = []  # lines that the steps read without asking where their newest value is
        self.turn: Turn = node._next  # of any turn


def _read(node: Any, moved: tuple[Any, ...]) -> _Tree | None:
    """Read a tree of indicators.

    Args:
        moved: lines that have moved when it is the turn of `node`, and with it: those of indicators that `node` is
            inside of, or that run before it there, and their clock.
    """
    lines = _lines_of(node)
    clock = _first_line(node._clock)
    if lines is None or clock is None or not _is_plain(node):
        return None
    tree = _Tree(node, lines, clock)
    inner: list[Turn] = []
    nodes = () if isinstance(node, LineActions) else node._lineiterators[LineIterator.IndType]
    is_silent = plain_class(node).next is LineIterator.next and "next" not in node.__dict__
    shortcut = None if nodes or len(lines) != 1 else _shortcut(node, lines[0], moved)
    if shortcut is not None:
        tree.steps.append(shortcut.step)
        tree.again.append(shortcut.again)
        tree.read.extend(shortcut.read)
    else:
        tree.steps.extend(partial(line._kept.append, _NAN) for line in lines)  # this is all there is to moving
    for each in nodes:
        found = _read(each, (*moved, clock, *tree.lines))
        if found is None:
            inner.append(each._next)
            tree.follows = False
            continue
        inner.append(_build(found))
        tree.follows = tree.follows and found.follows and _is_one_of(found.clock, (*moved, clock, *tree.lines))
        tree.steps.extend(found.steps)
        tree.again.extend(found.again)
        tree.lines = [*tree.lines, *found.lines]
        tree.period = max(tree.period, found.period)
        tree.read.extend(found.read)
    if shortcut is None and not is_silent:
        tree.steps.append(node.next)
        tree.again.append(node.next)
    tree.turn = _any_turn(node, lines, clock, inner, is_silent=is_silent)
    return tree


def _is_one_of(line: Any, lines: Iterable[Any]) -> bool:
    return any(line is each for each in lines)  # lines compare as values


def _any_turn(node: Any, lines: list[Any], clock: Any, inner: list[Turn], *, is_silent: bool) -> Turn:
    first = lines[0]
    is_operation = isinstance(node, LineActions)

    def turn() -> None:
        length, own = len(clock), len(first)
        if length > own or (length != own and not is_operation):
            for line in lines:
                line.forward()
        for run in inner:
            run()
        period = node._minperiod
        if length > period:
            if not is_silent:
                node.next()
        elif length == period:
            node.nextstart()
        elif length or is_operation:
            node.prenext()

    return turn


def _build(tree: _Tree) -> Turn:
    """Return the function that takes the short way in the usual turn, and the whole one in any other."""
    if not tree.follows or not isinstance(tree.clock, KeptLine):
        return tree.turn
    return _Runner(tree).run


class _Runner:
    """Takes the short way through a tree in the usual turn, and the whole one in any other."""

    # An object with slots, and no closure: see `QuickFeed`.
    __slots__ = (
        *("_again", "_any_turn", "_clock", "_first", "_lines", "_moments"),
        *("_others", "_own", "_period", "_room", "_steps", "_usual"),
    )

    def __init__(self, tree: _Tree) -> None:
        self._clock = tree.clock
        self._moments = tree.clock._kept
        self._first = tree.first
        self._own = tree.first._kept
        self._lines = tree.lines
        self._others = tuple(line for line in tree.read if not _is_one_of(line, (tree.clock, *tree.lines)))
        self._steps = tuple(tree.steps)
        self._again = tuple(tree.again)
        self._period = tree.period
        self._any_turn = tree.turn
        self._usual = -1  # the length of the clock at which the usual turn comes; -1: it does not come next
        self._room = 0  # values that fit into every line

    def run(self) -> None:
        clock, first, usual = self._clock, self._first, self._usual
        length = clock._base + len(self._moments)
        if (
            (length != usual and length != usual - 1)
            or first._base + len(self._own) != usual - 1  # somebody else has moved it
            or clock._ahead
            or (self._others and any(line._ahead for line in self._others))
        ):
            self._run_whole()
        elif length == usual:
            for step in self._steps:
                step()
            self._usual = length + 1
            self._room -= 1
            if self._room <= 0:
                self._room = make_room(self._lines)
        elif length > self._period:
            for step in self._again:
                step()
        else:
            self._any_turn()

    def _run_whole(self) -> None:
        self._any_turn()
        length = len(self._first)
        are_even = all(len(line) == length for line in self._lines)
        self._usual = length + 1 if length >= self._period and are_even else -1
        self._room = 0


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
    return clock if isinstance(clock, LineBuffer) and plain_class(clock).__len__ is LineBuffer.__len__ else None


# The arithmetic of some of Backtrader's own, each with the move of the one line


class _Shortcut(NamedTuple):
    """What moves the one line of an indicator and calculates its value."""

    step: Turn
    again: Turn  # the same without the move
    read: tuple[Any, ...]  # the lines whose newest values are read


Put = Callable[[float], None]


_Found = tuple[Turn, tuple[Any, ...]]  # what calculates a value, and the lines whose newest values it reads


class _Way(NamedTuple):
    """How a value gets into its line."""

    put: Put
    past: int  # where in the line the value before it is, at the time of putting, counted from the end


def _shortcut(node: Any, line: Any, moved: tuple[Any, ...]) -> _Shortcut | None:
    maker = _SHORTCUTS.get(plain_class(node).next)
    ways = _find_ways(line, moved)
    if maker is None or ways is None or "next" in node.__dict__:
        return None
    (step, read), (again, _) = [maker(node, way) or (None, ()) for way in ways]
    return None if step is None or again is None else _Shortcut(step, again, read)


def _source(thing: Any) -> Any:
    """Return the line that is read when `thing` is; None when it is not certain."""
    if isinstance(thing, LineSeriesStub | bt.Indicator | bt.DataBase):
        kind = type(thing)
        if kind.__getitem__ is not LineSeries.__getitem__ or hasattr(kind, "get"):
            return None
        thing = thing.lines.lines[0]
    return thing if isinstance(thing, KeptLine) and type(thing).__getitem__ is KeptLine.__getitem__ else None


def _find_ways(line: Any, moved: tuple[Any, ...]) -> tuple[_Way, _Way] | None:
    """Return what moves a line and sets its newest value, and what sets it only; None when it is not certain.

    Both set the value where the line is bound to as well.

    Args:
        moved: see `_read`; what the line is bound to must be one of them.
    """
    own = line._kept
    append: Put = own.append

    def rewrite(value: float) -> None:
        own[-1] = value

    if not line.bindings:
        return _Way(append, 1), _Way(rewrite, 2)
    bound = line.bindings[0]
    if len(line.bindings) > 1 or type(bound) is not KeptLine or bound.bindings or not _is_one_of(bound, moved):
        return None
    others = bound._kept

    def append_both(value: float) -> None:
        append(value)
        others[-1] = value

    def rewrite_both(value: float) -> None:
        own[-1] = others[-1] = value

    return _Way(append_both, 1), _Way(rewrite_both, 2)


def _average(node: Any, way: _Way) -> _Found | None:
    source, period = _source(node.data), node.p.period
    if source is None or not isinstance(period, int) or period < 1:
        return None
    values, fsum, put = source._kept, math.fsum, way.put

    def step() -> None:
        newest = values[-period:]
        if len(newest) < period:  # the line has let go of some
            newest = source.get(size=period)
        put(fsum(newest) / period)

    return step, (source,)


def _smoothing(node: Any, way: _Way) -> _Found | None:
    source, line = _source(node.data), _source(node.lines.lines[0])
    alpha, rest = node.alpha, node.alpha1
    if source is None or line is None or not isinstance(alpha, float) or not isinstance(rest, float):
        return None
    values, own, put, past = source._kept, line._kept, way.put, way.past

    def step() -> None:
        put(own[-past] * rest + values[-1] * alpha)

    return step, (source,)


def _operation(node: Any, way: _Way) -> _Found | None:
    first, operate = _source(node.a), node.operation
    if first is None:
        return None
    values, put = first._kept, way.put
    if node.bline:
        second = _source(node.b)
        if second is None:
            return None
        others = second._kept

        def step_of_lines() -> None:
            put(operate(values[-1], others[-1]))

        return step_of_lines, (first, second)
    if node.r or node.btime:
        return None
    constant = node.b

    def step() -> None:
        put(operate(values[-1], constant))

    return step, (first,)


def _delay(node: Any, way: _Way) -> _Found | None:
    source, ago = _source(node.a), node.ago
    if source is None or not isinstance(ago, int) or ago > 0:
        return None
    values, back, put = source._kept, 1 - ago, way.put

    def step() -> None:
        put(values[-back] if back <= len(values) else source[ago])

    return step, (source,)


def _apply(node: Any, way: _Way) -> _Found | None:
    source, period, function = _source(node.data), node.p.period, node.func
    if source is None or not isinstance(period, int) or period < 1:
        return None
    values, put = source._kept, way.put

    def step() -> None:
        newest = values[-period:]
        put(function(newest if len(newest) == period else source.get(size=period)))

    return step, (source,)


_SHORTCUTS: dict[Any, Callable[[Any, _Way], _Found | None]] = {
    basicops.Average.next: _average,
    basicops.ExponentialSmoothing.next: _smoothing,
    basicops.OperationN.next: _apply,
    LinesOperation.next: _operation,
    _LineDelay.next: _delay,
}
