"""Market data for unmodified alpaca-py: history in any timeframe, trades, quotes, latest, streams and their limits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alpaca.common.exceptions import APIError
from alpaca.data.enums import Adjustment, DataFeed
from alpaca.data.historical import CryptoHistoricalDataClient, StockHistoricalDataClient
from alpaca.data.live import CryptoDataStream, StockDataStream
from alpaca.data.requests import (
    CryptoBarsRequest,
    CryptoLatestBarRequest,
    CryptoLatestOrderbookRequest,
    CryptoLatestQuoteRequest,
    CryptoLatestTradeRequest,
    CryptoQuoteRequest,
    CryptoSnapshotRequest,
    CryptoTradesRequest,
    StockBarsRequest,
    StockLatestBarRequest,
    StockLatestQuoteRequest,
    StockLatestTradeRequest,
    StockQuotesRequest,
    StockSnapshotRequest,
    StockTradesRequest,
)
from alpaca.data.timeframe import TimeFrame, TimeFrameUnit

from dry_work.exchange.data_sockets import StreamLimits
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.recorded_ticks import TickRecording, read_ticks

from .alpaca_market import KEY, SECRET, Market, run_streams, wait_until

START = datetime(2024, 6, 11, 13, 30, tzinfo=UTC)
DAY = datetime(2024, 6, 11, tzinfo=UTC)
MINUTES = 6


@pytest.fixture(scope="module")
def ticks(tmp_path_factory: pytest.TempPathFactory) -> TickRecording:
    """A trade of SPY and of BTC/USD every second, a quote of both every two."""
    folder = tmp_path_factory.mktemp("ticks")
    trades = ["symbol,timestamp,price,size,exchange,conditions,tape"]
    quotes = ["symbol,timestamp,bid_price,bid_size,ask_price,ask_size,bid_exchange,ask_exchange"]
    for second in range(MINUTES * 60):
        stamp = (START + timedelta(seconds=second, microseconds=250)).isoformat()
        for symbol, exchange in (("SPY", "V"), ("BTC/USD", "")):
            trades.append(f"{symbol},{stamp},{100 + second / 100},{second % 7 + 1},{exchange},@,C")
            if second % 2 == 0:
                quotes.append(f"{symbol},{stamp},{100 + second / 100},3,{101 + second / 100},4,{exchange},{exchange}")
    (folder / "trades.csv").write_text("\n".join(trades))
    (folder / "quotes.csv").write_text("\n".join(quotes))
    return read_ticks([folder])


@pytest.fixture
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return getattr(request, "param", {})


@pytest.fixture
def server(ticks: TickRecording, options: dict[str, Any]) -> Iterator[ExchangeServer]:
    bars = synthetic_day(["AAPL", "SPY", "BTC/USD"], minutes=60)
    server = ExchangeServer(bars, ticks=ticks, keys={KEY: SECRET}, **options)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def market(server: ExchangeServer) -> Iterator[Market]:
    market = Market(server)
    yield market
    market.close()


@pytest.fixture
def run_stream(server: ExchangeServer) -> Iterator[Callable[[Any], None]]:
    with run_streams(server) as run:
        yield run


@pytest.fixture
def stocks(server: ExchangeServer) -> Iterator[StockHistoricalDataClient]:
    client = StockHistoricalDataClient(KEY, SECRET, url_override=server.url)
    yield client
    client._session.close()


@pytest.fixture
def crypto(server: ExchangeServer) -> Iterator[CryptoHistoricalDataClient]:
    client = CryptoHistoricalDataClient(url_override=server.url)
    yield client
    client._session.close()


# History


@pytest.mark.parametrize(
    ("timeframe", "stamps"),
    [
        (TimeFrame(5, TimeFrameUnit.Minute), ["13:30", "13:35", "13:40", "13:45", "13:50", "13:55"]),
        (TimeFrame(15, TimeFrameUnit.Minute), ["13:30", "13:45"]),
        (TimeFrame.Hour, ["13:00"]),
        (TimeFrame.Day, ["04:00"]),
    ],
)
def test_bars_of_any_timeframe_are_joined_from_minutes(
    stocks: StockHistoricalDataClient, market: Market, timeframe: TimeFrame, stamps: list[str]
) -> None:
    minutes = [bar for _ in range(30) for bar in market.step() if bar["S"] == "SPY"]
    found = stocks.get_stock_bars(
        StockBarsRequest(
            symbol_or_symbols="SPY",
            timeframe=timeframe,
            start=DAY,
            end=DAY + timedelta(days=9),
            adjustment=Adjustment.ALL,
            feed=DataFeed.IEX,
        )
    )["SPY"]
    assert [bar.timestamp.strftime("%H:%M") for bar in found] == stamps
    assert sum(bar.volume for bar in found) == sum(bar["v"] for bar in minutes)
    assert max(bar.high for bar in found) == max(bar["h"] for bar in minutes)
    assert (found[0].open, found[-1].close) == (minutes[0]["o"], minutes[-1]["c"])


def test_a_day_of_crypto_begins_at_midnight_in_utc(crypto: CryptoHistoricalDataClient, market: Market) -> None:
    market.step()
    request = CryptoBarsRequest(symbol_or_symbols="BTC/USD", timeframe=TimeFrame.Day, start=DAY)
    assert [bar.timestamp for bar in crypto.get_crypto_bars(request)["BTC/USD"]] == [DAY]


@pytest.mark.parametrize("limit", [None, 7, 100])
def test_trades_and_quotes_are_read_to_the_exchanges_time(
    stocks: StockHistoricalDataClient, crypto: CryptoHistoricalDataClient, market: Market, limit: int | None
) -> None:
    for _ in range(2):
        market.step()
    for found, symbol in (
        (stocks.get_stock_trades(StockTradesRequest(symbol_or_symbols="SPY", start=DAY, limit=limit)), "SPY"),
        (crypto.get_crypto_trades(CryptoTradesRequest(symbol_or_symbols="BTC/USD", start=DAY, limit=limit)), "BTC/USD"),
    ):
        prices = [trade.price for trade in found[symbol]]
        assert prices == [100 + second / 100 for second in range(120)][:limit]
    trade = stocks.get_stock_trades(StockTradesRequest(symbol_or_symbols="SPY", start=DAY, limit=1))["SPY"][0]
    assert (trade.timestamp, trade.exchange, trade.size) == (START + timedelta(microseconds=250), "V", 1)
    assert (trade.conditions, trade.id, trade.tape) == (["@"], 1, "C")
    for found, symbol in (
        (stocks.get_stock_quotes(StockQuotesRequest(symbol_or_symbols="SPY", start=DAY, limit=limit)), "SPY"),
        (crypto.get_crypto_quotes(CryptoQuoteRequest(symbol_or_symbols="BTC/USD", start=DAY, limit=limit)), "BTC/USD"),
    ):
        quotes = found[symbol]
        assert [quote.bid_price for quote in quotes] == [100 + second / 100 for second in range(0, 120, 2)][:limit]
        assert {(quote.bid_size, quote.ask_size) for quote in quotes} == {(3, 4)}


def test_nothing_is_an_empty_answer(stocks: StockHistoricalDataClient, crypto: CryptoHistoricalDataClient) -> None:
    assert (
        stocks.get_stock_bars(
            StockBarsRequest(symbol_or_symbols=["SPY", "NOPE"], timeframe=TimeFrame.Minute, start=DAY)
        ).data
        == {}
    )
    assert stocks.get_stock_trades(StockTradesRequest(symbol_or_symbols="AAPL", start=DAY)).data == {}
    assert crypto.get_crypto_latest_trade(CryptoLatestTradeRequest(symbol_or_symbols="BTC/USD")) == {}
    assert stocks.get_stock_snapshot(StockSnapshotRequest(symbol_or_symbols=["SPY", "NOPE"])) == {}


def test_a_data_error_has_a_message_and_no_code(stocks: StockHistoricalDataClient) -> None:
    with pytest.raises(APIError) as refused:
        stocks.get_stock_bars(StockBarsRequest(symbol_or_symbols="BTC/USD", timeframe=TimeFrame.Minute))
    assert (refused.value.status_code, str(refused.value)) == (400, '{"message":"invalid symbol: BTC/USD"}')
    with pytest.raises(KeyError):
        _ = refused.value.code


# Latest


def test_the_latest_of_stocks(stocks: StockHistoricalDataClient, market: Market) -> None:
    minutes = [bar for _ in range(3) for bar in market.step()]
    spy, aapl = ([bar for bar in minutes if bar["S"] == symbol][-1] for symbol in ("SPY", "AAPL"))
    both = ["SPY", "AAPL"]
    bars = stocks.get_stock_latest_bar(StockLatestBarRequest(symbol_or_symbols=both))
    assert {symbol: bar.close for symbol, bar in bars.items()} == {"SPY": spy["c"], "AAPL": aapl["c"]}
    trades = stocks.get_stock_latest_trade(StockLatestTradeRequest(symbol_or_symbols=both))
    # Trades of AAPL are not recorded: its last bar stands for them.
    assert (trades["SPY"].price, trades["AAPL"].price) == (101.79, aapl["c"])
    quotes = stocks.get_stock_latest_quote(StockLatestQuoteRequest(symbol_or_symbols=both))
    assert (quotes["SPY"].bid_price, quotes["SPY"].ask_price) == (101.78, 102.78)
    assert quotes["AAPL"].bid_price == quotes["AAPL"].ask_price == aapl["c"]
    snapshots = stocks.get_stock_snapshot(StockSnapshotRequest(symbol_or_symbols=[*both, "NOPE"]))
    assert set(snapshots) == set(both)
    assert snapshots["SPY"].minute_bar.close == spy["c"]
    assert snapshots["SPY"].daily_bar.close == spy["c"]
    assert snapshots["SPY"].previous_daily_bar is None
    assert snapshots["SPY"].latest_trade.price == 101.79


def test_the_latest_of_crypto(crypto: CryptoHistoricalDataClient, market: Market) -> None:
    minute = [bar for _ in range(3) for bar in market.step() if bar["S"] == "BTC/USD"][-1]
    symbol = "BTC/USD"
    assert crypto.get_crypto_latest_bar(CryptoLatestBarRequest(symbol_or_symbols=symbol))[symbol].close == minute["c"]
    assert crypto.get_crypto_latest_trade(CryptoLatestTradeRequest(symbol_or_symbols=symbol))[symbol].price == 101.79
    quote = crypto.get_crypto_latest_quote(CryptoLatestQuoteRequest(symbol_or_symbols=symbol))[symbol]
    book = crypto.get_crypto_latest_orderbook(CryptoLatestOrderbookRequest(symbol_or_symbols=symbol))[symbol]
    assert (book.bids[0].price, book.asks[0].size) == (quote.bid_price, quote.ask_size)
    snapshot = crypto.get_crypto_snapshot(CryptoSnapshotRequest(symbol_or_symbols=symbol))[symbol]
    assert (snapshot.latest_quote.ask_price, snapshot.minute_bar.close) == (quote.ask_price, minute["c"])


# Streams


@pytest.mark.parametrize(
    ("make", "path", "symbol"),
    [(StockDataStream, "/v2/iex", "SPY"), (CryptoDataStream, "/v1beta3/crypto/us", "BTC/USD")],
)
def test_trades_quotes_and_daily_bars_arrive_in_order(
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
    told: list[Any] = []

    async def take(message: Any) -> None:
        told.append(message)

    stream.subscribe_trades(take, symbol)
    stream.subscribe_quotes(take, "*")
    stream.subscribe_bars(take, symbol)
    stream.subscribe_daily_bars(take, symbol)
    run_stream(stream)
    wait_until(lambda: f"dailyBars: ['{symbol}']" in caplog.text, "the stream is subscribed")
    minutes = [bar for _ in range(3) for bar in market.step() if bar["S"] == symbol]
    count = 180 + 90 + 2 * len(minutes)
    wait_until(lambda: len(told) == count, "all has come")
    trades = [message for message in told if type(message).__name__ == "Trade"]
    assert [trade.price for trade in trades] == [100 + second / 100 for second in range(180)]
    assert trades[0].timestamp == START + timedelta(microseconds=250)
    quotes = [message for message in told if type(message).__name__ == "Quote"]
    assert [quote.ask_price for quote in quotes] == [101 + second / 100 for second in range(0, 180, 2)]
    bars = [message for message in told if type(message).__name__ == "Bar"]
    midnight = DAY if symbol == "BTC/USD" else DAY + timedelta(hours=4)
    days = [bar for bar in bars if bar.timestamp == midnight]
    assert [bar.close for bar in bars if bar.timestamp != midnight] == [bar["c"] for bar in minutes]
    assert [day.close for day in days] == [bar["c"] for bar in minutes]
    assert {day.open for day in days} == {minutes[0]["o"]}


@pytest.mark.parametrize("options", [{"limits": StreamLimits(connections=1)}], indirect=True)
def test_a_second_connection_is_told_406_and_gets_in_when_the_first_has_gone(
    server: ExchangeServer, run_stream: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="alpaca")

    async def take(message: Any) -> None:
        """Nothing is to come."""

    streams = [StockDataStream(KEY, SECRET, url_override=server.stream_url + "/v2/iex") for _ in range(2)]
    for stream in streams:
        stream.subscribe_bars(take, "SPY")
        stream._reconnect_min_backoff = stream._reconnect_max_backoff = 0.05
    run_stream(streams[0])
    wait_until(lambda: "subscribed to bars" in caplog.text, "the first is subscribed")
    caplog.clear()
    run_stream(streams[1])
    wait_until(lambda: "connection limit exceeded" in caplog.text, "the second is refused")
    assert "subscribed to bars" not in caplog.text  # as long as the first is there
    streams[0].stop()
    wait_until(lambda: "subscribed to bars" in caplog.text, "the second gets in")


@pytest.mark.parametrize("options", [{"limits": StreamLimits(symbols=1)}], indirect=True)
def test_one_symbol_too_many_is_told_405_and_the_stream_goes_on(
    server: ExchangeServer, run_stream: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="alpaca")

    async def take(message: Any) -> None:
        """Nothing is to come."""

    stream = StockDataStream(KEY, SECRET, url_override=server.stream_url + "/v2/iex")
    stream.subscribe_quotes(take, "SPY")
    run_stream(stream)
    wait_until(lambda: "quotes: ['SPY']" in caplog.text, "SPY is subscribed")
    wait_until(lambda: stream._running, "the stream takes changes")
    stream.subscribe_quotes(take, "AAPL")
    wait_until(lambda: "symbol limit exceeded (405)" in caplog.text, "the refusal is logged")
    assert "connected to" in caplog.text


def test_a_recording_without_ticks_serves_bars_and_says_nothing_else(tmp_path: Path) -> None:
    server = ExchangeServer(synthetic_day(["SPY"], minutes=5))
    server.start()
    market = Market(server)
    stocks = StockHistoricalDataClient(KEY, SECRET, url_override=server.url)
    try:
        market.step()
        assert stocks.get_stock_trades(StockTradesRequest(symbol_or_symbols="SPY", start=DAY)).data == {}
        latest = stocks.get_stock_latest_trade(StockLatestTradeRequest(symbol_or_symbols="SPY"))
        assert latest["SPY"].timestamp == START + timedelta(minutes=1)
    finally:
        stocks._session.close()
        market.close()
        server.stop()
