"""The part of the Kubernetes API that the service uses, over HTTP, with a controller that does what a test asks for."""

from __future__ import annotations

import datetime as dt
import json
import threading
from collections.abc import Mapping
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import kubernetes
import yaml

from tests.deploy.cloud_build_server import StepError

NAMESPACE = "trading-agents"
PLACES = {
    "Deployment": "/apis/apps/v1",
    "PersistentVolumeClaim": "/api/v1",
    "NetworkPolicy": "/apis/networking.k8s.io/v1",
    "PodMonitoring": "/apis/monitoring.googleapis.com/v1",
    "ServiceAccount": "/api/v1",
    "ConfigMap": "/api/v1",
    "Secret": "/api/v1",
    "FQDNNetworkPolicy": "/apis/networking.gke.io/v1alpha1",
}
PLURALS = {"NetworkPolicy": "networkpolicies", "FQDNNetworkPolicy": "fqdnnetworkpolicies"}


def path_of(kind: str, name: str, namespace: str = NAMESPACE) -> str:
    """Return where an object is."""
    return f"{PLACES[kind]}/namespaces/{namespace}/{PLURALS.get(kind, kind.lower() + 's')}/{name}"


class KubernetesServer:
    """A server on a port of its own.

    Attributes:
        objects: by path.
        pod: what becomes of pods: ready, starting, image, crash, memory, secret, nodes, quota.
        fail: answers every request, as status and message.
        requests: method and path of each request.
    """

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.pod = "ready"
        self.fail: tuple[int, str] | None = None
        self.log = "2026-01-02T15:04:05.123456789Z started\n2026-01-02T15:04:06Z bar 1\n"
        self.previous_log = "Traceback\nKeyError: 'AAPL'\n"
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.tokens: set[str] = set()
        self.lock = threading.RLock()
        self.put("Secret", "alpaca-credentials", {"data": {"api-key": "c2VjcmV0"}})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.kubernetes = self  # type: ignore[attr-defined]
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def client(self, token: str = "cluster-token") -> Any:
        """Return the official client, connected here."""
        configuration = kubernetes.client.Configuration()
        configuration.host = self.address
        configuration.api_key = {"authorization": f"Bearer {token}"}
        return kubernetes.client.ApiClient(configuration)

    def put(self, kind: str, name: str, content: Mapping[str, Any]) -> None:
        """Make an object."""
        self.objects[path_of(kind, name)] = {
            "kind": kind,
            "metadata": {"name": name, "namespace": NAMESPACE},
            **content,
        }

    def deployment(self, normalised: str) -> dict[str, Any] | None:
        """Return the Deployment of an agent."""
        with self.lock:
            return deepcopy(self.objects.get(path_of("Deployment", f"trading-agent-{normalised}")))

    def apply_text(self, text: str) -> None:
        """Take a manifest as kubectl would."""
        if self.fail is not None:
            raise StepError(f"Unable to connect to the server: {self.fail[1]}")
        with self.lock:
            for document in yaml.safe_load_all(text):
                self.apply(path_of(document["kind"], document["metadata"]["name"]), document)

    def apply(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Create or change an object."""
        with self.lock:
            old = self.objects.get(path, {})
            new = {**old, **deepcopy(dict(document))}
            changed = old.get("spec") != new.get("spec")
            generation = int(old.get("metadata", {}).get("generation", 0)) + changed
            new["metadata"] = {**new["metadata"], "generation": generation}
            self.objects[path] = new
            return new

    def delete(self, path: str) -> bool:
        """Delete an object; tell whether it was there."""
        with self.lock:
            return self.objects.pop(path, None) is not None

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._thread.join(30)
        self._server.server_close()

    # The controller

    def seen(self, path: str) -> dict[str, Any]:
        """Return an object as it is now, a Deployment with its status."""
        found = deepcopy(self.objects[path])
        if found.get("kind") == "Deployment":
            found["status"] = self._status(found)
        return found

    def _status(self, deployment: Mapping[str, Any]) -> dict[str, Any]:
        status: dict[str, Any] = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": 1,
            "updatedReplicas": 1,
        }
        if self.pod == "ready":
            return {**status, "availableReplicas": 1, "readyReplicas": 1}
        status["unavailableReplicas"] = 1
        if self.pod == "quota":
            message = 'pods "trading-agent-x" is forbidden: exceeded quota: agents, requested: pods=1, used: pods=10'
            status["conditions"] = [{"type": "ReplicaFailure", "status": "True", "message": message}]
        return status

    def pods(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the pods of the Deployments that have these labels."""
        if self.pod == "quota":
            return []
        found = []
        for path in list(self.objects):
            deployment = self.objects[path]
            template = deployment.get("spec", {}).get("template", {})
            if deployment.get("kind") == "Deployment" and labels.items() <= template["metadata"]["labels"].items():
                image = template["spec"]["containers"][0]["image"]
                metadata = {
                    "name": f"{deployment['metadata']['name']}-abc",
                    "labels": template["metadata"]["labels"],
                    "creationTimestamp": dt.datetime.now(dt.UTC).isoformat(),
                }
                status = pod_status(self.pod, image)
                found.append({"metadata": metadata, "spec": template["spec"], "status": status})
        return found


def pod_status(what: str, image: str) -> dict[str, Any]:
    """Return the status of a pod as Kubernetes writes it."""
    container: dict[str, Any] = {"name": "agent", "image": image, "ready": False, "restartCount": 0}
    if what == "ready":
        container |= {"ready": True, "state": {"running": {}}}
        return {"conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [container]}
    if what == "nodes":
        message = "0/3 nodes are available: 3 Insufficient memory."
        return {
            "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]
        }
    ended = {"terminated": {"exitCode": 1, "reason": "Error"}}
    states: dict[str, dict[str, Any]] = {
        "starting": {"state": {"running": {}}},
        "image": {"state": {"waiting": {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{image}"'}}},
        "crash": {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended, "restartCount": 3},
        "once": {"state": {"running": {}}, "lastState": ended, "restartCount": 1},
        "memory": {
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
            "restartCount": 4,
        },
        "secret": {
            "state": {
                "waiting": {
                    "reason": "CreateContainerConfigError",
                    "message": 'secret "alpaca-credentials" not found',
                }
            }
        },
    }
    return {"containerStatuses": [{**container, **states[what]}]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        cluster: KubernetesServer = self.server.kubernetes  # type: ignore[attr-defined]
        url = urlsplit(self.path)
        path, query = unquote(url.path), {key: values[0] for key, values in parse_qs(url.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        with cluster.lock:
            cluster.requests.append((self.command, path))
            cluster.tokens.add(self.headers.get("Authorization", ""))
            if body is not None:
                cluster.bodies.append(body)
            status, answer = self._answer(cluster, path, query, body)
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _answer(
        self, cluster: KubernetesServer, path: str, query: dict[str, str], body: dict[str, Any] | None
    ) -> tuple[int, Any]:
        if cluster.fail is not None:
            return cluster.fail[0], _failure(*cluster.fail)
        if path.endswith("/pods"):
            labels = dict(entry.split("=") for entry in query["labelSelector"].split(","))
            return 200, {"kind": "PodList", "items": cluster.pods(labels)}
        if path.endswith("/log"):
            return 200, cluster.previous_log if query.get("previous") == "true" else _with_times(cluster.log, query)
        content_type = self.headers.get("Content-Type", "")
        if self.command == "PATCH" and content_type == "application/apply-patch+yaml":
            assert query["fieldManager"]
            assert body is not None
            return 200, cluster.apply(path, body)
        if path not in cluster.objects:
            return 404, _failure(404, f"{path} not found")
        if self.command == "GET":
            found = cluster.seen(path)
            if "PartialObjectMetadata" in self.headers.get("Accept", ""):
                found = {"kind": "PartialObjectMetadata", "metadata": found["metadata"]}
            return 200, found
        if self.command == "DELETE":
            cluster.delete(path)
            return 200, {"kind": "Status", "status": "Success"}
        assert self.command == "PATCH"
        assert content_type == "application/merge-patch+json"
        assert body is not None
        return 200, cluster.apply(path, _merge(cluster.objects[path], body))

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def _failure(status: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "status": "Failure", "code": status, "message": message}


def _with_times(text: str, query: Mapping[str, str]) -> str:
    lines = text.splitlines()[-int(query.get("tailLines", "1000")) :]
    if query.get("timestamps") != "true":
        lines = [line.partition(" ")[2] for line in lines]
    return "\n".join(lines) + "\n"


def _merge(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return deepcopy(new)
    return {**old, **{key: _merge(old.get(key), value) for key, value in new.items()}}
