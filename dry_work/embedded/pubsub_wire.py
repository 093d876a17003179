"""google.pubsub.v1 messages <-> the values of `pubsub_core`. Pure.

The raw protobuf classes are used, not their proto-plus wrappers, which cost more than all the rest of a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.pubsub_v1.types import pubsub as pubsub_types

from dry_work.embedded.pubsub_core import Delivery, Message, PubSubCore, Subscription, Topic
from dry_work.embedded.pubsub_rules import MIN_ACK_DEADLINE_S, RequestError, SubscriptionSettings, invalid_argument

# https://cloud.google.com/pubsub/quotas#resource_limits
MAX_PUBLISH_BYTES = 10_000_000
MAX_PUBLISH_MESSAGES = 1_000
MAX_ATTRIBUTES = 100
MAX_ATTRIBUTE_KEY_BYTES = 256
MAX_ATTRIBUTE_VALUE_BYTES = 1_024
MAX_ORDERING_KEY_BYTES = 1_024

TopicPb: Any = pubsub_types.Topic.pb()
SubscriptionPb: Any = pubsub_types.Subscription.pb()
PublishRequestPb: Any = pubsub_types.PublishRequest.pb()
PublishResponsePb: Any = pubsub_types.PublishResponse.pb()
PullResponsePb: Any = pubsub_types.PullResponse.pb()

_TOPIC_FIELDS = frozenset({"name", "labels", "state", "satisfies_pzs"})
_SUBSCRIPTION_FIELDS = frozenset(
    {
        "name", "topic", "labels", "filter", "ack_deadline_seconds", "message_retention_duration", "expiration_policy",
        "state", "topic_message_retention_duration",
    }
)  # fmt: skip


def parse_topic(request: Any) -> tuple[str, dict[str, str]]:
    """Return name and labels of a `Topic` to be created; refuse what is not offered."""
    _refuse_fields_not_offered(request, "Topic", _TOPIC_FIELDS)
    return request.name, dict(request.labels)


def build_topic(topic: Topic) -> Any:
    """Return the `Topic` of a topic."""
    return TopicPb(name=topic.name, labels=topic.labels, state=pubsub_types.Topic.State.ACTIVE)


def parse_subscription(request: Any) -> tuple[str, str, SubscriptionSettings]:
    """Return name, topic and settings of a `Subscription` to be created; refuse what is not offered."""
    _refuse_fields_not_offered(request, "Subscription", _SUBSCRIPTION_FIELDS)
    settings = {
        "labels": dict(request.labels),
        "filter": request.filter,
        "ack_deadline_s": request.ack_deadline_seconds or MIN_ACK_DEADLINE_S,
    }
    if request.HasField("message_retention_duration"):
        settings["retention_s"] = _seconds(request.message_retention_duration)
    if request.HasField("expiration_policy"):
        policy = request.expiration_policy
        settings["expiration_ttl_s"] = _seconds(policy.ttl) if policy.HasField("ttl") else None
    return request.name, request.topic, SubscriptionSettings(**settings)


def build_subscription(subscription: Subscription) -> Any:
    """Return the `Subscription` of a subscription."""
    settings = subscription.settings
    answer = SubscriptionPb(
        name=subscription.name,
        topic=subscription.topic_name,
        push_config={},
        ack_deadline_seconds=settings.ack_deadline_s,
        labels=settings.labels,
        filter=settings.filter,
        expiration_policy={},
        state=pubsub_types.Subscription.State.ACTIVE,
    )
    _set_duration(answer.message_retention_duration, settings.retention_s)
    if settings.expiration_ttl_s is not None:
        _set_duration(answer.expiration_policy.ttl, settings.expiration_ttl_s)
    return answer


class Publication:
    """A `PublishRequest` that was found to be within Google's limits."""

    def __init__(self, request: Any) -> None:
        self.topic_name: str = request.topic
        self._messages = request.messages

    def stamp(self, first_id: int, now_ns: int) -> tuple[list[Message], list[Mapping[str, str]]]:
        """Give the messages rising ids and the time of publishing; return them beside their attributes."""
        seconds, nanos = divmod(now_ns, 1_000_000_000)
        messages = []
        attributes = []
        for message_id, message in enumerate(self._messages, first_id):
            message.message_id = str(message_id)
            message.publish_time.seconds = seconds
            message.publish_time.nanos = nanos
            messages.append(Message(message.message_id, message.SerializeToString()))
            attributes.append(message.attributes)
        return messages, attributes

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
    return Publication(request)


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


def encode_deliveries(deliveries: Sequence[Delivery]) -> bytes:
    """Return the bytes of a `StreamingPullResponse`, which are those of a `PullResponse` too.

    Both have `repeated ReceivedMessage received_messages = 1`, of which `ack_id` is field 1 and `message` field 2. The
    message itself was encoded when it was published and is copied as it is, to however many subscriptions.
    """
    parts: list[bytes] = []
    for delivery in deliveries:
        ack_id = delivery.ack_id.encode()
        message = delivery.message.encoded
        head = b"\x0a" + _encode_varint(len(ack_id)) + ack_id + b"\x12" + _encode_varint(len(message))
        parts += (b"\x0a", _encode_varint(len(head) + len(message)), head, message)
    return b"".join(parts)


def _encode_varint(value: int) -> bytes:
    if value < 0x80:
        return _SHORT_VARINTS[value]
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
    for field in ("subscription", "client_id", "max_outstanding_messages", "max_outstanding_bytes"):
        if getattr(request, field):
            raise invalid_argument(f"{field} may only be set in the first request of a streaming pull.")


def find_subscription(core: PubSubCore, request: Any) -> Subscription:
    """Return the subscription that the first request of a streaming pull names."""
    if not request.subscription:
        raise invalid_argument("The first request of a streaming pull must name the subscription.")
    return core.subscription(request.subscription)


def _refuse_fields_not_offered(request: Any, kind: str, offered: frozenset[str]) -> None:
    for field, value in request.ListFields():
        if field.name == "push_config" and not value.ByteSize():
            continue  # an empty one asks for a pull subscription
        if field.name not in offered:
            raise RequestError("UNIMPLEMENTED", f"{kind}.{field.name} is not offered by this Pub/Sub server.")


def _seconds(duration: Any) -> float:
    return float(duration.seconds + duration.nanos / 1e9)


def _set_duration(duration: Any, seconds: float) -> None:
    duration.seconds = int(seconds)
    duration.nanos = round((seconds - int(seconds)) * 1e9)
