"""Pruning the orders journal: whatever has happened, books and reconciliation are those of the journal that has all."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dry_work.broker.books_reader import read_books
from dry_work.broker.journal import Journal
from dry_work.broker.journal_books import MarkCause, PositionMark, SymbolHalt
from dry_work.broker.own_books import build_orders, expect_positions, sum_positions, sum_totals
from dry_work.broker.past_orders import list_past_orders
from dry_work.broker.placed import place_from_request
from dry_work.broker.pruning import plan_pruning
from dry_work.broker.status import Mark, VenueSnapshot, compare
from dry_work.broker.told import SavedSubmit, ToldOrder, ToldRecord
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
)

from .pruning_history import AGENT, FINAL_NS, SESSION, SYMBOLS, History, check_equal, name_of, trade

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
