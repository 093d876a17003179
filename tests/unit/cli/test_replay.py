"""`dry-work replay`, `sessions` and `diff`: what they print, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from dry_work.cli import diff, replay, sessions
from dry_work.errors import ConfigError
from tests.unit.engine.flights import CROSS, fly, last_session, write_strategy


def call(command: click.Command, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    code = command.main(args=list(arguments), standalone_mode=False)
    return int(code), capsys.readouterr().out


def last_line(output: str) -> Any:
    return json.loads(output.splitlines()[-1])


def test_a_session_is_listed_exported_replayed_asked_and_compared(
    tmp_path: Path, clean_environment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = fly(tmp_path, write_strategy(tmp_path), symbols=("SPY",))
    session = last_session(tmp_path)
    state = str(tmp_path / "state")
    code, output = call(sessions.command, capsys, state, "--json")
    assert code == 0
    [listed] = last_line(output)["sessions"]
    assert (listed["name"], listed["exit"], listed["orders"]) == (session.name, "done", len(told.orders))
    assert session.name in output
    assert "strategy.py:Cross" in output

    file = str(tmp_path / "day.dwsession")
    code, output = call(sessions.command, capsys, "export", session.name[-8:], file, "--state-dir", state)
    assert code == 0
    assert output.endswith(f"dry-work replay {file}\n")

    code, output = call(replay.command, capsys, file, "--recorded-source", "--json")
    assert code == 0
    assert f"the same: {len(told.orders)} decisions" in output
    assert last_line(output)["same"] is True

    code, output = call(replay.command, capsys, state, "--session", session.name, "--until", "2024-06-11T15:00")
    assert code == 0
    assert "at 2024-06-11 15:00 UTC, account value" in output
    assert "cross[SPY]" in output
    assert "input bar SPY 2024-06-11 14:59: open" in output

    code, output = call(replay.command, capsys, state, "--session", session.name, "--until", "2024-06-10")
    assert code == 0
    assert "before the first slice, account value 100,000.00" in output

    code, output = call(replay.command, capsys, state, "--session", session.name, "--until", "2025-01-01")
    assert code == 0
    assert "at 2024-06-11 20:00 UTC, account value" in output
    assert "input bar SPY 2024-06-11 19:59: open" in output

    code, output = call(replay.command, capsys, file, "-p", "fast=7", "--json")
    assert code == 0
    assert "from slice" in output
    assert "rule set backtrader" in output
    assert last_line(output)["handover"].startswith("the simulated exchange followed the record")

    code, output = call(diff.command, capsys, file, "--backtest", "--json")
    assert code == 0
    assert "no difference" in output
    assert last_line(output)["same_orders"] == len(told.orders)
    assert call(diff.command, capsys, file, str(session))[0] == 0

    write_strategy(tmp_path, CROSS.replace('("fast", 5)', '("fast", 6)'))
    code, output = call(replay.command, capsys, str(session))
    assert code == 1
    assert "has changed since the session: it runs as it is now" in output
    assert "first difference: decision at 2024-06-11" in output
    assert "cause: the strategy's source has changed since the session" in output
    code, output = call(diff.command, capsys, str(session), "--backtest", "--json")
    assert code == 1
    assert last_line(output)["causes"].keys() >= {"decision"}

    write_strategy(tmp_path)
    [segment] = session.glob("*.dwlog")
    whole = bytearray(segment.read_bytes())
    whole[len(whole) * 3 // 4] ^= 1
    segment.write_bytes(whole)
    code, output = call(replay.command, capsys, str(session))
    assert code == 1
    assert "the same: " in output
    assert "up to here only: damaged: " in output
    assert "damaged\n" in call(sessions.command, capsys, state)[1]
    whole[100] ^= 1
    segment.write_bytes(whole)
    assert "damaged" in call(sessions.command, capsys, state)[1].splitlines()[2]


def test_what_cannot_be_used_is_said_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, arguments, message in (
        (replay.command, (str(tmp_path / "none"),), "no such session: expected a session's folder or an exported file"),
        (replay.command, (str(tmp_path),), "no recorded session"),
        (replay.command, (str(tmp_path), "--until", "noon"), "--until 'noon': expected a date or a time"),
        (replay.command, (str(tmp_path), "--agent", "a.py:A", "--recorded-source"), "exclude each other"),
        (replay.command, (str(tmp_path), "--session", "x"), "'x' is no session below"),
        (sessions.command, (str(tmp_path / "none"),), "there is no such folder"),
        (sessions.command, ("export", "x"), "expected the id of a session and the name of a new file"),
        (sessions.command, ("a", "b"), "expected one state directory"),
        (diff.command, (str(tmp_path),), "expected two sessions, or one and --backtest"),
        (diff.command, (str(tmp_path), str(tmp_path), "--backtest"), "expected two sessions, or one and --backtest"),
    ):
        with pytest.raises(ConfigError, match=message):
            command.main(args=list(arguments), standalone_mode=False)
    assert call(sessions.command, capsys, str(tmp_path)) == (0, f"no sessions below {tmp_path}\n")
