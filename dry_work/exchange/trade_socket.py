"""The trade_updates WebSocket, `/stream`. Event-loop only.

Answers and updates are JSON in binary frames, as Alpaca's paper API sends them. Events are never left out: a client
that does not read is disconnected.

Two things are the exchange's own, for clients that ask for them with `listen`:

- The stream `slices` tells after each slice, behind its trade events, that it is done: `slice`, its number; `event_id`,
  the last trade event of any account by then, as the slice's watermark has it; `account_event_id`, the last of this
  account so far.
- `since`, beside `streams`, names the last event that the client has; those behind it are sent first. The answer then
  says with `resumed` whether they are complete. The answer to who listens to `slices` names the last event of any
  account so far as `event_id`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import WSCloseCode, WSMsgType, web

from dry_work.clock import Clock
from dry_work.errors import CodecError
from dry_work.exchange.book import BustEvent
from dry_work.exchange.connections import ConnectionSlots
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.fault_hooks import EventFaults, StreamFaults
from dry_work.exchange.faults import FaultPlan
from dry_work.exchange.market import OpenSlice
from dry_work.exchange.order_rules import RefusedError
from dry_work.exchange.socket_session import CLOSE_TIMEOUT_S, QUEUE_LIMIT_BYTES, SocketSession, is_clean_close
from dry_work.exchange.state import AccountRecord
from dry_work.orders.model import TradeEvent
from dry_work.wire.alpaca_rest import CODE_RATE_LIMIT, encode_trade_event
from dry_work.wire.alpaca_stream import parse_message

TRADE_UPDATES = "trade_updates"
SLICES = "slices"


@dataclass(eq=False)
class _TradeSession:
    out: SocketSession
    transport: asyncio.Transport | None
    held: ExitStack  # counts the stream as open, once authenticated
    key_id: str | None = None  # None: not authenticated
    streams: tuple[str, ...] = ()  # that it listens to


class TradeSocket:
    """All trade_updates sessions; every key sees the events of its own account.

    Args:
        open_slice: the slice that is published and not yet done, None when there is none.
        account: what is remembered of the account of a key.
        last_event_id: id of the last trade event of any account.
        faults: what goes wrong.
        auth_timeout_s: time for a client to authenticate.
        queue_bytes: unread by the client, then it is disconnected.
        connections: sessions of a key, None without limit. One more is refused: with HTTP 429 when its handshake
            carries the credentials, else in the answer to its authentication.
        stale_s: a session that was cut without a close counts for so much longer.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        open_slice: Callable[[], OpenSlice | None],
        account: Callable[[str], AccountRecord],
        last_event_id: Callable[[], str],
        clock: Clock,
        faults: FaultPlan,
        auth_timeout_s: float = 10.0,
        queue_bytes: int = QUEUE_LIMIT_BYTES,
        connections: int | None = None,
        stale_s: float = 0.0,
    ) -> None:
        self._credentials = credentials
        self._open_slice = open_slice
        self._account = account
        self._last_event_id = last_event_id
        self._slots = ConnectionSlots(connections, stale_s=stale_s, clock=clock)
        self._faults = StreamFaults(faults, "trades")
        self._event_faults = EventFaults(faults, encode_event)
        self._auth_timeout_s = auth_timeout_s
        self._queue_bytes = queue_bytes
        self._sessions: set[_TradeSession] = set()

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve `/stream`."""
        router.add_get("/stream", self._handle)

    def emit(self, key_id: str, event: TradeEvent) -> None:
        """Send an event to the sessions of the key that listen."""
        sessions = self._listeners(key_id)
        if not sessions:
            return
        for body in self._event_faults.tell(key_id, event):
            _send_event(sessions, body)

    def strike(self) -> None:
        """Let new faults strike the sessions that are open."""
        for session in list(self._sessions):
            session.out.check()

    def _listeners(self, key_id: str) -> list[_TradeSession]:
        return [session for session in self._sessions if TRADE_UPDATES in session.streams and session.key_id == key_id]

    def tell_slice(self, current: OpenSlice) -> None:
        """Tell the sessions that asked for it that a slice and its events are out."""
        for key_id in {session.key_id for session in self._sessions if session.key_id is not None}:
            for body in self._event_faults.release(key_id):
                _send_event(self._listeners(key_id), body)
        for session in list(self._sessions):
            if SLICES in session.streams and session.key_id is not None:
                session.out.send(self._slice_frame(session.key_id, current))

    def _slice_frame(self, key_id: str, current: OpenSlice) -> bytes:
        last = self._account(key_id).last_event_id
        data = {"slice": current.number, "event_id": current.event_id, "account_event_id": last}
        return orjson.dumps({"stream": SLICES, "data": data})

    def close(self) -> None:
        """Begin to close all sessions."""
        for session in list(self._sessions):
            session.out.finish(code=WSCloseCode.GOING_AWAY)

    async def _handle(self, request: web.Request) -> web.WebSocketResponse:
        known = self._credentials.admit_headers(request.headers)
        if known is not None and not self._slots.is_free(known, TRADE_UPDATES):
            raise RefusedError(429, CODE_RATE_LIMIT, "connection limit exceeded")
        socket = web.WebSocketResponse(compress=False, timeout=CLOSE_TIMEOUT_S / 2)
        await socket.prepare(request)
        out = SocketSession(request, socket, slow_frame=_error_frame("slow client"), limit_bytes=self._queue_bytes)
        writer = asyncio.create_task(out.write(), name="trade session")
        with ExitStack() as held:
            session = _TradeSession(out, request.transport, held)
            self._sessions.add(session)
            try:
                await self._read(session, socket)
            finally:
                self._sessions.discard(session)
                if session.key_id is not None:
                    self._slots.release(session.key_id, TRADE_UPDATES, clean=is_clean_close(socket, out))
                out.finish()
                await writer
        return socket

    async def _read(self, session: _TradeSession, socket: web.WebSocketResponse) -> None:
        deadline_s = asyncio.get_running_loop().time() + self._auth_timeout_s
        while True:
            wait_s = None
            if session.key_id is None and not session.out.is_closing:
                wait_s = max(deadline_s - asyncio.get_running_loop().time(), 0.001)
            try:
                frame = await socket.receive(wait_s)
            except TimeoutError:
                session.out.finish(_error_frame("auth timeout"), code=WSCloseCode.POLICY_VIOLATION)
                continue
            if frame.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                return
            if session.out.is_closing:
                continue
            try:
                self._take(session, parse_message(frame.data))
            except CodecError:
                session.out.finish(_error_frame("invalid syntax"), code=WSCloseCode.POLICY_VIOLATION)

    def _take(self, session: _TradeSession, message: dict[str, Any]) -> None:
        action = message["action"]
        data = message.get("data")
        fields = data if isinstance(data, dict) else {}
        if action == "authenticate":
            self._authenticate(session, fields.get("key_id"), fields.get("secret_key"))
        elif action == "auth":
            self._authenticate(session, message.get("key"), message.get("secret"))
        elif action != "listen":
            raise CodecError("unknown action")
        elif session.key_id is None:
            session.out.send(_authorization_frame("unauthorized", "listen"))
        else:
            self._listen(session, session.key_id, fields.get("streams"), fields.get("since"))

    def _listen(self, session: _TradeSession, key_id: str, streams: object, since: object) -> None:
        if not isinstance(streams, list):
            raise CodecError("streams is no list")
        session.streams = tuple(name for name in (TRADE_UPDATES, SLICES) if name in streams)
        answer: dict[str, Any] = {"streams": list(session.streams)}
        missed = None
        if isinstance(since, str):
            # An id from the future is of a state that this exchange does not have any more.
            missed = self._account(key_id).events_after(since) if since <= self._last_event_id() else None
            answer["resumed"] = missed is not None
        if SLICES in session.streams:
            answer["event_id"] = self._last_event_id()
        session.out.send(orjson.dumps({"stream": "listening", "data": answer}))
        if TRADE_UPDATES in session.streams:
            for event in missed or ():
                session.out.send(_event_frame(encode_event(event)))
        current = self._open_slice()
        if SLICES in session.streams and current is not None:
            session.out.send(self._slice_frame(key_id, current))

    def _authenticate(self, session: _TradeSession, key_id: object, secret: object) -> None:
        if session.key_id is None:
            if not self._credentials.admit(key_id, secret):
                frame = _authorization_frame("unauthorized", "authenticate")
                session.out.finish(frame, code=WSCloseCode.POLICY_VIOLATION)
                return
            code = self._faults.refuse(str(key_id), "/stream")
            if code is not None:
                self._refuse(session, code)
                return
            if not self._slots.take(str(key_id), TRADE_UPDATES):
                session.out.finish(_error_frame("connection limit exceeded"), code=WSCloseCode.POLICY_VIOLATION)
                return
            session.key_id = str(key_id)
            session.held.enter_context(self._credentials.hold_stream(session.key_id))
            session.out.send(_authorization_frame("authorized", "authenticate"))
            self._faults.watch(session.out, session.key_id, "/stream", session.transport)
            return
        session.out.send(_authorization_frame("authorized", "authenticate"))

    def _refuse(self, session: _TradeSession, code: int) -> None:
        frame = _error_frame("connection limit exceeded" if code == 406 else "internal server error")
        if code in (402, 409):
            frame = _authorization_frame("unauthorized", "authenticate")
        session.out.finish(frame, code=WSCloseCode.POLICY_VIOLATION)


def encode_event(event: TradeEvent) -> dict[str, Any]:
    """Return a trade event as the streams tell it."""
    body = encode_trade_event(event)
    if isinstance(event, BustEvent):
        body["previous_execution_id"] = event.previous_execution_id
    return body


def _event_frame(body: dict[str, Any]) -> bytes:
    return orjson.dumps({"stream": TRADE_UPDATES, "data": body})


def _send_event(sessions: list[_TradeSession], body: dict[str, Any]) -> None:
    frame = _event_frame(body)
    for session in sessions:
        session.out.send(frame)


def _authorization_frame(status: str, action: str) -> bytes:
    return orjson.dumps({"stream": "authorization", "data": {"status": status, "action": action}})


def _error_frame(message: str) -> bytes:
    return orjson.dumps({"action": "error", "data": {"error_message": message}})
