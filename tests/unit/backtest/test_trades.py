from __future__ import annotations

import math
from typing import Any

import backtrader as bt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.backtest.trades import Trade, build_trades
from dry_work.clock import MINUTE_NS
from dry_work.wire.pubsub import encode_time

from .results import MONDAY_NS, fill, recording_of


def fills_of(*rows: tuple[str, float, float], commission: float = 0.0) -> list[dict[str, Any]]:
    return [
        fill(MONDAY_NS + number * MINUTE_NS, side, qty, price, commission=commission)
        for number, (side, qty, price) in enumerate(rows)
    ]


def test_a_round_trip_earns_the_difference_less_its_costs() -> None:
    [trade] = build_trades(fills_of(("buy", 10, 100.0), ("sell", 10, 103.0), commission=1.0))
    assert (trade.number, trade.direction, trade.qty, trade.open_qty) == (1, "long", 10, 0)
    assert (trade.entry_price, trade.exit_price) == (100.0, 103.0)
    assert (trade.gross_pnl, trade.commission, trade.pnl) == (30.0, 2.0, 28.0)
    assert trade.return_share == pytest.approx(0.028)
    assert trade.holding_ns == MINUTE_NS
    assert not trade.is_open
    assert [each.is_entry for each in trade.executions] == [True, False]


def test_a_short_sale_earns_when_the_price_falls() -> None:
    [trade] = build_trades(fills_of(("sell", 10, 100.0), ("buy", 10, 97.0)))
    assert (trade.direction, trade.pnl) == ("short", 30.0)


def test_partial_exits_are_measured_against_the_average_cost() -> None:
    [trade] = build_trades(fills_of(("buy", 10, 100.0), ("buy", 30, 104.0), ("sell", 20, 105.0)), {"SPY": 106.0})
    assert trade.is_open
    assert trade.gross_pnl == pytest.approx(20 * (105 - 103))  # the average, where FIFO would say 5 * 10 + 1 * 10
    assert trade.open_pnl == pytest.approx(20 * (106 - 103))
    assert (trade.qty, trade.open_qty, trade.entry_price, trade.exit_price) == (40, 20, 103.0, 105.0)
    assert trade.holding_ns is None


def test_parts_added_after_a_partial_exit_change_the_average() -> None:
    rows = [("buy", 10, 100.0), ("sell", 5, 110.0), ("buy", 5, 120.0), ("sell", 10, 115.0)]
    [trade] = build_trades(fills_of(*rows))
    assert trade.pnl == pytest.approx(5 * 10 + 10 * (115 - 110))
    assert not trade.is_open


def test_a_fill_that_turns_a_position_round_ends_one_trade_and_begins_the_next() -> None:
    first, second = build_trades(fills_of(("buy", 10, 100.0), ("sell", 15, 103.0), ("buy", 5, 101.0), commission=3.0))
    assert (first.direction, first.qty, first.commission) == ("long", 10, 3.0 + 2.0)
    assert (second.direction, second.qty, second.commission) == ("short", 5, 1.0 + 3.0)
    assert (first.gross_pnl, second.gross_pnl) == (30.0, 10.0)
    assert first.exit_ns == second.entry_ns


def test_what_rounding_leaves_of_a_position_is_nothing() -> None:
    rows = [("buy", 0.1, 100.0), ("buy", 0.2, 100.0), ("sell", 0.3, 101.0), ("buy", 1.0, 100.0), ("sell", 1.0, 99.0)]
    trades = build_trades(fills_of(*rows))
    assert [trade.is_open for trade in trades] == [False, False]
    assert [trade.direction for trade in trades] == ["long", "long"]


def test_an_open_trade_without_a_known_price_has_no_open_result() -> None:
    [trade] = build_trades(fills_of(("buy", 1, 100.0)))
    assert (trade.is_open, trade.open_pnl, trade.exit_price, trade.exit_ns) == (True, None, None, None)


