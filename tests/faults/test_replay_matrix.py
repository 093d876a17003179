"""A seeded handful of the replay matrix; `python -m tests.faults.replay_matrix` kills 50 times."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.replay_matrix import FAULTS, draw_marks, fly_all, replay_all


@pytest.mark.slow
@pytest.mark.timeout(300)  # some processes, and the machine may be busy
@pytest.mark.parametrize("market", ["lockstep", "flowing"])
def test_sessions_of_a_trader_that_was_killed_replay_up_to_the_kill(tmp_path: Path, market: str) -> None:
    """In the market that does not wait, faults are on: resets, doubled events, answers that are lost."""
    [marks] = draw_marks(1, 50_000, random.Random(2))
    assert len(marks) == 2
    faults = FAULTS if market == "flowing" else ()
    [flown] = fly_all(tmp_path, [marks], market=market, faults=faults)
    assert flown.failure == ""
    assert flown.kills >= 1
    assert (flown.struck > 3) == bool(faults)
    verdicts = list(replay_all(tmp_path))
    assert [verdict.wrong for verdict in verdicts if verdict.wrong] == []
    assert len(verdicts) == 3
    assert sum(verdict.is_cut for verdict in verdicts) == flown.kills
    # The script is placed once, whatever killed its trader: seven requests, a cancellation and a replacement.
    assert sum(verdict.decisions for verdict in verdicts) >= 9
