"""Bars and statuses as Alpaca wrote them, and watermarks, for readers who hold symbols over NATS. Event-loop only.

`stream.v0.Bar` has no place for a fraction of a volume, for extra fields, or for the position; its subjects have none
for a watermark. A reader asks by a request (`Subjects.holds`) and repeats it; when it is not heard of any more, its
symbols are let go of. The hub that publishes the bars is the one that answers.

Request: `{"client": "…", "symbols": ["AAPL", "BTC/USD"], "lease_s": 30}`, without symbols to let go of them; with
`"statuses": true` the trading statuses and price bands of the stocks come on the subjects of their bars. Answer:
`{"epoch": "…", "positions": {"stocks": 17, "crypto": 4}}`, or `{"error": "…"}`. Messages: `{"epoch": "…", "offset": 18,
"lost": 0, "item": {…}}`; `lost` counts what this hub could not publish since its start.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from dry_work.errors import ConfigError
from dry_work.hub.core import bar_topics, status_topics
from dry_work.hub.events import ALL, CRYPTO, STOCKS, WATERMARKS, HubEvent, Topic
from dry_work.hub.ports import HubPort
from dry_work.hub.sinks.nats_data import DataPublisher, Message, Subscriptions
from dry_work.hub.sinks.nats_settings import StreamSettings
from dry_work.market.symbols import parse_symbol
from dry_work.wire.alpaca_stream import StreamCodec, encode_item
from dry_work.wire.nats_subjects import Subjects

LONGEST_LEASE_S = 600.0
READERS = 1_000  # that may hold symbols at a time


class HoldRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What a reader asks for."""

    client: str
    symbols: list[str] = []
    lease_s: float = 30.0
    statuses: bool = False


class HeldSymbols(Subscriptions):
    """The symbols of all readers, each set for as long as its reader is heard of."""

    def __init__(self, hub: HubPort) -> None:
        super().__init__(hub, channel="bars", switch="ENABLE_STOCK_STREAM", is_enabled=True)
        self._readers: dict[str, tuple[Topic, ...]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @property
    def topics(self) -> list[Topic]:
        found = {topic: None for topics in self._readers.values() for topic in topics}
        for feed in dict.fromkeys(feed for feed, _, _ in found):
            found[feed, WATERMARKS, ALL] = None
        return list(found)

    def hold(self, request: HoldRequest) -> None:
        """Hold what a reader asks for, in place of what it had.

        Raises:
            ConfigError: for what is no symbol, or too many readers. Nothing is changed then.
        """
        symbols = [parse_symbol(symbol) for symbol in request.symbols]
        topics = (*bar_topics(symbols), *(status_topics(symbols) if request.statuses else ()))
        if not topics:
            self.let_go(request.client)
            return
        if request.client not in self._readers and len(self._readers) >= READERS:
            raise ConfigError(f"{READERS} readers hold symbols already")
        self._hub.hold(f"nats-{request.client}", topics)
        before = self._readers.get(request.client, ())
        self._hub.release(f"nats-{request.client}", [topic for topic in before if topic not in topics])
        self._readers[request.client] = topics
        self._set_timer(request.client, min(max(request.lease_s, 1.0), LONGEST_LEASE_S))
        if before != topics:
            self._tell()

    def let_go(self, client: str) -> None:
        """Let go of a reader's symbols."""
        timer = self._timers.pop(client, None)
        if timer is not None:
            timer.cancel()
        if self._readers.pop(client, None) is not None:
            self._hub.release(f"nats-{client}")
            self._tell()

    def close(self) -> None:
        for client in list(self._readers):
            self.let_go(client)

    def _set_timer(self, client: str, lease_s: float) -> None:
        timer = self._timers.get(client)
        if timer is not None:
            timer.cancel()
        self._timers[client] = asyncio.get_running_loop().call_later(lease_s, self.let_go, client)


class ItemPublisher(DataPublisher):
    """Publishes the items of the symbols that readers hold, in their order."""

    def __init__(self, hub: HubPort, settings: StreamSettings, subjects: Subjects) -> None:
        self.held = HeldSymbols(hub)
        one_by_one = msgspec.structs.replace(settings, processors=1)
        super().__init__(hub, self.held, one_by_one, subjects)

    async def listen(self, client: Client) -> None:
        """Answer the requests of readers for as long as `client` is connected.

        Raises:
            nats.errors.Error: NATS failed.
        """

        async def answer(message: Msg) -> None:
            if self._is_active and message.reply:
                await client.publish(message.reply, orjson.dumps(self.answer(message.data)))

        await client.subscribe(self._subjects.holds, cb=answer)

    def answer(self, data: bytes) -> dict[str, Any]:
        """Return the answer to a reader's request."""
        try:
            request = msgspec.json.decode(data, type=HoldRequest)
            self.held.hold(request)
        except (msgspec.MsgspecError, UnicodeDecodeError, ConfigError) as error:
            return {"error": str(error)}
        bus = self._hub.bus
        return {"epoch": bus.epoch, "positions": {feed: bus.position(feed) for feed in (STOCKS, CRYPTO)}}

    def _encode(self, event: HubEvent) -> Message:
        head = orjson.dumps({"epoch": event.epoch, "offset": event.offset, "lost": self.queue.counts.dropped})
        item = event.encode(StreamCodec.JSON, _encode_json)
        return self._subjects.item(event.feed, event.symbol), head[:-1] + b',"item":' + item + b"}"


def _encode_json(event: HubEvent) -> bytes:
    return encode_item(event.item, StreamCodec.JSON)
