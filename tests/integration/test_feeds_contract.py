"""One contract for all ways of market data from the hub: the same bars, the same slices, the same after a failure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dry_work.clock import MINUTE_NS
from dry_work.errors import ConfigError, FeedError
from dry_work.market.messages import Bar
from dry_work.ports import SourceFailed
from dry_work.recording.log import SessionReader
from dry_work.recording.recorder import MESSAGE, Recorder, decode_message
from dry_work.wire import alpaca_stream
from dry_work.wire.pubsub import parse_message

from .alpaca_upstream import build_bar, wait_until
from .feed_stack import CRYPTO_PATH, KINDS, FeedStack, require, summary, threads

HUB_KINDS = KINDS[1:]


@pytest.fixture(params=KINDS)
def stack(request: pytest.FixtureRequest) -> Iterator[FeedStack]:
    require(request.param)
    stack = FeedStack(request.param)
    try:
        yield stack
    finally:
        stack.close()


def test_bars_come_as_they_were_sent_a_slice_at_a_time_and_what_comes_again_is_left_out(stack: FeedStack) -> None:
    reader = stack.start_reader("IBM", "AAPL", "BTC/USD")
    sent = {symbol: build_bar(symbol, 1) for symbol in ("AAPL", "IBM", "BTC/USD")}
    bitcoin = Bar(
        symbol="BTC/USD",
        ts_event_ns=MINUTE_NS,
        open=1.0,
        high=1.1,
        low=0.9,
        close=1.05,
        volume=0.123456789,
        source="alpaca_crypto",
        vwap=1.0125,
        trade_count=3.0,
    )
    sent["BTC/USD"] = bitcoin
    stack.upstream.send([alpaca_stream.encode_bar_item(sent[symbol]) for symbol in ("AAPL", "IBM", "AAPL")])
    stack.upstream.send([alpaca_stream.encode_bar_item(bitcoin)], CRYPTO_PATH)
    stack.send_slice(1)
    stack.send_slice(2, "AAPL")
    stack.send_slice(3, "IBM", "BTC/USD", last=True)
    first, second, third = (reader.next_slice() for _ in range(3))
    assert [bar.symbol for bar in first.bars] == ["IBM", "AAPL", "BTC/USD"]
    for bar in first.bars:
        assert bar.ts_recv_ns > 0
        expected = sent[bar.symbol]
        for name in ("ts_event_ns", "open", "high", "low", "close", "volume", "vwap", "trade_count", "source", "extra"):
            assert getattr(bar, name) == getattr(expected, name), name
    assert (first.number, first.end_ns, first.event_id, first.last) == (1, 2 * MINUTE_NS, "id1", False)
    assert summary(second) == [("AAPL", 2)]
    assert summary(third) == [("IBM", 3), ("BTC/USD", 3)]
    assert third.last
    counters = reader.source.counters()
    assert counters["bars"] == 6
    assert counters["duplicate_bars"] == 1
    assert counters["messages"] == 13  # seven bars and two times three watermarks
    assert "gaps" not in counters
    assert not reader.statuses


def test_without_watermarks_a_slice_waits_for_all_its_symbols(stack: FeedStack) -> None:
    stack.stop_hub()
    stack.upstream.offers_watermarks = False
    stack.start_hub()
    stack.relay.target = stack.server_port
    reader = stack.build_reader("AAPL", "BTC/USD", watermarks=False).start()
    stack.upstream.wait_subscribed({"AAPL", "IBM"} if stack.kind == "pubsub" else {"AAPL"})
    stack.upstream.wait_subscribed({"BTC/USD"}, CRYPTO_PATH)
    for minute in (1, 2):
        stack.upstream.send([alpaca_stream.encode_bar_item(build_bar("AAPL", minute))])
        stack.upstream.send([alpaca_stream.encode_bar_item(build_bar("BTC/USD", minute))], CRYPTO_PATH)
    assert [summary(reader.next_slice()) for _ in range(2)] == [[("AAPL", m), ("BTC/USD", m)] for m in (1, 2)]


def test_a_reader_that_does_not_take_holds_back_and_loses_nothing(stack: FeedStack) -> None:
    reader = stack.start_reader("AAPL", buffer_messages=2)
    for number in range(1, 13):
        stack.send_slice(number, "AAPL")
    wait_until(lambda: reader.count("buffer_full"), "the buffer is full")
    assert [summary(reader.next_slice()) for _ in range(12)] == [[("AAPL", number)] for number in range(1, 13)]
    assert not reader.count("gaps")


def test_what_was_sent_while_the_connection_was_cut_comes_when_it_is_back(stack: FeedStack) -> None:
    reader = stack.start_reader("AAPL", "BTC/USD")
    stack.send_slice(1, "AAPL", "BTC/USD")
    assert len(reader.next_slice().bars) == 2
    stack.relay.cut()
    stack.send_slice(2, "AAPL", "BTC/USD")
    stack.send_slice(3, "AAPL")
    stack.wait_sent(6)
    reader.wait_status(connected=False)
    stack.relay.restore()
    assert [len(reader.next_slice().bars) for _ in range(2)] == [2, 1]
    stack.send_slice(4, "BTC/USD")
    assert summary(reader.next_slice()) == [("BTC/USD", 4)]
    assert [status.connected for status in reader.statuses] == [False, True]
    assert reader.count("reconnects") >= 1
    assert not reader.count("gaps")


def test_a_hub_that_was_started_again_is_noticed_and_data_goes_on(stack: FeedStack) -> None:
    reader = stack.start_reader("AAPL")
    stack.send_slice(1, "AAPL")
    assert summary(reader.next_slice()) == [("AAPL", 1)]
    stack.relay.cut() if stack.is_direct else None
    stack.stop_hub()
    stack.start_hub()
    stack.relay.restore()
    stack.wait_subscribed("AAPL")
    for number in (1, 2):  # the exchange sends the open slice again
        stack.send_slice(number, "AAPL")
    assert summary(reader.next_bars()) == [("AAPL", 2)]
    assert reader.count("publisher_restarts") == 1
    assert not reader.count("gaps")


def test_a_server_that_was_restarted_is_found_again(stack: FeedStack) -> None:
    reader = stack.start_reader("AAPL", watermarks=False, grace_s=0.2)
    stack.send_slice(1, "AAPL")
    assert summary(reader.next_slice()) == [("AAPL", 1)]
    stack.restart_server()
    reader.wait_status(connected=False)
    reader.wait_status(connected=True)
    stack.wait_subscribed("AAPL")
    # Pub/Sub's emulators forget their topics, and what is published before the subscription is there again is lost.
    (found,) = stack.send_until_seen(reader, 2, "AAPL")
    assert found[0] == "AAPL"
    assert found[1] >= 2


def test_a_source_that_stops_leaves_no_thread(stack: FeedStack) -> None:
    reader = stack.start_reader("AAPL", "BTC/USD")
    before = set(threads())
    assert any(name.startswith("dry-work") for name in before)
    reader.source.stop()
    reader.source.stop()
    wait_until(lambda: not any(name.startswith("dry-work") for name in threads()), "the threads end")
    with pytest.raises(RuntimeError, match="started once"):
        reader.start()


def test_recordings_are_in_the_form_of_pubsub_whatever_brought_the_data(stack: FeedStack, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, writer="test")
    recorder.start()
    reader = stack.start_reader("AAPL", recorder=recorder)
    stack.send_slice(1, "AAPL")
    (bar,) = reader.next_slice().bars
    reader.source.stop()
    recorder.stop()
    assert recorder.folder is not None
    messages = [decode_message(frame.payload) for frame in SessionReader(recorder.folder) if frame.kind == MESSAGE]
    read = [parse_message(m.topic, m.data, m.attributes, recv_ns=bar.ts_recv_ns) for m in messages]
    assert [envelope.topic for envelope in read] == ["market-data"] * 2
    assert [envelope.seq for envelope in read] == [1, 2]
    assert read[0].message == bar


def test_a_hub_that_is_not_there_is_an_error_after_the_timeout(stack: FeedStack) -> None:
    stack.relay.cut()
    with pytest.raises((FeedError, ConfigError)):
        stack.build_reader("AAPL", connect_timeout_s=0.5).start()


# --- ways from the hub itself


@pytest.fixture(params=HUB_KINDS)
def hub_stack(request: pytest.FixtureRequest) -> Iterator[FeedStack]:
    require(request.param)
    stack = FeedStack(request.param)
    try:
        yield stack
    finally:
        stack.close()


def test_the_hub_subscribes_what_readers_want_and_no_more(hub_stack: FeedStack) -> None:
    first = hub_stack.start_reader("AAPL", "BTC/USD")
    second = hub_stack.start_reader("AAPL", "IBM")
    hub_stack.send_slice(1, "AAPL", "IBM", "BTC/USD")
    assert [bar.symbol for bar in first.next_slice().bars] == ["AAPL", "BTC/USD"]
    assert [bar.symbol for bar in second.next_slice().bars] == ["AAPL", "IBM"]
    first.source.stop()
    hub_stack.upstream.wait_subscribed({"AAPL", "IBM"})
    second.source.stop()
    hub_stack.wait_unsubscribed()


def test_a_silent_connection_is_found_and_made_again_without_a_gap(hub_stack: FeedStack) -> None:
    reader = hub_stack.start_reader("AAPL", silence_s=1.0)
    hub_stack.send_slice(1, "AAPL")
    assert summary(reader.next_slice()) == [("AAPL", 1)]
    hub_stack.relay.mute()
    hub_stack.send_slice(2, "AAPL")
    assert summary(reader.next_slice()) == [("AAPL", 2)]
    assert reader.count("reconnects") >= 1
    assert reader.count("resumed_sessions") >= 1
    assert not reader.count("gaps")


def test_what_the_hub_has_not_kept_is_counted_as_a_gap(hub_stack: FeedStack) -> None:
    reader = hub_stack.start_reader("AAPL", watermarks=False, grace_s=0.2)
    hub_stack.send_slice(1, "AAPL")
    assert summary(reader.next_slice()) == [("AAPL", 1)]
    hub_stack.relay.cut()
    for number in (2, 3):
        hub_stack.send_slice(number, "AAPL")
    hub_stack.wait_sent(3)
    reader.wait_status(connected=False)
    hub_stack.forget()
    hub_stack.relay.restore()
    reader.wait_status(connected=True)
    hub_stack.send_slice(4, "AAPL")
    while summary(reader.next_bars())[-1] != ("AAPL", 4):
        pass
    assert reader.count("gaps") == 1
    assert not reader.count("resumed_sessions")


@pytest.mark.parametrize("kind", HUB_KINDS)
def test_a_wrong_token_is_refused_and_the_variable_is_named(kind: str) -> None:
    require(kind)
    variable = {"nats": "NATS_PASSWORD", "redis": "REDIS_PASSWORD"}.get(kind, "HUB_TOKEN")
    stack = FeedStack(kind, is_guarded=True)
    try:
        with pytest.raises(ConfigError, match=variable) as caught:
            stack.build_reader("AAPL", token="wrong").start()
        assert "wrong" not in str(caught.value)
        reader = stack.start_reader("AAPL")
        stack.send_slice(1, "AAPL")
        assert summary(reader.next_slice()) == [("AAPL", 1)]
    finally:
        stack.close()


@pytest.mark.parametrize("kind", ["ws", "grpc", "nats"])
def test_the_symbols_of_a_reader_that_vanishes_are_let_go_of(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require(kind)
    if kind == "nats":  # the lease that the hub is asked for, which is renewed while the reader is there
        from dry_work.feeds.nats import NatsSession

        monkeypatch.setattr("dry_work.feeds.nats.LEASE_S", 2.0)
        monkeypatch.setitem(NatsSession._hold.__kwdefaults__, "lease_s", 2.0)
    stack = FeedStack(kind)
    try:
        stack.start_reader("AAPL")
        stack.relay.cut()
        stack.wait_unsubscribed()
        told = [
            (message["action"], message["bars"])
            for session in stack.upstream.sessions
            for message in session.messages
            if "bars" in message
        ]
        assert told[0] == ("subscribe", ["AAPL"])
        assert told[-1] == ("unsubscribe", ["AAPL"])
    finally:
        stack.close()


@pytest.mark.parametrize("kind", ["nats", "redis"])
def test_a_reader_without_a_hub_behind_the_server_is_told_so(kind: str) -> None:
    require(kind)
    stack = FeedStack(kind)
    try:
        stack.stop_hub()
        with pytest.raises(FeedError, match="no hub"):
            stack.build_reader("AAPL", connect_timeout_s=1.0).start()
    finally:
        stack.close()


@pytest.mark.parametrize("kind", ["ws", "grpc"])
def test_a_refusal_after_the_start_ends_the_run(kind: str) -> None:
    require(kind)
    stack = FeedStack(kind)
    try:
        reader = stack.start_reader("AAPL")
        stack.relay.cut()
        stack.stop_hub()
        stack._is_guarded = True
        stack.start_hub()
        stack.relay.restore()
        event = reader.next_event()
        assert isinstance(event, SourceFailed)
        assert isinstance(event.error, ConfigError)
        assert "HUB_TOKEN" in str(event.error)
    finally:
        stack.close()
