"""Pruning the orders journal: whatever has happened, books and reconciliation are those of the journal that has all."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dry_work.broker.books_reader import JournalBooks, read_books
from dry_work.broker.journal import Intent, Journal
from dry_work.broker.journal_books import MarkCause, PositionMark, SymbolHalt
from dry_work.broker.journal_pruning import DAY_NS, JournalPruner
from dry_work.broker.own_books import build_orders, expect_positions, sum_positions, sum_totals
from dry_work.broker.past_orders import list_past_orders
from dry_work.broker.placed import place_from_request
from dry_work.broker.pruning import plan_pruning
from dry_work.broker.status import Mark, VenueSnapshot, compare
from dry_work.broker.told import SavedSubmit, ToldOrder, ToldRecord
from dry_work.clock import SystemClock
from dry_work.orders.books import Fill, position_key
from dry_work.orders.lifecycle import Phase
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

from .restarting import Agent
from .scripted_venue import ScriptedVenue, wait_until
from .stepping import buy, seen, settle

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


steps = st.lists(
    st.tuples(
        st.sampled_from(["trade", "open", "partly", "refuse", "lost", "bracket", "replace", "close", "mark", "bust",
                         "late", "prune", "told", "halt"]),
        st.sampled_from(SYMBOLS),
        st.sampled_from([Side.BUY, Side.SELL]),
        st.integers(1, 4),
    ),
    min_size=4,
    max_size=25,
)  # fmt: skip


def take(history: History, step: tuple[str, str, Side, int]) -> int:
    what, symbol, side, size = step
    held = sum_positions(read_books(history.whole.path)).get(symbol)
    if what == "prune":
        count = history.prune(history.now - 3 * size, size)
        check_equal(history)
        return count
    if what == "mark":
        history.mark(
            symbol, size - 2, [MarkCause.START, MarkCause.MANUAL, MarkCause.FEES, MarkCause.UNEXPLAINED][size - 1]
        )
    elif what == "bust" and history.told:
        history.bust(*history.told.pop(-size % len(history.told)))
    elif what == "late" and history.number:
        history.answer(max(1, history.number - 5 * size), "refused", "cancel")
    elif what == "told":
        history.record = ToldRecord(
            numbers={SESSION: max(0, history.number - size)},
            orders={name_of(history.number - size): ToldOrder(phase=Phase.ACCEPTED)} if history.number > size else {},
        )
    elif what == "halt":
        for journal in history.journals:
            journal.books.halt(SymbolHalt(symbol=position_key(symbol), cause=name_of(size), reason="?", at_ns=1))
    elif what == "close" and held is not None and held.qty:
        number = history.place(symbol, Side.SELL if held.qty > 0 else Side.BUY, abs(int(held.qty)) or 1)
        history.answer(number, "accepted")
        history.fill(number, abs(held.qty), 10 + size)
    elif what == "lost":
        history.answer(history.place(symbol, side, size), "unknown")
    elif what == "refuse":
        history.answer(history.place(symbol, side, size), "refused")
    elif what in ("open", "partly", "trade", "bracket", "replace"):
        number = history.place(symbol, side, size)
        history.answer(number, "accepted")
        if what == "bracket":
            other = Side.SELL if side is Side.BUY else Side.BUY
            legs = [history.place(symbol, other, size, role, number) for role in ("take_profit", "stop_loss")]
            for leg in legs:
                history.answer(leg, "accepted")
            history.fill(number, Decimal(size), 10)
            history.fill(legs[0], Decimal(size), 12, venue_name=f"venue-{legs[0]}")
        elif what == "replace":
            after = history.place(symbol, side, size, "replacement", number)
            history.answer(after, "accepted", "replace")
            history.fill(number, Decimal(size), 11, venue_name=name_of(after))
        elif what != "open":
            history.fill(number, Decimal(1), 10)
            if what == "trade":
                history.fill(number, Decimal(size), 11)
    return 0


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps)
def test_a_pruned_journal_has_the_books_and_the_reconciliation_of_the_whole_one(taken: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder))
        try:
            for step in taken:
                take(history, step)
            history.prune(history.now, 2)
            check_equal(history)
            history.fill(history.place("AAPL", Side.BUY, 2), Decimal(2), 13)
            check_equal(history)
        finally:
            history.close()


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    history = History(tmp_path)
    yield history
    history.close()


def trade(history: History, symbol: str = "AAPL", side: Side = Side.BUY, qty: int = 2) -> int:
    number = history.place(symbol, side, qty)
    history.answer(number, "accepted")
    history.fill(number, Decimal(qty), 10)
    return number


def there(history: History) -> list[int]:
    return [order.number for order in read_books(history.pruned.path).orders]


def test_what_is_held_open_or_not_known_stays_and_all_else_leaves(history: History) -> None:
    trade(history), trade(history, side=Side.SELL)
    opened = [history.place("AAPL", Side.BUY, 1)]
    history.answer(opened[0], "accepted")
    unknown = [history.place("AAPL", Side.BUY, 1)]
    history.answer(unknown[0], "unknown")
    refused = history.place("AAPL", Side.BUY, 1)
    history.answer(refused, "refused")
    held = [trade(history), trade(history)]
    halted = [trade(history, "BTC/USD"), trade(history, "BTC/USD", Side.SELL)]
    for journal in history.journals:
        journal.books.halt(SymbolHalt(symbol="BTCUSD", cause=name_of(halted[0]), reason="?", at_ns=1))
    assert history.prune(FINAL_NS, 1) == 3
    assert there(history) == [*opened, *unknown, *held, *halted]
    check_equal(history)


def test_what_ended_lately_stays(history: History) -> None:
    trade(history), trade(history, side=Side.SELL)
    between = history.now
    trade(history), trade(history, side=Side.SELL)
    assert history.prune(between + 1, 10) == 2
    assert there(history) == [3, 4]
    assert history.prune(between + 1, 10) == 0


def test_an_order_that_turns_a_position_round_stays_and_what_it_closed_leaves(history: History) -> None:
    trade(history, qty=2), trade(history, side=Side.SELL, qty=5)
    assert history.prune(FINAL_NS, 10) == 1
    assert there(history) == [2]
    check_equal(history)
    assert sum_positions(read_books(history.pruned.path))["AAPL"].qty == -3


def test_fees_in_coins_keep_no_order_for_ever(history: History) -> None:
    number = history.place("BTC/USD", Side.BUY, 1)
    history.answer(number, "accepted")
    history.fill(number, Decimal(1), 10)
    for journal in history.journals:
        journal.books.mark_positions([
            PositionMark(symbol="BTCUSD", qty=Decimal("0.9975"), price=Decimal(10), cause=MarkCause.FEES)
        ])  # fmt: skip
    number = history.place("BTC/USD", Side.SELL, 1)
    history.answer(number, "accepted")
    history.fill(number, Decimal("0.9975"), 10)
    history.answer(number, "canceled", "end")
    assert history.prune(FINAL_NS, 10) == 2
    check_equal(history)
    assert sum_positions(read_books(history.pruned.path))["BTC/USD"].qty == Decimal("0.0025")
    assert expect_positions(read_books(history.pruned.path))["BTCUSD"].qty == 0


def test_an_order_of_which_the_strategy_has_not_heard_all_stays(history: History) -> None:
    trade(history), trade(history, side=Side.SELL)
    history.record = ToldRecord(numbers={SESSION: 1})
    assert history.prune(FINAL_NS, 10) == 1
    assert there(history) == [2]
    history.record = ToldRecord(numbers={SESSION: 2}, orders={name_of(2): ToldOrder(phase=Phase.ACCEPTED)})
    assert history.prune(FINAL_NS, 10) == 0
    history.record = ToldRecord(numbers={SESSION: 2})
    assert history.prune(FINAL_NS, 10) == 1
    check_equal(history)


def test_names_and_executions_of_pruned_orders_are_never_used_again(history: History) -> None:
    first, last = trade(history), trade(history, side=Side.SELL)
    executions = history.pruned.executions()
    assert history.prune(FINAL_NS, 10) == 2
    journal = history.pruned
    assert (journal.intents(), journal.executions()) == ([], [])
    assert journal.mint_session(AGENT).last_number == last
    request = OrderRequest(
        client_order_id=name_of(first), symbol="AAPL", side=Side.BUY, type=OrderType.MARKET,
        time_in_force=TimeInForce.DAY, qty=Decimal(1),
    )  # fmt: skip
    with pytest.raises(sqlite3.IntegrityError, match="ended and was pruned"):
        journal.record_intent(request, agent=AGENT, session=SESSION, number=first, at_ns=1)
    again = Fill(
        execution_id=executions[0], client_order_id=name_of(first), symbol="AAPL", side=Side.BUY, qty=Decimal(2),
        price=Decimal(10), ts_event_ns=5,
    )  # fmt: skip
    journal.record_progress([again], [(name_of(first), "filled")], order_names={again.execution_id: "x"})
    journal.record_outcome(name_of(first), action="cancel", outcome="refused", at_ns=5)
    assert journal.executions() == []
    for table in ("outcomes", "fill_orders", "order_links"):
        assert journal._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] == 0
    check_equal(history)


def test_an_old_record_of_the_strategy_does_not_send_a_pruned_order_again(history: History) -> None:
    trade(history), trade(history, side=Side.SELL)
    history.prune(FINAL_NS, 10)
    request = OrderRequest(
        client_order_id=name_of(1), symbol="AAPL", side=Side.BUY, type=OrderType.MARKET,
        time_in_force=TimeInForce.DAY, qty=Decimal(2),
    )  # fmt: skip
    saved = SavedSubmit(number=1, placed=place_from_request(request, placed_ns=1), request=request)
    record = ToldRecord(numbers={SESSION: 1}, orders={name_of(1): ToldOrder(submit=saved)})
    assert list_past_orders(read_books(history.pruned.path), record, agent=AGENT) == []
    fresh = Journal(history.pruned.path.with_name("fresh.sqlite"))
    assert [past.name for past in list_past_orders(read_books(fresh.path), record, agent=AGENT)] == [name_of(1)]
    fresh.close()


def test_the_status_says_of_an_order_that_is_open_at_the_venue_that_it_was_pruned(history: History) -> None:
    trade(history), trade(history, side=Side.SELL)
    history.prune(FINAL_NS, 10)
    order = VenueOrder(
        id="id-1", client_order_id=name_of(1), symbol="AAPL", side=Side.BUY, type=OrderType.LIMIT, qty=Decimal(2),
        time_in_force=TimeInForce.GTC, status=OrderStatus.NEW,
    )  # fmt: skip
    account = AccountSnapshot(id="1", account_number="1", cash=Decimal(1), equity=Decimal(1), buying_power=Decimal(1))
    books = read_books(history.pruned.path)
    (row,) = compare(books, build_orders(books), VenueSnapshot(account=account, open_orders=(order,))).orders
    assert row.mark is Mark.DIFFERS
    assert row.reasons == ("an order of this agent that has ended by the journal and was pruned",)


def test_a_batch_of_which_something_new_was_written_stays(history: History) -> None:
    trade(history), trade(history, side=Side.SELL)
    plan = plan_pruning(read_books(history.pruned.path), before_ns=FINAL_NS)
    history.answer(1, "refused", "cancel")
    assert not history.pruned.pruning.prune(plan.batches[0])
    plan = plan_pruning(read_books(history.pruned.path), before_ns=FINAL_NS)
    history.bust(*history.told[0])
    assert not history.pruned.pruning.prune(plan.batches[0])
    assert there(history) == [1, 2]
    check_equal(history)


def test_marks_and_lifted_halts_that_nothing_follows_from_leave(history: History) -> None:
    for _ in range(3):
        trade(history), trade(history, side=Side.SELL)
        history.mark("AAPL", 0, MarkCause.MANUAL)
    for journal in history.journals:
        journal.books.halt(SymbolHalt(symbol="AAPL", cause="position", reason="?", at_ns=1))
        journal.books.lift(symbol="AAPL", cause="position", by="restart", at_ns=2)
    history.prune(FINAL_NS, 10)
    assert len(read_books(history.pruned.path).marks) == 1
    assert history.pruned._db.execute("SELECT count(*) FROM symbol_halts").fetchone()[0] == 0
    check_equal(history)


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from dry_work.broker.books_reader import read_books
from dry_work.broker.journal import Journal
from dry_work.broker.pruning import plan_pruning

folder, number = Path(sys.argv[1]), 0
while True:
    number += 1
    path = folder / f"{number}.sqlite"
    shutil.copyfile(folder / "pruned.sqlite", path)
    child = os.fork()
    if not child:
        journal = Journal(path)
        plan = plan_pruning(read_books(path), before_ns=10**18, at_a_time=3)
        left = number

        def count(_statement):
            global left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

        journal._db.execute("PRAGMA synchronous = OFF")
        journal._db.set_trace_callback(count)
        for batch in plan.batches:
            journal.pruning.prune(batch)
        journal.pruning.drop_marks(plan)
        while journal.pruning.shrink():
            pass
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        print(number, os.WEXITSTATUS(status), flush=True)
        break
"""


