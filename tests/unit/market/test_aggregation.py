import os
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.clock import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS
from dry_work.market.aggregation import (
    QuoteAggregator,
    TradeAggregator,
    aggregate_bars,
    aggregate_quotes,
    aggregate_trades,
    carry_sides,
    find_starts,
)

DATA_DIR = Path(os.environ.get("DRY_WORK_DATA_DIR") or Path(__file__).parents[4] / "shared" / "data")
NEW_YORK = ZoneInfo("America/New_York")
START_NS = int(datetime(2024, 6, 11, 13, 30, tzinfo=UTC).timestamp()) * SECOND_NS

needs_recordings = pytest.mark.skipif(
    not DATA_DIR.is_dir(), reason=f"no recordings at {DATA_DIR}; set DRY_WORK_DATA_DIR to their folder"
)


def ns(*seconds: float) -> np.ndarray:
    return np.array([START_NS + round(second * 1e9) for second in seconds], dtype=np.int64)


def listed(columns) -> dict:
    """Columns as lists, times as seconds after START, NaN as None."""
    result = {"start": ((columns["ts_event_ns"] - START_NS) / 1e9).tolist()}
    for name, column in columns.items():
        if name != "ts_event_ns":
            result[name] = [None if np.isnan(value) else value for value in column.tolist()]
    return result


def test_trades_make_a_bar_for_each_minute_that_has_some():
    bars = aggregate_trades(
        ns(0, 30, 59.999999999, 60, 200), np.array([10.0, 12, 9, 11, 8]), np.array([1.0, 2, 3, 4, 5]), MINUTE_NS
    )
    assert listed(bars) == {
        "start": [0, 60, 180],
        "open": [10, 11, 8],
        "high": [12, 11, 8],
        "low": [9, 11, 8],
        "close": [9, 11, 8],
        "volume": [6, 4, 5],
        "trade_count": [3, 1, 1],
        "vwap": [(10 + 24 + 27) / 6, 11, 8],
    }


def test_trades_of_one_time_keep_their_order_and_others_are_sorted():
    bars = aggregate_trades(ns(5, 1, 5, 1), np.array([4.0, 1, 5, 2]), np.ones(4), MINUTE_NS)
    assert (bars["open"].tolist(), bars["close"].tolist()) == ([1.0], [5.0])


def test_a_bar_of_no_size_has_no_vwap():
    assert listed(aggregate_trades(ns(0), np.array([1.0]), np.zeros(1), MINUTE_NS))["vwap"] == [None]


def test_quotes_make_bars_of_the_middle_where_both_sides_are_there():
    bars = aggregate_quotes(
        ns(0, 10, 20, 30, 61), np.array([10.0, 0, 12, 10, 0]), np.array([11.0, 11, 0, 14, 5]), MINUTE_NS
    )
    assert listed(bars) == {
        "start": [0],
        "open": [10.5],
        "high": [12],
        "low": [10.5],
        "close": [12],
        "volume": [0],
        "quote_count": [2],
    }


@pytest.mark.parametrize("aggregate", [aggregate_trades, aggregate_quotes])
def test_nothing_makes_no_bars(aggregate):
    bars = aggregate(ns(), np.empty(0), np.empty(0), MINUTE_NS)
    assert {len(column) for column in bars.values()} == {0}
    assert list(bars)[:6] == ["ts_event_ns", "open", "high", "low", "close", "volume"]


def test_bars_make_longer_bars_of_first_highest_lowest_last_and_sums():
    bars = {
        "ts_event_ns": ns(0, 60, 240, 300),
        "open": np.array([1.0, 2, 3, 4]),
        "high": np.array([5.0, 9, 7, 4]),
        "low": np.array([0.5, 0.1, 0.2, 4]),
        "close": np.array([2.0, 3, 4, 4]),
        "volume": np.array([10.0, 30, 0, 1]),
        "trade_count": np.array([1.0, np.nan, 2, np.nan]),
        "vwap": np.array([1.0, 2, np.nan, np.nan]),
        "rsi": np.array([np.nan, 50, np.nan, np.nan]),
    }
    assert listed(aggregate_bars(bars, 5 * MINUTE_NS)) == {
        "start": [0, 300],
        "open": [1, 4],
        "high": [9, 4],
        "low": [0.1, 4],
        "close": [4, 4],
        "volume": [40, 1],
        "trade_count": [3, None],
        "vwap": [70 / 40, None],
        "rsi": [50, None],
    }
    nothing = aggregate_bars({name: column[:0] for name, column in bars.items()}, 5 * MINUTE_NS)
    assert {len(column) for column in nothing.values()} == {0}
    assert list(nothing) == list(bars)


