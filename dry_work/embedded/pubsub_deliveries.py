"""One message on its way to one subscriber, the subscriber's flow control, and what is counted. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from dry_work.embedded.pubsub_messages import Message
from dry_work.embedded.pubsub_rules import check_ack_deadline

if TYPE_CHECKING:
    from dry_work.embedded.pubsub_subscription import Subscription


class Delivery(msgspec.Struct, eq=False):
    """One message in one subscription. `ack_id` is empty while it waits.

    `attempt` is the number of the present delivery where a dead-letter policy counts them, else 0.
    """

    message: Message
    ack_id: str = ""
    deadline_ns: int = 0
    puller: Puller | None = None
    expired_ack_id: str = ""
    gone: bool = False
    attempt: int = 0
    failures: int = 0


class Puller:
    """One subscriber's connection and its flow control. A limit of 0 or less means none.

    Args:
        wake: called when `Subscription.take` may give something, and when the subscription has ended.
    """

    def __init__(
        self, *, max_messages: int, max_bytes: int, ack_deadline_s: int, wake: Callable[[], None] = lambda: None
    ) -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.set_ack_deadline(ack_deadline_s)
        self.wake = wake
        self.outstanding_messages = 0
        self.outstanding_bytes = 0

    def set_ack_deadline(self, seconds: int) -> None:
        """Give the messages taken from now on this deadline."""
        check_ack_deadline(seconds)
        self.ack_deadline_s = seconds

    @property
    def has_room(self) -> bool:
        """Tell whether another message may be sent to this subscriber now."""
        return (self.max_messages <= 0 or self.outstanding_messages < self.max_messages) and (
            self.max_bytes <= 0 or self.outstanding_bytes < self.max_bytes
        )


class Counters(msgspec.Struct):
    """Messages counted since the start; all but `published` count once per subscription.

    `dropped` are those beyond a limit in bytes, `outdated` those that waited longer than the retention.
    """

    published: int = 0
    filtered: int = 0
    delivered: int = 0
    expired: int = 0
    acknowledged: int = 0
    dead_lettered: int = 0
    outdated: int = 0
    dropped: int = 0


class DeadLetter(msgspec.Struct, frozen=True):
    """A delivery that failed as often as its subscription allows."""

    subscription: Subscription
    delivery: Delivery
    topic_name: str
