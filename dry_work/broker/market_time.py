"""The market's time for a broker, and which orders' times have passed by it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from dry_work.broker.desk import OrderDesk
from dry_work.broker.entry import OrderEntry
from dry_work.broker.tickets import Ticket
from dry_work.clock import MINUTE_NS, SECOND_NS, Clock
from dry_work.feeds.base import line_time


class MarketTime:
    """Time by the slices of the market: it stands still between them in lock-step, and goes on otherwise.

    Args:
        clock: where the time comes from while no slice has said it.
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(self, clock: Clock, *, lockstep: bool, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._lockstep = lockstep
        self._slice_end_ns = 0
        self._slice_seen_s = 0.0

    @property
    def slice_end_ns(self) -> int:
        """End of the slice at hand, 0 before the first."""
        return self._slice_end_ns

    def note_slice(self, end_ns: int) -> None:
        """Take note of the slice at hand."""
        self._slice_seen_s = self._monotonic()
        self._slice_end_ns = end_ns

    def now_ns(self) -> int:
        """Return the market's time. Thread-safe."""
        if not self._slice_end_ns:
            return self._clock.time_ns()
        passed_s = 0.0 if self._lockstep else self._monotonic() - self._slice_seen_s
        return self._slice_end_ns + round(passed_s * SECOND_NS)

    def has_lapsed(self, ticket: Ticket) -> bool:
        """Tell whether an order's time has passed. In lock-step it has when it will have with its symbol's next bar."""
        if ticket.valid is None:
            return False
        ahead_ns = getattr(ticket.order.data, "bar_length_ns", MINUTE_NS) if self._lockstep else 0
        return line_time(self.now_ns() + ahead_ns) > ticket.valid

    def cancel_lapsed(self, desk: OrderDesk, entry: OrderEntry) -> None:
        """Ask for the cancellation of the open orders whose times have passed."""
        if not math.isfinite(entry.next_valid):
            return
        waiting = [t for t in desk.open.values() if t.valid is not None and t.is_sent and not t.cancel_asked]
        for ticket in waiting:
            if self.has_lapsed(ticket) and not any(member.is_expiring for member in ticket.members):
                ticket.is_expiring = True
                entry.ask_cancel(ticket)
        entry.next_valid = min(
            (t.valid for t in waiting if t.valid is not None and not t.cancel_asked), default=math.inf
        )

    def is_due(self, next_valid: float) -> bool:
        """Tell whether an order's time has passed that nobody has looked at yet. Thread-safe."""
        return not self._lockstep and next_valid < math.inf and line_time(self.now_ns()) > next_valid
