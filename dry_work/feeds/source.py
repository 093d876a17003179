"""What all sources of market data have in common: one buffer, order, slices, staleness, counters, the recorder.

Messages are read on threads of the transport and wait in one bounded buffer; the engine's thread takes them from there
through sequencing and barrier (`take`, `wait_s`). `start`, `stop` and `counters` may be called from any thread.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec
import structlog

from dry_work.clock import DAY_NS, MINUTE_NS, SECOND_NS, Clock, SystemClock
from dry_work.errors import CodecError, ConfigError, FeedError
from dry_work.feeds.intake import Intake, Item, Skipped
from dry_work.feeds.staleness import StaleWatch
from dry_work.market.barrier import BarBarrier, OtherEvent, SliceAssembler
from dry_work.market.messages import Bar, BarBatch, BarNote, Envelope, News, PriceBands, Slice, TradingStatus, Watermark
from dry_work.market.sequencing import Sequencer, merge_counts
from dry_work.ports import SourceEvent, SourceFailed
from dry_work.recording.recorder import RecordedMessage, Recorder
from dry_work.wakeup import Wakeup

_EPOCHS_KEPT = 8  # of each topic
_FUTURE_NS = DAY_NS  # a bar further ahead would make all that follows late

_log = structlog.get_logger(__name__)


class ReaderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every source goes by, whatever brings its messages.

    `is_open` tells whether a symbol's market is open at a UTC time in nanoseconds; a closed market is not stale.
    """

    length_ns: int = MINUTE_NS  # of a bar
    grace_s: float = 5.0  # how long a slice waits for what is missing, see `BarBarrier`
    watermarks: bool | None = None  # True in lock-step; None: find out
    buffer_messages: int = 10_000  # that wait for the engine; when it is full, nothing more is read
    stale_s: float | None = None  # without a bar: a symbol is reported as stale, once until it is back; None: never
    is_open: Callable[[str, int], bool] | None = None  # None: always
    stops_when_stale: bool = False  # the source fails when all symbols are stale
    drops_late: bool = False  # a bar that comes after its slice is left out; otherwise it goes with the next one
    tells_revised: bool = False  # corrections of bars are marked as to be told


