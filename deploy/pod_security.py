"""The restricted Pod Security profile of Kubernetes, as a check of objects. Pure.

https://kubernetes.io/docs/concepts/security/pod-security-standards/ (restricted, and with it baseline), for Linux.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_POD_PATHS: Mapping[str, tuple[str, ...]] = {
    "Pod": (),
    "Deployment": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "ReplicationController": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}
_VOLUMES = frozenset(
    ("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret")
)
_SYSCTLS = frozenset(
    (
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
    )
)
_SECCOMP = ("RuntimeDefault", "Localhost")
_APPARMOR = (None, "RuntimeDefault", "Localhost")
_SELINUX_TYPES = (None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
_APPARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"


def find_violations(document: Mapping[str, Any], *, hardened: bool = True) -> list[str]:
    """Return what the restricted profile would refuse, one sentence each; none for an object without a pod.

    Args:
        document: a Kubernetes object.
        hardened: also ask for what the profile does not, and we do: a read-only root, limits, no token of the API.
    """
    path = _POD_PATHS.get(str(document.get("kind")))
    if path is None:
        return []
    pod: Any = document
    for key in path:
        pod = (pod.get(key) or {}) if isinstance(pod, Mapping) else {}
    if not isinstance(pod, Mapping) or not isinstance(pod.get("spec"), Mapping):
        return ["has no pod: spec is missing"]
    return [*_check_pod(pod), *(_check_hardening(pod["spec"]) if hardened else ())]


def _check_pod(pod: Mapping[str, Any]) -> Iterator[str]:
    spec = pod["spec"]
    context = spec.get("securityContext") or {}
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield f"{name} is on"
    for volume in spec.get("volumes") or ():
        for kind in sorted(set(volume) - {"name"} - _VOLUMES):
            yield f"volume {volume.get('name')!r} is a {kind}, which is not allowed"
    for sysctl in context.get("sysctls") or ():
        if sysctl.get("name") not in _SYSCTLS:
            yield f"sysctl {sysctl.get('name')!r} is not allowed"
    if context.get("runAsUser") == 0:
        yield "runAsUser is 0"
    for name, value in ((pod.get("metadata") or {}).get("annotations") or {}).items():
        if name.startswith(_APPARMOR_ANNOTATION) and not (value == "runtime/default" or value.startswith("localhost/")):
            yield f"annotation {name} is {value!r}"
    yield from _check_profiles("the pod", context)
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield "the pod is a Windows host process"
    for container in _containers(spec):
        yield from _check_container(container, context)


def _check_container(container: Mapping[str, Any], pod_context: Mapping[str, Any]) -> Iterator[str]:
    name = f"container {container.get('name')!r}"
    context = container.get("securityContext") or {}
    if context.get("privileged"):
        yield f"{name} is privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{name}: allowPrivilegeEscalation is not false"
    if context.get("procMount") not in (None, "Default"):
        yield f"{name}: procMount is {context['procMount']!r}"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield f"{name} is a Windows host process"
    capabilities = context.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or ()):
        yield f"{name} does not drop ALL capabilities"
    for capability in capabilities.get("add") or ():
        if capability != "NET_BIND_SERVICE":
            yield f"{name} adds the capability {capability}"
    as_non_root = context.get("runAsNonRoot")
    if as_non_root is False or (as_non_root is None and pod_context.get("runAsNonRoot") is not True):
        yield f"{name}: runAsNonRoot is not true"
    if context.get("runAsUser") == 0:
        yield f"{name}: runAsUser is 0"
    seccomp = (context.get("seccompProfile") or pod_context.get("seccompProfile") or {}).get("type")
    if seccomp not in _SECCOMP:
        yield f"{name}: seccompProfile is {seccomp!r}, expected {' or '.join(_SECCOMP)}"
    yield from _check_profiles(name, context)
    for port in container.get("ports") or ():
        if port.get("hostPort"):
            yield f"{name} takes the host port {port['hostPort']}"
    for hook, handler in _handlers(container):
        for action in ("httpGet", "tcpSocket"):
            if (handler.get(action) or {}).get("host"):
                yield f"{name}: {hook} names a host"


def _check_profiles(name: str, context: Mapping[str, Any]) -> Iterator[str]:
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type") not in _SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield f"{name}: seLinuxOptions are not allowed"
    if (context.get("appArmorProfile") or {}).get("type") not in _APPARMOR:
        yield f"{name}: appArmorProfile is {context['appArmorProfile']['type']!r}"
    if (context.get("seccompProfile") or {}).get("type", _SECCOMP[0]) not in _SECCOMP:
        yield f"{name}: seccompProfile is {context['seccompProfile']['type']!r}"


def _check_hardening(spec: Mapping[str, Any]) -> Iterator[str]:
    if spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken is not false"
    for container in _containers(spec):
        name = f"container {container.get('name')!r}"
        if (container.get("securityContext") or {}).get("readOnlyRootFilesystem") is not True:
            yield f"{name}: readOnlyRootFilesystem is not true"
        limits = (container.get("resources") or {}).get("limits") or {}
        for resource in ("cpu", "memory"):
            if resource not in limits:
                yield f"{name} has no limit of {resource}"
        image = str(container.get("image", ""))
        if "@sha256:" not in image and (":" not in image.rpartition("/")[2] or image.endswith(":latest")):
            yield f"{name}: its image {image!r} has neither a digest nor a tag of a build"


def _containers(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for group in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(group) or ()


def _handlers(container: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        yield name, container.get(name) or {}
    for name in ("postStart", "preStop"):
        yield name, (container.get("lifecycle") or {}).get(name) or {}
