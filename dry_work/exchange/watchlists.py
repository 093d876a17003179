"""Watchlists over HTTP. Event-loop only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiohttp import web

from dry_work.exchange.answers import authorize, build_answer, read_object
from dry_work.exchange.commands import Command, DeleteWatchlist, SetWatchlist
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.order_rules import RefusedError
from dry_work.exchange.state import Watchlist
from dry_work.exchange.venue import Venue
from dry_work.wire.alpaca_rest import CODE_NOT_FOUND, CODE_REQUEST, CODE_VALIDATION
from dry_work.wire.pubsub import encode_time

_NAME_LIMIT = 64
_LISTS_LIMIT = 200


class WatchlistApi:
    """Answers for the watchlists of every account.

    Args:
        execute: carries out a command.
        watchlists: the watchlists of a key by their ids.
        canonical_symbol: returns the symbol that a spelling names.
        describe_asset: returns an asset as the trading API answers it.
    """

    def __init__(
        self,
        venue: Venue,
        *,
        credentials: Credentials,
        execute: Callable[[Command], Any],
        watchlists: Callable[[str], Mapping[str, Watchlist]],
        canonical_symbol: Callable[[str], str],
        describe_asset: Callable[[str], dict[str, Any]],
    ) -> None:
        self._venue = venue
        self._credentials = credentials
        self._canonical_symbol = canonical_symbol
        self._describe_asset = describe_asset
        self._execute = execute
        self._lists = watchlists

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve `/v2/watchlists`."""
        router.add_get("/v2/watchlists", self._get_all)
        router.add_post("/v2/watchlists", self._post)
        router.add_get("/v2/watchlists/{id}", self._get)
        router.add_put("/v2/watchlists/{id}", self._put)
        router.add_post("/v2/watchlists/{id}", self._post_symbol)
        router.add_delete("/v2/watchlists/{id}", self._delete)
        router.add_delete("/v2/watchlists/{id}/{symbol:.+}", self._delete_symbol)

    async def _get_all(self, request: web.Request) -> web.Response:
        key_id = authorize(self._credentials, request)
        rows = [self._describe(key_id, known) for known in self._lists(key_id).values()]
        for row in rows:
            del row["assets"]  # as upstream
        return build_answer(rows)

    async def _post(self, request: web.Request) -> web.Response:
        key_id = authorize(self._credentials, request)
        body = await read_object(request)
        name, symbols = self._read_name(key_id, body.get("name"), None), self._read_symbols(body.get("symbols") or [])
        if len(self._lists(key_id)) >= _LISTS_LIMIT:
            raise RefusedError(403, CODE_VALIDATION, f"an account has no more than {_LISTS_LIMIT} watchlists")
        return self._set(key_id, name, symbols)

    async def _get(self, request: web.Request) -> web.Response:
        return build_answer(self._describe(*self._find(request)))

    async def _put(self, request: web.Request) -> web.Response:
        self._find(request)
        body = await read_object(request)
        key_id, known = self._find(request)  # it may be another one by now
        name = known.name if body.get("name") is None else self._read_name(key_id, body["name"], known)
        symbols = known.symbols if body.get("symbols") is None else self._read_symbols(body["symbols"])
        return self._set(key_id, name, symbols, known.id)

    async def _post_symbol(self, request: web.Request) -> web.Response:
        self._find(request)
        symbols = self._read_symbols([(await read_object(request)).get("symbol")])
        key_id, known = self._find(request)
        return self._set(key_id, known.name, [*known.symbols, *symbols], known.id)

    async def _delete(self, request: web.Request) -> web.Response:
        key_id, known = self._find(request)
        self._execute(DeleteWatchlist(key_id=key_id, watchlist_id=known.id))
        return web.Response(status=204)

    async def _delete_symbol(self, request: web.Request) -> web.Response:
        key_id, known = self._find(request)
        symbol = self._canonical_symbol(request.match_info["symbol"])
        if symbol not in known.symbols:
            raise RefusedError(404, CODE_NOT_FOUND, f"{symbol[:40]} is not in the watchlist")
        left = [other for other in known.symbols if other != symbol]
        return self._set(key_id, known.name, left, known.id)

    def _find(self, request: web.Request) -> tuple[str, Watchlist]:
        key_id = authorize(self._credentials, request)
        known = self._lists(key_id).get(request.match_info["id"].lower())
        if known is None:
            raise RefusedError(404, CODE_NOT_FOUND, "watchlist not found")
        return key_id, known

    def _set(self, key_id: str, name: str, symbols: Sequence[str], watchlist_id: str = "") -> web.Response:
        command = SetWatchlist(
            key_id=key_id, name=name, symbols=tuple(dict.fromkeys(symbols)), watchlist_id=watchlist_id
        )
        made: Watchlist = self._execute(command)
        return build_answer(self._describe(key_id, made))

    def _read_name(self, key_id: str, name: object, own: Watchlist | None) -> str:
        if not isinstance(name, str) or not 1 <= len(name) <= _NAME_LIMIT:
            raise RefusedError(422, CODE_REQUEST, f"name must be a text of 1 to {_NAME_LIMIT} characters")
        if any(other.name == name and other is not own for other in self._lists(key_id).values()):
            raise RefusedError(422, CODE_REQUEST, "watchlist name must be unique")
        return name

    def _read_symbols(self, texts: object) -> list[str]:
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise RefusedError(422, CODE_REQUEST, "symbols must be a list of symbols")
        symbols = list(dict.fromkeys(self._canonical_symbol(text) for text in texts))
        for symbol in symbols:
            if symbol not in self._venue.assets:
                raise RefusedError(422, CODE_VALIDATION, f"asset not found for {symbol[:40]}")
        return symbols

    def _describe(self, key_id: str, known: Watchlist) -> dict[str, Any]:
        return {
            "id": known.id,
            "account_id": self._venue.account(key_id).id,
            "name": known.name,
            "created_at": encode_time(known.created_ns),
            "updated_at": encode_time(known.updated_ns),
            "assets": [self._describe_asset(symbol) for symbol in known.symbols],
        }
