"""The embedded Pub/Sub with clients on it, and sources that are read as the engine does."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grpc
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from dry_work.clock import MINUTE_NS
from dry_work.embedded.pubsub import EmbeddedPubSub
from dry_work.feeds.router import PubSubMarketSource
from dry_work.market.messages import Bar, BarNote, Slice, Watermark
from dry_work.ports import SourceEvent
from dry_work.wakeup import Wakeup
from dry_work.wire.pubsub import encode_bar, encode_watermark

PROJECT = "demo"
DEADLINE_S = 60.0
SOON_S = 30.0  # for what must not hang
START_NS = 1_704_205_800_000_000_000


def bar(symbol: str, minute: int, close: float = 1.0, **fields: Any) -> Bar:
    start = START_NS + (minute - 1) * MINUTE_NS
    return Bar(symbol=symbol, ts_event_ns=start, open=close, high=close, low=close, close=close, volume=1, **fields)


class Server:
    """An embedded server with clients on it."""

    def __init__(self, pubsub: EmbeddedPubSub) -> None:
        self.pubsub = pubsub
        self._channel = grpc.insecure_channel(pubsub.target)
        self.publisher = PublisherClient(transport=PublisherGrpcTransport(channel=self._channel))
        self.subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=self._channel))
        self._seq: dict[str, int] = {}

    def publish(self, topic: str, *messages: tuple[bytes, Mapping[str, str]]) -> None:
        self.publisher.publish(
            topic=f"projects/{PROJECT}/topics/{topic}",
            messages=[{"data": data, "attributes": dict(attributes)} for data, attributes in messages],
        )

    def publish_numbered(self, topic: str, *values: Bar | Watermark, epoch: str = "e1") -> None:
        encoded = []
        for value in values:
            seq = self._seq[topic] = self._seq.get(topic, 0) + 1
            encode: Any = encode_bar if isinstance(value, Bar) else encode_watermark
            encoded.append(encode(value, epoch=epoch, seq=seq))
        self.publish(topic, *encoded)

    def subscriptions(self) -> dict[str, Any]:
        found = self.subscriber.list_subscriptions(project=f"projects/{PROJECT}")
        return {each.name.rpartition("/")[2]: each for each in found}

    def close(self) -> None:
        self._channel.close()


def serve_pubsub() -> Iterator[Server]:
    """Yield a server with the three topics for a fixture."""
    pubsub = EmbeddedPubSub(
        topics=[f"projects/{PROJECT}/topics/{t}" for t in ("market-data", "crypto-data", "news-data")]
    )
    pubsub.start()
    clients = Server(pubsub)
    try:
        yield clients
    finally:
        clients.close()
        pubsub.stop()


class Sources:
    """Starts sources and takes their events as the engine does."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._started: list[PubSubMarketSource] = []

    def build(self, symbols: Sequence[str] = ("A", "B"), **settings: Any) -> PubSubMarketSource:
        # A slice waits for its bars for as long as a machine under load may take to bring them.
        settings = {"grace_s": DEADLINE_S} | settings
        settings = {"agent_id": "a1", "owner_nonce": "n1", "endpoint": self._server.pubsub.target} | settings
        settings.setdefault("rng", random.Random(1))
        source = PubSubMarketSource(project_id=PROJECT, symbols=symbols, **settings)
        self._started.append(source)
        return source

    def start(self, symbols: Sequence[str] = ("A", "B"), **settings: Any) -> Reader:
        source = self.build(symbols, **settings)
        wakeup = Wakeup()
        source.start(wakeup)
        return Reader(source, wakeup)

    def close(self) -> None:
        for source in self._started:
            source.stop()


class Reader:
    def __init__(self, source: PubSubMarketSource, wakeup: Wakeup) -> None:
        self.source = source
        self.wakeup = wakeup
        self.notes: list[BarNote] = []

    def next(self, timeout_s: float = DEADLINE_S) -> SourceEvent:
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            event = self.source.take()
            if event is not None:
                return event
            wait_s = self.source.wait_s()
            self.wakeup.wait(left if wait_s is None else min(left, wait_s))
        raise AssertionError(f"no event within {timeout_s} s; counters {dict(self.source.counters())}")

    def next_slice(self, timeout_s: float = DEADLINE_S) -> Slice:
        while isinstance(event := self.next(timeout_s), BarNote):
            self.notes.append(event)
        assert isinstance(event, Slice), event
        return event

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = DEADLINE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not true within {timeout_s} s; counters {dict(self.source.counters())}")
            assert self.source.take() is None
            self.wakeup.wait(0.05)


def summary(piece: Slice) -> list[str]:
    return [f"{each.symbol}@{(each.end_ns - START_NS) // MINUTE_NS}" for each in piece.bars]
