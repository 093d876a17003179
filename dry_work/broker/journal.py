"""The orders journal: what is about to be asked of the venue, and what came of it. Thread-safe.

SQLite in WAL mode with full synchronisation: when a call returns, what it wrote survives `kill -9` and a power cut. An
order's intent stands here before its request leaves, so that after a crash it is known which orders may exist.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from dry_work.broker.journal_books import SCHEMA as _BOOKS_SCHEMA
from dry_work.broker.journal_books import BookRecords
from dry_work.broker.journal_pruned import PRUNED_VERSION, find_pruned, find_pruned_executions
from dry_work.broker.journal_pruned import SCHEMA as _PRUNED_SCHEMA
from dry_work.broker.journal_pruning import JournalPruning
from dry_work.broker.journal_schema import LINKS_SCHEMA, RISK_SCHEMA
from dry_work.broker.journal_schema import SCHEMA as _SCHEMA
from dry_work.broker.risk_requests import RiskRequest, RiskRequests
from dry_work.clock import SECOND_NS
from dry_work.errors import ConfigError
from dry_work.orders.books import Fill
from dry_work.orders.client_ids import check_names
from dry_work.orders.model import OrderRequest
from dry_work.orders.risk import LossMarks, RiskCommand, RiskState, next_state

APPLICATION_ID = 0x44574F4A  # "DWOJ", stands in the file's header
SCHEMA_VERSION = 1
JOURNAL_NAME = "orders.sqlite"  # in the state directory

_BUSY_TIMEOUT_S = 5.0
_INSERT_OUTCOME = (
    "INSERT INTO outcomes (client_order_id, action, outcome, order_id, code, message, at_ns) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_RISK_HISTORY = "SELECT id, state, reason, who, at_ns, token, taken_ns FROM risk_transitions ORDER BY id"
_RISK_LAST = "SELECT id, state, reason, who, at_ns, token, taken_ns FROM risk_transitions ORDER BY id DESC LIMIT 1"


class RiskRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A change of the risk state, durable; the last one holds."""

    id: int = 0  # 0: there was no change yet
    state: RiskState = RiskState.ACTIVE
    reason: str = ""
    who: str = ""
    at_ns: int = 0
    token: str = ""
    taken_ns: int | None = None

    @property
    def is_by_limit(self) -> bool:
        """Tell whether a limit was the cause."""
        return self.who.startswith("limit:")


def describe_record(record: RiskRecord) -> str:
    """Return a change of the risk state in a sentence."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record.at_ns // SECOND_NS))
    return f"{record.state.value.upper()} since {at} UTC by {record.who}: {record.reason}"


class AccountRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Whose account the journal's agent trades with, and where."""

    agent: str
    account_id: str
    url: str
    mode: str


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """An order that is about to be sent, or a part of one."""

    request: OrderRequest
    number: int  # its place in the session
    parent: str = ""  # client order id of the order that it belongs to
    role: str = ""  # take_profit, stop_loss, remainder, replacement
    body: str = ""  # JSON as it is sent; empty: nothing that the other fields do not say
    terms: str = ""  # JSON: the order as the strategy gave it


class JournalSession(msgspec.Struct, frozen=True):
    """A session and the number of the last order that was intended in it."""

    session: str
    started_ns: int  # venue time at which it was first used
    last_number: int


