"""Historical and latest market data over HTTP; trades, quotes and daily bars on the socket; on a running exchange."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dry_work.exchange.server import ExchangeServer
from dry_work.feeds.recorded import Recording
from dry_work.feeds.recorded_ticks import TickRecording, read_ticks

Run = Callable[..., ExchangeServer]
Connect = Callable[..., Any]


@pytest.fixture
def ticks(tmp_path: Path) -> TickRecording:
    """Ten trades of SPY a minute, one of BTC/USD, and a quote of SPY in each of five minutes."""
    trades = ["symbol,timestamp,price,size,exchange,conditions"]
    quotes = ["symbol,timestamp,bid_price,bid_size,ask_price,ask_size"]
    for minute in range(5):
        for second in range(10):
            # two trades at each time, as venues have them
            stamp = f"2024-06-11T13:3{minute}:{second // 2 * 10:02d}Z"
            trades.append(f"SPY,{stamp},{100 + minute}.{second},{second + 1},V,@")
        trades.append(f"BTC/USD,2024-06-11T13:3{minute}:30Z,{60000 + minute},0.5,,")
        quotes.append(f"SPY,2024-06-11T13:3{minute}:15Z,{100 + minute},5,{101 + minute},6")
    (tmp_path / "trades.csv").write_text("\n".join(trades))
    (tmp_path / "quotes.csv").write_text("\n".join(quotes))
    return read_ticks([tmp_path])


async def play(server: ExchangeServer, connect: Connect, slices: int) -> Any:
    """Return a client of a lock-step exchange at whose time so many slices have ended."""
    client = connect(server)
    await client.register()
    async with client.reader() as reader:
        for number in range(1, slices + 1):
            await reader.receive_slice()
            if number < slices:
                await client.report(number)
    return client


async def get(client: Any, path: str) -> Any:
    status, body = await client.call("GET", path)
    assert status == 200, body
    return body


async def test_bars_of_longer_timeframes_are_joined_up_to_now(run_exchange: Run, connect: Connect) -> None:
    client = await play(run_exchange(), connect, 4)
    body = await get(client, "/v2/stocks/bars?symbols=SPY&timeframe=3Min")
    assert [(bar["t"], bar["o"], bar["c"], bar["v"]) for bar in body["bars"]["SPY"]] == [
        ("2024-06-11T13:30:00Z", 100.0, 102.25, 30.0),
        ("2024-06-11T13:33:00Z", 103.0, 103.25, 10.0),
    ]
    body = await get(client, "/v1beta3/crypto/us/bars?symbols=BTC/USD&timeframe=1Day")
    assert [(bar["t"], bar["h"]) for bar in body["bars"]["BTC/USD"]] == [("2024-06-11T00:00:00Z", 103.5)]
    body = await get(client, "/v2/stocks/bars?symbols=SPY&timeframe=1Day&start=2024-06-01")
    assert [bar["t"] for bar in body["bars"]["SPY"]] == ["2024-06-11T04:00:00Z"]


async def test_trades_and_quotes_never_reach_beyond_the_exchanges_time(
    run_exchange: Run, connect: Connect, ticks: TickRecording
) -> None:
    client = await play(run_exchange(ticks=ticks), connect, 2)
    body = await get(client, "/v2/stocks/trades?symbols=SPY,IBM&end=2025-01-01")
    assert body["next_page_token"] is None
    assert list(body["trades"]) == ["SPY"]  # no trades of IBM are recorded
    assert [trade["p"] for trade in body["trades"]["SPY"]] == [
        100 + minute + n / 10 for minute in range(2) for n in range(10)
    ]
    assert body["trades"]["SPY"][0] == {
        "t": "2024-06-11T13:30:00Z",
        "i": 1,
        "x": "V",
        "p": 100.0,
        "s": 1,
        "c": ["@"],
        "z": "",
    }
    body = await get(client, "/v2/stocks/quotes?symbols=SPY&start=2024-06-11T13:31:00Z")
    assert [(quote["bp"], quote["ap"]) for quote in body["quotes"]["SPY"]] == [(101.0, 102.0)]
    body = await get(client, "/v1beta3/crypto/us/trades?symbols=BTC/USD")
    assert [trade["p"] for trade in body["trades"]["BTC/USD"]] == [60000.0, 60001.0]


@pytest.mark.parametrize("limit", [1, 3, 7, 10_000])
@pytest.mark.parametrize("sort", ["asc", "desc"])
async def test_pages_hold_every_trade_once_also_trades_of_one_time(
    run_exchange: Run, connect: Connect, ticks: TickRecording, limit: int, sort: str
) -> None:
    client = await play(run_exchange(ticks=ticks), connect, 3)
    seen: list[int] = []
    token = ""
    for _ in range(40):
        query = f"symbols=SPY&limit={limit}&sort={sort}" + (f"&page_token={token}" if token else "")
        body = await get(client, f"/v2/stocks/trades?{query}")
        page = [trade["i"] for trade in body["trades"]["SPY"]]
        assert 0 < len(page) <= limit
        seen += page
        token = body["next_page_token"]
        if token is None:
            break
    assert seen == (list(range(1, 31)) if sort == "asc" else list(range(30, 0, -1)))


async def test_a_page_token_stays_good_while_time_goes_on(
    run_exchange: Run, connect: Connect, ticks: TickRecording
) -> None:
    client = connect(run_exchange(ticks=ticks))
    await client.register()
    async with client.reader() as reader:
        await reader.receive_slice()
        path = "/v2/stocks/bars?symbols=SPY&timeframe=1Min&start=2024-06-11&limit=1"
        tokens = []
        for number in (1, 2):
            await client.report(number)
            await reader.receive_slice()
            tokens.append((await get(client, path))["next_page_token"])
        body = await get(client, f"{path}&page_token={tokens[0]}")
        assert [bar["t"] for bar in body["bars"]["SPY"]] == ["2024-06-11T13:31:00Z"]


async def test_a_single_stock_has_paths_of_its_own(run_exchange: Run, connect: Connect, ticks: TickRecording) -> None:
    client = await play(run_exchange(ticks=ticks), connect, 2)
    body = await get(client, "/v2/stocks/spy/bars?timeframe=1Min&limit=1")
    assert (body["symbol"], len(body["bars"]), body["next_page_token"] is None) == ("SPY", 1, False)
    body = await get(client, "/v2/stocks/NOPE/bars?timeframe=1Min")
    assert body == {"symbol": "NOPE", "bars": [], "next_page_token": None}
    assert (await get(client, "/v2/stocks/SPY/trades/latest"))["trade"]["p"] == 101.9
    assert (await get(client, "/v2/stocks/SPY/quotes/latest"))["quote"]["bp"] == 101.0
    assert (await get(client, "/v2/stocks/SPY/bars/latest"))["bar"]["o"] == 101.0
    snapshot = await get(client, "/v2/stocks/SPY/snapshot")
    assert (snapshot["symbol"], snapshot["dailyBar"]["o"], snapshot["dailyBar"]["c"]) == ("SPY", 100.0, 101.25)
    assert await client.call("GET", "/v2/stocks/NOPE/trades/latest") == (404, {"message": "no trade found for NOPE"})
    assert await client.call("GET", "/v2/stocks/NOPE/snapshot") == (404, {"message": "no snapshot found for NOPE"})


async def test_latest_rows_and_snapshots_of_many(run_exchange: Run, connect: Connect, ticks: TickRecording) -> None:
    client = await play(run_exchange(ticks=ticks), connect, 2)
    body = await get(client, "/v2/stocks/bars/latest?symbols=SPY,IBM,NOPE")
    assert {symbol: bar["t"] for symbol, bar in body["bars"].items()} == {
        "SPY": "2024-06-11T13:31:00Z",
        "IBM": "2024-06-11T13:31:00Z",
    }
    body = await get(client, "/v2/stocks/trades/latest?symbols=SPY,IBM")
    assert (body["trades"]["SPY"]["t"], body["trades"]["SPY"]["p"]) == ("2024-06-11T13:31:40Z", 101.9)
    assert (body["trades"]["IBM"]["t"], body["trades"]["IBM"]["p"]) == ("2024-06-11T13:32:00Z", 101.25)
    snapshots = await get(client, "/v2/stocks/snapshots?symbols=SPY,NOPE")
    assert snapshots["NOPE"] is None
    assert set(snapshots["SPY"]) == {"latestTrade", "latestQuote", "minuteBar", "dailyBar"}
    client.headers = {}  # crypto asks for no credentials
    body = await get(client, "/v1beta3/crypto/us/latest/trades?symbols=BTC/USD")
    assert body["trades"]["BTC/USD"]["p"] == 60001.0
    body = await get(client, "/v1beta3/crypto/us/latest/orderbooks?symbols=BTC/USD")
    assert body["orderbooks"]["BTC/USD"] == {
        "t": "2024-06-11T13:32:00Z",
        "b": [{"p": 101.25, "s": 1.0}],
        "a": [{"p": 101.25, "s": 1.0}],
    }
    body = await get(client, "/v1beta3/crypto/us/snapshots?symbols=BTC/USD,DOGE/USD")
    assert list(body["snapshots"]) == ["BTC/USD"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/stocks/BTCUSD1234567/bars?timeframe=1Min", 400),
        ("/v2/stocks/trades", 400),
        ("/v2/stocks/quotes?symbols=SPY&limit=0", 400),
        ("/v2/stocks/bars/latest", 400),
        ("/v2/stocks/auctions?symbols=SPY", 404),
        ("/v1beta3/crypto/us/latest/bars?symbols=BTCUSD", 400),
        ("/v2/stocks/trades?symbols=SPY&page_token=U1BZfC0x", 400),  # SPY|-1
    ],
)
async def test_a_bad_request_for_market_data_has_a_message(
    run_exchange: Run, connect: Connect, path: str, status: int
) -> None:
    answered, body = await connect(run_exchange()).call("GET", path)
    assert answered == status
    assert body["message"]


@pytest.mark.parametrize("path", ["/v2/stocks/trades", "/v2/stocks/bars/latest", "/v2/stocks/snapshots"])
async def test_stock_data_needs_credentials(run_exchange: Run, connect: Connect, path: str) -> None:
    client = connect(run_exchange(keys={"key": "secret"}))
    for headers in ({}, {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "wrong"}):
        assert await client.call("GET", f"{path}?symbols=SPY", headers=headers) == (403, {"message": "forbidden."})


# The stream


async def receive_items(socket: Any, count: int) -> list[dict[str, Any]]:
    """Return the next `count` items of a JSON session."""
    items: list[dict[str, Any]] = []
    while len(items) < count:
        items += json.loads((await socket.receive(60.0)).data)
    return items


async def test_trades_and_quotes_come_before_the_bar_of_their_minute(
    run_exchange: Run, connect: Connect, ticks: TickRecording
) -> None:
    client = connect(run_exchange(ticks=ticks))
    async with client.data() as data, client.data("/v1beta3/crypto/us") as crypto, client.reader() as reader:
        for session, channels in (
            (data, {"trades": ["SPY"], "quotes": ["*"], "bars": ["SPY"], "dailyBars": ["*"]}),
            (crypto, {"trades": ["*"]}),
        ):
            await session.authenticate()
            await session.send({"action": "subscribe", **channels})
            await session.receive()
        await client.register()
        for number in (1, 2):
            await reader.receive_slice()
            items = await receive_items(data.socket, 14)
            assert [item["T"] for item in items] == ["t"] * 4 + ["q"] + ["t"] * 6 + ["b", "d", "d"]
            assert [item["t"] for item in items[:11]] == sorted(item["t"] for item in items[:11])
            trade, bar, day = items[0], items[11], items[12]
            assert trade == {
                "T": "t",
                "S": "SPY",
                "i": 10 * number - 9,
                "x": "V",
                "p": 99.0 + number,
                "s": 1,
                "c": ["@"],
                "z": "",
                "t": f"2024-06-11T13:3{number - 1}:00Z",
            }
            assert (bar["S"], bar["o"]) == ("SPY", 99.0 + number)
            assert (day["S"], day["t"], day["o"], day["v"]) == ("SPY", "2024-06-11T04:00:00Z", 100.0, 10.0 * number)
            (coin,) = await receive_items(crypto.socket, 1)
            assert (coin["T"], coin["S"], coin["p"], coin["tks"]) == ("t", "BTC/USD", 59_999.0 + number, "")
            await client.report(number)


async def test_with_a_speed_ticks_come_between_the_bars_and_none_is_left_out(
    run_exchange: Run, connect: Connect, ticks: TickRecording, recording: Recording
) -> None:
    client = connect(run_exchange(recording, ticks=ticks, speed=240.0, consumers=1))
    async with client.data() as data:
        await data.authenticate()
        await data.send({"action": "subscribe", "trades": ["SPY"], "bars": ["SPY"], "watermarks": ["*"]})
        await data.receive()
        await client.register()
        items = [item for item in await receive_items(data.socket, 60) if item["T"] != "w"]
        kinds = "".join(item["T"] for item in items)
        assert kinds == ("t" * 10 + "b") * 5
        assert [item["i"] for item in items if item["T"] == "t"] == list(range(1, 51))
