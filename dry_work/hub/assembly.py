"""A hub as its settings say: with its accounts, and with the interfaces that are named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dry_work.alpaca.venues import open_venue
from dry_work.errors import ConfigError
from dry_work.hub.access import Access
from dry_work.hub.accounts import AccountSettings
from dry_work.hub.service import HubService, SinkFactory
from dry_work.hub.settings import HubSettings
from dry_work.hub.upstreams.connection import FeedStatus

_EXTRAS = {"websocket": "hub", "grpc": "grpc", "nats": "nats"}


def build_hub(
    settings: HubSettings,
    environment: Mapping[str, str],
    *,
    on_feed: Callable[[FeedStatus], None] | None = None,
    on_failure: Callable[[BaseException], None] | None = None,
) -> HubService:
    """Return the hub, not started.

    Raises:
        ConfigError: an interface cannot be set up: a variable of its is wrong, or its package is not installed.
    """
    accounts = [
        AccountSettings(
            environment=keys.environment,
            access=open_venue(keys.key, keys.secret, url=keys.url, paper=keys.environment == "paper"),
        )
        for keys in settings.accounts
    ]
    access = Access(settings.bind_host, settings.token)
    return HubService(
        settings.stream_url,
        key=settings.key,
        secret=settings.secret,
        project=settings.project if "pubsub" in settings.sinks else None,
        symbols=settings.symbols,
        pubsub_endpoint=settings.pubsub_endpoint,
        market_topic=settings.market_topic,
        crypto_topic=settings.crypto_topic,
        stock_feed=settings.feed,
        option_feed="indicative" if settings.environment == "paper" else "opra",
        batch=settings.batch,
        accounts=accounts,
        state_dir=settings.state_dir,
        sinks=[_choose_sink(name, settings, environment, access) for name in settings.sinks if name != "pubsub"],
        on_feed=on_feed,
        on_failure=on_failure,
    )


def _choose_sink(name: str, settings: HubSettings, environment: Mapping[str, str], access: Access) -> SinkFactory:
    builders = {"websocket": _build_websocket, "grpc": _build_grpc, "nats": _build_nats}
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
    from dry_work.hub.sinks.grpc_settings import read_grpc_settings

    found = read_grpc_settings(environment)

    def build(hub: HubService) -> Any:
        return GrpcSink(hub, access=access, statuses=lambda: hub.status().feeds, settings=found)

    return build


def _build_nats(settings: HubSettings, environment: Mapping[str, str], access: Access) -> SinkFactory:
    from dry_work.hub.sinks.nats import NatsSink
    from dry_work.hub.sinks.nats_settings import read_nats_settings

    found = read_nats_settings(environment)

    def build(hub: HubService) -> Any:
        return NatsSink(hub, found, access=access, state_dir=settings.state_dir)

    return build
