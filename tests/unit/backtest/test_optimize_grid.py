from __future__ import annotations

from typing import Any

import backtrader as bt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.backtest.grid import Constraint, Space, parse_axes
from dry_work.errors import ConfigError


class Example(bt.Strategy):
    params = (
        ("fast", 10),
        ("slow", 30),
        ("share", 0.15),
        ("kind", "sma"),
        ("session", "09:30"),
        ("on", True),
        ("limit", None),
        ("levels", [1, 2]),
    )


def values_of(text: str) -> list[Any]:
    name, _, value = text.partition("=")
    [axis] = parse_axes(Example, {name: value})
    return list(axis.values)


def space(*entries: str, constraints: tuple[str, ...] = ()) -> Space:
    return Space(Example, parse_axes(Example, dict(entry.split("=", 1) for entry in entries)), constraints)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("fast=5:50:5", [5, 10, 15, 20, 25, 30, 35, 40, 45, 50]),
        ("fast=5:9:3", [5, 8]),
        ("fast=9:5:-2", [9, 7, 5]),
        ("fast=-2:2:2", [-2, 0, 2]),
        ("fast=5:5:1", [5]),
        ("fast=3,1,3,2", [3, 1, 2]),
        ("fast=7", [7]),
        ("share=0.1:0.7:0.1", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        ("share=1e-4:3e-4:1e-4", [0.0001, 0.0002, 0.0003]),
        ("share=1:3:1", [1.0, 2.0, 3.0]),
        ("kind=sma, ema", ["sma", "ema"]),
        ("kind='a,b',c", ["a,b", "c"]),
        ("session=09:30,10:00", ["09:30", "10:00"]),
        ("on=true,false", [True, False]),
        ("limit=1:2:0.5", [1, 1.5, 2]),
        ("limit=none,5", [None, 5]),
        ("levels=[1, 2],[3]", [[1, 2], [3]]),
        ("levels=[1, 2]", [[1, 2]]),
    ],
)
def test_ranges_and_lists_have_exact_values_of_the_defaults_type(text: str, values: list[Any]) -> None:
    found = values_of(text)
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed=1:2:1", "Example has no parameter 'speed'; its parameters: fast, slow"),
        ("fast=5:50:0", "-p fast=5:50:0: the step is 0"),
        ("fast=50:5:5", "the range is empty: the step 5 leads away from 5"),
        ("fast=5:50:-5", "the range is empty: the step -5 leads away from 50"),
        ("fast=50:5", "the range is empty: expected an end above 50"),
        ("fast=5:x:1", "-p fast=5:x:1: expected begin:end:step in numbers, for example 5:50:5"),
        ("fast=5:50:", "expected begin:end:step in numbers"),
        ("fast=5:inf:1", "expected begin:end:step in numbers"),
        ("fast=1:2:0.5", "-p fast=1.5: expected a whole number, as in its default 10"),
        ("fast=1:2:3:4", "-p fast=1:2:3:4: expected a whole number"),
        ("fast=5,,6", "-p fast=5,,6: has an empty value"),
        ("fast=5,six", "-p fast=six: expected a whole number"),
        ("fast=1:1e9:1", "has 1,000,000,000 values; expected a longer step"),
        ("kind=5:50:5", "a range needs a numeric default, and that of kind is 'sma'; give a list"),
        ("on=0:1:1", "a range needs a numeric default, and that of on is True"),
    ],
)
def test_a_mistake_in_a_range_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        values_of(text)
    assert message in str(caught.value)


@given(begin=st.integers(-1000, 1000), count=st.integers(1, 50), step=st.integers(1, 99), digits=st.integers(0, 6))
def test_a_decimal_range_reaches_its_end_without_drift(begin: int, count: int, step: int, digits: int) -> None:
    unit = 10**digits
    end = begin + step * (count - 1)
    text = ":".join(f"{number / unit:.{digits}f}" for number in (begin, end, step))
    assert values_of(f"share={text}") == [(begin + step * k) / unit for k in range(count)]


def test_a_grid_lists_every_combination_with_the_last_parameter_fastest() -> None:
    sets = space("fast=1,2", "kind=a,b", "slow=9").list_sets()
    assert [one.values for one in sets] == [
        {"fast": 1, "kind": "a", "slow": 9},
        {"fast": 1, "kind": "b", "slow": 9},
        {"fast": 2, "kind": "a", "slow": 9},
        {"fast": 2, "kind": "b", "slow": 9},
    ]
    assert [axis.name for axis in space("fast=1,2", "slow=9").swept] == ["fast"]
    assert len({one.key for one in sets}) == 4


def test_equal_values_have_equal_keys_however_they_are_written() -> None:
    first = space("share=0.10,0.2", "fast=5").list_sets()
    second = space("fast=5", "share=0.1:0.2:0.1").list_sets()
    assert [one.key for one in first] == [one.key for one in second]


