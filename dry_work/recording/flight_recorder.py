"""Keep what passes the seam of a live engine. Engine thread; a `Recorder` writes on its own.

Nothing here waits or fails: what cannot be written is counted, and ends the part of the session that can be replayed.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from dry_work.broker.flight import CLOCKS, BooksView, Decision, Flight, Told
from dry_work.clock import MINUTE_NS, Clock
from dry_work.errors import BrokerError
from dry_work.market.messages import Slice
from dry_work.orders.model import TradeEvent
from dry_work.recording.flight_frames import (
    ANSWER_KIND,
    EVENT_KIND,
    FINISH_KIND,
    FLIGHT_KINDS,
    ITEM_KIND,
    SESSION_KIND,
    TURN_KIND,
    WARMUP_KIND,
    FinishRecord,
    Reading,
    SessionFacts,
    TurnRecord,
    encode,
    encode_answer,
    name_item,
)
from dry_work.recording.recorder import PendingFrame, Recorder

# A turn in which nothing happened is left out. Some are kept, since a new day of the loss limits begins with the first
# look at the equity in it, and every time zone's day begins at one of these.
IDLE_NS = 15 * MINUTE_NS

_Value = TypeVar("_Value")
_NOTHING = object()


class FlightRecorder(Flight):
    """Hands what passes to a recorder, one turn at a time.

    Args:
        recorder: not started.
        clock: the machine's.
    """

    def __init__(self, recorder: Recorder, clock: Clock) -> None:
        self._recorder = recorder
        self._clock = clock
        self._thread = threading.get_ident()
        self._arrivals: dict[int, int] = {}  # when an item came, by its identity
        self._last: dict[str, Any] = {}  # what was read last
        self._books_of: Callable[[], BooksView] | None = None
        self._books: BooksView | None = None  # as they were written down last
        self._number = 0
        self._kept_ns = 0
        self._is_over = False
        recorder.set_encoder(encode, FLIGHT_KINDS)
        self._reset()

    def _reset(self) -> None:
        self._frames: list[PendingFrame] = []
        self._has_event = False
        self._takes: list[int] = []
        self._clocks: dict[str, list[Any]] = {}
        self._counts: dict[str, int] = {}
        self._readings: list[Reading] = []
        self._decisions: list[Decision] = []
        self._told: list[Told] = []
        self._value: float | None = None
        self._state = ""

    def begin_session(self, facts: SessionFacts) -> None:
        """Write down what the run is; once, before anything else."""
        self._recorder.record_frames([PendingFrame(SESSION_KIND, 0, facts.started_ns, facts)])

    def follow(self, books_of: Callable[[], BooksView]) -> None:
        """Say where the books are seen."""
        self._books_of = books_of

    # What passes

    def read(self, name: str, value: _Value) -> _Value:
        if threading.get_ident() != self._thread:
            return value
        if name in CLOCKS:
            self._clocks.setdefault(name, []).append(value)
            return value
        number = self._counts[name] = self._counts.get(name, 0) + 1
        if self._last.get(name, _NOTHING) != value:
            self._last[name] = value
            self._readings.append(Reading(name, number, value))
        return value

    def answer(self, name: str, ask: Callable[[], _Value]) -> _Value:
        if threading.get_ident() != self._thread:
            return ask()
        try:
            value = ask()
        except BrokerError as error:
            self._add(ANSWER_KIND, 0, self._clock.time_ns(), encode_answer(name, error))
            raise
        self._add(ANSWER_KIND, 0, self._clock.time_ns(), encode_answer(name, value))
        return value

    def arrive(self, item: object) -> None:
        self._arrivals[id(item)] = self._clock.time_ns()

    def begin_next(self, inbox: deque[Any]) -> None:
        self._takes.append(0)

    def take(self, inbox: deque[Any]) -> Any:
        item = inbox.popleft()
        self._takes[-1] += 1
        venue_ns = item.ts_event_ns if isinstance(item, TradeEvent) else 0
        self._add(ITEM_KIND, venue_ns, self._arrivals.pop(id(item), 0), name_item(item))
        return item

    def decide(self, decision: Decision) -> None:
        if threading.get_ident() == self._thread:
            self._decisions.append(decision)

    def tell(self, told: Told) -> None:
        self._told.append(told)

    def begin(self, event: object) -> None:
        if event is None:
            return
        self._has_event = True
        self._add(EVENT_KIND, event.end_ns if isinstance(event, Slice) else 0, self._clock.time_ns(), name_item(event))

    def note_warmup(self, piece: object) -> None:
        self._add(WARMUP_KIND, piece.end_ns if isinstance(piece, Slice) else 0, 0, name_item(piece))

    def note_value(self, value: float) -> None:
        self._value = value

    def note_state(self, text: str) -> None:
        self._state = hashlib.sha256(text.encode()).hexdigest()[:16]

    def end_turn(self) -> None:
        self._end_turn("turn" if self._number else "start")

    def finish(self, finish: FinishRecord, *, error: str = "") -> None:
        """Close the last turn and the session. May be called twice.

        Args:
            error: why the turn was not finished.
        """
        if self._is_over:
            return
        self._is_over = True
        self._end_turn("end" if self._number else "start", error=error)
        self._recorder.record_frames([PendingFrame(FINISH_KIND, 0, self._clock.time_ns(), finish)])

    def _add(self, kind: int, venue_ns: int, recv_ns: int, content: Any) -> None:
        self._frames.append(PendingFrame(kind, venue_ns, recv_ns, content))

    def _end_turn(self, kind: str, *, error: str = "") -> None:
        at_ns = self._clock.time_ns()
        is_busy = bool(self._frames or self._decisions or self._told)
        happened = is_busy or self._readings or self._state or self._value is not None or kind != "turn"
        if happened or at_ns // IDLE_NS != self._kept_ns // IDLE_NS:
            self._kept_ns = at_ns
            books = self._books_of() if self._books_of is not None and is_busy else None
            if books == self._books:
                books = None
            else:
                self._books = books or self._books
            turn = TurnRecord(
                number=self._number,
                kind=kind,
                at_ns=at_ns,
                has_event=self._has_event,
                takes=tuple(self._takes),
                clocks={name: tuple(values) for name, values in self._clocks.items()},
                readings=tuple(self._readings),
                decisions=tuple(self._decisions),
                told=tuple(self._told),
                books=books,
                value=self._value,
                state=self._state,
                error=error,
            )
            self._number += 1
            self._add(TURN_KIND, 0, at_ns, turn)
            self._recorder.record_frames(self._frames)
        self._reset()
