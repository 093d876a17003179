"""Bars of any timeframe, trades and quotes as they are known at a time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.clock import MINUTE_NS
from dry_work.exchange.tables import MarketTables, aggregate_bars
from dry_work.exchange.tape import Tape
from dry_work.exchange.timeframes import DAY, MINUTE, Timeframe, find_starts, find_zone
from dry_work.feeds.recorded import Recording
from dry_work.feeds.recorded_ticks import TickRecording, read_ticks
from dry_work.market.messages import Bar

from .conftest import START_NS

NO_TICKS = TickRecording({})
FIVE = Timeframe(5, "min")


def build_columns(minutes: list[int], values: list[float]) -> dict[str, np.ndarray]:
    prices = np.array(values)
    return {
        "ts_event_ns": START_NS + MINUTE_NS * np.array(minutes, dtype=np.int64),
        "open": prices,
        "high": prices + 2,
        "low": prices - 2,
        "close": prices + 1,
        "volume": prices * 10,
        "trade_count": np.ones(len(prices)),
        "vwap": prices + 0.5,
    }


def read_rows(table: object, count: int) -> list[dict[str, object]]:
    return [table.encode(row) for row in range(count)]  # type: ignore[attr-defined]


def test_five_minutes_join_to_one_bar() -> None:
    tables = MarketTables(Recording({"SPY": build_columns([0, 1, 4, 5], [10.0, 20.0, 5.0, 7.0])}), NO_TICKS)
    table = tables.bars("SPY", FIVE, START_NS + 6 * MINUTE_NS)
    assert table is not None
    assert read_rows(table, 2) == [
        {
            "t": "2024-06-11T13:30:00Z",
            "o": 10.0,
            "h": 22.0,
            "l": 3.0,
            "c": 6.0,
            "v": 350.0,
            "n": 3,
            "vw": (10.5 * 100 + 20.5 * 200 + 5.5 * 50) / 350,
        },
        {"t": "2024-06-11T13:35:00Z", "o": 7.0, "h": 9.0, "l": 5.0, "c": 8.0, "v": 70.0, "n": 1, "vw": 7.5},
    ]


def test_a_bar_that_goes_on_holds_only_what_has_ended() -> None:
    tables = MarketTables(Recording({"SPY": build_columns([0, 1, 2], [10.0, 20.0, 90.0])}), NO_TICKS)
    for now, highest in ((0, None), (1, 12.0), (2, 22.0), (3, 92.0)):
        rows = tables.last_bars("SPY", DAY, START_NS + now * MINUTE_NS, 1)
        assert [row["h"] for row in rows] == ([] if highest is None else [highest])


def test_what_is_not_recorded_has_no_table() -> None:
    tables = MarketTables(Recording({"SPY": build_columns([0], [10.0])}), NO_TICKS)
    assert tables.bars("IBM", MINUTE, START_NS) is None
    assert tables.last_bars("IBM", DAY, START_NS, 2) == []
    assert tables.ticks("trades", "SPY", START_NS) is None
    assert tables.last_tick("quotes", "IBM", START_NS) is None


def test_without_recorded_ticks_the_last_bar_stands_for_them() -> None:
    tables = MarketTables(Recording({"SPY": build_columns([0], [10.0])}), NO_TICKS)
    now_ns = START_NS + MINUTE_NS
    assert tables.last_tick("trades", "SPY", START_NS) is None
    trade, quote = (tables.last_tick(kind, "SPY", now_ns) for kind in ("trades", "quotes"))
    assert trade is not None
    assert quote is not None
    assert (trade["t"], trade["p"], trade["s"]) == ("2024-06-11T13:31:00Z", 11.0, 1)
    assert (quote["bp"], quote["ap"], quote["bs"], quote["as"]) == (11.0, 11.0, 1, 1)


def test_the_daily_bar_of_a_bar_is_its_day_so_far() -> None:
    recording = Recording({"BTC/USD": build_columns([0, 1, 11 * 60], [10.0, 20.0, 50.0])})  # 00:30 on the next day
    tables = MarketTables(recording, NO_TICKS)
    days = [tables.daily_bar(bar, bar.end_ns) for bar in recording.bars("BTC/USD")]
    assert [(day.open, day.close, day.volume) for day in days] == [
        (10.0, 11.0, 100.0),
        (10.0, 21.0, 300.0),
        (50.0, 51.0, 500.0),
    ]
    assert all(isinstance(day, Bar) and day.symbol == "BTC/USD" for day in days)


BARS = st.lists(st.tuples(st.integers(1, 400), st.integers(1, 1000)), min_size=1, max_size=60)


@settings(max_examples=100, deadline=None)
@given(bars=BARS, count=st.sampled_from([1, 3, 7, 30, 59]), now=st.integers(-5, 6000), last=st.integers(1, 4))
def test_joined_bars_equal_a_plain_sum_over_their_minutes_and_the_last_ones_are_the_end_of_all(
    bars: list[tuple[int, int]], count: int, now: int, last: int
) -> None:
    minutes = np.cumsum([gap for gap, _ in bars]).tolist()
    recording = Recording({"SPY": build_columns(minutes, [float(price) for _, price in bars])})
    tables, frame, now_ns = MarketTables(recording, NO_TICKS), Timeframe(count, "min"), START_NS + now * MINUTE_NS
    expected: dict[int, list[Bar]] = {}
    for bar in recording.bars("SPY"):
        if bar.end_ns <= now_ns:
            times = np.array([bar.ts_event_ns], dtype=np.int64)
            expected.setdefault(int(find_starts(times, frame, find_zone("SPY"))[0]), []).append(bar)
    table = tables.bars("SPY", frame, now_ns)
    assert table is not None
    assert table.times.tolist() == list(expected)
    for row, parts in enumerate(expected.values()):
        found = table.encode(row)
        assert (found["o"], found["c"]) == (parts[0].open, parts[-1].close)
        assert (found["h"], found["l"]) == (max(part.high for part in parts), min(part.low for part in parts))
        assert (found["v"], found["n"]) == (sum(part.volume for part in parts), len(parts))
        worth = sum((part.vwap or 0.0) * part.volume for part in parts)
        assert math.isclose(found["vw"], worth / found["v"])
    rows = [table.encode(row) for row in range(len(table.times))]
    tail = tables.last_bars("SPY", frame, now_ns, last)
    assert [row["t"] for row in tail] == [row["t"] for row in rows[::-1][:last]]
    assert [row["h"] for row in tail] == [row["h"] for row in rows[::-1][:last]]


def test_a_part_without_count_or_average_leaves_the_whole_without() -> None:
    columns = build_columns([0, 1], [10.0, 20.0])
    columns["trade_count"][1] = columns["vwap"][0] = math.nan
    starts = columns.pop("ts_event_ns") * 0
    row = aggregate_bars(starts, columns).encode(0)
    assert (row["n"], row["vw"]) == (None, None)
    columns["volume"] *= 0
    assert aggregate_bars(starts, columns).encode(0)["vw"] is None


# Trades and quotes


@pytest.fixture
def ticks(tmp_path: Path) -> TickRecording:
    (tmp_path / "trades.csv").write_text(
        "symbol,timestamp,price,size,exchange,conditions,tape,taker_side\n"
        "SPY,2024-06-11T13:29:59Z,99,1,V,@,B,\n"
        "SPY,2024-06-11T13:30:00Z,100,1,V,@,B,\n"
        "SPY,2024-06-11T13:30:30.123456789Z,101,2.5,P,,B,\n"
        "BTC/USD,2024-06-11T13:30:30Z,60000,0.25,,,,S\n"
    )
    (tmp_path / "quotes.csv").write_text(
        "symbol,timestamp,bid_price,bid_size,ask_price,ask_size,bid_exchange,ask_exchange\n"
        "SPY,2024-06-11T13:30:30.123456789Z,100,5,0,0,P,\n"
        "BTC/USD,2024-06-11T13:30:31Z,59999,1.5,60001,2,,\n"
    )
    return read_ticks([tmp_path])


def test_ticks_are_known_once_their_time_has_passed(ticks: TickRecording) -> None:
    tables = MarketTables(Recording({"SPY": build_columns([0], [10.0])}), ticks)
    assert tables.last_tick("quotes", "SPY", START_NS) is None  # recorded, but not yet: no bar stands for it
    table = tables.ticks("trades", "SPY", START_NS + 1)
    assert table is not None
    assert [row["p"] for row in read_rows(table, len(table.times))] == [99.0, 100.0]
    assert tables.last_tick("trades", "SPY", START_NS + MINUTE_NS) == {
        "t": "2024-06-11T13:30:30.123456789Z",
        "i": 3,
        "x": "P",
        "p": 101.0,
        "s": 2.5,
        "c": [],
        "z": "B",
    }
    assert tables.last_tick("trades", "BTC/USD", START_NS + MINUTE_NS) == {
        "t": "2024-06-11T13:30:30Z",
        "i": 1,
        "p": 60000.0,
        "s": 0.25,
        "tks": "S",
    }
    quote = tables.last_tick("quotes", "SPY", START_NS + MINUTE_NS)
    assert quote is not None
    assert (quote["bp"], quote["bs"], quote["bx"], quote["ap"], quote["as"]) == (100.0, 5, "P", 0.0, 0)


def test_the_tape_gives_every_tick_once_in_the_order_of_times(ticks: TickRecording) -> None:
    tape = Tape(ticks, start_ns=START_NS)
    assert len(tape) == 6
    assert [(tick.kind, tick.symbol, tick.row) for tick in tape.take(START_NS + 1)] == [("trades", "SPY", 1)]
    assert list(tape.take(START_NS + 1)) == []
    assert list(tape.take(START_NS)) == []
    rest = tape.take(START_NS + MINUTE_NS)
    assert [(tick.kind, tick.symbol) for tick in rest] == [
        ("trades", "BTC/USD"),
        ("quotes", "SPY"),
        ("trades", "SPY"),
        ("quotes", "BTC/USD"),
    ]
    assert [tick.build_item()["T"] for tick in rest] == ["t", "q", "t", "q"]
    assert list(tape.take(START_NS + 10 * MINUTE_NS)) == []
    assert tape.time_ns == START_NS + 10 * MINUTE_NS


def test_a_tape_without_ticks_is_empty() -> None:
    tape = Tape(NO_TICKS, start_ns=0)
    assert (len(tape), list(tape.take(1))) == (0, [])
