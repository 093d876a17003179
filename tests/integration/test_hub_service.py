"""The hub as a service: certificates, ports, state directories, the init step, its end, and no secret told."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from dry_work.embedded.nats_server import EmbeddedNats
from dry_work.embedded.pubsub import EmbeddedPubSub
from dry_work.errors import ConfigError, LeaseHeldError
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.hub.access import Access, read_certificate
from dry_work.hub.assembly import build_hub
from dry_work.hub.observation_settings import read_observation_settings
from dry_work.hub.service import HubService
from dry_work.hub.settings import SINKS, build_settings
from dry_work.hub.state_lock import StateLock
from dry_work.proto.cream.v1 import stream_proxy_pb2 as cream
from dry_work.proto.stream.v0 import stream_pb2 as stream
from tests.ports import find_free_port

from .alpaca_upstream import KEY, SECRET, Upstream, wait_until
from .certificates import make_certificate, write_certificate
from .nats_stack import Stack, Trader, build_trade, serve_stack, until

ROOT = Path(__file__).resolve().parents[2]
NOWHERE = "http://127.0.0.1:9"
WAIT_S = 60.0  # for an answer, on a machine under load as well
TOKEN = "the-token-of-the-hub"
# Any free port for every listener.
FREE_PORTS = {
    "PROXY_PORT": "0",
    "STREAM_PROXY_GRPC_PORT": "0",
    "GRPC_PORT": "0",
    "GRPC_PROXY_PORT": "0",
    "STREAM_PROXY_HEALTH_PORT": "0",
    "STREAM_PROXY_METRICS_PORT": "0",
    "HEALTH_PORT": "0",
}


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.close()


@pytest.fixture
def nats() -> Iterator[EmbeddedNats]:
    server = EmbeddedNats()
    server.start()
    yield server
    server.close()


def build(environment: Mapping[str, str]) -> HubService:
    return build_hub(build_settings(environment), environment)


def sink_of(hub: HubService, name: str) -> Any:
    return next(sink for sink in hub._sinks if sink.name == name)


# --- certificates


@pytest.fixture
def served(upstream: Upstream, nats: EmbeddedNats, clean_environment: Path) -> Iterator[tuple[HubService, Path]]:
    """A hub with every listener, TLS and a token, on an address that asks for it; and its certificate."""
    _, chain, key = write_certificate(clean_environment)
    hub = build(
        {
            **FREE_PORTS,
            "ALPACA_API_KEY": KEY,
            "ALPACA_SECRET_KEY": SECRET,
            "ALPACA_STREAM_URL": upstream.url,
            "ALPACA_URL": NOWHERE,
            "HUB_SINKS": "websocket,grpc,nats",
            "HUB_BIND_HOST": "0.0.0.0",
            "HUB_TOKEN": TOKEN,
            "HUB_TLS_CERT": str(chain),
            "HUB_TLS_KEY": str(key),
            "NATS_URL": nats.url,
            "ENABLE_STOCK_STREAM": "true",
            "ENABLE_GRPC": "true",
            "ENABLE_GRPC_PROXY": "true",
        }
    )
    hub.start()
    yield hub, chain
    hub.stop()


def test_the_websocket_port_speaks_tls(served: tuple[HubService, Path], upstream: Upstream) -> None:
    hub, chain = served
    port = sink_of(hub, "websocket").port
    trusting = ssl.create_default_context(cafile=str(chain))
    with connect(f"wss://127.0.0.1:{port}/v2/iex", ssl=trusting, proxy=None, open_timeout=WAIT_S) as client:
        assert json.loads(client.recv(WAIT_S)) == [{"T": "success", "msg": "connected"}]
        client.send(json.dumps({"action": "auth", "key": "any", "secret": TOKEN}))
        assert json.loads(client.recv(WAIT_S)) == [{"T": "success", "msg": "authenticated"}]
        client.send('{"action":"subscribe","bars":["SPY"]}')
        upstream.wait_subscribed({"SPY"})
    with pytest.raises((OSError, EOFError, WebSocketException)):
        connect(f"ws://127.0.0.1:{port}/v2/iex", proxy=None, open_timeout=WAIT_S)
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(f"wss://127.0.0.1:{port}/v2/iex", proxy=None, open_timeout=WAIT_S)


def test_health_and_metrics_speak_tls_when_that_is_asked_for(upstream: Upstream, clean_environment: Path) -> None:
    _, chain, key = write_certificate(clean_environment)
    environment = {
        **FREE_PORTS,
        "ALPACA_API_KEY": KEY,
        "ALPACA_SECRET_KEY": SECRET,
        "ALPACA_STREAM_URL": upstream.url,
        "ALPACA_URL": NOWHERE,
        "HUB_SINKS": "websocket",
        "HUB_HEALTH_TLS": "true",
    }
    observation = read_observation_settings(environment)
    with pytest.raises(ConfigError, match="HUB_HEALTH_TLS is on, but there is no certificate: set HUB_TLS_CERT and"):
        build_hub(build_settings(environment), environment, observation=observation)
    environment |= {"HUB_TLS_CERT": str(chain), "HUB_TLS_KEY": str(key)}
    hub = build_hub(build_settings(environment), environment, observation=observation)
    hub.start()
    try:
        health: Any = hub._health
        trusting = ssl.create_default_context(cafile=str(chain))
        for variable, path in (("STREAM_PROXY_HEALTH_PORT", "healthz"), ("STREAM_PROXY_METRICS_PORT", "metrics")):
            url = f"https://127.0.0.1:{health.ports[variable]}/{path}"
            with urllib.request.urlopen(url, context=trusting, timeout=WAIT_S) as answer:
                assert answer.status == 200
            with pytest.raises((OSError, http.client.HTTPException)):
                urllib.request.urlopen(url.replace("https", "http"), timeout=WAIT_S)
        credentials = grpc.ssl_channel_credentials(chain.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{health.ports['HEALTH_PORT']}", credentials) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            assert check(b"\n\x04live", timeout=WAIT_S) == b"\x08\x01"  # of the service `live`: SERVING
    finally:
        hub.stop()


def test_the_grpc_ports_speak_tls(served: tuple[HubService, Path]) -> None:
    hub, chain = served
    ports = (sink_of(hub, "grpc").port, sink_of(hub, "nats").api.port)
    methods = ("/cream.v1.StreamProxyService/GetConnectionStatus", "/stream.v0.StreamService/ListBarSubscriptions")
    kinds: tuple[Any, Any] = (
        (cream.GetConnectionStatusRequest, cream.GetConnectionStatusResponse),
        (stream.ListSubscriptionsRequest, stream.ListSubscriptionsResponse),
    )
    metadata = (("authorization", f"Bearer {TOKEN}"),)
    for port, method, (request, answer) in zip(ports, methods, kinds, strict=True):

        def ask(channel: grpc.Channel, method: str = method, request: Any = request, answer: Any = answer) -> Any:
            call = channel.unary_unary(
                method, request_serializer=request.SerializeToString, response_deserializer=answer.FromString
            )
            return call(request(), metadata=metadata, timeout=60)

        with grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(chain.read_bytes())) as channel:
            assert isinstance(ask(channel), answer)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as caught:
            ask(channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_rest_gateway_speaks_tls(served: tuple[HubService, Path]) -> None:
    hub, chain = served
    url = f"https://127.0.0.1:{sink_of(hub, 'nats').api.proxy_port}/v1/subscriptions/bars"
    trusting = ssl.create_default_context(cafile=str(chain))
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=WAIT_S, context=trusting) as answer:
        assert json.loads(answer.read()) == {"subscriptions": []}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url, timeout=WAIT_S, context=trusting)
    assert caught.value.code == 401
    caught.value.close()


def test_a_certificate_is_read_from_pem_files(tmp_path: Path) -> None:
    made, chain, key = write_certificate(tmp_path)
    found = read_certificate(chain, key)
    assert found is not None
    assert found[0] == made
    access = Access("127.0.0.1", tls=found[1], certificate=found[0])
    assert made.key.decode() not in repr((found[0], access))
    assert read_certificate(None, None) is None


@pytest.mark.parametrize("wrong", ["missing", "no PEM", "another key", "passphrase"])
def test_files_that_are_no_certificate_are_a_start_error_with_their_names(tmp_path: Path, wrong: str) -> None:
    _, chain, key = write_certificate(tmp_path)
    if wrong == "missing":
        key.unlink()
    elif wrong == "no PEM":
        key.write_bytes(b"nothing")
    elif wrong == "another key":
        key.write_bytes(make_certificate().key)
    else:
        from cryptography.hazmat.primitives import serialization

        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        key.write_bytes(
            loaded.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"word"),
            )
        )
    with pytest.raises(ConfigError, match="HUB_TLS_KEY") as caught:
        read_certificate(chain, key)
    assert str(key) in str(caught.value)


# --- ports and state directories


@pytest.mark.parametrize(
    ("sink", "variable"),
    [
        ("websocket", "PROXY_PORT"),
        ("grpc", "STREAM_PROXY_GRPC_PORT"),
        ("nats", "GRPC_PORT"),
        ("nats", "GRPC_PROXY_PORT"),
    ],
)
def test_a_port_in_use_is_a_start_error_with_its_variable(
    upstream: Upstream, clean_environment: Path, sink: str, variable: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environment = {
            **FREE_PORTS,
            "ALPACA_API_KEY": KEY,
            "ALPACA_SECRET_KEY": SECRET,
            "ALPACA_STREAM_URL": upstream.url,
            "ALPACA_URL": NOWHERE,
            "HUB_SINKS": sink,
            "ENABLE_GRPC": "true",
            "ENABLE_GRPC_PROXY": "true",
            "NATS_URL": "127.0.0.1:9",
            variable: port,
        }
        hub = build(environment)
        with pytest.raises(ConfigError) as caught:
            hub.start()
    text = str(caught.value)
    assert f"127.0.0.1:{port} ({variable}) cannot be opened" in text
    assert "\n" not in text


def test_a_state_directory_belongs_to_one_hub_at_a_time(tmp_path: Path) -> None:
    first, second = StateLock(tmp_path / "state"), StateLock(tmp_path / "state")
    first.acquire()
    first.acquire()
    with pytest.raises(LeaseHeldError, match=rf"state is in use by another hub, process {os.getpid()}: stop that one"):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    second.release()


def test_a_state_directory_that_cannot_be_made_is_a_start_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--state-dir"):
        StateLock(tmp_path / "file" / "state").acquire()


# --- the command


class Command:
    """`dry-work hub` as a process; its output is read as it comes."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *words: str) -> None:
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ALPACA", "HUB", "GOOGLE_CLOUD", "PUBSUB", "NATS", "REDIS", "OTEL", "LOG_"))
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dry_work", "hub", *words],
            cwd=folder,
            env={**clean, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout or ()), daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.output or self.process.poll() is not None, f"{text!r} is said", 60.0)
        assert text in self.output, self.output

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 90.0) -> int:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 90.0) -> int:
        try:
            return self.process.wait(timeout_s)
        finally:
            self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)
        self._reader.join(60)
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    commands: list[Command] = []

    def start(environment: Mapping[str, str], *words: str) -> Command:
        commands.append(Command(tmp_path, {"OTEL_ENABLED": "false", **environment}, *words))
        return commands[-1]

    yield start
    for command in commands:
        command.close()


