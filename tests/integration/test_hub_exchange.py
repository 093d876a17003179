"""The hub between the simulated exchange in lock-step and the embedded Pub/Sub, in this process and as a command."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api_core.exceptions import GoogleAPICallError
from google.pubsub_v1 import SubscriberClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from dry_work.embedded.pubsub import EmbeddedPubSub
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.recorded import Recording
from dry_work.hub.service import HubService
from dry_work.hub.upstreams.connection import FeedStatus
from dry_work.market.messages import Bar, BarBatch, Envelope, Watermark
from dry_work.wire.pubsub import parse_message

PROJECT = "test-project"
TOPICS = ("market-data", "crypto-data")
SYMBOLS = ("SPY", "BRK.B", "BTC/USD")
KEY, SECRET = "consumer-key-id", "consumer-secret-value"
DEADLINE_S = 60.0


class Consumer:
    """Reads both topics with the real client, and reports each slice done once both watermarks are there."""

    def __init__(self, exchange: ExchangeServer, pubsub: EmbeddedPubSub) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", exchange.port, timeout=DEADLINE_S)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{pubsub.port}")
        self._client = SubscriberClient(transport=SubscriberGrpcTransport(channel=self._channel))
        self._arrived: queue.Queue[Envelope] = queue.Queue()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._pull, args=(topic,)) for topic in TOPICS]
        for topic in TOPICS:
            self._client.create_subscription(
                request={"name": self._subscription(topic), "topic": f"projects/{PROJECT}/topics/{topic}"}
            )
        for thread in self._threads:
            thread.start()
        self.envelopes: list[Envelope] = []

    def follow(self, until: int | None = None) -> None:
        """Register, and keep up with the market until slice `until` (None: the last) is done."""
        self.post("/dry-work/v1/consumers", {"consumer": "test", "symbols": list(SYMBOLS)})
        self.go_on(until)

    def go_on(self, until: int | None = None) -> None:
        """Keep up with the market; a slice that comes again is reported again, which the exchange allows."""
        marked: defaultdict[int, set[str]] = defaultdict(set)
        end_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < end_s:
            with contextlib.suppress(queue.Empty):
                envelope = self._arrived.get(timeout=0.5)
                self.envelopes.append(envelope)
                mark = envelope.message
                if isinstance(mark, Watermark):
                    marked[mark.slice].add(envelope.topic)
                    if len(marked[mark.slice]) == len(TOPICS):
                        self.post(f"/dry-work/v1/slices/{mark.slice}/done", {"consumer": "test", "orders": 0})
                        if mark.last or mark.slice == until:
                            return
        raise AssertionError(f"the market did not end within {DEADLINE_S} s")

    def post(self, path: str, body: dict[str, Any]) -> None:
        headers = {"APCA-API-KEY-ID": KEY, "APCA-API-SECRET-KEY": SECRET, "Content-Type": "application/json"}
        self._http.request("POST", path, json.dumps(body), headers)
        answer = self._http.getresponse()
        text = answer.read()
        assert answer.status == 200, text

    def close(self) -> None:
        self._stopping.set()
        self._client.transport.close()
        for thread in self._threads:
            thread.join()
        self._http.close()

    def _subscription(self, topic: str) -> str:
        return f"projects/{PROJECT}/subscriptions/test-{topic}"

    def _pull(self, topic: str) -> None:
        path = self._subscription(topic)
        seen: set[tuple[str, int]] = set()
        while not self._stopping.is_set():
            try:
                request = {"subscription": path, "max_messages": 100}
                answer = self._client.pull(request=request, timeout=DEADLINE_S, retry=None)
                ids = [received.ack_id for received in answer.received_messages]
                self._client.acknowledge(request={"subscription": path, "ack_ids": ids}, retry=None, timeout=DEADLINE_S)
            except (GoogleAPICallError, ValueError):  # the channel was closed
                if not self._stopping.is_set():
                    raise
                return
            for received in answer.received_messages:
                message = received.message
                envelope = parse_message(topic, message.data, dict(message.attributes), recv_ns=1)
                if (envelope.epoch, envelope.seq) not in seen:  # Pub/Sub delivers at least once
                    seen.add((envelope.epoch, envelope.seq))
                    self._arrived.put(envelope)


@pytest.fixture(scope="module")
def recording() -> Recording:
    return synthetic_day(SYMBOLS, minutes=25)


@pytest.fixture
def exchange(recording: Recording) -> Iterator[ExchangeServer]:
    exchange = ExchangeServer(recording)
    exchange.start()
    yield exchange
    exchange.stop()


@pytest.fixture
def pubsub() -> Iterator[EmbeddedPubSub]:
    pubsub = EmbeddedPubSub(topics=[f"projects/{PROJECT}/topics/{topic}" for topic in TOPICS])
    pubsub.start()
    yield pubsub
    pubsub.stop()


@pytest.fixture
def consumer(exchange: ExchangeServer, pubsub: EmbeddedPubSub) -> Iterator[Consumer]:
    consumer = Consumer(exchange, pubsub)
    yield consumer
    consumer.close()


def build_hub(exchange: ExchangeServer, pubsub: EmbeddedPubSub, **settings: Any) -> HubService:
    return HubService(
        exchange.stream_url,
        key=KEY,
        secret=SECRET,
        project=PROJECT,
        symbols=SYMBOLS,
        pubsub_endpoint=f"127.0.0.1:{pubsub.port}",
        **settings,
    )


def bars_of(envelope: Envelope) -> tuple[Bar, ...]:
    message = envelope.message
    if isinstance(message, Bar):
        return (message,)
    return message.bars if isinstance(message, BarBatch) else ()


def check_everything_arrived(envelopes: list[Envelope], recording: Recording) -> None:
    """The bars are exactly the recording's, each watermark counts its bars, and no number is missing."""
    for symbol in SYMBOLS:
        found = {bar.ts_event_ns: bar for e in envelopes for bar in bars_of(e) if bar.symbol == symbol}
        expected = recording.bars(symbol)
        assert sorted(found) == [bar.ts_event_ns for bar in expected]
        for bar in expected:
            got = found[bar.ts_event_ns]
            assert (got.open, got.high, got.low, got.close, got.volume) == (
                bar.open,
                bar.high,
                bar.low,
                bar.close,
                bar.volume,
            )
            assert got.extra == bar.extra
    for topic in TOPICS:
        mine = [e for e in envelopes if e.topic == topic]
        by_epoch = defaultdict(list)
        for envelope in mine:
            by_epoch[envelope.epoch].append(envelope.seq)
        for seqs in by_epoch.values():
            assert sorted(seqs) == list(range(1, len(seqs) + 1))
        bars = {(bar.end_ns, bar.symbol) for e in mine for bar in bars_of(e)}
        in_slice = Counter(end_ns for end_ns, _ in bars)
        marks = [e.message for e in mine if isinstance(e.message, Watermark)]
        assert {mark.slice for mark in marks} == set(range(1, 26))
        assert [mark.bars for mark in marks] == [in_slice[mark.end_ns] for mark in marks]


