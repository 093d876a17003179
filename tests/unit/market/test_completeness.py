from __future__ import annotations

from datetime import date, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.clock import MINUTE_NS, SECOND_NS
from dry_work.market.calendar import SessionCalendar
from dry_work.market.completeness import (
    MINUTES_KEPT,
    Arrival,
    Completeness,
    CompletenessTally,
    MarketHours,
    SymbolCompleteness,
)
from dry_work.market.messages import Bar, Slice

HOURS = MarketHours()


def new_york(text: str) -> int:
    moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("America/New_York"))
    return int(moment.timestamp()) * SECOND_NS


def piece(end_ns: int, *symbols: str, late: tuple[str, int] | None = None, filled: bool = False) -> Slice:
    ends = [(symbol, end_ns) for symbol in symbols] + ([late] if late else [])
    bars = tuple(
        Bar(symbol=symbol, ts_event_ns=end - MINUTE_NS, open=1, high=1, low=1, close=1, volume=1)
        for symbol, end in ends
    )
    return Slice(end_ns=end_ns, bars=bars, filled=filled)


@pytest.mark.parametrize(
    ("start", "end", "bars"),
    [
        ("2024-07-02T00:00", "2024-07-03T00:00", 390),
        ("2024-07-03T00:00", "2024-07-04T00:00", 210),  # a half day
        ("2024-07-04T00:00", "2024-07-05T00:00", 0),  # a holiday
        ("2024-07-06T00:00", "2024-07-08T00:00", 0),  # a week-end
        ("2024-07-02T15:58", "2024-07-03T09:32", 4),
        ("2024-07-02T12:00", "2024-07-02T12:00", 0),
    ],
)
def test_shares_are_expected_in_the_regular_hours_only(start: str, end: str, bars: int) -> None:
    assert HOURS.count_bars(crypto=False, start_ns=new_york(start), end_ns=new_york(end)) == bars


def test_crypto_is_expected_around_the_clock() -> None:
    start_ns = new_york("2024-07-04T00:00")
    assert HOURS.count_bars(crypto=True, start_ns=start_ns, end_ns=start_ns + 1440 * MINUTE_NS) == 1440
    assert HOURS.is_open("BTC/USD", start_ns)
    assert not HOURS.is_open("SPY", start_ns)


def test_a_time_that_the_calendar_does_not_know_counts_as_closed() -> None:
    assert not HOURS.is_open("SPY", 0)
    assert HOURS.count_bars(crypto=False, start_ns=0, end_ns=10 * MINUTE_NS) == 0


def test_each_expected_bar_is_arrived_late_filled_or_missing() -> None:
    open_ns = new_york("2024-07-02T09:30")
    tally = CompletenessTally(["SPY", "IBM", "BTC/USD"], hours=HOURS)
    at = [open_ns + minute * MINUTE_NS for minute in range(6)]
    tally.note(piece(at[1], "SPY", "IBM", "BTC/USD"))
    tally.note(piece(at[2], "SPY", "OTHER"))
    tally.note(piece(at[3], "SPY", late=("IBM", at[2])))
    tally.note(piece(at[4], "SPY", filled=True))
    tally.note(piece(at[5], "SPY", "IBM", "BTC/USD"))
    assert tally.of("SPY") == Completeness(expected=5, arrived=4, filled=1)
    assert tally.of("IBM") == Completeness(expected=5, arrived=2, late=1, missing=2)
    assert tally.of("BTC/USD") == Completeness(expected=5, arrived=2, missing=3)
    assert tally.total().share == pytest.approx(10 / 15)
    view = SymbolCompleteness(tally, "IBM")
    assert view.counts.missing == 2
    assert [view.minute(end_ns) for end_ns in at] == [
        None, Arrival.ARRIVED, Arrival.LATE, Arrival.MISSING, Arrival.MISSING, Arrival.ARRIVED,
    ]  # fmt: skip
    with pytest.raises(KeyError):
        tally.of("OTHER")


