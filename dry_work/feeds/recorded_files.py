"""Files of recorded bars as columns, before any row is judged. Reads files; keeps no state."""

from __future__ import annotations

import contextlib
import keyword
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from dry_work.clock import DAY_NS
from dry_work.errors import ConfigError, DataFileError
from dry_work.feeds.recorded_places import ALWAYS, Period, SourceFile
from dry_work.market.symbols import parse_symbol

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Column = NDArray[Any]

PRICES = ("open", "high", "low", "close")
REQUIRED = ("symbol", "timestamp", *PRICES, "volume")
OPTIONAL = ("trade_count", "vwap")
TIME = "ts_event_ns"

EXPECTED = f"bars with the columns {', '.join(REQUIRED)} and optionally {', '.join(OPTIONAL)} and numeric columns"

# Times outside of these are a mistake in the file (seconds taken for nanoseconds, a date typed wrong). The upper bound
# leaves room below the end of 64-bit nanoseconds, so that a bar's end is always a number too.
_FIRST_NS = 0  # 1970
_LAST_NS = 84_000 * DAY_NS  # in 2199
_NS_PER_UNIT = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
_NEVER_EXTRA = frozenset({*REQUIRED, *OPTIONAL, TIME, "type", "source", "revision", "received"})


class FileRows(msgspec.Struct):
    """A part of a file as columns.

    `symbols` holds each symbol once, also those of rows that are not here; `codes` points into it (-1: none).
    """

    path: str
    symbols: list[str]
    codes: NDArray[np.int32]
    values: dict[str, Column]
    readable_time: Mask
    numbers: Column  # row in the file, counted from 1


class RepairLog:
    """Counts of repairs by reason, and where each was first met."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.left_out: dict[str, None] = {}

    def add(self, reason: str, path: str, numbers: Column) -> None:
        """Count the rows `numbers` of the file `path`."""
        if len(numbers):
            self.counts[reason] += len(numbers)
            self.first.setdefault(reason, f"{path}, row {int(numbers[0])}")

    def describe(self) -> list[str]:
        """Return one sentence for each reason."""
        return describe_counts(self.counts, self.first)


def describe_counts(counts: Mapping[str, int], first: Mapping[str, str]) -> list[str]:
    """Return one sentence for each reason, such as `3 rows dropped: negative price (first: a.csv, row 7)`."""
    sentences = []
    for reason, number in counts.items():
        if reason == "out of order":
            done = "put in their place"
        else:
            done = "without one value" if reason.startswith("unusable ") else "dropped"
        where = f" (first: {first[reason]})" if reason in first else ""
        sentences.append(f"{number} row{'s' if number != 1 else ''} {done}: {reason}{where}")
    return sentences


def read_file(
    source: SourceFile, log: RepairLog, *, wanted: frozenset[str] | None = None, period: Period = ALWAYS
) -> Iterator[FileRows] | None:
    """Read one file of bars part by part; None when it holds trades or quotes and was not named.

    Rows of other symbols and times may be among them: only whole parts of the file are left out.
    """
    path = str(source)
    opened = _open_file(source, log, (REQUIRED,))
    names = opened.schema.names
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        if not source.named and ({"price", "size"} <= set(names) or {"bid_price", "ask_price"} <= set(names)):
            log.left_out[f"{path}: left out, it holds {'trades' if 'price' in names else 'quotes'}, not bars"] = None
            return None
        raise DataFileError(
            path, f"columns missing: {', '.join(missing)}; found {', '.join(names)}; expected {EXPECTED}"
        )
    _check_columns(source, opened, EXPECTED)
    numeric = [*PRICES, "volume", *(name for name in OPTIONAL if name in names)]
    for field in opened.schema:
        if field.name not in _NEVER_EXTRA and field.name and not field.name.startswith("__index_level_"):
            refusal = _refuse_extra(field.name, field.type)
            if refusal is None:
                numeric.append(field.name)
            else:
                log.left_out[f"column {field.name!r} left out: {refusal}"] = None
    return _read_parts(path, opened, numeric, wanted, period)


def _read_parts(
    path: str, opened: _OpenFile, numeric: Sequence[str], wanted: frozenset[str] | None, period: Period
) -> Iterator[FileRows]:
    symbols: dict[str, int] = {}
    for table, numbers in opened.read(("symbol", "timestamp", *numeric), wanted, period, symbols):
        codes = read_symbol_column(path, table.column("symbol"), symbols)
        times, readable = read_time_column(path, table.column("timestamp"))
        values: dict[str, Column] = {TIME: times}
        for name in numeric:
            values[name] = read_number_column(path, name, table.column(name))
        yield FileRows(
            path=path, symbols=list(symbols), codes=codes, values=values, readable_time=readable, numbers=numbers
        )
    if symbols:
        nothing = np.empty(0)
        yield FileRows(  # that a symbol is in the file is told also when none of its rows was read
            path=path,
            symbols=list(symbols),
            codes=np.empty(0, np.int32),
            values={TIME: np.empty(0, np.int64), **dict.fromkeys(numeric, nothing)},
            readable_time=np.empty(0, np.bool_),
            numbers=np.empty(0, np.int32),
        )


def read_columns(
    source: SourceFile,
    log: RepairLog,
    *,
    kinds: Mapping[Any, Sequence[str]],
    wanted: frozenset[str] | None = None,
    period: Period = ALWAYS,
) -> tuple[str, Any, Column]:
    """Read a file that is of one of `kinds` (its required columns by name).

    Returns: the kind ("" for none of them), its table, and for each row its number in the file.
    """
    import pyarrow as pa

    opened = _open_file(source, log, tuple(kinds.values()))
    names = opened.schema.names
    kind = next((kind for kind, required in kinds.items() if set(names) >= set(required)), "")
    if not kind:
        return "", opened.schema.empty_table(), np.empty(0, np.int32)
    _check_columns(source, opened, str(kind))
    parts = list(opened.read(names, wanted, period, {}))
    if not parts:
        return kind, opened.schema.empty_table(), np.empty(0, np.int32)
    table = pa.concat_tables([table for table, _ in parts], promote_options="permissive")
    return kind, table, np.concatenate([numbers for _, numbers in parts])


def read_names(source: SourceFile) -> list[str]:
    """Return the names of a file's columns.

    Raises:
        DataFileError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    if _is_csv(source.path):
        try:
            with pa_csv.open_csv(source.path) as reader:
                return list(reader.schema.names)
        except (pa.ArrowException, OSError) as error:
            raise DataFileError(source, f"cannot be read as CSV: {_first_line(error)}") from error
    return list(_ParquetSource(source).schema.names)


