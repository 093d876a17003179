"""A Pub/Sub server in this process: real gRPC, to which the unmodified Google clients talk.

It speaks google.pubsub.v1 Publisher and Subscriber for pull subscriptions: topics and subscriptions (create, get,
list, delete), publish, streaming and unary pull, acknowledge, ack deadlines, filters, labels. What it does not offer it
answers with UNIMPLEMENTED, naming the method or the field. Everything is in memory and ends with the process.

`EmbeddedPubSub` may be used from any thread. It runs in one thread of its own with an event loop; nothing else touches
the topics and subscriptions.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc
import msgspec
import structlog
from google.protobuf import empty_pb2
from google.pubsub_v1.types import pubsub as pubsub_types

from dry_work.clock import SECOND_NS, Clock, SystemClock
from dry_work.embedded import pubsub_wire as wire
from dry_work.embedded.pubsub_core import PubSubCore, Puller, Subscription
from dry_work.embedded.pubsub_rules import RequestError, invalid_argument, paginate
from dry_work.errors import ConfigError

_log = structlog.get_logger(__name__)

DEFAULT_MAX_BACKLOG_BYTES = 256_000_000
START_TIMEOUT_S = 10.0
PULL_WAIT_S = 20.0  # a unary pull with nothing to give answers empty after this
STOP_GRACE_S = 0.5
DROP_REPORT_INTERVAL_S = 10.0

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a silent share
    ("grpc.max_receive_message_length", 32_000_000),  # above the limit of a publish request, so that we refuse it
    ("grpc.max_send_message_length", -1),
    # Google's clients ping every 30 s, idle or not; gRPC's default would end their connections for it.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)

_EMPTY = empty_pb2.Empty()


class EmbeddedPubSub:
    """A Pub/Sub server on a local port.

    Args:
        host: address to listen on. There is no authentication: think twice before you leave the loopback.
        port: 0 takes any free port; `port` holds the real one after `start`.
        topics: full names (`projects/p/topics/t`) that exist from the start.
        max_backlog_bytes: bound of the messages that wait for delivery, per subscription. Beyond it the oldest are
            dropped, counted and reported in the log. What is delivered and not yet acknowledged is bounded by the
            subscriber's flow control.
        on_failure: called once, from the server's thread, if that thread dies.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        topics: Sequence[str] = (),
        max_backlog_bytes: int = DEFAULT_MAX_BACKLOG_BYTES,
        on_failure: Callable[[BaseException], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not 0 <= port <= 65_535:
            raise ConfigError(f"port {port} is not a TCP port; it must be 0 to 65535")
        if max_backlog_bytes < wire.MAX_PUBLISH_BYTES:
            raise ConfigError(
                f"a backlog of {max_backlog_bytes} bytes does not hold one large message; "
                f"it must be at least {wire.MAX_PUBLISH_BYTES}"
            )
        self.host = host
        self.port = port
        self._core = PubSubCore(max_backlog_bytes=max_backlog_bytes, nonce=secrets.randbits(63))
        self._clock = clock if clock is not None else SystemClock()
        self._on_failure = on_failure
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._listening = threading.Event()
        self._start_error: BaseException | None = None
        for name in topics:
            try:
                self._core.create_topic(name)
            except RequestError as error:
                raise ConfigError(f"the topic {name} cannot be created: {error.message}") from error

    @property
    def target(self) -> str:
        """What `PUBSUB_EMULATOR_HOST` is to be set to on this machine."""
        return _join_address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host), self.port)  # noqa: S104

    def start(self) -> None:
        """Listen; return when clients can connect.

        Raises:
            ConfigError: the port is in use, or the host is not one of this machine.
        """
        if self._thread is not None:
            raise RuntimeError("the Pub/Sub server was started already")
        self._thread = threading.Thread(target=self._run, name="embedded-pubsub", daemon=True)
        self._thread.start()
        if not self._listening.wait(START_TIMEOUT_S):
            self.stop()
            raise ConfigError(f"the Pub/Sub server did not listen on {self.target} within {START_TIMEOUT_S:g} s")
        if self._start_error is not None:
            self._thread.join()
            raise self._start_error

    def stop(self, timeout_s: float = 5.0) -> None:
        """End all streams with UNAVAILABLE, which clients answer by trying again, and free the port. Idempotent."""
        thread, loop, stopping = self._thread, self._loop, self._stopping
        if thread is None or thread is threading.current_thread():
            return
        if loop is not None and stopping is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the thread is done
                loop.call_soon_threadsafe(stopping.set)
        thread.join(timeout_s)
        if thread.is_alive():
            _log.warning("pubsub server did not stop in time", timeout_s=timeout_s)

    def counters(self) -> Mapping[str, int]:
        """Messages published, filtered, delivered, expired, acknowledged and dropped since the start."""
        return msgspec.structs.asdict(self._core.counters)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if not self._listening.is_set():
                self._start_error = error
                return
            _log.exception("pubsub server failed")
            if self._on_failure is not None:
                self._on_failure(error)
        finally:
            self._listening.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        address = _join_address(self.host, self.port)
        service = _Service(self._core, self._clock)
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((_Handlers(service),))
        try:
            _check_address(self.host, self.port)  # says why; gRPC only says that it failed, and on stderr
            port = server.add_insecure_port(address)
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "the port is in use"
            raise ConfigError(
                f"the Pub/Sub server cannot listen on {address}: {reason}; choose another --port or --host"
            ) from error
        await server.start()
        self.port = port
        self._listening.set()
        try:
            await self._stopping.wait()
        finally:
            service.end()
            await server.stop(STOP_GRACE_S)


