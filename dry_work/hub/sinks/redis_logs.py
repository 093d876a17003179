"""What the hub tells on `broker:logs`. Event-loop only."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import structlog

from dry_work.clock import Clock
from dry_work.hub.sinks.redis_link import RedisConnection, wait_for_listeners
from dry_work.wire.redis import LOGS, encode_log
from dry_work.wire.redis_protocol import encode_command

CAPACITY = 1_000  # lines that wait for Redis, and that the stream keeps, about
STREAM = b"stream:broker:logs"
BATCH = 100

_log = structlog.get_logger(__name__)


class LogChannel:
    """Lines of JSON, for everybody who subscribes.

    Args:
        has_stream: keep the last ones in a stream too, for those who come later.
    """

    def __init__(self, clock: Clock, *, has_stream: bool) -> None:
        self._clock = clock
        self._has_stream = has_stream
        self._waiting: deque[list[bytes]] = deque()  # of each line its commands
        self._arrived = asyncio.Event()
        self._has_listeners = False  # when the last line was published
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Lines that are not published."""
        return len(self._waiting)

    def say(self, level: str, event: str, message: str, **facts: Any) -> None:
        """Tell something, here and on the channel; of too many lines the oldest go."""
        getattr(_log, level)(message, kind=event, **facts)
        if len(self._waiting) >= CAPACITY:
            self._waiting.popleft()
            self.dropped += 1
        line = encode_log(self._clock.time_ns(), level, event, message, facts)
        commands = [encode_command(b"PUBLISH", LOGS.encode(), line)]
        if self._has_stream:
            # First: who has read the message finds the entry.
            commands.insert(0, encode_command(b"XADD", STREAM, b"MAXLEN", b"~", b"%d" % CAPACITY, b"*", b"line", line))
        self._waiting.append(commands)
        self._arrived.set()

    async def run(self, connection: RedisConnection) -> None:
        """Publish until cancelled.

        Raises:
            RedisError, OSError, EOFError, TimeoutError: the connection is of no use any more. The lines wait.
        """
        if self._has_listeners:
            await wait_for_listeners(connection, [LOGS], self._clock)
        while True:
            self._arrived.clear()
            while self._waiting:
                batch = list(self._waiting)[:BATCH]
                commands = [command for line in batch for command in line]
                replies = await connection.run(commands, len(commands))
                self._has_listeners = bool(replies[-1])
                for line in batch:
                    if self._waiting and self._waiting[0] is line:  # else it went for lack of room
                        self._waiting.popleft()
            await self._arrived.wait()
