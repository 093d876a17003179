"""Parts of the stack die and come back while an agent trades in lock-step; its result is that of a run in peace."""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from dry_work.clock import MINUTE_NS
from dry_work.embedded import stack as stack_module
from dry_work.embedded.links import PROJECT, PubSubLink
from dry_work.embedded.pubsub import EmbeddedPubSub
from dry_work.embedded.stack import LocalStack
from dry_work.engine.result import RunResult
from dry_work.engine.runner import Runner
from dry_work.exchange.synthetic import synthetic_day
from dry_work.hub.service import HubService
from dry_work.settings import CRYPTO_TOPIC, MARKET_TOPIC, RunSettings
from dry_work.wire.pubsub import encode_time
from tests.ports import find_free_port

from .processes import Program, Service, wait_until

SYMBOLS = ("SPY", "BTC/USD")
AGENT = """
import agents.sma_cross as base

class Watched(base.SmaCross):
    statuses = []
    slices = 0

    def next(self):
        type(self).slices += 1
        super().next()

    def notify_data(self, data, status, *args, **kwargs):
        type(self).statuses.append(data._getstatusname(status))
"""


class ShakyStack(LocalStack):
    """A local stack whose hub and Pub/Sub server can be replaced by fresh ones on the same ports."""

    latest: ShakyStack

    def start(self) -> None:
        ShakyStack.latest = self
        self._put_pubsub(find_free_port())
        super().start()

    def restart_hub(self) -> None:
        assert self._hub is not None
        self._hub.stop()
        self._hub = HubService(
            self.exchange.stream_url,
            key="LOCAL",
            secret="local",
            project=PROJECT,
            symbols=SYMBOLS,
            pubsub_endpoint=self.link.pubsub_target,
            market_topic=MARKET_TOPIC,
            crypto_topic=CRYPTO_TOPIC,
        )
        self._hub.start()

    def restart_pubsub(self) -> None:
        assert isinstance(self.link, PubSubLink)
        self.link._server.stop()  # with everything that was in it
        self._put_pubsub(self.link._server.port)
        self.link._server.start()

    def _put_pubsub(self, port: int) -> None:
        assert isinstance(self.link, PubSubLink)
        topics = [f"projects/{PROJECT}/topics/{name}" for name in (MARKET_TOPIC, CRYPTO_TOPIC)]
        self.link._server = EmbeddedPubSub(port=port, topics=topics)


def run(folder: Path, **changes: Any) -> RunResult:
    settings = RunSettings(
        symbols=SYMBOLS, agent=str(folder / "watched.py"), params={}, mode="local", cash=Decimal(100_000), **changes
    )
    return Runner(settings, tell=lambda line: None).run()


def watched() -> Any:
    """Return the strategy of the run at hand, None before it is loaded."""
    return getattr(sys.modules.get("dry_work_agent_watched"), "Watched", None)


@pytest.mark.slow
def test_hub_and_pubsub_restarted_at_random_lose_and_double_nothing(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clean_environment / "watched.py").write_text(AGENT)
    peaceful = run(clean_environment)
    del sys.modules["dry_work_agent_watched"]
    monkeypatch.setattr(stack_module, "LocalStack", ShakyStack)
    rng = random.Random(20131007)
    moments = sorted(rng.sample(range(20, 370), 6))
    done: list[str] = []
    ended = threading.Event()

    def shake() -> None:
        for moment in moments:
            wait_until(
                lambda moment=moment: ended.is_set() or (watched() is not None and watched().slices >= moment),  # type: ignore[misc]
                lambda: f"wanted {moments}, done {done}",
            )
            if ended.is_set():
                return
            part = rng.choice(["hub", "pubsub"]) if len(done) > 1 else ["hub", "pubsub"][len(done)]
            (ShakyStack.latest.restart_hub if part == "hub" else ShakyStack.latest.restart_pubsub)()
            done.append(part)

    shaker = threading.Thread(target=shake, daemon=True)
    shaker.start()
    try:
        shaken = run(clean_environment)
    finally:
        ended.set()
        shaker.join(60.0)
    assert len(done) == len(moments)
    assert {"hub", "pubsub"} <= set(done)
    assert shaken.bars == peaceful.bars
    assert shaken.orders == peaceful.orders
    assert shaken.fills == peaceful.fills
    assert shaken.equity == peaceful.equity
    statuses = watched().statuses
    assert statuses.count("DISCONNECTED") >= 1
    assert statuses[-1] == "LIVE"


