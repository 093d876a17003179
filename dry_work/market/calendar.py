"""Trading sessions of a stock exchange: days, half days, holidays, extended hours. Pure; thread-safe.

The dates come from `exchange-calendars`, which is slow to import and therefore read at the first question. Times are
nanoseconds since 1970 UTC. A session holds its opening time and does not hold its closing time.
"""

from __future__ import annotations

import functools
import threading
from bisect import bisect_left, bisect_right
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import msgspec

from dry_work.clock import HOUR_NS, SECOND_NS
from dry_work.errors import ConfigError

FIRST_DATE = date(2000, 1, 1)
LAST_DATE = date(2035, 12, 31)

_NEW_YORK = "America/New_York"
# The library changes Python's warning filters while it builds, which is of the whole process: one at a time.
_BUILDING = threading.Lock()
_PRE_OPEN = time(4, 0)  # New York
_POST_HOURS_NS = 4 * HOUR_NS  # to 20:00 on a full day, to 17:00 on a half day
# Sessions known beyond the range asked for, so that the next open and close are known on its last day too. No closing
# of the exchange lasted longer.
_MARGIN = timedelta(days=14)


class Session(msgspec.Struct, frozen=True):
    """One trading day: the regular hours, and the extended hours around them."""

    date: date
    open_ns: int
    close_ns: int
    pre_open_ns: int  # start of the pre-market, 04:00 in New York
    post_close_ns: int  # end of the after-hours, 20:00 in New York, 17:00 on a half day


class SessionCalendar:
    """Answers questions about the sessions of one exchange between two dates, both included.

    An exchange outside New York has no extended hours here: they are equal to the regular ones.

    Raises:
        ConfigError: by every question, for an exchange that is not known or a time outside of the range.
    """

    def __init__(self, name: str = "XNYS", *, first: date = FIRST_DATE, last: date = LAST_DATE) -> None:
        if first > last:
            raise ConfigError(f"the calendar's first date {first} is after its last {last}")
        self.name = name
        self.first = first
        self.last = last
        self._lock = threading.Lock()
        self._table: _Table | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the dates are there."""
        return self._table is not None

    def load(self) -> None:
        """Read the dates now, and not at the first question."""
        self._load()

    def sessions(self, start: date, end: date) -> list[Session]:
        """Return the sessions from `start` to `end`, both included; empty when `end` is before `start`."""
        for day in (start, end):
            if not self.first <= day <= self.last:
                raise self._out_of_range(day.isoformat())
        table = self._load()
        return table.sessions[bisect_left(table.dates, start) : bisect_right(table.dates, end)]

    def session_at(self, ns: int) -> Session | None:
        """Return the session whose regular hours hold `ns`, None when the exchange is closed then."""
        table = self._checked(ns)
        index = bisect_right(table.opens, ns) - 1
        return table.sessions[index] if index >= 0 and ns < table.closes[index] else None

    def is_open(self, ns: int) -> bool:
        """Tell whether `ns` is in the regular hours of a session."""
        return self.session_at(ns) is not None

    def next_open_ns(self, ns: int) -> int:
        """Return the first regular open after `ns`."""
        table = self._checked(ns)
        return table.opens[bisect_right(table.opens, ns)]

    def next_close_ns(self, ns: int) -> int:
        """Return the first regular close after `ns`: of the present session, or of the next one when closed."""
        table = self._checked(ns)
        return table.closes[bisect_right(table.closes, ns)]

    def session_close_ns(self, ns: int) -> int:
        """Return the close that a day order made at `ns` lives to: this session's, or the next one's when closed."""
        return self.next_close_ns(ns)

    def trading_date(self, ns: int, include_extended: bool = True) -> date | None:
        """Return the date of the session that holds `ns`, with or without extended hours; None between sessions."""
        if not include_extended:
            session = self.session_at(ns)
            return None if session is None else session.date
        table = self._checked(ns)
        index = bisect_right(table.pre_opens, ns) - 1
        return table.dates[index] if index >= 0 and ns < table.sessions[index].post_close_ns else None

    def _out_of_range(self, asked: str) -> ConfigError:
        return ConfigError(f"the {self.name} calendar reaches from {self.first} to {self.last}; asked for {asked}")

    def _checked(self, ns: int) -> _Table:
        table = self._load()
        if not table.first_ns <= ns < table.end_ns:
            raise self._out_of_range(_describe_time(ns))
        return table

    def _load(self) -> _Table:
        if self._table is None:
            with self._lock, _BUILDING:
                if self._table is None:
                    self._table = _build_table(self.name, self.first, self.last)
        return self._table


@functools.cache
def shared_calendar() -> SessionCalendar:
    """Return the calendar of New York that all parts of the process share, since it is slow to load and large."""
    return SessionCalendar()


class _Table(msgspec.Struct, frozen=True):
    """Sessions, and their parts as lists of numbers to search in."""

    sessions: list[Session]
    dates: list[date]
    opens: list[int]
    closes: list[int]
    pre_opens: list[int]
    first_ns: int  # midnight at the exchange, of the first date
    end_ns: int  # midnight after the last date


def _describe_time(ns: int) -> str:
    try:
        return datetime.fromtimestamp(ns // SECOND_NS, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return f"{ns} ns since 1970"


def _to_ns(day: date, clock: time, zone: ZoneInfo) -> int:
    return int(datetime.combine(day, clock, zone).timestamp()) * SECOND_NS


def _build_table(name: str, first: date, last: date) -> _Table:
    import exchange_calendars
    from exchange_calendars.errors import CalendarError

    try:
        calendar = exchange_calendars.get_calendar(name, start=first - _MARGIN, end=last + _MARGIN)
    except (CalendarError, ValueError, OverflowError) as error:
        raise ConfigError(f"no calendar of {name} from {first} to {last}: {error}") from error
    zone = ZoneInfo(str(calendar.tz))
    dates: list[date] = list(calendar.sessions.date)
    opens: list[int] = calendar.opens_nanos.tolist()
    closes: list[int] = calendar.closes_nanos.tolist()
    pre_opens, post_closes = opens, closes
    if zone.key == _NEW_YORK:
        pre_opens = [_to_ns(day, _PRE_OPEN, zone) for day in dates]
        post_closes = [close + _POST_HOURS_NS for close in closes]
    return _Table(
        sessions=[Session(*fields) for fields in zip(dates, opens, closes, pre_opens, post_closes, strict=True)],
        dates=dates,
        opens=opens,
        closes=closes,
        pre_opens=pre_opens,
        first_ns=_to_ns(first, time(), zone),
        end_ns=_to_ns(last + timedelta(days=1), time(), zone),
    )
