from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .processes import Program


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
