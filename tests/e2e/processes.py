"""Programs of Dry Work as processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEADLINE_S = 90.0


class Program:
    """One `dry-work` process whose output is kept line by line."""

    def __init__(self, *args: str, cwd: Path, env: dict[str, str] | None = None) -> None:
        self.args = args
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ALPACA", "PUBSUB"))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dry_work", *args],
            cwd=cwd,
            env={**inherited, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        """Return the first match of `pattern` in a line, within the deadline."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            for line in list(self.lines):
                match = re.search(pattern, line)
                if match:
                    found.append(match)
                    return True
            assert self.process.poll() is None or not self._reader.is_alive(), self.output
            return False

        wait_until(look, lambda: f"no line with {pattern!r} from {self.args}:\n{self.output}")
        return found[0]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(DEADLINE_S)
        return code

    def result(self) -> dict[str, Any]:
        """Return the object of `--json`, the last line."""
        assert self.wait() == 0, self.output
        found: dict[str, Any] = json.loads(self.lines[-1])
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()


def wait_until(condition: Callable[[], bool], what: Callable[[], str], deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.02)
