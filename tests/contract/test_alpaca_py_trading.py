"""What else unmodified alpaca-py does with an account: replace, immediate orders, settings, history, several keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
import requests
from alpaca.common.exceptions import APIError
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import OrderClass, OrderSide, OrderStatus, QueryOrderStatus, TimeInForce
from alpaca.trading.models import AccountConfiguration, Order, TradeUpdate
from alpaca.trading.requests import (
    CreateWatchlistRequest,
    GetOrderByIdRequest,
    GetOrdersRequest,
    GetPortfolioHistoryRequest,
    LimitOrderRequest,
    MarketOrderRequest,
    ReplaceOrderRequest,
    UpdateWatchlistRequest,
)
from alpaca.trading.stream import TradingStream

from dry_work.exchange.data_sockets import StreamLimits
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day

from .alpaca_market import KEY, SECRET, Market, run_streams, wait_until

OTHER_KEY = "PKOTHER"


@contextmanager
def run_exchange(**options: Any) -> Iterator[ExchangeServer]:
    options = {"rules": "alpaca", "keys": {KEY: SECRET, OTHER_KEY: SECRET}, **options}
    server = ExchangeServer(synthetic_day(["AAPL", "SPY", "BTC/USD"], minutes=120), **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def open_client(server: ExchangeServer, key: str = KEY, **options: Any) -> Iterator[TradingClient]:
    client = TradingClient(key, SECRET, paper=True, url_override=server.url, **options)
    yield client
    client._session.close()


@pytest.fixture
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return getattr(request, "param", {})


@pytest.fixture
def server(options: dict[str, Any]) -> Iterator[ExchangeServer]:
    with run_exchange(**options) as server:
        yield server


@pytest.fixture
def market(server: ExchangeServer) -> Iterator[Market]:
    market = Market(server)
    yield market
    market.close()


@pytest.fixture
def client(server: ExchangeServer) -> Iterator[TradingClient]:
    with open_client(server) as client:
        yield client


@pytest.fixture
def updates(server: ExchangeServer) -> Iterator[list[TradeUpdate]]:
    """Every trade update of the account but those of AAPL, of which the probes are."""
    told: list[TradeUpdate] = []
    probes: list[UUID] = []

    async def take(update: TradeUpdate) -> None:
        if update.order.symbol == "AAPL":
            probes.append(update.order.id)
        else:
            told.append(update)

    stream = TradingStream(KEY, SECRET, url_override=server.stream_url + "/stream")
    stream.subscribe_trade_updates(take)
    with run_streams(server) as run, open_client(server) as client:
        run(stream)
        while not probes:  # the exchange may hear of the listening after an order
            client.cancel_order_by_id(client.submit_order(build_limit("AAPL", 0.01)).id)
            time.sleep(0.02)
        yield told


def build_limit(symbol: str, price: float, qty: float = 1, **fields: Any) -> LimitOrderRequest:
    asked = {"side": OrderSide.BUY, "time_in_force": TimeInForce.GTC, **fields}
    return LimitOrderRequest(symbol=symbol, qty=qty, limit_price=price, **asked)


def build_market(symbol: str, qty: float = 1, **fields: Any) -> MarketOrderRequest:
    asked = {"side": OrderSide.BUY, "time_in_force": TimeInForce.GTC, **fields}
    return MarketOrderRequest(symbol=symbol, qty=qty, **asked)


def refuse(work: Callable[[], object]) -> tuple[int, int, str]:
    with pytest.raises(APIError) as refused:
        work()
    return refused.value.status_code, refused.value.code, refused.value.message


def step_until(market: Market, condition: Callable[[], bool]) -> None:
    for _ in range(30):  # a symbol may be silent for some minutes
        if condition():
            return
        market.step()
    raise AssertionError("30 minutes went by in vain")


# Replacement


def test_an_order_is_replaced_and_the_stream_tells_the_chain(
    client: TradingClient, market: Market, updates: list[TradeUpdate]
) -> None:
    old = client.submit_order(build_limit("SPY", 1.0, qty=2))
    new = client.replace_order_by_id(old.id, ReplaceOrderRequest(limit_price=1.5, qty=3, client_order_id="mine"))
    assert isinstance(new, Order)
    assert (new.replaces, new.limit_price, new.qty, new.filled_qty) == (old.id, "1.5", "3", "0")
    assert new.client_order_id == "mine"
    replaced = client.get_order_by_id(old.id)
    assert (replaced.status, replaced.replaced_by) == (OrderStatus.REPLACED, new.id)
    assert replaced.replaced_at is not None
    wait_until(lambda: len(updates) == 4, "all is told")
    assert [(update.event, update.order.id) for update in updates] == [
        ("pending_new", old.id),
        ("new", old.id),
        ("replaced", old.id),
        ("new", new.id),
    ]
    assert (updates[2].order.limit_price, updates[2].order.replaced_by) == ("1", new.id)
    again = client.replace_order_by_id(new.id, ReplaceOrderRequest(time_in_force=TimeInForce.DAY))
    assert again.time_in_force is TimeInForce.DAY
    closed = client.get_orders(GetOrdersRequest(status=QueryOrderStatus.CLOSED, symbols=["SPY"]))
    assert [order.status for order in closed] == [OrderStatus.REPLACED] * 2


def test_a_replacement_is_refused_with_alpacas_words(client: TradingClient, market: Market) -> None:
    market.step()
    order = client.submit_order(build_limit("SPY", 1.0, qty=2))
    replace = client.replace_order_by_id
    same = (422, 42210000, "order parameters are not changed")
    assert refuse(lambda: replace(order.id, ReplaceOrderRequest(limit_price=1.0))) == same
    assert refuse(lambda: replace(order.id, ReplaceOrderRequest(qty=10**6, limit_price=500)))[:2] == (403, 40310000)
    assert refuse(lambda: replace(uuid4(), ReplaceOrderRequest(qty=1)))[:2] == (404, 40410000)
    client.cancel_order_by_id(order.id)
    closed = (422, 42210000, "order is not open")
    assert refuse(lambda: replace(order.id, ReplaceOrderRequest(qty=1))) == closed


@pytest.mark.parametrize("options", [{"changes_in_flight": True}], indirect=True)
def test_a_replacement_and_a_cancel_lose_to_fills(
    client: TradingClient, market: Market, updates: list[TradeUpdate]
) -> None:
    market.step()
    doomed = client.submit_order(build_limit("SPY", 9000, client_order_id="a"))
    late = client.submit_order(build_limit("SPY", 9000, client_order_id="b"))
    new = client.replace_order_by_id(doomed.id, ReplaceOrderRequest(limit_price=1, client_order_id="c"))
    assert new.status is OrderStatus.PENDING_NEW
    client.cancel_order_by_id(late.id)
    assert client.get_order_by_id(doomed.id).status is OrderStatus.PENDING_REPLACE
    assert client.get_order_by_id(late.id).status is OrderStatus.PENDING_CANCEL
    step_until(market, lambda: client.get_order_by_id(new.id).status is not OrderStatus.PENDING_NEW)
    assert client.get_order_by_id(new.id).status is OrderStatus.REJECTED
    assert client.get_open_position("SPY").qty == "2"
    wait_until(lambda: len(updates) == 11, "all is told")
    assert [(update.event, update.order.client_order_id) for update in updates[4:]] == [
        ("pending_replace", "a"),
        ("pending_cancel", "b"),
        ("fill", "a"),
        ("fill", "b"),
        ("order_replace_rejected", "a"),
        ("rejected", "c"),
        ("order_cancel_rejected", "b"),
    ]


# Immediate orders


@pytest.mark.parametrize("time_in_force", [TimeInForce.IOC, TimeInForce.FOK])
def test_an_immediate_order_fills_or_is_canceled(
    client: TradingClient, market: Market, time_in_force: TimeInForce
) -> None:
    market.step()
    good = client.submit_order(build_limit("SPY", 9000, time_in_force=time_in_force))
    bad = client.submit_order(build_limit("SPY", 1, time_in_force=time_in_force))
    step_until(market, lambda: client.get_order_by_id(bad.id).status is not OrderStatus.NEW)
    assert client.get_order_by_id(good.id).status is OrderStatus.FILLED
    assert client.get_order_by_id(bad.id).status is OrderStatus.CANCELED
    assert client.get_order_by_id(bad.id).canceled_at is not None


@pytest.mark.parametrize("options", [{"cash": Decimal(10**9)}], indirect=True)
def test_ioc_takes_what_the_bar_has(client: TradingClient, market: Market) -> None:
    bars = market.step()
    order = client.submit_order(build_market("BTC/USD", 1000, time_in_force=TimeInForce.IOC))
    while client.get_order_by_id(order.id).status is OrderStatus.NEW:
        bars = market.step()
    volume = next(bar["v"] for bar in bars if bar["S"] == "BTC/USD")
    order = client.get_order_by_id(order.id)
    assert order.status is OrderStatus.CANCELED
    assert 0 < float(order.filled_qty) < 1000
    assert float(order.filled_qty) == volume
    assert refuse(lambda: client.submit_order(build_market("BTC/USD", time_in_force=TimeInForce.FOK)))[:2] == (
        422,
        42210000,
    )


# The form of numbers and models


@pytest.mark.parametrize(("qty", "text"), [(1e-09, "0.000000001"), (0.1, "0.1"), (3.0, "3"), (1e2, "100")])
def test_numbers_in_any_json_form_come_back_as_plain_strings(server: ExchangeServer, qty: float, text: str) -> None:
    with run_exchange(rules="backtrader") as plain, open_client(plain, raw_data=True) as raw:
        order = raw.submit_order(build_limit("BTC/USD", 1e-05, qty=qty))
        assert (order["qty"], order["limit_price"], order["filled_qty"]) == (text, "0.00001", "0")
        assert order["order_class"] == ""
        assert all(order[name] for name in ("created_at", "updated_at", "submitted_at"))


def test_a_model_is_made_of_every_answer_about_an_order(client: TradingClient, market: Market) -> None:
    market.step()
    order = client.submit_order(build_limit("AAPL", 1))
    assert order.order_class is OrderClass.SIMPLE
    assert client.get_order_by_id(order.id, GetOrderByIdRequest(nested=True)).id == order.id
    assert client.get_orders(GetOrdersRequest(nested=True, side=OrderSide.BUY))[0].id == order.id
    assert [answer.status for answer in client.cancel_orders()] == [200]


def test_a_close_all_that_cannot_close_says_why_in_its_body(client: TradingClient, market: Market) -> None:
    market.step()
    client.submit_order(build_market("SPY", 4))
    step_until(market, lambda: bool(client.get_all_positions()))
    client.submit_order(build_limit("SPY", 9000, qty=4, side=OrderSide.SELL))
    (answer,) = client.close_all_positions(cancel_orders=False)
    assert (answer.symbol, answer.status, answer.body.code) == ("SPY", 403, 40310000)
    assert (answer.body.held_for_orders, answer.body.existing_qty) == (4.0, 4.0)
    (answer,) = client.close_all_positions(cancel_orders=True)
    assert (answer.status, answer.body.qty) == (200, "4")


# Account


def test_settings_go_there_and_back(client: TradingClient, market: Market) -> None:
    settings = client.get_account_configurations()
    settings.suspend_trade = True
    changed = client.set_account_configurations(settings)
    assert isinstance(changed, AccountConfiguration)
    assert changed.suspend_trade
    assert client.get_account().trade_suspended_by_user
    assert refuse(lambda: client.submit_order(build_limit("SPY", 1))) == (
        403,
        40310000,
        "new orders are rejected by user request",
    )
    settings.suspend_trade = False
    client.set_account_configurations(settings)
    client.submit_order(build_limit("SPY", 1))


def test_the_equity_has_a_history(client: TradingClient, market: Market) -> None:
    market.step()
    client.submit_order(build_market("SPY", 10))
    for _ in range(20):
        market.step()
    history = client.get_portfolio_history(GetPortfolioHistoryRequest(period="1D", timeframe="1Min"))
    assert len(history.equity) == len(history.timestamp) == len(history.profit_loss) == 22
    assert history.base_value == 100_000
    assert history.equity[-1] == float(client.get_account().equity)
    assert history.timeframe == "1Min"


def test_activities_are_paged(client: TradingClient, market: Market) -> None:
    market.step()
    for _ in range(5):
        client.submit_order(build_market("SPY"))
    step_until(market, lambda: bool(client.get_all_positions()))
    seen: list[dict[str, Any]] = []
    token = None
    while page := client.get(
        "/account/activities/FILL", {"page_size": 2, "page_token": token} if token else {"page_size": 2}
    ):
        seen += page
        token = page[-1]["id"]
    assert len({row["id"] for row in seen}) == len(seen) == 5
    assert {row["order_status"] for row in seen} == {"filled"}
    assert all(UUID(row["id"].partition("::")[2]) for row in seen)


def test_watchlists(client: TradingClient) -> None:
    made = client.create_watchlist(CreateWatchlistRequest(name="mine", symbols=["SPY"]))
    assert client.get_watchlists()[0].id == made.id
    assert [asset.symbol for asset in client.add_asset_to_watchlist_by_id(made.id, "BTC/USD").assets] == [
        "SPY",
        "BTC/USD",
    ]
    assert [asset.symbol for asset in client.remove_asset_from_watchlist_by_id(made.id, "SPY").assets] == ["BTC/USD"]
    renamed = client.update_watchlist_by_id(made.id, UpdateWatchlistRequest(name="ours"))
    assert (renamed.name, len(client.get_watchlist_by_id(made.id).assets)) == ("ours", 1)
    client.delete_watchlist_by_id(made.id)
    assert client.get_watchlists() == []


def test_two_keys_are_two_accounts(client: TradingClient, server: ExchangeServer, market: Market) -> None:
    market.step()
    order = client.submit_order(build_market("SPY", client_order_id="same"))
    with open_client(server, OTHER_KEY) as other:
        assert other.get_account().id != client.get_account().id
        other.submit_order(build_limit("SPY", 1, client_order_id="same"))
        assert refuse(lambda: other.get_order_by_id(order.id))[:2] == (404, 40410000)
        step_until(market, lambda: bool(client.get_all_positions()))
        assert other.get_all_positions() == []
        assert other.get_account().cash == "100000"


# Limits


@pytest.mark.parametrize("options", [{"requests_per_minute": 1}], indirect=True)
def test_a_request_over_the_budget_is_an_api_error_with_code_and_headers(
    server: ExchangeServer, client: TradingClient
) -> None:
    client._retry_wait = 0  # alpaca-py would wait three times 3 s
    client.get_clock()
    assert refuse(client.get_clock) == (429, 42910000, "rate limit exceeded")
    headers = {"APCA-API-KEY-ID": KEY, "APCA-API-SECRET-KEY": SECRET}
    answer = requests.get(f"{server.url}/v2/clock", headers=headers, timeout=30)
    assert (answer.status_code, answer.headers["X-RateLimit-Remaining"]) == (429, "0")
    assert int(answer.headers["X-RateLimit-Reset"]) > 1_700_000_000


@pytest.mark.parametrize("options", [{"limits": StreamLimits(trade_connections=1)}], indirect=True)
def test_a_second_trading_stream_is_refused_and_gets_in_when_the_first_has_gone(
    server: ExchangeServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def take(update: TradeUpdate) -> None:
        """Nothing is to come."""

    streams = [TradingStream(KEY, SECRET, url_override=server.stream_url + "/stream") for _ in range(2)]
    for stream in streams:
        stream.subscribe_trade_updates(take)
        stream._reconnect_min_backoff = stream._reconnect_max_backoff = 0.05
    with run_streams(server) as run:
        run(streams[0])
        wait_until(lambda: streams[0]._running, "the first listens")
        run(streams[1])
        wait_until(lambda: "failed to authenticate" in caplog.text, "the second is refused")
        assert not streams[1]._running
        streams[0].stop()
        wait_until(lambda: streams[1]._running, "the second gets in")
