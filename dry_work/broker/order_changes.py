"""Changes of orders: executions, phases, ends, as Backtrader's objects and the journal get them. Engine thread only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import backtrader as bt
import structlog
from msgspec.structs import replace

from dry_work.broker.notices import Notices
from dry_work.broker.order_objects import build_correction, is_without_bar, take_back_execution
from dry_work.broker.positions import PositionBook
from dry_work.broker.retired import FillRows
from dry_work.broker.tickets import Ticket, execute_order, fill_record
from dry_work.feeds.base import line_time
from dry_work.orders.books import Fill, PositionChange
from dry_work.orders.groups import Role
from dry_work.orders.lifecycle import Effect, Phase, next_phases, status_word
from dry_work.orders.model import OrderRequest

_log = structlog.get_logger(__name__)


class OrderChanges:
    """Brings orders from phase to phase, and keeps what has to be written down of it.

    Args:
        broker: what Backtrader's orders are told is their broker.
        book: positions and cash.
        notices: takes the notifications.
        open_tickets: the orders that can still be filled; kept here.
        add_name: lets another client order id stand for an order.
        commission_of: returns the commission scheme of a data.
        look_up: asks the venue for orders by client order id.
        send: sends the second part of a split order.
        lockstep: the venue tells of everything by itself.
    """

    def __init__(
        self,
        *,
        broker: Any,
        book: PositionBook,
        notices: Notices,
        open_tickets: dict[str, Ticket],
        add_name: Callable[[str, Ticket], None],
        commission_of: Callable[[Any], Any],
        look_up: Callable[[Iterable[str]], None],
        send: Callable[[Ticket, OrderRequest, int], None],
        lockstep: bool,
    ) -> None:
        self.fill_rows = FillRows()
        self._broker = broker
        self._book = book
        self._notices = notices
        self._open = open_tickets
        self._add_name = add_name
        self._commission_of = commission_of
        self._look_up = look_up
        self._send = send
        self._lockstep = lockstep
        self._new_fills: list[Fill] = []
        self._new_names: dict[str, str] = {}
        self._new_ends: list[tuple[str, str]] = []

    def take_new_fills(self) -> tuple[list[Fill], dict[str, str]]:
        """Return the fills since the last call, and the venue's names of their orders where they are not ours."""
        found, self._new_fills = self._new_fills, []
        names, self._new_names = self._new_names, {}
        return found, names

    def take_new_ends(self) -> list[tuple[str, str]]:
        """Return the orders that have ended since the last call: client order id and Alpaca's word for how."""
        found, self._new_ends = self._new_ends, []
        return found

    def write_down(self, fill: Fill, ticket: Ticket) -> None:
        """Let a fill be written to the journal, under our name, also where the venue has another."""
        self._new_fills.append(replace(fill, client_order_id=ticket.client_order_id))
        if fill.client_order_id != ticket.client_order_id:
            self._new_names[fill.execution_id] = fill.client_order_id

    def write_down_fill(self, fill: Fill) -> None:
        """Let a fill of an order of an earlier run be written to the journal."""
        self._new_fills.append(fill)

    def write_end(self, ticket: Ticket, phase: Phase) -> None:
        """Let the end of an order be written to the journal."""
        self._new_ends.append((ticket.client_order_id, status_word(phase).value))

    # Executions

    def execute(self, ticket: Ticket, fill: Fill, effect: Effect) -> None:
        """Take an execution of an order."""
        change = self._book.apply(fill)
        if change is None:
            return
        goes_on = effect is Effect.FILL and ticket.remainder is not None
        *before, last = next_phases(ticket.phase, Effect.PARTIAL_FILL if goes_on else effect)
        for phase in before:
            self.enter(ticket, phase)
        self._record(ticket, change)
        self.enter(ticket, last)
        if goes_on:
            self.go_on(ticket)

    def _record(self, ticket: Ticket, change: PositionChange) -> None:
        order = ticket.order
        commission = execute_order(order, change, self._commission_of(order.data))
        ticket.filled += change.fill.qty
        self.write_down(change.fill, ticket)
        record = fill_record(self._new_fills[-1], symbol=ticket.symbol, commission=commission)
        self.fill_rows.add(change.fill.execution_id, record)

    def take_back(self, ticket: Ticket, fill: Fill) -> bool:
        """Undo an execution of an order, which is told as it is then; False when that was done before.

        Backtrader's trades hear of it by an order that no strategy hears of.
        """
        change = self._book.apply(fill)
        if change is None:
            return False
        order = ticket.order
        ticket.filled += fill.qty
        self.write_down(fill, ticket)
        self.fill_rows.take_back(fill.previous_execution_id)
        comminfo = self._commission_of(order.data)
        take_back_execution(order, fill, comminfo)
        if ticket.phase is Phase.PARTIAL and not ticket.filled:
            ticket.phase = Phase.ACCEPTED
            order.accept(self._broker)
        self._notices.notify(order, ticket)
        self._notices.notify(build_correction(order.data, change, comminfo, tradeid=order.tradeid))
        return True

    def complete(self, ticket: Ticket) -> None:
        """Take the venue's word that all is executed, when all executions are applied."""
        if ticket.phase.is_open and ticket.remainder is not None:
            self.go_on(ticket)
        elif ticket.phase.is_open:
            for phase in next_phases(ticket.phase, Effect.FILL):
                self.enter(ticket, phase)

    def go_on(self, ticket: Ticket) -> None:
        """The first part of a split order is filled: the second follows, unless the order was to be canceled."""
        part = ticket.remainder
        assert part is not None
        ticket.remainder = None
        if part.is_canceled:
            self.enter(ticket, Phase.EXPIRED if ticket.is_expiring else Phase.CANCELED)
            return
        name = part.request.client_order_id
        ticket.sent_name = ticket.venue_name = name
        ticket.venue_id = ""
        self._add_name(name, ticket)
        self._send(ticket, part.request, part.number)

    # Phases

    def advance(
        self, ticket: Ticket, effect: Effect, *, reason: str = "", code: int | str | None = None, at_ns: int = 0
    ) -> None:
        """Take an effect of the venue's word that is no execution."""
        if effect in (Effect.REJECT, Effect.LACK_FUNDS) and ticket.phase.is_open:
            reason = reason or "the venue gave no reason"
            ticket.order.addinfo(reject_reason=reason, reject_code=code)
            _log.warning("order rejected", symbol=ticket.symbol, reason=reason, code=code)
        for phase in next_phases(ticket.phase, effect):
            ends_by_date = phase is Phase.CANCELED and ticket.is_expiring
            self.enter(ticket, Phase.EXPIRED if ends_by_date else phase, at_ns)

    def enter(self, ticket: Ticket, phase: Phase, at_ns: int = 0) -> None:
        """Bring Backtrader's order into a phase and notify it; `at_ns` is the venue's time of an end."""
        order = ticket.order
        ticket.phase = phase
        show_phase(order, phase, self._broker)
        if phase is Phase.COMPLETED and ticket.request is not None and ticket.request.notional is not None:
            order.size = order.created.size = order.executed.size  # of dollars nobody knew before
        if not phase.is_open:
            self._open.pop(ticket.client_order_id, None)
            ticket.replacing = ticket.remainder = None
            if ticket.request is not None:
                self.write_end(ticket, phase)
            if at_ns and not self._lockstep:
                order.executed.dt = line_time(at_ns)
        if ticket.role is Role.ENTRY and phase is Phase.COMPLETED:
            for member in ticket.members:
                member.order.activate()
        mark = ticket.cancel_mark
        if mark is not None and mark.is_queued and phase in (Phase.CANCELED, Phase.EXPIRED):
            order.executed.dt = mark.line_time
            self._notices.fill_mark(ticket, mark)
        else:
            self._notices.notify(order, ticket)
        if not phase.is_open and ticket.members:
            self._end_group(ticket)

    def _end_group(self, ticket: Ticket) -> None:
        """An order of a group has ended: what never got to the venue ends with it, the rest is the venue's to tell."""
        others = [member for member in ticket.members if member.phase.is_open]
        if ticket.head is ticket and ticket.phase in (Phase.REJECTED, Phase.MARGIN):
            reason = f"the order that it went out with was rejected: {ticket.order.info.get('reject_reason', '')}"
            for member in others:
                if member.phase is Phase.SUBMITTED:
                    self.advance(member, Effect.REJECT, reason=reason, code=ticket.order.info.get("reject_code"))
            others = [member for member in others if member.phase.is_open]
        # The venue does not always tell of the exit that it cancels.
        names = [member.sent_name for member in others if member.venue_id]
        if names and not self._lockstep and not (ticket.role is Role.ENTRY and ticket.phase is Phase.COMPLETED):
            self._look_up(names)


def show_phase(order: Any, phase: Phase, broker: Any) -> None:
    """Let Backtrader's order say a phase."""
    with is_without_bar(order):
        if phase is Phase.SUBMITTED:
            order.submit(broker)
        elif phase is Phase.ACCEPTED:
            order.accept(broker)
        elif phase is Phase.PARTIAL:
            order.partial()
        elif phase is Phase.COMPLETED:
            order.completed()
            order.executed.remsize = 0  # floats may leave a residue; the venue's word is final
        elif phase is Phase.MARGIN:
            order.margin()
        elif phase is Phase.REJECTED:
            order.reject(broker)
        elif phase is Phase.CANCELED:
            order.cancel()
        elif phase is Phase.EXPIRED:
            order.cancel()  # sets the time; `expire` would decide for itself
            order.status = bt.Order.Expired
