"""A recording's columns in one flat file that any number of processes map into memory: they share one copy.

The file is a length, a JSON header and the columns, each at a multiple of 64 bytes. It is written once and never
changed. A `SharedRecording` carries it: its file descriptor is what worker processes of this machine inherit, and
pickled it becomes the bytes, which the receiving machine writes to its cache once and maps.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from dry_work.errors import StorageError
from dry_work.feeds.recorded import Recording
from dry_work.feeds.recorded_files import Column

_ALIGN = 64
_LENGTH_BYTES = 8


class _Place(msgspec.Struct, frozen=True):
    symbol: str
    column: str
    dtype: str
    count: int
    offset: int  # from the end of the header


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    fingerprint: str
    length_ns: int
    places: tuple[_Place, ...]
    size: int  # of the columns, in bytes


class SharedRecording:
    """The columns of a recording in a file that has no name, so that it is gone when its last process is.

    Args:
        recording: is written to the file and can be dropped.
        fingerprint: what the recording is known as, where it is a part of another one; None: its own.

    Raises:
        StorageError: there is no room for the file.
    """

    def __init__(self, recording: Recording, *, fingerprint: str | None = None) -> None:
        self.fingerprint = recording.fingerprint if fingerprint is None else fingerprint
        file: BinaryIO | None = None
        try:
            file = tempfile.TemporaryFile(prefix="dry-work-")  # noqa: SIM115  closed by `close`
            _write(recording, self.fingerprint, file)
        except OSError as error:
            if file is not None:
                with contextlib.suppress(OSError):  # it cannot be flushed either
                    file.close()
            raise StorageError(
                tempfile.gettempdir(), f"no room for the data that the workers share: {error.strerror}; set TMPDIR"
            ) from None
        self._file = file

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        return self._file.fileno()

    def load(self) -> Recording:
        """Return the recording, mapped."""
        return map_recording(self.fileno())

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        self._file.close()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return CachedRecording, (self.fingerprint, _sendable(self.fileno(), protocol))


class CachedRecording:
    """The columns of a recording that came from another process, in this machine's cache.

    Args:
        fingerprint: of the recording.
        content: of the file; written only when the cache does not have it.
    """

    def __init__(self, fingerprint: str, content: Any) -> None:
        self.fingerprint = fingerprint
        self.path = cache_folder() / f"{fingerprint}-{memoryview(content).nbytes}.columns"
        if not self.path.exists():
            write_whole(self.path, content)

    def load(self) -> Recording:
        """Return the recording, mapped."""
        with self.path.open("rb") as file:
            return map_recording(file.fileno())

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        with self.path.open("rb") as file:
            return CachedRecording, (self.fingerprint, _sendable(file.fileno(), protocol))


def _sendable(descriptor: int, protocol: Any) -> Any:
    mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    # Out of band, where the protocol has that: no copy on the way to the network.
    return pickle.PickleBuffer(mapped) if int(protocol) >= 5 else mapped[:]


def cache_folder() -> Path:
    """Return the folder of data and strategies that came from another machine; it is made, for this user alone."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "dry-work" / "sweeps"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def write_whole(path: Path, content: Any) -> None:
    """Write a file that appears whole or not at all.

    Raises:
        StorageError: there is no room for it, or it must not be written.
    """
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:40]}-", delete=False) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        raise StorageError(path, f"cannot be written: {error.strerror}") from None


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current


def map_recording(descriptor: int) -> Recording:
    """Return the recording in a file, its columns mapped: not read before they are used, and never copied."""
    mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    length = int.from_bytes(mapped[:_LENGTH_BYTES], "little")
    header = msgspec.json.decode(mapped[_LENGTH_BYTES : _LENGTH_BYTES + length], type=_Header)
    base = _aligned(_LENGTH_BYTES + length)
    columns: dict[str, dict[str, Column]] = {}
    for place in header.places:
        values = np.frombuffer(mapped, dtype=place.dtype, count=place.count, offset=base + place.offset)
        columns.setdefault(place.symbol, {})[place.column] = values
    recording = Recording(columns, length_ns=header.length_ns, copy=False)
    recording.__dict__["fingerprint"] = header.fingerprint  # already known: nothing is to be read for it
    return recording


def _write(recording: Recording, fingerprint: str, file: BinaryIO) -> None:
    places, offset = [], 0
    for symbol, name, values in _columns(recording):
        places.append(_Place(symbol, name, values.dtype.str, len(values), offset))
        offset = _aligned(offset + values.nbytes)
    header = msgspec.json.encode(
        _Header(fingerprint=fingerprint, length_ns=recording.length_ns, places=tuple(places), size=offset)
    )
    base = _aligned(_LENGTH_BYTES + len(header))
    file.write(len(header).to_bytes(_LENGTH_BYTES, "little") + header)
    for place, (_, _, values) in zip(places, _columns(recording), strict=True):
        file.seek(base + place.offset)
        file.write(np.ascontiguousarray(values).data)
    file.truncate(base + offset)
    file.flush()


def _columns(recording: Recording) -> Iterator[tuple[str, str, Column]]:
    for symbol in recording.symbols:
        for name, values in recording.columns(symbol).items():
            yield symbol, name, values


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN
