"""Alpaca's trading API: requests with a time-out, answers as values, failures as errors of ours. One thread at a time.

A thin shell on alpaca-py's `TradingClient`. Its own retries are switched off: they would repeat a POST after a 504
without looking whether the order was taken. Money travels as text in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from alpaca.common.exceptions import APIError
from alpaca.trading.client import TradingClient

from dry_work.addresses import is_loopback_url
from dry_work.errors import (
    BrokerError,
    BrokerUnavailableError,
    CodecError,
    ConfigError,
    InsufficientFundsError,
    OrderRejectedError,
    OutcomeUnknownError,
    RateLimitedError,
    VenueAuthError,
)
from dry_work.orders.lifecycle import is_lack_of_funds
from dry_work.orders.model import AccountSnapshot, OrderRequest, Replacement, VenueOrder, VenuePosition
from dry_work.settings import LIVE_URL, PAPER_URL
from dry_work.wire.alpaca_orders import build_replacement
from dry_work.wire.alpaca_rest import (
    build_order_request,
    parse_account,
    parse_decimal,
    parse_error,
    parse_order,
    parse_position,
)
from dry_work.wire.pubsub import parse_time

OPEN_ORDERS_LIMIT = 500  # the venue's own

_CONNECT_TIMEOUT_S = 5.0

_Parsed = TypeVar("_Parsed")


def choose_url(url: str | None, *, paper: bool) -> str:
    """Return the base URL to use, without a slash at its end.

    Raises:
        ConfigError: when the live API is named while trading on paper.
    """
    base = (url or (PAPER_URL if paper else LIVE_URL)).rstrip("/")
    if paper and urlsplit(base).hostname == urlsplit(LIVE_URL).hostname:
        raise ConfigError(f"{base} trades with real money; set sandbox=False (--live) if that is meant")
    return base


def map_status(status: int, body: str, headers: Mapping[str, str]) -> BrokerError:
    """Return the error that an HTTP answer of 400 and above stands for."""
    code, message = parse_error(body)
    message = message or f"HTTP {status}"
    request_id = headers.get("X-Request-ID")
    if status == 429:
        return RateLimitedError(message, retry_after_s=_parse_retry_after(headers), http_status=status)
    if status >= 500:
        # Gateways answer 5xx also for requests that went through.
        return OutcomeUnknownError(message, code=code, http_status=status, request_id=request_id)
    if status == 401 or (status == 403 and code is None):
        return VenueAuthError(
            f"the credentials were refused: {message}", code=code, http_status=status, request_id=request_id
        )
    lacks_funds = status == 403 and is_lack_of_funds(code, message)
    kind = InsufficientFundsError if lacks_funds else OrderRejectedError
    return kind(message, code=code, http_status=status, request_id=request_id)


class TradingApi:
    """Client of one account.

    Args:
        api_key, secret_key: credentials; never part of an error or of `repr`.
        url: base URL, as `choose_url` returns it.
        timeout_s: of every request, for each wait on the socket.
    """

    def __init__(self, api_key: str, secret_key: str, *, url: str, timeout_s: float = 10.0) -> None:
        self.url = url
        client = TradingClient(api_key, secret_key, raw_data=True, url_override=url)
        self._client = prepare_client(client, url=url, timeout_s=timeout_s)

    def __repr__(self) -> str:
        return f"TradingApi({self.url!r})"

    def call(self, method: str, path: str, data: Mapping[str, object] | None = None, *, version: str = "v2") -> Any:
        """Send a request and return the decoded answer.

        Raises:
            OrderRejectedError: an answer of 400 to 499, with its code; VenueAuthError for refused credentials.
            OutcomeUnknownError: a 5xx, a time-out or a lost connection.
            BrokerUnavailableError, RateLimitedError: the request was not taken.
        """
        try:
            return self._client._request(method, path, data, api_version=version)
        except APIError as error:
            response = error.response
            if response is None:
                raise OutcomeUnknownError(f"{method} {path} failed without an answer") from error
            raise map_status(response.status_code, response.text, response.headers) from error
        except requests.RequestException as error:
            raise _map_transport(method, path, error) from error
        except ValueError as error:  # an answer of 200 that is no JSON: a proxy, or another program
            raise OutcomeUnknownError(f"{method} {path}: the answer is no JSON") from error

    def account(self) -> AccountSnapshot:
        """Return the account."""
        return self._parse(parse_account, self.call("GET", "/account"))

    def positions(self) -> list[VenuePosition]:
        """Return all positions."""
        return [self._parse(parse_position, item) for item in self._list("/positions")]

    def is_tradable(self, symbol: str) -> bool | None:
        """Tell whether an asset can be traded; None when the venue does not know it."""
        try:
            return _is_tradable(self.call("GET", f"/assets/{symbol}"))
        except OrderRejectedError as error:
            if error.http_status in (404, 422):
                return None
            raise

    def tradable_assets(self) -> dict[str, bool]:
        """Return for every asset whether it can be traded."""
        return {str(asset.get("symbol")): _is_tradable(asset) for asset in self._list("/assets")}

    def open_orders(self) -> list[VenueOrder]:
        """Return the open orders, newest first, at most 500."""
        query = {"status": "open", "limit": OPEN_ORDERS_LIMIT}
        return [self._parse(parse_order, item) for item in self._list("/orders", query)]

    def clock_ns(self) -> int:
        """Return the venue's time."""
        return self._parse(_parse_clock, self.call("GET", "/clock"))

    def submit(self, request: OrderRequest) -> VenueOrder:
        """Send an order once.

        Raises:
            OrderRejectedError: the venue refused it.
            OutcomeUnknownError: it may have been taken; look it up by its client order id before sending it again.
            BrokerUnavailableError, RateLimitedError: it was not taken.
        """
        answer = self.call("POST", "/orders", build_order_request(request))
        try:
            return self._parse(parse_order, answer)
        except BrokerUnavailableError as error:
            raise OutcomeUnknownError(f"the answer to the order cannot be read: {error.message}") from error

    def order_by_client_id(self, client_order_id: str) -> VenueOrder | None:
        """Return the order with this client order id, None when the venue does not know it."""
        try:
            answer = self.call("GET", "/orders:by_client_order_id", {"client_order_id": client_order_id})
        except OrderRejectedError as error:
            if error.http_status == 404:
                return None
            raise
        return self._parse(parse_order, answer)

    def order(self, order_id: str) -> VenueOrder | None:
        """Return the order with the venue's id, with its legs; None when the venue does not know it."""
        try:
            answer = self.call("GET", f"/orders/{order_id}", {"nested": "true"})
        except OrderRejectedError as error:
            if error.http_status == 404:
                return None
            raise
        return self._parse(parse_order, answer)

    def replace(self, order_id: str, change: Replacement) -> VenueOrder:
        """Ask for a change of an open order once; return the order that is to take its place.

        Raises:
            OrderRejectedError: the venue refused it.
            OutcomeUnknownError: it may have been taken; look the new order up before sending it again.
            BrokerUnavailableError, RateLimitedError: it was not taken.
        """
        answer = self.call("PATCH", f"/orders/{order_id}", build_replacement(change))
        try:
            return self._parse(parse_order, answer)
        except BrokerUnavailableError as error:
            raise OutcomeUnknownError(f"the answer to the replacement cannot be read: {error.message}") from error

    def price_increment(self, symbol: str) -> Decimal | None:
        """Return the step of an asset's prices; None when the venue does not say."""
        try:
            asset = self.call("GET", f"/assets/{symbol}")
        except OrderRejectedError as error:
            if error.http_status in (404, 422):
                return None
            raise
        if not isinstance(asset, Mapping):
            raise BrokerUnavailableError(f"/assets/{symbol}: the answer is no asset")
        increment = self._parse(parse_decimal, asset.get("price_increment"))
        return increment if increment is not None and increment > 0 else None

    def cancel(self, order_id: str) -> None:
        """Ask for the cancellation of an order by the venue's id; the stream tells of its success."""
        self.call("DELETE", f"/orders/{order_id}")

    def report_slice(self, number: int, *, consumer: str, orders: int) -> None:
        """Tell the simulated exchange that a slice is done, and how many orders were sent in it."""
        body = {"consumer": consumer, "orders": orders}
        self.call("POST", f"/v1/slices/{number}/done", body, version="dry-work")

    def close(self) -> None:
        """Close the connections."""
        self._client._session.close()

    def _list(self, path: str, query: Mapping[str, object] | None = None) -> list[Any]:
        answer = self.call("GET", path, query)
        if not isinstance(answer, list):
            raise BrokerUnavailableError(f"{path}: the answer is no list")
        return answer

    @staticmethod
    def _parse(parse: Callable[[Any], _Parsed], answer: Any) -> _Parsed:
        try:
            return parse(answer)
        except CodecError as error:
            raise BrokerUnavailableError(f"the venue's answer cannot be read: {error.reason}") from error


