"""The messages of one subscription, their leases and the flow control of its subscribers.

Pure: no I/O, no clock, no threads; one thread at a time. Times of leases and backoffs (`now_ns`) are nanoseconds of a
clock that never goes back; times of publishing (`time_ns`) are UTC since 1970.

A message becomes one `Delivery` in every subscription whose filter lets it through. A delivery waits, is leased to a
puller under an ack id that is new each time, and then is acknowledged (gone), or its deadline passes or is set to 0:
the attempt has failed. Then it waits again, after a rest when there is a retry policy, or is handed over as a dead
letter. Acknowledging after the deadline still counts as long as the message was not leased again. A subscription holds
what waits up to `max_backlog_bytes`; beyond it the oldest waiting messages are dropped and counted. What is leased is
bounded by the pullers' flow control.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush

from dry_work.clock import SECOND_NS
from dry_work.embedded.pubsub_deliveries import Counters, DeadLetter, Delivery, Puller
from dry_work.embedded.pubsub_filter import Predicate, parse_filter
from dry_work.embedded.pubsub_messages import Message, read_attributes
from dry_work.embedded.pubsub_rules import (
    MAX_ACK_DEADLINE_S,
    SubscriptionSettings,
    check_ack_id,
    invalid_argument,
)

# One response of a streaming pull; lets several pullers share a burst. A larger message goes alone: with
# PUBSUB_EMULATOR_HOST Google's client takes 4 MiB in one response.
MAX_BATCH_MESSAGES = 500
MAX_BATCH_BYTES = 1_000_000

# Deadlines are looked at no more often than this, so that many leases cost one pass and not one each.
EXPIRY_GRAIN_NS = SECOND_NS // 10


class Subscription:
    """The messages of one subscription that are not yet acknowledged, and the acknowledged ones that it retains.

    Args:
        dead_letters: takes the deliveries that are to be forwarded; the caller empties it.
    """

    def __init__(
        self,
        name: str,
        topic_name: str,
        settings: SubscriptionSettings,
        *,
        ack_prefix: str,
        max_backlog_bytes: int,
        counters: Counters | None = None,
        dead_letters: deque[DeadLetter] | None = None,
    ) -> None:
        self.name = name
        self.topic_name = topic_name
        self.settings = settings
        self.deleted = False
        self.detached = False
        self.topic_retention_s: float | None = None
        self.last_used_ns = 0
        self.next_expiry_ns: int | None = None  # no lease and no backoff ends before
        self._matches: Predicate | None = parse_filter(settings.filter)
        self._ack_prefix = ack_prefix
        self._max_backlog_bytes = max_backlog_bytes
        self._counters = counters if counters is not None else Counters()
        self._dead_letters = dead_letters if dead_letters is not None else deque()
        self._waiting: deque[Delivery] = deque()
        self._backlog_bytes = 0
        self._leased: dict[str, Delivery] = {}
        self._expired: dict[str, Delivery] = {}  # by the last ack id, for acknowledgements that come late
        self._resting: list[tuple[int, int, Delivery]] = []  # heap by the end of the backoff
        self._rest_count = 0
        self._retained: deque[Message] = deque()  # acknowledged
        self._retained_bytes = 0
        self._outdated_ns = 0  # what was published before is no longer given
        self._pullers: deque[Puller] = deque()
        self._retains = settings.retain_acked
        self._lease_count = 0
        self._clear()

    @property
    def backlog_bytes(self) -> int:
        """Bytes of the messages that wait for delivery."""
        return self._backlog_bytes

    @property
    def unacknowledged(self) -> int:
        """Number of messages that wait, rest or are leased."""
        return sum(1 for _ in self._deliveries())

    @property
    def retention_s(self) -> float:
        """How long an unacknowledged message is kept: the longer one of the topic's and its own retention."""
        return max(self.settings.retention_s, self.topic_retention_s or 0.0)

    def unacknowledged_messages(self) -> list[Message]:
        """Return what is not acknowledged, oldest first."""
        return sorted((delivery.message for delivery in self._deliveries()), key=_number_of)

    def retained_messages(self) -> list[Message]:
        """Return what a seek can still reach: unacknowledged and retained messages, oldest first."""
        held = [*(delivery.message for delivery in self._deliveries()), *self._acknowledged()]
        return sorted((message for message in held if message.published_ns >= self._outdated_ns), key=_number_of)

    def accepts(self, message: Message) -> bool:
        """Tell whether the filter lets a message through."""
        return self._matches is None or self._matches(read_attributes(message))

    def configure(self, settings: SubscriptionSettings) -> None:
        """Put other settings in force; filter and ordering stay as they are, and so do leases that run."""
        self.settings = settings
        self._retains = settings.retain_acked
        if not self._retains:
            self._retained.clear()
            self._retained_bytes = 0

    def add(self, messages: Sequence[Message], attributes: Sequence[Mapping[str, str]]) -> None:
        """Take published messages that the filter lets through; `attributes` has one mapping per message."""
        matches = self._matches
        waiting = self._waiting
        for message, its_attributes in zip(messages, attributes, strict=True):
            if matches is not None and not matches(its_attributes):
                self._counters.filtered += 1
                continue
            waiting.append(Delivery(message))
            self._backlog_bytes += len(message.encoded)
        self._trim()
        self._wake_pullers()

    def open(self, puller: Puller) -> None:
        """Let a subscriber take part in the deliveries."""
        self._pullers.append(puller)
        self._wake_pullers()

    def close(self, puller: Puller, time_ns: int = 0) -> None:
        """Give a subscriber nothing more. What it was given stays leased until its deadlines, as at Google."""
        if puller in self._pullers:
            self._pullers.remove(puller)
            self.last_used_ns = max(self.last_used_ns, time_ns)

    def take(self, puller: Puller, now_ns: int) -> list[Delivery]:
        """Lease waiting messages to a puller, oldest first: a batch, within its flow control and its fair share."""
        waiting = self._waiting
        if not waiting or not puller.has_room:
            return []
        room = self._share_of(puller, len(waiting))
        deadline_ns = now_ns + puller.ack_deadline_s * SECOND_NS
        outdated_ns = self._outdated_ns
        lease = self._lease
        batch: list[Delivery] = []
        batch_bytes = 0
        while waiting and len(batch) < room:
            delivery = waiting[0]
            if delivery.gone:
                waiting.popleft()
                continue
            message = delivery.message
            if message.published_ns < outdated_ns:
                self._forget(waiting.popleft())
                continue
            size = len(message.encoded)
            if batch and batch_bytes + size > MAX_BATCH_BYTES:
                break
            if 0 < puller.max_bytes <= puller.outstanding_bytes:
                break
            waiting.popleft()
            lease(delivery, puller, deadline_ns)
            batch_bytes += size
            batch.append(delivery)
        if batch:
            self._count_batch(batch, deadline_ns)
        return batch

    def acknowledge(self, ack_ids: Iterable[str]) -> None:
        """Forget the messages for good. Ids that are no longer known are left out.

        Raises:
            RequestError: an id was never one of ours; those before it were acknowledged.
        """
        freed = False
        leased, counters = self._leased, self._counters
        try:
            for ack_id in ack_ids:
                delivery = leased.pop(ack_id, None)
                if delivery is not None:
                    self._free(delivery)
                    freed = True
                elif (delivery := self._expired.pop(ack_id, None)) is not None:
                    self._backlog_bytes -= len(delivery.message.encoded)
                else:
                    check_ack_id(ack_id)
                    continue
                counters.acknowledged += 1
                self._settle(delivery)
        finally:
            if freed:
                self._wake_pullers()

    def modify_deadline(self, ack_id: str, deadline_s: int, now_ns: int) -> None:
        """Let a lease end `deadline_s` seconds from now; 0 gives the message back at once.

        Raises:
            RequestError: the id was never one of ours, or the deadline is out of range.
        """
        if not 0 <= deadline_s <= MAX_ACK_DEADLINE_S:
            raise invalid_argument(
                f"An ack deadline of {deadline_s} seconds was given; it must be 0 to {MAX_ACK_DEADLINE_S} seconds."
            )
        delivery = self._leased.get(ack_id)
        if delivery is None:
            check_ack_id(ack_id)
        elif deadline_s > 0:
            delivery.deadline_ns = now_ns + deadline_s * SECOND_NS
            self._expect_expiry(delivery.deadline_ns)
        else:
            self._fail(delivery, now_ns, expired=False)
            self._trim()
            self._wake_pullers()

    def expire(self, now_ns: int) -> None:
        """Give back the messages whose lease or backoff has ended."""
        if self.next_expiry_ns is None or now_ns < self.next_expiry_ns:
            return
        ended = [delivery for delivery in self._leased.values() if delivery.deadline_ns <= now_ns]
        for delivery in reversed(ended):
            self._counters.expired += 1
            self._fail(delivery, now_ns, expired=True)
        while self._resting and self._resting[0][0] <= now_ns:
            self._end_rest(heappop(self._resting)[2], now_ns)
        earliest_ns = min((delivery.deadline_ns for delivery in self._leased.values()), default=None)
        self.next_expiry_ns = None if earliest_ns is None else max(earliest_ns, now_ns + EXPIRY_GRAIN_NS)
        if self._resting:
            self._expect_expiry(self._resting[0][0])
        self._trim()
        self._wake_pullers()

    def forget_outdated(self, time_ns: int) -> int | None:
        """Forget what was published longer ago than the retention; return when the next will be, None for never."""
        self._outdated_ns = time_ns - round(self.retention_s * SECOND_NS)
        while self._waiting and (self._waiting[0].gone or self._waiting[0].message.published_ns < self._outdated_ns):
            delivery = self._waiting.popleft()
            if not delivery.gone:
                self._forget(delivery)
        while self._retained and self._retained[0].published_ns < self._outdated_ns:
            self._retained_bytes -= len(self._retained.popleft().encoded)
        oldest = [self._waiting[0].message] if self._waiting else []
        oldest += [self._retained[0]] if self._retained else []
        if not oldest:
            return None
        return min(message.published_ns for message in oldest) + time_ns - self._outdated_ns + 1

    def is_unused(self, time_ns: int) -> bool:
        """Tell whether nobody used the subscription for as long as its expiration policy allows."""
        if self._pullers:
            self.last_used_ns = time_ns
        ttl_s = self.settings.expiration_ttl_s
        return ttl_s is not None and time_ns - self.last_used_ns >= ttl_s * SECOND_NS

    def seek(self, unacknowledged: Iterable[Message]) -> None:
        """Make these messages the unacknowledged ones and all others acknowledged. All leases end."""
        wanted = {message.number: message for message in unacknowledged}
        deliveries = {delivery.message.number: delivery for delivery in self._deliveries()}
        for delivery in tuple(self._leased.values()):
            self._release(delivery)
        held = {message.number: message for message in self.retained_messages()}
        held.update((number, delivery.message) for number, delivery in deliveries.items())
        self._clear()
        for number in sorted(wanted):
            delivery = deliveries.get(number) or Delivery(wanted[number])
            delivery.expired_ack_id = ""
            self._store(delivery)
        for number in sorted(held.keys() - wanted.keys()):
            self._retain(held[number])
        self._trim()
        self._wake_pullers()

    def put_back(self, dead_letter: Delivery) -> None:
        """Let a dead letter wait again: there is no topic to forward it to."""
        self._store(dead_letter)
        self._trim()
        self._wake_pullers()

    def settle_dead_letter(self, dead_letter: Delivery) -> None:
        """Take a dead letter as acknowledged: it was forwarded."""
        self._counters.dead_lettered += 1
        dead_letter.gone = True
        self._retain(dead_letter.message)

    def detach(self) -> None:
        """Forget all messages for ever and wake the pullers, so that they see it."""
        self.detached = True
        self._end()

    def delete(self) -> None:
        """Mark the subscription as deleted, forget its messages and wake its pullers, so that they see it."""
        self.deleted = True
        self._end()

    def _end(self) -> None:
        self._clear()
        self._leased.clear()
        self.next_expiry_ns = None
        for puller in tuple(self._pullers):
            puller.wake()

    def _clear(self) -> None:
        """Forget everything but the leases."""
        self._waiting.clear()
        self._expired.clear()
        self._resting.clear()
        self._retained.clear()
        self._backlog_bytes = self._retained_bytes = 0

    def _deliveries(self) -> Iterator[Delivery]:
        """Return what is not acknowledged, in no order."""
        yield from self._leased.values()
        yield from (delivery for delivery in self._waiting if not delivery.gone)
        yield from (delivery for _, _, delivery in self._resting if not delivery.gone)

    def _acknowledged(self) -> Iterator[Message]:
        """Return the acknowledged messages that are retained, in no order."""
        yield from self._retained

    def _share_of(self, puller: Puller, waiting: int) -> int:
        """Return how many messages a puller may be given at once."""
        sharers = sum(1 for other in self._pullers if other.has_room) or 1
        room = min(MAX_BATCH_MESSAGES, -(-waiting // sharers))
        if puller.max_messages > 0:
            room = min(room, puller.max_messages - puller.outstanding_messages)
        return room

    def _lease(self, delivery: Delivery, puller: Puller, deadline_ns: int) -> None:
        if delivery.expired_ack_id:
            del self._expired[delivery.expired_ack_id]
            delivery.expired_ack_id = ""
        self._lease_count += 1
        delivery.ack_id = ack_id = f"{self._ack_prefix}-{self._lease_count:x}"
        delivery.deadline_ns = deadline_ns
        delivery.puller = puller
        self._leased[ack_id] = delivery
        size = len(delivery.message.encoded)
        puller.outstanding_messages += 1
        puller.outstanding_bytes += size
        self._backlog_bytes -= size

    def _count_batch(self, batch: list[Delivery], deadline_ns: int) -> None:
        if self.settings.dead_letter is not None:
            for delivery in batch:
                delivery.attempt = delivery.failures + 1
        self._counters.delivered += len(batch)
        self._expect_expiry(deadline_ns)

    def _settle(self, delivery: Delivery) -> None:
        """Carry out an acknowledgement; the delivery is no longer leased."""
        delivery.gone = True
        if self._retains:
            self._retain(delivery.message)

    def _fail(self, delivery: Delivery, now_ns: int, *, expired: bool) -> None:
        """Count a failed attempt and find the message its next place."""
        ack_id = delivery.ack_id
        self._release(delivery)
        delivery.failures += 1
        if self._give_up(delivery):
            return
        if expired:
            delivery.expired_ack_id = ack_id
            self._expired[ack_id] = delivery
        if self._rest(delivery, now_ns) is None:
            # A refused message goes to the back: one that is refused again and again must not keep the others from
            # being delivered. One that expired was given before all that wait.
            (self._waiting.appendleft if expired else self._waiting.append)(delivery)

    def _give_up(self, delivery: Delivery) -> bool:
        """Hand over a dead letter, if it is one."""
        policy = self.settings.dead_letter
        if policy is None or delivery.failures < policy.max_delivery_attempts:
            return False
        self._backlog_bytes -= len(delivery.message.encoded)
        self._dead_letters.append(DeadLetter(self, delivery, policy.topic_name))
        return True

    def _rest(self, delivery: Delivery, now_ns: int) -> int | None:
        """Let a delivery rest, if the retry policy says so; return until when."""
        policy = self.settings.retry
        backoff_ns = policy.backoff_ns(delivery.failures) if policy is not None else 0
        if not backoff_ns:
            return None
        self._rest_count += 1
        heappush(self._resting, (now_ns + backoff_ns, self._rest_count, delivery))
        self._expect_expiry(now_ns + backoff_ns)
        return now_ns + backoff_ns

    def _end_rest(self, delivery: Delivery, _: int) -> None:
        if not delivery.gone:
            self._waiting.appendleft(delivery)

    def _store(self, delivery: Delivery) -> None:
        """Let a delivery wait that did not before."""
        self._waiting.append(delivery)
        self._backlog_bytes += len(delivery.message.encoded)

    def _retain(self, message: Message) -> None:
        """Keep an acknowledged message for a seek, if the settings say so."""
        if not self._retains:
            return
        self._retained.append(message)
        self._retained_bytes += len(message.encoded)
        while self._retained_bytes > self._max_backlog_bytes:
            self._retained_bytes -= len(self._retained.popleft().encoded)
            self._counters.dropped += 1

    def _free(self, delivery: Delivery) -> None:
        """Take a delivery off its puller's flow control."""
        puller = delivery.puller
        assert puller is not None
        puller.outstanding_messages -= 1
        puller.outstanding_bytes -= len(delivery.message.encoded)
        delivery.puller = None

    def _release(self, delivery: Delivery) -> None:
        """End a lease; the caller puts the delivery back among the waiting."""
        del self._leased[delivery.ack_id]
        delivery.ack_id = ""
        self._backlog_bytes += len(delivery.message.encoded)
        self._free(delivery)

    def _forget(self, delivery: Delivery) -> None:
        """Count a message as outdated that no longer waits."""
        self._lose(delivery)
        self._counters.outdated += 1

    def _lose(self, delivery: Delivery) -> None:
        delivery.gone = True
        self._expired.pop(delivery.expired_ack_id, None)
        self._backlog_bytes -= len(delivery.message.encoded)

    def _trim(self) -> None:
        while self._backlog_bytes > self._max_backlog_bytes:
            delivery = self._waiting.popleft() if self._waiting else heappop(self._resting)[2]
            if not delivery.gone:
                self._lose(delivery)
                self._counters.dropped += 1

    def _expect_expiry(self, deadline_ns: int) -> None:
        if self.next_expiry_ns is None or deadline_ns < self.next_expiry_ns:
            self.next_expiry_ns = deadline_ns

    def _has_waiting(self) -> bool:
        return bool(self._waiting)

    def _wake_pullers(self) -> None:
        if not self._has_waiting():
            return
        for puller in tuple(self._pullers):
            if puller.has_room:
                puller.wake()
        self._pullers.rotate(-1)  # another one is first next time, so that single messages are shared too


def _number_of(message: Message) -> int:
    return message.number
