"""The equity of an account over time. Pure."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from decimal import Decimal

import numpy as np

from dry_work.exchange.timeframes import NEW_YORK, Timeframe, find_starts


class EquityLog:
    """The equity of one account over time."""

    def __init__(self, time_ns: int, equity: Decimal) -> None:
        self._times = array("q", [time_ns])
        self._values = array("d", [float(equity)])

    def add(self, time_ns: int, equity: Decimal) -> None:
        """Enter the equity at a time later than the last."""
        self._times.append(time_ns)
        self._values.append(float(equity))

    def before(self, time_ns: int) -> tuple[int, float]:
        """Return time and value of the last entry before `time_ns`, else of the first."""
        row = max(bisect_left(self._times, time_ns) - 1, 0)
        return self._times[row], self._values[row]

    def last_by(self, timeframe: Timeframe, first_ns: int, last_ns: int) -> list[tuple[int, float]]:
        """Return (start, last value) of each stretch of `timeframe` with entries from `first_ns` to `last_ns`."""
        rows = slice(bisect_left(self._times, first_ns), bisect_right(self._times, last_ns))
        times = np.array(self._times[rows], dtype=np.int64)
        if not len(times):
            return []
        # An entry is of the end of a bar: what ends at midnight belongs to the day before.
        starts = find_starts(times - 1, timeframe, NEW_YORK)
        lasts = np.flatnonzero(np.concatenate((starts[1:] != starts[:-1], [True])))
        values = self._values[rows]
        return [(int(starts[row]), values[row]) for row in lasts.tolist()]
