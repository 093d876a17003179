"""`dry-work hub` with several interfaces, as a process, at the simulated exchange."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest
from websockets.sync.client import connect

from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.proto.cream.v1 import stream_proxy_pb2 as cream
from tests.ports import find_free_port

from .alpaca_upstream import wait_until


def test_the_command_serves_websocket_and_grpc_until_sigterm(tmp_path: Path) -> None:
    exchange = ExchangeServer(synthetic_day(["SPY"], seed=1), rules="alpaca", speed=1.0, consumers=1)
    exchange.start()
    websocket_port, grpc_port = find_free_port(), find_free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("ALPACA", "HUB"))},
        "ALPACA_API_KEY": "hub-key",
        "ALPACA_SECRET_KEY": "hub-secret-value",
        "ALPACA_URL": exchange.url,
        "ALPACA_STREAM_URL": exchange.stream_url,
        "PROXY_PORT": str(websocket_port),
        "STREAM_PROXY_GRPC_PORT": str(grpc_port),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "dry_work", "hub", "--sinks", "websocket,grpc", "--state-dir", "state"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        wait_until(lambda: any("orders.paper: connected" in line for line in lines), "the hub is connected", 60.0)
        with connect(f"ws://127.0.0.1:{websocket_port}/v2/iex", proxy=None) as socket:
            assert json.loads(socket.recv(60)) == [{"T": "success", "msg": "connected"}]
            socket.send('{"action":"auth","key":"k","secret":"s"}')
            assert json.loads(socket.recv(60)) == [{"T": "success", "msg": "authenticated"}]
            socket.send('{"action":"subscribe","bars":["SPY"]}')
            assert json.loads(socket.recv(60))[0]["bars"] == ["SPY"]
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            call = channel.unary_unary(
                "/cream.v1.StreamProxyService/GetConnectionStatus",
                request_serializer=cream.GetConnectionStatusRequest.SerializeToString,
                response_deserializer=cream.GetConnectionStatusResponse.FromString,
            )
            status = call(cream.GetConnectionStatusRequest(), timeout=60).status
            assert len(status.feeds) == 3
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        reader.join(60)
        process.stdout.close()
        exchange.stop()
    output = "".join(lines)
    assert code == 0, output
    assert re.search(r"hub: websocket: \d+ events? offered", output)
    assert "hub-secret-value" not in output


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"HUB_BIND_HOST": "0.0.0.0"}, "set HUB_TOKEN"),
        ({"STREAM_PROXY_GRPC_PORT": "x"}, "STREAM_PROXY_GRPC_PORT='x'"),
    ],
)
def test_what_is_set_wrong_ends_the_start_with_its_name(tmp_path: Path, variables: dict[str, str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dry_work", "hub", "--sinks", "grpc"],
        cwd=tmp_path,
        env={**os.environ, "ALPACA_API_KEY": "k", "ALPACA_SECRET_KEY": "s", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr
