"""Recorded bars: Parquet and CSV files into columns, checked and repaired. Reads files; a `Recording` is immutable and
may be shared between threads.

A file holds one or more symbols in alpaca-py's DataFrame columns: `symbol, timestamp, open, high, low, close, volume`,
optionally `trade_count` and `vwap`, and any further numeric column, which becomes an extra field of the bars. What
`bars.df.to_parquet()` and `bars.df.to_csv()` write is read as it is. A timestamp is the start of its bar; without a
zone it is UTC.

What is done with bad rows (each is counted by its reason, the first one is remembered by file and row):

- no symbol, no readable time, a price that is missing, infinite, negative or zero, a volume that is missing, infinite
  or negative, a high below the low, an open or close outside of them: dropped;
- a bar before an earlier row of its symbol in the same file: put in its place;
- a second bar of the same symbol and time: dropped, as a duplicate when it is equal and as a conflict when it differs.

A file that cannot be read, has no rows or lacks a column is an error.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, tzinfo
from pathlib import Path
from types import MappingProxyType

import numpy as np

from dry_work.clock import DAY_NS, MINUTE_NS
from dry_work.errors import ConfigError
from dry_work.feeds.recorded_files import (
    EXPECTED,
    OPTIONAL,
    PRICES,
    TIME,
    Column,
    Ints,
    RepairLog,
    describe_counts,
    join_symbols,
    read_file,
)
from dry_work.feeds.recorded_places import (
    ALWAYS,
    Period,
    SourceFile,
    describe_length,
    describe_time,
    entry_symbols,
    fetch_files,
    find_files,
    name_paths,
    select_files,
)
from dry_work.feeds.recorded_rows import BarLength, Piece, RowChecker, merge_pieces
from dry_work.market.aggregation import aggregate_bars, find_starts
from dry_work.market.messages import NO_EXTRA, Bar
from dry_work.market.symbols import parse_symbol

BASE = (TIME, *PRICES, "volume", *OPTIONAL)  # every other column is an extra field

_DIGEST_ROWS = 1 << 16
_CHUNK_ROWS = 4096  # bars are made from columns in pieces of this many, so that a long recording needs no more memory


class Recording:
    """Bars of some symbols, each symbol's by rising time and at most one per time.

    Args:
        columns: for each symbol, in the order in which bars of one slice are wanted, its equally long columns:
            `ts_event_ns` (rising), open, high, low, close, volume, optionally trade_count, vwap and extra fields.
        length_ns: length of every bar.
        repairs: counts of drops and repairs by reason.
        first_repairs: where each reason was first met, for people.
        left_out: files and columns that were not used, for people.
        copy: False when the columns are the recording's own from now on; they become read-only.
    """

    def __init__(
        self,
        columns: Mapping[str, Mapping[str, Column]],
        *,
        length_ns: int = MINUTE_NS,
        repairs: Mapping[str, int] | None = None,
        first_repairs: Mapping[str, str] | None = None,
        left_out: Sequence[str] = (),
        copy: bool = True,
    ) -> None:
        self.symbols = tuple(columns)
        self.length_ns = length_ns
        self.repairs: Mapping[str, int] = MappingProxyType(dict(repairs or {}))
        self.left_out = tuple(left_out)
        self._first_repairs = dict(first_repairs or {})
        self._columns = {symbol: _frozen_columns(symbol, values, copy) for symbol, values in columns.items()}

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of symbols, times, values and length; equal recordings have the same."""
        return self._compute_fingerprint()

    def count(self, symbol: str) -> int:
        """Return the number of bars of `symbol`."""
        return len(self._columns[symbol][TIME])

    def columns(self, symbol: str) -> Mapping[str, Column]:
        """Return the columns of `symbol` by name, read-only: `ts_event_ns` as int64, all others as float64."""
        return self._columns[symbol]

    def extra_fields(self, symbol: str) -> tuple[str, ...]:
        """Return the names of the extra fields that bars of `symbol` carry, sorted."""
        return tuple(name for name in self._columns[symbol] if name not in BASE)

    def slice_ends(self) -> Ints:
        """Return the end time of every slice in nanoseconds, rising."""
        times = [self._columns[symbol][TIME] for symbol in self.symbols]
        starts = np.sort(np.concatenate(times)) if times else np.empty(0, np.int64)
        is_new = np.ones(len(starts), dtype=np.bool_)
        is_new[1:] = starts[1:] != starts[:-1]
        return np.asarray(starts[is_new] + self.length_ns, dtype=np.int64)

    def bars(self, symbol: str) -> list[Bar]:
        """Return the bars of `symbol` by rising time."""
        return list(self._iterate(symbol))

    def slices(self) -> Iterator[tuple[int, list[Bar]]]:
        """Yield (end time in nanoseconds, bars that end then in the order of `symbols`) by rising time."""
        times = [self._columns[symbol][TIME] for symbol in self.symbols]
        if not times:
            return
        starts = np.concatenate(times)
        owners = np.repeat(np.arange(len(times)), [len(column) for column in times])
        order = np.lexsort((owners, starts))
        starts, owners = starts[order], owners[order]
        if not len(starts):
            return
        edges = np.flatnonzero(np.diff(starts)) + 1
        bars = [self._iterate(symbol) for symbol in self.symbols]
        low = 0
        for high in (*edges.tolist(), len(starts)):
            yield int(starts[low]) + self.length_ns, [next(bars[owner]) for owner in owners[low:high].tolist()]
            low = high

    def resample(self, length_ns: int, *, zone: tzinfo = UTC) -> Recording:
        """Return the bars of a longer length, by `dry_work.market.aggregation.aggregate_bars`.

        Args:
            length_ns: a multiple of the length of these bars that divides a day.
            zone: whose midnight begins a daily bar.

        Raises:
            ConfigError: no such length, or a bar would lie in two of the longer ones.
        """
        if length_ns == self.length_ns:
            return self
        if length_ns <= 0 or length_ns % self.length_ns or DAY_NS % length_ns:
            raise ConfigError(
                f"bars of {describe_length(length_ns)} cannot be made of bars of {describe_length(self.length_ns)}: "
                "expected a multiple of that which divides a day"
            )
        for symbol, columns in self._columns.items():
            ends = columns[TIME] + (self.length_ns - 1)
            crossing = find_starts(columns[TIME], length_ns, zone) != find_starts(ends, length_ns, zone)
            if crossing.any():
                start = describe_time(int(columns[TIME][np.argmax(crossing)]))
                raise ConfigError(
                    f"bars of {describe_length(length_ns)} cannot be made: the bar of {symbol} that begins at {start} "
                    "would lie in two of them"
                )
        return Recording(
            {symbol: aggregate_bars(columns, length_ns, zone) for symbol, columns in self._columns.items()},
            length_ns=length_ns,
            repairs=self.repairs,
            first_repairs=self._first_repairs,
            left_out=self.left_out,
            copy=False,
        )

    def describe_repairs(self) -> list[str]:
        """Return one sentence for each kind of repair or drop and for what was left out; empty when there was none."""
        return [*describe_counts(self.repairs, self._first_repairs), *self.left_out]

    def _iterate(self, symbol: str) -> Iterator[Bar]:
        columns, length_ns = self._columns[symbol], self.length_ns
        extra_names = self.extra_fields(symbol)
        nothing = [None] * _CHUNK_ROWS
        for low in range(0, len(columns[TIME]), _CHUNK_ROWS):
            rows = slice(low, low + _CHUNK_ROWS)
            base = [columns[name][rows].tolist() for name in (TIME, *PRICES, "volume")]
            optional = [columns[name][rows].tolist() if name in columns else nothing for name in OPTIONAL]
            extras = zip(*(columns[name][rows].tolist() for name in extra_names), strict=True) if extra_names else None
            for ts, open_, high_, low_, close, volume, trade_count, vwap in zip(*base, *optional, strict=False):
                yield Bar(
                    symbol=symbol,
                    ts_event_ns=ts,
                    open=open_,
                    high=high_,
                    low=low_,
                    close=close,
                    volume=volume,
                    length_ns=length_ns,
                    trade_count=_given(trade_count),
                    vwap=_given(vwap),
                    extra=NO_EXTRA if extras is None else _extra_of(extra_names, next(extras)),
                )

    def _compute_fingerprint(self) -> str:
        digest = hashlib.sha256(f"bars {self.length_ns}\n".encode())
        for symbol in self.symbols:
            columns = self._columns[symbol]
            digest.update(f"{symbol} {len(columns[TIME])} {' '.join(columns)}\n".encode())
            digest.update(columns[TIME].astype("<i8", copy=False).data)
            for name, values in columns.items():
                for low in range(0, len(values) if name != TIME else 0, _DIGEST_ROWS):
                    part = values[low : low + _DIGEST_ROWS]
                    # One bit pattern for every NaN and for both zeros, so that equal values hash equally.
                    digest.update(np.where(np.isnan(part), np.nan, part + 0.0).astype("<f8").tobytes())
        return digest.hexdigest()


