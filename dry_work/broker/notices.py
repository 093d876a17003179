"""Notifications of orders: what is to be told, in order, and what has been told. Engine thread only.

Every change of an order is notified with exactly one clone, since each clone takes the executions that were not told
yet. A clone carries what a strategy knows once it has heard it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from dry_work.broker.order_objects import describe_placed
from dry_work.broker.tickets import CancelMark, Ticket
from dry_work.broker.told import SavedSubmit, ToldOrder, ToldRecord
from dry_work.orders.client_ids import parse_client_order_id

_MARK = "told_mark"  # attribute of a clone


class Notices:
    """The queue of notifications.

    Args:
        lockstep: the word on a cancellation is sure to be in before the notifications that were asked for after it.
        keeps_told: keep what was told; without it nothing is kept of orders that have ended.
        wake: called when something was told or decided of which the last record does not know.
    """

    def __init__(self, *, lockstep: bool, keeps_told: bool, wake: Callable[[], None]) -> None:
        self.is_changed = False  # something was told or decided since the last record
        self._wake = wake
        self._lockstep = lockstep
        self._keeps_told = keeps_told
        self._queue: deque[Any] = deque()  # notifications and cancel marks
        self._unsettled: dict[str, Ticket] = {}  # orders of which not all is told
        self._carried: dict[str, ToldOrder] = {}  # orders of earlier runs that are left alone in this one
        self._numbers: dict[str, int] = {}

    def notify(self, order: Any, ticket: Ticket | None = None) -> None:
        """Queue a notification of the order as it is now."""
        self._queue.append(self._clone(order, ticket))

    def _clone(self, order: Any, ticket: Ticket | None) -> Any:
        clone = order.clone()
        if ticket is not None and self._keeps_told:
            ticket.queued += 1
            self.note(ticket)
            mark = ToldOrder(
                phase=ticket.phase,
                filled=ticket.filled,
                standing=ticket.standing,
                replacing="" if ticket.replacing is None else ticket.replacing.request.client_order_id,
            )
            setattr(clone, _MARK, (ticket, mark, ticket.asked_count))
        return clone

    def mark_cancel(self, ticket: Ticket) -> None:
        """Hold the place of a cancellation that was asked for now."""
        self.note(ticket)
        if self._lockstep and len(ticket.order.data):
            ticket.cancel_mark = CancelMark(ticket.order.data.datetime[0])
            self._queue.append(ticket.cancel_mark)

    def fill_mark(self, ticket: Ticket, mark: CancelMark) -> None:
        """Put the notification of a cancellation in the place that was held for it."""
        mark.is_queued = False
        mark.notification = self._clone(ticket.order, ticket)

    def release(self) -> list[Any]:
        """Return the notifications so far, in order."""
        released = []
        for item in self._queue:
            if not isinstance(item, CancelMark):
                released.append(item)
                continue
            item.is_queued = False
            if item.notification is not None:
                released.append(item.notification)
        self._queue.clear()
        return released

    # What was told

    def note(self, ticket: Ticket) -> None:
        """Take note of an order that has changed: what a strategy knows of it is part of the next record."""
        if self._keeps_told:
            self._unsettled[ticket.client_order_id] = ticket
            self._change()

    def _change(self) -> None:
        if not self.is_changed:
            self.is_changed = True
            self._wake()

    def is_unsettled(self, ticket: Ticket) -> bool:
        """Tell whether a strategy has not heard all of an order."""
        return ticket.client_order_id in self._unsettled

    def note_number(self, session: str, number: int) -> None:
        """Take note of the last number of a session."""
        self._numbers[session] = max(number, self._numbers.get(session, 0))

    def carry(self, client_order_id: str, told: ToldOrder) -> None:
        """Keep what a strategy knows of an order that is left alone in this run."""
        self._carried[client_order_id] = told

    def note_told(self, clone: Any) -> None:
        """Take note of a notification that a strategy has heard."""
        found = getattr(clone, _MARK, None)
        if found is None:
            return
        ticket, mark, asked_count = found
        delattr(clone, _MARK)
        ticket.queued -= 1
        ticket.told = mark
        self._change()
        if asked_count == ticket.asked_count and not mark.replacing:
            ticket.asked_replacement = ""
        if ticket.queued == 0 and mark.phase is not None and not mark.phase.is_open and not ticket.phase.is_open:
            self._unsettled.pop(ticket.client_order_id, None)

    def record(self) -> ToldRecord:
        """Return what a strategy knows of its orders now."""
        self.is_changed = False
        for name in self._unsettled:
            parts = parse_client_order_id(name)
            if parts is not None:
                self.note_number(parts.session, parts.number)
        return ToldRecord(
            numbers=dict(self._numbers),
            orders={**self._carried, **{name: _describe(ticket) for name, ticket in self._unsettled.items()}},
        )


def _describe(ticket: Ticket) -> ToldOrder:
    told = ticket.told or ToldOrder()
    saved = ticket.saved
    if saved is None and told.phase is None and not ticket.is_answered and not ticket.is_leg:
        # Refused or lapsed before it could be sent. An exit is part of the order that it goes out with.
        placed = describe_placed(ticket.order, ticket.terms, placed_ns=ticket.submitted_ns)
        saved = SavedSubmit(number=ticket.number, placed=placed)
    return ToldOrder(
        phase=told.phase,
        filled=told.filled,
        standing=told.standing,
        replacing=ticket.asked_replacement,
        cancel_asked=ticket.cancel_asked or ticket.cancel_wanted,
        submit=None if ticket.is_answered else saved,
        replacement=None if ticket.replacing is None else ticket.replacing.saved,
    )
