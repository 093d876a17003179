"""What every upstream of the hub has in common: states, backoff, silence, one session after the other.

Event-loop only. A connection opens with the first thing that is wanted of it and closes when nothing has been wanted
for a while; in between it is opened again after every end, with the backoff that all of Dry Work shares, slowly after a
refusal.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, NoReturn, TypeVar

import msgspec
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from dry_work.addresses import is_loopback_url
from dry_work.backoff import CAP_S, INITIAL_S, MULTIPLIER, Backoff
from dry_work.clock import Clock
from dry_work.hub.core import ConnectionEvent, ConnectionState, ErrorKind, error_kind, handshake_kind, next_state
from dry_work.hub.order_events import ORDER_EVENTS
from dry_work.hub.upstreams.frame_times import FrameTimes
from dry_work.observability.metrics import HistogramCounts

MAX_FRAME_BYTES = 16 * 1024 * 1024
LONGEST_RETRY_AFTER_S = 300.0
LONGEST_NAME, MOST_NAMES, OTHERS = 40, 200, "others"  # of what is counted by name

_Link = TypeVar("_Link")  # what a session talks over

_log = structlog.get_logger(__name__)


class UpstreamTiming(msgspec.Struct, frozen=True, kw_only=True):
    """Times of an upstream connection, in seconds, and the number of tries."""

    open_timeout_s: float = 10.0
    auth_timeout_s: float = 10.0
    ping_interval_s: float = 30.0
    silence_timeout_s: float = 60.0  # neither data nor a pong for so long: reconnect
    slow_retry_s: float = 60.0  # longest wait after refusals, and the wait once `max_attempts` are used up
    first_slow_retry_s: float = 4.0  # wait after the first refusal; it doubles with each that follows
    idle_close_s: float = 30.0  # keep the connection so long after the last symbol is let go
    close_timeout_s: float = 1.0
    order_check_s: float = 60.0  # between two looks whether a stream of order updates keeps some back; 0: never
    order_grace_s: float = 5.0  # an update may come so much later than the order shows it
    max_attempts: int = 0  # tries since the last success before the slow retry; 0: unlimited
    first_wait_s: float = INITIAL_S  # of the backoff
    longest_wait_s: float = CAP_S
    wait_factor: float = MULTIPLIER


class FeedStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A connection at one moment, and its counts since the start."""

    feed: str
    state: ConnectionState = ConnectionState.DISCONNECTED
    wanted: int = 0  # symbols held by clients
    subscribed: int = 0  # of what the upstream has confirmed in this session, each symbol once for each channel
    refused: int = 0  # of what it has refused in this session, in the same way
    takes_watermarks: bool = False
    attempts: int = 0  # failed tries since the last success
    reconnects: int = 0  # connections opened after the first one
    connected_ns: int = 0  # of the last success; 0: none yet
    items: dict[str, int] = {}  # well-formed items of known types, by type
    watermarks: int = 0
    unknown: dict[str, int] = {}  # items of types that are not known, by type; they are passed on
    malformed: dict[str, int] = {}  # items and frames that could not be read, by reason
    errors: dict[int, int] = {}  # error frames by code
    error: str = ""  # the last refusal or loss; empty while connected
    ends: dict[str, int] = {}  # sessions, and tries at one, that failed, by kind: lost, fatal, behind
    processing: HistogramCounts | None = None  # seconds from a frame's arrival until its events wait for their clients

    @property
    def bars(self) -> int:
        """Minute bars."""
        return self.items.get("b", 0)

    @property
    def messages(self) -> int:
        """Items of known and unknown types."""
        return sum(self.items.values()) + sum(self.unknown.values())


