"""What stays in the orders journal of orders that were pruned: names, totals, executions, the positions they left.

An order that was pruned has ended long ago. Its names are never used again, its executions never written again, and
what the venue still tells of it is known for what it is. Part of `journal`, whose connection it uses.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from decimal import Decimal
from hashlib import blake2b

import msgspec

from dry_work.orders.books import ZERO, HeldPosition

PRUNED_VERSION = 2  # `user_version` of a journal once something was pruned: programs that know nothing of it refuse it

# Beside the schema, so that a journal from before them gets them as well.
SCHEMA = """
CREATE TABLE IF NOT EXISTS pruned_orders (
    name TEXT PRIMARY KEY,             -- client order id, ours or the venue's for it
    filled_qty TEXT NOT NULL,
    filled_value TEXT NOT NULL         -- quantities times prices
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pruned_executions (
    digest BLOB PRIMARY KEY            -- of the execution's id
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pruned_sessions (
    agent TEXT NOT NULL,
    session TEXT NOT NULL,
    last_number INTEGER NOT NULL,      -- of the orders that were pruned
    PRIMARY KEY (agent, session)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS carried_positions (
    symbol TEXT PRIMARY KEY,           -- canonical
    own_qty TEXT NOT NULL,             -- sum of the fills that were pruned
    own_price TEXT NOT NULL,
    account_qty TEXT NOT NULL,         -- the same on top of the marks before them
    account_price TEXT NOT NULL,
    mark_id INTEGER NOT NULL,          -- the last of those marks, 0: none
    bought TEXT NOT NULL,              -- sum of the purchases among them
    fills INTEGER NOT NULL             -- how many there were
) WITHOUT ROWID;
"""
_DIGEST_BYTES = 16


class PrunedOrder(msgspec.Struct, frozen=True):
    """How much of an order was filled that was pruned."""

    filled_qty: Decimal = ZERO
    filled_value: Decimal = ZERO


class CarriedPosition(msgspec.Struct, frozen=True, kw_only=True):
    """What the fills of a symbol that were pruned add up to."""

    symbol: str  # canonical
    own: HeldPosition = HeldPosition()  # by the fills alone
    account: HeldPosition = HeldPosition()  # by the fills on top of the marks up to `mark_id`
    mark_id: int = 0
    bought: Decimal = ZERO
    fills: int = 0


def digest_of(execution_id: str) -> bytes:
    """Return what stands for an execution that was pruned."""
    return blake2b(execution_id.encode(), digest_size=_DIGEST_BYTES).digest()


def read_pruned(db: sqlite3.Connection) -> dict[str, PrunedOrder]:
    """Return the orders that were pruned, by every client order id that they had."""
    rows = db.execute("SELECT name, filled_qty, filled_value FROM pruned_orders")
    return {str(row[0]): PrunedOrder(Decimal(row[1]), Decimal(row[2])) for row in rows}


def read_carried(db: sqlite3.Connection) -> list[CarriedPosition]:
    """Return what the fills that were pruned add up to."""
    columns = "symbol, own_qty, own_price, account_qty, account_price, mark_id, bought, fills"
    return [
        CarriedPosition(
            symbol=row[0], own=HeldPosition(Decimal(row[1]), Decimal(row[2])),
            account=HeldPosition(Decimal(row[3]), Decimal(row[4])), mark_id=row[5], bought=Decimal(row[6]),
            fills=row[7],
        )
        for row in db.execute(f"SELECT {columns} FROM carried_positions ORDER BY symbol")  # noqa: S608 - no input
    ]  # fmt: skip


def read_pruned_sessions(db: sqlite3.Connection) -> list[str]:
    """Return the sessions of which orders were pruned."""
    return [str(row[0]) for row in db.execute("SELECT session FROM pruned_sessions ORDER BY session")]


def find_pruned(db: sqlite3.Connection, names: Iterable[str]) -> set[str]:
    """Return those of some client order ids whose orders were pruned."""
    return {
        name
        for name in names
        if db.execute("SELECT 1 FROM pruned_orders WHERE name = ?", (name,)).fetchone() is not None
    }


def find_pruned_executions(db: sqlite3.Connection, execution_ids: Iterable[str]) -> set[str]:
    """Return those of some executions whose orders were pruned."""
    return {
        each
        for each in execution_ids
        if db.execute("SELECT 1 FROM pruned_executions WHERE digest = ?", (digest_of(each),)).fetchone() is not None
    }


def write_pruned(
    db: sqlite3.Connection,
    orders: Mapping[str, PrunedOrder],
    executions: Iterable[str],
    carried: Iterable[CarriedPosition],
) -> None:
    """Write down what stays of orders; within a transaction."""
    for name, order in orders.items():
        row = db.execute("SELECT filled_qty, filled_value FROM pruned_orders WHERE name = ?", (name,)).fetchone()
        qty, value = (Decimal(row[0]), Decimal(row[1])) if row is not None else (ZERO, ZERO)
        db.execute(
            "INSERT OR REPLACE INTO pruned_orders VALUES (?, ?, ?)",
            (name, f"{qty + order.filled_qty:f}", f"{value + order.filled_value:f}"),
        )
    db.executemany("INSERT OR IGNORE INTO pruned_executions VALUES (?)", ((digest_of(each),) for each in executions))
    db.executemany(
        "INSERT OR REPLACE INTO carried_positions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                each.symbol,
                *(f"{value:f}" for value in (each.own.qty, each.own.price, each.account.qty, each.account.price)),
                each.mark_id,
                f"{each.bought:f}",
                each.fills,
            )
            for each in carried
        ],
    )
