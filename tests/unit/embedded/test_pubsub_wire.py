"""Requests of google.pubsub.v1 against Google's documented limits, and the bytes that go back."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from google.pubsub_v1.types import pubsub as pubsub_types
from hypothesis import given
from hypothesis import strategies as st

from dry_work.embedded.pubsub_core import Delivery, Message, PubSubCore
from dry_work.embedded.pubsub_rules import RequestError, SubscriptionSettings
from dry_work.embedded.pubsub_wire import (
    MAX_PUBLISH_BYTES,
    build_subscription,
    encode_deliveries,
    parse_publish,
    parse_subscription,
    parse_topic,
)

PublishRequest = pubsub_types.PublishRequest.pb()
PubsubMessage = pubsub_types.PubsubMessage.pb()
StreamingPullResponse = pubsub_types.StreamingPullResponse.pb()
PullResponse = pubsub_types.PullResponse.pb()
SubscriptionPb = pubsub_types.Subscription.pb()
TopicPb = pubsub_types.Topic.pb()

TOPIC = "projects/p/topics/bars"
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


def test_settings_of_a_subscription_are_returned_as_they_were_given() -> None:
    request = make_subscription_request(
        labels={"owner": "abc"},
        filter='attributes.symbol = "SPY"',
        ack_deadline_seconds=30,
        message_retention_duration=Duration(seconds=600, nanos=500_000_000),
        expiration_policy={"ttl": Duration(seconds=86_400)},
    )
    core = PubSubCore(max_backlog_bytes=1_000, nonce=1)
    core.create_topic(TOPIC)
    answer = build_subscription(core.create_subscription(*parse_subscription(request)))
    for field in ("name", "topic", "labels", "filter", "ack_deadline_seconds", "expiration_policy"):
        assert getattr(answer, field) == getattr(request, field)
    assert answer.message_retention_duration.ToMilliseconds() == 600_500
    assert answer.state == pubsub_types.Subscription.State.ACTIVE


def test_an_expiration_policy_without_a_ttl_means_never() -> None:
    settings = parse_subscription(make_subscription_request(expiration_policy={}))[2]
    assert settings.expiration_ttl_s is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("push_config", {"push_endpoint": "https://example.com"}),
        ("enable_message_ordering", True),
        ("enable_exactly_once_delivery", True),
        ("retain_acked_messages", True),
        ("dead_letter_policy", {"dead_letter_topic": TOPIC}),
        ("retry_policy", {"minimum_backoff": Duration(seconds=10)}),
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
        ("message_retention_duration", Duration(seconds=600)),
    ],
)
def test_a_topic_field_that_is_not_offered_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"Topic.{field} is not offered"):
        parse_topic(TopicPb(name=TOPIC, **{field: value}))
