"""Feeds that are replayed in their place show a backtest, in every turn, what they show live."""

from __future__ import annotations

import datetime as dt
import random
from typing import Any

import backtrader as bt
import pytest

from dry_work.backtest.lean import LeanCerebro
from dry_work.engine.live import LiveCerebro
from dry_work.feeds.base import LiveFeed
from dry_work.feeds.columnar import columnar_feed
from dry_work.market.messages import Bar
from dry_work.wakeup import Wakeup

from .keeper import Add, record
from .sources import ListSource, RecordedBars, make_bar, slices_of

SYMBOLS = ("AAA", "BBB", "CCC")
ZONE = "America/New_York"
MINUTES, DAYS = bt.TimeFrame.Minutes, bt.TimeFrame.Days


class Looker(bt.Strategy):
    """Keeps what all lines, ticks and an indicator of all datas say in every turn, and what orders give."""

    params = (("turns", None),)

    def __init__(self) -> None:
        self.averages = [bt.ind.SMA(data, period=2) for data in self.datas]

    def prenext(self) -> None:
        self.next()

    def next(self) -> None:
        seen = [self.look(data, average) for data, average in zip(self.datas, self.averages, strict=True) if len(data)]
        self.p.turns.append((self.datetime[0], seen))

    def look(self, data: Any, average: Any) -> tuple[Any, ...]:
        ticks = (data.tick_open, data.tick_high, data.tick_low, data.tick_close, data.tick_volume)
        bars = [(data.datetime[-ago], data.close[-ago]) for ago in range(min(3, len(data)))]
        lines = (data.open[0], data.high[0], data.low[0], data.volume[0])
        return (data._name, len(data), bars, lines, ticks, average[0] if len(data) > 1 else None)


def replayed(*frames: tuple[int, int] | None, **options: Any) -> Add:
    """Replay each feed in its place; None: leave it as it is."""

    def add(cerebro: Any, feeds: list[Any]) -> None:
        for feed, frame in zip(feeds, frames, strict=True):
            if frame is None:
                cerebro.adddata(feed, name=feed.symbol)
            else:
                cerebro.replaydata(feed, name=f"{feed.symbol}@r", timeframe=frame[0], compression=frame[1], **options)

    return add


def mixed(cerebro: Any, feeds: list[Any]) -> None:
    """Have all kinds of longer bars beside one another."""
    replayed(None, (MINUTES, 5), (DAYS, 1))(cerebro, feeds)
    cerebro.resampledata(feeds[0], name="AAA@5", timeframe=MINUTES, compression=5)
    cerebro.replaydata(feeds[0], name="AAA@15", timeframe=MINUTES, compression=15)


FIVE, DAY = (MINUTES, 5), (DAYS, 1)
CASES: dict[str, Add] = {
    "five minutes": replayed(FIVE, FIVE, FIVE),
    "beside a feed as it is": replayed(None, FIVE, FIVE),
    "of several lengths": replayed(FIVE, (MINUTES, 15), (MINUTES, 60)),
    "days": replayed(DAY, DAY, DAY),
    "days and minutes": replayed(DAY, FIVE, None),
    "with adjbartime": replayed(FIVE, FIVE, FIVE, adjbartime=True),
    "beside a feed as it is, with adjbartime": replayed(FIVE, None, FIVE, adjbartime=True),
    "days with adjbartime": replayed(DAY, DAY, None, adjbartime=True),
    "without bar2edge": replayed(FIVE, FIVE, FIVE, bar2edge=False),
    "all kinds": mixed,
}


def draw_bars(rng: random.Random) -> dict[str, list[Bar]]:
    """Return minutes of two days with a midnight of New York (04:00 UTC), few of them or nearly all."""
    density = rng.choice((0.2, 0.6, 0.95))
    minutes = [day * 1440 + minute for day in range(2) for minute in (*range(225, 265), *range(1180, 1200))]
    found = {}
    for symbol in SYMBOLS:
        held = [minute for minute in minutes if rng.random() < density] or minutes[:1]
        found[symbol] = [make_bar(symbol, minute, round(50 + rng.random() * 5, 2)) for minute in held]
    return found


