"""What the service needs from outside, as narrow protocols, and the values that cross them. Pure.

Each call has a time-out of its own. A part that is down or slow raises `UnavailableError`; when the request may have
been carried out all the same, `OutcomeUnknownError`. `close` is idempotent. Implementations are thread-safe.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from deploy.build_plan import BuildPlan
from deploy.ids import normalise_agent_id

DEPLOYING = "deploying"
DEPLOYED = "deployed"
DEPLOYMENT_FAILED = "deployment_failed"
STOPPED = "stopped"

BuildStatus = Literal["queued", "working", "success", "failure", "cancelled", "timeout"]
RolloutPhase = Literal["missing", "progressing", "complete", "failed"]


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who calls, by a verified token."""

    user_id: str
    email: str = ""


@dataclass(frozen=True, kw_only=True)
class AgentDocument:
    """One agent as it is stored. `fields` holds everything, also what other programs wrote.

    `version` changes with every write; an update names the version that it has seen.
    """

    agent_id: str
    version: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """Return a field that holds a text; empty when it is absent or something else."""
        value = self.fields.get(name)
        return value if isinstance(value, str) else ""

    @property
    def user_id(self) -> str:
        """The owner; empty for a document without one, which is nobody's."""
        return self.text("userId")

    @property
    def name(self) -> str:
        """What people call it; the id when it has no name."""
        return self.text("name") or self.agent_id

    @property
    def status(self) -> str:
        """One of deploying, deployed, deployment_failed, stopped; empty before the first deployment."""
        return self.text("status")

    @property
    def build_id(self) -> str:
        """The newest build; empty before the first."""
        return self.text("buildId")

    @property
    def error(self) -> str:
        """Why the newest deployment failed; empty when it did not."""
        return self.text("error")

    @property
    def source_digest(self) -> str:
        """The source of the newest build; empty before the first."""
        return self.text("sourceDigest")

    @property
    def normalised_id(self) -> str:
        """The id in Kubernetes names."""
        return normalise_agent_id(self.agent_id)

    @property
    def sources(self) -> tuple[SourceRecord, ...]:
        """The sources that were uploaded and found good, oldest first."""
        return tuple(SourceRecord.from_fields(entry) for entry in self.fields.get("sources") or ())


class AgentStore(Protocol):
    """Documents of agents, with preconditions."""

    def read(self, agent_id: str) -> AgentDocument | None:
        """Return the document of an agent, or None."""

    def create(self, agent_id: str, fields: Mapping[str, Any]) -> AgentDocument:
        """Write a document that is not there yet.

        Raises:
            AlreadyExistsError: when it is there.
        """

    def update(self, document: AgentDocument, changes: Mapping[str, Any]) -> AgentDocument:
        """Replace the named top-level fields, and leave the others as they are; None stays a value.

        Raises:
            ConflictError: when the stored version is another than `document.version`, or the document is gone.
        """

    def claim_name(self, normalised: str, agent_id: str) -> str:
        """Give a normalised id to an agent, unless it has an owner; return the owner's agent id. One transaction."""

    def name_owner(self, normalised: str) -> str:
        """Return the agent id that holds a normalised id; empty when nobody does. Writes nothing."""

    def list_user(self, user_id: str) -> list[AgentDocument]:
        """Return the agents of a user, by id."""

    def list_unsettled(self) -> list[AgentDocument]:
        """Return the agents whose `unsettled` field is true or whose status is deploying, by id."""

    def list_deployment(self, deployment: str) -> list[AgentDocument]:
        """Return the agents whose `kubernetesDeployment` is this name, by id: also those without a claim."""

    def close(self) -> None:
        """Let go of connections."""


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """One archive that was found good."""

    digest: str  # sha256 of its bytes, 64 hex digits
    generation: str  # which version of the stored object it is
    size_bytes: int
    uploaded: dt.datetime  # UTC
    agent: str = ""  # what dry-work.toml names, `agent/agent.py:Agent` by default
    symbols: tuple[str, ...] = ()

    def to_fields(self) -> dict[str, Any]:
        """Return it as plain values for a document."""
        return {
            "digest": self.digest,
            "generation": self.generation,
            "sizeBytes": self.size_bytes,
            "uploaded": self.uploaded,
            "agent": self.agent,
            "symbols": list(self.symbols),
        }

    @classmethod
    def from_fields(cls, entry: Mapping[str, Any]) -> SourceRecord:
        """Return the record that `to_fields` wrote."""
        return cls(
            digest=str(entry.get("digest", "")),
            generation=str(entry.get("generation", "")),
            size_bytes=int(entry.get("sizeBytes", 0)),
            uploaded=entry["uploaded"],
            agent=str(entry.get("agent", "")),
            symbols=tuple(str(symbol) for symbol in entry.get("symbols") or ()),
        )


