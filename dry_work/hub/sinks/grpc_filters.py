"""What a call of `cream.v1.StreamProxyService` asks for: its stream, its filter, its position. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from dry_work.errors import ConfigError
from dry_work.hub.core import bar_feed, feed_of, status_topics
from dry_work.hub.events import ALL, CRYPTO, OPTIONS, ORDERS, STOCKS, WATERMARKS, HubEvent, Topic
from dry_work.hub.queues import Overflow
from dry_work.market.symbols import ALLOWED, is_crypto, is_option, is_symbol
from dry_work.proto.cream.v1 import stream_proxy_pb2 as cream
from dry_work.wire.cream import (
    Item,
    Losses,
    build_option_quote,
    build_option_trade,
    build_order_update,
    build_stock_bar,
    build_stock_quote,
    build_stock_trade,
)

OCC_TAIL = 15  # characters of an OCC symbol behind its root: date, side and strike

EPOCH_KEY = "x-dry-work-epoch"
OFFSET_KEY = "x-dry-work-offset"
SNAPSHOT_KEY = "x-dry-work-snapshot"
OFFSETS_KEY = "x-dry-work-offsets"
ITEMS_KEY = "x-dry-work-items"
STATUSES_KEY = "x-dry-work-statuses"
RECOVERED_KEY = "x-dry-work-recovered"
DROPPED_KEY = "x-dry-work-dropped"
CONFLATED_KEY = "x-dry-work-conflated"

_ROOT = re.compile(r"[A-Z][A-Z0-9]{0,5}")
_OFFSET = re.compile(r"[0-9]{1,18}")


class StreamKind(msgspec.Struct, frozen=True, kw_only=True):
    """One of the service's streams."""

    method: str
    message_type: str  # in metrics
    feed: str  # empty: of the account whose orders are told
    channel: str
    request: Any
    capacity: int  # events that may wait for a client
    overflow: Overflow
    history: str  # which setting says how many events a client can go back
    build: Callable[[Item, str, Losses], Any]  # item, event id, losses

    @property
    def tells_orders(self) -> bool:
        """Tell whether it is of the account's orders, of which no event may be lost."""
        return not self.feed


def _of_item(build: Callable[[Item, Losses], Any]) -> Callable[[Item, str, Losses], Any]:
    return lambda item, _, losses: build(item, losses)


KINDS = (
    StreamKind(
        method="StreamQuotes",
        message_type="stock_quote",
        feed=STOCKS,
        channel="quotes",
        request=cream.StreamQuotesRequest,
        capacity=1_024,
        overflow=Overflow.CONFLATE,
        history="stock_quotes_capacity",
        build=_of_item(build_stock_quote),
    ),
    StreamKind(
        method="StreamTrades",
        message_type="stock_trade",
        feed=STOCKS,
        channel="trades",
        request=cream.StreamTradesRequest,
        capacity=1_024,
        overflow=Overflow.DROP_OLDEST,
        history="stock_trades_capacity",
        build=_of_item(build_stock_trade),
    ),
    StreamKind(
        method="StreamBars",
        message_type="stock_bar",
        feed=STOCKS,
        channel="bars",
        request=cream.StreamBarsRequest,
        capacity=256,
        overflow=Overflow.DROP_OLDEST,
        history="stock_bars_capacity",
        build=_of_item(build_stock_bar),
    ),
    StreamKind(
        method="StreamOptionQuotes",
        message_type="option_quote",
        feed=OPTIONS,
        channel="quotes",
        request=cream.StreamOptionQuotesRequest,
        capacity=4_096,
        overflow=Overflow.CONFLATE,
        history="option_quotes_capacity",
        build=_of_item(build_option_quote),
    ),
    StreamKind(
        method="StreamOptionTrades",
        message_type="option_trade",
        feed=OPTIONS,
        channel="trades",
        request=cream.StreamOptionTradesRequest,
        capacity=1_024,
        overflow=Overflow.DROP_OLDEST,
        history="option_trades_capacity",
        build=_of_item(build_option_trade),
    ),
    StreamKind(
        method="StreamOrderUpdates",
        message_type="order_update",
        feed="",
        channel=ORDERS,
        request=cream.StreamOrderUpdatesRequest,
        capacity=256,
        overflow=Overflow.CLOSE,
        history="order_updates_capacity",
        build=build_order_update,
    ),
)


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """What a call wants."""

    feed: str
    topics: tuple[Topic, ...]  # on the bus
    held: tuple[Topic, ...] = ()  # upstream
    roots: tuple[str, ...] = ()  # whose contracts are to be held one by one
    matches: Callable[[HubEvent], bool] | None = None  # among the events of `topics`; None: all of them


