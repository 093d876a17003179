"""One market-data connection in Alpaca's WebSocket dialect, kept up for as long as somebody wants its symbols.

Event-loop only. The connection opens with the first wanted symbol, subscribes and unsubscribes by difference, restores
everything after a reconnect, and closes when nothing has been wanted for a while. Against a server that offers
watermarks it takes them too.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn, Protocol

import msgspec
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from dry_work.addresses import is_loopback_url
from dry_work.backoff import Backoff
from dry_work.clock import Clock
from dry_work.errors import CodecError
from dry_work.hub.core import ConnectionEvent, ConnectionState, ErrorKind, error_kind, handshake_kind, next_state
from dry_work.market.messages import Bar
from dry_work.wire import alpaca_stream
from dry_work.wire.alpaca_stream import StreamCodec, StreamControl, StreamUnread, StreamWatermark

SUBSCRIBE_BATCH = 500  # symbols in one message
MAX_FRAME_BYTES = 16 * 1024 * 1024
LONGEST_RETRY_AFTER_S = 300.0

_log = structlog.get_logger(__name__)


class UpstreamTiming(msgspec.Struct, frozen=True, kw_only=True):
    """Times of an upstream connection, in seconds, and the number of tries."""

    open_timeout_s: float = 10.0
    auth_timeout_s: float = 10.0
    ping_interval_s: float = 30.0
    silence_timeout_s: float = 60.0  # neither data nor a pong for so long: reconnect
    slow_retry_s: float = 60.0  # wait after a refusal
    idle_close_s: float = 30.0  # keep the connection so long after the last symbol is let go
    close_timeout_s: float = 1.0
    max_attempts: int = 0  # tries since the last success before the slow retry; 0: unlimited


class FeedStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A connection at one moment, and its counts since the start."""

    feed: str
    state: ConnectionState = ConnectionState.DISCONNECTED
    wanted: int = 0  # symbols held by clients
    subscribed: int = 0  # symbols that the upstream has confirmed in this session
    takes_watermarks: bool = False
    attempts: int = 0  # failed tries since the last success
    reconnects: int = 0  # connections opened after the first one
    bars: int = 0
    watermarks: int = 0
    ignored: dict[str, int] = {}  # well-formed items that are not passed on, by type
    malformed: dict[str, int] = {}  # items and frames that could not be read, by reason
    errors: dict[int, int] = {}  # error frames by code
    error: str = ""  # the last refusal or loss; empty while connected


class MarketDataTarget(Protocol):
    """Where a connection's market data goes."""

    def begin_session(self, *, takes_watermarks: bool) -> None:
        """A session is authenticated; its data follows."""

    def take(self, items: Sequence[Bar | StreamWatermark]) -> None:
        """Take what one frame brought, in its order."""

    def end_session(self) -> None:
        """The session is over."""

    def has_room(self) -> bool:
        """Tell whether more can be taken now."""

    async def wait_for_room(self) -> None:
        """Return once more can be taken."""


