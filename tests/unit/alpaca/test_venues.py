"""Both APIs as one interface: where they are, what they ask, within one budget."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import web

from dry_work.alpaca.broker_api import BrokerTradingApi
from dry_work.alpaca.broker_events import BrokerTradeEvents
from dry_work.alpaca.limits import UNSHARED, Priority, RateLimit, RateLimiter
from dry_work.alpaca.streams import TradeUpdates
from dry_work.alpaca.trading import TradingApi
from dry_work.alpaca.venue_api import VenueApi
from dry_work.alpaca.venues import choose_account_id, open_venue
from dry_work.clock import ManualClock
from dry_work.errors import ConfigError, OrderRejectedError, RateLimitedError, VenueAuthError
from dry_work.orders.model import OrderRequest, OrderType, Replacement, Side, TimeInForce

ACCOUNT = "0f0ee2ab-bd0d-4b7e-8bb7-0f5e4ae4c4a8"
DEADLINE_S = 60.0
ORDER = {
    "id": "o1", "client_order_id": "c1", "symbol": "SPY", "side": "buy", "type": "market", "time_in_force": "day",
    "status": "new", "qty": "1", "filled_qty": "0", "asset_class": "us_equity",
}  # fmt: skip
MARKET = OrderRequest(
    client_order_id="c1", symbol="SPY", side=Side.BUY, type=OrderType.MARKET, time_in_force=TimeInForce.DAY,
    qty=Decimal(1),
)  # fmt: skip
ANSWERS: dict[str, Any] = {
    "/account": {"id": ACCOUNT, "cash": "1", "equity": "2", "buying_power": "3"},
    "/positions": [],
    "/accounts/activities/FILL": [],
    "/orders": [],
    "/orders:by_client_order_id": ORDER,
    "/orders/o1": ORDER,
    "/assets": [],
    "/assets/SPY": {"symbol": "SPY", "tradable": True},
    "/clock": {"timestamp": "2024-06-11T13:30:00Z"},
}


class RestServer:
    """Answers both APIs alike, and keeps what was asked for."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str]] = []  # method, path with query, credentials
        self.refusal: tuple[int, dict[str, str]] | None = None
        self.headers: dict[str, str] = {}
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="rest server", daemon=True)
        self._thread.start()
        assert self._started.wait(DEADLINE_S)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE_S)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        basic = request.headers.get("Authorization", "")
        credentials = base64.b64decode(basic.removeprefix("Basic ")).decode() if basic else ""
        self.requests.append((request.method, request.path_qs, credentials or request.headers["APCA-API-KEY-ID"]))
        if self.refusal is not None:
            return web.json_response(self.refusal[1], status=self.refusal[0], headers=self.headers)
        path = request.path.removeprefix("/v2").removeprefix("/v1").removeprefix(f"/trading/accounts/{ACCOUNT}")
        found = ORDER if request.method in ("POST", "PATCH") else ANSWERS.get(path)
        return web.json_response(found, headers=self.headers)


@pytest.fixture
def server() -> Iterator[RestServer]:
    server = RestServer()
    yield server
    server.stop()


def ask_everything(api: VenueApi) -> list[Any]:
    found = [
        api.account(), api.positions(), api.open_orders(), api.clock_ns(), api.is_tradable("SPY"),
        api.tradable_assets(), api.submit(MARKET), api.order("o1"), api.order_by_client_id("c1"),
        api.replace("o1", Replacement(qty=Decimal(2))), api.price_increment("SPY"),
    ]  # fmt: skip
    api.cancel("o1")
    return found


def test_the_broker_api_is_asked_for_the_same_at_its_own_paths(server: RestServer) -> None:
    trading = open_venue("KEY", "SECRET", url=server.url).open_api()
    broker = open_venue("KEY", "SECRET", url=server.url, account_id=ACCOUNT).open_api()
    assert ask_everything(trading) == ask_everything(broker)
    half = len(server.requests) // 2
    plain, on_behalf = server.requests[:half], server.requests[half:]
    assert half == 12
    for (method, path, key), (broker_method, broker_path, credentials) in zip(plain, on_behalf, strict=True):
        rest = path.removeprefix("/v2")
        place = "/v1" if rest.startswith(("/clock", "/assets")) else f"/v1/trading/accounts/{ACCOUNT}"
        assert (broker_method, broker_path) == (method, f"{place}{rest}")
        assert (key, credentials) == ("KEY", "KEY:SECRET")
    assert broker.call("GET", "/account/activities/FILL", {"page_size": 5}) == []
    assert server.requests[-1][1] == f"/v1/accounts/activities/FILL?page_size=5&account_id={ACCOUNT}"
    broker.report_slice(1, consumer="c", orders=0)
    assert server.requests[-1][:2] == ("POST", "/dry-work/v1/slices/1/done")
    for api in (trading, broker):
        assert "SECRET" not in repr(api)
        api.close()


