"""What the parts of a setup have in common: a step in its forms, names, addresses. Pure."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deploy.errors import ConfigurationError
from deploy.settings import DeploySettings

OTHER_TOPICS = ("news-data", "order-updates")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that a project needs.

    `look` ends with 0 when it is there; without one, `create` may be run again and again. `create` reads `stdin`.
    """

    title: str
    create: tuple[str, ...]
    look: tuple[str, ...] = ()
    stdin: str = ""
    from_environment: tuple[str, ...] = ()  # variables that `create` needs the values of; see `build_secret`
    shown: str = ""  # the line for people, where it is another than `create`
    is_function: bool = False
    terraform: tuple[tuple[str, str, Mapping[str, Any]], ...] = ()  # type, name, arguments
    connector: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    @property
    def line(self) -> str:
        """The command line for a shell."""
        return self.shown or shlex.join(self.create)


class Maker:
    """Describes parts of a project in their forms."""

    def __init__(self, settings: DeploySettings) -> None:
        self.settings = settings
        self.project = settings.project
        self.topics = tuple(dict.fromkeys((settings.market_data_topic, settings.crypto_data_topic, *OTHER_TOPICS)))
        self.repository_place = parse_repository(settings)

    def email(self, name: str) -> str:
        if name == "agent-build" and self.settings.build_account:
            return self.settings.build_account
        domain, _, project = self.project.rpartition(":")
        return f"{name}@{project}.{domain + '.' if domain else ''}iam.gserviceaccount.com"

    def gcloud(self, *words: str) -> tuple[str, ...]:
        return ("gcloud", *words, "--project", self.project, "--quiet")

    def custom(self, group: str, kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "apiVersion": f"{group}.cnrm.cloud.google.com/v1beta1",
            "kind": kind,
            "metadata": {
                "name": slug(name),
                "annotations": {"cnrm.cloud.google.com/project-id": self.project},
            },
            "spec": dict(spec),
        }


_ARTIFACT_HOST = re.compile(r"(?P<location>[a-z0-9-]+)-docker\.pkg\.dev")
_GCR_LOCATIONS = {"gcr.io": "us", "us.gcr.io": "us", "eu.gcr.io": "europe", "asia.gcr.io": "asia"}


def parse_repository(settings: DeploySettings) -> tuple[str, str] | None:
    """Return location and name of the repository in Artifact Registry; None when images are kept elsewhere."""
    host, _, path = settings.images.partition("/")
    if host in _GCR_LOCATIONS:  # served by a repository that is named like the host
        return _GCR_LOCATIONS[host], host
    match = _ARTIFACT_HOST.fullmatch(host)
    if match is None:
        return None
    parts = path.split("/")
    if len(parts) < 2:
        raise ConfigurationError(
            f"DEPLOY_IMAGE_PREFIX {settings.images!r}: expected project and repository after {host}"
        )
    return match["location"], parts[1]


def slug(text: str, separator: str = "-") -> str:
    """Return `text` as a name of Kubernetes or Terraform; what does not fit is made up for by a digest."""
    lowered = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", text).lower()
    slug = re.sub(r"[^a-z0-9]+", separator, lowered).strip(separator)
    if len(slug) > 60:
        slug = f"{slug[:50].strip(separator)}{separator}{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return slug if slug[:1].isalpha() else f"r{separator}{slug}"
