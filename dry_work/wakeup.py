"""The one thing that the engine sleeps on. Thread-safe, and safe in signal handlers."""

from __future__ import annotations

import queue


class Wakeup:
    """A flag that any thread or signal handler may raise and one thread waits for.

    `wait` lowers the flag, so the waiter must look at all its sources after it: what was added before `set` is then
    seen, and what comes later raises the flag again.
    """

    # An Event would not do: its `set` in a signal handler can meet the lock that `wait` of the same thread holds.

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._raised = False

    def set(self) -> None:
        """Wake the waiter now, or let its next `wait` return at once."""
        if not self._raised:
            self._raised = True
            self._queue.put(None)

    def wait(self, timeout_s: float | None) -> bool:
        """Sleep until `set`, at most `timeout_s` seconds (None: without limit); tell whether it was set."""
        try:
            self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return False
        self._raised = False
        return True
