"""A whole hub with its health part: every series moves with traffic, and readiness follows what the hub depends on."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import ClientConnection, connect

from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.hub.access import Access
from dry_work.hub.health_server import HealthServer
from dry_work.hub.observation_settings import ObservationSettings
from dry_work.hub.ports import SinkStatus
from dry_work.hub.service import HubService
from dry_work.hub.sinks.grpc import GrpcSink
from dry_work.hub.sinks.grpc_settings import GrpcSettings
from dry_work.hub.sinks.websocket import WebSocketSink
from dry_work.hub.upstreams.connection import UpstreamTiming
from dry_work.observability.tracing import TracingSettings, start_tracing
from dry_work.proto.cream.v1 import stream_proxy_pb2 as cream
from tests.ports import find_free_port

from .alpaca_upstream import KEY, SECRET, Upstream, wait_until
from .nats_stack import Stack as NatsStack
from .nats_stack import Trader, build_trade, serve_stack, until
from .otlp_collector import HttpCollector, attributes_of

FREE = ObservationSettings(health_port=0, metrics_port=0, grpc_health_port=0, check_interval_s=0.05)
QUICK = UpstreamTiming(
    ping_interval_s=0.2, silence_timeout_s=30.0, slow_retry_s=0.3, first_wait_s=0.05, longest_wait_s=0.2
)
TIME = "2024-01-02T14:30:00.123456789Z"
CAPACITY = 8  # events that may wait for a WebSocket client


def read_metrics(port: int) -> dict[tuple[str, ...], float]:
    """Return values by name and labels' values."""
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Watched:
    """The health part of a hub, from outside."""

    def __init__(self) -> None:
        self.server: HealthServer

    def build(self, hub: HubService) -> HealthServer:
        self.server = HealthServer(hub, FREE)
        return self.server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.ports['STREAM_PROXY_HEALTH_PORT']}"

    def code(self, path: str) -> int:
        return requests.get(self.url + path, timeout=30).status_code

    def health(self) -> dict[str, Any]:
        return dict(requests.get(f"{self.url}/health", timeout=30).json())

    def metrics(self) -> dict[tuple[str, ...], float]:
        return read_metrics(self.server.ports["STREAM_PROXY_METRICS_PORT"])


class Stack(Watched):
    """A scripted upstream, and a hub with a WebSocket and a gRPC port."""

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.upstream = Upstream()
        self.failures: list[BaseException] = []
        access = Access("127.0.0.1")

        def build_websocket(hub: HubService) -> WebSocketSink:
            self.websocket = WebSocketSink(hub, access=access, port=0, data_capacity=CAPACITY)
            return self.websocket

        def build_grpc(hub: HubService) -> GrpcSink:
            settings = GrpcSettings(port=0)
            self.grpc = GrpcSink(
                hub, access=access, statuses=lambda: hub.status().feeds, settings=settings, is_ready=hub.is_ready
            )
            return self.grpc

        self.hub = HubService(
            self.upstream.url,
            key=KEY,
            secret=SECRET,
            sinks=[build_websocket, build_grpc, *more.pop("sinks", ())],
            rng=random.Random(1),
            timing=QUICK,
            health=self.build,
            on_failure=self.failures.append,
            **more,
        )
        self.hub.start()

    @contextmanager
    def subscribe(self, channel: str, symbols: list[str], path: str = "/v2/iex") -> Iterator[ClientConnection]:
        """Give a client of the WebSocket port that has asked for something, once the upstream knows."""
        with connect(f"ws://127.0.0.1:{self.websocket.port}{path}", proxy=None) as client:
            assert json.loads(client.recv(30))[0]["msg"] == "connected"
            client.send('{"action":"auth","key":"k","secret":"s"}')
            assert json.loads(client.recv(30))[0]["msg"] == "authenticated"
            client.send(json.dumps({"action": "subscribe", channel: symbols}))
            assert json.loads(client.recv(30))[0]["T"] == "subscription"
            wait_until(
                lambda: any(
                    symbol in message.get(channel, ())
                    for session in self.upstream.open
                    for message in session.messages
                    for symbol in symbols
                ),
                "the upstream knows",
            )
            yield client

    def close(self) -> None:
        self.hub.stop()
        self.upstream.close()
        assert not self.failures
        wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("hub")], "no thread is left")


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack()
    yield stack
    stack.close()


