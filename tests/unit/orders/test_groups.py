"""Orders that belong together, as values."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from dry_work.orders.groups import (
    GroupRequest,
    Role,
    assign_legs,
    build_bracket,
    build_leg,
    build_pair,
    may_be_paired,
    split_crossing,
)
from dry_work.orders.mapping import OrderTerms, build_order_request
from dry_work.orders.model import OrderClass, OrderRequest, OrderType, Side, TimeInForce, VenueOrder
from dry_work.orders.rules import Refusal


def terms(kind: str = "Market", side: Side = Side.BUY, **changes: Any) -> OrderTerms:
    return OrderTerms(**{"kind": kind, "symbol": "AAPL", "side": side, "size": 10, "price": 10.0, **changes})


ENTRY = terms("Limit")
STOP = terms("Stop", Side.SELL, price=9.0)
PROFIT = terms("Limit", Side.SELL, price=12.0)


def build_group(entry: OrderTerms, *exits: OrderTerms) -> OrderRequest:
    found = build_bracket(entry, exits, "dw-a-s-1")
    assert isinstance(found, GroupRequest)
    return found.request


@pytest.mark.parametrize("exits", [(STOP, PROFIT), (PROFIT, STOP)])
def test_the_exits_of_a_bracket_may_come_in_any_order(exits: tuple[OrderTerms, OrderTerms]) -> None:
    found = build_bracket(ENTRY, exits, "dw-a-s-1")
    assert isinstance(found, GroupRequest)
    assert found.request.order_class is OrderClass.BRACKET
    assert found.request.take_profit == 12
    assert found.request.stop_loss is not None
    assert found.request.stop_loss.stop_price == 9
    last = (Role.STOP_LOSS, Role.TAKE_PROFIT)
    assert found.roles == (Role.ENTRY, *(last if exits[0] is STOP else reversed(last)))


@pytest.mark.parametrize(
    ("exits", "rule"),
    [
        ((), "three_children"),
        ((STOP, PROFIT, PROFIT), "three_children"),
        ((STOP, terms("Stop", Side.SELL, price=8.0)), "two_of_a_kind"),
        ((STOP, terms("StopLimit", Side.SELL, price=8.0, limit_price=7.9)), "two_of_a_kind"),
        ((PROFIT, PROFIT), "two_of_a_kind"),
        ((terms("StopTrail", Side.SELL, trail_percent=0.02), PROFIT), "leg_kind"),
        ((terms("Market", Side.SELL),), "leg_kind"),
        ((terms("Stop", Side.BUY, price=9.0),), "leg_side"),
        ((terms("Stop", Side.SELL, price=9.0, symbol="MSFT"),), "leg_symbol"),
        ((terms("Stop", Side.SELL, price=9.0, size=5),), "leg_size"),
        ((terms("Stop", Side.SELL, price=9.0, day=True),), "leg_valid"),
        ((terms("Stop", Side.SELL, price=9.0, until=739_000.0),), "leg_valid"),
        ((terms("Limit", Side.SELL, price=12.0, options={"extended_hours": True}),), "leg_options"),
        ((terms("Stop", Side.SELL, price=0.0),), "stop_price"),
        ((terms("Stop", Side.SELL, price=10.0),), "stop_loss_beyond_entry"),
        ((terms("Limit", Side.SELL, price=10.0),), "take_profit_beyond_entry"),
    ],
)
def test_what_alpaca_cannot_take_as_one_order_is_refused_by_name(exits: tuple[OrderTerms, ...], rule: str) -> None:
    found = build_bracket(ENTRY, exits, "dw-a-s-1")
    assert isinstance(found, Refusal)
    assert found.rule == rule


LONG_STOP, LONG_LIMIT = terms("Stop", Side.SELL, price=9.0), terms("Limit", Side.SELL, price=12.0)


@pytest.mark.parametrize("first", [LONG_STOP, LONG_LIMIT])
def test_a_pair_is_one_limit_order_with_a_stop(first: OrderTerms) -> None:
    other = LONG_LIMIT if first is LONG_STOP else LONG_STOP
    found = build_pair(first, other, "dw-a-s-1")
    assert isinstance(found, GroupRequest)
    request = found.request
    assert (request.type, request.side, request.order_class) == (OrderType.LIMIT, Side.SELL, OrderClass.OCO)
    assert (request.limit_price, request.stop_price, request.take_profit) == (None, None, Decimal("12.0"))
    assert found.roles[0] is (Role.STOP_LOSS if first is LONG_STOP else Role.TAKE_PROFIT)
    legs = [build_leg(request, role, "dw-a-s-2") for role in found.roles]
    wanted = [build_order_request(terms, "dw-a-s-2") for terms in (first, other)]
    assert legs == wanted


@pytest.mark.parametrize(
    ("first", "second", "rule"),
    [
        (LONG_STOP, terms("Stop", Side.SELL, price=8.0), "two_of_a_kind"),
        (LONG_STOP, terms("Limit", Side.SELL, price=12.0, size=5), "leg_size"),
        (LONG_STOP, terms("Limit", Side.BUY, price=8.0), "leg_side"),
        (LONG_STOP, terms("Limit", Side.SELL, price=12.0, symbol="MSFT"), "leg_symbol"),
        (LONG_LIMIT, terms("Stop", Side.SELL, price=13.0), "stop_loss_beyond_entry"),
        (terms("Market", Side.SELL), LONG_STOP, "leg_kind"),
        (LONG_STOP, terms("StopTrail", Side.SELL, trail_amount=1.0), "leg_kind"),
    ],
)
def test_a_pair_that_is_none_is_refused_by_name(first: OrderTerms, second: OrderTerms, rule: str) -> None:
    found = build_pair(first, second, "dw-a-s-1")
    assert isinstance(found, Refusal)
    assert found.rule == rule


def leg(id: str, order_type: OrderType, **changes: Any) -> VenueOrder:
    given: dict[str, Any] = {
        "id": id, "client_order_id": f"c-{id}", "symbol": "AAPL", "side": Side.SELL, "type": order_type,
        "time_in_force": TimeInForce.GTC, "status": "held", **changes,
    }  # fmt: skip
    return VenueOrder(**given)


def test_legs_are_told_by_symbol_side_and_type_and_not_by_their_place() -> None:
    legs = [
        leg("x", OrderType.MARKET),
        leg("y", OrderType.LIMIT, side=Side.BUY),
        leg("z", OrderType.LIMIT, symbol="MSFT"),
        leg("loss", OrderType.STOP_LIMIT),
        leg("profit", OrderType.LIMIT),
    ]
    found = assign_legs(legs, "AAPL", Side.SELL)
    assert {role: order.id for role, order in found.items()} == {Role.STOP_LOSS: "loss", Role.TAKE_PROFIT: "profit"}


@pytest.mark.parametrize("turned", [False, True])
def test_of_a_replaced_leg_the_newest_counts(turned: bool) -> None:
    legs = [
        leg("old", OrderType.STOP, status="replaced", replaced_by="new"),
        leg("new", OrderType.STOP, replaces="old"),
    ]
    found = assign_legs(reversed(legs) if turned else legs, "AAPL", Side.SELL)
    assert found[Role.STOP_LOSS].id == "new"


def simple(kind: str, side: Side, size: float, **changes: Any) -> OrderRequest:
    found = build_order_request(terms(kind, side, size=size, **changes), "dw-a-s-1")
    assert isinstance(found, OrderRequest)
    return found


@pytest.mark.parametrize(
    ("kind", "after"),
    [("Market", "market"), ("Limit", "limit"), ("Stop", "market"), ("StopLimit", "limit"), ("StopTrail", "market")],
)
@pytest.mark.parametrize(("side", "held"), [(Side.SELL, 4), (Side.BUY, -4)])
def test_an_order_through_zero_is_two_and_the_second_has_no_trigger(
    kind: str, after: str, side: Side, held: int
) -> None:
    extra = {"trail_amount": 1.0} if kind == "StopTrail" else {}
    request = simple(kind, side, 10, limit_price=9.5, **extra)
    found = split_crossing(request, Decimal(held), "dw-a-s-2")
    assert isinstance(found, tuple)
    first, second = found
    assert first == replace(request, qty=Decimal(4))
    assert (second.client_order_id, second.qty, second.type.value) == ("dw-a-s-2", 6, after)
    assert (second.stop_price, second.trail_price, second.trail_percent) == (None, None, None)
    assert second.limit_price == request.limit_price
    assert (second.side, second.symbol, second.time_in_force) == (side, "AAPL", request.time_in_force)


@pytest.mark.parametrize(
    ("request_", "held", "rule"),
    [
        (simple("Market", Side.SELL, 4), "4", None),
        (simple("Market", Side.SELL, 4), "0", None),
        (simple("Market", Side.SELL, 4), "-3", None),
        (simple("Market", Side.BUY, 4), "3", None),
        (simple("Market", Side.SELL, 4, symbol="BTC/USD"), "3", None),
        (simple("Market", Side.SELL, 1, options={"notional": 1000}), "3", None),
        (build_group(ENTRY, STOP), "-3", None),
        (simple("Market", Side.SELL, 10), "5.5", "crossing_fractional"),
        (simple("Market", Side.SELL, 10.5), "5.5", ""),
        (simple("Market", Side.BUY, 10.5), "-5", ""),
        (simple("Close", Side.SELL, 10), "5", "crossing_cls"),
        (simple("Limit", Side.SELL, 10, options={"tif": "opg"}), "5", "crossing_opg"),
        (simple("Limit", Side.SELL, 10, options={"tif": "fok"}), "5", "crossing_fok"),
        (simple("Limit", Side.SELL, 10, options={"tif": "ioc"}), "5", ""),
    ],
)
def test_only_what_goes_through_zero_is_split(request_: OrderRequest, held: str, rule: str | None) -> None:
    found = split_crossing(request_, Decimal(held), "dw-a-s-2")
    if rule is None:
        assert found is None
    elif rule:
        assert isinstance(found, Refusal)
        assert found.rule == rule
    else:
        assert isinstance(found, tuple)
        assert request_.qty is not None
        assert sum(part.qty for part in found if part.qty is not None) == request_.qty


@pytest.mark.parametrize(
    ("request_", "held", "expected"),
    [
        (simple("Limit", Side.SELL, 4), "4", True),
        (simple("Stop", Side.BUY, 4), "-5", True),
        (simple("Limit", Side.SELL, 5), "4", False),
        (simple("Limit", Side.SELL, 4), "0", False),
        (simple("Limit", Side.BUY, 4), "4", False),
        (simple("Market", Side.SELL, 4), "4", False),
        (simple("Limit", Side.SELL, 4, options={"tif": "ioc"}), "4", False),
        (simple("Limit", Side.SELL, 4, symbol="BTC/USD"), "4", False),
    ],
)
def test_only_a_plain_exit_waits_for_its_pair(request_: OrderRequest, held: str, expected: bool) -> None:
    assert may_be_paired(request_, Decimal(held)) is expected
