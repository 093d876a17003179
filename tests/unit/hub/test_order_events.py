"""Order updates: each is told once, and what the stream swallowed is found."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.errors import CodecError
from dry_work.hub.order_events import OrderEvent, OrderLedger, OrderMemory


def make_order(
    order_id: str = "o1", status: str = "new", filled: str = "0", qty: str = "10", **more: Any
) -> dict[str, Any]:
    order = {"id": order_id, "symbol": "SPY", "side": "buy", "qty": qty, "status": status, "filled_qty": filled}
    order |= {"filled_avg_price": None if filled == "0" else "100", "submitted_at": "2024-01-02T14:30:00Z"}
    return order | {"updated_at": "2024-01-02T14:31:00Z", **more}


def make_data(event: str, order: dict[str, Any], event_id: str | None = None, **more: Any) -> dict[str, Any]:
    data = {"event": event, "order": order, "timestamp": "2024-01-02T14:30:30Z", **more}
    return data if event_id is None else {**data, "event_id": event_id}


def make_execution(cum_qty: str, qty: str, order_id: str = "o1") -> dict[str, Any]:
    at = f"2024-01-02T14:30:{int(Decimal(cum_qty)):02d}Z"
    return {"id": f"2024::x{cum_qty}", "order_id": order_id, "cum_qty": cum_qty, "qty": qty, "price": "99.5"} | {
        "transaction_time": at
    }


def names(events: list[OrderEvent]) -> list[str]:
    return [event.data["event"] for event in events]


def test_an_event_that_comes_twice_is_told_once() -> None:
    ledger = OrderLedger()
    data = make_data("new", make_order(), "01A")
    first = ledger.take(data)
    assert first is not None
    assert (first.event_id, first.symbol, first.data) == ("01A", "SPY", data)
    assert ledger.take(data) is None
    assert (ledger.duplicates, ledger.last_id) == (1, "01A")


def test_an_event_without_an_id_gets_one_that_stays() -> None:
    data = make_data("fill", make_order(status="filled", filled="10"), execution_id="e1", price="1", qty="10")
    ids = {event.event_id for ledger in (OrderLedger(), OrderLedger()) if (event := ledger.take(dict(data)))}
    assert len(ids) == 1
    assert next(iter(ids)).startswith("dw-")


@pytest.mark.parametrize("data", [{}, {"event": "new"}, {"event": "new", "order": {}}, {"order": make_order()}])
def test_what_is_no_update_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(CodecError, match="no event, or no order"):
        OrderLedger().take(data)


def test_a_seeded_account_has_missed_nothing() -> None:
    ledger = OrderLedger()
    assert ledger.is_new
    orders = [make_order(), make_order("o2", "filled", "10")]
    ledger.seed(orders)
    assert not ledger.is_new
    assert ledger.compare(orders, []) == []


def test_what_the_stream_swallowed_is_found_by_comparing() -> None:
    ledger = OrderLedger()
    ledger.take(make_data("new", make_order(), "01A"))
    ledger.take(make_data("partial_fill", make_order(status="partially_filled", filled="2"), "01B", qty="2"))
    filled = make_order(status="filled", filled="10", filled_at="2024-01-02T14:30:59Z")
    found = ledger.compare(
        [filled, make_order("o2", "canceled")], [make_execution("5", "3"), make_execution("10", "5")]
    )
    assert [(event.data["event"], event.data["order"]["id"]) for event in found] == [
        ("new", "o2"),
        ("partial_fill", "o1"),
        ("fill", "o1"),
        ("canceled", "o2"),
    ]
    assert [(event.data["qty"], event.data["order"]["filled_qty"]) for event in found[1:3]] == [("3", "5"), ("5", "10")]
    assert [event.data["execution_id"] for event in found[1:3]] == ["x5", "x10"]
    assert ledger.compare([filled], [make_execution("10", "5")]) == []


@pytest.mark.parametrize(
    ("order", "is_behind"),
    [
        (make_order(), False),
        (make_order(status="partially_filled", filled="2"), False),
        (make_order(status="pending_cancel", filled="1"), False),  # an answer that is older than what was told
        (make_order(status="partially_filled", filled="3"), True),
        (make_order(status="canceled", filled="2"), True),
        (make_order(status="filled", filled="10"), True),
        (make_order("o2"), True),
        (make_order("o2", "canceled"), True),
        (make_order("o2", "accepted"), False),
        (make_order("o2", "held"), False),
        (make_order("o3", "canceled"), False),
    ],
)
def test_an_order_that_is_further_than_was_told_shows_that_the_stream_is_behind(
    order: dict[str, Any], is_behind: bool
) -> None:
    ledger = OrderLedger()
    ledger.take(make_data("new", make_order(), "01A"))
    ledger.take(make_data("partial_fill", make_order(status="partially_filled", filled="2"), "01B", qty="2"))
    ledger.take(make_data("canceled", make_order("o3", "canceled"), "01C"))
    told = ledger.told
    assert ledger.is_behind(order) is is_behind
    assert (ledger.told, ledger.open_ids) == (told, {"o1"}), "to look changes nothing"
    if is_behind:
        ledger.compare([order], [])
        assert not ledger.is_behind(order)


def test_an_order_that_the_venue_does_not_know_any_more_is_forgotten() -> None:
    ledger = OrderLedger()
    ledger.take(make_data("new", make_order(), "01A"))
    assert ledger.open_ids == {"o1"}
    ledger.forget("o1")
    ledger.forget("o1")
    assert ledger.open_ids == frozenset()
    assert ledger.compare([], []) == []


def test_the_ids_of_the_venue_are_kept_in_their_order_without_those_made_here() -> None:
    ledger = OrderLedger()
    for number in range(3):
        ledger.take(make_data("new", make_order(f"o{number}"), f"01{number}"))
    ledger.compare([make_order("o9")], [])
    assert ledger.venue_ids == ["010", "011", "012"]
    assert OrderLedger(ledger.memory).venue_ids == ["010", "011", "012"]


def test_fills_whose_executions_are_not_known_are_told_as_one() -> None:
    ledger = OrderLedger()
    ledger.take(make_data("new", make_order(), "01A"))
    found = ledger.compare([make_order(status="canceled", filled="7")], [make_execution("5", "2")])
    assert [(e.data["event"], e.data.get("qty"), e.data["order"]["filled_qty"]) for e in found] == [
        ("partial_fill", "3", "3"),
        ("partial_fill", "2", "5"),
        ("partial_fill", "2", "7"),
        ("canceled", None, "7"),
    ] or names(found) == ["partial_fill", "partial_fill", "partial_fill", "canceled"]
    assert sum(Decimal(event.data["qty"]) for event in found[:-1]) == 7


def test_an_event_of_the_stream_that_was_found_before_it_came_is_not_told_again() -> None:
    ledger = OrderLedger()
    ledger.take(make_data("new", make_order(), "01A"))
    ledger.compare([make_order(status="canceled", filled="7")], [])
    for number, (event, filled) in enumerate((("partial_fill", "3"), ("partial_fill", "7"), ("canceled", "7"))):
        assert ledger.take(make_data(event, make_order(status="canceled", filled=filled), f"01C{number}")) is None


def test_an_order_that_was_accepted_before_and_is_live_now_is_told() -> None:
    ledger = OrderLedger()
    ledger.take(make_data("accepted", make_order(status="accepted"), "01A"))
    assert names(ledger.compare([make_order()], [])) == ["new"]
    assert names(ledger.compare([make_order("o2", "accepted")], [])) == ["accepted"]
    assert names(ledger.compare([make_order("o3", "rejected")], [])) == ["rejected"]


def test_what_is_known_survives_a_restart() -> None:
    ledger = OrderLedger()
    data = make_data("partial_fill", make_order(status="partially_filled", filled="2"), "01B", qty="2")
    ledger.take(data)
    kept = msgspec.json.decode(msgspec.json.encode(ledger.memory), type=OrderMemory)
    again = OrderLedger(kept)
    assert (again.last_id, again.is_new) == ("01B", False)
    assert again.take(data) is None
    assert names(again.compare([make_order(status="partially_filled", filled="2")], [])) == []


def test_memory_is_bounded() -> None:
    ledger = OrderLedger(remembered=10)
    for number in range(50):
        ledger.take(make_data("new", make_order(f"o{number}"), f"{number:04d}"))
    memory = ledger.memory
    assert len(memory.orders) == len(memory.event_ids) == 10


@given(
    parts=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    ending=st.sampled_from(["filled", "canceled", "open"]),
    known=st.sets(st.integers(0, 9)),
    data=st.data(),
)
def test_whatever_is_lost_every_quantity_is_told_once(
    parts: list[int], ending: str, known: set[int], data: st.DataObject
) -> None:
    """An order's whole life: the stream is cut and comes back, and the comparison may know more than it by then."""
    total = sum(parts) if ending == "filled" else sum(parts) + 1
    stream = [make_data("new", make_order(qty=str(total)), "00")]
    executions, at = [], 0
    for number, part in enumerate(parts):
        at += part
        is_last = at == total
        order = make_order(status="filled" if is_last else "partially_filled", filled=str(at), qty=str(total))
        stream.append(make_data("fill" if is_last else "partial_fill", order, f"0{number + 1}", qty=str(part)))
        if number in known:
            executions.append(make_execution(str(at), str(part)))
    if ending == "canceled":
        stream.append(make_data("canceled", make_order(status="canceled", filled=str(at), qty=str(total)), "99"))
    cut, back, seen = sorted(data.draw(st.tuples(*[st.integers(0, len(stream))] * 3)))
    ledger = OrderLedger()
    ledger.seed([make_order("another")])
    told = [event for update in stream[:cut] if (event := ledger.take(update))]
    assert not any(ledger.is_behind(update["order"]) for update in stream[:cut])
    if seen:
        now = stream[seen - 1]["order"]
        told += ledger.compare([now], executions)
        assert ledger.compare([now], executions) == []
    # What was lost may still come, as a connection before has it.
    late = stream[cut:back] if data.draw(st.booleans()) and seen >= back else []
    told += [event for update in (*late, *stream[back:]) if (event := ledger.take(update))]
    assert sum(Decimal(event.data["qty"]) for event in told if "fill" in event.data["event"]) == at
    once = [name for name in names(told) if name != "partial_fill"]
    assert sorted(once) == sorted(["new", *{"filled": ["fill"], "canceled": ["canceled"]}.get(ending, [])])
    assert len({event.event_id for event in told}) == len(told)
