"""Feeds loaded by columns hold what Backtrader's loading row by row puts there, bit by bit."""

from __future__ import annotations

import datetime as dt
import pickle
import warnings
from typing import Any

import backtrader as bt
import numpy as np
import pandas as pd
import pytest
import pytz
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.clock import MINUTE_NS
from dry_work.feeds.base import line_time
from dry_work.feeds.columnar import (
    DAY_NS,
    ColumnarFeed,
    PandasRows,
    columnar_feed,
    is_plain_pandas,
    line_times,
    preload_pandas,
)
from dry_work.feeds.recorded import Recording

EPOCH = dt.datetime(1970, 1, 1)
FIRST_US = -62_135_596_800_000_000
LAST_US = 253_402_300_799_999_999


def make_recording(
    size: int, *, start: str = "2024-03-08 14:30", length_ns: int = MINUTE_NS, **extra: Any
) -> Recording:
    rng = np.random.default_rng(size)
    close = np.round(100 + np.cumsum(rng.normal(0, 0.1, size)), 4)
    columns = {
        "ts_event_ns": pd.Timestamp(start).value + np.arange(size) * length_ns,
        "open": close - 0.01,
        "high": close + 0.05,
        "low": close - 0.05,
        "close": close,
        "volume": rng.integers(1, 100, size).astype(np.float64),
        **extra,
    }
    return Recording({"SPY": columns}, length_ns=length_ns)


class Watch(bt.Strategy):
    """Writes down all that is on the lines of every feed at every bar."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def next(self) -> None:
        self.seen.append(
            tuple(
                (len(data), *(repr(float(line[0])) for line in data.lines.lines), data.datetime.datetime())
                for data in self.datas
                if len(data)
            )
        )

    prenext = next


def watch(*feeds: Any, engine: type[bt.Cerebro] = bt.Cerebro, **params: Any) -> list[tuple[Any, ...]]:
    cerebro = engine(stdstats=False, **params)
    for feed in feeds:
        cerebro.adddata(feed)
    cerebro.addstrategy(Watch)
    seen: list[tuple[Any, ...]] = cerebro.run()[0].seen
    return seen


def started(feed: Any) -> Any:
    """Return a feed as a Cerebro has it before loading."""
    feed.setenvironment(bt.Cerebro())
    feed.reset()
    feed._start()
    return feed


# Times


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(FIRST_US, LAST_US), max_size=8))
def test_times_are_those_of_date2num_to_the_last_bit(times_us: list[int]) -> None:
    column = line_times(np.array(times_us, dtype=np.int64))
    assert column.tolist() == [bt.date2num(EPOCH + dt.timedelta(microseconds=time)) for time in times_us]


def test_times_of_every_minute_of_a_year_are_those_of_date2num() -> None:
    minutes = np.arange(1_700_000_000_000_000, 1_700_000_000_000_000 + 366 * 1440 * 60_000_000, 60_000_000 * 7)
    expected = [bt.date2num(EPOCH + dt.timedelta(microseconds=time)) for time in minutes.tolist()]
    assert line_times(minutes).tolist() == expected


def test_times_around_a_power_of_two_of_days_are_those_of_date2num() -> None:
    edges = [dt.datetime.fromordinal(2**power) + dt.timedelta(hours=hour) for power in (18, 19) for hour in (-1, 0, 23)]
    times = np.array([(edge - EPOCH) // dt.timedelta(microseconds=1) for edge in edges], dtype=np.int64)
    assert line_times(times).tolist() == [bt.date2num(edge) for edge in edges]


# Frames


def load_both(frame: pd.DataFrame, kind: Any = bt.feeds.PandasData, **params: Any) -> tuple[list[Any], list[Any]]:
    """Return the arrays of all lines and the feed's row, loaded by Backtrader and by columns."""
    states = []
    for by_columns in (False, True):
        feed = started(kind(dataname=frame, **params))
        if by_columns:
            assert is_plain_pandas(feed)
            assert preload_pandas(feed)
        else:
            feed.preload()
        arrays = [[repr(value) for value in line.array] for line in feed.lines.lines]
        states.append([arrays, feed._idx, len(feed), feed.lines.close.idx, feed.buflen()])
    return states[0], states[1]


class Wider(bt.feeds.PandasData):
    lines = ("vwap", "missing")
    params = (("vwap", -1), ("missing", -1))


class Loading(bt.feeds.PandasData):
    def _load(self) -> bool:
        return bool(super()._load())


def make_frame(size: int = 50, **columns: Any) -> pd.DataFrame:
    recording = make_recording(size)
    values = {name: column for name, column in recording.columns("SPY").items() if name != "ts_event_ns"}
    return pd.DataFrame({**values, **columns}, index=pd.date_range("2024-03-08 14:31", periods=size, freq="min"))


