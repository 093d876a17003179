"""Legs under the rule set `alpaca`: how they wait, become live, end each other, are replaced; trailing stops."""

from __future__ import annotations

from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.clock import MINUTE_NS
from dry_work.exchange.venue import RefusedError
from dry_work.orders.model import (
    OrderClass,
    OrderStatus,
    OrderType,
    Replacement,
    Side,
    StopLoss,
    TimeInForce,
    TradeEvent,
    VenueOrder,
)

from .venue_desk import KEY, Desk

D = Decimal
BUY, SELL = Side.BUY, Side.SELL
BRACKET: dict[str, Any] = {
    "order_class": OrderClass.BRACKET,
    "take_profit": D(110),
    "stop_loss": StopLoss(D(95)),
}


def open_desk(**options: Any) -> Desk:
    desk = Desk("alpaca", cash="10000", now_ns=MINUTE_NS, session_close_ns=lambda now_ns: 600 * MINUTE_NS, **options)
    desk.step(SPY=100.0, BTC=1000.0)
    return desk


@pytest.fixture
def desk() -> Desk:
    return open_desk()


def short(events: list[TradeEvent], *orders: VenueOrder) -> list[str]:
    """Return each event with the name of its order: entry, profit, stop, or new for any other."""
    names = {order.id: name for order, name in zip(orders, ("entry", "profit", "stop"), strict=False)}
    return [f"{names.get(event.order.id, 'new')} {event.event}" for event in events]


def bracket(desk: Desk, qty: str = "10", **fields: Any) -> tuple[VenueOrder, VenueOrder, VenueOrder]:
    entry = desk.buy(qty, **BRACKET | fields)
    return entry, entry.legs[0], entry.legs[1]


def oco(desk: Desk, qty: str = "10", **fields: Any) -> tuple[VenueOrder, VenueOrder]:
    asked = {
        "type": OrderType.LIMIT,
        "order_class": OrderClass.OCO,
        "take_profit": D(110),
        "stop_loss": StopLoss(D(95)),
        **fields,
    }
    profit = desk.sell(qty, **asked)
    return profit, profit.legs[0]


def status(desk: Desk, *orders: VenueOrder) -> list[str]:
    return [desk.order(order).status for order in orders]


# Brackets


def test_the_answer_to_a_bracket_holds_its_legs(desk: Desk) -> None:
    entry, profit, stop = bracket(desk)
    assert (entry.status, entry.order_class, len(entry.legs)) == ("pending_new", "bracket", 2)
    assert (profit.type, profit.side, profit.limit_price, profit.status) == ("limit", "sell", D(110), "held")
    assert (stop.type, stop.side, stop.stop_price, stop.status) == ("stop", "sell", D(95), "held")
    assert profit.qty == stop.qty == D(10)
    assert len({order.client_order_id for order in (entry, profit, stop)}) == 3
    assert short(desk.news(), entry, profit, stop) == ["entry pending_new", "profit held", "stop held", "entry new"]
    assert all(not order.legs for order in desk.venue.orders(KEY))
    nested = desk.venue.order(KEY, entry.id, nested=True)
    assert nested is not None
    assert [leg.id for leg in nested.legs] == [profit.id, stop.id]


def test_the_profit_exit_is_new_when_the_entry_is_filled_and_its_fill_cancels_the_stop(desk: Desk) -> None:
    orders = bracket(desk)
    desk.news()
    assert short(desk.step(SPY=(100.0, 120.0, 90.0, 100.0)), *orders) == ["entry fill", "profit new"]
    assert status(desk, *orders) == ["filled", "new", "held"]  # a bar of the entry's own cannot hit the exits
    assert desk.venue.held_qty(KEY, "SPY") == D(10)  # both exits hold the same shares
    assert short(desk.step(SPY=(105.0, 111.0, 104.0, 111.0)), *orders) == ["profit fill", "stop canceled"]
    assert (desk.qty(), desk.venue.held_qty(KEY, "SPY")) == (D(0), D(0))