def _frozen_columns(symbol: str, values: Mapping[str, Column], copy: bool) -> Mapping[str, Column]:
    """Check the shape of a symbol's columns and return them read-only, in a fixed order."""
    missing = [name for name in (TIME, *PRICES, "volume") if name not in values]
    if missing:
        raise ValueError(f"{symbol}: columns missing: {', '.join(missing)}")
    extras = sorted(name for name in values if name not in BASE)
    frozen: dict[str, Column] = {}
    for name in (*(base for base in BASE if base in values), *extras):
        make = np.array if copy else np.ascontiguousarray
        column = make(values[name], dtype=np.int64 if name == TIME else np.float64)
        column.flags.writeable = False
        frozen[name] = column
    times = frozen[TIME]
    if any(column.shape != times.shape or column.ndim != 1 for column in frozen.values()):
        raise ValueError(f"{symbol}: columns differ in length")
    if np.any(times[1:] <= times[:-1]):
        raise ValueError(f"{symbol}: times do not rise")
    return MappingProxyType(frozen)


def _given(value: float | None) -> float | None:
    """Return None for what a column marks with NaN: no value."""
    return None if value is None or math.isnan(value) else value


def _extra_of(names: Sequence[str], values: Sequence[float]) -> Mapping[str, float]:
    return {name: value for name, value in zip(names, values, strict=True) if not math.isnan(value)}