def frames() -> dict[str, tuple[pd.DataFrame, dict[str, Any]]]:
    plain = make_frame()
    zoned = make_frame(300)
    zoned.index = pd.date_range("2023-11-05 00:30", periods=300, freq="min", tz="America/New_York")  # an hour twice
    in_column = plain.reset_index(names="when")
    seconds = make_frame()
    seconds.index = pd.date_range("2024-03-08", periods=50, freq="1234567us")
    return {
        "plain": (plain, {}),
        "empty": (plain.iloc[:0], {}),
        "one bar": (plain.iloc[:1], {}),
        "no volume": (plain.drop(columns="volume"), {}),
        "upper case": (plain.rename(columns=str.upper), {}),
        "no autodetection": (plain, {"open": 3, "close": "open", "volume": None}),
        "integers and small floats": (plain.astype({"volume": "int64", "open": "float32"}), {}),
        "not a number": (plain.assign(close=np.nan), {}),
        "zone": (zoned, {}),
        "zone of the output": (plain, {"tz": pytz.timezone("Asia/Tokyo")}),
        "time in a column": (in_column, {"datetime": "when"}),
        "time in a numbered column": (in_column, {"datetime": 0, "open": 1}),
        "less than a second": (seconds, {}),
        "whole seconds": (plain.set_index(plain.index.as_unit("s")), {}),
        "backwards": (plain.iloc[::-1], {}),
        "from": (plain, {"fromdate": dt.datetime(2024, 3, 8, 14, 40)}),
        "to": (plain, {"todate": dt.datetime(2024, 3, 8, 14, 50)}),
        "from and to, backwards": (
            plain.iloc[::-1],
            {"fromdate": dt.datetime(2024, 3, 8, 14, 40), "todate": dt.datetime(2024, 3, 8, 15, 10)},
        ),
        "to the last bar but one": (plain, {"todate": plain.index[-2].to_pydatetime()}),
        "from after the end": (plain, {"fromdate": dt.date(2030, 1, 1)}),
        "to before the begin": (plain, {"todate": dt.date(2000, 1, 1)}),
    }


@pytest.mark.parametrize("name", frames())
def test_a_frame_gives_the_same_lines_by_columns(name: str) -> None:
    frame, params = frames()[name]
    by_row, by_column = load_both(frame, **params)
    assert by_column == by_row


def test_lines_that_a_subclass_adds_are_columns_too() -> None:
    by_row, by_column = load_both(make_frame(vwap=np.arange(50.0)), Wider)
    assert by_column == by_row


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("nanoseconds", make_frame(3).set_index(pd.DatetimeIndex([1, 1001, 2002]))),
        ("objects", make_frame(3).astype({"close": object})),
        ("nullable", make_frame(3).astype({"close": "Float64"})),
        ("no times", make_frame(3).reset_index(drop=True)),
        ("a time that is missing", make_frame(3).set_index(pd.DatetimeIndex(["2024-01-01", pd.NaT, "2024-01-02"]))),
    ],
)
def test_what_columns_cannot_say_is_left_to_backtrader(name: str, frame: pd.DataFrame) -> None:
    feed = started(bt.feeds.PandasData(dataname=frame))
    assert not preload_pandas(feed), name
    assert feed.buflen() == 0


def test_feeds_that_load_in_their_own_way_are_not_plain() -> None:
    frame = make_frame(3)
    assert is_plain_pandas(Wider(dataname=frame.assign(vwap=1.0)))
    assert not is_plain_pandas(Loading(dataname=frame))
    assert not is_plain_pandas(bt.feeds.PandasDirectData(dataname=frame))


