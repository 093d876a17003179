"""The latest bars, trades, quotes and snapshots over HTTP, as of the exchange's own time. Event-loop only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from dry_work.exchange.answers import build_answer
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.history import admit_stock_request, path_symbol, query_market_symbols
from dry_work.exchange.order_rules import RefusedError
from dry_work.exchange.tables import MarketTables
from dry_work.exchange.timeframes import DAY, MINUTE

Row = dict[str, Any]


class LatestApi:
    """Serves the end of what has happened. Without recorded trades and quotes the last bar stands for them.

    Args:
        now_ns: the exchange's time, which bars have ended until.
        tick_now_ns: the time that trades and quotes were given out until.
    """

    def __init__(
        self,
        tables: MarketTables,
        *,
        credentials: Credentials,
        now_ns: Callable[[], int],
        tick_now_ns: Callable[[], int],
    ) -> None:
        self._tables = tables
        self._credentials = credentials
        self._now_ns = now_ns
        self._tick_now_ns = tick_now_ns

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve the latest of stocks and of crypto pairs."""
        kinds = "{kind:bars|trades|quotes}"
        router.add_get(f"/v2/stocks/{kinds}/latest", self._get_stocks)
        router.add_get(f"/v2/stocks/{{symbol}}/{kinds}/latest", self._get_stock)
        router.add_get("/v2/stocks/snapshots", self._get_stock_snapshots)
        router.add_get("/v2/stocks/{symbol}/snapshot", self._get_stock_snapshot)
        router.add_get("/v1beta3/crypto/{venue}/latest/{kind:bars|trades|quotes|orderbooks}", self._get_crypto)
        router.add_get("/v1beta3/crypto/{venue}/snapshots", self._get_crypto_snapshots)

    async def _get_stocks(self, request: web.Request) -> web.Response:
        admit_stock_request(self._credentials, request)
        return self._answer(request, query_market_symbols(request, crypto=False))

    async def _get_stock(self, request: web.Request) -> web.Response:
        admit_stock_request(self._credentials, request)
        symbol, kind = path_symbol(request), request.match_info["kind"]
        row = self._find(kind, symbol)
        if row is None:
            raise RefusedError(404, 0, f"no {kind.removesuffix('s')} found for {symbol}")
        return build_answer({"symbol": symbol, kind.removesuffix("s"): row})

    async def _get_crypto(self, request: web.Request) -> web.Response:
        return self._answer(request, query_market_symbols(request, crypto=True))

    async def _get_stock_snapshots(self, request: web.Request) -> web.Response:
        admit_stock_request(self._credentials, request)
        symbols = query_market_symbols(request, crypto=False)
        return build_answer({symbol: self._build_snapshot(symbol) for symbol in symbols})

    async def _get_stock_snapshot(self, request: web.Request) -> web.Response:
        admit_stock_request(self._credentials, request)
        symbol = path_symbol(request)
        snapshot = self._build_snapshot(symbol)
        if snapshot is None:
            raise RefusedError(404, 0, f"no snapshot found for {symbol}")
        return build_answer({"symbol": symbol, **snapshot})

    async def _get_crypto_snapshots(self, request: web.Request) -> web.Response:
        symbols = query_market_symbols(request, crypto=True)
        found = {symbol: self._build_snapshot(symbol) for symbol in symbols}
        return build_answer({"snapshots": {symbol: row for symbol, row in found.items() if row is not None}})

    def _answer(self, request: web.Request, symbols: list[str]) -> web.Response:
        kind = request.match_info["kind"]
        found = {symbol: self._find(kind, symbol) for symbol in symbols}
        return build_answer({kind: {symbol: row for symbol, row in found.items() if row is not None}})

    def _find(self, kind: str, symbol: str) -> Row | None:
        if kind == "bars":
            return next(iter(self._tables.last_bars(symbol, MINUTE, self._now_ns(), 1)), None)
        if kind == "trades":
            return self._tables.last_tick("trades", symbol, self._tick_now_ns())
        quote = self._tables.last_tick("quotes", symbol, self._tick_now_ns())
        if kind == "quotes" or quote is None:
            return quote
        bids = [{"p": quote["bp"], "s": quote["bs"]}] if quote["bp"] else []
        asks = [{"p": quote["ap"], "s": quote["as"]}] if quote["ap"] else []
        return {"t": quote["t"], "b": bids, "a": asks}

    def _build_snapshot(self, symbol: str) -> Row | None:
        """Return what is known of a symbol, None when nothing is."""
        days = self._tables.last_bars(symbol, DAY, self._now_ns(), 2)
        parts = {
            "latestTrade": self._find("trades", symbol),
            "latestQuote": self._find("quotes", symbol),
            "minuteBar": self._find("bars", symbol),
            "dailyBar": days[0] if days else None,
            "prevDailyBar": days[1] if len(days) > 1 else None,
        }
        known = {name: row for name, row in parts.items() if row is not None}
        return known or None
