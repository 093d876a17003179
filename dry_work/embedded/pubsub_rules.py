"""What Google documents about names, labels, settings and pages of Pub/Sub, and the refusals that follow. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from dry_work.errors import DryWorkError

MIN_ACK_DEADLINE_S = 10
MAX_ACK_DEADLINE_S = 600
MIN_EXPIRATION_TTL_S = 86_400
MIN_RETENTION_S = 600
MAX_RETENTION_S = 31 * 86_400
MAX_RESOURCES_PER_PROJECT = 10_000
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


class SubscriptionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a subscription is created with. `expiration_ttl_s` None: never.

    Expiration and retention by age are kept and returned, not applied: this server's subscriptions end with it.
    """

    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    filter: str = ""
    ack_deadline_s: int = MIN_ACK_DEADLINE_S
    retention_s: float = 7 * 86_400.0
    expiration_ttl_s: float | None = 31 * 86_400.0


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


def check_settings(settings: SubscriptionSettings) -> None:
    """Refuse settings that a subscription cannot have; the filter is read when it is made."""
    check_labels(settings.labels)
    check_ack_deadline(settings.ack_deadline_s)
    if not MIN_RETENTION_S <= settings.retention_s <= MAX_RETENTION_S:
        raise invalid_argument(
            f"A message retention of {settings.retention_s:g} seconds was given; it must be "
            f"{MIN_RETENTION_S} to {MAX_RETENTION_S} seconds."
        )
    if settings.expiration_ttl_s is not None and settings.expiration_ttl_s < MIN_EXPIRATION_TTL_S:
        raise invalid_argument(
            f"An expiration ttl of {settings.expiration_ttl_s:g} seconds was given; it must be at least "
            f"{MIN_EXPIRATION_TTL_S} seconds, or absent for never."
        )


def check_ack_id(ack_id: str) -> None:
    """Refuse an ack id that is not of the form this server gives out."""
    if not _ACK_ID.fullmatch(ack_id):
        raise invalid_argument(f"The ack id {ack_id[:80]!r} is malformed: it was not given out by Pub/Sub.")


def check_quota(existing: Mapping[str, object], name: str, collection: str) -> None:
    """Refuse one more resource in a project that has as many as Google allows."""
    if len(existing) < MAX_RESOURCES_PER_PROJECT:
        return
    prefix = f"{name.rsplit('/', 2)[0]}/"
    if sum(1 for other in existing if other.startswith(prefix)) >= MAX_RESOURCES_PER_PROJECT:
        raise RequestError(
            "RESOURCE_EXHAUSTED",
            f"A project may have {MAX_RESOURCES_PER_PROJECT} {collection}; {name} is one too many.",
        )


def already_exists(name: str) -> RequestError:
    """Return the refusal to create something that exists."""
    return RequestError("ALREADY_EXISTS", f"Resource already exists in the project (resource={name}).")


def _is_label_text(text: str) -> bool:
    return len(text) <= 63 and text == text.lower() and all(char.isalnum() or char in "-_" for char in text)
