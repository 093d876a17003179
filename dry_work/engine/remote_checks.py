"""The parts of a diagnosis that ask over the network: venue, market data, Pub/Sub. Each function on one thread.

Each request has a time-out. Nothing is changed, but for a subscription that is made and deleted at once: a run needs
the right to do so, and there is no other way to tell.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import requests

from dry_work.addresses import is_loopback_url
from dry_work.alpaca.deadlines import DeadlineAdapter
from dry_work.alpaca.simulated import is_alpaca
from dry_work.clock import SECOND_NS, Clock
from dry_work.engine.findings import Finding, Subject, failed, ok, warning
from dry_work.errors import BrokerError, CodecError, ConfigError, FeedError
from dry_work.market.symbols import is_crypto
from dry_work.settings import (
    BROKER_LIVE_URL,
    BROKER_SANDBOX_URL,
    CRYPTO_TOPIC,
    LIVE_URL,
    MARKET_TOPIC,
    PAPER_URL,
    Credentials,
    check_live,
    read_credentials,
)
from dry_work.wire.alpaca_rest import parse_account, parse_error
from dry_work.wire.pubsub import parse_time

SKEW_WARNING_S = 2.0
SKEW_FAILED_S = 30.0
RATE_WARNING = 0.1  # of the requests a minute, left

# The venue


def read_keys(subject: Subject) -> Credentials:
    """Return the credentials.

    Raises:
        ConfigError: when they are missing or do not go with the venue's address.
    """
    keys = read_credentials(subject.environment)
    check_live(keys, subject.alpaca_url, live=subject.live, account_id=subject.account_id)
    return keys


class Web:
    """Requests with credentials and a time-out.

    Args:
        basic: give the credentials by HTTP Basic, as the Broker API wants them.
    """

    def __init__(self, keys: Credentials, base_url: str, *, timeout_s: float, basic: bool = False) -> None:
        self._base_url = base_url
        self._timeout_s = timeout_s
        self._session = requests.Session()
        self._session.trust_env = not is_loopback_url(base_url)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, DeadlineAdapter())
        if basic:
            self._session.auth = (keys.key, keys.secret)
        else:
            self._session.headers.update({"APCA-API-KEY-ID": keys.key, "APCA-API-SECRET-KEY": keys.secret})

    def __enter__(self) -> Web:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def get(self, path: str, **query: str) -> requests.Response:
        return self._session.get(
            self._base_url + path, params=query, timeout=(self._timeout_s, self._timeout_s), allow_redirects=False
        )


def check_venue(subject: Subject, clock: Clock) -> Iterator[Finding]:
    """Look at the account, the rate limit, the clock and the symbols."""
    try:
        url, account_id = subject.alpaca_url, subject.account_id
        keys = read_keys(subject)
    except ConfigError as error:
        yield failed("account", str(error), "set ALPACA_API_KEY and ALPACA_SECRET_KEY; `--local` runs need none")
        return
    with Web(keys, url, timeout_s=subject.timeout_s, basic=bool(account_id)) as web:
        try:
            answer = web.get(f"/v1/trading/accounts/{account_id}/account" if account_id else "/v2/account")
        except requests.RequestException as error:
            yield failed(
                "account",
                f"{url} does not answer ({type(error).__name__})",
                "look at the network, and at ALPACA_URL; is the exchange running?",
            )
            return
        yield describe_account(answer, url, account_id=account_id)
        yield describe_rate_limit(answer.headers)
        if answer.status_code != 200:
            return
        yield check_clock(web, url, clock, path="/v1/clock" if account_id else "/v2/clock")
    yield check_symbols(subject, keys, url)


def describe_account(answer: requests.Response, url: str, *, account_id: str = "") -> Finding:
    """Return what the venue says of the account, that of the Broker API with `account_id`."""
    if account_id and answer.status_code in (401, 403, 404, 422):
        return failed(
            "account",
            f"{url} has no account {mask_id(account_id)} for these credentials (HTTP {answer.status_code})",
            "give keys of the Broker API and one of its accounts, "
            "or unset ALPACA_ACCOUNT_ID to trade with the key's own account",
        )
    if answer.status_code in (401, 403):
        return failed(
            "account",
            f"{url} refused the credentials (HTTP {answer.status_code})",
            "make new keys in Alpaca's dashboard, paper keys for the paper address and live keys for the live one",
        )
    if answer.status_code != 200:
        what = parse_error(answer.text)[1] or "no reason given"
        return failed(
            "account", f"{url}: HTTP {answer.status_code}, {what[:200]}", "try again later; is ALPACA_URL right?"
        )
    try:
        account = parse_account(answer.json())
    except (CodecError, ValueError) as error:
        return failed("account", f"{url}: the answer is no account ({error})", "is ALPACA_URL right?")
    kinds = {PAPER_URL: "paper", BROKER_SANDBOX_URL: "Broker API, sandbox"}
    kinds |= dict.fromkeys((LIVE_URL, BROKER_LIVE_URL), "LIVE, real money")
    kind = kinds.get(url, f"at {urlsplit(url).netloc}")
    text = f"{mask_id(account.account_number or account.id)}, {kind}, {account.status.lower()}"
    if account.trading_blocked:
        return failed("account", f"{text}, trading is blocked", "ask Alpaca's support why it is blocked")
    if account.status.upper() != "ACTIVE":
        return warning("account", text, "orders may be refused until Alpaca has made the account active")
    return ok("account", text)


def mask_id(text: str) -> str:
    """Return the last four characters of an id, the others hidden."""
    return f"…{text[-4:]}" if len(text) > 4 else "…"


def describe_rate_limit(headers: Mapping[str, str]) -> Finding:
    """Return how many requests of this minute are left."""
    try:
        limit, left = int(headers["X-RateLimit-Limit"]), int(headers["X-RateLimit-Remaining"])
    except (KeyError, ValueError):
        return ok("rate limit", "the venue does not tell of one")
    text = f"{left} of {limit} requests a minute are left"
    if left < limit * RATE_WARNING:
        return warning("rate limit", text, "run fewer programs on this key, or wait a minute")
    return ok("rate limit", text)


def check_clock(web: Web, url: str, clock: Clock, *, path: str = "/v2/clock") -> Finding:
    """Compare this machine's clock with the venue's."""
    try:
        session = None if is_alpaca(url) else web.get("/dry-work/v1/session")
        before_ns = clock.time_ns()
        answer = web.get(path)
        after_ns = clock.time_ns()
        text = str(answer.json()["timestamp"])
        venue_ns = parse_time(text)
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        return warning("clock", f"{url} does not tell its time ({type(error).__name__})", "is ALPACA_URL right?")
    if session is not None and session.status_code == 200:
        return ok("clock", f"a simulated exchange has its own time, {text[:19]}: not compared with this machine's")
    return describe_skew((venue_ns - (before_ns + after_ns) // 2) / SECOND_NS, (after_ns - before_ns) / SECOND_NS)


def describe_skew(skew_s: float, round_trip_s: float) -> Finding:
    """Return what a difference of the clocks means; it is known to half of the round trip."""
    text = (
        f"the venue's clock is {abs(skew_s):.2f} s {'ahead' if skew_s > 0 else 'behind'} (± {round_trip_s / 2:.2f} s)"
    )
    sure_s = max(abs(skew_s) - round_trip_s / 2, 0.0)
    remedy = "set this machine's clock, for example with `timedatectl set-ntp true`"
    if sure_s > SKEW_FAILED_S:
        return failed("clock", text, remedy)
    return warning("clock", text, remedy) if sure_s > SKEW_WARNING_S else ok("clock", text)


def check_symbols(subject: Subject, keys: Credentials, url: str) -> Finding:
    """Tell whether the venue trades the symbols."""
    from dry_work.alpaca import assets
    from dry_work.alpaca.venues import open_venue

    try:
        symbols = subject.wanted_symbols()
    except ConfigError:
        return warning("symbols", "not looked up, since the symbols file cannot be read", "see the symbols file")
    venue = open_venue(
        keys.key,
        keys.secret,
        url=url,
        account_id=subject.account_id,
        paper=not subject.live,
        timeout_s=subject.timeout_s,
    )
    api = venue.open_api()
    try:
        assets.check_symbols(symbols, api)
    except ConfigError as error:
        return failed("symbols", str(error), "correct or take out what the venue does not trade")
    except BrokerError as error:
        return failed("symbols", f"{url}: {error}", "try again later; is ALPACA_URL right?")
    finally:
        api.close()
    return ok("symbols", "known to the venue and traded")


# Market data


def check_market_data(subject: Subject) -> Iterator[Finding]:
    """Ask for a bar of each kind of symbol, from the feed that would be used."""
    try:
        url, keys = subject.data_url, read_keys(subject)
    except ConfigError:
        return  # told with the account
    try:
        symbols = subject.wanted_symbols()
    except ConfigError:
        symbols = ["SPY"]
    with Web(keys, url, timeout_s=subject.timeout_s, basic=bool(subject.account_id)) as web:
        for name, path, query in build_data_requests(symbols, url=url, feed=subject.variable("ALPACA_FEED") or "iex"):
            try:
                answer = web.get(path, **query)
            except requests.RequestException as error:
                what = f"{url} does not answer ({type(error).__name__})"
                yield failed("market data", what, "look at the network, and at ALPACA_DATA_URL")
                return
            yield describe_entitlement(answer, name)


def build_data_requests(symbols: Sequence[str], *, url: str, feed: str) -> list[tuple[str, str, dict[str, str]]]:
    """Return (name of the data, path, query) of the requests that show whether there is market data for `symbols`.

    At Alpaca the newest bars are asked for, since old ones of every feed can be read without a subscription.
    """
    wanted: list[tuple[str, str, dict[str, str]]] = []
    latest = is_alpaca(url)
    history = {} if latest else {"timeframe": "1Min", "limit": "1"}
    stocks = [symbol for symbol in symbols if not is_crypto(symbol)]
    crypto = [symbol for symbol in symbols if is_crypto(symbol)]
    if stocks:
        path = "/v2/stocks/bars/latest" if latest else "/v2/stocks/bars"
        wanted.append((f"stock bars ({feed})", path, {"symbols": stocks[0], "feed": feed, **history}))
    if crypto:
        path = "/v1beta3/crypto/us/latest/bars" if latest else "/v1beta3/crypto/us/bars"
        wanted.append(("crypto bars", path, {"symbols": crypto[0], **history}))
    return wanted


def describe_entitlement(answer: requests.Response, name: str) -> Finding:
    """Return whether the market data called `name` may be read."""
    if answer.status_code == 200:
        return ok(name, "can be read")
    reason = parse_error(answer.text)[1] or "no reason given"
    text = f"HTTP {answer.status_code}, {reason[:200]}"
    if answer.status_code in (401, 403):
        return failed(name, text, "set ALPACA_FEED=iex, which needs no subscription, or subscribe at Alpaca")
    if answer.status_code in (400, 422):
        return failed(name, text, "set ALPACA_FEED to iex, sip or delayed_sip")
    return warning(name, text, "try again later; is ALPACA_DATA_URL right?")


# Pub/Sub


def check_pubsub(subject: Subject) -> Iterator[Finding]:
    """Look at the topics of the symbols and at the agent's subscriptions on them."""
    from dry_work.feeds.subscriber import Subscriber

    project = subject.variable("GOOGLE_CLOUD_PROJECT")
    if not project:
        yield failed("Pub/Sub", "no Google Cloud project", "set GOOGLE_CLOUD_PROJECT; `--local` runs need none")
        return
    endpoint = subject.variable("PUBSUB_EMULATOR_HOST") or None
    try:
        subscriber = Subscriber(project, endpoint=endpoint, timeout_s=subject.timeout_s)
    except ConfigError as error:
        yield failed("Pub/Sub", str(error), "give this machine credentials of Google Cloud, or name an emulator")
        return
    try:
        for topic in wanted_topics(subject):
            yield from check_topic(subscriber, subject, topic)
    finally:
        subscriber.close()