def make_trade(number: int) -> dict[str, Any]:
    return {"T": "t", "S": "AAPL", "i": number, "x": "V", "p": 100.5, "s": 3, "c": ["@"], "z": "C", "t": TIME}


def make_quote(number: int) -> dict[str, Any]:
    return {"T": "q", "S": "AAPL", "bp": float(number), "bs": 1, "ap": number + 1.0, "as": 2, "t": TIME}


def make_bar() -> dict[str, Any]:
    return {"T": "b", "S": "AAPL", "o": 1, "h": 2, "l": 1, "c": 2, "v": 9, "n": 1, "vw": 1.5, "t": TIME}


# --- health


def test_a_feed_is_required_while_a_client_holds_something_of_it(stack: Stack) -> None:
    wait_until(lambda: stack.code("/readyz?all=1") == 200, "nothing is needed")
    document = stack.health()
    assert document["status"] == "healthy"
    assert {name: feed["state"] for name, feed in document["feeds"].items() if name in ("sip", "opra", "trading")} == {
        "sip": "disconnected",
        "opra": "disconnected",
        "trading": "disconnected",
    }
    with stack.subscribe("quotes", ["AAPL"]):
        wait_until(lambda: stack.health()["feeds"]["sip"]["connected"], "the feed is connected")
        document = stack.health()
        assert document["feeds"]["sip"]["required"]
        assert document["clients"] == {"total": 1}
        assert document["subscriptions"] == {"broadcast_receivers": 1}
        stack.upstream.http_status = 503
        stack.upstream.cut()
        wait_until(lambda: stack.code("/health") == 503, "the only required feed is away")
        assert stack.health()["status"] == "unhealthy"
        assert (stack.code("/readyz"), stack.code("/readyz?all=1"), stack.code("/healthz")) == (503, 503, 200)
        wait_until(lambda: stack.health()["feeds"]["sip"]["reconnect_attempts"] > 0, "attempts are counted")
        stack.upstream.http_status = 0
        wait_until(lambda: stack.code("/readyz?all=1") == 200, "the feed is back")
    wait_until(lambda: stack.health()["clients"]["total"] == 0, "the client is gone")
    wait_until(lambda: not stack.health()["feeds"]["sip"]["required"], "nobody needs the feed any more")


def test_both_grpc_ports_tell_the_same_health(stack: Stack) -> None:
    ports = (stack.server.ports["HEALTH_PORT"], stack.grpc.port)
    channels = [grpc.insecure_channel(f"127.0.0.1:{port}") for port in ports]
    stubs = [health_pb2_grpc.HealthStub(channel) for channel in channels]

    def ask(service: str = "") -> set[int]:
        request = health_pb2.HealthCheckRequest(service=service)
        return {stub.Check(request, timeout=30).status for stub in stubs}

    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    wait_until(lambda: ask() == {serving}, "all is well")
    with stack.subscribe("trades", ["AAPL"]):
        stack.upstream.http_status = 503
        stack.upstream.cut()
        wait_until(lambda: ask() == {not_serving}, "the feed is away")
        assert ask("live") == {serving}
        stack.upstream.http_status = 0
        wait_until(lambda: ask() == {serving}, "the feed is back")
    for channel in channels:
        channel.close()


class _Slow:
    """An interface that takes its time to close."""

    name = "slow"

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.may_end = threading.Event()

    async def start(self) -> None:
        pass

    async def stop(self, timeout_s: float) -> None:
        self.stopping.set()
        await asyncio.to_thread(self.may_end.wait, 30.0)

    def status(self) -> SinkStatus:
        return SinkStatus(name=self.name)


