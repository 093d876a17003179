"""How complete a run's bars are, as others see it: in its metrics, and in `dry-work status` by its heartbeat."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from dry_work.clock import SystemClock
from dry_work.embedded.links import PROJECT
from dry_work.embedded.stack import LocalStack
from dry_work.engine.health import read_health
from dry_work.engine.live import LiveCerebro
from dry_work.engine.run_market import describe_data
from dry_work.engine.state import AgentState
from dry_work.exchange.synthetic import synthetic_day
from dry_work.feeds.base import LiveFeed
from dry_work.market.messages import TradingStatus
from dry_work.settings import RunSettings
from dry_work.wakeup import Wakeup
from tests.e2e.processes import Program, wait_until
from tests.unit.engine.sources import ListSource, make_bar, slices_of

STRATEGY = """
import backtrader as bt

class Quiet(bt.Strategy):
    def next(self):
        pass
"""


@pytest.fixture
def stack() -> Iterator[LocalStack]:
    found = LocalStack(synthetic_day(["BTC/USD", "ETH/USD"]), speed=60.0, cash=Decimal(100_000))
    found.start()
    # The exchange's calendar loads with the first question, during which it answers nobody else.
    keys = {"APCA-API-KEY-ID": "PKTEST", "APCA-API-SECRET-KEY": "not-a-secret"}
    request = urllib.request.Request(f"{found.exchange.url}/v2/clock", headers=keys)
    urllib.request.urlopen(request, timeout=60).close()
    yield found
    found.stop()


def test_a_run_shows_how_complete_its_bars_are_in_metrics_and_status(
    clean_environment: Path, stack: LocalStack
) -> None:
    (clean_environment / "symbols.txt").write_text("BTC/USD\nETH/USD\n")
    (clean_environment / "quiet.py").write_text(STRATEGY)
    environment = {
        "ALPACA_API_KEY": "PKTEST",
        "ALPACA_SECRET_KEY": "not-a-secret",
        "ALPACA_URL": stack.exchange.url,
        "GOOGLE_CLOUD_PROJECT": PROJECT,
        "PUBSUB_EMULATOR_HOST": stack.link.pubsub_target or "",
        "AGENT_ID": "quiet",
        "DISABLE_METRICS": "false",
        "METRICS_PORT": "0",
    }
    program = Program("run", "--agent", "quiet.py", "--warmup", "0", "--plain", cwd=clean_environment, env=environment)
    with contextlib.closing(program):
        address = program.wait_for_line(r"metrics: (http://\S+/metrics)")[1]
        values: dict[str, str] = {}

        def look() -> bool:
            assert program.process.poll() is None, program.output
            with urllib.request.urlopen(address, timeout=30) as answer:
                lines = answer.read().decode().splitlines()
            values.update(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
            return float(values['dry_work_bars{arrival="arrived"}']) > 0

        wait_until(look, lambda: f"no bars: {values}\n{program.output}")
        assert float(values['dry_work_bars{arrival="expected"}']) >= float(values['dry_work_bars{arrival="arrived"}'])
        assert 0 < float(values["dry_work_complete_ratio"]) <= 1
        assert values["dry_work_silent_symbols"] == values["dry_work_exchange_halted_symbols"] == "0"

        state_dir = clean_environment / ".dry-work" / "quiet"

        def has_told() -> bool:  # with the second heartbeat
            found = read_health(state_dir, now_ns=SystemClock().time_ns()).data
            return found is not None and found.connected and found.bars.expected > 0

        wait_until(has_told, lambda: program.output)
        shown = run_status(clean_environment, environment, "--json")
        data = json.loads(shown)["agent"]["data"]
        assert data["connected"] is True
        assert data["bars"]["expected"] > 0
        assert data["market_time"].startswith("2024-06-11T")
        assert " expected bars" in run_status(clean_environment, environment)


def run_status(folder: Path, environment: dict[str, str], *args: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ALPACA", "PUBSUB"))}
    return subprocess.run(
        [sys.executable, "-m", "dry_work", "status", "quiet", "--no-venue", *args],
        cwd=folder, env={**inherited, **environment}, text=True, check=True, capture_output=True, timeout=90,
    ).stdout  # fmt: skip


def test_the_heartbeat_tells_of_a_halt_and_one_of_a_local_run_tells_nothing(tmp_path: Path) -> None:
    bars = [make_bar("BTC/USD", minute, 50.0) for minute in range(3)]
    halt = TradingStatus(symbol="BTC/USD", ts_event_ns=bars[1].end_ns, code="H", message="Trading Halt")
    for mode in ("paper", "local"):
        settings = RunSettings(
            symbols=("BTC/USD",), agent="x", params={}, mode=mode, agent_id="a",
            state_dir=tmp_path / mode, state_dir_given=True,
        )  # fmt: skip
        state = AgentState(settings)
        state.acquire()
        live_feed: Any = LiveFeed
        beat: list[LiveCerebro] = []
        cerebro = LiveCerebro(
            source=ListSource([*slices_of(bars[:2], last=False), halt, *slices_of([make_bar("ETH/USD", 3, 1.0)])]),
            wakeup=Wakeup(),
            beat=lambda state=state, settings=settings, beat=beat: state.beat(  # type: ignore[misc]
                SystemClock(), describe_data(beat[0], settings)
            ),
            beat_s=0.0,
        )
        beat.append(cerebro)
        for symbol in ("BTC/USD", "ETH/USD"):
            cerebro.adddata(live_feed(symbol=symbol))
        cerebro.run()
        health = read_health(state.path, now_ns=SystemClock().time_ns())
        assert health.heartbeat_ns is not None
        if mode == "local":
            assert health.data is None
        else:
            assert health.data is not None
            assert health.data.halted == {"BTC/USD": "Trading Halt"}
            assert health.data.bars.arrived == 2
        state.release()
