from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dry_work.backtest.grid import ParamSet, Space, parse_axes
from dry_work.backtest.heatmap import build_heatmap, build_html, write_html, write_picture
from dry_work.backtest.optimize import Stopwatch, Sweep, SweepResult, list_files, parse_split, rank_correlation
from dry_work.backtest.optimize_report import build_json, build_tables, write_results
from dry_work.backtest.run import BacktestSettings, run_backtest
from dry_work.backtest.sweep_store import SweepStore
from dry_work.backtest.sweep_task import METRICS, Evaluator, Figures, SweepRow
from dry_work.cli.optimize import _METRICS
from dry_work.engine.agents import load_agent
from dry_work.errors import ConfigError
from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.recorded import Recording

SYMBOLS = ("SPY", "BTC/USD")
AGENT = "agents.sma_cross:SmaCross"


def figures(value: float, *, sharpe: float | None = None, fills: int = 4) -> Figures:
    return Figures(
        total_return=value,
        sharpe=sharpe,
        sortino=None,
        calmar=2.0,
        max_drawdown=0.1,
        trades=fills // 2,
        fills=fills,
        final_value=1e5 * (1 + value),
    )


@pytest.fixture(scope="module")
def recording() -> Recording:
    return synthetic_day(SYMBOLS)


def make_settings(**changes: Any) -> BacktestSettings:
    return BacktestSettings(symbols=SYMBOLS, agent=AGENT, params={}, **changes)


def make_sweep(recording: Recording, *, split: float | None = 0.7, **params: str) -> Sweep:
    agent = load_agent(AGENT)
    space = Space(agent.strategy, parse_axes(agent.strategy, params or {"fast_period": "5,10", "slow_period": "20,30"}))
    swept = [axis.name for axis in space.swept]
    return Sweep(make_settings(), recording, agent, space.list_sets(), swept=swept, split=split)


def collect(sweep: Sweep, rows: list[SweepRow], folder: Path, metric: str | None = None) -> SweepResult:
    store = SweepStore(folder / "out", sweep.identity)
    for row in rows:
        store.add(row)
    store.close()
    return sweep.collect(store, metric=metric, seconds=1.5)


def four_rows(sets: list[ParamSet]) -> list[SweepRow]:
    """The best in sample is the worst out of sample; one set does not trade, one fails."""
    keys = [one.key for one in sets]
    return [
        SweepRow(key=keys[0], seconds=1.0, whole=figures(0.0), inside=figures(0.01), outside=figures(-0.01)),
        SweepRow(key=keys[1], seconds=1.0, whole=figures(0.0), inside=figures(0.03), outside=figures(-0.03)),
        SweepRow(
            key=keys[2], seconds=1.0, whole=figures(0, fills=0), inside=figures(0, fills=0), outside=figures(0, fills=0)
        ),
        SweepRow(key=keys[3], seconds=1.0, error="ValueError: no (my.py, line 3)"),
    ]


def test_the_figures_in_sample_are_those_of_a_run_that_ends_at_the_split(recording: Recording) -> None:
    sweep = make_sweep(recording)
    assert sweep.slices == (273, 117)
    one = sweep.sets[0]
    row = Evaluator(sweep.job, recording).evaluate(one.key, one.texts)
    assert not row.error
    agent = load_agent(AGENT, one.texts)
    ended = run_backtest(make_settings(end_ns=sweep.split_ns), recording, agent)
    whole = run_backtest(make_settings(), recording, agent)
    assert row.inside is not None
    assert row.outside is not None
    assert row.whole is not None
    assert (row.inside.final_value, row.inside.fills) == (ended.equity.end, len(ended.fills))
    assert row.inside.max_drawdown == ended.equity.max_drawdown
    assert (row.whole.final_value, row.whole.fills) == (whole.equity.end, len(whole.fills))
    assert row.inside.fills + row.outside.fills == row.whole.fills
    assert row.inside.trades + row.outside.trades == row.whole.trades > 0
    assert row.outside.total_return == pytest.approx(whole.equity.end / ended.equity.end - 1, abs=1e-12)
    assert row.outside.final_value == row.whole.final_value


