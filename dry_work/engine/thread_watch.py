"""Notices a thread of a run that has ended although nobody stopped it. One thread."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable

from dry_work.errors import DryWorkError

# Threads that live as long as their run, by name. Those that their part starts anew by itself are not among them: the
# readers of subscriptions, whose keeper looks after them.
LASTING = frozenset(
    {
        "order worker", "account keeper", "brake", "trade updates", "broker trade events", "dry-work-subscriptions",
        "hub", "exchange", "embedded-pubsub",
    }
)  # fmt: skip
# Readers of the hub's other interfaces; their names end with what they read.
LASTING_PREFIXES = ("dry-work-websocket-", "dry-work-grpc-", "dry-work-nats-", "dry-work-redis-")
LOOK_EVERY_S = 1.0


class ThreadWatch:
    """Watches the threads that a run has started.

    A part that fails says so itself, with its own error, which is looked at first. This finds the one that could not.
    A part that was replaced, so that another thread has its name at the second look, is not missed.

    Args:
        before: threads from before the run, which are no concern of it.
        names: which threads are to live until the end.
    """

    def __init__(self, before: Iterable[threading.Thread], names: Collection[str] = LASTING) -> None:
        self._before = set(before)
        self._names = frozenset(names)
        self._watched: list[threading.Thread] = []
        self._missing: frozenset[str] = frozenset()  # at the last look
        self._next_s = 0.0

    @property
    def watched(self) -> list[str]:
        """Names of the watched threads, sorted."""
        return sorted(thread.name for thread in self._watched)

    def begin(self) -> None:
        """Watch the threads that are there now."""
        self._watched = [
            thread
            for thread in threading.enumerate()
            if thread not in self._before and (thread.name in self._names or thread.name.startswith(LASTING_PREFIXES))
        ]

    def look(self, now_s: float) -> None:
        """Look, not more often than each `LOOK_EVERY_S` seconds.

        Raises:
            DryWorkError: naming the threads that have ended.
        """
        if now_s < self._next_s:
            return
        self._next_s = now_s + LOOK_EVERY_S
        if all(thread.is_alive() for thread in self._watched):
            self._missing = frozenset()
            return
        alive = {thread.name for thread in threading.enumerate()}
        before, self._missing = self._missing, frozenset(self.watched) - alive
        if dead := sorted(before & self._missing):
            raise DryWorkError(f"a part of the run ended without a word: thread {', '.join(dead)}")
