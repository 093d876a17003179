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
from dry_work.feeds.recorded import Recording, read_bars
from dry_work.feeds.recorded_files import (
    Floats,
    Ints,
    Mask,
    RepairLog,
    SourceFile,
    describe_counts,
    find_files,
    read_columns,
    read_names,
    read_number_column,
    read_symbol_column,
    read_time_column,
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


def read_ticks(paths: Sequence[str | Path], symbols: Sequence[str] | None = None) -> TickRecording:
    """Read the trades and quotes of `symbols` (None: of every symbol) from files, folders and globs.

    Files of anything else are passed over.

    Raises:
        DataFileError: a file cannot be read.
        ConfigError: nothing there to read.
    """
    return _read(find_files(paths), None if symbols is None else frozenset(symbols))


def read_recordings(
    paths: Sequence[str | Path], symbols: Sequence[str] | None = None
) -> tuple[Recording, TickRecording]:
    """Read the bars of `symbols` (None: of every symbol with bars), and what there is of their trades and quotes.

    Raises:
        DataFileError: a file cannot be used; names it and what is expected.
        ConfigError: nothing there to read, or no bars of a wanted symbol.
    """
    ticks: list[SourceFile] = []
    others: list[str | Path] = []
    for source in find_files(paths):
        names = set(read_names(source))
        if any(names >= set(required) for required in REQUIRED.values()):
            ticks.append(source)
        else:
            others.append(source.path)
    if not others:
        raise ConfigError("the data holds trades or quotes but no bars: name files of bars of the same symbols too")
    bars = read_bars(others, symbols)
    return bars, _read(ticks, frozenset(bars.symbols))


class _Piece(msgspec.Struct):
    times: Ints
    numbers: dict[str, Floats]
    texts: dict[str, list[Any]]


def _read(sources: Sequence[SourceFile], wanted: frozenset[str] | None) -> TickRecording:
    log = RepairLog()
    pieces: dict[tuple[TickKind, str], list[_Piece]] = {}
    for source in sources:
        found, table, numbers = read_columns(source, log, kinds=REQUIRED)
        for kind in REQUIRED:
            if kind == found:
                for symbol, piece in _cut(str(source.path), kind, table, numbers, wanted, log).items():
                    pieces.setdefault((kind, symbol), []).append(piece)
    tables = {key: _join(parts) for key, parts in sorted(pieces.items())}
    return TickRecording(tables, repairs=describe_counts(log.counts, log.first))


def _cut(
    path: str, kind: TickKind, table: Any, numbers: Ints, wanted: frozenset[str] | None, log: RepairLog
) -> dict[str, _Piece]:
    """Drop the rows that cannot be used and return the others by symbol."""
    names = table.column_names
    codes, symbols = read_symbol_column(path, table.column("symbol"))
    times, readable = read_time_column(path, table.column("timestamp"))
    amounts = {name: read_number_column(path, name, table.column(name)) for name in REQUIRED[kind][2:]}
    texts: dict[str, Any] = {name: table.column(name).to_pylist() for name in _TEXTS[kind] if name in names}
    keep: Mask = np.array([True, *(wanted is None or symbol in wanted for symbol in symbols)])[codes + 1]
    all_amounts = np.stack(list(amounts.values()))
    with np.errstate(invalid="ignore"):
        checks: dict[str, Mask] = {
            "symbol missing or malformed": codes < 0,
            "time missing, unreadable or out of range": ~readable,
            "non-finite price or size": np.any(~np.isfinite(all_amounts), axis=0),
            "negative price or size": np.any(all_amounts < 0, axis=0),
        }
        if kind == "trades":
            checks["zero price"] = amounts["price"] == 0
    for reason, bad in checks.items():
        log.add(reason, path, numbers[keep & bad])
        keep &= ~bad
    found = {}
    for code, symbol in enumerate(symbols):
        rows = np.flatnonzero(keep & (codes == code))
        if len(rows):
            found[symbol] = _Piece(
                times=times[rows],
                numbers={name: column[rows] for name, column in amounts.items()},
                texts={name: [values[row] for row in rows.tolist()] for name, values in texts.items()},
            )
    return found


def _join(pieces: Sequence[_Piece]) -> TickTable:
    times = np.concatenate([piece.times for piece in pieces])
    order = np.argsort(times, kind="stable")
    numbers: dict[str, Floats] = {}
    for name in pieces[0].numbers:
        numbers[name] = np.concatenate([piece.numbers[name] for piece in pieces])[order]
    texts: dict[str, Texts] = {}
    for name in dict.fromkeys(name for piece in pieces for name in piece.texts):
        known: dict[Any, int] = {}
        codes = [
            known.setdefault(_freeze(value), len(known))
            for piece in pieces
            for value in piece.texts.get(name, [None] * len(piece.times))
        ]
        texts[name] = Texts(tuple(known), np.array(codes, dtype=np.int64)[order])
    for column in (times, *numbers.values()):
        column.flags.writeable = False
    return TickTable(times[order], MappingProxyType(numbers), MappingProxyType(texts))


def _freeze(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


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
