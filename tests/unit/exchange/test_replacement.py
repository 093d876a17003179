"""Replacing orders under the rule set `alpaca`: the chain, its refusals, and the races that a fill wins."""

from __future__ import annotations

from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.clock import MINUTE_NS
from dry_work.errors import ConfigError
from dry_work.exchange.venue import RefusedError
from dry_work.orders.model import OrderStatus, Side, TimeInForce, TradeEvent, VenueOrder
from dry_work.wire.alpaca_rest import Replacement

from .venue_desk import KEY, Desk

D = Decimal
BTC = "BTC/USD"


def open_desk(*, in_flight: bool = False, is_open: bool = True) -> Desk:
    desk = Desk(
        "alpaca",
        cash="10000",
        now_ns=MINUTE_NS,
        is_open=lambda now_ns: is_open,
        session_close_ns=lambda now_ns: 600 * MINUTE_NS,
        changes_in_flight=in_flight,
    )
    desk.step(SPY=100.0, BTC=1000.0)
    return desk


@pytest.fixture
def desk() -> Desk:
    return open_desk()


@pytest.fixture
def slow() -> Desk:
    """A desk whose cancels and replacements are in flight for a slice."""
    return open_desk(in_flight=True)


def change(desk: Desk, order: VenueOrder, **fields: Any) -> VenueOrder:
    amounts = {name: D(fields[name]) for name in ("qty", "limit_price", "stop_price") if name in fields}
    return desk.venue.replace(KEY, order.id, Replacement(**fields | amounts))


def refusal(desk: Desk, order: VenueOrder, **fields: Any) -> tuple[int, int, str]:
    """Replace an order, which must be refused without a trace."""
    before = desk.venue.orders(KEY)
    desk.news()
    with pytest.raises(RefusedError) as caught:
        change(desk, order, **fields)
    assert desk.venue.orders(KEY) == before
    assert desk.news() == []
    return caught.value.http_status, caught.value.code, caught.value.message


def chain(order: VenueOrder) -> tuple[str, str]:
    return order.replaces, order.replaced_by


def tell(desk: Desk, events: list[TradeEvent] | None = None) -> list[tuple[str, str, str]]:
    """Return event, client order id and status of the news."""
    told = desk.news() if events is None else events
    return [(event.event, event.order.client_order_id, event.order.status) for event in told]


def test_a_replacement_is_a_new_order_and_tells_the_old_one_first(desk: Desk) -> None:
    old = desk.buy("2", limit="90", client_order_id="a")
    desk.news()
    new = change(desk, old, limit_price="95", client_order_id="b")
    assert (new.status, new.limit_price, new.qty, new.filled_qty) == ("pending_new", D(95), D(2), D(0))
    replaced, made = desk.news()
    assert (replaced.event, replaced.order.id, replaced.order.status) == ("replaced", old.id, "replaced")
    assert replaced.order.limit_price == D(90)
    assert chain(replaced.order) == ("", new.id)
    assert replaced.order.replaced_ns == desk.venue.now_ns  # type: ignore[attr-defined]
    assert (made.event, made.order.id, made.order.status) == ("new", new.id, "new")
    assert chain(made.order) == (old.id, "")
    assert desk.order(old).status == OrderStatus.REPLACED
    (fill,) = desk.step(SPY=(96.0, 96.0, 89.0, 90.0))
    assert (fill.order.id, fill.price) == (new.id, D(95))


def test_everything_that_may_change_does_and_the_rest_stays(desk: Desk) -> None:
    old = desk.buy("2", stop="105", limit="106", day=True)
    new = change(desk, old, qty="3", stop_price="110", limit_price="111", time_in_force=TimeInForce.GTC)
    assert (new.qty, new.stop_price, new.limit_price, new.time_in_force) == (D(3), D(110), D(111), "gtc")
    assert (new.symbol, new.side, new.type) == (old.symbol, old.side, old.type)
    assert new.client_order_id not in ("", old.client_order_id)


def test_a_chain_goes_on_and_only_its_end_is_open(desk: Desk) -> None:
    first = desk.buy("1", limit="90")
    second = change(desk, first, limit_price="91")
    third = change(desk, second, limit_price="92")
    assert [order.status for order in desk.venue.orders(KEY)] == ["replaced", "replaced", "new"]
    assert chain(desk.order(second)) == (first.id, third.id)
    assert refusal(desk, first, limit_price="93") == (422, 42210000, "order already replaced")


