"""What Google's own Pub/Sub client may rely on, against our server and against Google's emulator where it is found.

Where the emulator differs from Google's documentation, the test runs on ours only (`ours`).
"""

from __future__ import annotations

import json
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from google.api_core import exceptions
from google.cloud import pubsub_v1
from google.protobuf.duration_pb2 import Duration

from .waits import TIMEOUT_S, wait_until

if TYPE_CHECKING:
    from conftest import Pubsub


# Topics and subscriptions


def test_a_topic_is_created_found_and_deleted(pubsub: Pubsub) -> None:
    created = pubsub.publisher.create_topic(request={"name": pubsub.topic, "labels": {"team": "quant"}})
    assert (created.name, dict(created.labels)) == (pubsub.topic, {"team": "quant"})
    found = pubsub.publisher.get_topic(topic=pubsub.topic)
    assert (found.name, dict(found.labels)) == (pubsub.topic, {"team": "quant"})
    pubsub.publisher.delete_topic(topic=pubsub.topic)
    with pytest.raises(exceptions.NotFound):
        pubsub.publisher.get_topic(topic=pubsub.topic)
    with pytest.raises(exceptions.NotFound):
        pubsub.publisher.delete_topic(topic=pubsub.topic)


def test_a_subscription_keeps_its_settings_until_it_is_deleted(pubsub: Pubsub) -> None:
    settings = {
        "labels": {"owner": "f00d"},
        "ack_deadline_seconds": 30,
        "filter": 'attributes.symbol = "SPY"',
        "expiration_policy": {"ttl": Duration(seconds=86_400)},
    }
    pubsub.create(**settings)
    found = pubsub.subscriber.get_subscription(subscription=pubsub.subscription)
    assert (found.name, found.topic) == (pubsub.subscription, pubsub.topic)
    assert dict(found.labels) == settings["labels"]
    assert (found.ack_deadline_seconds, found.filter) == (30, settings["filter"])
    assert found.expiration_policy.ttl.total_seconds() == 86_400
    pubsub.subscriber.delete_subscription(subscription=pubsub.subscription)
    with pytest.raises(exceptions.NotFound):
        pubsub.subscriber.get_subscription(subscription=pubsub.subscription)
    with pytest.raises(exceptions.NotFound):
        pubsub.subscriber.delete_subscription(subscription=pubsub.subscription)


def test_lists_give_every_name_of_the_project_once_in_pages(pubsub: Pubsub) -> None:
    topics = sorted(f"projects/{pubsub.project}/topics/topic-{number}" for number in range(5))
    for topic in topics:
        pubsub.publisher.create_topic(name=topic)
    names = sorted(f"projects/{pubsub.project}/subscriptions/sub-{number}" for number in range(5))
    for name in names:
        pubsub.subscriber.create_subscription(name=name, topic=topics[0])
    project = f"projects/{pubsub.project}"
    pages = list(pubsub.publisher.list_topics(request={"project": project, "page_size": 2}).pages)
    assert [len(page.topics) for page in pages] == [2, 2, 1]
    assert sorted(topic.name for page in pages for topic in page.topics) == topics
    pages = list(pubsub.subscriber.list_subscriptions(request={"project": project, "page_size": 2}).pages)
    assert sorted(one.name for page in pages for one in page.subscriptions) == names
    pages = list(pubsub.publisher.list_topic_subscriptions(request={"topic": topics[0], "page_size": 2}).pages)
    assert sorted(name for page in pages for name in page.subscriptions) == names
    assert list(pubsub.publisher.list_topic_subscriptions(topic=topics[1])) == []
    assert list(pubsub.publisher.list_topics(project="projects/nobody-uses-this")) == []


def test_what_exists_is_not_created_again(pubsub: Pubsub) -> None:
    pubsub.create()
    with pytest.raises(exceptions.AlreadyExists):
        pubsub.publisher.create_topic(name=pubsub.topic)
    with pytest.raises(exceptions.AlreadyExists):
        pubsub.subscriber.create_subscription(name=pubsub.subscription, topic=pubsub.topic)


