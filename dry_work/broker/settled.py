"""What the books know of orders that were let go of: on disk, by name. Engine thread only.

The database has no name and is gone with the process however that ends; what has to outlive it is in the journal.
"""

from __future__ import annotations

import contextlib
import sqlite3
import weakref
from collections.abc import Sequence

import structlog

from dry_work.orders.books import SettledOrder

# A transaction that fails leaves what was there before: its journal, of some pages, is in memory.
_SETTINGS = ("journal_mode = MEMORY", "synchronous = OFF", "cache_size = -512")
_TABLES = (
    "CREATE TABLE orders (name TEXT PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE executions (id TEXT PRIMARY KEY) WITHOUT ROWID",
)

_log = structlog.get_logger(__name__)


class SettledOrders:
    """Orders on disk, in a database that is made with the first of them."""

    def __init__(self) -> None:
        self._db: sqlite3.Connection | None = None
        self._is_told = False

    def put(self, orders: Sequence[SettledOrder]) -> bool:
        """Take orders, all or none; False when the disk does not take them."""
        try:
            db = self._open()
            db.execute("BEGIN")
            try:
                db.executemany(
                    "INSERT OR REPLACE INTO orders VALUES (?, ?)", [(order.name, order.content) for order in orders]
                )
                db.executemany(
                    "INSERT OR IGNORE INTO executions VALUES (?)",
                    [(execution_id,) for order in orders for execution_id in order.execution_ids],
                )
                db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            if not self._is_told:
                self._is_told = True
                _log.warning("old orders stay in memory: they cannot be written to disk", error=str(error))
            return False
        return True

    def find(self, name: str) -> bytes | None:
        """Return the content of an order, None when it is none of these.

        Raises:
            sqlite3.Error: the disk does not give it.
        """
        if self._db is None:
            return None
        row = self._db.execute("SELECT content FROM orders WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def has_execution(self, execution_id: str) -> bool:
        """Tell whether an execution belongs to one of these orders.

        Raises:
            sqlite3.Error: the disk does not say it.
        """
        if self._db is None:
            return False
        found = self._db.execute("SELECT 1 FROM executions WHERE id = ?", (execution_id,)).fetchone()
        return found is not None

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            db = sqlite3.connect("", isolation_level=None, check_same_thread=False)  # a file without a name
            weakref.finalize(self, db.close)
            for setting in _SETTINGS:
                db.execute(f"PRAGMA {setting}")
            for table in _TABLES:
                db.execute(table)
            self._db = db
        return self._db
