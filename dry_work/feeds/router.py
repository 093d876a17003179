"""Market data of one agent from Pub/Sub: one subscription per topic, any number of symbols, slices out.

A thread of its own opens lost streams again and looks after the ownership; see `BufferedSource` for the rest.
"""

from __future__ import annotations

import os
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import structlog

from dry_work.clock import MINUTE_NS, Clock
from dry_work.errors import CodecError, ConfigError
from dry_work.feeds.intake import Item, Skipped
from dry_work.feeds.source import BufferedSource, ReaderSettings, venue_time_of
from dry_work.feeds.subscriber import PulledMessage, Subscriber
from dry_work.feeds.subscriptions import SubscriptionKeeper, build_labels, subscription_id
from dry_work.market.symbols import is_crypto
from dry_work.recording.recorder import RecordedMessage, Recorder
from dry_work.wire.pubsub import parse_message, parse_sequence

_MESSAGE_IDS_KEPT = 10_000

_log = structlog.get_logger(__name__)


class PubSubMarketSource(BufferedSource):
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
        length_ns, grace_s, watermarks, buffer_messages, stale_s, is_open, drops_late, tells_revised: see
            `ReaderSettings`.
        connect_timeout_s: limit of each request to Pub/Sub.
        owner_check_s: seconds between looks at whether the subscriptions are still ours.
        recorder: is handed each message as it was received; None: nothing is recorded.

    Counters, beside those of `BufferedSource`: `redelivered_messages`, `reconnects`, `recreated_subscriptions` (that
    were gone). `start` raises LeaseHeldError too, when a subscription belongs to another process.
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
        stops_when_stale: bool = False,
        drops_late: bool = False,
        tells_revised: bool = False,
        take_over: bool = False,
        connect_timeout_s: float = 10.0,
        owner_check_s: float = 60.0,
        recorder: Recorder | None = None,
    ) -> None:
        named = topics or {}
        bar_topics = list(
            dict.fromkeys(named.get(symbol, crypto_topic if is_crypto(symbol) else market_topic) for symbol in symbols)
        )
        all_topics = dict.fromkeys(bar_topics if news_topic is None else [*bar_topics, news_topic])
        super().__init__(
            symbols=symbols,
            bar_topics=bar_topics,
            topics=all_topics,
            settings=ReaderSettings(
                length_ns=length_ns,
                grace_s=grace_s,
                watermarks=watermarks,
                buffer_messages=buffer_messages,
                stale_s=stale_s,
                is_open=is_open,
                stops_when_stale=stops_when_stale,
                drops_late=drops_late,
                tells_revised=tells_revised,
            ),
            clock=clock,
            recorder=recorder,
        )
        if not project_id:
            raise ConfigError("no project: set GOOGLE_CLOUD_PROJECT")
        self._subscriptions = {topic: subscription_id(agent_id, topic) for topic in all_topics}
        self._project_id = project_id
        self._agent_id = agent_id
        self._endpoint = endpoint or os.environ.get("PUBSUB_EMULATOR_HOST") or None
        self._labels = build_labels(owner_nonce, self._clock)
        self._rng = rng if rng is not None else random.Random()
        self._take_over = take_over
        self._connect_timeout_s = connect_timeout_s
        self._owner_check_s = owner_check_s
        self._message_ids: OrderedDict[str, None] = OrderedDict()
        self._keeper: SubscriptionKeeper | None = None

    # Life cycle

    def _open(self) -> None:
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
        self._keeper.claim(take_over=self._take_over, agent_id=self._agent_id)
        self._keeper.start()
        _log.info("subscribed", subscriptions=list(self._subscriptions.values()), project=self._project_id)

    def _close(self, timeout_s: float) -> None:
        if self._keeper is not None:
            self._keeper.stop(timeout_s)

    def _link_counts(self) -> Mapping[str, int]:
        if self._keeper is None:
            return {}
        return {"reconnects": self._keeper.reconnects, "recreated_subscriptions": self._keeper.recreated}

    # Client's threads

    def _receive(self, topic: str, message: PulledMessage, tend: Callable[[], None]) -> bool:
        """Read a message into the buffer; False when it was not taken."""
        recv_ns = self._clock.time_ns()
        received = RecordedMessage(topic, message.data, message.attributes, message.message_id, message.publish_ns)
        item: Item | None = None
        venue_ns = 0
        try:
            envelope = parse_message(
                topic, message.data, message.attributes, recv_ns=recv_ns, length_ns=self._length_ns
            )
            venue_ns = venue_time_of(envelope)
            envelope = self._without_future(received, envelope, recv_ns)
            self._count_message(envelope)
            if not envelope.epoch and self._is_redelivered(message.message_id):
                self._count_received("redelivered_messages")
            else:
                item = envelope
        except CodecError as error:
            self._note_dropped(received, error.reason)
            epoch, seq = parse_sequence(message.attributes)
            if epoch:
                item = Skipped(topic, epoch, seq)
        self._record(received, venue_ns=venue_ns, recv_ns=recv_ns)
        return item is None or self._put(item, tend)

    def _is_redelivered(self, message_id: str) -> bool:
        with self._received_lock:
            if message_id in self._message_ids:
                return True
            self._message_ids[message_id] = None
            if len(self._message_ids) > _MESSAGE_IDS_KEPT:
                self._message_ids.popitem(last=False)
            return False
