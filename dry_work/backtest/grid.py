"""Parameter sets of a sweep: ranges, lists, constraints and random draws. Pure.

`5:50:5` is every fifth number from 5 to 50, both included, in exact decimal steps; `5,10,20` is a list; `5:50` is any
number between, for random search; anything else is one value. Values have the types of the strategy's defaults.
"""

from __future__ import annotations

import ast
import itertools
import json
import math
import operator
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from dry_work.engine.agents import check_params
from dry_work.errors import ConfigError

MOST_SETS = 10_000
_WALKED_PER_SET = 100  # so many combinations are looked at for each set that is allowed
_DRAWS_PER_SET = 200
_DRAWN_DIGITS = 6  # significant, of a number drawn from a range without a step
_PAIRS = {"(": ")", "[": "]", "{": "}"}


class ParamSet(msgspec.Struct, frozen=True, kw_only=True):
    """One parameter set: each value as it is, and as the text that the strategy's defaults turn into it."""

    values: dict[str, Any]
    texts: dict[str, str]

    @property
    def key(self) -> str:
        """What tells it from every other set."""
        return json.dumps({name: repr(value) for name, value in self.values.items()}, sort_keys=True)


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """What one parameter may be: `values` with their `texts`, or any number between `ends`."""

    name: str
    texts: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()
    ends: tuple[Decimal, Decimal] | None = None
    whole: bool = False  # of `ends`: whole numbers

    @property
    def count(self) -> int | None:
        """How many values there are, None for any number of them."""
        if self.ends is None:
            return len(self.values)
        return int(self.ends[1]) - int(self.ends[0]) + 1 if self.whole else None

    @property
    def is_swept(self) -> bool:
        return self.count != 1

    def draw_text(self, chance: random.Random) -> str:
        """Return one of the values at random, as a text."""
        if self.ends is None:
            return chance.choice(self.texts)
        low, high = self.ends
        if self.whole:
            return str(chance.randint(int(low), int(high)))
        drawn = Decimal(f"{chance.uniform(float(low), float(high)):.{_DRAWN_DIGITS}g}")
        return format(min(max(drawn, low), high), "f")


def parse_axes(strategy: type[Any], given: Mapping[str, str]) -> tuple[Axis, ...]:
    """Return what each parameter in `given` may be.

    Args:
        strategy: its defaults say which parameters there are and of what type.
        given: texts by parameter name.

    Raises:
        ConfigError: naming the parameter, its text and what is allowed.
    """
    return tuple(_parse_axis(strategy, name, text) for name, text in given.items())


def _parse_axis(strategy: type[Any], name: str, text: str) -> Axis:
    if name not in strategy.params._getkeys():
        check_params(strategy, {name: text})  # says which there are
    default = getattr(strategy.params, name)
    option = f"-p {name}={text}"
    parts = text.split(":")
    numbers = [_parse_number(part) for part in parts]
    if len(parts) in (2, 3) and not isinstance(default, list | tuple | dict):
        if isinstance(default, str | bool):
            if len(parts) == 3 and None not in numbers:  # '09:30' is a value, '5:50:5' is meant as a range
                raise ConfigError(
                    f"{option}: a range needs a numeric default, and that of {name} is {default!r}; "
                    "give a list, for example a,b"
                )
        elif None in numbers:
            raise ConfigError(f"{option}: expected begin:end:step in numbers, for example 5:50:5")
        else:
            return _parse_range(strategy, name, option, [number for number in numbers if number is not None])
    texts = _split_list(text)
    if any(not part for part in texts):
        raise ConfigError(f"{option}: has an empty value; expected one value, a,b,c or begin:end:step")
    if isinstance(default, str):
        texts = [part[1:-1] if len(part) > 1 and part[0] == part[-1] and part[0] in "'\"" else part for part in texts]
    return _list_axis(strategy, name, texts)


def _list_axis(strategy: type[Any], name: str, texts: Sequence[str]) -> Axis:
    found: dict[str, tuple[str, Any]] = {}
    for text in texts:
        value = check_params(strategy, {name: text})[name]
        found.setdefault(repr(value), (text, value))
    return Axis(name=name, texts=tuple(t for t, _ in found.values()), values=tuple(v for _, v in found.values()))


