"""Unmodified alpaca-py clients, and plain `websockets`, against the running exchange."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from alpaca.common.exceptions import APIError
from alpaca.data.historical import CryptoHistoricalDataClient, StockHistoricalDataClient
from alpaca.data.live import CryptoDataStream, StockDataStream
from alpaca.data.requests import CryptoBarsRequest, StockBarsRequest
from alpaca.data.timeframe import TimeFrame
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import AssetClass, OrderSide, OrderStatus, QueryOrderStatus, TimeInForce
from alpaca.trading.models import TradeUpdate
from alpaca.trading.requests import (
    ClosePositionRequest,
    GetAssetsRequest,
    GetCalendarRequest,
    GetOrdersRequest,
    LimitOrderRequest,
    MarketOrderRequest,
    StopLimitOrderRequest,
    StopOrderRequest,
)
from alpaca.trading.stream import TradingStream

from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day

from .alpaca_market import KEY, SECRET, Market, run_streams, subscribe_bars, wait_until


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[ExchangeServer]:
    rules = getattr(request, "param", "backtrader")
    server = ExchangeServer(synthetic_day(["AAPL", "SPY", "BTC/USD"], minutes=120), rules=rules, keys={KEY: SECRET})
    server.start()
    yield server
    server.stop()


@pytest.fixture
def market(server: ExchangeServer) -> Iterator[Market]:
    market = Market(server)
    yield market
    market.close()


@pytest.fixture
def client(server: ExchangeServer) -> Iterator[TradingClient]:
    client = TradingClient(KEY, SECRET, paper=True, url_override=server.url)
    yield client
    client._session.close()


@pytest.fixture
def run_stream(server: ExchangeServer) -> Iterator[Callable[[Any], None]]:
    with run_streams(server) as run:
        yield run


# Trading over HTTP


def test_account_assets_clock_and_calendar(client: TradingClient) -> None:
    account = client.get_account()
    assert (account.cash, account.equity, account.status.value) == ("100000", "100000", "ACTIVE")
    assert client.get_account_configurations().no_shorting is False
    assert [asset.symbol for asset in client.get_all_assets()] == ["AAPL", "SPY", "BTC/USD"]
    crypto = client.get_all_assets(GetAssetsRequest(asset_class=AssetClass.CRYPTO))
    assert [asset.symbol for asset in crypto] == ["BTC/USD"]
    for name in ("BTC/USD", "BTCUSD", crypto[0].id):
        assert client.get_asset(name) == crypto[0]
    clock = client.get_clock()
    assert clock.is_open
    assert clock.timestamp == datetime(2024, 6, 11, 13, 30, tzinfo=UTC)
    assert clock.next_close < clock.next_open
    days = client.get_calendar(GetCalendarRequest(start=date(2024, 7, 3), end=date(2024, 7, 5)))
    assert [(day.date.day, day.close.hour) for day in days] == [(3, 13), (5, 16)]


def test_orders_are_submitted_looked_up_listed_and_canceled(client: TradingClient, market: Market) -> None:
    market.step()
    price = float(client.get("/account")["cash"]) / 1e6  # 0.1: far below every price
    limit = client.submit_order(
        LimitOrderRequest(
            symbol="SPY",
            qty=0.30000000000000004,
            limit_price=price,
            side=OrderSide.BUY,
            time_in_force=TimeInForce.GTC,
            client_order_id="dw-1",
        )
    )
    assert (limit.status, limit.qty, limit.limit_price) == (OrderStatus.PENDING_NEW, "0.30000000000000004", "0.1")
    stop = client.submit_order(
        StopOrderRequest(symbol="SPY", qty=1, stop_price=9000, side=OrderSide.BUY, time_in_force=TimeInForce.GTC)
    )
    client.submit_order(
        StopLimitOrderRequest(
            symbol="BTC/USD",
            qty=1e-09,
            stop_price=1e6,
            limit_price=1e6,
            side=OrderSide.BUY,
            time_in_force=TimeInForce.GTC,
        )
    )
    market.step()

    assert client.get_order_by_client_id("dw-1").status is OrderStatus.NEW
    assert client.get_order_by_id(stop.id).stop_price == "9000"
    listed = client.get_orders(GetOrdersRequest(status=QueryOrderStatus.OPEN, symbols=["BTC/USD"]))
    assert [(order.symbol, order.qty) for order in listed] == [("BTC/USD", "0.000000001")]
    assert client.cancel_order_by_id(limit.id) is None
    assert client.get_order_by_id(limit.id).status is OrderStatus.CANCELED
    assert [answer.status for answer in client.cancel_orders()] == [200, 200]
    assert client.get_orders() == []
    closed = client.get_orders(GetOrdersRequest(status=QueryOrderStatus.CLOSED))
    assert {order.status for order in closed} == {OrderStatus.CANCELED}


def test_a_position_is_opened_shown_and_closed(client: TradingClient, market: Market) -> None:
    market.step()
    client.submit_order(
        MarketOrderRequest(symbol="BTC/USD", qty=0.5, side=OrderSide.BUY, time_in_force=TimeInForce.GTC)
    )
    client.submit_order(MarketOrderRequest(symbol="SPY", qty=3, side=OrderSide.SELL, time_in_force=TimeInForce.GTC))
    while len(client.get_all_positions()) < 2:  # a symbol may be silent for some minutes
        market.step()
    by_symbol = {position.symbol: position for position in client.get_all_positions()}
    assert (by_symbol["BTCUSD"].qty, by_symbol["BTCUSD"].side.value) == ("0.5", "long")
    assert (by_symbol["SPY"].qty, by_symbol["SPY"].side.value) == ("-3", "short")
    assert client.get_open_position("BTCUSD").asset_id == by_symbol["BTCUSD"].asset_id
    with pytest.raises(APIError) as refused:
        client.get_open_position("BTC/USD")  # as upstream
    assert refused.value.status_code == 404

    order = client.close_position("BTCUSD", ClosePositionRequest(percentage="50"))
    assert (order.side, order.qty) == (OrderSide.SELL, "0.25")
    while client.get_open_position("BTCUSD").qty != "0.25":
        market.step()
    answers = client.close_all_positions(cancel_orders=True)
    assert {answer.symbol: answer.body.qty for answer in answers} == {"BTCUSD": "0.25", "SPY": "3"}
    while client.get_all_positions():
        market.step()
    assert len(client.get("/account/activities/FILL", {"page_size": 100})) == 5


@pytest.mark.parametrize("server", ["alpaca"], indirect=True)
def test_refusals_come_as_api_errors_with_alpacas_codes(client: TradingClient, market: Market) -> None:
    for _ in range(5):
        market.step()

    def submit(**fields: Any) -> Any:
        order = {"symbol": "SPY", "qty": 1, "side": OrderSide.BUY, "time_in_force": TimeInForce.DAY, **fields}
        return client.submit_order(MarketOrderRequest(**order))

    def refuse(work: Callable[[], object]) -> tuple[int, int]:
        with pytest.raises(APIError) as refused:
            work()
        assert refused.value.message
        return refused.value.status_code, refused.value.code

    submit(client_order_id="once")
    assert refuse(lambda: submit(client_order_id="once")) == (422, 40010001)
    assert refuse(lambda: submit(qty=1e6)) == (403, 40310000)
    assert refuse(lambda: submit(symbol="NOPE")) == (422, 42210000)
    assert refuse(lambda: submit(qty=0)) == (422, 42210000)
    assert refuse(lambda: submit(symbol="BTC/USD", time_in_force=TimeInForce.DAY)) == (422, 42210000)
    assert refuse(lambda: client.get_order_by_id(UUID(int=1))) == (404, 40410000)
    assert refuse(lambda: client.get_asset("NOPE")) == (404, 40410000)
    assert refuse(lambda: client.get_order_by_client_id("never")) == (404, 40410000)


def test_bad_credentials_are_an_api_error(server: ExchangeServer) -> None:
    client = TradingClient(KEY, "wrong", url_override=server.url)
    with pytest.raises(APIError) as refused:
        client.get_account()
    assert (refused.value.status_code, refused.value.code) == (401, 40110000)
    client._session.close()


# Historical bars


def test_history_ends_at_the_exchanges_time_and_is_paged(server: ExchangeServer, market: Market) -> None:
    seen: list[dict[str, Any]] = []
    for _ in range(30):
        seen += market.step()
    start = datetime(2024, 6, 11, tzinfo=UTC)
    stocks = StockHistoricalDataClient(KEY, SECRET, url_override=server.url)
    crypto = CryptoHistoricalDataClient(url_override=server.url)
    for limit in (None, 7):
        found = stocks.get_stock_bars(
            StockBarsRequest(
                symbol_or_symbols=["SPY", "AAPL"],
                timeframe=TimeFrame.Minute,
                start=start,
                end=start + timedelta(days=2),
                limit=limit,
            )
        )
        expected = [bar["c"] for symbol in ("AAPL", "SPY") for bar in seen if bar["S"] == symbol][:limit]
        assert [bar.close for symbol in sorted(found.data) for bar in found.data[symbol]] == expected
    coins = crypto.get_crypto_bars(
        CryptoBarsRequest(symbol_or_symbols="BTC/USD", timeframe=TimeFrame.Minute, start=start)
    )
    assert [bar.close for bar in coins["BTC/USD"]] == [bar["c"] for bar in seen if bar["S"] == "BTC/USD"]
    stocks._session.close()
    crypto._session.close()


# Streams


@pytest.mark.parametrize(
    ("make", "path", "symbol"),
    [(StockDataStream, "/v2/iex", "SPY"), (CryptoDataStream, "/v1beta3/crypto/us", "BTC/USD")],
)
def test_bars_arrive_over_messagepack_with_the_times_of_their_starts(
    make: Any,
    path: str,
    symbol: str,
    server: ExchangeServer,
    market: Market,
    run_stream: Callable[[Any], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="alpaca")
    stream = make(KEY, SECRET, url_override=server.stream_url + path)
    bars = subscribe_bars(stream, symbol)
    run_stream(stream)
    wait_until(lambda: f"subscribed to bars: ['{symbol}']" in caplog.text, "the stream is subscribed")
    expected: list[dict[str, Any]] = []
    for _ in range(60):
        expected += [bar for bar in market.step() if bar["S"] == symbol]
    wait_until(lambda: len(bars) == len(expected), "all bars have come")
    for bar, sent in zip(bars, expected, strict=True):
        assert (bar.symbol, bar.open, bar.high, bar.low, bar.close) == (
            symbol,
            sent["o"],
            sent["h"],
            sent["l"],
            sent["c"],
        )
        assert bar.volume == sent["v"]
        assert bar.timestamp == datetime.fromisoformat(sent["t"])


def test_symbols_are_added_and_removed_while_a_stream_runs(
    server: ExchangeServer, market: Market, run_stream: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="alpaca")
    stream = StockDataStream(KEY, SECRET, url_override=server.stream_url + "/v2/iex")
    spy = subscribe_bars(stream, "SPY")
    run_stream(stream)
    wait_until(lambda: "subscribed to bars: ['SPY']" in caplog.text, "SPY is subscribed")
    wait_until(lambda: stream._running, "the stream takes changes")
    aapl = subscribe_bars(stream, "AAPL")
    wait_until(lambda: "subscribed to bars: ['AAPL', 'SPY']" in caplog.text, "AAPL is subscribed too")
    sent = [bar["S"] for _ in range(20) for bar in market.step()]
    wait_until(lambda: (len(spy), len(aapl)) == (sent.count("SPY"), sent.count("AAPL")), "bars of both have come")
    count = len(spy)
    caplog.clear()
    stream.unsubscribe_bars("SPY")
    wait_until(lambda: "subscribed to bars: ['AAPL']" in caplog.text, "SPY is unsubscribed")
    sent += [bar["S"] for _ in range(20) for bar in market.step()]
    wait_until(lambda: len(aapl) == sent.count("AAPL"), "the bars of AAPL have come")
    assert len(spy) == count


def test_a_stream_with_bad_credentials_is_told_auth_failed(
    server: ExchangeServer, run_stream: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    stream = StockDataStream(KEY, "wrong", url_override=server.stream_url + "/v2/iex")
    bars = subscribe_bars(stream, "SPY")
    run_stream(stream)
    wait_until(lambda: "auth failed" in caplog.text, "the refusal is logged")
    assert bars == []


def test_a_fill_arrives_on_the_trading_stream(
    server: ExchangeServer, client: TradingClient, market: Market, run_stream: Callable[[Any], None]
) -> None:
    updates: list[TradeUpdate] = []

    async def take(update: TradeUpdate) -> None:
        updates.append(update)

    stream = TradingStream(KEY, SECRET, url_override=server.stream_url + "/stream")
    stream.subscribe_trade_updates(take)
    run_stream(stream)
    wait_until(lambda: stream._running, "the stream listens")
    market.step()
    far = LimitOrderRequest(symbol="SPY", qty=1, limit_price=1, side=OrderSide.BUY, time_in_force=TimeInForce.GTC)
    while not updates:  # the exchange may hear of the listening after the order
        client.submit_order(far)
        market.step()
        market.step()
        client.cancel_orders()
        time.sleep(0.01)
    order = client.submit_order(
        MarketOrderRequest(
            symbol="SPY", qty=1.5, side=OrderSide.BUY, time_in_force=TimeInForce.GTC, client_order_id="fill me"
        )
    )
    while client.get_order_by_id(order.id).status is not OrderStatus.FILLED:
        market.step()
    wait_until(lambda: updates[-1].event == "fill", "the fill has come")
    new, fill = updates[-2:]
    assert (new.event, new.order.status) == ("new", OrderStatus.NEW)
    assert fill.order.id == order.id
    assert fill.order.client_order_id == "fill me"
    assert fill.order.status is OrderStatus.FILLED
    assert (fill.qty, fill.position_qty) == (1.5, 1.5)
    assert fill.order.filled_avg_price == str(fill.price)
    assert isinstance(fill.execution_id, UUID)
    assert fill.timestamp == fill.order.filled_at
