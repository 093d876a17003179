"""What Google documents about names, labels, settings and pages of Pub/Sub, and the refusals that follow. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from dry_work.clock import SECOND_NS
from dry_work.errors import DryWorkError

MIN_ACK_DEADLINE_S = 10
MAX_ACK_DEADLINE_S = 600
MIN_EXPIRATION_TTL_S = 86_400
MIN_RETENTION_S = 600
MAX_RETENTION_S = 31 * 86_400
MIN_DELIVERY_ATTEMPTS = 5
MAX_DELIVERY_ATTEMPTS = 100
DEFAULT_MIN_BACKOFF_S = 10.0
MAX_BACKOFF_S = 600.0
MAX_SNAPSHOT_LIFE_S = 7 * 86_400
MIN_SNAPSHOT_LIFE_S = 3_600
MAX_RESOURCES_PER_PROJECT = 10_000
MAX_SNAPSHOTS_PER_PROJECT = 5_000
MAX_SUBSCRIPTIONS_PER_TOPIC = 10_000
MAX_PAGE_SIZE = 1_000
MAX_LABELS = 64

_RESOURCE_ID = re.compile(r"[A-Za-z][A-Za-z0-9\-_.~+%]{2,254}")
_PROJECT = re.compile(r"projects/([^/]+)")
_ACK_ID = re.compile(r"[0-9a-f]{1,16}-[0-9a-f]{1,16}")


class RequestError(DryWorkError):
    """A request was refused. Handled by the server: the gRPC status named `code` with this text."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def invalid_argument(message: str) -> RequestError:
    """Return the refusal of a request that is wrong whatever the server's state."""
    return RequestError("INVALID_ARGUMENT", message)


def not_found(name: str) -> RequestError:
    """Return the refusal of a request for something that does not exist."""
    return RequestError("NOT_FOUND", f"Resource not found (resource={name}).")


def failed_precondition(message: str) -> RequestError:
    """Return the refusal of a request that the present state does not allow."""
    return RequestError("FAILED_PRECONDITION", message)


class TopicSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a topic is created with. `retention_s` None: the topic itself keeps no message."""

    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    retention_s: float | None = None


class DeadLetterPolicy(msgspec.Struct, frozen=True):
    """Where a message goes that was delivered `max_delivery_attempts` times and never acknowledged."""

    topic_name: str
    max_delivery_attempts: int = MIN_DELIVERY_ATTEMPTS


class RetryPolicy(msgspec.Struct, frozen=True):
    """How long a message rests after a failed delivery: doubling from the least to the greatest backoff."""

    min_backoff_s: float = DEFAULT_MIN_BACKOFF_S
    max_backoff_s: float = MAX_BACKOFF_S

    def backoff_ns(self, failures: int) -> int:
        """Return the rest after this many failed deliveries, at least one, in nanoseconds."""
        return round(min(self.max_backoff_s, self.min_backoff_s * 2.0 ** min(failures - 1, 64)) * SECOND_NS)


class SubscriptionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a subscription is created with. `expiration_ttl_s` None: never."""

    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    filter: str = ""
    ordered: bool = False
    ack_deadline_s: int = MIN_ACK_DEADLINE_S
    retention_s: float = 7 * 86_400.0
    retain_acked: bool = False
    expiration_ttl_s: float | None = 31 * 86_400.0
    dead_letter: DeadLetterPolicy | None = None
    retry: RetryPolicy | None = None


def paginate(names: Sequence[str], page_size: int, page_token: str) -> tuple[list[str], str]:
    """Return one page of sorted names and the token of the next ("" at the end).

    The token is the last name of the page, so that a page neither repeats nor skips when others come and go.
    """
    if page_size < 0:
        raise invalid_argument(f"A page size of {page_size} was given; it must not be negative.")
    size = min(page_size or MAX_PAGE_SIZE, MAX_PAGE_SIZE)
    if page_token and not page_token.startswith("projects/"):
        raise invalid_argument(f"The page token {page_token!r} was not given out by this server.")
    rest = [name for name in names if name > page_token]
    page = rest[:size]
    return page, page[-1] if len(rest) > size else ""


def check_name(name: str, collection: str) -> None:
    """Refuse a name that is not `projects/<id>/<collection>/<id>` by Google's rules."""
    parts = name.split("/")
    if len(parts) != 4 or parts[0] != "projects" or parts[2] != collection or not parts[1]:
        raise invalid_argument(
            f"Invalid [{collection}] name: (name={name}). It must look like projects/PROJECT/{collection}/ID."
        )
    if not _RESOURCE_ID.fullmatch(parts[3]) or parts[3].startswith("goog"):
        raise invalid_argument(
            f"Invalid [{collection}] name: (name={name}). The id has 3 to 255 characters, starts with a letter, "
            "has only letters, digits and -_.~+%, and does not start with goog."
        )


def check_project(name: str) -> str:
    """Return the name of a project, refuse one that is not `projects/<id>`."""
    if not _PROJECT.fullmatch(name):
        raise invalid_argument(f"Invalid [projects] name: (name={name}). It must look like projects/PROJECT.")
    return name


