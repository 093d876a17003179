from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from dry_work.clock import ManualClock
from dry_work.engine.state import AgentState, name_agent
from dry_work.errors import ConfigError, LeaseHeldError
from dry_work.settings import RunSettings


def make(tmp_path: Path, **changes: object) -> AgentState:
    fields: dict[str, object] = {"symbols": ("SPY",), "agent": "a", "params": {}, "mode": "paper"}
    return AgentState(RunSettings(**{**fields, "state_dir": tmp_path / "state", **changes}))  # type: ignore[arg-type]


def test_a_local_run_begins_with_a_fresh_directory_and_leaves_none(tmp_path: Path) -> None:
    state = make(tmp_path, mode="local")
    assert state.agent_id.startswith("local-")
    state.acquire()
    state.journal_path.write_text("x")
    state.release()
    state.release()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_was_given_is_kept_and_emptied_of_the_last_run(tmp_path: Path) -> None:
    for _ in range(2):
        state = make(tmp_path, mode="local", agent_id="a", state_dir_given=True)
        state.acquire()
        assert not state.journal_path.exists()
        state.journal_path.write_text("x")
        state.release()
    assert state.journal_path.read_text() == "x"


def test_the_record_of_a_paper_run_is_kept(tmp_path: Path) -> None:
    for agent_id in ("", "steady"):
        state = make(tmp_path, agent_id=agent_id)
        state.acquire()
        state.journal_path.write_text("x")
        state.release()
        assert state.path == tmp_path / "state" / state.agent_id
        assert state.journal_path.exists()


def test_a_start_that_failed_leaves_no_directory_of_a_random_id(tmp_path: Path) -> None:
    state = make(tmp_path)
    state.acquire()
    state.release()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_around_the_state_directory_stays(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    for mode in ("local", "paper"):
        state = make(tmp_path, mode=mode, state_dir=folder / ".dry-work")
        state.acquire()
        state.release()
        assert list(folder.iterdir()) == []


def test_the_same_agent_twice_is_refused(tmp_path: Path) -> None:
    first, second = (make(tmp_path, agent_id="twice") for _ in range(2))
    first.acquire()
    with pytest.raises(LeaseHeldError, match="twice"):
        second.acquire()
    first.release()
    second.acquire()
    assert second.nonce
    second.release()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(ConfigError, match="--state-dir"):
        make(tmp_path, state_dir_given=True, state_dir=tmp_path / "state" / "below").acquire()


def test_the_heartbeat_holds_time_and_process(tmp_path: Path) -> None:
    state = make(tmp_path, agent_id="a")
    state.acquire()
    state.beat(ManualClock(123))
    found = json.loads((state.path / "heartbeat").read_text())
    assert found["time_ns"] == 123
    assert isinstance(found["pid"], int)
    state.release()


def test_agents_without_an_id_have_a_name_by_their_directory(tmp_path: Path) -> None:
    here, there = tmp_path / "a", tmp_path / "b"
    paper = RunSettings(symbols=("SPY",), agent="a", params={}, mode="paper")
    assert name_agent(paper, here) == name_agent(paper, here)  # a restart
    assert name_agent(paper, here) != name_agent(paper, there)
    assert name_agent(msgspec.structs.replace(paper, mode="local"), here) == "local"
    assert name_agent(msgspec.structs.replace(paper, agent_id="mine"), here) == "mine"
