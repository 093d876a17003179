"""The simulated exchange without its wire: accounts, orders, matching, trade events. Pure: no I/O, no clock of its own.

Time moves only with `Venue.advance`, one slice of bars at a time. Not thread-safe: the owner calls from one thread or
under one lock.

Rule set `backtrader` (equal to Backtrader's `BackBroker` with its defaults):

- `submit` takes every well-formed order; it is `pending_new` and nothing is said on the stream.
- At the next slice all such orders pass BackBroker's funds check in the order of their submission (`new` or
  `rejected`); until then they cannot be canceled. Then every open order is tried, the oldest first.
- An order is tried against a bar of its symbol that ended after the slice in which it was made. A stop-limit order
  that has triggered is tried again, as a limit order, against its symbol's last bar in slices without a new one: so
  BackBroker does, and then the fill carries the time of that bar.
- A `day` order expires with the first bar of its symbol that ends after the UTC day of the last bar that the symbol had
  when the order was made (of the slice, when it had none). Market orders never expire.
- What closes a position always executes; what opens one needs the cash, else the order is `rejected`.

Rule set `alpaca`:

- Refusals at submit: form, asset, client order id, funds, quantity at hand. Open orders hold money or shares back.
- A crypto order, or a stock order given in the regular session: `pending_new`, `new`. Outside the session a stock order
  is `accepted`, and `new` once the session has opened. With `extended_hours` it is `new` at once.
- Bars that start outside the regular session do not match stock orders, except with `extended_hours`.
- A `day` order expires at the close of its session, with `extended_hours` four hours later, when the late session ends.
- There is no second look at the funds at execution, as the money was held back; only an order made before its symbol
  had a price is looked at when its first bar comes. Crypto pays 25 basis points in what is received.
- Not modelled: wash-trade refusals, random partial fills, the ageing of gtc orders, the limit of buy stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Literal

from msgspec.structs import replace

from dry_work.clock import DAY_NS, HOUR_NS
from dry_work.errors import ConfigError
from dry_work.exchange import order_rules
from dry_work.exchange.account import (
    SHORT_RESERVE_FACTOR,
    ZERO,
    Account,
    AlpacaAccount,
    BacktraderAccount,
    BuyingPower,
    Reservation,
    truncate_qty,
)
from dry_work.exchange.book import Book, OpenOrder
from dry_work.exchange.identifiers import EventIds, build_account_id, build_account_number
from dry_work.exchange.matching import BarPrices, build_bar_prices, match_order
from dry_work.exchange.order_rules import RefusedError
from dry_work.market.messages import Bar
from dry_work.market.symbols import is_crypto
from dry_work.orders.model import (
    AccountSnapshot,
    OrderRequest,
    OrderStatus,
    OrderType,
    Side,
    TimeInForce,
    TradeEvent,
    VenueOrder,
    VenuePosition,
)

__all__ = ["RefusedError", "RuleSet", "Venue"]

RuleSet = Literal["backtrader", "alpaca"]

_LATE_SESSION_NS = 4 * HOUR_NS
_BACKTRADER_DAY_END_NS = 86_399_009_999_000  # BackBroker's last moment of a day: time(23, 59, 59, 9999)


class Venue:
    """The exchange's books and matcher.

    `emit` is called with the API key id and the event before the call that caused it returns (`advance`, `cancel`,
    `cancel_all`, and with rules `alpaca` `submit` and `close_position`). It must not call the venue.

    Args:
        rules: rule set for all accounts.
        assets: canonical symbols that trade here.
        emit: takes every trade event, in order.
        now_ns: time before the end of the first slice.
        is_open: whether the regular stock session is open at a time: at its first moment it is, at its close not.
        session_close_ns: close of the session that a `day` order given at a time belongs to; a time outside
            a session, its close included, belongs to the next one.
    """

    def __init__(
        self,
        *,
        rules: RuleSet,
        assets: Sequence[str],
        emit: Callable[[str, TradeEvent], None],
        now_ns: int,
        is_open: Callable[[int], bool],
        session_close_ns: Callable[[int], int],
    ) -> None:
        if rules not in ("backtrader", "alpaca"):
            raise ConfigError(f"there is no rule set {rules!r}: expected backtrader or alpaca")
        self.rules: RuleSet = rules
        self.assets = tuple(assets)
        self.now_ns = now_ns
        self._known = frozenset(assets)
        self._emit = emit
        self._is_open = is_open
        self._session_close_ns = session_close_ns
        self._event_ids = EventIds()
        self._books: dict[str, Book] = {}
        self._bars: dict[str, BarPrices] = {}  # last bar by symbol
        self._prices: dict[str, Decimal] = {}  # its close

    @property
    def last_event_id(self) -> str:
        """Id of the last trade event of any account, empty when there was none."""
        return self._event_ids.last

    # Accounts

    def open_account(self, key_id: str, *, cash: Decimal) -> None:
        """Open the account of an API key with `cash` dollars in it."""
        if key_id in self._books:
            raise ConfigError(f"the API key {key_id!r} has an account already: give every account its own key")
        if not cash.is_finite() or cash < 0:
            raise ConfigError(f"an account cannot open with {cash} dollars: expected 0 or more")
        account = BacktraderAccount(cash) if self.rules == "backtrader" else AlpacaAccount(cash)
        self._books[key_id] = Book(key_id, account, emit=self._emit, event_ids=self._event_ids)

    def account(self, key_id: str) -> AccountSnapshot:
        """Return the account as of the last slice; positions count at their last price."""
        book = self._books[key_id]
        power = self._buying_power(book)
        return AccountSnapshot(
            id=build_account_id(key_id),
            account_number=build_account_number(key_id),
            cash=book.account.cash,
            equity=power.equity,
            buying_power=power.marginable,
        )

    def multiplier(self, key_id: str) -> int:
        """Return how many dollars of stocks a free dollar of equity buys: 1 or 2."""
        return self._buying_power(self._books[key_id]).multiplier

    def non_marginable_buying_power(self, key_id: str) -> Decimal:
        """Return what may be spent on crypto."""
        return self._buying_power(self._books[key_id]).non_marginable

    def positions(self, key_id: str) -> list[VenuePosition]:
        """Return the positions that are not flat, the first traded first."""
        return [
            VenuePosition(symbol=symbol, qty=position.qty, avg_entry_price=position.avg_entry_price)
            for symbol, position in self._books[key_id].account.positions().items()
        ]

    def held_qty(self, key_id: str, symbol: str) -> Decimal:
        """Return the (positive) quantity of a position that open orders are about to close; rule set `alpaca` only."""
        return self._held(self._books[key_id], symbol) if self.rules == "alpaca" else ZERO

    def last_price(self, symbol: str) -> Decimal | None:
        """Return the close of the symbol's last bar, None before its first."""
        return self._prices.get(symbol)

    # Orders

    def order(self, key_id: str, order_id: str) -> VenueOrder | None:
        """Return the order with this id."""
        entry = self._books[key_id].orders.get(order_id)
        return entry.order if entry is not None else None

    def order_by_client_id(self, key_id: str, client_order_id: str) -> VenueOrder | None:
        """Return the order with this client order id."""
        entry = self._books[key_id].by_client_id.get(client_order_id)
        return entry.order if entry is not None else None

    def orders(self, key_id: str) -> list[VenueOrder]:
        """Return all orders of the account, the oldest first."""
        return [entry.order for entry in self._books[key_id].orders.values()]

    def submit(self, key_id: str, request: OrderRequest) -> VenueOrder:
        """Take an order.

        Returns:
            the order as of its receipt: `pending_new`, or `accepted` while the market of an `alpaca` order is closed.

        Raises:
            RefusedError: no order was made, and the client order id remains free.
        """
        book = self._books[key_id]
        order_rules.check_request(request)
        if request.symbol not in self._known:
            raise order_rules.build_unknown_asset(request.symbol)
        if request.client_order_id in book.by_client_id:
            raise order_rules.build_duplicate_client_id()
        if self.rules == "backtrader":
            return self._submit_backtrader(book, request)
        return self._submit_alpaca(book, request)

    def cancel(self, key_id: str, order_id: str) -> None:
        """Cancel an open order at once. An order that is canceled already stays so.

        Raises:
            RefusedError: it is unknown, at its end, or (rule set `backtrader`) was made since the last slice.
        """
        book = self._books[key_id]
        entry = book.orders.get(order_id)
        if entry is None:
            raise order_rules.build_order_not_found(order_id)
        self._cancel(book, entry)

    def cancel_all(self, key_id: str) -> list[tuple[str, int, dict[str, object] | None]]:
        """Cancel every open order.

        Returns: for each its id, an HTTP status and, when it was refused, the error body.
        """
        book = self._books[key_id]
        results: list[tuple[str, int, dict[str, object] | None]] = []
        for entry in [*book.pending, *book.submitted]:
            try:
                self._cancel(book, entry)
            except RefusedError as error:
                results.append((entry.order.id, error.http_status, error.body()))
            else:
                results.append((entry.order.id, 200, None))
        return results

    def close_position(
        self,
        key_id: str,
        symbol: str,
        *,
        qty: Decimal | None = None,
        percentage: Decimal | None = None,
        client_order_id: str = "",
    ) -> VenueOrder:
        """Submit the market order that closes a position, or `qty` or `percentage` (above 0, up to 100) of it.

        Raises:
            RefusedError: there is no position, more than it is asked for, or the order is refused.
        """
        held = self._books[key_id].account.qty(symbol)
        if not held:
            raise order_rules.build_position_not_found(symbol)
        if qty is not None and percentage is not None:
            raise RefusedError(422, order_rules.CODE_REQUEST, "only one of qty or percentage is accepted")
        if percentage is not None:
            if not (percentage.is_finite() and 0 < percentage <= 100):
                raise RefusedError(422, order_rules.CODE_REQUEST, "percentage must be above 0 and no more than 100")
            qty = abs(held)
            if percentage != 100:
                qty = truncate_qty(qty * percentage / 100)
        elif qty is None:
            qty = abs(held)
        elif qty.is_finite() and qty > abs(held):
            held_back = self.held_qty(key_id, symbol)
            raise order_rules.build_no_quantity(symbol, requested=qty, existing=abs(held), held=held_back)
        request = OrderRequest(
            client_order_id=client_order_id,
            symbol=symbol,
            side=Side.SELL if held > 0 else Side.BUY,
            type=OrderType.MARKET,
            time_in_force=TimeInForce.GTC if is_crypto(symbol) else TimeInForce.DAY,
            qty=qty,
        )
        return self.submit(key_id, request)

    # Time

    def advance(self, end_ns: int, bars: Sequence[Bar]) -> None:
        """Move the time to `end_ns`, the end of a slice, and match all open orders against its `bars`.

        Accounts are served in the order of their opening.

        Raises:
            ValueError: the time does not move forward, or a bar is of no asset or does not end with the slice.
        """
        if end_ns <= self.now_ns:
            raise ValueError(
                f"the exchange's time cannot move from {self.now_ns} to {end_ns} ns: expected a later time"
            )
        fresh: set[str] = set()
        for bar in bars:
            if bar.symbol not in self._known:
                raise ValueError(f"a bar of {bar.symbol}, which is not among the exchange's assets")
            if bar.end_ns != end_ns:
                raise ValueError(f"a bar of {bar.symbol} ends at {bar.end_ns} ns, its slice at {end_ns} ns")
            prices = build_bar_prices(bar)
            self._bars[bar.symbol] = prices
            self._prices[bar.symbol] = prices.close
            fresh.add(bar.symbol)
        self.now_ns = end_ns
        in_session = self.rules == "alpaca" and self._in_session(fresh)
        for book in self._books.values():
            if self.rules == "backtrader":
                self._advance_backtrader(book, fresh)
            else:
                self._advance_alpaca(book, fresh, in_session=in_session)
            book.drop_done()

    # Rule set backtrader

    def _submit_backtrader(self, book: Book, request: OrderRequest) -> VenueOrder:
        entry = book.add(request, OrderStatus.PENDING_NEW, self.now_ns)
        # BackBroker's `created.price`: the stop price before the limit price, for market orders the last close.
        entry.check_price = request.stop_price or request.limit_price or self._prices.get(request.symbol)
        if request.time_in_force is TimeInForce.DAY and request.type is not OrderType.MARKET:
            last = self._bars.get(request.symbol)
            made_ns = last.end_ns if last is not None else self.now_ns
            entry.expires_ns = made_ns // DAY_NS * DAY_NS + _BACKTRADER_DAY_END_NS
        book.submitted.append(entry)
        return entry.order

    def _advance_backtrader(self, book: Book, fresh: set[str]) -> None:
        account = book.account
        assert isinstance(account, BacktraderAccount)
        submitted, book.submitted = book.submitted, []
        # Without any price so far the check lets the order pass; the one at execution decides.
        wanted = [(entry.order.symbol, entry.change, entry.check_price or ZERO) for entry in submitted]
        for entry, has_cash in zip(submitted, account.check_submitted(wanted), strict=True):
            if has_cash:
                book.set_status(entry, OrderStatus.NEW, self.now_ns)
                book.pending.append(entry)
            else:
                book.reject(entry, self.now_ns)
        for entry in book.pending:
            is_fresh = entry.order.symbol in fresh
            if not is_fresh and not entry.triggered:
                continue
            bar = self._bars[entry.order.symbol]
            if entry.expires_ns is not None and bar.end_ns > entry.expires_ns:
                book.set_status(entry, OrderStatus.EXPIRED, self.now_ns)
                continue
            match = match_order(entry.order, bar, triggered=entry.triggered)
            entry.triggered = match.triggered
            if match.price is None:
                continue
            executed, refused = account.execute(entry.order.symbol, entry.change, match.price)
            if executed:
                book.fill(entry, executed.copy_abs(), match.price, fill_ns=bar.end_ns, now_ns=self.now_ns)
            if refused:
                book.reject(entry, self.now_ns)

    # Rule set alpaca

    def _submit_alpaca(self, book: Book, request: OrderRequest) -> VenueOrder:
        order_rules.check_alpaca_request(request)
        if is_crypto(request.symbol) and request.qty is not None:
            request = replace(request, qty=truncate_qty(request.qty))
            order_rules.check_request(request)  # less than the increment is nothing
        price = self._reference_price(request)
        self._check_funds(book, request, price)
        is_live = is_crypto(request.symbol) or request.extended_hours or self._is_open(self.now_ns)
        entry = book.add(request, OrderStatus.PENDING_NEW if is_live else OrderStatus.ACCEPTED, self.now_ns)
        entry.check_price = price
        if request.time_in_force is TimeInForce.DAY:
            if request.extended_hours:
                entry.expires_ns = self._session_close_ns(self.now_ns - _LATE_SESSION_NS) + _LATE_SESSION_NS
            else:
                entry.expires_ns = self._session_close_ns(self.now_ns)
        book.pending.append(entry)
        received = entry.order
        book.set_status(entry, OrderStatus(received.status), self.now_ns)
        if is_live:
            book.set_status(entry, OrderStatus.NEW, self.now_ns)
        return received

    def _check_funds(self, book: Book, request: OrderRequest, price: Decimal | None) -> None:
        assert request.qty is not None
        held = book.account.qty(request.symbol)
        closes = held > 0 if request.side is Side.SELL else held < 0
        if closes or (request.side is Side.SELL and is_crypto(request.symbol)):
            existing, held_back = (abs(held), self._held(book, request.symbol)) if closes else (ZERO, ZERO)
            if request.qty > existing - held_back:
                raise order_rules.build_no_quantity(
                    request.symbol, requested=request.qty, existing=existing, held=held_back
                )
            return
        power = self._buying_power(book)
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

    def _advance_alpaca(self, book: Book, fresh: set[str], *, in_session: bool) -> None:
        for entry in book.pending:
            order = entry.order
            bar = self._bars.get(order.symbol) if order.symbol in fresh else None
            if entry.expires_ns is not None and bar is not None and bar.start_ns >= entry.expires_ns:
                book.set_status(entry, OrderStatus.EXPIRED, self.now_ns)
                continue
            if in_session and order.status == OrderStatus.ACCEPTED:
                entry.order = replace(order, submitted_ns=self.now_ns)
                book.set_status(entry, OrderStatus.NEW, self.now_ns)
            if bar is not None and entry.order.status != OrderStatus.ACCEPTED and self._may_match(order, bar):
                self._match_alpaca(book, entry, bar)
            if not entry.is_done and entry.expires_ns is not None and self.now_ns >= entry.expires_ns:
                book.set_status(entry, OrderStatus.EXPIRED, self.now_ns)

    def _match_alpaca(self, book: Book, entry: OpenOrder, bar: BarPrices) -> None:
        account = book.account
        assert isinstance(account, AlpacaAccount)
        order = entry.order
        if entry.check_price is None and _opens(account, order):
            power = self._buying_power(book)
            available = power.non_marginable if is_crypto(order.symbol) else power.marginable
            if entry.remaining * bar.open > available:
                book.reject(entry, self.now_ns)
                return
        match = match_order(order, bar, triggered=entry.triggered)
        entry.triggered = match.triggered
        if match.price is not None:
            account.execute(order.symbol, entry.change, match.price)
            book.fill(entry, entry.remaining, match.price, fill_ns=bar.end_ns, now_ns=self.now_ns)

    def _in_session(self, fresh: Iterable[str]) -> bool:
        return self._is_open(self.now_ns) or any(
            self._is_open(self._bars[symbol].start_ns) for symbol in fresh if not is_crypto(symbol)
        )

    def _may_match(self, order: VenueOrder, bar: BarPrices) -> bool:
        return is_crypto(order.symbol) or order.extended_hours or self._is_open(bar.start_ns)

    def _buying_power(self, book: Book) -> BuyingPower:
        account = book.account
        if isinstance(account, AlpacaAccount):
            return account.buying_power(self._prices, self._reservations(book))
        spendable = max(account.cash, ZERO)
        return BuyingPower(
            equity=account.equity(self._prices), multiplier=1, marginable=spendable, non_marginable=spendable
        )

    def _reservations(self, book: Book) -> Iterable[Reservation]:
        for entry in book.pending:
            order = entry.order
            if not entry.is_done and entry.check_price is not None and _opens(book.account, order):
                yield Reservation(order.symbol, entry.remaining * entry.check_price, order.side is Side.BUY)

    def _held(self, book: Book, symbol: str) -> Decimal:
        closing = Side.SELL if book.account.qty(symbol) > 0 else Side.BUY
        if not book.account.qty(symbol):
            return ZERO
        return sum(
            (
                entry.remaining
                for entry in book.pending
                if entry.order.symbol == symbol and entry.order.side is closing and not entry.is_done
            ),
            ZERO,
        )

    def _cancel(self, book: Book, entry: OpenOrder) -> None:
        if entry.order.status == OrderStatus.CANCELED:
            return
        if entry.is_done:
            raise order_rules.build_order_closed(entry.order.status)
        if entry in book.submitted:
            raise order_rules.build_order_not_checked(entry.order.status)
        book.set_status(entry, OrderStatus.CANCELED, self.now_ns)
        book.drop_done()


def _opens(account: Account, order: VenueOrder) -> bool:
    held = account.qty(order.symbol)
    return held >= 0 if order.side is Side.BUY else held <= 0
