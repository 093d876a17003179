"""`dry-work optimize` as a process: results, resuming after kill -9, signals, mistakes."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from dry_work.cli import cli
from dry_work.errors import DryWorkError

DEADLINE_S = 60.0

SLOW = """
import os, time
import backtrader as bt

class Slow(bt.Strategy):
    params = (("number", 0), ("seconds", 0.1), ("folder", ""))

    def __init__(self):
        self.sma = bt.ind.SMA(period=5)

    def next(self):
        if len(self) == 10:
            self.buy(size=1 + self.p.number)

    def stop(self):
        if self.p.folder:
            open(os.path.join(self.p.folder, str(os.getpid())), "w").close()
        time.sleep(self.p.seconds)
"""
COMMAND = ("--agent", "slow.py", "-p", "number=0:19:1", "-p", "folder=pids", "--jobs", "2")


@pytest.fixture(autouse=True)
def folder(clean_environment: Path) -> Path:
    (clean_environment / "symbols.txt").write_text("SPY\n")
    (clean_environment / "slow.py").write_text(SLOW)
    (clean_environment / "pids").mkdir()
    return clean_environment


def optimize(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli, ["optimize", *arguments])
    if isinstance(done.exception, DryWorkError):
        assert code == 2, done.exception
        return str(done.exception)
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, limit: int | None = None) -> subprocess.Popen[str]:
        def limit_files() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        process = subprocess.Popen(
            [sys.executable, "-m", "dry_work", "optimize", *arguments],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=limit_files,
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=DEADLINE_S)


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def count_lines(folder: Path) -> int:
    """Return how many results were written."""
    return sum(len(path.read_bytes().splitlines()) - 1 for path in (folder / "optimize").glob("progress-*.jsonl"))


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_sweep_of_the_bundled_agent_writes_its_results(folder: Path) -> None:
    output = optimize(
        "-p", "fast_period=5:15:5", "-p", "slow_period=10:30:10", "--constraint", "fast_period < slow_period",
        "--plot", "map.png", "--json",
    )  # fmt: skip
    result = json.loads(output.splitlines()[-1])
    assert (result["sets"], result["done"], result["failed"]) == (7, 7, 0)
    assert result["metric"] == "return"  # a day has no Sharpe ratio
    assert result["slices_in_sample"] == 273
    table = pq.read_table(folder / result["results"])
    assert table.num_rows == 7
    inside = table.column("in_return").to_pylist()
    assert inside == sorted(inside, reverse=True)
    assert result["best"]["in_sample"]["return"] == inside[0]
    assert "Best of 7 sets by return in sample" in output
    assert "<svg" in (folder / result["heat_map"]).read_text()
    assert (folder / "map.png").read_bytes().startswith(b"\x89PNG")


def test_a_best_set_gives_the_same_in_a_backtest(folder: Path) -> None:
    result = json.loads(optimize("-p", "fast_period=5:15:5", "--json").splitlines()[-1])
    params = result["best"]["params"]
    done = CliRunner().invoke(cli, ["backtest", "-p", f"fast_period={params['fast_period']}", "--json"])
    backtest = json.loads(done.output.splitlines()[-1])
    assert backtest["equity"]["return"] == result["best"]["whole"]["return"]
    assert backtest["fingerprint"] == result["fingerprint"]


def test_killed_with_signal_9_the_same_command_goes_on(folder: Path, start: Any) -> None:
    process = start(*COMMAND)
    wait_until(lambda: count_lines(folder) >= 4, "no results")
    process.kill()
    process.wait(DEADLINE_S)
    workers = [int(path.name) for path in (folder / "pids").iterdir()]
    assert workers  # the second one may not have begun
    wait_until(lambda: all(is_gone(pid) for pid in workers), "workers outlive their parent")
    kept = count_lines(folder)
    assert 4 <= kept < 20
    process = start(*COMMAND, "--json")
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output
    assert f"going on: {kept} results are there already" in output
    assert f"sets: 20, {20 - kept} to run on 2 worker processes" in output
    assert count_lines(folder) == 20
    result = json.loads(output.splitlines()[-1])
    assert (result["done"], result["failed"]) == (20, 0)
    assert pq.read_table(folder / "optimize" / "results.parquet").num_rows == 20


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_it_in_order_with_what_is_done(folder: Path, start: Any, number: int, code: int) -> None:
    process = start(*COMMAND)
    wait_until(lambda: count_lines(folder) >= 3, "no results")
    process.send_signal(number)
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, output
    kept = count_lines(folder)
    assert f"stopped: {kept} of 20 sets are done; the same command goes on" in output
    assert pq.read_table(folder / "optimize" / "results.parquet").num_rows == kept
    assert f"Best of {kept} of 20 sets" in output
    assert all(is_gone(int(path.name)) for path in (folder / "pids").iterdir())


def test_a_full_disk_is_said_and_what_was_written_goes_on(folder: Path, start: Any) -> None:
    command = ("--agent", "slow.py", "-p", "number=0:79:1", "-p", "seconds=0", "--jobs", "1")
    # The kernel refuses what a file may not hold, as a full disk does, in the middle of a line. The data are smaller.
    process = start(*command, limit=36_000)
    output, _ = process.communicate(timeout=DEADLINE_S)
    kept = count_lines(folder)
    assert process.returncode == 2, output
    assert re.search(rf"cannot be written: .*; {kept} results are kept; make room and give the same command", output)
    assert 0 < kept < 80
    output = optimize(*command)
    assert f"going on: {kept} results are there already" in output
    assert "damaged" not in output
    assert count_lines(folder) == 80


def test_another_strategy_file_starts_afresh_and_says_why(folder: Path) -> None:
    command = ("--agent", "slow.py", "-p", "number=1,2", "-p", "seconds=0", "--jobs", "1")
    optimize(*command)
    assert "going on: 2 results are there already" in optimize(*command)
    assert "cash (100000 → 5000)" in optimize(*command, "--cash", "5000")
    (folder / "slow.py").write_text(SLOW + "\n# changed\n")
    output = optimize(*command)
    assert "starting afresh, since this is another than before: the strategy's file" in output
    assert "2 to run" in output
    assert "2 earlier results were put aside" in optimize(*command, "--fresh")


def test_a_wider_grid_runs_only_what_is_new(folder: Path) -> None:
    optimize("--agent", "slow.py", "-p", "number=1,2", "-p", "seconds=0", "--jobs", "1")
    output = optimize("--agent", "slow.py", "-p", "number=1:4:1", "-p", "seconds=0", "--jobs", "1")
    assert "sets: 4, 2 to run" in output


def test_all_sets_failing_is_a_failure_with_the_first_reason(folder: Path) -> None:
    (folder / "bad.py").write_text(
        "import backtrader as bt\nclass Bad(bt.Strategy):\n    params = (('n', 1),)\n"
        "    def next(self):\n        raise RuntimeError('always')\n"
    )
    output = optimize("--agent", "bad.py", "-p", "n=1,2", code=1)
    assert "2 sets failed; the first (n=1): RuntimeError: always (bad.py, line 5)" in output
    assert pq.read_table(folder / "optimize" / "results.parquet").column("error").null_count == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to optimise: every parameter has one value"),
        (("-p", "fast_period=5"), "nothing to optimise"),
        (("-p", "fast=1:2:1"), "SmaCross has no parameter 'fast'; its parameters: fast_period"),
        (("-p", "fast_period=1:3:1", "--split", "2"), "--split '2': expected a part above 0 and below 1"),
        (("-p", "fast_period=1:3:1", "--split", "0.0001"), "none is left before the split"),
        (("-p", "fast_period=1:3:1", "--axes", "cash_share"), "--axes cash_share: expected swept parameters"),
        (("-p", "fast_period=1:3:1", "--plot", "nowhere/map.png"), "there is no folder nowhere"),
        (("-p", "fast_period=1:3:1", "--warmup", "390"), "--warmup 390: SPY has 390 bars, so that none is left"),
        (("-p", "fast_period=1:3:1", "--out", "symbols.txt/x"), "choose another --out"),
        (("-p", "fast_period=1:200:1", "-p", "slow_period=1:200:1"), "the grid has 40,000 parameter sets"),
        (("-p", "fast_period=1:9"), "a range without a step needs --random N"),
        (("-p", "fast_period=1,2", "--scheduler", "tcp://127.0.0.1:1", "--jobs", "2"), "leave them out with"),
    ],
)
def test_a_mistake_is_named_before_anything_is_run(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in optimize(*arguments, code=2)
    assert not (folder / "optimize").exists()


def test_the_same_seed_draws_the_same_sets(folder: Path) -> None:
    command = (
        "-p",
        "fast_period=2:20",
        "-p",
        "slow_period=10:60",
        "--random",
        "5",
        "--constraint",
        "fast_period<slow_period",
    )
    optimize(*command)
    assert "sets: 5, 0 to run" in optimize(*command)
    assert "sets: 5, 0 to run" not in optimize(*command, "--seed", "8")


def test_help_has_no_heavy_import() -> None:
    code = "import sys, dry_work.cli.optimize\nprint([m for m in ('backtrader', 'numpy', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
