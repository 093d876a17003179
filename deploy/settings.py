"""Settings of the deploy service, from the environment. Pure.

Nothing is hard-coded that belongs to a project. An empty variable counts as unset; a value that cannot be used, or a
`DEPLOY_` variable that nobody reads, is an error at the start.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.errors import ConfigurationError

MIB = 1 << 20

_PROJECT = re.compile(r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")
_REGION = re.compile(r"[a-z]+(-[a-z]+)*\d+")  # us-central1, northamerica-northeast1; a zone (us-central1-a) is none
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_TOPIC = re.compile(r"[A-Za-z][A-Za-z0-9._~+%-]{2,254}")
_IMAGE = re.compile(
    r"[a-z0-9.-]+(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_IMAGE_PREFIX = re.compile(r"[a-z0-9.-]+(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+")
_ACCOUNT = re.compile(r"[a-z0-9-]+@[a-z0-9.-]+")
_ORIGIN = re.compile(r"\*|https?://[A-Za-z0-9.-]+(:\d+)?")
_DURATION = re.compile(r"(\d{1,6})(s|m|h)?")


@dataclass(frozen=True, kw_only=True)
class DeploySettings:
    """What the service works with. Holds no secret."""

    project: str
    region: str = "us-central1"
    cluster: str = "trading-cluster"
    namespace: str = "trading-agents"
    bucket: str = "agent-source-code"
    collection: str = "agents"  # of the Firestore documents
    database: str = "(default)"  # of Firestore
    image_prefix: str = ""  # empty: gcr.io/<project>
    runtime_image: str = ""  # that agents are put on; empty: <image_prefix>/dry-work:latest
    secret_name: str = "alpaca-credentials"  # the name of a Secret of the namespace, not a secret  # noqa: S105
    market_data_topic: str = "market-data"
    crypto_data_topic: str = "crypto-data"
    build_account: str = ""  # service account of builds; empty: the project's default
    build_timeout_s: int = 300
    rollout_timeout_s: int = 600
    call_timeout_s: float = 10.0  # of one call to a part
    upload_expiry_s: int = 900  # of a signed address
    max_archive_bytes: int = 10 * MIB
    max_sources: int = 20  # that are remembered of an agent, for rolling back
    audiences: tuple[str, ...] = ()  # of Google identity tokens; none: only Firebase tokens are accepted
    cors_origins: tuple[str, ...] = ("*",)

    @property
    def images(self) -> str:
        """Where the images of agents are."""
        return self.image_prefix or f"gcr.io/{self.project}"

    @property
    def base_image(self) -> str:
        """The image that an agent's files are put on."""
        return self.runtime_image or f"{self.images}/dry-work:latest"

    def agent_image(self, normalised: str) -> str:
        """Return the name of an agent's image, without tag."""
        return f"{self.images}/trading-agent-{normalised}"


