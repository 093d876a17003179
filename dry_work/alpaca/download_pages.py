"""Pages of Alpaca's historical data as Arrow tables, with the columns of alpaca-py's data frames. Pure.

Numbers are kept to the last bit, times to the nanosecond (alpaca-py's own models cut them to microseconds).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from dry_work.errors import CodecError
from dry_work.recording.tables import Kind

_NUMBER, _COUNT, _TEXT, _TEXTS = pa.float64(), pa.int64(), pa.string(), pa.list_(pa.string())
_TIME = pa.timestamp("ns", tz="UTC")

# Key of the answer, column, type, whether it has to be there.
_COLUMNS: Mapping[Kind, tuple[tuple[str, str, Any, bool], ...]] = {
    "bars": (
        ("o", "open", _NUMBER, True),
        ("h", "high", _NUMBER, True),
        ("l", "low", _NUMBER, True),
        ("c", "close", _NUMBER, True),
        ("v", "volume", _NUMBER, True),
        ("n", "trade_count", _NUMBER, False),
        ("vw", "vwap", _NUMBER, False),
    ),
    "trades": (
        ("x", "exchange", _TEXT, False),
        ("p", "price", _NUMBER, True),
        ("s", "size", _NUMBER, True),
        ("i", "id", _COUNT, False),
        ("c", "conditions", _TEXTS, False),
        ("z", "tape", _TEXT, False),
        ("tks", "taker_side", _TEXT, False),
    ),
    "quotes": (
        ("ax", "ask_exchange", _TEXT, False),
        ("ap", "ask_price", _NUMBER, True),
        ("as", "ask_size", _NUMBER, True),
        ("bx", "bid_exchange", _TEXT, False),
        ("bp", "bid_price", _NUMBER, True),
        ("bs", "bid_size", _NUMBER, True),
        ("c", "conditions", _TEXTS, False),
        ("z", "tape", _TEXT, False),
    ),
}


class Page(msgspec.Struct, frozen=True):
    """One answer: its rows, and where the next page begins (None: there is none)."""

    table: Any
    next_token: str | None


def read_page(answer: Any, *, kind: Kind, symbol: str) -> Page:
    """Read an answer to a request for one symbol.

    Raises:
        CodecError: it is not of the documented shape, or a row lacks a time, price or size.
    """
    if not isinstance(answer, Mapping) or kind not in answer:
        raise CodecError(f"the answer has no {kind}")
    by_symbol = answer[kind]
    if by_symbol is None:
        by_symbol = {}
    if not isinstance(by_symbol, Mapping) or not set(by_symbol) <= {symbol}:
        raise CodecError(f"the answer holds other symbols than {symbol}")
    rows = by_symbol.get(symbol)
    if rows is None:
        rows = []
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise CodecError(f"the {kind} of {symbol} are no list of rows")
    token = answer.get("next_page_token")
    if token is not None and not isinstance(token, str):
        raise CodecError("next_page_token is no text")
    return Page(build_table(rows, kind=kind, symbol=symbol), token or None)


def build_table(rows: Sequence[Mapping[str, Any]], *, kind: Kind, symbol: str) -> Any:
    """Return rows as a table with every column of its kind; what a row does not tell is null.

    Raises:
        CodecError: a row lacks a time, price or size, or has something else in its place.
    """
    columns: dict[str, Any] = {"symbol": pa.array([symbol] * len(rows), _TEXT)}
    try:
        columns["timestamp"] = pa.array([row.get("t") for row in rows], _TEXT).cast(_TIME)
    except (pa.ArrowException, TypeError) as error:
        raise CodecError(f"the {kind} of {symbol} have a time that cannot be read: {_first_line(error)}") from error
    for key, name, kind_of_column, required in _COLUMNS[kind]:
        values: list[Any] = [row.get(key) for row in rows]
        if kind_of_column is _TEXTS:
            values = [[value] if isinstance(value, str) else value for value in values]
        elif kind_of_column is _NUMBER and any(isinstance(value, bool) for value in values):
            raise CodecError(f"the {kind} of {symbol} have a {name} that is no number")
        try:
            columns[name] = pa.array(values, kind_of_column)
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise CodecError(f"the {kind} of {symbol} have a {name} that cannot be read: {error}") from error
        if required and columns[name].null_count:
            raise CodecError(f"the {kind} of {symbol} have a row without {name}")
    if columns["timestamp"].null_count:
        raise CodecError(f"the {kind} of {symbol} have a row without time")
    return pa.table(columns)


def join_pages(tables: Sequence[Any]) -> Any:
    """Return the pages of a unit as one table, without the columns that are null in every row."""
    table = pa.concat_tables(tables)
    empty = [name for name in table.column_names if table.num_rows and table.column(name).null_count == table.num_rows]
    return table.drop_columns(empty) if empty else table


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
