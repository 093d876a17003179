"""The connections to Redis: made again for ever, with backoff. Event-loop only.

Commands are written and replies are read here, and not by the client library: what is published costs a tenth of the
library's time so, and that is most of what this interface does.

A session has two connections, one for commands and one that listens, and ends when either of them does.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any

import structlog

from dry_work.backoff import Backoff
from dry_work.clock import Clock
from dry_work.errors import CodecError, HubError
from dry_work.hub.sinks.redis_settings import RedisSettings
from dry_work.wire.redis_protocol import ReplyError, ReplyReader, encode_command

READ_BYTES = 256 * 1024
CLOSE_TIMEOUT_S = 1.0
RETURN_WAIT_S = 2.0
RETURN_CHECK_S = 0.02
NAME = "dry-work-hub"

_log = structlog.get_logger(__name__)


class RedisError(HubError):
    """Redis refused a command that it has to take. Handled by the link: a new connection after a while."""


class ConnectionClosedError(ConnectionError):
    """The connection was closed here, after something else had failed."""


FAILURES = (RedisError, CodecError, OSError, TimeoutError, EOFError)


class RedisConnection:
    """One connection, signed in.

    Args:
        timeout_s: of an answer; the connection is of no use after one that did not come.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout_s: float) -> None:
        self._reader = reader
        self._writer = writer
        self._timeout_s = timeout_s
        self._replies = ReplyReader()
        self._lock = asyncio.Lock()

    @classmethod
    async def open(cls, settings: RedisSettings) -> RedisConnection:
        """Connect, sign in and choose the database.

        Raises:
            RedisError: Redis refuses; the text has no password.
            OSError: it cannot be reached.
            TimeoutError: it does not answer in time.
        """
        context = ssl.create_default_context() if settings.use_tls else None
        async with asyncio.timeout(settings.timeout_s):
            reader, writer = await asyncio.open_connection(settings.host, settings.port, ssl=context)
        connection = cls(reader, writer, settings.timeout_s)
        try:
            if settings.password:
                user = [settings.username.encode()] if settings.username else []
                await connection.demand(b"AUTH", *user, settings.password.encode())
            if settings.db:
                await connection.demand(b"SELECT", b"%d" % settings.db)
            with contextlib.suppress(RedisError):  # a name is not worth a refusal
                await connection.demand(b"CLIENT", b"SETNAME", NAME.encode())
            await connection.demand(b"PING")
        except BaseException:
            await connection.close()
            raise
        return connection

    async def demand(self, *parts: bytes) -> Any:
        """Return the reply to a command.

        Raises:
            RedisError: Redis refuses it.
        """
        (reply,) = await self.run([encode_command(*parts)], 1)
        if isinstance(reply, ReplyError):
            raise RedisError(f"{parts[0].decode()}: {reply.text}")
        return reply

    async def run(self, commands: Iterable[bytes], count: int) -> list[Any]:
        """Write commands together and return their `count` replies; refusals are `ReplyError`s.

        Raises:
            OSError, EOFError: the connection is lost; whether the commands were carried out is not known.
            TimeoutError: there was no answer for the time-out.
            CodecError: what came is no reply.
        """
        async with self._lock:
            replies: list[Any] = []
            self._check_open()
            try:
                self._writer.write(b"".join(commands))
                async with asyncio.timeout(self._timeout_s):
                    await self._writer.drain()
                while len(replies) < count:
                    replies += await self._receive(self._timeout_s)
            except BaseException:
                self._writer.transport.abort()  # a reply that comes later would be taken for another's
                raise
        if len(replies) > count:
            raise CodecError("more replies than commands")
        return replies

    async def listen(self, commands: bytes, take: Callable[[Any], None], *, ping_s: float) -> None:
        """Write `commands` and give what comes to `take`, for ever; a server that says nothing is asked for a sign.

        Raises:
            OSError, EOFError, TimeoutError, CodecError: the connection is lost.
        """
        self._writer.write(commands)
        is_asked = False
        while True:
            try:
                replies = await self._receive(self._timeout_s if is_asked else ping_s)
            except TimeoutError:
                if is_asked:
                    raise
                self._check_open()
                self._writer.write(encode_command(b"PING"))
                is_asked = True
                continue
            is_asked = False
            for reply in replies:
                take(reply)

    def _check_open(self) -> None:
        if self._writer.is_closing():
            raise ConnectionClosedError("the connection was given up")

    async def _receive(self, timeout_s: float) -> list[Any]:
        async with asyncio.timeout(timeout_s):
            data = await self._reader.read(READ_BYTES)
        if not data:
            raise EOFError("Redis has closed the connection")
        return self._replies.feed(data)

    async def close(self) -> None:
        """Close the connection. May be called twice."""
        self._writer.close()
        try:
            await asyncio.wait_for(self._writer.wait_closed(), CLOSE_TIMEOUT_S)
        except (OSError, TimeoutError):
            self._writer.transport.abort()


