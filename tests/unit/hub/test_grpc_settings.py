"""Settings of the gRPC interface."""

from __future__ import annotations

import pytest

from dry_work.errors import ConfigError
from dry_work.hub.sinks.grpc_settings import GrpcSettings, read_grpc_settings


def test_without_variables_the_defaults_hold_and_an_empty_one_counts_as_none() -> None:
    assert read_grpc_settings({}) == GrpcSettings() == read_grpc_settings({"STREAM_PROXY_GRPC_PORT": " "})
    timing = GrpcSettings().timing
    assert (timing.ping_interval_s, timing.silence_timeout_s, timing.max_attempts) == (30.0, 60.0, 0)
    assert (timing.first_wait_s, timing.longest_wait_s, timing.wait_factor) == (0.5, 30.0, 2.0)


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("STREAM_PROXY_GRPC_PORT", "7001", "port", 7001),
        ("CREAM_ENV", "live", "environment", "live"),
        ("STREAM_PROXY_HEARTBEAT_INTERVAL_SECS", "5", "heartbeat_interval_s", 5.0),
        ("STREAM_PROXY_HEARTBEAT_TIMEOUT_SECS", "90.5", "heartbeat_timeout_s", 90.5),
        ("STREAM_PROXY_RECONNECT_DELAY_INITIAL_MS", "250", "reconnect_first_s", 0.25),
        ("STREAM_PROXY_RECONNECT_DELAY_MAX_SECS", "60", "reconnect_longest_s", 60.0),
        ("STREAM_PROXY_RECONNECT_DELAY_MULTIPLIER", "1.5", "reconnect_factor", 1.5),
        ("STREAM_PROXY_MAX_RECONNECT_ATTEMPTS", "7", "reconnect_attempts", 7),
        ("STREAM_PROXY_STOCK_QUOTES_CAPACITY", "11", "stock_quotes_capacity", 11),
        ("STREAM_PROXY_STOCK_TRADES_CAPACITY", "12", "stock_trades_capacity", 12),
        ("STREAM_PROXY_STOCK_BARS_CAPACITY", "13", "stock_bars_capacity", 13),
        ("STREAM_PROXY_OPTIONS_QUOTES_CAPACITY", "14", "option_quotes_capacity", 14),
        ("STREAM_PROXY_OPTIONS_TRADES_CAPACITY", "15", "option_trades_capacity", 15),
        ("STREAM_PROXY_ORDER_UPDATES_CAPACITY", "16", "order_updates_capacity", 16),
    ],
)
def test_each_variable_is_read_and_refused_when_it_makes_no_sense(
    name: str, text: str, field: str, value: object
) -> None:
    assert getattr(read_grpc_settings({name: text}), field) == value
    for wrong in ("nonsense", "-1", "1e3", "99999999999"):
        with pytest.raises(ConfigError, match=rf"{name}='{wrong}': expected "):
            read_grpc_settings({name: wrong})


def test_the_times_of_the_upstream_connections_follow_the_variables() -> None:
    timing = read_grpc_settings(
        {
            "STREAM_PROXY_HEARTBEAT_INTERVAL_SECS": "1",
            "STREAM_PROXY_HEARTBEAT_TIMEOUT_SECS": "2",
            "STREAM_PROXY_RECONNECT_DELAY_INITIAL_MS": "100",
            "STREAM_PROXY_RECONNECT_DELAY_MAX_SECS": "3",
            "STREAM_PROXY_RECONNECT_DELAY_MULTIPLIER": "4",
            "STREAM_PROXY_MAX_RECONNECT_ATTEMPTS": "5",
        }
    ).timing
    assert (timing.ping_interval_s, timing.silence_timeout_s, timing.max_attempts) == (1.0, 2.0, 5)
    assert (timing.first_wait_s, timing.longest_wait_s, timing.wait_factor) == (0.1, 3.0, 4.0)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"STREAM_PROXY_RECONNECT_DELAY_INITIAL_MS": "31000"}, "is more than STREAM_PROXY_RECONNECT_DELAY_MAX_SECS"),
        ({"STREAM_PROXY_HEARTBEAT_TIMEOUT_SECS": "30"}, "must be more than STREAM_PROXY_HEARTBEAT_INTERVAL_SECS"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(variables: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_grpc_settings(variables)


def test_the_bus_keeps_what_the_capacities_ask_for() -> None:
    assert (GrpcSettings().data_history, GrpcSettings().order_history) == (60_000, 10_000)
    large = GrpcSettings(order_updates_capacity=20_000, stock_trades_capacity=100_000)
    assert (large.data_history, large.order_history) == (111_000, 20_000)
