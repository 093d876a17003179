"""Historical bars over HTTP, from the recording, never beyond the exchange's own time. Event-loop only."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from aiohttp import web

from dry_work.clock import DAY_NS
from dry_work.exchange.answers import build_answer, query_limit, query_symbols, query_time, query_word
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.order_rules import RefusedError
from dry_work.feeds.recorded import Recording
from dry_work.market.symbols import is_crypto
from dry_work.wire.pubsub import encode_time

_TIMEFRAMES = ("1min", "1t")
_DEFAULT_LIMIT = 1000
_LARGEST_LIMIT = 10_000
_CRYPTO_PAIR = re.compile(r"[A-Z0-9]+/[A-Z]+")
_NAMES = (("o", "open"), ("h", "high"), ("l", "low"), ("c", "close"), ("v", "volume"))


class BarHistory:
    """Serves the bars of the recording that have ended.

    Args:
        now_ns: the exchange's time.
    """

    def __init__(self, recording: Recording, *, credentials: Credentials, now_ns: Callable[[], int]) -> None:
        self._recording = recording
        self._credentials = credentials
        self._now_ns = now_ns

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve the bars of stocks and of crypto pairs."""
        router.add_get("/v2/stocks/bars", self._get_stock_bars)
        router.add_get("/v1beta3/crypto/{venue}/bars", self._get_crypto_bars)

    async def _get_stock_bars(self, request: web.Request) -> web.Response:
        if self._credentials.admit_headers(request.headers) is None:
            raise RefusedError(403, 0, "forbidden.")
        return self._answer(request, crypto=False)

    async def _get_crypto_bars(self, request: web.Request) -> web.Response:
        return self._answer(request, crypto=True)  # Alpaca asks for no credentials here

    def _answer(self, request: web.Request, *, crypto: bool) -> web.Response:
        symbols = query_symbols(request)
        if not symbols:
            raise RefusedError(400, 0, "symbols is required")
        for symbol in symbols:
            if crypto and not _CRYPTO_PAIR.fullmatch(symbol):
                raise RefusedError(400, 0, f"invalid symbol: {symbol} does not match ^[A-Z]+/[A-Z]+$")
            if not crypto and "/" in symbol:
                raise RefusedError(400, 0, f"invalid symbol: {symbol}")
        query_word(request, "timeframe", _TIMEFRAMES, code=0)
        newest_first = query_word(request, "sort", ("asc", "desc"), code=0) == "desc"
        limit = query_limit(request, "limit", default=_DEFAULT_LIMIT, largest=_LARGEST_LIMIT, code=0)
        now_ns = self._now_ns()
        start_ns = query_time(request, "start", code=0)
        end_ns = query_time(request, "end", code=0)
        first_ns = now_ns // DAY_NS * DAY_NS if start_ns is None else start_ns
        last_ns = now_ns - self._recording.length_ns  # the start of the last bar that has ended
        if end_ns is not None:
            last_ns = min(last_ns, end_ns)
        page_symbol, page_ns = _parse_page_token(request.query.get("page_token", ""))

        bars: dict[str, list[dict[str, Any]]] = {}
        count = 0
        for symbol in sorted(symbols):
            if symbol < page_symbol or symbol not in self._recording.symbols or is_crypto(symbol) != crypto:
                continue
            times = self._recording.columns(symbol)["ts_event_ns"]
            low = int(np.searchsorted(times, first_ns, side="left"))
            high = int(np.searchsorted(times, last_ns, side="right"))
            if symbol == page_symbol and newest_first:
                high = min(high, int(np.searchsorted(times, page_ns, side="right")))
            elif symbol == page_symbol:
                low = max(low, int(np.searchsorted(times, page_ns, side="left")))
            rows = range(high - 1, low - 1, -1) if newest_first else range(low, high)
            if len(rows) == 0:
                continue
            if count == limit:
                return _build_page(bars, _encode_page_token(symbol, int(times[rows[0]])))
            taken = rows[: limit - count]
            bars[symbol] = [self._encode_row(symbol, row) for row in taken]
            count += len(taken)
            if len(taken) < len(rows):
                return _build_page(bars, _encode_page_token(symbol, int(times[rows[len(taken)]])))
        return _build_page(bars, None)

    def _encode_row(self, symbol: str, row: int) -> dict[str, Any]:
        columns = self._recording.columns(symbol)
        bar: dict[str, Any] = {"t": encode_time(int(columns["ts_event_ns"][row]))}
        for key, name in _NAMES:
            bar[key] = float(columns[name][row])
        count = float(columns["trade_count"][row]) if "trade_count" in columns else math.nan
        vwap = float(columns["vwap"][row]) if "vwap" in columns else math.nan
        bar["n"] = None if math.isnan(count) else int(count)
        bar["vw"] = None if math.isnan(vwap) else vwap
        return bar


def _build_page(bars: dict[str, list[dict[str, Any]]], token: str | None) -> web.Response:
    return build_answer({"bars": bars, "next_page_token": token})


def _encode_page_token(symbol: str, next_ns: int) -> str:
    return base64.urlsafe_b64encode(f"{symbol}|{next_ns}".encode()).decode()


def _parse_page_token(token: str) -> tuple[str, int]:
    if not token:
        return "", 0
    try:
        symbol, _, number = base64.urlsafe_b64decode(token).decode().partition("|")
        return symbol, int(number)
    except (ValueError, binascii.Error):
        raise RefusedError(400, 0, "invalid page_token") from None
