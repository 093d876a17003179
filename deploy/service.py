"""What can be done with an agent: create, upload, deploy, stop, restart, roll back, ask, list.

Every method begins with the owner: a call that is refused has written nothing. What takes long (build, rollout) is
followed later, by `follow`; each call first finishes what another one has left half-made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deploy.answers import Answer, describe, readable_id, taken, uploaded
from deploy.answers import answer as answer_call
from deploy.archive import check_archive, digest_of
from deploy.build_plan import BUILD_ID_MARK, build_plan
from deploy.checks import check_sources
from deploy.errors import (
    AlreadyExistsError,
    ConflictError,
    DeployError,
    InvalidRequestError,
    InvalidSourceError,
    NotFoundError,
    NotPermittedError,
    OutcomeUnknownError,
    PreconditionError,
    UnavailableError,
)
from deploy.follow import RESTART, Follower, deployed_before, noting
from deploy.ids import check_agent_id, deployment_name, normalise_agent_id
from deploy.ports import (
    DEPLOYED,
    DEPLOYING,
    STOPPED,
    AgentDocument,
    AgentStore,
    BuildService,
    Caller,
    Cluster,
    RenderManifest,
    SourceRecord,
    SourceStore,
)
from deploy.settings import DeploySettings

MAX_NAME_LENGTH = 100
MAX_LOG_LINES = 1_000
_DIGEST_LENGTH = 64
_ATTEMPTS = 5
_WAIT_S = 0.2
_WAITS = 25  # for the build id of another call

_log = logging.getLogger(__name__)


class DeployService:
    """The deploy service on its ports. Thread-safe, as its parts are.

    Args:
        now: the time, UTC.
        new_id: returns a new random text of letters and digits, at least 16 of them.
        sleep: waits for seconds; used while another call starts a build.
    """

    def __init__(
        self,
        settings: DeploySettings,
        *,
        agents: AgentStore,
        sources: SourceStore,
        builds: BuildService,
        cluster: Cluster,
        render: RenderManifest,
        now: Callable[[], dt.datetime],
        new_id: Callable[[], str],
        sleep: Callable[[float], None],
    ) -> None:
        self.settings = settings
        self._agents = agents
        self._sources = sources
        self._builds = builds
        self._cluster = cluster
        self._render = render
        self._now = now
        self._new_id = new_id
        self._sleep = sleep
        self._follower = Follower(settings, agents=agents, builds=builds, cluster=cluster, now=now)

    # What is written

    def create(self, caller: Caller, agent_id: str | None, name: str) -> Answer:
        """Make an agent of the caller's; one that is the caller's already, by the same name, is answered as it is."""
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME_LENGTH or not name.isprintable():
            raise InvalidRequestError(f"name: expected a text of 1 to {MAX_NAME_LENGTH} characters")
        if agent_id is None or agent_id == "":
            agent_id = f"{readable_id(name)}{self._new_id()[:8].lower()}"
        normalised = normalise_agent_id(agent_id)
        document = self._agents.read(agent_id)
        if document is None:
            self._refuse_collision(agent_id, normalised, AlreadyExistsError)
            fields = {"userId": caller.user_id, "name": name.strip(), "created": self._now()}
            if self._agents.claim_name(normalised, agent_id) != agent_id:
                raise AlreadyExistsError(taken(agent_id, normalised))
            try:
                document = self._agents.create(agent_id, fields)
            except AlreadyExistsError:
                document = self._agents.read(agent_id)
        if document is None or document.user_id != caller.user_id:
            raise AlreadyExistsError(f"the agent id {agent_id!a} is taken: choose another")
        if document.name != name.strip():
            raise AlreadyExistsError(f"you have an agent {agent_id!a} already, named {document.name!a}")
        return {**answer_call(document), "name": document.name}

    def offer_upload(self, caller: Caller, agent_id: str) -> Answer:
        """Return an address that takes the archive, once."""
        document = self._own(caller, agent_id)
        newest = self._sources.generation(caller.user_id, document.agent_id)
        signed = self._sources.sign_upload(caller.user_id, document.agent_id, expected_generation=newest)
        if signed is None:
            raise PreconditionError("no upload address can be signed here: send the zip as the body of the request")
        return {
            **answer_call(document),
            "uploadUrl": signed.url,
            "method": signed.method,
            "headers": dict(signed.headers),
            "expires": signed.expires,
        }

    def upload(self, caller: Caller, agent_id: str, archive: bytes) -> Answer:
        """Check an archive, store it, and return its digest. The same archive again changes nothing."""
        document = self._own(caller, agent_id)
        record, notes = self._examine(archive)
        for attempt in range(_ATTEMPTS):
            newest = self._sources.generation(caller.user_id, agent_id)
            known = _find_source(document, generation=newest)
            if known is not None and known.digest == record.digest:
                return uploaded(document, known, notes)
            try:
                generation = self._sources.write(caller.user_id, agent_id, archive, expected_generation=newest)
                break
            except ConflictError:
                if attempt == _ATTEMPTS - 1:
                    raise
        record = dataclasses.replace(record, generation=generation)
        return uploaded(self._register(document, record), record, notes)

    def accept_upload(self, caller: Caller, agent_id: str) -> Answer:
        """Check what was sent to an upload address, and return its digest."""
        document = self._own(caller, agent_id)
        document, record, notes = self._newest_source(document)
        return uploaded(document, record, notes)

    def deploy(self, caller: Caller, agent_id: str, source_digest: str | None = None) -> Answer:
        """Start a build of the newest upload, or of the source with this digest, and return at once.

        While a build runs, its id is returned and nothing is started.
        """
        if source_digest is not None and (
            not isinstance(source_digest, str) or len(source_digest) != _DIGEST_LENGTH or not source_digest.isalnum()
        ):
            raise InvalidRequestError("sourceDigest: expected the 64 hex digits that uploadAgentSource has answered")
        document = self._own(caller, agent_id)
        document, running = self._await_build(document, source_digest)
        if running is not None:
            return running
        self._refuse_unfunded(document)
        if source_digest is None:
            document, record, _ = self._newest_source(document)
        else:
            found = _find_source(document, digest=source_digest)
            if found is None:
                raise PreconditionError(f"no stored source has the digest {source_digest}: upload it")
            record = found
        return self._start(document, record, source_digest)

    def rollback(self, caller: Caller, agent_id: str) -> Answer:
        """Deploy the source that was deployed before; after a failed deployment, the last one that was deployed."""
        document, running = self._await_build(self._own(caller, agent_id))
        if running is not None:
            raise PreconditionError(f"the build {running['buildId']} is running: wait for it, or stop the agent")
        self._refuse_unfunded(document)
        for entry in reversed(deployed_before(document)):
            if entry.get("digest") != document.source_digest:
                record = SourceRecord(
                    digest=str(entry["digest"]),
                    generation=str(entry["generation"]),
                    size_bytes=0,
                    uploaded=self._now(),
                    agent=str(entry["agent"]),
                )
                return self._start(document, record, None)
        raise PreconditionError("no other source of this agent was deployed before: there is nothing to roll back to")

    def stop(self, caller: Caller, agent_id: str, *, delete_state: bool = False) -> Answer:
        """Cancel the build if one runs, and delete the Deployment; the volume stays unless `delete_state`."""
        if not isinstance(delete_state, bool):
            raise InvalidRequestError("deleteState: expected true or false")
        document = self._own(caller, agent_id)
        if not document.status:
            raise PreconditionError("the agent was never deployed")
        # What is wanted is written down first, so that whatever fails now is done by the next call.
        request = {"time": self._now(), "deleteState": delete_state, "id": self._new_id()}
        document = self._follower.change(document, lambda _: {"stopRequested": request, "unsettled": True})
        return answer_call(self._follower.finish_stop(document))

    def restart(self, caller: Caller, agent_id: str) -> Answer:
        """Start the agent anew from the image that it has; one that was stopped comes back."""
        document = self._follow_quietly(self._own(caller, agent_id))
        if document.status == DEPLOYING:
            raise PreconditionError(f"the agent is being deployed by the build {document.build_id}: wait for it")
        if document.fields.get("stopRequested"):
            raise PreconditionError("the agent is still being stopped: call again in a moment")
        history = deployed_before(document)
        if not history:
            raise PreconditionError("the agent was never deployed")
        self._refuse_unfunded(document)
        if document.status == DEPLOYED:
            with contextlib.suppress(NotFoundError):
                self._cluster.restart(document.normalised_id, at=self._now())
                return answer_call(document)
        last = history[-1]
        now = self._now()
        changes = {
            "status": DEPLOYING,
            "deploymentStarted": now,
            "deploymentCompleted": None,
            "rolloutStarted": now,
            "error": None,
            "buildId": str(last["buildId"]),
            "sourceDigest": str(last["digest"]),
            "sourceGeneration": str(last["generation"]),
            "sourceAgent": str(last["agent"]),
            "attempt": f"{RESTART}{self._new_id()}",
            "unsettled": True,
        }
        mine = self._agents.update(document, changes)
        try:
            self._cluster.apply(self._documents(document, mine.build_id))
        except OutcomeUnknownError:
            raise  # the next call looks at what the cluster has
        except Exception:
            self._restore(document, mine, changes)
            raise
        return answer_call(mine)

    # What is read

    def status(self, caller: Caller, agent_id: str) -> Answer:
        """Return how an agent stands: its document, its build while one runs, and its rollout."""
        document = self._own(caller, agent_id)
        unavailable: list[str] = []
        document = self._follow_quietly(document, unavailable)
        answer = describe(document)
        if document.status == DEPLOYING and document.build_id:
            with noting(unavailable):
                build = self._builds.status(document.build_id)
                answer["build"] = {"status": build.status, "step": build.step, "logUrl": build.log_url}
        if document.status:
            with noting(unavailable):
                rollout = self._cluster.rollout(document.normalised_id)
                answer["rollout"] = {
                    "phase": rollout.phase,
                    "image": rollout.image,
                    "ready": rollout.ready,
                    "restarts": rollout.restarts,
                    "reason": rollout.reason,
                }
        if unavailable:
            answer["unavailable"] = unavailable
        return answer

    def logs(
        self, caller: Caller, agent_id: str, *, since: dt.datetime | None = None, limit: int | None = None
    ) -> Answer:
        """Return the last lines that the agent wrote, and those of its build unless that went well."""
        lines = 200 if limit is None else limit
        if not isinstance(lines, int) or isinstance(lines, bool) or not 1 <= lines <= MAX_LOG_LINES:
            raise InvalidRequestError(f"limit {limit!a}: expected a whole number from 1 to {MAX_LOG_LINES}")
        document = self._follow_quietly(self._own(caller, agent_id))
        unavailable: list[str] = []
        answer: Answer = {**answer_call(document), "lines": [], "buildLines": []}
        with noting(unavailable):
            found = self._cluster.logs(document.normalised_id, since=since, limit=lines) if document.status else []
            answer["lines"] = [{"time": line.time, "text": line.text} for line in found]
        if document.build_id and document.status not in (DEPLOYED, STOPPED):
            with noting(unavailable):
                answer["buildLines"] = self._builds.log(document.build_id, limit=lines)
        if unavailable:
            answer["unavailable"] = unavailable
        return answer

    def list_agents(self, caller: Caller) -> Answer:
        """Return the caller's agents, by id."""
        return {"success": True, "agents": [describe(document) for document in self._agents.list_user(caller.user_id)]}

    def follow(self) -> list[str]:
        """Follow every agent that is not settled; return what could not be done, one sentence each."""
        return self._follower.follow_all()

    def close(self) -> None:
        """Let go of all connections."""
        for part in (self._agents, self._sources, self._builds, self._cluster):
            part.close()

    # Steps

    def _own(self, caller: Caller, agent_id: object) -> AgentDocument:
        """Return the caller's agent; for anybody else's and for none at all the error is the same."""
        document = self._agents.read(check_agent_id(agent_id))
        if document is None or not document.user_id or document.user_id != caller.user_id:
            raise NotPermittedError(f"there is no agent {agent_id!a} of yours")
        return document

    def _follow_quietly(self, document: AgentDocument, unavailable: list[str] | None = None) -> AgentDocument:
        """Follow, unless a part is down: then the document tells what is known."""
        try:
            return self._follower.follow(document)
        except (UnavailableError, ConflictError) as error:
            if unavailable is not None:
                unavailable.append(str(error))
            return document

    def _await_build(
        self, document: AgentDocument, source_digest: str | None = None
    ) -> tuple[AgentDocument, Answer | None]:
        """Return the document, and the answer of the build that runs, if one does. Waits while another call starts one.

        Raises:
            PreconditionError: when the build that runs is of another source than `source_digest`.
        """
        for _ in range(_WAITS):
            document = self._follow_quietly(document)
            if document.status != DEPLOYING or document.fields.get("stopRequested"):
                return document, None
            if source_digest is not None and source_digest != document.source_digest:
                raise PreconditionError(
                    f"another source is being deployed, by the build {document.build_id or '(being started)'}:"
                    " wait for it, or stop the agent"
                )
            if document.build_id:
                return document, answer_call(document)
            self._sleep(_WAIT_S)
            document = self._agents.read(document.agent_id) or document
        raise UnavailableError("another call is starting a build of this agent: call again in a moment")

    def _refuse_unfunded(self, document: AgentDocument) -> None:
        account = document.fields.get("alpacaAccount")
        if isinstance(account, Mapping) and "account_funding_status" in account:
            status = account["account_funding_status"]
            if status != "FUNDED":
                raise PreconditionError(f"the Alpaca account is {status!a}, not FUNDED: fund it, then deploy")

    def _refuse_collision(self, agent_id: str, normalised: str, error: type[DeployError]) -> None:
        owner = self._agents.name_owner(normalised)
        others = [found.agent_id for found in self._agents.list_deployment(deployment_name(normalised))]
        if owner not in ("", agent_id) or any(other != agent_id for other in others):
            raise error(taken(agent_id, normalised))

    def _newest_source(self, document: AgentDocument) -> tuple[AgentDocument, SourceRecord, tuple[str, ...]]:
        """Return the newest upload; one that did not come by the service is checked and taken up."""
        generation = self._sources.generation(document.user_id, document.agent_id)
        if not generation:
            raise PreconditionError("nothing was uploaded yet: send the agent's zip to uploadAgentSource")
        known = _find_source(document, generation=generation)
        if known is not None:
            return document, known, ()
        size = self._sources.size_bytes(document.user_id, document.agent_id, generation)
        if size > self.settings.max_archive_bytes:
            raise InvalidSourceError(
                [f"the archive has {size:,} bytes, allowed are {self.settings.max_archive_bytes:,}"]
            )
        record, notes = self._examine(self._sources.read(document.user_id, document.agent_id, generation))
        record = dataclasses.replace(record, generation=generation)
        return self._register(document, record), record, notes

    def _examine(self, archive: bytes) -> tuple[SourceRecord, tuple[str, ...]]:
        checked = check_archive(archive, max_bytes=self.settings.max_archive_bytes)
        summary = check_sources(checked)
        record = SourceRecord(
            digest=digest_of(archive),
            generation="",
            size_bytes=len(archive),
            uploaded=self._now(),
            agent=summary.agent,
            symbols=summary.symbols,
        )
        return record, summary.notes

    def _register(self, document: AgentDocument, record: SourceRecord) -> AgentDocument:
        def changes(current: AgentDocument) -> Mapping[str, Any]:
            kept = [known for known in current.sources if known.generation != record.generation]
            newest = [*kept, record][-self.settings.max_sources :]
            return {"sources": [known.to_fields() for known in newest]}

        return self._follower.change(document, changes)

    def _start(self, document: AgentDocument, record: SourceRecord, source_digest: str | None) -> Answer:
        """Write down that a build is to be started, start it, and write down its id."""
        normalised = document.normalised_id
        if document.status == DEPLOYING and not document.fields.get("stopRequested"):
            document, running = self._await_build(document, source_digest)  # another call was faster
            if running is not None:
                return running
        if document.status == DEPLOYED and document.source_digest == record.digest and self._is_running(document):
            raise PreconditionError(
                f"this source is deployed already, by the build {document.build_id}: upload another, or restart it"
            )
        with contextlib.suppress(UnavailableError):
            if not self._cluster.secret_exists(self.settings.secret_name):
                raise PreconditionError(
                    f"the namespace {self.settings.namespace} has no Secret {self.settings.secret_name}: make it with"
                    " the keys api-key, secret-key and account-id, then deploy"
                )
        self._refuse_collision(document.agent_id, normalised, PreconditionError)
        attempt = f"attempt-{self._new_id()}"
        image = self.settings.agent_image(normalised)
        documents, manifest = self._render(
            normalised=normalised, user_id=document.user_id, image=f"{image}:{BUILD_ID_MARK}"
        )
        plan = build_plan(
            self.settings,
            agent_id=document.agent_id,
            normalised=normalised,
            user_id=document.user_id,
            source=self._sources.address(document.user_id, document.agent_id, record.generation),
            digest=record.digest,
            agent=record.agent,
            documents=documents,
            manifest=manifest,
            tags=(f"agent-{normalised}", attempt),
        )
        self._sources.size_bytes(document.user_id, document.agent_id, record.generation)  # is still there
        if self._agents.claim_name(normalised, document.agent_id) != document.agent_id:
            raise PreconditionError(taken(document.agent_id, normalised))
        started = {
            "status": DEPLOYING,
            "deploymentStarted": self._now(),
            "deploymentCompleted": None,
            "kubernetesDeployment": deployment_name(normalised),
            "error": None,
            "buildId": None,
            "attempt": attempt,
            "sourceDigest": record.digest,
            "sourceGeneration": record.generation,
            "sourceAgent": record.agent,
            "stopRequested": None,
            "rolloutStarted": None,
            "unsettled": True,
        }
        try:
            mine = self._agents.update(document, started)
        except ConflictError:
            _, running = self._await_build(self._agents.read(document.agent_id) or document, source_digest)
            if running is None:
                raise
            return running
        try:
            build_id = self._builds.submit(plan)
        except OutcomeUnknownError:
            raise  # it may run: the next call finds it by its tag, or starts another
        except Exception:
            self._restore(document, mine, started)
            raise
        return answer_call(self._note_build(mine, build_id), build_id)

    def _note_build(self, document: AgentDocument, build_id: str) -> AgentDocument:
        """Write down the id of a build that was started; one that was stopped meanwhile is cancelled."""
        attempt = document.text("attempt")

        def changes(current: AgentDocument) -> Mapping[str, Any] | None:
            if current.text("attempt") != attempt:
                return None
            stop = current.fields.get("stopRequested")
            if current.status == STOPPED and not stop:
                stop = {"time": self._now(), "deleteState": False, "id": self._new_id()}
            return {"buildId": build_id, "stopRequested": stop, "unsettled": True}

        noted = self._follower.change(document, changes)
        if noted.build_id != build_id or noted.fields.get("stopRequested"):
            with noting([]):
                self._builds.cancel(build_id)
        return self._follow_quietly(noted) if noted.fields.get("stopRequested") else noted

    def _restore(self, before: AgentDocument, mine: AgentDocument, started: Mapping[str, Any]) -> None:
        """Put a document back as it was, since no build was started; what others wrote meanwhile stays."""
        earlier = {name: before.fields.get(name) for name in started}
        attempt = started["attempt"]
        try:
            self._follower.change(mine, lambda current: earlier if current.text("attempt") == attempt else None)
        except DeployError as error:
            _log.warning("agent %a: stays deploying until the next call: %s", before.agent_id, error)

    def _is_running(self, document: AgentDocument) -> bool:
        try:
            return self._cluster.rollout(document.normalised_id).phase != "missing"
        except UnavailableError:
            return True

    def _documents(self, document: AgentDocument, build_id: str) -> Sequence[Mapping[str, Any]]:
        image = f"{self.settings.agent_image(document.normalised_id)}:{build_id}"
        return self._render(normalised=document.normalised_id, user_id=document.user_id, image=image)[0]


def _find_source(document: AgentDocument, *, digest: str = "", generation: str = "") -> SourceRecord | None:
    for record in reversed(document.sources):
        if (digest and record.digest == digest) or (generation and record.generation == generation):
            return record
    return None
