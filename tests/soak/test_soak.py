"""The soak in short: an agent trades while every part is killed once, and no bar is lost or doubled."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from . import soak
from .soak import Sample, fit_slope, name_symbols, plan, write_market


@pytest.mark.slow
def test_parts_that_die_while_an_agent_trades_lose_and_double_no_bar(tmp_path: Path) -> None:
    told: list[str] = []
    wrong = soak.soak(
        tmp_path,
        symbols=name_symbols(10),
        days=2,
        bars_a_day=60,
        disturbances=8,
        slow=0,
        seed=26,  # every part is killed, the agent while the venue's clock is behind
        tell=told.append,
    )
    text = "\n".join(told)
    assert wrong == [], text
    assert "0 lost, 0 doubled" in text
    assert "disturbances: 8" in text
    assert "restarts: 4: {'agent': 1, 'exchange': 1, 'hub': 1, 'pubsub': 1}" in text
    assert "clock behind 1" in text


def test_the_market_has_the_bars_that_it_says(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    expected = write_market(tmp_path / "market.parquet", ["AAA", "AAB"], days=6, bars_a_day=5, seed=1)
    table = pq.read_table(tmp_path / "market.parquet").to_pandas()
    assert Counter((table.timestamp.astype("int64") + 60_000_000_000).tolist()) == expected
    assert len(expected) == 30
    assert set(table.timestamp.dt.day_of_week) == {0, 1, 2, 3, 4}


def test_bars_that_are_lost_doubled_or_made_up_are_found(tmp_path: Path) -> None:
    def judge(rows: dict[str, list[list[object]]]) -> tuple[list[str], str]:
        for path in tmp_path.glob("bars-*"):
            path.unlink()
        for name, lines in rows.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (tmp_path / f"bars-{name}.jsonl").write_text(text + '[3, [0, "torn')
        told: list[str] = []
        return soak._judge_bars(tmp_path, {1: 2, 2: 1}, told.append), told[0]

    assert judge({"1": [[1, [0, 1]], [2, [1]]]})[0] == []
    assert judge({"1": [[1, [0, 1]]]})[0] == ["1 bars are lost, of the slices [2]"]
    assert judge({"1": [[1, [0, 1]], [1, [1]], [2, [0]]]})[0] == ["1 bars came twice to one process"]
    assert judge({"1": [[1, [0, 1]], [2, [0]], [4, [0]]]})[0] == ["1 bars that were never produced"]
    wrong, text = judge({"1": [[1, [0, 1]]], "2": [[1, [0, 1]], [2, [0]]]})
    assert wrong == []
    assert "2 given again" in text


def test_parts_are_killed_in_the_first_half_and_every_plan_has_as_many_disturbances_as_asked_for() -> None:
    import random

    for seed in range(30):
        found = plan(random.Random(seed), 1000, 20, slow=2)
        assert len(found) == 22
        assert len({moment for moment, _ in found}) == 22
        assert [moment for moment, _ in found] == sorted(moment for moment, _ in found)
        kills = [(moment, name) for moment, name in found if name in soak.KILLS]
        assert "agent" in [name for _, name in kills]
        assert max(moment for moment, _ in kills) < 500
        assert max(moment for moment, _ in found) < 950
    assert plan(random.Random(1), 100, 0, slow=0) == []


def samples_of(lives: dict[str, list[Sample]]) -> Any:
    return SimpleNamespace(samples={(name, number): life for number, (name, life) in enumerate(lives.items())})


def test_memory_is_measured_from_where_the_histories_are_full() -> None:
    filling = [Sample(number, 100_000 + 10 * number, 19) for number in range(500)]
    flat = [Sample(number, 105_000 + number % 3, 19) for number in range(500, 1500)]
    told: list[str] = []
    assert soak._judge_processes(samples_of({"agent": filling + flat}), {"agent": 500}, 1950, told.append) == []
    assert "over the last 999 of 1,499 slices" in told[0]
    assert re.search(r"[+-]0 ± \d KB a week; threads 19 → 19", told[0]), told
    soak._judge_processes(samples_of({"agent": filling}), {"agent": 600}, 1950, told.append)
    assert "too short for a slope" in told[1]


def test_threads_that_pile_up_are_found_and_named() -> None:
    told: list[str] = []

    def judge(threads: list[int]) -> list[str]:
        life = [Sample(number, 1000, count, {"python": count}) for number, count in enumerate(threads)]
        return soak._judge_processes(samples_of({"hub": life}), {"hub": 10}, 1950, told.append)

    assert judge([5] * 100) == []
    assert judge([5, 6, 7, 6] * 25) == []  # some come and go
    assert judge([5] * 50 + [9] + [5] * 49) == []
    assert judge([5] * 60 + [6] * 40) == ["hub: threads pile up: 5 → 6"]
    assert "threads 5 → 6, most 6 (+1 python)" in told[-1]
    assert judge([5, 9, 5] + [5] * 9) == []  # too short to tell


def test_the_slope_and_its_interval_are_those_of_the_samples() -> None:
    noise = np.random.default_rng(3).normal(0.0, 50.0, 400)
    flat = [Sample(number * 10, int(100_000 + noise[number]), 5) for number in range(400)]
    rising = [Sample(each.slice, each.rss_kb + 2 * each.slice, 5) for each in flat]
    found = fit_slope(flat)
    assert found is not None
    assert abs(found.kb_a_slice) < 3 * found.plus_minus < 0.1
    found = fit_slope(rising)
    assert found is not None
    assert found.kb_a_slice == pytest.approx(2.0, abs=0.1)
    assert fit_slope(flat[:10]) is None
