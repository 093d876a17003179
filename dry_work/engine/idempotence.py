"""Which indicators may be left alone while their datas are. Pure; looks at Backtrader's objects and changes none.

Stock Backtrader calls `_next` of every indicator in every turn of its loop, also of those whose data have no new bar.
Such a call does not move an indicator that is as long as its clock, it calculates the current value again. When that
gives the value that is there already, the call may be left out. It does, if

1. the methods that run are proven: they write nothing but lines of the indicator, at positions that depend on its
   length only, and what they write depends on nothing but its inputs, constants, and its own earlier values.
   `_PROVEN` lists those methods of Backtrader, each read for that. A class is judged by the functions that it
   resolves to, so a subclass that only sets parameters or composes in `__init__` is proven, and one with a `next` of
   its own is not. Not in the list are those of Backtrader that keep state in attributes: LaguerreRSI and LaguerreFilter
   (a repeated call changes their values), ParabolicSAR, couplers.
2. all its inputs are lines of datas, or of indicators for which all of this holds and that run before it. Otherwise an
   input could change between the indicator's run and the end of the turn, and the repeated call would see it. Lines of
   an enclosing indicator that an inner one is bound to are such inputs too, once the inner one has run, when the
   enclosing one writes nothing itself.
3. it writes into no line with another clock: bindings end within the indicator. A line of the strategy is moved with
   every bar of any data and would stay NaN.

Then the state after the call is a function of the datas' lines, and the datas have not been touched. By induction
over the order of the calls the whole turn leaves the same values as stock's. The caller sees to it that indicators are
as long as their clocks: they are if they were made before the first bar and no data ever grew by two bars in a turn.

It is taken for granted that lines are written by feeds and indicators only. A strategy that writes into lines of
its datas or indicators sees its own values until the data's next bar, where stock calculates them again earlier.
"""

from __future__ import annotations

import datetime as dt
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from types import BuiltinFunctionType
from typing import Any

import backtrader as bt
from backtrader import functions
from backtrader.indicators import basicops, crossover, zlind
from backtrader.linebuffer import LineActions, LineBuffer, LinesOperation, PseudoArray, _LineDelay, _LineForward
from backtrader.linebuffer import LineOwnOperation as LineOwn
from backtrader.lineiterator import LineIterator
from backtrader.lineroot import LineRoot
from backtrader.lineseries import Lines, LineSeriesStub

from dry_work.engine.kept_line import KeptLine, plain_class

Sources = frozenset[int]  # `id` of each data
_NONE: Sources = frozenset()

# Everything of a node that Backtrader calls in a turn, directly or from the methods below.
_CALLED = (
    *("_next", "_clk_update", "_notify", "prenext", "nextstart", "next", "forward", "get", "__len__"),
    *("__getitem__", "__setitem__", "__getattr__", "__getattribute__"),
)

_SILENT = frozenset(
    getattr(base, name) for base in (LineIterator, LineRoot) for name in ("prenext", "nextstart", "next")
)

_PROVEN = _SILENT | {
    basicops.Accum.next,
    basicops.Accum.nextstart,
    basicops.Average.next,
    basicops.ExponentialSmoothing.next,
    basicops.ExponentialSmoothing.nextstart,
    basicops.ExponentialSmoothingDynamic.next,
    basicops.OperationN.next,
    basicops.WeightedAverage.next,
    crossover.NonZeroDifference.next,
    crossover.NonZeroDifference.nextstart,
    zlind.ZeroLagIndicator.next,
    functions.Cmp.next,
    functions.CmpEx.next,
    functions.DivByZero.next,
    functions.DivZeroByZero.next,
    functions.If.next,
    functions.MultiLogic.next,
    LinesOperation.next,
    LineOwn.next,
    _LineDelay.next,
    _LineForward.next,
}

_PURE = (max, min, math.fsum, any, all, abs, bool, functions.cmp, functions._andlogic, functions._orlogic)
_CONSTANTS = (int, float, dt.time)
_OPERANDS = ("a", "b", "cond", "args")  # read as `[0]` by operations
_SKIPPED = ("_owner", "_lineiterators", "_clock", "_datas", "bindings", "lines", "l")  # looked at in their own way


class _Unproven(Exception):
    """The indicator has to run in every turn."""


def find_sources(indicators: Iterable[Any]) -> list[Sources | None]:
    """Return, for each indicator of a strategy in its order, the datas on which alone its lines depend.

    None stands for an indicator that has to run in every turn. What the strategy's indicators look at must be complete:
    call it after the strategy was made.
    """
    prover = _Prover()
    return [prover.prove(indicator) for indicator in indicators]


