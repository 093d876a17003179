"""Indicators that are left alone have the values, at every call, that they have in stock Backtrader's loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import backtrader as bt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.engine.idempotence import find_sources
from dry_work.engine.live import LiveCerebro
from dry_work.feeds.base import LiveFeed
from dry_work.market.messages import Bar
from dry_work.wakeup import Wakeup

from .sources import GridBars, ListSource, SlicePlayer, make_bar, slices_of

SYMBOLS = ("AAA", "BBB", "CCC")

# These need packages that are not installed, or arguments of another kind.
_NOT_MADE = {
    *(
        "ApplyN",
        "BaseApplyN",
        "CointN",
        "ExponentialSmoothingDynamic",
        "FindFirstIndex",
        "FindLastIndex",
        "Indicator",
    ),
    *("MovingAverageBase", "OLS_BetaN", "OLS_Slope_InterceptN", "OLS_TransformationN", "OperationN", "Oscillator"),
    *("OscillatorMixIn", "PeriodN", "ReduceN", "Hurst", "HurstExponent"),
}
_found = {
    cls.__qualname__: cls
    for cls in vars(bt.indicators).values()
    if isinstance(cls, type) and issubclass(cls, bt.Indicator) and not cls.aliased and cls.__qualname__ not in _NOT_MADE
}
NAMES = sorted(_found)

# Backtrader's own that are run in every turn: they keep state, or read what they write themselves.
NOT_PROVEN = {
    *("DV2", "DemarkPivotPoint", "FibonacciPivotPoint", "HeikinAshi", "LaguerreFilter", "LaguerreRSI"),
    *("ParabolicSAR", "PercentRank", "PivotPoint", "haDelta"),
}


class Scaled(bt.Indicator):
    """Composed by a user: lines that inner indicators are bound to, one read by the other."""

    lines = ("scaled", "mean")
    params = (("factor", 2.0),)

    def __init__(self) -> None:
        self.lines.scaled = self.data * self.p.factor
        self.lines.mean = bt.ind.EMA(self.lines.scaled, period=3)


class ReadsAhead(bt.Indicator):
    """Reads a line of its own before what it is bound to has run: a repeated call changes the value."""

    lines = ("first", "second")

    def __init__(self) -> None:
        self.lines.first = bt.ind.SumN(self.lines.second, period=1)
        self.lines.second = self.data * 2.0


class Counting(bt.Indicator):
    """Counts its calls."""

    lines = ("count",)

    def __init__(self) -> None:
        self.calls = 0

    def next(self) -> None:
        self.calls += 1
        self.lines.count[0] = self.calls


class Summing(bt.ind.SumN):
    """Backtrader's own `next` with a function that remembers."""

    def __init__(self) -> None:
        self.held = 0.0
        super().__init__()

    def func(self, values: Any) -> float:
        self.held += sum(values)
        return self.held


COMPOSED: dict[str, Callable[[list[Any]], Any]] = {
    "difference": lambda d: d[0].close - d[1].close,
    "spread of averages": lambda d: bt.ind.SMA(d[0], period=2) - bt.ind.EMA(d[1], period=3),
    "cross": lambda d: bt.ind.CrossOver(bt.ind.SMA(d[0], period=2), bt.ind.SMA(d[1], period=3)),
    "average of a difference": lambda d: bt.ind.SMA(d[0].close - d[2].open, period=2),
    "delay": lambda d: d[0].close(-2) / d[1].open(-1),
    "comparison": lambda d: bt.And(d[0].close > d[0].open, d[1].close > bt.ind.SMA(d[1], period=2)),
    "choice": lambda d: bt.If(d[0].close > 55.0, d[1].close, bt.Max(d[2].high, d[0].low)),
    "constant first": lambda d: bt.Max(55.0, d[1].close),
    "constant minus": lambda d: 100.0 - d[1].close,
    "division": lambda d: bt.DivByZero(d[0].close - d[1].close, d[2].volume - 100.0, zero=-1.0),
    "time": lambda d: d[0].datetime > d[1].datetime,
    "coupled": lambda d: bt.ind.SMA(d[1](), period=2),
    "coupled line": lambda d: d[0].close + d[1].close(),
    "on a stateful one": lambda d: bt.ind.SMA(bt.ind.LaguerreRSI(d[0]), period=2),
    "composed by a user": lambda d: Scaled(d[1]),
    "reads ahead": lambda d: ReadsAhead(d[1]),
    "own next": lambda d: Counting(d[0]),
    "own function": lambda d: Summing(d[0], period=2),
    "applied": lambda d: bt.ind.ApplyN(d[0], period=3, func=lambda values: sum(values)),
}


