"""The order of messages with the same ordering key, without a server."""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dry_work.clock import SECOND_NS
from dry_work.embedded import pubsub_ordering
from dry_work.embedded.pubsub_deliveries import Counters, DeadLetter, Delivery, Puller
from dry_work.embedded.pubsub_messages import Message
from dry_work.embedded.pubsub_ordering import OrderedSubscription
from dry_work.embedded.pubsub_rules import DeadLetterPolicy, RetryPolicy, SubscriptionSettings

TOPIC = "projects/p/topics/bars"
NAME = "projects/p/subscriptions/agent"


def make_subscription(*, max_backlog_bytes: int = 1_000_000, **kwargs: Any) -> OrderedSubscription:
    dead_letters = kwargs.pop("dead_letters", None)
    counters = kwargs.pop("counters", None)
    return OrderedSubscription(
        NAME,
        TOPIC,
        SubscriptionSettings(ordered=True, **kwargs),
        ack_prefix="abc",
        max_backlog_bytes=max_backlog_bytes,
        dead_letters=dead_letters,
        counters=counters,
    )


def make_puller(max_messages: int = 0) -> Puller:
    return Puller(max_messages=max_messages, max_bytes=0, ack_deadline_s=10)


def publish(subscription: OrderedSubscription, *texts: str, at_s: float = 0.0) -> None:
    """Publish messages written like `A1`: a letter for the key (`-` for none) and a number, rising in the test."""
    messages = [Message(text, b"x" * 10, int(text[1:]), round(at_s * SECOND_NS), text[0].strip("-")) for text in texts]
    subscription.add(messages, [{}] * len(messages))


def take(subscription: OrderedSubscription, puller: Puller, at_s: float = 0.0) -> dict[str, Delivery]:
    deliveries = subscription.take(puller, round(at_s * SECOND_NS))
    return {delivery.message.message_id: delivery for delivery in deliveries}


def refuse(subscription: OrderedSubscription, delivery: Delivery, at_s: float = 0.0) -> None:
    subscription.modify_deadline(delivery.ack_id, 0, round(at_s * SECOND_NS))


def test_messages_of_a_key_come_in_order_and_keys_take_turns() -> None:
    subscription, puller = make_subscription(), make_puller()
    publish(subscription, "A1", "A2", "A3", "B4", "-5", "B6")
    assert list(take(subscription, puller)) == ["A1", "B4", "-5", "A2", "B6", "A3"]


def test_a_key_goes_to_one_subscriber_until_it_has_acknowledged_all() -> None:
    subscription, one, other = make_subscription(), make_puller(), make_puller()
    publish(subscription, "A1")
    first = take(subscription, one)
    publish(subscription, "A2", "B3", "-4")
    assert list(take(subscription, other)) == ["B3", "-4"]
    second = take(subscription, one)
    assert list(second) == ["A2"]
    publish(subscription, "A5")
    subscription.acknowledge([first["A1"].ack_id])
    assert take(subscription, other) == {}
    subscription.acknowledge([second["A2"].ack_id])
    assert list(take(subscription, other)) == ["A5"]


def test_a_refused_message_brings_all_that_follow_in_its_key_again() -> None:
    subscription, puller = make_subscription(), make_puller()
    publish(subscription, "A1", "A2", "A3", "A4", "B5")
    taken = take(subscription, puller)
    subscription.acknowledge([taken["A3"].ack_id])
    refuse(subscription, taken["A2"])
    publish(subscription, "A6")
    assert list(take(subscription, puller)) == ["A2", "A3", "A4", "A6"]
    assert (puller.outstanding_messages, subscription.backlog_bytes) == (6, 0)


def test_a_deadline_that_passes_brings_all_that_follow_in_its_key_again() -> None:
    subscription, puller = make_subscription(), make_puller()
    publish(subscription, "A1", "A2", "A3", "B4")
    taken = take(subscription, puller)
    old = taken["A2"].ack_id
    for kept in ("A2", "A3", "B4"):
        subscription.modify_deadline(taken[kept].ack_id, 600, 0)
    subscription.expire(10 * SECOND_NS)
    assert list(take(subscription, puller, at_s=10)) == ["A1", "A2", "A3"]
    subscription.acknowledge([old])
    assert subscription.unacknowledged == 4


