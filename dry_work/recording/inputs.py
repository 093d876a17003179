"""The time and random numbers of a strategy whose session is to be replayed.

A strategy that asks here gets the machine's clock and fresh random numbers, and in a replay what it got in the
session::

    from dry_work.recording.inputs import make_random, time_ns

What it reads elsewhere (`time.time()`, `random.random()`) is not in the record: a replay tells when it matters.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator

from dry_work.broker.flight import NO_FLIGHT, WALL_CLOCK, Flight

_flight: Flight = NO_FLIGHT
_seed: int | None = None


def time_ns() -> int:
    """Return the time of the machine, UTC, in nanoseconds since 1970."""
    return _flight.read(WALL_CLOCK, time.time_ns())


def make_random() -> random.Random:
    """Return a source of random numbers; in a run each begins with the session's seed."""
    return random.Random(_seed)


@contextlib.contextmanager
def provide_inputs(flight: Flight, seed: int) -> Iterator[None]:
    """Let strategies of this process read the clock through `flight`, and begin with `seed`."""
    global _flight, _seed
    before = _flight, _seed
    _flight, _seed = flight, seed
    try:
        yield
    finally:
        _flight, _seed = before
