"""Streams of trade events as values, each on a thread of its own; here Alpaca's trade_updates WebSocket.

`EventStream` is what a stream has to be for the broker; `BrokerTradeEvents` is the other one.

Alpaca-py's `TradingStream` does not fit here: it does not tell when it is listening, nor that it has reconnected, after
which what was missed has to be fetched; it keeps a refusal of the credentials to itself and tries again for ever; and
it takes up to five seconds to stop. The protocol is four messages, so they are spoken directly.

The simulated exchange offers more to who asks for it: its stream `slices`, and after a reconnect the events that were
missed, in their order.

A peer that does not answer pings is dropped and connected again. Whether events are missing although it answers cannot
be seen here: the broker looks its orders up when it waits for an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import random
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from dry_work.addresses import is_loopback_url
from dry_work.backoff import CAP_S, Backoff
from dry_work.errors import BrokerUnavailableError, CodecError, RateLimitedError, VenueAuthError
from dry_work.orders.model import TradeEvent
from dry_work.pulse import keep_pulse
from dry_work.wire.alpaca_rest import parse_json, parse_trade_event

TRADE_UPDATES = "trade_updates"
SLICES = "slices"  # of the simulated exchange

_OPEN_TIMEOUT_S = 10.0
_ANSWER_TIMEOUT_S = 10.0
_PING_INTERVAL_S = 10.0
_PING_TIMEOUT_S = 20.0
_CLOSE_TIMEOUT_S = 1.0
_SLOW_RETRY_S = 30.0  # after a refusal of the credentials
_LONGEST_RETRY_AFTER_S = 300.0
_MAX_FRAME_BYTES = 4 * 1024 * 1024

_log = structlog.get_logger(__name__)


class SliceMark(msgspec.Struct, frozen=True):
    """The simulated exchange's word that the trade events of a slice are out."""

    event_id: str  # the last one of any account by then, as the slice's watermark has it
    account_event_id: str  # the last one of this account so far, empty when none


