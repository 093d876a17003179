"""The keeper of a process: real processes, small ones."""

from __future__ import annotations

import datetime as dt
import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local_cluster import judge, read_log
from deploy.local_files import is_locked, locked, read_env_file, take_lock
from deploy.local_keeper import RotatingLog
from deploy.local_spec import KeptProcess, ProcessSpec, ProcessState

DEADLINE_S = 60.0


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[KeptProcess]:
    process = KeptProcess(tmp_path / "kept")
    yield process
    process.signal(signal.SIGTERM)
    until(lambda: not process.is_kept, lambda: "the keeper does not end")


def until(holds: Callable[[], object], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)


def shell(line: str, folder: Path, **more: Any) -> ProcessSpec:
    """Return a process that runs a line of shell."""
    return ProcessSpec(argv=("/bin/sh", "-c", line), cwd=str(folder), **{"grace_s": 10.0, "image": "x:1", **more})


def want(kept: KeptProcess, spec: ProcessSpec) -> None:
    kept.change(lambda _: spec)


def wait_for(kept: KeptProcess, holds: Callable[[ProcessState], object]) -> ProcessState:
    until(lambda: holds(kept.read_state()), kept.read_state)
    return kept.read_state()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def texts(kept: KeptProcess) -> list[str]:
    return [line.text for line in read_log(kept.log_path, since=None, limit=100)]


def test_a_process_is_ready_once_its_file_is_there_and_the_check_agrees(kept: KeptProcess, tmp_path: Path) -> None:
    ready, agreed = tmp_path / "ready", tmp_path / "agreed"
    check = ("/bin/sh", "-c", f"test -f {agreed} || {{ echo not yet; exit 1; }}")
    line = f"echo hello; touch {ready}; exec sleep 100"
    want(kept, shell(line, tmp_path, ready_file=str(ready), ready_argv=check))
    assert wait_for(kept, lambda state: state.reason == "not yet").phase == "starting"
    agreed.touch()
    state = wait_for(kept, lambda state: state.phase == "ready")
    assert is_alive(state.pid)
    assert "hello" in texts(kept)
    want(kept, shell(line, tmp_path, running=False))
    until(lambda: not kept.is_kept, kept.read_state)
    assert kept.read_state().phase == "stopped"
    assert not is_alive(state.pid)


def test_a_crash_is_followed_by_a_start_after_a_wait_and_its_last_words_are_kept(
    kept: KeptProcess, tmp_path: Path
) -> None:
    spec = shell("echo why it failed; exit 7", tmp_path, ready_file=str(tmp_path / "never"))
    want(kept, spec)
    state = wait_for(kept, lambda state: state.restarts >= 2 and state.phase == "backoff")
    assert state.exit_code == 7
    found = judge(kept.read_spec() or spec, state, is_kept=True)
    assert found.phase == "failed"
    assert found.reason.startswith(f"the agent ended {state.restarts} times with exit code 7: ")
    assert "why it failed" in found.reason


def test_a_program_that_cannot_be_started_is_told(kept: KeptProcess, tmp_path: Path) -> None:
    want(kept, ProcessSpec(argv=(str(tmp_path / "not-there"),), cwd=str(tmp_path)))
    state = wait_for(kept, lambda state: state.restarts >= 1)
    assert "No such file" in state.ended
    assert state.pid == 0


def test_a_change_stops_the_process_before_the_next_one_starts(kept: KeptProcess, tmp_path: Path) -> None:
    place = tmp_path / "holder"
    first_lines = f"trap 'sleep 0.3; rm {place}; exit 0' TERM; test -e {place} && echo two at once"
    line = f"{first_lines}; touch {place}; sleep 100 & wait"
    want(kept, shell(line, tmp_path, ready_file=str(place)))
    first = wait_for(kept, lambda state: state.phase == "ready")
    want(kept, shell(line, tmp_path, ready_file=str(place), image="x:2"))
    second = wait_for(kept, lambda state: state.generation == first.generation + 1 and state.phase == "ready")
    assert second.pid != first.pid
    assert not is_alive(first.pid)
    assert second.restarts == 0
    assert "two at once" not in texts(kept)


def test_a_process_that_does_not_stop_is_killed_after_its_grace(kept: KeptProcess, tmp_path: Path) -> None:
    want(kept, shell("trap '' TERM; while :; do sleep 0.1; done", tmp_path, grace_s=0.3))
    pid = wait_for(kept, lambda state: state.phase == "ready").pid
    want(kept, shell("", tmp_path, running=False))
    until(lambda: not kept.is_kept, kept.read_state)
    assert not is_alive(pid)
    assert any("is killed" in text for text in texts(kept))


def test_a_process_that_is_not_well_is_started_anew(kept: KeptProcess, tmp_path: Path) -> None:
    sick = ("/bin/sh", "-c", "echo heartbeat too old; exit 1")
    spec = shell("exec sleep 100", tmp_path, health_argv=sick, health_delay_s=0.2, health_period_s=0.2)
    want(kept, spec)
    state = wait_for(kept, lambda state: state.restarts >= 1)
    assert state.ended == "it was not well 3 times: heartbeat too old"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is seen in /proc")
