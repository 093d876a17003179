"""Where the hub, or the server between, is for each way of market data. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from dry_work.settings import (
    DEFAULT_GRPC_ENDPOINT,
    DEFAULT_WEBSOCKET_URL,
    FeedSettings,
    parse_feed,
    parse_url,
    read_variable,
)


def read_feed_settings(environment: Mapping[str, str], name: str) -> FeedSettings:
    """Return the settings of the way `name`, from the variables of the hub's own interface where there are some.

    Raises:
        ConfigError: naming the variable, its value and what is allowed.
    """
    name = parse_feed(name)
    token = read_variable(environment, "HUB_TOKEN")
    if name == "ws":
        url = read_variable(environment, "STREAM_PROXY_WS_URL") or DEFAULT_WEBSOCKET_URL
        address = parse_url(url, name="STREAM_PROXY_WS_URL", schemes=("ws", "wss"))
        return FeedSettings(name=name, address=address, token=token)
    if name == "grpc":
        url = read_variable(environment, "STREAM_PROXY_ENDPOINT") or DEFAULT_GRPC_ENDPOINT
        return FeedSettings(name=name, address=parse_url(url, name="STREAM_PROXY_ENDPOINT"), token=token)
    if name == "nats":
        from dry_work.hub.sinks.nats_settings import read_nats_settings

        nats = read_nats_settings(environment)
        return FeedSettings(
            name=name,
            address=",".join(nats.servers),
            user=nats.user,
            password=nats.password,
            prefix=nats.prefix,
            stream=nats.data_stream,
        )
    if name == "redis":
        from dry_work.hub.sinks.redis_settings import read_redis_settings

        found = read_redis_settings(environment)
        host = f"[{found.host}]" if ":" in found.host else found.host
        return FeedSettings(
            name=name,
            address=f"{host}:{found.port}",
            user=found.username,
            password=found.password,
            database=found.db,
            tls=found.use_tls,
        )
    return FeedSettings(name=name)
