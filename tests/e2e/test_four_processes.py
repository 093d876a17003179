"""Exchange, hub, Pub/Sub and agent as four processes give the same result as in one."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.pubsub_v1 import SubscriberClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from grpc import insecure_channel

from .processes import Program, wait_until

KEYS = {"ALPACA_API_KEY": "PKTEST", "ALPACA_SECRET_KEY": "not-a-secret", "GOOGLE_CLOUD_PROJECT": "four"}
Start = Callable[..., Program]


def list_subscriptions(endpoint: str) -> list[str]:
    transport = SubscriberGrpcTransport(channel=insecure_channel(endpoint), credentials=AnonymousCredentials())
    with SubscriberClient(transport=transport, client_options=ClientOptions()) as client:
        return [found.name for found in client.list_subscriptions(project="projects/four")]


class Stack:
    """Three services and the environment in which a run finds them."""

    def __init__(self, start: Start, *exchange: str) -> None:
        self.pubsub = start("pubsub", "--port", "0", "--project", "four")
        endpoint = self.pubsub.wait_for_line(r"PUBSUB_EMULATOR_HOST=(\S+)")[1]
        self.exchange = start("exchange", "--port", "0", "--symbols", "symbols.txt", "--rules", "backtrader", *exchange)
        match = self.exchange.wait_for_line(r"ALPACA_URL=(\S+) ALPACA_DATA_URL=(\S+) ALPACA_STREAM_URL=(\S+)")
        self.endpoint = endpoint
        self.env = {
            **KEYS,
            "PUBSUB_EMULATOR_HOST": endpoint,
            "ALPACA_URL": match[1],
            "ALPACA_DATA_URL": match[2],
            "ALPACA_STREAM_URL": match[3],
        }
        self.hub = start("hub", "--symbols", "symbols.txt", env=self.env)
        self.hub.wait_for_line("connected")


def test_four_processes_give_the_fills_of_one(start: Start, clean_environment: Path) -> None:
    (clean_environment / "symbols.txt").write_text("SPY\nIBM\nBTC/USD\n")
    stack = Stack(start, "--speed", "max")
    four = start("run", "--json", env={**stack.env, "AGENT_ID": "one-of-four"})
    found = four.result()
    alone = start("run", "--local", "--json").result()
    assert found["mode"] == "paper"
    assert alone["mode"] == "local"
    assert found["bars"] == alone["bars"]
    assert found["fills"]
    drop = ("client_order_id",)
    assert [without(fill, drop) for fill in found["fills"]] == [without(fill, drop) for fill in alone["fills"]]
    assert [without(order, drop) for order in found["orders"]] == [without(order, drop) for order in alone["orders"]]
    assert found["equity"] == alone["equity"]
    assert all(order["client_order_id"].startswith("dw-one-of-four-") for order in found["orders"])
    assert list_subscriptions(stack.endpoint) == []
    for service in (stack.hub, stack.exchange, stack.pubsub):
        service.send(signal.SIGTERM)
        assert service.wait() == 0, service.output


def without(row: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def test_sigterm_ends_a_run_in_order_and_kill_leaves_nothing_that_blocks(start: Start, clean_environment: Path) -> None:
    (clean_environment / "symbols.txt").write_text("SPY\nBTC/USD\n")
    # Slow enough to be in the middle of the day while the signals come.
    stack = Stack(start, "--speed", "60", "--consumers", "1")
    env = {**stack.env, "AGENT_ID": "steady"}
    killed = start("run", env=env)
    killed.wait_for_line(r" bars  \d+ orders")
    wait_until(lambda: len(list_subscriptions(stack.endpoint)) == 2, lambda: "no subscriptions")
    assert {name.rsplit("/", 1)[1] for name in list_subscriptions(stack.endpoint)} == {
        "agent-steady-market-data",
        "agent-steady-crypto-data",
    }
    second = start("run", env=env)
    assert second.wait() == 2
    assert "steady" in second.output
    assert "Traceback" not in second.output
    killed.send(signal.SIGKILL)
    killed.wait()
    after = start("run", env=env)
    after.wait_for_line(r" bars  \d+ orders")
    after.send(signal.SIGTERM)
    assert after.wait() == 0, after.output
    assert "stopped" in after.output
    assert list_subscriptions(stack.endpoint) == []


def test_ctrl_c_ends_a_run_with_130(start: Start, clean_environment: Path) -> None:
    (clean_environment / "symbols.txt").write_text("SPY\n")
    program = start("run", "--local", "--speed", "60")
    program.wait_for_line(r" bars  \d+ orders")
    program.send(signal.SIGINT)
    assert program.wait() == 130, program.output
    assert "Traceback" not in program.output


WATCHING = """
import backtrader as bt

class Watching(bt.Strategy):
    def notify_data(self, data, status, *args, **kwargs):
        print('status', data._getstatusname(status), flush=True)

    def next(self):
        print('next with', len(self.data), 'bars', flush=True)
"""


def test_a_run_that_joins_later_is_warmed_up_before_it_is_live(start: Start, clean_environment: Path) -> None:
    (clean_environment / "symbols.txt").write_text("SPY\n")
    (clean_environment / "watching.py").write_text(WATCHING)
    stack = Stack(start, "--speed", "600", "--consumers", "0")
    stack.exchange.wait_for_line(r"market running: slice ([2-9]\d|\d{3})")
    run = start("run", "--agent", "watching.py", "--warmup", "10", env=stack.env)
    found = run.wait_for_line(r"next with (\d+) bars")
    run.send(signal.SIGTERM)
    assert run.wait() == 0, run.output
    assert int(found[1]) == 11
    lines = [line for line in run.lines if line.startswith(("warm-up", "status", "next"))]
    assert lines[:4] == ["warm-up: 10 bars of history", "status DELAYED", "status LIVE", "next with 11 bars"]


KEEPING = """
import os
import json
import signal

import backtrader as bt


class Keeping(bt.Strategy):
    params = (("dies_at", 40),)

    def __init__(self):
        self.bars, self.starts = 0, 1

    def save_state(self):
        return {"bars": self.bars, "starts": self.starts}

    def load_state(self, state):
        self.bars, self.starts = state["bars"], state["starts"] + 1

    def next(self):
        self.bars += 1
        if self.bars % 5 == 1:
            self.buy(size=1)
        if self.bars == self.p.dies_at and self.starts == 1:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_strategy_keeps_survives_kill(start: Start, clean_environment: Path) -> None:
    (clean_environment / "symbols.txt").write_text("SPY\n")
    (clean_environment / "keeping.py").write_text(KEEPING)
    stack = Stack(start, "--speed", "max", "--consumers", "1")
    env = {**stack.env, "AGENT_ID": "keeper"}
    killed = start("run", "--agent", "keeping.py:Keeping", env=env)
    assert killed.wait() == -signal.SIGKILL
    path = clean_environment / ".dry-work" / "keeper" / "strategy.json"
    kept = json.loads(path.read_text())["state"]
    assert kept["starts"] == 1
    assert kept["bars"] == 39  # written with every slice
    after = start("run", "--agent", "keeping.py:Keeping", "--warmup", "0", env=env)
    assert after.wait() == 0, after.output
    assert "state: state of Keeping loaded" in after.output
    # The slice in which it died is delivered again: none of its orders had left.
    assert json.loads(path.read_text())["state"] == {"bars": 390, "starts": 2}
