"""What a Pub/Sub server can do, tried with Google's own clients, for each server: the rows of the capability table.

Each capability is tried on our server, where the outcome is asserted, and on Google's emulator where it is found, where
it is recorded; what the contract needs of both is asserted there too. The table is printed at the end of the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import pytest
from google.api_core import exceptions
from google.protobuf.duration_pb2 import Duration
from google.pubsub_v1 import Schema, SchemaServiceClient
from google.pubsub_v1.services.schema_service.transports import SchemaServiceGrpcTransport

if TYPE_CHECKING:
    from conftest import Pubsub

YES, NO = "yes", "no"
# How long a probe waits before it concludes "no": what must succeed may be slow.
PATIENCE_S = 30.0
PATIENCE_WITH_THE_UNKNOWN_S = 5.0

Probe = Callable[["Pubsub"], bool]


class Capability(NamedTuple):
    """`ours` is asserted for our server; `emulator` for Google's, unless it is None."""

    text: str
    probe: Probe
    ours: str
    emulator: str | None


CAPABILITIES: list[Capability] = []


def capability(text: str, ours: str = YES, emulator: str | None = None) -> Callable[[Probe], Probe]:
    def register(probe: Probe) -> Probe:
        CAPABILITIES.append(Capability(text, probe, ours, emulator))
        return probe

    return register


def receive(pubsub: Pubsub, count: int) -> list[Any]:
    """Pull until `count` messages have come or the patience is over."""
    received: list[Any] = []
    deadline = time.monotonic() + pubsub.patience_s
    while len(received) < count and time.monotonic() < deadline:
        received += pubsub.pull(count - len(received), timeout_s=max(1.5, deadline - time.monotonic()))
    return received


def payloads(received: list[Any]) -> list[bytes]:
    return [one.message.data for one in received]


def settle(pubsub: Pubsub, received: list[Any]) -> None:
    pubsub.acknowledge(*(one.ack_id for one in received))


def name_of(pubsub: Pubsub, collection: str, identifier: str) -> str:
    return f"projects/{pubsub.project}/{collection}/{identifier}"


# Messages


@capability("publish, pull, acknowledge", emulator=YES)
def pull_once(pubsub: Pubsub) -> bool:
    pubsub.create()
    pubsub.publish(b"1", b"2")
    received = receive(pubsub, 2)
    settle(pubsub, received)
    return payloads(received) == [b"1", b"2"]


@capability("streaming pull", emulator=YES)
def pull_in_a_stream(pubsub: Pubsub) -> bool:
    pubsub.create()
    arrived: list[bytes] = []
    pubsub.subscribe(lambda message: (arrived.append(message.data), message.ack()))
    pubsub.publish(b"x")
    return wait_for(pubsub, lambda: arrived == [b"x"])


