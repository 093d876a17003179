"""Market data to Redis: prices and bars on channels, every event in a stream. Event-loop only."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import structlog

from dry_work.clock import Clock
from dry_work.errors import CodecError
from dry_work.hub.events import ALL, WATERMARKS, HubEvent, Topic
from dry_work.hub.message_types import Kind, count_kinds
from dry_work.hub.ports import HubPort
from dry_work.hub.queues import ClientQueue, Overflow
from dry_work.hub.sinks.redis_link import RedisConnection, RedisError
from dry_work.hub.sinks.redis_settings import RedisSettings
from dry_work.wire.alpaca_stream import StreamCodec
from dry_work.wire.pubsub import encode_time
from dry_work.wire.redis import (
    BARS,
    TRADES,
    bar_channel,
    encode_bar,
    encode_item,
    encode_legacy_price,
    encode_price,
    legacy_channel,
    price_channel,
    stream_key,
)
from dry_work.wire.redis_protocol import ReplyError, begin_command, encode_command, encode_part

BATCH = 512
STREAM_EXPIRY_S = 7 * 86_400
RENEW_S = 3_600.0  # the time at which a stream ends is put off so often
MOST_STREAMS_KNOWN = 200_000
NOT_NOW = frozenset(("LOADING", "READONLY", "MASTERDOWN", "NOAUTH", "CLUSTERDOWN"))  # another connection may do better

_AT, _ITEM, _EVENT_ID = encode_part(b"at"), encode_part(b"item"), encode_part(b"event_id")

_log = structlog.get_logger(__name__)


class StreamWriter:
    """Commands that add to streams.

    Args:
        length: entries that a stream keeps, about; 0: there are no streams.
    """

    def __init__(self, length: int, clock: Clock) -> None:
        self.is_on = length > 0
        self._length = b"%d" % length
        self._clock = clock
        self._renew_at: dict[str, float] = {}
        self._begun: dict[tuple[str, str], tuple[bytes, bytes]] = {}  # commands without and with an event id
        self._last_at = (-1, b"")

    def begin_session(self) -> None:
        """Forget which streams there are."""
        self._renew_at.clear()

    def encode(
        self, key: str, *, epoch: str, offset: int, recv_ns: int, item: bytes, event_id: str = ""
    ) -> list[bytes]:
        """Return the commands that add an entry."""
        if recv_ns != self._last_at[0]:  # events of one frame have the same
            self._last_at = (recv_ns, _AT + encode_part(encode_time(recv_ns).encode()))
        begun = self._begun.get((key, epoch))
        if begun is None:
            begun = self._begin(key, epoch)
        parts = [begun[bool(event_id)], encode_part(b"%d" % offset), self._last_at[1], _ITEM, encode_part(item)]
        if event_id:
            parts += [_EVENT_ID, encode_part(event_id.encode())]
        commands = [b"".join(parts)]
        now_s = self._clock.monotonic()
        if self._renew_at.get(key, now_s) <= now_s:
            self._renew_at[key] = now_s + RENEW_S
            commands.append(encode_command(b"EXPIRE", key.encode(), b"%d" % STREAM_EXPIRY_S))
        return commands

    def _begin(self, key: str, epoch: str) -> tuple[bytes, bytes]:
        if len(self._begun) >= MOST_STREAMS_KNOWN:
            self._begun.clear()
            self._renew_at.clear()
        fields = (b"XADD", key.encode(), b"MAXLEN", b"~", self._length, b"*", b"epoch", epoch.encode(), b"offset")
        begun = (begin_command(14, *fields), begin_command(16, *fields))
        self._begun[key, epoch] = begun
        return begun


class DataPublisher:
    """Events of the symbols that are held, from the bus to Redis.

    What Redis has not answered for is published again over the next connection.

    Args:
        note_receivers: called with symbol, channel and the number of those who have received its message.
    """

    def __init__(
        self, hub: HubPort, settings: RedisSettings, *, note_receivers: Callable[[str, str, int], None]
    ) -> None:
        self._hub = hub
        self._has_legacy = settings.has_legacy
        self._note_receivers = note_receivers
        self._arrived = asyncio.Event()
        self._queue = ClientQueue(settings.capacity, Overflow.CONFLATE, on_ready=self._arrived.set)
        self._topics: set[Topic] = set()
        self._batch: Sequence[HubEvent] = ()
        self._streams = StreamWriter(settings.stream_length, hub.clock)
        self.delivered_kinds: Counter[Kind] = Counter()
        self._lost_kinds: Counter[Kind] = Counter()  # refused by Redis, or they cannot be written as JSON
        self.error = ""

    @property
    def dropped_kinds(self) -> Counter[Kind]:
        """Those that were dropped, by feed and channel."""
        return self._queue.dropped_kinds + self._lost_kinds

    @property
    def waiting(self) -> int:
        """Events that are not published."""
        return len(self._queue) + len(self._batch)

    def counts(self) -> dict[str, int]:
        """Return the counts of the events: offered = delivered + conflated + dropped + waiting."""
        counts = self._queue.counts
        return {
            "offered": counts.offered,
            "delivered": self.delivered_kinds.total(),
            "conflated": counts.conflated,
            "dropped": counts.dropped + self._lost_kinds.total(),
            "waiting": self.waiting,
        }

    def attach(self, topics: Iterable[Topic]) -> None:
        """Publish the events of `topics` from now on."""
        added = list(topics)
        self._topics.update(added)
        self._hub.bus.attach(self._queue, added)

    def detach(self, topics: Iterable[Topic] | None = None) -> None:
        """Publish the events of `topics` (None: all) no more, but for those that wait."""
        removed = list(self._topics if topics is None else topics)
        self._topics.difference_update(removed)
        self._hub.bus.detach(self._queue, removed)

    async def run(self, connection: RedisConnection) -> None:
        """Publish until cancelled.

        Raises:
            RedisError, OSError, EOFError, TimeoutError: the connection is of no use any more.
        """
        self._streams.begin_session()
        while True:
            self._arrived.clear()
            while self._batch or len(self._queue):
                if not self._batch:
                    self._batch = self._queue.take(BATCH)
                await self._publish(connection)
            await self._arrived.wait()

    async def _publish(self, connection: RedisConnection) -> None:
        commands: list[bytes] = []
        ends: list[int] = []  # of each event's commands
        told: dict[tuple[str, str], tuple[int, int]] = {}  # the last messages of a symbol: their commands
        now_ns = self._hub.clock.time_ns()
        for event in self._batch:
            first = len(commands)
            try:
                commands += self._encode_messages(event, now_ns)
                if len(commands) > first:
                    told[event.symbol, event.channel] = (first, len(commands))
                commands += self._encode_entries(event)
            except (CodecError, TypeError) as error:
                del commands[first:]
                told.pop((event.symbol, event.channel), None)
                _log.warning("an event cannot be published", symbol=event.symbol, reason=str(error))
                ends.append(-1)
                continue
            ends.append(len(commands))
        replies = await connection.run(commands, len(commands)) if commands else []
        refused = [reply for reply in replies if type(reply) is ReplyError]
        for reply in refused:
            if reply.code in NOT_NOW:
                raise RedisError(reply.text)
        for (symbol, channel), (start, end) in told.items():
            counts = replies[start:end]
            self._note_receivers(symbol, channel, sum(count for count in counts if type(count) is int))
        self._count(replies, ends, is_clean=not refused)
        self._batch = ()

    def _count(self, replies: list[object], ends: list[int], *, is_clean: bool) -> None:
        """Count the events; one that Redis has refused any part of counts as dropped."""
        lost: list[HubEvent] = []
        error = ""
        start = 0
        for event, end in zip(self._batch, ends, strict=True):
            if end < 0:
                lost.append(event)
                continue
            if not is_clean:
                found = [reply.text for reply in replies[start:end] if isinstance(reply, ReplyError)]
                if found:
                    lost.append(event)
                    error = found[0]
            start = end
        lost_kinds = count_kinds(lost)
        self._lost_kinds.update(lost_kinds)
        self.delivered_kinds.update(count_kinds(self._batch) - lost_kinds)
        if error and error != self.error:
            _log.error("Redis refuses market data", reason=error)
        self.error = error

    def _encode_messages(self, event: HubEvent, now_ns: int) -> list[bytes]:
        symbol, channel = event.symbol, event.channel
        if channel == TRADES:
            messages = [_publish(price_channel(symbol), encode_price(symbol, event.item))]
            if self._has_legacy:
                message = encode_legacy_price(symbol, event.item, time_ns=now_ns)
                messages.append(_publish(legacy_channel(symbol), message))
            return messages
        if channel == BARS:
            message = encode_bar(symbol, event.item, epoch=event.epoch, offset=event.offset)
            return [_publish(bar_channel(symbol), message)]
        return []

    def _encode_entries(self, event: HubEvent) -> list[bytes]:
        if not self._streams.is_on:
            return []
        item = event.encode(StreamCodec.JSON, _encode_item)
        commands = []
        topics = event.topics
        if event.channel == WATERMARKS:
            topics = ((event.feed, WATERMARKS, ALL),)
        for feed, channel, symbol in topics if len(topics) == 1 else self._topics.intersection(topics):
            key = stream_key(feed, channel, symbol)
            commands += self._streams.encode(
                key, epoch=event.epoch, offset=event.offset, recv_ns=event.ts_recv_ns, item=item
            )
        return commands


def _publish(channel: str, message: bytes) -> bytes:
    return encode_command(b"PUBLISH", channel.encode(), message)


def _encode_item(event: HubEvent) -> bytes:
    return encode_item(event.item)
