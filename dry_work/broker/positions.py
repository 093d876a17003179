"""Positions by symbol as Backtrader sees them, on top of the books. Engine thread only."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import backtrader as bt
from msgspec.structs import replace

from dry_work.broker.account import AccountState
from dry_work.broker.settled import SettledOrders
from dry_work.broker.tickets import number, symbol_of, utc_datetime
from dry_work.market.symbols import contract_size
from dry_work.orders.books import ZERO, Books, Fill, HeldPosition, PositionChange, position_key, undo
from dry_work.orders.model import Side


class PositionBook:
    """Books whose symbols are known in any spelling, with one `bt.Position` for each that moves with the fills."""

    def __init__(self) -> None:
        self.books = Books(archive=SettledOrders())
        self._positions: dict[str, Any] = {}
        self._keys: dict[int, tuple[Any, str]] = {}  # by identity; holding the data keeps that one its own
        self._bought: dict[str, Decimal] = {}  # of which the venue may have taken fees
        self._prices: dict[str, float] = {}  # of the last fill or the entry, until there is a bar

    def key_of(self, data: Any) -> str:
        """Return the key of the data's symbol, in `books` and here."""
        found = self._keys.get(id(data))
        if found is None:
            found = self._keys[id(data)] = (data, position_key(symbol_of(data)))
        return found[1]

    def position(self, key: str) -> Any:
        """Return the position of a key, always the same object."""
        found = self._positions.get(key)
        if found is None:
            found = self._positions[key] = bt.Position()
        return found

    def held(self, symbol: str) -> HeldPosition:
        """Return what is held of a symbol, in any spelling."""
        return self.books.position(position_key(symbol))

    def last_price(self, key: str, datas: Iterable[Any]) -> float:
        """Return the newest close of the symbol's datas, the finest of equals, else the price of the last fill."""
        newest: float | None = None
        price = self._prices.get(key, 0.0)
        for data in datas:
            if self.key_of(data) == key and len(data) and (newest is None or data.datetime[0] > newest):
                newest = data.datetime[0]
                price = data.close[0]
        return float(price)

    def take_snapshot(self, state: AccountState) -> None:
        """Take over the venue's word on cash and positions."""
        self._bought.clear()
        positions = [replace(held, symbol=position_key(held.symbol)) for held in state.positions]
        for held in positions:
            self._prices.setdefault(held.symbol, float(held.avg_entry_price))
        for key in {held.symbol for held in positions} | self.books.reset(state.account.cash, positions):
            self._show(key)

    def bought(self, symbol: str) -> Decimal:
        """Return how much of a symbol was bought since the last snapshot."""
        return self._bought.get(position_key(symbol), ZERO)

    def rewind(self, fill: Fill, *, price: Decimal = ZERO) -> None:
        """Take a fill out of what a snapshot holds, since it is about to be applied.

        Args:
            price: at which the position was held before, if the fill closed it as a whole.
        """
        key = position_key(fill.symbol)
        after = self.books.position(key)
        before = undo(after, fill.change, fill.price)
        if not after.qty and price:
            before = HeldPosition(before.qty, price)
        self.books.set_position(key, before)
        self.books.cash += fill.change * fill.price * contract_size(key)
        self._show(key)

    def apply(self, fill: Fill) -> PositionChange | None:
        """Apply a fill, None when it was applied before."""
        key = position_key(fill.symbol)
        change = self.books.apply(replace(fill, symbol=key))
        if change is None:
            return None
        self._prices[key] = float(fill.price)
        if fill.side is Side.BUY:
            self._bought[key] = self._bought.get(key, ZERO) + fill.qty
        position = self._show(key)
        position.upopened, position.upclosed = number(change.opened), number(change.closed)
        position.price_orig = float(change.price_before)
        position.datetime = utc_datetime(fill.ts_event_ns)
        return replace(change, fill=fill)

    def apply_again(self, fill: Fill) -> bool:
        """Tell whether a fill was applied before, and count it if so."""
        fill = replace(fill, symbol=position_key(fill.symbol))
        return self.books.is_applied(fill) and self.books.apply(fill) is None

    def adopt_qty(self, symbol: str, qty: Decimal) -> bool:
        """Take over the venue's word on one position; tell whether it changed anything."""
        key = position_key(symbol)
        if not self.books.adopt_qty(key, qty):
            return False
        self._show(key)
        return True

    def _show(self, key: str) -> Any:
        held = self.books.position(key)
        position = self.position(key)
        position.size, position.price = number(held.qty), float(held.price)
        return position
