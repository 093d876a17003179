"""Alpaca's Broker API over HTTP: its accounts, and the trading API on behalf of each. Event-loop only.

A Broker API key has sub-accounts (see `sub_accounts`). What the trading API answers for the account of a key, this one
answers for a sub-account, with the same handlers: `BrokerRoutes` puts them at the Broker API's paths, and `authorize`
says whose account a path is about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson
from aiohttp import web

from dry_work.errors import CodecError
from dry_work.exchange.account_api import AccountApi
from dry_work.exchange.answers import authorize, build_answer, query_time, query_word
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.order_rules import RefusedError
from dry_work.exchange.rest import TradingApi
from dry_work.exchange.venue import Venue
from dry_work.wire.alpaca_rest import CODE_REQUEST, encode_decimal
from dry_work.wire.pubsub import encode_time

_ON_BEHALF = ("/account", "/orders", "/positions", "/watchlists")  # of a sub-account
_FOR_ALL = ("/clock", "/calendar", "/assets", "/options/contracts", "/corporate_actions")
_NOT_THERE = ("/account/activities",)  # listed for all accounts together
_DETAILS = ("account_type", "account_sub_type", "contact", "identity", "disclosures", "agreements", "trusted_contact")
_SEARCHED = ("account_number", "contact", "identity")
_OBJECTS = ("contact", "identity", "disclosures", "trusted_contact")
_SECRET = "tax_id"  # noqa: S105 - the name of a field, which is not kept
_CURRENCY = "USD"


class BrokerRoutes(web.UrlDispatcher):
    """Takes routes of the trading API, `/v2/...`, and adds those that the Broker API has to `router` at its paths."""

    def __init__(self, router: web.UrlDispatcher) -> None:
        super().__init__()
        self._router = router

    def add_resource(self, path: str, *, name: str | None = None) -> web.Resource:
        """Add the resource of a trading path; one that the Broker API does not have is added to nothing."""
        place = find_broker_path(path)
        return super().add_resource(path, name=name) if place is None else self._router.add_resource(place, name=name)


def find_broker_path(path: str) -> str | None:
    """Return where the Broker API has what the trading API has at `path`, None when it does not have it."""
    version, _, rest = path.removeprefix("/").partition("/")
    rest = f"/{rest}"
    if version != "v2" or rest.startswith(_NOT_THERE):
        return None
    if rest.startswith(_ON_BEHALF):
        return f"/v1/trading/accounts/{{account_id}}{rest}"
    return f"/v1{rest}" if rest.startswith(_FOR_ALL) else None


class BrokerApi:
    """Answers for the accounts of a Broker API key.

    Args:
        trading: of which the positions of every account are asked.
        account: of which the activities of every account are asked.
        details: what its owner was told to be when an account was opened.
        opened_ns: when an account was opened, in the exchange's time.
    """

    def __init__(
        self,
        venue: Venue,
        *,
        credentials: Credentials,
        trading: TradingApi,
        account: AccountApi,
        details: Callable[[str], Mapping[str, Any]],
        opened_ns: Callable[[str], int],
    ) -> None:
        self._venue = venue
        self._credentials = credentials
        self._trading = trading
        self._account = account
        self._details = details
        self._opened_ns = opened_ns

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve `/v1/accounts...`."""
        router.add_get("/v1/accounts", self._get_accounts)
        router.add_post("/v1/accounts", self._post_account)
        router.add_get("/v1/accounts/positions", self._get_positions)
        router.add_get("/v1/accounts/activities", self._get_activities)
        router.add_get("/v1/accounts/activities/{kind}", self._get_activities)
        router.add_get("/v1/accounts/{account_id}", self._get_account)

    async def _get_accounts(self, request: web.Request) -> web.Response:
        names = self._names(request)
        after_ns = query_time(request, "created_after", code=CODE_REQUEST)
        before_ns = query_time(request, "created_before", code=CODE_REQUEST)
        newest_first = query_word(request, "sort", ("desc", "asc"), code=CODE_REQUEST) == "desc"
        statuses = {status.upper() for text in request.query.getall("status", []) for status in text.split(",")}
        words = request.query.get("query", "").lower().split()
        rows = []
        for name in names:
            opened_ns, row = self._opened_ns(name), self._describe(name)
            told = orjson.dumps([row.get(name) for name in _SEARCHED]).decode().lower()
            if (
                (after_ns is None or opened_ns > after_ns)
                and (before_ns is None or opened_ns < before_ns)
                and (not statuses or row["status"] in statuses)
                and all(word in told for word in words)
            ):
                rows.append(row)
        if newest_first:
            rows.reverse()
        wanted = {entity.strip() for entity in request.query.get("entities", "").split(",")}
        for row in rows:
            for entity in _DETAILS[2:]:
                if entity not in wanted:
                    row.pop(entity, None)
        return build_answer(rows)

    async def _post_account(self, request: web.Request) -> web.Response:
        owner = authorize(self._credentials, request)
        details = _read_details(await request.read())
        self._credentials.sub_accounts.names(owner)  # those that the key begins with come first
        return build_answer(self._describe(self._credentials.sub_accounts.open(owner, details)))

    async def _get_account(self, request: web.Request) -> web.Response:
        return build_answer(self._describe(authorize(self._credentials, request)))

    async def _get_positions(self, request: web.Request) -> web.Response:
        positions = {self._account_id(name): self._trading.list_positions(name) for name in self._names(request)}
        return build_answer({"as_of": encode_time(self._venue.now_ns), "positions": positions})

    async def _get_activities(self, request: web.Request) -> web.Response:
        names = self._names(request)
        asked = request.query.get("account_id", "").lower()
        if asked:
            name = self._credentials.sub_accounts.find(authorize(self._credentials, request), asked)
            names = [] if name is None else [name]
        return build_answer(self._account.list_activities(request, names))

    def _names(self, request: web.Request) -> list[str]:
        return self._credentials.sub_accounts.names(authorize(self._credentials, request))

    def _account_id(self, name: str) -> str:
        return self._venue.account(name).id

    def _describe(self, name: str) -> dict[str, Any]:
        account = self._venue.account(name)
        return {
            "id": account.id,
            "account_number": account.account_number,
            "account_type": "trading",
            "status": account.status,
            "crypto_status": "ACTIVE",
            "currency": _CURRENCY,
            "last_equity": encode_decimal(account.equity),
            "created_at": encode_time(self._opened_ns(name)),
            **self._details(name),
        }


def _read_details(body: bytes) -> dict[str, Any]:
    try:
        told = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError:
        raise CodecError("the body is no JSON") from None
    if not isinstance(told, dict):
        raise CodecError("the body is no object")
    currency = told.get("currency")
    if currency not in (None, _CURRENCY):
        raise RefusedError(422, CODE_REQUEST, f"currency {str(currency)[:10]} is not supported: expected {_CURRENCY}")
    details = {name: told[name] for name in _DETAILS if told.get(name) is not None}
    for name in _OBJECTS:
        if not isinstance(details.get(name, {}), dict):
            raise RefusedError(422, CODE_REQUEST, f"{name} must be an object")
    if not isinstance(details.get("agreements", []), list):
        raise RefusedError(422, CODE_REQUEST, "agreements must be a list")
    if _SECRET in details.get("identity", {}):
        details["identity"] = {name: value for name, value in details["identity"].items() if name != _SECRET}
    return details
