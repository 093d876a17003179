"""Brackets, pairs and their kin at the real simulated exchange: as BackBroker tells them, and under Alpaca's rules."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import backtrader as bt
import pytest

from dry_work.exchange.synthetic import synthetic_day

from .test_broker import flatten, run_backtest, run_broker

ENDS = ("Completed", "Canceled", "Expired", "Margin", "Rejected")


class Brackets(bt.Strategy):
    """Brackets, OTOs and pairs of exits, one after the other, and now and then the cancellation of a part of one."""

    def __init__(self) -> None:
        self.random = random.Random(11)
        self.groups: list[list[Any]] = []

    def next(self) -> None:
        rng = self.random
        for data in self.datas:
            choice, width, long = rng.random(), rng.uniform(0.0005, 0.003), rng.random() < 0.6
            size, market, cancels = rng.choice((5, 40, 90_000)), rng.random() < 0.5, rng.random()
            mine = [group for group in self.groups if group[0].data is data]
            alive = [order for group in mine for order in group if order.alive()]
            if alive:
                accepted = [order for order in alive if order.status == bt.Order.Accepted]
                if accepted and cancels < 0.05:
                    self.cancel(rng.choice(accepted))
                continue
            close, held = data.close[0], self.getposition(data).size
            low, high = round(close * (1 - width), 2), round(close * (1 + width), 2)
            if held:
                exit_ = self.sell if held > 0 else self.buy
                stop, limit = (low, high) if held > 0 else (high, low)
                first = exit_(data=data, size=abs(held), exectype=bt.Order.Limit, price=limit)
                second = exit_(data=data, size=abs(held), exectype=bt.Order.Stop, price=stop, oco=first)
                self.groups.append([first, second])
            elif choice < 0.5:
                place = self.buy_bracket if long else self.sell_bracket
                kind = {"exectype": bt.Order.Market} if market else {"price": low if long else high}
                stop, limit = (low, high) if long else (high, low)
                away = 1.5 if long else -1.5
                exits = {"limitexec": None} if choice < 0.1 else {"stopexec": None} if choice < 0.2 else {}
                group = place(
                    data=data, size=size, stopprice=round(stop - away, 2), limitprice=round(limit + away / 10, 2),
                    **kind, **exits,
                )  # fmt: skip
                self.groups.append([order for order in group if order is not None])


def test_groups_live_as_with_backbroker(tmp_path: Path) -> None:
    recording = synthetic_day(("SPY", "BAC"), minutes=300)
    heard, broker, session = run_broker(recording, Brackets, tmp_path)
    expected = run_backtest(recording, Brackets)
    for ours, theirs in zip(heard, expected, strict=True):
        assert flatten(ours) == pytest.approx(flatten(theirs), abs=1e-6)
    statuses = [row[2] for row in heard if row[0] == "order"]
    assert {"Completed", "Canceled", "Margin", "Rejected"} <= set(statuses)
    assert session["fills"] > 20
    assert broker.counters["fills of other orders"] == 0


class OneBracket(bt.Strategy):
    """A bracket, the replacement of its stop, then a pair of exits, and an order through zero."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []
        self.group: list[Any] = []
        self.pair: list[Any] = []
        self.answers: list[bool] = []
        self.crossing: Any = None

    def notify_order(self, order: Any) -> None:
        self.told.append((order.ref, order.getstatusname()))

    def next(self) -> None:
        close = self.data.close[0]
        if len(self) == 3:
            self.group = self.buy_bracket(
                size=10, exectype=bt.Order.Market, limitprice=close * 1.2, stopprice=close * 0.8
            )
        elif len(self) == 6:
            self.answers.append(self.broker.replace(self.group[2], price=close * 1.1))
        elif len(self) == 8:
            self.cancel(self.group[1])
        elif len(self) == 11:
            first = self.sell(size=10, exectype=bt.Order.Limit, price=close * 1.2)
            self.pair = [first, self.sell(size=10, exectype=bt.Order.Stop, price=close * 0.8, oco=first)]
        elif len(self) == 14:
            self.cancel(self.pair[0])
        elif len(self) == 17:
            self.crossing = self.sell(size=25)

    def statuses(self, order: Any) -> list[str]:
        return [status for ref, status in self.told if ref == order.ref]


@pytest.mark.parametrize("speed", [None, 240.0])
def test_under_alpacas_rules_groups_live_with_and_without_lock_step(tmp_path: Path, speed: float | None) -> None:
    kept: list[Any] = []

    class Kept(OneBracket):
        def start(self) -> None:
            kept.append(self)

    recording = synthetic_day(("SPY",), minutes=26)
    _, broker, _ = run_broker(recording, Kept, tmp_path, rules="alpaca", speed=speed, broker_rules="alpaca")
    [strategy] = kept
    entry, stop, limit = strategy.group
    assert strategy.statuses(entry) == ["Submitted", "Accepted", "Completed"]
    assert strategy.answers == [True]
    assert strategy.statuses(limit) == ["Submitted", "Accepted", "Accepted", "Canceled"]
    assert strategy.statuses(stop) == ["Submitted", "Accepted", "Canceled"]
    assert [strategy.statuses(order)[-1] for order in strategy.pair] == ["Canceled", "Canceled"]
    assert strategy.statuses(strategy.crossing) == ["Submitted", "Accepted", "Partial", "Completed"]
    assert broker.position_of("SPY") == -15
    assert broker.counters["fills of other orders"] == 0
