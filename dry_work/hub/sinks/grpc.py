"""The gRPC sink: `cream.v1.StreamProxyService` for any number of clients. Event-loop only.

Each call has a queue on the bus and writes what waits there one message after the other, as gRPC has it: a client that
does not read is stopped by HTTP/2's own flow control and costs its queue and no more. Events are encoded once for each
kind of stream and handed over as bytes. Clients that vanish without a word are found by HTTP/2 pings.

grpc.aio runs in the hub's own event loop, uvloop's included.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

import dry_work
from dry_work.errors import CodecError, ConfigError
from dry_work.hub.access import Access, Certificate
from dry_work.hub.core import OPTION_FEEDS, ConnectionState
from dry_work.hub.events import HubEvent
from dry_work.hub.ports import HubPort, SinkStatus
from dry_work.hub.sinks.grpc_calls import StreamCall
from dry_work.hub.sinks.grpc_contracts import OptionContracts
from dry_work.hub.sinks.grpc_filters import (
    KINDS,
    StreamKind,
    Wishes,
    add_statuses,
    add_watermarks,
    parse_filter,
    parse_wishes,
)
from dry_work.hub.sinks.grpc_health import SERVICE as HEALTH_SERVICE
from dry_work.hub.sinks.grpc_health import HealthService
from dry_work.hub.sinks.grpc_reflection import add_reflection
from dry_work.hub.sinks.grpc_settings import GrpcSettings
from dry_work.hub.upstreams.connection import FeedStatus
from dry_work.proto.cream.v1 import common_pb2 as common
from dry_work.proto.cream.v1 import stream_proxy_pb2 as cream
from dry_work.settings import STOCK_FEEDS
from dry_work.wire.cream import Losses, encode_offset
from dry_work.wire.cream_items import encode_item

SERVICE = "cream.v1.StreamProxyService"
KEEPALIVE_S, KEEPALIVE_TIMEOUT_S = 20.0, 10.0
CALLS_PER_CONNECTION = 1_024
REQUEST_BYTES = 4 * 1024 * 1024
CLOSE_S = 0.25  # for what has no end of its own, such as reflection

_FEED_TYPES = {
    "sip": cream.FEED_TYPE_SIP,
    "iex": cream.FEED_TYPE_IEX,
    "opra": cream.FEED_TYPE_OPRA,
    "indicative": cream.FEED_TYPE_INDICATIVE,
}

_log = structlog.get_logger(__name__)


class GrpcSink:
    """Serves market data and order updates on one port.

    Args:
        hub: gives the events.
        access: who may come, and where the port is bound.
        statuses: tells how the upstream connections stand.
        settings: port, account and capacities.
        certificate: for TLS; None: that of `access`, when it has one.
        is_ready: tells whether all that is needed is up; None: by those of `statuses` that are wanted.
        keepalive_s: a client that is quiet for so long is asked whether it is there.
        keepalive_timeout_s: one that does not answer for so long is gone.
    """

    name = "grpc"

    def __init__(
        self,
        hub: HubPort,
        *,
        access: Access,
        statuses: Callable[[], Sequence[FeedStatus]],
        settings: GrpcSettings | None = None,
        certificate: Certificate | None = None,
        is_ready: Callable[[], bool] | None = None,
        keepalive_s: float = KEEPALIVE_S,
        keepalive_timeout_s: float = KEEPALIVE_TIMEOUT_S,
    ) -> None:
        self.hub = hub
        self.settings = GrpcSettings() if settings is None else settings
        self.port = self.settings.port
        self.losses = Losses()  # what did not fit into messages
        self.malformed: Counter[str] = Counter()  # events that could not be encoded, by type of message and reason
        self.refused: Counter[str] = Counter()  # calls, by status
        self._access = access
        self._statuses = statuses
        self._certificate = certificate or access.certificate
        self._is_ready = is_ready
        self._options = _build_options(keepalive_s, keepalive_timeout_s)
        self._server: Any = None
        self._health: HealthService | None = None
        self._contracts: OptionContracts | None = None
        self._calls: dict[StreamCall, asyncio.Task[Any] | None] = {}
        self._numbers = 0
        self._ended: dict[StreamKind, Counter[str]] = {kind: Counter() for kind in KINDS}  # calls that are over
        self._started_ns = hub.clock.time_ns()
        self._is_stopping = False

    async def start(self) -> None:
        if self._access.tls is not None and self._certificate is None:
            raise ConfigError("the gRPC port needs the files of its TLS certificate, it cannot do without")
        self._started_ns = self.hub.clock.time_ns()
        self._contracts = OptionContracts(self.hub, self.settings.environment)
        server = grpc.aio.server(interceptors=(_TokenCheck(self._access, self.refused),), options=self._options)
        handlers = {kind.method: self._build_handler(kind) for kind in KINDS}
        handlers["GetConnectionStatus"] = grpc.unary_unary_rpc_method_handler(self._tell_status)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self._health = HealthService(self._check_ready, services=(SERVICE,))
        self._health.add_to(server)
        add_reflection(server, (SERVICE, HEALTH_SERVICE))
        host = f"[{self._access.host}]" if ":" in self._access.host else self._access.host
        address = f"{host}:{self.settings.port}"
        try:
            if self._certificate is None:
                self.port = server.add_insecure_port(address)
            else:
                pair = (self._certificate.key, self._certificate.chain)
                self.port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        except RuntimeError as error:
            await server.stop(None)
            raise ConfigError(
                f"the gRPC port {address} (STREAM_PROXY_GRPC_PORT) cannot be opened: another program has it, or the "
                "address or the certificate is not this machine's"
            ) from error
        await server.start()
        self._server = server

    async def stop(self, timeout_s: float) -> None:
        if self._server is None:
            return
        server, self._server = self._server, None
        self._is_stopping = True
        if self._health is not None:
            self._health.stop()
        for call in list(self._calls):
            call.end("the hub is stopping")
        tasks = [task for task in self._calls.values() if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, timeout_s - 2 * CLOSE_S))
        await server.stop(min(CLOSE_S, timeout_s))

    def status(self) -> SinkStatus:
        total: Counter[str] = Counter()
        types = self.count_messages()
        for counts in types.values():
            total.update(counts)
        return SinkStatus(
            name=self.name,
            is_ready=self._server is not None,
            clients=len(self._calls),
            offered=total["offered"],
            delivered=total["delivered"],
            conflated=total["conflated"],
            dropped=total["dropped"],
            waiting=total["waiting"],
            delivered_types={name: counts["delivered"] for name, counts in types.items()},
            dropped_types={name: counts["dropped"] for name, counts in types.items()},
        )

    def count_messages(self) -> dict[str, Counter[str]]:
        """Return offered, delivered, conflated, dropped and waiting of all clients, by type of message."""
        total = {kind.message_type: Counter(counts) for kind, counts in self._ended.items()}
        for call in self._calls:
            total[call.kind.message_type].update(call.counts())
        return total

    # --- streams

    def _build_handler(self, kind: StreamKind) -> Any:
        # No serializers: what goes out is encoded once for all clients, and what comes in is read here, with an answer
        # that says what is wrong with it.
        async def stream(request: bytes, context: Any) -> None:
            await self._stream(kind, request, context)

        return grpc.unary_stream_rpc_method_handler(stream)

    async def _stream(self, kind: StreamKind, request: bytes, context: Any) -> None:
        if self._is_stopping:
            await self._refuse(context, grpc.StatusCode.UNAVAILABLE, "the hub is stopping")
        environment = self.settings.environment
        if kind.tells_orders and self.hub.account(environment) is None:
            reason = f"the hub has no credentials for the {environment} account"
            await self._refuse(context, grpc.StatusCode.FAILED_PRECONDITION, reason)
        try:
            wishes = parse_wishes(_read_metadata(context))
            wanted = parse_filter(kind, kind.request.FromString(request), environment)
        except ConfigError as error:
            await self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except DecodeError:
            reason = f"the request is no {kind.request.DESCRIPTOR.full_name}"
            await self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, reason)
        if wishes.items and not kind.tells_orders:
            wanted = add_statuses(add_watermarks(wanted)) if wishes.statuses else add_watermarks(wanted)
        assert self._contracts is not None
        self._numbers += 1
        call = StreamCall(
            self.hub,
            kind,
            wanted,
            wishes,
            name=f"grpc-{self._numbers}",
            context=context,
            encode=lambda event: self._encode(kind, event, wishes),
            history=getattr(self.settings, kind.history),
            contracts=self._contracts,
        )
        self._calls[call] = asyncio.current_task()
        try:
            await call.run()
        finally:
            self._remove(call)

    def _encode(self, kind: StreamKind, event: HubEvent, wishes: Wishes) -> bytes:
        """Return an event's response; empty when it cannot be encoded, which is counted once."""
        encoded = b""
        if event.channel == kind.channel:  # watermarks and statuses have no message of their own
            encoded = event.encode(kind.method, lambda event: self._build(kind, event))
        if wishes.items:
            encoded += event.encode(encode_item, lambda event: encode_item(event.item))
        if wishes.offsets and encoded:
            return encoded + encode_offset(event.offset)
        return encoded

    def _build(self, kind: StreamKind, event: HubEvent) -> bytes:
        try:
            encoded: bytes = kind.build(event.item, event.event_id, self.losses).SerializeToString()
        except CodecError as error:
            name = f"{kind.message_type}: {error.reason}"
            self.malformed[name] += 1
            if self.malformed[name] == 1:
                _log.warning("an event cannot be told over gRPC", what=name, symbol=event.symbol)
            return b""
        return encoded

    def _remove(self, call: StreamCall) -> None:
        del self._calls[call]
        counts = call.counts()
        # What its client never took is lost with the call.
        counts["dropped"] += counts.pop("waiting")
        self._ended[call.kind].update(counts)

    async def _refuse(self, context: Any, code: grpc.StatusCode, reason: str) -> None:
        self.refused[code.name] += 1
        await context.abort(code, reason)

    # --- state

    def _check_ready(self) -> bool:
        if self._is_ready is not None:
            return self._is_ready()
        return all(status.state is ConnectionState.CONNECTED for status in self._statuses() if status.wanted)

    async def _tell_status(self, request: bytes, context: Any) -> bytes:
        found = {status.feed: status for status in self._statuses()}
        environment = self.settings.environment
        response = cream.GetConnectionStatusResponse()
        status = response.status
        status.version = dry_work.__version__
        _set_ns(status.started_at, self._started_ns)
        _set_ns(status.current_time, self.hub.clock.time_ns())
        for names in (STOCK_FEEDS, OPTION_FEEDS):
            name = next((name for name in names if name in found), "")
            feed = found.get(name, FeedStatus(feed=name))
            _fill_feed(status.feeds.add(), feed, _FEED_TYPES.get(name, cream.FEED_TYPE_UNSPECIFIED))
        missing = FeedStatus(feed="", error=f"the hub has no credentials for the {environment} account")
        orders = found.get(f"orders.{environment}", missing)
        _fill_feed(status.feeds.add(), orders, cream.FEED_TYPE_TRADE_UPDATES)
        status.client_count = len(self._calls)
        status.environment = common.ENVIRONMENT_LIVE if environment == "live" else common.ENVIRONMENT_PAPER
        encoded: bytes = response.SerializeToString()
        return encoded


