"""The loops over bars of Backtrader's line operations and indicators, done by numpy, to the last digit.

Each function computes what the `once` it stands for in `KNOWN` would write from `start` to `end`, or returns False
where it cannot: values that are not finite where order matters, a division by zero that Python would raise, indices
that wrap around.
"""

from __future__ import annotations

import functools
import math
import operator
from array import array
from collections.abc import Callable
from types import BuiltinFunctionType
from typing import Any

import numpy as np
from backtrader import functions as logic
from backtrader import linebuffer as lines
from backtrader.indicators import basicops
from backtrader.indicators.crossover import NonZeroDifference
from numpy.typing import NDArray

from dry_work.backtest.lean_sums import CHUNK, sliding_sums

Floats = NDArray[np.float64]
Once = Callable[[Any, int, int], bool]

_EXACT_INTEGER = 2**53


# Reading operands and writing results


def _target(line: Any, start: int, end: int) -> Floats | None:
    values = np.frombuffer(line.array, dtype=np.float64)
    return values[start:end] if start >= 0 and end <= len(values) else None


def _operand(operand: Any, start: int, end: int) -> Floats | float | None:
    """Return rows of what an operand's `array` holds, or its number; None when it is neither."""
    values = getattr(operand, "array", None)
    if isinstance(values, array):
        return _rows(values, start, end)
    if isinstance(operand, lines.PseudoArray):
        return _number(operand.wrapped)
    return None


def _rows(values: Any, start: int, end: int) -> Floats | None:
    if not isinstance(values, array) or start < 0 or end > len(values):
        return None
    return np.frombuffer(values, dtype=np.float64)[start:end]


def _number(value: Any) -> float | None:
    if type(value) is float:
        return value
    # A comparison of a longer integer with a float is exact in Python and would not be here.
    return float(value) if type(value) in (int, bool) and abs(value) <= _EXACT_INTEGER else None


# Line operations

_ARITHMETIC: dict[Any, Any] = {
    operator.__add__: np.add,
    operator.__sub__: np.subtract,
    operator.__mul__: np.multiply,
    operator.__truediv__: np.divide,
    operator.__lt__: np.less,
    operator.__gt__: np.greater,
    operator.__le__: np.less_equal,
    operator.__ge__: np.greater_equal,
    operator.__eq__: np.equal,
    operator.__ne__: np.not_equal,
}
_OWN: dict[Any, Any] = {
    operator.__abs__: np.abs,
    operator.__neg__: np.negative,
    bool: lambda values, out: np.not_equal(values, 0.0, out=out),
}


def _lines_operation(line: Any, start: int, end: int) -> bool:
    operation = line.operation
    one: Floats | float | None
    other: Floats | float | None
    if line.bline:
        one, other = (
            _rows(getattr(line.a, "array", None), start, end),
            _rows(getattr(line.b, "array", None), start, end),
        )
    elif line.btime:
        return False
    elif not line.r:
        one, other = _rows(getattr(line.a, "array", None), start, end), _number(line.b)
    else:
        one, other = _number(line.a), _rows(getattr(line.b, "array", None), start, end)
    target = _target(line, start, end)
    if one is None or other is None or target is None:
        return False
    if operation is operator.__pow__:
        return _power(target, one, other)
    function = _ARITHMETIC.get(operation)
    if function is None or (operation is operator.__truediv__ and np.any(np.equal(other, 0.0))):
        return False
    function(one, other, out=target)
    return True


def _power(target: Floats, one: Any, other: Any) -> bool:
    # numpy's own power may differ from the C library's in the last digit.
    count = len(target)
    try:
        for low in range(0, count, CHUNK):
            high = min(low + CHUNK, count)
            bases = one[low:high].tolist() if isinstance(one, np.ndarray) else [one] * (high - low)
            exponents = other[low:high].tolist() if isinstance(other, np.ndarray) else [other] * (high - low)
            target[low:high] = array("d", map(operator.pow, bases, exponents))
    except (ArithmeticError, TypeError):
        return False  # Backtrader's loop raises it in its own way
    return True


def _own_operation(line: Any, start: int, end: int) -> bool:
    function = _OWN.get(line.operation)
    source = _rows(getattr(line.a, "array", None), start, end)
    target = _target(line, start, end)
    if function is None or source is None or target is None:
        return False
    function(source, out=target)
    return True


def _delay(line: Any, start: int, end: int) -> bool:
    source = _operand(line.a, start + line.ago, end + line.ago)
    target = _target(line, start, end)
    if source is None or target is None:
        return False
    target[:] = source
    return True


def _forward_delay(line: Any, start: int, end: int) -> bool:
    source = _operand(line.a, start, end)
    target = _target(line, start - line.ago, end - line.ago)
    if source is None or target is None or line.a is line:
        return False
    target[:] = source
    return True


# Functions of lines


def _operands(line: Any, operands: Any, start: int, end: int) -> tuple[Floats, list[Any]] | None:
    target = _target(line, start, end)
    found = [_operand(operand, start, end) for operand in operands]
    if target is None or any(value is None for value in found):
        return None
    return target, found


