"""Rule set `alpaca`: refusals, sessions, reservations, fees. The session calendar is the real one."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.clock import MINUTE_NS, SECOND_NS
from dry_work.exchange.order_rules import encode_decimal
from dry_work.exchange.venue import RefusedError
from dry_work.market.calendar import SessionCalendar
from dry_work.orders.model import OrderClass, OrderType, Side, StopLoss

from .venue_desk import KEY, Desk, tell

D = Decimal
BUY, SELL = Side.BUY, Side.SELL
CALENDAR = SessionCalendar()
BTC = "BTC/USD"
BRACKET = OrderClass.BRACKET


def at(text: str) -> int:
    """Nanoseconds of a New York time."""
    moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("America/New_York"))
    return int(moment.timestamp()) * SECOND_NS


def open_desk(time: str = "2024-06-11 10:00", *, cash: str = "10000", prices: dict[str, float] | None = None) -> Desk:
    """A desk whose last slice ended at `time` with SPY and IBM at 100 and BTC/USD at 1,000."""
    now_ns = at(time)
    desk = Desk(
        "alpaca",
        cash=cash,
        now_ns=now_ns - MINUTE_NS,
        is_open=CALENDAR.is_open,
        session_close_ns=CALENDAR.session_close_ns,
    )
    desk.move(now_ns, **({"SPY": 100.0, "IBM": 100.0, "BTC": 1000.0} if prices is None else prices))
    return desk


@pytest.fixture
def desk() -> Desk:
    return open_desk()


# The life of an order


def test_in_the_session_an_order_is_live_at_once_and_fills_at_the_next_open(desk: Desk) -> None:
    order = desk.buy("10", day=True)
    assert order.status == "pending_new"
    assert tell(desk.news()) == [("pending_new", "pending_new"), ("new", "new")]
    assert desk.order(order).status == "new"
    (fill,) = desk.step(SPY=(101.0, 102.0, 100.0, 100.0))
    assert (fill.event, fill.price, fill.qty, fill.position_qty) == ("fill", D(101), D(10), D(10))
    assert fill.ts_event_ns == desk.venue.now_ns
    assert desk.cash == 10_000 - 1010


def test_outside_the_session_an_order_is_accepted_and_new_at_the_open() -> None:
    desk = open_desk("2024-06-11 08:00")
    order = desk.buy("10", day=True)
    assert order.status == "accepted"
    assert tell(desk.news()) == [("accepted", "accepted")]
    assert desk.move(at("2024-06-11 09:29"), SPY=90.0) == []
    assert tell(desk.move(at("2024-06-11 09:30"), SPY=91.0)) == [("new", "new")]
    assert desk.order(order).submitted_ns == at("2024-06-11 09:30")
    assert desk.order(order).created_ns == at("2024-06-11 08:00")
    (fill,) = desk.move(at("2024-06-11 09:31"), SPY=(92.0, 93.0, 92.0, 93.0))
    assert (fill.event, fill.price) == ("fill", D(92))


def test_the_first_slice_of_the_session_opens_and_fills_when_none_ended_at_the_open() -> None:
    desk = open_desk("2024-06-11 08:00")
    desk.buy("10", day=True)
    desk.news()
    assert tell(desk.move(at("2024-06-11 09:31"), SPY=92.0)) == [("new", "new"), ("fill", "filled")]


def test_crypto_trades_at_night() -> None:
    desk = open_desk("2024-06-09 02:00")  # a Sunday
    desk.buy("1", BTC)
    assert tell(desk.news()) == [("pending_new", "pending_new"), ("new", "new")]
    assert tell(desk.step(BTC=1000.0)) == [("fill", "filled")]


def test_a_resting_stock_order_does_not_see_the_bars_of_extended_hours() -> None:
    desk = open_desk("2024-06-11 15:59")
    desk.buy("1", limit="95")
    desk.news()
    assert desk.move(at("2024-06-11 16:01"), SPY=90.0) == []
    assert desk.move(at("2024-06-12 09:30"), SPY=90.0) == []
    assert tell(desk.move(at("2024-06-12 09:31"), SPY=(94.0, 94.0, 93.0, 93.0))) == [("fill", "filled")]


def test_an_extended_hours_order_fills_in_extended_hours() -> None:
    desk = open_desk("2024-06-11 08:00")
    desk.buy("1", limit="95", day=True, extended_hours=True)
    assert tell(desk.news()) == [("pending_new", "pending_new"), ("new", "new")]
    assert tell(desk.step(SPY=94.0)) == [("fill", "filled")]


def test_a_day_order_expires_at_the_close_after_the_last_bar_had_its_chance() -> None:
    desk = open_desk("2024-06-11 15:58")
    missed = desk.buy("1", limit="90", day=True)
    hit = desk.buy("1", limit="95", day=True)
    desk.move(at("2024-06-11 15:59"), SPY=100.0)
    desk.news()
    events = desk.move(at("2024-06-11 16:00"), SPY=(96.0, 96.0, 94.0, 95.0))
    assert [(event.event, event.order.id) for event in events] == [("expired", missed.id), ("fill", hit.id)]
    assert desk.order(missed).expired_ns == at("2024-06-11 16:00")


def test_a_day_order_of_a_half_day_expires_at_its_early_close() -> None:
    desk = open_desk("2024-07-03 12:58")
    desk.buy("1", limit="90", day=True)
    assert desk.move(at("2024-07-03 12:59"), SPY=100.0)[-1].event == "new"
    assert tell(desk.move(at("2024-07-03 13:00"), IBM=100.0)) == [("expired", "expired")]


def test_a_day_order_does_not_see_a_bar_that_began_after_its_session() -> None:
    desk = open_desk("2024-06-11 15:50")
    desk.buy("1", limit="90", day=True)
    desk.news()
    assert tell(desk.move(at("2024-06-12 09:31"), SPY=80.0)) == [("expired", "expired")]


def test_a_day_order_given_after_the_close_is_for_the_next_session() -> None:
    desk = open_desk("2024-06-11 16:00")
    order = desk.buy("1", limit="90", day=True)
    assert order.status == "accepted"
    desk.move(at("2024-06-11 16:30"), SPY=80.0)
    assert desk.order(order).status == "accepted"
    desk.move(at("2024-06-12 15:59"), SPY=100.0)
    assert desk.order(order).status == "new"
    desk.move(at("2024-06-12 16:00"), SPY=100.0)
    assert desk.order(order).status == "expired"


@pytest.mark.parametrize("given", ["2024-06-11 08:00", "2024-06-11 10:00", "2024-06-11 16:30", "2024-06-10 21:00"])
def test_an_extended_hours_order_lives_to_the_end_of_the_late_session(given: str) -> None:
    desk = open_desk(given)
    order = desk.buy("1", limit="90", day=True, extended_hours=True)
    desk.move(at("2024-06-11 19:59"), SPY=100.0)
    assert desk.order(order).status == "new"
    desk.move(at("2024-06-11 20:00"), SPY=100.0)
    assert desk.order(order).status == "expired"


def test_a_cancel_takes_effect_at_once_also_of_an_order_just_made() -> None:
    desk = open_desk("2024-06-11 08:00")
    order = desk.buy("1", limit="90")
    desk.venue.cancel(KEY, order.id)
    assert desk.names() == ["accepted", "canceled"]
    assert desk.venue.cancel_all(KEY) == []


def test_a_triggered_stop_limit_order_waits_for_the_next_bar_of_its_symbol(desk: Desk) -> None:
    desk.buy("1", stop="101", limit="100.5")
    desk.news()
    assert desk.step(SPY=(100.0, 102.0, 99.0, 101.5)) == []
    assert desk.step(IBM=50.0) == []
    (fill,) = desk.step(SPY=(101.0, 101.0, 100.0, 100.0))
    assert (fill.event, fill.price) == ("fill", D("100.5"))


# Refusals of form


def answer(error: RefusedError) -> tuple[int, int, str]:
    return error.http_status, error.code, error.message


BOTH = [
    ({"type": OrderType.TRAILING_STOP}, 40010001, "trailing_stop orders require either trail_price or trail_percent"),
    (
        {"type": OrderType.TRAILING_STOP, "trail_price": D(1), "trail_percent": D(1)},
        40010001,
        "trailing_stop orders require either",
    ),
    (
        {"type": OrderType.TRAILING_STOP, "trail_price": D(1), "stop_price": D(1)},
        42210000,
        "trailing_stop orders require no stop or limit price",
    ),
    ({"type": OrderType.TRAILING_STOP, "trail_price": D(0)}, 42210000, "trail_price must be > 0"),
    ({"type": OrderType.TRAILING_STOP, "trail_percent": D(100)}, 42210000, "trail_percent must be > 0 and < 100"),
    ({"trail_price": D(1)}, 42210000, "market orders require no trail_price or trail_percent"),
    ({"take_profit": D(1)}, 42210000, "simple orders require no take_profit or stop_loss"),
    ({"order_class": BRACKET, "take_profit": D(1)}, 42210000, "bracket orders require stop_loss.stop_price"),
    ({"order_class": BRACKET, "stop_loss": StopLoss(D(1))}, 42210000, "bracket orders require take_profit.limit_price"),
    ({"order_class": OrderClass.OTO}, 42210000, "oto orders require either take_profit or stop_loss"),
    (
        {"order_class": OrderClass.OCO, "take_profit": D(2), "stop_loss": StopLoss(D(1))},
        42210000,
        "oco orders must be limit orders",
    ),
    (
        {"order_class": BRACKET, "take_profit": D(2), "stop_loss": StopLoss(D(1), D(-1))},
        42210000,
        "take_profit.limit_price, stop_loss.stop_price and stop_loss.limit_price must be > 0",
    ),
    (
        {"order_class": BRACKET, "take_profit": D(2), "stop_loss": StopLoss(D(1)), "qty": None, "notional": D(5)},
        42210000,
        "bracket orders require qty",
    ),
    ({"qty": None, "notional": D(0)}, 42210000, "notional must be > 0"),
    ({"notional": D(10)}, 40010001, "only one of qty or notional is accepted"),
    ({"qty": None}, 40010001, "qty or notional is required"),
    ({"qty": D(0)}, 42210000, "qty must be > 0"),
    ({"qty": D(-1)}, 42210000, "qty must be > 0"),
    ({"qty": D("NaN")}, 42210000, "qty must be > 0"),
    ({"qty": D("Infinity")}, 42210000, "qty must be > 0"),
    ({"qty": D("1E+999999")}, 40010001, "qty, limit price or stop price is out of range"),
    ({"client_order_id": "x" * 129}, 40010001, "client_order_id must be no more than 128 characters"),
    ({"limit_price": D(1)}, 42210000, "market orders require no stop or limit price"),
    ({"stop_price": D(1)}, 42210000, "market orders require no stop or limit price"),
    ({"type": OrderType.LIMIT}, 40010001, "limit orders require limit price"),
    ({"type": OrderType.STOP}, 40010001, "stop orders require stop price"),
    (
        {"type": OrderType.STOP_LIMIT, "stop_price": D(1)},
        40010001,
        "stop limit orders require both stop and limit price",
    ),
    (
        {"type": OrderType.LIMIT, "limit_price": D(1), "stop_price": D(1)},
        42210000,
        "limit orders require no stop price",
    ),
    ({"type": OrderType.STOP, "limit_price": D(1), "stop_price": D(1)}, 42210000, "stop orders require no limit price"),
    ({"type": OrderType.LIMIT, "limit_price": D(0)}, 42210000, "limit price must be > 0"),
    ({"type": OrderType.STOP, "stop_price": D("-1")}, 42210000, "stop price must be > 0"),
    ({"symbol": "TSLA"}, 42210000, 'asset "TSLA" not found'),
]


@pytest.mark.parametrize("rules", ["alpaca", "backtrader"])
@pytest.mark.parametrize(("fields", "code", "message"), BOTH)
def test_both_rule_sets_refuse_what_is_malformed_or_not_offered(
    rules: Any, fields: dict[str, Any], code: int, message: str
) -> None:
    desk = Desk(rules, now_ns=at("2024-06-11 10:00"))
    error = desk.refused(BUY, "1", **fields)
    assert (error.http_status, error.code) == (422, code)
    assert error.message.startswith(message)


STOCKS = [
    ({"qty": D("1.5")}, "fractional orders must be DAY orders"),
    ({"qty": D("1.0123456789"), "day": True}, "qty must have no more than 9 decimal places"),
    ({"extended_hours": True}, "extended hours order must be DAY limit orders"),
    ({"extended_hours": True, "limit": "90"}, "extended hours order must be DAY limit orders"),
    (
        {"limit": "90.123"},
        "invalid limit_price 90.123. sub-penny increment does not fulfill minimum pricing criteria",
    ),
    ({"stop": "90.123"}, "invalid stop_price 90.123. sub-penny increment does not fulfill minimum pricing criteria"),
    (
        {"limit": "0.12345"},
        "invalid limit_price 0.12345. sub-penny increment does not fulfill minimum pricing criteria",
    ),
]
CRYPTO = [
    ({"day": True}, "invalid crypto time_in_force"),
    ({"stop": "900"}, "invalid order type for crypto order: expected market, limit or stop_limit"),
    ({"limit": "900", "extended_hours": True}, "extended hours order must be DAY limit orders"),
    ({"qty": D("0.0000000001")}, "qty must be > 0"),
]
BY_CLASS = [("SPY", *case) for case in STOCKS] + [(BTC, *case) for case in CRYPTO]


@pytest.mark.parametrize(("symbol", "fields", "message"), BY_CLASS)
def test_alpacas_rules_of_the_asset_class_are_refused_there_alone(
    desk: Desk, symbol: str, fields: dict[str, Any], message: str
) -> None:
    assert answer(desk.refused(BUY, "1", symbol, **fields)) == (422, 42210000, message)
    plain = Desk("backtrader", now_ns=at("2024-06-11 10:00"))
    assert plain.buy("1", symbol, **fields).status == "pending_new"


@pytest.mark.parametrize(
    "fields",
    [
        {"limit": "99.99"},
        {"limit": "99.990"},
        {"limit": "0.1234"},
        {"qty": D("1.500"), "day": True},
        {"qty": D("0.123456789"), "day": True},
        {"stop": "101", "limit": "101.5"},
    ],
)
def test_prices_and_quantities_on_the_grid_are_taken(desk: Desk, fields: dict[str, Any]) -> None:
    assert desk.buy("1", **fields).status == "pending_new"


def test_a_crypto_quantity_is_cut_to_nine_places(desk: Desk) -> None:
    assert desk.buy("0.1234567899", BTC).qty == D("0.123456789")


def test_a_client_order_id_is_used_once_but_a_refused_one_stays_free(desk: Desk) -> None:
    desk.refused(BUY, "1000000", client_order_id="mine")
    order = desk.buy("1", client_order_id="mine")
    desk.step(SPY=100.0)
    desk.news()
    assert desk.order(order).status == "filled"
    assert answer(desk.refused(BUY, "1", client_order_id="mine")) == (422, 40010001, "client_order_id must be unique")


# Funds


def test_stocks_may_cost_all_of_the_buying_power_and_no_cent_more(desk: Desk) -> None:
    error = desk.refused(BUY, "201")
    assert answer(error) == (403, 40310000, "insufficient buying power")
    assert error.context == {"buying_power": "20000", "cost_basis": "20100"}
    assert error.body() == {
        "code": 40310000,
        "message": "insufficient buying power",
        "buying_power": "20000",
        "cost_basis": "20100",
    }
    assert answer(desk.refused(BUY, "200", limit="100.01")) == (403, 40310000, "insufficient buying power")
    assert desk.buy("200").status == "pending_new"


def test_open_buys_hold_their_cost_back_until_they_end(desk: Desk) -> None:
    order = desk.buy("100", limit="90")
    assert desk.venue.account(KEY).buying_power == 20_000 - 9000
    desk.news()
    assert desk.refused(BUY, "111").context["buying_power"] == "11000"
    desk.venue.cancel(KEY, order.id)
    assert desk.venue.account(KEY).buying_power == 20_000


def test_crypto_is_bought_with_cash_only(desk: Desk) -> None:
    error = desk.refused(BUY, "10.5", BTC)
    assert answer(error) == (
        403,
        40310000,
        "insufficient balance for USD (requested: 10500, available: 10000)",
    )
    desk.buy("100")  # 10,000 of stocks tie up 5,000 of equity, and all of the cash
    assert desk.venue.non_marginable_buying_power(KEY) == 0
    desk.news()
    assert "available: 0)" in desk.refused(BUY, "1", BTC).message


def test_small_orders_are_refused(desk: Desk) -> None:
    crypto = (403, 40310000, "cost basis must be >= minimal amount of order 10")
    assert answer(desk.refused(BUY, "0.009", BTC)) == crypto
    stock = (403, 40310000, "cost basis must be >= minimal amount of order 1")
    assert answer(desk.refused(BUY, "0.009", day=True)) == stock
    assert desk.buy("0.01", BTC).qty == D("0.01")
    assert desk.buy("1", limit="0.5").qty == 1


def test_an_order_made_before_its_symbol_had_a_price_is_checked_at_its_first_bar() -> None:
    desk = open_desk(prices={})
    dear, cheap = desk.buy("300"), desk.buy("1", BTC)
    desk.news()
    events = desk.step(SPY=100.0, BTC=1000.0)
    assert [(event.event, event.order.id) for event in events] == [("rejected", dear.id), ("fill", cheap.id)]
    assert (events[0].code, events[0].order.reject_reason) == (40310000, "insufficient buying power")


# Quantity at hand, short sales


def hold(desk: Desk, qty: str, symbol: str = "SPY", **bars: float) -> None:
    """Get a position and forget the events."""
    if D(qty) > 0:
        desk.buy(qty, symbol, day=symbol != BTC)
    else:
        desk.sell(qty[1:], symbol)
    desk.step(**(bars or {"SPY": 100.0, "BTC": 1000.0}))
    desk.news()


def test_a_sale_of_more_than_the_position_less_what_is_held_is_refused(desk: Desk) -> None:
    hold(desk, "10")
    error = desk.refused(SELL, "11")
    assert answer(error) == (
        403,
        40310000,
        "insufficient qty available for order (requested: 11, available: 10)",
    )
    desk.sell("6", limit="120")
    desk.news()
    assert desk.venue.held_qty(KEY, "SPY") == 6
    error = desk.refused(SELL, "5")
    assert error.message == "insufficient qty available for order (requested: 5, available: 4)"
    assert error.context == {"symbol": "SPY", "existing_qty": "10", "held_for_orders": "6", "available": "4"}
    desk.sell("4")
    assert desk.step(SPY=100.0)[-1].position_qty == 6


def test_a_canceled_sale_frees_its_shares(desk: Desk) -> None:
    hold(desk, "10")
    order = desk.sell("10", limit="120")
    desk.venue.cancel(KEY, order.id)
    assert desk.venue.held_qty(KEY, "SPY") == 0
    assert desk.sell("10").status == "pending_new"


def test_a_position_held_by_an_open_order_cannot_be_closed(desk: Desk) -> None:
    hold(desk, "10")
    desk.sell("10", limit="120")
    with pytest.raises(RefusedError, match=r"requested: 10, available: 0"):
        desk.venue.close_position(KEY, "SPY")


def test_whole_shares_are_sold_short_within_the_buying_power(desk: Desk) -> None:
    # valued at 3 percent above the last price: 195 shares cost 20,085
    error = desk.refused(SELL, "195")
    assert answer(error) == (403, 40310000, "insufficient buying power")
    assert error.context == {"buying_power": "20000", "cost_basis": "20085"}
    desk.sell("194")
    fill = desk.step(SPY=100.0)[-1]
    assert (fill.position_qty, desk.cash) == (D(-194), D(29_400))


def test_a_fraction_of_a_share_is_not_sold_short(desk: Desk) -> None:
    message = "fractional orders cannot be sold short"
    assert answer(desk.refused(SELL, "1.5", day=True)) == (422, 42210000, message)


def test_a_small_account_may_not_sell_short() -> None:
    desk = open_desk(cash="1999")
    assert answer(desk.refused(SELL, "1")) == (403, 40310000, "account is not allowed to short")


def test_crypto_is_never_sold_short(desk: Desk) -> None:
    error = desk.refused(SELL, "1", BTC)
    assert answer(error) == (403, 40310000, "insufficient balance for BTC (requested: 1, available: 0)")


def test_a_short_position_is_covered_up_to_its_size(desk: Desk) -> None:
    hold(desk, "-10")
    error = desk.refused(BUY, "11")
    assert error.message == "insufficient qty available for order (requested: 11, available: 10)"
    desk.buy("10")
    assert desk.venue.held_qty(KEY, "SPY") == 10
    assert desk.step(SPY=90.0)[-1].position_qty == 0
    assert desk.cash == 10_100


def test_a_purchase_that_covers_holds_no_money_back(desk: Desk) -> None:
    hold(desk, "-100")
    before = desk.venue.account(KEY).buying_power
    desk.buy("100", limit="90")
    assert desk.venue.account(KEY).buying_power == before


# Fees


def test_crypto_pays_25_basis_points_in_what_is_received(desk: Desk) -> None:
    desk.buy("2", BTC)
    (fill,) = [event for event in desk.step(BTC=1000.0) if event.event == "fill"]
    assert (fill.qty, fill.order.filled_qty, fill.position_qty) == (D(2), D(2), D("1.995"))
    assert desk.cash == 8000
    assert "available: 1.995)" in desk.refused(SELL, "2", BTC).message
    order = desk.venue.close_position(KEY, BTC)
    assert order.qty == D("1.995")
    desk.step(BTC=1000.0)
    assert (desk.qty(BTC), desk.cash) == (0, 8000 + D("1995") * D("0.9975"))


def test_stocks_pay_nothing(desk: Desk) -> None:
    hold(desk, "10")
    assert desk.cash == 9000


# Numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [("1E+2", "100"), ("10.50", "10.5"), ("100", "100"), ("0.000", "0"), ("1E-9", "0.000000001"), ("-2.0", "-2")],
)
def test_numbers_are_written_without_exponent_and_zeros(value: str, text: str) -> None:
    assert encode_decimal(D(value)) == text


# Whatever happens

SYMBOLS = st.sampled_from(["SPY", "IBM", BTC])
QUANTITIES = st.sampled_from(["1", "7", "40", "0.5", "3.25"])
PRICES = st.sampled_from(["90", "99.5", "100", "101", "950", "1000", "1050"])
ASKED = st.fixed_dictionaries({}, optional={"limit": PRICES, "stop": PRICES, "day": st.booleans()})
ORDERS = st.lists(st.tuples(st.sampled_from(Side), QUANTITIES, SYMBOLS, ASKED), max_size=4)
MOVES = st.lists(st.tuples(ORDERS, st.integers(-10, 10), st.booleans()), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(moves=MOVES)
def test_money_and_coins_conserve_and_coins_are_never_owed(moves: list[Any]) -> None:
    desk = open_desk("2024-06-11 15:56")
    for orders, percent, cancels in moves:
        for side, qty, symbol, asked in orders:
            with suppress(RefusedError):
                desk.venue.submit(KEY, desk.ask(side, qty, symbol, **asked))
        if cancels:
            assert all(status == 200 for _, status, _ in desk.venue.cancel_all(KEY))
        desk.step(SPY=100.0 + percent, BTC=1000.0 - percent)
        assert desk.qty(BTC) >= 0
        assert desk.venue.account(KEY).buying_power >= 0
    cash, held = D(10_000), {"SPY": D(0), "IBM": D(0), BTC: D(0)}
    for event in desk.events:
        if event.price is None or event.qty is None:
            continue
        symbol, change = event.order.symbol, event.qty if event.order.side is BUY else -event.qty
        rate = D("0.9975") if symbol == BTC else D(1)
        held[symbol] += change * rate if change > 0 else change
        cash -= change * event.price * (D(1) if change > 0 else rate)
    assert desk.cash == cash
    assert {symbol: desk.qty(symbol) for symbol in held} == held
    ids = [event.event_id for event in desk.events]
    assert ids == sorted(set(ids))
