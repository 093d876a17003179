"""Settings of the hub, from command-line options and the environment. Pure but for a symbols file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from dry_work.addresses import is_alpaca_url
from dry_work.errors import ConfigError
from dry_work.hub.core import STOCK_FEEDS, build_feeds, split_symbols
from dry_work.market.symbols import parse_symbols, read_symbols
from dry_work.settings import (
    CRYPTO_TOPIC,
    LIVE_URL,
    MARKET_TOPIC,
    PAPER_URL,
    Credentials,
    parse_switch,
    read_credentials,
    read_variable,
)

SINKS = ("pubsub", "nats", "redis", "websocket", "grpc")
OFFERED_SINKS = ("pubsub", "nats", "websocket", "grpc")
DEFAULT_SINKS = ("pubsub",)
DEFAULT_STREAM_URL = "wss://stream.data.alpaca.markets"
DEFAULT_FEED = "iex"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_WEBSOCKET_PORT = 8099

_TOPIC = re.compile(r"[A-Za-z][A-Za-z0-9\-_.~+%]{2,254}")
_PROJECT = re.compile(r"[a-z0-9.:\-]+")
_ENDPOINT = re.compile(r"(\[[0-9A-Fa-f:]+\]|[^\s:/\[\]]+):([0-9]{1,5})")
_MASK = "***"


class AccountKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The key of an account whose orders go through the hub. `repr` does not show it."""

    environment: str  # paper or live
    key: str
    secret: str
    url: str  # base of its trading API

    def __repr__(self) -> str:
        return f"AccountKeys({self.environment!r}, {self.url!r})"


class HubSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub runs with. `repr` and `masked` never show the credentials."""

    key: str
    secret: str
    symbols: tuple[str, ...] = ()
    project: str | None = None  # Google Cloud's; needed for Pub/Sub alone
    stream_url: str = DEFAULT_STREAM_URL
    feed: str = DEFAULT_FEED
    pubsub_endpoint: str | None = None  # host:port of an emulator, None: Google
    market_topic: str = MARKET_TOPIC
    crypto_topic: str = CRYPTO_TOPIC
    sinks: tuple[str, ...] = DEFAULT_SINKS
    batch: bool = False  # several bars in a Pub/Sub message
    accounts: tuple[AccountKeys, ...] = ()
    environment: str = "paper"  # of the account whose updates Alpaca's own path brings
    bind_host: str = DEFAULT_HOST
    token: str = ""
    websocket_port: int = DEFAULT_WEBSOCKET_PORT
    state_dir: Path | None = None  # keeps what was told of orders

    def masked(self) -> dict[str, Any]:
        """Return the settings by name, credentials masked."""
        shown = {**msgspec.structs.asdict(self), "key": _MASK, "secret": _MASK, "token": _MASK if self.token else ""}
        shown["accounts"] = tuple(account.environment for account in self.accounts)
        return shown

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={value!r}" for name, value in self.masked().items())
        return f"HubSettings({facts})"

    def __rich_repr__(self) -> Any:
        return iter(self.masked().items())


def build_settings(
    environment: Mapping[str, str],
    *,
    symbols: str | None = None,
    sinks: str | None = None,
    project: str | None = None,
    feed: str | None = None,
    stream_url: str | None = None,
    pubsub_endpoint: str | None = None,
    market_topic: str | None = None,
    crypto_topic: str | None = None,
    batch: bool | None = None,
    state_dir: Path | None = None,
) -> HubSettings:
    """Return the settings: an option that is given wins over its environment variable; empty counts as not given.

    Raises:
        ConfigError: naming the variable, its value and what is allowed.
    """
    chosen = _parse_sinks(sinks or read_variable(environment, "HUB_SINKS"))
    accounts = read_accounts(environment) if set(chosen) != {"pubsub"} else ()
    try:
        credentials = read_credentials(environment)
    except ConfigError:
        if not accounts:
            raise
        credentials = Credentials(key=accounts[0].key, secret=accounts[0].secret)  # any of them reads market data
    project = project or read_variable(environment, "GOOGLE_CLOUD_PROJECT")
    if not project and "pubsub" in chosen:
        raise ConfigError("no Google Cloud project: give --project or set GOOGLE_CLOUD_PROJECT")
    if project and not _PROJECT.fullmatch(project):
        raise ConfigError(f"{project!r} is not a Google Cloud project id (--project, GOOGLE_CLOUD_PROJECT)")
    market = market_topic or read_variable(environment, "MARKET_DATA_TOPIC", "PUBSUB_TOPIC_NAME") or MARKET_TOPIC
    crypto = crypto_topic or read_variable(environment, "CRYPTO_DATA_TOPIC") or CRYPTO_TOPIC
    stock_feed = feed or read_variable(environment, "ALPACA_FEED") or DEFAULT_FEED
    if stock_feed not in STOCK_FEEDS:
        raise ConfigError(f"{stock_feed!r} is not a stock feed (--feed, ALPACA_FEED): one of {', '.join(STOCK_FEEDS)}")
    settings = HubSettings(
        key=credentials.key,
        secret=credentials.secret,
        sinks=chosen,
        symbols=_parse_symbols(symbols or read_variable(environment, "HUB_SYMBOLS"), needed="pubsub" in chosen),
        project=project or None,
        stream_url=parse_stream_url(
            stream_url or read_variable(environment, "ALPACA_STREAM_URL") or DEFAULT_STREAM_URL
        ),
        feed=stock_feed,
        pubsub_endpoint=_parse_endpoint(pubsub_endpoint or read_variable(environment, "PUBSUB_EMULATOR_HOST")),
        market_topic=_check_topic(market, "MARKET_DATA_TOPIC"),
        crypto_topic=_check_topic(crypto, "CRYPTO_DATA_TOPIC"),
        batch=parse_switch(read_variable(environment, "HUB_BATCH"), name="HUB_BATCH") if batch is None else batch,
        accounts=accounts,
        environment=parse_account_environment(environment),
        bind_host=read_variable(environment, "HUB_BIND_HOST") or DEFAULT_HOST,
        token=read_variable(environment, "HUB_TOKEN"),
        websocket_port=_parse_port(environment, "PROXY_PORT", DEFAULT_WEBSOCKET_PORT),
        state_dir=state_dir,
    )
    build_feeds(stock_feed=stock_feed, market_topic=market, crypto_topic=crypto)
    split_symbols(settings.symbols)
    return settings


def read_accounts(environment: Mapping[str, str]) -> tuple[AccountKeys, ...]:
    """Return the accounts that the environment has credentials for: paper, live, both or none.

    Raises:
        ConfigError: half of a pair is set, or two pairs of one account differ. Values are not told.
    """
    url = read_variable(environment, "ALPACA_URL").rstrip("/")
    is_live_url = urlsplit(url).hostname == urlsplit(LIVE_URL).hostname
    stands_for = {"PAPER": "paper", "LIVE": "live"}[parse_account_environment(environment).upper()]
    pairs = (
        ("live" if is_live_url else "paper", ("ALPACA_API_KEY",), ("ALPACA_SECRET_KEY", "ALPACA_API_SECRET")),
        ("paper", ("PAPER_ALPACA_API_KEY_ID",), ("PAPER_ALPACA_API_SECRET_KEY",)),
        ("live", ("ALPACA_LIVE_API_KEY",), ("ALPACA_LIVE_SECRET_KEY",)),
        ("live", ("ALPACA_API_KEY_ID",), ("ALPACA_API_SECRET_KEY",)),
        (stands_for, ("ALPACA_KEY",), ("ALPACA_SECRET",)),
    )
    found: dict[str, tuple[str, AccountKeys]] = {}
    for account, keys, secrets in pairs:
        key, secret = read_variable(environment, *keys), read_variable(environment, *secrets)
        if bool(key) != bool(secret):
            there, missing = (keys[0], secrets[0]) if key else (secrets[0], keys[0])
            raise ConfigError(f"{there} is set, but {missing} is not: set both")
        if not key:
            continue
        # An address that is not Alpaca's, such as the simulated exchange, is meant for every account.
        own = PAPER_URL if account == "paper" else LIVE_URL
        base = url if url and not is_alpaca_url(url) else own
        keys_found = AccountKeys(environment=account, key=key, secret=secret, url=base)
        name, before = found.setdefault(account, (keys[0], keys_found))
        if before != keys_found:
            raise ConfigError(
                f"{name} and {keys[0]} are both set for the {account} account and differ: set one of them"
            )
    return tuple(keys_found for _, keys_found in found.values())


def parse_account_environment(environment: Mapping[str, str]) -> str:
    """Return which account CREAM_ENV selects: paper, unless it says live.

    Raises:
        ConfigError: it says something else.
    """
    text = read_variable(environment, "CREAM_ENV") or "PAPER"
    if text.upper() not in ("PAPER", "LIVE"):
        raise ConfigError(f"CREAM_ENV={text!r}: expected PAPER or LIVE")
    return text.lower()


def _parse_port(environment: Mapping[str, str], name: str, default: int) -> int:
    text = read_variable(environment, name)
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or not 0 <= int(text) <= 65_535:
        raise ConfigError(f"{name}={text!r}: expected a port, 0 to 65535 (0 takes any free one)")
    return int(text)


def parse_stream_url(text: str) -> str:
    """Return the base URL of the market-data WebSocket, without a slash at its end.

    Raises:
        ConfigError: when it is no such URL or has more than scheme, host and port.
    """
    expected = "expected ws:// or wss:// with host and port alone, such as wss://stream.data.alpaca.markets"
    try:
        parts = urlsplit(text.strip())
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ConfigError(f"{text!r} is not a URL (ALPACA_STREAM_URL): {expected}") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"credentials do not belong into ALPACA_STREAM_URL: {expected}")
    if parts.scheme not in ("ws", "wss") or not has_host or parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigError(f"{text!r} is not usable as ALPACA_STREAM_URL: {expected}")
    return f"{parts.scheme}://{parts.netloc}"


def _parse_sinks(text: str) -> tuple[str, ...]:
    names = [name.strip().lower() for name in text.split(",") if name.strip()] or list(DEFAULT_SINKS)
    for name in names:
        if name not in SINKS:
            raise ConfigError(f"{name!r} is not a sink (--sinks, HUB_SINKS): offered now is {', '.join(OFFERED_SINKS)}")
        if name not in OFFERED_SINKS:
            raise ConfigError(
                f"the sink {name!r} is not part of this version (--sinks, HUB_SINKS): "
                f"offered now is {', '.join(OFFERED_SINKS)}"
            )
    return tuple(dict.fromkeys(names))


def _parse_symbols(text: str, *, needed: bool) -> tuple[str, ...]:
    if not text and not needed:
        return ()
    if not text:
        raise ConfigError(
            "no symbols: give --symbols or set HUB_SYMBOLS, a file with one symbol a line or a comma list"
        )
    path = Path(text)
    if path.exists():
        return tuple(read_symbols(path))
    try:
        return tuple(parse_symbols(text.replace(",", "\n"), source="--symbols, HUB_SYMBOLS"))
    except ConfigError as error:
        raise ConfigError(f"{text!r} is neither a file nor a comma list of symbols ({error})") from None


def _parse_endpoint(text: str) -> str | None:
    if not text:
        return None
    match = _ENDPOINT.fullmatch(text)
    if match is None or not 0 < int(match[2]) <= 65_535:
        raise ConfigError(f"{text!r} is not usable as PUBSUB_EMULATOR_HOST: expected host:port such as localhost:8085")
    return text


def _check_topic(topic: str, variable: str) -> str:
    if not _TOPIC.fullmatch(topic) or topic.startswith("goog"):
        raise ConfigError(
            f"{topic!r} is not usable as {variable}: expected 3 to 255 letters, digits and -_.~+%, "
            "a letter first, and not goog at the start"
        )
    return topic
