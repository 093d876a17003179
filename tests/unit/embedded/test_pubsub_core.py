"""Leases, redelivery, flow control and the books of the Pub/Sub server, without a server."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from dry_work.clock import SECOND_NS
from dry_work.embedded import pubsub_subscription
from dry_work.embedded.pubsub_core import PubSubCore
from dry_work.embedded.pubsub_deliveries import Puller
from dry_work.embedded.pubsub_messages import Message
from dry_work.embedded.pubsub_rules import RequestError, SubscriptionSettings
from dry_work.embedded.pubsub_subscription import Subscription

TOPIC = "projects/p/topics/bars"
NAME = "projects/p/subscriptions/agent"


def make_subscription(*, max_backlog_bytes: int = 1_000_000, filter: str = "") -> Subscription:
    return Subscription(
        NAME, TOPIC, SubscriptionSettings(filter=filter), ack_prefix="abc", max_backlog_bytes=max_backlog_bytes
    )


def make_puller(max_messages: int = 0, max_bytes: int = 0, ack_deadline_s: int = 10, **kwargs) -> Puller:
    return Puller(max_messages=max_messages, max_bytes=max_bytes, ack_deadline_s=ack_deadline_s, **kwargs)


def publish(subscription: Subscription, *ids: str, size: int = 10) -> None:
    subscription.add([Message(message_id, b"x" * size) for message_id in ids], [{} for _ in ids])


def take_ids(subscription: Subscription, puller: Puller, now_s: float = 0.0) -> list[str]:
    return [delivery.message.message_id for delivery in subscription.take(puller, round(now_s * SECOND_NS))]


def test_messages_are_given_in_order_of_publishing_and_once() -> None:
    subscription, puller = make_subscription(), make_puller()
    subscription.open(puller)
    publish(subscription, "1", "2")
    publish(subscription, "3")
    assert take_ids(subscription, puller) == ["1", "2", "3"]
    assert take_ids(subscription, puller) == []


def test_a_message_comes_again_when_its_deadline_has_passed_and_not_before() -> None:
    subscription, puller = make_subscription(), make_puller(ack_deadline_s=10)
    subscription.open(puller)
    publish(subscription, "1", "2")
    take_ids(subscription, puller, now_s=0)
    publish(subscription, "3")
    assert subscription.next_expiry_ns == 10 * SECOND_NS
    subscription.expire(10 * SECOND_NS - 1)
    assert take_ids(subscription, puller, now_s=10) == ["3"]
    subscription.expire(10 * SECOND_NS)
    assert take_ids(subscription, puller, now_s=10) == ["1", "2"]


def test_a_longer_deadline_puts_redelivery_off_and_a_shorter_one_brings_it_forward() -> None:
    subscription, puller = make_subscription(), make_puller(ack_deadline_s=10)
    publish(subscription, "1", "2")
    first, second = subscription.take(puller, 0)
    subscription.modify_deadline(first.ack_id, 60, 5 * SECOND_NS)
    subscription.modify_deadline(second.ack_id, 1, 5 * SECOND_NS)
    assert subscription.next_expiry_ns == 6 * SECOND_NS
    subscription.expire(6 * SECOND_NS)
    assert take_ids(subscription, puller, now_s=6) == ["2"]
    subscription.expire(64 * SECOND_NS)
    assert take_ids(subscription, puller, now_s=64) == ["2"]
    subscription.expire(65 * SECOND_NS)
    assert take_ids(subscription, puller, now_s=65) == ["1"]


def test_a_message_given_back_comes_again_at_once_behind_the_others() -> None:
    subscription, puller = make_subscription(), make_puller(max_messages=1)
    publish(subscription, "1", "2")
    (first,) = subscription.take(puller, 0)
    subscription.modify_deadline(first.ack_id, 0, 0)
    assert take_ids(subscription, puller) == ["2"]
    assert take_ids(subscription, puller) == []


def test_each_delivery_has_an_ack_id_of_its_own() -> None:
    subscription, puller = make_subscription(), make_puller()
    publish(subscription, "1")
    seen = set()
    for _ in range(3):
        (delivery,) = subscription.take(puller, 0)
        seen.add(delivery.ack_id)
        subscription.modify_deadline(delivery.ack_id, 0, 0)
    assert len(seen) == 3


def test_an_acknowledgement_after_the_deadline_still_counts_while_the_message_waits() -> None:
    subscription, puller = make_subscription(), make_puller()
    publish(subscription, "1")
    ack_id = subscription.take(puller, 0)[0].ack_id
    subscription.expire(10 * SECOND_NS)
    subscription.acknowledge([ack_id])
    assert take_ids(subscription, puller, now_s=11) == []
    assert (subscription.unacknowledged, subscription.backlog_bytes) == (0, 0)


def test_an_old_ack_id_does_nothing_to_a_message_that_was_given_again() -> None:
    subscription, puller = make_subscription(), make_puller()
    publish(subscription, "1")
    old = subscription.take(puller, 0)[0].ack_id
    subscription.expire(10 * SECOND_NS)
    (delivery,) = subscription.take(puller, 10 * SECOND_NS)
    subscription.acknowledge([old])
    subscription.modify_deadline(old, 0, 10 * SECOND_NS)
    assert subscription.unacknowledged == 1
    assert delivery.puller is puller


@pytest.mark.parametrize("ack_id", ["", "abc", "abc-", "x-1", "abc-1-1", "ABC-1"])
def test_a_malformed_ack_id_is_refused(ack_id: str) -> None:
    subscription = make_subscription()
    with pytest.raises(RequestError, match="malformed") as raised:
        subscription.acknowledge([ack_id])
    assert raised.value.code == "INVALID_ARGUMENT"
    with pytest.raises(RequestError, match="malformed"):
        subscription.modify_deadline(ack_id, 10, 0)


@pytest.mark.parametrize("deadline_s", [-1, 601])
def test_a_deadline_out_of_range_is_refused(deadline_s: int) -> None:
    subscription = make_subscription()
    with pytest.raises(RequestError, match="must be 0 to 600 seconds"):
        subscription.modify_deadline("abc-1", deadline_s, 0)


def test_flow_control_by_bytes_stops_when_the_limit_is_reached() -> None:
    subscription, puller = make_subscription(), make_puller(max_bytes=25)
    publish(subscription, "1", "2", "3", "4", size=10)
    deliveries = subscription.take(puller, 0)
    assert len(deliveries) == 3
    assert take_ids(subscription, puller) == []
    subscription.acknowledge([deliveries[0].ack_id])
    assert take_ids(subscription, puller) == ["4"]


def test_pullers_share_a_burst_and_single_messages() -> None:
    subscription = make_subscription()
    woken: list[int] = []
    pullers = [make_puller(wake=lambda number=number: woken.append(number)) for number in range(3)]
    for puller in pullers:
        subscription.open(puller)
    publish(subscription, *(str(number) for number in range(9)))
    assert [len(subscription.take(puller, 0)) for puller in pullers] == [3, 2, 2]
    assert [len(subscription.take(puller, 0)) for puller in pullers] == [1, 1, 0]
    first_woken = []
    for number in range(3):
        woken.clear()
        publish(subscription, str(number))
        first_woken.append(woken[0])
        subscription.take(pullers[woken[0]], 0)
    assert sorted(first_woken) == [0, 1, 2]


def test_a_batch_is_bounded_in_messages_and_in_bytes() -> None:
    subscription, puller = make_subscription(max_backlog_bytes=10_000_000), make_puller()
    publish(subscription, *(str(number) for number in range(pubsub_subscription.MAX_BATCH_MESSAGES + 1)), size=1)
    assert len(subscription.take(puller, 0)) == pubsub_subscription.MAX_BATCH_MESSAGES
    subscription.take(puller, 0)
    publish(subscription, "a", "b", size=pubsub_subscription.MAX_BATCH_BYTES // 2)
    publish(subscription, "c", size=pubsub_subscription.MAX_BATCH_BYTES + 1)
    publish(subscription, "d", size=1)
    assert [take_ids(subscription, puller) for _ in range(3)] == [["a", "b"], ["c"], ["d"]]


def test_beyond_the_backlog_limit_the_oldest_waiting_messages_are_dropped_and_counted() -> None:
    core = PubSubCore(max_backlog_bytes=30, nonce=1)
    topic = core.create_topic(TOPIC)
    subscription = core.create_subscription(NAME, TOPIC, SubscriptionSettings())
    puller = make_puller()
    core.publish(topic, [Message("0", b"x" * 10)], [{}])
    subscription.take(puller, 0)
    for number in range(1, 6):
        core.publish(topic, [Message(str(number), b"x" * 10)], [{}])
    assert core.counters.dropped == 2
    assert subscription.backlog_bytes == 30
    assert take_ids(subscription, puller) == ["3", "4", "5"]
    subscription.expire(10 * SECOND_NS)
    assert core.counters.dropped == 3


def test_messages_that_do_not_match_the_filter_are_counted_and_never_given() -> None:
    core = PubSubCore(max_backlog_bytes=1_000, nonce=1)
    topic = core.create_topic(TOPIC)
    settings_of_spy = SubscriptionSettings(filter='attributes.symbol = "SPY"')
    subscription = core.create_subscription(NAME, TOPIC, settings_of_spy)
    core.publish(topic, [Message("1", b"x"), Message("2", b"x")], [{"symbol": "SPY"}, {"symbol": "IBM"}])
    assert take_ids(subscription, make_puller()) == ["1"]
    assert (core.counters.filtered, core.counters.delivered) == (1, 1)


def test_an_ack_id_of_an_earlier_run_of_the_server_acknowledges_nothing() -> None:
    ack_ids = []
    for nonce in (1_000, 2_000):
        core = PubSubCore(max_backlog_bytes=1_000, nonce=nonce)
        topic = core.create_topic(TOPIC)
        subscription = core.create_subscription(NAME, TOPIC, SubscriptionSettings())
        core.publish(topic, [Message("1", b"x")], [{}])
        ack_ids.append(subscription.take(make_puller(), 0)[0].ack_id)
    subscription.acknowledge([ack_ids[0]])
    assert subscription.unacknowledged == 1


def test_deleting_a_topic_leaves_its_subscriptions_with_their_messages() -> None:
    core = PubSubCore(max_backlog_bytes=1_000, nonce=1)
    topic = core.create_topic(TOPIC)
    subscription = core.create_subscription(NAME, TOPIC, SubscriptionSettings())
    core.publish(topic, [Message("1", b"x")], [{}])
    core.delete_topic(TOPIC)
    assert core.subscription(NAME).topic_name == "_deleted-topic_"
    assert take_ids(subscription, make_puller()) == ["1"]
    core.create_topic(TOPIC)
    assert core.topic(TOPIC).subscriptions == {}
    core.delete_subscription(NAME)


def test_deleting_a_subscription_wakes_its_pullers_and_forgets_its_messages() -> None:
    core = PubSubCore(max_backlog_bytes=1_000, nonce=1)
    topic = core.create_topic(TOPIC)
    subscription = core.create_subscription(NAME, TOPIC, SubscriptionSettings())
    woken = []
    subscription.open(make_puller(wake=lambda: woken.append(True)))
    core.delete_subscription(NAME)
    assert (woken, subscription.deleted, topic.subscriptions) == ([True], True, {})
    with pytest.raises(RequestError) as raised:
        core.subscription(NAME)
    assert raised.value.code == "NOT_FOUND"


class Redelivery(RuleBasedStateMachine):
    """Every published message is given until it is acknowledged and not after, and no subscriber gets too much."""

    held = Bundle("held")  # (puller, delivery, ack id) as a subscriber knows it

    @initialize()
    def begin(self) -> None:
        self.subscription = make_subscription()
        self.now_ns = 0
        self.next_id = 0
        self.published: dict[str, int] = {}
        self.acknowledged: set[str] = set()
        self.leased: dict[str, tuple[Puller, str]] = {}  # by current ack id
        self.pullers: list[Puller] = []
        self.awake: set[Puller] = set()

    @rule(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=5))
    def publish(self, sizes: list[int]) -> None:
        messages = []
        for size in sizes:
            messages.append(Message(str(self.next_id), b"x" * size))
            self.published[str(self.next_id)] = size
            self.next_id += 1
        self.subscription.add(messages, [{} for _ in messages])

    @rule(max_messages=st.integers(-1, 4), max_bytes=st.integers(-1, 100), deadline_s=st.integers(10, 30))
    def connect(self, max_messages: int, max_bytes: int, deadline_s: int) -> None:
        puller = make_puller(max_messages, max_bytes, deadline_s, wake=lambda: self.awake.add(puller))
        self.pullers.append(puller)
        self.subscription.open(puller)

    @rule(number=st.integers(0, 9))
    def disconnect(self, number: int) -> None:
        if self.pullers:
            self.subscription.close(self.pullers.pop(number % len(self.pullers)))

    @rule(target=held, number=st.integers(0, 9))
    def take(self, number: int):
        if not self.pullers:
            return multiple()
        puller = self.pullers[number % len(self.pullers)]
        deliveries = self.subscription.take(puller, self.now_ns)
        if not deliveries:
            self.awake.discard(puller)
        taken = []
        for delivery in deliveries:
            message_id = delivery.message.message_id
            assert message_id not in self.acknowledged
            assert message_id not in {leased for _, leased in self.leased.values()}
            assert delivery.ack_id not in self.leased
            self.leased[delivery.ack_id] = (puller, message_id)
            taken.append((message_id, delivery.ack_id))
        sizes = [self.published[leased] for owner, leased in self.leased.values() if owner is puller]
        if puller.max_messages > 0:
            assert len(sizes) <= puller.max_messages
        if puller.max_bytes > 0 and deliveries:
            assert sum(sizes) - self.published[deliveries[-1].message.message_id] < puller.max_bytes
        return multiple(*taken)

    @rule(one=consumes(held))
    def acknowledge(self, one: tuple[str, str]) -> None:
        message_id, ack_id = one
        current = {leased for _, leased in self.leased.values()}
        self.subscription.acknowledge([ack_id])
        if self.leased.pop(ack_id, None) is not None:
            self.acknowledged.add(message_id)
        elif message_id not in current and self.unacknowledged() > self.subscription.unacknowledged:
            self.acknowledged.add(message_id)  # a late one that still counted

    @rule(one=held)
    def give_back(self, one: tuple[str, str]) -> None:
        self.subscription.modify_deadline(one[1], 0, self.now_ns)
        self.leased.pop(one[1], None)

    @rule(one=held, deadline_s=st.integers(1, 60))
    def extend(self, one: tuple[str, str], deadline_s: int) -> None:
        self.subscription.modify_deadline(one[1], deadline_s, self.now_ns)

    @rule(seconds=st.integers(0, 40))
    def let_time_pass(self, seconds: int) -> None:
        self.now_ns += seconds * SECOND_NS
        self.subscription.expire(self.now_ns)
        self.leased = {delivery.ack_id: self.leased[delivery.ack_id] for delivery in self.subscription._leased.values()}

    def unacknowledged(self) -> int:
        return len(self.published) - len(self.acknowledged)

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "subscription"):
            return
        assert self.subscription.unacknowledged == self.unacknowledged()
        for puller in self.pullers:
            sizes = [self.published[leased] for owner, leased in self.leased.values() if owner is puller]
            assert (puller.outstanding_messages, puller.outstanding_bytes) == (len(sizes), sum(sizes))
        leased = {message_id for _, message_id in self.leased.values()}
        waiting = [self.published[one] for one in self.published if one not in leased | self.acknowledged]
        assert self.subscription.backlog_bytes == sum(waiting)

    @invariant()
    def nobody_sleeps_while_there_is_something_to_take(self) -> None:
        if hasattr(self, "subscription") and self.subscription.backlog_bytes:
            assert all(puller in self.awake for puller in self.pullers if puller.has_room)

    def teardown(self) -> None:
        if not hasattr(self, "subscription"):
            return
        self.now_ns += 700 * SECOND_NS
        self.subscription.expire(self.now_ns)
        puller = make_puller()
        given = []
        while deliveries := self.subscription.take(puller, self.now_ns):
            given += [delivery.message.message_id for delivery in deliveries]
        assert sorted(given) == sorted(set(self.published) - self.acknowledged)


TestRedelivery = Redelivery.TestCase
TestRedelivery.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
