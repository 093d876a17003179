"""The exchange's own control API, `/dry-work/v1/...`: what is played, and who takes part in lock-step.

Event-loop only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from dry_work.exchange.answers import authorize, build_answer, read_object
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.market import Lockstep
from dry_work.exchange.order_rules import RefusedError
from dry_work.wire.alpaca_rest import CODE_REQUEST, CODE_VALIDATION

_NAME_LIMIT = 128


class ControlApi:
    """Takes what consumers say and passes it to the lock-step.

    Args:
        describe: returns the session as `GET /dry-work/v1/session` answers it.
        canonical_symbol: returns the symbol that a spelling names.
        assets: symbols that are traded here.
        on_change: called when a consumer or a report has come or gone.
        resend: sends the open slice again to the sessions that take watermarks.
    """

    def __init__(
        self,
        lockstep: Lockstep,
        *,
        credentials: Credentials,
        describe: Callable[[], dict[str, Any]],
        canonical_symbol: Callable[[str], str],
        assets: frozenset[str],
        on_change: Callable[[], None],
        resend: Callable[[], None],
    ) -> None:
        self._lockstep = lockstep
        self._credentials = credentials
        self._describe = describe
        self._canonical_symbol = canonical_symbol
        self._assets = assets
        self._on_change = on_change
        self._resend = resend

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve `/dry-work/v1/...`."""
        router.add_get("/dry-work/v1/session", self._get_session)
        router.add_post("/dry-work/v1/consumers", self._post_consumer)
        router.add_delete("/dry-work/v1/consumers/{consumer}", self._delete_consumer)
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
            if symbol not in self._assets:
                raise RefusedError(422, CODE_VALIDATION, f"asset not found for {text[:40]}")
            symbols.append(symbol)
        resume = body.get("resume", False)
        if not isinstance(resume, bool):
            raise RefusedError(422, CODE_REQUEST, "resume must be true or false")
        if self._lockstep.register(consumer, key_id=key_id, symbols=symbols, resume=resume):
            self._resend()
        self._on_change()
        return build_answer(
            {"consumer": consumer, "registered": self._lockstep.registered, "expected": self._lockstep.expected}
        )

    async def _delete_consumer(self, request: web.Request) -> web.Response:
        authorize(self._credentials, request)
        self._lockstep.leave(request.match_info["consumer"])
        self._on_change()
        return build_answer({})

    async def _post_done(self, request: web.Request) -> web.Response:
        key_id = authorize(self._credentials, request)
        body = await read_object(request)
        orders = body.get("orders", 0)
        if isinstance(orders, bool) or not isinstance(orders, int) or orders < 0:
            raise RefusedError(422, CODE_REQUEST, "orders must be a count of order requests")
        number = int(request.match_info["number"])
        self._lockstep.report(_require_name(body), key_id=key_id, number=number, orders=orders)
        self._on_change()
        return build_answer({})


def _require_name(body: dict[str, Any]) -> str:
    consumer = body.get("consumer")
    if not isinstance(consumer, str) or not 1 <= len(consumer) <= _NAME_LIMIT:
        raise RefusedError(422, CODE_REQUEST, f"consumer must be a text of 1 to {_NAME_LIMIT} characters")
    return consumer
