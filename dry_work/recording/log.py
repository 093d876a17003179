"""Append-only logs on disk: a folder of numbered segments for each session. Writer and reader belong to one thread.

`<root>/<session>/000001.dwlog`, `000002.dwlog`, ...: the bytes are those of `dry_work.recording.frames`. A session is
one life of one writer; nobody appends to a session of before.

What survives: frames that were flushed survive the death of the process (`kill -9`), frames that were synced survive
the death of the machine. `LogWriter` flushes when asked, when `flush_bytes` wait, and at every rotation; it syncs every
`sync_s` seconds, at every rotation and at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from dry_work.clock import SECOND_NS, Clock, SystemClock
from dry_work.recording.frames import (
    END,
    FIRST_KIND,
    NOTE,
    Damage,
    DamageKind,
    Frame,
    SegmentDecoder,
    SegmentHead,
    encode_frame,
    encode_head,
)

SUFFIX = ".dwlog"
SEGMENT_BYTES = 64 * 1024 * 1024
FLUSH_BYTES = 256 * 1024
SYNC_S = 5.0

_SEGMENT = re.compile(r"(\d{6,})\.dwlog", re.ASCII)
_READ_BYTES = 1024 * 1024


def name_session(created_ns: int, nonce: str | None = None) -> str:
    """Return a name for a session that sorts by time: 20240611T133000Z-1f2e3d4c."""
    at = datetime.fromtimestamp(created_ns // SECOND_NS, UTC)
    return f"{at:%Y%m%dT%H%M%SZ}-{nonce or secrets.token_hex(4)}"


class LogWriter:
    """Writes one session.

    Every `OSError` of the system goes through to the caller, and ends the writer: from then on it takes nothing more.
    What was whole on disk stays readable.

    Args:
        root: folder of the sessions; made when it does not exist.
        session: name of the new session, see `name_session`; default: one of now.
        writer: what writes, for the head of each segment.
        facts: about the session, for the head of each segment; JSON values.
        segment_bytes: a segment that would grow beyond this is closed and the next one begun.
        flush_bytes: frames that wait are written when they are this many bytes; `flush` writes them before.
        sync_s: seconds between syncs to the disk, see `sync_when_due`.
        keep_bytes: all sessions below `root` together are held below this by removing the oldest segments, whenever a
            segment is begun; None: everything is kept. What is removed is noted in the log.
    """

    def __init__(
        self,
        root: Path,
        *,
        session: str | None = None,
        writer: str,
        facts: Mapping[str, Any] | None = None,
        clock: Clock | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        flush_bytes: int = FLUSH_BYTES,
        sync_s: float = SYNC_S,
        keep_bytes: int | None = None,
    ) -> None:
        self._clock = clock if clock is not None else SystemClock()
        self.session = session or name_session(self._clock.time_ns())
        self.folder = root / self.session
        self.frames = 0  # recorded frames (not the log's own) that were written to the system
        self.bytes = 0  # of all segments, written to the system
        self._root = root
        self._writer = writer
        self._facts = dict(facts or {})
        self._segment_bytes = segment_bytes
        self._flush_bytes = flush_bytes
        self._sync_s = sync_s
        self._keep_bytes = keep_bytes
        if keep_bytes is not None and keep_bytes < segment_bytes:
            raise ValueError(f"a bound of {keep_bytes:,} bytes does not hold one segment of {segment_bytes:,}")
        self._descriptor: int | None = None
        self._segment = 0
        self._size = 0  # of the segment, with what waits
        self._first_frame_at = 0
        self._digest = b""
        self._waiting: list[tuple[bytes, int]] = []  # bytes, and how many of the caller's frames they are
        self._waiting_bytes = 0
        self._synced_s = self._clock.monotonic()
        self._is_synced = True
        self.folder.mkdir(parents=True)
        try:
            self._begin_segment()
            self.flush()
        except OSError:
            self._abandon()
            raise

    @property
    def is_open(self) -> bool:
        """Tell whether frames are taken."""
        return self._descriptor is not None

    def append(self, frame: Frame) -> None:
        """Add a frame; it is on its way when `flush` was called.

        Raises:
            ValueError: the frame cannot be encoded, or the writer has ended.
            OSError: it could not be written.
        """
        if self._descriptor is None:
            raise ValueError("the log has ended")
        data, digest = encode_frame(frame, self._digest)
        if self._size + len(data) > self._segment_bytes and self._size > self._first_frame_at:
            self._rotate()
            data, digest = encode_frame(frame, self._digest)
        self._add(data, digest, frames=frame.kind >= FIRST_KIND)
        if self._waiting_bytes >= self._flush_bytes:
            self.flush()

    def note(self, facts: Mapping[str, Any]) -> None:
        """Add a note about the recording itself."""
        self.append(Frame(NOTE, 0, self._clock.time_ns(), json.dumps(facts).encode()))

    def flush(self) -> None:
        """Write what waits to the system, where it survives this process."""
        if not self._waiting or self._descriptor is None:
            return
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        data = memoryview(b"".join([piece for piece, _ in waiting]))
        done = 0
        self._is_synced = False
        try:
            while done < len(data):
                done += os.write(self._descriptor, data[done:])
        except OSError:
            self._abandon()
            raise
        finally:
            self.bytes += done
            for piece, frames in waiting:
                done -= len(piece)
                self.frames += frames if done >= 0 else 0

    def sync(self) -> None:
        """Flush, and let the disk take it, where it survives the machine."""
        self.flush()
        self._synced_s = self._clock.monotonic()
        if self._descriptor is not None and not self._is_synced:
            try:
                os.fsync(self._descriptor)
            except OSError:
                self._abandon()
                raise
            self._is_synced = True

    def sync_when_due(self) -> None:
        """Sync when the last time is `sync_s` ago."""
        if self._clock.monotonic() - self._synced_s >= self._sync_s:
            self.sync()

    def sync_wait_s(self) -> float | None:
        """Return the seconds until a sync is due; None: there is nothing to sync."""
        if self._is_synced or self._descriptor is None:
            return None
        return max(0.0, self._synced_s + self._sync_s - self._clock.monotonic())

    def close(self) -> None:
        """End the session in order. May be called twice."""
        if self._descriptor is None:
            return
        self._end_segment()

    def discard(self) -> None:
        """End the session and remove it, as when nothing was recorded. The writer must be open."""
        self.close()
        for path in find_segments(self.folder):
            path.unlink()
        self.folder.rmdir()

    def _add(self, data: bytes, digest: bytes, *, frames: int = 0) -> None:
        self._waiting.append((data, frames))
        self._waiting_bytes += len(data)
        self._size += len(data)
        self._digest = digest

    def _rotate(self) -> None:
        self._end_segment()
        try:
            self._begin_segment()
        except OSError:
            self._abandon()
            raise

    def _begin_segment(self) -> None:
        self._segment += 1
        path = self.folder / f"{self._segment:06d}{SUFFIX}"
        head = SegmentHead(
            session=self.session,
            segment=self._segment,
            created_ns=self._clock.time_ns(),
            writer=self._writer,
            chain=self._digest.hex(),
            facts=self._facts,
        )
        data, digest = encode_head(head)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        _sync_folder(self.folder)
        self._size = 0
        self._add(data, digest)
        self._first_frame_at = self._size
        if self._keep_bytes is not None:
            removed = _remove_oldest(self._root, path, self._keep_bytes - self._segment_bytes)
            if removed:
                self._add(*encode_frame(_note_removed(removed, self._clock), self._digest))

    def _end_segment(self) -> None:
        self._add(*encode_frame(Frame(END, 0, self._clock.time_ns(), b""), self._digest))
        self.sync()
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _abandon(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _note_removed(removed: list[str], clock: Clock) -> Frame:
    facts = {"event": "removed", "segments": removed, "why": "the recordings had reached their bound"}
    return Frame(NOTE, 0, clock.time_ns(), json.dumps(facts).encode())


def _remove_oldest(root: Path, current: Path, allowed_bytes: int) -> list[str]:
    """Remove the oldest segments until those beside `current` are at most `allowed_bytes`; return their names."""
    segments: list[tuple[Path, int]] = []
    for session in find_sessions(root):
        for path in find_segments(session):
            with contextlib.suppress(OSError):
                if path != current:
                    segments.append((path, path.stat().st_size))
    total = sum(size for _, size in segments)
    removed: list[str] = []
    for path, size in segments:
        if total <= allowed_bytes:
            break
        with contextlib.suppress(OSError):  # one that cannot be removed must not end the recording
            path.unlink()
            total -= size
            removed.append(path.relative_to(root).as_posix())
            path.parent.rmdir()  # unless others are in it
    return removed


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot, and need not
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_segments(session: Path) -> list[Path]:
    """Return the segments of a session's folder in their order."""
    found = [(int(match[1]), path) for path in session.iterdir() if (match := _SEGMENT.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def find_sessions(root: Path) -> list[Path]:
    """Return the folders at or below `root` that hold segments, the oldest session first."""
    folders = {path.parent for path in root.rglob(f"*{SUFFIX}") if _SEGMENT.fullmatch(path.name)}
    return sorted(folders, key=lambda folder: (folder.name, str(folder)))


class SegmentReader:
    """Reads one segment. Iterate once; `head`, `damage` and `is_closed` are known after that.

    Never raises for what is in the file, nor for a file that cannot be read: `damage` tells. What is yielded before is
    whole and in its place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: Damage | None = None
        self._decoder = SegmentDecoder()

    @property
    def head(self) -> SegmentHead | None:
        """The segment's head, once a frame was read."""
        return self._decoder.head

    @property
    def digest(self) -> bytes:
        """The digest of the newest frame."""
        return self._decoder.digest

    @property
    def is_closed(self) -> bool:
        """Tell whether the writer closed it in order."""
        return self._decoder.is_closed

    def __iter__(self) -> Iterator[Frame]:
        try:
            with self.path.open("rb") as file:
                while self._decoder.damage is None and (data := file.read(_READ_BYTES)):
                    yield from self._decoder.feed(data)
            damage = self._decoder.finish()
        except OSError as error:
            reason = f"cannot be read: {error.strerror or error}"
            damage = Damage(kind="unreadable", offset=self._decoder.offset, reason=reason)
        if damage is not None:
            self.damage = msgspec.structs.replace(damage, path=str(self.path))


class SessionReader:
    """Reads a session: frames of all its segments, up to the first damage.

    Iterate once. Afterwards `damage` tells where and why reading stopped, and `is_cut` whether that is only a last
    frame that a killed writer did not finish. That the oldest segments are gone is no damage: `first_segment` tells.

    Args:
        folder: the session's folder.
        salvage: go on behind damage with the next segment. `damages` then lists every one; what follows damage is whole
            in itself, but no longer bound to what was before.
    """

    def __init__(self, folder: Path, *, salvage: bool = False) -> None:
        self.folder = folder
        self.head: SegmentHead | None = None  # of the first segment that can be read
        self.first_segment = 0
        self.damages: list[Damage] = []
        self.is_closed = False
        self.is_cut = False
        self._salvage = salvage

    @property
    def damage(self) -> Damage | None:
        """The first damage, None when there is none."""
        return self.damages[0] if self.damages else None

    def __iter__(self) -> Iterator[Frame]:
        try:
            paths = find_segments(self.folder)
        except OSError as error:
            self._tell("unreadable", self.folder, f"cannot be read: {error.strerror or error}")
            return
        self.first_segment = int(paths[0].stem) if paths else 0
        expected: SegmentHead | None = None  # of the next segment, as far as the one before knows it
        for position, path in enumerate(paths):
            reader = SegmentReader(path)
            is_checked = False
            for frame in reader:
                if not is_checked:
                    is_checked = True
                    if not self._fits(path, reader.head, expected) and not self._salvage:
                        return
                if frame.kind != END:
                    yield frame
            if self.head is None:
                self.head = reader.head
            is_last = position == len(paths) - 1
            self.is_closed = is_last and reader.is_closed
            if reader.damage is not None:
                self.is_cut = is_last and reader.damage.kind == "truncated" and not self.damages
                self.damages.append(reader.damage)
            elif not is_last and not reader.is_closed:
                self._tell("truncated", path, "the segment ends before its end, and another one follows")
            if self.damages and not self._salvage:
                return
            head = reader.head
            expected = None
            if head is not None and reader.is_closed and reader.damage is None:
                expected = SegmentHead(
                    session=head.session, segment=head.segment + 1, created_ns=0, writer="", chain=reader.digest.hex()
                )

    def _fits(self, path: Path, head: SegmentHead | None, expected: SegmentHead | None) -> bool:
        """Check that a segment belongs behind the one before it."""
        assert head is not None
        self.head = self.head or head
        if expected is None:
            return True
        if head.session != expected.session:
            return self._tell("chain", path, f"it belongs to session {head.session}, not to {expected.session}")
        if head.segment != expected.segment:
            return self._tell("missing", path, f"segment {expected.segment} is missing before it")
        if head.chain != expected.chain:
            return self._tell("chain", path, "the chain is broken: the segment before it is another one")
        return True

    def _tell(self, kind: DamageKind, path: Path, reason: str) -> bool:
        self.damages.append(Damage(kind=kind, offset=0, reason=reason, path=str(path)))
        return False
