"""Recorded trades and quotes: Parquet and CSV files into columns. Reads files; a `TickRecording` is immutable and may
be shared between threads.

A file holds one or more symbols in alpaca-py's DataFrame columns. Trades: `symbol, timestamp, price, size`, optionally
`exchange, conditions, tape, taker_side`. Quotes: `symbol, timestamp, bid_price, bid_size, ask_price, ask_size`,
optionally `bid_exchange, ask_exchange, conditions, tape`. A price of 0 in a quote means that the side is empty.

Rows without symbol or readable time, with a price or size that is missing, infinite or negative, and trades without a
price are dropped and counted. Rows are put in the order of their times; those of one time stay as they stand.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import msgspec
import numpy as np

from dry_work.errors import ConfigError
from dry_work.feeds.recorded import Recording, read_bar_files
from dry_work.feeds.recorded_files import (
    Column,
    Floats,
    Ints,
    Mask,
    RepairLog,
    describe_counts,
    encode_dictionary,
    read_columns,
    read_names,
    read_number_column,
    read_symbol_column,
    read_time_column,
)
from dry_work.feeds.recorded_places import (
    ALWAYS,
    Period,
    SourceFile,
    fetch_files,
    find_files,
    name_paths,
    select_files,
)

TickKind = Literal["trades", "quotes"]

REQUIRED: Mapping[TickKind, tuple[str, ...]] = {
    "trades": ("symbol", "timestamp", "price", "size"),
    "quotes": ("symbol", "timestamp", "bid_price", "bid_size", "ask_price", "ask_size"),
}
_TEXTS: Mapping[TickKind, tuple[str, ...]] = {
    "trades": ("exchange", "conditions", "tape", "taker_side"),
    "quotes": ("bid_exchange", "ask_exchange", "conditions", "tape"),
}

_SEPARATOR = "\x1f"  # between the codes of a list


class Texts(msgspec.Struct, frozen=True):
    """A column of texts or of lists of texts, each different one kept once."""

    values: tuple[Any, ...]
    codes: Ints

    def at(self, row: int) -> Any:
        return self.values[self.codes[row]]


class TickTable(msgspec.Struct, frozen=True):
    """The trades or quotes of one symbol by rising time: equally long columns."""

    times: Ints
    numbers: Mapping[str, Floats]
    texts: Mapping[str, Texts]

    def __len__(self) -> int:
        return len(self.times)

    def text(self, name: str, row: int) -> str:
        """Return a text, empty when it is missing."""
        column = self.texts.get(name)
        return "" if column is None else str(column.at(row) or "")

    def conditions(self, row: int) -> tuple[str, ...]:
        """Return the condition codes, none when they are missing."""
        column = self.texts.get("conditions")
        return () if column is None else _split_conditions(column.at(row))


class TickRecording:
    """Trades and quotes by symbol.

    Args:
        tables: by kind and symbol.
        repairs: sentences about what was dropped, for people.
    """

    def __init__(self, tables: Mapping[tuple[TickKind, str], TickTable], *, repairs: Sequence[str] = ()) -> None:
        self.tables: Mapping[tuple[TickKind, str], TickTable] = MappingProxyType(dict(tables))
        self._repairs = tuple(repairs)

    def __len__(self) -> int:
        return sum(len(table) for table in self.tables.values())

    def table(self, kind: TickKind, symbol: str) -> TickTable | None:
        """Return the trades or quotes of `symbol`, None when there are none."""
        return self.tables.get((kind, symbol))

    def describe_repairs(self) -> list[str]:
        """Return one sentence for each kind of drop; empty when there was none."""
        return list(self._repairs)


def read_ticks(
    paths: Sequence[str | Path],
    symbols: Sequence[str] | None = None,
    *,
    start_ns: int | None = None,
    end_ns: int | None = None,
) -> TickRecording:
    """Read the trades and quotes of `symbols` (None: of every symbol) from files, folders, globs and `gs://` addresses.

    Files of anything else are passed over. Only what lies from `start_ns` to before `end_ns` is read.

    Raises:
        DataFileError: a file cannot be read.
        ConfigError: nothing there to read.
        StorageError: a bucket cannot be read.
    """
    wanted = None if symbols is None else frozenset(symbols)
    return read_tick_files(find_files(paths, expected="trades or quotes"), wanted, Period(start_ns, end_ns))


def read_recordings(
    paths: Sequence[str | Path],
    symbols: Sequence[str] | None = None,
    *,
    start_ns: int | None = None,
    end_ns: int | None = None,
) -> tuple[Recording, TickRecording]:
    """Read the bars of `symbols` (None: of every symbol with bars), and what there is of their trades and quotes.

    Raises:
        DataFileError: a file cannot be used; names it and what is expected.
        ConfigError: nothing there to read, or no bars of a wanted symbol.
        StorageError: a bucket cannot be read.
    """
    period = Period(start_ns, end_ns)
    by_kind = sort_by_kind(find_files(paths, expected="recordings"))
    if not by_kind["bars"]:
        raise ConfigError("the data holds trades or quotes but no bars: name files of bars of the same symbols too")
    bars = read_bar_files(by_kind["bars"], name_paths(paths), symbols, period=period)
    return bars, read_tick_files([*by_kind["trades"], *by_kind["quotes"]], frozenset(bars.symbols), period)


def sort_by_kind(sources: Sequence[SourceFile]) -> dict[str, list[SourceFile]]:
    """Return the files by what they hold: bars, trades, quotes. A file of none of them counts as one of bars.

    Names in a catalog tell it; other files are fetched and looked into.
    """
    by_kind: dict[str, list[SourceFile]] = {"bars": [], "trades": [], "quotes": []}
    looked_into = iter(fetch_files([source for source in sources if source.entry is None]))
    for source in sources:
        entry = source.entry
        if entry is not None:
            by_kind[entry.kind].append(source)
            continue
        local = next(looked_into)
        names = set(read_names(local))
        kind = next((kind for kind, required in REQUIRED.items() if names >= set(required)), "bars")
        by_kind[kind].append(msgspec.structs.replace(local, named=local.named or kind == "bars"))
    return by_kind


def read_tick_files(
    sources: Sequence[SourceFile], wanted: frozenset[str] | None, period: Period = ALWAYS
) -> TickRecording:
    """Read trades and quotes from files that were found. Else as `read_ticks`."""
    log = RepairLog()
    pieces: dict[tuple[TickKind, str], list[_Piece]] = {}
    chosen, _ = select_files(sources, wanted, period, tuple(REQUIRED))
    for source in fetch_files(chosen):
        found, table, numbers = read_columns(source, log, kinds=REQUIRED, wanted=wanted, period=period)
        for kind in REQUIRED:
            if kind == found:
                for symbol, piece in _cut(str(source), kind, table, numbers, wanted, period, log).items():
                    pieces.setdefault((kind, symbol), []).append(piece)
    tables = {key: _join(pieces.pop(key)) for key in sorted(pieces)}
    return TickRecording(tables, repairs=describe_counts(log.counts, log.first))


class _Piece(msgspec.Struct):
    times: Ints
    numbers: dict[str, Floats]
    texts: dict[str, Texts]


def _cut(
    path: str,
    kind: TickKind,
    table: Any,
    numbers: Column,
    wanted: frozenset[str] | None,
    period: Period,
    log: RepairLog,
) -> dict[str, _Piece]:
    """Drop the rows that cannot be used and return the others by symbol."""
    names = table.column_names
    symbols: dict[str, int] = {}
    codes = read_symbol_column(path, table.column("symbol"), symbols)
    times, readable = read_time_column(path, table.column("timestamp"))
    amounts = {name: read_number_column(path, name, table.column(name)) for name in REQUIRED[kind][2:]}
    texts = {name: _read_texts(table.column(name)) for name in _TEXTS[kind] if name in names}
    keep: Mask = np.array([True, *(wanted is None or symbol in wanted for symbol in symbols)])[codes + 1]
    if period.start_ns is not None:
        keep &= (times >= period.start_ns) | ~readable
    if period.end_ns is not None:
        keep &= (times < period.end_ns) | ~readable
    columns = list(amounts.values())
    with np.errstate(invalid="ignore"):
        checks: dict[str, Mask] = {
            "symbol missing or malformed": codes < 0,
            "time missing, unreadable or out of range": ~readable,
            "non-finite price or size": np.any([~np.isfinite(column) for column in columns], axis=0),
            "negative price or size": np.any([column < 0 for column in columns], axis=0),
        }
        if kind == "trades":
            checks["zero price"] = amounts["price"] == 0
    for reason, bad in checks.items():
        log.add(reason, path, numbers[keep & bad])
        keep &= ~bad
    found = {}
    for symbol, code in symbols.items():
        rows = np.flatnonzero(keep & (codes == code))
        if len(rows):
            found[symbol] = _Piece(
                times=times[rows],
                numbers={name: column[rows] for name, column in amounts.items()},
                texts={name: Texts(column.values, column.codes[rows]) for name, column in texts.items()},
            )
    return found


def _read_texts(column: Any) -> Texts:
    """Return a column of texts, numbers or lists of texts with each different value once; the first is None."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if is_list:
        column = pc.binary_join(column.cast(pa.list_(pa.string())), _SEPARATOR)
    elif pa.types.is_null(kind):
        column = column.cast(pa.string())
    codes, values = encode_dictionary(column)
    if is_list:
        values = [tuple(text.split(_SEPARATOR)) if text else () for text in values]
    return Texts((None, *values), codes.astype(np.int64) + 1)