@dataclass(frozen=True, kw_only=True)
class SignedUpload:
    """Where and how a client may send one archive."""

    url: str
    method: str
    headers: Mapping[str, str]  # to be sent with it, exactly
    expires: dt.datetime  # UTC


class SourceStore(Protocol):
    """Archives at `<userId>/<agentId>/agent-source.zip`; older ones are older generations of the same object."""

    def generation(self, user_id: str, agent_id: str) -> str:
        """Return the generation of the newest archive; empty when there is none."""

    def size_bytes(self, user_id: str, agent_id: str, generation: str) -> int:
        """Return the length of an archive.

        Raises:
            NotFoundError: when it is not there.
        """

    def read(self, user_id: str, agent_id: str, generation: str) -> bytes:
        """Return an archive.

        Raises:
            NotFoundError: when it is not there (any more).
        """

    def write(self, user_id: str, agent_id: str, archive: bytes, *, expected_generation: str) -> str:
        """Store an archive and return its generation.

        Args:
            expected_generation: of the newest archive before; empty when there must be none.

        Raises:
            ConflictError: when the newest archive is another.
        """

    def address(self, user_id: str, agent_id: str, generation: str) -> str:
        """Return where a build finds an archive: `gs://bucket/user/agent/agent-source.zip#generation`, or a path."""

    def sign_upload(self, user_id: str, agent_id: str, *, expected_generation: str) -> SignedUpload | None:
        """Return an address that takes one archive for a few minutes; None where archives come by the service only."""

    def close(self) -> None:
        """Let go of connections."""


@dataclass(frozen=True, kw_only=True)
class BuildRecord:
    """How a build stands."""

    build_id: str
    status: BuildStatus
    tags: tuple[str, ...] = ()
    step: str = ""  # id of the step that runs, or that failed
    reason: str = ""  # why it failed, with the last words of the log where there are any
    log_url: str = ""
    finished: dt.datetime | None = None  # UTC

    @property
    def is_done(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status not in ("queued", "working")


class BuildService(Protocol):
    """Runs build plans: Cloud Build, or processes here."""

    def submit(self, plan: BuildPlan) -> str:
        """Start a build and return its id at once.

        Raises:
            OutcomeUnknownError: when it may have been started.
        """

    def status(self, build_id: str) -> BuildRecord:
        """Return how a build stands.

        Raises:
            NotFoundError: when there is no such build.
        """

    def find(self, tag: str) -> BuildRecord | None:
        """Return the newest build with this tag, or None."""

    def cancel(self, build_id: str) -> None:
        """Ask a build to end. A build that has ended or is unknown is left alone."""

    def log(self, build_id: str, *, limit: int) -> list[str]:
        """Return the last lines of a build's log, oldest first; none when there are none to be had."""

    def close(self) -> None:
        """Let go of connections; running builds go on."""


@dataclass(frozen=True, kw_only=True)
class RolloutState:
    """How an agent's Deployment stands in the cluster."""

    phase: RolloutPhase
    image: str = ""  # the one that the Deployment asks for
    reason: str = ""  # why it does not get on, as a sentence a person can act on
    restarts: int = 0
    ready: bool = False


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One line that an agent wrote."""

    time: dt.datetime | None  # UTC
    text: str


class Cluster(Protocol):
    """Where agents run: Kubernetes, or processes here. Agents are named by their normalised id."""

    def apply(self, documents: Sequence[Mapping[str, Any]]) -> None:
        """Create or change what the manifests describe."""

    def rollout(self, normalised: str) -> RolloutState:
        """Return how an agent's Deployment stands."""

    def delete(self, normalised: str, *, delete_state: bool = False) -> bool:
        """Delete the Deployment, and the volume claim with `delete_state`; tell whether there was a Deployment."""

    def restart(self, normalised: str, *, at: dt.datetime) -> None:
        """Start an agent's process anew.

        Raises:
            NotFoundError: when it has no Deployment.
        """

    def logs(self, normalised: str, *, since: dt.datetime | None = None, limit: int = 200) -> list[LogLine]:
        """Return the last lines that an agent wrote, oldest first; none when it does not run."""

    def secret_exists(self, name: str) -> bool:
        """Tell whether the namespace has a Secret of this name."""

    def close(self) -> None:
        """Let go of connections; agents go on."""


class TokenVerifier(Protocol):
    """Tells who calls."""

    def verify(self, token: str) -> Caller:
        """Return the caller whom a bearer token stands for.

        Raises:
            UnauthenticatedError: when it does not hold; the text never repeats the token.
        """


class RenderManifest(Protocol):
    """Makes the Kubernetes objects of an agent."""

    def __call__(self, *, normalised: str, user_id: str, image: str) -> tuple[Sequence[Mapping[str, Any]], str]:
        """Return the objects, and the same as YAML."""