def test_without_a_split_there_is_one_part(recording: Recording) -> None:
    sweep = make_sweep(recording, split=None)
    row = Evaluator(sweep.job, recording).evaluate(sweep.sets[0].key, sweep.sets[0].texts)
    assert (row.inside, row.outside) == (None, None)
    assert row.chosen_by == row.whole is not None


def test_a_strategy_that_raises_or_leaves_is_a_row_with_its_line(recording: Recording, tmp_path: Path) -> None:
    path = tmp_path / "breaks.py"
    path.write_text(
        "import sys\nimport backtrader as bt\nclass Breaks(bt.Strategy):\n"
        "    params = (('how', 1),)\n    def next(self):\n"
        "        if self.p.how == 1:\n            raise ValueError('no\\nsecond line')\n"
        "        if self.p.how == 2:\n            sys.exit('leaves')\n"
    )
    agent = load_agent(str(path))
    job = msgspec.structs.replace(make_sweep(recording).job, agent=str(path), source_digest=agent.source_digest)
    evaluator = Evaluator(job, recording)
    assert evaluator.evaluate("a", {"how": "1"}).error == "ValueError: no (breaks.py, line 7)"
    assert evaluator.evaluate("b", {"how": "2"}).error == "SystemExit: leaves (breaks.py, line 9)"
    fine = evaluator.evaluate("c", {"how": "3"})
    assert not fine.error
    assert fine.inside is not None
    assert fine.inside.fills == 0
    path.write_text(path.read_text() + "\n# changed\n")
    with pytest.raises(ConfigError, match="its file is not the one that the sweep was started with"):
        Evaluator(job, recording)


def test_indicators_that_eat_all_bars_are_an_error_of_their_set(recording: Recording, tmp_path: Path) -> None:
    path = tmp_path / "long.py"
    path.write_text(
        "import backtrader as bt\nclass Long(bt.Strategy):\n    params = (('period', 5),)\n"
        "    def __init__(self):\n        self.sma = bt.ind.SMA(period=self.p.period)\n"
    )
    agent = load_agent(str(path))
    job = msgspec.structs.replace(make_sweep(recording).job, agent=str(path), source_digest=agent.source_digest)
    evaluator = Evaluator(job, recording)
    assert not evaluator.evaluate("a", {"period": "20"}).error
    assert not evaluator.evaluate("b", {"period": "350"}).error  # called for the first time after the split
    assert "its indicators need 5,000 bars" in evaluator.evaluate("c", {"period": "5000"}).error


def test_the_best_in_sample_comes_first_and_failures_last(recording: Recording, tmp_path: Path) -> None:
    sweep = make_sweep(recording)
    result = collect(sweep, four_rows(sweep.sets), tmp_path, "return")
    assert [dict(outcome.params) for outcome in result.outcomes] == [
        {"fast_period": 5, "slow_period": 30},
        {"fast_period": 5, "slow_period": 20},
        {"fast_period": 10, "slow_period": 20},
        {"fast_period": 10, "slow_period": 30},
    ]
    assert result.best is result.outcomes[0]
    assert (result.failed, result.compared, result.out_rank) == (1, 2, 2)
    assert result.notes == (
        "1 set failed; the first (fast_period=10, slow_period=30): ValueError: no (my.py, line 3)",
        "1 set did not trade in sample: ranked last",
    )


def test_a_metric_that_no_part_has_gives_way_to_the_return(recording: Recording, tmp_path: Path) -> None:
    sweep = make_sweep(recording)
    result = collect(sweep, four_rows(sweep.sets), tmp_path)
    assert result.metric == "return"
    assert (
        "sharpe is not defined for any set in sample (it needs two days that differ): ranked by return" in result.notes
    )
    rows = [
        msgspec.structs.replace(row, inside=row.inside and figures(0.0, sharpe=1.0)) for row in four_rows(sweep.sets)
    ]
    assert collect(sweep, rows, tmp_path / "2").metric == "return"
    asked = collect(sweep, rows, tmp_path / "3", "sharpe")
    assert asked.metric == "sharpe"
    assert any("not defined for any set out of sample" in note for note in asked.notes)
    assert asked.rank_correlation is None
    with pytest.raises(ConfigError, match="--metric 'luck': expected one of sharpe, sortino, calmar, return, drawdown"):
        collect(sweep, rows, tmp_path / "4", "luck")


