"""What a strategy collects is bounded, and what it and its analyzers are told stays the same."""

from __future__ import annotations

from typing import Any

import backtrader as bt
import pytest

from dry_work.engine import bounds
from dry_work.engine.live import LiveCerebro
from dry_work.feeds.base import LiveFeed
from dry_work.wakeup import Wakeup

from .sources import ListSource, make_bar, slices_of

MINUTES = 700


class Flips(bt.Strategy):
    """Opens and closes in turn, on trade ids of its own; one trade stays open from the second bar on."""

    params = (("ids", 3),)

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def next(self) -> None:
        number = len(self)
        if number == 2:
            self.buy(self.datas[1], size=5, tradeid=-1)
        if number % 4 == 1:
            self.buy(size=1, tradeid=number // 4 % self.p.ids)
        elif number % 4 == 3:
            self.sell(size=1, tradeid=number // 4 % self.p.ids)
        if number == MINUTES - 4:
            self.sell(self.datas[1], size=5, tradeid=-1)

    def notify_order(self, order: Any) -> None:
        self.heard.append((order.ref, order.status, order.executed.price))

    def notify_trade(self, trade: Any) -> None:
        self.heard.append((trade.tradeid, trade.status, trade.pnl, trade.barlen))


def run(**params: Any) -> tuple[Any, list[Any], dict[str, Any]]:
    bars = [make_bar(name, minute, 50.0 + (minute * 7) % 11) for minute in range(MINUTES) for name in ("AAA", "BBB")]
    cerebro = LiveCerebro(source=ListSource(slices_of(bars)), wakeup=Wakeup())
    for name in ("AAA", "BBB"):
        cerebro.adddata(LiveFeed(symbol=name), name=name)
    cerebro.addstrategy(Flips, **params)
    cerebro.addanalyzer(bt.analyzers.TradeAnalyzer, _name="trades")
    cerebro.addanalyzer(bt.analyzers.DrawDown, _name="drawdown")
    strat = cerebro.run()[0]
    first = min(what[0] for what in strat.heard if len(what) == 3)
    heard = [(what[0] - first, *what[1:]) if len(what) == 3 else what for what in strat.heard]
    return strat, heard, {name: strat.analyzers.getbyname(name).get_analysis() for name in ("trades", "drawdown")}


@pytest.mark.parametrize("ids", [3, 1000])
def test_orders_and_trades_are_let_go_of_while_all_that_is_told_stays(
    ids: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected, totals = run(ids=ids)
    monkeypatch.setattr(bounds, "KEPT_NOTIFICATIONS", 10)
    monkeypatch.setattr(bounds, "KEPT_TRADES", 2)
    monkeypatch.setattr(bounds, "KEPT_TRADE_IDS", 4)
    strat, heard, found = run(ids=ids)
    assert heard == expected
    assert found == totals
    assert found["trades"].total.closed > 150
    newest = bounds.LOOK_EVERY * 2
    assert len(strat._orders) <= 10 + newest < len(whole._orders)
    for by_id in strat._trades.values():
        assert len(by_id) <= 4 + newest
        assert all(len(trades) <= 2 + newest for trades in by_id.values())
    assert strat._trades[strat.datas[1]][-1][-1].isclosed
