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

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import msgspec
import numpy as np

from dry_work.clock import MINUTE_NS
from dry_work.errors import ConfigError
from dry_work.feeds.recorded_files import (
    EXPECTED,
    OPTIONAL,
    PRICES,
    TIME,
    Column,
    FileRows,
    Floats,
    Ints,
    Mask,
    RepairLog,
    describe_counts,
    find_files,
    name_paths,
    read_file,
)
from dry_work.market.messages import NO_EXTRA, Bar
from dry_work.market.symbols import parse_symbol

BASE = (TIME, *PRICES, "volume", *OPTIONAL)  # every other column is an extra field

_CHUNK_ROWS = 4096  # bars are made from columns in pieces of this many, so that a long recording needs no more memory
_ROUNDING = 1e-9  # prices that were adjusted may leave their range by float rounding


class Recording:
    """Bars of some symbols, each symbol's by rising time and at most one per time.

    Args:
        columns: for each symbol, in the order in which bars of one slice are wanted, its equally long columns:
            `ts_event_ns` (rising), open, high, low, close, volume, optionally trade_count, vwap and extra fields.
        length_ns: length of every bar.
        repairs: counts of drops and repairs by reason.
        first_repairs: where each reason was first met, for people.
        left_out: files and columns that were not used, for people.
    """

    def __init__(
        self,
        columns: Mapping[str, Mapping[str, Column]],
        *,
        length_ns: int = MINUTE_NS,
        repairs: Mapping[str, int] | None = None,
        first_repairs: Mapping[str, str] | None = None,
        left_out: Sequence[str] = (),
    ) -> None:
        self.symbols = tuple(columns)
        self.length_ns = length_ns
        self.repairs: Mapping[str, int] = MappingProxyType(dict(repairs or {}))
        self.left_out = tuple(left_out)
        self._first_repairs = dict(first_repairs or {})
        self._columns = {symbol: _frozen_columns(symbol, values) for symbol, values in columns.items()}
        self.fingerprint = self._compute_fingerprint()

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
        starts = np.unique(np.concatenate(times)) if times else np.empty(0, np.int64)
        return np.asarray(starts + self.length_ns, dtype=np.int64)

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
            digest.update(columns[TIME].astype("<i8").tobytes())
            for name, values in columns.items():
                if name != TIME:
                    # One bit pattern for every NaN and for both zeros, so that equal values hash equally.
                    digest.update(np.where(np.isnan(values), np.nan, values + 0.0).astype("<f8").tobytes())
        return digest.hexdigest()


def _frozen_columns(symbol: str, values: Mapping[str, Column]) -> Mapping[str, Column]:
    """Check the shape of a symbol's columns and return them read-only, in a fixed order."""
    missing = [name for name in (TIME, *PRICES, "volume") if name not in values]
    if missing:
        raise ValueError(f"{symbol}: columns missing: {', '.join(missing)}")
    extras = sorted(name for name in values if name not in BASE)
    frozen: dict[str, Column] = {}
    for name in (*(base for base in BASE if base in values), *extras):
        column = np.array(values[name], dtype=np.int64 if name == TIME else np.float64)
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
    paths: Sequence[str | Path], symbols: Sequence[str] | None = None, *, length_ns: int = MINUTE_NS
) -> Recording:
    """Read the bars of `symbols` (None: of every symbol found, sorted) from files, folders and globs.

    Files that hold trades or quotes are left out when they were found in a folder or by a glob, and are an error when
    they were named. `length_ns` is the length of the recorded bars.

    Raises:
        DataFileError: a file cannot be used; names it and what is expected.
        ConfigError: nothing there to read, or no bars of a wanted symbol.
    """
    wanted = None if symbols is None else list(dict.fromkeys(parse_symbol(symbol) for symbol in symbols))
    if wanted is not None and not wanted:
        raise ConfigError("no symbols asked for: name at least one")
    log = RepairLog()
    found: set[str] = set()
    pieces: dict[str, list[_Piece]] = {}
    used = 0
    for source in find_files(paths):
        rows = read_file(source, log)
        if rows is None:
            continue
        used += 1
        found.update(rows.symbols)
        for piece in _check_rows(rows, None if wanted is None else frozenset(wanted), log):
            pieces.setdefault(piece.symbol, []).append(piece)
    if not used:
        raise ConfigError(f"{name_paths(paths)}: no file with bars in it, only trades or quotes; expected {EXPECTED}")
    if wanted is None:
        wanted = sorted(pieces)
        if not wanted:
            raise ConfigError(f"{name_paths(paths)}: no row can be used: {'; '.join(log.describe())}")
    for symbol in wanted:
        if symbol not in pieces:
            listed = ", ".join(sorted(found)[:20]) + (", ..." if len(found) > 20 else "")
            dropped = f"; of all rows, {'; '.join(log.describe())}" if log.counts else ""
            raise ConfigError(f"no bars of {symbol} in {name_paths(paths)}: symbols in it are {listed}{dropped}")
    columns = {symbol: _merge(pieces[symbol], log) for symbol in wanted}
    return Recording(
        columns, length_ns=length_ns, repairs=log.counts, first_repairs=log.first, left_out=tuple(log.left_out)
    )


