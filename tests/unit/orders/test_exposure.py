"""Worst cases of positions and open orders."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from dry_work.orders.exposure import Holding, Portfolio, RiskOrder, describe_open_order, describe_request
from dry_work.orders.model import OrderClass, OrderRequest, OrderType, Side, StopLoss, TimeInForce, VenueOrder

D = Decimal
PRICE = D(10)


def order(name: str, side: str, qty: Any, **given: Any) -> RiskOrder:
    return RiskOrder(id=name, symbol="X", side=Side(side), qty=D(str(qty)), **given)


def portfolio(held: Any = 0, *orders: RiskOrder) -> Portfolio:
    return Portfolio(D(1000), {"X": Holding(D(str(held)), PRICE)}, orders)


@pytest.mark.parametrize(
    ("held", "orders", "long", "short"),
    [
        (5, [], 50, 0),
        (-5, [], 0, 50),
        (5, [("buy", 3)], 80, 0),
        (5, [("sell", 3)], 50, 0),
        (5, [("sell", 8)], 50, 30),
        (-5, [("buy", 8)], 30, 50),
        (5, [("buy", 3), ("sell", 20)], 80, 150),
    ],
)
def test_the_worst_case_is_that_all_orders_of_one_side_are_filled(
    held: int, orders: list[tuple[str, int]], long: int, short: int
) -> None:
    found = portfolio(held, *(order(str(n), side, qty) for n, (side, qty) in enumerate(orders)))
    case = found.worst_case("X")
    assert (case.long_value, case.short_value) == (long, short)
    assert case.value == found.gross == max(long, short)


@pytest.mark.parametrize(
    ("side", "given", "worth"),
    [
        ("buy", {}, 10),
        ("buy", {"limit_price": D(4)}, 4),  # never filled above it
        ("buy", {"limit_price": D(12)}, 12),
        ("sell", {"limit_price": D(4)}, 10),  # filled at the market, which is better
        ("sell", {"limit_price": D(12)}, 12),
        ("buy", {"stop_price": D(12)}, 12),
        ("sell", {"stop_price": D(8)}, 10),
        ("sell", {"stop_price": D(8), "limit_price": D(7)}, 10),
    ],
)
def test_a_unit_is_worth_the_most_that_it_can_be_filled_at(side: str, given: dict[str, D], worth: int) -> None:
    assert order("a", side, 1, **given).worth(PRICE) == worth


def test_an_order_over_money_has_the_quantity_that_the_money_buys() -> None:
    asked = RiskOrder(id="a", symbol="X", side=Side.BUY, notional=D(55))
    assert asked.quantity(PRICE) == D("5.5")
    assert asked.quantity(None) is None
    assert portfolio(0, asked).gross == 55


def test_the_cheapest_orders_cover_what_is_held_the_other_way() -> None:
    orders = order("a", "buy", 5, limit_price=D(2)), order("b", "buy", 5, limit_price=D(9))
    assert portfolio(-6, *orders).worst_case("X").long_value == 4 * 9


def test_of_orders_that_cancel_each_other_one_counts() -> None:
    exits = [order(name, "sell", 5, group="exits", stop_price=D(8)) for name in "ab"]
    assert portfolio(5, *exits).worst_case("X").short_value == 0
    assert portfolio(5, *exits).entries() == []


def test_a_replacement_and_what_it_replaces_count_as_one_order() -> None:
    book = portfolio(0, order("a", "buy", 5))
    book.add(order("b", "buy", 7, replaces="a"))
    assert book.gross == 70
    book.add(order("c", "buy", 2))
    assert book.gross == 90


@pytest.mark.parametrize(
    ("held", "open_", "side", "qty", "shrinks"),
    [
        (5, (), "sell", 5, True),
        (5, (), "sell", "5.000000001", False),  # crosses zero
        (5, (), "buy", 1, False),
        (0, (), "sell", 1, False),
        (-5, (), "buy", 5, True),
        (-5, (), "buy", 6, False),
        (5, (("sell", 3),), "sell", 2, True),
        (5, (("sell", 3),), "sell", 3, False),  # with the open one it crosses zero
        (5, (("buy", 9),), "sell", 6, False),  # the buy may not be filled first
    ],
)
def test_shrinking_is_judged_with_the_open_orders(
    held: int, open_: tuple[tuple[str, int], ...], side: str, qty: Any, shrinks: bool
) -> None:
    orders = [order(str(n), open_side, size) for n, (open_side, size) in enumerate(open_)]
    assert portfolio(held, *orders).shrinks(order("new", side, qty)) is shrinks


def test_a_replacement_shrinks_without_what_it_replaces() -> None:
    book = portfolio(5, order("a", "sell", 5))
    assert not book.shrinks(order("b", "sell", 4))
    assert book.shrinks(order("b", "sell", 4, replaces="a"))
    assert not book.shrinks(order("b", "sell", 6, replaces="a"))


def test_an_exit_that_is_replaced_stays_one_of_its_group() -> None:
    exits = [order(name, "sell", 5, group="exits", stop_price=D(8)) for name in ("profit", "stop")]
    book = portfolio(5, *exits)
    moved = order("new", "sell", 5, replaces="stop", stop_price=D(9))
    assert book.shrinks(moved)
    assert book.worst_case("X", moved).short_value == 0
    assert not book.shrinks(order("new", "sell", 6, replaces="stop"))
    book.add(moved)
    assert book.shrinks(order("newer", "sell", 5, replaces="new"))
    assert not book.shrinks(order("another", "sell", 1))


def test_an_exit_that_is_replaced_before_its_entry_is_filled_does_not_count() -> None:
    entry = order("entry", "buy", 5)
    stop = order("stop", "sell", 5, group="exits", entry="entry", stop_price=D(8))
    book = portfolio(0, entry, stop)
    moved = order("new", "sell", 5, replaces="stop", stop_price=D(200))
    assert book.worst_case("X", moved).value == 50
    assert not book.shrinks(moved)
    book.add(moved)
    assert book.gross == 50


def test_money_counts_where_no_price_is_known() -> None:
    asked = RiskOrder(id="a", symbol="Z", side=Side.BUY, notional=D(55))
    assert portfolio(0, asked).gross == 55


def test_entries_are_what_can_do_more_than_shrink_oldest_first() -> None:
    orders = [
        order("stop", "sell", 4, stop_price=D(8)),
        order("more", "buy", 1),
        order("rest", "sell", 1),
        order("turn", "sell", 1),
        RiskOrder(id="other", symbol="Y", side=Side.SELL, qty=D(1)),
    ]
    assert portfolio(5, *orders).entries() == ["more", "turn", "other"]


def request(**given: Any) -> OrderRequest:
    values: dict[str, Any] = {
        "client_order_id": "n", "symbol": "X", "side": Side.BUY, "type": OrderType.LIMIT,
        "time_in_force": TimeInForce.DAY, "qty": D(3), "limit_price": D(10),
    }  # fmt: skip
    return OrderRequest(**{**values, **given})


def test_a_bracket_is_an_entry_and_two_exits_of_which_one_is_filled() -> None:
    asked = request(order_class=OrderClass.BRACKET, take_profit=D(12), stop_loss=StopLoss(D(9), D(8)))
    entry, profit, stop = describe_request(asked)
    assert (entry.side, entry.qty, entry.limit_price, entry.group) == (Side.BUY, 3, 10, "")
    assert (profit.side, profit.type, profit.limit_price) == (Side.SELL, OrderType.LIMIT, 12)
    assert (stop.side, stop.type, stop.stop_price, stop.limit_price) == (Side.SELL, OrderType.STOP_LIMIT, 9, 8)
    assert profit.group == stop.group != ""
    waiting = portfolio(0, entry, profit, stop)
    assert waiting.gross == 30
    assert waiting.entries() == ["n"]
    filled = portfolio(3, profit, stop)
    assert filled.gross == 30
    assert filled.entries() == []
    assert portfolio(0, profit, stop).worst_case("X").short_value == 36


def test_an_oco_is_two_exits_of_which_one_is_filled() -> None:
    asked = request(side=Side.SELL, limit_price=D(12), order_class=OrderClass.OCO, stop_loss=StopLoss(D(9)))
    found = describe_request(asked)
    assert [exit_.side for exit_ in found] == [Side.SELL, Side.SELL]
    assert len({exit_.id for exit_ in found}) == 2
    assert portfolio(3, *found).entries() == []


def test_an_open_order_counts_with_what_can_still_be_filled_and_with_its_legs() -> None:
    values: dict[str, Any] = {
        "symbol": "X", "time_in_force": TimeInForce.DAY, "order_class": "bracket", "created_ns": 7,
    }  # fmt: skip
    legs = tuple(
        VenueOrder(
            id=name, client_order_id=name, side=Side.SELL, type=OrderType.LIMIT, status=status, qty=D(5), **values
        )
        for name, status in (("profit", "held"), ("stop", "held"), ("old", "canceled"))
    )
    parent = VenueOrder(
        id="p", client_order_id="p", side=Side.BUY, type=OrderType.LIMIT, status="partially_filled", qty=D(5),
        filled_qty=D(2), legs=legs, **values,
    )  # fmt: skip
    found = list(describe_open_order(parent))
    assert [(seen.id, seen.qty) for seen in found] == [("p", 3), ("profit", 5), ("stop", 5)]
    assert found[1].group == found[2].group
    assert found[1].entry == found[2].entry == "p"
    # A leg that is listed by itself belongs to the others all the same.
    assert next(describe_open_order(legs[0])).group == found[1].group
