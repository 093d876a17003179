"""Settings of a run from options, `dry-work.toml` and the environment. Pure but for what reads files.

An option wins over the environment, the environment over `.env` files, and those over `dry-work.toml`
(`settings_files`). An empty variable counts as unset. Several names for one thing may be set when they agree.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import sys
import uuid
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytz

from dry_work.clock import DAY_NS, MINUTE_NS
from dry_work.errors import ConfigError
from dry_work.orders.risk_limits import RiskLimits, RiskValueError, parse_limits
from dry_work.settings_files import TOML_KEYS, parse_env_file, read_environment, read_toml

__all__ = [
    "BROKER_LIVE_URL", "BROKER_SANDBOX_URL", "CRYPTO_TOPIC", "DATA_SANDBOX_URL", "DATA_URL",
    "DEFAULT_GRPC_ENDPOINT", "DEFAULT_JOURNAL_DAYS", "DEFAULT_STALE_S", "DEFAULT_STATE_DIR", "DEFAULT_STOCK_FEED",
    "DEFAULT_SYMBOLS", "DEFAULT_WEBSOCKET_URL", "FEEDS", "LIVE_URL", "MARKET_TOPIC", "MAX_JOURNAL_DAYS",
    "PAPER_URL", "POD_STATE_DIR", "STOCK_FEEDS", "TOML_KEYS", "WHOLE_LINES", "Credentials", "FeedSettings",
    "RunSettings", "TimeFrame", "check_live", "choose_state_dir", "choose_venue_urls", "parse_account_id",
    "parse_agent_id", "parse_cash", "parse_choice", "parse_env_file", "parse_feed", "parse_journal_days",
    "parse_lookback", "parse_moment", "parse_risk", "parse_speed", "parse_stale", "parse_stock_feed",
    "parse_timeframe", "parse_url", "parse_zone", "read_credentials", "read_environment", "read_stock_feed",
    "read_toml", "read_variable",
]  # fmt: skip

PAPER_URL = "https://paper-api.alpaca.markets"
LIVE_URL = "https://api.alpaca.markets"
BROKER_SANDBOX_URL = "https://broker-api.sandbox.alpaca.markets"
BROKER_LIVE_URL = "https://broker-api.alpaca.markets"
DATA_URL = "https://data.alpaca.markets"
DATA_SANDBOX_URL = "https://data.sandbox.alpaca.markets"  # for keys of the Broker API's sandbox
MARKET_TOPIC = "market-data"
CRYPTO_TOPIC = "crypto-data"
POD_STATE_DIR = Path("/var/lib/trading-agent")
DEFAULT_STATE_DIR = Path(".dry-work")
DEFAULT_SYMBOLS = Path("symbols.txt")

FEEDS = ("pubsub", "nats", "redis", "ws", "grpc")  # ways of market data
STOCK_FEEDS = ("iex", "sip", "delayed_sip", "otc", "test")
DEFAULT_STOCK_FEED = "iex"
DEFAULT_STALE_S = 300.0
DEFAULT_JOURNAL_DAYS, MAX_JOURNAL_DAYS = 30, 36_500
WHOLE_LINES = sys.maxsize  # as a look-back
DEFAULT_WEBSOCKET_URL = "ws://127.0.0.1:8099"
DEFAULT_GRPC_ENDPOINT = "http://localhost:50052"

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_MASK = "***"


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """A key pair. Its `repr` shows neither."""

    key: str
    secret: str

    def __repr__(self) -> str:
        return f"Credentials(key={_MASK!r}, secret={_MASK!r})"


class FeedSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which way market data comes from the hub, and where that is. Its `repr` never shows token and password."""

    name: str = "pubsub"  # one of FEEDS
    address: str = ""  # of the hub, or of the servers between; empty for Pub/Sub
    token: str = ""  # the hub's
    user: str = ""  # of the server between
    password: str = ""
    prefix: str = "nalpaca"  # of NATS subjects
    stream: str = "nalpaca-data-stream-v0"  # of NATS
    database: int = 0  # of Redis
    tls: bool = False  # of Redis

    def __repr__(self) -> str:
        return f"FeedSettings({self.name!r}, {self.address!r})"


