"""Every endpoint of Alpaca's wire format: a call of unmodified alpaca-py that reaches it, and is made into its models.

`CALLS` holds the calls of the trading and market-data clients, `STREAMS` those of the streams; a route of the exchange
that is in neither is named in `WITHOUT_CLIENT`, with what asks for it here, or fails the test. The page
docs/reference/exchange.md has a row for each. The Broker API has its own tests.
"""

from __future__ import annotations

import re
import runpy
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from aiohttp import web
from alpaca.data.enums import CorporateActionsType, MarketType, MostActivesBy
from alpaca.data.historical import (
    CryptoHistoricalDataClient,
    NewsClient,
    OptionHistoricalDataClient,
    ScreenerClient,
    StockHistoricalDataClient,
)
from alpaca.data.historical.corporate_actions import CorporateActionsClient
from alpaca.data.live import CryptoDataStream, NewsDataStream, OptionDataStream, StockDataStream
from alpaca.data.models.news import News
from alpaca.data.requests import (
    CorporateActionsRequest,
    CryptoBarsRequest,
    CryptoLatestBarRequest,
    CryptoLatestOrderbookRequest,
    CryptoLatestQuoteRequest,
    CryptoLatestTradeRequest,
    CryptoQuoteRequest,
    CryptoSnapshotRequest,
    CryptoTradesRequest,
    MarketMoversRequest,
    MostActivesRequest,
    NewsRequest,
    OptionBarsRequest,
    OptionChainRequest,
    OptionLatestQuoteRequest,
    OptionLatestTradeRequest,
    OptionSnapshotRequest,
    OptionTradesRequest,
    StockBarsRequest,
    StockLatestBarRequest,
    StockLatestQuoteRequest,
    StockLatestTradeRequest,
    StockQuotesRequest,
    StockSnapshotRequest,
    StockTradesRequest,
)
from alpaca.data.timeframe import TimeFrame
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import (
    AssetClass,
    AssetStatus,
    ContractType,
    CorporateActionType,
    OrderSide,
    QueryOrderStatus,
    TimeInForce,
)
from alpaca.trading.models import Order
from alpaca.trading.requests import (
    ClosePositionRequest,
    CreateWatchlistRequest,
    GetAssetsRequest,
    GetCalendarRequest,
    GetCorporateAnnouncementsRequest,
    GetOptionContractsRequest,
    GetOrdersRequest,
    GetPortfolioHistoryRequest,
    LimitOrderRequest,
    MarketOrderRequest,
    ReplaceOrderRequest,
    UpdateWatchlistRequest,
)
from alpaca.trading.stream import TradingStream

from dry_work.exchange.corporate_actions import make_actions
from dry_work.exchange.news import make_news
from dry_work.exchange.offerings import Offerings
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day

from .alpaca_market import KEY, SECRET, Market, run_streams, wait_until

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "exchange.md"
DAY = datetime(2024, 6, 11, tzinfo=UTC)
SYMBOLS = ["AAPL", "SPY", "MSFT", "BTC/USD", "ETH/USD"]
MINUTES = 30


class Desk:
    """All clients on one exchange whose market has been open for half an hour, and what they have asked for."""

    def __init__(self, server: ExchangeServer, market: Market) -> None:
        self.server = server
        self.market = market
        self.asked: list[tuple[str, str]] = []
        url = server.url
        self.trading = self._watch(TradingClient(KEY, SECRET, paper=True, url_override=url))
        self.stocks = self._watch(StockHistoricalDataClient(KEY, SECRET, url_override=url))
        self.crypto = self._watch(CryptoHistoricalDataClient(url_override=url))
        self.options = self._watch(OptionHistoricalDataClient(KEY, SECRET, url_override=url))
        self.news = self._watch(NewsClient(KEY, SECRET, url_override=url))
        self.screener = self._watch(ScreenerClient(KEY, SECRET, url_override=url))
        self.actions = self._watch(CorporateActionsClient(KEY, SECRET, url_override=url))
        self.clients = [self.trading, self.stocks, self.crypto, self.options, self.news, self.screener, self.actions]
        near = self.trading.get_option_contracts(
            GetOptionContractsRequest(underlying_symbols=["SPY"], expiration_date=date(2024, 6, 14), type="call")
        ).option_contracts
        price = self.stocks.get_stock_latest_trade(StockLatestTradeRequest(symbol_or_symbols="SPY"))["SPY"].price
        self.call = min(near, key=lambda contract: abs(contract.strike_price - price)).symbol

    def _watch(self, client: Any) -> Any:
        ask = client._session.request

        def note(method: str, url: str, **options: Any) -> Any:
            self.asked.append((method, urlsplit(url).path))
            return ask(method, url, **options)

        client._session.request = note
        return client

    def set_up(self) -> None:
        """Leave no order open and no watchlist, and three positions held: what every call finds, in whatever order."""
        self.trading.cancel_orders()
        for watchlist in self.trading.get_watchlists():
            self.trading.delete_watchlist_by_id(watchlist.id)
        held = {position.symbol for position in self.trading.get_all_positions()}
        for symbol, qty in {"AAPL": 20, "BTC/USD": 0.1, self.call: 2}.items():
            if symbol.replace("/", "") not in held:
                self.buy(symbol, qty)
        self.asked.clear()

    def buy(self, symbol: str, qty: float) -> None:
        """Hold a position."""
        self.trading.cancel_orders()  # a position that is being closed would be on the other side: a wash trade
        time_in_force = TimeInForce.GTC if "/" in symbol else TimeInForce.DAY
        order = self.trading.submit_order(
            MarketOrderRequest(symbol=symbol, qty=qty, side=OrderSide.BUY, time_in_force=time_in_force)
        )
        for _ in range(20):
            if self.trading.get_order_by_id(order.id).filled_at is not None:
                return
            self.market.step()
        raise AssertionError(f"{symbol} was not filled in 20 minutes")

    def rest(self, symbol: str = "SPY") -> Order:
        """Submit an order that nothing fills."""
        self.trading.cancel_orders()  # for the same reason
        return self.trading.submit_order(
            LimitOrderRequest(symbol=symbol, qty=2, side=OrderSide.BUY, time_in_force=TimeInForce.DAY, limit_price=1.0)
        )

    def list_of(self, name: str) -> Any:
        return self.trading.create_watchlist(CreateWatchlistRequest(name=name, symbols=["SPY"]))

    def close(self) -> None:
        for client in self.clients:
            client._session.close()


@pytest.fixture(scope="module")
def open_desk() -> Iterator[Desk]:
    bars = synthetic_day(SYMBOLS, minutes=120)
    offerings = Offerings(news=make_news(bars), actions=make_actions(bars))
    server = ExchangeServer(bars, rules="alpaca", keys={KEY: SECRET}, cash=Decimal(1_000_000), offerings=offerings)
    server.start()
    market = Market(server)
    for _ in range(MINUTES):
        market.step()
    desk = Desk(server, market)
    yield desk
    desk.close()
    market.close()
    server.stop()


@pytest.fixture
def desk(open_desk: Desk) -> Desk:
    open_desk.set_up()
    return open_desk


def announce(desk: Desk) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return desk.trading.get_corporate_announcements(
            GetCorporateAnnouncementsRequest(
                ca_types=[CorporateActionType.DIVIDEND, CorporateActionType.SPLIT],
                since=date(2024, 6, 11),
                until=date(2024, 9, 1),
            )
        )


def find_announcement(desk: Desk) -> Any:
    asked = announce(desk)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = desk.trading.get_corporate_announcement_by_id(asked.id)
    assert found == asked
    return found


def write_settings(desk: Desk) -> Any:
    return desk.trading.set_account_configurations(desk.trading.get_account_configurations())


SPY = {"symbol_or_symbols": ["SPY", "AAPL"]}
BTC = {"symbol_or_symbols": "BTC/USD"}
SINCE = {"start": DAY}

