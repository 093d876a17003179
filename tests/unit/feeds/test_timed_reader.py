from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from dry_work.feeds.timed_reader import TimedReader

DEADLINE_S = 30.0


class Stream:
    """What a stream brings, when the test says so."""

    def __init__(self) -> None:
        self._coming: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self.read = 0

    def __iter__(self) -> Iterator[int]:
        while (item := self._coming.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self.read += 1
            yield item

    def bring(self, *items: int | BaseException | None) -> None:
        for item in items:
            self._coming.put(item)

    def end(self) -> None:
        self.bring(None)


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def reader(stream: Stream) -> Iterator[TimedReader[int]]:
    found = TimedReader(stream, name="reader", ahead=3)
    yield found
    found.close(stream.end, DEADLINE_S)


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.001)


def test_what_has_come_is_taken_in_order_and_nothing_is_an_empty_answer(
    stream: Stream, reader: TimedReader[int]
) -> None:
    assert reader.take(0.0) == []
    stream.bring(1, 2)
    wait_until(lambda: stream.read == 2)
    taken: list[int] = []
    while len(taken) < 2:
        taken += reader.take(DEADLINE_S)
    assert taken == [1, 2]
    assert reader.take(0.0) == []


def test_it_reads_no_further_ahead_than_it_may(stream: Stream, reader: TimedReader[int]) -> None:
    stream.bring(*range(10))
    wait_until(lambda: stream.read == 4)  # three that wait, and one in hand
    taken: list[int] = []
    while len(taken) < 10:
        assert stream.read <= len(taken) + 4
        taken += reader.take(DEADLINE_S)
    assert taken == list(range(10))


@pytest.mark.parametrize("end", [ValueError("broken"), None])
def test_how_the_stream_ended_is_told_behind_what_it_brought(
    stream: Stream, reader: TimedReader[int], end: BaseException | None
) -> None:
    stream.bring(1, end)
    assert reader.take(DEADLINE_S) == [1]
    for _ in range(2):
        with pytest.raises(StopIteration if end is None else ValueError):
            reader.take(DEADLINE_S)


def test_a_close_ends_the_thread_even_when_nobody_takes(stream: Stream) -> None:
    reader = TimedReader(stream, name="crowded reader", ahead=1)
    stream.bring(1, 2, 3)
    wait_until(lambda: stream.read == 2)
    reader.close(stream.end, DEADLINE_S)
    reader.close(stream.end, DEADLINE_S)
    assert not [thread for thread in threading.enumerate() if thread.name == "crowded reader"]


def test_who_waits_is_woken_by_a_close(stream: Stream, reader: TimedReader[int]) -> None:
    ended = threading.Event()

    def wait() -> None:
        try:
            reader.take(10 * DEADLINE_S)
        except StopIteration:
            ended.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    reader.close(stream.end, DEADLINE_S)
    assert ended.wait(DEADLINE_S)
    waiting.join(DEADLINE_S)