def test_a_process_that_needs_more_memory_than_its_limit_is_ended(
    kept: KeptProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eater = (sys.executable, "-S", "-c", "x = bytearray(80 << 20); import time; time.sleep(100)")
    want(kept, ProcessSpec(argv=eater, cwd=str(tmp_path), grace_s=5.0, memory_bytes=40 << 20))
    state = wait_for(kept, lambda state: state.restarts >= 1)
    assert "more memory than its limit" in state.ended
    assert "of 40 MiB" in state.ended


def test_keys_come_from_the_file_at_each_start_and_the_shells_own_do_not_reach_the_process(
    kept: KeptProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALPACA_SECRET_KEY", "of-the-shell")
    keys = tmp_path / "keys.env"
    keys.write_text("export ALPACA_API_KEY='from the file'\n# a remark\n\nEMPTY=\n")
    line = "echo key=$ALPACA_API_KEY secret=$ALPACA_SECRET_KEY id=$AGENT_ID; exec sleep 100"
    want(kept, shell(line, tmp_path, env_file=str(keys), environment={"AGENT_ID": "mine"}))
    until(lambda: "key=from the file secret= id=mine" in texts(kept), lambda: texts(kept))
    assert "from the file" not in kept.spec_path.read_text()


def test_a_keeper_that_was_killed_takes_its_process_along_and_the_next_one_starts_it(
    kept: KeptProcess, tmp_path: Path
) -> None:
    want(kept, shell("exec sleep 100", tmp_path))
    pid = wait_for(kept, lambda state: state.phase == "ready").pid
    kept.signal(signal.SIGKILL)
    until(lambda: not kept.is_kept and not is_alive(pid), kept.read_state)
    kept.ensure()
    assert wait_for(kept, lambda state: state.phase == "ready" and state.pid != pid).generation == 1


def test_what_goes_with_a_process_is_removed_when_it_has_stopped(kept: KeptProcess, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    line = f"mkdir -p {volume}; trap 'touch {volume}/last; exit 0' TERM; touch {volume}/up; sleep 100 & wait"
    want(kept, shell(line, tmp_path, ready_file=str(volume / "up")))
    wait_for(kept, lambda state: state.phase == "ready")
    want(kept, shell("", tmp_path, running=False, remove=(str(volume),)))
    until(lambda: not kept.is_kept, kept.read_state)
    assert not volume.exists()


def test_a_log_is_put_aside_when_it_is_long_and_its_lines_have_rising_times(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    log = RotatingLog(path, max_bytes=1_000, keep=2)
    now = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    for number in range(100):
        log.write(f"line {number}", now)
    log.close()
    assert sorted(found.name for found in tmp_path.iterdir()) == ["log.txt", "log.txt.1", "log.txt.2"]
    lines = read_log(path, since=None, limit=50)
    assert [line.text for line in lines] == [f"line {number}" for number in range(50, 100)]
    times = [line.time for line in lines if line.time is not None]
    assert all(after > before for before, after in itertools.pairwise(times))
    after = read_log(path, since=times[-4], limit=50)
    assert [line.text for line in after] == ["line 97", "line 98", "line 99"]


def test_a_lock_is_held_until_its_holder_ends_and_is_seen_by_others(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    with locked(path):
        assert is_locked(path)
        assert take_lock(path, wait_s=0.05) is None
    assert not is_locked(path)


def test_a_file_of_variables_with_a_bad_line_is_refused_without_repeating_it(tmp_path: Path) -> None:
    from deploy.errors import ConfigurationError

    path = tmp_path / "keys.env"
    path.write_text("GOOD=1\nmy-secret-without-name\n")
    with pytest.raises(ConfigurationError, match=r"line 2: expected NAME=value") as caught:
        read_env_file(path)
    assert "my-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "is_kept", "phase", "reason"),
    [
        (ProcessState(generation=1), True, "progressing", "it is being started"),
        (ProcessState(generation=1, pid=5), True, "progressing", "the process before it is being stopped"),
        (ProcessState(generation=2, phase="ready"), True, "complete", ""),
        (ProcessState(generation=2, phase="ready"), False, "progressing", "it is being started"),
        (ProcessState(generation=2, phase="waiting", reason="waits for exchange"), True, "progressing", "waits for"),
        (ProcessState(generation=2, phase="backoff", restarts=1, exit_code=1), True, "progressing", "once with exit"),
        (ProcessState(generation=2, phase="backoff", restarts=1, exit_code=2), True, "failed", "usage or config"),
        (ProcessState(generation=2, phase="starting", restarts=2, exit_code=-9), True, "failed", "2 times .*killed"),
    ],
)
def test_a_rollout_is_judged_by_what_is_wanted_and_what_the_keeper_wrote(
    state: ProcessState, is_kept: bool, phase: str, reason: str
) -> None:
    spec = ProcessSpec(argv=("x",), cwd="/", generation=2, image="images/agent:build-7")
    found = judge(spec, state, is_kept=is_kept)
    assert (found.phase, found.image) == (phase, "images/agent:build-7")
    assert re.search(reason, found.reason)
