"""What all HTTP answers of the exchange have in common: JSON, error bodies, request ids, the request budget.

Event-loop only.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import orjson
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from dry_work.clock import SECOND_NS, Clock
from dry_work.errors import CodecError
from dry_work.exchange.credentials import Credentials, read_key_id
from dry_work.exchange.order_rules import RefusedError
from dry_work.wire.alpaca_rest import (
    CODE_INTERNAL,
    CODE_MALFORMED,
    CODE_RATE_LIMIT,
    CODE_UNAUTHORIZED,
    RequestError,
    encode_error,
    parse_json,
)
from dry_work.wire.pubsub import parse_time

_log = structlog.get_logger(__name__)

WINDOW_S = 60
_WINDOWS = 10_000  # then the counts begin anew, so that made-up key ids do not fill the memory
ALPACA_BUDGET = 200  # requests a minute and account, what Alpaca grants


# Answers a request by a call of its second argument, or in another way.
Disturb = Callable[[web.Request, Callable[[], Awaitable[web.StreamResponse]]], Awaitable[web.StreamResponse]]

_MARKET_DATA = ("/v2/stocks/", "/v1beta3/crypto/", "/v1beta1/", "/v1/corporate-actions")
_UNCOUNTED = "/dry-work/"  # the exchange's own control API


class RequestBudget:
    """Counts requests by account and API in windows of a minute.

    Args:
        requests_per_minute: None never refuses, and always tells the same remainder.
    """

    def __init__(self, requests_per_minute: int | None, *, clock: Clock) -> None:
        self.limit = ALPACA_BUDGET if requests_per_minute is None else requests_per_minute
        self._enforced = requests_per_minute is not None
        self._clock = clock
        self._windows: dict[str, tuple[float, int]] = {}  # by name: start, requests

    def take(self, name: str) -> tuple[bool, dict[str, str]]:
        """Count a request on the window `name`; return whether it may pass, and the headers of its answer."""
        now_s = self._clock.monotonic()
        start_s, used = self._windows.get(name, (now_s, 0))
        if now_s - start_s >= WINDOW_S:
            start_s, used = now_s, 0
        used += 1
        if self._enforced:
            if name not in self._windows and len(self._windows) >= _WINDOWS:
                self._windows.clear()
            self._windows[name] = (start_s, used)
        reset_s = self._clock.time_ns() // SECOND_NS + WINDOW_S - int(now_s - start_s)
        headers = {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(max(self.limit - used, 0)),
            "X-RateLimit-Reset": str(reset_s),
        }
        return used <= self.limit or not self._enforced, headers


def build_answer(payload: object, *, status: int = 200) -> web.Response:
    """Return a JSON answer."""
    return web.Response(body=orjson.dumps(payload), status=status, content_type="application/json")


def build_middleware(budget: RequestBudget, disturb: Disturb) -> Middleware:
    """Return the middleware that makes every failure an error body and adds the headers of every answer.

    Args:
        budget: of requests.
        disturb: answers a request by calling what it is given, or fails to.
    """

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        is_data = request.path.startswith(_MARKET_DATA)
        passes, headers = True, dict[str, str]()
        if not request.path.startswith(_UNCOUNTED):
            passes, headers = budget.take(f"{'data' if is_data else 'trading'} {read_key_id(request.headers)}")
        headers["X-Request-ID"] = secrets.token_hex(16)
        if request.path.startswith(_UNCOUNTED):
            response = await _answer(request, handler, headers["X-Request-ID"])
        elif passes:
            response = await disturb(request, partial(_answer, request, handler, headers["X-Request-ID"]))
        elif is_data:
            response = build_answer({"message": "too many requests."}, status=429)
        else:
            response = build_answer(encode_error(CODE_RATE_LIMIT, "rate limit exceeded"), status=429)
        if not response.prepared:
            response.headers.update(headers)
        return response

    return answer


async def _answer(request: web.Request, handler: Handler, request_id: str) -> web.StreamResponse:
    try:
        return await handler(request)
    except (RefusedError, RequestError) as error:
        context = error.context if isinstance(error, RefusedError) else None
        body: dict[str, Any] = encode_error(error.code, error.message, context)
        if not error.code:  # market data answers without a code
            del body["code"]
        return build_answer(body, status=error.http_status)
    except CodecError:
        return build_answer(encode_error(CODE_MALFORMED, "request body format is invalid"), status=400)
    except web.HTTPException as error:
        message = f"{error.reason.lower()}: {request.method} {request.path}"
        return build_answer(encode_error(error.status * 100_000 + 10_000, message), status=error.status)
    except ConnectionError:
        raise
    except Exception:
        _log.exception("request failed", method=request.method, path=request.path, request_id=request_id)
        return build_answer(encode_error(CODE_INTERNAL, "internal server error occurred"), status=500)


def authorize(credentials: Credentials, request: web.Request) -> str:
    """Return whose account a request is about: the key's own, or the sub-account that its path names.

    Raises:
        RefusedError: 401, without good credentials, and for an account that is not the key's.
    """
    key_id = credentials.admit_headers(request.headers)
    account_id = request.match_info.get("account_id")
    if key_id is not None and account_id is not None:
        key_id = credentials.sub_accounts.find(key_id, account_id)
    if key_id is None:
        raise RefusedError(401, CODE_UNAUTHORIZED, "request is not authorized")
    return key_id


async def read_object(request: web.Request) -> dict[str, Any]:
    """Return the JSON object in the body.

    Raises:
        CodecError: when it is none.
    """
    body = parse_json(await request.read())
    if not isinstance(body, dict):
        raise CodecError("the body is no object")
    return body


def query_time(request: web.Request, name: str, *, code: int) -> int | None:
    """Return a time or date of the query in nanoseconds, None when absent.

    Raises:
        RefusedError: 422, or 400 when `code` is 0, for anything else.
    """
    text = request.query.get(name)
    if not text:
        return None
    try:
        return parse_time(text)
    except ValueError:
        raise RefusedError(422 if code else 400, code, f"invalid {name}: {text[:40]}") from None


def query_limit(request: web.Request, name: str, *, default: int, largest: int, code: int) -> int:
    """Return a count of the query, between 1 and `largest`.

    Raises:
        RefusedError: as `query_time`.
    """
    text = request.query.get(name)
    if not text:
        return default
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 1 <= number <= largest:
        raise RefusedError(422 if code else 400, code, f"{name} must be between 1 and {largest}")
    return number


def query_word(request: web.Request, name: str, allowed: tuple[str, ...], *, code: int) -> str:
    """Return a word of the query; the first of `allowed` when absent.

    Raises:
        RefusedError: as `query_time`.
    """
    word = request.query.get(name, "").lower() or allowed[0]
    if word not in allowed:
        raise RefusedError(422 if code else 400, code, f"invalid {name}: must be one of {', '.join(allowed)}")
    return word


def query_symbols(request: web.Request) -> list[str]:
    """Return the comma-separated symbols of the query in upper case, each once."""
    parts = request.query.get("symbols", "").split(",")
    return list(dict.fromkeys(part.strip().upper() for part in parts if part.strip()))
