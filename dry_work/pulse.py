"""Signs of life of threads that work in rounds, so that one that stands still is noticed. Thread-safe.

Silence means nothing of a thread that sleeps until there is work; only a thread that has given a pulse is expected to
give another.
"""

from __future__ import annotations

import asyncio
import threading
import time
from weakref import WeakKeyDictionary

EVERY_S = 5.0  # of event loops, and the longest wait of a reader

_now_s = time.monotonic
_last_s: WeakKeyDictionary[threading.Thread, float] = WeakKeyDictionary()


def give_pulse() -> None:
    """Say that the thread that calls this is alive and at work."""
    _last_s[threading.current_thread()] = _now_s()


def last_pulse(thread: threading.Thread) -> float | None:
    """Return when a thread gave a pulse last, by the monotonic clock; None: it never has."""
    return _last_s.get(thread)


def keep_pulse(loop: asyncio.AbstractEventLoop) -> None:
    """Let an event loop give pulses for as long as it runs; called on its thread."""
    give_pulse()
    loop.call_later(EVERY_S, keep_pulse, loop)