def test_a_kill_at_any_moment_leaves_a_right_journal(history: History, tmp_path: Path) -> None:
    trade(history), trade(history, side=Side.SELL, qty=3)
    history.mark("AAPL", 1, MarkCause.MANUAL)
    take(history, ("bracket", "AAPL", Side.BUY, 1))
    take(history, ("close", "AAPL", Side.BUY, 1))
    trade(history)
    whole = read_books(history.whole.path)
    history.pruned._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kills, code = map(int, done.stdout.split())
    assert code == 0, done.stderr
    assert kills > 30
    sizes: set[int] = set()
    for number in range(1, kills + 1):
        found = read_books(tmp_path / f"{number}.sqlite")
        sizes.add(len(found.orders))
        assert expect_positions(found) == expect_positions(whole)
        assert sum_positions(found) == sum_positions(whole)
        assert sum_totals(found) == sum_totals(whole)
        assert list_past_orders(found, None, agent=AGENT) == list_past_orders(whole, None, agent=AGENT)
        assert len(found.orders) + len([name for name in found.pruned if name.startswith("dw-")]) == len(whole.orders)
    assert len(sizes) >= 3


def build_pruner(journal: Journal, **changes: Any) -> JournalPruner:
    given: dict[str, Any] = {"days": 1, "time_ns": lambda: 10 * DAY_NS, "read_record": lambda: None, **changes}
    return JournalPruner(journal.path, journal.pruning, **given)


