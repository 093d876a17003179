"""ioc and fok under the rule set `alpaca`: what the opening of the next bar gives, and nothing else."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.clock import MINUTE_NS
from dry_work.market.messages import Bar
from dry_work.orders.model import Side, TimeInForce, TradeEvent

from .venue_desk import KEY, Desk, tell

D = Decimal
IOC, FOK = TimeInForce.IOC, TimeInForce.FOK
BTC = "BTC/USD"


def open_desk() -> Desk:
    """A desk in an open session, SPY at 100 and BTC/USD at 1,000."""
    desk = Desk("alpaca", cash="10000", now_ns=MINUTE_NS)
    desk.step(SPY=100.0, BTC=1000.0)
    return desk


@pytest.fixture
def desk() -> Desk:
    return open_desk()


def trade(
    desk: Desk, prices: tuple[float, float, float, float], volume: float, symbol: str = "SPY"
) -> list[TradeEvent]:
    """Advance by a minute with one bar of `volume`; return the new events."""
    start_ns = desk.venue.now_ns
    names = dict(zip(("open", "high", "low", "close"), prices, strict=True))
    bar = Bar(symbol=symbol, ts_event_ns=start_ns, volume=volume, **names)
    desk.venue.advance(bar.end_ns, [bar])
    return desk.news()


@pytest.mark.parametrize("time_in_force", [IOC, FOK])
def test_a_market_order_fills_at_the_next_open(desk: Desk, time_in_force: TimeInForce) -> None:
    desk.buy("10", time_in_force=time_in_force)
    desk.news()
    (fill,) = trade(desk, (101.0, 103.0, 99.0, 102.0), 10.0)
    assert (fill.event, fill.price, fill.qty) == ("fill", D(101), D(10))


def test_ioc_takes_the_bars_volume_and_cancels_the_rest(desk: Desk) -> None:
    order = desk.buy("10", limit="101", time_in_force=IOC)
    desk.news()
    fill, canceled = trade(desk, (100.5, 103.0, 99.0, 102.0), 4.7)
    assert (fill.event, fill.price, fill.qty, fill.position_qty) == ("partial_fill", D("100.5"), D(4), D(4))
    assert (canceled.event, canceled.order.status, canceled.order.filled_qty) == ("canceled", "canceled", D(4))
    assert desk.order(order).canceled_ns == desk.venue.now_ns
    assert desk.venue.held_qty(KEY, "SPY") == 0
    assert desk.cash == D(10_000) - 4 * D("100.5")


def test_fok_takes_all_or_nothing(desk: Desk) -> None:
    desk.buy("10", limit="101", time_in_force=FOK)
    desk.news()
    assert tell(trade(desk, (100.5, 103.0, 99.0, 102.0), 9.0)) == [("canceled", "canceled")]
    assert desk.cash == 10_000


@pytest.mark.parametrize("time_in_force", [IOC, FOK])
@pytest.mark.parametrize(("side", "limit"), [(Side.BUY, "100"), (Side.SELL, "102")])
def test_a_limit_that_the_open_does_not_meet_is_canceled_even_when_the_bar_reaches_it(
    desk: Desk, time_in_force: TimeInForce, side: Side, limit: str
) -> None:
    desk.venue.submit(KEY, desk.ask(side, "1", "SPY", limit=limit, time_in_force=time_in_force))
    desk.news()
    assert tell(trade(desk, (101.0, 103.0, 99.0, 101.0), 100.0)) == [("canceled", "canceled")]


def test_a_bar_without_volume_gives_all(desk: Desk) -> None:
    desk.buy("3", BTC, time_in_force=IOC)
    desk.news()
    assert tell(trade(desk, (1000.0,) * 4, 0.0, BTC)) == [("fill", "filled")]


def test_a_coin_is_taken_in_fractions(desk: Desk) -> None:
    desk.buy("3", BTC, time_in_force=IOC)
    desk.news()
    fill, _ = trade(desk, (1000.0,) * 4, 0.25, BTC)
    assert (fill.event, fill.qty) == ("partial_fill", D("0.25"))


def test_the_order_waits_for_the_next_bar_of_its_own_symbol(desk: Desk) -> None:
    desk.buy("1", time_in_force=IOC)
    desk.news()
    assert trade(desk, (1000.0,) * 4, 5.0, BTC) == []
    assert tell(trade(desk, (100.0,) * 4, 5.0)) == [("fill", "filled")]


def test_the_stop_of_a_coins_stop_limit_order_is_waited_for_then_its_limit_is_immediate(desk: Desk) -> None:
    for limit, expected in (("1060", "fill"), ("1040", "canceled")):
        desk.buy("1", BTC, stop="1050", limit=limit, time_in_force=IOC)
        desk.news()
        assert trade(desk, (1000.0, 1010.0, 990.0, 1000.0), 5.0, BTC) == []
        assert desk_names(trade(desk, (1020.0, 1060.0, 1015.0, 1055.0), 5.0, BTC)) == [expected]


def desk_names(events: list[TradeEvent]) -> list[str]:
    return [event.event for event in events]


@pytest.mark.parametrize(
    ("symbol", "fields", "message"),
    [
        ("SPY", {"stop": "101"}, "time_in_force ioc is not allowed for stop orders: expected day or gtc"),
        ("SPY", {"stop": "101", "limit": "102"}, "time_in_force ioc is not allowed for stop_limit orders"),
        ("SPY", {"qty": D("1.5")}, "fractional orders must be DAY orders"),
        (BTC, {"time_in_force": FOK}, "invalid crypto time_in_force"),
    ],
)
def test_what_alpaca_does_not_offer_is_refused(desk: Desk, symbol: str, fields: dict[str, Any], message: str) -> None:
    desk.news()
    error = desk.refused(Side.BUY, "1", symbol, **{"time_in_force": IOC, **fields})
    assert (error.http_status, error.code) == (422, 42210000)
    assert error.message.startswith(message)


@pytest.mark.parametrize("time_in_force", [IOC, FOK])
def test_the_rules_of_backtrader_do_not_know_immediate_orders(time_in_force: TimeInForce) -> None:
    error = Desk("backtrader", now_ns=MINUTE_NS).refused(Side.BUY, "1", time_in_force=time_in_force)
    assert (error.http_status, error.code) == (422, 42210000)
    assert error.message.startswith(f"time_in_force {time_in_force} of market orders is not offered by this exchange")


@settings(max_examples=200, deadline=None)
@given(
    time_in_force=st.sampled_from([IOC, FOK]),
    qty=st.integers(1, 20),
    volume=st.integers(1, 20),
    limit=st.sampled_from([None, "99", "100", "101"]),
)
def test_an_immediate_order_is_at_its_end_after_one_bar_and_never_takes_more_than_was_there(
    time_in_force: TimeInForce, qty: int, volume: int, limit: str | None
) -> None:
    desk = open_desk()
    order = desk.buy(str(qty), limit=limit, time_in_force=time_in_force)
    trade(desk, (100.0, 102.0, 98.0, 101.0), float(volume))
    after = desk.order(order)
    assert after.status in ("filled", "canceled")
    offered = volume if limit is None or D(limit) >= 100 else 0
    expected = min(qty, offered)
    if time_in_force is FOK and expected < qty:
        expected = 0
    assert after.filled_qty == expected
    assert desk.qty() == expected
