import subprocess
import sys
import threading
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.clock import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS
from dry_work.errors import ConfigError
from dry_work.market.calendar import FIRST_DATE, LAST_DATE, SessionCalendar

NEW_YORK = ZoneInfo("America/New_York")


def new_york(text: str) -> int:
    """Nanoseconds of a wall time in New York."""
    return int(datetime.fromisoformat(text).replace(tzinfo=NEW_YORK).timestamp()) * SECOND_NS


def utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND_NS


@pytest.fixture(scope="module")
def calendar() -> SessionCalendar:
    return SessionCalendar()


def dates(calendar: SessionCalendar, start: str, end: str) -> list[str]:
    return [
        session.date.isoformat() for session in calendar.sessions(date.fromisoformat(start), date.fromisoformat(end))
    ]


def session(calendar: SessionCalendar, day: str):
    (only,) = calendar.sessions(date.fromisoformat(day), date.fromisoformat(day))
    return only


def test_a_full_day_has_its_regular_and_extended_hours(calendar):
    full = session(calendar, "2013-10-07")
    assert full.date == date(2013, 10, 7)
    assert full.pre_open_ns == utc("2013-10-07 08:00")
    assert full.open_ns == utc("2013-10-07 13:30")
    assert full.close_ns == utc("2013-10-07 20:00")
    assert full.post_close_ns == utc("2013-10-08 00:00")


@pytest.mark.parametrize("day", ["2013-07-03", "2024-07-03", "2024-11-29", "2024-12-24"])
def test_a_half_day_closes_at_13_and_its_after_hours_end_at_17(calendar, day):
    half = session(calendar, day)
    assert half.pre_open_ns == new_york(f"{day} 04:00")
    assert half.open_ns == new_york(f"{day} 09:30")
    assert half.close_ns == new_york(f"{day} 13:00")
    assert half.post_close_ns == new_york(f"{day} 17:00")


def test_holidays_and_weekends_have_no_session(calendar):
    assert dates(calendar, "2024-11-27", "2024-12-02") == ["2024-11-27", "2024-11-29", "2024-12-02"]
    assert dates(calendar, "2024-03-28", "2024-04-01") == ["2024-03-28", "2024-04-01"]  # Good Friday
    assert dates(calendar, "2024-06-19", "2024-06-19") == []  # Juneteenth
    assert dates(calendar, "2012-10-26", "2012-10-31") == ["2012-10-26", "2012-10-31"]  # a storm
    assert dates(calendar, "2001-09-10", "2001-09-17") == ["2001-09-10", "2001-09-17"]


def test_sessions_of_a_range_include_both_ends(calendar):
    assert dates(calendar, "2013-10-07", "2013-10-09") == ["2013-10-07", "2013-10-08", "2013-10-09"]
    assert dates(calendar, "2013-10-09", "2013-10-07") == []


@pytest.mark.parametrize(
    ("day", "open_utc"),
    [
        ("2024-03-08", "14:30"),
        ("2024-03-11", "13:30"),  # daylight saving time began on the 10th
        ("2024-11-01", "13:30"),
        ("2024-11-04", "14:30"),  # and ended on the 3rd
        ("2006-04-03", "13:30"),  # by the rule before 2007
        ("2006-03-31", "14:30"),
    ],
)
def test_daylight_saving_time_moves_the_session(calendar, day, open_utc):
    moved = session(calendar, day)
    assert moved.open_ns == utc(f"{day} {open_utc}")
    assert moved.open_ns - moved.pre_open_ns == 5 * HOUR_NS + 30 * MINUTE_NS
    assert moved.post_close_ns - moved.close_ns == 4 * HOUR_NS


def test_a_session_holds_its_open_and_not_its_close(calendar):
    assert not calendar.is_open(new_york("2024-07-03 09:30") - 1)
    assert calendar.is_open(new_york("2024-07-03 09:30"))
    assert calendar.is_open(new_york("2024-07-03 13:00") - 1)
    assert not calendar.is_open(new_york("2024-07-03 13:00"))
    assert calendar.session_at(new_york("2024-07-03 12:00")).date == date(2024, 7, 3)
    assert calendar.session_at(new_york("2024-07-03 14:00")) is None
    assert not calendar.is_open(new_york("2024-07-04 12:00"))


@pytest.mark.parametrize(
    ("now", "next_open", "next_close"),
    [
        ("2024-07-02 12:00", "2024-07-03 09:30", "2024-07-02 16:00"),  # open: the close comes first
        ("2024-07-02 16:00", "2024-07-03 09:30", "2024-07-03 13:00"),  # the closing time is after the session
        ("2024-07-03 09:30", "2024-07-05 09:30", "2024-07-03 13:00"),  # the opening time is in the session
        ("2024-07-03 05:00", "2024-07-03 09:30", "2024-07-03 13:00"),
        ("2024-07-03 15:00", "2024-07-05 09:30", "2024-07-05 16:00"),
        ("2024-07-05 18:00", "2024-07-08 09:30", "2024-07-08 16:00"),
    ],
)
def test_next_open_and_close(calendar, now, next_open, next_close):
    now_ns = new_york(now)
    assert calendar.next_open_ns(now_ns) == new_york(next_open)
    assert calendar.next_close_ns(now_ns) == new_york(next_close)
    assert calendar.session_close_ns(now_ns) == new_york(next_close)


