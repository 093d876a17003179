"""Trading statuses and price bands from the upstream through the hub to a reader, over the ways that carry them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dry_work.clock import MINUTE_NS
from dry_work.feeds.choice import build_transport
from dry_work.feeds.hub_source import HubMarketSource
from dry_work.feeds.source import ReaderSettings
from dry_work.market.messages import PriceBands, Slice, TradingStatus
from dry_work.recording.recorder import RecordedMessage
from dry_work.wire.pubsub import encode_time, parse_message

from .alpaca_upstream import wait_until
from .feed_stack import DEADLINE_S, FeedStack, Reader

SYMBOLS = ("AAPL", "BTC/USD")
AT_NS = 5 * MINUTE_NS


class Kept:
    """A recorder that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[RecordedMessage] = []

    def record(self, message: RecordedMessage, *, venue_ns: int, recv_ns: int) -> None:
        self.messages.append(message)

    def counters(self) -> dict[str, int]:
        return {}


@pytest.fixture(params=["ws", "redis"])
def stack(request: pytest.FixtureRequest) -> Iterator[FeedStack]:
    with contextlib.closing(FeedStack(request.param)) as found:
        yield found


def start_reader(stack: FeedStack, recorder: Any) -> Reader:
    transport = build_transport(stack.feed_settings(), symbols=SYMBOLS, client="reader", statuses=True)
    source = HubMarketSource(
        transport, symbols=SYMBOLS, settings=ReaderSettings(watermarks=True, grace_s=20.0), recorder=recorder
    )
    reader = Reader(source)
    stack.readers.append(reader)
    reader.start()
    stack.wait_subscribed(*SYMBOLS)
    wait_until(lambda: wanted(stack, "statuses") and wanted(stack, "lulds"), "statuses are subscribed", DEADLINE_S)
    return reader


def wanted(stack: FeedStack, channel: str) -> bool:
    """Tell whether the hub has asked its upstream for the channel, of shares only."""
    asked = [symbol for session in stack.upstream.open for each in session.messages for symbol in each.get(channel, ())]
    assert "BTC/USD" not in asked
    return "AAPL" in asked


def wait_others(reader: Reader, count: int) -> list[Any]:
    end_s = time.monotonic() + DEADLINE_S
    while len(reader.others) < count:
        assert time.monotonic() < end_s, reader.others
        reader.poll(0.05)
    return reader.others


def test_a_halt_and_price_bands_reach_a_reader_and_its_recording(stack: FeedStack) -> None:
    recorder = Kept()
    reader = start_reader(stack, recorder)
    at = encode_time(AT_NS)
    stack.upstream.send(
        [
            {
                "T": "s",
                "S": "AAPL",
                "sc": "H",
                "sm": "Trading Halt",
                "rc": "T1",
                "rm": "News Pending",
                "t": at,
                "z": "C",
            },
            {"T": "l", "S": "AAPL", "u": 110.5, "d": 90.5, "i": "B", "t": at, "z": "C"},
        ]
    )
    halt, bands = wait_others(reader, 2)
    assert isinstance(halt, TradingStatus)
    assert (halt.symbol, halt.ts_event_ns, halt.is_halt) == ("AAPL", AT_NS, True)
    assert halt.describe() == "Trading Halt: News Pending (T1)"
    assert halt.ts_recv_ns > 0
    assert isinstance(bands, PriceBands)
    assert (bands.symbol, bands.upper, bands.lower) == ("AAPL", 110.5, 90.5)
    assert reader.count("trading_statuses") == 2
    # What is recorded has the form of Pub/Sub and says the same.
    found = [
        parse_message(each.topic, each.data, each.attributes, recv_ns=halt.ts_recv_ns).message
        for each in recorder.messages
        if each.attributes.get("type") in ("status", "bands")
    ]
    assert found[0] == halt
    assert isinstance(found[1], PriceBands)
    # Bars and what follows are as without them.
    stack.send_slice(7, "AAPL")
    piece = reader.next_bars()
    assert isinstance(piece, Slice)
    assert [bar.symbol for bar in piece.bars] == ["AAPL"]


def test_a_status_that_cannot_be_read_is_counted_and_the_rest_goes_on(stack: FeedStack) -> None:
    reader = start_reader(stack, None)
    at = encode_time(AT_NS)
    stack.upstream.send([{"T": "s", "S": "AAPL", "sc": "", "t": at}, {"T": "s", "S": "AAPL", "sc": "T", "t": at}])
    (resumed,) = wait_others(reader, 1)
    assert isinstance(resumed, TradingStatus)
    assert resumed.is_halt is False
    assert reader.count("dropped_malformed_status_code") == 1
