"""The account as the broker knows it: a snapshot of the venue, then fills. Nothing here is asked while trading.

`AccountCache` decides and is pure; `AccountKeeper` is the thread that fetches a new snapshot from time to time. A
snapshot replaces what the fills gave only when no fill came while it was made: otherwise one would count twice.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec
import structlog

from dry_work.backoff import Backoff
from dry_work.broker.account_history import fetch_history
from dry_work.errors import BrokerError, VenueAuthError
from dry_work.orders.model import AccountSnapshot, VenueOrder, VenuePosition
from dry_work.pulse import give_pulse

REFRESH_S = 30.0
SETTLE_S = 1.0  # a fill that a snapshot already holds is told on the stream within this time
MAX_FAILURES = 3
TICK_S = 0.25
_STOP_TIMEOUT_S = 2.0

_log = structlog.get_logger(__name__)


class AccountVenue(Protocol):
    """What the keeper asks of the venue; see `dry_work.alpaca.venue_api.VenueApi`."""

    def account(self) -> AccountSnapshot: ...
    def positions(self) -> list[VenuePosition]: ...
    def open_orders(self) -> list[VenueOrder]: ...
    def call(self, method: str, path: str, data: Mapping[str, object] | None = None) -> Any: ...
    def close(self) -> None: ...


class AccountState(msgspec.Struct, frozen=True):
    """The account at one moment."""

    account: AccountSnapshot
    positions: tuple[VenuePosition, ...]
    open_orders: tuple[VenueOrder, ...]
    fills_received: int  # before it was fetched
    history: tuple[VenueOrder, ...] = ()  # the newest orders of some symbols, of all states
    history_of: frozenset[str] = frozenset()  # these symbols, without slashes


def fetch_account(
    venue: AccountVenue, *, fills_received: int = 0, history_of: frozenset[str] = frozenset()
) -> AccountState:
    """Return the state of the account.

    Args:
        fills_received: by now.
        history_of: symbols whose orders of all states are wanted too.

    Raises:
        BrokerError: when the venue does not give it.
    """
    return AccountState(
        venue.account(),
        tuple(venue.positions()),
        tuple(venue.open_orders()),
        fills_received,
        tuple(fetch_history(venue, sorted(history_of))) if history_of else (),
        history_of,
    )


class AccountCache:
    """Counts fills and failures, and says what follows. Pure; each method may be called from any thread.

    `fills_received` counts all fills of the account, when they arrive.
    """

    def __init__(self, *, max_failures: int = MAX_FAILURES) -> None:
        self.fills_received = 0
        self.failures = 0  # in a row
        self.halted = ""  # why no orders are taken, empty while they are
        self._max_failures = max_failures

    def may_replace(self, state: AccountState) -> bool:
        """Tell whether a snapshot may replace what the fills gave."""
        return state.fills_received == self.fills_received

    def note_failure(self, error: BrokerError) -> None:
        """A snapshot could not be fetched: after some in a row, or without credentials, no orders are taken."""
        self.failures += 1
        if self.failures >= self._max_failures or isinstance(error, VenueAuthError):
            self.halted = f"the account cannot be refreshed: {error}"

    def note_success(self, state: AccountState) -> None:
        """A snapshot was fetched: orders are taken again, unless the venue has blocked the account."""
        self.failures = 0
        self.halted = "the venue has blocked trading for this account" if state.account.trading_blocked else ""


class AccountKeeper:
    """The thread that keeps the cache fresh.

    Args:
        venue: used by this thread alone.
        cache: told of success and failure.
        on_state: takes every snapshot during which no fill arrived.
        on_tick: called some times a second.
        on_failure: called once when the thread dies.
        refresh_s: seconds between two snapshots; None: only ticks.
    """

    def __init__(
        self,
        venue: AccountVenue,
        cache: AccountCache,
        *,
        on_state: Callable[[AccountState], None],
        on_tick: Callable[[], None],
        on_failure: Callable[[BaseException], None],
        refresh_s: float | None = REFRESH_S,
        rng: random.Random | None = None,
    ) -> None:
        self._venue = venue
        self._cache = cache
        self._on_state = on_state
        self._on_tick = on_tick
        self._on_failure = on_failure
        self._refresh_s = refresh_s
        self._backoff = Backoff(rng or random.Random(), initial_s=1.0, cap_s=REFRESH_S)
        self._stop = threading.Event()
        self._asked = threading.Event()
        self._lock = threading.Lock()  # around `_history_of`
        self._history_of: frozenset[str] = frozenset()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to tick; the first snapshot follows after the interval."""
        self._thread = threading.Thread(target=self._run_thread, name="account keeper", daemon=True)
        self._thread.start()

    def refresh(self, history_of: Iterable[str] = ()) -> None:
        """Fetch a snapshot soon, with the orders of these symbols of all states."""
        self._want(history_of)
        self._asked.set()

    def _want(self, history_of: Iterable[str]) -> None:
        with self._lock:
            self._history_of |= frozenset(history_of)

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """End the thread. May be called twice."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run_thread(self) -> None:
        try:
            due_s = time.monotonic() + (self._refresh_s or 0.0)
            while not self._stop.wait(TICK_S):
                give_pulse()
                self._on_tick()
                if self._refresh_s is None:
                    continue
                if self._asked.is_set() or time.monotonic() >= due_s:
                    self._asked.clear()
                    due_s = time.monotonic() + self._refresh()
        except BaseException as error:
            _log.exception("account keeper failed")
            self._on_failure(error)
        finally:
            self._venue.close()

    def _refresh(self) -> float:
        """Fetch a snapshot; return the seconds until the next one."""
        assert self._refresh_s is not None
        with self._lock:
            wanted, self._history_of = self._history_of, frozenset()
        try:
            state = fetch_account(self._venue, fills_received=self._cache.fills_received, history_of=wanted)
        except BrokerError as error:
            self._want(wanted)
            was_halted = self._cache.halted
            self._cache.note_failure(error)
            if self._cache.halted and not was_halted:
                _log.error("no more orders are taken", reason=self._cache.halted)
            return min(self._backoff.next_wait_s(time.monotonic()), self._refresh_s)
        self._backoff.reset()
        if self._cache.halted:
            _log.info("the account was refreshed")
        self._cache.note_success(state)
        if self._stop.wait(SETTLE_S) or not self._cache.may_replace(state):
            self._want(wanted)
            return min(SETTLE_S, self._refresh_s)
        self._on_state(state)
        return self._refresh_s
