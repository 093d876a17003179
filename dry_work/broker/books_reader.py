"""Reading an orders journal from outside: no file is written, no lock is held that its trader could wait for.

A journal in use is read beside its writer, by SQLite's own rules for that. One that a killed process left behind may
have its last transactions in `-wal` only; they count. All is read in one transaction, so that it belongs together.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from dry_work.broker.journal import APPLICATION_ID, SCHEMA_VERSION, AccountRecord, RiskRecord
from dry_work.broker.journal_books import (
    ForeignOrder,
    PositionMark,
    SymbolHalt,
    read_foreign,
    read_halts,
    read_marks,
)
from dry_work.broker.journal_pruned import (
    PRUNED_VERSION,
    CarriedPosition,
    PrunedOrder,
    read_carried,
    read_pruned,
    read_pruned_sessions,
)
from dry_work.broker.risk_requests import RiskRequest, RiskRequests
from dry_work.errors import ConfigError
from dry_work.orders.books import Fill
from dry_work.orders.model import OrderStatus, Side
from dry_work.orders.risk import RiskState, next_state

ATTEMPTS = 5  # a trader that starts or ends right now moves files
_WAIT_S = 0.1
_BUSY_TIMEOUT_S = 2.0
_ENDS = {status.value for status in OrderStatus if status.value in ("filled", "canceled", "expired", "rejected")}
FINAL = frozenset({"refused", *_ENDS})  # outcomes after which an order is open no more


class JournalOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order as the journal has it: what was intended, and what is known of it."""

    client_order_id: str
    agent: str
    session: str
    number: int
    symbol: str
    side: Side
    type: str
    time_in_force: str
    qty: Decimal | None = None
    notional: Decimal | None = None
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    trail: str = ""  # of a trailing stop, with its unit
    order_class: str = ""  # of an order that others went out with
    intended_ns: int = 0
    parent: str = ""
    role: str = ""  # take_profit, stop_loss, remainder, replacement
    outcome: str = ""  # accepted, unknown, one of `FINAL`; empty: nothing is known
    order_ids: tuple[str, ...] = ()  # the venue's
    message: str = ""
    code: int | None = None  # of a refusal
    body: str = ""  # JSON as it was sent, where the other fields do not say all
    terms: str = ""  # JSON: the order as the strategy gave it
    updated_ns: int = 0  # of what came of it last, 0: nothing yet
    outcome_count: int = 0


class JournalBooks(msgspec.Struct, frozen=True, kw_only=True):
    """All that an orders journal says; oldest first."""

    path: Path
    agents: tuple[str, ...] = ()
    account: AccountRecord | None = None
    risk: RiskRecord = RiskRecord()
    orders: tuple[JournalOrder, ...] = ()
    fills: tuple[Fill, ...] = ()  # a negative quantity takes another back
    fill_orders: Mapping[str, str] = {}  # by execution id: client order id at the venue, where it is not the fill's
    marks: tuple[PositionMark, ...] = ()
    foreign: tuple[ForeignOrder, ...] = ()
    halts: tuple[SymbolHalt, ...] = ()  # in force
    pruned: Mapping[str, PrunedOrder] = {}  # what has ended and was pruned, by every client order id that it had
    carried: tuple[CarriedPosition, ...] = ()  # what the fills of those orders add up to
    pruned_sessions: tuple[str, ...] = ()  # of those orders


def read_books(path: Path) -> JournalBooks:
    """Return what the journal in the file `path` says.

    Raises:
        ConfigError: it is damaged, no journal, of a later version, or cannot be read, naming it.
    """
    problem: Exception | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(_WAIT_S)
        try:
            with _connect(path) as db:
                return _read(path, db)
        except FileNotFoundError:
            raise ConfigError(f"{path}: there is no such orders journal") from None
        except (sqlite3.Error, OSError) as error:
            problem = error
        except (ValueError, TypeError, InvalidOperation) as error:
            raise ConfigError(f"{path}: the orders journal is damaged: {error}") from None
    what = "cannot be read" if isinstance(problem, OSError) else "is damaged, no journal, or cannot be read"
    raise ConfigError(f"{path}: the orders journal {what}: {problem}")