class Position(msgspec.Struct, frozen=True):
    """How far a client has come."""

    epoch: str
    offset: int


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the metadata of a call asks for."""

    position: Position | None = None
    snapshot: bool = False
    offsets: bool = False
    items: bool = False  # Alpaca's own item with every response, and the watermarks; nothing is dropped
    statuses: bool = False  # trading statuses and price bands too; where there are items, since they are nothing else


def parse_filter(kind: StreamKind, request: Any, environment: str) -> Filter:
    """Return what a request of `kind` asks for; of order updates those of the account of `environment`.

    Raises:
        ConfigError: for what is no symbol, or none of this stream.
    """
    if kind.tells_orders:
        return _order_filter(request.order_ids, request.symbols, f"orders.{environment}")
    if kind.feed == OPTIONS:
        return _option_filter(kind.channel, request.symbols, request.underlyings)
    return _stock_filter(kind, request.symbols)


def add_watermarks(wanted: Filter) -> Filter:
    """Return the filter with the watermarks of its feed."""
    return msgspec.structs.replace(wanted, topics=(*wanted.topics, (wanted.feed, WATERMARKS, ALL)))


def add_statuses(wanted: Filter) -> Filter:
    """Return the filter with the trading statuses and price bands of its stocks."""
    if wanted.feed != STOCKS:
        return wanted
    symbols = dict.fromkeys(
        symbol for _, channel, symbol in wanted.topics if channel != WATERMARKS and not is_option(symbol)
    )
    added = status_topics(symbols)
    return msgspec.structs.replace(wanted, topics=(*wanted.topics, *added), held=(*wanted.held, *added))


def parse_wishes(metadata: Mapping[str, Any]) -> Wishes:
    """Return what the metadata of a call asks for.

    Raises:
        ConfigError: for a position that cannot be read.
    """
    epoch, offset = metadata.get(EPOCH_KEY), metadata.get(OFFSET_KEY)
    position = None
    if epoch is not None or offset is not None:
        if not isinstance(epoch, str) or not isinstance(offset, str) or not _OFFSET.fullmatch(offset):
            raise ConfigError(
                f"{EPOCH_KEY}={_quote(epoch)} with {OFFSET_KEY}={_quote(offset)} is no position: give both, "
                "the offset as a whole number"
            )
        position = Position(epoch, int(offset))
    return Wishes(
        position=position,
        snapshot=_parse_flag(metadata, SNAPSHOT_KEY),
        offsets=_parse_flag(metadata, OFFSETS_KEY),
        items=_parse_flag(metadata, ITEMS_KEY),
        statuses=_parse_flag(metadata, STATUSES_KEY),
    )


def root_of(symbol: str) -> str:
    """Return the root of an OCC symbol."""
    return symbol[:-OCC_TAIL]


def _stock_filter(kind: StreamKind, symbols: Iterable[str]) -> Filter:
    names = _parse_symbols(symbols)
    find_feed = bar_feed if kind.channel == "bars" else feed_of
    feeds = {find_feed(name) for name in names} or {kind.feed}
    if OPTIONS in feeds:
        raise ConfigError(f"{next(filter(is_option, names))} is an option: see StreamOptionQuotes, StreamOptionTrades")
    if len(feeds) > 1:  # each feed counts its events on its own
        pair = next(filter(is_crypto, names))
        raise ConfigError(f"{pair} is a crypto pair, and others are stocks: make a call for each of the two")
    (feed,) = feeds
    topics = tuple((feed, kind.channel, name) for name in names or (ALL,))
    return Filter(feed=CRYPTO if feed == CRYPTO else STOCKS, topics=topics, held=topics)


def _option_filter(channel: str, symbols: Iterable[str], underlyings: Iterable[str]) -> Filter:
    names = _parse_symbols(symbols)
    for name in names:
        if not is_option(name):
            raise ConfigError(f"{name} is no option: expected an OCC symbol such as AAPL240315C00172500")
    roots = tuple(dict.fromkeys(_parse_root(text) for text in underlyings))
    every: Topic = (OPTIONS, channel, ALL)
    topics: tuple[Topic, ...] = tuple((OPTIONS, channel, name) for name in names)
    if not roots:
        return Filter(feed=OPTIONS, topics=topics or (every,), held=topics or (every,))
    wanted_names, wanted_roots = frozenset(names), frozenset(roots)

    def matches(event: HubEvent) -> bool:
        symbol = event.symbol
        return symbol[:-OCC_TAIL] in wanted_roots or symbol in wanted_names

    if channel == "quotes":
        # The venue refuses `*` for quotes of options, there are too many: their contracts are named.
        return Filter(feed=OPTIONS, topics=(every,), held=topics, roots=roots, matches=matches)
    return Filter(feed=OPTIONS, topics=(every,), held=(every,), matches=matches)


def _order_filter(order_ids: Iterable[str], symbols: Iterable[str], feed: str) -> Filter:
    topics: tuple[Topic, ...] = ((feed, ORDERS, ALL),)
    ids = frozenset(text.strip().lower() for text in order_ids)
    names = frozenset(_flatten(name) for name in _parse_symbols(symbols))
    if not ids and not names:
        return Filter(feed=feed, topics=topics)

    def matches(event: HubEvent) -> bool:
        order = event.item.get("order")
        if not isinstance(order, Mapping):
            return False
        if ids and str(order.get("id")).lower() in ids:
            return True
        return bool(names) and not names.isdisjoint(_symbols_of(event, order))

    return Filter(feed=feed, topics=topics, matches=matches)


def _symbols_of(event: HubEvent, order: Mapping[str, Any]) -> Iterable[str]:
    """Yield the symbol of an order; one of several options has none, its legs have."""
    if event.symbol:
        return [_flatten(event.symbol)]
    legs = order.get("legs")
    found = [leg.get("symbol") for leg in legs if isinstance(leg, Mapping)] if isinstance(legs, list) else []
    return [_flatten(name.upper()) for name in found if isinstance(name, str)]


def _flatten(symbol: str) -> str:
    return symbol.replace("/", "")  # BTCUSD is BTC/USD


def _parse_symbols(symbols: Iterable[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.strip().upper() for text in symbols))
    for name in names:
        if not is_symbol(name):
            raise ConfigError(f"{_quote(name)} is not a symbol: expected {ALLOWED}")
    return names


def _parse_root(text: str) -> str:
    root = text.strip().upper().replace(".", "")  # options of BRK.B have the root BRKB
    if not _ROOT.fullmatch(root):
        raise ConfigError(f"{_quote(text)} is no underlying: expected a root such as AAPL")
    return root


def _parse_flag(metadata: Mapping[str, Any], key: str) -> bool:
    value = metadata.get(key)
    if value is None:
        return False
    word = value.lower() if isinstance(value, str) else ""
    if word not in ("1", "true", "0", "false"):
        raise ConfigError(f"{key}={_quote(value)}: expected true or false")
    return word in ("1", "true")


def _quote(value: object) -> str:
    return repr(value)[:60]
