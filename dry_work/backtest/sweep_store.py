"""Results of a sweep as they come: an append-only file of checked lines, from which the same sweep goes on.

`progress-<digest>.jsonl`: the first line says whose results they are (agent, data, settings), then a line for each
parameter set, each with a CRC-32 in front. A sweep with another agent, other data or other settings has another file,
so nothing is lost or mixed. What was written survives the end of the process at once, and that of the machine within a
second.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from dry_work.backtest.sweep_task import SweepRow
from dry_work.errors import LeaseHeldError, StorageError

_SYNC_S = 1.0
_FORMAT = 1


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Whose results they are: results with an equal identity belong together."""

    agent: str
    source_digest: str
    fingerprint: str  # of the data
    settings: dict[str, str]  # all else that a result depends on, in words
    version: str  # of Dry Work
    format: int = _FORMAT

    @property
    def digest(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()

    def describe_change(self, before: Identity) -> str:
        """Return what is another than `before`."""
        changed = []
        if self.agent != before.agent:
            changed.append(f"the agent ({before.agent} → {self.agent})")
        elif self.source_digest != before.source_digest:
            changed.append("the strategy's file")
        if self.fingerprint != before.fingerprint:
            changed.append("the data")
        names = sorted(self.settings.keys() | before.settings.keys())
        for name in names:
            old, new = before.settings.get(name, "none"), self.settings.get(name, "none")
            if old != new:
                changed.append(f"{name} ({old} → {new})")
        if self.version != before.version or self.format != before.format:
            changed.append(f"Dry Work ({before.version} → {self.version})")
        return ", ".join(changed)


class SweepStore:
    """The results of one sweep in a folder. One process at a time; `close` may be called twice.

    Args:
        folder: is made when it is missing.
        identity: whose results they are.
        fresh: True puts earlier results of the same sweep aside.

    Raises:
        StorageError: the folder cannot be written.
        LeaseHeldError: another process writes the same results.

    Attributes:
        rows: by the key of the parameter set, those found and those added.
        note: what was found and why, for people; empty when there was nothing.
    """

    def __init__(self, folder: Path, identity: Identity, *, fresh: bool = False) -> None:
        self.rows: dict[str, SweepRow] = {}
        self.note = ""
        self.path = folder / f"progress-{identity.digest[:12]}.jsonl"
        self._synced_s = time.monotonic()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StorageError(folder, f"cannot be written: {error.strerror}; choose another --out") from None
        try:
            self._open(folder, identity, fresh=fresh)
        except BaseException:
            self.close()
            raise

    def _open(self, folder: Path, identity: Identity, *, fresh: bool) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LeaseHeldError(
                f"{self.path}: another sweep is writing it; wait for it, or choose another --out"
            ) from None
        content = _read_all(self._descriptor)
        self._end = content.rfind(b"\n") + 1
        header, lines, damaged = _parse(content[: self._end])
        if header is None and content:
            self._put_aside(content, "damaged")
            self.note = f"{self.path.name} was damaged and was put aside: starting afresh"
        elif lines and fresh:
            self._put_aside(content, "old")
            self.note = f"{len(lines):,} earlier results were put aside, as asked"
        elif header is not None:
            self.rows = {row.key: row for row in lines}
            torn = damaged + (self._end < len(content))
            if self.rows:
                self.note = f"going on: {len(self.rows):,} results are there already"
            if torn:
                self.note += f"{'; ' if self.note else ''}{torn} damaged {'line' if torn == 1 else 'lines'} left out"
            os.ftruncate(self._descriptor, self._end)
            os.lseek(self._descriptor, self._end, os.SEEK_SET)
            return
        before = _find_newest(folder, self.path)
        if before is not None and not self.note:
            self.note = f"starting afresh, since this is another than before: {identity.describe_change(before)}"
        os.ftruncate(self._descriptor, 0)
        self._end = 0
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._append(msgspec.json.encode(identity))

    def _put_aside(self, content: bytes, why: str) -> None:
        for number in range(1, 10_000):
            aside = self.path.with_suffix(f".{why}-{number}")
            if not aside.exists():
                aside.write_bytes(content)
                return

    def add(self, row: SweepRow) -> None:
        """Append a result.

        Raises:
            StorageError: there is no room for it; what was there before stays whole.
        """
        self._append(msgspec.json.encode(row))
        self.rows[row.key] = row
        if time.monotonic() - self._synced_s >= _SYNC_S:
            self.sync()

    def sync(self) -> None:
        """Bring what was appended to the disk."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise StorageError(self.path, f"cannot be written: {error.strerror}") from None
        self._synced_s = time.monotonic()

    def close(self) -> None:
        """Sync and let go of the file."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.fsync(descriptor)
            os.close(descriptor)

    def _append(self, text: bytes) -> None:
        line = memoryview(b"%08x %s\n" % (zlib.crc32(text), text))
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._end)
                os.lseek(self._descriptor, self._end, os.SEEK_SET)
            kept = f"{len(self.rows):,} results are kept; make room and give the same command to go on"
            raise StorageError(self.path, f"cannot be written: {error.strerror}; {kept}") from None
        self._end = os.lseek(self._descriptor, 0, os.SEEK_CUR)


def _read_all(descriptor: int) -> bytes:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read()


def _parse(content: bytes) -> tuple[Identity | None, list[SweepRow], int]:
    """Return whose results a file holds (None: not readable), the results, and how many lines were damaged."""
    first, *rest = content.split(b"\n")[:-1] or [b""]
    try:
        identity = msgspec.json.decode(_checked(first), type=Identity)
    except (ValueError, msgspec.DecodeError):
        return None, [], 0
    rows, damaged = [], 0
    for line in rest:
        try:
            rows.append(msgspec.json.decode(_checked(line), type=SweepRow))
        except (ValueError, msgspec.DecodeError):
            damaged += 1
    return identity, rows, damaged


def _checked(line: bytes) -> bytes:
    crc, _, text = line.partition(b" ")
    if int(crc, 16) != zlib.crc32(text):
        raise ValueError("the line does not match its checksum")
    return text


def _find_newest(folder: Path, own: Path) -> Identity | None:
    """Return whose results the newest other file of a sweep in `folder` holds."""
    found: Mapping[Path, float] = {
        path: path.stat().st_mtime for path in folder.glob("progress-*.jsonl") if path != own
    }
    for path in sorted(found, key=lambda path: -found[path]):
        with path.open("rb") as file:
            identity, _, _ = _parse(file.readline())
        if identity is not None:
            return identity
    return None
