"""The state directory of an agent: its place, its lease, its heartbeat."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import socket
from pathlib import Path
from typing import Any

import msgspec

from dry_work.clock import Clock
from dry_work.errors import ConfigError
from dry_work.feeds.lease import AgentLease
from dry_work.market.market_state import DataHealth
from dry_work.settings import POD_STATE_DIR, RunSettings

HEARTBEAT = "heartbeat"
JOURNAL = "orders.sqlite"
RECORDINGS = "recordings"
STRATEGY = "strategy.json"


def name_agent(settings: RunSettings, folder: Path) -> str:
    """Return the agent's name in the ids of its orders.

    Without an agent id it follows from the state directory, so that a restart there knows its orders and a run beside
    it, on the same account, does not take them for its own. Local runs have their account alone, and are equal.
    """
    if settings.agent_id or settings.mode == "local":
        return settings.agent_id or "local"
    place = f"{socket.gethostname()} {folder.resolve()}"
    return f"local-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


class AgentState:
    """The directory that one running agent holds.

    A local run begins with an empty one, so that two runs are equal, and leaves nothing behind unless the user named
    the directory.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.agent_id = settings.agent_id or f"local-{secrets.token_hex(4)}"
        self._fresh = settings.mode == "local"
        self._given = settings.state_dir_given
        self._random_id = not settings.agent_id
        base = settings.state_dir
        if self._fresh:
            self.path = base / "local" / self.agent_id
        elif settings.state_dir_given or base == POD_STATE_DIR:
            self.path = base
        else:
            self.path = base / self.agent_id
        self._lease: AgentLease | None = None
        self.nonce = ""

    @property
    def journal_path(self) -> Path:
        """Where the orders journal is."""
        return self.path / JOURNAL

    @property
    def strategy_path(self) -> Path:
        """Where what the strategy keeps is."""
        return self.path / STRATEGY

    @property
    def recordings_path(self) -> Path | None:
        """Where what was received is recorded; None when nothing of the directory would survive the run."""
        return None if self._fresh and not self._given else self.path / RECORDINGS

    def acquire(self) -> None:
        """Take the directory.

        Raises:
            LeaseHeldError: a running process has it.
            ConfigError: it cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--state-dir {self.path}: cannot be made: {error.strerror}") from error
        self._lease = AgentLease(self.path, self.agent_id)
        self._lease.acquire()
        self.nonce = self._lease.nonce
        if self._fresh:
            for name in (JOURNAL, f"{JOURNAL}-wal", f"{JOURNAL}-shm", HEARTBEAT, STRATEGY):
                (self.path / name).unlink(missing_ok=True)

    def beat(self, clock: Clock, data: DataHealth | None = None) -> None:
        """Write the heartbeat: the time of writing, the process, and how its market data stand."""
        path = self.path / HEARTBEAT
        fresh = path.with_suffix(".new")
        content: dict[str, Any] = {"time_ns": clock.time_ns(), "pid": os.getpid()}
        if data is not None:
            content["data"] = msgspec.to_builtins(data)
        fresh.write_text(json.dumps(content) + "\n")
        fresh.replace(path)

    def release(self) -> None:
        """Give the directory back. May be called twice."""
        if self._lease is None:
            return
        self._lease.release()
        self._lease = None
        # A record of orders is kept, unless it is that of a local run, which the same command gives again.
        if not self._given and (self._fresh or (self._random_id and not self.journal_path.exists())):
            shutil.rmtree(self.path, ignore_errors=True)
            for folder in self.path.parents[: 2 if self._fresh else 1]:  # down to the state directory, not beyond
                try:
                    folder.rmdir()
                except OSError:  # another agent's files are in it
                    break
