"""Settings of the hub, from command-line options and the environment. Pure but for a symbols file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from dry_work.addresses import is_alpaca_url
from dry_work.errors import ConfigError
from dry_work.hub.core import OPTION_FEEDS, build_feeds, split_symbols
from dry_work.hub.variables import read_duration, read_flag
from dry_work.market.symbols import parse_symbols, read_symbols
from dry_work.settings import (
    BROKER_LIVE_URL,
    BROKER_SANDBOX_URL,
    CRYPTO_TOPIC,
    DATA_URL,
    DEFAULT_STOCK_FEED,
    LIVE_URL,
    MARKET_TOPIC,
    PAPER_URL,
    Credentials,
    check_live,
    choose_venue_urls,
    parse_account_id,
    parse_stock_feed,
    parse_url,
    read_credentials,
    read_stock_feed,
    read_variable,
)

SINKS = ("pubsub", "nats", "redis", "websocket", "grpc")
DEFAULT_SINKS = ("pubsub",)
DEFAULT_STREAM_URL = "wss://stream.data.alpaca.markets"
SANDBOX_STREAM_URL = "wss://stream.data.sandbox.alpaca.markets"  # of keys of the Broker API's sandbox
DEFAULT_HOST = "127.0.0.1"
DEFAULT_WEBSOCKET_PORT = 8099
NEWS_TOPIC = "news-data"
ORDERS_TOPIC = "order-updates"
NEWS_POLL_S = 300.0
ORDER_CHECK_S = 60.0  # two requests of the 200 a minute that Alpaca gives a key
SHUTDOWN_S = 30.0
HTTP_TIMEOUT_S = 15.0
OAUTH_KEY = "oauth"  # stands for the key where Alpaca's streams take a bearer token as the secret

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
    oauth_token: str = ""  # in place of key and secret
    account_id: str = ""  # of the Broker API; empty: the key's own account

    def __repr__(self) -> str:
        return f"AccountKeys({self.environment!r}, {self.url!r})"


class HubSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub runs with. `repr` and `masked` never show the credentials."""

    key: str
    secret: str
    symbols: tuple[str, ...] = ()
    project: str | None = None  # Google Cloud's; needed for Pub/Sub alone
    stream_url: str = DEFAULT_STREAM_URL
    feed: str = DEFAULT_STOCK_FEED
    option_feed: str = ""  # indicative or opra; empty: as the environment says
    pubsub_endpoint: str | None = None  # host:port of an emulator, None: Google
    market_topic: str = MARKET_TOPIC
    crypto_topic: str = CRYPTO_TOPIC
    sinks: tuple[str, ...] = DEFAULT_SINKS
    statuses: bool = True  # trading statuses and price bands of stocks go to Pub/Sub
    batch: bool = False  # several bars in a Pub/Sub message
    accounts: tuple[AccountKeys, ...] = ()
    environment: str = "paper"  # of the account whose updates Alpaca's own path brings
    bind_host: str = DEFAULT_HOST
    token: str = ""
    websocket_port: int = DEFAULT_WEBSOCKET_PORT
    state_dir: Path | None = None  # keeps what was told of orders
    news_topic: str = ""  # of Pub/Sub; empty: no news there
    orders_topic: str = ""  # of Pub/Sub; empty: no order updates there
    news_poll_s: float = NEWS_POLL_S  # how often news that the stream missed is asked for
    order_check_s: float = ORDER_CHECK_S  # how often orders are compared with what the stream told; 0: never
    data_url: str = DATA_URL  # base of the market-data REST API
    http_timeout_s: float = HTTP_TIMEOUT_S  # of requests to the accounts
    shutdown_timeout_s: float = SHUTDOWN_S
    tls_cert: Path | None = None  # PEM; of every listener
    tls_key: Path | None = None

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
    tells_orders = _is_named(environment, "ENABLE_TRADE_UPDATER", "ORDER_UPDATES_TOPIC")
    accounts = read_accounts(environment)
    credentials = _choose_credentials(environment, accounts)
    if set(chosen) == {"pubsub"} and not tells_orders:
        accounts = ()
    project = project or read_variable(environment, "GOOGLE_CLOUD_PROJECT")
    if not project and "pubsub" in chosen:
        raise ConfigError("no Google Cloud project: give --project or set GOOGLE_CLOUD_PROJECT")
    if project and not _PROJECT.fullmatch(project):
        raise ConfigError(f"{project!r} is not a Google Cloud project id (--project, GOOGLE_CLOUD_PROJECT)")
    market = market_topic or read_variable(environment, "MARKET_DATA_TOPIC", "PUBSUB_TOPIC_NAME") or MARKET_TOPIC
    crypto = crypto_topic or read_variable(environment, "CRYPTO_DATA_TOPIC") or CRYPTO_TOPIC
    stock_feed = parse_stock_feed(feed, name="--feed") if feed else read_stock_feed(environment)
    tells_news = _is_named(environment, "ENABLE_NEWS_STREAM", "NEWS_TOPIC_NAME")
    settings = HubSettings(
        key=credentials.key,
        secret=credentials.secret,
        sinks=chosen,
        symbols=_parse_symbols(symbols or read_variable(environment, "HUB_SYMBOLS"), needed="pubsub" in chosen),
        project=project or None,
        stream_url=parse_stream_url(
            stream_url or read_variable(environment, "ALPACA_STREAM_URL") or _choose_stream_url(accounts)
        ),
        feed=stock_feed,
        option_feed=_read_option_feed(environment),
        pubsub_endpoint=_parse_endpoint(pubsub_endpoint or read_variable(environment, "PUBSUB_EMULATOR_HOST")),
        market_topic=_check_topic(market, "MARKET_DATA_TOPIC"),
        crypto_topic=_check_topic(crypto, "CRYPTO_DATA_TOPIC"),
        statuses=read_flag(environment, "HUB_STATUSES", default=True),
        batch=read_flag(environment, "HUB_BATCH") if batch is None else batch,
        accounts=accounts,
        environment=parse_account_environment(environment),
        bind_host=read_variable(environment, "HUB_BIND_HOST") or DEFAULT_HOST,
        token=read_variable(environment, "HUB_TOKEN"),
        websocket_port=_parse_port(environment, "PROXY_PORT", DEFAULT_WEBSOCKET_PORT),
        state_dir=state_dir or _read_path(environment, "HUB_STATE_DIR"),
        news_topic=_read_topic(environment, "NEWS_TOPIC_NAME", NEWS_TOPIC) if tells_news else "",
        orders_topic=_read_topic(environment, "ORDER_UPDATES_TOPIC", ORDERS_TOPIC) if tells_orders else "",
        news_poll_s=_read_interval(environment, "NEWS_POLL_INTERVAL", NEWS_POLL_S),
        order_check_s=_read_interval(environment, "ORDER_CHECK_INTERVAL", ORDER_CHECK_S),
        data_url=parse_url(read_variable(environment, "ALPACA_DATA_URL") or DATA_URL, name="ALPACA_DATA_URL"),
        http_timeout_s=read_duration(environment, "HTTP_CLIENT_TIMEOUT", HTTP_TIMEOUT_S, least_s=0.001),
        shutdown_timeout_s=read_duration(environment, "SHUTDOWN_TIMEOUT", SHUTDOWN_S),
        tls_cert=_read_path(environment, "HUB_TLS_CERT"),
        tls_key=_read_path(environment, "HUB_TLS_KEY"),
    )
    build_feeds(stock_feed=stock_feed, market_topic=market, crypto_topic=crypto)
    _check_topics(settings)
    split_symbols(settings.symbols)
    return settings


