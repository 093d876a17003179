"""Order updates through the hub: the simulated exchange upstream, alpaca-py and plain clients downstream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import OrderSide, TimeInForce
from alpaca.trading.requests import LimitOrderRequest
from alpaca.trading.stream import TradingStream
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from dry_work.alpaca.venues import open_venue
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.hub.access import Access
from dry_work.hub.accounts import AccountSettings
from dry_work.hub.events import HubEvent
from dry_work.hub.service import HubService
from dry_work.hub.sinks.websocket import WebSocketSink
from dry_work.hub.upstreams.connection import UpstreamTiming

from .alpaca_upstream import wait_until
from .bus_history import read_history

QUICK = UpstreamTiming(ping_interval_s=0.1, silence_timeout_s=30.0, slow_retry_s=0.3, first_wait_s=0.05)
KEY, SECRET = "KEY", "SECRET"
ORDERS = ("orders.paper", "orders", "*")


class Stack:
    """The exchange, a hub with an account there, and a client that trades behind the hub's back."""

    def __init__(self) -> None:
        self.exchange = ExchangeServer(synthetic_day(["SPY"], seed=1), rules="alpaca", speed=1.0, consumers=1)
        self.exchange.start()
        self.client = TradingClient(KEY, SECRET, url_override=self.exchange.url)
        self.failures: list[BaseException] = []
        self.hub: HubService | None = None
        self.sink: WebSocketSink
        self._count = 0

    def start(
        self,
        *,
        environment: str = "paper",
        state_dir: Path | None = None,
        timing: UpstreamTiming = QUICK,
        **settings: Any,
    ) -> Stack:
        def build(hub: HubService) -> WebSocketSink:
            self.sink = WebSocketSink(hub, access=Access("127.0.0.1"), port=0, environment=environment, **settings)
            return self.sink

        access = open_venue(KEY, SECRET, url=self.exchange.url)
        self.hub = HubService(
            self.exchange.stream_url,
            key=KEY,
            secret=SECRET,
            accounts=[AccountSettings(environment=environment, access=access)],
            state_dir=state_dir,
            sinks=[build],
            rng=random.Random(1),
            timing=timing,
            on_failure=self.failures.append,
        )
        self.hub.start()
        self.wait_connected()
        return self

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.sink.port}"

    def feed(self) -> Any:
        assert self.hub is not None
        return next(feed for feed in self.hub.status().feeds if feed.feed.startswith("orders"))

    def wait_connected(self) -> None:
        wait_until(lambda: self.feed().state == "connected", "the account's stream is connected")

    def told(self) -> list[tuple[str, str]]:
        """Return all updates that this hub has told: event and client order id."""
        return [(event.item["event"], event.item["order"]["client_order_id"]) for event in self.replay()]

    def replay(self, offset: int = 0) -> tuple[HubEvent, ...]:
        """Return the updates that this hub has told after an offset."""
        assert self.hub is not None
        return read_history(self.hub.bus, "orders.paper", [ORDERS], offset=offset)

    def submit(self, limit: float = 1.0) -> Any:
        self._count += 1
        request = LimitOrderRequest(
            symbol="SPY",
            qty=1,
            side=OrderSide.BUY,
            time_in_force=TimeInForce.GTC,
            limit_price=limit,
            client_order_id=f"order-{self._count}",
        )
        return self.client.submit_order(request)

    @contextlib.contextmanager
    def upstream_away(self) -> Iterator[None]:
        """Cut the account's stream with the next event, and refuse it until the end."""
        refused = self.set_fault(on="trades", kind="error", code=406, times=None)
        self.set_fault(on="trades", kind="reset")
        yield
        wait_until(lambda: self.feed().state != "connected", "the stream is cut")
        self._ask("DELETE", f"/dry-work/v1/faults/{refused}")
        self.wait_connected()

    def set_fault(self, **fault: Any) -> str:
        (found,) = self._ask("POST", "/dry-work/v1/faults", json=fault)
        return str(found["id"])

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        headers = {"APCA-API-KEY-ID": KEY, "APCA-API-SECRET-KEY": SECRET}
        answer = requests.request(method, self.exchange.url + path, headers=headers, timeout=20, **more)
        assert answer.ok, answer.text
        return answer.json() if answer.content else None

    def close(self) -> None:
        if self.hub is not None:
            self.hub.stop()
        self.client._session.close()
        self.exchange.stop()
        assert not self.failures
        wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("hub")], "no thread is left")


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack()
    yield stack
    stack.close()


async def receive(socket: ClientConnection) -> Any:
    async with asyncio.timeout(60.0):
        return json.loads(await socket.recv())


async def log_in(url: str, **more: Any) -> ClientConnection:
    """Return a client of the plain dialect."""
    socket = await connect(url, proxy=None)
    await socket.send(json.dumps({"action": "auth", "key": "k", "secret": "s", **more}))
    assert await receive(socket) == [{"T": "success", "msg": "authenticated"}]
    return socket


