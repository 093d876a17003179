"""What the engine does in one go leaves every line, tick and value as Backtrader's own way does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import backtrader as bt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.engine.live import LiveCerebro
from dry_work.engine.lookback import LookBack
from dry_work.engine.quick_feed import PlainFeed, QuickFeed
from dry_work.engine.quick_indicators import quicken
from dry_work.feeds.base import LiveFeed
from dry_work.market.messages import Bar
from dry_work.wakeup import Wakeup

from .sources import ListSource, make_bar, slices_of

SYMBOLS = ("AAA", "BBB")
TICKS = [f"tick_{name}" for name in ("open", "high", "low", "close", "volume", "openinterest", "last")]


class OwnWay(LiveFeed):
    """A feed with a method of its own: it is moved by Backtrader's code."""

    def _load(self) -> bool | None:
        return super()._load()


class Looker(bt.Strategy):
    """Writes down all that can be seen of its datas."""

    params = (("log", None), ("ticks_every", 1))

    def next(self) -> None:
        for data in self.datas:
            ticks = [getattr(data, name, "none") for name in TICKS] if len(self) % self.p.ticks_every == 0 else []
            lines = [(len(line), line[0], line.buflen()) if len(line) else () for line in data.lines.lines]
            self.p.log.append(repr((len(data), lines, ticks, data.extra_names, data.last_end_ns)))

    prenext = next


def run(
    bars: list[Bar],
    feed: type[Any],
    late: dict[int, list[Bar]] | None = None,
    ticks_every: int = 1,
    **feed_params: Any,
) -> list[str]:
    log: list[str] = []
    slices = slices_of(bars)
    for number, more in (late or {}).items():
        piece = slices[number % len(slices)]
        slices[number % len(slices)] = type(piece)(
            end_ns=piece.end_ns, bars=(*more, *piece.bars), number=piece.number, last=piece.last
        )
    cerebro = LiveCerebro(source=ListSource(slices), wakeup=Wakeup(), look_back=LookBack(2, block_values=3))
    for symbol in SYMBOLS:
        cerebro.adddata(feed(symbol=symbol, **feed_params), name=symbol)
    cerebro.addstrategy(Looker, log=log, ticks_every=ticks_every)
    cerebro.run()
    log.append(repr([list(line.array) for data in cerebro.datas for line in data.lines.lines]))
    kinds = {type(mover) for mover in cerebro._movement.movers.values()}
    assert kinds == ({PlainFeed} if feed is OwnWay else {QuickFeed})
    return log


@st.composite
def any_bars(draw: st.DrawFn) -> list[Bar]:
    found = []
    for symbol in SYMBOLS:
        for minute in sorted(draw(st.sets(st.integers(1, 60), min_size=3, max_size=40))):
            fields: dict[str, Any] = {"volume": draw(st.sampled_from([100, 100.0, 0.5]))}
            if draw(st.booleans()):
                fields["vwap"] = draw(st.sampled_from([50.25, float("nan"), 51]))
            if draw(st.booleans()):
                fields["trade_count"] = draw(st.integers(0, 9))
            if draw(st.integers(0, 3)) == 0:
                fields["extra"] = draw(st.sampled_from([{"spread": 0.5}, {"close": 1.0}, {"spread": 1, "depth": 2}]))
            found.append(make_bar(symbol, minute, draw(st.floats(50, 60)), **fields))
    return found


@settings(max_examples=40, deadline=None)
@given(
    bars=any_bars(),
    declared=st.sampled_from([(), ("spread",), ("vwap", "depth")]),
    minute=st.integers(1, 60),
    ticks_every=st.integers(1, 3),
)
def test_a_bar_written_in_one_go_leaves_the_feed_as_backtraders_loading_does(
    bars: list[Bar], declared: tuple[str, ...], minute: int, ticks_every: int
) -> None:
    late = {minute: [make_bar("AAA", minute, 40.0)]}
    quick, own_way = (run(bars, feed, late, ticks_every, extra_fields=declared) for feed in (LiveFeed, OwnWay))
    assert quick == own_way


def test_ticks_are_filled_when_they_are_read_and_can_be_written() -> None:
    class Ticker(bt.Strategy):
        def start(self) -> None:
            self.read: list[Any] = [getattr(self.data, "tick_close", "none")]

        def next(self) -> None:
            if len(self) == 1:
                return  # the bar's ticks are never asked for
            if len(self) == 3:
                self.data.tick_high = 1.0  # the others stay those of the bar
            self.read.append((self.data.tick_high, self.data.tick_close, self.data.tick_last, self.data.tick_volume))

    cerebro = LiveCerebro(
        source=ListSource(slices_of(make_bar("AAA", minute, 50.0 + minute) for minute in range(4))), wakeup=Wakeup()
    )
    cerebro.adddata(LiveFeed(symbol="AAA"))
    cerebro.addstrategy(Ticker)
    first, *others = cerebro.run()[0].read
    assert first in (None, "none")
    data = cerebro.datas[0]
    seen = [(data.high[ago], data.close[ago], data.close[ago], data.volume[ago]) for ago in (-2, -1, 0)]
    assert others == [seen[0], (1.0, *seen[1][1:]), seen[2]]


