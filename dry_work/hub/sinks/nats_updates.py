"""Order updates to NATS, and the positions behind them. Event-loop only."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import structlog
from nats.js import JetStreamContext, api
from nats.js.kv import KeyValue

from dry_work.backoff import Backoff
from dry_work.clock import SECOND_NS, Clock
from dry_work.errors import BrokerError
from dry_work.hub.events import ALL, LIVE_ORDERS, ORDERS, PAPER_ORDERS, HubEvent, Topic
from dry_work.hub.ports import HubPort, OrderAccount
from dry_work.hub.queues import ClientQueue, Overflow
from dry_work.hub.sinks.nats_link import FAILURES, NatsLink
from dry_work.hub.sinks.nats_outbox import Outbox, Record
from dry_work.hub.sinks.nats_settings import TRADE_UPDATE_CONSUMER, NatsSettings
from dry_work.wire.protobuf_tradesvc import encode_positions, encode_trade_update

KEY = "positions"
QUEUE_CAPACITY = 4_096
KEPT_MESSAGES = 10_000  # published and not yet acknowledged by their reader, against a NATS that forgets them
# Updates that are sent before the first of them is confirmed. A confirmation takes some turns of the loop, and a turn
# of a busy hub milliseconds: one after the other they would be ten in a second.
AT_A_TIME = 64
OVERLAP_NS = 60 * SECOND_NS  # what a hub that waits keeps of what the other has published
SETTLE_S = 2.0  # Alpaca's positions may be behind its fills

_MOVES = frozenset(("fill", "partial_fill", "trade_bust", "trade_correct", "restated"))

_log = structlog.get_logger(__name__)


class UpdatePublisher:
    """Order updates of one account, from the bus through an outbox to NATS.

    Args:
        state_dir: folder of the outbox; None: what is not published ends with the process.
    """

    def __init__(self, hub: HubPort, link: NatsLink, settings: NatsSettings, *, state_dir: Path | None) -> None:
        self._hub = hub
        self._link = link
        self._settings = settings
        self._subjects = settings.subjects
        self._feed = PAPER_ORDERS if settings.environment == "paper" else LIVE_ORDERS
        self._topic: Topic = (self._feed, ORDERS, ALL)
        name = f"nats-{settings.prefix}-{settings.environment}.outbox"
        self._outbox = Outbox(None if state_dir is None else state_dir / name)
        self._queue = self._build_queue()
        self._offset = hub.bus.position(self._feed)
        self._arrived = asyncio.Event()
        self._kept: deque[tuple[int, Record]] = deque(maxlen=KEPT_MESSAGES)  # by sequence in the data stream
        self._again: deque[Record] = deque()
        self._is_attached = False
        self.positions_changed = asyncio.Event()
        self.offered = self._outbox.waiting
        self.published = 0
        self.last_id = ""  # of the update that was published last
        self.lost = 0  # times that the bus had forgotten some
        self.error = ""

    @property
    def waiting(self) -> int:
        """Updates that are not published."""
        return self._outbox.waiting + len(self._again)

    def attach(self) -> None:
        """Take updates from now on."""
        self._offset = self._hub.bus.position(self._feed)
        self._hub.bus.attach(self._queue, [self._topic])
        self._is_attached = True

    def close(self) -> None:
        """Take no more updates; what is not published stays in the file."""
        if self._is_attached:
            self._is_attached = False
            self._take()
            self._hub.bus.detach(self._queue)
            self._outbox.close()

    def skip(self, event_id: str) -> None:
        """Let go of the updates up to `event_id`, which another hub has published."""
        for _ in range(self._outbox.count_through(event_id)):
            self._outbox.remove_first()
            self.offered -= 1

    def trim(self, now_ns: int) -> None:
        """Let go of what another hub, which acts, has published by now."""
        while (record := self._outbox.first()) is not None and record.ts_recv_ns < now_ns - self._span_ns:
            self._outbox.remove_first()
            self.offered -= 1

    @property
    def _span_ns(self) -> int:
        return OVERLAP_NS + round(self._settings.lease_s * SECOND_NS)

    async def run(self, js: JetStreamContext) -> None:
        """Publish in order, until cancelled.

        Raises:
            nats.errors.Error: NATS failed. The update waits.
        """
        while True:
            self._arrived.clear()
            await self._publish_waiting(js)
            await self._arrived.wait()

    async def flush(self, js: JetStreamContext) -> None:
        """Publish what waits, and return.

        Raises:
            nats.errors.Error: NATS failed. The rest waits.
        """
        self._take()
        await self._publish_waiting(js)

    async def _publish_waiting(self, js: JetStreamContext) -> None:
        """Publish all: first what NATS has had once, then what is new."""
        while True:
            if self._again:
                await self._publish(js, list(islice(self._again, AT_A_TIME)), self._again.popleft)
            elif records := self._outbox.oldest(AT_A_TIME):
                await self._publish(js, records, self._remove_first)
            else:
                return

    async def _publish(self, js: JetStreamContext, records: Sequence[Record], remove: Callable[[], object]) -> None:
        """Publish updates in order; each is removed when it and all before it are confirmed."""
        sent = await asyncio.gather(*(self._send(js, record) for record in records), return_exceptions=True)
        for record, sequence in zip(records, sent, strict=True):
            if isinstance(sequence, BaseException):
                raise sequence
            self._note_published(record, sequence)
            remove()

    def _remove_first(self) -> None:
        self._outbox.remove_first()
        self.published += 1

    async def _send(self, js: JetStreamContext, record: Record) -> int:
        """Publish an update; return its sequence in the data stream."""
        data = encode_trade_update(record.data, event_id=record.event_id)
        headers = {api.Header.MSG_ID.value: record.event_id}
        try:
            ack = await js.publish(self._subjects.trade_update(record.symbol), data, headers=headers)
        except FAILURES as error:
            self.error = f"{type(error).__name__}: {error}"
            raise
        self.error = ""
        return int(ack.seq)

    def _note_published(self, record: Record, sequence: int) -> None:
        self.last_id = record.event_id
        self._kept.append((sequence, record))

    async def note_acknowledged(self, js: JetStreamContext) -> None:
        """Forget the updates that their reader has acknowledged.

        Raises:
            nats.errors.Error: NATS failed.
        """
        if not self._kept:
            return
        info = await js.consumer_info(self._settings.data_stream, TRADE_UPDATE_CONSUMER)
        floor = info.ack_floor.stream_seq if info.ack_floor is not None else 0
        while self._kept and self._kept[0][0] <= floor:
            self._kept.popleft()

    def note_stream_lost(self) -> None:
        """Publish again, before anything else, what was in a data stream that NATS has forgotten."""
        lost = [record for _, record in self._kept]
        self._kept.clear()
        if lost:
            _log.warning("NATS has forgotten its data stream: updates are published again", updates=len(lost))
        self._again.extend(lost)
        self._arrived.set()

    # --- from the bus

    def _build_queue(self) -> ClientQueue:
        return ClientQueue(QUEUE_CAPACITY, Overflow.CLOSE, on_ready=self._note_ready)

    def _note_ready(self) -> None:
        asyncio.get_running_loop().call_soon(self._take)

    def _take(self) -> None:
        if not self._is_attached and not len(self._queue):
            return
        for event in self._queue.take():
            self._keep(event)
        if self._queue.is_closed:
            # More came in one step of the loop than the queue holds: the rest is in the history.
            self._hub.bus.detach(self._queue)
            self._queue = self._build_queue()
            bus = self._hub.bus
            replay = bus.replay(self._feed, [self._topic], epoch=bus.epoch, offset=self._offset)
            if not replay.recovered:
                _log.error("order updates were lost: more came at once than the hub keeps", feed=self._feed)
                self.lost += 1
            for event in replay.events:
                self._keep(event)
            bus.attach(self._queue, [self._topic])

    def _keep(self, event: HubEvent) -> None:
        self._offset = event.offset
        record = Record(event.event_id, event.symbol, event.ts_recv_ns, dict(event.item))
        try:
            self._outbox.append(record)
        except OSError as error:
            _log.error("the outbox cannot be written: an update waits in memory", reason=error.strerror)
            self._again.append(record)
        self.offered += 1
        self._arrived.set()
        if event.item.get("event") in _MOVES:
            self.positions_changed.set()


class PositionWriter:
    """Keeps the key `positions` as Alpaca answers it.

    Args:
        changed: set after every fill; several before the next request are one.
        settle_s: positions are asked for once more so long after a fill.
    """

    def __init__(
        self,
        account: OrderAccount,
        changed: asyncio.Event,
        *,
        clock: Clock,
        rng: random.Random,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._account = account
        self._changed = changed
        self._clock = clock
        self._rng = rng
        self._settle_s = settle_s
        self._last: bytes | None = None
        self._is_behind = False
        self.written = 0
        self.error = ""

    async def run(self, bucket: KeyValue) -> None:
        """Write at once and after every change, until cancelled.

        Raises:
            nats.errors.Error: NATS failed. The next run begins with a write.
        """
        while True:
            self._begin()
            await self._write(bucket, await self._read_until_answered())
            try:
                await asyncio.wait_for(self._changed.wait(), self._settle_s)
            except TimeoutError:
                data = await self._read_until_answered()
                if data != self._last:
                    await self._write(bucket, data)
                await self._changed.wait()

    async def flush(self, bucket: KeyValue) -> None:
        """Write, if there was a change since the last write.

        Raises:
            BrokerError: Alpaca does not answer.
            nats.errors.Error: NATS failed.
        """
        if self._changed.is_set() or self._is_behind:
            self._begin()
            await self._write(bucket, await self._read())

    def _begin(self) -> None:
        self._is_behind = True  # until it is written: a change from here on is another one
        self._changed.clear()

    async def _write(self, bucket: KeyValue, data: bytes) -> None:
        await bucket.put(KEY, data)
        self._last = data
        self._is_behind = False
        self.written += 1

    async def _read_until_answered(self) -> bytes:
        backoff = Backoff(self._rng)
        while True:
            try:
                data = await self._read()
            except BrokerError as error:
                if not self.error:
                    _log.warning("positions not read", reason=str(error))
                self.error = str(error)
                await asyncio.sleep(backoff.next_wait_s(self._clock.monotonic()))
            else:
                self.error = ""
                return data

    async def _read(self) -> bytes:
        answer = await self._account.call("GET", "/positions")
        if not isinstance(answer, list):
            raise BrokerError("/positions: the answer is no list")
        return encode_positions(item for item in answer if isinstance(item, Mapping))