def test_a_key_whose_first_message_stays_unacknowledged_is_bounded(monkeypatch: Any) -> None:
    monkeypatch.setattr(pubsub_ordering, "MAX_GIVEN_PER_KEY", 3)
    subscription, puller = make_subscription(), make_puller()
    publish(subscription, "A1", "A2", "A3", "A4")
    taken = take(subscription, puller)
    subscription.acknowledge([taken["A2"].ack_id, taken["A3"].ack_id])
    assert list(taken) == ["A1", "A2", "A3"]
    assert take(subscription, puller) == {}
    subscription.acknowledge([taken["A1"].ack_id])
    assert list(take(subscription, puller)) == ["A4"]


def test_a_key_rests_as_a_whole() -> None:
    subscription, puller = make_subscription(retry=RetryPolicy(5.0, 60.0)), make_puller()
    publish(subscription, "A1", "A2", "-3")
    taken = take(subscription, puller)
    refuse(subscription, taken["A1"])
    refuse(subscription, taken["-3"])
    publish(subscription, "A4", "B5")
    assert list(take(subscription, puller)) == ["B5"]
    assert subscription.unacknowledged == 5
    subscription.expire(5 * SECOND_NS)
    assert set(take(subscription, puller, at_s=5)) == {"A1", "A2", "-3", "A4"}


def test_a_dead_letter_does_not_hold_up_its_key() -> None:
    letters: deque[DeadLetter] = deque()
    subscription = make_subscription(dead_letter=DeadLetterPolicy("projects/p/topics/dead", 5), dead_letters=letters)
    puller = make_puller()
    publish(subscription, "A1", "A2")
    for _ in range(5):
        taken = take(subscription, puller)
        refuse(subscription, taken["A1"])
    (letter,) = letters
    subscription.settle_dead_letter(letter.delivery)
    subscription.acknowledge([taken["A2"].ack_id])
    assert subscription.unacknowledged == 0
    publish(subscription, "A3")
    assert list(take(subscription, make_puller())) == ["A3"]


def test_a_dead_letter_without_a_topic_is_the_first_of_its_key_again() -> None:
    letters: deque[DeadLetter] = deque()
    subscription = make_subscription(dead_letter=DeadLetterPolicy("projects/p/topics/dead", 5), dead_letters=letters)
    puller = make_puller(max_messages=1)
    publish(subscription, "A1", "A2")
    for _ in range(5):
        refuse(subscription, take(subscription, puller)["A1"])
    subscription.put_back(letters.popleft().delivery)
    assert list(take(subscription, puller)) == ["A1"]


def test_beyond_the_backlog_limit_messages_are_dropped_and_counted() -> None:
    counters = Counters()
    subscription = make_subscription(max_backlog_bytes=30, retry=RetryPolicy(5.0, 5.0), counters=counters)
    puller = make_puller()
    publish(subscription, "A1", "A2", "-3")
    taken = take(subscription, puller)
    refuse(subscription, taken["A1"])  # and A2 with it
    refuse(subscription, taken["-3"])
    publish(subscription, "A4", "-5")
    assert (counters.dropped, subscription.backlog_bytes) == (2, 30)
    subscription.expire(5 * SECOND_NS)
    assert set(take(subscription, puller, at_s=5)) == {"-3", "A4", "-5"}
    publish(subscription, "B6", "B7", "B8", "B9")
    assert list(take(subscription, puller)) == ["B7", "B8", "B9"]


def test_resting_messages_without_a_key_are_dropped_when_nothing_else_waits() -> None:
    counters = Counters()
    subscription = make_subscription(max_backlog_bytes=20, retry=RetryPolicy(5.0, 5.0), counters=counters)
    puller = make_puller()
    publish(subscription, "-1", "-2")
    taken = take(subscription, puller)
    publish(subscription, "-3")
    taken |= take(subscription, puller)
    for delivery in taken.values():
        refuse(subscription, delivery)
    assert (counters.dropped, subscription.unacknowledged, subscription.backlog_bytes) == (1, 2, 20)


def test_messages_older_than_the_retention_are_forgotten() -> None:
    counters = Counters()
    subscription, puller = make_subscription(retention_s=600.0, counters=counters), make_puller()
    publish(subscription, "A1", "B2", at_s=0)
    publish(subscription, "A3", at_s=100)
    assert subscription.forget_outdated(650 * SECOND_NS) == 700 * SECOND_NS + 1
    assert list(take(subscription, puller)) == ["A3"]
    assert counters.outdated == 2


def test_a_seek_brings_keys_back_in_order() -> None:
    subscription, puller = make_subscription(retain_acked=True), make_puller()
    publish(subscription, "A1", "A2", "B3", "A4")
    taken = take(subscription, puller)
    subscription.acknowledge([taken[text].ack_id for text in ("B3", "A2", "A1")])
    held = subscription.retained_messages()
    assert [message.message_id for message in held] == ["A1", "A2", "B3", "A4"]
    subscription.seek(held)
    assert puller.outstanding_messages == 0
    assert list(take(subscription, make_puller())) == ["A1", "B3", "A2", "A4"]