class TimeFrame(msgspec.Struct, frozen=True, kw_only=True):
    """A length of bars, such as 1m, 5m, 1h, 1d."""

    text: str
    unit: str  # s, m, h, d, w
    count: int

    @property
    def length_ns(self) -> int:
        """Its length in nanoseconds."""
        return self.count * _UNITS[self.unit] * (MINUTE_NS // 60)


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What `dry-work run` runs with. Its `repr` never shows credentials."""

    symbols: tuple[str, ...]
    agent: str
    params: dict[str, str]
    mode: str  # local, paper or live
    cash: Decimal = Decimal(100_000)  # of the local account
    tz: str = "UTC"
    timeframe: TimeFrame = TimeFrame(text="1m", unit="m", count=1)
    resample: tuple[TimeFrame, ...] = ()
    extra_fields: tuple[str, ...] = ()
    warmup: int = 0  # bars of history for each symbol
    lookback: int | None = None  # bars that each line holds in memory at least; None: as the strategy says
    forward_prenext: bool = False
    data: tuple[str, ...] = ()  # recordings of a local run; none: the synthetic day
    speed: float | None = None  # data seconds a second of a local run; None is lock-step
    state_dir: Path = DEFAULT_STATE_DIR
    state_dir_given: bool = False
    agent_id: str = ""  # empty: a random one
    take_over: bool = False
    feed: FeedSettings = FeedSettings()
    project: str = ""
    market_topic: str = MARKET_TOPIC
    crypto_topic: str = CRYPTO_TOPIC
    pubsub_endpoint: str | None = None
    credentials: Credentials | None = None
    alpaca_url: str = PAPER_URL
    account_id: str = ""  # of the Broker API; empty: the key's own account
    data_url: str = DATA_URL
    stock_feed: str = DEFAULT_STOCK_FEED  # of the history; the hub's
    request_timeout_s: float = 10.0
    risk: RiskLimits | None = RiskLimits()  # None: no gate, only with `local`
    resume_trading: bool = False
    journal_days: int | None = DEFAULT_JOURNAL_DAYS  # that an order stays in the orders journal once it has ended
    stale_s: float | None = DEFAULT_STALE_S  # without a bar while its market is open: a symbol is stale; None: never
    stops_when_stale: bool = False  # the run fails when all symbols are stale
    drops_late: bool = False  # a bar that comes after its slice is left out; otherwise it goes with the next one
    tells_revised: bool = False  # the strategy hears of corrections of bars
    wants_statuses: bool = True  # trading statuses and price bands of stocks; over Pub/Sub the hub decides


def parse_stale(text: str) -> float | None:
    """Return the seconds after which a symbol is stale, None for `off`.

    Raises:
        ConfigError: when it is neither that nor a number from 60 on, the length of a bar.
    """
    if text.strip().lower() == "off":
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 60 <= seconds < float("inf"):
        raise ConfigError(f"stale_s {text!r} (DRY_WORK_STALE_S): expected seconds from 60 on, or off")
    return seconds


def parse_choice(text: str, words: tuple[str, str], *, name: str, variable: str) -> bool:
    """Return whether a setting is the second of two words.

    Raises:
        ConfigError: it is neither.
    """
    word = text.strip().lower()
    if word not in words:
        raise ConfigError(f"{name} {text!r} ({variable}): expected {words[0]} or {words[1]}")
    return word == words[1]


def parse_timeframe(text: str, *, option: str = "--timeframe") -> TimeFrame:
    """Return the time frame that `text` names, for example 30s, 1m, 5m, 1h, 1d, 1w.

    Raises:
        ConfigError: naming the option, the value and what is allowed.
    """
    match = re.fullmatch(r"(\d{1,5})([smhdw])", text.strip().lower())
    if match is None or int(match[1]) == 0:
        raise ConfigError(f"{option} {text!r}: expected a number and a unit: s, m, h, d or w, for example 5m or 1h")
    return TimeFrame(text=match[0], unit=match[2], count=int(match[1]))


def parse_speed(text: str) -> float | None:
    """Return data seconds a second, or None for `max`, which is lock-step.

    Raises:
        ConfigError: when it is neither a number above 0 nor max.
    """
    if text.strip().lower() == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise ConfigError(f"--speed {text!r}: expected a number above 0 (60: an hour in a minute) or max")
    return speed


def parse_feed(text: str) -> str:
    """Return a way of market data.

    Raises:
        ConfigError: when it is none.
    """
    name = text.strip().lower()
    if name not in FEEDS:
        raise ConfigError(f"--feed {text!r} (DRY_WORK_FEED): expected one of {', '.join(FEEDS)}")
    return name


def parse_lookback(value: object, *, name: str = "--lookback") -> int:
    """Return how many bars a line holds in memory at least, `WHOLE_LINES` for `all`.

    Raises:
        ConfigError: when it is neither a number from 1 on nor `all`.
    """
    if value == "all":
        return WHOLE_LINES
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ConfigError(f"{name} {value!r}: expected a number of bars from 1 on, or all")
    return number


def parse_journal_days(text: str) -> int | None:
    """Return for how many days the journal keeps an order that has ended; None: for ever.

    Raises:
        ConfigError: when it is neither a number from 1 on nor `off`.
    """
    if text == "off":
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_JOURNAL_DAYS):
        allowed = f"expected whole days from 1 to {MAX_JOURNAL_DAYS}, or off"
        raise ConfigError(f"journal_days {text!r} (DRY_WORK_JOURNAL_DAYS): {allowed}")
    return int(text)


def parse_cash(text: str) -> Decimal:
    """Return an amount of cash above 0.

    Raises:
        ConfigError: when it is none.
    """
    try:
        cash = Decimal(text)
    except InvalidOperation:
        cash = Decimal(0)
    if not cash.is_finite() or cash <= 0:
        raise ConfigError(f"--cash {text!r}: expected an amount above 0, for example 100000")
    return cash


def parse_moment(text: str, *, name: str, whole_day: bool = False) -> int:
    """Return a date or ISO 8601 time, UTC without a zone, in nanoseconds since 1970.

    Args:
        text: for example 2024-01-02 or 2024-01-02T14:30.
        name: of the option, for the error.
        whole_day: a date means its end.

    Raises:
        ConfigError: when it is neither.
    """
    try:
        moment = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        moment = None
    if moment is None or not 1970 <= moment.year < 2262:
        raise ConfigError(f"{name} {text!r}: expected a date or a time such as 2024-01-02 or 2024-01-02T14:30Z")
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    since = moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    is_date = len(text.strip()) <= len("2024-01-02")
    return (since // dt.timedelta(microseconds=1)) * 1000 + (DAY_NS if whole_day and is_date else 0)


def parse_zone(text: str) -> str:
    """Return the name of a time zone.

    Raises:
        ConfigError: when there is no such zone.
    """
    try:
        return str(pytz.timezone(text).zone)
    except pytz.UnknownTimeZoneError:
        raise ConfigError(f"--tz {text!r}: no such time zone; expected a name such as America/New_York") from None


def parse_agent_id(text: str) -> str:
    """Return an agent id.

    Raises:
        ConfigError: when it cannot be part of a subscription id and of a client order id.
    """
    if not _AGENT_ID.fullmatch(text):
        raise ConfigError(f"AGENT_ID {text!r}: expected 1 to 63 letters, digits, - or _, the first a letter or digit")
    return text


def parse_account_id(text: str) -> str:
    """Return the id of an account of the Broker API; empty for an empty text.

    Raises:
        ConfigError: when it is no UUID.
    """
    if not text:
        return ""
    try:
        return str(uuid.UUID(text.strip()))
    except ValueError:
        raise ConfigError(
            f"ALPACA_ACCOUNT_ID {text!r}: expected the id of an account of the Broker API, a UUID. "
            "Unset it to trade with the key's own account"
        ) from None


def choose_venue_urls(account_id: str, *, live: bool) -> tuple[str, str]:
    """Return the base URLs of Alpaca's API and of its market data for an account."""
    if account_id:
        return (BROKER_LIVE_URL, DATA_URL) if live else (BROKER_SANDBOX_URL, DATA_SANDBOX_URL)
    return (LIVE_URL if live else PAPER_URL), DATA_URL


def parse_url(text: str, *, name: str, schemes: tuple[str, ...] = ("http", "https")) -> str:
    """Return a base URL without a slash at its end.

    Raises:
        ConfigError: when it is no URL of these schemes, or carries credentials, which do not belong there.
    """
    allowed = " or ".join(f"{scheme}://" for scheme in schemes)
    try:
        parts = urlsplit(text.strip())
        usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"{name}={text!r}: expected a URL that begins with {allowed}")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{name}: credentials do not belong into a URL; set ALPACA_API_KEY and ALPACA_SECRET_KEY")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def read_variable(environment: Mapping[str, str], *names: str) -> str:
    """Return the value of the variables `names`, which mean the same thing; empty when none is set.

    Raises:
        ConfigError: when two are set and differ. Their values are not told.
    """
    found = [(name, value) for name in names if (value := environment.get(name, "").strip())]
    for name, value in found[1:]:
        if value != found[0][1]:
            raise ConfigError(f"{found[0][0]} and {name} are both set and differ: set one of them")
    return found[0][1] if found else ""


