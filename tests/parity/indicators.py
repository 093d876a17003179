"""Indicators: each of Backtrader's own, a user's own in every form, and arithmetic of lines."""

from __future__ import annotations

import math
from typing import Any

import backtrader as bt
import numpy as np

from tests.parity import market
from tests.parity.scenario import add, cerebro_of

I = bt.indicators  # noqa: E741 - the name stands in every line
BARS = 110
NEEDS_NEXT = {"HeikinAshi", "haDelta"}  # Backtrader itself switches runonce off for these
GAPS = (market.walk(51, BARS, gaps=0.15), market.walk(52, BARS, gaps=0.15, price=40.0))
FLAT = (market.walk(51, BARS, decimals=1, swing=0.05), market.walk(52, BARS, price=40.0, decimals=1, swing=0.05))


class Holds(bt.Strategy):
    """Trades by the sign of the change of the first line of its indicators, which `make` makes."""

    params = (("make", None), ("trade", True))

    def __init__(self) -> None:
        made = self.p.make(self)
        self.made = made if isinstance(made, (list, tuple)) else [made]

    def next(self) -> None:
        if not self.p.trade:
            return
        for each in self.made:
            now, before = each[0], each[-1] if len(each) > 1 else math.nan
            if now > before and len(self) % 5 == 0:
                self.buy(size=1)
            elif now < before and self.position and len(self) % 7 == 0:
                self.close()


def holding(make: Any, frames: Any = GAPS, trade: bool = True, **params: Any) -> Any:
    def build(engine: type[Any]) -> Any:
        cerebro = cerebro_of(engine, frames, **params)
        cerebro.addstrategy(Holds, make=make, trade=trade)
        return cerebro

    return build


