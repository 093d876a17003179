"""Requests of google.pubsub.v1 against Google's documented limits, and the bytes that go back."""

from __future__ import annotations

import msgspec
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from google.pubsub_v1.types import pubsub as pubsub_types
from hypothesis import given
from hypothesis import strategies as st

from dry_work.embedded.pubsub_core import PubSubCore
from dry_work.embedded.pubsub_deliveries import Delivery
from dry_work.embedded.pubsub_messages import Message
from dry_work.embedded.pubsub_rules import (
    DeadLetterPolicy,
    RequestError,
    RetryPolicy,
    SubscriptionSettings,
    TopicSettings,
)
from dry_work.embedded.pubsub_subscription import Subscription
from dry_work.embedded.pubsub_wire import (
    MAX_ACK_REQUEST_BYTES,
    MAX_PUBLISH_BYTES,
    build_snapshot,
    build_subscription,
    build_topic,
    check_ack_request,
    check_push_config,
    encode_deliveries,
    parse_publish,
    parse_snapshot_request,
    parse_snapshot_update,
    parse_subscription,
    parse_subscription_update,
    parse_topic,
    parse_topic_update,
)

PublishRequest = pubsub_types.PublishRequest.pb()
PubsubMessage = pubsub_types.PubsubMessage.pb()
StreamingPullResponse = pubsub_types.StreamingPullResponse.pb()
PullResponse = pubsub_types.PullResponse.pb()
SubscriptionPb = pubsub_types.Subscription.pb()
TopicPb = pubsub_types.Topic.pb()
SnapshotPb = pubsub_types.Snapshot.pb()
UpdateTopicRequest = pubsub_types.UpdateTopicRequest.pb()
UpdateSubscriptionRequest = pubsub_types.UpdateSubscriptionRequest.pb()
UpdateSnapshotRequest = pubsub_types.UpdateSnapshotRequest.pb()
CreateSnapshotRequest = pubsub_types.CreateSnapshotRequest.pb()
AcknowledgeRequest = pubsub_types.AcknowledgeRequest.pb()

TOPIC = "projects/p/topics/bars"
DEAD = "projects/p/topics/dead"
NAME = "projects/p/subscriptions/agent"


def encode_request(*messages: dict[str, object]) -> bytes:
    return PublishRequest(topic=TOPIC, messages=[PubsubMessage(**message) for message in messages]).SerializeToString()


def test_messages_get_rising_ids_and_the_time_of_publishing() -> None:
    publication = parse_publish(encode_request({"data": b"one", "message_id": "mine"}, {"attributes": {"k": "v"}}))
    messages, attributes = publication.stamp(41, 1_700_000_000_123_456_789)
    decoded = [PubsubMessage.FromString(message.encoded) for message in messages]
    assert publication.topic_name == TOPIC
    assert [message.message_id for message in messages] == ["41", "42"]
    assert [(one.message_id, one.data, dict(one.attributes)) for one in decoded] == [
        ("41", b"one", {}),
        ("42", b"", {"k": "v"}),
    ]
    assert [dict(one) for one in attributes] == [{}, {"k": "v"}]
    assert {one.publish_time.ToNanoseconds() for one in decoded} == {1_700_000_000_123_456_789}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no messages"),
        ([{"data": b"x"}, {}], "is empty"),
        ([{"data": b"x"}] * 1_001, "1001 messages; at most 1000"),
        ([{"data": b"x" * MAX_PUBLISH_BYTES}], "at most 10000000 bytes"),
        ([{"attributes": {f"k{number}": "" for number in range(101)}}], "101 attributes; at most 100"),
        ([{"attributes": {"k" * 257: ""}}], "attribute key has 257 bytes; at most 256"),
        ([{"attributes": {"é" * 129: ""}}], "attribute key has 258 bytes; at most 256"),
        ([{"attributes": {"k": "v" * 1_025}}], "has 1025 bytes; at most 1024"),
        ([{"attributes": {"k": "é" * 513}}], "has 1026 bytes; at most 1024"),
        ([{"attributes": {"": "v"}}], "not allowed"),
        ([{"attributes": {"google": "v"}}], "starts with goog"),
        ([{"data": b"x", "ordering_key": "a"}, {"data": b"x"}], "the same ordering key"),
        ([{"data": b"x", "ordering_key": "a" * 1_025}], "1025 bytes; at most 1024"),
    ],
)
def test_a_publish_request_beyond_googles_limits_is_refused(messages: list[dict[str, object]], reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as raised:
        parse_publish(encode_request(*messages))
    assert raised.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "messages",
    [
        [{"data": b"x"}] * 1_000,
        [{"attributes": {f"{number:0256}": "v" * 1_024 for number in range(100)}}],
        [{"attributes": {"é" * 128: "é" * 512}}],
        [{"data": b"x", "ordering_key": "a" * 1_024}],
    ],
)
def test_a_publish_request_at_googles_limits_is_taken(messages: list[dict[str, object]]) -> None:
    assert len(parse_publish(encode_request(*messages))) == len(messages)


