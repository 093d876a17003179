"""Orders of the rule set `alpaca` against recorded quotes and trades, in the order of their times. Pure.

- A quote offers its sizes once: what one order of an account takes is not there for the next. The quote that stands
  when a slice begins offers its sizes in it again. A market order takes what the other side of the quote has, a limit
  order too where its limit allows it; the rest waits for the next quote.
- A trade fills a resting limit order when it is at the limit or beyond it, at the limit, and no more than its size.
  Nothing is known of the queue, so none is assumed before the order.
- A trade triggers stops and moves trailing stops; they then take from the quote as market orders, stop-limit orders as
  limit orders.
- Where a symbol has no recorded quotes, market orders take from trades, at their price.
- An `ioc` or `fok` order is at its end with the first quote (where there are none: trade) that it sees.
- Sizes of stock quotes before November 3, 2025 are round lots.

Orders for an opening or a close, and symbols without a quote or trade in the slice, are matched against the bar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from hashlib import sha256
from heapq import merge

import msgspec
import numpy as np

from dry_work.clock import HOUR_NS
from dry_work.exchange.account import ZERO, truncate_qty
from dry_work.exchange.book import OpenOrder
from dry_work.exchange.matching import build_money, collar_stop
from dry_work.exchange.trailing import follow_price
from dry_work.feeds.recorded_ticks import TickKind, TickRecording
from dry_work.market.symbols import is_crypto
from dry_work.orders.model import OrderType, Side, TimeInForce

_ROUND_LOT = Decimal(100)
_SHARES_SINCE_NS = 1_762_128_000_000_000_000  # 2025-11-03, in UTC
_OLDEST_QUOTE_NS = HOUR_NS  # a quote that stands for longer is of another session


class Tick(msgspec.Struct, frozen=True):
    """A quote (the bid, then the ask) or a trade (its price and size, twice)."""

    time_ns: int
    symbol: str
    is_quote: bool
    bid: Decimal
    bid_size: Decimal
    ask: Decimal
    ask_size: Decimal


class Offer:
    """What a quote or trade still offers to the orders of one account."""

    __slots__ = ("ask", "ask_left", "bid", "bid_left")

    def __init__(self, tick: Tick) -> None:
        self.bid, self.bid_left = tick.bid, tick.bid_size
        self.ask, self.ask_left = tick.ask, tick.ask_size

    def price(self, side: Side) -> Decimal | None:
        """Return what an order of a side would pay or get; None when nothing is there."""
        price, left = (self.ask, self.ask_left) if side is Side.BUY else (self.bid, self.bid_left)
        return price if price > 0 and left > 0 else None

    def left(self, side: Side) -> Decimal:
        return self.ask_left if side is Side.BUY else self.bid_left

    def take(self, side: Side, qty: Decimal) -> None:
        if side is Side.BUY:
            self.ask_left -= qty
        else:
            self.bid_left -= qty


class TickSource:
    """Gives the quotes and trades of symbols between two times."""

    def __init__(self, ticks: TickRecording) -> None:
        self._ticks = ticks

    def has_quotes(self, symbol: str) -> bool:
        """Tell whether any quotes of the symbol were recorded."""
        table = self._ticks.table("quotes", symbol)
        return table is not None and len(table) > 0

    def covers(self, symbol: str, start_ns: int, end_ns: int) -> bool:
        """Tell whether the symbol has a quote or trade between two times, the first included."""
        return any(low < high for _, low, high in self._ranges(symbol, start_ns, end_ns))

    def standing(self, symbol: str, start_ns: int) -> Tick | None:
        """Return the quote that stands at a time, None when there is none or it is of another session."""
        table = self._ticks.table("quotes", symbol)
        row = -1 if table is None else int(np.searchsorted(table.times, start_ns, side="left")) - 1
        if table is None or row < 0 or start_ns - int(table.times[row]) > _OLDEST_QUOTE_NS:
            return None
        return self._read("quotes", symbol, row)

    def between(self, symbols: Iterable[str], start_ns: int, end_ns: int) -> Iterator[Tick]:
        """Yield the quotes and trades of symbols by rising time; those of one time by symbol, quotes first."""
        streams = [
            self._read_rows(kind, symbol, low, high)
            for symbol in sorted(symbols)
            for kind, low, high in self._ranges(symbol, start_ns, end_ns)
        ]
        return merge(*streams, key=lambda tick: tick.time_ns)

    def _read_rows(self, kind: TickKind, symbol: str, low: int, high: int) -> Iterator[Tick]:
        for row in range(low, high):
            yield self._read(kind, symbol, row)

    def _ranges(self, symbol: str, start_ns: int, end_ns: int) -> Sequence[tuple[TickKind, int, int]]:
        kinds: tuple[TickKind, ...] = ("quotes", "trades")
        found = []
        for kind in kinds:
            table = self._ticks.table(kind, symbol)
            if table is not None:
                low, high = np.searchsorted(table.times, [start_ns, end_ns], side="left").tolist()
                found.append((kind, low, high))
        return found

    def _read(self, kind: TickKind, symbol: str, row: int) -> Tick:
        table = self._ticks.table(kind, symbol)
        assert table is not None
        time_ns = int(table.times[row])

        def read(name: str) -> Decimal:
            return build_money(float(table.numbers[name][row]))

        def size(name: str) -> Decimal:
            if is_crypto(symbol):
                return truncate_qty(read(name))
            is_lots = kind == "quotes" and time_ns < _SHARES_SINCE_NS
            return (read(name) * (_ROUND_LOT if is_lots else 1)) // 1

        if kind == "trades":
            price, volume = read("price"), size("size")
            return Tick(time_ns, symbol, False, price, volume, price, volume)
        return Tick(time_ns, symbol, True, read("bid_price"), size("bid_size"), read("ask_price"), size("ask_size"))


def fingerprint_ticks(ticks: TickRecording) -> str:
    """Return a text that is another one for other quotes and trades."""
    found = sha256()
    for (kind, symbol), table in sorted(ticks.tables.items()):
        found.update(f"{kind} {symbol} {len(table)}\n".encode())
        found.update(np.ascontiguousarray(table.times).tobytes())
        for name in sorted(table.numbers):
            found.update(name.encode() + np.ascontiguousarray(table.numbers[name]).tobytes())
    return found.hexdigest()


class TickMatcher:
    """Matches the orders of one account through one slice.

    Args:
        source: of quotes and trades.
        execute: books and tells an execution of an order: quantity, price, time.
        trigger: tells that the stop of an order was hit.
        cancel: ends what is left of an immediate order.
        settle: fixes the quantity of an order by value at a price.
    """

    def __init__(
        self,
        source: TickSource,
        *,
        execute: Callable[[OpenOrder, Decimal, Decimal, int], None],
        trigger: Callable[[OpenOrder], None],
        cancel: Callable[[OpenOrder], None],
        settle: Callable[[OpenOrder, Decimal], None],
    ) -> None:
        self._source = source
        self._execute = execute
        self._trigger = trigger
        self._cancel = cancel
        self._settle = settle
        self._quotes: dict[str, Offer] = {}

    def begin(self, symbols: Iterable[str], start_ns: int) -> list[Tick]:
        """Return the quotes that stand at the beginning of a slice, as if they came then."""
        found = [self._source.standing(symbol, start_ns) for symbol in sorted(symbols)]
        return [msgspec.structs.replace(tick, time_ns=start_ns) for tick in found if tick is not None]

    def show(self, tick: Tick) -> Offer:
        """Take note of a quote or trade; return what it offers."""
        offer = Offer(tick)
        if tick.is_quote:
            self._quotes[tick.symbol] = offer
        return offer

    def match(self, entry: OpenOrder, tick: Tick, offer: Offer) -> None:
        """Try an open order of the tick's symbol."""
        has_quotes = self._source.has_quotes(tick.symbol)
        was_hit = entry.triggered
        if not tick.is_quote:
            self._follow_trade(entry, tick)
        order, is_hit = entry.order, entry.triggered
        if order.type in (OrderType.STOP, OrderType.STOP_LIMIT, OrderType.TRAILING_STOP) and not is_hit:
            return
        is_immediate = order.time_in_force in (TimeInForce.IOC, TimeInForce.FOK)
        from_quote = self._quotes.get(tick.symbol) if has_quotes else offer
        if not has_quotes and order.limit_price is not None and not is_immediate:
            from_quote = None  # it rests, and gets no better price than its own
        if from_quote is not None:
            self._take(entry, from_quote, tick.time_ns)
        # the trade that triggers a stop was over before its order was in the market
        if not tick.is_quote and is_hit == was_hit and not entry.is_done:
            self._take_trade(entry, tick, offer)
        if is_immediate and from_quote is not None and not entry.is_done:
            self._cancel(entry)

    def _follow_trade(self, entry: OpenOrder, tick: Tick) -> None:
        order = entry.order
        if entry.triggered or order.type in (OrderType.MARKET, OrderType.LIMIT):
            return
        stop = order.stop_price
        was_hit = stop is not None and (tick.ask >= stop if order.side is Side.BUY else tick.bid <= stop)
        if was_hit:
            entry.triggered = True
            self._trigger(entry)
        elif order.type is OrderType.TRAILING_STOP:
            entry.order = follow_price(order, tick.bid)

    def _take(self, entry: OpenOrder, offer: Offer, time_ns: int) -> None:
        """Take from the other side of a quote."""
        side, price = entry.order.side, offer.price(entry.order.side)
        limit = collar_stop(entry.order).limit_price
        if price is None or (limit is not None and (price > limit if side is Side.BUY else price < limit)):
            return
        self._fill(entry, offer, price, time_ns)

    def _take_trade(self, entry: OpenOrder, tick: Tick, offer: Offer) -> None:
        """Let a trade fill a resting order."""
        side, limit = entry.order.side, collar_stop(entry.order).limit_price
        if limit is None or offer.left(side) <= 0 or entry.order.time_in_force in (TimeInForce.IOC, TimeInForce.FOK):
            return
        if tick.bid <= limit if side is Side.BUY else tick.ask >= limit:
            self._fill(entry, offer, limit, tick.time_ns)

    def _fill(self, entry: OpenOrder, offer: Offer, price: Decimal, time_ns: int) -> None:
        side = entry.order.side
        self._settle(entry, price)
        qty = min(entry.remaining, offer.left(side))
        if entry.order.time_in_force is TimeInForce.FOK and qty < entry.remaining:
            return
        if qty > ZERO:
            offer.take(side, qty)
            self._execute(entry, qty, price, time_ns)
