"""The tutorial, word for word: its commands are run in order, and its output is what comes out."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
LIMIT_S = 180.0
_BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```\n", re.DOTALL)
_RESULT = re.compile(r"(bars|orders|fills|equity)\b")  # the same in every run
_VARYING = re.compile(r"\d[\d,.:\-T]*|0x[0-9a-f]+|\b[0-9a-f]{6,}\b")


class Block(msgspec.Struct, frozen=True):
    """What stands in a fence, and in the comment before it."""

    language: str
    text: str
    mark: str


def read_blocks(page: Path) -> list[Block]:
    """Return the page's fenced blocks in order."""
    text = page.read_text(encoding="utf-8")
    return [Block(found["language"], found["text"], found["mark"] or "") for found in _BLOCK.finditer(text)]


def mask(line: str) -> str:
    """Return a line without what differs from run to run, and without its layout."""
    masked = line if _RESULT.match(line) else _VARYING.sub("#", line)
    return re.sub(r"\s+", " ", masked).strip()


class Reader:
    """Somebody who follows the page in a fresh home."""

    def __init__(self, home: Path, port: int) -> None:
        self.home = home
        self.folder = home
        self._port = port
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("ALPACA_", "GOOGLE_", "HUB_"))
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**kept, "HOME": str(home), "PATH": path, "COLUMNS": "120"}

    def run(self, commands: str) -> str:
        """Run a block in one shell; return what it printed. The folder it ends in is kept for the next one."""
        # Other tests use the service's usual port, perhaps now.
        commands = re.sub(r"^(dry-work deploy \.)$", rf"\1 --port {self._port}", commands, flags=re.MULTILINE)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{commands}\npwd > '{self.home}/folder'"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}"
        self.folder = Path((self.home / "folder").read_text().strip())
        return done.stdout

    def end(self) -> None:
        """Stop whatever the page has started."""
        subprocess.run(
            ["dry-work", "stop", "--service", "--delete-state"],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=LIMIT_S,
        )


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    reader = Reader(tmp_path, port)
    yield reader
    reader.end()


def test_a_reader_of_the_tutorial_ends_with_a_deployed_agent_and_sees_what_the_page_shows(reader: Reader) -> None:
    printed = ""
    ran = shown = 0
    for block in read_blocks(PAGE):
        if block.mark.startswith("not run"):
            continue
        if block.mark.startswith("file: "):
            (reader.folder / block.mark.removeprefix("file: ")).write_text(block.text)
        elif block.language == "sh":
            printed = reader.run(block.text)
            ran += 1
        else:
            assert block.language == "text", f"a block of {block.language!r} that nothing checks:\n{block.text}"
            lines = {mask(line) for line in printed.splitlines()}
            for line in map(mask, block.text.splitlines()):
                assert any(line in found for found in lines), f"{line!r} is not in\n{printed}"
            shown += 1
    assert ran >= 9
    assert shown >= 7
