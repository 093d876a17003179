"""google.pubsub.v1 messages <-> the values of `pubsub_core`. Pure.

The raw protobuf classes are used, not their proto-plus wrappers, which cost more than all the rest of a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import field_mask_pb2
from google.pubsub_v1.types import pubsub as pubsub_types

from dry_work.clock import SECOND_NS
from dry_work.embedded.pubsub_core import PubSubCore, Snapshot, Topic
from dry_work.embedded.pubsub_deliveries import Delivery
from dry_work.embedded.pubsub_messages import Message, stamp_message
from dry_work.embedded.pubsub_rules import (
    DEFAULT_MIN_BACKOFF_S,
    MAX_BACKOFF_S,
    MIN_ACK_DEADLINE_S,
    MIN_DELIVERY_ATTEMPTS,
    DeadLetterPolicy,
    RequestError,
    RetryPolicy,
    SubscriptionSettings,
    TopicSettings,
    check_update_mask,
    invalid_argument,
)
from dry_work.embedded.pubsub_subscription import Subscription

# https://cloud.google.com/pubsub/quotas#resource_limits
MAX_PUBLISH_BYTES = 10_000_000
MAX_PUBLISH_MESSAGES = 1_000
MAX_ACK_REQUEST_BYTES = 524_288
MAX_ATTRIBUTES = 100
MAX_ATTRIBUTE_KEY_BYTES = 256
MAX_ATTRIBUTE_VALUE_BYTES = 1_024
MAX_ORDERING_KEY_BYTES = 1_024

TopicPb: Any = pubsub_types.Topic.pb()
SubscriptionPb: Any = pubsub_types.Subscription.pb()
SnapshotPb: Any = pubsub_types.Snapshot.pb()
PublishRequestPb: Any = pubsub_types.PublishRequest.pb()
PublishResponsePb: Any = pubsub_types.PublishResponse.pb()
PullResponsePb: Any = pubsub_types.PullResponse.pb()

# `subscription_properties` of a `StreamingPullResponse`: the messages come in order. A client takes its absence for no.
_ORDERED_PROPERTIES = b"\x22\x02\x10\x01"

_OUTPUT_FIELDS = frozenset({"state", "satisfies_pzs", "topic_message_retention_duration"})
_TOPIC_FIELDS = frozenset({"name", "labels", "message_retention_duration"})
_SUBSCRIPTION_FIELDS = frozenset(
    {
        "name", "topic", "labels", "filter", "enable_message_ordering", "ack_deadline_seconds",
        "message_retention_duration", "retain_acked_messages", "expiration_policy", "dead_letter_policy",
        "retry_policy",
    }
)  # fmt: skip
_SNAPSHOT_FIELDS = frozenset({"name", "topic", "labels", "expire_time"})
_FIXED_FIELDS = {
    "Topic": {"name", *_OUTPUT_FIELDS},
    "Subscription": {"name", "topic", "filter", "enable_message_ordering", "detached", *_OUTPUT_FIELDS},
    "Snapshot": {"name", "topic"},
}
_FIRST_REQUEST_FIELDS = (
    "subscription", "client_id", "max_outstanding_messages", "max_outstanding_bytes", "protocol_version",
)  # fmt: skip
_PULL_ONLY = "subscribers pull, by streaming pull or by unary pull"
_REASONS = {
    "push_config": f"it does not push: {_PULL_ONLY}",
    "bigquery_config": f"it does not write to BigQuery: {_PULL_ONLY}",
    "cloud_storage_config": f"it does not write to Cloud Storage: {_PULL_ONLY}",
    "bigtable_config": f"it does not write to Bigtable: {_PULL_ONLY}",
    "enable_exactly_once_delivery": "it delivers at least once; a subscriber tells duplicates by the message id",
    "schema_settings": "it has no schemas; a message may be any bytes",
}


def parse_topic(request: Any) -> tuple[str, TopicSettings]:
    """Return name and settings of a `Topic`; refuse what is not offered."""
    _refuse_fields_not_offered(request, "Topic", _TOPIC_FIELDS)
    retention_s = None
    if request.HasField("message_retention_duration"):
        retention_s = _seconds(request.message_retention_duration)
    return request.name, TopicSettings(labels=dict(request.labels), retention_s=retention_s)


def build_topic(topic: Topic) -> Any:
    """Return the `Topic` of a topic."""
    settings = topic.settings
    answer = TopicPb(name=topic.name, labels=settings.labels, state=pubsub_types.Topic.State.ACTIVE)
    if settings.retention_s is not None:
        _set_duration(answer.message_retention_duration, settings.retention_s)
    return answer


def parse_topic_update(request: Any, topic: Topic) -> TopicSettings:
    """Return the settings of a topic with the fields of an `UpdateTopicRequest` changed."""
    return parse_topic(_apply_mask(request.update_mask, request.topic, build_topic(topic), "Topic"))[1]


def parse_subscription(request: Any) -> tuple[str, str, SubscriptionSettings]:
    """Return name, topic and settings of a `Subscription`; refuse what is not offered."""
    _refuse_fields_not_offered(request, "Subscription", _SUBSCRIPTION_FIELDS)
    settings: dict[str, Any] = {
        "labels": dict(request.labels),
        "filter": request.filter,
        "ordered": request.enable_message_ordering,
        "ack_deadline_s": request.ack_deadline_seconds or MIN_ACK_DEADLINE_S,
        "retain_acked": request.retain_acked_messages,
    }
    if request.HasField("message_retention_duration"):
        settings["retention_s"] = _seconds(request.message_retention_duration)
    if request.HasField("expiration_policy"):
        expiration = request.expiration_policy
        settings["expiration_ttl_s"] = _seconds(expiration.ttl) if expiration.HasField("ttl") else None
    if request.HasField("dead_letter_policy"):
        dead_letter = request.dead_letter_policy
        settings["dead_letter"] = DeadLetterPolicy(
            dead_letter.dead_letter_topic, dead_letter.max_delivery_attempts or MIN_DELIVERY_ATTEMPTS
        )
    if request.HasField("retry_policy"):
        retry = request.retry_policy
        settings["retry"] = RetryPolicy(
            _seconds(retry.minimum_backoff) if retry.HasField("minimum_backoff") else DEFAULT_MIN_BACKOFF_S,
            _seconds(retry.maximum_backoff) if retry.HasField("maximum_backoff") else MAX_BACKOFF_S,
        )
    return request.name, request.topic, SubscriptionSettings(**settings)


def build_subscription(subscription: Subscription) -> Any:
    """Return the `Subscription` of a subscription."""
    settings = subscription.settings
    answer = SubscriptionPb(
        name=subscription.name,
        topic=subscription.topic_name,
        push_config={},
        ack_deadline_seconds=settings.ack_deadline_s,
        retain_acked_messages=settings.retain_acked,
        labels=settings.labels,
        enable_message_ordering=settings.ordered,
        filter=settings.filter,
        expiration_policy={},
        detached=subscription.detached,
        state=pubsub_types.Subscription.State.ACTIVE,
    )
    _set_duration(answer.message_retention_duration, settings.retention_s)
    if settings.expiration_ttl_s is not None:
        _set_duration(answer.expiration_policy.ttl, settings.expiration_ttl_s)
    if settings.dead_letter is not None:
        answer.dead_letter_policy.dead_letter_topic = settings.dead_letter.topic_name
        answer.dead_letter_policy.max_delivery_attempts = settings.dead_letter.max_delivery_attempts
    if settings.retry is not None:
        _set_duration(answer.retry_policy.minimum_backoff, settings.retry.min_backoff_s)
        _set_duration(answer.retry_policy.maximum_backoff, settings.retry.max_backoff_s)
    if subscription.topic_retention_s is not None:
        _set_duration(answer.topic_message_retention_duration, subscription.topic_retention_s)
    return answer


def parse_subscription_update(request: Any, subscription: Subscription) -> SubscriptionSettings:
    """Return the settings of a subscription with the fields of an `UpdateSubscriptionRequest` changed."""
    current = build_subscription(subscription)
    current.detached = False
    return parse_subscription(_apply_mask(request.update_mask, request.subscription, current, "Subscription"))[2]


def parse_snapshot_request(request: Any) -> tuple[str, str, dict[str, str]]:
    """Return name, subscription and labels of a `CreateSnapshotRequest`; refuse what is not offered."""
    _refuse_fields_not_offered(request, "CreateSnapshotRequest", frozenset({"name", "subscription", "labels"}))
    return request.name, request.subscription, dict(request.labels)


def build_snapshot(snapshot: Snapshot) -> Any:
    """Return the `Snapshot` of a snapshot."""
    answer = SnapshotPb(name=snapshot.name, topic=snapshot.topic_name, labels=snapshot.labels)
    answer.expire_time.seconds, answer.expire_time.nanos = divmod(snapshot.expire_ns, SECOND_NS)
    return answer


def parse_snapshot_update(request: Any, snapshot: Snapshot) -> tuple[dict[str, str], int]:
    """Return labels and expire time, in nanoseconds, of a snapshot after an `UpdateSnapshotRequest`."""
    changed = _apply_mask(request.update_mask, request.snapshot, build_snapshot(snapshot), "Snapshot")
    _refuse_fields_not_offered(changed, "Snapshot", _SNAPSHOT_FIELDS)
    return dict(changed.labels), changed.expire_time.seconds * SECOND_NS + changed.expire_time.nanos


def check_push_config(config: Any) -> None:
    """Refuse to push; an empty configuration asks for a pull subscription."""
    if config.ByteSize():
        raise _not_offered("Subscription", "push_config")


def check_ack_request(request: Any) -> None:
    """Refuse an `AcknowledgeRequest` or `ModifyAckDeadlineRequest` without ids or beyond Google's limit in bytes."""
    if not request.ack_ids:
        raise invalid_argument("No ack ids were specified; there must be at least one.")
    if request.ByteSize() > MAX_ACK_REQUEST_BYTES:
        raise invalid_argument(
            f"The request has {request.ByteSize()} bytes; at most {MAX_ACK_REQUEST_BYTES} bytes are allowed."
        )


