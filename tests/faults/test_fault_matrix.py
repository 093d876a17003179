"""A seeded handful of the fault matrix; `make fault-matrix` prints all of it."""

from __future__ import annotations

import os
import random

import pytest

from tests.faults.fault_matrix import KINDS, Case, build_cases, judge
from tests.faults.fault_run import Ending, compare

SEED = int(os.environ.get("DRY_WORK_FAULT_SEED", "20131018"))
SLICES = 28
CHOSEN = (
    "504 after acceptance", "dropped answer", "stream reset", "duplicated events", "dropped events", "busts",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)  # they wait, and longer on a busy machine
def test_a_run_with_faults_ends_as_one_without() -> None:
    by_name = {kind.name: kind for kind in KINDS}
    rng = random.Random(SEED)
    chosen = [(name,) for name in CHOSEN] + [tuple(rng.sample(CHOSEN, 2)) for _ in range(2)]
    cases = [Case(tuple(by_name[name] for name in names), SEED, slices=SLICES) for names in chosen]
    verdicts = judge(cases, jobs=4)  # most of their time they wait
    wrong = [f"{verdict.case}\n    " + "\n    ".join(verdict.wrong) for verdict in verdicts if verdict.wrong]
    assert not wrong, "\n".join(wrong)
    assert all(verdict.ending.struck or verdict.case.has_busts for verdict in verdicts)
    assert sum(verdict.ending.orders for verdict in verdicts) > 200


def test_the_matrix_has_each_fault_alone_and_the_pairs_that_were_asked_for() -> None:
    cases = build_cases(pairs=7, seed=3)
    assert [case.kinds for case in cases[: len(KINDS)]] == [(kind,) for kind in KINDS]
    assert [len({kind.name for kind in case.kinds}) for case in cases[len(KINDS) :]] == [2] * 7
    assert cases == build_cases(pairs=7, seed=3)


def test_a_difference_anywhere_is_found() -> None:
    peace = Ending(venue_orders=["a"], venue_books="x", broker_books="x", told={"order 1": ["Accepted"]})
    assert compare(peace, peace) == []
    for changes in (
        {"venue_orders": []},
        {"venue_orders": ["a", "a"]},
        {"venue_books": "y", "broker_books": "y"},
        {"broker_books": "y"},
        {"journal_fills": {"SPY buy": "1"}},
        {"told": {}},
        {"told": {"order 1": ["Accepted", "Accepted"]}},
        {"failure": "it died"},
    ):
        ending = Ending(**{**peace.__dict__, **changes})
        assert compare(ending, peace), changes
