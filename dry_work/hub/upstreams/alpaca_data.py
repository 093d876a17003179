"""One market-data connection in Alpaca's WebSocket dialect, kept up for as long as somebody wants its symbols.

Event-loop only. It subscribes and unsubscribes by difference and restores everything after a reconnect. Items go on as
they came, those of unknown types too. Against a server that offers watermarks it takes them as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

import structlog
from msgspec.structs import replace
from websockets.asyncio.client import ClientConnection

from dry_work.clock import Clock
from dry_work.errors import CodecError
from dry_work.hub.core import UpstreamMessage
from dry_work.hub.events import ALL, CHANNELS, IMPLIED, OPTION_BARS
from dry_work.hub.upstreams.connection import FeedStatus, SessionEndError, UpstreamTiming, WebSocketConnection
from dry_work.hub.upstreams.subscription_plan import SubscriptionPlan, Wish, count_symbols
from dry_work.wire import alpaca_stream
from dry_work.wire.alpaca_stream import StreamCodec, StreamControl
from dry_work.wire.statuses import parse_bands_item, parse_status_item

Item = Mapping[str, Any]
Reader = Callable[..., UpstreamMessage]  # of an item, by `recv_ns`

_NOT_ASKED = (*IMPLIED, OPTION_BARS)
_STATUS_READERS: Mapping[str, Reader] = {"s": parse_status_item, "l": parse_bands_item}

_log = structlog.get_logger(__name__)


class MarketDataTarget(Protocol):
    """Where a connection's market data goes."""

    reads_bars: bool  # minute bars are also read into values
    reads_statuses: bool  # trading statuses and price bands too

    def begin_session(self, *, takes_watermarks: bool) -> None:
        """A session is authenticated; its data follows."""

    def note_subscribed(self, channels: Mapping[str, tuple[str, ...]]) -> None:
        """The upstream has told what is subscribed: symbols by channel."""

    def take(self, items: Sequence[Item], messages: Sequence[UpstreamMessage], *, recv_ns: int) -> None:
        """Take what one frame brought, in its order: the items as they came, and some of them as values."""

    def end_session(self) -> None:
        """The session is over."""

    def has_room(self) -> bool:
        """Tell whether more can be taken now."""

    async def wait_for_room(self) -> None:
        """Return once more can be taken."""