@given(
    st.lists(st.tuples(st.text(st.sampled_from("0123456789abcdef-"), min_size=1, max_size=40), st.binary()), max_size=5)
)
def test_deliveries_are_read_back_by_googles_classes(pairs: list[tuple[str, bytes]]) -> None:
    deliveries = [
        Delivery(Message("1", PubsubMessage(data=data, message_id="1").SerializeToString()), ack_id)
        for ack_id, data in pairs
    ]
    for response in (StreamingPullResponse, PullResponse):
        decoded = response.FromString(encode_deliveries(deliveries))
        assert [(one.ack_id, one.message.data, one.message.message_id) for one in decoded.received_messages] == [
            (ack_id, data, "1") for ack_id, data in pairs
        ]


def test_a_large_message_is_read_back_by_googles_class() -> None:
    data = b"x" * 3_000_000
    encoded = encode_deliveries([Delivery(Message("1", PubsubMessage(data=data).SerializeToString()), "a-1")])
    assert StreamingPullResponse.FromString(encoded).received_messages[0].message.data == data


def make_subscription_request(**fields: object):
    return SubscriptionPb(name=NAME, topic=TOPIC, **fields)


def test_a_subscription_without_settings_has_googles_defaults() -> None:
    settings = parse_subscription(make_subscription_request(push_config={}))[2]
    assert settings == SubscriptionSettings(
        labels={}, filter="", ack_deadline_s=10, retention_s=604_800.0, expiration_ttl_s=2_678_400.0
    )


def create_subscription(**fields: object) -> Subscription:
    core = PubSubCore(max_backlog_bytes=1_000, nonce=1)
    core.create_topic(TOPIC, TopicSettings(retention_s=900.0))
    core.create_topic(DEAD)
    return core.create_subscription(*parse_subscription(make_subscription_request(**fields)))


def test_settings_of_a_subscription_are_returned_as_they_were_given() -> None:
    fields = {
        "labels": {"owner": "abc"},
        "filter": 'attributes.symbol = "SPY"',
        "enable_message_ordering": True,
        "ack_deadline_seconds": 30,
        "message_retention_duration": Duration(seconds=600, nanos=500_000_000),
        "retain_acked_messages": True,
        "expiration_policy": {"ttl": Duration(seconds=86_400)},
        "dead_letter_policy": {"dead_letter_topic": DEAD, "max_delivery_attempts": 7},
        "retry_policy": {"minimum_backoff": Duration(nanos=500_000_000), "maximum_backoff": Duration(seconds=60)},
    }
    request = make_subscription_request(**fields)
    answer = build_subscription(create_subscription(**fields))
    for field in ("name", "topic", *fields):
        assert getattr(answer, field) == getattr(request, field), field
    assert answer.topic_message_retention_duration.seconds == 900
    assert answer.state == pubsub_types.Subscription.State.ACTIVE


def test_policies_without_values_have_googles_defaults() -> None:
    request = make_subscription_request(dead_letter_policy={"dead_letter_topic": DEAD}, retry_policy={})
    settings = parse_subscription(request)[2]
    assert settings.dead_letter == DeadLetterPolicy(DEAD, 5)
    assert settings.retry == RetryPolicy(10.0, 600.0)


