"""Which files are read as recordings, and what is told of those that cannot be."""

from pathlib import Path

import pandas as pd
import pytest

from dry_work.errors import ConfigError, DataFileError
from dry_work.feeds.recorded import read_bars

from .recorded_frames import START, frame, starts, write


@pytest.fixture(params=["bars.parquet", "bars.csv"])
def path(request, tmp_path) -> Path:
    return tmp_path / request.param


def test_a_folder_is_searched_below_and_hidden_names_are_not(tmp_path):
    (tmp_path / "SPY" / ".cache").mkdir(parents=True)
    write(tmp_path / "SPY" / "1.parquet", frame())
    write(tmp_path / "2.csv", frame(minutes=(3,)))
    write(tmp_path / "SPY" / ".cache" / "3.csv", frame(minutes=(4,)))
    write(tmp_path / "_4.csv", frame(minutes=(5,)))
    (tmp_path / "README.md").write_text("not data")
    assert starts(read_bars([tmp_path])) == [0, 1, 2, 3]


def test_a_glob_finds_files_and_folders(tmp_path):
    (tmp_path / "day-2").mkdir()
    write(tmp_path / "day-1.parquet", frame())
    write(tmp_path / "day-2" / "bars.parquet", frame(minutes=(3,)))
    write(tmp_path / "other.parquet", frame(minutes=(9,)))
    (tmp_path / "day-3.txt").write_text("not data")
    assert starts(read_bars([str(tmp_path / "day-*")])) == [0, 1, 2, 3]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    assert starts(read_bars([write(tmp_path / "bars[1].csv", frame())])) == [0, 1, 2]


def trades() -> pd.DataFrame:
    return pd.DataFrame({"symbol": "SPY", "timestamp": [START], "price": 100.0, "size": 1.0})


def quotes() -> pd.DataFrame:
    return pd.DataFrame({"symbol": "SPY", "timestamp": [START], "bid_price": 1.0, "ask_price": 2.0})


def test_trades_and_quotes_beside_the_bars_are_left_out_and_told(tmp_path):
    write(tmp_path / "a.csv", trades())
    write(tmp_path / "b.parquet", quotes())
    write(tmp_path / "c.parquet", frame())
    recording = read_bars([tmp_path])
    assert recording.count("SPY") == 3
    assert recording.describe_repairs() == [
        f"{tmp_path / 'a.csv'}: left out, it holds trades, not bars",
        f"{tmp_path / 'b.parquet'}: left out, it holds quotes, not bars",
    ]


def test_trades_that_were_named_are_an_error(path):
    with pytest.raises(DataFileError, match=r"columns missing: open, high, low, close, volume; found symbol, timest"):
        read_bars([write(path, trades())])


def test_a_folder_of_nothing_but_trades_is_an_error(tmp_path):
    write(tmp_path / "a.csv", trades())
    with pytest.raises(ConfigError, match="no file with bars in it, only trades or quotes"):
        read_bars([tmp_path])


def test_missing_columns_are_named(path):
    with pytest.raises(DataFileError, match=r"bars\.\w+: columns missing: low, volume; found .*; expected bars"):
        read_bars([write(path, frame().drop(columns=["low", "volume"]))])


def test_no_rows_is_an_error(path):
    with pytest.raises(DataFileError, match=r"bars\.\w+: no rows; expected bars with the columns symbol, timestamp"):
        read_bars([write(path, frame().iloc[:0])])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all", b"PAR1" + bytes(100) + b"PAR1"])
def test_what_is_not_parquet_is_an_error(tmp_path, content):
    path = tmp_path / "bars.parquet"
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=r"bars.parquet: cannot be read as Parquet: .*; expected bars"):
        read_bars([path])


@pytest.mark.parametrize("content", [b"", b"\n\n", bytes(range(128, 256)) * 4, b"\xff\xfe\x00"])
def test_what_is_not_csv_is_an_error(tmp_path, content):
    path = tmp_path / "bars.csv"
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=r"bars.csv: (cannot be read as CSV|columns missing|no rows)"):
        read_bars([path])


def test_text_that_is_not_utf8_is_an_error(tmp_path):
    path = write(tmp_path / "bars.csv", frame())
    path.write_bytes(path.read_bytes().replace(b"SPY", b"SP\xff"))
    with pytest.raises(DataFileError, match="cannot be read as CSV"):
        read_bars([path])


def test_columns_given_twice_are_an_error(tmp_path):
    path = tmp_path / "bars.csv"
    path.write_text("symbol,timestamp,open,high,low,close,volume,open\nSPY,2024-06-11,1,1,1,1,1,1\n")
    with pytest.raises(DataFileError, match="columns given twice: open"):
        read_bars([path])


def test_lines_of_another_length_are_dropped_and_rows_keep_their_numbers(tmp_path):
    path = write(tmp_path / "bars.csv", frame(minutes=range(5)))
    lines = path.read_text().splitlines()
    lines[2] += ",1,2"
    lines[4] = lines[4].replace("103.0", "-103.0", 1)
    path.write_text("\ufeff" + "\n".join(lines))
    recording = read_bars([path])
    assert starts(recording) == [0, 2, 4]
    assert recording.describe_repairs() == [
        f"1 row dropped: not as many values as columns (first: {path}, row 2)",
        f"1 row dropped: negative price (first: {path}, row 4)",
    ]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("nothing.parquet", "no such file or folder"),
        ("*.parquet", "matches no recording"),
        ("empty", "no recordings in this folder"),
        ("notes.txt", r"is neither Parquet nor CSV by its name; expected \.parquet"),
    ],
)
def test_paths_without_recordings_are_named(tmp_path, given, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not data")
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_bars([str(tmp_path / given)])
    assert given in str(caught.value)


def test_an_address_that_is_no_bucket_is_refused():
    with pytest.raises(ConfigError, match=r"is neither a local path nor an address in a bucket such as gs://"):
        read_bars(["https://example.com/bars.csv"])


def test_no_path_is_an_error():
    with pytest.raises(ConfigError, match="no data given"):
        read_bars([])
