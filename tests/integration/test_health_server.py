"""Health and metrics of a hub that says what the test wants: the ports, their limits and their rules."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dry_work.clock import SystemClock
from dry_work.errors import BrokerUnavailableError, ConfigError, OrderRejectedError, VenueAuthError
from dry_work.hub import health_server
from dry_work.hub.bus import Bus
from dry_work.hub.core import ConnectionState
from dry_work.hub.health_checks import AccountChecks
from dry_work.hub.health_server import HealthServer
from dry_work.hub.observation_settings import ObservationSettings
from dry_work.hub.ports import SinkStatus
from dry_work.hub.status import HubStatus
from dry_work.hub.upstreams.connection import FeedStatus

DEADLINE_S = 60.0
FREE = ObservationSettings(health_port=0, metrics_port=0, grpc_health_port=0, check_interval_s=0.02)
UP = FeedStatus(feed="iex", wanted=1, state=ConnectionState.CONNECTED)
DOWN = FeedStatus(feed="iex", wanted=1, state=ConnectionState.RECONNECTING)


class Account:
    """An account that answers as the test says."""

    environment = "paper"
    account_id = account_number = ""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hangs = False
        self.calls = 0

    async def call(self, method: str, path: str, data: Mapping[str, Any] | None = None) -> Any:
        self.calls += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return {}


class Hub:
    """A hub whose state the test sets."""

    def __init__(self) -> None:
        self.bus = Bus("e1")
        self.clock = SystemClock()
        self.is_stopping = False
        self.feeds: tuple[FeedStatus, ...] = (UP,)
        self.sinks: tuple[SinkStatus, ...] = ()
        self.accounts: dict[str, Account] = {}

    def status(self) -> HubStatus:
        return HubStatus(epoch="e1", clients=0, symbols=0, feeds=self.feeds, topics=(), sinks=self.sinks)

    def account(self, environment: str) -> Account | None:
        return self.accounts.get(environment)


@asynccontextmanager
async def serve(hub: Hub, settings: ObservationSettings = FREE, **more: Any) -> AsyncIterator[HealthServer]:
    server = HealthServer(hub, settings, **more)
    await server.start()
    server.note_started()
    try:
        yield server
    finally:
        await server.stop()
        await server.stop()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("hub-check")]


async def get(server: HealthServer, path: str, port: str = "STREAM_PROXY_HEALTH_PORT") -> tuple[int, str]:
    url = f"http://127.0.0.1:{server.ports[port]}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def until(condition: Callable[[], Awaitable[Any]], what: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def ask_health(server: HealthServer) -> AsyncIterator[Callable[[str], Awaitable[str]]]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports['HEALTH_PORT']}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def ask(service: str) -> str:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_S)
            return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

        yield ask


# --- health


@pytest.mark.parametrize(
    ("feeds", "health", "ready", "all_ready"),
    [
        ((), (200, "healthy"), 200, 200),
        ((UP,), (200, "healthy"), 200, 200),
        ((UP, FeedStatus(feed="crypto", wanted=1)), (200, "degraded"), 200, 503),
        ((DOWN,), (503, "unhealthy"), 503, 503),
    ],
)
async def test_the_answers_follow_the_feeds(
    feeds: tuple[FeedStatus, ...], health: tuple[int, str], ready: int, all_ready: int
) -> None:
    hub = Hub()
    hub.feeds = feeds
    async with serve(hub) as server:
        status, text = await get(server, "/health")
        assert (status, json.loads(text)["status"]) == health
        assert await get(server, "/readyz") == (ready, "READY" if ready == 200 else "NOT READY")
        assert (await get(server, "/readyz?all=1"))[0] == all_ready
        assert await get(server, "/healthz") == (200, "OK")
        assert (await get(server, "/nothing"))[0] == 404


async def test_clients_of_all_interfaces_and_queues_are_counted() -> None:
    hub = Hub()
    hub.sinks = (SinkStatus(name="websocket", clients=3), SinkStatus(name="grpc", clients=2))
    async with serve(hub) as server:
        document = json.loads((await get(server, "/health"))[1])
    assert document["clients"] == {"total": 5}
    assert document["subscriptions"] == {"broadcast_receivers": 0}


async def test_a_hub_that_starts_or_stops_is_alive_and_not_ready() -> None:
    hub = Hub()
    server = HealthServer(hub, FREE)
    await server.start()
    try:
        async with ask_health(server) as ask:
            assert (await get(server, "/readyz"))[0] == 503
            assert await ask("") == "NOT_SERVING"
            server.note_started()
            assert (await get(server, "/readyz"))[0] == 200
            assert await ask("") == "SERVING"
            hub.is_stopping = True
            for path in ("/readyz", "/readyz?all=1"):
                assert (await get(server, path))[0] == 503
            assert await ask("") == "NOT_SERVING"
            assert await ask("live") == "SERVING"
            assert (await get(server, "/healthz"))[0] == 200
            status, text = await get(server, "/health")
            assert (status, json.loads(text)["draining"]) == (200, True)
    finally:
        await server.stop()


async def test_a_server_that_goes_and_comes_back_is_followed() -> None:
    hub = Hub()
    async with serve(hub) as server, ask_health(server) as ask:
        for is_ready, code, word in ((True, 200, "SERVING"), (False, 503, "NOT_SERVING"), (True, 200, "SERVING")):
            hub.sinks = (SinkStatus(name="redis", is_ready=is_ready, error="" if is_ready else "gone"),)

            async def is_told(code: int = code) -> bool:
                return (await get(server, "/readyz?all=1"))[0] == code

            await until(is_told, f"readiness is {code}")
            assert await ask("") == word
            assert (await get(server, "/readyz"))[0] == 200


async def test_grpc_health_knows_its_two_services_only() -> None:
    async with serve(Hub()) as server, ask_health(server) as ask:
        assert (await ask(""), await ask("live")) == ("SERVING", "SERVING")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask("else")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


# --- the trading API


async def test_the_trading_api_is_asked_at_the_interval_and_followed() -> None:
    hub = Hub()
    account = hub.accounts["paper"] = Account()
    async with serve(hub) as server:

        async def is_ready() -> bool:
            return (await get(server, "/readyz?all=1"))[0] == 200

        async def is_not_ready() -> bool:
            return not await is_ready()

        await until(is_ready, "the API answers")
        calls = account.calls
        for error in (BrokerUnavailableError("no connection"), VenueAuthError("refused", http_status=401)):
            account.error = error
            await until(is_not_ready, f"down: {error}")
            told = json.loads((await get(server, "/health"))[1])
            assert told["dependencies"]["alpaca.paper"] == {"up": False, "error": str(error)}
            assert told["status"] == "healthy"
            account.error = None
            await until(is_ready, "the API answers again")
        assert account.calls > calls
        account.error = OrderRejectedError("no such path", http_status=404)
        calls = account.calls

        async def is_asked() -> bool:
            return account.calls > calls + 1

        await until(is_asked, "it is asked again")
        assert await is_ready()


async def test_an_api_that_hangs_is_down_and_not_asked_again_meanwhile() -> None:
    account = Account()
    account.hangs = True
    checks = AccountChecks({"live": account}, interval_s=0.01, answer_within_s=0.05)
    assert checks.errors == {"live": "not asked yet"}
    checks.start()
    try:

        async def is_down() -> bool:
            return checks.errors["live"] == "no answer within 0.05 s"

        await until(is_down, "it is down")
        assert account.calls == 1
    finally:
        await checks.stop()


# --- metrics


async def test_metrics_are_told_on_their_ports() -> None:
    settings = ObservationSettings(
        health_port=0, metrics_port=0, has_more_metrics=True, more_metrics_port=0, has_grpc_health=False
    )
    async with serve(Hub(), settings) as server:
        assert set(server.ports) == {"STREAM_PROXY_HEALTH_PORT", "STREAM_PROXY_METRICS_PORT", "METRICS_PORT"}
        async with aiohttp.ClientSession() as session:
            for port in server.ports.values():
                async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
                    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
                    assert 'alpaca_proxy_websocket_connections{feed="sip"} 1\n' in await response.text()
        assert (await get(server, "/health", "METRICS_PORT"))[0] == 404


async def test_without_being_asked_no_port_is_opened_for_more_metrics() -> None:
    async with serve(Hub()) as server:
        assert set(server.ports) == {"STREAM_PROXY_HEALTH_PORT", "STREAM_PROXY_METRICS_PORT", "HEALTH_PORT"}


def break_metrics(hub: Hub) -> None:
    """Let one part of the metrics fail."""
    hub.sinks = (SinkStatus(name="nats", results={"no pair": 1}),)  # type: ignore[dict-item]


@pytest.mark.parametrize(("policy", "failures"), [("return", 0), ("panic", 1)])
async def test_metrics_that_fail_are_an_error(policy: str, failures: int) -> None:
    hub, found = Hub(), []
    break_metrics(hub)
    settings = ObservationSettings(health_port=0, metrics_port=0, grpc_health_port=0, metrics_error_policy=policy)
    async with serve(hub, settings, on_failure=found.append) as server:
        status, text = await get(server, "/metrics")
    assert (status, text) == (500, "the metrics cannot be told: ValueError\n")
    assert len(found) == failures


async def test_metrics_that_fail_in_part_are_told_in_part_when_so_set() -> None:
    hub = Hub()
    break_metrics(hub)
    settings = ObservationSettings(health_port=0, metrics_port=0, grpc_health_port=0, metrics_error_policy="continue")
    async with serve(hub, settings) as server:
        status, text = await get(server, "/metrics")
    assert status == 200
    assert "alpaca_proxy_messages_received_total" in text
    assert "nalpaca_" not in text


async def test_a_reader_that_does_not_read_takes_a_place_until_its_time_is_over() -> None:
    hub = Hub()
    # More than the buffers of a connection take.
    hub.feeds = (FeedStatus(feed="iex", errors=dict.fromkeys(range(100_000), 1)),)
    settings = ObservationSettings(
        health_port=0, metrics_port=0, grpc_health_port=0, metrics_most_in_flight=1, metrics_write_timeout_s=4.0
    )
    async with serve(hub, settings) as server:
        port = server.ports["STREAM_PROXY_METRICS_PORT"]
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(stuck, ("127.0.0.1", port))
            await loop.sock_sendall(stuck, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await loop.sock_recv(stuck, 12)) == b"HTTP/1.1 200"
            status, text = await get(server, "/metrics")
            assert (status, text.partition(",")[0]) == (503, "1 requests for metrics are being answered")
            hub.feeds = (UP,)

            async def is_free() -> bool:
                return (await get(server, "/metrics"))[0] == 200

            await until(is_free, "the place is free again")


async def test_a_connection_without_a_request_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_server, "HEADER_WITHIN_S", 0.1)
    async with serve(Hub()) as server:
        port = server.ports["STREAM_PROXY_HEALTH_PORT"]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HT")
        async with asyncio.timeout(DEADLINE_S):
            assert b"200" not in await reader.read()
        writer.close()


# --- ports


@pytest.mark.parametrize(
    "name", ["STREAM_PROXY_HEALTH_PORT", "STREAM_PROXY_METRICS_PORT", "METRICS_PORT", "HEALTH_PORT"]
)
async def test_a_port_in_use_is_an_error_that_names_its_variable(name: str) -> None:
    fields = {
        "STREAM_PROXY_HEALTH_PORT": "health_port",
        "STREAM_PROXY_METRICS_PORT": "metrics_port",
        "METRICS_PORT": "more_metrics_port",
        "HEALTH_PORT": "grpc_health_port",
    }
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {field: port if field == fields[name] else 0 for field in fields.values()}
        server = HealthServer(Hub(), ObservationSettings(has_more_metrics=True, **ports))
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} \({name}\) cannot be opened"):
            await server.start()


async def test_an_address_that_is_not_ours_is_an_error() -> None:
    server = HealthServer(Hub(), ObservationSettings(host="192.0.2.1", health_port=0))
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:0 \(STREAM_PROXY_HEALTH_PORT\)"):
        await server.start()