def held(name: str, make: Any, *, lean: bool = True, frames: Any = GAPS, **details: Any) -> None:
    params = details.pop("params", {})
    least = details.pop("least", {"indicator_values": BARS // 2})
    build = holding(make, frames, trade=details.pop("trade", True), **params)
    add(f"indicators: {name}", build, lean=lean, least=least, **details)


# Backtrader's own ----------------------------------------------------------------------------------------------------
# These want arguments that have no defaults, or are parts for subclasses.
NOT_ALONE = {
    "ApplyN", "BaseApplyN", "CointN", "CrossDown", "CrossOver", "CrossUp", "DemarkPivotPoint", "DivByZero",
    "DivZeroByZero", "Envelope", "EnvelopeMixIn", "ExponentialSmoothingDynamic", "FibonacciPivotPoint",
    "FindFirstIndex", "FindLastIndex", "Indicator", "LinePlotterIndicator", "MovAv", "MovingAverage",
    "MovingAverageBase", "NonZeroDifference", "OLS_BetaN", "OLS_Slope_InterceptN", "OLS_TransformationN",
    "OperationN", "Oscillator", "OscillatorMixIn", "PeriodN", "PivotPoint", "ReduceN", "WeightedAverage",
}  # fmt: skip
LONG = (market.walk(51, 300, gaps=0.05), market.walk(52, 300, gaps=0.05, price=40.0))


def own_indicators() -> dict[str, type[Any]]:
    found: dict[str, type[Any]] = {}
    for name, value in sorted(vars(I).items()):
        known_as = getattr(value, "aliased", "")
        if isinstance(value, type) and issubclass(value, bt.Indicator) and name == value.__name__ and not known_as:
            found[name] = value
    return {name: found[name] for name in sorted(found) if name not in NOT_ALONE and not name.startswith("_")}


def both(cls: type[Any]) -> Any:
    wanted = max(1, getattr(cls, "_mindatas", 1))
    if wanted > 1:
        return lambda s: cls(*s.datas[:wanted])
    return lambda s: [cls(data) for data in s.datas]


for name, cls in own_indicators().items():
    held(
        name,
        both(cls),
        lean=name not in NEEDS_NEXT,
        trade=False,
        frames=LONG if name == "DV2" or name.startswith("TripleExp") else GAPS,
    )

AVERAGES = ("SMA", "EMA", "SMMA", "WMA", "DEMA", "TEMA", "HMA", "KAMA", "ZLEMA", "ZLInd", "DMA")
SPECIAL: dict[str, Any] = {
    "crossings": lambda s: [cls(s.data.close, I.SMA(period=7)) for cls in (I.CrossOver, I.CrossUp, I.CrossDown)],
    "crossings of a number": lambda s: I.CrossOver(s.data.close, 100.0),
    "crossings with ties": lambda s: I.CrossOver(I.SMA(s.data.close, period=2), I.SMA(s.data.open, period=2)),
    "non zero difference": lambda s: I.NonZeroDifference(s.data.close, s.data.open),
    "averages of one bar": lambda s: [getattr(I, name)(s.data, period=1) for name in ("SMA", "EMA", "SMMA", "Highest")],
    "averages of two bars": lambda s: [getattr(I, name)(s.data, period=2) for name in AVERAGES],
    "averages of many bars": lambda s: [getattr(I, name)(s.data, period=45) for name in ("SMA", "EMA", "SMMA", "WMA")],
    "averages of averages": lambda s: [getattr(I, name)(I.SMA(period=4), period=5) for name in AVERAGES],
    "averages of each line": lambda s: [I.SMA(line, period=6) for line in (s.data.open, s.data.high, s.data.volume)],
    "bands with another average": lambda s: I.BollingerBands(s.data, period=9, devfactor=1.5, movav=I.EMA),
    "MACD with other averages": lambda s: I.MACDHisto(s.data, period_me1=5, period_me2=9, period_signal=4, movav=I.SMA),
    "RSI, safe": lambda s: [cls(s.data, period=5, safediv=True) for cls in (I.RSI, I.RSI_SMA, I.RSI_EMA)],
    "stochastics, safe": lambda s: [cls(s.data, safediv=True)
                                    for cls in (I.Stochastic, I.StochasticFast, I.StochasticFull)],
    "strength with another look back": lambda s: I.RSI(s.data, period=5, lookback=3),
    "highest and lowest of lines": lambda s: [I.Highest(s.data.high, period=5), I.Lowest(s.data.low, period=8)],
    "highest of an indicator": lambda s: I.Highest(I.SMA(period=3), period=5),
    "sum of a window": lambda s: [I.SumN(s.data.volume, period=6), I.Accum(s.data.volume), I.Average(s.data, period=4)],
    "any and all of a window": lambda s: [I.AnyN(s.data > I.SMA(period=3), period=4),
                                          I.AllN(s.data > s.data(-1), period=2)],
    "index of the highest": lambda s: [I.FindFirstIndexHighest(s.data, period=6),
                                       I.FindLastIndexLowest(s.data, period=6)],
    "weighted average": lambda s: I.WeightedAverage(s.data, period=3, coef=2.0, weights=(1.0, 2.0, 3.0)),
    "smoothing with a given factor": lambda s: I.ExponentialSmoothing(s.data, period=5, alpha=0.3),
    "dynamic smoothing": lambda s: I.ExponentialSmoothingDynamic(s.data, period=5, alpha=s.data.volume * 0.001),
    "own function of a window": lambda s: I.ApplyN(s.data, period=5, func=lambda window: max(window) - min(window)),
    "percent rank": lambda s: I.PercentRank(s.data, period=9),
    "true range alone": lambda s: [I.TrueRange(data) for data in s.datas],
    "directional movement": lambda s: [I.DirectionalMovement(data, period=5) for data in s.datas],
    "parabolic stop": lambda s: [I.PSAR(data, af=0.05) for data in s.datas],
    "envelopes": lambda s: [getattr(I, f"{name}Envelope")(s.data, period=5) for name in ("SMA", "EMA", "SMMA")],
    "oscillators": lambda s: [getattr(I, f"{name}Oscillator")(s.data, period=5) for name in ("SMA", "EMA", "WMA")],
    "division that is safe": lambda s: [bt.DivByZero(s.data.close, s.data.close - s.data.open, zero=-1.0),
                                        bt.DivZeroByZero(s.data.close - s.data.open, s.data.open - s.data.close)],
    "pivot points": lambda s: [I.PivotPoint(s.data), I.FibonacciPivotPoint(s.data), I.DemarkPivotPoint(s.data)],
}  # fmt: skip
TIGHT = {"crossings with ties", "division that is safe", "parabolic stop", "RSI, safe", "stochastics, safe"}
for name, make in SPECIAL.items():
    held(name, make, frames=FLAT if name in TIGHT else GAPS)
held(
    "a regression that wants an old pandas",
    lambda s: I.OLS_BetaN(s.data0, s.data1, period=5), raised="AttributeError", least={"bars": 0},
)  # fmt: skip
for name in ("SMA", "EMA", "WMA", "StdDev", "RSI_Safe", "ATR", "Highest", "MACD"):
    scaled = [market.walk(51, BARS) * factor for factor in (1e-5, 1e7)]
    held(
        f"{name} of tiny and huge prices",
        lambda s, name=name: [getattr(I, name)(data) for data in s.datas],
        frames=scaled,
    )
    rough = market.walk(51, BARS).copy()
    rough.iloc[60:64, :4] = np.nan
    held(f"{name} with a hole of NaN", lambda s, name=name: getattr(I, name)(s.data), frames=[rough])
    wild = market.walk(51, BARS).copy()
    wild.iloc[40, :4] = [1e300, 1e300, 1e-300, 1e-300]
    held(f"{name} with a wild price", lambda s, name=name: getattr(I, name)(s.data), frames=[wild])
held("SMA across powers of two", lambda s: [I.SMA(s.data, period=p) for p in (2, 3, 5, 30)],
     frames=[market.walk(53, 400, price=128.0, decimals=4, swing=0.4)])  # fmt: skip
held("SMA of many digits", lambda s: [I.SMA(s.data, period=p) for p in (2, 3, 5, 30)],
     frames=[market.walk(53, 400, price=3.0, swing=0.02, decimals=15)])  # fmt: skip
held("SMA of infinite prices", lambda s: I.SMA(s.data.volume, period=4),
     frames=[market.walk(51, BARS).assign(volume=lambda f: np.where(np.arange(len(f)) == 50, np.inf, f.volume))],
     )  # fmt: skip

# A user's own --------------------------------------------------------------------------------------------------------


class NextOnly(bt.Indicator):
    lines = ("x", "y")
    params = (("period", 4),)

    def __init__(self) -> None:
        self.addminperiod(self.p.period)

    def next(self) -> None:
        window = self.data.get(size=self.p.period)
        self.lines.x[0] = sum(window) / max(1, len(window))
        self.lines.y[0] = self.lines.x[0] - self.lines.x[-1] if len(self) > self.p.period else 0.0


class OnceOnly(bt.Indicator):
    lines = ("x",)
    params = (("period", 4),)

    def __init__(self) -> None:
        self.addminperiod(self.p.period)

    def once(self, start: int, end: int) -> None:
        source, target = self.data.array, self.lines.x.array
        for i in range(start, end):
            target[i] = max(source[i - self.p.period + 1 : i + 1])


class Both(OnceOnly):
    def next(self) -> None:
        self.lines.x[0] = max(self.data.get(size=self.p.period))


class WithPreparations(Both):
    def preonce(self, start: int, end: int) -> None:
        for i in range(start, end):
            self.lines.x.array[i] = -1.0

    def oncestart(self, start: int, end: int) -> None:
        for i in range(start, end):
            self.lines.x.array[i] = -2.0

    def prenext(self) -> None:
        self.lines.x[0] = -1.0

    def nextstart(self) -> None:
        self.lines.x[0] = -2.0


class Declared(bt.Indicator):
    lines = ("x", "y")
    params = (("period", 4),)

    def __init__(self) -> None:
        self.lines.x = I.SMA(self.data, period=self.p.period) - self.data(-2)
        self.lines.y = bt.If(self.lines.x > 0, self.data.high, self.data.low)


class Nested(bt.Indicator):
    lines = ("x",)
    params = (("inner", NextOnly),)

    def __init__(self) -> None:
        self.inner = self.p.inner(self.data)
        self.average = I.EMA(self.inner.lines.x, period=3)

    def next(self) -> None:
        self.lines.x[0] = self.inner.lines[0][0] - self.average[0] + self.inner.lines[0][-1]


class Recursive(bt.Indicator):
    lines = ("x",)

    def nextstart(self) -> None:
        self.lines.x[0] = self.data[0]

    def next(self) -> None:
        self.lines.x[0] = 0.7 * self.lines.x[-1] + 0.3 * self.data[0]


class OfTwo(bt.Indicator):
    _mindatas = 2
    lines = ("spread",)

    def __init__(self) -> None:
        self.addminperiod(3)

    def next(self) -> None:
        self.lines.spread[0] = self.data0[0] - self.data1[0] + self.data1[-1]


class OfTwoDeclared(bt.Indicator):
    _mindatas = 2
    lines = ("spread",)

    def __init__(self) -> None:
        self.lines.spread = self.data0.close - self.data1.close


class MoreSMA(I.SMA):
    lines = ("double",)

    def __init__(self) -> None:
        super().__init__()
        self.lines.double = self.lines.sma * 2.0


class NextSMA(I.SMA):
    def next(self) -> None:
        super().next()
        self.lines.sma[0] = round(self.lines.sma[0], 1)


class OnceEMA(I.EMA):
    def once(self, start: int, end: int) -> None:
        super().once(start, end)
        array = self.lines[0].array
        for i in range(start, end):
            array[i] = round(array[i], 2)


class OtherRSI(I.RSI):
    params = (("period", 6), ("movav", I.EMA))

    def _rscalc(self, rsi: float) -> float:
        return super()._rscalc(rsi)


class Window(I.PeriodN):
    lines = ("x",)
    params = (("period", 5),)

    def next(self) -> None:
        self.lines.x[0] = self.data.get(size=self.p.period)[0]


class Applied(I.BaseApplyN):
    lines = ("x",)
    params = (("period", 5), ("func", lambda window: float(np.median(window))))


class Plotted(bt.Indicator):
    lines = ("x",)
    plotinfo = {"subplot": True, "plotname": "mine"}  # noqa: RUF012 - Backtrader's way
    plotlines = {"x": {"color": "red"}}  # noqa: RUF012

    def __init__(self) -> None:
        I.SMA(self.data, period=3, plot=False)
        self.lines.x = self.data.close / 2


class Counts(bt.Indicator):
    """Depends on how often and in which order it is called."""

    lines = ("x",)
    calls = 0

    def next(self) -> None:
        self.calls += 1
        self.lines.x[0] = self.calls + len(self) / 1000 + len(self.data) / 1e6


class LooksAtTime(bt.Indicator):
    lines = ("x",)

    def next(self) -> None:
        self.lines.x[0] = self.data.datetime.datetime(0).minute + self.data.datetime.date(0).day / 100


class Peeks(bt.Indicator):
    lines = ("x",)

    def once(self, start: int, end: int) -> None:
        values = np.asarray(self.data.close.array)
        self.lines.x.array[start:end] = type(self.lines.x.array)("d", np.gradient(values)[start:end])


class NeedsNext(bt.Indicator):
    _nextforce = True
    lines = ("x",)

    def next(self) -> None:
        self.lines.x[0] = self.data[0] * 2


ONE: tuple[type[Any], ...] = (
    NextOnly, OnceOnly, Both, WithPreparations, Declared, Nested, Recursive, MoreSMA, NextSMA, OnceEMA, OtherRSI,
    Window, Applied, Plotted, Counts, LooksAtTime, Peeks,
)  # fmt: skip
for cls in ONE:
    held(f"own, {cls.__name__}", lambda s, cls=cls: cls(s.data), frames=[market.walk(51, BARS)])
    held(f"own, {cls.__name__}, on each of two feeds with gaps", both(cls))
for inner in (OnceOnly, Both, Declared, Recursive, Nested):
    held(f"own, nested around {inner.__name__}", lambda s, inner=inner: Nested(s.data, inner=inner), frames=FLAT)
held("own, on an indicator", lambda s: [NextOnly(I.SMA(period=4)), I.SMA(NextOnly(s.data), period=4)])
held("own, on a line", lambda s: [NextOnly(s.data.high), OnceOnly(s.data.volume), Declared(s.data)])
held("own, with a later start on one feed", lambda s: [NextOnly(s.data0, period=20), NextOnly(s.data1, period=3)])
held("own, of two feeds", lambda s: OfTwo(s.data0, s.data1), frames=FLAT)
held("own, of two feeds, declared", lambda s: OfTwoDeclared(s.data0, s.data1), frames=FLAT)
held("own, needing next", lambda s: NeedsNext(s.data), lean=False)
UNEVEN = (market.walk(51, BARS), market.walk(52, 90, price=40.0))
held("own, of two feeds of unequal length", lambda s: OfTwo(s.data0, s.data1), frames=UNEVEN, raised="IndexError",
     least={"bars": 0})  # fmt: skip
held("own, of two feeds of unequal length, declared", lambda s: OfTwoDeclared(s.data0, s.data1), frames=UNEVEN,
     raised="IndexError", least={"bars": 0})  # fmt: skip
held(
    "own, of two feeds with gaps, runonce off", lambda s: OfTwo(s.data0, s.data1), params={"runonce": False}, lean=False
)
held("made and not kept", lambda s: [[I.RSI(data) for data in s.datas], I.SMA(s.data)][1:])
held("made in a list and by name", lambda s: [dict(a=I.SMA(d), b=NextOnly(d))["b"] for d in s.datas])  # noqa: C408
held("without a data named", lambda s: [I.SMA(period=5), I.RSI(), I.ATR()])
held("with a minimum of its own", lambda s: [s.addminperiod(33), I.SMA(period=5)][1:])
held(
    "with automatic plotting off",
    lambda s: [I.SMA(period=5, plot=False), I.EMA(period=4, plotname="mine", subplot=True)],
)

# Arithmetic of lines -------------------------------------------------------------------------------------------------
LINES: dict[str, Any] = {
    "plus, minus, times": lambda s: [s.data.close + s.data.open, s.data.high - s.data.low, s.data.close * s.data.high],
    "with numbers": lambda s: [s.data.close + 1, 2 - s.data.close, s.data.close * 0.5, 1 / s.data.close],
    "whole division and powers": lambda s: [s.data.close // 3, s.data.close**2, s.data.close**0.5, s.data.close / 3],
    "of operations": lambda s: ((s.data.high + s.data.low) / 2 - s.data.close) * 100 + s.data.volume / s.data.open,
    "signs": lambda s: [-s.data.close, abs(s.data.open - s.data.close)],
    "comparisons": lambda s: [s.data.close > s.data.open, s.data.close < 100.0, s.data.close >= s.data.open,
                              s.data.close <= s.data.open, s.data.close == s.data.open, s.data.close != s.data.open],
    "comparisons with NaN of warm-up": lambda s: [I.SMA(period=9) > I.SMA(period=4), I.SMA() == I.EMA()],
    "delays": lambda s: [s.data.close(-1), I.SMA(period=4)(-2), s.data.close(-1)(-1), s.data.close - s.data.close(-5)],
    "a delay of a feed": lambda s: s.data(-3),
    "a look ahead by a delay": lambda s: s.data.close(1),
    "and, or": lambda s: [bt.And(s.data.close > s.data.open, bt.Or(s.data.volume > 100, s.data.close < 99.5))],
    "if with lines": lambda s: bt.If(s.data.close > s.data.open, s.data.high, s.data.low),
    "if with numbers": lambda s: [bt.If(s.data.close > s.data.open, 1.0, -1.0), bt.If(s.data.volume, 1, 0)],
    "if in if": lambda s: bt.If(s.data.close > s.data.open, bt.If(s.data.volume > 200, 2, 1), s.data.volume * -1),
    "any, all": lambda s: [bt.Any(s.data.close > s.data.open, s.data.volume > 300),
                           bt.All(s.data.close > s.data.open, s.data.volume)],
    "max, min, sum": lambda s: [bt.Max(s.data.close, s.data.open, 100.0), bt.Min(s.data.close, I.SMA(period=4)),
                                bt.Sum(s.data.close, s.data.open, s.data.high)],
    "reduce": lambda s: bt.Reduce(lambda a, b: a * 0.5 + b, s.data.close, s.data.open),
    "comparing": lambda s: bt.Cmp(s.data.close, s.data.open),
    "comparing with three ways": lambda s: bt.CmpEx(s.data.close, s.data.open, 1.0, 0.0, -1.0),
    "between feeds": lambda s: [s.data0.close + s.data1.close, s.data0.close > s.data1.close,
                                bt.Max(s.data0.close, s.data1.close)],
    "in conditions": lambda s: I.SMA(bt.If(s.data.close > s.data.close(-1), s.data.volume, -s.data.volume), period=5),
    "zero times": lambda s: [s.data.close * 0, s.data.close * 0 * -1, (s.data.close - s.data.close)],
}  # fmt: skip
for name, make in LINES.items():
    even = name in ("between feeds", "and, or", "a look ahead by a delay", "reduce")
    held(f"lines, {name}", make, frames=FLAT if even else GAPS)


class Operators(bt.Strategy):
    """Uses lines as numbers in next."""

    def __init__(self) -> None:
        self.average = I.SMA(period=5)
        self.signal = self.data.close - self.average

    def next(self) -> None:
        if self.signal > 0 and self.data.close > self.data.open and not self.position:
            self.buy(size=int(abs(self.signal[0]) * 10) + 1)
        elif self.data < self.average and self.position:
            self.close()
        if self.signal[0] == self.data.close[0] - self.average[0] and self.average.sma[-1] != self.average.l.sma[0]:
            self.sell(size=1)
        if len(self.average) != len(self.data) or self.average.lines.sma.get(size=2)[-1] != self.average[0]:
            raise AssertionError("an indicator is out of step")


def operating(engine: type[Any]) -> Any:
    cerebro = cerebro_of(engine, [market.walk(51, BARS)])
    cerebro.addstrategy(Operators)
    return cerebro


add("indicators: lines as numbers in next", operating, lean=True, least={"fills": 4})


# Coupled time frames -------------------------------------------------------------------------------------------------
def coupled(how: str, make: Any, **params: Any) -> Any:
    def build(engine: type[Any]) -> Any:
        cerebro = cerebro_of(engine, [market.walk(54, 200)], **params)
        getattr(cerebro, f"{how}data")(cerebro.datas[0], timeframe=bt.TimeFrame.Minutes, compression=5)
        cerebro.addstrategy(Holds, make=make)
        return cerebro

    return build


COUPLED: dict[str, Any] = {
    "an indicator": lambda s: s.data0.close > I.SMA(s.data1, period=3)(),
    "a line": lambda s: s.data0.close - s.data1.close(),
    "an indicator on an indicator": lambda s: I.SMA(I.SMA(s.data1, period=3)(), period=4),
    "bands": lambda s: s.data0.close > I.BollingerBands(s.data1, period=4)().top,
}
for how in ("resample", "replay"):
    for name, make in COUPLED.items():
        add(f"indicators: coupled by {how}, {name}", coupled(how, make, runonce=False), lean=False, least={"bars": 100})
add("indicators: coupled by resample with runonce", coupled("resample", COUPLED["a line"]), lean=False)
