"""The flag that is slept on: raised by threads and signals, and what a signal that wakes nobody does."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from dry_work.wakeup import Wakeup

DEADLINE_S = 60.0

# The system may hand a signal to any thread: here to one that is not the main one, so that nothing interrupts the wait.
STRAY_SIGNAL = """
import signal, threading
from dry_work.cli.signals import StopWaiter
with StopWaiter() as waiter:
    def strike():
        waits.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    waits = threading.Event()
    threading.Thread(target=strike).start()
    waits.set()
    raise SystemExit(waiter.wait_for_code() + 7)
"""


def test_a_signal_that_another_thread_gets_is_heard() -> None:
    process = subprocess.run([sys.executable, "-c", STRAY_SIGNAL], timeout=DEADLINE_S, check=False)
    assert process.returncode == 7


@pytest.mark.parametrize("in_main", [True, False])
@pytest.mark.parametrize("timeout_s", [None, 1.3])
def test_the_waiter_wakes_when_the_flag_is_raised(in_main: bool, timeout_s: float | None) -> None:
    wakeup, found = Wakeup(), []

    def wait() -> None:
        found.append(wakeup.wait(timeout_s))

    wakeup.set()
    wakeup.set()  # once is enough
    if in_main:
        wait()
    else:
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(DEADLINE_S)
    assert found == [True]
    assert not wakeup.wait(0.0)


@pytest.mark.parametrize("timeout_s", [0.0, 0.05, 1.2])
def test_a_wait_ends_after_its_time(timeout_s: float) -> None:
    began_s = time.monotonic()
    assert not Wakeup().wait(timeout_s)
    assert time.monotonic() - began_s >= timeout_s * 0.99


def test_a_flag_that_is_raised_after_a_while_wakes_the_main_thread() -> None:
    wakeup = Wakeup()
    threading.Timer(1.1, wakeup.set).start()
    assert wakeup.wait(None)