class _SessionEndError(Exception):
    """Ends a session: what follows depends on `kind`; None: nobody wants its symbols."""

    def __init__(self, reason: str, kind: ErrorKind | None, *, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.kind = kind
        self.retry_after_s = retry_after_s


class AlpacaDataConnection:
    """The connection of one feed.

    Args:
        feed: its name, for status and log.
        url: whole URL of the endpoint.
        target: takes the market data; when it has no room, nothing is read.
        codec: how messages are written; both are Alpaca's own.
        on_change: called after every change of state.
    """

    def __init__(
        self,
        *,
        feed: str,
        url: str,
        key: str,
        secret: str,
        target: MarketDataTarget,
        clock: Clock,
        rng: random.Random,
        codec: StreamCodec = StreamCodec.JSON,
        timing: UpstreamTiming | None = None,
        on_change: Callable[[FeedStatus], None] | None = None,
    ) -> None:
        self._feed = feed
        self._url = url
        self._key = key
        self._secret = secret
        self._target = target
        self._clock = clock
        self._rng = rng
        self._codec = codec
        self._timing = UpstreamTiming() if timing is None else timing
        self._on_change = on_change
        self._backoff = Backoff(rng)
        self._state = ConnectionState.DISCONNECTED
        self._wanted: dict[str, None] = {}
        self._changed = asyncio.Event()
        self._subscribed = 0
        self._takes_watermarks = False
        self._sessions = 0
        self._attempts = 0
        self._bars = 0
        self._watermarks = 0
        self._ignored: Counter[str] = Counter()
        self._malformed: Counter[str] = Counter()
        self._errors: Counter[int] = Counter()
        self._error = ""
        self._heard_s = 0.0
        self._holds_back = False

    def want(self, symbols: Iterable[str]) -> None:
        """Replace the wanted symbols; the upstream follows."""
        self._wanted = dict.fromkeys(symbols)
        self._changed.set()

    def status(self) -> FeedStatus:
        """Return the connection as it is now."""
        return FeedStatus(
            feed=self._feed,
            state=self._state,
            wanted=len(self._wanted),
            subscribed=self._subscribed,
            takes_watermarks=self._takes_watermarks,
            attempts=self._attempts,
            reconnects=max(0, self._sessions - 1),
            bars=self._bars,
            watermarks=self._watermarks,
            ignored=dict(self._ignored),
            malformed=dict(self._malformed),
            errors=dict(self._errors),
            error=self._error,
        )

    async def run(self) -> None:
        """Keep the connection up until cancelled."""
        try:
            while True:
                while not self._wanted:
                    await self._wait_for_change(None)
                self._move(ConnectionEvent.CONNECT)
                await self._run_while_wanted()
                self._move(ConnectionEvent.STOP)
        finally:
            self._move(ConnectionEvent.STOP)

    async def _run_while_wanted(self) -> None:
        while True:
            try:
                await self._run_session()
            except _SessionEndError as end:
                if end.kind is None:
                    return
                wait_s = self._note_end(end)
            await self._wait_while_wanted(wait_s)
            if not self._wanted:
                return
            if self._state is ConnectionState.ERROR:
                self._move(ConnectionEvent.RETRY)
            self._move(ConnectionEvent.DELAY_ELAPSED)

    def _note_end(self, end: _SessionEndError) -> float:
        """Change the state after a session that is to be followed by another; return the seconds until then."""
        self._error = end.reason
        self._attempts += 1
        wait_s = max(self._backoff.next_wait_s(self._clock.monotonic()), end.retry_after_s)
        limit = self._timing.max_attempts
        if end.kind is ErrorKind.FATAL:
            self._move(ConnectionEvent.REFUSED)
        else:
            self._move(ConnectionEvent.SOCKET_CLOSED)
            if limit and self._attempts >= limit:
                self._move(ConnectionEvent.ATTEMPTS_USED_UP)
        if self._state is ConnectionState.ERROR:
            wait_s = self._timing.slow_retry_s * self._rng.uniform(0.9, 1.1)
            _log.error("upstream refused", feed=self._feed, reason=end.reason, retry_in_s=round(wait_s, 1))
        else:
            _log.warning("upstream lost", feed=self._feed, reason=end.reason, retry_in_s=round(wait_s, 2))
        return wait_s

    async def _wait_while_wanted(self, wait_s: float) -> None:
        end_s = asyncio.get_running_loop().time() + wait_s
        while self._wanted and (left_s := end_s - asyncio.get_running_loop().time()) > 0:
            await self._wait_for_change(left_s)

    async def _wait_for_change(self, timeout_s: float | None) -> bool:
        """Sleep until the wanted symbols have changed, at most `timeout_s` seconds; tell whether they have."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    def _move(self, event: ConnectionEvent) -> None:
        state = next_state(self._state, event)
        if state is self._state:
            return
        self._state = state
        if state is ConnectionState.CONNECTED:
            self._error = ""
        if self._on_change is not None:
            self._on_change(self.status())

    # --- one session

    async def _run_session(self) -> NoReturn:
        timing = self._timing
        try:
            socket = await connect(
                self._url,
                additional_headers={"Content-Type": self._codec.value},
                user_agent_header="dry-work",
                compression=None,
                proxy=None if is_loopback_url(self._url) else True,
                open_timeout=timing.open_timeout_s,
                close_timeout=timing.close_timeout_s,
                ping_interval=None,  # our own keepalive: pongs are not read while we hold back
                max_size=MAX_FRAME_BYTES,
            )
        except InvalidStatus as error:
            raise _parse_refused_handshake(error) from error
        except (OSError, WebSocketException) as error:
            raise _SessionEndError(_describe(error, "connecting took too long"), ErrorKind.LOST) from error
        self._sessions += 1
        self._move(ConnectionEvent.SOCKET_OPEN)
        self._heard_s = self._clock.monotonic()
        try:
            await self._converse(socket)
        except (OSError, WebSocketException) as error:
            raise _SessionEndError(_describe(error, "the connection timed out"), ErrorKind.LOST) from error
        finally:
            self._subscribed = 0
            with contextlib.suppress(OSError, WebSocketException):
                await socket.close()

    async def _converse(self, socket: ClientConnection) -> NoReturn:
        timing = self._timing
        try:
            async with asyncio.timeout(timing.auth_timeout_s):
                await self._authenticate(socket)
        except TimeoutError:
            raise _SessionEndError(
                f"no answer to authentication within {timing.auth_timeout_s:g} s", ErrorKind.LOST
            ) from None
        self._backoff.mark_connected(self._clock.monotonic())
        self._attempts = 0
        self._move(ConnectionEvent.AUTH_SUCCESS)
        self._target.begin_session(takes_watermarks=self._takes_watermarks)
        jobs = (self._read(socket), self._keep_subscribed(socket), self._watch_silence(socket))
        tasks = [asyncio.create_task(job, name=f"hub-{self._feed}") for job in jobs]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:  # the reader's reason comes first: it is the most telling one
                if task in done:
                    task.result()
            raise AssertionError("a session's task returned")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._target.end_session()

    async def _authenticate(self, socket: ClientConnection) -> None:
        sent = False
        self._takes_watermarks = False
        while True:
            for control in self._take_frame(await self._receive(socket)):
                if control.kind != "success":
                    continue
                if control.message == "authenticated" and sent:
                    return
                self._takes_watermarks = self._takes_watermarks or control.watermarks
                if not sent:
                    auth = alpaca_stream.build_auth(self._key, self._secret)
                    await socket.send(alpaca_stream.encode_message(auth, self._codec))
                    sent = True

    async def _read(self, socket: ClientConnection) -> NoReturn:
        while True:
            for control in self._take_frame(await self._receive(socket)):
                if control.kind == "subscription":
                    self._subscribed = len(control.channels.get("bars", ()))
            if not self._target.has_room():
                self._holds_back = True
                await self._target.wait_for_room()
                self._holds_back = False
                self._heard_s = self._clock.monotonic()

    async def _receive(self, socket: ClientConnection) -> bytes:
        frame = await socket.recv(decode=False)
        self._heard_s = self._clock.monotonic()
        return frame

    def _take_frame(self, frame: bytes) -> list[StreamControl]:
        """Pass on the market data of a frame; return its control messages, errors excepted."""
        try:
            items = alpaca_stream.parse_frame(frame, recv_ns=self._clock.time_ns())
        except CodecError as error:
            self._count_malformed("frame", error.reason.partition(":")[0])  # the rest differs from frame to frame
            return []
        data: list[Bar | StreamWatermark] = []
        controls: list[StreamControl] = []
        errors: list[StreamControl] = []
        for item in items:
            if isinstance(item, Bar):
                self._bars += 1
                data.append(item)
            elif isinstance(item, StreamWatermark):
                self._watermarks += 1
                data.append(item)
            elif isinstance(item, StreamUnread):
                if item.reason:
                    self._count_malformed(item.kind, item.reason, symbol=item.symbol)
                else:
                    self._ignored[item.kind] += 1
            elif item.kind == "error":
                errors.append(item)
            else:
                controls.append(item)
        if data:
            self._target.take(data)
        for item in errors:
            self._note_error(item)
        return controls

    def _count_malformed(self, kind: str, reason: str, *, symbol: str = "") -> None:
        name = f"{kind}: {reason}" if kind else reason
        self._malformed[name] += 1
        if self._malformed[name] == 1:
            _log.warning("upstream sent what cannot be read", feed=self._feed, what=name, symbol=symbol)

    def _note_error(self, control: StreamControl) -> None:
        self._errors[control.code] += 1
        kind = error_kind(control.code)
        reason = f"{control.message} ({control.code})"
        if kind is not ErrorKind.NOTED:
            raise _SessionEndError(reason, kind)
        _log.warning("upstream error", feed=self._feed, error=reason)

    async def _keep_subscribed(self, socket: ClientConnection) -> NoReturn:
        requested: set[str] = set()
        self._changed.clear()
        while True:
            wanted = self._wanted
            removed = sorted(requested.difference(wanted))
            added = [symbol for symbol in wanted if symbol not in requested]
            for message in _build_changes(added, removed, watermarks=self._takes_watermarks and not requested):
                await socket.send(alpaca_stream.encode_message(message, self._codec))
            requested.difference_update(removed)
            requested.update(added)
            timeout_s = None if wanted else self._timing.idle_close_s
            if not await self._wait_for_change(timeout_s):
                raise _SessionEndError("nobody wants its symbols", None)

    async def _watch_silence(self, socket: ClientConnection) -> NoReturn:
        timing = self._timing
        ping_s = self._clock.monotonic() + timing.ping_interval_s
        while True:
            now_s = self._clock.monotonic()
            if self._holds_back:  # what we do not read cannot be called silent
                self._heard_s = now_s
            if now_s - self._heard_s >= timing.silence_timeout_s:
                raise _SessionEndError(f"silent for {timing.silence_timeout_s:g} s", ErrorKind.LOST)
            if now_s >= ping_s:
                asyncio.ensure_future(await socket.ping()).add_done_callback(self._note_pong)
                ping_s = now_s + timing.ping_interval_s
            await asyncio.sleep(max(0.01, min(ping_s, self._heard_s + timing.silence_timeout_s) - now_s))

    def _note_pong(self, pong: asyncio.Future[float]) -> None:
        if not pong.cancelled() and pong.exception() is None:
            self._heard_s = self._clock.monotonic()


def _build_changes(added: list[str], removed: list[str], *, watermarks: bool) -> Iterator[dict[str, object]]:
    """Yield the messages that subscribe and unsubscribe, in batches.

    The watermarks come with the last batch: a slice that the server sends again on subscribing them is then complete.
    """
    for start in range(0, len(removed), SUBSCRIBE_BATCH):
        channels = {"bars": removed[start : start + SUBSCRIBE_BATCH]}
        yield alpaca_stream.build_subscription("unsubscribe", channels)
    for start in range(0, len(added), SUBSCRIBE_BATCH):
        channels = {"bars": added[start : start + SUBSCRIBE_BATCH]}
        if watermarks and start + SUBSCRIBE_BATCH >= len(added):
            channels[alpaca_stream.WATERMARKS] = ["*"]
        yield alpaca_stream.build_subscription("subscribe", channels)


def _parse_refused_handshake(error: InvalidStatus) -> _SessionEndError:
    status = error.response.status_code
    retry_after = error.response.headers.get("Retry-After", "")
    retry_after_s = (
        min(float(retry_after), LONGEST_RETRY_AFTER_S) if retry_after.isascii() and retry_after.isdigit() else 0.0
    )
    return _SessionEndError(
        f"the handshake was answered with HTTP {status}", handshake_kind(status), retry_after_s=retry_after_s
    )


def _describe(error: Exception, timed_out: str) -> str:
    if isinstance(error, TimeoutError):
        return timed_out
    if isinstance(error, ConnectionClosed):
        return f"the connection was closed: {error}"
    return f"{type(error).__name__}: {error}"