def told(message: dict[str, Any]) -> tuple[str, str]:
    assert message["stream"] == "trade_updates"
    return message["data"]["event"], message["data"]["order"]["client_order_id"]


@pytest.mark.parametrize("path", ["/trade-updates-paper", "/stream"])
def test_alpaca_py_hears_of_every_order_also_of_those_while_the_upstream_was_away(stack: Stack, path: str) -> None:
    stack.start()
    found: list[Any] = []

    async def handle(update: Any) -> None:
        found.append((str(update.event), update.order.client_order_id))

    stream = TradingStream("k", "s", url_override=stack.url + path)
    stream.subscribe_trade_updates(handle)
    thread = threading.Thread(target=stream.run, daemon=True)
    thread.start()
    wait_until(lambda: stack.sink.status().clients == 1, "the client is authenticated")
    wait_until(lambda: stack.hub is not None and stack.hub.bus.readers == 1, "it listens")
    first = stack.submit()
    wait_until(lambda: ("new", "order-1") in found, "the first order is told")
    with stack.upstream_away():
        second = stack.submit()
        stack.client.cancel_order_by_id(first.id)
    wait_until(lambda: ("new", "order-2") in found and ("canceled", "order-1") in found, "nothing is lost")
    stack.client.cancel_order_by_id(second.id)
    wait_until(lambda: ("canceled", "order-2") in found, "and on it goes")
    assert len(found) == len(set(found))
    stream.stop()
    stack.submit()  # wakes alpaca-py, which looks for `stop` after a message or five seconds later
    thread.join(60.0)


async def test_a_plain_client_gets_the_updates_as_they_came(stack: Stack) -> None:
    stack.start()
    socket = await log_in(f"{stack.url}/paper")
    direct = await connect(f"{stack.exchange.stream_url}/stream", proxy=None)
    await direct.send(json.dumps({"action": "auth", "key": KEY, "secret": SECRET}))
    await direct.send(json.dumps({"action": "listen", "data": {"streams": ["trade_updates"]}}))
    for _ in range(2):
        await receive(direct)
    await asyncio.to_thread(stack.submit)
    for _ in range(2):
        assert (await asyncio.wait_for(socket.recv(), 20)) == (await asyncio.wait_for(direct.recv(), 20)).decode()
    await socket.close()
    await direct.close()


async def test_each_dialect_has_its_answers(stack: Stack) -> None:
    stack.start()
    socket = await connect(f"{stack.url}/trade-updates-paper", proxy=None)
    listen = {"action": "listen", "data": {"streams": ["trade_updates", "others"]}}
    await socket.send(json.dumps(listen))
    assert await receive(socket) == {
        "stream": "authorization", "data": {"status": "unauthorized", "action": "listen"},
    }  # fmt: skip
    await socket.send(json.dumps({"action": "authenticate", "data": {"key_id": "k", "secret_key": "s"}}))
    assert (await receive(socket))["data"] == {"status": "authorized", "action": "authenticate"}
    for streams, answer in ((["trade_updates", "x"], ["trade_updates"]), ([], []), (["x"], [])):
        await socket.send(json.dumps({"action": "listen", "data": {"streams": streams}}).encode())
        assert await receive(socket) == {"stream": "listening", "data": {"streams": answer}}
    for bad in ("no json", '{"action":"dance"}', '{"action":"listen"}'):
        await socket.send(bad)
        assert (await receive(socket))[0]["code"] == 400
    await socket.close()
    socket = await connect(f"{stack.url}/stream", proxy=None)
    await socket.send(json.dumps({"action": "auth", "key": "k", "secret": "s"}))
    assert (await receive(socket))["data"] == {"status": "authorized", "action": "auth"}
    await socket.close()
    socket = await connect(f"{stack.url}/paper", proxy=None)
    await socket.send(json.dumps({"action": "auth", "key": 1, "secret": "s"}))
    assert await receive(socket) == [{"T": "error", "code": 402, "msg": "auth failed"}]
    with pytest.raises(ConnectionClosed):
        await receive(socket)


async def test_live_is_refused_where_there_is_only_paper(stack: Stack) -> None:
    stack.start()
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"{stack.url}/trade-updates-live", proxy=None)
    assert refused.value.response.status_code == 503
    assert b"no credentials for the live account" in refused.value.response.body