def test_the_file_shrinks_also_one_of_an_earlier_version(history: History, tmp_path: Path) -> None:
    for _ in range(150):
        trade(history), trade(history, side=Side.SELL)
    path = tmp_path / "old.sqlite"
    history.pruned._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copyfile(history.pruned.path, path)
    old = sqlite3.connect(path, isolation_level=None)
    for table in ("pruned_orders", "pruned_executions", "pruned_sessions", "carried_positions"):
        old.execute(f"DROP TABLE {table}")
    old.execute("PRAGMA journal_mode = DELETE")
    old.execute("PRAGMA auto_vacuum = NONE")
    old.execute("VACUUM")
    old.close()
    journal = Journal(path)
    before = path.stat().st_size
    assert journal._db.execute("PRAGMA auto_vacuum").fetchone()[0] == 0
    journal.pruning.prepare()
    assert build_pruner(journal).prune() == 300
    journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert journal._db.execute("PRAGMA freelist_count").fetchone()[0] == 0
    assert path.stat().st_size < before * 0.9
    assert sum_positions(read_books(path)) == sum_positions(read_books(history.whole.path))
    journal.close()


def test_few_old_orders_are_not_worth_it(history: History) -> None:
    trade(history), trade(history, side=Side.SELL)
    assert build_pruner(history.pruned).prune() == 0


