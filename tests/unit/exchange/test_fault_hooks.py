"""Faults on the wire of a running exchange, set over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from dry_work.exchange.server import ExchangeServer

from .conftest import DEADLINE_S, Client, build_recording

SETTLE_S = 0.3  # to see that nothing comes


@asynccontextmanager
async def run_client(**options: Any) -> AsyncIterator[Client]:
    server = ExchangeServer(build_recording({"SPY": 8}), rules="alpaca", speed=0.001, **options)
    server.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Client(session, server, "key")
    finally:
        await asyncio.to_thread(server.stop)


async def set_faults(client: Client, *faults: dict[str, Any]) -> list[dict[str, Any]]:
    status, rows = await client.call("POST", "/dry-work/v1/faults", list(faults))
    assert status == 200
    return list(rows)


async def read_page(client: Client, path: str = "/v2/account") -> tuple[int, str]:
    async with client.session.get(client.server.url + path, headers=client.headers) as answer:
        return answer.status, await answer.text()


def run(work: Any) -> None:
    asyncio.run(work)


def test_an_order_may_be_accepted_although_its_answer_says_otherwise() -> None:
    async def scenario() -> None:
        async with run_client() as client:
            for number, (fault, taken) in enumerate(
                (
                    ({"kind": "status", "status": 500}, False),
                    ({"kind": "status", "status": 504}, False),
                    ({"kind": "status", "status": 504, "when": "after"}, True),
                    ({"kind": "status", "status": 429}, False),
                )
            ):
                await set_faults(client, {"on": "http", "method": "POST", "path": "/v2/orders", **fault})
                name = f"order-{number}"
                order = {"symbol": "SPY", "side": "buy", "type": "market", "time_in_force": "gtc", "qty": "1"}
                url = client.server.url + "/v2/orders"
                body = {**order, "client_order_id": name}
                async with client.session.post(url, json=body, headers=client.headers) as answer:
                    assert answer.status == fault["status"]
                    is_json = answer.content_type == "application/json"
                    assert is_json == (answer.status != 504)
                    assert "X-Request-ID" in answer.headers
                status, _ = await client.call("GET", f"/v2/orders:by_client_order_id?client_order_id={name}")
                assert status == (200 if taken else 404)

    run(scenario())


@pytest.mark.parametrize("kind", ["drop", "reset"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_connection_is_cut_before_or_after_the_order(kind: str, when: str) -> None:
    async def scenario() -> None:
        async with run_client() as client:
            await set_faults(client, {"on": "http", "kind": kind, "when": when, "method": "POST"})
            with pytest.raises(aiohttp.ClientError) as caught:
                await client.submit(client_order_id="x")
            if kind == "drop":
                assert isinstance(caught.value, aiohttp.ServerDisconnectedError)
            else:
                assert isinstance(caught.value, aiohttp.ClientOSError)
            status, _ = await client.call("GET", "/v2/orders:by_client_order_id?client_order_id=x")
            assert status == (200 if when == "after" else 404)

    run(scenario())


def test_a_silent_request_ends_with_its_client_and_latency_ends_by_itself() -> None:
    async def scenario() -> None:
        async with run_client() as client:
            await set_faults(
                client, {"on": "http", "kind": "silent"}, {"on": "http", "kind": "latency", "seconds": 0.1}
            )
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(SETTLE_S):
                    await read_page(client)
            started = asyncio.get_running_loop().time()
            await set_faults(client, {"on": "http", "kind": "latency", "seconds": 0.2})
            assert (await read_page(client))[0] == 200
            assert asyncio.get_running_loop().time() - started >= 0.2
            # after its time the connection is cut
            await set_faults(client, {"on": "http", "kind": "silent", "seconds": 0.05})
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await client.submit()  # a GET would be sent again

    run(scenario())


def test_faults_are_listed_removed_and_refused() -> None:
    async def scenario() -> None:
        async with run_client() as client:
            (row,) = await set_faults(client, {"on": "http", "kind": "status", "path": "/v2/account", "times": None})
            assert (await read_page(client))[0] == 500
            assert (await read_page(client, "/v2/clock"))[0] == 200
            _, rows = await client.call("GET", "/dry-work/v1/faults")
            assert [(r["id"], r["seen"], r["struck"]) for r in rows] == [(row["id"], 1, 1)]
            assert (await client.call("DELETE", f"/dry-work/v1/faults/{row['id']}"))[0] == 200
            assert (await client.call("DELETE", f"/dry-work/v1/faults/{row['id']}"))[0] == 404
            assert (await read_page(client))[0] == 200
            status, body = await client.call("POST", "/dry-work/v1/faults", {"on": "moon"})
            assert (status, body["code"]) == (422, 40010001)
            assert body["message"].startswith("on is 'moon'")
            await set_faults(client, {"random": {"seed": 1, "rate": 0}})
            assert (await client.call("DELETE", "/dry-work/v1/faults"))[1] == []
            _, clock = await client.call("GET", "/v2/clock")
            await set_faults(client, {"on": "clock", "kind": "skew", "seconds": 3600})
            _, skewed = await client.call("GET", "/v2/clock")
            assert (clock["timestamp"], skewed["timestamp"]) == (
                "2024-06-11T09:31:00-04:00",
                "2024-06-11T10:31:00-04:00",
            )
            async with client.session.get(client.server.url + "/dry-work/v1/faults") as answer:
                assert answer.status == 401

    run(scenario())


class Updates:
    """A client of `/stream`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def log_in(self) -> dict[str, Any]:
        await self.socket.send_json({"action": "auth", "key": "key", "secret": "secret"})
        return await self.receive()

    async def listen(self) -> None:
        assert (await self.log_in())["data"]["status"] == "authorized"
        await self.socket.send_json({"action": "listen", "data": {"streams": ["trade_updates"]}})
        await self.receive()

    async def receive(self) -> dict[str, Any]:
        return read_body(await self.socket.receive(DEADLINE_S))

    async def is_silent(self) -> bool:
        try:
            await self.socket.receive(SETTLE_S)
        except TimeoutError:
            return True
        return False

    async def end(self) -> aiohttp.WSMessage:
        while True:
            message = await self.socket.receive(DEADLINE_S)
            if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                return message