def test_the_stop_fills_while_held_and_cancels_the_profit_exit(desk: Desk) -> None:
    orders = bracket(desk)
    desk.step(SPY=100.0)
    desk.news()
    assert short(desk.step(SPY=(100.0, 112.0, 94.0, 100.0)), *orders) == ["stop fill", "profit canceled"]
    assert desk.cash == D(10_000 - 1000 + 950)


def test_a_triggered_stop_limit_exit_that_does_not_fill_is_new_and_alone(desk: Desk) -> None:
    orders = bracket(desk, stop_loss=StopLoss(D(95), D(99)))
    desk.step(SPY=100.0)
    desk.news()
    assert short(desk.step(SPY=(94.0, 94.0, 90.0, 91.0)), *orders) == ["stop new", "profit canceled"]
    (fill,) = desk.step(SPY=(98.0, 100.0, 98.0, 100.0))
    assert (fill.event, fill.price, desk.qty()) == ("fill", D(99), D(0))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_cancel_of_one_cancels_all_while_the_entry_is_open(desk: Desk, which: int) -> None:
    orders = bracket(desk, limit="97")
    desk.news()
    desk.venue.cancel(KEY, orders[which].id)
    assert sorted(desk.names()) == ["canceled"] * 3
    assert status(desk, *orders) == ["canceled"] * 3
    assert desk.step(SPY=(80.0, 120.0, 80.0, 100.0)) == []


@pytest.mark.parametrize("which", [1, 2])
def test_a_cancel_of_an_exit_cancels_the_other_and_leaves_the_filled_entry(desk: Desk, which: int) -> None:
    orders = bracket(desk)
    desk.step(SPY=100.0)
    desk.venue.cancel(KEY, orders[which].id)
    assert status(desk, *orders) == ["filled", "canceled", "canceled"]
    assert desk.qty() == D(10)


def test_cancel_all_names_every_leg(desk: Desk) -> None:
    orders = bracket(desk, limit="97")
    assert {(order_id, code) for order_id, code, _ in desk.venue.cancel_all(KEY)} == {(o.id, 200) for o in orders}


def test_a_day_bracket_expires_as_a_whole() -> None:
    desk = open_desk()
    orders = bracket(desk, limit="97", day=True)
    desk.move(600 * MINUTE_NS, SPY=100.0)
    assert status(desk, *orders) == ["expired"] * 3


def test_an_entry_that_cannot_be_paid_at_its_first_bar_takes_its_legs_along() -> None:
    desk = Desk("alpaca", cash="100", now_ns=MINUTE_NS, session_close_ns=lambda now_ns: 600 * MINUTE_NS)
    orders = bracket(desk, "10")
    desk.news()
    assert short(desk.step(SPY=100.0), *orders) == ["entry rejected", "profit canceled", "stop canceled"]


def test_a_partial_fill_of_the_profit_exit_takes_as_much_from_the_stop() -> None:
    desk = open_desk(matching="volume")
    desk.step(SPY=100.0)
    entry = desk.buy("3", **BRACKET)
    orders = (entry, *entry.legs)
    for _ in range(3):  # a share a minute, and the legs wait for the last of them
        assert status(desk, *orders[1:]) == ["held", "held"]
        desk.step(SPY=100.0)
    desk.news()
    assert short(desk.step(SPY=111.0), *orders) == ["profit partial_fill", "stop restated"]
    stop = desk.order(orders[2])
    assert (stop.qty, stop.status) == (D(2), "held")
    assert desk.venue.held_qty(KEY, "SPY") == D(2)
    assert short(desk.step(SPY=90.0), *orders) == ["stop partial_fill", "profit canceled"]
    desk.step(SPY=90.0)
    assert (desk.qty(), status(desk, *orders)) == (D(0), ["filled", "canceled", "filled"])