def read_credentials(environment: Mapping[str, str], *, hint: str = "") -> Credentials:
    """Return the key pair of the account.

    Args:
        environment: variables by name.
        hint: what else can be done, added to the message when there are none.

    Raises:
        ConfigError: when none or half of a pair is set.
    """
    pairs = (
        (("ALPACA_API_KEY",), ("ALPACA_SECRET_KEY", "ALPACA_API_SECRET")),
        (("PAPER_ALPACA_API_KEY_ID",), ("PAPER_ALPACA_API_SECRET_KEY",)),
    )
    found: list[tuple[str, Credentials]] = []
    for keys, secrets in pairs:
        key, secret = read_variable(environment, *keys), read_variable(environment, *secrets)
        if key and not secret:
            raise ConfigError(f"{keys[0]} is set, but {secrets[0]} is not: set both")
        if secret and not key:
            raise ConfigError(f"{secrets[0]} is set, but {keys[0]} is not: set both")
        if key:
            found.append((keys[0], Credentials(key=key, secret=secret)))
    if not found:
        raise ConfigError(f"no Alpaca credentials: set ALPACA_API_KEY and ALPACA_SECRET_KEY{hint}")
    for name, pair in found[1:]:
        if pair != found[0][1]:
            raise ConfigError(f"{found[0][0]} and {name} are both set and differ: set one of them")
    return found[0][1]


