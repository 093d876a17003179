"""What recordings hold: files of a catalog, a folder or a bucket by symbol, and logs by session. Reads files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dry_work.clock import DAY_NS, MINUTE_NS
from dry_work.errors import ConfigError, DataFileError
from dry_work.feeds.recorded_files import RepairLog, read_columns, read_names, read_time_column
from dry_work.feeds.recorded_places import SourceFile, describe_length, fetch_files, find_files, parse_frame
from dry_work.market.calendar import SessionCalendar, shared_calendar
from dry_work.market.symbols import parse_symbol
from dry_work.recording.gaps import GapReport, find_gaps, infer_length
from dry_work.recording.log import SUFFIX, SessionReader, find_segments, find_sessions
from dry_work.recording.recorder import MESSAGE
from dry_work.recording.tables import KINDS, REQUIRED, Kind
from dry_work.storage import is_remote

Ints = NDArray[np.int64]
_Key = tuple[Kind, str, str]  # kind, symbol, time frame

_FETCHED_AT_ONCE = 64


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What is there of one symbol, kind and time frame."""

    kind: Kind
    symbol: str
    frame: str  # 1m, 1d; empty for trades and quotes, and where one row tells nothing
    length_ns: int | None
    files: int
    rows: int
    first_ns: int
    last_ns: int
    gaps: GapReport


class LogFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a recorded session holds."""

    folder: str
    writer: str
    messages: int
    bytes: int
    first_ns: int  # receive time, 0 when there is none
    last_ns: int
    is_closed: bool
    damage: str  # where and why reading stopped, empty when it did not
    is_damaged: bool  # more than a last frame that a killed writer did not finish


class Inventory(msgspec.Struct, frozen=True):
    """All that was found."""

    holdings: tuple[Holding, ...]
    logs: tuple[LogFacts, ...]
    damaged: tuple[str, ...]  # sentences that name the file


class _Found:
    """What was gathered of one symbol, kind and time frame."""

    def __init__(self) -> None:
        self.files = 0
        self.rows = 0
        self.first_ns = 2**63 - 1
        self.last_ns = 0
        self.times: list[Ints] = []

    def add(self, files: int, rows: int, first_ns: int, last_ns: int, times: Ints) -> None:
        """Add rows; `times` are what is needed to find gaps."""
        self.files += files
        self.rows += rows
        self.first_ns = min(self.first_ns, first_ns)
        self.last_ns = max(self.last_ns, last_ns)
        self.times.append(times)


def take_inventory(
    locations: Sequence[str],
    *,
    calendar: SessionCalendar | None = None,
    on_file: Callable[[int, int], None] | None = None,
) -> Inventory:
    """Return what is at files, folders, globs and `gs://` addresses.

    Args:
        calendar: of the stocks; default: New York.
        on_file: called with (files read, files in all).

    Raises:
        ConfigError: a location that is not there, or holds neither recordings nor logs.
        StorageError: a bucket failed.
    """
    folders: dict[Path, None] = {}
    sources: dict[str, SourceFile] = {}
    for location in locations:
        sessions = [] if is_remote(location) else find_sessions(Path(location).expanduser())
        folders.update(dict.fromkeys(sessions))
        try:
            for source in find_files([location], expected=f"recordings, or of logs (*{SUFFIX})"):
                sources[str(source)] = source
        except ConfigError:
            if not sessions:
                raise
    found: dict[_Key, _Found] = {}
    damaged: list[str] = []
    every = list(sources.values())
    for low in range(0, len(every), _FETCHED_AT_ONCE):
        for number, source in enumerate(fetch_files(every[low : low + _FETCHED_AT_ONCE]), low + 1):
            try:
                _gather(source, found, damaged)
            except DataFileError as error:
                damaged.append(str(error))
            if on_file is not None:
                on_file(number, len(every))
    calendar = calendar or shared_calendar()
    return Inventory(
        holdings=tuple(_summarise(*key, gathered, calendar) for key, gathered in sorted(_name_frames(found).items())),
        logs=tuple(_read_log(folder) for folder in folders),
        damaged=tuple(damaged),
    )


def _gather(source: SourceFile, found: dict[_Key, _Found], damaged: list[str]) -> None:
    kind, symbols, times = _read_times(source)
    codes, names = _code_symbols(source, symbols)
    stamps, readable = read_time_column(str(source), times)
    usable = readable & (codes >= 0)
    if not usable.all():
        damaged.append(f"{source}: {int(np.count_nonzero(~usable)):,} rows have no symbol or no time that can be read")
    entry = source.entry
    frame = entry.frame if entry is not None and kind == "bars" else ""
    for code, symbol in enumerate(names):
        own = np.sort(stamps[usable & (codes == code)])
        if not len(own):
            continue
        # Of trades and quotes, which may be many, the minutes are enough to know the days.
        times = np.unique(own if kind == "bars" else own - own % MINUTE_NS)
        found.setdefault((kind, symbol, frame), _Found()).add(1, len(own), int(own[0]), int(own[-1]), times)


def _read_times(source: SourceFile) -> tuple[Kind, Any, Any]:
    """Return a file's kind, its symbols and its times; of a Parquet file nothing else is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = read_names(source)
    kind = next((kind for kind in KINDS if {"symbol", "timestamp", *REQUIRED[kind]} <= set(names)), None)
    if kind is None:
        raise DataFileError(source, f"holds neither bars nor trades nor quotes; its columns: {', '.join(names)}")
    columns = ["symbol", "timestamp"]
    if source.path.name.lower().endswith((".parquet", ".pq")):
        try:
            with pq.ParquetFile(source.path) as file:
                if set(columns) <= set(file.schema_arrow.names):  # and not in an unnamed index
                    table = file.read(columns=columns)
                    if not table.num_rows:
                        raise DataFileError(source, "no rows")
                    return kind, table.column("symbol"), table.column("timestamp")
        except (pa.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise DataFileError(source, f"cannot be read as Parquet: {reason}") from error
    _, table, _ = read_columns(source, RepairLog(), kinds={kind: tuple(columns)})
    return kind, table.column("symbol"), table.column("timestamp")


def _code_symbols(source: SourceFile, column: Any) -> tuple[Ints, list[str]]:
    """Return (for each row the index of its symbol or -1, the symbols)."""
    import pyarrow as pa

    try:
        encoded = pa.chunked_array([column.cast(pa.string()).combine_chunks()]).dictionary_encode().combine_chunks()
    except pa.ArrowException as error:
        raise DataFileError(source, f"column symbol holds {column.type}; expected text such as SPY") from error
    codes: list[int] = [-1]
    names: dict[str, int] = {}
    for text in encoded.dictionary.to_pylist():
        try:
            codes.append(names.setdefault(parse_symbol(text), len(names)))
        except ConfigError:
            codes.append(-1)
    indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.array(codes, dtype=np.int64)[indices + 1], list(names)


def _name_frames(found: dict[_Key, _Found]) -> dict[_Key, _Found]:
    """Give bars whose files do not name their time frame the one that their times show."""
    named: dict[_Key, _Found] = {}
    for (kind, symbol, frame), gathered in sorted(found.items()):
        times = np.concatenate(gathered.times)
        length_ns = infer_length(np.unique(times)) if kind == "bars" and not frame else None
        key = (kind, symbol, frame or ("" if length_ns is None else describe_length(length_ns)))
        facts = (gathered.files, gathered.rows, gathered.first_ns, gathered.last_ns)
        named.setdefault(key, _Found()).add(*facts, times)
    return named


def _summarise(kind: Kind, symbol: str, frame: str, found: _Found, calendar: SessionCalendar) -> Holding:
    length_ns = _length_of(frame)
    return Holding(
        kind=kind,
        symbol=symbol,
        frame=frame,
        length_ns=length_ns,
        files=found.files,
        rows=found.rows,
        first_ns=found.first_ns,
        last_ns=found.last_ns,
        gaps=find_gaps(np.unique(np.concatenate(found.times)), symbol, calendar, length_ns=length_ns),
    )


def _length_of(frame: str) -> int | None:
    if not frame:
        return None
    try:
        return parse_frame(frame)
    except ValueError:  # months
        return 31 * DAY_NS


def _read_log(folder: Path) -> LogFacts:
    reader = SessionReader(folder)
    messages, first_ns, last_ns = 0, 0, 0
    for frame in reader:
        if frame.kind == MESSAGE:
            messages += 1
            first_ns = first_ns or frame.recv_ns
            last_ns = frame.recv_ns
    return LogFacts(
        folder=str(folder),
        writer="" if reader.head is None else reader.head.writer,
        messages=messages,
        bytes=sum(path.stat().st_size for path in find_segments(folder)),
        first_ns=first_ns,
        last_ns=last_ns,
        is_closed=reader.is_closed,
        damage="" if reader.damage is None else str(reader.damage),
        is_damaged=reader.damage is not None and not reader.is_cut,
    )
