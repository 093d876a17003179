"""Pages of historical data from Alpaca, through alpaca-py's own clients. One thread at a time.

Their `get_…` methods collect all pages in memory and keep the token to themselves, so each page is asked for by the
client's own `get`, which knows the address, the credentials and the connection. What passes (429, 5xx, a lost
connection, an answer cut off) is tried again for as long as `patience_s`; what does not is told in one sentence.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import requests
from alpaca.common.exceptions import APIError
from alpaca.data.historical import CryptoHistoricalDataClient, StockHistoricalDataClient
from alpaca.data.historical.option import OptionHistoricalDataClient

from dry_work.alpaca.download_pages import Page, read_page
from dry_work.alpaca.download_plan import PAGE_ROWS, TIMEFRAMES, Unit
from dry_work.alpaca.limits import Priority, RateLimiter
from dry_work.alpaca.venue_api import prepare_client
from dry_work.backoff import Backoff
from dry_work.clock import Clock, SystemClock
from dry_work.errors import CodecError, ConfigError, DryWorkError, FeedError, VenueAuthError
from dry_work.market.symbols import is_crypto, is_option
from dry_work.settings import Credentials
from dry_work.wire.alpaca_rest import parse_error
from dry_work.wire.pubsub import encode_time

PATIENCE_S = 600.0
TIMEOUT_S = 30.0  # of a request, for each wait on the socket

_UNREADABLE_TRIES = 3  # an answer that is whole and yet no page is not going to change
_PASSING = (408, 425, 429)
_NOT_AUTHORIZED = "set ALPACA_API_KEY and ALPACA_SECRET_KEY of one key pair"


class RequestRefusedError(ConfigError):
    """Alpaca refuses what is asked for; asking again does not help."""


class DownloadStoppedError(DryWorkError):
    """The word to stop came. Handled by the downloader."""


class HistoryApi:
    """Asks for pages, within the budget of the key.

    Args:
        credentials: of the account; without them only crypto is given.
        data_url: base URL of the market-data API.
        limiter: the budget of the key for market data.
        pause: sleeps for so many seconds, or less when the word to stop comes, and tells whether it came.
        timeout_s: of each request.
        patience_s: how long a page is tried for.
        clock: the machine's.
        rng: for the waits between tries.
    """

    def __init__(
        self,
        credentials: Credentials | None,
        *,
        data_url: str,
        limiter: RateLimiter,
        pause: Callable[[float], bool],
        timeout_s: float = TIMEOUT_S,
        patience_s: float = PATIENCE_S,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.data_url = data_url.rstrip("/")
        self.counters: Counter[str] = Counter()  # requests, refused (429), failed, unreadable
        self._has_credentials = credentials is not None
        self._limiter = limiter
        self._pause = pause
        self.on_wait: Callable[[str, float], None] = lambda _reason, _seconds: None  # before each wait: why, how long
        self._patience_s = patience_s
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()
        self._headers: tuple[int, Mapping[str, str]] | None = None
        keys = (credentials.key, credentials.secret) if credentials is not None else (None, None)
        makers = {"crypto": CryptoHistoricalDataClient}
        if credentials is not None:
            makers |= {"stocks": StockHistoricalDataClient, "options": OptionHistoricalDataClient}
        self._clients: dict[str, Any] = {}
        for name, make in makers.items():
            client = make(*keys, raw_data=True, url_override=self.data_url)
            client._session.hooks["response"].append(self._keep_headers)
            self._clients[name] = prepare_client(client, url=self.data_url, timeout_s=timeout_s)

    def fetch(self, unit: Unit, token: str | None) -> Page:
        """Return the page of a unit that `token` names, the first one for None.

        Raises:
            VenueAuthError: the credentials are refused, or do not cover this data.
            RequestRefusedError: Alpaca refuses the request, with its text.
            FeedError: it did not work for as long as `patience_s`.
            DownloadStoppedError: the word to stop came.
        """
        symbol = unit.series.symbol
        backoff = Backoff(self._rng)
        end_s = self._clock.monotonic() + self._patience_s
        unreadable = 0
        while True:
            self._take()
            self.counters["requests"] += 1
            try:
                answer = self._get(unit, token)
                return read_page(answer, kind=unit.series.kind, symbol=symbol)
            except APIError as error:
                trouble = self._judge(error, unit)
            except CodecError as error:
                trouble = f"the answer cannot be read ({error})"
                unreadable += 1
                self.counters["unreadable"] += 1
            except requests.JSONDecodeError:
                trouble = "the answer is no JSON"
                unreadable += 1
                self.counters["unreadable"] += 1
            except requests.RequestException as error:
                self.counters["failed"] += 1
                trouble = f"no answer ({type(error).__name__})"
            now_s = self._clock.monotonic()
            wait_s = backoff.next_wait_s(now_s)
            if unreadable >= _UNREADABLE_TRIES or now_s + wait_s > end_s:
                raise FeedError(
                    f"{self.data_url}: {unit.describe()}: {trouble}, tried {backoff.attempts} times; "
                    "is ALPACA_DATA_URL right?"
                )
            self._wait(trouble, wait_s)

    def close(self) -> None:
        """Close the connections. May be called twice."""
        for client in self._clients.values():
            client._session.close()

    def _get(self, unit: Unit, token: str | None) -> Any:
        client, path, query = self._build_request(unit)
        if token is not None:
            query["page_token"] = token
        self._headers = None
        try:
            return client.get(path, query)
        finally:
            self._settle()

    def _build_request(self, unit: Unit) -> tuple[Any, str, dict[str, object]]:
        series = unit.series
        name = "crypto" if is_crypto(series.symbol) else "options" if is_option(series.symbol) else "stocks"
        if name not in self._clients:
            raise VenueAuthError(f"{series.symbol}: no Alpaca credentials: {_NOT_AUTHORIZED}; only crypto needs none")
        query: dict[str, object] = {
            "symbols": series.symbol,
            "start": encode_time(unit.start_ns),
            "end": encode_time(unit.end_ns - 1),  # included by Alpaca
            "limit": PAGE_ROWS,
            "sort": "asc",
        }
        if series.timeframe:
            query["timeframe"] = TIMEFRAMES[series.timeframe][0]
        if series.feed:
            query["feed"] = series.feed
        if series.adjustment:
            query["adjustment"] = series.adjustment
        venue = "/us" if name == "crypto" else ""
        return self._clients[name], f"/{name}{venue}/{series.kind}", query

    def _judge(self, error: APIError, unit: Unit) -> str:
        """Return what passes, for people; raise what does not."""
        response = error.response
        if response is None:
            return "no answer"
        status = int(response.status_code)
        message = parse_error(response.text)[1] or f"HTTP {status}"
        if status in _PASSING or status >= 500:
            self.counters["refused" if status == 429 else "failed"] += 1
            return f"HTTP {status}: {message}"
        what = f"{self.data_url}: {unit.describe()}: {message} (HTTP {status})"
        if status == 403 and "subscription" in message.lower():
            fix = "a subscription to market data allows it"
            if unit.series.feed == "sip":
                fix += "; without one give --feed iex, or an --end at least 15 minutes ago"
            elif is_option(unit.series.symbol):
                fix += "; without one give an --end at least 15 minutes ago"
            raise VenueAuthError(f"{what}: {fix}")
        if status in (401, 403):
            raise VenueAuthError(f"{what}: Alpaca refuses the credentials; {_NOT_AUTHORIZED}")
        if status == 404:
            raise RequestRefusedError(f"{what}: is ALPACA_DATA_URL right?")
        raise RequestRefusedError(what)

    def _take(self) -> None:
        """Wait for the budget."""
        told = False
        while wait_s := self._limiter.try_take(Priority.POLLING):
            if wait_s > self._patience_s:
                raise FeedError(f"{self.data_url} asks to wait for {wait_s:,.0f} s before the next request")
            if not told:
                self.on_wait("the request limit", wait_s)
                told = True
            if self._pause(wait_s):
                raise DownloadStoppedError("stopped")
        if self._pause(0.0):
            self._limiter.drop()
            raise DownloadStoppedError("stopped")

    def _wait(self, reason: str, seconds: float) -> None:
        self.on_wait(reason, seconds)
        if self._pause(seconds):
            raise DownloadStoppedError("stopped")

    def _settle(self) -> None:
        """Tell the limiter what became of the request."""
        if self._headers is None:
            self._limiter.drop()
        else:
            self._limiter.observe(*self._headers)

    def _keep_headers(self, response: Any, **_: Any) -> None:
        self._headers = (int(response.status_code), dict(response.headers))
