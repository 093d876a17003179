"""What holds for every test: no test inherits the logging of another. And the table of Pub/Sub's capabilities."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog


@pytest.fixture(autouse=True)
def isolated_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


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