def test_an_oto_order_has_one_exit(desk: Desk) -> None:
    entry = desk.buy("10", order_class=OrderClass.OTO, stop_loss=StopLoss(D(95)))
    (stop,) = entry.legs
    desk.news()
    events = desk.step(SPY=100.0)
    assert [(event.event, event.order.id) for event in events] == [("fill", entry.id), ("new", stop.id)]
    assert desk.step(SPY=94.0)[0].order.id == stop.id
    assert desk.qty() == 0


def test_a_short_bracket_mirrors(desk: Desk) -> None:
    entry = desk.sell("10", **BRACKET | {"take_profit": D(90), "stop_loss": StopLoss(D(105))})
    assert [leg.side for leg in entry.legs] == [BUY, BUY]
    desk.step(SPY=100.0)
    desk.step(SPY=(100.0, 100.0, 89.0, 89.0))
    assert (desk.qty(), desk.cash) == (D(0), D(10_100))


# Oco


def test_an_oco_pair_ends_with_the_first_fill(desk: Desk) -> None:
    desk.buy("10")
    desk.step(SPY=100.0)
    desk.news()
    pair = oco(desk)
    assert [order.status for order in pair] == ["pending_new", "held"]
    assert desk.venue.held_qty(KEY, "SPY") == D(10)
    assert (pair[0].limit_price, pair[0].order_class) == (D(110), "oco")
    desk.news()
    fill, canceled = desk.step(SPY=(100.0, 112.0, 100.0, 112.0))
    assert (fill.order.id, fill.event, canceled.order.id, canceled.event) == (
        pair[0].id,
        "fill",
        pair[1].id,
        "canceled",
    )


# Refusals


@pytest.mark.parametrize(
    ("fields", "message", "base"),
    [
        ({"take_profit": D(100)}, "take_profit.limit_price must be >= base_price + 0.01", "100"),
        ({"stop_loss": StopLoss(D(100))}, "stop_loss.stop_price must be <= base_price - 0.01", "100"),
        ({"limit": "98", "stop_loss": StopLoss(D("98.00"))}, "stop_loss.stop_price must be <= base_price - 0.01", "98"),
        ({"limit": "103", "stop_loss": StopLoss(D(101))}, "stop_loss.stop_price must be <= base_price - 0.01", "100"),
        ({"limit": "110", "take_profit": D(110)}, "take_profit.limit_price must be >= base_price + 0.01", "110"),
    ],
)
def test_exits_on_the_wrong_side_are_refused(desk: Desk, fields: dict[str, Any], message: str, base: str) -> None:
    error = desk.refused(BUY, "1", **BRACKET | fields)
    assert (error.http_status, error.code, error.message) == (422, 42210000, message)
    assert error.context == {"base_price": base}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"time_in_force": TimeInForce.IOC}, "bracket orders must be DAY or GTC orders"),
        ({"day": True, "qty": D("1.5")}, "fractional orders must be simple orders"),
        ({"limit": "97", "day": True, "extended_hours": True}, "extended hours is not supported for bracket orders"),
        ({"type": OrderType.TRAILING_STOP, "trail_price": D(1)}, "trailing_stop orders must be simple orders"),
        (
            {"take_profit": D("110.001")},
            "invalid take_profit.limit_price 110.001. sub-penny increment does not fulfill minimum pricing criteria",
        ),
    ],
)
def test_what_a_group_cannot_be_is_refused(desk: Desk, fields: dict[str, Any], message: str) -> None:
    error = desk.refused(BUY, "1", **BRACKET | fields)
    assert (error.http_status, error.code, error.message) == (422, 42210000, message)


def test_crypto_has_no_groups_and_no_trailing_stops(desk: Desk) -> None:
    error = desk.refused(BUY, "1", "BTC/USD", **BRACKET | {"take_profit": D(1100), "stop_loss": StopLoss(D(900))})
    assert error.message == "crypto orders must be simple orders"
    error = desk.refused(BUY, "1", "BTC/USD", type=OrderType.TRAILING_STOP, trail_price=D(1))
    assert error.message == "invalid order type for crypto order: expected market, limit or stop_limit"


