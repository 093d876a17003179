"""What the orders journal keeps of the account beside orders and fills: positions that were taken over, others' orders,
halted symbols. Part of `journal`, whose lock and connection it uses.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from decimal import Decimal
from enum import StrEnum

import msgspec

# Beside the schema, so that a journal from before them gets them as well.
SCHEMA = """
CREATE TABLE IF NOT EXISTS position_marks (
    id INTEGER PRIMARY KEY,
    symbol TEXT NOT NULL,              -- without a slash
    qty TEXT NOT NULL,                 -- signed, of the account from here on
    price TEXT NOT NULL,               -- average entry price
    cause TEXT NOT NULL,               -- start, manual, fees, unexplained
    detail TEXT NOT NULL,
    at_ns INTEGER NOT NULL,
    fills INTEGER NOT NULL             -- how many of the journal's fills it holds
);
CREATE TABLE IF NOT EXISTS foreign_orders (
    order_id TEXT PRIMARY KEY,         -- the venue's
    client_order_id TEXT NOT NULL,
    symbol TEXT NOT NULL,
    side TEXT NOT NULL,
    filled_qty TEXT NOT NULL,          -- as far as our positions hold it
    status TEXT NOT NULL,
    at_ns INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS symbol_halts (
    id INTEGER PRIMARY KEY,
    symbol TEXT NOT NULL,              -- without a slash
    cause TEXT NOT NULL,               -- what it is about: position, or a client order id
    reason TEXT NOT NULL,
    at_ns INTEGER NOT NULL,
    lifted_ns INTEGER,
    lifted_by TEXT
);
CREATE TABLE IF NOT EXISTS order_terms (
    client_order_id TEXT PRIMARY KEY,
    terms TEXT NOT NULL                -- JSON: the order as the strategy gave it
);
CREATE TABLE IF NOT EXISTS fill_orders (
    execution_id TEXT PRIMARY KEY,
    order_name TEXT NOT NULL           -- client order id at the venue, where it is not that of the order
);
CREATE TABLE IF NOT EXISTS reversals (
    execution_id TEXT PRIMARY KEY,     -- of a fill with a negative quantity
    previous_execution_id TEXT NOT NULL
);
"""


class MarkCause(StrEnum):
    """Why a position was taken over from the venue."""

    START = "start"  # it was there when a run began
    MANUAL = "manual"  # orders that are not the agent's
    FEES = "fees"  # in coins
    UNEXPLAINED = "unexplained"


class PositionMark(msgspec.Struct, frozen=True, kw_only=True):
    """A position that was taken over from the venue: from here on it moves with the fills."""

    symbol: str
    qty: Decimal
    price: Decimal
    cause: MarkCause
    detail: str = ""
    at_ns: int = 0
    fills: int = 0
    id: int = 0  # in the journal


class ForeignOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order of the account that is not the agent's, as far as it was seen."""

    order_id: str
    client_order_id: str
    symbol: str
    side: str
    filled_qty: Decimal
    status: str
    at_ns: int = 0


class SymbolHalt(msgspec.Struct, frozen=True, kw_only=True):
    """A symbol whose state at the venue is not explained."""

    symbol: str
    cause: str
    reason: str
    at_ns: int = 0


class BookRecords:
    """Writes and reads these tables. Thread-safe.

    Args:
        lock, db: of the journal.
    """

    def __init__(self, lock: threading.Lock, db: sqlite3.Connection) -> None:
        self._lock = lock
        self._db = db

    def mark_positions(self, marks: Iterable[PositionMark]) -> None:
        """Write down positions that were taken over; they hold all fills so far."""
        rows = [
            (mark.symbol, f"{mark.qty:f}", f"{mark.price:f}", mark.cause.value, mark.detail, mark.at_ns)
            for mark in marks
        ]
        self._write(
            "INSERT INTO position_marks (symbol, qty, price, cause, detail, at_ns, fills) "
            "VALUES (?, ?, ?, ?, ?, ?, (SELECT count(*) FROM fills))",
            rows,
        )

    def note_foreign(self, orders: Iterable[ForeignOrder]) -> None:
        """Write down others' orders as they stand."""
        rows = [
            (
                each.order_id,
                each.client_order_id,
                each.symbol,
                each.side,
                f"{each.filled_qty:f}",
                each.status,
                each.at_ns,
            )
            for each in orders
        ]
        self._write("INSERT OR REPLACE INTO foreign_orders VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def halt(self, halt: SymbolHalt) -> None:
        """Write down that a symbol is halted."""
        self._write(
            "INSERT INTO symbol_halts (symbol, cause, reason, at_ns) VALUES (?, ?, ?, ?)",
            [(halt.symbol, halt.cause, halt.reason, halt.at_ns)],
        )

    def lift(self, *, symbol: str = "", cause: str = "", by: str, at_ns: int) -> None:
        """Write down that a symbol is halted no more for one cause; without a symbol, that none is."""
        self._write(
            "UPDATE symbol_halts SET lifted_ns = ?, lifted_by = ? WHERE lifted_ns IS NULL "
            "AND (? = '' OR (symbol = ? AND cause = ?))",
            [(at_ns, by, symbol, symbol, cause)],
        )

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        if not rows:
            return
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(statement, rows)


def read_marks(db: sqlite3.Connection) -> list[PositionMark]:
    """Return all marks, oldest first."""
    rows = db.execute("SELECT symbol, qty, price, cause, detail, at_ns, fills, id FROM position_marks ORDER BY id")
    return [
        PositionMark(
            symbol=row[0], qty=Decimal(row[1]), price=Decimal(row[2]), cause=MarkCause(row[3]), detail=row[4],
            at_ns=row[5], fills=row[6], id=row[7],
        )
        for row in rows
    ]  # fmt: skip


def read_foreign(db: sqlite3.Connection) -> list[ForeignOrder]:
    """Return others' orders as they were seen last."""
    columns = "order_id, client_order_id, symbol, side, filled_qty, status, at_ns"
    return [
        ForeignOrder(
            order_id=row[0], client_order_id=row[1], symbol=row[2], side=row[3], filled_qty=Decimal(row[4]),
            status=row[5], at_ns=row[6],
        )
        for row in db.execute(f"SELECT {columns} FROM foreign_orders ORDER BY rowid")  # noqa: S608 - no input of users
    ]  # fmt: skip


def read_halts(db: sqlite3.Connection) -> list[SymbolHalt]:
    """Return the halts that are in force, oldest first."""
    rows = db.execute("SELECT symbol, cause, reason, at_ns FROM symbol_halts WHERE lifted_ns IS NULL ORDER BY id")
    return [SymbolHalt(symbol=row[0], cause=row[1], reason=row[2], at_ns=row[3]) for row in rows]
