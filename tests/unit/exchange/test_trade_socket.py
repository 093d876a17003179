"""The trade_updates WebSocket on a running exchange."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from dry_work.exchange.data_sockets import StreamLimits
from dry_work.exchange.server import ExchangeServer
from dry_work.wire.alpaca_rest import parse_trade_event

Run = Callable[..., ExchangeServer]
Connect = Callable[..., Any]

OLD_DIALECT = {"action": "authenticate", "data": {"key_id": "key", "secret_key": "secret"}}
NEW_DIALECT = {"action": "auth", "key": "key", "secret": "secret"}
LISTEN = {"action": "listen", "data": {"streams": ["trade_updates"]}}
AUTHORIZED = {"stream": "authorization", "data": {"status": "authorized", "action": "authenticate"}}


async def receive(socket: aiohttp.ClientWebSocketResponse) -> Any:
    frame = await socket.receive(60.0)
    assert frame.type == aiohttp.WSMsgType.BINARY, frame  # as Alpaca's paper API
    return json.loads(frame.data)


async def listen(socket: aiohttp.ClientWebSocketResponse, key_id: str = "key") -> None:
    await socket.send_json({"action": "auth", "key": key_id, "secret": "secret"})
    await receive(socket)
    await socket.send_json(LISTEN)
    await receive(socket)


@pytest.mark.parametrize("message", [OLD_DIALECT, NEW_DIALECT])
@pytest.mark.parametrize("binary", [False, True])
async def test_both_dialects_authenticate_in_text_and_binary(
    run_exchange: Run, connect: Connect, message: dict[str, Any], binary: bool
) -> None:
    client = connect(run_exchange(keys={"key": "secret"}))
    async with client.session.ws_connect(client.server.stream_url + "/stream") as socket:
        text = json.dumps(message)
        await (socket.send_bytes(text.encode()) if binary else socket.send_str(text))
        assert await receive(socket) == AUTHORIZED
        await socket.send_json({"action": "listen", "data": {"streams": ["trade_updates", "unknown"]}})
        assert await receive(socket) == {"stream": "listening", "data": {"streams": ["trade_updates"]}}
        await socket.send_json({"action": "listen", "data": {"streams": []}})
        assert await receive(socket) == {"stream": "listening", "data": {"streams": []}}


async def test_listening_before_authentication_is_refused_and_may_be_repeated(
    run_exchange: Run, connect: Connect
) -> None:
    client = connect(run_exchange())
    async with client.session.ws_connect(client.server.stream_url + "/stream") as socket:
        await socket.send_json(LISTEN)
        assert await receive(socket) == {
            "stream": "authorization",
            "data": {"status": "unauthorized", "action": "listen"},
        }
        await listen(socket)


@pytest.mark.parametrize("message", [OLD_DIALECT, NEW_DIALECT, {"action": "authenticate"}])
async def test_bad_credentials_are_refused_and_the_session_closed(
    run_exchange: Run, connect: Connect, message: dict[str, Any]
) -> None:
    client = connect(run_exchange(keys={"key": "another secret"}))
    async with client.session.ws_connect(client.server.stream_url + "/stream") as socket:
        await socket.send_json(message)
        assert (await receive(socket))["data"]["status"] == "unauthorized"
        assert (await socket.receive(60.0)).type == aiohttp.WSMsgType.CLOSE


@pytest.mark.parametrize("text", ["nonsense", "[]", '{"action": "dance"}'])
async def test_what_cannot_be_read_ends_the_session_with_an_error(
    run_exchange: Run, connect: Connect, text: str
) -> None:
    client = connect(run_exchange())
    async with client.session.ws_connect(client.server.stream_url + "/stream") as socket:
        await socket.send_str(text)
        assert await receive(socket) == {"action": "error", "data": {"error_message": "invalid syntax"}}
        assert (await socket.receive(60.0)).type == aiohttp.WSMsgType.CLOSE


async def test_a_client_that_does_not_authenticate_in_time_is_disconnected(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange(limits=StreamLimits(auth_timeout_s=0.05)))
    async with client.session.ws_connect(client.server.stream_url + "/stream") as socket:
        assert (await receive(socket))["data"]["error_message"] == "auth timeout"
        assert (await socket.receive(60.0)).type == aiohttp.WSMsgType.CLOSE


async def test_events_go_to_the_sessions_of_their_own_account(run_exchange: Run, connect: Connect) -> None:
    server = run_exchange()
    client, other = connect(server), connect(server, "other")
    await client.register()
    async with (
        client.session.ws_connect(server.stream_url + "/stream") as mine,
        client.session.ws_connect(server.stream_url + "/stream") as also_mine,
        client.session.ws_connect(server.stream_url + "/stream") as foreign,
        client.reader() as reader,
    ):
        for socket, key_id in ((mine, "key"), (also_mine, "key"), (foreign, "other")):
            await listen(socket, key_id)
        await reader.receive_slice()
        await client.submit(client_order_id="mine", qty="2")
        await other.submit(client_order_id="foreign")
        await client.report(1, orders=1)
        _, mark = await reader.receive_slice()
        for socket, client_order_id in ((mine, "mine"), (also_mine, "mine"), (foreign, "foreign")):
            messages = [await receive(socket) for _ in range(2)]
            assert [message["stream"] for message in messages] == ["trade_updates"] * 2
            new, fill = (parse_trade_event(message["data"]) for message in messages)
            assert (new.event, fill.event) == ("new", "fill")
            assert {new.order.client_order_id, fill.order.client_order_id} == {client_order_id}
            assert fill.ts_event_ns == mark.end_ns
            assert new.event_id < fill.event_id <= mark.event_id


async def test_a_rejection_tells_code_and_reason(run_exchange: Run, connect: Connect) -> None:
    server = run_exchange()
    client = connect(server)
    await client.register()
    async with client.session.ws_connect(server.stream_url + "/stream") as socket, client.reader() as reader:
        await listen(socket)
        await reader.receive_slice()
        await client.submit(qty="1000000")
        await client.report(1, orders=1)
        data = (await receive(socket))["data"]
        assert (data["event"], data["code"], data["reject_reason"]) == (
            "rejected",
            40310000,
            "insufficient buying power",
        )
        assert data["order"]["status"] == "rejected"
