"""A scripted upstream, the hub, the server between, and a reader, for every way of market data."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from typing import Any

import pytest

from dry_work.embedded.nats_server import find_nats_server
from dry_work.embedded.pubsub import EmbeddedPubSub
from dry_work.feeds.choice import build_transport
from dry_work.feeds.hub_source import HubMarketSource
from dry_work.feeds.router import PubSubMarketSource
from dry_work.feeds.source import BufferedSource, ReaderSettings
from dry_work.hub.access import Access
from dry_work.hub.service import HubService
from dry_work.hub.upstreams.connection import UpstreamTiming
from dry_work.market.messages import Slice
from dry_work.ports import SourceEvent, SourceFailed, SourceStatus
from dry_work.settings import FeedSettings
from dry_work.wakeup import Wakeup
from tests.ports import find_free_port

from .alpaca_upstream import KEY, SECRET, Upstream, wait_until
from .tcp_relay import Relay

DEADLINE_S = 30.0
KINDS = ("pubsub", "ws", "grpc", "nats", "redis")
PROJECT = "demo"
CRYPTO_PATH = "/v1beta3/crypto/us"
QUICK = UpstreamTiming(ping_interval_s=0.5, silence_timeout_s=30.0, slow_retry_s=0.3, first_wait_s=0.05)
TOKEN = "the-token-of-the-hub"


def require(kind: str) -> None:
    """Skip what this machine has not installed."""
    packages = {"ws": ["picows", "websockets"], "grpc": ["grpc_health"], "nats": ["nats"], "redis": ["redis"]}
    for package in packages.get(kind, []):
        pytest.importorskip(package, reason=f"{package} is not installed")
    if kind == "nats" and find_nats_server() is None:
        pytest.skip("nats-server is not installed")
    if kind == "redis":
        from dry_work.embedded.valkey_server import find_valkey_server

        if find_valkey_server() is None:
            pytest.skip("valkey-server is not installed")


class Reader:
    """A source, and the engine's side of it."""

    def __init__(self, source: BufferedSource) -> None:
        self.source = source
        self.wakeup = Wakeup()
        self.statuses: list[SourceStatus] = []
        self.others: list[SourceEvent] = []
        self._kept: deque[Slice] = deque()  # came while a status was waited for

    def start(self) -> Reader:
        self.source.start(self.wakeup)
        return self

    def next_event(self, timeout_s: float = DEADLINE_S) -> Slice | SourceFailed:
        end_s = time.monotonic() + timeout_s
        while True:
            event = self._kept.popleft() if self._kept else self.source.take()
            if isinstance(event, Slice | SourceFailed):
                return event
            if isinstance(event, SourceStatus):
                self.statuses.append(event)
                continue
            if event is not None:
                self.others.append(event)
                continue
            left_s = end_s - time.monotonic()
            assert left_s > 0, f"nothing came; {dict(self.source.counters())}"
            wait_s = self.source.wait_s()
            self.wakeup.wait(left_s if wait_s is None else min(wait_s, left_s))

    def poll(self, timeout_s: float) -> Slice | None:
        """Return the next slice if one comes in time."""
        end_s = time.monotonic() + timeout_s
        while (left_s := end_s - time.monotonic()) > 0:
            event = self._kept.popleft() if self._kept else self.source.take()
            if isinstance(event, Slice):
                return event
            if isinstance(event, SourceStatus):
                self.statuses.append(event)
            elif event is not None:
                self.others.append(event)
            else:
                wait_s = self.source.wait_s()
                self.wakeup.wait(left_s if wait_s is None else min(wait_s, left_s))
        return None

    def next_slice(self) -> Slice:
        event = self.next_event()
        assert isinstance(event, Slice), event
        return event

    def next_bars(self) -> Slice:
        """Return the next slice that has bars."""
        while not (piece := self.next_slice()).bars:
            pass
        return piece

    def wait_status(self, *, connected: bool) -> None:
        end_s = time.monotonic() + DEADLINE_S
        while not self.statuses or self.statuses[-1].connected is not connected:
            assert time.monotonic() < end_s, self.statuses
            event = self.source.take()
            if isinstance(event, SourceStatus):
                self.statuses.append(event)
            elif isinstance(event, Slice):
                self._kept.append(event)
            elif event is not None:
                assert not isinstance(event, SourceFailed), event
                self.others.append(event)
            else:
                self.wakeup.wait(0.05)

    def count(self, name: str) -> int:
        return self.source.counters().get(name, 0)


