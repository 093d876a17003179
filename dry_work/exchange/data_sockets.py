"""The market-data WebSocket: sessions in Alpaca's dialect; stocks, crypto, options and news. Event-loop only.

Sessions for options speak MessagePack alone. Their quotes are subscribed by name, not all at once, as at Alpaca.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from dry_work.clock import Clock
from dry_work.errors import CodecError
from dry_work.exchange.account import is_contract
from dry_work.exchange.connections import ConnectionSlots
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.fault_hooks import StreamFaults
from dry_work.exchange.faults import FaultPlan
from dry_work.exchange.market import OpenSlice
from dry_work.exchange.socket_session import CLOSE_TIMEOUT_S, QUEUE_LIMIT_BYTES, SocketSession, is_clean_close
from dry_work.exchange.tape import Tick
from dry_work.market.messages import Bar
from dry_work.market.symbols import is_crypto, is_symbol
from dry_work.wire.alpaca_stream import (
    CRYPTO_CHANNELS,
    IMPLIED_CHANNELS,
    STOCK_CHANNELS,
    WATERMARKS,
    StreamCodec,
    StreamWatermark,
    encode_bar_item,
    encode_error_item,
    encode_item,
    encode_subscription_item,
    encode_success_item,
    encode_watermark_item,
    join_items,
    parse_message,
)

_log = structlog.get_logger(__name__)

STOCK_FEEDS = ("iex", "sip", "delayed_sip", "test")
CRYPTO_FEEDS = ("us", "us-1", "eu-1")
OPTION_FEEDS = ("indicative", "opra")
NEWS_FEED = "news"
OPTION_CHANNELS = ("trades", "quotes")
NEWS_CHANNELS = ("news",)
ALL = "*"
_CHANNELS = frozenset((*STOCK_CHANNELS, *CRYPTO_CHANNELS, *IMPLIED_CHANNELS, WATERMARKS, "news", "imbalances"))
_CLOSING_CODES = frozenset((402, 404, 406, 409, 500))  # Alpaca closes after these


@dataclass(frozen=True, kw_only=True)
class StreamLimits:
    """What a plan of Alpaca's limits; None is without limit."""

    auth_timeout_s: float = 10.0  # time for a client to authenticate
    queue_bytes: int = QUEUE_LIMIT_BYTES  # unread by the client, then it is disconnected
    connections: int | None = None  # sessions of a key on a market-data endpoint
    trade_connections: int | None = None  # sessions of a key on `/stream`
    stale_s: float = 0.0  # a session that was cut without a close counts for so much longer
    symbols: int | None = None  # symbols of a session on trades and quotes
    feeds: frozenset[str] | None = None  # feeds that may be used: iex, sip, ..., us


