"""Bars, watermarks and news from Pub/Sub: which slices come, what is counted, and what is not lost."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dry_work.clock import MINUTE_NS
from dry_work.errors import ConfigError
from dry_work.feeds.intake import Intake
from dry_work.feeds.router import PubSubMarketSource
from dry_work.feeds.staleness import StaleWatch
from dry_work.feeds.subscriber import PullStream
from dry_work.feeds.subscriptions import OWNER_LABEL
from dry_work.market.messages import BarNote, Envelope, News, Watermark
from dry_work.ports import SourceStatus
from dry_work.wire.pubsub import encode_bar, encode_batch, encode_news, encode_watermark

from .router_stack import DEADLINE_S, PROJECT, SOON_S, START_NS, Server, Sources, bar, serve_pubsub, summary


@pytest.fixture
def server() -> Iterator[Server]:
    yield from serve_pubsub()


@pytest.fixture
def sources(server: Server) -> Iterator[Sources]:
    with contextlib.closing(Sources(server)) as found:
        yield found


def wait_for_threads(before: set[threading.Thread]) -> None:
    """Wait until there are no threads beside these."""
    deadline = time.monotonic() + DEADLINE_S
    while left := [thread.name for thread in threading.enumerate() if thread not in before]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_bars_of_all_topics_come_in_one_slice(server: Server, sources: Sources) -> None:
    reader = sources.start(("A", "BTC/USD", "B"), watermarks=False)
    server.publish("crypto-data", encode_bar(bar("BTC/USD", 1, 100.5)))
    server.publish("market-data", encode_bar(bar("B", 1)), encode_bar(bar("A", 1)))
    piece = reader.next_slice()
    assert summary(piece) == ["A@1", "BTC/USD@1", "B@1"]
    assert piece.end_ns == START_NS + MINUTE_NS
    assert piece.bars[1].close == 100.5
    assert piece.bars[1].ts_recv_ns > 0
    assert reader.source.counters() == {"messages": 3, "slices": 1, "bars": 3}


def test_watermarks_release_slices_with_their_number(server: Server, sources: Sources) -> None:
    reader = sources.start(("A", "BTC/USD"))
    for number, count in ((1, 1), (2, 0)):
        for topic, symbol in (("market-data", "A"), ("crypto-data", "BTC/USD")):
            bars = [bar(symbol, number)] if count else []
            end_ns = START_NS + number * MINUTE_NS
            mark = Watermark(slice=number, end_ns=end_ns, bars=count, event_id=f"0{number}", last=number == 2)
            server.publish_numbered(topic, *bars, mark)
    first, second = reader.next_slice(), reader.next_slice()
    assert (first.number, first.event_id, first.last, summary(first)) == (1, "01", False, ["A@1", "BTC/USD@1"])
    assert (second.number, second.event_id, second.last, second.bars) == (2, "02", True, ())
    assert reader.source.wait_s() is None


def test_a_batch_is_taken_as_its_bars_and_its_bad_entries_are_counted(server: Server, sources: Sources) -> None:
    reader = sources.start(("A", "B"), watermarks=True)
    data, attributes = encode_batch([bar("A", 1), bar("B", 1), bar("A", 1)], epoch="e", seq=0)
    data = data[:-1] + b',{"symbol":"A","close":-1}]'
    server.publish("market-data", (data, attributes))
    end_ns = bar("A", 1).end_ns
    server.publish("market-data", encode_watermark(Watermark(slice=1, end_ns=end_ns, bars=2), epoch="e", seq=1))
    assert summary(reader.next_slice()) == ["A@1", "B@1"]
    counters = reader.source.counters()
    assert counters["messages"] == 2
    assert counters["bars"] == 2
    assert counters["duplicate_bars"] == 1
    assert counters["dropped_missing_price"] == 1


def test_no_thread_is_left_after_the_stop(server: Server, sources: Sources) -> None:
    before = set(threading.enumerate())
    reader = sources.start(("A", "BTC/USD"), watermarks=False)
    server.publish("market-data", encode_bar(bar("A", 1)))
    server.publish("crypto-data", encode_bar(bar("BTC/USD", 1)))
    assert set(threading.enumerate()) - before
    assert reader.next_slice().bars
    reader.source.stop()
    wait_for_threads(before)


def test_bad_duplicate_and_foreign_messages_are_counted_and_the_rest_goes_on(server: Server, sources: Sources) -> None:
    reader = sources.start(("A", "B"), watermarks=False)
    good = encode_bar(bar("A", 1, extra={"rsi": 5.0}))
    server.publish(
        "market-data",
        (b"\xff", {"symbol": "A"}),
        (b"[1]", {"symbol": "A"}),
        (b'{"type":"quote"}', {"symbol": "A"}),
        (json.dumps({"open": 1, "high": 1, "low": 1}).encode(), {"symbol": "A"}),
        (json.dumps({"open": 1, "high": 1, "low": 1, "close": -1}).encode(), {"symbol": "A"}),
        (b"[]", {"encoding": "batch"}),
        encode_bar(bar("A", 10_000_000)),
        encode_bar(bar("FOREIGN", 1)),
        good,
        good,
        encode_bar(bar("A", 0)),
        encode_bar(bar("A", 1, revision=1)),
        (json.dumps({"open": 1, "high": 1, "low": 1, "close": 1, "lines": 1, "x y": 2, "symbol": "Z"}).encode(), {}),
        encode_bar(bar("B", 1)),
    )
    piece = reader.next_slice()
    assert summary(piece) == ["A@1", "B@1"]
    assert piece.bars[0].extra == {"rsi": 5.0}
    assert sorted((note.bar.symbol, note.is_revision, note.is_told) for note in reader.notes) == [
        ("A", False, False),  # an older one
        ("A", True, False),
    ]
    assert reader.source.counters() == {
        "messages": 14,
        "dropped_not_json": 1,
        "dropped_not_a_json_object": 1,
        "dropped_unknown_type": 1,
        "dropped_missing_price": 1,
        "dropped_negative_price": 1,
        "dropped_future_timestamp": 1,
        "unwanted_bars": 2,
        "ignored_fields": 2,
        "duplicate_bars": 1,
        "older_bars": 1,
        "revised_bars": 1,
        "slices": 1,
        "bars": 2,
    }
    deadline = time.monotonic() + DEADLINE_S
    while server.pubsub.counters()["acknowledged"] < 14 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.pubsub.counters()["acknowledged"] == 14


def test_late_and_corrected_bars_go_by_the_declared_policy(server: Server, sources: Sources) -> None:
    reader = sources.start(("A", "B"), watermarks=False, grace_s=0.05, drops_late=True, tells_revised=True)
    server.publish("market-data", encode_bar(bar("A", 1)))
    assert summary(reader.next_slice()) == ["A@1"]  # it has waited for B in vain
    server.publish("market-data", encode_bar(bar("B", 1)), encode_bar(bar("A", 1, revision=1)))
    notes = [reader.next(), reader.next()]
    assert all(isinstance(note, BarNote) for note in notes)
    assert {(note.bar.symbol, note.is_revision, note.is_told) for note in notes if isinstance(note, BarNote)} == {
        ("B", False, False),
        ("A", True, True),
    }
    counters = reader.source.counters()
    assert (counters["late_bars"], counters["dropped_late_bars"], counters["revised_bars"]) == (1, 1, 1)


def test_a_message_that_cannot_be_read_makes_no_gap(server: Server, sources: Sources) -> None:
    reader = sources.start(("A",), watermarks=False)
    server.publish_numbered("market-data", bar("A", 1))
    server.publish("market-data", (b"?", {"epoch": "e1", "seq": "2"}))
    server._seq["market-data"] = 2
    server.publish_numbered("market-data", bar("A", 2))
    assert [summary(reader.next_slice()) for _ in range(2)] == [["A@1"], ["A@2"]]
    assert reader.source.counters().get("gaps", 0) == 0


def test_messages_out_of_order_and_twice_are_put_right(server: Server, sources: Sources) -> None:
    reader = sources.start(("A",), watermarks=False)
    messages = [encode_bar(bar("A", minute), epoch="e1", seq=minute) for minute in range(1, 6)]
    server.publish("market-data", *(messages[place] for place in (0, 2, 1, 2, 4, 3, 0)))
    assert [summary(reader.next_slice()) for _ in range(5)] == [[f"A@{minute}"] for minute in range(1, 6)]
    reader.wait_until(lambda: reader.source.counters().get("duplicate_messages") == 2)


def test_news_comes_from_its_own_topic(server: Server, sources: Sources) -> None:
    reader = sources.start(("A",), news_topic="news-data")
    server.publish("news-data", encode_news(News(symbols=("A",), headline="h")))
    event = reader.next()
    assert isinstance(event, News)
    assert (event.symbols, event.headline) == (("A",), "h")
    assert reader.source.counters()["news"] == 1


def test_messages_from_before_the_start_are_not_delivered(server: Server, sources: Sources) -> None:
    # As a process leaves it that was killed.
    server.subscriber.create_subscription(
        request={
            "name": f"projects/{PROJECT}/subscriptions/agent-a1-market-data",
            "topic": f"projects/{PROJECT}/topics/market-data",
            "labels": {OWNER_LABEL: "n1"},
        }
    )
    server.publish("market-data", encode_bar(bar("A", 1)))
    reader = sources.start(("A",), watermarks=False)
    server.publish("market-data", encode_bar(bar("A", 2)))
    assert summary(reader.next_slice()) == ["A@2"]
    assert reader.source.counters()["messages"] == 1


def test_a_full_buffer_stops_the_pull_and_loses_nothing(server: Server, sources: Sources) -> None:
    reader = sources.start(("A",), watermarks=False, buffer_messages=10)
    count = 300
    server.publish_numbered("market-data", *(bar("A", minute) for minute in range(1, count + 1)))
    deadline = time.monotonic() + DEADLINE_S
    while not reader.source.counters().get("buffer_full") and time.monotonic() < deadline:
        time.sleep(0.01)
    counters = reader.source.counters()
    assert counters["buffer_full"] >= 1
    assert counters["messages"] <= 11
    taken = [summary(reader.next_slice()) for _ in range(count)]
    assert taken == [[f"A@{minute}"] for minute in range(1, count + 1)]


def test_a_stop_while_the_buffer_is_full_does_not_hang(server: Server, sources: Sources) -> None:
    before = set(threading.enumerate())
    reader = sources.start(("A",), watermarks=False, buffer_messages=1)
    server.publish_numbered("market-data", *(bar("A", minute) for minute in range(1, 50)))
    deadline = time.monotonic() + DEADLINE_S
    while not reader.source.counters().get("buffer_full") and time.monotonic() < deadline:
        time.sleep(0.01)
    reader.source.stop()
    assert server.subscriptions() == {}
    wait_for_threads(before)


def test_a_stop_while_pubsub_is_gone_ends_in_time(sources: Sources, server: Server) -> None:
    reader = sources.start(("A",))
    server.pubsub.stop()
    event = reader.next()
    assert isinstance(event, SourceStatus)
    assert not event.connected
    assert event.detail
    begun = time.monotonic()
    reader.source.stop(timeout_s=3.0)
    assert time.monotonic() - begun < SOON_S


class Cable:
    """A TCP relay that can be pulled and plugged in again."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._pairs: list[socket.socket] = []
        self._plugged = True
        self._lock = threading.Lock()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with self._lock:
                if not self._plugged:
                    client.close()
                    continue
                upstream = socket.create_connection(self._target)
                self._pairs += [client, upstream]
            for source, sink in ((client, upstream), (upstream, client)):
                threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    @staticmethod
    def _relay(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for each in (source, sink):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def pull(self) -> None:
        with self._lock:
            self._plugged = False
            for each in self._pairs:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
            self._pairs.clear()

    def plug(self) -> None:
        with self._lock:
            self._plugged = True

    def close(self) -> None:
        self.pull()
        self._server.close()


def test_a_lost_connection_is_told_and_nothing_is_lost_with_it(server: Server, sources: Sources) -> None:
    cable = Cable(server.pubsub.port)
    try:
        reader = sources.start(("A",), watermarks=False, endpoint=cable.endpoint)
        server.publish_numbered("market-data", bar("A", 1))
        assert summary(reader.next_slice()) == ["A@1"]
        cable.pull()
        event = reader.next()
        assert isinstance(event, SourceStatus)
        assert not event.connected
        server.publish_numbered("market-data", bar("A", 2))
        cable.plug()
        event = reader.next()
        assert event == SourceStatus(connected=True, detail="Pub/Sub is back")
        assert summary(reader.next_slice()) == ["A@2"]
        assert reader.source.counters()["reconnects"] == 1
        reader.source.stop()
    finally:
        cable.close()


@pytest.mark.parametrize("change", [{"symbols": []}, {"owner_nonce": "A B"}, {"owner_nonce": ""}, {"project_id": ""}])
def test_settings_that_cannot_be_used_are_refused(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {"project_id": "p", "symbols": ["A"], "agent_id": "a", "owner_nonce": "n"}
    PubSubMarketSource(**good)
    with pytest.raises(ConfigError):
        PubSubMarketSource(**(good | change))


def test_a_closed_intake_takes_nothing() -> None:
    intake = Intake(1)
    item = Envelope(topic="t", message=News(symbols=(), headline="h"))
    tended = threading.Event()
    assert intake.put(item, tended.set)
    assert not tended.is_set()
    blocked = threading.Thread(target=intake.put, args=(item, tended.set), daemon=True)
    blocked.start()
    assert tended.wait(DEADLINE_S)
    intake.close()
    blocked.join(DEADLINE_S)
    assert not blocked.is_alive()
    assert not intake.put(item, tended.set)
    assert intake.get() is item
    assert intake.get() is None


def test_a_symbol_is_stale_once_while_its_market_is_open() -> None:
    open_markets = {"A"}
    watch = StaleWatch(["A", "B"], 100, lambda symbol, _: symbol in open_markets)
    watch.begin(0)
    assert watch.look(99, 0) == 0
    assert watch.look(100, 0) == 1  # A; the market of B is closed
    assert watch.look(250, 0) == 0
    watch.note("A", 260)
    open_markets.add("B")
    assert watch.look(360, 0) == 2
    watch.note("unknown", 400)
    assert watch.look(1000, 0) == 0


def test_stale_symbols_are_counted_although_nothing_arrives(server: Server, sources: Sources) -> None:
    reader = sources.start(("A",), stale_s=0.1)
    assert reader.source.wait_s() is not None
    told = reader.next()
    assert isinstance(told, SourceStatus)
    assert (told.connected, told.symbol) == (False, "A")
    assert reader.source.counters()["stale_symbols"] == 1


@pytest.mark.slow
def test_what_waits_for_room_is_not_delivered_again(
    server: Server, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dry_work.feeds.subscriber._LEASE_S", 10)  # the least that Pub/Sub allows
    monkeypatch.setattr("dry_work.feeds.subscriber._EXTEND_AFTER_S", 2.0)
    reader = sources.start(("A",), watermarks=False, buffer_messages=1)
    server.publish_numbered("market-data", bar("A", 1), bar("A", 2), bar("A", 3))
    deadline = time.monotonic() + 12
    while time.monotonic() < deadline:
        assert server.pubsub.counters()["expired"] == 0
        time.sleep(0.2)
    assert [summary(reader.next_slice()) for _ in range(3)] == [["A@1"], ["A@2"], ["A@3"]]
    assert server.pubsub.counters()["delivered"] == 3


def test_a_stream_tells_the_server_that_somebody_is_here(
    server: Server, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats, beat = threading.Semaphore(0), PullStream.beat

    def count(stream: PullStream) -> None:
        beat(stream)
        beats.release()

    monkeypatch.setattr(PullStream, "beat", count)
    monkeypatch.setattr("dry_work.feeds.subscriptions._BEAT_S", 0.05)
    reader = sources.start(("A",), watermarks=False)
    for _ in range(3):
        assert beats.acquire(timeout=DEADLINE_S)
    server.publish("market-data", encode_bar(bar("A", 1)))
    assert summary(reader.next_slice()) == ["A@1"]
    assert reader.source.counters().get("reconnects") is None
