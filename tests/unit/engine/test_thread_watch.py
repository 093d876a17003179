from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from dry_work.engine.thread_watch import LOOK_EVERY_S, ThreadWatch
from dry_work.errors import DryWorkError

DEADLINE_S = 30.0


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
