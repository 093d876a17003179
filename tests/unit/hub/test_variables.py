"""Every documented variable of the hub: read, with an effect, in the reference page, and set by the chart alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dry_work.errors import ConfigError
from dry_work.hub.assembly import build_hub, describe
from dry_work.hub.observation_settings import ObservationSettings, read_observation_settings
from dry_work.hub.service import HubService
from dry_work.hub.settings import SINKS, HubSettings, build_settings
from dry_work.hub.sinks.redis_settings import RedisSettings, read_redis_settings

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "reference" / "hub-settings.md"
HELPERS = ROOT / "k8s" / "chart" / "dry-work-hub" / "templates"

BASE = {
    "ALPACA_API_KEY": "key-id-value",
    "ALPACA_API_SECRET": "secret-value",
    "GOOGLE_CLOUD_PROJECT": "my-project",
    "HUB_SYMBOLS": "SPY,BTC/USD",
    "HUB_SINKS": ",".join(SINKS),
    "ENABLE_ORDERS": "true",
    "ENABLE_CANCELER": "true",
    "ENABLE_TRADE_UPDATER": "true",
    "ENABLE_STOCK_STREAM": "true",
    "ENABLE_NEWS_STREAM": "true",
    "ENABLE_GRPC": "true",
    "ENABLE_GRPC_PROXY": "true",
}


class Built:
    """A hub as an environment makes it, not started."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.settings: HubSettings = build_settings(environment)
        self.observation: ObservationSettings = read_observation_settings(environment)
        self.redis: RedisSettings = read_redis_settings(environment)
        self.hub: HubService = build_hub(self.settings, environment)

    def sink(self, name: str) -> Any:
        return next(sink for sink in self.hub._sinks if sink.name == name)

    @property
    def pubsub(self) -> Any:
        return self.hub._topics

    @property
    def nats(self) -> Any:
        return self.sink("nats").settings

    @property
    def api(self) -> Any:
        return self.sink("nats").api._settings

    @property
    def grpc(self) -> Any:
        return self.sink("grpc").settings

    def upstream(self, feed: str) -> Any:
        return self.hub._connections[feed]

    def account(self, environment: str = "paper") -> Any:
        return self.hub._accounts[environment]

    @property
    def topics(self) -> list[str]:
        return [topic.topic for topic in self.hub.status().topics]


@pytest.fixture
def build(clean_environment: Path) -> Iterator[Callable[..., Built]]:
    made: list[Built] = []

    def make(**changes: str) -> Built:
        made.append(Built({**BASE, **changes}))
        return made[-1]

    yield make
    for one in made:
        one.hub.stop(0.0)


def timing(feed: str, name: str) -> Callable[[Built], Any]:
    return lambda built: getattr(built.upstream(feed)._timing, name)


def order_timing(name: str) -> Callable[[Built], Any]:
    return lambda built: getattr(built.hub._order_connections["orders.paper"]._timing, name)


def nats(name: str) -> Callable[[Built], Any]:
    return lambda built: getattr(built.nats, name)


def api(name: str) -> Callable[[Built], Any]:
    return lambda built: getattr(built.api, name)


def grpc(name: str) -> Callable[[Built], Any]:
    return lambda built: getattr(built.grpc, name)


def seen(name: str) -> Callable[[Built], Any]:
    return lambda built: getattr(built.observation, name)


def traced(name: str) -> Callable[[Built], Any]:
    return lambda built: getattr(built.observation.tracing, name)


def logged(name: str) -> Callable[[Built], Any]:
    return lambda built: getattr(built.observation.logs, name)


def redis(name: str) -> Callable[[Built], Any]:
    return lambda built: getattr(built.redis, name)


LIVE = "https://api.alpaca.markets"

