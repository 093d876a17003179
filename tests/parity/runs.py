"""Ways to run: timers, sizers, signals, sweeps, several strategies, cheating, saving memory, stopping, failing."""

from __future__ import annotations

import datetime as dt
from typing import Any

import backtrader as bt
import pytz

from tests.parity import market
from tests.parity.orders import BUY, close_all
from tests.parity.scenario import Acts, Cross, acting, add, cerebro_of, crossing, every, scenario

FILLS = {"fills": 2}
NEW_YORK = pytz.timezone("US/Eastern")


def runs(name: str, build: Any, *, lean: bool = True, least: dict[str, int] | None = None, **details: Any) -> None:
    add(f"runs: {name}", build, lean=lean, least=FILLS if least is None else least, **details)


# Timers --------------------------------------------------------------------------------------------------------------
class Timed(Acts):
    """Trades when a timer says so."""

    params = (("timer", None), ("name", "first"))

    def __init__(self) -> None:
        super().__init__()
        self.add_timer(**self.p.timer)

    def notify_timer(self, timer: Any, when: Any, *args: Any, **kwargs: Any) -> None:
        if self.position:
            self.close()
        else:
            self.buy(size=3, when=repr((when, args, kwargs)))


TIMERS: dict[str, dict[str, Any]] = {
    "at a time": {"when": dt.time(15, 30)},
    "at a time, cheating": {"when": dt.time(15, 30), "cheat": True},
    "at the start of the session": {"when": bt.timer.SESSION_START},
    "at the end of the session": {"when": bt.timer.SESSION_END},
    "before the end of the session": {"when": bt.timer.SESSION_END, "offset": -dt.timedelta(minutes=40)},
    "repeated": {
        "when": bt.timer.SESSION_START,
        "offset": dt.timedelta(minutes=30),
        "repeat": dt.timedelta(minutes=45),
    },
    "on weekdays": {"when": dt.time(15, 30), "weekdays": [1, 3, 5], "weekcarry": True},
    "on days of the month": {"when": dt.time(15, 30), "monthdays": [1, 26], "monthcarry": True},
    "where allowed": {"when": dt.time(15, 30), "allow": lambda day: day.day % 2 == 0},
    "in a zone": {"when": dt.time(10, 30), "tzdata": NEW_YORK},
    "with more arguments": {"when": dt.time(15, 30), "color": "red"},
}
for name, timer in TIMERS.items():
    for number, frames in (
        ("one feed", [market.days(8, 8, 8)]),
        ("two feeds", [market.days(8, 8, 8), market.days(9, 8, 8, gaps=0.3)]),
    ):

        def timed(engine: type[Any], timer: Any = timer, frames: Any = frames) -> Any:
            cerebro = cerebro_of(
                engine,
                (),
                feeds=lambda: [
                    market.feed(frame, sessionstart=dt.time(14, 30), sessionend=dt.time(16, 30)) for frame in frames
                ],
            )
            cerebro.addstrategy(Timed, timer=timer)
            return cerebro

        runs(f"timer {name}, {number}", timed, lean=True)


@scenario(lean=True, least=FILLS)
def a_timer_of_cerebro(engine: type[Any]) -> Any:
    class Told(Cross):
        def notify_timer(self, timer: Any, when: Any, *args: Any, **kwargs: Any) -> None:
            self.buy(size=2)

    cerebro = cerebro_of(engine, [market.days(8)])
    cerebro.add_timer(dt.time(16, 0), strats=True)
    cerebro.addstrategy(Told)
    return cerebro


# Sizers --------------------------------------------------------------------------------------------------------------
class ByCash(bt.Sizer):
    params = (("share", 0.1),)

    def _getsizing(self, comminfo: Any, cash: float, data: Any, isbuy: bool) -> float:
        value = self.broker.getvalue() * self.p.share + cash * 0.01
        return value / data.close[0] if isbuy else self.strategy.getposition(data).size / 2 + 1


