"""What an account's API at Alpaca has in common, whichever it is: requests, answers as values, failures as errors.

A thin shell on alpaca-py's clients. Their own retries are switched off: they would repeat a POST after a 504 without
looking whether the order was taken. Money travels as text in both directions. Every request has a time limit, and goes
out within the budget of its key.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import structlog
from alpaca.common.exceptions import APIError

from dry_work.addresses import is_loopback_url
from dry_work.alpaca.deadlines import DeadlineAdapter
from dry_work.alpaca.limits import Priority, RateLimiter, shared_limiter
from dry_work.errors import (
    BrokerError,
    BrokerUnavailableError,
    CodecError,
    InsufficientFundsError,
    OrderRejectedError,
    OutcomeUnknownError,
    RateLimitedError,
    VenueAuthError,
)
from dry_work.orders.lifecycle import is_lack_of_funds
from dry_work.orders.model import AccountSnapshot, OrderRequest, Replacement, VenueOrder, VenuePosition
from dry_work.pulse import give_pulse
from dry_work.wire.alpaca_orders import build_replacement, parse_orders
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
PATIENCE_S = 90.0  # for the budget: its window is a minute

_CONNECT_TIMEOUT_S = 5.0
_TOLD_WAIT_S = 1.0  # a longer wait for the budget is logged

_Parsed = TypeVar("_Parsed")

_log = structlog.get_logger(__name__)


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


class VenueApi:
    """Client of one account; `TradingApi` and `BrokerTradingApi` say where it is. One thread at a time uses it.

    Args:
        client: of alpaca-py, giving raw data.
        url: base URL.
        key: id of the key, for its budget.
        timeout_s: of every request, from its end to the end of its answer.
        priority: of every request; None: by what it asks for.
        patience_s: how long a request waits for the budget of the key. With 0 it fails at once, and the caller waits.
        limiter: the budget; None: the one of all clients of the key.
    """

    def __init__(
        self,
        client: Any,
        *,
        url: str,
        key: str,
        timeout_s: float,
        priority: Priority | None = None,
        patience_s: float = PATIENCE_S,
        limiter: RateLimiter | None = None,
    ) -> None:
        self.url = url
        self.limiter = limiter or shared_limiter(url, key)
        self._client = prepare_client(client, url=url, timeout_s=timeout_s)
        self._client._session.hooks["response"].append(self._keep_answer)
        self._priority = priority
        self._patience_s = patience_s
        self._abandoned = threading.Event()
        self._answer: tuple[int, Mapping[str, str]] | None = None
        self._unreadable: set[str] = set()  # open orders that were logged

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def call(
        self,
        method: str,
        path: str,
        data: Mapping[str, object] | None = None,
        *,
        version: str = "",
        priority: Priority | None = None,
    ) -> Any:
        """Send a request and return the decoded answer.

        Args:
            method: of HTTP.
            path: as the Trading API has it, without a version.
            data: query of a GET or DELETE, else the body.
            version: of another API at the same address, which has no budget; empty: the account's own.
            priority: of this request, if the client has none; None: by its method.

        Raises:
            OrderRejectedError: an answer of 400 to 499, with its code; VenueAuthError for refused credentials.
            OutcomeUnknownError: a 5xx, a time-out or a lost connection.
            BrokerUnavailableError, RateLimitedError: the request was not taken.
        """
        if version:
            return self._send(method, path, data, version)
        if priority is None:
            priority = Priority.POLLING if method == "GET" else Priority.ORDERS
        self._take_budget(priority if self._priority is None else self._priority)
        self._answer = None
        try:
            return self._send(method, *self._route(path, data))
        finally:
            self._settle()

    def abandon(self) -> None:
        """Let requests that wait for the budget fail at once, now and from now on; from any thread."""
        self._abandoned.set()
        self.limiter.wake()

    def _route(self, path: str, data: Mapping[str, object] | None) -> tuple[str, Mapping[str, object] | None, str]:
        """Return path, data and version of a request to the account's own API."""
        return path, data, "v2"

    def _refuse_credentials(self, error: VenueAuthError) -> VenueAuthError:
        """Return the error to raise when the credentials are refused."""
        return error

    def _send(self, method: str, path: str, data: Mapping[str, object] | None, version: str) -> Any:
        give_pulse()  # who makes many requests in one round is at work
        try:
            return self._client._request(method, path, data, api_version=version)
        except APIError as error:
            response = error.response
            if response is None:
                raise OutcomeUnknownError(f"{method} {path} failed without an answer") from error
            found = map_status(response.status_code, response.text, response.headers)
            raise self._refuse_credentials(found) if isinstance(found, VenueAuthError) else found from error
        except requests.RequestException as error:
            raise _map_transport(method, path, error) from error
        except ValueError as error:  # an answer of 200 that is no JSON: a proxy, or another program
            raise OutcomeUnknownError(f"{method} {path}: the answer is no JSON") from error

    def _take_budget(self, priority: Priority) -> None:
        wait_s = self.limiter.try_take(priority)
        if not wait_s:
            return
        if self._patience_s > 0:
            if wait_s > _TOLD_WAIT_S:
                _log.info("waiting for the request budget of the key", url=self.url, wait_s=round(wait_s, 1))
            if self.limiter.acquire(priority, timeout_s=self._patience_s, is_abandoned=self._abandoned.is_set):
                return
        raise RateLimitedError(
            f"the request budget of this key at {self.url} is spent", retry_after_s=wait_s, http_status=None
        )

    def _settle(self) -> None:
        """Tell the limiter what became of the request."""
        if self._answer is None:
            self.limiter.drop()
        else:
            self.limiter.observe(*self._answer)

    def _keep_answer(self, response: Any, **_: Any) -> None:
        self._answer = (int(response.status_code), dict(response.headers))

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
        """Return the open orders, newest first, at most 500. One that cannot be read is left out, and logged once."""
        query = {"status": "open", "limit": OPEN_ORDERS_LIMIT}
        orders, unreadable = parse_orders(self._list("/orders", query))
        for reason in set(unreadable) - self._unreadable:
            _log.warning("an open order cannot be read and is left out", reason=reason)
        self._unreadable.update(unreadable)
        return orders

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
            query = {"client_order_id": client_order_id}
            answer = self.call("GET", "/orders:by_client_order_id", query, priority=Priority.LOOK_UPS)
        except OrderRejectedError as error:
            if error.http_status == 404:
                return None
            raise
        return self._parse(parse_order, answer)

    def order(self, order_id: str) -> VenueOrder | None:
        """Return the order with the venue's id, with its legs; None when the venue does not know it."""
        try:
            answer = self.call("GET", f"/orders/{order_id}", {"nested": "true"}, priority=Priority.LOOK_UPS)
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
    """Give a client of alpaca-py what it lacks: time-outs, and no retries of its own, which repeat orders as well.

    Args:
        client: of alpaca-py.
        url: base URL.
        timeout_s: of every request, from its end to the end of its answer.
    """
    client._retry = 0
    session = client._session
    for scheme in ("http://", "https://"):
        session.mount(scheme, DeadlineAdapter())
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
        return BrokerUnavailableError(f"{what}: no connection{_name_host(error)}")
    return OutcomeUnknownError(what)


def _name_host(error: requests.RequestException) -> str:
    url = error.request.url if error.request is not None else None
    if not url:
        return ""
    parts = urlsplit(url)  # without user and password, which an address may have
    return f" to {parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


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
