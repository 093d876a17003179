"""How many sessions an account may have open. Event-loop only."""

from __future__ import annotations

from collections import Counter

from dry_work.clock import Clock


class ConnectionSlots:
    """Counts the open sessions of each key and endpoint.

    A session whose connection was lost without a close holds its slot for `stale_s` more seconds, as Alpaca notices
    the loss late.

    Args:
        limit: sessions of a key on an endpoint; None is without limit.
    """

    def __init__(self, limit: int | None, *, stale_s: float, clock: Clock) -> None:
        self._limit = limit
        self._stale_s = stale_s
        self._clock = clock
        self._open: Counter[tuple[str, str]] = Counter()
        self._stale: dict[tuple[str, str], list[float]] = {}  # when each lost session is given up

    def is_free(self, key_id: str, endpoint: str) -> bool:
        """Tell whether one more session may be opened."""
        if self._limit is None:
            return True
        place, now_s = (key_id, endpoint), self._clock.monotonic()
        stale = [until_s for until_s in self._stale.pop(place, ()) if until_s > now_s]
        if stale:
            self._stale[place] = stale
        return self._open[place] + len(stale) < self._limit

    def take(self, key_id: str, endpoint: str) -> bool:
        """Count a session as open; tell whether that was allowed."""
        if not self.is_free(key_id, endpoint):
            return False
        self._open[key_id, endpoint] += 1
        return True

    def release(self, key_id: str, endpoint: str, *, clean: bool) -> None:
        """Count a session as ended; `clean` when one of both sides said so."""
        place = (key_id, endpoint)
        self._open[place] -= 1
        if not self._open[place]:
            del self._open[place]
        if not clean and self._stale_s > 0 and self._limit is not None:
            self._stale.setdefault(place, []).append(self._clock.monotonic() + self._stale_s)
