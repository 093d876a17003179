"""Topics, subscriptions, leases and flow control of a Pub/Sub server, as a function of calls and the time given.

Pure: no I/O, no clock, no threads; one thread at a time. Times of leases are nanoseconds of a clock that never goes
back.

A message published on a topic becomes one `Delivery` in every subscription whose filter lets it through. A delivery
waits, is leased to a puller under an ack id that is new each time, and then is acknowledged (gone), or waits again
because its deadline passed or was set to 0. Acknowledging after the deadline still counts as long as the message was
not leased again. A subscription holds what waits up to `max_backlog_bytes`; beyond it the oldest waiting messages are
dropped and counted. What is leased is bounded by the pullers' flow control.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from dry_work.clock import SECOND_NS
from dry_work.embedded.pubsub_filter import FilterError, Predicate, parse_filter
from dry_work.embedded.pubsub_rules import (
    MAX_ACK_DEADLINE_S,
    SubscriptionSettings,
    already_exists,
    check_ack_deadline,
    check_ack_id,
    check_labels,
    check_name,
    check_project,
    check_quota,
    check_settings,
    invalid_argument,
    not_found,
)

DELETED_TOPIC = "_deleted-topic_"
# One response of a streaming pull; lets several pullers share a burst. A larger message goes alone: with
# PUBSUB_EMULATOR_HOST Google's client takes 4 MiB in one response.
MAX_BATCH_MESSAGES = 500
MAX_BATCH_BYTES = 1_000_000

# Deadlines are looked at no more often than this, so that many leases cost one pass and not one each.
EXPIRY_GRAIN_NS = SECOND_NS // 10


class Message(msgspec.Struct, frozen=True, gc=False):
    """A published message: its id and the whole `PubsubMessage` as it goes over the wire."""

    message_id: str
    encoded: bytes


class Delivery(msgspec.Struct):
    """One message in one subscription. `ack_id` is empty while it waits."""

    message: Message
    ack_id: str = ""
    deadline_ns: int = 0
    puller: Puller | None = None
    expired_ack_id: str = ""
    gone: bool = False


class Puller:
    """One subscriber's connection and its flow control. A limit of 0 or less means none.

    Args:
        wake: called when `Subscription.take` may give something, and when the subscription was deleted.
    """

    def __init__(
        self, *, max_messages: int, max_bytes: int, ack_deadline_s: int, wake: Callable[[], None] = lambda: None
    ) -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.set_ack_deadline(ack_deadline_s)
        self.wake = wake
        self.outstanding_messages = 0
        self.outstanding_bytes = 0

    def set_ack_deadline(self, seconds: int) -> None:
        """Give the messages taken from now on this deadline."""
        check_ack_deadline(seconds)
        self.ack_deadline_s = seconds

    @property
    def has_room(self) -> bool:
        """Tell whether another message may be sent to this subscriber now."""
        return (self.max_messages <= 0 or self.outstanding_messages < self.max_messages) and (
            self.max_bytes <= 0 or self.outstanding_bytes < self.max_bytes
        )


class Counters(msgspec.Struct):
    """Messages counted since the start; all but `published` count once per subscription."""

    published: int = 0
    filtered: int = 0
    delivered: int = 0
    expired: int = 0
    acknowledged: int = 0
    dropped: int = 0


class Subscription:
    """The messages of one subscription that are not yet acknowledged."""

    def __init__(
        self,
        name: str,
        topic_name: str,
        settings: SubscriptionSettings,
        *,
        ack_prefix: str,
        max_backlog_bytes: int,
        counters: Counters | None = None,
    ) -> None:
        self.name = name
        self.topic_name = topic_name
        self.settings = settings
        self.deleted = False
        self.next_expiry_ns: int | None = None  # no lease ends before
        self._matches: Predicate | None = parse_filter(settings.filter)
        self._ack_prefix = ack_prefix
        self._max_backlog_bytes = max_backlog_bytes
        self._counters = counters if counters is not None else Counters()
        self._waiting: deque[Delivery] = deque()
        self._backlog_bytes = 0
        self._leased: dict[str, Delivery] = {}
        self._expired: dict[str, Delivery] = {}  # by the last ack id, for acknowledgements that come late
        self._pullers: deque[Puller] = deque()
        self._lease_count = 0

    @property
    def backlog_bytes(self) -> int:
        """Bytes of the messages that wait for delivery."""
        return self._backlog_bytes

    @property
    def unacknowledged(self) -> int:
        """Number of messages that wait or are leased."""
        return len(self._leased) + sum(1 for delivery in self._waiting if not delivery.gone)

    def add(self, messages: Sequence[Message], attributes: Sequence[Mapping[str, str]]) -> None:
        """Take published messages that the filter lets through; `attributes` has one mapping per message."""
        matches = self._matches
        waiting = self._waiting
        for message, its_attributes in zip(messages, attributes, strict=True):
            if matches is not None and not matches(its_attributes):
                self._counters.filtered += 1
                continue
            waiting.append(Delivery(message))
            self._backlog_bytes += len(message.encoded)
        self._trim()
        self._wake_pullers()

    def open(self, puller: Puller) -> None:
        """Let a subscriber take part in the deliveries."""
        self._pullers.append(puller)
        self._wake_pullers()

    def close(self, puller: Puller) -> None:
        """Give a subscriber nothing more. What it was given stays leased until its deadlines, as at Google."""
        if puller in self._pullers:
            self._pullers.remove(puller)

    def take(self, puller: Puller, now_ns: int) -> list[Delivery]:
        """Lease waiting messages to a puller, oldest first: a batch, within its flow control and its fair share."""
        waiting = self._waiting
        if not waiting or not puller.has_room:
            return []
        sharers = sum(1 for other in self._pullers if other.has_room) or 1
        room = min(MAX_BATCH_MESSAGES, -(-len(waiting) // sharers))
        if puller.max_messages > 0:
            room = min(room, puller.max_messages - puller.outstanding_messages)
        bytes_limit = puller.max_bytes if puller.max_bytes > 0 else None
        deadline_ns = now_ns + puller.ack_deadline_s * SECOND_NS
        batch: list[Delivery] = []
        batch_bytes = 0
        held_bytes = puller.outstanding_bytes
        while waiting and len(batch) < room:
            delivery = waiting[0]
            if delivery.gone:
                waiting.popleft()
                continue
            size = len(delivery.message.encoded)
            if bytes_limit is not None and held_bytes >= bytes_limit:
                break
            if batch and batch_bytes + size > MAX_BATCH_BYTES:
                break
            waiting.popleft()
            if delivery.expired_ack_id:
                del self._expired[delivery.expired_ack_id]
                delivery.expired_ack_id = ""
            self._lease_count += 1
            ack_id = f"{self._ack_prefix}-{self._lease_count:x}"
            delivery.ack_id = ack_id
            delivery.deadline_ns = deadline_ns
            delivery.puller = puller
            self._leased[ack_id] = delivery
            batch_bytes += size
            held_bytes += size
            batch.append(delivery)
        puller.outstanding_messages += len(batch)
        puller.outstanding_bytes = held_bytes
        self._backlog_bytes -= batch_bytes
        self._counters.delivered += len(batch)
        if batch:
            self._expect_expiry(deadline_ns)
        return batch

    def acknowledge(self, ack_ids: Iterable[str]) -> None:
        """Forget the messages for good. Ids that are no longer known are left out.

        Raises:
            RequestError: an id was never one of ours; those before it were acknowledged.
        """
        freed = False
        try:
            for ack_id in ack_ids:
                delivery = self._leased.pop(ack_id, None)
                if delivery is not None:
                    self._free(delivery)
                    freed = True
                elif (delivery := self._expired.pop(ack_id, None)) is not None:
                    self._backlog_bytes -= len(delivery.message.encoded)
                else:
                    check_ack_id(ack_id)
                    continue
                delivery.gone = True
                self._counters.acknowledged += 1
        finally:
            if freed:
                self._wake_pullers()

    def modify_deadline(self, ack_id: str, deadline_s: int, now_ns: int) -> None:
        """Let a lease end `deadline_s` seconds from now; 0 gives the message back at once.

        Raises:
            RequestError: the id was never one of ours, or the deadline is out of range.
        """
        if not 0 <= deadline_s <= MAX_ACK_DEADLINE_S:
            raise invalid_argument(
                f"An ack deadline of {deadline_s} seconds was given; it must be 0 to {MAX_ACK_DEADLINE_S} seconds."
            )
        delivery = self._leased.get(ack_id)
        if delivery is None:
            check_ack_id(ack_id)
        elif deadline_s > 0:
            delivery.deadline_ns = now_ns + deadline_s * SECOND_NS
            self._expect_expiry(delivery.deadline_ns)
        else:
            # To the back: a message that is refused again and again must not keep the others from being delivered.
            self._release(delivery)
            self._waiting.append(delivery)
            self._trim()
            self._wake_pullers()

    def expire(self, now_ns: int) -> None:
        """Give back the messages whose lease has ended, oldest first, before those that were never delivered."""
        if self.next_expiry_ns is None or now_ns < self.next_expiry_ns:
            return
        ended = [delivery for delivery in self._leased.values() if delivery.deadline_ns <= now_ns]
        for delivery in ended:
            delivery.expired_ack_id = delivery.ack_id
            self._expired[delivery.ack_id] = delivery
            self._release(delivery)
        self._waiting.extendleft(reversed(ended))
        self._counters.expired += len(ended)
        earliest_ns = min((delivery.deadline_ns for delivery in self._leased.values()), default=None)
        self.next_expiry_ns = None if earliest_ns is None else max(earliest_ns, now_ns + EXPIRY_GRAIN_NS)
        if ended:
            self._trim()
            self._wake_pullers()

    def end(self) -> None:
        """Mark the subscription as deleted, forget its messages and wake its pullers, so that they see it."""
        self.deleted = True
        self._waiting.clear()
        self._leased.clear()
        self._expired.clear()
        self._backlog_bytes = 0
        self.next_expiry_ns = None
        for puller in tuple(self._pullers):
            puller.wake()

    def _free(self, delivery: Delivery) -> None:
        """Take a delivery off its puller's flow control."""
        puller = delivery.puller
        assert puller is not None
        puller.outstanding_messages -= 1
        puller.outstanding_bytes -= len(delivery.message.encoded)
        delivery.puller = None

    def _release(self, delivery: Delivery) -> None:
        """End a lease; the caller puts the delivery back among the waiting."""
        del self._leased[delivery.ack_id]
        delivery.ack_id = ""
        self._backlog_bytes += len(delivery.message.encoded)
        self._free(delivery)

    def _trim(self) -> None:
        while self._backlog_bytes > self._max_backlog_bytes:
            delivery = self._waiting.popleft()
            if delivery.gone:
                continue
            delivery.gone = True
            self._expired.pop(delivery.expired_ack_id, None)
            self._backlog_bytes -= len(delivery.message.encoded)
            self._counters.dropped += 1

    def _expect_expiry(self, deadline_ns: int) -> None:
        if self.next_expiry_ns is None or deadline_ns < self.next_expiry_ns:
            self.next_expiry_ns = deadline_ns

    def _wake_pullers(self) -> None:
        if not self._waiting:
            return
        for puller in tuple(self._pullers):
            if puller.has_room:
                puller.wake()
        self._pullers.rotate(-1)  # another one is first next time, so that single messages are shared too


