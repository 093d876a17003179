"""Agents in Kubernetes. Google's or anybody's cluster, by the settings, TLS and tokens of the official client.

Objects travel as plain JSON: the client's own classes differ from version to version, Kubernetes' fields do not.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from deploy.errors import DeployError, InternalError, NotFoundError, OutcomeUnknownError, UnavailableError
from deploy.ids import deployment_name
from deploy.ports import LogLine, RolloutState
from deploy.rollout import judge_rollout

_FIELD_MANAGER = "dry-work-deploy"
_CONTAINER = "agent"
_LAST_WORDS = 5  # lines that the reason of a crash quotes
_LOG_BYTES = 1 << 20

# Where the objects of a manifest are, by kind. All of them belong to a namespace.
_PLACES = {
    ("apps/v1", "Deployment"): "deployments",
    ("v1", "PersistentVolumeClaim"): "persistentvolumeclaims",
    ("v1", "ConfigMap"): "configmaps",
    ("v1", "Service"): "services",
    ("v1", "ServiceAccount"): "serviceaccounts",
    ("networking.k8s.io/v1", "NetworkPolicy"): "networkpolicies",
    ("networking.gke.io/v1alpha1", "FQDNNetworkPolicy"): "fqdnnetworkpolicies",
    ("monitoring.googleapis.com/v1", "PodMonitoring"): "podmonitorings",
    ("policy/v1", "PodDisruptionBudget"): "poddisruptionbudgets",
}
_LOG_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z (.*)", re.DOTALL)


class KubernetesCluster:
    """A `Cluster` in one namespace of a Kubernetes cluster.

    Args:
        client: `kubernetes.client.ApiClient`, set up for the cluster.
        now: the time, UTC.
    """

    def __init__(self, client: Any, namespace: str, *, now: Callable[[], dt.datetime], timeout_s: float = 10.0) -> None:
        self._client = client
        self._namespace = namespace
        self._now = now
        self._timeout_s = timeout_s

    def apply(self, documents: Sequence[Mapping[str, Any]]) -> None:
        """Create or change what the manifests describe, by server-side apply, in their order."""
        for document in documents:
            name = str(document["metadata"]["name"])
            path = self._path(document, name)
            query = {"fieldManager": _FIELD_MANAGER, "force": "true", "fieldValidation": "Strict"}
            self._ask("PATCH", path, query, document, content_type="application/apply-patch+yaml", writes=True)

    def rollout(self, normalised: str) -> RolloutState:
        """Return how an agent's Deployment stands, with the reason when its pod does not get on."""
        try:
            deployment = self._ask("GET", self._deployment(normalised))
        except NotFoundError:
            return RolloutState(phase="missing")
        state = judge_rollout(deployment, self._pods(normalised))
        if state.crashed_pod:
            words = self._last_words(state.crashed_pod)
            if words:
                return RolloutState(**{**state.result.__dict__, "reason": f"{state.result.reason}: {words}"})
        return state.result

    def delete(self, normalised: str, *, delete_state: bool = False) -> bool:
        """Delete the Deployment, and the volume claim with `delete_state`; tell whether there was a Deployment."""
        found = True
        try:
            self._ask("DELETE", self._deployment(normalised), {"propagationPolicy": "Background"}, writes=True)
        except NotFoundError:
            found = False
        if delete_state:
            with contextlib.suppress(NotFoundError):
                self._ask("DELETE", self._core("persistentvolumeclaims", f"agent-state-{normalised}"), writes=True)
        return found

    def restart(self, normalised: str, *, at: dt.datetime) -> None:
        """Start the pod anew, as `kubectl rollout restart` does."""
        annotations = {"kubectl.kubernetes.io/restartedAt": at.isoformat()}
        body = {"spec": {"template": {"metadata": {"annotations": annotations}}}}
        self._ask(
            "PATCH",
            self._deployment(normalised),
            {"fieldManager": _FIELD_MANAGER},
            body,
            content_type="application/merge-patch+json",
            writes=True,
        )

    def logs(self, normalised: str, *, since: dt.datetime | None = None, limit: int = 200) -> list[LogLine]:
        """Return the last lines of the newest pod, oldest first; none when it does not run."""
        pods = self._pods(normalised)
        if not pods:
            return []
        newest = max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
        query = {"container": _CONTAINER, "timestamps": "true", "tailLines": str(limit), "limitBytes": str(_LOG_BYTES)}
        if since is not None:
            query["sinceSeconds"] = str(max(1, int((self._now() - since).total_seconds()) + 1))
        try:
            text = self._ask_text("GET", self._core("pods", newest["metadata"]["name"]) + "/log", query)
        except NotFoundError:
            return []
        lines = [_parse_line(line) for line in text.splitlines()]
        return [line for line in lines if since is None or line.time is None or line.time > since][-limit:]

    def secret_exists(self, name: str) -> bool:
        """Tell whether the namespace has a Secret of this name; also True when the service may not ask.

        Only its metadata travels, never what is in it.
        """
        accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
        try:
            self._ask("GET", self._core("secrets", name), accept=accept)
        except NotFoundError:
            return False
        except UnavailableError:
            raise
        except DeployError:
            return True
        return True

    def close(self) -> None:
        """Close the connections."""
        self._client.rest_client.pool_manager.clear()

    def _pods(self, normalised: str) -> list[dict[str, Any]]:
        query = {"labelSelector": f"app=trading-agent,agent-id={normalised}"}
        found = self._ask("GET", self._core("pods"), query).get("items")
        return [pod for pod in found if isinstance(pod, dict)] if isinstance(found, list) else []

    def _last_words(self, pod: str) -> str:
        for previous in ("true", "false"):
            query = {"container": _CONTAINER, "tailLines": str(_LAST_WORDS), "previous": previous}
            try:
                text = self._ask_text("GET", self._core("pods", pod) + "/log", query)
            except DeployError:
                continue
            if text.strip():
                return " / ".join(line.strip() for line in text.strip().splitlines()[-_LAST_WORDS:])[-800:]
        return ""

    def _path(self, document: Mapping[str, Any], name: str) -> str:
        version, kind = str(document.get("apiVersion")), str(document.get("kind"))
        place = _PLACES.get((version, kind))
        if place is None:
            raise InternalError(f"the manifest has a {kind} of {version}, which the service does not apply")
        if document["metadata"].get("namespace", self._namespace) != self._namespace:
            raise InternalError(f"the manifest's {kind} {name} is of another namespace than {self._namespace}")
        root = "/api/v1" if version == "v1" else f"/apis/{version}"
        return f"{root}/namespaces/{self._namespace}/{place}/{quote(name, safe='')}"

    def _deployment(self, normalised: str) -> str:
        return f"/apis/apps/v1/namespaces/{self._namespace}/deployments/{deployment_name(normalised)}"

    def _core(self, place: str, name: str = "") -> str:
        path = f"/api/v1/namespaces/{self._namespace}/{place}"
        return f"{path}/{quote(name, safe='')}" if name else path

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
        writes: bool = False,
    ) -> dict[str, Any]:
        text = self._ask_text(method, path, query, body, content_type=content_type, accept=accept, writes=writes)
        try:
            found = json.loads(text)
        except ValueError as error:
            raise UnavailableError("Kubernetes answers what is no JSON: is this its address?") from error
        if not isinstance(found, dict):
            raise UnavailableError("Kubernetes answers what is no object: is this its address?")
        return found

    def _ask_text(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
        writes: bool = False,
    ) -> str:
        import urllib3

        configuration = self._client.configuration
        headers = {"Accept": accept, "Content-Type": content_type}
        for setting in configuration.auth_settings().values():
            if setting["in"] == "header" and setting["value"]:
                headers[setting["key"]] = setting["value"]
        address = configuration.host.rstrip("/") + path + (f"?{urlencode(query)}" if query else "")
        try:
            answer = self._client.rest_client.pool_manager.request(
                method,
                address,
                body=None if body is None else json.dumps(body),
                headers=headers,
                timeout=urllib3.Timeout(connect=min(5.0, self._timeout_s), read=self._timeout_s),
                retries=False,
            )
        except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError) as error:
            raise UnavailableError("Kubernetes cannot be reached; call again later") from error
        except urllib3.exceptions.HTTPError as error:
            kind = OutcomeUnknownError if writes else UnavailableError
            raise kind(f"Kubernetes did not answer ({type(error).__name__}); call again later") from error
        text = bytes(answer.data).decode("utf-8", "replace")
        if answer.status >= 300:
            raise _translate(answer.status, text, writes=writes)
        return text


