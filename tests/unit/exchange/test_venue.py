"""Order life, rule set `backtrader`, and what both rule sets share."""

from __future__ import annotations

import uuid
from decimal import Decimal

import pytest

from dry_work.clock import DAY_NS, HOUR_NS, MINUTE_NS
from dry_work.errors import ConfigError
from dry_work.exchange.venue import RefusedError, Venue
from dry_work.orders.model import OrderType, Side, TimeInForce

from .venue_desk import KEY, Desk, make_bar, tell

D = Decimal
START_NS = 20_000 * DAY_NS + 14 * HOUR_NS


@pytest.fixture
def desk() -> Desk:
    desk = Desk("backtrader", now_ns=START_NS)
    desk.step(SPY=100.0, IBM=50.0)
    return desk


# The life of an order


def test_an_order_is_pending_until_the_next_slice_then_new_and_filled_at_the_open(desk: Desk) -> None:
    order = desk.buy("10")
    assert (order.status, order.filled_qty, desk.news()) == ("pending_new", 0, [])
    events = desk.step(SPY=(101.0, 103.0, 99.0, 102.0))
    assert tell(events) == [("new", "new"), ("fill", "filled")]
    fill = events[-1]
    assert (fill.price, fill.qty, fill.position_qty) == (D(101), D(10), D(10))
    assert fill.ts_event_ns == desk.venue.now_ns
    found = desk.order(order)
    assert (found.filled_qty, found.filled_avg_price, found.filled_ns) == (D(10), D(101), desk.venue.now_ns)
    assert (found.created_ns, found.submitted_ns) == (START_NS + MINUTE_NS, START_NS + MINUTE_NS)
    assert (desk.cash, desk.qty()) == (D(8990), D(10))


def test_an_order_waits_for_a_bar_of_its_own_symbol(desk: Desk) -> None:
    desk.buy("1", "IBM")
    assert tell(desk.step(SPY=100.0)) == [("new", "new")]
    assert desk.step(SPY=101.0) == []
    assert tell(desk.step(IBM=51.0)) == [("fill", "filled")]


def test_a_limit_order_never_sees_the_bar_it_was_made_after(desk: Desk) -> None:
    desk.buy("1", limit="100")  # the last bar was at 100
    assert tell(desk.step(IBM=50.0)) == [("new", "new")]
    assert tell(desk.step(IBM=50.0)) == []
    assert tell(desk.step(SPY=100.5)) == []
    assert tell(desk.step(SPY=100.0)) == [("fill", "filled")]


def test_orders_are_tried_in_the_order_of_their_submission(desk: Desk) -> None:
    first = desk.buy("1", limit="90")
    second = desk.sell("1")
    third = desk.buy("1", limit="95")
    desk.step(SPY=100.0)
    assert desk.order(second).status == "filled"
    fills = desk.step(SPY=80.0)
    assert [event.order.id for event in fills] == [first.id, third.id]


def test_a_flip_from_long_to_short_is_one_fill(desk: Desk) -> None:
    desk.buy("10")
    desk.step(SPY=100.0)
    desk.sell("25")
    events = desk.step(SPY=110.0)
    assert tell(events) == [("new", "new"), ("fill", "filled")]
    assert (events[-1].qty, events[-1].position_qty) == (D(25), D(-15))
    assert desk.cash == 10_000 - 1000 + 2750
    (position,) = desk.venue.positions(KEY)
    assert (position.qty, position.avg_entry_price) == (D(-15), D(110))


def test_fractions_of_shares_trade(desk: Desk) -> None:
    desk.buy("0.125")
    desk.buy("0.3", "IBM")
    desk.step(SPY=100.0, IBM=50.0)
    desk.sell("0.1", "IBM")
    desk.sell("0.2", "IBM")
    desk.step(SPY=100.0, IBM=50.0)
    assert (desk.qty(), desk.qty("IBM"), desk.cash) == (D("0.125"), D(0), D("9987.5"))


# Funds