def environment_of(upstream: Upstream, **more: str) -> dict[str, str]:
    return {
        **FREE_PORTS,
        "ALPACA_API_KEY": KEY,
        "ALPACA_SECRET_KEY": SECRET,
        "ALPACA_STREAM_URL": upstream.url,
        "ALPACA_URL": NOWHERE,
        **more,
    }


def test_the_init_step_creates_what_is_missing_and_changes_nothing_the_second_time(
    run: Callable[..., Command], nats: EmbeddedNats
) -> None:
    environment = {"NATS_URL": nats.url, "PREFIX": "desk", "NATS_KV_BUCKET": "own"}
    first = run(environment, "--init-nats")
    assert first.wait() == 0
    assert f"hub: created at NATS {nats.url}: " in first.output
    for name in (
        "nalpaca-action-stream-v0",
        "nalpaca-data-stream-v0",
        "nalpaca-orders-consumer-v0",
        "nalpaca-cancel-consumer-v0",
        "nalpaca-tradeupdater-consumer-v0",
        "nalpaca-datastream-stock-consumer-v0",
        "own",
    ):
        assert name in first.output
    second = run(environment, "--init-nats")
    assert second.wait() == 0
    assert second.output == f"hub: NATS {nats.url} has everything already, nothing was changed\n"