def _join(pieces: Sequence[_Piece]) -> TickTable:
    times = np.concatenate([piece.times for piece in pieces])
    is_sorted = bool(np.all(times[1:] >= times[:-1]))
    order = slice(None) if is_sorted else np.argsort(times, kind="stable")
    times = times[order]
    numbers: dict[str, Floats] = {}
    for name in pieces[0].numbers:
        numbers[name] = np.concatenate([piece.numbers[name] for piece in pieces])[order]
    texts: dict[str, Texts] = {}
    for name in dict.fromkeys(name for piece in pieces for name in piece.texts):
        known: dict[Any, int] = {None: 0}
        codes = []
        for piece in pieces:
            column = piece.texts.get(name)
            if column is None:
                codes.append(np.zeros(len(piece.times), dtype=np.int64))
            else:
                code_of = np.array([known.setdefault(value, len(known)) for value in column.values], dtype=np.int64)
                codes.append(code_of[column.codes])
        texts[name] = Texts(tuple(known), np.concatenate(codes)[order])
    for array in (times, *numbers.values()):
        array.flags.writeable = False
    return TickTable(times, MappingProxyType(numbers), MappingProxyType(texts))


def _split_conditions(value: Any) -> tuple[str, ...]:
    """Return the codes of a cell: a list, its text as CSV files keep it, or one code."""
    if isinstance(value, tuple):
        return tuple(str(code) for code in value)
    text = "" if value is None else str(value).strip()
    if text.startswith("["):
        try:
            return tuple(str(code) for code in ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError):
            return (text,)
    return (text,) if text else ()
