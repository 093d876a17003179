"""The programs of the page about other languages print bars of a hub, where their languages are installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from dry_work.embedded.nats_server import EmbeddedNats, find_nats_server
from dry_work.embedded.valkey_server import EmbeddedValkey, find_valkey_server
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from tests.ports import find_free_port

from .reader import Block, Reader, read_blocks

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "languages.md"
DEADLINE_S = 90.0
BAR = r"bar SPY 2024-06-11T1\d:\d\d:00\S* \d+"
# The variable of each port that the page names.
PORTS = {
    "8099": "PROXY_PORT",
    "50052": "STREAM_PROXY_GRPC_PORT",
    "8082": "STREAM_PROXY_HEALTH_PORT",
    "8080": "GRPC_PROXY_PORT",
}
OTHERS = ("STREAM_PROXY_METRICS_PORT", "HEALTH_PORT", "GRPC_PORT")

pytestmark = [
    pytest.mark.timeout(600),  # against a hang, not against a machine under load
    pytest.mark.skipif(
        find_nats_server() is None or find_valkey_server() is None, reason="nats-server and valkey-server are needed"
    ),
]


class Hub(msgspec.Struct, frozen=True):
    """A hub with all interfaces: what to write in place of the page's ports."""

    replaced: dict[str, str]
    log: Path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    with ExitStack() as stack:
        exchange = ExchangeServer(synthetic_day(["SPY"]), rules="alpaca", speed=30.0)
        stack.callback(exchange.stop)
        exchange.start()
        nats, valkey = EmbeddedNats(), EmbeddedValkey()
        stack.callback(nats.close)
        nats.start()
        stack.callback(valkey.close)
        valkey.start()
        ports = {name: str(find_free_port()) for name in (*PORTS.values(), *OTHERS)}
        environment = {
            **{
                name: value for name, value in os.environ.items() if not name.startswith(("ALPACA_", "HUB_", "STREAM_"))
            },
            **ports,
            "ALPACA_URL": exchange.url,
            "ALPACA_DATA_URL": exchange.url,
            "ALPACA_STREAM_URL": exchange.stream_url,
            "ALPACA_API_KEY": "any",
            "ALPACA_SECRET_KEY": "any",
            "ENABLE_STOCK_STREAM": "true",
            "ENABLE_GRPC_PROXY": "true",
            "OTEL_ENABLED": "false",
            "NATS_URL": nats.url,
            "REDIS_PORT": str(valkey.port),
        }
        log = folder / "hub.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "dry_work", "hub", "--sinks", "websocket,grpc,nats,redis"],
                cwd=folder,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        stack.callback(end, process)
        wait_until_healthy(process, ports["STREAM_PROXY_HEALTH_PORT"], log)
        found = {port: ports[name] for port, name in PORTS.items()}
        found |= {"4222": nats.url.rpartition(":")[2], "6379": str(valkey.port)}
        yield Hub({rf"(?<=:){port}\b": number for port, number in found.items()}, log)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until_healthy(process: subprocess.Popen[bytes], port: str, log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz?all=1", timeout=5):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.2)


def find_block(language: str) -> Block:
    (block,) = (block for block in read_blocks(PAGE) if block.language == language)
    return block


def wait_for_bar(command: list[str], folder: Path, log: Path) -> str:
    """Run a program until it prints a bar; return that line."""
    program = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert program.stdout is not None
    watchdog = threading.Timer(DEADLINE_S, program.kill)
    watchdog.start()
    try:
        lines = []
        for line in program.stdout:
            lines.append(line)
            if line.startswith("bar "):
                return line
        raise AssertionError(f"no bar:\n{''.join(lines)}\n{log.read_text()}")
    finally:
        watchdog.cancel()
        program.kill()
        program.stdout.close()
        program.wait()


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("jq") is None, reason="curl and jq are needed")
def test_the_commands_with_curl_answer_as_shown(hub: Hub, tmp_path: Path) -> None:
    blocks = [block for block in read_blocks(PAGE) if block.language in ("sh", "text") and not block.mark]
    page = tmp_path / "page.md"
    page.write_text("".join(f"```{block.language}\n{block.text}```\n" for block in blocks))
    assert Reader(tmp_path, replaced=hub.replaced).follow(page) == (1, 1)


def test_the_javascript_program_prints_bars(hub: Hub, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is needed")
    major = int(
        subprocess.run([node, "-p", "process.versions.node.split('.')[0]"], capture_output=True, text=True).stdout
    )
    if major < 20:
        pytest.skip(f"Node {major} was found, 20 or newer is needed")
    Reader(tmp_path, replaced=hub.replaced).write(find_block("javascript"))
    command = [node, *(["--experimental-websocket"] if major < 22 else []), "bars.mjs"]
    assert re.match(BAR, wait_for_bar(command, tmp_path, hub.log))


def test_the_go_program_prints_bars(hub: Hub, tmp_path: Path) -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is needed")
    Reader(tmp_path, replaced=hub.replaced).write(find_block("go"))
    cache = subprocess.run([go, "env", "GOMODCACHE"], capture_output=True, text=True, timeout=60).stdout.strip()
    # Nothing is fetched: what was once is taken.
    local = {
        "GOPROXY": f"file://{cache}/cache/download",
        "GOSUMDB": "off",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=mod",
    }
    environment = {**os.environ, **local}
    for command in (
        ["mod", "init", "example.com/bars"],
        ["get", "github.com/nats-io/nats.go"],
        ["build", "-o", "bars", "."],
    ):
        done = subprocess.run(
            [go, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180
        )
        if done.returncode and command[0] == "get":
            pytest.skip(f"nats.go is not among the modules of this machine: {done.stderr.strip()[-200:]}")
        assert done.returncode == 0, done.stderr
    assert re.match(BAR, wait_for_bar(["./bars"], tmp_path, hub.log))


def test_the_rust_program_has_rusts_form(tmp_path: Path) -> None:
    rustfmt = shutil.which("rustfmt")
    if rustfmt is None:
        pytest.skip("rustfmt is needed")
    Reader(tmp_path).write(find_block("rust"))
    done = subprocess.run(
        [rustfmt, "--edition", "2024", "main.rs"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_csharp_program_names_is_in_the_proto_files() -> None:
    from dry_work.proto.cream.v1 import stream_proxy_pb2

    service = stream_proxy_pb2.DESCRIPTOR.services_by_name["StreamProxyService"]
    call = service.methods_by_name["StreamBars"]
    text = find_block("csharp").text
    assert f"new {call.input_type.name}" in text
    assert [field.name for field in call.input_type.fields] == ["symbols"]
    assert "client.StreamBars(" in text
    named = {name.lower() for name in re.findall(r"response\.Bar\.(\w+)", text)}
    assert named <= {field.name for field in call.output_type.fields_by_name["bar"].message_type.fields}
