"""Health and metrics of the hub over HTTP, and its health over gRPC. Event-loop only.

They need no token, and no TLS unless it is asked for: probes and scrapers come without. They are the first to open and
the last to close, so that a hub on its way out can say so.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Protocol

import msgspec
import structlog
from aiohttp import web

import dry_work
from dry_work.clock import Clock
from dry_work.errors import ConfigError
from dry_work.hub.access import Certificate
from dry_work.hub.bus import Bus
from dry_work.hub.health import UNHEALTHY, HealthReport, assess_health, build_document
from dry_work.hub.health_checks import AccountChecks
from dry_work.hub.metrics import HubCounts, encode_hub_metrics
from dry_work.hub.observation_settings import ObservationSettings
from dry_work.hub.ports import OrderAccount, SinkStatus, TopicStatus
from dry_work.hub.silent_connections import SilentConnections
from dry_work.hub.upstreams.connection import FeedStatus
from dry_work.observability.metrics import CONTENT_TYPE

ENVIRONMENTS = ("paper", "live")
HEADER_WITHIN_S = 10.0  # a connection without a request is closed then
KEEP_ALIVE_S = 75.0
REPORT_AGE_S = 0.05  # one report answers all who ask within
CLOSE_S = 0.25
REQUEST_BYTES = 16 * 1024

_log = structlog.get_logger(__name__)


class HubStatus(Protocol):
    """What is read of a hub's status."""

    @property
    def feeds(self) -> tuple[FeedStatus, ...]: ...
    @property
    def topics(self) -> tuple[TopicStatus, ...]: ...
    @property
    def sinks(self) -> tuple[SinkStatus, ...]: ...
    @property
    def option_bars(self) -> dict[str, int]: ...


class ObservedHub(Protocol):
    """The hub, as those see it who tell how it is."""

    bus: Bus
    clock: Clock

    @property
    def is_stopping(self) -> bool: ...

    def status(self) -> HubStatus:
        """Return the hub as it is now."""

    def account(self, environment: str) -> OrderAccount | None:
        """Return the account of `paper` or `live`."""


