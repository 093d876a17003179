"""One hub at a time in a state directory, by a lock that the kernel frees when the process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from dry_work.errors import ConfigError, LeaseHeldError

LOCK_NAME = "hub.lock"


class StateLock:
    """Holds a state directory from `acquire` to `release`.

    Args:
        folder: it is made when it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the directory.

        Raises:
            LeaseHeldError: another hub has it.
            ConfigError: it cannot be used.
        """
        if self._descriptor is not None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise LeaseHeldError(
                f"the state directory {self._folder} is in use by another hub"
                f"{f', process {holder}' if holder else ''}: stop that one, or give this one a --state-dir of its own"
            ) from None
        except OSError as error:  # a file system without locks
            os.close(descriptor)
            raise self._unusable(error) from error
        with contextlib.suppress(OSError):  # who holds it is for people alone
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the directory back. May be called twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing does not, while a child is between fork and exec
            os.close(descriptor)

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"the state directory {self._folder} (--state-dir, HUB_STATE_DIR) cannot be used: {error.strerror or error}"
        )
