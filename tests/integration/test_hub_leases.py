"""What a client holds goes when the client is gone: a real process, killed or silent, at the hub's WebSocket."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from dry_work.hub.access import Access
from dry_work.hub.service import HubService
from dry_work.hub.sinks.websocket import WebSocketSink
from dry_work.hub.upstreams.connection import UpstreamTiming

from .alpaca_upstream import KEY, SECRET, Upstream, wait_until

CHILD = """
import json, sys, time
from websockets.sync.client import connect
socket = connect(sys.argv[1] + "/v2/iex", proxy=None)
socket.send(json.dumps({"action": "auth", "key": "k", "secret": "s"}))
socket.send(json.dumps({"action": "subscribe", "bars": sys.argv[2].split(",")}))
for message in socket:
    print(message, flush=True)
"""


class Stack:
    """A scripted upstream, a hub that serves WebSockets, and clients in processes of their own."""

    def __init__(self) -> None:
        self.upstream = Upstream()
        self.failures: list[BaseException] = []
        self.hub = HubService(
            self.upstream.url,
            key=KEY,
            secret=SECRET,
            sinks=[self._build_sink],
            rng=random.Random(1),
            timing=UpstreamTiming(ping_interval_s=0.5, idle_close_s=0.1),
            on_failure=self.failures.append,
        )
        self.hub.start()

    def _build_sink(self, hub: HubService) -> WebSocketSink:
        self.sink = WebSocketSink(hub, access=Access("127.0.0.1"), port=0)
        return self.sink

    @contextlib.contextmanager
    def run_client(self, *symbols: str) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-c", CHILD, f"ws://127.0.0.1:{self.sink.port}", ",".join(symbols)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True) as child:
            try:
                yield child
            finally:
                child.kill()

    def close(self) -> None:
        self.hub.stop()
        self.upstream.close()
        assert not self.failures
        wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("hub")], "no thread is left")


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    monkeypatch.setattr("dry_work.hub.sinks.websocket.PING_AFTER_S", 3.0)
    monkeypatch.setattr("dry_work.hub.sinks.websocket.PONG_WITHIN_S", 3.0)
    stack = Stack()
    yield stack
    stack.close()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
def test_the_symbols_of_a_client_that_is_gone_are_let_go_and_those_of_others_stay(
    stack: Stack, end: signal.Signals
) -> None:
    with stack.run_client("AAPL", "IBM") as gone, stack.run_client("IBM", "SPY"):
        stack.upstream.wait_subscribed({"AAPL", "IBM", "SPY"})
        gone.send_signal(end)
        stack.upstream.wait_subscribed({"IBM", "SPY"})
        assert stack.sink.status().clients == 1
    wait_until(lambda: not stack.upstream.open, "without clients the upstream is left")
    assert stack.hub.status().clients == 0
    status = stack.sink.status()
    assert status.offered == status.delivered + status.conflated + status.dropped + status.waiting