@asynccontextmanager
async def open_updates(client: Client) -> AsyncIterator[Updates]:
    async with client.session.ws_connect(client.server.stream_url + "/stream") as socket:
        yield Updates(socket)


def test_events_are_doubled_swapped_lost_and_made_up() -> None:
    async def scenario() -> None:
        async with run_client() as client, open_updates(client) as updates:
            socket = updates.socket
            await updates.listen()
            for faults, told in (
                ([{"kind": "duplicate"}], ["pending_new", "pending_new", "new"]),
                ([{"kind": "reorder"}], ["new", "pending_new"]),
                ([{"kind": "drop", "path": "pending_new"}], ["new"]),
                ([{"kind": "unknown", "path": "new"}], ["pending_new", "new", "unheard_of"]),
                ([{"kind": "drop", "skip": 1}, {"kind": "duplicate"}], ["pending_new", "pending_new"]),
            ):
                await set_faults(client, *({"on": "events", **fault} for fault in faults))
                assert (await client.submit())[0] == 200
                names = [read_event(await socket.receive(DEADLINE_S)) for _ in told]
                assert names == told
                assert await updates.is_silent()
            await set_faults(client, {"on": "events", "kind": "unknown_status"})
            await client.submit()
            message = read_body(await socket.receive(DEADLINE_S))
            assert message["data"]["order"]["status"] == "unheard_of"

    run(scenario())


def read_body(message: aiohttp.WSMessage) -> dict[str, Any]:
    return dict(json.loads(message.data))


def read_event(message: aiohttp.WSMessage) -> str:
    return str(read_body(message)["data"]["event"])


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        ({"kind": "error", "code": 402}, {"status": "unauthorized", "action": "authenticate"}),
        ({"kind": "error", "code": 406}, {"error_message": "connection limit exceeded"}),
        ({"kind": "error", "code": 500}, {"error_message": "internal server error"}),
    ],
)
def test_a_trade_stream_is_refused_at_its_login_once(fault: dict[str, Any], answer: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with run_client() as client:
            await set_faults(client, {"on": "trades", **fault})
            async with open_updates(client) as updates:
                await updates.socket.send_json({"action": "auth", "key": "key", "secret": "secret"})
                assert read_body(await updates.socket.receive(DEADLINE_S))["data"] == answer
                assert (await updates.end()).type is aiohttp.WSMsgType.CLOSE
            async with open_updates(client) as updates:
                await updates.socket.send_json({"action": "auth", "key": "key", "secret": "secret"})
                assert read_body(await updates.socket.receive(DEADLINE_S))["data"]["status"] == "authorized"

    run(scenario())


@pytest.mark.parametrize("on", ["trades", "data"])
@pytest.mark.parametrize("kind", ["close", "reset", "silent", "half_open", "slow"])
def test_an_open_stream_fails_at_once_and_the_next_one_is_good(on: str, kind: str) -> None:
    async def scenario() -> None:
        async with run_client() as client:
            fault = {"on": on, "kind": kind, "key": "key"} | ({"code": 4001} if kind == "close" else {})
            async with open_stream(client, on) as socket:
                await set_faults(client, fault)
                if kind == "close":
                    message = await socket.receive(DEADLINE_S)
                    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 4001)
                elif kind == "slow":
                    message = await socket.receive(DEADLINE_S)
                    assert "slow client" in str(message.data)
                    assert (await socket.receive(DEADLINE_S)).type is aiohttp.WSMsgType.CLOSE
                elif kind == "reset":
                    message = await socket.receive(DEADLINE_S)
                    assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
                    assert socket.close_code in (None, 1006)
                else:
                    await client.submit()
                    await socket.ping()
                    with pytest.raises(TimeoutError):
                        await socket.receive(SETTLE_S)  # a pong is not given out
                    assert not socket.closed
            async with open_stream(client, on):
                pass

    run(scenario())


