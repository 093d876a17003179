"""The lean engine is Backtrader: what a strategy can see is the same, and nothing of Backtrader is changed by a run."""

from __future__ import annotations

import copy
import datetime as dt
import gc
import io
import pickle
from collections.abc import Callable
from typing import Any

import backtrader as bt
import numpy as np
import pandas as pd
import pytest
from backtrader.linebuffer import LineBuffer
from backtrader.position import Position

import dry_work.backtest
from dry_work.backtest.broker import BacktestBroker
from dry_work.backtest.lean import LeanCerebro
from dry_work.backtest.lean_lines import SharedLine
from dry_work.backtest.lean_loop import _merge

TICKS = ("tick_open", "tick_high", "tick_low", "tick_close", "tick_volume", "tick_last")


def make_frame(seed: int, size: int = 120, *, missing: float = 0.0, late: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = np.round(100 + np.cumsum(rng.normal(0, 0.5, size)), 2)
    frame = pd.DataFrame(
        {
            "open": close - 0.1,
            "high": close + 0.5,
            "low": close - 0.5,
            "close": close,
            "volume": rng.integers(1, 9, size).astype(np.float64),
        },
        index=pd.date_range("2024-03-07 22:50", periods=size, freq="min"),
    )
    return frame[(rng.random(size) >= missing) & (np.arange(size) >= late)]


class Watch(bt.Strategy):
    """Trades a little and writes down what it sees and is told."""

    params = (("act", None),)

    def __init__(self) -> None:
        self.crosses = [bt.ind.CrossOver(bt.ind.SMA(data, period=3), bt.ind.EMA(data, period=7)) for data in self.datas]
        self.spread = self.data.high - self.data0.low(-1)
        self.seen: list[Any] = []
        self.first = 0

    def note(self, *facts: Any) -> None:
        self.seen.append(tuple(repr(fact) for fact in facts))

    def look(self, call: str) -> None:
        for data, cross in zip(self.datas, self.crosses, strict=True):
            if not len(data):
                continue
            position = self.getposition(data)
            self.note(
                call,
                *(len(self), len(data), len(cross), self.datetime.datetime(), data.datetime.datetime(), data.close[0]),
                *(getattr(data, name, "missing") for name in TICKS),
                *(position.size, position.price, position.adjbase, getattr(position, "datetime", None)),
                *(
                    list(data.close.get(size=2)),
                    data.close.idx,
                    data.buflen(),
                    len(data.lines),
                    data.lines.close.lencount,
                ),
            )
        broker = self.broker
        self.note(broker.getcash(), broker.getvalue(), broker.get_leverage(), broker.fundvalue, broker._unrealized)
        if self.p.act is not None:
            self.p.act(self)

    def prenext(self) -> None:
        self.look("prenext")

    def nextstart(self) -> None:
        self.look("nextstart")

    def next(self) -> None:
        self.look("next")
        self.note(self.spread[0], [cross[0] for cross in self.crosses])
        for data, cross in zip(self.datas, self.crosses, strict=True):
            if cross[0] > 0:
                self.order_target_size(data, 5)
            elif cross[0] < 0:
                self.order_target_size(data, -3)

    def notify_order(self, order: Any) -> None:
        self.first = self.first or order.ref
        executed = order.executed
        self.note(order.ref - self.first, order.status, executed.dt, executed.price, executed.pnl, len(executed.exbits))

    def notify_trade(self, trade: Any) -> None:
        self.note(trade.size, trade.pnl, trade.barlen, trade.isclosed)

    def notify_timer(self, timer: Any, when: Any, *args: Any, **kwargs: Any) -> None:
        self.note("timer", timer.p.tid, when, self.broker.getvalue(), len(self), [len(cross) for cross in self.crosses])

    def stop(self) -> None:
        self.look("stop")


def prepare(engine: type[bt.Cerebro], frames: list[pd.DataFrame], act: Any = None, **params: Any) -> Any:
    cerebro = engine(**{"stdstats": False, **params})
    for frame in frames:
        cerebro.adddata(bt.feeds.PandasData(dataname=frame, timeframe=bt.TimeFrame.Minutes))
    cerebro.addstrategy(Watch, act=act)
    return cerebro


def compare(frames: list[pd.DataFrame], act: Any = None, **params: Any) -> Any:
    """Run both engines, compare all that was seen, and return the lean one."""
    engines = [prepare(engine, frames, act, **params) for engine in (bt.Cerebro, LeanCerebro)]
    stock, lean = (cerebro.run()[0] for cerebro in engines)
    assert len(stock.seen) > 100
    assert lean.seen == stock.seen
    return engines[1]


FRAMES = {
    "one feed": [make_frame(1)],
    "two feeds of the same times": [make_frame(1), make_frame(2)],
    "three feeds with gaps": [make_frame(seed, missing=0.4, late=seed) for seed in range(3)],
    "a feed that starts late": [make_frame(1), make_frame(2, late=80)],
}


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("params", [{}, {"stdstats": True}, {"quicknotify": True}, {"cheat_on_open": True}])
def test_a_strategy_sees_and_is_told_the_same(name: str, params: dict[str, Any]) -> None:
    assert compare(FRAMES[name], **params).fallback == ""


def test_times_are_merged_over_more_bars_than_are_taken_at_once() -> None:
    rng = np.random.default_rng(5)
    columns = [np.unique(rng.integers(0, 40_000, size)).astype(np.float64) for size in (30_000, 9_000, 1, 20_000)]

    class Times:
        def __init__(self, values: Any) -> None:
            self.values, self.size = values, len(values)

        def all(self) -> Any:
            return self.values

    expected: dict[float, list[int]] = {}
    for number, column in enumerate(columns):
        for time in column.tolist():
            expected.setdefault(time, []).append(number)
    merged: Any = [Times(column) for column in columns]
    assert [(time, list(groups)) for time, groups in _merge(merged)] == sorted(expected.items())
    assert [time for time, _ in _merge(merged[:1])] == columns[0].tolist()


# What a strategy may do to the account between two bars


def on_bar(number: int, do: Callable[[Any], Any]) -> Callable[[Any], None]:
    def act(strategy: Any) -> None:
        if len(strategy) == number:
            do(strategy)

    return act


ACTS: dict[str, Callable[[Any], Any]] = {
    "cash is added": lambda s: s.broker.add_cash(1000.0),
    "cash is set": lambda s: s.broker.set_cash(5000.0),
    "cash is set by its other name": lambda s: s.broker.setcash(5000.0),
    "cash is assigned": lambda s: setattr(s.broker, "cash", 4321.0),
    "commission is set": lambda s: s.broker.setcommission(commission=0.01),
    "a leverage is set": lambda s: s.broker.setcommission(commission=0.01, leverage=2.0),
    "interest is set": lambda s: s.broker.setcommission(interest=0.5),
    "futures are set": lambda s: s.broker.setcommission(margin=10.0, mult=2.0),
    "a filler is set": lambda s: s.broker.set_filler(bt.broker.fillers.FixedSize(size=2)),
    "short cash is switched off": lambda s: s.broker.set_shortcash(False),
    "a position is asked for by its feeds": lambda s: s.note(s.broker.getvalue([s.data]), s.broker.getvalue(s.datas)),
    "an order is cancelled": lambda s: s.cancel(s.buy(exectype=bt.Order.Limit, price=1.0)),
    "a line is moved": lambda s: s.data.high.rewind(2),
    "a feed is moved": lambda s: (s.data.lines.rewind(), s.note(s.data.close[0]), s.data.lines.advance()),
    "an indicator is moved": lambda s: s.crosses[0].lines.rewind(1),
    "the strategy's own line is moved": lambda s: (s.lines.datetime.rewind(), s.lines.datetime.advance()),
    "an index is assigned": lambda s: setattr(s.data.open, "idx", s.data.open.idx - 1),
    "a value is assigned": lambda s: s.data.close.set(77.25),
    "the run is stopped": lambda s: s.env.runstop() if len(s.seen) > 150 else None,
}


@pytest.mark.parametrize("name", ACTS)
@pytest.mark.parametrize("asked_before", [True, False])
def test_what_a_strategy_does_between_bars_has_the_same_effect(name: str, asked_before: bool) -> None:
    def act(strategy: Any) -> None:
        if len(strategy) in (40, 41, 70):
            ACTS[name](strategy)

    class Blind(Watch):
        """Has not asked for the account when it acts."""

        def look(self, call: str) -> None:
            act(self)
            super().look(call)

    frames = [make_frame(3), make_frame(4, missing=0.2)]
    seen = []
    for engine in (bt.Cerebro, LeanCerebro):
        cerebro = prepare(engine, frames, act if asked_before else None)
        if not asked_before:
            cerebro.strats.clear()
            cerebro.addstrategy(Blind)
        cerebro.broker.set_shortcash(True)
        seen.append(cerebro.run()[0].seen)
    assert seen[1] == seen[0]
    assert len(seen[0]) > 100


def test_a_copy_of_a_position_stands_still() -> None:
    copies: list[Any] = []

    def keep(strategy: Any) -> None:
        position = strategy.getposition(strategy.data)
        if position.size:
            copies.append(
                (position, copy.copy(position), copy.deepcopy(position), pickle.loads(pickle.dumps(position)))
            )

    cerebro = prepare(LeanCerebro, [make_frame(1)], on_bar(60, keep))
    cerebro.run()
    [(position, *others)] = copies
    assert type(position) is Position
    for other in others:
        assert type(other) is Position
        assert vars(other) == vars(others[0])
        assert other.datetime < position.datetime


# Nothing is left behind


def own_classes(strategy: Any) -> list[type]:
    """Return the classes of all that a lean run takes over."""
    items = [*strategy.datas, *strategy._lineiterators[bt.LineIterator.IndType], strategy]
    lines = [line for item in items if hasattr(item, "lines") for line in item.lines]
    return [type(thing) for thing in (strategy.broker, *strategy.broker.positions.values(), *lines)]


def test_after_a_run_everything_is_backtraders_own_again() -> None:
    stock, lean = (prepare(engine, FRAMES["three feeds with gaps"]) for engine in (bt.Cerebro, LeanCerebro))
    by_stock, by_lean = stock.run()[0], lean.run()[0]
    assert own_classes(by_lean) == own_classes(by_stock)
    assert any(kind is LineBuffer for kind in own_classes(by_lean))
    for one, other in zip(by_stock.datas, by_lean.datas, strict=True):
        assert set(vars(other)) == set(vars(one))
        assert set(vars(other.lines.close)) == set(vars(one.lines.close))
        assert vars(other.lines.close)["_idx"] == vars(one.lines.close)["_idx"]
    assert set(vars(lean.broker)) == set(vars(stock.broker))
    assert set(vars(by_lean)) == set(vars(by_stock))
    assert by_lean._minperstatus == by_stock._minperstatus


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_an_exception_comes_through_and_leaves_the_same_state(error: BaseException) -> None:
    def fail(strategy: Any) -> None:
        if len(strategy) == 61:
            states.append(strategy)
            raise error

    states: list[Any] = []
    for engine in (bt.Cerebro, LeanCerebro):
        with pytest.raises(type(error)):
            prepare(engine, FRAMES["three feeds with gaps"], fail).run()
    stock, lean = states
    assert lean.seen == stock.seen
    assert own_classes(lean) == own_classes(stock)
    assert [len(data) for data in lean.datas] == [len(data) for data in stock.datas]
    assert lean.broker.getvalue() == stock.broker.getvalue()
    assert gc.get_threshold()[0] < 10_000


def test_a_stock_run_within_a_lean_run_is_stock() -> None:
    inner: list[Any] = []

    def run_another(strategy: Any) -> None:
        cerebro = prepare(bt.Cerebro, [make_frame(9)], lambda other: inner.append(own_classes(other)))
        inner.append(cerebro.run()[0].seen)

    prepare(LeanCerebro, [make_frame(1)], on_bar(50, run_another)).run()
    assert inner[-1] == prepare(bt.Cerebro, [make_frame(9)]).run()[0].seen
    assert SharedLine not in inner[0]
    assert {bt.brokers.BackBroker, LineBuffer} <= set(inner[0])


def test_a_second_run_and_one_by_the_other_engine_see_the_same() -> None:
    lean = prepare(LeanCerebro, FRAMES["two feeds of the same times"])
    stock = prepare(bt.Cerebro, FRAMES["two feeds of the same times"])
    assert [lean.run()[0].seen for _ in range(3)] == [stock.run()[0].seen for _ in range(3)]


# Sweeps


@pytest.mark.parametrize("processes", [1, 2])
def test_a_sweep_gives_the_same_results(processes: int) -> None:
    found = []
    for engine in (bt.Cerebro, LeanCerebro):
        cerebro = engine(stdstats=False, maxcpus=processes)
        cerebro.adddata(bt.feeds.PandasData(dataname=make_frame(1)))
        cerebro.optstrategy(bt.strategies.MA_CrossOver, fast=(2, 3), slow=(7, 9))
        cerebro.addanalyzer(bt.analyzers.TradeAnalyzer, _name="trades")
        runs = cerebro.run()
        found.append([(run.p.fast, run.p.slow, repr(run.analyzers.trades.get_analysis())) for [run] in runs])
        assert "preload" not in vars(cerebro.datas[0])
    assert found[1] == found[0]
    assert len(found[0]) == 4


# What falls back


class OwnBroker(bt.brokers.BackBroker):
    pass


class OwnMachinery(Watch):
    def _oncepost(self, time: float) -> None:
        super()._oncepost(time)


class OwnFeed(bt.feeds.PandasData):
    def advance_peek(self) -> float:
        return float(super().advance_peek())


class OwnLoading(bt.feeds.PandasData):
    def _load(self) -> bool:
        return bool(super()._load())


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"exactbars": -1}, "exactbars=-1"),
        ({"exactbars": -2}, "exactbars=-2"),
        ({"runonce": False}, "runonce=False"),
        ({"preload": False}, "preload=False"),
        ({"live": True}, "live=True"),
        ({"oldsync": True}, "oldsync"),
    ],
)
def test_a_mode_without_vectors_runs_as_stock_and_says_so(params: dict[str, Any], reason: str) -> None:
    stock, lean = (prepare(engine, [make_frame(1)], **params) for engine in (bt.Cerebro, LeanCerebro))
    assert lean.run()[0].seen[-1] == stock.run()[0].seen[-1]
    assert lean.fallback == reason
    if "exactbars" not in params:  # that changes the feeds for good
        lean.run(runonce=True, preload=True, live=False, oldsync=False)
        assert lean.fallback == ""


