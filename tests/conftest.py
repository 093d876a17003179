"""What tests share: logging of their own, recordings, a clean environment. And the table of Pub/Sub's capabilities."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def isolated_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


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


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what each server was found to do: the rows are properties of the reports, so that they cross processes."""
    outcomes: dict[tuple[int, str], dict[str, str]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "pubsub_capability" and report.when == "call":
                    number, capability, server, outcome = value
                    outcomes.setdefault((number, capability), {})[server] = outcome
    if not outcomes:
        return
    servers = ("embedded", "emulator")
    width = max(len(capability) for _, capability in outcomes)
    width_of_ours = max(len(row.get(servers[0], "not run")) for row in outcomes.values())
    terminalreporter.write_sep("-", "Pub/Sub capabilities")
    terminalreporter.write_line(f"{'':{width}}  {servers[0]:{width_of_ours}}  {servers[1]}")
    for (_, capability), row in sorted(outcomes.items()):
        cells = [row.get(server, "not run") for server in servers]
        terminalreporter.write_line(f"{capability:{width}}  {cells[0]:{width_of_ours}}  {cells[1]}")
