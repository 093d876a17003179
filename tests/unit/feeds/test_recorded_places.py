"""Periods, lengths of bars and catalogs: what is read of many files, and what is said when nothing fits."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dry_work.clock import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS
from dry_work.errors import ConfigError, DataFileError
from dry_work.feeds import recorded_files
from dry_work.feeds.recorded import Recording, read_bars
from dry_work.feeds.recorded_places import describe_length, parse_entry, parse_frame

START = pd.Timestamp("2024-06-11 13:30", tz="UTC")


def frame(symbol: str = "SPY", start: pd.Timestamp = START, bars: int = 30, step: str = "1min", **columns):
    times = pd.date_range(start, periods=bars, freq=step)
    values = {"symbol": symbol, "timestamp": times, "open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5, "volume": 1.0}
    return pd.DataFrame(values | columns)


def write(path: Path, *frames: pd.DataFrame, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.concat(frames, ignore_index=True)
    if path.name.endswith(".parquet"):
        table.to_parquet(path, index=False, **options)
    else:
        table.to_csv(path, index=False)
    return path


def span(recording: Recording, symbol: str = "SPY") -> tuple[str, str, int]:
    times = pd.to_datetime(recording.columns(symbol)["ts_event_ns"], utc=True)
    return str(times[0])[:16], str(times[-1])[:16], len(times)


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Three days of two symbols, with trades beside them."""
    for day in ("2024-06-10", "2024-06-11", "2024-06-12"):
        for symbol in ("SPY", "BTC/USD"):
            name = f"{symbol.replace('/', '-')}/{day}.parquet"
            write(tmp_path / "bars/1m" / name, frame(symbol, pd.Timestamp(f"{day} 13:30", tz="UTC")))
    trades = pd.DataFrame({"symbol": "SPY", "timestamp": [START], "price": 1.0, "size": 1.0})
    write(tmp_path / "trades/SPY/2024-06-11.parquet", trades)
    return tmp_path


# Names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bars/1m/SPY/2024-06-11.parquet", ("bars", "1m", "SPY")),
        ("/any/where/bars/15m/BTC-USD/2024-06-11.csv.gz", ("bars", "15m", "BTC-USD")),
        ("gs://bucket/bars/1d/SPY/2024.parquet", ("bars", "1d", "SPY")),
        ("x/trades/BRK.B/2024-06-11.parquet", ("trades", "", "BRK.B")),
        ("quotes/SPY/2024-06-11.parquet", ("quotes", "", "SPY")),
        ("bars/SPY/2024-06-11.parquet", None),
        ("bars/1x/SPY/2024-06-11.parquet", None),
        ("bars/1m/SPY/2024-13-11.parquet", None),
        ("bars/1m/SPY/all.parquet", None),
        ("2024-06-11.parquet", None),
    ],
)
def test_the_name_of_a_catalogs_file_says_what_it_holds(name, expected):
    entry = parse_entry(name)
    assert (entry and (entry.kind, entry.frame, entry.spelling)) == expected


