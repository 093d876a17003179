"""Bars of recordings: what is read of each row, what is dropped and told, and in which order bars come."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.clock import DAY_NS, MINUTE_NS
from dry_work.errors import ConfigError, DataFileError
from dry_work.feeds.recorded import Recording, read_bars
from dry_work.market.messages import Bar

from .recorded_frames import START, START_NS, frame, starts, write

DATA_DIR = Path(os.environ.get("DRY_WORK_DATA_DIR") or Path(__file__).parents[4] / "shared" / "data")

needs_recordings = pytest.mark.skipif(
    not DATA_DIR.is_dir(), reason=f"no recordings at {DATA_DIR}; set DRY_WORK_DATA_DIR to their folder"
)


@pytest.fixture(params=["bars.parquet", "bars.csv"])
def path(request, tmp_path) -> Path:
    return tmp_path / request.param


def test_bars_keep_start_stamp_and_values(path):
    recording = read_bars([write(path, frame())])
    assert recording.symbols == ("SPY",)
    assert recording.count("SPY") == 3
    assert recording.bars("SPY")[0] == Bar(
        symbol="SPY", ts_event_ns=START_NS, open=100.0, high=100.5, low=99.5, close=100.25, volume=10.0
    )
    assert recording.bars("SPY")[0].end_ns == START_NS + MINUTE_NS
    assert dict(recording.repairs) == {}
    assert recording.describe_repairs() == []


def test_length_of_the_bars_is_what_the_caller_says(path):
    recording = read_bars([write(path, frame(minutes=(0, 5, 15)))], length_ns=5 * MINUTE_NS)
    assert recording.bars("SPY")[0].end_ns == START_NS + 5 * MINUTE_NS
    assert next(recording.slices())[0] == START_NS + 5 * MINUTE_NS


def test_slices_rise_and_hold_their_bars_in_the_order_asked_for(path):
    write(path, frame("SPY", (0, 1, 3)), frame("IBM", (1, 2, 3)))
    for order in (["SPY", "IBM"], ["IBM", "SPY"]):
        recording = read_bars([path], order)
        slices = [((end - START_NS) // MINUTE_NS, [bar.symbol for bar in bars]) for end, bars in recording.slices()]
        assert slices == [(1, ["SPY"]), (2, order), (3, ["IBM"]), (4, order)]
        assert recording.slice_ends().tolist() == [end for end, _ in recording.slices()]


def test_slices_of_more_rows_than_one_chunk_hold_every_bar_once(tmp_path):
    path = tmp_path / "long.parquet"
    write(path, frame("SPY", range(10_000)), frame("IBM", range(0, 10_000, 3)))
    recording = read_bars([path])
    seen = {"SPY": [], "IBM": []}
    for end_ns, bars in recording.slices():
        for bar in bars:
            assert bar.end_ns == end_ns
            seen[bar.symbol].append(bar)
    assert seen == {symbol: recording.bars(symbol) for symbol in ("SPY", "IBM")}
    assert len(seen["SPY"]) == 10_000


def test_without_wanted_symbols_all_are_read_in_alphabetical_order(path):
    write(path, frame("SPY"), frame("BTC/USD"), frame("IBM"))
    assert read_bars([path]).symbols == ("BTC/USD", "IBM", "SPY")


def test_symbols_are_found_in_any_case_and_asked_for_once(path):
    write(path, frame("spy"), frame("btc/usd"))
    assert read_bars([path], ["btc/USD", "Spy", "SPY"]).symbols == ("BTC/USD", "SPY")


def test_rows_of_other_symbols_are_not_judged(path):
    write(path, frame("SPY"), frame("IBM", open=-1.0))
    assert dict(read_bars([path], ["SPY"]).repairs) == {}


def test_wanted_symbol_without_data_is_named_beside_those_in_the_file(path):
    write(path, frame("SPY"), frame("IBM"))
    with pytest.raises(ConfigError, match=r"no bars of MSFT in .*bars.*: symbols in it are IBM, SPY"):
        read_bars([path], ["SPY", "MSFT"])


def test_wanted_symbol_with_nothing_but_bad_rows_tells_why(path):
    with pytest.raises(ConfigError, match=r"no bars of SPY .*3 rows dropped: negative price \(first: .*, row 1\)"):
        read_bars([write(path, frame(open=-1.0))], ["SPY"])


def test_nothing_but_bad_rows_is_an_error_without_wanted_symbols_too(path):
    with pytest.raises(ConfigError, match="no row can be used: 3 rows dropped: zero price"):
        read_bars([write(path, frame(open=0.0))])


@pytest.mark.parametrize("wanted", [[], ["not a symbol"]])
def test_wanted_symbols_must_be_symbols(path, wanted):
    with pytest.raises(ConfigError, match="symbol"):
        read_bars([write(path, frame())], wanted)


# Extra columns


def test_further_numeric_columns_are_extra_fields(path):
    write(path, frame(rsi=[30.5, np.nan, 70.0], level=[1, 2, 3]))
    recording = read_bars([path])
    assert recording.extra_fields("SPY") == ("level", "rsi")
    assert [dict(bar.extra) for bar in recording.bars("SPY")] == [
        {"level": 1.0, "rsi": 30.5},
        {"level": 2.0},
        {"level": 3.0, "rsi": 70.0},
    ]


def test_trade_count_and_vwap_are_fields_of_the_bar(path):
    recording = read_bars([write(path, frame(trade_count=[5, 6, 7], vwap=[100.1, np.nan, -1.0]))])
    assert [(bar.trade_count, bar.vwap, dict(bar.extra)) for bar in recording.bars("SPY")] == [
        (5.0, 100.1, {}),
        (6.0, None, {}),
        (7.0, None, {}),
    ]
    assert dict(recording.repairs) == {"unusable vwap": 1}


def test_columns_that_cannot_be_fields_are_left_out_and_told(path):
    write(path, frame(**{"exchange": "N", "is_halted": True, "two words": 1.0, "_x": 1.0, "class": 1.0, "source": 1.0}))
    recording = read_bars([path])
    assert recording.extra_fields("SPY") == ()
    assert sorted(recording.left_out) == [
        "column '_x' left out: its name starts with an underscore",
        "column 'class' left out: its name is not a Python identifier",
        "column 'exchange' left out: it is not numeric",
        "column 'is_halted' left out: it is not numeric",
        "column 'two words' left out: its name is not a Python identifier",
    ]


def test_an_infinite_extra_value_is_not_delivered(path):
    recording = read_bars([write(path, frame(rsi=[1.0, np.inf, -3.0]))])
    assert [dict(bar.extra) for bar in recording.bars("SPY")] == [{"rsi": 1.0}, {}, {"rsi": -3.0}]
    assert dict(recording.repairs) == {"unusable rsi": 1}
    assert recording.describe_repairs() == [f"1 row without one value: unusable rsi (first: {path}, row 2)"]


def test_files_with_different_extra_columns_join(tmp_path):
    one = write(tmp_path / "1.parquet", frame(rsi=1.0))
    two = write(tmp_path / "2.csv", frame(minutes=(3, 4), macd=2.0))
    bars = read_bars([one, two]).bars("SPY")
    assert [dict(bar.extra) for bar in bars] == [{"rsi": 1.0}] * 3 + [{"macd": 2.0}] * 2


# Bad rows


BAD_ROWS = [
    ("open", np.nan, "non-finite price"),
    ("high", np.inf, "non-finite price"),
    ("close", -np.inf, "non-finite price"),
    ("low", -0.5, "negative price"),
    ("low", 0.0, "zero price"),
    ("volume", np.nan, "non-finite volume"),
    ("volume", -1.0, "negative volume"),
    ("high", 90.0, "high below low"),
    ("open", 102.0, "open or close outside of low and high"),
    ("close", 100.0, "open or close outside of low and high"),
]


@pytest.mark.parametrize(("column", "value", "reason"), BAD_ROWS)
def test_a_bad_row_is_dropped_and_counted(path, column, value, reason):
    table = frame()
    table.loc[1, column] = value
    recording = read_bars([write(path, table)])
    assert starts(recording) == [0, 2]
    assert dict(recording.repairs) == {reason: 1}
    assert recording.describe_repairs() == [f"1 row dropped: {reason} (first: {path}, row 2)"]


def test_a_row_with_two_faults_is_counted_once(path):
    table = frame()
    table.loc[0, ["open", "volume"]] = [-1.0, np.nan]
    assert dict(read_bars([write(path, table)]).repairs) == {"negative price": 1}


def test_rounding_of_adjusted_prices_is_no_fault(path):
    table = frame()
    table.loc[0, "open"] = table.loc[0, "high"] * (1 + 1e-12)
    assert dict(read_bars([write(path, table)]).repairs) == {}


def test_zero_volume_is_a_bar(path):
    assert read_bars([write(path, frame(volume=0.0))]).count("SPY") == 3


@pytest.mark.parametrize("symbol", [None, "", "two words", "$$$"])
def test_rows_without_a_symbol_are_dropped(path, symbol):
    table = frame()
    table["symbol"] = ["SPY", symbol, "SPY"]
    recording = read_bars([write(path, table)])
    assert starts(recording) == [0, 2]
    assert dict(recording.repairs) == {"symbol missing or malformed": 1}


def test_unsorted_rows_are_sorted_and_counted(path):
    recording = read_bars([write(path, frame(minutes=(3, 1, 2, 4)))])
    assert starts(recording) == [1, 2, 3, 4]
    assert dict(recording.repairs) == {"out of order": 2}
    assert recording.describe_repairs() == [f"2 rows put in their place: out of order (first: {path}, row 2)"]


def test_symbols_one_after_the_other_are_in_order(path):
    assert dict(read_bars([write(path, frame("SPY"), frame("IBM"))]).repairs) == {}


def test_files_in_any_order_are_in_order(tmp_path):
    one, two = write(tmp_path / "1.csv", frame()), write(tmp_path / "2.csv", frame(minutes=(3, 4)))
    recording = read_bars([two, one])
    assert starts(recording) == [0, 1, 2, 3, 4]
    assert dict(recording.repairs) == {}


def test_duplicates_and_conflicts_are_told_apart_and_the_first_is_kept(path):
    first, equal, other = frame(), frame(minutes=(1,)), frame(minutes=(2,), volume=99.0)
    recording = read_bars([write(path, first, equal, other)])
    assert [bar.volume for bar in recording.bars("SPY")] == [10.0, 10.0, 10.0]
    assert recording.repairs["duplicate"] == 1
    assert recording.repairs["conflict"] == 1
    assert f"1 row dropped: conflict (first: {path}, row 5)" in recording.describe_repairs()


def test_the_first_of_many_conflicts_is_kept(path):
    first, other = frame(minutes=range(500), volume=1.0), frame(minutes=range(499, -1, -1), volume=2.0)
    recording = read_bars([write(path, first, other, other, first)])
    assert {bar.volume for bar in recording.bars("SPY")} == {1.0}
    assert recording.repairs["conflict"] == 1000
    assert recording.repairs["duplicate"] == 500


def test_duplicates_across_files_are_found_and_missing_extras_are_equal(tmp_path):
    one = write(tmp_path / "1.parquet", frame(rsi=[1.0, np.nan, 2.0]))
    two = write(tmp_path / "2.parquet", frame(rsi=[1.0, np.nan, 3.0]))
    recording = read_bars([one, two])
    assert dict(recording.repairs) == {"duplicate": 2, "conflict": 1}
    assert [dict(bar.extra) for bar in recording.bars("SPY")] == [{"rsi": 1.0}, {}, {"rsi": 2.0}]


def test_the_same_file_by_two_ways_is_read_once(path, tmp_path):
    write(path, frame())
    assert dict(read_bars([path, str(tmp_path), tmp_path / "bars.*"]).repairs) == {}


# Times


@pytest.mark.parametrize(
    "text", ["2024-06-11T13:30:00Z", "2024-06-11 13:30:00+00:00", "2024-06-11 13:30", "2024-06-11T09:30:00-04:00"]
)
def test_times_as_text_are_read_as_utc(path, text):
    table = frame(minutes=(0,)).astype({"timestamp": "object"})
    table["timestamp"] = [text]
    assert starts(read_bars([write(path, table)])) == [0]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_times_of_any_unit_and_zone_are_converted(tmp_path, unit, zone):
    table = frame()
    table["timestamp"] = table["timestamp"].dt.tz_convert(zone).dt.as_unit(unit)
    assert starts(read_bars([write(tmp_path / "bars.parquet", table)])) == [0, 1, 2]


def test_dates_are_midnight_utc(tmp_path):
    table = frame()
    table["timestamp"] = [pd.Timestamp(f"2024-06-{day}").date() for day in (10, 11, 12)]
    recording = read_bars([write(tmp_path / "days.parquet", table)], length_ns=DAY_NS)
    assert pd.Timestamp(recording.bars("SPY")[1].end_ns, tz="UTC") == pd.Timestamp("2024-06-12", tz="UTC")


@pytest.mark.parametrize("text", ["", "yesterday", "1612-05-01", "2500-01-01", "1718112600"])
def test_unreadable_times_are_dropped(path, text):
    table = frame().astype({"timestamp": "object"})
    table["timestamp"] = ["2024-06-11T13:30:00Z", text, "2024-06-11T13:32:00Z"]
    recording = read_bars([write(path, table)])
    assert starts(recording) == [0, 2]
    assert dict(recording.repairs) == {"time missing, unreadable or out of range": 1}


def test_a_missing_time_is_dropped(tmp_path):
    table = frame()
    table.loc[1, "timestamp"] = pd.NaT
    recording = read_bars([write(tmp_path / "bars.parquet", table)])
    assert dict(recording.repairs) == {"time missing, unreadable or out of range": 1}


def test_times_as_numbers_are_refused(tmp_path):
    table = frame(timestamp=[1, 2, 3])
    with pytest.raises(DataFileError, match="column timestamp holds int64; expected UTC times or ISO 8601 text"):
        read_bars([write(tmp_path / "bars.parquet", table)])


# Kinds of columns


def test_integer_decimal_and_single_precision_prices_are_numbers(tmp_path):
    table = frame(open=100, high=np.float32(101.5), low=98, close=100, volume=np.arange(3, dtype="uint16"))
    table["close"] = table["close"].astype("string[pyarrow]")
    recording = read_bars([write(tmp_path / "bars.parquet", table)])
    assert [(bar.open, bar.high, bar.close, bar.volume) for bar in recording.bars("SPY")][2] == (100, 101.5, 100, 2)


def test_text_among_numbers_is_a_non_finite_price(path):
    table = frame().astype({"close": "object"})
    table["close"] = ["100.25", "n/a?", "102.25"]
    recording = read_bars([write(path, table)])
    assert starts(recording) == [0, 2]
    assert dict(recording.repairs) == {"non-finite price": 1}


def test_prices_of_another_kind_are_refused(tmp_path):
    with pytest.raises(DataFileError, match="column open holds bool; expected numbers"):
        read_bars([write(tmp_path / "bars.parquet", frame(open=True))])


def test_symbols_of_another_kind_are_refused(tmp_path):
    with pytest.raises(DataFileError, match="column symbol holds int64; expected text"):
        read_bars([write(tmp_path / "bars.parquet", frame(symbol=7))])


def test_symbols_as_categories_are_text(tmp_path):
    table = pd.concat([frame("SPY"), frame("IBM")]).astype({"symbol": "category"})
    assert read_bars([write(tmp_path / "bars.parquet", table)]).symbols == ("IBM", "SPY")


# What alpaca-py writes


def alpaca_frame() -> pd.DataFrame:
    from alpaca.data.models.bars import BarSet

    raw = [
        {"t": f"2024-06-11T13:3{minute}:00Z", "o": 100, "h": 101, "l": 99, "c": 100.5, "v": 12, "n": 3, "vw": 100.2}
        for minute in range(3)
    ]
    return BarSet({"SPY": raw, "BTC/USD": raw[:2]}).df


@pytest.mark.parametrize("name", ["bars.parquet", "bars.csv", "bars.csv.gz"])
def test_a_frame_of_alpaca_py_is_read_as_it_was_written(tmp_path, name):
    table, path = alpaca_frame(), tmp_path / name
    assert table.index.names == ["symbol", "timestamp"]
    table.to_parquet(path) if name.endswith("parquet") else table.to_csv(path)
    recording = read_bars([path], ["BTC/USD", "SPY"])
    assert [recording.count(symbol) for symbol in recording.symbols] == [2, 3]
    bar = recording.bars("SPY")[2]
    assert (bar.ts_event_ns, bar.trade_count, bar.vwap) == (START_NS + 2 * MINUTE_NS, 3.0, 100.2)
    assert recording.describe_repairs() == []


def test_unnamed_levels_of_the_index_are_named_by_what_they_hold(tmp_path):
    table = alpaca_frame()
    table.index.names = [None, None]
    table.to_parquet(tmp_path / "bars.parquet")
    assert read_bars([tmp_path / "bars.parquet"]).count("SPY") == 3


@pytest.mark.parametrize("name", ["bars.parquet", "bars.csv"])
def test_row_numbers_of_a_frame_are_not_a_field(tmp_path, name):
    table = frame()
    table.index = [5, 6, 9]
    path = tmp_path / name
    table.to_parquet(path) if name.endswith("parquet") else table.to_csv(path)
    recording = read_bars([path])
    assert recording.extra_fields("SPY") == ()
    assert recording.left_out == ()


# Fingerprint


def test_fingerprint_does_not_depend_on_names_kinds_and_cuts(tmp_path):
    whole = write(tmp_path / "whole.parquet", frame(minutes=range(6), rsi=0.1), frame("IBM"))
    one = write(tmp_path / "one.csv", frame(minutes=range(3, 6), rsi=0.1))
    two = write(tmp_path / "two.parquet", frame("IBM"), frame(minutes=range(3), rsi=0.1))
    assert read_bars([whole]).fingerprint == read_bars([one, two]).fingerprint


def test_fingerprint_depends_on_symbols_times_values_and_length(tmp_path):
    def fingerprint(*frames, symbols=None, length_ns=MINUTE_NS):
        return read_bars([write(tmp_path / "bars.parquet", *frames)], symbols, length_ns=length_ns).fingerprint

    prints = [
        fingerprint(frame()),
        fingerprint(frame("IBM")),
        fingerprint(frame(minutes=(0, 1, 3))),
        fingerprint(frame(volume=11.0)),
        fingerprint(frame(rsi=1.0)),
        fingerprint(frame(macd=1.0)),
        fingerprint(frame(), length_ns=MINUTE_NS // 2),
        fingerprint(frame(), frame("IBM"), symbols=["SPY", "IBM"]),
        fingerprint(frame(), frame("IBM"), symbols=["IBM", "SPY"]),
    ]
    assert len(set(prints)) == len(prints)


# The recording itself


def test_columns_are_read_only(path):
    columns = read_bars([write(path, frame())]).columns("SPY")
    assert columns["ts_event_ns"].dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        columns["open"][0] = 1.0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ts_event_ns": np.array([2, 1])}, "times do not rise"),
        ({"ts_event_ns": np.array([1, 1])}, "times do not rise"),
        ({"open": np.array([1.0])}, "columns differ in length"),
        ({"volume": None}, "columns missing: volume"),
    ],
)
def test_columns_that_are_no_recording_are_refused(change, sentence):
    good = {"ts_event_ns": np.array([1, 2])} | dict.fromkeys(("open", "high", "low", "close", "volume"), np.ones(2))
    columns = {name: column for name, column in (good | change).items() if column is not None}
    with pytest.raises(ValueError, match=sentence):
        Recording({"SPY": columns})


def test_a_recording_without_bars_has_no_slices():
    nothing = {name: np.empty(0) for name in ("ts_event_ns", "open", "high", "low", "close", "volume")}
    for recording in (Recording({}), Recording({"SPY": nothing})):
        assert list(recording.slices()) == []
        assert recording.slice_ends().tolist() == []


price = st.one_of(
    st.floats(min_value=0.01, max_value=1e6), st.sampled_from([np.nan, np.inf, -1.0, 0.0, 50.0, 50.0, 50.0, 50.0])
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), price, price, price, price, price), min_size=1, max_size=40))
def test_no_row_is_lost_in_silence_and_no_bad_bar_is_delivered(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("any") / "bars.parquet"
    names = ("open", "high", "low", "close", "volume")
    table = pd.DataFrame({name: [row[i + 1] for row in rows] for i, name in enumerate(names)})
    table["timestamp"] = [START + pd.Timedelta(minutes=row[0]) for row in rows]
    table["symbol"] = "SPY"
    keeper = frame(minutes=(40,))  # so that there is always a bar
    recording = read_bars([write(path, table, keeper)])
    bars = recording.bars("SPY")
    dropped = sum(number for reason, number in recording.repairs.items() if reason != "out of order")
    assert len(bars) + dropped == len(rows) + 1
    assert all(one.ts_event_ns < other.ts_event_ns for one, other in pairwise(bars))
    for bar in bars:
        values = (bar.open, bar.high, bar.low, bar.close)
        assert all(np.isfinite(values))
        assert 0 < bar.low <= min(values) * (1 + 1e-8)
        assert bar.high >= max(values) * (1 - 1e-8)
        assert 0 <= bar.volume < np.inf


@pytest.mark.recordings
@needs_recordings
def test_the_shared_recordings_are_delivered_whole():
    recording = read_bars([DATA_DIR])
    assert recording.symbols == ("AIG", "BAC", "BTC/USD", "ETH/USD", "IBM", "SPY")
    assert dict(recording.repairs) == {}
    for symbol in recording.symbols:
        files = sorted(DATA_DIR.glob(f"bars-{symbol.replace('/', '-')}-*.parquet"))
        rows = pd.concat([pd.read_parquet(file) for file in files])
        columns = recording.columns(symbol)
        assert columns["ts_event_ns"].tolist() == rows["timestamp"].astype("int64").tolist()
        for name in ("open", "high", "low", "close", "volume"):
            assert columns[name].tolist() == rows[name].tolist()
    assert sum(len(bars) for _, bars in recording.slices()) == 11_663


@pytest.mark.recordings
@needs_recordings
def test_wanted_symbols_of_the_shared_recordings_are_read_by_glob():
    recording = read_bars([str(DATA_DIR / "bars-*-2013-10-07.parquet")], ["SPY", "IBM"])
    assert [recording.count(symbol) for symbol in recording.symbols] == [828, 453]
    assert recording.left_out == ()