def _join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_address(host: str, port: int) -> None:
    """Raise OSError when nobody can listen there now."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


class _Service:
    """The methods that are offered; event-loop only."""

    def __init__(self, core: PubSubCore, clock: Clock) -> None:
        self._core = core
        self._clock = clock
        self._next_message_id = clock.time_ns() // 1_000  # rises over restarts
        self._timers: dict[Subscription, tuple[int, asyncio.TimerHandle]] = {}
        self._reported_drops = 0
        self._next_drop_report_s = 0.0
        self._streams: set[asyncio.Event] = set()
        self.ended = False

    def end(self) -> None:
        """Let every streaming and waiting pull end with UNAVAILABLE."""
        self.ended = True
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

    async def delete_topic(self, request: Any, _: Any) -> Any:
        self._core.delete_topic(request.topic)
        return _EMPTY

    async def publish(self, data: bytes, _: Any) -> Any:
        publication = wire.parse_publish(data)
        topic = self._core.topic(publication.topic_name)
        messages, attributes = publication.stamp(self._next_message_id, self._clock.time_ns())
        self._next_message_id += len(messages)
        self._core.publish(topic, messages, attributes)
        self._report_drops()
        return wire.PublishResponsePb(message_ids=[message.message_id for message in messages])

    async def create_subscription(self, request: Any, _: Any) -> Any:
        return wire.build_subscription(self._core.create_subscription(*wire.parse_subscription(request)))

    async def get_subscription(self, request: Any, _: Any) -> Any:
        return wire.build_subscription(self._core.subscription(request.subscription))

    async def list_subscriptions(self, request: Any, _: Any) -> Any:
        found = {subscription.name: subscription for subscription in self._core.subscriptions(request.project)}
        names, token = paginate(list(found), request.page_size, request.page_token)
        answer = pubsub_types.ListSubscriptionsResponse.pb()(next_page_token=token)
        answer.subscriptions.extend(wire.build_subscription(found[name]) for name in names)
        return answer

    async def delete_subscription(self, request: Any, _: Any) -> Any:
        subscription = self._core.delete_subscription(request.subscription)
        timer = self._timers.pop(subscription, None)
        if timer is not None:
            timer[1].cancel()
        return _EMPTY

    async def acknowledge(self, request: Any, _: Any) -> Any:
        self._core.subscription(request.subscription).acknowledge(request.ack_ids)
        return _EMPTY

    async def modify_ack_deadline(self, request: Any, _: Any) -> Any:
        subscription = self._core.subscription(request.subscription)
        now_ns = self._now_ns()
        for ack_id in request.ack_ids:
            subscription.modify_deadline(ack_id, request.ack_deadline_seconds, now_ns)
        self._watch_leases(subscription)
        return _EMPTY

    async def pull(self, request: Any, context: Any) -> bytes:
        """Give what waits; with nothing there wait for it, a while."""
        subscription = self._core.subscription(request.subscription)
        if request.max_messages <= 0:
            raise invalid_argument(f"max_messages is {request.max_messages}; it must be at least 1.")
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
            deliveries = subscription.take(puller, self._now_ns())
            if not deliveries and not request.return_immediately:
                arrived.clear()
                try:
                    await asyncio.wait_for(arrived.wait(), wait_s)
                except TimeoutError:
                    return b""
                self._check_open(subscription)
                deliveries = subscription.take(puller, self._now_ns())
            self._watch_leases(subscription)
            return wire.encode_deliveries(deliveries)
        finally:
            self._streams.discard(arrived)
            subscription.close(puller)

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
        wire.apply_acks(subscription, first, self._now_ns())
        self._watch_leases(subscription)
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
                deliveries = subscription.take(puller, self._now_ns())
                if deliveries:
                    self._watch_leases(subscription)
                    await context.write(wire.encode_deliveries(deliveries))
                else:
                    arrived.clear()
                    await arrived.wait()
            await reader
        finally:
            self._streams.discard(arrived)
            subscription.close(puller)
            reader.cancel()

    async def _read_acks(self, requests: AsyncIterator[Any], subscription: Subscription, puller: Puller) -> None:
        async for request in requests:
            wire.check_later_request(request)
            if request.stream_ack_deadline_seconds:
                puller.set_ack_deadline(request.stream_ack_deadline_seconds)
            wire.apply_acks(subscription, request, self._now_ns())
            self._watch_leases(subscription)

    def _check_open(self, subscription: Subscription) -> None:
        if subscription.deleted:
            raise RequestError("NOT_FOUND", f"Subscription was deleted (resource={subscription.name}).")
        if self.ended:
            raise RequestError("UNAVAILABLE", "The Pub/Sub server is stopping; try again.")

    def _now_ns(self) -> int:
        return int(self._clock.monotonic() * SECOND_NS)

    def _watch_leases(self, subscription: Subscription) -> None:
        """See to it that the subscription looks at its leases when the first may have ended."""
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
            self._watch_leases(subscription)

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


class _Handlers(grpc.GenericRpcHandler):
    """Finds the method of a call; what is not offered is refused by name."""

    def __init__(self, service: _Service) -> None:
        types = pubsub_types
        publisher = {
            "CreateTopic": (service.create_topic, types.Topic),
            "GetTopic": (service.get_topic, types.GetTopicRequest),
            "ListTopics": (service.list_topics, types.ListTopicsRequest),
            "ListTopicSubscriptions": (service.list_topic_subscriptions, types.ListTopicSubscriptionsRequest),
            "DeleteTopic": (service.delete_topic, types.DeleteTopicRequest),
            "Publish": (service.publish, None),
        }
        subscriber = {
            "CreateSubscription": (service.create_subscription, types.Subscription),
            "GetSubscription": (service.get_subscription, types.GetSubscriptionRequest),
            "ListSubscriptions": (service.list_subscriptions, types.ListSubscriptionsRequest),
            "DeleteSubscription": (service.delete_subscription, types.DeleteSubscriptionRequest),
            "Acknowledge": (service.acknowledge, types.AcknowledgeRequest),
            "ModifyAckDeadline": (service.modify_ack_deadline, types.ModifyAckDeadlineRequest),
            "Pull": (service.pull, types.PullRequest),
        }
        self._handlers = {}
        for service_name, methods in (("Publisher", publisher), ("Subscriber", subscriber)):
            for method_name, (method, request_type) in methods.items():
                self._handlers[f"/google.pubsub.v1.{service_name}/{method_name}"] = grpc.unary_unary_rpc_method_handler(
                    _refusing(method),
                    request_deserializer=None if request_type is None else request_type.pb().FromString,
                    response_serializer=_serialize,
                )
        self._handlers["/google.pubsub.v1.Subscriber/StreamingPull"] = grpc.stream_stream_rpc_method_handler(
            _refusing(service.streaming_pull),
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


def _refusing(method: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    """Return the method with its `RequestError` turned into the call's status."""

    async def call(request: Any, context: Any) -> Any:
        try:
            return await method(request, context)
        except RequestError as error:
            await context.abort(grpc.StatusCode[error.code], error.message)

    return call


def _serialize(answer: Any) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()
