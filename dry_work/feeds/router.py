"""Market data of one agent: one subscription per topic, any number of symbols, slices out.

`PubSubMarketSource` is a `MarketSource`. Messages are read on the client's threads and wait in one bounded buffer; the
engine's thread takes them from there through sequencing and barrier (`take`, `wait_s`). `start`, `stop` and `counters`
may be called from any thread. A thread of its own opens lost streams again and looks after the ownership.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog

from dry_work.clock import DAY_NS, MINUTE_NS, SECOND_NS, Clock, SystemClock
from dry_work.errors import CodecError, ConfigError
from dry_work.feeds.subscriber import PulledMessage, Subscriber
from dry_work.feeds.subscriptions import SubscriptionKeeper, build_labels, subscription_id
from dry_work.market.barrier import BarBarrier, SliceAssembler
from dry_work.market.messages import Bar, BarBatch, Envelope, News, Slice, Watermark
from dry_work.market.sequencing import Sequencer, merge_counts
from dry_work.market.symbols import is_crypto
from dry_work.ports import SourceEvent, SourceFailed, SourceStatus
from dry_work.recording.recorder import RecordedMessage, Recorder
from dry_work.wakeup import Wakeup
from dry_work.wire.pubsub import parse_message, parse_sequence

_EPOCHS_KEPT = 8  # of each topic
_MESSAGE_IDS_KEPT = 10_000
_FUTURE_NS = DAY_NS  # a bar further ahead would make all that follows late
_PUT_CHECK_S = 0.5

_log = structlog.get_logger(__name__)


class _Skipped(msgspec.Struct, frozen=True):
    """The number of a message that could not be read."""

    topic: str
    epoch: str
    seq: int


_Item = Envelope | _Skipped | SourceStatus | SourceFailed


class PubSubMarketSource:
    """Slices of bars, and news, from Pub/Sub.

    A subscription has the id `agent-<agent id>-<topic>` and carries `owner_nonce` as a label. One that is there
    already is replaced when it has our nonce or none; with another nonce the start is refused, unless `take_over`. So
    nothing from before the start is delivered. They are deleted by `stop`, and expire a day after a crash.

    Args:
        symbols: wanted symbols, in the order in which slices have their bars.
        owner_nonce: lower-case letters and digits; the same after a restart of the same agent.
        endpoint: host:port of an emulator; None: `PUBSUB_EMULATOR_HOST` when set, otherwise Google.
        news_topic: topic of news; None: no news.
        topics: topic by symbol, for symbols that are on neither `market_topic` nor `crypto_topic`.
        grace_s: how long a slice waits for what is missing, see `BarBarrier`.
        watermarks: True in lock-step; None: find out.
        buffer_messages: messages that wait for the engine; when it is full, nothing more is pulled.
        stale_s: seconds without a bar after which a symbol is reported as stale in the log and counted
            (`stale_symbols`), once until it comes back; None: not watched.
        is_open: tells whether a symbol's market is open at a UTC time in nanoseconds; a closed market is not stale.
            None: always open.
        connect_timeout_s: limit of each request to Pub/Sub.
        owner_check_s: seconds between looks at whether the subscriptions are still ours.
        recorder: is handed each message as it was received; None: nothing is recorded.

    Counters, beside those of `Sequencer`, `BarPolicy` and `BarBarrier`: `messages` (received), `dropped_<reason>` (the
    reasons of `parse_message`, and `future timestamp`, in words joined by `_`), `redelivered_messages`,
    `ignored_fields`, `bars` (delivered, in slices), `news`, `reconnects`,
    `recreated_subscriptions` (that were gone), `publisher_restarts` (a topic's messages came under a new epoch),
    `buffer_full` (times that pulling had to
    wait), `stale_symbols`, and those of `Recorder`. Those that are zero are left out.
    """

    def __init__(
        self,
        *,
        project_id: str,
        symbols: Sequence[str],
        agent_id: str,
        owner_nonce: str,
        market_topic: str = "market-data",
        crypto_topic: str = "crypto-data",
        news_topic: str | None = None,
        topics: Mapping[str, str] | None = None,
        endpoint: str | None = None,
        length_ns: int = MINUTE_NS,
        grace_s: float = 5.0,
        watermarks: bool | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        buffer_messages: int = 10_000,
        stale_s: float | None = None,
        is_open: Callable[[str, int], bool] | None = None,
        take_over: bool = False,
        connect_timeout_s: float = 10.0,
        owner_check_s: float = 60.0,
        recorder: Recorder | None = None,
    ) -> None:
        if not symbols:
            raise ConfigError("no symbols to subscribe to")
        if not project_id:
            raise ConfigError("no project: set GOOGLE_CLOUD_PROJECT")
        named = topics or {}
        bar_topics = list(
            dict.fromkeys(named.get(symbol, crypto_topic if is_crypto(symbol) else market_topic) for symbol in symbols)
        )
        all_topics = dict.fromkeys(bar_topics if news_topic is None else [*bar_topics, news_topic])
        self._subscriptions = {topic: subscription_id(agent_id, topic) for topic in all_topics}
        self._project_id = project_id
        self._agent_id = agent_id
        self._endpoint = endpoint or os.environ.get("PUBSUB_EMULATOR_HOST") or None
        self._length_ns = length_ns
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._labels = build_labels(owner_nonce, self._clock)
        self._rng = rng if rng is not None else random.Random()
        self._take_over = take_over
        self._connect_timeout_s = connect_timeout_s
        self._owner_check_s = owner_check_s
        self._recorder = recorder
        self._assembler = SliceAssembler(
            sequencer=Sequencer(),
            barrier=BarBarrier(
                symbols=symbols,
                topics=bar_topics,
                length_ns=length_ns,
                grace_ns=round(grace_s * SECOND_NS),
                watermarks=watermarks,
            ),
        )
        self._stale = None if stale_s is None else _StaleWatch(symbols, round(stale_s * SECOND_NS), is_open)
        self._intake = _Intake(buffer_messages)
        self._counts: Counter[str] = Counter()  # of the engine's thread
        self._received: Counter[str] = Counter()  # of the client's threads, under the lock
        self._received_lock = threading.Lock()
        self._logged_reasons: set[str] = set()
        self._message_ids: OrderedDict[str, None] = OrderedDict()
        self._epochs: dict[str, OrderedDict[str, None]] = {topic: OrderedDict() for topic in all_topics}
        self._keeper: SubscriptionKeeper | None = None
        self._stop_lock = threading.Lock()
        self._stopped = False

    # Life cycle

    def start(self, wakeup: Wakeup) -> None:
        """Make the subscriptions and begin to receive.

        Raises:
            ConfigError: a topic does not exist, the credentials are missing or refused.
            LeaseHeldError: a subscription belongs to another process.
            FeedError: Pub/Sub is not reached in time.
        """
        if self._keeper is not None or self._stopped:
            raise RuntimeError("a source is started once")
        self._intake.wakeup = wakeup
        if self._stale is not None:
            self._stale.begin(self._now_ns())
        subscriber = Subscriber(self._project_id, endpoint=self._endpoint, timeout_s=self._connect_timeout_s)
        self._keeper = SubscriptionKeeper(
            subscriber,
            self._subscriptions,
            labels=self._labels,
            take=self._receive,
            report=self._intake.put_now,
            clock=self._clock,
            rng=self._rng,
            owner_check_s=self._owner_check_s,
        )
        try:
            self._keeper.claim(take_over=self._take_over, agent_id=self._agent_id)
            self._keeper.start()
        except BaseException:
            self.stop()
            raise
        _log.info("subscribed", subscriptions=list(self._subscriptions.values()), project=self._project_id)

    def stop(self, timeout_s: float = 5.0) -> None:
        """End, delete the subscriptions, and leave no thread behind. May be called twice."""
        with self._stop_lock:
            if self._stopped:
                return
            self._stopped = True
            self._intake.close()
            if self._keeper is not None:
                self._keeper.stop(timeout_s)

    # Engine's thread

    def take(self) -> SourceEvent | None:
        """Return the next event in order, or None when there is nothing now."""
        while True:
            event = self._assembler.take()
            if event is not None:
                return self._count(event)
            item = self._intake.get()
            now_ns = self._now_ns()
            if isinstance(item, Envelope):
                self._note_epoch(item)
                if self._stale is not None:
                    for bar in _bars_of(item):
                        self._stale.note(bar.symbol, now_ns)
                self._assembler.push(item, now_ns)
            elif isinstance(item, _Skipped):
                self._assembler.skip(item.topic, item.epoch, item.seq, now_ns)
            elif item is not None:
                return item
            else:
                if self._stale is not None:
                    self._counts["stale_symbols"] += self._stale.look(now_ns, self._clock.time_ns())
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
        keeper = {}
        if self._keeper is not None:
            keeper = {"reconnects": self._keeper.reconnects, "recreated_subscriptions": self._keeper.recreated}
        counts = merge_counts(received, self._counts, self._assembler.counts(), keeper)
        counts["buffer_full"] = self._intake.full_count
        if self._recorder is not None:
            counts.update(self._recorder.counters())
        return {name: count for name, count in counts.items() if count}

    def _count(self, event: Slice | News) -> Slice | News:
        if isinstance(event, Slice):
            self._counts["bars"] += len(event.bars)
        else:
            self._counts["news"] += 1
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

    # Client's threads

    def _receive(self, topic: str, message: PulledMessage, tend: Callable[[], None]) -> bool:
        """Read a message into the buffer; False when it was not taken."""
        recv_ns = self._clock.time_ns()
        item: _Item | None = None
        venue_ns = 0
        try:
            envelope = parse_message(
                topic, message.data, message.attributes, recv_ns=recv_ns, length_ns=self._length_ns
            )
            venue_ns = _venue_time_of(envelope)
            envelope = self._without_future(topic, message, envelope, recv_ns)
            with self._received_lock:
                self._received["messages"] += 1
                self._received["ignored_fields"] += len(envelope.ignored_fields)
                if not envelope.epoch and self._is_redelivered(message.message_id):
                    self._received["redelivered_messages"] += 1
                else:
                    item = envelope
        except CodecError as error:
            self._note_dropped(topic, message, error.reason)
            epoch, seq = parse_sequence(message.attributes)
            if epoch:
                item = _Skipped(topic, epoch, seq)
        if self._recorder is not None:
            received = RecordedMessage(topic, message.data, message.attributes, message.message_id, message.publish_ns)
            self._recorder.record(received, venue_ns=venue_ns, recv_ns=recv_ns)
        return item is None or self._intake.put(item, tend)

    def _without_future(self, topic: str, message: PulledMessage, envelope: Envelope, recv_ns: int) -> Envelope:
        """Leave bars of the future out; what a batch lost is counted here, a single bar is the caller's to count."""
        future = [bar for bar in _bars_of(envelope) if bar.end_ns > recv_ns + _FUTURE_NS]
        if not isinstance(envelope.message, BarBatch):
            if future:
                raise CodecError("future timestamp")
            return envelope
        for reason in [*envelope.message.dropped, *["future timestamp"] * len(future)]:
            self._note_dropped(topic, message, reason, messages=0)
        kept = tuple(bar for bar in envelope.message.bars if bar.end_ns <= recv_ns + _FUTURE_NS)
        return msgspec.structs.replace(envelope, message=BarBatch(bars=kept))

    def _is_redelivered(self, message_id: str) -> bool:
        if message_id in self._message_ids:
            return True
        self._message_ids[message_id] = None
        if len(self._message_ids) > _MESSAGE_IDS_KEPT:
            self._message_ids.popitem(last=False)
        return False

    def _note_dropped(self, topic: str, message: PulledMessage, reason: str, *, messages: int = 1) -> None:
        with self._received_lock:
            self._received["messages"] += messages
            self._received[f"dropped_{reason.replace(' ', '_').replace('-', '_').lower()}"] += 1
            first = reason not in self._logged_reasons
            self._logged_reasons.add(reason)
        if first:
            _log.warning(
                "message dropped; further ones of this reason are only counted",
                reason=reason,
                topic=topic,
                message_id=message.message_id,
                bytes=len(message.data),
            )


def _bars_of(envelope: Envelope) -> tuple[Bar, ...]:
    message = envelope.message
    if isinstance(message, Bar):
        return (message,)
    return message.bars if isinstance(message, BarBatch) else ()


def _venue_time_of(envelope: Envelope) -> int:
    """Return the venue's own time of a message, the newest one of a batch; 0 when it has none."""
    if isinstance(envelope.message, Watermark):
        return envelope.message.end_ns
    return max((bar.ts_event_ns for bar in _bars_of(envelope)), default=0)


class _Intake:
    """The bounded buffer between the client's threads and the engine's."""

    def __init__(self, capacity: int) -> None:
        self.wakeup: Wakeup | None = None
        self.full_count = 0
        self._capacity = capacity
        self._items: deque[_Item] = deque()
        self._room = threading.Condition()
        self._closed = False
        self._waiting = 0

    def put(self, item: _Item, tend: Callable[[], None]) -> bool:
        """Add an item, waiting for room and calling `tend` meanwhile; False when the source stops."""
        with self._room:
            if len(self._items) >= self._capacity and not self._closed:
                self.full_count += 1
                self._waiting += 1
                while len(self._items) >= self._capacity and not self._closed:
                    tend()
                    self._room.wait(_PUT_CHECK_S)
                self._waiting -= 1
            if self._closed:
                return False
            self._items.append(item)
        self._wake()
        return True

    def put_now(self, item: SourceStatus | SourceFailed) -> None:
        """Add an event behind what is there, without waiting for room."""
        with self._room:
            if self._closed:
                return
            self._items.append(item)
        self._wake()

    def get(self) -> _Item | None:
        """Return the oldest item, None when there is none."""
        try:
            item = self._items.popleft()
        except IndexError:
            return None
        if self._waiting and len(self._items) <= self._capacity // 2:
            with self._room:
                self._room.notify_all()
        return item

    def has_items(self) -> bool:
        """Tell whether `get` has something."""
        return bool(self._items)

    def close(self) -> None:
        """Take nothing more, and let go who waits for room."""
        with self._room:
            self._closed = True
            self._room.notify_all()

    def _wake(self) -> None:
        if self.wakeup is not None:
            self.wakeup.set()


class _StaleWatch:
    """Sees symbols that have gone quiet while their market is open. Pure but for the log; engine's thread."""

    def __init__(self, symbols: Sequence[str], limit_ns: int, is_open: Callable[[str, int], bool] | None) -> None:
        self._limit_ns = limit_ns
        self._is_open = is_open
        self._last_ns = dict.fromkeys(symbols, 0)
        self._stale: set[str] = set()
        self.next_look_ns = 0

    def begin(self, now_ns: int) -> None:
        """Count from `now_ns` on."""
        self._last_ns = dict.fromkeys(self._last_ns, now_ns)
        self.next_look_ns = now_ns + self._limit_ns

    def note(self, symbol: str, now_ns: int) -> None:
        """Note a bar."""
        if symbol in self._last_ns:
            self._last_ns[symbol] = now_ns
            if symbol in self._stale:
                self._stale.discard(symbol)
                _log.info("symbol is back", symbol=symbol)

    def look(self, now_ns: int, time_ns: int) -> int:
        """Report symbols that are newly stale; return how many."""
        if now_ns < self.next_look_ns:
            return 0
        found = 0
        for symbol, last_ns in self._last_ns.items():
            if symbol in self._stale or now_ns - last_ns < self._limit_ns:
                continue
            if self._is_open is not None and not self._is_open(symbol, time_ns):
                self._last_ns[symbol] = now_ns  # counted anew from here
                continue
            self._stale.add(symbol)
            found += 1
            _log.warning("symbol is stale: no bar while its market is open", symbol=symbol, seconds=self._limit_s())
        quiet = [last_ns for symbol, last_ns in self._last_ns.items() if symbol not in self._stale]
        self.next_look_ns = min(quiet, default=now_ns) + self._limit_ns
        return found

    def _limit_s(self) -> float:
        return self._limit_ns / SECOND_NS
