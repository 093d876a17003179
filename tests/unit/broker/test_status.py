"""Our books beside the venue's: what is equal, what differs, and why."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from dry_work.broker.books_reader import JournalBooks, read_books
from dry_work.broker.journal import Intent, Journal
from dry_work.broker.own_books import OrderState, OwnOrder, build_orders, sum_positions
from dry_work.broker.status import Comparison, Mark, VenueSnapshot, compare, list_doubts
from dry_work.orders.books import Fill
from dry_work.orders.model import (
    AccountSnapshot,
    OrderRequest,
    OrderType,
    Side,
    TimeInForce,
    VenueOrder,
    VenuePosition,
)

ACCOUNT = AccountSnapshot(id="acc", account_number="1", cash=Decimal(5), equity=Decimal(9), buying_power=Decimal(5))


class Desk:
    """Writes a journal, and tells of the venue's orders and positions."""

    def __init__(self, path: Path) -> None:
        self.journal = Journal(path)
        self.journal.mint_session("a", session="s", started_ns=1)
        self.number = 0
        self.executions = 0

    def intend(self, symbol: str = "SPY", qty: str | None = "5", *, side: Side = Side.BUY, **more: Any) -> str:
        self.number += 1
        name = f"dw-a-s-{self.number}"
        links = {key: more.pop(key) for key in ("parent", "role", "body") if key in more}
        request = OrderRequest(
            client_order_id=name, symbol=symbol, side=side, type=more.pop("type", OrderType.LIMIT),
            time_in_force=more.pop("tif", TimeInForce.GTC),
            qty=None if qty is None else Decimal(qty), **more,
        )  # fmt: skip
        intent = Intent(request=request, number=self.number, **links)
        self.journal.record_intents([intent], agent="a", session="s", at_ns=self.number)
        return name

    def answer(self, name: str, outcome: str = "accepted", *, action: str = "submit", **more: Any) -> str:
        order_id = f"id-{name}" if outcome == "accepted" else ""
        self.journal.record_outcome(name, action=action, outcome=outcome, order_id=order_id, at_ns=9, **more)
        return name

    def send(self, symbol: str = "SPY", qty: str = "5", **more: Any) -> str:
        return self.answer(self.intend(symbol, qty, **more))

    def fill(self, name: str, qty: str, *, symbol: str = "SPY", side: Side = Side.BUY, price: str = "10") -> str:
        self.executions += 1
        fill = Fill(
            execution_id=f"e{self.executions}", client_order_id=name, symbol=symbol, side=side, qty=Decimal(qty),
            price=Decimal(price), ts_event_ns=self.executions,
        )  # fmt: skip
        self.journal.record_progress([fill])
        return name

    def books(self) -> JournalBooks:
        return read_books(self.journal.path)

    def orders(self) -> list[OwnOrder]:
        return build_orders(self.books())

    def states(self) -> list[OrderState]:
        return [order.state for order in self.orders()]

    def compare(self, **venue: Any) -> Comparison:
        books = self.books()
        return compare(books, build_orders(books), VenueSnapshot(account=ACCOUNT, **venue))


def at_venue(name: str, qty: str = "5", **more: Any) -> VenueOrder:
    filled = Decimal(more.pop("filled", "0"))
    order = VenueOrder(
        id=f"id-{name}", client_order_id=name, symbol="SPY", side=Side.BUY, type=OrderType.LIMIT,
        time_in_force=TimeInForce.GTC, status="new", qty=Decimal(qty), filled_qty=filled,
    )  # fmt: skip
    return replace(order, **more)


def held(symbol: str, qty: str, price: str = "10") -> VenuePosition:
    return VenuePosition(symbol=symbol, qty=Decimal(qty), avg_entry_price=Decimal(price))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "orders.sqlite")
    yield desk
    desk.journal.close()


# Our books


