"""The order worker: one thread that sends what the engine decided, in its order.

Every order's intent is in the journal before its request leaves. What may have been taken, because of a time-out or a
5xx, is looked up by its client order id before it is sent again, so that an intent makes at most one order. What the
venue refused is never repeated. Outcomes go to `on_outcome`, which is called on the worker's thread.
"""

from __future__ import annotations

import contextlib
import json
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import structlog

from dry_work import pulse
from dry_work.broker.flight import LOOK_UP, NO_FLIGHT, Flight, describe_task
from dry_work.broker.gateway_tasks import (
    CancelTask,
    LookUpTask,
    RecordTask,
    ReplaceTask,
    ReportTask,
    RunTask,
    SubmitTask,
    Task,
)
from dry_work.broker.journal import Intent, Journal, JournalSession
from dry_work.broker.order_names import OrderNames
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
from dry_work.broker.sending import OrderSender, OrderVenue, StoppedError
from dry_work.errors import BrokerError, BrokerUnavailableError, OrderRejectedError
from dry_work.orders.books import Fill
from dry_work.orders.model import OrderClass, OrderRequest, Replacement
from dry_work.orders.risk import Breach
from dry_work.pulse import give_pulse
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
ORDER_AGE_S = 60.0

_log = structlog.get_logger(__name__)


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
        flight: is told of what is decided.
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
        order_age_s: float = ORDER_AGE_S,
        judge: Callable[[str], Breach | None] = lambda _name: None,
        flight: Flight = NO_FLIGHT,
    ) -> None:
        self._venue = venue
        self._journal = journal
        self._flight = flight
        self._on_outcome = on_outcome
        self._on_failure = on_failure
        self._agent = agent
        self._session = session
        self._consumer = consumer
        self._sender = OrderSender(
            venue,
            started_ns=session.started_ns,
            rng=rng or random.Random(),
            attempts=attempts,
            first_wait_s=first_wait_s,
            order_age_s=order_age_s,
            judge=judge,
            find_order_id=self._find_order_id,
        )
        self._names = OrderNames(venue, self._sender.retry)
        self._tasks: queue.SimpleQueue[tuple[Task, float]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._hold: PairHold | None = None
        self._lock = threading.Lock()  # around what is kept back
        self._keeps_back = False
        self._kept: list[tuple[Task, float]] = []
        self._orders_in_slice = 0
        # Takes, on the worker's thread, name, what came of it, and when it was asked for, begun and done (monotonic).
        self.on_sent: Callable[[str, Outcome, float, float, float], None] | None = None
        self.resyncs_begun = 0
        self.resyncs_done = 0

    @property
    def is_sending(self) -> bool:
        """Tell whether an order is under way."""
        return self._sender.is_sending

    def start(self) -> None:
        """Begin to work."""
        self._thread = threading.Thread(target=self._run_thread, name="order worker", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Work off the queue, give up what is not done in time, end the thread. May be called twice."""
        thread = self._thread
        if thread is None:
            self._venue.close()
            return
        if thread is threading.current_thread():
            return
        self.let_go()
        self._put(None)
        thread.join(timeout_s)
        if thread.is_alive():
            self._sender.abandon.set()
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
        terms: str = "",
    ) -> None:
        """Send an order.

        Args:
            number: its place in the session.
            legs: orders that go out with it: exits, or the second part of a split order, which is only written down.
            hold: keeps it back for a moment; whatever is asked for next lets it go.
            is_intended: it was written down before, as the second part of a split order or by an earlier process.
            terms: JSON: the order as the strategy gave it.
        """
        self._put(SubmitTask(request, number, at_ns, tuple(legs), hold, is_intended, terms))
        self._hold = hold

    def release(self) -> None:
        """Let an order go that was kept back."""
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def keep_back(self) -> None:
        """From now on let nothing leave before `let_go`, and what comes later not before the next one."""
        self._keeps_back = True

    @property
    def has_kept(self) -> bool:
        """Tell whether something waits for `let_go`."""
        return bool(self._kept)

    def let_go(self) -> None:
        """Work on what was kept back."""
        with self._lock:
            kept, self._kept = self._kept, []
            for item in kept:
                self._tasks.put(item)

    def restore(self, task: SubmitTask, order_ids: Mapping[str, str]) -> None:
        """Take note, before the start, of an order of an earlier process.

        Args:
            task: as it was submitted.
            order_ids: the venue's ids by our names, of itself and its legs, where others than ours stand for them.
        """
        self._names.add(task)
        for name, order_id in order_ids.items():
            self._names.assign(name, order_id)

    def look_up_now(self, client_order_id: str) -> OrderLookedUp:
        """Ask for an order and return the answer; before the start, on the caller's thread.

        Raises:
            BrokerError: the venue did not answer.
        """
        return self._flight.answer(LOOK_UP, lambda: self._names.look_up(client_order_id, whole=True))

    def replace(
        self,
        client_order_id: str,
        change: Replacement,
        request: OrderRequest,
        *,
        number: int,
        at_ns: int,
        is_intended: bool = False,
    ) -> None:
        """Change an order that was submitted before.

        Args:
            client_order_id: of the order as it was submitted.
            change: what is new.
            request: the order as it is to stand then, under the new client order id.
            number: place of the new order in the session.
            is_intended: an earlier process wrote it down.
        """
        self._put(ReplaceTask(client_order_id, change, request, number, at_ns, is_intended))

    def assign(self, client_order_id: str, order_id: str) -> None:
        """Let an order of ours stand for the venue's order `order_id` from now on."""
        self._names.assign(client_order_id, order_id)

    def cancel(self, client_order_id: str, *, at_ns: int) -> None:
        """Ask for the cancellation of an order that was submitted before."""
        self._put(CancelTask(client_order_id, at_ns))

    def look_up(self, client_order_ids: Iterable[str]) -> None:
        """Ask the venue what it knows of these orders."""
        self._put(LookUpTask(tuple(client_order_ids), is_resync=False))

    def resync(self, client_order_ids: Iterable[str]) -> None:
        """Ask the venue for these orders because events may have been lost; counted in `resyncs_done` at its end."""
        self._put(LookUpTask(tuple(client_order_ids), is_resync=True))

    def report(self, number: int) -> None:
        """Tell the simulated exchange that the orders of a slice are sent."""
        self._put(ReportTask(number))

    def record(
        self,
        fills: Sequence[Fill],
        ends: Sequence[tuple[str, str]],
        *,
        at_ns: int,
        order_names: Mapping[str, str] | None = None,
    ) -> None:
        """Write fills to the journal, and which orders have ended and how; see `Journal.record_progress`."""
        self._put(RecordTask(tuple(fills), tuple(ends), at_ns, order_names or {}))

    def run(self, call: Callable[[Any], None]) -> None:
        """Call with the venue, behind what was asked for so far."""
        self._put(RunTask(call))

    def forget(self, names: Iterable[str]) -> None:
        """Let go of orders that have ended; from any thread."""
        self._names.forget(names)

    def _put(self, task: Task) -> None:
        self.release()
        decision = describe_task(task)
        if decision is not None:
            self._flight.decide(decision)
        item = (task, time.monotonic())
        with self._lock:
            # What was written down already changes nothing at the venue, and everything else stays in its order.
            if self._keeps_back and (self._kept or isinstance(task, SubmitTask | ReplaceTask | CancelTask)):
                self._kept.append(item)
            else:
                self._tasks.put(item)

    def work_off(self, *, drop: bool = False) -> None:
        """Do on the caller's thread what is asked for by now, or drop it; for a worker that was not started."""
        with contextlib.suppress(queue.Empty):
            while True:
                task, since_s = self._tasks.get_nowait()
                if task is not None and not drop:
                    self._work(task, since_s)

    # The thread

    def _run_thread(self) -> None:
        try:
            while True:
                give_pulse()
                try:
                    task, since_s = self._tasks.get(timeout=pulse.EVERY_S)
                except queue.Empty:
                    continue
                if task is None or self._sender.abandon.is_set():
                    return
                self._work(task, since_s)
        except StoppedError:
            return
        except BaseException as error:
            _log.exception("order worker failed")
            self._on_failure(error)
        finally:
            self._venue.close()

    def _work(self, task: Task, since_s: float) -> None:
        if isinstance(task, SubmitTask):
            if task.hold is None or task.hold.begin():
                self._submit(task, since_s)
        elif isinstance(task, ReplaceTask):
            self._replace(task)
        elif isinstance(task, CancelTask):
            self._cancel(task.client_order_id, task.at_ns)
        elif isinstance(task, LookUpTask):
            self._look_up_all(task)
        elif isinstance(task, ReportTask):
            self._report(task.number)
        elif isinstance(task, RecordTask):
            self._journal.record_progress(task.fills, task.ends, at_ns=task.at_ns, order_names=task.order_names)
        elif isinstance(task, RunTask):
            task.call(self._venue)

    def _submit(self, task: SubmitTask, since_s: float) -> None:
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
        self._names.add(task)
        begun_s = time.monotonic()
        outcome = self._sender.send(request, since_s)
        if self.on_sent is not None:
            self.on_sent(name, outcome, since_s, begun_s, time.monotonic())
        if isinstance(outcome, OrderTaken):
            outcome = self._names.with_legs(outcome)
            self._names.bind(name, outcome.order.id)
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

    def _record_intents(self, task: SubmitTask) -> None:
        request, name = task.request, task.request.client_order_id
        is_plain = request.order_class is OrderClass.SIMPLE and request.notional is None and not request.extended_hours
        is_plain = is_plain and request.trail_price is None and request.trail_percent is None
        body = "" if is_plain else json.dumps(build_order_request(request))
        intents = [Intent(request=request, number=task.number, body=body, terms=task.terms)]
        intents += [
            Intent(request=leg.request, number=leg.number, parent=name, role=leg.role.value, terms=leg.terms)
            for leg in task.legs
        ]
        self._journal.record_intents(intents, agent=self._agent, session=self._session.session, at_ns=task.at_ns)

    def _cancel(self, name: str, at_ns: int) -> None:
        try:
            order_id = self._names.find_id(name)
            if order_id is None:
                raise OrderRejectedError("the venue does not have the order")
            self._sender.retry(lambda: self._venue.cancel(order_id))
        except BrokerError as error:
            self._journal.record_outcome(
                name, action="cancel", outcome="refused", code=error.code, message=error.message, at_ns=at_ns
            )
            self._on_outcome(CancelRefused(name, error))

    def _find_order_id(self, name: str) -> str | None:
        return self._names.find_id(name)

    def _replace(self, task: ReplaceTask) -> None:
        name, new_id = task.client_order_id, task.request.client_order_id
        body = json.dumps(build_replacement(task.change))
        intent = Intent(request=task.request, number=task.number, parent=name, role="replacement", body=body)
        try:
            if not task.is_intended:
                self._journal.record_intents(
                    [intent], agent=self._agent, session=self._session.session, at_ns=task.at_ns
                )
        except sqlite3.Error as error:
            reason = f"the replacement was not sent: {self._journal.path} cannot be written: {error}"
            self._on_outcome(ReplacementRefused(name, new_id, OrderRejectedError(reason)))
            return
        outcome = self._sender.send_replacement(task)
        if isinstance(outcome, ReplacementTaken):
            self._names.assign(name, outcome.order.id)
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

    def _look_up_all(self, task: LookUpTask) -> None:
        if task.is_resync:
            self.resyncs_begun += 1
        number = self.resyncs_begun
        is_complete = True
        for name in dict.fromkeys(self._names.heads_of(task.client_order_ids)):
            try:
                self._on_outcome(self._names.look_up(name))
            except BrokerError as error:
                _log.warning("look-up failed", client_order_id=name, error=str(error))
                is_complete = is_complete and not error.retryable
        if task.is_resync and is_complete:
            self.resyncs_done = number

    def _report(self, number: int) -> None:
        orders, self._orders_in_slice = self._orders_in_slice, 0
        try:
            self._sender.retry(lambda: self._venue.report_slice(number, consumer=self._consumer, orders=orders))
        except BrokerError as error:
            raise BrokerUnavailableError(f"slice {number} could not be reported done: {error}") from error
