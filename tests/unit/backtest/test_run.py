from __future__ import annotations

from typing import Any

import backtrader as bt
import numpy as np
import pytest

from dry_work.backtest.broker import BacktestBroker
from dry_work.backtest.lean import LeanCerebro
from dry_work.backtest.run import (
    BacktestSettings,
    cut_recording,
    describe_length,
    prepare_strategy,
    run_backtest,
    verify_backtest,
)
from dry_work.clock import MINUTE_NS
from dry_work.engine.agents import Agent
from dry_work.errors import ConfigError, StrategyError
from dry_work.exchange.synthetic import DAY_START_NS, synthetic_day
from dry_work.feeds.columnar import columnar_feed
from dry_work.feeds.line_time import line_time
from dry_work.settings import parse_timeframe

SYMBOLS = ("SPY", "IBM")
RECORDING = synthetic_day(SYMBOLS, minutes=60)


def settings(**changes: Any) -> BacktestSettings:
    return BacktestSettings(**{"symbols": SYMBOLS, "agent": "test", "params": {}, **changes})


def run(strategy: type[Any], recording: Any = RECORDING, params: dict[str, Any] | None = None, **changes: Any) -> Any:
    agent = Agent(spec="test", strategy=strategy, params=params or {}, source_digest="")
    return run_backtest(settings(**changes), recording, agent)


class Watcher(bt.Strategy):
    """Writes its calls into a list of the test."""

    params = (("calls", None), ("period", 1))

    def __init__(self) -> None:
        self.average = bt.ind.SMA(self.data, period=self.p.period)

    def note(self, name: str) -> None:
        at = round(
            (self.lines.datetime[0] - bt.date2num(bt.num2date(self.lines.datetime[0]).replace(hour=0, minute=0))) * 1440
        )
        self.p.calls.append((name, at - (13 * 60 + 30)))

    def prenext(self) -> None:
        self.note("prenext")

    def nextstart(self) -> None:
        self.note("nextstart")

    def next(self) -> None:
        self.note("next")


def test_without_a_period_all_bars_are_used() -> None:
    assert cut_recording(settings(), RECORDING) == (RECORDING, 0)


def test_a_period_has_the_bars_that_start_in_it_and_end_in_it() -> None:
    start, end = DAY_START_NS + 10 * MINUTE_NS, DAY_START_NS + 20 * MINUTE_NS
    period, begin_ns = cut_recording(settings(start_ns=start, end_ns=end), RECORDING)
    times = period.columns("SPY")["ts_event_ns"]
    assert (times[0], times[-1], len(times)) == (start, end - MINUTE_NS, 10)
    assert begin_ns == start
    assert period.fingerprint != RECORDING.fingerprint


def test_the_warm_up_takes_the_newest_bars_before_the_period() -> None:
    start = DAY_START_NS + 30 * MINUTE_NS
    period, begin_ns = cut_recording(settings(start_ns=start, warmup=5), RECORDING)
    assert begin_ns == start
    for symbol in SYMBOLS:
        times = period.columns(symbol)["ts_event_ns"]
        assert np.count_nonzero(times < start) == 5
        assert times[-1] == RECORDING.columns(symbol)["ts_event_ns"][-1]


def test_without_a_start_the_period_begins_when_every_symbol_has_had_its_warm_up() -> None:
    period, begin_ns = cut_recording(settings(warmup=20), RECORDING)
    assert period is RECORDING
    ends = [int(RECORDING.columns(symbol)["ts_event_ns"][19]) + MINUTE_NS for symbol in SYMBOLS]
    assert begin_ns == max(ends)


def test_a_warm_up_that_leaves_no_bars_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--warmup 60: SPY has 60 bars"):
        cut_recording(settings(warmup=60), RECORDING)


def test_a_period_without_bars_of_a_symbol_is_refused_with_the_period_there_is() -> None:
    with pytest.raises(
        ConfigError, match=r"SPY has no bars in the period asked for; it has them from 2024-06-11T13:30"
    ):
        cut_recording(settings(start_ns=DAY_START_NS + 120 * MINUTE_NS), RECORDING)


def test_during_the_warm_up_the_strategy_hears_nothing_and_then_starts_as_it_would_have() -> None:
    calls: list[tuple[str, int]] = []
    result = run(Watcher, params={"calls": calls, "period": 5}, start_ns=DAY_START_NS + 30 * MINUTE_NS, warmup=10)
    assert calls[:2] == [("nextstart", 31), ("next", 32)]
    assert len(calls) == 30
    assert result.bars["SPY"] == 30
    assert result.curve.end_ns[0] == DAY_START_NS + 31 * MINUTE_NS


def test_a_warm_up_shorter_than_the_indicators_need_goes_on_with_prenext() -> None:
    calls: list[tuple[str, int]] = []
    run(Watcher, params={"calls": calls, "period": 13}, start_ns=DAY_START_NS + 30 * MINUTE_NS, warmup=10)
    assert calls[:4] == [("prenext", 31), ("prenext", 32), ("nextstart", 33), ("next", 34)]


def test_prenext_can_be_made_next() -> None:
    calls: list[tuple[str, int]] = []
    run(Watcher, params={"calls": calls, "period": 5}, forward_prenext=True)
    assert [name for name, _ in calls[:6]] == ["next", "next", "next", "next", "nextstart", "next"]


