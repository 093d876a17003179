"""The risk gate in the broker: everything that is sent passes `check`. Engine thread only, but for `judge` and `work`.

The gate is fed with the broker's own books, so that nothing is asked of the venue while a strategy waits.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import structlog
from msgspec.structs import replace

from dry_work.broker.account import AccountState
from dry_work.broker.brake import Brake
from dry_work.broker.flight import NO_FLIGHT, REAL_TIME, RISK_RECORD, RISK_STATE, WALL_CLOCK, Decision, Flight
from dry_work.broker.journal import Journal, RiskRecord
from dry_work.broker.positions import PositionBook
from dry_work.broker.tickets import Ticket, position_key
from dry_work.clock import MINUTE_NS
from dry_work.errors import ConfigError
from dry_work.feeds.base import line_time_ns
from dry_work.market.calendar import shared_calendar
from dry_work.market.symbols import is_crypto
from dry_work.orders.exposure import Holding, Portfolio, RiskOrder, describe_open_order, describe_request, units_of
from dry_work.orders.groups import Role
from dry_work.orders.model import OrderRequest, VenueOrder
from dry_work.orders.risk import Breach, Quote, RiskCommand, RiskGate, RiskState
from dry_work.orders.risk_limits import LossAction, OnBreach, RiskLimits

STORE_MESSAGE = "risk"  # first argument of `notify_store`

_COMMANDS = {
    LossAction.REDUCE: RiskCommand.REDUCE,
    LossAction.HALT: RiskCommand.HALT,
    LossAction.FLATTEN: RiskCommand.FLATTEN,
}

_log = structlog.get_logger(__name__)


class RiskDesk:
    """Gate and brake of one broker.

    Args:
        limits: in force.
        brake: of the same journal.
        book: positions and cash.
        open_tickets: returns the orders that can still be filled.
        is_known: tells whether a client order id is that of a ticket.
        datas: returns Backtrader's datas.
        tell: takes every change of the state, on the engine's thread.
        lockstep: the market waits, so that no data is stale.
        flight: what is read from other threads passes it.
    """

    def __init__(
        self,
        limits: RiskLimits,
        brake: Brake,
        journal: Journal,
        *,
        book: PositionBook,
        open_tickets: Callable[[], Iterable[Ticket]],
        is_known: Callable[[str], bool],
        datas: Callable[[], Sequence[Any]],
        tell: Callable[[RiskRecord], None],
        lockstep: bool,
        counters: Counter[str],
        flight: Flight = NO_FLIGHT,
    ) -> None:
        self._flight = flight
        self.limits = limits
        self.brake = brake
        self._gate = RiskGate(limits, state=brake.state, marks=journal.marks())
        self._book = book
        self._open_tickets = open_tickets
        self._is_known = is_known
        self._datas = datas
        self._tell = tell
        self._lockstep = lockstep
        self._counters = counters
        self._calendar = shared_calendar()
        self._listed: tuple[VenueOrder, ...] = ()  # open orders of the account, of the last snapshot
        self._venue_equity: Decimal | None = None  # of a snapshot that was not looked at yet
        self._offset = Decimal(0)  # from our measure of the equity to the venue's
        self._prices: dict[str, Decimal] = {}  # of what is held, at the last look
        self._barred: set[str] = set()  # symbols that were held when they had a bar
        self._is_real_time = False
        self._portfolio: Portfolio | None = None
        self._told_id = brake.record.id

    @property
    def halted(self) -> str:
        """Why no orders are taken; empty while some are."""
        record = self.brake.record
        if self.brake.state.takes_orders:
            return ""
        return f"{self.brake.state.value} by {record.who}: {record.reason}"

    @property
    def stopped_by(self) -> RiskRecord | None:
        """The limit that has halted this run, once what follows is done and when the run is to end for it."""
        record = self.brake.record
        is_over = record.state is RiskState.HALTED and record.is_by_limit and record.id != self.brake.begun_with
        ends = is_over and self.limits.on_breach is OnBreach.STOP and self.brake.is_settled
        return record if ends else None

    def prepare(self, now_ns: int) -> None:
        """Load the calendar, which takes a while; on any thread.

        Args:
            now_ns: the venue's time.
        """
        self._is_real_time = not self._lockstep and abs(self.brake.clock.time_ns() - now_ns) < MINUTE_NS
        if not self._lockstep and self.limits.stale_bars:
            with contextlib.suppress(ConfigError):
                self._calendar.is_open(now_ns)

    def check(self, request: OrderRequest, *, now_ns: int, replaces: str = "") -> Breach | None:
        """Return the limit that refuses a request; None takes it, and counts it from now on.

        Args:
            request: about to be journalled and sent. Of a replacement: the order as it will be.
            now_ns: the market's time.
            replaces: client order id of the open order that it replaces.
        """
        if self._flight.read(REAL_TIME, self._is_real_time):
            # The market's time follows the slices, so that late ones would pass for new ones.
            now_ns = max(now_ns, self._flight.read(WALL_CLOCK, self.brake.clock.time_ns()))
        self._gate.state = self._state()
        portfolio = self._portfolio
        if portfolio is None:
            portfolio = self._portfolio = self._measure()
        order, *legs = (_keyed(found) for found in describe_request(request, replaces=replaces))
        shrinks = portfolio.shrinks(order)
        quote = self._quote(request.symbol, now_ns)
        breach = self._gate.check(order, portfolio, quote, now_ns, legs=legs)
        if breach is not None:
            self._counters[f"orders refused by the risk limit {breach.limit.value}"] += 1
        elif shrinks:
            self.brake.allow(request.client_order_id)
        return breach

    def take_state(self, state: AccountState) -> None:
        """Take note of the account's open orders, and of its equity by the venue's own prices."""
        self._listed = state.open_orders
        self._venue_equity = state.account.equity

    def watch(self, now_ns: int) -> None:
        """Follow the brake and, unless limits of losses are off, the equity. Called when anything may have changed."""
        self._portfolio = None
        record = self._flight.read(RISK_RECORD, self.brake.record)
        if record.id != self._told_id:
            self._told_id = record.id
            if record.state is RiskState.ACTIVE:
                self._gate.release()
            self._tell(record)
        limits = self.limits
        if limits.day_loss is None and limits.drawdown is None:
            return
        breach = self._gate.observe(self._equity(), now_ns)
        self.brake.marks = self._gate.marks
        if breach is not None:
            state = self._gate.state = self._state()
            command = _COMMANDS[limits.loss_action]
            if state is RiskState.ACTIVE or (state is RiskState.REDUCING and command is not RiskCommand.REDUCE):
                self._flight.decide(Decision(kind="brake", command=f"{command.value}: {breach}"))
                self.brake.change(command, reason=str(breach), who=f"limit:{breach.limit.value}")

    def _state(self) -> RiskState:
        return self._flight.read(RISK_STATE, self.brake.state)

    # The account, from the books

    def _measure(self) -> Portfolio:
        orders = (*self._own_orders(), *self._foreign_orders())
        keys = {*self._book.books.symbols, *(order.symbol for order in orders)}
        holdings = {key: Holding(self._book.books.position(key).qty, self._price(key)) for key in keys}
        return Portfolio(self._equity(), holdings, orders)

    def _equity(self) -> Decimal:
        """Return the venue's equity of the last snapshot, moved on by what our books have gained or lost since.

        The venue knows prices of what the run has no data of, or no bar yet; between snapshots our books are quicker.
        """
        books = self._book.books
        prices = {key: self._price(key) for key in books.symbols}
        for key in prices.keys() - self._barred:
            if any(len(data) and self._book.key_of(data) == key for data in self._datas()):
                self._barred.add(key)
                # Until now it counted at its entry: its first bar is no gain or loss of this moment.
                jump = prices[key] - self._prices.get(key, prices[key])
                self._offset -= books.position(key).qty * jump * units_of(key)
        self._prices = prices
        own = books.cash + sum(
            (books.position(key).qty * price * units_of(key) for key, price in prices.items()), Decimal(0)
        )
        if self._venue_equity is not None:
            self._offset, self._venue_equity = self._venue_equity - own, None
        return own + self._offset

    def _foreign_orders(self) -> Iterator[RiskOrder]:
        """Yield the account's open orders that are not this run's."""
        for order in self._listed:
            if not self._is_known(order.client_order_id):
                yield from map(_keyed, describe_open_order(order))

    def _own_orders(self) -> Iterator[RiskOrder]:
        for ticket in self._open_tickets():
            if ticket.request is None:
                continue
            if ticket.role is Role.ENTRY:
                yield from self._describe(ticket)
                yield from self._describe_exits(ticket, entry=ticket.client_order_id)
            elif ticket.role is not None:
                yield from self._describe_exits(ticket)
            else:
                yield from self._describe(ticket)

    def _describe_exits(self, ticket: Ticket, *, entry: str = "") -> Iterator[RiskOrder]:
        """Yield the open exits of an order's group, of which one is filled."""
        for member in ticket.members:
            if member.role is not Role.ENTRY and member.phase.is_open:
                yield from self._describe(member, group=f"{ticket.head.client_order_id}:exits", entry=entry)

    def _describe(self, ticket: Ticket, *, group: str = "", entry: str = "") -> Iterator[RiskOrder]:
        """Yield an order with what can still be filled of it, under our name, and the one that is to replace it."""
        if ticket.request is None:
            return
        name = ticket.client_order_id
        order = replace(describe_request(ticket.request)[0], id=name, group=group, entry=entry)
        if order.qty is not None:
            # A leg and a replacement have their executions under the venue's name for them. An order through zero
            # has those of both its parts.
            names = {ticket.venue_name} | ({name} if ticket.sent_name != name else set())
            filled = sum(map(self._book.books.filled_qty, names), Decimal(0))
            order = replace(order, qty=max(order.qty - filled, Decimal(0)))
        yield _keyed(order)
        if ticket.replacing is not None:
            # Either the one or the other will be filled.
            new = describe_request(ticket.replacing.request, replaces=name)[0]
            yield _keyed(replace(new, group=group, entry=entry))

    def _price(self, key: str) -> Decimal:
        price = self._book.last_price(key, self._datas())
        return Decimal(repr(price)) if math.isfinite(price) else Decimal(0)

    def _quote(self, symbol: str, now_ns: int) -> Quote:
        key = position_key(symbol)
        price = self._price(key)
        if self._lockstep or not self.limits.stale_bars:
            return Quote(price or None)
        datas = [data for data in self._datas() if self._book.key_of(data) == key and len(data)]
        if not datas:
            return Quote(price or None)
        bar_ns = min(int(getattr(data, "bar_length_ns", MINUTE_NS)) for data in datas)
        since_ns = max(line_time_ns(data.datetime[0]) for data in datas)
        if not is_crypto(symbol):
            try:
                session = self._calendar.session_at(now_ns)
            except ConfigError:  # a time that the calendar does not know
                session = None
            if session is None:
                return Quote(price or None)
            since_ns = max(since_ns, session.open_ns)
        return Quote(price or None, age_ns=now_ns - since_ns, bar_ns=bar_ns)


def _keyed(order: RiskOrder) -> RiskOrder:
    return replace(order, symbol=position_key(order.symbol))
