"""Calls the functions of a deploy service over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from dry_work.errors import ConfigError, DryWorkError

TIMEOUT_S = 60.0
_MAX_ANSWER_BYTES = 32 << 20
# What the caller has to change, told with exit code 2; everything else is a failure.
_USAGE = ("UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT", "ALREADY_EXISTS", "NOT_FOUND")


class RefusedError(ConfigError):
    """The service refuses the call as it is; `kind` says why."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class DeployClient:
    """One deploy service.

    Args:
        url: base of its functions.
        token: sent with each call, and to nobody else: redirects are not followed.
    """

    def __init__(self, url: str, token: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._timeout_s = timeout_s
        self._opener = urllib.request.build_opener(_NoRedirect)

    def call(self, function: str, **data: Any) -> dict[str, Any]:
        """Call a function in its callable form and return its answer.

        Raises:
            RefusedError: the caller has to change something.
            DryWorkError: it failed, or the service cannot be reached.
        """
        answer = self._post(function, json.dumps({"data": data}).encode(), "application/json")
        result = answer.get("result")
        if not isinstance(result, dict):
            raise DryWorkError(f"{self.url}: the answer of {function} is not that of a deploy service")
        return result

    def upload(self, agent_id: str, archive: bytes) -> dict[str, Any]:
        """Send an archive and return what it was found to be."""
        query = urllib.parse.urlencode({"agentId": agent_id})
        return self._post(f"uploadAgentSource?{query}", archive, "application/zip")

    def _post(self, path: str, body: bytes, content_type: str) -> dict[str, Any]:
        headers = {"Content-Type": content_type, "Authorization": f"Bearer {self._token}"}
        # The address was checked when it was given: https, or this machine.
        request = urllib.request.Request(f"{self.url}/{path}", body, headers, method="POST")  # noqa: S310
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                return self._parse(answer.read(_MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(_MAX_ANSWER_BYTES)
            self._raise(error.code, text)
            raise
        except (OSError, urllib.error.URLError) as error:
            reason = getattr(error, "reason", error)
            raise DryWorkError(f"the deploy service {self.url} cannot be reached: {reason}") from error

    def _parse(self, text: bytes) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise DryWorkError(f"{self.url}: this is no deploy service: its answer is no JSON object")
        return found

    def _raise(self, status: int, text: bytes) -> None:
        try:
            found = self._parse(text)
        except DryWorkError:
            raise DryWorkError(f"{self.url}: this is no deploy service: HTTP {status}") from None
        error = found.get("error")
        if isinstance(error, dict):
            kind, message = str(error.get("status", "")), str(error.get("message", ""))
        else:
            kind = str(found.get("status") or _PLAIN_KINDS.get(status, "INTERNAL"))
            message = str(found.get("message") or error)
        if kind in _USAGE:
            raise RefusedError(kind, message)
        raise DryWorkError(message)


_PLAIN_KINDS = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 404: "PERMISSION_DENIED"}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could send the token elsewhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None