Call = tuple[str, str, Callable[[Desk], Any]]
CALLS: list[Call] = [
    ("GET", "/v2/account", lambda d: d.trading.get_account()),
    ("GET", "/v2/account/configurations", lambda d: d.trading.get_account_configurations()),
    ("PATCH", "/v2/account/configurations", write_settings),
    (
        "GET",
        "/v2/account/portfolio/history",
        lambda d: d.trading.get_portfolio_history(
            GetPortfolioHistoryRequest(
                period="1D", timeframe="5Min", intraday_reporting="market_hours", pnl_reset="per_day"
            )
        ),
    ),
    ("GET", "/v2/account/activities", lambda d: d.trading.get("/account/activities", {"page_size": 2})),
    ("GET", "/v2/account/activities/{kind}", lambda d: d.trading.get("/account/activities/FILL")),
    ("GET", "/v2/clock", lambda d: d.trading.get_clock()),
    (
        "GET",
        "/v2/calendar",
        lambda d: d.trading.get_calendar(GetCalendarRequest(start=date(2024, 7, 3), end=date(2024, 7, 5))),
    ),
    (
        "GET",
        "/v2/assets",
        lambda d: d.trading.get_all_assets(
            GetAssetsRequest(status=AssetStatus.ACTIVE, asset_class=AssetClass.US_EQUITY, attributes="has_options")
        ),
    ),
    ("GET", "/v2/assets/{symbol}", lambda d: d.trading.get_asset("BTC/USD")),
    ("POST", "/v2/orders", lambda d: d.rest()),
    (
        "GET",
        "/v2/orders",
        lambda d: d.trading.get_orders(GetOrdersRequest(status=QueryOrderStatus.ALL, limit=3, nested=True)),
    ),
    ("GET", "/v2/orders/{order_id}", lambda d: d.trading.get_order_by_id(d.rest().id)),
    (
        "GET",
        "/v2/orders:by_client_order_id",
        lambda d: d.trading.get_order_by_client_id(d.rest().client_order_id),
    ),
    (
        "PATCH",
        "/v2/orders/{order_id}",
        lambda d: d.trading.replace_order_by_id(d.rest().id, ReplaceOrderRequest(limit_price=1.5)),
    ),
    ("DELETE", "/v2/orders/{order_id}", lambda d: [d.trading.cancel_order_by_id(d.rest().id)]),
    ("DELETE", "/v2/orders", lambda d: [d.rest(), d.trading.cancel_orders()]),
    ("GET", "/v2/positions", lambda d: d.trading.get_all_positions()),
    ("GET", "/v2/positions/{symbol}", lambda d: d.trading.get_open_position("BTCUSD")),
    (
        "DELETE",
        "/v2/positions/{symbol}",
        lambda d: d.trading.close_position("AAPL", ClosePositionRequest(percentage="50")),
    ),
    ("DELETE", "/v2/positions", lambda d: d.trading.close_all_positions(cancel_orders=True)),
    ("POST", "/v2/watchlists", lambda d: d.list_of("made")),
    ("GET", "/v2/watchlists", lambda d: [d.list_of("listed"), *d.trading.get_watchlists()]),
    ("GET", "/v2/watchlists/{id}", lambda d: d.trading.get_watchlist_by_id(d.list_of("found").id)),
    (
        "PUT",
        "/v2/watchlists/{id}",
        lambda d: d.trading.update_watchlist_by_id(d.list_of("old").id, UpdateWatchlistRequest(name="new")),
    ),
    ("POST", "/v2/watchlists/{id}", lambda d: d.trading.add_asset_to_watchlist_by_id(d.list_of("add").id, "AAPL")),
    (
        "DELETE",
        "/v2/watchlists/{id}/{symbol}",
        lambda d: d.trading.remove_asset_from_watchlist_by_id(d.list_of("less").id, "SPY"),
    ),
    ("DELETE", "/v2/watchlists/{id}", lambda d: [d.trading.delete_watchlist_by_id(d.list_of("gone").id)]),
    (
        "GET",
        "/v2/options/contracts",
        lambda d: d.trading.get_option_contracts(
            GetOptionContractsRequest(underlying_symbols=["AAPL"], type=ContractType.PUT, limit=5)
        ),
    ),
    ("GET", "/v2/options/contracts/{symbol}", lambda d: d.trading.get_option_contract(d.call)),
    ("GET", "/v2/corporate_actions/announcements", announce),
    ("GET", "/v2/corporate_actions/announcements/{announcement_id}", find_announcement),
    (
        "GET",
        "/v2/stocks/{kind:bars}",
        lambda d: d.stocks.get_stock_bars(StockBarsRequest(timeframe=TimeFrame.Minute, **SPY, **SINCE)),
    ),
    ("GET", "/v2/stocks/{kind:trades}", lambda d: [d.stocks.get_stock_trades(StockTradesRequest(**SPY, **SINCE))]),
    ("GET", "/v2/stocks/{kind:quotes}", lambda d: [d.stocks.get_stock_quotes(StockQuotesRequest(**SPY, **SINCE))]),
    ("GET", "/v2/stocks/{kind:bars}/latest", lambda d: d.stocks.get_stock_latest_bar(StockLatestBarRequest(**SPY))),
    (
        "GET",
        "/v2/stocks/{kind:trades}/latest",
        lambda d: d.stocks.get_stock_latest_trade(StockLatestTradeRequest(**SPY)),
    ),
    (
        "GET",
        "/v2/stocks/{kind:quotes}/latest",
        lambda d: d.stocks.get_stock_latest_quote(StockLatestQuoteRequest(**SPY)),
    ),
    ("GET", "/v2/stocks/snapshots", lambda d: d.stocks.get_stock_snapshot(StockSnapshotRequest(**SPY))),
    (
        "GET",
        "/v1beta3/crypto/{venue}/{kind:bars}",
        lambda d: d.crypto.get_crypto_bars(CryptoBarsRequest(timeframe=TimeFrame.Hour, **BTC, **SINCE)),
    ),
    (
        "GET",
        "/v1beta3/crypto/{venue}/{kind:trades}",
        lambda d: [d.crypto.get_crypto_trades(CryptoTradesRequest(**BTC, **SINCE))],
    ),
    (
        "GET",
        "/v1beta3/crypto/{venue}/{kind:quotes}",
        lambda d: [d.crypto.get_crypto_quotes(CryptoQuoteRequest(**BTC, **SINCE))],
    ),
    (
        "GET",
        "/v1beta3/crypto/{venue}/latest/{kind:bars}",
        lambda d: d.crypto.get_crypto_latest_bar(CryptoLatestBarRequest(**BTC)),
    ),
    (
        "GET",
        "/v1beta3/crypto/{venue}/latest/{kind:trades}",
        lambda d: d.crypto.get_crypto_latest_trade(CryptoLatestTradeRequest(**BTC)),
    ),
    (
        "GET",
        "/v1beta3/crypto/{venue}/latest/{kind:quotes}",
        lambda d: d.crypto.get_crypto_latest_quote(CryptoLatestQuoteRequest(**BTC)),
    ),
    (
        "GET",
        "/v1beta3/crypto/{venue}/latest/{kind:orderbooks}",
        lambda d: d.crypto.get_crypto_latest_orderbook(CryptoLatestOrderbookRequest(**BTC)),
    ),
    ("GET", "/v1beta3/crypto/{venue}/snapshots", lambda d: d.crypto.get_crypto_snapshot(CryptoSnapshotRequest(**BTC))),
    (
        "GET",
        "/v1beta1/options/bars",
        lambda d: d.options.get_option_bars(
            OptionBarsRequest(symbol_or_symbols=d.call, timeframe=TimeFrame.Minute, **SINCE)
        ),
    ),
    (
        "GET",
        "/v1beta1/options/trades",
        lambda d: d.options.get_option_trades(OptionTradesRequest(symbol_or_symbols=d.call, **SINCE)),
    ),
    (
        "GET",
        "/v1beta1/options/{kind:trades}/latest",
        lambda d: d.options.get_option_latest_trade(OptionLatestTradeRequest(symbol_or_symbols=d.call)),
    ),
    (
        "GET",
        "/v1beta1/options/{kind:quotes}/latest",
        lambda d: d.options.get_option_latest_quote(OptionLatestQuoteRequest(symbol_or_symbols=d.call)),
    ),
    (
        "GET",
        "/v1beta1/options/snapshots",
        lambda d: d.options.get_option_snapshot(OptionSnapshotRequest(symbol_or_symbols=[d.call])),
    ),
    (
        "GET",
        "/v1beta1/options/snapshots/{underlying}",
        lambda d: d.options.get_option_chain(OptionChainRequest(underlying_symbol="SPY", type=ContractType.PUT)),
    ),
    ("GET", "/v1beta1/options/meta/exchanges", lambda d: d.options.get_option_exchange_codes()),
    (
        "GET",
        "/v1beta1/news",
        lambda d: d.news.get_news(NewsRequest(start=DAY, include_content=True)).data["news"],
    ),
    (
        "GET",
        "/v1/corporate-actions",
        lambda d: d.actions.get_corporate_actions(
            CorporateActionsRequest(
                symbols=["SPY"],
                types=[CorporateActionsType.CASH_DIVIDEND],
                start=date(2024, 6, 11),
                end=date(2024, 9, 1),
            )
        ).data["cash_dividends"],
    ),
    (
        "GET",
        "/v1beta1/screener/stocks/most-actives",
        lambda d: d.screener.get_most_actives(MostActivesRequest(top=2, by=MostActivesBy.TRADES)).most_actives,
    ),
    (
        "GET",
        "/v1beta1/screener/{market:stocks}/movers",
        lambda d: [d.screener.get_market_movers(MarketMoversRequest(top=2))],
    ),
    (
        "GET",
        "/v1beta1/screener/{market:crypto}/movers",
        lambda d: [d.screener.get_market_movers(MarketMoversRequest(top=2, market_type=MarketType.CRYPTO))],
    ),
    (
        "POST",
        "/v2/positions/{symbol}/exercise",
        lambda d: [d.buy(d.call, 1), d.trading.exercise_options_position(d.call)],
    ),
]