class BufferedSource:
    """Slices of bars, and news, from messages that a transport brings.

    Args:
        symbols: wanted symbols, in the order in which slices have their bars.
        bar_topics: topics that bring bars, and watermarks if any.
        topics: all topics.
        recorder: is handed each message as it was received; None: nothing is recorded.

    Counters, beside those of `Sequencer`, `BarPolicy` and `BarBarrier`: `messages` (received), `dropped_<reason>` (the
    reasons of `parse_message`, and `future timestamp`, in words joined by `_`), `ignored_fields`, `bars` (delivered, in
    slices), `news`, `trading_statuses` (price bands too), `publisher_restarts` (a topic's messages came under a new
    epoch), `buffer_full` (times that reading had to wait), `stale_symbols`, and those of `Recorder`. Those that are
    zero are left out.
    """

    def __init__(
        self,
        *,
        symbols: Sequence[str],
        bar_topics: Collection[str],
        topics: Collection[str],
        settings: ReaderSettings,
        clock: Clock | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        if not symbols:
            raise ConfigError("no symbols to subscribe to")
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._length_ns = settings.length_ns
        self._recorder = recorder
        self._assembler = SliceAssembler(
            sequencer=Sequencer(),
            barrier=BarBarrier(
                symbols=symbols,
                topics=bar_topics,
                length_ns=settings.length_ns,
                grace_ns=round(settings.grace_s * SECOND_NS),
                watermarks=settings.watermarks,
                drops_late=settings.drops_late,
            ),
            tells_revised=settings.tells_revised,
        )
        self._stale = (
            None
            if settings.stale_s is None
            else StaleWatch(symbols, round(settings.stale_s * SECOND_NS), settings.is_open)
        )
        self._stops_when_stale = settings.stops_when_stale
        self._intake = Intake(settings.buffer_messages)
        self._counts: Counter[str] = Counter()  # of the engine's thread
        self._received: Counter[str] = Counter()  # of the transport's threads, under the lock
        self._received_lock = threading.Lock()
        self._logged_reasons: set[str] = set()
        self._epochs: dict[str, OrderedDict[str, None]] = {topic: OrderedDict() for topic in topics}
        self._stop_lock = threading.Lock()
        self._started = False
        self._stopped = False

    # Life cycle

    def start(self, wakeup: Wakeup) -> None:
        """Begin to receive; returns when everything is subscribed.

        Raises:
            ConfigError: what the transport needs is wrong or refused.
            FeedError: it is not reached in time.
        """
        if self._started or self._stopped:
            raise RuntimeError("a source is started once")
        self._started = True
        self._intake.wakeup = wakeup
        if self._stale is not None:
            self._stale.begin(self._now_ns())
        try:
            self._open()
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout_s: float = 5.0) -> None:
        """End, let go of what was subscribed, and leave no thread behind. May be called twice."""
        with self._stop_lock:
            if self._stopped:
                return
            self._stopped = True
            self._intake.close()
            self._close(timeout_s)

    def _open(self) -> None:
        """Subscribe, and begin to receive."""
        raise AssertionError("a transport opens itself")

    def _close(self, timeout_s: float) -> None:
        """End the transport, whether it was opened or not."""

    def _link_counts(self) -> Mapping[str, int]:
        """Return the transport's own counters."""
        return {}

    # Engine's thread

    def take(self) -> SourceEvent | None:
        """Return the next event in order, or None when there is nothing now."""
        while True:
            if self._stale is not None and self._stale.changes:
                return self._stale.changes.popleft()
            event = self._assembler.take()
            if event is not None:
                return self._count(event)
            item = self._intake.get()
            now_ns = self._now_ns()
            if isinstance(item, Envelope):
                self._note_epoch(item)
                if self._stale is not None:
                    for bar in bars_of(item):
                        self._stale.note(bar.symbol, now_ns, bar.ts_event_ns)
                    if isinstance(item.message, TradingStatus):
                        self._stale.note_trading(item.message, now_ns)
                self._assembler.push(item, now_ns)
            elif isinstance(item, Skipped):
                self._assembler.skip(item.topic, item.epoch, item.seq, now_ns)
            elif item is not None:
                return item
            else:
                if self._stale is not None:
                    self._counts["stale_symbols"] += self._stale.look(now_ns, self._clock.time_ns())
                    if self._stale.changes:
                        continue
                    silence = self._stale.describe_silence() if self._stops_when_stale else ""
                    if silence:
                        return SourceFailed(error=FeedError(silence))
                # Only now: a deadline does not count while what it waits for may be in the buffer.
                self._assembler.expire(now_ns)
                event = self._assembler.take()
                return None if event is None else self._count(event)

    def wait_s(self) -> float | None:
        """Return the seconds after which `take` may have something without a wake-up; None: only after one."""
        if self._intake.has_items():
            return 0.0
        deadlines = [self._assembler.next_deadline_ns()]
        if self._stale is not None and not self._assembler.ended:
            deadlines.append(self._stale.next_look_ns)
        deadline = min((each for each in deadlines if each is not None), default=None)
        return None if deadline is None else max(0.0, (deadline - self._now_ns()) / SECOND_NS)

    def counters(self) -> Mapping[str, int]:
        """Return counts of what was received and of what was dropped, by reason."""
        with self._received_lock:
            received = dict(self._received)
        counts = merge_counts(received, self._counts, self._assembler.counts(), self._link_counts())
        counts["buffer_full"] = self._intake.full_count
        if self._recorder is not None:
            counts.update(self._recorder.counters())
        return {name: count for name, count in counts.items() if count}

    def _count(self, event: Slice | OtherEvent) -> Slice | OtherEvent:
        if isinstance(event, Slice):
            self._counts["bars"] += len(event.bars)
        elif not isinstance(event, BarNote):  # those have counters of their own
            self._counts["news" if isinstance(event, News) else "trading_statuses"] += 1
        return event

    def _note_epoch(self, envelope: Envelope) -> None:
        """Tell of a publisher that was started again; in between, messages may have been lost upstream."""
        epochs = self._epochs[envelope.topic]
        if not envelope.epoch or envelope.epoch in epochs:
            return
        if epochs:
            self._counts["publisher_restarts"] += 1
            _log.warning("the publisher was started again", topic=envelope.topic, epoch=envelope.epoch)
        epochs[envelope.epoch] = None
        if len(epochs) > _EPOCHS_KEPT:
            epochs.popitem(last=False)

    def _now_ns(self) -> int:
        return round(self._clock.monotonic() * SECOND_NS)

    # Transport's threads

    def _put(self, item: Item, tend: Callable[[], None]) -> bool:
        """Hand an item to the engine, waiting for room and calling `tend` meanwhile; False when the source stops."""
        return self._intake.put(item, tend)

    def _record(self, message: RecordedMessage, *, venue_ns: int, recv_ns: int) -> None:
        if self._recorder is not None:
            self._recorder.record(message, venue_ns=venue_ns, recv_ns=recv_ns)

    def _count_message(self, envelope: Envelope) -> None:
        with self._received_lock:
            self._received["messages"] += 1
            self._received["ignored_fields"] += len(envelope.ignored_fields)

    def _count_received(self, name: str, count: int = 1) -> None:
        with self._received_lock:
            self._received[name] += count

    def _without_future(self, message: RecordedMessage, envelope: Envelope, recv_ns: int) -> Envelope:
        """Leave bars of the future out; what a batch lost is counted here, a single bar is the caller's to count.

        Raises:
            CodecError: the message is a single bar, of the future.
        """
        future = [bar for bar in bars_of(envelope) if bar.end_ns > recv_ns + _FUTURE_NS]
        if not isinstance(envelope.message, BarBatch):
            if future:
                raise CodecError("future timestamp")
            return envelope
        for reason in [*envelope.message.dropped, *["future timestamp"] * len(future)]:
            self._note_dropped(message, reason, messages=0)
        kept = tuple(bar for bar in envelope.message.bars if bar.end_ns <= recv_ns + _FUTURE_NS)
        return msgspec.structs.replace(envelope, message=BarBatch(bars=kept))

    def _note_dropped(self, message: RecordedMessage, reason: str, *, messages: int = 1) -> None:
        with self._received_lock:
            self._received["messages"] += messages
            self._received[f"dropped_{reason.replace(' ', '_').replace('-', '_').lower()}"] += 1
            first = reason not in self._logged_reasons
            self._logged_reasons.add(reason)
        if first:
            _log.warning(
                "message dropped; further ones of this reason are only counted",
                reason=reason,
                topic=message.topic,
                message_id=message.message_id,
                bytes=len(message.data),
            )


def bars_of(envelope: Envelope) -> tuple[Bar, ...]:
    """Return the bars of a message."""
    message = envelope.message
    if isinstance(message, Bar):
        return (message,)
    return message.bars if isinstance(message, BarBatch) else ()


def venue_time_of(envelope: Envelope) -> int:
    """Return the venue's own time of a message, the newest one of a batch; 0 when it has none."""
    if isinstance(envelope.message, Watermark):
        return envelope.message.end_ns
    if isinstance(envelope.message, TradingStatus | PriceBands):
        return envelope.message.ts_event_ns
    return max((bar.ts_event_ns for bar in bars_of(envelope)), default=0)
