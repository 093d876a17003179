"""Topics, subscriptions and snapshots over their life: updates, seek, detaching, and what ends by age."""

from __future__ import annotations

import pytest
from google.pubsub_v1.types import pubsub as pubsub_types

from dry_work.clock import SECOND_NS
from dry_work.embedded import pubsub_core, pubsub_rules
from dry_work.embedded.pubsub_core import DELETED_TOPIC, PubSubCore, Topic
from dry_work.embedded.pubsub_deliveries import Puller
from dry_work.embedded.pubsub_messages import stamp_message
from dry_work.embedded.pubsub_rules import (
    DeadLetterPolicy,
    RequestError,
    RetryPolicy,
    SubscriptionSettings,
    TopicSettings,
)

TOPIC = "projects/p/topics/bars"
OTHER = "projects/p/topics/other"
NAME = "projects/p/subscriptions/agent"
SNAPSHOT = "projects/p/snapshots/evening"
DAY_S = 86_400
PubsubMessage = pubsub_types.PubsubMessage.pb()


class World:
    """A core with one topic, whose messages are numbered in the order of publishing."""

    def __init__(self, *, max_backlog_bytes: int = 1_000_000, **topic_settings: float) -> None:
        self.core = PubSubCore(max_backlog_bytes=max_backlog_bytes, nonce=1)
        self.topic: Topic = self.core.create_topic(TOPIC, TopicSettings(**topic_settings))
        self.count = 0

    def subscribe(self, name: str = NAME, topic: str = TOPIC, *, at_s: float = 0.0, **settings: object) -> None:
        self.core.create_subscription(name, topic, SubscriptionSettings(**settings), time_ns=round(at_s * SECOND_NS))

    def publish(self, count: int = 1, *, at_s: float = 0.0, symbol: str = "SPY") -> None:
        for _ in range(count):
            self.count += 1
            message = PubsubMessage(data=b"x", attributes={"symbol": symbol})
            stamped = stamp_message(message, self.count, round(at_s * SECOND_NS))
            self.core.publish(self.topic, [stamped], [message.attributes])

    def take(self, name: str = NAME) -> list[int]:
        """Take what waits and acknowledge it."""
        subscription = self.core.subscription(name)
        puller = Puller(max_messages=0, max_bytes=0, ack_deadline_s=10)
        deliveries = subscription.take(puller, 0)
        subscription.acknowledge([delivery.ack_id for delivery in deliveries])
        return [delivery.message.number for delivery in deliveries]

    def seek(self, at_s: float, name: str = NAME) -> None:
        self.core.seek_to_time(name, round(at_s * SECOND_NS))

    def snapshot(self, name: str = SNAPSHOT, *, at_s: float = 0.0, of: str = NAME) -> None:
        self.core.create_snapshot(name, of, {}, time_ns=round(at_s * SECOND_NS))

    def sweep(self, at_s: float) -> list[str]:
        return [subscription.name for subscription in self.core.sweep(round(at_s * SECOND_NS))]


# Settings


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"dead_letter": DeadLetterPolicy(TOPIC, 4)}, "OUT_OF_RANGE", "4 was given; it must be 5 to 100"),
        ({"dead_letter": DeadLetterPolicy(TOPIC, 101)}, "OUT_OF_RANGE", "5 to 100"),
        ({"dead_letter": DeadLetterPolicy("bars", 5)}, "INVALID_ARGUMENT", "bars"),
        ({"dead_letter": DeadLetterPolicy(OTHER, 5)}, "NOT_FOUND", "other"),
        ({"retry": RetryPolicy(-1.0, 600.0)}, "INVALID_ARGUMENT", "minimum_backoff of -1"),
        ({"retry": RetryPolicy(10.0, 601.0)}, "INVALID_ARGUMENT", "maximum_backoff of 601"),
        ({"retry": RetryPolicy(10.0, 9.0)}, "INVALID_ARGUMENT", "at least the minimum_backoff, 10 seconds"),
        ({"retention_s": 31 * DAY_S + 1.0}, "INVALID_ARGUMENT", "retention"),
    ],
)
def test_settings_that_google_does_not_allow_are_refused_at_creation_and_at_update(
    changes: dict[str, object], code: str, reason: str
) -> None:
    world = World()
    world.subscribe()
    settings = SubscriptionSettings(**changes)
    with pytest.raises(RequestError, match=reason) as raised:
        world.core.create_subscription(f"{NAME}-two", TOPIC, settings)
    assert raised.value.code == code
    with pytest.raises(RequestError, match=reason):
        world.core.update_subscription(NAME, settings)
    assert world.core.subscription(NAME).settings == SubscriptionSettings()


