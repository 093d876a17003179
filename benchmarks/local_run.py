"""`dry-work run --local` as a process, with a strategy that writes down what it cost."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

LIMIT_S = 300.0

# The strategy's file. It is run by another process, so it must be complete in itself.
_AGENT = """
import json, threading, time
import backtrader as bt


def thread_seconds():
    found = {}
    for thread in threading.enumerate():
        seconds = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        found[thread.name] = found.get(thread.name, 0.0) + seconds
    found["process"] = time.process_time()
    return found


class Agent(bt.Strategy):
    params = (("report", ""), ("stop_after", 0))

    def __init__(self):
        for data in self.datas:
            bt.ind.SMA(data, period=20)
        self.calls = 0

    def prenext(self):
        self.next()

    def next(self):
        self.calls += 1
        if self.calls == 1:
            self.begun, self.seconds = time.monotonic(), thread_seconds()
        if self.calls == self.p.stop_after:
            self.env.runstop()
        self.now = time.monotonic()
        if self.calls % 20 == 0:
            self.after = thread_seconds()
            self.measured = self.calls, time.monotonic()

    def stop(self):
        calls, now = getattr(self, "measured", (self.calls, self.now))
        after = getattr(self, "after", None) or thread_seconds()
        spent = {name: after[name] - self.seconds.get(name, 0.0) for name in after}
        with open(self.p.report, "w") as file:
            json.dump({"first": self.begun, "last": now, "calls": calls, "cpu": spent}, file)
"""


class LocalRun(msgspec.Struct, frozen=True):
    """What a run took. Times in seconds."""

    to_first_next: float  # from the command to the first call of the strategy
    slices_per_s: float  # after the first
    cpu_by_thread: dict[str, float]  # by name of the Python thread, after the first slice; `process` is all of it
    seconds: float  # that `cpu_by_thread` covers


def run_local(symbols: Sequence[str], *, stop_after: int = 0) -> LocalRun:
    """Run a synthetic day of `symbols` in lock-step.

    Raises:
        RuntimeError: the run failed; its output is in the text.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "agent.py").write_text(_AGENT)
        (folder / "symbols.txt").write_text("\n".join(symbols) + "\n")
        command = [sys.executable, "-m", "dry_work", "run", "--local", "--speed", "max", "--agent", "agent.py:Agent"]
        command += ["-p", "report=report.json", "-p", f"stop_after={stop_after}"]
        begun = time.monotonic()
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=LIMIT_S, check=False)  # noqa: S603
        report = folder / "report.json"
        if done.returncode or not report.is_file():
            raise RuntimeError(f"{command} ended with {done.returncode}:\n{(done.stdout + done.stderr).decode()}")
        found = json.loads(report.read_text())
    seconds = found["last"] - found["first"]
    return LocalRun(
        to_first_next=found["first"] - begun,
        slices_per_s=(found["calls"] - 1) / seconds if seconds > 0 else 0.0,
        cpu_by_thread=found["cpu"],
        seconds=seconds,
    )