def test_what_does_not_exist_is_not_found(pubsub: Pubsub) -> None:
    with pytest.raises(exceptions.NotFound):
        pubsub.publish(b"x")
    with pytest.raises(exceptions.NotFound):
        pubsub.subscriber.create_subscription(name=pubsub.subscription, topic=pubsub.topic)
    with pytest.raises(exceptions.NotFound):
        pubsub.subscriber.pull(subscription=pubsub.subscription, max_messages=1, retry=None)
    with pytest.raises(exceptions.NotFound):
        pubsub.subscribe(print).result(TIMEOUT_S)


def test_subscriptions_of_a_topic_that_does_not_exist_are_not_found(ours: Pubsub) -> None:
    with pytest.raises(exceptions.NotFound):
        ours.publisher.list_topic_subscriptions(topic=ours.topic)


@pytest.mark.parametrize("topic_id", ["ab", "1abc", "goog-data", "a b", "a" * 256])
def test_a_name_that_is_not_allowed_is_refused(pubsub: Pubsub, topic_id: str) -> None:
    with pytest.raises(exceptions.InvalidArgument):
        pubsub.publisher.create_topic(name=f"projects/{pubsub.project}/topics/{topic_id}")


def test_subscriptions_of_a_deleted_topic_say_so(pubsub: Pubsub) -> None:
    pubsub.create()
    pubsub.publish(b"before")
    pubsub.publisher.delete_topic(topic=pubsub.topic)
    assert pubsub.subscriber.get_subscription(subscription=pubsub.subscription).topic == "_deleted-topic_"
    assert [one.message.data for one in pubsub.pull_all(1)] == [b"before"]


# Publishing and pulling


def test_a_message_arrives_with_its_id_time_data_and_attributes(pubsub: Pubsub) -> None:
    pubsub.create()
    received: queue.Queue[Any] = queue.Queue()
    pubsub.subscribe(lambda message: (message.ack(), received.put(message)))
    before = time.time()
    message_id = pubsub.publisher.publish(pubsub.topic, b"\x00bar", symbol="BTC-USD", seq="7").result(TIMEOUT_S)
    message = received.get(timeout=TIMEOUT_S)
    assert (message.message_id, message.data) == (message_id, b"\x00bar")
    assert dict(message.attributes) == {"symbol": "BTC-USD", "seq": "7"}
    assert before - 5 < message.publish_time.timestamp() < time.time() + 5


def test_message_ids_differ(pubsub: Pubsub) -> None:
    pubsub.create()
    ids = pubsub.publish(b"1", b"2") + pubsub.publish(b"3")
    assert len(set(ids)) == 3


def test_messages_published_while_nobody_was_connected_are_kept(pubsub: Pubsub) -> None:
    pubsub.create()
    pubsub.publish(b"1", b"2")
    received: queue.Queue[bytes] = queue.Queue()
    pubsub.subscribe(lambda message: (message.ack(), received.put(message.data)))
    assert sorted(received.get(timeout=TIMEOUT_S) for _ in range(2)) == [b"1", b"2"]


def test_a_subscription_gets_what_is_published_after_its_creation(pubsub: Pubsub) -> None:
    pubsub.publisher.create_topic(name=pubsub.topic)
    pubsub.publish(b"before")
    pubsub.subscriber.create_subscription(name=pubsub.subscription, topic=pubsub.topic)
    pubsub.publish(b"after")
    assert [one.message.data for one in pubsub.pull_all(1)] == [b"after"]
    assert pubsub.pull(timeout_s=1.5) == []


def test_every_subscription_gets_every_message(pubsub: Pubsub) -> None:
    pubsub.create()
    pubsub.publish(b"first")
    other = f"{pubsub.subscription}-other"
    pubsub.subscriber.create_subscription(name=other, topic=pubsub.topic)
    pubsub.publish(b"second")
    assert [one.message.data for one in pubsub.pull_all(2)] == [b"first", b"second"]
    pubsub.subscription = other
    assert [one.message.data for one in pubsub.pull_all(1)] == [b"second"]


