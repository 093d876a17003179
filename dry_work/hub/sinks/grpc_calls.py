"""One streaming call of the gRPC sink: its queue, what it holds upstream, and its end. Event-loop only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import grpc
import structlog

from dry_work.errors import BrokerError, ConfigError, HubError
from dry_work.hub.bus import DATA_HISTORY
from dry_work.hub.events import ALL, OPTIONS, HubEvent
from dry_work.hub.ports import HubPort
from dry_work.hub.queues import ClientQueue, Overflow
from dry_work.hub.sinks.grpc_contracts import FRESH_S, OptionContracts
from dry_work.hub.sinks.grpc_filters import (
    CONFLATED_KEY,
    DROPPED_KEY,
    EPOCH_KEY,
    OFFSET_KEY,
    RECOVERED_KEY,
    Filter,
    StreamKind,
    Wishes,
)

RETRY_S = 30.0  # after a list of contracts that could not be had

_log = structlog.get_logger(__name__)


class FilteredQueue(ClientQueue):
    """A queue for those of the events that match: what does not is not offered to its client at all."""

    def __init__(
        self,
        capacity: int,
        overflow: Overflow,
        *,
        matches: Callable[[HubEvent], bool],
        on_ready: Callable[[], None],
    ) -> None:
        super().__init__(capacity, overflow, on_ready=on_ready)
        self._matches = matches

    def offer(self, event: HubEvent) -> None:
        if self._matches(event):
            super().offer(event)


class StreamCall:
    """One call.

    Args:
        hub: gives the events.
        wanted: what they are to be.
        wishes: where they begin.
        name: of the client, for what it holds upstream.
        context: gRPC's, of the call.
        encode: returns the response with an event; empty when there is none.
        history: events of market data that the client can go back.
        contracts: lists the contracts of `wanted.roots`.
    """

    def __init__(
        self,
        hub: HubPort,
        kind: StreamKind,
        wanted: Filter,
        wishes: Wishes,
        *,
        name: str,
        context: Any,
        encode: Callable[[HubEvent], bytes],
        history: int,
        contracts: OptionContracts,
    ) -> None:
        self.kind = kind
        self._hub = hub
        self._wanted = wanted
        self._wishes = wishes
        self._name = name
        self._context = context
        self._encode = encode
        self._history = history
        self._contracts = contracts
        self._ready = asyncio.Event()
        capacity, overflow = kind.capacity, kind.overflow
        if wishes.items:
            # Its client misses nothing in silence: a call that cannot go on ends, and the next one goes on from there.
            self._history = capacity = DATA_HISTORY
            overflow = Overflow.CLOSE
        self._queue = (
            ClientQueue(capacity, overflow, on_ready=self._note_ready)
            if wanted.matches is None
            else FilteredQueue(capacity, overflow, matches=wanted.matches, on_ready=self._note_ready)
        )
        self._replayed = 0
        self._written = 0
        self._unreadable = 0
        self._offset = 0  # of the last event that was written
        self._end = ""  # why the call is to end

    async def run(self) -> None:
        """Stream until the client goes or the call is ended; leave nothing behind.

        Raises:
            AbortError: gRPC's, at the end; asyncio.CancelledError when the client is gone.
        """
        bus, wanted = self._hub.bus, self._wanted
        keeper: asyncio.Task[NoReturn] | None = None
        try:
            # No other task runs between these: there is no gap and nothing twice.
            metadata, events = self._catch_up()
            bus.attach(self._queue, wanted.topics)
            self._hub.hold(self._name, wanted.held)
            if wanted.roots:
                keeper = asyncio.create_task(self._hold_contracts(), name=f"hub-{self._name}-contracts")
            await self._context.send_initial_metadata(metadata)
            for event in events:
                await self._write(event)
            await self._write_queue()
        finally:
            bus.detach(self._queue)
            if keeper is not None:
                keeper.cancel()  # it holds nothing any more from here on
            self._hub.release(self._name)
            if keeper is not None:
                await asyncio.gather(keeper, return_exceptions=True)

    def end(self, reason: str) -> None:
        """Write what waits, and end the call."""
        self._end = self._end or reason
        self._hub.bus.detach(self._queue)
        self._ready.set()

    def counts(self) -> dict[str, int]:
        """Return the counts of this call's events."""
        counts = self._queue.counts
        offered = counts.offered + self._replayed
        dropped = counts.dropped + self._unreadable
        return {
            "offered": offered,
            "delivered": self._written,
            "conflated": counts.conflated,
            "dropped": dropped,
            "waiting": offered - self._written - counts.conflated - dropped,
        }

    # --- what goes out

    def _catch_up(self) -> tuple[tuple[tuple[str, str], ...], list[HubEvent]]:
        """Return the initial metadata, and the events that come before those of the queue."""
        bus, wanted, position = self._hub.bus, self._wanted, self._wishes.position
        offset = bus.position(wanted.feed)
        self._offset = offset
        metadata = [(EPOCH_KEY, bus.epoch), (OFFSET_KEY, str(offset))]
        events: list[HubEvent] = []
        if position is not None:
            replay = bus.replay(wanted.feed, wanted.topics, epoch=position.epoch, offset=position.offset)
            events = self._choose(replay.events)
            recovered = replay.recovered
            if not self.kind.tells_orders:  # of those the client gets all that there is
                recovered = recovered and len(events) <= self._history
                events = events if recovered else self._choose(bus.latest(wanted.topics))
            metadata.append((RECOVERED_KEY, "true" if recovered else "false"))
        elif self._wishes.snapshot:
            events = self._choose(bus.latest(wanted.topics))
        self._replayed = len(events)
        return tuple(metadata), events

    def _choose(self, events: Iterable[HubEvent]) -> list[HubEvent]:
        matches = self._wanted.matches
        return [event for event in events if matches is None or matches(event)]

    async def _write_queue(self) -> None:
        while True:
            for event in self._queue.take(1):
                await self._write(event)
            if len(self._queue):
                continue
            if self._queue.is_closed:
                _log.warning("a client did not keep up", client=self._name, method=self.kind.method)
                reason = (
                    f"more than {self._queue.capacity} events waited for this client: come back with "
                    f"{EPOCH_KEY} and {OFFSET_KEY} of the trailing metadata"
                )
                await self._abort(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
            if self._end:
                await self._abort(grpc.StatusCode.UNAVAILABLE, self._end)
            self._ready.clear()
            await self._ready.wait()

    async def _write(self, event: HubEvent) -> None:
        encoded = self._encode(event)
        if not encoded:
            self._unreadable += 1
            return
        await self._context.write(encoded)
        self._written += 1
        self._offset = event.offset

    async def _abort(self, code: grpc.StatusCode, reason: str) -> None:
        counts = self.counts()
        dropped = 0 if self._queue.is_closed else counts["dropped"]  # orders: they come with the next call
        trailing = (
            (EPOCH_KEY, self._hub.bus.epoch),
            (OFFSET_KEY, str(self._offset)),
            (DROPPED_KEY, str(dropped)),
            (CONFLATED_KEY, str(counts["conflated"])),
        )
        await self._context.abort(code, reason, trailing)

    def _note_ready(self) -> None:
        if self._queue.is_closed:
            self._hub.bus.detach(self._queue)
        self._ready.set()

    # --- contracts

    async def _hold_contracts(self) -> NoReturn:
        """Hold the contracts of the roots one by one, and follow the venue's list of them."""
        while True:
            wait_s = FRESH_S
            for root in self._wanted.roots:
                try:
                    symbols: Iterable[str] = await self._contracts.find(root)
                except (BrokerError, HubError) as error:
                    _log.warning("the contracts of an underlying cannot be listed", root=root, error=str(error))
                    if isinstance(error, BrokerError) and error.retryable:
                        wait_s = min(wait_s, RETRY_S)
                        continue
                    symbols = (ALL,)  # another venue may allow it
                self._hold((OPTIONS, self.kind.channel, symbol) for symbol in symbols)
            await asyncio.sleep(wait_s)

    def _hold(self, topics: Iterable[tuple[str, str, str]]) -> None:
        try:
            self._hub.hold(self._name, topics)
        except ConfigError as error:
            _log.warning("contracts cannot be subscribed", client=self._name, error=str(error))
