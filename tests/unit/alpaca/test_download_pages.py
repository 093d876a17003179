from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.alpaca.download_pages import build_table, join_pages, read_page
from dry_work.errors import CodecError
from dry_work.recording.tables import Kind
from dry_work.wire.pubsub import encode_time, parse_time

BAR = {"t": "2024-01-02T14:30:00Z", "o": 1, "h": 2.5, "l": 0.5, "c": 2, "v": 100, "n": 7, "vw": 1.25}
TRADE = {
    "t": "2024-01-02T14:30:00.123456789Z",
    "p": 10.5,
    "s": 3,
    "x": "V",
    "i": 52983525029461,
    "c": ["@", "I"],
    "z": "A",
}
QUOTE = {
    "t": "2024-01-02T14:30:00.5Z", "bp": 10.0, "bs": 1, "bx": "V", "ap": 10.1, "as": 2, "ax": "Q", "c": ["R"], "z": "A",
}  # fmt: skip
ROWS: dict[Kind, dict[str, Any]] = {"bars": BAR, "trades": TRADE, "quotes": QUOTE}


def answer(kind: str, rows: Any, token: str | None = None, symbol: str = "SPY") -> dict[str, Any]:
    return {kind: {symbol: rows}, "next_page_token": token}


def test_bars_have_the_columns_of_alpaca_py() -> None:
    (row,) = build_table([BAR], kind="bars", symbol="SPY").to_pylist()
    assert row.pop("timestamp").to_pydatetime() == datetime(2024, 1, 2, 14, 30, tzinfo=UTC)
    assert row == {
        "symbol": "SPY", "open": 1.0, "high": 2.5, "low": 0.5, "close": 2.0, "volume": 100.0, "trade_count": 7.0,
        "vwap": 1.25,
    }  # fmt: skip


def test_times_keep_their_nanoseconds_and_zones_are_heeded() -> None:
    table = build_table([TRADE, {**TRADE, "t": "2024-01-02T09:30:01-05:00"}], kind="trades", symbol="SPY")
    times = table.column("timestamp").cast(pa.int64()).to_pylist()
    assert times == [parse_time(TRADE["t"]), parse_time("2024-01-02T14:30:01Z")]  # type: ignore[arg-type]


def test_conditions_are_lists_for_stocks_and_options_alike() -> None:
    option = {"t": TRADE["t"], "p": 1.0, "s": 1, "x": "C", "c": "I"}
    coin = {"t": TRADE["t"], "p": 1.0, "s": 0.5, "i": 9, "tks": "B"}
    table = build_table([TRADE, option, coin], kind="trades", symbol="SPY")
    assert table.column("conditions").to_pylist() == [["@", "I"], ["I"], None]
    assert table.column("id").to_pylist() == [52983525029461, None, 9]
    assert table.column("taker_side").to_pylist() == [None, None, "B"]


@given(st.lists(st.tuples(st.integers(0, 2**62), st.floats(allow_nan=False, allow_infinity=False)), max_size=20))
def test_numbers_and_times_keep_every_bit(values: list[tuple[int, float]]) -> None:
    rows = [{"t": encode_time(at), "p": value, "s": value} for at, value in values]
    table = build_table(rows, kind="trades", symbol="SPY")
    assert table.column("timestamp").cast(pa.int64()).to_pylist() == [at for at, _ in values]
    assert [struct.pack("<d", found) for found in table.column("price").to_pylist()] == [
        struct.pack("<d", value) for _, value in values
    ]


def test_a_page_tells_where_the_next_one_begins() -> None:
    page = read_page(answer("bars", [BAR], "abc"), kind="bars", symbol="SPY")
    assert (page.table.num_rows, page.next_token) == (1, "abc")
    assert read_page(answer("bars", [BAR], ""), kind="bars", symbol="SPY").next_token is None


@pytest.mark.parametrize("body", [{"bars": {}}, {"bars": None}, {"bars": {"SPY": None}}, {"bars": {"SPY": []}}])
def test_every_spelling_of_no_data_is_an_empty_page(body: dict[str, Any]) -> None:
    page = read_page({**body, "next_page_token": None}, kind="bars", symbol="SPY")
    assert (page.table.num_rows, page.next_token) == (0, None)
    assert join_pages([page.table]).column_names[:2] == ["symbol", "timestamp"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (None, "has no bars"),
        ([], "has no bars"),
        ({"trades": {}}, "has no bars"),
        ({"bars": [BAR]}, "other symbols than SPY"),
        ({"bars": {"IBM": [BAR]}}, "other symbols than SPY"),
        ({"bars": {"SPY": {"t": 1}}}, "no list of rows"),
        ({"bars": {"SPY": [1]}}, "no list of rows"),
        ({"bars": {"SPY": [BAR]}, "next_page_token": 5}, "next_page_token is no text"),
    ],
)
def test_answers_of_another_shape_are_refused(body: Any, sentence: str) -> None:
    with pytest.raises(CodecError, match=sentence):
        read_page(body, kind="bars", symbol="SPY")


@pytest.mark.parametrize("kind", ["bars", "trades", "quotes"])
@pytest.mark.parametrize("value", [None, "x", True, [1], {}])
def test_rows_without_usable_time_or_price_are_refused(kind: Kind, value: Any) -> None:
    good = ROWS[kind]
    for key in ("t", {"bars": "c", "trades": "p", "quotes": "bp"}[kind]):
        with pytest.raises(CodecError, match=f"the {kind} of SPY have a"):
            build_table([good, {**good, key: value}], kind=kind, symbol="SPY")


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*BAR, "SPY", "bars"]), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["bars", "next_page_token", "message"]), anything) | anything)
def test_no_answer_breaks_it(body: Any) -> None:
    try:
        read_page(body, kind="bars", symbol="SPY")
    except CodecError:
        return
    assert "bars" in body


def test_joined_pages_leave_out_what_no_row_tells() -> None:
    bare = {name: value for name, value in BAR.items() if name not in ("n", "vw")}
    tables = [build_table(rows, kind="bars", symbol="SPY") for rows in ([bare], [{**bare, "vw": 3.0}])]
    assert "trade_count" not in join_pages(tables).column_names
    assert join_pages(tables).column("vwap").to_pylist() == [None, 3.0]
    assert join_pages(tables[:1]).column_names == ["symbol", "timestamp", "open", "high", "low", "close", "volume"]
