"""Bounded histories that one thread writes and any other reads, without a lock: a reader never holds the writer up.

Each relies on single operations of CPython being whole: an attribute is set at once, an array is extended at once.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence

BARS_KEPT = 500  # of each symbol
EQUITY_KEPT = 2000  # points of the curve


class RowTrail:
    """Rows of numbers of one width, the newest of them.

    Args:
        width: numbers in a row.
        kept: rows that are kept at least, once they were there.
    """

    def __init__(self, width: int, kept: int = BARS_KEPT) -> None:
        self.width = width
        self._kept = kept
        self._limit = (kept + max(kept // 4, 1)) * width
        self._state: tuple[int, array[float]] = (0, array("d"))  # number of the first row, the rows

    @property
    def total(self) -> int:
        """Rows so far, those that are gone too."""
        first, rows = self._state
        return first + len(rows) // self.width

    def append(self, row: tuple[float, ...]) -> None:
        """Add a row."""
        first, rows = self._state
        rows.extend(row)
        if len(rows) > self._limit:
            dropped = len(rows) // self.width - self._kept
            self._state = (first + dropped, rows[dropped * self.width :])

    def find(self, lowest: float) -> int:
        """Return the number of the first row that is still there and begins with `lowest` or more; they must rise."""
        first, rows = self._state
        return first + bisect_left(rows[:: self.width], lowest)

    def read(self, since: int = 0, until: int | None = None) -> tuple[int, list[list[float]]]:
        """Return the number of the first row, and the rows that are still there.

        Args:
            since: number of the first one that is wanted.
            until: number of the first one that is not; None: all that follow.
        """
        first, rows = self._state
        width = self.width
        begin = max(since, first)
        count = len(rows) // width if until is None else max(until - first, 0)
        taken = rows[(begin - first) * width : count * width]
        return begin, [taken[at : at + width].tolist() for at in range(0, len(taken), width)]


class CurveTrail:
    """A curve over all its time. When it gets too long every second point of it goes, but for the newest.

    Args:
        kept: points at most.
    """

    def __init__(self, kept: int = EQUITY_KEPT) -> None:
        self._kept = kept
        self._stride = 1
        self._skipped = 0
        self._points: array[float] = array("d")  # time, value, time, value; in order of time
        self._last: tuple[float, float] | None = None  # newest, where it is not in `_points`

    def append(self, time_ms: float, value: float) -> None:
        """Add a point; one that is not later than the last one is left out."""
        points = self._points
        newest = self._last[0] if self._last is not None else points[-2] if points else float("-inf")
        if time_ms <= newest:
            return
        self._skipped += 1
        if self._skipped < self._stride and points:
            self._last = (time_ms, value)
            return
        self._skipped = 0
        self._last = None
        points.extend((time_ms, value))
        if len(points) >= 2 * self._kept:
            self._stride *= 2
            self._points = _halve(points)

    def read(self, since_ms: float = float("-inf")) -> list[list[float]]:
        """Return [time, value] of the points after `since_ms`, in order of time."""
        points, last = self._points, self._last
        low, high = 0, len(points) // 2
        while low < high:
            middle = (low + high) // 2
            if points[2 * middle] <= since_ms:
                low = middle + 1
            else:
                high = middle
        taken = points[2 * low : len(points) // 2 * 2]
        found = [[taken[at], taken[at + 1]] for at in range(0, len(taken), 2)]
        if last is not None and last[0] > since_ms and (not found or last[0] > found[-1][0]):
            found.append(list(last))
        return found


def _halve(points: Sequence[float]) -> array[float]:
    kept = array("d")
    count = len(points) // 2
    for number in range(count):
        if number % 2 == 0 or number == count - 1:
            kept.extend((points[2 * number], points[2 * number + 1]))
    return kept
