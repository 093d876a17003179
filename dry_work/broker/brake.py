"""The brake: the durable risk state, followed by a thread of its own: a strategy that hangs does not hold it up.

The state is the last row of the journal's risk transitions. Whoever changes it writes there: the trader for a limit, an
operator's process for `halt` and `flatten`. The order worker looks there right before each order leaves. What follows
from a state (canceling, closing) is done over REST by the brake's thread; in lock-step by the order worker at the end
of a slice, so that equal runs stay equal, and by the thread only when that does not come.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable

import structlog

from dry_work.broker.flatten import STEP_S, Flattening, FlattenVenue, cancel_entries
from dry_work.broker.journal import Journal, RiskRecord
from dry_work.clock import Clock
from dry_work.errors import BrokerError, RateLimitedError
from dry_work.orders.risk import Breach, LimitName, LossMarks, RiskCommand, RiskState, judge_state, next_state
from dry_work.orders.risk_limits import OpenOrders, RiskLimits
from dry_work.pulse import give_pulse

LOCK_STEP_PATIENCE_S = 2.0  # after which the thread acts, although the engine should
MARKS_S = 1.0

_log = structlog.get_logger(__name__)


class Brake:
    """Follows and changes the risk state. Each method may be called from any thread.

    Args:
        journal: where the state is.
        venue: used by the brake's thread alone; closed at its end.
        agent: whose orders are canceled.
        limits: say which orders are canceled.
        clock: gives the time of changes.
        lockstep: `work` is called at the end of slices.
        is_sending: tells whether a request of the order worker is under way.
        on_change: called after every change; on any thread.
        on_failure: takes the error when the thread dies.
    """

    def __init__(
        self,
        journal: Journal,
        venue: FlattenVenue,
        *,
        agent: str,
        limits: RiskLimits,
        clock: Clock,
        lockstep: bool,
        is_sending: Callable[[], bool],
        on_change: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        journal.take_requests()
        self.record = journal.risk()
        self.begun_with = self.record.id
        self.marks: LossMarks | None = None  # to be written down
        self._journal = journal
        self._venue = venue
        self._agent = agent
        self._limits = limits
        self.clock = clock
        self._lockstep = lockstep
        self._is_sending = is_sending
        self._on_change = on_change
        self._on_failure = on_failure
        self._lock = threading.RLock()  # around `record`
        self._work_lock = threading.Lock()
        self._shrinking: set[str] = set()  # orders that can only shrink a position
        self._forced: RiskState | None = None  # when the journal cannot be written
        self._flattening: Flattening | None = None
        self._flattening_id = 0
        self._settled_id = 0
        self._seen_s = time.monotonic()
        self._written_marks: LossMarks | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._take(self.record, is_new=False)

    def start(self, prepare: Callable[[], None] = lambda: None) -> None:
        """Begin to follow the state; `prepare` is called first, on the thread."""
        self._thread = threading.Thread(target=self._run_thread, args=(prepare,), name="brake", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """End the thread. May be called twice."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    @property
    def state(self) -> RiskState:
        """The state in force."""
        return self._forced or self.record.state

    @property
    def is_settled(self) -> bool:
        """Tell whether what follows from the last change is done."""
        return self._settled_id == self.record.id or self._forced is not None

    def change(self, command: RiskCommand, *, reason: str, who: str) -> None:
        """Change the state, durable; a command that changes nothing is left out."""
        try:
            self._journal.change_risk(command, reason=reason, who=who, at_ns=self.clock.time_ns())
        except (sqlite3.Error, OSError) as error:
            # The brake works all the same; only a restart would not know of it.
            with self._lock:
                self._forced = next_state(self.state, command) or self.state
            _log.critical("the risk state cannot be written down", state=self.state.value, error=str(error))
            self._on_change()
            return
        self.look()

    def look(self) -> RiskRecord:
        """Read the state; return it."""
        with self._lock:
            self._journal.take_requests()
            record = self._journal.risk()
            if record.id == self.record.id:
                return record
            self._take(record, is_new=True)
        self._on_change()
        return record

    def allow(self, client_order_id: str) -> None:
        """Take note of an order that can only shrink a position: it may leave while the state is reducing."""
        self._shrinking.add(client_order_id)

    def forget(self, names: Iterable[str]) -> None:
        """Let go of orders that have ended."""
        self._shrinking.difference_update(names)

    def judge(self, client_order_id: str) -> Breach | None:
        """Return why an order must not leave now. Called right before its request, by the order worker."""
        try:
            self.look()
        except (sqlite3.Error, OSError) as error:
            # A brake that cannot be read is on.
            return Breach(limit=LimitName.HALTED, found=f"the risk state cannot be read: {error}", allowed="no order")
        # A request that did not get through is asked for again, so an order that was allowed stays so.
        return judge_state(self.state, shrinks=client_order_id in self._shrinking)

    def work(self, venue: FlattenVenue) -> None:
        """Do, once, what follows from the state; errors of the venue are left for the next time."""
        with self._work_lock:
            record = self.record
            if self._settled_id == record.id:
                return
            try:
                if self._act(record, venue):
                    self._settled_id = record.id
                    self._on_change()
            except RateLimitedError as error:
                _log.warning("the brake has to wait", error=str(error))
                self._stop.wait(min(error.retry_after_s or 1.0, 5.0))
            except BrokerError as error:
                _log.warning("the brake is not through yet", state=record.state.value, error=str(error))

    def _act(self, record: RiskRecord, venue: FlattenVenue) -> bool:
        """Do what follows from a state; tell whether that is all."""
        if record.state is RiskState.FLATTENING:
            if self._flattening is None or self._flattening_id != record.id:
                self._flattening, self._flattening_id = Flattening(agent=self._agent, token=record.token), record.id
            was_sending = self._is_sending()
            is_done = self._flattening.step(venue)
            if was_sending:
                self._flattening.look_again()
            elif is_done:
                self.change(RiskCommand.FLATTENED, reason=self._flattening.describe(), who=record.who)
                return True
            if self._flattening.problem:
                _log.warning("flattening goes on", problem=self._flattening.problem)
            return False
        if record.state is RiskState.ACTIVE:
            return True
        policy = self._limits.open_orders
        if record.state is RiskState.HALTED and policy is OpenOrders.KEEP:
            return True
        everything = record.state is RiskState.HALTED and policy is OpenOrders.CANCEL_ALL
        canceled = cancel_entries(venue, agent=self._agent, everything=everything)
        if canceled:
            _log.warning("orders were canceled", state=record.state.value, symbols=canceled)
        return not canceled  # until a look finds none: one may have been under way

    def _take(self, record: RiskRecord, *, is_new: bool) -> None:
        self.record = record
        self._forced = None
        self._seen_s = time.monotonic()
        if record.state is RiskState.ACTIVE:
            self._settled_id = record.id
            self.marks = self._written_marks = None
        if is_new:
            _log.warning("risk state changed", state=record.state.value, reason=record.reason, who=record.who)

    # The thread

    def _run_thread(self, prepare: Callable[[], None]) -> None:
        marks_due_s = 0.0
        try:
            prepare()
            while not self._stop.wait(STEP_S):
                give_pulse()
                record = self._follow()
                is_late = time.monotonic() - self._seen_s > LOCK_STEP_PATIENCE_S
                if record is not None and (not self._lockstep or is_late):
                    self.work(self._venue)
                if time.monotonic() >= marks_due_s:
                    marks_due_s = time.monotonic() + MARKS_S
                    self._write_marks()
            self._write_marks()
        except BaseException as error:
            _log.exception("the brake failed")
            self._on_failure(error)

    def _follow(self) -> RiskRecord | None:
        try:
            record = self.look()
            if record.id and record.taken_ns is None:
                self._journal.take_risk(record, at_ns=self.clock.time_ns())
        except (sqlite3.Error, OSError) as error:
            _log.error("the risk state cannot be read", error=str(error))
            return None
        return record

    def _write_marks(self) -> None:
        marks = self.marks
        if marks is None or marks is self._written_marks:
            return
        try:
            self._journal.record_marks(marks)
        except sqlite3.Error as error:
            _log.error("the marks of the loss limits cannot be written", error=str(error))
        self._written_marks = marks
