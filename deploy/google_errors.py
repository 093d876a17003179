"""Google's exceptions as the service's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from google.api_core import exceptions as api
from google.auth import exceptions as auth

from deploy.errors import (
    AlreadyExistsError,
    ConflictError,
    DeployError,
    InternalError,
    NotFoundError,
    OutcomeUnknownError,
    UnavailableError,
)

# Answers after which the request may or may not have been carried out.
_UNKNOWN = (api.GatewayTimeout, api.InternalServerError, api.BadGateway, api.Cancelled, api.Unknown, api.DataLoss)


@contextlib.contextmanager
def mapped(part: str, *, writes: bool = False, versions: bool = False) -> Iterator[None]:
    """Raise what Google's client raises as an error of the service, chained.

    Args:
        part: what was called, as people know it: Cloud Build, Firestore.
        writes: whether a lost answer leaves open what happened.
        versions: whether a failed precondition means that somebody else wrote in between.
    """
    try:
        yield
    except DeployError:
        raise
    except Exception as error:
        raise _translate(part, error, writes=writes, versions=versions) from error


def _translate(part: str, error: Exception, *, writes: bool, versions: bool) -> DeployError:
    if isinstance(error, api.RetryError) and isinstance(error.cause, Exception):
        return _translate(part, error.cause, writes=writes, versions=versions)
    said = _shorten(getattr(error, "message", "") or str(error))
    if isinstance(error, api.AlreadyExists):
        return AlreadyExistsError(f"{part}: {said}")
    if versions and isinstance(error, api.PreconditionFailed | api.FailedPrecondition | api.Aborted | api.Conflict):
        return ConflictError(f"{part}: changed meanwhile; call again ({said})")
    if isinstance(error, api.NotFound):
        return NotFoundError(f"{part}: {said}")
    if isinstance(error, api.Forbidden | api.Unauthorized | auth.RefreshError):
        return InternalError(f"{part} refuses the service's account: give it the roles that it needs ({said})")
    if isinstance(error, auth.DefaultCredentialsError):
        return InternalError(f"{part}: the service has no Google Cloud credentials")
    if isinstance(error, api.ResourceExhausted | api.TooManyRequests):
        return UnavailableError(f"{part}: a quota is used up; call again later ({said})")
    if isinstance(error, api.BadRequest):
        return InternalError(f"{part} does not take the request: {said}")
    if isinstance(error, api.GoogleAPICallError | api.RetryError | auth.TransportError | OSError):
        if writes and (isinstance(error, _UNKNOWN) or not _was_refused(error)):
            return OutcomeUnknownError(f"{part} did not answer in time; call again ({said})")
        return UnavailableError(f"{part} cannot be reached; call again later ({said})")
    return InternalError(f"{part}: {type(error).__name__}: {said}")


def _was_refused(error: Exception) -> bool:
    """Tell whether no connection was made, so that nothing can have happened."""
    text = str(error).lower()
    return any(words in text for words in ("refused", "failed to connect", "no route", "name resolution", "dns"))


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:299]}…"
