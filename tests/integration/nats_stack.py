"""NATS, the simulated exchange, a scripted upstream of market data, and hubs between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import nats.errors
import requests
from nats.aio.client import Client

from dry_work.alpaca.venues import open_venue
from dry_work.embedded.nats_server import EmbeddedNats
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.hub.access import Access
from dry_work.hub.accounts import AccountSettings
from dry_work.hub.ports import HealthPart
from dry_work.hub.service import HubService
from dry_work.hub.sinks.nats import NatsSink
from dry_work.hub.sinks.nats_link import end_tasks
from dry_work.hub.sinks.nats_settings import NatsSettings, StreamSettings
from dry_work.hub.upstreams.connection import UpstreamTiming
from dry_work.proto.tradesvc.v0 import tradesvc_pb2 as pb
from tests.ports import find_free_port

from .alpaca_upstream import Upstream, wait_until

DEADLINE_S = 60.0
KEY, SECRET = "test-key-id", "test-secret-value"
SYMBOLS = ("SPY", "BRK.B", "BTC/USD")
RECORDING = synthetic_day(list(SYMBOLS), seed=1)
QUICK = UpstreamTiming(
    ping_interval_s=0.1, silence_timeout_s=30.0, slow_retry_s=0.3, first_wait_s=0.05, idle_close_s=0.2
)
ON = StreamSettings(is_enabled=True)


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition, which may be a coroutine function; return what it gives."""
    end_s = time.monotonic() + DEADLINE_S
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert time.monotonic() < end_s, f"not within {DEADLINE_S} s: {what}"
        await asyncio.sleep(0.01)


def build_trade(**fields: Any) -> bytes:
    """Return a limit order that rests, changed by `fields`."""
    values = {
        "symbol": "SPY",
        "qty": "1",
        "side": pb.SIDE_BUY,
        "order_type": pb.ORDER_TYPE_LIMIT,
        "tif": pb.TIME_IN_FORCE_GTC,
        "limit_price": "1",
    }
    return pb.Trade(
        **{name: value for name, value in {**values, **fields}.items() if value is not None}
    ).SerializeToString()


def build_market(**fields: Any) -> bytes:
    """Return a market order, changed by `fields`."""
    values = {"order_type": pb.ORDER_TYPE_MARKET, "tif": pb.TIME_IN_FORCE_DAY, "limit_price": None}
    return build_trade(**{**values, **fields})


