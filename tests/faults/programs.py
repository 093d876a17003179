"""Programs of Dry Work as processes that are forked from a warm one, so that a start takes no imports.

Each runs `dry-work ARGS` in a folder of its own, and is the process that a user would start but for the launcher: it
may count its I/O boundaries and kill itself at one of them.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

PRELOADED = [
    "dry_work.cli", "dry_work.cli.run", "dry_work.cli.exchange", "dry_work.cli.hub", "dry_work.cli.pubsub",
    "dry_work.cli.signals", "dry_work.engine.runner", "dry_work.exchange.server", "dry_work.exchange.synthetic",
    "dry_work.feeds.recorded_ticks", "dry_work.hub.service", "dry_work.hub.settings", "dry_work.hub.sinks.pubsub",
    "dry_work.hub.upstreams.alpaca_data", "dry_work.embedded.pubsub", "dry_work.observability.logging", "pandas",
    "pyarrow.csv", "alpaca.trading.client", "google.cloud.pubsub_v1", "tests.faults.boundaries",
    "tests.faults.programs",
]  # fmt: skip
DEADLINE_S = 90.0
_PR_SET_PDEATHSIG = 1
_INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "TZ", "PYTHONPATH", "VIRTUAL_ENV")

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


def warm_pool(jobs: int) -> Any:
    """Return a pool of processes forked from the warm one; each does one thing and ends."""
    return _context.Pool(jobs, initializer=_die_with_parent, maxtasksperchild=1)


def _die_with_parent() -> None:
    """End this process by SIGKILL when the warm one ends, which ends with the one that asked for it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def run_program(args: list[str], env: dict[str, str], folder: str, log: str, kill_at: str | None) -> None:
    """Run `dry-work ARGS` in this process; called in the child.

    Args:
        kill_at: name of the I/O boundary at which it ends by SIGKILL; empty: they are only listed, in `LOG.boundaries`;
            None: they are not counted.
    """
    _die_with_parent()
    os.setsid()
    os.chdir(folder)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(handle, stream.fileno())
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.close(handle)
    inherited = {name: value for name, value in os.environ.items() if name in _INHERITED}
    os.environ.clear()
    os.environ.update({**inherited, **env})
    if kill_at is not None:
        from tests.faults.boundaries import Boundaries

        Boundaries(Path(f"{log}.boundaries"), kill_at=kill_at).install()
    from dry_work.cli import main

    main(args)


class Program:
    """One process, started at once. Its output is in the file `log`."""

    def __init__(
        self, *args: str, folder: Path, log: str, env: dict[str, str] | None = None, kill_at: str | None = None
    ) -> None:
        self.log = folder / log
        self.args = args
        self.process = _context.Process(
            target=run_program, args=(list(args), env or {}, str(folder), str(self.log), kill_at), daemon=True
        )
        self.process.start()

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    @property
    def is_running(self) -> bool:
        return self.process.exitcode is None

    def wait_for_line(self, pattern: str, deadline_s: float = DEADLINE_S) -> re.Match[str]:
        """Return the first match of `pattern` in the output, within the deadline."""
        end_s = time.monotonic() + deadline_s
        while True:
            found = re.search(pattern, self.output)
            if found is not None:
                return found
            if not self.is_running or time.monotonic() > end_s:
                raise AssertionError(f"no {pattern!r} from {' '.join(self.args)}:\n{self.output[-3000:]}")
            time.sleep(0.01)

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit code, below 0 for a signal; None when it still runs after so long."""
        self.process.join(timeout_s)
        return self.process.exitcode

    def kill(self) -> None:
        """End it with SIGKILL, if it runs."""
        if self.process.exitcode is None and self.process.pid is not None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(DEADLINE_S)

    def close(self) -> None:
        """End it and free what it holds here."""
        self.kill()
        self.process.close()