def read_accounts(environment: Mapping[str, str]) -> tuple[AccountKeys, ...]:
    """Return the accounts that the environment has credentials for: paper, live, both or none.

    Raises:
        ConfigError: half of a pair is set, or two pairs of one account differ. Values are not told.
    """
    url = _read_alpaca_url(environment)
    account_id = parse_account_id(read_variable(environment, "ALPACA_ACCOUNT_ID"))
    is_live_url = urlsplit(url).hostname in (urlsplit(LIVE_URL).hostname, urlsplit(BROKER_LIVE_URL).hostname)
    check_live(Credentials(key="", secret=""), url, live=is_live_url, account_id=account_id)
    stands_for = parse_account_environment(environment)

    def choose_base(account: str) -> str:
        # An address that is not Alpaca's, such as the simulated exchange, is meant for every account.
        own = choose_venue_urls(account_id, live=account == "live")[0]
        return url if url and not is_alpaca_url(url) else own

    named = "live" if is_live_url else "paper"
    pairs = (
        (named, ("ALPACA_API_KEY",), ("ALPACA_SECRET_KEY", "ALPACA_API_SECRET")),
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
        keys_found = AccountKeys(
            environment=account, key=key, secret=secret, url=choose_base(account), account_id=account_id
        )
        name, before = found.setdefault(account, (keys[0], keys_found))
        if before != keys_found:
            raise ConfigError(
                f"{name} and {keys[0]} are both set for the {account} account and differ: set one of them"
            )
    accounts = {account: keys_found for account, (_, keys_found) in found.items()}
    if token := read_variable(environment, "ALPACA_OAUTH"):
        # As Alpaca's own clients have it, a token goes before the key pair of its account.
        accounts = {
            named: AccountKeys(
                environment=named, key=OAUTH_KEY, secret=token, url=choose_base(named), oauth_token=token
            ),
            **{account: keys_found for account, keys_found in accounts.items() if account != named},
        }
        if account_id:
            raise ConfigError(
                "ALPACA_OAUTH and ALPACA_ACCOUNT_ID are both set, but the Broker API takes a key and its secret: "
                "set one of them"
            )
    if account_id and len(accounts) > 1:
        raise ConfigError(
            "ALPACA_ACCOUNT_ID is set, which is an account in the sandbox or a live one, and there are credentials for "
            "a paper and a live account: set those of one of them"
        )
    return tuple(accounts.values())


def parse_account_environment(environment: Mapping[str, str]) -> str:
    """Return which account CREAM_ENV selects: paper, unless it, or without it ALPACA_URL, says live.

    Raises:
        ConfigError: it says something else, or the two differ.
    """
    text = read_variable(environment, "CREAM_ENV")
    if text and text.upper() not in ("PAPER", "LIVE"):
        raise ConfigError(f"CREAM_ENV={text!r}: expected PAPER or LIVE")
    host = urlsplit(_read_alpaca_url(environment)).hostname
    by_url = {
        urlsplit(PAPER_URL).hostname: "paper",
        urlsplit(BROKER_SANDBOX_URL).hostname: "paper",
        urlsplit(LIVE_URL).hostname: "live",
        urlsplit(BROKER_LIVE_URL).hostname: "live",
    }.get(host, "")
    if text and by_url and text.lower() != by_url:
        raise ConfigError(
            f"CREAM_ENV and ALPACA_URL are both set and differ: CREAM_ENV={text!r}, and ALPACA_URL is Alpaca's address "
            f"of the {by_url} account"
        )
    return text.lower() or by_url or "paper"


def _read_alpaca_url(environment: Mapping[str, str]) -> str:
    text = read_variable(environment, "ALPACA_URL")
    return parse_url(text, name="ALPACA_URL") if text else ""


def _choose_credentials(environment: Mapping[str, str], accounts: Sequence[AccountKeys]) -> Credentials:
    """Return what market data is read with.

    Raises:
        ConfigError: there is nothing.
    """
    try:
        return read_credentials(environment)
    except ConfigError:
        if not accounts:
            raise
        return Credentials(key=accounts[0].key, secret=accounts[0].secret)  # any of them reads market data


def _choose_stream_url(accounts: Sequence[AccountKeys]) -> str:
    """Return where market data comes from: keys of the Broker API's sandbox have a host of their own."""
    is_sandbox = any(keys.account_id and keys.environment == "paper" for keys in accounts)
    return SANDBOX_STREAM_URL if is_sandbox else DEFAULT_STREAM_URL


def _read_option_feed(environment: Mapping[str, str]) -> str:
    found = read_variable(environment, "ALPACA_OPTION_FEED").lower()
    if found and found not in OPTION_FEEDS:
        raise ConfigError(f"ALPACA_OPTION_FEED={found!r}: expected one of {', '.join(OPTION_FEEDS)}")
    return found


def _is_named(environment: Mapping[str, str], switch: str, topic: str) -> bool:
    """Tell whether Pub/Sub gets a part: because of its switch, or because its topic is named."""
    is_on = read_flag(environment, switch)
    return is_on or bool(read_variable(environment, topic))


def _read_topic(environment: Mapping[str, str], variable: str, default: str) -> str:
    return _check_topic(read_variable(environment, variable) or default, variable)


def _check_topics(settings: HubSettings) -> None:
    """Refuse one topic for two things: their readers expect one kind of message."""
    named = {
        "MARKET_DATA_TOPIC": settings.market_topic,
        "CRYPTO_DATA_TOPIC": settings.crypto_topic,
        "NEWS_TOPIC_NAME": settings.news_topic,
        "ORDER_UPDATES_TOPIC": settings.orders_topic,
    }
    seen: dict[str, str] = {}
    for variable, topic in named.items():
        if topic and topic in seen:
            raise ConfigError(f"{seen[topic]} and {variable} are both {topic!r}: each needs a topic of its own")
        seen[topic] = variable


def _read_interval(environment: Mapping[str, str], name: str, default_s: float) -> float:
    text = read_variable(environment, name)
    if not text:
        return default_s
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) or float(text) > 86_400:
        raise ConfigError(f"{name}={text!r}: expected seconds from 0 (never) to 86400")
    return float(text)


def _read_path(environment: Mapping[str, str], name: str) -> Path | None:
    text = read_variable(environment, name)
    return Path(text) if text else None


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
            raise ConfigError(f"{name!r} is not a sink (--sinks, HUB_SINKS): expected some of {', '.join(SINKS)}")
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
