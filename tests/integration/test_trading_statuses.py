"""Trading statuses and price bands from the upstream through the hub to a reader, over every way of market data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dry_work.clock import MINUTE_NS
from dry_work.market.messages import PriceBands, Slice, TradingStatus
from dry_work.recording.recorder import RecordedMessage
from dry_work.wire.alpaca_stream import encode_bar_item
from dry_work.wire.pubsub import encode_time, parse_message

from .alpaca_upstream import build_bar, wait_until
from .feed_stack import DEADLINE_S, KINDS, FeedStack, Reader, require, summary

SYMBOLS = ("AAPL", "BTC/USD")
AT_NS = 5 * MINUTE_NS
HALT = {
    "T": "s", "S": "AAPL", "sc": "H", "sm": "Trading Halt", "rc": "T1", "rm": "News Pending",
    "t": encode_time(AT_NS), "z": "C",
}  # fmt: skip
RESUMPTION = {"T": "s", "S": "AAPL", "sc": "T", "sm": "Trading Resumption", "t": encode_time(AT_NS), "z": "C"}
BANDS = {"T": "l", "S": "AAPL", "u": 110.5, "d": 90.5, "i": "B", "t": encode_time(AT_NS), "z": "C"}


class Kept:
    """A recorder that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[RecordedMessage] = []

    def record(self, message: RecordedMessage, *, venue_ns: int, recv_ns: int) -> None:
        self.messages.append(message)

    def counters(self) -> dict[str, int]:
        return {}


@pytest.fixture(params=KINDS)
def stack(request: pytest.FixtureRequest) -> Iterator[FeedStack]:
    require(request.param)
    with contextlib.closing(FeedStack(request.param, statuses=True)) as found:
        yield found


def start_reader(stack: FeedStack, **settings: Any) -> Reader:
    reader = stack.start_reader(*SYMBOLS, **settings)
    wait_until(lambda: wanted(stack, "statuses") and wanted(stack, "lulds"), "statuses are subscribed", DEADLINE_S)
    return reader


def asked(stack: FeedStack, channel: str) -> list[str]:
    """Return what the hub has asked its upstream for."""
    return [symbol for session in stack.upstream.open for each in session.messages for symbol in each.get(channel, ())]


def wanted(stack: FeedStack, channel: str) -> bool:
    """Tell whether the hub has asked its upstream for the channel, of shares only."""
    found = asked(stack, channel)
    assert "BTC/USD" not in found
    return "AAPL" in found


def wait_others(reader: Reader, count: int) -> list[Any]:
    end_s = time.monotonic() + DEADLINE_S
    while len(reader.others) < count:
        assert time.monotonic() < end_s, reader.others
        reader.poll(0.05)
    return reader.others


def test_a_halt_and_price_bands_reach_a_reader_and_its_recording(stack: FeedStack) -> None:
    recorder = Kept()
    reader = start_reader(stack, recorder=recorder)
    stack.upstream.send([HALT, BANDS])
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
    assert not reader.count("gaps")


def test_statuses_come_in_their_order_and_disturb_no_slice(stack: FeedStack) -> None:
    reader = start_reader(stack)
    stack.send_slice(1, "AAPL")
    stack.upstream.send([HALT])
    stack.send_slice(2, "AAPL")
    stack.upstream.send([RESUMPTION, BANDS])
    stack.upstream.send([encode_bar_item(build_bar("AAPL", 3)), HALT])  # before their watermark
    stack.send_slice(3)
    pieces = [reader.next_bars() for _ in range(3)]
    assert [summary(piece) for piece in pieces] == [[("AAPL", number)] for number in (1, 2, 3)]
    said = [each.is_halt if isinstance(each, TradingStatus) else each.upper for each in wait_others(reader, 4)]
    assert said == [True, False, 110.5, True]
    assert reader.count("messages") == 13  # three bars, two times three watermarks, three statuses, bands
    assert not reader.count("gaps")


def test_a_status_of_a_symbol_that_is_not_wanted_is_left_out(stack: FeedStack) -> None:
    reader = start_reader(stack)
    stack.upstream.send([{**HALT, "S": "IBM"}, {**BANDS, "S": "IBM"}, HALT])
    (halt,) = wait_others(reader, 1)
    assert halt.symbol == "AAPL"
    # The ways on which a reader asks for its own have brought nothing else.
    assert reader.count("unwanted_statuses") == (2 if stack.kind == "pubsub" else 0)


def test_a_status_that_cannot_be_read_is_counted_and_the_rest_goes_on(stack: FeedStack) -> None:
    reader = start_reader(stack)
    stack.upstream.send([{**HALT, "sc": ""}, RESUMPTION])
    (resumed,) = wait_others(reader, 1)
    assert isinstance(resumed, TradingStatus)
    assert resumed.is_halt is False
    if stack.kind == "pubsub":  # where the hub reads what it publishes
        assert stack.hub is not None
        (found,) = [feed for feed in stack.hub.status().feeds if feed.feed == "iex"]
        assert sum(found.malformed.values()) == 1
    else:
        assert reader.count("dropped_malformed_status_code") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_who_does_not_want_statuses_has_none_and_nobody_asks_for_them(kind: str) -> None:
    require(kind)
    with contextlib.closing(FeedStack(kind)) as stack:
        reader = stack.start_reader(*SYMBOLS)
        stack.send_slice(1, "AAPL")
        assert summary(reader.next_bars()) == [("AAPL", 1)]
        assert not asked(stack, "statuses")
        assert not asked(stack, "lulds")
        stack.upstream.send([HALT])  # which nobody has asked for
        stack.send_slice(2, "AAPL")
        assert summary(reader.next_bars()) == [("AAPL", 2)]
        assert not reader.others
