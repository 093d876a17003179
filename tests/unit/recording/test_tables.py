"""Tables of the catalog: one form, and how two become one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.clock import MINUTE_NS
from dry_work.errors import ConfigError
from dry_work.recording.tables import MergeCounts, build_table, merge_tables

START_NS = 1_718_112_600_000_000_000


def bars(*rows: tuple[int, float], **columns: list[Any]) -> Any:
    """Bars of SPY: (minute, close)."""
    close = [row[1] for row in rows]
    return build_table(
        "bars",
        "SPY",
        {
            "ts_event_ns": [START_NS + row[0] * MINUTE_NS for row in rows],
            **dict.fromkeys(("open", "high", "low", "close", "volume"), close),
            **columns,
        },
    )


def content(table: Any) -> list[tuple[int, float]]:
    minutes = [(ns - START_NS) // MINUTE_NS for ns in table.column("timestamp").cast(pa.int64()).to_pylist()]
    return list(zip(minutes, table.column("close").to_pylist(), strict=True))


def test_a_table_has_its_columns_in_one_order_and_its_rows_by_time() -> None:
    table = bars(
        (2, 3.0),
        (1, 2.0),
        received=[None, START_NS],
        sentiment=[0.5, math.nan],
        vwap=[1, 2],
        nothing=[None, math.nan],
        revision=[0, 0],
    )
    assert table.column_names == [
        "symbol", "timestamp", "open", "high", "low", "close", "volume", "vwap", "sentiment", "received",
    ]  # fmt: skip
    assert content(table) == [(1, 2.0), (2, 3.0)]
    assert table.column("sentiment").to_pylist() == [None, 0.5]
    assert str(table.column("timestamp").type) == "timestamp[ns, tz=UTC]"
    assert table.column("symbol").to_pylist() == ["SPY", "SPY"]


def test_alpacas_own_frame_is_taken_as_it_is() -> None:
    index = pd.MultiIndex.from_tuples(
        [("BTC/USD", pd.Timestamp("2024-06-11 13:30", tz="UTC")), ("BTC/USD", pd.Timestamp("2024-06-11", tz="UTC"))],
        names=["symbol", "timestamp"],
    )
    columns = ("open", "high", "low", "close", "volume", "trade_count", "vwap")
    frame = pd.DataFrame({name: [1.0, 2.0] for name in columns}, index=index)
    table = build_table("bars", "BTC/USD", frame)
    assert table.column("open").to_pylist() == [2.0, 1.0]
    assert build_table("bars", "BTC/USD", table).equals(table)


@pytest.mark.parametrize(
    "times",
    [
        ["2024-06-11T13:30:00Z", "2024-06-11T09:31:00-04:00"],
        pd.to_datetime(["2024-06-11 13:30", "2024-06-11 13:31"]),
        pd.to_datetime(["2024-06-11 09:30", "2024-06-11 09:31"]).tz_localize("America/New_York"),
        np.array(["2024-06-11T13:30", "2024-06-11T13:31"], dtype="datetime64[s]"),
    ],
)
def test_times_of_any_kind_are_utc_nanoseconds(times: Any) -> None:
    table = build_table("trades", "SPY", {"timestamp": times, "price": [1, 2], "size": [3, 4]})
    assert table.column("timestamp").cast(pa.int64()).to_pylist() == [START_NS, START_NS + MINUTE_NS]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"timestamp": [START_NS], "price": [1]}, "trades of SPY: columns missing: size; found timestamp, price"),
        ({"timestamp": [None], "price": [1], "size": [1]}, "1 rows have no time"),
        ({"timestamp": [0.5], "price": [1], "size": [1]}, "column timestamp holds double; expected times"),
        ({"timestamp": ["soon"], "price": [1], "size": [1]}, "column timestamp holds no times"),
        ({"timestamp": [START_NS], "price": ["x"], "size": [1]}, "column price holds string; expected numbers"),
        ({"timestamp": [START_NS], "price": [1], "size": [1], "symbol": ["IBM"]}, "there are rows of IBM"),
    ],
)
def test_what_cannot_be_used_is_refused(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_table("trades", "SPY", columns)


def test_a_bad_symbol_and_a_bad_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="not a symbol"):
        build_table("trades", "S P Y", {"timestamp": [], "price": [], "size": []})
    with pytest.raises(ValueError, match="expected bars, trades, quotes"):
        build_table("news", "SPY", {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="columns given twice: size"):
        build_table("trades", "SPY", pa.table([[1], [2], [3], [4]], names=["timestamp", "price", "size", "size"]))


def test_new_bars_are_put_among_those_that_are_there() -> None:
    merged, counts = merge_tables("bars", bars((1, 1.0), (3, 3.0)), bars((2, 2.0), (3, 3.0)), prefer="existing")
    assert content(merged) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert counts == MergeCounts(added=1, duplicates=1)


def test_the_same_bars_again_give_the_same_table() -> None:
    old = bars((1, 1.0), (2, 2.0), vwap=[1.5, None])
    for prefer in ("existing", "new"):
        merged, counts = merge_tables("bars", old, bars((2, 2.0), (1, 1.0)), prefer=prefer)  # type: ignore[arg-type]
        assert merged is old
        assert counts == MergeCounts(duplicates=2)


def test_the_highest_revision_wins_whatever_comes_first() -> None:
    first = bars((1, 1.0), (1, 1.5), (1, 1.2), revision=[0, 2, 1])
    assert content(merge_tables("bars", None, first, prefer="existing")[0]) == [(1, 1.5)]
    old = bars((1, 1.0), (2, 2.0))
    merged, counts = merge_tables("bars", old, bars((1, 1.5), revision=[1]), prefer="existing")
    assert content(merged) == [(1, 1.5), (2, 2.0)]
    assert merged.column("revision").to_pylist() == [1, 0]
    assert counts == MergeCounts(revised=1)
    again, counts = merge_tables("bars", merged, bars((1, 1.0)), prefer="new")
    assert again is merged
    assert counts == MergeCounts(duplicates=1)


def test_of_two_bars_that_differ_one_stays_and_the_conflict_is_counted() -> None:
    old, new = bars((1, 1.0)), bars((1, 9.0))
    kept, counts = merge_tables("bars", old, new, prefer="existing")
    assert kept is old
    assert counts == MergeCounts(conflicts=1)
    replaced, counts = merge_tables("bars", old, new, prefer="new")
    assert content(replaced) == [(1, 9.0)]
    assert counts == MergeCounts(conflicts=1, revised=1)


def test_values_that_one_of_two_equal_bars_lacks_are_filled_in() -> None:
    old = bars((1, 1.0), (2, 2.0), vwap=[None, 7.0])
    merged, counts = merge_tables(
        "bars", old, bars((1, 1.0), vwap=[5.0], sentiment=[0.1], received=[START_NS]), prefer="existing"
    )
    assert merged.column("vwap").to_pylist() == [5.0, 7.0]
    assert merged.column("sentiment").to_pylist() == [0.1, None]
    assert merged.column("received").cast(pa.int64()).to_pylist() == [START_NS, None]
    assert counts == MergeCounts(duplicates=1, filled=1)
    kept, counts = merge_tables("bars", merged, bars((1, 1.0), received=[START_NS + 5]), prefer="existing")
    assert kept is merged, "the first time of receipt stays"
    assert counts == MergeCounts(duplicates=1)
    other, counts = merge_tables("bars", bars((1, 1.0)), bars((1, 1.0), vwap=[5.0]), prefer="new")
    assert other.column("vwap").to_pylist() == [5.0]
    assert counts == MergeCounts(duplicates=1, filled=1)


def test_of_a_bar_that_is_replaced_only_what_others_added_is_kept() -> None:
    old = bars((1, 1.0), vwap=[1.1], sentiment=[0.5], received=[START_NS])
    merged, counts = merge_tables("bars", old, bars((1, 2.0)), prefer="new")
    assert merged.select(["close", "sentiment"]).to_pylist() == [{"close": 2.0, "sentiment": 0.5}]
    assert not {"vwap", "received"} & set(merged.column_names)
    assert counts == MergeCounts(conflicts=1, revised=1)
    corrected, _ = merge_tables("bars", old, bars((1, 2.0), revision=[1]), prefer="existing")
    assert "sentiment" not in corrected.column_names, "a revision is taken as it is"


ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12)


@given(ROWS, ROWS)
def test_bars_are_unique_newest_revisions_and_merging_again_changes_nothing(
    first: list[tuple[int, int, int]], second: list[tuple[int, int, int]]
) -> None:
    def table(rows: list[tuple[int, int, int]]) -> Any:
        return bars(*((minute, float(price)) for minute, price, _ in rows), revision=[row[2] for row in rows])

    merged, _ = merge_tables("bars", None, table(first), prefer="existing")
    merged, _ = merge_tables("bars", merged, table(second), prefer="existing")
    expected: dict[int, tuple[int, int]] = {}
    for minute, price, revision in [*first, *second]:
        if minute not in expected or revision > expected[minute][0]:
            expected[minute] = (revision, price)
    assert content(merged) == [(minute, expected[minute][1]) for minute in sorted(expected)]
    for rows in (first, second):
        assert merge_tables("bars", merged, table(rows), prefer="existing")[0] is merged


def trades(rows: list[tuple[int, int]], **columns: list[Any]) -> Any:
    return build_table(
        "trades",
        "SPY",
        {
            "timestamp": [START_NS + row[0] for row in rows],
            "price": [float(row[1]) for row in rows],
            "size": [1.0] * len(rows),
            **columns,
        },
    )


def prints(table: Any) -> list[tuple[int, int]]:
    times = table.column("timestamp").cast(pa.int64()).to_pylist()
    return [(ns - START_NS, int(price)) for ns, price in zip(times, table.column("price").to_pylist(), strict=True)]


TRADES = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 2)), min_size=1, max_size=10)


@given(TRADES, TRADES)
def test_trades_without_id_are_there_as_often_as_in_the_batch_that_has_most(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    merged, counts = merge_tables("trades", None, trades(first), prefer="existing")
    assert sorted(prints(merged)) == sorted(first)
    assert counts == MergeCounts(added=len(first))
    merged, counts = merge_tables("trades", merged, trades(second), prefer="existing")
    found = prints(merged)
    assert [time for time, _ in found] == sorted(time for time, _ in found)
    for row in {*first, *second}:
        assert found.count(row) == max(first.count(row), second.count(row))
    assert counts.added + counts.duplicates == len(second)
    assert merge_tables("trades", merged, trades(second), prefer="existing")[0] is merged


def test_trades_with_an_id_are_there_once_and_keep_their_order() -> None:
    first = trades([(5, 1), (5, 1), (5, 2)], id=[11, 12, 13], conditions=[["@"], ["@", "I"], None])
    again = trades([(5, 1), (5, 1), (5, 3)], id=[12, 12, 14], conditions=[["@", "I"], ["@", "I"], ["@"]])
    merged, counts = merge_tables("trades", first, again, prefer="existing")
    assert merged.column("id").to_pylist() == [11, 12, 13, 14]
    assert merged.column("conditions").to_pylist() == [["@"], ["@", "I"], None, ["@"]]
    assert counts == MergeCounts(added=1, duplicates=2)
