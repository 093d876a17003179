"""Settings of the NATS interface and its subscription API, from the environment. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from dry_work.errors import ConfigError
from dry_work.hub.variables import read_count, read_duration, read_flag
from dry_work.market.symbols import ALLOWED, is_option, is_symbol
from dry_work.settings import LIVE_URL, PAPER_URL, parse_url, read_variable
from dry_work.wire.nats_subjects import Subjects

ACTION_STREAM = "nalpaca-action-stream-v0"
DATA_STREAM = "nalpaca-data-stream-v0"
ORDER_CONSUMER = "nalpaca-orders-consumer-v0"
CANCEL_CONSUMER = "nalpaca-cancel-consumer-v0"
TRADE_UPDATE_CONSUMER = "nalpaca-tradeupdater-consumer-v0"
STOCK_CONSUMER = "nalpaca-datastream-stock-consumer-v0"
STOCK_FEEDS = ("sip", "iex", "otc", "delayed_sip")
EVERY = "*"  # in a list of symbols: all

_NAME = re.compile(r"[A-Za-z0-9_-]{1,200}")
_MASK = "***"
_NATS_SCHEMES = ("nats", "tls", "ws", "wss")


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bars or news: which, from where, and how they go out."""

    is_enabled: bool = False
    symbols: tuple[str, ...] = ()  # from the start; `*` is all
    feed: str = "sip"  # of stocks
    base_url: str = ""  # empty: Alpaca's
    processors: int = 1  # events of different symbols that are published at a time
    buffer_size: int = 100_000  # events that may wait
    reconnect_limit: int | None = None  # None: as every upstream of the hub
    reconnect_delay_s: float | None = None


class SubscriptionApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The subscription API over gRPC and REST."""

    is_enabled: bool = False
    port: int = 9200
    max_connection_age_s: float = 360.0
    max_connection_idle_s: float = 300.0
    ping_every_s: float = 2.0
    ping_timeout_s: float = 0.0  # 0: gRPC's own
    is_proxy_enabled: bool = False
    proxy_port: int = 8080
    proxy_max_header_bytes: int = 0  # 0: the HTTP server's own
    proxy_server_timeout_s: float = 120.0
    proxy_read_header_timeout_s: float = 120.0
    proxy_read_timeout_s: float = 120.0
    proxy_write_timeout_s: float = 120.0


class NatsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the NATS interface runs with. Its `repr` shows no password."""

    prefix: str = "nalpaca"
    action_stream: str = ACTION_STREAM
    data_stream: str = DATA_STREAM
    order_consumer: str = ORDER_CONSUMER
    cancel_consumer: str = CANCEL_CONSUMER
    bucket: str = "nalpaca"
    servers: tuple[str, ...] = ("nats://localhost:4222",)
    user: str = ""
    password: str = ""
    use_compression: bool = False  # of WebSocket connections to NATS
    takes_orders: bool = False
    takes_cancels: bool = False
    tells_updates: bool = False
    environment: str = "paper"  # whose orders: paper or live
    alpaca_url: str = PAPER_URL
    http_timeout_s: float = 15.0  # of the account's HTTP client
    retry_limit: int = 3
    retry_delay_s: float = 1.0
    processing_timeout_s: float = 3.0
    shutdown_timeout_s: float = 30.0
    stocks: StreamSettings = StreamSettings()
    news: StreamSettings = StreamSettings()
    api: SubscriptionApiSettings = SubscriptionApiSettings()
    # Not of the environment.
    lease_s: float = 10.0  # a hub that was not heard of for so long is taken to be gone
    check_interval_s: float = 1.0  # of what is there at NATS, and of the lease
    auth_retry_s: float = 30.0  # after the credentials of the account were refused

    @property
    def subjects(self) -> Subjects:
        """The subjects below the prefix."""
        return Subjects(self.prefix)

    @property
    def state_bucket(self) -> str:
        """The hub's own bucket: who acts."""
        return f"{self.bucket}-hub"

    def masked(self) -> dict[str, Any]:
        """Return the settings by name, the password masked."""
        return {**msgspec.structs.asdict(self), "password": _MASK if self.password else ""}

    def __repr__(self) -> str:
        return f"NatsSettings({', '.join(f'{name}={value!r}' for name, value in self.masked().items())})"

    def __rich_repr__(self) -> Any:
        return iter(self.masked().items())