def _parse_range(strategy: type[Any], name: str, option: str, numbers: list[Decimal]) -> Axis:
    low, high = numbers[:2]
    default = getattr(strategy.params, name)
    if len(numbers) == 2:
        if low >= high:
            raise ConfigError(f"{option}: the range is empty: expected an end above {low}")
        whole = all(number == number.to_integral_value() for number in numbers) and not isinstance(default, float)
        for number in numbers:
            check_params(strategy, {name: _write_number(number)})
        return Axis(name=name, ends=(low, high), whole=whole)
    step = numbers[2]
    if not step:
        raise ConfigError(f"{option}: the step is 0; expected one that leads from {low} to {high}")
    if low != high and (high > low) != (step > 0):
        raise ConfigError(f"{option}: the range is empty: the step {step} leads away from {high}")
    count = int((high - low) / step) + 1
    if count > MOST_SETS * _WALKED_PER_SET:
        raise ConfigError(f"{option}: has {count:,} values; expected a longer step")
    return _list_axis(strategy, name, [_write_number(low + k * step) for k in range(count)])


def _parse_number(text: str) -> Decimal | None:
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _write_number(number: Decimal) -> str:
    if number == number.to_integral_value():
        return str(int(number))
    return format(number, "f")


def _split_list(text: str) -> list[str]:
    """Split at commas that stand in no bracket and no quotes."""
    parts, open_brackets, quote = [""], [], ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in _PAIRS:
            open_brackets.append(_PAIRS[sign])
        elif open_brackets and sign == open_brackets[-1]:
            open_brackets.pop()
        elif sign == "," and not open_brackets:
            parts.append("")
            continue
        parts[-1] += sign
    return [part.strip() for part in parts]


_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {"abs": abs, "min": min, "max": max}
_ALLOWED = "parameter names, numbers, texts, + - * / // %, < <= > >= == !=, and, or, not, abs, min, max"


