from __future__ import annotations

import itertools
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.alpaca.download_plan import (
    Series,
    Span,
    build_series,
    choose_span,
    closed_part,
    cut_units,
    day_of,
    estimate_requests,
    floor_day,
    merge_spans,
    parse_bound,
    start_of,
    subtract_spans,
)
from dry_work.clock import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS
from dry_work.errors import ConfigError
from dry_work.wire.pubsub import encode_time, parse_time

NOW_NS = parse_time("2024-06-11T15:07:31.5Z")
SPY = Series(symbol="SPY", kind="bars", timeframe="1m", feed="sip", adjustment="raw")
BTC = Series(symbol="BTC/USD", kind="bars", timeframe="1m")
OPTION = "AAPL240315C00172500"

spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


def span_of(
    series: Series, start: str | None = None, end: str | None = None, days: int | None = None
) -> tuple[str, str]:
    first, last = choose_span(series, start=start, end=end, days=days, now_ns=NOW_NS)
    return encode_time(first), encode_time(last)


def points(found: list[Span]) -> set[int]:
    return {at for start, end in found for at in range(start, end)}


def test_feed_and_adjustment_belong_to_stocks_and_time_frames_to_bars() -> None:
    bars = build_series(["SPY", "BTC/USD", OPTION], kind="bars", timeframe="5m", feed="iex", adjustment="split")
    assert [(one.timeframe, one.feed, one.adjustment) for one in bars] == [
        ("5m", "iex", "split"),
        ("5m", "", ""),
        ("5m", "", ""),
    ]
    (trades,) = build_series(["SPY"], kind="trades")
    assert (trades.timeframe, trades.feed, trades.adjustment) == ("", "sip", "")
    assert [one.name for one in (*bars, trades)] == [
        "bars/5m/SPY", "bars/5m/BTC-USD", f"bars/5m/{OPTION}", "trades/SPY",
    ]  # fmt: skip


def test_options_have_no_history_of_quotes() -> None:
    with pytest.raises(ConfigError, match=f"{OPTION}: Alpaca has no history of quotes of options"):
        build_series([OPTION], kind="quotes")


@pytest.mark.parametrize(
    ("name", "word", "allowed"),
    [
        ("timeframe", "2m", "1m, 5m, 1h, 1d"),
        ("feed", "otc", "sip, iex, delayed_sip"),
        ("adjustment", "dividend", "raw, split, all"),
    ],
)
def test_unknown_words_are_refused_with_those_allowed(name: str, word: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name} '{word}': expected one of {allowed}"):
        build_series(["SPY"], kind="bars", **{name: word})


def test_an_end_date_is_included_and_a_time_is_not() -> None:
    assert span_of(SPY, "2024-01-02", "2024-01-31") == ("2024-01-02T00:00:00Z", "2024-02-01T00:00:00Z")
    assert span_of(SPY, "2024-01-02T14:30:00Z", "2024-01-02T10:00:00-05:00") == (
        "2024-01-02T14:30:00Z",
        "2024-01-02T15:00:00Z",
    )


def test_without_an_end_delayed_data_ends_fifteen_minutes_ago() -> None:
    assert span_of(SPY, "2024-06-10")[1] == "2024-06-11T14:52:00Z"
    assert span_of(BTC, "2024-06-10")[1] == "2024-06-11T15:07:00Z"
    (iex,) = build_series(["SPY"], kind="trades", feed="iex")
    assert span_of(iex, "2024-06-10")[1] == "2024-06-11T15:07:00Z"
    (option,) = build_series([OPTION], kind="trades")
    assert span_of(option, "2024-06-10")[1] == "2024-06-11T14:52:00Z"


def test_a_bar_that_still_grows_is_not_downloaded() -> None:
    (hours,) = build_series(["BTC/USD"], kind="bars", timeframe="1h")
    assert span_of(hours, "2024-06-10")[1] == "2024-06-11T15:00:00Z"
    (days,) = build_series(["SPY"], kind="bars", timeframe="1d")
    assert span_of(days, "2024-06-01")[1] == "2024-06-11T00:00:00Z"


def test_an_end_that_is_not_over_is_as_late_as_there_is_data() -> None:
    assert span_of(SPY, "2024-06-10", "2024-06-11")[1] == "2024-06-11T14:52:00Z"
    assert span_of(SPY, "2024-06-10", "2030-01-01")[1] == "2024-06-11T14:52:00Z"


def test_a_time_as_the_end_is_taken_at_its_word() -> None:
    assert span_of(SPY, "2024-06-10", "2024-06-11T15:05:00Z")[1] == "2024-06-11T15:05:00Z"
    assert span_of(SPY, "2024-06-10", "2024-06-11T23:00:00Z")[1] == "2024-06-11T15:07:00Z"


def test_days_count_back_from_the_end_the_last_one_included() -> None:
    assert span_of(BTC, days=1) == ("2024-06-11T00:00:00Z", "2024-06-11T15:07:00Z")
    assert span_of(BTC, days=5)[0] == "2024-06-07T00:00:00Z"
    assert span_of(BTC, end="2024-01-31", days=2) == ("2024-01-30T00:00:00Z", "2024-02-01T00:00:00Z")