class EventStream(ABC):
    """The trade events of one account. `start`, `wait_listening`, `stop` and the attributes may be used by any thread.

    Args:
        url: whole URL of the endpoint.
        on_event: takes every event, in order, on the stream's thread.
        on_listening: called after every (re)connect, once events flow; its argument counts the connections from 1.
        on_unreadable: called when an event could not be read.
        on_failure: called once when the thread dies.
        on_slice: takes what the simulated exchange tells of slices, if it is wanted.
        longest_wait_s: between two tries to connect.
        rng: for the waits between connections.
    """

    name = "trade events"  # of the thread, and in the log

    def __init__(
        self,
        url: str,
        *,
        on_event: Callable[[TradeEvent], None],
        on_listening: Callable[[int], None],
        on_unreadable: Callable[[CodecError], None],
        on_failure: Callable[[BaseException], None],
        on_slice: Callable[[SliceMark], None] | None = None,
        longest_wait_s: float = CAP_S,
        rng: random.Random | None = None,
    ) -> None:
        self.url = url
        self._on_event = on_event
        self._on_listening = on_listening
        self._on_unreadable = on_unreadable
        self._on_failure = on_failure
        self._on_slice = on_slice
        self._backoff = Backoff(rng or random.Random(), cap_s=longest_wait_s)
        self._changed = threading.Condition()
        self._error: Exception | None = None  # why the last connection ended or failed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.connected = False
        self.connections = 0
        self.position: str | None = None  # id of the last event that is in, as far as the venue tells ids
        self.resumed = False  # this connection goes on where the one before it ended
        self.counters: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def start(self) -> None:
        """Begin to connect."""
        self._thread = threading.Thread(target=self._run_thread, name=self.name, daemon=True)
        self._thread.start()

    def wait_listening(self, timeout_s: float) -> None:
        """Return once the stream is listening.

        Raises:
            VenueAuthError: the credentials were refused.
            BrokerUnavailableError: it was not listening in time.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self.connected or isinstance(self._error, VenueAuthError) or self._stopping, timeout_s
            )
            if self.connected:
                return
            if isinstance(self._error, VenueAuthError):
                raise VenueAuthError(self._error.message, http_status=self._error.http_status)
            why = f": {type(self._error).__name__}: {self._error}" if self._error is not None else ""
            raise BrokerUnavailableError(f"{self.url} was not listening after {timeout_s:g} s{why}")

    def reconnect(self) -> None:
        """Drop the connection, if there is one, and connect again."""
        loop, task = self._loop, self._task
        if loop is not None and task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._drop)

    def stop(self, timeout_s: float = 2.0) -> None:
        """Close the connection and end the thread. May be called twice, and before `start`."""
        self._stopping = True
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        loop, task = self._loop, self._task
        if loop is not None and task is not None and thread.is_alive():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)
        thread.join(timeout_s)
        if thread.is_alive():
            _log.warning("a stream did not stop in time", stream=self.name, timeout_s=timeout_s)

    @abstractmethod
    async def _listen(self) -> None:
        """Connect, and take events until the connection ends; `_take_until_dropped` once events flow.

        Raises:
            VenueAuthError: the credentials were refused.
            BrokerUnavailableError, RateLimitedError, OSError, TimeoutError: the connection was lost or not made.
        """

    # The thread

    def _run_thread(self) -> None:
        try:
            asyncio.run(self._run())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            _log.exception("a stream failed", stream=self.name)
            self._on_failure(error)
        finally:
            self._set_state(connected=False)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        keep_pulse(self._loop)
        self._task = asyncio.current_task()
        self._dropped = asyncio.Event()
        while True:
            longest_s = 0.0
            try:
                await self._listen()
                self._set_state(connected=False, error=BrokerUnavailableError("the stream was closed"))
            except VenueAuthError as error:
                longest_s = _SLOW_RETRY_S
                self._set_state(connected=False, error=error)
                _log.error("a stream refused the credentials", stream=self.name, retry_s=longest_s)
            except (OSError, TimeoutError, BrokerUnavailableError, RateLimitedError) as error:
                if isinstance(error, RateLimitedError):
                    longest_s = min(error.retry_after_s or 0.0, _LONGEST_RETRY_AFTER_S)
                self._set_state(connected=False, error=error)
            wait_s = max(self._backoff.next_wait_s(time.monotonic()), longest_s)
            self.counters["reconnects"] += 1
            if longest_s != _SLOW_RETRY_S:
                _log.warning(
                    "a stream is disconnected", stream=self.name, error=str(self._error), retry_s=round(wait_s, 2)
                )
            await asyncio.sleep(wait_s)

    async def _take_until_dropped(self, take_all: Coroutine[Any, Any, None]) -> None:
        """Tell that events flow, and await `take_all`, or a word to drop the connection."""
        self._backoff.mark_connected(time.monotonic())
        self._dropped.clear()
        self.connections += 1
        self._set_state(connected=True)
        self._on_listening(self.connections)
        dropped = asyncio.create_task(self._dropped.wait())
        reading = asyncio.create_task(take_all)
        try:
            await asyncio.wait({dropped, reading}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
        finally:
            for task in (dropped, reading):
                task.cancel()
            await asyncio.gather(dropped, reading, return_exceptions=True)

    def _tell_unreadable(self, error: CodecError) -> None:
        self.counters["unreadable"] += 1
        _log.warning("a trade event cannot be read", stream=self.name, reason=error.reason)
        self._on_unreadable(error)

    def _drop(self) -> None:
        self._dropped.set()

    def _set_state(self, *, connected: bool, error: Exception | None = None) -> None:
        with self._changed:
            self.connected = connected
            if error is not None or connected:
                self._error = error
            self._changed.notify_all()


class TradeUpdates(EventStream):
    """The trade_updates stream of the key's own account.

    Args:
        url: whole URL of the endpoint.
        api_key, secret_key: credentials; never part of an error or of `repr`.
        on_slice: takes what the simulated exchange tells of slices, which is asked for only when this is given; then a
            reconnect is asked to go on where the connection before it ended.
        options: as `EventStream` takes them.
    """

    name = "trade updates"

    def __init__(
        self,
        url: str,
        *,
        api_key: str,
        secret_key: str,
        on_slice: Callable[[SliceMark], None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(url, on_slice=on_slice, **options)
        self._api_key = api_key
        self._secret_key = secret_key

    async def _listen(self) -> None:
        try:
            async with self._open() as socket:
                await self._read(socket)
        except WebSocketException as error:
            raise BrokerUnavailableError(f"{type(error).__name__}: {error}") from error

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[ClientConnection]:
        options: dict[str, Any] = {}
        if is_loopback_url(self.url) and "proxy" in inspect.signature(connect).parameters:
            options["proxy"] = None
        try:
            socket = await connect(
                self.url,
                open_timeout=_OPEN_TIMEOUT_S,
                ping_interval=_PING_INTERVAL_S,
                ping_timeout=_PING_TIMEOUT_S,
                close_timeout=_CLOSE_TIMEOUT_S,
                max_size=_MAX_FRAME_BYTES,
                **options,
            )
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                raise VenueAuthError("the stream refused the credentials", http_status=status) from error
            raise
        try:
            yield socket
        finally:
            await socket.close()

    async def _read(self, socket: ClientConnection) -> None:
        credentials = {"key_id": self._api_key, "secret_key": self._secret_key}
        await socket.send(json.dumps({"action": "authenticate", "data": credentials}))
        answer = await self._answer(socket, "authorization")
        if answer.get("status") != "authorized":
            raise VenueAuthError("the trade_updates stream refused the credentials")
        wanted: dict[str, Any] = {"streams": [TRADE_UPDATES]}
        if self._on_slice is not None:
            wanted["streams"].append(SLICES)
            if self.position is not None:
                wanted["since"] = self.position
        await socket.send(json.dumps({"action": "listen", "data": wanted}))
        answer = await self._answer(socket, "listening")
        if TRADE_UPDATES not in (answer.get("streams") or ()):
            raise BrokerUnavailableError("the venue does not offer trade_updates on this stream")
        self.resumed = answer.get("resumed") is True
        if not self.resumed and isinstance(answer.get("event_id"), str):
            self.position = answer["event_id"]
        await self._take_until_dropped(self._take_all(socket))

    async def _take_all(self, socket: ClientConnection) -> None:
        async for frame in socket:
            self._take(frame)

    async def _answer(self, socket: ClientConnection, stream: str) -> dict[str, Any]:
        """Return the data of the answer on `stream`; events that come before it are taken."""
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            async for frame in socket:
                message = self._take(frame)
                if message is not None and message.get("stream") == stream and isinstance(message.get("data"), dict):
                    return dict(message["data"])
        raise BrokerUnavailableError(f"the stream was closed without an answer of {stream!r}")

    def _take(self, frame: str | bytes) -> dict[str, Any] | None:
        """Take an event; return any other message."""
        try:
            message = parse_json(frame)
            if not isinstance(message, dict):
                raise CodecError("the message is no object", data=frame)
            if message.get("stream") == SLICES and self._on_slice is not None:
                self._on_slice(_parse_slice(message))
                return None
            if message.get("stream") != TRADE_UPDATES:
                return message
            event = parse_trade_event(message.get("data") or {})
        except CodecError as error:
            self._tell_unreadable(error)
            return None
        self.counters["events"] += 1
        self._on_event(event)
        if self.position is not None:
            self.position = max(self.position, event.event_id)
        return None


def _parse_slice(message: dict[str, Any]) -> SliceMark:
    try:
        return msgspec.convert(message.get("data"), type=SliceMark)
    except msgspec.ValidationError as error:
        raise CodecError(f"a slice cannot be read: {error}") from None
