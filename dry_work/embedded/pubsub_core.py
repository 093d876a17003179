"""Topics, subscriptions and snapshots of a Pub/Sub server, as a function of calls and the time given.

Pure: no I/O, no clock, no threads; one thread at a time. Times (`time_ns`) are UTC since 1970 in nanoseconds. What ends
by age, subscriptions that nobody uses, snapshots and outdated messages, ends in `sweep`, which is to be called when
`next_sweep_ns` has come. The messages of a subscription and their leases are in `pubsub_subscription`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from dry_work.clock import SECOND_NS
from dry_work.embedded.pubsub_deliveries import Counters, DeadLetter
from dry_work.embedded.pubsub_filter import FilterError
from dry_work.embedded.pubsub_messages import Message
from dry_work.embedded.pubsub_ordering import OrderedSubscription
from dry_work.embedded.pubsub_rules import (
    MAX_SNAPSHOT_LIFE_S,
    MAX_SUBSCRIPTIONS_PER_TOPIC,
    MIN_SNAPSHOT_LIFE_S,
    RequestError,
    SubscriptionSettings,
    TopicSettings,
    already_exists,
    check_labels,
    check_name,
    check_project,
    check_quota,
    check_settings,
    check_topic_settings,
    failed_precondition,
    invalid_argument,
    not_found,
)
from dry_work.embedded.pubsub_subscription import Subscription

DELETED_TOPIC = "_deleted-topic_"

SWEEP_INTERVAL_NS = 60 * SECOND_NS  # at least so often
SWEEP_GRAIN_NS = SECOND_NS  # and at most


class MessageLog:
    """Messages kept for a seek, oldest first, up to `max_bytes`; beyond it the oldest are dropped and counted."""

    def __init__(self, messages: Sequence[Message], max_bytes: int, counters: Counters) -> None:
        self.messages: deque[Message] = deque()
        self._max_bytes = max_bytes
        self._counters = counters
        self._bytes = 0
        self.add(messages)

    def add(self, messages: Sequence[Message]) -> None:
        """Keep these too."""
        self.messages.extend(messages)
        self._bytes += sum(len(message.encoded) for message in messages)
        while self._bytes > self._max_bytes:
            self._drop_oldest()
            self._counters.dropped += 1

    def forget_before(self, time_ns: int) -> None:
        """Forget what was published before."""
        while self.messages and self.messages[0].published_ns < time_ns:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self._bytes -= len(self.messages.popleft().encoded)


class Snapshot:
    """What was unacknowledged in a subscription, and what was published on its topic since."""

    def __init__(self, name: str, topic_name: str, labels: Mapping[str, str], expire_ns: int, log: MessageLog) -> None:
        self.name = name
        self.topic_name = topic_name
        self.labels = labels
        self.expire_ns = expire_ns
        self.log = log


class Topic:
    """A topic, the subscriptions and snapshots that get its messages, and the messages that it retains itself."""

    def __init__(self, name: str, settings: TopicSettings) -> None:
        self.name = name
        self.settings = settings
        self.subscriptions: dict[str, Subscription] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.log: MessageLog | None = None


class PubSubCore:
    """All topics, subscriptions and snapshots of a server, whatever the project.

    Args:
        max_backlog_bytes: bound of what waits for delivery, per subscription, and of what is kept for a seek, per
            subscription, topic and snapshot.
        nonce: differs from one run of a server to the next, so that an ack id of an earlier run hits nothing.
    """

    def __init__(self, *, max_backlog_bytes: int, nonce: int) -> None:
        self.counters = Counters()
        self.dead_letters: deque[DeadLetter] = deque()
        self.next_sweep_ns = 0
        self._max_backlog_bytes = max_backlog_bytes
        self._nonce = nonce
        self._topics: dict[str, Topic] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._subscription_count = 0

    # Topics

    def create_topic(self, name: str, settings: TopicSettings | None = None) -> Topic:
        """Add a topic; refused when the name is taken or not allowed."""
        settings = settings if settings is not None else TopicSettings()
        check_name(name, "topics")
        check_topic_settings(settings)
        if name in self._topics:
            raise already_exists(name)
        check_quota(self._topics, name, "topics")
        topic = Topic(name, settings)
        self._topics[name] = topic
        self._configure_topic(topic)
        return topic

    def topic(self, name: str) -> Topic:
        """Return a topic; refused when there is none of that name."""
        topic = self._topics.get(name)
        if topic is None:
            check_name(name, "topics")
            raise not_found(name)
        return topic

    def has_topic(self, name: str) -> bool:
        """Tell whether there is a topic of that name."""
        return name in self._topics

    def update_topic(self, name: str, settings: TopicSettings) -> Topic:
        """Give a topic other settings."""
        topic = self.topic(name)
        check_topic_settings(settings)
        topic.settings = settings
        self._configure_topic(topic)
        return topic

    def delete_topic(self, name: str) -> None:
        """Remove a topic. Its subscriptions and snapshots keep their messages and get no new ones."""
        del self._topics[self.topic(name).name]
        for subscription in self._subscriptions.values():  # detached ones too
            if subscription.topic_name == name:
                subscription.topic_name = DELETED_TOPIC
                subscription.topic_retention_s = None
        for snapshot in self._snapshots.values():
            if snapshot.topic_name == name:
                snapshot.topic_name = DELETED_TOPIC

    def topics(self, project: str) -> list[Topic]:
        """Return the topics of `projects/<id>` by name."""
        prefix = f"{check_project(project)}/topics/"
        return [self._topics[name] for name in sorted(self._topics) if name.startswith(prefix)]

    def publish(self, topic: Topic, messages: Sequence[Message], attributes: Sequence[Mapping[str, str]]) -> None:
        """Hand messages to every subscription of the topic; without one they are gone, as at Google."""
        self.counters.published += len(messages)
        for subscription in topic.subscriptions.values():
            subscription.add(messages, attributes)
        if topic.log is not None:
            topic.log.add(messages)
        for snapshot in topic.snapshots.values():
            snapshot.log.add(messages)

    def _configure_topic(self, topic: Topic) -> None:
        retention_s = topic.settings.retention_s
        if retention_s is None:
            topic.log = None
        elif topic.log is None:
            topic.log = MessageLog((), self._max_backlog_bytes, self.counters)
        for subscription in topic.subscriptions.values():
            subscription.topic_retention_s = retention_s
        self.next_sweep_ns = 0

    # Subscriptions

    def create_subscription(
        self, name: str, topic_name: str, settings: SubscriptionSettings, *, time_ns: int = 0
    ) -> Subscription:
        """Add a subscription, which gets what is published from now on."""
        self._subscription_count += 1
        ack_prefix = f"{(self._nonce + self._subscription_count) & 0xFFFF_FFFF_FFFF_FFFF:x}"
        if not name and len(parts := topic_name.split("/")) == 4:
            name = f"projects/{parts[1]}/subscriptions/{parts[3][:200]}-{ack_prefix}"  # as Google names it: any name
        check_name(name, "subscriptions")
        topic = self.topic(topic_name)
        self._check_settings(settings)
        if name in self._subscriptions:
            raise already_exists(name)
        check_quota(self._subscriptions, name, "subscriptions")
        if len(topic.subscriptions) >= MAX_SUBSCRIPTIONS_PER_TOPIC:
            raise RequestError(
                "RESOURCE_EXHAUSTED",
                f"A topic may have {MAX_SUBSCRIPTIONS_PER_TOPIC} subscriptions; {name} is one too many.",
            )
        make = OrderedSubscription if settings.ordered else Subscription
        try:
            subscription = make(
                name,
                topic_name,
                settings,
                ack_prefix=ack_prefix,
                max_backlog_bytes=self._max_backlog_bytes,
                counters=self.counters,
                dead_letters=self.dead_letters,
            )
        except FilterError as error:
            raise invalid_argument(f"Invalid filter for {name}: {error}.") from error
        subscription.topic_retention_s = topic.settings.retention_s
        subscription.last_used_ns = time_ns
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

    def update_subscription(self, name: str, settings: SubscriptionSettings, *, time_ns: int = 0) -> Subscription:
        """Give a subscription other settings; its filter and ordering are those it was created with."""
        subscription = self.subscription(name)
        self._check_settings(settings)
        subscription.configure(settings)
        subscription.last_used_ns = max(subscription.last_used_ns, time_ns)
        self.next_sweep_ns = 0
        return subscription

    def detach_subscription(self, name: str) -> Subscription:
        """Take a subscription off its topic for ever; its messages are forgotten and its streams end."""
        subscription = self.subscription(name)
        self._disconnect(subscription)
        subscription.detach()
        return subscription

    def delete_subscription(self, name: str) -> Subscription:
        """Remove a subscription with its messages; its streaming pulls are woken to end."""
        subscription = self.subscription(name)
        del self._subscriptions[name]
        self._disconnect(subscription)
        subscription.delete()
        return subscription

    def subscriptions(self, project: str) -> list[Subscription]:
        """Return the subscriptions of `projects/<id>` by name."""
        prefix = f"{check_project(project)}/subscriptions/"
        return [self._subscriptions[name] for name in sorted(self._subscriptions) if name.startswith(prefix)]

    def seek_to_time(self, name: str, time_ns: int) -> Subscription:
        """Take what was published before a time as acknowledged, what was published since as not acknowledged."""
        subscription = self._attached(name)
        held = {message.number: message for message in subscription.retained_messages()}
        topic = self._topics.get(subscription.topic_name)
        if topic is not None and topic.log is not None:
            for message in topic.log.messages:
                if message.published_ns >= time_ns and message.number not in held and subscription.accepts(message):
                    held[message.number] = message
        subscription.seek(message for message in held.values() if message.published_ns >= time_ns)
        return subscription

    def seek_to_snapshot(self, name: str, snapshot_name: str) -> Subscription:
        """Take what the snapshot holds as not acknowledged, and everything else as acknowledged."""
        subscription = self._attached(name)
        snapshot = self.snapshot(snapshot_name)
        if snapshot.topic_name != subscription.topic_name or snapshot.topic_name == DELETED_TOPIC:
            raise failed_precondition(
                f"The subscription's topic {subscription.topic_name} is not the snapshot's, {snapshot.topic_name}."
            )
        subscription.seek(message for message in snapshot.log.messages if subscription.accepts(message))
        return subscription

    def _attached(self, name: str) -> Subscription:
        subscription = self.subscription(name)
        if subscription.detached:
            raise failed_precondition(f"The subscription is detached (resource={name}).")
        return subscription

    def _disconnect(self, subscription: Subscription) -> None:
        topic = self._topics.get(subscription.topic_name)
        if topic is not None and topic.subscriptions.get(subscription.name) is subscription:
            del topic.subscriptions[subscription.name]

    def _check_settings(self, settings: SubscriptionSettings) -> None:
        check_settings(settings)
        if settings.dead_letter is not None and not self.has_topic(settings.dead_letter.topic_name):
            raise not_found(settings.dead_letter.topic_name)

    # Snapshots

    def create_snapshot(
        self, name: str, subscription_name: str, labels: Mapping[str, str], *, time_ns: int = 0
    ) -> Snapshot:
        """Record what is unacknowledged in a subscription; refused when the snapshot would end within an hour."""
        check_name(name, "snapshots")
        check_labels(labels)
        subscription = self._attached(subscription_name)
        topic = self._topics.get(subscription.topic_name)
        if topic is None:
            raise failed_precondition(f"The topic of the subscription was deleted (resource={subscription_name}).")
        if name in self._snapshots:
            raise already_exists(name)
        check_quota(self._snapshots, name, "snapshots")
        backlog = subscription.unacknowledged_messages()
        expire_ns = MAX_SNAPSHOT_LIFE_S * SECOND_NS + min(
            (message.published_ns for message in backlog), default=time_ns
        )
        if expire_ns < time_ns + MIN_SNAPSHOT_LIFE_S * SECOND_NS:
            raise failed_precondition(
                f"The oldest unacknowledged message of {subscription_name} is so old that the snapshot would expire "
                "in less than an hour."
            )
        log = MessageLog(backlog, self._max_backlog_bytes, self.counters)
        snapshot = Snapshot(name, topic.name, dict(labels), expire_ns, log)
        self._snapshots[name] = topic.snapshots[name] = snapshot
        self.next_sweep_ns = 0
        return snapshot

    def snapshot(self, name: str) -> Snapshot:
        """Return a snapshot; refused when there is none of that name."""
        snapshot = self._snapshots.get(name)
        if snapshot is None:
            check_name(name, "snapshots")
            raise not_found(name)
        return snapshot

    def update_snapshot(self, name: str, labels: Mapping[str, str], expire_ns: int, *, time_ns: int = 0) -> Snapshot:
        """Give a snapshot other labels and another end, at most seven days ahead."""
        snapshot = self.snapshot(name)
        check_labels(labels)
        if expire_ns != snapshot.expire_ns and not time_ns < expire_ns <= time_ns + MAX_SNAPSHOT_LIFE_S * SECOND_NS:
            raise invalid_argument(
                f"The expire_time of {name} must be in the future and at most {MAX_SNAPSHOT_LIFE_S} seconds ahead."
            )
        snapshot.labels = dict(labels)
        snapshot.expire_ns = expire_ns
        self.next_sweep_ns = 0
        return snapshot

    def delete_snapshot(self, name: str) -> None:
        """Remove a snapshot with its messages."""
        snapshot = self.snapshot(name)
        del self._snapshots[name]
        topic = self._topics.get(snapshot.topic_name)
        if topic is not None:
            topic.snapshots.pop(name, None)

    def snapshots(self, project: str) -> list[Snapshot]:
        """Return the snapshots of `projects/<id>` by name."""
        prefix = f"{check_project(project)}/snapshots/"
        return [self._snapshots[name] for name in sorted(self._snapshots) if name.startswith(prefix)]

    # Age

    def sweep(self, time_ns: int) -> list[Subscription]:
        """End what is too old by now; return the subscriptions that were removed because nobody used them."""
        removed = [one for one in self._subscriptions.values() if one.is_unused(time_ns)]
        for subscription in removed:
            self.delete_subscription(subscription.name)
        for snapshot in tuple(self._snapshots.values()):
            if snapshot.expire_ns <= time_ns:
                self.delete_snapshot(snapshot.name)
        due_ns = [time_ns + SWEEP_INTERVAL_NS, *(snapshot.expire_ns for snapshot in self._snapshots.values())]
        for topic in self._topics.values():
            if topic.log is not None and topic.settings.retention_s is not None:
                retention_ns = round(topic.settings.retention_s * SECOND_NS)
                topic.log.forget_before(time_ns - retention_ns)
                if topic.log.messages:
                    due_ns.append(topic.log.messages[0].published_ns + retention_ns + 1)
        for subscription in self._subscriptions.values():
            outdated_ns = subscription.forget_outdated(time_ns)
            due_ns += [] if outdated_ns is None else [outdated_ns]
            if (ttl_s := subscription.settings.expiration_ttl_s) is not None:
                due_ns.append(subscription.last_used_ns + round(ttl_s * SECOND_NS))
        self.next_sweep_ns = max(min(due_ns), time_ns + SWEEP_GRAIN_NS)
        return removed
