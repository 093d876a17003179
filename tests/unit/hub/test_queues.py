"""Queues of the hub's clients: what is offered is taken, conflated, dropped or waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.hub.events import HubEvent
from dry_work.hub.queues import ClientQueue, Overflow


def make_event(offset: int, channel: str = "trades", symbol: str = "SPY") -> HubEvent:
    return HubEvent(
        feed="stocks", channel=channel, symbol=symbol, item={"i": offset}, epoch="e", offset=offset, ts_recv_ns=0
    )


def make_queue(capacity: int, overflow: Overflow, on_ready: Callable[[], None] = lambda: None) -> ClientQueue:
    return ClientQueue(capacity, overflow, on_ready=on_ready)


def offsets(events: list[HubEvent]) -> list[int]:
    return [event.offset for event in events]


def test_events_are_taken_in_their_order_and_the_owner_is_woken_once_until_it_has_taken_them() -> None:
    calls: list[int] = []
    queue = make_queue(10, Overflow.DROP_OLDEST, lambda: calls.append(1))
    for number in range(3):
        queue.offer(make_event(number))
    assert calls == [1]
    assert offsets(queue.take(2)) == [0, 1]
    assert offsets(queue.take()) == [2]
    queue.offer(make_event(3))
    assert calls == [1, 1]


def test_the_oldest_is_dropped_when_there_is_no_room() -> None:
    queue = make_queue(2, Overflow.DROP_OLDEST)
    for number in range(5):
        queue.offer(make_event(number))
    assert offsets(queue.take()) == [3, 4]
    assert queue.dropped == 3


def test_only_the_last_quote_of_a_symbol_stays_and_every_trade() -> None:
    queue = make_queue(8, Overflow.CONFLATE)
    for number in range(6):
        queue.offer(make_event(number, "quotes"))
    queue.offer(make_event(6, "trades"))
    queue.offer(make_event(7, "quotes", "IBM"))
    queue.offer(make_event(8, "quotes"))
    assert offsets(queue.take()) == [5, 6, 7, 8]
    assert (queue.conflated, queue.dropped) == (5, 0)


def test_what_cannot_be_conflated_is_dropped_by_its_age() -> None:
    queue = make_queue(8, Overflow.CONFLATE)
    for number in range(9):
        queue.offer(make_event(number))
    assert offsets(queue.take()) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert queue.dropped == 1


def test_a_queue_of_order_updates_closes_instead_of_losing_one() -> None:
    calls: list[int] = []
    queue = make_queue(2, Overflow.CLOSE, lambda: calls.append(1))
    for number in range(4):
        queue.offer(make_event(number))
    assert queue.is_closed
    assert len(calls) == 2  # ready, closed
    assert offsets(queue.take()) == [0, 1]
    queue.offer(make_event(5))
    assert not queue.take()
    assert queue.dropped == 3


def test_a_queue_without_room_for_one_event_is_refused() -> None:
    with pytest.raises(ValueError, match="a queue of 0 events"):
        make_queue(0, Overflow.CLOSE)


@given(
    capacity=st.integers(1, 20),
    overflow=st.sampled_from(Overflow),
    steps=st.lists(
        st.tuples(st.sampled_from(["trades", "quotes"]), st.sampled_from("AB"), st.integers(0, 6)), max_size=80
    ),
)
def test_nothing_goes_uncounted_and_nothing_overtakes(
    capacity: int, overflow: Overflow, steps: list[tuple[str, str, int]]
) -> None:
    queue = make_queue(capacity, overflow)
    taken: list[int] = []
    for number, (channel, symbol, take) in enumerate(steps):
        queue.offer(make_event(number, channel, symbol))
        counts = queue.counts
        assert counts.offered == counts.taken + counts.conflated + counts.dropped + counts.waiting
        assert counts.waiting <= capacity
        if take:
            taken += offsets(queue.take(take))
    taken += offsets(queue.take())
    assert taken == sorted(set(taken))
    if steps and overflow is not Overflow.CLOSE:
        assert taken[-1] == len(steps) - 1  # the newest always arrives