def _check_columns(source: SourceFile, opened: _OpenFile, expected: str) -> None:
    repeated = [name for name, number in Counter(opened.schema.names).items() if number > 1]
    if repeated:
        raise DataFileError(source, f"columns given twice: {', '.join(repeated)}")
    if opened.total == 0:
        raise DataFileError(source, f"no rows; expected {expected}")


def _is_csv(path: Path) -> bool:
    return path.name.lower().endswith((".csv", ".csv.gz"))


class _OpenFile(Protocol):
    """A file of which the columns are known, and the rows can be read."""

    schema: Any  # with the names that columns should have
    total: int  # rows

    def read(
        self, names: Sequence[str], wanted: frozenset[str] | None, period: Period, symbols: dict[str, int]
    ) -> Iterator[tuple[Any, Column]]:
        """Yield (a table of the named columns, the number of each row); what is passed over is added to `symbols`."""


def _open_file(source: SourceFile, log: RepairLog, kinds: Sequence[Sequence[str]]) -> _OpenFile:
    return _CsvSource(source, log, kinds) if _is_csv(source.path) else _ParquetSource(source)


class _ParquetSource:
    """A Parquet file, read by its row groups."""

    def __init__(self, source: SourceFile) -> None:
        import pyarrow.parquet as pq

        self._source = source
        with self._errors():
            self._metadata = pq.read_metadata(source.path)
            stored = self._metadata.schema.to_arrow_schema()
        self.schema = _restore_index(stored.empty_table()).schema
        self.total = self._metadata.num_rows
        self._stored_names = dict(zip(self.schema.names, stored.names, strict=True))

    def read(
        self, names: Sequence[str], wanted: frozenset[str] | None, period: Period, symbols: dict[str, int]
    ) -> Iterator[tuple[Any, Column]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        stored = [self._stored_names[name] for name in names]
        symbol_name = self._stored_names["symbol"]
        small = np.int32 if self.total < 2**31 else np.int64
        leaves = {self._metadata.schema.column(at).path: at for at in range(self._metadata.num_columns)}
        time_at = leaves.get(self._stored_names["timestamp"], -1)
        # One file as it is: reading it as a data set would turn folder names into columns.
        with (
            self._errors(),
            pq.ParquetFile(
                self._source.path,
                metadata=self._metadata,
                read_dictionary=[symbol_name] if symbol_name in leaves else None,  # the few symbols once each
                page_checksum_verification=True,  # of files that have some
            ) as file,
        ):
            first_row = 1
            for group in range(self._metadata.num_row_groups):
                info = self._metadata.row_group(group)
                rows = range(first_row, first_row + info.num_rows)
                first_row = rows.stop
                if period and time_at >= 0:
                    span = _time_span(info.column(time_at))
                    if span is not None and not period.overlaps(*span):
                        self._note_symbols(file, group, symbol_name, symbols)
                        continue
                if wanted is not None and not self._note_symbols(file, group, symbol_name, symbols) & wanted:
                    continue
                table = file.read_row_group(group, columns=stored)
                if table.num_rows != len(rows):
                    raise pa.ArrowInvalid(f"its row group {group} holds {table.num_rows} rows of {len(rows)}")
                yield table.select(stored).rename_columns(list(names)), np.arange(rows.start, rows.stop, dtype=small)

    def _note_symbols(self, file: Any, group: int, name: str, symbols: dict[str, int]) -> set[str]:
        """Return the symbols in a row group, which that column tells; rows without symbol count as all of them."""
        column = file.read_row_group(group, columns=[name]).column(0)
        codes = read_symbol_column(str(self._source), column, symbols)
        known = list(symbols)
        present = np.bincount(codes + 1, minlength=len(known) + 1) > 0
        return set(known) if present[0] else {known[code] for code in np.flatnonzero(present[1:])}

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError) as error:
            reason = f"cannot be read as Parquet: {_first_line(error)}; expected {EXPECTED}"
            raise DataFileError(self._source, reason) from error