def test_a_hub_on_its_way_out_says_so_until_all_else_has_closed() -> None:
    slow = _Slow()
    stack = Stack(sinks=[lambda _: slow])
    try:
        wait_until(lambda: stack.code("/readyz") == 200, "it is ready")
        stopping = threading.Thread(target=stack.hub.stop, args=(30.0,))
        stopping.start()
        assert slow.stopping.wait(30.0)
        assert (stack.code("/readyz"), stack.code("/readyz?all=1"), stack.code("/healthz")) == (503, 503, 200)
        assert stack.health()["draining"] is True
        slow.may_end.set()
        stopping.join(30.0)
        with pytest.raises(requests.ConnectionError):
            stack.code("/healthz")
    finally:
        slow.may_end.set()
        stack.close()


# --- metrics


def test_every_series_of_market_data_moves_with_traffic(stack: Stack) -> None:
    before = stack.metrics()
    assert before["alpaca_proxy_messages_received_total", "sip", "stock_quote"] == 0
    with stack.subscribe("quotes", ["AAPL"]) as client, stack.subscribe("trades", ["AAPL"]) as other:
        found = stack.metrics()
        assert found["alpaca_proxy_websocket_connections", "sip"] == 1
        assert found["alpaca_proxy_clients", "websocket"] == 2
        stack.upstream.send([make_quote(1), make_quote(2), make_trade(1), make_bar()])
        assert [item["bp"] for item in json.loads(client.recv(30))] == [1.0, 2.0]
        assert json.loads(other.recv(30))[0]["i"] == 1
        found = stack.metrics()
        expected = {"stock_quote": 2, "stock_trade": 1, "stock_bar": 1}
        assert {kind: found["alpaca_proxy_messages_received_total", "sip", kind] for kind in expected} == expected
        expected = {"stock_quote": 2, "stock_trade": 1, "stock_bar": 0}
        assert {kind: found["alpaca_proxy_messages_sent_total", kind] for kind in expected} == expected
        frames = found["alpaca_proxy_message_processing_seconds_count", "sip"]
        assert frames >= 1
        assert found["alpaca_proxy_message_processing_seconds_bucket", "sip", "+Inf"] == frames
        assert found["alpaca_proxy_message_processing_seconds_sum", "sip"] > 0
        # One frame with more than may wait for a client: the oldest are dropped, quotes first made one of many.
        stack.upstream.send([make_trade(number) for number in range(CAPACITY + 5)])
        wait_until(
            lambda: stack.metrics()["alpaca_proxy_messages_dropped_total", "stock_trade"] >= 5, "trades are dropped"
        )
        stack.upstream.send([make_quote(number) for number in range(CAPACITY + 5)])
        wait_until(
            lambda: stack.metrics()["alpaca_proxy_messages_conflated_total", "websocket"] > 0, "quotes are conflated"
        )
        found = stack.metrics()
        status = next(sink for sink in stack.hub.status().sinks if sink.name == "websocket")
        sent = sum(value for name, value in found.items() if name[0] == "alpaca_proxy_messages_sent_total")
        dropped = sum(value for name, value in found.items() if name[0] == "alpaca_proxy_messages_dropped_total")
        assert (sent, dropped) == (status.delivered, status.dropped)
        assert status.offered == status.delivered + status.conflated + status.dropped + status.waiting