def wanted_topics(subject: Subject) -> list[str]:
    """Return the topics that a run reads; both when its symbols are not known."""
    market = subject.variable("MARKET_DATA_TOPIC", default=MARKET_TOPIC)
    crypto = subject.variable("CRYPTO_DATA_TOPIC", default=CRYPTO_TOPIC)
    try:
        symbols = subject.wanted_symbols()
    except ConfigError:
        return [market, crypto]
    return list(dict.fromkeys(crypto if is_crypto(symbol) else market for symbol in symbols))


def check_topic(subscriber: Any, subject: Subject, topic: str) -> Iterator[Finding]:
    """Tell whether the topic is there and can be subscribed to, and whose the agent's subscription on it is."""
    from dry_work.feeds.subscriber import MissingTopicError
    from dry_work.feeds.subscriptions import OWNER_LABEL, describe_owner, subscription_id

    part = f"topic {topic}"
    where = f"in project {subscriber.project_id} at {subscriber.target}"
    agent_id = subject.agent_id
    probe = f"check-{secrets.token_hex(8)}"
    try:
        existing = subscriber.find(subscription_id(agent_id, topic)) if agent_id else None
        subscriber.create(probe, topic, labels={"dry-work": "check"})
        subscriber.delete(probe)
    except MissingTopicError:
        remedy = f"gcloud pubsub topics create {topic} --project {subscriber.project_id}"
        yield failed(part, f"does not exist {where}", f"start the publisher (`dry-work hub`), or run `{remedy}`")
        return
    except ConfigError as error:
        yield failed(part, str(error), "give this account the role Pub/Sub Editor on the project, or correct the name")
        return
    except FeedError as error:
        fixes = ("look at the network", "is PUBSUB_EMULATOR_HOST right, and the server running?")
        remedy = fixes[bool(subject.variable("PUBSUB_EMULATOR_HOST"))]
        yield failed(part, f"Pub/Sub does not answer: {error}", remedy)
        return
    yield ok(part, f"is there {where}, and can be subscribed to")
    if not agent_id:
        return
    part = f"subscription {subscription_id(agent_id, topic)}"
    if existing is None:
        yield ok(part, "not there; a run makes it, and deletes it when it ends")
        return
    owner = existing.labels.get(OWNER_LABEL)
    if owner is None or owner == read_nonce(subject, agent_id):
        yield ok(part, f"is there and ours, made by {describe_owner(existing.labels)}")
        return
    yield warning(
        part,
        f"belongs to another state directory: {describe_owner(existing.labels)}",
        "stop that process, or choose another AGENT_ID; if it is gone, start with --take-over",
    )


def read_nonce(subject: Subject, agent_id: str) -> str | None:
    """Return what marks the subscriptions of the agent in this state directory; None before its first run."""
    try:
        return (subject.state_path() / f"agent-{agent_id}.owner").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
