"""Deliveries of the hub, by transport and number of clients, beside a naive broadcaster.

The upstream, the hub, the servers and the clients are processes of their own on one machine. So many items a second
come in, in frames of ten; each client has asked for a tenth of the symbols. What is told of a delivery's age is from
the moment its frame left the upstream to the client, of the oldest item of each frame. A hub is asked to stop after
each round and tells its counts: offered must be delivered + conflated + dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import msgspec
import psutil

from benchmarks.emulator import find_free_port
from benchmarks.hub_upstream import SYMBOLS
from benchmarks.table import Row, median
from dry_work.embedded.nats_server import EmbeddedNats, find_nats_server
from dry_work.embedded.valkey_server import EmbeddedValkey, find_valkey_server

RATE = 10_000
SHARE = 10  # of the 100 symbols
COUNTS = (1, 10, 100, 1_000)
GOAL = ("json", 100)  # transport and clients that the bars are for
GOAL_ROUNDS = 3
LIMIT_S = 60.0
_LONGEST_ROUND_S = 4.0
_COUNTS_LINE = re.compile(r"hub: (\w+): (\d+) events? offered, (\d+) delivered, (\d+) conflated, (\d+) dropped")
_SINKS = {"json": "websocket", "msgpack": "websocket", "grpc": "grpc", "nats": "nats", "redis": "redis"}
_NAMES = {
    "json": "WebSocket JSON",
    "msgpack": "WebSocket MessagePack",
    "grpc": "gRPC",
    "nats": "NATS",
    "redis": "Redis",
}


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Of one round."""

    delivered: float  # a second, as the clients counted
    server_cpu: float  # seconds of CPU a second: of the hub or the broadcaster
    clients_cpu: float
    p50_ms: float
    p99_ms: float
    lost: float  # share of what was offered

    @property
    def by_cpu(self) -> float:
        """Deliveries for a second of the server's CPU."""
        return self.delivered / self.server_cpu if self.server_cpu else 0.0


def measure(*, tiny: bool) -> list[Row]:
    """Return the rows of all transports that are installed."""
    _allow_many_files()
    counts = (3,) if tiny else COUNTS
    rate, seconds = (500, 0.3) if tiny else (RATE, _LONGEST_ROUND_S)
    rows: list[Row] = []
    for transport, sink in _SINKS.items():
        if not is_installed(sink):
            continue
        for count in counts:
            naive, found = [], []
            for _ in range(GOAL_ROUNDS if (transport, count) == GOAL else 1):  # in turn, for others use the machine too
                if transport == "json":
                    naive.append(run_naive(count, rate, seconds))
                found.append(run_hub(transport, count, rate, seconds))
            rows += build_rows(transport, count, rate, take_medians(found), take_medians(naive) if naive else None)
    rows += measure_stuck(2 if tiny else 100, rate, seconds, rounds=1 if tiny else 3)
    rows += measure_memory(20 if tiny else 1_000)
    return rows


def build_rows(transport: str, count: int, rate: int, found: Figures, naive: Figures | None) -> list[Row]:
    """Return the rows of one round."""
    what = f"hub, {_NAMES[transport]}, {rate:,} in, {count:,} clients"
    is_goal = (transport, count) == GOAL

    def compare(name: str) -> dict[str, Any]:
        if naive is None:
            return {}
        return {"other": float(getattr(naive, name)), "other_name": "naive"}

    return [
        Row(what=f"{what}: delivered", ours=found.delivered, unit="/s", higher_is_better=True, **compare("delivered")),
        Row(
            what="– for a second of the hub's CPU",
            ours=found.by_cpu,
            unit="/s",
            higher_is_better=True,
            bar="5×" if is_goal else "",
            **compare("by_cpu"),
        ),
        Row(what="– age, p50", ours=found.p50_ms, unit="ms", **compare("p50_ms")),
        Row(what="– age, p99", ours=found.p99_ms, unit="ms", bar="10 ms" if is_goal else "", **compare("p99_ms")),
        Row(what="– not delivered", ours=found.lost * 100, unit="%", bar="1 %" if is_goal else "", **_lost(naive)),
        Row(what="– CPU of the hub; of its clients the other", ours=found.server_cpu * 100, unit="%",
            other=found.clients_cpu * 100, other_name="its clients"),
    ]  # fmt: skip


def take_medians(rounds: Sequence[Figures]) -> Figures:
    """Return the median of each figure."""
    names = Figures.__struct_fields__
    return Figures(**{name: median([getattr(figures, name) for figures in rounds]) for name in names})


def _lost(naive: Figures | None) -> dict[str, Any]:
    return {} if naive is None else {"other": naive.lost * 100, "other_name": "naive"}