class Journal:
    """The journal in the file `path`, which is made when it is not there.

    Raises:
        ConfigError: when the file is damaged, of another program or of a later version, naming it.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the journal; `books` keeps what it has of the account, `pruning` lets go of what is old."""
        self.path = Path(path)
        self._lock = threading.Lock()
        self._closed = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{self.path}: the orders journal cannot be opened: {error}") from error
        try:
            self._open()
        except sqlite3.Error as error:
            self._db.close()
            raise ConfigError(
                f"{self.path}: the orders journal is damaged or no journal: {error}; move it away to start a new one"
            ) from error
        except ConfigError:
            self._db.close()
            raise
        self.books = BookRecords(self._lock, self._db)
        self.pruning = JournalPruning(self._lock, self._db)
        self.requests = RiskRequests(self.path)

    def _open(self) -> None:
        db = self._db
        version = db.execute("PRAGMA user_version").fetchone()[0]
        application = db.execute("PRAGMA application_id").fetchone()[0]
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        is_new = version == 0 and application == 0 and tables == 0
        if not is_new and application != APPLICATION_ID:
            raise ConfigError(f"{self.path}: is a database of another program, not an orders journal of Dry Work")
        if not is_new and version not in (SCHEMA_VERSION, PRUNED_VERSION):
            known = f"this program reads up to {PRUNED_VERSION}"
            raise ConfigError(f"{self.path}: orders journal of version {version}, {known}")
        if is_new:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        if is_new:
            # One transaction, so that a crash leaves an empty file or a whole journal.
            db.executescript(
                f"BEGIN; {_SCHEMA} {RISK_SCHEMA} {LINKS_SCHEMA} {_BOOKS_SCHEMA} {_PRUNED_SCHEMA} "
                f"PRAGMA application_id = {APPLICATION_ID}; "
                f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        else:
            found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise ConfigError(f"{self.path}: the orders journal is damaged: {found}; move it away to start anew")
            db.executescript(RISK_SCHEMA + LINKS_SCHEMA + _BOOKS_SCHEMA + _PRUNED_SCHEMA)

    def mint_session(self, agent: str, *, session: str | None = None, started_ns: int = 0) -> JournalSession:
        """Return the agent's session, durable: the one it had before, otherwise a new one.

        Args:
            agent: whose orders.
            session: use this one instead; it begins at `started_ns` when it is not known yet.
            started_ns: venue time now.

        Raises:
            ConfigError: when agent or session cannot be part of a client order id.
        """
        check_names(agent, session or "s")
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            if session is None:
                known = self._db.execute(
                    "SELECT session FROM session WHERE agent = ? ORDER BY rowid DESC LIMIT 1", (agent,)
                ).fetchone()
                session = known[0] if known is not None else secrets.token_hex(5)
            self._db.execute("INSERT OR IGNORE INTO session VALUES (?, ?, ?)", (agent, session, started_ns))
            began = self._db.execute(
                "SELECT started_ns FROM session WHERE agent = ? AND session = ?", (agent, session)
            ).fetchone()[0]
            last = self._db.execute(
                "SELECT coalesce(max(number), 0) FROM ("
                "SELECT number FROM intents WHERE agent = :agent AND session = :session UNION ALL "
                "SELECT last_number FROM pruned_sessions WHERE agent = :agent AND session = :session)",
                {"agent": agent, "session": session},
            ).fetchone()[0]
        return JournalSession(str(session), int(began), int(last))

    def record_intent(self, request: OrderRequest, *, agent: str, session: str, number: int, at_ns: int) -> None:
        """Write down an order that is about to be sent; returns when that is durable.

        Raises:
            sqlite3.IntegrityError: when the client order id was used before.
        """
        self.record_intents([Intent(request=request, number=number)], agent=agent, session=session, at_ns=at_ns)

    def record_intents(self, intents: Sequence[Intent], *, agent: str, session: str, at_ns: int) -> None:
        """Write down orders that belong together, all or none; returns when that is durable.

        Raises:
            sqlite3.IntegrityError: when a client order id was used before.
        """
        rows = [
            (
                intent.request.client_order_id,
                agent,
                session,
                intent.number,
                intent.request.symbol,
                intent.request.side.value,
                intent.request.type.value,
                intent.request.time_in_force.value,
                *(
                    None if value is None else f"{value:f}"
                    for value in (intent.request.qty, intent.request.limit_price, intent.request.stop_price)
                ),
                at_ns,
            )
            for intent in intents
        ]
        names = [intent.request.client_order_id for intent in intents]
        links = [(name, intent.parent, intent.role) for name, intent in zip(names, intents, strict=True) if intent.role]
        bodies = [(name, intent.body) for name, intent in zip(names, intents, strict=True) if intent.body]
        terms = [(name, intent.terms) for name, intent in zip(names, intents, strict=True) if intent.terms]
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            if used := find_pruned(self._db, names):
                raise sqlite3.IntegrityError(f"{min(used)} was used before: that order has ended and was pruned")
            self._db.executemany("INSERT INTO intents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.executemany("INSERT INTO order_links VALUES (?, ?, ?)", links)
            self._db.executemany("INSERT INTO request_bodies VALUES (?, ?)", bodies)
            self._db.executemany("INSERT INTO order_terms VALUES (?, ?)", terms)

    def record_outcome(
        self,
        client_order_id: str,
        *,
        action: str,
        outcome: str,
        at_ns: int,
        order_id: str = "",
        code: int | None = None,
        message: str = "",
    ) -> None:
        """Write down what came of a request; nothing of an order that was pruned."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            if not find_pruned(self._db, (client_order_id,)):
                self._db.execute(_INSERT_OUTCOME, (client_order_id, action, outcome, order_id, code, message, at_ns))

    def record_progress(
        self,
        fills: Iterable[Fill],
        ends: Iterable[tuple[str, str]] = (),
        *,
        at_ns: int = 0,
        order_names: Mapping[str, str] | None = None,
    ) -> None:
        """Write down fills and ends of orders, all or none.

        Args:
            fills: one that is there, or was pruned, is left out; one of negative quantity takes another back.
            ends: client order id and how it ended: filled, canceled, expired or rejected.
            at_ns: venue time of the ends.
            order_names: client order ids that the venue has for fills, where they are not those of the fills.
        """
        fills = list(fills)
        names = [(execution_id, name) for execution_id, name in (order_names or {}).items()]
        back = [(fill.execution_id, fill.previous_execution_id) for fill in fills if fill.qty < 0]
        rows = [
            (
                fill.execution_id,
                fill.client_order_id,
                fill.symbol,
                fill.side.value,
                f"{fill.qty:f}",
                f"{fill.price:f}",
                fill.ts_event_ns,
            )
            for fill in fills
        ]
        outcomes = [(name, "end", outcome, "", None, "", at_ns) for name, outcome in ends]
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            if gone := find_pruned_executions(self._db, (fill.execution_id for fill in fills)):
                rows = [row for row in rows if row[0] not in gone]
                names = [row for row in names if row[0] not in gone]
                back = [row for row in back if row[0] not in gone]
            if ended := find_pruned(self._db, (outcome[0] for outcome in outcomes)):
                outcomes = [outcome for outcome in outcomes if outcome[0] not in ended]
            self._db.executemany("INSERT OR IGNORE INTO fills VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.executemany("INSERT OR IGNORE INTO fill_orders VALUES (?, ?)", names)
            self._db.executemany("INSERT OR IGNORE INTO reversals VALUES (?, ?)", back)
            self._db.executemany(_INSERT_OUTCOME, outcomes)

    def intents(self) -> list[str]:
        """Return the client order ids of all intents, oldest first."""
        return self._column("SELECT client_order_id FROM intents ORDER BY rowid")

    def links(self) -> dict[str, tuple[str, str]]:
        """Return what orders belong to: parent's client order id and role, by client order id."""
        with self._lock:
            rows = self._db.execute("SELECT client_order_id, parent, role FROM order_links ORDER BY rowid").fetchall()
        return {str(name): (str(parent), str(role)) for name, parent, role in rows}

    def unanswered(self) -> list[str]:
        """Return the client order ids of intents whose outcome is not known, oldest first."""
        return self._column(
            "SELECT client_order_id FROM intents WHERE client_order_id NOT IN "
            "(SELECT client_order_id FROM outcomes WHERE action IN ('submit', 'replace') AND outcome <> 'unknown') "
            "ORDER BY rowid"
        )

    def executions(self) -> list[str]:
        """Return the ids of all fills, oldest first."""
        return self._column("SELECT execution_id FROM fills ORDER BY rowid")

    # Risk

    def change_risk(self, command: RiskCommand, *, reason: str, who: str, at_ns: int) -> RiskRecord | None:
        """Change the risk state, durable; return the change, None when the command changes nothing.

        Several processes may do so at the same time: each finds the state that the one before it left.

        Args:
            command: what is to happen.
            reason: for people; of `flattened`: what was done.
            who: `limit:<name>`, operator or trader.
            at_ns: wall time.
        """
        return self._change_risk(
            [*self.requests.list(), RiskRequest(command=command, reason=reason, who=who, at_ns=at_ns)]
        )

    def take_requests(self) -> None:
        """Take what was asked for beside the journal while it could not be written; see `risk_requests`."""
        requests = self.requests.list()
        if requests:
            self._change_risk(requests)

    def _change_risk(self, requests: Sequence[RiskRequest]) -> RiskRecord | None:
        """Make changes in one transaction; return the last one, None when that one changes nothing."""
        changed = None
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for request in requests:
                changed = self._apply_request(request)
        self.requests.remove(request for request in requests if request.name)
        return changed

    def _apply_request(self, request: RiskRequest) -> RiskRecord | None:
        before = self._read_risk()
        state = next_state(before.state, request.command)
        if state is None:
            return None
        reason, who = request.reason, request.who
        if request.command is RiskCommand.FLATTENED:
            # The run still ends, or does not end, for the cause of the flattening.
            reason, who = f"{before.reason} ({reason})" if reason else before.reason, before.who
        self._db.execute(
            "INSERT INTO risk_transitions (state, reason, who, at_ns, token) VALUES (?, ?, ?, ?, ?)",
            (state.value, reason, who, request.at_ns, secrets.token_hex(4)),
        )
        if state is RiskState.ACTIVE:
            self._db.execute("DELETE FROM risk_marks")
        return self._read_risk()

    def risk(self) -> RiskRecord:
        """Return the last change of the risk state."""
        with self._lock:
            return self._read_risk()

    def risk_history(self) -> list[RiskRecord]:
        """Return all changes of the risk state, oldest first."""
        with self._lock:
            rows = self._db.execute(_RISK_HISTORY).fetchall()
        return [_parse_risk(row) for row in rows]

    def take_risk(self, record: RiskRecord, *, at_ns: int) -> None:
        """Write down that the trader acts by this change and all before it."""
        self._write("UPDATE risk_transitions SET taken_ns = ? WHERE id <= ? AND taken_ns IS NULL", [(at_ns, record.id)])

    def record_marks(self, marks: LossMarks) -> None:
        """Write down what losses are measured from."""
        self._write(
            "INSERT OR REPLACE INTO risk_marks VALUES (1, ?, ?, ?)",
            [(marks.day, f"{marks.day_equity:f}", f"{marks.peak:f}")],
        )

    def marks(self) -> LossMarks | None:
        """Return what losses are measured from, None before the first equity and after a release."""
        with self._lock:
            row = self._db.execute("SELECT day, day_equity, peak FROM risk_marks").fetchone()
        return None if row is None else LossMarks(day=row[0], day_equity=Decimal(row[1]), peak=Decimal(row[2]))

    def record_account(self, record: AccountRecord) -> None:
        """Write down whose account it is."""
        self._write(
            "INSERT OR REPLACE INTO account VALUES (1, ?, ?, ?, ?)",
            [(record.agent, record.account_id, record.url, record.mode)],
        )

    def account(self) -> AccountRecord | None:
        """Return whose account it is, None before the first run."""
        with self._lock:
            row = self._db.execute("SELECT agent, account_id, url, mode FROM account").fetchone()
        return None if row is None else AccountRecord(agent=row[0], account_id=row[1], url=row[2], mode=row[3])

    def _read_risk(self) -> RiskRecord:
        row = self._db.execute(_RISK_LAST).fetchone()
        return RiskRecord() if row is None else _parse_risk(row)

    def close(self) -> None:
        """Close the file. May be called twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._db.close()

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(statement, rows)

    def _column(self, query: str) -> list[str]:
        with self._lock:
            return [str(row[0]) for row in self._db.execute(query)]


def _parse_risk(row: Sequence[Any]) -> RiskRecord:
    return RiskRecord(
        id=row[0], state=RiskState(row[1]), reason=row[2], who=row[3], at_ns=row[4], token=row[5], taken_ns=row[6]
    )
