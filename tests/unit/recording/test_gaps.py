"""What is missing in recorded times."""

from __future__ import annotations

from datetime import UTC, date, datetime

import numpy as np
import pytest

from dry_work.clock import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS
from dry_work.market.calendar import SessionCalendar
from dry_work.recording.gaps import Gap, GapReport, Ints, describe_gap, find_gaps, infer_length


@pytest.fixture(scope="module")
def calendar() -> SessionCalendar:
    return SessionCalendar(first=date(2024, 6, 1), last=date(2024, 7, 31))


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND_NS


def minutes(first: str, last: str, step_ns: int = MINUTE_NS) -> Ints:
    return np.arange(at(first), at(last) + 1, step_ns, dtype=np.int64)


def without(times: Ints, *starts: str) -> Ints:
    return times[~np.isin(times, [at(start) for start in starts])]


def test_a_whole_session_has_no_gap(calendar: SessionCalendar) -> None:
    # 2024-06-11 is a Tuesday; New York trades from 13:30 to 20:00 UTC.
    report = find_gaps(minutes("2024-06-11T13:30", "2024-06-11T19:59"), "SPY", calendar, length_ns=MINUTE_NS)
    assert report == GapReport(days=1, expected_bars=390)


def test_missing_minutes_of_the_regular_session_are_counted_and_the_largest_runs_named(
    calendar: SessionCalendar,
) -> None:
    times = np.concatenate([
        minutes("2024-06-10T13:30", "2024-06-10T19:56"),  # three are missing at the end of the day
        minutes("2024-06-11T13:32", "2024-06-11T19:59"),  # two at its beginning
        minutes("2024-06-11T20:05", "2024-06-11T20:06"),  # after hours do not count
    ])  # fmt: skip
    times = without(times, "2024-06-10T14:00", "2024-06-10T15:00", "2024-06-10T15:01", "2024-06-10T15:02")
    report = find_gaps(times, "SPY", calendar, length_ns=MINUTE_NS)
    assert (report.days, report.missing_days, report.expected_bars, report.missing_bars) == (2, (), 780, 9)
    assert report.largest == (
        Gap(at("2024-06-10T15:00"), at("2024-06-10T15:02"), 3),
        Gap(at("2024-06-10T19:57"), at("2024-06-10T19:59"), 3),
        Gap(at("2024-06-11T13:30"), at("2024-06-11T13:31"), 2),
    )


def test_what_is_before_the_first_and_after_the_last_bar_is_no_gap(calendar: SessionCalendar) -> None:
    report = find_gaps(minutes("2024-06-11T15:00", "2024-06-11T15:59"), "SPY", calendar, length_ns=MINUTE_NS)
    assert report == GapReport(days=1, expected_bars=60)


def test_weekends_and_holidays_are_no_missing_days_and_half_days_are_short(calendar: SessionCalendar) -> None:
    times = np.concatenate([
        minutes("2024-07-03T13:30", "2024-07-03T16:59"),  # a half day, to 17:00
        minutes("2024-07-08T13:30", "2024-07-08T19:59"),  # Monday; the 4th is a holiday, the 5th is missing
    ])  # fmt: skip
    report = find_gaps(times, "SPY", calendar, length_ns=MINUTE_NS)
    assert report == GapReport(days=2, missing_days=(date(2024, 7, 5),), expected_bars=600)


def test_extended_hours_belong_to_their_session_though_it_is_the_next_day_of_utc() -> None:
    calendar = SessionCalendar(first=date(2024, 1, 2), last=date(2024, 1, 31))
    # In winter the after-hours of Tuesday the 9th end at 01:00 UTC on the 10th; the 10th itself is missing.
    times = np.concatenate(
        [minutes("2024-01-10T00:00", "2024-01-10T00:59"), minutes("2024-01-11T14:30", "2024-01-11T20:59")]
    )
    report = find_gaps(times, "SPY", calendar, length_ns=MINUTE_NS)
    assert report == GapReport(days=2, missing_days=(date(2024, 1, 10),), expected_bars=390)


