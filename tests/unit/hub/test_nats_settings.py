"""Settings of the NATS interface."""

from __future__ import annotations

from typing import Any

import pytest

from dry_work.errors import ConfigError
from dry_work.hub.sinks.nats_settings import NatsSettings, read_nats_settings
from dry_work.hub.variables import parse_duration


def test_without_variables_everything_has_its_default() -> None:
    assert read_nats_settings({}) == NatsSettings()
    assert read_nats_settings({"PREFIX": " ", "NATS_URL": ""}) == NatsSettings()


VARIABLES: list[tuple[str, str, str, Any]] = [
    ("PREFIX", "team.a", "prefix", "team.a"),
    ("ACTION_STREAM", "a-1", "action_stream", "a-1"),
    ("DATA_STREAM", "d-1", "data_stream", "d-1"),
    ("ORDER_CONSUMER", "o-1", "order_consumer", "o-1"),
    ("CANCEL_CONSUMER", "c-1", "cancel_consumer", "c-1"),
    ("NATS_KV_BUCKET", "b-1", "bucket", "b-1"),
    ("ENABLE_ORDERS", "T", "takes_orders", True),
    ("ENABLE_CANCELER", "1", "takes_cancels", True),
    ("ENABLE_TRADE_UPDATER", "true", "tells_updates", True),
    ("ENABLE_STOCK_STREAM", "TRUE", "stocks.is_enabled", True),
    ("ENABLE_NEWS_STREAM", "true", "news.is_enabled", True),
    ("ALPACA_URL", "https://api.alpaca.markets", "environment", "live"),
    ("ALPACA_RETRY_LIMIT", "5", "retry_limit", 5),
    ("ALPACA_RETRY_LIMIT", "0", "retry_limit", 3),
    ("ALPACA_RETRY_DELAY", "250ms", "retry_delay_s", 0.25),
    ("ALPACA_RETRY_DELAY", "0", "retry_delay_s", 1.0),
    ("HTTP_CLIENT_TIMEOUT", "20s", "http_timeout_s", 20.0),
    ("PROCESSING_TIMEOUT", "1m30s", "processing_timeout_s", 90.0),
    ("SHUTDOWN_TIMEOUT", "0s", "shutdown_timeout_s", 0.0),
    ("NATS_URL", "one:4222, tls://two:4223", "servers", ("nats://one:4222", "tls://two:4223")),
    ("NATS_USE_COMPRESSION", "t", "use_compression", True),
    ("STOCK_STREAM_FEED_TYPE", "IEX", "stocks.feed", "iex"),
    ("STOCK_STREAM_FEED", "otc", "stocks.feed", "otc"),
    ("STOCK_STREAM_SYMBOLS", "spy, brk.b,BTC/USD", "stocks.symbols", ("SPY", "BRK.B", "BTC/USD")),
    ("STOCK_STREAM_BASE_URL", "ws://localhost:1", "stocks.base_url", "ws://localhost:1"),
    ("STOCK_STREAM_PROCESSORS", "4", "stocks.processors", 4),
    ("STOCK_STREAM_BUFFER_SIZE", "10", "stocks.buffer_size", 10),
    ("STOCK_STREAM_BUFFER", "11", "stocks.buffer_size", 11),
    ("STOCK_STREAM_RECONNECT_LIMIT", "20", "stocks.reconnect_limit", 20),
    ("STOCK_STREAM_RECONNECT_DELAY", "150ms", "stocks.reconnect_delay_s", 0.15),
    ("NEWS_STREAM_SYMBOLS", "*", "news.symbols", ("*",)),
    ("NEWS_STREAM_PROCESSORS", "2", "news.processors", 2),
    ("NEWS_STREAM_BUFFER_SIZE", "12", "news.buffer_size", 12),
    ("ENABLE_GRPC", "true", "api.is_enabled", True),
    ("GRPC_PORT", "9201", "api.port", 9201),
    ("GRPC_MAX_CONN_AGE", "7m", "api.max_connection_age_s", 420.0),
    ("GRPC_MAX_CONN_IDLE", "1m", "api.max_connection_idle_s", 60.0),
    ("GRPC_PING_EVERY", "3s", "api.ping_every_s", 3.0),
    ("GRPC_PING_TIMEOUT", "4s", "api.ping_timeout_s", 4.0),
    ("ENABLE_GRPC_PROXY", "true", "api.is_proxy_enabled", True),
    ("GRPC_PROXY_PORT", "8081", "api.proxy_port", 8081),
    ("GRPC_PROXY_MAX_HEADER_BYTES", "4096", "api.proxy_max_header_bytes", 4096),
    ("GRPC_PROXY_SERVER_TIMEOUT", "1s", "api.proxy_server_timeout_s", 1.0),
    ("GRPC_PROXY_READ_HEADER_TIMEOUT", "2s", "api.proxy_read_header_timeout_s", 2.0),
    ("GRPC_PROXY_READ_TIMEOUT", "3s", "api.proxy_read_timeout_s", 3.0),
    ("GRPC_PROXY_WRITE_TIMEOUT", "4s", "api.proxy_write_timeout_s", 4.0),
]


