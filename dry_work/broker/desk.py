"""The order desk: what the venue says, applied to Backtrader's orders, in the order in which it came.

Engine thread only, and no I/O: what has to be asked or written goes out through callables. Every change of an order
is notified with exactly one clone, since each clone takes the executions that were not told yet.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

import backtrader as bt
import structlog
from msgspec.structs import replace

from dry_work.broker.account import AccountCache, AccountState
from dry_work.broker.outcomes import (
    CancelRefused,
    OrderLookedUp,
    OrderRefused,
    OrderTaken,
    OrderUnresolved,
    Outcome,
    ReplacementRefused,
    ReplacementTaken,
)
from dry_work.broker.positions import PositionBook
from dry_work.broker.tickets import CancelMark, Ticket, execute_order, fill_record, line_time, number
from dry_work.errors import InsufficientFundsError, RiskRefusedError
from dry_work.orders.books import Fill, PositionChange
from dry_work.orders.client_ids import parse_client_order_id
from dry_work.orders.groups import EXIT_ROLES, Role
from dry_work.orders.lifecycle import Effect, Phase, event_effect, next_phases, status_effect, status_word
from dry_work.orders.model import OrderRequest, OrderStatus, OrderType, TradeEvent, VenueOrder

DeskItem = TradeEvent | Outcome | AccountState

_FILLS = (Effect.FILL, Effect.PARTIAL_FILL)
_LIVE = (Effect.ACCEPT, *_FILLS)  # of a replacement: it has taken the other's place

_log = structlog.get_logger(__name__)


class OrderDesk:
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
        lockstep: answers to submits change nothing but refusals: everything else comes with the trade events.
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
        lockstep: bool,
        counters: Counter[str],
    ) -> None:
        self._broker = broker
        self._book = book
        self._cache = cache
        self._commission_of = commission_of
        self._look_up = look_up
        self._refresh = refresh
        self._restart_stream = restart_stream
        self._send = send
        self._ask_cancel = ask_cancel
        self._assign = assign
        self._fail = fail
        self._lockstep = lockstep
        self._counters = counters
        self.tickets: dict[str, Ticket] = {}  # all, by client order id
        self.open: dict[str, Ticket] = {}  # those that can still be filled
        self.fill_records: list[dict[str, object]] = []
        self._by_ref: dict[int, Ticket] = {}
        self._names: dict[str, Ticket] = {}  # by every client order id that the venue may have for it
        self._ids: dict[str, Ticket] = {}  # by every id of the venue
        self._early: list[TradeEvent] = []  # that may be of legs whose ids are not known yet
        self._queue: deque[Any] = deque()  # notifications and cancel marks
        self._new_fills: list[Fill] = []
        self._new_ends: list[tuple[str, str]] = []
        self._doubtful: set[str] = set()  # orders of which a snapshot said something else than the stream
        self._cleared: set[str] = set()  # orders that were looked up for such a doubt, in vain
        self._adopted: dict[str, str] = {}  # last event id whose position was taken over, by symbol

    def add(self, ticket: Ticket) -> None:
        """Keep a new order."""
        self.tickets[ticket.client_order_id] = ticket
        self._names[ticket.client_order_id] = ticket
        self._by_ref[ticket.order.ref] = ticket

    def add_name(self, name: str, ticket: Ticket) -> None:
        """Let another client order id stand for an order."""
        self._names[name] = ticket

    def is_known(self, client_order_id: str) -> bool:
        """Tell whether the venue's order with this client order id is one of these, or a leg of one."""
        return client_order_id in self._names

    def open_names(self) -> tuple[str, ...]:
        """Return the names under which the order worker knows the open orders. Thread-safe."""
        return tuple(ticket.sent_name for ticket in tuple(self.open.values()))

    def exposed(self) -> list[Ticket]:
        """Return the open orders that can add up: of the exits of a group one, and none while its entry is open."""
        return [ticket for ticket in self.open.values() if not _is_covered(ticket)]

    def find(self, order: Any) -> Ticket | None:
        """Return the ticket of an order or of a clone of one."""
        return self._by_ref.get(order.ref)

    # Notifications

    def notify(self, order: Any) -> None:
        """Queue a notification of the order as it is now."""
        self._queue.append(order.clone())

    def mark_cancel(self, ticket: Ticket) -> None:
        """Hold the place of a cancellation that was asked for now, when its word is sure to be in before `release`."""
        if self._lockstep:
            ticket.cancel_mark = CancelMark(ticket.order.data.datetime[0])
            self._queue.append(ticket.cancel_mark)

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

    def take_new_fills(self) -> list[Fill]:
        """Return the fills since the last call."""
        found, self._new_fills = self._new_fills, []
        return found

    def take_new_ends(self) -> list[tuple[str, str]]:
        """Return the orders that have ended since the last call: client order id and Alpaca's word for how."""
        found, self._new_ends = self._new_ends, []
        return found

    # The venue's words

    def take(self, item: DeskItem) -> None:
        """Apply what has come from the venue."""
        if isinstance(item, TradeEvent):
            self._take_event(item)
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
            self._bind(self._names[item.client_order_id], item.order, is_current=False)
        elif isinstance(item, ReplacementRefused):
            self._take_replacement_refusal(item)
        else:
            self._take_state(item)

    def lapse(self, ticket: Ticket) -> None:
        """End an order whose time passed before it could be sent."""
        if ticket.phase.is_open:
            ticket.order.addinfo(
                reject_reason="its valid time has passed before it could be sent", reject_code="lapsed"
            )
            self._enter(ticket, Phase.EXPIRED)

    def _take_event(self, event: TradeEvent) -> None:
        order = event.order
        ticket = self._ticket_of(order)
        reason = event.message or order.reject_reason
        effect = event_effect(event.event, code=event.code, reason=reason)
        if ticket is None:
            if self._may_be_leg(order):
                self._early.append(event)
            else:
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
        if not is_current and ticket.replacing is not None and order.client_order_id == _new_id(ticket):
            if effect in _LIVE and event.event != "pending_new":
                self._settle_replacement(ticket, order)
                is_current = True
            elif effect in (Effect.CANCEL, Effect.EXPIRE, Effect.REJECT, Effect.LACK_FUNDS):
                self._end_replacement(ticket, reason or f"the new order was {event.event}", event.code)
                return
        self._bind(ticket, order, is_current=is_current)
        fill = build_fill(event) if effect in _FILLS else None
        if fill is not None and self._book.apply_again(fill):
            fill = None
        missing = self._book.books.missing_fill(order, event.ts_event_ns, without=fill)
        if missing is not None:
            self._counters["fills found by their total"] += 1
            self._execute(ticket, missing, Effect.PARTIAL_FILL)
        if fill is not None:
            self._execute(ticket, fill, effect if is_current else Effect.PARTIAL_FILL)
            self._adopt_position(event)
        elif effect is Effect.FILL and is_current:
            self._complete(ticket)
        elif effect in _FILLS or not is_current or (event.event == "replaced" and self._follow(ticket, order)):
            pass
        elif event.event == "order_replace_rejected":
            self._end_replacement(ticket, reason or "the venue refused the replacement", event.code)
        else:
            if event.event == "replaced":
                _log.warning("an order of ours was replaced by somebody else", symbol=ticket.symbol)
                ticket.order.addinfo(reject_reason="it was replaced at the venue by an order that is not ours")
            self._advance(ticket, effect, reason=reason, code=event.code, at_ns=event.ts_event_ns)

    # Which order of the venue stands for which of ours

    def _ticket_of(self, order: VenueOrder) -> Ticket | None:
        return self._names.get(order.client_order_id) or self._ids.get(order.id)

    def _is_current(self, ticket: Ticket, order: VenueOrder) -> bool:
        """Tell whether the order stands for ours now, and not one that it has replaced or that is to replace it."""
        if ticket.venue_name:
            return order.client_order_id == ticket.venue_name
        return order.id == ticket.venue_id

    def _bind(self, ticket: Ticket, order: VenueOrder, *, is_current: bool) -> None:
        self._ids[order.id] = self._names[order.client_order_id] = ticket
        if is_current:
            ticket.venue_id, ticket.venue_name = order.id, order.client_order_id

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
                self._bind(ticket, leg, is_current=True)
        early, self._early = self._early, []
        for event in early:
            self._take_event(event)

    # Replacements

    def _follow(self, ticket: Ticket, order: VenueOrder) -> bool:
        """Let the order that has replaced `order` stand for ours; False when it is not known which."""
        pending = ticket.replacing
        if pending is None and not order.replaced_by:
            return False
        if pending is not None:
            self._show_replacement(ticket, pending.request)
        elif order.replaced_by not in self._ids:
            # The venue does so with exits, and an operator may: what it is now is looked up.
            self._counters["orders replaced by others"] += 1
            _log.info("an order was replaced at the venue", symbol=ticket.symbol)
        ticket.venue_id = order.replaced_by
        ticket.venue_name = pending.request.client_order_id if pending is not None else ""
        if order.replaced_by:
            self._ids[order.replaced_by] = ticket
            self._assign(ticket.sent_name, order.replaced_by)
        self._after_replacement(ticket)
        if pending is None:
            self._look_up([ticket.sent_name])
        return True

    def _settle_replacement(self, ticket: Ticket, order: VenueOrder) -> None:
        """The new order is there: whatever was told of the old one, it stands no more."""
        assert ticket.replacing is not None
        self._show_replacement(ticket, ticket.replacing.request)
        self._bind(ticket, order, is_current=True)
        self._assign(ticket.sent_name, order.id)
        self._after_replacement(ticket)

    def _show_replacement(self, ticket: Ticket, request: OrderRequest) -> None:
        ticket.request = request
        if ticket.phase.is_open:
            change_order(ticket.order, request)
            self.notify(ticket.order)

    def _take_replacement_refusal(self, outcome: ReplacementRefused) -> None:
        ticket, error = self._names[outcome.client_order_id], outcome.error
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
        self._end_replacement(ticket, error.message, code)

    def _end_replacement(self, ticket: Ticket, reason: str, code: int | str | None) -> None:
        """A replacement was not made: the order stands as it was, and the strategy is told why."""
        if ticket.replacing is None:
            return
        if ticket.venue_id:
            self._assign(ticket.sent_name, ticket.venue_id)
        _log.warning("replacement refused", symbol=ticket.symbol, reason=reason, code=code)
        ticket.order.addinfo(replace_reason=reason, replace_code=code)
        if ticket.phase.is_open:
            self.notify(ticket.order)
        self._after_replacement(ticket)

    def _after_replacement(self, ticket: Ticket) -> None:
        ticket.replacing = None
        if ticket.cancel_wanted:
            ticket.cancel_wanted = False
            if ticket.phase.is_open:
                self._ask_cancel(ticket)

    def _take_foreign(self, event: TradeEvent, effect: Effect) -> None:
        """Take a fill of an order that is not this run's: the account is one."""
        fill = build_fill(event) if effect in _FILLS else None
        if fill is not None:
            self._counters["fills of other orders"] += 1
            if self._book.apply(fill) is not None:
                self._adopt_position(event)

    def _take_answer(self, outcome: OrderTaken) -> None:
        ticket = self._names[outcome.client_order_id]
        ticket.is_unresolved = False
        self._bind(ticket, outcome.order, is_current=not ticket.venue_id)
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
        self._advance(self._names[outcome.client_order_id], effect, reason=error.message, code=code)
        self._bind_legs(())

    def _take_unresolved(self, outcome: OrderUnresolved) -> None:
        ticket = self._names[outcome.client_order_id]
        if ticket.venue_id:
            return  # an event has told meanwhile
        ticket.is_unresolved = True
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
            self._advance(ticket, Effect.REJECT, reason="the order never reached the venue")
        else:
            self._counters["orders that the venue does not know"] += 1
            self._cleared.add(name)
            self._doubtful.discard(name)

    def _take_chain(self, ticket: Ticket, outcome: OrderLookedUp) -> bool:
        """Take the venue's word on an order and on those that it replaces; tell whether it changed anything."""
        order = outcome.order
        assert order is not None
        changed = False
        for old in outcome.before:
            missing = self._book.books.missing_fill(old, old.filled_ns or old.updated_ns)
            if missing is not None:
                self._execute(ticket, missing, Effect.PARTIAL_FILL)
                changed = True
        if ticket.replacing is not None and order.client_order_id == _new_id(ticket):
            effect = status_effect(order.status)
            if effect not in _LIVE:
                if effect is not Effect.NOTHING:
                    self._end_replacement(ticket, order.reject_reason or f"the new order is {order.status}", None)
                return (bool(outcome.before) and self._take_word(ticket, outcome.before[-1])) or changed
            self._settle_replacement(ticket, order)
            changed = True
        self._bind(ticket, order, is_current=True)
        pending = ticket.replacing
        if pending is not None and pending.is_unresolved and order.status != OrderStatus.PENDING_REPLACE:
            self._end_replacement(ticket, "the replacement never reached the venue", None)
        return self._take_word(ticket, order) or changed

    def _take_word(self, ticket: Ticket, order: VenueOrder) -> bool:
        """Take the venue's word on an order; tell whether it changed more than its acceptance."""
        before = ticket.phase
        effect = status_effect(order.status, reason=order.reject_reason)
        missing = self._book.books.missing_fill(order, order.filled_ns or order.updated_ns)
        if missing is not None:
            self._execute(ticket, missing, Effect.FILL if effect is Effect.FILL else Effect.PARTIAL_FILL)
        elif effect is Effect.FILL:
            self._complete(ticket)
        if effect is Effect.ASK:
            self._counters[f"unknown status {order.status}"] += 1
            _log.warning("unknown order status is left as it is", status=order.status, symbol=ticket.symbol)
        elif effect is Effect.WARN:
            self._counters[f"status {order.status}"] += 1
        elif effect is not Effect.FILL:
            self._advance(ticket, effect, reason=order.reject_reason, at_ns=order.updated_ns)
        return missing is not None or ticket.phase not in (before, Phase.ACCEPTED)

    def _take_state(self, state: AccountState) -> None:
        """Take over a snapshot, unless it tells of an order what is not applied yet and would then count twice."""
        if not self._cache.may_replace(state):
            return
        at_venue = {order.client_order_id: order.filled_qty for order in state.open_orders}
        for name, ticket in self.open.items():
            if ticket.is_sent and name not in self._cleared:
                at = ticket.venue_name
                is_told = at in at_venue and at_venue[at] == self._book.books.filled_qty(at)
                self._doubtful.update(() if is_told else (name,))
        self._cleared.clear()
        if self._doubtful:
            self._look_up(sorted(self.tickets[name].sent_name for name in self._doubtful))
            self._refresh()
        else:
            self._book.take_snapshot(state)

    # Changes of an order

    def _execute(self, ticket: Ticket, fill: Fill, effect: Effect) -> None:
        change = self._book.apply(fill)
        if change is None:
            return
        goes_on = effect is Effect.FILL and ticket.remainder is not None
        *before, last = next_phases(ticket.phase, Effect.PARTIAL_FILL if goes_on else effect)
        for phase in before:
            self._enter(ticket, phase)
        self._record(ticket, change)
        self._enter(ticket, last)
        if goes_on:
            self._go_on(ticket)

    def _record(self, ticket: Ticket, change: PositionChange) -> None:
        order = ticket.order
        commission = execute_order(order, change, self._commission_of(order.data))
        fill = replace(
            change.fill, client_order_id=ticket.client_order_id
        )  # our name, also where the venue has another
        self._new_fills.append(fill)
        self.fill_records.append(fill_record(fill, symbol=ticket.symbol, commission=commission))

    def _complete(self, ticket: Ticket) -> None:
        """The venue says that all is executed, and all executions are applied."""
        if ticket.phase.is_open and ticket.remainder is not None:
            self._go_on(ticket)
        elif ticket.phase.is_open:
            for phase in next_phases(ticket.phase, Effect.FILL):
                self._enter(ticket, phase)

    def _go_on(self, ticket: Ticket) -> None:
        """The first part of a split order is filled: the second follows, unless the order was to be canceled."""
        part = ticket.remainder
        assert part is not None
        ticket.remainder = None
        if part.is_canceled:
            self._enter(ticket, Phase.EXPIRED if ticket.is_expiring else Phase.CANCELED)
            return
        name = part.request.client_order_id
        ticket.sent_name = ticket.venue_name = name
        ticket.venue_id = ""
        self._names[name] = ticket
        self._send(ticket, part.request, part.number)

    def _advance(
        self, ticket: Ticket, effect: Effect, *, reason: str = "", code: int | str | None = None, at_ns: int = 0
    ) -> None:
        if effect in (Effect.REJECT, Effect.LACK_FUNDS) and ticket.phase.is_open:
            reason = reason or "the venue gave no reason"
            ticket.order.addinfo(reject_reason=reason, reject_code=code)
            _log.warning("order rejected", symbol=ticket.symbol, reason=reason, code=code)
        for phase in next_phases(ticket.phase, effect):
            ends_by_date = phase is Phase.CANCELED and ticket.is_expiring
            self._enter(ticket, Phase.EXPIRED if ends_by_date else phase, at_ns)

    def _enter(self, ticket: Ticket, phase: Phase, at_ns: int = 0) -> None:
        """Bring Backtrader's order into a phase and notify it; `at_ns` is the venue's time of an end."""
        order = ticket.order
        ticket.phase = phase
        if phase is Phase.ACCEPTED:
            order.accept(self._broker)
        elif phase is Phase.PARTIAL:
            order.partial()
        elif phase is Phase.COMPLETED:
            order.completed()
            order.executed.remsize = 0  # floats may leave a residue; the venue's word is final
            if ticket.request is not None and ticket.request.notional is not None:
                order.size = order.created.size = order.executed.size  # of dollars nobody knew before
        elif phase is Phase.MARGIN:
            order.margin()
        elif phase is Phase.REJECTED:
            order.reject(self._broker)
        elif phase is Phase.CANCELED:
            order.cancel()
        elif phase is Phase.EXPIRED:
            order.cancel()  # sets the time; `expire` would decide for itself
            order.status = bt.Order.Expired
        if not phase.is_open:
            self._end(ticket)
            if ticket.request is not None:
                self._new_ends.append((ticket.client_order_id, status_word(phase).value))
            if at_ns and not self._lockstep:
                order.executed.dt = line_time(at_ns)
        if ticket.role is Role.ENTRY and phase is Phase.COMPLETED:
            for member in ticket.members:
                member.order.activate()
        mark = ticket.cancel_mark
        if mark is not None and mark.is_queued and phase in (Phase.CANCELED, Phase.EXPIRED):
            mark.is_queued = False
            order.executed.dt = mark.line_time
            mark.notification = order.clone()
        else:
            self.notify(order)
        if not phase.is_open and ticket.members:
            self._end_group(ticket)

    def _end(self, ticket: Ticket) -> None:
        self.open.pop(ticket.client_order_id, None)
        ticket.replacing = ticket.remainder = None

    def _end_group(self, ticket: Ticket) -> None:
        """An order of a group has ended: what never got to the venue ends with it, the rest is the venue's to tell."""
        others = [member for member in ticket.members if member.phase.is_open]
        if ticket.head is ticket and ticket.phase in (Phase.REJECTED, Phase.MARGIN):
            reason = f"the order that it went out with was rejected: {ticket.order.info.get('reject_reason', '')}"
            for member in others:
                if member.phase is Phase.SUBMITTED:
                    self._advance(member, Effect.REJECT, reason=reason, code=ticket.order.info.get("reject_code"))
            others = [member for member in others if member.phase.is_open]
        # The venue does not always tell of the exit that it cancels.
        names = [member.sent_name for member in others if member.venue_id]
        if names and not self._lockstep and not (ticket.role is Role.ENTRY and ticket.phase is Phase.COMPLETED):
            self._look_up(names)

    def _adopt_position(self, event: TradeEvent) -> None:
        symbol = event.order.symbol
        if event.position_qty is None or event.event_id < self._adopted.get(symbol, ""):
            return
        self._adopted[symbol] = event.event_id
        if self._book.adopt_qty(symbol, event.position_qty):
            self._counters["positions that differed from their fills"] += 1


