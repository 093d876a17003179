"""Documents of agents in SQLite, for local use: one file, several threads and processes."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.errors import AlreadyExistsError, ConflictError, UnavailableError
from deploy.ports import DEPLOYING, AgentDocument

_TIME_KEY = "$time"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS agents (
  agent_id TEXT PRIMARY KEY, version INTEGER NOT NULL, fields TEXT NOT NULL,
  user_id TEXT NOT NULL, deployment TEXT NOT NULL, unsettled INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS agents_by_user ON agents (user_id);
CREATE TABLE IF NOT EXISTS names (normalised TEXT PRIMARY KEY, agent_id TEXT NOT NULL) WITHOUT ROWID;
"""


class SqliteAgentStore:
    """An `AgentStore` in one SQLite file, which is made when it is not there."""

    def __init__(self, path: Path, *, timeout_s: float = 10.0) -> None:
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with _mapped(path):
            self._connection = sqlite3.connect(path, timeout=timeout_s, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_SCHEMA)
        self._path = path

    def read(self, agent_id: str) -> AgentDocument | None:
        """Return the document of an agent, or None."""
        rows = self._select("agent_id = ?", agent_id)
        return rows[0] if rows else None

    def create(self, agent_id: str, fields: Mapping[str, Any]) -> AgentDocument:
        """Write a document that is not there yet."""
        document = AgentDocument(agent_id=agent_id, version="1", fields=dict(fields))
        try:
            with self._transaction() as connection:
                connection.execute("INSERT INTO agents VALUES (?, 1, ?, ?, ?, ?)", (agent_id, *_columns(fields)))
        except sqlite3.IntegrityError:
            raise AlreadyExistsError(f"agent {agent_id!a} is there already") from None
        return document

    def update(self, document: AgentDocument, changes: Mapping[str, Any]) -> AgentDocument:
        """Replace the named top-level fields of the version that was seen."""
        fields = {**document.fields, **changes}
        version = int(document.version) + 1
        with self._transaction() as connection:
            done = connection.execute(
                "UPDATE agents SET version = ?, fields = ?, user_id = ?, deployment = ?, unsettled = ?"
                " WHERE agent_id = ? AND version = ?",
                (version, *_columns(fields), document.agent_id, int(document.version)),
            )
            if done.rowcount != 1:
                raise ConflictError(f"agent {document.agent_id!a} was changed meanwhile; call again")
        return AgentDocument(agent_id=document.agent_id, version=str(version), fields=fields)

    def claim_name(self, normalised: str, agent_id: str) -> str:
        """Give a normalised id to an agent, unless it has an owner; return the owner's agent id."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO names VALUES (?, ?)", (normalised, agent_id))
            row = connection.execute("SELECT agent_id FROM names WHERE normalised = ?", (normalised,)).fetchone()
            return str(row[0])

    def name_owner(self, normalised: str) -> str:
        """Return the agent id that holds a normalised id; empty when nobody does."""
        with self._lock, _mapped(self._path):
            row = self._connection.execute("SELECT agent_id FROM names WHERE normalised = ?", (normalised,)).fetchone()
        return "" if row is None else str(row[0])

    def list_user(self, user_id: str) -> list[AgentDocument]:
        """Return the agents of a user, by id."""
        return self._select("user_id = ? AND user_id <> ''", user_id)

    def list_unsettled(self) -> list[AgentDocument]:
        """Return the agents that are not settled, by id."""
        return self._select("unsettled = ?", 1)

    def list_deployment(self, deployment: str) -> list[AgentDocument]:
        """Return the agents with this Deployment, by id."""
        return self._select("deployment = ? AND deployment <> ''", deployment)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _select(self, condition: str, value: object) -> list[AgentDocument]:
        query = f"SELECT agent_id, version, fields FROM agents WHERE {condition} ORDER BY agent_id"  # noqa: S608
        with self._lock, _mapped(self._path):
            rows = self._connection.execute(query, (value,)).fetchall()
        return [
            AgentDocument(agent_id=row[0], version=str(row[1]), fields=json.loads(row[2], object_hook=_decode))
            for row in rows
        ]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _mapped(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


@contextmanager
def _mapped(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.Error as error:
        raise UnavailableError(f"{path}: the agents' file cannot be used: {error}") from error


def _columns(fields: Mapping[str, Any]) -> tuple[str, str, str, int]:
    user_id, deployment = fields.get("userId"), fields.get("kubernetesDeployment")
    unsettled = fields.get("status") == DEPLOYING or fields.get("unsettled") is True
    text = json.dumps(fields, default=_encode, ensure_ascii=False, allow_nan=False)
    return (
        text,
        user_id if isinstance(user_id, str) else "",
        deployment if isinstance(deployment, str) else "",
        int(unsettled),
    )


def _encode(value: object) -> dict[str, str]:
    if isinstance(value, dt.datetime):
        return {_TIME_KEY: value.astimezone(dt.UTC).isoformat()}
    raise TypeError(f"no field of a document: {value!r}")


def _decode(value: dict[str, Any]) -> Any:
    return dt.datetime.fromisoformat(value[_TIME_KEY]) if value.keys() == {_TIME_KEY} else value
