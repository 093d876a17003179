"""The order worker: one thread that sends what the engine decided, in its order.

Every order's intent is in the journal before its request leaves. What may have been taken, because of a time-out or a
5xx, is looked up by its client order id before it is sent again, so that an intent makes at most one order. What the
venue refused is never repeated. Outcomes go to `on_outcome`, which is called on the worker's thread.
"""

from __future__ import annotations

import json
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
import structlog

from dry_work.backoff import Backoff
from dry_work.broker.journal import Intent, Journal, JournalSession
from dry_work.broker.outcomes import (
    CancelRefused,
    LegIntent,
    OrderLookedUp,
    OrderRefused,
    OrderTaken,
    OrderUnresolved,
    Outcome,
    PairHold,
    ReplacementRefused,
    ReplacementTaken,
)
from dry_work.errors import (
    BrokerError,
    BrokerUnavailableError,
    OrderRejectedError,
    OutcomeUnknownError,
    RateLimitedError,
    RiskRefusedError,
    VenueAuthError,
)
from dry_work.orders.books import Fill
from dry_work.orders.groups import assign_legs, exit_side
from dry_work.orders.model import OrderClass, OrderRequest, OrderStatus, Replacement, VenueOrder
from dry_work.orders.risk import Breach
from dry_work.wire.alpaca_orders import build_order_request, build_replacement

__all__ = [
    "CancelRefused",
    "OrderGateway",
    "OrderLookedUp",
    "OrderRefused",
    "OrderTaken",
    "OrderUnresolved",
    "OrderVenue",
    "Outcome",
    "ReplacementRefused",
    "ReplacementTaken",
]

ATTEMPTS = 16  # of one request: an outage of a minute delays it, a longer one ends it
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 5.0
_CHAIN = 16  # replacements that are followed from one order
CLOCK_TOLERANCE_NS = 2_000_000_000  # between the venue's clock and its orders' times

_Answer = TypeVar("_Answer")

_log = structlog.get_logger(__name__)


class OrderVenue(Protocol):
    """What the worker asks of the venue; see `dry_work.alpaca.trading.TradingApi`."""

    def submit(self, request: OrderRequest) -> VenueOrder: ...
    def order(self, order_id: str) -> VenueOrder | None: ...
    def replace(self, order_id: str, change: Replacement) -> VenueOrder: ...
    def order_by_client_id(self, client_order_id: str) -> VenueOrder | None: ...
    def cancel(self, order_id: str) -> None: ...
    def report_slice(self, number: int, *, consumer: str, orders: int) -> None: ...
    def close(self) -> None: ...


# What the engine asks for


class _Submit(msgspec.Struct, frozen=True):
    request: OrderRequest
    number: int
    at_ns: int
    legs: tuple[LegIntent, ...] = ()
    hold: PairHold | None = None
    is_intended: bool = False  # its intent is in the journal


class _Replace(msgspec.Struct, frozen=True):
    client_order_id: str
    change: Replacement
    request: OrderRequest  # what stands afterwards
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
    ends: tuple[tuple[str, str], ...]
    at_ns: int


class _Run(msgspec.Struct, frozen=True):
    call: Callable[[Any], None]