# Variables, a value other than the default (several at once where they need each other), what it changes, and to what.
EFFECTS: list[tuple[dict[str, str], Callable[[Built], Any], Any]] = [
    # Pub/Sub
    ({"GOOGLE_CLOUD_PROJECT": "other"}, lambda b: b.pubsub._topics["market-data"]._path.split("/")[1], "other"),
    ({"MARKET_DATA_TOPIC": "stocks"}, lambda b: "stocks" in b.topics, True),
    ({"PUBSUB_TOPIC_NAME": "stocks"}, lambda b: "stocks" in b.topics, True),
    ({"CRYPTO_DATA_TOPIC": "coins"}, lambda b: "coins" in b.topics, True),
    ({"NEWS_TOPIC_NAME": "articles"}, lambda b: "articles" in b.topics, True),
    ({"ORDER_UPDATES_TOPIC": "fills"}, lambda b: "fills" in b.topics, True),
    # Beside the job that collects garbage.
    ({"NEWS_POLL_INTERVAL": "0"}, lambda b: len(b.hub._jobs), 1),
    ({"NEWS_POLL_INTERVAL": "15"}, lambda b: (b.settings.news_poll_s, len(b.hub._jobs)), (15.0, 2)),
    ({"PUBSUB_EMULATOR_HOST": "localhost:8085"}, lambda b: b.pubsub._endpoint, "localhost:8085"),
    ({"HUB_BATCH": "T"}, lambda b: b.pubsub._topics["market-data"]._batch, True),
    # The hub
    ({"HUB_SINKS": "websocket"}, lambda b: [sink.name for sink in b.hub._sinks], ["websocket"]),
    (
        {"HUB_SYMBOLS": "IBM"},
        lambda b: b.hub._interest.held("configured"),
        (("stocks", "bars", "IBM"), ("stocks", "statuses", "IBM"), ("stocks", "lulds", "IBM")),
    ),
    (
        {"HUB_SYMBOLS": "IBM,BTC/USD", "HUB_STATUSES": "false"},
        lambda b: b.hub._interest.held("configured"),
        (("stocks", "bars", "IBM"), ("crypto", "bars", "BTC/USD")),
    ),
    ({"HUB_BIND_HOST": "0.0.0.0", "HUB_TOKEN": "t"}, lambda b: b.sink("websocket").access.host, "0.0.0.0"),
    ({"HUB_BIND_HOST": "0.0.0.0", "HUB_TOKEN": "t"}, lambda b: b.sink("websocket").access.admits("t"), True),
    ({"HUB_BIND_HOST": "0.0.0.0", "HUB_TOKEN": "t"}, lambda b: b.sink("websocket").access.admits("u"), False),
    ({"HUB_HEALTH_HOST": "0.0.0.0"}, seen("host"), "0.0.0.0"),
    ({"HUB_HEALTH_TLS": "true"}, seen("has_tls"), True),
    ({"HUB_STATE_DIR": "kept"}, lambda b: b.sink("nats")._state_dir, Path("kept")),
    ({"SHUTDOWN_TIMEOUT": "1m30s"}, lambda b: b.settings.shutdown_timeout_s, 90.0),
    ({"PROXY_PORT": "8111"}, lambda b: b.sink("websocket").port, 8111),
    # Alpaca
    ({"ALPACA_FEED": "SIP"}, lambda b: b.upstream("stocks")._url, "wss://stream.data.alpaca.markets/v2/sip"),
    ({"ALPACA_OPTION_FEED": "OPRA"}, lambda b: b.upstream("options").status().feed, "opra"),
    (
        {"ALPACA_OPTION_FEED": "indicative", "ALPACA_URL": LIVE},
        lambda b: b.upstream("options").status().feed,
        "indicative",
    ),
    ({"ALPACA_STREAM_URL": "ws://h:1"}, lambda b: b.upstream("crypto")._url, "ws://h:1/v1beta3/crypto/us"),
    ({"ALPACA_DATA_URL": "http://h:2"}, lambda b: b.settings.data_url, "http://h:2"),
    ({"ALPACA_URL": "http://h:3"}, lambda b: b.account().access.url, "http://h:3"),
    ({"ALPACA_URL": LIVE}, lambda b: (list(b.hub._accounts), b.nats.environment), (["live"], "live")),
    ({"ALPACA_URL": LIVE}, lambda b: b.upstream("options").status().feed, "opra"),
    (
        {"ALPACA_API_KEY": "other"},
        lambda b: (b.account().access.api_key, b.upstream("stocks")._key),
        ("other", "other"),
    ),
    ({"ALPACA_API_SECRET": "other"}, lambda b: b.account().access.secret_key, "other"),
    ({"ALPACA_API_SECRET": "", "ALPACA_SECRET_KEY": "x"}, lambda b: b.account().access.secret_key, "x"),
    (
        {"ALPACA_OAUTH": "bearer-value"},
        lambda b: b.account().access.stream_credentials,
        {"oauth_token": "bearer-value"},
    ),
    ({"ALPACA_OAUTH": "bearer-value"}, lambda b: b.account().access.headers, {"Authorization": "Bearer bearer-value"}),
    ({"ALPACA_RETRY_LIMIT": "7"}, nats("retry_limit"), 7),
    ({"ALPACA_RETRY_LIMIT": "0"}, nats("retry_limit"), 3),
    ({"ALPACA_RETRY_DELAY": "250ms"}, nats("retry_delay_s"), 0.25),
    ({"ALPACA_RETRY_DELAY": "0"}, nats("retry_delay_s"), 1.0),
    ({"HTTP_CLIENT_TIMEOUT": "4s"}, lambda b: b.account().access.timeout_s, 4.0),
    ({"PROCESSING_TIMEOUT": "9s"}, nats("processing_timeout_s"), 9.0),
    (
        {"ALPACA_LIVE_API_KEY": "l", "ALPACA_LIVE_SECRET_KEY": "m"},
        lambda b: b.account("live").access.stream_credentials,
        {"key_id": "l", "secret_key": "m"},
    ),
    (
        {"ALPACA_API_KEY_ID": "l", "ALPACA_API_SECRET_KEY": "m"},
        lambda b: b.account("live").access.stream_credentials,
        {"key_id": "l", "secret_key": "m"},
    ),
    (
        {
            "ALPACA_API_KEY": "",
            "ALPACA_API_SECRET": "",
            "PAPER_ALPACA_API_KEY_ID": "l",
            "PAPER_ALPACA_API_SECRET_KEY": "m",
        },
        lambda b: b.account().access.stream_credentials,
        {"key_id": "l", "secret_key": "m"},
    ),
    (
        {"ALPACA_KEY": "l", "ALPACA_SECRET": "m", "CREAM_ENV": "live"},
        lambda b: (b.account("live").access.api_key, b.grpc.environment),
        ("l", "live"),
    ),
    # NATS
    ({"PREFIX": "desk"}, lambda b: b.nats.subjects.prefix, "desk"),
    ({"ACTION_STREAM": "a"}, nats("action_stream"), "a"),
    ({"DATA_STREAM": "a"}, nats("data_stream"), "a"),
    ({"ORDER_CONSUMER": "a"}, nats("order_consumer"), "a"),
    ({"CANCEL_CONSUMER": "a"}, nats("cancel_consumer"), "a"),
    ({"NATS_KV_BUCKET": "a"}, nats("bucket"), "a"),
    ({"ENABLE_ORDERS": "f"}, lambda b: "orders" in b.sink("nats")._parts, False),
    ({"ENABLE_CANCELER": "0"}, lambda b: "cancels" in b.sink("nats")._parts, False),
    ({"ENABLE_TRADE_UPDATER": "False"}, lambda b: "updates" in b.sink("nats")._parts, False),
    ({"ENABLE_STOCK_STREAM": "F"}, lambda b: b.sink("nats").bars.subscriptions.is_enabled, False),
    ({"ENABLE_NEWS_STREAM": "0"}, lambda b: b.sink("nats").news.subscriptions.is_enabled, False),
    ({"ENABLE_NEWS_STREAM": "0"}, lambda b: "news-data" in b.topics, False),
    ({"ENABLE_TRADE_UPDATER": "0"}, lambda b: "order-updates" in b.topics, False),
    ({"NATS_URL": "tls://n:1"}, nats("servers"), ("tls://n:1",)),
    ({"NATS_USER": "u", "NATS_PASSWORD": "p"}, lambda b: (b.nats.user, b.nats.password), ("u", "p")),
    ({"NATS_USE_COMPRESSION": "1"}, nats("use_compression"), True),
    # The streams of stocks and news
    ({"STOCK_STREAM_FEED_TYPE": "sip"}, lambda b: b.upstream("stocks")._url.rpartition("/")[2], "sip"),
    ({"STOCK_STREAM_FEED": "otc"}, lambda b: b.upstream("stocks")._url.rpartition("/")[2], "otc"),
    ({"STOCK_STREAM_SYMBOLS": "spy"}, lambda b: b.nats.stocks.symbols, ("SPY",)),
    ({"STOCK_STREAM_BASE_URL": "ws://h:4/v2"}, lambda b: b.upstream("stocks")._url, "ws://h:4/v2/iex"),
    ({"STOCK_STREAM_PROCESSORS": "3"}, lambda b: b.sink("nats").bars._processors, 3),
    ({"STOCK_STREAM_BUFFER_SIZE": "9"}, lambda b: b.sink("nats").bars.queue.capacity, 9),
    ({"STOCK_STREAM_BUFFER": "9"}, lambda b: b.sink("nats").bars.queue.capacity, 9),
    ({"STOCK_STREAM_RECONNECT_LIMIT": "5"}, timing("stocks", "max_attempts"), 5),
    ({"STOCK_STREAM_RECONNECT_LIMIT": "5"}, timing("crypto", "max_attempts"), 0),
    ({"STOCK_STREAM_RECONNECT_DELAY": "150ms"}, timing("stocks", "first_wait_s"), 0.15),
    ({"STOCK_STREAM_RECONNECT_DELAY": "150ms"}, timing("news", "first_wait_s"), 0.5),
    ({"NEWS_STREAM_SYMBOLS": "spy,*"}, lambda b: b.nats.news.symbols, ("SPY", "*")),
    ({"NEWS_STREAM_BASE_URL": "ws://h:5"}, lambda b: b.upstream("news")._url, "ws://h:5/v1beta1/news"),
    ({"NEWS_STREAM_PROCESSORS": "3"}, lambda b: b.sink("nats").news._processors, 3),
    ({"NEWS_STREAM_BUFFER_SIZE": "9"}, lambda b: b.sink("nats").news.queue.capacity, 9),
    ({"NEWS_STREAM_BUFFER": "9"}, lambda b: b.sink("nats").news.queue.capacity, 9),
    ({"NEWS_STREAM_RECONNECT_LIMIT": "6"}, timing("news", "max_attempts"), 6),
    ({"NEWS_STREAM_RECONNECT_DELAY": "160ms"}, timing("news", "first_wait_s"), 0.16),
    # The subscription API
    ({"ENABLE_GRPC": "0"}, api("is_enabled"), False),
    ({"GRPC_PORT": "9201"}, lambda b: b.sink("nats").api.port, 9201),
    ({"GRPC_MAX_CONN_AGE": "7m"}, api("max_connection_age_s"), 420.0),
    ({"GRPC_MAX_CONN_IDLE": "8m"}, api("max_connection_idle_s"), 480.0),
    ({"GRPC_PING_EVERY": "3s"}, api("ping_every_s"), 3.0),
    ({"GRPC_PING_TIMEOUT": "4s"}, api("ping_timeout_s"), 4.0),
    ({"ENABLE_GRPC_PROXY": "false"}, api("is_proxy_enabled"), False),
    ({"GRPC_PROXY_PORT": "8081"}, lambda b: b.sink("nats").api.proxy_port, 8081),
    ({"GRPC_PROXY_MAX_HEADER_BYTES": "4096"}, api("proxy_max_header_bytes"), 4096),
    ({"GRPC_PROXY_SERVER_TIMEOUT": "5s"}, api("proxy_server_timeout_s"), 5.0),
    ({"GRPC_PROXY_READ_HEADER_TIMEOUT": "6s"}, api("proxy_read_header_timeout_s"), 6.0),
    ({"GRPC_PROXY_READ_TIMEOUT": "7s"}, api("proxy_read_timeout_s"), 7.0),
    ({"GRPC_PROXY_WRITE_TIMEOUT": "8s"}, api("proxy_write_timeout_s"), 8.0),
    # gRPC, and every upstream
    ({"STREAM_PROXY_GRPC_PORT": "50053"}, lambda b: b.sink("grpc").port, 50053),
    ({"STREAM_PROXY_HEARTBEAT_INTERVAL_SECS": "5"}, timing("options", "ping_interval_s"), 5.0),
    ({"STREAM_PROXY_HEARTBEAT_TIMEOUT_SECS": "61"}, order_timing("silence_timeout_s"), 61.0),
    ({"ORDER_CHECK_INTERVAL": "0"}, order_timing("order_check_s"), 0.0),
    ({"ORDER_CHECK_INTERVAL": "7.5"}, order_timing("order_check_s"), 7.5),
    ({"STREAM_PROXY_RECONNECT_DELAY_INITIAL_MS": "250"}, timing("stocks", "first_wait_s"), 0.25),
    ({"STREAM_PROXY_RECONNECT_DELAY_MAX_SECS": "31"}, order_timing("longest_wait_s"), 31.0),
    ({"STREAM_PROXY_RECONNECT_DELAY_MULTIPLIER": "3"}, timing("news", "wait_factor"), 3.0),
    ({"STREAM_PROXY_MAX_RECONNECT_ATTEMPTS": "4"}, timing("crypto", "max_attempts"), 4),
    ({"STREAM_PROXY_STOCK_QUOTES_CAPACITY": "90000"}, lambda b: b.hub.bus._history["stocks"].maxlen, 101_000),
    ({"STREAM_PROXY_STOCK_TRADES_CAPACITY": "11"}, grpc("stock_trades_capacity"), 11),
    ({"STREAM_PROXY_STOCK_BARS_CAPACITY": "12"}, grpc("stock_bars_capacity"), 12),
    ({"STREAM_PROXY_OPTIONS_QUOTES_CAPACITY": "99000"}, lambda b: b.hub.bus._history["options"].maxlen, 109_000),
    ({"STREAM_PROXY_OPTIONS_TRADES_CAPACITY": "13"}, grpc("option_trades_capacity"), 13),
    ({"STREAM_PROXY_ORDER_UPDATES_CAPACITY": "20000"}, lambda b: b.hub.bus._history["orders.paper"].maxlen, 20_000),
    # Redis
    ({"REDIS_HOST": "r"}, redis("host"), "r"),
    ({"REDIS_PORT": "6380"}, redis("port"), 6380),
    ({"REDIS_DB": "2"}, redis("db"), 2),
    ({"REDIS_USERNAME": "u", "REDIS_PASSWORD": "p"}, lambda b: (b.redis.username, b.redis.password), ("u", "p")),
    ({"REDIS_TLS": "1"}, redis("use_tls"), True),
    ({"REDIS_LEASE_SECONDS": "9"}, redis("lease_s"), 9.0),
    ({"REDIS_STREAM_LENGTH": "9"}, redis("stream_length"), 9),
    ({"REDIS_LEGACY_CHANNELS": "true"}, redis("has_legacy"), True),
    # What the hub tells of itself
    ({"STREAM_PROXY_HEALTH_PORT": "8083"}, seen("health_port"), 8083),
    ({"STREAM_PROXY_METRICS_PORT": "9091"}, seen("metrics_port"), 9091),
    ({"LOG_LEVEL": "DEBUG"}, logged("level"), "debug"),
    ({"RUST_LOG": "warn,hyper=debug"}, logged("level"), "warn"),
    ({"LOG_FMT": "logfmt"}, logged("form"), "logfmt"),
    ({"LOG_SRC": "f"}, logged("shows_source"), False),
    ({"LOG_EXPORTER": "stdout"}, logged("exporter"), "stdout"),
    ({"DISABLE_METRICS": "false"}, seen("has_more_metrics"), True),
    ({"METRICS_PORT": "8089"}, seen("more_metrics_port"), 8089),
    ({"METRICS_WRITE_TIMEOUT": "11s"}, seen("metrics_write_timeout_s"), 11.0),
    ({"METRICS_ERR_POLICY": "panic"}, seen("metrics_error_policy"), "panic"),
    ({"METRICS_MAX_REQ_IN_FLIGHT": "5"}, seen("metrics_most_in_flight"), 5),
    ({"DISABLE_HEALTH": "t"}, seen("has_grpc_health"), False),
    ({"HEALTH_PORT": "7655"}, seen("grpc_health_port"), 7655),
    ({"HEALTH_PING_INTERVAL": "3s"}, seen("check_interval_s"), 3.0),
    ({"DISABLE_TRACING": "true"}, seen("tracing"), None),
    ({"OTEL_ENABLED": "false"}, seen("tracing"), None),
    ({"TRACE_EXPORTER": "stdout"}, traced("exporter"), "stdout"),
    ({"TRACE_EXPORTER_URL": "http://c:4318"}, traced("url"), "http://c:4318"),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, traced("url"), "http://c:4317"),
    ({"TRACE_EXPORTER_TIMEOUT": "6s"}, traced("timeout_s"), 6.0),
    ({"OTEL_SERVICE_NAME": "desk"}, traced("service_name"), "desk"),
]