def _divide_by_zero(line: Any, start: int, end: int) -> bool:
    given = _operands(line, (line.a, line.b), start, end)
    zero = _number(line.zero)
    if given is None or zero is None:
        return False
    target, (a, b) = given
    target[:] = np.where(np.not_equal(b, 0.0), np.divide(a, b), zero)
    return True


def _divide_zero_by_zero(line: Any, start: int, end: int) -> bool:
    given = _operands(line, (line.a, line.b), start, end)
    single, dual = _number(line.single), _number(line.dual)
    if given is None or single is None or dual is None:
        return False
    target, (a, b) = given
    target[:] = np.where(np.equal(b, 0.0), np.where(np.equal(a, 0.0), dual, single), np.divide(a, b))
    return True


def _compare(line: Any, start: int, end: int) -> bool:
    given = _operands(line, (line.a, line.b), start, end)
    if given is None:
        return False
    target, (a, b) = given
    np.subtract(np.greater(a, b), np.less(a, b), out=target, dtype=np.float64)
    return True


def _compare_and_choose(line: Any, start: int, end: int) -> bool:
    given = _operands(line, (line.a, line.b, line.r1, line.r2, line.r3), start, end)
    if given is None:
        return False
    target, (a, b, less, equal, greater) = given
    target[:] = np.where(np.less(a, b), less, np.where(np.greater(a, b), greater, equal))
    return True


def _choose(line: Any, start: int, end: int) -> bool:
    given = _operands(line, (line.cond, line.a, line.b), start, end)
    if given is None:
        return False
    target, (condition, a, b) = given
    target[:] = np.where(np.not_equal(condition, 0.0), a, b)
    return True


def _multi_logic(line: Any, start: int, end: int) -> bool:
    function = line.flogic
    if isinstance(function, functools.partial):  # And, Or: a fold over the operands
        plain = function.func is functools.reduce and len(function.args) == 1 and not function.keywords
        join = _FOLDS.get(function.args[0]) if plain else None
        if len(line.args) < 2:
            return False
    else:
        join = _FOLDS.get(function)
    given = _operands(line, line.args, start, end) if join is not None and line.args else None
    if join is None or given is None:
        return False
    target, values = given
    target[:] = join(values)
    return True


def _truth(values: list[Any]) -> list[Any]:
    return [np.not_equal(value, 0.0) for value in values]


def _fold_all(values: list[Any]) -> Any:
    return functools.reduce(np.logical_and, _truth(values))


def _fold_any(values: list[Any]) -> Any:
    return functools.reduce(np.logical_or, _truth(values))


def _fold_max(values: list[Any]) -> Any:
    # Python keeps the first of equals, and what it has when the next cannot be compared.
    return functools.reduce(lambda kept, value: np.where(np.greater(value, kept), value, kept), values)


def _fold_min(values: list[Any]) -> Any:
    return functools.reduce(lambda kept, value: np.where(np.less(value, kept), value, kept), values)


_FOLDS: dict[Any, Callable[[list[Any]], Any]] = {
    logic._andlogic: _fold_all,
    logic._orlogic: _fold_any,
    all: _fold_all,
    any: _fold_any,
    max: _fold_max,
    min: _fold_min,
}


# Indicators


def _windows(indicator: Any, start: int, end: int) -> tuple[Floats, Floats, int] | None:
    """Return the target rows, the source rows that their windows cover, and the period."""
    period = indicator.p.period
    if type(period) is not int or period < 1:
        return None
    target = _target(indicator.line, start, end)
    source = _rows(indicator.data.array, start - period + 1, end)
    return None if target is None or source is None else (target, source, period)


def _average(indicator: Any, start: int, end: int) -> bool:
    given = _windows(indicator, start, end)
    if given is None:
        return False
    target, source, period = given
    original = basicops.Average.once
    for low in range(0, len(target), CHUNK):
        high = min(low + CHUNK, len(target))
        sums = sliding_sums(source[low : high + period - 1], period)
        if sums is None:
            original(indicator, start + low, start + high)
        else:
            np.divide(sums, float(period), out=target[low:high])
    return True


def _operation_n(indicator: Any, start: int, end: int) -> bool:
    function = _WINDOWED.get(indicator.func) if isinstance(indicator.func, BuiltinFunctionType) else None
    given = _windows(indicator, start, end) if function is not None else None
    if function is None or given is None:
        return False
    return function(indicator, *given, start)


def _highest(indicator: Any, target: Floats, source: Floats, period: int, start: int) -> bool:
    return _extreme(np.maximum, target, source, period)


def _lowest(indicator: Any, target: Floats, source: Floats, period: int, start: int) -> bool:
    return _extreme(np.minimum, target, source, period)


