"""What is below a prefix of a bucket of Google Cloud Storage, as `storage` has it.

Objects that are asked for as local files are kept in a cache folder (`$XDG_CACHE_HOME/dry-work/gs`), by version. The
client is Google's own; with `STORAGE_EMULATOR_HOST` it talks to that server, without credentials. Thread-safe.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from dry_work.errors import ConfigError, StorageError
from dry_work.storage import (
    RETRY_S,
    SCHEME,
    TEMPORARY_PREFIX,
    Files,
    Paths,
    StoredFile,
    check_name,
    tell_os_error,
    write_atomically,
)

_CONNECT_S = 10.0
_PARALLEL = 8  # downloads at once

_T = TypeVar("_T")


class BucketStorage:
    """What is below a prefix of a bucket of Google Cloud Storage."""

    def __init__(self, bucket: str, prefix: str = "", *, cache: Path | None = None, retry_s: float = RETRY_S) -> None:
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
        path = self._under + check_name(self.location, name)
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
            raise tell_os_error(path, error, doing="written", size=len(data)) from error
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
        path = self._under + check_name(self.location, name)
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
