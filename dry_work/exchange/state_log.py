"""The log of an exchange's commands in its state directory. One thread.

Every line that somebody relies on is on the disk before its command is carried out, so it survives `kill -9` and a
power cut. The directory is held by a lock of the kernel's, which ends with the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from dry_work.errors import CodecError, ConfigError, LeaseHeldError
from dry_work.exchange.commands import FORMAT, Command, LogHeader, decode_log, encode_line

LOG_NAME = "exchange.log"
LOCK_NAME = "exchange.lock"

_sync = getattr(os, "fdatasync", os.fsync)


class StateLog:
    """The log in `folder`, which is made when it does not exist."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / LOG_NAME
        self._lock: int | None = None
        self._file: int | None = None
        self._length = 0

    def open(self, header: LogHeader) -> list[Command]:
        """Take the directory; return the commands of the runs before, none when it is new.

        A last line whose writing was cut off is removed: its command was never carried out.

        Raises:
            LeaseHeldError: another exchange has it.
            ConfigError: it cannot be used, its log is damaged, or belongs to another recording or other rules.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            found, commands, self._length = decode_log(self.path.read_bytes())
            if found is not None:
                self._check(found, header)
            os.ftruncate(self._file, self._length)
            if found is None:
                self._write(encode_line(header), sync=True)
                self._sync_folder()
        except OSError as error:
            self.close()
            raise ConfigError(f"--state-dir {self.folder} cannot be used: {error.strerror or error}") from error
        except CodecError as error:
            self.close()
            raise ConfigError(
                f"{self.path}: {error.reason}; move the file away to begin anew, or cut it before that line to go on "
                "from there"
            ) from error
        except BaseException:
            self.close()
            raise
        return commands

    def append(self, command: Command, *, sync: bool = True) -> None:
        """Write a command; with `sync` it is on the disk when this returns.

        Raises:
            OSError: it is not, and nothing can be said of it any more.
        """
        self._write(encode_line(command), sync=sync)

    def close(self) -> None:
        """Give the directory back. May be called twice."""
        for descriptor in (self._file, self._lock):
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._file = self._lock = None

    def _write(self, line: bytes, *, sync: bool) -> None:
        if self._file is None:
            raise OSError(f"{self.path} is closed")
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self._file, left) :]
            if sync:
                _sync(self._file)
        except OSError:
            with contextlib.suppress(OSError):  # a part of a line must not stand before others
                os.ftruncate(self._file, self._length)
            raise
        self._length += len(line)

    def _take_lock(self) -> None:
        self._lock = os.open(self.folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LeaseHeldError(
                f"--state-dir {self.folder} is in use by another exchange: stop it, or give another directory"
            ) from None

    def _check(self, found: LogHeader, wanted: LogHeader) -> None:
        if found.format != FORMAT:
            raise ConfigError(f"{self.path}: has the format {found.format!r}, this program reads {FORMAT!r}")
        differences = [
            f"{what} {_shorten(before)}, now {_shorten(now)}"
            for what, before, now in (
                ("data with fingerprint", found.fingerprint, wanted.fingerprint),
                ("--rules", found.rules, wanted.rules),
                ("--cash", found.cash, wanted.cash),
                ("--races", found.changes_in_flight, wanted.changes_in_flight),
                ("--matching", found.matching, wanted.matching),
                ("trades and quotes with fingerprint", found.ticks, wanted.ticks),
                ("--wash-trades", found.wash_trades, wanted.wash_trades),
                ("synthetic options", found.options, wanted.options),
                ("--assets with fingerprint", found.assets, wanted.assets),
                ("--partial-fills", found.partial_fills, wanted.partial_fills),
                ("--seed", found.seed, wanted.seed),
            )
            if before != now
        ]
        if differences:
            raise ConfigError(
                f"{self.path}: was begun with {'; '.join(differences)}. Start it as before, or give another --state-dir"
            )

    def _sync_folder(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _shorten(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    text = str(value) or "none"
    return f"{text[:12]}…" if len(text) > 20 else text
