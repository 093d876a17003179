"""Historical bars, trades and quotes over HTTP, never beyond the exchange's own time. Event-loop only."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from aiohttp import web

from dry_work.clock import DAY_NS
from dry_work.exchange.answers import build_answer, query_limit, query_symbols, query_time, query_word
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.order_rules import RefusedError
from dry_work.exchange.tables import MarketTables, Table
from dry_work.exchange.timeframes import Timeframe, parse_timeframe
from dry_work.market.symbols import is_crypto, is_symbol

_DEFAULT_LIMIT = 1000
_LARGEST_LIMIT = 10_000
_CRYPTO_PAIR = re.compile(r"[A-Z0-9]+/[A-Z]+")
_KINDS = "{kind:bars|trades|quotes}"


class MarketHistory:
    """Serves what of the recording has happened.

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
        """Serve the history of stocks and of crypto pairs."""
        router.add_get(f"/v2/stocks/{_KINDS}", self._get_stocks)
        router.add_get(f"/v2/stocks/{{symbol}}/{_KINDS}", self._get_stock)
        router.add_get(f"/v1beta3/crypto/{{venue}}/{_KINDS}", self._get_crypto)

    async def _get_stocks(self, request: web.Request) -> web.Response:
        admit_stock_request(self._credentials, request)
        rows, token = self._find_page(request, query_market_symbols(request, crypto=False))
        return build_answer({request.match_info["kind"]: rows, "next_page_token": token})

    async def _get_stock(self, request: web.Request) -> web.Response:
        admit_stock_request(self._credentials, request)
        symbol = path_symbol(request)
        rows, token = self._find_page(request, [symbol])
        return build_answer(
            {request.match_info["kind"]: rows.get(symbol, []), "symbol": symbol, "next_page_token": token}
        )

    async def _get_crypto(self, request: web.Request) -> web.Response:
        # Alpaca asks for no credentials here.
        rows, token = self._find_page(request, query_market_symbols(request, crypto=True))
        return build_answer({request.match_info["kind"]: rows, "next_page_token": token})

    def _find_page(
        self, request: web.Request, symbols: list[str]
    ) -> tuple[dict[str, list[dict[str, Any]]], str | None]:
        """Return the rows that are asked for by symbol, and where the next page begins."""
        return build_pages(request, symbols, self._choose_tables(request), now_ns=self._now_ns())

    def _choose_tables(self, request: web.Request) -> Callable[[str], Table | None]:
        kind = request.match_info["kind"]
        if kind == "bars":
            return partial(self._tables.bars, timeframe=query_timeframe(request), now_ns=self._now_ns())
        return partial(self._tables.ticks, "trades" if kind == "trades" else "quotes", now_ns=self._tick_now_ns())


def build_pages(
    request: web.Request, symbols: list[str], find_table: Callable[[str], Table | None], *, now_ns: int
) -> tuple[dict[str, list[dict[str, Any]]], str | None]:
    """Return the rows of tables that the query asks for, by symbol, and where the next page begins.

    Raises:
        RefusedError: 400.
    """
    newest_first = query_word(request, "sort", ("asc", "desc"), code=0) == "desc"
    limit = query_limit(request, "limit", default=_DEFAULT_LIMIT, largest=_LARGEST_LIMIT, code=0)
    start_ns = query_time(request, "start", code=0)
    end_ns = query_time(request, "end", code=0)
    first_ns = now_ns // DAY_NS * DAY_NS if start_ns is None else start_ns
    page_symbol, page_row = _parse_page_token(request.query.get("page_token", ""))

    found: dict[str, list[dict[str, Any]]] = {}
    room = limit
    for symbol in sorted(symbols):
        table = find_table(symbol) if symbol >= page_symbol else None
        if table is None:
            continue
        low = int(np.searchsorted(table.times, first_ns, side="left"))
        high = len(table.times) if end_ns is None else int(np.searchsorted(table.times, end_ns, side="right"))
        if symbol == page_symbol and newest_first:
            high = min(high, page_row + 1)
        elif symbol == page_symbol:
            low = max(low, page_row)
        rows = range(high - 1, low - 1, -1) if newest_first else range(low, high)
        taken = rows[:room]
        if taken:
            found[symbol] = [table.encode(row) for row in taken]
            room -= len(taken)
        if len(taken) < len(rows):
            return found, _encode_page_token(symbol, rows[len(taken)])
    return found, None


def admit_stock_request(credentials: Credentials, request: web.Request) -> None:
    """Refuse a request for stock data without good credentials."""
    if credentials.admit_headers(request.headers) is None:
        raise RefusedError(403, 0, "forbidden.")


def query_market_symbols(request: web.Request, *, crypto: bool) -> list[str]:
    """Return the symbols of the query, which must be of the asset class.

    Raises:
        RefusedError: 400.
    """
    symbols = query_symbols(request)
    if not symbols:
        raise RefusedError(400, 0, "symbols is required")
    for symbol in symbols:
        if crypto and not _CRYPTO_PAIR.fullmatch(symbol):
            raise RefusedError(400, 0, f"invalid symbol: {symbol} does not match ^[A-Z]+/[A-Z]+$")
        if not crypto and "/" in symbol:
            raise RefusedError(400, 0, f"invalid symbol: {symbol}")
    return symbols


def path_symbol(request: web.Request) -> str:
    """Return the stock that the path names.

    Raises:
        RefusedError: 400.
    """
    symbol = request.match_info["symbol"].upper()
    if is_crypto(symbol) or not is_symbol(symbol):
        raise RefusedError(400, 0, f"invalid symbol: {symbol[:40]}")
    return symbol


def query_timeframe(request: web.Request) -> Timeframe:
    """Return the timeframe of the query.

    Raises:
        RefusedError: 400.
    """
    text = request.query.get("timeframe", "")
    if not text:
        raise RefusedError(400, 0, "timeframe is required")
    try:
        return parse_timeframe(text)
    except ValueError as error:
        raise RefusedError(400, 0, str(error)) from None


def _encode_page_token(symbol: str, row: int) -> str:
    return base64.urlsafe_b64encode(f"{symbol}|{row}".encode()).decode()


def _parse_page_token(token: str) -> tuple[str, int]:
    if not token:
        return "", 0
    try:
        symbol, _, number = base64.urlsafe_b64decode(token).decode().partition("|")
        row = int(number)
    except (ValueError, binascii.Error):
        row, symbol = -1, ""
    if row < 0:
        raise RefusedError(400, 0, "invalid page_token")
    return symbol, row
