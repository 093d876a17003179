"""News and order updates to Pub/Sub: from the bus to their topics, in order, none left out. Event-loop only.

When a topic is full, because Pub/Sub is away, its events wait in the hub's history. That is bounded: what leaves it
before it was published is lost, counted and logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgpack
import msgspec
import structlog

from dry_work.hub.bus import Bus
from dry_work.hub.events import ALL, NEWS, ORDER_FEEDS, ORDERS, HubEvent, Topic
from dry_work.hub.ports import TopicStatus
from dry_work.hub.queues import ClientQueue, Overflow
from dry_work.hub.sinks.pubsub import Message, OrderUpdate, PubSubSink
from dry_work.market.messages import News
from dry_work.wire.pubsub import encode_time

_log = structlog.get_logger(__name__)


class EventPump:
    """Passes events of the bus on to one topic.

    Args:
        bus: gives the events.
        sink: has the topic.
        topic: its id.
        wanted: what goes there, by feed.
        build: makes the message of an event.
    """

    def __init__(
        self,
        bus: Bus,
        sink: PubSubSink,
        topic: str,
        wanted: Mapping[str, Iterable[Topic]],
        build: Callable[[HubEvent], Message],
    ) -> None:
        self.topic = topic
        self._bus = bus
        self._sink = sink
        self._wanted = {feed: tuple(topics) for feed, topics in wanted.items()}
        self._build = build
        self._offsets = {feed: bus.position(feed) for feed in self._wanted}
        # The queue holds nothing: it only tells that something has come.
        self._bell = ClientQueue(1, Overflow.DROP_OLDEST, on_ready=self._ring)
        self._is_rung = False
        self.lost = 0

    def start(self) -> None:
        """Begin with the events that come from now on."""
        self._offsets = {feed: self._bus.position(feed) for feed in self._wanted}
        self._bus.attach(self._bell, [topic for topics in self._wanted.values() for topic in topics])

    def stop(self) -> None:
        """Pass the rest on, whether there is room or not: the topic has its own time to publish it."""
        self._bus.detach(self._bell)
        self.run(is_last=True)

    @property
    def held(self) -> int:
        """Events that wait for room in the topic."""
        return sum(self._bus.position(feed) - offset for feed, offset in self._offsets.items())

    def add_to(self, status: TopicStatus) -> TopicStatus:
        """Return the status of the topic with what waits here and what was lost."""
        return msgspec.structs.replace(status, held=self.held, dropped=status.dropped + self.lost)

    def run(self, *, is_last: bool = False) -> None:
        """Pass on what has come, if there is room."""
        self._is_rung = False
        self._bell.take()
        for feed, topics in self._wanted.items():
            before, now = self._offsets[feed], self._bus.position(feed)
            if before == now or not (is_last or self._sink.has_room(self.topic)):
                continue
            replay = self._bus.replay(feed, topics, epoch=self._bus.epoch, offset=before)
            if not replay.recovered:
                lost = (replay.events[0].offset if replay.events else now + 1) - before - 1
                self.lost += lost
                _log.error("events were lost before Pub/Sub took them", topic=self.topic, feed=feed, events=lost)
            self._offsets[feed] = now
            self._sink.offer(self.topic, [self._build(event) for event in replay.events])

    def _ring(self) -> None:
        if not self._is_rung:
            self._is_rung = True
            asyncio.get_running_loop().call_soon(self.run)


def build_news_pump(bus: Bus, sink: PubSubSink, topic: str, topics: Iterable[Topic]) -> EventPump:
    """Return the pump of the news."""
    return EventPump(bus, sink, topic, {NEWS: topics}, build_news)


def build_order_pump(bus: Bus, sink: PubSubSink, topic: str, *, account_of: Callable[[str], str]) -> EventPump:
    """Return the pump of the order updates of all accounts; `account_of` gives the account id of a feed."""
    wanted = {feed: [(feed, ORDERS, ALL)] for feed in ORDER_FEEDS}
    return EventPump(bus, sink, topic, wanted, lambda event: build_order_update(event, account=account_of(event.feed)))


def build_news(event: HubEvent) -> News:
    """Return an article as Pub/Sub's readers know it."""
    item = event.item
    return News(
        symbols=event.symbols,
        headline=_read_text(item, "headline"),
        summary=_read_text(item, "summary"),
        author=_read_text(item, "author"),
        url=_read_text(item, "url"),
        source=_read_text(item, "source"),
        created_at=_read_text(item, "created_at"),
        updated_at=_read_text(item, "updated_at"),
        ingested_at=encode_time(event.ts_recv_ns),
    )


def build_order_update(event: HubEvent, *, account: str) -> OrderUpdate:
    """Return an order update with the facts that its readers choose by."""
    return OrderUpdate(
        frame=event.raw,
        account=account,
        symbol=event.symbol,
        event=str(event.item.get("event") or ""),
        event_id=event.event_id,
    )


def _read_text(item: Mapping[str, Any], name: str) -> str:
    value = item.get(name)
    if isinstance(value, msgpack.Timestamp):
        return encode_time(value.to_unix_nano())
    return value if isinstance(value, str) else ""
