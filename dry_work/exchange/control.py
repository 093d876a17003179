"""The exchange's own control API, `/dry-work/v1/...`: what is played, who takes part in lock-step, revised bars.

Event-loop only.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from math import isfinite
from typing import Any

from aiohttp import web

from dry_work.exchange.answers import authorize, build_answer, read_object
from dry_work.exchange.commands import Command, Leave, Register, Report, Revise
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.market import Lockstep, OpenSlice
from dry_work.exchange.order_rules import RefusedError
from dry_work.exchange.tables import REVISED
from dry_work.market.messages import Bar
from dry_work.wire.alpaca_rest import CODE_REQUEST, CODE_VALIDATION
from dry_work.wire.alpaca_stream import encode_bar_item, encode_rest_row
from dry_work.wire.pubsub import encode_time, parse_time

_NAME_LIMIT = 128


class ControlApi:
    """Takes what consumers say and passes it to the lock-step.

    Args:
        execute: carries out a command.
        describe: returns the session as `GET /dry-work/v1/session` answers it.
        current: returns the last slice that was opened.
        canonical_symbol: returns the symbol that a spelling names.
        has_bars: tells whether bars of a symbol are made here.
        assets: symbols that are recorded.
        resend: sends the open slice again to the sessions that take watermarks.
        tell_revision: sends a corrected bar to the sessions that take them.
    """

    def __init__(
        self,
        lockstep: Lockstep,
        *,
        credentials: Credentials,
        execute: Callable[[Command], Any],
        describe: Callable[[], dict[str, Any]],
        current: Callable[[], OpenSlice | None],
        canonical_symbol: Callable[[str], str],
        has_bars: Callable[[str], bool],
        assets: frozenset[str],
        resend: Callable[[], None],
        tell_revision: Callable[[Bar], None],
    ) -> None:
        self._lockstep = lockstep
        self._credentials = credentials
        self._describe = describe
        self._current = current
        self._canonical_symbol = canonical_symbol
        self._has_bars = has_bars
        self._assets = assets
        self._execute = execute
        self._resend = resend
        self._tell_revision = tell_revision

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve `/dry-work/v1/...`."""
        router.add_get("/dry-work/v1/session", self._get_session)
        router.add_post("/dry-work/v1/consumers", self._post_consumer)
        router.add_get("/dry-work/v1/consumers/{consumer}", self._get_consumer)
        router.add_delete("/dry-work/v1/consumers/{consumer}", self._delete_consumer)
        router.add_post("/dry-work/v1/revisions", self._post_revision)
        router.add_post(r"/dry-work/v1/slices/{number:\d{1,12}}/done", self._post_done)

    async def _get_session(self, request: web.Request) -> web.Response:
        return build_answer(self._describe())

    async def _post_consumer(self, request: web.Request) -> web.Response:
        key_id = authorize(self._credentials, request)
        body = await read_object(request)
        consumer = _require_name(body)
        texts = body.get("symbols")
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise RefusedError(422, CODE_REQUEST, "symbols must be a list of symbols")
        symbols = []
        for text in texts:
            symbol = self._canonical_symbol(text)
            if not self._has_bars(symbol):
                raise RefusedError(422, CODE_VALIDATION, f"asset not found for {text[:40]}")
            symbols.append(symbol)
        resume = body.get("resume", False)
        if not isinstance(resume, bool):
            raise RefusedError(422, CODE_REQUEST, "resume must be true or false")
        if self._execute(Register(consumer=consumer, key_id=key_id, symbols=tuple(symbols), resume=resume)):
            self._resend()
        return build_answer(
            {"consumer": consumer, "registered": self._lockstep.registered, "expected": self._lockstep.expected}
        )

    async def _get_consumer(self, request: web.Request) -> web.Response:
        key_id = authorize(self._credentials, request)
        consumer = request.match_info["consumer"]
        owes, current = self._lockstep.owes(consumer, key_id=key_id), self._current()
        return build_answer(
            {
                "consumer": consumer,
                "slice": 0 if current is None else current.number,
                "end": None if current is None else encode_time(current.end_ns),
                "owes": owes,
            }
        )

    async def _delete_consumer(self, request: web.Request) -> web.Response:
        authorize(self._credentials, request)
        self._execute(Leave(consumer=request.match_info["consumer"]))
        return build_answer({})

    async def _post_done(self, request: web.Request) -> web.Response:
        key_id = authorize(self._credentials, request)
        body = await read_object(request)
        orders = body.get("orders", 0)
        if isinstance(orders, bool) or not isinstance(orders, int) or orders < 0:
            raise RefusedError(422, CODE_REQUEST, "orders must be a count of order requests")
        number = int(request.match_info["number"])
        self._execute(Report(consumer=_require_name(body), key_id=key_id, number=number, orders=orders))
        return build_answer({})

    async def _post_revision(self, request: web.Request) -> web.Response:
        authorize(self._credentials, request)
        body = await read_object(request)
        symbol = self._canonical_symbol(str(body.pop("symbol", "")))
        if symbol not in self._assets:
            raise RefusedError(422, CODE_VALIDATION, f"asset not found for {symbol[:40]}")
        try:
            start_ns = parse_time(str(body.pop("timestamp", "")))
        except ValueError:
            raise RefusedError(422, CODE_REQUEST, "timestamp must be the start of a bar, as RFC 3339 text") from None
        bar: Bar = self._execute(Revise(symbol=symbol, start_ns=start_ns, values=_read_values(body)))
        self._tell_revision(bar)
        return build_answer(encode_rest_row(encode_bar_item(bar)))


def _read_values(body: dict[str, Any]) -> dict[str, float]:
    unknown = sorted(set(body) - set(REVISED))
    if unknown or not body:
        names = f" {', '.join(unknown)[:80]} cannot be;" if unknown else ""
        raise RefusedError(422, CODE_REQUEST, f"what is to be revised:{names} expected some of {', '.join(REVISED)}")
    values = {}
    for name, value in body.items():
        if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)) or not isfinite(value) or value < 0:
            raise RefusedError(422, CODE_REQUEST, f"{name} must be a number of at least 0")
        values[name] = float(value)
    return values


def _require_name(body: dict[str, Any]) -> str:
    consumer = body.get("consumer")
    if not isinstance(consumer, str) or not 1 <= len(consumer) <= _NAME_LIMIT:
        raise RefusedError(422, CODE_REQUEST, f"consumer must be a text of 1 to {_NAME_LIMIT} characters")
    return consumer