def test_many_messages_all_arrive_once_when_acknowledged(pubsub: Pubsub) -> None:
    pubsub.create()
    received: list[bytes] = []
    pubsub.subscribe(lambda message: (received.append(message.data), message.ack()), max_messages=100)
    payloads = [str(number).encode() for number in range(3_000)]
    futures = [pubsub.publisher.publish(pubsub.topic, data, seq="1") for data in payloads]
    assert len({future.result(TIMEOUT_S) for future in futures}) == len(payloads)
    wait_until(lambda: len(received) >= len(payloads), 30)
    assert sorted(received) == sorted(payloads)


def test_an_empty_message_is_refused(pubsub: Pubsub) -> None:
    pubsub.create()
    with pytest.raises(exceptions.InvalidArgument):
        pubsub.publish(b"")
    with pytest.raises(exceptions.InvalidArgument):
        pubsub.publish(b"good", b"")
    assert pubsub.publish(b"", only="attributes")


def test_a_request_of_more_than_ten_megabytes_is_refused(ours: Pubsub) -> None:
    ours.create()
    with pytest.raises(exceptions.InvalidArgument):
        ours.publish(b"x" * 11_000_000)
    assert ours.publish(b"x" * 9_000_000)


def test_large_messages_arrive_although_the_client_takes_four_megabytes_at_once(ours: Pubsub) -> None:
    ours.create()
    sizes = [500_000, 3_900_000, 600_000]
    for size in sizes:
        ours.publish(b"x" * size)
    received: list[int] = []
    ours.subscribe(lambda message: (received.append(len(message.data)), message.ack()))
    wait_until(lambda: len(received) >= len(sizes))
    assert sorted(received) == sorted(sizes)


def test_a_pull_waits_for_a_message(pubsub: Pubsub) -> None:
    pubsub.create()
    received: list[Any] = []
    thread = threading.Thread(target=lambda: received.extend(pubsub.pull()))
    thread.start()
    pubsub.publish(b"late")
    thread.join(TIMEOUT_S)
    assert [one.message.data for one in received] == [b"late"]


def test_a_pull_asks_for_at_least_one_message(pubsub: Pubsub) -> None:
    pubsub.create()
    with pytest.raises(exceptions.InvalidArgument):
        pubsub.subscriber.pull(subscription=pubsub.subscription, max_messages=0, retry=None)


# Leases


def test_a_message_given_back_comes_again_and_an_acknowledged_one_does_not(pubsub: Pubsub) -> None:
    pubsub.create()
    pubsub.publish(b"keep", b"drop")
    first = {one.message.data: one for one in pubsub.pull_all(2)}
    pubsub.acknowledge(first[b"drop"].ack_id)
    pubsub.give_back(first[b"keep"].ack_id)
    (again,) = pubsub.pull_all(1)
    assert (again.message.data, again.message.message_id) == (b"keep", first[b"keep"].message.message_id)
    assert again.ack_id != first[b"keep"].ack_id
    pubsub.acknowledge(again.ack_id)
    assert pubsub.pull(timeout_s=1.5) == []


def test_a_nacked_message_comes_again_to_the_callback(pubsub: Pubsub) -> None:
    pubsub.create()
    seen: list[str] = []

    def refuse_once(message: Any) -> None:
        seen.append(message.message_id)
        message.nack() if len(seen) == 1 else message.ack()

    pubsub.subscribe(refuse_once)
    message_id = pubsub.publish(b"x")[0]
    wait_until(lambda: len(seen) >= 2)
    assert seen == [message_id, message_id]


def test_a_message_comes_again_after_its_deadline(pubsub: Pubsub) -> None:
    pubsub.create()
    pubsub.publish(b"x")
    (first,) = pubsub.pull_all(1)
    started = time.monotonic()
    pubsub.give_back(first.ack_id, after_s=1)
    (again,) = pubsub.pull_all(1)
    assert time.monotonic() - started > 0.9
    assert again.message.message_id == first.message.message_id


