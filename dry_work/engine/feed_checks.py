"""The parts of a diagnosis that look at the way of the market data: Pub/Sub, or an interface of the hub. One thread.

Each request has a time-out. Nothing is changed, but for a subscription that is made and ended at once: a run needs the
right to do so, and there is no other way to tell.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

from dry_work.engine.findings import Finding, Outcome, Subject, failed, ok, warning
from dry_work.errors import ConfigError, FeedError
from dry_work.feeds.addresses import read_feed_settings
from dry_work.feeds.lease_holder import read_holder
from dry_work.market.symbols import is_crypto
from dry_work.settings import CRYPTO_TOPIC, MARKET_TOPIC, FeedSettings

_PROBE_SYMBOL = "SPY"  # asked for where the symbols are not known
_LEFT_NAMED = 3


def check_feed(subject: Subject) -> Iterator[Finding]:
    """Look at the way of market data that a run would take."""
    try:
        settings = read_feed_settings(subject.environment, subject.feed)
    except ConfigError as error:
        yield failed("market data feed", str(error), "correct that setting")
        return
    if settings.name == "pubsub":
        yield from check_pubsub(subject)
    else:
        yield check_hub(subject, settings)


# The hub


def check_hub(subject: Subject, settings: FeedSettings) -> Finding:
    """Open a session of each kind that a run would have, and end it."""
    from dry_work.feeds.choice import build_transport
    from dry_work.feeds.hub_link import CRYPTO, STOCKS

    part = f"hub over {settings.name}"
    try:
        symbols = subject.wanted_symbols() or [_PROBE_SYMBOL]
    except ConfigError:
        symbols = [_PROBE_SYMBOL]
    where = ""
    try:
        client = f"check-{secrets.token_hex(4)}"
        transport = build_transport(settings, symbols=symbols, client=client, silence_s=subject.timeout_s)
        where = transport.describe()
        for feeds in transport.lanes(list(dict.fromkeys(CRYPTO if is_crypto(each) else STOCKS for each in symbols))):
            _open_session(transport.build_session(feeds, {}), subject.timeout_s)
    except ConfigError as error:
        return failed(part, str(error), _name_setting(settings))
    except FeedError as error:
        remedy = f"start it with `dry-work hub --sinks {_SINKS[settings.name]}`, and look at {_name_setting(settings)}"
        return failed(part, f"no hub answers at {where}: {error}", remedy)
    return ok(part, f"answers at {where}, and {len(symbols)} symbols can be subscribed to")


def _open_session(session: Any, timeout_s: float) -> None:
    """Begin a session and end it.

    Raises:
        ConfigError: it is refused.
        FeedError: it cannot be begun in time.
    """
    # Not every library takes a time-out for all that it does at the beginning.
    guard = threading.Timer(timeout_s, session.interrupt)
    guard.daemon = True
    guard.name = "check-guard"
    begun_s = time.monotonic()
    guard.start()
    try:
        session.begin(timeout_s)
    except FeedError as error:
        if time.monotonic() - begun_s >= timeout_s:
            raise FeedError(f"no answer within {timeout_s:g} s") from error
        raise
    finally:
        guard.cancel()
        session.close(for_good=True)


_SINKS = {"ws": "websocket", "grpc": "grpc", "nats": "nats", "redis": "redis"}


def _name_setting(settings: FeedSettings) -> str:
    names = {
        "ws": "STREAM_PROXY_WS_URL and HUB_TOKEN",
        "grpc": "STREAM_PROXY_ENDPOINT and HUB_TOKEN",
        "nats": "NATS_URL, NATS_USER and NATS_PASSWORD",
        "redis": "REDIS_HOST, REDIS_PORT and REDIS_PASSWORD",
    }
    return names[settings.name]


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
        topics = wanted_topics(subject)
        found = [finding for topic in topics for finding in check_topic(subscriber, subject, topic)]
        yield from found
        if subject.agent_id and all(finding.outcome is not Outcome.FAILED for finding in found):
            yield from check_leftovers(subscriber, subject, topics)
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
        made = f"is there and ours, made by {describe_owner(existing.labels)}"
        if read_holder(subject.state_path() / f"agent-{agent_id}.lock").is_alive is False:
            made += ", which ended without deleting it; the next run makes it anew"
        yield ok(part, made)
        return
    yield warning(
        part,
        f"belongs to another state directory: {describe_owner(existing.labels)}",
        "stop that process, or choose another AGENT_ID; if it is gone, start with --take-over",
    )


def check_leftovers(subscriber: Any, subject: Subject, topics: list[str]) -> Iterator[Finding]:
    """Tell of subscriptions of the agent that a run of this folder would not use; they keep what is published."""
    from dry_work.feeds.subscriptions import subscription_id

    agent_id = subject.agent_id
    wanted = {subscription_id(agent_id, topic) for topic in topics}
    try:
        left = [name for name in subscriber.list_names(prefix=f"agent-{agent_id}-") if name not in wanted]
    except (FeedError, ConfigError):
        return  # the right to list them is not needed for a run
    if not left:
        return
    more = f" and {len(left) - _LEFT_NAMED} more" if len(left) > _LEFT_NAMED else ""
    yield warning(
        "subscriptions",
        f"on topics that are not read here: {', '.join(left[:_LEFT_NAMED])}{more}; of another run, or left over",
        f"if no run uses it: gcloud pubsub subscriptions delete {left[0]} --project {subscriber.project_id}",
    )


def read_nonce(subject: Subject, agent_id: str) -> str | None:
    """Return what marks the subscriptions of the agent in this state directory; None before its first run."""
    try:
        return (subject.state_path() / f"agent-{agent_id}.owner").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