def read_nats_settings(environment: Mapping[str, str]) -> NatsSettings:
    """Return the settings that the environment says; empty counts as unset.

    Raises:
        ConfigError: naming the variable, its value and what is allowed.
    """
    env = _Reader(environment)
    user, password = env.text("NATS_USER"), env.text("NATS_PASSWORD")
    if bool(user) != bool(password):
        missing = "NATS_PASSWORD" if user else "NATS_USER"
        raise ConfigError(f"{missing} is not set: NATS_USER and NATS_PASSWORD are given both or not at all")
    alpaca_url = parse_url(env.text("ALPACA_URL") or PAPER_URL, name="ALPACA_URL")
    names = {
        "action_stream": env.name("ACTION_STREAM", ACTION_STREAM),
        "data_stream": env.name("DATA_STREAM", DATA_STREAM),
        "order_consumer": env.name("ORDER_CONSUMER", ORDER_CONSUMER),
        "cancel_consumer": env.name("CANCEL_CONSUMER", CANCEL_CONSUMER),
    }
    for first, second in (("action_stream", "data_stream"), ("order_consumer", "cancel_consumer")):
        if names[first] == names[second]:
            raise ConfigError(
                f"{first.upper()} and {second.upper()} are both {names[first]!r}: each needs a name of its own"
            )
    return NatsSettings(
        prefix=_parse_prefix(env.text("PREFIX") or "nalpaca"),
        bucket=env.name("NATS_KV_BUCKET", "nalpaca"),
        servers=_parse_servers(env.text("NATS_URL") or "localhost:4222"),
        user=user,
        password=password,
        use_compression=env.switch("NATS_USE_COMPRESSION"),
        takes_orders=env.switch("ENABLE_ORDERS"),
        takes_cancels=env.switch("ENABLE_CANCELER"),
        tells_updates=env.switch("ENABLE_TRADE_UPDATER"),
        environment="live" if urlsplit(alpaca_url).hostname == urlsplit(LIVE_URL).hostname else "paper",
        alpaca_url=alpaca_url,
        http_timeout_s=env.duration("HTTP_CLIENT_TIMEOUT", 15.0, least_s=0.001),
        retry_limit=env.number("ALPACA_RETRY_LIMIT", default=0, least=0, most=100) or 3,
        retry_delay_s=env.duration("ALPACA_RETRY_DELAY", 0.0) or 1.0,
        processing_timeout_s=env.duration("PROCESSING_TIMEOUT", 3.0, least_s=0.001),
        shutdown_timeout_s=env.duration("SHUTDOWN_TIMEOUT", 30.0),
        stocks=_read_stream(env, "STOCK_STREAM", "ENABLE_STOCK_STREAM", _check_bar_symbol),
        news=_read_stream(env, "NEWS_STREAM", "ENABLE_NEWS_STREAM", _check_news_symbol),
        api=SubscriptionApiSettings(
            is_enabled=env.switch("ENABLE_GRPC"),
            port=env.number("GRPC_PORT", default=9200, least=0, most=65_535),
            max_connection_age_s=env.duration("GRPC_MAX_CONN_AGE", 360.0, least_s=1.0),
            max_connection_idle_s=env.duration("GRPC_MAX_CONN_IDLE", 300.0, least_s=1.0),
            ping_every_s=env.duration("GRPC_PING_EVERY", 2.0, least_s=0.001),
            ping_timeout_s=env.duration("GRPC_PING_TIMEOUT", 0.0),
            is_proxy_enabled=env.switch("ENABLE_GRPC_PROXY"),
            proxy_port=env.number("GRPC_PROXY_PORT", default=8080, least=0, most=65_535),
            proxy_max_header_bytes=env.number("GRPC_PROXY_MAX_HEADER_BYTES", default=0, least=0, most=2**24),
            proxy_server_timeout_s=env.duration("GRPC_PROXY_SERVER_TIMEOUT", 120.0, least_s=0.001),
            proxy_read_header_timeout_s=env.duration("GRPC_PROXY_READ_HEADER_TIMEOUT", 120.0, least_s=0.001),
            proxy_read_timeout_s=env.duration("GRPC_PROXY_READ_TIMEOUT", 120.0, least_s=0.001),
            proxy_write_timeout_s=env.duration("GRPC_PROXY_WRITE_TIMEOUT", 120.0, least_s=0.001),
        ),
        action_stream=names["action_stream"],
        data_stream=names["data_stream"],
        order_consumer=names["order_consumer"],
        cancel_consumer=names["cancel_consumer"],
    )


