"""Order of messages and of bars: duplicates, reordering, gaps, late and revised bars. Pure, one thread.

`Sequencer` works on what the publisher numbers (epoch and seq of a topic), `BarPolicy` on the times of the bars.
Times are passed in, in nanoseconds of any clock that does not go back.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from enum import Enum

from dry_work.clock import SECOND_NS
from dry_work.market.messages import Bar, Envelope

_EPOCHS_KEPT = 8
_REVISIONS_KEPT = 1000
_TIMES_KEPT = 128


class _Stream:
    """One epoch of one topic."""

    def __init__(self) -> None:
        self.next_seq: int | None = None  # None: the first number is not known yet
        self.first_seq = 0
        # With the time of arrival, in order of arrival; None: a number without a message that can be used.
        self.held: dict[int, tuple[Envelope | None, int]] = {}
        self.missing: OrderedDict[int, None] = OrderedDict()  # given up, may still come
        self.early: OrderedDict[int, None] = OrderedDict()  # came after the first one, though numbered before it

    def is_known(self, seq: int) -> bool:
        """Tell whether the number was taken before."""
        if seq in self.held:
            return True
        if self.next_seq is None or seq >= self.next_seq:
            return False
        if seq < self.first_seq:
            return seq in self.early
        return seq not in self.missing


class Sequencer:
    """Puts the messages of each topic in the publisher's order, each once.

    A missing number holds back what follows for `wait_ns`, or until `window` messages wait; then the gap is counted
    and the stream goes on. What comes after that still passes, out of order. The first number of an epoch is
    taken as the first when it is 0 or 1, otherwise the lowest within `settle_ns`. A new epoch follows when nothing
    of the older one waits any more. Messages without epoch pass as they come.

    Counters: `duplicate_messages`, `gaps`, `missing_messages` (numbers that gaps left out), `late_messages` (came after
    their gap was given up), `reordered_messages` (were held back), `epochs`.
    """

    def __init__(
        self,
        *,
        window: int = 1000,
        wait_ns: int = SECOND_NS,
        settle_ns: int = SECOND_NS // 4,
        missing_kept: int = 10_000,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._window = window
        self._wait_ns = wait_ns
        self._settle_ns = settle_ns
        self._missing_kept = missing_kept
        self._topics: dict[str, OrderedDict[str, _Stream]] = {}

    def push(self, envelope: Envelope, now_ns: int) -> list[Envelope]:
        """Take a message; return what may pass now, in order."""
        return self._push(envelope.topic, envelope.epoch, envelope.seq, envelope, now_ns)

    def skip(self, topic: str, epoch: str, seq: int, now_ns: int) -> list[Envelope]:
        """Take the number of a message that cannot be used; return what may pass now, in order."""
        return self._push(topic, epoch, seq, None, now_ns)

    def expire(self, now_ns: int) -> list[Envelope]:
        """Give up the gaps that have waited long enough; return what may pass now, in order."""
        released: list[Envelope] = []
        for streams in self._topics.values():
            released += self._advance(streams, now_ns)
        return released

    def next_deadline_ns(self) -> int | None:
        """Return when `expire` will have something to do, None when nothing is held back."""
        deadlines = [
            self._deadline_ns(stream) for streams in self._topics.values() for stream in streams.values() if stream.held
        ]
        return min(deadlines, default=None)

    def _deadline_ns(self, stream: _Stream) -> int:
        _, first_arrival_ns = next(iter(stream.held.values()))
        return first_arrival_ns + (self._settle_ns if stream.next_seq is None else self._wait_ns)

    def _push(self, topic: str, epoch: str, seq: int, envelope: Envelope | None, now_ns: int) -> list[Envelope]:
        if not epoch:
            return [] if envelope is None else [envelope]
        streams = self._topics.setdefault(topic, OrderedDict())
        stream = streams.get(epoch)
        released: list[Envelope] = []
        if stream is None:
            self.counts["epochs"] += 1
            stream = streams[epoch] = _Stream()
            if len(streams) > _EPOCHS_KEPT:
                _, oldest = streams.popitem(last=False)
                released += self._drain(oldest, now_ns, until_empty=True)
        if stream.is_known(seq):
            self.counts["duplicate_messages"] += 1
            return released
        if stream.next_seq is not None and seq < stream.next_seq:
            self._note_late(stream, seq)
            return released if envelope is None else [*released, envelope]
        stream.held[seq] = (envelope, now_ns)
        if stream.next_seq is None and seq <= 1:
            stream.next_seq = stream.first_seq = seq
        released += self._advance(streams, now_ns)
        if seq in stream.held:
            self.counts["reordered_messages"] += 1
        return released

    def _note_late(self, stream: _Stream, seq: int) -> None:
        if seq in stream.missing:
            del stream.missing[seq]
        else:
            stream.early[seq] = None
            if len(stream.early) > self._missing_kept:
                stream.early.popitem(last=False)
        self.counts["late_messages"] += 1

    def _advance(self, streams: OrderedDict[str, _Stream], now_ns: int) -> list[Envelope]:
        released: list[Envelope] = []
        for stream in streams.values():
            released += self._drain(stream, now_ns)
            if stream.held:
                break  # a newer epoch waits until the older one is done
        return released

    def _drain(self, stream: _Stream, now_ns: int, *, until_empty: bool = False) -> list[Envelope]:
        """Release what follows without a gap, and behind a gap when it is given up."""
        released: list[Envelope] = []
        while stream.held:
            if stream.next_seq is not None and stream.next_seq in stream.held:
                envelope, _ = stream.held.pop(stream.next_seq)
                stream.next_seq += 1
                if envelope is not None:
                    released.append(envelope)
                continue
            if not (until_empty or len(stream.held) > self._window or now_ns >= self._deadline_ns(stream)):
                break
            first = min(stream.held)
            if stream.next_seq is None:
                stream.first_seq = first
            else:
                self._note_gap(stream, stream.next_seq, first)
            stream.next_seq = first
        return released

    def _note_gap(self, stream: _Stream, start: int, stop: int) -> None:
        self.counts["gaps"] += 1
        self.counts["missing_messages"] += stop - start
        for seq in range(max(start, stop - self._missing_kept), stop):
            stream.missing[seq] = None
        while len(stream.missing) > self._missing_kept:
            stream.missing.popitem(last=False)


class Verdict(Enum):
    """What happens with a bar."""

    DELIVER = "deliver"
    DUPLICATE = "duplicate"
    OLDER = "older"
    REVISION = "revision"


class BarPolicy:
    """Decides by symbol, time and revision which bars are delivered: per symbol each time once, and rising.

    A bar of a time already taken is a duplicate, or with a higher revision a correction, which is kept in `revisions`
    and not delivered. A bar older than the last one of its symbol is dropped. The first bar of a time is delivered
    whatever its revision.

    Counters: `duplicate_bars`, `older_bars`, `revised_bars`, `time_gaps` (a bar did not begin where the one before it
    ended; nights and weekends count too).
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.revisions: deque[Bar] = deque(maxlen=_REVISIONS_KEPT)
        self._taken: dict[str, OrderedDict[int, int]] = {}  # symbol -> start of a bar -> highest revision seen
        self._last: dict[str, Bar] = {}

    def judge(self, bar: Bar) -> Verdict:
        """Say what happens with `bar`, and remember it."""
        taken = self._taken.setdefault(bar.symbol, OrderedDict())
        seen = taken.get(bar.ts_event_ns)
        last = self._last.get(bar.symbol)
        if seen is not None:
            if bar.revision <= seen:
                self.counts["duplicate_bars"] += 1
                return Verdict.DUPLICATE
            taken[bar.ts_event_ns] = bar.revision
            self.revisions.append(bar)
            self.counts["revised_bars"] += 1
            return Verdict.REVISION
        if last is not None and bar.ts_event_ns < last.ts_event_ns:
            self.counts["older_bars"] += 1
            return Verdict.OLDER
        if last is not None and bar.ts_event_ns > last.end_ns:
            self.counts["time_gaps"] += 1
        taken[bar.ts_event_ns] = bar.revision
        if len(taken) > _TIMES_KEPT:
            taken.popitem(last=False)
        self._last[bar.symbol] = bar
        return Verdict.DELIVER


def merge_counts(*counts: Mapping[str, int]) -> dict[str, int]:
    """Return the sums by name."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(dict(each))  # a copy: another thread may be counting
    return dict(total)
