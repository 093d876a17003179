"""The seam of an engine in a replay: what was recorded takes the place of what is outside, and both are compared.

One thread, no clock and no socket. A turn is compared when it is over: decisions, what the strategy was told, the
books, the account's value, what the strategy keeps.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import msgspec

from dry_work.broker.flight import CLOCKS, STEADY_CLOCK, STOP, BooksView, Decision, Flight, Told
from dry_work.clock import SECOND_NS
from dry_work.errors import BrokerError, DryWorkError
from dry_work.market.messages import Slice
from dry_work.ports import SourceEvent
from dry_work.recording.flight_frames import Reading, decode_reading
from dry_work.recording.flight_log import Turn
from dry_work.wakeup import Wakeup

_Value = TypeVar("_Value")
What = Literal["decision", "notification", "books", "value", "state", "answer", "error"]


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """The first thing that was not as recorded; each side as lines for people."""

    what: What
    turn: int
    time_ns: int  # end of the slice at hand, 0 before the first
    slice_number: int  # that the run delivered, from 1; 0 before the first
    recorded: tuple[str, ...]
    replayed: tuple[str, ...]


class DivergedError(BaseException):
    """Ends a replay at its first divergence; no strategy catches it."""

    def __init__(self, divergence: Divergence) -> None:
        super().__init__(divergence)
        self.divergence = divergence


class ReplayFlight(Flight):
    """Gives back what was recorded.

    Args:
        turns: of the session, the first one included.
        until_ns: slices that end later are not replayed.
        decisions_only: another strategy runs, of which nothing but its decisions can be as recorded.
        on_divergence: called with the first divergence at the end of its turn; it may raise. When it returns, what is
            recorded is not compared any more, and `is_free` is set.
    """

    def __init__(
        self,
        turns: Iterator[Turn],
        *,
        until_ns: int | None,
        on_divergence: Callable[[Divergence], None],
        decisions_only: bool = False,
    ) -> None:
        self._decisions_only = decisions_only
        self._turns = turns
        self._until_ns = until_ns
        self._on_divergence = on_divergence
        self._books_of: Callable[[], BooksView] | None = None
        self._books: BooksView | None = None  # as recorded last
        self._last: dict[str, Any] = {}
        self._clock_values: dict[str, Any] = {}
        self.is_free = False
        self.is_over = False  # no turn follows
        self.is_cut = False  # the record ends in the middle of a turn, or is stopped by `until_ns`
        self.slices = 0
        self.turns_compared = 0
        self.decisions_compared = 0
        self.time_ns = 0
        self.last_slice: Slice | None = None
        self.last_turn: Turn | None = None
        self.inbox: deque[Any] = deque()
        self.on_slice: Callable[[Slice], None] | None = None  # called before the engine takes a slice
        self.on_turn_end: Callable[[Turn], None] | None = None
        self.on_until: Callable[[], None] | None = None  # called where `until_ns` ends the replay
        self.turn: Turn | None = None
        self._load()

    def follow(self, books_of: Callable[[], BooksView]) -> None:
        """Say where the books are seen."""
        self._books_of = books_of

    # The turn at hand

    def _load(self) -> None:
        self._taken = 0
        self._next = -1
        self._clocks: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._pending: dict[str, deque[Reading]] = {}
        self._decisions: list[Decision] = []
        self._told: list[Told] = []
        self._value: float | None = None
        self._state = ""
        turn = next(self._turns, None)
        if turn is not None and self._until_ns is not None and _end_ns(turn) > self._until_ns:
            self.is_cut, turn = True, None
            if self.on_until is not None:
                self.on_until()
        if turn is not None and turn.record.error and not turn.record.error.startswith("raised "):
            self.is_cut, turn = True, None  # it was not finished: the process was told to stop, or a part of it died
        self.turn = turn
        self._answers = deque(turn.answers if turn is not None else ())
        for reading in turn.record.readings if turn is not None else ():
            self._pending.setdefault(reading.name, deque()).append(reading)
        if turn is None:
            self.is_over = True

    def take_event(self) -> SourceEvent | None:
        """Return the event of the turn at hand, None for a turn without one."""
        turn = self.turn
        if turn is None:
            return None
        if isinstance(turn.event, Slice):
            self.slices += 1
            self.time_ns = turn.event.end_ns
            self.last_slice = turn.event
            if self.on_slice is not None:
                self.on_slice(turn.event)
        event: SourceEvent | None = turn.event
        return event

    # What passes

    def read(self, name: str, value: _Value) -> _Value:
        if name in CLOCKS:
            clock: _Value = self._read_clock(name)
            return clock
        if name == STOP and self.is_over:
            return True  # type: ignore[return-value]
        if self.is_free:
            return value
        number = self._counts[name] = self._counts.get(name, 0) + 1
        pending = self._pending.get(name)
        while pending and pending[0].number <= number:
            self._last[name] = decode_reading(pending.popleft())
        found: _Value = self._last.get(name, value)
        return found

    def _read_clock(self, name: str) -> Any:
        number = self._clocks.get(name, 0)
        self._clocks[name] = number + 1
        values = self.turn.record.clocks.get(name, ()) if self.turn is not None else ()
        if number < len(values):
            self._clock_values[name] = values[number]
        elif name not in self._clock_values:
            at_ns = self.turn.record.at_ns if self.turn is not None else 0
            self._clock_values[name] = at_ns / SECOND_NS if name == STEADY_CLOCK else at_ns
        return self._clock_values[name]

    def answer(self, name: str, ask: Callable[[], _Value]) -> _Value:
        if self.is_free:
            return ask()
        if not self._answers:
            self._diverge("answer", (f"nothing more was asked in turn {self._number()}",), (f"asks for: {name}",))
            raise DryWorkError(f"the session has no answer to {name!r} in turn {self._number()}")
        found, value = self._answers.popleft()
        if found != name:
            self._diverge("answer", (f"asked for: {found}",), (f"asks for: {name}",))
            raise DryWorkError(f"the session has an answer to {found!r} in turn {self._number()}, not to {name!r}")
        if isinstance(value, BrokerError):
            raise value
        answer: _Value = value
        return answer

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What was decided in the turn at hand."""
        return tuple(self._decisions)

    def begin_next(self, inbox: deque[Any]) -> None:
        turn = self.turn
        if self.is_free or turn is None:
            return
        self._next += 1
        takes = turn.record.takes
        count = takes[self._next] if self._next < len(takes) else 0
        inbox.extend(item.value for item in turn.items[self._taken : self._taken + count])
        self._taken += count

    def decide(self, decision: Decision) -> None:
        self._decisions.append(decision)

    def tell(self, told: Told) -> None:
        self._told.append(told)

    def note_value(self, value: float) -> None:
        self._value = value

    def note_state(self, text: str) -> None:
        self._state = hashlib.sha256(text.encode()).hexdigest()[:16]

    def end_turn(self) -> None:
        self.compare("")
        if self.turn is not None and self.on_turn_end is not None:
            self.on_turn_end(self.turn)
        if self.turn is not None:
            self.last_turn = self.turn
        self._load()

    def drain(self) -> None:
        """Read the record to its end."""
        for _ in self._turns:
            pass

    # The comparison

    def _number(self) -> int:
        return self.turn.record.number if self.turn is not None else -1

    def compare(self, error: str) -> None:
        """Compare the turn at hand with its record; `error` is that of the strategy, as it is recorded."""
        turn = self.turn
        if turn is None or self.is_free:
            return
        record = turn.record
        if record.error != error:
            self._diverge("error", (record.error or "no error",), (error or "no error",))
            return
        recorded = tuple(map(_plain_decision, record.decisions))
        replayed = tuple(map(_plain_decision, self._decisions))
        if recorded != replayed:
            self._diverge("decision", describe_decisions(record.decisions), describe_decisions(self._decisions))
            return
        if self._decisions_only:
            self.turns_compared += 1
            self.decisions_compared += len(recorded)
            return
        if record.told != tuple(self._told):
            self._diverge("notification", _describe_told(record.told), _describe_told(self._told))
            return
        self._books = record.books or self._books
        if self._books_of is not None and record.books is not None:
            found = self._books_of()
            if found != record.books:
                self._diverge("books", describe_books(record.books), describe_books(found))
                return
        if record.value is not None and self._value is not None and record.value != self._value:
            self._diverge("value", (f"account value {record.value!r}",), (f"account value {self._value!r}",))
            return
        if record.state != self._state:
            self._diverge(
                "state",
                (f"save_state() has digest {record.state}" if record.state else "the state was not written",),
                (f"save_state() has digest {self._state}" if self._state else "the state is not written",),
            )
            return
        self.turns_compared += 1
        self.decisions_compared += len(recorded)

    def _diverge(self, what: What, recorded: tuple[str, ...], replayed: tuple[str, ...]) -> None:
        divergence = Divergence(
            what=what,
            turn=self._number(),
            time_ns=self.time_ns,
            slice_number=self.slices,
            recorded=recorded,
            replayed=replayed,
        )
        self._on_divergence(divergence)
        self.is_free = True


