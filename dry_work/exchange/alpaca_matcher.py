"""The rule set `alpaca`: when its orders match, how they are changed and canceled. Pure.

What is refused at submit stands in `order_rules` (form, asset class) and `alpaca_checks` (account, hour); legs in
`alpaca_groups`; executions against recorded quotes and trades in `tick_matcher`.

- A crypto order, or a stock order given in the regular session: `pending_new`, `new`. Outside the session a stock order
  is `accepted`, and `new` once the session has opened. With `extended_hours` it is `new` at once.
- Bars that start outside the regular session do not match stock orders, except with `extended_hours`.
- A `day` order expires at the close of its session, with `extended_hours` four hours later, when the late session ends.
  A `gtc` order of a stock expires after 90 days.
- An `ioc` or `fok` order is tried against the opening of the next bar of its symbol, at the bar's open, and what it
  does not get there is canceled. The bar's volume, where it has one, is all that is on offer: `ioc` takes a part of it,
  `fok` all that it asks for or nothing. The stop of a stop-limit order is waited for.
- An `opg` order is tried at the open of the next session's first bar of its symbol, a `cls` order at the close of its
  session's last bar; what is not filled there is canceled.
- Other orders fill as a whole at the bar, or with `matching` volume no more than its volume, which the orders of an
  account share in the order of their time.
- The stop of a buy order for stocks becomes a limit 4 % above it, from 50 dollars on 2.5 %, as at Alpaca.
- A trailing stop sees the bar's best price only after its stop was tried; when the bar then closes behind the moved
  stop, it was hit in between. It triggers in regular hours only.
- Orders for options are live in the session alone. With `partial_fills` an order for more than one share, at market or
  with a limit, may get a part of what it would get at its first execution, by a chance that its id decides.
- An order for extended hours sees bars from 04:00 to 20:00 in New York, and those of the night where its asset is
  traded overnight.
- A notional order buys or sells what its value buys at the price of its first execution.
- There is no second look at the funds at execution, as the money was held back; only an order made before its symbol
  had a price is looked at when its first bar comes. Crypto pays 25 basis points in what is received.
- A replacement is a new order: it begins without fills and behind all other orders. The old one is `replaced`, then the
  new one is `new`, or `held` as the old one was.
- With `changes_in_flight` a cancel or replacement reaches the market only after the next slice was matched, and is told
  as `pending_cancel` or `pending_replace` until then. When the order fills first, the change is lost:
  `order_cancel_rejected`, or `order_replace_rejected` and the new order `rejected`. Otherwise changes are made at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Literal

from msgspec.structs import replace

from dry_work.clock import DAY_NS, HOUR_NS
from dry_work.exchange import option_rules, order_rules
from dry_work.exchange.account import ZERO, AlpacaAccount, is_contract, truncate_qty
from dry_work.exchange.alpaca_checks import AlpacaChecks, is_exit, opens_position
from dry_work.exchange.alpaca_groups import end_group, follow_fill, follow_trigger
from dry_work.exchange.book import Book, OpenOrder
from dry_work.exchange.chance import PartialFills, is_night
from dry_work.exchange.matching import BarPrices, build_money, collar_stop, match_at_open, match_order
from dry_work.exchange.tick_matcher import Tick, TickMatcher, TickSource
from dry_work.exchange.trailing import follow_price, match_trail
from dry_work.market.symbols import is_crypto
from dry_work.orders.model import OrderRequest, OrderStatus, OrderType, Side, TimeInForce, VenueOrder
from dry_work.wire.alpaca_rest import Replacement

Matching = Literal["bars", "volume", "ticks"]

_LATE_SESSION_NS = 4 * HOUR_NS
_GTC_LIFE_NS = 90 * DAY_NS
_REPLACEABLE = frozenset({OrderStatus.NEW, OrderStatus.PARTIALLY_FILLED, OrderStatus.HELD})
_UNCHANGED = ("qty", "time_in_force", "limit_price", "stop_price", "trail_price", "trail_percent")


class AlpacaMatcher:
    """Works on the books of a venue.

    Args:
        checks: refuses at submit.
        bars: the last bar by symbol, kept by the venue.
        prices: its close.
        is_open: whether the regular stock session is open at a time.
        session_close_ns: close of the session that a `day` order given at a time belongs to.
        changes_in_flight: cancels and replacements may lose to a fill in the next slice.
        matching: `bars` fills whole orders; the others share out the bar's volume, `ticks` where there are none.
        ticks: recorded quotes and trades.
        partial_fills: decides which orders get a part first.
        is_overnight: tells whether a stock is traded in the night.
    """

    def __init__(
        self,
        *,
        checks: AlpacaChecks,
        bars: Mapping[str, BarPrices],
        prices: Mapping[str, Decimal],
        is_open: Callable[[int], bool],
        session_close_ns: Callable[[int], int],
        changes_in_flight: bool,
        matching: Matching,
        ticks: TickSource | None,
        partial_fills: PartialFills,
        is_overnight: Callable[[str], bool],
    ) -> None:
        self._checks = checks
        self._bars = bars
        self._prices = prices
        self._is_open = is_open
        self._session_close_ns = session_close_ns
        self._changes_in_flight = changes_in_flight
        self._ticks = ticks if matching == "ticks" else None
        self._shares_volume = matching != "bars"
        self._partial_fills = partial_fills
        self._is_overnight = is_overnight

    # Requests

    def submit(self, book: Book, request: OrderRequest, now_ns: int) -> VenueOrder:
        """Take an order whose request has passed the rules of both rule sets; return it as of its receipt."""
        if is_contract(request.symbol):
            order_rules.check_alpaca_request(request)
            option_rules.check_hours(request, is_open=self._is_open(now_ns))
        request, price = self._checks.check(book, request, now_ns)
        is_live = is_crypto(request.symbol) or request.extended_hours or self._is_open(now_ns)
        status = OrderStatus.PENDING_NEW if is_live else OrderStatus.ACCEPTED
        head, legs = book.add_all(request, status, now_ns, leg_status=OrderStatus.HELD)
        head.check_price = price
        head.remaining = self._checks.estimate_qty(request) or ZERO
        for entry in (head, *legs):
            self._prepare(entry, now_ns)
        for leg in legs:
            leg.is_held = True
            if leg.is_active:
                book.pending.append(leg)  # the stop exit of an oco pair is tried first
        book.pending.append(head)
        received = book.nested(head)
        for entry in (head, *legs):
            book.set_status(entry, OrderStatus(entry.order.status), now_ns)
        if is_live:
            book.set_status(head, OrderStatus.NEW, now_ns)
        return received

    def _prepare(self, entry: OpenOrder, now_ns: int) -> None:
        order = entry.order
        entry.expires_ns = self._expiry_ns(order, now_ns)
        last = self._prices.get(order.symbol)
        if order.type is OrderType.TRAILING_STOP and order.hwm is None and last is not None:
            entry.order = follow_price(order, last)
        if order.time_in_force is TimeInForce.CLS:
            entry.closing_ns = self._session_close_ns(now_ns)
            bar = self._bars.get(order.symbol)
            if bar is not None and self._is_open(bar.start_ns):
                same_day = self._session_close_ns(bar.start_ns) == entry.closing_ns
                entry.closing_price = bar.close if same_day else None

    def replace(self, book: Book, entry: OpenOrder, change: Replacement, now_ns: int) -> VenueOrder:
        """Take a change of an open order; return the new order as of its receipt."""
        order = entry.order
        if not entry.is_landed and not entry.is_done:
            raise order_rules.build_chain_not_replaced()
        if order.status not in _REPLACEABLE:
            raise order_rules.build_order_not_replaceable(order)
        if change.client_order_id in book.by_client_id:
            raise order_rules.build_duplicate_client_id()
        request = self._build_changed(entry, change)
        order_rules.check_request(request)
        shown = replace(order, qty=entry.remaining) if is_exit(entry) else order
        if all(getattr(request, name) == getattr(shown, name) for name in _UNCHANGED):
            raise order_rules.build_order_not_changed()
        request, price = self._checks.check(book, request, now_ns, instead_of=entry)
        status = OrderStatus.HELD if entry.is_held else OrderStatus.PENDING_NEW
        new = book.add(request, status, now_ns, replaces=order.id)
        new.order = replace(new.order, order_class=order.order_class)
        if request.type is OrderType.TRAILING_STOP and order.hwm is not None:
            new.order = follow_price(new.order, order.hwm)
        new.check_price = price
        new.triggered = entry.triggered and request.stop_price == order.stop_price
        new.group, new.is_held = entry.group, entry.is_held
        new.is_active, new.active_ns = entry.is_active, entry.active_ns
        new.is_landed = False
        self._prepare(new, now_ns)
        received = new.order
        entry.successor = new
        self._send(book, entry, OrderStatus.PENDING_REPLACE, now_ns)
        return received

    def _build_changed(self, entry: OpenOrder, change: Replacement) -> OrderRequest:
        order = entry.order
        order_rules.check_change(order, change, is_linked=entry.group is not None)
        by_price = order.trail_price is not None
        qty = entry.remaining if is_exit(entry) else order.qty
        return OrderRequest(
            client_order_id=change.client_order_id,
            symbol=order.symbol,
            side=order.side,
            type=order.type,
            time_in_force=change.time_in_force or order.time_in_force,
            qty=qty if change.qty is None or entry.group is not None else change.qty,
            limit_price=order.limit_price if change.limit_price is None else change.limit_price,
            stop_price=None
            if order.type is OrderType.TRAILING_STOP
            else order.stop_price
            if change.stop_price is None
            else change.stop_price,
            trail_price=change.trail if by_price and change.trail is not None else order.trail_price,
            trail_percent=order.trail_percent if by_price or change.trail is None else change.trail,
            extended_hours=order.extended_hours,
            commission=None if entry.executions else order.commission,
        )

    def cancel(self, book: Book, entry: OpenOrder, now_ns: int) -> None:
        """Cancel an open order and those that belong to it. One that is being canceled stays so."""
        if entry.cancel_requested:
            return
        if entry.successor is not None:
            raise order_rules.build_order_closed(entry.order.status)
        if not entry.is_landed:
            raise order_rules.build_chain_not_replaced()
        entry.cancel_requested = True
        self._send(book, entry, OrderStatus.PENDING_CANCEL, now_ns)

    def _send(self, book: Book, entry: OpenOrder, status: OrderStatus, now_ns: int) -> None:
        book.changing.append(entry)
        if self._changes_in_flight:
            book.set_status(entry, status, now_ns)
        else:
            self._land(book, entry, now_ns)
            book.drop_done()

    def _land(self, book: Book, entry: OpenOrder, now_ns: int) -> None:
        """Carry out the change of an order, or tell that the order's end came before it."""
        book.changing.remove(entry)
        new = entry.successor
        if entry.is_done:
            book.tell(entry, "order_cancel_rejected" if new is None else "order_replace_rejected", now_ns)
            if new is not None:
                book.reject(new, now_ns, code=order_rules.CODE_ORDER, message="order is not open")
        elif new is None:
            book.set_status(entry, OrderStatus.CANCELED, now_ns)
            end_group(book, entry, now_ns)
        else:
            entry.order = replace(entry.order, replaced_by=new.order.id)
            book.set_status(entry, OrderStatus.REPLACED, now_ns)
            if entry.group is not None:
                entry.group.swap(entry, new)
            new.is_landed = True
            new.is_held, new.is_active = entry.is_held, entry.is_active
            if entry in book.pending:
                book.pending.append(new)
            book.set_status(new, OrderStatus.HELD if new.is_held else OrderStatus.NEW, now_ns)

    # Time

    def in_session(self, fresh: Iterable[str], now_ns: int) -> bool:
        """Tell whether a slice that ended at `now_ns` with bars of `fresh` belongs to a regular session."""
        return self._is_open(now_ns) or any(
            self._is_open(self._bars[symbol].start_ns) for symbol in fresh if not is_crypto(symbol)
        )

    def advance(self, book: Book, fresh: set[str], start_ns: int, now_ns: int, *, in_session: bool) -> None:
        """Match the open orders against the slice from `start_ns` to `now_ns`, the oldest first; then make changes.

        `fresh` are the symbols with a bar in the slice.
        """
        ticked = self._match_ticks(book, start_ns, now_ns)
        offers = {symbol: self._offered(symbol) for symbol in fresh} if self._shares_volume else {}
        for entry in tuple(book.pending):
            if not entry.is_done:
                symbol = entry.order.symbol
                bar = self._bars[symbol] if symbol in fresh else None
                was_matched = symbol in ticked and entry.order.time_in_force not in order_rules.AUCTION
                self._pass_slice(book, entry, bar, now_ns, offers, in_session=in_session, was_matched=was_matched)
        for entry in tuple(book.changing):
            self._land(book, entry, now_ns)

    def _pass_slice(
        self,
        book: Book,
        entry: OpenOrder,
        bar: BarPrices | None,
        now_ns: int,
        offers: dict[str, Decimal | None],
        *,
        in_session: bool,
        was_matched: bool,
    ) -> None:
        order = entry.order
        if entry.expires_ns is not None and bar is not None and bar.start_ns >= entry.expires_ns:
            self._expire(book, entry, now_ns)
            return
        if in_session and order.status == OrderStatus.ACCEPTED:
            entry.order = replace(order, submitted_ns=now_ns)
            book.set_status(entry, OrderStatus.NEW, now_ns)
        if bar is not None and entry.order.status != OrderStatus.ACCEPTED and self._may_match(book, order, bar):
            if entry.closing_ns:
                entry.closing_price = bar.close if bar.start_ns < entry.closing_ns else entry.closing_price
            elif bar.end_ns > entry.active_ns and not was_matched:
                self._match(book, entry, bar, now_ns, offers)
        if entry.is_done:
            return
        if entry.closing_ns and now_ns >= entry.closing_ns:
            self._close(book, entry, now_ns)
        elif entry.expires_ns is not None and now_ns >= entry.expires_ns:
            self._expire(book, entry, now_ns)

    def _match_ticks(self, book: Book, start_ns: int, now_ns: int) -> set[str]:
        """Match against quotes and trades; return the symbols that have some."""
        if self._ticks is None:
            return set()
        wanted = {entry.order.symbol for entry in book.pending}
        source, symbols = self._ticks, {s for s in wanted if self._ticks.covers(s, start_ns, now_ns)}
        matcher = TickMatcher(
            source,
            execute=lambda entry, qty, price, fill_ns: execute(book, entry, qty, price, fill_ns=fill_ns, now_ns=now_ns),
            trigger=lambda entry: follow_trigger(book, entry, now_ns),
            cancel=lambda entry: book.set_status(entry, OrderStatus.CANCELED, now_ns),
            settle=lambda entry, price: fix_notional(book, entry, price),
        )
        for tick in (*matcher.begin(symbols, start_ns), *source.between(symbols, start_ns, now_ns)):
            offer = matcher.show(tick)
            for entry in tuple(book.pending):
                if entry.order.symbol == tick.symbol and self._may_see(book, entry, tick, now_ns):
                    matcher.match(entry, tick, offer)
        return symbols

    def _may_see(self, book: Book, entry: OpenOrder, tick: Tick, now_ns: int) -> bool:
        """Tell whether an order can match at the time of a quote or trade; what has to happen first happens here."""
        order = entry.order
        if entry.is_done or tick.time_ns < entry.active_ns or order.time_in_force in order_rules.AUCTION:
            return False
        if entry.expires_ns is not None and tick.time_ns >= entry.expires_ns:
            self._expire(book, entry, now_ns)
            return False
        is_open = self._is_open(tick.time_ns)
        in_hours = order.extended_hours and self._is_extended(book, order, tick.time_ns)
        if not (is_crypto(order.symbol) or in_hours or is_open):
            return False
        if order.status == OrderStatus.ACCEPTED:
            entry.order = replace(order, submitted_ns=now_ns)
            book.set_status(entry, OrderStatus.NEW, now_ns)
        return not self._lacks_money(book, entry, tick.ask or tick.bid, now_ns)

    def _expire(self, book: Book, entry: OpenOrder, now_ns: int) -> None:
        book.set_status(entry, OrderStatus.EXPIRED, now_ns)
        end_group(book, entry, now_ns)

    def _match(
        self, book: Book, entry: OpenOrder, bar: BarPrices, now_ns: int, offers: dict[str, Decimal | None]
    ) -> None:
        order = entry.order
        if self._lacks_money(book, entry, bar.open, now_ns):
            return
        is_immediate = order.time_in_force in order_rules.IMMEDIATE
        at_open = is_immediate or order.time_in_force is TimeInForce.OPG
        if order.type is OrderType.TRAILING_STOP:
            entry.order, price = match_trail(order, bar)
            was_hit = price is not None
        else:
            match = (match_at_open if at_open else match_order)(collar_stop(order), bar, triggered=entry.triggered)
            was_hit = match.triggered and not entry.triggered
            entry.triggered, price = match.triggered, match.price
            if is_immediate and order.type is OrderType.STOP_LIMIT and not match.triggered:
                return
        if price is not None:
            fix_notional(book, entry, price)
            qty = self._partial_fills.cut(entry, self._take_volume(entry, bar, offers))
            if qty:
                execute(book, entry, qty, price, fill_ns=bar.end_ns, now_ns=now_ns)
        if was_hit:
            follow_trigger(book, entry, now_ns)
        if at_open and not entry.is_done:
            book.set_status(entry, OrderStatus.CANCELED, now_ns)

    def _lacks_money(self, book: Book, entry: OpenOrder, price: Decimal, now_ns: int) -> bool:
        if entry.check_price is not None or is_exit(entry) or not opens_position(book.account, entry.order):
            return False
        if self._checks.has_money(book, entry, price):
            return False
        book.reject(entry, now_ns)
        end_group(book, entry, now_ns)
        return True

    def _close(self, book: Book, entry: OpenOrder, now_ns: int) -> None:
        """Execute an order for the close, or cancel it."""
        price, limit = entry.closing_price, entry.order.limit_price
        if price is not None and limit is not None:
            price = price if (price <= limit if entry.order.side is Side.BUY else price >= limit) else None
        if price is not None and not self._lacks_money(book, entry, price, now_ns):
            fix_notional(book, entry, price)
            execute(book, entry, entry.remaining, price, fill_ns=entry.closing_ns, now_ns=now_ns)
        if not entry.is_done:
            book.set_status(entry, OrderStatus.CANCELED, now_ns)

    def _may_match(self, book: Book, order: VenueOrder, bar: BarPrices) -> bool:
        if order.extended_hours and not is_crypto(order.symbol):
            return self._is_extended(book, order, bar.start_ns)
        return is_crypto(order.symbol) or self._is_open(bar.start_ns)

    def _is_extended(self, book: Book, order: VenueOrder, time_ns: int) -> bool:
        if not is_night(time_ns):
            return True
        return self._is_overnight(order.symbol) and not book.settings.disable_overnight_trading

    def _expiry_ns(self, order: VenueOrder, now_ns: int) -> int | None:
        if order.time_in_force is TimeInForce.GTC and not is_crypto(order.symbol):
            return now_ns + _GTC_LIFE_NS
        if order.time_in_force is not TimeInForce.DAY:
            return None
        if order.extended_hours:
            return self._session_close_ns(now_ns - _LATE_SESSION_NS) + _LATE_SESSION_NS
        return self._session_close_ns(now_ns)

    # Volume

    def _offered(self, symbol: str) -> Decimal | None:
        """Return the volume of the symbol's last bar in what is traded of it; None when it has none."""
        volume = self._bars[symbol].volume
        if volume <= 0:
            return None
        return truncate_qty(build_money(volume)) if is_crypto(symbol) else Decimal(int(volume))

    def _take_volume(self, entry: OpenOrder, bar: BarPrices, offers: dict[str, Decimal | None]) -> Decimal:
        """Return how much of an order the bar gives; a bar without volume gives all."""
        symbol, times = entry.order.symbol, entry.order.time_in_force
        if not self._shares_volume:
            if times not in order_rules.IMMEDIATE:
                return entry.remaining
            offers = {symbol: self._offered(symbol)}
        offered = offers[symbol]
        if offered is None or times is TimeInForce.OPG:
            return entry.remaining
        qty = min(offered, entry.remaining)
        if times is TimeInForce.FOK and qty < entry.remaining:
            return ZERO
        offers[symbol] = offered - qty
        return qty


def execute(book: Book, entry: OpenOrder, qty: Decimal, price: Decimal, *, fill_ns: int, now_ns: int) -> None:
    """Book and tell an execution, and what follows of it for the group."""
    account = book.account
    assert isinstance(account, AlpacaAccount)
    order = entry.order
    account.execute(order.symbol, qty if order.side is Side.BUY else qty.copy_negate(), price)
    book.fill(entry, qty, price, fill_ns=fill_ns, now_ns=now_ns)
    follow_fill(book, entry, fill_ns, now_ns)


def fix_notional(book: Book, entry: OpenOrder, price: Decimal) -> None:
    """Settle at the first execution how much an order by value trades; a sale gives no more than there is."""
    order = entry.order
    if order.notional is None or entry.executions:
        return
    qty = truncate_qty(order.notional / price)
    entry.remaining = min(qty, book.account.qty(order.symbol)) if order.side is Side.SELL else qty
