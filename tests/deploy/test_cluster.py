"""Agents in Kubernetes: the official client's connection, and what is made of the cluster's answers."""

from __future__ import annotations

import datetime as dt
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.cluster_kubernetes import KubernetesCluster, connect
from deploy.errors import DeployError, InternalError, NotFoundError, OutcomeUnknownError, UnavailableError
from deploy.manifest import AgentManifest
from deploy.rollout import judge_rollout
from deploy.settings import DeploySettings
from tests.deploy.kubernetes_server import NAMESPACE, KubernetesServer, path_of, pod_status

NOW = dt.datetime(2026, 1, 2, 15, 4, 7, tzinfo=dt.UTC)
IMAGE = "gcr.io/my-project/trading-agent-a:build-1"
SETTINGS = DeploySettings(project="my-project")


@pytest.fixture
def server() -> Iterator[KubernetesServer]:
    server = KubernetesServer()
    yield server
    server.close()


@pytest.fixture
def cluster(server: KubernetesServer) -> Iterator[KubernetesCluster]:
    cluster = KubernetesCluster(server.client(), NAMESPACE, now=lambda: NOW, timeout_s=30.0)
    yield cluster
    cluster.close()
    cluster.close()


def documents(image: str = IMAGE) -> list[dict[str, Any]]:
    return AgentManifest(SETTINGS)(normalised="a", user_id="ann", image=image)[0]


def test_an_agent_is_applied_watched_restarted_and_deleted(
    server: KubernetesServer, cluster: KubernetesCluster
) -> None:
    assert cluster.rollout("a").phase == "missing"
    assert cluster.logs("a") == []
    with pytest.raises(NotFoundError):
        cluster.restart("a", at=NOW)
    cluster.apply(documents())
    cluster.apply(documents())
    state = cluster.rollout("a")
    assert (state.phase, state.image, state.ready, state.reason) == ("complete", IMAGE, True, "")
    cluster.restart("a", at=NOW)
    deployment = server.deployment("a")
    assert deployment is not None
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert deployment["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"] == (
        "2026-01-02T15:04:07+00:00"
    )
    lines = cluster.logs("a", since=dt.datetime(2026, 1, 2, 15, 4, 5, 200_000, dt.UTC))
    assert [(line.text, line.time) for line in lines] == [("bar 1", dt.datetime(2026, 1, 2, 15, 4, 6, tzinfo=dt.UTC))]
    assert cluster.delete("a") is True
    assert cluster.delete("a", delete_state=True) is False
    assert path_of("PersistentVolumeClaim", "agent-state-a") not in server.objects
    assert server.tokens == {"Bearer cluster-token"}


def test_whether_a_secret_exists_is_asked_without_its_content(
    server: KubernetesServer, cluster: KubernetesCluster
) -> None:
    assert cluster.secret_exists("alpaca-credentials")
    assert not cluster.secret_exists("other")
    server.fail = (403, "secrets is forbidden")
    assert cluster.secret_exists("other")  # not allowed to know
    server.fail = (503, "starting")
    with pytest.raises(UnavailableError):
        cluster.secret_exists("other")


def test_only_known_objects_of_the_own_namespace_are_applied(
    server: KubernetesServer, cluster: KubernetesCluster
) -> None:
    bad = [
        (
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "x"}},
            "Role of rbac",
        ),
        ({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}, "Pod of v1"),
        ({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "kube-system"}}, "namespace"),
    ]
    for document, told in bad:
        with pytest.raises(InternalError, match=told):
            cluster.apply([document])
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "reads", "writes", "told"),
    [
        (401, InternalError, InternalError, "give it the role"),
        (403, InternalError, InternalError, "give it the role"),
        (429, UnavailableError, UnavailableError, "is busy"),
        (500, UnavailableError, OutcomeUnknownError, "failed; call again later"),
        (503, UnavailableError, UnavailableError, "is busy"),
        (422, InternalError, InternalError, "does not take the request"),
    ],
)
def test_errors_of_the_cluster_keep_their_meaning(
    server: KubernetesServer,
    cluster: KubernetesCluster,
    status: int,
    reads: type[DeployError],
    writes: type[DeployError],
    told: str,
) -> None:
    server.fail = (status, "said by Kubernetes")
    with pytest.raises(reads, match=f"Kubernetes.*{told}.*said by Kubernetes"):
        cluster.rollout("a")
    with pytest.raises(writes, match=told):
        cluster.apply(documents())
    with pytest.raises(writes, match=told):
        cluster.delete("a")


