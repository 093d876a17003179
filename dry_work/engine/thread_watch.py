"""Notices a thread of a run that has ended although nobody stopped it, or that stands still. One thread."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable

from dry_work.errors import DryWorkError
from dry_work.pulse import last_pulse

# Threads that live as long as their run, by name. Those that their part starts anew by itself are not among them.
LASTING = frozenset(
    {
        "order worker", "account keeper", "brake", "trade updates", "broker trade events", "dry-work-subscriptions",
        "hub", "exchange", "embedded-pubsub",
    }
)  # fmt: skip
# Readers of the hub's other interfaces; their names end with what they read.
LASTING_PREFIXES = ("dry-work-websocket-", "dry-work-grpc-", "dry-work-nats-", "dry-work-redis-")
# Those that are started anew by their part when they end, but that may stand still: readers of subscriptions.
RENEWED_PREFIXES = ("dry-work agent-",)
LOOK_EVERY_S = 1.0
# Of a thread that works in rounds; the longest round, fetching an account from a venue that hardly answers, is shorter.
# A process that was stopped and goes on finds all pulses old: they are given anew before the second look.
STILL_S = 300.0
SECOND_LOOK_S = 30.0


class ThreadWatch:
    """Watches the threads that a run has started.

    A part that fails says so itself, with its own error, which is looked at first. This finds the one that could not.
    A part that was replaced, so that another thread has its name at the second look, is not missed.

    Args:
        before: threads from before the run, which are no concern of it.
        names: which threads are to live until the end.
        still_s: a thread whose last pulse is older stands still; None: `STILL_S`.
        second_look_s: how long after it was seen so; None: `SECOND_LOOK_S`.
    """

    def __init__(
        self,
        before: Iterable[threading.Thread],
        names: Collection[str] = LASTING,
        *,
        still_s: float | None = None,
        second_look_s: float | None = None,
    ) -> None:
        self._before = set(before)
        self._names = frozenset(names)
        self._still_s = STILL_S if still_s is None else still_s
        self._second_look_s = SECOND_LOOK_S if second_look_s is None else second_look_s
        self._watched: list[threading.Thread] = []
        self._missing: frozenset[str] = frozenset()  # at the last look
        self._next_s = 0.0
        self._still_since_s: dict[threading.Thread, float] = {}  # when it was first seen

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

        Args:
            now_s: by the monotonic clock.

        Raises:
            DryWorkError: naming the threads that have ended, or stand still.
        """
        if now_s < self._next_s:
            return
        self._next_s = now_s + LOOK_EVERY_S
        self._look_for_still(now_s)
        if all(thread.is_alive() for thread in self._watched):
            self._missing = frozenset()
            return
        alive = {thread.name for thread in threading.enumerate()}
        before, self._missing = self._missing, frozenset(self.watched) - alive
        if dead := sorted(before & self._missing):
            raise DryWorkError(f"a part of the run ended without a word: thread {', '.join(dead)}")

    def _look_for_still(self, now_s: float) -> None:
        watched = {*self._watched, *self._find_renewed()}
        pulses = {thread: pulse for thread in watched if (pulse := last_pulse(thread)) is not None}
        still = {
            thread: pulse for thread, pulse in pulses.items() if now_s - pulse > self._still_s and thread.is_alive()
        }
        self._still_since_s = {thread: self._still_since_s.get(thread, now_s) for thread in still}
        found = [thread for thread, since_s in self._still_since_s.items() if now_s - since_s >= self._second_look_s]
        if found:
            told = ", ".join(sorted(f"{thread.name}, for {now_s - still[thread]:.0f} s" for thread in found))
            raise DryWorkError(f"a part of the run stands still: thread {told}")

    def _find_renewed(self) -> list[threading.Thread]:
        return [
            thread
            for thread in threading.enumerate()
            if thread.name.startswith(RENEWED_PREFIXES) and thread not in self._before
        ]
