"""`grpc.health.v1` of the hub, for any gRPC server of its event loop. Event-loop only.

The empty service name tells whether everything that is needed is up, `live` only that the process works. Both are
computed when they are asked for, so that neither can be stale; those who watch are told of a change within a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

SERVICE = "grpc.health.v1.Health"
LIVE = "live"
WATCH_EVERY_S = 1.0


class HealthService:
    """Answers whether the hub is well.

    Args:
        is_ready: tells whether all that is needed is up.
        services: names of services that are as well as the whole.
        watch_every_s: how often it is looked for those who watch.
    """

    def __init__(
        self, is_ready: Callable[[], bool], *, services: Iterable[str] = (), watch_every_s: float = WATCH_EVERY_S
    ) -> None:
        self._is_ready = is_ready
        self._services = frozenset(("", *services))
        self._watch_every_s = watch_every_s
        self._stopping = asyncio.Event()

    def add_to(self, server: Any) -> None:
        """Let a server answer for it."""
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(
                self._check,
                request_deserializer=health_pb2.HealthCheckRequest.FromString,
                response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self._watch,
                request_deserializer=health_pb2.HealthCheckRequest.FromString,
                response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def stop(self) -> None:
        """Tell those who watch that it ends, and let them go."""
        self._stopping.set()

    def _state(self, service: str) -> int:
        states = health_pb2.HealthCheckResponse
        if self._stopping.is_set():
            return int(states.NOT_SERVING)
        if service == LIVE:
            return int(states.SERVING)
        if service not in self._services:
            return int(states.SERVICE_UNKNOWN)
        return int(states.SERVING if self._is_ready() else states.NOT_SERVING)

    async def _check(self, request: Any, context: Any) -> Any:
        state = self._state(request.service)
        if state == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service[:80]!r}")
        return health_pb2.HealthCheckResponse(status=state)

    async def _watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        told: int | None = None
        while True:
            state = self._state(request.service)
            if state != told:
                told = state
                yield health_pb2.HealthCheckResponse(status=state)
            if self._stopping.is_set():
                return
            try:
                async with asyncio.timeout(self._watch_every_s):
                    await self._stopping.wait()
            except TimeoutError:
                continue