def measure_stuck(count: int, rate: int, seconds: float, *, rounds: int) -> list[Row]:
    """Return what a client that never reads costs the others."""
    alone, beside = [], []
    for _ in range(rounds):
        alone.append(run_hub("json", count, rate, seconds))
        beside.append(run_hub("json", count, rate, seconds, stuck=True))
    return [
        Row(
            what=f"hub, WebSocket JSON, {count:,} clients beside one that never reads: age, p99",
            ours=median([figures.p99_ms for figures in beside]),
            unit="ms",
            other=median([figures.p99_ms for figures in alone]),
            other_name="without it",
            bar="within 10 %",
        )
    ]


def measure_memory(count: int) -> list[Row]:
    """Return what idle clients cost in memory."""
    rows = []
    for transport in ("json", "grpc"):
        with run_upstream("t", 1) as upstream, run_server(_SINKS[transport], upstream) as (process, port, _):
            before = psutil.Process(process.pid).memory_info().rss
            with run_clients(transport, port, count, SHARE):
                after = psutil.Process(process.pid).memory_info().rss
        rows.append(
            Row(
                what=f"hub, {_NAMES[transport]}: memory with {count:,} idle clients",
                ours=after / 1e6,
                unit="MB",
                bar="200 MB" if transport == "json" else "",
            )
        )
        rows.append(Row(what="– for each client", ours=(after - before) / count / 1e3, unit="kB"))
    return rows


def is_installed(sink: str) -> bool:
    """Tell whether the packages of an interface are there."""
    if sink == "nats":
        return find_spec("nats") is not None and find_nats_server() is not None
    if sink == "redis":
        return find_spec("redis") is not None and find_valkey_server() is not None
    return find_spec("picows" if sink == "websocket" else "grpc") is not None


def run_naive(count: int, rate: int, seconds: float) -> Figures:
    """Measure the naive broadcaster."""
    with (
        run_upstream("t", rate) as upstream,
        _start("benchmarks.hub_naive", f"ws://127.0.0.1:{upstream}", str(count)) as process,
    ):
        return run_round("json", int(_read_line(process)), count, rate, seconds, process)


def run_hub(transport: str, count: int, rate: int, seconds: float, *, stuck: bool = False) -> Figures:
    """Measure the hub."""
    kind = "b" if transport == "nats" else "t"
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(run_upstream(kind, rate))
        process, port, clients_port = stack.enter_context(run_server(_SINKS[transport], upstream))
        if stuck:
            stack.enter_context(hold_stuck(port))
        found = run_round(transport, clients_port, count, rate, seconds, process)
        check_counts(process)
    return found


def run_round(
    transport: str, port: int, count: int, rate: int, seconds: float, server: subprocess.Popen[str]
) -> Figures:
    """Let the clients listen, and measure the server meanwhile."""
    watched = psutil.Process(server.pid)
    with run_clients(transport, port, count, SHARE) as clients:
        _wait_until_served(clients)
        time.sleep(min(1.0, seconds))  # buffers fill
        before = watched.cpu_times()
        _say(clients, "begin")
        began_s = time.monotonic()
        time.sleep(seconds)
        after = watched.cpu_times()
        _say(clients, "end")
        wall_s = time.monotonic() - began_s
        found = json.loads(_read_line(clients))
    delivered = found["delivered"] / found["seconds"]
    offered = rate * count * SHARE / 100
    return Figures(
        delivered=delivered,
        server_cpu=count_cpu(before, after) / wall_s,
        clients_cpu=found["cpu_s"] / found["seconds"],
        p50_ms=found["p50_ms"],
        p99_ms=found["p99_ms"],
        lost=max(0.0, 1 - delivered / offered),
    )


def count_cpu(before: Any, after: Any) -> float:
    """Return the seconds of CPU between two of a process's `cpu_times`: user and system.

    The system counts in ticks, so a short round may have used none; the rest of a subtraction of floats is not time.
    """
    return round((after.user - before.user) + (after.system - before.system), 6)


def check_counts(hub: subprocess.Popen[str]) -> None:
    """Stop the hub and check that it knows what became of every event.

    Raises:
        AssertionError: its counts do not add up.
    """
    hub.send_signal(signal.SIGTERM)
    assert hub.stdout is not None
    lines = [match for line in hub.stdout if (match := _COUNTS_LINE.match(line))]
    hub.wait(LIMIT_S)
    assert lines, "the hub did not tell its counts"
    for line in lines:
        offered, delivered, conflated, dropped = map(int, line.groups()[1:])
        assert offered == delivered + conflated + dropped, line.group()


