"""What clients of the hub's WebSocket say and are told: Alpaca's two dialects. Pure.

A dialect takes a client's message and answers what to send back and what the client wants now; it knows no socket. Own
additions, for clients that ask for them with `?hub=1`: positions to come back to, the channel of watermarks, and the
state of the upstream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgpack
import msgspec
import orjson

from dry_work.errors import CodecError
from dry_work.hub.core import ConnectionState
from dry_work.hub.events import ALL, CRYPTO, IMPLIED, NEWS, OPTIONS, ORDERS, STOCKS, WATERMARKS, HubEvent, Topic
from dry_work.market.symbols import is_crypto, is_option, is_symbol
from dry_work.wire import alpaca_stream
from dry_work.wire.alpaca_stream import CRYPTO_CHANNELS, STOCK_CHANNELS, StreamCodec
from dry_work.wire.pubsub import parse_time

TRADE_UPDATES = "trade_updates"
BARS = "bars"
_CHANNELS: Mapping[str, tuple[str, ...]] = {
    STOCKS: (*STOCK_CHANNELS, *IMPLIED),
    CRYPTO: CRYPTO_CHANNELS,
    OPTIONS: ("trades", "quotes"),
    NEWS: ("news",),
}
_ALL_CHANNELS = frozenset(channel for channels in _CHANNELS.values() for channel in channels)
_TIME_KEYS = ("t", "created_at", "updated_at")
_CLOSING = frozenset((402, 404, 412))  # the session is over after these
AUTH_TIMEOUT = 404
SLOW_CLIENT = 407

POLICY_VIOLATION = 1008
TRY_AGAIN_LATER = 1013


class Resume(msgspec.Struct, frozen=True):
    """Where a client stands that comes back."""

    epoch: str
    offset: int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a client's message leads to."""

    frames: tuple[bytes, ...] = ()
    added: tuple[Topic, ...] = ()
    removed: tuple[Topic, ...] = ()
    resume: Resume | None = None  # events of `added` after this come first
    snapshot: bool = False  # the last event of each of `added` comes first
    close: int = 0  # code to close with, after the frames


class Dialect(ABC):
    """One client's conversation. `binary` frames are sent as such."""

    binary = False
    form: object | None = None  # clients of one form get equal frames for the same events; None: nobody else does
    feed = ""
    is_authenticated = False

    @abstractmethod
    def greet(self) -> tuple[bytes, ...]:
        """Return what is sent before the client has said anything."""

    @abstractmethod
    def take(self, message: bytes | str) -> Answer:
        """Take a client's message."""

    @abstractmethod
    def time_out(self) -> Answer:
        """The client has not authenticated in time."""

    @abstractmethod
    def encode(self, events: Iterable[HubEvent]) -> list[bytes]:
        """Return the frames that bring events to the client."""

    def tell_position(self, added: Iterable[Topic], *, epoch: str, offset: int) -> tuple[bytes, ...]:
        """Return what tells a client that has asked for watermarks where it begins; nothing otherwise."""
        return ()

    @abstractmethod
    def tell_state(self, state: str) -> tuple[bytes, ...]:
        """Return what tells a client that has asked for it how the upstream stands; nothing otherwise."""

    @abstractmethod
    def tell_slow(self) -> tuple[bytes, ...]:
        """Return what tells the client that it has lost something."""


