"""Retries, dead letters, retention and seek of one subscription, without a server."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from google.pubsub_v1.types import pubsub as pubsub_types

from dry_work.clock import SECOND_NS
from dry_work.embedded.pubsub_deliveries import Counters, DeadLetter, Puller
from dry_work.embedded.pubsub_messages import Message, build_dead_letter, read_attributes, stamp_message
from dry_work.embedded.pubsub_rules import DeadLetterPolicy, RetryPolicy, SubscriptionSettings
from dry_work.embedded.pubsub_subscription import Subscription

TOPIC = "projects/p/topics/bars"
DEAD = "projects/p/topics/dead"
NAME = "projects/p/subscriptions/agent"
PubsubMessage = pubsub_types.PubsubMessage.pb()


class Agent:
    """A subscription with one subscriber of 10 s deadlines."""

    def __init__(self, *, max_backlog_bytes: int = 1_000_000, **settings: Any) -> None:
        self.counters = Counters()
        self.dead_letters: deque[DeadLetter] = deque()
        self.subscription = Subscription(
            NAME,
            TOPIC,
            SubscriptionSettings(**settings),
            ack_prefix="abc",
            max_backlog_bytes=max_backlog_bytes,
            counters=self.counters,
            dead_letters=self.dead_letters,
        )
        self.puller = Puller(max_messages=0, max_bytes=0, ack_deadline_s=10)
        self.subscription.open(self.puller)
        self.ack_ids: dict[int, str] = {}
        self.attempts: list[int] = []

    def publish(self, *numbers: int, at_s: float = 0.0) -> None:
        messages = [Message(str(number), b"x" * 10, number, round(at_s * SECOND_NS)) for number in numbers]
        self.subscription.add(messages, [{}] * len(numbers))

    def take(self, at_s: float = 0.0) -> list[int]:
        deliveries = self.subscription.take(self.puller, round(at_s * SECOND_NS))
        self.ack_ids.update((delivery.message.number, delivery.ack_id) for delivery in deliveries)
        self.attempts += [delivery.attempt for delivery in deliveries]
        return [delivery.message.number for delivery in deliveries]

    def expire(self, at_s: float) -> None:
        self.subscription.expire(round(at_s * SECOND_NS))

    def acknowledge(self, *numbers: int) -> None:
        self.subscription.acknowledge([self.ack_ids[number] for number in numbers])

    def refuse(self, number: int, at_s: float = 0.0) -> None:
        self.subscription.modify_deadline(self.ack_ids[number], 0, round(at_s * SECOND_NS))


# Retry policy


def test_the_backoff_doubles_from_the_least_to_the_greatest() -> None:
    policy = RetryPolicy(10.0, 60.0)
    assert [policy.backoff_ns(failures) / SECOND_NS for failures in (1, 2, 3, 4, 5, 5_000)] == [10, 20, 40, 60, 60, 60]
    assert RetryPolicy(0.0, 600.0).backoff_ns(7) == 0


def test_a_refused_message_rests_as_long_as_the_retry_policy_says() -> None:
    agent = Agent(retry=RetryPolicy(5.0, 8.0))
    agent.publish(1)
    agent.take()
    agent.refuse(1, at_s=1)
    assert agent.subscription.next_expiry_ns == 6 * SECOND_NS
    agent.expire(5.999)
    assert agent.take(5.999) == []
    agent.expire(6)
    assert agent.take(6) == [1]
    agent.refuse(1, at_s=6)
    agent.expire(13.9)
    assert agent.take(13.9) == []
    agent.expire(14)
    assert agent.take(14) == [1]


def test_a_message_whose_deadline_passed_rests_too_and_can_still_be_acknowledged() -> None:
    agent = Agent(retry=RetryPolicy(5.0, 8.0))
    agent.publish(1, 2)
    agent.take()
    agent.expire(10)
    assert agent.subscription.unacknowledged == 2
    agent.acknowledge(1)
    agent.expire(15)
    assert agent.take(15) == [2]
    assert (agent.subscription.unacknowledged, agent.subscription.backlog_bytes) == (1, 0)


def test_resting_messages_count_for_the_backlog_limit() -> None:
    agent = Agent(max_backlog_bytes=20, retry=RetryPolicy(5.0, 8.0))
    agent.publish(1, 2)
    agent.take()
    agent.publish(3, 4)
    agent.take()
    for number in (1, 2, 3):
        agent.refuse(number)
    assert agent.counters.dropped == 1
    assert agent.subscription.backlog_bytes == 20


# Dead letters


def test_a_message_becomes_a_dead_letter_when_all_its_deliveries_failed() -> None:
    agent = Agent(dead_letter=DeadLetterPolicy(DEAD, 5))
    agent.publish(1)
    for attempt in range(4):
        assert agent.take(20 * attempt) == [1]
        agent.refuse(1) if attempt % 2 else agent.expire(20 * attempt + 10)
        assert not agent.dead_letters
    assert agent.take(100) == [1]
    agent.refuse(1, at_s=100)
    assert agent.take(100) == []
    (letter,) = agent.dead_letters
    assert (letter.topic_name, letter.delivery.failures) == (DEAD, 5)
    assert agent.attempts == [1, 2, 3, 4, 5]
    agent.subscription.settle_dead_letter(letter.delivery)
    assert (agent.subscription.unacknowledged, agent.subscription.backlog_bytes) == (0, 0)
    assert agent.counters.dead_lettered == 1


def test_without_a_dead_letter_policy_attempts_are_not_told() -> None:
    agent = Agent()
    agent.publish(1)
    for _ in range(10):
        agent.take()
        agent.refuse(1)
    assert set(agent.attempts) == {0}
    assert not agent.dead_letters


def test_a_dead_letter_without_a_topic_waits_again() -> None:
    agent = Agent(dead_letter=DeadLetterPolicy(DEAD, 5))
    agent.publish(1)
    for _ in range(5):
        agent.take()
        agent.refuse(1)
    agent.subscription.put_back(agent.dead_letters.popleft().delivery)
    assert agent.subscription.backlog_bytes == 10
    assert agent.take() == [1]
    assert agent.attempts[-1] == 6


def test_a_dead_letter_carries_googles_attributes_and_all_that_it_had() -> None:
    original = PubsubMessage(data=b"x", attributes={"symbol": "SPY"}, ordering_key="SPY")
    message = stamp_message(original, 7, 1_660_319_789_732_999_000)
    letter = stamp_message(build_dead_letter(message, NAME, 5), 8, 0)
    decoded = PubsubMessage.FromString(letter.encoded)
    assert (decoded.data, decoded.ordering_key, decoded.message_id, letter.ordering_key) == (b"x", "SPY", "8", "SPY")
    assert read_attributes(letter) == {
        "symbol": "SPY",
        "CloudPubSubDeadLetterSourceDeliveryCount": "5",
        "CloudPubSubDeadLetterSourceSubscription": "agent",
        "CloudPubSubDeadLetterSourceSubscriptionProject": "p",
        "CloudPubSubDeadLetterSourceTopicPublishTime": "2022-08-12T15:56:29.732+00:00",
    }


# Retention


def test_messages_older_than_the_retention_are_forgotten_and_counted() -> None:
    agent = Agent(retention_s=600.0)
    agent.publish(1, at_s=0)
    agent.publish(2, at_s=100)
    assert agent.subscription.forget_outdated(600 * SECOND_NS) == 600 * SECOND_NS + 1
    assert agent.subscription.unacknowledged == 2
    assert agent.subscription.forget_outdated(600 * SECOND_NS + 1) == 700 * SECOND_NS + 1
    assert agent.take(600) == [2]
    assert agent.counters.outdated == 1
    assert agent.subscription.forget_outdated(10_000 * SECOND_NS) is None


def test_a_longer_retention_of_the_topic_holds_for_the_subscription() -> None:
    agent = Agent(retention_s=600.0)
    agent.subscription.topic_retention_s = 1_200.0
    agent.publish(1)
    agent.subscription.forget_outdated(1_200 * SECOND_NS)
    assert agent.take() == [1]


def test_a_leased_message_is_forgotten_when_it_comes_back_too_old() -> None:
    agent = Agent(retention_s=600.0)
    agent.publish(1, at_s=0)
    agent.publish(2, at_s=500)
    agent.take()
    agent.subscription.forget_outdated(700 * SECOND_NS)
    agent.refuse(2)
    agent.refuse(1)
    assert agent.take() == [2]
    assert (agent.counters.outdated, agent.subscription.backlog_bytes) == (1, 0)


# Seek


def test_a_seek_makes_retained_messages_unacknowledged_again_in_order_of_publishing() -> None:
    agent = Agent(retain_acked=True)
    agent.publish(1, 2, 3, 4)
    agent.take()
    agent.acknowledge(3, 1, 2)
    held = agent.subscription.retained_messages()
    assert [message.number for message in held] == [1, 2, 3, 4]
    agent.subscription.seek(held[1:])
    assert agent.take() == [2, 3, 4]
    agent.acknowledge(2, 3, 4)
    agent.subscription.seek(agent.subscription.retained_messages())
    assert agent.take() == [1, 2, 3, 4]


def test_a_seek_that_wants_nothing_purges_and_ends_all_leases() -> None:
    agent = Agent()
    agent.publish(1, 2, 3)
    agent.take()
    agent.refuse(2)
    agent.publish(4)
    agent.subscription.seek([])
    assert agent.take() == []
    assert (agent.subscription.unacknowledged, agent.subscription.backlog_bytes) == (0, 0)
    assert (agent.puller.outstanding_messages, agent.puller.outstanding_bytes) == (0, 0)
    agent.acknowledge(1, 2, 3)
    assert agent.counters.acknowledged == 0
    assert agent.subscription.retained_messages() == []


def test_without_retain_acked_a_seek_reaches_unacknowledged_messages_only() -> None:
    agent = Agent()
    agent.publish(1, 2)
    agent.take()
    agent.acknowledge(1)
    assert [message.number for message in agent.subscription.retained_messages()] == [2]


def test_a_seek_keeps_the_count_of_failures() -> None:
    agent = Agent(dead_letter=DeadLetterPolicy(DEAD, 5))
    agent.publish(1)
    agent.take()
    agent.refuse(1)
    agent.subscription.seek(agent.subscription.retained_messages())
    agent.take()
    assert agent.attempts == [1, 2]


def test_what_is_retained_is_bounded_by_age_and_bytes() -> None:
    agent = Agent(retain_acked=True, retention_s=600.0, max_backlog_bytes=30)
    agent.publish(1, 2, 3, at_s=0)
    agent.take()
    agent.acknowledge(1, 2, 3)
    agent.publish(4, at_s=100)
    agent.take()
    agent.acknowledge(4)
    assert [message.number for message in agent.subscription.retained_messages()] == [2, 3, 4]
    assert agent.counters.dropped == 1
    assert agent.subscription.forget_outdated(650 * SECOND_NS) == 700 * SECOND_NS + 1
    assert [message.number for message in agent.subscription.retained_messages()] == [4]


def test_retained_messages_go_when_the_setting_goes() -> None:
    agent = Agent(retain_acked=True)
    agent.publish(1)
    agent.take()
    agent.acknowledge(1)
    agent.subscription.configure(SubscriptionSettings())
    assert agent.subscription.retained_messages() == []


@pytest.mark.parametrize(("ttl_s", "unused_s", "expected"), [(86_400.0, 86_399, False), (86_400.0, 86_400, True),
                                                            (None, 10_000_000, False)])  # fmt: skip
def test_a_subscription_is_unused_when_nobody_came_for_its_ttl(
    ttl_s: float | None, unused_s: int, expected: bool
) -> None:
    agent = Agent(expiration_ttl_s=ttl_s)
    assert not agent.subscription.is_unused(50_000_000 * SECOND_NS)  # a subscriber is connected
    agent.subscription.close(agent.puller, 60_000_000 * SECOND_NS)
    assert agent.subscription.is_unused((60_000_000 + unused_s) * SECOND_NS) is expected
