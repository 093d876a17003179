"""The order desk: what the venue says, applied to Backtrader's orders, in the order in which it came.

Engine thread only, and no I/O: what has to be asked or written goes out through callables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import structlog

from dry_work.broker.account import AccountCache, AccountState
from dry_work.broker.differences import crypto_fee_limit
from dry_work.broker.notices import Notices
from dry_work.broker.order_answers import FILLS, LIVE, Doubts, OrderAnswers, new_id
from dry_work.broker.order_changes import OrderChanges
from dry_work.broker.outcomes import (
    CancelRefused,
    OrderLookedUp,
    OrderRefused,
    OrderTaken,
    OrderUnresolved,
    Outcome,
    ReplacementTaken,
)
from dry_work.broker.positions import PositionBook
from dry_work.broker.replacements import Replacements
from dry_work.broker.retired import RetiredOrders
from dry_work.broker.tickets import Ticket
from dry_work.broker.trade_fills import build_fill, build_reversal
from dry_work.market.symbols import is_crypto
from dry_work.orders.books import Fill
from dry_work.orders.client_ids import parse_client_order_id
from dry_work.orders.groups import EXIT_ROLES, Role
from dry_work.orders.lifecycle import Effect, Phase, event_effect, status_effect
from dry_work.orders.model import OrderRequest, TradeEvent, VenueOrder

DeskItem = TradeEvent | Outcome | AccountState

_log = structlog.get_logger(__name__)


class Watch(Doubts, Protocol):
    """What looks after the account beside these orders; see `account_watch`."""

    def take_state(self, state: AccountState) -> bool: ...
    def note_event(self, event: TradeEvent, fill: Fill | None) -> None: ...
    def note_bust(self, order: VenueOrder, fill: Fill) -> None: ...
    def is_journalled(self, client_order_id: str) -> bool: ...
    def holds(self, order: VenueOrder) -> bool: ...


class OrderDesk(OrderAnswers):
    """Tickets and notifications.

    Args:
        broker: what Backtrader's orders are told is their broker.
        book: positions and cash.
        cache: says whether a snapshot may be taken over.
        commission_of: returns the commission scheme of a data.
        look_up: asks the venue for orders by client order id.
        refresh: asks for another snapshot of the account.
        restart_stream: called when a snapshot told of a change before the stream did.
        send: sends the second part of a split order.
        ask_cancel: asks for the cancellation of an order, after a replacement that was in its way.
        assign: tells the order worker which order of the venue stands for one of ours.
        fail: takes an error after which the run should end.
        wake: lets the engine come round again soon.
        lockstep: answers to submits change nothing but refusals: everything else comes with the trade events.
        keeps_told: keep what was told of orders; see `Notices`.
    """

    def __init__(
        self,
        *,
        broker: Any,
        book: PositionBook,
        cache: AccountCache,
        commission_of: Callable[[Any], Any],
        look_up: Callable[[Iterable[str]], None],
        refresh: Callable[[], None],
        restart_stream: Callable[[], None],
        send: Callable[[Ticket, OrderRequest, int], None],
        ask_cancel: Callable[[Ticket], None],
        assign: Callable[[str, str], None],
        fail: Callable[[BaseException], None],
        wake: Callable[[], None],
        lockstep: bool,
        keeps_told: bool,
        counters: Counter[str],
    ) -> None:
        self._book = book
        self._cache = cache
        self._look_up = look_up
        self._refresh = refresh
        self._restart_stream = restart_stream
        self._fail = fail
        self._lockstep = lockstep
        self._counters = counters
        self.tickets: dict[str, Ticket] = {}  # all, by client order id
        self.open: dict[str, Ticket] = {}  # those that can still be filled
        self.notices = Notices(lockstep=lockstep, keeps_told=keeps_told, wake=wake)
        self.watch: Watch | None = None
        self._by_ref: dict[int, Ticket] = {}
        self._names: dict[str, Ticket] = {}  # by every client order id that the venue may have for it
        self._ids: dict[str, Ticket] = {}  # by every id of the venue
        self._early: list[TradeEvent] = []  # that may be of legs whose ids are not known yet
        self._doubtful: set[str] = set()  # orders of which a snapshot said something else than the stream
        self._cleared: set[str] = set()  # orders that were looked up for such a doubt, in vain
        self._adopted: dict[str, str] = {}  # last event id whose position was taken over, by symbol
        self.retired = RetiredOrders(
            tickets=self.tickets,
            names=self._names,
            ids=self._ids,
            by_ref=self._by_ref,
            doubtful=self._doubtful,
            notices=self.notices,
        )
        self.changes = OrderChanges(
            broker=broker,
            book=book,
            notices=self.notices,
            open_tickets=self.open,
            add_name=self.add_name,
            commission_of=commission_of,
            look_up=look_up,
            send=send,
            lockstep=lockstep,
        )
        self.replacements = Replacements(
            notices=self.notices,
            ids=self._ids,
            bind=self.bind,
            assign=assign,
            ask_cancel=ask_cancel,
            look_up=look_up,
            fail=fail,
            lockstep=lockstep,
            counters=counters,
        )

    def add(self, ticket: Ticket) -> None:
        """Keep a new order."""
        self.tickets[ticket.client_order_id] = ticket
        self._names[ticket.client_order_id] = ticket
        self._by_ref[ticket.order.ref] = ticket
        self.retired.add(ticket)

    def add_name(self, name: str, ticket: Ticket) -> None:
        """Let another client order id stand for an order."""
        self._names[name] = ticket

    def is_known(self, client_order_id: str) -> bool:
        """Tell whether the venue's order with this client order id is one of these, or a leg of one."""
        return client_order_id in self._names

    def is_ours(self, order: VenueOrder) -> bool:
        """Tell whether an order of the venue is one of these, or may be a leg of one whose id is not known yet."""
        return self._ticket_of(order) is not None or self._may_be_leg(order)

    def open_names(self) -> tuple[str, ...]:
        """Return the names under which the order worker knows the open orders. Thread-safe."""
        return tuple(ticket.sent_name for ticket in tuple(self.open.values()))

    def exposed(self) -> list[Ticket]:
        """Return the open orders that can add up: of the exits of a group one, and none while its entry is open."""
        return [ticket for ticket in self.open.values() if not _is_covered(ticket)]

    def find(self, order: Any) -> Ticket | None:
        """Return the ticket of an order or of a clone of one."""
        return self._by_ref.get(order.ref)

    # The venue's words

    def take(self, item: DeskItem) -> None:
        """Apply what has come from the venue."""
        if isinstance(item, TradeEvent):
            self._take_event(item)
        elif isinstance(item, AccountState):
            self._take_state(item)
        elif item.client_order_id not in self._names:
            _log.info("an answer about an order that was let go of", client_order_id=item.client_order_id)
        elif isinstance(item, OrderTaken):
            self._take_answer(item)
        elif isinstance(item, OrderRefused):
            self._take_refusal(item)
        elif isinstance(item, OrderUnresolved):
            self._take_unresolved(item)
        elif isinstance(item, CancelRefused):
            self._take_cancel_refusal(item)
        elif isinstance(item, OrderLookedUp):
            self._take_look_up(item)
        elif isinstance(item, ReplacementTaken):
            self._note_ids(self._names[item.client_order_id], item.order)
        else:
            self.replacements.take_refusal(self._names[item.client_order_id], item)

    def lapse(self, ticket: Ticket) -> None:
        """End an order whose time passed before it could be sent."""
        if ticket.phase.is_open:
            ticket.order.addinfo(
                reject_reason="its valid time has passed before it could be sent", reject_code="lapsed"
            )
            self.changes.enter(ticket, Phase.EXPIRED)

    def _take_event(self, event: TradeEvent) -> None:
        order = event.order
        ticket = self._ticket_of(order)
        reason = event.message or order.reject_reason
        effect = event_effect(event.event, code=event.code, reason=reason)
        if ticket is None and self._may_be_leg(order):
            self._early.append(event)
            return
        if effect in (Effect.TAKE_BACK, Effect.CORRECT):
            self._take_back(ticket, event)
            return
        if ticket is None:
            self._take_foreign(event, effect)
            return
        if effect is Effect.ASK:
            self._counters[f"unknown event {event.event}"] += 1
            _log.warning("unknown trade event, the order is looked up", trade_event=event.event, symbol=ticket.symbol)
            self._look_up([ticket.sent_name])
            return
        if effect is Effect.WARN:
            self._counters[f"event {event.event}"] += 1
            _log.warning("order is held up at the venue", trade_event=event.event, symbol=ticket.symbol)
            return
        is_current = self._is_current(ticket, order)
        if not is_current and ticket.replacing is not None and order.client_order_id == new_id(ticket):
            if effect in LIVE and event.event != "pending_new":
                self.replacements.settle(ticket, order)
                is_current = True
            elif effect in (Effect.CANCEL, Effect.EXPIRE, Effect.REJECT, Effect.LACK_FUNDS):
                self.replacements.end(ticket, reason or f"the new order was {event.event}", event.code)
                return
        self._note_ids(ticket, order)
        if is_current:
            self.bind(ticket, order)
        fill = build_fill(event) if effect in FILLS else None
        if fill is not None and self._book.books.is_ignored(fill.execution_id):
            return  # it was taken back, and what the event says of the order is older than that
        if fill is not None and self._book.apply_again(fill):
            fill = None
        missing = self._book.books.missing_fill(order, event.ts_event_ns, without=fill)
        if missing is not None:
            self._counters["fills found by their total"] += 1
            self.changes.execute(ticket, missing, Effect.PARTIAL_FILL)
        if fill is not None:
            self.changes.execute(ticket, fill, effect if is_current else Effect.PARTIAL_FILL)
            self._adopt_position(event)
        elif effect is Effect.FILL and is_current:
            self.changes.complete(ticket)
        elif (
            effect in FILLS or not is_current or (event.event == "replaced" and self.replacements.follow(ticket, order))
        ):
            pass
        elif event.event == "order_replace_rejected":
            self.replacements.end(ticket, reason or "the venue refused the replacement", event.code)
        else:
            if event.event == "replaced":
                _log.warning("an order of ours was replaced by somebody else", symbol=ticket.symbol)
                ticket.order.addinfo(reject_reason="it was replaced at the venue by an order that is not ours")
            self.changes.advance(ticket, effect, reason=reason, code=event.code, at_ns=event.ts_event_ns)

    def _doubts(self) -> Watch | None:
        return self.watch

    # Which order of the venue stands for which of ours

    def _ticket_of(self, order: VenueOrder) -> Ticket | None:
        return self._names.get(order.client_order_id) or self._ids.get(order.id)

    def _is_current(self, ticket: Ticket, order: VenueOrder) -> bool:
        """Tell whether the order stands for ours now, and not one that it has replaced or that is to replace it."""
        if ticket.venue_name:
            return order.client_order_id == ticket.venue_name
        return order.id == ticket.venue_id

    def bind(self, ticket: Ticket, order: VenueOrder) -> None:
        """Let an order of the venue stand for one of ours."""
        self._note_ids(ticket, order)
        ticket.venue_id, ticket.venue_name = order.id, order.client_order_id

    def _note_ids(self, ticket: Ticket, order: VenueOrder) -> None:
        self._ids[order.id] = self._names[order.client_order_id] = ticket

    def _may_be_leg(self, order: VenueOrder) -> bool:
        role = EXIT_ROLES.get(order.type)
        return parse_client_order_id(order.client_order_id) is None and any(
            ticket.is_leg and not ticket.venue_id and ticket.role is role and ticket.symbol == order.symbol
            for ticket in self.open.values()
        )

    def _bind_legs(self, legs: Iterable[tuple[str, VenueOrder]]) -> None:
        """Take the legs of a group, and what was told of them before they were known."""
        for name, leg in legs:
            ticket = self.tickets[name]
            if not ticket.venue_id:
                self.bind(ticket, leg)
            ticket.is_answered = True
        early, self._early = self._early, []
        for event in early:
            self._take_event(event)

    def _take_foreign(self, event: TradeEvent, effect: Effect) -> None:
        """Take a fill of an order that is not this run's: the account is one."""
        fill = build_fill(event) if effect in FILLS and event.order.symbol else None
        if fill is not None and self.watch is not None and self.watch.holds(event.order):
            fill = None
        if fill is not None:
            self._counters["fills of other orders"] += 1
            if self._book.apply(fill) is not None:
                self._adopt_position(event)
            else:
                fill = None
        if self.watch is not None:
            self.watch.note_event(event, fill)

    def _take_back(self, ticket: Ticket | None, event: TradeEvent) -> None:
        """Undo an execution, or let another stand in its place."""
        order = event.order
        fills = build_reversal(event, self._book.books)
        if fills is None:
            _log.warning("an execution that was taken back is not known", symbol=order.symbol)
            self._counters[f"unknown executions of {event.event}"] += 1
            if ticket is not None:
                self._look_up([ticket.sent_name])
            self._refresh()
            return
        for fill in fills:
            self._counters["executions taken back" if fill.qty < 0 else "executions corrected"] += 1
            if ticket is None:
                self._take_back_elsewhere(event, fill)
            elif fill.qty < 0:
                self.changes.take_back(ticket, fill)
            else:
                self.changes.execute(ticket, fill, Effect.PARTIAL_FILL)
        self._adopt_position(event)

    def _take_back_elsewhere(self, event: TradeEvent, fill: Fill) -> None:
        """Undo an execution of an order that is not this run's."""
        order = event.order
        if not order.symbol or self._book.apply(fill) is None or self.watch is None:
            return
        if self.watch.is_journalled(order.client_order_id):
            self.changes.write_down_fill(fill)
            self.changes.fill_rows.take_back(fill.previous_execution_id)
            self.watch.note_bust(order, fill)
        else:
            self.watch.note_event(event, fill)

    def take_total(self, order: VenueOrder) -> bool:
        """Take the total of an order of ours as the venue has it now, also a smaller one; False when it is not ours."""
        ticket = self._ticket_of(order)
        if ticket is None:
            return False
        surplus = self._book.books.surplus_fill(order, order.updated_ns)
        if surplus is not None:
            self._counters["executions taken back"] += 1
            self.changes.take_back(ticket, surplus)
        missing = self._book.books.missing_fill(order, order.filled_ns or order.updated_ns)
        if missing is not None:
            self._counters["fills found by their total"] += 1
            self.changes.execute(ticket, missing, Effect.PARTIAL_FILL)
        return True

    def _take_state(self, state: AccountState) -> None:
        """Take over a snapshot, unless it tells of an order what is not applied yet and would then count twice."""
        if not self._cache.may_replace(state):
            return
        at_venue = {order.client_order_id: order for order in state.open_orders}
        for name, ticket in self.open.items():
            if ticket.is_sent and name not in self._cleared:
                order = at_venue.get(ticket.venue_name)
                is_told = order is not None and order.filled_qty == self._book.books.filled_qty(ticket.venue_name)
                if order is not None and ticket.phase is Phase.SUBMITTED:
                    # Its acceptance may have been told while nobody heard it.
                    is_told = status_effect(order.status) is not Effect.ACCEPT
                self._doubtful.update(() if is_told else (name,))
        self._cleared.clear()
        if self._doubtful:
            self._look_up(sorted(self.tickets[name].sent_name for name in self._doubtful))
            self._refresh()
        elif self.watch is None or self.watch.take_state(state):
            self._book.take_snapshot(state)

    def _adopt_position(self, event: TradeEvent) -> None:
        """Take the venue's word on a position: it has taken fees in coins. Whatever else differs is looked into."""
        symbol = event.order.symbol
        if event.position_qty is None or event.event_id < self._adopted.get(symbol, ""):
            return
        self._adopted[symbol] = event.event_id
        fees = self._book.held(symbol).qty - event.position_qty
        if not fees:
            return
        if is_crypto(symbol) and 0 < fees <= crypto_fee_limit(self._book.bought(symbol)):
            self._book.adopt_qty(symbol, event.position_qty)
            self._counters["positions that differed from their fills"] += 1
        else:
            self._refresh()


def _is_covered(ticket: Ticket) -> bool:
    """Tell whether another open order of its group stands for this one."""
    if ticket.role is Role.TAKE_PROFIT:
        before: tuple[Role, ...] = (Role.ENTRY,)
    elif ticket.role is Role.STOP_LOSS:
        before = (Role.ENTRY, Role.TAKE_PROFIT)
    else:
        return False
    return any(member.role in before and member.phase.is_open for member in ticket.members)