def test_a_lease_that_is_extended_holds(ours: Pubsub) -> None:
    ours.create()
    ours.publish(b"extended", b"left alone")
    first = {one.message.data: one.ack_id for one in ours.pull_all(2)}
    ours.give_back(*first.values(), after_s=1)
    ours.give_back(first[b"extended"], after_s=600)
    assert [one.message.data for one in ours.pull_all(1)] == [b"left alone"]
    assert ours.pull(timeout_s=1.5) == []


def test_acknowledging_twice_or_late_is_not_an_error(pubsub: Pubsub) -> None:
    pubsub.create()
    pubsub.publish(b"x")
    (one,) = pubsub.pull_all(1)
    pubsub.acknowledge(one.ack_id)
    pubsub.acknowledge(one.ack_id)
    pubsub.give_back(one.ack_id)
    assert pubsub.pull(timeout_s=1.5) == []


def test_an_ack_id_that_nobody_gave_out_is_refused(ours: Pubsub) -> None:
    ours.create()
    with pytest.raises(exceptions.InvalidArgument):
        ours.acknowledge("rubbish")
    with pytest.raises(exceptions.InvalidArgument):
        ours.give_back("rubbish")


@pytest.mark.parametrize("deadline_s", [-1, 601])
def test_a_deadline_out_of_range_is_refused(ours: Pubsub, deadline_s: int) -> None:
    ours.create()
    ours.publish(b"x")
    (one,) = ours.pull_all(1)
    with pytest.raises(exceptions.InvalidArgument):
        ours.give_back(one.ack_id, after_s=deadline_s)


# Streaming pull


def test_an_acknowledgement_in_the_stream_makes_room_for_the_next_message(ours: Pubsub) -> None:
    ours.create()
    ours.publish(*(b"%d" % number for number in range(5)))
    with ours.open_stream(max_outstanding_messages=2) as stream:
        for count in range(2, 5):
            wait_until(lambda count=count: len(stream.received) >= count)
            assert len(stream.received) == count
            stream.send(ack_ids=[stream.received[count - 2].ack_id])
        wait_until(lambda: len(stream.received) >= 5)
        assert sorted(stream.data) == [b"%d" % number for number in range(5)]


def test_the_server_stops_at_the_message_limit_of_the_stream(ours: Pubsub) -> None:
    ours.create()
    ours.publish(*(b"%d" % number for number in range(5)))
    with ours.open_stream(max_outstanding_messages=2) as stream:
        wait_until(lambda: len(stream.received) >= 2)
        assert len(ours.pull_all(3)) == 3  # the others are there, for somebody else
        assert len(stream.received) == 2


def test_the_server_stops_at_the_byte_limit_of_the_stream(ours: Pubsub) -> None:
    ours.create()
    ours.publish(*[b"x" * 1_000] * 5)
    with ours.open_stream(max_outstanding_bytes=1_500) as stream:
        wait_until(lambda: len(stream.received) >= 2)
        assert len(ours.pull_all(3)) == 3
        assert len(stream.received) == 2


def test_deadlines_are_changed_in_the_stream(pubsub: Pubsub) -> None:
    pubsub.create()
    with pubsub.open_stream() as stream:
        pubsub.publish(b"x")
        wait_until(lambda: len(stream.received) >= 1)
        stream.send(modify_deadline_ack_ids=[stream.received[0].ack_id], modify_deadline_seconds=[0])
        wait_until(lambda: len(stream.received) >= 2)
        stream.send(ack_ids=[stream.received[1].ack_id])
        pubsub.publish(b"y")
        wait_until(lambda: len(stream.received) >= 3)
        assert stream.data == [b"x", b"x", b"y"]


def test_streams_of_one_subscription_share_its_messages(pubsub: Pubsub) -> None:
    pubsub.create()
    with pubsub.open_stream() as one, pubsub.open_stream() as other:
        payloads = [b"%d" % number for number in range(200)]
        for payload in payloads:
            pubsub.publish(payload)
        wait_until(lambda: len(one.received) + len(other.received) >= len(payloads))
        assert sorted(one.data + other.data) == sorted(payloads)
        assert one.data
        assert other.data


