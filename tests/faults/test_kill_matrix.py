"""A seeded handful of the kill matrix; `make kill-matrix` prints all of it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.faults.kill_matrix import Case, KillMatrix, boundary_cases, moment_cases, pair_cases
from tests.faults.kill_run import compare_told

SEED = int(os.environ.get("DRY_WORK_KILL_SEED", "20131018"))
# One of each kind of boundary at which a program that is not careful loses or doubles something.
CHOSEN = "|".join(
    (
        "journal intents .*after #2",
        "POST /v2/orders sent #1",
        "POST /v2/orders before #4",
        "PATCH .* sent #1",
        "DELETE /v2.* sent #1",
        "file strategy.json before #4",
        "journal fills before #3",
        "event partial_fill before #2$",
        "notify_order .*Partial after #2$",
    )
)


@pytest.mark.slow
@pytest.mark.timeout(600)  # many processes, and the machine may be busy
def test_a_trader_that_is_killed_and_started_again_ends_as_one_that_was_not(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    with KillMatrix(tmp_path) as matrix:
        calm, flowing = matrix.peace("lockstep"), matrix.peace("flowing")
        cases: list[Case] = [
            *boundary_cases(calm, "lockstep", CHOSEN),
            *pair_cases(calm, "lockstep", 1, rng),
            *moment_cases(flowing, "flowing", 2, rng),
        ]
        verdicts = matrix.judge(cases)
    wrong = [
        f"{verdict.case}\n{verdict.folder}\n    " + "\n    ".join(verdict.wrong)
        for verdict in verdicts
        if verdict.wrong
    ]
    assert not wrong, "\n".join(wrong)
    assert sum(len(verdict.kills) for verdict in verdicts) >= len(CHOSEN.split("|"))


def test_what_was_told_twice_not_at_all_or_in_another_order_is_found() -> None:
    one, two, three = (
        ["buy 5 Limit", status, size, 9.0] for status, size in (("Accepted", 0), ("Partial", 2), ("Completed", 5))
    )
    expected = [one, two, three]
    assert compare_told(expected, expected, exact=True) == []
    assert compare_told([one, three], expected, exact=True) == ["not told: buy 5 Limit Partial 2 @ 9"]
    assert compare_told([one, three], expected, exact=False) == []
    assert compare_told([one, two], expected, exact=False) == ["not told: buy 5 Limit Completed 5 @ 9"]
    assert compare_told([one, one, two, three], expected, exact=True) == [
        "told 2 times instead of 1: buy 5 Limit Accepted @ 9"
    ]
    assert compare_told([two, one, three], expected, exact=True)[0].startswith("told in another order")
