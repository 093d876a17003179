"""A new bar of a live feed, written in one go. Engine thread only.

`QuickFeed.move` leaves a feed as `feed.next(ticks=False)` does: it moves every line and puts the value there at once,
where Backtrader moves all lines, asks stacks, dates and filters, and then writes. It is used for feeds where all those
have nothing to say; any other feed, and any feed at a moment when they have, is moved by its own `next`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import backtrader as bt

from dry_work.engine.kept_line import KeptLine
from dry_work.feeds.base import LiveFeed, line_time

_NAN = math.nan
_ORDER = ("close", "low", "high", "open", "volume", "openinterest", "datetime")  # of Backtrader's lines
_METHODS = (
    "next",
    "load",
    "forward",
    "_load",
    "_fromstack",
    "_tick_fill",
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

    def __init__(self, feed: Any) -> None:
        self._feed = feed
        self._lines: list[Any] = list(feed.lines.lines)
        self._extra: dict[str, KeptLine] = self._find_extra()
        self._more = (_NAN,) * (len(self._lines) - len(_ORDER))
        self.time = _NAN  # of the newest bar, as a line holds it

    def move(self) -> Any:
        """Do what `feed.next(ticks=False)` does, and return what that returns."""
        feed = self._feed
        offered = feed._offered
        lines = self._lines
        first = lines[0]
        if (
            feed._barstack
            or feed._barstash
            or not offered
            or len(lines) != len(feed.lines.lines)
            or first.lencount < first._base + len(first._kept)
        ):
            return self._move_slowly()
        bar = offered.popleft()
        self.time = _slice_time(bar.end_ns)
        for line, value in zip(
            lines,
            (
                bar.close,
                bar.low,
                bar.high,
                bar.open,
                bar.volume,
                0.0,
                self.time,
                *self._more,
            ),
            strict=True,
        ):
            line._kept.append(value)
            line.lencount += 1
            line._idx += 1
            if line._idx >= line._limit:
                line._let_go()
        if bar.vwap is not None:
            self._write("vwap", bar.vwap)
        if bar.trade_count is not None:
            self._write("trade_count", bar.trade_count)
        if bar.extra:
            for name, value in bar.extra.items():
                self._write(name, value)
        feed.last_end_ns = bar.end_ns
        feed.bars_delivered += 1
        return True

    def fill_ticks(self) -> None:
        """Do what `feed._tick_fill(force=True)` does."""
        close, low, high, opening, volume, interest = self._lines[:6]
        ticks = self._feed.__dict__
        ticks["tick_close"] = ticks["tick_last"] = close._kept[close._idx]
        ticks["tick_low"] = low._kept[low._idx]
        ticks["tick_high"] = high._kept[high._idx]
        ticks["tick_open"] = opening._kept[opening._idx]
        ticks["tick_volume"] = volume._kept[volume._idx]
        ticks["tick_openinterest"] = interest._kept[interest._idx]

    def _write(self, name: str, value: float) -> None:
        line = self._extra.get(name)
        if line is None:
            self._feed._write_extra(name, value)
        elif math.isfinite(value):
            line._kept[line._idx] = value

    def _move_slowly(self) -> Any:
        feed = self._feed
        result = feed.next(ticks=False)
        if len(self._lines) != len(feed.lines.lines) and all(type(line) is KeptLine for line in feed.lines.lines):
            self.__init__(feed)  # type: ignore[misc]  # the feed has lines that it had not
        if result:
            self.time = feed.lines.datetime[0]
        return result

    def _find_extra(self) -> dict[str, KeptLine]:
        own = set(map(id, self._lines))
        found = {name: getattr(self._feed.lines, name) for name in self._feed.extra_names}
        return {name: line for name, line in found.items() if id(line) in own}


assert tuple(bt.DataBase.lines._getlines()) == _ORDER
