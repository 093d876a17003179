"""NATS JetStream as a way to the hub's bars: one consumer of the data stream for all feeds.

A request tells the hub what is wanted, again and again (see `dry_work.hub.sinks.nats_items`). The stream keeps for the
consumer what it has not acknowledged: a session that follows another takes over where that one has ended, with a new
consumer that is made before the old one goes. When the old one is not there any more, something may be missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import msgspec
import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext, api
from nats.js.errors import Error as JetStreamError
from nats.js.errors import NotFoundError

from dry_work import pulse
from dry_work.errors import ConfigError, FeedDisconnectedError
from dry_work.feeds.hub_link import Arrival, Opening, Position
from dry_work.feeds.hub_ways import WayOverServer
from dry_work.wire.nats_subjects import Subjects

REQUEST_TIMEOUT_S = 3.0
LEASE_S = 30.0  # how long the hub keeps the symbols of a reader that is not heard of
KEPT_S = 300.0  # how long NATS keeps what a reader that is away has not acknowledged
PENDING = 4_096  # messages that NATS sends ahead of their acknowledgement
BATCH = 256

_FAILURES = (nats.errors.Error, JetStreamError, OSError, TimeoutError)
_STATUS_ITEMS = ("s", "l")
_NO_NAME = re.compile(r"[^A-Za-z0-9_-]")
_Answer = TypeVar("_Answer")


class _Message(msgspec.Struct):
    epoch: str
    offset: int
    item: dict[str, Any]
    lost: int = 0


_decoder = msgspec.json.Decoder(_Message)


@dataclass(eq=False, repr=False)
class NatsTransport(WayOverServer):
    """The way over NATS, to servers (`address`, several with commas between) with the hub's data stream."""

    name = "NATS"
    # The consumer that keeps what is not acknowledged, and the last message that was taken.
    consumer: str = field(init=False, default="")
    sequence: int = field(init=False, default=0)
    lost: int = field(init=False, default=0)  # events that the hub could not publish, by its last word
    sessions: int = field(init=False, default=0)

    @cached_property
    def wanted(self) -> frozenset[str]:
        """The symbols."""
        return frozenset(self.symbols)

    @cached_property
    def subjects(self) -> Subjects:
        """The subjects of the hub."""
        return Subjects(self.settings.prefix)

    def describe(self) -> str:
        return f"{self.settings.address} (NATS_URL)"

    def build_session(self, feeds: tuple[str, ...], positions: Mapping[str, Position]) -> NatsSession:
        return NatsSession(self, feeds)


