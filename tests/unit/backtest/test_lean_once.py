"""Every vectorised `once` gives what Backtrader's own gives, bit by bit, on well and badly behaved data."""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Callable
from typing import Any

import backtrader as bt
import numpy as np
import pandas as pd
import pytest
from backtrader.linebuffer import LineNum
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dry_work.backtest import lean_vectors
from dry_work.backtest.lean import LeanCerebro
from dry_work.backtest.lean_sums import sliding_sums

Floats = NDArray[np.float64]
Make = Callable[[Any], Any]

FAMILIES = ("walk", "ties", "wide", "huge", "tiny", "zeros", "constant", "holes", "infinite", "powers")


def make_series(family: str, size: int, rng: np.random.Generator) -> Floats:
    walk = np.round(100 * np.exp(np.cumsum(rng.normal(0, 0.01, size))), 4)
    if family == "walk":
        return walk
    if family == "ties":
        return np.round(walk / 2) * 2
    if family == "wide":
        return rng.normal(0, 1, size) * 10.0 ** rng.integers(-12, 13, size)
    if family == "huge":
        return walk * 1e305
    if family == "tiny":
        return walk * 5e-324 * rng.integers(1, 10**6, size)
    if family == "zeros":
        return rng.choice(np.array([0.0, -0.0, 1.0, -1.0, 2.5]), size)
    if family == "constant":
        return np.full(size, 100.25)
    if family == "holes":
        return np.where(rng.random(size) < 0.1, np.nan, walk)
    if family == "infinite":
        return np.where(rng.random(size) < 0.1, rng.choice(np.array([np.inf, -np.inf]), size), walk)
    return 2.0 ** rng.integers(5, 9, size) * (1 + rng.integers(0, 2, size) * 2.0**-52)


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    size = draw(st.one_of(st.integers(1, 12), st.integers(13, 90)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    columns = {
        name: make_series(draw(st.sampled_from(FAMILIES)), size, rng)
        for name in ("open", "high", "low", "close", "volume")
    }
    return pd.DataFrame(columns, index=pd.date_range("2024-01-01", periods=size, freq="min"))


def compute(engine: type[bt.Cerebro], frame: pd.DataFrame, make: Make) -> tuple[str, list[bytes]]:
    """Return the error of computing the indicators, and the bits of every line of every indicator there is."""

    class Computed(bt.Strategy):
        def __init__(self) -> None:
            self.made = make(self)

        def start(self) -> None:
            self.env.runstop()  # the indicators are computed before the first bar

    cerebro = engine(stdstats=False)
    cerebro.adddata(bt.feeds.PandasData(dataname=frame))
    cerebro.addstrategy(Computed)
    error = ""
    strategies: list[Any] = []
    original = cerebro._runonce

    def keep(runstrats: list[Any]) -> None:
        strategies.extend(runstrats)
        original(runstrats)

    if engine is bt.Cerebro:
        cerebro._runonce = keep
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            strategies = cerebro.run()
        except (ArithmeticError, ValueError, TypeError, IndexError, StopIteration) as raised:
            error = f"{type(raised).__name__}: {raised}"
    return error, [] if error else [bits_of(line.array) for line in lines_below(strategies[0])]


def bits_of(values: Any) -> bytes:
    # Which NaN it is, nobody can see.
    return b"".join(struct.pack("<d", math.nan if math.isnan(value) else value) for value in values)


def lines_below(item: Any) -> list[Any]:
    found: list[Any] = []
    for indicator in item._lineiterators[bt.LineIterator.IndType] if hasattr(item, "_lineiterators") else []:
        found.extend(indicator.lines.lines if isinstance(indicator, bt.LineSeries) else [indicator])
        found.extend(lines_below(indicator))
    return found


class Falling(bt.Indicator):
    """Written with `next` alone, over an inner indicator and a line operation."""

    lines = ("falling", "length")
    params = (("period", 3),)

    def __init__(self) -> None:
        self.mean = bt.ind.SMA(self.data, period=self.p.period)
        self.spread = self.data.high - self.data.low

    def prenext(self) -> None:
        self.lines.length[0] = -len(self)

    def nextstart(self) -> None:
        self.lines.falling[0] = self.spread[0]
        self.lines.length[0] = 0.0

    def next(self) -> None:
        previous = self.lines.falling[-1]
        self.lines.falling[0] = previous + 1 if self.mean[0] < self.mean[-1] else self.data.close[0] - self.spread[-1]
        self.lines.length[0] = len(self.data) + len(self.mean)


class Nested(bt.Indicator):
    lines = ("nested",)

    def __init__(self) -> None:
        self.inner = Falling(self.data)
        self.lines.nested = self.inner.falling * 2.0 + bt.ind.EMA(self.inner.length, period=2)


class Ready(bt.Indicator):
    """Written with `once` by hand."""

    lines = ("ready",)

    def next(self) -> None:
        self.lines.ready[0] = self.data[0] * 2

    def once(self, start: int, end: int) -> None:
        for index in range(start, end):
            self.lines.ready.array[index] = self.data.array[index] * 2


class Longer(bt.ind.Highest):
    """A subclass with a function of its own."""

    func = sum


I = bt.ind  # noqa: E741
CASES: dict[str, Make] = {
    "add": lambda s: s.data.close + s.data.open,
    "add a number": lambda s: s.data.close + 3,
    "subtract from a number": lambda s: 3.5 - s.data.close,
    "multiply": lambda s: s.data.close * s.data.open,
    "divide": lambda s: s.data.close / s.data.open,
    "divide a number": lambda s: 100.0 / s.data.close,
    "divide by a number": lambda s: s.data.close / 7,
    "divide by zero": lambda s: s.data.close / 0.0,
    "floor division": lambda s: s.data.close // 7,
    "power": lambda s: s.data.close**2,
    "power of lines": lambda s: s.data.close**s.data.open,
    "power of a number": lambda s: 2**s.data.close,
    "less": lambda s: s.data.close < s.data.open,
    "less or equal": lambda s: s.data.close <= 100,
    "greater": lambda s: s.data.close > s.data.open,
    "greater or equal": lambda s: s.data.close >= s.data.open,
    "equal": lambda s: s.data.close == s.data.open,
    "not equal": lambda s: s.data.close != 100.25,
    "compared with a long integer": lambda s: s.data.close < 2**53 + 1,
    "negative": lambda s: -s.data.close,
    "absolute": lambda s: abs(s.data.close - s.data.open),
    "delay": lambda s: s.data.close(-3),
    "no delay": lambda s: s.data.close(0),
    "ahead": lambda s: s.data.close(2),
    "number as line": lambda s: LineNum(5),
    "And": lambda s: bt.And(s.data.close > 100, s.data.open, s.data.high),
    "Or": lambda s: bt.Or(s.data.close > 100, s.data.volume),
    "Any": lambda s: bt.Any(s.data.close, s.data.volume),
    "All": lambda s: bt.All(s.data.close, s.data.volume),
    "Max": lambda s: bt.Max(s.data.close, s.data.open, 100.0),
    "Min": lambda s: bt.Min(100, s.data.close, s.data.open),
    "Sum": lambda s: bt.Sum(s.data.close, s.data.open, s.data.high),
    "Max of one": lambda s: bt.Max(s.data.close),
    "If": lambda s: bt.If(s.data.close > s.data.open, s.data.high, 5),
    "Cmp": lambda s: bt.Cmp(s.data.close, s.data.open),
    "CmpEx": lambda s: bt.CmpEx(s.data.close, s.data.open, s.data.high, 1, s.data.low),
    "DivByZero": lambda s: bt.DivByZero(s.data.close, s.data.volume, zero=2),
    "DivZeroByZero": lambda s: bt.DivZeroByZero(s.data.close, s.data.volume),
    "SMA": lambda s: I.SMA(s.data.close, period=5),
    "SMA of one": lambda s: I.SMA(period=1),
    "SMA of volume": lambda s: I.SMA(s.data.volume, period=7),
    "EMA": lambda s: I.EMA(period=5),
    "SMMA": lambda s: I.SMMA(period=5),
    "WMA": lambda s: I.WMA(period=5),
    "DEMA": lambda s: I.DEMA(period=4),
    "KAMA": lambda s: I.KAMA(period=5),
    "HMA": lambda s: I.HMA(period=6),
    "Accum": lambda s: I.Accum(s.data.close, seed=1.5),
    "SumN": lambda s: I.SumN(period=4),
    "Highest": lambda s: I.Highest(s.data.high, period=4),
    "Lowest": lambda s: I.Lowest(s.data.low, period=5),
    "Highest of one": lambda s: I.Highest(period=1),
    "AnyN": lambda s: I.AnyN(s.data.volume, period=3),
    "AllN": lambda s: I.AllN(s.data.volume, period=3),
    "FindFirstIndexHighest": lambda s: I.FindFirstIndexHighest(period=4),
    "ApplyN": lambda s: I.ApplyN(period=3, func=sum),
    "a period that is no whole number": lambda s: I.SMA(period=2.5),
    "CrossOver": lambda s: I.CrossOver(I.SMA(period=2), s.data.open),
    "NonZeroDifference": lambda s: I.NonZeroDifference(s.data.close, s.data.open),
    "ATR": lambda s: I.ATR(period=4),
    "RSI": lambda s: I.RSI(period=4),
    "RSI_Safe": lambda s: I.RSI_Safe(period=4),
    "RSI_SMA": lambda s: I.RSI_SMA(period=4),
    "MACDHisto": lambda s: I.MACDHisto(period_me1=3, period_me2=5, period_signal=2),
    "BollingerBandsPct": lambda s: I.BollingerBandsPct(period=5),
    "MeanDeviation": lambda s: I.MeanDeviation(period=4),
    "StdDev": lambda s: I.StdDev(period=4),
    "StdDev, unsafe": lambda s: I.StdDev(period=4, safepow=False),
    "Momentum": lambda s: I.Momentum(period=3),
    "ROC100": lambda s: I.ROC100(period=3),
    "Stochastic": lambda s: I.Stochastic(period=4),
    "CCI": lambda s: I.CCI(period=4),
    "ADX": lambda s: I.ADX(period=3),
    "Aroon": lambda s: I.AroonUpDownOscillator(period=4),
    "ParabolicSAR": lambda s: I.PSAR(),
    "written with next": lambda s: Falling(s.data),
    "written with next, nested": lambda s: Nested(s.data),
    "written with next, on one line": lambda s: I.SMA(Falling(s.data).falling, period=2),
    "written with once": lambda s: Ready(s.data.close),
    "a subclass with its own function": lambda s: Longer(s.data.close, period=3),
}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=7, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(frame=frames(), chunk=st.sampled_from((3, 8, 1 << 16)))
def test_all_lines_are_those_of_backtrader(name: str, frame: pd.DataFrame, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lean_vectors, "CHUNK", chunk)
        assert compute(LeanCerebro, frame, CASES[name]) == compute(bt.Cerebro, frame, CASES[name])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    family=st.sampled_from(FAMILIES), seed=st.integers(0, 2**32), size=st.integers(1, 300), period=st.integers(1, 60)
)
def test_sliding_sums_are_those_of_fsum_or_refused(family: str, seed: int, size: int, period: int) -> None:
    values = make_series(family, size, np.random.default_rng(seed))
    if period > size:
        return
    with np.errstate(all="ignore"):
        sums = sliding_sums(values, period)
    if sums is None:
        assert family != "walk"
        return
    for start, total in enumerate(sums.tolist()):
        exact = math.fsum(values[start : start + period])
        assert struct.pack("<d", total) == struct.pack("<d", exact)


def test_sums_over_windows_that_cancel_are_exact() -> None:
    values = np.array([1e10, 1.0, -1e10, 2.0**-20, 0.5, -1.0, -(2.0**-20)])
    assert sliding_sums(values, 3) is not None
    assert sliding_sums(np.array([1e300, 1e-300, 1.0]), 2) is None
    assert sliding_sums(np.array([-1.0, -(2.0**-120), -1.0]), 2) is None


def test_the_common_indicators_are_not_left_to_backtrader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this the comparison above could be of Backtrader with itself."""
    refused: list[str] = []
    for original, known in list(lean_vectors.KNOWN.items()):

        def watch(computed: Any, start: int, end: int, known: Any = known) -> bool:
            done = known(computed, start, end)
            if not done:
                refused.append(type(computed).__name__)
            return bool(done)

        monkeypatch.setitem(lean_vectors.KNOWN, original, watch)
    frame = pd.DataFrame(
        {name: make_series("walk", 200, np.random.default_rng(4)) for name in ("open", "high", "low", "close")},
        index=pd.date_range("2024-01-01", periods=200, freq="min"),
    )
    for name in ("SMA", "EMA", "CrossOver", "RSI", "ATR", "MACDHisto", "BollingerBandsPct", "Highest", "Momentum"):
        error, lines = compute(LeanCerebro, frame, CASES[name])
        assert (error, bool(lines)) == ("", True)
    assert refused == []