def test_bars_are_counted_from_midnight_utc_and_days_from_midnight_of_their_zone():
    time = np.array([int(datetime(2024, 6, 11, 3, 59, 59, tzinfo=UTC).timestamp()) * SECOND_NS])
    for length_ns, zone, expected in [
        (4 * HOUR_NS, UTC, "2024-06-11T00:00Z"),
        (4 * HOUR_NS, NEW_YORK, "2024-06-11T00:00Z"),
        (DAY_NS, UTC, "2024-06-11T00:00Z"),
        (DAY_NS, NEW_YORK, "2024-06-10T04:00Z"),
        (DAY_NS, ZoneInfo("Asia/Kathmandu"), "2024-06-10T18:15Z"),
    ]:
        assert pd.Timestamp(find_starts(time, length_ns, zone)[0], tz="UTC") == pd.Timestamp(expected)


@pytest.mark.parametrize("zone", ["America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/St_Johns"])
def test_days_of_a_zone_are_those_of_pandas_over_changes_of_the_clock(zone):
    times = pd.date_range("2023-10-25", "2024-04-15", freq="7min", tz="UTC")
    expected = times.tz_convert(zone).normalize().tz_convert("UTC").as_unit("ns").asi8
    assert np.array_equal(find_starts(times.as_unit("ns").asi8, DAY_NS, ZoneInfo(zone)), expected)


@pytest.mark.parametrize("length_ns", [0, -MINUTE_NS, 7 * MINUTE_NS, 2 * DAY_NS])
def test_a_length_that_does_not_divide_a_day_is_refused(length_ns):
    for call in (
        lambda: aggregate_trades(ns(0), np.ones(1), np.ones(1), length_ns),
        lambda: TradeAggregator(length_ns),
    ):
        with pytest.raises(ValueError, match="expected a length that divides a day"):
            call()


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="columns differ in length"):
        aggregate_trades(ns(0, 1), np.ones(2), np.ones(1), MINUTE_NS)
    with pytest.raises(ValueError, match="columns differ in length"):
        TradeAggregator(MINUTE_NS).add(ns(0, 1), np.ones(2), np.ones(1))


# Streams


def join(parts) -> dict[str, list]:
    kept = [part for part in parts if part is not None]
    assert all(len(part["ts_event_ns"]) for part in kept)
    names = kept[0] if kept else ()
    return {name: np.concatenate([part[name] for part in kept]).tobytes() for name in names}


ticks = st.lists(
    st.tuples(st.integers(0, 400 * SECOND_NS), st.floats(0.01, 1e6), st.floats(0, 1e6)), min_size=1, max_size=60
)


@settings(max_examples=150, deadline=None)
@given(
    ticks, st.sets(st.integers(0, 60)), st.sampled_from([SECOND_NS, MINUTE_NS, 5 * MINUTE_NS, DAY_NS]), st.booleans()
)
def test_a_stream_in_any_pieces_makes_the_bars_of_the_whole(rows, cuts, length_ns, with_advances):
    rows = sorted(rows, key=lambda row: row[0])
    times = np.array([row[0] for row in rows], dtype=np.int64) + START_NS
    first, second = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    for stream, aggregate in (
        (TradeAggregator(length_ns, NEW_YORK), aggregate_trades),
        (QuoteAggregator(length_ns, NEW_YORK), aggregate_quotes),
    ):
        parts = []
        edges = sorted({0, *(cut for cut in cuts if cut < len(rows)), len(rows)})
        for low, high in pairwise(edges):
            parts.append(stream.add(times[low:high], first[low:high], second[low:high]))
            if with_advances:  # the time of the newest row is known to have come
                parts.append(stream.advance(int(times[high - 1])))
        parts += [stream.finish(), stream.finish()]
        whole = aggregate(times, first, second, length_ns, NEW_YORK)
        assert join(parts) == join([whole if len(whole["ts_event_ns"]) else None])
        assert stream.late == 0


def test_rows_out_of_order_within_the_open_bar_are_put_in_their_place():
    stream = TradeAggregator(MINUTE_NS)
    assert stream.add(ns(5), [5.0], [1]) is None
    assert stream.add(ns(1), [1.0], [1]) is None
    assert listed(stream.finish())["open"] == [1.0]


def test_a_bar_is_closed_by_the_time_and_what_comes_later_for_it_is_counted():
    stream = TradeAggregator(MINUTE_NS)
    assert stream.add(ns(5), [5.0], [1]) is None
    assert stream.advance(START_NS + MINUTE_NS - 1) is None
    assert listed(stream.advance(START_NS + MINUTE_NS))["close"] == [5.0]
    assert stream.advance(START_NS + MINUTE_NS) is None
    assert stream.add(ns(59, 61), [6.0, 7.0], [1, 1]) is None
    assert stream.late == 1
    assert listed(stream.finish())["start"] == [60]
    assert stream.add(ns(62), [8.0], [1]) is None  # the bar was finished
    assert stream.late == 2
    assert stream.finish() is None