class Watcher(bt.Strategy):
    """Writes down the newest values of all indicators at every call, and everything they hold at the end."""

    lines = ("bound",)
    params = (("log", None), ("make", None), ("bind", False), ("late", False), ("halt", False))

    def __init__(self) -> None:
        self.p.make(list(self.datas))
        if self.p.bind:
            self.lines.bound = bt.ind.SMA(self.datas[0], period=2)

    def start(self) -> None:
        if self.p.halt:
            self.env.runstop()

    def write(self, what: str) -> None:
        made = self._lineiterators[self.IndType]
        values = [[len(each), *(line[0] if len(each) else None for line in each.lines)] for each in made]
        self.p.log.append((what, repr(self.lines.bound[0]), repr(values)))
        if self.p.late and len(self) == 5:
            bt.ind.SMA(self.datas[1], period=2)

    def prenext(self) -> None:
        self.write("prenext")

    def nextstart(self) -> None:
        self.write("nextstart")

    def next(self) -> None:
        self.write("next")

    def stop(self) -> None:
        made = self._lineiterators[self.IndType]
        self.p.log.append(repr([[list(line.array) for line in each.lines] for each in made]))


def run(cerebro: bt.Cerebro, feeds: list[Any], resampled: int, **kwargs: Any) -> list[Any]:
    log: list[Any] = []
    for feed in feeds:
        cerebro.adddata(feed)
    for feed in feeds[:resampled]:
        cerebro.resampledata(feed, timeframe=bt.TimeFrame.Minutes, compression=5)
    cerebro.addstrategy(Watcher, log=log, **kwargs)
    try:
        cerebro.run()
    except (ArithmeticError, LookupError) as error:  # divided by zero; data without bars at the other's first one
        log.append(repr(error))
    return log


def run_stock(bars: dict[str, list[Bar]], resampled: int = 0, **kwargs: Any) -> list[Any]:
    player = SlicePlayer(slices_of(bar for found in bars.values() for bar in found))
    feeds = [GridBars(player=player, symbol=symbol, name=symbol) for symbol in bars]
    return run(bt.Cerebro(stdstats=False), feeds, resampled, **kwargs)


def run_live(bars: dict[str, list[Bar]], resampled: int = 0, **kwargs: Any) -> list[Any]:
    source = ListSource(slices_of(bar for found in bars.values() for bar in found))
    cerebro = LiveCerebro(source=source, wakeup=Wakeup(), quicknotify=False)
    return run(cerebro, [LiveFeed(symbol=symbol) for symbol in bars], resampled, **kwargs)


@st.composite
def gappy_bars(draw: st.DrawFn, minutes: int = 40) -> dict[str, list[Bar]]:
    found: dict[str, list[Bar]] = {}
    together = draw(st.booleans())  # all begin at once
    for symbol in SYMBOLS:
        drawn = draw(st.sets(st.integers(1, minutes), min_size=1, max_size=minutes))
        held = sorted(drawn | {1} if together else drawn)
        prices = draw(st.lists(st.integers(50, 60), min_size=len(held), max_size=len(held)))
        found[symbol] = [make_bar(symbol, minute, float(price)) for minute, price in zip(held, prices, strict=True)]
    return found


def make_named(name: str, datas: list[Any]) -> Any:
    cls = _found[name]
    short = {key: 3 for key in ("period", "period_me1", "pfast", "period1") if key in cls.params._getkeys()}
    return cls(*datas[: max(1, cls._mindatas)], **short)


def start_cerebro(make: Callable[[list[Any]], Any], bind: bool = False) -> tuple[Any, list[Any]]:
    cerebro = LiveCerebro(source=ListSource([]), wakeup=Wakeup())
    for symbol in SYMBOLS:
        cerebro.adddata(LiveFeed(symbol=symbol))
    cerebro.addstrategy(Watcher, log=[], make=make, bind=bind, halt=True)
    strat = cerebro.run()[0]
    return strat, list(cerebro.datas)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5, deadline=None)
@given(bars=gappy_bars())
def test_each_of_backtraders_indicators_has_stocks_values(name: str, bars: dict[str, list[Bar]]) -> None:
    def make(datas: list[Any]) -> None:
        made = make_named(name, datas)
        bt.ind.SMA(make_named(name, datas[1:]), period=2)
        bt.ind.CrossOver(made, datas[2])

    assert run_live(bars, make=make) == run_stock(bars, make=make)


