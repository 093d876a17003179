"""The WebSocket sink: Alpaca's own streams for any number of clients. Event-loop only.

Each client has a queue on the bus. What waits in the queues goes out together, at once when the hub was idle and every
two to four milliseconds when it is busy: with many clients most of the work is system calls, and a frame holds many
items. A client that does not read costs its own queue and no more: nothing is written to it until its socket has room.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

import picows
import structlog
from picows import WSMsgType

from dry_work.errors import ConfigError
from dry_work.hub.access import Access
from dry_work.hub.core import OPTION_FEEDS
from dry_work.hub.events import ALL as EVERY
from dry_work.hub.events import CRYPTO, LIVE_ORDERS, NEWS, OPTIONS, ORDER_FEEDS, PAPER_ORDERS, STOCKS, UNKNOWN, HubEvent
from dry_work.hub.message_types import Kind, name_counts
from dry_work.hub.ports import HubPort, SinkStatus
from dry_work.hub.queues import ClientQueue, Overflow
from dry_work.hub.sinks.dialects import (
    TRY_AGAIN_LATER,
    Answer,
    DataDialect,
    Dialect,
    OrderDialect,
)
from dry_work.hub.sinks.shared_frames import SharedFrames
from dry_work.settings import STOCK_FEEDS
from dry_work.wire.alpaca_stream import StreamCodec

DEFAULT_PORT = 8099
DATA_CAPACITY = 4_096  # events that may wait for a client of market data
ORDER_CAPACITY = 4_096
FLUSH_INTERVAL_S = 0.002
# With many clients writing rests for so many times as long as it took: more goes into each frame then.
FLUSH_REST, FLUSH_LIMIT_S = 4.0, 0.004
AUTH_TIMEOUT_S = 10.0
SLOW_LIMIT_S = 10.0  # a client that loses market data for so long is disconnected
WRITE_BUFFER_BYTES = 256 * 1024
MESSAGE_LIMIT_BYTES = 1024 * 1024
PING_AFTER_S, PONG_WITHIN_S = 30.0, 20.0

_DATA_PATHS = {
    **{f"/v2/{feed}": STOCKS for feed in ("sip", "iex", "delayed_sip", "otc", "test")},
    "/v1beta1/opra": OPTIONS,
    "/v1beta1/indicative": OPTIONS,
    "/v1beta3/crypto/us": CRYPTO,
    "/v1beta1/news": NEWS,
}
_ORDER_PATHS = {
    "/trade-updates-paper": PAPER_ORDERS,
    "/paper": PAPER_ORDERS,
    "/trade-updates-live": LIVE_ORDERS,
    "/live": LIVE_ORDERS,
}
_STREAM_PATH = "/stream"
_SERVED = {**dict.fromkeys(STOCK_FEEDS, STOCKS), **dict.fromkeys(OPTION_FEEDS, OPTIONS)}  # by name of the connection

_log = structlog.get_logger(__name__)
# The library logs as an error whatever a stranger sends: anybody could fill the log.
_quiet = logging.getLogger(f"{__name__}.wire")
_quiet.setLevel(logging.CRITICAL)


class WebSocketSink:
    """Serves market data and trade updates on one port.

    Args:
        hub: gives the events.
        access: who may come, and where the port is bound.
        port: 0 takes any free one.
        feeds: names of the stock feed and of the option feed that the hub has; paths of others are not found.
        environment: paper or live, whose trade updates `/stream` brings.
        flush_interval_s: how long events wait for others when the hub is busy.
    """

    name = "websocket"

    def __init__(
        self,
        hub: HubPort,
        *,
        access: Access,
        port: int = DEFAULT_PORT,
        feeds: Iterable[str] = ("iex", "indicative"),
        environment: str = "paper",
        auth_timeout_s: float = AUTH_TIMEOUT_S,
        slow_limit_s: float = SLOW_LIMIT_S,
        flush_interval_s: float = FLUSH_INTERVAL_S,
        data_capacity: int = DATA_CAPACITY,
        order_capacity: int = ORDER_CAPACITY,
    ) -> None:
        self.hub = hub
        self.access = access
        self.port = port
        self.auth_timeout_s = auth_timeout_s
        self.slow_limit_s = slow_limit_s
        self.data_capacity = data_capacity
        self.order_capacity = order_capacity
        offered = set(feeds)
        self._data_paths = {
            path: feed
            for path, feed in _DATA_PATHS.items()
            if feed in (CRYPTO, NEWS) or path.rpartition("/")[2] in offered
        }
        self._order_paths = {**_ORDER_PATHS, _STREAM_PATH: PAPER_ORDERS if environment == "paper" else LIVE_ORDERS}
        self._flush_interval_s = flush_interval_s
        self._server: asyncio.Server | None = None
        self._sessions: dict[_Session, None] = {}
        self._ready: list[_Session] = []
        self._is_flushing = False
        self._next_flush_s = 0.0
        self._numbers = 0
        self._ended: Counter[str] = Counter()  # counts of clients that have left
        self.frames = SharedFrames()
        self._dropped: Counter[Kind] = Counter()  # of clients that have left
        self.refused: Counter[str] = Counter()  # handshakes, by reason

    async def start(self) -> None:
        try:
            self._server = await picows.ws_create_server(
                self._admit,
                self.access.host,
                self.port,
                ssl=self.access.tls,
                max_frame_size=MESSAGE_LIMIT_BYTES,
                enable_auto_ping=True,
                auto_ping_idle_timeout=PING_AFTER_S,
                auto_ping_reply_timeout=PONG_WITHIN_S,
                websocket_handshake_timeout=self.auth_timeout_s,
                logger_name=_quiet,
            )
        except OSError as error:
            raise ConfigError(
                f"the WebSocket port {self.access.host}:{self.port} (PROXY_PORT) cannot be opened: {error.strerror}"
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self, timeout_s: float) -> None:
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        self._flush()
        sessions = list(self._sessions)
        for session in sessions:
            session.close(1001)
        waits = [asyncio.ensure_future(session.wait_closed()) for session in sessions]
        if waits:
            await asyncio.wait(waits, timeout=min(timeout_s, 1.0))
        for session in list(self._sessions):
            session.abort()
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    def status(self) -> SinkStatus:
        total, dropped = Counter(self._ended), Counter(self._dropped)
        clients = 0
        for session in self._sessions:  # maybe a thousand, and events wait meanwhile
            for name, count in session.counts().items():
                total[name] += count
            clients += session.dialect.is_authenticated
            if session.queue.dropped_kinds:
                dropped.update(session.queue.dropped_kinds)
        return SinkStatus(
            name=self.name,
            is_ready=self._server is not None,
            clients=clients,
            offered=total["offered"],
            delivered=total["delivered"],
            conflated=total["conflated"],
            dropped=total["dropped"],
            waiting=total["waiting"],
            delivered_types=name_counts(self.frames.read_counts()),
            dropped_types=name_counts(dropped),
        )

    def note_state(self, feed: str, state: str) -> None:
        """Tell the clients that have asked for it how their upstream stands: market data may be missing then."""
        served = _SERVED.get(feed, feed)
        for session in list(self._sessions):
            if session.dialect.feed == served:
                session.tell_state(state)
        self.frames.end_round()

    # --- the handshake

    def _admit(self, request: picows.WSUpgradeRequest) -> Any:
        path, _, query = request.path.decode("latin-1").partition("?")
        if path not in self._data_paths and path not in self._order_paths:
            return self._refuse(HTTPStatus.NOT_FOUND, f"there is no stream at {path}")
        given = parse_qs(query)
        is_hub_aware = given.get("hub") == ["1"]
        has_header = "authorization" in request.headers
        if has_header and not self.access.admits_headers(request.headers):
            return self._refuse(HTTPStatus.UNAUTHORIZED, "the token was refused")
        admits = (lambda _: True) if has_header else self.access.admits
        dialect: Dialect
        if path in self._data_paths:
            binary = request.headers.get("content-type", "").partition(";")[0].strip() == StreamCodec.MSGPACK.value
            codec = StreamCodec.MSGPACK if binary else StreamCodec.JSON
            dialect = DataDialect(self._data_paths[path], codec, admits=admits, tells_position=is_hub_aware)
        else:
            feed = self._order_paths[path]
            environment = feed.rpartition(".")[2]
            if self.hub.account(environment) is None:
                return self._refuse(
                    HTTPStatus.SERVICE_UNAVAILABLE, f"the hub has no credentials for the {environment} account"
                )
            dialect = OrderDialect(feed, is_stream=path == _STREAM_PATH, admits=admits, is_hub_aware=is_hub_aware)
        self._numbers += 1
        return _Session(self, dialect, name=f"websocket-{self._numbers}")

    def _refuse(self, status: HTTPStatus, reason: str) -> Any:
        self.refused[reason] += 1
        response = picows.WSUpgradeResponse.create_error_response(status, f"{reason}\n".encode())
        return picows.WSUpgradeResponseWithListener(response, None)

    # --- sessions

    def add(self, session: _Session) -> None:
        """Keep an open session."""
        self._sessions[session] = None

    def remove(self, session: _Session) -> None:
        """Let go of a session that has ended, and of all that it held."""
        if session not in self._sessions:
            return
        del self._sessions[session]
        self.hub.bus.detach(session.queue)
        self.hub.release(session.name)
        counts = session.counts()
        # What its client never took is lost with the connection.
        counts["dropped"] += counts.pop("waiting")
        self._ended.update(counts)
        self._dropped.update(session.queue.dropped_kinds)
        self._dropped.update(session.queue.count_waiting())

    def note_ready(self, session: _Session) -> None:
        """Send soon what waits for a session."""
        self._ready.append(session)
        if self._is_flushing:
            return
        self._is_flushing = True
        loop = asyncio.get_running_loop()
        wait_s = self._next_flush_s - loop.time()
        if wait_s <= 0:
            loop.call_soon(self._flush)
        else:
            loop.call_later(wait_s, self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        ready, self._ready = self._ready, []
        for session in ready:
            session.flush()
        self.frames.end_round()
        ended_s = loop.time()
        rest_s = min(FLUSH_REST * (ended_s - began_s), FLUSH_LIMIT_S)
        self._next_flush_s = ended_s + max(self._flush_interval_s, rest_s)


class _Session(picows.WSListener):
    """One client."""

    def __init__(self, sink: WebSocketSink, dialect: Dialect, *, name: str) -> None:
        self.name = name
        self.dialect = dialect
        self._sink = sink
        is_orders = dialect.feed in ORDER_FEEDS
        self.queue = ClientQueue(
            sink.order_capacity if is_orders else sink.data_capacity,
            Overflow.CLOSE if is_orders else Overflow.CONFLATE,
            on_ready=self._note_ready,
            on_loss=self._note_loss,
        )
        self._transport: Any = None
        self._kind = WSMsgType.BINARY if dialect.binary else WSMsgType.TEXT
        self._parts: list[bytes] = []
        self._parts_kind: WSMsgType | None = None
        self._can_write = True
        self._auth_timer: asyncio.TimerHandle | None = None
        self._slow_since_s: float | None = None
        self._replayed = 0  # events sent before the queue was attached
        self._closed = asyncio.Event()
        self._is_closing = False
        self._knows_unknown = False
        self._untold_state = ""  # of the upstream

    # --- the connection's callbacks

    def on_ws_connected(self, transport: Any) -> None:
        self._transport = transport
        transport.underlying_transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._sink.add(self)
        self.send(self.dialect.greet())
        if isinstance(self.dialect, DataDialect) and self.dialect.is_refused:
            self.close(1008)
            return
        self._auth_timer = asyncio.get_running_loop().call_later(self._sink.auth_timeout_s, self._time_out)

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        kind = frame.msg_type
        if kind is WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
            return
        if kind in (WSMsgType.TEXT, WSMsgType.BINARY):
            self._parts, self._parts_kind = [], kind
        elif kind is not WSMsgType.CONTINUATION or self._parts_kind is None:
            return
        self._parts.append(frame.get_payload_as_bytes())
        if sum(map(len, self._parts)) > MESSAGE_LIMIT_BYTES:
            self.close(1009)
            return
        if not frame.fin:
            return
        data, is_text = b"".join(self._parts), self._parts_kind is WSMsgType.TEXT
        self._parts, self._parts_kind = [], None
        if self._is_closing:
            return
        try:
            message: bytes | str = data.decode() if is_text else data
        except UnicodeDecodeError:
            message = data
        self._answer(self.dialect.take(message))

    def on_ws_disconnected(self, transport: Any) -> None:
        self._cancel_timer()
        self._sink.remove(self)
        self._closed.set()

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True
        if len(self.queue) or self.queue.is_closed or self._untold_state:
            self._note_ready()

    # --- what goes out

    def send(self, frames: Iterable[bytes]) -> None:
        """Write frames, in order."""
        if self._transport is None or self._is_closing:
            return
        for frame in frames:
            self._transport.send(self._kind, frame)

    def flush(self) -> None:
        """Write what waits, as far as the socket takes it."""
        if self._is_closing or not self._can_write:
            return
        self._send_waiting()
        if self.queue.is_closed:
            _log.warning("a client of order updates did not keep up", client=self.name)
            self.close(TRY_AGAIN_LATER)
        elif self._slow_since_s is not None and not len(self.queue) and self._can_write:
            self._slow_since_s = None

    def tell_state(self, state: str) -> None:
        """Write how the upstream stands, behind what came before it; a client that is slow hears the last state."""
        self._untold_state = state
        if self._can_write:
            self._send_waiting()

    def close(self, code: int) -> None:
        """Say goodbye with `code` and end the connection once the client has answered, within a second."""
        if self._is_closing or self._transport is None:
            return
        self._is_closing = True
        self._cancel_timer()
        self._transport.send_close(code)
        asyncio.get_running_loop().call_later(1.0, self.abort)

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.disconnect(graceful=False)

    async def wait_closed(self) -> None:
        """Return once the connection has ended."""
        await self._closed.wait()

    def counts(self) -> dict[str, int]:
        """Return the counts of this client's events."""
        counts = self.queue.counts
        return {
            "offered": counts.offered + self._replayed,
            "delivered": counts.taken + self._replayed,
            "conflated": counts.conflated,
            "dropped": counts.dropped,
            "waiting": counts.waiting,
        }

    def _note_ready(self) -> None:
        self._sink.note_ready(self)

    def _note_loss(self) -> None:
        if self.dialect.feed in ORDER_FEEDS:
            return
        now_s = asyncio.get_running_loop().time()
        if self._slow_since_s is None:
            self._slow_since_s = now_s
            self.send(self.dialect.tell_slow())
        elif now_s - self._slow_since_s >= self._sink.slow_limit_s:
            _log.warning("a slow client of market data was disconnected", client=self.name)
            self.close(1008)

    # --- what comes in

    def _answer(self, answer: Answer) -> None:
        if self.dialect.is_authenticated:
            self._cancel_timer()
        self.send(answer.frames)
        if answer.close:
            self.close(answer.close)
            return
        hub = self._sink.hub
        if answer.removed:
            hub.bus.detach(self.queue, answer.removed)
            hub.release(self.name, answer.removed)
        if not answer.added:
            return
        self._catch_up(answer)
        hub.bus.attach(self.queue, answer.added)
        if self.dialect.feed not in ORDER_FEEDS:
            if not self._knows_unknown:
                self._knows_unknown = True
                hub.bus.attach(self.queue, [(self.dialect.feed, UNKNOWN, EVERY)])
            hub.hold(self.name, answer.added)

    def _catch_up(self, answer: Answer) -> None:
        """Send what a client missed, or where it stands, before it hears what is new."""
        bus, feed = self._sink.hub.bus, self.dialect.feed
        events: Sequence[HubEvent] = ()
        if answer.resume is not None:
            self._send_waiting()
            replay = bus.replay(feed, answer.added, epoch=answer.resume.epoch, offset=answer.resume.offset)
            assert isinstance(self.dialect, DataDialect | OrderDialect)
            self.send(
                self.dialect.tell_recovered(recovered=replay.recovered, epoch=bus.epoch, offset=bus.position(feed))
            )
            events = replay.events if replay.recovered or feed in ORDER_FEEDS else bus.latest(answer.added)
        else:
            self.send(self.dialect.tell_position(answer.added, epoch=bus.epoch, offset=bus.position(feed)))
            if answer.snapshot:
                events = bus.latest(answer.added)
        if events:
            self._replayed += len(events)
            self._sink.frames.count(events)
            self.send(self.dialect.encode(events))

    def _send_waiting(self) -> None:
        events = self.queue.take()
        if events:
            self.send(self._sink.frames.encode(self.dialect, events))
        if self._untold_state:
            state, self._untold_state = self._untold_state, ""
            self.send(self.dialect.tell_state(state))

    def _time_out(self) -> None:
        self._answer(self.dialect.time_out())

    def _cancel_timer(self) -> None:
        if self._auth_timer is not None:
            self._auth_timer.cancel()
            self._auth_timer = None
