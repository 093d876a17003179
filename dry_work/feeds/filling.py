"""Fill from history what a start or an outage left out, before the next slice. Engine thread, but `start`, `stop`."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

import structlog

from dry_work.clock import MINUTE_NS
from dry_work.errors import DryWorkError
from dry_work.market.completeness import MarketHours
from dry_work.market.messages import Slice
from dry_work.market.symbols import is_crypto, is_option
from dry_work.ports import MarketSource, SourceEvent, SourceStatus
from dry_work.wakeup import Wakeup

_LOSSES = ("gaps", "publisher_restarts", "missing_watermarks", "recreated_subscriptions")

_log = structlog.get_logger(__name__)


class FillingSource:
    """A market source whose first slice after a start, an outage or a loss of messages follows what was missed.

    What history has between the last slice and that one comes as slices that are marked as filled. A history that
    does not answer is told, and the slice goes without.

    Args:
        source: whose events are passed on; it counts messages that were lost.
        symbols: those of the run.
        fetch: returns slices of bars of symbols that end after one time and not after another, rising.
        since_ns: end of the last bar before the start, such as of the warm-up; 0: nothing is filled at the start.
        hours: nothing is asked for while all markets were closed.

    Counters, beside those of `source`: `filled_bars`, `fill_requests`, `fill_failures`.
    """

    def __init__(
        self,
        source: MarketSource,
        *,
        symbols: Sequence[str],
        fetch: Callable[[Sequence[str], int, int], list[Slice]],
        since_ns: int = 0,
        hours: MarketHours | None = None,
        length_ns: int = MINUTE_NS,
    ) -> None:
        self._source = source
        self._symbols = tuple(symbols)
        # End of the last bar of each option beside other symbols. It may be a quarter of an hour late: what it comes
        # with is not the end of what the others have missed.
        self._slow = {symbol: 0 for symbol in self._symbols if is_option(symbol)}
        if len(self._slow) == len(self._symbols):
            self._slow.clear()
        self._fetch = fetch
        self._hours = hours or MarketHours()
        self._length_ns = length_ns
        self._last_end_ns = since_ns
        self._ready: deque[Slice] = deque()
        self._is_behind = True
        self._losses = 0
        self._counts: Counter[str] = Counter()

    def start(self, wakeup: Wakeup) -> None:
        """Begin to receive."""
        self._source.start(wakeup)

    def stop(self, timeout_s: float = 5.0) -> None:
        """End, and leave no thread behind. May be called twice."""
        self._source.stop(timeout_s)

    def take(self) -> SourceEvent | None:
        """Return the next event in order, or None when there is nothing now."""
        if self._ready:
            return self._ready.popleft()
        event = self._source.take()
        if isinstance(event, SourceStatus) and event.connected and not event.symbol:
            self._is_behind = True
        if not isinstance(event, Slice):
            return event
        losses = self._count_losses()
        self._is_behind = self._is_behind or losses != self._losses
        self._losses = losses
        ends = [bar.end_ns for bar in event.bars if bar.symbol not in self._slow]
        is_prompt = bool(ends) or not event.bars
        if self._is_behind:
            self._ready.extend(self._fill(event, ends or [bar.end_ns for bar in event.bars]))
            self._is_behind = not is_prompt
        if is_prompt:
            self._last_end_ns = max(self._last_end_ns, event.end_ns)
        for bar in event.bars if self._slow else ():
            if bar.symbol in self._slow:
                self._slow[bar.symbol] = max(self._slow[bar.symbol], bar.end_ns)
        self._ready.append(event)
        return self._ready.popleft()

    def wait_s(self) -> float | None:
        """Return the seconds after which `take` may have something without a wake-up; None: only after one."""
        return 0.0 if self._ready else self._source.wait_s()

    def counters(self) -> Mapping[str, int]:
        """Return the source's counters and those of filling; those that are zero are left out."""
        return {**self._source.counters(), **{name: count for name, count in self._counts.items() if count}}

    def _count_losses(self) -> int:
        counters = self._source.counters()
        return sum(counters.get(name, 0) for name in _LOSSES)

    def _fill(self, piece: Slice, ends: Sequence[int]) -> list[Slice]:
        # Bars that the slice brings itself, also late ones, are not taken from history.
        start_ns = self._last_end_ns
        end_ns = min((end_ns for end_ns in ends if end_ns > start_ns), default=piece.end_ns) - self._length_ns
        if not start_ns or end_ns <= start_ns or not self._was_open(start_ns, end_ns):
            return []
        self._counts["fill_requests"] += 1
        try:
            found = self._fetch(self._symbols, start_ns, end_ns)
        except DryWorkError as error:
            self._counts["fill_failures"] += 1
            _log.warning("what was missed is not filled", error=str(error), minutes=(end_ns - start_ns) // MINUTE_NS)
            return []
        self._last_end_ns = end_ns
        slices = [each for each in map(self._mark, found) if each.bars]
        bars = sum(len(each.bars) for each in slices)
        self._counts["filled_bars"] += bars
        _log.info("filled from history", bars=bars, minutes=(end_ns - start_ns) // MINUTE_NS)
        return slices

    def _mark(self, piece: Slice) -> Slice:
        """Return a slice of history as filled, without what has come already."""
        bars = tuple(bar for bar in piece.bars if bar.end_ns > self._slow.get(bar.symbol, 0))
        return Slice(end_ns=piece.end_ns, bars=bars, filled=True)

    def _was_open(self, start_ns: int, end_ns: int) -> bool:
        return any(
            self._hours.count_bars(crypto=crypto, start_ns=start_ns, end_ns=end_ns, length_ns=self._length_ns)
            for crypto in {is_crypto(symbol) for symbol in self._symbols}
        )