# Variable of each field, the pattern of its value and what is told when it does not fit.
_TEXTS: dict[str, tuple[tuple[str, ...], re.Pattern[str], str]] = {
    "project": (("GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT"), _PROJECT, "the id of a project, such as my-project"),
    "region": (("CLOUDSDK_COMPUTE_REGION",), _REGION, "a region, such as us-central1 (not a zone)"),
    "cluster": (("CLOUDSDK_CONTAINER_CLUSTER",), _LABEL, "the name of a cluster: a-z, 0-9 and -"),
    "namespace": (("DEPLOY_NAMESPACE",), _LABEL, "a namespace: a-z, 0-9 and -"),
    "bucket": (("DEPLOY_BUCKET",), _BUCKET, "the name of a bucket, without gs://"),
    "collection": (("DEPLOY_COLLECTION",), re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}"), "the name of a collection"),
    "database": (("DEPLOY_DATABASE",), re.compile(r"\(default\)|[a-z][a-z0-9-]{3,62}"), "the name of a database"),
    "image_prefix": (("DEPLOY_IMAGE_PREFIX",), _IMAGE_PREFIX, "a registry and a path in it, such as gcr.io/my-project"),
    "runtime_image": (("DEPLOY_RUNTIME_IMAGE",), _IMAGE, "an image, best with a digest: …/dry-work@sha256:…"),
    "secret_name": (("DEPLOY_SECRET_NAME",), _LABEL, "the name of a Secret: a-z, 0-9 and -"),
    "market_data_topic": (("MARKET_DATA_TOPIC",), _TOPIC, "the name of a topic, without projects/"),
    "crypto_data_topic": (("CRYPTO_DATA_TOPIC",), _TOPIC, "the name of a topic, without projects/"),
    "build_account": (("DEPLOY_BUILD_ACCOUNT",), _ACCOUNT, "the address of a service account"),
}
_DURATIONS = {
    "build_timeout_s": ("DEPLOY_BUILD_TIMEOUT", 60, 86_400),
    "rollout_timeout_s": ("DEPLOY_ROLLOUT_TIMEOUT", 30, 3_600),
    "call_timeout_s": ("DEPLOY_CALL_TIMEOUT", 1, 60),
    "upload_expiry_s": ("DEPLOY_UPLOAD_EXPIRY", 60, 3_600),
}
_NUMBERS = {
    "max_archive_bytes": ("DEPLOY_MAX_ARCHIVE_BYTES", 1_024, 10 * MIB),
    "max_sources": ("DEPLOY_MAX_SOURCES", 2, 100),
}
_LISTS: dict[str, tuple[str, re.Pattern[str], str]] = {
    "audiences": ("DEPLOY_AUDIENCES", re.compile(r"[\x21-\x2b\x2d-\x7e]{1,300}"), "audiences, separated by commas"),
    "cors_origins": ("DEPLOY_CORS_ORIGINS", _ORIGIN, "* or origins such as https://example.com, separated by commas"),
}
_OTHERS = ("DEPLOY_SERVICE_FACTORY",)  # read by `deploy.factory`


def variables() -> tuple[str, ...]:
    """Return the name of every variable that is read."""
    names = [name for names, _, _ in _TEXTS.values() for name in names]
    names += [entry[0] for table in (_DURATIONS, _NUMBERS, _LISTS) for entry in table.values()]
    return (*names, *_OTHERS)


def read_settings(environment: Mapping[str, str]) -> DeploySettings:
    """Return the settings that an environment describes.

    Raises:
        ConfigurationError: naming the variable, the value and what is allowed.
    """
    known = variables()
    for name in environment:
        if name.startswith("DEPLOY_") and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}"
            raise ConfigurationError(f"{name} is no setting of the deploy service{hint}")
    found: dict[str, object] = {}
    for field, (names, pattern, allowed) in _TEXTS.items():
        text = _read(environment, names)
        if text:
            _check(names[0], text, pattern, allowed)
            found[field] = text
    for field, (name, low, high) in _DURATIONS.items():
        text = environment.get(name, "").strip()
        if text:
            found[field] = _parse_duration(name, text, low, high)
    for field, (name, low, high) in _NUMBERS.items():
        text = environment.get(name, "").strip()
        if text:
            if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
                raise ConfigurationError(f"{name} {text!r}: expected a whole number from {low} to {high}")
            found[field] = int(text)
    for field, (name, pattern, allowed) in _LISTS.items():
        parts = [part.strip() for part in environment.get(name, "").split(",") if part.strip()]
        for part in parts:
            _check(name, part, pattern, allowed)
        if parts:
            found[field] = tuple(parts)
    if "project" not in found:
        raise ConfigurationError("no Google Cloud project: set GOOGLE_CLOUD_PROJECT")
    return DeploySettings(**found)  # type: ignore[arg-type]


def _read(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    given = {name: environment[name].strip() for name in names if environment.get(name, "").strip()}
    if len(set(given.values())) > 1:
        raise ConfigurationError(f"{' and '.join(given)} name the same thing and differ: set one of them")
    return next(iter(given.values()), "")


def _check(name: str, text: str, pattern: re.Pattern[str], allowed: str) -> None:
    if not pattern.fullmatch(text):
        raise ConfigurationError(f"{name} {text!r}: expected {allowed}")


def _parse_duration(name: str, text: str, low_s: int, high_s: int) -> int:
    match = _DURATION.fullmatch(text)
    seconds = int(match[1]) * {"m": 60, "h": 3_600}.get(match[2], 1) if match else -1
    if not low_s <= seconds <= high_s:
        raise ConfigurationError(f"{name} {text!r}: expected {low_s}s to {high_s}s, for example {low_s}s or 5m")
    return seconds