SIZERS: dict[str, Any] = {
    "fixed": (bt.sizers.FixedSize, {"stake": 7}),
    "fixed with a tranche": (bt.sizers.FixedSize, {"stake": 8, "tranches": 2}),
    "fixed, reversing": (bt.sizers.FixedReverser, {"stake": 3}),
    "fixed target": (bt.sizers.FixedSizeTarget, {"stake": 4}),
    "percent": (bt.sizers.PercentSizer, {"percents": 30}),
    "all in": (bt.sizers.AllInSizer, {}),
    "percent, whole": (bt.sizers.PercentSizerInt, {"percents": 30}),
    "all in, whole": (bt.sizers.AllInSizerInt, {"percents": 95}),
    "own": (ByCash, {"share": 0.2}),
}
DEFAULT_SIZE = ((every(10, 2), lambda s: s.buy()), (every(10, 7), lambda s: s.sell()), (every(30, 29), close_all))
for name, (sizer, values) in SIZERS.items():
    runs(
        f"sizer {name}",
        acting(*DEFAULT_SIZE, tune=lambda c, s=sizer, v=values: c.addsizer(s, **v)),
        least={"orders": 4},
    )
    runs(f"sizer {name}, two feeds with gaps", acting(
        *DEFAULT_SIZE, (every(9, 4), lambda s: s.buy(data=s.data1)), (every(9, 8), lambda s: s.close(data=s.data1)),
        frames=market.pair(), tune=lambda c, s=sizer, v=values: c.addsizer(s, **v)), least={"orders": 4})  # fmt: skip


class SetsSizer(Acts):
    def start(self) -> None:
        self.setsizer(ByCash())


runs("sizer set by the strategy", acting(*DEFAULT_SIZE, strategy=SetsSizer))

# Signals -------------------------------------------------------------------------------------------------------------


class Wave(bt.Indicator):
    lines = ("signal",)
    params = (("period", 9), ("sign", 1.0))

    def __init__(self) -> None:
        self.lines.signal = self.p.sign * (self.data - bt.ind.SMA(period=self.p.period))


class Rare(bt.Indicator):
    lines = ("signal",)

    def next(self) -> None:
        self.lines.signal[0] = float((len(self) % 20 == 9) - (len(self) % 20 == 16))