def test_a_constraint_leaves_sets_out_and_may_speak_of_defaults() -> None:
    sets = space("fast=10:50:10", constraints=("fast < slow", "fast != 20")).list_sets()
    assert [one.values["fast"] for one in sets] == [10]
    with pytest.raises(ConfigError, match="no parameter set of 5 meets --constraint 'fast>slow' and"):
        space("fast=1:5:1", constraints=("fast>slow", "fast>0")).list_sets()


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("fast < slow", True),
        ("slow - fast >= 20 and not kind == 'ema'", True),
        ("0 < fast < 10", False),
        ("slow % fast == 0 or on", True),
        ("max(fast, slow) / min(fast, slow) == 3", True),
        ("-abs(fast) == -10", True),
        ("slow // fast * share > 1", False),
    ],
)
def test_a_constraint_compares_and_calculates(text: str, holds: bool) -> None:
    values = {"fast": 10, "slow": 30, "kind": "sma", "on": False, "share": 0.15}
    assert Constraint(text, list(values)).holds(values) is holds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast <", "no expression"),
        ("fast = 3", "no expression"),
        ("fasst < slow", "no parameter 'fasst'; there are fast, slow"),
        ("__import__('os').system('x')", "is not allowed"),
        ("fast.real > 1", "'fast.real' is not allowed"),
        ("[x for x in (1,)]", "is not allowed"),
        ("fast ** 99999999", "is not allowed"),
        ("(lambda: 1)()", "is not allowed"),
        ("max()", "is not allowed"),
        ("-" * 100_000 + "1", "nested too deeply"),
    ],
)
def test_a_constraint_that_is_none_or_wants_more_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Constraint(text, ["fast", "slow"])
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_constraint_that_cannot_be_worked_out_names_the_set() -> None:
    with pytest.raises(ConfigError, match="cannot be worked out for fast=0: integer"):
        Constraint("1 // fast > 0", ["fast"]).holds({"fast": 0})
    with pytest.raises(ConfigError, match="arithmetic is for numbers"):
        Constraint("fast * 'x' == 'xx'", ["fast"]).holds({"fast": 10**9})


def test_absurd_sizes_are_refused_with_their_count_and_can_be_allowed() -> None:
    grid = space("fast=1:200:1", "slow=1:200:1")
    with pytest.raises(ConfigError, match="the grid has 40,000 parameter sets, more than --max-sets 10,000"):
        grid.list_sets()
    assert len(grid.list_sets(most=40_000)) == 40_000
    assert len(space("fast=1:200:1", "slow=1:200:1", constraints=("fast+slow<20",)).list_sets()) == 171
    with pytest.raises(ConfigError, match=r"2,000,000 parameter sets before its constraints"):
        space("fast=1:2000:1", "slow=1:1000:1", constraints=("fast<3",)).list_sets()
    with pytest.raises(ConfigError, match="--random 20,000: more than --max-sets 10,000"):
        grid.draw_sets(20_000, seed=0)


def test_nothing_to_sweep_is_said() -> None:
    for entries in ((), ("fast=5",), ("fast=5:5:1", "slow=9")):
        with pytest.raises(ConfigError, match="nothing to optimise: every parameter has one value"):
            space(*entries).list_sets()


def test_random_sets_differ_meet_the_constraints_and_repeat_with_the_seed() -> None:
    grid = space("fast=1:100:1", "slow=1:100:1", constraints=("fast<slow",))
    sets, note = grid.draw_sets(50, seed=3)
    assert not note
    assert len({one.key for one in sets}) == 50
    assert all(one.values["fast"] < one.values["slow"] for one in sets)
    assert [one.key for one in grid.draw_sets(50, seed=3)[0]] == [one.key for one in sets]
    assert [one.key for one in grid.draw_sets(50, seed=4)[0]] != [one.key for one in sets]


def test_random_sets_of_a_range_without_a_step_lie_between_its_ends() -> None:
    sets, note = space("fast=2:60", "share=0.05:0.5").draw_sets(200, seed=1)
    assert not note
    assert {type(one.values["fast"]) for one in sets} == {int}
    assert min(one.values["fast"] for one in sets) < 8
    assert max(one.values["fast"] for one in sets) > 54
    assert all(2 <= one.values["fast"] <= 60 and 0.05 <= one.values["share"] <= 0.5 for one in sets)
    assert len({one.values["share"] for one in sets}) == 200
    with pytest.raises(ConfigError, match="-p fast=2:60: a range without a step needs --random N"):
        space("fast=2:60").list_sets()


def test_fewer_random_sets_than_asked_for_are_said() -> None:
    sets, note = space("fast=1,2,3").draw_sets(10, seed=0)
    assert len(sets) == 3
    assert note == "the grid has 3 sets, fewer than --random 10: all are tried"
    sets, note = space("fast=1:4").draw_sets(10, seed=0)
    assert sorted(one.values["fast"] for one in sets) == [1, 2, 3, 4]
    assert note == "found 4 different sets for --random 10"
    with pytest.raises(ConfigError, match="no parameter set found that meets --constraint 'fast>9'"):
        space("fast=1:4", constraints=("fast>9",)).draw_sets(2, seed=0)