def test_the_init_step_without_nats_says_so_and_fails(run: Callable[..., Command]) -> None:
    command = run({"NATS_URL": "127.0.0.1:9", "NATS_USER": "u", "NATS_PASSWORD": "hidden-word"}, "--init-nats")
    assert command.wait() == 1
    assert "NATS at nats://127.0.0.1:9 (NATS_URL) is not usable" in command.output
    assert "Traceback" not in command.output
    assert "hidden-word" not in command.output


def test_a_second_hub_with_the_same_state_directory_is_refused(
    run: Callable[..., Command], upstream: Upstream, tmp_path: Path
) -> None:
    environment = environment_of(upstream, HUB_SINKS="websocket", HUB_STATE_DIR="state")
    with contextlib.ExitStack() as stack:
        lock = StateLock(tmp_path / "state")
        lock.acquire()
        stack.callback(lock.release)
        second = run(environment)
        assert second.wait() == 2
    assert f"state directory state is in use by another hub, process {os.getpid()}: stop that one" in second.output
    assert "Traceback" not in second.output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_first_signal_closes_clients_in_order(
    run: Callable[..., Command], upstream: Upstream, number: int, code: int
) -> None:
    port = find_free_port()
    command = run(environment_of(upstream, HUB_SINKS="websocket", PROXY_PORT=str(port)))
    wait_until(lambda: can_connect(port), "the port is open", 60.0)
    with connect(f"ws://127.0.0.1:{port}/v2/iex", proxy=None, open_timeout=WAIT_S) as client:
        client.send(json.dumps({"action": "auth", "key": "k", "secret": "s"}))
        client.send('{"action":"subscribe","bars":["SPY"]}')
        upstream.wait_subscribed({"SPY"})
        command.process.send_signal(number)
        frames = list(client)
        assert client.close_code == 1001
    assert frames
    assert command.wait() == code
    assert "Traceback" not in command.output