def test_a_pair_needs_a_position_and_a_bracket_none_to_close(desk: Desk) -> None:
    with pytest.raises(RefusedError, match="oco orders must be exit orders"):
        oco(desk)
    desk.buy("10")
    desk.step(SPY=100.0)
    with pytest.raises(RefusedError, match="bracket orders must be entry orders"):
        desk.sell("10", **BRACKET | {"take_profit": D(90), "stop_loss": StopLoss(D(105))})


def test_wash_trades_are_refused_with_the_order_that_is_in_the_way(desk: Desk) -> None:
    desk.buy("10")
    desk.step(SPY=100.0)
    resting = desk.sell("5", limit="105")
    desk.news()
    error = desk.refused(BUY, "1", limit="105")
    assert (error.http_status, error.code) == (403, 40310000)
    assert error.message == "potential wash trade detected. use complex orders"
    assert error.context == {
        "existing_order_id": resting.id,
        "reject_reason": "opposite side limit order exists",
    }
    assert desk.refused(BUY, "1").context["reject_reason"] == "opposite side limit order exists"
    below = desk.buy("1", limit="104.99")
    desk.step(SPY=110.0)  # sells, and the buy order stays
    assert desk.order(resting).status == "filled"
    desk.venue.cancel(KEY, below.id)
    stop = desk.sell("5", stop="90")
    desk.news()
    assert desk.refused(BUY, "1", limit="80").context == {
        "existing_order_id": stop.id,
        "reject_reason": "opposite side market/stop order exists",
    }
    assert desk.buy("1", **BRACKET | {"take_profit": D(120)}).status == "pending_new"  # complex orders are exempt
    assert desk.buy("1", type=OrderType.TRAILING_STOP, trail_price=D(1)).status == "pending_new"
    free = open_desk(refuse_wash_trades=False)
    free.buy("1")
    free.sell("1")


def test_the_stop_of_a_stock_order_stands_behind_the_price(desk: Desk) -> None:
    error = desk.refused(BUY, "1", stop="100")
    assert (error.http_status, error.message) == (422, "stop price must be greater than current price")
    assert error.context == {"market_price": "100", "stop_price": "100"}
    desk.buy("1")
    desk.step(SPY=100.0)
    desk.news()
    assert desk.refused(SELL, "1", stop="101").message == "stop price must be less than current price"


@pytest.mark.parametrize(("open_", "price"), [(102.0, 102), (102.51, 102.51), (102.52, None)])
def test_a_buy_stop_does_not_chase_the_price_beyond_its_collar(desk: Desk, open_: float, price: float | None) -> None:
    desk.buy("1", stop="100.01")
    desk.news()
    events = desk.step(SPY=open_)
    assert [event.price for event in events] == ([] if price is None else [D(str(price))])


# Replacement


def test_a_leg_is_replaced_in_its_place(desk: Desk) -> None:
    entry, profit, stop = bracket(desk)
    new = desk.venue.replace(KEY, stop.id, Replacement(stop_price=D(97)))
    assert (new.status, new.replaces, new.qty, new.order_class) == ("held", stop.id, D(10), "bracket")
    nested = desk.venue.order(KEY, entry.id, nested=True)
    assert nested is not None
    assert [leg.id for leg in nested.legs] == [profit.id, new.id]
    old = desk.order(stop)
    assert (old.status, old.replaced_by) == ("replaced", new.id)
    desk.step(SPY=100.0)
    desk.news()
    assert short(desk.step(SPY=96.0), entry, profit, new) == ["stop fill", "profit canceled"]


