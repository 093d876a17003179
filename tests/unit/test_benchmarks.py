"""The benchmarks run. Nothing here is about speed."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from benchmarks.__main__ import NAMES, main, run
from benchmarks.hub import count_cpu
from benchmarks.table import Row, format_number, format_table, median, percentile

# Rows of each benchmark that must be there, by the beginning of what they say.
EXPECTED = {
    "latency": [
        "bar in → `next` begins, p50: 1 symbol",
        "bar in → `next` begins, p99: 1 symbol",
        "bar in → turn over, p50: 3 symbols",
    ],
    "idle": ["idle CPU, 3 feeds"],
    "pubsub": ["Pub/Sub: messages, published one by one", "Pub/Sub: messages, 500", "Pub/Sub: bars into slices"],
    "startup": ["`dry-work run --local` → first `next`", "`dry-work --help`"],
    "slices": ["lock-step, 1 symbol", "lock-step, 4 symbols", "lock-step, 4 symbols: CPU of a slice", "– of which "],
    "backtest": ["backtest: 1 × 2,000 bars", "backtest: 1 × 2,000 bars: peak memory", "backtest: 3 × 500 bars"],
    "memory": ["memory that stays of a bar"],
    "flight": ["CPU of a local run of 2 symbols, flight recorded", "CPU of recording a slice"],
    "hub": [
        "hub, WebSocket JSON, 500 in, 3 clients: delivered",
        "hub, WebSocket MessagePack, 500 in, 3 clients",
        "hub, gRPC, 500 in",
        "hub, NATS, 500 in",
        "hub, Redis, 500 in",
        "hub, WebSocket JSON, 2 clients beside one that never reads",
        "hub, WebSocket JSON: memory with 20 idle clients",
    ],
    "sweep": ["sweep, 20 sets × 300 bars: two cores", "sweep, 20 sets × 300 bars on two cores: lean"],
}


@pytest.mark.parametrize("name", NAMES)
def test_each_benchmark_gives_its_rows_with_finite_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    # Google's emulator has a contract suite of its own; here it would only take time to start.
    monkeypatch.setattr("benchmarks.emulator.find_launcher", lambda: None)
    rows = run([name], tiny=True)
    for beginning in EXPECTED[name]:
        assert any(row.what.startswith(beginning) for row in rows), beginning
    for row in rows:
        assert math.isfinite(row.ours)
        assert row.ours >= 0
        assert row.other is None or math.isfinite(row.other)
    assert format_table(rows).count("\n") == len(rows) + 1


def test_a_round_too_short_for_a_tick_of_cpu_counts_none() -> None:
    before, after = (SimpleNamespace(user=1.1, system=0.3), SimpleNamespace(user=1.1, system=0.3))
    assert count_cpu(before, after) == 0.0
    assert before.user + before.system - after.user - after.system != 0.0  # what is left of floats
    assert count_cpu(before, SimpleNamespace(user=1.12, system=0.31)) == 0.03


def test_an_unknown_benchmark_is_refused_with_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["latencies"])
    assert ended.value.code == 2
    assert "'latencies'; there are latency, idle" in capsys.readouterr().err


def test_a_gain_above_one_is_better_whatever_the_unit() -> None:
    assert Row(what="", ours=1.0, unit="ms", other=4.0).gain == 4.0
    assert Row(what="", ours=8.0, unit="/s", other=4.0, higher_is_better=True).gain == 2.0
    assert Row(what="", ours=8.0, unit="/s").gain is None
    assert Row(what="", ours=0.0, unit="ms", other=1.0).gain is None


def test_the_gain_of_pairs_of_rounds_is_their_median_and_the_table_shows_the_worst_and_the_best() -> None:
    row = Row(what="a", ours=2.0, unit="ms", other=3.0, other_name="stock", gains=(4.0, 1.9, 2.5))
    assert row.gain == 2.5
    assert "2.50× (1.90 to 4.00)" in format_table([row])
    assert "×" not in format_table([Row(what="a", ours=2.0, unit="ms")])


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([7.0], 0.99) == 7.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)
    assert median([3.0, 1.0, 2.0]) == 2.0


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.0634, "0.0634"), (2.345, "2.35"), (185.2, "185"), (12345.6, "12,346")]
)
def test_numbers_have_three_figures(value: float, text: str) -> None:
    assert format_number(value) == text
