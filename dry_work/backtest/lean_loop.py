"""The loop over bars of a vector-mode run: Backtrader's `_runonce` with what nobody can see left out.

Time stamps are merged once, lines move on shared indices, the broker's `next` is left out where there is nothing for
it to do, and analyzers are called where they have something of their own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import backtrader as bt
import numpy as np
from backtrader.feed import AbstractDataBase
from backtrader.indicator import Indicator
from backtrader.linebuffer import LineActions, LineBuffer
from backtrader.lineiterator import LineIterator
from backtrader.lineseries import LineSeries
from numpy.typing import NDArray

from dry_work.backtest import lean_account
from dry_work.backtest.lean_lines import Cursor, Shortcuts, Ticks, can_share, share, unshare

Floats = NDArray[np.float64]
Step = Callable[[float, Sequence[int]], None]

_CHUNK_STEPS = 4096

_FEED_METHODS = ("advance", "advance_peek", "_tick_fill", "_tick_nullify", "__len__", "buflen", "rewind", "__getattr__")
_STRATEGY_METHODS = (
    *("_oncepost", "_oncepost_open", "_getminperstatus", "_next_analyzers"),
    *("_next_observers", "clear", "reset", "forward", "advance", "__len__", "__getattr__", "_once"),
)
_CEREBRO_METHODS = ("_runonce", "_brokernotify", "_check_timers", "_next_writers")


def find_obstacle(cerebro: bt.Cerebro, kind: type[bt.Cerebro], strategies: Sequence[Any]) -> str:
    """Return why Backtrader's own loop must run, '' when the lean one gives the same."""
    for name in _CEREBRO_METHODS:
        if getattr(type(cerebro), name) is not getattr(kind, name) or name in cerebro.__dict__:
            return f"{type(cerebro).__name__} overrides {name}"
    for number, feed in enumerate(cerebro.datas):
        title = f"feed {feed._name or type(feed).__name__}"
        if any(feed is other for other in cerebro.datas[:number]):
            return f"{title} is there twice"
        for name in _FEED_METHODS:
            if getattr(type(feed), name, None) is not getattr(AbstractDataBase, name, None) or name in feed.__dict__:
                return f"{title} overrides {name}"
        if not all(can_share(line) for line in feed.lines.lines):
            return f"{title} has lines of its own kind"
        times = _Times(feed).all()
        if not np.isfinite(times).all() or np.any(times[1:] <= times[:-1]):
            return f"{title} has times that do not rise"
    for strategy in strategies:
        for name in _STRATEGY_METHODS:
            if getattr(type(strategy), name) is not getattr(bt.Strategy, name) or name in strategy.__dict__:
                return f"strategy {type(strategy).__name__} overrides {name}"
        if strategy._oldsync:
            return f"strategy {type(strategy).__name__} uses the old clock"
        if not all(can_share(line) and not line.bindings for line in strategy.lines.lines):
            return f"strategy {type(strategy).__name__} has lines of its own kind"
    return ""


class _Times:
    """The time stamps of a feed. Nobody keeps a view of them: an array that is viewed cannot grow."""

    def __init__(self, feed: Any) -> None:
        self._array = feed.lines.datetime.array
        self.size = feed.buflen()

    def all(self) -> Floats:
        return np.frombuffer(self._array, dtype=np.float64)[: self.size]


def run_loop(cerebro: bt.Cerebro, strategies: Sequence[Any]) -> None:
    """Run the strategies over the feeds, whose indicators are computed, as `_runonce` does."""
    loop = _Loop(cerebro, strategies)
    try:
        loop.run()
    finally:
        loop.restore()


