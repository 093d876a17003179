"""Carries faults out on requests and sockets, and takes them over HTTP: `/dry-work/v1/faults`. Event-loop only."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aiohttp import WSCloseCode, web
from msgspec.structs import replace

from dry_work.clock import SECOND_NS
from dry_work.errors import CodecError
from dry_work.exchange.answers import authorize, build_answer, read_object
from dry_work.exchange.commands import Bust, Command
from dry_work.exchange.credentials import Credentials, read_key_id
from dry_work.exchange.faults import AT_LOGIN, KINDS, Fault, FaultPlan, parse_faults
from dry_work.exchange.order_rules import CODE_NOT_FOUND, CODE_REQUEST, RefusedError
from dry_work.exchange.sub_accounts import owner_of
from dry_work.orders.model import TradeEvent
from dry_work.wire.alpaca_rest import CODE_INTERNAL, CODE_RATE_LIMIT, encode_error, encode_trade_event, parse_json

_CHECK_S = 0.1  # how often a silent request looks whether its client has gone
_IN_STREAM = {on: frozenset(KINDS[on]) - AT_LOGIN for on in ("trades", "data")}
_UNKNOWN = "unheard_of"
_MESSAGES = {
    429: (CODE_RATE_LIMIT, "rate limit exceeded"),
    500: (CODE_INTERNAL, "internal server error occurred"),
}
_REASONS = {502: "Bad Gateway", 503: "Service Temporarily Unavailable", 504: "Gateway Time-out"}


async def answer_with_faults(
    plan: FaultPlan, request: web.Request, answer: Callable[[], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer a request, or fail to, as the faults want it. Latency comes first, then the first other fault."""
    faults = plan.take("http", key=read_key_id(request.headers), method=request.method, path=request.path)
    delay_s = sum(fault.seconds for fault in faults if fault.kind == "latency")
    if delay_s:
        await asyncio.sleep(delay_s)
    fault = next((fault for fault in faults if fault.kind != "latency"), None)
    if fault is None:
        return await answer()
    response: web.StreamResponse | None = None
    if fault.when == "after":
        await request.read()
        response = await answer()
        if response.prepared:  # a stream, which is over now
            return response
    if fault.kind == "status":
        return _build_failure(fault.status)
    if fault.kind == "silent":
        await _wait_for_end(request, fault.seconds)
    cut_connection(request.transport, with_reset=fault.kind == "reset")
    return web.Response(status=500)  # nobody reads it


def _build_failure(status: int) -> web.Response:
    if status in _MESSAGES:
        return build_answer(encode_error(*_MESSAGES[status]), status=status)
    if status in _REASONS:  # a gateway's answer, which is no JSON
        page = f"<html><head><title>{status} {_REASONS[status]}</title></head><body>nginx</body></html>"
        return web.Response(text=page, status=status, content_type="text/html")
    return build_answer(encode_error(status * 100_000 + 10_000, "the exchange was told to fail"), status=status)


