from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dry_work.cli import cli
from dry_work.cli.backtest import build_backtest_settings
from dry_work.cli.options import Choices
from dry_work.errors import ConfigError


@pytest.fixture(autouse=True)
def folder(clean_environment: Path) -> Path:
    (clean_environment / "symbols.txt").write_text("SPY\nBTC/USD\n")
    return clean_environment


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, ["backtest", *args])


def test_the_result_is_one_json_object_in_the_last_line() -> None:
    result = run("--json", "-p", "fast_period=5")
    assert result.exit_code == 0
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["mode"], found["engine"], found["params"]["fast_period"]) == ("backtest", "lean", 5)
    assert found["fills"]
    assert found["assumptions"]["commission"] == "none"
    assert found["metrics"]["trades"]["closed"] > 0
    assert len(found["fingerprint"]) == 64


def test_report_and_picture_are_written_and_named(folder: Path) -> None:
    result = run("--report", "r.html", "--plot", "p.png")
    assert result.exit_code == 0
    assert "report: r.html" in result.stdout
    assert "picture: p.png" in result.stdout
    assert "<html" in (folder / "r.html").read_text(encoding="utf-8")[:200].lower()
    assert (folder / "p.png").read_bytes().startswith(b"\x89PNG")


def test_the_engines_are_compared_on_demand() -> None:
    result = run("--verify")
    assert result.exit_code == 0
    assert "verify: identical" in result.stdout


def test_what_the_strategy_raises_is_shown_and_ends_with_one(folder: Path) -> None:
    (folder / "broken.py").write_text(
        "import backtrader as bt\n\n\nclass Broken(bt.Strategy):\n    def next(self):\n        self.no_such_thing\n"
    )
    result = run("--agent", "broken.py:Broken")
    assert result.exit_code == 1
    assert "the strategy raised AttributeError" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--engine", "fast"), "--engine 'fast': expected lean or stock"),
        (("--source", "candles"), "--source 'candles': expected auto, bars, trades, quotes"),
        (("--start", "soon"), "--start 'soon': expected a date or a time such as 2024-01-02"),
        (("--start", "2024-06-12", "--end", "2024-06-11"), "--start 2024-06-12 is not before --end 2024-06-11"),
        (("--start", "2025-01-01"), "SPY has no bars in the period asked for; it has them from 2024-06-11T13:30:00Z"),
        (("--commission", "5"), "--commission '5': expected a part of the value such as 0.1%, or 0.005/share"),
        (("--resample", "90s"), "--resample 90s: the recorded bars are 1m long; expected a multiple of that"),
        (("--warmup", "390"), "--warmup 390: SPY has 390 bars, so that none is left to trade on"),
        (("--report", "nowhere/r.html"), "nowhere/r.html: there is no folder nowhere"),
        (("--data", "missing.parquet"), "missing.parquet: no such file or folder"),
    ],
)
def test_bad_input_is_one_sentence_and_ends_with_two(
    args: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from dry_work.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["backtest", *args])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_file_has_a_table_for_backtests_over_that_of_runs(folder: Path) -> None:
    (folder / "dry-work.toml").write_text(
        "[run]\ncash = 5000\n[run.params]\nfast_period = 7\nslow_period = 70\n"
        '[backtest]\ncommission = "0.1%"\n[backtest.params]\nfast_period = 9\n'
    )
    found = json.loads(run("--json", "-p", "slow_period=40").stdout.splitlines()[-1])
    assert found["equity"]["start"] == 5_000
    assert (found["params"]["fast_period"], found["params"]["slow_period"]) == (9, 40)
    assert found["assumptions"]["commission"] == "0.1 % of the value"


def test_a_setting_of_the_other_table_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dry_work.cli import main

    (folder / "dry-work.toml").write_text("[run]\nengine = 'lean'\n")
    with pytest.raises(SystemExit) as ended:
        main(["backtest"])
    assert ended.value.code == 2
    assert "[run] has no setting 'engine'" in capsys.readouterr().err


def test_an_end_that_is_a_date_is_in_the_period() -> None:
    settings = build_backtest_settings({"start": "2024-06-11", "end": "2024-06-11"})
    assert settings.start_ns is not None
    assert settings.end_ns == settings.start_ns + 86_400 * 10**9


def test_choices_take_options_first_and_then_the_tables_in_order() -> None:
    choices = Choices({"a": 1, "b": None, "c": ()}, {"a": 2, "b": 3}, {"b": 4, "c": "x", "d": 5})
    assert [choices.get(name, "none") for name in "abcde"] == [1, 3, "x", 5, "none"]
    assert choices.texts("c") == ("x",)
    with pytest.raises(ConfigError, match="d: expected a text or a list of texts, not 5"):
        choices.texts("d")
