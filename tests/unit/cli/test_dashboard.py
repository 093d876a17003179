"""`dry-work dashboard`: what it refuses before it serves."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from dry_work.cli.dashboard import command
from dry_work.errors import ConfigError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "nowhere:port"], "--listen 'nowhere:port': expected HOST:PORT"),
        (["--session", "none-there"], "none-there: no such session"),
        (["--session", ".", "my-agent"], "--session excludes AGENT"),
        (["--recorded-source"], "--recorded-source goes with --session"),
        (["my-agent"], "does not exist; name one with --state-dir"),
    ],
)
def test_what_cannot_be_shown_is_said(clean_environment: Path, arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(command, arguments, standalone_mode=False)
    assert isinstance(done.exception, ConfigError)
    assert words in str(done.exception)


def test_a_token_that_is_too_short_is_refused(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRY_WORK_DASHBOARD_TOKEN", "short")
    done = CliRunner().invoke(command, ["--listen", "0.0.0.0:0"], standalone_mode=False)
    assert isinstance(done.exception, ConfigError)
    assert "at least 16" in str(done.exception)
