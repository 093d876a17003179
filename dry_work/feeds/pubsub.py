"""`PubSubMarketDataFeed`: bars from Pub/Sub as a Backtrader data. Engine thread only.

In the live engine it takes the bars that it is offered. In a stock Cerebro the feeds of that Cerebro share one source:
one subscription per topic, and all bars of a slice in one `next`.
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
import time
from collections import deque
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import backtrader as bt

from dry_work.clock import SECOND_NS
from dry_work.errors import ConfigError, FeedError
from dry_work.feeds.base import LiveFeed
from dry_work.feeds.lease import AgentLease, check_agent_id
from dry_work.feeds.router import PubSubMarketSource
from dry_work.market.messages import News, Slice, TradingStatus
from dry_work.market.symbols import is_crypto
from dry_work.ports import MarketSource, SourceFailed, SourceStatus
from dry_work.wakeup import Wakeup

POD_STATE_DIR = Path("/var/lib/trading-agent")
_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - Backtrader's own times are naive UTC


class PubSubMarketDataFeed(LiveFeed):
    """Market data from Google Cloud Pub/Sub.

    Params (beside those of `LiveFeed` and Backtrader's own):

      - ``symbol`` (default: ``None``): ``AAPL`` or ``BTC/USD``; ``dataname`` is taken when it is not given

      - ``project_id`` (default: ``None``): Google Cloud project; ``GOOGLE_CLOUD_PROJECT`` when not given

      - ``topic_name`` (default: ``None``): topic of the symbol's bars; when not given, ``CRYPTO_DATA_TOPIC`` or
        ``crypto-data`` for a crypto pair, ``MARKET_DATA_TOPIC`` or ``market-data`` otherwise

      - ``source`` (default: ``None``): a market source that the live engine reads; the feed then takes what the engine
        offers, and the params below are not looked at

      - ``agent_id`` (default: ``None``): names the subscriptions; ``AGENT_ID`` when not given; when that is not set
        either, a ``local-`` id with a random part

      - ``state_dir`` (default: ``None``): where the lease of the agent id is kept; ``/var/lib/trading-agent`` when that
        is writable, otherwise ``.dry-work`` in the working directory. Not used with a random agent id

      - ``take_over`` (default: ``False``): take the subscriptions from a process that is gone

      - ``endpoint`` (default: ``None``): host:port of an emulator; ``PUBSUB_EMULATOR_HOST`` when not given

      - ``grace_s`` (default: ``5.0``): how long the bars of one time wait for those that are missing

      - ``news_topic`` (default: ``None``): topic of news, which strategies get by ``notify_store("news", news)``

    ``project_id``, ``agent_id``, ``endpoint`` and the length of the bars must be the same for all feeds of a Cerebro;
    of the others that concern the source, the first feed's hold.
    """

    params = (  # type: ignore[assignment] # Backtrader merges them with those of the base class
        ("project_id", None),
        ("topic_name", None),
        ("source", None),
        ("agent_id", None),
        ("state_dir", None),
        ("take_over", False),
        ("endpoint", None),
        ("grace_s", 5.0),
        ("news_topic", None),
    )

    def __init__(self) -> None:
        super().__init__()
        self._shared: _SharedSource | None = None
        if self.p.source is not None:
            self.engine_driven = True

    @property
    def topic(self) -> str:
        """Topic of the symbol's bars."""
        if self.p.topic_name:
            return str(self.p.topic_name)
        if is_crypto(self.symbol):
            return os.environ.get("CRYPTO_DATA_TOPIC") or "crypto-data"
        return os.environ.get("MARKET_DATA_TOPIC") or "market-data"

    # Backtrader's interface

    def start(self) -> None:
        super().start()
        if not self.engine_driven:
            self._shared = _join(self._env, self)

    def stop(self) -> None:
        super().stop()
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.leave(self)

    def do_qcheck(self, onoff: bool, qlapse: float) -> None:
        super().do_qcheck(onoff, qlapse)
        if self._shared is not None:
            self._shared.begin_turn(self)

    def _fetch(self) -> None:
        if self._shared is not None:
            self._shared.fetch(self._qcheck)


class _NoteStore:
    """Hands news and the like to Cerebro, which gives them to the strategies."""

    def __init__(self) -> None:
        self._notes: deque[tuple[str, object]] = deque()

    def put(self, message: str, value: object) -> None:
        self._notes.append((message, value))

    def start(self, data: Any = None, broker: Any = None) -> None:
        """Nothing is to be started."""

    def stop(self) -> None:
        """Nothing is to be stopped."""

    def get_notifications(self) -> list[tuple[str, tuple[object], dict[str, Any]]]:
        notes, self._notes = self._notes, deque()
        return [(message, (value,), {}) for message, value in notes]


class _SharedSource:
    """The source of all feeds of one Cerebro.

    A slice is offered to all of them at once, and the next one when all have taken theirs, so that the loop sees it in
    one turn. In each turn of the loop only one feed may wait, once: a quiet symbol holds nobody up.
    """

    def __init__(self, env: Any, feeds: list[PubSubMarketDataFeed]) -> None:
        first = feeds[0]
        _check_equal(feeds)
        self._env = env
        self._feeds: dict[str, list[PubSubMarketDataFeed]] = {}
        for feed in feeds:
            self._feeds.setdefault(feed.symbol, []).append(feed)
        self._all = feeds
        self._joined: set[int] = set()
        self._turn: set[int] = set()
        self._may_fetch = True
        self._live = False
        self._notes = _NoteStore()
        self._wakeup = Wakeup()
        self._lease: AgentLease | None = None
        agent_id = first.p.agent_id or os.environ.get("AGENT_ID")
        nonce = secrets.token_hex(16)
        if agent_id:
            self._lease = AgentLease(_state_dir(first.p.state_dir, check_agent_id(agent_id)), agent_id)
            nonce = self._lease.acquire().nonce
        try:
            self._source: MarketSource = PubSubMarketSource(
                project_id=first.p.project_id or os.environ.get("GOOGLE_CLOUD_PROJECT") or "",
                symbols=list(self._feeds),
                agent_id=agent_id or f"local-{secrets.token_hex(4)}",
                owner_nonce=nonce,
                topics={feed.symbol: feed.topic for feed in feeds},
                news_topic=first.p.news_topic,
                endpoint=first.p.endpoint,
                length_ns=first.bar_length_ns,
                grace_s=first.p.grace_s,
                take_over=first.p.take_over,
            )
            self._source.start(self._wakeup)
        except BaseException:
            self._release_lease()
            raise
        env.addstore(self._notes)

    def join(self, feed: PubSubMarketDataFeed) -> None:
        """Count a feed as started."""
        self._joined.add(id(feed))

    def has(self, feed: PubSubMarketDataFeed) -> bool:
        """Tell whether a feed counts as started."""
        return id(feed) in self._joined

    def leave(self, feed: PubSubMarketDataFeed) -> None:
        """Count a feed as stopped; with the last one, stop the source."""
        self._joined.discard(id(feed))
        if not self._joined:
            self.close()

    def close(self) -> None:
        """Stop the source. May be called twice."""
        if _SHARED.get(self._env) is self:
            del _SHARED[self._env]
            self._env.stores.remove(self._notes)
        self._source.stop()
        self._release_lease()

    def begin_turn(self, feed: PubSubMarketDataFeed) -> None:
        """Note that the loop comes to `feed`; when it was there before, a new turn has begun."""
        if id(feed) in self._turn:
            self._turn.clear()
            self._may_fetch = True
        self._turn.add(id(feed))

    def fetch(self, wait_s: float) -> None:
        """Offer the next slice to all feeds, waiting for it at most `wait_s` seconds."""
        if not self._may_fetch or any(feed.haslivedata() for feed in self._all):
            return
        self._may_fetch = False
        deadline = time.monotonic() + wait_s
        while True:
            event = self._source.take()
            if event is not None:
                self._handle(event)
                return  # also what is no slice is to be told before anything else happens
            left = deadline - time.monotonic()
            if left <= 0:
                return
            due_s = self._source.wait_s()
            self._wakeup.wait(left if due_s is None else min(left, due_s))

    def _handle(self, event: object) -> None:
        if isinstance(event, Slice):
            self._offer(event)
        elif isinstance(event, News):
            self._notes.put("news", event)
        elif isinstance(event, TradingStatus):
            self._notes.put("trading_status", event)
        elif isinstance(event, SourceStatus):
            self._change_status(event)
        elif isinstance(event, SourceFailed):
            self.close()  # Backtrader stops nothing when a data raises
            if isinstance(event.error, Exception):
                raise event.error
            raise FeedError(f"market data ended: {event.error!r}") from event.error

    def _offer(self, piece: Slice) -> None:
        if not self._live:
            self._live = True
            self._put_status(bt.DataBase.LIVE)
        # Resamplers go by the market's time: the machine's clock would close their bars before the last minute is in.
        market_time = _EPOCH + dt.timedelta(microseconds=piece.end_ns // 1000)
        for data in self._env.datas:
            if hasattr(data, "market_time"):
                data.market_time = market_time
        for bar in piece.bars:
            for feed in self._feeds.get(bar.symbol, ()):
                feed.offer(bar)
        if piece.last:
            for feed in self._all:
                feed.finish()

    def _change_status(self, status: SourceStatus) -> None:
        if not status.connected:
            self._put_status(bt.DataBase.DISCONNECTED, status.detail)
        else:
            self._put_status(bt.DataBase.LIVE if self._live else bt.DataBase.DELAYED)

    def _put_status(self, status: int, *args: Any) -> None:
        for feed in self._all:
            feed.put_notification(status, *args)

    def _release_lease(self) -> None:
        if self._lease is not None:
            self._lease.release()


_SHARED: WeakKeyDictionary[Any, _SharedSource] = WeakKeyDictionary()  # by Cerebro


def _join(env: Any, feed: PubSubMarketDataFeed) -> _SharedSource:
    """Return the source of the Cerebro's feeds, started with all their symbols by the first that comes."""
    shared = _SHARED.get(env)
    if shared is not None and shared.has(feed):  # a run before this one ended with an exception, without any stop
        shared.close()
        shared = None
    if shared is None:
        # All are known here: Cerebro starts its datas after all were added.
        feeds = [data for data in env.datas if isinstance(data, PubSubMarketDataFeed) and not data.engine_driven]
        shared = _SHARED[env] = _SharedSource(env, feeds)
    shared.join(feed)
    return shared


def _check_equal(feeds: list[PubSubMarketDataFeed]) -> None:
    first = feeds[0]
    for feed in feeds[1:]:
        for name in ("project_id", "agent_id", "endpoint"):
            if getattr(feed.p, name) != getattr(first.p, name):
                raise ConfigError(
                    f"{name} of {feed.symbol} is {getattr(feed.p, name)!r} and of {first.symbol} "
                    f"{getattr(first.p, name)!r}: the feeds of one Cerebro share their subscriptions"
                )
        if feed.bar_length_ns != first.bar_length_ns:
            raise ConfigError(
                f"bars of {feed.symbol} have {feed.bar_length_ns // SECOND_NS} s and of {first.symbol} "
                f"{first.bar_length_ns // SECOND_NS} s: give all feeds the same timeframe, and resample"
            )


def _state_dir(given: str | os.PathLike[str] | None, agent_id: str) -> Path:
    if given is not None:
        return Path(given)
    if os.access(POD_STATE_DIR, os.W_OK):
        return POD_STATE_DIR
    return Path(".dry-work") / agent_id