def _extreme(function: Any, target: Floats, source: Floats, period: int) -> bool:
    """Fill `target` with the extreme of each window: of two accumulations, back and forth within blocks."""
    if np.isnan(source).any() or np.signbit(source[source == 0.0]).any():
        return False  # there Python's answer depends on the order of the window
    if period == 1:
        target[:] = source
        return True
    step = max(1, CHUNK // period) * period
    for low in range(0, len(target), step):
        high = min(low + step, len(target))
        values = source[low : high + period - 1]
        padded = np.full(-(-len(values) // period) * period, values[-1])
        padded[: len(values)] = values
        blocks = padded.reshape(-1, period)
        ahead = function.accumulate(blocks, axis=1).reshape(-1)
        behind = function.accumulate(blocks[:, ::-1], axis=1)[:, ::-1].reshape(-1)
        function(behind[: high - low], ahead[period - 1 : period - 1 + high - low], out=target[low:high])
    return True


def _any_of_window(indicator: Any, target: Floats, source: Floats, period: int, start: int) -> bool:
    np.greater(_count_true(source, period), 0, out=target)
    return True


def _all_of_window(indicator: Any, target: Floats, source: Floats, period: int, start: int) -> bool:
    np.equal(_count_true(source, period), period, out=target)
    return True


def _count_true(source: Floats, period: int) -> NDArray[np.int64]:
    total = np.zeros(len(source) + 1, dtype=np.int64)
    np.cumsum(source != 0.0, out=total[1:])
    return total[period:] - total[:-period]


def _sum_of_window(indicator: Any, target: Floats, source: Floats, period: int, start: int) -> bool:
    for low in range(0, len(target), CHUNK):
        high = min(low + CHUNK, len(target))
        sums = sliding_sums(source[low : high + period - 1], period)
        if sums is None:
            basicops.OperationN.once(indicator, start + low, start + high)
        else:
            target[low:high] = sums
    return True


_WINDOWED: dict[Any, Callable[[Any, Floats, Floats, int, int], bool]] = {
    max: _highest,
    min: _lowest,
    any: _any_of_window,
    all: _all_of_window,
    math.fsum: _sum_of_window,
}


def _accumulate(indicator: Any, start: int, end: int) -> bool:
    target = _target(indicator.line, start, end)
    source = _rows(indicator.data.array, start, end)
    if target is None or source is None or start < 1:
        return False
    previous = indicator.line.array[start - 1]
    for low in range(0, len(target), CHUNK):
        added = np.add.accumulate(np.concatenate(((previous,), source[low : low + CHUNK])))
        target[low : low + CHUNK] = added[1:]
        previous = added[-1]
    return True


def _smooth(indicator: Any, start: int, end: int) -> bool:
    target = _target(indicator.line, start, end)
    source = _rows(indicator.data.array, start, end)
    alpha, alpha1 = _number(indicator.alpha), _number(indicator.alpha1)
    if target is None or source is None or alpha is None or alpha1 is None or start < 1:
        return False
    previous = indicator.line.array[start - 1]
    for low in range(0, len(target), CHUNK):
        scaled = (source[low : low + CHUNK] * alpha).tolist()
        smoothed = [previous := previous * alpha1 + value for value in scaled]
        target[low : low + CHUNK] = smoothed
    return True


def _smooth_dynamically(indicator: Any, start: int, end: int) -> bool:
    target = _target(indicator.line, start, end)
    source = _rows(indicator.data.array, start, end)
    alpha, alpha1 = _rows(indicator.alpha.array, start, end), _rows(indicator.alpha1.array, start, end)
    if target is None or source is None or alpha is None or alpha1 is None or start < 1:
        return False
    previous = indicator.line.array[start - 1]
    for low in range(0, len(target), CHUNK):
        rows = slice(low, low + CHUNK)
        scaled = (source[rows] * alpha[rows]).tolist()
        kept = alpha1[rows].tolist()
        target[rows] = [previous := previous * share + value for share, value in zip(kept, scaled, strict=True)]
    return True


def _non_zero_difference(indicator: Any, start: int, end: int) -> bool:
    target = _target(indicator.line, start, end)
    one, other = _rows(indicator.data0.array, start, end), _rows(indicator.data1.array, start, end)
    if target is None or one is None or other is None or start < 1:
        return False
    previous = indicator.line.array[start - 1]
    for low in range(0, len(target), CHUNK):
        rows = slice(low, low + CHUNK)
        difference = np.concatenate(((previous,), one[rows] - other[rows]))
        places = np.where(difference != 0.0, np.arange(len(difference)), 0)
        kept = difference[np.maximum.accumulate(places)]
        target[rows] = kept[1:]
        previous = kept[-1]
    return True


KNOWN: dict[Any, Once] = {
    lines.LinesOperation.once: _lines_operation,
    lines.LineOwnOperation.once: _own_operation,
    lines._LineDelay.once: _delay,
    lines._LineForward.once: _forward_delay,
    logic.DivByZero.once: _divide_by_zero,
    logic.DivZeroByZero.once: _divide_zero_by_zero,
    logic.Cmp.once: _compare,
    logic.CmpEx.once: _compare_and_choose,
    logic.If.once: _choose,
    logic.MultiLogic.once: _multi_logic,
    basicops.OperationN.once: _operation_n,
    basicops.Accum.once: _accumulate,
    basicops.Average.once: _average,
    basicops.ExponentialSmoothing.once: _smooth,
    basicops.ExponentialSmoothingDynamic.once: _smooth_dynamically,
    NonZeroDifference.once: _non_zero_difference,
}
