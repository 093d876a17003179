"""How market data gets from the hub to the reader in a local stack: the server between, and the hub's interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dry_work.errors import ConfigError
from dry_work.settings import CRYPTO_TOPIC, MARKET_TOPIC, FeedSettings

if TYPE_CHECKING:
    from dry_work.hub.service import SinkFactory

PROJECT = "dry-work-local"


class LocalLink:
    """The way of one kind. `start` before the hub is made, `stop` after it; both belong to one thread."""

    pubsub_target: str | None = None  # host:port of the Pub/Sub server, when there is one

    def start(self) -> None:
        """Start the server between, if any."""

    def stop(self, timeout_s: float) -> None:
        """Stop it. May be called twice."""

    def sinks(self) -> list[SinkFactory]:
        """Return the hub's interfaces, beside Pub/Sub; for a hub that follows another, at the same place."""
        return []

    @property
    def feed(self) -> FeedSettings:
        """What a reader needs, once the hub has started."""
        return FeedSettings()

    def describe(self) -> str:
        """Return what there is, for people."""
        return "hub"


class PubSubLink(LocalLink):
    """An embedded Pub/Sub server, which the hub publishes to."""

    def __init__(self, on_failure: Callable[[BaseException], None] | None) -> None:
        from dry_work.embedded.pubsub import EmbeddedPubSub

        topics = [f"projects/{PROJECT}/topics/{name}" for name in (MARKET_TOPIC, CRYPTO_TOPIC)]
        self._server = EmbeddedPubSub(topics=topics, on_failure=on_failure)

    def start(self) -> None:
        self._server.start()
        self.pubsub_target = self._server.target

    def stop(self, timeout_s: float) -> None:
        self._server.stop(timeout_s)

    def describe(self) -> str:
        return f"Pub/Sub {self.pubsub_target}, hub"


class DirectLink(LocalLink):
    """A port of the hub's own: WebSocket or gRPC."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._sink: Any = None

    def sinks(self) -> list[SinkFactory]:
        from dry_work.hub.access import Access

        def build(hub: Any) -> Any:
            port = 0 if self._sink is None else self._sink.port
            if self._name == "ws":
                from dry_work.hub.sinks.websocket import WebSocketSink

                self._sink = WebSocketSink(hub, access=Access("127.0.0.1"), port=port)
            else:
                from dry_work.hub.sinks.grpc import GrpcSink
                from dry_work.hub.sinks.grpc_settings import GrpcSettings

                self._sink = GrpcSink(
                    hub,
                    access=Access("127.0.0.1"),
                    statuses=lambda: hub.status().feeds,
                    settings=GrpcSettings(port=port),
                )
            return self._sink

        return [build]

    @property
    def feed(self) -> FeedSettings:
        scheme = "ws" if self._name == "ws" else "http"
        return FeedSettings(name=self._name, address=f"{scheme}://127.0.0.1:{self._sink.port}")

    def describe(self) -> str:
        return f"hub with {self.feed.address}"


class NatsLocalLink(LocalLink):
    """An embedded NATS server, and the hub's bars there."""

    def __init__(self) -> None:
        from dry_work.embedded.nats_server import EmbeddedNats

        self._server = EmbeddedNats()

    def start(self) -> None:
        self._server.start()

    def stop(self, timeout_s: float) -> None:
        self._server.close()

    def sinks(self) -> list[SinkFactory]:
        from dry_work.hub.sinks.nats import NatsSink
        from dry_work.hub.sinks.nats_settings import NatsSettings, StreamSettings

        settings = NatsSettings(servers=(self._server.url,), stocks=StreamSettings(is_enabled=True))
        return [lambda hub: NatsSink(hub, settings)]

    @property
    def feed(self) -> FeedSettings:
        return FeedSettings(name="nats", address=self._server.url)

    def describe(self) -> str:
        return f"NATS {self._server.url}, hub"


class RedisLocalLink(LocalLink):
    """An embedded Redis server, and the hub's streams there."""

    def __init__(self) -> None:
        from dry_work.embedded.valkey_server import EmbeddedValkey

        self._server = EmbeddedValkey()

    def start(self) -> None:
        self._server.start()

    def stop(self, timeout_s: float) -> None:
        self._server.close()

    def sinks(self) -> list[SinkFactory]:
        from dry_work.hub.sinks.redis import RedisSink
        from dry_work.hub.sinks.redis_settings import RedisSettings

        settings = RedisSettings(host=self._server.host, port=self._server.port)
        return [lambda hub: RedisSink(hub, settings)]

    @property
    def feed(self) -> FeedSettings:
        return FeedSettings(name="redis", address=f"{self._server.host}:{self._server.port}")

    def describe(self) -> str:
        return f"Redis {self._server.host}:{self._server.port}, hub"


def build_link(name: str, on_failure: Callable[[BaseException], None] | None = None) -> LocalLink:
    """Return the way `name`: one of FEEDS.

    Raises:
        ConfigError: a package of it is not installed.
    """
    try:
        if name == "pubsub":
            return PubSubLink(on_failure)
        if name == "redis":
            return RedisLocalLink()
        if name == "nats":
            return NatsLocalLink()
        return DirectLink(name)
    except ImportError as error:
        raise ConfigError(f"--feed {name} needs a package that is not installed: {error.name}") from error
