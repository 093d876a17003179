"""Contracts that have come to their end."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from dry_work.engine.expirations import Expirations


def new_york(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("America/New_York")).timestamp()) * 10**9


def test_each_contract_is_told_once_at_the_close_of_its_last_session() -> None:
    first, second, third = "SPY240621C00550000", "SPY240703P00540000", "SPY240706C00550000"
    found = Expirations(["SPY", "BTC/USD", third, second, first])
    assert found.take(new_york("2024-06-21T15:59")) == []
    assert found.take(new_york("2024-06-21T16:00")) == [first]
    assert found.take(new_york("2024-06-21T16:01")) == []
    assert found.take(new_york("2024-07-03T12:59")) == []
    assert found.take(new_york("2024-07-03T13:00")) == [second], "a half day"
    assert found.take(new_york("2024-07-08T15:59")) == []
    assert found.take(new_york("2024-07-08T16:00")) == [third], "a day without a session: at the end of the next one"
    assert found.take(new_york("2030-01-02T16:00")) == []


def test_without_options_nothing_ever_ends_and_a_date_that_is_none_never_does() -> None:
    assert Expirations(["SPY"]).take(2**62) == []
    assert Expirations(["SPY249931C00550000"]).take(2**62) == []