def change_order(order: Any, request: OrderRequest) -> None:
    """Let Backtrader's order say what a replacement has made of it."""
    created = order.created
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


def _new_id(ticket: Ticket) -> str:
    return ticket.replacing.request.client_order_id if ticket.replacing is not None else ""


def _is_covered(ticket: Ticket) -> bool:
    """Tell whether another open order of its group stands for this one."""
    if ticket.role is Role.TAKE_PROFIT:
        before: tuple[Role, ...] = (Role.ENTRY,)
    elif ticket.role is Role.STOP_LOSS:
        before = (Role.ENTRY, Role.TAKE_PROFIT)
    else:
        return False
    return any(member.role in before and member.phase.is_open for member in ticket.members)


def build_fill(event: TradeEvent) -> Fill | None:
    """Return the fill that an event tells of, None when it does not say how much at what price."""
    if not event.price or not event.qty or event.price < 0 or event.qty < 0:
        return None
    return Fill(
        execution_id=event.execution_id or f"{event.order.id}:{event.event_id}",
        client_order_id=event.order.client_order_id,
        symbol=event.order.symbol,
        side=event.order.side,
        qty=event.qty,
        price=event.price,
        ts_event_ns=event.ts_event_ns,
        filled_qty=event.order.filled_qty or None,
    )
