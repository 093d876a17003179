"""The subscription API: `stream.v0.StreamService` over gRPC, and the same as a REST gateway. Event-loop only.

The gateway answers as grpc-gateway does: errors are `{"code", "message", "details"}` with gRPC's code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import grpc
import msgspec
import structlog
from aiohttp import web

from dry_work.errors import ConfigError
from dry_work.hub.access import Access
from dry_work.hub.silent_connections import SilentConnections
from dry_work.hub.sinks.nats_data import Subscriptions
from dry_work.hub.sinks.nats_settings import SubscriptionApiSettings
from dry_work.proto.stream.v0 import stream_pb2 as pb

SERVICE = "stream.v0.StreamService"
HEALTH_SERVICE = "grpc.health.v1.Health"
MESSAGE_LIMIT_BYTES = 1024 * 1024
_PATH = "/v1/subscriptions/"

_log = structlog.get_logger(__name__)


class CallRefusedError(Exception):
    """A call that is not carried out."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class SubscriptionApi:
    """Lists, adds and removes the symbols whose bars and news are published.

    Args:
        bars, news: the subscriptions.
        settings: ports and times; port 0 takes any free one, and the attributes hold the real ones after `start`.
        access: who may come, where the ports are bound, and their certificate.
        is_ready: tells whether all that is needed is up, for gRPC's health.
    """

    def __init__(
        self,
        bars: Subscriptions,
        news: Subscriptions,
        settings: SubscriptionApiSettings,
        *,
        access: Access,
        is_ready: Callable[[], bool] = lambda: True,
    ) -> None:
        if settings.is_enabled and access.tls is not None and access.certificate is None:
            raise ConfigError("TLS is on, and the gRPC port has no certificate")
        self.port = settings.port
        self.proxy_port = settings.proxy_port
        self._subscriptions = {"bars": bars, "news": news}
        self._settings = settings
        self._access = access
        self._is_ready = is_ready
        self._server: Any = None
        self._health: Any = None
        self._runner: web.AppRunner | None = None
        self._proxy: asyncio.Server | None = None
        self._silent = SilentConnections(settings.proxy_read_header_timeout_s)

    async def start(self) -> None:
        """Open the ports.

        Raises:
            ConfigError: one of them cannot be opened.
        """
        if self._settings.is_enabled:
            await self._start_grpc()
        if self._settings.is_proxy_enabled:
            await self._start_proxy()

    async def stop(self, timeout_s: float) -> None:
        """Finish the calls under way, at most `timeout_s` seconds long, and close. May be called twice."""
        server, self._server = self._server, None
        if server is not None:
            self._health.stop()
            await server.stop(timeout_s)
        proxy, self._proxy = self._proxy, None
        if proxy is not None:
            proxy.close()
        self._silent.forget()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    # --- what is done

    def _list(self, channel: str) -> list[str]:
        return list(self._check(channel).symbols)

    def _change(self, channel: str, symbols: list[str], *, is_added: bool) -> None:
        subscriptions = self._check(channel)
        try:
            if is_added:
                subscriptions.add(symbols)
            else:
                subscriptions.remove(symbols)
        except ConfigError as error:
            raise CallRefusedError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None

    def _check(self, channel: str) -> Subscriptions:
        subscriptions = self._subscriptions[channel]
        if not subscriptions.is_enabled:
            raise CallRefusedError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"{channel} are switched off at this hub: set {subscriptions.switch}=true",
            )
        return subscriptions

    # --- gRPC

    async def _start_grpc(self) -> None:
        from dry_work.hub.sinks.grpc_health import HealthService
        from dry_work.hub.sinks.grpc_reflection import add_reflection

        settings = self._settings
        options: list[tuple[str, int]] = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
            ("grpc.max_connection_age_ms", round(settings.max_connection_age_s * 1000)),
            ("grpc.max_connection_idle_ms", round(settings.max_connection_idle_s * 1000)),
            ("grpc.keepalive_time_ms", round(settings.ping_every_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ]
        if settings.ping_timeout_s:
            options.append(("grpc.keepalive_timeout_ms", round(settings.ping_timeout_s * 1000)))
        server = grpc.aio.server(interceptors=[_Guard(self._access)], options=options)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._handlers()),))
        self._health = HealthService(self._is_ready, services=(SERVICE,))
        self._health.add_to(server)
        add_reflection(server, (SERVICE, HEALTH_SERVICE))
        host = f"[{self._access.host}]" if ":" in self._access.host else self._access.host
        address = f"{host}:{settings.port}"
        try:
            if (shown := self._access.certificate) is not None:
                credentials = grpc.ssl_server_credentials([(shown.key, shown.chain)])
                self.port = server.add_secure_port(address, credentials)
            else:
                self.port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigError(
                f"the gRPC port {address} (GRPC_PORT) cannot be opened: another program has it, or the address is not "
                "this machine's"
            ) from error
        if not self.port:
            raise ConfigError(f"the gRPC port {address} (GRPC_PORT) cannot be opened")
        await server.start()
        self._server = server

    def _handlers(self) -> dict[str, Any]:
        handlers: dict[str, Any] = {}
        for name, channel in (("Bar", "bars"), ("News", "news")):
            handlers[f"List{name}Subscriptions"] = _build_handler(
                self._answer_list(channel), pb.ListSubscriptionsRequest
            )
            for verb, is_added, request, answer in (
                ("Add", True, pb.AddSubscriptionsRequest, pb.AddSubscriptionsResponse),
                ("Remove", False, pb.RemoveSubscriptionsRequest, pb.RemoveSubscriptionsResponse),
            ):
                handlers[f"{verb}{name}Subscriptions"] = _build_handler(
                    self._answer_change(channel, answer, is_added=is_added), request
                )
        return handlers

    def _answer_list(self, channel: str) -> Callable[[Any], Any]:
        return lambda _: pb.ListSubscriptionsResponse(subscriptions=self._list(channel))

    def _answer_change(self, channel: str, answer: Any, *, is_added: bool) -> Callable[[Any], Any]:
        def change(request: Any) -> Any:
            self._change(channel, list(request.symbols), is_added=is_added)
            return answer()

        return change

    # --- REST

    async def _start_proxy(self) -> None:
        settings = self._settings
        application = web.Application(client_max_size=MESSAGE_LIMIT_BYTES)
        for channel in self._subscriptions:
            for method in ("GET", "PATCH", "DELETE"):
                application.router.add_route(method, _PATH + channel, self._serve)
        application.router.add_route("*", "/{path:.*}", self._serve)
        limits: dict[str, Any] = {}
        if settings.proxy_max_header_bytes:
            limits = {
                "max_line_size": settings.proxy_max_header_bytes,
                "max_field_size": settings.proxy_max_header_bytes,
            }
        runner = web.AppRunner(
            application,
            access_log=None,
            keepalive_timeout=settings.proxy_server_timeout_s,
            shutdown_timeout=1.0,
            **limits,
        )
        await runner.setup()
        loop = asyncio.get_running_loop()
        try:
            self._proxy = await loop.create_server(
                lambda: self._silent.build_protocol(runner),
                self._access.host,
                settings.proxy_port,
                ssl=self._access.tls,
            )
        except OSError as error:
            await runner.cleanup()
            raise ConfigError(
                f"the REST port {self._access.host}:{settings.proxy_port} (GRPC_PROXY_PORT) cannot be opened: "
                f"{error.strerror}"
            ) from error
        self._runner = runner
        self.proxy_port = self._proxy.sockets[0].getsockname()[1]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self._silent.note_request(request)
        try:
            async with asyncio.timeout(self._settings.proxy_server_timeout_s):
                async with asyncio.timeout(self._settings.proxy_read_timeout_s):
                    await request.read()
                status, body = self._carry_out(request)
                response = web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")
                async with asyncio.timeout(self._settings.proxy_write_timeout_s):
                    await response.prepare(request)
                    await response.write_eof()
                return response
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise

    def _carry_out(self, request: web.Request) -> tuple[int, Any]:
        try:
            if not self._access.admits_headers(request.headers):
                raise CallRefusedError(grpc.StatusCode.UNAUTHENTICATED, "the token was refused")
            channel = request.path.removeprefix(_PATH)
            if channel not in self._subscriptions or not request.path.startswith(_PATH):
                raise CallRefusedError(grpc.StatusCode.NOT_FOUND, "Not Found")
            if request.method == "GET":
                return HTTPStatus.OK, {"subscriptions": self._list(channel)}
            if request.method not in ("PATCH", "DELETE"):
                raise CallRefusedError(grpc.StatusCode.UNIMPLEMENTED, "Method Not Allowed")
            symbols = request.query.getall("symbols", [])
            self._change(channel, symbols, is_added=request.method == "PATCH")
        except CallRefusedError as error:
            return _STATUSES[error.code], {"code": error.code.value[0], "message": error.message, "details": []}
        return HTTPStatus.OK, {}


_STATUSES: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
}


def _build_handler(carry_out: Callable[[Any], Any], request: Any) -> Any:
    async def handle(message: Any, context: Any) -> Any:
        try:
            return carry_out(message)
        except CallRefusedError as error:
            await context.abort(error.code, error.message)

    return grpc.unary_unary_rpc_method_handler(
        handle, request_deserializer=request.FromString, response_serializer=lambda answer: answer.SerializeToString()
    )


class _Guard(grpc.aio.ServerInterceptor):
    """Lets in those who have the token; health needs none."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or details.method.startswith(f"/{HEALTH_SERVICE}/"):
            return handler
        metadata = {key: value for key, value in details.invocation_metadata or () if isinstance(value, str)}
        if self._access.admits_headers(metadata):
            return handler
        return _refuse(handler)


def _refuse(handler: Any) -> Any:
    async def refuse(_: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token was refused")

    async def refuse_stream(_: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token was refused")
        yield

    if handler.request_streaming:
        build = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
    else:
        build = (
            grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
        )
    behaviour = refuse_stream if handler.response_streaming else refuse
    return build(
        behaviour, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
    )