def test_an_order_is_open_until_the_journal_says_otherwise(desk: Desk) -> None:
    desk.send()
    desk.fill(desk.send(), "2")
    desk.fill(desk.fill(desk.send(), "2"), "3")
    desk.answer(desk.intend(), "refused", message="no funds")
    desk.answer(desk.intend(), "unknown")
    desk.intend()
    desk.answer(desk.send(), "refused", action="cancel")
    desk.answer(desk.send(), "canceled", action="end")
    desk.send(tif=TimeInForce.IOC)
    o = OrderState
    assert desk.states() == [o.OPEN, o.OPEN, o.FILLED, o.REFUSED, o.UNKNOWN, o.UNKNOWN, o.OPEN, o.ENDED, o.ENDED]
    assert [str(order.filled_qty) for order in desk.orders()][:4] == ["0", "2", "5", "0"]
    assert desk.orders()[3].note == "no funds"


def test_a_fill_settles_an_order_whose_answer_was_lost(desk: Desk) -> None:
    desk.fill(desk.answer(desk.intend(), "unknown"), "1")
    assert desk.states() == [OrderState.OPEN]


def test_a_replacement_is_the_same_order_with_its_new_terms(desk: Desk) -> None:
    first = desk.send(limit_price=Decimal(10))
    second = desk.intend(qty="3", limit_price=Decimal(11), parent=first, role="replacement")
    assert desk.orders()[0].note == "whether a replacement arrived is not known"
    assert desk.orders()[0].limit_price == 10
    desk.answer(second, action="replace")
    third = desk.intend(qty="9", limit_price=Decimal(12), parent=first, role="replacement")
    desk.answer(third, "refused", action="replace")
    [order] = desk.orders()
    assert (order.name, order.qty, order.limit_price, order.note) == (first, 3, 11, "")
    assert order.names == (first, second, third)
    assert order.order_ids == (f"id-{first}", f"id-{second}")
    desk.fill(first, "3")
    assert desk.states() == [OrderState.FILLED]


def test_an_order_in_two_parts_is_filled_when_both_are(desk: Desk) -> None:
    first = desk.send()
    second = desk.intend(qty="7", parent=first, role="remainder")
    desk.fill(first, "5")
    [order] = desk.orders()
    assert (order.qty, order.filled_qty, order.state) == (12, 5, OrderState.OPEN)
    desk.answer(second, "unknown")
    assert desk.states() == [OrderState.UNKNOWN]
    desk.answer(second)
    desk.fill(first, "7")
    assert desk.states() == [OrderState.FILLED]


def test_the_second_part_that_was_refused_leaves_the_first(desk: Desk) -> None:
    first = desk.fill(desk.send(), "5")
    desk.answer(desk.intend(qty="7", parent=first, role="remainder"), "refused")
    assert desk.states() == [OrderState.FILLED]


@pytest.mark.parametrize("outcome", ["refused", "unknown"])
def test_exits_share_the_fate_of_the_entry_that_they_went_out_with(desk: Desk, outcome: str) -> None:
    entry = desk.intend()
    desk.intend(parent=entry, role="take_profit")
    desk.answer(entry, outcome)
    state = OrderState.REFUSED if outcome == "refused" else OrderState.UNKNOWN
    assert desk.states() == [state, state]


def test_the_exit_that_is_filled_ends_the_other(desk: Desk) -> None:
    entry = desk.send(body='{"order_class": "bracket"}')
    profit = desk.answer(desk.intend(parent=entry, role="take_profit"))
    desk.answer(desk.intend(parent=entry, role="stop_loss"))
    desk.fill(entry, "5")
    assert desk.states() == [OrderState.FILLED, OrderState.OPEN, OrderState.OPEN]
    desk.fill(profit, "5", side=Side.SELL)
    assert desk.states() == [OrderState.FILLED, OrderState.FILLED, OrderState.ENDED]


def test_of_a_pair_the_stop_ends_the_order_that_it_went_out_with(desk: Desk) -> None:
    head = desk.send(side=Side.SELL, body='{"order_class": "oco"}')
    stop = desk.answer(desk.intend(side=Side.SELL, parent=head, role="stop_loss"))
    desk.fill(stop, "5", side=Side.SELL)
    assert desk.states() == [OrderState.ENDED, OrderState.FILLED]


def test_an_order_by_value_is_filled_when_its_value_is(desk: Desk) -> None:
    name = desk.answer(desk.intend(qty=None, notional=Decimal(100), body='{"notional": "100"}'))
    desk.fill(name, "6")
    assert desk.states() == [OrderState.OPEN]
    desk.fill(name, "3.9999")
    assert desk.states() == [OrderState.FILLED]
    assert desk.orders()[0].notional == 100


