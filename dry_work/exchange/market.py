"""The market player: a recording goes through the exchange slice by slice. Event-loop only.

`Lockstep` and `Pace` hold the rules of when the market may move and are pure; `MarketPlayer` waits and moves it.
In lock-step (`speed` None) a slice ends when every consumer has reported it done and its orders have arrived, and none
begins while a wanted symbol has no subscriber: what a consumer does never depends on how fast anything runs.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

import msgspec
import structlog

from dry_work.clock import HOUR_NS, MINUTE_NS, SECOND_NS
from dry_work.exchange.order_rules import RefusedError
from dry_work.market.messages import Bar
from dry_work.wire.alpaca_rest import CODE_NOT_FOUND, CODE_VALIDATION

_log = structlog.get_logger(__name__)

TICK_S = 0.05  # how often trades and quotes that are due are sent between two slices
SHORTEST_NIGHT_NS = HOUR_NS  # a longer time without any bar is no trading time
CHECK_S = 1.0  # how often a waiting lock-step market looks for consumers that are gone


class MarketState(StrEnum):
    WAITING = "waiting"  # not begun, or held back because no consumer or no subscriber is there
    RUNNING = "running"
    ENDED = "ended"


class OpenSlice(msgspec.Struct, frozen=True, kw_only=True):
    """A published slice."""

    number: int  # counts up by one from 1
    end_ns: int
    bars: tuple[Bar, ...]
    event_id: str  # the last trade event of any account so far, empty when none
    last: bool  # no slice follows


@dataclass
class _Consumer:
    key_id: str
    symbols: frozenset[str]
    owes_from: int  # the first slice that it has to report
    reported: int = 0  # the last slice that it reported
    orders: int = 0  # requests that it reported for that slice


@dataclass
class Lockstep:
    """Who has to do what before the market may move. Pure.

    Args:
        expected: consumers that have to register before the first slice.
    """

    expected: int
    number: int = 0  # the last slice that was opened, 0 before the first
    is_open: bool = False  # that slice is published and not yet closed
    _consumers: dict[str, _Consumer] = field(default_factory=dict)
    _arrived: Counter[str] = field(default_factory=Counter)  # order requests by key since the last close

    @property
    def registered(self) -> int:
        return len(self._consumers)

    def register(self, consumer: str, *, key_id: str, symbols: Iterable[str], resume: bool = False) -> bool:
        """Add a consumer, which then owes the next slice; tell whether it is known and still owes the open one.

        A consumer that registers again after it has reported slices was started again and knows nothing: it owes the
        next slice, not the open one, which it may never see. With `resume` it goes on where it was, after an outage or
        a restart: it still owes what it owed.
        """
        known = self._consumers.get(consumer)
        if known is not None and (resume or known.reported == 0):
            known.key_id, known.symbols = key_id, frozenset(symbols)
            return self._owes(known)
        self._consumers[consumer] = _Consumer(key_id, frozenset(symbols), self.number + 1)
        return False

    def leave(self, consumer: str) -> bool:
        """Remove a consumer, which then holds nothing; tell whether it was registered."""
        return self._consumers.pop(consumer, None) is not None

    def report(self, consumer: str, *, key_id: str, number: int, orders: int) -> None:
        """Take a consumer's word that it is done with slice `number` and made so many order requests in it.

        Raises:
            RefusedError: for an unknown consumer (404) and for a slice that is not yet open (409).
        """
        known = self._consumers.get(consumer)
        if known is None or known.key_id != key_id:
            raise RefusedError(404, CODE_NOT_FOUND, f"consumer {consumer} is not registered")
        if number > self.number:
            raise RefusedError(409, CODE_VALIDATION, f"slice {number} is not open yet: the last one is {self.number}")
        if number > known.reported:
            known.reported = number
            known.orders = orders

    def count_order(self, key_id: str) -> None:
        """Take note of an order request."""
        self._arrived[key_id] += 1

    def wanted(self) -> frozenset[str]:
        """Return the symbols of all consumers."""
        return frozenset().union(*(known.symbols for known in self._consumers.values()))

    def has_quorum(self) -> bool:
        """Tell whether enough consumers are there: all that are expected for the first slice, one for the others."""
        return self.registered >= (self.expected if self.number == 0 else 1)

    def open(self, number: int) -> None:
        """Open a slice."""
        self.number = number
        self.is_open = True

    def close(self) -> None:
        """End the open slice; order requests are counted anew."""
        self.is_open = False
        self._arrived.clear()

    def owes(self, consumer: str, *, key_id: str) -> bool:
        """Tell whether a consumer has yet to report the open slice.

        Raises:
            RefusedError: it is unknown (404).
        """
        known = self._consumers.get(consumer)
        if known is None or known.key_id != key_id:
            raise RefusedError(404, CODE_NOT_FOUND, f"consumer {consumer} is not registered")
        return self._owes(known)

    def owing(self) -> list[str]:
        """Return the consumers that have not reported the open slice."""
        return [consumer for consumer, known in self._consumers.items() if self._owes(known)]

    def missing_orders(self) -> dict[str, int]:
        """Return by key how many of the reported order requests have not arrived."""
        reported: Counter[str] = Counter()
        for known in self._consumers.values():
            if self.is_open and known.reported == self.number:
                reported[known.key_id] += known.orders
        return dict(reported - self._arrived)

    @property
    def key_ids(self) -> set[str]:
        """Keys of the consumers."""
        return {known.key_id for known in self._consumers.values()}

    def key_id(self, consumer: str) -> str:
        return self._consumers[consumer].key_id

    def _owes(self, known: _Consumer) -> bool:
        return self.is_open and known.owes_from <= self.number and known.reported < self.number


@dataclass(frozen=True)
class Pace:
    """When slices are due: data time divided by `speed`, from a start. Pure."""

    speed: float
    start_s: float  # on the clock that `due_s` is compared with
    start_ns: int  # data time that belongs to it

    def due_s(self, end_ns: int) -> float:
        """Return the time at which the slice that ends at `end_ns` is due."""
        return self.start_s + (end_ns - self.start_ns) / SECOND_NS / self.speed

    def time_ns(self, now_s: float) -> int:
        """Return the data time that belongs to a time of the clock."""
        return self.start_ns + int((now_s - self.start_s) * self.speed * SECOND_NS)

    def skip(self, last_ns: int, end_ns: int) -> Pace:
        """Return the pace at which a night or weekend between two slices passes like a minute."""
        gap_ns = end_ns - last_ns
        return replace(self, start_ns=self.start_ns + gap_ns - MINUTE_NS) if gap_ns > SHORTEST_NIGHT_NS else self


def mark_last(slices: Iterable[tuple[int, Sequence[Bar]]]) -> Iterator[tuple[int, int, Sequence[Bar], bool]]:
    """Yield (number from 1, end, bars, whether it is the last) of each slice."""
    held: tuple[int, Sequence[Bar]] | None = None
    number = 0
    for following in slices:
        if held is not None:
            number += 1
            yield number, *held, False
        held = following
    if held is not None:
        yield number + 1, *held, True


class MarketFloor(Protocol):
    """What the player moves."""

    @property
    def lockstep(self) -> Lockstep: ...
    @property
    def current(self) -> OpenSlice | None: ...  # the last slice that was opened
    def upcoming_ns(self) -> int | None: ...  # the end of the slice that follows, None when none does
    def advance(self) -> OpenSlice: ...
    def close_slice(self) -> None: ...
    def leave(self, consumer: str) -> None: ...


class MarketPlayer:
    """Moves the market, from where it stands. Event-loop only.

    Args:
        floor: the exchange.
        speed: data seconds a second; None is lock-step.
        publish: sends a slice to the sessions.
        publish_ticks: sends the trades and quotes before a time that were not sent yet; None when there are none.
        is_subscribed: tells whether all these symbols have a session that takes bars and watermarks.
        silent_s: seconds since a key was last heard of, 0 while it has a trade stream open.
        skip_gaps: with a speed, nights and weekends pass at once.
        consumer_timeout_s: a consumer that owes a slice and was silent for so long no longer holds the market, when
            another one is there that waits for it. With a speed, how long the market waits for its consumers'
            subscriptions after a restart.
        order_timeout_s: how long reported order requests may take to arrive.
    """

    def __init__(
        self,
        floor: MarketFloor,
        *,
        speed: float | None,
        publish: Callable[[OpenSlice], None],
        is_subscribed: Callable[[frozenset[str]], bool],
        silent_s: Callable[[str], float],
        publish_ticks: Callable[[int], None] | None = None,
        skip_gaps: bool = False,
        consumer_timeout_s: float = 30.0,
        order_timeout_s: float = 10.0,
    ) -> None:
        self.state = MarketState.WAITING
        self._floor = floor
        self._speed = speed
        self._publish = publish
        self._publish_ticks = publish_ticks
        self._is_subscribed = is_subscribed
        self._silent_s = silent_s
        self._skip_gaps = skip_gaps
        self._consumer_timeout_s = consumer_timeout_s
        self._order_timeout_s = order_timeout_s
        self._changed = asyncio.Event()
        self._is_resuming = floor.current is not None

    @property
    def open_slice(self) -> OpenSlice | None:
        """The slice that is published and not yet done; None with a speed, but for the last slice before a restart."""
        is_open = self._floor.lockstep.is_open if self._speed is None else self._is_resuming
        return self._floor.current if is_open else None

    def notify(self) -> None:
        """Look again whether the market may move: a consumer, a subscription or an order has come or gone."""
        self._changed.set()

    async def run(self) -> None:
        """Play all slices that are left; returns when the last one is done."""
        floor = self._floor
        if self._is_resuming and self._speed is None and floor.lockstep.is_open:
            self.state = MarketState.RUNNING
            await self._end_slice()
        pace: Pace | None = None
        while (end_ns := floor.upcoming_ns()) is not None:
            if self._speed is None or floor.current is None:
                await self._wait_for_consumers()
            elif self._is_resuming:
                await self._wait_for_subscribers()
                self.state = MarketState.RUNNING
            if self._speed is not None:
                pace = self._find_pace(pace, end_ns)
                await self._wait_until_due(pace, end_ns)
            if self._publish_ticks is not None:
                self._publish_ticks(end_ns)
            self._is_resuming = False
            self.state = MarketState.RUNNING
            self._publish(floor.advance())
            await self._end_slice()
        self._is_resuming = False
        self.state = MarketState.ENDED

    async def _end_slice(self) -> None:
        if self._speed is None:
            await self._wait_for_reports()
        self._floor.close_slice()

    def _find_pace(self, pace: Pace | None, end_ns: int) -> Pace:
        assert self._speed is not None
        current = self._floor.current
        last_ns = end_ns if current is None else current.end_ns
        pace = pace or Pace(self._speed, asyncio.get_running_loop().time(), last_ns)
        return pace.skip(last_ns, end_ns) if self._skip_gaps else pace

    async def _wait_until_due(self, pace: Pace, end_ns: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            wait_s = max(pace.due_s(end_ns) - loop.time(), 0.0)
            if self._publish_ticks is None or wait_s <= TICK_S:
                await asyncio.sleep(wait_s)
                return
            self._publish_ticks(min(pace.time_ns(loop.time()), end_ns))
            await asyncio.sleep(TICK_S)

    async def _wait_for_consumers(self) -> None:
        while True:
            self._changed.clear()
            lockstep = self._floor.lockstep
            if lockstep.has_quorum() and self._is_subscribed(lockstep.wanted()):
                return
            self.state = MarketState.WAITING
            await self._wait_for_change()

    async def _wait_for_subscribers(self) -> None:
        """Give those who were there before a restart the time to come back."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._consumer_timeout_s
        while loop.time() < end_s and not self._is_subscribed(self._floor.lockstep.wanted()):
            self._changed.clear()
            await self._wait_for_change()

    async def _wait_for_reports(self) -> None:
        loop = asyncio.get_running_loop()
        lockstep = self._floor.lockstep
        reported_s: float | None = None
        while True:
            self._changed.clear()
            owing = lockstep.owing()
            missing = {} if owing else lockstep.missing_orders()
            if not owing and not missing:
                return
            if owing:
                reported_s = None
                self._drop_silent(owing)
            else:
                reported_s = loop.time() if reported_s is None else reported_s
                if loop.time() - reported_s >= self._order_timeout_s:
                    _log.warning("reported orders did not arrive", slice=lockstep.number, missing=sum(missing.values()))
                    return
            await self._wait_for_change()

    def _drop_silent(self, owing: Sequence[str]) -> None:
        lockstep = self._floor.lockstep
        silent = {key_id for key_id in lockstep.key_ids if self._silent_s(key_id) >= self._consumer_timeout_s}
        if silent == lockstep.key_ids:
            return  # the market would stand still without them as well, and they may be started again
        for consumer in owing:
            if lockstep.key_id(consumer) in silent:
                _log.warning("consumer is gone and no longer holds the market", consumer=consumer)
                self._floor.leave(consumer)
                self.notify()

    async def _wait_for_change(self) -> None:
        try:
            async with asyncio.timeout(CHECK_S):
                await self._changed.wait()
        except TimeoutError:
            pass
