"""The service's functions over HTTP: both request forms, one error shape, CORS. Pure but for the service that it calls.

The callable form is that of Firebase's clients: `{"data": …}` is answered by `{"result": …}` or `{"error": …}`. Any
other body is the plain form. The answer has the form of the request.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deploy.answers import Answer
from deploy.errors import (
    DeployError,
    InvalidIdError,
    InvalidRequestError,
    InvalidSourceError,
    NotPermittedError,
    UnauthenticatedError,
)
from deploy.identity import authenticate
from deploy.ports import Caller, TokenVerifier
from deploy.service import DeployService

MAX_JSON_BYTES = 64 << 10
_ZIP_TYPES = ("application/zip", "application/x-zip-compressed", "application/octet-stream")
_ALIASES = {"beginPaperTrading": "deployTradingAgent", "stopPaperTrading": "stopTradingAgent"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One HTTP request. Names of headers are in lower case."""

    method: str
    body: bytes = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_archive(self) -> bool:
        """Whether its body is a zip by its type."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower() in _ZIP_TYPES


@dataclass(frozen=True, kw_only=True)
class Response:
    """One HTTP response."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


Operation = Callable[[DeployService, Caller, Mapping[str, Any], Request], Answer]


class Api:
    """Serves the functions of the deploy service.

    Args:
        service: the service.
        verifier: tells who calls.
        monotonic: seconds, for the durations in the log.
    """

    def __init__(
        self,
        service: DeployService,
        verifier: TokenVerifier,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.service = service
        self._verifier = verifier
        self._monotonic = monotonic

    @property
    def max_body_bytes(self) -> int:
        """The longest body that any function takes; a caller may stop reading after it."""
        return max(self.service.settings.max_archive_bytes, MAX_JSON_BYTES)

    def handle(self, function: str, request: Request) -> Response:
        """Answer a call of a function by its name or alias; never raises."""
        started_s = self._monotonic()
        if request.method == "OPTIONS":
            return self._preflight(request)
        response, caller, error = self._answer(_ALIASES.get(function, function), request)
        level = logging.ERROR if response.status >= 500 else logging.INFO
        _log.log(
            level,
            "%s %d %.0f ms user=%a%s",
            function,
            response.status,
            (self._monotonic() - started_s) * 1000,
            caller.user_id if caller else "",
            f" error={error}" if error else "",
        )
        return Response(status=response.status, body=response.body, headers={**response.headers, **self._cors(request)})

    def _answer(self, function: str, request: Request) -> tuple[Response, Caller | None, str]:
        callable_form, data, unreadable = _read_body(request)
        caller: Caller | None = None
        try:
            if request.method != "POST":
                return _method_not_allowed(), None, ""
            caller = authenticate(self._verifier, request.headers.get("authorization", ""))
            operation = OPERATIONS.get(function)
            if operation is None:
                raise InvalidRequestError(f"there is no function {function!a}")
            if unreadable:
                raise InvalidRequestError(unreadable)
            answer = operation(self.service, caller, data, request)
            return _json(200, {"result": answer} if callable_form else answer), caller, ""
        except DeployError as error:
            return encode_error(error, callable_form=callable_form), caller, str(error)
        except Exception as error:
            # What it says may hold anything; the log is for the operator only.
            _log.exception("%s failed", function)
            told = DeployError("the service failed; its operator finds the reason in its log")
            return encode_error(told, callable_form=callable_form), caller, type(error).__name__

    def _preflight(self, request: Request) -> Response:
        allowed = self._cors(request)
        if "Access-Control-Allow-Origin" in allowed:
            allowed = {
                **allowed,
                "Access-Control-Allow-Methods": "POST",
                "Access-Control-Allow-Headers": "authorization, content-type",
                "Access-Control-Max-Age": "3600",
            }
        return Response(status=204, headers=allowed)

    def _cors(self, request: Request) -> dict[str, str]:
        origins = self.service.settings.cors_origins
        origin = request.headers.get("origin", "")
        if "*" in origins:
            return {"Access-Control-Allow-Origin": "*"}  # tokens are sent by hand: no cookie is ever taken
        if origin in origins:
            return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        return {"Vary": "Origin"}


def encode_error(error: DeployError, *, callable_form: bool) -> Response:
    """Return an error in the shape of its form."""
    message = str(error)
    # A part that is down is "anything else" for clients, and may be tried again.
    headers = {"Retry-After": "5"} if error.kind == "UNAVAILABLE" else {}
    if callable_form:
        status, kind = _CALLABLE.get(error.kind, (500, "INTERNAL"))
        return _json(status, {"error": {"status": kind, "message": message}}, headers)
    if isinstance(error, UnauthenticatedError):
        return _json(401, {"error": "Unauthorized"}, {"WWW-Authenticate": "Bearer"})
    if isinstance(error, InvalidIdError):
        return _json(400, {"error": "Missing agentId"})
    if isinstance(error, NotPermittedError):
        return _json(404, {"error": "Agent not found"})
    if error.kind == "FAILED_PRECONDITION":
        return _json(400, {"error": message, "message": message, "status": error.kind})
    if error.kind in _PLAIN:
        status, title = _PLAIN[error.kind]
        title = "Invalid source" if isinstance(error, InvalidSourceError) else title
        return _json(status, {"error": title, "message": message, "status": error.kind})
    return _json(500, {"error": "Deployment failed", "message": message}, headers)


_CALLABLE = {
    "UNAUTHENTICATED": (401, "UNAUTHENTICATED"),
    "INVALID_ARGUMENT": (400, "INVALID_ARGUMENT"),
    "PERMISSION_DENIED": (403, "PERMISSION_DENIED"),
    "NOT_FOUND": (404, "NOT_FOUND"),
    "ALREADY_EXISTS": (409, "ALREADY_EXISTS"),
    "FAILED_PRECONDITION": (400, "FAILED_PRECONDITION"),
}
_PLAIN = {
    "INVALID_ARGUMENT": (400, "Invalid request"),
    "NOT_FOUND": (404, "Not found"),
    "ALREADY_EXISTS": (409, "Agent exists already"),
}


def _read_body(request: Request) -> tuple[bool, Mapping[str, Any], str]:
    """Return whether it is the callable form, what is asked, and why it cannot be read; empty when it can."""
    if request.has_archive:
        return False, dict(request.query), ""
    if len(request.body) > MAX_JSON_BYTES:
        return False, {}, f"the body has {len(request.body):,} bytes, allowed are {MAX_JSON_BYTES:,}"
    if not request.body.strip():
        return False, {}, ""
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError):
        return False, {}, "the body is no JSON"
    if not isinstance(body, dict):
        return False, {}, "the body is to be a JSON object"
    if "data" not in body:
        return False, body, ""
    data = body["data"]
    if data is None:
        return True, {}, ""
    return (True, data, "") if isinstance(data, dict) else (True, {}, "data is to be a JSON object")


