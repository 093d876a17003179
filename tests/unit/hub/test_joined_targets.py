"""Bars of options are made of their trades and go out among those of stocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from dry_work.clock import MINUTE_NS, SECOND_NS, ManualClock
from dry_work.hub import joined_targets
from dry_work.hub.bus import Bus
from dry_work.hub.core import build_feeds
from dry_work.hub.events import ALL, OPTION_BARS, HubEvent
from dry_work.hub.joined_targets import FeedTarget, build_targets
from dry_work.hub.queues import ClientQueue, Overflow
from dry_work.wire.alpaca_stream import StreamWatermark

from .test_option_bars import CALL, PUT, START_NS, trade

DEADLINE_S = 60.0
WANTED = [(channel, symbol) for symbol in (CALL, PUT) for channel in ("trades", OPTION_BARS)]
SUBSCRIBED = {"trades": (CALL, PUT), "watermarks": ("*",)}


class Hub:
    """Targets without connections, and a reader of all that is told with stocks."""

    def __init__(self) -> None:
        self.bus = Bus("e")
        self.clock = ManualClock(START_NS - 2 * SECOND_NS)
        feeds = build_feeds(stock_feed="iex", market_topic="m", crypto_topic="c")
        self.targets, self.bars = build_targets(
            feeds, self.bus, None, clock=self.clock, is_alone=False, tells_statuses=False
        )
        self.stocks, self.options = self.targets["stocks"], self.targets["options"]
        self.queue = ClientQueue(1_000, Overflow.DROP_OLDEST, on_ready=lambda: None)
        topics = [("stocks", "bars", symbol) for symbol in ("SPY", CALL, PUT)]
        self.bus.attach(self.queue, [*topics, ("stocks", "watermarks", ALL)])
        self.told: list[HubEvent] = []

    def begin(self, target: FeedTarget, wanted: list[tuple[str, str]], *, takes_watermarks: bool) -> None:
        target.want(wanted)
        target.begin_session(takes_watermarks=takes_watermarks)

    def begin_both(self, *, takes_watermarks: bool = True) -> None:
        self.begin(self.stocks, [("bars", "SPY")], takes_watermarks=takes_watermarks)
        self.begin(self.options, WANTED, takes_watermarks=takes_watermarks)
        self.options.note_subscribed(SUBSCRIBED)

    def send(self, target: FeedTarget, *items: dict[str, Any]) -> None:
        marks = [
            StreamWatermark(slice=item["slice"], end_ns=START_NS + item["slice"] * MINUTE_NS)
            for item in items
            if item["T"] == "w"
        ]
        target.take(items, marks, recv_ns=self.clock.time_ns())

    def names(self) -> list[Any]:
        self.told += self.queue.take()
        return [event.item["slice"] if event.channel == "watermarks" else event.symbol for event in self.told]

    async def wait(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.01)


def bar() -> dict[str, Any]:
    return {"T": "b", "S": "SPY"}


def mark(number: int) -> dict[str, Any]:
    return {"T": "w", "slice": number}


async def test_a_slice_has_the_bars_of_both_whichever_comes_first() -> None:
    hub = Hub()
    hub.begin_both()
    hub.send(hub.stocks, bar(), mark(1))
    assert hub.names() == ["SPY"]
    hub.send(hub.options, trade(10, 2.0, 3), trade(50, 2.5, symbol=PUT), mark(1))
    assert hub.names() == ["SPY", CALL, PUT, 1]
    made = hub.told[1].item
    assert (made["T"], made["S"], made["o"], made["v"], made["n"]) == ("b", CALL, 2.0, 3, 1)
    hub.send(hub.options, trade(70, 3.0), mark(2))
    hub.send(hub.stocks, bar(), mark(2))
    assert hub.names()[4:] == [CALL, "SPY", 2]
    trades = hub.bus.replay("options", [("options", "trades", ALL)], epoch="e", offset=0)
    assert len(trades.events) == 3, "who wants the trades has them as they came"


async def test_options_alone_need_no_stocks() -> None:
    hub = Hub()
    hub.begin(hub.options, WANTED, takes_watermarks=True)
    hub.options.note_subscribed(SUBSCRIBED)
    hub.send(hub.options, trade(10, 2.0), mark(1), trade(70, 2.0))
    hub.send(hub.options, mark(2))
    assert hub.names() == [CALL, 1, CALL, 2]


async def test_trades_alone_make_no_bars_and_hold_nothing_up() -> None:
    hub = Hub()
    hub.begin(hub.stocks, [("bars", "SPY")], takes_watermarks=True)
    hub.begin(hub.options, [("trades", CALL)], takes_watermarks=True)
    hub.options.note_subscribed({"trades": (CALL,)})
    hub.send(hub.options, trade(10, 2.0), mark(1))
    hub.send(hub.stocks, bar(), mark(1))
    assert hub.names() == ["SPY", 1]


async def test_what_a_lost_connection_had_begun_is_made_of_what_is_sent_again() -> None:
    hub = Hub()
    hub.begin_both()
    hub.send(hub.options, trade(10, 2.0))
    hub.options.end_session()
    hub.send(hub.stocks, bar(), mark(1), bar())
    assert hub.names() == ["SPY"], "the other's watermark is waited for"
    hub.options.begin_session(takes_watermarks=True)
    hub.options.note_subscribed(SUBSCRIBED)
    hub.send(hub.options, trade(10, 2.0), trade(20, 4.0), mark(1))
    assert hub.names() == ["SPY", CALL, 1, "SPY"]
    assert (hub.told[1].item["o"], hub.told[1].item["c"], hub.told[1].item["n"]) == (2.0, 4.0, 2)
    hub.options.end_session()
    hub.options.begin_session(takes_watermarks=True)
    hub.options.note_subscribed(SUBSCRIBED)
    hub.send(hub.options, trade(10, 2.0), trade(20, 4.0), mark(1))
    assert hub.names() == ["SPY", CALL, 1, "SPY"], "a slice that is over is not told again"


async def test_a_silent_connection_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined_targets, "HOLD_S", 0.05)
    hub = Hub()
    hub.begin_both()
    hub.send(hub.stocks, bar(), mark(1))
    assert hub.names() == ["SPY"]
    await hub.wait(lambda: hub.names() == ["SPY", 1])
    hub.send(hub.stocks, bar(), mark(2))
    assert hub.names() == ["SPY", 1, "SPY", 2]


async def test_when_no_option_is_wanted_any_more_stocks_go_on_at_once() -> None:
    hub = Hub()
    hub.begin_both()
    hub.send(hub.stocks, bar(), mark(1))
    hub.options.want([])
    assert hub.names() == ["SPY", 1]


async def test_without_watermarks_the_clock_closes_whole_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined_targets, "LATE_S", 0.01)
    hub = Hub()
    hub.begin_both(takes_watermarks=False)
    hub.send(hub.options, trade(-1, 9.0))
    hub.clock.advance(61.99)
    hub.send(hub.options, trade(1, 2.0), trade(50, 3.0), trade(59, 4.0, symbol=PUT))
    hub.clock.advance(0.03)
    await hub.wait(lambda: hub.names() == [CALL, PUT])
    assert (hub.told[0].item["o"], hub.told[0].item["c"]) == (2.0, 3.0)
    hub.send(hub.options, trade(58, 7.0))
    hub.send(hub.stocks, bar())
    assert hub.names() == [CALL, PUT, "SPY"], (
        "neither the minute before, which was not heard as a whole, nor a late trade"
    )
    hub.options.end_session()
    await asyncio.sleep(0)
    assert hub.options._closing is None  # type: ignore[attr-defined]
