"""What has to be at NATS: streams, consumers, buckets. Event-loop only.

What is missing is created. What is there stays as it is: with other subjects or another retention it is of no use to
the hub, which says so; other settings may differ, as a stream that was made with files in place of memory.
"""

from __future__ import annotations

from typing import Any

import structlog
from nats.js import JetStreamContext, api
from nats.js.errors import BucketNotFoundError, NotFoundError
from nats.js.kv import KeyValue

from dry_work.errors import ConfigError
from dry_work.hub.sinks.nats_settings import STOCK_CONSUMER, TRADE_UPDATE_CONSUMER, NatsSettings

ACK_WAIT_S = 30.0
MAX_DELIVER = 3
ACTION_WINDOW_S = 20.0
DATA_WINDOW_S = 120.0

_log = structlog.get_logger(__name__)


class Topology:
    """The hub's things at one NATS server, and what was found there."""

    def __init__(self, settings: NatsSettings) -> None:
        self._settings = settings
        self._told: set[str] = set()
        self.created: list[str] = []  # by the last call of `ensure`
        self.incarnation = ""  # of the action stream: another one counts its messages from 1 again
        self.ack_wait_s = ACK_WAIT_S
        self.max_deliver = MAX_DELIVER

    def streams(self) -> tuple[api.StreamConfig, api.StreamConfig]:
        """Return the action stream and the data stream as they are created."""
        settings, subjects = self._settings, self._settings.subjects
        return (
            _build_stream(
                settings.action_stream,
                subjects.actions,
                api.RetentionPolicy.WORK_QUEUE,
                window_s=ACTION_WINDOW_S,
                compression=api.StoreCompression.S2,
            ),
            _build_stream(
                settings.data_stream,
                subjects.data,
                api.RetentionPolicy.INTEREST,
                window_s=DATA_WINDOW_S,
                compression=api.StoreCompression.NONE,
            ),
        )

    def consumers(self) -> tuple[tuple[str, api.ConsumerConfig], ...]:
        """Return the consumers as they are created, each with its stream."""
        settings, subjects = self._settings, self._settings.subjects
        explicit, none = api.AckPolicy.EXPLICIT, api.AckPolicy.NONE
        action, data = settings.action_stream, settings.data_stream
        return (
            (action, _build_consumer(settings.order_consumer, subjects.orders, explicit)),
            (action, _build_consumer(settings.cancel_consumer, subjects.cancels, explicit)),
            (data, _build_consumer(TRADE_UPDATE_CONSUMER, subjects.trade_updates, explicit)),
            (data, _build_consumer(STOCK_CONSUMER, subjects.stocks, none)),
        )

    async def ensure(self, js: JetStreamContext) -> None:
        """Create what is missing.

        Raises:
            ConfigError: something that is there cannot be used; says what differs.
            nats.errors.Error: NATS did not do it.
        """
        self.created = []
        for stream in self.streams():
            await self._ensure_stream(js, stream)
        for stream_name, consumer in self.consumers():
            await self._ensure_consumer(js, stream_name, consumer)
        for bucket in (self._settings.bucket, self._settings.state_bucket):
            await self._ensure_bucket(js, bucket)
        if self.created:
            _log.info("created at NATS", names=self.created)

    async def bucket(self, js: JetStreamContext) -> KeyValue:
        """Return the public bucket."""
        return await js.key_value(self._settings.bucket)

    async def state(self, js: JetStreamContext) -> KeyValue:
        """Return the hub's own bucket."""
        return await js.key_value(self._settings.state_bucket)

    async def _ensure_stream(self, js: JetStreamContext, wanted: api.StreamConfig) -> None:
        name = str(wanted.name)
        try:
            info = await js.stream_info(name)
        except NotFoundError:
            info = await js.add_stream(wanted)
            self.created.append(name)
        if name == self._settings.action_stream:
            self.incarnation = str(info.created)
        found = info.config
        differences = _compare(wanted, found, ("subjects", "retention"))
        if differences:
            raise ConfigError(
                f"the NATS stream {name} is there, but is not what the hub needs: {differences}. "
                "Remove it, or choose another name (ACTION_STREAM, DATA_STREAM)"
            )
        names = ("storage", "discard", "num_replicas", "duplicate_window", "compression", "max_msgs", "max_bytes")
        self._tell(name, _compare(wanted, found, (*names, "max_msg_size", "max_age", "max_msgs_per_subject")))

    async def _ensure_consumer(self, js: JetStreamContext, stream: str, wanted: api.ConsumerConfig) -> None:
        name = str(wanted.durable_name)
        try:
            found = (await js.consumer_info(stream, name)).config
        except NotFoundError:
            found = (await js.add_consumer(stream, wanted)).config
            self.created.append(name)
        differences = _compare(wanted, found, ("filter_subject", "ack_policy", "deliver_subject"))
        if differences:
            raise ConfigError(
                f"the NATS consumer {name} of {stream} is there, but is not what the hub needs: {differences}. "
                "Remove it, or choose another name (ORDER_CONSUMER, CANCEL_CONSUMER)"
            )
        if name == self._settings.order_consumer:
            self.ack_wait_s = found.ack_wait or ACK_WAIT_S
            self.max_deliver = found.max_deliver or MAX_DELIVER
        self._tell(name, _compare(wanted, found, ("max_deliver", "ack_wait", "replay_policy")))

    async def _ensure_bucket(self, js: JetStreamContext, name: str) -> None:
        try:
            await js.key_value(name)
        except BucketNotFoundError:
            await js.create_key_value(api.KeyValueConfig(bucket=name, direct=True))
            self.created.append(name)

    def _tell(self, name: str, differences: str) -> None:
        if differences and name not in self._told:
            self._told.add(name)
            _log.warning("something at NATS has other settings than the hub would give it", name=name, is_=differences)


def _build_stream(
    name: str, subjects: str, retention: api.RetentionPolicy, *, window_s: float, compression: api.StoreCompression
) -> api.StreamConfig:
    return api.StreamConfig(
        name=name,
        subjects=[subjects],
        retention=retention,
        storage=api.StorageType.MEMORY,
        discard=api.DiscardPolicy.OLD,
        num_replicas=1,
        duplicate_window=window_s,
        compression=compression,
        max_consumers=-1,
        max_msgs=-1,
        max_bytes=-1,
        max_msgs_per_subject=-1,
        max_msg_size=-1,
        max_age=0,
        allow_direct=True,
    )


def _build_consumer(name: str, subjects: str, ack: api.AckPolicy) -> api.ConsumerConfig:
    is_explicit = ack is api.AckPolicy.EXPLICIT
    return api.ConsumerConfig(
        name=name,
        durable_name=name,
        filter_subject=subjects,
        ack_policy=ack,
        deliver_policy=api.DeliverPolicy.ALL,
        replay_policy=api.ReplayPolicy.INSTANT,
        max_deliver=MAX_DELIVER if is_explicit else -1,
        ack_wait=ACK_WAIT_S if is_explicit else None,
        num_replicas=1 if is_explicit else 0,  # 0: as the stream
    )


def _compare(wanted: Any, found: Any, names: tuple[str, ...]) -> str:
    """Return what differs, as a sentence; empty when nothing does."""
    differences = []
    for name in names:
        is_, should_be = _plain(getattr(found, name)), _plain(getattr(wanted, name))
        if is_ != should_be:
            differences.append(f"{name} is {is_!r} and should be {should_be!r}")
    return ", ".join(differences)


def _plain(value: Any) -> Any:
    return getattr(value, "value", value) or None if value != [] else None