def test_positions_are_the_exact_sums_of_fills_in_any_spelling(desk: Desk) -> None:
    for qty in ("0.1", "0.2"):
        desk.fill(desk.send("BTC/USD", qty), qty, symbol="BTC/USD")
    desk.fill(desk.send("BTCUSD", "0.3", side=Side.SELL), "0.3", symbol="BTCUSD", side=Side.SELL)
    desk.fill(desk.send("SPY", "3"), "3")
    positions = sum_positions(desk.books())
    assert {symbol: str(position.qty) for symbol, position in positions.items()} == {"BTC/USD": "0", "SPY": "3"}


# Beside the venue's


def test_equal_books_are_equal(desk: Desk) -> None:
    desk.fill(desk.send(), "5")
    name = desk.send(limit_price=Decimal("9.50"))
    found = desk.compare(positions=(held("SPY", "5.0"),), open_orders=(at_venue(name, limit_price=Decimal("9.5")),))
    assert found.is_equal
    assert [row.mark for row in (*found.positions, *found.orders)] == [Mark.EQUAL, Mark.EQUAL]
    assert found.symbols_to_explain() == ()


def test_without_the_venue_ours_stand_alone(desk: Desk) -> None:
    desk.fill(desk.send(), "2")
    books = desk.books()
    found = compare(books, build_orders(books), None)
    assert [row.mark for row in (*found.positions, *found.orders)] == [Mark.ALONE, Mark.ALONE]
    assert found.positions[0].venue is None
    assert found.orders[0].ours == "open, 2 filled"


def test_a_cancellation_is_the_venues_to_tell_and_no_difference(desk: Desk) -> None:
    name = desk.send()
    books = desk.books()
    snapshot = VenueSnapshot(account=ACCOUNT)
    assert [order.name for order in list_doubts(build_orders(books), books, snapshot)] == [name]
    found = desk.compare(looked_up={name: at_venue(name, status="canceled")})
    assert found.is_equal
    assert found.orders == ()
    assert found.ended == {"canceled": 1}


def test_an_order_that_the_venue_does_not_know_differs(desk: Desk) -> None:
    sent, lost = desk.send(), desk.answer(desk.intend(), "unknown")
    found = desk.compare(looked_up={sent: None, lost: None})
    assert [(row.ours, row.venue, row.mark) for row in found.orders] == [
        ("open", "", Mark.DIFFERS),
        ("UNKNOWN", "", Mark.DIFFERS),
    ]
    assert "the venue does not know it" in found.orders[0].reasons[0]
    assert "it never arrived" in found.orders[1].reasons[0]
    assert not found.is_equal


def test_an_order_whose_answer_was_lost_and_that_arrived_differs_until_the_agent_knows(desk: Desk) -> None:
    name = desk.answer(desk.intend(), "unknown")
    found = desk.compare(open_orders=(at_venue(name),))
    assert found.orders[0].mark is Mark.DIFFERS
    assert "it did arrive" in found.orders[0].reasons[0]
    found = desk.compare(looked_up={name: at_venue(name, status="filled", filled="5")})
    assert "was filled with 5" in found.orders[0].reasons[0]


def test_a_fill_that_the_agent_has_missed_is_named(desk: Desk) -> None:
    name = desk.fill(desk.send(), "2")
    missed = at_venue(name, status="filled", filled="5")
    found = desk.compare(positions=(held("SPY", "5"),), looked_up={name: missed}, history=(missed,))
    assert found.orders[0].mark is Mark.DIFFERS
    assert "the venue has filled 5 of it, the journal has 2" in found.orders[0].reasons[0]
    assert found.positions[0].reasons == ("+3 by fills of s-1 that the agent has not taken note of",)


def test_an_order_that_somebody_changed_at_the_venue_differs(desk: Desk) -> None:
    name = desk.send(limit_price=Decimal(9))
    theirs = replace(at_venue("by-hand", limit_price=Decimal(8)), replaces=f"id-{name}")
    found = desk.compare(open_orders=(theirs,))
    assert found.orders[0].name == name
    assert found.orders[0].reasons == (
        "its limit price is 8 at the venue and 9 by the journal: somebody has replaced it",
    )


