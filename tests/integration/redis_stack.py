"""Redis, the simulated exchange, a scripted upstream of market data, and hubs between; and programs that listen."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis
import requests

from dry_work.alpaca.venues import open_venue
from dry_work.embedded.valkey_server import EmbeddedValkey
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.hub.accounts import AccountSettings
from dry_work.hub.service import HubService
from dry_work.hub.sinks.redis import RedisSink
from dry_work.hub.sinks.redis_settings import RedisSettings
from dry_work.hub.upstreams.connection import UpstreamTiming
from tests.ports import find_free_port

from .alpaca_upstream import Upstream

DEADLINE_S = 60.0
KEY, SECRET = "test-key-id", "test-secret-value"
SYMBOLS = ("SPY", "BTC/USD")
RECORDING = synthetic_day(list(SYMBOLS), seed=1)
QUICK = UpstreamTiming(
    ping_interval_s=0.1, silence_timeout_s=30.0, slow_retry_s=0.3, first_wait_s=0.05, idle_close_s=0.2
)
TIME = "2024-01-02T14:30:00.123456789Z"


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition; return what it gives."""
    end_s = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < end_s, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.005)
    return found


class Listener:
    """A program that subscribes with redis-py, and keeps what comes."""

    def __init__(self, port: int, *channels: str, patterns: tuple[str, ...] = ()) -> None:
        self._client = redis.Redis(port=port)
        self._pubsub = self._client.pubsub()
        if channels:
            self._pubsub.subscribe(*channels)
        if patterns:
            self._pubsub.psubscribe(*patterns)
        self._left = len(channels) + len(patterns)
        self.messages: list[tuple[str, Any]] = []
        self._is_closed = False
        self._thread = threading.Thread(target=self._listen, name="listener")
        self._thread.start()
        until(lambda: self._left == 0, "it listens")

    def _listen(self) -> None:
        while not self._is_closed:
            try:
                message = self._pubsub.get_message(timeout=0.05)
            except (redis.ConnectionError, OSError, ValueError):  # closed, or the server is away: try on
                time.sleep(0.02)
                continue
            if message is None:
                continue
            if message["type"].endswith("subscribe"):
                self._left -= 1
            elif message["type"].endswith("message"):
                self.messages.append((message["channel"].decode(), json.loads(message["data"])))

    def on(self, channel: str) -> list[Any]:
        """Return the messages of a channel."""
        return [message for name, message in list(self.messages) if name == channel]

    def events(self, *kinds: str) -> list[Any]:
        """Return the lines of broker:logs of these kinds."""
        return [line for line in self.on("broker:logs") if line["event"] in kinds]

    def close(self) -> None:
        self._is_closed = True
        self._thread.join(DEADLINE_S)
        self._pubsub.close()
        self._client.close()