def read_stock_feed(environment: Mapping[str, str]) -> str:
    """Return the stock feed that the variables name, which have to agree.

    Raises:
        ConfigError: they do not, or name none that there is.
    """
    names = ("ALPACA_FEED", "STOCK_STREAM_FEED_TYPE", "STOCK_STREAM_FEED")
    feed = read_variable({name: environment.get(name, "").lower() for name in names}, *names) or DEFAULT_STOCK_FEED
    return parse_stock_feed(feed, name=next((name for name in names if environment.get(name, "").strip()), names[0]))


def parse_stock_feed(text: str, *, name: str) -> str:
    """Return a stock feed.

    Raises:
        ConfigError: there is no such feed; it says `name`.
    """
    if text not in STOCK_FEEDS:
        raise ConfigError(f"{text!r} is not a stock feed ({name}): one of {', '.join(STOCK_FEEDS)}")
    return text


def parse_risk(table: Mapping[str, Any], *, local: bool) -> RiskLimits | None:
    """Return the limits of the risk gate, None when it is off.

    Args:
        table: `[risk]` of `dry-work.toml`.
        local: the run trades with no account. Its limits of losses are off unless they are set, as a recording is not
            to be cut short.

    Raises:
        ConfigError: naming the setting, its value and what is allowed.
    """
    given = dict(table)
    off = given.pop("off", False)
    if not isinstance(off, bool):
        raise ConfigError(f"[risk] off = {off!r}: expected true or false")
    if off and not local:
        raise ConfigError("[risk] off = true goes with --local only: what trades with an account keeps its limits")
    defaults = RiskLimits(day_loss=None, drawdown=None) if local else RiskLimits()
    try:
        limits = parse_limits(given, defaults)
    except RiskValueError as error:
        raise ConfigError(f"[risk] {error}") from None
    return None if off else limits


def choose_state_dir(given: str | None, *, agent_id: str, pod_dir: Path = POD_STATE_DIR) -> tuple[Path, bool]:
    """Return the state directory and whether it was given by the user."""
    if given:
        return Path(given), True
    if agent_id and pod_dir.is_dir() and os.access(pod_dir, os.W_OK):
        return pod_dir, True
    return DEFAULT_STATE_DIR, False


def check_live(credentials: Credentials, alpaca_url: str, *, live: bool, account_id: str = "") -> None:
    """Refuse a live run without a live key and address, a paper run with one of them, and the other API's address.

    Raises:
        ConfigError: saying what does not match.
    """
    host = urlsplit(alpaca_url).hostname or ""
    trading, broker = (_hosts(PAPER_URL, LIVE_URL), _hosts(BROKER_SANDBOX_URL, BROKER_LIVE_URL))
    if account_id and host in trading:
        raise ConfigError(
            "ALPACA_ACCOUNT_ID is set, which is for the Broker API, but ALPACA_URL is the Trading API: "
            "unset ALPACA_ACCOUNT_ID to trade with the key's own account, or unset ALPACA_URL"
        )
    if not account_id and host in broker:
        raise ConfigError(
            "ALPACA_URL is the Broker API, which needs an account: set ALPACA_ACCOUNT_ID, or unset ALPACA_URL"
        )
    if live and host in (trading[0], broker[0]):
        raise ConfigError(
            f"--live is given, but ALPACA_URL is the {_paper_name(account_id)} address: leave out one of them"
        )
    if not live and host in (trading[1], broker[1]):
        raise ConfigError(
            f"ALPACA_URL is the live address, but --live is not given; Dry Work trades {_paper_place(account_id)} "
            "without it"
        )
    if live and credentials.key.startswith("PK"):
        raise ConfigError("--live is given, but ALPACA_API_KEY is a paper key (it begins with PK)")
    if not live and credentials.key.startswith("AK"):
        raise ConfigError("ALPACA_API_KEY is a live key (it begins with AK), but --live is not given")


def _hosts(*urls: str) -> tuple[str, ...]:
    return tuple(urlsplit(url).hostname or "" for url in urls)


def _paper_name(account_id: str) -> str:
    return "sandbox" if account_id else "paper"


def _paper_place(account_id: str) -> str:
    return "in the sandbox" if account_id else "on paper"
