"""One market-data connection in Alpaca's WebSocket dialect, kept up for as long as somebody wants its symbols.

Event-loop only. It subscribes and unsubscribes by difference and restores everything after a reconnect. Items go on as
they came, those of unknown types too. Against a server that offers watermarks it takes them as well.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from websockets.asyncio.client import ClientConnection

from dry_work.clock import Clock
from dry_work.errors import CodecError
from dry_work.hub.events import ALL, CHANNELS, IMPLIED
from dry_work.hub.upstreams.connection import FeedStatus, SessionEndError, UpstreamConnection, UpstreamTiming
from dry_work.market.messages import Bar
from dry_work.wire import alpaca_stream
from dry_work.wire.alpaca_stream import StreamCodec, StreamControl, StreamWatermark

SUBSCRIBE_BATCH = 500  # symbols in one message

Wish = tuple[str, str]  # channel, symbol
Item = Mapping[str, Any]


class MarketDataTarget(Protocol):
    """Where a connection's market data goes."""

    reads_bars: bool  # minute bars are also read into values

    def begin_session(self, *, takes_watermarks: bool) -> None:
        """A session is authenticated; its data follows."""

    def take(self, items: Sequence[Item], messages: Sequence[Bar | StreamWatermark], *, recv_ns: int) -> None:
        """Take what one frame brought, in its order: the items as they came, and bars and watermarks as values."""

    def end_session(self) -> None:
        """The session is over."""

    def has_room(self) -> bool:
        """Tell whether more can be taken now."""

    async def wait_for_room(self) -> None:
        """Return once more can be taken."""


class AlpacaDataConnection(UpstreamConnection):
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
        self._takes_watermarks = False
        self._watermarks = 0

    @property
    def is_wanted(self) -> bool:
        return bool(self._wanted)

    def want(self, wishes: Iterable[Wish]) -> None:
        """Replace what is wanted, by channel and symbol; the upstream follows."""
        self._wanted = dict.fromkeys(wish for wish in wishes if wish[0] not in IMPLIED)
        self._changed.set()

    def status(self) -> FeedStatus:
        return FeedStatus(
            feed=self._feed,
            state=self._state,
            wanted=len(self._wanted),
            subscribed=self._subscribed,
            takes_watermarks=self._takes_watermarks,
            attempts=self._attempts,
            reconnects=max(0, self._sessions - 1),
            connected_ns=self._connected_ns,
            items=dict(self._items),
            watermarks=self._watermarks,
            unknown=dict(self._unknown),
            malformed=dict(self._malformed),
            errors=dict(self._errors),
            error=self._error,
        )

    def _begin_session(self) -> None:
        self._target.begin_session(takes_watermarks=self._takes_watermarks)

    def _end_session(self) -> None:
        self._subscribed = 0
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
            for control in self._take_frame(await self._receive(socket)):
                if control.kind == "subscription":
                    self._subscribed = sum(
                        len(symbols)
                        for channel, symbols in control.channels.items()
                        if channel not in IMPLIED and channel != alpaca_stream.WATERMARKS
                    )
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
        messages: list[Bar | StreamWatermark] = []
        controls: list[StreamControl] = []
        errors: list[StreamControl] = []
        reads_bars = self._target.reads_bars
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
                if kind == "b" and reads_bars:
                    self._read_bar(item, messages, recv_ns)
            elif kind == "w":
                self._read_watermark(item, messages)
            elif kind in alpaca_stream.CONTROLS:
                control = alpaca_stream.parse_control_item(item)
                (errors if kind == "error" else controls).append(control)
            else:
                self._unknown[kind] += 1
                items.append(item)
        if items or messages:
            self._target.take(items, messages, recv_ns=recv_ns)
        for control in errors:
            self._note_error(control.code, control.message)
        return controls

    def _read_bar(self, item: Item, messages: list[Bar | StreamWatermark], recv_ns: int) -> None:
        try:
            messages.append(alpaca_stream.parse_bar_item(item, recv_ns=recv_ns))
        except CodecError as error:
            self._items["b"] -= 1
            symbol = item.get("S")
            self._count_malformed("b", error.reason, symbol=symbol if isinstance(symbol, str) else "")

    def _read_watermark(self, item: Item, messages: list[Bar | StreamWatermark]) -> None:
        try:
            messages.append(alpaca_stream.parse_watermark_item(item))
        except CodecError as error:
            self._count_malformed("w", error.reason)
        else:
            self._watermarks += 1

    async def _keep_subscribed(self, socket: ClientConnection) -> NoReturn:
        requested: set[Wish] = set()
        self._changed.clear()
        while True:
            wanted = _merge(self._wanted)
            removed = sorted(requested.difference(wanted))
            added = [wish for wish in wanted if wish not in requested]
            for message in _build_changes(added, removed, watermarks=self._takes_watermarks and not requested):
                await socket.send(alpaca_stream.encode_message(message, self._codec))
            requested.difference_update(removed)
            requested.update(added)
            timeout_s = None if wanted else self._timing.idle_close_s
            if not await self._wait_for_change(timeout_s):
                raise SessionEndError("nobody wants its symbols", None)


def _merge(wishes: Iterable[Wish]) -> dict[Wish, None]:
    """Return the wishes without those that `*` of the same channel covers."""
    merged = dict.fromkeys(wishes)
    every = {channel for channel, symbol in merged if symbol == ALL}
    return {wish: None for wish in merged if wish[0] not in every or wish[1] == ALL}


def _build_changes(added: list[Wish], removed: list[Wish], *, watermarks: bool) -> list[dict[str, object]]:
    """Return the messages that subscribe and unsubscribe, in batches.

    The watermarks come with the last batch: a slice that the server sends again on subscribing them is then complete.
    Places are given back before others are taken, for there is a limit on them, unless a change from names to all, or
    back, would so leave a gap.
    """
    subscribes: list[dict[str, object]] = []
    for start in range(0, len(added), SUBSCRIBE_BATCH):
        channels = _group(added[start : start + SUBSCRIBE_BATCH])
        if watermarks and start + SUBSCRIBE_BATCH >= len(added):
            channels[alpaca_stream.WATERMARKS] = [ALL]
        subscribes.append(alpaca_stream.build_subscription("subscribe", channels))
    unsubscribes = [
        alpaca_stream.build_subscription("unsubscribe", _group(removed[start : start + SUBSCRIBE_BATCH]))
        for start in range(0, len(removed), SUBSCRIBE_BATCH)
    ]
    if any(symbol == ALL for _, symbol in (*added, *removed)):
        return subscribes + unsubscribes
    return unsubscribes + subscribes


def _group(wishes: Iterable[Wish]) -> dict[str, list[str]]:
    channels: dict[str, list[str]] = {}
    for channel, symbol in wishes:
        channels.setdefault(channel, []).append(symbol)
    return channels
