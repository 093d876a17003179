"""Messages a second through a Pub/Sub server with Google's own client, and bars a second into feeds.

The server is a process of its own, as Google's emulator is. One process publishes and receives with
google-cloud-pubsub, so client and server share the machine's cores.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import msgspec
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from google.cloud.pubsub_v1.types import FlowControl
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from benchmarks.emulator import run_googles, run_ours
from benchmarks.market import make_bar, name_symbols
from benchmarks.table import Row, median
from dry_work.feeds.router import PubSubMarketSource
from dry_work.market.messages import Slice, Watermark
from dry_work.wakeup import Wakeup
from dry_work.wire.pubsub import encode_bar, encode_batch, encode_watermark

PROJECT = "benchmarks"
LIMIT_S = 120.0
_REQUEST_MESSAGES = 500
_OPTIONS = (("grpc.max_receive_message_length", -1),)

Message = dict[str, Any]
Publish = Callable[[Any, str, list[Message]], None]


def publish_plain(client: Any, topic: str, messages: list[Message]) -> None:
    """Publish one by one with the client's own batching."""
    futures = [client.publish(topic, message["data"], **message["attributes"]) for message in messages]
    for future in futures:
        future.result(LIMIT_S)


def publish_in_calls(client: Any, topic: str, messages: list[Message]) -> None:
    """Publish requests of many messages each."""
    for start in range(0, len(messages), _REQUEST_MESSAGES):
        client.api.publish(topic=topic, messages=messages[start : start + _REQUEST_MESSAGES], timeout=LIMIT_S)


class Clients:
    """Google's publisher and subscriber on one server."""

    def __init__(self, target: str) -> None:
        self._channels = [grpc.insecure_channel(target, options=_OPTIONS) for _ in range(2)]
        publisher: Any = PublisherClient(transport=PublisherGrpcTransport(channel=self._channels[0]))
        self.publisher = publisher
        self.subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=self._channels[1]))

    def make_topic(self, name: str) -> str:
        """Make a topic with `name` and return its path."""
        path = f"projects/{PROJECT}/topics/{name}"
        self.publisher.create_topic(name=path, timeout=LIMIT_S)
        return path

    def close(self) -> None:
        """End all connections."""
        self.publisher.stop()
        self.subscriber.close()
        for channel in self._channels:
            channel.close()


class Figures(msgspec.Struct, frozen=True):
    """Of one round."""

    rate: float  # messages or bars a second
    client_us: float  # CPU of this process for each of them: 1 s of it over this is what the client allows on a core


def measure_messages(target: str, count: int, publish: Publish) -> Figures:
    """Return messages a second from the first publish to the last callback."""
    clients = Clients(target)
    try:
        name = f"t{secrets.token_hex(4)}"
        topic = clients.make_topic(name)
        subscription = f"projects/{PROJECT}/subscriptions/{name}"
        clients.subscriber.create_subscription(name=subscription, topic=topic, timeout=LIMIT_S)
        received, done, lock = 0, threading.Event(), threading.Lock()

        def take(message: Any) -> None:
            nonlocal received
            message.ack()
            with lock:
                received += 1
                if received >= count + 1:
                    done.set()

        flow = FlowControl(max_messages=10_000, max_bytes=100_000_000)
        stream = clients.subscriber.subscribe(subscription, callback=take, flow_control=flow)
        data = encode_bar(make_bar("AAA", 0))[0]
        messages = [{"data": data, "attributes": {"symbol": "AAA"}} for _ in range(count)]
        publish_in_calls(clients.publisher, topic, messages[:1])
        _wait_for(lambda: received == 1)  # the stream is open
        begun, cpu = time.perf_counter(), time.process_time()
        publish(clients.publisher, topic, messages)
        if not done.wait(LIMIT_S):
            raise RuntimeError(f"{received} of {count + 1} messages came within {LIMIT_S:g} s")
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        stream.cancel()
        stream.result(LIMIT_S)
        return Figures(count / seconds, 1e6 * cpu / count)
    finally:
        clients.close()