class Traded(bt.SignalStrategy):
    """A signal strategy with work of its own."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.signal_add(bt.SIGNAL_LONG, Rare())

    def next(self) -> None:
        if len(self) % 30 == 29 and self.position:
            self.close()

    def notify_order(self, order: Any) -> None:
        self.told.append(order.ref)


SIGNALS: dict[str, list[Any]] = {
    "long": [(bt.SIGNAL_LONG, Wave)], "short": [(bt.SIGNAL_SHORT, Wave)], "longshort": [(bt.SIGNAL_LONGSHORT, Wave)],
    "long inverse": [(bt.SIGNAL_LONG_INV, Wave)], "short inverse": [(bt.SIGNAL_SHORT_INV, Wave)],
    "long any": [(bt.SIGNAL_LONG_ANY, Wave)], "short any": [(bt.SIGNAL_SHORT_ANY, Wave)],
    "long and its exit": [(bt.SIGNAL_LONG, Wave), (bt.SIGNAL_LONGEXIT, Rare)],
    "long and its inverse exit": [(bt.SIGNAL_LONG, Wave), (bt.SIGNAL_LONGEXIT_INV, Rare)],
    "long and any exit": [(bt.SIGNAL_LONG, Wave), (bt.SIGNAL_LONGEXIT_ANY, Rare)],
    "short and its exit": [(bt.SIGNAL_SHORT, Wave), (bt.SIGNAL_SHORTEXIT, Rare)],
    "short and its inverse exit": [(bt.SIGNAL_SHORT, Wave), (bt.SIGNAL_SHORTEXIT_INV, Rare)],
    "short and any exit": [(bt.SIGNAL_SHORT, Wave), (bt.SIGNAL_SHORTEXIT_ANY, Rare)],
    "long and short": [(bt.SIGNAL_LONG, Wave), (bt.SIGNAL_SHORT, Wave)],
    "none": [(bt.SIGNAL_NONE, Wave)],
}  # fmt: skip
for name, signals in SIGNALS.items():

    def signalled(engine: type[Any], signals: Any = signals) -> Any:
        cerebro = cerebro_of(engine)
        for kind, signal in signals:
            cerebro.add_signal(kind, signal)
        return cerebro

    # Prices stay one side of zero, so a signal of 'any' exit may never let a position live.
    runs(f"signal {name}", signalled, lean=True, least={})
for name, switch in (("accumulating", "signal_accumulate"), ("concurrent", "signal_concurrent")):

    def switched(engine: type[Any], switch: str = switch) -> Any:
        cerebro = cerebro_of(engine)
        cerebro.add_signal(bt.SIGNAL_LONGSHORT, Wave, period=4)
        getattr(cerebro, switch)(True)
        return cerebro

    runs(f"signals {name}", switched, lean=True)


@scenario(lean=True, least=FILLS)
def a_signal_strategy_of_its_own(engine: type[Any]) -> Any:
    cerebro = cerebro_of(engine, market.pair())
    cerebro.signal_strategy(Traded)
    cerebro.add_signal(bt.SIGNAL_LONGSHORT, Wave)
    return cerebro


@scenario(lean=True, least=FILLS)
def a_signal_strategy_that_is_added(engine: type[Any]) -> Any:
    cerebro = cerebro_of(engine)
    cerebro.addstrategy(Traded)
    return cerebro


@scenario(lean=True, least={"bars": 0}, raised="ValueError")
def signals_beside_a_strategy(engine: type[Any]) -> Any:
    cerebro = cerebro_of(engine)
    cerebro.addstrategy(Cross)
    cerebro.add_signal(bt.SIGNAL_LONG, Wave)
    return cerebro


# Sweeps --------------------------------------------------------------------------------------------------------------
def sweep(engine: type[Any], frames: Any = None, **params: Any) -> Any:
    cerebro = cerebro_of(engine, frames, **params)
    cerebro.optstrategy(Cross, fast=range(3, 6), slow=(8, 13))
    cerebro.addanalyzer(bt.analyzers.TradeAnalyzer, _name="trades")
    cerebro.addanalyzer(bt.analyzers.DrawDown)
    return cerebro


OF_SIX = {"analyzers": 12}
for name, params in {
    "one process": {"maxcpus": 1},
    "one process, strategies returned": {"maxcpus": 1, "optreturn": False},
    "one process, data loaded each time": {"maxcpus": 1, "optdatas": False},
    "one process, no preloading": {"maxcpus": 1, "preload": False, "runonce": False},
    "two processes": {"maxcpus": 2},
    "two processes, data loaded each time": {"maxcpus": 2, "optdatas": False},
}.items():
    bars = {} if params["maxcpus"] == 1 else {"bars": 0}
    runs(
        f"sweep in {name}",
        lambda engine, params=params: sweep(engine, **params),
        lean="no preloading" not in name,
        least={**OF_SIX, **bars},
    )
runs("sweep over two feeds with gaps", lambda engine: sweep(engine, market.pair(), maxcpus=1), lean=True, least=OF_SIX)


class Picky(Cross):
    def __init__(self) -> None:
        if self.p.fast == 4:
            raise bt.errors.StrategySkipError
        super().__init__()


@scenario(lean=True, least={"bars": 1})
def a_sweep_that_skips(engine: type[Any]) -> Any:
    cerebro = cerebro_of(engine, maxcpus=1)
    cerebro.optstrategy(Picky, fast=range(3, 6))
    return cerebro


@scenario(lean=True, least={"bars": 0})
def a_strategy_that_skips(engine: type[Any]) -> Any:
    return crossing(strategy=Picky, fast=4, preload=False)(engine)


# More than one -------------------------------------------------------------------------------------------------------
@scenario(lean=True, least=FILLS)
def two_strategies(engine: type[Any]) -> Any:
    cerebro = crossing()(engine)
    cerebro.addstrategy(Cross, fast=4, slow=11, size=2)
    return cerebro


@scenario(lean=True, least=FILLS)
def three_strategies_with_their_own_sizers(engine: type[Any]) -> Any:
    cerebro = cerebro_of(engine, market.pair(), stdstats=True)
    for i in range(3):
        number = cerebro.addstrategy(Acts, acts=((every(9 + i, 1), lambda s: s.buy()), (every(9 + i, 5), close_all)))
        cerebro.addsizer_byidx(number, bt.sizers.FixedSize, stake=i + 2)
    cerebro.addanalyzer(bt.analyzers.TradeAnalyzer)
    return cerebro


@scenario(lean=True, least={"bars": 1})
def no_strategy(engine: type[Any]) -> Any:
    return cerebro_of(engine)


@scenario(lean=True, least={"bars": 0})
def no_feed(engine: type[Any]) -> Any:
    return crossing(())(engine)


@scenario(lean=True, least={"indicator_values": 1})
def indicators_added_to_cerebro(engine: type[Any]) -> Any:
    cerebro = crossing()(engine)
    cerebro.addindicator(bt.ind.RSI, period=5)
    cerebro.addindicator(bt.ind.BollingerBands)
    return cerebro


def twice(cerebro: Any) -> list[Any]:
    return [*cerebro.run(), *cerebro.run()]


def once_each_way(cerebro: Any) -> list[Any]:
    return [*cerebro.run(), *cerebro.run(runonce=False), *cerebro.run(preload=False), *cerebro.run()]


runs("one Cerebro, twice", crossing(), run=twice)
runs("one Cerebro, twice, two feeds with gaps", crossing(market.pair()), run=twice)
runs(
    "one Cerebro, twice, with analyzers and observers",
    crossing(market.pair(), stdstats=True, tune=lambda c: c.addanalyzer(bt.analyzers.TradeAnalyzer)),
    run=twice,
    lean=True,
)
runs("one Cerebro, in several modes", crossing(), run=once_each_way, lean=False)

# Modes ---------------------------------------------------------------------------------------------------------------
MODES: dict[str, dict[str, Any]] = {
    "runonce off": {"runonce": False},
    "preload off": {"preload": False},
    "both off": {"preload": False, "runonce": False},
    "exactbars 1": {"exactbars": 1},
    "exactbars true": {"exactbars": True},
    "exactbars -1": {"exactbars": -1},
    "exactbars -2": {"exactbars": -2},
    "live": {"live": True},
    "old sync": {"oldsync": True},
    "object cache": {"objcache": True},
    "look ahead": {"lookahead": 5},
    "old buy and sell": {"stdstats": True, "oldbuysell": True},
    "old trades": {"stdstats": True, "oldtrades": True},
}
LEAN_MODES = ("object cache", "look ahead", "old buy and sell", "old trades")
for name, params in MODES.items():
    for number, frames in (("one feed", None), ("three feeds with gaps", market.trio())):
        # Stock Backtrader cannot do all of this: what it raises is a scenario too.
        raised = "ValueError" if number != "one feed" and params.get("exactbars", 0) > 0 else ""
        runs(f"{name}, {number}", crossing(frames, **params), lean=name in LEAN_MODES, raised=raised)


class Opens(Acts):
    """Acts at the open of a bar, before it is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.average = bt.ind.SMA(period=5)

    def prenext_open(self) -> None:
        self.seen.append(("prenext_open", len(self)))

    def nextstart_open(self) -> None:
        self.buy(size=2)

    def next_open(self) -> None:
        for test, act in self.p.acts:
            if test(len(self)):
                act(self)
        if len(self) % 9 == 4 and self.data.open[0] > self.average[0]:
            self.sell(size=1)

    def next(self) -> None:
        if len(self) % 31 == 30:
            self.close()