class DataDialect(Dialect):
    """Market data.

    Args:
        feed: stocks, options, crypto or news.
        codec: how messages are written.
        admits: tells whether a secret is the hub's token.
        tells_position: the client has asked for positions.
    """

    def __init__(
        self,
        feed: str,
        codec: StreamCodec,
        *,
        admits: Callable[[object], bool],
        tells_position: bool = False,
    ) -> None:
        self.feed = feed
        self.binary = codec is StreamCodec.MSGPACK
        self._codec = codec
        self._admits = admits
        self._tells_position = tells_position
        self.form = (codec, tells_position)
        self._encode_item = _ENCODERS[codec]
        self._tells_lost = False
        offered = (*_CHANNELS[feed], WATERMARKS) if tells_position else _CHANNELS[feed]
        self._channels: dict[str, dict[str, None]] = {channel: {} for channel in offered}

    def greet(self) -> tuple[bytes, ...]:
        if self.feed == OPTIONS and not self.binary:
            return self._say_error(412)
        return self._say(alpaca_stream.encode_success_item("connected"))

    @property
    def is_refused(self) -> bool:
        """Tell whether the session is over before it has begun."""
        return self.feed == OPTIONS and not self.binary

    def take(self, message: bytes | str) -> Answer:
        try:
            asked = alpaca_stream.parse_message(message)
        except CodecError:
            return self._refuse(400)
        action = asked.pop("action")
        if action == "auth":
            return self._authenticate(asked)
        if action not in ("subscribe", "unsubscribe"):
            return self._refuse(400)
        if not self.is_authenticated:
            return self._refuse(401)
        return self._subscribe(asked, adds=action == "subscribe")

    def time_out(self) -> Answer:
        return self._refuse(AUTH_TIMEOUT)

    def encode(self, events: Iterable[HubEvent]) -> list[bytes]:
        last: HubEvent | None = None
        items: list[bytes] = []
        codec, encode = self._codec, self._encode_item
        for last in events:
            items.append(last.encode(codec, encode))
        if last is not None and self._tells_position:
            position = {"T": "hub", "epoch": last.epoch, "offset": last.offset}
            items.append(alpaca_stream.encode_item(position, self._codec))
        return list(alpaca_stream.join_bytes(items, self._codec))

    def tell_slow(self) -> tuple[bytes, ...]:
        return self._say_error(SLOW_CLIENT)

    def _authenticate(self, asked: Mapping[str, Any]) -> Answer:
        if self.is_authenticated:
            return self._refuse(403)
        if not isinstance(asked.get("key"), str) or not self._admits(asked.get("secret")):
            return self._refuse(402)
        self.is_authenticated = True
        return Answer(frames=self._say(alpaca_stream.encode_success_item("authenticated")))

    def _subscribe(self, asked: dict[str, Any], *, adds: bool) -> Answer:
        resume = _parse_resume(asked.pop("since", None))
        snapshot = asked.pop("snapshot", False) is True
        channels: dict[str, list[str]] = {}
        for name, symbols in asked.items():
            if name not in self._channels:
                return self._refuse(410 if name in _ALL_CHANNELS else 400)
            parsed = self._parse_symbols(symbols, name)
            if parsed is None:
                return self._refuse(400)
            channels[name] = parsed
        changed: dict[Topic, None] = {}
        for name, symbols in channels.items():
            for channel in (name, *IMPLIED) if name == "trades" and self.feed == STOCKS else (name,):
                held = self._channels[channel]
                for symbol in symbols:
                    if (symbol in held) != adds:
                        changed[self.feed, channel, symbol] = None
                    if adds:
                        held[symbol] = None
                    else:
                        held.pop(symbol, None)
        state = alpaca_stream.encode_subscription_item(self._channels)
        topics = tuple(changed)
        return Answer(
            frames=self._say(state),
            added=topics if adds else (),
            removed=() if adds else topics,
            resume=resume if adds else None,
            snapshot=snapshot and adds,
        )

    def _parse_symbols(self, value: object, channel: str) -> list[str] | None:
        if not isinstance(value, list):
            return None
        symbols: list[str] = []
        for symbol in value:
            if not isinstance(symbol, str):
                return None
            name = symbol.strip().upper()
            if name != ALL and (not is_symbol(name) or not self._serves(name, channel)):
                return None
            symbols.append(name)
        return symbols

    def _serves(self, symbol: str, channel: str) -> bool:
        if self.feed == NEWS:
            return True
        if is_option(symbol) and channel == BARS and self.feed == STOCKS:
            return self._tells_position  # the hub makes them itself, and Alpaca's own clients know none
        return is_crypto(symbol) == (self.feed == CRYPTO) and is_option(symbol) == (self.feed == OPTIONS)

    def tell_recovered(self, *, recovered: bool, epoch: str, offset: int) -> tuple[bytes, ...]:
        """Return what tells a client that came back whether it has missed nothing, and where it stands."""
        return self._say({"T": "hub", "epoch": epoch, "offset": offset, "recovered": recovered})

    def tell_position(self, added: Iterable[Topic], *, epoch: str, offset: int) -> tuple[bytes, ...]:
        if not any(channel == WATERMARKS for _, channel, _ in added):
            return ()
        return self._say({"T": "hub", "epoch": epoch, "offset": offset})

    def tell_state(self, state: str) -> tuple[bytes, ...]:
        # What does not mean that data may be missing is not told: not the steps of a connection, not its first one.
        is_loss = state in (ConnectionState.RECONNECTING, ConnectionState.ERROR)
        is_back = self._tells_lost and state == ConnectionState.CONNECTED
        if not self._tells_position or not any(self._channels.values()) or not (is_loss or is_back):
            return ()
        self._tells_lost = is_loss
        return self._say({"T": "hub_status", "state": state})

    def _refuse(self, code: int) -> Answer:
        return Answer(frames=self._say_error(code), close=POLICY_VIOLATION if code in _CLOSING else 0)

    def _say(self, item: Mapping[str, Any]) -> tuple[bytes, ...]:
        return tuple(alpaca_stream.join_bytes([alpaca_stream.encode_item(item, self._codec)], self._codec))

    def _say_error(self, code: int) -> tuple[bytes, ...]:
        return self._say(alpaca_stream.encode_error_item(code))


