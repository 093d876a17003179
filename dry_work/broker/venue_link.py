"""The broker's way to the venue: order worker, trade_updates stream and account keeper, and one inbox for all of them.

The inbox is emptied by the engine's thread; all else here may be called from any thread.
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import TypeVar

import structlog

from dry_work.alpaca.streams import SliceMark
from dry_work.alpaca.venues import VenueAccess
from dry_work.backoff import CAP_S, Backoff
from dry_work.broker.account import AccountCache, AccountKeeper, AccountState, fetch_account
from dry_work.broker.account_history import fetch_executions, fetch_history
from dry_work.broker.desk import DeskItem
from dry_work.broker.flight import ACCOUNT, CONNECT, EXECUTIONS, HISTORY, INCREMENTS, NO_FLIGHT, Flight
from dry_work.broker.gateway import OrderGateway
from dry_work.broker.journal import Journal, JournalSession
from dry_work.errors import BrokerError, BrokerUnavailableError, CodecError
from dry_work.orders.model import Execution, TradeEvent, VenueOrder
from dry_work.orders.risk import Breach
from dry_work.wakeup import Wakeup

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 2.0
EVENT_PATIENCE_S = 2.0  # an event that is due and does not come for so long is looked for by REST

LOCK_STEP_WAIT_S = 2.0  # the market waits for us, so that nobody is hammered by a try every two seconds

_Answer = TypeVar("_Answer")

_log = structlog.get_logger(__name__)


class VenueLink:
    """Connection of one account.

    Args:
        venue: how the account is reached.
        wakeup: raised after everything that comes into the inbox.
        cache: told of fills and snapshots.
        open_orders: returns the client order ids of the orders that can still be filled; called from any thread.
        is_due: tells whether the engine has something to do because of the time; called some times a second.
        on_failure: takes the error of a thread that died.
        refresh_s: seconds between snapshots of the account. None is lock-step with the simulated exchange: no
            snapshots, and the stream tells of slices.
        flight: is told of what arrives.
    """

    def __init__(
        self,
        *,
        venue: VenueAccess,
        refresh_s: float | None,
        wakeup: Wakeup,
        cache: AccountCache,
        open_orders: Callable[[], tuple[str, ...]],
        is_due: Callable[[], bool],
        on_failure: Callable[[BaseException], None],
        counters: Counter[str],
        flight: Flight = NO_FLIGHT,
    ) -> None:
        self.inbox: deque[DeskItem] = deque()
        self._flight = flight
        self._wakeup = wakeup
        self._cache = cache
        self._open_orders = open_orders
        self._is_due = is_due
        self._on_failure = on_failure
        self._counters = counters
        self._lockstep = refresh_s is None
        self._last_event_id = ""
        self._awaited: tuple[str, int, float] | None = None  # event id, resyncs begun when it was asked for, since
        # The order worker waits for the budget by itself: what it sends is judged right before it leaves.
        self._order_api = venue.open_api(patience_s=0.0)
        self._account_api = venue.open_api()
        self._stream = venue.open_stream(
            on_event=self._on_event,
            on_listening=self._on_listening,
            on_unreadable=self._on_unreadable,
            on_failure=on_failure,
            on_slice=self._on_slice if self._lockstep else None,
            longest_wait_s=LOCK_STEP_WAIT_S if self._lockstep else CAP_S,
        )
        self._keeper = AccountKeeper(
            self._account_api,
            cache,
            on_state=self._put,
            on_tick=self._on_tick,
            on_failure=on_failure,
            refresh_s=refresh_s,
        )
        self.gateway: OrderGateway | None = None

    def connect(self) -> tuple[AccountState, int]:
        """Listen to the stream, then read the account; return it with the venue's time.

        Raises:
            VenueAuthError: the credentials were refused.
            BrokerUnavailableError: the venue did not answer, or its stream did not listen, in time.
        """
        return self._flight.answer(CONNECT, self._connect)

    def _connect(self) -> tuple[AccountState, int]:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        now_ns = _repeat(self._account_api.clock_ns, deadline_s)
        self._stream.start()
        self._stream.wait_listening(max(deadline_s - time.monotonic(), 1.0))
        while True:
            received = self._cache.fills_received
            state = _repeat(lambda: self._fetch(received), deadline_s)  # noqa: B023 - called at once
            # A fill during the snapshot may or may not be in it.
            if self._cache.may_replace(state) or time.monotonic() > deadline_s:
                break
        self.inbox.clear()  # what came before the snapshot is in it
        self._cache.note_success(state)
        return state, now_ns

    def price_increments(self, symbols: Iterable[str]) -> dict[str, Decimal]:
        """Return the steps of the prices of these symbols, as far as the venue says them. Before `open_gateway`."""
        return self._flight.answer(INCREMENTS, lambda: self._price_increments(symbols))

    def _price_increments(self, symbols: Iterable[str]) -> dict[str, Decimal]:
        found: dict[str, Decimal] = {}
        for symbol in symbols:
            try:
                increment = self._account_api.price_increment(symbol)
            except BrokerError as error:
                _log.warning(
                    "the price increment is not known, prices go out as they are", symbol=symbol, error=str(error)
                )
                continue
            if increment is not None:
                found[symbol] = increment
        return found

    def open_gateway(
        self,
        journal: Journal,
        *,
        agent: str,
        session: JournalSession,
        consumer: str,
        judge: Callable[[str], Breach | None],
    ) -> OrderGateway:
        """Return the order worker, which `begin` lets work."""
        self.gateway = OrderGateway(
            self._order_api,
            journal,
            on_outcome=self._put,
            on_failure=self._on_failure,
            agent=agent,
            session=session,
            consumer=consumer,
            judge=judge,
            flight=self._flight,
        )
        return self.gateway

    def begin(self) -> None:
        """Let order worker and account keeper work."""
        assert self.gateway is not None
        self.gateway.start()
        self._keeper.start()

    def fetch_state(self) -> AccountState:
        """Return the account as it is now; before `begin`.

        Raises:
            BrokerError: the venue did not answer in time.
        """
        return self._flight.answer(ACCOUNT, self._fetch_state)

    def _fetch_state(self) -> AccountState:
        return _repeat(lambda: self._fetch(self._cache.fills_received), time.monotonic() + START_TIMEOUT_S)

    def fetch_executions(self, *, since_ns: int) -> list[Execution]:
        """Return the account's executions since then, none when the venue does not list them; before `begin`."""
        return self._flight.answer(EXECUTIONS, lambda: self._fetch_executions(since_ns))

    def _fetch_executions(self, since_ns: int) -> list[Execution]:
        try:
            return fetch_executions(self._account_api, since_ns=since_ns)
        except BrokerError as error:
            _log.warning("executions are not listed, orders' totals are taken", error=str(error))
            return []

    def fetch_history(self, symbols: Iterable[str]) -> list[VenueOrder] | None:
        """Return the newest orders of these symbols, of all states; None when the venue did not answer."""
        return self._flight.answer(HISTORY, lambda: self._fetch_history(symbols))

    def _fetch_history(self, symbols: Iterable[str]) -> list[VenueOrder] | None:
        try:
            return fetch_history(self._account_api, symbols)
        except BrokerError as error:
            _log.warning("orders of symbols cannot be fetched", error=str(error))
            return None

    def stop(self) -> None:
        """Send what is decided, close the stream, end all threads. May be called twice, and before `connect`."""
        self._account_api.abandon()
        self._keeper.stop(0.0)  # a request under way may end while the worker does
        if self.gateway is not None:
            self.gateway.stop(STOP_TIMEOUT_S)
        else:
            self._order_api.close()
        self._stream.stop(1.0)
        self._keeper.stop(0.5)
        self._account_api.close()

    def refresh_account(self, history_of: Iterable[str] = ()) -> None:
        """Fetch a snapshot of the account soon, with the orders of these symbols of all states."""
        self._keeper.refresh(history_of)

    def look_up(self, client_order_ids: Iterable[str]) -> None:
        """Ask the venue for these orders."""
        if self.gateway is not None:
            self.gateway.look_up(client_order_ids)

    def restart_stream(self) -> None:
        """Connect the stream again, because it did not tell what happened."""
        if self._stream.connected:
            self._counters["stream restarts"] += 1
            self._stream.reconnect()

    def has_seen(self, event_id: str) -> bool:
        """Tell whether the trade events up to `event_id` are in the inbox, or were.

        An event that does not come is looked for by REST; it counts as seen once a look-up that began after it was
        asked for is in.
        """
        if event_id <= self._last_event_id:
            return True
        gateway = self.gateway
        if gateway is None:
            return False
        if self._awaited is None or self._awaited[0] != event_id:
            self._awaited = (event_id, gateway.resyncs_begun, time.monotonic())
        return gateway.resyncs_done > self._awaited[1]

    def _fetch(self, received: int) -> AccountState:
        return fetch_account(self._account_api, fills_received=received)

    # From the other threads

    def _on_event(self, event: TradeEvent) -> None:
        if event.execution_id or event.price is not None:
            self._cache.fills_received += 1
        self._flight.arrive(event)
        self.inbox.append(event)
        self._last_event_id = max(self._last_event_id, event.event_id)
        self._wakeup.set()

    def _put(self, item: DeskItem) -> None:
        self._flight.arrive(item)
        self.inbox.append(item)
        self._wakeup.set()

    def _on_slice(self, mark: SliceMark) -> None:
        # Its events came before it on the same connection, unless a connection before this one swallowed some.
        if mark.account_event_id <= self._last_event_id < mark.event_id:
            self._last_event_id = mark.event_id
            self._wakeup.set()

    def _on_listening(self, connections: int) -> None:
        if connections == 1:
            self._last_event_id = self._stream.position or ""  # what came before is in the snapshot that follows
        elif not self._stream.resumed:
            self._resync()

    def _on_unreadable(self, error: CodecError) -> None:
        self._counters["unreadable trade updates"] += 1
        self._resync()

    def _resync(self) -> None:
        """Fetch what the stream may not have told."""
        if self.gateway is not None:
            self.gateway.resync(self._open_orders())
            self._keeper.refresh()

    def _on_tick(self) -> None:
        awaited, gateway = self._awaited, self.gateway
        if awaited is not None and gateway is not None and awaited[0] > self._last_event_id:
            event_id, resyncs, since_s = awaited
            if gateway.resyncs_done > resyncs:
                self._wakeup.set()
            elif self._lockstep and not self._stream.connected:
                pass  # the stream will go on where it ended
            elif time.monotonic() - since_s >= EVENT_PATIENCE_S:
                _log.warning("a trade event is overdue, open orders are looked up", event_id=event_id)
                self._awaited = (event_id, resyncs, time.monotonic())
                self._resync()
        if self._is_due():
            self._wakeup.set()


def _repeat(call: Callable[[], _Answer], deadline_s: float) -> _Answer:
    """Repeat a request of the start until it succeeds or the deadline passes."""
    backoff = Backoff(random.Random(), initial_s=0.2, cap_s=2.0)
    while True:
        try:
            return call()
        except BrokerError as error:
            wait_s = backoff.next_wait_s(time.monotonic())
            if not error.retryable:
                raise
            if time.monotonic() + wait_s > deadline_s:
                raise BrokerUnavailableError(f"the venue could not be reached at the start: {error}") from error
            time.sleep(wait_s)
