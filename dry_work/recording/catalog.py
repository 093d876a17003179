"""The catalog: Parquet files by kind, symbol and day, in a folder or a bucket. One thread.

`bars/1m/BTC-USD/2024-06-11.parquet`, `trades/SPY/2024-06-11.parquet`, `quotes/...`; the day is the UTC date of the
timestamp. Bars of a day or longer are kept by year, `bars/1d/SPY/2024.parquet`. A file holds rows of one symbol by
rising time; a root can be given to `--data` as it is.

Writing merges: what is there stays, the same rows twice change no byte, and each file is replaced as a whole, so that a
process that is killed leaves a catalog that the same call completes.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dry_work.clock import DAY_NS, SECOND_NS
from dry_work.errors import ConfigError, DataFileError, StorageError
from dry_work.market.symbols import encode_attribute
from dry_work.recording.tables import Kind, MergeCounts, Prefer, build_table, merge_tables, time_values
from dry_work.storage import Storage, is_remote

LOCK_NAME = ".catalog.lock"
PENDING_ROWS = 1_000_000

_LOCK_S = 60.0
_LOCK_CHECK_S = 0.05
_DAY_FILE = re.compile(r"(\d{4})-(\d\d)-(\d\d)\.parquet", re.ASCII)
_YEAR_FILE = re.compile(r"(\d{4})\.parquet", re.ASCII)
_FRAME = re.compile(r"\d{1,5}[smhdwM]", re.ASCII)


class CatalogReport(msgspec.Struct):
    """What was done to a catalog."""

    files_written: int = 0
    files_unchanged: int = 0
    rows: MergeCounts = msgspec.field(default_factory=MergeCounts)


def catalog_folder(kind: Kind, symbol: str, *, timeframe: str = "1m") -> str:
    """Return the folder of a symbol below the root.

    Raises:
        ConfigError: `timeframe` is none.
    """
    if kind != "bars":
        return f"{kind}/{encode_attribute(symbol)}"
    if not _FRAME.fullmatch(timeframe):
        raise ConfigError(f"time frame {timeframe!r}: expected a number and a unit, for example 1m, 1h or 1d")
    return f"bars/{timeframe}/{encode_attribute(symbol)}"


def catalog_name(kind: Kind, symbol: str, day: date, *, timeframe: str = "1m") -> str:
    """Return the name of the file that holds the rows of a day."""
    file = f"{day.year:04d}" if _is_by_year(kind, timeframe) else day.isoformat()
    return f"{catalog_folder(kind, symbol, timeframe=timeframe)}/{file}.parquet"


def _is_by_year(kind: Kind, timeframe: str) -> bool:
    return kind == "bars" and timeframe[-1] in "dwM"


def encode_table(table: Any) -> bytes:
    """Return a table as a Parquet file; equal tables give equal bytes."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


class _Key(msgspec.Struct, frozen=True, order=True):
    kind: Kind
    symbol: str
    name: str


