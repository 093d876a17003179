"""Parameter sets in worker processes: the real ones, which crash, hang and are killed here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dry_work.backtest.grid import Space, parse_axes
from dry_work.backtest.optimize import Sweep
from dry_work.backtest.run import BacktestSettings
from dry_work.backtest.sweep_data import SharedRecording
from dry_work.backtest.sweep_local import LocalExecutor, count_cores
from dry_work.backtest.sweep_task import Evaluator, SweepRow
from dry_work.clock import MINUTE_NS
from dry_work.engine.agents import load_agent
from dry_work.errors import ConfigError
from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.recorded import Recording

TROUBLE = '''
import os, signal, time
import backtrader as bt

class Trouble(bt.Strategy):
    """Buys at the first bar; `how` says what happens then."""

    params = (("how", "fine"), ("folder", ""), ("number", 0))

    def start(self):
        if self.p.how != "wait":
            return
        open(f"{self.p.folder}/started-{os.getpid()}", "w").close()
        while not os.path.exists(f"{self.p.folder}/gate"):
            time.sleep(0.01)
        self.env.runstop()

    def next(self):
        print("nobody reads this")
        if len(self) == 1:
            self.buy(size=1 + self.p.number)
        if len(self) != 5:
            return
        if self.p.how == "raise":
            raise ValueError("on purpose")
        if self.p.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.p.how == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.p.how == "leave":
            os._exit(7)
        if self.p.how == "hang":
            time.sleep(600)
        if self.p.how == "once" and not os.path.exists(f"{self.p.folder}/died"):
            open(f"{self.p.folder}/died", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture
def trouble(tmp_path: Path) -> Path:
    path = tmp_path / "trouble.py"
    path.write_text(TROUBLE)
    return path


def make_sweep(agent_file: Path, recording: Recording | None = None, split: float | None = 0.7, **params: str) -> Sweep:
    agent = load_agent(str(agent_file))
    recording = recording or synthetic_day(("SPY",))
    settings = BacktestSettings(symbols=recording.symbols, agent=str(agent_file), params={})
    space = Space(agent.strategy, parse_axes(agent.strategy, params))
    return Sweep(settings, recording, agent, space.list_sets(), swept=[a.name for a in space.swept], split=split)


class Run:
    """Runs a sweep and keeps what came of it."""

    def __init__(self, sweep: Sweep, *, jobs: int = 2, timeout_s: float | None = None) -> None:
        self.shared = SharedRecording(sweep.period, fingerprint=sweep.fingerprint)
        self.executor = LocalExecutor(sweep.job, self.shared, jobs=jobs, timeout_s=timeout_s)
        self.sweep = sweep

    def rows(self, tick: Callable[[], None] = lambda: None) -> Iterator[SweepRow]:
        try:
            yield from self.executor.run(self.sweep.sets, tick)
        finally:
            self.executor.close()
            self.executor.close()
            self.shared.close()

    def by_value(self, name: str, tick: Callable[[], None] = lambda: None) -> dict[Any, SweepRow]:
        values = {one.key: one.values[name] for one in self.sweep.sets}
        rows = list(self.rows(tick))
        assert len(rows) == len(self.sweep.sets)
        return {values[row.key]: row for row in rows}


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_workers_give_the_rows_of_this_process(trouble: Path) -> None:
    sweep = make_sweep(trouble, number="0:7:1")
    run = Run(sweep)
    found = run.by_value("number")
    evaluator = Evaluator(sweep.job, sweep.period)
    for one in sweep.sets:
        row, own = found[one.values["number"]], evaluator.evaluate(one.key, one.texts)
        assert not row.error
        assert (row.whole, row.inside, row.outside) == (own.whole, own.inside, own.outside)
        assert row.inside is not None
        assert row.inside.fills == 1
    assert run.executor.pids == []


def test_whatever_happens_to_one_set_the_others_are_run(trouble: Path) -> None:
    hows = ("raise", "kill", "segfault", "leave", "fine")
    found = Run(make_sweep(trouble, how=",".join(hows))).by_value("how")
    assert re.fullmatch(r"ValueError: on purpose \(trouble.py, line \d+\)", found["raise"].error)
    assert not found["raise"].died
    assert found["kill"].error == "its worker died twice (SIGKILL, perhaps for lack of memory)"
    assert found["segfault"].error == "its worker died twice (SIGSEGV): Fatal Python error: Segmentation fault"
    assert found["leave"].error == "its worker died twice (exit code 7)"
    assert all(found[how].died for how in ("kill", "segfault", "leave"))
    assert not found["fine"].error


def test_a_set_whose_worker_died_once_is_tried_again(trouble: Path) -> None:
    found = Run(make_sweep(trouble, how="once,fine", folder=str(trouble.parent))).by_value("how")
    assert (trouble.parent / "died").exists()
    assert not found["once"].error
    assert found["once"].whole == found["fine"].whole


def test_a_set_that_takes_too_long_is_given_up(trouble: Path) -> None:
    found = Run(make_sweep(trouble, how="hang,fine"), timeout_s=8).by_value("how")
    assert found["hang"].error == "given up after --timeout 8 seconds"
    assert not found["fine"].error


def test_a_stop_ends_the_workers_in_the_middle_of_their_sets(trouble: Path) -> None:
    run = Run(make_sweep(trouble, how="wait", folder=str(trouble.parent), number="1:9:1"))
    pids: list[int] = []

    def tick() -> None:
        if len(list(trouble.parent.glob("started-*"))) == 2:
            pids.extend(run.executor.pids)
            run.executor.request_stop()

    assert list(run.rows(tick)) == []
    assert len(pids) >= 2
    assert all(is_gone(pid) for pid in pids)


def test_workers_that_cannot_start_end_the_sweep_with_the_reason(trouble: Path) -> None:
    sweep = make_sweep(trouble, number="1:9:1")
    trouble.write_text(TROUBLE + "\n# another\n")
    with pytest.raises(ConfigError, match="its file is not the one that the sweep was started with"):
        list(Run(sweep).rows())
    trouble.write_text("import os\nos._exit(3)\n")
    with pytest.raises(ConfigError, match=r"no worker process can be started: worker died \(exit code 3\)"):
        list(Run(sweep).rows())


def mapped_kilobytes(pid: int, size: int) -> dict[str, int]:
    """Return Rss and Pss of the mapping of `size` bytes in a process."""
    pages = -(-size // 4096) * 4
    found: dict[str, int] = {}
    for block in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{pid}/smaps").read_text()):
        figures = {name: int(number) for name, number in re.findall(r"(?m)^(\w+): +(\d+) kB", block)}
        if figures.get("Size") == pages and "(deleted)" in block.partition("\n")[0]:
            found = figures
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc/PID/smaps here")
def test_workers_share_one_copy_of_the_data(trouble: Path) -> None:
    rows = 100_000
    times = np.arange(rows) * MINUTE_NS + 1_700_000_000 * 10**9
    columns = {name: np.full(rows, 10.0) for name in ("open", "high", "low", "close", "volume")}
    columns |= {f"extra{k}": np.full(rows, float(k)) for k in range(4)}
    recording = Recording({"SPY": {"ts_event_ns": times, **columns}})
    run = Run(make_sweep(trouble, recording, split=None, how="wait", folder=str(trouble.parent), number="1,2"))
    size = os.fstat(run.shared.fileno()).st_size
    assert size > rows * 10 * 8
    shares: dict[int, dict[str, int]] = {}

    def tick() -> None:
        if len(list(trouble.parent.glob("started-*"))) == 2 and not shares:
            shares.update({pid: mapped_kilobytes(pid, size) for pid in run.executor.pids})
            (trouble.parent / "gate").touch()

    assert len(list(run.rows(tick))) == 2
    assert len(shares) == 2
    for share in shares.values():
        assert share["Rss"] * 1024 > rows * 6 * 8  # the six columns of a bar were read by both
        assert share["Private_Dirty"] == 0
    assert sum(share["Pss"] for share in shares.values()) * 1024 < 1.1 * size


def test_the_cores_of_a_container_are_its_quota(tmp_path: Path) -> None:
    here = len(os.sched_getaffinity(0))
    quota = tmp_path / "cpu.max"
    for text, cores in (("150000 100000", 2), ("50000 100000", 1), ("max 100000", here), ("", here)):
        quota.write_text(text)
        assert count_cores(quota) == min(cores, here)
    assert count_cores(tmp_path / "none") == here