def test_what_a_closed_stream_held_stays_leased_until_its_deadline(ours: Pubsub) -> None:
    ours.create()
    ours.publish(b"x")
    with ours.open_stream() as stream:
        wait_until(lambda: len(stream.received) >= 1)
        ack_id = stream.received[0].ack_id
    assert ours.pull(timeout_s=1.5) == []
    ours.give_back(ack_id)
    assert [one.message.data for one in ours.pull_all(1)] == [b"x"]


def test_deleting_a_subscription_ends_its_streams(pubsub: Pubsub) -> None:
    pubsub.create()
    arrived = threading.Event()
    pull = pubsub.subscribe(lambda message: (message.ack(), arrived.set()))
    pubsub.publish(b"x")
    assert arrived.wait(TIMEOUT_S)
    pubsub.subscriber.delete_subscription(subscription=pubsub.subscription)
    with pytest.raises(exceptions.NotFound):
        pull.result(TIMEOUT_S)


def test_a_client_that_ends_its_stream_is_answered_with_its_end(ours: Pubsub) -> None:
    ours.create()
    with ours.open_stream() as stream:
        ours.publish(b"x")
        wait_until(lambda: stream.received)
        stream.requests.put(None)
        assert stream.ended.wait(TIMEOUT_S)
        assert stream.error is None


@pytest.mark.parametrize(
    ("first", "later", "reason"),
    [
        ({"subscription": ""}, {}, "must name the subscription"),
        ({"stream_ack_deadline_seconds": 9}, {}, "10 to 600"),
        ({}, {"ack_ids": ["rubbish"]}, "malformed"),
        ({}, {"modify_deadline_ack_ids": ["1-1"]}, "as many of one as of the other"),
        ({}, {"modify_deadline_ack_ids": ["1-1"], "modify_deadline_seconds": [-1]}, "0 to 600"),
        ({}, {"subscription": "projects/p/subscriptions/other"}, "first request"),
        ({}, {"client_id": "me"}, "first request"),
        ({}, {"max_outstanding_messages": 5}, "first request"),
        ({}, {"protocol_version": 1}, "first request"),
        ({}, {"stream_ack_deadline_seconds": 601}, "10 to 600"),
    ],
)
def test_a_stream_with_a_wrong_request_is_ended(
    ours: Pubsub, first: dict[str, Any], later: dict[str, Any], reason: str
) -> None:
    ours.create()
    with ours.open_stream(**first) as stream:
        if later:
            stream.send(**later)
        assert stream.ended.wait(TIMEOUT_S)
        assert isinstance(stream.error, exceptions.InvalidArgument)
        assert reason in stream.error.message


# Filters: the emulator ignores them


def test_messages_that_do_not_match_the_filter_are_dropped_as_acknowledged(ours: Pubsub) -> None:
    ours.create(filter='attributes.symbol = "BTC-USD" OR hasPrefix(attributes.symbol, "SP")')
    for symbol in ("SPY", "IBM", "BTC-USD", "AIG"):
        ours.publish(symbol.encode(), symbol=symbol)
    ours.publish(b"none")
    received = ours.pull_all(2)
    assert [one.message.data for one in received] == [b"SPY", b"BTC-USD"]
    ours.acknowledge(*(one.ack_id for one in received))
    assert ours.pull(timeout_s=1.5) == []


def test_a_filter_outside_the_grammar_is_refused_with_the_place(ours: Pubsub) -> None:
    with pytest.raises(exceptions.InvalidArgument, match="at character 20"):
        ours.create(filter="attributes.symbol == 1")
    with pytest.raises(exceptions.NotFound):
        ours.subscriber.get_subscription(subscription=ours.subscription)


# Ordering, batches, dead letters


