"""Accounts of the simulated exchange: cash and positions in exact decimals, and what they may pay for. Pure.

`Account` keeps the books. `BacktraderAccount` adds the funds test of Backtrader's `BackBroker`, `AlpacaAccount`
adds Alpaca's buying power and fees. Quantities of positions are signed; changes of a position are signed too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import ROUND_DOWN, ROUND_UP, Context, Decimal, localcontext

import msgspec

from dry_work.market.symbols import is_crypto, is_option

ZERO = Decimal(0)

# Enough digits for a sum of quantities or of values from floats to be exact.
EXACT = Context(prec=80)
_AVERAGE = Context(prec=28)

CRYPTO_FEE_RATE = Decimal("0.0025")
CRYPTO_INCREMENT = Decimal("0.000000001")
STOCK_MARGIN_RATE = Decimal("0.5")
SHORT_RESERVE_FACTOR = Decimal("1.03")
MARGIN_MIN_EQUITY = Decimal(2000)
MARGIN_MULTIPLIER = 2
OPTION_SIZE = Decimal(100)  # shares of a contract
OPTION_LEVEL = 3  # that an account is approved for
_ONE = Decimal(1)
_SHORTEST_OPTION = 16  # characters of the shortest symbol of a contract; no stock or pair has as many


def is_contract(symbol: str) -> bool:
    """Tell whether a symbol is an option's; quick, as it is asked at every valuation."""
    return len(symbol) >= _SHORTEST_OPTION and is_option(symbol)


def contract_size(symbol: str) -> Decimal:
    """Return what the price of a unit is multiplied with: 100 for options."""
    return OPTION_SIZE if is_contract(symbol) else _ONE


def put_collateral(symbol: str, qty: Decimal) -> Decimal:
    """Return the cash that secures `qty` short puts, 0 for calls."""
    return Decimal(int(symbol[-8:])) / 1000 * OPTION_SIZE * qty if symbol[-9] == "P" else ZERO


def truncate_qty(qty: Decimal) -> Decimal:
    """Cut a quantity to the nine decimal places that a venue keeps; a shorter one stays as it is."""
    cut = qty.quantize(CRYPTO_INCREMENT, rounding=ROUND_DOWN, context=EXACT)
    return qty if cut == qty else cut


class AccountSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner of an account has set."""

    fractional_trading: bool = True
    max_margin_multiplier: int = MARGIN_MULTIPLIER  # 1, 2 or 4; more than 2 gives no more than 2 here
    no_shorting: bool = False
    suspend_trade: bool = False  # refuse every new order
    trade_confirm_email: str = "none"  # all or none; nothing is mailed here
    ptp_no_exception_entry: bool = False
    max_options_trading_level: int | None = None
    disable_overnight_trading: bool = False


class Position:
    """A position that changes with fills."""

    __slots__ = ("avg_entry_price", "qty")

    def __init__(self) -> None:
        self.qty = ZERO
        self.avg_entry_price = ZERO

    def split(self, change: Decimal) -> tuple[Decimal, Decimal]:
        """Return the parts of `change` that close and that open, both with its sign."""
        with localcontext(EXACT):
            if self.qty * change >= 0:
                return ZERO, change
            if abs(change) <= abs(self.qty):
                return change, ZERO
            return -self.qty, self.qty + change

    def apply(self, change: Decimal, price: Decimal) -> None:
        """Change the quantity at `price`; what closes leaves the average price alone, a flip begins a new one."""
        _, opened = self.split(change)
        before = self.qty
        with localcontext(EXACT):
            self.qty = before + change
            if not self.qty:
                self.avg_entry_price = ZERO
            elif opened == self.qty:
                self.avg_entry_price = price
            elif opened:
                cost = self.avg_entry_price * before + price * opened
                self.avg_entry_price = _AVERAGE.divide(cost, self.qty)


class Account:
    """Cash and positions of one API key."""

    def __init__(self, cash: Decimal) -> None:
        self.cash = cash
        self._positions: dict[str, Position] = {}

    def qty(self, symbol: str) -> Decimal:
        """Return the signed quantity held."""
        position = self._positions.get(symbol)
        return position.qty if position is not None else ZERO

    def positions(self) -> dict[str, Position]:
        """Return the positions that are not flat."""
        return {symbol: position for symbol, position in self._positions.items() if position.qty}

    def position(self, symbol: str) -> Position:
        """Return the position, made flat when there was none."""
        return self._positions.setdefault(symbol, Position())

    def equity(self, prices: Mapping[str, Decimal]) -> Decimal:
        """Return cash plus positions at `prices`; a position without a price counts at its average price."""
        with localcontext(EXACT):
            return self.cash + sum((self.market_value(symbol, prices) for symbol in self._positions), ZERO)

    def market_value(self, symbol: str, prices: Mapping[str, Decimal]) -> Decimal:
        """Return the signed value of the position at `prices`."""
        position = self._positions[symbol]
        with localcontext(EXACT):
            return position.qty * prices.get(symbol, position.avg_entry_price) * contract_size(symbol)

    def contracts(self) -> list[tuple[str, Decimal]]:
        """Return the options that are held, with their signed quantities."""
        return [(symbol, found.qty) for symbol, found in self._positions.items() if found.qty and is_contract(symbol)]

    def book(self, symbol: str, change: Decimal, price: Decimal, cash_change: Decimal) -> None:
        """Enter a fill: the position changes by `change` at `price`, the cash by `cash_change`."""
        self.position(symbol).apply(change, price)
        self.cash = EXACT.add(self.cash, cash_change)

    def charge(self, amount: Decimal) -> None:
        """Take a commission from the cash."""
        self.cash = EXACT.subtract(self.cash, amount)

    def restore(self, cash: Decimal, positions: Iterable[tuple[str, Decimal, Decimal]]) -> None:
        """Take over cash and positions (symbol, signed quantity, average price) in the place of what is there."""
        self.cash = cash
        self._positions = {}
        for symbol, qty, price in positions:
            held = self.position(symbol)
            held.qty, held.avg_entry_price = qty, price


class _FloatPosition:
    """A position in binary floats, changed by the operations of Backtrader's `Position.update` in their order."""

    __slots__ = ("price", "size")

    def __init__(self, size: float = 0.0, price: float = 0.0) -> None:
        self.size = size
        self.price = price

    def split(self, size: float) -> tuple[float, float]:
        """Return the parts of `size` that close and that open."""
        after = self.size + size
        if not after:
            return size, 0.0
        if self.size * size >= 0:
            return 0.0, size
        if self.size * after > 0:
            return size, 0.0
        return -self.size, after

    def update(self, size: float, price: float) -> None:
        """Change the position by `size` at `price`."""
        before = self.size
        self.size = before + size
        if not self.size:
            self.price = 0.0
        elif before * size > 0:
            self.price = (self.price * before + size * price) / self.size
        elif before * self.size <= 0:
            self.price = price


