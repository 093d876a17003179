"""Whether Kubernetes objects fit their schemas: its own by kubernetes-validate, and small ones for what we use beside.

The libraries are asked for when something is checked; without them that is said, and nothing counts as checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from deploy.errors import ConfigurationError
from deploy.pod_security import find_violations

KUBERNETES_VERSION = "1.31"

_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": _TEXT, "namespace": _TEXT, "labels": _TEXTS, "annotations": _TEXTS},
    "additionalProperties": False,
}
_SELECTOR = {
    "type": "object",
    "required": ["matchLabels"],
    "properties": {"matchLabels": _TEXTS},
    "additionalProperties": False,
}


def _closed(required: Iterable[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


def _listed(item: Any) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": item}


def _reference(kind: str) -> dict[str, Any]:
    return _closed(("name",), name=_TEXT, kind={"const": kind}, namespace=_TEXT)


_REMOTE = {"oneOf": [_closed(("name",), name=_TEXT, namespace=_TEXT), _closed(("external",), external=_TEXT)]}

# spec of each kind of a custom resource: only what we use of it, and nothing else.
_CUSTOM: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("monitoring.googleapis.com/v1", "PodMonitoring"): _closed(
        ("selector", "endpoints"),
        selector=_SELECTOR,
        endpoints=_listed(
            _closed(
                ("port", "interval"),
                port={"type": ["string", "integer"]},
                path={"type": "string", "pattern": "^/"},
                interval={"type": "string", "pattern": r"^\d+(ms|s|m)$"},
            )
        ),
    ),
    ("networking.gke.io/v1alpha1", "FQDNNetworkPolicy"): _closed(
        ("podSelector", "egress"),
        podSelector=_SELECTOR,
        egress=_listed(
            _closed(
                ("matches", "ports"),
                matches=_listed(
                    {
                        "oneOf": [
                            _closed(("name",), name={"type": "string", "pattern": r"^[a-z0-9-]+(\.[a-z0-9-]+)+$"}),
                            _closed(("pattern",), pattern={"type": "string", "pattern": r"^\*(\.[a-z0-9-]+)+$"}),
                        ]
                    }
                ),
                ports=_listed(
                    _closed(
                        ("protocol", "port"),
                        protocol={"enum": ["TCP", "UDP"]},
                        port={"type": "integer", "minimum": 1, "maximum": 65535},
                    )
                ),
            )
        ),
    ),
    ("external-secrets.io/v1", "SecretStore"): _closed(
        ("provider",), provider=_closed(("gcpsm",), gcpsm=_closed(("projectID",), projectID=_TEXT))
    ),
    ("external-secrets.io/v1", "ExternalSecret"): _closed(
        ("secretStoreRef", "target", "data"),
        refreshInterval=_TEXT,
        secretStoreRef=_closed(("name", "kind"), name=_TEXT, kind={"enum": ["SecretStore", "ClusterSecretStore"]}),
        target=_closed(("name",), name=_TEXT, creationPolicy={"enum": ["Owner", "Merge", "Orphan", "None"]}),
        data=_listed(
            _closed(
                ("secretKey", "remoteRef"),
                secretKey=_TEXT,
                remoteRef=_closed(("key",), key=_TEXT, version=_TEXT, property=_TEXT),
            )
        ),
    ),
    ("secrets-store.csi.x-k8s.io/v1", "SecretProviderClass"): _closed(
        ("provider", "parameters"), provider=_TEXT, parameters=_TEXTS
    ),
    # Config Connector.
    ("serviceusage.cnrm.cloud.google.com/v1beta1", "Service"): _closed((), resourceID=_TEXT),
    ("pubsub.cnrm.cloud.google.com/v1beta1", "PubSubTopic"): _closed((), resourceID=_TEXT),
    ("storage.cnrm.cloud.google.com/v1beta1", "StorageBucket"): _closed(
        ("location",),
        resourceID=_TEXT,
        location=_TEXT,
        uniformBucketLevelAccess={"type": "boolean"},
        publicAccessPrevention={"enum": ["enforced", "inherited"]},
        versioning=_closed(("enabled",), enabled={"type": "boolean"}),
        lifecycleRule=_listed(
            _closed(
                ("action", "condition"),
                action=_closed(("type",), type={"enum": ["Delete"]}),
                condition=_closed(
                    (), numNewerVersions={"type": "integer"}, daysSinceNoncurrentTime={"type": "integer"}
                ),
            )
        ),
    ),
    ("artifactregistry.cnrm.cloud.google.com/v1beta1", "ArtifactRegistryRepository"): _closed(
        ("format", "location"), resourceID=_TEXT, format={"const": "DOCKER"}, location=_TEXT
    ),
    ("firestore.cnrm.cloud.google.com/v1beta1", "FirestoreDatabase"): _closed(
        ("location", "projectRef"), resourceID=_TEXT, location=_TEXT, projectRef=_REMOTE
    ),
    ("iam.cnrm.cloud.google.com/v1beta1", "IAMServiceAccount"): _closed((), resourceID=_TEXT, displayName=_TEXT),
    ("iam.cnrm.cloud.google.com/v1beta1", "IAMCustomRole"): _closed(
        ("title", "permissions"), resourceID=_TEXT, title=_TEXT, stage=_TEXT, permissions=_listed(_TEXT)
    ),
    ("iam.cnrm.cloud.google.com/v1beta1", "IAMPolicyMember"): _closed(
        ("member", "role", "resourceRef"),
        member={"type": "string", "pattern": "^serviceAccount:"},
        role=_TEXT,
        resourceRef={
            "type": "object",
            "required": ["kind", "external"],
            "properties": {"kind": _TEXT, "apiVersion": _TEXT, "external": _TEXT},
            "additionalProperties": False,
        },
    ),
    ("secretmanager.cnrm.cloud.google.com/v1beta1", "SecretManagerSecret"): _closed(
        ("replication",),
        resourceID=_TEXT,
        replication=_closed((), automatic={"type": "boolean"}, auto={"type": "object"}),
    ),
    ("cloudscheduler.cnrm.cloud.google.com/v1beta1", "CloudSchedulerJob"): _closed(
        ("location", "schedule", "pubsubTarget"),
        resourceID=_TEXT,
        location=_TEXT,
        schedule=_TEXT,
        pubsubTarget=_closed(("topicRef",), topicRef=_REMOTE, data=_TEXT),
    ),
}
# Files of tools, not objects of a cluster.
_FILES: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("kustomize.config.k8s.io/v1beta1", "Kustomization"): _closed(
        ("apiVersion", "kind", "resources"),
        apiVersion=_TEXT,
        kind=_TEXT,
        namespace=_TEXT,
        resources=_listed(_TEXT),
        labels=_listed(_closed(("pairs",), pairs=_TEXTS, includeSelectors={"type": "boolean"})),
        configMapGenerator=_listed(_closed(("name", "literals"), name=_TEXT, literals=_listed(_TEXT))),
        patches=_listed(_closed(("target", "patch"), target={"type": "object"}, patch=_TEXT)),
    ),
}


def find_problems(documents: Iterable[Any], *, version: str = KUBERNETES_VERSION, hardened: bool = True) -> list[str]:
    """Return what is wrong with Kubernetes objects, one sentence each, by schema and restricted Pod Security.

    Args:
        documents: objects as they would be applied; unknown fields and kinds are wrong too.
        version: of Kubernetes, whose schemas are used.
        hardened: as of `pod_security.find_violations`.

    Raises:
        ConfigurationError: kubernetes-validate is not installed.
    """
    problems = []
    for position, document in enumerate(documents, 1):
        name = describe(document, position)
        problems += [f"{name}: {problem}" for problem in _check_schema(document, version)]
        if isinstance(document, Mapping):
            problems += [f"{name}: {problem}" for problem in find_violations(document, hardened=hardened)]
    return problems


def describe(document: Any, position: int = 1) -> str:
    """Return kind and name of an object, for people."""
    if not isinstance(document, Mapping):
        return f"document {position}"
    metadata = document.get("metadata")
    name = metadata.get("name", "?") if isinstance(metadata, Mapping) else "?"
    return f"{document.get('kind', '?')} {name}"


def _check_schema(document: Any, version: str) -> list[str]:
    if not isinstance(document, Mapping):
        return [f"is {type(document).__name__}, expected an object"]
    key = (document.get("apiVersion"), document.get("kind"))
    if not all(isinstance(part, str) for part in key):
        return ["apiVersion and kind are needed"]
    if key in _FILES:
        return _check(document, _FILES[key])  # type: ignore[index]
    if key in _CUSTOM:
        wrapped = _closed(("apiVersion", "kind", "metadata"), apiVersion=_TEXT, kind=_TEXT, metadata=_METADATA)
        wrapped["properties"]["spec"] = _CUSTOM[key]  # type: ignore[index]
        if _CUSTOM[key].get("required"):  # type: ignore[index]
            wrapped["required"].append("spec")
        return _check(document, wrapped)
    return _check_builtin(document, version)


def _check(document: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    errors = sorted(
        _jsonschema().Draft202012Validator(schema).iter_errors(document), key=lambda error: list(map(str, error.path))
    )
    return [f"{'.'.join(map(str, error.path)) or 'object'}: {error.message[:200]}" for error in errors]


def _check_builtin(document: Mapping[str, Any], version: str) -> list[str]:
    validator = _builtin_validator(str(document["apiVersion"]), str(document["kind"]), version)
    if isinstance(validator, str):
        return [validator]
    errors = sorted(validator.iter_errors(document), key=lambda error: list(map(str, error.path)))
    return [f"{'.'.join(map(str, error.path)) or 'object'}: {error.message[:200]}" for error in errors]


@cache
def _builtin_validator(api_version: str, kind: str, version: str) -> Any:
    """Return the validator of a kind, or a sentence when Kubernetes has no such kind.

    Kept, since reading the definitions takes longer than a check.
    """
    try:
        from kubernetes_validate import utils
    except ImportError as error:
        raise _missing() from error
    from referencing import Registry, Resource

    release = [found for found in utils.all_versions() if utils.major_minor(found) == version]
    if not release:
        known = ", ".join(utils.major_minor(found) for found in utils.all_versions())
        raise ConfigurationError(f"no schemas of Kubernetes {version!r}: kubernetes-validate knows {known}")
    # A group is known by its first label: rbac.authorization.k8s.io/v1 is rbac-v1.
    group, _, last = api_version.rpartition("/")
    folder = f"kubernetes-json-schema/v{release[-1]}-local-strict"
    name = f"{kind.lower()}-{group.split('.')[0]}-{last}" if group else f"{kind.lower()}-{last}"
    try:
        schema = utils.schema_contents(f"{folder}/{name}.json", version)
    except (FileNotFoundError, utils.InvalidSchemaError):
        return f"Kubernetes {version} has no {kind} in {api_version}"
    registry = Registry().with_resources(
        (resource.id() or "", resource) for resource in (Resource.from_contents(schema), _definitions(folder, version))
    )
    return _jsonschema().Draft202012Validator(schema, registry=registry)


@cache
def _definitions(folder: str, version: str) -> Any:
    from kubernetes_validate import utils
    from referencing import Resource

    return Resource.from_contents(utils.schema_contents(f"{folder}/_definitions.json", version))


def _jsonschema() -> Any:
    try:
        return import_module("jsonschema")
    except ImportError as error:
        raise _missing() from error


def _missing() -> ConfigurationError:
    return ConfigurationError("manifests cannot be checked without kubernetes-validate: pip install 'dry-work[deploy]'")