for name, frames in (("one feed", None), ("two feeds with gaps", market.pair())):
    for broker in (True, False):
        runs(
            f"cheat on open, {name}, broker {'too' if broker else 'not'}",
            acting((every(10, 2), BUY), (every(10, 7), close_all), frames=frames, strategy=Opens, cheat_on_open=True,
                   broker_coo=broker), lean=True,
        )  # fmt: skip
runs("next_open without cheating", acting((every(10, 2), BUY), strategy=Opens), lean=True, least={"bars": 100})


class Stops(Cross):
    def next(self) -> None:
        super().next()
        if len(self) == 60:
            self.env.runstop()
            self.buy(size=1)


for name, frames in (("one feed", None), ("two feeds with gaps", market.pair())):
    runs(f"stopped by the strategy, {name}", crossing(frames, strategy=Stops))
    runs(
        f"stopped by the strategy, default observers, {name}",
        crossing(frames, strategy=Stops, stdstats=True),
        lean=True,
    )


class StopsWhenTold(Cross):
    def notify_order(self, order: Any) -> None:
        if order.ref == 3 and order.status == order.Completed:
            self.env.runstop()


runs("stopped in a notification", crossing(strategy=StopsWhenTold))

# What user code raises -----------------------------------------------------------------------------------------------
HOOKS = (
    "__init__", "start", "prenext", "nextstart", "next", "stop", "notify_order", "notify_trade", "notify_cashvalue",
    "notify_fund", "notify_timer", "next_open",
)  # fmt: skip
for hook in HOOKS:
    for error, late in ((ValueError("told so", 7), False), (ZeroDivisionError("later"), True)):

        def fails(self: Any, *args: Any, hook: str = hook, error: Exception = error, late: bool = late) -> None:
            if hook == "__init__":
                Cross.__init__(self)
                if not late:
                    raise error
                return
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == (5 if late else 1):
                raise error
            getattr(Cross, hook)(self, *args)

        if late and hook in ("__init__", "start", "nextstart", "stop"):
            continue
        strategy = type(f"Fails_{hook.strip('_')}_{late}", (Cross,), {hook: fails})

        def failing(engine: type[Any], strategy: Any = strategy, hook: str = hook) -> Any:
            cerebro = cerebro_of(engine, market.pair(), cheat_on_open=hook == "next_open")
            if hook == "notify_timer":
                cerebro.add_timer(dt.time(14, 40), repeat=dt.timedelta(minutes=5), strats=True)
            cerebro.addstrategy(strategy)
            return cerebro

        early = hook in ("__init__", "start") or (hook in ("notify_cashvalue", "notify_fund") and not late)
        runs(
            f"an error in {hook}{', later' if late else ''}", failing, lean=True,
            least={"bars": 0} if early else {}, raised=type(error).__name__,
        )  # fmt: skip


