"""Folders and Google Cloud Storage behind one small interface: named files, read and written whole.

`open_storage("/data/catalog")` and `open_storage("gs://bucket/catalog")` give the same thing. Names are relative to the
location, with `/` between their parts, and exact. A file appears whole or not at all: in a folder by a temporary file
beside it that is synced and renamed, in a bucket (`bucket_storage`) by the upload of one object.

Thread-safe; keeps no thread of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from dry_work.errors import ConfigError, StorageError

SCHEME = "gs://"
TEMPORARY_PREFIX = ".tmp-"  # of files that are being written; they are no files of the storage

RETRY_S = 30.0  # how long requests that failed for a passing reason are repeated
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoredFile(msgspec.Struct, frozen=True):
    name: str  # relative to the storage's location
    size: int  # bytes
    modified_ns: int  # since 1970 UTC
    version: str = ""  # changes with the content, where the storage keeps versions


# Named here, since `list` means the method within the classes.
Files = list[StoredFile]
Paths = list[Path]


class Storage(Protocol):
    """A place for files. Every failure is a `StorageError`."""

    @property
    def location(self) -> str:
        """The folder or `gs://` address, without a slash at the end."""

    def list(self, prefix: str = "") -> Files:
        """Return the files whose names start with `prefix`, by name; none when the folder is not there."""

    def read(self, name: str) -> bytes:
        """Return the content of a file."""

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file; it is durable when this returns."""

    def delete(self, name: str) -> None:
        """Delete a file; one that is not there is no error."""

    def exists(self, name: str) -> bool:
        """Tell whether there is such a file."""

    def local_path(self, name: str) -> Path:
        """Return a local file with the content of `name`. It is for reading only."""

    def local_paths(self, files: Sequence[StoredFile]) -> Paths:
        """Return a local file for each of what `list` gave, in that order."""

    def close(self) -> None:
        """Free connections. May be called twice."""


def is_remote(location: str | Path) -> bool:
    """Tell whether a location is an address in a bucket rather than a folder."""
    # A pathlib.Path of "gs://bucket" has lost a slash.
    return str(location).startswith((SCHEME, "gs:/"))


def open_storage(location: str | Path, *, cache: Path | None = None, retry_s: float = RETRY_S) -> Storage:
    """Return the storage at a folder or at `gs://bucket/prefix`. Nothing is read or made yet.

    Args:
        location: folder or address.
        cache: where objects of a bucket are kept as local files; default: the user's cache folder.
        retry_s: seconds for which requests to a bucket are repeated while it cannot be reached.

    Raises:
        ConfigError: the address is malformed, or the package for buckets is not installed.
        StorageError: there is a file where the folder should be; no credentials.
    """
    text = str(location)
    if is_remote(text):
        from dry_work.bucket_storage import BucketStorage

        bucket, prefix = split_address(text)
        return BucketStorage(bucket, prefix, cache=cache, retry_s=retry_s)
    if "://" in text:
        raise ConfigError(f"{text}: is neither a folder nor an address in a bucket such as gs://bucket/folder")
    return FolderStorage(Path(text).expanduser())


def split_address(location: str) -> tuple[str, str]:
    """Return bucket and prefix (without slashes at its ends) of `gs://bucket/prefix`.

    Raises:
        ConfigError: it has no bucket.
    """
    rest = location.removeprefix(SCHEME) if location.startswith(SCHEME) else location.removeprefix("gs:/")
    bucket, _, prefix = rest.partition("/")
    if not bucket or bucket.strip() != bucket or "*" in bucket:
        raise ConfigError(f"{location}: names no bucket; expected gs://bucket/folder")
    return bucket, prefix.strip("/")


def check_name(location: str, name: str) -> str:
    """Return the name of a file.

    Raises:
        StorageError: it is none.
    """
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts) or "\0" in name or "\\" in name:
        raise StorageError(
            location, f"{name!r} is no name of a file in it; expected one such as bars/1m/SPY/day.parquet"
        )
    if any(part.startswith(TEMPORARY_PREFIX) for part in parts):
        raise StorageError(
            location, f"{name!r}: names that start with {TEMPORARY_PREFIX} are taken for unfinished files"
        )
    return name


def tell_os_error(path: Path, error: OSError, *, doing: str, size: int | None = None) -> StorageError:
    """Return what happened to a file, in words; `doing` is read, written or deleted."""
    if error.errno in _NO_SPACE:
        needed = "" if size is None else f" for {size:,} bytes"
        return StorageError(path, f"no space left{needed}; free some, then try again", retryable=True)
    if error.errno == errno.EROFS:
        return StorageError(path, f"cannot be {doing}: the file system is read-only")
    if isinstance(error, PermissionError):
        return StorageError(path, f"cannot be {doing}: no permission")
    if isinstance(error, FileNotFoundError):
        return StorageError(path, "no such file")
    return StorageError(path, f"cannot be {doing}: {error.strerror or error}")


class FolderStorage:
    """A local folder; it is made by the first `write`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise StorageError(folder, "is a file, expected a folder")

    @property
    def location(self) -> str:
        return str(self.folder)

    def list(self, prefix: str = "") -> Files:
        top = prefix.rpartition("/")[0]
        if top:
            check_name(self.location, top)
        try:
            return sorted(self._walk(self.folder / top, f"{top}/" if top else "", prefix), key=lambda file: file.name)
        except OSError as error:
            raise tell_os_error(self.folder, error, doing="read") from error

    def _walk(self, folder: Path, under: str, prefix: str) -> Iterator[StoredFile]:
        try:
            entries = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):  # not there, or deleted meanwhile
            return
        for entry in entries:
            name = under + entry.name
            if entry.name.startswith(TEMPORARY_PREFIX) or not (name.startswith(prefix) or prefix.startswith(name)):
                continue
            if entry.is_dir():
                yield from self._walk(Path(entry.path), f"{name}/", prefix)
            elif name.startswith(prefix) and entry.is_file():
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    yield StoredFile(name, status.st_size, status.st_mtime_ns)

    def read(self, name: str) -> bytes:
        path = self._path(name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise tell_os_error(path, error, doing="read") from error

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        try:
            _make_folders(path.parent)
            write_atomically(path, data)
        except OSError as error:
            raise tell_os_error(path, error, doing="written", size=len(data)) from error

    def delete(self, name: str) -> None:
        path = self._path(name)
        try:
            path.unlink()
            _sync_folder(path.parent)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise tell_os_error(path, error, doing="deleted") from error

    def exists(self, name: str) -> bool:
        return self._path(name).is_file()

    def local_path(self, name: str) -> Path:
        path = self._path(name)
        if not path.is_file():
            raise StorageError(path, "no such file")
        return path

    def local_paths(self, files: Sequence[StoredFile]) -> Paths:
        return [self.local_path(file.name) for file in files]

    def close(self) -> None:
        """Nothing is held."""

    def _path(self, name: str) -> Path:
        return self.folder / check_name(self.location, name)


def write_atomically(path: Path, data: bytes) -> None:
    """Write or replace a file so that, whatever happens, the old or the new content is there, never a part.

    Raises:
        OSError: as the system says; nothing is left behind then.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _make_folders(folder: Path) -> None:
    """Make a folder and those above it, durably."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot, and need not
            raise
    finally:
        os.close(handle)
