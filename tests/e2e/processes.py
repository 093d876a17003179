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

from tests.ports import find_free_port

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
            has_ended = not self._reader.is_alive()  # and all that it wrote is in the lines
            for line in list(self.lines):
                match = re.search(pattern, line)
                if match:
                    found.append(match)
                    return True
            assert not has_ended, f"ended without {pattern!r}:\n{self.output}"
            return False

        wait_until(look, lambda: f"no line with {pattern!r} from {self.args}:\n{self.output}")
        return found[0]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(DEADLINE_S)
        return code

    def result(self, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """Return the object of `--json`, the last line."""
        assert self.wait(timeout_s) == 0, self.output
        found: dict[str, Any] = json.loads(self.lines[-1])
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()


class Service:
    """A program that listens on a port, and may be killed and started again on the same one.

    Args:
        start: starts a program.
        args: its arguments, without `--port`.
        ready: pattern of the line that says it is ready; its group `port`, if it has one, is where it listens.
    """

    def __init__(
        self, start: Callable[..., Program], *args: str, ready: str, env: dict[str, str] | None = None
    ) -> None:
        self._start, self._args, self._ready, self._env = start, args, ready, env
        self.port = find_free_port() if "(?P<port>" in ready else 0
        self._port_args = ("--port", str(self.port)) if self.port else ()
        self.start()

    def start(self) -> None:
        """Start it; returns when it is ready."""
        self.program = self._start(*self._args, *self._port_args, env=self._env)
        match = self.program.wait_for_line(self._ready)
        if self.port:
            assert int(match["port"]) == self.port

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.program.send(signal.SIGKILL)
        self.program.wait()


def wait_until(condition: Callable[[], bool], what: Callable[[], str], deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.02)