def run_undelivered(run: Callable[..., Command], upstream: Upstream, *, shutdown: str) -> Command:
    """Run a hub that has messages for a Pub/Sub that is gone."""
    pubsub = EmbeddedPubSub()
    pubsub.start()
    command = run(
        environment_of(
            upstream,
            HUB_SINKS="pubsub",
            HUB_SYMBOLS="SPY",
            GOOGLE_CLOUD_PROJECT="test-project",
            PUBSUB_EMULATOR_HOST=f"127.0.0.1:{pubsub.port}",
            SHUTDOWN_TIMEOUT=shutdown,
        )
    )
    try:
        upstream.wait_subscribed({"SPY"})
        command.wait_for("iex: connected")
    finally:
        pubsub.stop()
    upstream.send_slice(1, ["SPY"])
    command.wait_for("publishing failed")
    return command


def test_what_cannot_be_delivered_within_the_shutdown_time_is_said(
    run: Callable[..., Command], upstream: Upstream
) -> None:
    command = run_undelivered(run, upstream, shutdown="700ms")
    assert command.end() == 124
    assert "hub: not everything was done within SHUTDOWN_TIMEOUT (0.7 s)" in command.output
    assert "dropped 2" in command.output


def test_a_second_signal_ends_the_hub_at_once(run: Callable[..., Command], upstream: Upstream) -> None:
    command = run_undelivered(run, upstream, shutdown="10m")
    command.process.send_signal(signal.SIGTERM)
    wait_until(lambda: not upstream.open, "the hub has begun to stop", 30.0)
    assert command.end(signal.SIGINT) == 130
    assert "hub: ended at once by a second signal" in command.output