def _translate(status: int, text: str, *, writes: bool) -> DeployError:
    said = text
    with contextlib.suppress(ValueError, AttributeError):
        said = str(json.loads(text).get("message") or text)
    said = " ".join(said.split())[:400]
    if status == 404:
        return NotFoundError(f"Kubernetes: {said}")
    if status in (401, 403) and "exceeded quota" not in said and "violates PodSecurity" not in said:
        return InternalError(f"Kubernetes refuses the service's account: give it the role that it needs ({said})")
    if status in (409, 429) or status == 503:
        return UnavailableError(f"Kubernetes is busy; call again ({said})")
    if status >= 500:
        kind = OutcomeUnknownError if writes else UnavailableError
        return kind(f"Kubernetes failed; call again later ({said})")
    return InternalError(f"Kubernetes does not take the request: {said}")


def _parse_line(line: str) -> LogLine:
    match = _LOG_TIME.fullmatch(line)
    if match is None:
        return LogLine(time=None, text=line)
    fraction = (match[2] or "").ljust(6, "0")[:6]
    return LogLine(time=dt.datetime.fromisoformat(f"{match[1]}.{fraction}+00:00"), text=match[3])


def connect(project: str, region: str, cluster: str, *, environment: Mapping[str, str], timeout_s: float = 10.0) -> Any:
    """Return a `kubernetes.client.ApiClient` for the cluster.

    By `KUBECONFIG` when that is set, from inside a cluster by its service account, otherwise for the GKE cluster of
    this name with the service's own Google credentials.
    """
    import kubernetes

    load: Any = kubernetes.config  # carries no types
    configuration = kubernetes.client.Configuration()
    if environment.get("KUBECONFIG"):
        load.load_kube_config(environment["KUBECONFIG"], client_configuration=configuration)
    elif environment.get("KUBERNETES_SERVICE_HOST"):
        load.load_incluster_config(client_configuration=configuration)
    else:
        _set_up_gke(configuration, project, region, cluster, timeout_s)
    return kubernetes.client.ApiClient(configuration)