def _method_not_allowed() -> Response:
    return _json(405, {"error": "Method not allowed", "message": "send POST"}, {"Allow": "POST, OPTIONS"})


def _json(status: int, value: object, headers: Mapping[str, str] | None = None) -> Response:
    body = json.dumps(value, default=_encode_time, ensure_ascii=True).encode()
    common = {
        "Content-Type": "application/json; charset=utf-8",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(status=status, body=body, headers={**common, **(headers or {})})


def _encode_time(value: object) -> str:
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    raise TypeError(f"no JSON: {value!r}")


# The functions


def _create(service: DeployService, caller: Caller, data: Mapping[str, Any], _: Request) -> Answer:
    return service.create(caller, data.get("agentId"), data.get("name", ""))


def _upload(service: DeployService, caller: Caller, data: Mapping[str, Any], request: Request) -> Answer:
    agent_id = data.get("agentId", "")
    if request.has_archive:
        return service.upload(caller, agent_id, request.body)
    return service.accept_upload(caller, agent_id) if data.get("uploaded") else service.offer_upload(caller, agent_id)


def _deploy(service: DeployService, caller: Caller, data: Mapping[str, Any], _: Request) -> Answer:
    return service.deploy(caller, data.get("agentId", ""), data.get("sourceDigest"))


def _stop(service: DeployService, caller: Caller, data: Mapping[str, Any], _: Request) -> Answer:
    return service.stop(caller, data.get("agentId", ""), delete_state=data.get("deleteState", False))


def _restart(service: DeployService, caller: Caller, data: Mapping[str, Any], _: Request) -> Answer:
    return service.restart(caller, data.get("agentId", ""))


def _rollback(service: DeployService, caller: Caller, data: Mapping[str, Any], _: Request) -> Answer:
    return service.rollback(caller, data.get("agentId", ""))


def _status(service: DeployService, caller: Caller, data: Mapping[str, Any], _: Request) -> Answer:
    return service.status(caller, data.get("agentId", ""))


def _logs(service: DeployService, caller: Caller, data: Mapping[str, Any], _: Request) -> Answer:
    return service.logs(caller, data.get("agentId", ""), since=_parse_time(data.get("since")), limit=data.get("limit"))


def _list(service: DeployService, caller: Caller, data: Mapping[str, Any], _: Request) -> Answer:
    del data
    return service.list_agents(caller)


OPERATIONS: dict[str, Operation] = {
    "createTradingAgent": _create,
    "uploadAgentSource": _upload,
    "deployTradingAgent": _deploy,
    "stopTradingAgent": _stop,
    "restartTradingAgent": _restart,
    "rollbackTradingAgent": _rollback,
    "getTradingAgentStatus": _status,
    "getTradingAgentLogs": _logs,
    "listTradingAgents": _list,
}
FUNCTIONS = (*OPERATIONS, *_ALIASES)


def _parse_time(value: object) -> dt.datetime | None:
    if value is None or value == "":
        return None
    try:
        time = dt.datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        time = None
    if time is None:
        raise InvalidRequestError(f"since {value!a}: expected a time such as 2026-01-02T15:04:05Z")
    return time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)