class NatsSession:
    """One connection. Its event loop runs while the lane's thread is in one of its methods."""

    def __init__(self, transport: NatsTransport, feeds: tuple[str, ...]) -> None:
        self._transport = transport
        self._feeds = feeds
        self._runner = asyncio.Runner()
        self._lock = threading.Lock()  # guards the task
        self._task: asyncio.Task[Any] | None = None
        self._is_interrupted = False
        self._client = Client()
        self._inbox: Subscription | None = None
        self._renewals: asyncio.Task[None] | None = None
        self._heard_s = 0.0  # of the consumer
        self._epoch = ""
        self._unacknowledged: Any = None  # the last message that was handed over

    def begin(self, timeout_s: float) -> Opening:
        return self._run(self._begin(timeout_s))

    def receive(self) -> Sequence[Arrival]:
        return self._run(self._receive())

    def tend(self) -> None:
        with contextlib.suppress(FeedDisconnectedError):
            self._run(asyncio.sleep(0.001))

    def interrupt(self) -> None:
        with self._lock:
            self._is_interrupted = True
            if self._task is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._runner.get_loop().call_soon_threadsafe(self._task.cancel)

    def close(self, *, for_good: bool) -> None:
        try:
            self._runner.run(self._close(for_good=for_good))
        finally:
            self._runner.close()

    def _run(self, work: Coroutine[Any, Any, _Answer]) -> _Answer:
        async def run() -> _Answer:
            with self._lock:
                self._task = asyncio.current_task()
                if self._is_interrupted:
                    work.close()
                    raise FeedDisconnectedError("the session is closed")
            try:
                return await work
            finally:
                with self._lock:
                    self._task = None

        try:
            return self._runner.run(run())
        except asyncio.CancelledError:
            raise FeedDisconnectedError("the session is closed") from None
        except nats.errors.NoRespondersError:
            raise FeedDisconnectedError(
                "no hub answers: is one running with --sinks nats, ENABLE_STOCK_STREAM=true?"
            ) from None
        except nats.errors.AuthorizationError:
            raise ConfigError("NATS refuses the credentials: set NATS_USER and NATS_PASSWORD") from None
        except _FAILURES as error:
            raise FeedDisconnectedError(f"{type(error).__name__}: {error}".rstrip(": ")) from error

    async def _begin(self, timeout_s: float) -> Opening:
        settings = self._transport.settings
        refusals: list[Exception] = []

        async def note(error: Exception) -> None:
            refusals.append(error)

        options: dict[str, Any] = {
            "servers": settings.address.split(","),
            "name": f"dry-work {self._transport.client}",
            "user": settings.user or None,
            "password": settings.password or None,
            "allow_reconnect": False,  # the lane does it
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0.01,
            "connect_timeout": timeout_s,
            "ping_interval": max(1, round(self._transport.silence_s / 2)),
            "max_outstanding_pings": 1,
            "error_cb": note,
        }
        if settings.address.startswith(("tls:", "wss:")):
            options["tls"] = ssl.create_default_context()
        try:
            await asyncio.wait_for(self._client.connect(**options), timeout_s)
        except (nats.errors.Error, OSError):
            if any("authorization" in str(error).lower() for error in refusals):
                raise nats.errors.AuthorizationError from None
            raise
        js = self._client.jetstream(timeout=REQUEST_TIMEOUT_S)
        recovered = await self._subscribe(js)
        # Only now, so that what the hub publishes for this reader finds its consumer.
        positions = await self._hold()
        self._heard_s = asyncio.get_running_loop().time()
        self._renewals = asyncio.create_task(self._renew())
        return Opening(positions=positions, recovered=recovered)

    async def _subscribe(self, js: JetStreamContext) -> bool:
        """Make a consumer; tell whether nothing is missing since that of the session before."""
        transport, stream = self._transport, self._transport.settings.stream
        before, recovered = transport.consumer, True
        if before:
            try:
                await js.consumer_info(stream, before)
            except NotFoundError:
                recovered = False
        if not before or not recovered:
            transport.sequence = (await js.stream_info(stream)).state.last_seq
        transport.sessions += 1
        name = _NO_NAME.sub("-", f"dry-work-{transport.client}-{transport.sessions}")
        inbox = self._client.new_inbox()
        self._inbox = await self._client.subscribe(inbox)
        await js.add_consumer(
            stream,
            api.ConsumerConfig(
                name=name,
                deliver_subject=inbox,
                deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=transport.sequence + 1,
                filter_subjects=[transport.subjects.items(feed) for feed in self._feeds],
                ack_policy=api.AckPolicy.ALL,
                ack_wait=2 * KEPT_S,
                max_ack_pending=PENDING,
                idle_heartbeat=transport.silence_s / 4,
                inactive_threshold=KEPT_S,
                mem_storage=True,
            ),
        )
        transport.consumer = name
        if before and recovered:
            with contextlib.suppress(NotFoundError):
                await js.delete_consumer(stream, before)
        return recovered

    async def _hold(self, *, lease_s: float = LEASE_S) -> dict[str, Position]:
        """Tell the hub what is wanted; return where its feeds stand.

        Raises:
            ConfigError: the hub refuses.
        """
        transport = self._transport
        request: dict[str, Any] = {"client": transport.client, "lease_s": lease_s}
        request["symbols"] = transport.symbols if lease_s else []
        if transport.statuses:
            request["statuses"] = True
        data = orjson.dumps(request)
        message = await self._client.request(transport.subjects.holds, data, timeout=REQUEST_TIMEOUT_S)
        told = orjson.loads(message.data)
        if "error" in told:
            raise ConfigError(f"the hub refuses: {told['error']}")
        self._epoch = str(told["epoch"])
        return {feed: Position(self._epoch, int(told["positions"][feed])) for feed in self._feeds}

    async def _renew(self) -> None:
        """Repeat what is wanted; ends when the hub does not answer for too long."""
        loop = asyncio.get_running_loop()
        answered_s = loop.time()
        while loop.time() - answered_s < self._transport.silence_s:
            await asyncio.sleep(min(LEASE_S, self._transport.silence_s) / 5)
            with contextlib.suppress(*_FAILURES, ConfigError):
                await self._hold()
                answered_s = loop.time()

    async def _receive(self) -> list[Arrival]:
        assert self._inbox is not None
        assert self._renewals is not None
        await self._acknowledge()
        arrivals: list[Arrival] = []
        timeout_s = min(self._transport.silence_s / 4, pulse.EVERY_S)
        loop = asyncio.get_running_loop()
        if self._renewals.done():
            raise FeedDisconnectedError("no hub answers")
        try:
            message = await self._inbox.next_msg(timeout=timeout_s)
        except (TimeoutError, nats.errors.TimeoutError):
            if not self._client.is_connected:
                raise FeedDisconnectedError("the connection was lost") from None
            if loop.time() - self._heard_s > self._transport.silence_s:
                raise FeedDisconnectedError("the server is silent") from None
            return arrivals
        self._heard_s = loop.time()
        self._take(message, arrivals)
        while self._inbox.pending_msgs and len(arrivals) < BATCH:
            self._take(await self._inbox.next_msg(timeout=timeout_s), arrivals)
        return arrivals

    async def _acknowledge(self) -> None:
        """Acknowledge what the receive before has handed over, and all before it."""
        message, self._unacknowledged = self._unacknowledged, None
        if message is not None:
            self._transport.sequence = message.metadata.sequence.stream
            await message.ack()

    def _take(self, message: Any, arrivals: list[Arrival]) -> None:
        if message.header and "Status" in message.header:  # a heartbeat
            return
        self._unacknowledged = message
        feed = message.subject.split(".")[-2]
        try:
            read = _decoder.decode(message.data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            arrivals.append(Arrival(feed=feed, epoch=self._epoch, reason="not JSON", data=message.data))
            return
        lost = read.lost - self._transport.lost if read.epoch == self._epoch else 0
        self._transport.lost, self._epoch = read.lost, read.epoch
        symbol = read.item.get("S")
        is_wanted = symbol is None or symbol in self._transport.wanted
        if read.item.get("T") in _STATUS_ITEMS:  # others may have asked for them
            is_wanted = is_wanted and self._transport.statuses
        arrivals.append(
            Arrival(feed=feed, epoch=read.epoch, offset=read.offset, item=read.item if is_wanted else None, lost=lost)
        )

    async def _close(self, *, for_good: bool) -> None:
        if self._renewals is not None:
            self._renewals.cancel()
            await asyncio.gather(self._renewals, return_exceptions=True)
        if self._client.is_connected:
            with contextlib.suppress(*_FAILURES, ConfigError):
                async with asyncio.timeout(1.0):
                    if for_good:
                        await self._hold(lease_s=0.0)
                        js = self._client.jetstream(timeout=1.0)
                        await js.delete_consumer(self._transport.settings.stream, self._transport.consumer)
        with contextlib.suppress(*_FAILURES):
            async with asyncio.timeout(1.0):
                await self._client.close()
