"""Documents of agents in Firestore: `agents/{agentId}`, and `agentNames/{normalised id}` for who holds a name."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from google.api_core import exceptions as api
from google.api_core.datetime_helpers import DatetimeWithNanoseconds
from google.api_core.retry import Retry
from google.cloud import firestore
from google.cloud.firestore_v1.base_query import FieldFilter

from deploy.errors import AlreadyExistsError, ConflictError
from deploy.google_errors import mapped
from deploy.ports import DEPLOYING, AgentDocument

_PART = "Firestore"


class FirestoreAgentStore:
    """An `AgentStore` in Firestore. `FIRESTORE_EMULATOR_HOST` points Google's client to an emulator."""

    def __init__(
        self,
        project: str,
        *,
        collection: str = "agents",
        database: str = "(default)",
        timeout_s: float = 10.0,
        client: firestore.Client | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        with mapped(_PART):
            self._client = client or firestore.Client(project=project, database=database)
        self._agents = self._client.collection(collection)
        self._names = self._client.collection(f"{collection.removesuffix('s')}Names")

    def read(self, agent_id: str) -> AgentDocument | None:
        """Return the document of an agent, or None."""
        with mapped(_PART):
            snapshot = self._agents.document(agent_id).get(**self._patience())
        return _document(snapshot) if snapshot.exists else None

    def create(self, agent_id: str, fields: Mapping[str, Any]) -> AgentDocument:
        """Write a document that is not there yet."""
        try:
            with mapped(_PART, writes=True, versions=True):
                written = self._agents.document(agent_id).create(dict(fields), **self._patience(writes=True))
        except AlreadyExistsError:
            raise AlreadyExistsError(f"agent {agent_id!a} is there already") from None
        return AgentDocument(agent_id=agent_id, version=written.update_time.rfc3339(), fields=dict(fields))

    def update(self, document: AgentDocument, changes: Mapping[str, Any]) -> AgentDocument:
        """Replace the named top-level fields of the version that was seen."""
        seen = DatetimeWithNanoseconds.from_rfc3339(document.version).timestamp_pb()
        option = self._client.write_option(last_update_time=seen)
        try:
            with mapped(_PART, writes=True, versions=True):
                written = self._agents.document(document.agent_id).update(
                    dict(changes), option=option, **self._patience(writes=True)
                )
        except ConflictError:
            raise
        except Exception as error:
            if isinstance(error.__cause__, api.NotFound):
                raise ConflictError(f"agent {document.agent_id!a} was deleted meanwhile") from error
            raise
        fields = {**document.fields, **changes}
        # A write that changes nothing keeps the time of the one before.
        return AgentDocument(agent_id=document.agent_id, version=written.update_time.rfc3339(), fields=fields)

    def claim_name(self, normalised: str, agent_id: str) -> str:
        """Give a normalised id to an agent, unless it has an owner; return the owner's agent id."""
        try:
            with mapped(_PART, writes=True, versions=True):
                self._names.document(normalised).create({"agentId": agent_id}, **self._patience(writes=True))
        except AlreadyExistsError:
            return self.name_owner(normalised)
        return agent_id

    def name_owner(self, normalised: str) -> str:
        """Return the agent id that holds a normalised id; empty when nobody does."""
        with mapped(_PART):
            snapshot = self._names.document(normalised).get(**self._patience())
        return str(snapshot.get("agentId")) if snapshot.exists else ""

    def list_user(self, user_id: str) -> list[AgentDocument]:
        """Return the agents of a user, by id."""
        return self._list("userId", user_id)

    def list_unsettled(self) -> list[AgentDocument]:
        """Return the agents that are not settled, by id."""
        found = {document.agent_id: document for document in self._list("status", DEPLOYING)}
        found |= {document.agent_id: document for document in self._list("unsettled", True)}
        return [found[agent_id] for agent_id in sorted(found)]

    def list_deployment(self, deployment: str) -> list[AgentDocument]:
        """Return the agents with this Deployment, by id."""
        return self._list("kubernetesDeployment", deployment)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _list(self, field: str, value: object) -> list[AgentDocument]:
        query = self._agents.where(filter=FieldFilter(field, "==", value))
        with mapped(_PART):
            found = [_document(snapshot) for snapshot in query.stream(**self._patience())]
        return sorted(found, key=lambda document: document.agent_id)

    def _patience(self, *, writes: bool = False) -> dict[str, Any]:
        """Return how long a call may take. A write is sent once: a second one would not find what it expects."""
        if writes:
            return {"retry": None, "timeout": self._timeout_s}
        retry = Retry(predicate=_is_transient, initial=0.1, maximum=1.0, timeout=self._timeout_s)
        return {"retry": retry, "timeout": self._timeout_s}


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, api.ServiceUnavailable | api.InternalServerError | api.DeadlineExceeded)


def _document(snapshot: Any) -> AgentDocument:
    fields = {name: _plain(value) for name, value in (snapshot.to_dict() or {}).items()}
    return AgentDocument(agent_id=snapshot.id, version=snapshot.update_time.rfc3339(), fields=fields)


def _plain(value: Any) -> Any:
    """Return a value with ordinary times: Firestore's own subclass keeps nanoseconds that nobody writes."""
    if isinstance(value, DatetimeWithNanoseconds):
        return dt.datetime.fromtimestamp(value.timestamp(), dt.UTC) if value.tzinfo is None else _utc(value)
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def _utc(value: dt.datetime) -> dt.datetime:
    utc = value.astimezone(dt.UTC)
    return dt.datetime(utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second, utc.microsecond, dt.UTC)
