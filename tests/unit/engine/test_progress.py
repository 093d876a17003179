"""Snapshots of a run, taken from stock Backtrader objects."""

from __future__ import annotations

from typing import Any

import backtrader as bt
import pytest

from dry_work.clock import MINUTE_NS, ManualClock
from dry_work.engine.progress import EVENTS_KEPT, Progress, ProgressWatch, describe_order
from dry_work.feeds.base import LiveFeed
from dry_work.market.messages import Bar

START_NS = 1_704_205_800_000_000_000


class Ledger:
    """What the watch asks of our broker, over a stock one."""

    order_count = 3
    startingvalue = 1_000.0
    halted = ""

    def __init__(self, feeds: list[Any]) -> None:
        self.open: list[Any] = []
        self.told: list[Any] = []
        self._positions = {feed.symbol: bt.Position() for feed in feeds}

    def hold(self, feed: Any, size: float, price: float) -> None:
        self._positions[feed.symbol] = bt.Position(size, price)

    def getposition(self, data: Any, clone: bool = True) -> Any:
        return self._positions[data.symbol]

    def get_orders_open(self) -> list[Any]:
        return self.open

    def getcash(self) -> float:
        return 900.0

    def getvalue(self) -> float:
        return 1_010.0

    def get_notification(self) -> Any:
        return self.told.pop(0) if self.told else None


class Engine:
    """The two things that the watch asks of a Cerebro."""

    def __init__(self) -> None:
        self.bars = {"SPY": 1}
        self.callbacks: list[Any] = []

    def adddatacb(self, callback: Any) -> None:
        self.callbacks.append(callback)


class Bench:
    def __init__(self, *, own_time: bool) -> None:
        feed: Any = LiveFeed
        self.feeds = [feed(symbol="SPY"), feed(symbol="BTC/USD")]
        self.clock = ManualClock(START_NS)
        self.shown: list[Progress] = []
        self.ledger = Ledger(self.feeds)
        self.engine = Engine()
        self.watch = ProgressWatch(
            self.shown.append, agent="a:A", mode="paper", own_time=own_time, clock=self.clock, interval_s=1.0
        )
        self.watch.attach(self.engine, self.ledger, self.feeds)

    def deliver(self, close: float) -> None:
        feed = self.feeds[0]
        feed.engine_driven = True
        feed.setenvironment(bt.Cerebro())
        feed._start()
        feed.offer(Bar(symbol="SPY", ts_event_ns=START_NS, open=1, high=close, low=1, close=close, volume=1))
        assert feed.next(ticks=False)
        self.watch.note_slice(START_NS + MINUTE_NS)

    def order(self, status: int, *, kind: int = bt.Order.Market, filled: float = 0.0) -> Any:
        build: Any = bt.BuyOrder
        order = build(data=self.feeds[0], size=10, price=5.0, exectype=kind, simulated=True)
        order.status = status
        order.executed.size, order.executed.price = filled, 5.25
        return order


@pytest.fixture
def bench() -> Bench:
    return Bench(own_time=True)


def test_a_snapshot_tells_of_bars_positions_and_orders(bench: Bench) -> None:
    bench.deliver(close=7.0)
    bench.ledger.hold(bench.feeds[0], -2, 8.0)
    bench.ledger.open = [bench.order(bt.Order.Accepted), bench.order(bt.Order.Accepted)]
    bench.watch.look()
    progress = bench.shown[0]
    spy, crypto = progress.symbols
    assert (spy.symbol, spy.bar_end_ns, spy.close) == ("SPY", START_NS + MINUTE_NS, 7.0)
    assert (spy.position, spy.profit, spy.open_orders) == (-2.0, 2.0, 2)
    assert (crypto.symbol, crypto.bar_end_ns, crypto.position, crypto.profit) == ("BTC/USD", 0, 0.0, 0.0)
    assert (progress.cash, progress.equity, progress.start_equity) == (900.0, 1_010.0, 1_000.0)
    assert (progress.market_ns, progress.bars, progress.orders, progress.open_orders) == (START_NS + MINUTE_NS, 1, 3, 2)


def test_snapshots_are_made_so_often_and_no_more_often(bench: Bench) -> None:
    bench.watch.look()
    assert not bench.watch.is_behind
    bench.clock.advance(0.9)
    bench.watch.look()
    assert len(bench.shown) == 1
    assert bench.watch.is_behind  # so that whoever draws asks for another
    bench.clock.advance(0.1)
    bench.watch.look()
    assert len(bench.shown) == 2
    assert not bench.watch.is_behind


def test_the_same_status_of_all_feeds_is_one_event(bench: Bench) -> None:
    for status in (bt.DataBase.DELAYED, bt.DataBase.LIVE):
        for feed in bench.feeds:
            bench.engine.callbacks[0](feed, status)
    bench.engine.callbacks[0](bench.feeds[0], bt.DataBase.DISCONNECTED, "no stream")
    bench.watch.look()
    progress = bench.shown[0]
    assert (progress.feed, progress.feed_detail) == ("DISCONNECTED", "no stream")
    assert [event.text for event in progress.events] == [
        "market data DELAYED",
        "market data LIVE",
        "market data DISCONNECTED: no stream",
    ]


def test_notifications_pass_through_and_the_last_ones_are_events(bench: Bench) -> None:
    told = [bench.order(bt.Order.Submitted), *(bench.order(bt.Order.Accepted) for _ in range(EVENTS_KEPT))]
    told.append(bench.order(bt.Order.Completed, filled=10))
    bench.ledger.told = list(told)
    received: list[Any] = []
    while (order := bench.ledger.get_notification()) is not None:
        received.append(order)
    assert received == told
    bench.watch.look()
    texts = [event.text for event in bench.shown[0].events]
    assert texts == ["buy 10 SPY: accepted"] * (EVENTS_KEPT - 1) + ["buy 10 SPY: filled at 5.25"]


@pytest.mark.parametrize("own_time", [True, False])
def test_events_carry_the_markets_time_at_a_simulated_exchange_only(own_time: bool) -> None:
    bench = Bench(own_time=own_time)
    bench.watch.note_slice(START_NS // 2)
    bench.engine.callbacks[0](bench.feeds[0], bt.DataBase.LIVE)
    assert bench.watch.snapshot().events[0].time_ns == (START_NS // 2 if own_time else START_NS)


def test_an_order_is_described_with_its_kind_its_fills_and_the_reason_of_its_refusal(bench: Bench) -> None:
    assert describe_order(bench.order(bt.Order.Partial, kind=bt.Order.Limit, filled=4)) == (
        "buy limit 10 SPY: filled 4 so far at 5.25"
    )
    assert describe_order(bench.order(bt.Order.Canceled, kind=bt.Order.StopLimit)) == "buy stoplimit 10 SPY: canceled"
    refused = bench.order(bt.Order.Rejected)
    refused.addinfo(reject_reason="market is closed")
    assert describe_order(refused) == "buy 10 SPY: rejected, market is closed"
