"""Readers of market data give pulses: one that waits for data is left alone, one that stands still ends the run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from dry_work import pulse
from dry_work.engine.thread_watch import ThreadWatch
from dry_work.errors import DryWorkError
from dry_work.pulse import last_pulse
from dry_work.recording.recorder import RecordedMessage

from .alpaca_upstream import wait_until
from .feed_stack import DEADLINE_S, KINDS, FeedStack, require, summary

MINUTE_S, HOUR_S = 60.0, 3600.0
STILL_S, SECOND_LOOK_S = 180.0, 60.0
NAMES = {"pubsub": "dry-work agent-reader-0-market-data"}


class Stuck:
    """A recorder that never comes back, as a file on a disk that is gone."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.left = threading.Event()

    def record(self, message: RecordedMessage, *, venue_ns: int, recv_ns: int) -> None:
        self.entered.set()
        self.left.wait()

    def counters(self) -> dict[str, int]:
        return {}


class Hours:
    """The clock of the pulses."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Hours:
    found = Hours()
    monkeypatch.setattr(pulse, "_now_s", found)
    monkeypatch.setattr(pulse, "EVERY_S", 0.02)
    monkeypatch.setattr("dry_work.feeds.subscriptions.LOOK_S", 0.02)
    return found


@pytest.fixture(params=KINDS)
def stack(request: pytest.FixtureRequest, hours: Hours) -> Iterator[FeedStack]:
    require(request.param)
    with contextlib.closing(FeedStack(request.param)) as found:
        yield found


def find_reader(stack: FeedStack) -> threading.Thread:
    name = NAMES.get(stack.kind, {"ws": "dry-work-websocket-"}.get(stack.kind, f"dry-work-{stack.kind}-"))
    (found,) = [thread for thread in threading.enumerate() if thread.name.startswith(name)]
    return found


def pass_minute(hours: Hours, watch: ThreadWatch, *readers: threading.Thread) -> None:
    """Let a minute go by, wait for the pulses of the readers and of the keeper of subscriptions, and look."""
    hours.now_s += MINUTE_S
    keepers = [thread for thread in threading.enumerate() if thread.name == "dry-work-subscriptions"]
    for thread in (*readers, *keepers):
        wait_until(lambda: last_pulse(thread) == hours.now_s, f"a pulse of {thread.name}", DEADLINE_S)  # noqa: B023
    watch.look(hours.now_s)


def build_watch(before: set[threading.Thread]) -> ThreadWatch:
    watch = ThreadWatch(before, still_s=STILL_S, second_look_s=SECOND_LOOK_S)
    watch.begin()
    return watch


def test_a_reader_that_waits_for_data_for_an_hour_is_left_alone(stack: FeedStack, hours: Hours) -> None:
    before = set(threading.enumerate())
    reader = stack.start_reader("AAPL")
    thread, watch = find_reader(stack), build_watch(before)
    end_s = hours.now_s + HOUR_S
    while hours.now_s < end_s:  # not a bar comes, and yet there is a pulse in every minute
        pass_minute(hours, watch, thread)
    stack.send_slice(1, "AAPL")
    assert reader.next_bars().bars[0].symbol == "AAPL"


def test_a_reader_that_stands_still_is_named(stack: FeedStack, hours: Hours) -> None:
    before = set(threading.enumerate())
    stuck = Stuck()
    stack.start_reader("AAPL", recorder=stuck)
    thread, watch = find_reader(stack), build_watch(before)
    try:
        stack.send_slice(1, "AAPL")
        assert stuck.entered.wait(DEADLINE_S)
        for _ in range(4):  # three minutes are not too long, and after the fourth there is a second look
            pass_minute(hours, watch)
        with pytest.raises(DryWorkError, match=rf"stands still: thread {thread.name}, for 300 s$"):
            pass_minute(hours, watch)
    finally:
        stuck.left.set()


def test_a_reader_whose_buffer_is_full_waits_with_a_pulse(stack: FeedStack, hours: Hours) -> None:
    before = set(threading.enumerate())
    reader = stack.start_reader("AAPL", buffer_messages=2)
    thread, watch = find_reader(stack), build_watch(before)
    for number in range(1, 9):
        stack.send_slice(number, "AAPL")
    wait_until(lambda: reader.count("buffer_full"), "the buffer is full", DEADLINE_S)
    for _ in range(6):
        pass_minute(hours, watch, thread)
    assert thread.is_alive()
    assert [summary(reader.next_slice()) for _ in range(8)] == [[("AAPL", number)] for number in range(1, 9)]
