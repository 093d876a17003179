"""Bars and news to NATS: which symbols, and their events. Event-loop only."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from numbers import Number

import nats.errors
import structlog
from nats.aio.client import Client

from dry_work.errors import CodecError, ConfigError
from dry_work.hub.core import feed_of
from dry_work.hub.events import ALL, NEWS, STOCKS, HubEvent, Topic
from dry_work.hub.message_types import Kind, count_kinds, read_kind
from dry_work.hub.ports import HubPort
from dry_work.hub.queues import ClientQueue, Overflow
from dry_work.hub.sinks.nats_link import FAILURES
from dry_work.hub.sinks.nats_settings import EVERY, StreamSettings, parse_symbols
from dry_work.hub.sinks.subscription_memory import SubscriptionMemory
from dry_work.wire.nats_subjects import Subjects
from dry_work.wire.protobuf_stream import encode_bar, encode_news

BATCH = 512
BARS = "bars"
MARSHAL, PUBLISH = "marshal", "publish"  # what failed: the encoding, or NATS did not take it

_PRICES = ("o", "h", "l", "c")

_log = structlog.get_logger(__name__)

Message = tuple[str, bytes]  # subject and payload


class Subscriptions:
    """The symbols whose bars, or news, are published.

    Args:
        channel: bars or news.
        switch: the variable that switches this part on.
        memory: keeps the symbols over a restart; None: they are not kept.
    """

    def __init__(
        self,
        hub: HubPort,
        *,
        channel: str,
        switch: str,
        is_enabled: bool,
        memory: SubscriptionMemory | None = None,
    ) -> None:
        self.channel = channel
        self.switch = switch
        self.is_enabled = is_enabled
        self._hub = hub
        self._client = f"nats-{channel}"
        self._memory = memory
        self._symbols: dict[str, None] = {}
        self.on_change: Callable[[], None] | None = None  # called after the symbols have changed

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols, in the order in which they were asked for."""
        return tuple(self._symbols)

    @property
    def topics(self) -> list[Topic]:
        """The topics of the symbols."""
        return self._build_topics(self._symbols)

    def restore(self) -> None:
        """Publish the symbols of the settings, as they were changed before a restart.

        Raises:
            ConfigError: one of the settings is no symbol, or none that is offered.
        """
        memory, self._memory = self._memory, None  # it is not written before all are there
        if memory is None:
            return
        try:
            self.add(memory.read())
        except ConfigError as error:
            _log.warning("the symbols that were kept are left out", channel=self.channel, reason=str(error))
            self.add(memory.configured)
        finally:
            self._memory = memory

    def add(self, symbols: Sequence[str]) -> None:
        """Publish `symbols` too.

        Raises:
            ConfigError: for what is no symbol, or none that is offered. Nothing is added then.
        """
        added = [symbol for symbol in parse_symbols(symbols, channel=self.channel) if symbol not in self._symbols]
        if not added:
            return
        self._hub.hold(self._client, self._build_topics(added))
        self._symbols.update(dict.fromkeys(added))
        self._tell()

    def remove(self, symbols: Sequence[str]) -> None:
        """Publish `symbols` no more; what is not published is left out.

        Raises:
            ConfigError: for what is no symbol. Nothing is removed then.
        """
        removed = [symbol for symbol in parse_symbols(symbols, channel=self.channel) if symbol in self._symbols]
        if not removed:
            return
        for symbol in removed:
            del self._symbols[symbol]
        kept = set(self.topics)
        self._hub.release(self._client, [topic for topic in self._build_topics(removed) if topic not in kept])
        self._tell()

    def close(self) -> None:
        """Let go of all symbols; they are kept for the next start."""
        self._symbols.clear()
        self._hub.release(self._client)

    def _build_topics(self, symbols: Iterable[str]) -> list[Topic]:
        if self.channel == NEWS:
            return [(NEWS, NEWS, ALL if symbol == EVERY else symbol) for symbol in symbols]
        topics: list[Topic] = []
        for symbol in symbols:
            topics.append((STOCKS, BARS, ALL) if symbol == EVERY else (feed_of(symbol), BARS, symbol))
        return topics

    def _tell(self) -> None:
        if self._memory is not None:
            self._memory.write(self.symbols)
        if self.on_change is not None:
            self.on_change()