class _Reader:
    """Reads variables, each with its rule."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def text(self, *names: str) -> str:
        return read_variable(self._environment, *names)

    def name(self, variable: str, default: str) -> str:
        text = self.text(variable) or default
        if not _NAME.fullmatch(text):
            raise ConfigError(f"{variable}={text!r}: expected letters, digits, - and _, at most 200")
        return text

    def switch(self, variable: str) -> bool:
        return read_flag(self._environment, variable)

    def number(self, *variables: str, default: int, least: int, most: int) -> int:
        return read_count(self._environment, *variables, default=default, least=least, most=most)

    def duration(self, variable: str, default_s: float, *, least_s: float = 0.0) -> float:
        return read_duration(self._environment, variable, default_s, least_s=least_s)


def _read_stream(env: _Reader, prefix: str, switch: str, check: Any) -> StreamSettings:
    feed = env.text(f"{prefix}_FEED_TYPE", f"{prefix}_FEED").lower() or "sip"
    if feed not in STOCK_FEEDS:
        raise ConfigError(f"{prefix}_FEED_TYPE={feed!r}: expected one of {', '.join(STOCK_FEEDS)}")
    base_url = env.text(f"{prefix}_BASE_URL")
    symbols = [part.strip().upper() for part in env.text(f"{prefix}_SYMBOLS").split(",") if part.strip()]
    for symbol in symbols:
        try:
            check(symbol)
        except ConfigError as error:
            raise ConfigError(f"{prefix}_SYMBOLS: {error}") from None
    has_limit, has_delay = env.text(f"{prefix}_RECONNECT_LIMIT"), env.text(f"{prefix}_RECONNECT_DELAY")
    return StreamSettings(
        is_enabled=env.switch(switch),
        symbols=tuple(dict.fromkeys(symbols)),
        feed=feed,
        base_url=parse_url(base_url, name=f"{prefix}_BASE_URL", schemes=("ws", "wss")) if base_url else "",
        processors=env.number(f"{prefix}_PROCESSORS", default=1, least=1, most=1_000),
        buffer_size=env.number(f"{prefix}_BUFFER_SIZE", f"{prefix}_BUFFER", default=100_000, least=1, most=100_000_000),
        reconnect_limit=env.number(f"{prefix}_RECONNECT_LIMIT", default=20, least=0, most=1_000_000)
        if has_limit
        else None,
        reconnect_delay_s=env.duration(f"{prefix}_RECONNECT_DELAY", 0.15, least_s=0.001) if has_delay else None,
    )


def parse_symbols(texts: Sequence[str], *, channel: str) -> list[str]:
    """Return canonical symbols of what a client asks for; `*` is all.

    Args:
        channel: bars or news.

    Raises:
        ConfigError: for what is no symbol, or one whose bars are not offered. Nothing is taken then.
    """
    check = _check_bar_symbol if channel == "bars" else _check_news_symbol
    found: dict[str, None] = {}
    for text in texts:
        symbol = text.strip().upper()
        check(symbol)
        found[symbol] = None
    return list(found)


def _check_news_symbol(symbol: str) -> None:
    if symbol != EVERY and not is_symbol(symbol):
        raise ConfigError(f"{symbol[:40]!r} is not a symbol: expected {ALLOWED}, or *")


def _check_bar_symbol(symbol: str) -> None:
    _check_news_symbol(symbol)
    if is_option(symbol):
        raise ConfigError(f"{symbol} is an option: bars are offered of stocks and crypto pairs")


def _parse_prefix(text: str) -> str:
    try:
        return Subjects(text).prefix
    except ValueError as error:
        raise ConfigError(f"PREFIX={text!r}: {error}") from None


def _parse_servers(text: str) -> tuple[str, ...]:
    servers = []
    for part in text.split(","):
        url = part.strip() if "://" in part else f"nats://{part.strip()}"
        try:
            parsed = urlsplit(url)
            is_usable = parsed.scheme in _NATS_SCHEMES and bool(parsed.hostname) and parsed.port != 0
        except ValueError:
            is_usable = False
            parsed = None
        if parsed is not None and (parsed.username is not None or parsed.password is not None):
            raise ConfigError("NATS_URL: credentials do not belong there; set NATS_USER and NATS_PASSWORD")
        if not is_usable or parsed is None:
            raise ConfigError(
                f"NATS_URL={text!r}: expected host:port or a URL that begins with "
                f"{', '.join(f'{scheme}://' for scheme in _NATS_SCHEMES)}, several with commas between"
            )
        servers.append(url)
    if len({urlsplit(url).scheme in ("ws", "wss") for url in servers}) > 1:
        raise ConfigError(f"NATS_URL={text!r}: WebSocket servers and others cannot be mixed")
    return tuple(servers)