STREAMS: list[tuple[str, type, str, str]] = [
    ("/v2/iex", StockDataStream, "subscribe_bars", "SPY"),
    ("/v2/delayed_sip", StockDataStream, "subscribe_daily_bars", "*"),
    ("/v1beta3/crypto/us", CryptoDataStream, "subscribe_bars", "BTC/USD"),
    ("/v1beta3/crypto/eu-1", CryptoDataStream, "subscribe_bars", "*"),
    ("/v1beta1/indicative", OptionDataStream, "subscribe_quotes", "CALL"),
    ("/v1beta1/opra", OptionDataStream, "subscribe_trades", "*"),
    ("/v1beta1/news", NewsDataStream, "subscribe_news", "*"),
    ("/stream", TradingStream, "subscribe_trade_updates", ""),
]

# Routes that no call of alpaca-py reaches: single-symbol forms and others of Alpaca, and feeds like those of STREAMS.
WITHOUT_CLIENT: dict[str, str] = {
    "/v2/stocks/{symbol}/{kind}": "/v2/stocks/SPY/bars?timeframe=1Min&start=2024-06-11",
    "/v2/stocks/{symbol}/{kind}/latest": "/v2/stocks/SPY/quotes/latest",
    "/v2/stocks/{symbol}/snapshot": "/v2/stocks/SPY/snapshot",
    "/v1beta1/options/meta/conditions/{kind}": "/v1beta1/options/meta/conditions/trade",
    "/v2/sip": "", "/v2/test": "", "/v1beta3/crypto/us-1": "",
}  # fmt: skip
OWN = "/dry-work/"
BROKER = ("/v1/", "/v2/events/")