def test_an_order_that_costs_more_than_the_cash_is_rejected_at_the_next_slice(desk: Desk) -> None:
    order = desk.buy("101")
    (event,) = desk.step(IBM=50.0)
    assert (event.event, event.order.status, event.code) == ("rejected", "rejected", 40310000)
    assert event.message == event.order.reject_reason == "insufficient buying power"
    assert (event.order.id, event.order.failed_ns) == (order.id, desk.venue.now_ns)
    assert desk.step(SPY=1.0) == []


@pytest.mark.parametrize(
    ("asked", "passes"),
    [
        ({}, True),  # 100 shares at the last close are all the cash
        ({"limit": "100"}, True),
        ({"limit": "100.01"}, False),
        ({"stop": "100.01"}, False),
        ({"stop": "99", "limit": "150"}, True),  # of a stop-limit order the stop price counts
        ({"stop": "100.01", "limit": "50"}, False),
    ],
)
def test_the_check_takes_the_close_the_limit_or_the_stop_price(desk: Desk, asked: dict[str, str], passes: bool) -> None:
    desk.buy("100", **asked)
    assert tell(desk.step(IBM=50.0)) == ([("new", "new")] if passes else [("rejected", "rejected")])


def test_cash_gone_at_execution_rejects_the_order_then(desk: Desk) -> None:
    first, second = desk.buy("60"), desk.buy("40")
    events = desk.step(SPY=101.0)
    assert tell(events) == [("new", "new"), ("new", "new"), ("fill", "filled"), ("rejected", "rejected")]
    assert [event.order.id for event in events[2:]] == [first.id, second.id]
    assert (events[3].code, events[3].ts_event_ns) == (40310000, desk.venue.now_ns)


def test_the_part_of_a_flip_that_cannot_be_paid_is_rejected_after_the_rest_has_filled(desk: Desk) -> None:
    desk.sell("100")
    desk.step(SPY=100.0)
    order = desk.buy("200")
    events = desk.step(SPY=101.0)
    assert tell(events) == [("new", "new"), ("partial_fill", "partially_filled"), ("rejected", "rejected")]
    assert (events[1].qty, events[1].position_qty) == (D(100), D(0))
    found = desk.order(order)
    assert (found.status, found.filled_qty, found.filled_avg_price) == ("rejected", D(100), D(101))
    assert found.filled_ns is None
    assert desk.cash == 20_000 - 10_100


def test_without_a_price_so_far_the_check_at_execution_decides() -> None:
    desk = Desk("backtrader", now_ns=START_NS)
    desk.buy("100")
    desk.buy("1", "IBM")
    assert tell(desk.step(SPY=101.0)) == [("new", "new"), ("new", "new"), ("rejected", "rejected")]
    assert tell(desk.step(IBM=50.0)) == [("fill", "filled")]


# Cancel


def test_a_cancel_takes_effect_at_once(desk: Desk) -> None:
    order = desk.buy("1", limit="90")
    desk.step(SPY=100.0)
    desk.venue.cancel(KEY, order.id)
    (event,) = desk.news()
    assert (event.event, event.order.status, event.ts_event_ns) == ("canceled", "canceled", desk.venue.now_ns)
    assert desk.order(order).canceled_ns == desk.venue.now_ns
    assert desk.step(SPY=80.0) == []


def test_a_cancel_in_the_slice_of_the_submission_is_refused(desk: Desk) -> None:
    order = desk.buy("1", limit="90")
    error = desk.cancel_refused(order.id)
    assert (error.http_status, error.code) == (422, 42210000)
    assert error.message == 'order is in "pending_new" state and cannot be canceled before the next bar'
    assert tell(desk.step(SPY=80.0)) == [("new", "new"), ("fill", "filled")]


def test_a_cancel_of_a_filled_order_is_refused(desk: Desk) -> None:
    order = desk.buy("1")
    desk.step(SPY=100.0)
    error = desk.cancel_refused(order.id)
    assert (error.http_status, error.code) == (422, 42210000)
    assert error.body() == {"code": 42210000, "message": 'order is already in "filled" state'}