@pytest.mark.parametrize("name", frames())
def test_rows_read_from_columns_are_those_of_the_frame(name: str) -> None:
    frame, params = frames()[name]
    arrays = []
    for by_columns in (False, True):
        feed = started(bt.feeds.PandasData(dataname=frame, **params))
        if by_columns:
            feed._load = PandasRows(feed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            while feed.load():
                pass
        arrays.append([[repr(value) for value in line.array] for line in feed.lines.lines] + [feed._idx])
    assert arrays[0] == arrays[1]


# Recordings


@pytest.mark.parametrize("tz", [None, "America/New_York"])
def test_a_recording_gives_what_a_frame_of_its_bar_ends_gives(tz: str | None) -> None:
    recording = make_recording(200)
    columns = recording.columns("SPY")
    frame = pd.DataFrame({name: columns[name] for name in ("open", "high", "low", "close", "volume")})
    frame["openinterest"] = 0.0
    frame.index = pd.DatetimeIndex(columns["ts_event_ns"] + recording.length_ns)
    minutes = {"timeframe": bt.TimeFrame.Minutes, "compression": 1}
    assert watch(columnar_feed(recording, "SPY", tz=tz)) == watch(bt.feeds.PandasData(dataname=frame, tz=tz, **minutes))


@pytest.mark.parametrize(
    "params",
    [{"runonce": False}, {"preload": False}, {"exactbars": 1}, {"exactbars": -1}, {"preload": False, "live": True}],
)
def test_loading_at_once_and_row_by_row_are_equal(params: dict[str, Any]) -> None:
    # More rows than are read at a time.
    recording = make_recording(5000)
    dates = {"fromdate": dt.datetime(2024, 3, 9), "todate": dt.datetime(2024, 3, 11)}
    assert watch(columnar_feed(recording, "SPY", **dates), **params) == watch(columnar_feed(recording, "SPY", **dates))


def test_the_time_is_the_end_of_the_bar_as_live_feeds_have_it() -> None:
    recording = make_recording(3)
    seen = watch(columnar_feed(recording, "SPY"))
    ends = [line_time(int(start) + MINUTE_NS) for start in recording.columns("SPY")["ts_event_ns"]]
    assert [float(row[0][7]) for row in seen] == ends
    assert seen[0][0][-1] == dt.datetime(2024, 3, 8, 14, 31)


def test_a_feed_can_be_run_twice() -> None:
    feed = columnar_feed(make_recording(30), "SPY")
    assert watch(feed) == watch(feed)


@pytest.mark.parametrize("tz", [None, "America/New_York", "Asia/Tokyo"])
def test_days_have_the_times_of_days_resampled_from_minutes(tz: str | None) -> None:
    midnight = pd.Timestamp("2024-03-07", tz=tz or "UTC")
    mornings = [midnight + pd.DateOffset(days=day, hours=9) for day in range(5)]  # over a change of the clocks
    times = np.concatenate([morning.value + np.arange(60) * MINUTE_NS for morning in mornings])
    minutes = dict(make_recording(300).columns("SPY"), ts_event_ns=times)
    resampled = columnar_feed(Recording({"SPY": minutes}), "SPY", tz=tz)
    resampled.resample(timeframe=bt.TimeFrame.Days)
    starts = np.array([(midnight + pd.DateOffset(days=day)).value for day in range(5)])  # as Alpaca stamps days
    columns = dict(make_recording(5).columns("SPY"), ts_event_ns=starts)
    days = columnar_feed(Recording({"SPY": columns}, length_ns=DAY_NS), "SPY", tz=tz)
    assert days._timeframe == bt.TimeFrame.Days
    by_resampling, by_day = ([row[0][7] for row in watch(feed)] for feed in (resampled, days))
    assert by_day[:4] == by_resampling[:4]  # no later bar closes the last session
    assert len(by_day) == 5


def test_a_day_that_starts_after_the_session_s_end_belongs_to_the_next() -> None:
    evening = make_recording(2, start="2024-03-07 18:00", length_ns=DAY_NS)
    feed = columnar_feed(evening, "SPY", sessionend=dt.time(17))
    assert [row[0][-1] for row in watch(feed)] == [dt.datetime(2024, 3, 8, 17), dt.datetime(2024, 3, 9, 17)]


def test_resampling_beside_the_feed_gives_whole_sessions() -> None:
    recording = make_recording(3 * 1440, start="2024-03-08")
    cerebro = bt.Cerebro(stdstats=False)
    feed = columnar_feed(recording, "SPY")
    cerebro.adddata(feed)
    daily = cerebro.resampledata(feed, timeframe=bt.TimeFrame.Days)
    cerebro.addstrategy(Watch)
    cerebro.run()
    volume = recording.columns("SPY")["volume"].reshape(3, 1440).sum(axis=1)
    assert list(daily.volume.array)[:3] == volume.tolist()
    assert daily.symbol == "SPY"


def test_further_columns_and_named_fields_are_lines() -> None:
    spread = np.array([0.1, np.nan, 0.3])
    recording = make_recording(3, vwap=np.array([1.0, 2.0, 3.0]), spread=spread)
    feed = columnar_feed(recording, "SPY", extra_fields=("imbalance",))
    watch(feed)
    assert list(feed.vwap.array) == [1.0, 2.0, 3.0]
    assert np.array_equal(np.array(feed.spread.array), spread, equal_nan=True)
    assert np.isnan(np.array(feed.imbalance.array)).all()
    assert list(feed.openinterest.array) == [0.0] * 3
    assert not hasattr(columnar_feed(make_recording(3), "SPY").lines, "spread")


def test_a_feed_survives_pickling() -> None:
    feed = columnar_feed(make_recording(5, spread=np.ones(5)), "SPY")
    assert watch(pickle.loads(pickle.dumps(feed))) == watch(feed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"symbol": "IBM"}, "no bars of 'IBM' in the recording: symbols in it are SPY"),
        ({"symbol": "SPY", "extra_fields": ("close price",)}, "the field 'close price' cannot be a line"),
        ({"symbol": "SPY", "extra_fields": ("resample",)}, "the field 'resample' cannot be a line"),
    ],
)
def test_what_cannot_be_a_feed_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        columnar_feed(make_recording(3), **arguments)


def test_bars_of_a_length_without_a_name_are_refused() -> None:
    with pytest.raises(ValueError, match="bars of 1500000000 ns: a feed takes bars of whole seconds, minutes or days"):
        columnar_feed(make_recording(3, length_ns=1_500_000_000), "SPY")
    with pytest.raises(ValueError, match="SPY: a columnar feed needs columns"):
        ColumnarFeed(dataname="SPY")
