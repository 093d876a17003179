from __future__ import annotations

import math
from typing import Any

import backtrader as bt
import pytest

from dry_work.engine.live import LiveCerebro
from dry_work.errors import ConfigError
from dry_work.feeds.base import LiveFeed, line_time, line_time_ns
from dry_work.market.messages import Bar
from dry_work.wakeup import Wakeup
from tests.unit.engine.sources import DAY_START_NS, MINUTE_NS, ListSource, make_bar, slices_of


def run(bars: list[Bar], strategy: type[Any], **feed: Any) -> LiveFeed:
    cerebro = LiveCerebro(source=ListSource(slices_of(bars)), wakeup=Wakeup())
    data = LiveFeed(symbol="AAA", **feed)
    cerebro.adddata(data)
    cerebro.addstrategy(strategy)
    cerebro.run()
    return data


def test_a_bar_carries_its_end_in_every_standard_line() -> None:
    seen: list[Any] = []

    class Watch(bt.Strategy):
        def next(self) -> None:
            data = self.data
            seen.append((data.open[0], data.high[0], data.low[0], data.close[0], data.volume[0], data.openinterest[0]))
            seen.append((data[0], self.data0_close[0], data.datetime.datetime().isoformat()))

    run([make_bar("AAA", 30, 50.0, open=49.9, volume=7.0)], Watch)
    assert seen == [(49.9, 50.5, 49.5, 50.0, 7.0, 0.0), (50.0, 50.0, "2013-10-07T00:31:00")]


def test_an_indicator_on_the_data_equals_one_on_its_close() -> None:
    seen: list[Any] = []

    class Watch(bt.Strategy):
        def __init__(self) -> None:
            self.on_data = bt.ind.SMA(self.data, period=2)
            self.on_close = bt.ind.SMA(self.data.close, period=2)

        def next(self) -> None:
            seen.append((self.on_data[0], self.on_close[0]))

    run([make_bar("AAA", minute, 50.0 + minute) for minute in range(3)], Watch)
    assert seen == [(50.5, 50.5), (51.5, 51.5)]


def test_a_declared_extra_field_is_a_line_from_the_start_and_feeds_indicators() -> None:
    seen: list[Any] = []

    class Watch(bt.Strategy):
        def __init__(self) -> None:
            self.average = bt.ind.SMA(self.data.sentiment_score, period=2)

        def next(self) -> None:
            seen.append((self.data.sentiment_score[0], self.average[0]))

    bars = [make_bar("AAA", minute, 50.0, extra={"sentiment_score": float(minute)}) for minute in range(3)]
    run(bars, Watch, extra_fields=("sentiment_score",))
    assert seen == [(1.0, 0.5), (2.0, 1.5)]


def test_an_undeclared_field_becomes_a_line_with_its_first_bar_and_is_not_carried_over() -> None:
    seen: list[Any] = []

    class Watch(bt.Strategy):
        def next(self) -> None:
            has = hasattr(self.data.lines, "rsi")
            seen.append((has, self.data.rsi[0] if has else None, self.data.rsi[-1] if has else None))

    bars = [make_bar("AAA", 0, 50.0), make_bar("AAA", 1, 50.0, extra={"rsi": 70.0}), make_bar("AAA", 2, 50.0)]
    run(bars, Watch)
    assert seen[0] == (False, None, None)
    assert seen[1][:2] == (True, 70.0)
    assert math.isnan(seen[1][2])
    assert math.isnan(seen[2][1])
    assert seen[2][2] == 70.0


def test_an_undeclared_field_stays_on_its_own_feed() -> None:
    one, other = LiveFeed(symbol="AAA"), LiveFeed(symbol="BBB")
    one._add_line("rsi")
    assert hasattr(one.lines, "rsi")
    assert not hasattr(other.lines, "rsi")
    assert not hasattr(LiveFeed(symbol="CCC").lines, "rsi")


def test_vwap_and_trade_count_are_read_like_extra_fields() -> None:
    seen: list[Any] = []

    class Watch(bt.Strategy):
        def next(self) -> None:
            seen.append((self.data.vwap[0], self.data.trade_count[0]))

    run([make_bar("AAA", 0, 50.0, vwap=49.95, trade_count=12.0)], Watch)
    assert seen == [(49.95, 12.0)]


@pytest.mark.parametrize("name", ["close", "datetime", "p", "params", "load", "_x", "lines", "symbol", "a b", "next"])
def test_a_field_that_clashes_with_backtrader_is_no_line(name: str) -> None:
    feed = LiveFeed(symbol="AAA")
    assert not feed._can_be_line(name)
    with pytest.raises(ValueError, match="cannot be a line"):
        LiveFeed(symbol="AAA", extra_fields=(name,))


def test_a_line_that_a_subclass_declares_is_filled() -> None:
    class Scored(LiveFeed):
        lines = ("score",)

    feed = Scored(symbol="AAA")
    assert feed._can_be_line("score")
    feed.start()
    feed.engine_driven = True
    feed._start_finish = lambda: None
    feed.fromdate, feed.todate, feed._tzinput = float("-inf"), float("inf"), None
    feed.offer(make_bar("AAA", 0, 50.0, extra={"score": 3.0}))
    assert feed.next()
    assert feed.score[0] == 3.0


def test_a_feed_needs_a_symbol() -> None:
    with pytest.raises(ValueError, match="give the feed a symbol"):
        LiveFeed()
    with pytest.raises(ConfigError, match="is not a symbol"):
        LiveFeed(symbol="not a symbol")
    assert LiveFeed(dataname="btc/usd").symbol == "BTC/USD"


def test_a_misspelt_parameter_is_refused() -> None:
    with pytest.raises(TypeError):
        LiveFeed(symbol="AAA", extra_feilds=("rsi",))


def test_days_cannot_be_streamed() -> None:
    with pytest.raises(ValueError, match="resample them"):
        LiveFeed(symbol="AAA", timeframe=bt.TimeFrame.Days)


def test_a_bar_that_is_not_newer_is_refused_and_counted() -> None:
    feed = LiveFeed(symbol="AAA")
    feed.start()
    assert feed.offer(make_bar("AAA", 5, 50.0))
    assert not feed.offer(make_bar("AAA", 5, 51.0))
    assert not feed.offer(make_bar("AAA", 4, 51.0))
    assert feed.bars_dropped == 2
    assert feed.offer(make_bar("AAA", 6, 51.0))


def test_an_empty_feed_stays_alive_until_it_is_finished() -> None:
    feed = LiveFeed(symbol="AAA")
    feed.start()
    assert feed._load() is None
    feed.finish()
    assert feed._load() is False


def test_clones_and_resampled_feeds_have_the_symbol() -> None:
    feed = LiveFeed(symbol="BRK.B")
    assert feed.clone().symbol == "BRK.B"
    assert feed.clone().clone().symbol == "BRK.B"
    assert feed.copyas("other").symbol == "BRK.B"


@pytest.mark.parametrize("minute", range(0, 3 * 1440, 7))
def test_line_times_come_back_exactly(minute: int) -> None:
    time_ns = DAY_START_NS + minute * MINUTE_NS
    assert line_time_ns(line_time(time_ns)) == time_ns


def test_statuses_have_backtraders_numbers() -> None:
    names = [
        "CONNECTED",
        "DISCONNECTED",
        "CONNBROKEN",
        "DELAYED",
        "LIVE",
        "NOTSUBSCRIBED",
        "NOTSUPPORTED_TF",
        "UNKNOWN",
    ]
    assert [getattr(LiveFeed, name) for name in names] == list(range(8))
