"""The orders journal: what is about to be asked of the venue, and what came of it. Thread-safe.

SQLite in WAL mode with full synchronisation: when a call returns, what it wrote survives `kill -9` and a power cut. An
order's intent stands here before its request leaves, so that after a crash it is known which orders may exist.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from dry_work.errors import ConfigError
from dry_work.orders.books import Fill
from dry_work.orders.client_ids import check_names
from dry_work.orders.model import OrderRequest

APPLICATION_ID = 0x44574F4A  # "DWOJ", stands in the file's header
SCHEMA_VERSION = 1

_BUSY_TIMEOUT_S = 5.0
_SCHEMA = """
CREATE TABLE session (
    agent TEXT NOT NULL,
    session TEXT NOT NULL,
    started_ns INTEGER NOT NULL,       -- venue time
    PRIMARY KEY (agent, session)
);
CREATE TABLE intents (
    client_order_id TEXT PRIMARY KEY,
    agent TEXT NOT NULL,
    session TEXT NOT NULL,
    number INTEGER NOT NULL,
    symbol TEXT NOT NULL,
    side TEXT NOT NULL,
    type TEXT NOT NULL,
    time_in_force TEXT NOT NULL,
    qty TEXT,
    limit_price TEXT,
    stop_price TEXT,
    intended_ns INTEGER NOT NULL
);
CREATE TABLE outcomes (
    id INTEGER PRIMARY KEY,
    client_order_id TEXT NOT NULL,
    action TEXT NOT NULL,              -- submit, cancel
    outcome TEXT NOT NULL,             -- accepted, refused, unknown
    order_id TEXT,
    code INTEGER,
    message TEXT,
    at_ns INTEGER NOT NULL
);
CREATE TABLE fills (
    execution_id TEXT PRIMARY KEY,
    client_order_id TEXT NOT NULL,
    symbol TEXT NOT NULL,
    side TEXT NOT NULL,
    qty TEXT NOT NULL,
    price TEXT NOT NULL,
    ts_event_ns INTEGER NOT NULL
);
"""


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

    def _open(self) -> None:
        db = self._db
        version = db.execute("PRAGMA user_version").fetchone()[0]
        application = db.execute("PRAGMA application_id").fetchone()[0]
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        is_new = version == 0 and application == 0 and tables == 0
        if not is_new and application != APPLICATION_ID:
            raise ConfigError(f"{self.path}: is a database of another program, not an orders journal of Dry Work")
        if not is_new and version != SCHEMA_VERSION:
            raise ConfigError(f"{self.path}: orders journal of version {version}, this program reads {SCHEMA_VERSION}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        if is_new:
            # One transaction, so that a crash leaves an empty file or a whole journal.
            db.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA application_id = {APPLICATION_ID}; "
                f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        else:
            found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise ConfigError(f"{self.path}: the orders journal is damaged: {found}; move it away to start anew")

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
                "SELECT coalesce(max(number), 0) FROM intents WHERE agent = ? AND session = ?", (agent, session)
            ).fetchone()[0]
        return JournalSession(str(session), int(began), int(last))

    def record_intent(self, request: OrderRequest, *, agent: str, session: str, number: int, at_ns: int) -> None:
        """Write down an order that is about to be sent; returns when that is durable.

        Raises:
            sqlite3.IntegrityError: when the client order id was used before.
        """
        values = (
            request.client_order_id,
            agent,
            session,
            number,
            request.symbol,
            request.side.value,
            request.type.value,
            request.time_in_force.value,
            *(
                None if value is None else f"{value:f}"
                for value in (request.qty, request.limit_price, request.stop_price)
            ),
            at_ns,
        )
        self._write("INSERT INTO intents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", [values])

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
        """Write down what came of a request."""
        self._write(
            "INSERT INTO outcomes (client_order_id, action, outcome, order_id, code, message, at_ns) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(client_order_id, action, outcome, order_id, code, message, at_ns)],
        )

    def record_fills(self, fills: Iterable[Fill]) -> None:
        """Write down fills; one that is there already is left out."""
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
        self._write("INSERT OR IGNORE INTO fills VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def intents(self) -> list[str]:
        """Return the client order ids of all intents, oldest first."""
        return self._column("SELECT client_order_id FROM intents ORDER BY rowid")

    def unanswered(self) -> list[str]:
        """Return the client order ids of intents whose outcome is not known, oldest first."""
        return self._column(
            "SELECT client_order_id FROM intents WHERE client_order_id NOT IN "
            "(SELECT client_order_id FROM outcomes WHERE action = 'submit' AND outcome <> 'unknown') ORDER BY rowid"
        )

    def executions(self) -> list[str]:
        """Return the ids of all fills, oldest first."""
        return self._column("SELECT execution_id FROM fills ORDER BY rowid")

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
