"""The subscription API: real gRPC and HTTP clients at a hub."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dry_work.errors import ConfigError
from dry_work.hub.access import Access
from dry_work.hub.sinks.nats import NatsSink
from dry_work.hub.sinks.nats_settings import StreamSettings, SubscriptionApiSettings
from dry_work.proto.stream.v0 import stream_pb2 as pb

from .nats_stack import ON, Stack, serve_stack, until

OPEN = SubscriptionApiSettings(is_enabled=True, port=0, is_proxy_enabled=True, proxy_port=0)


@pytest.fixture
def stack() -> Iterator[Stack]:
    yield from serve_stack()


def start(stack: Stack, *, api: SubscriptionApiSettings = OPEN, access: Access | None = None, **more: Any) -> NatsSink:
    parts = {"takes_orders": False, "takes_cancels": False, "tells_updates": False, **more}
    return stack.start_hub(access=access, api=api, **parts)


class Client:
    """Stubs of `stream.v0.StreamService`."""

    def __init__(self, sink: NatsSink, token: str = "") -> None:
        assert sink.api is not None
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{sink.api.port}")
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None

    async def call(self, name: str, symbols: list[str] | None = None) -> list[str]:
        verb = next(verb for verb in ("List", "Add", "Remove") if name.startswith(verb))
        request, answer = getattr(pb, f"{verb}SubscriptionsRequest"), getattr(pb, f"{verb}SubscriptionsResponse")
        stub = self._channel.unary_unary(
            f"/stream.v0.StreamService/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )
        message = request() if symbols is None else request(symbols=symbols)
        found = await stub(message, timeout=20, metadata=self._metadata)
        return list(found.subscriptions) if symbols is None else []

    async def check_health(self) -> int:
        stub = health_pb2_grpc.HealthStub(self._channel)
        return int(
            (await stub.Check(health_pb2.HealthCheckRequest(service="stream.v0.StreamService"), timeout=60)).status
        )

    async def list_services(self) -> set[str]:
        stub = reflection_pb2_grpc.ServerReflectionStub(self._channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in stub.ServerReflectionInfo(iter([request]), timeout=20, metadata=self._metadata):
            return {service.name for service in answer.list_services_response.service}
        return set()

    async def close(self) -> None:
        await self._channel.close()


def held(stack: Stack, channel: str, path: str) -> set[str]:
    symbols: set[str] = set()
    for session in stack.upstream.open:
        for message in session.messages if session.path == path else ():
            names = message.get(channel, ())
            symbols = symbols.union(names) if message["action"] == "subscribe" else symbols.difference(names)
    return symbols


async def test_symbols_are_listed_added_and_removed_over_grpc_and_upstream(stack: Stack) -> None:
    sink = start(stack, stocks=StreamSettings(is_enabled=True, symbols=("SPY",)))
    client = Client(sink)
    assert await client.call("ListBarSubscriptions") == ["SPY"]
    await client.call("AddBarSubscriptions", ["brk.b", "BTC/USD", "SPY"])
    assert await client.call("ListBarSubscriptions") == ["SPY", "BRK.B", "BTC/USD"]
    await until(lambda: held(stack, "bars", "/v2/iex") == {"SPY", "BRK.B"}, "they are subscribed upstream")
    await client.call("RemoveBarSubscriptions", ["spy", "NVDA"])
    assert await client.call("ListBarSubscriptions") == ["BRK.B", "BTC/USD"]
    await until(lambda: held(stack, "bars", "/v2/iex") == {"BRK.B"}, "one is unsubscribed upstream")
    await client.call("AddNewsSubscriptions", ["*"])
    assert await client.call("ListNewsSubscriptions") == ["*"]
    await client.call("RemoveNewsSubscriptions", ["*"])
    assert await client.call("ListNewsSubscriptions") == []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.call("AddBarSubscriptions", ["NVDA", "not a symbol"])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "NOT A SYMBOL" in str(caught.value.details())
    assert await client.call("ListBarSubscriptions") == ["BRK.B", "BTC/USD"]
    assert await client.check_health() == health_pb2.HealthCheckResponse.SERVING
    assert {"stream.v0.StreamService", "grpc.health.v1.Health"} <= await client.list_services()
    await client.close()


async def test_what_was_added_and_removed_outlasts_a_restart_and_a_change_of_the_settings_holds(
    stack: Stack, tmp_path: Path
) -> None:
    def configure(*symbols: str) -> NatsSink:
        return start(stack, stocks=StreamSettings(is_enabled=True, symbols=symbols), state_dir=tmp_path)

    client = Client(configure("SPY", "IBM"))
    await client.call("AddBarSubscriptions", ["AAPL", "BTC/USD"])
    await client.call("RemoveBarSubscriptions", ["IBM"])
    await client.call("AddNewsSubscriptions", ["*"])
    await client.close()
    stack.hubs["a"].stop()
    client = Client(configure("SPY", "IBM"))
    assert await client.call("ListBarSubscriptions") == ["SPY", "AAPL", "BTC/USD"]
    assert await client.call("ListNewsSubscriptions") == ["*"]
    await until(lambda: held(stack, "bars", "/v2/iex") == {"SPY", "AAPL"}, "they are subscribed upstream")
    await client.call("RemoveBarSubscriptions", ["AAPL"])
    await client.close()
    stack.hubs["a"].stop()
    client = Client(configure("NVDA"))
    assert await client.call("ListBarSubscriptions") == ["NVDA", "BTC/USD"]
    await client.close()
    stack.hubs["a"].stop()
    for path in tmp_path.glob("*.symbols.json"):
        path.write_text("no json" if "news" in path.name else '{"configured":["NVDA"],"symbols":["not a symbol"]}')
    client = Client(configure("NVDA"))
    assert await client.call("ListBarSubscriptions") == ["NVDA"]
    assert await client.call("ListNewsSubscriptions") == []
    await client.close()


async def test_the_gateway_does_the_same_over_rest(stack: Stack) -> None:
    sink = start(stack)
    assert sink.api is not None
    base = f"http://127.0.0.1:{sink.api.proxy_port}/v1/subscriptions"
    async with aiohttp.ClientSession() as session:

        async def call(method: str, path: str, *symbols: str) -> tuple[int, Any]:
            params = [("symbols", symbol) for symbol in symbols]
            async with session.request(method, base + path, params=params) as answer:
                return answer.status, await answer.json()

        assert await call("GET", "/bars") == (200, {"subscriptions": []})
        assert await call("PATCH", "/bars", "SPY", "BRK.B", "btc/usd") == (200, {})
        assert await call("DELETE", "/bars", "SPY") == (200, {})
        assert await call("GET", "/bars") == (200, {"subscriptions": ["BRK.B", "BTC/USD"]})
        assert await call("PATCH", "/news", "SPY") == (200, {})
        assert await call("GET", "/news") == (200, {"subscriptions": ["SPY"]})
        status, body = await call("PATCH", "/bars", "AAPL240315C00172500")
        assert (status, body["code"]) == (400, 3)
        assert "is an option" in body["message"]
        assert (await call("GET", "/quotes"))[0] == 404
        assert (await call("POST", "/bars"))[0] == 501


async def test_a_part_that_is_off_says_which_variable_to_set(stack: Stack) -> None:
    sink = start(stack, news=StreamSettings())
    assert sink.api is not None
    client = Client(sink)
    for name, symbols in (
        ("ListNewsSubscriptions", None),
        ("AddNewsSubscriptions", ["SPY"]),
        ("RemoveNewsSubscriptions", []),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.call(name, symbols)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "ENABLE_NEWS_STREAM" in str(caught.value.details())
    await client.close()
    url = f"http://127.0.0.1:{sink.api.proxy_port}/v1/subscriptions/news"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 400
        assert (await answer.json())["code"] == 9


async def test_elsewhere_than_on_loopback_a_token_is_needed(stack: Stack) -> None:
    sink = start(stack, access=Access("0.0.0.0", "the-token"))
    assert sink.api is not None
    for token in ("", "wrong"):
        client = Client(sink, token)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.call("ListBarSubscriptions")
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert await client.check_health() == health_pb2.HealthCheckResponse.SERVING
        await client.close()
    client = Client(sink, "the-token")
    assert await client.call("ListBarSubscriptions") == []
    await client.close()
    url = f"http://127.0.0.1:{sink.api.proxy_port}/v1/subscriptions/bars"
    async with aiohttp.ClientSession() as session:
        async with session.get(url) as answer:
            assert answer.status == 401
        async with session.get(url, headers={"authorization": "Bearer the-token"}) as answer:
            assert answer.status == 200


async def test_a_client_that_sends_no_header_in_time_is_disconnected(stack: Stack) -> None:
    api = SubscriptionApiSettings(is_proxy_enabled=True, proxy_port=0, proxy_read_header_timeout_s=0.1)
    sink = start(stack, api=api)
    assert sink.api is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", sink.api.proxy_port)
    writer.write(b"GET /v1/subscr")
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", sink.api.proxy_port)
    writer.write(b"GET /v1/subscriptions/bars HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n"), 20)
    writer.close()


async def test_a_header_beyond_the_limit_is_refused(stack: Stack) -> None:
    api = SubscriptionApiSettings(is_proxy_enabled=True, proxy_port=0, proxy_max_header_bytes=256)
    sink = start(stack, api=api)
    assert sink.api is not None
    url = f"http://127.0.0.1:{sink.api.proxy_port}/v1/subscriptions/bars"
    async with aiohttp.ClientSession() as session, session.get(url, headers={"x-long": "x" * 1000}) as answer:
        assert answer.status == 400


def test_a_port_that_is_taken_is_a_start_error(stack: Stack) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for api, name in (
            (SubscriptionApiSettings(is_enabled=True, port=port), "GRPC_PORT"),
            (SubscriptionApiSettings(is_proxy_enabled=True, proxy_port=port), "GRPC_PROXY_PORT"),
        ):
            with pytest.raises(ConfigError, match=name):
                start(stack, api=api, stocks=ON)