def test_times_that_do_not_rise_fall_back() -> None:
    frame = make_frame(1)
    assert compare([make_frame(2), frame.iloc[[0, 1, 1, *range(2, 120)]]]).fallback.endswith("times that do not rise")


def test_a_feed_that_was_added_twice_moves_twice_as_in_stock() -> None:
    found = []
    for engine in (bt.Cerebro, LeanCerebro):
        cerebro = prepare(engine, [make_frame(1)])
        cerebro.adddata(cerebro.datas[0], name="again")
        found.append(cerebro.run()[0].seen)
    assert found[1] == found[0]
    assert cerebro.fallback == "feed again is there twice"


def buy_one(strategy: Any) -> None:
    strategy.buy(strategy.datas[1], size=1)


def test_two_strategies_with_timers_and_a_writer_see_the_same() -> None:
    found = []
    for engine in (bt.Cerebro, LeanCerebro):
        written = io.StringIO()
        cerebro = prepare(engine, FRAMES["three feeds with gaps"])
        cerebro.addstrategy(Watch, act=buy_one)
        cerebro.addwriter(bt.WriterFile, out=written, csv=True)
        cerebro.add_timer(
            dt.time(23, 30), repeat=dt.timedelta(minutes=7), cheat=True, strats=True, tzdata=cerebro.datas[0]
        )
        cerebro.add_timer(
            bt.timer.SESSION_START, offset=dt.timedelta(minutes=3), repeat=dt.timedelta(minutes=5), strats=True
        )
        found.append([*(strategy.seen for strategy in cerebro.run()), written.getvalue()])
    assert found[1] == found[0]
    assert cerebro.fallback == ""
    assert any("timer" in fact for facts in found[0][0] for fact in facts)


