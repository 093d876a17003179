"""Options over HTTP: the contracts, and their bars, trades, quotes, snapshots and chains. Event-loop only.

A synthetic contract has a bar in every minute of the regular session in which its stock has one, and one trade, at the
end of that bar; its quote stands around the last price.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

import msgspec
from aiohttp import web

from dry_work.errors import CodecError
from dry_work.exchange.answers import authorize, build_answer, query_limit, query_time, query_word, read_object
from dry_work.exchange.commands import Command, Exercise
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.history import admit_stock_request, build_pages, query_timeframe
from dry_work.exchange.option_contracts import OptionContract
from dry_work.exchange.option_market import OptionMarket
from dry_work.exchange.option_prices import compute_greeks, volatility_of
from dry_work.exchange.order_rules import CODE_NOT_FOUND, RefusedError, encode_decimal
from dry_work.market.symbols import is_option
from dry_work.wire.alpaca_fields import asset_id, parse_decimal
from dry_work.wire.alpaca_rest import CODE_REQUEST
from dry_work.wire.pubsub import encode_time

EXCHANGES = {
    "A": "AMEX - NYSE American",
    "B": "BOX - Boston Options Exchange",
    "C": "CBOE - Cboe Options Exchange",
    "N": "NYSE - NYSE Arca",
    "Q": "NSDQ - Nasdaq Options Market",
    "X": "PHLX - Nasdaq PHLX",
}
_MOST_SYMBOLS = 100
_DEFAULT_SNAPSHOTS = 100
_LARGEST_SNAPSHOTS = 1000
_ROWS = "{kind:trades|quotes}"


class OptionApi:
    """Answers what is about options.

    Args:
        market: contracts and prices.
        execute: carries out a command.
        now_ns: the exchange's time.
    """

    def __init__(
        self,
        market: OptionMarket,
        *,
        credentials: Credentials,
        execute: Callable[[Command], Any],
        now_ns: Callable[[], int],
    ) -> None:
        self._market = market
        self._credentials = credentials
        self._execute = execute
        self._now_ns = now_ns

    def add_trading_routes(self, router: web.UrlDispatcher) -> None:
        """Serve `/v2/options/...`, and the exercise of positions."""
        router.add_get("/v2/options/contracts", self._get_contracts)
        router.add_get("/v2/options/contracts/{symbol}", self._get_contract)
        router.add_post("/v2/positions/{symbol}/exercise", self._post_exercise)

    def add_data_routes(self, router: web.UrlDispatcher) -> None:
        """Serve `/v1beta1/options/...`."""
        router.add_get("/v1beta1/options/bars", self._get_bars)
        router.add_get("/v1beta1/options/trades", self._get_trades)
        router.add_get(f"/v1beta1/options/{_ROWS}/latest", self._get_latest)
        router.add_get("/v1beta1/options/snapshots", self._get_snapshots)
        router.add_get("/v1beta1/options/snapshots/{underlying}", self._get_chain)
        router.add_get("/v1beta1/options/meta/exchanges", self._get_exchanges)
        router.add_get("/v1beta1/options/meta/conditions/{kind:trade|quote}", self._get_conditions)

    # Contracts

    async def _get_contracts(self, request: web.Request) -> web.Response:
        authorize(self._credentials, request)
        status = query_word(request, "status", ("active", "inactive", "all"), code=CODE_REQUEST)
        style = query_word(request, "style", ("", "american", "european"), code=CODE_REQUEST)
        limit = query_limit(request, "limit", default=100, largest=10_000, code=CODE_REQUEST)
        now_ns = self._now_ns()
        asked = _split(request.query.get("underlying_symbols", ""))
        found = [
            contract
            for contract in _select(request, self._market.chains.contracts(asked or None), code=CODE_REQUEST)
            if style != "european"
            and (status == "all" or (self._market.chains.close_ns(contract) > now_ns) == (status == "active"))
        ]
        first = _read_token(request, code=CODE_REQUEST)
        rows = found[first : first + limit]
        last = first + len(rows)
        return build_answer(
            {
                "option_contracts": [self.describe(contract) for contract in rows],
                "next_page_token": _write_token(last) if last < len(found) else None,
            }
        )

    async def _get_contract(self, request: web.Request) -> web.Response:
        authorize(self._credentials, request)
        return build_answer(self.describe(self._find(request.match_info["symbol"])))

    async def _post_exercise(self, request: web.Request) -> web.Response:
        key_id = authorize(self._credentials, request)
        text = request.match_info["symbol"]
        symbol = self._market.chains.find_by_id(text) or text.upper()
        if request.can_read_body:
            await read_object(request)
        self._execute(Exercise(key_id=key_id, symbol=symbol))
        return build_answer({})

    def _find(self, text: str) -> OptionContract:
        chains = self._market.chains
        symbol = text.upper() if is_option(text.upper()) else chains.find_by_id(text) or ""
        contract = chains.contract(symbol)
        if contract is None:
            raise RefusedError(404, CODE_NOT_FOUND, f"option contract {text[:40]} not found")
        return contract

    def describe(self, contract: OptionContract) -> dict[str, Any]:
        """Return a contract as the trading API answers it."""
        now_ns = self._now_ns()
        is_active = self._market.chains.close_ns(contract) > now_ns
        close = self._market.last_close(contract, now_ns)
        return {
            "id": asset_id(contract.symbol),
            "symbol": contract.symbol,
            "name": contract.name,
            "status": "active" if is_active else "inactive",
            "tradable": is_active,
            "expiration_date": contract.expires.isoformat(),
            "root_symbol": contract.root,
            "underlying_symbol": contract.underlying,
            "underlying_asset_id": asset_id(contract.underlying),
            "type": contract.kind,
            "style": "american",
            "strike_price": encode_decimal(contract.strike),
            "multiplier": "100",
            "size": "100",
            "open_interest": None,
            "open_interest_date": None,
            "close_price": None if close is None else encode_decimal(Decimal(repr(close[1]))),
            "close_price_date": None if close is None else encode_time(close[0])[:10],
            "ppind": True,
        }

    # Market data

    async def _get_bars(self, request: web.Request) -> web.Response:
        admit_stock_request(self._credentials, request)
        timeframe, now_ns = query_timeframe(request), self._now_ns()
        rows, token = build_pages(
            request, _query_symbols(request), lambda symbol: self._market.bars(symbol, timeframe, now_ns), now_ns=now_ns
        )
        return build_answer({"bars": rows, "next_page_token": token})

    async def _get_trades(self, request: web.Request) -> web.Response:
        admit_stock_request(self._credentials, request)
        now_ns = self._now_ns()
        rows, token = build_pages(
            request, _query_symbols(request), lambda symbol: self._market.trades(symbol, now_ns), now_ns=now_ns
        )
        return build_answer({"trades": rows, "next_page_token": token})

    async def _get_latest(self, request: web.Request) -> web.Response:
        admit_stock_request(self._credentials, request)
        kind, now_ns = request.match_info["kind"], self._now_ns()
        find = self._market.last_trade if kind == "trades" else self._market.last_quote
        found = {symbol: find(symbol, now_ns) for symbol in _query_symbols(request)}
        return build_answer({kind: {symbol: row for symbol, row in found.items() if row is not None}})

    async def _get_snapshots(self, request: web.Request) -> web.Response:
        admit_stock_request(self._credentials, request)
        chains = self._market.chains
        found = [contract for symbol in _query_symbols(request) if (contract := chains.contract(symbol)) is not None]
        return self._answer_snapshots(request, found)

    async def _get_chain(self, request: web.Request) -> web.Response:
        admit_stock_request(self._credentials, request)
        underlying = request.match_info["underlying"].upper()
        now_ns = self._now_ns()
        found = [
            contract
            for contract in _select(request, self._market.chains.contracts([underlying]), code=0)
            if self._market.chains.close_ns(contract) > now_ns
        ]
        return self._answer_snapshots(request, found)

    def _answer_snapshots(self, request: web.Request, contracts: Sequence[OptionContract]) -> web.Response:
        limit = query_limit(request, "limit", default=_DEFAULT_SNAPSHOTS, largest=_LARGEST_SNAPSHOTS, code=0)
        since_ns = query_time(request, "updated_since", code=0)
        now_ns = self._now_ns()
        known = []
        for contract in contracts:
            at_ns = self._market.last_ns(contract, now_ns)
            if at_ns is not None and (since_ns is None or at_ns >= since_ns):
                known.append(contract)
        first = _read_token(request, code=0)
        rows = known[first : first + limit]
        last = first + len(rows)
        return build_answer(
            {
                "snapshots": {contract.symbol: self._build_snapshot(contract, now_ns) for contract in rows},
                "next_page_token": _write_token(last) if last < len(known) else None,
            }
        )

    def _build_snapshot(self, contract: OptionContract, now_ns: int) -> dict[str, Any]:
        market, symbol = self._market, contract.symbol
        parts: dict[str, Any] = {
            "latestTrade": market.last_trade(symbol, now_ns),
            "latestQuote": market.last_quote(symbol, now_ns),
        }
        stock = market.stock_price(contract, now_ns)
        if stock is not None:
            parts["impliedVolatility"] = volatility_of(contract.underlying)
            greeks = compute_greeks(contract, stock, market.chains.close_ns(contract) - now_ns)
            parts["greeks"] = None if greeks is None else msgspec.structs.asdict(greeks)
        return {name: part for name, part in parts.items() if part is not None}

    async def _get_exchanges(self, request: web.Request) -> web.Response:
        admit_stock_request(self._credentials, request)
        return build_answer(EXCHANGES)

    async def _get_conditions(self, request: web.Request) -> web.Response:
        admit_stock_request(self._credentials, request)
        return build_answer({"a": "SLAN - Single Leg Auction Non ISO"} if request.match_info["kind"] == "trade" else {})


def _split(text: str) -> list[str]:
    return [part.strip().upper() for part in text.split(",") if part.strip()]


def _query_symbols(request: web.Request) -> list[str]:
    symbols = list(dict.fromkeys(_split(request.query.get("symbols", ""))))
    if not symbols:
        raise RefusedError(400, 0, "symbols is required")
    if len(symbols) > _MOST_SYMBOLS:
        raise RefusedError(400, 0, f"symbols are {len(symbols)}: no more than {_MOST_SYMBOLS} are allowed")
    for symbol in symbols:
        if not is_option(symbol):
            raise RefusedError(400, 0, f"invalid symbol: {symbol[:40]}")
    return symbols


def _select(request: web.Request, contracts: Iterable[OptionContract], *, code: int) -> list[OptionContract]:
    """Return the contracts that fit type, strikes, expirations and root of the query."""
    kind = query_word(request, "type", ("", "call", "put"), code=code)
    root = request.query.get("root_symbol", "").upper()
    day = _query_day(request, "expiration_date", code)
    first_day, last_day = (
        _query_day(request, "expiration_date_gte", code),
        _query_day(request, "expiration_date_lte", code),
    )
    low, high = _query_price(request, "strike_price_gte", code), _query_price(request, "strike_price_lte", code)
    return [
        contract
        for contract in contracts
        if (not kind or contract.kind == kind)
        and (not root or contract.root == root)
        and (day is None or contract.expires == day)
        and (first_day is None or contract.expires >= first_day)
        and (last_day is None or contract.expires <= last_day)
        and (low is None or contract.strike >= low)
        and (high is None or contract.strike <= high)
    ]


def _query_day(request: web.Request, name: str, code: int) -> date | None:
    text = request.query.get(name)
    if not text:
        return None
    try:
        return date.fromisoformat(text[:10])
    except ValueError:
        raise RefusedError(422 if code else 400, code, f"invalid {name}: {text[:40]}") from None


def _query_price(request: web.Request, name: str, code: int) -> Decimal | None:
    try:
        return parse_decimal(request.query.get(name))
    except CodecError:
        raise RefusedError(422 if code else 400, code, f"invalid {name}: {request.query[name][:40]}") from None


def _write_token(row: int) -> str:
    return base64.urlsafe_b64encode(str(row).encode()).decode()


def _read_token(request: web.Request, *, code: int) -> int:
    token = request.query.get("page_token", "")
    if not token:
        return 0
    try:
        row = int(base64.urlsafe_b64decode(token))
    except (ValueError, binascii.Error):
        row = -1
    if row < 0:
        raise RefusedError(422 if code else 400, code, "invalid page_token")
    return row
