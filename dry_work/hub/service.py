"""The hub as a service: upstream connections for stocks and crypto, whose bars go to Pub/Sub. Thread-safe.

One thread with one event loop holds the connections; each topic has a thread that publishes. Market data crosses to
those threads by the sink's bounded buffers: when a buffer is full, the connection that fills it is not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Iterable, Sequence

import msgspec
import structlog

from dry_work.clock import Clock, SystemClock
from dry_work.errors import HubError
from dry_work.hub.core import Feed, SliceCollector, build_feeds, split_symbols
from dry_work.hub.interest import Interest
from dry_work.hub.settings import DEFAULT_FEED, parse_stream_url
from dry_work.hub.sinks.pubsub import CAPACITY_MESSAGES, PubSubSink, TopicStatus
from dry_work.hub.upstreams.alpaca_data import AlpacaDataConnection, FeedStatus, UpstreamTiming
from dry_work.market.messages import Bar, Watermark
from dry_work.market.symbols import parse_symbol
from dry_work.settings import CRYPTO_TOPIC, MARKET_TOPIC
from dry_work.wire.alpaca_stream import StreamCodec, StreamWatermark

CONFIGURED = "configured"  # the client that holds the symbols given at construction

# A watermark follows its bars at once. When it does not, they are not held back for it any longer than this.
WATERMARK_WAIT_S = 0.02
WATERMARK_WAIT_MESSAGES = 1_000

_log = structlog.get_logger(__name__)


class HubStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The hub at one moment, and its counts since the start."""

    epoch: str
    clients: int
    symbols: int
    feeds: tuple[FeedStatus, ...]
    topics: tuple[TopicStatus, ...]

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
    """Shares one upstream connection per feed with any number of Pub/Sub readers.

    Args:
        upstream_url: base of the market-data WebSocket, such as wss://stream.data.alpaca.markets.
        key: API key of the upstream.
        secret: its secret.
        project: Google Cloud project.
        symbols: symbols wanted from the start.
        pubsub_endpoint: host:port of an emulator; None: `PUBSUB_EMULATOR_HOST` when set, otherwise Google.
        market_topic: topic of stocks.
        crypto_topic: topic of crypto pairs.
        stock_feed: iex, sip, delayed_sip or test.
        codec: how messages of the upstream are written.
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
        project: str,
        symbols: Sequence[str] = (),
        pubsub_endpoint: str | None = None,
        market_topic: str = MARKET_TOPIC,
        crypto_topic: str = CRYPTO_TOPIC,
        stock_feed: str = DEFAULT_FEED,
        codec: StreamCodec = StreamCodec.JSON,
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
        rng = random.Random() if rng is None else rng
        clock = SystemClock() if clock is None else clock
        self.epoch = epoch or f"{clock.time_ns():x}-{rng.getrandbits(32):08x}"
        self._clock = clock
        self._on_failure = on_failure
        self._lock = threading.Lock()  # guards the interest, the thread and whether a failure was reported
        self._interest = Interest()
        self._thread: threading.Thread | None = None
        self._failed = False
        self._stopped = threading.Event()
        self._running = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        feeds = build_feeds(stock_feed=stock_feed, market_topic=market_topic, crypto_topic=crypto_topic)
        self._sink = PubSubSink(
            project=project,
            topics=[feed.topic for feed in feeds],
            endpoint=pubsub_endpoint,
            epoch=self.epoch,
            rng=rng,
            clock=clock,
            batch=batch,
            capacity=capacity,
            on_room=self._announce_room,
            on_failure=self._fail,
        )
        self._targets = [_TopicTarget(feed, self._sink) for feed in feeds]
        self._connections = [
            AlpacaDataConnection(
                feed=feed.name,
                url=url + feed.path,
                key=key,
                secret=secret,
                target=target,
                clock=clock,
                rng=random.Random(rng.getrandbits(64)),
                codec=codec,
                timing=timing,
                on_change=on_feed,
            )
            for feed, target in zip(feeds, self._targets, strict=True)
        ]
        if symbols:
            self.acquire(CONFIGURED, symbols)

    def start(self, timeout_s: float = 10.0) -> None:
        """Create the topics, begin to publish and to connect.

        Returns after the topics are there, or after `timeout_s` seconds when Pub/Sub does not answer; the hub then
        goes on to try.

        Raises:
            ConfigError: when Pub/Sub refuses credentials, project or topic.
        """
        with self._lock:
            if self._thread is not None or self._stopped.is_set():
                raise HubError("a hub is started once")
            self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
        try:
            if not self._sink.start(timeout_s):
                _log.warning("Pub/Sub did not answer in time; trying on", seconds=timeout_s)
        except BaseException:
            self._stopped.set()
            raise
        with self._lock:
            stopped = self._stopped.is_set()  # by another thread, meanwhile
            if not stopped:
                self._thread.start()
        if stopped:
            self._sink.stop(0.0)
            return
        self._running.wait(timeout_s)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Close the connections, publish what was taken, at most `timeout_s` seconds long. May be called twice."""
        with self._lock:
            thread, first = self._thread, not self._stopped.is_set()
            self._stopped.set()
        if not first:
            return
        end_s = self._clock.monotonic() + timeout_s
        self._call_soon(self._stopping.set)
        if thread is not None and thread.ident is not None and thread is not threading.current_thread():
            thread.join(timeout_s)
        self._sink.stop(max(0.0, end_s - self._clock.monotonic()))

    def acquire(self, client: str, symbols: Iterable[str]) -> None:
        """Note that `client` wants `symbols` too; those that are new are subscribed upstream.

        Raises:
            ConfigError: for what is no symbol of a stock or crypto pair. Nothing is acquired then.
        """
        canonical = [parse_symbol(symbol) for symbol in symbols]
        split_symbols(canonical)
        with self._lock:
            added = self._interest.acquire(client, canonical)
        if added:
            self._call_soon(self._pass_interest_on)

    def release(self, client: str, symbols: Iterable[str] | None = None) -> None:
        """Let go of `symbols` (None: all) of `client`; those that nobody wants any more are unsubscribed."""
        canonical = None if symbols is None else [parse_symbol(symbol) for symbol in symbols]
        with self._lock:
            removed = self._interest.release(client, canonical)
        if removed:
            self._call_soon(self._pass_interest_on)

    def status(self) -> HubStatus:
        """Return the hub as it is now."""
        with self._lock:
            clients, symbols = len(self._interest.clients), len(self._interest.wanted)
        return HubStatus(
            epoch=self.epoch,
            clients=clients,
            symbols=symbols,
            feeds=tuple(connection.status() for connection in self._connections),
            topics=self._sink.status(),
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
        tasks = [
            asyncio.create_task(connection.run(), name=f"hub-{connection.status().feed}")
            for connection in self._connections
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

    async def _wait_until_stopped(self) -> None:
        await self._stopping.wait()

    def _pass_interest_on(self) -> None:
        with self._lock:
            wanted = split_symbols(self._interest.wanted)
        for connection, symbols in zip(self._connections, wanted, strict=True):
            connection.want(symbols)

    # --- any thread

    def _call_soon(self, call: Callable[[], None]) -> None:
        if self._loop is None:  # not running yet: it will look at the interest itself
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: the hub has ended
            self._loop.call_soon_threadsafe(call)

    def _announce_room(self) -> None:
        for target in self._targets:
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


class _TopicTarget:
    """Takes the market data of one feed for its topic. Event-loop only."""

    def __init__(self, feed: Feed, sink: PubSubSink) -> None:
        self._topic = feed.topic
        self._sink = sink
        self._collector = SliceCollector()
        self._timer: asyncio.TimerHandle | None = None
        self._room = asyncio.Event()

    def begin_session(self, *, takes_watermarks: bool) -> None:
        self._collector.begin_session(takes_watermarks=takes_watermarks)

    def take(self, items: Sequence[Bar | StreamWatermark]) -> None:
        self._offer(self._collector.add(items))
        if self._collector.waiting >= WATERMARK_WAIT_MESSAGES:
            self._flush()
        elif self._collector.waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WATERMARK_WAIT_S, self._flush)
        elif not self._collector.waiting:
            self._cancel_timer()

    def end_session(self) -> None:
        self._flush()

    def has_room(self) -> bool:
        return self._sink.has_room(self._topic)

    async def wait_for_room(self) -> None:
        while not self.has_room():
            self._room.clear()
            if not self.has_room():
                await self._room.wait()

    def announce_room(self) -> None:
        self._room.set()

    def _flush(self) -> None:
        self._cancel_timer()
        self._offer(self._collector.take())

    def _offer(self, messages: Sequence[Bar | Watermark]) -> None:
        if messages:
            self._sink.offer(self._topic, messages)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