def test_an_exit_is_found_by_the_venues_id(desk: Desk) -> None:
    entry = desk.send(body='{"order_class": "oto"}')
    leg = desk.answer(desk.intend(side=Side.SELL, parent=entry, role="stop_loss", stop_price=Decimal(8)))
    theirs = replace(
        at_venue("made-by-the-venue"), id=f"id-{leg}", status="held", side=Side.SELL, stop_price=Decimal(8)
    )
    found = desk.compare(open_orders=(at_venue(entry), theirs))
    assert [(row.name, row.mark) for row in found.orders] == [(entry, Mark.EQUAL), (leg, Mark.EQUAL)]
    assert "(stop_loss of s-1)" in found.orders[1].terms


def test_orders_and_positions_of_others_are_foreign_and_no_difference(desk: Desk) -> None:
    others = (at_venue("by-hand"), at_venue("dw-b-x-1"))
    found = desk.compare(open_orders=others, positions=(held("QQQ", "4"),))
    assert found.is_equal
    assert [(row.name, row.mark) for row in found.orders] == [("by-hand", Mark.FOREIGN), ("dw-b-x-1", Mark.FOREIGN)]
    assert found.orders[0].reasons == ("an order of nobody that is known (by hand, or another program)",)
    assert found.orders[1].reasons == ("an order of agent b",)
    assert found.positions[0].mark is Mark.FOREIGN


def test_an_order_in_the_agents_name_that_its_journal_does_not_have_differs(desk: Desk) -> None:
    found = desk.compare(open_orders=(at_venue("dw-a-old-7"),))
    assert found.orders[0].mark is Mark.DIFFERS
    assert "another journal than this" in found.orders[0].reasons[0]


def test_a_trade_by_hand_explains_a_position_to_the_last_digit(desk: Desk) -> None:
    desk.fill(desk.send(), "5")
    by_hand = (
        at_venue("x", status="filled", filled="3"),
        at_venue("y", status="filled", filled="1", side=Side.SELL),
        at_venue("dw-b-x-1", status="filled", filled="4"),
    )
    first = desk.compare(positions=(held("SPY", "11.5"),))
    assert first.symbols_to_explain() == ("SPY",)
    assert "+6.5: a trade by hand" in first.positions[0].reasons[0]
    found = desk.compare(positions=(held("SPY", "11.5"),), history=by_hand)
    assert found.positions[0].mark is Mark.DIFFERS
    assert found.positions[0].reasons == (
        "+2 by 2 orders of nobody that is known (by hand, or another program)",
        "+4 by 1 order of agent b",
        "+0.5 by no order at the venue: held before the agent began, moved in, or a split",
    )


def test_closing_orders_of_a_flattening_are_the_agents_own(desk: Desk) -> None:
    desk.fill(desk.send(), "5")
    closing = at_venue("dw-a-flat0badcafe_SPY-1", status="filled", filled="5", side=Side.SELL)
    found = desk.compare(history=(closing,))
    assert found.is_equal
    assert found.positions[0].reasons == ("-5 by 1 order of `dry-work flatten`",)


@pytest.mark.parametrize(("venue", "mark"), [("1.995", Mark.EQUAL), ("1.9949", Mark.DIFFERS), ("2.0001", Mark.DIFFERS)])
@pytest.mark.parametrize("history", [None, ()])
def test_fees_in_coins_are_no_difference_up_to_their_rate(
    desk: Desk, venue: str, mark: Mark, history: tuple[()] | None
) -> None:
    desk.fill(desk.send("BTC/USD", "2"), "2", symbol="BTC/USD")
    found = desk.compare(positions=(held("BTC/USD", venue),), history=history)
    assert found.positions[0].mark is mark
    assert ("fees" in found.positions[0].reasons[0]) is (mark is Mark.EQUAL)


def test_a_stock_has_no_fees_in_kind(desk: Desk) -> None:
    desk.fill(desk.send(), "5")
    assert desk.compare(positions=(held("SPY", "4.999"),)).positions[0].mark is Mark.DIFFERS