class AlpacaDataConnection(WebSocketConnection):
    """The connection of one feed.

    Args:
        feed: its name, for status and log.
        url: whole URL of the endpoint.
        target: takes the market data; when it has no room, nothing is read.
        codec: how messages are written; both are Alpaca's own.
        on_change: called after every change of state.
    """

    def __init__(
        self,
        *,
        feed: str,
        url: str,
        key: str,
        secret: str,
        target: MarketDataTarget,
        clock: Clock,
        rng: random.Random,
        codec: StreamCodec = StreamCodec.JSON,
        timing: UpstreamTiming | None = None,
        on_change: Callable[[FeedStatus], None] | None = None,
    ) -> None:
        super().__init__(
            feed=feed,
            url=url,
            clock=clock,
            rng=rng,
            timing=timing,
            headers={"Content-Type": codec.value},
            on_change=on_change,
        )
        self._key = key
        self._secret = secret
        self._target = target
        self._codec = codec
        self._wanted: dict[Wish, None] = {}
        self._subscribed = 0
        self._plan = SubscriptionPlan()
        self._takes_watermarks = False
        self._watermarks = 0

    @property
    def is_wanted(self) -> bool:
        return bool(self._wanted)

    def want(self, wishes: Iterable[Wish]) -> None:
        """Replace what is wanted, by channel and symbol; the upstream follows."""
        self._wanted = dict.fromkeys(wish for wish in wishes if wish[0] not in _NOT_ASKED)
        self._changed.set()

    def status(self) -> FeedStatus:
        symbols = {symbol for _, symbol in self._wanted}
        found = self._describe(wanted=len(symbols), subscribed=self._subscribed, refused=self._plan.refused)
        return replace(found, takes_watermarks=self._takes_watermarks, watermarks=self._watermarks)

    def _begin_session(self) -> None:
        self._plan = SubscriptionPlan(takes_watermarks=self._takes_watermarks)
        self._target.begin_session(takes_watermarks=self._takes_watermarks)

    def _end_session(self) -> None:
        self._subscribed = 0
        self._plan = SubscriptionPlan()
        self._target.end_session()

    def _jobs(self, socket: ClientConnection) -> list[Coroutine[Any, Any, NoReturn]]:
        return [self._read(socket), self._keep_subscribed(socket)]

    async def _authenticate(self, socket: ClientConnection) -> None:
        sent = False
        self._takes_watermarks = False
        while True:
            for control in self._take_frame(await self._receive(socket)):
                if control.kind != "success":
                    continue
                if control.message == "authenticated" and sent:
                    return
                self._takes_watermarks = self._takes_watermarks or control.watermarks
                if not sent:
                    auth = alpaca_stream.build_auth(self._key, self._secret)
                    await socket.send(alpaca_stream.encode_message(auth, self._codec))
                    sent = True

    async def _read(self, socket: ClientConnection) -> NoReturn:
        while True:
            frame = await self._receive(socket)
            begun_s = self._heard_s
            controls = self._take_frame(frame)
            self._frames.note(begun_s, len(frame))
            for control in controls:
                if control.kind == "subscription":
                    self._subscribed = count_symbols(control.channels, besides=[alpaca_stream.WATERMARKS])
                    self._plan.take_list()
                    self._target.note_subscribed(control.channels)
                    self._changed.set()
            if not self._target.has_room():
                self._holds_back = True
                await self._target.wait_for_room()
                self._holds_back = False
                self._heard_s = self._clock.monotonic()

    def _take_frame(self, frame: bytes) -> list[StreamControl]:
        """Pass on the market data of a frame; return its control messages, errors excepted."""
        recv_ns = self._clock.time_ns()
        try:
            decoded = alpaca_stream.decode_frame(frame)
        except CodecError as error:
            self._count_malformed("frame", error.reason.partition(":")[0])  # the rest differs from frame to frame
            return []
        items: list[Item] = []
        messages: list[UpstreamMessage] = []
        controls: list[StreamControl] = []
        errors: list[StreamControl] = []
        readers: dict[str, Reader] = {}
        if self._target.reads_bars:
            readers["b"] = alpaca_stream.parse_bar_item
        if self._target.reads_statuses:
            readers |= _STATUS_READERS
        for item in decoded:
            if not isinstance(item, dict):
                self._count_malformed("", "no map")
                continue
            kind = item.get("T")
            if not isinstance(kind, str):
                self._count_malformed("", "no type")
            elif kind in CHANNELS:
                self._items[kind] += 1
                items.append(item)
                if kind in readers:
                    self._read_item(readers[kind], item, messages, recv_ns)
            elif kind == "w":
                if self._read_watermark(item, messages):
                    items.append(item)
            elif kind in alpaca_stream.CONTROLS:
                control = alpaca_stream.parse_control_item(item)
                (errors if kind == "error" else controls).append(control)
            else:
                self._count_unknown(kind)
                items.append(item)
        if items or messages:
            self._target.take(items, messages, recv_ns=recv_ns)
        for control in errors:
            self._note_error(control.code, control.message)
            self._note_refused(control)
        return controls

    def _note_refused(self, error: StreamControl) -> None:
        """Leave out of the subscriptions what the upstream refuses."""
        refused = self._plan.take_error(error.code)
        if refused:
            _log.warning(
                "upstream does not take a subscription",
                feed=self._feed,
                error=f"{error.message} ({error.code})",
                channels=sorted({channel for channel, _ in refused}),
                symbols=len(refused),
                first=refused[0][1],
            )
        self._changed.set()

    def _read_item(self, read: Reader, item: Item, messages: list[UpstreamMessage], recv_ns: int) -> None:
        try:
            messages.append(read(item, recv_ns=recv_ns))
        except CodecError as error:
            kind, symbol = item["T"], item.get("S")
            self._items[kind] -= 1
            self._count_malformed(kind, error.reason, symbol=symbol if isinstance(symbol, str) else "")

    def _read_watermark(self, item: Item, messages: list[UpstreamMessage]) -> bool:
        try:
            messages.append(alpaca_stream.parse_watermark_item(item))
        except CodecError as error:
            self._count_malformed("w", error.reason)
            return False
        self._watermarks += 1
        return True

    async def _keep_subscribed(self, socket: ClientConnection) -> NoReturn:
        self._changed.clear()
        while True:
            for change in self._plan.next(self._wanted):
                channels = change.channels
                if change.has_watermarks:
                    channels[alpaca_stream.WATERMARKS] = [ALL]
                message = alpaca_stream.build_subscription(change.action, channels)
                await socket.send(alpaca_stream.encode_message(message, self._codec))
            timeout_s = None if self._wanted else self._timing.idle_close_s
            if not await self._wait_for_change(timeout_s):
                raise SessionEndError("nobody wants its symbols", None)