class OrderDialect(Dialect):
    """Trade updates of one account.

    Args:
        feed: orders.paper or orders.live.
        is_stream: Alpaca's own path, whose `auth` is answered in Alpaca's own way.
        admits: tells whether a secret is the hub's token.
        is_hub_aware: the client has asked for numbers and the state of the upstream.
    """

    def __init__(
        self,
        feed: str,
        *,
        is_stream: bool,
        admits: Callable[[object], bool],
        is_hub_aware: bool = False,
    ) -> None:
        self.feed = feed
        self._topic: Topic = (feed, ORDERS, ALL)
        self._is_stream = is_stream
        self._admits = admits
        self.is_hub_aware = is_hub_aware
        self.form = None if is_hub_aware else TRADE_UPDATES  # a hub-aware client's frames are numbered
        self._is_listening = False
        self._seq = 0

    def greet(self) -> tuple[bytes, ...]:
        return ()

    def take(self, message: bytes | str) -> Answer:
        try:
            asked = alpaca_stream.parse_message(message)
        except CodecError:
            return _refuse_order_client(400, close=False)
        action = asked["action"]
        if action == "auth" and not self._is_stream:
            return self._authenticate_plain(asked)
        if action in ("auth", "authenticate"):
            return self._authenticate(asked, action)
        if action == "listen":
            return self._listen(asked.get("data"))
        return _refuse_order_client(400, close=False)

    def time_out(self) -> Answer:
        return _refuse_order_client(AUTH_TIMEOUT, close=True)

    def encode(self, events: Iterable[HubEvent]) -> list[bytes]:
        if not self.is_hub_aware:
            return [event.encode(TRADE_UPDATES, _encode_order_event) for event in events]
        frames = []
        for event in events:
            self._seq += 1
            own = {"seq": self._seq, "epoch": event.epoch, "offset": event.offset, "event_id": event.event_id}
            frames.append(orjson.dumps({"stream": TRADE_UPDATES, "data": event.item, **own}, default=str))
        return frames

    def tell_slow(self) -> tuple[bytes, ...]:
        return ()  # it is disconnected instead

    def tell_state(self, state: str) -> tuple[bytes, ...]:
        if not self.is_hub_aware or not self._is_listening:
            return ()
        return (orjson.dumps({"stream": "hub_status", "data": {"feed": TRADE_UPDATES, "state": state}}),)

    def tell_recovered(self, *, recovered: bool, epoch: str, offset: int) -> tuple[bytes, ...]:
        """Return what tells a client that came back whether it has missed nothing, and where it stands."""
        data = {"recovered": recovered, "epoch": epoch, "offset": offset}
        return (orjson.dumps({"stream": "hub_resume", "data": data}),)

    def _authenticate_plain(self, asked: Mapping[str, Any]) -> Answer:
        if self.is_authenticated:
            return _refuse_order_client(403, close=False)
        if not isinstance(asked.get("key"), str) or not self._admits(asked.get("secret")):
            return _refuse_order_client(402, close=True)
        self.is_authenticated = self._is_listening = True
        answer = orjson.dumps([alpaca_stream.encode_success_item("authenticated")])
        return Answer(frames=(answer,), added=(self._topic,), resume=_parse_resume(asked.get("since")))

    def _authenticate(self, asked: Mapping[str, Any], action: str) -> Answer:
        data = asked.get("data") if action == "authenticate" else asked
        key, secret = ("key_id", "secret_key") if action == "authenticate" else ("key", "secret")
        admitted = isinstance(data, dict) and isinstance(data.get(key), str) and self._admits(data.get(secret))
        self.is_authenticated = self.is_authenticated or admitted
        status = "authorized" if admitted else "unauthorized"
        return Answer(
            frames=(_order_message("authorization", {"status": status, "action": action}),),
            close=0 if admitted else POLICY_VIOLATION,
        )

    def _listen(self, data: object) -> Answer:
        if not self.is_authenticated:
            answer = {"status": "unauthorized", "action": "listen"}
            return Answer(frames=(_order_message("authorization", answer),))
        streams = data.get("streams") if isinstance(data, dict) else None
        if not isinstance(streams, list):
            return _refuse_order_client(400, close=False)
        wants = TRADE_UPDATES in streams
        changed = (self._topic,) if wants != self._is_listening else ()
        self._is_listening = wants
        return Answer(
            frames=(_order_message("listening", {"streams": [TRADE_UPDATES] if wants else []}),),
            added=changed if wants else (),
            removed=() if wants else changed,
            resume=_parse_resume(data.get("since")) if isinstance(data, dict) and wants else None,
        )