class FundsCheck:
    """Asks of order after order whether the cash is there, as `BackBroker.check_submitted` does.

    The orders are executed on a copy one after the other, whether the cash was there or not: an order that cannot be
    paid takes its price from those behind it.
    """

    def __init__(self, cash: float, positions: Mapping[str, _FloatPosition]) -> None:
        self._cash = cash
        self._positions = positions
        self._copies: dict[str, _FloatPosition] = {}

    def take(self, symbol: str, change: Decimal, check_price: Decimal) -> bool:
        """Execute an order of the signed quantity `change` on the copy; tell whether the cash was there."""
        size, price = float(change), float(check_price)
        held = self._positions.get(symbol, _FloatPosition())
        copy = self._copies.setdefault(symbol, _FloatPosition(held.size, held.price))
        closed, opened = copy.split(size)
        copy.update(size, price)
        units = float(contract_size(symbol))
        if closed:
            self._cash += -closed * price * units
        if opened:
            self._cash -= opened * price * units
        return self._cash >= 0.0


class BacktraderAccount(Account):
    """An account with the funds rules of `BackBroker` (no commission, no leverage, short sales add cash).

    BackBroker asks `cash < 0.0` in binary floats. An order for all the cash often costs the last float more or less,
    so the same question in decimals has another answer half of the time. Therefore a second book is kept in floats, by
    BackBroker's own operations in its own order, for that question alone. The books that are told stay exact.
    """

    def __init__(self, cash: Decimal) -> None:
        super().__init__(cash)
        self._float_cash = float(cash)
        self._float_positions: dict[str, _FloatPosition] = {}

    def charge(self, amount: Decimal) -> None:
        """Take a commission from the cash of both books."""
        super().charge(amount)
        self._float_cash -= float(amount)

    def restore(self, cash: Decimal, positions: Iterable[tuple[str, Decimal, Decimal]]) -> None:
        """Take over cash and positions into both books."""
        found = list(positions)
        super().restore(cash, found)
        self._float_cash = float(cash)
        self._float_positions = {symbol: _FloatPosition(float(qty), float(price)) for symbol, qty, price in found}

    def begin_check(self) -> FundsCheck:
        """Begin to check the funds of the orders that were made since the last slice."""
        return FundsCheck(self._float_cash, self._float_positions)

    def execute(self, symbol: str, change: Decimal, price: Decimal) -> tuple[Decimal, bool]:
        """Book what can be paid of `change` at `price`.

        What closes a position is always executed, even when it leaves the cash negative; what opens one only when the
        cash does not become negative.

        Returns: the signed quantity executed, and whether the opening part was refused.
        """
        closed, opened = self.position(symbol).split(change)
        refused = not self._execute_float(symbol, float(change), float(price)) and bool(opened)
        executed = closed if refused else change
        if executed:
            value = EXACT.multiply(EXACT.multiply(executed, price), contract_size(symbol))
            self.book(symbol, executed, price, value.copy_negate())
        return executed, refused

    def _execute_float(self, symbol: str, size: float, price: float) -> bool:
        """Book in floats what can be paid; tell whether all of it could."""
        position = self._float_positions.setdefault(symbol, _FloatPosition())
        closed, opened = position.split(size)
        cash, units = self._float_cash, float(contract_size(symbol))
        if closed:
            # the value at the entry price plus the profit: not the same float as size times price
            cash += -closed * position.price * units + -closed * (price - position.price) * units
            self._float_cash = cash
        is_paid = True
        if opened:
            cash -= opened * price * units
            if cash < 0.0:
                is_paid, opened = False, 0.0
            else:
                self._float_cash = cash
        if closed + opened:
            position.update(closed + opened, price)
        return is_paid