class _CsvSource:
    """A CSV file, read as a whole; of another kind it is read too, since its columns stand in it."""

    def __init__(self, source: SourceFile, log: RepairLog, kinds: Sequence[Sequence[str]]) -> None:
        self._table, self._numbers = _read_csv(source, log)
        self.schema = self._table.schema
        self.total = self._table.num_rows

    def read(
        self, names: Sequence[str], wanted: frozenset[str] | None, period: Period, symbols: dict[str, int]
    ) -> Iterator[tuple[Any, Column]]:
        yield self._table.select(list(names)), self._numbers


def _time_span(column: Any) -> tuple[int, int] | None:
    """Return the least and the greatest time in nanoseconds that a part of a file says it has."""
    import pandas as pd

    statistics = column.statistics
    if statistics is None or not statistics.has_min_max:
        return None
    try:
        span = [pd.Timestamp(value) for value in (statistics.min, statistics.max)]
        return tuple((t if t.tzinfo else t.tz_localize("UTC")).as_unit("ns").value for t in span)  # type: ignore[return-value]
    except (ValueError, TypeError, OverflowError):  # text, or times that no bar has: they are judged row by row
        return None


def _restore_index(table: Any) -> Any:
    """Name the unnamed levels of a (symbol, timestamp) index; named ones are columns already."""
    import pyarrow as pa

    names = list(table.column_names)
    for position, name in enumerate(names):
        if name.startswith("__index_level_"):
            kind = table.column(position).type
            if pa.types.is_timestamp(kind) and "timestamp" not in names:
                names[position] = "timestamp"
            elif _is_text(kind) and "symbol" not in names:
                names[position] = "symbol"
    return table.rename_columns(names)


def _read_csv(source: SourceFile, log: RepairLog) -> tuple[Any, Column]:
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    malformed: list[int] = []

    def skip(row: Any) -> str:
        malformed.append(row.number - 1)  # the header is line 1
        return "skip"

    try:
        table = pa_csv.read_csv(
            source.path,
            read_options=pa_csv.ReadOptions(use_threads=False),  # threads would lose the row numbers
            parse_options=pa_csv.ParseOptions(invalid_row_handler=skip),
            convert_options=pa_csv.ConvertOptions(
                column_types={"symbol": pa.string(), "timestamp": pa.string()}, strings_can_be_null=True
            ),
        )
    except (pa.ArrowException, OSError) as error:
        raise DataFileError(source, f"cannot be read as CSV: {_first_line(error)}; expected {EXPECTED}") from error
    log.add("not as many values as columns", str(source), np.array(malformed, dtype=np.int64))
    numbers = np.arange(1, table.num_rows + len(malformed) + 1, dtype=np.int32)
    return table, numbers if not malformed else np.setdiff1d(numbers, np.array(malformed, dtype=np.int32))


def _first_line(error: BaseException) -> str:
    line = (str(error).splitlines() or [""])[0]
    shown = "".join(letter if letter.isprintable() else "?" for letter in line).rstrip(".: ")
    return shown or type(error).__name__


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _refuse_extra(name: str, kind: Any) -> str | None:
    """Tell why a column cannot be an extra field, None when it can."""
    import pyarrow as pa

    if not _is_number(kind) or pa.types.is_null(kind):
        return "it is not numeric"
    if not name.isidentifier() or keyword.iskeyword(name):
        return "its name is not a Python identifier"
    return "its name starts with an underscore" if name.startswith("_") else None


def read_symbol_column(path: str, column: Any, symbols: dict[str, int]) -> NDArray[np.int32]:
    """Return for each row the code of its symbol in `symbols`, to which new ones are added, or -1."""
    import pyarrow as pa

    if not _is_text(column.type) and not pa.types.is_null(column.type):
        raise DataFileError(path, f"column symbol holds {column.type}; expected text such as SPY or BTC/USD")
    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    encoded, texts = encode_dictionary(column)
    code_of = [-1]  # of a missing symbol, and of one that is none
    for text in texts:
        try:
            code_of.append(-1 if text is None else symbols.setdefault(parse_symbol(text), len(symbols)))
        except ConfigError:
            code_of.append(-1)
    return np.array(code_of, dtype=np.int32)[encoded + 1]


def encode_dictionary(column: Any) -> tuple[NDArray[np.int32], list[Any]]:
    """Return (for each row the index of its value or -1 where there is none, the values) of an Arrow column."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    chunks = column.unify_dictionaries().chunks if isinstance(column, pa.ChunkedArray) else [column]
    if not chunks:
        return np.empty(0, np.int32), []
    codes = [chunk.indices.cast(pa.int32()).fill_null(-1).to_numpy(zero_copy_only=False) for chunk in chunks]
    return np.concatenate(codes), chunks[0].dictionary.to_pylist()


def read_time_column(path: str, column: Any) -> tuple[Ints, Mask]:
    """Return (UTC nanoseconds, which of them were readable)."""
    import pyarrow as pa

    kind = column.type
    if _is_text(kind) or pa.types.is_null(kind):
        column = _parse_times(column)
    elif pa.types.is_date(kind):
        column = column.cast(pa.timestamp("ms"))
    elif not pa.types.is_timestamp(kind):
        raise DataFileError(path, f"column timestamp holds {kind}; expected UTC times or ISO 8601 text")
    # A zone is only a label here: what is stored is UTC, and a naive time is UTC by contract.
    per_unit = _NS_PER_UNIT[column.type.unit]
    raw = column.cast(pa.int64())
    if raw.null_count:
        raw = raw.fill_null(-1)
    times = np.asarray(raw.to_numpy(), dtype=np.int64)
    readable = (times >= _FIRST_NS) & (times <= _LAST_NS // per_unit)
    if per_unit == 1 and readable.all():
        return times, readable
    return np.where(readable, times, 0) * per_unit, readable


def _parse_times(column: Any) -> Any:
    """Return texts as times: what Arrow reads at once when it reads all of it, else row by row."""
    import pandas as pd
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    for kind in (pa.timestamp("ns", "UTC"), pa.timestamp("ns")):
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            continue  # a zone among naive times, or a text that is no time
    texts = pd.Series(column.cast(pa.large_string()).to_pylist(), dtype="object")
    parsed = pd.to_datetime(texts, utc=True, format="ISO8601", errors="coerce")
    return pa.chunked_array([pa.Array.from_pandas(parsed)])


def read_number_column(path: str, name: str, column: Any) -> Floats:
    """Return a column as float64, NaN where there is no number; it may be read-only."""
    import pyarrow as pa

    kind = column.type
    if _is_text(kind):
        import pandas as pd

        texts = pd.Series(column.cast(pa.large_string()).to_pylist(), dtype="object")
        return np.array(pd.to_numeric(texts, errors="coerce"), dtype=np.float64)
    if not _is_number(kind) and not pa.types.is_null(kind):
        raise DataFileError(path, f"column {name} holds {kind}; expected numbers")
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)


def join_symbols(symbols: Iterable[str], most: int = 20) -> str:
    """Return symbols for a sentence, the first of them by name."""
    listed = sorted(symbols)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
