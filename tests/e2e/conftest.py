from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .processes import Program

ROOT = Path(__file__).parents[2]


def recordings_folder() -> Path | None:
    """Return where the shared market-data recordings are, if they are here."""
    folder = Path(os.environ.get("DRY_WORK_DATA_DIR") or ROOT.parent / "shared" / "data")
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def recordings() -> Path:
    folder = recordings_folder()
    if folder is None:
        pytest.skip("no recordings: set DRY_WORK_DATA_DIR to a folder with bars-*.parquet")
    return folder


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No credentials, emulators or agent ids of this machine, and an empty folder to work in."""
    for name in list(os.environ):
        if name.startswith(
            ("ALPACA", "GOOGLE_CLOUD", "PUBSUB", "AGENT_ID", "PAPER_", "HUB_", "MARKET_DATA", "CRYPTO_")
        ):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def start(clean_environment: Path) -> Iterator[Callable[..., Program]]:
    """Start programs in the test's folder; those still running are killed at its end."""
    programs: list[Program] = []

    def start_program(*args: str, env: dict[str, str] | None = None) -> Program:
        programs.append(Program(*args, cwd=clean_environment, env=env))
        return programs[-1]

    yield start_program
    for program in programs:
        program.close()
