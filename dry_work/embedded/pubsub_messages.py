"""Messages as a Pub/Sub server keeps them: the bytes that go over the wire, and what is read from them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from google.pubsub_v1.types import pubsub as pubsub_types

from dry_work.clock import SECOND_NS

PubsubMessagePb: Any = pubsub_types.PubsubMessage.pb()


class Message(msgspec.Struct, frozen=True, gc=False):
    """A published message: its id and the whole `PubsubMessage` as it goes over the wire.

    `number` rises with every message of a server; `published_ns` is UTC since 1970.
    """

    message_id: str
    encoded: bytes
    number: int = 0
    published_ns: int = 0
    ordering_key: str = ""


def stamp_message(message: Any, number: int, time_ns: int) -> Message:
    """Give a `PubsubMessage` its id and the time of publishing, and encode it."""
    message_id = str(number)
    message.message_id = message_id
    publish_time = message.publish_time
    publish_time.seconds = time_ns // SECOND_NS
    publish_time.nanos = time_ns % SECOND_NS
    return Message(message_id, message.SerializeToString(), number, time_ns, message.ordering_key)


def read_attributes(message: Message) -> Mapping[str, str]:
    """Return the attributes of a message."""
    attributes: Mapping[str, str] = PubsubMessagePb.FromString(message.encoded).attributes
    return attributes


def build_dead_letter(message: Message, subscription_name: str, delivery_count: int) -> Any:
    """Return the `PubsubMessage` that is forwarded to a dead-letter topic, with the attributes that Google adds."""
    _, project, _, subscription_id = subscription_name.split("/")
    letter = PubsubMessagePb.FromString(message.encoded)
    published = datetime.fromtimestamp(message.published_ns / SECOND_NS, UTC)
    letter.attributes["CloudPubSubDeadLetterSourceDeliveryCount"] = str(delivery_count)
    letter.attributes["CloudPubSubDeadLetterSourceSubscription"] = subscription_id
    letter.attributes["CloudPubSubDeadLetterSourceSubscriptionProject"] = project
    letter.attributes["CloudPubSubDeadLetterSourceTopicPublishTime"] = published.isoformat(timespec="milliseconds")
    return letter
