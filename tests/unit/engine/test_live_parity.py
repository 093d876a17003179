"""The live engine's call log equals that of stock Backtrader's loop on the same bars."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import backtrader as bt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.engine.live import LiveCerebro
from dry_work.feeds.base import LiveFeed
from dry_work.market.messages import Bar
from dry_work.wakeup import Wakeup

from .sources import (
    DAY_START_NS,
    MINUTE_NS,
    GridBars,
    ListSource,
    RecordedBars,
    SlicedBars,
    SlicePlayer,
    make_bar,
    slices_of,
)

SYMBOLS = ("AAA", "BBB", "CCC")
Build = Callable[[bt.Cerebro, list[Any]], None]


class Logger(bt.Strategy):
    """Writes down every call with length and close of every data."""

    params = (("log", None), ("orders", False), ("timer", False))

    def __init__(self) -> None:
        self.average = bt.ind.SMA(self.datas[-1], period=2)
        if self.p.timer:
            self.add_timer(when=dt.time(0, 20), repeat=dt.timedelta(minutes=7))
            self.add_timer(when=dt.time(0, 11), cheat=True)

    def write(self, *what: Any) -> None:
        datas = tuple((len(d), d.close[0], d.datetime[0]) if len(d) else (0, None, None) for d in self.datas)
        self.p.log.append((*what, datas, self.broker.getvalue()))

    def prenext(self) -> None:
        self.write("prenext")

    def nextstart(self) -> None:
        self.write("nextstart")

    def next(self) -> None:
        self.write("next", self.average[0], self.datetime[0])
        if self.p.orders and len(self) % 3 == 0:
            for data in self.datas[:2]:
                if not self.getposition(data).size:
                    self.buy(data, size=1)
                else:
                    self.close(data)

    def notify_order(self, order: Any) -> None:
        self.write("order", order.status, order.data._name, order.executed.size, order.executed.price)

    def notify_trade(self, trade: Any) -> None:
        self.write("trade", trade.size, trade.pnl, trade.isclosed)

    def notify_timer(self, timer: Any, when: Any, *args: Any, **kwargs: Any) -> None:
        self.write("timer", when)

    def notify_cashvalue(self, cash: float, value: float) -> None:
        self.write("cash", cash, value)


def run_stock(
    bars: dict[str, list[Bar]], build: Build, tz: str | None, *, preload: bool = False, **kwargs: Any
) -> list[Any]:
    log: list[Any] = []
    cerebro = bt.Cerebro(preload=preload, runonce=False, stdstats=False)
    feeds = [RecordedBars(bars=found, name=symbol, tz=tz) for symbol, found in bars.items()]
    build(cerebro, feeds)
    cerebro.addstrategy(Logger, log=log, **kwargs)
    cerebro.run()
    return log


def run_stock_on_slices(
    bars: dict[str, list[Bar]], build: Build, tz: str | None, *, feed: type[Any] = SlicedBars, **kwargs: Any
) -> list[Any]:
    log: list[Any] = []
    cerebro = bt.Cerebro(stdstats=False)
    player = SlicePlayer(slices_of(bar for found in bars.values() for bar in found))
    build(cerebro, [feed(player=player, symbol=symbol, name=symbol, tz=tz) for symbol in bars])
    cerebro.addstrategy(Logger, log=log, **kwargs)
    cerebro.run()
    return log


def run_live(bars: dict[str, list[Bar]], build: Build, tz: str | None, **kwargs: Any) -> list[Any]:
    log: list[Any] = []
    source = ListSource(slices_of(bar for found in bars.values() for bar in found))
    cerebro = LiveCerebro(source=source, wakeup=Wakeup(), quicknotify=False)
    feeds = [LiveFeed(symbol=symbol, tz=tz) for symbol in bars]
    build(cerebro, feeds)
    cerebro.addstrategy(Logger, log=log, **kwargs)
    cerebro.run()
    assert cerebro.end_of_data
    assert cerebro.bars == {symbol: len(found) for symbol, found in bars.items() if found}
    return log


def add_plain(cerebro: bt.Cerebro, feeds: list[Any]) -> None:
    for feed in feeds:
        cerebro.adddata(feed)


def add_resampled(cerebro: bt.Cerebro, feeds: list[Any]) -> None:
    for feed in feeds:
        cerebro.adddata(feed)
    for feed in feeds:
        for compression in (5, 60):
            name = f"{feed._name}@{compression}m"
            cerebro.resampledata(feed, timeframe=bt.TimeFrame.Minutes, compression=compression, name=name)


def add_daily(cerebro: bt.Cerebro, feeds: list[Any]) -> None:
    for feed in feeds:
        cerebro.adddata(feed)
    for feed in feeds:
        cerebro.resampledata(feed, timeframe=bt.TimeFrame.Days, name=f"{feed._name}@1d")


def add_clones(cerebro: bt.Cerebro, feeds: list[Any]) -> None:
    for feed in feeds:
        cerebro.adddata(feed)
    for feed in feeds:
        cerebro.adddata(feed.clone(), name=f"{feed._name}-clone")


def add_in_place(cerebro: bt.Cerebro, feeds: list[Any]) -> None:
    cerebro.adddata(feeds[0])
    for feed in feeds[1:]:
        cerebro.resampledata(feed, timeframe=bt.TimeFrame.Minutes, compression=5, name=f"{feed._name}@5m")


def add_only_resampled(cerebro: bt.Cerebro, feeds: list[Any]) -> None:
    cerebro.resampledata(feeds[0], timeframe=bt.TimeFrame.Minutes, compression=5, name="only@5m")


def add_replayed(cerebro: bt.Cerebro, feeds: list[Any]) -> None:
    cerebro.adddata(feeds[0])
    cerebro.replaydata(feeds[0], timeframe=bt.TimeFrame.Minutes, compression=5, name="replay@5m")


def add_replayed_beside_another(cerebro: bt.Cerebro, feeds: list[Any]) -> None:
    for feed in feeds[:2]:
        cerebro.adddata(feed)
    cerebro.replaydata(feeds[0], timeframe=bt.TimeFrame.Minutes, compression=5, name="replay@5m")


def add_daily_only(cerebro: bt.Cerebro, feeds: list[Any]) -> None:
    cerebro.adddata(feeds[0])
    cerebro.resampledata(feeds[0], timeframe=bt.TimeFrame.Days, name="daily")


def add_replayed_daily(cerebro: bt.Cerebro, feeds: list[Any]) -> None:
    cerebro.adddata(feeds[0])
    cerebro.replaydata(feeds[0], timeframe=bt.TimeFrame.Days, name="replay@1d")


def add_only_replayed(cerebro: bt.Cerebro, feeds: list[Any]) -> None:
    cerebro.replaydata(feeds[0], timeframe=bt.TimeFrame.Minutes, compression=5, name="replay@5m")


@st.composite
def gappy_bars(draw: st.DrawFn, symbols: int = 3, minutes: int = 90, stride: int = 1) -> dict[str, list[Bar]]:
    found: dict[str, list[Bar]] = {}
    for symbol in SYMBOLS[:symbols]:
        held = sorted(draw(st.sets(st.integers(0, minutes - 1), min_size=1, max_size=minutes)))
        prices = draw(st.lists(st.integers(5000, 6000), min_size=len(held), max_size=len(held)))
        found[symbol] = [
            make_bar(symbol, minute * stride + 1, price / 100) for minute, price in zip(held, prices, strict=True)
        ]
    return found


@st.composite
def bars_missing_by_fives(draw: st.DrawFn, symbols: int = 3, minutes: int = 90) -> dict[str, list[Bar]]:
    """Return bars of whole five minutes, edge to edge: there Backtrader merges no bar into an older one."""
    found: dict[str, list[Bar]] = {}
    for symbol in SYMBOLS[:symbols]:
        fives = sorted(draw(st.sets(st.integers(0, minutes // 5 - 1), min_size=1)))
        held = [five * 5 + minute for five in fives for minute in range(5)]
        prices = draw(st.lists(st.integers(5000, 6000), min_size=len(held), max_size=len(held)))
        found[symbol] = [make_bar(symbol, minute, price / 100) for minute, price in zip(held, prices, strict=True)]
    return found


SINGLE = (add_only_resampled, add_replayed, add_only_replayed)

CASES = {
    "plain": (add_plain, {}),
    "orders": (add_plain, {"orders": True}),
    "timers": (add_plain, {"timer": True}),
    "resampled": (add_resampled, {"orders": True, "timer": True}),
    "clones": (add_clones, {"orders": True}),
    "in-place": (add_in_place, {}),
    "only-resampled": (add_only_resampled, {}),
    "replayed": (add_replayed, {}),
    "only-replayed": (add_only_replayed, {}),
}


RESAMPLING = ("resampled", "in-place", "only-resampled", "replayed", "only-replayed")


@pytest.mark.parametrize("case", [name for name in CASES if name != "in-place"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_call_log_equals_that_of_stock_backtrader_on_the_same_slices(case: str, data: st.DataObject) -> None:
    # Resampling as it comes with Backtrader, where it merges nothing: see bars_missing_by_fives.
    build, kwargs = CASES[case]
    draw = bars_missing_by_fives if case in RESAMPLING else gappy_bars
    bars = data.draw(draw(symbols=1 if build in SINGLE else 3))
    assert run_live(bars, build, None, **kwargs) == run_stock_on_slices(bars, build, None, **kwargs)


@pytest.mark.parametrize("case", [name for name in CASES if name in RESAMPLING and name != "in-place"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_with_our_resamplers_any_gaps_give_the_call_log_of_stock_backtraders_loop(
    case: str, data: st.DataObject
) -> None:
    build, kwargs = CASES[case]
    bars = data.draw(gappy_bars(symbols=1 if build in SINGLE else 3))
    assert run_live(bars, build, None, **kwargs) == run_stock_on_slices(bars, build, None, feed=GridBars, **kwargs)


def closes(log: list[Any], number: int) -> list[float]:
    """Return the closes of the bars that a data had, in their order."""
    by_length: dict[int, float] = {}
    for *_, datas, _value in log:
        length, close, _ = datas[number]
        if length:
            by_length[length] = close
    return list(by_length.values())


@pytest.mark.parametrize(("build", "number"), [(add_only_resampled, 0), (add_replayed, 1), (add_only_replayed, 0)])
def test_where_stock_backtrader_merges_a_minute_on_an_edge_into_an_older_bar_ours_does_not(
    build: Build, number: int
) -> None:
    # Minutes that end at :02, :10 and :11: the second is all of the bar that ends at :10, and :05 is still open.
    bars = {"AAA": [make_bar("AAA", minute, 50.0 + minute) for minute in (1, 9, 10)]}
    assert closes(run_stock_on_slices(bars, build, None), number) == [59.0, 60.0]
    assert closes(run_stock(bars, build, None), number) == [59.0, 60.0]
    assert closes(run_live(bars, build, None), number) == [51.0, 59.0, 60.0]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_replayed_feed_beside_another_symbol_equals_that_of_stock_backtrader(data: st.DataObject) -> None:
    build = add_replayed_beside_another
    bars = data.draw(bars_missing_by_fives(symbols=2))
    assert run_live(bars, build, None) == run_stock_on_slices(bars, build, None)
    bars = data.draw(gappy_bars(symbols=2))
    assert run_live(bars, build, None) == run_stock_on_slices(bars, build, None, feed=GridBars)


@pytest.mark.parametrize("build", [add_daily_only, add_replayed_daily])
@settings(max_examples=40, deadline=None)
@given(hours=st.lists(st.sets(st.integers(0, 22), min_size=2), min_size=4, max_size=4))
def test_days_of_one_symbol_equal_those_of_stock_backtrader(build: Build, hours: list[set[int]]) -> None:
    # In UTC, with no bar at midnight and two or more bars a day: there stock's sessions are right.
    minutes = [day * 1440 + hour * 60 + 29 for day, held in enumerate(hours) for hour in sorted(held)]
    days = [make_bar("AAA", minute, 50 + number / 100) for number, minute in enumerate(minutes)]
    assert run_live({"AAA": days}, build, None) == run_stock_on_slices({"AAA": days}, build, None)


@settings(max_examples=40, deadline=None)
@given(bars=bars_missing_by_fives())
def test_feeds_resampled_in_place_equal_those_of_stock_backtrader(bars: dict[str, list[Bar]]) -> None:
    # Stock's loop fails when a turn moves resampled feeds only, so the plain feed has a bar in each slice here.
    first, *others = bars
    minutes = {bar.ts_event_ns for symbol in others for bar in bars[symbol]}
    minutes |= {bar.ts_event_ns for bar in bars[first]}
    bars[first] = [make_bar(first, (at - DAY_START_NS) // MINUTE_NS, 55.0) for at in sorted(minutes)]
    assert run_live(bars, add_in_place, None) == run_stock_on_slices(bars, add_in_place, None)


@pytest.mark.parametrize("case", ["plain", "orders", "timers", "only-resampled", "replayed", "only-replayed"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_call_log_equals_that_of_a_backtest(case: str, data: st.DataObject) -> None:
    # Left out: clones of several feeds with gaps. Stock's loop reads a recording ahead and its clones then miss bars.
    # Of gaps within a resampled bar: test_resampled_gaps.
    build, kwargs = CASES[case]
    draw = bars_missing_by_fives if case in RESAMPLING else gappy_bars
    bars = data.draw(draw(symbols=1 if build in SINGLE else 3))
    assert run_live(bars, build, None, **kwargs) == run_stock(bars, build, None, **kwargs)


@settings(max_examples=30, deadline=None)
@given(bars=gappy_bars())
def test_each_bar_of_clones_comes_when_a_preloaded_backtest_has_it(bars: dict[str, list[Bar]]) -> None:
    assert run_live(bars, add_clones, None) == run_stock(bars, add_clones, None, preload=True)
