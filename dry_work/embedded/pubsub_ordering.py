"""A subscription that keeps the order of messages with the same ordering key. Pure, as `pubsub_subscription`.

The messages of a key go, in order of publishing, to one subscriber at a time: as long as it has not acknowledged all
that it was given of a key, nobody else gets more of it. When a message fails, it and all that follow it in its key wait
again, the acknowledged ones included. Keys take turns, message by message; messages without a key are in no order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from heapq import heappop

from dry_work.clock import SECOND_NS
from dry_work.embedded.pubsub_deliveries import Delivery, Puller
from dry_work.embedded.pubsub_messages import Message
from dry_work.embedded.pubsub_subscription import MAX_BATCH_BYTES, Subscription

# Bounds what is kept of a key for redelivery while its first message stays unacknowledged.
MAX_GIVEN_PER_KEY = 1_000


class _Key:
    """The messages of one ordering key; "" is that of the messages in no order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: deque[Delivery] = deque()
        self.given: deque[Delivery] = deque()  # from the oldest unacknowledged one on; never for ""
        self.puller: Puller | None = None  # the subscriber that holds what was given
        self.resting_until_ns = 0
        self.has_turn = False

    def may_give(self, puller: Puller) -> bool:
        return not self.given or (self.puller is puller and len(self.given) < MAX_GIVEN_PER_KEY)


