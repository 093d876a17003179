"""The hub between a scripted server of Alpaca's dialect and the embedded Pub/Sub, read by the real client."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from google.pubsub_v1 import SubscriberClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from grpc import insecure_channel
from msgspec.structs import replace

from dry_work.clock import MINUTE_NS
from dry_work.embedded.pubsub import EmbeddedPubSub
from dry_work.errors import ConfigError, HubError
from dry_work.hub.core import ConnectionState
from dry_work.hub.events import ALL, Topic
from dry_work.hub.ports import SinkStatus
from dry_work.hub.queues import ClientQueue, Overflow
from dry_work.hub.service import HubService
from dry_work.hub.upstreams.connection import FeedStatus, UpstreamTiming
from dry_work.market.messages import Bar, Envelope, Watermark
from dry_work.wire import alpaca_stream
from dry_work.wire.alpaca_stream import StreamCodec, StreamWatermark
from dry_work.wire.pubsub import parse_message
from tests.ports import find_free_port

from .alpaca_upstream import DEADLINE_S, KEY, SECRET, Upstream, build_bar, wait_until

PROJECT = "test-project"
QUICK = UpstreamTiming(
    open_timeout_s=30.0,
    auth_timeout_s=30.0,
    ping_interval_s=0.1,
    silence_timeout_s=30.0,
    slow_retry_s=0.3,
    idle_close_s=0.2,
    close_timeout_s=0.2,
)


class Reader:
    """A subscription read by the real client."""

    def __init__(self, server: EmbeddedPubSub, topic: str) -> None:
        self._topic = topic
        channel = insecure_channel(f"127.0.0.1:{server.port}")
        self._client = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        self._path = f"projects/{PROJECT}/subscriptions/reader-{topic}"
        self._client.create_subscription(
            request={"name": self._path, "topic": f"projects/{PROJECT}/topics/{topic}", "ack_deadline_seconds": 60}
        )
        self.attributes: dict[int, dict[str, str]] = {}
        self.hub_times: list[int] = []  # at which the hub had a bar, 0 of other messages

    def read(self, count: int) -> list[Envelope]:
        """Return the next `count` messages in the order of their numbers."""
        found: list[Envelope] = []
        end_s = time.monotonic() + DEADLINE_S
        while len(found) < count:
            # One call for all the time there is: what arrives as a call is given up would come again only much later.
            left_s = end_s - time.monotonic()
            assert left_s > 0, f"{len(found)} of {count} messages in time"
            request = {"subscription": self._path, "max_messages": count - len(found)}
            for received in self._client.pull(request=request, timeout=left_s, retry=None).received_messages:
                attributes = dict(received.message.attributes)
                self.hub_times.append(int(attributes.pop("hub_ns", 0)))
                self.attributes[int(attributes["seq"])] = attributes
                found.append(parse_message(self._topic, received.message.data, attributes, recv_ns=0))
        return sorted(found, key=lambda envelope: envelope.seq)

    def close(self) -> None:
        self._client.transport.close()


class Stack:
    """Upstream, Pub/Sub, readers of both topics, and the hub between them."""

    def __init__(self) -> None:
        self.upstream = Upstream()
        topics = [f"projects/{PROJECT}/topics/{name}" for name in ("market-data", "crypto-data")]
        self.pubsub = EmbeddedPubSub(port=find_free_port(), topics=topics)
        self.pubsub.start()
        self.market = Reader(self.pubsub, "market-data")
        self.crypto = Reader(self.pubsub, "crypto-data")
        self.states: list[tuple[str, str]] = []
        self.failures: list[BaseException] = []
        self.hub: HubService | None = None

    def start_hub(self, symbols: Sequence[str] = (), **settings: Any) -> HubService:
        settings = {"timing": QUICK, "epoch": "e1", "pubsub_endpoint": f"127.0.0.1:{self.pubsub.port}", **settings}
        self.hub = HubService(
            self.upstream.url,
            key=KEY,
            secret=SECRET,
            project=PROJECT,
            symbols=symbols,
            rng=random.Random(1),
            on_feed=lambda status: self.states.append((status.feed, str(status.state))),
            on_failure=self.failures.append,
            **settings,
        )
        self.hub.start()
        return self.hub

    def feed(self, name: str = "iex") -> FeedStatus:
        assert self.hub is not None
        return next(feed for feed in self.hub.status().feeds if feed.feed == name)

    def close(self) -> None:
        if self.hub is not None:
            self.hub.stop()
        self.market.close()
        self.crypto.close()
        self.pubsub.stop()
        self.upstream.close()
        assert not self.failures
        wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("hub")], "no thread is left")


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack()
    yield stack
    stack.close()


def seqs(envelopes: Sequence[Envelope]) -> list[int]:
    return [envelope.seq for envelope in envelopes]


def names(envelopes: Sequence[Envelope]) -> list[str | int]:
    """Return the symbol of each bar and the number of each watermark."""
    messages = [envelope.message for envelope in envelopes]
    return [m.slice if isinstance(m, Watermark) else m.symbol for m in messages if isinstance(m, Bar | Watermark)]


# --- data on the topics


@pytest.mark.parametrize("codec", list(StreamCodec))
def test_a_slice_arrives_on_its_topics_with_attributes_numbers_and_watermarks(stack: Stack, codec: StreamCodec) -> None:
    stack.start_hub(["aapl", "BRK.B", "BTC/USD"], codec=codec)
    stack.upstream.wait_subscribed({"AAPL", "BRK.B"})
    stack.upstream.wait_subscribed({"BTC/USD"}, "/v1beta3/crypto/us")
    began_ns = time.time_ns()
    for number, last in ((1, False), (2, True)):
        stack.upstream.send_slice(number, ["AAPL", "BRK.B"][: 3 - number], last=last)
        stack.upstream.send_slice(number, ["BTC/USD"], "/v1beta3/crypto/us", last=last)
    market, crypto = stack.market.read(5), stack.crypto.read(4)
    assert seqs(market) == [1, 2, 3, 4, 5]
    assert seqs(crypto) == [1, 2, 3, 4]
    assert [e.message for e in market] == [
        build_bar("AAPL", 1),
        build_bar("BRK.B", 1),
        Watermark(slice=1, end_ns=2 * MINUTE_NS, bars=2, event_id="id1"),
        build_bar("AAPL", 2),
        Watermark(slice=2, end_ns=3 * MINUTE_NS, bars=1, event_id="id2", last=True),
    ]
    assert [e.message for e in crypto][1] == Watermark(slice=1, end_ns=2 * MINUTE_NS, bars=1, event_id="id1")
    assert stack.market.attributes[1] == {"symbol": "AAPL", "epoch": "e1", "seq": "1"}
    assert stack.market.attributes[3] == {"type": "watermark", "epoch": "e1", "seq": "3"}
    assert stack.crypto.attributes[1] == {"symbol": "BTC-USD", "epoch": "e1", "seq": "1"}
    times = sorted(stack.market.hub_times)
    assert times[:2] == [0, 0]  # the watermarks
    assert all(began_ns <= at <= time.time_ns() for at in times[2:])
    assert stack.hub is not None
    stack.hub.stop()
    status = stack.hub.status()
    assert (status.received, status.published, status.dropped, status.reconnects) == (9, 9, 0, 0)


def test_a_slice_goes_out_in_one_request(stack: Stack) -> None:
    hub = stack.start_hub(["AAPL", "IBM"])
    stack.upstream.wait_subscribed({"AAPL", "IBM"})
    wait_until(lambda: stack.feed().subscribed == 2, "the subscription is confirmed")
    bars = [alpaca_stream.encode_bar_item(build_bar(symbol, 1)) for symbol in ("AAPL", "IBM")]
    mark = alpaca_stream.encode_watermark_item(StreamWatermark(slice=1, end_ns=2 * MINUTE_NS))
    stack.upstream.send([*bars, mark])
    stack.market.read(3)
    wait_until(lambda: hub.status().published == 3, "published")
    assert [topic.requests for topic in hub.status().topics] == [1, 0]


def test_bars_do_not_wait_for_a_watermark_that_does_not_come(stack: Stack) -> None:
    stack.start_hub(["AAPL"])
    stack.upstream.wait_subscribed({"AAPL"})
    stack.upstream.send([alpaca_stream.encode_bar_item(build_bar("AAPL", 1))])
    assert names(stack.market.read(1)) == ["AAPL"]
    stack.upstream.send_slice(1, [])
    assert stack.market.read(1)[0].message == Watermark(slice=1, end_ns=2 * MINUTE_NS, bars=1, event_id="id1")


def test_a_server_without_watermarks_is_not_asked_for_them(stack: Stack) -> None:
    stack.upstream.offers_watermarks = False
    stack.start_hub(["AAPL"])
    session = stack.upstream.wait_subscribed({"AAPL"})
    stack.upstream.send([alpaca_stream.encode_bar_item(build_bar("AAPL", 1))])
    assert names(stack.market.read(1)) == ["AAPL"]
    assert [set(m) for m in session.messages if m["action"] == "subscribe"] == [{"action", "bars"}]


def test_each_start_has_an_epoch_of_its_own(stack: Stack) -> None:
    settings: dict[str, Any] = {"key": KEY, "secret": SECRET, "project": PROJECT}
    first, second = (HubService(stack.upstream.url, **settings) for _ in range(2))
    assert first.epoch
    assert first.epoch != second.epoch
    for hub in (first, second):
        hub.stop()


# --- interest


def test_only_feeds_with_a_wanted_symbol_are_opened(stack: Stack) -> None:
    hub = stack.start_hub(["AAPL"])
    stack.upstream.wait_subscribed({"AAPL"})
    assert [session.path for session in stack.upstream.sessions] == ["/v2/iex"]
    assert stack.feed("crypto").state is ConnectionState.DISCONNECTED
    hub.acquire("agent", ["BTC/USD"])
    stack.upstream.wait_subscribed({"BTC/USD"}, "/v1beta3/crypto/us")


def test_the_first_user_subscribes_and_the_last_release_unsubscribes_and_closes(stack: Stack) -> None:
    hub = stack.start_hub()
    hub.acquire("a", ["AAPL", "IBM"])
    hub.acquire("b", ["IBM"])
    session = stack.upstream.wait_subscribed({"AAPL", "IBM"})
    hub.release("a")
    stack.upstream.wait_subscribed({"IBM"})
    hub.release("b")
    wait_until(lambda: not session.bars, "nothing is subscribed")
    wait_until(lambda: stack.feed().state is ConnectionState.DISCONNECTED, "the connection is closed")
    wait_until(lambda: not stack.upstream.open, "the server sees it closed")
    assert len(stack.upstream.sessions) == 1
    hub.acquire("c", ["SPY"])
    stack.upstream.wait_subscribed({"SPY"})


def test_a_long_list_is_subscribed_in_batches_and_the_watermarks_come_last(stack: Stack) -> None:
    symbols = [f"A{number}" for number in range(1_200)]
    stack.start_hub(symbols)
    session = stack.upstream.wait_subscribed(set(symbols))
    subscribes = [message for message in session.messages if message["action"] == "subscribe"]
    assert [len(message["bars"]) for message in subscribes] == [500, 500, 200]
    assert [message.get("watermarks") for message in subscribes] == [None, None, ["*"]]


def test_what_is_no_symbol_is_refused_and_nothing_is_acquired(stack: Stack) -> None:
    hub = stack.start_hub()
    with pytest.raises(ConfigError):
        hub.acquire("a", ["AAPL", "no symbol"])
    assert hub.status().symbols == 0


# --- a connection that is lost


def test_after_a_cut_everything_is_subscribed_again_and_the_numbers_go_on(stack: Stack) -> None:
    hub = stack.start_hub(["AAPL", "IBM"])
    stack.upstream.wait_subscribed({"AAPL", "IBM"})
    stack.upstream.send_slice(1, ["AAPL", "IBM"])
    first = stack.market.read(3)
    stack.upstream.cut()
    session = stack.upstream.wait_subscribed({"AAPL", "IBM"})
    wait_until(lambda: session.watermarks, "the watermarks are subscribed again")
    stack.upstream.send_slice(1, ["AAPL", "IBM"])  # the open slice again, as the exchange does
    stack.upstream.send_slice(2, ["AAPL"])
    second = stack.market.read(5)
    assert seqs([*first, *second]) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {envelope.epoch for envelope in (*first, *second)} == {"e1"}
    assert names(second) == ["AAPL", "IBM", 1, "AAPL", 2]
    assert [m.bars for e in second if isinstance(m := e.message, Watermark)] == [2, 1]
    assert hub.status().reconnects == 1
    assert [state for feed, state in stack.states if feed == "iex"] == [
        "connecting",
        "authenticating",
        "connected",
        "reconnecting",
        "connecting",
        "authenticating",
        "connected",
    ]


def test_what_was_acquired_during_an_outage_is_subscribed_after_it(stack: Stack) -> None:
    hub = stack.start_hub(["AAPL"])
    stack.upstream.wait_subscribed({"AAPL"})
    stack.upstream.http_status = 503
    stack.upstream.cut()
    wait_until(lambda: stack.feed().state is ConnectionState.RECONNECTING, "the loss is seen")
    hub.acquire("a", ["IBM"])
    hub.release("configured")
    stack.upstream.http_status = 0
    session = stack.upstream.wait_subscribed({"IBM"})
    asked = [message for message in session.messages if message["action"] == "subscribe"]
    assert [message["bars"] for message in asked] == [["IBM"]]  # what was released meanwhile is not asked for again


def test_a_silent_server_is_left_after_the_time_out(stack: Stack) -> None:
    stack.start_hub(["AAPL"], timing=replace(QUICK, silence_timeout_s=0.5))
    stack.upstream.wait_subscribed({"AAPL"})
    stack.upstream.mute()
    wait_until(lambda: "silent" in stack.feed().error, "the silence is seen")
    wait_until(lambda: stack.feed().state is ConnectionState.CONNECTED, "connected again")
    assert stack.feed().reconnects >= 1


def test_a_quiet_server_that_answers_pings_is_kept(stack: Stack) -> None:
    stack.start_hub(["AAPL"], timing=replace(QUICK, silence_timeout_s=3.0))
    stack.upstream.wait_subscribed({"AAPL"})
    quiet_s = time.monotonic() + 4.0
    wait_until(lambda: time.monotonic() > quiet_s, "more than the time-out")
    assert (stack.feed().reconnects, stack.feed().state) == (0, ConnectionState.CONNECTED)


def test_a_server_that_does_not_answer_to_auth_is_left(stack: Stack) -> None:
    stack.upstream.answers_auth = False
    stack.start_hub(["AAPL"], timing=replace(QUICK, auth_timeout_s=0.5))
    wait_until(lambda: "no answer to authentication" in stack.feed().error, "the time-out")
    stack.upstream.answers_auth = True
    stack.upstream.wait_subscribed({"AAPL"})
    wait_until(lambda: stack.feed().state is ConnectionState.CONNECTED, "connected again")
    assert len(stack.upstream.handshakes) >= 2


def test_a_clean_close_is_followed_by_a_wait_too(stack: Stack) -> None:
    stack.start_hub(["AAPL"])
    session = stack.upstream.wait_subscribed({"AAPL"})
    closed_s = time.monotonic()
    asyncio.run_coroutine_threadsafe(session.socket.close(), session.socket.loop).result(DEADLINE_S)
    wait_until(lambda: len(stack.upstream.handshakes) == 2, "the hub comes back")
    assert stack.upstream.handshakes[1] - closed_s >= 0.4


def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(stack: Stack) -> None:
    stack.upstream.http_status, stack.upstream.retry_after = 429, "2"
    stack.start_hub(["AAPL"])
    wait_until(lambda: "429" in stack.feed().error, "the answer is seen")
    stack.upstream.http_status = 0
    stack.upstream.wait_subscribed({"AAPL"})
    first, second = stack.upstream.handshakes
    assert second - first >= 1.9


# --- errors of the upstream


@pytest.mark.parametrize("code", [402, 406, 409])
def test_a_refusal_is_an_error_of_that_feed_and_is_retried_slowly(stack: Stack, code: int) -> None:
    stack.upstream.auth_error = code
    stack.start_hub(["AAPL"])
    wait_until(lambda: stack.feed().state is ConnectionState.ERROR, "the feed is in error")
    assert stack.feed().error == f"{alpaca_stream.ERROR_MESSAGES[code]} ({code})"
    stack.upstream.auth_error = 0
    stack.upstream.wait_subscribed({"AAPL"})
    wait_until(lambda: stack.feed().state is ConnectionState.CONNECTED, "connected after all")
    assert (stack.feed().error, stack.feed().attempts) == ("", 0)
    assert stack.feed().errors[code] >= 1


def test_a_refused_handshake_is_an_error_of_that_feed(stack: Stack) -> None:
    stack.upstream.http_status = 401
    stack.start_hub(["AAPL"])
    wait_until(lambda: stack.feed().state is ConnectionState.ERROR, "the feed is in error")
    assert "HTTP 401" in stack.feed().error
    stack.upstream.http_status = 0
    stack.upstream.wait_subscribed({"AAPL"})


def test_after_refusals_the_next_tries_are_further_and_further_apart(stack: Stack) -> None:
    stack.upstream.http_status = 403
    stack.start_hub(["AAPL"], timing=UpstreamTiming(first_slow_retry_s=0.1, slow_retry_s=60.0))
    wait_until(lambda: len(stack.upstream.handshakes) == 4, "there were three more tries")
    times = stack.upstream.handshakes
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert [wait > least for wait, least in zip(waits, (0.09, 0.18, 0.36), strict=True)] == [True] * 3
    stack.upstream.http_status = 0
    stack.upstream.wait_subscribed({"AAPL"})


@pytest.mark.parametrize("code", [400, 403, 405, 410])
def test_an_error_that_leaves_the_connection_usable_is_counted_and_data_flows(stack: Stack, code: int) -> None:
    stack.upstream.subscribe_error = code
    stack.start_hub(["AAPL"])
    wait_until(lambda: stack.feed().errors.get(code), "the error is counted")
    stack.upstream.send([alpaca_stream.encode_bar_item(build_bar("AAPL", 1))])
    assert names(stack.market.read(1)) == ["AAPL"]
    assert (stack.feed().state, stack.feed().reconnects) == (ConnectionState.CONNECTED, 0)


@pytest.mark.parametrize("code", [401, 404, 407, 500])
def test_an_error_that_costs_the_connection_is_followed_by_a_new_one(stack: Stack, code: int) -> None:
    stack.start_hub(["AAPL"])
    stack.upstream.wait_subscribed({"AAPL"})
    stack.upstream.send([alpaca_stream.encode_bar_item(build_bar("AAPL", 1)), alpaca_stream.encode_error_item(code)])
    assert names(stack.market.read(1)) == ["AAPL"]
    wait_until(lambda: stack.feed().reconnects == 1, "connected again")
    stack.upstream.wait_subscribed({"AAPL"})
    assert stack.feed().errors == {code: 1}


def test_after_too_many_tries_the_feed_is_in_error_and_tried_again_slowly(stack: Stack) -> None:
    stack.upstream.http_status = 503
    stack.start_hub(["AAPL"], timing=UpstreamTiming(max_attempts=2, slow_retry_s=0.3))
    wait_until(lambda: stack.feed().state is ConnectionState.ERROR, "the tries are used up")
    stack.upstream.http_status = 0
    stack.upstream.wait_subscribed({"AAPL"})
    wait_until(lambda: stack.feed().state is ConnectionState.CONNECTED, "connected at last")
    assert stack.feed().error == ""


def test_what_is_unknown_or_malformed_is_counted_and_costs_only_itself(stack: Stack) -> None:
    stack.start_hub(["AAPL", "IBM"])
    session = stack.upstream.wait_subscribed({"AAPL", "IBM"})
    stack.upstream.send_raw("{no json", session)
    bad = {**alpaca_stream.encode_bar_item(build_bar("AAPL", 1)), "c": None}
    stack.upstream.send([{"T": "zz", "S": "AAPL"}, bad, alpaca_stream.encode_bar_item(build_bar("IBM", 1))])
    assert names(stack.market.read(1)) == ["IBM"]
    feed = stack.feed()
    assert feed.unknown == {"zz": 1}
    assert feed.malformed["b: missing price"] == 1
    assert sum(feed.malformed.values()) == 2
    assert stack.hub is not None
    assert stack.hub.status().dropped == 2
    assert feed.reconnects == 0


# --- back-pressure and the end


def test_without_pubsub_the_buffer_is_bounded_and_nothing_is_lost(stack: Stack) -> None:
    capacity = 200
    hub = stack.start_hub(["AAPL"], capacity=capacity, timing=replace(QUICK, silence_timeout_s=3.0))
    stack.upstream.wait_subscribed({"AAPL"})
    port = stack.pubsub.port
    stack.pubsub.stop()
    slices = 600
    for number in range(1, slices + 1):  # TCP takes what the hub does not read
        stack.upstream.send_slice(number, ["AAPL"])
    topic = hub.status().topics[0]
    wait_until(lambda: hub.status().topics[0].pending >= capacity, "the buffer is full")
    held_s = time.monotonic() + 4.0
    wait_until(lambda: time.monotonic() > held_s, "more than the time-out of silence")
    assert capacity <= hub.status().topics[0].pending <= capacity + 2
    assert stack.feed().reconnects == 0  # what we do not read is not called silent
    stack.market.close()
    stack.pubsub = EmbeddedPubSub(port=port, topics=[f"projects/{PROJECT}/topics/market-data"])
    stack.pubsub.start()
    wait_until(lambda: hub.status().topics[0].published == 2 * slices, "everything is published")
    topic = hub.status().topics[0]
    assert (topic.dropped, topic.pending) == (0, 0)
    assert topic.failures >= 1


def test_stop_publishes_what_was_taken_and_closes_upstream(stack: Stack) -> None:
    hub = stack.start_hub(["AAPL"])
    stack.upstream.wait_subscribed({"AAPL"})
    stack.upstream.send([alpaca_stream.encode_bar_item(build_bar("AAPL", 1))])
    wait_until(lambda: stack.feed().bars == 1, "the bar is taken")
    hub.stop()
    hub.stop()
    assert names(stack.market.read(1)) == ["AAPL"]
    wait_until(lambda: not stack.upstream.open, "the server sees it closed")
    assert stack.feed().state is ConnectionState.DISCONNECTED


def test_stop_ends_a_wait_for_a_server_that_is_not_there(stack: Stack) -> None:
    stack.upstream.http_status = 401
    hub = stack.start_hub(["AAPL"], timing=UpstreamTiming(slow_retry_s=60.0))
    wait_until(lambda: stack.feed().state is ConnectionState.ERROR, "the feed is in error")
    started_s = time.monotonic()
    hub.stop()
    assert time.monotonic() - started_s < 30.0


def test_a_hub_is_started_once(stack: Stack) -> None:
    hub = stack.start_hub()
    with pytest.raises(HubError, match="started once"):
        hub.start()


# --- every channel


class Listener:
    """Reads events of the bus as an interface of the hub does."""

    def __init__(self, hub: Any, topics: Sequence[Topic]) -> None:
        self.name = "listener"
        self.items: list[dict[str, Any]] = []
        self._hub = hub
        self._topics = topics
        self._queue = ClientQueue(100, Overflow.DROP_OLDEST, on_ready=self._take)

    async def start(self) -> None:
        self._hub.bus.attach(self._queue, self._topics)
        self._hub.hold("listener", self._topics)

    async def stop(self, timeout_s: float) -> None:
        self._hub.bus.detach(self._queue)

    def status(self) -> SinkStatus:
        return SinkStatus(name=self.name, clients=1)

    def _take(self) -> None:
        self.items += [dict(event.item) for event in self._queue.take()]


def start_with_listener(stack: Stack, topics: Sequence[Topic], **settings: Any) -> Listener:
    listeners: list[Listener] = []

    def build(hub: HubService) -> Listener:
        listeners.append(Listener(hub, topics))
        return listeners[0]

    stack.start_hub(sinks=[build], **settings)
    return listeners[0]


def test_what_an_interface_wants_is_subscribed_by_channel_and_comes_as_it_was_sent(stack: Stack) -> None:
    topics = [("stocks", "trades", "AAPL"), ("stocks", "corrections", "AAPL"), ("stocks", "quotes", ALL)]
    listener = start_with_listener(stack, topics)
    wait_until(lambda: stack.upstream.open and stack.upstream.open[0].messages[1:], "the hub subscribes")
    subscribe = stack.upstream.open[0].messages[1]
    assert {name: subscribe[name] for name in ("trades", "quotes")} == {"trades": ["AAPL"], "quotes": ["*"]}
    assert "corrections" not in subscribe  # they come with the trades
    items = [
        {"T": "t", "S": "AAPL", "p": 1.5, "s": 2, "t": "2024-01-02T14:30:00Z", "of the future": [1]},
        {"T": "q", "S": "IBM", "bp": 1, "ap": 2, "t": "2024-01-02T14:30:00Z"},
        {"T": "c", "S": "AAPL", "x": "V", "t": "2024-01-02T14:30:00Z"},
    ]
    stack.upstream.send(items)
    wait_until(lambda: len(listener.items) == 3, "everything arrives")
    assert listener.items == items
    assert stack.feed().items == {"t": 1, "q": 1, "c": 1}


def test_options_and_news_have_connections_of_their_own(stack: Stack) -> None:
    topics = [("options", "trades", "AAPL240315C00172500"), ("news", "news", "AAPL")]
    listener = start_with_listener(stack, topics)
    wait_until(lambda: len(stack.upstream.open) == 2, "both are open")
    codecs = {session.path: session.codec for session in stack.upstream.open}
    assert codecs == {"/v1beta1/indicative": StreamCodec.MSGPACK, "/v1beta1/news": StreamCodec.JSON}
    wait_until(lambda: all(len(session.messages) > 1 for session in stack.upstream.open), "both are subscribed")
    news = {"T": "n", "id": 1, "headline": "…", "symbols": ["IBM", "AAPL"], "created_at": "2024-01-02T14:30:00Z"}
    stack.upstream.send([news], "/v1beta1/news")
    wait_until(lambda: listener.items, "the news arrives")
    assert listener.items == [news]


def test_a_topic_that_no_upstream_serves_is_refused_and_nothing_held(stack: Stack) -> None:
    hub = stack.start_hub()
    for topic in (("futures", "bars", "ES"), ("stocks", "bars", "no symbol")):
        with pytest.raises(ConfigError, match=r"'futures' is not a feed|'no symbol' is not a symbol"):
            hub.hold("client", [("stocks", "bars", "AAPL"), topic])
    assert hub.status().clients == 0
