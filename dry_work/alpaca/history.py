"""Recent bars from Alpaca's market-data API, for the warm-up. One thread at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import requests
import structlog
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
from dry_work.errors import BrokerError, BrokerUnavailableError, RateLimitedError, VenueAuthError
from dry_work.market.messages import Bar, Slice
from dry_work.market.symbols import is_crypto, is_option
from dry_work.settings import DEFAULT_STOCK_FEED, Credentials
from dry_work.wire.alpaca_rest import lacks_subscription, parse_error
from dry_work.wire.alpaca_stream import parse_bar_item

# Two weeks reach back over a long week-end for a symbol that trades every day.
_REACH = timedelta(days=14)
# Without a subscription there is no history of options, nor of all exchanges together, of the last quarter of an hour;
# a bar more, for its own length.
_RECENT = timedelta(minutes=16)

_log = structlog.get_logger(__name__)


class BarHistory:
    """Fetches the newest minute bars of symbols.

    Args:
        credentials: of the account.
        api: asked for the venue's time.
        data_url: base URL of the market-data API.
        stock_feed: whose bars come live; they are those of the history too.
        is_broker: the credentials are those of a broker.
        timeout_s: of each request.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        api: VenueApi,
        data_url: str,
        stock_feed: str = DEFAULT_STOCK_FEED,
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
        # What comes late is the whole market's, in history as well; there is none of made-up symbols.
        self._feed = {"delayed_sip": "sip", "test": DEFAULT_STOCK_FEED}.get(stock_feed, stock_feed)
        self._is_delayed = stock_feed == "delayed_sip"
        self._data_url = data_url
        self._lacks_recent = False  # options' bars of the last minutes are refused

    def newest_bars(self, symbols: Sequence[str], count: int) -> list[Slice]:
        """Return the newest `count` complete minute bars of each symbol as slices by rising end time.

        Those of options end a quarter of an hour ago where the account has no subscription for newer ones.

        Raises:
            VenueAuthError: the credentials were refused, or the account has no subscription.
            RateLimitedError: the request budget of the key is spent, for long.
            BrokerUnavailableError: the API did not answer as it should.
        """
        if count <= 0:
            return []
        return self._ask(symbols, count)

    def bars_between(self, symbols: Sequence[str], start_ns: int, end_ns: int) -> list[Slice]:
        """Return the complete minute bars that end after `start_ns` and not after `end_ns`, as `newest_bars` does.

        Options whose history is refused are left out, and logged: the others are not to miss theirs for it.

        Raises:
            As `newest_bars`.
        """
        minutes = (end_ns - start_ns) // MINUTE_NS
        if minutes <= 0:
            return []
        pieces = self._ask(symbols, minutes, start_ns=start_ns - MINUTE_NS, end_ns=end_ns)
        return [piece for piece in pieces if start_ns < piece.end_ns <= end_ns]

    def _ask(self, symbols: Sequence[str], count: int, *, start_ns: int = 0, end_ns: int = 0) -> list[Slice]:
        bars: list[Bar] = []
        now_ns = self._api.clock_ns()
        for symbol in symbols:
            try:
                bars += self._fetch(symbol, count, start_ns, end_ns or now_ns, now_ns)
            except APIError as error:
                if not (start_ns and is_option(symbol) and _is_not_subscribed(error)):
                    raise self._explain(symbol, error) from error
                _log.warning("no history of an option", symbol=symbol, reason=_reason_of(error))
            except requests.RequestException as error:
                raise BrokerUnavailableError(
                    f"{self._data_url} does not answer ({type(error).__name__}); is ALPACA_DATA_URL right?"
                ) from error
        return group_slices(bars)

    def _explain(self, symbol: str, error: APIError) -> BrokerError:
        status = error.status_code
        if _is_not_subscribed(error):
            reason = f"{self._data_url} gives no history of {symbol}: {_reason_of(error)}"
            return VenueAuthError(reason, http_status=status)
        if status in (401, 403):
            return VenueAuthError(f"{self._data_url} refused the credentials", http_status=status)
        return BrokerUnavailableError(f"{self._data_url}: {error}", http_status=status)

    def _fetch(self, symbol: str, count: int, start_ns: int, end_ns: int, now_ns: int) -> list[Bar]:
        now = _moment(now_ns)
        end = min(_moment(end_ns), now)
        start = _moment(start_ns) if start_ns else now - _REACH
        if is_option(symbol):
            rows = self._fetch_option(symbol, count, start, end, now - _RECENT)
        else:
            if self._is_delayed and not is_crypto(symbol):
                end = min(end, now - _RECENT)
            rows = self._request(symbol, count, start, end) if start < end else []
        bars = [parse_bar_item({"T": "b", "S": symbol, **row}, recv_ns=0) for row in rows]
        until_ns = min(end_ns, now_ns)
        return sorted((bar for bar in bars if bar.end_ns <= until_ns), key=lambda bar: bar.ts_event_ns)[-count:]

    def _fetch_option(self, symbol: str, count: int, start: datetime, end: datetime, recent: datetime) -> list[Any]:
        if not self._lacks_recent:
            try:
                return self._request(symbol, count, start, end)
            except APIError as error:
                if end <= recent or not _is_not_subscribed(error):
                    raise
                _log.info("the history of options ends a quarter of an hour ago", reason=_reason_of(error))
                self._lacks_recent = True
        end = min(end, recent)
        return self._request(symbol, count, start, end) if start < end else []

    def _request(self, symbol: str, count: int, start: datetime, end: datetime) -> list[Any]:
        window: dict[str, Any] = {
            "symbol_or_symbols": symbol,
            "timeframe": TimeFrame.Minute,
            "start": start,
            "end": end,
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
        rows: list[Any] = found.get(symbol, [])
        return rows

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


def _moment(time_ns: int) -> datetime:
    return datetime.fromtimestamp(time_ns // SECOND_NS, UTC)


def _reason_of(error: APIError) -> str:
    return parse_error(str(error))[1]


def _is_not_subscribed(error: APIError) -> bool:
    return lacks_subscription(error.status_code, _reason_of(error))