BUSY = """
import backtrader as bt


class Busy(bt.Strategy):
    '''Orders at market and at a limit, canceled after some bars, on every symbol.'''

    def __init__(self):
        self.resting = {}

    def notify_data(self, data, status, *args, **kwargs):
        print('status', data._getstatusname(status), flush=True)

    def notify_order(self, order):
        if not order.alive():
            self.resting = {data: kept for data, kept in self.resting.items() if kept.ref != order.ref}

    def prenext(self):
        self.next()

    def next(self):
        for rank, data in enumerate(self.datas):
            at = len(data)
            if not at:
                continue
            size = 0.01 if '/' in data._name else 3
            if at % 5 == rank:
                (self.buy if at % 2 else self.sell)(data=data, size=size)
            if at % 7 == 3 and data not in self.resting:
                self.resting[data] = self.buy(
                    data=data, size=size, exectype=bt.Order.Limit, price=data.close[0] * 0.999
                )
            if at % 7 == 0 and data in self.resting:
                self.cancel(self.resting[data])
"""
KEYS = {"ALPACA_API_KEY": "PKTEST", "ALPACA_SECRET_KEY": "not-a-secret", "GOOGLE_CLOUD_PROJECT": "four"}
SEEDS = [int(text) for text in os.environ.get("DRY_WORK_CHAOS_SEEDS", "").split(",") if text]
RECOVERY_S = 240.0  # the longest waits between two tries add up to this after several outages
_SHORT_SEED = 20131009
_MINUTES = 390 if SEEDS else 150


def write_market(folder: Path) -> None:
    """Write the bars that both runs are to have."""
    (folder / "symbols.txt").write_text("SPY\nIBM\nBTC/USD\n")
    rows = ["symbol,timestamp,open,high,low,close,volume"]
    for end_ns, bars in synthetic_day(("SPY", "IBM", "BTC/USD"), minutes=_MINUTES).slices():
        begin = encode_time(end_ns - MINUTE_NS)
        rows += [f"{bar.symbol},{begin},{bar.open},{bar.high},{bar.low},{bar.close},{bar.volume}" for bar in bars]
    (folder / "market.csv").write_text("\n".join(rows) + "\n")


class ShakyProcesses:
    """Pub/Sub, exchange and hub as processes that can be killed; the exchange keeps its state in a folder."""

    def __init__(self, start: Callable[..., Program]) -> None:
        # The topics are there from the start: what a hub makes is gone with the server, and comes back only with its
        # next message to that topic.
        self.pubsub = Service(
            start, "pubsub", "--project", "four", "--topic", MARKET_TOPIC, "--topic", CRYPTO_TOPIC,
            ready=r"PUBSUB_EMULATOR_HOST=(?P<host>[^:]+:(?P<port>\d+))",
        )  # fmt: skip
        self.exchange = Service(
            start, "exchange", "--data", "market.csv", "--rules", "backtrader", "--speed", "max", "--state-dir",
            "exchange", ready=r"ALPACA_URL=http://127.0.0.1:(?P<port>\d+)",
        )  # fmt: skip
        self.url = f"http://127.0.0.1:{self.exchange.port}"
        self.env = {
            **KEYS,
            "PUBSUB_EMULATOR_HOST": f"127.0.0.1:{self.pubsub.port}",
            "ALPACA_URL": self.url,
            "ALPACA_DATA_URL": self.url,
            "ALPACA_STREAM_URL": f"ws://127.0.0.1:{self.exchange.port}",
        }
        self.hub = Service(start, "hub", "--symbols", "symbols.txt", ready="connected", env=self.env)
        self.services = {"pubsub": self.pubsub, "exchange": self.exchange, "hub": self.hub}

    def slice(self) -> int:
        """Return the number of the open slice."""
        return int(self.ask("/dry-work/v1/session")["slice"])

    def orders(self) -> list[dict[str, Any]]:
        """Return all orders that the exchange has, the newest first."""
        found: list[dict[str, Any]] = []
        while True:
            until = f"&until={found[-1]['submitted_at']}" if found else ""
            known = {order["id"] for order in found}
            page = [order for order in self.ask(f"/v2/orders?status=all&limit=500{until}") if order["id"] not in known]
            if not page:
                return found
            found += page

    def ask(self, path: str) -> Any:
        headers = {"APCA-API-KEY-ID": KEYS["ALPACA_API_KEY"], "APCA-API-SECRET-KEY": KEYS["ALPACA_SECRET_KEY"]}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=60.0) as answer:
            return json.loads(answer.read())