@pytest.mark.parametrize("retention_s", [599.0, 31 * DAY_S + 1.0])
def test_a_topic_retention_out_of_range_is_refused(retention_s: float) -> None:
    world = World()
    with pytest.raises(RequestError, match="must be 600 to 2678400 seconds"):
        world.core.update_topic(TOPIC, TopicSettings(retention_s=retention_s))
    with pytest.raises(RequestError, match="must be 600 to 2678400 seconds"):
        world.core.create_topic(OTHER, TopicSettings(retention_s=retention_s))


def test_a_subscription_without_a_name_gets_one_in_the_project_of_its_topic() -> None:
    world = World()
    names = [world.core.create_subscription("", TOPIC, SubscriptionSettings()).name for _ in range(2)]
    assert len(set(names)) == 2
    assert all(name.startswith("projects/p/subscriptions/bars-") for name in names)


def test_a_topic_has_a_limit_of_subscriptions_and_a_project_one_of_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubsub_core, "MAX_SUBSCRIPTIONS_PER_TOPIC", 1)
    monkeypatch.setattr(pubsub_rules, "MAX_SNAPSHOTS_PER_PROJECT", 1)
    world = World()
    world.subscribe()
    world.snapshot()
    with pytest.raises(RequestError, match="may have 1 subscriptions") as raised:
        world.subscribe(f"{NAME}-two")
    assert raised.value.code == "RESOURCE_EXHAUSTED"
    with pytest.raises(RequestError, match="may have 1 snapshots") as raised:
        world.snapshot(f"{SNAPSHOT}-two")
    assert raised.value.code == "RESOURCE_EXHAUSTED"


# Seek to a time


def test_seeking_to_a_time_replays_what_was_published_since() -> None:
    world = World()
    world.subscribe(retain_acked=True)
    for second in range(5):
        world.publish(at_s=second)
    assert world.take() == [1, 2, 3, 4, 5]
    world.seek(3)
    assert world.take() == [4, 5]
    world.seek(1_000)
    assert world.take() == []
    world.seek(-1)
    assert world.take() == [1, 2, 3, 4, 5]


def test_topic_retention_replays_what_was_published_before_the_subscription_through_its_filter() -> None:
    world = World(retention_s=600.0)
    world.publish(2)
    world.publish(symbol="IBM")
    world.subscribe(filter='attributes.symbol = "SPY"')
    world.publish()
    assert world.take() == [4]
    world.seek(0)
    assert world.take() == [1, 2, 4]


def test_topic_retention_ends_by_age_and_when_it_is_switched_off() -> None:
    world = World(retention_s=600.0)
    world.subscribe()
    world.publish(at_s=0)
    world.publish(at_s=100)
    world.take()
    world.sweep(650)
    world.seek(0)
    assert world.take() == [2]
    world.core.update_topic(TOPIC, TopicSettings())
    world.seek(0)
    assert world.take() == []


def test_what_a_topic_retains_is_bounded_in_bytes() -> None:
    world = World(retention_s=600.0)
    world.publish()
    assert world.topic.log is not None
    size = len(world.topic.log.messages[0].encoded)
    small = World(retention_s=600.0, max_backlog_bytes=2 * size)
    small.subscribe()
    for _ in range(3):
        small.publish()
        small.take()
    small.seek(0)
    assert small.take() == [2, 3]
    assert small.core.counters.dropped == 1


# Snapshots


def test_a_snapshot_brings_back_what_was_unacknowledged_and_what_came_since() -> None:
    world = World()
    world.subscribe()
    world.publish(2)
    world.take()
    world.publish(2)
    world.snapshot()
    world.publish()
    assert world.take() == [3, 4, 5]
    world.core.seek_to_snapshot(NAME, SNAPSHOT)
    assert world.take() == [3, 4, 5]


def test_a_snapshot_serves_every_subscription_of_its_topic_through_its_filter() -> None:
    world = World()
    world.subscribe()
    world.publish(symbol="IBM")
    world.publish()
    world.snapshot()
    world.subscribe(f"{NAME}-two", filter='attributes.symbol = "SPY"')
    world.publish(symbol="IBM")
    world.publish()
    world.core.seek_to_snapshot(f"{NAME}-two", SNAPSHOT)
    assert world.take(f"{NAME}-two") == [2, 4]


def test_a_snapshot_of_another_topic_is_refused() -> None:
    world = World()
    world.core.create_topic(OTHER)
    world.subscribe()
    world.subscribe(f"{NAME}-other", OTHER)
    world.snapshot()
    with pytest.raises(RequestError, match="is not the snapshot's") as raised:
        world.core.seek_to_snapshot(f"{NAME}-other", SNAPSHOT)
    assert raised.value.code == "FAILED_PRECONDITION"
    world.core.delete_topic(TOPIC)
    assert world.core.snapshot(SNAPSHOT).topic_name == DELETED_TOPIC
    with pytest.raises(RequestError, match="is not the snapshot's"):
        world.core.seek_to_snapshot(NAME, SNAPSHOT)
    with pytest.raises(RequestError, match="topic of the subscription was deleted"):
        world.snapshot(f"{SNAPSHOT}-two")


