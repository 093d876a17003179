"""Recorded trades and quotes: what is read, what is dropped, in which order it stands."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from dry_work.errors import ConfigError, DataFileError
from dry_work.feeds.recorded_ticks import read_recordings, read_ticks

DATA = Path(os.environ.get("DRY_WORK_DATA_DIR") or Path(__file__).parents[4] / "shared" / "data")

TRADES = """symbol,timestamp,exchange,price,size,conditions,tape
SPY,2024-06-11T13:30:00.5Z,P,100.5,10,"['@', 'I']",B
SPY,2024-06-11T13:30:00.000000001Z,V,100.25,3,,B
IBM,2024-06-11T13:30:02Z,N,50,1,@,A
"""
QUOTES = """symbol,timestamp,bid_price,bid_size,ask_price,ask_size,bid_exchange,ask_exchange
SPY,2024-06-11T13:30:01Z,100,5,100.5,6,P,Q
SPY,2024-06-11T13:30:00Z,0,0,100.75,6,,Q
"""
BARS = """symbol,timestamp,open,high,low,close,volume
SPY,2024-06-11T13:30:00Z,100,101,99,100.5,100
"""
START_NS = 1_718_112_600_000_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "trades.csv").write_text(TRADES)
    (tmp_path / "quotes.csv").write_text(QUOTES)
    (tmp_path / "bars.csv").write_text(BARS)
    return tmp_path


def test_trades_and_quotes_stand_in_the_order_of_their_times(folder: Path) -> None:
    ticks = read_ticks([folder])
    assert sorted(ticks.tables) == [("quotes", "SPY"), ("trades", "IBM"), ("trades", "SPY")]
    trades = ticks.table("trades", "SPY")
    assert trades is not None
    assert trades.times.tolist() == [START_NS + 1, START_NS + 500_000_000]
    assert trades.numbers["price"].tolist() == [100.25, 100.5]
    assert [trades.text("exchange", row) for row in (0, 1)] == ["V", "P"]
    assert [trades.conditions(row) for row in (0, 1)] == [(), ("@", "I")]
    quotes = ticks.table("quotes", "SPY")
    assert quotes is not None
    assert quotes.numbers["bid_price"].tolist() == [0.0, 100.0]
    assert [quotes.text("bid_exchange", row) for row in (0, 1)] == ["", "P"]
    assert quotes.conditions(0) == ()
    assert len(ticks) == 5
    assert ticks.table("quotes", "IBM") is None


def test_parquet_with_lists_of_conditions_reads_like_csv(folder: Path) -> None:
    frame = pd.DataFrame(
        {
            "symbol": ["SPY", "SPY"],
            "timestamp": pd.to_datetime(["2024-06-11T13:30:00Z", "2024-06-11T13:30:01Z"]),
            "price": [1.0, 2.0],
            "size": [1.0, 1.0],
            "conditions": [["@", "I"], None],
        }
    ).set_index(["symbol", "timestamp"])
    frame.to_parquet(folder / "alpaca.parquet")
    table = read_ticks([folder / "alpaca.parquet"]).table("trades", "SPY")
    assert table is not None
    assert [table.conditions(row) for row in (0, 1)] == [("@", "I"), ()]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("no symbol!,2024-06-11T13:30:00Z,V,1,1,,", "symbol missing or malformed"),
        ("SPY,yesterday,V,1,1,,", "time missing, unreadable or out of range"),
        ("SPY,2024-06-11T13:30:00Z,V,,1,,", "non-finite price or size"),
        ("SPY,2024-06-11T13:30:00Z,V,inf,1,,", "non-finite price or size"),
        ("SPY,2024-06-11T13:30:00Z,V,1,-1,,", "negative price or size"),
        ("SPY,2024-06-11T13:30:00Z,V,0,1,,", "zero price"),
    ],
)
def test_a_row_that_cannot_be_used_is_dropped_and_counted(folder: Path, row: str, reason: str) -> None:
    (folder / "trades.csv").write_text(f"{TRADES}{row}\n")
    ticks = read_ticks([folder / "trades.csv"])
    assert len(ticks) == 3
    assert ticks.describe_repairs() == [f"1 row dropped: {reason} (first: {folder / 'trades.csv'}, row 4)"]


def test_bars_and_ticks_are_read_from_one_folder_or_from_named_files(folder: Path) -> None:
    for paths in ([folder], [folder / name for name in ("trades.csv", "bars.csv", "quotes.csv")]):
        bars, ticks = read_recordings(paths)
        assert bars.symbols == ("SPY",)
        assert bars.describe_repairs() == []
        assert sorted(ticks.tables) == [("quotes", "SPY"), ("trades", "SPY")]  # IBM has no bars


def test_several_files_of_a_symbol_are_joined_by_time(folder: Path) -> None:
    (folder / "later.csv").write_text(
        "symbol,timestamp,price,size\nSPY,2024-06-11T13:30:00.25Z,100,1\nSPY,2024-06-11T14:00:00Z,102,1\n"
    )
    table = read_ticks([folder]).table("trades", "SPY")
    assert table is not None
    assert table.numbers["price"].tolist() in ([100.25, 100.0, 100.5, 102.0],)
    assert [table.text("exchange", row) for row in range(4)] == ["V", "", "P", ""]


def test_data_without_bars_is_an_error_that_says_so(folder: Path) -> None:
    with pytest.raises(ConfigError, match="but no bars"):
        read_recordings([folder / "trades.csv", folder / "quotes.csv"])


def test_a_file_of_neither_kind_is_an_error_that_names_its_columns(folder: Path) -> None:
    (folder / "odd.csv").write_text("symbol,timestamp,colour\nSPY,2024-06-11T13:30:00Z,red\n")
    with pytest.raises(DataFileError, match="columns missing"):
        read_recordings([folder])


def test_the_columns_cannot_be_changed(folder: Path) -> None:
    table = read_ticks([folder]).table("trades", "SPY")
    assert table is not None
    with pytest.raises(ValueError):
        table.numbers["price"][0] = 1.0


@pytest.mark.recordings
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the market-data recordings were not found at {DATA}")
def test_the_recorded_day_is_read_whole() -> None:
    bars, ticks = read_recordings([str(DATA / "*2013-10-07*")])
    assert set(bars.symbols) >= {"SPY", "IBM"}
    assert {key: len(table) for key, table in ticks.tables.items()} == {
        ("quotes", "IBM"): 109_067,
        ("trades", "IBM"): 24_293,
        ("trades", "SPY"): 250_601,
    }
    assert ticks.describe_repairs() == []