def test_every_series_of_connections_moves_with_what_happens_to_them(stack: Stack) -> None:
    with stack.subscribe("bars", ["AAPL"]):
        wait_until(lambda: stack.metrics()["alpaca_proxy_subscriptions_total", "sip"] == 1, "it is confirmed")
        (session,) = stack.upstream.open
        stack.upstream.send_raw('[{"T":"error","code":405,"msg":"symbol limit exceeded"}]', session)
        stack.upstream.send_raw("no JSON", session)
        wait_until(
            lambda: stack.metrics()["alpaca_proxy_websocket_errors_total", "sip", "malformed"] == 1, "it is counted"
        )
        assert stack.metrics()["alpaca_proxy_websocket_errors_total", "sip", "code_405"] == 1
        stack.upstream.cut()
        wait_until(lambda: stack.metrics()["alpaca_proxy_reconnects_total", "sip"] == 1, "it is connected again")
        found = stack.metrics()
        assert found["alpaca_proxy_websocket_errors_total", "sip", "lost"] == 1
        assert found["alpaca_proxy_websocket_errors_total", "sip", "fatal"] == 0
        stack.upstream.http_status = 403
        stack.upstream.cut()
        wait_until(lambda: stack.metrics()["alpaca_proxy_websocket_errors_total", "sip", "fatal"] > 0, "it is refused")
        assert stack.metrics()["alpaca_proxy_websocket_connections", "sip"] == 0


def test_clients_of_grpc_and_what_they_get_are_counted(stack: Stack) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{stack.grpc.port}") as channel:
        method = channel.unary_stream(
            "/cream.v1.StreamProxyService/StreamQuotes",
            request_serializer=cream.StreamQuotesRequest.SerializeToString,
            response_deserializer=cream.StreamQuotesResponse.FromString,
        )
        call = method(cream.StreamQuotesRequest(symbols=["AAPL"]), timeout=30)
        call.initial_metadata()
        assert stack.metrics()["alpaca_proxy_grpc_clients",] == 1
        wait_until(lambda: stack.upstream.open and stack.upstream.open[0].authenticated, "the upstream is there")
        stack.upstream.send([make_quote(7)])
        assert next(call).quote.bid_price == 7.0
        # It is counted once it is written, which may be after it has come.
        wait_until(lambda: stack.metrics()["alpaca_proxy_messages_sent_total", "stock_quote"] == 1, "it is counted")
        assert stack.health()["clients"]["total"] == 1
        call.cancel()
    wait_until(lambda: stack.metrics()["alpaca_proxy_grpc_clients",] == 0, "the client is gone")


# --- NATS and orders


@pytest.fixture
def nats_stack() -> Iterator[NatsStack]:
    yield from serve_stack()


@pytest.fixture
async def trader(nats_stack: NatsStack) -> AsyncIterator[Trader]:
    trader = await Trader.connect(nats_stack)
    yield trader
    await trader.close()


async def test_every_series_of_orders_moves_with_them(nats_stack: NatsStack, trader: Trader) -> None:
    watched = Watched()
    nats_stack.start_hub(health=watched.build)
    await trader.order("good", build_trade())
    await trader.order("bad", build_trade(symbol=None))
    for name in ("good", "bad"):
        await trader.wait_result(name)
    await trader.cancel("good")
    await trader.cancel("unknown")
    for number, name in ((2, "good"), (1, "unknown")):
        await trader.wait_result(name, number)
    await trader.cancel("ALL")
    await trader.wait_result("ALL")
    nats_stack.set_fault(on="http", kind="status", method="DELETE", path="/v2/orders", status=422, times=1)
    await trader.cancel("ALL")
    await trader.wait_result("ALL", 2)
    names = {
        "nalpaca_orders_orders_created_count": 1,
        "nalpaca_orders_orders_failed_count": 1,
        "nalpaca_canceler_cancel_count": 1,
        "nalpaca_canceler_order_cancel_errs": 1,
        "nalpaca_canceler_cancel_all_count": 1,
        "nalpaca_canceler_cancel_all_errs": 1,
    }

    def read() -> dict[str, float]:
        # The parser gives counters the suffix that they are written without.
        found = watched.metrics()
        return {name: found[f"{name}_total",] for name in names}

    await until(lambda: read() == names, "all are counted")
    found = watched.metrics()
    assert found["alpaca_proxy_messages_received_total", "trading", "order_update"] >= 2
    assert found["alpaca_proxy_websocket_connections", "trading"] == 1
    assert found["alpaca_proxy_message_processing_seconds_count", "trading"] >= 2
    await until(
        lambda: watched.metrics()["alpaca_proxy_messages_sent_total", "order_update"] >= 2, "updates are published"
    )


