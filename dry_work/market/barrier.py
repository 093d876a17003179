"""The bar barrier: bars of one end time become one slice. Pure, one thread.

`BarBarrier` collects bars and watermarks, `SliceAssembler` puts sequencing and the rules for bars before it. Times are
passed in, in nanoseconds of any clock that does not go back. After messages have been given, `take` until it returns
None; when nothing more is at hand, give the time to `expire` and `take` again. So a deadline that passed while
messages were waiting to be given does no harm.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence

from dry_work.clock import MINUTE_NS, SECOND_NS
from dry_work.market.messages import (
    Bar,
    BarBatch,
    BarNote,
    Envelope,
    News,
    PriceBands,
    Slice,
    TradingStatus,
    Watermark,
)
from dry_work.market.sequencing import BarPolicy, Sequencer, Verdict, merge_counts

DEFAULT_GRACE_NS = 5 * SECOND_NS
OtherEvent = News | TradingStatus | PriceBands | BarNote  # what goes past the barrier
_TIMES_COUNTED = 64


class _Pending:
    """Bars of one end time."""

    def __init__(self, now_ns: int) -> None:
        self.first_ns = now_ns  # arrival of the first bar
        self.latest_ns = now_ns  # arrival of the latest bar
        self.bars: dict[str, Bar] = {}


class _Marks:
    """Watermarks of one slice."""

    def __init__(self, now_ns: int) -> None:
        self.first_ns = now_ns
        self.by_topic: dict[str, Watermark] = {}
        self.waiting: set[str] = set()  # topics whose bars may come after the watermark


class BarBarrier:
    """Releases slices of bars by rising end time.

    **With watermarks** a slice is released when each topic has sent its watermark and the bars it speaks of. When one
    of them is missing for `grace_ns` after the slice's first watermark, the slice goes without, and that is counted.
    A watermark without wanted bars gives a slice without bars. A bar whose watermark does not come at all is
    released after `grace_ns`, in a slice without a number.

    **Without watermarks** a slice is released

    - at once when every wanted symbol has a bar of that time or a later one;
    - `linger_ns` after its latest bar, when the symbols without a bar have been silent for `silent_after` slices:
      nobody waits for those until they come back;
    - `grace_ns` after its first bar in any case.

    With `watermarks` None the barrier finds out: the first watermark that comes says that there are some; until then
    slices wait their full grace; a grace period without any watermark says that there are none. A watermark that
    comes later still counts.

    A bar that comes after its slice goes with the next slice, under its own time. If none follows within a bar's
    length and the grace, it goes by itself. If a symbol would have two bars in a slice, all late bars go before
    it, in slices of their own by rising time.

    Args:
        symbols: wanted symbols; slices have their bars in this order. Bars of others are counted and left out.
        topics: topics that are to send watermarks.
        length_ns: length of a bar.
        watermarks: whether there are watermarks at the start; None: find out.
        drops_late: leave bars that come after their slice out; `take_dropped` returns them.

    Counters: `slices`, `unwanted_bars`, `late_bars`, `dropped_late_bars` (of those), `grace_releases` (slices that
    waited in vain, by the rules without watermarks), `watermark_mismatches` (slices that went
    without all the bars that their watermarks name), `missing_watermarks`, `stale_watermarks` (repeated, of an earlier
    slice, or of a foreign topic).
    """

    def __init__(
        self,
        *,
        symbols: Sequence[str],
        topics: Collection[str],
        length_ns: int = MINUTE_NS,
        grace_ns: int = DEFAULT_GRACE_NS,
        linger_ns: int = SECOND_NS // 4,
        silent_after: int = 3,
        watermarks: bool | None = None,
        drops_late: bool = False,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.ended = False  # the last slice has been released
        self._order = {symbol: rank for rank, symbol in enumerate(symbols)}
        self._topics = frozenset(topics)
        self._grace_ns = grace_ns
        self._linger_ns = min(linger_ns, grace_ns)
        self._late_ns = length_ns + grace_ns
        self._silent_after = silent_after
        self._watermarks = watermarks
        self._finds_out = watermarks is None
        self._pending: dict[int, _Pending] = {}  # by end time, after the last slice
        self._late: list[Bar] = []
        self._late_since_ns = 0
        self._marks: dict[int, _Marks] = {}  # by slice number, above the last one
        self._arrived: dict[str, dict[int, int]] = {topic: {} for topic in topics}  # bars by topic and end time
        self._newest_end: dict[str, int] = {}  # by symbol
        self._silent: dict[str, int] = dict.fromkeys(symbols, 0)  # slices since the symbol's last bar
        self._last_end_ns = 0
        self._last_number = 0
        self._last_mark_end_ns = 0
        self._ready: deque[Slice] = deque()
        self._drops_late = drops_late
        self._dropped: list[Bar] = []

    def wants(self, symbol: str) -> bool:
        """Tell whether slices have the bars of a symbol."""
        return symbol in self._order

    def push_bar(self, topic: str, bar: Bar, now_ns: int) -> None:
        """Take a bar; per symbol their times rise."""
        self._count_arrival(topic, bar.end_ns)
        if bar.symbol not in self._order:
            self.counts["unwanted_bars"] += 1
        else:
            self._newest_end[bar.symbol] = bar.end_ns
            if bar.end_ns <= self._last_end_ns:
                self.counts["late_bars"] += 1
                if self._drops_late:
                    self.counts["dropped_late_bars"] += 1
                    self._dropped.append(bar)
                else:
                    if not self._late:
                        self._late_since_ns = now_ns
                    self._late.append(bar)
            else:
                pending = self._pending.setdefault(bar.end_ns, _Pending(now_ns))
                pending.bars[bar.symbol] = bar
                pending.latest_ns = now_ns
        self._release()

    def note_dropped(self, topic: str, end_ns: int) -> None:
        """Count a bar that is not delivered although the topic's watermark counts it."""
        self._count_arrival(topic, end_ns)

    def push_watermark(self, topic: str, mark: Watermark, now_ns: int, *, ordered: bool = False) -> None:
        """Take a watermark. `ordered` says that no bar that the topic sent before it can still come in time."""
        if topic not in self._topics:
            self.counts["stale_watermarks"] += 1
            return
        self._watermarks = True
        if mark.slice <= self._last_number:
            if mark.end_ns <= self._last_mark_end_ns:
                self.counts["stale_watermarks"] += 1
                return
            self._last_number = mark.slice - 1  # the publisher has started again and goes on in time
            self._marks.clear()
        marks = self._marks.setdefault(mark.slice, _Marks(now_ns))
        if topic in marks.by_topic:
            self.counts["stale_watermarks"] += 1
            return
        marks.by_topic[topic] = mark
        if not ordered:
            marks.waiting.add(topic)
        self._release()

    def expire(self, now_ns: int) -> None:
        """Let go what has waited long enough at `now_ns`."""
        while not self._ready and not self.ended:
            if self._marks and now_ns >= self._mark_deadline_ns():
                self._release_marked(min(self._marks))
            elif self._pending and not self._marks and now_ns >= self._pending_deadline_ns():
                self._release_head(now_ns)
            elif self._late and now_ns >= self._late_since_ns + self._late_ns:
                late, self._late = self._late, []
                self._append_by_time(late)
            else:
                return

    def take(self) -> Slice | None:
        """Return the next slice, or None when none is ready."""
        if not self._ready:
            self._release()
        return self._ready.popleft() if self._ready else None

    def take_dropped(self) -> list[Bar]:
        """Return the late bars that were left out since the last call."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def next_deadline_ns(self) -> int | None:
        """Return when `expire` will have something to do, None when nothing waits."""
        if self.ended:
            return None
        deadlines = []
        if self._marks:
            deadlines.append(self._mark_deadline_ns())
        elif self._pending:
            deadlines.append(self._pending_deadline_ns())
        if self._late:
            deadlines.append(self._late_since_ns + self._late_ns)
        return min(deadlines, default=None)

    def _count_arrival(self, topic: str, end_ns: int) -> None:
        arrived = self._arrived.setdefault(topic, {})
        arrived[end_ns] = arrived.get(end_ns, 0) + 1
        if len(arrived) > _TIMES_COUNTED:
            for end in sorted(arrived):
                if end >= self._last_end_ns:
                    break
                del arrived[end]

    def _mark_deadline_ns(self) -> int:
        return min(marks.first_ns for marks in self._marks.values()) + self._grace_ns

    def _pending_deadline_ns(self) -> int:
        first_ns = min(pending.first_ns for pending in self._pending.values())
        deadline = first_ns + self._grace_ns
        if self._watermarks is not False:
            return deadline
        end_ns = min(self._pending)
        head = self._pending[end_ns]
        if all(self._has_passed(symbol, end_ns) or self._is_silent(symbol) for symbol in self._order):
            return min(deadline, head.latest_ns + self._linger_ns)
        return deadline

    def _has_passed(self, symbol: str, end_ns: int) -> bool:
        return self._newest_end.get(symbol, 0) >= end_ns

    def _is_silent(self, symbol: str) -> bool:
        return self._silent[symbol] >= self._silent_after

    def _release(self) -> None:
        """Release the next slice if it is complete."""
        if self._ready or self.ended:
            return
        if self._watermarks and self._marks:
            number = min(self._marks)
            if self._is_complete(self._marks[number]):
                self._release_marked(number)
        elif self._watermarks is False and self._pending:
            end_ns = min(self._pending)
            if all(self._has_passed(symbol, end_ns) for symbol in self._order):
                self._release_time(end_ns)

    def _is_complete(self, marks: _Marks) -> bool:
        return len(marks.by_topic) == len(self._topics) and not any(
            self._is_short(topic, marks.by_topic[topic]) for topic in marks.waiting
        )

    def _is_short(self, topic: str, mark: Watermark) -> bool:
        """Tell whether the topic has brought fewer bars than its watermark says."""
        return self._arrived[topic].get(mark.end_ns, 0) < mark.bars

    def _release_marked(self, number: int) -> None:
        marks = self._marks.pop(number).by_topic
        self.counts["missing_watermarks"] += len(self._topics) - len(marks)
        self.counts["watermark_mismatches"] += any(self._is_short(topic, mark) for topic, mark in marks.items())
        end_ns = max(mark.end_ns for mark in marks.values())
        last = any(mark.last for mark in marks.values())
        self._last_number = number
        self._last_mark_end_ns = end_ns
        if last:  # what is left has no slice to wait for
            end_ns = max(end_ns, *self._pending) if self._pending else end_ns
        bars = [bar for end in sorted(self._pending) if end <= end_ns for bar in self._pending.pop(end).bars.values()]
        event_id = max(mark.event_id for mark in marks.values())
        self._emit(end_ns, bars, number=number, event_id=event_id, last=last)

    def _release_head(self, now_ns: int) -> None:
        end_ns = min(self._pending)
        if now_ns >= self._pending[end_ns].first_ns + self._grace_ns:
            self.counts["grace_releases"] += 1
        if self._finds_out:
            self._watermarks = False
        self._release_time(end_ns)

    def _release_time(self, end_ns: int) -> None:
        bars = list(self._pending.pop(end_ns).bars.values())
        present = {bar.symbol for bar in bars}
        for symbol in self._order:
            self._silent[symbol] = 0 if symbol in present else self._silent[symbol] + 1
        self._emit(end_ns, bars)

    def _emit(
        self, end_ns: int, bars: list[Bar], *, number: int | None = None, event_id: str = "", last: bool = False
    ) -> None:
        bars = self._late + bars
        self._late = []
        if len({bar.symbol for bar in bars}) < len(bars):
            self._append_by_time(bar for bar in bars if bar.end_ns < end_ns)
            bars = [bar for bar in bars if bar.end_ns >= end_ns]
        self._last_end_ns = max(self._last_end_ns, end_ns)
        self._append(end_ns, bars, number=number, event_id=event_id, last=last)
        self.ended = last

    def _append_by_time(self, bars: Iterable[Bar]) -> None:
        by_end: dict[int, list[Bar]] = {}
        for bar in bars:
            by_end.setdefault(bar.end_ns, []).append(bar)
        for end_ns in sorted(by_end):
            self._append(end_ns, by_end[end_ns])

    def _append(
        self, end_ns: int, bars: Iterable[Bar], *, number: int | None = None, event_id: str = "", last: bool = False
    ) -> None:
        self.counts["slices"] += 1
        ordered = tuple(sorted(bars, key=lambda bar: self._order[bar.symbol]))
        self._ready.append(Slice(end_ns=end_ns, bars=ordered, number=number, event_id=event_id, last=last))


class SliceAssembler:
    """Sequencing, the rules for bars, and the barrier, one after the other.

    Args:
        sequencer: numbers of messages.
        barrier: slices.
        tells_revised: mark corrections of bars as to be told.

    Statuses of symbols that are not wanted are counted as `unwanted_statuses` and left out: a topic of Pub/Sub has
    those of all its readers.
    """

    def __init__(self, *, sequencer: Sequencer, barrier: BarBarrier, tells_revised: bool = False) -> None:
        self.policy = BarPolicy()
        self._sequencer = sequencer
        self._barrier = barrier
        self._tells_revised = tells_revised
        self._others: deque[OtherEvent] = deque()

    @property
    def ended(self) -> bool:
        """The last slice has been released."""
        return self._barrier.ended

    def push(self, envelope: Envelope, now_ns: int) -> None:
        """Take a message."""
        self._pass_on(self._sequencer.push(envelope, now_ns), now_ns)

    def skip(self, topic: str, epoch: str, seq: int, now_ns: int) -> None:
        """Take the number of a message that cannot be used."""
        self._pass_on(self._sequencer.skip(topic, epoch, seq, now_ns), now_ns)

    def expire(self, now_ns: int) -> None:
        """Let go what has waited long enough at `now_ns`; only when no message is at hand."""
        self._pass_on(self._sequencer.expire(now_ns), now_ns)
        self._barrier.expire(now_ns)

    def take(self) -> Slice | OtherEvent | None:
        """Return the next slice or what else came, or None when nothing is ready."""
        return self._others.popleft() if self._others else self._barrier.take()

    def next_deadline_ns(self) -> int | None:
        """Return when `expire` will have something to do, None when nothing waits."""
        deadlines = (self._sequencer.next_deadline_ns(), self._barrier.next_deadline_ns())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def counts(self) -> dict[str, int]:
        """Return the counters of all parts."""
        return merge_counts(self._sequencer.counts, self.policy.counts, self._barrier.counts)

    def _pass_on(self, envelopes: Iterable[Envelope], now_ns: int) -> None:
        for envelope in envelopes:
            message = envelope.message
            if isinstance(message, Bar):
                self._pass_bar(envelope, message, now_ns)
            elif isinstance(message, BarBatch):
                for bar in message.bars:
                    self._pass_bar(envelope, bar, now_ns)
            elif isinstance(message, Watermark):
                self._barrier.push_watermark(envelope.topic, message, now_ns, ordered=bool(envelope.epoch))
            elif isinstance(message, TradingStatus | PriceBands) and not self._barrier.wants(message.symbol):
                self._barrier.counts["unwanted_statuses"] += 1
            else:
                self._others.append(message)

    def _pass_bar(self, envelope: Envelope, bar: Bar, now_ns: int) -> None:
        verdict = self.policy.judge(bar)
        if verdict is Verdict.DELIVER:
            self._barrier.push_bar(envelope.topic, bar, now_ns)
            self._others.extend(BarNote(bar=dropped) for dropped in self._barrier.take_dropped())
            return
        if verdict is Verdict.REVISION:
            self._others.append(BarNote(bar=bar, is_revision=True, is_told=self._tells_revised))
        elif verdict is Verdict.OLDER:
            self._others.append(BarNote(bar=bar))
        if envelope.epoch:  # without a number it may be the same message once more
            self._barrier.note_dropped(envelope.topic, bar.end_ns)
