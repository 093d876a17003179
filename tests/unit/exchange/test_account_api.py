"""Settings, activities, equity history, watchlists, replacement and limits over HTTP, on a running exchange."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import aiohttp
import pytest

from dry_work.exchange.data_sockets import StreamLimits
from dry_work.exchange.server import ExchangeServer
from dry_work.wire.alpaca_stream import StreamControl, build_auth

Run = Callable[..., ExchangeServer]
Connect = Callable[..., Any]

SETTINGS = "/v2/account/configurations"
LISTEN = {"action": "listen", "data": {"streams": ["trade_updates"]}}


async def get(client: Any, path: str) -> Any:
    status, body = await client.call("GET", path)
    assert status == 200, body
    return body


# Settings


async def test_settings_are_kept_for_each_account(run_exchange: Run, connect: Connect) -> None:
    server = run_exchange()
    client, other = connect(server), connect(server, "other")
    before = await get(client, SETTINGS)
    assert (before["no_shorting"], before["max_margin_multiplier"], before["trade_confirm_email"]) == (
        False,
        "2",
        "none",
    )
    changes = {"no_shorting": True, "max_margin_multiplier": "1", "trade_confirm_email": "all", "dtbp_check": None}
    status, after = await client.call("PATCH", SETTINGS, changes)
    assert (status, after) == (
        200,
        {**before, "no_shorting": True, "max_margin_multiplier": "1", "trade_confirm_email": "all"},
    )
    assert await get(client, SETTINGS) == after
    assert (await get(client, "/v2/account"))["shorting_enabled"] is False
    assert await get(other, SETTINGS) == before


@pytest.mark.parametrize(
    "change",
    [
        {"no_shorting": "yes"},
        {"max_margin_multiplier": "3"},
        {"trade_confirm_email": "some"},
        {"max_options_trading_level": 4},
        {"suspend_trade": 1},
    ],
)
async def test_a_setting_that_makes_no_sense_is_refused_and_changes_nothing(
    run_exchange: Run, connect: Connect, change: dict[str, Any]
) -> None:
    client = connect(run_exchange())
    before = await get(client, SETTINGS)
    status, body = await client.call("PATCH", SETTINGS, {"fractional_trading": False, **change})
    assert (status, body["code"]) == (422, 40010001)
    assert await get(client, SETTINGS) == before


@pytest.mark.parametrize("rules", ["alpaca", "backtrader"])
@pytest.mark.parametrize(
    ("setting", "order", "message"),
    [
        ({"suspend_trade": True}, {}, "new orders are rejected by user request"),
        ({"no_shorting": True}, {"side": "sell"}, "account is not allowed to short"),
        (
            {"fractional_trading": False},
            {"qty": "1.5", "time_in_force": "day"},
            "account is not allowed to trade fractional shares",
        ),
    ],
)
async def test_what_is_switched_off_is_refused(
    run_exchange: Run, connect: Connect, rules: str, setting: dict[str, bool], order: dict[str, str], message: str
) -> None:
    client = connect(run_exchange(rules=rules))
    assert (await client.submit(**order))[0] == 200
    await client.call("PATCH", SETTINGS, setting)
    status, body = await client.submit(**order)
    assert (status, body["code"], body["message"]) == (403, 40310000, message)
    await client.call("PATCH", SETTINGS, {name: not value for name, value in setting.items()})
    assert (await client.submit(**order))[0] == 200


async def test_a_margin_multiplier_of_one_halves_the_buying_power(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange(rules="alpaca"))
    assert (await get(client, "/v2/account"))["buying_power"] == "200000"
    await client.call("PATCH", SETTINGS, {"max_margin_multiplier": "1"})
    account = await get(client, "/v2/account")
    assert (account["buying_power"], account["multiplier"]) == ("100000", "1")


# Activities and equity


async def trade(run_exchange: Run, connect: Connect, count: int) -> Any:
    """Return a client whose account has bought one share of SPY in each of `count` slices."""
    client = connect(run_exchange(cash=Decimal(1000)))
    await client.register()
    async with client.reader() as reader:
        for number in range(1, count + 1):
            await reader.receive_slice()
            await client.submit()
            await client.report(number, orders=1)
        await reader.receive_slice()
    return client


async def test_activities_are_paged_to_their_end_in_both_directions(run_exchange: Run, connect: Connect) -> None:
    client = await trade(run_exchange, connect, 3)
    everything = await get(client, "/v2/account/activities")
    assert [row["price"] for row in everything] == ["103", "102", "101"]
    for direction in ("asc", "desc"):
        seen: list[Any] = []
        token = ""
        while page := await get(
            client, f"/v2/account/activities/FILL?page_size=2&direction={direction}&page_token={token}"
        ):
            seen += page
            token = page[-1]["id"]
        assert seen == (everything if direction == "desc" else everything[::-1])


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("?activity_types=FILL,DIV", 2),
        ("?activity_types=DIV", 0),
        ("/DIV", 0),
        ("/FILL?after=2024-06-11T13:32:00Z", 1),
        ("/FILL?until=2024-06-11T13:33:00Z", 1),
        ("/FILL?page_token=unknown", 0),
    ],
)
async def test_activities_are_chosen_by_kind_and_time(
    run_exchange: Run, connect: Connect, query: str, count: int
) -> None:
    client = await trade(run_exchange, connect, 2)
    assert len(await get(client, f"/v2/account/activities{query}")) == count


async def test_the_equity_has_a_history(run_exchange: Run, connect: Connect) -> None:
    client = await trade(run_exchange, connect, 2)
    history = await get(client, "/v2/account/portfolio/history?period=1D&timeframe=1Min")
    # One share bought at 101 and one at 102; the closes of the three minutes were 100.25, 101.25 and 102.25.
    # The first entry is of the moment in which the account was opened.
    assert history["equity"] == [1000.0, 1000.0, 1000.25, 1001.5]
    assert history["profit_loss"] == [0.0, 0.0, 0.25, 1.5]
    assert history["profit_loss_pct"] == [0.0, 0.0, 0.00025, 0.0015]
    assert history["timestamp"] == [1_718_112_600 + 60 * minute for minute in (-1, 0, 1, 2)]
    assert (history["base_value"], history["timeframe"]) == (1000.0, "1Min")
    history = await get(client, "/v2/account/portfolio/history")
    assert (history["timeframe"], history["equity"]) == ("1D", [1001.5])
    assert (await get(client, "/v2/account/portfolio/history?period=all"))["timeframe"] == "1D"
    late = await get(client, "/v2/account/portfolio/history?start=2024-06-11T13:32:30Z&timeframe=5Min")
    assert (late["base_value"], late["equity"], late["profit_loss"]) == (1000.25, [1001.5], [1.25])
    assert (await get(client, "/v2/account/portfolio/history?end=2024-01-01"))["equity"] == []


@pytest.mark.parametrize("query", ["period=soon", "period=0D", "timeframe=2Min", "start=never"])
async def test_a_bad_request_for_the_history_is_refused(run_exchange: Run, connect: Connect, query: str) -> None:
    status, body = await connect(run_exchange()).call("GET", f"/v2/account/portfolio/history?{query}")
    assert (status, body["code"]) == (422, 40010001)


# Watchlists


async def test_watchlists_are_made_changed_and_removed(run_exchange: Run, connect: Connect) -> None:
    server = run_exchange()
    client = connect(server)
    status, made = await client.call("POST", "/v2/watchlists", {"name": "mine", "symbols": ["SPY", "BTCUSD", "SPY"]})
    assert (status, [asset["symbol"] for asset in made["assets"]]) == (200, ["SPY", "BTC/USD"])
    path = f"/v2/watchlists/{made['id']}"
    assert await get(client, path) == made
    assert [row["name"] for row in await get(client, "/v2/watchlists")] == ["mine"]
    _, added = await client.call("POST", path, {"symbol": "IBM"})
    assert [asset["symbol"] for asset in added["assets"]] == ["SPY", "BTC/USD", "IBM"]
    _, cut = await client.call("DELETE", f"{path}/BTC/USD")
    assert [asset["symbol"] for asset in cut["assets"]] == ["SPY", "IBM"]
    _, put = await client.call("PUT", path, {"name": "ours", "symbols": []})
    assert (put["name"], put["assets"]) == ("ours", [])
    _, same = await client.call("PUT", path, {"symbols": ["IBM"]})
    assert (same["name"], len(same["assets"])) == ("ours", 1)
    other = connect(server, "other")
    assert (await other.call("GET", path))[0] == 404
    assert await client.call("DELETE", path) == (204, None)
    assert await get(client, "/v2/watchlists") == []


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"name": ""}, 422, 40010001),
        ({"symbols": ["SPY"]}, 422, 40010001),
        ({"name": "mine"}, 422, 40010001),
        ({"name": "x", "symbols": "SPY"}, 422, 40010001),
        ({"name": "x", "symbols": ["NOPE"]}, 422, 42210000),
    ],
)
async def test_a_bad_watchlist_is_refused(
    run_exchange: Run, connect: Connect, body: dict[str, Any], status: int, code: int
) -> None:
    client = connect(run_exchange())
    _, made = await client.call("POST", "/v2/watchlists", {"name": "mine", "symbols": []})
    answered, error = await client.call("POST", "/v2/watchlists", body)
    assert (answered, error["code"]) == (status, code)
    assert (await client.call("DELETE", f"/v2/watchlists/{made['id']}/SPY"))[0] == 404


# Replacement


async def test_an_order_is_replaced_over_http_and_the_stream_tells_the_old_one_first(
    run_exchange: Run, connect: Connect
) -> None:
    server = run_exchange(rules="alpaca")
    client = connect(server)
    async with client.session.ws_connect(server.stream_url + "/stream") as socket:
        await socket.send_json({"action": "auth", "key": "key", "secret": "secret"})
        await socket.receive(60.0)
        await socket.send_json(LISTEN)
        await socket.receive(60.0)
        _, old = await client.submit(type="limit", limit_price="50", client_order_id="a")
        status, new = await client.call("PATCH", f"/v2/orders/{old['id']}", {"limit_price": 55.5, "qty": None})
        assert status == 200
        assert (new["replaces"], new["limit_price"], new["qty"], new["status"]) == (
            old["id"],
            "55.5",
            "1",
            "pending_new",
        )
        told = [json.loads((await socket.receive(60.0)).data)["data"] for _ in range(4)]
        assert [(data["event"], data["order"]["id"]) for data in told] == [
            ("pending_new", old["id"]),
            ("new", old["id"]),
            ("replaced", old["id"]),
            ("new", new["id"]),
        ]
        assert (told[2]["order"]["limit_price"], told[2]["order"]["replaced_by"]) == ("50", new["id"])
        assert told[2]["order"]["replaced_at"] is not None
    assert (await get(client, f"/v2/orders/{old['id']}"))["status"] == "replaced"
    assert [row["id"] for row in await get(client, "/v2/orders")] == [new["id"]]
    status, error = await client.call("PATCH", f"/v2/orders/{old['id']}", {"limit_price": "60"})
    assert (status, error) == (422, {"code": 42210000, "message": "order already replaced"})


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, 42210000),
        ({"qty": "none"}, 422, 40010001),
        ({"qty": -1}, 422, 42210000),
        ({"trail": 1}, 422, 42210000),
        ({"time_in_force": "soon"}, 422, 40010001),
        ({"client_order_id": "x" * 129}, 422, 40010001),
        ([], 400, 40010000),
    ],
)
async def test_a_bad_replacement_is_refused(
    run_exchange: Run, connect: Connect, body: Any, status: int, code: int
) -> None:
    client = connect(run_exchange(rules="alpaca"))
    _, order = await client.submit(type="limit", limit_price="50")
    answered, error = await client.call("PATCH", f"/v2/orders/{order['id']}", body)
    assert (answered, error["code"]) == (status, code)
    assert (await get(client, f"/v2/orders/{order['id']}"))["status"] == "new"


async def test_a_replacement_does_not_count_as_a_submit_in_lock_step(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange(rules="alpaca"))
    _, order = await client.submit(type="limit", limit_price="50")
    await client.call("PATCH", f"/v2/orders/{order['id']}", {"limit_price": "51"})
    assert (await get(client, "/dry-work/v1/session"))["orders"] == 1


# Limits


async def test_trading_and_market_data_have_budgets_of_their_own_and_the_control_api_has_none(
    run_exchange: Run, connect: Connect
) -> None:
    server = run_exchange(requests_per_minute=2)
    client, other = connect(server), connect(server, "other")
    for _ in range(5):
        assert (await client.call("GET", "/dry-work/v1/session"))[0] == 200
    bars = "/v2/stocks/bars/latest?symbols=SPY"
    assert [(await client.call("GET", "/v2/clock"))[0] for _ in range(3)] == [200, 200, 429]
    assert [(await client.call("GET", bars))[0] for _ in range(3)] == [200, 200, 429]
    assert await client.call("GET", bars) == (429, {"message": "too many requests."})
    assert (await other.call("GET", "/v2/clock"))[0] == 200
    basic = "Basic " + base64.b64encode(b"key:secret").decode()
    assert (await client.call("GET", "/v2/clock", headers={"Authorization": basic}))[0] == 429


async def test_one_trade_stream_too_many_is_refused(run_exchange: Run, connect: Connect) -> None:
    server = run_exchange(limits=StreamLimits(trade_connections=1))
    client = connect(server)
    async with client.session.ws_connect(server.stream_url + "/stream") as first:
        await first.send_json(build_auth("key", "secret"))
        assert json.loads((await first.receive(60.0)).data)["data"]["status"] == "authorized"
        async with client.session.ws_connect(server.stream_url + "/stream") as second:
            await second.send_json(build_auth("key", "secret"))
            answer = json.loads((await second.receive(60.0)).data)
            assert answer == {"action": "error", "data": {"error_message": "connection limit exceeded"}}
            assert (await second.receive(60.0)).type == aiohttp.WSMsgType.CLOSE
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await client.session.ws_connect(server.stream_url + "/stream", headers=client.headers)
        assert refused.value.status == 429
        async with client.session.ws_connect(server.stream_url + "/stream") as foreign:
            await foreign.send_json(build_auth("other", "secret"))
            assert json.loads((await foreign.receive(60.0)).data)["data"]["status"] == "authorized"


async def test_a_cut_session_blocks_the_next_one_and_a_closed_one_does_not(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange(limits=StreamLimits(connections=1, stale_s=3600.0)))

    async def authenticate(data: Any) -> StreamControl:
        await data.receive()
        await data.send(build_auth("key", "secret"))
        (answer,) = await data.receive()
        return answer  # type: ignore[no-any-return]

    for _ in range(3):
        async with client.data() as data:
            assert (await authenticate(data)).message == "authenticated"
    async with client.data() as data:
        assert (await authenticate(data)).message == "authenticated"
        data.socket._response.connection.transport.abort()
    async with client.data() as data:
        assert (await authenticate(data)).code == 406