_Task = _Submit | _Replace | _Cancel | _LookUp | _Report | _Record | _Run | None


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
        judge: returns why an order must not leave, by its client order id; asked right before each request.
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
        judge: Callable[[str], Breach | None] = lambda _name: None,
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
        self._judge = judge
        self.is_sending = False  # an order is under way
        self._tasks: queue.SimpleQueue[tuple[_Task, float]] = queue.SimpleQueue()
        self._abandon = threading.Event()
        self._thread: threading.Thread | None = None
        self._order_ids: dict[str, str] = {}  # the venue's ids by our names
        self._heads: dict[str, str] = {}  # name of the order that a leg went out with
        self._groups: dict[str, _Submit] = {}  # what went out with legs
        self._renamed: set[str] = set()  # orders that the venue has under another client order id
        self._hold: PairHold | None = None
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

    def submit(
        self,
        request: OrderRequest,
        *,
        number: int,
        at_ns: int,
        legs: Sequence[LegIntent] = (),
        hold: PairHold | None = None,
        is_intended: bool = False,
    ) -> None:
        """Send an order.

        Args:
            number: its place in the session.
            legs: orders that go out with it: exits, or the second part of a split order, which is only written down.
            hold: keeps it back for a moment; whatever is asked for next lets it go.
            is_intended: it was written down before, as the second part of a split order.
        """
        self._put(_Submit(request, number, at_ns, tuple(legs), hold, is_intended))
        self._hold = hold

    def release(self) -> None:
        """Let an order go that was kept back."""
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def replace(
        self, client_order_id: str, change: Replacement, request: OrderRequest, *, number: int, at_ns: int
    ) -> None:
        """Change an order that was submitted before.

        Args:
            client_order_id: of the order as it was submitted.
            change: what is new.
            request: the order as it is to stand then, under the new client order id.
            number: place of the new order in the session.
        """
        self._put(_Replace(client_order_id, change, request, number, at_ns))

    def assign(self, client_order_id: str, order_id: str) -> None:
        """Let an order of ours stand for the venue's order `order_id` from now on."""
        self._renamed.add(client_order_id)
        self._order_ids[client_order_id] = order_id

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

    def record(self, fills: Sequence[Fill], ends: Sequence[tuple[str, str]], *, at_ns: int) -> None:
        """Write fills to the journal, and which orders have ended and how."""
        self._put(_Record(tuple(fills), tuple(ends), at_ns))

    def run(self, call: Callable[[Any], None]) -> None:
        """Call with the venue, behind what was asked for so far."""
        self._put(_Run(call))

    def _put(self, task: _Task) -> None:
        self.release()
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
            if task.hold is None or task.hold.begin():
                self._submit(task, since_s)
        elif isinstance(task, _Replace):
            self._replace(task)
        elif isinstance(task, _Cancel):
            self._cancel(task.client_order_id, task.at_ns)
        elif isinstance(task, _LookUp):
            self._look_up_all(task)
        elif isinstance(task, _Report):
            self._report(task.number)
        elif isinstance(task, _Record):
            self._journal.record_progress(task.fills, task.ends, at_ns=task.at_ns)
        elif isinstance(task, _Run):
            task.call(self._venue)

    def _submit(self, task: _Submit, since_s: float) -> None:
        request = task.request
        name = request.client_order_id
        try:
            if not task.is_intended:
                self._record_intents(task)
        except sqlite3.Error as error:
            # What is not on disk must not leave.
            refused = OrderRejectedError(f"the order was not sent: {self._journal.path} cannot be written: {error}")
            self._on_outcome(OrderRefused(name, refused, is_fault=True))
            return
        if request.order_class is not OrderClass.SIMPLE:
            self._groups[name] = task
            self._heads.update((leg.request.client_order_id, name) for leg in task.legs)
        outcome = self._send(request, since_s)
        if isinstance(outcome, OrderTaken):
            outcome = self._with_legs(outcome)
            self._order_ids[name] = outcome.order.id
            self._orders_in_slice += 1
            for taken, order in ((name, outcome.order), *outcome.legs):
                self._journal.record_outcome(
                    taken, action="submit", outcome="accepted", order_id=order.id, at_ns=task.at_ns
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

    def _record_intents(self, task: _Submit) -> None:
        request, name = task.request, task.request.client_order_id
        is_plain = request.order_class is OrderClass.SIMPLE and request.notional is None and not request.extended_hours
        is_plain = is_plain and request.trail_price is None and request.trail_percent is None
        body = "" if is_plain else json.dumps(build_order_request(request))
        intents = [Intent(request=request, number=task.number, body=body)]
        intents += [
            Intent(request=leg.request, number=leg.number, parent=name, role=leg.role.value) for leg in task.legs
        ]
        self._journal.record_intents(intents, agent=self._agent, session=self._session.session, at_ns=task.at_ns)

    def _with_legs(self, taken: OrderTaken) -> OrderTaken:
        """Add the legs of a group; when the answer does not have them they are asked for."""
        legs = self._name_legs(taken.client_order_id, taken.order)
        if legs is None:
            return taken
        task = self._groups[taken.client_order_id]
        if len(legs) < len(task.legs):
            try:
                found = self._retry(lambda: self._venue.order(taken.order.id))
            except BrokerError as error:
                _log.warning("legs are not known yet", client_order_id=taken.client_order_id, error=str(error))
                found = None
            legs = legs if found is None else self._name_legs(taken.client_order_id, found) or legs
        return OrderTaken(taken.client_order_id, taken.order, legs)

    def _name_legs(self, name: str, order: VenueOrder) -> tuple[tuple[str, VenueOrder], ...] | None:
        """Return the legs of an order by our names; None when it went out without any."""
        task = self._groups.get(name)
        if task is None:
            return None
        by_role = assign_legs(order.legs, task.request.symbol, exit_side(task.request))
        named = tuple((leg.request.client_order_id, by_role[leg.role]) for leg in task.legs if leg.role in by_role)
        for leg_name, leg in named:
            self.assign(leg_name, leg.id)
        return named

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
            self.is_sending = True  # before the question, so that nobody who turns the brake on misses this order
            try:
                breach = self._judge(name)
                if breach is not None:
                    return OrderRefused(name, RiskRefusedError(str(breach), reject_code=breach.code))
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
            finally:
                self.is_sending = False
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
                ("quantity", request.qty, found.qty if request.notional is None else None),
                ("value", request.notional, found.notional if request.notional is not None else None),
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
        if name in self._heads:
            self._look_up(self._heads[name])
            return self._order_ids.get(name)
        found = self._retry(lambda: self._venue.order_by_client_id(name))
        return found.id if found is not None else None

    def _replace(self, task: _Replace) -> None:
        name, new_id = task.client_order_id, task.request.client_order_id
        body = json.dumps(build_replacement(task.change))
        intent = Intent(request=task.request, number=task.number, parent=name, role="replacement", body=body)
        try:
            self._journal.record_intents([intent], agent=self._agent, session=self._session.session, at_ns=task.at_ns)
        except sqlite3.Error as error:
            reason = f"the replacement was not sent: {self._journal.path} cannot be written: {error}"
            self._on_outcome(ReplacementRefused(name, new_id, OrderRejectedError(reason)))
            return
        outcome = self._send_replacement(task)
        if isinstance(outcome, ReplacementTaken):
            self.assign(name, outcome.order.id)
            self._journal.record_outcome(
                new_id, action="replace", outcome="accepted", order_id=outcome.order.id, at_ns=task.at_ns
            )
        else:
            self._journal.record_outcome(
                new_id,
                action="replace",
                outcome="unknown" if outcome.is_unknown else "refused",
                code=outcome.error.code,
                message=outcome.error.message,
                at_ns=task.at_ns,
            )
        self._on_outcome(outcome)

    def _send_replacement(self, task: _Replace) -> ReplacementTaken | ReplacementRefused:
        """Ask for a replacement until its outcome is known: the new order's id is used once."""
        name, new_id = task.client_order_id, task.request.client_order_id
        backoff = self._new_backoff()
        last: BrokerError = OutcomeUnknownError("the order worker was stopped")
        is_unknown = False
        for attempt in range(self._attempts):
            try:
                if attempt:
                    self._wait(backoff, last)
                if is_unknown:
                    found = self._venue.order_by_client_id(new_id)
                    if found is not None:
                        return ReplacementTaken(name, found)
                    is_unknown = False
                order_id = self._order_ids.get(name) or self._find_order_id(name)
                if order_id is None:
                    return ReplacementRefused(name, new_id, OrderRejectedError("the venue does not have the order"))
                self.is_sending = True  # before the question, as in `_send`
                breach = self._judge(new_id)
                if breach is not None:
                    error = RiskRefusedError(str(breach), reject_code=breach.code)
                    return ReplacementRefused(name, new_id, error)
                return ReplacementTaken(name, self._venue.replace(order_id, task.change))
            except _StoppedError:
                break
            except OutcomeUnknownError as error:
                is_unknown, last = True, error
            except (RateLimitedError, BrokerUnavailableError) as error:
                last = error
            except BrokerError as error:
                if not _says_duplicate(error):
                    return ReplacementRefused(name, new_id, error)
                is_unknown, last = True, OutcomeUnknownError(error.message, code=error.code)
            finally:
                self.is_sending = False
            _log.warning("replacement is not through yet", client_order_id=name, attempt=attempt + 1, error=str(last))
        return ReplacementRefused(name, new_id, last, is_unknown=is_unknown)

    def _look_up_all(self, task: _LookUp) -> None:
        if task.is_resync:
            self.resyncs_begun += 1
        number = self.resyncs_begun
        is_complete = True
        for name in dict.fromkeys(self._unbound(task.client_order_ids)):
            try:
                self._look_up(name)
            except BrokerError as error:
                _log.warning("look-up failed", client_order_id=name, error=str(error))
                is_complete = is_complete and not error.retryable
        if task.is_resync and is_complete:
            self.resyncs_done = number

    def _unbound(self, names: Iterable[str]) -> Iterable[str]:
        """Return the orders to ask for: a leg without an id is asked for through the order that it went out with."""
        for name in names:
            yield self._heads.get(name, name) if name not in self._order_ids else name

    def _look_up(self, name: str) -> None:
        """Ask for an order, and for the one that stands in its place if it was replaced; tell what the venue says."""
        order_id = self._order_ids.get(name)
        if order_id is not None and name in self._renamed:
            found = self._retry(lambda: self._venue.order(order_id))
        else:
            found = self._retry(lambda: self._venue.order_by_client_id(name))
        before: list[VenueOrder] = []
        if found is not None and found.replaces and name in self._renamed:
            predecessor = found.replaces
            old = self._retry(lambda: self._venue.order(predecessor))
            before += [old] if old is not None else []
        while found is not None and found.status == OrderStatus.REPLACED and found.replaced_by:
            before.append(found)
            successor = found.replaced_by
            found = self._retry(lambda successor=successor: self._venue.order(successor))  # type: ignore[misc]
            if len(before) == _CHAIN:
                break
        legs: tuple[tuple[str, VenueOrder], ...] = ()
        if found is not None:
            if before and found.id != order_id:
                self.assign(name, found.id)
            self._order_ids.setdefault(name, found.id)
            if name in self._groups:
                legs = self._find_legs(name, found)
        self._on_outcome(OrderLookedUp(name, found, tuple(before), legs))

    def _find_legs(self, name: str, order: VenueOrder) -> tuple[tuple[str, VenueOrder], ...]:
        legs = self._name_legs(name, order)
        if not legs:
            found = self._retry(lambda: self._venue.order(order.id))
            legs = None if found is None else self._name_legs(name, found)
        return legs or ()

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


def _says_duplicate(error: BrokerError) -> bool:
    return error.http_status == 422 and "client_order_id" in error.message and "unique" in error.message
