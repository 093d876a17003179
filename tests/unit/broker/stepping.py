"""A Cerebro that a test moves: scripts run before chosen bars, actions in the strategy's `next` of chosen bars."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import backtrader as bt

from dry_work.orders.model import VenuePosition

from .scripted_venue import ScriptedVenue, wait_until

START = dt.datetime(2024, 6, 11, 13, 30)


class StepFeed(bt.DataBase):
    """Minute bars whose close is 10 + n; `before(n)` is called before bar n, counted from 1."""

    params = (("bars", 5), ("before", None), ("symbol", None), ("timeframe", bt.TimeFrame.Minutes))

    def start(self) -> None:
        super().start()
        self._number = 0

    def _load(self) -> bool:
        self._number += 1
        if self._number > self.p.bars:
            return False
        if self.p.before is not None:
            self.p.before(self._number)
        self.lines.datetime[0] = bt.date2num(START + dt.timedelta(minutes=self._number))
        for line in (self.lines.open, self.lines.high, self.lines.low, self.lines.close):
            line[0] = 10.0 + self._number
        self.lines.volume[0] = self.lines.openinterest[0] = 0.0
        return True


class Recorder(bt.Strategy):
    """Does what it is told, bar by bar, and keeps what it hears."""

    params = (("actions", None), ("early", None))

    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []  # (order ref, status)
        self.clones: list[Any] = []
        self.trades: list[Any] = []
        self.number = 0
        self.orders: list[Any] = []

    def notify_order(self, order: Any) -> None:
        self.told.append((order.ref, order.getstatusname()))
        self.clones.append(order)

    def notify_trade(self, trade: Any) -> None:
        self.trades.append(trade)

    def start(self) -> None:
        if self.p.early is not None:
            self.p.early(self)

    def next(self) -> None:
        self.number += 1
        action = self.p.actions.get(self.number)
        if action is not None:
            order = action(self)
            if isinstance(order, bt.Order):
                self.orders.append(order)

    def statuses(self, order: Any) -> list[str]:
        return [status for ref, status in self.told if ref == order.ref]


def run(
    broker: Any,
    actions: Mapping[int, Callable[[Any], Any]],
    scripts: Mapping[int, Callable[[], Any]] | None = None,
    *,
    bars: int = 6,
    symbols: tuple[str, ...] = ("AAPL",),
    resample: bool = False,
    early: Callable[[Any], Any] | None = None,
    prepare: Callable[[bt.Cerebro], Any] | None = None,
    strategy: type[Any] = Recorder,
) -> Any:
    """Run and return the strategy. Each script runs before its bar, and so before `broker.next`."""

    def before(number: int) -> None:
        script = (scripts or {}).get(number)
        if script is not None:
            script()

    cerebro = bt.Cerebro(stdstats=False, preload=False, runonce=False)
    for place, symbol in enumerate(symbols):
        feed = StepFeed(bars=bars, before=before if place == 0 else None)
        cerebro.adddata(feed, name=symbol)
        if resample:
            cerebro.resampledata(feed, name=f"{symbol}@2m", timeframe=bt.TimeFrame.Minutes, compression=2)
    cerebro.setbroker(broker)
    if prepare is not None:
        prepare(cerebro)
    cerebro.addstrategy(strategy, actions=dict(actions), early=early)
    [ran] = cerebro.run()
    return ran


def seen(venue: ScriptedVenue, broker: Any, *events: Any) -> None:
    """Send events and wait until the broker has them."""
    for event in events:
        name = venue.send(event)
        wait_until(lambda name=name: broker.has_seen(name), f"event {name} has arrived")


def settle(broker: Any) -> None:
    """Wait until the order worker has done all it was asked for."""
    gateway = broker._link.gateway
    done = gateway.resyncs_done
    gateway.resync(())
    wait_until(lambda: gateway.resyncs_done > done, "the order worker is idle")


def buy(**kwargs: Any) -> Any:
    return lambda strategy: strategy.buy(**kwargs)


def holding(venue: ScriptedVenue, qty: str) -> None:
    """Let the account hold so many of AAPL."""
    venue.positions = [VenuePosition(symbol="AAPL", qty=Decimal(qty), avg_entry_price=Decimal(8))]