def prepare_client(client: Any, *, url: str, timeout_s: float) -> Any:
    """Give a client of alpaca-py what it lacks: time-outs, and no retries of its own, which repeat orders as well."""
    client._retry = 0
    session = client._session
    session.request = _with_timeout(session.request, timeout_s)
    if is_loopback_url(url):
        session.trust_env = False
    return client


def _with_timeout(request: Callable[..., Any], timeout_s: float) -> Callable[..., Any]:
    def request_with_timeout(method: str, url: str, **options: Any) -> Any:
        options.setdefault("timeout", (min(timeout_s, _CONNECT_TIMEOUT_S), timeout_s))
        return request(method, url, **options)

    return request_with_timeout


def _map_transport(method: str, path: str, error: requests.RequestException) -> BrokerError:
    what = f"{method} {path}: {type(error).__name__}"
    if isinstance(error, requests.ConnectTimeout) or _was_not_sent(error):
        return BrokerUnavailableError(f"{what}: no connection")
    return OutcomeUnknownError(what)


def _was_not_sent(error: requests.RequestException) -> bool:
    from urllib3.exceptions import MaxRetryError, NewConnectionError

    if not isinstance(error, requests.ConnectionError) or not error.args:
        return False
    cause = error.args[0]
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    return isinstance(cause, NewConnectionError)


def _parse_retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return max(float(headers["Retry-After"]), 0.0)
    except (KeyError, ValueError):
        return None


def _is_tradable(asset: Any) -> bool:
    return bool(asset.get("tradable")) and asset.get("status", "active") == "active"


def _parse_clock(answer: Any) -> int:
    try:
        return parse_time(answer["timestamp"])
    except (TypeError, KeyError, AttributeError, ValueError):
        raise CodecError("the clock has no timestamp") from None
