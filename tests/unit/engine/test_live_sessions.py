"""Bars of days and longer: the session is decided by the start of each bar."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from typing import Any
from zoneinfo import ZoneInfo

import backtrader as bt
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.engine.live import LiveCerebro
from dry_work.feeds.base import LiveFeed
from dry_work.market.messages import Bar
from dry_work.wakeup import Wakeup

from .sources import DAY_START_NS, ListSource, make_bar, slices_of

Row = tuple[str, float, float, float, float, float]


class DailyRows(bt.Strategy):
    params = (("rows", None), ("first", 0))

    def __init__(self) -> None:
        self.seen: dict[str, int] = defaultdict(int)

    def prenext(self) -> None:
        self.next()

    def next(self) -> None:
        for data in self.datas[self.p.first :]:
            if len(data) > self.seen[data._name]:
                assert len(data) == self.seen[data._name] + 1
                self.seen[data._name] += 1
                self.p.rows[data._name].append((data.open[0], data.high[0], data.low[0], data.close[0], data.volume[0]))


def resample(bars: list[Bar], zone: str, **kwargs: Any) -> dict[str, list[Any]]:
    symbols = sorted({bar.symbol for bar in bars})
    cerebro = LiveCerebro(source=ListSource(slices_of(bars)), wakeup=Wakeup())
    feeds = [LiveFeed(symbol=symbol, tz=zone) for symbol in symbols]
    for feed in feeds:
        cerebro.adddata(feed)
    for feed in feeds:
        cerebro.resampledata(feed, name=feed.symbol + "@", **kwargs)
    rows: dict[str, list[Any]] = defaultdict(list)
    cerebro.addstrategy(DailyRows, rows=rows, first=len(feeds))
    cerebro.run()
    return {symbol: rows[symbol + "@"] for symbol in symbols}


def group(bars: list[Bar], zone: str, key: Any) -> dict[str, list[Any]]:
    found: dict[str, dict[Any, list[Bar]]] = defaultdict(lambda: defaultdict(list))
    for bar in sorted(bars, key=lambda bar: bar.ts_event_ns):
        local = dt.datetime.fromtimestamp(bar.ts_event_ns / 1e9, ZoneInfo(zone))
        found[bar.symbol][key(local)].append(bar)
    return {
        symbol: [
            (
                held[0].open,
                max(bar.high for bar in held),
                min(bar.low for bar in held),
                held[-1].close,
                sum(bar.volume for bar in held),
            )
            for held in groups.values()
        ]
        for symbol, groups in found.items()
    }


@st.composite
def many_days(draw: st.DrawFn) -> list[Bar]:
    bars = []
    for symbol in ("AAA", "BBB"):
        # Half hours of a week, so that many bars begin or end at a midnight of either zone.
        for slot in sorted(draw(st.sets(st.integers(0, 7 * 48), min_size=1, max_size=60))):
            for minute in (slot * 30 - 1, slot * 30):
                price = 50 + draw(st.integers(0, 500)) / 100
                bars.append(make_bar(symbol, minute + 60, price))
    return bars


@settings(max_examples=60, deadline=None)
@given(bars=many_days(), zone=st.sampled_from(["UTC", "America/New_York"]))
def test_daily_bars_equal_a_group_by_on_the_day_of_the_start(bars: list[Bar], zone: str) -> None:
    found = resample(bars, zone, timeframe=bt.TimeFrame.Days)
    assert found == group(bars, zone, lambda local: local.date())


@settings(max_examples=30, deadline=None)
@given(bars=many_days())
def test_weekly_bars_equal_a_group_by_on_the_week_of_the_start(bars: list[Bar]) -> None:
    found = resample(bars, "UTC", timeframe=bt.TimeFrame.Weeks)
    assert found == group(bars, "UTC", lambda local: local.isocalendar()[:2])


def test_a_minute_that_ends_at_midnight_stays_in_its_day() -> None:
    bars = [make_bar("AAA", minute, 50.0 + minute / 1440) for minute in (1438, 1439, 1440)]
    assert bars[1].end_ns == DAY_START_NS + 86_400_000_000_000
    rows = resample(bars, "UTC", timeframe=bt.TimeFrame.Days)["AAA"]
    assert [row[4] for row in rows] == [200.0, 100.0]


def test_the_day_of_a_silent_symbol_closes_with_the_first_slice_after_its_session() -> None:
    bars = [
        make_bar("AAA", 10, 50.0),
        make_bar("BBB", 10, 60.0),
        make_bar("BBB", 1500, 61.0),
        make_bar("BBB", 1501, 62.0),
    ]
    seen: list[Any] = []

    class Watch(bt.Strategy):
        def prenext(self) -> None:
            seen.append((len(self.datas[2]), len(self.datas[3]), self.datas[1].close[0]))

    cerebro = LiveCerebro(source=ListSource(slices_of(bars)), wakeup=Wakeup())
    feeds = [LiveFeed(symbol=symbol) for symbol in ("AAA", "BBB")]
    for feed in feeds:
        cerebro.adddata(feed)
    for feed in feeds:
        cerebro.resampledata(feed, name=feed.symbol + "@", timeframe=bt.TimeFrame.Days)
    Watch.next = Watch.prenext  # type: ignore[method-assign]
    cerebro.addstrategy(Watch)
    cerebro.run()
    assert seen[:3] == [(0, 0, 60.0), (1, 1, 61.0), (1, 1, 62.0)]