def test_a_triggered_stop_stays_triggered_unless_it_is_moved(desk: Desk) -> None:
    orders = [desk.buy("1", stop="105", limit="101") for _ in range(2)]
    desk.step(SPY=(100.0, 106.0, 100.0, 106.0))  # triggers, and the limit was not reached after it
    assert {desk.order(order).status for order in orders} == {"new"}
    kept = change(desk, orders[0], limit_price="102")
    moved = change(desk, orders[1], stop_price="120")
    desk.step(SPY=(101.5, 102.0, 101.0, 101.0))
    assert (desk.order(kept).status, desk.order(moved).status) == ("filled", "new")


@pytest.mark.parametrize("fields", [{}, {"limit_price": "90.0"}, {"qty": "2"}, {"client_order_id": "other"}])
def test_a_replacement_that_changes_nothing_is_refused(desk: Desk, fields: dict[str, str]) -> None:
    order = desk.buy("2", limit="90")
    assert refusal(desk, order, **fields) == (422, 42210000, "order parameters are not changed")


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"limit_price": "90.123"}, (422, 42210000, "invalid limit_price 90.123. sub-penny increment")),
        ({"stop_price": "80"}, (422, 42210000, "limit orders require no stop price")),
        ({"qty": "0"}, (422, 42210000, "qty must be > 0")),
        ({"qty": "1000"}, (403, 40310000, "insufficient buying power")),
        ({"limit_price": "95", "client_order_id": "taken"}, (422, 40010001, "client_order_id must be unique")),
        ({"limit_price": "95.123"}, (422, 42210000, "invalid limit_price 95.123. sub-penny")),
    ],
)
def test_a_refused_replacement_leaves_the_order_open(desk: Desk, fields: dict[str, Any], answer: Any) -> None:
    order = desk.buy("2", limit="90", client_order_id="taken")
    status, code, message = refusal(desk, order, **fields)
    assert (status, code) == answer[:2]
    assert message.startswith(answer[2])
    assert desk.order(order).status == "new"


def test_the_money_of_the_old_order_pays_for_the_new_one(desk: Desk) -> None:
    order = desk.buy("190", limit="100")  # 19,000 of the buying power of 20,000
    new = change(desk, order, qty="200")
    assert desk.venue.account(KEY).buying_power == 0
    desk.venue.cancel(KEY, new.id)
    assert desk.venue.account(KEY).buying_power == 20_000


def test_the_shares_of_the_old_order_are_there_for_the_new_one(desk: Desk) -> None:
    desk.buy("10")
    desk.step(SPY=100.0)
    order = desk.sell("6", limit="120")
    assert refusal(desk, order, qty="11")[2].startswith("insufficient qty available for order (requested: 11")
    change(desk, order, qty="10")
    assert desk.venue.held_qty(KEY, "SPY") == 10


def test_an_order_that_is_not_open_is_not_replaced(desk: Desk) -> None:
    filled, canceled = desk.buy("1"), desk.buy("1", limit="90")
    desk.venue.cancel(KEY, canceled.id)
    desk.step(SPY=100.0)
    for order in (filled, canceled):
        assert refusal(desk, order, qty="2") == (422, 42210000, "order is not open")
    with pytest.raises(RefusedError) as caught:
        desk.venue.replace(KEY, "no-such-id", Replacement(qty=D(1)))
    assert (caught.value.http_status, caught.value.code) == (404, 40410000)


def test_an_order_that_waits_for_the_session_is_not_replaced() -> None:
    desk = open_desk(is_open=False)
    order = desk.buy("1", limit="90")
    assert refusal(desk, order, qty="2") == (422, 42210000, "cannot replace order in accepted status")


def test_the_rules_of_backtrader_do_not_replace() -> None:
    desk = Desk("backtrader", now_ns=MINUTE_NS)
    order = desk.buy("1", limit="90")
    status, code, message = refusal(desk, order, qty="2")
    assert (status, code) == (422, 42210000)
    assert "cancel the order and submit another" in message


def test_backtrader_has_no_changes_in_flight() -> None:
    with pytest.raises(ConfigError, match="only the rule set alpaca"):
        Desk("backtrader", now_ns=MINUTE_NS, changes_in_flight=True)


# Races


def test_a_replacement_in_flight_takes_effect_after_the_next_slice(slow: Desk) -> None:
    old = slow.buy("1", limit="90", client_order_id="a")
    slow.news()
    new = change(slow, old, limit_price="99", client_order_id="b")
    assert tell(slow) == [("pending_replace", "a", "pending_replace")]
    assert slow.order(new).status == "pending_new"
    # Only the old price was in the market while this bar went by.
    assert tell(slow, slow.step(SPY=(100.0, 100.0, 98.0, 98.0))) == [
        ("replaced", "a", "replaced"),
        ("new", "b", "new"),
    ]
    assert tell(slow, slow.step(SPY=98.0)) == [("fill", "b", "filled")]


