"""The hub's rules: feeds, connection states, kinds of upstream errors, and what makes one slice of a topic. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, StrEnum

import msgspec

from dry_work.errors import ConfigError, HubError
from dry_work.hub.events import CRYPTO, NEWS, OPTION_BARS, OPTIONS, STATUS_CHANNELS, STOCKS, Topic
from dry_work.market.messages import Bar, PriceBands, TradingStatus, Watermark
from dry_work.market.symbols import ALLOWED, is_crypto, is_option, is_symbol
from dry_work.settings import STOCK_FEEDS
from dry_work.wire.alpaca_stream import StreamWatermark

OPTION_FEEDS = ("indicative", "opra")

UpstreamMessage = Bar | TradingStatus | PriceBands | StreamWatermark  # what is read of a frame for the topics
TopicMessage = Bar | TradingStatus | PriceBands | Watermark  # of market data


class ConnectionState(StrEnum):
    """Where an upstream connection stands."""

    DISCONNECTED = "disconnected"
    CONNECTING = "connecting"
    AUTHENTICATING = "authenticating"
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    ERROR = "error"


class ConnectionEvent(Enum):
    """What moves an upstream connection from one state to another."""

    CONNECT = "connect"
    SOCKET_OPEN = "socket open"
    AUTH_SUCCESS = "auth success"
    REFUSED = "refused"  # credentials, plan or number of connections: trying again at once is of no use
    SOCKET_CLOSED = "socket closed"
    DELAY_ELAPSED = "delay elapsed"
    ATTEMPTS_USED_UP = "attempts used up"
    RETRY = "retry"
    STOP = "stop"


_TRANSITIONS: dict[tuple[ConnectionState, ConnectionEvent], ConnectionState] = {
    (ConnectionState.DISCONNECTED, ConnectionEvent.CONNECT): ConnectionState.CONNECTING,
    (ConnectionState.CONNECTING, ConnectionEvent.SOCKET_OPEN): ConnectionState.AUTHENTICATING,
    (ConnectionState.CONNECTING, ConnectionEvent.SOCKET_CLOSED): ConnectionState.RECONNECTING,
    (ConnectionState.CONNECTING, ConnectionEvent.REFUSED): ConnectionState.ERROR,
    (ConnectionState.AUTHENTICATING, ConnectionEvent.AUTH_SUCCESS): ConnectionState.CONNECTED,
    (ConnectionState.AUTHENTICATING, ConnectionEvent.REFUSED): ConnectionState.ERROR,
    (ConnectionState.AUTHENTICATING, ConnectionEvent.SOCKET_CLOSED): ConnectionState.RECONNECTING,
    (ConnectionState.CONNECTED, ConnectionEvent.SOCKET_CLOSED): ConnectionState.RECONNECTING,
    (ConnectionState.CONNECTED, ConnectionEvent.REFUSED): ConnectionState.ERROR,
    (ConnectionState.RECONNECTING, ConnectionEvent.DELAY_ELAPSED): ConnectionState.CONNECTING,
    (ConnectionState.RECONNECTING, ConnectionEvent.ATTEMPTS_USED_UP): ConnectionState.ERROR,
    (ConnectionState.ERROR, ConnectionEvent.RETRY): ConnectionState.RECONNECTING,
    **{(state, ConnectionEvent.STOP): ConnectionState.DISCONNECTED for state in ConnectionState},
}


def next_state(state: ConnectionState, event: ConnectionEvent) -> ConnectionState:
    """Return the state that `event` leads to.

    Raises:
        HubError: when `event` cannot happen in `state`.
    """
    try:
        return _TRANSITIONS[state, event]
    except KeyError:
        raise HubError(f"an upstream connection that is {state} cannot see {event.value!r}") from None


class ErrorKind(Enum):
    """What an error frame of the upstream means for its connection."""

    FATAL = "fatal"  # this feed is in error; try again slowly
    LOST = "lost"  # reconnect with backoff
    BEHIND = "behind"  # it kept events back: reconnect with backoff
    NOTED = "noted"  # logged and counted; the connection stays


_FATAL_CODES = frozenset((402, 406, 409, 411))
_LOST_CODES = frozenset((401, 404, 407, 500))


def error_kind(code: int) -> ErrorKind:
    """Return what to do after an error frame with `code`; an unknown code leaves the connection as it is."""
    if code in _FATAL_CODES:
        return ErrorKind.FATAL
    return ErrorKind.LOST if code in _LOST_CODES else ErrorKind.NOTED


def handshake_kind(http_status: int) -> ErrorKind:
    """Return what to do after the handshake was answered with `http_status` in place of a WebSocket."""
    return ErrorKind.FATAL if 400 <= http_status < 500 and http_status not in (408, 429) else ErrorKind.LOST


class Feed(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint of the upstream."""

    name: str  # iex, sip, delayed_sip, otc, test, opra, indicative, crypto, news: for status and log
    feed: str  # stocks, options, crypto, news
    path: str  # of the WebSocket
    topic: str = ""  # of Pub/Sub, that its bars go to
    needs_msgpack: bool = False