def _order_message(stream: str, data: Mapping[str, Any]) -> bytes:
    return orjson.dumps({"stream": stream, "data": data})


def _refuse_order_client(code: int, *, close: bool) -> Answer:
    frame = orjson.dumps([alpaca_stream.encode_error_item(code)])
    return Answer(frames=(frame,), close=POLICY_VIOLATION if close else 0)


def _parse_resume(value: object) -> Resume | None:
    """Return the position of a client that comes back; one that cannot be read is that of no epoch."""
    if value is None:
        return None
    try:
        return msgspec.convert(value, type=Resume)
    except msgspec.ValidationError:
        return Resume("", 0)


def _encode_json(event: HubEvent) -> bytes:
    return alpaca_stream.encode_item(event.item, StreamCodec.JSON)


def _encode_msgpack(event: HubEvent) -> bytes:
    """Times that came as text become MessagePack's."""
    item = event.item
    for name in _TIME_KEYS:
        text = item.get(name)
        if isinstance(text, str):
            try:
                item = {**item, name: msgpack.Timestamp.from_unix_nano(parse_time(text))}
            except ValueError:
                continue  # it goes on as it came
    return alpaca_stream.encode_item(item, StreamCodec.MSGPACK)


def _encode_order_event(event: HubEvent) -> bytes:
    return event.raw or orjson.dumps({"stream": TRADE_UPDATES, "data": event.item}, default=str)


_ENCODERS: Mapping[StreamCodec, Callable[[HubEvent], bytes]] = {
    StreamCodec.JSON: _encode_json,
    StreamCodec.MSGPACK: _encode_msgpack,
}