def test_a_broker_that_is_not_known_is_asked_at_every_bar() -> None:
    cerebro = prepare(LeanCerebro, [make_frame(1)])
    cerebro.broker = OwnBroker()
    assert cerebro.run()[0].seen == prepare(bt.Cerebro, [make_frame(1)]).run()[0].seen
    assert cerebro.fallback == "broker OwnBroker is not known: it is asked at every bar"


def test_the_broker_of_backtests_is_known() -> None:
    found = []
    for engine in (bt.Cerebro, LeanCerebro):
        cerebro = prepare(engine, FRAMES["three feeds with gaps"])
        cerebro.broker = BacktestBroker()
        found.append(cerebro.run()[0].seen)
    assert found[1] == found[0]
    assert cerebro.fallback == ""
    assert type(cerebro.broker) is BacktestBroker


def test_overridden_machinery_falls_back() -> None:
    cerebro = LeanCerebro(stdstats=False)
    cerebro.adddata(bt.feeds.PandasData(dataname=make_frame(1)))
    cerebro.addstrategy(OwnMachinery)
    cerebro.run()
    assert cerebro.fallback == "strategy OwnMachinery overrides _oncepost"


@pytest.mark.parametrize(
    ("kind", "reason"), [(OwnFeed, "feed SPY overrides advance_peek"), (OwnLoading, "")]
)  # what a feed loads by itself runs on the fast path all the same
def test_a_feed_of_its_own_kind_runs_as_far_as_it_can(kind: Any, reason: str) -> None:
    found = []
    for engine in (bt.Cerebro, LeanCerebro):
        cerebro = engine(stdstats=False)
        cerebro.adddata(kind(dataname=make_frame(1), timeframe=bt.TimeFrame.Minutes), name="SPY")
        cerebro.addstrategy(Watch)
        found.append(cerebro.run()[0].seen)
    assert found[1] == found[0]
    assert cerebro.fallback == reason


def test_resampling_falls_back_and_is_equal() -> None:
    found = []
    for engine in (bt.Cerebro, LeanCerebro):
        cerebro = prepare(engine, [make_frame(1)])
        cerebro.resampledata(cerebro.datas[0], timeframe=bt.TimeFrame.Minutes, compression=5)
        found.append(cerebro.run()[0].seen)
    assert found[1] == found[0]
    assert cerebro.fallback == "a feed that is resampled or replayed"


def test_the_package_offers_the_engine() -> None:
    assert dry_work.backtest.LeanCerebro is LeanCerebro
    with pytest.raises(AttributeError, match="no attribute 'FatCerebro'"):
        _ = dry_work.backtest.FatCerebro
