"""Every order kind of Alpaca's as unmodified alpaca-py sends it: groups, trailing stops, values, hours, faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import requests
from alpaca.common.exceptions import APIError
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import OrderClass, OrderSide, OrderStatus, OrderType, QueryOrderStatus, TimeInForce
from alpaca.trading.models import ClosePositionResponse, Order, TradeUpdate
from alpaca.trading.requests import (
    ClosePositionRequest,
    GetOrderByIdRequest,
    GetOrdersRequest,
    LimitOrderRequest,
    MarketOrderRequest,
    ReplaceOrderRequest,
    StopLimitOrderRequest,
    StopLossRequest,
    StopOrderRequest,
    TakeProfitRequest,
    TrailingStopOrderRequest,
)
from alpaca.trading.stream import TradingStream

from dry_work.clock import MINUTE_NS
from dry_work.exchange.server import ExchangeServer
from dry_work.feeds.recorded import Recording

from .alpaca_market import KEY, SECRET, Market, run_streams, wait_until

START_NS = 1_718_112_600_000_000_000  # 2024-06-11T13:30:00Z, the open in New York
PRICES = (100.0, 100.0, 101.0, 104.0, 103.0, 99.0, 96.0, 96.0, 97.0, 98.0)


def build_recording() -> Recording:
    """Flat bars of SPY at known prices, and of BTC/USD at ten times these."""
    prices = np.array(PRICES)
    columns = {}
    for symbol, factor in (("SPY", 1.0), ("BTC/USD", 10.0)):
        columns[symbol] = {
            "ts_event_ns": START_NS + MINUTE_NS * np.arange(len(prices)),
            "volume": np.full(len(prices), 4.0),
            **dict.fromkeys(("open", "high", "low", "close"), prices * factor),
        }
    return Recording(columns)


@pytest.fixture
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return getattr(request, "param", {})


@pytest.fixture
def server(options: dict[str, Any]) -> Iterator[ExchangeServer]:
    server = ExchangeServer(build_recording(), **{"rules": "alpaca", "keys": {KEY: SECRET}, **options})
    server.start()
    yield server
    server.stop()


@pytest.fixture
def market(server: ExchangeServer) -> Iterator[Market]:
    market = Market(server)
    market.step()
    yield market
    market.close()


@pytest.fixture
def client(server: ExchangeServer) -> Iterator[TradingClient]:
    client = TradingClient(KEY, SECRET, paper=True, url_override=server.url)
    client._retry_wait = 0
    yield client
    client._session.close()


@pytest.fixture
def updates(server: ExchangeServer, client: TradingClient) -> Iterator[list[TradeUpdate]]:
    """Every trade update of the account but those of BTC/USD, of which the probes are."""
    told: list[TradeUpdate] = []
    probes: list[UUID] = []

    async def take(update: TradeUpdate) -> None:
        if update.order.symbol == "BTC/USD":
            probes.append(update.order.id)
        else:
            told.append(update)

    stream = TradingStream(KEY, SECRET, url_override=server.stream_url + "/stream")
    stream.subscribe_trade_updates(take)
    with run_streams(server) as run:
        run(stream)
        while not probes:  # the exchange may hear of the listening after an order
            probe = LimitOrderRequest(
                symbol="BTC/USD", qty=1, limit_price=50, side=OrderSide.BUY, time_in_force=TimeInForce.GTC
            )
            client.cancel_order_by_id(client.submit_order(probe).id)
        yield told


def ask(kind: Any, **fields: Any) -> Any:
    return kind(**{"symbol": "SPY", "qty": 10, "side": OrderSide.BUY, "time_in_force": TimeInForce.GTC, **fields})


def bracket(**fields: Any) -> Any:
    exits = {"take_profit": TakeProfitRequest(limit_price=103), "stop_loss": StopLossRequest(stop_price=97)}
    return ask(MarketOrderRequest, order_class=OrderClass.BRACKET, **exits, **fields)


def refuse(work: Callable[[], object]) -> tuple[int, int, str]:
    with pytest.raises(APIError) as refused:
        work()
    return refused.value.status_code, refused.value.code, refused.value.message


def find(client: TradingClient, order: Order, *, nested: bool = False) -> Order:
    return client.get_order_by_id(order.id, GetOrderByIdRequest(nested=nested))


# Groups


def test_a_bracket_from_its_answer_to_its_end(
    client: TradingClient, market: Market, updates: list[TradeUpdate]
) -> None:
    entry = client.submit_order(bracket(client_order_id="mine"))
    profit, stop = entry.legs
    assert (entry.order_class, entry.client_order_id) == (OrderClass.BRACKET, "mine")
    assert [(leg.type, leg.side, leg.status, leg.qty) for leg in entry.legs] == [
        (OrderType.LIMIT, OrderSide.SELL, OrderStatus.HELD, "10"),
        (OrderType.STOP, OrderSide.SELL, OrderStatus.HELD, "10"),
    ]
    market.step()
    rolled = client.get_orders(GetOrdersRequest(status=QueryOrderStatus.ALL, nested=True))
    assert [order.id for order in rolled if order.symbol == "SPY"] == [entry.id]
    flat = client.get_orders(GetOrdersRequest(status=QueryOrderStatus.ALL, symbols=["SPY"], direction="asc"))
    assert [(order.id, order.legs) for order in flat] == [(entry.id, None), (profit.id, None), (stop.id, None)]
    still_open = client.get_orders(GetOrdersRequest(nested=True))
    assert {(order.id, order.status) for order in still_open} == {
        (profit.id, OrderStatus.NEW),
        (stop.id, OrderStatus.HELD),
    }
    assert client.get_open_position("SPY").qty_available == "0"
    while find(client, profit).status is not OrderStatus.FILLED:
        market.step()
    assert [leg.status for leg in find(client, entry, nested=True).legs] == [OrderStatus.FILLED, OrderStatus.CANCELED]
    wait_until(lambda: len(updates) == 8, "all is told")
    names = {entry.id: "entry", profit.id: "profit", stop.id: "stop"}
    assert [f"{names[update.order.id]} {update.event}" for update in updates] == [
        "entry pending_new", "profit held", "stop held", "entry new", "entry fill", "profit new", "profit fill",
        "stop canceled",
    ]  # fmt: skip
    assert (updates[6].price, updates[6].position_qty) == (104, 0)


def test_a_leg_is_replaced_and_the_new_one_stops_the_loss(client: TradingClient, market: Market) -> None:
    entry = client.submit_order(bracket())
    market.step()
    profit, stop = entry.legs
    new = client.replace_order_by_id(stop.id, ReplaceOrderRequest(stop_price=98))
    assert (new.replaces, new.stop_price, new.status) == (stop.id, "98", OrderStatus.HELD)
    assert find(client, stop).replaced_by == new.id
    client.replace_order_by_id(profit.id, ReplaceOrderRequest(limit_price=120))
    assert refuse(lambda: client.replace_order_by_id(new.id, ReplaceOrderRequest(qty=3))) == (
        422, 42210000, "qty cannot be changed for advanced orders",
    )  # fmt: skip
    while find(client, new).status is not OrderStatus.FILLED:
        market.step()
    assert find(client, new).filled_avg_price == "96"
    assert client.get_all_positions() == []


def test_oto_and_oco(client: TradingClient, market: Market) -> None:
    oto = ask(MarketOrderRequest, order_class=OrderClass.OTO, stop_loss=StopLossRequest(stop_price=90, limit_price=89))
    entry = client.submit_order(oto)
    (stop,) = entry.legs
    assert (stop.type, stop.limit_price, stop.status) == (OrderType.STOP_LIMIT, "89", OrderStatus.HELD)
    market.step()
    assert find(client, stop).status is OrderStatus.NEW
    client.cancel_order_by_id(stop.id)
    exits = {"take_profit": TakeProfitRequest(limit_price=110), "stop_loss": StopLossRequest(stop_price=97)}
    pair = client.submit_order(ask(LimitOrderRequest, side=OrderSide.SELL, order_class=OrderClass.OCO, **exits))
    assert (pair.order_class, pair.limit_price, pair.legs[0].stop_price) == (OrderClass.OCO, "110", "97")
    while find(client, pair.legs[0]).status is not OrderStatus.FILLED:
        market.step()
    assert find(client, pair).status is OrderStatus.CANCELED


def test_refusals_of_groups_have_alpacas_codes(client: TradingClient, market: Market) -> None:
    exits = {"take_profit": TakeProfitRequest(limit_price=110), "stop_loss": StopLossRequest(stop_price=97)}
    oco = ask(LimitOrderRequest, side=OrderSide.SELL, order_class=OrderClass.OCO, **exits)
    assert refuse(lambda: client.submit_order(oco)) == (422, 42210000, "oco orders must be exit orders")
    wrong = bracket()
    wrong.take_profit.limit_price = 100
    assert refuse(lambda: client.submit_order(wrong)) == (
        422, 42210000, "take_profit.limit_price must be >= base_price + 0.01",
    )  # fmt: skip
    coins = bracket()
    coins.symbol = "BTC/USD"
    assert refuse(lambda: client.submit_order(coins))[:2] == (422, 42210000)
    client.submit_order(ask(LimitOrderRequest, limit_price=90))
    client.submit_order(ask(MarketOrderRequest))
    market.step()
    wash = ask(MarketOrderRequest, side=OrderSide.SELL)
    assert refuse(lambda: client.submit_order(wash)) == (
        403, 40310000, "potential wash trade detected. use complex orders",
    )  # fmt: skip
    assert refuse(lambda: client.close_position("SPY"))[0] == 403
    rows = client.close_all_positions(cancel_orders=True)
    assert [(row.symbol, row.status) for row in rows] == [("SPY", 200)]
    assert isinstance(rows[0], ClosePositionResponse)


# Kinds


def test_a_trailing_stop_shows_where_it_stands(client: TradingClient, market: Market) -> None:
    client.submit_order(ask(MarketOrderRequest))
    market.step()
    order = client.submit_order(ask(TrailingStopOrderRequest, side=OrderSide.SELL, trail_percent=2))
    assert (order.trail_percent, order.hwm, order.stop_price) == ("2", "100", "98")
    while find(client, order).hwm != "104":
        market.step()
    assert find(client, order).stop_price == "101.92"
    new = client.replace_order_by_id(order.id, ReplaceOrderRequest(trail=4))
    assert (new.trail_percent, new.hwm, new.stop_price) == ("4", "104", "99.84")
    while find(client, new).status is not OrderStatus.FILLED:
        market.step()
    assert find(client, new).filled_avg_price == "99"
    by_price = client.submit_order(ask(TrailingStopOrderRequest, trail_price=1.5))
    assert by_price.trail_price == "1.5"


def test_an_order_by_value_gets_what_the_value_buys(client: TradingClient, market: Market) -> None:
    order = client.submit_order(ask(MarketOrderRequest, qty=None, notional=250.5, time_in_force=TimeInForce.DAY))
    assert (order.notional, order.qty, order.filled_qty) == ("250.5", None, "0")
    market.step()
    done = find(client, order)
    assert (done.status, done.filled_qty, done.filled_avg_price) == (OrderStatus.FILLED, "2.505", "100")
    part = client.close_position("SPY", ClosePositionRequest(percentage="50"))
    assert part.qty == "1.2525"
    refused = refuse(lambda: client.submit_order(ask(MarketOrderRequest, qty=None, notional=250)))
    assert refused == (422, 42210000, "fractional orders must be DAY orders")
    small = ask(MarketOrderRequest, qty=None, notional=0.5, time_in_force=TimeInForce.DAY)
    assert refuse(lambda: client.submit_order(small)) == (
        403, 40310000, "cost basis must be >= minimal amount of order 1",
    )  # fmt: skip


REFUSED = [
    (ask(StopOrderRequest, stop_price=105, time_in_force=TimeInForce.IOC), "time_in_force ioc is not allowed for stop"),
    (ask(StopLimitOrderRequest, stop_price=105, limit_price=105, time_in_force=TimeInForce.OPG), "time_in_force opg"),
    (ask(TrailingStopOrderRequest, trail_price=1, time_in_force=TimeInForce.FOK), "time_in_force fok is not allowed"),
    (ask(MarketOrderRequest, qty=1.5), "fractional orders must be DAY orders"),
    (ask(MarketOrderRequest, time_in_force=TimeInForce.OPG), "opg orders are not accepted between 09:28 and 19:00"),
    (ask(LimitOrderRequest, limit_price=99.001), "invalid limit_price 99.001. sub-penny increment"),
    (ask(StopOrderRequest, stop_price=99), "stop price must be greater than current price"),
    (ask(LimitOrderRequest, limit_price=99, extended_hours=True), "extended hours order must be DAY limit orders"),
    (ask(MarketOrderRequest, symbol="BTC/USD", time_in_force=TimeInForce.DAY), "invalid crypto time_in_force"),
    (ask(StopOrderRequest, symbol="BTC/USD", stop_price=1100), "invalid order type for crypto order"),
    (ask(MarketOrderRequest, symbol="NONE"), 'asset "NONE" not found'),
]


@pytest.mark.parametrize(("request_", "message"), REFUSED, ids=[text[:30] for _, text in REFUSED])
def test_what_the_matrix_forbids_is_refused(client: TradingClient, market: Market, request_: Any, message: str) -> None:
    status, code, text = refuse(lambda: client.submit_order(request_))
    assert (status, code) == (422, 42210000)
    assert text.startswith(message)


def test_orders_are_listed_by_class_and_between_others(client: TradingClient, market: Market) -> None:
    orders = [client.submit_order(ask(LimitOrderRequest, limit_price=price)) for price in (50, 51, 52)]
    coin = client.submit_order(ask(LimitOrderRequest, symbol="BTC/USD", qty=1, limit_price=500))
    for query, found in (
        ({"asset_class": "crypto"}, [coin]),
        ({"asset_class": "us_equity", "after_order_id": str(orders[0].id)}, orders[1:]),
        ({"before_order_id": str(orders[1].id)}, orders[:1]),
        ({"after_order_id": str(orders[0].id), "before_order_id": str(orders[2].id)}, orders[1:2]),
    ):
        rows = client.get("/orders", {**query, "direction": "asc"})
        assert [row["id"] for row in rows] == [str(order.id) for order in found]
    assert refuse(lambda: client.get("/orders", {"after_order_id": str(UUID(int=1))}))[:2] == (404, 40410000)


def test_fees_of_crypto_are_activities(client: TradingClient, market: Market) -> None:
    client.submit_order(ask(MarketOrderRequest, symbol="BTC/USD", qty=1))
    market.step()
    client.submit_order(ask(MarketOrderRequest, symbol="BTC/USD", qty=0.5, side=OrderSide.SELL))
    market.step()
    (coins,) = client.get("/account/activities/CFEE")
    assert (coins["symbol"], coins["qty"], coins["price"], coins["net_amount"]) == ("BTCUSD", "-0.0025", "1000", "0")
    (money,) = client.get("/account/activities/FEE")
    assert money["net_amount"] == "-1.2625"
    rows = client.get("/account/activities")
    assert sorted(row["activity_type"] for row in rows) == ["CFEE", "FEE", "FILL", "FILL"]
    assert len({row["id"] for row in rows}) == 4


@pytest.mark.parametrize("options", [{"matching": "volume"}], indirect=True)
def test_a_bar_gives_no_more_than_its_volume(client: TradingClient, market: Market, updates: list[TradeUpdate]) -> None:
    order = client.submit_order(ask(MarketOrderRequest))
    for _ in range(3):
        market.step()
    assert find(client, order).status is OrderStatus.FILLED
    wait_until(lambda: len(updates) == 5, "all is told")
    assert [(update.event, update.qty) for update in updates[2:]] == [
        ("partial_fill", 4), ("partial_fill", 4), ("fill", 2),
    ]  # fmt: skip


# Faults


def set_faults(server: ExchangeServer, *faults: dict[str, Any]) -> None:
    headers = {"APCA-API-KEY-ID": KEY, "APCA-API-SECRET-KEY": SECRET}
    requests.post(f"{server.url}/dry-work/v1/faults", json=list(faults), headers=headers, timeout=60).raise_for_status()


def test_a_504_behind_an_accepted_order_makes_the_retry_a_duplicate_that_is_refused(
    server: ExchangeServer, client: TradingClient, market: Market
) -> None:
    post = {"on": "http", "method": "POST", "path": "/v2/orders"}
    set_faults(server, {**post, "kind": "status", "status": 504, "when": "after"})
    order = ask(LimitOrderRequest, limit_price=50, client_order_id="once")
    assert refuse(lambda: client.submit_order(order)) == (422, 40010001, "client_order_id must be unique")
    assert client.get_order_by_client_id("once").status is OrderStatus.NEW
    # without an id of the caller's the retry makes a second order
    set_faults(server, {**post, "kind": "status", "status": 504, "when": "after"})
    client.submit_order(ask(LimitOrderRequest, limit_price=51))
    assert len(client.get_orders()) == 3


def test_alpaca_py_tries_again_after_429_and_not_after_500_or_a_lost_connection(
    server: ExchangeServer, client: TradingClient, market: Market
) -> None:
    set_faults(server, {"on": "http", "kind": "status", "status": 429, "times": 2})
    assert client.get_account().cash == "100000"
    set_faults(server, {"on": "http", "kind": "status", "status": 500})
    assert refuse(client.get_account) == (500, 50010000, "internal server error occurred")
    set_faults(server, {"on": "http", "kind": "drop", "when": "after", "path": "/v2/orders"})
    with pytest.raises(requests.exceptions.ConnectionError):
        client.submit_order(ask(LimitOrderRequest, limit_price=50, client_order_id="lost"))
    assert client.get_order_by_client_id("lost").status is OrderStatus.NEW


def test_a_trading_stream_comes_back_after_a_reset_and_takes_events_that_it_does_not_know(
    server: ExchangeServer, client: TradingClient, market: Market, updates: list[TradeUpdate]
) -> None:
    set_faults(server, {"on": "trades", "kind": "reset"}, {"on": "events", "kind": "unknown", "path": "canceled"})

    def is_back() -> bool:
        client.cancel_order_by_id(client.submit_order(ask(LimitOrderRequest, limit_price=50)).id)
        return any(update.event == "canceled" for update in updates)

    wait_until(is_back, "the stream is back")
    wait_until(lambda: any(update.event == "unheard_of" for update in updates), "the made-up event is told")
    (unknown,) = (update.order.id for update in updates if update.event == "unheard_of")
    assert unknown in {update.order.id for update in updates if update.event == "canceled"}
