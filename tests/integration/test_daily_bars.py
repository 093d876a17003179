"""Daily bars of the recordings, made by the live engine, equal a group-by on the exchange's session."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import backtrader as bt
import pandas as pd
import pytest

from dry_work.clock import MINUTE_NS
from dry_work.engine.live import LiveCerebro
from dry_work.feeds.base import LiveFeed
from dry_work.feeds.recorded import read_bars
from dry_work.market.calendar import SessionCalendar
from dry_work.market.messages import Bar, Slice
from dry_work.wakeup import Wakeup
from tests.unit.engine.sources import ListSource

FOLDER = Path(os.environ.get("DRY_WORK_DATA_DIR") or Path(__file__).parents[2].parent / "shared" / "data")
STOCKS = ("SPY", "IBM", "BAC", "AIG")


@pytest.mark.recordings
@pytest.mark.skipif(not FOLDER.is_dir(), reason="no recordings: set DRY_WORK_DATA_DIR to a folder with bars-*.parquet")
def test_daily_bars_of_the_recordings_equal_a_group_by_on_the_session() -> None:
    paths = [FOLDER / f"bars-{symbol}-*.parquet" for symbol in STOCKS]
    recording = read_bars(paths, STOCKS)
    slices = [Slice(end_ns=end, bars=tuple(bars)) for end, bars in recording.slices()]
    slices[-1] = Slice(end_ns=slices[-1].end_ns, bars=slices[-1].bars, last=True)
    found: dict[str, list[Any]] = defaultdict(list)

    class Watch(bt.Strategy):
        def __init__(self) -> None:
            self.seen: dict[str, int] = defaultdict(int)

        def prenext(self) -> None:
            self.next()

        def next(self) -> None:
            for data in self.datas[len(STOCKS) :]:
                if len(data) > self.seen[data.symbol]:
                    self.seen[data.symbol] = len(data)
                    row = (data.open[0], data.high[0], data.low[0], data.close[0], data.volume[0])
                    found[data.symbol].append((data.datetime.date(), *row))

    cerebro = LiveCerebro(source=ListSource(slices), wakeup=Wakeup())
    feeds = [LiveFeed(symbol=symbol, tz="America/New_York") for symbol in STOCKS]
    for feed in feeds:
        cerebro.adddata(feed)
    for feed in feeds:
        cerebro.resampledata(feed, timeframe=bt.TimeFrame.Days, name=f"{feed.symbol}@1d")
    cerebro.addstrategy(Watch)
    cerebro.run()

    calendar = SessionCalendar()
    for symbol in STOCKS:
        frame = pd.DataFrame(
            [
                (calendar.trading_date(bar.ts_event_ns), bar.open, bar.high, bar.low, bar.close, bar.volume)
                for bar in recording.bars(symbol)
            ],
            columns=["session", "open", "high", "low", "close", "volume"],
        )
        grouped = frame.groupby("session").agg(
            {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
        )
        assert len(grouped) == 3
        assert found[symbol] == [tuple(row) for row in grouped.itertuples()]


def test_a_day_that_begins_at_the_first_bar_of_a_local_midnight_is_one_bar() -> None:
    start_ns = 1_704_171_600 * 10**9  # 2024-01-02 00:00 in New York
    bars = [
        Bar(symbol="BTC/USD", ts_event_ns=start_ns + minute * MINUTE_NS, open=1, high=2, low=1, close=1, volume=1)
        for minute in range(2 * 24 * 60)
    ]
    slices = [Slice(end_ns=bar.end_ns, bars=(bar,), last=bar is bars[-1]) for bar in bars]
    found: dict[str, tuple[float, str]] = {}

    class Watch(bt.Strategy):
        def prenext(self) -> None:
            self.next()

        def next(self) -> None:
            days = self.datas[1]
            if len(days):
                found[str(days.datetime.date())] = (days.volume[0], str(self.datetime.datetime()))

    cerebro = LiveCerebro(source=ListSource(slices), wakeup=Wakeup(), tz="America/New_York")
    feed = LiveFeed(symbol="BTC/USD", tz="America/New_York")
    cerebro.adddata(feed)
    cerebro.resampledata(feed, timeframe=bt.TimeFrame.Days)
    cerebro.addstrategy(Watch)
    cerebro.run()
    assert {day: volume for day, (volume, _) in found.items()} == {"2024-01-02": 1440, "2024-01-03": 1440}