def test_a_seek_reaches_what_was_acknowledged_before_its_predecessor() -> None:
    subscription, puller = make_subscription(retain_acked=True), make_puller()
    publish(subscription, "A1", "A2")
    taken = take(subscription, puller)
    subscription.acknowledge([taken["A2"].ack_id])
    assert [message.message_id for message in subscription.retained_messages()] == ["A1", "A2"]
    subscription.seek([])
    assert [message.message_id for message in subscription.retained_messages()] == ["A1", "A2"]


class Order(RuleBasedStateMachine):
    """Whatever subscribers do, a message comes after all before it in its key, or after one of those came again."""

    @initialize(backoff_s=st.sampled_from([None, 0.0, 3.0]))
    def begin(self, backoff_s: float | None) -> None:
        retry = None if backoff_s is None else RetryPolicy(backoff_s, 60.0)
        self.subscription = make_subscription(retry=retry)
        self.now_ns = 0
        self.next_number = 1
        self.published: dict[str, list[int]] = {"A": [], "B": [], "": []}
        self.next_due: dict[str, int] = {"A": 0, "B": 0}  # index of the next new message of a key
        self.acknowledged: set[int] = set()
        self.pullers = [make_puller(), make_puller(2)]
        self.held: dict[str, tuple[Puller, Message]] = {}

    @rule(key=st.sampled_from(["A", "A", "B", ""]), count=st.integers(1, 3))
    def publish(self, key: str, count: int) -> None:
        for _ in range(count):
            publish(self.subscription, f"{key or '-'}{self.next_number}")
            self.published[key].append(self.next_number)
            self.next_number += 1

    @rule(number=st.integers(0, 1))
    def take(self, number: int) -> None:
        puller = self.pullers[number]
        for delivery in self.subscription.take(puller, self.now_ns):
            message = delivery.message
            key = message.ordering_key
            if key:
                holders = {owner for owner, other in self.held.values() if other.ordering_key == key}
                assert holders <= {puller}
                index = self.published[key].index(message.number)
                assert index <= self.next_due[key]
                # All before it are acknowledged or held by this subscriber.
                held = {other.number for _, other in self.held.values()}
                assert all(other in held | self.acknowledged for other in self.published[key][:index])
                self.next_due[key] = max(self.next_due[key], index + 1)
                self.acknowledged.discard(message.number)
            self.held[delivery.ack_id] = (puller, message)

    @rule(choice=st.integers(0, 20))
    def acknowledge(self, choice: int) -> None:
        if self.held:
            ack_id = sorted(self.held)[choice % len(self.held)]
            self.subscription.acknowledge([ack_id])
            self.acknowledged.add(self.held.pop(ack_id)[1].number)

    @rule(choice=st.integers(0, 20))
    def refuse(self, choice: int) -> None:
        if self.held:
            self.subscription.modify_deadline(sorted(self.held)[choice % len(self.held)], 0, self.now_ns)
            self.see_leases()

    @rule(seconds=st.integers(0, 12))
    def let_time_pass(self, seconds: int) -> None:
        self.now_ns += seconds * SECOND_NS
        self.subscription.expire(self.now_ns)
        self.see_leases()

    def see_leases(self) -> None:
        self.held = {ack_id: one for ack_id, one in self.held.items() if ack_id in self.subscription._leased}

    @invariant()
    def the_flow_control_agrees(self) -> None:
        if hasattr(self, "subscription"):
            for puller in self.pullers:
                assert puller.outstanding_messages == sum(1 for owner, _ in self.held.values() if owner is puller)

    def teardown(self) -> None:
        if not hasattr(self, "subscription"):
            return
        puller = make_puller()
        unheard = {number for numbers in self.published.values() for number in numbers} - self.acknowledged
        for _ in range(20):  # every lease and backoff ends within one of these steps
            self.now_ns += 100 * SECOND_NS
            self.subscription.expire(self.now_ns)
            while deliveries := self.subscription.take(puller, self.now_ns):
                self.subscription.acknowledge([delivery.ack_id for delivery in deliveries])
                unheard -= {delivery.message.number for delivery in deliveries}
        assert unheard == set()
        assert (self.subscription.unacknowledged, self.subscription.backlog_bytes) == (0, 0)
        assert (self.subscription._keys, list(self.subscription._turns)) == ({}, [])


TestOrder = Order.TestCase
TestOrder.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
