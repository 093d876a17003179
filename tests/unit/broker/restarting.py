"""Processes of one agent, one after the other, at one venue: each ends as by `kill -9`, its strategy's file stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import backtrader as bt

from dry_work.broker.journal import Journal
from dry_work.clock import ManualClock
from dry_work.engine.strategy_state import StrategyKeeper

from .conftest import build_broker
from .scripted_venue import ScriptedVenue
from .stepping import Recorder, StepFeed, settle


class KeepingRecorder(Recorder):
    """Keeps what it was told, over its processes: client order id, status, executed size, price."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[list[Any]] = []
        self.loaded: Any = None

    def notify_order(self, order: Any) -> None:
        super().notify_order(order)
        price = order.created.price if order.exectype != bt.Order.Market else None
        self.kept.append([number_of(order), order.getstatusname(), round(order.executed.size, 9), price])

    def save_state(self) -> Any:
        return {"kept": self.kept}

    def load_state(self, state: Any) -> None:
        self.kept = state["kept"]
        if self.p.loading is not None:
            self.p.loading(self)

    params = (("loading", None),)


class Agent:
    """An agent whose processes are started with `live`.

    Args:
        saves: its strategy keeps its state.
    """

    def __init__(self, venue: ScriptedVenue, folder: Path, *, saves: bool = True, **params: Any) -> None:
        self.venue, self.folder, self.saves, self.params = venue, folder, saves, params
        self.broker: Any = None
        self.strategy: Any = None

    @property
    def journal_path(self) -> Path:
        return self.folder / "orders.sqlite"

    def live(
        self,
        actions: Mapping[int, Callable[[Any], Any]] | None = None,
        scripts: Mapping[int, Callable[[], Any]] | None = None,
        *,
        bars: int = 4,
        saves_until: int | None = None,
        symbols: tuple[str, ...] = ("AAPL",),
        loading: Callable[[Any], Any] | None = None,
        loses_from: int | None = None,
    ) -> Any:
        """Run a process to its last bar; return its strategy.

        Args:
            saves_until: the last bar after which the state was written before the kill; None: all.
            loses_from: the first bar whose orders never leave, although the state knows of them.
        """
        journal = Journal(self.journal_path)
        broker = self.broker = build_broker(self.venue, journal, **{"session": None, **self.params})
        keeper = StrategyKeeper(self.folder / "strategy.json", agent="A", clock=ManualClock())
        strategy_class = KeepingRecorder if self.saves else Recorder
        if self.saves:
            keeper.follow(broker, strategy_class)
        feeds: list[Any] = []
        number = 0

        def before(bar: int) -> None:
            nonlocal number
            number = bar
            if bar == 1 and self.saves:
                keeper.load(feeds[0]._env.runningstrats[0])
                keeper.save()
            script = (scripts or {}).get(bar)
            if script is not None:
                script()

        class Saver(bt.Analyzer):
            def next(self) -> None:
                turn()

            prenext = next

        def turn() -> None:
            if loses_from is not None and number >= loses_from:
                broker._gateway.let_go = broker._gateway._kept.clear
            if self.saves and (saves_until is None or number <= saves_until):
                keeper.save()
            elif self.saves:
                broker.release_orders()  # as by a state that was written for a moment
            settle(broker)

        cerebro = bt.Cerebro(stdstats=False, preload=False, runonce=False, quicknotify=True)
        for place, symbol in enumerate(symbols):
            feed = StepFeed(bars=bars, before=before if place == 0 else None)
            feeds.append(feed)
            cerebro.adddata(feed, name=symbol)
        cerebro.setbroker(broker)
        given = {"loading": loading} if self.saves else {}
        cerebro.addstrategy(strategy_class, actions=dict(actions or {}), **given)
        cerebro.addanalyzer(Saver)
        try:
            [self.strategy] = cerebro.run()
        finally:
            broker.stop()
            journal.close()
        return self.strategy


def number_of(order: Any) -> int:
    """Return the number of an order in its session."""
    return int(order.info.client_order_id.rpartition("-")[2])


def told(strategy: Any, number: int) -> list[str]:
    """Return the states that a strategy was told of an order in all its processes."""
    return [f"{row[1]} {row[2]:g}" if row[2] else row[1] for row in strategy.kept if row[0] == number]


def heard(strategy: Any, number: int) -> list[str]:
    """Return the states that a strategy was told of an order in this process."""
    return [clone.getstatusname() for clone in strategy.clones if number_of(clone) == number]
