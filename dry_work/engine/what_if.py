"""What would another strategy have done in a recorded session? Main thread.

As long as its orders are those of the record, fills come from the record. At the end of the first turn in which they
differ the account is handed to the simulated exchange, rule set `backtrader`: each slice of the record is matched
against the open orders, as in a local run or a backtest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from dry_work.broker.outcomes import Outcome
from dry_work.broker.positions import PositionBook
from dry_work.broker.tickets import Ticket, position_key
from dry_work.engine.agents import Agent
from dry_work.engine.replay import ReplayRun
from dry_work.engine.replay_flight import Divergence, ReplayFlight
from dry_work.errors import ConfigError, InsufficientFundsError, OrderRejectedError
from dry_work.exchange.order_rules import CODE_FUNDS
from dry_work.exchange.venue import RefusedError, RuleSet, Venue
from dry_work.market.messages import Slice
from dry_work.orders.model import (
    AccountSnapshot,
    OrderClass,
    OrderRequest,
    Replacement,
    StopLoss,
    TradeEvent,
    VenueOrder,
    VenuePosition,
)
from dry_work.recording.flight_frames import FinishRecord
from dry_work.recording.flight_log import FlightReader, Turn

RULES: RuleSet = "backtrader"
_SHADOW_KEY, _SEEDED_KEY = "LOCAL", "WHAT-IF"
_ZERO = Decimal(0)


class WhatIfResult(msgspec.Struct, frozen=True, kw_only=True):
    """What another strategy would have done."""

    session: str
    agent: str
    divergence: Divergence | None  # the first decision that is another one; None: there was none
    decisions: int  # the same, before it
    handover: str  # how the account was handed over
    orders: tuple[Mapping[str, Any], ...]
    fills: tuple[Mapping[str, Any], ...]
    fills_from_record: int  # the first ones
    start_value: float
    end_value: float
    recorded: FinishRecord | None
    recorded_end_value: float | None
    equity: tuple[tuple[int, float], ...]
    problem: str
    slices: int


class SlicedVenue:
    """The simulated exchange for one account, moved by the slices of a record; what an order worker talks to."""

    def __init__(self, symbols: tuple[str, ...]) -> None:
        self.events: list[TradeEvent] = []
        self._key = _SHADOW_KEY
        self._symbols = symbols
        self._offsets: dict[str, tuple[Decimal | None, Decimal]] = {}  # whole and filled quantity at the handover
        self._last: Slice | None = None
        self._bars: dict[str, Slice] = {}  # the last slice of each symbol
        self._venue = self._build(0)
        self._is_open = False

    def _build(self, now_ns: int) -> Venue:
        return Venue(
            rules=RULES,
            assets=self._symbols,
            emit=self._emit,
            now_ns=now_ns,
            is_open=lambda _now_ns: True,
            session_close_ns=lambda now_ns: now_ns,
        )

    def open_account(self, cash: Decimal) -> None:
        """Open the account that follows the record from its start."""
        if not self._is_open:
            self._is_open = True
            self._venue.open_account(self._key, cash=max(cash, _ZERO))

    def advance(self, piece: Slice) -> None:
        """Match the open orders against a slice. Bars that came late for their own slice match nothing."""
        if piece.end_ns <= self._venue.now_ns:
            return
        bars = [bar for bar in piece.bars if bar.end_ns == piece.end_ns and bar.symbol in self._symbols]
        self._venue.advance(piece.end_ns, bars)
        for bar in bars:
            self._bars[bar.symbol] = replace(piece, bars=(bar,))

    def take_events(self) -> list[TradeEvent]:
        """Return, once, what has happened to orders."""
        events, self.events = self.events, []
        return events

    def agrees_with(self, book: PositionBook, open_tickets: Mapping[str, Ticket]) -> bool:
        """Tell whether the account that followed the record has the books that the record has led to."""
        if not self._is_open:
            return False
        ours = {key: book.books.position(key).qty for key in book.books.symbols}
        theirs = {position_key(held.symbol): held.qty for held in self.positions()}
        sent = {ticket.sent_name for ticket in open_tickets.values() if ticket.is_sent}
        known = {order.client_order_id for order in self.open_orders()}
        covered = {ticket.sent_name for ticket in open_tickets.values() if ticket.is_leg}
        return self._venue.account(self._key).cash == book.books.cash and ours == theirs and sent - covered <= known

    def take_over(self, book: PositionBook, tickets: list[Ticket], now_ns: int) -> list[tuple[Ticket, VenueOrder]]:
        """Begin anew with these books; return the order that stands for each open one.

        Args:
            tickets: open orders, the oldest first.
        """
        last = sorted(self._bars.values(), key=lambda piece: piece.end_ns)
        self._venue = self._build(min((piece.end_ns for piece in last), default=now_ns) - 1)
        self._key = _SEEDED_KEY
        by_end: dict[int, list[Any]] = {}
        for piece in last:
            by_end.setdefault(piece.end_ns, []).extend(piece.bars)
        self._venue.open_account(self._key, cash=max(book.books.cash, _ZERO))
        for end_ns, bars in sorted(by_end.items()):
            self._venue.advance(end_ns, bars)
        self._venue.now_ns = max(self._venue.now_ns, now_ns)
        positions = [
            VenuePosition(symbol=symbol, qty=held.qty, avg_entry_price=held.price)
            for symbol in self._symbols
            if (held := book.books.position(position_key(symbol))).qty
        ]
        self._venue.restore_account(self._key, cash=book.books.cash, positions=positions)
        found: list[tuple[Ticket, VenueOrder]] = []
        for ticket in tickets:
            request = _rest_of(ticket, book)
            if request is None:
                continue
            try:
                order = self._venue.submit(self._key, request)
            except RefusedError:
                continue
            filled = book.books.filled_qty(ticket.venue_name)
            if filled:
                self._offsets[order.id] = ((order.qty or _ZERO) + filled, filled)
            found.append((ticket, order))
        return found

    def _emit(self, _key_id: str, event: TradeEvent) -> None:
        offset = self._offsets.get(event.order.id)
        if offset is not None:
            qty, filled = offset
            event = replace(event, order=replace(event.order, qty=qty, filled_qty=event.order.filled_qty + filled))
        self.events.append(event)

    # What an order worker and a brake ask

    def submit(self, request: OrderRequest) -> VenueOrder:
        try:
            return self._venue.submit(self._key, request)
        except RefusedError as error:
            raise _translate(error) from None

    def order(self, order_id: str) -> VenueOrder | None:
        return self._venue.order(self._key, order_id, nested=True)

    def order_by_client_id(self, client_order_id: str) -> VenueOrder | None:
        found = self._venue.order_by_client_id(self._key, client_order_id)
        return None if found is None else self.order(found.id)

    def replace(self, order_id: str, change: Replacement) -> VenueOrder:
        try:
            return self._venue.replace(self._key, order_id, change)
        except RefusedError as error:
            raise _translate(error) from None

    def cancel(self, order_id: str) -> None:
        try:
            self._venue.cancel(self._key, order_id)
        except RefusedError as error:
            raise _translate(error) from None

    def positions(self) -> list[VenuePosition]:
        return self._venue.positions(self._key)

    def open_orders(self) -> list[VenueOrder]:
        return [order for order in self._venue.orders(self._key) if order.status not in _ENDED]

    def account(self) -> AccountSnapshot:
        return self._venue.account(self._key)

    def report_slice(self, number: int, *, consumer: str, orders: int) -> None:
        """The market does not wait in a replay."""

    def close(self) -> None:
        """Nothing is open."""


_ENDED = frozenset({"filled", "canceled", "expired", "rejected", "replaced"})


def _translate(error: RefusedError) -> OrderRejectedError:
    kind = InsufficientFundsError if error.code == CODE_FUNDS else OrderRejectedError
    return kind(str(error), code=error.code, http_status=error.http_status)


def _rest_of(ticket: Ticket, book: PositionBook) -> OrderRequest | None:
    """Return what is left of an open order as a request; None when another order of its group stands for it."""
    request = ticket.request
    if request is None:
        return None
    members = [member for member in ticket.members if member.phase.is_open]
    if len(members) > 1 and ticket is not members[0]:
        return None
    if len(members) > 1 and request.order_class is OrderClass.SIMPLE:
        # Two exits whose entry is filled, or that were a pair from the start.
        return _pair_up(ticket, members)
    filled = book.books.filled_qty(ticket.venue_name)
    qty = request.qty
    return replace(
        request,
        client_order_id=ticket.venue_name or ticket.client_order_id,
        qty=None if qty is None else max(qty - filled, _ZERO),
    )


def _pair_up(ticket: Ticket, members: list[Ticket]) -> OrderRequest:
    requests = [member.request for member in members if member.request is not None]
    limit = next((each for each in requests if each.stop_price is None), requests[0])
    stop = next((each for each in requests if each.stop_price is not None), requests[-1])
    assert stop.stop_price is not None
    return replace(
        limit,
        client_order_id=ticket.venue_name or ticket.client_order_id,
        order_class=OrderClass.OCO,
        limit_price=None,
        take_profit=limit.limit_price,
        stop_loss=StopLoss(stop.stop_price, stop.limit_price),
    )


class _WhatIf:
    """Leads a run from its record to the simulated exchange."""

    def __init__(self, reader: FlightReader, until_ns: int | None) -> None:
        self.divergence: Divergence | None = None
        self.handover = ""
        self.fills_from_record = 0
        self.recorded_value: float | None = None
        self._outcomes: list[Outcome] = []
        self.flight = ReplayFlight(
            reader.turns(), until_ns=until_ns, on_divergence=self._note_divergence, decisions_only=True
        )
        self.flight.on_slice = self._move
        self.flight.on_turn_end = self._end_turn
        symbols = tuple(reader.facts.settings.get("symbols", ()))
        self.venue = SlicedVenue(symbols)
        self.run: ReplayRun | None = None

    def _note_divergence(self, divergence: Divergence) -> None:
        self.divergence = self.divergence or divergence

    def take_outcome(self, outcome: Outcome) -> None:
        """Take what came of a request to the simulated exchange."""
        self._outcomes.append(outcome)

    def _move(self, piece: Slice) -> None:
        self.venue.advance(piece)
        if self.flight.is_free:
            self._deliver()
        else:
            self.venue.take_events()

    def _deliver(self) -> None:
        assert self.run is not None
        inbox = self.run.broker.link.inbox
        outcomes, self._outcomes = self._outcomes, []
        inbox.extend(outcomes)
        inbox.extend(self.venue.take_events())

    def _end_turn(self, turn: Turn) -> None:
        run = self.run
        assert run is not None
        self.recorded_value = turn.record.value if turn.record.value is not None else self.recorded_value
        gateway = run.broker.link.gateway
        if gateway is None:
            return
        if not self.flight.is_free:
            self.venue.open_account(Decimal(repr(run.broker.startingcash)))
            gateway.work_off()
            self._outcomes.clear()
            self.venue.take_events()
            return
        if not self.handover:
            self._hand_over(run)
        gateway.work_off()
        risk = run.broker.risk
        if risk is not None and not risk.brake.is_settled:
            risk.brake.work(self.venue)
        self._deliver()

    def _hand_over(self, run: ReplayRun) -> None:
        book, desk, gateway = run.broker.book, run.broker.desk, run.broker.link.gateway
        assert gateway is not None
        asked = {decision.client_order_id for decision in self.flight.decisions}
        before = {name: ticket for name, ticket in desk.open.items() if ticket.sent_name not in asked}
        self.fills_from_record = len(run.broker.results()[1])
        if self.venue.agrees_with(book, before):
            self.handover = (
                "the simulated exchange followed the record from its start and has the same cash, positions and orders"
            )
            for ticket in before.values():
                known = None if ticket.venue_id else self.venue.order_by_client_id(ticket.sent_name)
                if known is not None:  # the answer to its submit has not been taken yet
                    self._bind(run, ticket, known)
            return
        tickets = sorted(before.values(), key=lambda ticket: ticket.number)
        for ticket, order in self.venue.take_over(book, tickets, self.flight.time_ns):
            gateway.assign(ticket.sent_name, order.id)
            self._bind(run, ticket, order)
        self.venue.take_events()
        self.handover = "the simulated exchange took over cash, positions and open orders as they were"

    def _bind(self, run: ReplayRun, ticket: Ticket, order: VenueOrder) -> None:
        """Let an order of the simulated exchange, and its legs, stand for ours."""
        gateway = run.broker.link.gateway
        run.broker.desk.bind(ticket, order)
        for member in ticket.members:
            for leg in order.legs:
                if member is not ticket and member.request is not None and leg.type is member.request.type:
                    run.broker.desk.bind(member, leg)
                    gateway.assign(member.client_order_id, leg.id)


def ask_what_if(reader: FlightReader, agent: Agent, *, until_ns: int | None = None) -> WhatIfResult:
    """Run another strategy, or other parameters, through a session.

    Raises:
        ConfigError: the session cannot be run again.
        StrategyError: the strategy raised.
    """
    what_if = _WhatIf(reader, until_ns)
    flight = what_if.flight
    if flight.is_over:
        raise ConfigError(f"{reader.folder.name}: the start of this session was not finished: there is nothing to ask")
    with tempfile.TemporaryDirectory(prefix="dry-work-replay-") as folder:
        run = what_if.run = ReplayRun(
            reader.facts, agent, flight, Path(folder), venue=what_if.venue, on_outcome=what_if.take_outcome
        )
        try:
            run.run()
            flight.drain()
            orders, fills = run.broker.results()
            end_value = run.broker.getvalue()
            start_value = run.broker.startingvalue
        finally:
            run.close()
    finish = reader.finish
    return WhatIfResult(
        session=reader.folder.name,
        agent=agent.spec,
        divergence=what_if.divergence,
        decisions=flight.decisions_compared,
        handover=what_if.handover,
        orders=tuple(orders),
        fills=tuple(fills),
        fills_from_record=what_if.fills_from_record if what_if.divergence is not None else len(fills),
        start_value=start_value,
        end_value=end_value,
        recorded=finish,
        recorded_end_value=finish.end_value if finish is not None else what_if.recorded_value,
        equity=tuple(run.equity),
        problem="" if until_ns is not None and flight.is_cut else reader.problem,
        slices=flight.slices,
    )
