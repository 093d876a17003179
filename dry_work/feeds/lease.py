"""The lease of an agent id: one process at a time, by a lock in the state directory. Thread-safe.

The kernel frees the lock when the process ends, however it ends. The lock file and the owner nonce stay: the nonce is
what the agent's subscriptions are marked with, so that the same state directory may take them over after a crash.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import socket
from datetime import UTC, datetime
from pathlib import Path

from dry_work.clock import Clock, SystemClock
from dry_work.errors import ConfigError, LeaseHeldError

_AGENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_NONCE = re.compile(r"[0-9a-f]{32}")

ALLOWED = "1 to 63 letters, digits, hyphens, underscores and dots, beginning with a letter or digit"


def check_agent_id(agent_id: str) -> str:
    """Return `agent_id` when it is usable in file names and subscription ids.

    Raises:
        ConfigError: when it is not.
    """
    if not _AGENT_ID.fullmatch(agent_id):
        raise ConfigError(f"AGENT_ID {agent_id!r} cannot be used; allowed are {ALLOWED}")
    return agent_id


class AgentLease:
    """Holds an agent id from `acquire` to `release`.

    Args:
        state_dir: the agent's state directory; it is made when it does not exist.
        agent_id: see `ALLOWED`.
    """

    def __init__(self, state_dir: Path | str, agent_id: str, *, clock: Clock | None = None) -> None:
        self.agent_id = check_agent_id(agent_id)
        self.state_dir = Path(state_dir)
        self.nonce = ""  # known after `acquire`
        self._clock = clock if clock is not None else SystemClock()
        self._lock_path = self.state_dir / f"agent-{agent_id}.lock"
        self._nonce_path = self.state_dir / f"agent-{agent_id}.owner"
        self._descriptor: int | None = None

    def acquire(self) -> AgentLease:
        """Take the lease.

        Raises:
            LeaseHeldError: another process holds it, or another lease of this process.
            ConfigError: the state directory cannot be used.
        """
        if self._descriptor is not None:
            return self
        try:
            self.state_dir.mkdir(parents=True, exist_ok=True)
            # Never inherited: a child process must not keep the lease when this one is gone.
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _describe_holder(descriptor)
            os.close(descriptor)
            raise LeaseHeldError(
                f"agent id {self.agent_id!r} is in use{holder}, state directory {self.state_dir}: two processes would "
                "each get half of the bars. Stop that process, or choose another AGENT_ID or --state-dir"
            ) from None
        except OSError as error:  # a file system without locks
            os.close(descriptor)
            raise self._unusable(error) from error
        try:
            self.nonce = self._read_or_make_nonce()
            self._record_holder(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise self._unusable(error) from error
        self._descriptor = descriptor
        return self

    def release(self) -> None:
        """Give the lease back. May be called twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):  # a full disk must not keep the lease
                os.ftruncate(descriptor, 0)
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing does not, while a child is between fork and exec
            os.close(descriptor)

    def __enter__(self) -> AgentLease:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"state directory {self.state_dir} cannot be used ({error.strerror or error}); "
            "choose a writable one with --state-dir"
        )

    def _read_or_make_nonce(self) -> str:
        with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
            nonce = self._nonce_path.read_text(encoding="ascii").strip()
            if _NONCE.fullmatch(nonce):
                return nonce
        nonce = secrets.token_hex(16)
        written = self._nonce_path.with_suffix(".owner.new")
        with written.open("w", encoding="ascii") as file:
            file.write(f"{nonce}\n")
            file.flush()
            os.fsync(file.fileno())
        written.replace(self._nonce_path)
        return nonce

    def _record_holder(self, descriptor: int) -> None:
        since = datetime.fromtimestamp(self._clock.time_ns() // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(facts).encode(), 0)


def _describe_holder(descriptor: int) -> str:
    """Return who holds the lock, as far as the file says."""
    try:
        facts = json.loads(os.pread(descriptor, 4096, 0))
        return f" by process {facts['pid']} on {facts['host']} since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return " by another process"
