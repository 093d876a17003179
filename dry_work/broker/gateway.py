"""The order worker: one thread that sends what the engine decided, in its order.

Every order's intent is in the journal before its request leaves. What may have been taken, because of a time-out or a
5xx, is looked up by its client order id before it is sent again, so that an intent makes at most one order. What the
venue refused is never repeated. Outcomes go to `on_outcome`, which is called on the worker's thread.
"""

from __future__ import annotations

import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import msgspec
import structlog

from dry_work.backoff import Backoff
from dry_work.broker.journal import Journal, JournalSession
from dry_work.errors import (
    BrokerError,
    BrokerUnavailableError,
    OrderRejectedError,
    OutcomeUnknownError,
    RateLimitedError,
    VenueAuthError,
)
from dry_work.orders.books import Fill
from dry_work.orders.model import OrderRequest, VenueOrder

ATTEMPTS = 16  # of one request: an outage of a minute delays it, a longer one ends it
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 5.0
CLOCK_TOLERANCE_NS = 2_000_000_000  # between the venue's clock and its orders' times

_Answer = TypeVar("_Answer")

_log = structlog.get_logger(__name__)


class OrderVenue(Protocol):
    """What the worker asks of the venue; see `dry_work.alpaca.trading.TradingApi`."""

    def submit(self, request: OrderRequest) -> VenueOrder: ...
    def order_by_client_id(self, client_order_id: str) -> VenueOrder | None: ...
    def cancel(self, order_id: str) -> None: ...
    def report_slice(self, number: int, *, consumer: str, orders: int) -> None: ...
    def close(self) -> None: ...


# Outcomes


class OrderTaken(msgspec.Struct, frozen=True):
    """The venue has the order."""

    client_order_id: str
    order: VenueOrder


class OrderRefused(msgspec.Struct, frozen=True):
    """The venue does not have the order, and will not."""

    client_order_id: str
    error: BrokerError
    is_fault: bool = False  # not the venue's word on this order: something is wrong, and the run should end


class OrderUnresolved(msgspec.Struct, frozen=True):
    """The venue may or may not have the order."""

    client_order_id: str
    error: BrokerError


class CancelRefused(msgspec.Struct, frozen=True):
    """An order was not canceled."""

    client_order_id: str
    error: BrokerError


class OrderLookedUp(msgspec.Struct, frozen=True):
    """The venue's word on an order, None when it does not know it."""

    client_order_id: str
    order: VenueOrder | None


Outcome = OrderTaken | OrderRefused | OrderUnresolved | CancelRefused | OrderLookedUp


# What the engine asks for


class _Submit(msgspec.Struct, frozen=True):
    request: OrderRequest
    number: int
    at_ns: int


class _Cancel(msgspec.Struct, frozen=True):
    client_order_id: str
    at_ns: int


class _LookUp(msgspec.Struct, frozen=True):
    client_order_ids: tuple[str, ...]
    is_resync: bool


class _Report(msgspec.Struct, frozen=True):
    number: int


class _Record(msgspec.Struct, frozen=True):
    fills: tuple[Fill, ...]


_Task = _Submit | _Cancel | _LookUp | _Report | _Record | None


class _StoppedError(Exception):
    """The worker was told to give up."""


