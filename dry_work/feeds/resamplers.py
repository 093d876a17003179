"""Backtrader's resampling and replaying with bars that are a group-by, whatever is missing. Engine thread only.

Bars of seconds and minutes are those of a `BarGrid`, days and longer go by the session in which a bar starts. Without
gaps the bars are Backtrader's own. With gaps Backtrader merges a bar that ends on an edge into an older one that is
still open, and after a session whose last bar was complete it no longer sees where a day ends.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from typing import Any

import backtrader as bt
from backtrader.resamplerfilter import DTFaker, Replayer, Resampler

from dry_work.clock import MINUTE_NS, SECOND_NS
from dry_work.feeds.line_time import EPOCH, line_time, line_time_ns
from dry_work.market.bar_grid import BarGrid

_UNITS_NS = {bt.TimeFrame.Seconds: SECOND_NS, bt.TimeFrame.Minutes: MINUTE_NS}
_DATETIME = bt.DataBase.DateTime  # its place in a bar on a stack
_RESOLUTION_NS = 1_000_000  # of times in lines
_LAST_SECOND = dt.time(23, 59, 59)
_DAY = dt.timedelta(days=1)


def resampler_for(*, by_session: bool = True, **params: Any) -> type[Any]:
    """Return the filter class that `resample` of our feeds takes for some params.

    Args:
        by_session: days and longer are made of bars that are shorter than a day.
        params: those of Backtrader's resamplers.
    """
    return _choose(params, by_session, (GridResampler, SessionResampler, Resampler))


def replayer_for(*, by_session: bool = True, **params: Any) -> type[Any]:
    """Return the filter class that `replay` of our feeds takes; arguments as for `resampler_for`."""
    return _choose(params, by_session, (GridReplayer, SessionReplayer, Replayer))


def _choose(params: dict[str, Any], by_session: bool, kinds: tuple[type[Any], type[Any], type[Any]]) -> type[Any]:
    by_grid, by_start, stock = kinds
    timeframe = params.get("timeframe", bt.TimeFrame.Days)
    if timeframe >= bt.TimeFrame.Days:
        return by_start if by_session else stock
    # Bars that are counted instead of cut at edges are Backtrader's.
    return by_grid if timeframe in _UNITS_NS and params.get("bar2edge", True) else stock


def settles_by_length(data: Any) -> bool:
    """Tell whether a bar of `data`, once there, stays as it is until the next one makes the data longer.

    It does unless bars are replayed, or rewritten by a filter that is no resampler.
    """
    kinds = (Resampler, GridResampler, SessionResampler)
    return not data.replaying and all(type(each[0]) in kinds for each in data._filters)


def next_of_source(
    data: Any, ask: Callable[..., Any], datamaster: Any, ticks: bool, *, is_over: Callable[[], bool]
) -> Any:
    """Return what `next` of a data with clones returns in a loop that asks each data once in a turn.

    A bar on an edge can complete two longer ones of a clone. The data stands still then for one more turn at the same
    time, in which the second is delivered. At the end of its data it completes its own bar, if it is resampled itself,
    before its clones complete theirs.

    Args:
        ask: Backtrader's `next`.
        is_over: whether nothing follows after what was loaded; asked afterwards.
    """
    if owes_bar(data):
        return True
    found = ask(datamaster=datamaster, ticks=ticks)
    if found or not is_over() or datamaster is not None or not data.resampling or data.replaying:
        return found
    return ask(datamaster=datamaster, ticks=ticks) if flush_open(data) else found


def owes_bar(data: Any) -> bool:
    """Tell whether a clone of `data`, or one of that, holds a bar that is due at the time of the data's last one."""
    return len(data) > 0 and _owes(data, data.lines.datetime[0])


def _owes(data: Any, now: float) -> bool:
    for clone in data._copies:
        stack = clone._barstack
        if (stack and stack[0][_DATETIME] <= now) or _owes(clone, now):
            return True
    return False


