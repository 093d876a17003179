"""Parts of the stack die and come back while an agent trades in lock-step; its result is that of a run in peace."""

from __future__ import annotations

import random
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from dry_work.embedded import stack as stack_module
from dry_work.embedded.pubsub import EmbeddedPubSub
from dry_work.embedded.stack import PROJECT, LocalStack
from dry_work.engine.result import RunResult
from dry_work.engine.runner import Runner
from dry_work.hub.service import HubService
from dry_work.settings import CRYPTO_TOPIC, MARKET_TOPIC, RunSettings

from .processes import wait_until

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
            pubsub_endpoint=self.pubsub.target,
            market_topic=MARKET_TOPIC,
            crypto_topic=CRYPTO_TOPIC,
        )
        self._hub.start()

    def restart_pubsub(self) -> None:
        port = self.pubsub.port
        self.pubsub.stop()  # with everything that was in it
        topics = [f"projects/{PROJECT}/topics/{name}" for name in (MARKET_TOPIC, CRYPTO_TOPIC)]
        self.pubsub = EmbeddedPubSub(port=port, topics=topics)
        self.pubsub.start()


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
