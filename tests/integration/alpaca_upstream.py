"""Alpaca's market-data WebSocket as a scripted server, for the hub's tests."""

from __future__ import annotations

import asyncio
import http
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from dry_work.clock import MINUTE_NS
from dry_work.market.messages import Bar
from dry_work.wire import alpaca_stream
from dry_work.wire.alpaca_stream import StreamCodec, StreamWatermark

DEADLINE_S = 60.0
KEY, SECRET = "test-key-id", "test-secret-value"


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.005)


class Session:
    """One client of the scripted server."""

    def __init__(self, socket: ServerConnection, path: str, codec: StreamCodec) -> None:
        self.socket = socket
        self.path = path
        self.codec = codec
        self.authenticated = False
        self.bars: set[str] = set()
        self.watermarks = False
        self.messages: list[dict[str, Any]] = []


class Upstream:
    """Alpaca's market-data dialect on a thread of its own; every attribute may be set while it runs."""

    def __init__(self) -> None:
        self.offers_watermarks = True
        self.answers_auth = True
        self.auth_error = 0  # code sent in answer to auth
        self.http_status = 0  # answer to the handshake in place of a WebSocket
        self.retry_after = ""
        self.answer_delay_s = 0.0  # before every answer, the welcome included
        self.subscribe_error = 0  # code sent in place of each answer to subscribe
        self.refuse: Callable[[Session, dict[str, Any]], int] = lambda session, message: 0  # code for a subscription
        self.sessions: list[Session] = []  # all there ever were
        self.open: list[Session] = []
        self.handshakes: list[float] = []
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="upstream")
        self._thread.start()
        assert self._started.wait(DEADLINE_S)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def send(self, items: Sequence[dict[str, Any]], path: str = "/v2/iex") -> None:
        """Send one frame of items to each session of `path`."""
        for session in list(self.open):
            if session.path == path:
                encoded = [alpaca_stream.encode_item(item, session.codec) for item in items]
                (frame,) = alpaca_stream.join_items(encoded, session.codec)
                self.send_raw(frame, session)

    def send_raw(self, frame: bytes | str, session: Session) -> None:
        asyncio.run_coroutine_threadsafe(session.socket.send(frame), self._loop).result(DEADLINE_S)

    def send_slice(self, number: int, symbols: Sequence[str], path: str = "/v2/iex", *, last: bool = False) -> None:
        """Send a slice as the exchange does: a frame of bars and a frame with the watermark."""
        if symbols:
            self.send([alpaca_stream.encode_bar_item(build_bar(symbol, number)) for symbol in symbols], path)
        mark = StreamWatermark(slice=number, end_ns=(number + 1) * MINUTE_NS, event_id=f"id{number}", last=last)
        self.send([alpaca_stream.encode_watermark_item(mark)], path)

    def cut(self) -> None:
        """Drop every connection without a word."""
        victims = list(self.open)
        for session in victims:
            self._loop.call_soon_threadsafe(session.socket.transport.abort)
        # Their client may be back before the last of them has ended.
        wait_until(lambda: not any(session in self.open for session in victims), "the connections are gone")

    def mute(self) -> None:
        """Read no more from any client: no pong is answered either."""
        for session in list(self.open):
            self._loop.call_soon_threadsafe(session.socket.transport.pause_reading)

    def wait_subscribed(self, symbols: set[str], path: str = "/v2/iex") -> Session:
        wait_until(lambda: any(s.path == path and s.bars == symbols for s in self.open), f"{symbols} are subscribed")
        return next(s for s in self.open if s.path == path)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with serve(
            self._talk,
            "127.0.0.1",
            0,
            process_request=self._answer,
            ping_interval=None,
            close_timeout=0.2,
            max_size=None,
        ) as server:
            self.port: int = next(iter(server.sockets)).getsockname()[1]
            self._started.set()
            await self._stop.wait()

    def _answer(self, _: ServerConnection, request: Request) -> Response | None:
        self.handshakes.append(time.monotonic())
        if not self.http_status:
            return None
        headers = Headers({"Retry-After": self.retry_after}) if self.retry_after else Headers()
        return Response(self.http_status, http.HTTPStatus(self.http_status).phrase, headers, b"")

    async def _talk(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        codec = StreamCodec(socket.request.headers["Content-Type"])
        session = Session(socket, socket.request.path, codec)
        self.sessions.append(session)
        self.open.append(session)
        try:
            await self._say(session, alpaca_stream.encode_success_item("connected", watermarks=self.offers_watermarks))
            async for frame in socket:
                await self._take(session, alpaca_stream.parse_message(frame))
        except ConnectionClosed:
            pass
        finally:
            self.open.remove(session)

    async def _take(self, session: Session, message: dict[str, Any]) -> None:
        session.messages.append(message)
        if message["action"] == "auth":
            if self.auth_error:
                await self._say(session, alpaca_stream.encode_error_item(self.auth_error))
            elif self.answers_auth:
                assert (message["key"], message["secret"]) == (KEY, SECRET)
                session.authenticated = True
                await self._say(session, alpaca_stream.encode_success_item("authenticated"))
            return
        error = self.subscribe_error or self.refuse(session, message)
        if error:
            await self._say(session, {"T": "error", "code": error, "msg": "refused"})
            return
        change = session.bars.update if message["action"] == "subscribe" else session.bars.difference_update
        change(message.get("bars", ()))
        session.watermarks = session.watermarks or bool(message.get("watermarks"))
        await self._say(session, alpaca_stream.encode_subscription_item({"bars": session.bars}))

    async def _say(self, session: Session, item: dict[str, Any]) -> None:
        (frame,) = alpaca_stream.join_items([alpaca_stream.encode_item(item, session.codec)], session.codec)
        if self.answer_delay_s:
            await asyncio.sleep(self.answer_delay_s)
        await session.socket.send(frame)


def build_bar(symbol: str, minute: int) -> Bar:
    return Bar(
        symbol=symbol,
        ts_event_ns=minute * MINUTE_NS,
        open=100.0 + minute,
        high=102.0 + minute,
        low=99.0 + minute,
        close=101.0 + minute,
        volume=10.0,
        source="alpaca_crypto" if "/" in symbol else "alpaca_stock",
        extra={"sentiment_score": 0.5} if symbol == "AAPL" else {},
    )
