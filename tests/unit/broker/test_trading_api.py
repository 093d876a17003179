"""Failures of the venue, and of the way to it, as errors of ours."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
import requests

from dry_work.addresses import is_loopback_url
from dry_work.alpaca.trading import TradingApi, choose_url, map_status
from dry_work.errors import (
    BrokerUnavailableError,
    ConfigError,
    InsufficientFundsError,
    OrderRejectedError,
    OutcomeUnknownError,
    RateLimitedError,
    VenueAuthError,
)

from .scripted_venue import NOW_NS, ScriptedVenue, foreign_request


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (400, {"code": 40010000, "message": "m"}, OrderRejectedError, 40010000),
        (401, {"code": 40110000, "message": "m"}, VenueAuthError, 40110000),
        (403, {"message": "forbidden."}, VenueAuthError, None),
        (403, "<html>nginx</html>", VenueAuthError, None),
        (403, {"code": 40310000, "message": "insufficient buying power"}, InsufficientFundsError, 40310000),
        (403, {"code": 40310000, "message": "potential wash trade detected"}, OrderRejectedError, 40310000),
        (404, {"code": 40410000, "message": "m"}, OrderRejectedError, 40410000),
        (422, {"code": 42210000, "message": "m"}, OrderRejectedError, 42210000),
        (429, {"code": 42910000, "message": "m"}, RateLimitedError, None),
        (500, {"code": 50010000, "message": "m"}, OutcomeUnknownError, 50010000),
        (502, "<html>bad gateway</html>", OutcomeUnknownError, None),
        (504, "", OutcomeUnknownError, None),
    ],
)
def test_an_answer_is_mapped(status: int, body: Any, kind: type[Exception], code: int | None) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    error = map_status(status, text, {"X-Request-ID": "r", "Retry-After": "7"})
    assert type(error) is kind
    assert error.code == code
    assert error.http_status == status
    assert error.message
    if isinstance(error, RateLimitedError):
        assert error.retry_after_s == 7
    assert error.retryable == (status == 429 or status >= 500)


def test_answers_are_values(venue: ScriptedVenue) -> None:
    api = TradingApi("KEY", "SECRET", url=venue.url)
    assert api.account().cash == 100_000
    assert api.positions() == []
    assert api.open_orders() == []
    assert api.clock_ns() == NOW_NS
    assert api.order_by_client_id("nobody") is None
    assert api.submit(foreign_request("AAPL")).status == "pending_new"
    assert repr(api) == f"TradingApi({venue.url!r})"
    api.close()


def test_a_hanging_venue_is_given_up(venue: ScriptedVenue) -> None:
    venue.on_submit = lambda request, number: "hang"
    api = TradingApi("KEY", "SECRET", url=venue.url, timeout_s=0.2)
    with pytest.raises(OutcomeUnknownError, match="ReadTimeout"):
        api.submit(foreign_request("AAPL"))
    api.close()


def test_a_429_is_not_repeated_by_the_library(venue: ScriptedVenue) -> None:
    venue.on_submit = lambda request, number: (429, {"message": "too many requests."})
    api = TradingApi("KEY", "SECRET", url=venue.url)
    with pytest.raises(RateLimitedError):
        api.submit(foreign_request("AAPL"))
    assert len(venue.submits) == 1
    api.close()


@pytest.mark.parametrize("body", [{"id": "x"}, [], "text", None])
def test_an_answer_that_cannot_be_read_leaves_the_outcome_open(venue: ScriptedVenue, body: Any) -> None:
    venue.on_submit = lambda request, number: (200, body)
    api = TradingApi("KEY", "SECRET", url=venue.url)
    with pytest.raises(OutcomeUnknownError):
        api.submit(foreign_request("AAPL"))
    api.close()


def test_without_a_connection_nothing_was_sent() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        api = TradingApi("KEY", "SECRET", url=f"http://me:hidden@{address}")
        with pytest.raises(BrokerUnavailableError, match=f"no connection to http://{address}$"):
            api.submit(foreign_request("AAPL"))
    api.close()


def test_every_error_of_requests_is_mapped(venue: ScriptedVenue, monkeypatch: pytest.MonkeyPatch) -> None:
    api = TradingApi("KEY", "SECRET", url=venue.url)
    kinds = [
        kind for kind in vars(requests.exceptions).values()
        if isinstance(kind, type) and issubclass(kind, requests.RequestException)
        and kind is not requests.exceptions.JSONDecodeError
    ]  # fmt: skip
    assert len(kinds) > 10
    for kind in kinds:

        def fail(*args: Any, _kind: Any = kind, **options: Any) -> Any:
            raise _kind("broken")

        monkeypatch.setattr(api._client._session, "request", fail)
        with pytest.raises((OutcomeUnknownError, BrokerUnavailableError)):
            api.account()
    api.close()


def test_the_url_follows_from_paper_unless_it_is_given() -> None:
    assert choose_url(None, paper=True) == "https://paper-api.alpaca.markets"
    assert choose_url("", paper=True) == "https://paper-api.alpaca.markets"
    assert choose_url(None, paper=False) == "https://api.alpaca.markets"
    assert choose_url("http://127.0.0.1:9/", paper=True) == "http://127.0.0.1:9"
    with pytest.raises(ConfigError, match="real money"):
        choose_url("https://api.alpaca.markets", paper=True)


@pytest.mark.parametrize(
    ("url", "expected"),
    [("http://127.0.0.1:5", True), ("http://localhost", True), ("http://[::1]:5", True), ("https://a.b", False)],
)
def test_this_machine_needs_no_proxy(url: str, expected: bool) -> None:
    assert is_loopback_url(url) is expected
