"""Made-up and real markets in few bars."""

from __future__ import annotations

import functools
from typing import Any

import backtrader as bt
import numpy as np
import pandas as pd


@functools.cache
def walk(
    seed: int = 1, bars: int = 100, *, gaps: float = 0.0, start: str = "2021-03-01 14:31", freq: str = "1min",
    decimals: int = 2, price: float = 100.0, swing: float = 0.08,
) -> pd.DataFrame:  # fmt: skip
    """Return a random walk with rounded prices, of which a share of bars is missing."""
    rng = np.random.default_rng(seed)
    close = price + np.cumsum(rng.normal(0, swing, bars))
    opening = np.concatenate([[price], close[:-1]]) + rng.normal(0, swing / 3, bars)
    high = np.maximum(opening, close) + abs(rng.normal(0, swing / 2, bars))
    low = np.minimum(opening, close) - abs(rng.normal(0, swing / 2, bars))
    volume = rng.integers(1, 50, bars).astype(float) * 10
    columns = {"open": opening, "high": high, "low": low, "close": close}
    frame = pd.DataFrame(
        {**{name: np.round(values, decimals) for name, values in columns.items()}, "volume": volume},
        index=pd.date_range(start, periods=bars, freq=freq),
    )
    return frame[rng.random(bars) >= gaps] if gaps else frame


@functools.cache
def days(seed: int = 2, count: int = 5, bars: int = 26, *, gaps: float = 0.0, minutes: int = 15) -> pd.DataFrame:
    """Return some sessions from 14:30 on, each of so many bars, weekends left out."""
    dates = pd.bdate_range("2021-02-25", periods=count)
    times = [date + pd.Timedelta(hours=14, minutes=30 + minutes * (i + 1)) for date in dates for i in range(bars)]
    frame = walk(seed, count * bars, swing=0.3).copy()
    frame.index = pd.DatetimeIndex(times)
    return frame[np.random.default_rng(seed).random(len(frame)) >= gaps] if gaps else frame


@functools.cache
def daily(seed: int = 3, bars: int = 300) -> pd.DataFrame:
    """Return daily bars over more than one year."""
    return walk(seed, bars, start="2019-09-02", freq="B", swing=1.0)


def feed(frame: pd.DataFrame, **params: Any) -> Any:
    """Return a feed of minutes, unless told otherwise."""
    params.setdefault("timeframe", bt.TimeFrame.Minutes)
    return bt.feeds.PandasData(dataname=frame, **params)


def pair(gaps: float = 0.25, bars: int = 100) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return two markets that miss different minutes."""
    return walk(11, bars, gaps=gaps), walk(12, bars, gaps=gaps, price=40.0)


def trio(gaps: float = 0.25, bars: int = 100) -> tuple[pd.DataFrame, ...]:
    """Return three markets that miss different minutes."""
    return (*pair(gaps, bars), walk(13, bars, gaps=gaps, price=250.0))
