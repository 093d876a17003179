"""Files of recorded bars as columns, before any row is judged. Reads files; keeps no state."""

from __future__ import annotations

import glob
import keyword
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dry_work.clock import DAY_NS
from dry_work.errors import ConfigError, DataFileError
from dry_work.market.symbols import parse_symbol

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Column = NDArray[Any]

PRICES = ("open", "high", "low", "close")
REQUIRED = ("symbol", "timestamp", *PRICES, "volume")
OPTIONAL = ("trade_count", "vwap")
TIME = "ts_event_ns"

SUFFIXES = (".parquet", ".pq", ".csv", ".csv.gz")
EXPECTED = f"bars with the columns {', '.join(REQUIRED)} and optionally {', '.join(OPTIONAL)} and numeric columns"

# Times outside of these are a mistake in the file (seconds taken for nanoseconds, a date typed wrong). The upper bound
# leaves room below the end of 64-bit nanoseconds, so that a bar's end is always a number too.
_FIRST_NS = 0  # 1970
_LAST_NS = 84_000 * DAY_NS  # in 2199
_NS_PER_UNIT = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
_NEVER_EXTRA = frozenset({*REQUIRED, *OPTIONAL, TIME, "type", "source", "revision"})


class SourceFile(msgspec.Struct, frozen=True):
    path: Path
    named: bool  # given as a file, not found in a folder or by a glob


class FileRows(msgspec.Struct):
    """One file as columns; `symbols` holds each spelling once in canonical form, `codes` points into it (-1: none)."""

    path: str
    symbols: list[str]
    codes: Ints
    values: dict[str, Column]
    readable_time: Mask
    numbers: Ints  # row in the file, counted from 1


class RepairLog:
    """Counts of repairs by reason, and where each was first met."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.left_out: dict[str, None] = {}

    def add(self, reason: str, path: str, numbers: Ints) -> None:
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


def name_paths(paths: Sequence[str | Path]) -> str:
    names = [str(path) for path in paths]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _has_suffix(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def _files_under(folder: Path) -> list[Path]:
    """Return the recordings below `folder`, sorted; names that start with a dot or underscore are no recordings."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if _has_suffix(path)
        and path.is_file()
        and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    ]


def find_files(paths: Sequence[str | Path]) -> list[SourceFile]:
    """Return the files that `paths` name, in that order, each once."""
    if not paths:
        raise ConfigError(f"no data given: name a file, a folder or a glob of {EXPECTED}")
    sources: dict[Path, SourceFile] = {}
    for given in paths:
        text = str(given)
        if "://" in text or text.startswith("gs:/"):
            raise ConfigError(f"{text}: is not a local path; recordings are read from local files, folders and globs")
        path = Path(text).expanduser()
        if path.is_file():
            if not _has_suffix(path):
                raise DataFileError(path, f"is neither Parquet nor CSV by its name; expected {', '.join(SUFFIXES)}")
            matches, named = [path], True
        elif path.is_dir():
            matches, named = _files_under(path), False
            if not matches:
                raise ConfigError(f"{text}: no recordings in this folder; expected files {', '.join(SUFFIXES)}")
        else:
            matches, named = [], False
            if not glob.has_magic(text):
                raise ConfigError(f"{text}: no such file or folder")
            for match in sorted(Path(name) for name in glob.glob(str(path), recursive=True)):
                if match.is_dir():
                    matches += _files_under(match)
                elif _has_suffix(match):
                    matches.append(match)
            if not matches:
                raise ConfigError(f"{text}: matches no recording; expected files {', '.join(SUFFIXES)}")
        for match in matches:
            key = match.resolve()
            if key not in sources or named:
                sources[key] = SourceFile(match, named)
    return list(sources.values())


def read_file(source: SourceFile, log: RepairLog) -> FileRows | None:
    """Read one file as columns; None when it holds trades or quotes and was not named."""
    path = str(source.path)
    is_csv = source.path.name.lower().endswith((".csv", ".csv.gz"))
    table, numbers = _read_csv(source.path, log) if is_csv else _read_parquet(source.path)
    names: list[str] = list(table.column_names)
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        if not source.named and ({"price", "size"} <= set(names) or {"bid_price", "ask_price"} <= set(names)):
            log.left_out[f"{path}: left out, it holds {'trades' if 'price' in names else 'quotes'}, not bars"] = None
            return None
        raise DataFileError(
            path, f"columns missing: {', '.join(missing)}; found {', '.join(names)}; expected {EXPECTED}"
        )
    repeated = [name for name, number in Counter(names).items() if number > 1]
    if repeated:
        raise DataFileError(path, f"columns given twice: {', '.join(repeated)}")
    if table.num_rows == 0:
        raise DataFileError(path, f"no rows; expected {EXPECTED}")
    codes, symbols = read_symbol_column(path, table.column("symbol"))
    times, readable = read_time_column(path, table.column("timestamp"))
    values: dict[str, Column] = {TIME: times}
    for name in (*PRICES, "volume", *(name for name in OPTIONAL if name in names)):
        values[name] = read_number_column(path, name, table.column(name))
    for name in names:
        if name not in _NEVER_EXTRA and name and not name.startswith("__index_level_"):  # a frame's own row numbers
            column = table.column(name)
            refusal = _refuse_extra(name, column.type)
            if refusal is None:
                values[name] = read_number_column(path, name, column)
            else:
                log.left_out[f"column {name!r} left out: {refusal}"] = None
    return FileRows(path=path, symbols=symbols, codes=codes, values=values, readable_time=readable, numbers=numbers)


