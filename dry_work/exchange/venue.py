"""The simulated exchange without its wire: accounts, orders, matching, trade events. Pure: no I/O, no clock of its own.

Time moves only with `Venue.advance`, one slice of bars at a time. Not thread-safe: the owner calls from one thread or
under one lock.

The rule sets: see `backtrader_matcher` and `alpaca_matcher`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Literal

from dry_work.errors import ConfigError
from dry_work.exchange import order_rules
from dry_work.exchange.account import (
    ZERO,
    AccountSettings,
    AlpacaAccount,
    BacktraderAccount,
    BuyingPower,
    is_contract,
    truncate_qty,
)
from dry_work.exchange.alpaca_checks import AlpacaChecks, held_qty
from dry_work.exchange.alpaca_matcher import AlpacaMatcher, Matching
from dry_work.exchange.assets import AssetBook
from dry_work.exchange.backtrader_matcher import BacktraderMatcher
from dry_work.exchange.book import Book, OpenOrder
from dry_work.exchange.chance import PartialFills
from dry_work.exchange.identifiers import EventIds, build_account_id, build_account_number
from dry_work.exchange.matching import BarPrices, build_bar_prices
from dry_work.exchange.option_contracts import OptionChains
from dry_work.exchange.option_desk import OptionDesk
from dry_work.exchange.option_rules import Settlement
from dry_work.exchange.order_rules import RefusedError
from dry_work.exchange.tick_matcher import TickSource
from dry_work.feeds.recorded_ticks import TickRecording
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
        matching: `bars` fills an order as a whole where a bar reaches it, `volume` no more than the bar's volume,
            `ticks` against recorded quotes and trades where a slice has some; rule set `alpaca` only.
        ticks: recorded quotes and trades.
        refuse_wash_trades: rule set `alpaca` only.
        chains: the options that trade beside the assets; rule set `alpaca` only.
        traits: what may be done with the assets; rule set `alpaca` only.
        partial_fills: decides which orders get a part first; rule set `alpaca` only.
        settle: takes, with the key of the account, what becomes of options beside their orders.
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
        matching: Matching = "bars",
        ticks: TickRecording | None = None,
        refuse_wash_trades: bool = True,
        chains: OptionChains | None = None,
        traits: AssetBook | None = None,
        partial_fills: PartialFills | None = None,
        settle: Callable[[str, Settlement], None] | None = None,
    ) -> None:
        if rules not in ("backtrader", "alpaca"):
            raise ConfigError(f"there is no rule set {rules!r}: expected backtrader or alpaca")
        if changes_in_flight and rules != "alpaca":
            raise ConfigError("only the rule set alpaca has cancels and replacements that may lose to a fill")
        if matching != "bars" and rules != "alpaca":
            raise ConfigError(f"only the rule set alpaca matches orders against {matching}: the other one knows bars")
        self.rules: RuleSet = rules
        self.assets = tuple(assets)
        self.now_ns = now_ns
        self._known = frozenset(assets)
        self._emit = emit
        self._event_ids = EventIds()
        self._books: dict[str, Book] = {}
        self._bars: dict[str, BarPrices] = {}  # last bar by symbol
        self._prices: dict[str, Decimal] = {}  # its close
        self._backtrader = BacktraderMatcher(bars=self._bars, prices=self._prices)
        self.traits = traits or AssetBook()
        self._checks = AlpacaChecks(prices=self._prices, refuse_wash_trades=refuse_wash_trades, assets=self.traits)
        self._alpaca = AlpacaMatcher(
            checks=self._checks,
            bars=self._bars,
            prices=self._prices,
            is_open=is_open,
            session_close_ns=session_close_ns,
            changes_in_flight=changes_in_flight,
            matching=matching,
            ticks=None if ticks is None else TickSource(ticks),
            partial_fills=partial_fills or PartialFills(),
            is_overnight=self.traits.is_overnight,
        )
        self._options = OptionDesk(
            chains if rules == "alpaca" else None,
            checks=self._checks,
            bars=self._bars,
            prices=self._prices,
            note=settle or (lambda key_id, settlement: None),
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

    def restore_account(self, key_id: str, *, cash: Decimal, positions: Sequence[VenuePosition]) -> None:
        """Let an account without orders have this cash, which may be below 0, and these positions."""
        book = self._books[key_id]
        if book.orders:
            raise ConfigError(f"the account of {key_id!r} has orders already: cash and positions are theirs")
        book.account.restore(cash, ((held.symbol, held.qty, held.avg_entry_price) for held in positions))

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
        return held_qty(self._books[key_id], symbol) if self.rules == "alpaca" else ZERO

    def last_price(self, symbol: str) -> Decimal | None:
        """Return the close of the symbol's last bar, None before its first."""
        return self._prices.get(symbol)

    # Orders

    def order(self, key_id: str, order_id: str, *, nested: bool = False) -> VenueOrder | None:
        """Return the order with this id; `nested` with its legs."""
        book = self._books[key_id]
        entry = book.orders.get(order_id)
        if entry is None:
            return None
        return book.nested(entry) if nested else entry.order

    def order_by_client_id(self, key_id: str, client_order_id: str) -> VenueOrder | None:
        """Return the order with this client order id."""
        entry = self._books[key_id].by_client_id.get(client_order_id)
        return entry.order if entry is not None else None

    def orders(self, key_id: str) -> list[VenueOrder]:
        """Return all orders of the account, each leg as one of its own, the oldest first."""
        return [entry.order for entry in self._books[key_id].orders.values()]

    def head_id(self, key_id: str, order_id: str) -> str:
        """Return the id of the order that an order is a leg of; its own when it is none, or a replaced one."""
        entry = self._books[key_id].orders[order_id]
        group = entry.group
        return order_id if group is None or entry not in group.legs else group.head.order.id

    def submit(self, key_id: str, request: OrderRequest) -> VenueOrder:
        """Take an order.

        Returns:
            the order as of its receipt: `pending_new`, or `accepted` while the market of an `alpaca` order is closed.

        Raises:
            RefusedError: no order was made, and the client order id remains free.
        """
        book = self._books[key_id]
        order_rules.check_request(request)
        # To Backtrader's broker a contract that is recorded is a symbol like any other.
        is_plain = self.rules == "backtrader" and request.symbol in self._known
        if is_contract(request.symbol) and not is_plain:
            self._options.admit(request.symbol, self.now_ns)
        elif request.symbol not in self._known:
            raise order_rules.build_unknown_asset(request.symbol)
        if request.client_order_id in book.by_client_id:
            raise order_rules.build_duplicate_client_id()
        order_rules.check_settings(request, book.settings, book.account.qty(request.symbol))
        if self.rules == "backtrader":
            return self._backtrader.submit(book, request, self.now_ns)
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
        for entry in book.open_orders():
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

    def exercise(self, key_id: str, symbol: str) -> None:
        """Exercise the options of a position that no open order is about to sell.

        Raises:
            RefusedError: there is no such contract or position, it is short, or money or shares are missing.
        """
        self._options.exercise(self._books[key_id], symbol, self.now_ns)

    def take_back(self, key_id: str, fill: TradeEvent, rest: Sequence[TradeEvent]) -> None:
        """Take an execution back, as an exchange does with erroneous trades; rule set `alpaca` only.

        Args:
            key_id: of the account.
            fill: the event that told of the execution.
            rest: those of the account that are not taken back, in their order.
        """
        book = self._books[key_id]
        if not isinstance(book.account, AlpacaAccount):
            raise RefusedError(422, order_rules.CODE_ORDER, "executions are not taken back under the rules backtrader")
        symbol = fill.order.symbol
        self._options.check_bust(book, symbol)
        others = [_change(other) for other in rest if other.order.symbol == symbol]
        book.account.take_back(symbol, *_change(fill), others)
        book.take_back(fill, self.now_ns)

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
        # what ended in a night without slices is worth what its stock was at the close
        self._options.end_contracts(self._books.values(), min((bar.ts_event_ns for bar in bars), default=end_ns))
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
        start_ns, self.now_ns = self.now_ns, end_ns
        fresh |= self._options.derive_bars(self._books.values(), fresh)
        in_session = self.rules == "alpaca" and self._alpaca.in_session(fresh, end_ns)
        for book in self._books.values():
            if self.rules == "backtrader":
                self._backtrader.advance(book, fresh, end_ns)
            else:
                self._alpaca.advance(book, fresh, start_ns, end_ns, in_session=in_session)
            book.drop_done()
        self._options.end_contracts(self._books.values(), end_ns)

    def _buying_power(self, book: Book) -> BuyingPower:
        account = book.account
        if isinstance(account, AlpacaAccount):
            return self._checks.buying_power(book)
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
        self._backtrader.cancel(book, entry, self.now_ns)


def _change(fill: TradeEvent) -> tuple[Decimal, Decimal]:
    assert fill.qty is not None
    assert fill.price is not None
    return (fill.qty if fill.order.side is Side.BUY else fill.qty.copy_negate()), fill.price
