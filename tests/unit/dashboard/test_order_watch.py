"""What the dashboard says that fills have earned is what the strategy's orders say."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import backtrader as bt
import pytest

from dry_work.broker.order_objects import ID_FACT, build_order
from dry_work.broker.paper import AlpacaPaperTradingBroker
from dry_work.broker.tickets import execute_order
from dry_work.clock import ManualClock
from dry_work.dashboard.board import Board
from dry_work.dashboard.latency import StageTimes
from dry_work.dashboard.order_watch import ACKNOWLEDGED, FILLED, OrderWatch
from dry_work.dashboard.snapshot import Head, RunFacts
from dry_work.orders.books import Fill, PositionChange
from dry_work.orders.model import Side

CALL = "SPY240621C00550000"
START_NS = 1_718_112_600_000_000_000


class Data:
    """A data without a bar yet."""

    def __init__(self, symbol: str) -> None:
        self.symbol = self._name = symbol

    def __len__(self) -> int:
        return 0


def sell(data: Data, *, bought_at: str, sold_at: str) -> Any:
    """Return the order that has sold two of what was bought, filled as the broker fills it."""
    broker: Any = AlpacaPaperTradingBroker
    comminfo = broker(api_key="k", secret_key="s").getcommissioninfo(data)
    given = {"size": 2, "price": None, "pricelimit": None, "exectype": bt.Order.Market, "trailamount": None}
    order, _ = build_order(
        bt.SellOrder, comminfo, None, {ID_FACT: "a"}, data=data, owner=None, trailpercent=None, **given
    )
    fill = Fill(
        execution_id="e",
        client_order_id="a",
        symbol=data.symbol,
        side=Side.SELL,
        qty=Decimal(2),
        price=Decimal(sold_at),
        ts_event_ns=START_NS,
    )
    change = PositionChange(
        fill=fill,
        qty_before=Decimal(2),
        price_before=Decimal(bought_at),
        qty_after=Decimal(0),
        price_after=Decimal(0),
        closed=Decimal(-2),
        opened=Decimal(0),
    )
    execute_order(order, change, comminfo)
    order.completed()
    return order.clone()  # as strategies are given it


@pytest.mark.parametrize(("symbol", "gain"), [("SPY", 1.0), (CALL, 100.0)])
def test_a_gain_is_counted_as_the_order_counts_it(symbol: str, gain: float) -> None:
    order = sell(Data(symbol), bought_at="5.00", sold_at="5.50")
    assert order.executed.pnl == pytest.approx(gain)
    board = Board(Head(seq=1, run=RunFacts(agent="a.py:A", mode="paper", symbols=1)), [symbol])
    watch = OrderWatch(board, StageTimes((ACKNOWLEDGED, FILLED)), clock=ManualClock(START_NS), own_time=True)
    assert watch.note(order) == symbol
    assert watch.realised == pytest.approx(gain)
    assert watch.realised_by == pytest.approx({symbol: gain})
