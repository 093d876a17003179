"""What the venue answered to the run's own requests, applied to its orders. Part of `desk`. Engine thread only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from dry_work.broker.order_changes import OrderChanges
from dry_work.broker.outcomes import CancelRefused, OrderLookedUp, OrderRefused, OrderTaken, OrderUnresolved
from dry_work.broker.positions import PositionBook
from dry_work.broker.replacements import Replacements
from dry_work.broker.tickets import Ticket
from dry_work.errors import InsufficientFundsError, RiskRefusedError
from dry_work.orders.lifecycle import Effect, Phase, status_effect
from dry_work.orders.model import OrderStatus, VenueOrder

FILLS = (Effect.FILL, Effect.PARTIAL_FILL)
LIVE = (Effect.ACCEPT, *FILLS)  # of a replacement: it has taken the other's place

_log = structlog.get_logger(__name__)


class Doubts(Protocol):
    """What is told of orders that are not explained; see `account_watch`."""

    def doubt(self, symbol: str, client_order_id: str, reason: str) -> None: ...
    def clear(self, symbol: str, client_order_id: str) -> None: ...


class OrderAnswers:
    """Answers to submits, cancellations and look-ups."""

    tickets: dict[str, Ticket]
    changes: OrderChanges
    replacements: Replacements
    _book: PositionBook
    _names: dict[str, Ticket]
    _doubtful: set[str]
    _cleared: set[str]
    _counters: Counter[str]
    _lockstep: bool
    _fail: Callable[[BaseException], None]
    _look_up: Callable[[Iterable[str]], None]
    _restart_stream: Callable[[], None]
    _note_ids: Callable[[Ticket, VenueOrder], None]
    _bind_legs: Callable[[Iterable[tuple[str, VenueOrder]]], None]
    _is_current: Callable[[Ticket, VenueOrder], bool]
    _doubts: Callable[[], Doubts | None]
    bind: Callable[[Ticket, VenueOrder], None]

    def _take_answer(self, outcome: OrderTaken) -> None:
        ticket = self._names[outcome.client_order_id]
        ticket.is_unresolved = False
        ticket.is_answered = True
        self._clear(ticket)
        self._note_ids(ticket, outcome.order)
        if not ticket.venue_id:
            self.bind(ticket, outcome.order)
        self._bind_legs(outcome.legs)
        if self._lockstep:
            return
        for taken, order in ((ticket, outcome.order), *((self.tickets[name], leg) for name, leg in outcome.legs)):
            if taken.phase.is_open and self._is_current(taken, order):
                self._take_word(taken, order)

    def _take_refusal(self, outcome: OrderRefused) -> None:
        error = outcome.error
        if outcome.is_fault:
            self._fail(error)
        effect = Effect.LACK_FUNDS if isinstance(error, InsufficientFundsError) else Effect.REJECT
        code = error.reject_code if isinstance(error, RiskRefusedError) else error.code
        for ticket in self._names[outcome.client_order_id].members or [self._names[outcome.client_order_id]]:
            ticket.is_answered = True
        self.changes.advance(self._names[outcome.client_order_id], effect, reason=error.message, code=code)
        self._bind_legs(())

    def _take_unresolved(self, outcome: OrderUnresolved) -> None:
        ticket = self._names[outcome.client_order_id]
        ticket.is_answered = True
        if ticket.venue_id:
            return  # an event has told meanwhile
        ticket.is_unresolved = True
        self._doubt(ticket, f"the venue did not say what became of {ticket.client_order_id}")
        self._counters["orders of unknown outcome"] += 1
        _log.error("outcome of an order is unknown", client_order_id=ticket.client_order_id, error=str(outcome.error))
        if self._lockstep:
            self._fail(outcome.error)

    def _take_cancel_refusal(self, outcome: CancelRefused) -> None:
        ticket = self._names[outcome.client_order_id]
        ticket.cancel_asked = False
        ticket.is_expiring = ticket.is_expiring and ticket.remainder is not None
        for member in ticket.members or [ticket]:
            member.cancel_mark = None
        if ticket.phase.is_open:
            _log.info("cancellation refused", client_order_id=ticket.client_order_id, reason=outcome.error.message)
            if not self._lockstep:
                self._look_up([ticket.sent_name])

    def _take_look_up(self, outcome: OrderLookedUp) -> None:
        ticket = self._names.get(outcome.client_order_id)
        if ticket is None or outcome.client_order_id != ticket.sent_name:
            return
        name = ticket.client_order_id
        if outcome.order is not None:
            ticket.is_unresolved = False
            self._clear(ticket)
            changed = self._take_chain(ticket, outcome)
            self._bind_legs(outcome.legs)
            for leg_name, leg in outcome.legs:
                changed = self._take_word(self.tickets[leg_name], leg) or changed
            if changed:
                self._counters["changes found by look-up"] += 1
            if changed and name in self._doubtful:
                self._restart_stream()
            elif not changed:
                self._cleared.add(name)  # the venue's list of open orders is not the whole truth
            self._doubtful.discard(name)
        elif ticket.is_unresolved:
            self._doubtful.discard(name)
            self._clear(ticket)
            self.changes.advance(ticket, Effect.REJECT, reason="the order never reached the venue")
        else:
            if ticket.venue_id and ticket.phase.is_open:
                self._doubt(ticket, f"the venue does not know {name} any more")
            self._counters["orders that the venue does not know"] += 1
            self._cleared.add(name)
            self._doubtful.discard(name)

    def _doubt(self, ticket: Ticket, reason: str) -> None:
        doubts = self._doubts()
        if doubts is not None:
            doubts.doubt(ticket.symbol, ticket.client_order_id, reason)

    def _clear(self, ticket: Ticket) -> None:
        doubts = self._doubts()
        if doubts is not None:
            doubts.clear(ticket.symbol, ticket.client_order_id)

    def _take_chain(self, ticket: Ticket, outcome: OrderLookedUp) -> bool:
        """Take the venue's word on an order and on those that it replaces; tell whether it changed anything."""
        order = outcome.order
        assert order is not None
        changed = False
        for old in outcome.before:
            missing = self._book.books.missing_fill(old, old.filled_ns or old.updated_ns)
            if missing is not None:
                self.changes.execute(ticket, missing, Effect.PARTIAL_FILL)
                changed = True
        if ticket.replacing is not None and order.client_order_id == new_id(ticket):
            effect = status_effect(order.status)
            if effect not in LIVE:
                if effect is not Effect.NOTHING:
                    self.replacements.end(ticket, order.reject_reason or f"the new order is {order.status}", None)
                return (bool(outcome.before) and self._take_word(ticket, outcome.before[-1])) or changed
            self.replacements.settle(ticket, order)
            changed = True
        self.bind(ticket, order)
        pending = ticket.replacing
        if pending is not None and pending.is_unresolved and order.status != OrderStatus.PENDING_REPLACE:
            self.replacements.end(ticket, "the replacement never reached the venue", None)
        if order.replaces:
            self.replacements.adopt_prices(ticket, order)
        return self._take_word(ticket, order) or changed

    def _take_word(self, ticket: Ticket, order: VenueOrder) -> bool:
        """Take the venue's word on an order; tell whether it changed more than its acceptance."""
        before = ticket.phase
        effect = status_effect(order.status, reason=order.reject_reason)
        missing = self._book.books.missing_fill(order, order.filled_ns or order.updated_ns)
        if missing is not None:
            self.changes.execute(ticket, missing, Effect.FILL if effect is Effect.FILL else Effect.PARTIAL_FILL)
        elif effect is Effect.FILL:
            self.changes.complete(ticket)
        if effect is Effect.ASK:
            self._counters[f"unknown status {order.status}"] += 1
            _log.warning("unknown order status is left as it is", status=order.status, symbol=ticket.symbol)
        elif effect is Effect.WARN:
            self._counters[f"status {order.status}"] += 1
        elif effect is not Effect.FILL:
            self.changes.advance(ticket, effect, reason=order.reject_reason, at_ns=order.updated_ns)
        return missing is not None or ticket.phase not in (before, Phase.ACCEPTED)


def new_id(ticket: Ticket) -> str:
    """Return the client order id of the replacement that is under way, empty without one."""
    return ticket.replacing.request.client_order_id if ticket.replacing is not None else ""