def test_the_pruner_works_beside_whoever_writes(history: History) -> None:
    for _ in range(60):
        trade(history), trade(history, side=Side.SELL)
    pruner = build_pruner(history.pruned, first_s=0.0)
    pruner.start()
    wait_until(lambda: pruner.pruned, "orders were pruned", 60)
    while pruner.pruned < 120:
        trade(history), trade(history, side=Side.SELL)
        assert history.number < 5_000
    pruner.stop()
    pruner.stop()
    check_equal(history)


class TestABroker:
    @pytest.fixture(autouse=True)
    def worth_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dry_work.broker.journal_pruning.WORTH", 1)

    def test_what_is_told_again_of_a_pruned_order_changes_nothing(self, venue: ScriptedVenue, tmp_path: Path) -> None:
        agent = Agent(venue, tmp_path)
        events: list[Any] = []

        def fill(number: int) -> None:
            settle(agent.broker)
            events.append(venue.build_event("fill", venue.wait_submit(number), qty="1", price="10"))
            seen(venue, agent.broker, events[-1])

        agent.live(
            {1: buy(size=1), 3: lambda strategy: strategy.sell(size=1)},
            {2: lambda: fill(1), 4: lambda: fill(2)},
            bars=6,
        )
        journal = Journal(agent.journal_path)
        pruner = build_pruner(journal, time_ns=lambda: time.time_ns() + 2 * DAY_NS)
        assert pruner.prune() == 2
        journal.close()

        def again() -> None:
            for number, event in enumerate(events):
                seen(venue, agent.broker, msgspec.structs.replace(event, event_id=f"E9999999{number}"))
            canceled = msgspec.structs.replace(events[0], event="canceled", event_id="E99999999", qty=None, price=None)
            seen(venue, agent.broker, canceled)

        sizes: list[float] = []
        with structlog.testing.capture_logs() as lines:
            strategy = agent.live(
                {1: buy(size=3), 3: lambda _: sizes.append(agent.broker.position_of("AAPL"))}, {2: again}, bars=4
            )
        assert sizes == [0]
        assert agent.broker.counters["fills of other orders"] == 0
        assert "orders of others" not in agent.broker.counters
        assert [order.info.client_order_id.rpartition("-")[2] for order in strategy.orders] == ["3"]
        told = [line for line in lines if line["event"] == "an event of an order that has ended and was pruned"]
        assert {line["client_order_id"] for line in told} == {each.order.client_order_id for each in events}

    def test_a_run_prunes_what_its_strategy_knows(
        self, venue: ScriptedVenue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dry_work.broker.journal_pruning.FIRST_S", 0.0)
        agent = Agent(venue, tmp_path, journal_days=30, clock=LateClock())

        def end(number: int) -> None:
            settle(agent.broker)
            request = venue.wait_submit(number)
            seen(venue, agent.broker, venue.build_event("canceled", request))

        found: list[Any] = []

        def late() -> None:
            pruner = agent.broker._pruner
            assert pruner.prune() == 0  # all is new
            agent.broker.p.clock.days = 31
            wait_until(lambda: not agent.broker.has_untold_changes, "the state is kept")
            settle(agent.broker)
            found.append(pruner.prune())

        agent.live({1: buy(size=1), 2: buy(size=1)}, {3: lambda: end(1), 6: late}, bars=7)
        # The second may still be filled.
        assert found == [1]
        assert [order.number for order in read_books(agent.journal_path).orders] == [2]
        assert "journal pruner" not in {thread.name for thread in threading.enumerate()}


class LateClock(SystemClock):
    """The machine's clock, some days later."""

    days = 0

    def time_ns(self) -> int:
        return super().time_ns() + self.days * DAY_NS
