"""The one thing that the engine sleeps on. Thread-safe, and safe in signal handlers."""

from __future__ import annotations

import math
import queue
import threading
import time

# A signal that comes just before the main thread goes to sleep, or that the system hands to another thread, does not
# wake it: its handler runs when the thread wakes for another reason.
_SIGNALS_S = 1.0


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
        if threading.current_thread() is threading.main_thread():
            until_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
            while (left_s := until_s - time.monotonic()) > _SIGNALS_S:
                if self._take(_SIGNALS_S):
                    return True
            timeout_s = max(left_s, 0.0)
        return self._take(timeout_s)

    def _take(self, timeout_s: float | None) -> bool:
        try:
            self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return False
        self._raised = False
        return True