def wait_for(pubsub: Pubsub, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + pubsub.patience_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@capability("flow control of a stream by the server")
def respect_flow_control(pubsub: Pubsub) -> bool:
    pubsub.create()
    pubsub.publish(b"1", b"2", b"3", b"4")
    with pubsub.open_stream(max_outstanding_messages=2) as stream:
        if not wait_for(pubsub, lambda: len(stream.received) >= 2):
            return False
        return len(receive(pubsub, 2)) == 2  # the others are there, for somebody else


@capability("nack brings a message again", emulator=YES)
def bring_again(pubsub: Pubsub) -> bool:
    pubsub.create()
    pubsub.publish(b"x")
    pubsub.give_back(receive(pubsub, 1)[0].ack_id)
    return payloads(receive(pubsub, 1)) == [b"x"]


@capability("batch form: an array of bars in one message", emulator=YES)
def carry_a_batch(pubsub: Pubsub) -> bool:
    pubsub.create()
    batch = b"[" + b",".join(b'{"symbol":"S%d","close":1.5}' % number for number in range(5_000)) + b"]"
    pubsub.publish(batch, encoding="batch")
    (one,) = receive(pubsub, 1)
    return (one.message.data, dict(one.message.attributes)) == (batch, {"encoding": "batch"})


@capability("more than 1000 messages in one request", ours="refused: INVALID_ARGUMENT")
def publish_too_many(pubsub: Pubsub) -> bool:
    pubsub.create()
    return len(pubsub.publish(*[b"x"] * 1_001)) == 1_001


@capability("an attribute key of more than 256 bytes", ours="refused: INVALID_ARGUMENT")
def publish_a_long_key(pubsub: Pubsub) -> bool:
    pubsub.create()
    return bool(pubsub.publish(b"x", **{"k" * 257: "v"}))


# Filters


@capability("filters")
def filter_messages(pubsub: Pubsub) -> bool:
    pubsub.create(filter='attributes:symbol AND NOT attributes.symbol = "IBM"')
    for symbol in ("IBM", "SPY"):
        pubsub.publish(symbol.encode(), symbol=symbol)
    return payloads(receive(pubsub, 1)) == [b"SPY"]


@capability("a filter outside the grammar", ours="refused: INVALID_ARGUMENT")
def take_a_wrong_filter(pubsub: Pubsub) -> bool:
    pubsub.create(filter="attributes.symbol == 1")
    return True


# Ordering


@capability("ordering keys: order within a key", emulator=YES)
def keep_order(pubsub: Pubsub) -> bool:
    pubsub.create(enable_message_ordering=True)
    for number in range(20):
        pubsub.publish(b"%d" % number, key="AB"[number % 2])
    arrived: list[Any] = []
    pubsub.subscribe(lambda message: (arrived.append(message), message.ack()))
    wait_for(pubsub, lambda: len(arrived) >= 20)
    of_key = [[int(message.data) for message in arrived if message.ordering_key == key] for key in "AB"]
    return of_key == [list(range(0, 20, 2)), list(range(1, 20, 2))]


@capability("ordering keys: no more of a key while some of it is pulled")
def hold_a_key(pubsub: Pubsub) -> bool:
    pubsub.create(enable_message_ordering=True)
    pubsub.publish(b"1", b"2", key="A")
    first = receive(pubsub, 1)
    pubsub.publish(b"3", key="B")
    if payloads(first) != [b"1"] or payloads(receive(pubsub, 1)) != [b"3"]:
        return False
    settle(pubsub, first)
    return payloads(receive(pubsub, 1)) == [b"2"]


@capability("ordering keys: redelivery brings what follows, acknowledged or not")
def redeliver_in_order(pubsub: Pubsub) -> bool:
    pubsub.create(enable_message_ordering=True)
    pubsub.publish(b"1", b"2", b"3", key="A")
    received = receive(pubsub, 3)
    pubsub.acknowledge(received[1].ack_id)
    pubsub.give_back(received[0].ack_id)
    return payloads(receive(pubsub, 3)) == [b"1", b"2", b"3"]


# Failures


@capability("dead letters: forwarded after the last attempt, with Google's attributes")
def forward_dead_letters(pubsub: Pubsub) -> bool:
    dead = name_of(pubsub, "topics", "dead")
    pubsub.publisher.create_topic(name=dead)
    pubsub.create(dead_letter_policy={"dead_letter_topic": dead, "max_delivery_attempts": 5})
    graveyard = name_of(pubsub, "subscriptions", "graveyard")
    pubsub.subscriber.create_subscription(name=graveyard, topic=dead)
    pubsub.publish(b"poison", symbol="SPY")
    for _ in range(5):
        for one in receive(pubsub, 1):
            pubsub.give_back(one.ack_id)
    pubsub.subscription = graveyard
    received = receive(pubsub, 1)
    if payloads(received) != [b"poison"]:
        return False
    attributes = dict(received[0].message.attributes)
    published = attributes.pop("CloudPubSubDeadLetterSourceTopicPublishTime", "")
    return (
        attributes
        == {
            "symbol": "SPY",
            "CloudPubSubDeadLetterSourceDeliveryCount": "5",
            "CloudPubSubDeadLetterSourceSubscription": "agent-one",
            "CloudPubSubDeadLetterSourceSubscriptionProject": pubsub.project,
        }
        and abs(datetime.fromisoformat(published) - datetime.now(UTC)) < timedelta(minutes=5)
    )  # fmt: skip


@capability("dead letters: delivery_attempt counts up")
def count_attempts(pubsub: Pubsub) -> bool:
    dead = name_of(pubsub, "topics", "dead")
    pubsub.publisher.create_topic(name=dead)
    pubsub.create(dead_letter_policy={"dead_letter_topic": dead})
    pubsub.publish(b"x")
    attempts = []
    for _ in range(3):
        for one in receive(pubsub, 1):
            attempts.append(one.delivery_attempt)
            pubsub.give_back(one.ack_id)
    return attempts == [1, 2, 3]


@capability("dead letters: fewer than 5 attempts", ours="refused: OUT_OF_RANGE")
def take_too_few_attempts(pubsub: Pubsub) -> bool:
    pubsub.publisher.create_topic(name=name_of(pubsub, "topics", "dead"))
    pubsub.create(
        dead_letter_policy={"dead_letter_topic": name_of(pubsub, "topics", "dead"), "max_delivery_attempts": 4}
    )
    return True


@capability("dead letters: to a topic that does not exist", ours="refused: NOT_FOUND")
def take_a_missing_dead_letter_topic(pubsub: Pubsub) -> bool:
    pubsub.create(dead_letter_policy={"dead_letter_topic": name_of(pubsub, "topics", "dead")})
    return True


@capability("retry policy: a nacked message rests")
def rest_after_a_nack(pubsub: Pubsub) -> bool:
    pubsub.create(retry_policy={"minimum_backoff": Duration(seconds=1), "maximum_backoff": Duration(seconds=2)})
    pubsub.publish(b"x")
    received = receive(pubsub, 1)
    started = time.monotonic()
    pubsub.give_back(received[0].ack_id)
    again = payloads(receive(pubsub, 1))
    return again == [b"x"] and time.monotonic() - started > 0.9


# Updates


@capability("update: ack deadline, retention, retry and dead-letter policy", emulator=YES)
def update_policies(pubsub: Pubsub) -> bool:
    pubsub.create()
    dead = name_of(pubsub, "topics", "dead")
    pubsub.publisher.create_topic(name=dead)
    settings = {
        "ack_deadline_seconds": 60,
        "message_retention_duration": Duration(seconds=600),
        "retry_policy": {"minimum_backoff": Duration(seconds=1), "maximum_backoff": Duration(seconds=2)},
        "dead_letter_policy": {"dead_letter_topic": dead, "max_delivery_attempts": 6},
    }
    pubsub.update(*settings, **settings)
    found = pubsub.subscriber.get_subscription(subscription=pubsub.subscription)
    return (
        found.ack_deadline_seconds == 60
        and found.message_retention_duration.total_seconds() == 600
        and found.retry_policy.maximum_backoff.total_seconds() == 2
        and found.dead_letter_policy.max_delivery_attempts == 6
    )


@capability("update: labels")
def update_labels(pubsub: Pubsub) -> bool:
    pubsub.create()
    return dict(pubsub.update("labels", labels={"owner": "f00d"}).labels) == {"owner": "f00d"}


@capability("update: expiration policy")
def update_expiration(pubsub: Pubsub) -> bool:
    pubsub.create()
    found = pubsub.update("expiration_policy", expiration_policy={"ttl": Duration(seconds=86_400)})
    return found.expiration_policy.ttl.total_seconds() == 86_400


@capability("update: filter of a subscription", ours="refused: INVALID_ARGUMENT")
def update_filter(pubsub: Pubsub) -> bool:
    pubsub.create(filter="attributes:symbol")
    return pubsub.update("filter", filter="attributes:other").filter == "attributes:other"


@capability("update: topic of a subscription", ours="refused: INVALID_ARGUMENT", emulator="refused: INVALID_ARGUMENT")
def update_topic_of_a_subscription(pubsub: Pubsub) -> bool:
    pubsub.create()
    other = name_of(pubsub, "topics", "other")
    pubsub.publisher.create_topic(name=other)
    return pubsub.update("topic", topic=other).topic == other


@capability("update: ordering of a subscription", ours="refused: INVALID_ARGUMENT")
def update_ordering(pubsub: Pubsub) -> bool:
    pubsub.create()
    return pubsub.update("enable_message_ordering", enable_message_ordering=True).enable_message_ordering


@capability("update: labels of a topic")
def update_labels_of_a_topic(pubsub: Pubsub) -> bool:
    pubsub.create()
    request = {"topic": {"name": pubsub.topic, "labels": {"a": "b"}}, "update_mask": {"paths": ["labels"]}}
    return dict(pubsub.publisher.update_topic(request=request).labels) == {"a": "b"}


# Retention, seek, snapshots


def now() -> datetime:
    return datetime.now(UTC)


@capability("seek to a time: replays acknowledged messages that are retained", emulator=YES)
def replay(pubsub: Pubsub) -> bool:
    pubsub.create(retain_acked_messages=True)
    pubsub.publish(b"1", b"2")
    settle(pubsub, receive(pubsub, 2))
    pubsub.subscriber.seek(request={"subscription": pubsub.subscription, "time": now() - timedelta(minutes=5)})
    return sorted(payloads(receive(pubsub, 2))) == [b"1", b"2"]


@capability("seek to a time: purges what was published before", emulator=YES)
def purge(pubsub: Pubsub) -> bool:
    pubsub.create()
    pubsub.publish(b"old")
    pubsub.subscriber.seek(request={"subscription": pubsub.subscription, "time": now() + timedelta(minutes=5)})
    pubsub.publish(b"new")
    return payloads(receive(pubsub, 1)) == [b"new"]


@capability("topic retention: replays from before the subscription")
def replay_from_the_topic(pubsub: Pubsub) -> bool:
    pubsub.publisher.create_topic(request={"name": pubsub.topic, "message_retention_duration": Duration(seconds=600)})
    pubsub.publish(b"before")
    pubsub.subscriber.create_subscription(name=pubsub.subscription, topic=pubsub.topic)
    pubsub.subscriber.seek(request={"subscription": pubsub.subscription, "time": now() - timedelta(minutes=5)})
    return payloads(receive(pubsub, 1)) == [b"before"]


@capability("snapshots: create, get, list, delete, seek", emulator=YES)
def use_a_snapshot(pubsub: Pubsub) -> bool:
    pubsub.create()
    pubsub.publish(b"1")
    name = name_of(pubsub, "snapshots", "evening")
    made = pubsub.subscriber.create_snapshot(name=name, subscription=pubsub.subscription)
    pubsub.publish(b"2")
    settle(pubsub, receive(pubsub, 2))
    pubsub.subscriber.seek(request={"subscription": pubsub.subscription, "snapshot": name})
    replayed = sorted(payloads(receive(pubsub, 2)))
    listed = [one.name for one in pubsub.subscriber.list_snapshots(project=f"projects/{pubsub.project}")]
    of_topic = list(pubsub.publisher.list_topic_snapshots(topic=pubsub.topic))
    found = pubsub.subscriber.get_snapshot(snapshot=name)
    pubsub.subscriber.delete_snapshot(snapshot=name)
    left = list(pubsub.publisher.list_topic_snapshots(topic=pubsub.topic))
    assert timedelta(days=6) < made.expire_time - now() <= timedelta(days=7, minutes=5)
    return (replayed, listed, of_topic, found.topic, left) == ([b"1", b"2"], [name], [name], pubsub.topic, [])


@capability("snapshots: update labels and end")
def update_a_snapshot(pubsub: Pubsub) -> bool:
    pubsub.create()
    name = name_of(pubsub, "snapshots", "evening")
    pubsub.subscriber.create_snapshot(name=name, subscription=pubsub.subscription)
    end = now() + timedelta(days=1)
    changed = pubsub.subscriber.update_snapshot(
        request={
            "snapshot": {"name": name, "labels": {"a": "b"}, "expire_time": end},
            "update_mask": {"paths": ["labels", "expire_time"]},
        },
        retry=None,
    )
    return dict(changed.labels) == {"a": "b"} and abs(changed.expire_time - end) < timedelta(seconds=1)


@capability("snapshots: seek by a subscription of another topic", ours="refused: FAILED_PRECONDITION")
def seek_across_topics(pubsub: Pubsub) -> bool:
    pubsub.create()
    name = name_of(pubsub, "snapshots", "evening")
    pubsub.subscriber.create_snapshot(name=name, subscription=pubsub.subscription)
    other = name_of(pubsub, "topics", "other")
    pubsub.publisher.create_topic(name=other)
    stranger = name_of(pubsub, "subscriptions", "stranger")
    pubsub.subscriber.create_subscription(name=stranger, topic=other)
    pubsub.subscriber.seek(request={"subscription": stranger, "snapshot": name})
    return True


@capability("detaching a subscription")
def detach(pubsub: Pubsub) -> bool:
    pubsub.create()
    pubsub.publish(b"x")
    pubsub.publisher.detach_subscription(request={"subscription": pubsub.subscription}, retry=None)
    found = pubsub.subscriber.get_subscription(subscription=pubsub.subscription)
    with pytest.raises(exceptions.FailedPrecondition):
        pubsub.subscriber.pull(subscription=pubsub.subscription, max_messages=1, retry=None)
    return found.detached and list(pubsub.publisher.list_topic_subscriptions(topic=pubsub.topic)) == []


# What is not offered


@capability("a subscription with exactly-once delivery", ours="refused: UNIMPLEMENTED")
def create_exactly_once(pubsub: Pubsub) -> bool:
    pubsub.create(enable_exactly_once_delivery=True)
    return True


@capability("a push subscription", ours="refused: UNIMPLEMENTED")
def create_push(pubsub: Pubsub) -> bool:
    pubsub.create(push_config={"push_endpoint": "http://127.0.0.1:9/nobody"})
    return True


@capability("a subscription made push by ModifyPushConfig", ours="refused: UNIMPLEMENTED")
def modify_push(pubsub: Pubsub) -> bool:
    pubsub.create()
    pubsub.subscriber.modify_push_config(subscription=pubsub.subscription, push_config={})  # pull, as it was
    config = {"push_endpoint": "http://127.0.0.1:9/nobody"}
    pubsub.subscriber.modify_push_config(subscription=pubsub.subscription, push_config=config, retry=None)
    return True


@capability("a BigQuery subscription", ours="refused: UNIMPLEMENTED")
def create_bigquery(pubsub: Pubsub) -> bool:
    pubsub.create(bigquery_config={"table": "p.d.t"})
    return True


@capability("a Cloud Storage subscription", ours="refused: UNIMPLEMENTED")
def create_cloud_storage(pubsub: Pubsub) -> bool:
    pubsub.create(cloud_storage_config={"bucket": "bars"})
    return True


@capability("a schema", ours="refused: UNIMPLEMENTED")
def create_schema(pubsub: Pubsub) -> bool:
    definition = '{"type": "record", "name": "Bar", "fields": [{"name": "open", "type": "double"}]}'
    schema = Schema(type_=Schema.Type.AVRO, definition=definition)
    with grpc.insecure_channel(pubsub.target) as channel:
        client = SchemaServiceClient(transport=SchemaServiceGrpcTransport(channel=channel))
        project = f"projects/{pubsub.project}"
        client.create_schema(parent=project, schema=schema, schema_id="bar", timeout=PATIENCE_S, retry=None)
    return True


def try_probe(probe: Probe, pubsub: Pubsub) -> str:
    try:
        return YES if probe(pubsub) else NO
    except exceptions.GoogleAPICallError as error:
        return f"refused: {getattr(error.grpc_status_code, 'name', error.code)}"
    except (AssertionError, IndexError, ValueError, pytest.fail.Exception):
        if pubsub.server_name == "embedded":
            raise
        return NO


def test_the_reference_tells_what_our_server_does() -> None:
    reference = Path(__file__).parents[2] / "docs" / "reference" / "pubsub.md"
    rows = [line.split(" | ")[:2] for line in reference.read_text(encoding="utf-8").splitlines()]
    assert [f"| {one.text}" for one in CAPABILITIES if [f"| {one.text}", one.ours] not in rows] == []


@pytest.mark.parametrize("number", range(len(CAPABILITIES)), ids=[one.probe.__name__ for one in CAPABILITIES])
def test_a_server_does_what_it_is_said_to_do(
    pubsub: Pubsub, number: int, record_property: Callable[[str, object], None]
) -> None:
    one = CAPABILITIES[number]
    expected = {"embedded": one.ours, "emulator": one.emulator}[pubsub.server_name]
    pubsub.patience_s = PATIENCE_WITH_THE_UNKNOWN_S if expected is None else PATIENCE_S
    outcome = try_probe(one.probe, pubsub)
    record_property("pubsub_capability", [number, one.text, pubsub.server_name, outcome])
    if expected is not None:
        assert outcome == expected
    elif outcome.startswith("refused"):
        assert outcome.removeprefix("refused: ") not in {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