def test_an_entry_is_replaced_and_its_legs_wait_for_the_new_one(desk: Desk) -> None:
    entry, profit, stop = bracket(desk, limit="97")
    new = desk.venue.replace(KEY, entry.id, Replacement(limit_price=D(99)))
    desk.news()
    events = desk.step(SPY=(100.0, 100.0, 98.0, 99.0))
    assert short(events, new, profit, stop) == ["entry fill", "profit new"]
    assert status(desk, entry, new, profit, stop) == ["replaced", "filled", "new", "held"]


def test_the_quantity_of_a_group_is_not_changed(desk: Desk) -> None:
    entry, profit, _ = bracket(desk, limit="97")
    for order in (entry, profit):
        with pytest.raises(RefusedError, match="qty cannot be changed for advanced orders"):
            desk.venue.replace(KEY, order.id, Replacement(qty=D(3)))


def test_a_replacement_of_a_leg_that_is_lost_to_the_other_exit_is_told() -> None:
    desk = open_desk(changes_in_flight=True)
    orders = bracket(desk)
    desk.step(SPY=100.0)
    new = desk.venue.replace(KEY, orders[2].id, Replacement(stop_price=D(96)))
    desk.news()
    assert short(desk.step(SPY=111.0), *orders) == [
        "profit fill", "stop canceled", "stop order_replace_rejected", "new rejected",
    ]  # fmt: skip
    assert desk.order(new).status == "rejected"


def test_a_change_of_a_waiting_leg_takes_effect_after_the_slice() -> None:
    desk = open_desk(changes_in_flight=True)
    entry, profit, stop = bracket(desk, limit="97")
    new = desk.venue.replace(KEY, stop.id, Replacement(stop_price=D(94)))
    assert status(desk, stop) == ["pending_replace"]
    desk.step(SPY=100.0)
    assert status(desk, stop, new) == ["replaced", "held"]
    desk.venue.cancel(KEY, profit.id)
    assert status(desk, profit) == ["pending_cancel"]
    desk.step(SPY=100.0)
    assert status(desk, entry, profit, new) == ["canceled"] * 3


# Trailing stops


def test_a_trailing_stop_follows_the_high_and_fills_where_it_stands(desk: Desk) -> None:
    desk.buy("10")
    desk.step(SPY=100.0)
    order = desk.sell("10", type=OrderType.TRAILING_STOP, trail_price=D(2))
    assert (order.hwm, order.stop_price) == (D(100), D(98))
    desk.step(SPY=(100.0, 105.0, 99.0, 104.0))
    moved = desk.order(order)
    assert (moved.hwm, moved.stop_price, moved.status) == (D(105), D(103), "new")
    desk.news()
    (fill,) = desk.step(SPY=(104.0, 104.5, 102.0, 103.5))
    assert (fill.event, fill.price) == ("fill", D(103))


def test_a_close_behind_the_moved_stop_proves_that_it_was_hit(desk: Desk) -> None:
    desk.buy("10")
    desk.step(SPY=100.0)
    desk.sell("10", type=OrderType.TRAILING_STOP, trail_percent=D(5))
    desk.news()
    (fill,) = desk.step(SPY=(100.0, 110.0, 100.0, 101.0))
    assert (fill.event, fill.price, fill.order.stop_price) == ("fill", D("104.5"), D("104.5"))


def test_a_buying_trailing_stop_follows_the_low(desk: Desk) -> None:
    order = desk.buy("10", type=OrderType.TRAILING_STOP, trail_percent=D(1))
    desk.step(SPY=(100.0, 100.0, 90.0, 90.5))
    assert (desk.order(order).hwm, desk.order(order).stop_price) == (D(90), D("90.9"))
    desk.news()
    assert desk.step(SPY=95.0)[0].price == D(95)


def test_the_trail_of_a_trailing_stop_is_replaced_and_the_best_price_stays(desk: Desk) -> None:
    order = desk.buy("10", type=OrderType.TRAILING_STOP, trail_price=D(5))
    desk.step(SPY=(100.0, 100.0, 95.0, 96.0))
    new = desk.venue.replace(KEY, order.id, Replacement(trail=D(3)))
    assert (new.trail_price, new.hwm, new.stop_price) == (D(3), D(95), D(98))
    with pytest.raises(RefusedError, match="require no stop or limit price"):
        desk.venue.replace(KEY, new.id, Replacement(stop_price=D(99)))
    plain = desk.buy("1", limit="90")
    with pytest.raises(RefusedError, match="limit orders have no trail"):
        desk.venue.replace(KEY, plain.id, Replacement(trail=D(1)))


