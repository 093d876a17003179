"""How a Deployment gets on, from what Kubernetes tells of it and of its pods. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.ports import RolloutPhase, RolloutState

_CRASHES = 2  # restarts after which an agent that is not ready counts as failed
_BAD_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ImageInspectError", "ErrImageNeverPull")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A state, and the pod whose last words explain it."""

    result: RolloutState
    crashed_pod: str = ""


def judge_rollout(deployment: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> Judgement:
    """Return how a Deployment stands.

    Args:
        deployment: as the API answers it.
        pods: those of the agent, also of an earlier image; these do not count.
    """
    spec, status = deployment.get("spec") or {}, deployment.get("status") or {}
    image = _image(spec.get("template") or {})
    mine = [pod for pod in pods if _image(pod) == image and not pod.get("metadata", {}).get("deletionTimestamp")]
    restarts = max((_restarts(pod) for pod in mine), default=0)
    ready = any(_is_ready(pod) for pod in mine)

    def judged(phase: RolloutPhase, reason: str = "", crashed_pod: str = "") -> Judgement:
        state = RolloutState(phase=phase, image=image, reason=reason, restarts=restarts, ready=ready)
        return Judgement(result=state, crashed_pod=crashed_pod)

    observed = int(status.get("observedGeneration") or 0)
    if observed < int(deployment.get("metadata", {}).get("generation") or 0):
        return judged("progressing", "the cluster has not looked at it yet")
    wanted = int(spec.get("replicas", 1))
    if (
        int(status.get("updatedReplicas") or 0) >= wanted
        and int(status.get("availableReplicas") or 0) >= wanted
        and int(status.get("replicas") or 0) <= wanted
        and not status.get("unavailableReplicas")
    ):
        return judged("complete")
    for condition in status.get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return judged("failed", _explain_refusal(str(condition.get("message", ""))))
    for pod in mine:
        found = _explain_pod(pod)
        if found is not None:
            phase, reason, crashed = found
            return judged(phase, reason, str(pod["metadata"]["name"]) if crashed else "")
    for condition in status.get("conditions") or ():
        if condition.get("reason") == "ProgressDeadlineExceeded":
            return judged("failed", "the agent did not become ready in time: its readiness probe does not succeed")
    return judged("progressing", "the pod is starting" if mine else "there is no pod yet")


def _explain_pod(pod: Mapping[str, Any]) -> tuple[RolloutPhase, str, bool] | None:
    """Return phase, reason, and whether its last words are wanted; None when there is nothing to tell of a pod."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return "progressing", f"no node has room for the agent: {_line(condition.get('message'))}", False
    for container in (status.get("initContainerStatuses") or []) + (status.get("containerStatuses") or []):
        state = container.get("state") or {}
        waiting = state.get("waiting") or {}
        reason, said = str(waiting.get("reason", "")), _line(waiting.get("message"))
        image = str(container.get("image") or _image(pod))
        if reason in _BAD_IMAGE:
            return "failed", f"the image {image} cannot be pulled: {said or reason}", False
        if reason == "CreateContainerConfigError":
            return "failed", f"{_explain_config(said)}", False
        if reason in ("CreateContainerError", "RunContainerError"):
            return "failed", f"the container cannot be started: {said or reason}", False
        ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
        restarts = int(container.get("restartCount") or 0)
        if ended and not container.get("ready"):
            # One crash may be an accident of the start; the next ones are the agent's.
            phase: RolloutPhase = "failed" if reason == "CrashLoopBackOff" or restarts >= _CRASHES else "progressing"
            return phase, _explain_end(ended, restarts), True
    return None


def _explain_end(ended: Mapping[str, Any], restarts: int) -> str:
    times = f"{restarts} times" if restarts > 1 else "once"
    if ended.get("reason") == "OOMKilled":
        return f"the agent needs more memory than its limit and was killed {times}"
    return f"the agent ended {times} with exit code {ended.get('exitCode', 'unknown')}"


def _explain_config(said: str) -> str:
    if "secret" in said and "not found" in said:
        return f"a Secret is missing ({said}): make it with the keys api-key, secret-key and account-id"
    if "couldn't find key" in said:
        return f"a Secret or ConfigMap lacks a key: {said}"
    return f"the container's settings are not complete: {said}"


def _explain_refusal(said: str) -> str:
    line = _line(said)
    if "exceeded quota" in line:
        return f"the namespace's quota is used up: stop an agent or raise the quota ({line})"
    if "PodSecurity" in line:
        return f"the namespace's Pod Security refuses the pod: {line}"
    return f"the cluster refuses the pod: {line}"


def _image(template: Mapping[str, Any]) -> str:
    containers = (template.get("spec") or {}).get("containers") or [{}]
    return str(containers[0].get("image", ""))


def _restarts(pod: Mapping[str, Any]) -> int:
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return sum(int(container.get("restartCount") or 0) for container in statuses)


def _is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(entry.get("type") == "Ready" and entry.get("status") == "True" for entry in conditions)


def _line(said: object) -> str:
    return " ".join(str(said or "").split())[:400]