def shake(stack: ShakyProcesses, agent: Program, rng: random.Random, kills: list[tuple[int, str, float]]) -> None:
    """Kill each part when the market is in its slice, and start it again after some seconds."""
    for moment, name, away_s in kills:
        wait_until(
            lambda moment=moment: stack.slice() >= moment,  # type: ignore[misc]
            lambda: f"{kills}\n{agent.output}",
            deadline_s=RECOVERY_S,
        )
        stack.services[name].kill()
        # An outage is time: nothing could be waited for that tells of its end.
        time.sleep(away_s * rng.uniform(0.5, 1.0))
        stack.services[name].start()


@pytest.mark.slow
@pytest.mark.timeout(2_400 if SEEDS else 900)
@pytest.mark.parametrize("seed", SEEDS or [_SHORT_SEED])
def test_parts_killed_at_random_lose_and_double_nothing(
    start: Callable[..., Program], clean_environment: Path, seed: int
) -> None:
    """Pub/Sub server, hub and exchange get SIGKILL in random slices while an agent trades in lock-step.

    `DRY_WORK_CHAOS_SEEDS=1,2,3` runs a longer form for each of these seeds: a dozen kills, outages of up to 12 s.
    """
    write_market(clean_environment)
    (clean_environment / "busy.py").write_text(BUSY)
    rng = random.Random(seed)
    names = ["exchange", "pubsub", "hub"] * (4 if SEEDS else 1) + ["exchange"]
    rng.shuffle(names)
    longest_s = 12.0 if SEEDS else 0.3
    moments = sorted(rng.sample(range(10, _MINUTES - 20), len(names)))
    kills = [(moment, name, longest_s) for moment, name in zip(moments, names, strict=True)]
    stack = ShakyProcesses(start)
    agent = start("run", "--agent", "busy.py", "--json", env={**stack.env, "AGENT_ID": "shaken"})
    undisturbed = start("run", "--local", "--agent", "busy.py", "--data", "market.csv", "--json")
    shake(stack, agent, rng, kills)
    shaken, peaceful = agent.result(RECOVERY_S), undisturbed.result(RECOVERY_S)

    def strip(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{name: value for name, value in row.items() if name != "client_order_id"} for row in rows]

    assert shaken["bars"] == peaceful["bars"]
    assert strip(shaken["orders"]) == strip(peaceful["orders"])
    assert strip(shaken["fills"]) == strip(peaceful["fills"])
    assert shaken["equity"] == peaceful["equity"]
    assert len(shaken["fills"]) > _MINUTES // 4
    ids = [order["client_order_id"] for order in stack.orders()]
    assert sorted(ids) == sorted(order["client_order_id"] for order in shaken["orders"])
    # The agent tells of what it can see: streams that ended, and a hub whose messages come under a new epoch.
    assert agent.output.count("stream='trade updates'") >= names.count("exchange"), agent.output
    assert agent.output.count("status DISCONNECTED") >= names.count("pubsub")
    if "hub" in names:
        assert "the publisher was started again" in agent.output
