"""Replacements of orders: which order of the venue stands for one of ours after it. Engine thread only."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from msgspec.structs import replace

from dry_work.broker.notices import Notices
from dry_work.broker.outcomes import ReplacementRefused
from dry_work.broker.tickets import Ticket, number
from dry_work.errors import RiskRefusedError
from dry_work.orders.model import OrderRequest, OrderType, VenueOrder

_log = structlog.get_logger(__name__)


class Replacements:
    """Follows replacements.

    Args:
        notices: takes the notifications.
        ids: tickets by the ids of the venue; kept here.
        bind: lets an order of the venue stand for one of ours.
        assign: tells the order worker so.
        ask_cancel: asks for the cancellation of an order, after a replacement that was in its way.
        look_up: asks the venue for orders by client order id.
        fail: takes an error after which the run should end.
        lockstep: what is not known stays so.
    """

    def __init__(
        self,
        *,
        notices: Notices,
        ids: dict[str, Ticket],
        bind: Callable[[Ticket, VenueOrder], None],
        assign: Callable[[str, str], None],
        ask_cancel: Callable[[Ticket], None],
        look_up: Callable[[Iterable[str]], None],
        fail: Callable[[BaseException], None],
        lockstep: bool,
        counters: Counter[str],
    ) -> None:
        self._notices = notices
        self._ids = ids
        self._bind = bind
        self._assign = assign
        self._ask_cancel = ask_cancel
        self._look_up = look_up
        self._fail = fail
        self._lockstep = lockstep
        self._counters = counters

    def follow(self, ticket: Ticket, order: VenueOrder) -> bool:
        """Let the order that has replaced `order` stand for ours; False when it is not known which."""
        pending = ticket.replacing
        if pending is None and not order.replaced_by:
            return False
        if pending is not None:
            self.show(ticket, pending.request)
        elif order.replaced_by not in self._ids:
            # The venue does so with exits, and an operator may: what it is now is looked up.
            self._counters["orders replaced by others"] += 1
            _log.info("an order was replaced at the venue", symbol=ticket.symbol)
        ticket.venue_id = order.replaced_by
        ticket.venue_name = pending.request.client_order_id if pending is not None else ""
        if order.replaced_by:
            self._ids[order.replaced_by] = ticket
            self._assign(ticket.sent_name, order.replaced_by)
        self._go_on(ticket)
        if pending is None:
            self._look_up([ticket.sent_name])
        return True

    def adopt_prices(self, ticket: Ticket, order: VenueOrder) -> None:
        """Take over the prices that somebody else has given an order of ours: limits are judged by what it is now."""
        request = ticket.request
        if request is None or ticket.replacing is not None or order.type is not request.type:
            return
        if request.type not in (OrderType.LIMIT, OrderType.STOP, OrderType.STOP_LIMIT):
            return
        prices = {
            name: theirs
            for name in ("limit_price", "stop_price")
            if (ours := getattr(request, name)) is not None
            and (theirs := getattr(order, name)) is not None
            and theirs != ours
        }
        if prices:
            _log.warning("somebody else has changed the prices of an order", symbol=ticket.symbol, prices=prices)
            ticket.request = replace(request, **prices)
            change_order(ticket.order, ticket.request)
            if ticket.phase.is_open:
                self._notices.notify(ticket.order, ticket)

    def settle(self, ticket: Ticket, order: VenueOrder) -> None:
        """The new order is there: whatever was told of the old one, it stands no more."""
        assert ticket.replacing is not None
        self.show(ticket, ticket.replacing.request)
        self._bind(ticket, order)
        self._assign(ticket.sent_name, order.id)
        self._go_on(ticket)

    def show(self, ticket: Ticket, request: OrderRequest, *, is_told: bool = False) -> None:
        """Let the order say what a replacement has made of it; `is_told`: the strategy knows it."""
        ticket.request = request
        ticket.standing = request.client_order_id
        ticket.replacing = None
        if ticket.phase.is_open or is_told:
            change_order(ticket.order, request)
        if ticket.phase.is_open and not is_told:
            self._notices.notify(ticket.order, ticket)

    def take_refusal(self, ticket: Ticket, outcome: ReplacementRefused) -> None:
        """A replacement was refused, or its outcome is not known."""
        error = outcome.error
        if ticket.replacing is None or ticket.replacing.request.client_order_id != outcome.new_id:
            return
        if outcome.is_unknown:
            ticket.replacing.is_unresolved = True
            self._counters["replacements of unknown outcome"] += 1
            _log.error("outcome of a replacement is unknown", client_order_id=ticket.client_order_id, error=str(error))
            if self._lockstep:
                self._fail(error)
            return
        code = error.reject_code if isinstance(error, RiskRefusedError) else error.code
        self.end(ticket, error.message, code)

    def end(self, ticket: Ticket, reason: str, code: int | str | None) -> None:
        """A replacement was not made: the order stands as it was, and the strategy is told why."""
        if ticket.replacing is None:
            return
        if ticket.venue_id:
            self._assign(ticket.sent_name, ticket.venue_id)
        self.tell_refusal(ticket, reason, code)
        self._go_on(ticket)

    def tell_refusal(self, ticket: Ticket, reason: str, code: int | str | None) -> None:
        """Tell the strategy why a replacement was not made."""
        _log.warning("replacement refused", symbol=ticket.symbol, reason=reason, code=code)
        ticket.replacing = None
        ticket.order.addinfo(replace_reason=reason, replace_code=code)
        if ticket.phase.is_open:
            self._notices.notify(ticket.order, ticket)

    def _go_on(self, ticket: Ticket) -> None:
        ticket.replacing = None
        if ticket.cancel_wanted:
            ticket.cancel_wanted = False
            if ticket.phase.is_open:
                self._ask_cancel(ticket)


def change_order(order: Any, request: OrderRequest) -> None:
    """Let Backtrader's order say what a replacement has made of it."""
    # Clones that were not heard of yet share what was there before.
    created = order.created = copy.copy(order.created)
    if request.qty is not None:
        size = number(request.qty) * (1 if order.isbuy() else -1)
        order.size = created.size = size
        order.executed.remsize = size - order.executed.size
    if request.type is OrderType.LIMIT and request.limit_price is not None:
        order.price = created.price = float(request.limit_price)
    if request.stop_price is not None:
        order.price = created.price = float(request.stop_price)
        if request.limit_price is not None:
            order.pricelimit = created.pricelimit = float(request.limit_price)
    if request.trail_price is not None:
        order.trailamount = created.trailamount = float(request.trail_price)
    if request.trail_percent is not None:
        order.trailpercent = created.trailpercent = float(request.trail_percent) / 100
