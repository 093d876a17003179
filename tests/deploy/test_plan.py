"""`--plan`: what would be made and changed, checked, with the way back."""

from __future__ import annotations

import asyncio
import json
import shlex
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import ConfigurationError
from deploy.manifest import parse_yaml, render_agent
from deploy.plan import ClusterView, build_plan, find_differences, format_plan, read_cluster, strip, to_json
from deploy.setup_apply import Done

from .cluster_tools import find_tool

IMAGE = "gcr.io/my-project/trading-agent-a1"


def documents(tag: str = "5f0c") -> list[dict[str, Any]]:
    return render_agent(agent_id="a1", creator_id="u", project_id="my-project", image=f"{IMAGE}:{tag}")


def as_live(document: dict[str, Any]) -> dict[str, Any]:
    """Return an object as a cluster gives it back: with defaults, and what it writes itself."""
    found = deepcopy(document)
    found["metadata"] |= {
        "uid": "1",
        "resourceVersion": "7",
        "generation": 2,
        "creationTimestamp": "2026-01-02T15:04:05Z",
        "managedFields": [{"manager": "x"}],
        "annotations": {"deployment.kubernetes.io/revision": "3", **found["metadata"].get("annotations", {})},
    }
    found["status"] = {"replicas": 1}
    if found["kind"] == "Deployment":
        pod = found["spec"]["template"]["spec"]
        pod |= {"dnsPolicy": "ClusterFirst", "restartPolicy": "Always"}
        pod["containers"][0] |= {"terminationMessagePath": "/dev/termination-log"}
        pod["containers"][0]["resources"]["limits"]["cpu"] = "0.2"
        pod["containers"][0]["env"].reverse()
    return found


def test_without_a_cluster_everything_is_checked_and_told_to_be_applied() -> None:
    plan = build_plan(documents(), ClusterView(silence="kubectl is not installed, or not on PATH"))
    text = format_plan(plan)
    assert plan.is_good
    assert "? apply   Deployment trading-agent-a1 in trading-agents" in text
    assert "not compared with a cluster: kubectl is not installed" in text
    assert "checked: schemas and restricted Pod Security\n" in text
    assert "deployment.apps/trading-agent-a1" not in text  # apps has no dot
    assert "kubectl delete --namespace trading-agents --ignore-not-found deployment/trading-agent-a1" in text


def test_the_first_deployment_makes_three_objects_and_is_undone_in_the_opposite_order() -> None:
    plan = build_plan(documents(), ClusterView(live=(None, None, None)))
    assert [change.action for change in plan.changes] == ["create", "create", "create"]
    words = [shlex.split(line, comments=True) for line in plan.undo]
    assert [line[-1] for line in words] == [
        "deployment/trading-agent-a1",
        "networkpolicy.networking.k8s.io/trading-agent-a1",
        "persistentvolumeclaim/agent-state-a1",
    ]
    assert all(line[:4] == ["kubectl", "delete", "--namespace", "trading-agents"] for line in words)
    assert plan.before == ""


def test_the_same_again_changes_nothing_whatever_the_cluster_has_added() -> None:
    plan = build_plan(documents(), ClusterView(live=tuple(as_live(found) for found in documents())))
    assert [change.action for change in plan.changes] == ["keep", "keep", "keep"], format_plan(plan)
    assert plan.undo == ()


def test_a_new_image_is_shown_before_and_after_and_the_way_back_is_what_runs_now() -> None:
    live = [as_live(found) for found in documents("old1")]
    live[2]["spec"]["template"]["spec"]["containers"][0]["env"].append({"name": "LEFT_OVER", "value": "1"})
    plan = build_plan(documents("new2"), ClusterView(live=tuple(live)))
    assert [change.action for change in plan.changes] == ["keep", "keep", "change"]
    assert set(plan.changes[2].differences) == {
        f"spec.template.spec.containers[agent].image: {IMAGE}:old1 → {IMAGE}:new2",
        'spec.template.spec.containers[agent].env[LEFT_OVER]: {"name": "LEFT_OVER", "value": "1"} → gone',
    }
    (before,) = parse_yaml(plan.before)
    assert before["spec"]["template"]["spec"]["containers"][0]["image"] == f"{IMAGE}:old1"
    assert "status" not in before
    assert set(before["metadata"]) == {"name", "namespace", "labels"}
    assert plan.undo == (
        "kubectl apply --server-side --force-conflicts --field-manager=dry-work-deploy --filename before.yaml",
    )