async def test_bars_that_cannot_be_published_are_counted_by_reason(nats_stack: NatsStack, trader: Trader) -> None:
    watched = Watched()
    sink = nats_stack.start_hub(health=watched.build)
    await until(lambda: "bars" in sink.acting, "this hub publishes")
    hub = nats_stack.hubs["a"]

    def read() -> tuple[float, ...]:
        found = watched.metrics()
        return tuple(found[f"nalpaca_stocks_stream_{name}_err_total",] for name in ("total", "marshal", "pub"))

    sink.bars.subscriptions.add(["SPY"])
    bar = {"T": "b", "S": "SPY", "o": 1, "h": 2, "l": 1, "c": 2, "v": 9, "n": 1, "vw": 1.5, "t": TIME}

    def publish(item: dict[str, Any]) -> None:
        assert hub._loop is not None
        call = hub.bus.publish
        hub._loop.call_soon_threadsafe(lambda: call("stocks", "bars", "SPY", item, ts_recv_ns=1))

    publish({**bar, "o": "no price"})
    await until(lambda: read() == (1, 1, 0), "it cannot be encoded")
    publish(bar)
    await until(lambda: watched.metrics()["alpaca_proxy_messages_sent_total", "stock_bar"] == 1, "the next one goes")
    assert watched.metrics()["alpaca_proxy_messages_dropped_total", "stock_bar"] == 1
    publish({**bar, "S": "X" * 2_000_000})
    await until(lambda: read() == (2, 1, 1), "NATS does not take it")
    counts = sink.bars.counts()
    assert counts["offered"] == sum(counts[name] for name in ("delivered", "conflated", "dropped", "waiting")) == 3


async def test_readiness_follows_nats_away_and_back(nats_stack: NatsStack) -> None:
    watched = Watched()
    nats_stack.start_hub(health=watched.build)
    await until(lambda: watched.code("/readyz?all=1") == 200, "all is there")
    nats_stack.nats.kill()
    await until(lambda: watched.code("/readyz?all=1") == 503, "NATS is away")
    document = watched.health()
    assert document["dependencies"]["nats"]["up"] is False
    assert document["dependencies"]["alpaca.paper"] == {"up": True}
    assert (watched.code("/readyz"), watched.code("/health"), watched.code("/healthz")) == (200, 200, 200)
    nats_stack.nats.start()
    await until(lambda: watched.code("/readyz?all=1") == 200, "NATS is back")


async def test_an_orders_way_through_the_hub_is_one_trace(nats_stack: NatsStack, trader: Trader) -> None:
    collector = HttpCollector()
    stop = start_tracing(TracingSettings(url=collector.url))
    try:
        nats_stack.start_hub()
        await trader.order("traced", build_trade())
        result = await trader.wait_result("traced")
        await until(lambda: collector.named("nats.action"), "the trace is told")
    finally:
        stop()
        collector.close()
    (action,) = collector.named("nats.action")
    assert attributes_of(action) == {
        "nats.subject": "nalpaca.action.v0.orders.traced",
        "nats.deliveries": 1,
        "action.kind": "order",
        "action.outcome": "accepted",
        "order.id": result["order_id"],
    }
    children = {span.name: span for span in collector.all if span.parent_span_id == action.span_id}
    assert set(children) == {"alpaca.request", "nats.result"}
    request = attributes_of(children["alpaca.request"])
    assert request == {"account": "paper", "http.method": "POST", "http.path": "/orders"}
    frames = [attributes_of(span)["feed"] for span in collector.named("upstream.frame")]
    assert "orders.paper" in frames


# --- the command


