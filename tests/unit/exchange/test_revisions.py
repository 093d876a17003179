"""Late revisions of bars, by the exchange's own interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from dry_work.clock import MINUTE_NS
from dry_work.exchange.server import ExchangeServer
from dry_work.wire.pubsub import encode_time

from .conftest import START_NS

Run = Callable[..., ExchangeServer]
Connect = Callable[..., Any]

PATH = "/dry-work/v1/revisions"


async def end_two_slices(client: Any, reader: Any) -> None:
    await client.register()
    await reader.receive_slice()
    await client.report(1)
    await reader.receive_slice()


@pytest.mark.parametrize("symbol", ["SPY", "BTC/USD"])
async def test_a_revised_bar_is_told_on_updated_bars_and_stands_in_the_history(
    run_exchange: Run, connect: Connect, symbol: str
) -> None:
    client = connect(run_exchange())
    path = "/v1beta3/crypto/us" if "/" in symbol else "/v2/iex"
    async with client.reader() as reader, client.data(path) as data, client.data(path) as indifferent:
        for session, channels in ((data, {"updatedBars": [symbol]}), (indifferent, {"bars": [symbol]})):
            await session.authenticate()
            await session.send({"action": "subscribe", **channels})
            await session.receive()
        await end_two_slices(client, reader)
        start = encode_time(START_NS)
        before = (await client.call("GET", "/v2/account"))[1]
        status, row = await client.call(
            "POST", PATH, {"symbol": symbol, "timestamp": start, "high": 107, "close": 100.7}
        )
        assert (status, row["c"], row["h"], row["o"]) == (200, 100.7, 107.0, 100.0)
        frame = orjson.loads((await data.socket.receive(60.0)).data)
        assert (frame[0]["T"], frame[0]["S"], frame[0]["t"], frame[0]["c"]) == ("u", symbol, start, 100.7)
        url = f"/v1beta3/crypto/us/bars?symbols={symbol}" if "/" in symbol else f"/v2/stocks/bars?symbols={symbol}"
        _, history = await client.call("GET", f"{url}&timeframe=1Min")
        assert [bar["c"] for bar in history["bars"][symbol]] == [100.7, 101.25]
        _, days = await client.call("GET", f"{url}&timeframe=1Day")
        assert days["bars"][symbol][0]["h"] == 107.0
        assert (await client.call("GET", "/v2/account"))[1] == before  # nothing is matched again
        await client.report(2)
        bars = [bar for bar in await indifferent.receive() if bar.symbol == symbol]
        assert [bar.ts_event_ns for bar in bars] == [START_NS]  # no revision between its bars
        assert [bar.ts_event_ns for bar in await indifferent.receive()] == [START_NS + MINUTE_NS]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"symbol": "TSLA", "close": 1}, "asset not found for TSLA"),
        ({"close": 100}, "timestamp must be the start of a bar"),
        ({"timestamp": "soon", "close": 100}, "timestamp must be the start of a bar"),
        ({"timestamp": encode_time(START_NS + 1), "close": 100}, "SPY has no bar that began at"),
        ({"timestamp": encode_time(START_NS + 3 * MINUTE_NS), "close": 100}, "and has ended"),
        ({"timestamp": encode_time(START_NS)}, "expected some of open, high, low, close"),
        ({"timestamp": encode_time(START_NS), "price": 100}, "price cannot be; expected some of open"),
        ({"timestamp": encode_time(START_NS), "close": "x"}, "close must be a number of at least 0"),
        ({"timestamp": encode_time(START_NS), "volume": -1}, "volume must be a number of at least 0"),
        ({"timestamp": encode_time(START_NS), "close": 100.6}, "open and close must lie between low and high"),
    ],
)
async def test_a_revision_that_cannot_be_is_refused(
    run_exchange: Run, connect: Connect, body: dict[str, Any], words: str
) -> None:
    client = connect(run_exchange())
    async with client.reader() as reader:
        await end_two_slices(client, reader)
        status, answer = await client.call("POST", PATH, {"symbol": "SPY", **body})
        assert status == 422
        assert words in answer["message"]
        _, history = await client.call("GET", "/v2/stocks/SPY/bars?timeframe=1Min")
        assert [bar["c"] for bar in history["bars"]] == [100.25, 101.25]