class Unknown(Cross):
    def next(self) -> None:
        super().next()
        if len(self) == 40:
            self.no_such_thing()


runs("an unknown name in next", crossing(strategy=Unknown), raised="AttributeError")
runs("an unknown parameter", crossing(strategy=Unknown, tune=lambda c: c.addstrategy(Cross, speed=1)), lean=True,
     least={"bars": 0}, raised="TypeError")  # fmt: skip


class SlowIndicatorFails(bt.Indicator):
    lines = ("x",)

    def next(self) -> None:
        if len(self) == 30:
            raise OverflowError("in an indicator")
        self.lines.x[0] = self.data[0]


class WithFailing(Cross):
    def __init__(self) -> None:
        super().__init__()
        self.failing = SlowIndicatorFails()


runs("an error in an indicator", crossing(strategy=WithFailing), least={"bars": 0}, raised="OverflowError", lean=True)


class DividesByZero(Cross):
    def __init__(self) -> None:
        super().__init__()
        self.ratio = self.data.close / (self.data.volume - self.data.volume)


runs(
    "a line divided by zero",
    crossing(strategy=DividesByZero),
    least={"bars": 0},
    raised="ZeroDivisionError",
    lean=True,
)


class AnalyzerFails(bt.Analyzer):
    def notify_order(self, order: Any) -> None:
        if order.status == order.Completed:
            raise LookupError("in an analyzer")