class _Loop:
    def __init__(self, cerebro: bt.Cerebro, strategies: Sequence[Any]) -> None:
        self._cerebro = cerebro
        self._strategies = strategies
        self._shared: list[LineBuffer] = []
        self._shortcuts = Shortcuts()
        self._clock = Cursor()
        self._cursors: list[Cursor] = []
        self._group_of: dict[int, int] = {}  # id of a line → group of feeds with the same times
        self._times: list[_Times] = []
        self._placed: list[tuple[list[Any], list[list[LineActions]], list[Any]]] = []
        self._group_feeds()
        self._ticks = [Ticks(feed) for feed in cerebro.datas]
        broker = cerebro._broker
        self._lazy = (
            lean_account.is_known(broker)
            and lean_account.is_lazy(broker)
            and not cerebro._timerscheat
            and not cerebro.p.cheat_on_open
            and all(
                np.isfinite(np.frombuffer(feed.lines.close.array, dtype=np.float64)).all() for feed in cerebro.datas
            )
        )
        self._steps = [self._make_step(strategy) for strategy in strategies]
        if self._lazy:
            lean_account.take_over(broker, self._clock, self._group_of)
        for cursor in self._cursors:
            cursor.before_write = self._stop_reading_late

    def _group_feeds(self) -> None:
        for feed in self._cerebro.datas:
            times = _Times(feed)
            equal = (number for number, known in enumerate(self._times) if np.array_equal(known.all(), times.all()))
            group = next(equal, len(self._times))
            if group == len(self._times):
                self._times.append(times)
                self._cursors.append(Cursor())
            for line in feed.lines.lines:
                self._share(line, self._cursors[group])
                self._group_of[id(line)] = group
            self._shortcuts.add(feed)

    def _share(self, line: LineBuffer, cursor: Cursor) -> None:
        share(line, cursor)
        self._shared.append(line)

    def _stop_reading_late(self) -> None:
        """Read all that is only read when it is asked for, at every bar from now on: a feed's lines are changed."""
        for cursor in self._cursors:
            cursor.before_write = None
        for feed, ticks in zip(self._cerebro.datas, self._ticks, strict=True):
            ticks.restore()
            self._cursors[self._group_of[id(feed.lines.lines[0])]].loose.append(ticks.renew)
        if self._lazy:
            self._cerebro._broker.force("a feed's lines are changed")
        for indicators, actions, others in self._placed:  # these may come to stand elsewhere than their feed
            for item in indicators:
                for line in () if isinstance(item, LineActions) else item.lines.lines:
                    unshare(line)
            for group in actions:
                group.clear()
            others[:] = indicators

    def restore(self) -> None:
        """Give every object back its own form, as it stands."""
        self._shortcuts.remove()
        for ticks in self._ticks:
            ticks.restore()
        for line in self._shared:
            unshare(line)
        if self._lazy:
            lean_account.give_back(self._cerebro._broker)
        for strategy in self._strategies:
            if len(strategy):
                strategy._getminperstatus()

    def run(self) -> None:
        """Step through the merged times of all feeds."""
        cerebro = self._cerebro
        strategies = self._strategies
        clock, cursors, steps = self._clock, self._cursors, self._steps
        timers, cheating = cerebro._timers, cerebro._timerscheat
        on_open = cerebro.p.cheat_on_open
        writers = cerebro.runwriters
        broker = cerebro._broker
        pending, submitted, activated, added, notices, forced = (
            (
                broker.pending,
                broker.submitted,
                broker._toactivate,
                broker._cash_addition,
                broker.notifs,
                broker.lean_forced,
            )
            if self._lazy
            else ((), (), (), (), (), (True,))
        )
        for time, groups in _merge(self._times):
            for group in groups:
                cursor = cursors[group]
                cursor.index += 1
                if cursor.loose:
                    _advance_loose(cursor)
            if cheating:
                cerebro._check_timers(strategies, time, cheat=True)
            if on_open:
                for strategy in strategies:
                    strategy._oncepost_open()
                    if cerebro._event_stop:
                        return
            if pending or submitted or notices or activated or added or forced:
                self._kick_broker(groups)
                if cerebro._event_stop:
                    return
            else:
                clock.index += 1
            if timers:
                cerebro._check_timers(strategies, time, cheat=False)
            for step in steps:
                step(time, groups)
                if cerebro._event_stop:
                    return
                if writers:
                    cerebro._next_writers(strategies)

    def _kick_broker(self, groups: Sequence[int]) -> None:
        """Run Backtrader's `next` of the broker and deliver its notifications."""
        cerebro = self._cerebro
        broker = cerebro._broker
        if not self._lazy:
            cerebro._brokernotify()
            return
        broker.run_next(groups)
        while True:
            order = broker.get_notification()
            if order is None:
                break
            owner = order.owner
            if owner is None:
                owner = cerebro.runningstrats[0]
            owner._addnotification(order, quicknotify=cerebro.p.quicknotify)

    def _make_step(self, strategy: Any) -> Step:
        """Return what `_oncepost` does for one strategy."""
        cursors, actions, others = self._place_indicators(strategy)
        own = Cursor()
        for line in strategy.lines.lines:
            self._share(line, own)
        self._shortcuts.add(strategy)
        stamp = strategy.lines.datetime.array.append
        blank = [line.array.append for line in strategy.lines.lines if line is not strategy.lines.datetime]
        cerebro, broker = self._cerebro, self._cerebro._broker
        listeners = [item for item in (*strategy.analyzers, *strategy._slave_analyzers) if _listens(item)]
        notified = not _is_own(strategy, bt.Strategy, ("_notify", "notify_cashvalue", "notify_fund"))
        analyzers = [item for item in strategy.analyzers if _acts(item)]
        observers = strategy._lineiterators[LineIterator.ObsType]
        keeps_status = cerebro.p.cheat_on_open
        started = False

        def step(time: float, groups: Sequence[int]) -> None:
            nonlocal started
            for group in groups:
                cursor = cursors[group]
                cursor.index += 1
                if cursor.loose:
                    _advance_loose(cursor)
                for action in actions[group]:
                    action._idx += 1
                    action.lencount += 1
            for item in others:
                if len(item._clock) > len(item):
                    item.advance()
            own.index += 1
            if own.loose:
                _advance_loose(own)
            for append in blank:
                append(math.nan)
            stamp(time)
            busy = strategy._orderspending or strategy._tradespending
            if busy or notified:
                strategy._notify()
            elif listeners:
                cash, value = broker.getcash(), broker.getvalue()
                fundvalue, shares = broker.fundvalue, broker.fundshares
                for analyzer in listeners:
                    analyzer._notify_cashvalue(cash, value)
                    analyzer._notify_fund(cash, value, fundvalue, shares)
            if started:
                if keeps_status:
                    strategy._getminperstatus()
                strategy.next()
                for analyzer in analyzers:
                    analyzer._next()
                if observers:
                    strategy._next_observers(-1, once=True)
            else:
                status = strategy._getminperstatus()
                if status > 0:
                    strategy.prenext()
                elif status == 0:
                    strategy.nextstart()
                else:
                    started = True
                    strategy.next()
                strategy._next_analyzers(status, once=True)
                strategy._next_observers(status, once=True)
            if strategy._orderspending or strategy._tradespending:
                strategy.clear()

        return step

    def _place_indicators(self, strategy: Any) -> tuple[list[Cursor], list[list[LineActions]], list[Any]]:
        """Return the cursors of indicators and the line operations by group of feeds, and the indicators that are asked
        at every bar whether they are behind their clock."""
        indicators = strategy._lineiterators[LineIterator.IndType]
        place = {id(_first_line(item)): number for number, item in enumerate(indicators)}
        cursors = [Cursor() for _ in self._times]
        actions: list[list[LineActions]] = [[] for _ in self._times]
        groups = dict(self._group_of)
        moved: list[tuple[Any, int]] = []
        others: list[Any] = []
        for number, item in enumerate(indicators):
            clock = id(_clock_line(item))
            group = groups.get(clock)
            if group is not None and _is_plain(item):
                groups[id(_first_line(item))] = group
                moved.append((item, group))
            elif place.get(clock, -1) > number:
                return cursors, actions, list(indicators)  # it follows its clock by one bar: keep Backtrader's order
            else:
                others.append(item)
        for item, group in moved:
            if isinstance(item, LineActions):
                actions[group].append(item)
            else:
                for line in item.lines.lines:
                    self._share(line, cursors[group])
                self._shortcuts.add(item)
        self._placed.append((indicators, actions, others))
        return cursors, actions, others


