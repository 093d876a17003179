"""One test for every way in which a bar fills an order or does not."""

from __future__ import annotations

from decimal import Decimal

import pytest

from dry_work.exchange.matching import (
    BarPrices,
    Match,
    build_bar_prices,
    build_money,
    match_limit,
    match_order,
    match_stop,
    match_stop_limit,
)
from dry_work.market.messages import Bar
from dry_work.orders.model import OrderType, Side, TimeInForce, VenueOrder

BUY, SELL = Side.BUY, Side.SELL


def bar(open_: str, high: str, low: str, close: str) -> BarPrices:
    prices = (Decimal(text) for text in (open_, high, low, close))
    opened, highest, lowest, closed = prices
    return BarPrices(open=opened, high=highest, low=lowest, close=closed, start_ns=0, end_ns=60)


BAR = bar("100", "102", "98", "101")


@pytest.mark.parametrize(
    ("side", "limit", "price"),
    [
        pytest.param(BUY, "100.5", "100", id="buy, open below the limit: at the better open"),
        pytest.param(BUY, "100", "100", id="buy, open at the limit"),
        pytest.param(BUY, "99", "99", id="buy, bar falls to the limit"),
        pytest.param(BUY, "98", "98", id="buy, low touches the limit"),
        pytest.param(BUY, "97.99", None, id="buy, bar stays above the limit"),
        pytest.param(SELL, "99.5", "100", id="sell, open above the limit: at the better open"),
        pytest.param(SELL, "100", "100", id="sell, open at the limit"),
        pytest.param(SELL, "101.5", "101.5", id="sell, bar rises to the limit"),
        pytest.param(SELL, "102", "102", id="sell, high touches the limit"),
        pytest.param(SELL, "102.01", None, id="sell, bar stays below the limit"),
    ],
)
def test_a_limit_order_fills_at_its_price_or_better(side: Side, limit: str, price: str | None) -> None:
    assert match_limit(side, Decimal(limit), BAR) == (None if price is None else Decimal(price))


@pytest.mark.parametrize(
    ("side", "stop", "price"),
    [
        pytest.param(BUY, "99", "100", id="buy, gap over the stop: at the worse open"),
        pytest.param(BUY, "100", "100", id="buy, open at the stop"),
        pytest.param(BUY, "101.5", "101.5", id="buy, bar rises to the stop"),
        pytest.param(BUY, "102", "102", id="buy, high touches the stop"),
        pytest.param(BUY, "102.01", None, id="buy, bar stays below the stop"),
        pytest.param(SELL, "101", "100", id="sell, gap under the stop: at the worse open"),
        pytest.param(SELL, "100", "100", id="sell, open at the stop"),
        pytest.param(SELL, "98.5", "98.5", id="sell, bar falls to the stop"),
        pytest.param(SELL, "98", "98", id="sell, low touches the stop"),
        pytest.param(SELL, "97.99", None, id="sell, bar stays above the stop"),
    ],
)
def test_a_stop_order_fills_at_its_price_or_worse(side: Side, stop: str, price: str | None) -> None:
    assert match_stop(side, Decimal(stop), BAR) == (None if price is None else Decimal(price))


RISING = bar("100", "103", "98", "102")
FALLING = bar("101", "103", "98", "99")
FLAT = bar("100", "103", "98", "100")


