"""Tables of bars, trades and quotes as the catalog keeps them: one form, and how two tables become one. Pure.

A table is of one symbol and has alpaca-py's columns: `symbol`, `timestamp` (UTC nanoseconds; of a bar its start), then
those of its kind, then further ones by name. Bars may carry `revision` (above 0: it corrects the bar of that time) and
`received` (our receive time). A column without one value is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from dry_work.market.symbols import parse_symbol

Kind = Literal["bars", "trades", "quotes"]
Prefer = Literal["existing", "new"]

KINDS: tuple[Kind, ...] = ("bars", "trades", "quotes")
REQUIRED: Mapping[Kind, tuple[str, ...]] = {
    "bars": ("open", "high", "low", "close", "volume"),
    "trades": ("price", "size"),
    "quotes": ("bid_price", "bid_size", "ask_price", "ask_size"),
}
_ORDER: Mapping[Kind, tuple[str, ...]] = {
    "bars": ("open", "high", "low", "close", "volume", "trade_count", "vwap"),
    "trades": ("exchange", "price", "size", "id", "conditions", "tape", "taker_side"),
    "quotes": (
        "bid_exchange",
        "bid_price",
        "bid_size",
        "ask_exchange",
        "ask_price",
        "ask_size",
        "conditions",
        "tape",
    ),
}
_LAST = ("revision", "received")
_NO_TIME = np.iinfo(np.int64).min

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class MergeCounts(msgspec.Struct):
    """What became of the rows of a merge."""

    added: int = 0  # rows that were not there
    revised: int = 0  # rows that a higher revision, or a preferred one, replaced
    duplicates: int = 0  # rows given that were there already, or are older than what is there
    conflicts: int = 0  # bars of one time and revision that differ
    filled: int = 0  # rows that got values which they had lacked

    def add(self, other: MergeCounts) -> None:
        """Add the counts of another merge."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def build_table(kind: Kind, symbol: str, source: Any) -> Any:
    """Return a pyarrow table in the catalog's form, its rows in the order of their times.

    Args:
        source: a pyarrow table, a pandas DataFrame, or columns by name; `timestamp` may be called `ts_event_ns` when it
            is integer nanoseconds.

    Raises:
        ValueError: a column is missing or holds what it cannot; a row is of another symbol or has no time.
        ConfigError: `symbol` is none.
    """
    import pyarrow as pa

    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}; expected {', '.join(KINDS)}")
    symbol = parse_symbol(symbol)
    table = _to_arrow(source)
    names = table.column_names
    if "timestamp" not in names and "ts_event_ns" in names:
        table = table.rename_columns(["timestamp" if name == "ts_event_ns" else name for name in names])
        names = table.column_names
    missing = [name for name in ("timestamp", *REQUIRED[kind]) if name not in names]
    if missing:
        raise ValueError(f"{kind} of {symbol}: columns missing: {', '.join(missing)}; found {', '.join(names)}")
    if "symbol" in names:
        others = {str(text) for text in table.column("symbol").unique().to_pylist()} - {symbol}
        if any(parse_symbol(other) != symbol for other in others):
            raise ValueError(f"{kind} of {symbol}: there are rows of {', '.join(sorted(others)[:5])}")
    columns: dict[str, Any] = {"timestamp": _to_times(f"{kind} of {symbol}", "timestamp", table.column("timestamp"))}
    if columns["timestamp"].null_count:
        raise ValueError(f"{kind} of {symbol}: {columns['timestamp'].null_count} rows have no time")
    for name in _arrange(kind, [name for name in names if name not in ("symbol", "timestamp")]):
        column = _to_values(kind, symbol, name, table.column(name))
        if column is not None:
            columns[name] = column
    rows = table.num_rows
    columns = {"symbol": pa.array([symbol] * rows, pa.string()), **columns}
    built = pa.table(columns)
    times = time_values(built)
    return built if np.all(times[1:] >= times[:-1]) else built.take(pa.array(np.argsort(times, kind="stable")))


def time_values(table: Any) -> Ints:
    """Return the times of a table's rows in nanoseconds."""
    import pyarrow as pa

    return np.asarray(table.column("timestamp").cast(pa.int64()).to_numpy(), dtype=np.int64)


