"""The most active stocks and the largest movers, from the bars so far of the day. Event-loop only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from dry_work.exchange.answers import build_answer, query_limit, query_word
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.history import admit_stock_request
from dry_work.exchange.tables import MarketTables
from dry_work.exchange.timeframes import DAY
from dry_work.market.symbols import is_crypto, is_option
from dry_work.wire.pubsub import encode_time

_MOST_ACTIVES = 100
_MOST_MOVERS = 50


class ScreenerApi:
    """Answers `/v1beta1/screener/...`.

    Args:
        tables: the recording's bars.
        symbols: that trade.
        now_ns: the exchange's time.
    """

    def __init__(
        self, tables: MarketTables, *, symbols: Sequence[str], credentials: Credentials, now_ns: Callable[[], int]
    ) -> None:
        self._tables = tables
        self._symbols = symbols
        self._credentials = credentials
        self._now_ns = now_ns

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve the screener."""
        router.add_get("/v1beta1/screener/stocks/most-actives", self._get_actives)
        router.add_get("/v1beta1/screener/{market:stocks|crypto}/movers", self._get_movers)

    async def _get_actives(self, request: web.Request) -> web.Response:
        admit_stock_request(self._credentials, request)
        by = query_word(request, "by", ("volume", "trades"), code=0)
        top = query_limit(request, "top", default=10, largest=_MOST_ACTIVES, code=0)
        rows = [
            {"symbol": symbol, "volume": days[0]["v"], "trade_count": days[0]["n"] or 0}
            for symbol, days in self._find_days(crypto=False)
        ]
        rows.sort(key=lambda row: (-row["trade_count" if by == "trades" else "volume"], row["symbol"]))
        return build_answer({"most_actives": rows[:top], "last_updated": encode_time(self._now_ns())})

    async def _get_movers(self, request: web.Request) -> web.Response:
        admit_stock_request(self._credentials, request)
        market = request.match_info["market"]
        top = query_limit(request, "top", default=10, largest=_MOST_MOVERS, code=0)
        rows = []
        for symbol, days in self._find_days(crypto=market == "crypto"):
            price = days[0]["c"]
            base = days[1]["c"] if len(days) > 1 else days[0]["o"]  # on the first day of a recording nothing is before
            change = price - base
            row = {"symbol": symbol, "percent_change": round(change / base * 100, 2), "change": round(change, 4)}
            rows.append({**row, "price": price})
        gainers = sorted((row for row in rows if row["change"] > 0), key=lambda row: -row["percent_change"])
        losers = sorted((row for row in rows if row["change"] < 0), key=lambda row: row["percent_change"])
        answer: dict[str, Any] = {"gainers": gainers[:top], "losers": losers[:top], "market_type": market}
        return build_answer({**answer, "last_updated": encode_time(self._now_ns())})

    def _find_days(self, *, crypto: bool) -> list[tuple[str, list[dict[str, Any]]]]:
        """Return the day so far and the one before by symbol, for symbols with any."""
        now_ns = self._now_ns()
        found = [
            (symbol, self._tables.last_bars(symbol, DAY, now_ns, 2))
            for symbol in self._symbols
            if is_crypto(symbol) == crypto and not is_option(symbol)
        ]
        return [(symbol, days) for symbol, days in found if days]
