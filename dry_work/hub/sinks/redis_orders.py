"""Order updates of one account to Redis. Event-loop only.

They wait in a file until Redis has them, over a restart of the hub too. The account's stream is the memory of what was
published: an update that is there is not published again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from dry_work.hub.events import ALL, LIVE_ORDERS, ORDERS, PAPER_ORDERS, HubEvent, Topic
from dry_work.hub.ports import HubPort, OrderAccount
from dry_work.hub.queues import ClientQueue, Overflow
from dry_work.hub.sinks.nats_outbox import Outbox, Record
from dry_work.hub.sinks.redis_data import NOT_NOW, StreamWriter
from dry_work.hub.sinks.redis_link import RedisConnection, RedisError, wait_for_listeners
from dry_work.hub.sinks.redis_logs import LogChannel
from dry_work.hub.sinks.redis_settings import RedisSettings
from dry_work.wire.redis import (
    encode_item,
    encode_legacy_order,
    encode_order,
    legacy_channel,
    order_channel,
    stream_key,
)
from dry_work.wire.redis_protocol import ReplyError, encode_command

QUEUE_CAPACITY = 4_096
REMEMBERED = 2_000  # event ids
ACCOUNT_CHECK_S = 0.2  # until Alpaca has told the account's id

_log = structlog.get_logger(__name__)


class OrderPublisher:
    """Order updates, from the bus through an outbox to Redis.

    Args:
        account: whose.
        names: gives further names of the account that programs have registered.
        state_dir: folder of the outbox; None: what is not published ends with the process.

    Raises:
        ConfigError: the outbox cannot be used.
    """

    def __init__(
        self,
        hub: HubPort,
        account: OrderAccount,
        settings: RedisSettings,
        logs: LogChannel,
        *,
        names: Callable[[], Iterable[str]],
        state_dir: Path | None,
    ) -> None:
        self._hub = hub
        self._account = account
        self._settings = settings
        self._logs = logs
        self._names = names
        self._feed = PAPER_ORDERS if account.environment == "paper" else LIVE_ORDERS
        self._topic: Topic = (self._feed, ORDERS, ALL)
        self._outbox = Outbox(None if state_dir is None else state_dir / f"redis-{account.environment}.outbox")
        self._queue = self._build_queue()
        self._offset = 0
        self._streams = StreamWriter(settings.stream_length, hub.clock)
        self._arrived = asyncio.Event()
        self._told: OrderedDict[str, None] = OrderedDict()  # ids of events that are in the stream
        self._is_attached = False
        self.has_listeners = False  # when it was last looked
        self.offered = self._outbox.waiting
        self.delivered = 0
        self.dropped = 0
        self.error = ""

    @property
    def waiting(self) -> int:
        """Updates that are not published."""
        return self._outbox.waiting

    @property
    def is_identified(self) -> bool:
        """Tell whether the account's id is known; before, nothing can be published."""
        return bool(self._account.account_id)

    def attach(self) -> None:
        """Take updates from now on."""
        self._offset = self._hub.bus.position(self._feed)
        self._hub.bus.attach(self._queue, [self._topic])
        self._is_attached = True

    def close(self) -> None:
        """Take no more updates; what is not published stays in the file. May be called twice."""
        if self._is_attached:
            self._take()
            self._is_attached = False
            self._hub.bus.detach(self._queue)
        self._outbox.close()

    def take(self) -> None:
        """Take what has come by now."""
        if self._is_attached:
            self._take()

    async def run(self, connection: RedisConnection) -> None:
        """Publish, each update after the one before, until cancelled.

        Raises:
            RedisError, OSError, EOFError, TimeoutError: the connection is of no use any more. The update waits.
        """
        while not self.is_identified:  # noqa: ASYNC110 - the account does not tell
            await asyncio.sleep(ACCOUNT_CHECK_S)
        self._streams.begin_session()
        await self._recall(connection)
        if self.has_listeners:
            await wait_for_listeners(connection, self.channels, self._hub.clock)
        while True:
            self._arrived.clear()
            while (record := self._outbox.first()) is not None:
                await self._publish(connection, record)
                # While it was published it may have gone for lack of room.
                if (first := self._outbox.first()) is not None and first.event_id == record.event_id:
                    self._outbox.remove_first()
                    self.delivered += 1
            await self._arrived.wait()

    @property
    def _key(self) -> str:
        return stream_key(self._feed, ORDERS, self._account.account_id)

    @property
    def channels(self) -> list[str]:
        """The channels that bring the updates."""
        account = self._account
        names = dict.fromkeys(filter(None, (account.account_id, account.account_number, *self._names())))
        return [order_channel(name) for name in names]

    async def _recall(self, connection: RedisConnection) -> None:
        """Learn what the stream has: of the update that was under way it is not known otherwise."""
        if not self._streams.is_on:
            return
        command = encode_command(b"XREVRANGE", self._key.encode(), b"+", b"-", b"COUNT", b"%d" % REMEMBERED)
        (entries,) = await connection.run([command], 1)
        if isinstance(entries, ReplyError):
            _log.error("the stream of order updates cannot be read", key=self._key, reason=entries.text)
            return
        self._told.clear()
        for _, fields in reversed(entries):
            found = dict(zip(fields[::2], fields[1::2], strict=False))
            self._remember(found.get(b"event_id", b"").decode("utf-8", "replace"))

    async def _publish(self, connection: RedisConnection, record: Record) -> None:
        if record.event_id in self._told:
            return
        data, offset = record.data["item"], int(record.data["offset"])
        message = encode_order(data, event_id=record.event_id, seq=offset)
        channels = dict.fromkeys(self.channels, message)
        if self._settings.has_legacy:
            channels[legacy_channel(record.symbol)] = encode_legacy_order(data, time_ns=self._hub.clock.time_ns())
        commands = [encode_command(b"PUBLISH", name.encode(), text) for name, text in channels.items()]
        if self._streams.is_on:
            # Last: when it is there, the messages are out.
            commands += self._streams.encode(
                self._key,
                epoch=str(record.data["epoch"]),
                offset=offset,
                recv_ns=record.ts_recv_ns,
                item=encode_item(data),
                event_id=record.event_id,
            )
        replies = await connection.run(commands, len(commands))
        published, added = replies[: len(channels)], replies[len(channels) :]
        self._check(published, added, record)
        self.has_listeners = any(published)
        self._remember(record.event_id)

    def _check(self, published: list[object], added: list[object], record: Record) -> None:
        for reply in (*published, *added):
            if isinstance(reply, ReplyError) and (reply.code in NOT_NOW or reply in published):
                self.error = f"Redis refuses order updates: {reply.text}"
                raise RedisError(reply.text)
        refused = [reply.text for reply in added if isinstance(reply, ReplyError)]
        if refused:  # a stream that is of no use does not hold up those who listen
            self.error = f"Redis refuses order updates in {self._key}: {refused[0]}"
            self._logs.say(
                "error",
                "lost",
                f"an order update was published but is not in its stream: {refused[0]}",
                event_id=record.event_id,
                key=self._key,
            )
        else:
            self.error = ""

    def _remember(self, event_id: str) -> None:
        self._told[event_id] = None
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)

    # --- from the bus

    def _build_queue(self) -> ClientQueue:
        return ClientQueue(QUEUE_CAPACITY, Overflow.CLOSE, on_ready=self._note_ready)

    def _note_ready(self) -> None:
        asyncio.get_running_loop().call_soon(self.take)

    def _take(self) -> None:
        for event in self._queue.take():
            self._keep(event)
        if self._queue.is_closed:
            # More came in one step of the loop than the queue holds: the rest is in the history.
            bus = self._hub.bus
            bus.detach(self._queue)
            self._queue = self._build_queue()
            replay = bus.replay(self._feed, [self._topic], epoch=bus.epoch, offset=self._offset)
            if not replay.recovered:
                self._tell_lost("order updates were lost: more came at once than the hub keeps")
            for event in replay.events:
                self._keep(event)
            bus.attach(self._queue, [self._topic])

    def _keep(self, event: HubEvent) -> None:
        self._offset = event.offset
        data = {"epoch": event.epoch, "offset": event.offset, "item": event.item}
        self.offered += 1
        if self._outbox.waiting >= self._settings.order_capacity:
            self._outbox.remove_first()
            self.dropped += 1
            if self.dropped == 1 or self.dropped % 1_000 == 0:
                self._tell_lost(f"{self.dropped} order updates were lost: more than that wait for Redis")
        try:
            self._outbox.append(Record(event.event_id, event.symbol, event.ts_recv_ns, data))
        except OSError as error:
            self.dropped += 1
            self._tell_lost(f"an order update was lost: the outbox cannot be written: {error.strerror}")
        self._arrived.set()

    def _tell_lost(self, message: str) -> None:
        self._logs.say("error", "lost", message, feed=self._feed)
