"""Recent bars from Alpaca's market-data API, for the warm-up. One thread at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import requests
from alpaca.common.enums import Sort
from alpaca.common.exceptions import APIError
from alpaca.data.historical import (
    CryptoHistoricalDataClient,
    OptionHistoricalDataClient,
    StockHistoricalDataClient,
)
from alpaca.data.requests import CryptoBarsRequest, OptionBarsRequest, StockBarsRequest
from alpaca.data.timeframe import TimeFrame

from dry_work.alpaca.limits import Priority, shared_limiter
from dry_work.alpaca.venue_api import PATIENCE_S, VenueApi, prepare_client
from dry_work.clock import MINUTE_NS, SECOND_NS
from dry_work.errors import BrokerUnavailableError, RateLimitedError, VenueAuthError
from dry_work.market.messages import Bar, Slice
from dry_work.market.symbols import is_crypto, is_option
from dry_work.settings import Credentials
from dry_work.wire.alpaca_stream import parse_bar_item

# Two weeks reach back over a long week-end for a symbol that trades every day.
_REACH = timedelta(days=14)


class BarHistory:
    """Fetches the newest minute bars of symbols.

    Args:
        credentials: of the account.
        api: asked for the venue's time.
        data_url: base URL of the market-data API.
        feed: of stocks.
        is_broker: the credentials are those of a broker.
        timeout_s: of each request.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        api: VenueApi,
        data_url: str,
        feed: str = "iex",
        is_broker: bool = False,
        timeout_s: float = 10.0,
    ) -> None:
        keys = (credentials.key, credentials.secret)
        options: dict[str, Any] = {"raw_data": True, "url_override": data_url, "use_basic_auth": is_broker}
        stocks = StockHistoricalDataClient(*keys, **options)
        crypto = CryptoHistoricalDataClient(*keys, **options)
        self._limiter = shared_limiter(data_url, credentials.key, api="data")
        self._answer: tuple[int, Mapping[str, str]] | None = None
        contracts = OptionHistoricalDataClient(*keys, **options)
        for client in (stocks, crypto, contracts):
            client._session.hooks["response"].append(self._keep_answer)
        self._stocks = prepare_client(stocks, url=data_url, timeout_s=timeout_s)
        self._crypto = prepare_client(crypto, url=data_url, timeout_s=timeout_s)
        self._options = prepare_client(contracts, url=data_url, timeout_s=timeout_s)
        self._api = api
        self._feed = feed
        self._data_url = data_url

    def newest_bars(self, symbols: Sequence[str], count: int) -> list[Slice]:
        """Return the newest `count` complete minute bars of each symbol as slices by rising end time.

        Raises:
            VenueAuthError: the credentials were refused.
            RateLimitedError: the request budget of the key is spent, for long.
        BrokerUnavailableError: the API did not answer as it should.
        """
        if count <= 0:
            return []
        return self._ask(symbols, count)

    def bars_between(self, symbols: Sequence[str], start_ns: int, end_ns: int) -> list[Slice]:
        """Return the complete minute bars that end after `start_ns` and not after `end_ns`, as `newest_bars` does.

        Raises:
            As `newest_bars`.
        """
        minutes = (end_ns - start_ns) // MINUTE_NS
        if minutes <= 0:
            return []
        pieces = self._ask(symbols, minutes, start_ns=start_ns - MINUTE_NS, end_ns=end_ns)
        return [piece for piece in pieces if start_ns < piece.end_ns <= end_ns]

    def _ask(self, symbols: Sequence[str], count: int, *, start_ns: int = 0, end_ns: int = 0) -> list[Slice]:
        try:
            now_ns = self._api.clock_ns()
            bars = [
                bar for symbol in symbols for bar in self._fetch(symbol, count, start_ns, min(end_ns or now_ns, now_ns))
            ]
        except APIError as error:
            if error.status_code in (401, 403):
                raise VenueAuthError(
                    f"{self._data_url} refused the credentials", http_status=error.status_code
                ) from error
            raise BrokerUnavailableError(f"{self._data_url}: {error}", http_status=error.status_code) from error
        except requests.RequestException as error:
            raise BrokerUnavailableError(
                f"{self._data_url} does not answer ({type(error).__name__}); is ALPACA_DATA_URL right?"
            ) from error
        return group_slices(bars)

    def _fetch(self, symbol: str, count: int, start_ns: int, now_ns: int) -> list[Bar]:
        now = datetime.fromtimestamp(now_ns // SECOND_NS, UTC)
        window: dict[str, Any] = {
            "symbol_or_symbols": symbol,
            "timeframe": TimeFrame.Minute,
            "start": datetime.fromtimestamp(start_ns // SECOND_NS, UTC) if start_ns else now - _REACH,
            "end": now,
            "limit": count + 1,
            "sort": Sort.DESC,
        }
        if not self._limiter.acquire(Priority.POLLING, timeout_s=PATIENCE_S):
            raise RateLimitedError(f"the request budget of this key at {self._data_url} is spent", http_status=None)
        self._answer = None
        try:
            if is_crypto(symbol):
                found = self._crypto.get_crypto_bars(CryptoBarsRequest(**window))
            elif is_option(symbol):
                found = self._options.get_option_bars(OptionBarsRequest(**window))
            else:
                found = self._stocks.get_stock_bars(StockBarsRequest(**window, feed=self._feed))
        finally:
            self._settle()
        bars = [parse_bar_item({"T": "b", "S": symbol, **row}, recv_ns=0) for row in found.get(symbol, [])]
        return sorted((bar for bar in bars if bar.end_ns <= now_ns), key=lambda bar: bar.ts_event_ns)[-count:]

    def _settle(self) -> None:
        """Tell the limiter what became of the request."""
        if self._answer is None:
            self._limiter.drop()
        else:
            self._limiter.observe(*self._answer)

    def _keep_answer(self, response: Any, **_: Any) -> None:
        self._answer = (int(response.status_code), dict(response.headers))


def group_slices(bars: Sequence[Bar]) -> list[Slice]:
    """Return bars grouped by their end, by rising time."""
    groups: dict[int, list[Bar]] = {}
    for bar in bars:
        groups.setdefault(bar.ts_event_ns + bar.length_ns, []).append(bar)
    return [Slice(end_ns=end_ns, bars=tuple(groups[end_ns])) for end_ns in sorted(groups)]