class FeedStack:
    """Everything of one kind; parts are started in the order upstream, server, hub, reader."""

    def __init__(self, kind: str, *, is_guarded: bool = False, statuses: bool = False) -> None:
        self.kind = kind
        self.is_direct = kind in ("ws", "grpc")
        self.upstream = Upstream()
        self.hub: HubService | None = None
        self.failures: list[BaseException] = []
        self.readers: list[Reader] = []
        self._sink: Any = None
        self._port = find_free_port()  # of the hub's own interface, or of the server
        self._hubs = 0
        self._is_guarded = is_guarded
        self._statuses = statuses
        self.server = self._build_server()
        if self.server is not None:
            self.server.start()
        self.start_hub()
        self.relay = Relay(self.server_port)

    # --- parts

    @property
    def server_port(self) -> int:
        return self._port

    def _build_server(self) -> Any:
        if self.kind == "pubsub":
            topics = [f"projects/{PROJECT}/topics/{name}" for name in ("market-data", "crypto-data")]
            return EmbeddedPubSub(port=self._port, topics=topics)
        if self.kind == "nats":
            from dry_work.embedded.nats_server import EmbeddedNats

            credentials: dict[str, Any] = {"user": "user", "password": TOKEN} if self._is_guarded else {}
            return EmbeddedNats(port=self._port, **credentials)
        if self.kind == "redis":
            from dry_work.embedded.valkey_server import EmbeddedValkey

            return EmbeddedValkey(port=self._port, password=TOKEN if self._is_guarded else "")
        return None

    def _build_sink(self, hub: HubService) -> Any:
        access = Access("0.0.0.0", TOKEN) if self._is_guarded else Access("127.0.0.1")
        password = TOKEN if self._is_guarded else ""
        if self.kind == "ws":
            from dry_work.hub.sinks.websocket import WebSocketSink

            self._sink = WebSocketSink(hub, access=access, port=self._port)
        elif self.kind == "grpc":
            from dry_work.hub.sinks.grpc import GrpcSink
            from dry_work.hub.sinks.grpc_settings import GrpcSettings

            settings = GrpcSettings(port=self._port)
            self._sink = GrpcSink(hub, access=access, statuses=lambda: hub.status().feeds, settings=settings)
        elif self.kind == "nats":
            from dry_work.hub.sinks.nats import NatsSink
            from dry_work.hub.sinks.nats_settings import NatsSettings, StreamSettings

            nats_settings = NatsSettings(
                servers=(self.server.url,),
                user="user" if self._is_guarded else "",
                password=password,
                stocks=StreamSettings(is_enabled=True),
                lease_s=3.0,
                check_interval_s=0.1,
            )
            self._sink = NatsSink(hub, nats_settings)
        else:
            from dry_work.hub.sinks.redis import RedisSink
            from dry_work.hub.sinks.redis_settings import RedisSettings

            self._sink = RedisSink(hub, RedisSettings(port=self.server.port, password=password, longest_wait_s=0.2))
        return self._sink

    def start_hub(self) -> None:
        self._hubs += 1
        is_pubsub = self.kind == "pubsub"
        self.hub = HubService(
            self.upstream.url,
            key=KEY,
            secret=SECRET,
            project=PROJECT if is_pubsub else None,
            symbols=("AAPL", "IBM", "BTC/USD") if is_pubsub else (),
            pubsub_endpoint=self.server.target if is_pubsub else None,
            sinks=[] if is_pubsub else [self._build_sink],
            statuses=is_pubsub and self._statuses,
            rng=random.Random(self._hubs),
            epoch=f"e{self._hubs}",
            timing=QUICK,
            on_failure=self.failures.append,
        )
        self.hub.start()

    def stop_hub(self) -> None:
        hub, self.hub = self.hub, None
        if hub is not None:
            hub.stop()

    def restart_server(self) -> None:
        """End what the reader is connected to as a crash does, and start it again at the same place."""
        if self.is_direct:
            self.relay.cut()
            self.stop_hub()
            self.start_hub()
            self.relay.restore()
        elif self.kind == "pubsub":
            self.server.stop()
            topics = [f"projects/{PROJECT}/topics/{name}" for name in ("market-data", "crypto-data")]
            self.server = EmbeddedPubSub(port=self._port, topics=topics)
            self.server.start()
        else:
            self.server.kill()
            self.server.start()

    def forget(self) -> None:
        """Let nothing be left of what a reader that is away has missed."""
        if self.kind == "redis":
            import redis

            with redis.Redis(port=self.server.port) as client:
                for key in client.keys("stream:*"):
                    client.xtrim(key, maxlen=0, approximate=False)
        elif self.kind == "nats":
            self._delete_consumers()
        else:
            assert self.hub is not None
            for history in self.hub.bus._history.values():
                while len(history) > 1:
                    history.popleft()

    def _delete_consumers(self) -> None:
        import asyncio

        from nats.aio.client import Client

        async def delete() -> None:
            client = Client()
            await client.connect(self.server.url, allow_reconnect=False)
            js = client.jetstream()
            for info in await js.consumers_info("nalpaca-data-stream-v0"):
                if str(info.name).startswith("dry-work-"):
                    await js.delete_consumer("nalpaca-data-stream-v0", str(info.name))
            await client.close()

        asyncio.run(delete())

    # --- readers

    def feed_settings(self, *, port: int = 0, token: str = TOKEN) -> FeedSettings:
        at = f"127.0.0.1:{port or self.relay.port}"
        scheme = {"ws": "ws://", "grpc": "http://", "nats": "nats://"}.get(self.kind, "")
        if self.is_direct:
            return FeedSettings(name=self.kind, address=scheme + at, token=token if self._is_guarded else "")
        user = "user" if self.kind == "nats" and self._is_guarded else ""
        return FeedSettings(name=self.kind, address=scheme + at, user=user, password=token if self._is_guarded else "")

    def build_reader(
        self,
        *symbols: str,
        silence_s: float | None = None,
        port: int = 0,
        token: str = TOKEN,
        connect_timeout_s: float = 10.0,
        recorder: Any = None,
        **settings: Any,
    ) -> Reader:
        values: dict[str, Any] = {"grace_s": 20.0, "watermarks": True, **settings}
        source: BufferedSource
        if self.kind == "pubsub":
            source = PubSubMarketSource(
                project_id=PROJECT,
                symbols=symbols,
                agent_id=f"reader-{len(self.readers)}",
                owner_nonce="nonce",
                endpoint=f"127.0.0.1:{port or self.relay.port}",
                connect_timeout_s=connect_timeout_s,
                recorder=recorder,
                **values,
            )
        else:
            transport: Any = build_transport(
                self.feed_settings(port=port, token=token),
                symbols=symbols,
                client=f"reader-{len(self.readers)}",
                statuses=self._statuses,
            )
            if silence_s is not None:
                name = "silence_s" if hasattr(transport, "silence_s") else "_silence_s"
                setattr(transport, name, silence_s)
            source = HubMarketSource(
                transport,
                symbols=symbols,
                settings=ReaderSettings(**values),
                rng=random.Random(1),
                connect_timeout_s=connect_timeout_s,
                recorder=recorder,
            )
        reader = Reader(source)
        self.readers.append(reader)
        return reader

    def start_reader(self, *symbols: str, **settings: Any) -> Reader:
        reader = self.build_reader(*symbols, **settings).start()
        self.wait_subscribed(*symbols)
        return reader

    def wait_subscribed(self, *symbols: str) -> None:
        for path, wanted in self._by_path(symbols).items():
            wait_until(
                lambda path=path, wanted=wanted: any(  # type: ignore[misc]
                    session.path == path and wanted <= session.bars and session.watermarks
                    for session in self.upstream.open
                ),
                f"{wanted} are subscribed",
                DEADLINE_S,
            )

    def wait_unsubscribed(self) -> None:
        wait_until(lambda: not any(session.bars for session in self.upstream.open), "nothing is subscribed", DEADLINE_S)

    def send_slice(self, number: int, *symbols: str, last: bool = False) -> None:
        """Send a slice on both paths, as the exchange does."""
        by_path = self._by_path(symbols)
        for path in ("/v2/iex", CRYPTO_PATH):
            self.upstream.send_slice(number, sorted(by_path.get(path, ())), path, last=last)

    def send_until_seen(self, reader: Reader, number: int, symbol: str) -> list[tuple[str, int]]:
        """Send one slice after the other until the reader gets one; return its bars."""
        end_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < end_s:
            self.send_slice(number, symbol)
            number += 1
            piece = reader.poll(0.5)
            if piece is not None and piece.bars:
                return summary(piece)
        raise AssertionError(f"nothing came; {dict(reader.source.counters())}")

    def wait_sent(self, count: int) -> None:
        """Wait until the hub has taken so many watermarks from its upstream."""

        def taken() -> int:
            assert self.hub is not None
            return sum(feed.watermarks for feed in self.hub.status().feeds)

        wait_until(lambda: taken() >= count, f"{count} watermarks", DEADLINE_S)

    @staticmethod
    def _by_path(symbols: tuple[str, ...]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for symbol in symbols:
            found.setdefault(CRYPTO_PATH if "/" in symbol else "/v2/iex", set()).add(symbol)
        return found

    def close(self) -> None:
        for reader in self.readers:
            reader.source.stop()
        self.stop_hub()
        self.relay.close()
        if self.server is not None:
            (self.server.stop if self.kind == "pubsub" else self.server.close)()
        self.upstream.close()
        assert not self.failures
        wait_until(lambda: not threads(), "no thread is left")


def threads() -> list[str]:
    """Return the names of the threads of readers and hubs."""
    names: deque[str] = deque(thread.name for thread in threading.enumerate())
    return [name for name in names if name.startswith(("hub", "dry-work"))]


def summary(piece: Slice) -> list[tuple[str, int]]:
    """Return symbol and minute of a slice's bars."""
    return [(bar.symbol, bar.ts_event_ns // 60_000_000_000) for bar in piece.bars]