class DataPublisher:
    """The events of a part's subscriptions, from the bus to NATS.

    What is published is flushed; what NATS has not taken then is published again over the next connection.
    """

    def __init__(
        self, hub: HubPort, subscriptions: Subscriptions, settings: StreamSettings, subjects: Subjects
    ) -> None:
        self.subscriptions = subscriptions
        subscriptions.on_change = self._follow
        self._hub = hub
        self._subjects = subjects
        self._processors = settings.processors
        self._arrived = asyncio.Event()
        self.queue = ClientQueue(settings.buffer_size, Overflow.DROP_OLDEST, on_ready=self._arrived.set)
        self._batch: Sequence[HubEvent] = ()  # taken from the queue and not taken by NATS
        self._attached: list[Topic] = []
        self._is_active = False
        self.delivered_kinds: Counter[Kind] = Counter()
        self._lost_kinds: Counter[Kind] = Counter()  # beside those that the queue has dropped
        self.failures: Counter[str] = Counter()
        self.lost = 0  # cannot be encoded, or are too large for NATS
        self.left = 0  # to the hub that acts now
        self.published = 0

    def counts(self) -> dict[str, int]:
        """Return the counts of the events: offered = delivered + dropped + waiting."""
        counts = self.queue.counts
        waiting = counts.waiting + len(self._batch)
        return {
            "offered": counts.offered,
            "delivered": self.published,
            "conflated": counts.conflated,
            "dropped": counts.dropped + self.lost + self.left,
            "waiting": waiting,
        }

    @property
    def dropped_kinds(self) -> Counter[Kind]:
        """Those that were dropped, by feed and channel."""
        return self.queue.dropped_kinds + self._lost_kinds

    def activate(self, *, is_active: bool) -> None:
        """Take events, or leave them to the hub that acts."""
        if is_active == self._is_active:
            return
        self._is_active = is_active
        self._follow()
        if not is_active:
            left = [*self._batch, *self.queue.take()]
            self.left += len(left)
            self._lost_kinds.update(map(read_kind, left))
            self._batch = ()

    def close(self) -> None:
        """Take no more events; those that wait are lost, and counted."""
        self.activate(is_active=False)
        self.subscriptions.close()

    async def run(self, client: Client) -> None:
        """Publish until cancelled.

        Raises:
            nats.errors.Error: NATS failed. What it has not taken waits.
        """
        while True:
            await self.flush(client)
            self._arrived.clear()
            if not len(self.queue):
                await self._arrived.wait()

    async def flush(self, client: Client) -> None:
        """Publish what waits.

        Raises:
            nats.errors.Error: NATS failed. What it has not taken waits.
        """
        while self._batch or len(self.queue):
            if not self._batch:
                self._batch = self.queue.take(BATCH)
            shares: list[list[HubEvent]] = [[] for _ in range(min(self._processors, len(self._batch)))]
            for event in self._batch:
                shares[zlib.crc32(event.symbol.encode()) % len(shares)].append(event)
            try:
                found = await asyncio.gather(*(self._publish(client, share) for share in shares))
                await client.flush()
            except FAILURES:
                self.failures[PUBLISH] += 1
                raise
            lost = [loss for losses in found for loss in losses]
            self.lost += len(lost)
            self.failures.update(reason for _, reason in lost)
            lost_kinds = count_kinds(event for event, _ in lost)
            self._lost_kinds.update(lost_kinds)
            self.published += len(self._batch) - len(lost)
            self.delivered_kinds.update(count_kinds(self._batch) - lost_kinds)
            self._batch = ()

    async def _publish(self, client: Client, events: list[HubEvent]) -> list[tuple[HubEvent, str]]:
        """Publish events one after another; return those that cannot be, with what fails."""
        lost: list[tuple[HubEvent, str]] = []
        for event in events:
            try:
                subject, data = self._encode(event)
            except CodecError as error:
                lost.append((event, MARSHAL))
                if not self.failures[MARSHAL]:
                    _log.warning("an event cannot be told over NATS", symbol=event.symbol, reason=error.reason)
                continue
            try:
                await client.publish(subject, data)
            except nats.errors.MaxPayloadError:
                lost.append((event, PUBLISH))
                _log.warning("an event is too large for NATS", subject=subject, size=len(data))
        return lost

    def _encode(self, event: HubEvent) -> Message:
        if event.feed == NEWS:
            return self._subjects.news(event.item.get("id")), event.encode("stream.v0", _encode_news)
        return self._subjects.bar(event.symbol), event.encode("stream.v0", _encode_bar)

    def _follow(self) -> None:
        wanted = self.subscriptions.topics if self._is_active else []
        kept = set(wanted)
        self._hub.bus.detach(self.queue, [topic for topic in self._attached if topic not in kept])
        self._hub.bus.attach(self.queue, wanted)
        self._attached = wanted


def _encode_bar(event: HubEvent) -> bytes:
    # In place of what is no number the message would have 0, and a reader believes a price of 0.
    for name in _PRICES:
        if not isinstance(event.item.get(name), Number):
            raise CodecError(f"{name} is no number")
    return encode_bar(event.item)


def _encode_news(event: HubEvent) -> bytes:
    return encode_news(event.item)