@pytest.mark.parametrize("feed", [LiveFeed, OwnWay])
def test_two_bars_of_a_symbol_in_one_slice_are_both_delivered(feed: type[Any]) -> None:
    bars = [make_bar(symbol, minute, 50.0 + minute) for minute in (0, 1, 4) for symbol in SYMBOLS]
    late = {2: [make_bar("AAA", 2, 40.0), make_bar("AAA", 3, 41.0), make_bar("BBB", 1, 42.0)]}
    *_, first, second, _ = run(bars, feed, late)
    assert (first[:3], second[:3]) == ("(5,", "(3,")  # bars; BBB had its bar of that minute before


def test_feeds_with_filters_dates_or_methods_of_their_own_are_moved_by_backtrader() -> None:
    class Never(LiveFeed):
        def _tick_fill(self, force: bool = False) -> None:
            super()._tick_fill(force=force)

    import datetime as dt

    begin = dt.datetime(2013, 10, 7, 0, 3)
    feeds = [
        LiveFeed(symbol="AAA", fromdate=begin),
        Never(symbol="BBB"),
        LiveFeed(symbol="CCC"),
        LiveFeed(symbol="DDD"),
    ]
    feeds[2].addfilter_simple(lambda data: False)
    bars = [make_bar(symbol, minute, 50.0) for symbol in ("AAA", "BBB", "CCC", "DDD") for minute in range(6)]
    cerebro = LiveCerebro(source=ListSource(slices_of(bars)), wakeup=Wakeup())
    for feed in feeds:
        cerebro.adddata(feed)
    cerebro.addstrategy(bt.Strategy)
    cerebro.run()
    assert [type(cerebro._movement.movers[id(feed)]) for feed in feeds] == [PlainFeed, PlainFeed, PlainFeed, QuickFeed]
    assert [len(feed) for feed in feeds] == [4, 6, 6, 6]


# Indicators: the values are compared with stock's loop elsewhere; here, that the short ways are really taken


def start(make: Callable[[Any], Any]) -> Any:
    class Holder(bt.Strategy):
        def __init__(self) -> None:
            self.made = make(self.data)

        def start(self) -> None:
            self.env.runstop()

    cerebro = LiveCerebro(source=ListSource([]), wakeup=Wakeup())
    cerebro.adddata(LiveFeed(symbol="AAA"))
    cerebro.addstrategy(Holder)
    return cerebro.run()[0].made


@pytest.mark.parametrize(
    "make",
    [
        lambda data: bt.ind.SMA(data, period=3),
        lambda data: bt.ind.EMA(data, period=3),
        lambda data: bt.ind.Highest(data, period=3),
        lambda data: data.close - data.open,
        lambda data: data.close(-2),
        lambda data: bt.ind.CrossOver(bt.ind.SMA(data, period=2), data),
    ],
)
def test_backtraders_own_are_run_the_short_way(make: Callable[[Any], Any]) -> None:
    assert quicken(start(make)) is not None


def test_what_has_its_own_way_of_moving_keeps_it() -> None:
    class Moving(bt.Indicator):
        lines = ("moved",)

        def _clk_update(self) -> Any:
            return super()._clk_update()

    assert quicken(start(Moving)) is None
    patched = start(lambda data: bt.ind.SMA(data, period=3))
    patched._next = lambda: None
    assert quicken(patched) is None


@settings(max_examples=40, deadline=None)
@given(prices=st.lists(st.floats(-1e9, 1e9), min_size=12, max_size=40), period=st.integers(1, 8))
def test_short_arithmetic_gives_the_same_floats_as_backtraders_next(prices: list[float], period: int) -> None:
    makers: list[Callable[[Any], Any]] = [
        lambda data: bt.ind.SMA(data, period=period),
        lambda data: bt.ind.EMA(data, period=period),
        lambda data: bt.ind.Lowest(data, period=period),
        lambda data: bt.ind.SumN(data, period=period),
        lambda data: bt.ind.SMA(data.close - data.open, period=period),
        lambda data: (data.close - 3.5) / 7.0 + data.close(-1) * 2.0,
        lambda data: 2.0 - data.close,
        lambda data: bt.ind.BollingerBands(data, period=period).bot,
    ]
    bars = [make_bar("AAA", minute, price, open=price / 3.0) for minute, price in enumerate(prices)]

    def values(own_way: bool) -> list[Any]:
        class Holder(bt.Strategy):
            def __init__(self) -> None:
                self.made = [maker(self.data) for maker in makers]

            def start(self) -> None:
                if own_way:  # an attribute on the object: it is called instead of the short way
                    for each in self._lineiterators[self.IndType]:
                        each._next = each._next

        cerebro = LiveCerebro(
            source=ListSource(slices_of(bars)), wakeup=Wakeup(), look_back=LookBack(3, block_values=2)
        )
        cerebro.adddata(LiveFeed(symbol="AAA"))
        cerebro.addstrategy(Holder)
        made = cerebro.run()[0].made
        return [repr(list(each.array)) for each in made]

    assert values(own_way=False) == values(own_way=True)
