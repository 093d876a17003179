"""The bounded buffer between the threads that receive market data and the engine's. Thread-safe."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import msgspec

from dry_work.market.messages import Envelope
from dry_work.ports import SourceFailed, SourceStatus
from dry_work.wakeup import Wakeup

_PUT_CHECK_S = 0.5


class Skipped(msgspec.Struct, frozen=True):
    """The number of a message that could not be read."""

    topic: str
    epoch: str
    seq: int


Item = Envelope | Skipped | SourceStatus | SourceFailed


class Intake:
    """The bounded buffer of one source."""

    def __init__(self, capacity: int) -> None:
        self.wakeup: Wakeup | None = None
        self.full_count = 0
        self._capacity = capacity
        self._items: deque[Item] = deque()
        self._room = threading.Condition()
        self._closed = False
        self._waiting = 0

    def put(self, item: Item, tend: Callable[[], None]) -> bool:
        """Add an item, waiting for room and calling `tend` meanwhile; False when the source stops."""
        with self._room:
            if len(self._items) >= self._capacity and not self._closed:
                self.full_count += 1
                self._waiting += 1
                while len(self._items) >= self._capacity and not self._closed:
                    tend()
                    self._room.wait(_PUT_CHECK_S)
                self._waiting -= 1
            if self._closed:
                return False
            self._items.append(item)
        self._wake()
        return True

    def put_now(self, item: SourceStatus | SourceFailed) -> None:
        """Add an event behind what is there, without waiting for room."""
        with self._room:
            if self._closed:
                return
            self._items.append(item)
        self._wake()

    def get(self) -> Item | None:
        """Return the oldest item, None when there is none."""
        try:
            item = self._items.popleft()
        except IndexError:
            return None
        if self._waiting and len(self._items) <= self._capacity // 2:
            with self._room:
                self._room.notify_all()
        return item

    def has_items(self) -> bool:
        """Tell whether `get` has something."""
        return bool(self._items)

    def close(self) -> None:
        """Take nothing more, and let go who waits for room."""
        with self._room:
            self._closed = True
            self._room.notify_all()

    def _wake(self) -> None:
        if self.wakeup is not None:
            self.wakeup.set()
