"""The hub's metrics, made of its own counts whenever somebody asks for them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from dry_work.hub.core import OPTION_FEEDS, ConnectionState
from dry_work.hub.events import CRYPTO, NEWS, OPTIONS, ORDER_FEEDS, STOCKS, WATERMARKS
from dry_work.hub.health import FIXED, name_feeds
from dry_work.hub.message_types import ORDER_UPDATE, OTHER, item_type, message_type
from dry_work.hub.ports import SinkStatus, TopicStatus
from dry_work.hub.upstreams.connection import FeedStatus
from dry_work.observability.metrics import COUNTER, GAUGE, HISTOGRAM, Metric, encode_metrics
from dry_work.settings import STOCK_FEEDS

_PREFIX = "alpaca_proxy_"


class HubCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What the metrics are made of."""

    feeds: Sequence[FeedStatus]
    sinks: Sequence[SinkStatus] = ()
    topics: Sequence[TopicStatus] = ()
    topic_types: Mapping[str, str] = {}  # types of messages by topic
    option_bars: Mapping[str, int] = {}  # the counters of `OptionBars`
    environment: str = "paper"


def build_feed_metrics(counts: HubCounts) -> list[Metric]:
    """Return what the upstream connections have done."""
    received = Metric(f"{_PREFIX}messages_received_total", COUNTER, "Messages taken from Alpaca.")
    connections = Metric(f"{_PREFIX}websocket_connections", GAUGE, "Connections to Alpaca that are up.")
    subscribed = Metric(f"{_PREFIX}subscriptions_total", GAUGE, "Subscriptions that Alpaca has confirmed.")
    errors = Metric(f"{_PREFIX}websocket_errors_total", COUNTER, "Errors of the connections to Alpaca.")
    reconnects = Metric(f"{_PREFIX}reconnects_total", COUNTER, "Connections to Alpaca after the first of a feed.")
    seconds = Metric(
        f"{_PREFIX}message_processing_seconds",
        HISTOGRAM,
        "Time from a frame's arrival until its messages wait for each of their clients.",
    )
    named = name_feeds(counts.feeds, counts.environment)
    for name, feed in {**{name: FeedStatus(feed=name) for name in FIXED}, **named}.items():
        for kind, count in _count_received(feed).items():
            received.add(count, feed=name, message_type=kind)
        connections.add(int(feed.state is ConnectionState.CONNECTED), feed=name)
        subscribed.add(feed.subscribed, feed=name)
        for kind, count in _count_errors(feed).items():
            errors.add(count, feed=name, error_type=kind)
        reconnects.add(feed.reconnects, feed=name)
        if feed.processing is not None:
            seconds.add_histogram(feed.processing, feed=name)
    return [received, connections, subscribed, errors, reconnects, seconds]


def _count_received(feed: FeedStatus) -> Counter[str]:
    kind = _kind_of(feed.feed)
    if kind in ORDER_FEEDS:
        return Counter({ORDER_UPDATE: feed.messages})
    # The types that are there in any case, so that a series begins with 0 and not with its first message.
    found = Counter({item_type(kind, letter): 0 for letter in _USUAL.get(kind, "")})
    for letter, count in (*feed.items.items(), *feed.unknown.items()):
        found[item_type(kind, letter)] += count
    if feed.watermarks:
        found[message_type(kind, WATERMARKS)] += feed.watermarks
    return found


_USUAL = {STOCKS: "qtb", OPTIONS: "qt", CRYPTO: "qtb", NEWS: "n"}


def _kind_of(name: str) -> str:
    """Return the feed (stocks, options, …) of a connection's or a told name."""
    if name in STOCK_FEEDS:
        return STOCKS
    if name in OPTION_FEEDS:
        return OPTIONS
    return ORDER_FEEDS[0] if name.startswith(("orders.", "trading")) else name


def _count_errors(feed: FeedStatus) -> Counter[str]:
    found = Counter({"lost": 0, "fatal": 0, "malformed": sum(feed.malformed.values())})
    if _kind_of(feed.feed) in ORDER_FEEDS:
        found["behind"] = 0
    found.update(feed.ends)
    found.update({f"code_{code}": count for code, count in feed.errors.items()})
    return found