class _StreamError(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


@dataclass(eq=False)
class _DataSession:
    feed: str
    path: str
    codec: StreamCodec
    out: SocketSession
    transport: asyncio.Transport | None
    key_id: str | None = None  # None: not authenticated
    takes_watermarks: bool = False
    channels: dict[str, set[str]] = field(default_factory=dict)

    @property
    def is_crypto(self) -> bool:
        return self.feed in CRYPTO_FEEDS

    @property
    def is_option(self) -> bool:
        return self.feed in OPTION_FEEDS

    @property
    def channel_names(self) -> tuple[str, ...]:
        if self.is_crypto:
            return CRYPTO_CHANNELS
        if self.is_option:
            return OPTION_CHANNELS
        return NEWS_CHANNELS if self.feed == NEWS_FEED else (*STOCK_CHANNELS, *IMPLIED_CHANNELS)

    def send_item(self, item: Mapping[str, Any]) -> None:
        for frame in join_items([encode_item(item, self.codec)], self.codec):
            self.out.send(frame)

    def wants(self, channel: str, symbol: str) -> bool:
        symbols = self.channels.get(channel, set())
        return bool(symbols) and self.has(symbol) and (symbol in symbols or ALL in symbols)

    def has(self, symbol: str) -> bool:
        """Tell whether the feed is that of a symbol."""
        return is_crypto(symbol) == self.is_crypto and is_contract(symbol) == self.is_option


class OptionSource(Protocol):
    """The prices of contracts."""

    def slice_items(self, symbol: str, end_ns: int) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Return what the bar that ends at a time brings, by channel."""

    def find_active(self, now_ns: int) -> Iterable[str]:
        """Return the contracts whose trades are told to who asks for all."""


class _SliceOptions:
    """What a slice brings of contracts, found once for all sessions."""

    def __init__(self, source: OptionSource, end_ns: int, wanted: frozenset[str]) -> None:
        self._source = source
        self._end_ns = end_ns
        self._wanted = wanted
        self._known: dict[str, Mapping[str, Sequence[Mapping[str, Any]]]] = {}
        self._active: frozenset[str] | None = None

    def find(self, channels: Mapping[str, set[str]]) -> Iterator[Mapping[str, Any]]:
        """Yield the items of the contracts in a session's channels."""
        for channel in OPTION_CHANNELS:
            symbols: Iterable[str] = channels[channel]
            if ALL in symbols:
                if self._active is None:
                    self._active = self._wanted.union(self._source.find_active(self._end_ns))
                symbols = self._active.union(symbols) - {ALL}
            for symbol in sorted(symbols):
                if symbol not in self._known:
                    self._known[symbol] = self._source.slice_items(symbol, self._end_ns)
                yield from self._known[symbol].get(channel, ())


class DataSockets:
    """All market-data sessions.

    Args:
        open_slice: the slice that is published and not yet done, None when there is none.
        daily_bar: returns the day so far of the symbol of a bar that has just ended.
        on_change: called when a subscription or a session has come or gone.
        faults: what goes wrong.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        limits: StreamLimits,
        open_slice: Callable[[], OpenSlice | None],
        daily_bar: Callable[[Bar], Bar],
        on_change: Callable[[], None],
        clock: Clock,
        faults: FaultPlan,
    ) -> None:
        self._credentials = credentials
        self._limits = limits
        self._open_slice = open_slice
        self._daily_bar = daily_bar
        self._slots = ConnectionSlots(limits.connections, stale_s=limits.stale_s, clock=clock)
        self._on_change = on_change
        self._faults = StreamFaults(faults, "data")
        self._sessions: set[_DataSession] = set()
        self._options: OptionSource | None = None
        self._wanted: frozenset[str] = frozenset()  # contracts that the market waits for: `*` has them too

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve the endpoints of all feeds."""
        for feed in STOCK_FEEDS:
            router.add_get(f"/v2/{feed}", self.handle)
        for feed in CRYPTO_FEEDS:
            router.add_get(f"/v1beta3/crypto/{feed}", self.handle)
        for feed in OPTION_FEEDS:  # that of the news shares its path with their REST API, which hands sessions on
            router.add_get(f"/v1beta1/{feed}", self.handle)

    def strike(self) -> None:
        """Let new faults strike the sessions that are open."""
        for session in list(self._sessions):
            session.out.check()

    def publish(self, current: OpenSlice) -> None:
        """Send a slice to every session: its bars in one array, and the watermark to those that take it."""
        encoded: dict[tuple[StreamCodec, str, int], bytes] = {}
        options = None if self._options is None else _SliceOptions(self._options, current.end_ns, self._wanted)
        for session in list(self._sessions):
            self._send_slice(session, current, encoded, options)

    def publish_ticks(self, ticks: Sequence[Tick]) -> None:
        """Send trades and quotes to the sessions that want them."""
        encoded: dict[tuple[StreamCodec, int], bytes] = {}
        for session in list(self._sessions):
            if session.is_option or not (session.channels.get("trades") or session.channels.get("quotes")):
                continue
            codec = session.codec
            items: list[bytes] = []
            for index, tick in enumerate(ticks):
                if session.wants(tick.kind, tick.symbol):
                    item = encoded.get((codec, index))
                    if item is None:
                        item = encoded[codec, index] = encode_item(tick.build_item(), codec)
                    items.append(item)
            for frame in join_items(items, codec):
                session.out.send(frame)

    def offer_options(self, options: OptionSource) -> None:
        """Send the trades and quotes of contracts with each slice, before its watermark."""
        self._options = options

    def wants_news(self) -> bool:
        """Tell whether a session has subscribed to news."""
        return any(session.channels.get("news") for session in self._sessions)

    def publish_news(self, items: Sequence[Mapping[str, Any]]) -> None:
        """Send articles to the sessions that want one of their symbols."""
        for session in list(self._sessions):
            symbols = {symbol.replace("/", "") for symbol in session.channels.get("news", ())}
            for item in items:
                if ALL in symbols or symbols.intersection(item["symbols"]):
                    session.send_item(item)

    def publish_revision(self, bar: Bar) -> None:
        """Send a corrected bar to the sessions that take them."""
        for session in list(self._sessions):
            if session.wants("updatedBars", bar.symbol):
                session.send_item(encode_bar_item(bar, "u"))

    def repeat(self, current: OpenSlice) -> None:
        """Send a slice again to the sessions that take watermarks."""
        for session in list(self._sessions):
            if session.takes_watermarks:
                self._send_slice(session, current, {})

    def covers(self, symbols: frozenset[str]) -> bool:
        """Tell whether each of these symbols has a session that takes its bars and watermarks."""
        missing = set(symbols)
        self._wanted = frozenset(filter(is_contract, symbols))
        for session in self._sessions:
            if not missing:
                break
            if session.takes_watermarks and not session.out.is_closing:
                heard = session.channels.get("trades" if session.is_option else "bars", set())
                missing -= {symbol for symbol in missing if session.has(symbol)} if ALL in heard else heard
        return not missing

    def close(self) -> None:
        """Begin to close all sessions."""
        for session in list(self._sessions):
            session.out.finish(code=WSCloseCode.GOING_AWAY)

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        """Carry a session on, until it ends."""
        socket = web.WebSocketResponse(compress=False, timeout=CLOSE_TIMEOUT_S / 2)
        await socket.prepare(request)
        feed = request.path.rpartition("/")[2]
        binary = request.content_type == StreamCodec.MSGPACK.value or feed in OPTION_FEEDS
        codec = StreamCodec.MSGPACK if binary else StreamCodec.JSON
        slow = next(join_items([encode_item(encode_error_item(407), codec)], codec))
        out = SocketSession(request, socket, slow_frame=slow, limit_bytes=self._limits.queue_bytes)
        session = _DataSession(feed, request.path, codec, out, request.transport)
        session.channels = {name: set() for name in session.channel_names}
        self._sessions.add(session)
        writer = asyncio.create_task(out.write(), name=f"data session {request.path}")
        try:
            session.send_item(encode_success_item("connected", watermarks=True))
            if key_id := self._credentials.admit_headers(request.headers):
                try:
                    self._authenticate(session, key_id)
                except _StreamError as error:
                    self._refuse(session, error.code)
            await self._read(session, socket)
        finally:
            self._sessions.discard(session)
            if session.key_id is not None:
                self._slots.release(session.key_id, session.path, clean=is_clean_close(socket, out))
            out.finish()
            self._on_change()
            await writer
        return socket

    async def _read(self, session: _DataSession, socket: web.WebSocketResponse) -> None:
        deadline_s = asyncio.get_running_loop().time() + self._limits.auth_timeout_s
        while True:
            wait_s = None
            if session.key_id is None and not session.out.is_closing:
                wait_s = max(deadline_s - asyncio.get_running_loop().time(), 0.001)
            try:
                frame = await socket.receive(wait_s)
            except TimeoutError:
                self._refuse(session, 404)
                continue
            if frame.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                return
            if session.out.is_closing:
                continue
            try:
                self._take(session, parse_message(frame.data))
            except CodecError:
                self._refuse(session, 400)
            except _StreamError as error:
                self._refuse(session, error.code)

    def _refuse(self, session: _DataSession, code: int) -> None:
        session.send_item(encode_error_item(code))
        if code in _CLOSING_CODES:
            session.out.finish(code=WSCloseCode.POLICY_VIOLATION)

    def _take(self, session: _DataSession, message: dict[str, Any]) -> None:
        action = message.pop("action")
        if action == "auth":
            if session.key_id is not None:
                raise _StreamError(403)
            key_id = message.get("key")
            if not self._credentials.admit(key_id, message.get("secret")):
                raise _StreamError(402)
            self._authenticate(session, str(key_id))
            return
        if action not in ("subscribe", "unsubscribe"):
            raise _StreamError(400)
        if session.key_id is None:
            raise _StreamError(401)
        self._subscribe(session, message, adds=action == "subscribe")

    def _authenticate(self, session: _DataSession, key_id: str) -> None:
        limits = self._limits
        if limits.feeds is not None and session.feed not in limits.feeds:
            raise _StreamError(409)
        code = self._faults.refuse(key_id, session.path)
        if code is not None:
            raise _StreamError(code)
        if not self._slots.take(key_id, session.path):
            raise _StreamError(406)
        session.key_id = key_id
        session.send_item(encode_success_item("authenticated"))
        self._faults.watch(session.out, key_id, session.path, session.transport)

    def _subscribe(self, session: _DataSession, message: Mapping[str, Any], *, adds: bool) -> None:
        asked = {name: _parse_symbols(session, name, value) for name, value in message.items()}
        takes_watermarks = session.takes_watermarks
        if asked.pop(WATERMARKS, None):
            takes_watermarks = adds
        channels = {name: set(symbols) for name, symbols in session.channels.items()}
        for name, symbols in asked.items():
            channels[name] = channels[name] | symbols if adds else channels[name] - symbols
        for name in IMPLIED_CHANNELS:
            if name in channels:
                channels[name] = set(channels["trades"])
        limit = self._limits.symbols
        wanted = channels.get("trades", set()) | channels.get("quotes", set())
        if adds and limit is not None and len(wanted) > limit:
            raise _StreamError(405)
        session.channels = channels
        session.takes_watermarks = takes_watermarks
        state: dict[str, set[str]] = {**channels, WATERMARKS: {ALL}} if takes_watermarks else channels
        session.send_item(encode_subscription_item(state))
        current = self._open_slice()
        if adds and takes_watermarks and current is not None:
            self._send_slice(session, current, {})
        self._on_change()

    def _send_slice(
        self,
        session: _DataSession,
        current: OpenSlice,
        encoded: dict[tuple[StreamCodec, str, int], bytes],
        options: _SliceOptions | None = None,
    ) -> None:
        codec = session.codec
        items: list[bytes] = []
        if session.is_option and self._options is not None:
            options = options or _SliceOptions(self._options, current.end_ns, self._wanted)
            items += [encode_item(item, codec) for item in options.find(session.channels)]
        for channel in ("bars", "dailyBars"):
            for index, bar in enumerate(current.bars):
                if not session.wants(channel, bar.symbol):
                    continue
                item = encoded.get((codec, channel, index))
                if item is None:
                    is_daily = channel == "dailyBars"
                    values = encode_bar_item(self._daily_bar(bar), "d") if is_daily else encode_bar_item(bar)
                    item = encoded[codec, channel, index] = encode_item(values, codec)
                items.append(item)
        for frame in join_items(items, codec):
            session.out.send(frame)
        if session.takes_watermarks:
            mark = StreamWatermark(
                slice=current.number, end_ns=current.end_ns, event_id=current.event_id, last=current.last
            )
            session.send_item(encode_watermark_item(mark))


def _parse_symbols(session: _DataSession, name: str, value: object) -> set[str]:
    if name not in session.channels and name != WATERMARKS:
        raise _StreamError(410 if name in _CHANNELS else 400)
    if not isinstance(value, list) or not all(isinstance(symbol, str) for symbol in value):
        raise _StreamError(400)
    symbols = set(value)
    if session.is_option and name == "quotes" and ALL in symbols:
        raise _StreamError(400)
    for symbol in symbols - {ALL}:
        if session.feed == NEWS_FEED and is_symbol(symbol):
            continue
        if name == WATERMARKS or not is_symbol(symbol) or not session.has(symbol):
            raise _StreamError(400)
    return symbols
