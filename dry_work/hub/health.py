"""Whether the hub is well: which feeds and which servers it needs, and how they stand. Pure.

A feed is required while an interface that always needs it is on, which is so for order updates, or while a client holds
something of it. A feed that nobody needs may be closed without harm.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from dry_work.hub.core import OPTION_FEEDS, ConnectionState
from dry_work.hub.events import LIVE_ORDERS, PAPER_ORDERS
from dry_work.hub.ports import SinkStatus, TopicStatus
from dry_work.hub.upstreams.connection import FeedStatus
from dry_work.settings import STOCK_FEEDS

SIP, OPRA, TRADING = "sip", "opra", "trading"
FIXED = (SIP, OPRA, TRADING)  # always told of, whatever is behind them
HEALTHY, DEGRADED, UNHEALTHY = "healthy", "degraded", "unhealthy"


class HealthReport(msgspec.Struct, frozen=True, kw_only=True):
    """How the hub is at one moment."""

    status: str
    is_ready: bool  # any required feed is connected, or none is required
    is_all_ready: bool  # every required feed, and every server that the hub depends on
    feeds: Mapping[str, FeedStatus]  # by name in what is told
    required: frozenset[str]  # names of feeds
    dependencies: Mapping[str, str]  # servers by name, with the reason why they are down; empty when up


def name_feeds(feeds: Sequence[FeedStatus], environment: str) -> dict[str, FeedStatus]:
    """Return feeds by the name that they are told under.

    Args:
        environment: paper or live: the account that is `trading` when there are both.
    """
    main = PAPER_ORDERS if environment == "paper" else LIVE_ORDERS
    orders = [feed.feed for feed in feeds if feed.feed in (PAPER_ORDERS, LIVE_ORDERS)]
    if orders and main not in orders:
        main = orders[0]
    return {_name_feed(feed.feed, main): feed for feed in feeds}


def _name_feed(feed: str, main_orders: str) -> str:
    if feed in STOCK_FEEDS:
        return SIP
    if feed in OPTION_FEEDS:
        return OPRA
    if feed in (PAPER_ORDERS, LIVE_ORDERS):
        return TRADING if feed == main_orders else f"{TRADING}_{feed.rpartition('.')[2]}"
    return feed


def assess_health(
    feeds: Sequence[FeedStatus],
    *,
    sinks: Sequence[SinkStatus] = (),
    topics: Sequence[TopicStatus] = (),
    accounts: Mapping[str, str] | None = None,
    environment: str = "paper",
) -> HealthReport:
    """Return how the hub is.

    Args:
        accounts: Alpaca's trading API by account, with the reason why it cannot be used; empty when it can.
        environment: paper or live: the account that is `trading` when there are both.
    """
    named = name_feeds(feeds, environment)
    required = frozenset(name for name, feed in named.items() if feed.wanted)
    connected = [name for name in required if named[name].state is ConnectionState.CONNECTED]
    dependencies = {f"alpaca.{account}": error for account, error in (accounts or {}).items()}
    dependencies.update((sink.name, "" if sink.is_ready else sink.error or "not ready") for sink in sinks)
    dependencies.update((f"pubsub.{topic.topic}", topic.error) for topic in topics)
    missing = len(required) - len(connected)
    status = HEALTHY if not missing else DEGRADED if connected else UNHEALTHY
    return HealthReport(
        status=status,
        is_ready=status != UNHEALTHY,
        is_all_ready=status == HEALTHY and not any(dependencies.values()),
        feeds=named,
        required=required,
        dependencies=dependencies,
    )


def build_document(
    report: HealthReport, *, version: str, now_ns: int, uptime_s: float, clients: int, receivers: int, is_draining: bool
) -> dict[str, Any]:
    """Return the health as `/health` tells it.

    Args:
        clients: connected to all interfaces.
        receivers: queues that wait for events.
    """
    moment = dt.datetime.fromtimestamp(now_ns // 1_000_000_000, dt.UTC)
    fixed = {name: FeedStatus(feed=name) for name in FIXED}
    return {
        "status": report.status,
        "version": version,
        "uptime_secs": int(uptime_s),
        "current_time": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "feeds": {
            name: {
                "state": str(feed.state),
                "connected": feed.state is ConnectionState.CONNECTED,
                "messages_received": feed.messages,
                "reconnect_attempts": feed.attempts,
                "required": name in report.required,
                "error": feed.error,
            }
            for name, feed in {**fixed, **report.feeds}.items()
        },
        "clients": {"total": clients},
        "subscriptions": {"broadcast_receivers": receivers},
        "dependencies": {
            name: {"up": not error, **({"error": error} if error else {})}
            for name, error in report.dependencies.items()
        },
        "draining": is_draining,
    }
