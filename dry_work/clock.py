"""Clocks that are passed in, never read inside logic. Thread-safe."""

from __future__ import annotations

import threading
import time
from typing import Protocol

SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS


class Clock(Protocol):
    """Wall time and a clock that never goes back."""

    def time_ns(self) -> int:
        """UTC time in nanoseconds since 1970."""

    def monotonic(self) -> float:
        """Seconds of a clock that never goes back."""


class SystemClock:
    """The machine's clock."""

    def time_ns(self) -> int:
        return time.time_ns()

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that stands still until it is moved; for lock-step runs and tests."""

    def __init__(self, start_ns: int = 0) -> None:
        self._lock = threading.Lock()
        self._now_ns = start_ns
        self._elapsed_ns = 0

    def time_ns(self) -> int:
        return self._now_ns

    def monotonic(self) -> float:
        return self._elapsed_ns / SECOND_NS

    def advance(self, seconds: float) -> None:
        """Move both clocks forward by `seconds`."""
        self.advance_ns(round(seconds * SECOND_NS))

    def advance_ns(self, nanoseconds: int) -> None:
        """Move both clocks forward by `nanoseconds`, which is not negative."""
        if nanoseconds < 0:
            raise ValueError(f"a clock cannot go back by {nanoseconds} ns")
        with self._lock:
            self._now_ns += nanoseconds
            self._elapsed_ns += nanoseconds

    def set_ns(self, now_ns: int) -> None:
        """Move to `now_ns`; a time before the present one is left out."""
        with self._lock:
            if now_ns > self._now_ns:
                self._elapsed_ns += now_ns - self._now_ns
                self._now_ns = now_ns