class Stack:
    """All servers, and a hub."""

    def __init__(self) -> None:
        self.redis = EmbeddedValkey(port=find_free_port())
        self.redis.start()
        self.upstream = Upstream()
        self._exchange: ExchangeServer | None = None
        self.hub: HubService | None = None
        self.failures: list[BaseException] = []
        self._listeners: list[Listener] = []
        self._clients: list[Any] = []

    @property
    def exchange(self) -> ExchangeServer:
        if self._exchange is None:
            self._exchange = ExchangeServer(RECORDING, rules="alpaca", speed=60.0, consumers=0)
            self._exchange.start()
        return self._exchange

    def start_hub(
        self,
        *,
        environments: tuple[str, ...] = (),
        state_dir: Path | None = None,
        is_working: bool = True,
        is_listening: bool = True,
        **changes: Any,
    ) -> RedisSink:
        values: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.redis.port,
            "lease_s": 60.0,
            "check_interval_s": 0.05,
            "first_wait_s": 0.02,
            "longest_wait_s": 0.1,
        }
        settings = RedisSettings(**{**values, **changes})

        def build(hub: HubService) -> RedisSink:
            self.sink = RedisSink(hub, settings, state_dir=state_dir)
            return self.sink

        accounts = [
            AccountSettings(
                environment=environment,
                access=open_venue(f"{environment}-key", SECRET, url=self.exchange.url, timeout_s=5.0),
            )
            for environment in environments
        ]
        self.hub = HubService(
            self.upstream.url,
            key=KEY,
            secret=SECRET,
            accounts=accounts,
            state_dir=state_dir,
            sinks=[build],
            rng=random.Random(1),
            timing=QUICK,
            on_failure=self.failures.append,
        )
        self.hub.start()
        if is_working:
            until(lambda: self.sink.status().is_ready, "Redis is connected")
        if environments and is_listening:
            until(lambda: self.orders_connected() == len(environments), "it listens to order updates")
        return self.sink

    def orders_connected(self) -> int:
        assert self.hub is not None
        feeds = self.hub.status().feeds
        return sum(feed.feed.startswith("orders") and feed.state == "connected" for feed in feeds)

    def stop_hub(self) -> None:
        if self.hub is not None:
            self.hub.stop()
            self.hub = None

    def kill_hub(self) -> None:
        """End the hub as a crash does: nothing is told, flushed or let go."""
        hub, sink = self.hub, self.sink
        assert hub is not None
        sink._is_stopping = True  # `stop` does nothing then
        assert sink._serving is not None
        assert hub._loop is not None
        hub._loop.call_soon_threadsafe(sink._serving.cancel)
        until(sink._serving.done, "the connections are gone")
        self.stop_hub()
        for orders in sink.orders.values():
            orders.close()  # as the end of a process does

    def listen(self, *channels: str, patterns: tuple[str, ...] = ()) -> Listener:
        listener = Listener(self.redis.port, *channels, patterns=patterns)
        self._listeners.append(listener)
        return listener

    def client(self) -> Any:
        client = redis.Redis(port=self.redis.port, decode_responses=True)
        self._clients.append(client)
        return client

    def send(self, message: Any, channel: str = "broker:registration") -> int:
        """Publish a registration; return how many have heard it."""
        text = message if isinstance(message, str | bytes) else json.dumps(message)
        with redis.Redis(port=self.redis.port) as client:
            return int(client.publish(channel, text))

    def wanted(self) -> set[tuple[str, str, str]]:
        """Return what the hub wants of its upstreams."""
        assert self.hub is not None
        return set(self.hub._interest.wanted)

    def wait_subscribed(self, symbol: str, path: str = "/v2/iex", channel: str = "trades") -> None:
        """Wait until the hub has asked an upstream for a symbol."""
        until(
            lambda: any(
                symbol in message.get(channel, ())
                for session in self.upstream.open
                for message in session.messages
                if session.path == path and message["action"] == "subscribe"
            ),
            f"{channel} of {symbol} are subscribed",
        )

    def trade(self, symbol: str, price: float, path: str = "/v2/iex") -> None:
        """Send a trade from upstream, once it is asked for."""
        self.wait_subscribed(symbol, path)
        self.upstream.send([{"T": "t", "S": symbol, "p": price, "s": 100, "t": TIME, "i": 1, "x": "V"}], path)

    def order(self, environment: str, **fields: Any) -> dict[str, Any]:
        """Place an order at the exchange, past the hub; return it."""
        values = {"symbol": "SPY", "qty": "1", "side": "buy", "type": "market", "time_in_force": "day", **fields}
        return dict(self.ask(environment, "POST", "/v2/orders", json=values))

    def ask(self, environment: str, method: str, path: str, **more: Any) -> Any:
        headers = {"APCA-API-KEY-ID": f"{environment}-key", "APCA-API-SECRET-KEY": SECRET}
        answer = requests.request(method, self.exchange.url + path, headers=headers, timeout=20, **more)
        assert answer.ok, answer.text
        return answer.json() if answer.content else None

    def close(self) -> None:
        self.stop_hub()
        for listener in self._listeners:
            listener.close()
        for client in self._clients:
            client.close()
        self.upstream.close()
        if self._exchange is not None:
            self._exchange.stop()
        self.redis.close()
        assert not self.failures
        until(lambda: not any(thread.name.startswith("hub") for thread in threading.enumerate()), "its threads end")


class CommandLine:
    """`redis-cli subscribe <channel>` as it is on the wire, where that program is not installed."""

    def __init__(self, port: int, channel: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        self._file = self._socket.makefile("rwb")
        self._file.write(f"*2\r\n$9\r\nsubscribe\r\n${len(channel)}\r\n{channel}\r\n".encode())
        self._file.flush()
        assert self.read() == ["subscribe", channel, "1"]

    def read(self) -> list[str]:
        """Return the next push, its parts as they would be printed."""
        count = int(self._file.readline()[1:])
        parts = []
        for _ in range(count):
            line = self._file.readline().strip()
            if line[:1] == b"$":
                line = b"$" + self._file.read(int(line[1:]) + 2)[:-2]
            parts.append(line[1:].decode())
        return parts

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def serve_stack() -> Iterator[Stack]:
    stack = Stack()
    try:
        yield stack
    finally:
        stack.close()