runs("an error in an analyzer", crossing(tune=lambda c: c.addanalyzer(AnalyzerFails)), raised="LookupError", least={})


class IndexTooFar(Cross):
    def next(self) -> None:
        super().next()
        if len(self) == 50:
            self.buy(size=self.data.close[10_000])


runs("a look behind the end", crossing(strategy=IndexTooFar), raised="IndexError", least={})

# What strategies are built like --------------------------------------------------------------------------------------


class Base(bt.Strategy):
    params = (("period", 7),)

    def __init__(self) -> None:
        self.average = bt.ind.SMA(period=self.p.period)

    def next(self) -> None:
        self.order_target_size(target=4 if self.data.close[0] > self.average[0] else -2)


class Child(Base):
    params = (("period", 5), ("extra", 1.0))


class GrandChild(Child):
    def notify_order(self, order: Any) -> None:
        self.addminperiod(0)


class WithLines(Base):
    lines = ("top", "bottom")

    def __init__(self) -> None:
        super().__init__()
        self.lines.top = bt.ind.Highest(self.data.high, period=5)
        self.lines.bottom = self.data.low - 0.05

    def next(self) -> None:
        if self.data.close[0] >= self.lines.top[-1]:
            self.buy(size=1)
        elif self.data.close[0] < self.lines.bottom[0] + 0.06:
            self.close()


class WithOldNames(Base):
    def notify(self, order: Any) -> None:
        self.told = getattr(self, "told", 0) + 1
        if self.told == 9:
            self.buy(size=9)

    def notify_operation(self, trade: Any) -> None:
        if trade.isclosed and trade.ref == 3:
            self.sell(size=5)


class PrenextIsNext(Base):
    def prenext(self) -> None:
        self.next()

    def nextstart(self) -> None:
        self.buy(size=1)


class ListensToAll(Base):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []

    def notify_cashvalue(self, cash: float, value: float) -> None:
        self.heard.append(cash)
        if len(self.heard) % 25 == 0:
            self.buy(size=1)

    def notify_fund(self, cash: float, value: float, fundvalue: float, shares: float) -> None:
        self.heard.append(fundvalue + shares)

    def notify_store(self, message: Any, *args: Any, **kwargs: Any) -> None:
        self.heard.append(message)

    def notify_data(self, data: Any, status: int, *args: Any, **kwargs: Any) -> None:
        self.heard.append(status)


class SwapsItsNext(Base):
    def next(self) -> None:
        super().next()
        if len(self) == 30:
            self.next = lambda: self.order_target_size(target=len(self) % 4)


class MakesIndicatorsLater(Base):
    def start(self) -> None:
        self.period = len(self.datas)

    def next(self) -> None:
        super().next()
        if len(self) % 20 == 0:
            self.addminperiod(1)


class Oldest(Base):
    def _next(self) -> None:
        super()._next()

    def _oncepost(self, time: float) -> None:
        if len(self) % 10 == 3:
            self.buy(size=1)
        super()._oncepost(time)


for strategy in (Base, Child, GrandChild, WithLines, WithOldNames, PrenextIsNext, ListensToAll, SwapsItsNext,
                 MakesIndicatorsLater):  # fmt: skip
    for number, frames in (("one feed", None), ("three feeds with gaps", market.trio())):
        least = {} if strategy is WithLines else FILLS  # stock never fills a strategy's own lines in advance
        runs(f"strategy {strategy.__name__}, {number}", crossing(frames, strategy=strategy), least=least)
runs("strategy with overridden machinery", crossing(strategy=Oldest), lean=False)
