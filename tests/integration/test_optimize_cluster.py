"""Parameter sets on a real Dask cluster: a scheduler and its workers, each a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from dry_work.cli import cli
from dry_work.errors import ConfigError

pytest.importorskip("distributed", reason="the extra `cluster` is not installed")

DEADLINE_S = 60.0

STRATEGY = """
import os
import backtrader as bt
from size_of_test import SIZE

class Mine(bt.Strategy):
    params = (("number", 0), ("how", "fine"))

    def next(self):
        if len(self) == 10:
            self.buy(size=SIZE + self.p.number)
            if self.p.how == "raise":
                raise ValueError("on purpose")
"""


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Cluster:
    """A scheduler and workers in a folder of their own, where the strategy is not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.launch(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(self.file)
        )
        wait_until(self.file.is_file, f"no scheduler: {self.log('scheduler')}")
        self.address = str(json.loads(self.file.read_text())["address"])

    def launch(self, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{kind}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", kind, *arguments],
                cwd=self.folder,
                env={**os.environ, "XDG_CACHE_HOME": str(self.folder / "cache")},
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def add_worker(self, threads: int = 1) -> subprocess.Popen[bytes]:
        return self.launch(
            "worker", self.address, "--nworkers", "1", "--nthreads", str(threads), "--no-dashboard", "--no-nanny"
        )

    def log(self, kind: str) -> str:
        path = self.folder / f"{kind}.log"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(DEADLINE_S)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    running = Cluster(folder)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def folder(clean_environment: Path) -> Iterator[Path]:
    (clean_environment / "symbols.txt").write_text("SPY\n")
    (clean_environment / "mine.py").write_text(STRATEGY)
    (clean_environment / "size_of_test.py").write_text("SIZE = 3\n")
    before = list(sys.path)
    yield clean_environment
    sys.path[:] = before
    sys.modules.pop("size_of_test", None)


def optimize(*arguments: str) -> tuple[str, dict[str, object]]:
    done = CliRunner().invoke(cli, ["optimize", "--agent", "mine.py", "--json", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output, json.loads(done.output.splitlines()[-1])


@pytest.mark.filterwarnings("default")  # those of the cluster's library are not ours
def test_a_cluster_gives_what_this_machine_gives_and_is_left_clean(cluster: Cluster, folder: Path) -> None:
    cluster.add_worker()
    cluster.add_worker(threads=2)
    grid = ("-p", "number=1:8:1", "-p", "how=fine,raise")
    output, remote = optimize(*grid, "--out", "remote", "--scheduler", cluster.address)
    assert f"workers of {cluster.address}" in output or f"worker of {cluster.address}" in output
    _, local = optimize(*grid, "--out", "local", "--jobs", "1")
    assert (remote["done"], remote["failed"]) == (local["done"], local["failed"]) == (16, 8)
    assert [{**each, "seconds": 0} for each in remote["top"]] == [{**each, "seconds": 0} for each in local["top"]]  # type: ignore[attr-defined]
    assert "ValueError: on purpose (mine.py, line 13)" in output
    cached = cluster.folder / "cache" / "dry-work" / "sweeps"
    assert cached.is_dir()
    assert list(cached.iterdir()) == []
    assert "sets: 16, 0 to run" in optimize(*grid, "--out", "remote", "--scheduler", cluster.address)[0]


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://x", "127.0.0.1"])
def test_a_scheduler_that_does_not_answer_is_named(address: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dry_work.backtest.sweep_cluster._CONNECT_S", 1.0)
    with pytest.raises(ConfigError, match=f"--scheduler {address}: no Dask scheduler answers"):
        CliRunner().invoke(
            cli, ["optimize", "--agent", "mine.py", "-p", "number=1,2", "--scheduler", address],
            catch_exceptions=False,
        )  # fmt: skip


@pytest.mark.filterwarnings("default")
def test_a_cluster_without_workers_is_said(cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dry_work.backtest.sweep_cluster._WORKERS_S", 1.0)
    with pytest.raises(ConfigError, match="no worker joined within 1 s"):
        CliRunner().invoke(
            cli, ["optimize", "--agent", "mine.py", "-p", "number=1,2", "--scheduler", cluster.address],
            catch_exceptions=False,
        )  # fmt: skip