def strip_choice(path: str) -> str:
    """Return a path of CALLS as the exchange's router writes it: {kind:bars} is {kind}."""
    return re.sub(r"\{(\w+):[^}]*\}", r"{\1}", path)


@pytest.mark.parametrize(("method", "path", "call"), CALLS, ids=[f"{method} {path}" for method, path, _ in CALLS])
def test_a_call_of_alpaca_py_is_answered_and_makes_its_models(
    desk: Desk, method: str, path: str, call: Callable[[Desk], Any]
) -> None:
    answer = call(desk)
    assert answer, "there is something in the answer"
    pattern = re.sub(r"\{\w+:([^}]*)\}", r"\1", path)
    pattern = re.sub(r"\{\w+\}", "(.+)", pattern)
    assert any(asked == method and re.fullmatch(pattern, where) for asked, where in desk.asked), desk.asked


def find_routes(server: ExchangeServer) -> set[tuple[str, str]]:
    router = web.UrlDispatcher()
    server.add_routes(router)
    return {
        (route.method, route.resource.canonical)
        for route in router.routes()
        if route.resource is not None and route.method != "HEAD" and not route.resource.canonical.startswith(OWN)
    }


def is_broker(path: str) -> bool:
    return path.startswith(BROKER) and path != "/v1/corporate-actions"