def test_settings_of_a_topic_are_returned_as_they_were_given() -> None:
    request = TopicPb(name=TOPIC, labels={"owner": "abc"}, message_retention_duration=Duration(seconds=600))
    core = PubSubCore(max_backlog_bytes=1_000, nonce=1)
    answer = build_topic(core.create_topic(*parse_topic(request)))
    request.state = pubsub_types.Topic.State.ACTIVE
    assert answer == request


def update(subscription: Subscription, *paths: str, **fields: object) -> SubscriptionSettings:
    request = UpdateSubscriptionRequest(
        subscription=SubscriptionPb(name=NAME, **fields), update_mask=FieldMask(paths=paths)
    )
    return parse_subscription_update(request, subscription)


def test_an_update_changes_the_fields_of_its_mask_and_no_others() -> None:
    subscription = create_subscription(
        labels={"a": "b", "c": "d"}, filter="attributes:x", retry_policy={}, ack_deadline_seconds=30
    )
    before = subscription.settings
    changed = update(subscription, "labels", "retry_policy", "retain_acked_messages", labels={"a": "z"},
                     retain_acked_messages=True, ack_deadline_seconds=60)  # fmt: skip
    assert changed == msgspec.structs.replace(before, labels={"a": "z"}, retry=None, retain_acked=True)
    assert update(subscription, "expiration_policy").expiration_ttl_s == 2_678_400.0
    assert update(subscription, "expiration_policy", expiration_policy={}).expiration_ttl_s is None
    assert update(subscription, "enable_exactly_once_delivery", "push_config", push_config={}) == before


@pytest.mark.parametrize(
    ("paths", "fields", "reason"),
    [
        ([], {}, "must be set"),
        (["filter"], {"filter": "attributes:x"}, "'filter' of a Subscription cannot be changed"),
        (["topic"], {"topic": DEAD}, "'topic' of a Subscription cannot be changed"),
        (["name"], {}, "cannot be changed"),
        (["enable_message_ordering"], {"enable_message_ordering": True}, "cannot be changed"),
        (["detached"], {"detached": True}, "cannot be changed"),
        (["labels", "colour"], {}, "'colour' is not a field"),
        (["ackDeadlineSeconds"], {}, "'ackDeadlineSeconds' is not a field"),
        (["retry_policy.minimum_backoff"], {}, "is not a field"),
    ],
)
def test_an_update_of_what_cannot_change_is_refused(paths: list[str], fields: dict[str, object], reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as raised:
        update(create_subscription(), *paths, **fields)
    assert raised.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("path", "value"),
    [("push_config", {"push_endpoint": "https://example.com"}), ("enable_exactly_once_delivery", True)],
)
def test_an_update_to_what_is_not_offered_is_refused(path: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"{path} is not offered") as raised:
        update(create_subscription(), path, **{path: value})
    assert raised.value.code == "UNIMPLEMENTED"


def test_an_update_of_a_topic_changes_the_fields_of_its_mask() -> None:
    core = PubSubCore(max_backlog_bytes=1_000, nonce=1)
    topic = core.create_topic(TOPIC, TopicSettings(labels={"a": "b"}, retention_s=600.0))

    def update_topic(*paths: str, **fields: object) -> TopicSettings:
        request = UpdateTopicRequest(topic=TopicPb(name=TOPIC, **fields), update_mask=FieldMask(paths=paths))
        return parse_topic_update(request, topic)

    assert update_topic("message_retention_duration") == TopicSettings(labels={"a": "b"})
    assert update_topic("labels", labels={"c": "d"}) == TopicSettings(labels={"c": "d"}, retention_s=600.0)
    for paths, code in ((["name"], "INVALID_ARGUMENT"), ([], "INVALID_ARGUMENT"), (["kms_key_name"], "UNIMPLEMENTED")):
        with pytest.raises(RequestError) as raised:
            update_topic(*paths, kms_key_name="key")
        assert raised.value.code == code