class OrderGateway:
    """The worker and its queue. All methods but `start` and `stop` return at once and may be called from any thread.

    Args:
        venue: used by the worker's thread alone.
        on_outcome: takes every outcome.
        on_failure: called once when the worker dies.
        agent: whose orders; part of the journal's rows.
        session: of the journal; an order that is older than it is not adopted.
        consumer: name under which slices are reported.
        attempts: of one request.
        order_age_s: an order that could not be sent for so long is refused instead.
    """

    def __init__(
        self,
        venue: OrderVenue,
        journal: Journal,
        *,
        on_outcome: Callable[[Outcome], None],
        on_failure: Callable[[BaseException], None],
        agent: str,
        session: JournalSession,
        consumer: str,
        rng: random.Random | None = None,
        attempts: int = ATTEMPTS,
        first_wait_s: float = FIRST_WAIT_S,
        order_age_s: float = 60.0,
    ) -> None:
        self._venue = venue
        self._journal = journal
        self._on_outcome = on_outcome
        self._on_failure = on_failure
        self._agent = agent
        self._session = session
        self._consumer = consumer
        self._rng = rng or random.Random()
        self._attempts = attempts
        self._first_wait_s = first_wait_s
        self._order_age_s = order_age_s
        self._tasks: queue.SimpleQueue[tuple[_Task, float]] = queue.SimpleQueue()
        self._abandon = threading.Event()
        self._thread: threading.Thread | None = None
        self._order_ids: dict[str, str] = {}  # the venue's ids by client order id
        self._orders_in_slice = 0
        self.resyncs_begun = 0
        self.resyncs_done = 0

    def start(self) -> None:
        """Begin to work."""
        self._thread = threading.Thread(target=self._run_thread, name="order worker", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Work off the queue, give up what is not done in time, end the thread. May be called twice."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        self._put(None)
        thread.join(timeout_s)
        if thread.is_alive():
            self._abandon.set()
            thread.join(0.5)
        if thread.is_alive():
            _log.warning("a request to the venue is still under way; its outcome is in the journal as open")

    def submit(self, request: OrderRequest, *, number: int, at_ns: int) -> None:
        """Send an order; `number` is its place in the session."""
        self._put(_Submit(request, number, at_ns))

    def cancel(self, client_order_id: str, *, at_ns: int) -> None:
        """Ask for the cancellation of an order that was submitted before."""
        self._put(_Cancel(client_order_id, at_ns))

    def look_up(self, client_order_ids: Iterable[str]) -> None:
        """Ask the venue what it knows of these orders."""
        self._put(_LookUp(tuple(client_order_ids), is_resync=False))

    def resync(self, client_order_ids: Iterable[str]) -> None:
        """Ask the venue for these orders because events may have been lost; counted in `resyncs_done` at its end."""
        self._put(_LookUp(tuple(client_order_ids), is_resync=True))

    def report(self, number: int) -> None:
        """Tell the simulated exchange that the orders of a slice are sent."""
        self._put(_Report(number))

    def record(self, fills: Sequence[Fill]) -> None:
        """Write fills to the journal."""
        self._put(_Record(tuple(fills)))

    def _put(self, task: _Task) -> None:
        self._tasks.put((task, time.monotonic()))

    # The thread

    def _run_thread(self) -> None:
        try:
            while True:
                task, since_s = self._tasks.get()
                if task is None or self._abandon.is_set():
                    return
                self._work(task, since_s)
        except _StoppedError:
            return
        except BaseException as error:
            _log.exception("order worker failed")
            self._on_failure(error)
        finally:
            self._venue.close()

    def _work(self, task: _Task, since_s: float) -> None:
        if isinstance(task, _Submit):
            self._submit(task, since_s)
        elif isinstance(task, _Cancel):
            self._cancel(task.client_order_id, task.at_ns)
        elif isinstance(task, _LookUp):
            self._look_up_all(task)
        elif isinstance(task, _Report):
            self._report(task.number)
        elif isinstance(task, _Record):
            self._journal.record_fills(task.fills)

    def _submit(self, task: _Submit, since_s: float) -> None:
        request = task.request
        name = request.client_order_id
        try:
            self._journal.record_intent(
                request, agent=self._agent, session=self._session.session, number=task.number, at_ns=task.at_ns
            )
        except sqlite3.Error as error:
            # What is not on disk must not leave.
            refused = OrderRejectedError(f"the order was not sent: {self._journal.path} cannot be written: {error}")
            self._on_outcome(OrderRefused(name, refused, is_fault=True))
            return
        outcome = self._send(request, since_s)
        if isinstance(outcome, OrderTaken):
            self._order_ids[name] = outcome.order.id
            self._orders_in_slice += 1
            self._journal.record_outcome(
                name, action="submit", outcome="accepted", order_id=outcome.order.id, at_ns=task.at_ns
            )
        else:
            why = outcome.error
            if isinstance(outcome, OrderRefused) and why.http_status is not None:
                self._orders_in_slice += 1
            self._journal.record_outcome(
                name,
                action="submit",
                outcome="refused" if isinstance(outcome, OrderRefused) else "unknown",
                code=why.code,
                message=why.message,
                at_ns=task.at_ns,
            )
        self._on_outcome(outcome)

    def _send(self, request: OrderRequest, since_s: float) -> OrderTaken | OrderRefused | OrderUnresolved:
        name = request.client_order_id
        backoff = self._new_backoff()
        last: BrokerError = OutcomeUnknownError("the order worker was stopped")
        is_unknown = False  # a request may have arrived whose answer did not
        for attempt in range(self._attempts):
            if attempt:
                try:
                    self._wait(backoff, last)
                except _StoppedError:
                    break
            if is_unknown:
                try:
                    found = self._venue.order_by_client_id(name)
                except BrokerError as error:
                    last = error
                    continue
                if found is not None:
                    return self._adopt(request, found)
                is_unknown = False
            if time.monotonic() - since_s >= self._order_age_s:
                # Prices have moved on since the decision.
                reason = f"not sent within {self._order_age_s:g} s: {last.message if attempt else 'others came first'}"
                return OrderRefused(name, BrokerUnavailableError(reason))
            try:
                return OrderTaken(name, self._venue.submit(request))
            except OutcomeUnknownError as error:
                is_unknown, last = True, error
            except (RateLimitedError, BrokerUnavailableError) as error:
                last = error
            except OrderRejectedError as error:
                if not _says_duplicate(error):
                    return OrderRefused(name, error)
                # It is there: an answer was lost on the way, or the id is not ours. The look-up tells.
                is_unknown, last = True, OutcomeUnknownError(error.message, code=error.code)
            except VenueAuthError as error:
                return OrderRefused(name, error, is_fault=True)
            _log.warning("order is not through yet", client_order_id=name, attempt=attempt + 1, error=str(last))
        if is_unknown:
            return OrderUnresolved(name, last)
        return OrderRefused(name, BrokerUnavailableError(f"not sent: {last.message}", http_status=None))

    def _adopt(self, request: OrderRequest, found: VenueOrder) -> OrderTaken | OrderRefused:
        """Take an order that the venue has under our id, if it is the one that was sent."""
        name = request.client_order_id
        differences = [
            f"{what} {theirs} instead of {ours}"
            for what, ours, theirs in (
                ("symbol", request.symbol, found.symbol),
                ("side", request.side.value, found.side.value),
                ("quantity", request.qty, found.qty),
                ("type", request.type.value, found.type.value),
            )
            if ours != theirs
        ]
        if found.created_ns and found.created_ns < self._session.started_ns - CLOCK_TOLERANCE_NS:
            differences.append("a time before this session")
        if not differences:
            return OrderTaken(name, found)
        error = OrderRejectedError(
            f"the venue has another order under the id {name}, with {', '.join(differences)}; it is not adopted"
        )
        return OrderRefused(name, error, is_fault=True)

    def _cancel(self, name: str, at_ns: int) -> None:
        try:
            order_id = self._order_ids.get(name) or self._find_order_id(name)
            if order_id is None:
                raise OrderRejectedError("the venue does not have the order")
            self._retry(lambda: self._venue.cancel(order_id))
        except BrokerError as error:
            self._journal.record_outcome(
                name, action="cancel", outcome="refused", code=error.code, message=error.message, at_ns=at_ns
            )
            self._on_outcome(CancelRefused(name, error))

    def _find_order_id(self, name: str) -> str | None:
        found = self._retry(lambda: self._venue.order_by_client_id(name))
        return found.id if found is not None else None

    def _look_up_all(self, task: _LookUp) -> None:
        if task.is_resync:
            self.resyncs_begun += 1
        number = self.resyncs_begun
        is_complete = True
        for name in task.client_order_ids:
            try:
                found = self._retry(lambda name=name: self._venue.order_by_client_id(name))  # type: ignore[misc]
            except BrokerError as error:
                _log.warning("look-up failed", client_order_id=name, error=str(error))
                is_complete = is_complete and not error.retryable
                continue
            if found is not None:
                self._order_ids.setdefault(name, found.id)
            self._on_outcome(OrderLookedUp(name, found))
        if task.is_resync and is_complete:
            self.resyncs_done = number

    def _report(self, number: int) -> None:
        orders, self._orders_in_slice = self._orders_in_slice, 0
        try:
            self._retry(lambda: self._venue.report_slice(number, consumer=self._consumer, orders=orders))
        except BrokerError as error:
            raise BrokerUnavailableError(f"slice {number} could not be reported done: {error}") from error

    def _retry(self, call: Callable[[], _Answer]) -> _Answer:
        """Repeat a request that may safely be repeated."""
        backoff = self._new_backoff()
        for attempt in range(self._attempts):
            try:
                return call()
            except BrokerError as error:
                if not error.retryable or attempt + 1 == self._attempts:
                    raise
                self._wait(backoff, error)
        raise AssertionError("unreachable")

    def _new_backoff(self) -> Backoff:
        return Backoff(self._rng, initial_s=self._first_wait_s, cap_s=LONGEST_WAIT_S, jitter=0.5)

    def _wait(self, backoff: Backoff, error: BrokerError) -> None:
        wait_s = backoff.next_wait_s(time.monotonic())
        if isinstance(error, RateLimitedError) and error.retry_after_s is not None:
            wait_s = max(wait_s, min(error.retry_after_s, 60.0))
        if self._abandon.wait(wait_s):
            raise _StoppedError


def _says_duplicate(error: OrderRejectedError) -> bool:
    return error.http_status == 422 and "client_order_id" in error.message and "unique" in error.message