def read_bars(
    paths: Sequence[str | Path],
    symbols: Sequence[str] | None = None,
    *,
    length_ns: int | None = None,
    start_ns: int | None = None,
    end_ns: int | None = None,
) -> Recording:
    """Read the bars of `symbols` (None: of all found, sorted) from files, folders, globs and `gs://` addresses.

    Files that hold trades or quotes are left out when they were found in a folder or by a glob, and are an error when
    they were named.

    Args:
        length_ns: length of the bars. None: what the catalog folder `bars/<frame>` says (of several the shortest), else
            a minute. Files whose bars are of another length are an error.
        start_ns: bars that begin before it are passed over.
        end_ns: bars that begin at or after it are passed over.

    Raises:
        DataFileError: a file cannot be used; names it and what is expected.
        ConfigError: nothing there to read, or no bars of a wanted symbol.
        StorageError: a bucket cannot be read.
    """
    return read_bar_files(
        find_files(paths, expected=EXPECTED), name_paths(paths), symbols, length_ns, Period(start_ns, end_ns)
    )


def parse_wanted(symbols: Sequence[str] | None) -> list[str] | None:
    """Return wanted symbols in canonical form, each once.

    Raises:
        ConfigError: one is no symbol, or there are none.
    """
    wanted = None if symbols is None else list(dict.fromkeys(parse_symbol(symbol) for symbol in symbols))
    if wanted is not None and not wanted:
        raise ConfigError("no symbols asked for: name at least one")
    return wanted