class OrderedSubscription(Subscription):
    """A subscription with message ordering."""

    _keys: dict[str, _Key]

    def add(self, messages: Sequence[Message], attributes: Sequence[Mapping[str, str]]) -> None:
        """Take published messages that the filter lets through; `attributes` has one mapping per message."""
        for message, its_attributes in zip(messages, attributes, strict=True):
            if self._matches is not None and not self._matches(its_attributes):
                self._counters.filtered += 1
            else:
                self._store(Delivery(message))
        self._trim()
        self._wake_pullers()

    def take(self, puller: Puller, now_ns: int) -> list[Delivery]:
        """Lease waiting messages to a puller: a batch, within its flow control, its fair share and the keys' order."""
        turns = self._turns
        if not turns or not puller.has_room:
            return []
        room = self._share_of(puller, self._waiting_count())
        deadline_ns = now_ns + puller.ack_deadline_s * SECOND_NS
        batch: list[Delivery] = []
        batch_bytes = 0
        passed = 0
        while passed < len(turns) and len(batch) < room:
            key = turns[0]
            if not key.may_give(puller):
                turns.rotate(-1)
                passed += 1
                continue
            delivery = key.waiting[0]
            if delivery.message.published_ns < self._outdated_ns:
                self._forget(key.waiting.popleft())
                self._end_turn(key)
                continue
            size = len(delivery.message.encoded)
            if batch and batch_bytes + size > MAX_BATCH_BYTES:
                break
            if 0 < puller.max_bytes <= puller.outstanding_bytes:
                break
            self._lease(key.waiting.popleft(), puller, deadline_ns)
            if key.name:
                key.given.append(delivery)
                key.puller = puller
            self._end_turn(key)
            passed = 0
            batch_bytes += size
            batch.append(delivery)
        if batch:
            self._count_batch(batch, deadline_ns)
        return batch

    def forget_outdated(self, time_ns: int) -> int | None:
        """Forget what was published longer ago than the retention; return when the next will be, None for never."""
        due_ns = super().forget_outdated(time_ns)
        due = [] if due_ns is None else [due_ns]
        for key in tuple(self._keys.values()):
            while key.waiting and key.waiting[0].message.published_ns < self._outdated_ns:
                self._forget(key.waiting.popleft())
            if key.waiting:
                due.append(key.waiting[0].message.published_ns + time_ns - self._outdated_ns + 1)
            self._tidy(key)
        return min(due, default=None)

    def _clear(self) -> None:
        super()._clear()
        self._keys = {}
        self._turns: deque[_Key] = deque()

    def _deliveries(self) -> Iterator[Delivery]:
        yield from self._leased.values()
        for key in self._keys.values():
            yield from key.waiting
        # A message with a key rests among the waiting of its key, which gets no turn.
        yield from (one for _, _, one in self._resting if not one.gone and not one.message.ordering_key)

    def _acknowledged(self) -> Iterator[Message]:
        yield from super()._acknowledged()
        if self.settings.retain_acked:
            yield from (one.message for key in self._keys.values() for one in key.given if one.gone)

    def _waiting_count(self) -> int:
        return sum(len(key.waiting) for key in self._turns)

    def _has_waiting(self) -> bool:
        return bool(self._turns)

    def _store(self, delivery: Delivery) -> None:
        key = self._key_of(delivery)
        key.waiting.append(delivery)
        self._backlog_bytes += len(delivery.message.encoded)
        self._give_turn(key)

    def _settle(self, delivery: Delivery) -> None:
        delivery.gone = True
        key = self._keys.get(delivery.message.ordering_key)
        if key is None or not key.name:
            self._retain(delivery.message)
            return
        self._drop_settled(key)

    def _drop_settled(self, key: _Key) -> None:
        """Forget what was acknowledged with all before it: it cannot come again."""
        while key.given and key.given[0].gone:
            self._retain(key.given.popleft().message)
        self._tidy(key)

    def _fail(self, delivery: Delivery, now_ns: int, *, expired: bool) -> None:
        key = self._key_of(delivery)
        self._release(delivery)
        delivery.failures += 1
        if self._give_up(delivery):
            if key.name:
                key.given.remove(delivery)
            self._drop_settled(key)
            return
        while key.name and (later := key.given.pop()) is not delivery:
            if later.gone:
                later.gone = False
                self._backlog_bytes += len(later.message.encoded)
            else:
                self._release(later)
            key.waiting.appendleft(later)
        resting_until_ns = self._rest(delivery, now_ns)
        if not key.name and resting_until_ns is not None:
            return
        if key.name or expired:
            key.waiting.appendleft(delivery)
        else:
            key.waiting.append(delivery)
        if resting_until_ns is not None:
            key.resting_until_ns = max(key.resting_until_ns, resting_until_ns)
            self._take_turn(key)
        self._give_turn(key)

    def _end_rest(self, delivery: Delivery, now_ns: int) -> None:
        key = self._key_of(delivery)
        if not key.name and not delivery.gone:
            key.waiting.appendleft(delivery)
        if key.resting_until_ns <= now_ns:
            key.resting_until_ns = 0
            self._give_turn(key)
        self._tidy(key)

    def put_back(self, dead_letter: Delivery) -> None:
        """Let a dead letter wait again, first of its key: there is no topic to forward it to."""
        key = self._key_of(dead_letter)
        key.waiting.appendleft(dead_letter)
        self._backlog_bytes += len(dead_letter.message.encoded)
        self._give_turn(key)
        self._trim()
        self._wake_pullers()

    def _trim(self) -> None:
        while self._backlog_bytes > self._max_backlog_bytes:
            keys = [key for key in self._keys.values() if key.waiting]
            if keys:
                key = min(keys, key=lambda one: one.waiting[0].message.number)
                delivery = key.waiting.popleft()
                self._tidy(key)
            else:
                delivery = heappop(self._resting)[2]
                if delivery.gone or delivery.message.ordering_key:
                    continue
            self._lose(delivery)
            self._counters.dropped += 1

    def _key_of(self, delivery: Delivery) -> _Key:
        name = delivery.message.ordering_key
        key = self._keys.get(name)
        if key is None:
            key = self._keys[name] = _Key(name)
        return key

    def _give_turn(self, key: _Key) -> None:
        if key.waiting and not key.has_turn and not key.resting_until_ns:
            key.has_turn = True
            self._turns.append(key)

    def _take_turn(self, key: _Key) -> None:
        if key.has_turn:
            self._turns.remove(key)
            key.has_turn = False

    def _end_turn(self, key: _Key) -> None:
        """Let the key whose turn it was come last."""
        self._take_turn(key)
        self._give_turn(key)
        self._tidy(key)

    def _tidy(self, key: _Key) -> None:
        """Forget a key that has no messages."""
        if not key.waiting:
            self._take_turn(key)
            if not key.given:
                self._keys.pop(key.name, None)
