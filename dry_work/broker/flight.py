"""The seam of the flight recorder: everything that reaches a strategy or the books from outside passes it.

`Flight` lets it pass. A recorder keeps what passes; a replay puts what was kept in its place. All methods but `arrive`
are for the engine's thread; `read`, `answer` and `decide` on another thread only let pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Literal, TypeVar

import msgspec

from dry_work.broker.account import AccountCache, AccountState
from dry_work.broker.gateway_tasks import CancelTask, ReplaceTask, SubmitTask, Task
from dry_work.clock import Clock
from dry_work.orders.model import OrderRequest, Replacement

_Value = TypeVar("_Value")
DecisionKind = Literal["submit", "replace", "cancel", "brake"]

# Names of what is read. Of clocks every reading counts; of the others the last one holds until it changes.
WALL_CLOCK = "wall clock"
STEADY_CLOCK = "steady clock"
STOP = "stop"
TROUBLE = "trouble"
TAKES_SNAPSHOT = "takes snapshot"
WITHDRAWN = "withdrawn"
REAL_TIME = "real time"
RISK_STATE = "risk state"
RISK_RECORD = "risk record"
CLOCKS = frozenset({WALL_CLOCK, STEADY_CLOCK})

# Names of what is asked of the venue or of a file.
CONNECT = "connect"
INCREMENTS = "increments"
SESSION = "session"
ACCOUNT = "account"
EXECUTIONS = "executions"
HISTORY = "history"
LOOK_UP = "look up"
JOURNAL_BOOKS = "journal"


class LegDecision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An order that goes out as part of another."""

    role: str
    number: int
    request: OrderRequest


class Decision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the run wants of the venue."""

    kind: DecisionKind
    client_order_id: str = ""
    number: int = 0
    request: OrderRequest | None = None
    change: Replacement | None = None
    legs: tuple[LegDecision, ...] = ()
    command: str = ""  # of the brake, with its reason
    at_ns: int = 0


class Told(msgspec.Struct, frozen=True, array_like=True):
    """An order that the strategy was told of."""

    client_order_id: str
    status: str
    executed: float  # signed
    symbol: str
    size: float  # signed
    reason: str = ""  # why it was refused


class HeldView(msgspec.Struct, frozen=True, array_like=True):
    """A position."""

    symbol: str
    qty: Decimal
    price: Decimal


class OpenView(msgspec.Struct, frozen=True, array_like=True):
    """An order that can still be filled."""

    client_order_id: str
    phase: str
    filled: Decimal


class BooksView(msgspec.Struct, frozen=True, array_like=True):
    """The books at one moment."""

    cash: Decimal
    positions: tuple[HeldView, ...] = ()
    open_orders: tuple[OpenView, ...] = ()
    orders: int = 0  # placed so far, refused ones too


class Flight:
    """Lets everything pass, and keeps nothing."""

    def read(self, name: str, value: _Value) -> _Value:
        """Return what is read under `name`: outside of a replay `value`, which may change at any moment."""
        return value

    def answer(self, name: str, ask: Callable[[], _Value]) -> _Value:
        """Return what `ask` is answered from outside; it may raise a BrokerError."""
        return ask()

    def arrive(self, item: object) -> None:
        """Take note of the moment at which something came into the inbox. Thread-safe."""

    def begin_next(self, inbox: deque[Any]) -> None:
        """The broker is about to empty its inbox."""

    def take(self, inbox: deque[Any]) -> Any:
        """Return the next item of an inbox that is not empty."""
        return inbox.popleft()

    def decide(self, decision: Decision) -> None:
        """Something is wanted of the venue."""

    def tell(self, told: Told) -> None:
        """The strategy is about to be told of an order."""

    def begin(self, event: object) -> None:
        """The engine has taken an event of the market source, or None, and is about to act on it."""

    def note_warmup(self, piece: object) -> None:
        """A slice from before the start moves feeds and indicators."""

    def note_value(self, value: float) -> None:
        """The account's value at the end of a slice."""

    def note_state(self, text: str) -> None:
        """What the strategy keeps was written down."""

    def end_turn(self) -> None:
        """All that follows from the event is done."""


NO_FLIGHT = Flight()


class FlightClock:
    """A clock whose readings pass a flight."""

    def __init__(self, clock: Clock, flight: Flight) -> None:
        self._clock = clock
        self._flight = flight

    def time_ns(self) -> int:
        return self._flight.read(WALL_CLOCK, self._clock.time_ns())

    def monotonic(self) -> float:
        return self._flight.read(STEADY_CLOCK, self._clock.monotonic())


class FlightCache(AccountCache):
    """What the order desk asks of an account cache, read through a flight."""

    def __init__(self, cache: AccountCache, flight: Flight) -> None:
        super().__init__()
        self._cache = cache
        self._flight = flight

    def may_replace(self, state: AccountState) -> bool:
        return self._flight.read(TAKES_SNAPSHOT, self._cache.may_replace(state))


def describe_task(task: Task) -> Decision | None:
    """Return the decision that a task of the order worker is, None when it is none."""
    if isinstance(task, SubmitTask):
        legs = tuple(LegDecision(role=leg.role.value, number=leg.number, request=leg.request) for leg in task.legs)
        return Decision(
            kind="submit",
            client_order_id=task.request.client_order_id,
            number=task.number,
            request=task.request,
            legs=legs,
            at_ns=task.at_ns,
        )
    if isinstance(task, ReplaceTask):
        return Decision(
            kind="replace",
            client_order_id=task.client_order_id,
            number=task.number,
            request=task.request,
            change=task.change,
            at_ns=task.at_ns,
        )
    if isinstance(task, CancelTask):
        return Decision(kind="cancel", client_order_id=task.client_order_id, at_ns=task.at_ns)
    return None
