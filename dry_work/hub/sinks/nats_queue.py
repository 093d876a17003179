"""Actions taken from a consumer of NATS, worked on, and acknowledged when their outcome is known. Event-loop only.

Several are under way at a time; those of one symbol one after another. While an action is worked on the server is told
so and does not deliver it again. An action whose worker dies is delivered again, three times; the sweep sees to what is
left after that, and to what no consumer takes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api
from nats.js.errors import NotFoundError

from dry_work.clock import Clock
from dry_work.errors import CodecError
from dry_work.hub.sinks.nats_actions import (
    GAVE_UP,
    ActionDesk,
    ActionStoppedError,
    Outcome,
    encode_result,
    refuse_unmatched,
)
from dry_work.hub.sinks.nats_link import FAILURES, NatsLink, end_tasks
from dry_work.hub.sinks.nats_settings import NatsSettings
from dry_work.hub.sinks.nats_topology import Topology
from dry_work.observability.tracing import Span, trace
from dry_work.wire.nats_subjects import CANCEL, CANCEL_ALL, Action
from dry_work.wire.protobuf_tradesvc import decode_trade

IN_FLIGHT = 8  # actions of a consumer under way at a time
FETCH_S = 1.0
RETRY_WAIT_S = 0.2
SWEEP_LIMIT = 256  # messages of one sweep

ACK, NAK, TERM = b"+ACK", b"-NAK", b"+TERM"

_log = structlog.get_logger(__name__)


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A message of the action stream as it was delivered."""

    subject: str
    data: bytes
    reply: str
    sequence: int  # in the stream
    deliveries: int
    incarnation: str  # of the stream

    @property
    def key(self) -> tuple[str, int]:
        """The same for every delivery of a message, and for no other message."""
        return self.incarnation, self.sequence


