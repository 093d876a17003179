"""What one client of the hub has not taken yet: a bounded queue that counts what it lost. Event-loop only, no I/O.

Order updates are never lost one by one: a client that does not take them in time loses the connection, and resumes.
Market data of a slow client is conflated (of a symbol's quotes that wait only the last one stays) or its oldest is
dropped. Always: offered = taken + conflated + dropped + waiting.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from enum import Enum

import msgspec

from dry_work.hub.events import HubEvent

CONFLATED = frozenset(("quotes", "orderbooks"))  # channels in which a newer event of a symbol makes the older worthless


class Overflow(Enum):
    """What becomes of events when there is no room for another."""

    DROP_OLDEST = "drop oldest"
    CONFLATE = "conflate"
    CLOSE = "close"  # nothing more is taken; the reader has to come again


class QueueCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Events of one client since its start."""

    offered: int
    taken: int
    conflated: int
    dropped: int
    waiting: int


class ClientQueue:
    """The events for one client.

    Args:
        capacity: events that may wait.
        overflow: what happens beyond that.
        on_ready: called when an empty queue gets an event, and when it closes; it returns at once.
        on_loss: called after events were conflated or dropped; it returns at once.
    """

    def __init__(
        self,
        capacity: int,
        overflow: Overflow,
        *,
        on_ready: Callable[[], None],
        on_loss: Callable[[], None] | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a queue of {capacity} events: expected 1 or more")
        self.capacity = capacity
        self.overflow = overflow
        self._on_ready = on_ready
        self._on_loss = on_loss
        self._waiting: deque[HubEvent] = deque()
        self.offered = 0
        self.taken = 0
        self.conflated = 0
        self.dropped = 0
        self.dropped_kinds: Counter[tuple[str, str]] = Counter()  # of those dropped, by feed and channel
        self.is_closed = False  # by an overflow

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def counts(self) -> QueueCounts:
        """The counts as they are now."""
        return QueueCounts(
            offered=self.offered,
            taken=self.taken,
            conflated=self.conflated,
            dropped=self.dropped,
            waiting=len(self._waiting),
        )

    def offer(self, event: HubEvent) -> None:
        """Take an event for the client."""
        self.offered += 1
        waiting = self._waiting
        size = len(waiting)
        if size >= self.capacity or self.is_closed:
            self._overflow(event)
            return
        waiting.append(event)
        if not size:
            self._on_ready()

    def take(self, limit: int = 0) -> tuple[HubEvent, ...]:
        """Return what waits, oldest first, at most `limit` events (0: all)."""
        waiting = self._waiting
        if not limit or limit >= len(waiting):
            found = tuple(waiting)
            waiting.clear()
        else:
            found = tuple(waiting.popleft() for _ in range(limit))
        self.taken += len(found)
        return found

    def count_waiting(self) -> Counter[tuple[str, str]]:
        """Return how many events wait, by feed and channel."""
        return Counter((event.feed, event.channel) for event in self._waiting)

    def _drop(self, event: HubEvent) -> None:
        self.dropped += 1
        self.dropped_kinds[event.feed, event.channel] += 1

    def _overflow(self, event: HubEvent) -> None:
        if self.overflow is Overflow.CLOSE:
            self._drop(event)
            if not self.is_closed:
                self.is_closed = True
                self._on_ready()
        else:
            if self.overflow is Overflow.CONFLATE:
                self._make_room()
            if len(self._waiting) >= self.capacity:
                self._drop(self._waiting.popleft())
            self._waiting.append(event)
        if self._on_loss is not None:
            self._on_loss()

    def _make_room(self) -> None:
        """Conflate. One pass over the queue: so it frees at least an eighth, or the next event would take another."""
        latest: set[tuple[str, str]] = set()
        kept: deque[HubEvent] = deque()
        for event in reversed(self._waiting):
            if event.channel in CONFLATED:
                key = (event.channel, event.symbol)
                if key in latest:
                    continue
                latest.add(key)
            kept.appendleft(event)
        self.conflated += len(self._waiting) - len(kept)
        excess = len(kept) - (self.capacity - max(1, self.capacity // 8))
        for _ in range(excess):
            self._drop(kept.popleft())
        self._waiting = kept