def build_feeds(
    *, stock_feed: str, market_topic: str, crypto_topic: str, option_feed: str = "indicative"
) -> tuple[Feed, Feed, Feed, Feed]:
    """Return the feeds for stocks, crypto, options and news.

    Raises:
        ConfigError: for an unknown feed, or one topic for both.
    """
    if stock_feed not in STOCK_FEEDS:
        raise ConfigError(f"{stock_feed!r} is not a stock feed (--feed, ALPACA_FEED): one of {', '.join(STOCK_FEEDS)}")
    if option_feed not in OPTION_FEEDS:
        raise ConfigError(f"{option_feed!r} is not an option feed: one of {', '.join(OPTION_FEEDS)}")
    if market_topic == crypto_topic:
        raise ConfigError(
            f"MARKET_DATA_TOPIC and CRYPTO_DATA_TOPIC are both {market_topic!r}: stocks and crypto need a topic each"
        )
    return (
        Feed(name=stock_feed, feed=STOCKS, path=f"/v2/{stock_feed}", topic=market_topic),
        Feed(name="crypto", feed=CRYPTO, path="/v1beta3/crypto/us", topic=crypto_topic),
        Feed(name=option_feed, feed=OPTIONS, path=f"/v1beta1/{option_feed}", needs_msgpack=True),
        Feed(name="news", feed=NEWS, path="/v1beta1/news"),
    )


def feed_of(symbol: str) -> str:
    """Return the feed that serves a canonical symbol's market data."""
    if is_crypto(symbol):
        return CRYPTO
    return OPTIONS if is_option(symbol) else STOCKS


def bar_feed(symbol: str) -> str:
    """Return the feed in which the bars of a canonical symbol are told: those of options go with stocks."""
    return CRYPTO if is_crypto(symbol) else STOCKS


def split_symbols(symbols: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the stocks, options among them, and the crypto pairs among canonical `symbols`.

    Raises:
        ConfigError: for what is no symbol.
    """
    stocks: list[str] = []
    crypto: list[str] = []
    for symbol in symbols:
        if not is_symbol(symbol):
            raise ConfigError(f"{symbol!r} is not a symbol: expected {ALLOWED}")
        (crypto if is_crypto(symbol) else stocks).append(symbol)
    return tuple(stocks), tuple(crypto)


def bar_topics(symbols: Iterable[str]) -> list[Topic]:
    """Return the topics of the minute bars of canonical `symbols`.

    Raises:
        ConfigError: for what is no symbol.
    """
    stocks, crypto = split_symbols(symbols)
    return [(STOCKS, "bars", symbol) for symbol in stocks] + [(CRYPTO, "bars", symbol) for symbol in crypto]


def split_wishes(topics: Iterable[Topic]) -> dict[str, list[tuple[str, str]]]:
    """Return what is wanted of each feed's upstream, by channel and symbol.

    Of an option whose bars are wanted that is its trades; `OPTION_BARS` says so, which no upstream is asked for.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for feed, channel, symbol in topics:
        if feed == STOCKS and channel == "bars" and is_option(symbol):
            found.setdefault(OPTIONS, []).extend((("trades", symbol), (OPTION_BARS, symbol)))
        else:
            found.setdefault(feed, []).append((channel, symbol))
    return found


def status_topics(symbols: Iterable[str]) -> list[Topic]:
    """Return the topics of trading statuses and price bands of those of `symbols` that have them: stocks."""
    stocks = [symbol for symbol in symbols if feed_of(symbol) == STOCKS]
    return [(STOCKS, channel, symbol) for symbol in stocks for channel in STATUS_CHANNELS]


class SliceCollector:
    """Collects the bars of one feed until its watermark, and counts them for it; statuses keep their place among them.

    Bars wait for their watermark, so that a slice goes out in one piece, only in a session that takes watermarks, and
    only until `take` is called; in other sessions they are ready at once.
    """

    def __init__(self) -> None:
        self._takes_watermarks = False
        self._waiting: list[TopicMessage] = []
        self._slice: set[tuple[str, int, int]] = set()  # bars since the last watermark; a bar sent again counts once

    @property
    def waiting(self) -> int:
        """Messages that wait for their watermark."""
        return len(self._waiting)

    def begin_session(self, *, takes_watermarks: bool) -> None:
        """Start to count anew: what an ended session had begun is sent again by the next one."""
        self._takes_watermarks = takes_watermarks
        self._slice.clear()

    def add(self, items: Iterable[UpstreamMessage]) -> list[TopicMessage]:
        """Take what came from upstream; return what is ready to be published, in its order."""
        ready = 0
        for item in items:
            if isinstance(item, StreamWatermark):
                self._waiting.append(
                    Watermark(
                        slice=item.slice,
                        end_ns=item.end_ns,
                        bars=len(self._slice),
                        event_id=item.event_id,
                        last=item.last,
                    )
                )
                self._slice.clear()
                ready = len(self._waiting)
            else:
                self._waiting.append(item)
                if self._takes_watermarks and isinstance(item, Bar):
                    self._slice.add((item.symbol, item.ts_event_ns, item.revision))
        return self._take(ready) if self._takes_watermarks else self.take()

    def take(self) -> list[TopicMessage]:
        """Return all that waits, without its watermark."""
        return self._take(len(self._waiting))

    def _take(self, count: int) -> list[TopicMessage]:
        taken = self._waiting[:count]
        del self._waiting[:count]
        return taken
