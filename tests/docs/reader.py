"""Somebody who follows a page word for word: writes its files, runs its commands, compares what they print.

A block is what stands in a fence; a comment before it says what it is when its language does not:

- `<!-- file: NAME -->` is written into the folder that the commands have come to;
- `<!-- not run: WHY -->` is left out.

A block of `sh` is run; a block of `text` behind it has lines that it has printed, each beginning, end or whole of one;
numbers, times and ids may be others, but not in lines of results.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

LIMIT_S = 300.0
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
    """Somebody who follows a page in a fresh home.

    Args:
        home: an empty folder.
        replaced: patterns of what is another thing here, such as a port, and what stands in its place.
        variables: environment variables that the page has set elsewhere.
    """

    def __init__(
        self, home: Path, *, replaced: Mapping[str, str] | None = None, variables: Mapping[str, str] | None = None
    ) -> None:
        self.home = home
        self.folder = home
        self._replaced = dict(replaced or {})
        self._groups: list[int] = []  # of processes that a block has left behind
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ALPACA_", "GOOGLE_", "HUB_", "PUBSUB_", "DRY_WORK_"))
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**kept, "HOME": str(home), "PATH": path, "COLUMNS": "120", **(variables or {})}

    def follow(self, page: Path) -> tuple[int, int]:
        """Do what a page says; return how many blocks were run, and how many were compared with what came out."""
        printed = ""
        ran = compared = 0
        for block in read_blocks(page):
            if block.mark.startswith("not run"):
                continue
            if block.mark.startswith("file: "):
                self.write(block)
            elif block.language == "sh":
                printed = self.run(block.text)
                ran += 1
            else:
                assert block.language == "text", f"a block of {block.language!r} that nothing checks:\n{block.text}"
                compare(block.text, printed)
                compared += 1
        return ran, compared

    def write(self, block: Block) -> None:
        """Write the file that a block is."""
        path = self.folder / block.mark.removeprefix("file: ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._adapt(block.text), encoding="utf-8")

    def run(self, commands: str) -> str:
        """Run a block in one shell; return what it printed. The folder it ends in, and what it exports, are kept."""
        commands = self._adapt(commands)
        end = f"pwd > '{self.home}/folder'; export -p > '{self.home}/exports'"
        shell = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", f"{commands}\n{end}"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            printed, _ = shell.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            printed, _ = shell.communicate()
            raise AssertionError(f"not done in {LIMIT_S:g} s:\n{commands}\n{printed}") from None
        if is_alive(shell.pid):  # from now on the number stays theirs
            self._groups.append(shell.pid)
        assert shell.returncode == 0, f"{commands}\n{printed}"
        self.folder = Path((self.home / "folder").read_text().strip())
        exported = (self.home / "exports").read_text()
        self.environment |= dict(re.findall(r'^declare -x ([A-Z_]+)="([^"\\]*)"$', exported, re.MULTILINE))
        return printed

    def end(self) -> None:
        """End what blocks have left running."""
        for group in self._groups:
            if is_alive(group):
                os.killpg(group, signal.SIGKILL)

    def _adapt(self, text: str) -> str:
        for pattern, replacement in self._replaced.items():
            text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
        return text


def is_alive(group: int) -> bool:
    """Tell whether a group of processes has any."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def compare(shown: str, printed: str) -> None:
    """Check that each line that a page shows was printed."""
    lines = {mask(line) for line in printed.splitlines()}
    for line in map(mask, shown.splitlines()):
        assert any(line in found for found in lines), f"{line!r} is not in\n{printed}"