class Publication:
    """Messages for a topic that were found to be within Google's limits."""

    def __init__(self, topic_name: str, messages: Sequence[Any]) -> None:
        self.topic_name = topic_name
        self._messages = messages

    def stamp(self, first_id: int, now_ns: int) -> tuple[list[Message], list[Mapping[str, str]]]:
        """Give the messages rising ids and the time of publishing; return them beside their attributes."""
        messages = [stamp_message(message, number, now_ns) for number, message in enumerate(self._messages, first_id)]
        return messages, [message.attributes for message in self._messages]

    def __len__(self) -> int:
        return len(self._messages)


def parse_publish(data: bytes) -> Publication:
    """Read a `PublishRequest`; refuse it when a limit is passed, as a whole, as Google does."""
    if len(data) > MAX_PUBLISH_BYTES:
        raise invalid_argument(
            f"The publish request has {len(data)} bytes; at most {MAX_PUBLISH_BYTES} bytes are allowed."
        )
    request = PublishRequestPb.FromString(data)
    messages = request.messages
    if not messages:
        raise invalid_argument("The publish request has no messages; it must have at least one.")
    if len(messages) > MAX_PUBLISH_MESSAGES:
        raise invalid_argument(
            f"The publish request has {len(messages)} messages; at most {MAX_PUBLISH_MESSAGES} are allowed."
        )
    ordering_key = messages[0].ordering_key
    for message in messages:
        attributes = message.attributes
        if attributes:
            _check_attributes(attributes)
        elif not message.data:
            raise invalid_argument(
                "One or more messages in the publish request is empty. Each message must contain either non-empty "
                "data, or at least one attribute."
            )
        if message.ordering_key != ordering_key:
            raise invalid_argument("All messages of a publish request must have the same ordering key.")
    if len(ordering_key.encode()) > MAX_ORDERING_KEY_BYTES:
        raise invalid_argument(
            f"The ordering key has {len(ordering_key.encode())} bytes; at most {MAX_ORDERING_KEY_BYTES} are allowed."
        )
    return Publication(request.topic, messages)