def test_dot_env_files_are_read_and_the_environment_wins(
    run: Callable[..., Command], upstream: Upstream, tmp_path: Path
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / ".env").write_text("PROXY_PORT=1\nHUB_SINKS=grpc\nALPACA_SECRET_KEY=file-secret-value\n")
    (tmp_path / ".env").write_text("HUB_SINKS=websocket\nHUB_TOKEN=file-token-value\nSHUTDOWN_TIMEOUT=7s\n")
    port = find_free_port()
    environment = environment_of(upstream, PROXY_PORT=str(port))
    del environment["ALPACA_SECRET_KEY"]
    command = run(environment)
    wait_until(lambda: can_connect(port), "the port of the environment is open", 60.0)
    assert command.end() == 0
    assert "shutdown_timeout_s" in command.output
    assert "websocket" in command.output
    for secret in (KEY, "file-secret-value", "file-token-value"):
        assert secret not in command.output


def test_an_order_under_way_is_finished_and_its_updates_are_told_before_the_hub_is_gone() -> None:
    async def check(stack: Stack) -> None:
        trader = await Trader.connect(stack)
        try:
            stack.set_fault(on="http", kind="latency", seconds=1.0, method="POST", path="/v2/orders", times=1)
            await trader.order("late", build_trade())
            await until(lambda: stack.sinks["a"]._queues["orders"].in_flight, "it is under way")
            stopping = asyncio.create_task(asyncio.to_thread(stack.hubs["a"].stop, 20.0))
            await until(lambda: stack.hubs["a"].is_stopping, "the hub stops")
            await trader.order("too-late", build_trade())
            assert await stopping
            assert [(await trader.wait_result("late"))["outcome"]] == ["accepted"]
            await until(lambda: ("new", "late") in trader.events(), "its update was published")
            assert trader.result("too-late") == []
            assert [order["client_order_id"] for order in stack.orders()] == ["late"]
            stack.start_hub("b")
            assert (await trader.wait_result("too-late"))["outcome"] == "accepted"  # it waited in NATS
        finally:
            await trader.close()

    for stack in serve_stack():
        stack.start_hub()
        asyncio.run(check(stack))


# --- secrets

SECRETS = {
    "ALPACA_API_KEY": "kid-f3b1c8",
    "ALPACA_SECRET_KEY": "sec-a90d17",
    "ALPACA_LIVE_API_KEY": "lid-77e2b4",
    "ALPACA_LIVE_SECRET_KEY": "lse-0c55d2",
    "HUB_TOKEN": "tok-9d1e6f",
    "NATS_USER": "natsuser",
    "NATS_PASSWORD": "npw-4416ab",
    "REDIS_PASSWORD": "rpw-be2290",
}
HIDDEN = [value for name, value in SECRETS.items() if name != "NATS_USER"]


