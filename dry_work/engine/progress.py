"""What a run shows of itself while it goes on: snapshots for a view.

A snapshot is immutable, so that any thread may read it. `ProgressWatch` makes it: engine thread only, since it reads
Backtrader's objects, but for `is_behind`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import backtrader as bt
import msgspec

from dry_work.broker.tickets import symbol_of
from dry_work.clock import Clock
from dry_work.engine.observer import overhear_orders

SNAPSHOT_S = 0.25  # at least, between two snapshots
EVENTS_KEPT = 6

# Each order is told of when it is submitted and again when the venue has taken it: once is enough here.
_UNTOLD = (bt.Order.Created, bt.Order.Submitted)


class SymbolProgress(msgspec.Struct, frozen=True, kw_only=True):
    """One symbol at one moment."""

    symbol: str
    bar_end_ns: int = 0  # of its last bar, 0 before the first
    close: float = 0.0  # of its last bar
    position: float = 0.0  # signed
    profit: float = 0.0  # of the position at the last close, not realised
    open_orders: int = 0


class Event(msgspec.Struct, frozen=True):
    """Something that happened."""

    time_ns: int
    text: str


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A run at one moment."""

    agent: str
    mode: str  # local, paper or live
    symbols: tuple[SymbolProgress, ...]
    market_ns: int = 0  # the newest slice's end, 0 before the first
    own_time: bool = False  # the market's time is that of a simulated exchange
    feed: str = ""  # the last status of the market data, such as LIVE; empty before the first
    feed_detail: str = ""
    cash: float = 0.0
    equity: float = 0.0
    start_equity: float = 0.0
    bars: int = 0
    orders: int = 0
    open_orders: int = 0
    halted: str = ""  # why no orders are taken, empty while they are
    events: tuple[Event, ...] = ()  # oldest first


class ProgressWatch:
    """Makes snapshots of a run.

    Args:
        show: takes each snapshot; it returns at once.
        agent: the strategy, as it was asked for.
        mode: local, paper or live.
        own_time: the market's time is that of a simulated exchange.
        clock: the machine's.
        interval_s: at least, between two snapshots.
    """

    def __init__(
        self,
        show: Callable[[Progress], None],
        *,
        agent: str,
        mode: str,
        own_time: bool,
        clock: Clock,
        interval_s: float = SNAPSHOT_S,
    ) -> None:
        self.is_behind = False  # something may have changed since the last snapshot
        self._show = show
        self._agent = agent
        self._mode = mode
        self._own_time = own_time
        self._clock = clock
        self._interval_s = interval_s
        self._next_s = 0.0
        self._market_ns = 0
        self._feed = ""
        self._feed_detail = ""
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._cerebro: Any = None
        self._broker: Any = None
        self._feeds: Sequence[Any] = ()

    def attach(self, cerebro: Any, broker: Any, feeds: Sequence[Any]) -> None:
        """Follow a Cerebro that is not running yet: one feed for each symbol, whose bars and statuses are shown."""
        self._cerebro, self._broker, self._feeds = cerebro, broker, feeds
        cerebro.adddatacb(self._note_status)
        overhear_orders(broker, self._note_order)

    def note_slice(self, end_ns: int) -> None:
        """Take note of a slice that was delivered."""
        self._market_ns = end_ns

    def look(self) -> None:
        """Show a snapshot, unless the last one was just made."""
        now_s = self._clock.monotonic()
        if now_s < self._next_s:
            self.is_behind = True
            return
        self._next_s = now_s + self._interval_s
        self.is_behind = False
        self._show(self.snapshot())

    def snapshot(self) -> Progress:
        """Return the run as it is now."""
        broker = self._broker
        open_orders = Counter(symbol_of(order.data) for order in broker.get_orders_open())
        return Progress(
            agent=self._agent,
            mode=self._mode,
            symbols=tuple(self._describe(feed, open_orders[feed.symbol]) for feed in self._feeds),
            market_ns=self._market_ns,
            own_time=self._own_time,
            feed=self._feed,
            feed_detail=self._feed_detail,
            cash=broker.getcash(),
            equity=broker.getvalue(),
            start_equity=broker.startingvalue,
            bars=sum(self._cerebro.bars.values()),
            orders=broker.order_count,
            open_orders=sum(open_orders.values()),
            halted=broker.halted,
            events=tuple(self._events),
        )

    def _describe(self, feed: Any, open_orders: int) -> SymbolProgress:
        position = self._broker.getposition(feed, clone=False)
        close = float(feed.close[0]) if len(feed) else 0.0
        return SymbolProgress(
            symbol=feed.symbol,
            bar_end_ns=feed.last_end_ns,
            close=close,
            position=float(position.size),
            profit=float(position.size) * (close - float(position.price)) if len(feed) else 0.0,
            open_orders=open_orders,
        )

    def _note_status(self, _data: Any, status: int, *args: Any, **_: Any) -> None:
        # Each feed tells of the same change.
        name = str(bt.DataBase._getstatusname(status))
        detail = str(args[0]) if args else ""
        if (name, detail) != (self._feed, self._feed_detail):
            self._feed, self._feed_detail = name, detail
            self._add(f"market data {name}" + (f": {detail}" if detail else ""))

    def _note_order(self, order: Any) -> None:
        if order.status not in _UNTOLD:
            self._add(describe_order(order))

    def _add(self, text: str) -> None:
        self._events.append(Event(self._market_ns if self._own_time else self._clock.time_ns(), text))


def describe_order(order: Any) -> str:
    """Return a notification of an order in a few words."""
    kind = "" if order.exectype == bt.Order.Market else f" {order.ExecTypes[order.exectype].lower()}"
    what = f"{order.ordtypename().lower()}{kind} {abs(order.created.size):g} {symbol_of(order.data)}"
    if order.status in (bt.Order.Partial, bt.Order.Completed):
        filled = abs(order.executed.size)
        word = "filled" if order.status == bt.Order.Completed else f"filled {filled:g} so far"
        return f"{what}: {word} at {order.executed.price:,.2f}"
    reason = order.info.get("reject_reason")
    return f"{what}: {order.getstatusname().lower()}" + (f", {reason}" if reason else "")