async def _wait_for_end(request: web.Request, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            # the end of a connection wakes nobody
            while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110
                await asyncio.sleep(_CHECK_S)


def cut_connection(transport: asyncio.Transport | None, *, with_reset: bool) -> None:
    """End a connection without a word: with a reset, or as if the peer had closed it."""
    if transport is None:
        return
    if with_reset:
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()


class FaultySession(Protocol):
    """What faults do to the sending side of a stream."""

    before_frame: Callable[[], None] | None

    def give_up(self) -> None: ...
    def mute(self) -> None: ...
    def finish(self, *, code: int = ...) -> None: ...


class StreamFaults:
    """The faults of the sessions of one kind of stream.

    Args:
        plan: all faults.
        on: `trades` or `data`.
    """

    def __init__(self, plan: FaultPlan, on: str) -> None:
        self._plan = plan
        self._on = on

    def refuse(self, key_id: str, path: str) -> int | None:
        """Return the error code with which a session's authentication is refused, None when it is not."""
        faults = self._plan.take(self._on, key=key_id, path=path, kinds=AT_LOGIN)
        return faults[0].code if faults else None

    def watch(self, out: FaultySession, key_id: str, path: str, transport: asyncio.Transport | None) -> None:
        """Let faults strike an authenticated session from now on."""

        def strike() -> None:
            for fault in self._plan.take(self._on, key=key_id, path=path, kinds=_IN_STREAM[self._on]):
                _strike_session(fault, out, transport)

        out.before_frame = strike


def _strike_session(fault: Fault, out: FaultySession, transport: asyncio.Transport | None) -> None:
    if fault.kind == "slow":
        out.give_up()
    elif fault.kind == "close":
        out.finish(code=fault.code or WSCloseCode.GOING_AWAY)
    else:
        out.mute()  # silent: pings are still answered
        if fault.kind == "reset":
            cut_connection(transport, with_reset=True)
        elif fault.kind == "half_open" and transport is not None:
            transport.pause_reading()  # so that not even pings are answered


class EventFaults:
    """Tampers with the trade events that an account is told.

    Args:
        plan: all faults.
        encode: returns the data of a message.
    """

    def __init__(self, plan: FaultPlan, encode: Callable[[TradeEvent], dict[str, Any]] = encode_trade_event) -> None:
        self._plan = plan
        self._encode = encode
        self._held: dict[str, list[dict[str, Any]]] = {}  # by key: are told after the next event

    def tell(self, key_id: str, event: TradeEvent) -> list[dict[str, Any]]:
        """Return what is told in the place of an event, in order."""
        skew_ns = int(self._plan.skew_s * SECOND_NS)
        body = self._encode(replace(event, ts_event_ns=event.ts_event_ns + skew_ns) if skew_ns else event)
        told = [body]
        kinds = {fault.kind for fault in self._plan.take("events", key=owner_of(key_id), path=event.event)}
        if "unknown_status" in kinds:
            body["order"] = {**body["order"], "status": _UNKNOWN}
        if "duplicate" in kinds:
            told.append(body)
        if "unknown" in kinds:
            told.append({**body, "event": _UNKNOWN, "event_id": f"{event.event_id}-"})
        if "drop" in kinds:
            told = []
        if "reorder" in kinds:
            self._held.setdefault(key_id, []).extend(told)
            return []
        return [*told, *self.release(key_id)]

    def release(self, key_id: str) -> list[dict[str, Any]]:
        """Return what was held back."""
        return self._held.pop(key_id, [])


class FaultApi:
    """Sets and removes faults, and takes executions back.

    Args:
        plan: all faults.
        execute: carries out a command.
        strike: lets new faults strike the sessions that are open.
    """

    def __init__(
        self,
        plan: FaultPlan,
        *,
        credentials: Credentials,
        execute: Callable[[Command], Any],
        strike: Callable[[], None],
    ) -> None:
        self._plan = plan
        self._credentials = credentials
        self._execute = execute
        self._strike = strike

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve `/dry-work/v1/faults` and `/dry-work/v1/busts`."""
        router.add_get("/dry-work/v1/faults", self._get_faults)
        router.add_post("/dry-work/v1/faults", self._post_faults)
        router.add_delete("/dry-work/v1/faults", self._delete_faults)
        router.add_delete("/dry-work/v1/faults/{name}", self._delete_fault)
        router.add_post("/dry-work/v1/busts", self._post_bust)

    async def _get_faults(self, request: web.Request) -> web.Response:
        authorize(self._credentials, request)
        return build_answer(self._plan.describe())

    async def _post_faults(self, request: web.Request) -> web.Response:
        authorize(self._credentials, request)
        body = parse_json(await request.read())
        try:
            names = [self._plan.add(fault) for fault in parse_faults(body)]
        except CodecError as error:
            raise RefusedError(422, CODE_REQUEST, error.reason) from None
        except ValueError as error:
            raise RefusedError(422, CODE_REQUEST, str(error)) from None
        self._strike()
        return build_answer([row for row in self._plan.describe() if row["id"] in names])

    async def _delete_faults(self, request: web.Request) -> web.Response:
        authorize(self._credentials, request)
        self._plan.clear()
        return build_answer([])

    async def _delete_fault(self, request: web.Request) -> web.Response:
        authorize(self._credentials, request)
        name = request.match_info["name"]
        if not self._plan.remove(name):
            raise RefusedError(404, CODE_NOT_FOUND, f"fault not found for {name[:40]}")
        return build_answer({})

    async def _post_bust(self, request: web.Request) -> web.Response:
        key_id: str | None = authorize(self._credentials, request)
        body = await read_object(request)
        if key_id is not None and body.get("account_id") is not None:
            key_id = self._credentials.sub_accounts.find(key_id, str(body["account_id"]))
        if key_id is None:
            raise RefusedError(404, CODE_NOT_FOUND, f"account not found for {str(body['account_id'])[:40]}")
        execution_id = body.get("execution_id")
        if not isinstance(execution_id, str):
            raise RefusedError(422, CODE_REQUEST, "execution_id must be the id of one of the account's executions")
        event: TradeEvent = self._execute(Bust(key_id=key_id, execution_id=execution_id))
        return build_answer(encode_trade_event(event))