def test_what_stands_against_it_is_told_by_us_and_by_the_cluster() -> None:
    bad = documents()
    bad[2]["spec"]["template"]["spec"]["hostNetwork"] = True
    bad[0]["spec"]["storage"] = "1Gi"
    plan = build_plan(bad, ClusterView(live=(None,) * 3, refusals=("Deployment trading-agent-a1: exceeded quota",)))
    assert not plan.is_good
    assert any("hostNetwork is on" in problem for problem in plan.problems)
    assert any("'storage' was unexpected" in problem for problem in plan.problems)
    assert "exceeded quota" in format_plan(plan)
    assert to_json(plan)["problems"] == list(plan.problems)
    json.dumps(to_json(plan))


def test_a_secret_is_never_shown() -> None:
    def secret(value: str) -> dict[str, Any]:
        metadata = {"name": "alpaca-credentials", "namespace": "trading-agents"}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"api-key": value}}

    plan = build_plan([secret("new-value")], ClusterView(live=(secret("old-value"),)))
    assert plan.changes[0].differences == ("values are not shown",)
    text = format_plan(plan) + json.dumps(to_json(plan)) + plan.before
    assert "new-value" not in text
    assert "old-value" not in text


@pytest.mark.parametrize(
    ("wanted", "live", "expected"),
    [
        ({"cpu": "1000m"}, {"cpu": "1"}, []),
        ({"memory": "1Gi"}, {"memory": "1024Mi"}, []),
        ({"cpu": 1}, {"cpu": "1"}, []),
        ({"cpu": "100m"}, {"cpu": "1"}, ["cpu: 1 → 100m"]),
        ({"name": "100"}, {"name": "1e2"}, ["name: 1e2 → 100"]),
        ({"on": True}, {"on": 1}, []),
        ({"on": True}, {"on": "1"}, ["on: 1 → true"]),
        ({"a": {}}, {}, []),
        ({"a": 0}, {}, ["a: nothing → 0"]),
        ({"list": ["a", "b"]}, {"list": ["b", "a"]}, ["list[0]: b → a", "list[1]: a → b"]),
        ({"list": ["a"]}, {"list": ["a", "b"]}, ['list: ["a", "b"] → ["a"]']),
        (
            {"a": [{"name": "x", "v": 1}]},
            {"a": [{"name": "y"}, {"name": "x", "v": 2}]},
            ["a[x].v: 2 → 1", 'a[y]: {"name": "y"} → gone'],
        ),
        (
            {"a": [{"name": "x"}, {"name": "x"}]},  # names that tell nothing apart
            {"a": [{"name": "x"}]},
            ['a: [{"name": "x"}] → [{"name": "x"}, {"name": "x"}]'],
        ),
        ({"a": {"b": 1}}, {"a": None}, ['a: null → {"b": 1}']),
    ],
)  # fmt: skip
def test_differences_are_what_means_something_else(wanted: Any, live: Any, expected: list[str]) -> None:
    assert find_differences(wanted, live) == expected


class Kubectl:
    """Answers as kubectl does."""

    def __init__(self, found: dict[str, dict[str, Any]]) -> None:
        self.found = found
        self.calls: list[tuple[str, ...]] = []
        self.errors = ""
        self.refusal = ""

    def __call__(self, words: tuple[str, ...], *, stdin: str, timeout_s: float) -> Done:
        self.calls.append(words)
        if self.errors:
            return Done(code=1, errors=self.errors)
        document = json.loads(stdin)
        if "get" in words:
            live = self.found.get(document["kind"])
            return Done(code=0, output=json.dumps({"kind": "List", "items": [live]}) if live else "")
        if self.refusal and document["kind"] == "Deployment":
            return Done(code=1, errors=f"Warning: old\n{self.refusal}\n")
        return Done(code=0, output="serverside-applied (server dry run)")