@pytest.mark.parametrize(("name", "value", "setting", "expected"), VARIABLES)
def test_a_variable_has_its_effect(name: str, value: str, setting: str, expected: Any) -> None:
    found: Any = read_nats_settings({name: value})
    for part in setting.split("."):
        found = getattr(found, part)
    assert found == expected


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"ENABLE_ORDERS": "yes"}, "ENABLE_ORDERS='yes': expected one of 1, t, true, 0, f, false"),
        ({"PROCESSING_TIMEOUT": "3"}, "PROCESSING_TIMEOUT='3': expected a duration with a unit"),
        ({"PROCESSING_TIMEOUT": "0s"}, "expected at least"),
        ({"PROCESSING_TIMEOUT": "9999h"}, "at most 168h"),
        ({"NATS_USER": "u"}, "NATS_PASSWORD is not set"),
        ({"NATS_PASSWORD": "p"}, "NATS_USER is not set"),
        ({"NATS_URL": "http://x:1"}, "NATS_URL='http://x:1'"),
        ({"NATS_URL": "nats://u:p@x:1"}, "credentials do not belong there"),
        ({"NATS_URL": "ws://a:1,b:2"}, "cannot be mixed"),
        ({"PREFIX": "a b"}, "PREFIX='a b'"),
        ({"ACTION_STREAM": "a.b"}, "ACTION_STREAM='a.b'"),
        ({"ACTION_STREAM": "x", "DATA_STREAM": "x"}, "are both 'x'"),
        ({"STOCK_STREAM_FEED_TYPE": "opra"}, "expected one of sip, iex, otc, delayed_sip"),
        ({"STOCK_STREAM_FEED_TYPE": "sip", "STOCK_STREAM_FEED": "iex"}, "both set and differ"),
        ({"STOCK_STREAM_SYMBOLS": "SPY,a b"}, "STOCK_STREAM_SYMBOLS: 'A B' is not a symbol"),
        ({"STOCK_STREAM_SYMBOLS": "AAPL240315C00172500"}, "is an option"),
        ({"STOCK_STREAM_PROCESSORS": "0"}, "from 1 to 1000"),
        ({"GRPC_PORT": "70000"}, "GRPC_PORT='70000': expected a whole number from 0 to 65535"),
        ({"ALPACA_RETRY_LIMIT": "-1"}, "ALPACA_RETRY_LIMIT='-1'"),
        ({"ALPACA_URL": "ftp://x"}, "ALPACA_URL"),
    ],
)
def test_what_cannot_be_used_is_named_with_what_is_allowed(environment: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_nats_settings(environment)
    assert text in str(caught.value)


def test_durations_add_up() -> None:
    assert parse_duration("1h2m3s4ms", name="X") == pytest.approx(3723.004)