@pytest.mark.parametrize("batch", [False, True])
def test_in_lock_step_every_bar_and_watermark_of_the_recording_arrives(
    exchange: ExchangeServer, pubsub: EmbeddedPubSub, consumer: Consumer, recording: Recording, batch: bool
) -> None:
    hub = build_hub(exchange, pubsub, batch=batch)
    hub.start()
    try:
        consumer.follow()
        check_everything_arrived(consumer.envelopes, recording)
        status = hub.status()
        bars = sum(recording.count(symbol) for symbol in SYMBOLS)
        assert sum(feed.bars for feed in status.feeds) == bars
        assert all(topic.requests <= 25 for topic in status.topics)  # a slice is one request a topic
        assert status.dropped == 0
    finally:
        hub.stop()


def test_a_hub_that_is_started_again_within_the_day_loses_nothing(
    exchange: ExchangeServer, pubsub: EmbeddedPubSub, consumer: Consumer, recording: Recording
) -> None:
    first, second = build_hub(exchange, pubsub), build_hub(exchange, pubsub)
    first.start()
    try:
        consumer.follow(until=10)
        first.stop()
        second.start()
        consumer.go_on()
        check_everything_arrived(consumer.envelopes, recording)
        assert {envelope.epoch for envelope in consumer.envelopes} == {first.epoch, second.epoch}
    finally:
        first.stop()
        second.stop()


def test_a_failure_in_the_hubs_thread_is_told_once(exchange: ExchangeServer, pubsub: EmbeddedPubSub) -> None:
    failures: list[BaseException] = []
    failed = threading.Event()

    def break_down(_: FeedStatus) -> None:
        raise ArithmeticError("told on purpose")

    def take(error: BaseException) -> None:
        failures.append(error)
        failed.set()

    hub = build_hub(exchange, pubsub, on_feed=break_down, on_failure=take)
    hub.start()
    assert failed.wait(DEADLINE_S)
    hub.stop()
    assert [str(error) for error in failures] == ["told on purpose"]


def test_the_command_serves_until_sigterm_and_shows_no_secret(
    exchange: ExchangeServer, pubsub: EmbeddedPubSub, consumer: Consumer, recording: Recording, tmp_path: Path
) -> None:
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "ALPACA_API_KEY": KEY,
        "ALPACA_SECRET_KEY": SECRET,
        "ALPACA_STREAM_URL": exchange.stream_url,
        "GOOGLE_CLOUD_PROJECT": PROJECT,
        "PUBSUB_EMULATOR_HOST": f"127.0.0.1:{pubsub.port}",
        "HUB_SYMBOLS": ",".join(SYMBOLS),
        "LOG_LEVEL": "debug",
        # Its usual ports may be somebody's now.
        **dict.fromkeys(("STREAM_PROXY_HEALTH_PORT", "STREAM_PROXY_METRICS_PORT", "HEALTH_PORT"), "0"),
    }
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "dry_work", "hub", "--sinks", "pubsub"],
        env={**environment, "PYTHONPATH": root, "PYTHONUNBUFFERED": "1"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:  # closes the pipes
        try:
            consumer.follow()
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
    assert process.returncode == 0, err
    check_everything_arrived(consumer.envelopes, recording)
    lines = out.splitlines()
    assert "hub: iex: connected, 2 symbols" in lines
    assert "hub: crypto: connected, 1 symbol" in lines
    received = len(consumer.envelopes)
    assert lines[-1] == f"hub: received {received}, published {received}, dropped 0"
    assert "configuration" in err
    for text in (out, err):
        assert SECRET not in text
        assert KEY not in text


def test_the_command_without_credentials_ends_with_two_and_names_the_variables(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "dry_work", "hub", "--symbols", "SPY", "--project", PROJECT],
        env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": root},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 2
    assert "ALPACA_API_KEY and ALPACA_SECRET_KEY" in done.stderr
    assert "Traceback" not in done.stderr