def test_a_cluster_is_asked_what_it_has_and_what_it_would_take_and_nothing_else() -> None:
    kubectl = Kubectl({"Deployment": as_live(documents()[2])})
    kubectl.refusal = 'Error from server (Forbidden): pods "x" is forbidden: violates PodSecurity "restricted:latest"'
    view = read_cluster(documents(), run=kubectl, kubectl=("kubectl", "--context", "c"))
    assert [found and found["kind"] for found in view.live] == [None, None, "Deployment"]
    assert view.refusals == (f"Deployment trading-agent-a1: {kubectl.refusal}",)
    for words in kubectl.calls:
        assert words[:3] == ("kubectl", "--context", "c")
        assert "get" in words or "--dry-run=server" in words
        assert any(word.startswith("--request-timeout=") for word in words)


def test_a_cluster_that_does_not_answer_leaves_the_rest_of_the_plan() -> None:
    kubectl = Kubectl({})
    kubectl.errors = "The connection to the server 127.0.0.1:1 was refused - did you specify the right host or port?\n"
    view = read_cluster(documents(), run=kubectl)
    assert "was refused" in view.silence
    assert build_plan(documents(), view).is_good

    def missing(_words: tuple[str, ...], **_options: Any) -> Done:
        raise ConfigurationError("kubectl is not installed, or not on PATH")

    assert "not installed" in read_cluster(documents(), run=missing).silence


def test_what_a_cluster_writes_itself_is_left_out_and_the_rest_is_kept() -> None:
    document = documents()[2]
    document["metadata"]["annotations"] = {"mine": "1"}
    live = as_live(document)
    found = strip(live)
    assert found["metadata"]["annotations"] == {"mine": "1"}
    assert found["spec"] == live["spec"]
    assert "status" in live  # which is left as it was


async def test_the_real_kubectl_reads_and_rehearses_and_writes_nothing(tmp_path: Path) -> None:
    kmock = pytest.importorskip("kmock")
    kubectl = find_tool("kubectl")
    _claim, policy, deployment = documents("new2")
    live = as_live(documents("old1")[2])
    server = kmock.KubernetesEmulator()
    kinds = (("networking.k8s.io", "networkpolicies", "NetworkPolicy"), ("apps", "deployments", "Deployment"))
    paths = {}
    for group, plural, kind in kinds:
        resource = kmock.resource(group, "v1", plural)
        verbs = {"get", "list", "patch"}
        server.resources[resource] = {"kind": kind, "singular": kind.lower(), "namespaced": True, "verbs": verbs}
        paths[f"apis/{group}/v1"] = {"serverRelativeURL": f"/openapi/v3/apis/{group}/v1"}
        patch = {
            "parameters": [{"name": name, "in": "query"} for name in ("fieldValidation", "dryRun")],
            "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": {"group": group, "version": "v1", "kind": kind},
        }
        server[f"get /openapi/v3/apis/{group}/v1"] << {
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": "v1.31"},
            "paths": {f"/apis/{group}/v1/namespaces/{{namespace}}/{plural}/{{name}}": {"patch": patch}},
        }
    server["get /openapi/v3"] << {"paths": paths}
    server.objects[kmock.resource("apps", "v1", "deployments"), "trading-agents", "trading-agent-a1"] = live

    def refuse(_request: Any) -> Any:
        raise kmock.KubernetesError(status=403, reason="Forbidden", message="exceeded quota: trading-agents")

    server["patch", kmock.resource("apps", "v1", "deployments")] << refuse
    async with server, kmock.Server(server) as running:
        options = ("--server", str(running.url).rstrip("/"), "--kubeconfig", "/dev/null")
        options = (*options, "--cache-dir", str(tmp_path / "cache"))
        view = await asyncio.to_thread(read_cluster, [policy, deployment], kubectl=(kubectl, *options))
        requests = list(server)
    assert view.silence == ""
    assert view.live[0] is None
    plan = build_plan([policy, deployment], view)
    assert [change.action for change in plan.changes] == ["create", "change"]
    assert plan.changes[1].differences == (f"spec.template.spec.containers[agent].image: {IMAGE}:old1 → {IMAGE}:new2",)
    assert any("exceeded quota: trading-agents" in problem for problem in plan.problems)
    writing = [request for request in requests if request.method.value.upper() not in ("GET", "HEAD")]
    assert writing
    for request in writing:
        assert request.params["dryRun"] == "All", request.url
        assert request.params["fieldValidation"] == "Strict"
    # Nobody is there.
    silent = await asyncio.to_thread(read_cluster, [policy], kubectl=(kubectl, *options))
    assert silent.silence
