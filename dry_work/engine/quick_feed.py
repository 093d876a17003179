"""A new bar of a live feed, written in one go. Engine thread only.

`QuickFeed.move` leaves a feed as `feed.next(ticks=False)` does: it moves every line and puts the value there at once,
where Backtrader moves all lines, asks stacks, dates and filters, and then writes. It is used for feeds where all those
have nothing to say; any other feed, and any feed at a moment when they have, is moved by its own `next`.
"""

from __future__ import annotations

import math
from collections import deque
from functools import lru_cache
from typing import Any

import backtrader as bt

from dry_work.engine.kept_line import KeptLine, make_room
from dry_work.feeds.base import LiveFeed
from dry_work.feeds.line_time import line_time
from dry_work.market.messages import Bar

_NAN = math.nan
_ORDER = ("close", "low", "high", "open", "volume", "openinterest", "datetime")  # of Backtrader's lines
_METHODS = (
    "next",
    "load",
    "forward",
    "_load",
    "_fromstack",
    "_tick_fill",
    "_tick_nullify",
    "offer",
    "_write",
    "_write_extra",
    "__len__",
)

_slice_time = lru_cache(maxsize=4)(line_time)  # the bars of a slice end together


def can_be_quick(data: Any) -> bool:
    """Tell whether a started feed can be moved by a `QuickFeed`."""
    return (
        isinstance(data, LiveFeed)
        and all(getattr(type(data), name) is getattr(LiveFeed, name) for name in _METHODS)
        and not any(name in data.__dict__ for name in _METHODS)
        and data.engine_driven
        and not data._filters
        and data._tzinput is None
        and (data.fromdate, data.todate) == (-math.inf, math.inf)
        and tuple(data.getlinealiases()) == _ORDER
        and all(type(line) is KeptLine and not line.bindings for line in data.lines.lines)
    )


class PlainFeed:
    """Moves a feed as Backtrader does."""

    def __init__(self, feed: Any) -> None:
        self._feed = feed

    @property
    def time(self) -> float:
        """Of the newest bar, as a line holds it."""
        found: float = self._feed.lines.datetime[0]
        return found

    def move(self) -> Any:
        """Ask for a new bar; what is returned is true when there is one."""
        return self._feed.next(ticks=False)

    def fill_ticks(self) -> None:
        """Let the tick attributes say what the bar says."""
        self._feed._tick_fill(force=True)


class QuickFeed:
    """Moves one feed.

    Args:
        feed: one that `can_be_quick` has said yes to.
    """

    # What runs with every bar is held here, each a step away: with hundreds of feeds most of the time is spent on
    # waiting for memory, and Backtrader's objects are large.
    __slots__ = (
        *("_appends", "_extra", "_first", "_further", "_held", "_lines"),
        *("_offered", "_room", "_stack", "_stash", "feed", "time"),
    )

    def __init__(self, feed: Any) -> None:
        self.feed = feed
        self._offered: deque[Bar] = feed._offered
        self._stack: deque[Any] = feed._barstack
        self._stash: deque[Any] = feed._barstash
        self._held: list[Any] = feed.lines.lines
        self._room = 0  # values that fit into every line
        self.time = _NAN  # of the newest bar, as a line holds it
        self._hold_lines()

    def take(self, bar: Bar) -> bool:
        """Do what `feed.offer(bar)`, `move` and `fill_ticks` do; tell whether the feed has taken the bar."""
        feed = self.feed
        if self._offered or bar.ts_event_ns + bar.length_ns <= feed.last_end_ns or self._is_odd():
            if not feed.offer(bar):
                return False
            self.move()
        else:
            self._put(bar)
        feed._ticks_due = True
        return True

    def move(self) -> Any:
        """Do what `feed.next(ticks=False)` does, and return what that returns."""
        if not self._offered or self._is_odd():
            return self._move_slowly()
        self._put(self._offered.popleft())
        return True

    def fill_ticks(self) -> None:
        """Do what `feed._tick_fill(force=True)` does, or let the feed do it when it is asked for them."""
        self.feed._ticks_due = True

    def _is_odd(self) -> bool:
        return bool(
            self._stack
            or self._stash
            or len(self._held) != len(self._lines)  # it has a line that it had not
            or self._first._ahead  # it was rewound
        )

    def _put(self, bar: Bar) -> None:
        end_ns = bar.ts_event_ns + bar.length_ns
        self.time = time = _slice_time(end_ns)
        close, low, high, opening, volume, interest, moment = self._appends
        close(bar.close)
        low(bar.low)
        high(bar.high)
        opening(bar.open)
        volume(bar.volume)
        interest(0.0)
        moment(time)
        for append in self._further:
            append(_NAN)
        if bar.vwap is not None:
            self._write("vwap", bar.vwap)
        if bar.trade_count is not None:
            self._write("trade_count", bar.trade_count)
        if bar.extra:
            for name, value in bar.extra.items():
                self._write(name, value)
        self._room -= 1
        if self._room <= 0:
            self._room = make_room(self._lines)
        feed = self.feed
        feed.last_end_ns = end_ns
        feed.bars_delivered += 1

    def _write(self, name: str, value: float) -> None:
        values = self._extra.get(name)
        if values is None:
            self.feed._write_extra(name, value)
        elif math.isfinite(value):
            values[-1] = value

    def _move_slowly(self) -> Any:
        feed = self.feed
        result = feed.next(ticks=False)
        if len(self._lines) != len(self._held) and all(type(line) is KeptLine for line in self._held):
            self._hold_lines()
        self._room = 0
        if result:
            self.time = feed.lines.datetime[0]
        return result

    def _hold_lines(self) -> None:
        self._lines: list[Any] = list(self._held)
        self._first = self._lines[0]
        own = set(map(id, self._lines))
        found = {name: getattr(self.feed.lines, name) for name in self.feed.extra_names}
        self._extra = {name: line._kept for name, line in found.items() if id(line) in own}
        appends = tuple(line._kept.append for line in self._lines)
        self._appends, self._further = appends[: len(_ORDER)], appends[len(_ORDER) :]
        self._room = 0


assert tuple(bt.DataBase.lines._getlines()) == _ORDER