class Topic:
    """A topic and the subscriptions that get its messages."""

    def __init__(self, name: str, labels: Mapping[str, str]) -> None:
        self.name = name
        self.labels = labels
        self.subscriptions: dict[str, Subscription] = {}


class PubSubCore:
    """All topics and subscriptions of a server, whatever the project.

    Args:
        max_backlog_bytes: bound of what waits for delivery, per subscription.
        nonce: differs from one run of a server to the next, so that an ack id of an earlier run hits nothing.
    """

    def __init__(self, *, max_backlog_bytes: int, nonce: int) -> None:
        self.counters = Counters()
        self._max_backlog_bytes = max_backlog_bytes
        self._nonce = nonce
        self._topics: dict[str, Topic] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._subscription_count = 0

    def create_topic(self, name: str, labels: Mapping[str, str] | None = None) -> Topic:
        """Add a topic; refused when the name is taken or not allowed."""
        check_name(name, "topics")
        check_labels(labels or {})
        if name in self._topics:
            raise already_exists(name)
        check_quota(self._topics, name, "topics")
        topic = Topic(name, dict(labels or {}))
        self._topics[name] = topic
        return topic

    def topic(self, name: str) -> Topic:
        """Return a topic; refused when there is none of that name."""
        topic = self._topics.get(name)
        if topic is None:
            check_name(name, "topics")
            raise not_found(name)
        return topic

    def delete_topic(self, name: str) -> None:
        """Remove a topic. Its subscriptions keep their messages and get no new ones."""
        topic = self.topic(name)
        for subscription in topic.subscriptions.values():
            subscription.topic_name = DELETED_TOPIC
        del self._topics[name]

    def topics(self, project: str) -> list[Topic]:
        """Return the topics of `projects/<id>` by name."""
        prefix = f"{check_project(project)}/topics/"
        return [self._topics[name] for name in sorted(self._topics) if name.startswith(prefix)]

    def create_subscription(self, name: str, topic_name: str, settings: SubscriptionSettings) -> Subscription:
        """Add a subscription, which gets what is published from now on."""
        check_name(name, "subscriptions")
        check_settings(settings)
        topic = self.topic(topic_name)
        if name in self._subscriptions:
            raise already_exists(name)
        check_quota(self._subscriptions, name, "subscriptions")
        self._subscription_count += 1
        try:
            subscription = Subscription(
                name,
                topic_name,
                settings,
                ack_prefix=f"{(self._nonce + self._subscription_count) & 0xFFFF_FFFF_FFFF_FFFF:x}",
                max_backlog_bytes=self._max_backlog_bytes,
                counters=self.counters,
            )
        except FilterError as error:
            raise invalid_argument(f"Invalid filter for {name}: {error}.") from error
        self._subscriptions[name] = subscription
        topic.subscriptions[name] = subscription
        return subscription

    def subscription(self, name: str) -> Subscription:
        """Return a subscription; refused when there is none of that name."""
        subscription = self._subscriptions.get(name)
        if subscription is None:
            check_name(name, "subscriptions")
            raise not_found(name)
        return subscription

    def delete_subscription(self, name: str) -> Subscription:
        """Remove a subscription with its messages; its streaming pulls are woken to end."""
        subscription = self.subscription(name)
        del self._subscriptions[name]
        topic = self._topics.get(subscription.topic_name)
        if topic is not None:
            topic.subscriptions.pop(name, None)
        subscription.end()
        return subscription

    def subscriptions(self, project: str) -> list[Subscription]:
        """Return the subscriptions of `projects/<id>` by name."""
        prefix = f"{check_project(project)}/subscriptions/"
        return [self._subscriptions[name] for name in sorted(self._subscriptions) if name.startswith(prefix)]

    def publish(self, topic: Topic, messages: Sequence[Message], attributes: Sequence[Mapping[str, str]]) -> None:
        """Hand messages to every subscription of the topic; without one they are gone, as at Google."""
        self.counters.published += len(messages)
        for subscription in topic.subscriptions.values():
            subscription.add(messages, attributes)
