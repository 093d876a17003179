"""How the datas of a run move with a slice: its feeds, then every clone and resampled feed. Engine thread only.

That is the middle of a turn of `Cerebro._runnext` (force, retry, rewind), with the feeds of the slice in place of all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from backtrader.utils.date import num2date

from dry_work.engine.quick_feed import PlainFeed, QuickFeed, can_be_quick
from dry_work.errors import ConfigError
from dry_work.feeds.base import KnownTime, LiveClone, LiveFeed
from dry_work.feeds.line_time import EPOCH, line_time
from dry_work.feeds.resamplers import flush_open, owes_bar
from dry_work.market.messages import Bar


class Movement:
    """Moves the datas of a run.

    Args:
        datas: of the Cerebro, none of which has a bar yet.

    Attributes:
        feeds: by symbol.
        stirred: datas that may have changed since `take_stirred`.
        time: of the last slice, as a line holds it.
        late_bars: bars that came behind their symbol's last one and were left out.

    Raises:
        ConfigError: a data is no live feed.
    """

    def __init__(self, datas: Iterable[Any]) -> None:
        self._datas = sorted(datas, key=lambda data: (data._timeframe, data._compression))
        self.feeds: dict[str, list[LiveFeed]] = {}
        for data in self._datas:
            if isinstance(data, LiveFeed):
                self.feeds.setdefault(data.symbol, []).append(data)
                data.engine_driven = True
            elif not isinstance(data, LiveClone):
                raise ConfigError(
                    f"{type(data).__name__} is no live feed: the live engine takes LiveFeed and its clones"
                )
        # A feed that is resampled in place gives a bar also when none of its own arrived, so it is always looked at.
        self._derived = [data for data in self._datas if isinstance(data, LiveClone) or data.resampling]
        self._held = [data._barstack for data in self._derived if data.resampling]  # bars that are complete
        self._rank = {id(data): rank for rank, data in enumerate(self._datas)}
        self.movers = {id(data): QuickFeed(data) if can_be_quick(data) else PlainFeed(data) for data in self._datas}
        self._quick = self._find_quick()
        self.stirred: dict[int, Any] = {}
        self.time = 0.0
        self.moments = (EPOCH, EPOCH)  # of the slice, in the zone of its first data and in UTC
        self.late_bars = 0
        self._newest_ns = 0  # end of the newest bar of the slice
        self._is_whole = True
        self._master: Any = None  # the data whose time is that of the slice
        self._known: Any = None  # the time up to which all bars are there
        self._known_moment = EPOCH

    def take_stirred(self) -> list[Any]:
        """Return the datas that may have changed since the last call."""
        stirred = list(self.stirred.values())
        self.stirred.clear()
        return stirred

    def move(self, bars: Iterable[Bar], counts: Counter[str], *, is_whole: bool) -> bool:
        """Move the feeds of a slice and what follows from them; tell whether any data has a new bar.

        Args:
            bars: of the slice.
            counts: is told of each bar, by symbol.
            is_whole: no bar of the slice's time is still to come. Without it a symbol that brought none may bring it
                late, so that what is resampled from it is known only up to the bar before.
        """
        if self._quick is not None:
            return self._move_quickly(self._quick, bars, counts)
        touched = self._offer(bars, counts)
        if not touched:
            return False
        if self._derived:
            merged = {id(data): data for data in (*touched, *self._derived)}
            datas = sorted(merged.values(), key=lambda data: self._rank[id(data)])
        else:
            datas = touched
        movers, results, times = self._ask(datas)
        if not any(results):
            return False  # all went into bars that are not complete
        # The slice's time is that of its newest bar. Late bars in it keep their own, earlier time.
        if not self._derived and all(results):
            slice_time = max(times)
            master = datas[times.index(slice_time)]
        else:
            masters = [
                (at, -rank) for rank, at in enumerate(times) if at is not None and not _is_resampled(datas[rank])
            ]
            if not masters:
                masters = [(at, -rank) for rank, at in enumerate(times) if at is not None]
            slice_time, rank = max(masters)
            master = datas[-rank]
        self._is_whole = is_whole
        self._set_time(master, slice_time)
        self._ask_again(datas, times)
        self._settle(datas, movers, times)
        return True

    def _find_quick(self) -> dict[str, list[QuickFeed]] | None:
        """Return what moves the feeds, by symbol; None unless each can be moved without a look at the others."""
        if self._derived:
            return None
        found: dict[str, list[QuickFeed]] = {}
        for data in self._datas:
            mover = self.movers[id(data)]
            if not isinstance(mover, QuickFeed):
                return None
            found.setdefault(data.symbol, []).append(mover)
        return found

    def _move_quickly(self, movers: dict[str, list[QuickFeed]], bars: Iterable[Bar], counts: Counter[str]) -> bool:
        """Do what `move` does where nothing follows from the feeds: all that is to do for a bar, then the next bar."""
        moved: list[str] = []
        newest, master = -math.inf, None
        stirred = self.stirred
        for bar in bars:
            symbol = bar.symbol
            for mover in movers.get(symbol, ()):
                if not mover.take(bar):
                    self.late_bars += 1
                    continue
                moved.append(symbol)
                data = mover.feed
                stirred[id(data)] = data
                if mover.time > newest:
                    newest, master = mover.time, data
        if master is None:
            return False
        counts.update(moved)
        self.time = newest
        self.moments = (master.num2date(newest), num2date(newest))
        return True

    def holds_bars(self) -> bool:
        """Tell whether bars are complete and not delivered."""
        return any(self._held)

    def move_on(self) -> bool:
        """Deliver bars of the slice that were completed and not delivered yet; tell whether there was one.

        A data takes one step in a turn. A bar on an edge can complete two longer ones: its own and an older one that
        nothing had closed before. The second is for one more turn at the same time.
        """
        return self.holds_bars() and self._deliver_held(line_time(self._newest_ns))

    def _deliver_held(self, newest: float) -> bool:
        # A data stands still while a clone of it has a bar to deliver, for a clone sees its newest bar only.
        datas = [data for data in self._derived if not owes_bar(data)]
        movers, _, times = self._ask(datas)
        moved = [(at, data) for at, data in zip(times, datas, strict=True) if at is not None and at <= newest]
        if moved:
            slice_time, master = max(moved, key=lambda each: each[0])
            if slice_time > self.time:  # nothing but resampled bars
                self._set_time(master, slice_time)
            self._ask_again(datas, times)
        self._settle(datas, movers, times)
        return bool(moved)

    def finish_sources(self) -> bool:
        """Complete the open bars of resampled feeds that have clones, before these complete theirs; tell as `move`.

        The last bar of a feed can complete two of a clone, so it is called until it tells of none.
        """
        for feeds in self.feeds.values():
            for feed in feeds:
                if feed._copies and feed.resampling and not feed.replaying:
                    flush_open(feed)
        return self.holds_bars() and self._deliver_held(math.inf)

    def finish(self) -> bool:
        """Deliver what resamplers still hold, as Backtrader does at the end of its data; tell whether they did."""
        for feeds in self.feeds.values():
            for feed in feeds:
                feed.finish()
        datas = self._datas
        last = datas[0]._last()
        for data in datas[1:]:
            last += data._last(datamaster=datas[0])
        self.stirred.update((id(data), data) for data in datas)
        return bool(last)

    def _offer(self, bars: Iterable[Bar], counts: Counter[str]) -> list[Any]:
        touched: list[Any] = []
        newest_ns = 0
        for bar in bars:
            for feed in self.feeds.get(bar.symbol, ()):
                if feed.offer(bar):
                    touched.append(feed)
                    counts[bar.symbol] += 1
                    newest_ns = max(newest_ns, bar.end_ns)
                else:
                    self.late_bars += 1
        self._newest_ns = newest_ns
        return touched

    def _ask(self, datas: list[Any]) -> tuple[list[QuickFeed | PlainFeed], list[Any], list[Any]]:
        """Ask datas for new bars; return what moves them, what they answered, and the times of new bars."""
        for data in datas:
            self.stirred[id(data)] = data
        movers = [self.movers[id(data)] for data in datas]
        results = [mover.move() for mover in movers]
        return movers, results, [mover.time if got else None for mover, got in zip(movers, results, strict=True)]

    def _set_time(self, master: Any, time: float) -> None:
        self.time = time
        self.moments = (master.num2date(time), num2date(time))
        self._master = master
        self._known = master if self._is_whole else KnownTime(master, time)
        self._known_moment = self.moments[1] if self._is_whole else num2date(self._known.datetime[0])

    def _ask_again(self, datas: list[Any], times: list[Any]) -> None:
        """Let the resamplers of datas that gave nothing see the time, and ask those datas again."""
        for index, data in enumerate(datas):
            if times[index] is None:
                data.market_time = self._known_moment
                data._check(forcedata=self._known)
                if data.next(datamaster=self._master, ticks=False):
                    times[index] = data.datetime[0]

    def _settle(self, datas: list[Any], movers: list[QuickFeed | PlainFeed], times: list[Any]) -> None:
        """Take back what is ahead of the slice, and fill the tick attributes of what is there."""
        for data, mover, at in zip(datas, movers, times, strict=True):
            if at is None:
                continue
            if at > self.time:
                data.rewind()
            elif not data.replaying:
                mover.fill_ticks()


def _is_resampled(data: Any) -> bool:
    return bool(data.resampling and not data.replaying)
