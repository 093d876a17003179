"""The sending side of one WebSocket session: a bounded queue and its writer. Event-loop only."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import structlog
from aiohttp import WSCloseCode, web

_log = structlog.get_logger(__name__)

QUEUE_LIMIT_BYTES = 16 * 1024 * 1024
CLOSE_TIMEOUT_S = 2.0


def is_clean_close(socket: web.WebSocketResponse, out: SocketSession) -> bool:
    """Tell whether a session that has ended was closed by one of both sides, not cut."""
    return out.is_closing or socket.close_code not in (None, WSCloseCode.ABNORMAL_CLOSURE)


class SocketSession:
    """Sends frames in order without ever making the sender wait.

    A client that does not read until `limit_bytes` are queued is told so with `slow_frame` and disconnected: nothing is
    left out in silence.
    """

    def __init__(
        self,
        request: web.Request,
        socket: web.WebSocketResponse,
        *,
        slow_frame: bytes | str,
        limit_bytes: int = QUEUE_LIMIT_BYTES,
    ) -> None:
        self.is_closing = False
        self.before_frame: Callable[[], None] | None = None  # called before each frame; may close or mute the session
        self._is_muted = False
        self._transport = request.transport
        self._socket = socket
        self._slow_frame = slow_frame
        self._limit_bytes = limit_bytes
        self._frames: deque[bytes | str] = deque()
        self._queued_bytes = 0
        self._ready = asyncio.Event()
        self._code: int = WSCloseCode.OK

    def send(self, frame: bytes | str) -> None:
        """Queue a frame; nothing happens once the session is closing."""
        self.check()
        if self.is_closing or self._is_muted:
            return
        if self._queued_bytes + len(frame) > self._limit_bytes:
            _log.warning("slow client disconnected", queued_bytes=self._queued_bytes)
            self.give_up()
            return
        self._append(frame)

    def check(self) -> None:
        """Let what strikes before a frame strike now."""
        if self.before_frame is not None and not self.is_closing and not self._is_muted:
            self.before_frame()

    def give_up(self) -> None:
        """Tell the client that it is too slow, instead of what is queued, and disconnect it."""
        self._frames.clear()
        self._queued_bytes = 0
        self.finish(self._slow_frame, code=WSCloseCode.POLICY_VIOLATION)

    def mute(self) -> None:
        """Send nothing any more, and stay connected."""
        self._is_muted = True
        self._frames.clear()
        self._queued_bytes = 0

    def finish(self, frame: bytes | str | None = None, *, code: int = WSCloseCode.OK) -> None:
        """Send what is queued, then `frame`, then close; the connection is cut when that takes more than 2 s."""
        if self.is_closing:
            return
        if frame is not None:
            self._append(frame)
        self.is_closing = True
        self._code = code
        self._ready.set()
        asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._abort)

    async def write(self) -> None:
        """Send frames until the session is finished or the connection lost; to be run as a task."""
        try:
            while True:
                while self._frames:
                    frame = self._frames.popleft()
                    if isinstance(frame, bytes):
                        await self._socket.send_bytes(frame)
                    else:
                        await self._socket.send_str(frame)
                    self._queued_bytes -= len(frame)
                if self.is_closing:
                    break
                self._ready.clear()
                await self._ready.wait()
            await self._socket.close(code=self._code)
        except ConnectionError:
            self._abort()

    def _append(self, frame: bytes | str) -> None:
        self._frames.append(frame)
        self._queued_bytes += len(frame)
        self._ready.set()

    def _abort(self) -> None:
        if self._transport is not None and not self._socket.closed:
            self._transport.abort()
