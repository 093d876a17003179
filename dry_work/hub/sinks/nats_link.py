"""The connection to NATS: made again for ever, with backoff. Event-loop only.

A session lasts from a connection to its end. What runs in it is cancelled with it; an action that is under way is not
of a session: it acknowledges over whatever connection there is when it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

import nats.errors
import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import Error as JetStreamError

from dry_work.backoff import Backoff
from dry_work.clock import Clock
from dry_work.errors import ConfigError
from dry_work.hub.sinks.nats_settings import NatsSettings

CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 5.0
SETTLE_TIMEOUT_S = 2.0
CLOSE_TIMEOUT_S = 1.0
CANCEL_EVERY_S = 1.0
PING_INTERVAL_S = 10
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 10.0

FAILURES = (nats.errors.Error, JetStreamError, OSError, TimeoutError)

_Answer = TypeVar("_Answer")

_log = structlog.get_logger(__name__)


class NatsLink:
    """Keeps a connection to NATS.

    Args:
        settings: where NATS is, and who we are there.
        run: what runs in every session; the connection ends when it fails.
    """

    def __init__(
        self, settings: NatsSettings, run: Callable[[Client], Awaitable[None]], *, clock: Clock, rng: random.Random
    ) -> None:
        self._settings = settings
        self._run = run
        self._clock = clock
        self._backoff = Backoff(rng, initial_s=FIRST_WAIT_S, cap_s=LONGEST_WAIT_S)
        self._client: Client | None = None
        self._connected = asyncio.Event()
        self._closed = asyncio.Event()  # the present connection
        self.sessions = 0
        self.error = ""

    @property
    def is_connected(self) -> bool:
        """Tell whether there is a connection."""
        return self._client is not None and self._client.is_connected

    @property
    def client(self) -> Client | None:
        """The present connection, None when there is none."""
        return self._client if self.is_connected else None

    def context(self) -> JetStreamContext:
        """Return JetStream over the present connection.

        Raises:
            nats.errors.ConnectionClosedError: there is none.
        """
        if self._client is None or not self._client.is_connected:
            raise nats.errors.ConnectionClosedError
        return self._client.jetstream(timeout=REQUEST_TIMEOUT_S)

    async def wait_connected(self) -> None:
        """Return when there is a connection."""
        await self._connected.wait()

    async def settle(self, reply: str, answer: bytes) -> bool:
        """Answer a message of a consumer, and tell whether the server has taken it."""
        if self._client is None or not self._client.is_connected:
            return False
        try:
            await self.attempt(self._client.request(reply, answer, timeout=SETTLE_TIMEOUT_S))
        except FAILURES:
            return False
        return True

    async def attempt(self, work: Coroutine[Any, Any, _Answer]) -> _Answer:
        """Return what a request gives. The client library lets requests wait when their connection ends; this does not.

        Raises:
            nats.errors.Error: the request failed, or its connection ended.
        """
        task = asyncio.ensure_future(work)
        ended = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait((task, ended), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise nats.errors.ConnectionClosedError
            return task.result()
        finally:
            await end_tasks((task, ended))

    async def keep(self, reply: str) -> None:
        """Tell the server that a message is still being worked on."""
        if self._client is not None and self._client.is_connected:
            with contextlib.suppress(*FAILURES):
                await self._client.publish(reply, b"+WPI")

    async def serve(self) -> None:
        """Connect, run a session, and again, until cancelled."""
        while True:
            client: Client | None = None
            try:
                client = await self._connect()
                await self._hold(client)
            except ConfigError as error:
                self._note(str(error))
            except FAILURES as error:
                self._note(f"{type(error).__name__}: {error}".rstrip(": "))
            finally:
                self._connected.clear()
                self._client = None
                if client is not None:
                    await self._close(client)
            await asyncio.sleep(self._backoff.next_wait_s(self._clock.monotonic()))

    async def _hold(self, client: Client) -> None:
        self._client = client
        self._backoff.mark_connected(self._clock.monotonic())
        self.sessions += 1
        self._connected.set()
        session = asyncio.ensure_future(self._run(client))
        ended = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait((session, ended), return_when=asyncio.FIRST_COMPLETED)
            if session.done():
                session.result()
            else:
                raise nats.errors.ConnectionClosedError
        finally:
            await end_tasks((session, ended))

    def note_success(self) -> None:
        """Note that the session works."""
        if self.error:
            _log.info("NATS works again", servers=self._settings.servers)
        self.error = ""

    def _note(self, error: str) -> None:
        if error != self.error:
            _log.warning("NATS is not usable", servers=self._settings.servers, reason=error)
        self.error = error

    async def _connect(self) -> Client:
        settings = self._settings
        closed = self._closed = asyncio.Event()

        async def note_closed() -> None:
            closed.set()

        async def note_error(error: Exception) -> None:
            _log.debug("NATS client", error=f"{type(error).__name__}: {error}")

        client = Client()
        options: dict[str, Any] = {
            "servers": list(settings.servers),
            "name": "dry-work hub",
            "user": settings.user or None,
            "password": settings.password or None,
            "allow_reconnect": False,  # the link does it
            "connect_timeout": CONNECT_TIMEOUT_S,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0.01,
            "ping_interval": PING_INTERVAL_S,
            "max_outstanding_pings": 2,
            "closed_cb": note_closed,
            "error_cb": note_error,
        }
        if any(url.startswith(("tls:", "wss:")) for url in settings.servers):
            options["tls"] = ssl.create_default_context()
        if settings.use_compression:
            _compress(client, settings.servers)
        try:
            await asyncio.wait_for(client.connect(**options), CONNECT_TIMEOUT_S)
        except BaseException:
            await self._close(client)
            raise
        return client

    @staticmethod
    async def _close(client: Client) -> None:
        closing = asyncio.ensure_future(client.close())
        try:
            await asyncio.wait([closing], timeout=CLOSE_TIMEOUT_S)
        except asyncio.CancelledError:
            await asyncio.wait([closing], timeout=CLOSE_TIMEOUT_S)  # or its socket stays open
            raise
        finally:
            await end_tasks([closing])


async def end_tasks(tasks: Iterable[asyncio.Future[Any]], *, every_s: float = CANCEL_EVERY_S) -> None:
    """Cancel tasks and wait for their end.

    Again and again: `asyncio.wait_for`, also the client library's, takes a cancellation for nothing when what it waits
    for is done in the same moment.
    """
    left = set(tasks)
    done = {task for task in left if task.done()}
    while True:
        for task in done:
            if not task.cancelled():
                task.exception()  # nobody else looks at it
        left -= done
        if not left:
            return
        for task in left:
            task.cancel()
        done, _ = await asyncio.wait(left, timeout=every_s)


def _compress(client: Client, servers: tuple[str, ...]) -> None:
    """Let a client ask for compression, which NATS offers to WebSockets alone."""
    if not servers[0].startswith("ws"):
        _log.warning("NATS_USE_COMPRESSION has no effect: NATS compresses WebSocket connections alone", servers=servers)
        return
    from nats.aio.transport import WebSocketTransport

    transport = WebSocketTransport()
    connect = transport._client.ws_connect

    def connect_compressed(*args: Any, **options: Any) -> Any:
        return connect(*args, compress=15, **options)

    transport._client.ws_connect = connect_compressed
    client._transport = transport
