"""Order updates on their way to NATS, in a file: what was not published outlasts NATS, and this process. One thread.

The file holds the number of published bytes in its first line, and then a record a line. It is emptied whenever all is
published. A record that a crash has cut short is left out: its update was not told of yet, and comes again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from dry_work.errors import ConfigError

_HEADER_BYTES = 21  # 20 digits and a line feed


class Record(msgspec.Struct, frozen=True):
    """One order update."""

    event_id: str
    symbol: str
    ts_recv_ns: int
    data: dict[str, Any]


class Outbox:
    """Updates in their order.

    Args:
        path: of the file; None: a temporary one, which ends with the process.

    Raises:
        ConfigError: the file cannot be used, or another process has it.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = _open(path)
        self._encoder = msgspec.json.Encoder(enc_hook=str)
        self._decoder = msgspec.json.Decoder(Record)
        self._read_at = self._recover()
        self.waiting = 0
        for _ in self._iterate():
            self.waiting += 1
        self.recovered = self.waiting

    def append(self, record: Record) -> None:
        """Add a record at the end."""
        self._file.seek(0, os.SEEK_END)
        self._file.write(self._encoder.encode(record) + b"\n")
        self._file.flush()
        self.waiting += 1

    def first(self) -> Record | None:
        """Return the oldest record, None when there is none."""
        for record, _ in self._iterate():
            return record
        return None

    def oldest(self, count: int) -> list[Record]:
        """Return that many of the oldest records, or all when there are fewer."""
        return [record for record, _ in islice(self._iterate(), count)]

    def count_through(self, event_id: str) -> int:
        """Return how many records there are up to the one with `event_id`, 0 when it is not there."""
        for number, (record, _) in enumerate(self._iterate(), 1):
            if record.event_id == event_id:
                return number
        return 0

    def remove_first(self) -> None:
        """Remove the oldest record for good."""
        for _, end in self._iterate():
            self._read_at = end
            self.waiting -= 1
            break
        if self.waiting == 0:
            # First the number, then the length: in between the file is read as empty, not as new.
            self._write_header(0)
            self._file.truncate(_HEADER_BYTES)
            self._read_at = _HEADER_BYTES
        else:
            self._write_header(self._read_at - _HEADER_BYTES)

    def close(self) -> None:
        """Close the file. May be called twice."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _iterate(self) -> Iterator[tuple[Record, int]]:
        at = self._read_at
        self._file.seek(at)
        while (line := self._file.readline()).endswith(b"\n"):
            at += len(line)
            with contextlib.suppress(msgspec.DecodeError):
                yield self._decoder.decode(line), at

    def _recover(self) -> int:
        self._file.seek(0)
        header = self._file.read(_HEADER_BYTES)
        published = int(header) if len(header) == _HEADER_BYTES and header.strip().isdigit() else 0
        if len(header) < _HEADER_BYTES:
            self._file.truncate(0)
            self._write_header(0)
        self._file.seek(0, os.SEEK_END)
        end = self._file.tell()
        at = min(_HEADER_BYTES + published, end)
        self._file.seek(at)
        rest = self._file.read()
        self._file.truncate(at + rest.rfind(b"\n") + 1)
        return at

    def _write_header(self, published: int) -> None:
        self._file.seek(0)
        self._file.write(b"%020d\n" % published)
        self._file.flush()


def _open(path: Path | None) -> BinaryIO:
    if path is None:
        return tempfile.TemporaryFile(prefix="dry-work-outbox-")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(f"{path} is in use by another hub: give each a state directory of its own") from error
    return os.fdopen(descriptor, "r+b")
