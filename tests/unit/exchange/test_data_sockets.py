"""The market-data WebSocket: the dialect, its errors, slow clients."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from dry_work.exchange.data_sockets import StreamLimits
from dry_work.exchange.server import ExchangeServer
from dry_work.feeds.recorded import Recording
from dry_work.market.messages import Bar
from dry_work.wire.alpaca_stream import StreamCodec, StreamControl, build_auth

Run = Callable[..., ExchangeServer]
Connect = Callable[..., Any]


def error(code: int, message: str) -> list[StreamControl]:
    return [StreamControl(kind="error", code=code, message=message)]


@pytest.mark.parametrize("codec", list(StreamCodec))
@pytest.mark.parametrize("path", ["/v2/iex", "/v2/sip", "/v2/delayed_sip", "/v2/test", "/v1beta3/crypto/us"])
async def test_the_handshake_goes_in_the_order_clients_expect(
    run_exchange: Run, connect: Connect, path: str, codec: StreamCodec
) -> None:
    async with connect(run_exchange()).data(path, codec) as data:
        assert await data.receive() == [StreamControl(kind="success", message="connected", watermarks=True)]
        await data.send(build_auth("key", "secret"))
        assert await data.receive() == [StreamControl(kind="success", message="authenticated")]
        await data.send({"action": "subscribe"})
        (state,) = await data.receive()
        assert state.kind == "subscription"
        assert set(state.channels.values()) == {()}


async def test_a_subscription_is_answered_with_the_whole_state(run_exchange: Run, connect: Connect) -> None:
    async with connect(run_exchange()).data() as data:
        await data.authenticate()
        await data.send({"action": "subscribe", "bars": ["SPY"], "trades": ["*"]})
        await data.receive()
        await data.send({"action": "subscribe", "bars": ["IBM"]})
        (state,) = await data.receive()
        assert state.channels == {
            "trades": ("*",),
            "quotes": (),
            "bars": ("IBM", "SPY"),
            "updatedBars": (),
            "dailyBars": (),
            "statuses": (),
            "lulds": (),
            "corrections": ("*",),
            "cancelErrors": ("*",),
        }
        await data.send({"action": "unsubscribe", "bars": ["SPY", "BAC"], "trades": ["*"]})
        (state,) = await data.receive()
        assert (state.channels["bars"], state.channels["corrections"]) == (("IBM",), ())


async def test_only_sessions_that_take_watermarks_see_them(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange())
    async with client.data() as plain, client.reader() as reader:
        await plain.authenticate()
        await plain.send({"action": "subscribe", "bars": ["*"]})
        (state,) = await plain.receive()
        assert "watermarks" not in state.channels
        await client.register()
        for number in (1, 2):
            items = await plain.receive()
            assert [item.symbol for item in items] == ["SPY", "IBM"]
            assert all(isinstance(item, Bar) for item in items)
            bars, mark = await reader.receive_slice()
            assert ([bar.symbol for bar in bars], mark.slice) == (["SPY"], number)
            await client.report(number)


async def test_stock_and_crypto_sessions_get_their_own_bars_and_every_watermark(
    run_exchange: Run, connect: Connect
) -> None:
    client = connect(run_exchange())
    async with client.reader(["*"]) as stocks, client.data("/v1beta3/crypto/us", StreamCodec.MSGPACK) as crypto:
        await crypto.authenticate()
        await crypto.subscribe(["BTC/USD"])
        await client.register("a", ["SPY", "BTC/USD"])
        for number in range(1, 6):
            stock_bars, stock_mark = await stocks.receive_slice()
            crypto_bars, crypto_mark = await crypto.receive_slice()
            assert [bar.symbol for bar in stock_bars] == (["SPY", "IBM"] if number < 5 else ["SPY"])
            assert [bar.symbol for bar in crypto_bars] == ["BTC/USD"]
            assert stock_mark == crypto_mark
            await client.report(number)


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        ({"action": "dance"}, 400, "invalid syntax"),
        ({"action": "subscribe", "bars": "SPY"}, 400, "invalid syntax"),
        ({"action": "subscribe", "bars": ["no symbol"]}, 400, "invalid syntax"),
        ({"action": "subscribe", "bars": ["BTC/USD"]}, 400, "invalid syntax"),
        ({"action": "subscribe", "watermarks": ["SPY"]}, 400, "invalid syntax"),
        ({"action": "subscribe", "secrets": ["SPY"]}, 400, "invalid syntax"),
        ({"action": "subscribe", "orderbooks": ["SPY"]}, 410, "invalid subscribe action for this feed"),
        ({"action": "subscribe", "news": ["*"]}, 410, "invalid subscribe action for this feed"),
        ({"action": "subscribe", "quotes": ["A", "B", "C"]}, 405, "symbol limit exceeded"),
        ({"action": "auth", "key": "key", "secret": "secret"}, 403, "already authenticated"),
    ],
)
async def test_a_bad_message_is_answered_and_changes_nothing(
    run_exchange: Run, connect: Connect, message: dict[str, Any], code: int, text: str
) -> None:
    async with connect(run_exchange(limits=StreamLimits(symbols=2))).data() as data:
        await data.authenticate()
        await data.send({"action": "subscribe", "bars": ["SPY"]})
        before = await data.receive()
        await data.send(message)
        assert await data.receive() == error(code, text)
        await data.send({"action": "subscribe"})
        assert await data.receive() == before


@pytest.mark.parametrize("text", ["nonsense", "[]", '{"no": "action"}'])
async def test_what_cannot_be_read_is_answered_and_the_session_goes_on(
    run_exchange: Run, connect: Connect, text: str
) -> None:
    async with connect(run_exchange()).data() as data:
        await data.receive()
        await data.socket.send_str(text)
        assert await data.receive() == error(400, "invalid syntax")
        await data.send(build_auth("key", "secret"))
        assert await data.receive() == [StreamControl(kind="success", message="authenticated")]


async def test_a_subscription_before_authentication_is_refused(run_exchange: Run, connect: Connect) -> None:
    async with connect(run_exchange()).data() as data:
        await data.receive()
        await data.send({"action": "subscribe", "bars": ["SPY"]})
        assert await data.receive() == error(401, "not authenticated")


async def test_bad_credentials_are_refused_and_the_session_closed(run_exchange: Run, connect: Connect) -> None:
    async with connect(run_exchange(keys={"key": "secret"})).data() as data:
        await data.receive()
        await data.send(build_auth("key", "wrong"))
        assert await data.receive() == error(402, "auth failed")
        await data.receive_close()


async def test_a_client_that_does_not_authenticate_in_time_is_disconnected(run_exchange: Run, connect: Connect) -> None:
    async with connect(run_exchange(limits=StreamLimits(auth_timeout_s=0.05))).data() as data:
        await data.receive()
        assert await data.receive() == error(404, "auth timeout")
        await data.receive_close()


async def test_credentials_in_the_handshake_authenticate(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange(keys={"key": "secret"}))
    async with client.session.ws_connect(client.server.stream_url + "/v2/iex", headers=client.headers) as websocket:
        assert json.loads((await websocket.receive(60.0)).data)[0]["msg"] == "connected"
        assert json.loads((await websocket.receive(60.0)).data)[0]["msg"] == "authenticated"


async def test_one_session_too_many_on_an_endpoint_is_refused(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange(limits=StreamLimits(connections=1)))
    async with client.data() as first, client.data() as second, client.data("/v2/sip") as other:
        await first.authenticate()
        await other.authenticate()
        await second.receive()
        await second.send(build_auth("key", "secret"))
        assert await second.receive() == error(406, "connection limit exceeded")
        await second.receive_close()


async def test_a_feed_outside_of_the_plan_is_refused(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange(limits=StreamLimits(feeds=frozenset({"iex"}))))
    async with client.data("/v2/sip") as data:
        await data.receive()
        await data.send(build_auth("key", "secret"))
        assert await data.receive() == error(409, "insufficient subscription")
        await data.receive_close()
    async with client.data("/v2/iex") as data:
        await data.authenticate()


async def test_a_message_in_many_fragments_is_put_together(run_exchange: Run, connect: Connect) -> None:
    import websockets

    server = run_exchange()
    async with websockets.connect(server.stream_url + "/v2/iex", proxy=None) as websocket:
        await websocket.recv()
        await websocket.send(json.dumps(build_auth("key", "secret")))
        await websocket.recv()
        text = json.dumps({"action": "subscribe", "bars": ["SPY"]})
        await websocket.send([text[:5], text[5:9], text[9:], ""])
        assert json.loads(await websocket.recv())[0]["bars"] == ["SPY"]


async def test_a_client_that_does_not_read_is_disconnected_and_the_others_go_on(
    run_exchange: Run, connect: Connect, build: Callable[[dict[str, int]], Recording]
) -> None:
    server = run_exchange(
        build({f"S{number}": 300 for number in range(300)}),
        speed=60_000.0,
        consumers=1,
        limits=StreamLimits(queue_bytes=200_000),
    )
    client = connect(server)
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that little is on its way in the kernel
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", server.port))
    reader, writer = await asyncio.open_connection(sock=plain, limit=1024)
    try:
        writer.write(
            b"GET /v2/iex HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            b"APCA-API-KEY-ID: slow\r\nAPCA-API-SECRET-KEY: secret\r\n\r\n"
        )
        message = json.dumps({"action": "subscribe", "bars": ["*"]}).encode()
        masked = bytes([0x81, 0x80 | len(message), 0, 0, 0, 0]) + message
        writer.write(masked)
        await writer.drain()
        await reader.readuntil(b"subscription")
        async with client.reader(["S1"]) as healthy:
            await client.register("a", ["S1"])
            for number in range(1, 301):
                bars, mark = await healthy.receive_slice()
                assert (len(bars), mark.slice) == (1, number)
        await client.wait_for(state="ended")
        # What was sent before the cut may still come; then the connection has ended.
        async with asyncio.timeout(60.0):
            received = 0
            try:
                while chunk := await reader.read(65536):
                    received += len(chunk)
            except ConnectionError:
                pass
        assert received < 300 * 300 * 80
    finally:
        writer.close()


async def test_a_plain_request_to_a_socket_is_an_error(run_exchange: Run, connect: Connect) -> None:
    status, answer = await connect(run_exchange()).call("GET", "/v2/iex")
    assert (status, answer["code"]) == (400, 40010000)


async def test_a_client_that_vanishes_is_forgotten(run_exchange: Run, connect: Connect) -> None:
    client = connect(run_exchange(limits=StreamLimits(connections=1)))
    async with client.data() as data:
        await data.authenticate()
        assert data.socket._response.connection is not None
        data.socket._response.connection.transport.abort()
    async with asyncio.timeout(60.0):
        while True:
            async with client.data() as data:
                await data.receive()
                await data.send(build_auth("key", "secret"))
                (answer,) = await data.receive()
                if answer.message == "authenticated":
                    return