class HealthServer:
    """Tells how the hub is.

    Args:
        hub: it.
        settings: ports and rules; after `start`, `ports` has the real ports by the name of their variable.
        environment: paper or live: the account that is `trading` when there are both.
        topic_types: type of the messages of each topic of Pub/Sub, for the metrics.
        on_failure: called with an error of the metrics when that is to end the hub.
        tls: certificate of the listeners; None: plain connections.
        certificate: the same one as bytes, for gRPC.
    """

    def __init__(
        self,
        hub: ObservedHub,
        settings: ObservationSettings,
        *,
        environment: str = "paper",
        topic_types: Mapping[str, str] | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
        tls: ssl.SSLContext | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        self._tls = tls
        self._certificate = certificate
        self.ports: dict[str, int] = {}
        self._hub = hub
        self._settings = settings
        self._environment = environment
        self._topic_types = dict(topic_types or {})
        self._on_failure = on_failure
        self._started_s = hub.clock.monotonic()
        self._is_started = False
        self._report: tuple[float, HealthReport] | None = None
        self._checks = AccountChecks({}, interval_s=settings.check_interval_s)
        self._runners: list[web.AppRunner] = []
        self._servers: list[asyncio.Server] = []
        self._silent = SilentConnections(HEADER_WITHIN_S)
        self._in_flight = 0
        self._grpc_server: Any = None
        self._grpc_health: Any = None

    async def start(self) -> None:
        """Open the ports.

        Raises:
            ConfigError: one of them cannot be opened.
        """
        settings = self._settings
        try:
            health = {"/health": self._tell_health, "/healthz": self._tell_life, "/readyz": self._tell_readiness}
            metrics = {"/metrics": self._tell_metrics}
            await self._open({**health, **metrics}, {"STREAM_PROXY_HEALTH_PORT": settings.health_port})
            ports = {"STREAM_PROXY_METRICS_PORT": settings.metrics_port}
            if settings.has_more_metrics:
                ports["METRICS_PORT"] = settings.more_metrics_port
            await self._open(metrics, ports)
            if settings.has_grpc_health:
                await self._open_grpc()
        except ConfigError:
            await self.stop()
            raise
        found = {name: self._hub.account(name) for name in ENVIRONMENTS}
        self._checks = AccountChecks(
            {name: account for name, account in found.items() if account is not None},
            interval_s=settings.check_interval_s,
        )
        self._checks.start()
        _log.info("health and metrics", host=settings.host, **self.ports)

    def note_started(self) -> None:
        """Every interface of the hub is open: from now on it may be ready."""
        self._is_started = True

    async def stop(self) -> None:
        """Close the ports. May be called twice."""
        await self._checks.stop()
        server, self._grpc_server = self._grpc_server, None
        if server is not None:
            self._grpc_health.stop()
            await server.stop(CLOSE_S)
        servers, self._servers = self._servers, []
        for listener in servers:
            listener.close()
        self._silent.forget()
        runners, self._runners = self._runners, []
        for runner in runners:
            await runner.cleanup()

    def is_ready(self) -> bool:
        """Tell whether every feed that is required, and every server that the hub depends on, is up."""
        return self._is_serving and self.report().is_all_ready

    def report(self) -> HealthReport:
        """Return how the hub is."""
        now_s = self._hub.clock.monotonic()
        if self._report is not None and now_s - self._report[0] < REPORT_AGE_S:
            return self._report[1]
        status = self._hub.status()
        report = assess_health(
            status.feeds,
            sinks=status.sinks,
            topics=status.topics,
            accounts=self._checks.errors,
            environment=self._environment,
        )
        self._report = now_s, report
        return report

    @property
    def _is_serving(self) -> bool:
        return self._is_started and not self._hub.is_stopping

    # --- HTTP

    async def _open(self, routes: Mapping[str, Any], ports: Mapping[str, int]) -> None:
        application = web.Application(client_max_size=REQUEST_BYTES, middlewares=[self._note_request])
        for path, handler in routes.items():
            application.router.add_get(path, handler)
        runner = web.AppRunner(application, access_log=None, keepalive_timeout=KEEP_ALIVE_S, shutdown_timeout=CLOSE_S)
        await runner.setup()
        self._runners.append(runner)
        loop = asyncio.get_running_loop()
        for name, port in ports.items():
            try:
                server = await loop.create_server(
                    lambda: self._silent.build_protocol(runner), self._settings.host, port, ssl=self._tls
                )
            except OSError as error:
                raise ConfigError(
                    f"the port {self._settings.host}:{port} ({name}) cannot be opened: {error.strerror or error}"
                ) from error
            self._servers.append(server)
            self.ports[name] = server.sockets[0].getsockname()[1]

    @web.middleware
    async def _note_request(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self._silent.note_request(request)
        response: web.StreamResponse = await handler(request)
        return response

    async def _tell_health(self, _: web.Request) -> web.Response:
        report, hub = self.report(), self._hub
        document = build_document(
            report,
            version=dry_work.__version__,
            now_ns=hub.clock.time_ns(),
            uptime_s=hub.clock.monotonic() - self._started_s,
            clients=sum(sink.clients for sink in hub.status().sinks),
            receivers=hub.bus.readers,
            is_draining=hub.is_stopping,
        )
        status = HTTPStatus.SERVICE_UNAVAILABLE if report.status == UNHEALTHY else HTTPStatus.OK
        return web.Response(status=status, body=msgspec.json.encode(document), content_type="application/json")

    async def _tell_life(self, _: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def _tell_readiness(self, request: web.Request) -> web.Response:
        is_ready = self.is_ready() if request.query.get("all") == "1" else self._is_serving and self.report().is_ready
        if is_ready:
            return web.Response(text="READY")
        return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE, text="NOT READY")

    async def _tell_metrics(self, request: web.Request) -> web.StreamResponse:
        settings = self._settings
        if settings.metrics_most_in_flight and self._in_flight >= settings.metrics_most_in_flight:
            text = f"{self._in_flight} requests for metrics are being answered, the most there may be\n"
            return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE, text=text)
        self._in_flight += 1
        try:
            response = self._build_metrics()
            async with asyncio.timeout(settings.metrics_write_timeout_s):
                await response.prepare(request)
                await response.write_eof()
            return response
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise
        finally:
            self._in_flight -= 1

    def _build_metrics(self) -> web.Response:
        status, policy = self._hub.status(), self._settings.metrics_error_policy
        counts = HubCounts(
            feeds=status.feeds,
            sinks=status.sinks,
            topics=status.topics,
            topic_types=self._topic_types,
            option_bars=status.option_bars,
            environment=self._environment,
        )
        try:
            body = encode_hub_metrics(counts, on_error=_log_failure if policy == "continue" else None)
        except Exception as error:
            _log_failure(error)
            if policy == "panic" and self._on_failure is not None:
                self._on_failure(error)
            text = f"the metrics cannot be told: {type(error).__name__}\n"
            return web.Response(status=HTTPStatus.INTERNAL_SERVER_ERROR, text=text)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    # --- gRPC

    async def _open_grpc(self) -> None:
        try:
            import grpc

            from dry_work.hub.sinks.grpc_health import HealthService
        except ImportError as error:
            _log.warning("no health over gRPC: a package is not installed", package=error.name)
            return
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        address = f"{host}:{self._settings.grpc_health_port}"
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", REQUEST_BYTES)])
        health = HealthService(self.is_ready)
        health.add_to(server)
        try:
            if self._certificate is None:
                port = server.add_insecure_port(address)
            else:
                pair = (self._certificate.key, self._certificate.chain)
                port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        except RuntimeError as error:
            await server.stop(None)
            raise ConfigError(
                f"the port {address} (HEALTH_PORT) cannot be opened: another program has it, or the address is not "
                "this machine's"
            ) from error
        await server.start()
        self._grpc_server, self._grpc_health = server, health
        self.ports["HEALTH_PORT"] = port


def _log_failure(error: Exception) -> None:
    _log.error("metrics cannot be told", error=f"{type(error).__name__}: {error}")