# All of it at random


ACTIONS = st.tuples(st.integers(0, 6), st.integers(0, 30), st.integers(-6, 6), st.integers(-6, 6), st.booleans())


@settings(max_examples=150, deadline=None)
@given(
    moves=st.lists(st.tuples(st.lists(ACTIONS, max_size=3), st.tuples(*[st.integers(-8, 8)] * 4)), max_size=15),
    in_flight=st.booleans(),
    matching=st.sampled_from(["bars", "volume"]),
)
def test_shares_are_never_oversold_and_every_order_ends_or_waits_in_a_known_state(
    moves: list[Any], in_flight: bool, matching: Any
) -> None:
    desk = open_desk(changes_in_flight=in_flight, matching=matching)
    cash = desk.cash
    for asked, prices in moves:
        for what, which, first, second, buys in asked:
            with suppress(RefusedError):
                act(desk, what, which, D(100 + first), D(100 + second), BUY if buys else SELL)
        open_, close, up, down = prices
        bar = (100.0 + open_, 100.0 + max(open_, close) + abs(up), 100.0 + min(open_, close) - abs(down), 100.0 + close)
        desk.step(SPY=bar)
        check_state(desk)
    for event in desk.events:
        if event.price is not None and event.qty is not None:
            cash -= event.price * (event.qty if event.order.side is BUY else -event.qty)
    assert desk.cash == cash


def act(desk: Desk, what: int, which: int, first: Decimal, second: Decimal, side: Side) -> None:
    qty = str(1 + which % 5)
    kinds: list[dict[str, Any]] = [
        {},
        {"type": OrderType.TRAILING_STOP, "trail_price": abs(first - second) + 1},
        {"order_class": OrderClass.BRACKET, "take_profit": first, "stop_loss": StopLoss(second)},
        {"order_class": OrderClass.BRACKET, "take_profit": second, "stop_loss": StopLoss(first, second), "day": True},
        {
            "type": OrderType.LIMIT,
            "order_class": OrderClass.OCO,
            "take_profit": first,
            "stop_loss": StopLoss(second),
        },
    ]
    orders = desk.venue.orders(KEY)
    if what < 5:
        desk.venue.submit(KEY, desk.ask(side, qty, "SPY", **kinds[what]))
    elif orders and what == 5:
        desk.venue.cancel(KEY, orders[which % len(orders)].id)
    elif orders:
        order = orders[which % len(orders)]
        change = {"stop_price": first} if order.stop_price is not None else {"limit_price": first}
        desk.venue.replace(KEY, order.id, Replacement(**change))


def check_state(desk: Desk) -> None:
    by_id = {order.id: order for order in desk.venue.orders(KEY)}
    for order in by_id.values():
        if order.order_class == "simple" or desk.venue.head_id(KEY, order.id) != order.id:
            continue
        group = desk.venue.order(KEY, order.id, nested=True)
        assert group is not None
        exits = [leg for leg in group.legs if leg.status not in ("canceled", "expired", "rejected", "replaced")]
        if order.order_class == "bracket" and order.status in ("canceled", "expired", "rejected"):
            assert exits == []
        if order.order_class == "bracket" and order.status in ("new", "partially_filled"):
            assert {leg.status for leg in exits} <= {"held", "pending_cancel", "pending_replace"}
        sold = sum((leg.filled_qty for leg in group.legs), D(0))
        assert order.order_class != "bracket" or sold <= order.filled_qty
        assert sum(leg.status == OrderStatus.FILLED for leg in group.legs) <= 1
