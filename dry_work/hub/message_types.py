"""What an event is called where counts are told: its type of message. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from operator import attrgetter

from dry_work.hub.events import CHANNELS, CRYPTO, NEWS, OPTIONS, ORDER_FEEDS, STOCKS, UNKNOWN, WATERMARKS, HubEvent

ORDER_UPDATE = "order_update"
OTHER = "other"  # of what an interface counts without a type

_PREFIXES = {STOCKS: "stock_", OPTIONS: "option_", CRYPTO: "crypto_", NEWS: ""}
_NAMES = {
    "trades": "trade",
    "quotes": "quote",
    "bars": "bar",
    "updatedBars": "updated_bar",
    "dailyBars": "daily_bar",
    "statuses": "status",
    "lulds": "luld",
    "orderbooks": "orderbook",
    "news": "news",
    "corrections": "correction",
    "cancelErrors": "cancel_error",
    WATERMARKS: "watermark",
    UNKNOWN: UNKNOWN,
}

Kind = tuple[str, str]  # feed and channel

read_kind = attrgetter("feed", "channel")


def message_type(feed: str, channel: str) -> str:
    """Return the type of the messages of a feed's channel: stock_quote, option_trade, news, order_update, …"""
    if feed in ORDER_FEEDS:
        return ORDER_UPDATE
    return _PREFIXES.get(feed, "") + _NAMES.get(channel, UNKNOWN)


def item_type(feed: str, kind: str) -> str:
    """Return the type of messages that Alpaca's items of type `T` of a feed become."""
    return message_type(feed, CHANNELS.get(kind, UNKNOWN))


def count_kinds(events: Iterable[HubEvent]) -> Counter[Kind]:
    """Return how many events there are of each feed and channel."""
    return Counter(map(read_kind, events))


def name_counts(counts: Mapping[Kind, int]) -> dict[str, int]:
    """Return counts by type of message."""
    named: Counter[str] = Counter()
    for (feed, channel), count in counts.items():
        named[message_type(feed, channel)] += count
    return dict(named)
