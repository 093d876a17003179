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
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from dry_work.clock import Clock, SystemClock
from dry_work.errors import ConfigError, HubError
from dry_work.hub.accounts import AccountSettings, HubAccount
from dry_work.hub.bus import DATA_HISTORY, ORDER_HISTORY, Bus
from dry_work.hub.core import ConnectionState, bar_topics, build_feeds, split_wishes, status_topics
from dry_work.hub.event_loop import choose_loop, close_runner
from dry_work.hub.events import ALL, DATA_FEEDS, NEWS, ORDER_FEEDS, WATERMARKS, Topic
from dry_work.hub.interest import Interest
from dry_work.hub.joined_targets import build_targets
from dry_work.hub.ports import (
    TOPIC_CAPACITY,
    ActionTaker,
    HealthPart,
    OrderAccount,
    Sink,
    StateTaker,
    TopicStatus,
)
from dry_work.hub.settings import parse_stream_url
from dry_work.hub.status import HubStatus
from dry_work.hub.upstreams.alpaca_data import AlpacaDataConnection
from dry_work.hub.upstreams.connection import FeedStatus, UpstreamTiming
from dry_work.hub.upstreams.order_sources import build_order_connection
from dry_work.market.symbols import ALLOWED, is_symbol, parse_symbol
from dry_work.pulse import keep_pulse
from dry_work.settings import CRYPTO_TOPIC, DEFAULT_STOCK_FEED, MARKET_TOPIC
from dry_work.wire.alpaca_stream import StreamCodec

if TYPE_CHECKING:
    from dry_work.hub.sinks.pubsub import PubSubSink
    from dry_work.hub.sinks.pubsub_events import EventPump

CONFIGURED = "configured"  # the client that holds the symbols given at construction
STOP_SHARE = 0.9  # of the time to stop: for the interfaces; the rest is for Pub/Sub
ACTIONS_SHARE = 0.5  # of it: for orders under way
SETTLE_S = 0.25  # for the updates of orders that were

_log = structlog.get_logger(__name__)


SinkFactory = Callable[["HubService"], Sink]
Job = Callable[["HubService"], Coroutine[Any, Any, None]]


class FeedSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is particular to the upstream of one feed."""

    url: str = ""  # base of its WebSocket; empty: as the others'
    timing: UpstreamTiming | None = None  # None: as the others'


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
        news_topic: topic of news; empty: no news there.
        news_symbols: whose news go there; none: all.
        orders_topic: topic of the accounts' order updates; empty: none of them there.
        stock_feed: iex, sip, delayed_sip, otc or test.
        option_feed: indicative or opra.
        codec: how messages of the upstream are written; options are always MessagePack.
        accounts: accounts whose order updates are told, one for paper and one for live at most.
        state_dir: keeps over a restart what was told of orders; None: nothing is kept.
        sinks: further interfaces, each made with this hub.
        jobs: what else goes on in the hub's event loop while it runs; a job that ends by an error ends the hub.
        rng: jitter and the epoch.
        clock: receive stamps and the epoch; its monotonic time measures silence and health.
        epoch: goes with every message; None: one of its own, from `clock` and `rng`.
        timing: times of the upstream connections.
        feeds: what differs for some of them, by feed (stocks, options, crypto, news).
        data_history, order_history: events of a feed that a client can go back.
        statuses: trading statuses and price bands of the stocks among `symbols` go to Pub/Sub too.
        batch: publish the bars that came together in one message, in the batch form.
        capacity: bars and watermarks of one topic that may wait for Pub/Sub before upstream is held back.
        health: tells others how the hub is; it is the first part to start and the last to stop.
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
        news_topic: str = "",
        news_symbols: Sequence[str] = (),
        orders_topic: str = "",
        stock_feed: str = DEFAULT_STOCK_FEED,
        option_feed: str = "indicative",
        codec: StreamCodec = StreamCodec.JSON,
        accounts: Sequence[AccountSettings] = (),
        state_dir: Path | None = None,
        sinks: Sequence[SinkFactory] = (),
        jobs: Sequence[Job] = (),
        rng: random.Random | None = None,
        clock: Clock | None = None,
        epoch: str | None = None,
        timing: UpstreamTiming | None = None,
        feeds: Mapping[str, FeedSettings] | None = None,
        data_history: int = DATA_HISTORY,
        order_history: int = ORDER_HISTORY,
        statuses: bool = False,
        batch: bool = False,
        capacity: int = TOPIC_CAPACITY,
        health: Callable[[HubService], HealthPart] | None = None,
        on_feed: Callable[[FeedStatus], None] | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        url = parse_stream_url(upstream_url)
        self.rng = random.Random() if rng is None else rng
        self.clock = SystemClock() if clock is None else clock
        self.epoch = epoch or f"{self.clock.time_ns():x}-{self.rng.getrandbits(32):08x}"
        self.bus = Bus(self.epoch, data_history=data_history, order_history=order_history)
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
        particular = feeds or {}
        served = build_feeds(
            stock_feed=stock_feed, market_topic=market_topic, crypto_topic=crypto_topic, option_feed=option_feed
        )
        self._topics: PubSubSink | None = None
        if project is not None:
            from dry_work.hub.sinks.pubsub import PubSubSink  # who does without Pub/Sub does without Google's libraries

            self._topics = PubSubSink(
                project=project,
                topics=[*(feed.topic for feed in served if feed.topic), *filter(None, (news_topic, orders_topic))],
                endpoint=pubsub_endpoint,
                epoch=self.epoch,
                rng=self.rng,
                clock=self.clock,
                batch=batch,
                capacity=capacity,
                on_room=self._announce_room,
                on_failure=self._fail,
            )
        is_alone = not sinks
        self._targets, self._option_bars = build_targets(
            served, self.bus, self._topics, clock=self.clock, is_alone=is_alone, tells_statuses=statuses
        )
        self._connections = {
            feed.feed: AlpacaDataConnection(
                feed=feed.name,
                url=(particular.get(feed.feed, FeedSettings()).url or url) + feed.path,
                key=key,
                secret=secret,
                target=self._targets[feed.feed],
                clock=self.clock,
                rng=random.Random(self.rng.getrandbits(64)),
                codec=StreamCodec.MSGPACK if feed.needs_msgpack else codec,
                timing=particular.get(feed.feed, FeedSettings()).timing or timing,
                on_change=self._note_feed,
            )
            for feed in served
        }
        self._accounts = {settings.environment: HubAccount(settings) for settings in accounts}
        self._order_connections = {
            account.feed: build_order_connection(
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
        self._pumps = self._build_pumps(news_topic, news_symbols, orders_topic)
        self._sinks = [build(self) for build in sinks]
        self._health = None if health is None else health(self)
        self._jobs = tuple(jobs)
        self._refusal: ConfigError | None = None  # of an interface that cannot be opened
        if symbols:
            self.acquire(CONFIGURED, symbols)
        if statuses and self._topics is not None:  # behind the bars, should there be a limit
            self.hold(CONFIGURED, status_topics(map(parse_symbol, symbols)))

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

    @property
    def is_stopping(self) -> bool:
        """Tell whether `stop` was called: the hub is on its way out."""
        return self._stopped.is_set()

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Finish orders under way, close the connections and deliver what was taken. May be called twice.

        Args:
            timeout_s: seconds that it may take.

        Returns:
            Whether everything was done in that time.
        """
        with self._lock:
            thread, first = self._thread, not self._stopped.is_set()
            self._stopped.set()
            self._stop_timeout_s = timeout_s
        if not first:
            return True
        end_s = self.clock.monotonic() + timeout_s
        self._call_soon(self._stopping.set)
        is_done = True
        if thread is not None and thread.ident is not None and thread is not threading.current_thread():
            thread.join(timeout_s)
            is_done = not thread.is_alive()
        for account in self._accounts.values():
            account.close()
        if self._topics is not None:
            is_done = self._topics.stop(max(0.0, end_s - self.clock.monotonic())) == 0 and is_done
        return is_done

    def is_ready(self) -> bool:
        """Tell whether all that is needed is up; of a hub without a health part, every feed that is wanted."""
        if self._health is not None:
            return self._health.is_ready()
        return all(feed.state is ConnectionState.CONNECTED for feed in self.status().feeds if feed.wanted)

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
        # Orders flow anyway, and watermarks come with whatever is held.
        wanted = [topic for topic in topics if topic[0] not in ORDER_FEEDS and topic[1] != WATERMARKS]
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
            topics=self._topics_status(),
            sinks=tuple(sink.status() for sink in self._sinks),
            option_bars=self._option_bars.read_counts(),
        )

    def _topics_status(self) -> tuple[TopicStatus, ...]:
        pumps = {pump.topic: pump for pump in self._pumps}
        found = () if self._topics is None else self._topics.status()
        return tuple(pumps[status.topic].add_to(status) if status.topic in pumps else status for status in found)

    def _build_pumps(self, news_topic: str, news_symbols: Sequence[str], orders_topic: str) -> list[EventPump]:
        if self._topics is None:
            return []
        from dry_work.hub.sinks.pubsub_events import build_news_pump, build_order_pump

        pumps = []
        if news_topic:
            # Alpaca's news name a pair both ways, BTC/USD and BTCUSD.
            names = dict.fromkeys(name for symbol in news_symbols for name in (symbol, symbol.replace("/", "")))
            topics = [(NEWS, NEWS, name) for name in names or (ALL,)]
            self.hold("pubsub-news", topics)
            pumps.append(build_news_pump(self.bus, self._topics, news_topic, topics))
        if orders_topic:
            accounts = {account.feed: account for account in self._accounts.values()}
            pumps.append(
                build_order_pump(
                    self.bus, self._topics, orders_topic, account_of=lambda feed: accounts[feed].account_id
                )
            )
        return pumps

    # --- the hub's thread

    def _run(self) -> None:
        try:
            runner = asyncio.Runner(loop_factory=choose_loop())
            try:
                runner.run(self._serve())
            finally:
                close_runner(runner)
        except BaseException as error:
            _log.exception("the hub's thread died")
            self._fail(error)
        finally:
            self._running.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        keep_pulse(self._loop)
        if self._stopped.is_set():  # from here on `stop` reaches the loop
            return
        self._pass_interest_on()
        try:
            if self._health is not None:
                await self._health.start()
            for sink in self._sinks:
                await sink.start()
        except ConfigError as error:
            self._refusal = error
            await self._stop_sinks(0.0)
            await self._stop_health()
            return
        for pump in self._pumps:
            pump.start()
        if self._health is not None:
            self._health.note_started()
        tasks = [
            asyncio.create_task(connection.run(), name=f"hub-{connection.status().feed}")
            for connection in (*self._connections.values(), *self._order_connections.values())
        ]
        tasks += [asyncio.create_task(job(self), name="hub-job") for job in self._jobs]
        tasks.append(asyncio.create_task(self._wait_until_stopped(), name="hub-stop"))
        self._running.set()
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            end_s = self._loop.time() + self._stop_timeout_s * STOP_SHARE
            await self._finish_actions(self._stop_timeout_s * ACTIONS_SHARE)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for pump in self._pumps:
                pump.stop()
            await self._stop_sinks(max(0.0, end_s - self._loop.time()))
            await self._stop_health()

    async def _finish_actions(self, timeout_s: float) -> None:
        """Let orders under way come to their end, while the upstreams still tell of them."""
        takers = [sink for sink in self._sinks if isinstance(sink, ActionTaker)]
        results = await asyncio.gather(*(sink.finish_actions(timeout_s) for sink in takers), return_exceptions=True)
        self._note_failures(results)
        if True in results:
            await asyncio.sleep(min(SETTLE_S, timeout_s))  # the update of an order comes after the answer to it

    async def _stop_sinks(self, timeout_s: float) -> None:
        """Let every interface deliver what it has, all at once, and close."""
        self._note_failures(
            await asyncio.gather(*(sink.stop(timeout_s) for sink in self._sinks), return_exceptions=True)
        )

    async def _stop_health(self) -> None:
        if self._health is not None:
            self._note_failures(await asyncio.gather(self._health.stop(), return_exceptions=True))

    def _note_failures(self, results: Iterable[object]) -> None:
        for result in results:
            if isinstance(result, BaseException):
                _log.error("an interface did not close in order", error=f"{type(result).__name__}: {result}")

    async def _wait_until_stopped(self) -> None:
        await self._stopping.wait()

    def _pass_interest_on(self) -> None:
        with self._lock:
            wanted = split_wishes(self._interest.wanted)
        for feed, connection in self._connections.items():
            wishes = wanted.get(feed, ())
            self._targets[feed].want(wishes)
            connection.want(wishes)

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
        for pump in self._pumps:
            self._call_soon(pump.run)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            first, self._failed = not self._failed, True
        if first and self._on_failure is not None:
            self._on_failure(error)
