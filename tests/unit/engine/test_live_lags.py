"""Time frames mixed, resampled and replayed from bars that arrive late equal those of a backtest."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import backtrader as bt
import pytest

from dry_work.clock import MINUTE_NS, SECOND_NS, ManualClock
from dry_work.engine.live import LiveCerebro
from dry_work.engine.run_market import GRACE_S, LOCK_STEP_GRACE_S
from dry_work.feeds.base import LiveFeed, resampling
from dry_work.feeds.columnar import columnar_feed
from dry_work.feeds.source import BufferedSource, ReaderSettings
from dry_work.market.messages import Bar, Envelope, Slice, Watermark
from dry_work.ports import SourceEvent
from dry_work.settings import parse_timeframe
from dry_work.wakeup import Wakeup

from .keeper import Add, Rows, Turns, keep_run, record

TOPICS = {"AAPL": "stocks", "IBM": "stocks", "SPY": "stocks", "BTC/USD": "crypto"}
SYMBOLS = tuple(TOPICS)
FRAMES = tuple(map(parse_timeframe, ("5m", "1h", "1d")))
ZONE = "America/New_York"
# The end of a day, begin and end of a half day, and the day after the holiday; UTC.
STOCK_HOURS = (("2024-07-02T19:30", 30), ("2024-07-03T13:30", 20), ("2024-07-03T16:30", 30), ("2024-07-05T13:30", 40))
CRYPTO_HOURS = (("2024-07-02T19:40", 40), ("2024-07-02T23:55", 15), ("2024-07-03T16:40", 35), ("2024-07-05T13:15", 50))

Lag = Callable[[random.Random], Callable[[Bar], float]]
Gaps = Callable[[random.Random], Callable[[int], bool]]


def at_once(_rng: random.Random) -> Callable[[Bar], float]:
    return lambda _bar: 0.0


def within_the_grace(rng: random.Random) -> Callable[[Bar], float]:
    return lambda _bar: rng.uniform(0.0, GRACE_S - 0.5)


def up_to_15_s(rng: random.Random) -> Callable[[Bar], float]:
    return lambda _bar: rng.uniform(0.0, 15.0)


def steady_by_symbol(rng: random.Random) -> Callable[[Bar], float]:
    lags = dict(zip(SYMBOLS, rng.sample((0.1, 4.0, 9.0, 15.0), 4), strict=True))
    return lambda bar: lags[bar.symbol]


def now_and_then_15_s(rng: random.Random) -> Callable[[Bar], float]:
    return lambda _bar: 15.0 if rng.random() < 0.1 else 0.3


LAGS: tuple[Lag, ...] = (at_once, within_the_grace, up_to_15_s, steady_by_symbol, now_and_then_15_s)


def all_there(_rng: random.Random) -> Callable[[int], bool]:
    return lambda _minute: True


def many_missing(rng: random.Random) -> Callable[[int], bool]:
    """Leave out half of the minutes, or most but those on edges of five: they come while an older bar is open."""
    on_edge, between = rng.choice([(0.5, 0.5), (0.7, 0.15)])
    return lambda minute: rng.random() < (on_edge if minute % 5 == 4 else between)


GAPS: tuple[Gaps, ...] = (all_there, many_missing)


def draw_bars(rng: random.Random, gaps: Gaps = all_there) -> list[Bar]:
    """Return the bars of every symbol in those of its minutes that are there."""
    bars = []
    for symbol in SYMBOLS:
        price = 100.0
        is_there = gaps(rng)
        for begin, minutes in CRYPTO_HOURS if symbol == "BTC/USD" else STOCK_HOURS:
            start_ns = int(datetime.fromisoformat(begin).replace(tzinfo=UTC).timestamp()) * SECOND_NS
            for minute in filter(is_there, range(minutes)):
                opened, price = price, round(price + rng.uniform(-0.5, 0.5), 2)
                bars.append(
                    Bar(
                        symbol=symbol,
                        ts_event_ns=start_ns + minute * MINUTE_NS,
                        open=opened,
                        high=round(max(opened, price) + 0.1, 2),
                        low=round(min(opened, price) - 0.1, 2),
                        close=price,
                        volume=float(rng.randint(1, 500)),
                    )
                )
    return bars


class LaggingSource(BufferedSource):
    """A source whose messages arrive when the clock says so; it is the engine's wake-up as well, and never sleeps.

    Args:
        arrivals: (seconds, envelope), rising.
        end_ns: of the last slice, which brings no bar and ends the run.
    """

    def __init__(self, arrivals: list[tuple[float, Envelope]], *, watermarks: bool | None, end_ns: int) -> None:
        self.manual = ManualClock(int(arrivals[0][0]) * SECOND_NS)
        settings = ReaderSettings(grace_s=LOCK_STEP_GRACE_S if watermarks else GRACE_S, watermarks=watermarks)
        topics = set(TOPICS.values())
        super().__init__(symbols=SYMBOLS, bar_topics=topics, topics=topics, settings=settings, clock=self.manual)
        self._begun_s = arrivals[0][0] - self.manual.monotonic()
        self._arrivals = deque((at_s - self._begun_s, envelope) for at_s, envelope in arrivals)
        self._end: Slice | None = Slice(end_ns=end_ns, bars=(), last=True)

    def _open(self) -> None:
        pass

    def set(self) -> None:
        pass

    def wait(self, timeout_s: float | None) -> bool:
        """Let time pass until something arrives or is due."""
        due_s = [self._arrivals[0][0]] if self._arrivals else []
        left_s = self.wait_s()
        if left_s is not None:
            due_s.append(self.manual.monotonic() + left_s)
        self.manual.advance(max(0.0, min(due_s) - self.manual.monotonic()) + 1e-6)
        while self._arrivals and self._arrivals[0][0] <= self.manual.monotonic():
            assert self._put(self._arrivals.popleft()[1], lambda: None)
        return True

    def take(self) -> SourceEvent | None:
        event = super().take()
        if event is None and not self._arrivals and self.wait_s() is None:
            event, self._end = self._end, None
        return event


def arrive(bars: list[Bar], lag_s: Callable[[Bar], float], *, marked: bool) -> list[tuple[float, Envelope]]:
    """Return when each message arrives. With `marked`, each topic tells the end of each slice behind its bars."""
    found = [
        (bar.end_ns / SECOND_NS + lag_s(bar), Envelope(topic=TOPICS[bar.symbol], message=bar))
        for bar in sorted(bars, key=lambda bar: (bar.end_ns, bar.symbol))
    ]
    if marked:
        counts: dict[tuple[int, str], tuple[int, float]] = {}
        for at_s, envelope in found:
            key = (envelope.message.end_ns, envelope.topic)  # type: ignore[union-attr]
            known, latest_s = counts.get(key, (0, 0.0))
            counts[key] = (known + 1, max(latest_s, at_s))
        ends = sorted({end_ns for end_ns, _ in counts})
        for number, end_ns in enumerate(ends, 1):
            for topic in sorted(set(TOPICS.values())):
                known, at_s = counts.get((end_ns, topic), (0, end_ns / SECOND_NS))
                mark = Watermark(slice=number, end_ns=end_ns, bars=known)
                found.append((at_s, Envelope(topic=topic, message=mark)))
    return sorted(found, key=lambda each: each[0])


def add_frames(cerebro: Any, feeds: list[Any]) -> None:
    for feed, symbol in zip(feeds, SYMBOLS, strict=True):
        cerebro.adddata(feed, name=symbol)
    for frame in FRAMES:
        for feed, symbol in zip(feeds, SYMBOLS, strict=True):
            cerebro.resampledata(feed, name=f"{symbol}@{frame.text}", **resampling(frame))


def add_chained(cerebro: Any, feeds: list[Any]) -> None:
    """Resample from one to five minutes, from these to hours, and from these to days."""
    sources = feeds
    for feed, symbol in zip(feeds, SYMBOLS, strict=True):
        cerebro.adddata(feed, name=symbol)
    for frame in FRAMES:
        sources = [
            cerebro.resampledata(source, name=f"{symbol}@{frame.text}", **resampling(frame))
            for source, symbol in zip(sources, SYMBOLS, strict=True)
        ]


def add_replayed(cerebro: Any, feeds: list[Any]) -> None:
    for feed, symbol in zip(feeds, SYMBOLS, strict=True):
        cerebro.adddata(feed, name=symbol)
    for feed, symbol in zip(feeds, SYMBOLS, strict=True):
        cerebro.replaydata(feed, name=f"{symbol}@5m", **resampling(FRAMES[0]))


def run_backtest(bars: list[Bar], add: Add) -> tuple[Rows, Turns]:
    recording = record({symbol: [bar for bar in bars if bar.symbol == symbol] for symbol in SYMBOLS})
    feeds = [columnar_feed(recording, symbol, tz=ZONE) for symbol in SYMBOLS]
    return keep_run(bt.Cerebro(stdstats=False, tz=ZONE), feeds, add)


def run_live(
    bars: list[Bar], add: Add, lag_s: Callable[[Bar], float], *, marked: bool
) -> tuple[Rows, Turns, LaggingSource]:
    arrivals = arrive(bars, lag_s, marked=marked)
    end_ns = max(bar.end_ns for bar in bars)
    source = LaggingSource(arrivals, watermarks=True if marked else None, end_ns=end_ns)
    wakeup: Any = source
    cerebro = LiveCerebro(source=source, wakeup=wakeup, tz=ZONE)
    source.start(Wakeup())
    try:
        rows, turns = keep_run(cerebro, [LiveFeed(symbol=symbol, tz=ZONE) for symbol in SYMBOLS], add)
    finally:
        source.stop()
    assert cerebro.end_of_data
    assert cerebro.late_bars == 0
    assert sum(cerebro.bars.values()) == len(bars)
    return rows, turns, source


@pytest.mark.parametrize("marked", [False, True], ids=["by-time", "by-watermarks"])
@pytest.mark.parametrize("gaps", GAPS)
@pytest.mark.parametrize("add", [add_frames, add_chained, add_replayed])
@pytest.mark.parametrize("lag", LAGS)
def test_bars_that_lag_are_resampled_as_in_a_backtest(lag: Lag, add: Add, gaps: Gaps, marked: bool) -> None:
    rng = random.Random(f"{lag.__name__} {add.__name__} {gaps.__name__} {marked}")
    bars = draw_bars(rng, gaps)
    rows, turns = run_backtest(bars, add)
    found, found_turns, source = run_live(bars, add, lag(rng), marked=marked)
    assert_same(found, rows)
    late = source.counters().get("late_bars", 0)
    if marked or (lag is at_once and gaps is all_there):
        assert late == 0
        assert found_turns == turns
    elif (
        gaps is all_there and lag is not within_the_grace
    ):  # then only the first bars of a symbol that nobody waited for are late
        assert late > 0


def assert_same(found: Rows, rows: Rows) -> None:
    assert found.keys() == rows.keys()
    for name in rows:
        assert found[name] == rows[name], name