def test_a_cluster_that_cannot_be_reached_or_is_silent_is_told(server: KubernetesServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        client = server.client()
        client.configuration.host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        cluster = KubernetesCluster(client, NAMESPACE, now=lambda: NOW, timeout_s=0.3)
        with pytest.raises(UnavailableError, match="did not answer"):
            cluster.rollout("a")
        with pytest.raises(OutcomeUnknownError):
            cluster.apply(documents())
        cluster.close()
    cluster = KubernetesCluster(client, NAMESPACE, now=lambda: NOW, timeout_s=0.3)
    with pytest.raises(UnavailableError, match="cannot be reached") as caught:
        cluster.apply(documents())
    assert not isinstance(caught.value, OutcomeUnknownError)
    cluster.close()


def test_a_cluster_is_found_by_kubeconfig(server: KubernetesServer, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(
        f"""
apiVersion: v1
kind: Config
current-context: c
contexts: [{{name: c, context: {{cluster: k, user: u}}}}]
clusters: [{{name: k, cluster: {{server: "{server.address}"}}}}]
users: [{{name: u, user: {{token: from-the-file}}}}]
"""
    )
    client = connect("p", "r", "c", environment={"KUBECONFIG": str(path)})
    cluster = KubernetesCluster(client, NAMESPACE, now=lambda: NOW, timeout_s=30.0)
    assert cluster.rollout("a").phase == "missing"
    assert server.tokens == {"Bearer from-the-file"}
    cluster.close()


# What is made of a Deployment and its pods


def deployment(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {"generation": 2},
        "spec": {"replicas": 1, "template": {"spec": {"containers": [{"image": IMAGE}]}}},
        "status": {"observedGeneration": 2, "unavailableReplicas": 1, **status},
    }


def pod(what: str, image: str = IMAGE) -> dict[str, Any]:
    return {
        "metadata": {"name": "p"},
        "spec": {"containers": [{"image": image}]},
        "status": pod_status(what, image),
    }


READY = {"unavailableReplicas": None, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}


@pytest.mark.parametrize(
    ("found", "pods", "phase", "reason"),
    [
        (deployment(**READY), ["ready"], "complete", ""),
        (deployment(**READY, observedGeneration=1), ["ready"], "progressing", "has not looked at it yet"),
        (deployment(**{**READY, "updatedReplicas": 0}), ["ready"], "progressing", "the pod is starting"),
        (deployment(**{**READY, "replicas": 2}), ["ready"], "progressing", "the pod is starting"),
        (deployment(), [], "progressing", "there is no pod yet"),
        (deployment(), ["starting"], "progressing", "the pod is starting"),
        (deployment(), ["nodes"], "progressing", "no node has room for the agent: 0/3 nodes"),
        (deployment(), ["once"], "progressing", "the agent ended once with exit code 1"),
        (deployment(), ["crash"], "failed", "the agent ended 3 times with exit code 1"),
        (deployment(), ["memory"], "failed", "needs more memory than its limit and was killed 4 times"),
        (deployment(), ["image"], "failed", "cannot be pulled: Back-off"),
        (deployment(), ["secret"], "failed", 'a Secret is missing (secret "alpaca-credentials" not found)'),
        (
            deployment(conditions=[{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]),
            ["starting"],
            "failed",
            "its readiness probe does not succeed",
        ),
        (
            deployment(
                conditions=[
                    {"type": "ReplicaFailure", "status": "True", "message": 'violates PodSecurity "restricted:latest"'}
                ]
            ),
            [],
            "failed",
            "the namespace's Pod Security refuses the pod",
        ),
    ],
)
def test_a_rollout_is_judged(found: dict[str, Any], pods: list[str], phase: str, reason: str) -> None:
    state = judge_rollout(found, [pod(what) for what in pods]).result
    assert state.phase == phase
    assert reason in state.reason
    assert bool(reason) == bool(state.reason)


def test_pods_of_an_earlier_image_and_those_that_end_do_not_count() -> None:
    old, ending = pod("crash", "gcr.io/my-project/trading-agent-a:old"), pod("crash")
    ending["metadata"]["deletionTimestamp"] = "2026-01-02T15:04:05Z"
    found = judge_rollout(deployment(), [old, ending, pod("starting")])
    assert (found.result.phase, found.crashed_pod, found.result.restarts) == ("progressing", "", 0)