def test_the_command_line_offers_the_metrics_there_are() -> None:
    assert _METRICS == METRICS


def test_the_rank_correlation_is_spearmans() -> None:
    chance = np.random.default_rng(5)
    for _ in range(20):
        first, second = chance.integers(0, 8, 30), chance.integers(0, 8, 30) + 0.5
        expected = pd.Series(first).rank().corr(pd.Series(second).rank())
        assert rank_correlation(first, second) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation([1, 2, 3], [10, 20, 40]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [5, 5, 5]) is None


@pytest.mark.parametrize(("text", "value"), [("0.7", 0.7), ("none", None), ("0", None), ("off", None), (".25", 0.25)])
def test_a_split_is_a_part_or_none(text: str, value: float | None) -> None:
    assert parse_split(text) == value


@pytest.mark.parametrize("text", ["1", "-0.1", "70%", "half", "nan"])
def test_a_split_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected a part above 0 and below 1, such as 0.7, or none"):
        parse_split(text)


def test_a_split_that_leaves_no_slice_is_refused(recording: Recording) -> None:
    with pytest.raises(ConfigError, match=r"--split 0.001: of 390 slices none is left before the split"):
        make_sweep(recording, split=0.001)


def test_the_files_of_a_strategy_are_its_own_and_those_it_imports_beside_it(tmp_path: Path) -> None:
    (tmp_path / "sweep_helper_of_test.py").write_text("PERIOD = 3\n")
    (tmp_path / "unrelated.py").write_text("")
    path = tmp_path / "mine.py"
    path.write_text("import backtrader as bt\nimport sweep_helper_of_test\nclass Mine(bt.Strategy):\n    pass\n")
    before = list(sys.path)
    try:
        agent = load_agent(str(path))
        assert [file.name for file in list_files(agent)] == ["mine.py", "sweep_helper_of_test.py"]
    finally:
        sys.path[:] = before
        sys.modules.pop("sweep_helper_of_test", None)


def test_the_table_shows_both_sides_and_what_to_make_of_them(recording: Recording, tmp_path: Path) -> None:
    sweep = make_sweep(recording)
    rows = four_rows(sweep.sets)
    rows[2] = SweepRow(key=rows[2].key, seconds=1.0, whole=figures(0.0), inside=figures(0.02), outside=figures(-0.02))
    result = collect(sweep, rows, tmp_path, "return")
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    shown = build_tables(result, width=100)
    for part in shown:
        console.print(part)
    console.file.close()
    text = console.export_text()
    assert "Best of 4 sets by return in sample" in text
    assert "+3.00%" in text
    assert "-3.00%" in text
    lines = [part for part in shown if isinstance(part, str)]
    assert lines[0].startswith("in sample: 273 slices up to 2024-06-11 18:03 UTC; out of sample: the 117 after it")
    assert lines[1].startswith("rank correlation of return in and out of sample: -1.00 over 3 sets (near 0 or below")
    assert lines[2] == "the best set in sample is number 3 of 3 out of sample"
    assert lines[3].startswith("note: 1 set failed")


def test_json_and_parquet_hold_every_set(recording: Recording, tmp_path: Path) -> None:
    sweep = make_sweep(recording)
    result = collect(sweep, four_rows(sweep.sets), tmp_path, "return")
    shown = json.loads(json.dumps(build_json(result), allow_nan=False))
    assert shown["best"]["params"] == {"fast_period": 5, "slow_period": 30}
    assert shown["best"]["in_sample"]["return"] == 0.03
    assert shown["best"]["out_of_sample"]["return"] == -0.03
    assert (shown["sets"], shown["done"], shown["failed"]) == (4, 4, 1)
    write_results(tmp_path / "results.parquet", result)
    table = pq.read_table(tmp_path / "results.parquet")
    assert table.column("param_fast_period").to_pylist() == [5, 5, 10, 10]
    assert table.column("in_return").to_pylist() == [0.03, 0.01, 0.0, None]
    assert table.column("out_fills").to_pylist() == [4, 4, 0, None]
    assert table.column("error").to_pylist() == [None, None, None, "ValueError: no (my.py, line 3)"]
    assert {"return", "sharpe", "max_drawdown", "trades", "final_value", "seconds"} <= set(table.column_names)
    facts = json.loads(table.schema.metadata[b"dry_work"])
    assert facts["fingerprint"] == recording.fingerprint


