"""Local runs whose flights are recorded, for tests of replays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dry_work.engine.replay import ReplayResult, recorded_agent, replay_session
from dry_work.engine.result import RunResult
from dry_work.engine.runner import Runner
from dry_work.engine.what_if import WhatIfResult, ask_what_if
from dry_work.recording.flight_log import open_flight
from dry_work.recording.log import find_sessions
from dry_work.settings import RunSettings

CROSS = """\
import backtrader as bt


class Cross(bt.Strategy):
    params = (("fast", 5), ("slow", 15), ("size", 10))

    def __init__(self):
        self.turns = 0
        self.cross = {
            data: bt.ind.CrossOver(bt.ind.SMA(data, period=self.p.fast), bt.ind.SMA(data, period=self.p.slow))
            for data in self.datas
        }

    def next(self):
        self.turns += 1
        for data in self.datas:
            if self.cross[data][0] > 0 and not self.getposition(data).size:
                self.buy(data, size=self.p.size)
            elif self.cross[data][0] < 0 and self.getposition(data).size:
                self.close(data)

    def save_state(self):
        return {"turns": self.turns}

    def load_state(self, state):
        self.turns = state["turns"]
"""


def write_strategy(folder: Path, text: str = CROSS, name: str = "strategy.py") -> Path:
    """Write a strategy's file."""
    path = folder / name
    path.write_text(text)
    return path


def fly(folder: Path, strategy: Path, *, symbols: tuple[str, ...] = ("SPY", "IBM"), **changes: Any) -> RunResult:
    """Run a strategy on the local stack, with a state directory below `folder` that keeps its flight."""
    changes = {"params": {}, "mode": "local", "agent_id": "tester", **changes}
    settings = RunSettings(
        symbols=symbols, agent=f"{strategy}:Cross", state_dir=folder / "state", state_dir_given=True, **changes
    )
    return Runner(settings, tell=lambda _line: None).run()


def last_session(folder: Path) -> Path:
    """Return the folder of the newest session."""
    return find_sessions(folder / "state")[-1]


def replay(place: Path, **options: Any) -> ReplayResult:
    """Replay a session."""
    until_ns = options.pop("until_ns", None)
    with open_flight(place) as reader, recorded_agent(reader.facts, **options) as (agent, notes):
        return replay_session(reader, agent, until_ns=until_ns, notes=notes)


def ask(place: Path, *, spec: str | None = None, params: Mapping[str, str] | None = None) -> WhatIfResult:
    """Ask what another strategy, or another parameter, would have done."""
    with open_flight(place) as reader, recorded_agent(reader.facts, spec=spec, params=params) as (agent, _):
        return ask_what_if(reader, agent)
