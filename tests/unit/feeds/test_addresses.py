"""Where the hub is, for each way of market data."""

from __future__ import annotations

from pathlib import Path

import pytest

from dry_work.cli.run import build_settings
from dry_work.errors import ConfigError
from dry_work.feeds.addresses import read_feed_settings
from dry_work.settings import FeedSettings

KEYS = {"ALPACA_API_KEY": "PKTEST", "ALPACA_SECRET_KEY": "s"}


def test_defaults_are_the_hubs_own() -> None:
    assert read_feed_settings({}, "pubsub") == FeedSettings()
    assert read_feed_settings({}, "ws").address == "ws://127.0.0.1:8099"
    assert read_feed_settings({}, "grpc").address == "http://localhost:50052"
    assert read_feed_settings({}, "nats").address == "nats://localhost:4222"
    assert read_feed_settings({}, "redis").address == "localhost:6379"


def test_the_variables_of_the_hub_hold_for_its_readers() -> None:
    environment = {
        "HUB_TOKEN": "secret-token",
        "STREAM_PROXY_WS_URL": "wss://hub.example:443/",
        "STREAM_PROXY_ENDPOINT": "https://hub.example",
        "NATS_URL": "one:4222,two:4222",
        "NATS_USER": "u",
        "NATS_PASSWORD": "secret-word",
        "PREFIX": "mine",
        "REDIS_HOST": "::1",
        "REDIS_PORT": "7000",
        "REDIS_DB": "3",
        "REDIS_PASSWORD": "secret-word",
    }
    ws = read_feed_settings(environment, "ws")
    assert (ws.address, ws.token) == ("wss://hub.example:443", "secret-token")
    assert read_feed_settings(environment, "GRPC").address == "https://hub.example"
    nats = read_feed_settings(environment, "nats")
    assert (nats.address, nats.user, nats.prefix) == ("nats://one:4222,nats://two:4222", "u", "mine")
    redis = read_feed_settings(environment, "redis")
    assert (redis.address, redis.database, redis.password) == ("[::1]:7000", 3, "secret-word")
    for settings in (ws, nats, redis):
        assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "environment", "named"),
    [
        ("kafka", {}, "DRY_WORK_FEED"),
        ("ws", {"STREAM_PROXY_WS_URL": "http://x"}, "STREAM_PROXY_WS_URL"),
        ("grpc", {"STREAM_PROXY_ENDPOINT": "localhost:50052"}, "STREAM_PROXY_ENDPOINT"),
        ("nats", {"NATS_USER": "u"}, "NATS_PASSWORD"),
        ("redis", {"REDIS_PORT": "x"}, "REDIS_PORT"),
    ],
)
def test_a_mistake_names_its_variable(name: str, environment: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read_feed_settings(environment, name)


def test_an_option_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "symbols.txt").write_text("AAPL\n")
    listed = {"symbols": str(tmp_path / "symbols.txt")}
    options = {"params": (), "local": True, "data": ()}
    toml = {"feed": "grpc", **listed}
    environment = {"DRY_WORK_FEED": "nats"}

    def chosen(options: dict[str, object], environment: dict[str, str], toml: dict[str, object]) -> str:
        return str(build_settings(options, toml, environment).feed.name)

    assert chosen(options, {}, dict(listed)) == "pubsub"
    assert chosen(options, {}, toml) == "grpc"
    assert chosen(options, environment, toml) == "nats"
    assert chosen({**options, "feed": "redis"}, environment, toml) == "redis"


def test_a_project_is_needed_for_pubsub_alone(tmp_path: Path) -> None:
    (tmp_path / "symbols.txt").write_text("AAPL\n")
    options = {"params": (), "data": ()}
    toml = {"symbols": str(tmp_path / "symbols.txt")}
    with pytest.raises(ConfigError, match="GOOGLE_CLOUD_PROJECT"):
        build_settings(options, toml, KEYS)
    settings = build_settings({**options, "feed": "ws"}, toml, {**KEYS, "HUB_TOKEN": "t"})
    assert (settings.feed.name, settings.feed.address, settings.feed.token) == ("ws", "ws://127.0.0.1:8099", "t")
