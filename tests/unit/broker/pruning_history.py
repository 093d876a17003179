"""Two journals with the same history, of which one is pruned, and what has to be the same in both."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

from dry_work.broker.books_reader import JournalBooks, read_books
from dry_work.broker.journal import Intent, Journal
from dry_work.broker.journal_books import MarkCause, PositionMark
from dry_work.broker.own_books import build_orders, expect_positions, sum_positions, sum_totals
from dry_work.broker.past_orders import list_past_orders
from dry_work.broker.pruning import plan_pruning
from dry_work.broker.status import VenueSnapshot, compare
from dry_work.broker.told import ToldRecord
from dry_work.orders.books import Fill, position_key
from dry_work.orders.model import (
    AccountSnapshot,
    OrderRequest,
    OrderStatus,
    OrderType,
    Side,
    TimeInForce,
    VenueOrder,
    VenuePosition,
)

AGENT, SESSION = "a", "s"
SYMBOLS = ("AAPL", "BTC/USD")
FINAL_NS = 10**18


def name_of(number: int) -> str:
    return f"dw-{AGENT}-{SESSION}-{number}"


class History:
    """Writes the same history into two journals, of which one is pruned now and then."""

    def __init__(self, folder: Path) -> None:
        self.whole, self.pruned = Journal(folder / "whole.sqlite"), Journal(folder / "pruned.sqlite")
        for journal in self.journals:
            journal._db.execute("PRAGMA synchronous = OFF")  # what survives a power cut is not looked at here
            journal.mint_session(AGENT, session=SESSION)
        self.number = self.executions = self.now = 0
        self.sizes: dict[int, tuple[str, Side, Decimal]] = {}
        self.filled: dict[int, Decimal] = {}
        self.told: list[tuple[Fill, str]] = []
        self.record: ToldRecord | None = None

    @property
    def journals(self) -> tuple[Journal, Journal]:
        return self.whole, self.pruned

    def close(self) -> None:
        for journal in self.journals:
            journal.close()

    def place(self, symbol: str, side: Side, qty: int, role: str = "", of: int = 0) -> int:
        self.number += 1
        self.now += 1
        request = OrderRequest(
            client_order_id=name_of(self.number), symbol=symbol, side=side, type=OrderType.LIMIT,
            time_in_force=TimeInForce.GTC, qty=Decimal(qty), limit_price=Decimal(10),
        )  # fmt: skip
        parent = name_of(of) if role else ""
        for journal in self.journals:
            intent = Intent(request=request, number=self.number, parent=parent, role=role)
            journal.record_intents([intent], agent=AGENT, session=SESSION, at_ns=self.now)
        self.sizes[self.number] = (symbol, side, Decimal(qty))
        self.filled[self.number] = Decimal(0)
        return self.number

    def answer(self, number: int, outcome: str, action: str = "submit") -> None:
        self.now += 1
        for journal in self.journals:
            journal.record_outcome(
                name_of(number), action=action, outcome=outcome, order_id=f"id-{number}", at_ns=self.now
            )

    def fill(self, number: int, qty: Decimal, price: int, *, venue_name: str = "") -> None:
        symbol, side, total = self.sizes[number]
        qty = min(qty, total - self.filled[number])
        if qty <= 0:
            return
        self.filled[number] += qty
        self.tell(Fill(
            execution_id=self._next_id(), client_order_id=name_of(number), symbol=symbol, side=side, qty=qty,
            price=Decimal(price), ts_event_ns=self.now,
        ), number, venue_name)  # fmt: skip

    def bust(self, fill: Fill, venue_name: str) -> None:
        number = int(fill.client_order_id.rpartition("-")[2])
        self.filled[number] -= fill.qty
        self.tell(Fill(
            execution_id=self._next_id(), client_order_id=fill.client_order_id, symbol=fill.symbol, side=fill.side,
            qty=-fill.qty, price=fill.price, ts_event_ns=self.now, previous_execution_id=fill.execution_id,
        ), number, venue_name)  # fmt: skip

    def tell(self, fill: Fill, number: int, venue_name: str) -> None:
        names = {fill.execution_id: venue_name} if venue_name else None
        ends = [(name_of(number), "filled")] if self.filled[number] == self.sizes[number][2] else []
        for journal in self.journals:
            journal.record_progress([fill], ends, at_ns=self.now, order_names=names)
        if fill.qty > 0:
            self.told.append((fill, venue_name))

    def mark(self, symbol: str, change: int, cause: MarkCause) -> None:
        self.now += 1
        for journal in self.journals:
            held = expect_positions(read_books(journal.path)).get(position_key(symbol))
            qty = (held.qty if held is not None else Decimal(0)) + change
            journal.books.mark_positions([
                PositionMark(symbol=position_key(symbol), qty=qty, price=Decimal(7), cause=cause, at_ns=self.now)
            ])  # fmt: skip

    def prune(self, before_ns: int, at_a_time: int) -> int:
        plan = plan_pruning(read_books(self.pruned.path), before_ns=before_ns, record=self.record, at_a_time=at_a_time)
        assert all(self.pruned.pruning.prune(batch) for batch in plan.batches)
        self.pruned.pruning.drop_marks(plan)
        return plan.order_count

    def _next_id(self) -> str:
        self.executions += 1
        self.now += 1
        return f"x-{self.executions}"


def check_equal(history: History) -> None:
    whole, pruned = read_books(history.whole.path), read_books(history.pruned.path)
    assert expect_positions(pruned) == expect_positions(whole)
    assert sum_positions(pruned) == sum_positions(whole)
    assert sum_totals(pruned) == sum_totals(whole)
    for record in (None, history.record):
        assert list_past_orders(pruned, record, agent=AGENT) == list_past_orders(whole, record, agent=AGENT)
    # Nothing that is open, and nothing whose outcome is not known, has left.
    there = {order.client_order_id for order in pruned.orders}
    assert {name for own in build_orders(whole) if own.is_open for name in own.names} <= there
    assert there | pruned.pruned.keys() >= {order.client_order_id for order in whole.orders}
    assert not there & pruned.pruned.keys()
    for journal in history.journals:
        assert journal.mint_session(AGENT).last_number == history.number
    compare_status(history, whole, pruned)


def compare_status(history: History, whole: JournalBooks, pruned: JournalBooks) -> None:
    """Compare what `dry-work status` says, at a venue that has half an execution more than the journals."""
    numbers = {name_of(number): number for number in history.sizes}
    orders = []
    totals = sum_totals(whole)
    for name, total in totals.items():
        number = numbers.get(name) or int(name.rpartition("-")[2])
        if name == name_of(number) and f"venue-{number}" in totals:
            continue  # the venue gives legs names of its own
        symbol, side, qty = history.sizes[number]
        orders.append(
            VenueOrder(
                id=f"id-{number}", client_order_id=name, symbol=symbol, side=side, type=OrderType.LIMIT, qty=qty,
                time_in_force=TimeInForce.GTC, status=OrderStatus.FILLED, created_ns=number,
                filled_qty=total + (number == 1),
            )
        )  # fmt: skip
    positions = tuple(
        VenuePosition(symbol=symbol.replace("/", ""), qty=Decimal(3), avg_entry_price=Decimal(9)) for symbol in SYMBOLS
    )
    account = AccountSnapshot(id="1", account_number="1", cash=Decimal(1), equity=Decimal(1), buying_power=Decimal(1))
    for asked in (None, VenueSnapshot(account=account, positions=positions, history=tuple(orders))):
        rows = [
            [
                (
                    row.symbol,
                    row.ours,
                    row.venue,
                    row.mark,
                    sorted(re.sub(r"s-\d+", "ORDER", why) for why in row.reasons),
                )
                for row in compare(books, build_orders(books), asked).positions
            ]
            for books in (whole, pruned)
        ]
        assert sorted(rows[0], key=str) == sorted(rows[1], key=str)


def trade(history: History, symbol: str = "AAPL", side: Side = Side.BUY, qty: int = 2) -> int:
    number = history.place(symbol, side, qty)
    history.answer(number, "accepted")
    history.fill(number, Decimal(qty), 10)
    return number