class Reservation(msgspec.Struct, frozen=True):
    """What an open order keeps from being spent: its value in money, and whether that is cash, as of what it buys."""

    symbol: str
    value: Decimal
    buys: bool


class BuyingPower(msgspec.Struct, frozen=True, kw_only=True):
    """What an Alpaca account may spend."""

    equity: Decimal
    multiplier: int
    marginable: Decimal  # on stocks
    non_marginable: Decimal  # on crypto and options


class AlpacaAccount(Account):
    """An account with Alpaca's buying power and crypto fees.

    From 2,000 dollars of equity on it is a margin account: stocks need half of their value, crypto and options all of
    it, and buying power is twice the free equity. Below that it is a cash account that may not sell short.
    """

    def buying_power(
        self,
        prices: Mapping[str, Decimal],
        reservations: Iterable[Reservation],
        *,
        max_multiplier: int = MARGIN_MULTIPLIER,
    ) -> BuyingPower:
        """Return what may be spent when `reservations` are held back."""
        with localcontext(EXACT):
            equity = self.equity(prices)
            multiplier = min(MARGIN_MULTIPLIER, max_multiplier) if equity >= MARGIN_MIN_EQUITY else 1
            needed = ZERO
            cash = self.cash
            for symbol, position in self._positions.items():
                value = self.market_value(symbol, prices)
                if value < 0 and is_contract(symbol):  # a call is covered by shares, a put by cash
                    collateral = put_collateral(symbol, -position.qty)
                    needed += max(collateral + value, ZERO)
                    cash -= collateral
                else:
                    needed += abs(value) * _margin_rate(symbol, multiplier)
            for reservation in reservations:
                needed += reservation.value * _margin_rate(reservation.symbol, multiplier)
                if reservation.buys:
                    cash -= reservation.value
            free = max(equity - needed, ZERO)
            non_marginable = max(min(cash, free), ZERO)
            return BuyingPower(
                equity=equity, multiplier=multiplier, marginable=multiplier * free, non_marginable=non_marginable
            )

    def execute(self, symbol: str, change: Decimal, price: Decimal) -> None:
        """Book a fill. The fee for crypto is taken from what is received: coins on a buy, money on a sell."""
        self.book(symbol, *settle_fill(symbol, change, price))

    def take_back(self, symbol: str, change: Decimal, price: Decimal, rest: Iterable[tuple[Decimal, Decimal]]) -> None:
        """Take a fill back; `rest` are the fills of the symbol that stay, in their order: change and price."""
        _, _, money = settle_fill(symbol, change, price)
        self.cash = EXACT.subtract(self.cash, money)
        position = self._positions[symbol] = Position()
        for other_change, other_price in rest:
            net, _, _ = settle_fill(symbol, other_change, other_price)
            position.apply(net, other_price)


def settle_fill(symbol: str, change: Decimal, price: Decimal) -> tuple[Decimal, Decimal, Decimal]:
    """Return what a fill at Alpaca changes: the position, at which price, and the cash."""
    coins, money = fill_fee(symbol, change, price)
    with localcontext(EXACT):
        return change - coins, price, -change * price * contract_size(symbol) - money


def fill_fee(symbol: str, change: Decimal, price: Decimal) -> tuple[Decimal, Decimal]:
    """Return the fee of a fill at Alpaca, in coins and in money: only crypto pays, and in what is received."""
    with localcontext(EXACT):
        if not is_crypto(symbol):
            return ZERO, ZERO
        if change > 0:
            return (change * CRYPTO_FEE_RATE).quantize(CRYPTO_INCREMENT, rounding=ROUND_UP), ZERO
        return ZERO, -change * price * CRYPTO_FEE_RATE


def _margin_rate(symbol: str, multiplier: int) -> Decimal:
    return _ONE if multiplier == 1 or is_crypto(symbol) or is_contract(symbol) else STOCK_MARGIN_RATE