def test_a_second_cancel_changes_nothing(desk: Desk) -> None:
    order = desk.buy("1", limit="90")
    desk.step(SPY=100.0)
    desk.venue.cancel(KEY, order.id)
    desk.news()
    desk.venue.cancel(KEY, order.id)
    assert desk.news() == []


def test_a_cancel_of_an_unknown_order_is_refused(desk: Desk) -> None:
    error = desk.cancel_refused("no-such-order")
    assert (error.http_status, error.code, error.message) == (404, 40410000, "order not found for no-such-order")


def test_cancel_all_tells_for_each_open_order_what_became_of_it(desk: Desk) -> None:
    filled = desk.buy("1")
    open_ones = [desk.buy("1", limit="90"), desk.sell("1", stop="80")]
    desk.step(SPY=100.0)
    fresh = desk.buy("1", limit="70")
    desk.news()
    results = desk.venue.cancel_all(KEY)
    assert results[:2] == [(order.id, 200, None) for order in open_ones]
    order_id, status, body = results[2]
    assert (order_id, status) == (fresh.id, 422)
    assert body is not None
    assert body["code"] == 42210000
    assert len(results) == 3
    assert desk.names() == ["canceled", "canceled"]
    assert desk.order(filled).status == "filled"


# Day orders


def test_a_day_order_expires_with_the_first_bar_of_its_symbol_on_another_utc_day(desk: Desk) -> None:
    order = desk.buy("1", limit="90", day=True)
    midnight = START_NS // DAY_NS * DAY_NS + DAY_NS
    assert tell(desk.move(midnight - MINUTE_NS, SPY=100.0)) == [("new", "new")]
    assert desk.move(midnight + MINUTE_NS, IBM=50.0) == []
    (event,) = desk.move(midnight + HOUR_NS, SPY=80.0)
    assert (event.event, event.order.status, event.order.expired_ns) == ("expired", "expired", desk.venue.now_ns)
    assert desk.order(order).filled_qty == 0


def test_the_bar_that_ends_at_midnight_is_of_the_next_day(desk: Desk) -> None:
    desk.buy("1", limit="90", day=True)
    midnight = START_NS // DAY_NS * DAY_NS + DAY_NS
    assert tell(desk.move(midnight, SPY=80.0)) == [("new", "new"), ("expired", "expired")]


def test_the_day_of_an_order_is_that_of_its_symbols_last_bar(desk: Desk) -> None:
    midnight = START_NS // DAY_NS * DAY_NS + DAY_NS
    desk.move(midnight + HOUR_NS, IBM=50.0)
    desk.buy("1", limit="90", day=True)  # the last bar of SPY was yesterday
    desk.buy("1", "IBM", limit="40", day=True)
    desk.step(IBM=50.0)
    assert tell(desk.step(SPY=80.0, IBM=40.0))[-2:] == [("expired", "expired"), ("fill", "filled")]


def test_a_market_order_does_not_expire(desk: Desk) -> None:
    desk.buy("1", day=True)
    desk.step(IBM=50.0)
    assert tell(desk.move(START_NS + 3 * DAY_NS, SPY=80.0)) == [("fill", "filled")]


def test_a_gtc_order_stays_for_days(desk: Desk) -> None:
    desk.buy("1", limit="90")
    assert tell(desk.move(START_NS + 9 * DAY_NS, SPY=80.0)) == [("new", "new"), ("fill", "filled")]


# Stop-limit orders


def test_a_triggered_stop_limit_order_is_tried_again_when_another_symbol_ticks(desk: Desk) -> None:
    order = desk.buy("1", stop="101", limit="100.5")
    assert tell(desk.step(SPY=(100.0, 102.0, 99.0, 101.5))) == [("new", "new")]
    bar_end_ns = desk.venue.now_ns
    (event,) = desk.step(IBM=50.0)
    assert (event.event, event.price, event.ts_event_ns) == ("fill", D(100), bar_end_ns)
    assert desk.order(order).filled_ns == bar_end_ns
    assert desk.order(order).updated_ns == desk.venue.now_ns


