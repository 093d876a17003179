"""The methods of Pub/Sub's gRPC services over the values of `pubsub_core`. Event-loop only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.protobuf import empty_pb2
from google.pubsub_v1.types import pubsub as pubsub_types

from dry_work.clock import SECOND_NS, Clock
from dry_work.embedded import pubsub_wire as wire
from dry_work.embedded.pubsub_core import SWEEP_INTERVAL_NS, PubSubCore, Topic
from dry_work.embedded.pubsub_deliveries import Delivery, Puller
from dry_work.embedded.pubsub_messages import Message, build_dead_letter
from dry_work.embedded.pubsub_rules import RequestError, failed_precondition, invalid_argument, paginate
from dry_work.embedded.pubsub_subscription import Subscription

_log = structlog.get_logger(__name__)

PULL_WAIT_S = 20.0  # a unary pull with nothing to give answers empty after this
DROP_REPORT_INTERVAL_S = 10.0

_EMPTY = empty_pb2.Empty()


class Service:
    """The methods that are offered; event-loop only."""

    def __init__(self, core: PubSubCore, clock: Clock) -> None:
        self._core = core
        self._clock = clock
        self._next_message_id = clock.time_ns() // 1_000  # rises over restarts
        self._timers: dict[Subscription, tuple[int, asyncio.TimerHandle]] = {}
        self._reported_drops = 0
        self._next_drop_report_s = 0.0
        self._sweeper: asyncio.TimerHandle | None = None
        self._streams: set[asyncio.Event] = set()
        self.ended = False

    def start(self) -> None:
        """Look at what has grown old now and from time to time; needs the running loop."""
        self.sweep_if_due()
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_INTERVAL_NS / SECOND_NS, self.start)

    def sweep_if_due(self) -> None:
        """End what is too old, so that no request sees it."""
        time_ns = self._clock.time_ns()
        if time_ns < self._core.next_sweep_ns:
            return
        for subscription in self._core.sweep(time_ns):
            self._forget_timer(subscription)
            _log.info("pubsub subscription expired: nobody used it", subscription=subscription.name)

    def end(self) -> None:
        """Let every streaming and waiting pull end with UNAVAILABLE."""
        self.ended = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for event in self._streams:
            event.set()
        for _, timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._report_drops(at_once=True)

    async def create_topic(self, request: Any, _: Any) -> Any:
        return wire.build_topic(self._core.create_topic(*wire.parse_topic(request)))

    async def get_topic(self, request: Any, _: Any) -> Any:
        return wire.build_topic(self._core.topic(request.topic))

    async def update_topic(self, request: Any, _: Any) -> Any:
        settings = wire.parse_topic_update(request, self._core.topic(request.topic.name))
        return wire.build_topic(self._core.update_topic(request.topic.name, settings))

    async def list_topics(self, request: Any, _: Any) -> Any:
        topics = {topic.name: topic for topic in self._core.topics(request.project)}
        names, token = paginate(list(topics), request.page_size, request.page_token)
        answer = pubsub_types.ListTopicsResponse.pb()(next_page_token=token)
        answer.topics.extend(wire.build_topic(topics[name]) for name in names)
        return answer

    async def list_topic_subscriptions(self, request: Any, _: Any) -> Any:
        topic = self._core.topic(request.topic)
        names, token = paginate(sorted(topic.subscriptions), request.page_size, request.page_token)
        return pubsub_types.ListTopicSubscriptionsResponse.pb()(subscriptions=names, next_page_token=token)

    async def list_topic_snapshots(self, request: Any, _: Any) -> Any:
        topic = self._core.topic(request.topic)
        names, token = paginate(sorted(topic.snapshots), request.page_size, request.page_token)
        return pubsub_types.ListTopicSnapshotsResponse.pb()(snapshots=names, next_page_token=token)

    async def delete_topic(self, request: Any, _: Any) -> Any:
        self._core.delete_topic(request.topic)
        return _EMPTY

    async def publish(self, data: bytes, _: Any) -> Any:
        publication = wire.parse_publish(data)
        messages = self._publish(self._core.topic(publication.topic_name), publication)
        self._report_drops()
        return wire.PublishResponsePb(message_ids=[message.message_id for message in messages])

    async def create_subscription(self, request: Any, _: Any) -> Any:
        name, topic, settings = wire.parse_subscription(request)
        return wire.build_subscription(
            self._core.create_subscription(name, topic, settings, time_ns=self._clock.time_ns())
        )

    async def get_subscription(self, request: Any, _: Any) -> Any:
        return wire.build_subscription(self._core.subscription(request.subscription))

    async def update_subscription(self, request: Any, _: Any) -> Any:
        name = request.subscription.name
        settings = wire.parse_subscription_update(request, self._core.subscription(name))
        return wire.build_subscription(self._core.update_subscription(name, settings, time_ns=self._clock.time_ns()))

    async def modify_push_config(self, request: Any, _: Any) -> Any:
        self._core.subscription(request.subscription)
        wire.check_push_config(request.push_config)
        return _EMPTY

    async def list_subscriptions(self, request: Any, _: Any) -> Any:
        found = {subscription.name: subscription for subscription in self._core.subscriptions(request.project)}
        names, token = paginate(list(found), request.page_size, request.page_token)
        answer = pubsub_types.ListSubscriptionsResponse.pb()(next_page_token=token)
        answer.subscriptions.extend(wire.build_subscription(found[name]) for name in names)
        return answer

    async def delete_subscription(self, request: Any, _: Any) -> Any:
        self._forget_timer(self._core.delete_subscription(request.subscription))
        return _EMPTY

    async def detach_subscription(self, request: Any, _: Any) -> Any:
        self._forget_timer(self._core.detach_subscription(request.subscription))
        return pubsub_types.DetachSubscriptionResponse.pb()()

    async def seek(self, request: Any, _: Any) -> Any:
        target = request.WhichOneof("target")
        if target == "time":
            time_ns = request.time.seconds * SECOND_NS + request.time.nanos
            subscription = self._core.seek_to_time(request.subscription, time_ns)
        elif target == "snapshot":
            subscription = self._core.seek_to_snapshot(request.subscription, request.snapshot)
        else:
            raise invalid_argument("The seek has no target; it must have a time or a snapshot.")
        self._touch(subscription)
        self._report_drops()
        return pubsub_types.SeekResponse.pb()()

    async def create_snapshot(self, request: Any, _: Any) -> Any:
        arguments = wire.parse_snapshot_request(request)
        snapshot = self._core.create_snapshot(*arguments, time_ns=self._clock.time_ns())
        self._touch(self._core.subscription(request.subscription))
        return wire.build_snapshot(snapshot)

    async def get_snapshot(self, request: Any, _: Any) -> Any:
        return wire.build_snapshot(self._core.snapshot(request.snapshot))

    async def list_snapshots(self, request: Any, _: Any) -> Any:
        found = {snapshot.name: snapshot for snapshot in self._core.snapshots(request.project)}
        names, token = paginate(list(found), request.page_size, request.page_token)
        answer = pubsub_types.ListSnapshotsResponse.pb()(next_page_token=token)
        answer.snapshots.extend(wire.build_snapshot(found[name]) for name in names)
        return answer

    async def update_snapshot(self, request: Any, _: Any) -> Any:
        name = request.snapshot.name
        labels, expire_ns = wire.parse_snapshot_update(request, self._core.snapshot(name))
        return wire.build_snapshot(self._core.update_snapshot(name, labels, expire_ns, time_ns=self._clock.time_ns()))

    async def delete_snapshot(self, request: Any, _: Any) -> Any:
        self._core.delete_snapshot(request.snapshot)
        return _EMPTY

    async def acknowledge(self, request: Any, _: Any) -> Any:
        wire.check_ack_request(request)
        subscription = self._core.subscription(request.subscription)
        subscription.acknowledge(request.ack_ids)
        self._touch(subscription)
        return _EMPTY

    async def modify_ack_deadline(self, request: Any, _: Any) -> Any:
        wire.check_ack_request(request)
        subscription = self._core.subscription(request.subscription)
        now_ns = self._now_ns()
        for ack_id in request.ack_ids:
            subscription.modify_deadline(ack_id, request.ack_deadline_seconds, now_ns)
        self._touch(subscription)
        self._follow_up(subscription)
        return _EMPTY

    async def pull(self, request: Any, context: Any) -> bytes:
        """Give what waits; with nothing there wait for it, a while."""
        subscription = self._core.subscription(request.subscription)
        if request.max_messages <= 0:
            raise invalid_argument(f"max_messages is {request.max_messages}; it must be at least 1.")
        self._check_open(subscription)
        arrived = asyncio.Event()
        puller = Puller(
            max_messages=request.max_messages,
            max_bytes=0,
            ack_deadline_s=subscription.settings.ack_deadline_s,
            wake=arrived.set,
        )
        left_s = context.time_remaining()
        wait_s = PULL_WAIT_S if left_s is None else min(PULL_WAIT_S, max(0.0, left_s - 1.0))
        subscription.open(puller)
        self._streams.add(arrived)
        try:
            deliveries = self._take(subscription, puller)
            if not deliveries and not request.return_immediately:
                arrived.clear()
                try:
                    await asyncio.wait_for(arrived.wait(), wait_s)
                except TimeoutError:
                    return b""
                self._check_open(subscription)
                deliveries = self._take(subscription, puller)
            return wire.encode_deliveries(deliveries)
        finally:
            self._streams.discard(arrived)
            subscription.close(puller, self._clock.time_ns())

    async def streaming_pull(self, requests: AsyncIterator[Any], context: Any) -> None:
        """Send what waits, within the flow control of the first request, until the client or the subscription ends."""
        first = await anext(aiter(requests), None)
        if first is None:
            return
        subscription = wire.find_subscription(self._core, first)
        arrived = asyncio.Event()
        puller = Puller(
            max_messages=first.max_outstanding_messages,
            max_bytes=first.max_outstanding_bytes,
            ack_deadline_s=first.stream_ack_deadline_seconds,
            wake=arrived.set,
        )
        self._check_open(subscription)
        wire.apply_acks(subscription, first, self._now_ns())
        self._follow_up(subscription)
        subscription.open(puller)
        self._streams.add(arrived)
        reader = asyncio.create_task(
            self._read_acks(requests, subscription, puller), name=f"pubsub acks {subscription.name}"
        )

        def end(done: asyncio.Task[None]) -> None:
            arrived.set()
            if not done.cancelled():
                done.exception()  # seen, even when the stream ends for another reason at the same time

        reader.add_done_callback(end)
        try:
            while not reader.done():
                self._check_open(subscription)
                deliveries = self._take(subscription, puller)
                if deliveries:
                    await context.write(
                        wire.encode_deliveries(deliveries, ordered_stream=subscription.settings.ordered)
                    )
                else:
                    arrived.clear()
                    await arrived.wait()
            await reader
        finally:
            self._streams.discard(arrived)
            subscription.close(puller, self._clock.time_ns())
            reader.cancel()

    async def _read_acks(self, requests: AsyncIterator[Any], subscription: Subscription, puller: Puller) -> None:
        async for request in requests:
            wire.check_later_request(request)
            if request.stream_ack_deadline_seconds:
                puller.set_ack_deadline(request.stream_ack_deadline_seconds)
            wire.apply_acks(subscription, request, self._now_ns())
            self._follow_up(subscription)

    def _check_open(self, subscription: Subscription) -> None:
        if subscription.deleted:
            raise RequestError("NOT_FOUND", f"Subscription was deleted (resource={subscription.name}).")
        if subscription.detached:
            raise failed_precondition(f"The subscription is detached (resource={subscription.name}).")
        if self.ended:
            raise RequestError("UNAVAILABLE", "The Pub/Sub server is stopping; try again.")

    def _now_ns(self) -> int:
        return int(self._clock.monotonic() * SECOND_NS)

    def _touch(self, subscription: Subscription) -> None:
        subscription.last_used_ns = self._clock.time_ns()

    def _publish(self, topic: Topic, publication: wire.Publication) -> list[Message]:
        messages, attributes = publication.stamp(self._next_message_id, self._clock.time_ns())
        self._next_message_id += len(messages)
        self._core.publish(topic, messages, attributes)
        return messages

    def _take(self, subscription: Subscription, puller: Puller) -> list[Delivery]:
        now_ns = self._now_ns()
        subscription.expire(now_ns)
        deliveries = subscription.take(puller, now_ns)
        self._follow_up(subscription)
        return deliveries

    def _follow_up(self, subscription: Subscription) -> None:
        """Forward dead letters, and see to it that the subscription is looked at when its next lease may end."""
        if self._core.dead_letters:
            self._forward_dead_letters()
        due_ns = subscription.next_expiry_ns
        current = self._timers.get(subscription)
        if due_ns is None or self.ended or (current is not None and current[0] <= due_ns):
            return
        if current is not None:
            current[1].cancel()
        delay_s = max(0, due_ns - self._now_ns()) / SECOND_NS
        timer = asyncio.get_running_loop().call_later(delay_s, self._expire_leases, subscription)
        self._timers[subscription] = (due_ns, timer)

    def _expire_leases(self, subscription: Subscription) -> None:
        self._timers.pop(subscription, None)
        if not subscription.deleted:
            subscription.expire(self._now_ns())
            self._follow_up(subscription)

    def _forget_timer(self, subscription: Subscription) -> None:
        timer = self._timers.pop(subscription, None)
        if timer is not None:
            timer[1].cancel()

    def _forward_dead_letters(self) -> None:
        letters = self._core.dead_letters
        while letters:
            letter = letters.popleft()
            delivery = letter.delivery
            if not self._core.has_topic(letter.topic_name):
                letter.subscription.put_back(delivery)
                continue
            message = build_dead_letter(delivery.message, letter.subscription.name, delivery.failures)
            self._publish(self._core.topic(letter.topic_name), wire.Publication(letter.topic_name, [message]))
            letter.subscription.settle_dead_letter(delivery)

    def _report_drops(self, *, at_once: bool = False) -> None:
        """Log what was dropped since the last report; many drops make one line every now and then."""
        dropped = self._core.counters.dropped
        now_s = self._clock.monotonic()
        if dropped > self._reported_drops and (at_once or now_s >= self._next_drop_report_s):
            _log.warning(
                "pubsub messages dropped: more than max_backlog_bytes waited in a subscription",
                dropped=dropped - self._reported_drops,
                dropped_in_all=dropped,
            )
            self._reported_drops = dropped
            self._next_drop_report_s = now_s + DROP_REPORT_INTERVAL_S


class Handlers(grpc.GenericRpcHandler):
    """Finds the method of a call; what is not offered is refused by name."""

    def __init__(self, service: Service) -> None:
        types = pubsub_types
        publisher = {
            "CreateTopic": (service.create_topic, types.Topic),
            "GetTopic": (service.get_topic, types.GetTopicRequest),
            "UpdateTopic": (service.update_topic, types.UpdateTopicRequest),
            "ListTopics": (service.list_topics, types.ListTopicsRequest),
            "ListTopicSubscriptions": (service.list_topic_subscriptions, types.ListTopicSubscriptionsRequest),
            "ListTopicSnapshots": (service.list_topic_snapshots, types.ListTopicSnapshotsRequest),
            "DetachSubscription": (service.detach_subscription, types.DetachSubscriptionRequest),
            "DeleteTopic": (service.delete_topic, types.DeleteTopicRequest),
            "Publish": (service.publish, None),
        }
        subscriber = {
            "CreateSubscription": (service.create_subscription, types.Subscription),
            "GetSubscription": (service.get_subscription, types.GetSubscriptionRequest),
            "UpdateSubscription": (service.update_subscription, types.UpdateSubscriptionRequest),
            "ModifyPushConfig": (service.modify_push_config, types.ModifyPushConfigRequest),
            "ListSubscriptions": (service.list_subscriptions, types.ListSubscriptionsRequest),
            "DeleteSubscription": (service.delete_subscription, types.DeleteSubscriptionRequest),
            "Seek": (service.seek, types.SeekRequest),
            "CreateSnapshot": (service.create_snapshot, types.CreateSnapshotRequest),
            "GetSnapshot": (service.get_snapshot, types.GetSnapshotRequest),
            "ListSnapshots": (service.list_snapshots, types.ListSnapshotsRequest),
            "UpdateSnapshot": (service.update_snapshot, types.UpdateSnapshotRequest),
            "DeleteSnapshot": (service.delete_snapshot, types.DeleteSnapshotRequest),
            "Acknowledge": (service.acknowledge, types.AcknowledgeRequest),
            "ModifyAckDeadline": (service.modify_ack_deadline, types.ModifyAckDeadlineRequest),
            "Pull": (service.pull, types.PullRequest),
        }
        self._handlers = {}
        for service_name, methods in (("Publisher", publisher), ("Subscriber", subscriber)):
            for method_name, (method, request_type) in methods.items():
                self._handlers[f"/google.pubsub.v1.{service_name}/{method_name}"] = grpc.unary_unary_rpc_method_handler(
                    _refusing(method, service),
                    request_deserializer=None if request_type is None else request_type.pb().FromString,
                    response_serializer=_serialize,
                )
        self._handlers["/google.pubsub.v1.Subscriber/StreamingPull"] = grpc.stream_stream_rpc_method_handler(
            _refusing(service.streaming_pull, service),
            request_deserializer=types.StreamingPullRequest.pb().FromString,
            response_serializer=None,
        )

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        handler = self._handlers.get(call.method)
        if handler is not None:
            return handler
        name = call.method.removeprefix("/")

        async def refuse(_: bytes, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{name} is not offered by this Pub/Sub server.")

        return grpc.unary_unary_rpc_method_handler(refuse)


def _refusing(method: Callable[[Any, Any], Awaitable[Any]], service: Service) -> Callable[[Any, Any], Awaitable[Any]]:
    """Return the method with its `RequestError` turned into the call's status."""

    async def call(request: Any, context: Any) -> Any:
        try:
            service.sweep_if_due()
            return await method(request, context)
        except RequestError as error:
            await context.abort(grpc.StatusCode[error.code], error.message)

    return call


def _serialize(answer: Any) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()
