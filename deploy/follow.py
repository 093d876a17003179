"""Carries an agent's document from deploying to deployed or deployment_failed, and repairs what was left half-made.

Called whenever somebody asks, and from time to time: by a thread on the local target, by a scheduled function or one
that Cloud Build's messages trigger in the cloud. Each step is written under the version that was read, so that any
number of callers may follow one agent at once.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from deploy.errors import ConflictError, DeployError, NotFoundError, UnavailableError
from deploy.ids import deployment_name
from deploy.ports import (
    DEPLOYED,
    DEPLOYING,
    DEPLOYMENT_FAILED,
    STOPPED,
    AgentDocument,
    AgentStore,
    BuildRecord,
    BuildService,
    Cluster,
)
from deploy.settings import DeploySettings

# A build that is submitted has its id in the document within this time, or the submission was interrupted.
SUBMIT_GRACE_S = 60.0
# How long after a good build the cluster may know nothing of the Deployment.
_MISSING_GRACE_S = 60.0
# Attempts without a build of their own begin with it.
RESTART = "restart-"
_ATTEMPTS = 5
_MAX_ERROR_LENGTH = 2_000

_log = logging.getLogger(__name__)

Changes = Callable[[AgentDocument], Mapping[str, Any] | None]


class Follower:
    """Follows builds and rollouts. Thread-safe, as its parts are.

    Args:
        now: the time, UTC.
    """

    def __init__(
        self,
        settings: DeploySettings,
        *,
        agents: AgentStore,
        builds: BuildService,
        cluster: Cluster,
        now: Callable[[], dt.datetime],
    ) -> None:
        self._settings = settings
        self._agents = agents
        self._builds = builds
        self._cluster = cluster
        self._now = now

    def follow(self, document: AgentDocument) -> AgentDocument:
        """Look at build, rollout or stop of one agent, write what has come of it, and return the document.

        Raises:
            UnavailableError: when a part that is to be asked is down; the document stays as it is then.
        """
        if document.fields.get("stopRequested"):
            return self.finish_stop(document)
        if document.status != DEPLOYING:
            return document
        if not document.build_id:
            return self._adopt(document)
        if document.text("attempt").startswith(RESTART):
            return self._follow_rollout(document, None)
        try:
            record = self._builds.status(document.build_id)
        except NotFoundError:
            return self._fail(document, f"the build {document.build_id} is not known any more: deploy again")
        if not record.is_done:
            return document
        if record.status != "success":
            return self._fail(document, self._explain_build(document, record))
        return self._follow_rollout(document, record.finished)

    def follow_all(self) -> list[str]:
        """Follow every agent that is not settled, and return what could not be done, one sentence each."""
        problems: list[str] = []
        for document in self._agents.list_unsettled():
            try:
                self.follow(document)
            except DeployError as error:
                _log.warning("agent %a: %s", document.agent_id, error)
                problems.append(f"{document.agent_id!a}: {error}")
        return problems

    def change(self, document: AgentDocument, changes: Changes) -> AgentDocument:
        """Write what `changes` says of the newest version of a document; None of it: nothing is to be written.

        Raises:
            ConflictError: when others wrote in between, again and again.
        """
        for attempt in range(_ATTEMPTS):
            wanted = changes(document)
            if wanted is None:
                return document
            try:
                return self._agents.update(document, wanted)
            except ConflictError:
                newest = self._agents.read(document.agent_id)
                if newest is None or attempt == _ATTEMPTS - 1:
                    raise
                document = newest
        return document

    def finish_stop(self, document: AgentDocument) -> AgentDocument:
        """Do what a stop still needs: the build cancelled, the Deployment deleted, the status written."""
        request = document.fields.get("stopRequested")
        if not isinstance(request, Mapping):
            return document
        done = False
        with contextlib.suppress(DeployError):  # whatever the builds say, the Deployment goes
            done = self._cancel_build(document)
        self._cluster.delete(document.normalised_id, delete_state=bool(request.get("deleteState")))

        def changes(current: AgentDocument) -> Mapping[str, Any] | None:
            if current.fields.get("stopRequested") != request:
                return None  # deployed again, or stopped anew
            wanted: dict[str, Any] = {"status": STOPPED, "error": None}
            if current.status != STOPPED:
                wanted["deploymentCompleted"] = self._now()
            if done:
                # A build that is still ending may bring the Deployment back: then it is deleted once more.
                wanted |= {"stopRequested": None, "unsettled": False}
            return wanted

        return self.change(document, changes)

    def _cancel_build(self, document: AgentDocument) -> bool:
        """Cancel the newest build, and tell whether none runs any more."""
        build_id = document.build_id
        if not build_id:
            found = self._builds.find(document.text("attempt")) if document.text("attempt") else None
            if found is None:
                return True
            build_id = found.build_id
        try:
            if self._builds.status(build_id).is_done:
                return True
            self._builds.cancel(build_id)
            return self._builds.status(build_id).is_done
        except NotFoundError:
            return True

    def _adopt(self, document: AgentDocument) -> AgentDocument:
        """Find the build whose id was not written down; without one, the deployment was interrupted."""
        attempt = document.text("attempt")
        found = self._builds.find(attempt) if attempt else None
        if found is not None:
            adopted = self.change(document, _same_attempt(document, {"buildId": found.build_id}))
            return self.follow(adopted) if adopted.build_id else adopted
        if self._age_s(document.fields.get("deploymentStarted")) < SUBMIT_GRACE_S:
            return document
        return self._fail(document, "the build was never started: deploy again")

    def _follow_rollout(self, document: AgentDocument, built: dt.datetime | None) -> AgentDocument:
        state = self._cluster.rollout(document.normalised_id)
        waited_s = self._age_s(document.fields.get("rolloutStarted") or built)
        is_ours = state.image.rpartition(":")[2] == document.build_id
        if state.phase == "complete" and is_ours:
            return self._succeed(document)
        if state.phase == "failed" and is_ours:
            return self._fail(document, state.reason or "the agent does not become ready")
        if state.phase == "missing" and waited_s > _MISSING_GRACE_S:
            return self._fail(
                document, f"{deployment_name(document.normalised_id)} is not in the cluster: deploy again"
            )
        if waited_s > self._settings.rollout_timeout_s:
            reason = state.reason or "see its logs"
            if state.phase != "missing" and not is_ours:
                reason = f"the cluster runs {state.image}, of another build"
            return self._fail(
                document, f"the agent was not ready within {self._settings.rollout_timeout_s} s: {reason}"
            )
        return document

    def _succeed(self, document: AgentDocument) -> AgentDocument:
        now = self._now()

        def changes(current: AgentDocument) -> dict[str, Any]:
            entry = {
                "digest": current.source_digest,
                "generation": current.text("sourceGeneration"),
                "agent": current.text("sourceAgent"),
                "buildId": current.build_id,
                "time": now,
            }
            history = [*deployed_before(current), entry]
            return {
                "status": DEPLOYED,
                "deploymentCompleted": now,
                "error": None,
                "unsettled": False,
                "rolloutStarted": None,
                "deployedSources": history[-self._settings.max_sources :],
            }

        return self.change(document, lambda current: _if_same(document, current, changes))

    def _fail(self, document: AgentDocument, reason: str) -> AgentDocument:
        changes = {
            "status": DEPLOYMENT_FAILED,
            "deploymentCompleted": self._now(),
            "error": reason[:_MAX_ERROR_LENGTH],
            "unsettled": False,
            "rolloutStarted": None,
        }
        return self.change(document, _same_attempt(document, changes))

    def _explain_build(self, document: AgentDocument, record: BuildRecord) -> str:
        reason = record.reason or f"the build ended as {record.status}"
        if record.step == "deploy-to-gke" or not deployed_before(document):
            return reason
        try:
            phase = self._cluster.rollout(document.normalised_id).phase
        except UnavailableError:
            return reason
        return f"{reason}; what was deployed before still runs" if phase == "complete" else reason

    def _age_s(self, since: object) -> float:
        """Return the seconds since a time; many when there is none."""
        return (self._now() - since).total_seconds() if isinstance(since, dt.datetime) else float("inf")


@contextlib.contextmanager
def noting(unavailable: list[str]) -> Iterator[None]:
    """Add what is down to a list, and go on after the block."""
    try:
        yield
    except (UnavailableError, ConflictError) as error:
        unavailable.append(str(error))


def deployed_before(document: AgentDocument) -> list[dict[str, Any]]:
    """Return the sources that were deployed, oldest first: digest, generation, agent, buildId, time."""
    found = document.fields.get("deployedSources")
    return [dict(entry) for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []


def _same_attempt(document: AgentDocument, wanted: Mapping[str, Any]) -> Changes:
    return lambda current: _if_same(document, current, lambda _: wanted)


def _if_same(
    document: AgentDocument, current: AgentDocument, changes: Callable[[AgentDocument], Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """Return the changes unless the agent has meanwhile settled, been stopped or been deployed anew."""
    same = (
        current.status == document.status
        and current.text("attempt") == document.text("attempt")
        and current.fields.get("stopRequested") == document.fields.get("stopRequested")
    )
    return changes(current) if same else None
