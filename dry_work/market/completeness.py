"""What came of what was to come: bars expected, arrived, late, filled and missing, by symbol and minute. Pure.

A bar is expected for each length of a bar in which its market is open and its symbol is not halted: a share's in the
regular hours of its exchange (half days and holidays are known), a crypto pair's always. A venue sends no bar for a
minute without a trade, so a bar that is missing was lost, or nothing was traded. Most contracts have no trade in most
minutes: of options no bar is expected but those that come.

`CompletenessTally.note` costs a call and one step a bar. What was noted is judged when somebody asks, or when much of
it waits, since the exchange's calendar takes a second to load.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from dry_work.clock import MINUTE_NS
from dry_work.errors import ConfigError
from dry_work.market.calendar import SessionCalendar, shared_calendar
from dry_work.market.messages import BarNote, Slice
from dry_work.market.symbols import is_crypto, is_option

MINUTES_KEPT = 512  # of which `minute` knows
_MOST_SLICES = 4096  # that wait to be judged
_MOST_BARS = 100_000
_HALTS_KEPT = 64  # of a symbol, by their times; older ones are a sum


class Arrival(StrEnum):
    """How the bar of one symbol and minute came."""

    ARRIVED = "arrived"  # with its slice
    LATE = "late"  # after its slice, under its own time
    FILLED = "filled"  # from history
    MISSING = "missing"  # not, although the market was open
    CLOSED = "closed"  # not, and the market was closed
    HALTED = "halted"  # not, and the symbol was halted
    QUIET = "quiet"  # not, as usual with an option


class Completeness(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of bars. `expected` is the sum of `arrived`, `late`, `filled` and `missing`."""

    expected: int = 0
    arrived: int = 0
    late: int = 0
    filled: int = 0
    missing: int = 0
    outside: int = 0  # came while the market was closed, for example in extended hours, or in a halt; not expected
    revised: int = 0  # corrections of bars that were there already
    halted: int = 0  # not expected, since the symbol was halted

    @property
    def share(self) -> float:
        """The part of the expected bars that is there, 1.0 when none was expected."""
        return 1.0 if not self.expected else (self.expected - self.missing) / self.expected


def add_up(parts: Sequence[Completeness]) -> Completeness:
    """Return the sums of all counts."""
    return Completeness(**{name: sum(getattr(part, name) for part in parts) for name in Completeness.__struct_fields__})