def measure_bars(target: str, minutes: int, symbol_count: int, *, batch: bool = False) -> Figures:
    """Return bars a second into slices of a market source: from the first publish to the last slice taken."""
    symbols = name_symbols(symbol_count)
    clients = Clients(target)
    market, crypto = (f"{kind}-{secrets.token_hex(4)}" for kind in ("market", "crypto"))
    source = PubSubMarketSource(
        project_id=PROJECT,
        symbols=symbols,
        agent_id=f"bench-{secrets.token_hex(4)}",
        owner_nonce=secrets.token_hex(8),
        market_topic=market,
        crypto_topic=crypto,
        endpoint=target,
        watermarks=True,
        grace_s=LIMIT_S,
    )
    try:
        topic = clients.make_topic(market)
        wakeup = Wakeup()
        source.start(wakeup)
        messages: list[Message] = []

        def add(encoded: tuple[bytes, dict[str, str]]) -> None:
            messages.append({"data": encoded[0], "attributes": encoded[1]})

        for minute in range(minutes):
            bars = [make_bar(symbol, minute) for symbol in symbols]
            if batch:
                add(encode_batch(bars, epoch="e", seq=len(messages) + 1))
            else:
                for bar in bars:
                    add(encode_bar(bar, epoch="e", seq=len(messages) + 1))
            mark = Watermark(slice=minute + 1, end_ns=bars[0].end_ns, bars=len(bars), last=minute == minutes - 1)
            add(encode_watermark(mark, epoch="e", seq=len(messages) + 1))
        begun, cpu = time.perf_counter(), time.process_time()
        publisher = threading.Thread(target=publish_in_calls, args=(clients.publisher, topic, messages))
        publisher.start()
        bars_taken = 0
        deadline = time.monotonic() + LIMIT_S
        while bars_taken < minutes * symbol_count:
            event = source.take()
            if isinstance(event, Slice):
                bars_taken += len(event.bars)
            elif event is None:
                wakeup.wait(1.0)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{bars_taken} of {minutes * symbol_count} bars came within {LIMIT_S:g} s")
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        publisher.join(LIMIT_S)
        return Figures(bars_taken / seconds, 1e6 * cpu / bars_taken)
    finally:
        source.stop()
        clients.close()


def measure(*, tiny: bool) -> list[Row]:
    """Return messages a second, published plainly and in calls of many, and bars a second into slices."""
    count, minutes, rounds = (50, 2, 1) if tiny else (20_000, 200, 3)
    measures: dict[str, tuple[str, Callable[[str], Figures]]] = {
        "messages, published one by one": ("10 k/s", lambda target: measure_messages(target, count, publish_plain)),
        f"messages, {_REQUEST_MESSAGES} to a publish call": (
            "",
            lambda target: measure_messages(target, count, publish_in_calls),
        ),
        "bars into slices, one to a message": ("", lambda target: measure_bars(target, minutes, 100)),
        "bars into slices, batches of 100": (
            "100 k/s",
            lambda target: measure_bars(target, 10 * minutes, 100, batch=True),
        ),
    }
    ours: dict[str, list[Figures]] = {name: [] for name in measures}
    googles: dict[str, list[Figures]] = {name: [] for name in measures}
    with run_ours() as our_target, run_googles() as their_target:
        for _ in range(rounds):
            for name, (_, measured) in measures.items():
                if their_target is not None:
                    googles[name].append(measured(their_target))
                ours[name].append(measured(our_target))
    rows: list[Row] = []
    for name, (bar, _) in measures.items():
        theirs = googles[name]
        rows.append(
            Row(
                what=f"Pub/Sub: {name}",
                ours=median([each.rate for each in ours[name]]),
                other=median([each.rate for each in theirs]) if theirs else None,
                other_name="Google's emulator",
                unit="/s",
                higher_is_better=True,
                bar=bar,
            )
        )
        client_us = median([each.client_us for each in ours[name]])
        rows.append(Row(what="– CPU of the publishing and receiving process for each", ours=client_us, unit="µs"))
    return rows


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing was received within {LIMIT_S:g} s")
        time.sleep(0.01)
