"""Unmodified alpaca-py's BrokerClient on the exchange: every call about accounts, trading and events."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import requests
from alpaca.broker.client import BrokerClient
from alpaca.broker.enums import AccountEntities, AgreementType, FundingSource
from alpaca.broker.models import Account, Agreement, Contact, Disclosures, Identity, TradeAccount
from alpaca.broker.requests import (
    CreateAccountRequest,
    GetAccountActivitiesRequest,
    GetEventsRequest,
    LimitOrderRequest,
    ListAccountsRequest,
    MarketOrderRequest,
)
from alpaca.common.enums import PaginationType
from alpaca.common.exceptions import APIError
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import (
    AccountStatus,
    CorporateActionType,
    OrderClass,
    OrderSide,
    OrderStatus,
    QueryOrderStatus,
    TimeInForce,
)
from alpaca.trading.models import AllAccountsPositions, Position
from alpaca.trading.requests import (
    ClosePositionRequest,
    CreateWatchlistRequest,
    GetCalendarRequest,
    GetCorporateAnnouncementsRequest,
    GetOrderByIdRequest,
    GetOrdersRequest,
    GetPortfolioHistoryRequest,
    ReplaceOrderRequest,
    StopLossRequest,
    TakeProfitRequest,
    UpdateWatchlistRequest,
)
from alpaca.trading.requests import LimitOrderRequest as TradingLimitOrderRequest
from alpaca.trading.requests import MarketOrderRequest as TradingMarketOrderRequest

from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.sub_accounts import build_sub_account_ids
from dry_work.exchange.synthetic import synthetic_day

from .alpaca_market import DEADLINE_S, KEY, SECRET, Market

FIRST, SECOND = (UUID(account_id) for account_id in build_sub_account_ids(KEY, 2))
RECORDING = synthetic_day(["AAPL", "SPY", "BTC/USD"], minutes=60)


@contextmanager
def run_exchange(**options: Any) -> Iterator[ExchangeServer]:
    options = {"rules": "alpaca", "keys": {KEY: SECRET}, "accounts": 2, "heartbeat_s": 0.2, **options}
    server = ExchangeServer(RECORDING, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def open_client(server: ExchangeServer) -> Iterator[BrokerClient]:
    client = BrokerClient(KEY, SECRET, sandbox=True, url_override=server.url)
    yield client
    client._session.close()


@pytest.fixture
def server() -> Iterator[ExchangeServer]:
    with run_exchange() as server:
        yield server


@pytest.fixture
def market(server: ExchangeServer) -> Iterator[Market]:
    market = Market(server)
    yield market
    market.close()


@pytest.fixture
def client(server: ExchangeServer) -> Iterator[BrokerClient]:
    with open_client(server) as client:
        yield client


def build_limit(symbol: str = "SPY", price: float = 1, qty: float = 1, **fields: Any) -> LimitOrderRequest:
    asked = {"side": OrderSide.BUY, "time_in_force": TimeInForce.GTC, **fields}
    return LimitOrderRequest(symbol=symbol, qty=qty, limit_price=price, **asked)


def build_market(symbol: str = "SPY", qty: float = 1, **fields: Any) -> MarketOrderRequest:
    asked = {"side": OrderSide.BUY, "time_in_force": TimeInForce.GTC, **fields}
    return MarketOrderRequest(symbol=symbol, qty=qty, **asked)


def step_until(market: Market, condition: Callable[[], bool]) -> None:
    for _ in range(30):  # a symbol may be silent for some minutes
        if condition():
            return
        market.step()
    raise AssertionError("30 minutes went by in vain")


def buy(
    client: BrokerClient, market: Market, account_id: UUID = FIRST, symbol: str = "SPY", qty: float = 2
) -> Position:
    """Buy at the market, and wait for the fill."""
    market.step()
    order = client.submit_order_for_account(account_id, build_market(symbol, qty))
    step_until(market, lambda: client.get_order_for_account_by_id(account_id, order.id).status is OrderStatus.FILLED)
    position = client.get_open_position_for_account(account_id, symbol.replace("/", ""))
    assert isinstance(position, Position)
    return position


# Accounts


def test_accounts_are_listed_found_and_opened(client: BrokerClient) -> None:
    accounts = client.list_accounts()
    assert [account.id for account in accounts] == [SECOND, FIRST]
    asked = CreateAccountRequest(
        contact=Contact(
            email_address="ada@lovelace.invalid", phone_number="555-0100", street_address=["1 Main St"],
            city="London", country="GBR",
        ),
        identity=Identity(
            given_name="Ada", family_name="Lovelace", date_of_birth="1815-12-10", tax_id="123-45-6789",
            country_of_tax_residence="GBR", funding_source=[FundingSource.EMPLOYMENT_INCOME],
        ),
        disclosures=Disclosures(
            is_control_person=False, is_affiliated_exchange_or_finra=False, is_politically_exposed=False,
            immediate_family_exposed=False,
        ),
        agreements=[
            Agreement(agreement=AgreementType.CUSTOMER, signed_at="2024-06-11T13:00:00Z", ip_address="127.0.0.1")
        ],
    )  # fmt: skip
    made = client.create_account(asked)
    assert isinstance(made, Account)
    assert made.status is AccountStatus.ACTIVE
    assert made.contact == asked.contact
    assert made.identity is not None
    assert (made.identity.family_name, made.identity.tax_id) == ("Lovelace", None)
    assert client.get_account_by_id(made.id) == made
    (found,) = client.list_accounts(
        ListAccountsRequest(
            query="ada", status=[AccountStatus.ACTIVE], entities=[AccountEntities.CONTACT, AccountEntities.IDENTITY]
        )
    )
    assert (found.id, found.contact, found.disclosures) == (made.id, made.contact, None)
    assert client.list_accounts(ListAccountsRequest(status=[AccountStatus.ACCOUNT_CLOSED])) == []


def test_a_missing_account_is_not_authorized(client: BrokerClient) -> None:
    for call in (
        client.get_account_by_id,
        client.get_trade_account_by_id,
        client.get_orders_for_account,
        client.get_all_positions_for_account,
    ):
        with pytest.raises(APIError) as refused:
            call(uuid4())
        assert (refused.value.status_code, refused.value.code) == (401, 40110000)


def test_a_trading_account_has_settings_and_a_history(client: BrokerClient, market: Market) -> None:
    account = client.get_trade_account_by_id(FIRST)
    assert isinstance(account, TradeAccount)
    assert (account.id, account.cash, account.cash_withdrawable) == (FIRST, "100000", "100000")
    assert (account.previous_close.isoformat(), account.last_cash) == ("2024-06-10T20:00:00+00:00", None)
    settings = client.get_trade_configuration_for_account(FIRST)
    assert settings.no_shorting is False
    settings.no_shorting = True
    assert client.update_trade_configuration_for_account(FIRST, settings).no_shorting is True
    assert client.get_trade_configuration_for_account(SECOND).no_shorting is False
    buy(client, market)
    history = client.get_portfolio_history_for_account(FIRST, GetPortfolioHistoryRequest(period="1D", timeframe="1Min"))
    assert len(history.timestamp) == len(history.equity) == market.number + 1  # and before the first minute
    assert history.base_value == 100_000


# Clock, calendar, assets


def test_clock_calendar_and_assets_are_there(client: BrokerClient, server: ExchangeServer) -> None:
    assert client.get_clock().is_open is True
    (day,) = client.get_calendar(GetCalendarRequest(start=date(2024, 6, 11), end=date(2024, 6, 11)))
    assert (day.date, day.open.hour, day.close.hour) == (date(2024, 6, 11), 9, 16)
    assets = {asset.symbol: asset for asset in client.get_all_assets()}
    assert {*server.recording.symbols} <= {*assets}
    assert client.get_asset("BTC/USD") == client.get_asset(assets["BTC/USD"].id) == assets["BTC/USD"]
    asked = GetCorporateAnnouncementsRequest(
        ca_types=[CorporateActionType.DIVIDEND], since=date(2024, 6, 1), until=date(2024, 6, 30)
    )
    assert client.get_corporate_announcements(asked) == []  # none were recorded


# Orders and positions


def test_an_order_is_found_replaced_and_canceled(client: BrokerClient) -> None:
    order = client.submit_order_for_account(FIRST, build_limit(client_order_id="mine", commission=1.5, currency="USD"))
    assert order.commission == 1.5
    found = client.get_order_for_account_by_client_id(FIRST, "mine")
    assert found == client.get_order_for_account_by_id(FIRST, order.id, GetOrderByIdRequest(nested=True))
    assert (found.id, found.status, found.commission) == (order.id, OrderStatus.NEW, 1.5)
    new = client.replace_order_for_account_by_id(FIRST, order.id, ReplaceOrderRequest(limit_price=2))
    assert (new.replaces, new.limit_price, new.commission) == (order.id, "2", 1.5)
    assert [row.id for row in client.get_orders_for_account(FIRST)] == [new.id]
    assert client.get_orders_for_account(SECOND) == []
    client.cancel_order_for_account_by_id(FIRST, new.id)
    closed = client.get_orders_for_account(FIRST, GetOrdersRequest(status=QueryOrderStatus.CLOSED))
    assert {row.status for row in closed} == {OrderStatus.REPLACED, OrderStatus.CANCELED}
    others = [client.submit_order_for_account(FIRST, build_limit()).id for _ in range(2)]
    canceled = client.cancel_orders_for_account(FIRST)
    assert [(row.id, row.status) for row in canceled] == [(order_id, 200) for order_id in others]
    with pytest.raises(APIError) as refused:
        client.get_order_for_account_by_id(SECOND, new.id)
    assert refused.value.status_code == 404


def test_positions_are_listed_and_closed(client: BrokerClient, market: Market) -> None:
    assert buy(client, market).qty == "2"
    buy(client, market, SECOND, "BTC/USD", 0.5)
    assert [row.symbol for row in client.get_all_positions_for_account(FIRST)] == ["SPY"]
    everything = client.get_all_accounts_positions()
    assert isinstance(everything, AllAccountsPositions)
    assert {account: [row.symbol for row in rows] for account, rows in everything.positions.items()} == {
        str(FIRST): ["SPY"],
        str(SECOND): ["BTCUSD"],
    }
    part = client.close_position_for_account(FIRST, "SPY", ClosePositionRequest(qty="1"))
    assert (part.side, part.qty) == (OrderSide.SELL, "1")
    step_until(market, lambda: client.get_open_position_for_account(FIRST, "SPY").qty == "1")
    (closed,) = client.close_all_positions_for_account(FIRST, cancel_orders=True)
    assert (closed.symbol, closed.status) == ("SPY", 200)
    step_until(market, lambda: client.get_all_positions_for_account(FIRST) == [])
    with pytest.raises(APIError) as refused:
        client.exercise_options_position_for_account_by_id("SPY240621C00500000", FIRST, commission=1)
    assert refused.value.message == "no available position for the specified contract"


def test_activities_of_all_accounts_are_iterated(client: BrokerClient, market: Market) -> None:
    buy(client, market)
    buy(client, market, SECOND, "BTC/USD", 0.5)
    everything = client.get_account_activities(GetAccountActivitiesRequest())
    assert {(row.account_id, row.activity_type.value) for row in everything} == {
        (FIRST, "FILL"), (SECOND, "FILL"), (SECOND, "CFEE"),
    }  # fmt: skip
    pages = client.get_account_activities(
        GetAccountActivitiesRequest(page_size=1), handle_pagination=PaginationType.ITERATOR
    )
    assert [row.id for page in pages for row in page] == [row.id for row in everything]
    (mine,) = client.get_account_activities(GetAccountActivitiesRequest(account_id=FIRST))
    assert (mine.account_id, mine.qty) == (FIRST, 2)


def test_watchlists_are_kept_for_each_account(client: BrokerClient) -> None:
    made = client.create_watchlist_for_account(FIRST, CreateWatchlistRequest(name="one", symbols=["SPY"]))
    assert made.account_id == FIRST
    more = client.add_asset_to_watchlist_for_account_by_id(FIRST, made.id, "AAPL")
    assert [asset.symbol for asset in more.assets or ()] == ["SPY", "AAPL"]
    less = client.remove_asset_from_watchlist_for_account_by_id(FIRST, made.id, "SPY")
    assert [asset.symbol for asset in less.assets or ()] == ["AAPL"]
    renamed = client.update_watchlist_for_account_by_id(FIRST, made.id, UpdateWatchlistRequest(name="two"))
    assert client.get_watchlist_for_account_by_id(FIRST, made.id) == renamed
    assert [row.name for row in client.get_watchlists_for_account(FIRST)] == ["two"]
    assert client.get_watchlists_for_account(SECOND) == []
    client.delete_watchlist_from_account_by_id(FIRST, made.id)
    assert client.get_watchlists_for_account(FIRST) == []


# The same orders through both APIs

SAME_BUT = {"id", "client_order_id", "replaced_by", "replaces"}


def strip_ids(order: dict[str, Any]) -> dict[str, Any]:
    legs = order["legs"] and [strip_ids(leg) for leg in order["legs"]]
    return {name: value for name, value in order.items() if name not in SAME_BUT} | {"legs": legs}


def test_both_apis_give_equal_orders(server: ExchangeServer, market: Market) -> None:
    market.step()
    exits = {
        "order_class": OrderClass.BRACKET,
        "take_profit": TakeProfitRequest(limit_price=900),
        "stop_loss": StopLossRequest(stop_price=1),
    }
    kinds: list[tuple[Any, Any, dict[str, Any]]] = [
        (MarketOrderRequest, TradingMarketOrderRequest, {"symbol": "SPY", "qty": 2}),
        (MarketOrderRequest, TradingMarketOrderRequest, {"symbol": "BTC/USD", "notional": 500}),
        (LimitOrderRequest, TradingLimitOrderRequest, {"symbol": "AAPL", "qty": 1, "limit_price": 1.5}),
        (MarketOrderRequest, TradingMarketOrderRequest, {"symbol": "SPY", "qty": 1, **exits}),
    ]
    trading = TradingClient(KEY, SECRET, paper=True, url_override=server.url, raw_data=True)
    broker = BrokerClient(KEY, SECRET, sandbox=True, url_override=server.url, raw_data=True)
    for brokers, tradings, fields in kinds:
        asked = {"side": OrderSide.BUY, "time_in_force": TimeInForce.GTC, **fields}
        ours = trading.submit_order(tradings(**asked))
        theirs = broker.submit_order_for_account(FIRST, brokers(**asked))
        assert strip_ids(ours) == strip_ids(theirs)
    step_until(market, lambda: len(trading.get_all_positions()) == 2)
    everything = GetOrdersRequest(status=QueryOrderStatus.ALL, nested=True)
    ours = [strip_ids(order) for order in trading.get_orders(everything)]
    theirs = [strip_ids(order) for order in broker.get_orders_for_account(FIRST, everything)]
    assert ours == theirs
    assert {order["status"] for order in ours} == {"filled", "new"}
    assert trading.get_all_positions() == broker.get_all_positions_for_account(FIRST)
    account = broker.get_trade_account_by_id(FIRST)
    mine = trading.get_account()
    assert {name: account[name] for name in mine} == mine | {
        "id": str(FIRST), "account_number": account["account_number"]
    }  # fmt: skip
    for client in (trading, broker):
        client._session.close()


# Events


def read_events(client: BrokerClient, count: int, **cursor: Any) -> list[dict[str, Any]]:
    """Return the next events of `get_trade_events`; the connection ends with the iterator."""
    events = client.get_trade_events(GetEventsRequest(**cursor) if cursor else None)
    return [json.loads(data) for data in islice(events, count)]


def test_trade_events_are_iterated_and_resumed(client: BrokerClient, market: Market) -> None:
    buy(client, market)
    client.submit_order_for_account(SECOND, build_limit())
    first = read_events(client, 2, since_id=0)
    assert [(event["event"], event["account_id"]) for event in first] == [
        ("pending_new", str(FIRST)),
        ("new", str(FIRST)),
    ]
    client.cancel_orders_for_account(SECOND)  # while nobody listens
    rest = read_events(client, 4, since_id=first[-1]["event_id"])
    assert [event["event"] for event in rest] == ["fill", "pending_new", "new", "canceled"]
    assert [event["event_id"] for event in first + rest] == [1, 2, 3, 4, 5, 6]
    assert (rest[0]["qty"], rest[0]["order"]["status"]) == ("2", "filled")
    bounded = client.get_trade_events(GetEventsRequest(since_id=1, until_id=3))
    assert [json.loads(data)["event_id"] for data in bounded] == [2, 3]  # and ends
    by_date = client.get_trade_events(GetEventsRequest(since=date(2024, 6, 10), until=date(2024, 6, 10)))
    assert list(by_date) == []
    refused = client.get_trade_events(GetEventsRequest(until_id=3))
    assert list(refused) == []  # the client does not look at the status


def test_cursors_hold_when_the_exchange_was_started_again(tmp_path: Path) -> None:
    with run_exchange(state_dir=tmp_path) as server, open_client(server) as client:
        client.submit_order_for_account(FIRST, build_limit())
        told = read_events(client, 1, since_id=0)
    with run_exchange(state_dir=tmp_path) as server, open_client(server) as client:
        client.cancel_orders_for_account(FIRST)
        told += read_events(client, 2, since_id=told[-1]["event_id"])
    assert [(event["event"], event["event_id"]) for event in told] == [("pending_new", 1), ("new", 2), ("canceled", 3)]


@pytest.mark.parametrize(
    "method",
    ["get_account_status_events", "get_journal_events", "get_transfer_events", "get_non_trading_activity_events"],
)
def test_the_other_streams_end_at_their_bound_without_an_event(client: BrokerClient, method: str) -> None:
    bound = GetEventsRequest(since=date(2024, 6, 1), until=date(2024, 6, 2))
    assert list(getattr(client, method)(bound)) == []


def test_a_stream_that_is_cut_loses_and_doubles_nothing(server: ExchangeServer, client: BrokerClient) -> None:
    faults = [{"on": "trades", "kind": "reset", "skip": skip} for skip in (1, 4, 8, 13)]
    credentials = {"APCA-API-KEY-ID": KEY, "APCA-API-SECRET-KEY": SECRET}
    url = f"{server.url}/dry-work/v1/faults"
    requests.post(url, json=faults, headers=credentials, timeout=DEADLINE_S).raise_for_status()
    for account_id in (FIRST, SECOND) * 4:
        client.submit_order_for_account(account_id, build_limit())
    told: list[dict[str, Any]] = []
    cuts = 0
    while len(told) < 16:
        last = told[-1]["event_id"] if told else 0
        events = client.get_trade_events(GetEventsRequest(since_id=last))
        try:
            for data in islice(events, 16 - len(told)):
                told.append(json.loads(data))  # what came before the cut counts
        except (requests.exceptions.RequestException, ConnectionError):
            cuts += 1
    assert cuts > 1
    assert [event["event_id"] for event in told] == list(range(1, 17))