class Stack:
    """All servers, and hubs by name."""

    def __init__(self) -> None:
        self.nats = EmbeddedNats(port=find_free_port())
        self.nats.start()
        self.exchange = ExchangeServer(RECORDING, rules="alpaca", speed=60.0, consumers=0)
        self.exchange.start()
        self.upstream = Upstream()
        self.hubs: dict[str, HubService] = {}
        self.sinks: dict[str, NatsSink] = {}
        self.failures: list[BaseException] = []

    def settings(self, **changes: Any) -> NatsSettings:
        values: dict[str, Any] = {
            "servers": (self.nats.url,),
            "takes_orders": True,
            "takes_cancels": True,
            "tells_updates": True,
            "stocks": ON,
            "news": ON,
            "retry_delay_s": 0.02,
            "processing_timeout_s": 10.0,
            "lease_s": 3.0,
            "check_interval_s": 0.1,
            "auth_retry_s": 0.1,
        }
        return NatsSettings(**{**values, **changes})

    def start_hub(
        self,
        name: str = "a",
        *,
        state_dir: Path | None = None,
        access: Access | None = None,
        health: Callable[[HubService], HealthPart] | None = None,
        **changes: Any,
    ) -> NatsSink:
        settings = self.settings(**changes)

        def build(hub: HubService) -> NatsSink:
            self.sinks[name] = NatsSink(hub, settings, access=access, state_dir=state_dir)
            return self.sinks[name]

        venue = open_venue(KEY, SECRET, url=self.exchange.url, timeout_s=5.0)
        hub = HubService(
            self.upstream.url,
            key=KEY,
            secret=SECRET,
            accounts=[AccountSettings(environment="paper", access=venue)],
            state_dir=state_dir,
            sinks=[build],
            rng=random.Random(name),
            timing=QUICK,
            health=health,
            on_failure=self.failures.append,
        )
        self.hubs[name] = hub
        hub.start()
        # Of an account that nothing is known of, the hub tells what happens from then on.
        wait_until(
            lambda: any(feed.feed.startswith("orders") and feed.state == "connected" for feed in hub.status().feeds),
            "it listens",
        )
        return self.sinks[name]

    async def connect(self) -> Client:
        """Return a plain client."""
        client = Client()
        try:
            await client.connect(self.nats.url, allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0)
        except BaseException:
            await client.close()
            raise
        return client

    def ask(self, method: str, path: str, **more: Any) -> Any:
        """Ask the exchange, past the hub."""
        headers = {"APCA-API-KEY-ID": KEY, "APCA-API-SECRET-KEY": SECRET}
        answer = requests.request(method, self.exchange.url + path, headers=headers, timeout=20, **more)
        assert answer.ok or answer.status_code == 404, answer.text
        return answer.json() if answer.content else None

    def orders(self) -> list[dict[str, Any]]:
        return list(self.ask("GET", "/v2/orders?status=all&limit=500"))

    def set_fault(self, **fault: Any) -> str:
        (found,) = self.ask("POST", "/dry-work/v1/faults", json=fault)
        return str(found["id"])

    def kill(self, name: str = "a") -> None:
        """End a hub as a crash does: nothing is finished, acknowledged or given up."""
        hub, sink = self.hubs.pop(name), self.sinks.pop(name)
        sink._is_stopping = True  # `stop` does nothing then

        async def die() -> None:
            tasks = [sink._serving, *(task for queue in sink._queues.values() for task in queue._tasks.values())]
            await end_tasks([task for task in tasks if task is not None])

        assert hub._loop is not None
        asyncio.run_coroutine_threadsafe(die(), hub._loop).result(DEADLINE_S)
        hub.stop(1.0)
        if sink._updates is not None:
            sink._updates.close()  # as the end of a process does

    def close(self) -> None:
        for hub in self.hubs.values():
            hub.stop()
        self.upstream.close()
        self.exchange.stop()
        self.nats.close()
        assert not self.failures
        end_s = time.monotonic() + DEADLINE_S
        while any(thread.name.startswith("hub") for thread in threading.enumerate()):
            assert time.monotonic() < end_s, [thread.name for thread in threading.enumerate()]
            time.sleep(0.01)


class Trader:
    """A client of NATS: sends actions, and keeps the results and updates that come."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.js = client.jetstream()
        self.results: list[dict[str, Any]] = []
        self.updates: list[pb.TradeUpdate] = []
        self.message_ids: list[str] = []  # of the updates

    @classmethod
    async def connect(cls, stack: Stack) -> Trader:
        trader = cls(await stack.connect())
        try:
            await trader.client.subscribe("nalpaca.data.v0.results.>", cb=trader._take_result)
            await trader.client.subscribe("nalpaca.data.v0.tradeupdates.*", cb=trader._take_update)
            await trader.client.flush()
        except BaseException:
            await trader.close()
            raise
        return trader

    async def _take_result(self, message: Any) -> None:
        self.results.append({**json.loads(message.data), "subject": message.subject})

    async def _take_update(self, message: Any) -> None:
        self.updates.append(pb.TradeUpdate.FromString(message.data))
        self.message_ids.append((message.headers or {}).get("Nats-Msg-Id", ""))

    async def order(self, name: str, data: bytes, *, once: bool = True) -> None:
        headers = {"Nats-Msg-Id": name} if once else None
        await self.js.publish(f"nalpaca.action.v0.orders.{name}", data, headers=headers)

    async def cancel(self, token: str) -> None:
        await self.js.publish(f"nalpaca.action.v0.cancel.{token}", b"")

    def result(self, token: str) -> list[dict[str, Any]]:
        return [result for result in self.results if token in (result.get("client_order_id"), result.get("id"))]

    async def wait_result(self, token: str, count: int = 1) -> dict[str, Any]:
        found = await until(lambda: len(self.result(token)) >= count and self.result(token), f"a result of {token}")
        return dict(found[count - 1])

    def events(self) -> list[tuple[str, str]]:
        return [(update.event, update.order.client_order_id) for update in self.updates]

    async def close(self) -> None:
        with contextlib.suppress(nats.errors.Error):
            await self.client.close()


def serve_stack() -> Iterator[Stack]:
    stack = Stack()
    try:
        yield stack
    finally:
        stack.close()
