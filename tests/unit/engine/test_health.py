"""What a state directory shows of its agent: running, hanging, stopped, dead."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dry_work.clock import SECOND_NS, SystemClock
from dry_work.engine.health import STALE_S, AgentHealth, Life, list_agents, read_health
from dry_work.engine.state import HEARTBEAT, AgentState
from dry_work.feeds.lease import AgentLease
from dry_work.market.completeness import Completeness
from dry_work.market.market_state import DataHealth
from dry_work.settings import RunSettings

HOLDER = """
import sys, time
from pathlib import Path
from dry_work.clock import SystemClock
from dry_work.engine.state import AgentState
from dry_work.settings import RunSettings

settings = RunSettings(symbols=(), agent="x", params={}, mode="paper", agent_id="a", state_dir=Path(sys.argv[1]),
                       state_dir_given=True)
state = AgentState(settings)
state.acquire()
state.beat(SystemClock())
print("held", flush=True)
sys.stdin.readline()
state.release()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait(60)
    process.stdout.close()
    process.stdin.close()


def read(folder: Path, *, later_s: float = 0.0) -> AgentHealth:
    return read_health(folder, now_ns=time.time_ns() + int(later_s * SECOND_NS))


def test_an_agent_runs_hangs_and_stops(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    health = read(tmp_path)
    assert (health.name, health.life, health.pid) == ("a", Life.RUNNING, holder.pid)
    assert health.heartbeat_ns is not None
    assert abs(time.time_ns() - health.heartbeat_ns) < 60 * SECOND_NS
    assert read(tmp_path, later_s=STALE_S + 60).life is Life.HANGS
    assert holder.stdin is not None
    holder.stdin.write("\n")
    holder.stdin.flush()
    holder.wait(60)
    health = read(tmp_path)
    assert (health.life, health.pid) == (Life.STOPPED, None)


def test_an_agent_that_was_killed_has_died_also_before_its_parent_knows(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    assert read(tmp_path).life is Life.DIED
    holder.wait(60)
    health = read(tmp_path)
    assert (health.life, health.pid) == (Life.DIED, holder.pid)


def test_looking_takes_no_lock_and_writes_nothing(tmp_path: Path) -> None:
    lease = AgentLease(tmp_path, "a").acquire()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert read(tmp_path).life is Life.RUNNING
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    lease.release()
    AgentLease(tmp_path, "a").acquire().release()


def write_lock(folder: Path, **facts: Any) -> None:
    known = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat()}
    (folder / "agent-a.lock").write_text(json.dumps(known | facts))


def test_another_process_with_the_same_number_is_not_the_agent(tmp_path: Path) -> None:
    write_lock(tmp_path)
    assert read(tmp_path).life is Life.RUNNING
    write_lock(tmp_path, since="2001-01-01T00:00:00Z")  # before this process was
    assert read(tmp_path).life is Life.DIED


def test_an_agent_on_another_machine_is_judged_by_its_heartbeat(tmp_path: Path) -> None:
    write_lock(tmp_path, host="elsewhere", pid=7)
    assert read(tmp_path).life is Life.UNKNOWN
    (tmp_path / "heartbeat").write_text(json.dumps({"time_ns": time.time_ns(), "pid": 7}))
    health = read(tmp_path)
    assert (health.life, health.host) == (Life.RUNNING, "elsewhere")
    assert read(tmp_path, later_s=STALE_S + 60).life is Life.UNKNOWN


def test_the_heartbeat_of_an_earlier_process_does_not_count(tmp_path: Path) -> None:
    write_lock(tmp_path)
    (tmp_path / "heartbeat").write_text(json.dumps({"time_ns": 1, "pid": 7}))
    health = read(tmp_path)
    assert (health.life, health.heartbeat_ns) == (Life.RUNNING, None)


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"pid": 1}'])
def test_unreadable_files_beside_it_are_no_end(tmp_path: Path, content: str) -> None:
    for name in ("agent-a.lock", "heartbeat", "strategy.json"):
        (tmp_path / name).write_text(content)
    health = read(tmp_path)
    assert (health.life, health.heartbeat_ns, health.strategy) == (Life.STOPPED, None, None)
    assert "strategy.json: not a strategy's state" in health.problem


def test_kept_state_and_recordings_are_measured(tmp_path: Path) -> None:
    content = {"version": 1, "agent": "Cross", "saved_ns": 5, "state": {"n": 1}}
    (tmp_path / "strategy.json").write_text(json.dumps(content))
    for session in ("one", "two"):
        (tmp_path / "recordings" / session).mkdir(parents=True)
        (tmp_path / "recordings" / session / "000001.dwlog").write_bytes(b"x" * 500)
    health = read(tmp_path)
    assert health.strategy is not None
    assert (health.strategy.strategy, health.strategy.saved_ns) == ("Cross", 5)
    assert (health.recordings_bytes, health.recordings_sessions) == (1000, 2)


def test_agents_are_found_in_all_the_places_where_runs_keep_them(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "b", tmp_path / "local" / "c"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"agent-{folder.name}.lock").touch()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "orders.sqlite").touch()
    (tmp_path / "none").mkdir()
    found = list_agents([tmp_path], now_ns=0)
    assert [health.path for health in found] == [tmp_path, tmp_path / "b", tmp_path / "d", tmp_path / "local" / "c"]
    assert [health.name for health in found][1:] == ["b", "d", "c"]
    assert list_agents([tmp_path / "absent"], now_ns=0) == []


def test_how_the_data_stood_is_read_from_the_heartbeat(tmp_path: Path) -> None:
    settings = RunSettings(
        symbols=(), agent="x", params={}, mode="paper", agent_id="a", state_dir=tmp_path, state_dir_given=True
    )
    state = AgentState(settings)
    state.acquire()
    try:
        state.beat(SystemClock())
        assert read(tmp_path).data is None
        data = DataHealth(bars=Completeness(expected=10, arrived=9, missing=1), halted={"SPY": "Trading Halt"})
        state.beat(SystemClock(), data)
        assert read(tmp_path).data == data
        (tmp_path / HEARTBEAT).write_text(json.dumps({"time_ns": time.time_ns(), "pid": os.getpid(), "data": [1]}))
        assert read(tmp_path).data is None
        (tmp_path / HEARTBEAT).write_text(json.dumps({"time_ns": 1, "pid": 1, "data": {}}))
        assert read(tmp_path).data is None  # of an earlier process
    finally:
        state.release()
