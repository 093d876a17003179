"""The Kubernetes objects of an agent and of its namespace, from the templates in k8s/. Pure but for `read_template`.

A template is parsed first and filled after that, value by value: what comes from outside stays a text at its place,
whatever it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from deploy.errors import ConfigurationError, InvalidRequestError
from deploy.ids import MAX_NORMALISED_LENGTH, label_value
from deploy.settings import DeploySettings

AGENT_TEMPLATE = "PaperTrading.yaml"
BY_NAME_TEMPLATE = "PaperTrading.fqdn.yaml"
NAMESPACE_TEMPLATE = "namespace.yaml"
NAMESPACE = "trading-agents"  # as the templates have it
SECRET = "alpaca-credentials"  # the name of a Secret, as the templates have it  # noqa: S105
CONFIG = "trading-config"
CREATOR_ANNOTATION = "dry-work/creator-id"  # the id as it is, where the label cannot hold it

_HERE = Path(__file__).parent
# Beside the package where it is installed or staged, in k8s/ of the repository otherwise.
_FOLDERS = (_HERE / "k8s", _HERE.parent / "k8s")

_PLACEHOLDER = re.compile(r"\$\{([A-Z_]+)\}")
_AGENT_ID = re.compile(rf"(?=.{{1,{MAX_NORMALISED_LENGTH}}}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_PROJECT = re.compile(r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")
_IMAGE = re.compile(
    r"[a-z0-9.-]+(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+"
    r"((:(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?P<digest>@sha256:[0-9a-f]{64})|:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})"
)
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class AgentManifest:
    """Makes the objects of agents with the settings of a service."""

    def __init__(self, settings: DeploySettings, *, by_name: bool = False) -> None:
        self._settings = settings
        self._by_name = by_name

    def __call__(self, *, normalised: str, user_id: str, image: str) -> tuple[list[dict[str, Any]], str]:
        """Return the objects of an agent, and the same as YAML."""
        documents = render_agent(
            agent_id=normalised,
            creator_id=user_id,
            project_id=self._settings.project,
            image=image,
            namespace=self._settings.namespace,
            secret_name=self._settings.secret_name,
            by_name=self._by_name,
        )
        return documents, to_yaml(documents)


def render_agent(
    *,
    agent_id: str,
    creator_id: str,
    project_id: str,
    image: str,
    namespace: str = NAMESPACE,
    secret_name: str = SECRET,
    by_name: bool = False,
) -> list[dict[str, Any]]:
    """Return the Kubernetes objects of an agent: volume claim, network policy, Deployment.

    Args:
        agent_id: the normalised id.
        creator_id: any text; a label takes what it can of it, an annotation all of it where that is not the same.
        project_id: of Google Cloud.
        image: with the tag or the digest of its build; `latest` is refused.
        by_name: allow Google's APIs and Alpaca by name instead of HTTPS everywhere; needs GKE's FQDN policies.

    Raises:
        InvalidRequestError: naming what is wrong.
    """
    _check("agent id", agent_id, _AGENT_ID, f"its normalised form: a-z, 0-9 and -, 1 to {MAX_NORMALISED_LENGTH}")
    _check("project", project_id, _PROJECT, "the id of a project, such as my-project")
    _check("namespace", namespace, _NAME, "a-z, 0-9 and -")
    _check("Secret", secret_name, _NAME, "a-z, 0-9 and -")
    match = _IMAGE.fullmatch(image)
    if match is None or (image.endswith(":latest") and not match["digest"]):
        raise InvalidRequestError(f"image {image!r}: expected the tag or the digest of a build, and not latest")
    values = {"AGENT_ID": agent_id, "CREATOR_ID": label_value(creator_id), "PROJECT_ID": project_id}
    documents = [_fill(document, values) for document in read_template(AGENT_TEMPLATE)]
    for document in documents:
        _rename(document, namespace, secret_name)
        if document["kind"] == "Deployment":
            document["spec"]["template"]["spec"]["containers"][0]["image"] = image
            if values["CREATOR_ID"] != creator_id:
                document["metadata"].setdefault("annotations", {})[CREATOR_ANNOTATION] = creator_id
            if not values["CREATOR_ID"]:
                del document["metadata"]["labels"]["creator-id"]
    if by_name:
        for document in documents:
            if document["kind"] == "NetworkPolicy":
                document["spec"]["egress"] = [rule for rule in document["spec"]["egress"] if not _is_open_https(rule)]
        policies = [_fill(document, values) for document in read_template(BY_NAME_TEMPLATE)]
        for policy in policies:
            _rename(policy, namespace, secret_name)
        documents[-1:-1] = policies
    return documents


def render_namespace(
    *,
    project_id: str,
    namespace: str = NAMESPACE,
    config: Mapping[str, str] | None = None,
    account: str = "",
) -> list[dict[str, Any]]:
    """Return what agents share in a cluster: namespace, quota, limits, default policy, service account, configuration.

    Args:
        config: entries of the ConfigMap `trading-config` that differ from the template's.
        account: address of the Google service account; empty: the template's.

    Raises:
        InvalidRequestError: naming what is wrong.
    """
    _check("project", project_id, _PROJECT, "the id of a project, such as my-project")
    _check("namespace", namespace, _NAME, "a-z, 0-9 and -")
    documents = [_fill(document, {"PROJECT_ID": project_id}) for document in read_template(NAMESPACE_TEMPLATE)]
    for document in documents:
        if document["kind"] == "Namespace":
            document["metadata"]["name"] = namespace
        else:
            _rename(document, namespace, SECRET)
        if document["kind"] == "ConfigMap":
            document["data"].update(config or {})
        if document["kind"] == "ServiceAccount" and account:
            document["metadata"]["annotations"]["iam.gke.io/gcp-service-account"] = account
    return documents


def read_template(name: str) -> list[dict[str, Any]]:
    """Return the documents of a template of k8s/, placeholders unfilled.

    Raises:
        ConfigurationError: it was not shipped with the package, or is no YAML.
    """
    return deepcopy(_load(name))


@cache
def _load(name: str) -> list[dict[str, Any]]:
    for folder in _FOLDERS:
        path = folder / name
        if path.is_file():
            try:
                return parse_yaml(path.read_text(encoding="utf-8"))
            except yaml.YAMLError as error:
                raise ConfigurationError(f"{path}: no YAML: {error}") from error
    raise ConfigurationError(f"the template {name} is not there: expected it in {' or '.join(map(str, _FOLDERS))}")


def parse_yaml(text: str) -> list[dict[str, Any]]:
    """Return the documents of a YAML text, without empty ones."""
    return [document for document in yaml.load_all(text, Loader=_Loader) if document]


def to_yaml(documents: Iterable[Mapping[str, Any]]) -> str:
    """Return Kubernetes objects as YAML, `---` between them; texts that look like other values are quoted."""
    return yaml.dump_all(
        [dict(document) for document in documents],
        Dumper=_Dumper,
        sort_keys=False,
        width=120,
        explicit_start=True,
        allow_unicode=False,
    )


class _Loader(yaml.SafeLoader):
    """Reads YAML as Kubernetes does: `=` is a text."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: str(node.value))


