"""The tutorial, word for word: its commands are run in order, and its output is what comes out."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import find_free_port

from .reader import LIMIT_S, Reader

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    # Other tests use the service's usual port, perhaps now.
    reader = Reader(tmp_path, replaced={r"^(dry-work deploy \.)$": rf"\1 --port {find_free_port()}"})
    yield reader
    reader.end()
    subprocess.run(
        ["dry-work", "stop", "--service", "--delete-state"],
        env=reader.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=LIMIT_S,
    )


def test_a_reader_of_the_tutorial_ends_with_a_deployed_agent_and_sees_what_the_page_shows(reader: Reader) -> None:
    ran, compared = reader.follow(PAGE)
    assert ran >= 9
    assert compared >= 7
