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


class OwnWay(LiveFeed):
    """A feed with a method of its own: it is moved by Backtrader's code."""

    def _load(self) -> bool | None:
        return super()._load()


class Looker(bt.Strategy):
    """Writes down all that can be seen of its datas."""

    params = (("log", None), ("step", None))

    def next(self) -> None:
        for data in self.datas:
            ticks = {name: value for name, value in data.__dict__.items() if name.startswith("tick_")}
            lines = [(len(line), line[0], line.buflen()) if len(line) else () for line in data.lines.lines]
            self.p.log.append(repr((len(data), lines, sorted(ticks.items()), data.extra_names, data.last_end_ns)))

    prenext = next


def run(bars: list[Bar], feed: type[Any], late: dict[int, list[Bar]] | None = None, **feed_params: Any) -> list[str]:
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
    cerebro.addstrategy(Looker, log=log)
    cerebro.run()
    log.append(repr([list(line.array) for data in cerebro.datas for line in data.lines.lines]))
    kinds = {type(mover) for mover in cerebro._movers.values()}
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
@given(bars=any_bars(), declared=st.sampled_from([(), ("spread",), ("vwap", "depth")]), minute=st.integers(1, 60))
def test_a_bar_written_in_one_go_leaves_the_feed_as_backtraders_loading_does(
    bars: list[Bar], declared: tuple[str, ...], minute: int
) -> None:
    late = {minute: [make_bar("AAA", minute, 40.0)]}
    assert run(bars, LiveFeed, late, extra_fields=declared) == run(bars, OwnWay, late, extra_fields=declared)


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
    assert [type(cerebro._movers[id(feed)]) for feed in feeds] == [PlainFeed, PlainFeed, PlainFeed, QuickFeed]
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
