"""Folders and Google Cloud Storage behind one small interface: named files, read and written whole.

`open_storage("/data/catalog")` and `open_storage("gs://bucket/catalog")` give the same thing. Names are relative to the
location, with `/` between their parts, and exact. A file appears whole or not at all: in a folder by a temporary file
beside it that is synced and renamed, in a bucket by the upload of one object. Objects of a bucket that are asked for
as local files are kept in a cache folder (`$XDG_CACHE_HOME/dry-work/gs`), by version.

The bucket's client is Google's own; with `STORAGE_EMULATOR_HOST` it talks to that server, without credentials.
Thread-safe; keeps no thread of its own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

import msgspec

from dry_work.errors import ConfigError, StorageError

SCHEME = "gs://"
TEMPORARY_PREFIX = ".tmp-"  # of files that are being written; they are no files of the storage

_CONNECT_S = 10.0
_RETRY_S = 30.0  # how long requests that failed for a passing reason are repeated
_PARALLEL = 8  # downloads at once
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_T = TypeVar("_T")


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


def open_storage(location: str | Path, *, cache: Path | None = None, retry_s: float = _RETRY_S) -> Storage:
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


def _check_name(location: str, name: str) -> str:
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


def _tell_os_error(path: Path, error: OSError, *, doing: str, size: int | None = None) -> StorageError:
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
            _check_name(self.location, top)
        try:
            return sorted(self._walk(self.folder / top, f"{top}/" if top else "", prefix), key=lambda file: file.name)
        except OSError as error:
            raise _tell_os_error(self.folder, error, doing="read") from error

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
            raise _tell_os_error(path, error, doing="read") from error

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        try:
            _make_folders(path.parent)
            write_atomically(path, data)
        except OSError as error:
            raise _tell_os_error(path, error, doing="written", size=len(data)) from error

    def delete(self, name: str) -> None:
        path = self._path(name)
        try:
            path.unlink()
            _sync_folder(path.parent)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _tell_os_error(path, error, doing="deleted") from error

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
        return self.folder / _check_name(self.location, name)


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


class BucketStorage:
    """What is below a prefix of a bucket of Google Cloud Storage."""

    def __init__(self, bucket: str, prefix: str = "", *, cache: Path | None = None, retry_s: float = _RETRY_S) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self._under = f"{prefix}/" if prefix else ""
        self._retry_s = retry_s
        self._cache = cache
        self._lock = threading.Lock()
        self._client = _make_client(self.location)
        self._timeout = (min(_CONNECT_S, retry_s), retry_s)  # to connect, and without a byte of the answer

    @property
    def location(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}" if self.prefix else f"{SCHEME}{self.bucket}"

    def list(self, prefix: str = "") -> Files:
        def ask() -> Files:
            blobs = self._client.list_blobs(self.bucket, prefix=self._under + prefix, **self._patience())
            return [
                StoredFile(
                    name=blob.name.removeprefix(self._under),
                    size=int(blob.size or 0),
                    modified_ns=0 if blob.updated is None else round(blob.updated.timestamp() * 1e6) * 1000,
                    version=str(blob.generation),
                )
                for blob in blobs
                if not blob.name.endswith("/")  # a folder that a console made
            ]

        return sorted(
            self._ask(ask, self.location, doing="listed", missing=self._no_bucket), key=lambda file: file.name
        )

    def read(self, name: str) -> bytes:
        blob = self._blob(name)
        return self._ask(
            lambda: bytes(blob.download_as_bytes(**self._patience())),
            self._address(name),
            doing="read",
            missing=lambda: self._no_file(name),
        )

    def write(self, name: str, data: bytes) -> None:
        blob = self._blob(name)

        def ask() -> None:
            blob.upload_from_string(data, content_type="application/octet-stream", **self._patience())

        self._ask(ask, self._address(name), doing="written", missing=self._no_bucket)

    def delete(self, name: str) -> None:
        blob = self._blob(name)

        def ask() -> None:
            from google.api_core.exceptions import NotFound

            with contextlib.suppress(NotFound):
                blob.delete(**self._patience())

        self._ask(ask, self._address(name), doing="deleted", missing=self._no_bucket)

    def exists(self, name: str) -> bool:
        blob = self._blob(name)
        return self._ask(
            lambda: bool(blob.exists(**self._patience())), self._address(name), doing="read", missing=self._no_bucket
        )

    def local_path(self, name: str) -> Path:
        bucket = self._client.bucket(self.bucket)
        path = self._under + _check_name(self.location, name)
        blob = self._ask(
            lambda: bucket.get_blob(path, **self._patience()),
            self._address(name),
            doing="read",
            missing=self._no_bucket,
        )
        if blob is None:
            raise self._no_file(name)
        return self._fetch(name, str(blob.generation), blob.size)

    def local_paths(self, files: Sequence[StoredFile]) -> Paths:
        if len(files) < 2:
            return [self._fetch(file.name, file.version, file.size) for file in files]
        with ThreadPoolExecutor(min(_PARALLEL, len(files)), thread_name_prefix="storage") as pool:
            paths = [pool.submit(self._fetch, file.name, file.version, file.size) for file in files]
            try:
                return [path.result() for path in paths]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def close(self) -> None:
        self._client.close()

    def _fetch(self, name: str, version: str, size: int) -> Path:
        """Return the cached file of one version of an object, after downloading it when it is not there."""
        digest = hashlib.sha256((self._under + name).encode()).hexdigest()[:24]
        folder = self._cache_folder() / self.bucket / digest
        path = folder / f"{version}-{PurePosixPath(name).name}"
        if path.is_file() and path.stat().st_size == size:
            return path
        # The version is part of the request, so that a copy never holds another one.
        blob = self._blob(name, version)
        data = self._ask(
            lambda: bytes(blob.download_as_bytes(**self._patience())),
            self._address(name),
            doing="read",
            missing=lambda: StorageError(
                self._address(name), "was replaced while it was read; try again", retryable=True
            ),
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            outdated = [other for other in folder.iterdir() if other != path]
            write_atomically(path, data)
            for other in outdated:
                if not other.name.startswith(TEMPORARY_PREFIX):
                    other.unlink(missing_ok=True)
        except OSError as error:
            raise _tell_os_error(path, error, doing="written", size=len(data)) from error
        return path

    def _cache_folder(self) -> Path:
        with self._lock:
            if self._cache is None:
                self._cache = _find_cache_folder()
            return self._cache

    def _patience(self) -> dict[str, Any]:
        from google.cloud.storage.retry import DEFAULT_RETRY

        return {"timeout": self._timeout, "retry": DEFAULT_RETRY.with_timeout(self._retry_s)}

    def _blob(self, name: str, version: str = "") -> Any:
        path = self._under + _check_name(self.location, name)
        return self._client.bucket(self.bucket).blob(path, generation=int(version) if version else None)

    def _address(self, name: str) -> str:
        return f"{self.location}/{name}"

    def _no_bucket(self) -> StorageError:
        return StorageError(self.location, f"no such bucket: {self.bucket}")

    def _no_file(self, name: str) -> StorageError:
        """Tell a missing object from a missing bucket: the server answers both alike."""
        self._ask(
            lambda: list(self._client.list_blobs(self.bucket, max_results=1, **self._patience())),
            self.location,
            doing="listed",
            missing=self._no_bucket,
        )
        return StorageError(self._address(name), "no such file")

    def _ask(self, call: Callable[[], _T], address: str, *, doing: str, missing: Callable[[], StorageError]) -> _T:
        """Make a call and tell its failures in one sentence each."""
        import requests
        from google.api_core import exceptions
        from google.auth import exceptions as auth

        try:
            return call()
        except exceptions.NotFound as error:
            raise missing() from error
        except exceptions.Forbidden as error:
            reason = f"cannot be {doing}: these credentials have no permission ({_one_line(error.message)})"
            raise StorageError(address, reason) from error
        except (
            exceptions.RetryError,
            exceptions.ServerError,
            exceptions.TooManyRequests,
            auth.TransportError,
            requests.RequestException,
            OSError,
        ) as error:
            told = _one_line(error.cause if isinstance(error, exceptions.RetryError) else error)
            reason = f"cannot be {doing}: the storage cannot be reached, tried for {self._retry_s:g} s ({told})"
            raise StorageError(address, reason, retryable=True) from error
        except (exceptions.Unauthorized, auth.GoogleAuthError) as error:
            reason = f"cannot be {doing}: the credentials were refused; run `gcloud auth application-default login`"
            raise StorageError(address, reason) from error
        except exceptions.GoogleAPICallError as error:
            raise StorageError(address, f"cannot be {doing}: {_one_line(error.message)}") from error


def _one_line(error: object) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(". ")


def _make_client(location: str) -> Any:
    try:
        from google.auth.credentials import AnonymousCredentials
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import storage
    except ImportError as error:
        raise ConfigError(f"{location}: buckets need a further package: pip install 'dry-work[storage]'") from error
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator:
        # The client takes addresses only; host and port alone are accepted too, as with other emulators.
        address = emulator if "://" in emulator else f"http://{emulator}"
        return storage.Client(
            project=None,
            credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
            client_options={"api_endpoint": address.rstrip("/")},
        )
    try:
        return storage.Client(project=None)  # a bucket's name is enough
    except GoogleAuthError as error:
        reason = (
            "no Google Cloud credentials: run `gcloud auth application-default login` or set "
            "GOOGLE_APPLICATION_CREDENTIALS to the file of a service account's key"
        )
        raise StorageError(location, reason) from error


def _find_cache_folder() -> Path:
    """Return the user's cache folder, or one of the user's own where that cannot be written."""
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(home) if home else Path.home() / ".cache") / "dry-work" / "gs"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    except (OSError, RuntimeError):  # no home, or a read-only one
        pass
    folder = Path(tempfile.gettempdir()) / f"dry-work-gs-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid == os.getuid():
            return folder
    return Path(tempfile.mkdtemp(prefix="dry-work-gs-"))