def _set_up_gke(configuration: Any, project: str, region: str, cluster: str, timeout_s: float) -> None:
    """Ask GKE where the cluster is, and let the service's tokens be taken, each until it is about to expire."""
    import base64
    import tempfile

    import google.auth
    import google.auth.transport.requests

    from deploy.google_errors import mapped

    transport: Any = google.auth.transport.requests  # carries no types
    credentials: Any
    with mapped("GKE"):
        credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
        name = f"projects/{project}/locations/{region}/clusters/{cluster}"
        with transport.AuthorizedSession(credentials) as session:
            answer = session.get(f"https://container.googleapis.com/v1/{name}", timeout=timeout_s)
    if answer.status_code == 404:
        raise NotFoundError(f"there is no cluster {cluster} in {region} of {project}")
    if answer.status_code != 200:
        raise UnavailableError(f"GKE does not tell where the cluster {cluster} is: HTTP {answer.status_code}")
    found = answer.json()
    # The client reads the certificate from a file; it is public.
    with tempfile.NamedTemporaryFile("wb", suffix=".pem", delete=False) as target:
        target.write(base64.b64decode(found["masterAuth"]["clusterCaCertificate"]))
    configuration.host = f"https://{found['endpoint']}"
    configuration.ssl_ca_cert = target.name
    lock = threading.Lock()

    def refresh(configuration: Any) -> None:
        with lock, mapped("the service's credentials"):
            if not credentials.valid:
                credentials.refresh(transport.Request())
            configuration.api_key["authorization"] = f"Bearer {credentials.token}"

    refresh(configuration)
    configuration.refresh_api_key_hook = refresh
