"""Which longer bar a moment belongs to. Pure.

Days of UTC are cut into bars of one length, from midnight on; where the length does not divide a day its last bar is
shorter. The end of a session cuts a bar as well. A bar goes from just after its begin to its end: what ends on an edge
belongs to the bar that ends there.
"""

from __future__ import annotations

from collections.abc import Callable

from dry_work.clock import DAY_NS


class BarGrid:
    """Finds the bar of a time; remembers the last one, since most times are of the same bar as the one before.

    Args:
        length_ns: of the bars.
        offset_ns: edges are that much earlier.
        session_end_ns: of a time, the first end of a session that is not before it; None: sessions cut nothing.
    """

    def __init__(
        self, length_ns: int, *, offset_ns: int = 0, session_end_ns: Callable[[int], int] | None = None
    ) -> None:
        if length_ns <= 0:
            raise ValueError(f"bars of {length_ns} ns: expected a length above 0")
        self._length_ns = length_ns
        self._offset_ns = offset_ns
        self._session_end_ns = session_end_ns
        self._span = (0, 0)

    def find_span(self, time_ns: int) -> tuple[int, int]:
        """Return begin and end of the bar that a time belongs to: begin < time <= end."""
        begin, end = self._span
        if not begin < time_ns <= end:
            self._span = self._compute_span(time_ns)
        return self._span

    def find_end(self, time_ns: int) -> int:
        """Return the end of the bar that a time belongs to."""
        return self.find_span(time_ns)[1]

    def _compute_span(self, time_ns: int) -> tuple[int, int]:
        midnight = (time_ns - 1) // DAY_NS * DAY_NS
        length, offset = self._length_ns, self._offset_ns
        number = (time_ns - midnight + offset - 1) // length
        begin = max(midnight, midnight + number * length - offset)
        end = min(midnight + DAY_NS, midnight + (number + 1) * length - offset)
        if self._session_end_ns is not None:
            closing = self._find_closing(begin)
            while closing < time_ns:
                begin = closing
                closing = self._find_closing(begin)
            end = min(end, closing)
        return begin, end

    def _find_closing(self, after_ns: int) -> int:
        assert self._session_end_ns is not None
        closing = self._session_end_ns(after_ns + 1)
        if closing <= after_ns:
            raise ValueError(f"the end of a session after {after_ns} ns is not {closing} ns, which is before it")
        return closing