def test_of_an_option_those_bars_are_expected_that_come() -> None:
    option, open_ns = "SPY240719C00550000", new_york("2024-07-02T09:30")
    tally = CompletenessTally(["SPY", option], hours=HOURS)
    at = [open_ns + minute * MINUTE_NS for minute in range(4)]
    tally.note(piece(at[1], "SPY", option))
    tally.note(piece(at[2], "SPY"))
    tally.note(piece(at[3], "SPY", late=(option, at[2])))
    assert tally.of(option) == Completeness(expected=2, arrived=1, late=1)
    assert tally.total() == Completeness(expected=5, arrived=4, late=1)
    view = SymbolCompleteness(tally, option)
    assert [view.minute(end_ns) for end_ns in at[1:]] == [Arrival.ARRIVED, Arrival.LATE, Arrival.QUIET]


def test_a_night_between_two_slices_leaves_nothing_missing() -> None:
    tally = CompletenessTally(["SPY"], hours=HOURS)
    tally.note(piece(new_york("2024-07-02T16:00"), "SPY"))
    evening_ns = new_york("2024-07-02T17:00")
    tally.note(piece(evening_ns, "SPY"))  # extended hours
    tally.note(piece(new_york("2024-07-03T09:31"), "SPY"))
    assert tally.of("SPY") == Completeness(expected=2, arrived=2, outside=1)
    assert tally.minute("SPY", evening_ns + MINUTE_NS) is Arrival.CLOSED


def test_a_bar_is_counted_once_and_those_from_before_the_start_not_at_all() -> None:
    at_ns = new_york("2024-07-02T12:00")
    tally = CompletenessTally(["SPY"], hours=HOURS)
    tally.note(piece(at_ns, "SPY", late=("SPY", at_ns - MINUTE_NS)))
    tally.note(piece(at_ns, "SPY"))
    assert tally.of("SPY") == Completeness(expected=1, arrived=1)


def test_no_more_than_the_newest_minutes_are_kept() -> None:
    at_ns = new_york("2024-07-02T12:00")
    tally = CompletenessTally(["BTC/USD"], hours=HOURS)
    for minute in range(MINUTES_KEPT + 5):
        tally.note(piece(at_ns + minute * MINUTE_NS, "BTC/USD"))
    assert tally.of("BTC/USD").arrived == MINUTES_KEPT + 5
    assert tally.minute("BTC/USD", at_ns) is None
    assert tally.minute("BTC/USD", at_ns + 5 * MINUTE_NS) is Arrival.ARRIVED


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.integers(1, 90)), max_size=40))
def test_the_sum_is_right_whenever_somebody_looks(steps: list[tuple[bool, bool, bool, int]]) -> None:
    asked, unasked = CompletenessTally(["SPY"], hours=HOURS), CompletenessTally(["SPY"], hours=HOURS)
    end_ns = new_york("2024-07-02T15:00")
    for has_bar, is_late, filled, minutes in steps:
        end_ns += minutes * MINUTE_NS
        late = ("SPY", end_ns - minutes * MINUTE_NS) if is_late else None
        each = piece(end_ns, *(["SPY"] if has_bar else []), late=late, filled=filled)
        asked.note(each)
        unasked.note(each)
        counts = asked.of("SPY")
        assert counts.expected == counts.arrived + counts.late + counts.filled + counts.missing
        assert counts.missing >= 0
    assert asked.of("SPY") == unasked.of("SPY")


def test_the_calendar_is_loaded_when_asked_for_and_for_those_that_need_it() -> None:
    for symbols, loads_hours, is_loaded in (
        (("SPY", "BTC/USD"), True, True),
        (("SPY",), False, False),
        (("BTC/USD", "ETH/USD"), True, False),
    ):
        hours = MarketHours(SessionCalendar(first=date(2024, 6, 1), last=date(2024, 6, 30)))
        CompletenessTally(symbols, hours=hours, loads_hours=loads_hours)
        assert hours.is_loaded is is_loaded, symbols