# Variables whose effect is shown elsewhere: with real listeners, or as the refusal of a wrong value.
ELSEWHERE = {
    "HUB_TLS_CERT", "HUB_TLS_KEY",  # tests/integration/test_hub_service.py
    "NEWS_STREAM_FEED_TYPE", "NEWS_STREAM_FEED",  # there is one feed of news: checked, and without an effect
}  # fmt: skip

VARIABLES = {name for change, _, _ in EFFECTS for name in change} | ELSEWHERE


@pytest.mark.parametrize(
    ("change", "found", "expected"), EFFECTS, ids=[f"{i}-{'-'.join(row[0])}" for i, row in enumerate(EFFECTS)]
)
def test_each_variable_has_an_effect(
    build: Callable[..., Built], change: dict[str, str], found: Callable[[Built], Any], expected: Any
) -> None:
    assert found(build(**change)) == expected


class Reads(dict[str, str]):
    """An environment that keeps which names were asked for."""

    def __init__(self, values: dict[str, str]) -> None:
        super().__init__(values)
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        return super().__getitem__(name)


@pytest.fixture
def read_names(clean_environment: Path) -> set[str]:
    environment = Reads(BASE)
    settings = build_settings(environment)
    describe(settings, environment)
    build_hub(settings, environment, observation=read_observation_settings(environment)).stop(0.0)
    return environment.names


