"""A local run one of whose threads ends in the middle: the run ends too, with a reason, and leaves no thread behind."""

from __future__ import annotations

import ctypes
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dry_work.engine.runner import Runner
from dry_work.engine.thread_watch import LASTING
from dry_work.errors import DryWorkError
from dry_work.settings import RunSettings

DEADLINE_S = 60.0
AGENT = """\
import backtrader as bt


class Idle(bt.Strategy):
    def next(self):
        pass
"""


def end_silently(runner: Runner, name: str, thread: threading.Thread) -> None:
    """End a thread; the order worker, which sleeps, by the word to end that nobody gave."""
    if name == "order worker":
        cerebro: Any = runner._cerebro
        cerebro.broker._link.gateway._tasks.put((None, 0))
        return
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))


@pytest.mark.parametrize("name", ["order worker", "account keeper"])
def test_a_run_ends_with_a_reason_when_one_of_its_threads_ends(tmp_path: Path, name: str) -> None:
    (tmp_path / "idle.py").write_text(AGENT)
    settings = RunSettings(
        symbols=("SPY",), agent=str(tmp_path / "idle.py"), params={}, mode="local", speed=60.0,
        state_dir=tmp_path / "state",
    )  # fmt: skip
    before = set(threading.enumerate())
    runner = Runner(settings, tell=lambda _line: None)
    gave_up = threading.Event()

    def kill() -> None:
        deadline = time.monotonic() + DEADLINE_S
        while name not in runner._threads.watched:
            if time.monotonic() > deadline:
                gave_up.set()
                runner.request_stop(1)
                return
            time.sleep(0.05)
        [thread] = [each for each in threading.enumerate() if each.name == name and each not in before]
        end_silently(runner, name, thread)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(DryWorkError, match=r"a part of the run (died|ended without a word)|SystemExit"):
        runner.run()
    killer.join(DEADLINE_S)
    assert not gave_up.is_set()
    deadline = time.monotonic() + DEADLINE_S
    while {each for each in threading.enumerate() if each.name in LASTING} - before:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.05)
