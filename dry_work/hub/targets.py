"""Where the market data of an upstream goes: onto the bus, and its minute bars to Pub/Sub. Event-loop only."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from dry_work.hub.bus import Bus
from dry_work.hub.core import Feed, SliceCollector, TopicMessage, UpstreamMessage
from dry_work.hub.events import CHANNELS, UNKNOWN, WATERMARKS
from dry_work.hub.upstreams.alpaca_data import Item
from dry_work.hub.upstreams.subscription_plan import Wish

# A watermark follows its bars at once. When it does not, they are not held back for it any longer than this.
WATERMARK_WAIT_S = 0.02
WATERMARK_WAIT_MESSAGES = 1_000

if TYPE_CHECKING:
    from dry_work.hub.sinks.pubsub import PubSubSink

_CHANNELS = {**CHANNELS, "w": WATERMARKS}


class FeedTarget:
    """Takes the market data of one feed.

    Args:
        topics: takes the bars, when the feed has a topic.
        is_alone: nobody but Pub/Sub reads this hub. When its topic has no room, the upstream is then not read; it is
            not read either while watermarks come, for those who wait for them. Otherwise the topic's oldest bars are
            given up: what Pub/Sub does not take is no reason for others to wait.
        tells_statuses: trading statuses and price bands go to the topic too.
    """

    def __init__(
        self,
        feed: Feed,
        bus: Bus,
        topics: PubSubSink | None = None,
        *,
        is_alone: bool = True,
        tells_statuses: bool = False,
    ) -> None:
        self._feed = feed.feed
        self._bus = bus
        self._topic = feed.topic
        self._sink = topics if feed.topic else None
        self._is_alone = is_alone
        self._holds_back = is_alone
        self.reads_bars = self._sink is not None
        self.reads_statuses = tells_statuses and self._sink is not None
        self._collector = SliceCollector()
        self._timer: asyncio.TimerHandle | None = None
        self._room = asyncio.Event()
        self._is_wanted = False  # somebody wants something of the feed

    def want(self, wishes: Collection[Wish]) -> None:
        """Note what is wanted of the feed, by channel and symbol."""
        self._is_wanted = bool(wishes)

    def begin_session(self, *, takes_watermarks: bool) -> None:
        self._holds_back = self._is_alone or takes_watermarks
        self._collector.begin_session(takes_watermarks=takes_watermarks)

    def note_subscribed(self, channels: Mapping[str, tuple[str, ...]]) -> None:
        """Nothing is to be done."""

    def take(self, items: Sequence[Item], messages: Sequence[UpstreamMessage], *, recv_ns: int) -> None:
        feed, publish = self._feed, self._bus.publish
        for item in items:
            symbols = item.get("symbols")
            if isinstance(symbols, list):
                names = tuple(str(symbol) for symbol in symbols)
                symbol = names[0] if names else ""
            else:
                names, symbol = (), str(item.get("S") or "")
            publish(feed, _CHANNELS.get(item["T"], UNKNOWN), symbol, item, ts_recv_ns=recv_ns, symbols=names)
        if self._sink is None or not messages:
            return
        self._offer(self._collector.add(messages))
        if self._collector.waiting >= WATERMARK_WAIT_MESSAGES:
            self._flush()
        elif self._collector.waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WATERMARK_WAIT_S, self._flush)
        elif not self._collector.waiting:
            self._cancel_timer()

    def end_session(self) -> None:
        self._flush()

    def has_room(self) -> bool:
        return self._sink is None or not self._holds_back or self._sink.has_room(self._topic)

    async def wait_for_room(self) -> None:
        while not self.has_room():
            self._room.clear()
            if not self.has_room():
                await self._room.wait()

    def announce_room(self) -> None:
        """There is room again."""
        self._room.set()

    def _flush(self) -> None:
        self._cancel_timer()
        self._offer(self._collector.take())

    def _offer(self, messages: Sequence[TopicMessage]) -> None:
        if messages and self._sink is not None:
            self._sink.offer(self._topic, messages, drops_oldest=not self._holds_back)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