def test_the_command_tells_its_health_traces_and_logs_as_its_variables_say(tmp_path: Path) -> None:
    exchange = ExchangeServer(synthetic_day(["SPY"], seed=1), rules="alpaca", speed=1.0, consumers=0)
    exchange.start()
    collector = HttpCollector()
    ports = {
        name: find_free_port()
        for name in ("STREAM_PROXY_HEALTH_PORT", "STREAM_PROXY_METRICS_PORT", "METRICS_PORT", "HEALTH_PORT")
    }
    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith(("ALPACA", "HUB", "OTEL"))},
        **{name: str(port) for name, port in ports.items()},
        "ALPACA_API_KEY": "hub-key",
        "ALPACA_SECRET_KEY": "hub-secret-value",
        "ALPACA_URL": exchange.url,
        "ALPACA_STREAM_URL": exchange.stream_url,
        "PROXY_PORT": str(find_free_port()),
        "DISABLE_METRICS": "false",
        "HEALTH_PING_INTERVAL": "50ms",
        "TRACE_EXPORTER_URL": collector.url,
        "OTEL_SERVICE_NAME": "a-hub",
        "LOG_LEVEL": "INFO",
        "LOG_FMT": "logfmt",
        "LOG_EXPORTER": "stdout",
    }
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "dry_work", "hub", "--sinks", "websocket"],
            cwd=tmp_path,
            env=environment,
            stdout=out,
            stderr=err,
        )
    told = ""
    try:

        def is_ready() -> bool:
            assert process.poll() is None, (tmp_path / "err").read_text()
            try:
                url = f"http://127.0.0.1:{ports['STREAM_PROXY_HEALTH_PORT']}/readyz?all=1"
                return requests.get(url, timeout=30).status_code == 200
            except requests.ConnectionError:
                return False

        wait_until(is_ready, "it is ready", 60.0)
        told = requests.get(f"http://127.0.0.1:{ports['STREAM_PROXY_HEALTH_PORT']}/health", timeout=30).text
        assert json.loads(told)["feeds"]["trading"]["connected"]
        for name in ("STREAM_PROXY_METRICS_PORT", "METRICS_PORT"):
            found = read_metrics(ports[name])
            assert found["alpaca_proxy_websocket_connections", "trading"] == 1
        with grpc.insecure_channel(f"127.0.0.1:{ports['HEALTH_PORT']}") as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        wait_until(lambda: collector.named("alpaca.request"), "spans arrive")
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        collector.close()
        exchange.stop()
    output, errors = (tmp_path / "out").read_text(), (tmp_path / "err").read_text()
    assert (code, errors) == (0, ""), output
    assert re.search(
        r"^timestamp=\S+Z level=info event=configuration part=observation .* source=\w+\.py:\d+$", output, re.M
    )
    assert collector.services == {"a-hub"}
    assert "hub-secret-value" not in output + told + str(collector.all)


def test_what_is_set_wrong_ends_the_start_with_its_name(tmp_path: Path) -> None:
    done = run_briefly(tmp_path, {"OTEL_ENABLED": "true", "DISABLE_TRACING": "true"})
    assert done.returncode == 2
    assert "OTEL_ENABLED='true' and DISABLE_TRACING='true' contradict each other" in done.stderr


def test_a_health_port_in_use_ends_the_start_with_its_name(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_briefly(tmp_path, {"STREAM_PROXY_HEALTH_PORT": str(port)})
    assert done.returncode == 2
    assert f"127.0.0.1:{port} (STREAM_PROXY_HEALTH_PORT) cannot be opened" in done.stderr


def run_briefly(folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    keys = {"ALPACA_API_KEY": "k", "ALPACA_SECRET_KEY": "s", "PROXY_PORT": "0", "ALPACA_URL": "http://127.0.0.1:9"}
    return subprocess.run(
        [sys.executable, "-m", "dry_work", "hub", "--sinks", "websocket"],
        cwd=folder,
        env={**os.environ, **keys, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