def test_an_update_of_a_snapshot_changes_labels_and_end() -> None:
    subscription = create_subscription()
    core = PubSubCore(max_backlog_bytes=1_000, nonce=1)
    core.create_topic(TOPIC)
    core.create_subscription(NAME, TOPIC, subscription.settings)
    request = CreateSnapshotRequest(name="projects/p/snapshots/evening", subscription=NAME, labels={"a": "b"})
    snapshot = core.create_snapshot(*parse_snapshot_request(request), time_ns=1_500_000_000)
    answer = build_snapshot(snapshot)
    assert (answer.name, answer.topic, dict(answer.labels)) == (request.name, TOPIC, {"a": "b"})
    assert answer.expire_time.ToNanoseconds() == 604_800_000_000_000 + 1_500_000_000

    def update_snapshot(*paths: str) -> tuple[dict[str, str], int]:
        changed = SnapshotPb(name=request.name, expire_time=Timestamp(seconds=60, nanos=5))
        return parse_snapshot_update(
            UpdateSnapshotRequest(snapshot=changed, update_mask=FieldMask(paths=paths)), snapshot
        )

    assert update_snapshot("expire_time") == ({"a": "b"}, 60_000_000_005)
    assert update_snapshot("labels") == ({}, snapshot.expire_ns)
    with pytest.raises(RequestError, match="cannot be changed"):
        update_snapshot("topic")


def test_an_empty_push_configuration_asks_for_a_pull_subscription() -> None:
    check_push_config(pubsub_types.PushConfig.pb()())
    with pytest.raises(RequestError, match="it does not push") as raised:
        check_push_config(pubsub_types.PushConfig.pb()(push_endpoint="https://example.com"))
    assert raised.value.code == "UNIMPLEMENTED"


def test_acknowledging_nothing_or_too_much_at_once_is_refused() -> None:
    check_ack_request(AcknowledgeRequest(subscription=NAME, ack_ids=["abc-1"] * 1_000))
    with pytest.raises(RequestError, match="at least one"):
        check_ack_request(AcknowledgeRequest(subscription=NAME))
    with pytest.raises(RequestError, match=f"at most {MAX_ACK_REQUEST_BYTES} bytes"):
        check_ack_request(AcknowledgeRequest(subscription=NAME, ack_ids=["a" * 100] * 6_000))


def test_attempts_and_the_order_of_a_stream_are_read_by_googles_class() -> None:
    message = Message("1", PubsubMessage(data=b"x").SerializeToString())
    deliveries = [Delivery(message, "a-1", attempt=attempt) for attempt in (0, 5, 300)]
    decoded = StreamingPullResponse.FromString(encode_deliveries(deliveries, ordered_stream=True))
    assert [one.delivery_attempt for one in decoded.received_messages] == [0, 5, 300]
    assert [one.message.data for one in decoded.received_messages] == [b"x"] * 3
    assert decoded.subscription_properties.message_ordering_enabled
    assert not decoded.subscription_properties.exactly_once_delivery_enabled
    assert not StreamingPullResponse.FromString(encode_deliveries(deliveries)).HasField("subscription_properties")


def test_an_expiration_policy_without_a_ttl_means_never() -> None:
    settings = parse_subscription(make_subscription_request(expiration_policy={}))[2]
    assert settings.expiration_ttl_s is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("push_config", {"push_endpoint": "https://example.com"}),
        ("enable_exactly_once_delivery", True),
        ("bigquery_config", {"table": "p.d.t"}),
        ("cloud_storage_config", {"bucket": "b"}),
    ],
)
def test_a_subscription_field_that_is_not_offered_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"Subscription.{field} is not offered") as raised:
        parse_subscription(make_subscription_request(**{field: value}))
    assert raised.value.code == "UNIMPLEMENTED"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kms_key_name", "key"),
        ("schema_settings", {"schema": "projects/p/schemas/s"}),
    ],
)
def test_a_topic_field_that_is_not_offered_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"Topic.{field} is not offered"):
        parse_topic(TopicPb(name=TOPIC, **{field: value}))
