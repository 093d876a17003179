"""History from Alpaca into the catalog, in units that are remembered. One thread at a time.

A unit's rows are written to the catalog, then the unit is recorded as done. Both can be repeated: a download that was
killed in between writes the same rows again, which changes nothing. Days that are not over are written and not
recorded, so that the next download fetches them again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from dry_work.alpaca.download_api import DownloadStoppedError, HistoryApi, RequestRefusedError
from dry_work.alpaca.download_pages import join_pages
from dry_work.alpaca.download_plan import Series, Span, Unit, closed_part, cut_units, day_of, subtract_spans
from dry_work.alpaca.download_record import DownloadRecord, UnitPages, WorkFolder
from dry_work.clock import DAY_NS, Clock, SystemClock
from dry_work.errors import FeedError
from dry_work.recording.tables import Kind


class Catalog(Protocol):
    """Where the rows go; see `dry_work.recording.catalog.CatalogWriter`."""

    def add(self, kind: Kind, symbol: str, table: Any, *, timeframe: str = "1m") -> int:
        """Collect rows of one symbol; return how many."""

    def flush(self) -> object:
        """Merge what was collected into the files."""

    def days(self, kind: Kind, symbol: str, *, timeframe: str = "1m") -> list[date]:
        """Return the days that have a file."""


class DownloadProgress(msgspec.Struct):
    """How far a download is."""

    units: int  # to download
    units_done: int = 0
    rows: int = 0  # received, those of units in work included
    pages: int = 0
    working_on: str = ""
    waiting_for: str = ""  # why it does not go on, and for how long; empty when it does


class DownloadResult(msgspec.Struct, frozen=True):
    """What became of a download."""

    stopped: bool  # by the word to stop; the units that are left are not done
    units_done: int
    rows: int
    refused: Mapping[str, str]  # Alpaca's answer by series, for people


class Downloader:
    """Downloads units, one after the other.

    Args:
        api: the source.
        catalog: takes the rows.
        record: remembers what is done.
        work: the local folder for pages; entered by the caller.
        on_change: called after every page, unit and wait.
    """

    def __init__(
        self,
        api: HistoryApi,
        *,
        catalog: Catalog,
        record: DownloadRecord,
        work: WorkFolder,
        clock: Clock | None = None,
        on_change: Callable[[DownloadProgress], None] = lambda _progress: None,
    ) -> None:
        self._api = api
        self._catalog = catalog
        self._record = record
        self._work = work
        self._clock = clock or SystemClock()
        self._on_change = on_change
        self.progress = DownloadProgress(units=0)
        api.on_wait = self._tell_wait

    def run(self, units: Sequence[Unit]) -> DownloadResult:
        """Download units until they are done or the word to stop comes.

        A series that Alpaca refuses is left out, and the others go on.

        Raises:
            VenueAuthError: the credentials are refused, or do not cover the data.
            FeedError: Alpaca did not answer as it should for too long.
            StorageError: the catalog cannot be written.
        """
        progress = self.progress = DownloadProgress(units=len(units))
        refused: dict[str, str] = {}
        stopped = False
        for unit in units:
            name = unit.series.describe()
            if name not in refused:
                progress.working_on = unit.describe()
                self._on_change(progress)
                try:
                    self._download(unit)
                except RequestRefusedError as error:
                    refused[name] = str(error)
                except DownloadStoppedError:
                    stopped = True
                    break
            progress.units_done += 1
            self._on_change(progress)
        progress.working_on = ""
        return DownloadResult(stopped, progress.units_done, progress.rows, refused)

    def _tell_wait(self, reason: str, seconds: float) -> None:
        self.progress.waiting_for = f"{reason}, {seconds:.1f} s"
        self._on_change(self.progress)

    def _download(self, unit: Unit) -> None:
        begun_ns = self._clock.time_ns()
        kept = self._work.pages(unit, data_url=self._api.data_url)
        table = self._fetch_pages(unit, kept)
        series = unit.series
        rows: dict[date, int] = {}
        if table.num_rows:
            # All rows of a time have to be merged at once, so pages go to the catalog when the unit is whole.
            self._catalog.add(series.kind, series.symbol, table, timeframe=series.timeframe or "1m")
            self._catalog.flush()
            rows = count_days(table)
        closed = closed_part((unit.start_ns, unit.end_ns), now_ns=begun_ns)
        if closed[1] > closed[0]:
            self._record.add(series, closed, {day: count for day, count in rows.items() if day < day_of(closed[1])})
        del table  # its files are mapped
        kept.clear()

    def _fetch_pages(self, unit: Unit, kept: UnitPages) -> Any:
        """Return all rows of a unit."""
        pages = kept.load()
        resumed = bool(pages)
        number, token = len(pages), pages[-1].next_token if pages else None
        known = sum(page.table.num_rows for page in pages)
        self.progress.rows += known
        if pages and token is None:
            return join_pages([page.table for page in pages])
        del pages
        while True:
            try:
                page = self._api.fetch(unit, token)
            except RequestRefusedError:
                if not resumed:
                    raise
                # The token of an earlier run is not taken any more.
                kept.clear()
                self.progress.rows -= known
                resumed, number, token = False, 0, None
                continue
            resumed = False
            if page.next_token is not None and page.next_token == token:
                raise FeedError(
                    f"{self._api.data_url}: {unit.describe()}: page {number + 1} names itself as the next one"
                )
            number, token = number + 1, page.next_token
            self.progress.rows += page.table.num_rows
            self.progress.pages += 1
            self.progress.waiting_for = ""
            if number == 1 and token is None:
                return join_pages([page.table])
            kept.add(number, page)
            self._on_change(self.progress)
            if token is None:
                return join_pages([page.table for page in kept.load()])


def plan_units(
    spans: Mapping[Series, Span], *, catalog: Catalog, record: DownloadRecord
) -> tuple[list[Unit], list[Unit]]:
    """Return the units that are to be downloaded, and those that are there, by series and time.

    Raises:
        ConfigError: the catalog holds the data of another feed or adjustment; the record of a series is damaged.
    """
    missing: list[Unit] = []
    there: list[Unit] = []
    for series, span in spans.items():
        done = record.done(series, catalog.days(series.kind, series.symbol, timeframe=series.timeframe or "1m"))
        left = subtract_spans([span], done)
        missing += cut_units(series, left)
        there += cut_units(series, subtract_spans([span], left))
    return missing, there


def count_days(table: Any) -> dict[date, int]:
    """Return the number of rows by UTC date."""
    times = table.column("timestamp").cast(pa.int64()).to_numpy()
    days, counts = np.unique(times // DAY_NS, return_counts=True)
    return {day_of(int(day) * DAY_NS): int(count) for day, count in zip(days, counts, strict=True)}
