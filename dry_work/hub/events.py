"""What the hub hands on: one event per item of an upstream, numbered per feed, encoded once per format. Pure.

A feed is one upstream stream of events (`FEEDS`); its events count up by one from 1 within an epoch, which is one start
of the hub. Epoch and offset together say where a reader stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from dry_work.market.symbols import is_option

STOCKS, OPTIONS, CRYPTO, NEWS = "stocks", "options", "crypto", "news"
PAPER_ORDERS, LIVE_ORDERS = "orders.paper", "orders.live"
DATA_FEEDS = (STOCKS, OPTIONS, CRYPTO, NEWS)
ORDER_FEEDS = (PAPER_ORDERS, LIVE_ORDERS)
FEEDS = (*DATA_FEEDS, *ORDER_FEEDS)

ORDERS = "orders"  # the channel of order updates; those of market data are named as in Alpaca's subscriptions
WATERMARKS = "watermarks"  # the exchange's word that a slice is complete; for those who ask, without a symbol
UNKNOWN = "unknown"  # items of types that are not known; those who hold anything of the feed may want them
ALL = "*"  # every symbol
LONGEST_STOCK = 14  # characters of a symbol; that of an option has 16 or more

# Types of Alpaca's items (`T`) by the channel that brings them.
CHANNELS: Mapping[str, str] = {
    "t": "trades",
    "q": "quotes",
    "b": "bars",
    "u": "updatedBars",
    "d": "dailyBars",
    "s": "statuses",
    "l": "lulds",
    "o": "orderbooks",
    "n": "news",
    "c": "corrections",
    "x": "cancelErrors",
}
STATUS_CHANNELS = ("statuses", "lulds")  # trading statuses and price bands; of stocks alone
OPTION_BARS = "optionBars"  # wanted of options: the hub makes their bars itself, and tells them as bars of stocks
IMPLIED = ("corrections", "cancelErrors")  # nobody asks for them: they come with the trades

Topic = tuple[str, str, str]  # feed, channel, symbol


class HubEvent(msgspec.Struct, kw_only=True, eq=False, gc=False):
    """One event. `item` is the upstream's, unchanged, and is not to be changed."""

    feed: str
    channel: str
    symbol: str  # canonical; of news the first one, empty when it has none
    item: Mapping[str, Any]
    epoch: str
    offset: int
    ts_recv_ns: int
    event_id: str = ""  # of an order update: the same for every delivery
    symbols: tuple[str, ...] = ()  # of news: all
    raw: bytes = b""  # of an order update: the upstream's own JSON, when it came as such
    encoded: dict[object, Any] = {}

    def encode(self, form: object, encode: Callable[[HubEvent], Any]) -> Any:
        """Return what `encode` makes of this event; it is called once for each `form`, however many readers ask."""
        found = self.encoded.get(form)
        if found is None:
            found = self.encoded[form] = encode(self)
        return found

    @property
    def is_named_only(self) -> bool:
        """Whether it is for those alone who have named its symbol: a bar of an option, told among those of stocks."""
        symbol = self.symbol
        return len(symbol) > LONGEST_STOCK and self.feed == STOCKS and self.channel == "bars" and is_option(symbol)

    @property
    def topics(self) -> tuple[Topic, ...]:
        """What a reader must have asked for, any of it, to get this event; without that of all symbols."""
        return tuple((self.feed, self.channel, symbol) for symbol in self.symbols or (self.symbol,))