class _Prover:
    def __init__(self) -> None:
        self._settled: dict[int, Sources] = {}  # by `id` of an indicator that runs before the one at hand
        self._path: list[Any] = []  # from the indicator of the strategy to the inner one at hand
        self._written: set[int] = set()  # `id` of lines that an inner indicator is bound to and has written

    def prove(self, indicator: Any) -> Sources | None:
        known = dict(self._settled)
        self._path.clear()
        self._written.clear()
        try:
            return self._visit(indicator)
        except _Unproven:
            self._settled = known
            return None

    def _visit(self, node: Any) -> Sources:
        """Prove an indicator and those inside it, in the order in which they run."""
        _check_methods(node)
        sources = set(self._find_clock(node))
        self._path.append(node)
        for inner in _inner(node):
            sources |= self._visit(inner)
        self._path.pop()
        for thing in _references(node):
            sources |= self._resolve(thing, node)
        self._note_bindings(node)
        found = self._settled[id(node)] = frozenset(sources)
        return found

    def _find_clock(self, node: Any) -> Sources:
        clock = node._clock
        # An enclosing indicator has moved already, and its own clock has been looked at.
        return _NONE if any(clock is outer for outer in self._path) else self._resolve(clock, node)

    def _resolve(self, thing: Any, node: Any) -> Sources:
        """Return the datas that `thing`, seen from `node`, depends on."""
        if thing is node:
            return _NONE
        if isinstance(thing, bt.DataBase):
            if type(thing).__len__ is not bt.DataBase.__len__ or type(thing).__getitem__ is not bt.DataBase.__getitem__:
                raise _Unproven
            return frozenset((id(thing),))
        if id(thing) in self._settled:
            return self._settled[id(thing)]
        if isinstance(thing, LineSeriesStub):
            return self._resolve(thing.lines[0], node)
        if type(thing) in (LineBuffer, KeptLine):
            owner = thing._owner
            if any(owner is outer for outer in self._path):
                if id(thing) not in self._written or not _writes_nothing(owner):
                    raise _Unproven
                return _NONE
            return self._resolve(owner, node)
        raise _Unproven  # a strategy, an observer, or an indicator that runs later or is not proven

    def _note_bindings(self, node: Any) -> None:
        own = {id(line) for outer in self._path for line in outer.lines}
        lines = list(node.lines)
        while lines:
            for binding in lines.pop().bindings:
                if id(binding) not in own:
                    raise _Unproven
                self._written.add(id(binding))
                lines.append(binding)


def _check_methods(node: Any) -> None:
    base = LineActions if isinstance(node, LineActions) else bt.Indicator
    if not isinstance(node, base):
        raise _Unproven
    kind = plain_class(node)  # a line that lets go of old values gives and takes the same ones
    for name in _CALLED:
        found = getattr(kind, name, None)
        if name in node.__dict__ or (found is not getattr(base, name, None) and found not in _PROVEN):
            raise _Unproven
    check = _FURTHER.get(kind.next)
    if check is not None and not check(node):
        raise _Unproven


def _is_pure(function: Any) -> bool:
    if isinstance(function, functools.partial):
        return function.func is functools.reduce and all(map(_is_pure, function.args[:1])) and not function.keywords
    if isinstance(function, BuiltinFunctionType) and function.__module__ == "_operator":
        return True
    return any(function is pure for pure in _PURE)


def _has_pure_func(node: Any) -> bool:
    if isinstance(node, basicops.FindFirstIndex | basicops.FindLastIndex):
        base = basicops.FindFirstIndex if isinstance(node, basicops.FindFirstIndex) else basicops.FindLastIndex
        return type(node).func is base.func and "func" not in node.__dict__ and _is_pure(node.p._evalfunc)
    return _is_pure(node.func)


# What a proven `next` calls or reads beside lines, where that is not the same for all objects.
_FURTHER: dict[Any, Callable[[Any], bool]] = {
    basicops.OperationN.next: _has_pure_func,
    basicops.WeightedAverage.next: lambda node: isinstance(node.p.weights, list | tuple),
    functions.MultiLogic.next: lambda node: _is_pure(node.flogic),
    LinesOperation.next: lambda node: _is_pure(node.operation),
    LineOwn.next: lambda node: _is_pure(node.operation),
}


def _writes_nothing(node: Any) -> bool:
    return all(getattr(type(node), name) in _SILENT for name in ("prenext", "nextstart", "next"))


def _inner(node: Any) -> Iterable[Any]:
    return () if isinstance(node, LineActions) else node._lineiterators[LineIterator.IndType]


def _references(node: Any) -> Iterator[Any]:
    """Give everything with lines that `node` holds in attributes and parameters, its own lines left out."""
    own = {id(line) for line in node.lines}
    held = [value for name, value in vars(node).items() if name not in _SKIPPED]
    held.extend(vars(node.p).values())
    if isinstance(node, LineActions):
        for name in _OPERANDS:
            operands = getattr(node, name, ())
            for operand in operands if isinstance(operands, list) else (operands,):
                if not isinstance(operand, (LineRoot, PseudoArray, tuple, *_CONSTANTS)):
                    raise _Unproven
    while held:
        value = held.pop()
        if isinstance(value, PseudoArray):
            if not isinstance(value.wrapped, _CONSTANTS):
                raise _Unproven
        elif isinstance(value, LineRoot):
            if id(value) not in own:
                yield value
        elif isinstance(value, Lines):
            held.extend(value.lines)
        elif isinstance(value, dict):
            held.extend((*value.keys(), *value.values()))
        elif isinstance(value, list | tuple | set | frozenset):
            held.extend(value)