def read_bar_files(
    sources: Sequence[SourceFile],
    asked: str,
    symbols: Sequence[str] | None = None,
    length_ns: int | None = None,
    period: Period = ALWAYS,
) -> Recording:
    """Read bars from files that were found; `asked` names the paths for people. Else as `read_bars`."""
    wanted = parse_wanted(symbols)
    if period.start_ns is not None and period.end_ns is not None and period.start_ns >= period.end_ns:
        raise ConfigError(f"the period {period} is empty")
    log = RepairLog()
    of_length, default_ns = _choose_length(sources, asked, length_ns, log)
    chosen, passed_over = select_files(of_length, wanted, period, ("bars",))
    found = entry_symbols(source for source in passed_over if source.entry and source.entry.kind == "bars")
    is_wanted = None if wanted is None else frozenset(wanted)
    pieces: dict[str, list[Piece]] = {}
    used = bool(found)
    for source in fetch_files(chosen):
        parts = read_file(source, log, wanted=is_wanted, period=period)
        if parts is None:
            continue
        used = True
        length = BarLength(default_ns, length_ns is not None or source.entry is not None)
        checker = RowChecker(is_wanted, log, length, period)
        usable: list[Piece] = []
        for rows in parts:
            found.update(rows.symbols)
            usable += checker.check(rows)
        checker.finish(usable)
        for piece in usable:
            pieces.setdefault(piece.symbol, []).append(piece)
    if not used:
        raise ConfigError(f"{asked}: no file with bars in it, only trades or quotes; expected {EXPECTED}")
    if wanted is None:
        wanted = sorted(pieces)
    for symbol in wanted or ["any symbol"]:
        if symbol not in pieces:
            raise _tell_missing(symbol if wanted else None, asked, of_length, found, period, log)
    columns: dict[str, dict[str, Column]] = {}
    for symbol in wanted:
        columns[symbol] = merge_pieces(pieces.pop(symbol), log)
    if used:
        import pyarrow as pa

        pa.default_memory_pool().release_unused()  # what reading took would otherwise stay taken for the whole run
    return Recording(
        columns,
        length_ns=default_ns,
        repairs=log.counts,
        first_repairs=log.first,
        left_out=tuple(log.left_out),
        copy=False,
    )


def _choose_length(
    sources: Sequence[SourceFile], asked: str, length_ns: int | None, log: RepairLog
) -> tuple[list[SourceFile], int]:
    """Return the files of one length of bars, and that length; files that do not tell their length are of any."""
    frames = {entry.frame: entry.length_ns for entry in (source.entry for source in sources) if entry and entry.frame}
    lengths = sorted(length for length in frames.values() if length is not None)
    chosen = length_ns or (lengths[0] if lengths else MINUTE_NS)
    others = sorted(frame for frame, length in frames.items() if length != chosen)
    if frames and len(others) == len(frames) and not any(source.entry is None for source in sources):
        told = f"bars of {describe_length(chosen)}" if length_ns or lengths else "bars of a fixed length"
        raise ConfigError(f"{asked}: no {told}, only of {', '.join(others)}")
    if others:
        left = ", ".join(others)
        log.left_out[f"bars of {left} left out: those of {describe_length(chosen)} are read"] = None
    return [source for source in sources if source.entry is None or source.entry.frame not in others], chosen


def _tell_missing(
    symbol: str | None, asked: str, sources: Sequence[SourceFile], found: set[str], period: Period, log: RepairLog
) -> ConfigError:
    """Tell why there are no bars of a symbol (None: of any): not in the data, not in the period, or all bad."""
    if period and (symbol is None or symbol in found):
        extent = _find_extent(sources, symbol)
        if extent is not None and not period.overlaps(*extent):
            told = f"{describe_time(extent[0])} to {describe_time(extent[1])}"
            return ConfigError(
                f"no bars of {symbol or 'any symbol'} {period} in {asked}: the data has bars from {told}"
            )
    dropped = "; ".join(log.describe())
    if symbol is None:
        where = f" {period}" if period else ""
        return ConfigError(f"{asked}: no row{where} can be used{': ' if dropped else ''}{dropped}")
    where = f" {period}" if period and symbol in found else ""
    dropped = f"; of all rows, {dropped}" if dropped else ""
    return ConfigError(f"no bars of {symbol}{where} in {asked}: symbols in it are {join_symbols(found)}{dropped}")


def _find_extent(sources: Sequence[SourceFile], symbol: str | None) -> tuple[int, int] | None:
    """Return the first and the last start of the bars of a symbol, read for the sake of a sentence."""
    wanted = None if symbol is None else frozenset([symbol])
    chosen, _ = select_files(sources, wanted, ALWAYS, ("bars",))
    dated = sorted((source for source in chosen if source.entry), key=lambda source: source.entry.first_ns)  # type: ignore[union-attr]
    spans: list[int] = []
    # Of a catalog the first and the last file are enough.
    for source in fetch_files([*(source for source in chosen if not source.entry), *dated[:1], *dated[1:][-1:]]):
        for rows in read_file(source, RepairLog(), wanted=wanted) or ():
            codes = [code for code, name in enumerate(rows.symbols) if wanted is None or name in wanted]
            times = rows.values[TIME][np.isin(rows.codes, codes) & rows.readable_time]
            spans += [int(times.min()), int(times.max())] if len(times) else []
    return (min(spans), max(spans)) if spans else None