@pytest.mark.parametrize(
    ("side", "stop", "limit", "prices", "price", "triggered"),
    [
        pytest.param(BUY, "99", "100.5", RISING, "100", True, id="buy, gap, limit above the open"),
        pytest.param(BUY, "99", "98.5", RISING, "98.5", True, id="buy, gap, bar falls back to the limit"),
        pytest.param(BUY, "99", "97", RISING, None, True, id="buy, gap, limit out of reach"),
        pytest.param(BUY, "104", "105", RISING, None, False, id="buy, stop not reached"),
        pytest.param(BUY, "102", "102.5", FALLING, "102", True, id="buy, falling bar, limit above the stop"),
        pytest.param(BUY, "102", "100", FALLING, "100", True, id="buy, falling bar came back to the limit"),
        pytest.param(BUY, "102", "98.5", FALLING, None, True, id="buy, falling bar closed above the limit"),
        pytest.param(BUY, "102", "102", RISING, "102", True, id="buy, rising bar, limit at the stop"),
        pytest.param(BUY, "102", "100", RISING, None, True, id="buy, rising bar proves nothing below the stop"),
        pytest.param(BUY, "102", "101", FLAT, None, True, id="buy, a flat bar counts as rising"),
        pytest.param(SELL, "101", "99.5", RISING, "100", True, id="sell, gap, limit below the open"),
        pytest.param(SELL, "101", "102.5", RISING, "102.5", True, id="sell, gap, bar rises back to the limit"),
        pytest.param(SELL, "101", "104", RISING, None, True, id="sell, gap, limit out of reach"),
        pytest.param(SELL, "97", "96", RISING, None, False, id="sell, stop not reached"),
        pytest.param(SELL, "99", "98.5", RISING, "99", True, id="sell, rising bar, limit below the stop"),
        pytest.param(SELL, "99", "101", RISING, "101", True, id="sell, rising bar came back to the limit"),
        pytest.param(SELL, "99", "102.5", RISING, None, True, id="sell, rising bar closed below the limit"),
        pytest.param(SELL, "99", "99", FALLING, "99", True, id="sell, falling bar, limit at the stop"),
        pytest.param(SELL, "99", "100", FALLING, None, True, id="sell, falling bar proves nothing above the stop"),
        pytest.param(SELL, "99", "100", FLAT, "100", True, id="sell, a flat bar counts as rising"),
    ],
)
def test_a_stop_limit_order_needs_its_trigger_first(
    side: Side, stop: str, limit: str, prices: BarPrices, price: str | None, triggered: bool
) -> None:
    match = match_stop_limit(side, Decimal(stop), Decimal(limit), prices)
    assert match == Match(None if price is None else Decimal(price), triggered)


def build_order(kind: OrderType, *, limit: str | None = None, stop: str | None = None) -> VenueOrder:
    return VenueOrder(
        id="o-1",
        client_order_id="c-1",
        symbol="SPY",
        side=Side.BUY,
        type=kind,
        time_in_force=TimeInForce.GTC,
        status="new",
        qty=Decimal(1),
        limit_price=None if limit is None else Decimal(limit),
        stop_price=None if stop is None else Decimal(stop),
    )


def test_a_market_order_fills_at_the_open() -> None:
    assert match_order(build_order(OrderType.MARKET), BAR) == Match(Decimal(100))


def test_each_type_is_matched_by_its_own_rule() -> None:
    assert match_order(build_order(OrderType.LIMIT, limit="99"), BAR) == Match(Decimal(99))
    assert match_order(build_order(OrderType.STOP, stop="101.5"), BAR) == Match(Decimal("101.5"))
    assert match_order(build_order(OrderType.STOP_LIMIT, stop="101", limit="99"), BAR) == Match(None, triggered=True)


def test_a_triggered_stop_limit_order_is_a_limit_order() -> None:
    order = build_order(OrderType.STOP_LIMIT, stop="150", limit="99")
    assert match_order(order, BAR) == Match(None)
    assert match_order(order, BAR, triggered=True) == Match(Decimal(99), triggered=True)


def test_an_order_without_its_price_is_named() -> None:
    with pytest.raises(ValueError, match="order o-1 is a limit order without its price"):
        match_order(build_order(OrderType.LIMIT), BAR)


def test_money_is_the_shortest_decimal_of_the_float() -> None:
    assert build_money(0.1) == Decimal("0.1")
    assert build_money(0.1 + 0.2) == Decimal("0.30000000000000004")
    assert build_money(100) == Decimal(100)


def test_bar_prices_keep_the_times_of_the_bar() -> None:
    found = build_bar_prices(
        Bar(symbol="SPY", ts_event_ns=60, length_ns=60, open=1.1, high=1.3, low=1.0, close=1.2, volume=5)
    )
    assert (found.open, found.high, found.low, found.close) == tuple(map(Decimal, ("1.1", "1.3", "1.0", "1.2")))
    assert (found.start_ns, found.end_ns) == (60, 120)
