"""The trading API and historical bars over HTTP, on a running exchange."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from dry_work.exchange.server import ExchangeServer
from dry_work.wire.alpaca_rest import asset_id

Run = Callable[..., ExchangeServer]
Connect = Callable[..., Any]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"APCA-API-KEY-ID": "key"},
        {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "no"},
        {"Authorization": "Basic ?"},
    ],
)
async def test_requests_without_good_credentials_are_refused(
    run_exchange: Run, connect: Connect, headers: dict[str, str]
) -> None:
    client = connect(run_exchange(keys={"key": "secret"}))
    for method, path in (("GET", "/v2/account"), ("GET", "/v2/orders"), ("POST", "/v2/orders"), ("GET", "/v2/clock")):
        status, answer = await client.call(method, path, headers=headers)
        assert (status, answer) == (401, {"code": 40110000, "message": "request is not authorized"})
    assert await client.call("GET", "/v2/stocks/bars?symbols=SPY&timeframe=1Min", headers=headers) == (
        403,
        {"message": "forbidden."},
    )


async def test_every_key_has_an_account_of_its_own(run_exchange: Run, connect: Connect) -> None:
    server = run_exchange(cash=Decimal(5000))
    one, other = [(await connect(server, key).call("GET", "/v2/account"))[1] for key in ("one", "other")]
    assert (one["cash"], other["cash"]) == ("5000", "5000")
    assert one["id"] != other["id"]


async def test_answers_carry_request_id_and_budget(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange(requests_per_minute=2))
    seen = []
    for path in ("/v2/clock", "/v2/nothing", "/v2/clock"):
        async with client.session.get(client.server.url + path, headers=client.headers) as answer:
            seen.append((answer.status, answer.headers["X-RateLimit-Limit"], answer.headers["X-RateLimit-Remaining"]))
            assert int(answer.headers["X-RateLimit-Reset"]) > 0
            assert len(answer.headers["X-Request-ID"]) == 32
            body = await answer.json()
    assert seen == [(200, "2", "1"), (404, "2", "0"), (429, "2", "0")]
    assert body == {"code": 42910000, "message": "rate limit exceeded"}


@pytest.mark.parametrize("body", ["", "{", "[]", "NaN", '{"symbol": NaN}', "[" * 50_000])
async def test_a_body_that_is_no_json_object_is_refused(run_exchange: Run, connect: Connect, body: str) -> None:
    client = connect(run_exchange())
    assert await client.call("POST", "/v2/orders", data=body) == (
        400,
        {"code": 40010000, "message": "request body format is invalid"},
    )


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2/nothing", 404, 40410000),
        ("GET", "/", 404, 40410000),
        ("PUT", "/v2/orders", 405, 40510000),
        ("GET", "/v2/assets/NOPE", 404, 40410000),
        ("GET", "/v2/orders/7b08df51-0e1f-4a5c-8f4e-1d7e3a4b5c6d", 404, 40410000),
        ("DELETE", "/v2/orders/7b08df51-0e1f-4a5c-8f4e-1d7e3a4b5c6d", 404, 40410000),
        ("GET", "/v2/orders:by_client_order_id?client_order_id=x", 404, 40410000),
        ("GET", "/v2/positions/SPY", 404, 40410000),
        ("GET", "/v2/positions/BTC/USD", 404, 40410000),  # as upstream, held or not
        ("DELETE", "/v2/positions/SPY", 404, 40410000),
        ("DELETE", "/v2/positions/SPY?qty=none", 422, 42210000),
        ("GET", "/v2/orders?status=odd", 422, 40010001),
        ("GET", "/v2/orders?limit=0", 422, 40010001),
        ("GET", "/v2/orders?limit=501", 422, 40010001),
        ("GET", "/v2/orders?after=yesterday", 422, 40010001),
        ("GET", "/v2/calendar?start=soon", 422, 40010001),
    ],
)
async def test_a_request_that_cannot_be_served_is_json_with_a_code(
    run_exchange: Run, connect: Connect, method: str, path: str, status: int, code: int
) -> None:
    answered, body = await connect(run_exchange()).call(method, path)
    assert (answered, body["code"]) == (status, code)
    assert body["message"]


@pytest.mark.parametrize("spelling", ["BTC/USD", "BTCUSD", "btc/usd", asset_id("BTC/USD")])
async def test_an_asset_is_found_by_any_spelling_and_by_id(run_exchange: Run, connect: Connect, spelling: str) -> None:
    status, asset = await connect(run_exchange()).call("GET", f"/v2/assets/{spelling}")
    assert (status, asset["symbol"], asset["class"]) == (200, "BTC/USD", "crypto")


async def test_assets_are_listed_by_class_and_status(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange())
    for query, symbols in (
        ("", ["SPY", "IBM", "BTC/USD"]),
        ("?asset_class=crypto", ["BTC/USD"]),
        ("?status=inactive", []),
    ):
        assert [asset["symbol"] for asset in (await client.call("GET", "/v2/assets" + query))[1]] == symbols


async def test_the_clock_shows_the_exchanges_time_in_new_york(run_exchange: Run, connect: Connect) -> None:
    assert (await connect(run_exchange()).call("GET", "/v2/clock"))[1] == {
        "timestamp": "2024-06-11T09:30:00-04:00",
        "is_open": True,
        "next_open": "2024-06-12T09:30:00-04:00",
        "next_close": "2024-06-11T16:00:00-04:00",
    }


async def test_the_calendar_knows_holidays_and_half_days(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange())
    _, days = await client.call("GET", "/v2/calendar?start=2024-07-03&end=2024-07-05")
    assert days == [
        {
            "date": "2024-07-03", "open": "09:30", "close": "13:00", "session_open": "0400", "session_close": "1700",
            "settlement_date": "2024-07-05",
        },
        {
            "date": "2024-07-05", "open": "09:30", "close": "16:00", "session_open": "0400", "session_close": "2000",
            "settlement_date": "2024-07-08",
        },
    ]  # fmt: skip
    _, settled = await client.call("GET", "/v2/calendar?start=2024-07-05&end=2024-07-05&date_type=SETTLEMENT")
    assert [day["date"] for day in settled] == ["2024-07-03"]
    _, before = await client.call("GET", "/v2/calendar?start=2024-05-23&end=2024-05-28")
    assert [(day["date"], day["settlement_date"]) for day in before] == [
        ("2024-05-23", "2024-05-28"),
        ("2024-05-24", "2024-05-29"),
        ("2024-05-28", "2024-05-29"),
    ]
    assert (await client.call("GET", "/v2/calendar?start=2024-07-06&end=2024-07-07")) == (200, [])


async def test_orders_are_listed_by_every_filter(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange())
    await client.register()

    async def list_orders(query: str) -> list[str]:
        status, orders = await client.call("GET", f"/v2/orders?{query}")
        assert status == 200
        return [order["client_order_id"] for order in orders]

    async with client.reader() as reader:
        await reader.receive_slice()
        await client.submit(client_order_id="market")
        await client.submit(client_order_id="low", type="limit", limit_price="50")
        await client.report(1, orders=2)
        await reader.receive_slice()
        await client.submit(client_order_id="crypto", symbol="BTCUSD", qty=0.5)
        await client.submit(client_order_id="high", side="sell", type="limit", limit_price=200)

        assert await list_orders("status=all") == ["high", "crypto", "low", "market"]
        assert await list_orders("status=all&direction=asc&limit=3") == ["market", "low", "crypto"]
        assert await list_orders("") == ["high", "crypto", "low"]
        assert await list_orders("status=closed") == ["market"]
        assert await list_orders("status=all&symbols=BTC%2FUSD") == ["crypto"]
        assert await list_orders("status=all&symbols=BTCUSD,IBM") == ["crypto"]
        assert await list_orders("status=all&side=sell") == ["high"]
        # Both ends are exclusive: slices ended at 13:31 and 13:32.
        assert await list_orders("status=all&after=2024-06-11T13:31:00Z") == ["high", "crypto"]
        assert await list_orders("status=all&until=2024-06-11T09:32:00-04:00") == ["low", "market"]

        _, low = await client.call("GET", "/v2/orders:by_client_order_id?client_order_id=low")
        assert await client.call("GET", f"/v2/orders/{low['id']}") == (200, low)
        assert await client.call("DELETE", f"/v2/orders/{low['id']}") == (204, None)
        status, rows = await client.call("DELETE", "/v2/orders")
        assert status == 207
        assert {row["status"] for row in rows} == {422}  # made in this slice, as Backtrader ignores such a cancel
        assert all(row["body"]["code"] == 42210000 for row in rows)
        assert await list_orders("status=closed") == ["low", "market"]


async def test_positions_are_shown_and_closed(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange())
    await client.register("a", ["SPY"])
    async with client.reader() as reader:
        await reader.receive_slice()
        await client.submit(qty="2")
        await client.submit(symbol="BTC/USD", qty="0.5")
        await client.report(1, orders=2)
        await reader.receive_slice()

        _, positions = await client.call("GET", "/v2/positions")
        assert [(position["symbol"], position["qty"]) for position in positions] == [("SPY", "2"), ("BTCUSD", "0.5")]
        assert (positions[0]["avg_entry_price"], positions[0]["current_price"]) == ("101", "101.25")
        _, account = await client.call("GET", "/v2/account")
        assert (account["cash"], account["equity"]) == ("99747.5", "100000.625")
        assert account["long_market_value"] == "253.125"
        for spelling in ("BTCUSD", "BTC%2FUSD", asset_id("BTC/USD")):
            assert await client.call("GET", f"/v2/positions/{spelling}") == (200, positions[1])

        status, order = await client.call("DELETE", "/v2/positions/SPY?qty=0.5")
        assert (status, order["side"], order["qty"], order["type"]) == (200, "sell", "0.5", "market")
        await client.report(2)
        await reader.receive_slice()
        status, rows = await client.call("DELETE", "/v2/positions?cancel_orders=True")
        assert status == 207
        assert [(row["symbol"], row["status"], row["body"]["qty"]) for row in rows] == [
            ("SPY", 200, "1.5"),
            ("BTCUSD", 200, "0.5"),
        ]
        await client.report(3)
        await reader.receive_slice()
        assert await client.call("GET", "/v2/positions") == (200, [])


async def test_fills_are_listed_as_activities(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange())
    await client.register()
    async with client.reader() as reader:
        await reader.receive_slice()
        await client.submit(client_order_id="one")
        await client.submit(client_order_id="two", qty="3")
        await client.report(1, orders=2)
        await reader.receive_slice()
        path = "/v2/account/activities/FILL"
        _, fills = await client.call("GET", path)
        assert [(fill["qty"], fill["price"], fill["type"]) for fill in fills] == [
            ("3", "101", "fill"),
            ("1", "101", "fill"),
        ]
        assert fills[0]["id"].startswith("20240611093200000::")
        assert (fills[0]["leaves_qty"], fills[0]["cum_qty"], fills[0]["order_status"]) == ("0", "3", "filled")
        assert (await client.call("GET", f"{path}?direction=asc&page_size=1"))[1] == [fills[1]]
        assert (await client.call("GET", f"{path}?page_token={fills[0]['id']}"))[1] == [fills[1]]
        assert (await client.call("GET", f"{path}?date=2024-06-10"))[1] == []
        assert len((await client.call("GET", f"{path}?date=2024-06-11"))[1]) == 2


async def test_an_unexpected_error_is_a_500_with_a_body(
    run_exchange: Run, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = run_exchange()

    def broken(key_id: str) -> None:
        raise ArithmeticError

    monkeypatch.setattr(server._state.venue, "positions", broken)
    assert await connect(server).call("GET", "/v2/positions") == (
        500,
        {"code": 50010000, "message": "internal server error occurred"},
    )


# Historical bars


async def play(run_exchange: Run, connect: Connect, slices: int) -> Any:
    """Return a client of an exchange at whose time so many slices have ended."""
    client = connect(run_exchange())
    await client.register()
    async with client.reader() as reader:
        for number in range(1, slices + 1):
            await reader.receive_slice()
            if number < slices:
                await client.report(number)
    return client


async def get_bars(client: Any, query: str, path: str = "/v2/stocks/bars") -> tuple[dict[str, list[Any]], str | None]:
    status, page = await client.call("GET", f"{path}?timeframe=1Min&{query}")
    assert status == 200, page
    return page["bars"], page["next_page_token"]


async def test_bars_never_reach_beyond_the_exchanges_time(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange())
    assert await get_bars(client, "symbols=SPY&start=2024-06-01&end=2025-01-01") == ({}, None)
    client = await play(run_exchange, connect, 2)
    bars, token = await get_bars(client, "symbols=SPY,NOPE&end=2025-01-01T00:00:00Z")
    assert token is None
    assert bars == {
        "SPY": [
            {
                "t": "2024-06-11T13:30:00Z",
                "o": 100.0,
                "h": 100.5,
                "l": 99.5,
                "c": 100.25,
                "v": 10.0,
                "n": None,
                "vw": None,
            },
            {
                "t": "2024-06-11T13:31:00Z",
                "o": 101.0,
                "h": 101.5,
                "l": 100.5,
                "c": 101.25,
                "v": 10.0,
                "n": None,
                "vw": None,
            },
        ]
    }


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
@pytest.mark.parametrize("sort", ["asc", "desc"])
async def test_bars_come_in_pages_by_symbol_then_time(
    run_exchange: Run, connect: Connect, limit: int, sort: str
) -> None:
    client = await play(run_exchange, connect, 3)
    seen: list[tuple[str, float]] = []
    token = ""
    for _ in range(10):
        query = f"symbols=SPY,IBM&limit={limit}&sort={sort}" + (f"&page_token={token}" if token else "")
        bars, following = await get_bars(client, query)
        rows = [(symbol, bar["o"]) for symbol, page in bars.items() for bar in page]
        assert 0 < len(rows) <= limit
        seen += rows
        if following is None:
            break
        token = following
    opens = [100.0, 101.0, 102.0] if sort == "asc" else [102.0, 101.0, 100.0]
    assert seen == [(symbol, price) for symbol in ("IBM", "SPY") for price in opens]


async def test_start_and_end_of_bars_are_inclusive(run_exchange: Run, connect: Connect) -> None:
    client = await play(run_exchange, connect, 4)
    bars, _ = await get_bars(client, "symbols=SPY&start=2024-06-11T13:31:00Z&end=2024-06-11T13:32:00Z")
    assert [bar["o"] for bar in bars["SPY"]] == [101.0, 102.0]


async def test_crypto_bars_need_no_credentials(run_exchange: Run, connect: Connect) -> None:
    client = await play(run_exchange, connect, 1)
    client.headers = {}
    bars, _ = await get_bars(client, "symbols=BTC%2FUSD", "/v1beta3/crypto/us/bars")
    assert len(bars["BTC/USD"]) == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1beta3/crypto/us/bars?symbols=BTCUSD", "invalid symbol: BTCUSD does not match ^[A-Z]+/[A-Z]+$"),
        ("/v2/stocks/bars?symbols=BTC%2FUSD", "invalid symbol: BTC/USD"),
        ("/v2/stocks/bars", "symbols is required"),
        ("/v2/stocks/bars?symbols=SPY", "timeframe is required"),
        (
            "/v2/stocks/bars?symbols=SPY&timeframe=2Day",
            "invalid timeframe: 2Day; expected [1-59]Min, [1-23]Hour, 1Day, 1Week or {1,2,3,4,6,12}Month",
        ),
        ("/v2/stocks/bars?symbols=SPY&timeframe=1Min&limit=10001", "limit must be between 1 and 10000"),
        ("/v2/stocks/bars?symbols=SPY&timeframe=1Min&start=soon", "invalid start: soon"),
        ("/v2/stocks/bars?symbols=SPY&timeframe=1Min&page_token=odd", "invalid page_token"),
    ],
)
async def test_a_bad_request_for_bars_has_a_message_and_no_code(
    run_exchange: Run, connect: Connect, path: str, message: str
) -> None:
    assert await connect(run_exchange()).call("GET", path) == (400, {"message": message})