def test_a_replacement_that_loses_to_a_fill_is_rejected(slow: Desk) -> None:
    old = slow.buy("1", limit="90", client_order_id="a")
    new = change(slow, old, limit_price="80", client_order_id="b")
    slow.news()
    events = slow.step(SPY=(89.0, 89.0, 88.0, 88.0))
    assert tell(slow, events) == [
        ("fill", "a", "filled"),
        ("order_replace_rejected", "a", "filled"),
        ("rejected", "b", "rejected"),
    ]
    assert (events[-1].code, events[-1].message) == (42210000, "order is not open")
    assert slow.order(new).failed_ns == slow.venue.now_ns
    assert slow.qty() == 1
    assert slow.step(SPY=70.0) == []


def test_a_cancel_in_flight_takes_effect_after_the_next_slice_or_loses_to_a_fill(slow: Desk) -> None:
    resting, hit = slow.buy("1", limit="80", client_order_id="a"), slow.buy("1", limit="90", client_order_id="b")
    slow.news()
    for order in (resting, hit, hit):  # asking twice says nothing new
        slow.venue.cancel(KEY, order.id)
    assert tell(slow) == [("pending_cancel", "a", "pending_cancel"), ("pending_cancel", "b", "pending_cancel")]
    assert tell(slow, slow.step(SPY=85.0)) == [
        ("fill", "b", "filled"),
        ("canceled", "a", "canceled"),
        ("order_cancel_rejected", "b", "filled"),
    ]


def test_while_a_change_is_in_flight_no_other_is_taken(slow: Desk) -> None:
    old, doomed = slow.buy("1", limit="90"), slow.buy("1", limit="80")
    new = change(slow, old, limit_price="91")
    slow.venue.cancel(KEY, doomed.id)
    assert refusal(slow, old, limit_price="92") == (422, 42210000, "cannot replace order in pending_replace status")
    assert refusal(slow, doomed, limit_price="92") == (422, 42210000, "cannot replace order in pending_cancel status")
    assert refusal(slow, new, limit_price="92") == (422, 42210000, "order chain not fully replaced")
    assert slow.cancel_refused(new.id).message == "order chain not fully replaced"
    assert slow.cancel_refused(old.id).message == 'order is already in "pending_replace" state'


def test_while_a_replacement_is_in_flight_the_dearer_of_both_is_held_back(slow: Desk) -> None:
    old = slow.buy("100", limit="90")
    change(slow, old, qty="50")
    assert slow.venue.account(KEY).buying_power == 20_000 - 9000
    slow.step(SPY=100.0)
    assert slow.venue.account(KEY).buying_power == 20_000 - 4500


PRICES = st.sampled_from(["90", "98", "100", "102", "110"])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from(Side), PRICES),
        st.tuples(st.just("replace"), st.integers(0, 9), PRICES),
        st.tuples(st.just("cancel"), st.integers(0, 9), PRICES),
        st.tuples(st.just("step"), st.integers(-8, 8), PRICES),
    ),
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(actions=ACTIONS, in_flight=st.booleans())
def test_whatever_is_changed_every_chain_has_one_open_end_at_most_and_books_agree_with_events(
    actions: list[Any], in_flight: bool
) -> None:
    desk = open_desk(in_flight=in_flight)
    made: list[VenueOrder] = []
    for action, number, price in actions:
        with suppress(RefusedError):
            if action == "submit":
                made.append(desk.venue.submit(KEY, desk.ask(number, "2", "SPY", limit=price)))
            elif action == "step":
                desk.step(SPY=(100.0 + number, 103.0 + number, 97.0 + number, 100.0))
            elif made and action == "replace":
                made.append(change(desk, made[number % len(made)], limit_price=price, qty="3"))
            elif made:
                desk.venue.cancel(KEY, made[number % len(made)].id)
        assert desk.venue.account(KEY).buying_power >= 0
    for _ in range(2):
        desk.step(IBM=100.0)  # nothing is in flight any more
    orders = {order.id: order for order in desk.venue.orders(KEY)}
    last_told = {event.order.id: event.order.status for event in desk.events}
    assert {order.id: order.status for order in orders.values()} == last_told
    for order in orders.values():
        before, after = chain(order)
        assert (order.status == "replaced") == bool(after)
        assert order.status in ("new", "filled", "canceled", "replaced", "rejected")
        if after:
            assert chain(orders[after])[0] == order.id
            assert order.filled_qty == 0
        if before and orders[before].status != "replaced":
            assert order.status == "rejected"
    signs = {Side.BUY: 1, Side.SELL: -1}
    assert desk.qty() == sum(order.filled_qty * signs[order.side] for order in orders.values())
