"""A local run one of whose threads ends in the middle.

The run ends too, with a reason, and leaves no thread behind; or the part starts another thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dry_work.embedded import stack as stack_module
from dry_work.embedded.stack import LocalStack
from dry_work.engine.runner import Runner
from dry_work.engine.thread_watch import LASTING, LASTING_PREFIXES
from dry_work.errors import DryWorkError
from dry_work.feeds.router import PubSubMarketSource
from dry_work.pulse import last_pulse
from dry_work.settings import FeedSettings, RunSettings

DEADLINE_S = 60.0
STRIKE_S = 2.0
AGENT = """\
import backtrader as bt


class Idle(bt.Strategy):
    turns = 0

    def next(self):
        type(self).turns += 1
"""


class SeenStack(LocalStack):
    """A local stack that a test can reach into."""

    latest: Any

    def start(self) -> None:
        SeenStack.latest = self
        super().start()


class Victim:
    """A local run, and ways to end its threads from outside."""

    def __init__(self, folder: Path, *, feed: str) -> None:
        (folder / "idle.py").write_text(AGENT)
        self._before = set(threading.enumerate())
        self.runner = Runner(
            RunSettings(
                symbols=("SPY",), agent=str(folder / "idle.py"), params={}, mode="local", speed=120.0,
                state_dir=folder / "state", feed=FeedSettings(name=feed),
            ),
            tell=lambda _line: None,
        )  # fmt: skip
        self.gave_up = ""
        self.ended = threading.Event()

    @property
    def cerebro(self) -> Any:
        return self.runner._cerebro

    def thread(self, name: str) -> threading.Thread:
        """Return the thread of this name, or whose name begins with `name` where that ends with a hyphen."""
        [thread] = [
            each for each in self.threads() if each.name == name or (name[-1] == "-" and each.name.startswith(name))
        ]
        return thread

    def threads(self) -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each not in self._before]

    def end(self, thread: threading.Thread, strike: Callable[[Victim, threading.Thread], None]) -> bool:
        """Strike until the thread has ended: what is raised from outside is lost when it strikes a finalizer."""
        next_s = 0.0

        def has_ended() -> bool:
            nonlocal next_s
            if thread.is_alive() and time.monotonic() >= next_s:
                next_s = time.monotonic() + STRIKE_S
                strike(self, thread)
            return not thread.is_alive()

        return self.wait_for(has_ended, f"{thread.name} goes on")

    @property
    def keeper(self) -> Any:
        source = self.cerebro.datas[0].p.source
        while not isinstance(source, PubSubMarketSource):
            source = source._source
        return source._keeper

    def stop(self) -> None:
        self.cerebro.runstop()

    def wait_for(self, condition: Callable[[], bool], what: str) -> bool:
        """Wait, from another thread than that of the run, which is stopped when nothing comes of it."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            if time.monotonic() > deadline:
                self.gave_up = what
                self.stop()
                return False
            time.sleep(0.02)
        return True

    def run(self, attack: Callable[[Victim], None]) -> None:
        """Run until the attack has ended the run, or it has stopped it."""

        ended = self.ended

        def work() -> None:
            try:
                while self.cerebro is None and not ended.wait(0.02):
                    pass
                if not ended.is_set() and self.wait_for(lambda: self.cerebro.slices >= 2, "no slices"):
                    attack(self)
            except BaseException as error:
                self.gave_up = repr(error)
                self.stop()

        attacker = threading.Thread(target=work, daemon=True)
        attacker.start()
        try:
            self.runner.run()
        finally:
            ended.set()
            attacker.join(DEADLINE_S)
        assert not self.gave_up

    def assert_nothing_is_left(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while left := [
            each for each in self.threads() if each.name in LASTING or each.name.startswith(("dry-work", "hub"))
        ]:
            assert time.monotonic() < deadline, left
            time.sleep(0.02)


def raise_in(_victim: Victim, thread: threading.Thread) -> None:
    """Raise what nobody catches by its name in a thread that does something now and then."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))


def end_order_worker(victim: Victim, _thread: threading.Thread) -> None:
    # It sleeps, so that nothing can be raised in it: it gets the word to end that nobody gave.
    victim.cerebro.broker._link.gateway._tasks.put((None, 0))


def end_keeper(victim: Victim, thread: threading.Thread) -> None:
    raise_in(victim, thread)
    with victim.keeper._changed:
        victim.keeper._changed.notify_all()


def end_trade_updates(victim: Victim, _thread: threading.Thread) -> None:
    stop_loop(victim.cerebro.broker._link._stream._loop)


def end_hub(_victim: Victim, _thread: threading.Thread) -> None:
    stop_loop(SeenStack.latest._hub._loop)


def end_exchange(_victim: Victim, _thread: threading.Thread) -> None:
    stop_loop(SeenStack.latest.exchange._loop)


def stop_loop(loop: Any) -> None:
    with contextlib.suppress(RuntimeError):  # it is closed already
        loop.call_soon_threadsafe(loop.stop)


@pytest.mark.parametrize(
    ("name", "feed", "strike"),
    [
        ("order worker", "ws", end_order_worker),
        ("account keeper", "ws", raise_in),
        ("trade updates", "ws", end_trade_updates),
        ("dry-work-subscriptions", "pubsub", end_keeper),
        ("dry-work-websocket-", "ws", raise_in),
        ("hub", "pubsub", end_hub),
        ("exchange", "ws", end_exchange),
    ],
)
def test_a_run_ends_with_a_reason_when_one_of_its_threads_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, feed: str, strike: Any
) -> None:
    assert name in LASTING or name in LASTING_PREFIXES
    monkeypatch.setattr(stack_module, "LocalStack", SeenStack)
    victim = Victim(tmp_path, feed=feed)

    def attack(victim: Victim) -> None:
        if not victim.wait_for(lambda: any(each.startswith(name) for each in victim.runner._threads.watched), name):
            return
        victim.end(victim.thread(name), strike)

    with pytest.raises(DryWorkError, match=r"a part of the run (died|ended without a word)|SystemExit"):
        victim.run(attack)
    assert not victim.gave_up
    victim.assert_nothing_is_left()


def test_a_reader_of_a_subscription_that_ends_is_replaced_and_the_run_goes_on(tmp_path: Path) -> None:
    victim = Victim(tmp_path, feed="pubsub")
    name = "dry-work agent-"
    seen: list[threading.Thread] = []

    def attack(victim: Victim) -> None:
        first = victim.thread(name)
        seen.append(first)
        if victim.end(first, raise_in):
            slices = victim.cerebro.slices
            if victim.wait_for(lambda: victim.cerebro.slices > slices, "no slices any more"):
                seen.append(victim.thread(name))
        victim.stop()

    victim.run(attack)
    first, second = seen
    assert second is not first
    victim.assert_nothing_is_left()


def test_a_reader_that_ends_without_a_word_is_replaced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = Victim(tmp_path, feed="pubsub")
    told: list[str] = []

    def attack(victim: Victim) -> None:
        stream = next(iter(victim.keeper._streams.values()))
        monkeypatch.setattr(stream, "_on_end", lambda error: told.append(type(error).__name__))
        stream._call.cancel()  # the connection ends, and nobody hears of it
        slices = victim.cerebro.slices
        if victim.wait_for(lambda: not stream.is_alive, "the reader goes on"):
            victim.wait_for(lambda: victim.cerebro.slices > slices + 1, "no slices any more")
        victim.stop()

    victim.run(attack)
    assert told == ["FeedDisconnectedError"]
    victim.assert_nothing_is_left()


def test_a_run_ends_with_a_reason_when_one_of_its_threads_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack_module, "LocalStack", SeenStack)
    monkeypatch.setattr("dry_work.pulse.EVERY_S", 0.1)
    monkeypatch.setattr("dry_work.engine.thread_watch.STILL_S", 6.0)
    monkeypatch.setattr("dry_work.engine.thread_watch.SECOND_LOOK_S", 3.0)
    victim = Victim(tmp_path, feed="ws")

    def attack(victim: Victim) -> None:
        victim.cerebro._beat_s = 0.2  # later nothing arrives that would wake the engine
        slices = victim.cerebro.slices
        if not victim.wait_for(lambda: victim.cerebro.slices > slices, "no slices any more"):
            return
        names = {
            "account keeper",
            "brake",
            "order worker",
            "trade updates",
            "dry-work-websocket-stocks",
            "hub",
            "exchange",
        }
        if victim.wait_for(lambda: names <= set(victim.runner._threads.watched), f"{names} are watched"):
            assert all(last_pulse(victim.thread(name)) is not None for name in names)
            SeenStack.latest._hub._loop.call_soon_threadsafe(victim.ended.wait, DEADLINE_S)

    with pytest.raises(DryWorkError, match=r"a part of the run stands still: thread .*hub, for \d+ s"):
        victim.run(attack)
    assert not victim.gave_up
    victim.assert_nothing_is_left()
