"""An agent that was away, beside the simulated exchange: history brings what it missed, and its indicators agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import backtrader as bt
import pytest

from dry_work.alpaca.history import BarHistory
from dry_work.alpaca.trading import TradingApi
from dry_work.clock import MINUTE_NS
from dry_work.engine.live import LiveCerebro
from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.base import LiveFeed
from dry_work.feeds.filling import FillingSource
from dry_work.feeds.recorded import Recording
from dry_work.market.messages import Slice
from dry_work.ports import SourceEvent, SourceStatus
from dry_work.wakeup import Wakeup
from tests.integration.ended_exchange import KEYS, run_ended_exchange
from tests.unit.engine.sources import ListSource, slices_of

SYMBOLS = ("SPY", "BTC/USD")


@pytest.fixture(scope="module")
def recording() -> Recording:
    return synthetic_day(list(SYMBOLS), minutes=60)


@pytest.fixture(scope="module")
def history(recording: Recording) -> Iterator[BarHistory]:
    with run_ended_exchange(recording) as server:
        api = TradingApi(KEYS.key, KEYS.secret, url=server.url)
        yield BarHistory(KEYS, api=api, data_url=server.url)
        api.close()


class Watcher(bt.Strategy):
    """Keeps what its indicators are in each `next`."""

    def __init__(self) -> None:
        self.lines_of = [
            make(data)
            for data in self.datas
            for make in (lambda d: bt.ind.SMA(d, period=9), bt.ind.EMA, bt.ind.RSI_Safe)
        ]
        self.seen: dict[float, list[float]] = {}
        self.statuses: list[str] = []
        self.missing: list[int] = []

    def next(self) -> None:
        self.seen[self.data.datetime[0]] = [indicator[0] for indicator in self.lines_of]
        self.missing.append(self.data.completeness.counts.missing)

    def notify_data(self, data: Any, status: int, *_: Any, **__: Any) -> None:
        if data is self.data:
            self.statuses.append(data._getstatusname(status))


def run(source: Any, warmup: list[Slice]) -> tuple[Any, LiveCerebro]:
    live_feed: Any = LiveFeed  # Backtrader's metaclass takes the params
    cerebro = LiveCerebro(source=source, wakeup=Wakeup(), warmup=warmup)
    for symbol in SYMBOLS:
        cerebro.adddata(live_feed(symbol=symbol), name=symbol)
    cerebro.addstrategy(Watcher)
    [strategy] = cerebro.run()
    return strategy, cerebro


@pytest.fixture(scope="module")
def market(recording: Recording) -> list[Slice]:
    return slices_of([bar for symbol in SYMBOLS for bar in recording.bars(symbol)])


@pytest.fixture(scope="module")
def unbroken(market: list[Slice]) -> Any:
    return run(ListSource(market), [])[0]


def test_history_is_fetched_between_two_times(history: BarHistory, market: list[Slice]) -> None:
    found = history.bars_between(SYMBOLS, market[9].end_ns, market[14].end_ns)
    assert [piece.end_ns for piece in found] == [piece.end_ns for piece in market[10:15]]
    assert [[bar.close for bar in piece.bars] for piece in found] == [
        [bar.close for bar in piece.bars] for piece in market[10:15]
    ]
    assert history.bars_between(SYMBOLS, market[9].end_ns, market[9].end_ns) == []


def test_an_agent_killed_for_five_minutes_sees_what_one_sees_that_was_never_away(
    history: BarHistory, market: list[Slice], unbroken: Any
) -> None:
    run(ListSource([*market[:30], Slice(end_ns=market[29].end_ns, bars=(), last=True)]), [])
    # It comes back five minutes later. What the warm-up does not have yet, the first bar shows to be missing.
    warmup = history.bars_between(SYMBOLS, market[0].end_ns - MINUTE_NS, market[32].end_ns)
    source = FillingSource(
        ListSource(market[35:]), symbols=SYMBOLS, fetch=history.bars_between, since_ns=warmup[-1].end_ns
    )
    strategy, cerebro = run(source, warmup)
    assert list(strategy.seen) == list(unbroken.seen)[-len(market[35:]) :]
    assert strategy.seen == {at: unbroken.seen[at] for at in strategy.seen}
    missed = Counter(bar.symbol for piece in market[33:35] for bar in piece.bars)
    assert cerebro.filled_bars == missed
    assert missed["SPY"] == 2
    assert strategy.statuses == ["DELAYED", "LIVE"]
    assert cerebro.completeness.of("BTC/USD").filled == missed["BTC/USD"]


def test_what_an_outage_swallowed_moves_indicators_but_is_never_traded_on(
    history: BarHistory, market: list[Slice], unbroken: Any
) -> None:
    events: list[SourceEvent] = [
        *market[:40], SourceStatus(connected=False, detail="gone"), SourceStatus(connected=True), *market[45:],
    ]  # fmt: skip
    source = FillingSource(ListSource(events), symbols=SYMBOLS, fetch=history.bars_between)
    strategy, cerebro = run(source, [])
    expected = list(unbroken.seen)
    filled = [piece.end_ns for piece in market[40:45]]
    assert len(strategy.seen) == len(expected) - len(filled)
    assert strategy.seen == {at: unbroken.seen[at] for at in strategy.seen}
    assert strategy.statuses == ["DELAYED", "LIVE", "DISCONNECTED", "LIVE", "DELAYED", "LIVE"]
    assert cerebro.filled_bars == Counter(bar.symbol for piece in market[40:45] for bar in piece.bars)
    assert cerebro.bars + cerebro.filled_bars == Counter(bar.symbol for piece in market for bar in piece.bars)
    assert strategy.missing[-1] == 0


def test_without_filling_the_same_outage_is_counted_as_missing(market: list[Slice]) -> None:
    strategy, _ = run(ListSource([*market[:40], *market[45:]]), [])
    assert strategy.missing[-1] == 5


def test_a_symbol_that_went_silent_is_told_to_its_feed_alone(market: list[Slice]) -> None:
    events: list[SourceEvent] = [
        market[0], SourceStatus(connected=False, symbol="SPY", detail="no bar"), market[1],
        SourceStatus(connected=True, symbol="SPY"), SourceStatus(connected=False, symbol="BTC/USD"), market[-1],
    ]  # fmt: skip
    strategy, _ = run(ListSource(events), [])
    assert strategy.statuses == ["DELAYED", "LIVE", "DELAYED", "LIVE"]