def test_lengths_are_written_as_people_do():
    texts = ["30s", "1m", "90m", "2h", "1d", "1w"]
    assert [describe_length(parse_frame(text)) for text in texts] == ["30s", "1m", "90m", "2h", "1d", "7d"]
    assert describe_length(SECOND_NS // 2) == "0.5s"
    for text in ("m", "0m", "1M", "1.5h", "1 m", ""):
        with pytest.raises(ValueError, match="no length of bars"):
            parse_frame(text)


# Catalogs


def test_a_catalog_is_read_as_it_is_and_files_of_other_symbols_are_not_opened(catalog):
    assert read_bars([catalog]).symbols == ("BTC/USD", "SPY")
    (catalog / "bars/1m/BTC-USD/2024-06-11.parquet").write_bytes(b"damaged")
    (catalog / "trades/SPY/2024-06-11.parquet").write_bytes(b"damaged")
    recording = read_bars([catalog], ["SPY"])
    assert span(recording) == ("2024-06-10 13:30", "2024-06-12 13:59", 90)
    assert recording.describe_repairs() == []
    with pytest.raises(DataFileError, match=r"bars/1m/BTC-USD/2024-06-11\.parquet: cannot be read as Parquet"):
        read_bars([catalog])


def test_files_of_days_outside_of_the_period_are_not_opened(catalog):
    for day in ("2024-06-10", "2024-06-12"):
        (catalog / f"bars/1m/SPY/{day}.parquet").write_bytes(b"damaged")
    day_ns = pd.Timestamp("2024-06-11", tz="UTC").value
    recording = read_bars([catalog], ["SPY"], start_ns=day_ns, end_ns=day_ns + DAY_NS)
    assert span(recording) == ("2024-06-11 13:30", "2024-06-11 13:59", 30)


def test_the_length_of_bars_is_that_of_their_folder(tmp_path):
    write(tmp_path / "bars/5m/SPY/2024-06-11.parquet", frame(step="5min"))
    write(tmp_path / "bars/1d/SPY/2024.parquet", frame(start=pd.Timestamp("2024-03-01 05:00", tz="UTC"), step="1D"))
    recording = read_bars([tmp_path])
    assert (recording.length_ns, recording.count("SPY")) == (5 * MINUTE_NS, 30)
    assert recording.left_out == ("bars of 1d left out: those of 5m are read",)
    recording = read_bars([tmp_path], length_ns=DAY_NS)
    assert (recording.length_ns, recording.count("SPY")) == (DAY_NS, 30)
    with pytest.raises(ConfigError, match="no bars of 1m, only of 1d, 5m"):
        read_bars([tmp_path], length_ns=MINUTE_NS)


def test_months_have_no_fixed_length(tmp_path):
    write(tmp_path / "bars/1M/SPY/2024.parquet", frame(bars=1))
    with pytest.raises(ConfigError, match="no bars of a fixed length, only of 1M"):
        read_bars([tmp_path])


# Lengths


def test_daily_bars_may_be_an_hour_apart_from_a_day_when_clocks_change(tmp_path):
    days = pd.date_range("2024-03-04", periods=20, freq="B", tz="America/New_York").tz_convert("UTC")
    path = write(tmp_path / "bars.csv", frame(bars=20, timestamp=days))
    assert read_bars([path], length_ns=DAY_NS).count("SPY") == 20


@pytest.mark.parametrize("start", ["2024-06-11 02:00", "2024-06-11 13:30"])
def test_bars_of_hours_may_be_counted_from_midnight_of_a_zone_or_an_opening(tmp_path, start):
    path = write(tmp_path / "bars.csv", frame(start=pd.Timestamp(start, tz="UTC"), step="4h"))
    assert read_bars([path], length_ns=4 * HOUR_NS).count("SPY") == 30


@pytest.mark.parametrize(
    ("step", "length_ns", "row", "apart"),
    [
        ("1min", 5 * MINUTE_NS, 2, "1m"),
        ("1min", 4 * HOUR_NS, 2, "1m"),
        ("1h", 4 * HOUR_NS, 2, "1h"),
        ("1h", DAY_NS, 2, "1h"),
        ("30min", HOUR_NS, 2, "30m"),
        ("20s", MINUTE_NS, 2, "20s"),
    ],
)
def test_bars_shorter_than_they_should_be_are_an_error_that_names_file_and_row(tmp_path, step, length_ns, row, apart):
    path = write(tmp_path / "bars.parquet", frame(step=step))
    with pytest.raises(DataFileError) as caught:
        read_bars([path], length_ns=length_ns)
    told = (
        f"{path}, row {row}: bars of SPY are {apart} apart, which does not fit bars of {describe_length(length_ns)}; "
    )
    assert str(caught.value).startswith(told)


def test_longer_bars_than_assumed_are_an_error_unless_something_says_so(tmp_path):
    path = write(tmp_path / "bars.csv", frame(step="5min"), frame("IBM", step="15min"))
    with pytest.raises(
        DataFileError, match="bars of SPY are 5m apart, which does not fit bars of 1m, which is assumed"
    ):
        read_bars([path])
    assert read_bars([path], length_ns=5 * MINUTE_NS).length_ns == 5 * MINUTE_NS
    assert read_bars([path], length_ns=MINUTE_NS).length_ns == MINUTE_NS  # somebody says that they are sparse


def test_sparse_bars_beside_dense_ones_are_of_the_same_length(tmp_path):
    path = write(tmp_path / "bars.csv", frame(), frame("IBM", step="5min"))
    assert read_bars([path]).count("IBM") == 30


def test_a_few_bars_that_begin_between_minutes_are_dropped_and_counted(tmp_path):
    table = frame()
    table.loc[3, "timestamp"] += pd.Timedelta("1s")
    path = write(tmp_path / "bars.parquet", table)
    recording = read_bars([path])
    assert recording.count("SPY") == 29
    assert recording.describe_repairs() == [
        f"1 row dropped: no bar of 1m begins at its time (first: {path}, row 4)",
    ]


# Periods


@pytest.mark.parametrize("name", ["bars.parquet", "bars.csv"])
def test_a_period_holds_its_start_and_not_its_end(tmp_path, name):
    path = write(tmp_path / name, frame(), frame("IBM"))
    start_ns = START.value + 5 * MINUTE_NS
    recording = read_bars([path], start_ns=start_ns, end_ns=start_ns + 10 * MINUTE_NS)
    assert {symbol: span(recording, symbol) for symbol in recording.symbols} == dict.fromkeys(
        ("IBM", "SPY"), ("2024-06-11 13:35", "2024-06-11 13:44", 10)
    )
    assert span(read_bars([path], start_ns=start_ns))[2] == 25
    assert span(read_bars([path], end_ns=start_ns))[2] == 5


def test_bad_rows_outside_of_the_period_are_not_judged(tmp_path):
    table = frame()
    table.loc[[2, 20], "open"] = -1.0
    path = write(tmp_path / "bars.parquet", table)
    recording = read_bars([path], start_ns=START.value + 10 * MINUTE_NS)
    assert recording.describe_repairs() == [f"1 row dropped: negative price (first: {path}, row 21)"]


def test_only_the_row_groups_of_the_symbols_and_the_period_are_read(tmp_path, monkeypatch):
    tables = [frame(symbol, bars=1000) for symbol in ("AIG", "IBM", "SPY")]
    path = write(tmp_path / "bars.parquet", *tables, row_group_size=100)
    read: list[int] = []
    whole = recorded_files.read_number_column

    def count(path, name, column):
        read.append(len(column))
        return whole(path, name, column)

    monkeypatch.setattr(recorded_files, "read_number_column", count)
    start_ns = START.value + 450 * MINUTE_NS
    recording = read_bars([path], ["IBM"], start_ns=start_ns, end_ns=start_ns + 100 * MINUTE_NS)
    assert span(recording, "IBM")[2] == 100
    assert read == [100] * 10  # two row groups, five columns
    bad = pd.concat(tables, ignore_index=True)
    bad.loc[1467, "open"] = -1.0
    write(path, bad, row_group_size=100)
    recording = read_bars([path], ["IBM"], start_ns=start_ns, end_ns=start_ns + 100 * MINUTE_NS)
    assert recording.describe_repairs() == [f"1 row dropped: negative price (first: {path}, row 1468)"]


@pytest.mark.parametrize("name", ["bars.parquet", "bars.csv", "bars/1m/SPY/2024-06-11.parquet"])
def test_a_symbol_without_bars_in_the_period_is_an_error_that_names_what_there_is(tmp_path, name):
    write(tmp_path / name, frame())
    start_ns = pd.Timestamp("2025-01-01", tz="UTC").value
    told = (
        r"no bars of {} from 2025-01-01 00:00 UTC to before 2025-01-02 00:00 UTC in .*: "
        r"the data has bars from 2024-06-11 13:30 UTC to 2024-06-11 13:59 UTC"
    )
    with pytest.raises(ConfigError, match=told.format("SPY")):
        read_bars([tmp_path], ["SPY"], start_ns=start_ns, end_ns=start_ns + DAY_NS)
    with pytest.raises(ConfigError, match=told.format("any symbol")):
        read_bars([tmp_path], start_ns=start_ns, end_ns=start_ns + DAY_NS)
    with pytest.raises(ConfigError, match=r"no bars of IBM in .*: symbols in it are SPY"):
        read_bars([tmp_path], ["IBM"], start_ns=start_ns, end_ns=start_ns + DAY_NS)


def test_an_empty_period_is_an_error(tmp_path):
    path = write(tmp_path / "bars.csv", frame())
    with pytest.raises(
        ConfigError, match=r"the period from 2024-06-11 13:30 UTC to before 2024-06-11 13:30 UTC is empty"
    ):
        read_bars([path], start_ns=START.value, end_ns=START.value)


# Bad files


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_parquet_file_among_many_is_an_error_that_names_it(catalog, share):
    path = catalog / "bars/1m/SPY/2024-06-11.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataFileError, match=r"SPY/2024-06-11\.parquet: cannot be read as Parquet: .*; expected bars"):
        read_bars([catalog])


def test_a_changed_byte_in_a_file_with_checksums_is_an_error(tmp_path):
    path = tmp_path / "bars.parquet"
    prices = np.random.default_rng(1).uniform(1.0, 2.0, 3000)
    table = pa.Table.from_pandas(frame(bars=3000, open=prices, high=3.0), preserve_index=False)
    pq.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    at = content.find(prices[1500].tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=r"bars\.parquet: cannot be read as Parquet"):
        read_bars([path])


def test_a_truncated_compressed_csv_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "bars.csv.gz"
    text = frame(bars=5000, volume=np.arange(5000.0)).to_csv(index=False).encode()
    path.write_bytes(gzip.compress(text)[:-2000])
    with pytest.raises(DataFileError, match=r"bars\.csv\.gz: cannot be read as CSV"):
        read_bars([path])


def test_a_csv_file_that_ends_in_the_middle_of_a_row_gives_everything_before_it(tmp_path):
    path = write(tmp_path / "bars.csv", frame())
    path.write_text(path.read_text()[:-12])
    recording = read_bars([path])
    assert recording.count("SPY") == 29
    assert recording.describe_repairs() == [
        f"1 row dropped: not as many values as columns (first: {path}, row 30)",
    ]


def test_an_empty_file_and_a_foreign_one_are_errors_that_name_them(tmp_path):
    write(tmp_path / "good.parquet", frame())
    for name, content, told in (
        ("empty.csv", b"", "cannot be read as CSV"),
        ("empty.parquet", b"", "cannot be read as Parquet"),
        ("foreign.csv", b"name,age\nx,1\n", "columns missing: symbol, timestamp, open"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataFileError, match=f"{name}: {told}"):
            read_bars([tmp_path])
        (tmp_path / name).unlink()


@pytest.mark.parametrize("name", ["bars.csv", "bars.parquet"])
def test_texts_of_several_zones_in_one_file_are_times_in_utc(tmp_path, name):
    texts = ["2024-06-11T09:30:00-04:00", "2024-06-11T13:31:00Z", "2024-06-11 13:32:00", "2024-06-11T19:03:00+05:30"]
    recording = read_bars([write(tmp_path / name, frame(bars=4, timestamp=texts))])
    assert span(recording) == ("2024-06-11 13:30", "2024-06-11 13:33", 4)
    assert recording.describe_repairs() == []


def test_files_of_several_units_and_zones_join(tmp_path):
    for number, (unit, zone) in enumerate([("s", "UTC"), ("ms", "Asia/Tokyo"), ("us", "America/New_York")]):
        table = frame(start=START + pd.Timedelta(minutes=30 * number))
        table["timestamp"] = table["timestamp"].dt.as_unit(unit).dt.tz_convert(zone)
        write(tmp_path / f"{number}.parquet", table)
    assert span(read_bars([tmp_path])) == ("2024-06-11 13:30", "2024-06-11 14:59", 90)


def test_overlapping_recordings_join_and_rows_of_both_are_counted(tmp_path):
    one = write(tmp_path / "1.parquet", frame())
    later = frame(start=START + pd.Timedelta("20min"))
    later.loc[[0, 1], "close"] = 1.25
    two = write(tmp_path / "2.csv", later)
    recording = read_bars([one, two])
    assert span(recording) == ("2024-06-11 13:30", "2024-06-11 14:19", 50)
    assert recording.columns("SPY")["close"][20] == 1.5  # the first read stays
    assert recording.describe_repairs() == [
        f"8 rows dropped: duplicate (first: {two}, row 3)",
        f"2 rows dropped: conflict (first: {two}, row 1)",
    ]


def test_rows_out_of_order_across_the_parts_of_a_file_are_counted(tmp_path):
    table = frame(bars=40)
    moved = pd.concat([table[20:], table[:20]])
    path = write(tmp_path / "bars.parquet", moved, row_group_size=20)
    recording = read_bars([path])
    assert span(recording) == ("2024-06-11 13:30", "2024-06-11 14:09", 40)
    assert recording.describe_repairs() == [f"20 rows put in their place: out of order (first: {path}, row 21)"]