async def wait_for_listeners(connection: RedisConnection, channels: Sequence[str], clock: Clock) -> None:
    """Wait a while for those who have listened before a connection was lost.

    A server that was restarted is there before its clients are, and what they do not hear is not said again.
    """
    end_s = clock.monotonic() + RETURN_WAIT_S
    while clock.monotonic() < end_s:
        counts = await connection.demand(b"PUBSUB", b"NUMSUB", *(name.encode() for name in channels))
        if any(counts[1::2]) or await connection.demand(b"PUBSUB", b"NUMPAT"):
            return
        await asyncio.sleep(RETURN_CHECK_S)


Work = Callable[[RedisConnection, RedisConnection], Sequence[Coroutine[Any, Any, None]]]


class RedisLink:
    """Keeps the connections to Redis.

    Args:
        settings: where Redis is, and who we are there.
        prepare: what comes before everything else in a session.
        build: gives what runs in a session then, from the connection for commands and the one that listens; the session
            ends when any of it does.
        on_attempt: called after every attempt, whether it succeeded or failed.
    """

    def __init__(
        self,
        settings: RedisSettings,
        *,
        prepare: Callable[[RedisConnection], Awaitable[None]],
        build: Work,
        clock: Clock,
        rng: random.Random,
        on_attempt: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._prepare = prepare
        self._build = build
        self._clock = clock
        self._on_attempt = on_attempt
        self._backoff = Backoff(rng, initial_s=settings.first_wait_s, cap_s=settings.longest_wait_s)
        self.connection: RedisConnection | None = None  # for commands, while there is a session
        self.is_working = False  # a session has done its first steps
        self.sessions = 0
        self.error = ""
        self.errors: deque[str] = deque(maxlen=16)  # the last ones

    async def serve(self) -> None:
        """Connect, run a session, and again, until cancelled."""
        while True:
            connections: list[RedisConnection] = []
            try:
                for _ in range(2):
                    connections.append(await RedisConnection.open(self._settings))
                await self._hold(*connections)
            except FAILURES as error:
                self._note(f"{type(error).__name__}: {error}".rstrip(": "))
            except Exception as error:  # whatever it was: without this task nothing would be served any more
                _log.exception("the Redis interface failed; it begins anew")
                self._note(f"{type(error).__name__}: {error}")
            finally:
                self.connection, self.is_working = None, False
                await asyncio.gather(*(connection.close() for connection in connections))
            self._on_attempt()
            await asyncio.sleep(self._backoff.next_wait_s(self._clock.monotonic()))

    def note_working(self) -> None:
        """Note that the session has done its first steps."""
        if self.error:
            _log.info("Redis works again", address=self._settings.address)
        self.error = ""
        self.is_working = True
        self._backoff.mark_connected(self._clock.monotonic())
        self._on_attempt()

    async def _hold(self, commands: RedisConnection, listener: RedisConnection) -> None:
        await self._prepare(commands)
        self.connection = commands
        self.sessions += 1
        tasks = [asyncio.ensure_future(work) for work in self._build(commands, listener)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            errors = [error for task in done if (error := task.exception()) is not None]
            if errors:
                raise min(errors, key=lambda error: isinstance(error, ConnectionClosedError))  # what came first
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _note(self, error: str) -> None:
        if error != self.error:
            _log.warning("Redis is not usable", address=self._settings.address, reason=error)
        self.error = error
        self.errors.append(error)
