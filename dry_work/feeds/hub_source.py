"""Market data of one agent from the hub, over any of its transports. See `BufferedSource` for the engine's side.

The hub numbers the events of a feed over all symbols and channels, so that numbers a reader does not see are no gap.
What is a gap shows where a session begins: the hub says whether it still has all that followed the reader's position.
Within a session nothing is left out; a transport that has to leave something out ends the session.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence

import orjson
import structlog

from dry_work.clock import Clock
from dry_work.errors import CodecError, FeedError
from dry_work.feeds.hub_link import CRYPTO, STOCKS, Arrival, Lane, Opening, Position, Transport
from dry_work.feeds.intake import Skipped
from dry_work.feeds.source import BufferedSource, ReaderSettings, venue_time_of
from dry_work.market.messages import Bar, Envelope, PriceBands, TradingStatus, Watermark
from dry_work.market.symbols import is_crypto
from dry_work.ports import SourceFailed, SourceStatus
from dry_work.recording.recorder import RecordedMessage, Recorder
from dry_work.wire.alpaca_stream import parse_bar_item, parse_watermark_item
from dry_work.wire.pubsub import encode_bar, encode_status, encode_watermark
from dry_work.wire.statuses import parse_bands_item, parse_status_item

HubMessage = Bar | Watermark | TradingStatus | PriceBands

_log = structlog.get_logger(__name__)


class HubMarketSource(BufferedSource):
    """Slices of bars from the hub.

    Args:
        transport: the way to the hub.
        symbols: wanted symbols, in the order in which slices have their bars.
        topics: names of the feeds in recordings and in the log, as those of Pub/Sub: recordings are alike whatever
            brought the data.
        connect_timeout_s: limit of one try to connect, and of `start` as a whole.
        recorder: is handed each message in the form of Pub/Sub; None: nothing is recorded.

    Counters, beside those of `BufferedSource`: `reconnects` (sessions after the first), `resumed_sessions` (of those,
    the ones that found all that was missed), `gaps` (also those between two sessions of one epoch),
    `duplicate_messages` (also events that came again).
    """

    def __init__(
        self,
        transport: Transport,
        *,
        symbols: Sequence[str],
        settings: ReaderSettings | None = None,
        topics: Mapping[str, str] | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        connect_timeout_s: float = 10.0,
        recorder: Recorder | None = None,
    ) -> None:
        feeds = tuple(dict.fromkeys(CRYPTO if is_crypto(symbol) else STOCKS for symbol in symbols))
        self._topics = {STOCKS: "market-data", CRYPTO: "crypto-data", **(topics or {})}
        names = [self._topics[feed] for feed in feeds]
        super().__init__(
            symbols=symbols,
            bar_topics=names,
            topics=names,
            settings=settings or ReaderSettings(),
            clock=clock,
            recorder=recorder,
        )
        self._transport = transport
        self._connect_timeout_s = connect_timeout_s
        self._positions: dict[str, Position] = {}  # by feed; each is written by one lane
        self._numbers: dict[str, tuple[str, int]] = {}  # epoch and last number by feed, for the sequencer
        self._lost: set[Lane] = set()
        self._status_lock = threading.Lock()
        random_numbers = rng if rng is not None else random.Random()
        self._lanes = [
            Lane(
                transport,
                lane,
                owner=self,
                positions=self._positions,
                clock=self._clock,
                rng=random.Random(random_numbers.getrandbits(64)),
                connect_timeout_s=connect_timeout_s,
            )
            for lane in transport.lanes(feeds)
        ]

    # Life cycle

    def _open(self) -> None:
        for lane in self._lanes:
            lane.start()
        end_s = self._clock.monotonic() + self._connect_timeout_s
        for lane in self._lanes:
            lane.ready.wait(max(0.0, end_s - self._clock.monotonic()))
        for lane in self._lanes:
            if lane.sessions:
                continue
            if isinstance(lane.error, FeedError) or lane.error is None:
                reason = str(lane.error or f"no answer within {self._connect_timeout_s:g} s")
                raise FeedError(f"the hub is not reached at {self._transport.describe()}: {reason}")
            raise lane.error
        _log.info("subscribed", transport=self._transport.name, address=self._transport.describe())

    def _close(self, timeout_s: float) -> None:
        for lane in self._lanes:
            lane.begin_stop()
        end_s = self._clock.monotonic() + timeout_s
        for lane in self._lanes:
            lane.join(max(0.0, end_s - self._clock.monotonic()))

    def _link_counts(self) -> Mapping[str, int]:
        sessions = sum(max(0, lane.sessions - 1) for lane in self._lanes)
        resumed = sum(lane.resumed for lane in self._lanes)
        return {"reconnects": sessions, "resumed_sessions": resumed}

    # Threads of the lanes

    def accept(self, arrivals: Sequence[Arrival], tend: Callable[[], None]) -> bool:
        """Take what has come; False when the source stops."""
        return all(self._accept(arrival, tend) for arrival in arrivals)

    def note_begun(self, feeds: tuple[str, ...], opening: Opening) -> None:
        """Remember where the first session begins: a reader that has nothing yet may miss something too."""
        for feed in feeds:
            if feed in opening.positions:
                self._positions.setdefault(feed, opening.positions[feed])

    def note_gap(self, feeds: tuple[str, ...], opening: Opening) -> None:
        """Count what is missing between two sessions; after a restart of the hub its new epoch tells."""
        for feed in feeds:
            before, now = self._positions.get(feed), opening.positions.get(feed)
            if before is not None and now is not None and before.epoch != now.epoch:
                continue
            self._count_received("gaps")
            _log.warning("market data may be missing: the hub has not kept all since", feed=feed)

    def note_lost(self, lane: Lane, detail: str) -> None:
        """Tell the engine that market data is interrupted."""
        with self._status_lock:
            self._lost.add(lane)
            if len(self._lost) == 1:
                self._report(SourceStatus(connected=False, detail=f"{self._transport.name}: {detail}"))

    def note_back(self, lane: Lane) -> None:
        """Tell the engine that all market data flows again."""
        with self._status_lock:
            self._lost.discard(lane)
            if not self._lost:
                self._report(SourceStatus(connected=True, detail=f"{self._transport.name} is back"))

    def fail(self, error: BaseException) -> None:
        """Tell the engine that market data has ended."""
        self._intake.put_now(SourceFailed(error=error))

    def _report(self, status: SourceStatus) -> None:
        _log.info("market data", connected=status.connected, detail=status.detail)
        self._intake.put_now(status)

    def _accept(self, arrival: Arrival, tend: Callable[[], None]) -> bool:
        feed = arrival.feed
        if arrival.lost > 0:
            self._count_received("gaps")
            self._count_received("missing_messages", arrival.lost)
            _log.warning("market data is missing: the hub could not publish all", feed=feed, events=arrival.lost)
        if arrival.item is None and not arrival.reason:
            self._advance(arrival)
            return True
        before = self._positions.get(feed)
        if arrival.offset and before is not None and arrival.epoch == before.epoch and arrival.offset <= before.offset:
            self._count_received("messages")
            self._count_received("duplicate_messages")
            return True
        epoch, number = self._number(feed, arrival.epoch)
        taken = self._hand_over(arrival, epoch, number, tend)
        if taken:
            self._advance(arrival)  # only now: what was not handed over is asked for again
        return taken

    def _hand_over(self, arrival: Arrival, epoch: str, number: int, tend: Callable[[], None]) -> bool:
        """Read an event into the buffer; False when the source stops."""
        topic, recv_ns = self._topics[arrival.feed], self._clock.time_ns()
        message: HubMessage | None = None
        attributes: dict[str, str] = {"epoch": epoch, "seq": str(number)}
        data = arrival.data
        venue_ns = 0
        reason = arrival.reason
        try:
            if arrival.item is not None:
                message = self._read(arrival.item, recv_ns)
                data, attributes = _encode(message, epoch, number)
        except CodecError as error:
            reason = error.reason
            data = orjson.dumps(arrival.item, default=str)
        recorded = RecordedMessage(topic, data, attributes)
        envelope: Envelope | None = None
        if message is not None:
            envelope = Envelope(topic=topic, message=message, epoch=epoch, seq=number)
            venue_ns = venue_time_of(envelope)
            try:
                envelope = self._without_future(recorded, envelope, recv_ns)
            except CodecError as error:
                envelope, reason = None, error.reason
        self._record(recorded, venue_ns=venue_ns, recv_ns=recv_ns)
        if envelope is None:
            self._note_dropped(recorded, reason)
            return self._put(Skipped(topic, epoch, number), tend)
        self._count_message(envelope)
        return self._put(envelope, tend)

    def _read(self, item: Mapping[str, object], recv_ns: int) -> HubMessage:
        kind = item.get("T")
        if kind == "b":
            return parse_bar_item(item, recv_ns=recv_ns, length_ns=self._length_ns)
        if kind == "w":
            mark = parse_watermark_item(item)
            # The transport keeps the order, so that the bars of a slice need not be counted.
            return Watermark(slice=mark.slice, end_ns=mark.end_ns, bars=0, event_id=mark.event_id, last=mark.last)
        if kind == "s":
            return parse_status_item(item, recv_ns=recv_ns)
        if kind == "l":
            return parse_bands_item(item, recv_ns=recv_ns)
        raise CodecError("unknown type")

    def _number(self, feed: str, epoch: str) -> tuple[str, int]:
        """Return epoch and number of an event: the reader's own, without holes, since a lane keeps the order."""
        before, number = self._numbers.get(feed, ("", 0))
        if epoch != before:
            number = 0
        self._numbers[feed] = epoch, number + 1
        return epoch, number + 1

    def _advance(self, arrival: Arrival) -> None:
        if arrival.offset:
            self._positions[arrival.feed] = Position(arrival.epoch, arrival.offset)


def _encode(message: HubMessage, epoch: str, number: int) -> tuple[bytes, dict[str, str]]:
    """Return an event in the form of Pub/Sub, for the recording."""
    if isinstance(message, Watermark):
        return encode_watermark(message, epoch=epoch, seq=number)
    if isinstance(message, TradingStatus | PriceBands):
        return encode_status(message, epoch=epoch, seq=number)
    return encode_bar(message, epoch=epoch, seq=number)
