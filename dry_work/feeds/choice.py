"""Which way market data comes, and the source for it. A transport's library is loaded only when it is chosen."""

from __future__ import annotations

from collections.abc import Sequence

from dry_work.clock import Clock
from dry_work.errors import ConfigError
from dry_work.feeds.hub_link import CRYPTO, SILENCE_S, STOCKS, Transport
from dry_work.feeds.source import BufferedSource, ReaderSettings
from dry_work.recording.recorder import Recorder
from dry_work.settings import FeedSettings, RunSettings

_EXTRAS = {"ws": "hub", "grpc": "grpc", "nats": "nats", "redis": "redis"}


def build_source(
    settings: RunSettings,
    reader: ReaderSettings,
    *,
    agent_id: str,
    owner_nonce: str,
    clock: Clock,
    recorder: Recorder | None,
) -> BufferedSource:
    """Return the source of a run's market data, not started.

    Raises:
        ConfigError: it cannot be built: a setting is wrong, or a package is not installed.
    """
    if settings.feed.name == "pubsub":
        from dry_work.feeds.router import PubSubMarketSource

        return PubSubMarketSource(
            project_id=settings.project,
            symbols=settings.symbols,
            agent_id=agent_id,
            market_topic=settings.market_topic,
            crypto_topic=settings.crypto_topic,
            owner_nonce=owner_nonce,
            endpoint=settings.pubsub_endpoint,
            take_over=settings.take_over,
            watermarks=reader.watermarks,
            grace_s=reader.grace_s,
            stale_s=reader.stale_s,
            is_open=reader.is_open,
            stops_when_stale=reader.stops_when_stale,
            drops_late=reader.drops_late,
            tells_revised=reader.tells_revised,
            clock=clock,
            recorder=recorder,
        )
    from dry_work.feeds.hub_source import HubMarketSource

    return HubMarketSource(
        build_transport(
            settings.feed,
            symbols=settings.symbols,
            client=f"{agent_id}-{owner_nonce[:8]}",
            statuses=settings.wants_statuses,
        ),
        symbols=settings.symbols,
        settings=reader,
        topics={STOCKS: settings.market_topic, CRYPTO: settings.crypto_topic},
        clock=clock,
        recorder=recorder,
    )


def build_transport(
    feed: FeedSettings,
    *,
    symbols: Sequence[str],
    client: str,
    silence_s: float = SILENCE_S,
    statuses: bool = False,
) -> Transport:
    """Return the way to the hub that `feed` names.

    Args:
        client: names this reader to the hub; the same after a restart.
        silence_s: without any word of the other side: the connection is dead.
        statuses: bring trading statuses and price bands of stocks too.

    Raises:
        ConfigError: its package is not installed.
    """
    try:
        if feed.name == "ws":
            from dry_work.feeds.websocket import WebSocketTransport

            return WebSocketTransport(
                feed.address, token=feed.token, symbols=symbols, silence_s=silence_s, statuses=statuses
            )
        if feed.name == "grpc":
            from dry_work.feeds.grpc import GrpcTransport

            return GrpcTransport(
                feed.address, token=feed.token, symbols=symbols, silence_s=silence_s, statuses=statuses
            )
        if feed.name == "nats":
            from dry_work.feeds.nats import NatsTransport

            return NatsTransport(feed, symbols=symbols, client=client, silence_s=silence_s, statuses=statuses)
        if feed.name == "redis":
            from dry_work.feeds.redis import RedisTransport

            return RedisTransport(feed, symbols=symbols, client=client, silence_s=silence_s, statuses=statuses)
        raise ConfigError(f"--feed {feed.name!r} (DRY_WORK_FEED): expected pubsub, nats, redis, ws or grpc")
    except ImportError as error:
        raise ConfigError(
            f"--feed {feed.name} needs a package that is not installed ({error.name}): "
            f"pip install 'dry-work[{_EXTRAS[feed.name]}]'"
        ) from error