@pytest.mark.parametrize("are_right", [True, False], ids=["right keys", "wrong keys"])
def test_no_credential_shows_in_any_output_of_a_whole_run(
    run: Callable[..., Command], tmp_path: Path, are_right: bool
) -> None:
    keys = {SECRETS[f"ALPACA{kind}_API_KEY"]: SECRETS[f"ALPACA{kind}_SECRET_KEY"] for kind in ("", "_LIVE")}
    known = keys if are_right else dict.fromkeys(keys, "another-secret")
    exchange = ExchangeServer(synthetic_day(["SPY"], seed=1), rules="alpaca", speed=1.0, consumers=0, keys=known)
    pubsub = EmbeddedPubSub()
    nats_server = EmbeddedNats(user=SECRETS["NATS_USER"], password=SECRETS["NATS_PASSWORD"] if are_right else "other")
    _, chain, key = write_certificate(tmp_path)
    told = ""
    with contextlib.ExitStack() as stack:
        for server in (exchange, pubsub, nats_server):
            server.start()
            stack.callback(server.close if isinstance(server, EmbeddedNats) else server.stop)
        websocket_port, health_port = find_free_port(), find_free_port()
        command = run(
            {
                **FREE_PORTS,
                **SECRETS,
                "PROXY_PORT": str(websocket_port),
                "STREAM_PROXY_HEALTH_PORT": str(health_port),
                "ALPACA_URL": exchange.url,
                "ALPACA_DATA_URL": exchange.url,
                "ALPACA_STREAM_URL": exchange.stream_url,
                "HUB_SINKS": ",".join(SINKS),
                "HUB_SYMBOLS": "SPY",
                "HUB_BIND_HOST": "0.0.0.0",
                "HUB_STATE_DIR": "state",
                "HUB_TLS_CERT": str(chain),
                "HUB_TLS_KEY": str(key),
                "GOOGLE_CLOUD_PROJECT": "test-project",
                "PUBSUB_EMULATOR_HOST": f"127.0.0.1:{pubsub.port}",
                "NATS_URL": nats_server.url,
                "REDIS_HOST": "127.0.0.1",
                "REDIS_PORT": "9",
                "ENABLE_ORDERS": "true",
                "ENABLE_CANCELER": "true",
                "ENABLE_TRADE_UPDATER": "true",
                "ENABLE_STOCK_STREAM": "true",
                "ENABLE_NEWS_STREAM": "true",
                "ENABLE_GRPC": "true",
                "ENABLE_GRPC_PROXY": "true",
                "NEWS_POLL_INTERVAL": "0.2",
                "LOG_LEVEL": "debug",
            }
        )
        trusting = ssl.create_default_context(cafile=str(chain))
        trusting.check_hostname = False
        wait_until(lambda: can_connect(websocket_port) or command.process.poll() is not None, "it serves", 60.0)
        if are_right:
            command.wait_for("orders.paper: connected")
            command.wait_for("orders.live: connected")
            command.wait_for("iex: connected")
        else:
            command.wait_for("refused")
        for given in (SECRETS["HUB_TOKEN"], "wrong"):
            with connect(
                f"wss://127.0.0.1:{websocket_port}/v2/iex", ssl=trusting, proxy=None, open_timeout=WAIT_S
            ) as client:
                told += str(client.recv(WAIT_S))
                client.send(json.dumps({"action": "auth", "key": "k", "secret": given}))
                told += str(client.recv(WAIT_S))
        for path in ("/health", "/readyz", "/metrics"):
            told += fetch(health_port, path)
        assert "authenticated" in told
        assert "auth failed" in told
        assert "alpaca_proxy_" in told
        assert command.end() == 0, command.output
    assert "configuration" in command.output
    kept = "".join(path.read_text(errors="replace") for path in (tmp_path / "state").rglob("*") if path.is_file())
    for value in HIDDEN:
        assert value not in command.output
        assert value not in told
        assert value not in kept
    assert chain.read_text().splitlines()[1] not in command.output
    assert key.read_text().splitlines()[1] not in command.output


def fetch(port: int, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()


def can_connect(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 30.0):
        return True
    return False
