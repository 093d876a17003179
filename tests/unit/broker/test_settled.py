"""Orders that the books let go of: every answer is as if they had stayed, and memory does not grow by them."""

from __future__ import annotations

import random
import sqlite3
from decimal import Decimal

import pytest
from msgspec.structs import replace

from dry_work.broker.settled import SettledOrders
from dry_work.orders.books import Books, Fill, SettledOrder
from dry_work.orders.model import OrderStatus, OrderType, Side, TimeInForce, VenueOrder

D = Decimal


def make_fill(order: int, number: int, rng: random.Random) -> Fill:
    return Fill(
        execution_id=f"x{order}-{number}",
        client_order_id=f"o{order}",
        symbol="AAPL",
        side=Side.BUY if order % 2 else Side.SELL,
        qty=D(rng.randint(1, 9)) / 7,
        price=D(rng.randint(100, 999)) / 9,
        ts_event_ns=number,
    )


def as_order(fills: list[Fill]) -> VenueOrder:
    qty = sum((fill.qty for fill in fills), D(0))
    return VenueOrder(
        id="v", client_order_id=fills[0].client_order_id, symbol="AAPL", side=fills[0].side, type=OrderType.MARKET,
        time_in_force=TimeInForce.DAY, status=OrderStatus.FILLED, qty=qty, filled_qty=qty,
        filled_avg_price=sum((fill.qty * fill.price for fill in fills), D(0)) / qty,
        created_ns=0, updated_ns=0, submitted_ns=0,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_books_that_let_go_say_what_books_say_that_keep_all(seed: int) -> None:
    rng = random.Random(seed)
    whole, lean = Books(cash=D(1000)), Books(cash=D(1000), archive=SettledOrders())
    fills: dict[int, list[Fill]] = {}
    for order in range(30):
        fills[order] = [make_fill(order, number, rng) for number in range(rng.randint(1, 4))]
        for fill in fills[order]:
            assert whole.apply(fill) == lean.apply(fill)
        if rng.random() < 0.5:
            lean.let_go([f"o{known}" for known in range(order) if rng.random() < 0.5])
        again = rng.choice(fills[rng.randint(0, order)])
        assert whole.is_applied(again)
        assert lean.is_applied(again)
        assert whole.apply(again) is None
        assert lean.apply(again) is None
        name, id_ = again.client_order_id, again.execution_id
        assert whole.filled_qty(name) == lean.filled_qty(name)
        assert whole.find_execution(name, id_) == lean.find_execution(name, id_)
        told = as_order(fills[rng.randint(0, order)])
        assert whole.missing_fill(told, 1) == lean.missing_fill(told, 1)
        if rng.random() < 0.3 and len(fills[int(name[1:])]) > 1:
            back = replace(again, execution_id=f"{id_}-back", qty=-again.qty, previous_execution_id=id_)
            fills[int(name[1:])].remove(again)
            assert whole.apply(back) == lean.apply(back)
            assert whole.surplus_fill(told, 2) == lean.surplus_fill(told, 2)
            whole.ignore(id_)
            lean.ignore(id_)
        assert (whole.cash, whole.position("AAPL")) == (lean.cash, lean.position("AAPL"))
    assert whole.duplicates == lean.duplicates


def test_orders_leave_memory_whether_they_were_executed_or_not() -> None:
    books = Books(archive=SettledOrders())
    rng = random.Random(1)
    for order in range(100):
        books.apply(make_fill(order, 0, rng))
        books.let_go([f"o{order}", f"canceled{order}"])
    assert not books._executions
    assert not books._seen
    assert books.is_let_go("canceled7")
    assert books.is_let_go("o7")
    assert not books.is_let_go("o100")
    assert books.filled_qty("canceled7") == 0


def test_an_execution_is_known_under_another_name_of_its_order_too() -> None:
    books = Books(archive=SettledOrders())
    fill = make_fill(1, 0, random.Random(1))
    books.apply(fill)
    books.let_go(["o1"])
    assert books.apply(replace(fill, client_order_id="renamed")) is None
    assert books.position("AAPL").qty == fill.qty


def test_orders_stay_in_memory_while_the_disk_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = SettledOrders()
    books = Books(archive=archive)
    fills = [make_fill(order, 0, random.Random(order)) for order in range(3)]
    for fill in fills:
        books.apply(fill)
    books.let_go(["o0"])
    db = archive._open()
    db.execute("PRAGMA max_page_count = 1")  # a full disk
    assert not archive.put([SettledOrder(f"big{number}", b"x" * 50_000, ()) for number in range(3)])
    assert archive.find("big0") is None
    assert books.filled_qty("o0") == fills[0].qty
    monkeypatch.setattr(archive, "put", lambda orders: False)
    books.let_go(["o1", "o2"])
    assert set(books._executions) == {"o1", "o2"}
    assert all(books.is_applied(fill) for fill in fills)


def test_an_archive_that_cannot_be_made_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr("dry_work.broker.settled.sqlite3.connect", refuse)
    archive = SettledOrders()
    assert not archive.put([SettledOrder("a", b"", ("x",))])
    assert archive.find("a") is None
    assert not archive.has_execution("x")