def test_errors_are_the_same_but_for_what_to_do_about_the_account(server: RestServer) -> None:
    api = open_venue("KEY", "SECRET", url=server.url, account_id=ACCOUNT).open_api()
    server.refusal = (422, {"code": 42210000, "message": "no such thing"})  # type: ignore[dict-item]
    with pytest.raises(OrderRejectedError, match="no such thing"):
        api.submit(MARKET)
    server.refusal = (401, {"message": "unauthorized."})
    with pytest.raises(VenueAuthError, match=r"unauthorized\.; check key and ALPACA_ACCOUNT_ID, or unset") as refused:
        api.positions()
    assert refused.value.http_status == 401
    server.refusal = (404, {"message": "account not found"})
    with pytest.raises(VenueAuthError, match=r"no account …c4a8 for this key: account not found; check key"):
        api.account()
    assert api.order("o1") is None
    plain = open_venue("KEY", "SECRET", url=server.url).open_api()
    server.refusal = (401, {"message": "unauthorized."})
    with pytest.raises(VenueAuthError) as caught:
        plain.positions()
    assert "ACCOUNT" not in str(caught.value)
    for each in (api, plain):
        each.close()


def test_settings_choose_the_api_and_its_address() -> None:
    cases = [
        (None, True, "https://paper-api.alpaca.markets", "wss://paper-api.alpaca.markets/stream"),
        (None, False, "https://api.alpaca.markets", "wss://api.alpaca.markets/stream"),
        (
            ACCOUNT, True, "https://broker-api.sandbox.alpaca.markets",
            "https://broker-api.sandbox.alpaca.markets/v2/events/trades",
        ),
        (
            ACCOUNT, False, "https://broker-api.alpaca.markets", "https://broker-api.alpaca.markets/v2/events/trades",
        ),
    ]  # fmt: skip
    for account_id, paper, url, stream_url in cases:
        venue = open_venue("KEY", "SECRET", account_id=account_id, paper=paper)
        assert (venue.url, venue.stream_url) == (url, stream_url)
        assert "SECRET" not in repr(venue)
        api = venue.open_api()
        assert type(api) is (BrokerTradingApi if account_id else TradingApi)
        api.close()
        stream = venue.open_stream(**dict.fromkeys(("on_event", "on_listening", "on_unreadable", "on_failure"), print))
        assert type(stream) is (BrokerTradeEvents if account_id else TradeUpdates)
    for url, account_id in (("https://api.alpaca.markets/", None), ("https://broker-api.alpaca.markets", ACCOUNT)):
        with pytest.raises(ConfigError, match="real money"):
            open_venue("KEY", "SECRET", url=url, account_id=account_id)


@pytest.mark.parametrize(
    ("url", "named", "found"),
    [
        ("https://broker-api.sandbox.alpaca.markets", "", ACCOUNT),
        ("https://broker-api.alpaca.markets", "another", ACCOUNT),
        ("https://paper-api.alpaca.markets", ACCOUNT, ""),
        ("http://127.0.0.1:1", ACCOUNT.upper(), ACCOUNT),
        ("http://127.0.0.1:1", "", ""),
    ],
)
def test_an_agents_journal_tells_whose_account_it_trades_with(url: str, named: str, found: str) -> None:
    assert choose_account_id(url, ACCOUNT, named) == found


def test_clients_of_one_key_share_its_budget_and_the_brake_gets_through(server: RestServer) -> None:
    venue = open_venue("KEY", "SECRET", url=server.url)
    worker, brake = venue.open_api(patience_s=0.0), venue.open_api(priority=Priority.BRAKE, patience_s=0.0)
    assert worker.limiter is brake.limiter
    reset_s = int(time.time()) + 30
    server.headers = {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "1", "X-RateLimit-Reset": str(reset_s)}
    worker.submit(MARKET)
    with pytest.raises(RateLimitedError, match=r"the request budget of this key at .* is spent") as caught:
        worker.submit(MARKET)
    assert caught.value.retryable
    assert 0 < (caught.value.retry_after_s or 0.0) <= 31
    assert len(server.requests) == 1  # the second one was not sent
    brake.cancel("o1")
    assert len(server.requests) == 2
    worker.report_slice(1, consumer="c", orders=0)  # has no budget
    for api in (worker, brake):
        api.close()


def test_a_refusal_for_too_many_requests_makes_all_clients_of_the_key_wait(server: RestServer) -> None:
    venue = open_venue("KEY", "SECRET", url=server.url)
    first, second = venue.open_api(patience_s=0.0), venue.open_api(patience_s=0.0)
    server.refusal, server.headers = (429, {"message": "too many requests."}), {"Retry-After": "30"}
    with pytest.raises(RateLimitedError, match="too many requests"):
        first.account()
    server.refusal = None
    with pytest.raises(RateLimitedError, match="budget"):
        second.submit(MARKET)
    assert len(server.requests) == 1


def test_a_wait_for_the_budget_ends_when_it_is_abandoned(server: RestServer) -> None:
    limiter = RateLimiter(RateLimit(1, shares=UNSHARED), clock=ManualClock())
    api = TradingApi("KEY", "SECRET", url=server.url, limiter=limiter, patience_s=1e6)
    api.account()
    errors: list[Exception] = []

    def ask() -> None:
        try:
            api.account()
        except RateLimitedError as error:
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    api.abandon()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert len(errors) == len(server.requests) == 1
    api.close()