@pytest.mark.parametrize(
    ("now", "extended", "regular"),
    [
        ("2024-07-02 03:59", None, None),
        ("2024-07-02 04:00", "2024-07-02", None),
        ("2024-07-02 09:30", "2024-07-02", "2024-07-02"),
        ("2024-07-02 19:59", "2024-07-02", None),
        ("2024-07-02 20:00", None, None),
        ("2024-07-03 16:59", "2024-07-03", None),
        ("2024-07-03 17:00", None, None),
        ("2024-07-04 12:00", None, None),
    ],
)
def test_trading_date_with_and_without_extended_hours(calendar, now, extended, regular):
    for include_extended, expected in ((True, extended), (False, regular)):
        found = calendar.trading_date(new_york(now), include_extended)
        assert found == (None if expected is None else date.fromisoformat(expected))


def test_the_whole_range_answers(calendar):
    every = calendar.sessions(FIRST_DATE, LAST_DATE)
    assert (every[0].date, every[-1].date) == (date(2000, 1, 3), date(2035, 12, 31))
    assert calendar.session_at(every[-1].open_ns) == every[-1]
    assert calendar.next_open_ns(every[-1].open_ns) == new_york("2036-01-02 09:30")
    assert calendar.trading_date(new_york("2000-01-01 00:00")) is None


def test_a_time_out_of_range_is_named(calendar):
    sentence = r"the XNYS calendar reaches from 2000-01-01 to 2035-12-31; asked for "
    with pytest.raises(ConfigError, match=sentence + "2000-01-01T04:59:59"):
        calendar.is_open(new_york("2000-01-01 00:00") - 1)
    with pytest.raises(ConfigError, match=sentence + "2036-01-01T05:00:00"):
        calendar.next_open_ns(new_york("2036-01-01 00:00"))
    with pytest.raises(ConfigError, match=sentence + "1999-12-31"):
        calendar.sessions(date(1999, 12, 31), date(2001, 1, 1))
    with pytest.raises(ConfigError, match=sentence + "10{30} ns since 1970"):
        calendar.next_close_ns(10**30)


def test_a_small_range_is_known_to_its_last_minute():
    small = SessionCalendar(first=date(2024, 7, 3), last=date(2024, 7, 3))
    assert [one.date for one in small.sessions(small.first, small.last)] == [date(2024, 7, 3)]
    assert small.next_open_ns(new_york("2024-07-03 23:59")) == new_york("2024-07-05 09:30")
    with pytest.raises(ConfigError, match="from 2024-07-03 to 2024-07-03"):
        small.is_open(new_york("2024-07-04 00:00"))


def test_a_range_that_ends_before_it_begins_is_refused():
    with pytest.raises(ConfigError, match="first date 2024-07-04 is after its last 2024-07-03"):
        SessionCalendar(first=date(2024, 7, 4), last=date(2024, 7, 3))


def test_an_unknown_exchange_is_named():
    with pytest.raises(ConfigError, match=r"no calendar of XOXO from 2000-01-01 to 2035-12-31: .*XOXO"):
        SessionCalendar("XOXO").is_open(new_york("2024-07-03 12:00"))


def test_a_range_beyond_the_library_is_named():
    with pytest.raises(ConfigError, match="no calendar of XNYS from 2000-01-01 to 2300-01-01"):
        SessionCalendar(last=date(2300, 1, 1)).is_open(new_york("2024-07-03 12:00"))


def test_an_exchange_elsewhere_has_no_extended_hours():
    london = SessionCalendar("XLON", first=date(2024, 7, 1), last=date(2024, 7, 5))
    one = session(london, "2024-07-03")
    assert (one.pre_open_ns, one.post_close_ns) == (one.open_ns, one.close_ns)
    assert one.open_ns == utc("2024-07-03 07:00")


def test_the_library_is_imported_at_the_first_question_only():
    code = (
        "import sys; from dry_work.market.calendar import SessionCalendar; c = SessionCalendar();"
        "assert 'exchange_calendars' not in sys.modules and 'pandas' not in sys.modules;"
        "c.is_open(1_720_000_000_000_000_000); assert 'exchange_calendars' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_threads_may_ask_at_once():
    fresh = SessionCalendar(first=date(2024, 1, 1), last=date(2024, 12, 31))
    barrier, answers = threading.Barrier(4), []

    def ask():
        barrier.wait(60)
        answers.append(fresh.is_open(new_york("2024-07-03 12:00")))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [True] * 4


@settings(max_examples=300, deadline=None)
@given(ns=st.integers(utc("2000-01-02 00:00"), utc("2035-12-31 00:00")))
def test_answers_agree_with_the_list_of_sessions(ns):
    calendar = _shared()
    day = datetime.fromtimestamp(ns // SECOND_NS, NEW_YORK).date()
    near = [one for one in calendar.sessions(day, day) if one.open_ns <= ns < one.close_ns]
    assert calendar.session_at(ns) == (near[0] if near else None)
    assert calendar.is_open(ns) == bool(near)
    next_open, next_close = calendar.next_open_ns(ns), calendar.next_close_ns(ns)
    assert ns < next_open < ns + 8 * DAY_NS
    assert ns < next_close < ns + 8 * DAY_NS
    # Open: the close comes before the next open. Closed: the next open comes first.
    assert (next_close < next_open) == bool(near)
    if near:
        assert calendar.trading_date(ns) == calendar.trading_date(ns, include_extended=False) == day


_CALENDARS: list[SessionCalendar] = []


def _shared() -> SessionCalendar:
    if not _CALENDARS:
        _CALENDARS.append(SessionCalendar())
    return _CALENDARS[0]