@pytest.mark.parametrize(
    ("params", "columns"),
    [
        ({"cash_share": "0.1,0.2"}, [0.1, 0.2]),
        ({"fast_period": "5,10"}, [5, 10]),
    ],
)
def test_a_sweep_of_one_parameter_has_a_map_of_one_row(
    recording: Recording, tmp_path: Path, params: dict[str, str], columns: list[Any]
) -> None:
    sweep = make_sweep(recording, **params)
    rows = [
        SweepRow(key=one.key, seconds=1, whole=figures(0.1), inside=figures(0.1), outside=figures(0.2))
        for one in sweep.sets
    ]
    heatmap = build_heatmap(collect(sweep, rows, tmp_path, "return"))
    assert (heatmap.y, heatmap.rows) == ("", ("",))
    assert heatmap.columns == tuple(f"{value:g}" for value in columns)
    assert build_html(heatmap).count("<rect") == 2 * (2 + 1)
    write_picture(tmp_path / "map.png", heatmap)
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_a_cell_shows_out_of_sample_the_set_that_was_chosen_in_sample(recording: Recording, tmp_path: Path) -> None:
    sweep = make_sweep(recording, fast_period="5,10", slow_period="20,30,40", cash_share="0.1,0.2")
    rows = []
    for one in sweep.sets:
        better_inside = one.values["cash_share"] == 0.1
        inside, outside = (0.05, -0.04) if better_inside else (0.01, 0.09)
        rows.append(
            SweepRow(key=one.key, seconds=1, whole=figures(0), inside=figures(inside), outside=figures(outside))
        )
    result = collect(sweep, rows, tmp_path, "return")
    heatmap = build_heatmap(result, ["slow_period", "fast_period"])
    assert (heatmap.columns, heatmap.rows, heatmap.others) == (("20", "30", "40"), ("5", "10"), ("cash_share",))
    assert len(heatmap.cells) == 6
    assert {(cell.inside, cell.outside) for cell in heatmap.cells.values()} == {(0.05, -0.04)}
    page = build_html(heatmap, note="a note < b")
    assert "fast_period=5, slow_period=20, cash_share=0.1: +5.00% in sample, -4.00% out of sample" in page
    assert "a note &lt; b" in page
    assert "http" not in page
    write_html(tmp_path / "map.html", heatmap)
    assert (tmp_path / "map.html").stat().st_size > 2000
    for axes, message in (
        (["speed"], "--axes speed: expected swept parameters: fast_period, slow_period, cash_share"),
        (["fast_period"] * 2, "expected one or two different parameters"),
    ):
        with pytest.raises(ConfigError) as caught:
            build_heatmap(result, axes)
        assert message in str(caught.value)


def test_many_numbers_on_an_axis_are_joined_in_bins(recording: Recording, tmp_path: Path) -> None:
    sweep = make_sweep(recording, fast_period="1:100:1", slow_period="20,30")
    rows = [
        SweepRow(key=one.key, seconds=1, whole=figures(0), inside=figures(number / 1e4), outside=figures(-number / 1e4))
        for number, one in enumerate(sweep.sets)
    ]
    heatmap = build_heatmap(collect(sweep, rows, tmp_path, "return"))
    assert (len(heatmap.columns), len(heatmap.rows)) == (24, 2)
    assert len(heatmap.cells) == 48
    assert heatmap.best == (23, 1)
    assert math.isclose(heatmap.limit, 0.0199, rel_tol=0.05)


def test_the_time_left_comes_from_the_sets_of_this_start() -> None:
    now = [0.0]
    watch = Stopwatch(100, 40, clock=lambda: now[0])
    assert watch.left_s(40) is None
    now[0] = 20.0
    assert watch.left_s(50) == 100.0
    assert watch.seconds == 20.0