def test_the_strategy_itself_is_left_alone() -> None:
    assert prepare_strategy(Watcher) is Watcher
    warmed = prepare_strategy(Watcher, begin_ns=1, forward_prenext=True)
    assert warmed.__name__ == "Watcher"
    assert issubclass(warmed, Watcher)


def test_indicators_that_need_more_bars_than_there_are_are_told() -> None:
    class Slow(bt.Strategy):
        def __init__(self) -> None:
            self.average = bt.ind.SMA(period=100)

    with pytest.raises(ConfigError, match=r"never called: its indicators need 100 bars of SPY, and there are 60;"):
        run(Slow)


def test_what_the_strategy_raises_is_the_cause() -> None:
    class Broken(bt.Strategy):
        def next(self) -> None:
            raise KeyError("price")

    with pytest.raises(StrategyError, match=r"the strategy raised KeyError: 'price'") as caught:
        run(Broken)
    assert isinstance(caught.value.__cause__, KeyError)


class Buyer(bt.Strategy):
    """Buys some of the first data once and sells it again."""

    def next(self) -> None:
        if len(self) == 3:
            self.buy(size=10)
        elif len(self) == 30:
            self.sell(size=10)


@pytest.mark.parametrize("engine", ["lean", "stock"])
def test_costs_are_in_fills_and_equity(engine: str) -> None:
    from dry_work.backtest.costs import Costs

    free = run(Buyer, engine=engine)
    charged = run(Buyer, engine=engine, costs=Costs(commission_of_value=0.001))
    assert [fill["commission"] for fill in free.fills] == [0, 0]
    paid = [fill["qty"] * fill["price"] * 0.001 for fill in charged.fills]
    assert [fill["commission"] for fill in charged.fills] == pytest.approx(paid)
    assert charged.equity.end == pytest.approx(free.equity.end - sum(paid))
    slipped = run(Buyer, engine=engine, costs=Costs(slippage_amount=0.01))
    assert slipped.fills[0]["price"] > free.fills[0]["price"]
    assert slipped.fills[1]["price"] < free.fills[1]["price"]


def test_a_part_of_a_bars_volume_fills_in_pieces() -> None:
    from dry_work.backtest.costs import Costs

    volume = float(RECORDING.columns("SPY")["volume"].max())

    class Big(bt.Strategy):
        def next(self) -> None:
            if len(self) == 3:
                self.buy(size=int(volume / 50))

    result = run(Big, costs=Costs(volume_share=0.001), cash=10**9)
    assert len(result.fills) > 5
    assert sum(fill["qty"] for fill in result.fills) <= int(volume / 50)


def test_cash_that_the_strategy_adds_is_in_the_equity_curve() -> None:
    class Saver(bt.Strategy):
        def next(self) -> None:
            if len(self) == 10:
                self.broker.add_cash(1_000)

    result = run(Saver)
    assert result.equity.end == 101_000
    assert len(result.curve) == len(RECORDING.slice_ends())
    assert any("second run" in note for note in result.notes)


@pytest.mark.parametrize("engine", [bt.Cerebro, LeanCerebro])
def test_a_history_of_orders_is_filled_at_its_times(engine: Any) -> None:
    at = bt.num2date(line_time(DAY_START_NS + 5 * MINUTE_NS))
    found = []

    class Listener(bt.Strategy):
        def notify_order(self, order: Any) -> None:
            if order.status == order.Completed:
                found.append((bt.num2date(order.executed.dt), order.executed.price))

    for broker in (bt.brokers.BackBroker(), BacktestBroker()):
        cerebro = engine(stdstats=False)
        for symbol in SYMBOLS:
            cerebro.adddata(columnar_feed(RECORDING, symbol))
        cerebro.setbroker(broker)
        cerebro.add_order_history([(at, 1, 50.0)])
        cerebro.addstrategy(Listener)
        cerebro.run()
    assert found == [(at, 50.0)] * 2


def test_a_run_can_be_stopped_between_two_bars() -> None:
    class Stopper(bt.Strategy):
        def next(self) -> None:
            if len(self) == 20:
                self.env.runstop()

    result = run(Stopper)
    assert result.bars["SPY"] == 20
    assert len(result.curve) == 20


def test_a_frame_that_the_bars_cannot_make_is_refused() -> None:
    longer = synthetic_day(("SPY",), minutes=10)
    with pytest.raises(ConfigError, match=r"--resample 90s: the recorded bars are 1m long; expected a multiple"):
        run(Buyer, longer, symbols=("SPY",), resample=(parse_timeframe("90s"),))
    assert [describe_length(ns * 10**9) for ns in (1, 60, 90, 300, 3_600, 86_400)] == [
        "1s", "1m", "90s", "5m", "1h", "1d",
    ]  # fmt: skip


def test_both_engines_are_compared() -> None:
    agent = Agent(spec="test", strategy=Buyer, params={}, source_digest="")
    report = verify_backtest(settings(start_ns=DAY_START_NS + 10 * MINUTE_NS, warmup=5), RECORDING, agent)
    assert report.difference is None
    assert report.counts["fills"] == 1  # the purchase would fall into the warm-up
