"""Engines that are wrong in one thing: each is caught, and the difference is named."""

from __future__ import annotations

import math
from typing import Any

import backtrader as bt
import numpy as np
import pytest

from dry_work.backtest import LeanCerebro
from dry_work.backtest.verify import verify
from tests.parity import market
from tests.parity.scenario import Cross, crossing

CASES: dict[str, tuple[type[Any], tuple[str, ...]]] = {}


def wrong(*words: str) -> Any:
    def enter(engine: type[Any]) -> type[Any]:
        CASES[engine.__name__] = (engine, words)
        return engine

    return enter


def with_broker(cerebro: Any, broker: type[Any]) -> None:
    cerebro.setbroker(broker(cash=cerebro.broker.getcash()))


def tune(cerebro: Any) -> None:
    cerebro.addanalyzer(bt.analyzers.TradeAnalyzer)
    cerebro.addanalyzer(bt.analyzers.SQN)


def build(engine: type[Any]) -> Any:
    return crossing(market.pair(bars=120), stdstats=True, tune=tune)(engine)


@wrong("call ", "of Cross at 2021-03-01", "with SkipsABar")
class SkipsABar(LeanCerebro):
    def adddata(self, data: Any, name: str | None = None) -> Any:
        frame = data.p.dataname
        data.p.dataname = frame.drop(frame.index[50])
        return super().adddata(data, name)


class NudgedBroker(bt.brokers.BackBroker):
    fills = 0

    def _try_exec_market(self, order: Any, popen: float, phigh: float, plow: float) -> None:
        self.fills += 1
        super()._try_exec_market(order, math.nextafter(popen, math.inf) if self.fills == 9 else popen, phigh, plow)


@wrong("notify_order of Cross", "price is 40.080000000000005 with MovesAFill and 40.08 with Cerebro")
class MovesAFill(LeanCerebro):
    def run(self, **params: Any) -> Any:
        with_broker(self, NudgedBroker)
        return super().run(**params)


class ForgetfulBroker(bt.brokers.BackBroker):
    told = 0

    def get_notification(self) -> Any:
        self.told += 1
        notification = super().get_notification()
        return super().get_notification() if self.told == 30 else notification


@wrong("notify_order of Cross at 2021-03-01 14:53:00 (bar 21): status is 2 with DropsANotification and 1 ")
class DropsANotification(LeanCerebro):
    def run(self, **params: Any) -> Any:
        with_broker(self, ForgetfulBroker)
        return super().run(**params)


class SwappingBroker(bt.brokers.BackBroker):
    def next(self) -> None:
        super().next()
        if len(self.notifs) == 2:
            self.notifs.rotate()


@wrong("notify_order of Cross", "status is ")
class SwapsNotifications(LeanCerebro):
    def run(self, **params: Any) -> Any:
        with_broker(self, SwappingBroker)
        return super().run(**params)


class GenerousBroker(bt.brokers.BackBroker):
    def getcash(self) -> Any:
        return math.nextafter(self.cash, 0.0) if len(self.orders) == 7 else self.cash


@wrong("cash is ", "with CountsCashWrong")
class CountsCashWrong(LeanCerebro):
    def run(self, **params: Any) -> Any:
        with_broker(self, GenerousBroker)
        return super().run(**params)


class NumpyBroker(bt.brokers.BackBroker):
    def getcash(self) -> Any:
        return np.float64(self.cash)


@wrong("cash is np.float64(100000.0) with GivesNumpyNumbers and 100000.0 with Cerebro")
class GivesNumpyNumbers(LeanCerebro):
    def run(self, **params: Any) -> Any:
        with_broker(self, NumpyBroker)
        return super().run(**params)


@wrong("strategy 0 indicator 1 SMA line sma: value 70 is ", "with LeavesAWrongIndicator")
class LeavesAWrongIndicator(LeanCerebro):
    def run(self, **params: Any) -> Any:
        [strategy] = super().run(**params)
        line = strategy.getindicators()[1].lines[0]
        line.array[70] = math.nextafter(line.array[70], 0.0)
        return [strategy]


@wrong("strategy 0 observer 0 Broker line value: value 20 is ")
class LeavesAWrongObserver(LeanCerebro):
    def run(self, **params: Any) -> Any:
        [strategy] = super().run(**params)
        strategy.getobservers()[0].lines.value.array[20] += 1e-9
        return [strategy]


@wrong("data B#1 line high: value 3 is ")
class LeavesWrongData(LeanCerebro):
    def run(self, **params: Any) -> Any:
        results = super().run(**params)
        self.datas[1].lines.high.array[3] = math.nan
        return results


@wrong("lengths of lines: data A#0.close.index is ")
class LeavesAFeedElsewhere(LeanCerebro):
    def run(self, **params: Any) -> Any:
        results = super().run(**params)
        self.datas[0].lines[0].idx -= 1
        return results


@wrong("strategy 0 analyzer tradeanalyzer: total.total is ")
class LeavesAWrongAnalysis(LeanCerebro):
    def run(self, **params: Any) -> Any:
        results = super().run(**params)
        results[0].analyzers.tradeanalyzer.rets["total"]["total"] += 1
        return results


@wrong("order 4: status is 5 with LeavesAWrongOrder and 4 with Cerebro")
class LeavesAWrongOrder(LeanCerebro):
    def run(self, **params: Any) -> Any:
        results = super().run(**params)
        self.broker.orders[4].status = bt.Order.Canceled
        return results


@wrong("broker: cash is ")
class LeavesWrongCash(LeanCerebro):
    def run(self, **params: Any) -> Any:
        results = super().run(**params)
        self.broker.cash += 1.0
        return results


@wrong("with WrongWhenNobodyListens (unwatched) and ")
class WrongWhenNobodyListens(LeanCerebro):
    """Right as long as the strategy hears of cash, which a watched one does."""

    def run(self, **params: Any) -> Any:
        [(strategy, _, _)] = self.strats[0]
        if strategy.notify_cashvalue is bt.Strategy.notify_cashvalue:
            with_broker(self, NudgedBroker)
        return super().run(**params)


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_engine_is_caught_and_the_difference_named(name: str) -> None:
    engine, words = CASES[name]
    report = verify(build, (engine, bt.Cerebro))
    assert not report.identical
    sentence = str(report.difference)
    missing = [word for word in words if word not in sentence]
    assert not missing, sentence
    assert "with Cerebro" in sentence


def test_the_same_backtest_with_a_right_engine_has_no_difference() -> None:
    report = verify(build)
    assert report.identical, str(report)
    assert min(report.counts.values()) > 0, report.counts


class Swallows(LeanCerebro):
    def run(self, **params: Any) -> Any:
        try:
            return super().run(**params)
        except ValueError:
            return self.runningstrats


class Fails(Cross):
    def next(self) -> None:
        if len(self) == 40:
            raise ValueError("told so")


def test_an_engine_that_swallows_an_error_is_caught() -> None:
    report = verify(crossing(strategy=Fails), (Swallows, bt.Cerebro))
    assert not report.identical
    assert report.raised == "ValueError: told so"
    assert "the end of the run: raised is '' with Swallows and 'ValueError: told so' with Cerebro" in str(report)