class MarketHours:
    """When a symbol's market is open. A time that the calendar does not know counts as closed.

    Args:
        calendar: of shares and options.
    """

    def __init__(self, calendar: SessionCalendar | None = None) -> None:
        self._calendar = calendar or shared_calendar()

    @property
    def is_loaded(self) -> bool:
        """Whether a question is answered at once; the first one loads the calendar, which takes about a second."""
        return self._calendar.is_loaded

    def load(self) -> None:
        """Load the calendar."""
        self._calendar.load()

    def is_open(self, symbol: str, ns: int) -> bool:
        """Tell whether the market of `symbol` is open at `ns`."""
        if is_crypto(symbol):
            return True
        try:
            return self._calendar.is_open(ns)
        except ConfigError:
            return False

    def count_bars(self, *, crypto: bool, start_ns: int, end_ns: int, length_ns: int = MINUTE_NS) -> int:
        """Return how many bars of `length_ns` start from `start_ns` on, before `end_ns`, while the market is open."""
        if end_ns <= start_ns:
            return 0
        if crypto:
            return -(-(end_ns - start_ns) // length_ns)
        count, at_ns = 0, start_ns
        try:
            while at_ns < end_ns:
                session = self._calendar.session_at(at_ns)
                if session is None:
                    at_ns += -(-(self._calendar.next_open_ns(at_ns) - at_ns) // length_ns) * length_ns
                    continue
                bars = -(-(min(session.close_ns, end_ns) - at_ns) // length_ns)
                count += bars
                at_ns += bars * length_ns
        except ConfigError:
            return count
        return count


class _Halt:
    """A time in which a symbol was not traded, in whole bars."""

    __slots__ = ("end_ns", "start_ns")

    def __init__(self, start_ns: int) -> None:
        self.start_ns = start_ns
        self.end_ns: int | None = None  # None: it lasts


class CompletenessTally:
    """Counts bars of some symbols from the first slice on.

    Args:
        symbols: those that are counted; bars of others are left out.
        hours: when their markets are open.
        length_ns: of a bar.
        loads_hours: now, and not when something is judged first: where a pause of a second would come in the way.
    """

    def __init__(
        self,
        symbols: Iterable[str],
        *,
        hours: MarketHours | None = None,
        length_ns: int = MINUTE_NS,
        loads_hours: bool = False,
    ) -> None:
        self.symbols = tuple(dict.fromkeys(symbols))
        self._hours = hours or MarketHours()
        self._length_ns = length_ns
        self._is_crypto = {symbol: is_crypto(symbol) for symbol in self.symbols}
        self._quiet = frozenset(filter(is_option, self.symbols))  # traded now and then: no bar of them is expected
        self._counts: dict[str, Counter[str]] = {symbol: Counter() for symbol in self.symbols}
        self._expected = {False: 0, True: 0}  # by whether it is crypto
        self._start_ns = 0  # start of the first bar that is expected
        self._end_ns = 0
        self._minutes: dict[int, dict[str, Arrival]] = {}  # by end, in order of noting
        self._kept_ends: deque[int] = deque()
        self._own = {symbol: symbol for symbol in self.symbols}
        # End of the slice (0: none), whether it is of history, symbols of the bars that end with it, and the others.
        # The names are ours and the end is shared: a bar that waits costs a few bytes, not the texts of its message.
        self._waiting: list[tuple[int, bool, tuple[str, ...], tuple[tuple[str, int], ...]]] = []
        self._waiting_bars = 0
        self._halts: dict[str, list[_Halt]] = {}
        self._older_halted: Counter[str] = Counter()  # bars of halts that are not kept any more
        if loads_hours and not all(self._is_crypto.values()):
            self._hours.load()

    def note(self, piece: Slice) -> None:
        """Count a slice."""
        end_ns, own = piece.end_ns, self._own
        names: list[str] = []
        others: list[tuple[str, int]] = []
        for bar in piece.bars:
            name = own.get(bar.symbol)
            if name is not None:
                bar_end_ns = bar.ts_event_ns + bar.length_ns
                if bar_end_ns == end_ns:
                    names.append(name)
                else:
                    others.append((name, bar_end_ns))
        self._waiting.append((end_ns, piece.filled, tuple(names), tuple(others)))
        self._waiting_bars += len(names) + len(others)
        if len(self._waiting) > _MOST_SLICES or self._waiting_bars > _MOST_BARS:
            self._judge()

    def note_undelivered(self, note: BarNote) -> None:
        """Count a bar that came and is in no slice."""
        name = self._own.get(note.bar.symbol)
        if name is None:
            return
        if note.is_revision:
            self._counts[name]["revised"] += 1
        elif self._end_ns or self._waiting:
            self._waiting.append((0, False, (), ((name, note.bar.end_ns),)))
            self._waiting_bars += 1

    def note_halt(self, symbol: str, at_ns: int) -> None:
        """Expect no bar of `symbol` that begins from `at_ns` on, until its trading is resumed."""
        if symbol not in self._own:
            return
        halts = self._halts.setdefault(symbol, [])
        if not halts or halts[-1].end_ns is not None:
            halts.append(_Halt(-(-at_ns // self._length_ns) * self._length_ns))

    def note_resumption(self, symbol: str, at_ns: int) -> None:
        """Expect the bars of `symbol` again, from that which holds `at_ns` on."""
        halts = self._halts.get(symbol)
        if not halts or halts[-1].end_ns is not None:
            return
        halts[-1].end_ns = at_ns // self._length_ns * self._length_ns
        if halts[-1].end_ns <= halts[-1].start_ns:
            halts.pop()  # no whole bar long
        elif len(halts) > _HALTS_KEPT:
            self._judge()
            self._older_halted[symbol] += self._count_halted(symbol, halts.pop(0))

    def of(self, symbol: str) -> Completeness:
        """Return the counts of a symbol, up to the last slice.

        Raises:
            KeyError: it is none of `symbols`.
        """
        self._judge()
        counts = self._counts[symbol]
        in_hours = self._expected[self._is_crypto[symbol]]
        there = {kind: counts[kind] for kind in (Arrival.ARRIVED, Arrival.LATE, Arrival.FILLED)}
        halted = self._older_halted[symbol] + sum(
            self._count_halted(symbol, halt) for halt in self._halts.get(symbol, ())
        )
        # The word of a halt may come after a bar of that time was counted.
        expected = max(in_hours - halted, sum(there.values()))
        if symbol in self._quiet:
            in_hours = expected = sum(there.values())
        return Completeness(
            expected=expected,
            **{kind.value: count for kind, count in there.items()},
            missing=expected - sum(there.values()),
            outside=counts["outside"],
            revised=counts["revised"],
            halted=in_hours - expected,
        )

    def total(self) -> Completeness:
        """Return the counts of all symbols together."""
        return add_up([self.of(symbol) for symbol in self.symbols])

    def minute(self, symbol: str, end_ns: int) -> Arrival | None:
        """Return what became of the bar of `symbol` that ends at `end_ns`.

        None: before the first slice, after the last one, or longer ago than `MINUTES_KEPT` minutes with a bar.
        """
        self._judge()
        start_ns = end_ns - self._length_ns
        if start_ns < self._start_ns or end_ns > self._end_ns:
            return None
        found = self._minutes.get(end_ns, {}).get(symbol)
        if found is not None:
            return found
        if len(self._kept_ends) >= MINUTES_KEPT and end_ns < self._kept_ends[0]:
            return None
        if not self._hours.is_open(symbol, start_ns):
            return Arrival.CLOSED
        if self._is_halted(symbol, start_ns):
            return Arrival.HALTED
        return Arrival.QUIET if symbol in self._quiet else Arrival.MISSING

    def _is_halted(self, symbol: str, start_ns: int) -> bool:
        return any(
            halt.start_ns <= start_ns and (halt.end_ns is None or start_ns < halt.end_ns)
            for halt in self._halts.get(symbol, ())
        )

    def _count_halted(self, symbol: str, halt: _Halt) -> int:
        end_ns = self._end_ns if halt.end_ns is None else min(halt.end_ns, self._end_ns)
        return self._hours.count_bars(
            crypto=self._is_crypto[symbol],
            start_ns=max(halt.start_ns, self._start_ns),
            end_ns=end_ns,
            length_ns=self._length_ns,
        )

    def _judge(self) -> None:
        waiting, self._waiting, self._waiting_bars = self._waiting, [], 0
        for end_ns, filled, names, others in waiting:
            if end_ns:
                self._advance(end_ns)
            for name, late_ns in others:
                self._count((name,), late_ns, end_ns or late_ns + 1, filled=filled)
            self._count(names, end_ns, end_ns, filled=filled)

    def _advance(self, end_ns: int) -> None:
        if not self._end_ns:
            self._start_ns = self._end_ns = end_ns - self._length_ns
        if end_ns <= self._end_ns:
            return
        for crypto in set(self._is_crypto.values()):
            self._expected[crypto] += self._hours.count_bars(
                crypto=crypto, start_ns=self._end_ns, end_ns=end_ns, length_ns=self._length_ns
            )
        self._end_ns = end_ns

    def _count(self, symbols: tuple[str, ...], bar_end_ns: int, slice_end_ns: int, *, filled: bool) -> None:
        start_ns = bar_end_ns - self._length_ns
        if start_ns < self._start_ns or not symbols:
            return  # of before the count began
        minute = self._minutes.get(bar_end_ns)
        if minute is None:
            minute = self._minutes[bar_end_ns] = {}
            self._kept_ends.append(bar_end_ns)
            if len(self._kept_ends) > MINUTES_KEPT:
                del self._minutes[self._kept_ends.popleft()]
        kind = Arrival.FILLED if filled else Arrival.LATE if bar_end_ns < slice_end_ns else Arrival.ARRIVED
        is_open: dict[bool, bool] = {}  # by whether it is crypto: asked of the calendar once
        for symbol in symbols:
            if symbol in minute:
                continue
            minute[symbol] = kind
            crypto = self._is_crypto[symbol]
            if crypto not in is_open:
                is_open[crypto] = self._hours.is_open(symbol, start_ns)
            is_expected = is_open[crypto] and not (symbol in self._halts and self._is_halted(symbol, start_ns))
            self._counts[symbol][kind if is_expected else "outside"] += 1


class SymbolCompleteness:
    """What a strategy reads as `data.completeness`: the counts of its symbol, as they are at the time of reading."""

    def __init__(self, tally: CompletenessTally, symbol: str) -> None:
        self._tally = tally
        self.symbol = symbol

    @property
    def counts(self) -> Completeness:
        """The counts from the first slice to the last one."""
        return self._tally.of(self.symbol)

    def minute(self, end_ns: int) -> Arrival | None:
        """Return what became of the bar that ends at `end_ns`, None when that is not known."""
        return self._tally.minute(self.symbol, end_ns)
