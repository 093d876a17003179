"""The Pub/Sub sink with the real client, against the embedded server behind a relay that can be cut."""

from __future__ import annotations

import random
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from google.api_core.exceptions import NotFound
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from dry_work.clock import MINUTE_NS, SystemClock
from dry_work.embedded.pubsub import EmbeddedPubSub
from dry_work.errors import ConfigError
from dry_work.hub.ports import TopicStatus
from dry_work.hub.sinks.pubsub import PubSubSink
from dry_work.market.messages import Bar, BarBatch, Envelope, Watermark
from dry_work.wire.pubsub import parse_message

PROJECT = "test-project"
TOPIC = "market-data"
DEADLINE_S = 60.0


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.005)


class Relay:
    """Passes bytes between clients and a server; `cut` drops all connections and refuses new ones."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.passes_answers = True
        self.is_cut = False
        self.request_bytes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._commands = threading.Lock()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="relay")
        self._thread.start()

    def cut(self) -> None:
        with self._commands:
            self.is_cut = True
            self._drop_all()

    def mend(self) -> None:
        with self._commands:
            self.passes_answers = True
            self.is_cut = False

    def close(self) -> None:
        self._stopping = True
        self._thread.join()
        self._drop_all()
        self._listener.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._stopping:
            events = self._selector.select(0.02)
            with self._commands:
                for key, _ in events:
                    self._handle(key)

    def _handle(self, key: selectors.SelectorKey) -> None:
        if key.fileobj is self._listener:
            client, _ = self._listener.accept()
            try:
                if self.is_cut:
                    raise ConnectionRefusedError
                server = socket.create_connection(("127.0.0.1", self.server_port), 1.0)
            except OSError:
                client.close()
                return
            self._pairs.append((client, server))
            self._selector.register(client, selectors.EVENT_READ, (server, True))
            self._selector.register(server, selectors.EVENT_READ, (client, False))
            return
        source = key.fileobj
        assert isinstance(source, socket.socket)
        if source.fileno() < 0:
            return
        target, is_request = key.data
        try:
            data = source.recv(65_536)
            if is_request:
                self.request_bytes += len(data)
            if data and (is_request or self.passes_answers):
                target.sendall(data)
        except OSError:
            data = b""
        if not data:
            for pair in [pair for pair in self._pairs if source in pair]:
                self._drop(pair)

    def _drop_all(self) -> None:
        for pair in list(self._pairs):
            self._drop(pair)

    def _drop(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self._pairs.remove(pair)
        for end in pair:
            self._selector.unregister(end)
            end.close()


class Reader:
    """A subscription read by the real client."""

    def __init__(self, target: str, topic: str, subscription: str = "reader") -> None:
        self._topic = topic
        self._channel = grpc.insecure_channel(target)
        self._client = SubscriberClient(transport=SubscriberGrpcTransport(channel=self._channel))
        self._path = f"projects/{PROJECT}/subscriptions/{subscription}"
        self._client.create_subscription(
            request={"name": self._path, "topic": f"projects/{PROJECT}/topics/{topic}", "ack_deadline_seconds": 60}
        )
        self.attributes: list[dict[str, str]] = []

    def read(self, count: int, timeout_s: float = DEADLINE_S) -> list[Envelope]:
        """Return the next `count` messages in the order of their numbers, as delivered otherwise."""
        found: list[Envelope] = []
        end_s = time.monotonic() + timeout_s
        while len(found) < count:
            # One call for all the time there is: what arrives as a call is given up would come again only much later.
            left_s = end_s - time.monotonic()
            assert left_s > 0, f"{len(found)} of {count} messages in time"
            request = {"subscription": self._path, "max_messages": count - len(found)}
            for received in self._client.pull(request=request, timeout=left_s, retry=None).received_messages:
                attributes = dict(received.message.attributes)
                self.attributes.append(attributes)
                found.append(parse_message(self._topic, received.message.data, attributes, recv_ns=1))
        return sorted(found, key=lambda envelope: envelope.seq)

    def close(self) -> None:
        self._client.transport.close()


def bars(count: int, symbol: str = "SPY", start: int = 0) -> list[Bar | Watermark]:
    return [
        Bar(symbol=symbol, ts_event_ns=(start + i) * MINUTE_NS, open=1.5, high=2.0, low=1.0, close=1.75, volume=10.0)
        for i in range(count)
    ]


def build_sink(
    target: str,
    *,
    topics: tuple[str, ...] = (TOPIC,),
    capacity: int = 1_000,
    batch: bool = False,
    on_room: Callable[[], None] | None = None,
) -> PubSubSink:
    return PubSubSink(
        project=PROJECT,
        topics=topics,
        endpoint=target,
        epoch="e1",
        rng=random.Random(1),
        clock=SystemClock(),
        batch=batch,
        capacity=capacity,
        on_room=on_room,
    )


def has_topic(server: EmbeddedPubSub, topic: str) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        client = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        try:
            client.get_topic(topic=f"projects/{PROJECT}/topics/{topic}", timeout=DEADLINE_S)
        except NotFound:
            return False
        return True


def topic_status(sink: PubSubSink) -> TopicStatus:
    (status,) = sink.status()
    return status


def seqs(envelopes: list[Envelope]) -> list[int]:
    return [envelope.seq for envelope in envelopes]


@pytest.fixture
def server() -> Iterator[EmbeddedPubSub]:
    server = EmbeddedPubSub()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def relay(server: EmbeddedPubSub) -> Iterator[Relay]:
    relay = Relay(server.port)
    yield relay
    relay.close()


def test_messages_arrive_numbered_with_their_attributes(server: EmbeddedPubSub) -> None:
    sink = build_sink(f"127.0.0.1:{server.port}")
    assert sink.start()
    reader = Reader(f"127.0.0.1:{server.port}", TOPIC)
    try:
        mark = Watermark(slice=1, end_ns=MINUTE_NS, bars=2, event_id="01X", last=True)
        sink.offer(TOPIC, [*bars(1), *bars(1, "BRK.B"), mark])
        found = reader.read(3)
        assert seqs(found) == [1, 2, 3]
        assert {envelope.epoch for envelope in found} == {"e1"}
        assert [e.message.symbol for e in found if isinstance(e.message, Bar)] == ["SPY", "BRK.B"]
        assert found[2].message == mark
        by_seq = {int(attributes["seq"]): attributes for attributes in reader.attributes}
        assert by_seq[1] == {"symbol": "SPY", "epoch": "e1", "seq": "1"}
        assert by_seq[3] == {"type": "watermark", "epoch": "e1", "seq": "3"}
    finally:
        reader.close()
        assert sink.stop() == 0
    assert topic_status(sink).published == 3


def test_in_the_batch_form_bars_offered_together_are_one_message(server: EmbeddedPubSub) -> None:
    sink = build_sink(f"127.0.0.1:{server.port}", batch=True)
    assert sink.start()
    reader = Reader(f"127.0.0.1:{server.port}", TOPIC)
    mark = Watermark(slice=1, end_ns=MINUTE_NS, bars=2)
    try:
        sink.offer(TOPIC, [*bars(1), *bars(1, "BRK.B"), mark, *bars(1, start=1)])
        sink.offer(TOPIC, bars(2_500, "IBM"))
        found = reader.read(6)
        assert seqs(found) == [1, 2, 3, 4, 5, 6]
        sizes = [len(e.message.bars) if isinstance(e.message, BarBatch) else e.message for e in found]
        assert sizes == [2, mark, 1, 1_000, 1_000, 500]
        by_seq = {int(attributes["seq"]): attributes for attributes in reader.attributes}
        assert by_seq[1] == {"encoding": "batch", "epoch": "e1", "seq": "1"}
        assert by_seq[2] == {"type": "watermark", "epoch": "e1", "seq": "2"}
    finally:
        reader.close()
        assert sink.stop() == 0
    assert topic_status(sink).published == 4 + 2_500


def test_a_topic_that_is_there_already_is_used(server: EmbeddedPubSub) -> None:
    for _ in range(2):
        sink = build_sink(f"127.0.0.1:{server.port}")
        assert sink.start()
        assert sink.stop() == 0


def test_what_was_offered_before_stop_is_published(server: EmbeddedPubSub) -> None:
    sink = build_sink(f"127.0.0.1:{server.port}", capacity=10_000)
    sink.start()
    reader = Reader(f"127.0.0.1:{server.port}", TOPIC)
    sink.offer(TOPIC, bars(2_500))
    assert sink.stop() == 0
    status = topic_status(sink)
    assert (status.published, status.pending) == (2_500, 0)
    assert status.requests >= 3  # Google takes a thousand messages a request
    assert seqs(reader.read(2_500)) == list(range(1, 2_501))
    reader.close()


def test_a_restarted_server_gets_everything_from_where_it_stopped(server: EmbeddedPubSub, relay: Relay) -> None:
    sink = build_sink(f"127.0.0.1:{relay.port}")
    sink.start()
    sink.offer(TOPIC, bars(5))
    wait_until(lambda: topic_status(sink).published == 5, "the first bars are published")
    relay.cut()
    sink.offer(TOPIC, bars(5, start=5))
    wait_until(lambda: topic_status(sink).failures >= 1, "a request fails")
    restarted = EmbeddedPubSub(topics=[f"projects/{PROJECT}/topics/{TOPIC}"])
    restarted.start()
    reader = Reader(f"127.0.0.1:{restarted.port}", TOPIC)
    try:
        relay.server_port = restarted.port
        relay.mend()
        assert seqs(reader.read(5)) == [6, 7, 8, 9, 10]
        wait_until(lambda: topic_status(sink).published == 10, "all is published")
        assert topic_status(sink).error == ""
        assert sink.stop() == 0
    finally:
        sink.stop()
        reader.close()
        restarted.stop()


def test_topics_that_the_server_has_lost_are_created_again_also_those_without_messages(
    server: EmbeddedPubSub, relay: Relay
) -> None:
    sink = build_sink(f"127.0.0.1:{relay.port}", topics=(TOPIC, "silent"))
    sink.start()
    relay.cut()
    restarted = EmbeddedPubSub()
    restarted.start()
    try:
        relay.server_port = restarted.port
        relay.mend()
        sink.offer(TOPIC, bars(3))
        wait_until(lambda: sink.status()[0].published == 3, "published on the new server")
        for topic in (TOPIC, "silent"):
            wait_until(lambda topic=topic: has_topic(restarted, topic), f"{topic} is there")  # type: ignore[misc]
    finally:
        assert sink.stop() == 0
        restarted.stop()


def test_a_request_whose_answer_was_lost_is_sent_again_with_the_same_numbers(
    server: EmbeddedPubSub, relay: Relay
) -> None:
    sink = build_sink(f"127.0.0.1:{relay.port}")
    sink.start()
    reader = Reader(f"127.0.0.1:{server.port}", TOPIC)
    try:
        relay.passes_answers = False
        sink.offer(TOPIC, bars(2))
        assert seqs(reader.read(2)) == [1, 2]  # they arrived, and the hub cannot know
        relay.cut()
        relay.mend()
        assert seqs(reader.read(2)) == [1, 2]
        sink.offer(TOPIC, bars(1, start=2))
        assert seqs(reader.read(1)) == [3]
    finally:
        assert sink.stop() == 0
        reader.close()


def test_a_full_buffer_says_so_and_has_room_again_later(server: EmbeddedPubSub, relay: Relay) -> None:
    has_room = threading.Event()
    sink = build_sink(f"127.0.0.1:{relay.port}", capacity=10, on_room=has_room.set)
    sink.start()
    try:
        relay.cut()
        sink.offer(TOPIC, bars(9))
        assert sink.has_room(TOPIC)
        sink.offer(TOPIC, bars(3, start=9))
        assert not sink.has_room(TOPIC)
        assert not has_room.is_set()
        assert topic_status(sink).pending == 12
        relay.mend()
        assert has_room.wait(DEADLINE_S)
        wait_until(lambda: topic_status(sink).published == 12, "all is published")
        assert sink.has_room(TOPIC)
    finally:
        assert sink.stop() == 0


def test_what_cannot_be_published_until_the_end_is_counted(server: EmbeddedPubSub, relay: Relay) -> None:
    sink = build_sink(f"127.0.0.1:{relay.port}")
    sink.start()
    relay.cut()
    sink.offer(TOPIC, bars(4))
    wait_until(lambda: topic_status(sink).failures >= 1, "a request fails")
    started_s = time.monotonic()
    assert sink.stop(0.3) == 4
    assert time.monotonic() - started_s < 30.0
    status = topic_status(sink)
    assert (status.published, status.dropped, status.pending) == (0, 4, 0)
    assert "hub-pubsub" not in " ".join(thread.name for thread in threading.enumerate())


def test_a_start_without_a_server_goes_on_in_the_background(server: EmbeddedPubSub, relay: Relay) -> None:
    relay.cut()
    sink = build_sink(f"127.0.0.1:{relay.port}")
    try:
        assert not sink.start(timeout_s=0.1)
        sink.offer(TOPIC, bars(1))
        relay.mend()
        wait_until(lambda: topic_status(sink).published == 1, "published once the server is there")
    finally:
        assert sink.stop() == 0


def test_a_topic_name_that_the_server_refuses_is_a_start_error(server: EmbeddedPubSub) -> None:
    sink = PubSubSink(
        project=PROJECT,
        topics=["goog-data"],
        endpoint=f"127.0.0.1:{server.port}",
        epoch="e1",
        rng=random.Random(1),
        clock=SystemClock(),
    )
    with pytest.raises(ConfigError, match="goog-data"):
        sink.start()
    assert "hub-pubsub" not in " ".join(thread.name for thread in threading.enumerate())


def test_the_emulator_of_the_environment_is_used(server: EmbeddedPubSub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{server.port}")
    sink = PubSubSink(project=PROJECT, topics=[TOPIC], epoch="e1", rng=random.Random(1), clock=SystemClock())
    assert sink.start()
    assert sink.stop() == 0


def test_without_emulator_and_credentials_the_error_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", f"{tmp_path}/none.json")
    sink = PubSubSink(project=PROJECT, topics=[TOPIC], epoch="e1", rng=random.Random(1), clock=SystemClock())
    with pytest.raises(ConfigError, match=r"GOOGLE_APPLICATION_CREDENTIALS.*PUBSUB_EMULATOR_HOST"):
        sink.start()
