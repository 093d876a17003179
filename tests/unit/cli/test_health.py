"""`dry-work health`: the check of the image and of the probes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from dry_work import settings
from dry_work.cli import health
from dry_work.engine import state
from dry_work.feeds.lease import AgentLease

NOW_S = 1_700_000_000.0


def beat(folder: Path, age_s: float) -> None:
    path = folder / state.HEARTBEAT
    path.write_text("{}")
    os.utime(path, (NOW_S - age_s, NOW_S - age_s))


def check(folder: Path, **options: float | bool) -> tuple[bool, str]:
    return health.check_heartbeat(folder, now_s=NOW_S, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("age_s", "expected"), [(0, True), (300, True), (600, True), (601, False), (90_000, False)])
def test_a_heartbeat_of_more_than_ten_minutes_is_not_well(tmp_path: Path, age_s: float, expected: bool) -> None:
    beat(tmp_path, age_s)
    assert check(tmp_path)[0] is expected


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    assert check(tmp_path) == (False, f"{tmp_path / 'heartbeat'}: no heartbeat yet")
    beat(tmp_path, 700)
    assert check(tmp_path)[1].endswith("700 s old, allowed are 600 s: the strategy hangs or was not started")
    assert check(tmp_path, max_age_s=800.0) == (True, "heartbeat 700 s old")
    beat(tmp_path, -700)  # the clock was set back
    assert check(tmp_path)[1].endswith("700 s in the future")
    (tmp_path / "file").write_text("")
    assert "Not a directory" in check(tmp_path / "file")[1]


def test_an_agent_is_ready_when_the_process_that_holds_its_state_has_beaten(tmp_path: Path) -> None:
    beat(tmp_path, 20)
    assert check(tmp_path, ready=True) == (False, f"{tmp_path}: no agent holds it")
    lease = AgentLease(tmp_path, "a").acquire()
    try:
        lock = tmp_path / "agent-a.lock"
        os.utime(lock, (NOW_S - 10, NOW_S - 10))
        assert "of an earlier process" in check(tmp_path, ready=True)[1]
        beat(tmp_path, 5)
        assert check(tmp_path, ready=True)[0]
    finally:
        lease.release()
    assert not check(tmp_path, ready=True)[0]


def test_the_command_answers_with_its_exit_code(tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(health.command, ["--state-dir", str(tmp_path), *words], standalone_mode=False)
        return int(result.return_value or 0), result.output

    assert run() == (1, f"{tmp_path / 'heartbeat'}: no heartbeat yet\n")
    (tmp_path / "heartbeat").write_text("{}")
    assert run()[0] == 0
    os.utime(tmp_path / "heartbeat", (time.time() - 30,) * 2)
    assert run("--max-age", "10")[0] == 1
    assert CliRunner().invoke(health.command, ["--max-age", "0"]).exit_code == 2


def test_its_directory_is_that_of_pods() -> None:
    assert health.POD_STATE_DIR == settings.POD_STATE_DIR


def test_it_imports_next_to_nothing_since_it_runs_every_minute_beside_an_agent() -> None:
    code = "import sys, dry_work.cli.health; print(sorted({'msgspec', 'pandas', 'backtrader'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
