"""The hub as a service: upstream connections, the bus between, and the interfaces that clients use. Thread-safe.

One thread with one event loop holds the connections and the interfaces; each topic of Pub/Sub has a thread that
publishes. Market data crosses to those threads by bounded buffers: when a buffer is full, the connection that fills it
is not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import structlog

from dry_work.clock import Clock, SystemClock
from dry_work.errors import ConfigError, HubError
from dry_work.hub.accounts import AccountSettings, HubAccount
from dry_work.hub.bus import Bus
from dry_work.hub.core import bar_topics, build_feeds
from dry_work.hub.events import ALL, DATA_FEEDS, ORDER_FEEDS, Topic
from dry_work.hub.interest import Interest
from dry_work.hub.ports import OrderAccount, Sink, SinkStatus, StateTaker
from dry_work.hub.settings import DEFAULT_FEED, parse_stream_url
from dry_work.hub.sinks.pubsub import CAPACITY_MESSAGES, PubSubSink, TopicStatus
from dry_work.hub.targets import FeedTarget
from dry_work.hub.upstreams.alpaca_data import AlpacaDataConnection
from dry_work.hub.upstreams.connection import FeedStatus, UpstreamTiming
from dry_work.hub.upstreams.trade_updates import TradeUpdatesConnection
from dry_work.market.symbols import ALLOWED, is_symbol, parse_symbol
from dry_work.settings import CRYPTO_TOPIC, MARKET_TOPIC
from dry_work.wire.alpaca_stream import StreamCodec

CONFIGURED = "configured"  # the client that holds the symbols given at construction

_log = structlog.get_logger(__name__)


SinkFactory = Callable[["HubService"], Sink]


class HubStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The hub at one moment, and its counts since the start."""

    epoch: str
    clients: int
    symbols: int
    feeds: tuple[FeedStatus, ...]
    topics: tuple[TopicStatus, ...]
    sinks: tuple[SinkStatus, ...] = ()

    @property
    def received(self) -> int:
        """Bars and watermarks taken from upstream."""
        return sum(feed.bars + feed.watermarks for feed in self.feeds)

    @property
    def published(self) -> int:
        """Messages that the sinks have taken."""
        return sum(topic.published for topic in self.topics)

    @property
    def dropped(self) -> int:
        """What came from upstream and was lost: items that could not be read, messages given up at stop."""
        unread = sum(sum(feed.malformed.values()) for feed in self.feeds)
        return unread + sum(topic.dropped for topic in self.topics)

    @property
    def reconnects(self) -> int:
        """Upstream connections opened after the first of their feed."""
        return sum(feed.reconnects for feed in self.feeds)