class CatalogWriter:
    """Collects rows and merges them into the catalog at a storage.

    Args:
        storage: the catalog's root.
        prefer: which of two bars of one time and revision stays when they differ.
        pending_rows: when so many rows wait, `add` writes them first.
    """

    def __init__(self, storage: Storage, *, prefer: Prefer = "existing", pending_rows: int = PENDING_ROWS) -> None:
        self.report = CatalogReport()
        self._storage = storage
        self._prefer = prefer
        self._pending_rows = pending_rows
        self._pending: dict[_Key, list[Any]] = {}
        self._rows = 0

    @property
    def location(self) -> str:
        """Where the catalog is: a folder as an absolute path, or a `gs://` address."""
        location = self._storage.location
        return location if is_remote(location) else str(Path(location).resolve())

    def days(self, kind: Kind, symbol: str, *, timeframe: str = "1m") -> list[date]:
        """Return the days that have a file, sorted; of files by year their first of January."""
        folder = catalog_folder(kind, symbol, timeframe=timeframe)
        found: list[date] = []
        for file in self._storage.list(f"{folder}/"):
            name = file.name.removeprefix(f"{folder}/")
            with contextlib.suppress(ValueError):
                if match := _DAY_FILE.fullmatch(name):
                    found.append(date(int(match[1]), int(match[2]), int(match[3])))
                elif match := _YEAR_FILE.fullmatch(name):
                    found.append(date(int(match[1]), 1, 1))
        return sorted(found)

    def add(self, kind: Kind, symbol: str, table: Any, *, timeframe: str = "1m") -> int:
        """Take rows of one symbol, see `build_table`; return how many. They are in the files after `flush`.

        Raises:
            ValueError: they cannot be used.
            ConfigError: symbol or time frame are none.
            DataFileError, StorageError: rows that waited could not be written; these are not taken.
        """
        folder = catalog_folder(kind, symbol, timeframe=timeframe)
        built = build_table(kind, symbol, table)
        if not built.num_rows:
            return 0
        if self._rows and self._rows + built.num_rows > self._pending_rows:
            self.flush()
        times = time_values(built)
        if times[0] < 0:
            raise ValueError(f"{kind} of {symbol}: a time before 1970")
        days = times // DAY_NS
        if _is_by_year(kind, timeframe):
            periods = days.astype("datetime64[D]").astype("datetime64[Y]").astype(np.int64)
        else:
            periods = days
        edges = [0, *(np.flatnonzero(np.diff(periods)) + 1).tolist(), len(times)]
        for low, high in itertools.pairwise(edges):
            day = datetime.fromtimestamp(int(times[low]) // SECOND_NS, UTC).date()
            name = catalog_name(kind, symbol, day, timeframe=timeframe)
            assert name.startswith(folder)
            self._pending.setdefault(_Key(kind, symbol, name), []).append(built.slice(low, high - low))
        self._rows += built.num_rows
        return int(built.num_rows)

    def flush(self) -> CatalogReport:
        """Merge what waits into the files and return `report`. May be called again after an error.

        Raises:
            DataFileError: a file that is to be merged cannot be read; all others are written.
            StorageError: the storage failed, or another process keeps the catalog locked.
        """
        if not self._pending:
            return self.report
        failure: DataFileError | None = None
        with self._lock():
            for key in sorted(self._pending):
                try:
                    self._merge(key)
                except DataFileError as error:
                    failure = failure or error
                    continue
                self._rows -= sum(table.num_rows for table in self._pending.pop(key))
        if failure is not None:
            raise failure
        return self.report

    def _merge(self, key: _Key) -> None:
        import pyarrow as pa

        new = pa.concat_tables(self._pending[key], promote_options="permissive")
        old = self._read(key) if self._storage.exists(key.name) else None
        if old is not None:
            old = build_table(key.kind, key.symbol, old)
        merged, counts = merge_tables(key.kind, old, new, prefer=self._prefer)
        if merged is old:
            self.report.files_unchanged += 1
        else:
            self._storage.write(key.name, encode_table(merged))
            self.report.files_written += 1
        self.report.rows.add(counts)

    def _read(self, key: _Key) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.ParquetFile(io.BytesIO(self._storage.read(key.name))).read()
            return build_table(key.kind, key.symbol, table)
        except (pa.ArrowException, ValueError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            where = f"{self._storage.location}/{key.name}"
            raise DataFileError(
                where, f"cannot be read, so that nothing can be added to it: {reason}; move it away, then try again"
            ) from error

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other processes of this machine from merging into the same folder."""
        if is_remote(self._storage.location):
            yield
            return
        root = Path(self._storage.location)
        try:
            root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(root / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(root, f"cannot be written: {error.strerror or error}") from error
        try:
            self._wait_for_lock(root, descriptor)
            yield
        finally:
            os.close(descriptor)

    @staticmethod
    def _wait_for_lock(root: Path, descriptor: int) -> None:
        end_s = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end_s:
                    raise StorageError(
                        root, f"another process has been writing this catalog for {_LOCK_S:g} s", retryable=True
                    ) from None
                time.sleep(_LOCK_CHECK_S)
            except OSError:  # a file system without locks: as in a bucket, one writer at a time is the user's care
                return
            else:
                return
