from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Iterator

import pytest

from dry_work.engine.thread_watch import LOOK_EVERY_S, SECOND_LOOK_S, STILL_S, ThreadWatch
from dry_work.errors import DryWorkError
from dry_work.pulse import give_pulse, keep_pulse, last_pulse

DEADLINE_S = 60.0


@pytest.fixture
def ends() -> Iterator[dict[str, threading.Event]]:
    ends: dict[str, threading.Event] = {}
    yield ends
    for end in ends.values():
        end.set()


def begin(name: str, ends: dict[str, threading.Event]) -> threading.Thread:
    ends[name] = threading.Event()
    thread = threading.Thread(target=ends[name].wait, name=name, daemon=True)
    thread.start()
    return thread


def test_a_thread_that_ended_is_named(ends: dict[str, threading.Event]) -> None:
    watch = ThreadWatch(threading.enumerate(), {"reader", "worker"})
    reader, worker, other = (begin(name, ends) for name in ("reader", "worker", "other"))
    watch.begin()
    assert watch.watched == ["reader", "worker"]
    watch.look(1.0)
    for thread in (other, worker):
        ends[thread.name].set()
        thread.join(DEADLINE_S)
    watch.look(1.0 + LOOK_EVERY_S / 2)  # too early to look
    watch.look(1.0 + LOOK_EVERY_S)  # it may be about to be replaced
    with pytest.raises(DryWorkError, match=r"ended without a word: thread worker$"):
        watch.look(1.0 + 2 * LOOK_EVERY_S)
    assert reader.is_alive()


def test_a_thread_that_was_replaced_is_not_missed(ends: dict[str, threading.Event]) -> None:
    watch = ThreadWatch(threading.enumerate(), {"reader"})
    first = begin("reader", ends)
    watch.begin()
    ends["reader"].set()
    first.join(DEADLINE_S)
    watch.look(1.0)
    begin("reader", ends)
    watch.look(1.0 + LOOK_EVERY_S)
    watch.look(1.0 + 2 * LOOK_EVERY_S)
    assert watch.watched == ["reader"]


def test_threads_from_before_the_run_are_no_concern_of_it(ends: dict[str, threading.Event]) -> None:
    before = begin("reader", ends)
    watch = ThreadWatch(threading.enumerate(), {"reader"})
    watch.begin()
    ends["reader"].set()
    before.join(DEADLINE_S)
    watch.look(1.0)
    assert watch.watched == []


def test_readers_of_the_hub_are_known_by_how_their_names_begin(ends: dict[str, threading.Event]) -> None:
    watch = ThreadWatch(threading.enumerate())
    for name in ("dry-work-grpc-stocks-crypto", "dry-work agent-a-market-data", "dry-work-recorder", "hub"):
        begin(name, ends)
    watch.begin()
    assert watch.watched == ["dry-work-grpc-stocks-crypto", "hub"]


# Standing still


@pytest.fixture
def worker() -> Iterator[tuple[threading.Thread, queue.SimpleQueue[bool]]]:
    """A thread that gives a pulse for each True, until False."""
    asked: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def work() -> None:
        while asked.get():
            give_pulse()

    thread = threading.Thread(target=work, name="worker", daemon=True)
    thread.start()
    yield thread, asked
    asked.put(False)
    thread.join(DEADLINE_S)


def await_pulse(thread: threading.Thread, asked: queue.SimpleQueue[bool]) -> float:
    before, deadline_s = last_pulse(thread), time.monotonic() + DEADLINE_S
    asked.put(True)
    while (pulse := last_pulse(thread)) is None or pulse == before:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    return pulse


def test_a_thread_without_a_pulse_for_long_is_named(
    worker: tuple[threading.Thread, queue.SimpleQueue[bool]], ends: dict[str, threading.Event]
) -> None:
    watch = ThreadWatch((), {"worker", "sleeper"})
    begin("sleeper", ends)  # it gives none at all: it may wait for work as long as it likes
    watch.begin()
    pulse_s = await_pulse(*worker)
    watch.look(pulse_s + STILL_S)
    first_s = pulse_s + STILL_S + 1.0
    watch.look(first_s)
    watch.look(first_s + SECOND_LOOK_S - 1.0)
    with pytest.raises(DryWorkError, match=r"stands still: thread worker, for 331 s$"):
        watch.look(first_s + SECOND_LOOK_S)


def test_a_reader_that_was_started_anew_is_named_when_it_stands_still() -> None:
    watch = ThreadWatch(threading.enumerate(), still_s=20.0, second_look_s=5.0)
    watch.begin()
    given, end = threading.Event(), threading.Event()

    def read() -> None:
        give_pulse()
        given.set()
        end.wait()

    reader = threading.Thread(target=read, name="dry-work agent-a-market-data", daemon=True)
    reader.start()
    try:
        assert given.wait(DEADLINE_S)
        pulse_s = last_pulse(reader)
        assert pulse_s is not None
        watch.look(pulse_s + 20.0)
        watch.look(pulse_s + 22.0)
        with pytest.raises(DryWorkError, match=r"stands still: thread dry-work agent-a-market-data, for 27 s$"):
            watch.look(pulse_s + 27.0)
        of_another_run = ThreadWatch(threading.enumerate(), still_s=20.0, second_look_s=5.0)
        for after_s in (30.0, 60.0):
            of_another_run.look(pulse_s + after_s)
    finally:
        end.set()
        reader.join(DEADLINE_S)
    assert watch.watched == []  # that it has ended is its part's to see


def test_a_pulse_after_the_process_was_stopped_is_enough(
    worker: tuple[threading.Thread, queue.SimpleQueue[bool]],
) -> None:
    watch = ThreadWatch((), {"worker"})
    watch.begin()
    watch.look(await_pulse(*worker) + 10 * STILL_S)  # the first look after it
    pulse_s = await_pulse(*worker)
    watch.look(pulse_s + SECOND_LOOK_S)
    watch.look(pulse_s + STILL_S + 1.0)  # a new silence is counted from its own beginning
    watch.look(pulse_s + STILL_S + SECOND_LOOK_S)
    assert watch.watched == ["worker"]


async def test_an_event_loop_gives_pulses_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dry_work.pulse.EVERY_S", 0.001)
    keep_pulse(asyncio.get_running_loop())
    first_s = last_pulse(threading.current_thread())
    assert first_s is not None
    async with asyncio.timeout(DEADLINE_S):
        while (pulse_s := last_pulse(threading.current_thread())) == first_s:
            await asyncio.sleep(0.001)
    assert pulse_s is not None
    assert pulse_s > first_s
