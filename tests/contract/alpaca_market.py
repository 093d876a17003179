"""What the tests with alpaca-py share: a market that is moved by hand, and streams on threads of their own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
import websockets
from alpaca.data.models import Bar as AlpacaBar

from dry_work.exchange.server import ExchangeServer

DEADLINE_S = 60.0
KEY, SECRET = "PKTEST", "secret"


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited in vain until {what}"
        time.sleep(0.005)


class Market:
    """Plays a lock-step exchange by hand: a session that takes everything, and reports on request."""

    def __init__(self, server: ExchangeServer) -> None:
        self.server = server
        self.number = 0
        self.session = requests.Session()
        self.session.headers.update({"APCA-API-KEY-ID": KEY, "APCA-API-SECRET-KEY": SECRET})
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="market reader")
        self._thread.start()
        # /v2/sip, so that the sessions of the test have /v2/iex for themselves.
        self._readers = [self._run(self._connect(path)) for path in ("/v2/sip", "/v1beta3/crypto/us-1")]

    def step(self) -> list[dict[str, Any]]:
        """Move the market by one slice; return its bars."""
        if self.number == 0:
            body = {"consumer": "test", "symbols": list(self.server.recording.symbols)}
            self.session.post(f"{self.server.url}/dry-work/v1/consumers", json=body).raise_for_status()
        else:
            path = f"{self.server.url}/dry-work/v1/slices/{self.number}/done"
            self.session.post(path, json={"consumer": "test", "orders": 0}).raise_for_status()
        self.number += 1
        return [bar for reader in self._readers for bar in self._run(self._receive(reader))]

    def close(self) -> None:
        for reader in self._readers:
            self._run(reader.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()
        self.session.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_S)

    async def _connect(self, path: str) -> websockets.ClientConnection:
        reader = await websockets.connect(self.server.stream_url + path, proxy=None)
        assert json.loads(await reader.recv()) == [{"T": "success", "msg": "connected", "watermarks": True}]
        await reader.send(json.dumps({"action": "auth", "key": KEY, "secret": SECRET}))
        assert json.loads(await reader.recv()) == [{"T": "success", "msg": "authenticated"}]
        await reader.send(json.dumps({"action": "subscribe", "bars": ["*"], "watermarks": ["*"]}))
        await reader.recv()
        return reader

    async def _receive(self, reader: websockets.ClientConnection) -> list[dict[str, Any]]:
        bars: list[dict[str, Any]] = []
        while True:
            for item in json.loads(await reader.recv()):
                if item["T"] == "w":
                    assert item["slice"] == self.number
                    return bars
                bars.append(item)


@contextmanager
def run_streams(server: ExchangeServer) -> Iterator[Callable[[Any], None]]:
    """Run streams of alpaca-py, each on a thread of its own as their `run` wants it."""
    running: list[tuple[Any, threading.Thread]] = []

    def run(stream: Any) -> None:
        thread = threading.Thread(target=stream.run, name="alpaca-py stream")
        running.append((stream, thread))
        thread.start()
        wait_until(lambda: stream._loop is not None, "the stream's loop runs")

    yield run
    for stream, _ in running:
        stream.stop()
    server.stop()  # an idle stream looks at its stop flag only when its connection ends, or after 5 s
    for _, thread in running:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def subscribe_bars(stream: Any, *symbols: str) -> list[AlpacaBar]:
    """Return the list that the stream's bars of these symbols will be in."""
    bars: list[AlpacaBar] = []

    async def take(bar: AlpacaBar) -> None:
        bars.append(bar)

    stream.subscribe_bars(take, *symbols)
    return bars
