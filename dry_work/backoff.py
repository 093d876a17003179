"""How long to wait before the next try: one policy for every connection. Pure; one owner at a time.

The wait grows by `multiplier` from `initial_s` to `cap_s` and is spread by `jitter` to both sides. It is applied after
clean ends too, and starts over once a connection has been healthy for `healthy_after_s`: a connection that ends sooner
counts as one more failure, so that a peer which accepts and drops at once is not hammered.
"""

from __future__ import annotations

import random

INITIAL_S = 0.5
CAP_S = 30.0
MULTIPLIER = 2.0
JITTER = 0.1
HEALTHY_AFTER_S = 30.0


class Backoff:
    """The waits of one connection.

    Args:
        rng: where the jitter comes from.
        initial_s: first wait.
        cap_s: longest wait; jitter does not go above it.
        multiplier: growth from one wait to the next, at least 1.
        jitter: share of the wait by which it varies, from 0 up to, not including, 1.
        healthy_after_s: a connection that lasted so long starts the waits over.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        initial_s: float = INITIAL_S,
        cap_s: float = CAP_S,
        multiplier: float = MULTIPLIER,
        jitter: float = JITTER,
        healthy_after_s: float = HEALTHY_AFTER_S,
    ) -> None:
        if not 0 < initial_s <= cap_s:
            raise ValueError(f"initial_s {initial_s} is not between 0 and cap_s {cap_s}")
        if multiplier < 1:
            raise ValueError(f"multiplier {multiplier} is below 1")
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter {jitter} is not from 0 up to 1")
        self._rng = rng
        self._initial_s = initial_s
        self._cap_s = cap_s
        self._multiplier = multiplier
        self._jitter = jitter
        self._healthy_after_s = healthy_after_s
        self._wait_s = initial_s
        self._connected_s: float | None = None
        self.attempts = 0  # waits since the last reset

    def mark_connected(self, now_s: float) -> None:
        """Note that the connection is usable since `now_s`, a monotonic time."""
        self._connected_s = now_s

    def next_wait_s(self, now_s: float) -> float:
        """Return the seconds to wait after the failure or end at `now_s`, and grow the wait after it."""
        if self._connected_s is not None and now_s - self._connected_s >= self._healthy_after_s:
            self.reset()
        self._connected_s = None
        wait_s = self._wait_s
        self.attempts += 1
        self._wait_s = min(self._cap_s, wait_s * self._multiplier)
        low_s, high_s = wait_s * (1 - self._jitter), min(wait_s * (1 + self._jitter), self._cap_s)
        return self._rng.uniform(low_s, high_s)

    def reset(self) -> None:
        """Start over with the first wait."""
        self._wait_s = self._initial_s
        self._connected_s = None
        self.attempts = 0
