"""From what a strategy asks for to what the order worker is given: single orders, groups, pairs, split orders, changes.

Engine thread only, and no I/O. What is refused here ends the order at once, with the reason in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import structlog
from msgspec.structs import replace

from dry_work.broker.desk import OrderDesk
from dry_work.broker.flight import NO_FLIGHT, WITHDRAWN, Flight
from dry_work.broker.gateway import OrderGateway
from dry_work.broker.journal import JournalSession
from dry_work.broker.order_objects import ID_FACT, describe_placed
from dry_work.broker.outcomes import LegIntent, PairHold
from dry_work.broker.placed import PlacedOrder, encode_placed
from dry_work.broker.positions import PositionBook
from dry_work.broker.tickets import PendingReplacement, Ticket
from dry_work.broker.told import SavedLeg, SavedReplacement, SavedSubmit
from dry_work.orders.client_ids import build_client_order_id
from dry_work.orders.groups import Role, build_bracket, build_leg, build_pair, may_be_paired, split_crossing
from dry_work.orders.lifecycle import Phase
from dry_work.orders.mapping import ChangeTerms, OrderTerms, apply_change, build_change, build_order_request
from dry_work.orders.model import OrderClass, OrderRequest, TimeInForce
from dry_work.orders.risk import Breach
from dry_work.orders.rules import Refusal, RefusalCode, check_order, round_change, round_prices

_log = structlog.get_logger(__name__)


class OrderEntry:
    """Takes orders and changes of orders.

    Args:
        broker: what Backtrader's orders are told is their broker.
        desk: keeps the orders.
        book: says what is held.
        trouble: returns why no orders are taken, empty while they are.
        check_risk: returns the risk limit, or the halt of its symbol, that refuses a request.
        has_lapsed: tells whether an order's time has passed.
        market_ns: returns the market's time.
        time_ns: returns the time of the clock.
        wake: lets the engine come round again soon.
        alpaca_rules: prices are brought on their ticks, orders through zero are split, the hours of orders count.
        flight: what is read from other threads passes it.
    """

    def __init__(
        self,
        *,
        broker: Any,
        desk: OrderDesk,
        book: PositionBook,
        trouble: Callable[[], str],
        check_risk: Callable[..., Breach | Refusal | None],
        has_lapsed: Callable[[Ticket], bool],
        market_ns: Callable[[], int],
        time_ns: Callable[[], int],
        wake: Callable[[], None],
        alpaca_rules: bool,
        flight: Flight = NO_FLIGHT,
    ) -> None:
        self._flight = flight
        self._broker = broker
        self._desk = desk
        self._book = book
        self._trouble = trouble
        self._check_risk = check_risk
        self._has_lapsed = has_lapsed
        self._market_ns = market_ns
        self._time_ns = time_ns
        self._wake = wake
        self._alpaca_rules = alpaca_rules
        self.next_valid = math.inf  # the first time at which an order has to be canceled
        self._agent = self._session = ""
        self._number = 0  # of the last order
        self._increments: Mapping[str, Decimal] = {}  # steps of the prices of crypto pairs
        self._held: dict[int, list[Ticket]] = {}  # groups that wait for `transmit`, by the ref of their first order
        self._waiting: Ticket | None = None  # an exit that may still become one of a pair
        self._lapsed: list[Ticket] = []  # orders whose time passed before they were sent

    def begin(
        self,
        gateway: OrderGateway,
        *,
        agent: str,
        session: JournalSession,
        last_number: int,
        increments: Mapping[str, Decimal],
    ) -> None:
        """Begin to send orders through `gateway`; the orders of the session go on behind its last number."""
        self._gateway = gateway
        self._agent, self._session, self._number = agent, session.session, last_number
        self._increments = increments
        self._desk.notices.note_number(self._session, self._number)

    def release(self) -> None:
        """Let an exit go that waited for the other of its pair."""
        if self._waiting is not None:
            self._waiting.hold = None
            self._waiting = None
            self._gateway.release()

    def take_lapsed(self) -> list[Ticket]:
        """Return the orders, once, whose time passed before they could be sent."""
        lapsed, self._lapsed = self._lapsed, []
        return lapsed

    def place(
        self,
        order: Any,
        terms: OrderTerms,
        *,
        is_started: bool,
        has_bar: bool,
        at_ns: int,
        parent: Any,
        transmit: bool,
        oco: Any,
    ) -> None:
        """Send an order, keep it until its group is complete, or refuse it.

        Args:
            order: Backtrader's.
            terms: what it says.
            is_started: the broker has been started.
            has_bar: its data has a bar.
            at_ns: time that it gets.
            parent, transmit, oco: as Backtrader has them.
        """
        if not is_started:
            # No session, and so no client order id: nothing that could be told apart later.
            self._refuse(order, RefusalCode.NOT_TRADING, f"no orders are taken: {self._trouble()}")
            return
        number = self._next_number()
        ticket = Ticket(
            order=order,
            number=number,
            client_order_id=self._build_id(number),
            symbol=terms.symbol,
            terms=terms,
            submitted_ns=at_ns,
        )
        order.addinfo(**{ID_FACT: ticket.client_order_id})
        self._desk.add(ticket)
        self._desk.notices.note(ticket)
        ticket.links = (self._name_of(parent), self._name_of(oco), transmit)
        refusal: Refusal | None = None
        if self._trouble():
            refusal = Refusal(RefusalCode.NOT_TRADING, f"no orders are taken: {self._trouble()}")
        elif not has_bar:
            refusal = Refusal(RefusalCode.NO_BAR, f"{terms.symbol} has no bar yet")
        if refusal is not None:
            for member in (*self._held.pop(getattr(parent, "ref", 0), ()), ticket):
                self._reject(member, refusal)
        elif parent is not None or not transmit:
            self._place_linked(ticket, parent, oco=oco, transmit=transmit)
        elif oco is not None:
            self._place_pair(ticket, oco)
        else:
            self._place_single(ticket)

    def _name_of(self, order: Any) -> str:
        ticket = self._desk.find(order) if order is not None else None
        return ticket.client_order_id if ticket is not None else ""

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _place_single(self, ticket: Ticket) -> None:
        built = build_order_request(ticket.terms, ticket.client_order_id)
        request = built if isinstance(built, Refusal) else self._prepare(ticket, built)
        held = self._book.held(ticket.symbol).qty
        if isinstance(request, OrderRequest) and self._alpaca_rules:
            parts = split_crossing(request, held, "")
            if isinstance(parts, Refusal):
                request = parts
            elif parts is not None:
                self._send_split(ticket, *parts)
                return
        if isinstance(request, Refusal):
            self._reject(ticket, request)
            return
        breach = self._check_risk(request)
        if breach is not None:
            self._reject(ticket, breach)
            return
        ticket.request = request
        if may_be_paired(request, held):
            ticket.hold = PairHold()
        if self._begin(ticket):
            self._send(ticket, request)

    def _send_split(self, ticket: Ticket, first: OrderRequest, second: OrderRequest) -> None:
        """Send the part of an order that closes a position; the part that opens the opposite follows its fill."""
        breach = self._check_risk(replace(first, qty=(first.qty or 0) + (second.qty or 0)))
        if breach is not None:
            self._reject(ticket, breach)
            return
        number = self._next_number()
        self._desk.notices.note_number(self._session, number)
        second = replace(second, client_order_id=self._build_id(number))
        ticket.request = replace(first, qty=(first.qty or 0) + (second.qty or 0))
        ticket.remainder = Ticket.Remainder(second, number)
        if self._begin(ticket):
            self._send(ticket, first, legs=[LegIntent(Role.REMAINDER, second, number)])

    def send_remainder(self, ticket: Ticket, request: OrderRequest, number: int) -> None:
        """Send the second part of a split order."""
        self._gateway.submit(request, number=number, at_ns=self._time_ns(), is_intended=True)

    def _place_linked(self, ticket: Ticket, parent: Any, *, oco: Any, transmit: bool) -> None:
        """Keep an order with its parent until the last of them is to be transmitted; then send them as one."""
        if parent is None:
            group = self._held[ticket.order.ref] = []
        else:
            found = self._held.get(parent.ref)
            if found is None:
                reason = "its parent is not waiting for it: it was sent, refused or has a parent itself"
                self._reject(ticket, Refusal(RefusalCode.LINKED, f"{reason}; give the parent transmit=False", "parent"))
                return
            group = found
        group.append(ticket)
        if oco is not None:
            ticket.terms = replace(ticket.terms, linked="parent or transmit and oco")
        if not transmit:
            return
        del self._held[group[0].order.ref]
        head, *exits = group
        built = build_bracket(head.terms, [exit_.terms for exit_ in exits], head.client_order_id)
        request = built if isinstance(built, Refusal) else self._prepare(head, built.request)
        if isinstance(built, Refusal) or isinstance(request, Refusal):
            for member in group:
                assert isinstance(request, Refusal)
                self._reject(member, request)
            return
        breach = self._check_risk(request)
        if breach is not None:
            for member in group:
                self._reject(member, breach)
            return
        for member, role in zip(group, built.roles, strict=True):
            member.join(group, role)
        head.request = request
        self._send_group(head, request)

    def _place_pair(self, ticket: Ticket, oco: Any) -> None:
        """Send an order and the one that it names, which waits for it, as one pair."""
        first = self._desk.find(oco)
        if first is None or first.hold is None or first.cancel_asked:
            reason = (
                "the order that it names is no exit that waits for its pair: Alpaca takes as oco a Limit and a Stop or "
                "StopLimit order that close the same position, placed one right after the other"
            )
            self._reject(ticket, Refusal(RefusalCode.LINKED, reason, "oco"))
            return
        head = first if first.terms.kind == "Limit" else ticket
        built = build_pair(first.terms, ticket.terms, head.client_order_id)
        request = built if isinstance(built, Refusal) else self._prepare(ticket, built.request)
        if isinstance(built, Refusal) or isinstance(request, Refusal):
            assert isinstance(request, Refusal)
            self._reject(ticket, request)
            return
        breach = self._check_risk(request, replaces=first.client_order_id)
        if breach is not None:
            self._reject(ticket, breach)
            return
        if not self._flight.read(WITHDRAWN, first.hold.withdraw()):
            reason = "the order that it names has been sent by now: place both right after another"
            self._reject(ticket, Refusal(RefusalCode.LINKED, reason, "oco_sent"))
            return
        group = [first, ticket]
        for member, role in zip(group, built.roles, strict=True):
            member.join(group, role)
        head.request = build_leg(request, Role.TAKE_PROFIT, head.client_order_id)
        first.hold, first.is_sent = None, False
        self._send_group(head, request, begun=[first])

    def _send_group(self, head: Ticket, request: OrderRequest, *, begun: Sequence[Ticket] = ()) -> None:
        legs: list[LegIntent] = []
        for member in head.members:
            if member is not head:
                assert member.role is not None
                member.venue_name = ""  # the venue gives it one
                member.request = build_leg(request, member.role, member.client_order_id)
                terms = encode_placed(_describe(member))
                legs.append(LegIntent(member.role, member.request, member.number, terms))
        lapsed = [member for member in head.members if member not in begun and not self._begin(member)]
        if head in lapsed:
            self._lapsed.extend(member for member in head.members if member not in lapsed)
            return
        self._lapsed = [ticket for ticket in self._lapsed if ticket not in lapsed]
        for member in head.members:
            member.is_sent = True
        self._send(head, request, legs=legs)

    def _prepare(self, ticket: Ticket, request: OrderRequest) -> OrderRequest | Refusal:
        """Return the request as Alpaca takes it: prices on their ticks, which the order tells; or why it does not."""
        if not self._alpaca_rules:
            return request
        request, notices = round_prices(request, self._increments)
        for notice in notices:
            _log.info("price rounded", symbol=request.symbol, notice=notice)
        if notices:
            ticket.order.addinfo(price_rounded="; ".join(notices))
        return check_order(request, at_ns=self._market_ns()) or request

    def _reject(self, ticket: Ticket, why: Refusal | Breach) -> None:
        """End an order that was not sent."""
        ticket.phase = Phase.REJECTED
        if isinstance(why, Refusal):
            if why.rule:
                ticket.order.addinfo(reject_rule=why.rule)
            self._refuse(ticket.order, why.code, why.reason)
        else:
            self._refuse(ticket.order, why.code, str(why))

    def _build_id(self, number: int) -> str:
        return build_client_order_id(self._agent, self._session, number)

    def _refuse(self, order: Any, code: str, reason: str) -> None:
        order.addinfo(reject_reason=reason, reject_code=str(code))
        order.reject(self._broker)
        order.p.simulated = False  # so that the strategy hears of it
        _log.warning("order refused", code=str(code), reason=reason)
        self._desk.notices.notify(order, self._desk.find(order))

    def _begin(self, ticket: Ticket) -> bool:
        """Tell of an order as submitted; False when its time has passed before it can be sent."""
        order, request = ticket.order, ticket.request
        assert request is not None
        order.submit(self._broker)
        self._desk.open[ticket.client_order_id] = ticket
        self._desk.notices.notify(order, self._desk.find(order))
        # Market orders never expire in Backtrader, and a `day` that the venue knows ends there.
        ends_at_venue = ticket.terms.day and request.time_in_force is TimeInForce.DAY
        if order.valid is not None and ticket.terms.kind != "Market" and not ends_at_venue:
            ticket.valid = float(order.valid)
            self.next_valid = min(self.next_valid, ticket.valid)
            if self._has_lapsed(ticket):
                self._lapsed.append(ticket)
                return False
        return True

    def _send(self, ticket: Ticket, request: OrderRequest, *, legs: Sequence[LegIntent] = ()) -> None:
        ticket.is_sent = True
        at_ns, placed = self._time_ns(), _describe(ticket)
        placed_by_name = {member.client_order_id: _describe(member) for member in ticket.members}
        ticket.saved = SavedSubmit(
            number=ticket.number,
            placed=placed,
            at_ns=at_ns,
            request=request,
            legs=tuple(
                SavedLeg(
                    role=leg.role,
                    request=leg.request,
                    number=leg.number,
                    placed=placed_by_name.get(leg.request.client_order_id),
                )
                for leg in legs
            ),
        )
        self._gateway.submit(
            request,
            number=ticket.number,
            at_ns=at_ns,
            legs=legs,
            hold=ticket.hold,
            terms=encode_placed(placed),
        )
        if ticket.hold is not None:
            self._waiting = ticket
            self._wake()  # so that the next round of the engine lets it go

    def ask_cancel(self, ticket: Ticket) -> None:
        """Ask for the cancellation of an open order, behind a replacement that is under way."""
        if ticket.replacing is not None:
            ticket.cancel_wanted = True  # the venue takes none while a replacement is under way
            return
        ticket.cancel_asked = True
        if ticket.remainder is not None:
            ticket.remainder.is_canceled = True  # also when the first part fills before its cancellation
        # All of the group end with it; Backtrader's broker tells so at once.
        for member in (ticket, *(other for other in ticket.members if other is not ticket and other.phase.is_open)):
            self._desk.notices.mark_cancel(member)
        self._gateway.cancel(ticket.sent_name, at_ns=self._time_ns())

    def replace(self, order: Any, wanted: ChangeTerms) -> bool:
        """Ask for a change of an open order; False, with the reason in the order, when it cannot be asked for."""
        ticket = self._desk.find(order)
        if ticket is None or ticket.request is None or not ticket.phase.is_open or not ticket.is_sent:
            return False
        refusal = self._replace(ticket, ticket.request, wanted)
        if refusal is None:
            return True
        code = refusal.rule or refusal.code.value if isinstance(refusal, Refusal) else refusal.code
        reason = refusal.reason if isinstance(refusal, Refusal) else str(refusal)
        ticket.order.addinfo(replace_reason=reason, replace_code=code)
        _log.warning("replacement refused", symbol=ticket.symbol, reason=reason, code=code)
        return False

    def _replace(self, ticket: Ticket, request: OrderRequest, wanted: ChangeTerms) -> Refusal | Breach | None:
        if self._trouble():
            return Refusal(RefusalCode.NOT_TRADING, f"no orders are taken: {self._trouble()}")
        if ticket.replacing is not None:
            return Refusal(RefusalCode.OPTION, "another replacement of the order is under way", "replace_pending")
        if ticket.cancel_asked or ticket.cancel_wanted:
            return Refusal(RefusalCode.OPTION, "the order is being canceled", "replace_canceling")
        if ticket.phase is Phase.PARTIAL:
            reason = "the order is partly filled: cancel it and place another for the rest"
            return Refusal(RefusalCode.OPTION, reason, "replace_partly_filled")
        if ticket.remainder is not None:
            return Refusal(RefusalCode.OPTION, "the order goes through zero in two parts", "replace_split")
        number = self._number + 1
        new_id = self._build_id(number)
        kind = ticket.head.request.order_class if ticket.role is Role.ENTRY and ticket.head.request else OrderClass.OCO
        shape = replace(request, order_class=kind) if ticket.role is not None else request
        change = build_change(wanted, shape, new_id)
        if isinstance(change, Refusal):
            return change
        if self._alpaca_rules:
            change, notices = round_change(change, request, self._increments)
            if notices:
                ticket.order.addinfo(price_rounded="; ".join(notices))
        after = apply_change(change, request)
        plain = replace(after, order_class=OrderClass.SIMPLE, take_profit=None, stop_loss=None)
        refusal = check_order(plain, at_ns=self._market_ns() if self._alpaca_rules else None)
        breach = refusal or self._check_risk(after, replaces=ticket.client_order_id)
        if breach is not None:
            return breach
        self._number, at_ns = number, self._time_ns()
        saved = SavedReplacement(change=change, request=after, number=number, at_ns=at_ns)
        ticket.replacing = PendingReplacement(after, saved=saved)
        ticket.asked_replacement = new_id
        ticket.asked_count += 1
        self._desk.add_name(new_id, ticket)
        self._desk.notices.note(ticket)
        self._desk.notices.note_number(self._session, number)
        self._gateway.replace(ticket.sent_name, change, after, number=number, at_ns=at_ns)
        return None


def _describe(ticket: Ticket) -> PlacedOrder:
    parent, oco, transmit = ticket.links
    return describe_placed(
        ticket.order, ticket.terms, placed_ns=ticket.submitted_ns, parent=parent, oco=oco, transmit=transmit
    )
