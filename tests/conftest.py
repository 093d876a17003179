"""What tests share: logging of their own, recordings, a clean environment. And the tables at the end of a run."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]

# Hubs that tests start as processes run side by side, and without a collector of traces.
for _name in ("STREAM_PROXY_HEALTH_PORT", "STREAM_PROXY_METRICS_PORT", "HEALTH_PORT"):
    os.environ[_name] = "0"
os.environ["OTEL_ENABLED"] = "false"

# How long examples take says how busy the machine is, and nothing about the code. The same tree has the same examples
# in every run, so that a failure is one of the tree; `make explore` tries others.
settings.register_profile(
    "dry-work",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not os.environ.get("DRY_WORK_EXPLORE"),
)
settings.load_profile("dry-work")

# Files whose tests take longest. They begin first, so that no worker is left alone with one of them at the end.
LONGEST = (
    "tests/e2e/test_four_processes.py",
    "tests/e2e/test_local_parity.py",
    "tests/e2e/test_halt.py",
    "tests/unit/test_benchmarks.py",
    "tests/deploy/test_local_service.py",
    "tests/docs/test_howto_runs.py",
    "tests/soak/test_silence.py",
    "tests/soak/test_soak.py",
    "tests/parity/test_parity.py",
    "tests/integration/test_publish.py",
    "tests/integration/test_feeds_contract.py",
    "tests/unit/engine/test_replay.py",
)


@pytest.hookimpl(trylast=True)  # after the files have been shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


def pytest_collection_finish() -> None:
    """Spare the garbage collector a walk over thousands of tests, each time: they stay until the end anyway."""
    gc.collect()
    gc.freeze()


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
    """Print what was found: it is in properties of the reports, so that it crosses processes."""
    found: dict[str, list[Any]] = {"pubsub_capability": [], "parity": []}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name in found and report.when == "call":
                    found[name].append(value)
    if found["pubsub_capability"]:
        _write_capabilities(terminalreporter, found["pubsub_capability"])
    if found["parity"]:
        _write_parity(terminalreporter, found["parity"])
    _write_reruns(terminalreporter)


def _write_reruns(terminalreporter: Any) -> None:
    """Say what passed only when it was run again, and what it said at first: a mistake that shows itself at times."""
    passed = {report.nodeid for report in terminalreporter.stats.get("passed", ())}
    for report in terminalreporter.stats.get("rerun", ()):
        if report.nodeid in passed:
            terminalreporter.write_sep("-", f"passed only when run again: {report.nodeid}")
            terminalreporter.write_line(report.longreprtext)


def _write_capabilities(terminalreporter: Any, rows: list[Any]) -> None:
    outcomes: dict[tuple[int, str], dict[str, str]] = {}
    for number, capability, server, outcome in rows:
        outcomes.setdefault((number, capability), {})[server] = outcome
    servers = ("embedded", "emulator")
    width = max(len(capability) for _, capability in outcomes)
    width_of_ours = max(len(row.get(servers[0], "not run")) for row in outcomes.values())
    terminalreporter.write_sep("-", "Pub/Sub capabilities")
    terminalreporter.write_line(f"{'':{width}}  {servers[0]:{width_of_ours}}  {servers[1]}")
    for (_, capability), row in sorted(outcomes.items()):
        cells = [row.get(server, "not run") for server in servers]
        terminalreporter.write_line(f"{capability:{width}}  {cells[0]:{width_of_ours}}  {cells[1]}")


def _write_parity(terminalreporter: Any, rows: list[Any]) -> None:
    """Say how many scenarios ran on the lean engine's fast path, and why the others did not."""
    reasons: dict[str, list[str]] = {}
    for scenario, reason in rows:
        reasons.setdefault(reason, []).append(scenario)
    lean = len(reasons.pop("", []))
    terminalreporter.write_sep("-", "lean engine against stock Backtrader")
    terminalreporter.write_line(f"{lean} scenarios on the fast path, {sum(map(len, reasons.values()))} fell back:")
    for reason, scenarios in sorted(reasons.items(), key=lambda item: -len(item[1])):
        terminalreporter.write_line(f"{len(scenarios):4}  {reason} ({', '.join(sorted(scenarios)[:2])}…)")