def test_a_snapshot_lives_seven_days_less_the_age_of_its_oldest_message() -> None:
    world = World()
    world.subscribe()
    world.snapshot(f"{SNAPSHOT}-empty", at_s=DAY_S)
    world.publish(at_s=0)
    world.snapshot(at_s=3 * DAY_S)
    assert world.core.snapshot(f"{SNAPSHOT}-empty").expire_ns == 8 * DAY_S * SECOND_NS
    assert world.core.snapshot(SNAPSHOT).expire_ns == 7 * DAY_S * SECOND_NS
    with pytest.raises(RequestError, match="less than an hour") as raised:
        world.snapshot(f"{SNAPSHOT}-late", at_s=7 * DAY_S - 3_599)
    assert raised.value.code == "FAILED_PRECONDITION"
    world.sweep(7 * DAY_S)
    assert [snapshot.name for snapshot in world.core.snapshots("projects/p")] == [f"{SNAPSHOT}-empty"]
    assert list(world.topic.snapshots) == [f"{SNAPSHOT}-empty"]


def test_a_snapshot_can_be_given_another_end_within_seven_days() -> None:
    world = World()
    world.subscribe()
    world.snapshot()
    world.core.update_snapshot(SNAPSHOT, {"a": "b"}, 60 * SECOND_NS)
    assert world.core.snapshot(SNAPSHOT).labels == {"a": "b"}
    for expire_s in (0, 7 * DAY_S + 1):
        with pytest.raises(RequestError, match="expire_time"):
            world.core.update_snapshot(SNAPSHOT, {}, expire_s * SECOND_NS)
    world.sweep(60)
    with pytest.raises(RequestError, match="not found") as raised:
        world.core.snapshot(SNAPSHOT)
    assert raised.value.code == "NOT_FOUND"


def test_a_deleted_snapshot_keeps_nothing() -> None:
    world = World()
    world.subscribe()
    world.snapshot()
    with pytest.raises(RequestError, match="already exists"):
        world.snapshot()
    world.core.delete_snapshot(SNAPSHOT)
    assert world.topic.snapshots == {}
    world.snapshot()


# Detaching


def test_a_detached_subscription_has_no_messages_and_gets_none() -> None:
    world = World()
    world.subscribe()
    world.publish()
    woken: list[bool] = []
    subscription = world.core.subscription(NAME)
    subscription.open(Puller(max_messages=0, max_bytes=0, ack_deadline_s=10, wake=lambda: woken.append(True)))
    assert world.core.detach_subscription(NAME) is subscription
    world.publish()
    assert (woken[-1:], subscription.detached, subscription.unacknowledged) == ([True], True, 0)
    assert (subscription.topic_name, world.topic.subscriptions) == (TOPIC, {})
    for call in (lambda: world.seek(0), world.snapshot):
        with pytest.raises(RequestError, match="detached") as raised:
            call()
        assert raised.value.code == "FAILED_PRECONDITION"
    world.core.delete_topic(TOPIC)
    assert subscription.topic_name == DELETED_TOPIC
    world.core.delete_subscription(NAME)


# Age


def test_a_subscription_that_nobody_uses_is_removed_after_its_ttl() -> None:
    world = World()
    world.subscribe(at_s=100, expiration_ttl_s=float(DAY_S))
    world.subscribe(f"{NAME}-for-ever", at_s=100, expiration_ttl_s=None)
    assert world.sweep(DAY_S + 99) == []
    assert world.core.next_sweep_ns == (DAY_S + 100) * SECOND_NS
    assert world.sweep(DAY_S + 100) == [NAME]
    assert list(world.topic.subscriptions) == [f"{NAME}-for-ever"]
    assert world.sweep(1_000 * DAY_S) == []


def test_an_update_counts_as_use() -> None:
    world = World()
    world.subscribe(expiration_ttl_s=float(DAY_S))
    settings = SubscriptionSettings(expiration_ttl_s=float(DAY_S), ack_deadline_s=20)
    world.core.update_subscription(NAME, settings, time_ns=1_000 * SECOND_NS)
    assert world.sweep(DAY_S + 999) == []
    assert world.sweep(DAY_S + 1_000) == [NAME]


def test_the_next_sweep_is_when_something_ends_and_at_least_every_minute() -> None:
    world = World(retention_s=600.0)
    world.sweep(0)
    assert world.core.next_sweep_ns == pubsub_core.SWEEP_INTERVAL_NS
    world.publish(at_s=0)
    world.sweep(590)
    assert world.core.next_sweep_ns == 600 * SECOND_NS + 1
    world.sweep(600.5)
    assert world.core.next_sweep_ns == 660.5 * SECOND_NS