def merge_tables(kind: Kind, old: Any, new: Any, *, prefer: Prefer) -> tuple[Any, MergeCounts]:
    """Return one table of what is there and what comes to it; what is there itself when nothing changes.

    Bars: one for each time; the highest revision stays, of equal ones the one that `prefer` names. Trades with an `id`:
    each row once. Other ticks: each row as often as in the table that has it more often.

    Args:
        old: what is there, None when there is nothing.
    """
    import pyarrow as pa

    tables = [new] if old is None else [old, new]
    joined = pa.concat_tables(tables, promote_options="permissive")
    joined = joined.select(["symbol", "timestamp", *_arrange(kind, joined.column_names)])
    if "revision" in joined.column_names:
        place = joined.column_names.index("revision")
        joined = joined.set_column(place, "revision", joined.column("revision").fill_null(0))
    old_rows = 0 if old is None else old.num_rows
    merge = _merge_bars if kind == "bars" else _merge_ticks
    merged, counts = merge(joined, old_rows, prefer)
    return (old if old is not None and merged.equals(old) else merged), counts


def _arrange(kind: Kind, names: Sequence[str]) -> list[str]:
    known = [name for name in _ORDER[kind] if name in names]
    last = [name for name in _LAST if name in names]
    return [*known, *sorted(set(names) - {*known, *last, "symbol", "timestamp"}), *last]


def _to_arrow(source: Any) -> Any:
    import pyarrow as pa

    if not isinstance(source, pa.Table):
        if isinstance(source, Mapping):
            source = pa.table(dict(source))
        else:  # a DataFrame; a named index, as alpaca-py makes it, becomes columns
            if any(name is not None for name in source.index.names):
                source = source.reset_index()
            source = pa.Table.from_pandas(source, preserve_index=False)
    repeated = {name for name in source.column_names if source.column_names.count(name) > 1}
    if repeated:
        raise ValueError(f"columns given twice: {', '.join(sorted(repeated))}")
    return source.replace_schema_metadata(None)


def _to_times(what: str, name: str, column: Any) -> Any:
    import pyarrow as pa

    column = _combine(column)
    target = pa.timestamp("ns", tz="UTC")
    try:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            import pandas as pd

            return pa.array(pd.to_datetime(column.to_pandas(), utc=True, format="ISO8601").dt.as_unit("ns"), target)
        if pa.types.is_integer(column.type):
            return column.cast(pa.int64()).cast(target)
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("ms"))
        if pa.types.is_timestamp(column.type) or pa.types.is_null(column.type):
            return column.cast(target)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"{what}: column {name} holds no times: {error}") from error
    raise ValueError(f"{what}: column {name} holds {column.type}; expected times")


def _to_values(kind: Kind, symbol: str, name: str, column: Any) -> Any:
    """Return a column in its type, None when it has no value and is not required."""
    import pyarrow as pa
    import pyarrow.compute as pc

    what = f"{kind} of {symbol}"
    is_required = name in REQUIRED[kind]
    column = _combine(column)
    if name == "received":
        column = _to_times(what, name, column)
    elif kind == "bars" or is_required:
        try:
            column = column.cast(pa.int64() if name == "revision" else pa.float64(), safe=False)
        except pa.ArrowException as error:
            raise ValueError(f"{what}: column {name} holds {column.type}; expected numbers") from error
        if name == "revision":
            column = pc.fill_null(column, 0)
            return column if pc.any(pc.not_equal(column, 0)).as_py() else None
        # A number that is not there is null in the files, not NaN.
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
    if column.null_count == len(column) and not is_required:
        return None
    return column


def _combine(column: Any) -> Any:
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column


# Bars