# Identity


def test_events_carry_ids_that_sort_and_are_the_same_in_every_run() -> None:
    def run() -> list[tuple[str, str, str]]:
        desk = Desk("backtrader", now_ns=START_NS)
        desk.step(SPY=100.0)
        for _ in range(3):
            desk.buy("1")
            desk.sell("1", limit="100.5")
            desk.step(SPY=(100.0, 101.0, 99.0, 100.0))
        assert desk.venue.last_event_id == desk.events[-1].event_id
        return [(event.event_id, event.order.id, event.execution_id) for event in desk.events]

    told = run()
    ids = [event_id for event_id, _, _ in told]
    assert ids == sorted(set(ids))
    assert all(uuid.UUID(order_id) for _, order_id, _ in told)
    executions = [execution for _, _, execution in told if execution]
    assert len(set(executions)) == len(executions) == 6
    assert run() == told


def test_no_event_means_no_event_id() -> None:
    assert Desk("backtrader", now_ns=START_NS).venue.last_event_id == ""


def test_orders_are_found_by_either_id_and_listed_oldest_first(desk: Desk) -> None:
    first, second = desk.buy("1", client_order_id="mine"), desk.buy("2", client_order_id="")
    assert desk.venue.order_by_client_id(KEY, "mine") == first
    assert desk.venue.order_by_client_id(KEY, "other") is None
    assert desk.venue.order(KEY, "other") is None
    assert desk.venue.orders(KEY) == [first, second]
    assert uuid.UUID(second.client_order_id)


def test_a_client_order_id_is_used_once_for_ever(desk: Desk) -> None:
    desk.buy("1", client_order_id="mine")
    desk.step(SPY=100.0)
    desk.news()
    error = desk.refused(Side.BUY, "1", client_order_id="mine")
    assert (error.http_status, error.code, error.message) == (422, 40010001, "client_order_id must be unique")


def test_accounts_do_not_see_each_other(desk: Desk) -> None:
    desk.venue.open_account("other", cash=D(500))
    order = desk.buy("1", client_order_id="mine")
    other = desk.venue.submit("other", desk.ask(Side.BUY, "1", "SPY", client_order_id="mine"))
    assert order.id != other.id
    assert desk.venue.order("other", order.id) is None
    desk.step(SPY=100.0)
    assert desk.cash == 9900
    account = desk.venue.account("other")
    assert (account.cash, account.equity, account.buying_power) == (D(400), D(500), D(400))
    assert account.id != desk.venue.account(KEY).id
    with pytest.raises(RefusedError, match="order not found"):
        desk.venue.cancel("other", order.id)


# Account and positions


def test_the_account_counts_positions_at_their_last_close(desk: Desk) -> None:
    desk.buy("10")
    desk.step(SPY=(100.0, 120.0, 100.0, 120.0))
    account = desk.venue.account(KEY)
    assert (account.cash, account.equity, account.buying_power) == (D(9000), D(10_200), D(9000))
    assert desk.venue.last_price("SPY") == 120
    assert desk.venue.last_price("BTC/USD") is None
    assert (desk.venue.multiplier(KEY), desk.venue.non_marginable_buying_power(KEY)) == (1, D(9000))


def test_nothing_is_held_back(desk: Desk) -> None:
    desk.buy("10")
    desk.step(SPY=100.0)
    desk.sell("10", limit="200")
    desk.step(SPY=100.0)
    assert desk.venue.held_qty(KEY, "SPY") == 0
    desk.sell("10")
    assert tell(desk.step(SPY=100.0)) == [("new", "new"), ("fill", "filled")]


