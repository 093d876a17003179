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

from dry_work.broker.account import AccountCache, AccountState
from dry_work.broker.gateway import (
    CancelRefused,
    OrderLookedUp,
    OrderRefused,
    OrderTaken,
    OrderUnresolved,
    Outcome,
)
from dry_work.broker.positions import PositionBook
from dry_work.broker.tickets import CancelMark, Ticket, execute_order, fill_record, line_time
from dry_work.errors import InsufficientFundsError
from dry_work.orders.books import Fill, PositionChange
from dry_work.orders.lifecycle import Effect, Phase, event_effect, next_phases, status_effect
from dry_work.orders.model import TradeEvent, VenueOrder

DeskItem = TradeEvent | Outcome | AccountState

_FILLS = (Effect.FILL, Effect.PARTIAL_FILL)

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
        self._fail = fail
        self._lockstep = lockstep
        self._counters = counters
        self.tickets: dict[str, Ticket] = {}  # all, by client order id
        self.open: dict[str, Ticket] = {}  # those that can still be filled
        self.fill_records: list[dict[str, object]] = []
        self._by_ref: dict[int, Ticket] = {}
        self._queue: deque[Any] = deque()  # notifications and cancel marks
        self._new_fills: list[Fill] = []
        self._doubtful: set[str] = set()  # orders of which a snapshot said something else than the stream
        self._cleared: set[str] = set()  # orders that were looked up for such a doubt, in vain
        self._adopted: dict[str, str] = {}  # last event id whose position was taken over, by symbol

    def add(self, ticket: Ticket) -> None:
        """Keep a new order."""
        self.tickets[ticket.client_order_id] = ticket
        self._by_ref[ticket.order.ref] = ticket

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
        ticket = self.tickets.get(event.order.client_order_id)
        reason = event.message or event.order.reject_reason
        effect = event_effect(event.event, code=event.code, reason=reason)
        if ticket is None:
            self._take_foreign(event, effect)
            return
        if effect is Effect.ASK:
            self._counters[f"unknown event {event.event}"] += 1
            _log.warning("unknown trade event, the order is looked up", trade_event=event.event, symbol=ticket.symbol)
            self._look_up([ticket.client_order_id])
            return
        if effect is Effect.WARN:
            self._counters[f"event {event.event}"] += 1
            _log.warning("order is held up at the venue", trade_event=event.event, symbol=ticket.symbol)
            return
        fill = build_fill(event) if effect in _FILLS else None
        if fill is not None and self._book.apply_again(fill):
            fill = None
        missing = self._book.books.missing_fill(event.order, event.ts_event_ns, without=fill)
        if missing is not None:
            self._counters["fills found by their total"] += 1
            self._execute(ticket, missing, Effect.PARTIAL_FILL)
        if fill is not None:
            self._execute(ticket, fill, effect)
            self._adopt_position(event)
        elif effect is Effect.FILL:
            self._complete(ticket)
        elif effect is not Effect.PARTIAL_FILL:
            if event.event == "replaced":
                _log.warning("an order of ours was replaced by somebody else", symbol=ticket.symbol)
                ticket.order.addinfo(reject_reason="it was replaced at the venue by an order that is not ours")
            self._advance(ticket, effect, reason=reason, code=event.code, at_ns=event.ts_event_ns)

    def _take_foreign(self, event: TradeEvent, effect: Effect) -> None:
        """Take a fill of an order that is not this run's: the account is one."""
        fill = build_fill(event) if effect in _FILLS else None
        if fill is not None:
            self._counters["fills of other orders"] += 1
            if self._book.apply(fill) is not None:
                self._adopt_position(event)

    def _take_answer(self, outcome: OrderTaken) -> None:
        ticket = self.tickets[outcome.client_order_id]
        ticket.is_unresolved = False
        if not self._lockstep and ticket.phase.is_open:
            self._take_word(ticket, outcome.order)

    def _take_refusal(self, outcome: OrderRefused) -> None:
        error = outcome.error
        if outcome.is_fault:
            self._fail(error)
        effect = Effect.LACK_FUNDS if isinstance(error, InsufficientFundsError) else Effect.REJECT
        self._advance(self.tickets[outcome.client_order_id], effect, reason=error.message, code=error.code)

    def _take_unresolved(self, outcome: OrderUnresolved) -> None:
        ticket = self.tickets[outcome.client_order_id]
        if ticket.phase is not Phase.SUBMITTED:
            return  # an event has told meanwhile
        ticket.is_unresolved = True
        self._counters["orders of unknown outcome"] += 1
        _log.error("outcome of an order is unknown", client_order_id=ticket.client_order_id, error=str(outcome.error))
        if self._lockstep:
            self._fail(outcome.error)

    def _take_cancel_refusal(self, outcome: CancelRefused) -> None:
        ticket = self.tickets[outcome.client_order_id]
        ticket.cancel_asked = ticket.is_expiring = False
        ticket.cancel_mark = None
        if ticket.phase.is_open:
            _log.info("cancellation refused", client_order_id=ticket.client_order_id, reason=outcome.error.message)
            if not self._lockstep:
                self._look_up([ticket.client_order_id])

    def _take_look_up(self, outcome: OrderLookedUp) -> None:
        ticket = self.tickets.get(outcome.client_order_id)
        if ticket is None:
            return
        if outcome.order is not None:
            ticket.is_unresolved = False
            changed = self._take_word(ticket, outcome.order)
            if changed:
                self._counters["changes found by look-up"] += 1
            if changed and ticket.client_order_id in self._doubtful:
                self._restart_stream()
            elif not changed:
                self._cleared.add(ticket.client_order_id)  # the venue's list of open orders is not the whole truth
            self._doubtful.discard(ticket.client_order_id)
        elif ticket.is_unresolved:
            self._doubtful.discard(ticket.client_order_id)
            self._advance(ticket, Effect.REJECT, reason="the order never reached the venue")
        else:
            self._counters["orders that the venue does not know"] += 1
            self._cleared.add(ticket.client_order_id)
            self._doubtful.discard(ticket.client_order_id)

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
                is_told = at_venue.get(name) == self._book.books.filled_qty(name)
                self._doubtful.update(() if is_told else (name,))
        self._cleared.clear()
        if self._doubtful:
            self._look_up(sorted(self._doubtful))
            self._refresh()
        else:
            self._book.take_snapshot(state)

    # Changes of an order

    def _execute(self, ticket: Ticket, fill: Fill, effect: Effect) -> None:
        change = self._book.apply(fill)
        if change is None:
            return
        *before, last = next_phases(ticket.phase, effect)
        for phase in before:
            self._enter(ticket, phase)
        self._record(ticket, change)
        self._enter(ticket, last)

    def _record(self, ticket: Ticket, change: PositionChange) -> None:
        order = ticket.order
        commission = execute_order(order, change, self._commission_of(order.data))
        self._new_fills.append(change.fill)
        self.fill_records.append(fill_record(change.fill, symbol=ticket.symbol, commission=commission))

    def _complete(self, ticket: Ticket) -> None:
        """The venue says that all is executed, and all executions are applied."""
        if ticket.phase.is_open:
            for phase in next_phases(ticket.phase, Effect.FILL):
                self._enter(ticket, phase)

    def _advance(
        self, ticket: Ticket, effect: Effect, *, reason: str = "", code: int | None = None, at_ns: int = 0
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
            self.open.pop(ticket.client_order_id, None)
            if at_ns and not self._lockstep:
                order.executed.dt = line_time(at_ns)
        mark = ticket.cancel_mark
        if mark is not None and mark.is_queued and phase in (Phase.CANCELED, Phase.EXPIRED):
            mark.is_queued = False
            order.executed.dt = mark.line_time
            mark.notification = order.clone()
        else:
            self.notify(order)

    def _adopt_position(self, event: TradeEvent) -> None:
        symbol = event.order.symbol
        if event.position_qty is None or event.event_id < self._adopted.get(symbol, ""):
            return
        self._adopted[symbol] = event.event_id
        if self._book.adopt_qty(symbol, event.position_qty):
            self._counters["positions that differed from their fills"] += 1


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