async def test_a_client_that_asks_for_it_gets_numbers_the_upstreams_state_and_what_it_missed(stack: Stack) -> None:
    stack.start()
    socket = await log_in(f"{stack.url}/paper?hub=1")
    order = await asyncio.to_thread(stack.submit)
    await receive(socket)
    first = await receive(socket)
    assert (told(first), first["seq"], first["offset"]) == (("new", "order-1"), 2, 2)
    with stack.upstream_away():
        await asyncio.to_thread(stack.client.cancel_order_by_id, order.id)
    found = []
    while not found or found[-1].get("stream") != "trade_updates":
        found.append(await receive(socket))
    assert [m["data"]["state"] for m in found if m["stream"] == "hub_status"][-1] == "connected"
    assert (told(found[-1]), found[-1]["seq"]) == (("canceled", "order-1"), 3)
    await socket.close()
    since = {"epoch": first["epoch"], "offset": first["offset"]}
    again = await log_in(f"{stack.url}/paper?hub=1", since=since)
    assert (await receive(again))["data"]["recovered"] is True
    assert told(await receive(again)) == ("canceled", "order-1")
    await again.close()


async def test_a_client_that_does_not_read_its_orders_is_disconnected_and_loses_none(stack: Stack) -> None:
    stack.start(order_capacity=2)
    stuck = await log_in(f"{stack.url}/paper?hub=1")
    assert stack.hub is not None
    events = 0

    def flood() -> None:
        nonlocal events
        data = {"event": "new", "order": {"id": "x", "symbol": "SPY", "pad": "x" * 500_000}}
        assert stack.hub is not None
        for _ in range(50):
            stack.hub.bus.publish("orders.paper", "orders", "SPY", data, ts_recv_ns=0, event_id=str(events))
            events += 1

    loop = stack.hub._loop
    assert loop is not None
    stuck.transport.pause_reading()
    loop.call_soon_threadsafe(flood)
    await asyncio.to_thread(wait_until, lambda: stack.sink.status().clients == 0, "it is disconnected")
    stuck.transport.abort()
    again = await log_in(f"{stack.url}/paper?hub=1", since={"epoch": stack.hub.epoch, "offset": 0})
    assert (await receive(again))["data"]["recovered"] is True
    assert [(await receive(again))["offset"] for _ in range(50)] == list(range(1, 51))
    await again.close()


def test_what_happened_while_the_hub_was_down_is_told_by_the_next_one(stack: Stack, tmp_path: Path) -> None:
    stack.start(state_dir=tmp_path)
    first = stack.submit()
    wait_until(lambda: ("new", "order-1") in stack.told(), "the order is told")
    assert stack.hub is not None
    stack.hub.stop()
    stack.client.cancel_order_by_id(first.id)
    stack.submit()
    stack.start(state_dir=tmp_path)
    missed = [("canceled", "order-1"), ("new", "order-2"), ("pending_new", "order-2")]
    wait_until(lambda: sorted(stack.told()) == missed, "what was missed is told, and nothing else")


def test_nothing_is_missed_on_an_account_that_had_no_order_before(stack: Stack, tmp_path: Path) -> None:
    stack.start(state_dir=tmp_path)
    wait_until(lambda: any(tmp_path.glob("orders.paper.json")), "the hub knows where the account stands")
    with stack.upstream_away():
        stack.submit()
    wait_until(lambda: ("new", "order-1") in stack.told(), "the first order of all is told")
    assert len(stack.told()) == len(set(stack.told()))


def test_nothing_is_missed_by_a_hub_that_was_stopped_before_there_was_any_order(stack: Stack, tmp_path: Path) -> None:
    stack.start(state_dir=tmp_path)
    wait_until(lambda: any(tmp_path.glob("orders.paper.json")), "the hub knows where the account stands")
    assert stack.hub is not None
    stack.hub.stop()
    stack.submit()
    stack.start(state_dir=tmp_path)
    wait_until(lambda: ("new", "order-1") in stack.told(), "the first order of all is told")


def test_what_ended_before_the_hub_knew_the_account_is_not_told(stack: Stack, tmp_path: Path) -> None:
    stack.set_fault(on="http", kind="status", status=404, path="/v2/events", times=None)
    stack.client.cancel_order_by_id(stack.submit().id)
    stack.start(state_dir=tmp_path)
    wait_until(lambda: any(tmp_path.glob("orders.paper.json")), "the hub knows where the account stands")
    with stack.upstream_away():
        stack.submit()
    wait_until(lambda: ("new", "order-2") in stack.told(), "what was missed is found")
    assert {name for _, name in stack.told()} == {"order-2"}


def test_without_a_history_of_events_orders_are_compared(stack: Stack) -> None:
    stack.start()
    stack.set_fault(on="http", kind="status", status=404, path="/v2/events", times=None)
    first = stack.submit()
    wait_until(lambda: ("new", "order-1") in stack.told(), "the order is told")
    before = len(stack.told())
    with stack.upstream_away():
        stack.client.cancel_order_by_id(first.id)
        second = stack.submit()
        stack.client.cancel_order_by_id(second.id)
    missed = [("canceled", "order-1"), ("canceled", "order-2"), ("new", "order-2")]
    wait_until(lambda: sorted(stack.told()[before:]) == missed, "what was missed is found")
    assert all(event.event_id.startswith("dw-") for event in stack.replay(before))
