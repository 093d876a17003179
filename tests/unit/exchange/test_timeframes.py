"""Where bars of Alpaca's timeframes begin."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from dry_work.clock import SECOND_NS
from dry_work.exchange.timeframes import Timeframe, find_starts, find_zone, parse_timeframe

NEW_YORK = ZoneInfo("America/New_York")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1Min", Timeframe(1, "min")),
        ("59T", Timeframe(59, "min")),
        ("1Hour", Timeframe(1, "hour")),
        ("23h", Timeframe(23, "hour")),
        ("1Day", Timeframe(1, "day")),
        ("1W", Timeframe(1, "week")),
        ("12Month", Timeframe(12, "month")),
        ("3M", Timeframe(3, "month")),
    ],
)
def test_alpacas_spellings_are_read(text: str, expected: Timeframe) -> None:
    assert parse_timeframe(text) == expected


@pytest.mark.parametrize(
    "text", ["", "Min", "0Min", "60Min", "24Hour", "2Day", "2Week", "5Month", "1.5Min", "١Min", "-1D"]
)
def test_others_are_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected \[1-59\]Min"):
        parse_timeframe(text)


@pytest.mark.parametrize(
    ("time", "timeframe", "zone", "start"),
    [
        ("2024-06-11T13:34:59Z", "1Min", NEW_YORK, "2024-06-11T13:34:00Z"),
        ("2024-06-11T13:34:00Z", "5Min", NEW_YORK, "2024-06-11T13:30:00Z"),
        ("2024-06-11T13:34:00Z", "1Hour", NEW_YORK, "2024-06-11T13:00:00Z"),
        ("2024-06-11T13:34:00Z", "4Hour", NEW_YORK, "2024-06-11T12:00:00Z"),  # 08:00 in New York
        ("2024-06-11T13:34:00Z", "4Hour", UTC, "2024-06-11T12:00:00Z"),
        ("2024-06-11T13:34:00Z", "6Hour", NEW_YORK, "2024-06-11T10:00:00Z"),  # 06:00 in New York
        ("2024-06-11T13:34:00Z", "1Day", NEW_YORK, "2024-06-11T04:00:00Z"),
        ("2024-06-11T03:59:00Z", "1Day", NEW_YORK, "2024-06-10T04:00:00Z"),
        ("2024-01-11T13:34:00Z", "1Day", NEW_YORK, "2024-01-11T05:00:00Z"),
        ("2024-06-11T13:34:00Z", "1Day", UTC, "2024-06-11T00:00:00Z"),
        ("2024-06-16T23:00:00Z", "1Week", NEW_YORK, "2024-06-10T04:00:00Z"),
        ("2024-06-11T13:34:00Z", "1Month", NEW_YORK, "2024-06-01T04:00:00Z"),
        ("2024-06-11T13:34:00Z", "3Month", NEW_YORK, "2024-04-01T04:00:00Z"),
        ("2024-06-11T13:34:00Z", "12Month", NEW_YORK, "2024-01-01T05:00:00Z"),
        ("2024-03-10T18:00:00Z", "1Day", NEW_YORK, "2024-03-10T05:00:00Z"),  # summer time began that night
        ("2024-11-03T18:00:00Z", "1Day", NEW_YORK, "2024-11-03T04:00:00Z"),
        ("2024-03-14T18:00:00Z", "1Week", NEW_YORK, "2024-03-11T04:00:00Z"),
    ],
)
def test_a_bar_begins_where_alpaca_stamps_it(time: str, timeframe: str, zone: tzinfo, start: str) -> None:
    def read(text: str) -> int:
        return int(datetime.fromisoformat(text).timestamp()) * SECOND_NS

    found = find_starts(np.array([read(time)], dtype=np.int64), parse_timeframe(timeframe), zone)
    assert found.tolist() == [read(start)]


def test_the_day_of_stocks_begins_in_new_york_and_that_of_crypto_in_utc() -> None:
    assert (find_zone("SPY"), find_zone("BTC/USD")) == (NEW_YORK, UTC)
