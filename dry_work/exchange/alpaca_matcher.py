"""The rule set `alpaca`: what its orders need, when they match, how they are changed and canceled. Pure.

- Refusals at submit: form, asset, client order id, funds, quantity at hand. Open orders hold money or shares back.
- A crypto order, or a stock order given in the regular session: `pending_new`, `new`. Outside the session a stock order
  is `accepted`, and `new` once the session has opened. With `extended_hours` it is `new` at once.
- Bars that start outside the regular session do not match stock orders, except with `extended_hours`.
- A `day` order expires at the close of its session, with `extended_hours` four hours later, when the late session ends.
- An `ioc` or `fok` order is tried against the opening of the next bar of its symbol, at the bar's open, and what it
  does not get there is canceled. The bar's volume, where it has one, is all that is on offer: `ioc` takes a part of it,
  `fok` all that it asks for or nothing. The stop of a stop-limit order is waited for.
- There is no second look at the funds at execution, as the money was held back; only an order made before its symbol
  had a price is looked at when its first bar comes. Crypto pays 25 basis points in what is received.
- A replacement is a new order: it begins without fills and behind all other orders. The old one is `replaced`, then the
  new one is `new`.
- With `changes_in_flight` a cancel or replacement reaches the market only after the next slice was matched, and is told
  as `pending_cancel` or `pending_replace` until then. When the order fills first, the change is lost:
  `order_cancel_rejected`, or `order_replace_rejected` and the new order `rejected`. Otherwise changes are made at once.
- Not modelled: wash-trade refusals, random partial fills, the ageing of gtc orders, the limit of buy stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal

from msgspec.structs import replace

from dry_work.clock import HOUR_NS
from dry_work.exchange import order_rules
from dry_work.exchange.account import (
    SHORT_RESERVE_FACTOR,
    ZERO,
    Account,
    AlpacaAccount,
    BuyingPower,
    Reservation,
    truncate_qty,
)
from dry_work.exchange.book import Book, OpenOrder
from dry_work.exchange.matching import BarPrices, build_money, match_at_open, match_order
from dry_work.market.symbols import is_crypto
from dry_work.orders.model import OrderRequest, OrderStatus, OrderType, Side, TimeInForce, VenueOrder
from dry_work.wire.alpaca_rest import Replacement

_LATE_SESSION_NS = 4 * HOUR_NS
_REPLACEABLE = frozenset({OrderStatus.NEW, OrderStatus.PARTIALLY_FILLED})


class AlpacaMatcher:
    """Works on the books of a venue.

    Args:
        bars: the last bar by symbol, kept by the venue.
        prices: its close.
        is_open: whether the regular stock session is open at a time.
        session_close_ns: close of the session that a `day` order given at a time belongs to.
        changes_in_flight: cancels and replacements may lose to a fill in the next slice.
    """

    def __init__(
        self,
        *,
        bars: Mapping[str, BarPrices],
        prices: Mapping[str, Decimal],
        is_open: Callable[[int], bool],
        session_close_ns: Callable[[int], int],
        changes_in_flight: bool,
    ) -> None:
        self._bars = bars
        self._prices = prices
        self._is_open = is_open
        self._session_close_ns = session_close_ns
        self._changes_in_flight = changes_in_flight

    # Requests

    def submit(self, book: Book, request: OrderRequest, now_ns: int) -> VenueOrder:
        """Take an order whose request has passed the rules of both rule sets; return it as of its receipt."""
        request, price = self._check(book, request)
        is_live = is_crypto(request.symbol) or request.extended_hours or self._is_open(now_ns)
        entry = book.add(request, OrderStatus.PENDING_NEW if is_live else OrderStatus.ACCEPTED, now_ns)
        entry.check_price = price
        entry.expires_ns = self._expiry_ns(request, now_ns)
        book.pending.append(entry)
        received = entry.order
        book.set_status(entry, OrderStatus(received.status), now_ns)
        if is_live:
            book.set_status(entry, OrderStatus.NEW, now_ns)
        return received

    def replace(self, book: Book, entry: OpenOrder, change: Replacement, now_ns: int) -> VenueOrder:
        """Take a change of an open order; return the new order as of its receipt."""
        order = entry.order
        if entry not in book.pending and not entry.is_done:
            raise order_rules.build_chain_not_replaced()
        if order.status not in _REPLACEABLE:
            raise order_rules.build_order_not_replaceable(order)
        if change.client_order_id in book.by_client_id:
            raise order_rules.build_duplicate_client_id()
        request = OrderRequest(
            client_order_id=change.client_order_id,
            symbol=order.symbol,
            side=order.side,
            type=order.type,
            time_in_force=change.time_in_force or order.time_in_force,
            qty=order.qty if change.qty is None else change.qty,
            limit_price=order.limit_price if change.limit_price is None else change.limit_price,
            stop_price=order.stop_price if change.stop_price is None else change.stop_price,
            extended_hours=order.extended_hours,
        )
        order_rules.check_request(request)
        if all(
            getattr(request, name) == getattr(order, name)
            for name in ("qty", "time_in_force", "limit_price", "stop_price")
        ):
            raise order_rules.build_order_not_changed()
        request, price = self._check(book, request, instead_of=entry)
        new = book.add(request, OrderStatus.PENDING_NEW, now_ns, replaces=order.id)
        new.check_price = price
        new.expires_ns = self._expiry_ns(request, now_ns)
        new.triggered = entry.triggered and request.stop_price == order.stop_price
        received = new.order
        entry.successor = new
        if self._changes_in_flight:
            book.set_status(entry, OrderStatus.PENDING_REPLACE, now_ns)
        else:
            self._land(book, entry, now_ns)
            book.drop_done()
        return received

    def cancel(self, book: Book, entry: OpenOrder, now_ns: int) -> None:
        """Cancel an open order. One that is being canceled stays so."""
        if entry.cancel_requested:
            return
        if entry.successor is not None:
            raise order_rules.build_order_closed(entry.order.status)
        if entry not in book.pending:
            raise order_rules.build_chain_not_replaced()
        entry.cancel_requested = True
        if self._changes_in_flight:
            book.set_status(entry, OrderStatus.PENDING_CANCEL, now_ns)
        else:
            self._land(book, entry, now_ns)
            book.drop_done()

    # Time

    def in_session(self, fresh: Iterable[str], now_ns: int) -> bool:
        """Tell whether a slice that ended at `now_ns` with bars of `fresh` belongs to a regular session."""
        return self._is_open(now_ns) or any(
            self._is_open(self._bars[symbol].start_ns) for symbol in fresh if not is_crypto(symbol)
        )

    def advance(self, book: Book, fresh: set[str], now_ns: int, *, in_session: bool) -> None:
        """Match the open orders against the slice that ended at `now_ns`, the oldest first; then changes take effect.

        `fresh` are the symbols with a bar in the slice.
        """
        for entry in tuple(book.pending):
            bar = self._bars[entry.order.symbol] if entry.order.symbol in fresh else None
            self._pass_slice(book, entry, bar, now_ns, in_session=in_session)
            if entry.cancel_requested or entry.successor is not None:
                self._land(book, entry, now_ns)

    def _pass_slice(
        self, book: Book, entry: OpenOrder, bar: BarPrices | None, now_ns: int, *, in_session: bool
    ) -> None:
        order = entry.order
        if entry.expires_ns is not None and bar is not None and bar.start_ns >= entry.expires_ns:
            book.set_status(entry, OrderStatus.EXPIRED, now_ns)
            return
        if in_session and order.status == OrderStatus.ACCEPTED:
            entry.order = replace(order, submitted_ns=now_ns)
            book.set_status(entry, OrderStatus.NEW, now_ns)
        if bar is not None and entry.order.status != OrderStatus.ACCEPTED and self._may_match(order, bar):
            self._match(book, entry, bar, now_ns)
        if not entry.is_done and entry.expires_ns is not None and now_ns >= entry.expires_ns:
            book.set_status(entry, OrderStatus.EXPIRED, now_ns)

    def _match(self, book: Book, entry: OpenOrder, bar: BarPrices, now_ns: int) -> None:
        account = book.account
        assert isinstance(account, AlpacaAccount)
        order = entry.order
        if entry.check_price is None and _opens(account, order):
            power = self.buying_power(book)
            available = power.non_marginable if is_crypto(order.symbol) else power.marginable
            if entry.remaining * bar.open > available:
                book.reject(entry, now_ns)
                return
        is_immediate = order.time_in_force in order_rules.IMMEDIATE
        match = (match_at_open if is_immediate else match_order)(order, bar, triggered=entry.triggered)
        entry.triggered = match.triggered
        if is_immediate and order.type is OrderType.STOP_LIMIT and not match.triggered:
            return
        if match.price is not None:
            qty = _take_volume(entry, bar) if is_immediate else entry.remaining
            if qty:
                account.execute(order.symbol, qty if order.side is Side.BUY else qty.copy_negate(), match.price)
                book.fill(entry, qty, match.price, fill_ns=bar.end_ns, now_ns=now_ns)
        if is_immediate and not entry.is_done:
            book.set_status(entry, OrderStatus.CANCELED, now_ns)

    def _land(self, book: Book, entry: OpenOrder, now_ns: int) -> None:
        """Carry out the change of an order, or tell that the order's end came before it."""
        new = entry.successor
        if entry.is_done:
            book.tell(entry, "order_cancel_rejected" if new is None else "order_replace_rejected", now_ns)
            if new is not None:
                book.reject(new, now_ns, code=order_rules.CODE_ORDER, message="order is not open")
        elif new is None:
            book.set_status(entry, OrderStatus.CANCELED, now_ns)
        else:
            entry.order = replace(entry.order, replaced_by=new.order.id)
            book.set_status(entry, OrderStatus.REPLACED, now_ns)
            book.pending.append(new)
            book.set_status(new, OrderStatus.NEW, now_ns)

    def _may_match(self, order: VenueOrder, bar: BarPrices) -> bool:
        return is_crypto(order.symbol) or order.extended_hours or self._is_open(bar.start_ns)

    # Checks

    def _check(
        self, book: Book, request: OrderRequest, *, instead_of: OpenOrder | None = None
    ) -> tuple[OrderRequest, Decimal | None]:
        """Refuse what the asset class or the account forbids; return the request as taken, and its price if known."""
        order_rules.check_alpaca_request(request)
        if is_crypto(request.symbol) and request.qty is not None:
            request = replace(request, qty=truncate_qty(request.qty))
            order_rules.check_request(request)  # less than the increment is nothing
        price = self._reference_price(request)
        self._check_funds(book, request, price, instead_of)
        return request, price

    def _check_funds(
        self, book: Book, request: OrderRequest, price: Decimal | None, instead_of: OpenOrder | None
    ) -> None:
        assert request.qty is not None
        held = book.account.qty(request.symbol)
        closes = held > 0 if request.side is Side.SELL else held < 0
        if closes or (request.side is Side.SELL and is_crypto(request.symbol)):
            existing, held_back = ZERO, ZERO
            if closes:
                existing, held_back = abs(held), self.held(book, request.symbol, without=instead_of)
            if request.qty > existing - held_back:
                raise order_rules.build_no_quantity(
                    request.symbol, requested=request.qty, existing=existing, held=held_back
                )
            return
        power = self.buying_power(book, without=instead_of)
        if request.side is Side.SELL and (power.multiplier == 1 or not order_rules.is_whole(request.qty)):
            raise order_rules.build_no_short(request.side, request.qty)
        if price is None:
            return
        cost = request.qty * price
        order_rules.check_alpaca_cost(request, request.qty, cost)
        available = power.non_marginable if is_crypto(request.symbol) else power.marginable
        if cost > available:
            raise order_rules.build_no_buying_power(request.symbol, cost=cost, available=available)

    def _reference_price(self, request: OrderRequest) -> Decimal | None:
        """Return what a share of the order is taken to cost; None when nothing is known."""
        last = self._prices.get(request.symbol)
        asked = request.limit_price or request.stop_price
        if request.side is Side.BUY:
            return asked or last
        return max(asked or ZERO, last * SHORT_RESERVE_FACTOR) if last is not None else asked

    def _expiry_ns(self, request: OrderRequest, now_ns: int) -> int | None:
        if request.time_in_force is not TimeInForce.DAY:
            return None
        if request.extended_hours:
            return self._session_close_ns(now_ns - _LATE_SESSION_NS) + _LATE_SESSION_NS
        return self._session_close_ns(now_ns)

    # Money

    def buying_power(self, book: Book, *, without: OpenOrder | None = None) -> BuyingPower:
        """Return what the account may spend, and what it might `without` one of its orders."""
        account = book.account
        assert isinstance(account, AlpacaAccount)
        reservations = self._reservations(book, without)
        return account.buying_power(self._prices, reservations, max_multiplier=book.settings.max_margin_multiplier)

    def held(self, book: Book, symbol: str, *, without: OpenOrder | None = None) -> Decimal:
        """Return the (positive) quantity of a position that open orders are about to close."""
        if not book.account.qty(symbol):
            return ZERO
        closing = Side.SELL if book.account.qty(symbol) > 0 else Side.BUY
        return sum(
            (
                max(part.remaining for part in _with_successor(entry))
                for entry in book.pending
                if entry.order.symbol == symbol
                and entry.order.side is closing
                and not entry.is_done
                and entry is not without
            ),
            ZERO,
        )

    def _reservations(self, book: Book, without: OpenOrder | None) -> Iterable[Reservation]:
        for entry in book.pending:
            order = entry.order
            if entry.is_done or entry is without or not _opens(book.account, order):
                continue
            parts = _with_successor(entry)
            values = [part.remaining * part.check_price for part in parts if part.check_price is not None]
            if values:
                yield Reservation(order.symbol, max(values), order.side is Side.BUY)


def _opens(account: Account, order: VenueOrder) -> bool:
    held = account.qty(order.symbol)
    return held >= 0 if order.side is Side.BUY else held <= 0


def _with_successor(entry: OpenOrder) -> tuple[OpenOrder, ...]:
    return (entry,) if entry.successor is None else (entry, entry.successor)


def _take_volume(entry: OpenOrder, bar: BarPrices) -> Decimal:
    """Return how much of an immediate order the bar gives; a bar without volume gives all."""
    if bar.volume <= 0:
        return entry.remaining
    is_coin = is_crypto(entry.order.symbol)
    offered = truncate_qty(build_money(bar.volume)) if is_coin else Decimal(int(bar.volume))
    if offered >= entry.remaining:
        return entry.remaining
    return ZERO if entry.order.time_in_force is TimeInForce.FOK else offered