class _Dumper(yaml.SafeDumper):
    """Writes what every reader of YAML understands alike: no anchors, and no bare text that is a number to somebody."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# Kubernetes reads YAML 1.1 with Go's rules: 1e3, 0o17, 1_000 and y are no texts there.
_AMBIGUOUS = re.compile(
    r"[-+.]?[0-9][0-9a-zA-Z_.:+-]*|[yYnN]|(?i:yes|no|on|off|true|false|null|~|=|<<)|[-+]?\.(?i:inf|nan)"
)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "'" if _AMBIGUOUS.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _fill(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _fill(entry, values) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_fill(entry, values) for entry in value]
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda match: _look_up(match[1], values), value)
    return value


def _look_up(name: str, values: Mapping[str, str]) -> str:
    if name not in values:
        raise ConfigurationError(f"the template has a placeholder ${{{name}}}; known are {', '.join(sorted(values))}")
    return values[name]


def _rename(document: dict[str, Any], namespace: str, secret_name: str) -> None:
    document["metadata"]["namespace"] = namespace
    if document["kind"] == "Deployment":
        for container in document["spec"]["template"]["spec"]["containers"]:
            for variable in container.get("env", ()):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference is not None and reference["name"] == SECRET:
                    reference["name"] = secret_name


def _is_open_https(rule: Mapping[str, Any]) -> bool:
    blocks = [peer.get("ipBlock", {}).get("cidr") for peer in rule.get("to", ())]
    return "0.0.0.0/0" in blocks  # a range, not an address to bind to


def _check(what: str, text: str, pattern: re.Pattern[str], allowed: str) -> None:
    if not pattern.fullmatch(text):
        raise InvalidRequestError(f"{what} {ascii(text)[:80]}: expected {allowed}")
