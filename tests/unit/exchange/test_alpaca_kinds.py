"""Orders for the opening and the close, by value, and old gtc orders, under the rule set `alpaca`; real calendar."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from dry_work.clock import DAY_NS, MINUTE_NS
from dry_work.market.messages import Bar
from dry_work.orders.model import OrderClass, OrderType, Side, StopLoss, TimeInForce, TradeEvent
from dry_work.orders.rules import TABLE, Asset, check_order

from .test_alpaca_rules import at, open_desk
from .venue_desk import KEY, Desk

D = Decimal
BUY, SELL = Side.BUY, Side.SELL
OPG, CLS = TimeInForce.OPG, TimeInForce.CLS
BTC = "BTC/USD"


def short(events: list[TradeEvent]) -> list[tuple[str, Decimal | None]]:
    return [(event.event, event.price) for event in events]


# Opening and close


@pytest.mark.parametrize(
    ("hour", "time_in_force", "taken"),
    [
        ("09:27", OPG, True), ("09:28", OPG, False), ("12:00", OPG, False), ("18:59", OPG, False), ("19:00", OPG, True),
        ("09:28", CLS, True), ("15:49", CLS, True), ("15:50", CLS, False), ("18:59", CLS, False), ("19:00", CLS, True),
    ],
)  # fmt: skip
def test_orders_for_an_auction_are_taken_at_their_hours(hour: str, time_in_force: TimeInForce, taken: bool) -> None:
    desk = open_desk(f"2024-06-11 {hour}")
    if taken:
        desk.buy("1", time_in_force=time_in_force)
    else:
        error = desk.refused(BUY, "1", time_in_force=time_in_force)
        assert (error.http_status, error.code) == (422, 42210000)
        assert error.message.startswith(f"{time_in_force} orders are not accepted between")


def test_an_opening_order_trades_at_the_next_open_or_not_at_all() -> None:
    desk = open_desk("2024-06-11 08:00")
    at_market, below, above = (desk.buy("1", limit=limit, time_in_force=OPG) for limit in (None, "101", "103"))
    desk.news()
    assert desk.move(at("2024-06-11 09:00"), SPY=99.0) == []
    events = desk.move(at("2024-06-11 09:31"), SPY=(102.0, 104.0, 100.0, 103.0))
    assert short(events) == [
        ("new", None), ("fill", D(102)), ("new", None), ("canceled", None), ("new", None), ("fill", D(102)),
    ]  # fmt: skip
    assert [desk.order(order).status for order in (at_market, below, above)] == ["filled", "canceled", "filled"]


def test_a_closing_order_trades_at_the_last_price_of_the_session_or_not_at_all() -> None:
    desk = open_desk("2024-06-11 12:00")
    orders = [desk.buy("1", limit=limit, time_in_force=CLS) for limit in (None, "101", "103")]
    desk.news()
    assert desk.move(at("2024-06-11 15:59"), SPY=(90.0, 120.0, 90.0, 102.0)) == []
    events = desk.move(at("2024-06-11 16:00"), IBM=100.0)
    assert short(events) == [("fill", D(102)), ("canceled", None), ("fill", D(102))]
    assert events[0].ts_event_ns == at("2024-06-11 16:00")
    assert [desk.order(order).status for order in orders] == ["filled", "canceled", "filled"]


def test_a_closing_order_of_a_silent_symbol_has_the_price_of_before() -> None:
    desk = open_desk("2024-06-11 15:45")
    desk.buy("1", time_in_force=CLS)
    desk.news()
    assert short(desk.move(at("2024-06-11 16:05"), IBM=100.0)) == [("fill", D(100))]
    early = open_desk("2024-06-11 08:00")
    early.buy("1", time_in_force=CLS)
    early.news()
    assert [event.event for event in early.move(at("2024-06-11 16:05"), SPY=100.0)] == ["canceled"]


def test_a_closing_order_of_a_half_day_trades_at_its_early_close() -> None:
    desk = open_desk("2024-07-03 10:00")
    desk.buy("1", time_in_force=CLS)
    desk.move(at("2024-07-03 12:59"), SPY=101.0)
    desk.news()
    assert short(desk.move(at("2024-07-03 13:00"), SPY=102.0)) == [("fill", D(102))]


def test_a_gtc_order_of_a_stock_ends_after_ninety_days() -> None:
    desk = open_desk("2024-06-11 12:00")
    stock, coin = desk.buy("1", limit="50"), desk.buy("1", BTC, limit="500")
    desk.move(at("2024-06-11 12:00") + 90 * DAY_NS - MINUTE_NS, SPY=100.0, BTC=1000.0)
    assert desk.order(stock).status == "new"
    desk.step(SPY=100.0, BTC=1000.0)
    assert (desk.order(stock).status, desk.order(coin).status) == ("expired", "new")


# By value


def test_a_value_is_held_back_until_it_buys() -> None:
    desk = open_desk(cash="1000")  # a cash account
    order = desk.buy(None, notional=D("333.33"), day=True)
    assert desk.venue.account(KEY).buying_power == D("666.67")
    desk.news()
    assert desk.refused(BUY, None, notional=D(700), day=True).message == "insufficient buying power"
    desk.step(SPY=101.0)
    done = desk.order(order)
    assert (done.status, done.qty, done.filled_qty) == ("filled", None, D("3.300297029"))
    assert desk.qty() == D("3.300297029")


def test_a_value_is_sold_up_to_what_is_there() -> None:
    desk = open_desk()
    desk.buy("1")
    desk.step(SPY=100.0)
    desk.news()
    order = desk.sell(None, notional=D(100), day=True)
    desk.step(SPY=80.0)
    assert (desk.order(order).filled_qty, desk.qty()) == (D(1), D(0))
    assert desk.refused(SELL, None, notional=D(100), day=True).message == "fractional orders cannot be sold short"


def test_a_value_of_coins_pays_its_fee_in_coins() -> None:
    desk = open_desk()
    desk.buy(None, BTC, notional=D(100))
    desk.step(BTC=1000.0)
    assert desk.qty(BTC) == D("0.09975")


@pytest.mark.parametrize(
    ("symbol", "fields", "answer"),
    [
        ("SPY", {"notional": D("10.001"), "day": True}, (422, "notional value must be limited to 2 decimal places")),
        ("SPY", {"notional": D("0.99"), "day": True}, (403, "cost basis must be >= minimal amount of order 1")),
        ("SPY", {"notional": D(10)}, (422, "fractional orders must be DAY orders")),
        (BTC, {"notional": D("9.99")}, (403, "cost basis must be >= minimal amount of order 10")),
    ],
)
def test_values_that_cannot_be_traded_are_refused(symbol: str, fields: dict[str, Any], answer: Any) -> None:
    error = open_desk().refused(BUY, None, symbol, **fields)
    assert (error.http_status, error.message) == answer


def test_an_order_by_value_is_not_replaced() -> None:
    from dry_work.exchange.venue import RefusedError
    from dry_work.orders.model import Replacement

    desk = open_desk()
    order = desk.buy(None, notional=D(100), day=True)
    with pytest.raises(RefusedError, match="notional orders cannot be replaced"):
        desk.venue.replace(KEY, order.id, Replacement(limit_price=D(5)))


def test_the_rules_of_backtrader_buy_by_value_at_market() -> None:
    desk = Desk("backtrader", now_ns=MINUTE_NS)
    desk.step(SPY=100.0)
    desk.buy(None, notional=D(1000))
    desk.step(SPY=125.0)
    assert (desk.qty(), desk.cash) == (D(8), D(9000))


# Volume


def test_orders_of_an_account_share_the_volume_of_a_bar() -> None:
    desk = Desk("alpaca", now_ns=MINUTE_NS, session_close_ns=lambda _: 10**15, matching="volume")
    desk.step(SPY=10.0)
    first, second = desk.buy("5"), desk.buy("5")
    for _ in range(2):
        end_ns = desk.venue.now_ns + MINUTE_NS
        bar = Bar(symbol="SPY", ts_event_ns=desk.venue.now_ns, open=10, high=10, low=10, close=10, volume=7.9)
        desk.venue.advance(end_ns, [bar])
    told = [(event.order.id, event.qty) for event in desk.news() if event.execution_id]
    assert told == [(first.id, D(5)), (second.id, D(2)), (second.id, D(3))]


# The matrix


AMOUNTS: dict[Asset, tuple[str, dict[str, Any]]] = {
    Asset.STOCK: ("SPY", {"qty": D(2)}),
    Asset.FRACTIONAL: ("SPY", {"qty": D("1.5")}),
    Asset.NOTIONAL: ("SPY", {"qty": None, "notional": D(150)}),
    Asset.CRYPTO: (BTC, {"qty": D("0.5")}),
    Asset.CRYPTO_NOTIONAL: (BTC, {"qty": None, "notional": D(150)}),
}
# What the exchange takes and the table of what is sent leaves out: the reference names stops by value for stocks.
WIDER = {
    (Asset.NOTIONAL, OrderType.STOP),
    (Asset.NOTIONAL, OrderType.STOP_LIMIT),
    (Asset.CRYPTO_NOTIONAL, OrderType.STOP_LIMIT),
}


@pytest.mark.parametrize("asset", AMOUNTS)
@pytest.mark.parametrize("order_class", OrderClass)
@pytest.mark.parametrize("kind", OrderType)
@pytest.mark.parametrize("time_in_force", TimeInForce)
def test_the_exchange_takes_what_may_be_sent_and_refuses_the_rest(
    asset: Asset, order_class: OrderClass, kind: OrderType, time_in_force: TimeInForce
) -> None:
    """Two tables, written apart: the one of what a broker sends, and this venue's rules."""
    assert {row_asset for row in TABLE for row_asset in row.assets} == {*AMOUNTS, Asset.OPTION}
    desk = open_desk("2024-06-11 08:00", cash="50000")
    symbol, amount = AMOUNTS[asset]
    price = D(1000) if symbol == BTC else D(100)
    is_oco = order_class is OrderClass.OCO
    if is_oco and kind is not OrderType.LIMIT:
        return  # is no order, whatever is traded
    if is_oco:
        desk.venue._books[KEY].account.book(symbol, D(10), price, -10 * price)
    asked: dict[str, Any] = {"type": kind, "time_in_force": time_in_force, "order_class": order_class, **amount}
    if kind in (OrderType.LIMIT, OrderType.STOP_LIMIT) and not is_oco:
        asked["limit_price"] = price + 3
    if kind in (OrderType.STOP, OrderType.STOP_LIMIT):
        asked["stop_price"] = price + 2
    if kind is OrderType.TRAILING_STOP:
        asked["trail_price"] = D(1)
    if order_class is not OrderClass.SIMPLE:
        asked["take_profit"] = None if order_class is OrderClass.OTO else price + 10
        asked["stop_loss"] = StopLoss(price - 10)
    request = desk.ask(SELL if is_oco else BUY, "1", symbol, **asked)
    if order_class is not OrderClass.SIMPLE and request.qty is None:
        return  # has no shape
    refusal = check_order(request)
    if (asset, kind) in WIDER and order_class is OrderClass.SIMPLE:
        return
    if refusal is None:
        assert desk.venue.submit(KEY, request).status in ("accepted", "pending_new")
    else:
        error = desk.refused(request.side, "1", symbol, **asked)
        assert (error.http_status, error.code) == (422, 42210000), refusal