# Real trades


def read(name: str) -> pd.DataFrame:
    return pd.read_parquet(DATA_DIR / name)


@pytest.mark.recordings
@needs_recordings
@pytest.mark.parametrize("symbol", ["IBM", "SPY"])
@pytest.mark.parametrize("frame", ["1min", "5min", "1h"])
def test_recorded_trades_make_the_bars_that_pandas_makes(symbol, frame):
    trades = read(f"trades-{symbol}-2013-10-07.parquet")
    columns = (trades["timestamp"].astype("int64").to_numpy(), trades["price"].to_numpy(), trades["size"].to_numpy())
    length_ns = pd.Timedelta(frame).value
    bars = aggregate_trades(*columns, length_ns)
    grouped = trades.sort_values("timestamp", kind="stable").groupby(trades["timestamp"].dt.floor(frame))
    expected = grouped["price"].agg(open="first", high="max", low="min", close="last", trade_count="size")
    expected["volume"] = grouped["size"].sum()
    assert bars["ts_event_ns"].tolist() == expected.index.as_unit("ns").asi8.tolist()
    for name in expected:
        assert bars[name].tolist() == expected[name].tolist(), name
    value = (trades["price"] * trades["size"]).groupby(trades["timestamp"].dt.floor(frame)).sum()
    np.testing.assert_allclose(bars["vwap"], value / expected["volume"], rtol=1e-12)
    # And the stream of the same trades, as a live feed brings them: a second at a time.
    stream = TradeAggregator(length_ns)
    seconds = np.unique(columns[0] // (10 * SECOND_NS), return_index=True)[1]
    edges = [*seconds.tolist(), len(trades)]
    parts = [stream.add(*(column[low:high] for column in columns)) for low, high in pairwise(edges)]
    assert join([*parts, stream.finish()]) == join([bars])
    # Bars of bars are bars of trades.
    minutes = aggregate_trades(*columns, MINUTE_NS)
    longer = aggregate_bars(minutes, length_ns)
    for name in ("ts_event_ns", *expected):
        assert longer[name].tolist() == bars[name].tolist(), name
    np.testing.assert_allclose(longer["vwap"], bars["vwap"], rtol=1e-12)


@pytest.mark.recordings
@needs_recordings
@pytest.mark.parametrize("symbol", ["IBM", "SPY"])
def test_bars_of_recorded_trades_agree_with_the_published_ones(symbol):
    trades, published = read(f"trades-{symbol}-2013-10-07.parquet"), read(f"bars-{symbol}-2013-10-07.parquet")
    bars = aggregate_trades(
        trades["timestamp"].astype("int64").to_numpy(),
        trades["price"].to_numpy(),
        trades["size"].to_numpy(),
        MINUTE_NS,
    )
    ours = pd.DataFrame(bars).set_index("ts_event_ns")
    theirs = published.set_index(published["timestamp"].astype("int64"))
    both = ours.index.intersection(theirs.index)
    assert len(both) > 0.99 * len(theirs)
    agreement = {
        name: (ours.loc[both, name] == theirs.loc[both, name]).mean()
        for name in ("open", "high", "low", "close", "volume")
    }
    assert agreement.pop("volume") > 0.99
    assert all(0.8 < share < 0.97 for share in agreement.values()), agreement


@pytest.mark.recordings
@needs_recordings
def test_recorded_quotes_make_the_bars_that_pandas_makes():
    quotes = read("quotes-IBM-2013-10-07.parquet")
    sides = [quotes[name].to_numpy() for name in ("bid_price", "ask_price")]
    times = quotes["timestamp"].astype("int64").to_numpy()
    assert len(aggregate_quotes(times, *sides, MINUTE_NS)["open"]) == 0  # every row of this recording has one side
    bars = aggregate_quotes(times, *carry_sides(*sides), MINUTE_NS)
    filled = quotes[["bid_price", "ask_price"]].replace(0, np.nan).ffill()
    middle = ((filled["bid_price"] + filled["ask_price"]) / 2).dropna()
    expected = middle.groupby(quotes["timestamp"].dt.floor("1min")).agg(
        open="first", high="max", low="min", close="last", quote_count="size"
    )
    assert len(expected) > 400
    assert bars["ts_event_ns"].tolist() == expected.index.as_unit("ns").asi8.tolist()
    for name in expected:
        assert bars[name].tolist() == expected[name].tolist(), name


def test_a_missing_side_has_its_last_price():
    bids, asks = carry_sides(np.array([0.0, 1, 0, 2]), np.array([5.0, 0, 0, 0]))
    assert (bids.tolist(), asks.tolist()) == ([0, 1, 1, 2], [5, 5, 5, 5])
    assert [len(side) for side in carry_sides(np.empty(0), np.empty(0))] == [0, 0]