def flush_open(data: Any) -> bool:
    """Complete the bar that the resamplers of `data` hold; tell whether there was one."""
    return sum(bool(resampler.last(data)) for resampler, _, _ in data._ffilters) > 0


def _find_coming(data: Any) -> int:
    """Return the time of the first bar that a source of a clone still holds for it; 0 when there is none."""
    found = 0
    while data._clone:
        data = data.data
        if data._barstack:
            found = line_time_ns(data._barstack[0][_DATETIME])
    return found


def session_end(data: Any, start_ns: int) -> float:
    """Return the end of the session in which a bar of `data` starts, as a line holds it.

    The session is that of the start's date in the data's zone, or the next one when the bar starts after the session's
    end. What comes out has the right date when Backtrader reads it, which rounds the last microseconds of a day up.
    """
    zone = data._tz or dt.UTC
    moment = EPOCH.replace(tzinfo=dt.UTC) + dt.timedelta(microseconds=start_ns // 1000)
    date = moment.astimezone(zone).date()
    if float(data.date2num(dt.datetime.combine(date, data.p.sessionend))) < line_time(start_ns):
        date += dt.timedelta(days=1)
    end = float(data.date2num(dt.datetime.combine(date, data.p.sessionend)))
    while bt.num2date(end, data._tz).date() != date:
        end = math.nextafter(end, 0.0)
    return end


def find_closing(feed: Any, moment: dt.datetime) -> dt.datetime:
    """Return the end of the session of the feed's calendar that holds a moment, or of the next one; both in UTC.

    `bt.TradingCalendar` looks for a day whose session ends later by the clock than the moment. After the close that is
    one behind the next change of the clocks, or none: it goes on to the year 9999. It does not ask whether that day is
    one of trading.
    """
    calendar, zone = feed._calendar, feed._tz
    if not isinstance(calendar, bt.TradingCalendar):
        return calendar.schedule(moment, zone)[1]  # type: ignore[no-any-return]
    own = _date_in(zone, moment)
    day = dt.datetime.combine(moment.date(), dt.time.min) - _DAY  # a session may end on the next day in UTC
    while True:
        closing: dt.datetime = calendar.schedule(day, zone)[1]
        date = _date_in(zone, closing)
        # A bar of a day off stays in that day, as in Backtrader.
        if moment <= closing and (date == own or not _is_off(calendar, date)):
            return closing
        day += _DAY


def _date_in(zone: Any, moment: dt.datetime) -> dt.date:
    """Return the date of a moment in UTC in the zone of a feed."""
    return moment.date() if zone is None else moment.replace(tzinfo=dt.UTC).astimezone(zone).date()


def _is_off(calendar: Any, date: dt.date) -> bool:
    """Tell whether a calendar has no session on a day; its holidays may be dates, or midnights."""
    held = calendar.p.holidays
    return date.isoweekday() in calendar.p.offdays or date in held or dt.datetime.combine(date, dt.time.min) in held


def next_closing(feed: Any, ask_stock: Callable[[], Any]) -> Any:
    """Return the end of the session of a feed's newest bar, as a datetime and as a line holds it; for `_getnexteos`.

    Args:
        ask_stock: does the same in Backtrader's way, for a feed without a calendar.
    """
    if feed._calendar is None or feed._clone or not len(feed):
        return ask_stock()
    closing = find_closing(feed, bt.num2date(feed.lines.datetime[0]))
    return closing, bt.date2num(closing)


def _root_of(data: Any) -> Any:
    while data._clone:
        data = data.data
    return data


# Seconds and minutes


class _ByGrid:
    """The bars of a grid, for a resampler or replayer of seconds or minutes."""

    _grid: BarGrid | None = None

    def _end_of(self, time: float) -> int:
        return (self._grid or self._make_grid()).find_end(line_time_ns(time))

    def _make_grid(self) -> BarGrid:
        # Not before the run: the feed's zone and calendar are known when it has started.
        params: Any = self.p  # type: ignore[attr-defined]
        root = _root_of(self.data)  # type: ignore[attr-defined]
        unit_ns = _UNITS_NS[params.timeframe]

        def find_session_end(time_ns: int) -> int:
            time_ns = -(-time_ns // _RESOLUTION_NS) * _RESOLUTION_NS  # not before it, as a line holds it
            if root._calendar is None:
                return line_time_ns(session_end(root, time_ns))
            return line_time_ns(bt.date2num(find_closing(root, bt.num2date(line_time(time_ns)))))

        # Where a session lasts until the end of the day nothing is cut.
        has_sessions = root._calendar is not None or root.p.sessionend < _LAST_SECOND
        self._grid = BarGrid(
            unit_ns * params.compression,
            offset_ns=unit_ns * params.boundoff,
            session_end_ns=find_session_end if has_sessions else None,
        )
        return self._grid

    def _calcadjtime(self, greater: bool = False) -> float:
        bar = self.bar  # type: ignore[attr-defined]
        end = self._end_of(bar.datetime)
        assert self._grid is not None
        rightedge = self.p.rightedge  # type: ignore[attr-defined]
        return line_time(end if rightedge else self._grid.find_span(line_time_ns(bar.datetime))[0])


class GridResampler(_ByGrid, Resampler):
    """Backtrader's Resampler for seconds and minutes, with each bar in the longer bar of its time."""

    def __call__(self, data: Any, fromcheck: bool = False, forcedata: Any = None) -> bool:
        line = data.lines.datetime
        time = line[0]
        if len(line) > 1 and time <= line[-1]:
            return bool(super().__call__(data))  # it came after the longer bar was delivered
        bar = self.bar
        end = self._end_of(time)
        if bar.isopen() and end > self._end_of(bar.datetime):
            self._deliver(data)
        bar.bupdate(data)
        data.backwards()
        if line_time_ns(time) == end:
            data._add2stack(bar.lvalues())
            bar.bstart(maxdate=True)
        return True

    def check(self, data: Any, _forcedata: Any = None) -> None:
        """Deliver the open bar when the time is past its end and no bar of its own is still to come."""
        bar = self.bar
        if not bar.isopen():
            return
        end = self._end_of(bar.datetime)
        now = DTFaker(data)._dt if _forcedata is None else _forcedata.datetime[0]
        if line_time_ns(now) >= end and not 0 < _find_coming(data) <= end:
            self._deliver(data)

    def _deliver(self, data: Any) -> None:
        if self.doadjusttime:
            self._adjusttime(greater=True)
        data._add2stack(self.bar.lvalues())
        self.bar.bstart(maxdate=True)


class GridReplayer(_ByGrid, Replayer):
    """Backtrader's Replayer for seconds and minutes, with each bar in the longer bar of its time."""

    _forced: Any = None  # what the time is taken from while `check` runs

    def __call__(self, data: Any, fromcheck: bool = False, forcedata: Any = None) -> bool:
        if not fromcheck and self.bar.isopen() and not self._latedata(data):
            time = data.lines.datetime[0]
            end = self._end_of(time)
            # A bar on an edge is all of its longer bar here; Backtrader would put it into the older one.
            if line_time_ns(time) == end and end > self._end_of(self.bar.datetime):
                if self.doadjusttime:
                    return self._begin_after_tick(data)
                self._close()
        return bool(super().__call__(data, fromcheck=fromcheck, forcedata=forcedata))

    def check(self, data: Any, _forcedata: Any = None) -> None:
        """Close the bar by a time that is given; Backtrader takes the machine's."""
        self._forced = _forcedata
        try:
            super().check(data, _forcedata=_forcedata)
        finally:
            self._forced = None

    def _begin_after_tick(self, data: Any) -> bool:
        """Give the older bar its time at the edge as one more tick; the new one follows from the stack."""
        data._tick_fill(force=True)
        if self._adjusttime(greater=True):
            data._updatebar(self.bar.lvalues(), forward=False, ago=-1)
        data._save2stack(erase=True, force=True)
        self._close()
        return False

    def _close(self) -> None:
        self.bar.bstart(maxdate=True)
        self._firstbar = True

    def _checkbarover(self, data: Any, fromcheck: bool = False, forcedata: Any = None) -> bool:
        return bool(super()._checkbarover(data, fromcheck=fromcheck, forcedata=forcedata or self._forced))

    def _dataonedge(self, data: Any) -> tuple[bool, bool]:
        time = data.lines.datetime[0]
        return line_time_ns(time) == self._end_of(time), True

    def _barover_subdays(self, data: Any) -> bool:
        if not self.bar.isopen():
            return False
        end = self._end_of(self.bar.datetime)
        now = line_time_ns(data.datetime[0])
        return now >= end if isinstance(data, DTFaker) else now > end


# Days and longer


class _SessionByStart:
    """Resampling to days and longer that looks at the start of each bar.

    The line of the data at hand is set back by one bar while Backtrader's own code decides, and is put right again
    where the bar stays in the data.
    """

    def __call__(self, data: Any, fromcheck: bool = False, forcedata: Any = None) -> bool:
        if fromcheck:
            return bool(super().__call__(data, fromcheck=fromcheck, forcedata=forcedata))  # type: ignore[misc]
        line = data.lines.datetime
        end = line[0]
        start = line_time(line_time_ns(end) - data.bar_length_ns)
        line[0] = start
        removed = bool(super().__call__(data, fromcheck=fromcheck, forcedata=forcedata))  # type: ignore[misc]
        if not removed and line[0] == start:
            line[0] = end
        return removed

    def _eosset(self) -> None:
        # Backtrader takes the UTC date of the newest bar's end; the session is that of the open bar's start in the
        # feed's zone. The line of the data holds the start, too, while it is called for a bar.
        if self._nexteos is not None:  # type: ignore[has-type]
            return
        data = self.data  # type: ignore[attr-defined]
        root = _root_of(data)
        bar = self.bar  # type: ignore[attr-defined]
        start = bar.datetime if bar.isopen() else data.lines.datetime[0]
        if root._calendar is None:
            end = session_end(root, line_time_ns(start))
            self._nexteos, self._nextdteos = bt.num2date(end), end
        else:
            self._nexteos = find_closing(root, bt.num2date(start))
            self._nextdteos = bt.date2num(self._nexteos)

    def _calcadjtime(self, greater: bool = False) -> float:
        # Backtrader takes the UTC time of the session's end for one of the feed's zone.
        end: float = self._lastdteos if self._nexteos is None else self._nextdteos  # type: ignore[attr-defined]
        return end


class SessionResampler(_SessionByStart, Resampler):
    """Backtrader's Resampler for days and longer, with the session decided by the start of each bar.

    It also closes the bar of a silent symbol with the first slice after the session, as a backtest does. Stock
    Backtrader forgets the end of the session there and merges two days.
    """

    _counted: float | None = None  # time of the bar whose period was counted as over without a bar of its own

    def _barover(self, data: Any) -> bool:
        if self._counted is not None and self._counted == self.bar.datetime:
            return False
        return bool(super()._barover(data))

    def last(self, data: Any) -> bool:
        """Deliver what is open at the end of the data."""
        if self.bar.isopen():
            self._eosset()  # after the first bar of a session the one before it may still be noted
        return bool(super().last(data))

    def check(self, data: Any, _forcedata: Any = None) -> None:
        """Deliver the open bar when its session is over and no bar of its own is still to come."""
        if _forcedata is None or not self.bar.isopen():
            return
        if 0 < _find_coming(data) <= line_time_ns(_forcedata.datetime[0]):
            return
        if not self._barover(DTFaker(data, _forcedata)):
            return
        self.compcount += 1
        if self.compcount % self.p.compression:
            self._counted = self.bar.datetime
            return
        if self.doadjusttime:
            self._adjusttime(greater=True)
        data._add2stack(self.bar.lvalues())
        self.bar.bstart(maxdate=True)


class SessionReplayer(_SessionByStart, Replayer):
    """Backtrader's Replayer for days and longer, with the session decided by the start of each bar."""