class ResultPublisher:
    """Tells senders what became of their actions."""

    def __init__(self, link: NatsLink, settings: NatsSettings, *, clock: Clock) -> None:
        self._link = link
        self._settings = settings
        self._clock = clock
        self.outcomes: Counter[str] = Counter()
        self.results: Counter[tuple[str, str]] = Counter()  # by action (order, cancel, cancel_all, …) and outcome

    async def publish(self, action: Action, outcome: Outcome, *, once_as: str = "") -> None:
        """Publish a result, however often it takes; `once_as` tells NATS two of the same apart from two."""
        subject = self._settings.subjects.result(action.token)
        data = encode_result(action, outcome, at_ns=self._clock.time_ns())
        headers = {api.Header.MSG_ID.value: once_as} if once_as else None
        while True:
            try:
                await self._link.attempt(self._link.context().publish(subject, data, headers=headers))
            except FAILURES as error:
                _log.debug("result not published", subject=subject, error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(RETRY_WAIT_S)
                await self._link.wait_connected()
            else:
                self.outcomes[outcome.outcome] += 1
                is_all = action.kind == CANCEL and action.token.upper() == CANCEL_ALL
                self.results["cancel_all" if is_all else action.kind, outcome.outcome] += 1
                return


class ActionQueue:
    """The actions of one consumer."""

    def __init__(
        self,
        consumer: str,
        *,
        link: NatsLink,
        desk: ActionDesk,
        results: ResultPublisher,
        topology: Topology,
        settings: NatsSettings,
    ) -> None:
        self.consumer = consumer
        self._link = link
        self._desk = desk
        self._results = results
        self._topology = topology
        self._settings = settings
        self._subjects = settings.subjects
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}  # by message
        self._last: dict[str, asyncio.Task[None]] = {}  # by what must keep its order
        self._room = asyncio.Event()
        self._room.set()
        self._is_stopping = False

    @property
    def in_flight(self) -> set[int]:
        """Sequences of the actions under way."""
        return {sequence for incarnation, sequence in self._tasks if incarnation == self._topology.incarnation}

    async def run(self, js: JetStreamContext) -> None:
        """Take actions until cancelled, or until NATS does not go on.

        Raises:
            nats.errors.Error: NATS failed.
        """
        subscription = await js.pull_subscribe_bind(self.consumer, stream=self._settings.action_stream)
        try:
            while not self._is_stopping:
                await self._room.wait()
                try:
                    messages = await subscription.fetch(IN_FLIGHT - len(self._tasks), timeout=FETCH_S)
                except TimeoutError:
                    continue
                for message in messages:
                    self._begin(_read(message, self._topology.incarnation))
        finally:
            await self._hand_back(subscription)

    async def _hand_back(self, subscription: Any) -> None:
        """Give back what was delivered and not begun."""
        waiting = subscription._sub._pending_queue
        with contextlib.suppress(*FAILURES):
            while not waiting.empty():
                message = waiting.get_nowait()
                if message.reply:
                    await self._link.settle(message.reply, NAK)
            await subscription.unsubscribe()

    async def finish(self, timeout_s: float) -> None:
        """Let the actions under way come to their end, at most `timeout_s` seconds long, and no other begin."""
        self._is_stopping = True
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        await end_tasks(tasks)

    def _begin(self, delivery: Delivery) -> None:
        if delivery.key in self._tasks:  # delivered again while it is worked on: the server was not told in time
            return
        key = self._key_of(delivery)
        task = asyncio.create_task(self._work(delivery, self._last.get(key)), name=f"hub-nats-action-{key}")
        self._tasks[delivery.key] = self._last[key] = task

        def forget(_: object) -> None:
            del self._tasks[delivery.key]
            if self._last.get(key) is task:
                del self._last[key]
            self._room.set()

        task.add_done_callback(forget)
        if len(self._tasks) >= IN_FLIGHT:
            self._room.clear()

    def _key_of(self, delivery: Delivery) -> str:
        action = self._subjects.parse_action(delivery.subject)
        if action.kind == CANCEL:
            return CANCEL
        try:
            return str(decode_trade(delivery.data, client_order_id=action.token)["symbol"])
        except CodecError:
            return f"message {delivery.sequence}"

    async def _work(self, delivery: Delivery, before: asyncio.Task[None] | None) -> None:
        keeping = asyncio.create_task(self._keep(delivery.reply))
        try:
            if before is not None and not before.done():
                await asyncio.wait([before])
            with trace("nats.action", nats_subject=delivery.subject, nats_deliveries=delivery.deliveries) as span:
                await self._carry_out(delivery, span)
        except ActionStoppedError:
            await self._link.settle(delivery.reply, NAK)
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("an action failed in the hub", subject=delivery.subject)
        finally:
            keeping.cancel()

    async def _carry_out(self, delivery: Delivery, span: Span) -> None:
        if self._is_stopping:
            raise ActionStoppedError
        action = self._subjects.parse_action(delivery.subject)
        outcome = await self._desk.run(action, delivery.data, deliveries=delivery.deliveries)
        if outcome is None:
            if delivery.deliveries < self._topology.max_deliver:
                await self._link.settle(delivery.reply, NAK)
                return
            outcome = self._desk.give_up(action)
        span.set(action_kind=action.kind, action_outcome=outcome.outcome, order_id=outcome.order_id)
        with trace("nats.result"):
            await self._results.publish(action, outcome)
        is_final = outcome.outcome in ("accepted", "duplicate")
        await self._settle(delivery, ACK if is_final else TERM)

    async def _settle(self, delivery: Delivery, answer: bytes) -> None:
        """Acknowledge; when the server does not take it, it delivers again, and the outcome is `duplicate`."""
        for _ in range(3):
            if await self._link.settle(delivery.reply, answer):
                return
            await self._link.wait_connected()
            if delivery.incarnation != self._topology.incarnation:
                return  # NATS has forgotten the message
            await asyncio.sleep(RETRY_WAIT_S)
        _log.warning("an action's acknowledgement was not taken", subject=delivery.subject)

    async def _keep(self, reply: str) -> None:
        while True:
            await asyncio.sleep(self._topology.ack_wait_s / 3)
            await self._link.keep(reply)