class ReplaySource:
    """The market source of a replay."""

    def __init__(self, flight: ReplayFlight) -> None:
        self._flight = flight

    def start(self, wakeup: Wakeup) -> None:
        """Nothing is to be started."""

    def stop(self, timeout_s: float = 5.0) -> None:
        """Nothing is to be stopped."""

    def take(self) -> SourceEvent | None:
        return self._flight.take_event()

    def wait_s(self) -> float | None:
        return 0.0

    def counters(self) -> Mapping[str, int]:
        return {}


def _end_ns(turn: Turn) -> int:
    return turn.event.end_ns if isinstance(turn.event, Slice) else 0


def _plain_decision(decision: Decision) -> Any:
    # The time of a decision follows from clocks, not from the strategy.
    return msgspec.structs.replace(decision, at_ns=0)


def describe_decisions(decisions: Any) -> tuple[str, ...]:
    """Return decisions as lines, `no order` for none."""
    return tuple(map(describe_decision, decisions)) or ("no order",)


def describe_decision(decision: Decision) -> str:
    """Return a decision in a line."""
    request = decision.request
    if decision.kind == "brake":
        return f"brake: {decision.command}"
    if request is None:
        return f"{decision.kind} {decision.client_order_id}"
    size = f"{request.qty:f}" if request.qty is not None else f"${request.notional or 0:f}"
    prices = [
        f"{word} {price:f}"
        for word, price in (
            ("limit", request.limit_price),
            ("stop", request.stop_price),
            ("trail", request.trail_price),
            ("trail %", request.trail_percent),
            ("take profit", request.take_profit),
            ("stop loss", request.stop_loss.stop_price if request.stop_loss is not None else None),
        )
        if price is not None
    ]
    kind = [] if request.type.value == "limit" and request.limit_price is not None else [request.type.value]
    words = [request.side.value, size, request.symbol, *kind, *prices, request.time_in_force.value]
    legs = f", {len(decision.legs)} legs" if decision.legs else ""
    what = "" if decision.kind == "submit" else f"{decision.kind} {decision.client_order_id}: "
    return f"{what}{' '.join(words)}{legs} ({request.client_order_id})"


def _describe_told(told: Any) -> tuple[str, ...]:
    lines = (
        f"{each.client_order_id or 'an order'} {each.symbol} {each.size:g}: {each.status}, executed {each.executed:g}"
        + (f" ({each.reason})" if each.reason else "")
        for each in told
    )
    return tuple(lines) or ("the strategy was told nothing",)


def describe_books(books: BooksView) -> tuple[str, ...]:
    """Return books as lines."""
    lines = [f"cash {books.cash:f}, {books.orders} orders placed"]
    lines += [f"position {held.symbol}: {held.qty:f} at {held.price:f}" for held in books.positions]
    lines += [f"open {each.client_order_id}: {each.phase}, filled {each.filled:f}" for each in books.open_orders]
    return tuple(lines)