def _first_line(item: Any) -> Any:
    return item if isinstance(item, LineBuffer) else item.lines.lines[0] if item.lines.lines else None


def _clock_line(item: Any) -> Any:
    clock = item._clock
    return _first_line(clock) if isinstance(clock, LineBuffer | LineSeries) else None


def _is_plain(item: Any) -> bool:
    kind = type(item)
    if isinstance(item, LineActions):
        return (
            kind.advance is LineBuffer.advance
            and kind.__len__ is LineBuffer.__len__
            and item.mode == LineBuffer.UnBounded
            and item._idx == -1
            and item.lencount == 0
        )
    return (
        isinstance(item, Indicator)
        and kind.advance is Indicator.advance
        and kind.__len__ is LineSeries.__len__
        and all(can_share(line) for line in item.lines.lines)
    )


def _advance_loose(cursor: Cursor) -> None:
    for follow in cursor.loose:
        follow()


def _is_own(item: Any, kind: type, names: Sequence[str]) -> bool:
    """Say whether an object has nothing but `kind`'s methods of these names."""
    return not any(name in item.__dict__ or getattr(type(item), name) is not getattr(kind, name) for name in names)


def _listens(analyzer: Any) -> bool:
    names = ("notify_cashvalue", "notify_fund", "_notify_cashvalue", "_notify_fund")
    return not _is_own(analyzer, bt.Analyzer, names) or any(map(_listens, analyzer._children))


def _acts(analyzer: Any) -> bool:
    return not _is_own(analyzer, bt.Analyzer, ("next", "_next")) or any(map(_acts, analyzer._children))


def _merge(times: Sequence[_Times]) -> Iterator[tuple[float, Sequence[int]]]:
    """Yield every time there is, rising, with the numbers of the groups that have it."""
    if len(times) == 1:
        for low in range(0, times[0].size, _CHUNK_STEPS):
            yield from zip(times[0].all()[low : low + _CHUNK_STEPS].tolist(), itertools.repeat((0,)), strict=False)
        return
    places = [0] * len(times)
    while True:
        # A piece of the steps: up to the earliest of the times that end the groups' next pieces.
        ends = [
            float(group.all()[min(place + _CHUNK_STEPS, group.size) - 1])
            for group, place in zip(times, places, strict=True)
            if place < group.size
        ]
        if not ends:
            return
        pieces = []
        for number, group in enumerate(times):
            low = places[number]
            places[number] = high = low + int(np.searchsorted(group.all()[low:], min(ends), side="right"))
            pieces.append(group.all()[low:high])
        steps, which = np.unique(np.concatenate(pieces), return_inverse=True)
        owners = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
        groups = owners[np.argsort(which, kind="stable")].tolist()
        counts = np.bincount(which, minlength=len(steps)).tolist()
        del pieces
        low = 0
        for time, count in zip(steps.tolist(), counts, strict=True):
            yield time, groups[low : low + count]
            low += count
