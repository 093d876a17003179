"""The market player: a recording goes through the venue slice by slice. Event-loop only.

`Lockstep` and `Pace` hold the rules of when the market may move and are pure; `MarketPlayer` waits and moves it.
In lock-step (`speed` None) a slice ends when every consumer has reported it done and its orders have arrived, and none
begins while a wanted symbol has no subscriber: what a consumer does never depends on how fast anything runs.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec
import structlog

from dry_work.clock import SECOND_NS
from dry_work.exchange.order_rules import RefusedError
from dry_work.market.messages import Bar
from dry_work.wire.alpaca_rest import CODE_NOT_FOUND, CODE_VALIDATION

_log = structlog.get_logger(__name__)

TICK_S = 0.05  # how often trades and quotes that are due are sent between two slices
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

        A consumer that registers again after it has reported slices was started again: it owes the next slice, not
        the open one, which it may never see. With `resume` it is the same one, back after an outage: it still owes
        what it owed.
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


class MarketPlayer:
    """Moves the market. Event-loop only.

    Args:
        slices: (end time, bars) by rising end time.
        speed: data seconds a second; None is lock-step.
        lockstep: the consumers; with a `speed` only its count of expected ones matters, before the first slice.
        advance: moves the venue: (end time, bars) to the id of the last trade event.
        publish: sends a slice to the data sessions.
        publish_ticks: sends the trades and quotes before a time that were not sent yet; None when there are none.
        is_subscribed: tells whether all these symbols have a session that takes bars and watermarks.
        silent_s: seconds since a key was last heard of, 0 while it has a trade stream open.
        consumer_timeout_s: a consumer that owes a slice and was silent for so long no longer holds the market.
        order_timeout_s: how long reported order requests may take to arrive.
    """

    def __init__(
        self,
        slices: Iterable[tuple[int, Sequence[Bar]]],
        *,
        speed: float | None,
        lockstep: Lockstep,
        advance: Callable[[int, Sequence[Bar]], str],
        publish: Callable[[OpenSlice], None],
        is_subscribed: Callable[[frozenset[str]], bool],
        silent_s: Callable[[str], float],
        publish_ticks: Callable[[int], None] | None = None,
        consumer_timeout_s: float = 30.0,
        order_timeout_s: float = 10.0,
    ) -> None:
        self.state = MarketState.WAITING
        self.current: OpenSlice | None = None  # the last slice that was published
        self._slices = slices
        self._speed = speed
        self._lockstep = lockstep
        self._advance = advance
        self._publish = publish
        self._publish_ticks = publish_ticks
        self._is_subscribed = is_subscribed
        self._silent_s = silent_s
        self._consumer_timeout_s = consumer_timeout_s
        self._order_timeout_s = order_timeout_s
        self._changed = asyncio.Event()

    @property
    def open_slice(self) -> OpenSlice | None:
        """The slice that is published and not yet done; always None with a speed."""
        return self.current if self._speed is None and self._lockstep.is_open else None

    def notify(self) -> None:
        """Look again whether the market may move: a consumer, a subscription or an order has come or gone."""
        self._changed.set()

    async def run(self) -> None:
        """Play all slices; returns when the last one is done."""
        pace: Pace | None = None
        loop = asyncio.get_running_loop()
        for number, end_ns, bars, last in mark_last(self._slices):
            if self._speed is None or number == 1:
                await self._wait_for_consumers()
            if self._speed is not None:
                pace = pace or Pace(self._speed, loop.time(), end_ns)
                await self._wait_until_due(pace, end_ns)
            if self._publish_ticks is not None:
                self._publish_ticks(end_ns)
            self.state = MarketState.RUNNING
            self._lockstep.open(number)
            event_id = self._advance(end_ns, bars)
            self.current = OpenSlice(number=number, end_ns=end_ns, bars=tuple(bars), event_id=event_id, last=last)
            self._publish(self.current)
            if self._speed is None:
                await self._wait_for_reports()
            self._lockstep.close()
        self.state = MarketState.ENDED

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
            lockstep = self._lockstep
            if lockstep.has_quorum() and self._is_subscribed(lockstep.wanted()):
                return
            self.state = MarketState.WAITING
            await self._wait_for_change()

    async def _wait_for_reports(self) -> None:
        loop = asyncio.get_running_loop()
        reported_s: float | None = None
        while True:
            self._changed.clear()
            owing = self._lockstep.owing()
            missing = {} if owing else self._lockstep.missing_orders()
            if not owing and not missing:
                return
            if owing:
                reported_s = None
                self._drop_silent(owing)
            else:
                reported_s = loop.time() if reported_s is None else reported_s
                if loop.time() - reported_s >= self._order_timeout_s:
                    _log.warning(
                        "reported orders did not arrive", slice=self._lockstep.number, missing=sum(missing.values())
                    )
                    return
            await self._wait_for_change()

    def _drop_silent(self, owing: Sequence[str]) -> None:
        for consumer in owing:
            if self._silent_s(self._lockstep.key_id(consumer)) >= self._consumer_timeout_s:
                _log.warning("consumer is gone and no longer holds the market", consumer=consumer)
                self._lockstep.leave(consumer)
                self.notify()

    async def _wait_for_change(self) -> None:
        try:
            async with asyncio.timeout(CHECK_S):
                await self._changed.wait()
        except TimeoutError:
            pass
