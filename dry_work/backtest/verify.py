"""Comparison of two runs of a backtest, record by record, to the last digit.

Values are equal when their types and all their digits are: 1 is not 1.0, 0.0 is not -0.0, a `numpy.float64` is not a
`float`. NaN equals NaN. Runs are compared by the digests of their records; a block that differs is fetched by running
once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import backtrader as bt

from dry_work.backtest.lean import LeanCerebro
from dry_work.backtest.records import BAR_CALLS, Build, Records, Section, record, run_once

_MISSING = "(nothing)"
_COUNTS = (
    "bars", "calls", "orders", "fills", "trades", "cash_values", "analyzers", "analyzer_values", "indicator_values",
    "observer_values", "data_values",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Difference:
    """The first difference between two runs.

    Attributes:
        place: which call, order, analyzer or line, with its bar time where it has one.
        field: which value there.
        values: what each of the two runs had, as Python writes it; '(nothing)' where it had no such thing.
        engines: names of the two runs.
    """

    place: str
    field: str
    values: tuple[str, str]
    engines: tuple[str, str]
    section: str = ""
    block: int = -1

    def __str__(self) -> str:
        first, second = self.values
        return f"{self.place}: {self.field} is {first} with {self.engines[0]} and {second} with {self.engines[1]}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was compared and the first difference.

    Attributes:
        engines: names of the two engines.
        counts: how much was compared: bars, calls, orders, fills, trades, cash_values, analyzers, analyzer_values,
            indicator_values, observer_values, data_values.
        fallback: why the first engine took the second one's path, '' when it did not.
        difference: the first one, None when all is equal.
        raised: what user code raised, as 'ValueError: text', '' when it raised nothing.
    """

    engines: tuple[str, str]
    counts: Mapping[str, int]
    fallback: str
    difference: Difference | None
    raised: str = ""

    @property
    def identical(self) -> bool:
        return self.difference is None

    def __str__(self) -> str:
        if self.difference is not None:
            return f"not identical: {self.difference}"
        compared = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in self.counts.items())
        text = f"identical with {self.engines[0]} and {self.engines[1]}: {compared}"
        return f"{text}; {self.engines[0]} fell back: {self.fallback}" if self.fallback else text


def compare(first: Records, second: Records, *, calls: bool = True) -> Difference | None:
    """Return the first difference between two runs, None when there is none.

    Args:
        calls: False leaves out what the strategies saw while they ran, for runs that were not watched.
    """
    for name in {**first.sections, **second.sections}:
        if name == "calls" and not calls:
            continue
        ours, theirs = first.sections.get(name), second.sections.get(name)
        engines = (first.engine, second.engine)
        if ours is None or theirs is None:
            counts = tuple(_MISSING if each is None else f"{each.count} records" for each in (ours, theirs))
            return Difference(name, "what was recorded", (counts[0], counts[1]), engines, name)
        for block in range(max(len(ours.digests), len(theirs.digests))):
            if ours.digests[block : block + 1] != theirs.digests[block : block + 1]:
                return _difference_in(name, block, (ours, theirs), (first, second), engines)
    return None


def _difference_in(
    name: str, block: int, sections: tuple[Section, Section], records: tuple[Records, Records], engines: tuple[str, str]
) -> Difference | None:
    missing = [block < len(each.digests) and block not in each.kept for each in sections]
    start = block * sections[0].block_size
    if any(missing):
        place = f"{name}, from record {start:,} on"
        return Difference(place, "something", ("one thing", "another"), engines, name, block)
    ours, theirs = (each.kept.get(block, []) for each in sections)
    for i in range(max(len(ours), len(theirs))):
        pair = tuple(side[i] if i < len(side) else None for side in (ours, theirs))
        if repr(pair[0]) == repr(pair[1]):
            continue
        place, field_name, values = _explain(name, start + i, pair, records)
        return Difference(place, field_name, values, engines, name, block)
    return None


def _explain(
    name: str, number: int, pair: tuple[Any, ...], records: tuple[Records, Records]
) -> tuple[str, str, tuple[str, str]]:
    if name == "calls":
        return _explain_call(number, pair, records)
    if None in pair and name != "lengths of lines":
        sides = tuple(_MISSING if each is None else _short(each) for each in pair)
        return f"{name}, record {number:,}", "the record", (sides[0], sides[1])
    if name == "orders" or name.endswith(" trades"):
        path, values = _first_leaf(*pair)
        return f"{name.removesuffix('s')} {number:,}", ".".join(map(str, path)), values
    path, values = _first_leaf(*pair)
    if isinstance(pair[0], tuple):  # a leaf with its path
        ours, theirs = pair
        if repr(ours[0]) != repr(theirs[0]):
            return f"{name}, entry {number:,}", "its key", (_short(ours), _short(theirs))
        return name, ".".join(map(str, ours[0])) or "the value", values
    return name, f"value {number:,}" if isinstance(pair[0], float) else f"record {number:,}", values


