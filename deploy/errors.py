"""Every exception that the deploy service raises on purpose.

DeployError                  base; `kind` is the status of the answer, the text is a sentence to act on
├── UnauthenticatedError     no token, or a bad one
├── InvalidRequestError      the request cannot be carried out as it is
│   ├── InvalidIdError       the agent id is missing or not usable
│   └── InvalidSourceError   the archive is not usable; `problems` lists every finding
├── NotPermittedError        the agent is unknown or not the caller's; which of the two is not told
├── NotFoundError            something other than the agent is not there
├── AlreadyExistsError       the id belongs to somebody
├── PreconditionError        not in this state: not funded, already deployed, nothing to roll back to
├── ConflictError            somebody else wrote in between; the service reads again and retries
├── UnavailableError         a part is down or slow; the same call may work later
│   └── OutcomeUnknownError  the request may have been carried out; looked up before it is sent again
├── ConfigurationError       a setting of the service is wrong; fix it and start again
└── InternalError            anything else
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

Kind = Literal[
    "UNAUTHENTICATED",
    "INVALID_ARGUMENT",
    "PERMISSION_DENIED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "FAILED_PRECONDITION",
    "INTERNAL",
    "UNAVAILABLE",
]


class DeployError(Exception):
    """Base of every error of the deploy service. Handled by the HTTP layer, which answers `kind` and the sentence."""

    kind: ClassVar[Kind] = "INTERNAL"


class UnauthenticatedError(DeployError):
    """No identity token, or one that does not hold. Answered with 401."""

    kind = "UNAUTHENTICATED"


class InvalidRequestError(DeployError):
    """The request cannot be carried out as it is. Answered with 400."""

    kind = "INVALID_ARGUMENT"


class InvalidIdError(InvalidRequestError):
    """The agent id is missing or not usable. Answered with 400."""


class InvalidSourceError(InvalidRequestError):
    """The archive is not usable. Answered with 400.

    Args:
        problems: every finding, one sentence each, with file and line where it has them; at least one.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


class NotPermittedError(DeployError):
    """The agent is unknown or not the caller's; which of the two is not told. Answered with 403 (plain form: 404)."""

    kind = "PERMISSION_DENIED"


class NotFoundError(DeployError):
    """Something other than the agent is not there: a build, a stored source. Answered with 404."""

    kind = "NOT_FOUND"


class AlreadyExistsError(DeployError):
    """The id, or what it becomes in Kubernetes names, is taken. Answered with 409."""

    kind = "ALREADY_EXISTS"


class PreconditionError(DeployError):
    """Not in this state: not funded, already deployed, nothing to roll back to. Answered with 400."""

    kind = "FAILED_PRECONDITION"


class ConflictError(DeployError):
    """A document or object was changed by somebody else meanwhile. The service reads again and retries, a few times."""

    kind = "UNAVAILABLE"


class UnavailableError(DeployError):
    """A part that the service needs is down or slow. The same call may work later."""

    kind = "UNAVAILABLE"


class OutcomeUnknownError(UnavailableError):
    """The request may have been carried out. The service looks it up before it sends it again."""


class ConfigurationError(DeployError):
    """A setting of the service is missing or wrong. Told at the start, naming variable, value and what is allowed."""


class InternalError(DeployError):
    """Anything else. Answered with 500."""