def test_crypto_trades_around_the_clock(calendar: SessionCalendar) -> None:
    times = np.concatenate([
        without(minutes("2024-06-08T00:00", "2024-06-08T23:59"), "2024-06-08T03:00", "2024-06-08T03:01"),
        minutes("2024-06-10T00:01", "2024-06-10T12:00"),
    ])  # fmt: skip
    report = find_gaps(times, "BTC/USD", calendar, length_ns=MINUTE_NS)
    assert report == GapReport(
        days=2,
        missing_days=(date(2024, 6, 9),),
        expected_bars=1440 + 721,
        missing_bars=3,
        largest=(
            Gap(at("2024-06-08T03:00"), at("2024-06-08T03:01"), 2),
            Gap(at("2024-06-10T00:00"), at("2024-06-10T00:00"), 1),
        ),
    )


def test_longer_bars_are_measured_where_the_session_holds_whole_ones(calendar: SessionCalendar) -> None:
    five = without(minutes("2024-06-11T13:30", "2024-06-11T19:55", 5 * MINUTE_NS), "2024-06-11T14:00")
    report = find_gaps(five, "SPY", calendar, length_ns=5 * MINUTE_NS)
    assert (report.expected_bars, report.missing_bars) == (78, 1)
    hours = minutes("2024-06-11T13:00", "2024-06-11T19:00", HOUR_NS)
    assert find_gaps(hours, "SPY", calendar, length_ns=HOUR_NS) == GapReport(days=1)
    crypto = without(minutes("2024-06-11T00:00", "2024-06-11T23:00", HOUR_NS), "2024-06-11T07:00")
    assert find_gaps(crypto, "BTC/USD", calendar, length_ns=HOUR_NS).missing_bars == 1


def test_daily_bars_have_missing_days_only(calendar: SessionCalendar) -> None:
    days = np.array([at(f"2024-06-{day:02d}T04:00") for day in (10, 11, 13, 14, 17)], dtype=np.int64)
    report = find_gaps(days, "SPY", calendar, length_ns=DAY_NS)
    assert report == GapReport(days=5, missing_days=(date(2024, 6, 12),))
    report = find_gaps(days + HOUR_NS, "BTC/USD", calendar, length_ns=DAY_NS)
    assert [day.day for day in report.missing_days] == [12, 15, 16]


def test_trades_have_missing_days_only_and_options_none(calendar: SessionCalendar) -> None:
    times = np.array([at("2024-06-10T13:31"), at("2024-06-12T13:31")], dtype=np.int64)
    assert find_gaps(times, "SPY", calendar, length_ns=None) == GapReport(days=2, missing_days=(date(2024, 6, 11),))
    assert find_gaps(times, "SPY240621C00540000", calendar, length_ns=MINUTE_NS) == GapReport(days=2)
    assert find_gaps(times, "SPY", calendar, length_ns=7 * DAY_NS) == GapReport(days=2)
    assert find_gaps(times[:0], "SPY", calendar, length_ns=MINUTE_NS) == GapReport()


def test_days_without_a_session_and_beyond_the_calendar_are_not_measured(calendar: SessionCalendar) -> None:
    saturday = minutes("2024-06-08T13:30", "2024-06-08T13:40")
    assert find_gaps(saturday, "SPY", calendar, length_ns=MINUTE_NS) == GapReport(days=1)
    past = minutes("1999-06-08T13:30", "1999-06-08T13:40")
    assert find_gaps(past, "SPY", calendar, length_ns=MINUTE_NS) == GapReport(days=1)


def test_the_length_of_bars_is_their_most_frequent_distance() -> None:
    times = without(minutes("2024-06-11T13:30", "2024-06-11T19:55", 5 * MINUTE_NS), "2024-06-11T14:00")
    assert infer_length(times) == 5 * MINUTE_NS
    assert infer_length(times[:1]) is None


def test_gaps_are_described() -> None:
    first = at("2024-06-11T14:00")
    assert describe_gap(Gap(first, first, 1), MINUTE_NS) == "2024-06-11 14:00 (1 minute)"
    assert describe_gap(Gap(first, first + 4 * MINUTE_NS, 5), MINUTE_NS) == "2024-06-11 14:00–14:04 (5 minutes)"
    assert describe_gap(Gap(first, first + HOUR_NS, 2), HOUR_NS) == "2024-06-11 14:00–15:00 (2 bars)"