def run(cerebro: Any, feeds: list[Any], add: Add) -> list[Any]:
    turns: list[Any] = []
    add(cerebro, feeds)
    cerebro.addstrategy(Looker, turns=turns)
    cerebro.run()
    return turns


def run_live(bars: dict[str, list[Bar]], add: Add, **params: Any) -> list[Any]:
    source = ListSource(slices_of(bar for held in bars.values() for bar in held))
    cerebro = LiveCerebro(source=source, wakeup=Wakeup(), tz=ZONE)
    return run(cerebro, [LiveFeed(symbol=symbol, tz=ZONE, **params) for symbol in bars], add)


def run_backtest(
    bars: dict[str, list[Bar]], add: Add, engine: Any = bt.Cerebro, given: dict[str, Any] | None = None, **params: Any
) -> list[Any]:
    recording = record(bars)
    feeds = [columnar_feed(recording, symbol, tz=ZONE, **params) for symbol in bars]
    return run(engine(stdstats=False, tz=ZONE, **(given or {})), feeds, add)


@pytest.mark.parametrize("case", list(CASES))
def test_every_turn_of_a_backtest_is_that_of_a_live_run(case: str) -> None:
    rng = random.Random(case)
    for _ in range(4):
        bars = draw_bars(rng)
        live = run_live(bars, CASES[case])
        assert len(live) > 20
        assert run_backtest(bars, CASES[case]) == live
    assert run_backtest(bars, CASES[case], LeanCerebro) == live


def test_sessions_that_end_before_the_day_are_those_of_a_live_run() -> None:
    rng = random.Random(0)
    for add in (CASES["days"], CASES["of several lengths"]):
        bars = draw_bars(rng)
        live = run_live(bars, add, sessionend=dt.time(0, 10))
        assert run_backtest(bars, add, sessionend=dt.time(0, 10)) == live


def test_a_bar_does_not_disappear_until_its_next_minute() -> None:
    bars = {
        "AAA": [make_bar("AAA", minute, 50.0 + minute) for minute in range(1, 8)],
        "BBB": [make_bar("BBB", minute, 60.0 + minute) for minute in (1, 6)],
    }
    turns = run_backtest(bars, replayed(FIVE, FIVE))
    seen = [(look[1], look[2][0][1]) for _, looks in turns for look in looks if look[0] == "BBB@r"]
    assert seen == [(1, 61.0)] * 5 + [(2, 66.0)] * 2


@pytest.mark.parametrize("given", [{"exactbars": -1}, {"runonce": False}, {"preload": False}])
def test_the_turns_are_the_same_however_much_is_kept(given: dict[str, Any]) -> None:
    bars = draw_bars(random.Random(1))

    add = CASES["beside a feed as it is"]
    assert run_backtest(bars, add, given=given) == run_backtest(bars, add)


def test_a_period_of_the_feed_is_kept() -> None:
    bars = draw_bars(random.Random(2))
    params = {"fromdate": dt.datetime(2013, 10, 7, 4, 2), "todate": dt.datetime(2013, 10, 8, 4, 3)}
    begin, end = (bt.date2num(each) for each in params.values())
    recording = record(bars)
    feeds = [columnar_feed(recording, symbol, **params) for symbol in bars]
    found = run(bt.Cerebro(stdstats=False), feeds, CASES["five minutes"])
    times = sorted({bt.date2num(bt.num2date(time)) for time, _ in found})
    ends = {bt.date2num(dt.datetime.fromtimestamp(bar.end_ns / 1e9, dt.UTC)) for held in bars.values() for bar in held}
    assert times == sorted(time for time in ends if begin <= time <= end)


def test_a_single_symbol_is_replayed_as_backtrader_does() -> None:
    held = [make_bar("AAA", minute, 50 + minute % 7) for minute in range(1, 60)]
    for options in ({}, {"adjbartime": True}):
        add = replayed(FIVE, **options)
        expected = run(bt.Cerebro(stdstats=False), [NamedBars(bars=held, name="AAA")], add)
        assert run(bt.Cerebro(stdstats=False), [columnar_feed(record({"AAA": held}), "AAA")], add) == expected


class NamedBars(RecordedBars):
    symbol = "AAA"