class Constraint:
    """A condition on parameters, for example `fast < slow`. Nothing but arithmetic and comparison is carried out.

    Args:
        text: the condition.
        names: parameters it may speak of.

    Raises:
        ConfigError: it is no condition, or speaks of something else.
    """

    def __init__(self, text: str, names: Sequence[str]) -> None:
        self.text = text
        try:
            self._root = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError):
            raise ConfigError(f"--constraint {text!r}: no expression; expected for example 'fast < slow'") from None
        except (RecursionError, MemoryError):
            raise ConfigError(f"--constraint {text[:60]!r}…: nested too deeply") from None
        self._check(self._root, names)

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Tell whether a parameter set meets it.

        Raises:
            ConfigError: it cannot be worked out for these values.
        """
        try:
            return bool(self._evaluate(self._root, values))
        except (TypeError, ArithmeticError, ValueError) as error:
            shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
            raise ConfigError(f"--constraint {self.text!r}: cannot be worked out for {shown}: {error}") from None

    def _check(self, node: ast.AST, names: Sequence[str]) -> None:
        match node:
            case ast.Name(id=name):
                if name not in names:
                    raise ConfigError(
                        f"--constraint {self.text!r}: no parameter {name!r}; there are {', '.join(names)}"
                    )
                return
            case ast.Constant(value=bool() | int() | float() | str()):
                return
            case ast.BoolOp(values=parts):
                pass
            case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=operand):
                parts = [operand]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                parts = [left, right]
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _OPERATORS for op in ops):
                parts = [left, *others]
            case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]) if name in _FUNCTIONS and parts:
                pass
            case _:
                raise ConfigError(f"--constraint {self.text!r}: {ast.unparse(node)!r} is not allowed, only {_ALLOWED}")
        for part in parts:
            self._check(part, names)

    def _evaluate(self, node: ast.AST, values: Mapping[str, Any]) -> Any:
        match node:
            case ast.Name(id=name):
                return values[name]
            case ast.Constant(value=value):
                return value
            case ast.BoolOp(op=op, values=parts):
                results = (bool(self._evaluate(part, values)) for part in parts)
                return all(results) if isinstance(op, ast.And) else any(results)
            case ast.UnaryOp(op=op, operand=operand):
                value = self._evaluate(operand, values)
                if isinstance(op, ast.Not):
                    return not value
                return -value if isinstance(op, ast.USub) else +value
            case ast.BinOp(left=left, op=op, right=right):
                pair = self._evaluate(left, values), self._evaluate(right, values)
                if not all(isinstance(value, int | float) for value in pair):
                    raise TypeError("arithmetic is for numbers")  # a text times a number could be very long
                return _OPERATORS[type(op)](*pair)
            case ast.Compare(left=left, ops=ops, comparators=others):
                chain = [self._evaluate(part, values) for part in (left, *others)]
                return all(_OPERATORS[type(op)](chain[i], chain[i + 1]) for i, op in enumerate(ops))
            case ast.Call(func=ast.Name(id=name), args=parts):
                arguments = [self._evaluate(part, values) for part in parts]
                return _FUNCTIONS[name](*arguments)
        raise TypeError(f"{ast.unparse(node)!r} is not allowed")  # `_check` lets nothing else through


class Space:
    """All parameter sets that a sweep may try.

    Args:
        strategy: the strategy class.
        axes: what each given parameter may be.
        constraints: conditions that a set must meet; they may speak of parameters that were not given, too.

    Raises:
        ConfigError: a constraint is unusable.
    """

    def __init__(self, strategy: type[Any], axes: Sequence[Axis], constraints: Sequence[str] = ()) -> None:
        self.axes = tuple(axes)
        self._strategy = strategy
        names = list(strategy.params._getkeys())
        self._defaults = {name: getattr(strategy.params, name) for name in names}
        self._constraints = [Constraint(text, names) for text in constraints]

    @property
    def swept(self) -> tuple[Axis, ...]:
        """The parameters that have more than one value."""
        return tuple(axis for axis in self.axes if axis.is_swept)

    @property
    def count(self) -> int | None:
        """How many combinations there are before constraints, None for any number of them."""
        counts = [axis.count for axis in self.axes]
        return None if None in counts else math.prod(count for count in counts if count is not None)

    def list_sets(self, *, most: int = MOST_SETS) -> list[ParamSet]:
        """Return every set of the grid, the last parameter changing fastest.

        Args:
            most: how many there may be.

        Raises:
            ConfigError: nothing to sweep, no set left, or more than `most`.
        """
        self._check_swept()
        for axis in self.axes:
            if axis.ends is not None:
                shown = ":".join(map(_write_number, axis.ends))
                raise ConfigError(f"-p {axis.name}={shown}: a range without a step needs --random N; or give a step")
        self._check_count(self.count, most if not self._constraints else most * _WALKED_PER_SET, most)
        sets = list(self._walk())
        if not sets:
            raise ConfigError(f"no parameter set of {self.count:,} meets {self._describe_constraints()}")
        self._check_count(len(sets), most, most)
        return sets

    def draw_sets(self, count: int, *, seed: int, most: int = MOST_SETS) -> tuple[list[ParamSet], str]:
        """Return `count` different sets at random, the same for the same seed, and a sentence when they are fewer.

        Raises:
            ConfigError: nothing to sweep, no set found, or more than `most` asked for.
        """
        self._check_swept()
        if count > most:
            raise ConfigError(f"--random {count:,}: more than --max-sets {most:,}; ask for fewer or raise --max-sets")
        chance = random.Random(seed)
        whole = self.count
        if whole is not None and whole <= max(most * _WALKED_PER_SET, count) and not any(a.ends for a in self.axes):
            sets = list(self._walk())
            note = f"the grid has {len(sets):,} sets, fewer than --random {count:,}: all are tried"
            found = sets if len(sets) <= count else [sets[i] for i in sorted(chance.sample(range(len(sets)), count))]
        else:
            drawn: dict[str, ParamSet] = {}
            for _ in range(count * _DRAWS_PER_SET):
                one = self._make({axis.name: axis.draw_text(chance) for axis in self.axes})
                if self._allows(one):
                    drawn.setdefault(one.key, one)
                if len(drawn) == count:
                    break
            found = list(drawn.values())
            note = f"found {len(found):,} different sets for --random {count:,}"
        if not found:
            raise ConfigError(f"no parameter set found that meets {self._describe_constraints()}")
        return found, note if len(found) < count else ""

    def _walk(self) -> Iterator[ParamSet]:
        columns = [list(zip(axis.texts, axis.values, strict=True)) for axis in self.axes]
        names = [axis.name for axis in self.axes]
        for combination in itertools.product(*columns):
            one = ParamSet(
                values={name: value for name, (_, value) in zip(names, combination, strict=True)},
                texts={name: text for name, (text, _) in zip(names, combination, strict=True)},
            )
            if self._allows(one):
                yield one

    def _make(self, texts: dict[str, str]) -> ParamSet:
        return ParamSet(values=check_params(self._strategy, texts), texts=texts)

    def _allows(self, one: ParamSet) -> bool:
        if not self._constraints:
            return True
        values = {**self._defaults, **one.values}
        return all(constraint.holds(values) for constraint in self._constraints)

    def _check_swept(self) -> None:
        if not self.swept:
            raise ConfigError(
                "nothing to optimise: every parameter has one value; give a range or a list, for example -p fast=5:50:5"
            )

    def _check_count(self, count: int | None, allowed: int, most: int) -> None:
        if count is not None and count > allowed:
            constrained = " before its constraints" if allowed > most else ""
            raise ConfigError(
                f"the grid has {count:,} parameter sets{constrained}, more than --max-sets {most:,}: use longer steps, "
                "--random N, or a higher --max-sets"
            )

    def _describe_constraints(self) -> str:
        return " and ".join(f"--constraint {constraint.text!r}" for constraint in self._constraints)