def test_every_route_of_the_exchange_has_its_call(desk: Desk) -> None:
    routes = {route for route in find_routes(desk.server) if not is_broker(route[1])}
    called = {(method, strip_choice(path)) for method, path, _ in CALLS}
    streamed = {("GET", path) for path, *_ in STREAMS}
    assert routes == called | streamed | {("GET", path) for path in WITHOUT_CLIENT}


@pytest.mark.parametrize("path", [path for path in WITHOUT_CLIENT.values() if path])
def test_what_alpaca_py_does_not_call_is_answered_too(desk: Desk, path: str) -> None:
    headers = {"APCA-API-KEY-ID": KEY, "APCA-API-SECRET-KEY": SECRET}
    answer = requests.get(desk.server.url + path, headers=headers, timeout=30)
    assert (answer.status_code, bool(answer.json())) == (200, True)
    assert len(answer.headers["X-Request-ID"]) == 32
    assert answer.headers["X-RateLimit-Limit"] == "200"


def test_the_page_is_the_one_of_these_routes() -> None:
    written = runpy.run_path(str(PAGE.with_name("write_exchange.py")))
    assert PAGE.read_text(encoding="utf-8") == written["build_page"](), "run python docs/reference/write_exchange.py"


@pytest.mark.parametrize(("path", "kind", "subscribe", "symbol"), STREAMS, ids=[path for path, *_ in STREAMS])
def test_every_stream_of_alpaca_py_gets_its_messages(path: str, kind: type, subscribe: str, symbol: str) -> None:
    bars = synthetic_day(["SPY", "BTC/USD"], minutes=20)
    server = ExchangeServer(bars, rules="alpaca", keys={KEY: SECRET}, offerings=Offerings(news=make_news(bars)))
    server.start()
    market = Market(server)
    trading = TradingClient(KEY, SECRET, paper=True, url_override=server.url)
    told: list[Any] = []

    async def take(message: Any) -> None:
        told.append(message)

    try:
        market.step()
        contracts = trading.get_option_contracts(GetOptionContractsRequest(underlying_symbols=["SPY"], limit=1))
        wanted = contracts.option_contracts[0].symbol if symbol == "CALL" else symbol
        stream = kind(KEY, SECRET, url_override=server.stream_url + path)
        getattr(stream, subscribe)(take, *([wanted] if wanted else []))
        with run_streams(server) as run:
            run(stream)
            wait_until(lambda: stream._running, "the stream runs")
            while not told and market.number < server.recording.slice_ends().size:
                order = LimitOrderRequest(
                    symbol="SPY", qty=1, side=OrderSide.BUY, time_in_force=TimeInForce.DAY, limit_price=1.0
                )
                trading.cancel_order_by_id(trading.submit_order(order).id)
                market.step()
            wait_until(lambda: told, "the stream has told something")
    finally:
        trading._session.close()
        market.close()
        server.stop()
    first = told[0]
    if path == "/v1beta1/indicative":
        assert (first.symbol, first.bid_price < first.ask_price) == (wanted, True)
        assert first.timestamp.tzinfo is not None
    elif path == "/v1beta1/opra":
        assert (first.price > 0, first.symbol[:3]) == (True, "SPY")
    elif path == "/v1beta1/news":
        assert isinstance(first, News)
        assert first.headline.startswith("SYNTHETIC: ")
        assert first.updated_at - DAY < timedelta(days=1)
