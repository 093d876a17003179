"""Where the market data of stocks and of options goes: bars of options are made here, and go out with those of stocks.

Event-loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import structlog

from dry_work.clock import SECOND_NS, Clock
from dry_work.hub.bus import Bus
from dry_work.hub.core import Feed, UpstreamMessage
from dry_work.hub.events import ALL, OPTION_BARS, OPTIONS, STOCKS
from dry_work.hub.option_bars import OptionBars
from dry_work.hub.slice_join import Part, SliceJoin, cut_parts
from dry_work.hub.targets import FeedTarget
from dry_work.hub.upstreams.alpaca_data import Item
from dry_work.hub.upstreams.subscription_plan import Wish
from dry_work.market.messages import Bar
from dry_work.wire.alpaca_stream import StreamWatermark, encode_bar_item

if TYPE_CHECKING:
    from dry_work.hub.sinks.pubsub import PubSubSink

LATE_S = 1.0  # behind its minute a bar of an option is closed, where no watermark closes it
HOLD_S = 30.0  # the watermark of one connection waits so long for that of the other

_log = structlog.get_logger(__name__)


class StockTarget(FeedTarget):
    """Takes the market data of stocks, and the bars of options."""

    def __init__(
        self,
        feed: Feed,
        bus: Bus,
        topics: PubSubSink | None = None,
        *,
        is_alone: bool = True,
        tells_statuses: bool = False,
    ) -> None:
        super().__init__(feed, bus, topics, is_alone=is_alone, tells_statuses=tells_statuses)
        self._join = SliceJoin((STOCKS, OPTIONS))
        self._takes_watermarks = False
        self._hold: asyncio.TimerHandle | None = None

    def begin_session(self, *, takes_watermarks: bool) -> None:
        super().begin_session(takes_watermarks=takes_watermarks)
        self._takes_watermarks = takes_watermarks
        if takes_watermarks:
            self._join.begin(STOCKS)
        else:
            self._pass_on(self._join.leave(STOCKS))

    def take(self, items: Sequence[Item], messages: Sequence[UpstreamMessage], *, recv_ns: int) -> None:
        if not self._takes_watermarks and not self._join.is_waiting:
            super().take(items, messages, recv_ns=recv_ns)
        else:
            self._pass_on(self._join.push(STOCKS, cut_parts(items, messages, recv_ns)))

    def end_session(self) -> None:
        super().end_session()
        if not self._is_wanted:
            self._pass_on(self._join.leave(STOCKS))

    def begin_options(self) -> None:
        """The connection of options sends watermarks from now on."""
        self._join.begin(OPTIONS)
        if not self._takes_watermarks:
            self._collector.begin_session(takes_watermarks=True)

    def leave_options(self) -> None:
        """Wait for watermarks of options no longer."""
        self._pass_on(self._join.leave(OPTIONS))

    def take_options(self, parts: Iterable[Part]) -> None:
        """Take bars of options, and the watermarks behind them."""
        self._pass_on(self._join.push(OPTIONS, parts))

    def _pass_on(self, parts: Iterable[Part]) -> None:
        for part in parts:
            super().take(part.items, part.messages, recv_ns=part.recv_ns)
        if not self._join.lagging:
            if self._hold is not None:
                self._hold.cancel()
                self._hold = None
        elif self._hold is None:
            self._hold = asyncio.get_running_loop().call_later(HOLD_S, self._give_up)

    def _give_up(self) -> None:
        self._hold = None
        for source in self._join.lagging:
            _log.warning("a slice goes without the bars of a connection that is silent", feed=source, seconds=HOLD_S)
            self._pass_on(self._join.leave(source))


class OptionTarget(FeedTarget):
    """Takes the market data of options, and makes bars of the trades of those whose bars are wanted.

    Where watermarks come they close the bars. Otherwise the clock does, `LATE_S` behind the end of the minute, and
    later by as much as the feed is late.

    Args:
        stocks: takes the bars.
        bars: makes them.
    """

    def __init__(self, feed: Feed, bus: Bus, stocks: StockTarget, *, bars: OptionBars, clock: Clock) -> None:
        super().__init__(feed, bus)
        self.bars = bars
        self._stocks = stocks
        self._clock = clock
        self._wanted: frozenset[str] = frozenset()  # contracts whose bars are
        self._confirmed: frozenset[str] = frozenset()  # contracts whose trades come
        self._is_open = False  # there is a session
        self._takes_watermarks = False
        self._is_joined = False
        self._closing: asyncio.TimerHandle | None = None
        self._told: dict[str, int] = {}

    def want(self, wishes: Collection[Wish]) -> None:
        """Note what is wanted; of the contracts in the channel `OPTION_BARS` bars are made."""
        super().want(wishes)
        self._wanted = frozenset(symbol for channel, symbol in wishes if channel == OPTION_BARS)
        self._follow()

    def begin_session(self, *, takes_watermarks: bool) -> None:
        super().begin_session(takes_watermarks=takes_watermarks)
        self._is_open, self._takes_watermarks, self._confirmed = True, takes_watermarks, frozenset()
        self._is_joined = False
        self._follow()

    def note_subscribed(self, channels: Mapping[str, tuple[str, ...]]) -> None:
        self._confirmed = frozenset(channels.get("trades", ()))
        self._follow()

    def take(self, items: Sequence[Item], messages: Sequence[UpstreamMessage], *, recv_ns: int) -> None:
        super().take(items, messages, recv_ns=recv_ns)
        if not self._wanted:
            return
        marks = (message for message in messages if isinstance(message, StreamWatermark))
        for item in items:
            if item["T"] == "t":
                self.bars.add(item, now_ns=recv_ns)
            elif item["T"] == "w":
                mark = next(marks)
                self._offer_bars(self.bars.close(mark.end_ns), recv_ns)
                self._stocks.take_options([Part([item], [mark], recv_ns, mark)])
        self._set_timer()

    def end_session(self) -> None:
        super().end_session()
        self._is_open = False
        self._cancel_closing()
        self.bars.interrupt()
        self._tell()

    def has_room(self) -> bool:
        return not self._wanted or self._stocks.has_room()

    async def wait_for_room(self) -> None:
        await self._stocks.wait_for_room()

    def _follow(self) -> None:
        if not self._is_open:
            if not self._wanted:
                self._leave()
            return
        heard = self._wanted if ALL in self._confirmed else self._wanted & self._confirmed
        # Slices that end with a watermark come whole, whenever it was that one subscribed.
        self.bars.follow(heard, 0 if self._takes_watermarks else self._clock.time_ns())
        if self._wanted and self._takes_watermarks:
            if not self._is_joined:
                self._is_joined = True
                self._stocks.begin_options()
        else:
            self._leave()

    def _leave(self) -> None:
        self._is_joined = False
        self._stocks.leave_options()

    def _offer_bars(self, bars: Sequence[Bar], recv_ns: int) -> None:
        if bars:
            self._stocks.take_options([Part([encode_bar_item(bar) for bar in bars], bars, recv_ns)])
        self._tell()

    def _set_timer(self) -> None:
        end_ns = None if self._takes_watermarks else self.bars.next_end_ns()
        if end_ns is not None and self._closing is None and self._is_open:
            wait_s = (end_ns + self.bars.lag_ns - self._clock.time_ns()) / SECOND_NS + LATE_S
            self._closing = asyncio.get_running_loop().call_later(max(wait_s, 0.0), self._close)

    def _close(self) -> None:
        self._closing = None
        now_ns = self._clock.time_ns()
        self._offer_bars(self.bars.close(now_ns - self.bars.lag_ns - int(LATE_S * SECOND_NS)), now_ns)
        self._set_timer()

    def _cancel_closing(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _tell(self) -> None:
        """Say what was left out, when that has grown."""
        found = {name: self.bars.counts[name] for name in ("late_trades", "malformed_trades", "incomplete_minutes")}
        if found != self._told and any(found.values()):
            _log.info("trades of options that are in no bar", **found)
        self._told = found


def build_targets(
    feeds: Iterable[Feed],
    bus: Bus,
    topics: PubSubSink | None,
    *,
    clock: Clock,
    is_alone: bool,
    tells_statuses: bool,
) -> tuple[dict[str, FeedTarget], OptionBars]:
    """Return where the market data of each feed goes, and the bars of options; arguments as `FeedTarget` takes them."""
    bars = OptionBars()
    targets: dict[str, FeedTarget] = {}
    by_feed = {feed.feed: feed for feed in feeds}
    stocks = StockTarget(by_feed[STOCKS], bus, topics, is_alone=is_alone, tells_statuses=tells_statuses)
    for name, feed in by_feed.items():
        if name == OPTIONS:
            targets[name] = OptionTarget(feed, bus, stocks, bars=bars, clock=clock)
        else:
            targets[name] = stocks if name == STOCKS else FeedTarget(feed, bus, topics, is_alone=is_alone)
    return targets, bars
