"""Order updates of a sub-account of the Broker API through the hub: the simulated exchange, and a scripted server."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from dry_work.alpaca.venues import open_venue
from dry_work.exchange.identifiers import build_account_id
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.sub_accounts import build_name
from dry_work.exchange.synthetic import synthetic_day
from dry_work.hub.accounts import AccountSettings
from dry_work.hub.events import HubEvent
from dry_work.hub.service import HubService
from dry_work.hub.upstreams.connection import FeedStatus, UpstreamTiming

from .alpaca_upstream import wait_until
from .bus_history import read_history

QUICK = UpstreamTiming(open_timeout_s=30.0, silence_timeout_s=30.0, slow_retry_s=0.3, first_wait_s=0.05)
KEY, SECRET = "KEY", "SECRET"
OURS, OTHER = (build_account_id(build_name(KEY, number)) for number in (1, 2))
ORDERS = ("orders.paper", "orders", "*")


class Stack:
    """The exchange with two sub-accounts, a hub for the first, and a client that trades behind its back."""

    def __init__(self, *, heartbeat_s: float = 0.2) -> None:
        self.exchange = ExchangeServer(
            synthetic_day(["SPY"], seed=1), rules="alpaca", speed=1.0, consumers=1, accounts=2, heartbeat_s=heartbeat_s
        )
        self.exchange.start()
        self.failures: list[BaseException] = []
        self.states: list[str] = []
        self.hub: HubService | None = None

    def start(self, *, state_dir: Path | None = None, secret: str = SECRET, timing: UpstreamTiming = QUICK) -> None:
        access = open_venue(KEY, secret, url=self.exchange.url, account_id=OURS)
        self.hub = HubService(
            self.exchange.stream_url,
            key=KEY,
            secret=SECRET,
            accounts=[AccountSettings(environment="paper", access=access)],
            state_dir=state_dir,
            rng=random.Random(1),
            timing=timing,
            on_feed=lambda status: self.states.append(str(status.state)),
            on_failure=self.failures.append,
        )
        self.hub.start()

    def feed(self) -> FeedStatus:
        assert self.hub is not None
        return next(feed for feed in self.hub.status().feeds if feed.feed == "orders.paper")

    def wait_connected(self) -> None:
        wait_until(lambda: self.feed().state == "connected", "the stream is connected")
        assert self.hub is not None
        relay = self.hub._order_connections["orders.paper"].relay
        wait_until(lambda: relay._waiting is None, "it has caught up")

    def told(self) -> list[tuple[str, str]]:
        """Return all updates that this hub has told: event and client order id."""
        return [(event.item["event"], event.item["order"]["client_order_id"]) for event in self.replay()]

    def replay(self) -> tuple[HubEvent, ...]:
        assert self.hub is not None
        return read_history(self.hub.bus, "orders.paper", [ORDERS])

    def submit(self, name: str, account_id: str = OURS) -> str:
        order = {"symbol": "SPY", "qty": "1", "side": "buy", "type": "limit", "time_in_force": "gtc"}
        body = {**order, "limit_price": "1", "client_order_id": name}
        return str(self.ask("POST", f"/v1/trading/accounts/{account_id}/orders", json=body)["id"])

    def cancel(self, order_id: str) -> None:
        self.ask("DELETE", f"/v1/trading/accounts/{OURS}/orders/{order_id}")

    def set_fault(self, **fault: Any) -> str:
        headers = {"APCA-API-KEY-ID": KEY, "APCA-API-SECRET-KEY": SECRET}
        (found,) = self.ask("POST", "/dry-work/v1/faults", json=fault, headers=headers, auth=None)
        return str(found["id"])

    def ask(self, method: str, path: str, **more: Any) -> Any:
        more = {"auth": (KEY, SECRET), **more}
        answer = requests.request(method, self.exchange.url + path, timeout=20, **more)
        assert answer.ok, answer.text
        return answer.json() if answer.content else None

    def close(self) -> None:
        if self.hub is not None:
            self.hub.stop()
        self.exchange.stop()
        assert not self.failures
        wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("hub")], "no thread is left")


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack()
    yield stack
    stack.close()


def test_updates_of_our_sub_account_are_told_as_trade_updates_and_those_of_others_are_not(stack: Stack) -> None:
    stack.start()
    stack.wait_connected()
    stack.submit("theirs", OTHER)
    first = stack.submit("ours")
    stack.cancel(first)
    wait_until(lambda: ("canceled", "ours") in stack.told(), "both updates")
    assert {name for _, name in stack.told()} == {"ours"}
    for event in stack.replay():
        raw = json.loads(event.raw)
        assert raw["stream"] == "trade_updates"
        assert raw["data"]["event_id"] == event.event_id
        assert raw["data"]["event"] == event.item["event"]
    assert stack.states == ["connecting", "authenticating", "connected"]
    assert stack.feed().items["canceled"] == 1


def test_a_quiet_stream_with_heartbeats_is_kept(stack: Stack) -> None:
    timing = UpstreamTiming(silence_timeout_s=3.0, first_wait_s=0.05)
    stack.start(timing=timing)
    stack.wait_connected()
    quiet_s = time.monotonic() + 4.0
    wait_until(lambda: time.monotonic() > quiet_s, "more than the time-out")
    assert (stack.feed().reconnects, stack.feed().state) == (0, "connected")


def test_a_silent_stream_is_left_and_nothing_is_lost() -> None:
    stack = Stack(heartbeat_s=60.0)
    try:
        stack.start(timing=UpstreamTiming(silence_timeout_s=0.3, first_wait_s=0.05))
        wait_until(lambda: stack.feed().reconnects >= 1, "the silence is seen")
        names = [f"order-{number}" for number in range(5)]
        for name in names:
            stack.submit(name)
        wait_until(lambda: {("new", name) for name in names} <= set(stack.told()), "nothing is lost")
        assert len(stack.told()) == len(set(stack.told()))
    finally:
        stack.close()


def test_what_came_while_the_stream_was_away_is_told_once_with_the_venues_ids(stack: Stack) -> None:
    stack.start()
    stack.wait_connected()
    first = stack.submit("first")
    wait_until(lambda: ("new", "first") in stack.told(), "the order is told")
    refused = stack.set_fault(on="trades", kind="error", code=500, times=None)
    stack.set_fault(on="trades", kind="reset")
    second = stack.submit("second")
    wait_until(lambda: stack.feed().state != "connected", "the stream is cut")
    stack.cancel(first)
    stack.ask(
        "DELETE", f"/dry-work/v1/faults/{refused}", headers={"APCA-API-KEY-ID": KEY, "APCA-API-SECRET-KEY": SECRET}
    )
    stack.cancel(second)
    wanted = {("canceled", "first"), ("new", "second"), ("canceled", "second")}
    wait_until(lambda: wanted <= set(stack.told()), "nothing is lost")
    assert len(stack.told()) == len(set(stack.told()))
    assert not any(event.event_id.startswith("dw-") for event in stack.replay())


def test_what_came_while_the_hub_was_down_is_told_by_the_next_one(stack: Stack, tmp_path: Path) -> None:
    stack.start(state_dir=tmp_path)
    stack.wait_connected()
    first = stack.submit("first")
    wait_until(lambda: ("new", "first") in stack.told(), "the order is told")
    assert stack.hub is not None
    stack.hub.stop()
    stack.cancel(first)
    stack.submit("second")
    stack.start(state_dir=tmp_path)
    wait_until(lambda: {("canceled", "first"), ("new", "second")} <= set(stack.told()), "what was missed is told")
    assert ("new", "first") not in stack.told()


def test_where_the_venue_does_not_take_our_place_orders_are_compared(stack: Stack) -> None:
    stack.start()
    stack.wait_connected()
    first = stack.submit("first")
    wait_until(lambda: ("new", "first") in stack.told(), "the order is told")
    stack.set_fault(on="http", kind="status", status=422, path="/v2/events")
    stack.set_fault(on="trades", kind="reset")
    second = stack.submit("second")
    stack.cancel(first)
    wait_until(lambda: {("canceled", "first"), ("new", "second")} <= set(stack.told()), "what was missed is found")
    stack.wait_connected()
    stack.cancel(second)
    wait_until(lambda: ("canceled", "second") in stack.told(), "and on it goes")
    assert len(stack.told()) == len(set(stack.told()))


def test_refused_credentials_are_an_error_that_says_what_to_do(stack: Stack) -> None:
    fault = stack.set_fault(on="trades", kind="error", code=402, times=None)
    stack.start()
    wait_until(lambda: stack.feed().state == "error", "the feed is in error")
    assert "HTTP 401" in stack.feed().error
    assert "unset ALPACA_ACCOUNT_ID" in stack.feed().error
    assert SECRET not in stack.feed().error
    stack.ask("DELETE", f"/dry-work/v1/faults/{fault}", headers={"APCA-API-KEY-ID": KEY, "APCA-API-SECRET-KEY": SECRET})
    stack.wait_connected()
    stack.submit("first")
    wait_until(lambda: ("new", "first") in stack.told(), "and then all is well")
