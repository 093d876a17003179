"""The rule set `backtrader`: orders as Backtrader's `BackBroker` with its defaults treats them. Pure.

- `submit` takes every well-formed order; it is `pending_new` and nothing is said on the stream.
- At the next slice all such orders pass BackBroker's funds check in the order of their submission (`new` or
  `rejected`); until then they cannot be canceled. Then every open order is tried, the oldest first.
- An order is tried against a bar of its symbol that ended after the slice in which it was made. Where BackBroker tries
  an order again on its symbol's last bar in slices without a new one, that may change something for three: a stop-limit
  order that has triggered, a leg that has become active, a trailing stop that has moved. They are tried again here too,
  and a fill then carries the time of that bar.
- A `day` order expires with the first bar of its symbol that ends after the UTC day of the last bar that the symbol had
  when the order was made (of the slice, when it had none). Market orders never expire.
- What closes a position always executes; what opens one needs the cash, else the order is `rejected`.
- A trailing stop begins at the last close and is moved at the close of every bar that did not hit it, as
  `trailadjust` does.
- A market order with `cls` is Backtrader's Close: the close of the last bar of its UTC day, told with the first bar
  behind it.
- The legs of a bracket or oto order are `held`. They can match from the slice behind the complete fill of the entry
  on: the stop exit before the profit exit, as `buy_bracket` submits them. The stop exit stays `held` behind a
  profit exit, as at Alpaca. Whatever ends one of the orders otherwise ends them all. Of an oco pair any execution of
  one cancels the other at once; the profit exit is tried first.
- An order by value buys or sells what the value buys at the price of its execution.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from dry_work.clock import DAY_NS
from dry_work.exchange import order_rules
from dry_work.exchange.account import ZERO, BacktraderAccount, truncate_qty
from dry_work.exchange.book import Book, OpenOrder
from dry_work.exchange.matching import BarPrices, match_order
from dry_work.exchange.trailing import follow_close
from dry_work.orders.model import OrderClass, OrderRequest, OrderStatus, OrderType, TimeInForce, VenueOrder

_DAY_END_NS = 86_399_009_999_000  # BackBroker's last moment of a day: time(23, 59, 59, 9999)
_SESSION_END_NS = 86_399_999_990_000  # the end of a feed's session, where it is not said: time(23, 59, 59, 999990)


class BacktraderMatcher:
    """Works on the books of a venue.

    Args:
        bars: the last bar by symbol, kept by the venue.
        prices: its close.
    """

    def __init__(self, *, bars: Mapping[str, BarPrices], prices: Mapping[str, Decimal]) -> None:
        self._bars = bars
        self._prices = prices

    # Requests

    def submit(self, book: Book, request: OrderRequest, now_ns: int) -> VenueOrder:
        """Take an order whose request has passed the rules of both rule sets; return it as of its receipt."""
        order_rules.check_backtrader_request(request)
        head, legs = book.add_all(request, OrderStatus.PENDING_NEW, now_ns, leg_status=OrderStatus.PENDING_NEW)
        for entry in (head, *reversed(legs)):
            self._prepare(entry, now_ns)
            book.submitted.append(entry)
        return book.nested(head)

    def _prepare(self, entry: OpenOrder, now_ns: int) -> None:
        order = entry.order
        symbol, last = order.symbol, self._prices.get(order.symbol)
        if order.type is OrderType.TRAILING_STOP and last is not None:
            entry.order = order = follow_close(order, last)
        # BackBroker's `created.price`: the stop price before the limit price, for market orders the last close.
        entry.check_price = order.stop_price or order.limit_price or last
        if order.notional is not None and entry.check_price is not None:
            entry.remaining = truncate_qty(order.notional / entry.check_price)
        bar = self._bars.get(symbol)
        made_day_ns = (bar.end_ns if bar is not None else now_ns) // DAY_NS * DAY_NS
        if order.time_in_force is TimeInForce.CLS:
            entry.closing_ns = made_day_ns + _SESSION_END_NS
        elif order.time_in_force is TimeInForce.DAY and order.type is not OrderType.MARKET:
            entry.expires_ns = made_day_ns + _DAY_END_NS

    def cancel(self, book: Book, entry: OpenOrder, now_ns: int) -> None:
        """Cancel an open order, and those that belong to it."""
        if entry in book.submitted:
            raise order_rules.build_order_not_checked(entry.order.status)
        book.set_status(entry, OrderStatus.CANCELED, now_ns)
        self._end_others(book, entry, now_ns)
        book.drop_done()

    # Time

    def advance(self, book: Book, fresh: set[str], now_ns: int) -> None:
        """Check new orders, then try the open ones against the slice that ended at `now_ns`."""
        for entry in book.activating:
            entry.is_active = True
        book.activating = []
        self._check_submitted(book, now_ns)
        for entry in tuple(book.pending):
            if not entry.is_done and (entry.order.symbol in fresh or _may_change(entry)):
                self._try_order(book, entry, fresh, now_ns)
        book.drop_done()

    def _check_submitted(self, book: Book, now_ns: int) -> None:
        account = book.account
        assert isinstance(account, BacktraderAccount)
        submitted, book.submitted = book.submitted, []
        check = account.begin_check()
        for entry in submitted:
            group = entry.group
            if group is not None and group.kind is not OrderClass.OCO and not group.is_linked:
                message = "an order that it belongs to was rejected"
                book.reject(entry, now_ns, code=order_rules.CODE_ORDER, message=message)
                continue
            # Without any price so far the check lets the order pass; the one at execution decides.
            if check.take(entry.order.symbol, entry.change, entry.check_price or ZERO):
                book.pending.append(entry)
                book.set_status(entry, OrderStatus.NEW if entry.is_active else OrderStatus.HELD, now_ns)
            else:
                book.reject(entry, now_ns)
                self._end_others(book, entry, now_ns)

    def _try_order(self, book: Book, entry: OpenOrder, fresh: set[str], now_ns: int) -> None:
        bar = self._bars.get(entry.order.symbol)
        if bar is None:
            return
        if entry.expires_ns is not None and bar.end_ns > entry.expires_ns:
            book.set_status(entry, OrderStatus.EXPIRED, now_ns)
            self._end_others(book, entry, now_ns)
            return
        if not entry.is_active or bar.end_ns <= entry.active_ns:
            return
        if entry.closing_ns:
            self._try_close(book, entry, bar, now_ns)
            return
        is_trailing = entry.order.type is OrderType.TRAILING_STOP
        if not is_trailing or entry.order.stop_price is not None:
            match = match_order(entry.order, bar, triggered=entry.triggered)
            entry.triggered = match.triggered
            if match.price is not None:
                self._execute(book, entry, match.price, bar.end_ns, now_ns)
        if is_trailing and not entry.is_done:
            entry.order = follow_close(entry.order, bar.close)

    def _try_close(self, book: Book, entry: OpenOrder, bar: BarPrices, now_ns: int) -> None:
        if bar.end_ns <= entry.closing_ns:
            entry.closing_price = bar.close
            entry.seen_ns = bar.end_ns
        elif entry.closing_price is not None:
            self._execute(book, entry, entry.closing_price, entry.seen_ns, now_ns)
        else:
            self._execute(book, entry, bar.close, bar.end_ns, now_ns)

    def _execute(self, book: Book, entry: OpenOrder, price: Decimal, fill_ns: int, now_ns: int) -> None:
        account = book.account
        assert isinstance(account, BacktraderAccount)
        if entry.order.notional is not None:
            entry.remaining = truncate_qty(entry.order.notional / price)
            if not entry.remaining:
                book.reject(entry, now_ns, code=order_rules.CODE_ORDER, message="notional buys nothing at this price")
                return
        executed, refused = account.execute(entry.order.symbol, entry.change, price)
        if executed:
            book.fill(entry, executed.copy_abs(), price, fill_ns=fill_ns, now_ns=now_ns)
            self._end_pair(book, entry, now_ns)
        if refused:
            book.reject(entry, now_ns)
            self._end_others(book, entry, now_ns)
        elif executed:
            self._follow(book, entry, now_ns)

    # Groups

    def _follow(self, book: Book, entry: OpenOrder, now_ns: int) -> None:
        """Carry on behind the complete fill of an order: its legs become active, or the other exit is canceled."""
        group = entry.group
        if group is None or not group.is_linked or group.kind is OrderClass.OCO:
            return
        if not group.is_entry(entry):
            self._end_others(book, entry, now_ns)
            return
        first = group.legs[0]
        if not first.is_done:
            book.set_status(first, OrderStatus.NEW, now_ns)
        book.activating.extend(reversed(group.legs))

    def _end_pair(self, book: Book, entry: OpenOrder, now_ns: int) -> None:
        if entry.group is not None and entry.group.kind is OrderClass.OCO:
            self._end_others(book, entry, now_ns)

    def _end_others(self, book: Book, entry: OpenOrder, now_ns: int) -> None:
        """Cancel what an order takes along; what has yet to pass its check is rejected there, or goes on alone."""
        group = entry.group
        if group is None or not group.is_linked:
            return
        group.is_linked = False
        # in the order of their matching: the head, then the last leg before the first
        for other in (group.head, *reversed(group.legs)):
            # an exit that is filled in part, and then refused, takes the other one along but not itself
            if other is not entry and other in book.pending and not other.is_done:
                book.set_status(other, OrderStatus.CANCELED, now_ns)


def _may_change(entry: OpenOrder) -> bool:
    """Tell whether another try on a bar that was tried before may give something else."""
    return entry.triggered or entry.group is not None or entry.order.type is OrderType.TRAILING_STOP