def hold_stuck(port: int) -> socket.socket:
    """Subscribe everything over a socket that nobody reads."""
    client = socket.create_connection(("127.0.0.1", port))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sendall(
        b"GET /v2/iex HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    for message in ({"action": "auth", "key": "k", "secret": "s"}, {"action": "subscribe", "trades": ["*"]}):
        payload = json.dumps(message).encode()
        client.sendall(bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload)  # a mask of zeros changes nothing
    return client


@contextlib.contextmanager
def run_upstream(kind: str, rate: int) -> Iterator[int]:
    """Run the upstream and give its port."""
    with _start("benchmarks.hub_upstream", kind, str(rate)) as process:
        yield int(_read_line(process))


@contextlib.contextmanager
def run_server(sink: str, upstream: int) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """Run `dry-work hub` with one interface; give it, its port and the port its clients come to."""
    port = find_free_port()
    with contextlib.ExitStack() as stack:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("ALPACA_", "HUB_", "CREAM_"))},
            "ALPACA_API_KEY": "benchmark", "ALPACA_SECRET_KEY": "benchmark",
            "ALPACA_STREAM_URL": f"ws://127.0.0.1:{upstream}", "ALPACA_URL": "http://127.0.0.1:9",
            "PROXY_PORT": str(port), "STREAM_PROXY_GRPC_PORT": str(port), "LOG_LEVEL": "error", "OTEL_ENABLED": "false",
            "DISABLE_HEALTH": "true", "STREAM_PROXY_HEALTH_PORT": "0", "STREAM_PROXY_METRICS_PORT": "0",
        }  # fmt: skip
        clients_port = port
        if sink == "nats":
            clients_port = stack.enter_context(run_nats(environment))
        elif sink == "redis":
            clients_port = stack.enter_context(run_redis(environment))
        hub = stack.enter_context(_start("dry_work", "hub", "--sinks", sink, environment=environment))
        if sink in ("websocket", "grpc"):
            _wait_until_open(hub, port)
        if sink == "redis":
            register_all(clients_port)
        yield hub, port, clients_port


@contextlib.contextmanager
def run_nats(environment: dict[str, str]) -> Iterator[int]:
    """Run nats-server, and set up a hub that publishes all bars to it."""
    server = EmbeddedNats()
    try:
        server.start()
        environment.update(
            NATS_URL=f"{server.host}:{server.port}", ENABLE_STOCK_STREAM="true", STOCK_STREAM_SYMBOLS=",".join(SYMBOLS)
        )
        yield server.port
    finally:
        server.close()


@contextlib.contextmanager
def run_redis(environment: dict[str, str]) -> Iterator[int]:
    """Run valkey, and set up a hub that publishes to it."""
    server = EmbeddedValkey()
    try:
        server.start()
        environment.update(REDIS_HOST=server.host, REDIS_PORT=str(server.port), REDIS_STREAM_LENGTH="0")
        yield server.port
    finally:
        server.close()


def register_all(port: int) -> None:
    """Register all symbols over Redis, as bots do."""
    from dry_work.redis import CHANNELS, RedisPublisher

    publisher = RedisPublisher(host="127.0.0.1", port=port)
    end_s = time.monotonic() + LIMIT_S
    while not publisher.publish(CHANNELS.BROKER_REGISTRATION, {"action": "register", "symbols": list(SYMBOLS)}):
        if time.monotonic() > end_s:
            raise TimeoutError("the hub does not listen on Redis")
        time.sleep(0.05)


@contextlib.contextmanager
def run_clients(transport: str, port: int, count: int, share: int) -> Iterator[subprocess.Popen[str]]:
    """Run clients until all have subscribed."""
    with _start("benchmarks.hub_clients", transport, str(port), str(count), str(share)) as process:
        answer = _read_line(process)
        if answer != "ready":
            raise RuntimeError(f"the clients could not be opened: {answer!r}")
        yield process


@contextlib.contextmanager
def _start(module: str, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(  # noqa: S603 - the command is ours
        [sys.executable, "-m", module, *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise RuntimeError(f"{process.args!r} ended")
    return line


def _say(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()


def _wait_until_served(clients: subprocess.Popen[str]) -> None:
    end_s = time.monotonic() + LIMIT_S
    while True:
        _say(clients, "begin")
        time.sleep(0.2)
        _say(clients, "end")
        if json.loads(_read_line(clients))["delivered"]:
            return
        if time.monotonic() > end_s:
            raise TimeoutError("nothing came to the clients")


def _wait_until_open(process: subprocess.Popen[str], port: int) -> None:
    end_s = time.monotonic() + LIMIT_S
    while True:
        if process.poll() is not None or time.monotonic() > end_s:
            raise RuntimeError("the hub did not open its port")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)


def _allow_many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