class _Piece(msgspec.Struct):
    """The usable rows of one symbol in one file."""

    symbol: str
    path: str
    values: dict[str, Column]
    numbers: Ints


def _check_rows(rows: FileRows, wanted: frozenset[str] | None, log: RepairLog) -> Iterator[_Piece]:
    """Drop the rows that cannot be used, count them, and yield what is left by symbol."""
    codes, values = rows.codes, rows.values
    is_wanted = np.array([True, *(wanted is None or symbol in wanted for symbol in rows.symbols)])
    keep: Mask = is_wanted[codes + 1]
    prices: Floats = np.stack([values[name] for name in PRICES])
    volume = values["volume"]
    highest, lowest = prices[1], prices[2]
    with np.errstate(invalid="ignore"):
        margin = _ROUNDING * np.abs(highest)
        inside = (prices <= highest + margin) & (prices >= lowest - margin)
        checks: dict[str, Mask] = {
            "symbol missing or malformed": codes < 0,
            "time missing, unreadable or out of range": ~rows.readable_time,
            "non-finite price": np.any(~np.isfinite(prices), axis=0),
            "negative price": np.any(prices < 0, axis=0),
            "zero price": np.any(prices == 0, axis=0),
            "non-finite volume": ~np.isfinite(volume),
            "negative volume": volume < 0,
            "high below low": highest < lowest - margin,
            "open or close outside of low and high": np.any(~inside, axis=0),
        }
        for reason, found in checks.items():
            bad = keep & found
            log.add(reason, rows.path, rows.numbers[bad])
            keep &= ~bad
        for name, column in values.items():
            if name != TIME and name not in PRICES and name != "volume":
                bad = keep & (np.isinf(column) | ((column < 0) if name in OPTIONAL else False))
                log.add(f"unusable {name}", rows.path, rows.numbers[bad])
                column[bad] = np.nan
    kept = np.flatnonzero(keep)
    kept = kept[np.argsort(codes[kept], kind="stable")]
    edges = np.flatnonzero(np.diff(codes[kept])) + 1
    for part in np.split(kept, edges):
        if len(part):
            times = values[TIME][part]
            late = times < np.maximum.accumulate(times)
            log.add("out of order", rows.path, rows.numbers[part][late])
            yield _Piece(
                symbol=rows.symbols[codes[part[0]]],
                path=rows.path,
                values={name: column[part] for name, column in values.items()},
                numbers=rows.numbers[part],
            )


def _merge(pieces: list[_Piece], log: RepairLog) -> dict[str, Column]:
    """Join one symbol's pieces by rising time; of rows of the same time the first read stays."""
    names = list(dict.fromkeys(name for piece in pieces for name in piece.values))
    columns: dict[str, Column] = {}
    for name in names:
        parts = [piece.values.get(name, np.full(len(piece.numbers), np.nan)) for piece in pieces]
        columns[name] = np.concatenate(parts)
    owners = np.repeat(np.arange(len(pieces)), [len(piece.numbers) for piece in pieces])
    numbers = np.concatenate([piece.numbers for piece in pieces])
    order = np.argsort(columns[TIME], kind="stable")
    times = columns[TIME][order]
    is_first = np.ones(len(times), dtype=np.bool_)
    is_first[1:] = times[1:] != times[:-1]
    repeats = np.flatnonzero(~is_first)
    if len(repeats):
        firsts = np.maximum.accumulate(np.where(is_first, np.arange(len(times)), 0))[repeats]
        equal = np.ones(len(repeats), dtype=np.bool_)
        for column in columns.values():
            one, other = column[order[firsts]], column[order[repeats]]
            equal &= (one == other) | (np.isnan(one) & np.isnan(other))
        for reason, rows in (("duplicate", order[repeats[equal]]), ("conflict", order[repeats[~equal]])):
            for owner in np.unique(owners[rows]):
                log.add(reason, pieces[owner].path, np.sort(numbers[rows[owners[rows] == owner]]))
    kept = order[is_first]
    merged = {name: column[kept] for name, column in columns.items()}
    # A column without one value says nothing; without it the fingerprint does not depend on how files were cut.
    return {name: column for name, column in merged.items() if name in (TIME, *PRICES) or not np.isnan(column).all()}