@pytest.mark.parametrize(
    ("held", "amount", "side", "qty"),
    [
        ("10", {}, Side.SELL, "10"),
        ("-10", {}, Side.BUY, "10"),
        ("10", {"qty": D("2.5")}, Side.SELL, "2.5"),
        ("10", {"percentage": D(25)}, Side.SELL, "2.5"),
        ("0.3", {"percentage": D(100)}, Side.SELL, "0.3"),
        ("-1", {"percentage": D("33.3333333333")}, Side.BUY, "0.333333333"),
    ],
)
def test_closing_a_position_is_an_opposite_market_order(
    desk: Desk, held: str, amount: dict[str, Decimal], side: Side, qty: str
) -> None:
    desk.buy(held) if D(held) > 0 else desk.sell(held[1:])
    desk.step(SPY=100.0)
    order = desk.venue.close_position(KEY, "SPY", **amount)
    assert (order.side, order.type, order.qty) == (side, OrderType.MARKET, D(qty))
    assert (order.time_in_force, order.symbol) == (TimeInForce.DAY, "SPY")
    desk.step(SPY=100.0)
    assert desk.qty() == D(held) + (D(qty) if side is Side.BUY else -D(qty))


def test_closing_crypto_is_a_gtc_order(desk: Desk) -> None:
    desk.buy("0.5", "BTC/USD")
    desk.step(BTC=1000.0)
    order = desk.venue.close_position(KEY, "BTC/USD", client_order_id="out")
    assert (order.time_in_force, order.client_order_id) == (TimeInForce.GTC, "out")


@pytest.mark.parametrize(
    ("symbol", "amount", "answer"),
    [
        ("IBM", {}, (404, 40410000, "position not found: IBM")),
        ("BTC/USD", {}, (404, 40410000, "position not found: BTCUSD")),
        ("SPY", {"qty": D(1), "percentage": D(1)}, (422, 40010001, "only one of qty or percentage is accepted")),
        ("SPY", {"percentage": D(0)}, (422, 40010001, "percentage must be above 0 and no more than 100")),
        ("SPY", {"percentage": D("NaN")}, (422, 40010001, "percentage must be above 0 and no more than 100")),
        ("SPY", {"qty": D(-1)}, (422, 42210000, "qty must be > 0")),
        ("SPY", {"qty": D(11)}, (403, 40310000, "insufficient qty available for order (requested: 11, available: 10)")),
    ],
)
def test_a_position_that_cannot_be_closed_so_is_refused(
    desk: Desk, symbol: str, amount: dict[str, Decimal], answer: tuple[int, int, str]
) -> None:
    desk.buy("10")
    desk.step(SPY=100.0)
    with pytest.raises(RefusedError) as caught:
        desk.venue.close_position(KEY, symbol, **amount)
    assert (caught.value.http_status, caught.value.code, caught.value.message) == answer


# Misuse


def test_time_only_moves_forward(desk: Desk) -> None:
    with pytest.raises(ValueError, match="expected a later time"):
        desk.move(desk.venue.now_ns)


def test_bars_end_with_their_slice_and_are_of_an_asset(desk: Desk) -> None:
    now_ns = desk.venue.now_ns
    with pytest.raises(ValueError, match="a bar of SPY ends at"):
        desk.venue.advance(now_ns + 2 * MINUTE_NS, [make_bar("SPY", now_ns + MINUTE_NS, 1.0)])
    with pytest.raises(ValueError, match="a bar of TSLA, which is not among"):
        desk.venue.advance(now_ns + MINUTE_NS, [make_bar("TSLA", now_ns + MINUTE_NS, 1.0)])


@pytest.mark.parametrize("cash", ["-1", "NaN", "Infinity"])
def test_an_account_opens_with_a_sum_of_money(desk: Desk, cash: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot open with {cash} dollars: expected 0 or more"):
        desk.venue.open_account("other", cash=D(cash))


def test_a_key_has_one_account(desk: Desk) -> None:
    with pytest.raises(ConfigError, match="has an account already"):
        desk.venue.open_account(KEY, cash=D(1))


def test_an_unknown_rule_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="no rule set 'nyse': expected backtrader or alpaca"):
        Venue(
            rules="nyse",  # type: ignore[arg-type]
            assets=[],
            emit=lambda key_id, event: None,
            now_ns=0,
            is_open=lambda now_ns: True,
            session_close_ns=lambda now_ns: now_ns,
        )