def test_every_documented_variable_is_read(read_names: set[str]) -> None:
    assert VARIABLES - read_names == set()


def test_no_variable_is_read_that_is_not_documented(read_names: set[str]) -> None:
    others = {"ALPACA_ACCOUNT_ID"}  # of an account of the Broker API
    assert read_names - VARIABLES - others == set()


def test_the_reference_page_has_every_variable_and_no_other() -> None:
    listed: set[str] = set()
    for row in re.findall(r"^\| (`[A-Z].*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        listed.update(re.findall(r"`([A-Z][A-Z0-9_]+)`", row))
    assert VARIABLES - listed == set()
    assert listed - VARIABLES - {"ALPACA_ACCOUNT_ID"} == set()


def test_every_variable_that_the_chart_sets_is_read(read_names: set[str]) -> None:
    text = (HELPERS / "_helpers.tpl").read_text(encoding="utf-8")
    text = text[text.index('define "dry-work-hub.variables"') :]
    names = set(re.findall(r"^([A-Z][A-Z0-9_]+):", text, re.MULTILINE))
    for stream in ("STOCK_STREAM", "NEWS_STREAM"):  # their template is shared
        shared = (HELPERS / "_helpers.tpl").read_text(encoding="utf-8")
        names |= {stream + end for end in re.findall(r"^\{\{ \.prefix \}\}(_[A-Z_]+):", shared, re.MULTILINE)}
    deployment = (HELPERS / "deployment.yaml").read_text(encoding="utf-8")
    names |= set(re.findall(r"- name: ([A-Z][A-Z0-9_]+)", deployment))
    assert len(names) > 90
    assert names - read_names == set()


@pytest.mark.parametrize("name", sorted(VARIABLES - BASE.keys()))
def test_empty_counts_as_unset(build: Callable[..., Built], name: str) -> None:
    assert repr(build(**{name: ""}).settings) == repr(build().settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NEWS_POLL_INTERVAL", "often"),
        ("ORDER_CHECK_INTERVAL", "-1"),
        ("SHUTDOWN_TIMEOUT", "30"),
        ("HTTP_CLIENT_TIMEOUT", "0s"),
        ("HUB_BATCH", "maybe"),
        ("HUB_STATUSES", "on"),
        ("ALPACA_URL", "ftp://x"),
        ("ALPACA_DATA_URL", "x"),
        ("STOCK_STREAM_FEED_TYPE", "gold"),
        ("NEWS_STREAM_FEED_TYPE", "gold"),
        ("STREAM_PROXY_MAX_RECONNECT_ATTEMPTS", "-1"),
        ("NEWS_TOPIC_NAME", "a/b"),
        ("ORDER_UPDATES_TOPIC", "goog-x"),
        ("ENABLE_ORDERS", "on"),
        ("CREAM_ENV", "TEST"),
    ],
)
def test_a_wrong_value_is_a_start_error_with_its_name(build: Callable[..., Built], name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        build(**{name: value})
    assert value in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"CREAM_ENV": "PAPER", "ALPACA_URL": LIVE}, "CREAM_ENV and ALPACA_URL are both set and differ"),
        ({"CREAM_ENV": "LIVE", "ALPACA_URL": "https://paper-api.alpaca.markets"}, "CREAM_ENV and ALPACA_URL"),
        ({"ALPACA_FEED": "sip", "STOCK_STREAM_FEED_TYPE": "iex"}, "ALPACA_FEED and STOCK_STREAM_FEED_TYPE are both"),
        ({"STOCK_STREAM_FEED": "sip", "STOCK_STREAM_FEED_TYPE": "iex"}, "STOCK_STREAM_FEED_TYPE and STOCK_STREAM_FEED"),
        (
            {"STOCK_STREAM_BUFFER": "8", "STOCK_STREAM_BUFFER_SIZE": "9"},
            "STOCK_STREAM_BUFFER_SIZE and STOCK_STREAM_BUF",
        ),
        ({"NEWS_TOPIC_NAME": "market-data"}, "MARKET_DATA_TOPIC and NEWS_TOPIC_NAME are both 'market-data'"),
        ({"ORDER_UPDATES_TOPIC": "news-data"}, "NEWS_TOPIC_NAME and ORDER_UPDATES_TOPIC are both 'news-data'"),
        ({"HUB_TLS_CERT": "cert.pem"}, "HUB_TLS_CERT is set, but HUB_TLS_KEY is not"),
        ({"HUB_TLS_KEY": "key.pem"}, "HUB_TLS_KEY is set, but HUB_TLS_CERT is not"),
        ({"HUB_TLS_CERT": "no.pem", "HUB_TLS_KEY": "no.pem"}, "HUB_TLS_CERT='no.pem' cannot be read: No such file"),
        ({"ALPACA_LIVE_API_KEY": "half"}, "ALPACA_LIVE_API_KEY is set, but ALPACA_LIVE_SECRET_KEY is not"),
        ({"OTEL_ENABLED": "true", "DISABLE_TRACING": "true"}, "OTEL_ENABLED='true' and DISABLE_TRACING='true'"),
    ],
)
def test_a_contradiction_is_a_start_error_with_both_names(
    build: Callable[..., Built], change: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        build(**change)


def test_an_agreement_of_two_names_is_none(build: Callable[..., Built]) -> None:
    built = build(ALPACA_FEED="sip", STOCK_STREAM_FEED_TYPE="SIP", CREAM_ENV="live", ALPACA_URL=LIVE)
    assert built.upstream("stocks")._url.endswith("/v2/sip")
    assert built.settings.environment == "live"


def test_a_token_serves_market_data_only_where_there_is_no_key_pair(build: Callable[..., Built]) -> None:
    both = build(ALPACA_OAUTH="bearer-value")
    assert (both.upstream("stocks")._key, both.account().access.oauth_token) == ("key-id-value", "bearer-value")
    alone = build(ALPACA_OAUTH="bearer-value", ALPACA_API_KEY="", ALPACA_API_SECRET="")
    assert (alone.upstream("stocks")._key, alone.upstream("stocks")._secret) == ("oauth", "bearer-value")
    assert "bearer-value" not in repr(alone.settings)
    assert "bearer-value" not in repr(alone.account().access)


def test_the_streams_of_nats_say_nothing_of_a_hub_without_nats(build: Callable[..., Built]) -> None:
    built = build(HUB_SINKS="websocket", STOCK_STREAM_BASE_URL="ws://h:4", STOCK_STREAM_RECONNECT_LIMIT="5")
    assert built.upstream("stocks")._url == "wss://stream.data.alpaca.markets/v2/iex"
    assert built.upstream("stocks")._timing.max_attempts == 0