class HubService:
    """Shares one upstream connection per feed with any number of readers.

    Args:
        upstream_url: base of the market-data WebSocket, such as wss://stream.data.alpaca.markets.
        key: API key of the upstream.
        secret: its secret.
        project: Google Cloud project whose topics take the bars; None: Pub/Sub is off.
        symbols: symbols whose bars are wanted from the start.
        pubsub_endpoint: host:port of an emulator; None: `PUBSUB_EMULATOR_HOST` when set, otherwise Google.
        market_topic: topic of stocks.
        crypto_topic: topic of crypto pairs.
        stock_feed: iex, sip, delayed_sip, otc or test.
        option_feed: indicative or opra.
        codec: how messages of the upstream are written; options are always MessagePack.
        accounts: accounts whose order updates are told, one for paper and one for live at most.
        state_dir: keeps over a restart what was told of orders; None: nothing is kept.
        sinks: further interfaces, each made with this hub.
        rng: jitter and the epoch.
        clock: receive stamps and the epoch; its monotonic time measures silence and health.
        epoch: goes with every message; None: one of its own, from `clock` and `rng`.
        timing: times of the upstream connections.
        batch: publish the bars that came together in one message, in the batch form.
        capacity: bars and watermarks of one topic that may wait for Pub/Sub before upstream is held back.
        on_feed: called from the hub's thread after every change of a feed's state; it returns quickly.
        on_failure: called once when a thread of the hub dies.
    """

    def __init__(
        self,
        upstream_url: str,
        *,
        key: str,
        secret: str,
        project: str | None = None,
        symbols: Sequence[str] = (),
        pubsub_endpoint: str | None = None,
        market_topic: str = MARKET_TOPIC,
        crypto_topic: str = CRYPTO_TOPIC,
        stock_feed: str = DEFAULT_FEED,
        option_feed: str = "indicative",
        codec: StreamCodec = StreamCodec.JSON,
        accounts: Sequence[AccountSettings] = (),
        state_dir: Path | None = None,
        sinks: Sequence[SinkFactory] = (),
        rng: random.Random | None = None,
        clock: Clock | None = None,
        epoch: str | None = None,
        timing: UpstreamTiming | None = None,
        batch: bool = False,
        capacity: int = CAPACITY_MESSAGES,
        on_feed: Callable[[FeedStatus], None] | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        url = parse_stream_url(upstream_url)
        self.rng = random.Random() if rng is None else rng
        self.clock = SystemClock() if clock is None else clock
        self.epoch = epoch or f"{self.clock.time_ns():x}-{self.rng.getrandbits(32):08x}"
        self.bus = Bus(self.epoch)
        self._on_failure = on_failure
        self._lock = threading.Lock()  # guards the interest, the thread and whether a failure was reported
        self._interest: Interest[Topic] = Interest()
        self._thread: threading.Thread | None = None
        self._failed = False
        self._stopped = threading.Event()
        self._running = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._stop_timeout_s = 5.0
        feeds = build_feeds(
            stock_feed=stock_feed, market_topic=market_topic, crypto_topic=crypto_topic, option_feed=option_feed
        )
        self._topics: PubSubSink | None = None
        if project is not None:
            self._topics = PubSubSink(
                project=project,
                topics=[feed.topic for feed in feeds if feed.topic],
                endpoint=pubsub_endpoint,
                epoch=self.epoch,
                rng=self.rng,
                clock=self.clock,
                batch=batch,
                capacity=capacity,
                on_room=self._announce_room,
                on_failure=self._fail,
            )
        self._targets = {feed.feed: FeedTarget(feed, self.bus, self._topics) for feed in feeds}
        self._connections = {
            feed.feed: AlpacaDataConnection(
                feed=feed.name,
                url=url + feed.path,
                key=key,
                secret=secret,
                target=self._targets[feed.feed],
                clock=self.clock,
                rng=random.Random(self.rng.getrandbits(64)),
                codec=StreamCodec.MSGPACK if feed.needs_msgpack else codec,
                timing=timing,
                on_change=on_feed,
            )
            for feed in feeds
        }
        self._accounts = {settings.environment: HubAccount(settings) for settings in accounts}
        self._order_connections = {
            account.feed: TradeUpdatesConnection(
                account,
                self.bus,
                clock=self.clock,
                rng=random.Random(self.rng.getrandbits(64)),
                memory=None if state_dir is None else state_dir / f"{account.feed}.json",
                timing=timing,
                on_change=self._note_feed,
            )
            for account in self._accounts.values()
        }
        self._on_feed = on_feed
        self._sinks = [build(self) for build in sinks]
        self._refusal: ConfigError | None = None  # of an interface that cannot be opened
        if symbols:
            self.acquire(CONFIGURED, symbols)

    def start(self, timeout_s: float = 10.0) -> None:
        """Create the topics, begin to publish, to connect and to serve.

        Returns after the topics are there, or after `timeout_s` seconds when Pub/Sub does not answer; the hub then
        goes on to try.

        Raises:
            ConfigError: when Pub/Sub refuses credentials, project or topic, or an interface cannot be opened.
        """
        with self._lock:
            if self._thread is not None or self._stopped.is_set():
                raise HubError("a hub is started once")
            self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
        try:
            if self._topics is not None and not self._topics.start(timeout_s):
                _log.warning("Pub/Sub did not answer in time; trying on", seconds=timeout_s)
        except BaseException:
            self._stopped.set()
            raise
        with self._lock:
            stopped = self._stopped.is_set()  # by another thread, meanwhile
            if not stopped:
                self._thread.start()
        if stopped:
            if self._topics is not None:
                self._topics.stop(0.0)
            return
        self._running.wait(timeout_s)
        if self._refusal is not None:
            self.stop(0.0)
            raise self._refusal

    def stop(self, timeout_s: float = 5.0) -> None:
        """Close the connections, deliver what was taken, at most `timeout_s` seconds long. May be called twice."""
        with self._lock:
            thread, first = self._thread, not self._stopped.is_set()
            self._stopped.set()
            self._stop_timeout_s = timeout_s
        if not first:
            return
        end_s = self.clock.monotonic() + timeout_s
        self._call_soon(self._stopping.set)
        if thread is not None and thread.ident is not None and thread is not threading.current_thread():
            thread.join(timeout_s)
        for account in self._accounts.values():
            account.close()
        if self._topics is not None:
            self._topics.stop(max(0.0, end_s - self.clock.monotonic()))

    # --- what clients want; any thread

    def acquire(self, client: str, symbols: Iterable[str]) -> None:
        """Hold the minute bars of `symbols` for `client`.

        Raises:
            ConfigError: for what is no symbol of a stock or crypto pair. Nothing is held then.
        """
        self.hold(client, bar_topics(parse_symbol(symbol) for symbol in symbols))

    def hold(self, client: str, topics: Iterable[Topic]) -> None:
        """Note that `client` wants `topics` too; those that nobody wanted before are subscribed upstream.

        Raises:
            ConfigError: for a topic that no upstream serves. Nothing is held then.
        """
        wanted = [topic for topic in topics if topic[0] not in ORDER_FEEDS]
        for feed, _, symbol in wanted:
            if feed not in DATA_FEEDS:
                raise ConfigError(f"{feed!r} is not a feed of the hub: expected one of {', '.join(DATA_FEEDS)}")
            if symbol != ALL and not is_symbol(symbol):
                raise ConfigError(f"{symbol!r} is not a symbol: expected {ALLOWED}")
        with self._lock:
            added = self._interest.acquire(client, wanted)
        if added:
            self._call_soon(self._pass_interest_on)

    def release(self, client: str, topics: Iterable[Topic] | None = None) -> None:
        """Let go of `topics` (None: all) of `client`; those that nobody wants any more are unsubscribed."""
        with self._lock:
            removed = self._interest.release(client, topics)
        if removed:
            self._call_soon(self._pass_interest_on)

    def account(self, environment: str) -> OrderAccount | None:
        """Return the account of `paper` or `live`; None when the hub has no credentials for it."""
        return self._accounts.get(environment)

    def status(self) -> HubStatus:
        """Return the hub as it is now."""
        with self._lock:
            clients = len(self._interest.clients)
            symbols = len({symbol for _, _, symbol in self._interest.wanted})
        return HubStatus(
            epoch=self.epoch,
            clients=clients,
            symbols=symbols,
            feeds=tuple(
                connection.status() for connection in (*self._connections.values(), *self._order_connections.values())
            ),
            topics=self._topics.status() if self._topics is not None else (),
            sinks=tuple(sink.status() for sink in self._sinks),
        )

    # --- the hub's thread

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=_choose_loop()) as runner:
                runner.run(self._serve())
        except BaseException as error:
            _log.exception("the hub's thread died")
            self._fail(error)
        finally:
            self._running.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._stopped.is_set():  # from here on `stop` reaches the loop
            return
        self._pass_interest_on()
        try:
            for sink in self._sinks:
                await sink.start()
        except ConfigError as error:
            self._refusal = error
            await self._stop_sinks()
            return
        tasks = [
            asyncio.create_task(connection.run(), name=f"hub-{connection.status().feed}")
            for connection in (*self._connections.values(), *self._order_connections.values())
        ]
        tasks.append(asyncio.create_task(self._wait_until_stopped(), name="hub-stop"))
        self._running.set()
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._stop_sinks()

    async def _stop_sinks(self) -> None:
        """Let every interface deliver what it has, all at once, and close."""
        stops = [sink.stop(self._stop_timeout_s) for sink in self._sinks]
        for result in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(result, BaseException):
                _log.error("an interface did not close in order", error=f"{type(result).__name__}: {result}")

    async def _wait_until_stopped(self) -> None:
        await self._stopping.wait()

    def _pass_interest_on(self) -> None:
        wanted: dict[str, list[tuple[str, str]]] = {feed: [] for feed in self._connections}
        with self._lock:
            for feed, channel, symbol in self._interest.wanted:
                wanted[feed].append((channel, symbol))
        for feed, wishes in wanted.items():
            self._connections[feed].want(wishes)

    def _note_feed(self, status: FeedStatus) -> None:
        """Tell of a feed's state, to the interfaces that pass it on too."""
        for sink in self._sinks:
            if isinstance(sink, StateTaker):
                sink.note_state(status.feed, status.state)
        if self._on_feed is not None:
            self._on_feed(status)

    # --- any thread

    def _call_soon(self, call: Callable[[], None]) -> None:
        if self._loop is None:  # not running yet: it will look at the interest itself
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: the hub has ended
            self._loop.call_soon_threadsafe(call)

    def _announce_room(self) -> None:
        for target in self._targets.values():
            self._call_soon(target.announce_room)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            first, self._failed = not self._failed, True
        if first and self._on_failure is not None:
            self._on_failure(error)


def _choose_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop, which the extra `hub` installs, or None for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
