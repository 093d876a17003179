"""Pruning the orders journal: what `pruning` plans leaves the file, batch by batch. Thread-safe; part of `journal`.

Each batch is one transaction with all that has to stay of it, so that a kill at any moment leaves a right journal. A
batch of which something new was written since it was planned stays as it is.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from dry_work.broker.journal_pruned import PRUNED_VERSION, write_pruned

if TYPE_CHECKING:
    from dry_work.broker.pruning import PruneBatch, PrunePlan
    from dry_work.broker.told import ToldRecord

FIRST_S = 60.0  # after the start
EVERY_S = 6 * 3600.0
DAY_NS = 86_400 * 1_000_000_000
STOP_S = 5.0
PAUSE_S = 0.05  # between two batches: an order may want to be written down
WORTH = 50  # fewer old orders are not worth the reading
_PAGES = 256  # given back to the disk at once

_BY_NAME = ("intents", "outcomes", "order_links", "request_bodies", "order_terms")
_BY_EXECUTION = ("fills", "fill_orders", "reversals")

_log = structlog.get_logger(__name__)


class JournalPruning:
    """Lets go of what was planned.

    Args:
        lock, db: of the journal.
    """

    def __init__(self, lock: threading.Lock, db: sqlite3.Connection) -> None:
        self._lock = lock
        self._db = db

    def count_old(self, before_ns: int) -> int:
        """Return how many orders were intended before a moment, with all that is open of them."""
        with self._lock:
            row = self._db.execute("SELECT count(*) FROM intents WHERE intended_ns < ?", (before_ns,)).fetchone()
        return int(row[0])

    def prepare(self) -> None:
        """Let the file be able to shrink; one of an earlier version is written anew. Before anything is traded."""
        with self._lock:
            try:
                if self._db.execute("PRAGMA auto_vacuum").fetchone()[0] == 0:
                    self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
                    self._db.execute("VACUUM")
            except sqlite3.Error as error:
                # What leaves makes room for what comes all the same.
                _log.warning("the journal's file cannot shrink in this run", error=str(error))

    def prune(self, batch: PruneBatch) -> bool:
        """Let a batch of orders go; False, and nothing is changed, when something new was written of one."""
        db = self._db
        with self._lock, db:
            db.execute("BEGIN IMMEDIATE")
            names = [(name,) for name in batch.orders]
            executions = [(name,) for name in batch.executions]
            db.execute("CREATE TEMP TABLE IF NOT EXISTS leaving (name TEXT PRIMARY KEY) WITHOUT ROWID")
            db.execute("DELETE FROM leaving")
            db.executemany("INSERT OR IGNORE INTO leaving VALUES (?)", names)
            # Fills of orders that were pruned before are no part of `leaving`.
            told = {
                "intents": (len(names), "client_order_id IN leaving"),
                "outcomes": (batch.outcome_count, "client_order_id IN leaving"),
            }
            for table, (count, which) in told.items():
                found = db.execute(f"SELECT count(*) FROM {table} WHERE {which}").fetchone()[0]  # noqa: S608 - no input
                if found != count:
                    return False
            of_these = "SELECT execution_id FROM fills WHERE client_order_id IN leaving"
            known = {row[0] for row in db.execute(of_these)}
            if not known <= set(batch.executions):
                return False
            write_pruned(db, batch.stays, batch.executions, batch.carried)
            for (agent, session), number in batch.numbers.items():
                db.execute(
                    "INSERT INTO pruned_sessions VALUES (?, ?, ?) "
                    "ON CONFLICT DO UPDATE SET last_number = max(last_number, excluded.last_number)",
                    (agent, session, number),
                )
            marks = [row[0] for row in db.execute("SELECT id FROM position_marks")]
            shifts = [(batch.mark_shifts.get(mark, len(executions)), mark) for mark in marks]
            db.executemany("UPDATE position_marks SET fills = fills - ? WHERE id = ?", shifts)
            for table in _BY_NAME:
                db.execute(f"DELETE FROM {table} WHERE client_order_id IN leaving")  # noqa: S608 - no input
            for table in _BY_EXECUTION:
                db.executemany(f"DELETE FROM {table} WHERE execution_id = ?", executions)  # noqa: S608 - no input
            db.execute(f"PRAGMA user_version = {PRUNED_VERSION}")
        return True

    def drop_marks(self, plan: PrunePlan) -> None:
        """Let marks go that later ones stand for, and halts that were lifted long ago; after all batches."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("DELETE FROM position_marks WHERE id = ?", [(mark,) for mark in plan.marks])
            self._db.execute("DELETE FROM symbol_halts WHERE lifted_ns < ?", (plan.before_ns,))

    def shrink(self) -> bool:
        """Give some free pages back to the disk; False when there is none left."""
        with self._lock:
            before = self._db.execute("PRAGMA freelist_count").fetchone()[0]
            if before:
                self._db.executescript(f"PRAGMA incremental_vacuum({_PAGES})")  # `execute` would do one page
                return bool(self._db.execute("PRAGMA freelist_count").fetchone()[0] < before)
        return False


class JournalPruner:
    """A thread that prunes a journal now and then, a little at a time.

    Args:
        path: of the journal, which is read beside its writer.
        pruning: of the journal.
        days: what ended so many days ago leaves; see `plan_pruning` for what stays all the same.
        time_ns: time of the machine, in which the journal counts.
        read_record: returns what the strategy's state knows, as it is kept.
        first_s, every_s: when.
    """

    def __init__(
        self,
        path: Path,
        pruning: JournalPruning,
        *,
        days: float,
        time_ns: Callable[[], int],
        read_record: Callable[[], ToldRecord | None],
        first_s: float = FIRST_S,
        every_s: float = EVERY_S,
    ) -> None:
        self._path = path
        self._pruning = pruning
        self._days = days
        self._time_ns = time_ns
        self._read_record = read_record
        self._first_s = first_s
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.pruned = 0  # orders so far

    def start(self) -> None:
        """Begin to work."""
        self._thread = threading.Thread(target=self._run, name="journal pruner", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread with the batch at hand. May be called twice, and before `start`."""
        self._stop.set()
        if self._thread is not None:
            # It may be reading a large journal, which needs no end.
            self._thread.join(STOP_S)

    def prune(self) -> int:
        """Let go of what is old; return how many orders."""
        # Here, so that nobody else has to wait for these modules.
        from dry_work.broker.books_reader import read_books
        from dry_work.broker.pruning import plan_pruning

        before_ns = self._time_ns() - int(self._days * DAY_NS)
        if self._pruning.count_old(before_ns) < WORTH:
            return 0
        record = self._read_record()
        plan = plan_pruning(read_books(self._path), before_ns=before_ns, record=record)
        count = 0
        for batch in plan.batches:
            if self._stop.wait(PAUSE_S) or not self._pruning.prune(batch):
                break
            count += len(batch.orders)
        else:
            self._pruning.drop_marks(plan)
        while not self._stop.wait(PAUSE_S) and self._pruning.shrink():
            pass
        self.pruned += count
        if count:
            _log.info("old orders were pruned from the journal", orders=count, days=self._days)
        return count

    def _run(self) -> None:
        wait_s = self._first_s
        while not self._stop.wait(wait_s):
            wait_s = self._every_s
            try:
                self.prune()
            except Exception:
                if self._stop.is_set():
                    return  # the journal was closed
                # Nothing was lost: the next time may do better, and the journal says itself what is wrong with it.
                _log.exception("the journal could not be pruned")
