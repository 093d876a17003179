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

Rule set `alpaca`: see `alpaca_matcher`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Literal

from dry_work.clock import DAY_NS
from dry_work.errors import ConfigError
from dry_work.exchange import order_rules
from dry_work.exchange.account import (
    ZERO,
    AccountSettings,
    AlpacaAccount,
    BacktraderAccount,
    BuyingPower,
    truncate_qty,
)
from dry_work.exchange.alpaca_matcher import AlpacaMatcher
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
from dry_work.wire.alpaca_rest import Replacement

__all__ = ["RefusedError", "RuleSet", "Venue"]

RuleSet = Literal["backtrader", "alpaca"]

_BACKTRADER_DAY_END_NS = 86_399_009_999_000  # BackBroker's last moment of a day: time(23, 59, 59, 9999)


class Venue:
    """The exchange's books and matcher.

    `emit` is called with the API key id and the event before the call that caused it returns (`advance`, `cancel`,
    `cancel_all`, and with rules `alpaca` `submit`, `replace` and `close_position`). It must not call the venue.

    Args:
        rules: rule set for all accounts.
        assets: canonical symbols that trade here.
        emit: takes every trade event, in order.
        now_ns: time before the end of the first slice.
        is_open: whether the regular stock session is open at a time: at its first moment it is, at its close not.
        session_close_ns: close of the session that a `day` order given at a time belongs to; a time outside
            a session, its close included, belongs to the next one.
        changes_in_flight: cancels and replacements take effect after the next slice and may lose to a fill in it; rule
            set `alpaca` only.
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
        changes_in_flight: bool = False,
    ) -> None:
        if rules not in ("backtrader", "alpaca"):
            raise ConfigError(f"there is no rule set {rules!r}: expected backtrader or alpaca")
        if changes_in_flight and rules != "alpaca":
            raise ConfigError("only the rule set alpaca has cancels and replacements that may lose to a fill")
        self.rules: RuleSet = rules
        self.assets = tuple(assets)
        self.now_ns = now_ns
        self._known = frozenset(assets)
        self._emit = emit
        self._event_ids = EventIds()
        self._books: dict[str, Book] = {}
        self._bars: dict[str, BarPrices] = {}  # last bar by symbol
        self._prices: dict[str, Decimal] = {}  # its close
        self._alpaca = AlpacaMatcher(
            bars=self._bars,
            prices=self._prices,
            is_open=is_open,
            session_close_ns=session_close_ns,
            changes_in_flight=changes_in_flight,
        )

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

    def equity(self, key_id: str) -> Decimal:
        """Return cash plus positions at their last prices."""
        return self._books[key_id].account.equity(self._prices)

    def settings(self, key_id: str) -> AccountSettings:
        """Return what the owner of the account has set."""
        return self._books[key_id].settings

    def change_settings(self, key_id: str, settings: AccountSettings) -> None:
        """Set the account for orders from now on."""
        self._books[key_id].settings = settings

    def positions(self, key_id: str) -> list[VenuePosition]:
        """Return the positions that are not flat, the first traded first."""
        return [
            VenuePosition(symbol=symbol, qty=position.qty, avg_entry_price=position.avg_entry_price)
            for symbol, position in self._books[key_id].account.positions().items()
        ]

    def held_qty(self, key_id: str, symbol: str) -> Decimal:
        """Return the (positive) quantity of a position that open orders are about to close; rule set `alpaca` only."""
        return self._alpaca.held(self._books[key_id], symbol) if self.rules == "alpaca" else ZERO

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
        order_rules.check_settings(request, book.settings, book.account.qty(request.symbol))
        if self.rules == "backtrader":
            return self._submit_backtrader(book, request)
        return self._alpaca.submit(book, request, self.now_ns)

    def replace(self, key_id: str, order_id: str, change: Replacement) -> VenueOrder:
        """Change an open order; rule set `alpaca` only.

        Returns:
            the new order that takes its place, as of its receipt: `pending_new`.

        Raises:
            RefusedError: the order is unknown or in a state that does not allow it, nothing is changed, or the new
                order is refused; the old one then stays as it is.
        """
        book = self._books[key_id]
        entry = book.orders.get(order_id)
        if entry is None:
            raise order_rules.build_order_not_found(order_id)
        if self.rules != "alpaca":
            message = "orders are not replaced under the rules backtrader: cancel the order and submit another"
            raise RefusedError(422, order_rules.CODE_ORDER, message)
        return self._alpaca.replace(book, entry, change, self.now_ns)

    def cancel(self, key_id: str, order_id: str) -> None:
        """Cancel an open order, at once unless changes are in flight. An order that is canceled already stays so.

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
        in_session = self.rules == "alpaca" and self._alpaca.in_session(fresh, end_ns)
        for book in self._books.values():
            if self.rules == "backtrader":
                self._advance_backtrader(book, fresh)
            else:
                self._alpaca.advance(book, fresh, end_ns, in_session=in_session)
            book.drop_done()

    # Rule set backtrader

    def _submit_backtrader(self, book: Book, request: OrderRequest) -> VenueOrder:
        order_rules.check_backtrader_request(request)
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

    def _buying_power(self, book: Book) -> BuyingPower:
        account = book.account
        if isinstance(account, AlpacaAccount):
            return self._alpaca.buying_power(book)
        spendable = max(account.cash, ZERO)
        return BuyingPower(
            equity=account.equity(self._prices), multiplier=1, marginable=spendable, non_marginable=spendable
        )

    def _cancel(self, book: Book, entry: OpenOrder) -> None:
        if entry.order.status == OrderStatus.CANCELED:
            return
        if entry.is_done:
            raise order_rules.build_order_closed(entry.order.status)
        if self.rules == "alpaca":
            self._alpaca.cancel(book, entry, self.now_ns)
            return
        if entry in book.submitted:
            raise order_rules.build_order_not_checked(entry.order.status)
        book.set_status(entry, OrderStatus.CANCELED, self.now_ns)
        book.drop_done()