def read_columns(source: SourceFile, log: RepairLog, *, kinds: Mapping[Any, Sequence[str]]) -> tuple[str, Any, Ints]:
    """Read a file that is of one of `kinds` (its required columns by name).

    Returns: the kind ("" for none of them), its table, and for each row its number in the file.
    """
    path = source.path
    if path.name.lower().endswith((".csv", ".csv.gz")):
        table, numbers = _read_csv(path, log)
    else:
        table, numbers = _read_parquet(path, *kinds.values())
    names = set(table.column_names)
    kind = next((kind for kind, required in kinds.items() if names >= set(required)), "")
    return kind, table, numbers


def read_names(source: SourceFile) -> list[str]:
    """Return the names of a file's columns.

    Raises:
        DataFileError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    if source.path.name.lower().endswith((".csv", ".csv.gz")):
        try:
            with pa_csv.open_csv(source.path) as reader:
                return list(reader.schema.names)
        except (pa.ArrowException, OSError) as error:
            raise DataFileError(source.path, f"cannot be read as CSV: {_first_line(error)}") from error
    return list(_read_parquet(source.path, ("no column has this name",))[0].column_names)


def _read_parquet(path: Path, *wanted: Sequence[str]) -> tuple[Any, Ints]:
    """Read a file that has all of the `wanted` columns (of one of them), else its schema alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # One file as it is: reading it as a data set would turn folder names into columns.
        with pq.ParquetFile(path) as file:
            schema = _restore_index(file.schema_arrow.empty_table()).schema
            # A file of trades may be large; its schema alone says that there are no bars in it.
            is_wanted = any(set(names) <= set(schema.names) for names in wanted or (REQUIRED,))
            table = file.read() if is_wanted else schema.empty_table()
    except (pa.ArrowException, OSError) as error:
        raise DataFileError(path, f"cannot be read as Parquet: {_first_line(error)}; expected {EXPECTED}") from error
    return _restore_index(table), np.arange(1, table.num_rows + 1)


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


def _read_csv(path: Path, log: RepairLog) -> tuple[Any, Ints]:
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    malformed: list[int] = []

    def skip(row: Any) -> str:
        malformed.append(row.number - 1)  # the header is line 1
        return "skip"

    try:
        table = pa_csv.read_csv(
            path,
            read_options=pa_csv.ReadOptions(use_threads=False),  # threads would lose the row numbers
            parse_options=pa_csv.ParseOptions(invalid_row_handler=skip),
            convert_options=pa_csv.ConvertOptions(
                column_types={"symbol": pa.string(), "timestamp": pa.string()}, strings_can_be_null=True
            ),
        )
    except (pa.ArrowException, OSError) as error:
        raise DataFileError(path, f"cannot be read as CSV: {_first_line(error)}; expected {EXPECTED}") from error
    log.add("not as many values as columns", str(path), np.array(malformed, dtype=np.int64))
    every = np.arange(1, table.num_rows + len(malformed) + 1)
    return table, np.setdiff1d(every, np.array(malformed, dtype=np.int64))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


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


def read_symbol_column(path: str, column: Any) -> tuple[Ints, list[str]]:
    """Return (for each row the index of its symbol or -1, canonical symbols)."""
    import pyarrow as pa

    if not _is_text(column.type) and not pa.types.is_null(column.type):
        raise DataFileError(path, f"column symbol holds {column.type}; expected text such as SPY or BTC/USD")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = column.cast(pa.large_string()).combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    symbols: dict[str, int] = {}
    code_of = [-1]  # of a missing symbol, and of one that is none
    for text in encoded.dictionary.to_pylist():
        try:
            code_of.append(symbols.setdefault(parse_symbol(text), len(symbols)))
        except ConfigError:
            code_of.append(-1)
    indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.array(code_of, dtype=np.int64)[indices + 1], list(symbols)


def read_time_column(path: str, column: Any) -> tuple[Ints, Mask]:
    """Return (UTC nanoseconds, which of them were readable)."""
    import pyarrow as pa

    kind = column.type
    if _is_text(kind) or pa.types.is_null(kind):
        import pandas as pd

        texts = pd.Series(column.cast(pa.large_string()).to_pylist(), dtype="object")
        parsed = pd.to_datetime(texts, utc=True, format="ISO8601", errors="coerce")
        column, kind = pa.chunked_array([pa.Array.from_pandas(parsed)]), None
    elif pa.types.is_date(kind):
        column, kind = column.cast(pa.timestamp("ms")), None
    elif not pa.types.is_timestamp(kind):
        raise DataFileError(path, f"column timestamp holds {kind}; expected UTC times or ISO 8601 text")
    # A zone is only a label here: what is stored is UTC, and a naive time is UTC by contract.
    per_unit = _NS_PER_UNIT[column.type.unit]
    raw = column.cast(pa.int64()).fill_null(-1).to_numpy().astype(np.int64)
    readable = (raw >= _FIRST_NS) & (raw <= _LAST_NS // per_unit)
    return np.where(readable, raw, 0) * per_unit, readable


def read_number_column(path: str, name: str, column: Any) -> Floats:
    """Return a column as float64, NaN where there is no number."""
    import pyarrow as pa

    kind = column.type
    if _is_text(kind):
        import pandas as pd

        texts = pd.Series(column.cast(pa.large_string()).to_pylist(), dtype="object")
        return np.array(pd.to_numeric(texts, errors="coerce"), dtype=np.float64)
    if not _is_number(kind) and not pa.types.is_null(kind):
        raise DataFileError(path, f"column {name} holds {kind}; expected numbers")
    values = column.cast(pa.float64(), safe=False).to_numpy()
    return np.array(values, dtype=np.float64)
