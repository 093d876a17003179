"""What Alpaca refuses of option orders for the sake of the account, and the end of contracts. Pure.

- Level 1 writes covered calls and cash-secured puts, level 2 buys calls and puts as well; an account has level 3, or
  less when its `max_options_trading_level` says so. Orders of several legs are not taken.
- A call is sold to open with 100 shares at hand for each contract, which it holds; a put with the strike in cash.
- Bought options are paid in cash.
- At its end a contract that is in the money by a cent or more is exercised: shares change hands at the strike. Where a
  holder has neither the money nor the shares for that, the contract is settled in cash at what it is worth, as Alpaca
  sells such positions before the close. The others expire without value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal

import msgspec

from dry_work.exchange.account import (
    EXACT,
    OPTION_LEVEL,
    OPTION_SIZE,
    ZERO,
    AccountSettings,
    AlpacaAccount,
    BuyingPower,
    is_contract,
    put_collateral,
)
from dry_work.exchange.book import Book, OpenOrder
from dry_work.exchange.option_contracts import OptionContract
from dry_work.exchange.order_rules import CODE_FUNDS, CODE_ORDER, RefusedError, encode_decimal
from dry_work.orders.model import OrderRequest, OrderType, Side

CODE_EXERCISE = 40310001
_CENT = Decimal("0.01")
_WRITER, _BUYER = 1, 2  # levels


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a position in options. `kind` is Alpaca's name of the activity.

    OPEXC is an exercise, OPASN an assignment, OPEXP the end without value, OPCSH a settlement in cash; OPTRD is the
    trade of the shares.
    """

    kind: str
    number: int  # counts the account's settlements
    time_ns: int
    symbol: str
    qty: Decimal  # signed change of the position
    price: Decimal = ZERO
    net_amount: Decimal = ZERO


def level_of(settings: AccountSettings) -> int:
    """Return the options level that is in effect."""
    wanted = settings.max_options_trading_level
    return OPTION_LEVEL if wanted is None else min(wanted, OPTION_LEVEL)


def check_hours(request: OrderRequest, *, is_open: bool) -> None:
    """Refuse an order at market outside the session."""
    if request.type is OrderType.MARKET and not is_open:
        raise RefusedError(422, CODE_ORDER, "options market orders are only allowed during market hours")


def check_level(settings: AccountSettings, *, opens: bool, buys: bool) -> None:
    """Refuse what the account's level does not allow."""
    level = level_of(settings)
    needed = 0 if not opens else _BUYER if buys else _WRITER
    if level == 0 or level < needed:
        raise RefusedError(
            403,
            CODE_FUNDS,
            f"account not eligible to trade options at this level (level: {level}, required: {needed or 1})",
        )


def check_cover(request: OrderRequest, qty: Decimal, *, shares: Decimal, free_shares: Decimal, cash: Decimal) -> None:
    """Refuse to sell to open without cover.

    Args:
        request: the order.
        qty: of contracts.
        shares: of the underlying that the account has.
        free_shares: those that nothing else holds.
        cash: that may be spent.
    """
    if request.symbol[-9] == "C":
        if shares <= 0:
            raise RefusedError(403, CODE_FUNDS, "account not eligible to trade uncovered option contracts")
        needed = qty * OPTION_SIZE
        if needed > free_shares:
            amounts = f"(required: {encode_decimal(needed)}, available: {encode_decimal(max(free_shares, ZERO))})"
            raise RefusedError(403, CODE_FUNDS, f"insufficient underlying qty available for covered call {amounts}")
        return
    refuse_cost(put_collateral(request.symbol, qty), cash)


def refuse_cost(cost: Decimal, available: Decimal) -> None:
    """Refuse what costs more than there is."""
    if cost > available:
        amounts = f"(required: {encode_decimal(cost)}, available: {encode_decimal(available)})"
        context = {"buying_power": encode_decimal(available), "cost_basis": encode_decimal(cost)}
        raise RefusedError(403, CODE_FUNDS, f"insufficient options buying power {amounts}", context)


def order_value(entry: OpenOrder) -> Decimal | None:
    """Return the cash that the rest of an order for options keeps from being spent; None when it is not known."""
    order = entry.order
    if order.side is Side.SELL:
        return put_collateral(order.symbol, entry.remaining)
    return None if entry.check_price is None else entry.remaining * entry.check_price * OPTION_SIZE


