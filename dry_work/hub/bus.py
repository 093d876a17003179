"""The hub's core: events in, numbered, kept for a while, and offered to everybody who asked. Event-loop only, pure.

A reader that comes back tells the epoch and the offset of the last event it has: `replay` gives the rest from the
history, and says honestly whether that is all. Replaying and attaching in one step of the event loop leave no gap
between them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from dry_work.hub.events import ALL, FEEDS, NEWS, ORDER_FEEDS, HubEvent, Topic
from dry_work.hub.queues import ClientQueue

DATA_HISTORY = 20_000  # events of a feed that a reader can go back
ORDER_HISTORY = 10_000


class Replay(msgspec.Struct, frozen=True):
    """What a reader missed."""

    recovered: bool  # these events are all that it missed
    events: tuple[HubEvent, ...] = ()


class Bus:
    """Events of all feeds.

    Args:
        epoch: one for each start of the hub.
        data_history, order_history: events kept per feed.
    """

    def __init__(self, epoch: str, *, data_history: int = DATA_HISTORY, order_history: int = ORDER_HISTORY) -> None:
        self.epoch = epoch
        self._history: dict[str, deque[HubEvent]] = {
            feed: deque(maxlen=order_history if feed in ORDER_FEEDS else data_history) for feed in FEEDS
        }
        self._offsets = dict.fromkeys(FEEDS, 0)
        self._latest: dict[Topic, HubEvent] = {}
        self._readers: dict[Topic, dict[ClientQueue, None]] = {}
        self._topics: dict[ClientQueue, dict[Topic, None]] = {}

    def publish(
        self,
        feed: str,
        channel: str,
        symbol: str,
        item: Mapping[str, Any],
        *,
        ts_recv_ns: int,
        event_id: str = "",
        symbols: tuple[str, ...] = (),
        raw: bytes = b"",
    ) -> HubEvent:
        """Number an event, remember it and offer it to its readers; return it.

        Args:
            symbol: canonical.
            item: the upstream's, unchanged; the caller gives it away.
            event_id: of an order update.
            symbols: of news, all of them.
            raw: of an order update, the upstream's own JSON text.
        """
        offset = self._offsets[feed] + 1
        self._offsets[feed] = offset
        event = HubEvent(
            feed=feed,
            channel=channel,
            symbol=symbol,
            item=item,
            epoch=self.epoch,
            offset=offset,
            ts_recv_ns=ts_recv_ns,
            event_id=event_id,
            symbols=symbols,
            raw=raw,
        )
        self._history[feed].append(event)
        topic = (feed, channel, symbol)
        self._latest[topic] = event
        readers = self._readers
        if feed == NEWS and len(symbols) > 1:
            found = dict.fromkeys(queue for topic in event.topics for queue in readers.get(topic, ()))
            found.update(readers.get((feed, channel, ALL), {}))
            self._offer(event, found)
            return event
        named, every = readers.get(topic), readers.get((feed, channel, ALL))
        if named:
            self._offer(event, named)
        if every and not event.is_named_only:
            self._offer(event, every if not named else [queue for queue in every if queue not in named])
        return event

    def _offer(self, event: HubEvent, queues: Iterable[ClientQueue]) -> None:
        # A copy: a queue that closes may make its owner leave.
        for queue in tuple(queues):
            queue.offer(event)

    def attach(self, queue: ClientQueue, topics: Iterable[Topic]) -> None:
        """Offer the events of `topics` to `queue` from now on; a topic that it has already changes nothing."""
        held = self._topics.setdefault(queue, {})
        for topic in topics:
            held[topic] = None
            self._readers.setdefault(topic, {})[queue] = None

    def detach(self, queue: ClientQueue, topics: Iterable[Topic] | None = None) -> None:
        """Stop to offer the events of `topics` (None: all) to `queue`."""
        held = self._topics.get(queue)
        if held is None:
            return
        for topic in tuple(held) if topics is None else tuple(topics):
            if topic not in held:
                continue
            del held[topic]
            readers = self._readers[topic]
            del readers[queue]
            if not readers:
                del self._readers[topic]
        if not held:
            del self._topics[queue]

    def position(self, feed: str) -> int:
        """Return the offset of the last event of a feed, 0 before the first."""
        return self._offsets[feed]

    def latest(self, topics: Iterable[Topic]) -> list[HubEvent]:
        """Return the last event of each of `topics`, oldest first: where a new reader stands."""
        found = [event for topic in topics for event in self._latest_of(topic)]
        return sorted({id(event): event for event in found}.values(), key=lambda event: (event.feed, event.offset))

    def _latest_of(self, topic: Topic) -> Iterator[HubEvent]:
        feed, channel, symbol = topic
        if symbol != ALL:
            event = self._latest.get(topic)
            if event is not None:
                yield event
            return
        for (other_feed, other_channel, _), event in self._latest.items():
            if other_feed == feed and other_channel == channel and not event.is_named_only:
                yield event

    def replay(self, feed: str, topics: Iterable[Topic], *, epoch: str, offset: int) -> Replay:
        """Return the events of `topics` in `feed` after `offset`.

        `recovered` is False when the offset is of another epoch, ahead of this one, or older than the history; the
        events are then what the history has of them. Of another epoch that is nothing, and everything of a feed of
        order updates: their readers know by the ids what they have.
        """
        if epoch != self.epoch or not 0 <= offset <= self._offsets[feed]:
            if feed not in ORDER_FEEDS:
                return Replay(recovered=False)
            return Replay(False, self.replay(feed, topics, epoch=self.epoch, offset=0).events)
        history = self._history[feed]
        wanted = set(topics)
        first = history[0].offset if history else self._offsets[feed] + 1
        events = []
        for event in reversed(history):
            if event.offset <= offset:
                break
            is_among_all = (feed, event.channel, ALL) in wanted and not event.is_named_only
            if is_among_all or not wanted.isdisjoint(event.topics):
                events.append(event)
        return Replay(first <= offset + 1, tuple(reversed(events)))

    @property
    def readers(self) -> int:
        """Queues that wait for something."""
        return len(self._topics)
