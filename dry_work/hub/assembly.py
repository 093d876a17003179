"""A hub as its settings say: with its accounts, and with the interfaces that are named."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog

from dry_work.alpaca.venues import open_venue
from dry_work.errors import ConfigError
from dry_work.hub.access import Access, read_certificate
from dry_work.hub.accounts import AccountSettings
from dry_work.hub.events import CRYPTO, NEWS, STOCKS
from dry_work.hub.message_types import ORDER_UPDATE, message_type
from dry_work.hub.news_poll import NewsPoll
from dry_work.hub.observation_settings import ObservationSettings, read_observation_settings
from dry_work.hub.ports import HealthPart
from dry_work.hub.service import FeedSettings, HubService, Job, SinkFactory
from dry_work.hub.settings import OAUTH_KEY, HubSettings
from dry_work.hub.sinks.grpc_settings import GrpcSettings, read_grpc_settings
from dry_work.hub.sinks.nats_settings import StreamSettings, read_nats_settings
from dry_work.hub.sinks.redis_settings import read_redis_settings
from dry_work.hub.upstreams.connection import FeedStatus, UpstreamTiming
from dry_work.hub.variables import read_flag

_EXTRAS = {"websocket": "hub", "grpc": "grpc", "nats": "nats"}

COLLECT_EVERY_S = 60.0

_NATS_SWITCHES = ("ENABLE_ORDERS", "ENABLE_CANCELER", "ENABLE_STOCK_STREAM", "ENABLE_GRPC", "ENABLE_GRPC_PROXY")

_log = structlog.get_logger(__name__)


def build_hub(
    settings: HubSettings,
    environment: Mapping[str, str],
    *,
    observation: ObservationSettings | None = None,
    on_feed: Callable[[FeedStatus], None] | None = None,
    on_failure: Callable[[BaseException], None] | None = None,
) -> HubService:
    """Return the hub, not started.

    Args:
        observation: what it tells of itself, and where; None: nothing.

    Raises:
        ConfigError: an interface cannot be set up: a variable of its is wrong, or its package is not installed.
    """
    _warn_of_idle_switches(settings, environment)
    shared = read_grpc_settings(environment)  # what is said there of upstreams holds for all of them
    timing = msgspec.structs.replace(shared.timing, order_check_s=settings.order_check_s)
    certificate, tls = read_certificate(settings.tls_cert, settings.tls_key) or (None, None)
    access = Access(settings.bind_host, settings.token, tls=tls, certificate=certificate)
    return HubService(
        settings.stream_url,
        key=settings.key,
        secret=settings.secret,
        project=settings.project if "pubsub" in settings.sinks else None,
        symbols=settings.symbols,
        pubsub_endpoint=settings.pubsub_endpoint,
        market_topic=settings.market_topic,
        crypto_topic=settings.crypto_topic,
        news_topic=settings.news_topic,
        news_symbols=settings.symbols,
        orders_topic=settings.orders_topic,
        stock_feed=settings.feed,
        option_feed=settings.option_feed or ("indicative" if settings.environment == "paper" else "opra"),
        statuses=settings.statuses,
        batch=settings.batch,
        accounts=_open_accounts(settings),
        state_dir=settings.state_dir,
        sinks=[_choose_sink(name, settings, environment, access) for name in settings.sinks if name != "pubsub"],
        jobs=_choose_jobs(settings),
        timing=timing,
        feeds=_choose_feeds(settings, environment, shared),
        data_history=shared.data_history,
        order_history=shared.order_history,
        health=None if observation is None else _build_health(settings, observation, access, on_failure),
        on_feed=on_feed,
        on_failure=on_failure,
    )


def _warn_of_idle_switches(settings: HubSettings, environment: Mapping[str, str]) -> None:
    """Say that a part is switched on whose interface is not named: it stays off."""
    switched = [name for name in _NATS_SWITCHES if read_flag(environment, name)]
    if switched and "nats" not in settings.sinks:
        _log.warning("these need the sink nats, which is not named: they have no effect", variables=switched)


def describe(settings: HubSettings, environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the configuration in force by part, credentials masked.

    Raises:
        ConfigError: a variable is wrong.
    """
    parts = {"hub": settings.masked(), "grpc": msgspec.structs.asdict(read_grpc_settings(environment))}
    parts["observation"] = msgspec.to_builtins(read_observation_settings(environment))
    if "nats" in settings.sinks:
        parts["nats"] = read_nats_settings(environment).masked()
    if "redis" in settings.sinks:
        parts["redis"] = read_redis_settings(environment).masked()
    return parts


def _open_accounts(settings: HubSettings) -> list[AccountSettings]:
    return [
        AccountSettings(
            environment=keys.environment,
            access=open_venue(
                keys.key,
                keys.secret,
                url=keys.url,
                paper=keys.environment == "paper",
                timeout_s=settings.http_timeout_s,
                oauth_token=keys.oauth_token,
                account_id=keys.account_id,
            ),
        )
        for keys in settings.accounts
    ]