def test_trades_of_several_symbols_stand_in_order_of_entry() -> None:
    rows = [("SPY", "buy"), ("BTC/USD", "sell"), ("BTC/USD", "buy"), ("SPY", "sell"), ("IBM", "buy")]
    fills = [fill(MONDAY_NS + i, side, 1, 10.0, symbol) for i, (symbol, side) in enumerate(rows)]
    trades = build_trades(fills)
    assert [(trade.number, trade.symbol) for trade in trades] == [(1, "SPY"), (2, "BTC/USD"), (3, "IBM")]


def test_a_fill_without_commission_costs_nothing() -> None:
    fills = fills_of(("buy", 1, 100.0), ("sell", 1, 101.0))
    for each in fills:
        del each["commission"]
    assert build_trades(fills)[0].commission == 0.0


FILLS = st.lists(
    st.tuples(
        st.sampled_from(["SPY", "IBM"]), st.sampled_from(["buy", "sell"]), st.integers(1, 50), st.integers(1, 500),
        st.integers(0, 3),
    ),
    max_size=40,
)  # fmt: skip


@given(FILLS)
def test_all_trades_together_account_for_the_money(rows: list[tuple[str, str, int, int, int]]) -> None:
    fills = [
        fill(MONDAY_NS + i, side, float(qty), float(price), symbol, float(commission))
        for i, (symbol, side, qty, price, commission) in enumerate(rows)
    ]
    marks = {"SPY": 100.0, "IBM": 50.0}
    trades = build_trades(fills, marks)
    value = 0.0
    for each in fills:
        sign = 1 if each["side"] == "buy" else -1
        value += sign * each["qty"] * (marks[each["symbol"]] - each["price"]) - each["commission"]
    assert math.fsum(trade.pnl + (trade.open_pnl or 0.0) for trade in trades) == pytest.approx(value, abs=1e-6)
    assert sum(len(trade.executions) for trade in trades) >= len(fills)
    assert all((trade.open_qty > 0) == trade.is_open for trade in trades)


class Gambler(bt.Strategy):
    """Buys, adds, sells parts and turns round at random."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(5)
        self.fills: list[dict[str, Any]] = []
        self.closed: list[Any] = []

    def next(self) -> None:
        if self.rng.random() < 0.5:
            size = int(self.rng.integers(1, 5))
            likely = 0.25 if self.position.size > 0 else 0.75  # back to flat and beyond, again and again
            (self.buy if self.rng.random() < likely else self.sell)(size=size)

    def notify_order(self, order: Any) -> None:
        if order.status == order.Completed:
            at = encode_time(MONDAY_NS + len(self.fills) * MINUTE_NS)
            side = "buy" if order.isbuy() else "sell"
            done = order.executed
            self.fills.append(
                {"time": at, "symbol": "SPY", "side": side, "qty": abs(done.size), "price": done.price,
                 "commission": done.comm}
            )  # fmt: skip

    def notify_trade(self, trade: Any) -> None:
        if trade.isclosed:
            self.closed.append(trade)


def test_trades_are_those_that_backtrader_tells() -> None:
    rng = np.random.default_rng(2)
    recording = recording_of({"SPY": np.round(100 * np.exp(np.cumsum(rng.normal(0, 0.01, 600))), 2).tolist()})
    columns = recording.columns("SPY")
    frame = pd.DataFrame({name: columns[name] for name in ("open", "high", "low", "close", "volume")})
    frame.index = pd.to_datetime(columns["ts_event_ns"])
    cerebro = bt.Cerebro(stdstats=False)
    cerebro.adddata(bt.feeds.PandasData(dataname=frame))
    cerebro.addstrategy(Gambler)
    cerebro.broker.setcash(1e9)
    cerebro.broker.setcommission(commission=0.001)
    [strategy] = cerebro.run()
    ours: list[Trade] = [trade for trade in build_trades(strategy.fills) if not trade.is_open]
    assert len(ours) == len(strategy.closed) > 20
    for trade, theirs in zip(ours, strategy.closed, strict=True):
        assert trade.gross_pnl == pytest.approx(theirs.pnl, abs=1e-6)
        assert trade.pnl == pytest.approx(theirs.pnlcomm, abs=1e-6)
        assert (trade.direction == "long") == theirs.long