class Sweep:
    """Finds the actions that nobody takes any more, and tells their senders.

    Args:
        queues: by consumer, those whose part is ours now; called for each sweep.
    """

    def __init__(
        self,
        queues: Callable[[], list[ActionQueue]],
        *,
        desk: ActionDesk,
        results: ResultPublisher,
        topology: Topology,
        settings: NatsSettings,
    ) -> None:
        self._queues = queues
        self._desk = desk
        self._results = results
        self._topology = topology
        self._settings = settings
        self._subjects = settings.subjects
        self._suspects: set[int] = set()

    async def run(self, js: JetStreamContext) -> None:
        """Look once.

        Raises:
            nats.errors.Error: NATS failed.
        """
        stream = self._settings.action_stream
        info = await js.stream_info(stream)
        suspects: set[int] = set()
        if info.state.messages:
            found = (await js.stream_info(stream, subjects_filter=">")).state.subjects or {}
            for subject in list(found)[:SWEEP_LIMIT]:
                if not self._subjects.parse_action(subject).is_matched:
                    await self._refuse(js, subject)
            for queue in self._queues():
                suspects |= await self._look(js, queue)
        self._suspects = suspects

    async def _refuse(self, js: JetStreamContext, subject: str) -> None:
        stream, action = self._settings.action_stream, self._subjects.parse_action(subject)
        sequence = 1
        for _ in range(SWEEP_LIMIT):
            try:
                message = await js.get_msg(stream, seq=sequence, subject=subject, next=True)
            except NotFoundError:
                return
            number = message.seq or 0
            sequence = number + 1
            if message.subject == subject:  # NATS takes a `>` that somebody has published to for all there are
                await self._end(js, number, action, refuse_unmatched(action))

    async def _look(self, js: JetStreamContext, queue: ActionQueue) -> set[int]:
        """End the actions of a consumer that are delivered no more; return what may be such a one."""
        stream = self._settings.action_stream
        before = queue.in_flight
        info = await js.consumer_info(stream, queue.consumer)
        if info.num_ack_pending or info.delivered is None:
            return set()  # some are under way, here or with a hub that is gone
        suspects: set[int] = set()
        sequence, until = 1, info.delivered.stream_seq
        for _ in range(SWEEP_LIMIT):
            try:
                message = await js.get_msg(stream, seq=sequence, subject=str(info.config.filter_subject), next=True)
            except NotFoundError:
                break
            number = message.seq or 0
            if number > until:
                break
            sequence = number + 1
            if number in before or number in queue.in_flight:
                continue
            suspects.add(number)
            if number in self._suspects:
                action = self._subjects.parse_action(str(message.subject))
                outcome = await self._desk.conclude(action, message.data or b"", attempts=self._topology.max_deliver)
                if outcome is not None:
                    await self._end(js, number, action, outcome)
                    suspects.discard(number)
        return suspects

    async def _end(self, js: JetStreamContext, sequence: int, action: Action, outcome: Outcome) -> None:
        if outcome.outcome == GAVE_UP:
            _log.warning("an action was given up", action=action.kind, token=action.token, reason=outcome.message)
        await self._results.publish(
            action, outcome, once_as=f"{self._settings.action_stream}-{sequence}-{action.token}"
        )
        with contextlib.suppress(NotFoundError):
            await js.delete_msg(self._settings.action_stream, sequence)


def _read(message: Msg, incarnation: str) -> Delivery:
    metadata = message.metadata
    return Delivery(
        subject=message.subject,
        data=message.data,
        reply=message.reply,
        sequence=metadata.sequence.stream,
        deliveries=metadata.num_delivered,
        incarnation=incarnation,
    )