@pytest.mark.parametrize("name", COMPOSED)
@settings(max_examples=25, deadline=None)
@given(bars=gappy_bars())
def test_composed_indicators_have_stocks_values(name: str, bars: dict[str, list[Bar]]) -> None:
    assert run_live(bars, make=COMPOSED[name]) == run_stock(bars, make=COMPOSED[name])


@settings(max_examples=60, deadline=None)
@given(bars=gappy_bars(), data=st.data())
def test_any_mixture_on_plain_and_resampled_feeds_has_stocks_values(
    bars: dict[str, list[Bar]], data: st.DataObject
) -> None:
    names = data.draw(st.lists(st.sampled_from(NAMES), max_size=4))
    composed = data.draw(st.lists(st.sampled_from(sorted(COMPOSED)), max_size=4))
    turns = data.draw(st.lists(st.integers(0, 2), min_size=8, max_size=8))
    resampled = data.draw(st.integers(0, 2))

    def make(datas: list[Any]) -> None:
        for name, turn in zip(names, turns[:4], strict=False):
            make_named(name, datas[turn:] + datas[:turn])
        for name, turn in zip(composed, turns[4:], strict=False):
            COMPOSED[name](datas[-turn:] + datas[:-turn])

    kwargs = {"make": make, "bind": data.draw(st.booleans()), "late": data.draw(st.booleans())}
    assert run_live(bars, resampled, **kwargs) == run_stock(bars, resampled, **kwargs)


def test_those_of_backtrader_that_are_run_in_every_turn_are_known() -> None:
    found = set()
    for name in NAMES:
        strat, _ = start_cerebro(lambda datas, name=name: make_named(name, datas))
        if None in find_sources(strat._lineiterators[strat.IndType]):
            found.add(name)
    # Envelopes and oscillators of the zero lag indicator read the line that it writes after them.
    assert {name for name in found if not issubclass(_found[name], bt.ind.ZeroLagIndicator)} == NOT_PROVEN


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("difference", (0, 1)),
        ("delay", (0, 1)),
        ("choice", (0, 1, 2)),
        ("composed by a user", (1,)),
        ("constant minus", (1,)),
        ("constant first", None),  # its clock is the strategy
        ("coupled", None),
        ("reads ahead", None),
        ("own next", None),
        ("own function", None),
        ("applied", None),
        ("on a stateful one", None),
    ],
)
def test_sources_are_the_datas_that_an_indicator_depends_on(name: str, expected: tuple[int, ...] | None) -> None:
    strat, datas = start_cerebro(COMPOSED[name])
    found = find_sources(strat._lineiterators[strat.IndType])
    assert found[-1] == (None if expected is None else {id(datas[index]) for index in expected})


def test_what_writes_into_a_line_of_the_strategy_is_run_in_every_turn() -> None:
    strat, _ = start_cerebro(lambda datas: None, bind=True)
    assert None in find_sources(strat._lineiterators[strat.IndType])


def test_a_method_put_on_an_instance_is_not_proven() -> None:
    strat, _ = start_cerebro(lambda datas: bt.ind.Highest(datas[0], period=2))
    (made,) = strat._lineiterators[strat.IndType]
    assert find_sources([made]) != [None]
    made.next = lambda: None
    assert find_sources([made]) == [None]


def test_indicators_of_silent_datas_are_not_calculated_again() -> None:
    calls: list[str] = []

    class Strategy(bt.Strategy):
        def __init__(self) -> None:
            self.busy = bt.ind.SMA(self.datas[0], period=2)
            self.quiet = bt.ind.SMA(self.datas[1], period=2)
            self.opaque = Counting(self.datas[1])

        def next(self) -> None:
            if len(self) == 2:
                for name in ("busy", "quiet", "opaque"):
                    self.watch(name)

        def watch(self, name: str) -> None:
            indicator = getattr(self, name)
            plain = indicator._next

            def called() -> None:
                calls.append(name)
                plain()

            indicator._next = called

    bars = [make_bar("BBB", 0, 50.0), make_bar("BBB", 1, 50.0), *(make_bar("AAA", minute, 50.0) for minute in range(9))]
    cerebro = LiveCerebro(source=ListSource(slices_of(bars)), wakeup=Wakeup())
    for symbol in SYMBOLS[:2]:
        cerebro.adddata(LiveFeed(symbol=symbol))
    cerebro.addstrategy(Strategy)
    cerebro.run()
    assert (calls.count("busy"), calls.count("quiet"), calls.count("opaque")) == (7, 0, 7)