@pytest.mark.parametrize(("kind", "answers"), [("silent", True), ("half_open", False)])
def test_a_silent_stream_answers_pings_and_a_half_open_one_does_not(kind: str, answers: bool) -> None:
    async def scenario() -> None:
        async with run_client() as client:
            url = client.server.stream_url + "/stream"
            async with client.session.ws_connect(url, autoping=False) as socket:
                await socket.send_json({"action": "auth", "key": "key", "secret": "secret"})
                await socket.receive(DEADLINE_S)
                await set_faults(client, {"on": "trades", "kind": kind})
                await socket.ping(b"x")
                if answers:
                    assert (await socket.receive(DEADLINE_S)).type is aiohttp.WSMsgType.PONG
                else:
                    with pytest.raises(TimeoutError):
                        await socket.receive(SETTLE_S)

    run(scenario())


@asynccontextmanager
async def open_stream(client: Client, on: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """An authenticated session."""
    path = "/stream" if on == "trades" else "/v2/iex"
    async with client.session.ws_connect(client.server.stream_url + path) as socket:
        if on == "data":
            await socket.receive(DEADLINE_S)
        await socket.send_json({"action": "auth", "key": "key", "secret": "secret"})
        assert "authorized" in str((await socket.receive(DEADLINE_S)).data) or on == "data"
        yield socket


def test_a_data_stream_is_refused_with_its_code() -> None:
    async def scenario() -> None:
        async with run_client() as client:
            await set_faults(client, {"on": "data", "kind": "error", "code": 406, "path": "/v2/iex"})
            async with client.session.ws_connect(client.server.stream_url + "/v2/iex") as socket:
                await socket.receive(DEADLINE_S)
                await socket.send_json({"action": "auth", "key": "key", "secret": "secret"})
                assert read_items(await socket.receive(DEADLINE_S))[0]["code"] == 406
                assert (await socket.receive(DEADLINE_S)).type is aiohttp.WSMsgType.CLOSE

    run(scenario())


def read_items(message: aiohttp.WSMessage) -> list[dict[str, Any]]:
    return list(json.loads(message.data))


def test_a_bust_is_told_and_gone_from_the_activities() -> None:
    async def scenario() -> None:
        server = ExchangeServer(build_recording({"SPY": 8}), rules="alpaca", speed=None)
        server.start()
        try:
            async with aiohttp.ClientSession() as session:
                client = Client(session, server, "key")
                async with client.reader() as reader, open_updates(client) as updates:
                    await updates.listen()
                    await client.register()
                    await reader.receive_slice()
                    await client.submit()
                    await client.report(1, orders=1)
                    told = [read_body(await updates.socket.receive(DEADLINE_S))["data"] for _ in range(3)]
                    fill = told[-1]
                    assert fill["event"] == "fill"
                    status, _ = await client.call("POST", "/dry-work/v1/busts", {"execution_id": "none"})
                    assert status == 404
                    body = {"execution_id": fill["execution_id"]}
                    assert (await client.call("POST", "/dry-work/v1/busts", body))[0] == 200
                    bust = read_body(await updates.socket.receive(DEADLINE_S))["data"]
                    assert (bust["event"], bust["qty"], bust["position_qty"]) == ("trade_bust", "-1", "0")
                    assert bust["previous_execution_id"] == fill["execution_id"]
                    assert (await client.call("GET", "/v2/account/activities"))[1] == []
                    assert (await client.call("GET", "/v2/positions"))[1] == []
                    assert (await client.call("GET", "/v2/account"))[1]["cash"] == "100000"
        finally:
            await asyncio.to_thread(server.stop)

    run(scenario())