class _TokenCheck(grpc.aio.ServerInterceptor):
    """Turns away calls without the hub's token; those that ask for its health need none."""

    def __init__(self, access: Access, refused: Counter[str]) -> None:
        self._access = access
        self._refused = refused

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        method = details.method
        if not method.startswith(f"/{HEALTH_SERVICE}/"):
            given = dict(details.invocation_metadata).get("authorization")
            if not self._access.admits_header(given if isinstance(given, str) else None):
                self._refused[grpc.StatusCode.UNAUTHENTICATED.name] += 1
                return grpc.stream_stream_rpc_method_handler(_turn_away)
        return await continuation(details)


async def _turn_away(requests: Any, context: Any) -> None:
    reason = "the hub's token is missing or wrong: give it as metadata `authorization: Bearer <token>`"
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)


def _read_metadata(context: Any) -> Mapping[str, Any]:
    return dict(context.invocation_metadata() or ())


def _build_options(keepalive_s: float, keepalive_timeout_s: float) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.so_reuseport", 0),  # a second hub on the port is an error, not a lottery
        ("grpc.keepalive_time_ms", round(keepalive_s * 1e3)),
        ("grpc.keepalive_timeout_ms", round(keepalive_timeout_s * 1e3)),
        ("grpc.http2.ping_timeout_ms", round(keepalive_timeout_s * 1e3)),  # or a minute goes by all the same
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.max_ping_strikes", 0),  # a client may ping as often as it likes
        ("grpc.max_concurrent_streams", CALLS_PER_CONNECTION),
        ("grpc.max_receive_message_length", REQUEST_BYTES),
    )


def _fill_feed(told: Any, feed: FeedStatus, feed_type: int) -> None:
    told.feed_type = feed_type
    told.state = cream.ConnectionState.Value(f"CONNECTION_STATE_{feed.state.upper()}")
    if feed.connected_ns:
        _set_ns(told.last_connected_at, feed.connected_ns)
    if feed.error:
        told.error_message = feed.error
    told.subscription_count = feed.subscribed
    told.reconnect_attempts = feed.attempts
    told.messages_received = feed.messages


def _set_ns(stamp: Any, time_ns: int) -> None:
    stamp.seconds, stamp.nanos = divmod(time_ns, 1_000_000_000)