def covering_shares(book: Book, symbol: str, *, without: OpenOrder | None = None) -> Decimal:
    """Return the shares of a stock that the account's short calls, and its orders to sell calls to open, hold."""
    root = symbol.replace(".", "")
    calls = ZERO
    for contract, qty in book.account.contracts():
        if qty < 0 and _is_call_of(contract, root):
            calls -= qty
    for entry in book.pending:
        order = entry.order
        if (
            is_contract(order.symbol)
            and order.side is Side.SELL
            and not entry.is_done
            and entry is not without
            and book.account.qty(order.symbol) <= 0
            and _is_call_of(order.symbol, root)
        ):
            calls += entry.remaining
    return calls * OPTION_SIZE


def _is_call_of(contract: str, root: str) -> bool:
    return contract[-9] == "C" and contract[:-15] == root


class Settler:
    """Exercises options, and ends contracts.

    Args:
        prices: the last price by symbol.
        buying_power: what an account may spend.
        free_shares: shares of a stock that an account has and nothing holds.
        note: takes every settlement with the account's key.
    """

    def __init__(
        self,
        *,
        prices: Mapping[str, Decimal],
        buying_power: Callable[[Book], BuyingPower],
        free_shares: Callable[[Book, str], Decimal],
        note: Callable[[str, Settlement], None],
    ) -> None:
        self._prices = prices
        self._buying_power = buying_power
        self._free_shares = free_shares
        self._note = note
        self._counts: dict[str, int] = {}

    def exercise(self, book: Book, contract: OptionContract, qty: Decimal, now_ns: int) -> None:
        """Exercise `qty` contracts that the account holds, at once.

        Raises:
            RefusedError: the money or the shares are missing.
        """
        needed = qty * OPTION_SIZE
        if contract.is_call:
            cost, available = needed * contract.strike, self._buying_power(book).marginable
            if cost > available:
                context = {"buying_power": encode_decimal(available), "cost_basis": encode_decimal(cost)}
                raise RefusedError(403, CODE_FUNDS, "insufficient buying power", context)
        elif needed > (free := self._free_shares(book, contract.underlying)):
            amounts = f"(required: {encode_decimal(needed)}, available: {encode_decimal(max(free, ZERO))})"
            raise RefusedError(403, CODE_FUNDS, f"insufficient underlying qty available for exercise {amounts}")
        self._deliver(book, contract, qty, now_ns, kind="OPEXC")

    def end(self, book: Book, contract: OptionContract, now_ns: int) -> None:
        """End the account's position in a contract whose last moment has come."""
        qty = book.account.qty(contract.symbol)
        stock = self._prices.get(contract.underlying)
        # Without a price of the stock the contract's own last one is all that is known.
        worth = contract.intrinsic(stock) if stock is not None else self._prices.get(contract.symbol, ZERO)
        if worth < _CENT:
            self._close(book, contract, now_ns, kind="OPEXP", worth=ZERO)
        elif stock is not None and (qty < 0 or self._is_able(book, contract, qty)):
            self._deliver(book, contract, qty, now_ns, kind="OPEXC" if qty > 0 else "OPASN")
        else:
            self._close(book, contract, now_ns, kind="OPCSH", worth=worth)

    def _is_able(self, book: Book, contract: OptionContract, qty: Decimal) -> bool:
        needed = qty * OPTION_SIZE
        if contract.is_call:
            return needed * contract.strike <= self._buying_power(book).marginable
        return needed <= self._free_shares(book, contract.underlying)

    def _deliver(self, book: Book, contract: OptionContract, qty: Decimal, now_ns: int, *, kind: str) -> None:
        """Change contracts, signed, into shares at the strike."""
        shares = EXACT.multiply(qty if contract.is_call else -qty, OPTION_SIZE)
        money = EXACT.multiply(-shares, contract.strike)
        account = book.account
        assert isinstance(account, AlpacaAccount)
        account.book(contract.symbol, -qty, ZERO, ZERO)
        account.book(contract.underlying, shares, contract.strike, money)
        self._tell(book, kind, now_ns, contract.symbol, -qty, ZERO, ZERO)
        self._tell(book, "OPTRD", now_ns, contract.underlying, shares, contract.strike, money)

    def _close(self, book: Book, contract: OptionContract, now_ns: int, *, kind: str, worth: Decimal) -> None:
        qty = book.account.qty(contract.symbol)
        money = EXACT.multiply(EXACT.multiply(qty, worth), OPTION_SIZE)
        book.account.book(contract.symbol, -qty, worth, money)
        self._tell(book, kind, now_ns, contract.symbol, -qty, worth, money)

    def _tell(
        self, book: Book, kind: str, now_ns: int, symbol: str, qty: Decimal, price: Decimal, money: Decimal
    ) -> None:
        number = self._counts[book.key_id] = self._counts.get(book.key_id, 0) + 1
        self._note(
            book.key_id,
            Settlement(kind=kind, number=number, time_ns=now_ns, symbol=symbol, qty=qty, price=price, net_amount=money),
        )
