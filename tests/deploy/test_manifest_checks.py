"""The checks themselves: each way to break the restricted profile or a schema is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from deploy.errors import ConfigurationError
from deploy.manifest import render_agent
from deploy.pod_security import find_violations
from deploy.schemas import find_problems

Pod = dict[str, Any]


def deployment() -> dict[str, Any]:
    documents = render_agent(
        agent_id="a1", creator_id="u", project_id="my-project", image="gcr.io/my-project/trading-agent-a1:5f0c"
    )
    return documents[-1]


def pod_of(document: dict[str, Any]) -> Pod:
    return document["spec"]["template"]  # type: ignore[no-any-return]


def container(pod: Pod) -> dict[str, Any]:
    return pod["spec"]["containers"][0]  # type: ignore[no-any-return]


def context(pod: Pod) -> dict[str, Any]:
    return container(pod)["securityContext"]  # type: ignore[no-any-return]


# Each breaks one line of the profile's page.
BREAKS: list[tuple[Callable[[Pod], Any], str]] = [
    (lambda pod: pod["spec"].update(hostNetwork=True), "hostNetwork"),
    (lambda pod: pod["spec"].update(hostPID=True), "hostPID"),
    (lambda pod: pod["spec"].update(hostIPC=True), "hostIPC"),
    (lambda pod: context(pod).update(privileged=True), "privileged"),
    (lambda pod: context(pod).update(allowPrivilegeEscalation=True), "allowPrivilegeEscalation"),
    (lambda pod: context(pod).pop("allowPrivilegeEscalation"), "allowPrivilegeEscalation"),
    (lambda pod: context(pod).pop("capabilities"), "does not drop ALL"),
    (lambda pod: context(pod)["capabilities"].update(add=["NET_ADMIN"]), "adds the capability NET_ADMIN"),
    (lambda pod: context(pod).update(runAsNonRoot=False), "runAsNonRoot"),
    (lambda pod: context(pod).update(runAsUser=0), "runAsUser is 0"),
    (lambda pod: pod["spec"]["securityContext"].update(runAsUser=0), "runAsUser is 0"),
    (lambda pod: pod["spec"]["securityContext"].pop("seccompProfile"), "seccompProfile is None"),
    (lambda pod: context(pod).update(seccompProfile={"type": "Unconfined"}), "seccompProfile is 'Unconfined'"),
    (lambda pod: context(pod).update(procMount="Unmasked"), "procMount"),
    (lambda pod: context(pod).update(seLinuxOptions={"user": "root"}), "seLinuxOptions"),
    (lambda pod: context(pod).update(appArmorProfile={"type": "Unconfined"}), "appArmorProfile"),
    (lambda pod: pod["spec"]["securityContext"].update(sysctls=[{"name": "kernel.msgmax", "value": "1"}]), "sysctl"),
    (lambda pod: pod["spec"]["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "hostPath"),
    (lambda pod: container(pod).update(ports=[{"containerPort": 80, "hostPort": 80}]), "host port 80"),
    (
        lambda pod: container(pod).update(livenessProbe={"httpGet": {"port": 80, "host": "169.254.169.254"}}),
        "livenessProbe names a host",
    ),
    (lambda pod: pod["spec"].update(initContainers=[{"name": "init", "image": "x/y:1"}]), "'init'"),
    (
        lambda pod: pod["metadata"].update(
            annotations={"container.apparmor.security.beta.kubernetes.io/agent": "unconfined"}
        ),
        "annotation",
    ),
    # Beyond the profile.
    (lambda pod: context(pod).pop("readOnlyRootFilesystem"), "readOnlyRootFilesystem"),
    (lambda pod: pod["spec"].update(automountServiceAccountToken=True), "automountServiceAccountToken"),
    (lambda pod: container(pod)["resources"]["limits"].pop("memory"), "no limit of memory"),
    (lambda pod: container(pod).update(image="gcr.io/p/x:latest"), "neither a digest nor a tag"),
    (lambda pod: container(pod).update(image="gcr.io:443/p/x"), "neither a digest nor a tag"),
]


def test_the_manifest_breaks_nothing() -> None:
    assert find_violations(deployment()) == []


@pytest.mark.parametrize(("change", "expected"), BREAKS, ids=[expected for _, expected in BREAKS])
def test_each_way_to_break_the_profile_is_found(change: Callable[[Pod], Any], expected: str) -> None:
    document = deployment()
    change(pod_of(document))
    assert any(expected in found for found in find_violations(document)), find_violations(document)


@pytest.mark.parametrize("kind", ["Pod", "Job", "CronJob", "StatefulSet", "DaemonSet"])
def test_pods_are_found_wherever_they_are(kind: str) -> None:
    bad = {"spec": {"hostNetwork": True, "containers": []}}
    documents = {
        "Pod": {"kind": kind, **bad},
        "CronJob": {"kind": kind, "spec": {"jobTemplate": {"spec": {"template": bad}}}},
    }
    document = documents.get(kind, {"kind": kind, "spec": {"template": bad}})
    assert "hostNetwork is on" in find_violations(document)


@pytest.mark.parametrize("document", [{"kind": "Deployment"}, {"kind": "Deployment", "spec": None}, {"kind": "Pod"}])
def test_a_workload_without_a_pod_is_no_pass(document: dict[str, Any]) -> None:
    assert find_violations(document) == ["has no pod: spec is missing"]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("text", "document 1: is str, expected an object"),
        ({"kind": "Pod"}, "Pod ?: apiVersion and kind are needed"),
        ({"apiVersion": "v1", "kind": "Nothing", "metadata": {"name": "x"}}, "Kubernetes 1.31 has no Nothing in v1"),
        ({"apiVersion": "apps/v1beta1", "kind": "Deployment"}, "Kubernetes 1.31 has no Deployment in apps/v1beta1"),
        ({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "daten": {}}, "'daten' was unexpected"),
        ({"apiVersion": "v1", "kind": "ConfigMap", "data": {"port": 6379}}, "data.port: 6379 is not of type"),
        ({"apiVersion": "monitoring.googleapis.com/v1", "kind": "PodMonitoring", "metadata": {"name": "x"}}, "'spec'"),
    ],
)
def test_what_fits_no_schema_is_told_with_its_place(document: Any, expected: str) -> None:
    found = find_problems([document])
    assert any(expected in problem for problem in found), found


def test_a_version_without_schemas_is_an_error_and_no_pass() -> None:
    with pytest.raises(ConfigurationError, match=r"no schemas of Kubernetes '1\.2'.*1\.31"):
        find_problems([deployment()], version="1.2")