def _check_attributes(attributes: Mapping[str, str]) -> None:
    if len(attributes) > MAX_ATTRIBUTES:
        raise invalid_argument(f"A message has {len(attributes)} attributes; at most {MAX_ATTRIBUTES} are allowed.")
    for key, value in attributes.items():
        if not key or key.startswith("goog"):
            raise invalid_argument(f"The attribute key {key!r} is not allowed: it is empty or starts with goog.")
        # A character has at most four bytes, so short texts need not be encoded to know that they fit.
        if len(key) > 64 and len(key.encode()) > MAX_ATTRIBUTE_KEY_BYTES:
            raise invalid_argument(
                f"An attribute key has {len(key.encode())} bytes; at most {MAX_ATTRIBUTE_KEY_BYTES} are allowed."
            )
        if len(value) > 256 and len(value.encode()) > MAX_ATTRIBUTE_VALUE_BYTES:
            raise invalid_argument(
                f"The value of attribute {key!r} has {len(value.encode())} bytes; "
                f"at most {MAX_ATTRIBUTE_VALUE_BYTES} are allowed."
            )


def encode_deliveries(deliveries: Sequence[Delivery], *, ordered_stream: bool = False) -> bytes:
    """Return the bytes of a `StreamingPullResponse`, which are those of a `PullResponse` too.

    Both have `repeated ReceivedMessage received_messages = 1`, of which `ack_id` is field 1, `message` field 2 and
    `delivery_attempt` field 3. The message itself was encoded when it was published and is copied as it is, to however
    many subscriptions. `ordered_stream` adds that the subscription is ordered, which only a stream can tell.
    """
    parts: list[bytes] = []
    for delivery in deliveries:
        ack_id = delivery.ack_id.encode()
        message = delivery.message.encoded
        head = b"\x0a" + _encode_varint(len(ack_id)) + ack_id + b"\x12" + _encode_varint(len(message))
        if delivery.attempt:
            tail = b"\x18" + _encode_varint(delivery.attempt)
            parts += (b"\x0a", _encode_varint(len(head) + len(message) + len(tail)), head, message, tail)
        else:
            parts += (b"\x0a", _encode_varint(len(head) + len(message)), head, message)
    if ordered_stream:
        parts.append(_ORDERED_PROPERTIES)
    return b"".join(parts)