class SessionEndError(Exception):
    """Ends a session: what follows depends on `kind`; None: nothing is wanted of the connection."""

    def __init__(self, reason: str, kind: ErrorKind | None, *, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.kind = kind
        self.retry_after_s = retry_after_s


class UpstreamConnection(ABC, Generic[_Link]):
    """One upstream, kept up while something is wanted of it.

    Args:
        feed: its name, for status and log.
        url: whole URL of the endpoint.
        on_change: called after every change of state.
    """

    pings = True  # the session's link can be asked whether the upstream is there

    def __init__(
        self,
        *,
        feed: str,
        url: str,
        clock: Clock,
        rng: random.Random,
        timing: UpstreamTiming | None = None,
        on_change: Callable[[FeedStatus], None] | None = None,
    ) -> None:
        self._feed = feed
        self._url = url
        self._clock = clock
        self._rng = rng
        self._timing = UpstreamTiming() if timing is None else timing
        self._on_change = on_change
        self._backoff = Backoff(
            rng,
            initial_s=self._timing.first_wait_s,
            cap_s=self._timing.longest_wait_s,
            multiplier=self._timing.wait_factor,
        )
        # It begins with seconds: a refusal is often that of a second connection, as the upstream has not yet seen that
        # the first one was cut.
        self._slow_backoff = Backoff(
            rng,
            initial_s=min(self._timing.first_slow_retry_s, self._timing.slow_retry_s),
            cap_s=self._timing.slow_retry_s,
        )
        self._state = ConnectionState.DISCONNECTED
        self._changed = asyncio.Event()  # what is wanted has changed
        self._sessions = 0
        self._attempts = 0
        self._connected_ns = 0
        self._items: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()
        self._malformed: Counter[str] = Counter()
        self._errors: Counter[int] = Counter()
        self._error = ""
        self._ends: Counter[str] = Counter()
        self._frames = FrameTimes(feed, clock)
        self._heard_s = 0.0
        self._holds_back = False  # we do not read, because what was read has no place to go

    @property
    @abstractmethod
    def is_wanted(self) -> bool:
        """Tell whether the connection is of use."""

    @abstractmethod
    def _open(self) -> AbstractAsyncContextManager[_Link]:
        """Return what opens the link and closes it again; it raises `SessionEndError` for whatever goes wrong."""

    @abstractmethod
    async def _authenticate(self, link: _Link) -> None:
        """Return once the upstream has accepted the credentials; raise `SessionEndError` when it refuses them."""

    @abstractmethod
    def _jobs(self, link: _Link) -> list[Coroutine[Any, Any, NoReturn]]:
        """Return what runs during a session, the reader first; each ends only by an exception."""

    @abstractmethod
    def status(self) -> FeedStatus:
        """Return the connection as it is now."""

    @abstractmethod
    def _begin_session(self) -> None:
        """The session is authenticated; its data follows."""

    @abstractmethod
    def _end_session(self) -> None:
        """The session is over."""

    async def _ping(self, link: _Link) -> None:
        """Ask whether the upstream is there; its answer counts as a sign of life."""

    def _describe(self, *, wanted: int, subscribed: int, refused: int = 0) -> FeedStatus:
        return FeedStatus(
            feed=self._feed,
            state=self._state,
            wanted=wanted,
            subscribed=subscribed,
            refused=refused,
            attempts=self._attempts,
            reconnects=max(0, self._sessions - 1),
            connected_ns=self._connected_ns,
            items=dict(self._items),
            unknown=dict(self._unknown),
            malformed=dict(self._malformed),
            errors=dict(self._errors),
            error=self._error,
            ends=dict(self._ends),
            processing=self._frames.read(),
        )

    async def run(self) -> None:
        """Keep the connection up until cancelled."""
        try:
            while True:
                while not self.is_wanted:
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
            except SessionEndError as end:
                if end.kind is None:
                    return
                wait_s = self._note_end(end)
            await self._wait_while_wanted(wait_s)
            if not self.is_wanted:
                return
            if self._state is ConnectionState.ERROR:
                self._move(ConnectionEvent.RETRY)
            self._move(ConnectionEvent.DELAY_ELAPSED)

    def _note_end(self, end: SessionEndError) -> float:
        """Change the state after a session that is to be followed by another; return the seconds until then."""
        self._error = end.reason
        self._attempts += 1
        self._ends[ErrorKind.LOST.value if end.kind is None else end.kind.value] += 1
        wait_s = max(self._backoff.next_wait_s(self._clock.monotonic()), end.retry_after_s)
        limit = self._timing.max_attempts
        slow_wait_s = self._timing.slow_retry_s * self._rng.uniform(0.9, 1.1)
        if end.kind is ErrorKind.FATAL:
            slow_wait_s = self._slow_backoff.next_wait_s(self._clock.monotonic())
            self._move(ConnectionEvent.REFUSED)
        else:
            self._move(ConnectionEvent.SOCKET_CLOSED)
            if limit and self._attempts >= limit:
                self._move(ConnectionEvent.ATTEMPTS_USED_UP)
        if self._state is ConnectionState.ERROR:
            wait_s = max(slow_wait_s, end.retry_after_s)
            _log.error("upstream refused", feed=self._feed, reason=end.reason, retry_in_s=round(wait_s, 1))
        else:
            _log.warning("upstream lost", feed=self._feed, reason=end.reason, retry_in_s=round(wait_s, 2))
        return wait_s

    async def _wait_while_wanted(self, wait_s: float) -> None:
        end_s = asyncio.get_running_loop().time() + wait_s
        while self.is_wanted and (left_s := end_s - asyncio.get_running_loop().time()) > 0:
            await self._wait_for_change(left_s)

    async def _wait_for_change(self, timeout_s: float | None) -> bool:
        """Sleep until what is wanted has changed, at most `timeout_s` seconds; tell whether it has."""
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
            self._connected_ns = self._clock.time_ns()
        if self._on_change is not None:
            self._on_change(self.status())

    # --- one session

    async def _run_session(self) -> NoReturn:
        async with self._open() as link:
            self._sessions += 1
            self._move(ConnectionEvent.SOCKET_OPEN)
            self._heard_s = self._clock.monotonic()
            await self._converse(link)

    async def _converse(self, link: _Link) -> NoReturn:
        timing = self._timing
        try:
            async with asyncio.timeout(timing.auth_timeout_s):
                await self._authenticate(link)
        except TimeoutError:
            raise SessionEndError(
                f"no answer to authentication within {timing.auth_timeout_s:g} s", ErrorKind.LOST
            ) from None
        self._backoff.mark_connected(self._clock.monotonic())
        self._slow_backoff.mark_connected(self._clock.monotonic())
        self._attempts = 0
        self._move(ConnectionEvent.AUTH_SUCCESS)
        self._begin_session()
        jobs = [*self._jobs(link), self._watch_silence(link)]
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
            self._end_session()

    def _count_event(self, event: str) -> None:
        """Count an order update, which goes on whether its event is known or not."""
        if event in ORDER_EVENTS:
            self._items[event] += 1
        else:
            self._count_unknown(event)

    def _count_unknown(self, kind: str) -> None:
        name = kind[:LONGEST_NAME]
        if name not in self._unknown and len(self._unknown) >= MOST_NAMES:
            name = OTHERS
        self._unknown[name] += 1
        if self._unknown[name] == 1:
            _log.info("upstream sends what is not known here", feed=self._feed, kind=name)

    def _count_malformed(self, kind: str, reason: str, *, symbol: str = "") -> None:
        name = f"{kind}: {reason}" if kind else reason
        if name not in self._malformed and len(self._malformed) >= MOST_NAMES:
            name = OTHERS
        self._malformed[name] += 1
        if self._malformed[name] == 1:
            _log.warning("upstream sent what cannot be read", feed=self._feed, what=name, symbol=symbol)

    def _note_error(self, code: int, message: str) -> None:
        self._errors[code] += 1
        kind = error_kind(code)
        reason = f"{message} ({code})"
        if kind is not ErrorKind.NOTED:
            raise SessionEndError(reason, kind)
        _log.warning("upstream error", feed=self._feed, error=reason)

    async def _watch_silence(self, link: _Link) -> NoReturn:
        timing = self._timing
        ping_s = self._clock.monotonic() + timing.ping_interval_s if self.pings else math.inf
        while True:
            now_s = self._clock.monotonic()
            if self._holds_back:  # what we do not read cannot be called silent
                self._heard_s = now_s
            if now_s - self._heard_s >= timing.silence_timeout_s:
                raise SessionEndError(f"silent for {timing.silence_timeout_s:g} s", ErrorKind.LOST)
            if now_s >= ping_s:
                await self._ping(link)
                ping_s = now_s + timing.ping_interval_s
            await asyncio.sleep(max(0.01, min(ping_s, self._heard_s + timing.silence_timeout_s) - now_s))


class WebSocketConnection(UpstreamConnection[ClientConnection]):
    """An upstream that is a WebSocket.

    Args:
        headers: of the handshake.
        options: as `UpstreamConnection` takes them.
    """

    def __init__(self, *, headers: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._headers = dict(headers or {})

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[ClientConnection]:
        timing = self._timing
        try:
            socket = await connect(
                self._url,
                additional_headers=self._headers,
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
            raise SessionEndError(_describe(error, "connecting took too long"), ErrorKind.LOST) from error
        try:
            yield socket
        except (OSError, WebSocketException) as error:
            raise SessionEndError(_describe(error, "the connection timed out"), ErrorKind.LOST) from error
        finally:
            with contextlib.suppress(OSError, WebSocketException):
                await socket.close()

    async def _receive(self, socket: ClientConnection) -> bytes:
        frame = await socket.recv(decode=False)
        self._heard_s = self._clock.monotonic()
        return frame

    async def _ping(self, link: ClientConnection) -> None:
        asyncio.ensure_future(await link.ping()).add_done_callback(self._note_pong)

    def _note_pong(self, pong: asyncio.Future[float]) -> None:
        if not pong.cancelled() and pong.exception() is None:
            self._heard_s = self._clock.monotonic()


def parse_retry_after(text: str) -> float:
    """Return the seconds of a `Retry-After`, 0 when it does not give any; a date counts as none."""
    return min(float(text), LONGEST_RETRY_AFTER_S) if text.isascii() and text.isdigit() else 0.0


def _parse_refused_handshake(error: InvalidStatus) -> SessionEndError:
    status = error.response.status_code
    return SessionEndError(
        f"the handshake was answered with HTTP {status}",
        handshake_kind(status),
        retry_after_s=parse_retry_after(error.response.headers.get("Retry-After", "")),
    )


def _describe(error: Exception, timed_out: str) -> str:
    if isinstance(error, TimeoutError):
        return timed_out
    if isinstance(error, ConnectionClosed):
        return f"the connection was closed: {error}"
    return f"{type(error).__name__}: {error}"