def test_an_ordered_subscription_gives_what_an_ordering_publisher_sent_in_order(pubsub: Pubsub) -> None:
    pubsub.create(enable_message_ordering=True)
    received: list[Any] = []
    pubsub.subscribe(lambda message: (received.append(message), message.ack()))
    publisher = pubsub_v1.PublisherClient(
        publisher_options=pubsub_v1.types.PublisherOptions(enable_message_ordering=True)
    )
    try:
        for number in range(300):
            publisher.publish(pubsub.topic, b"%d" % number, ordering_key=f"key-{number % 3}")
        wait_until(lambda: len(received) >= 300)
    finally:
        publisher.stop()
        publisher.transport.close()
    for key in range(3):
        of_key = [int(message.data) for message in received if message.ordering_key == f"key-{key}"]
        assert of_key == list(range(key, 300, 3))


def test_a_nacked_message_of_a_key_comes_again_with_all_that_follow(ours: Pubsub) -> None:
    ours.create(enable_message_ordering=True)
    seen: list[bytes] = []

    def refuse_once(message: Any) -> None:
        seen.append(message.data)
        message.nack() if seen.count(b"1") == 1 else message.ack()

    ours.publish(b"1", b"2", b"3", key="A")
    ours.subscribe(refuse_once)
    wait_until(lambda: seen[-3:] == [b"1", b"2", b"3"] and seen.count(b"1") == 2)
    assert seen[0] == b"1"
    assert set(seen) == {b"1", b"2", b"3"}


def test_a_stream_tells_that_its_subscription_is_ordered(ours: Pubsub) -> None:
    ours.create(enable_message_ordering=True)
    ours.publish(b"1", key="A")
    with ours.open_stream() as stream:
        wait_until(lambda: stream.received)
        assert stream.properties.message_ordering_enabled
        assert not stream.properties.exactly_once_delivery_enabled


def test_a_batch_of_bars_arrives_as_it_was_published(pubsub: Pubsub) -> None:
    pubsub.create()
    batch = json.dumps([{"symbol": f"S{number}", "close": number / 7} for number in range(2_000)]).encode()
    pubsub.publish(batch, encoding="batch")
    (one,) = pubsub.pull_all(1)
    assert (one.message.data, dict(one.message.attributes)) == (batch, {"encoding": "batch"})


def test_a_message_that_keeps_failing_in_a_stream_is_forwarded(ours: Pubsub) -> None:
    dead = f"{ours.topic}-dead"
    ours.publisher.create_topic(name=dead)
    ours.create(dead_letter_policy={"dead_letter_topic": dead, "max_delivery_attempts": 5}, retain_acked_messages=True)
    graveyard = f"{ours.subscription}-graveyard"
    ours.subscriber.create_subscription(name=graveyard, topic=dead)
    attempts: list[int] = []
    ours.subscribe(lambda message: (attempts.append(message.delivery_attempt), message.nack()))
    message_id = ours.publish(b"poison")[0]
    ours.subscription = graveyard
    (letter,) = ours.pull_all(1)
    assert (letter.message.data, attempts) == (b"poison", [1, 2, 3, 4, 5])
    assert letter.message.message_id != message_id


def test_requests_that_name_nothing_or_the_unknown_are_refused(pubsub: Pubsub) -> None:
    pubsub.create()
    for call in (pubsub.acknowledge, pubsub.give_back):
        with pytest.raises(exceptions.InvalidArgument):
            call()
    with pytest.raises(exceptions.InvalidArgument):
        pubsub.update()
    with pytest.raises(exceptions.InvalidArgument):
        pubsub.update("colour")
    with pytest.raises(exceptions.InvalidArgument):
        pubsub.subscriber.seek(request={"subscription": pubsub.subscription})
    missing = f"projects/{pubsub.project}/snapshots/missing"
    with pytest.raises(exceptions.NotFound):
        pubsub.subscriber.seek(request={"subscription": pubsub.subscription, "snapshot": missing})
    with pytest.raises(exceptions.NotFound):
        pubsub.subscriber.delete_snapshot(snapshot=missing)
    assert pubsub.update("ack_deadline_seconds", ack_deadline_seconds=45).ack_deadline_seconds == 45
