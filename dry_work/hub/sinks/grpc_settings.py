"""Settings of the gRPC interface from the environment. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from dry_work.errors import ConfigError
from dry_work.hub.bus import DATA_HISTORY, ORDER_HISTORY
from dry_work.hub.settings import parse_account_environment
from dry_work.hub.upstreams.connection import UpstreamTiming
from dry_work.hub.variables import read_count, read_number

DEFAULT_PORT = 50052
_PREFIX = "STREAM_PROXY_"
_LARGEST_COUNT = 10_000_000
_DAY_S = 86_400.0


class GrpcSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The gRPC interface. Capacities: events that a client can go back, by kind; of order updates at least so many."""

    port: int = DEFAULT_PORT  # 0: any free one
    environment: str = "paper"  # whose order updates are told: paper or live
    heartbeat_interval_s: float = 30.0
    heartbeat_timeout_s: float = 60.0
    reconnect_first_s: float = 0.5
    reconnect_longest_s: float = 30.0
    reconnect_factor: float = 2.0
    reconnect_attempts: int = 0  # 0: unlimited
    stock_quotes_capacity: int = 10_000
    stock_trades_capacity: int = 10_000
    stock_bars_capacity: int = 1_000
    option_quotes_capacity: int = 50_000
    option_trades_capacity: int = 10_000
    order_updates_capacity: int = 1_000

    @property
    def timing(self) -> UpstreamTiming:
        """Times of the hub's upstream connections."""
        return UpstreamTiming(
            ping_interval_s=self.heartbeat_interval_s,
            silence_timeout_s=self.heartbeat_timeout_s,
            first_wait_s=self.reconnect_first_s,
            longest_wait_s=self.reconnect_longest_s,
            wait_factor=self.reconnect_factor,
            max_attempts=self.reconnect_attempts,
        )

    @property
    def data_history(self) -> int:
        """Events of a feed of market data that the bus has to keep for these capacities."""
        stocks = self.stock_quotes_capacity + self.stock_trades_capacity + self.stock_bars_capacity
        options = self.option_quotes_capacity + self.option_trades_capacity
        return max(DATA_HISTORY, stocks, options)

    @property
    def order_history(self) -> int:
        """The same of order updates."""
        return max(ORDER_HISTORY, self.order_updates_capacity)


def read_grpc_settings(environment: Mapping[str, str]) -> GrpcSettings:
    """Return the settings; an empty variable counts as unset.

    Raises:
        ConfigError: naming the variable, its value and what is allowed.
    """
    base = GrpcSettings()

    def count(name: str, default: int, least: int = 1, most: int = _LARGEST_COUNT) -> int:
        return read_count(environment, _PREFIX + name, default=default, least=least, most=most)

    def number(name: str, default: float, least: float, most: float) -> float:
        return read_number(environment, _PREFIX + name, default=default, least=least, most=most)

    settings = GrpcSettings(
        port=count("GRPC_PORT", base.port, 0, 65_535),
        environment=parse_account_environment(environment),
        heartbeat_interval_s=number("HEARTBEAT_INTERVAL_SECS", base.heartbeat_interval_s, 0.001, _DAY_S),
        heartbeat_timeout_s=number("HEARTBEAT_TIMEOUT_SECS", base.heartbeat_timeout_s, 0.001, _DAY_S),
        reconnect_first_s=number("RECONNECT_DELAY_INITIAL_MS", base.reconnect_first_s * 1e3, 1, _DAY_S * 1e3) / 1e3,
        reconnect_longest_s=number("RECONNECT_DELAY_MAX_SECS", base.reconnect_longest_s, 0.001, _DAY_S),
        reconnect_factor=number("RECONNECT_DELAY_MULTIPLIER", base.reconnect_factor, 1, 100),
        reconnect_attempts=count("MAX_RECONNECT_ATTEMPTS", base.reconnect_attempts, 0),
        stock_quotes_capacity=count("STOCK_QUOTES_CAPACITY", base.stock_quotes_capacity),
        stock_trades_capacity=count("STOCK_TRADES_CAPACITY", base.stock_trades_capacity),
        stock_bars_capacity=count("STOCK_BARS_CAPACITY", base.stock_bars_capacity),
        option_quotes_capacity=count("OPTIONS_QUOTES_CAPACITY", base.option_quotes_capacity),
        option_trades_capacity=count("OPTIONS_TRADES_CAPACITY", base.option_trades_capacity),
        order_updates_capacity=count("ORDER_UPDATES_CAPACITY", base.order_updates_capacity),
    )
    if settings.reconnect_first_s > settings.reconnect_longest_s:
        raise ConfigError(
            f"{_PREFIX}RECONNECT_DELAY_INITIAL_MS ({settings.reconnect_first_s:g} s) is more than "
            f"{_PREFIX}RECONNECT_DELAY_MAX_SECS ({settings.reconnect_longest_s:g} s)"
        )
    if settings.heartbeat_interval_s >= settings.heartbeat_timeout_s:
        raise ConfigError(
            f"{_PREFIX}HEARTBEAT_TIMEOUT_SECS ({settings.heartbeat_timeout_s:g} s) must be more than "
            f"{_PREFIX}HEARTBEAT_INTERVAL_SECS ({settings.heartbeat_interval_s:g} s)"
        )
    return settings
