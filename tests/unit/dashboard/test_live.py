"""A dashboard that fails leaves the run alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dry_work.dashboard.address import read_address
from dry_work.dashboard.live import RunDashboard
from dry_work.dashboard.settings import DashboardSettings
from dry_work.engine.agents import load_agent
from dry_work.engine.observer import RunPlace
from dry_work.market.messages import Bar, Slice
from dry_work.settings import RunSettings


class Broken:
    """Nothing of it works."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name} is broken")


def build_place(folder: Path, tell: list[str]) -> RunPlace:
    """Return a run that is about to begin."""
    agent = load_agent()
    return RunPlace(
        agent=agent,
        agent_id="a",
        folder=folder,
        settings=RunSettings(symbols=("SPY",), agent=agent.spec, params={}, mode="paper"),
        own_time=False,
        lockstep=False,
        wake=lambda: None,
        tell=tell.append,
    )


def test_a_run_goes_on_when_its_dashboard_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    dashboard = RunDashboard(DashboardSettings(port=0))
    try:
        dashboard.tell("said before it was open")
        dashboard.open(build_place(tmp_path, told))
        assert told[0] == f"dashboard: {dashboard.link}"
        dashboard.attach(Broken(), Broken(), [Broken()])
        bar = Bar(symbol="SPY", ts_event_ns=0, open=1, high=1, low=1, close=1, volume=1)
        dashboard.note_ready([Broken()])
        dashboard.note_slice(Slice(end_ns=60, bars=(bar,)), 1.0)
        dashboard.look()
        dashboard.finish()
        assert "the run goes on" in capsys.readouterr().out
    finally:
        dashboard.close()
        dashboard.close()


def test_its_address_is_published_while_it_is_open(tmp_path: Path) -> None:
    import os

    dashboard = RunDashboard(DashboardSettings(port=0))
    try:
        dashboard.open(build_place(tmp_path, []))
        assert read_address(tmp_path, pid=os.getpid()) == dashboard.link
    finally:
        dashboard.close()
    assert read_address(tmp_path, pid=os.getpid()) == ""


def test_a_dashboard_that_was_never_opened_may_be_told_of_everything() -> None:
    dashboard = RunDashboard(DashboardSettings(port=0))
    dashboard.look()
    dashboard.note_slice(Slice(end_ns=60, bars=()), 1.0)
    dashboard.finish()
    dashboard.close()
    assert dashboard.link == ""