def test_a_period_too_young_for_the_delay_is_empty() -> None:
    start, end = choose_span(SPY, start="2024-06-11T15:00:00Z", end=None, days=None, now_ns=NOW_NS)
    assert start == end


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "give --start or --days"),
        ({"start": "2024-01-02", "days": 3}, "give --start or --days"),
        ({"days": 0}, "--days 0: expected a number from 1"),
        ({"start": "2024-02-30"}, "--start '2024-02-30': expected a date such as"),
        ({"start": "yesterday"}, "--start 'yesterday': expected a date such as"),
        ({"start": "2024-01-02", "end": "Monday"}, "--end 'Monday': expected a date such as"),
        ({"start": "2024-01-03", "end": "2024-01-02"}, "--start 2024-01-03 is not before --end 2024-01-02"),
        ({"start": "2024-07-01"}, "--start 2024-07-01 is in the future; it is 2024-06-11T15:07:31Z now"),
    ],
)
def test_times_that_make_no_period_are_refused(given: dict[str, object], sentence: str) -> None:
    options = {"start": None, "end": None, "days": None, **given}
    with pytest.raises(ConfigError, match=sentence):
        choose_span(SPY, now_ns=NOW_NS, **options)  # type: ignore[arg-type]


def test_one_day_as_start_and_end_is_that_day() -> None:
    assert span_of(SPY, "2024-01-02", "2024-01-02") == ("2024-01-02T00:00:00Z", "2024-01-03T00:00:00Z")
    assert parse_bound("2024-01-02", option="--end", is_end=True) - parse_bound("2024-01-02", option="--end") == DAY_NS


@given(spans, spans)
def test_spans_behave_as_sets_of_points(some: list[Span], others: list[Span]) -> None:
    merged = merge_spans(some)
    assert points(merged) == points(some)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(merged))
    left = subtract_spans(some, others)
    assert points(left) == points(some) - points(others)
    assert left == merge_spans(left)


def test_ticks_are_cut_by_day_minutes_by_month_and_days_by_year() -> None:
    span = (parse_time("2023-12-30T12:00:00Z"), parse_time("2024-02-02T06:00:00Z"))
    for kind, timeframe, count, second in (
        ("trades", "1m", 35, "2023-12-31T00:00:00Z"),
        ("bars", "1m", 3, "2024-01-01T00:00:00Z"),
        ("bars", "5m", 3, "2024-01-01T00:00:00Z"),
        ("bars", "1h", 2, "2024-01-01T00:00:00Z"),
        ("bars", "1d", 2, "2024-01-01T00:00:00Z"),
    ):
        (series,) = build_series(["SPY"], kind=kind, timeframe=timeframe)  # type: ignore[arg-type]
        units = cut_units(series, [span])
        assert len(units) == count
        assert encode_time(units[1].start_ns) == second
        assert (units[0].start_ns, units[-1].end_ns) == span
        assert all(one.end_ns == other.start_ns for one, other in itertools.pairwise(units))


def test_units_have_names_for_people() -> None:
    day = parse_time("2024-01-02")
    assert cut_units(SPY, [(day, day + DAY_NS)])[0].describe() == "SPY 1m bars 2024-01-02"
    assert cut_units(SPY, [(day, day + 3 * DAY_NS)])[0].describe() == "SPY 1m bars 2024-01-02 to 2024-01-04"


def test_a_day_is_closed_a_quarter_of_an_hour_after_its_end() -> None:
    today = floor_day(NOW_NS)
    span = (today - 3 * DAY_NS, today + 5 * HOUR_NS)
    assert closed_part(span, now_ns=today + 6 * HOUR_NS) == (today - 3 * DAY_NS, today)
    assert closed_part(span, now_ns=today + 14 * MINUTE_NS) == (today - 3 * DAY_NS, today - DAY_NS)
    assert closed_part(span, now_ns=today + 10 * DAY_NS) == span
    assert closed_part((today, today + SECOND_NS), now_ns=today + HOUR_NS) == (today, today)


def test_requests_are_estimated_by_rows_and_pages() -> None:
    year = [(parse_time("2023-01-01"), parse_time("2024-01-01"))]
    assert estimate_requests(cut_units(BTC, year)) == 12 * 5  # 44,640 rows a month of 31 days; 40,320 in February
    assert estimate_requests(cut_units(SPY, year)) == 24
    (daily,) = build_series(["SPY"], kind="bars", timeframe="1d")
    assert estimate_requests(cut_units(daily, year)) == 1
    (trades,) = build_series(["SPY"], kind="trades")
    assert estimate_requests(cut_units(trades, year)) == 365


def test_days_and_times_belong_together() -> None:
    assert day_of(start_of(date(2024, 2, 29))) == date(2024, 2, 29)
    assert start_of(date(1970, 1, 2)) == DAY_NS