def _explain_call(
    number: int, pair: tuple[Any, ...], records: tuple[Records, Records]
) -> tuple[str, str, tuple[str, str]]:
    seen = next(each for each in pair if each is not None)
    texts = [_MISSING if each is None else _describe_call(each, records[i]) for i, each in enumerate(pair)]
    if None in pair or repr(pair[0][:4]) != repr(pair[1][:4]):
        return f"call {number:,}", "the call", (texts[0], texts[1])
    path, values = _first_leaf(pair[0][4], pair[1][4])
    in_bar = seen[0] in BAR_CALLS
    field_name = records[0].layouts[seen[1]].name(path) if in_bar else ".".join(map(str, path))
    return f"call {number:,}, {texts[0]}", field_name, values


def _describe_call(call: tuple[Any, ...], records: Records) -> str:
    name, strategy, length, time, _ = call
    when = "before the first bar" if time is None else f"at {_time_text(time)} (bar {length:,})"
    return f"{name} of {records.layouts[strategy].strategy} {when}"


def verify(
    build: Build,
    engines: tuple[type[Any], type[Any]] = (LeanCerebro, bt.Cerebro),
    *,
    run: Callable[[Any], Any] = run_once,
) -> VerifyReport:
    """Run a backtest with two engines and compare every record.

    The first engine runs twice: with the strategy watched, and with the strategy as it is, since an engine may leave
    out what a strategy does not listen to; that run is compared in all it leaves behind.

    Args:
        build: makes a complete Cerebro of the class it is given, from fresh feeds; the strategy must give the same
            result each time.
        run: runs it and returns what `Cerebro.run` returned.
    """
    first, second = (record(build, engine, run=run) for engine in engines)
    plain = record(build, engines[0], run=run, watched=False)
    difference = compare(first, second)
    if difference is not None:
        difference = _fetch(difference, (first, second), build, engines, run, watched=True)
    else:
        difference = compare(plain, second, calls=False)
        if difference is not None:
            difference = _fetch(difference, (plain, second), build, engines, run, watched=False)
    counts = {name: first.counts[name] for name in _COUNTS}
    return VerifyReport(
        (first.engine, second.engine), counts, plain.fallback or first.fallback, difference, second.raised
    )


def _fetch(
    coarse: Difference,
    before: tuple[Records, Records],
    build: Build,
    engines: tuple[type[Any], type[Any]],
    run: Callable[[Any], Any],
    *,
    watched: bool,
) -> Difference:
    keep = (coarse.section, coarse.block)
    first = record(build, engines[0], run=run, watched=watched, keep=keep)
    second = record(build, engines[1], run=run, keep=keep)
    for old, new in zip(before, (first, second), strict=True):
        if _digest_of(old, keep) != _digest_of(new, keep):
            place = f"{coarse.section}: the strategy cannot be compared, since it does not give the same result twice"
            return Difference(place, "a second run", ("another", "another"), (old.engine, f"{new.engine} again"))
    return compare(first, second, calls=watched) or coarse


def _digest_of(records: Records, key: tuple[str, int]) -> list[bytes]:
    section = records.sections.get(key[0])
    return [] if section is None else section.digests[key[1] : key[1] + 1]


def _first_leaf(ours: Any, theirs: Any) -> tuple[tuple[Any, ...], tuple[str, str]]:
    """Return where two nested values differ first, and both values there."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and list(ours) == list(theirs):
        pairs: Iterable[tuple[Any, Any, Any]] = ((key, ours[key], theirs[key]) for key in ours)
    elif isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        pairs = ((i, a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True)))
    else:
        return (), (_short(ours), _short(theirs))
    for key, a, b in pairs:
        if repr(a) != repr(b):
            path, values = _first_leaf(a, b)
            return (key, *path), values
    return (), (_short(ours), _short(theirs))


def _short(value: Any, limit: int = 400) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def _time_text(time: Any) -> str:
    return bt.num2date(time).isoformat(sep=" ") if isinstance(time, float) and math.isfinite(time) else repr(time)