def _encode_varint(value: int) -> bytes:
    if value < 0x80:
        return _SHORT_VARINTS[value]
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_SHORT_VARINTS = [bytes([value]) for value in range(0x80)]


def apply_acks(core_subscription: Subscription, request: Any, now_ns: int) -> None:
    """Carry out the acknowledgements and deadlines of a `StreamingPullRequest`."""
    deadlines = request.modify_deadline_seconds
    ack_ids = request.modify_deadline_ack_ids
    if len(deadlines) != len(ack_ids):
        raise invalid_argument(
            f"The request has {len(ack_ids)} modify_deadline_ack_ids and {len(deadlines)} modify_deadline_seconds; "
            "there must be as many of one as of the other."
        )
    if request.ack_ids:
        core_subscription.acknowledge(request.ack_ids)
    for ack_id, deadline_s in zip(ack_ids, deadlines, strict=True):
        core_subscription.modify_deadline(ack_id, deadline_s, now_ns)


def check_later_request(request: Any) -> None:
    """Refuse what only the first request of a streaming pull may set."""
    for field in _FIRST_REQUEST_FIELDS:
        if getattr(request, field):
            raise invalid_argument(f"{field} may only be set in the first request of a streaming pull.")


def find_subscription(core: PubSubCore, request: Any) -> Subscription:
    """Return the subscription that the first request of a streaming pull names."""
    if not request.subscription:
        raise invalid_argument("The first request of a streaming pull must name the subscription.")
    return core.subscription(request.subscription)


def _apply_mask(mask: Any, source: Any, target: Any, kind: str) -> Any:
    """Return `target` with the fields of the mask taken from `source`."""
    known = {field.name for field in target.DESCRIPTOR.fields}
    check_update_mask(mask.paths, kind, known, _FIXED_FIELDS[kind])
    field_mask_pb2.FieldMask(paths=mask.paths).MergeMessage(source, target, True, True)  # replaces, never merges
    return target


def _refuse_fields_not_offered(request: Any, kind: str, offered: frozenset[str]) -> None:
    for field, value in request.ListFields():
        if field.name == "push_config":
            check_push_config(value)
        elif field.name not in offered and field.name not in _OUTPUT_FIELDS:
            raise _not_offered(kind, field.name)


def _not_offered(kind: str, field: str) -> RequestError:
    reason = f"; {_REASONS[field]}" if field in _REASONS else ""
    return RequestError("UNIMPLEMENTED", f"{kind}.{field} is not offered by this Pub/Sub server{reason}.")


def _seconds(duration: Any) -> float:
    return float(duration.seconds + duration.nanos / 1e9)


def _set_duration(duration: Any, seconds: float) -> None:
    duration.seconds = int(seconds)
    duration.nanos = round((seconds - int(seconds)) * 1e9)
