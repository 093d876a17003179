"""Matching `ticks`: orders against recorded quotes and trades, in parts; bars where a slice has none."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.clock import DAY_NS, MINUTE_NS, SECOND_NS
from dry_work.errors import ConfigError
from dry_work.exchange.tick_matcher import fingerprint_ticks
from dry_work.feeds.recorded_ticks import TickKind, TickRecording, TickTable
from dry_work.orders.model import OrderClass, OrderType, Side, StopLoss, TimeInForce, TradeEvent

from .venue_desk import KEY, Desk

D = Decimal
START_NS = 1_770_000_000 * SECOND_NS // MINUTE_NS * MINUTE_NS  # sizes are shares then

# seconds since the start, then bid, bid size, ask, ask size; or price and size
Quotes = list[tuple[float, float, float, float, float]]
Trades = list[tuple[float, float, float]]


def build_ticks(
    quotes: Quotes | None = None, trades: Trades | None = None, *, symbol: str = "SPY", start_ns: int = START_NS
) -> TickRecording:
    tables: dict[tuple[TickKind, str], TickTable] = {}
    kinds: tuple[tuple[TickKind, Any, tuple[str, ...]], ...] = (
        ("quotes", quotes, ("bid_price", "bid_size", "ask_price", "ask_size")),
        ("trades", trades, ("price", "size")),
    )
    for kind, rows, names in kinds:
        if rows is not None:
            columns = np.array(rows, dtype=float).reshape(len(rows), len(names) + 1).T
            times = start_ns + (columns[0] * SECOND_NS).astype(np.int64)
            tables[kind, symbol] = TickTable(times, dict(zip(names, columns[1:], strict=True)), {})
    return TickRecording(tables)


def open_desk(ticks: TickRecording, *, start_ns: int = START_NS, **options: Any) -> Desk:
    """A desk at `start_ns`, SPY at 100 and BTC/USD at 1,000."""
    desk = Desk(
        "alpaca",
        cash="100000",
        now_ns=start_ns - MINUTE_NS,
        session_close_ns=lambda now_ns: start_ns + 2 * MINUTE_NS,
        **{"matching": "ticks", "ticks": ticks, **options},
    )
    desk.step(SPY=100.0, BTC=1000.0)
    return desk


def fills(events: list[TradeEvent], *, start_ns: int = START_NS) -> list[tuple[Decimal | None, Decimal | None, float]]:
    """Return quantity, price and time in seconds of each fill."""
    return [(e.qty, e.price, (e.ts_event_ns - start_ns) / SECOND_NS) for e in events if e.execution_id]


def test_a_market_order_takes_what_each_quote_offers() -> None:
    desk = open_desk(build_ticks([(5, 99, 10, 100, 3), (6, 99, 10, 101, 4), (7, 99, 10, 102, 100)]))
    desk.buy("10")
    assert fills(desk.step(SPY=500.0)) == [(D(3), D(100), 5), (D(4), D(101), 6), (D(3), D(102), 7)]


def test_the_quote_that_stands_is_taken_at_once_but_not_one_of_another_session() -> None:
    desk = open_desk(build_ticks([(-1, 99, 10, 100, 50), (30, 99, 10, 105, 50)]))
    desk.buy("10")
    assert fills(desk.step(SPY=500.0)) == [(D(10), D(100), 0)]
    old = open_desk(build_ticks([(-3601, 99, 10, 100, 50), (30, 99, 10, 105, 50)]))
    old.buy("10")
    assert fills(old.step(SPY=500.0)) == [(D(10), D(105), 30)]


def test_orders_of_an_account_share_a_quote_in_the_order_of_their_time() -> None:
    desk = open_desk(build_ticks([(5, 99, 10, 100, 5), (6, 99, 10, 100, 5)]))
    first, second = desk.buy("4", limit="100"), desk.buy("4", limit="101")
    events = [event for event in desk.step(SPY=500.0) if event.execution_id]
    assert [(event.order.id, event.qty) for event in events] == [(first.id, D(4)), (second.id, D(1)), (second.id, D(3))]


def test_a_limit_order_waits_for_a_quote_or_a_trade_at_its_price() -> None:
    ticks = build_ticks([(5, 99, 10, 102, 5), (40, 99, 10, 100.5, 2)], [(10, 101.5, 9), (20, 101, 3), (30, 100.9, 4)])
    desk = open_desk(ticks)
    desk.buy("10", limit="101")
    # resting, it gets its own price from trades, and a better one from a quote
    assert fills(desk.step(SPY=500.0)) == [(D(3), D(101), 20), (D(4), D(101), 30), (D(2), D("100.5"), 40)]


def test_a_stop_is_triggered_by_a_trade_and_takes_from_the_quote() -> None:
    ticks = build_ticks([(5, 99.5, 4, 100, 5), (20, 97, 50, 98, 5)], [(6, 98.5, 1), (10, 98, 1)])
    desk = open_desk(ticks)
    desk.venue._books[KEY].account.book("SPY", D(10), D(100), D(-1000))
    desk.sell("10", stop="98")
    assert fills(desk.step(SPY=500.0)) == [(D(4), D("99.5"), 10), (D(6), D(97), 20)]


def test_a_buy_stop_keeps_to_its_collar() -> None:
    ticks = build_ticks([(5, 99, 4, 100, 5), (12, 99, 4, 104, 50), (20, 99, 4, 103, 50)], [(6, 101, 1)])
    desk = open_desk(ticks)
    desk.buy("10", stop="101")  # no more than 103.525
    assert fills(desk.step(SPY=500.0)) == [(D(5), D(100), 6), (D(5), D(103), 20)]


def test_a_trailing_stop_follows_every_trade() -> None:
    ticks = build_ticks([(1, 99, 90, 100, 90)], [(5, 103, 1), (10, 101.5, 1), (15, 105, 1), (20, 103, 1)])
    desk = open_desk(ticks)
    desk.venue._books[KEY].account.book("SPY", D(10), D(100), D(-1000))
    order = desk.sell("10", type=OrderType.TRAILING_STOP, trail_price=D(2))
    assert fills(desk.step(SPY=500.0)) == [(D(10), D(99), 20)]
    assert (desk.order(order).hwm, desk.order(order).stop_price) == (D(105), D(103))


@pytest.mark.parametrize(
    ("time_in_force", "events", "filled"),
    [(TimeInForce.IOC, ["partial_fill", "canceled"], D(3)), (TimeInForce.FOK, ["canceled"], D(0))],
)
def test_an_immediate_order_is_at_its_end_with_the_first_quote(
    time_in_force: TimeInForce, events: list[str], filled: Decimal
) -> None:
    desk = open_desk(build_ticks([(5, 99, 10, 100, 3), (6, 99, 10, 100, 40)]))
    order = desk.buy("10", time_in_force=time_in_force)
    desk.news()
    assert [event.event for event in desk.step(SPY=500.0)] == events
    assert desk.order(order).filled_qty == filled


def test_without_quotes_market_orders_take_from_trades() -> None:
    desk = open_desk(build_ticks(None, [(5, 100, 3), (6, 101, 40)]))
    desk.buy("10")
    desk.buy("2", limit="100")
    assert fills(desk.step(SPY=500.0)) == [(D(3), D(100), 5), (D(7), D(101), 6)]


def test_exits_are_live_from_the_tick_behind_the_fill_of_their_entry() -> None:
    ticks = build_ticks([(1, 99, 90, 100, 4), (10, 110, 90, 111, 4), (20, 111, 90, 112, 90), (30, 112, 90, 113, 1)])
    desk = open_desk(ticks)
    entry = desk.buy("10", order_class=OrderClass.BRACKET, take_profit=D(111), stop_loss=StopLoss(D(95)))
    told = [(event.order.id, event.event) for event in desk.step(SPY=500.0)][4:]
    profit, stop = entry.legs
    assert told == [
        (entry.id, "partial_fill"), (entry.id, "partial_fill"), (entry.id, "fill"), (profit.id, "new"),
        (profit.id, "fill"), (stop.id, "canceled"),
    ]  # fmt: skip
    assert fills(desk.events)[-1] == (D(10), D(112), 30)


def test_a_day_order_expires_between_two_ticks() -> None:
    desk = open_desk(build_ticks([(5, 99, 1, 102, 5), (119, 99, 1, 102, 5), (121, 99, 1, 100, 5)]))
    order = desk.buy("1", limit="100", day=True)
    desk.move(START_NS + 3 * MINUTE_NS)
    assert (desk.order(order).status, fills(desk.events)) == ("expired", [])


def test_a_slice_without_ticks_is_matched_against_its_bar_with_its_volume() -> None:
    desk = open_desk(build_ticks([(65, 99, 10, 100, 3)]))
    desk.buy("3")
    assert fills(desk.step(SPY=90.0)) == [(D(1), D(90), 60)]  # the bar's one share
    assert fills(desk.step(SPY=90.0)) == [(D(2), D(100), 65)]


def test_sizes_of_old_stock_quotes_are_round_lots() -> None:
    start_ns = START_NS - 200 * DAY_NS
    desk = open_desk(build_ticks([(5, 99, 1, 100, 3)], start_ns=start_ns), start_ns=start_ns)
    desk.buy("350")
    assert fills(desk.step(SPY=500.0), start_ns=start_ns) == [(D(300), D(100), 5)]


def test_crypto_has_parts_of_coins() -> None:
    desk = open_desk(build_ticks([(5, 999, 1, 1000, 0.25)], symbol="BTC/USD"))
    desk.buy("1", "BTC/USD")
    assert fills(desk.step(BTC=1000.0)) == [(D("0.25"), D(1000), 5)]


def test_only_the_rule_set_alpaca_knows_ticks_and_other_ticks_are_another_exchange() -> None:
    with pytest.raises(ConfigError, match="only the rule set alpaca matches orders against ticks"):
        Desk("backtrader", now_ns=START_NS, matching="ticks")
    one, other = build_ticks([(5, 99, 1, 100, 3)]), build_ticks([(5, 99, 1, 100, 4)])
    assert fingerprint_ticks(one) == fingerprint_ticks(build_ticks([(5, 99, 1, 100, 3)])) != fingerprint_ticks(other)


quote = st.tuples(st.integers(0, 110), st.integers(95, 105), st.integers(0, 9), st.integers(96, 106), st.integers(0, 9))


@settings(max_examples=150, deadline=None)
@given(
    quotes=st.lists(quote, max_size=12),
    trades=st.lists(st.tuples(st.integers(0, 110), st.integers(95, 106), st.integers(1, 9)), max_size=12),
    asked=st.lists(
        st.tuples(st.booleans(), st.integers(1, 20), st.integers(94, 106) | st.none(), st.sampled_from(TimeInForce)),
        max_size=6,
    ),
)
def test_nothing_fills_beyond_its_limit_or_beyond_what_was_offered(quotes: Any, trades: Any, asked: list[Any]) -> None:
    ticks = build_ticks(sorted(quotes), sorted(trades))
    desk = open_desk(ticks, refuse_wash_trades=False)
    for buys, qty, limit, time_in_force in asked:
        if time_in_force in (TimeInForce.OPG, TimeInForce.CLS):
            time_in_force = TimeInForce.GTC
        place = desk.buy if buys else desk.sell
        place(str(qty), limit=None if limit is None else str(limit), time_in_force=time_in_force)
    events = [*desk.step(), *desk.step()]
    for event in events:
        if event.price is not None and event.order.limit_price is not None:
            is_buy = event.order.side is Side.BUY
            assert event.price <= event.order.limit_price if is_buy else event.price >= event.order.limit_price
        if event.event == "fill" and event.order.time_in_force is TimeInForce.FOK:
            assert event.qty == event.order.qty
    for side, size in ((Side.BUY, 4), (Side.SELL, 2)):
        taken = sum((e.qty or D(0) for e in events if e.order.side is side), D(0))
        # the quote that stands at the second minute's start offers once more
        offered = 2 * sum(row[size] for row in quotes) + sum(row[2] for row in trades)
        assert taken <= offered
