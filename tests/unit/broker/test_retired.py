"""Orders that ended long ago leave memory; results, books and the venue's later words about them stay right."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from dry_work.broker.journal import Journal
from dry_work.broker.retired import FillRows, RowFile

from .conftest import build_broker
from .scripted_venue import ScriptedVenue
from .stepping import buy, run, seen, settle

KEPT = 3


@pytest.fixture(autouse=True)
def few_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dry_work.broker.retired.KEPT_ORDERS", KEPT)
    monkeypatch.setattr("dry_work.broker.retired._AT_A_TIME", 2)


@pytest.fixture
def broker(venue: ScriptedVenue, journal: Journal) -> Iterator[Any]:
    broker = build_broker(venue, journal, risk=None)
    yield broker
    broker.stop()


def test_old_orders_leave_memory_and_stay_in_the_results(venue: ScriptedVenue, broker: Any) -> None:
    count, sizes, again = 12, [], []
    filled: list[Any] = []

    def fill(number: int) -> None:
        request = venue.wait_submit(number)
        settle(broker)
        event = venue.build_event("fill", request, qty="1", price="10")
        filled.append(event)
        seen(venue, broker, event)
        sizes.append(len(broker._desk.tickets))

    def repeat() -> None:
        # The venue tells of the oldest order again, under another event id.
        seen(venue, broker, replace(filled[0], event_id="E99999999"))

    def look(strategy: Any) -> None:
        again.extend([broker.position_of("AAPL"), broker.getcash(), broker.counters["fills of other orders"]])
        assert broker.orderstatus(strategy.orders[0]) == strategy.orders[0].status
        assert broker.cancel(strategy.orders[0]) is False

    actions: dict[int, Any] = {number: buy(size=1) for number in range(1, count + 1)}
    scripts: dict[int, Any] = {number + 1: lambda number=number: fill(number) for number in range(1, count + 1)}
    actions[count + 3] = look
    scripts[count + 3] = repeat
    strategy = run(broker, actions, scripts, bars=count + 4)

    assert max(sizes) <= KEPT + 2 + 2
    assert len(broker._desk.tickets) < KEPT + 2
    for known in (broker._desk._names, broker._desk._ids, broker._desk._by_ref, broker._link.gateway._names._ids):
        assert len(known) < KEPT + 2
    assert broker.order_count == count
    orders, fills = broker.results()
    assert [order["client_order_id"] for order in orders] == [f"dw-tester-s-{n}" for n in range(1, count + 1)]
    assert {order["status"] for order in orders} == {"filled"}
    assert [(row["client_order_id"], row["qty"], row["price"]) for row in fills] == [
        (order["client_order_id"], 1.0, 10.0) for order in orders
    ]
    assert again[0] == count
    assert again[1] == 100_000 - 10 * count
    assert len(strategy.trades) == 1


def test_an_open_order_is_never_let_go_of_however_old(venue: ScriptedVenue, broker: Any) -> None:
    def fill(number: int) -> None:
        request = venue.wait_submit(number)
        settle(broker)
        seen(venue, broker, venue.build_event("fill", request, qty="1", price="10"))

    actions: dict[int, Any] = {number: buy(size=1) for number in range(1, 11)}
    scripts: dict[int, Any] = {number + 1: lambda number=number: fill(number) for number in range(2, 11)}
    run(broker, actions, scripts, bars=12)
    assert "dw-tester-s-1" in broker._desk.open
    assert "dw-tester-s-1" in broker._desk.tickets
    orders, _ = broker.results()
    assert [order["client_order_id"] for order in orders] == [f"dw-tester-s-{n}" for n in range(1, 11)]


def test_a_bust_of_an_order_that_was_let_go_of_is_undone_in_the_books(venue: ScriptedVenue, broker: Any) -> None:
    found: list[Any] = []
    filled: list[Any] = []

    def fill(number: int) -> None:
        request = venue.wait_submit(number)
        settle(broker)
        filled.append(venue.build_event("fill", request, qty="1", price="10"))
        seen(venue, broker, filled[-1])

    def bust() -> None:
        assert filled[0].order.client_order_id not in broker._desk.tickets
        order = venue.update(filled[0].order.client_order_id, filled_qty=filled[0].qty * 0, filled_avg_price=None)
        event = venue.build_event("trade_bust", order, status=order.status, execution_id="bust-1")
        seen(
            venue,
            broker,
            replace(event, qty=-filled[0].qty, price=filled[0].price, previous_execution_id=filled[0].execution_id),
        )

    actions: dict[int, Any] = {number: buy(size=1) for number in range(1, 11)}
    actions[13] = lambda _: found.extend([broker.position_of("AAPL"), broker.getcash()])
    scripts: dict[int, Any] = {number + 1: lambda number=number: fill(number) for number in range(1, 11)}
    scripts[13] = bust
    run(broker, actions, scripts, bars=14)
    assert found == [9, 100_000 - 90]
    assert len(broker.results()[1]) == 9


def test_rows_of_fills_come_back_in_order_and_without_those_taken_back() -> None:
    rows = FillRows()
    for number in range(50):
        rows.add(f"x{number}", {"price": number / 7})
    assert len(rows._rows) <= KEPT + 2
    for name in ("x3", "x49", "unknown"):
        rows.take_back(name)
    assert rows.rows() == [{"price": number / 7} for number in range(50) if number not in (3, 49)]


def test_rows_stay_in_memory_while_the_disk_takes_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    rows = FillRows()
    for number in range(20):
        rows.add(f"x{number}", {"price": float(number)})
    assert len(rows._rows) == 20
    (tmp_path / "missing").mkdir()
    rows.add("x20", {"price": 20.0})
    assert len(rows._rows) == 19
    assert rows.rows() == [{"price": float(number)} for number in range(21)]
    assert not list((tmp_path / "missing").iterdir())
    assert list(RowFile().rows()) == []