def check_labels(labels: Mapping[str, str]) -> None:
    """Refuse labels that Google Cloud does not take."""
    if len(labels) > MAX_LABELS:
        raise invalid_argument(f"{len(labels)} labels were given; at most {MAX_LABELS} are allowed.")
    for key, value in labels.items():
        if not key or not key[0].isalpha() or not _is_label_text(key):
            raise invalid_argument(
                f"The label key {key!r} is not allowed: 1 to 63 lower-case letters, digits, - and _, a letter first."
            )
        if not _is_label_text(value):
            raise invalid_argument(
                f"The value {value!r} of label {key!r} is not allowed: at most 63 lower-case letters, digits, - and _."
            )


def check_ack_deadline(seconds: int) -> None:
    """Refuse an ack deadline that a subscription or a streaming pull cannot have."""
    if not MIN_ACK_DEADLINE_S <= seconds <= MAX_ACK_DEADLINE_S:
        raise invalid_argument(
            f"An ack deadline of {seconds} seconds was given; it must be "
            f"{MIN_ACK_DEADLINE_S} to {MAX_ACK_DEADLINE_S} seconds."
        )


def check_retention(seconds: float) -> None:
    """Refuse a message retention that a topic or a subscription cannot have."""
    if not MIN_RETENTION_S <= seconds <= MAX_RETENTION_S:
        raise invalid_argument(
            f"A message retention of {seconds:g} seconds was given; it must be "
            f"{MIN_RETENTION_S} to {MAX_RETENTION_S} seconds."
        )


def check_topic_settings(settings: TopicSettings) -> None:
    """Refuse settings that a topic cannot have."""
    check_labels(settings.labels)
    if settings.retention_s is not None:
        check_retention(settings.retention_s)


def check_settings(settings: SubscriptionSettings) -> None:
    """Refuse settings that a subscription cannot have; the filter is read when it is made."""
    check_labels(settings.labels)
    check_ack_deadline(settings.ack_deadline_s)
    check_retention(settings.retention_s)
    if settings.expiration_ttl_s is not None and settings.expiration_ttl_s < MIN_EXPIRATION_TTL_S:
        raise invalid_argument(
            f"An expiration ttl of {settings.expiration_ttl_s:g} seconds was given; it must be at least "
            f"{MIN_EXPIRATION_TTL_S} seconds, or absent for never."
        )
    if settings.dead_letter is not None:
        check_name(settings.dead_letter.topic_name, "topics")
        attempts = settings.dead_letter.max_delivery_attempts
        if not MIN_DELIVERY_ATTEMPTS <= attempts <= MAX_DELIVERY_ATTEMPTS:
            raise RequestError(
                "OUT_OF_RANGE",
                f"A max_delivery_attempts of {attempts} was given; it must be "
                f"{MIN_DELIVERY_ATTEMPTS} to {MAX_DELIVERY_ATTEMPTS}.",
            )
    if settings.retry is not None:
        _check_retry(settings.retry)


def _check_retry(policy: RetryPolicy) -> None:
    for name, seconds in (("minimum_backoff", policy.min_backoff_s), ("maximum_backoff", policy.max_backoff_s)):
        if not 0 <= seconds <= MAX_BACKOFF_S:
            raise invalid_argument(f"A {name} of {seconds:g} seconds was given; it must be 0 to {MAX_BACKOFF_S:g}.")
    if policy.max_backoff_s < policy.min_backoff_s:
        raise invalid_argument(
            f"A maximum_backoff of {policy.max_backoff_s:g} seconds was given; it must be at least the "
            f"minimum_backoff, {policy.min_backoff_s:g} seconds."
        )


def check_update_mask(paths: Sequence[str], kind: str, known: Iterable[str], fixed: Iterable[str]) -> None:
    """Refuse an update mask that is empty or names a field that is unknown or cannot change."""
    if not paths:
        raise invalid_argument(f"The update_mask in the Update{kind}Request must be set and have at least one path.")
    for path in paths:
        if path in fixed:
            raise invalid_argument(
                f"Invalid update_mask in the Update{kind}Request: the field {path!r} of a {kind} cannot be changed."
            )
        if path not in known:
            raise invalid_argument(
                f"Invalid update_mask in the Update{kind}Request: {path!r} is not a field of a {kind}; "
                "paths are whole fields and look like ack_deadline_seconds."
            )


def check_ack_id(ack_id: str) -> None:
    """Refuse an ack id that is not of the form this server gives out."""
    if not _ACK_ID.fullmatch(ack_id):
        raise invalid_argument(f"The ack id {ack_id[:80]!r} is malformed: it was not given out by Pub/Sub.")


def check_quota(existing: Mapping[str, object], name: str, collection: str) -> None:
    """Refuse one more resource in a project that has as many as Google allows."""
    limit = MAX_SNAPSHOTS_PER_PROJECT if collection == "snapshots" else MAX_RESOURCES_PER_PROJECT
    if len(existing) < limit:
        return
    prefix = f"{name.rsplit('/', 2)[0]}/"
    if sum(1 for other in existing if other.startswith(prefix)) >= limit:
        raise RequestError("RESOURCE_EXHAUSTED", f"A project may have {limit} {collection}; {name} is one too many.")


def already_exists(name: str) -> RequestError:
    """Return the refusal to create something that exists."""
    return RequestError("ALREADY_EXISTS", f"Resource already exists in the project (resource={name}).")


def _is_label_text(text: str) -> bool:
    return len(text) <= 63 and text == text.lower() and all(char.isalnum() or char in "-_" for char in text)