def _choose_feeds(
    settings: HubSettings, environment: Mapping[str, str], shared: GrpcSettings
) -> dict[str, FeedSettings]:
    """Return what the variables of the stock and news streams say of their upstreams."""
    if "nats" not in settings.sinks:
        return {}
    nats = read_nats_settings(environment)
    streams = {STOCKS: nats.stocks, NEWS: nats.news}
    return {
        feed: FeedSettings(url=_cut_path(stream.base_url), timing=_choose_timing(stream, shared))
        for feed, stream in streams.items()
        if stream.is_enabled
    }


def _choose_timing(stream: StreamSettings, shared: GrpcSettings) -> UpstreamTiming:
    timing = shared.timing
    if stream.reconnect_limit is not None:
        timing = msgspec.structs.replace(timing, max_attempts=stream.reconnect_limit)
    if stream.reconnect_delay_s is not None:
        longest_s = max(timing.longest_wait_s, stream.reconnect_delay_s)
        timing = msgspec.structs.replace(timing, first_wait_s=stream.reconnect_delay_s, longest_wait_s=longest_s)
    return timing


def _cut_path(url: str) -> str:
    """Return a base URL without the version that some have at its end: the paths of the feeds have it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if url else ""


async def _collect_garbage(_: HubService) -> None:
    """Collect now and then where `dry-work hub` has switched automatic collection off.

    The histories are many thousand objects that live for minutes. Python would look at all of them some times a second,
    with every client waiting.
    """
    while True:
        await asyncio.sleep(COLLECT_EVERY_S)
        if not gc.isenabled():
            gc.collect()


def _choose_jobs(settings: HubSettings) -> list[Job]:
    if "pubsub" not in settings.sinks or not settings.news_topic or not settings.news_poll_s:
        return [_collect_garbage]
    if settings.key == OAUTH_KEY:
        headers = {"Authorization": f"Bearer {settings.secret}"}
    else:
        headers = {"APCA-API-KEY-ID": settings.key, "APCA-API-SECRET-KEY": settings.secret}

    def look_for_news(hub: HubService) -> Any:
        poll = NewsPoll(
            hub.bus,
            url=settings.data_url,
            headers=headers,
            symbols=settings.symbols,
            interval_s=settings.news_poll_s,
            clock=hub.clock,
        )
        return poll.run()

    return [look_for_news, _collect_garbage]


def _build_health(
    settings: HubSettings,
    observation: ObservationSettings,
    access: Access,
    on_failure: Callable[[BaseException], None] | None,
) -> Callable[[HubService], HealthPart]:
    from dry_work.hub.health_server import HealthServer

    if observation.has_tls and access.tls is None:
        raise ConfigError("HUB_HEALTH_TLS is on, but there is no certificate: set HUB_TLS_CERT and HUB_TLS_KEY")
    topic_types = {
        settings.market_topic: message_type(STOCKS, "bars"),
        settings.crypto_topic: message_type(CRYPTO, "bars"),
        settings.news_topic: message_type(NEWS, NEWS),
        settings.orders_topic: ORDER_UPDATE,
    }
    return lambda hub: HealthServer(
        hub,
        observation,
        environment=settings.environment,
        topic_types=topic_types,
        on_failure=on_failure,
        tls=access.tls if observation.has_tls else None,
        certificate=access.certificate if observation.has_tls else None,
    )


def _choose_sink(name: str, settings: HubSettings, environment: Mapping[str, str], access: Access) -> SinkFactory:
    builders = {"websocket": _build_websocket, "grpc": _build_grpc, "nats": _build_nats, "redis": _build_redis}
    try:
        return builders[name](settings, environment, access)
    except ImportError as error:
        raise ConfigError(
            f"the sink {name!r} needs a package that is not installed ({error.name}): "
            f"pip install 'dry-work[{_EXTRAS[name]}]'"
        ) from error


def _build_websocket(settings: HubSettings, environment: Mapping[str, str], access: Access) -> SinkFactory:
    from dry_work.hub.sinks.websocket import WebSocketSink

    feeds = (settings.feed, "indicative" if settings.environment == "paper" else "opra")

    def build(hub: HubService) -> Any:
        return WebSocketSink(
            hub, access=access, port=settings.websocket_port, feeds=feeds, environment=settings.environment
        )

    return build


def _build_grpc(settings: HubSettings, environment: Mapping[str, str], access: Access) -> SinkFactory:
    from dry_work.hub.sinks.grpc import GrpcSink

    found = read_grpc_settings(environment)

    def build(hub: HubService) -> Any:
        return GrpcSink(hub, access=access, statuses=lambda: hub.status().feeds, settings=found, is_ready=hub.is_ready)

    return build


def _build_nats(settings: HubSettings, environment: Mapping[str, str], access: Access) -> SinkFactory:
    from dry_work.hub.sinks.nats import NatsSink

    found = read_nats_settings(environment)

    def build(hub: HubService) -> Any:
        return NatsSink(hub, found, access=access, state_dir=settings.state_dir)

    return build


def _build_redis(settings: HubSettings, environment: Mapping[str, str], access: Access) -> SinkFactory:
    from dry_work.hub.sinks.redis import RedisSink

    found = read_redis_settings(environment)

    def build(hub: HubService) -> Any:
        return RedisSink(hub, found, state_dir=settings.state_dir)

    return build