def _merge_bars(joined: Any, old_rows: int, prefer: Prefer) -> tuple[Any, MergeCounts]:
    import pyarrow as pa

    counts = MergeCounts()
    rows = joined.num_rows
    times = time_values(joined)
    revisions = _revisions(joined)
    rank = np.arange(rows) if prefer == "existing" else np.arange(rows)[::-1]
    order = np.lexsort((rank, -revisions, times))
    sorted_times = times[order]
    is_first = np.ones(rows, dtype=np.bool_)
    is_first[1:] = sorted_times[1:] != sorted_times[:-1]
    starts = np.flatnonzero(is_first)
    winners = order[starts]
    sizes = np.diff(np.append(starts, rows))
    was_there = np.zeros(len(starts), dtype=np.bool_)  # some row of this time
    np.logical_or.at(was_there, np.cumsum(is_first) - 1, order < old_rows)
    counts.added = int(np.count_nonzero(~was_there))
    is_revised = was_there & (winners >= old_rows)
    if len(winners) == rows:
        return joined.take(pa.array(order)), counts
    values = {
        name: _numbers(joined.column(name))
        for name in joined.column_names
        if name not in ("symbol", "timestamp", *_LAST)
    }
    received = None
    if "received" in joined.column_names:
        received = joined.column("received").cast(pa.int64()).fill_null(_NO_TIME).to_numpy().copy()
    is_filled = np.zeros(len(starts), dtype=np.bool_)  # what was there got values that it had lacked
    for place in range(1, int(sizes.max())):
        groups = np.flatnonzero(sizes > place)
        one, other = winners[groups], order[starts[groups] + place]
        same_revision = revisions[one] == revisions[other]
        equal = same_revision.copy()
        for column in values.values():
            first, second = column[one], column[other]
            equal &= (first == second) | np.isnan(first) | np.isnan(second)
        takes_place = equal & (one >= old_rows) & (other < old_rows)  # of an equal row that is preferred less
        is_revised[groups[takes_place]] = False
        counts.conflicts += int(np.count_nonzero(same_revision & ~equal))
        counts.duplicates += int(np.count_nonzero(((equal | ~same_revision) & (other >= old_rows)) | takes_place))
        for name, column in [*values.items(), *([] if received is None else [("received", received)])]:
            lacks = column == _NO_TIME if name == "received" else np.isnan(column)
            # What the venue says of a bar is not mixed from two versions of it; what others added to it is kept.
            may_gain = equal if name == "received" or name in _ORDER["bars"] else same_revision
            gains = may_gain & lacks[one] & ~lacks[other]
            is_filled[groups[(gains & (one < old_rows)) | (takes_place & lacks[other] & ~lacks[one])]] = True
            column[one[gains]] = column[other[gains]]
    counts.filled = int(np.count_nonzero(is_filled))
    counts.revised = int(np.count_nonzero(is_revised))
    columns = {name: joined.column(name) for name in joined.column_names}
    for name, column in values.items():
        columns[name] = pa.array(column, from_pandas=True)
    if received is not None:
        columns["received"] = pa.array(received, mask=received == _NO_TIME).cast(pa.timestamp("ns", tz="UTC"))
    merged = pa.table(columns).take(pa.array(winners))
    empty = [name for name in merged.column_names if merged.column(name).null_count == merged.num_rows]
    return merged.drop_columns([name for name in empty if name not in REQUIRED["bars"]]), counts


def _revisions(table: Any) -> Ints:
    if "revision" not in table.column_names:
        return np.zeros(table.num_rows, dtype=np.int64)
    return np.asarray(table.column("revision").to_numpy(), dtype=np.int64)


def _numbers(column: Any) -> NDArray[np.float64]:
    import pyarrow as pa

    return np.array(column.cast(pa.float64()).to_numpy(), dtype=np.float64)


# Trades and quotes


def _merge_ticks(joined: Any, old_rows: int, prefer: Prefer) -> tuple[Any, MergeCounts]:
    import pyarrow as pa

    rows = joined.num_rows
    codes = _row_codes(joined)
    is_old = np.arange(rows) < old_rows
    keep: Mask
    if "id" in joined.column_names:
        keep = _occurrences(codes) == 0
        keep |= is_old
    else:
        keep = is_old.copy()
        in_old = np.bincount(codes[is_old], minlength=int(codes.max(initial=-1)) + 1)
        new = np.flatnonzero(~is_old)
        keep[new] = _occurrences(codes[new]) >= in_old[codes[new]]
    added = int(np.count_nonzero(keep & ~is_old))
    counts = MergeCounts(added=added, duplicates=rows - old_rows - added)
    kept = np.flatnonzero(keep)
    order = kept[np.argsort(time_values(joined)[kept], kind="stable")]
    return joined.take(pa.array(order)), counts


def _row_codes(table: Any) -> Ints:
    """Return a number for each row, the same for equal rows."""
    codes: Ints = np.zeros(table.num_rows, dtype=np.int64)
    for name in table.column_names:
        if name == "symbol":
            continue
        column = _column_codes(table.column(name))
        codes = np.unique(codes * (int(column.max(initial=0)) + 1) + column, return_inverse=True)[1].astype(np.int64)
    return codes


def _column_codes(column: Any) -> Ints:
    import pyarrow as pa

    column = _combine(column)
    if pa.types.is_nested(column.type):
        known: dict[Any, int] = {}
        values = (tuple(value) if isinstance(value, list) else repr(value) for value in column.to_pylist())
        return np.array([known.setdefault(value, len(known)) for value in values], dtype=np.int64)
    indices = column.dictionary_encode(null_encoding="encode").indices
    return np.asarray(indices.to_numpy(zero_copy_only=False), dtype=np.int64)


def _occurrences(codes: Ints) -> Ints:
    """Return for each row how many rows before it have its code."""
    order = np.argsort(codes, kind="stable")
    in_order = codes[order]
    is_first = np.ones(len(codes), dtype=np.bool_)
    is_first[1:] = in_order[1:] != in_order[:-1]
    starts = np.maximum.accumulate(np.where(is_first, np.arange(len(codes)), 0))
    found = np.empty(len(codes), dtype=np.int64)
    found[order] = np.arange(len(codes)) - starts
    return found