@contextlib.contextmanager
def _connect(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the journal in the way that its files allow, without writing one."""
    path.stat()
    wal, shared = path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")
    with contextlib.ExitStack() as stack:
        if shared.exists() and wal.exists():
            # In use, or left behind by a crash. `readonly_shm`: also the index of the WAL is left as it is.
            query = "mode=ro&readonly_shm=1"
        elif wal.exists() and wal.stat().st_size:
            # Copied without its index, which only a writer can make: so nobody has it open.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dry-work-status-")))
            for file in (path, wal):
                shutil.copyfile(file, folder / file.name)
            path, query = folder / path.name, "mode=rw"
        else:
            query = "mode=ro&immutable=1"
        db = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?{query}", uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None
        )
        stack.callback(db.close)
        yield db


def _read(path: Path, db: sqlite3.Connection) -> JournalBooks:
    db.execute("BEGIN")
    tables = {str(row[0]) for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if not tables and application == version == 0:
        return JournalBooks(path=path)  # it is being made
    if application != APPLICATION_ID:
        raise ConfigError(f"{path}: is a database of another program, not an orders journal of Dry Work")
    if version not in (SCHEMA_VERSION, PRUNED_VERSION):
        raise ConfigError(f"{path}: orders journal of version {version}, this program reads up to {PRUNED_VERSION}")
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise ConfigError(f"{path}: the orders journal is damaged: {found}")
    account = _one(db, tables, "account", "agent, account_id, url, mode")
    return JournalBooks(
        path=path,
        agents=tuple(str(row[0]) for row in db.execute("SELECT agent FROM session GROUP BY agent ORDER BY max(rowid)")),
        account=None
        if account is None
        else AccountRecord(agent=account[0], account_id=account[1], url=account[2], mode=account[3]),
        risk=_foresee(_read_risk(db, tables), RiskRequests(path).list()),
        orders=tuple(_read_orders(db, tables)),
        fills=tuple(_read_fills(db, tables)),
        fill_orders=dict(db.execute("SELECT execution_id, order_name FROM fill_orders").fetchall())
        if "fill_orders" in tables
        else {},
        marks=tuple(read_marks(db)) if "position_marks" in tables else (),
        foreign=tuple(read_foreign(db)) if "foreign_orders" in tables else (),
        halts=tuple(read_halts(db)) if "symbol_halts" in tables else (),
        pruned=read_pruned(db) if "pruned_orders" in tables else {},
        carried=tuple(read_carried(db)) if "carried_positions" in tables else (),
        pruned_sessions=tuple(read_pruned_sessions(db)) if "pruned_sessions" in tables else (),
    )


def _one(db: sqlite3.Connection, tables: set[str], table: str, columns: str, order: str = "") -> Any:
    if table not in tables:
        return None  # the journal of an earlier version
    return db.execute(f"SELECT {columns} FROM {table} {order} LIMIT 1").fetchone()  # noqa: S608 - no input of users


def _read_risk(db: sqlite3.Connection, tables: set[str]) -> RiskRecord:
    row = _one(db, tables, "risk_transitions", "id, state, reason, who, at_ns, token, taken_ns", "ORDER BY id DESC")
    if row is None:
        return RiskRecord()
    return RiskRecord(
        id=row[0], state=RiskState(row[1]), reason=row[2], who=row[3], at_ns=row[4], token=row[5], taken_ns=row[6]
    )


def _foresee(risk: RiskRecord, requests: Sequence[RiskRequest]) -> RiskRecord:
    """Return the risk state with what was asked for while the journal could not be written."""
    for request in requests:
        state = next_state(risk.state, request.command)
        if state is not None:
            risk = RiskRecord(state=state, reason=request.reason, who=request.who, at_ns=request.at_ns)
    return risk


def _read_orders(db: sqlite3.Connection, tables: set[str]) -> Iterator[JournalOrder]:
    links: dict[str, tuple[str, str]] = {}
    if "order_links" in tables:
        rows = db.execute("SELECT client_order_id, parent, role FROM order_links")
        links = {name: (parent, role) for name, parent, role in rows}
    bodies: dict[str, str] = {}
    if "request_bodies" in tables:
        bodies = dict(db.execute("SELECT client_order_id, body FROM request_bodies").fetchall())
    terms: dict[str, str] = {}
    if "order_terms" in tables:
        terms = dict(db.execute("SELECT client_order_id, terms FROM order_terms").fetchall())
    outcomes: dict[str, tuple[str, str, int | None]] = {}
    ids: dict[str, list[str]] = {}
    counts: dict[str, tuple[int, int]] = {}  # of outcomes, and the time of the last
    columns = "client_order_id, action, outcome, order_id, message, code, at_ns"
    rows = db.execute(f"SELECT {columns} FROM outcomes ORDER BY id")  # noqa: S608 - no input of users
    for name, action, outcome, order_id, message, code, at_ns in rows:
        count, updated_ns = counts.get(name, (0, 0))
        counts[name] = (count + 1, max(updated_ns, at_ns))
        if order_id and order_id not in ids.setdefault(name, []):
            ids[name].append(order_id)
        # A refused cancellation changes nothing, and what has ended has ended.
        if (action != "cancel" or outcome in _ENDS) and outcomes.get(name, ("", "", None))[0] not in FINAL:
            outcomes[name] = (outcome, message or "", code if isinstance(code, int) else None)
    columns = "client_order_id, agent, session, number, symbol, side, type, time_in_force, qty, limit_price, stop_price"
    for row in db.execute(f"SELECT {columns}, intended_ns FROM intents ORDER BY rowid"):  # noqa: S608 - no input
        name = row[0]
        body = json.loads(bodies[name]) if name in bodies else {}
        parent, role = links.get(name, ("", ""))
        outcome, message, code = outcomes.get(name, ("", "", None))
        count, updated_ns = counts.get(name, (0, 0))
        yield JournalOrder(
            client_order_id=name,
            agent=row[1],
            session=row[2],
            number=row[3],
            symbol=row[4],
            side=Side(row[5]),
            type=row[6],
            time_in_force=row[7],
            qty=_decimal(row[8]),
            limit_price=_decimal(row[9]),
            stop_price=_decimal(row[10]),
            notional=_decimal(body.get("notional")),
            trail=_describe_trail(body),
            order_class=str(body.get("order_class") or ""),
            intended_ns=row[11],
            parent=parent,
            role=role,
            outcome=outcome,
            order_ids=tuple(ids.get(name, ())),
            message=message,
            code=code,
            body=bodies.get(name, ""),
            terms=terms.get(name, ""),
            updated_ns=updated_ns,
            outcome_count=count,
        )


def _describe_trail(body: dict[str, Any]) -> str:
    if body.get("trail_percent") is not None:
        return f"{body['trail_percent']}%"
    return str(body.get("trail_price") or "")


def _read_fills(db: sqlite3.Connection, tables: set[str]) -> Iterator[Fill]:
    back: dict[str, str] = {}
    if "reversals" in tables:
        back = dict(db.execute("SELECT execution_id, previous_execution_id FROM reversals").fetchall())
    columns = "execution_id, client_order_id, symbol, side, qty, price, ts_event_ns"
    for row in db.execute(f"SELECT {columns} FROM fills ORDER BY rowid"):  # noqa: S608 - no input of users
        yield Fill(
            execution_id=row[0],
            client_order_id=row[1],
            symbol=row[2],
            side=Side(row[3]),
            qty=Decimal(row[4]),
            price=Decimal(row[5]),
            ts_event_ns=row[6],
            previous_execution_id=back.get(row[0], ""),
        )


def _decimal(text: object) -> Decimal | None:
    return None if text is None else Decimal(str(text))
