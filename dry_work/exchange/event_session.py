"""The sending side of one stream of server-sent events: a bounded queue and its writer. Event-loop only."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable

import structlog
from aiohttp import web

from dry_work.exchange.socket_session import CLOSE_TIMEOUT_S

_log = structlog.get_logger(__name__)

HEARTBEAT_S = 15.0
_CHECK_S = 0.5  # how often a quiet stream looks whether its client has gone
_HEARTBEAT = b":heartbeat\n\n"
_FAILURE = b": internal server error\n\n"


def build_frame(data: bytes, *, event: str = "") -> bytes:
    """Return one event with its data, which is one line."""
    return (f"event: {event}\n".encode() if event else b"") + b"data: " + data + b"\n\n"


class EventSession:
    """Sends frames in order without ever making the sender wait.

    A client that does not read until `limit_bytes` are queued loses what comes then, and is told how many messages it
    has lost before it gets the next one.

    Args:
        limit_bytes: queued at most.
        heartbeat_s: a stream on which nothing was sent for so long sends a comment.
        tells_failures: a failure is told in a comment before the stream ends.
    """

    def __init__(
        self, request: web.Request, *, limit_bytes: int, heartbeat_s: float = HEARTBEAT_S, tells_failures: bool = True
    ) -> None:
        self.is_closing = False
        self.before_frame: Callable[[], None] | None = None  # called before each frame; may close or mute the session
        self._is_muted = False
        self._has_failed = False
        self._transport = request.transport
        self._limit_bytes = limit_bytes
        self._heartbeat_s = heartbeat_s
        self._failure = _FAILURE if tells_failures else b""
        self._frames: deque[bytes] = deque()
        self._queued_bytes = 0
        self._lost = 0  # messages that the client was not told of
        self._to_lose = 0  # messages
        self._ready = asyncio.Event()

    def send(self, frame: bytes) -> None:
        """Queue a message; nothing happens once the session is closing."""
        if self.is_closing or not self._may_send():
            return
        if self._queued_bytes + len(frame) > self._limit_bytes:
            if not self._lost:
                _log.warning("client reads too slowly and loses events", queued_bytes=self._queued_bytes)
            self._lost += 1
            return
        if self._lost:
            self._append(self._take_loss())
        self._append(frame)

    def check(self) -> None:
        """Let what strikes before a frame strike now."""
        if self.before_frame is not None and not self._has_failed and not self._is_muted:
            self.before_frame()

    def give_up(self) -> None:
        """Lose what is queued and one message more, as if the client had read too slowly."""
        self._lost += len(self._frames)
        self._to_lose += 1
        self._frames.clear()
        self._queued_bytes = 0

    def mute(self) -> None:
        """Send no message any more, and stay connected."""
        self._is_muted = True
        self._frames.clear()
        self._queued_bytes = 0

    def finish(self, *, code: int = 0) -> None:
        """Send what is queued but for the past, tell of a failure (whatever its `code`), and close the stream."""
        if not self._has_failed:
            self._has_failed = True
            self._append(self._failure)
            self.close()

    def end(self) -> None:
        """Send what is queued and end the stream."""
        self.is_closing = True
        self._ready.set()

    def close(self) -> None:
        """End the stream; the connection is cut when that takes more than 2 s."""
        self.end()
        asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._abort)

    async def write(self, response: web.StreamResponse, history: Iterable[bytes]) -> None:
        """Send the messages of the past, then frames until the session is ended or the connection lost."""
        with contextlib.suppress(ConnectionError):
            try:
                await response.write(_HEARTBEAT)  # so that the client knows that it misses nothing from now on
                for frame in history:
                    if self._is_gone:
                        return
                    if self._may_send():
                        if self._lost:
                            await response.write(self._take_loss())
                        await response.write(frame)
                await self._write_queued(response)
            except ConnectionError:
                raise
            except Exception:
                _log.exception("event stream failed")
                await response.write(self._failure)
        self._transport = None

    async def _write_queued(self, response: web.StreamResponse) -> None:
        loop = asyncio.get_running_loop()
        sent_s = loop.time()
        while not self._is_gone:
            self._ready.clear()  # what is queued from here on is seen below, or wakes the wait
            while self._frames:
                frame = self._frames.popleft()
                self._queued_bytes -= len(frame)
                await response.write(frame)
                sent_s = loop.time()
            if self._lost:
                await response.write(self._take_loss())
            if self.is_closing:
                return
            if loop.time() - sent_s >= self._heartbeat_s:
                sent_s = loop.time()
                if self._is_alive:
                    await response.write(_HEARTBEAT)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(_CHECK_S, self._heartbeat_s)):
                    await self._ready.wait()

    @property
    def _is_gone(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    @property
    def _is_alive(self) -> bool:
        return self._transport is not None and self._transport.is_reading()  # a half-open connection does not read

    def _may_send(self) -> bool:
        """Let faults strike; tell whether the next message is to be sent, and count one that is not as lost."""
        self.check()
        if self._has_failed or self._is_muted:
            return False
        if self._to_lose:
            self._to_lose -= 1
            self._lost += 1
            self._ready.set()
            return False
        return True

    def _take_loss(self) -> bytes:
        lost, self._lost = self._lost, 0
        return f": you are reading too slowly, dropped {lost} messages\n\n".encode()

    def _append(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._queued_bytes += len(frame)
        self._ready.set()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
