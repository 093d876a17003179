"""The control API on a running exchange: consumers, reports, and how the market follows them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import aiohttp
import pytest

from dry_work.errors import ConfigError
from dry_work.exchange.market import OpenSlice
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.state import ExchangeState
from tests.ports import find_free_port

Run = Callable[..., ExchangeServer]
Connect = Callable[..., Any]


async def test_the_session_is_told_without_credentials(run_exchange: Run, connect: Connect) -> None:
    server = run_exchange()
    status, session = await connect(server).call("GET", "/dry-work/v1/session", headers={})
    assert status == 200
    expected = {
        "simulated": True,
        "rules": "backtrader",
        "lockstep": True,
        "speed": "max",
        "fingerprint": server.recording.fingerprint,
        "symbols": ["SPY", "IBM", "BTC/USD"],
        "slices": 5,
        "state": "waiting",
        "slice": 0,
        "start": "2024-06-11T13:30:00Z",
        "end": "2024-06-11T13:35:00Z",
    }
    assert expected.items() <= session.items()


async def test_a_consumer_needs_credentials(run_exchange: Run, connect: Connect) -> None:
    body = {"consumer": "a", "symbols": ["SPY"]}
    status, answer = await connect(run_exchange()).call("POST", "/dry-work/v1/consumers", body, headers={})
    assert (status, answer["code"]) == (401, 40110000)


async def test_a_consumer_registers_in_any_spelling_as_often_as_it_likes(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange(consumers=2))
    for _ in range(2):
        assert await client.register("a", ["spy", "BTCUSD"]) == (200, {"consumer": "a", "registered": 1, "expected": 2})
    assert (await client.register("b"))[1]["registered"] == 2


async def test_a_consumer_of_an_unknown_symbol_is_refused(run_exchange: Run, connect: Connect) -> None:
    status, answer = await connect(run_exchange()).register("a", ["SPY", "NOPE"])
    assert (status, answer) == (422, {"code": 42210000, "message": "asset not found for NOPE"})


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/dry-work/v1/consumers", [], 400),
        ("/dry-work/v1/consumers", {"symbols": ["SPY"]}, 422),
        ("/dry-work/v1/consumers", {"consumer": "a", "symbols": []}, 422),
        ("/dry-work/v1/consumers", {"consumer": "a", "symbols": [1]}, 422),
        ("/dry-work/v1/slices/0/done", {"consumer": "a", "orders": -1}, 422),
        ("/dry-work/v1/slices/0/done", {"consumer": "nobody", "orders": 0}, 404),
        ("/dry-work/v1/slices/x/done", {"consumer": "a", "orders": 0}, 404),
    ],
)
async def test_a_malformed_request_is_refused(
    run_exchange: Run, connect: Connect, path: str, body: object, status: int
) -> None:
    assert (await connect(run_exchange()).call("POST", path, body))[0] == status


async def test_the_market_starts_with_consumers_and_subscribers_and_moves_by_reports(
    run_exchange: Run, connect: Connect
) -> None:
    client = connect(run_exchange())
    await client.register()
    assert (await client.wait_for(slice=0))["state"] == "waiting"
    async with client.reader() as reader:
        for number in range(1, 6):
            bars, mark = await reader.receive_slice()
            assert [bar.close for bar in bars] == [99.25 + number]
            assert (mark.slice, mark.end_ns, mark.last) == (number, bars[0].end_ns, number == 5)
            assert (await client.report(number + 1))[0] == 409
            assert await client.report(number) == (200, {})
        await client.wait_for(state="ended", slice=5)
        assert await client.report(5) == (200, {})


async def test_bars_without_watermarks_do_not_start_the_market(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange())
    async with client.data() as data:
        await data.authenticate()
        await data.send({"action": "subscribe", "bars": ["SPY"]})
        await data.receive()
        await client.register()
        assert (await client.wait_for(registered=1))["state"] == "waiting"
        await data.send({"action": "subscribe", "watermarks": ["*"]})
        await data.receive()
        await client.wait_for(state="running", slice=1)


async def test_the_market_waits_for_orders_that_were_reported_before_they_came(
    run_exchange: Run, connect: Connect
) -> None:
    client = connect(run_exchange())
    await client.register()
    async with client.reader() as reader:
        await reader.receive_slice()
        await client.report(1, orders=2)
        status, order = await client.submit(client_order_id="x")
        assert (status, order["status"]) == (200, "pending_new")
        status, _ = await client.submit(qty="no number")  # a refused request has arrived as well
        assert status == 422
        _, mark = await reader.receive_slice()
        assert mark.slice == 2
        assert mark.event_id != ""
        assert (await client.call("GET", "/v2/orders:by_client_order_id?client_order_id=x"))[1]["status"] == "filled"


async def test_an_open_slice_is_sent_again_to_who_subscribes_watermarks(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange())
    await client.register()
    async with client.reader() as first:
        before = await first.receive_slice()
        async with client.reader() as second:
            assert await second.receive_slice() == before
        await first.send({"action": "subscribe", "bars": ["IBM"]})
        await first.receive()
        bars, mark = await first.receive_slice()
        assert [bar.symbol for bar in bars] == ["SPY", "IBM"]
        assert mark.slice == 1


async def test_the_market_is_held_while_the_subscriber_is_away(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange())
    await client.register()
    async with client.reader() as reader:
        await reader.receive_slice()
    await client.report(1)
    await client.wait_for(state="waiting", slice=1)
    async with client.reader() as reader:
        assert (await reader.receive_slice())[1].slice == 2


async def test_a_consumer_that_leaves_does_not_hold_the_market(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange(consumers=2))
    await client.register("a")
    await client.register("b")
    async with client.reader() as reader:
        await reader.receive_slice()
        await client.report(1, consumer="a")
        assert await client.call("DELETE", "/dry-work/v1/consumers/b") == (200, {})
        assert (await reader.receive_slice())[1].slice == 2


async def test_a_consumer_that_is_started_again_goes_on_with_the_next_slice(
    run_exchange: Run, connect: Connect
) -> None:
    client = connect(run_exchange())
    await client.register()
    async with client.reader() as reader:
        await reader.receive_slice()
        await client.report(1)
        await reader.receive_slice()
        await client.register()  # the open slice 2 is lost for it
        assert (await reader.receive_slice())[1].slice == 3


async def test_a_consumer_is_told_where_it_is(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange())
    path = "/dry-work/v1/consumers/a"
    assert (await client.call("GET", path))[0] == 404
    assert (await client.call("GET", path, headers={}))[0] == 401
    await client.register()
    place = {"consumer": "a", "slice": 0, "end": None, "owes": False}
    assert await client.call("GET", path) == (200, place)
    async with client.reader() as reader:
        await reader.receive_slice()
        place = {"consumer": "a", "slice": 1, "end": "2024-06-11T13:31:00Z", "owes": True}
        assert await client.call("GET", path) == (200, place)
        await client.report(1)
        await reader.receive_slice()
        assert (await client.call("GET", path))[1]["slice"] == 2


async def test_a_consumer_that_resumes_gets_the_open_slice_again(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange())
    await client.register()
    async with client.reader() as reader:
        await reader.receive_slice()
        await client.report(1)
        await reader.receive_slice()
        body = {"consumer": "a", "symbols": ["SPY"], "resume": True}
        assert (await client.call("POST", "/dry-work/v1/consumers", body))[0] == 200
        assert (await reader.receive_slice())[1].slice == 2
        await client.report(2)
        assert (await reader.receive_slice())[1].slice == 3


async def test_two_runs_make_the_same_orders_events_and_fills(run_exchange: Run, connect: Connect) -> None:
    runs = []
    for _ in range(2):
        client = connect(run_exchange())
        await client.register()
        seen = []
        async with client.reader() as reader:
            for number in range(1, 6):
                _, mark = await reader.receive_slice()
                seen.append(mark.event_id)
                if number == 1:
                    await client.submit()
                    await client.submit(side="sell", type="limit", limit_price=102.25, qty=1e0)
                await client.report(number, orders=2 if number == 1 else 0)
        await client.wait_for(state="ended")
        orders = (await client.call("GET", "/v2/orders?status=all"))[1]
        fills = (await client.call("GET", "/v2/account/activities/FILL"))[1]
        assert [order["status"] for order in orders] == ["filled", "filled"]
        assert len(fills) == 2
        runs.append((seen, orders, fills))
    assert runs[0] == runs[1]


async def test_a_paced_exchange_plays_on_its_own(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange(speed=6000.0))
    session = await client.wait_for(state="ended", slice=5)
    assert (session["lockstep"], session["speed"]) == (False, 6000.0)


async def test_a_port_in_use_is_told_with_the_option(run_exchange: Run) -> None:
    port = run_exchange().port
    with pytest.raises(ConfigError, match=rf"port {port} on 127.0.0.1 is in use.*--port"):
        run_exchange(port=port)


def test_an_address_that_is_not_ours_is_told_with_the_option(run_exchange: Run) -> None:
    with pytest.raises(ConfigError, match="--host"):
        run_exchange(host="192.0.2.1")


async def test_stop_closes_sessions_and_leaves_no_thread_and_no_port(run_exchange: Run, connect: Connect) -> None:
    before = threading.active_count()
    server = run_exchange(port=find_free_port())
    client = connect(server)
    await client.register()
    async with client.reader() as reader:
        await reader.receive_slice()
        await asyncio.to_thread(server.stop)
        await reader.receive_close()
    server.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "exchange"]
    assert threading.active_count() <= before + 1  # the pool of to_thread
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.call("GET", "/dry-work/v1/session")
    run_exchange(port=server.port)


def test_a_failure_of_the_market_is_told_once(run_exchange: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[BaseException] = []
    told = threading.Event()

    def take(error: BaseException) -> None:
        failures.append(error)
        told.set()

    def broken(self: ExchangeState) -> OpenSlice:
        raise ArithmeticError("the venue broke")

    monkeypatch.setattr(ExchangeState, "advance", broken)
    server = run_exchange(speed=60.0, on_failure=take)
    assert told.wait(60.0)
    server.stop()
    assert [str(error) for error in failures] == ["the venue broke"]


@pytest.mark.parametrize(
    "options",
    [{"speed": 0}, {"speed": -1.0}, {"consumers": 0}, {"speed": 1.0, "consumers": -1}, {"cash": Decimal(-1)}],
)
def test_settings_that_cannot_work_are_refused(run_exchange: Run, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        run_exchange(**options)