def build_client_metrics(counts: HubCounts) -> list[Metric]:
    """Return what the interfaces have done for their clients."""
    usual = dict.fromkeys((*_list_usual(), ORDER_UPDATE), 0)
    sent, dropped = Counter(usual), Counter(usual)
    for sink in counts.sinks:
        sent.update(_complete(sink.delivered_types, sink.delivered))
        dropped.update(_complete(sink.dropped_types, sink.dropped))
    for topic in counts.topics:
        kind = counts.topic_types.get(topic.topic, OTHER)
        sent[kind] += topic.published
        dropped[kind] += topic.dropped
    messages_sent = Metric(f"{_PREFIX}messages_sent_total", COUNTER, "Messages given to clients and servers.")
    messages_dropped = Metric(f"{_PREFIX}messages_dropped_total", COUNTER, "Messages that a client did not get.")
    for metric, found in ((messages_sent, sent), (messages_dropped, dropped)):
        for kind, count in found.items():
            metric.add(count, message_type=kind)
    conflated = Metric(
        f"{_PREFIX}messages_conflated_total", COUNTER, "Messages left out for a newer one of the same symbol."
    )
    clients = Metric(f"{_PREFIX}clients", GAUGE, "Clients by interface.")
    for sink in counts.sinks:
        conflated.add(sink.conflated, sink=sink.name)
        clients.add(sink.clients, sink=sink.name)
    grpc_clients = Metric(f"{_PREFIX}grpc_clients", GAUGE, "Streams that gRPC clients have open.")
    grpc_clients.add(sum(sink.clients for sink in counts.sinks if sink.name == "grpc"))
    return [messages_sent, messages_dropped, conflated, grpc_clients, clients]


def _list_usual() -> list[str]:
    return [item_type(kind, letter) for kind in (STOCKS, OPTIONS) for letter in _USUAL[kind]]


def _complete(types: Mapping[str, int], total: int) -> Counter[str]:
    """Return counts by type of message; what an interface does not tell the type of is `other`."""
    found = Counter(types)
    if (rest := total - found.total()) > 0:
        found[OTHER] += rest
    return found


_OPTION_TRADES = {
    "trades": "in_bar",
    "late_trades": "late",
    "taken_back": "taken_back",
    "malformed_trades": "malformed",
}


def build_option_metrics(counts: HubCounts) -> list[Metric]:
    """Return what has become of the trades of options whose bars are wanted."""
    found = counts.option_bars
    trades = Metric(f"{_PREFIX}option_trades_total", COUNTER, "Trades of options whose bars are wanted, by outcome.")
    for name, outcome in _OPTION_TRADES.items():
        trades.add(found.get(name, 0), outcome=outcome)
    bars = Metric(f"{_PREFIX}option_bars_total", COUNTER, "Bars made of trades of options.")
    incomplete = Metric(
        f"{_PREFIX}option_minutes_incomplete_total", COUNTER, "Minutes without a bar, as not all of them was heard."
    )
    return [trades, bars.add(found.get("bars", 0)), incomplete.add(found.get("incomplete_minutes", 0))]


# Metric, what it counts, and which results of the NATS interface those are: by action, those accepted or those not.
_ACTIONS = (
    ("nalpaca_canceler_cancel_count", "Orders canceled.", "cancel", True),
    ("nalpaca_canceler_order_cancel_errs", "Cancellations of an order that failed.", "cancel", False),
    ("nalpaca_canceler_cancel_all_count", "Cancellations of all orders.", "cancel_all", True),
    ("nalpaca_canceler_cancel_all_errs", "Cancellations of all orders that failed.", "cancel_all", False),
    ("nalpaca_orders_orders_created_count", "Orders created.", "order", True),
    ("nalpaca_orders_orders_failed_count", "Orders that could not be created.", "order", False),
)
_ACCEPTED = ("accepted", "duplicate")


def build_nats_metrics(counts: HubCounts) -> list[Metric]:
    """Return what the NATS interface has done."""
    actions: Counter[tuple[str, bool]] = Counter()
    failures: Counter[str] = Counter()
    for sink in counts.sinks:
        for (action, outcome), count in sink.results.items():
            actions[action, outcome in _ACCEPTED] += count
        failures.update(sink.failures)
    metrics = [Metric(name, COUNTER, text).add(actions[action, is_good]) for name, text, action, is_good in _ACTIONS]
    marshal, publish = failures["marshal"], failures["publish"]
    prefix = "nalpaca_stocks_stream_"
    return [
        *metrics,
        Metric(f"{prefix}total_err", COUNTER, "Bars that could not be published.").add(marshal + publish),
        Metric(f"{prefix}marshal_err", COUNTER, "Bars that could not be encoded.").add(marshal),
        Metric(f"{prefix}pub_err", COUNTER, "Bars that NATS did not take.").add(publish),
    ]


Builder = Callable[[HubCounts], list[Metric]]
BUILDERS: tuple[Builder, ...] = (
    build_feed_metrics,
    build_client_metrics,
    build_option_metrics,
    build_nats_metrics,
)


def encode_hub_metrics(
    counts: HubCounts, *, on_error: Callable[[Exception], None] | None = None, builders: Iterable[Builder] = BUILDERS
) -> bytes:
    """Return all metrics as text.

    Args:
        on_error: called when a part of them cannot be built; the others go on. None: the error is raised.
    """
    metrics: list[Metric] = []
    for build in builders:
        try:
            metrics += build(counts)
        except Exception as error:
            if on_error is None:
                raise
            on_error(error)
    return encode_metrics(metrics)
