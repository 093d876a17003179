"""What is remembered of downloads: the spans that are done, in the catalog, and the pages of the unit that is not.

`.downloads/<series>.json` in the catalog tells what is done of each series. The pages of a unit in work are kept in a
local folder, each in a file of its own with the token of the next one, so that a download that was killed goes on in
the middle of a day. One thread at a time; `WorkFolder` keeps other processes out.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from dry_work.alpaca.download_pages import Page
from dry_work.alpaca.download_plan import Series, Span, Unit, merge_spans, start_of, subtract_spans
from dry_work.clock import DAY_NS
from dry_work.errors import ConfigError, LeaseHeldError, StorageError
from dry_work.recording.catalog import catalog_name
from dry_work.recording.tables import Kind
from dry_work.storage import Storage, write_atomically
from dry_work.wire.pubsub import encode_time, parse_time

FOLDER = ".downloads"

_REQUEST, _NEXT = b"request", b"next_page_token"


class SeriesRecord(msgspec.Struct):
    """What is done of one series, as it is written."""

    symbol: str
    kind: Kind
    timeframe: str = ""
    feed: str = ""
    adjustment: str = ""
    spans: list[tuple[str, str]] = []  # downloaded; from, up to but not including
    rows: dict[str, int] = {}  # by UTC date; days of `spans` that are not named had none


class DownloadRecord:
    """The records of a catalog.

    Args:
        storage: of the catalog.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def done(self, series: Series, days: Iterable[date]) -> list[Span]:
        """Return what of a series does not have to be downloaded again.

        Args:
            days: as the catalog tells those that have a file; a day that had rows and lost its file is not done.

        Raises:
            ConfigError: the record is damaged, or the catalog holds the data of another feed or adjustment.
        """
        record = self._read(series)
        if record is None:
            return []
        there = {_file_of(series, day) for day in days}
        recorded = [date.fromisoformat(day) for day in record.rows]
        lost = [start_of(day) for day in recorded if _file_of(series, day) not in there]
        return subtract_spans(_parse_spans(record), [(start, start + DAY_NS) for start in lost])

    def add(self, series: Series, span: Span, rows: dict[date, int]) -> None:
        """Record that a span is done, with the rows of its days."""
        record = self._read(series) or SeriesRecord(
            **{name: getattr(series, name) for name in series.__struct_fields__}
        )
        spans = merge_spans([*_parse_spans(record), span])
        record.spans = [(encode_time(start), encode_time(end)) for start, end in spans]
        # A day that comes in two parts has the rows of both; which of them it was does not matter.
        counts = {day.isoformat(): count for day, count in rows.items() if count}
        record.rows = dict(sorted({**record.rows, **counts}.items()))
        self._storage.write(_name(series), msgspec.json.format(msgspec.json.encode(record), indent=1))

    def _read(self, series: Series) -> SeriesRecord | None:
        name = _name(series)
        if not self._storage.exists(name):
            return None
        try:
            record = msgspec.json.decode(self._storage.read(name), type=SeriesRecord)
            _parse_spans(record)
            for day in record.rows:
                date.fromisoformat(day)
        except (msgspec.DecodeError, ValueError) as error:
            raise ConfigError(
                f"{self._storage.location}/{name}: is damaged ({error}); delete it, and {series.describe()} is "
                "downloaded anew"
            ) from None
        known = Series(**{field: getattr(record, field) for field in series.__struct_fields__})
        if known != series:
            raise ConfigError(
                f"{self._storage.location} holds {known.describe()} of {known.source}, not of {series.source}: "
                "give the same again, or another folder with --out"
            )
        return record


class WorkFolder:
    """The local folder for pages of units in work; held by one process at a time.

    Args:
        folder: it is made when it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: int | None = None

    def __enter__(self) -> WorkFolder:
        """Take the folder.

        Raises:
            LeaseHeldError: another process has it.
            StorageError: it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(self.folder, f"cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise LeaseHeldError(
                f"{self.folder}: another download into the same place is running; wait for it, or give another --out"
            ) from None
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder back. May be called twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def pages(self, unit: Unit, *, data_url: str) -> UnitPages:
        """Return the pages of a unit; those of another unit of its series are deleted."""
        request = "\n".join((data_url, repr(unit.series), str(unit.start_ns), str(unit.end_ns)))
        return UnitPages(self.folder / "pages" / unit.series.name, request)


class UnitPages:
    """The pages of one unit, on disk.

    Args:
        folder: of the series.
        request: what the pages answer; files that answer something else are deleted.
    """

    def __init__(self, folder: Path, request: str) -> None:
        self._folder = folder
        self._request = request.encode()

    def load(self) -> list[Page]:
        """Return the pages that are whole, in order; the files are mapped, not read."""
        pages: list[Page] = []
        while (page := self._open(len(pages) + 1)) is not None:
            pages.append(page)
        if not pages:
            self.clear()
        return pages

    def add(self, number: int, page: Page) -> None:
        """Keep the page with this number, counted from 1.

        Raises:
            StorageError: it cannot be written.
        """
        metadata = {_REQUEST: self._request, _NEXT: (page.next_token or "").encode()}
        table = page.table.replace_schema_metadata(metadata)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path(number), sink.getvalue())
        except OSError as error:
            raise StorageError(self._folder, f"cannot be written: {error.strerror}", retryable=True) from error

    def clear(self) -> None:
        """Delete the pages."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self, number: int) -> Page | None:
        try:
            table: Any = pa.ipc.open_file(pa.memory_map(str(self._path(number)))).read_all()
        except (OSError, pa.ArrowException):  # none, or cut off by a loss of power
            return None
        metadata = table.schema.metadata or {}
        if metadata.get(_REQUEST) != self._request or _NEXT not in metadata:
            return None
        return Page(table.replace_schema_metadata(None), metadata[_NEXT].decode() or None)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.arrow"


def _file_of(series: Series, day: date) -> str:
    return catalog_name(series.kind, series.symbol, day, timeframe=series.timeframe or "1m")


def _name(series: Series) -> str:
    return f"{FOLDER}/{series.name}.json"


def _parse_spans(record: SeriesRecord) -> Sequence[Span]:
    return [(parse_time(start), parse_time(end)) for start, end in record.spans]
