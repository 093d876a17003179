"""The account as Backtrader asks for it: from memory, without any request. Part of `paper`. Engine thread only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dry_work.broker.desk import OrderDesk
from dry_work.broker.flight import BooksView, HeldView, OpenView
from dry_work.broker.positions import PositionBook
from dry_work.broker.venue_link import VenueLink
from dry_work.market.symbols import contract_size


class AccountReading:
    """Cash, value and positions of a broker."""

    _book: PositionBook
    _desk: OrderDesk
    _link: VenueLink | None
    _datas: Callable[[], list[Any]]

    def getcash(self) -> float:
        """Return the cash of the account as of the last `next`."""
        return float(self._book.books.cash)

    get_cash = getcash

    def getvalue(self, datas: Iterable[Any] | None = None) -> float:
        """Return cash and positions at their last close; with `datas`, the value of their positions alone."""
        if datas is None:
            return self.getcash() + sum(self._value_of(symbol) for symbol in self._book.books.symbols)
        return sum((self._value_of(key) for key in {self._book.key_of(data): None for data in datas}), 0.0)

    get_value = getvalue

    def getposition(self, data: Any, clone: bool = True) -> Any:
        """Return the position of the data's symbol; without `clone` the object that moves with the fills."""
        position = self._book.position(self._book.key_of(data))
        return position.clone() if clone else position

    @property
    def positions(self) -> Mapping[Any, Any]:
        """Positions by data."""
        return {data: self._book.position(self._book.key_of(data)) for data in self._datas()}

    def position_of(self, symbol: str) -> float:
        """Return the signed quantity held of a symbol, in any spelling."""
        return float(self._book.held(symbol).qty)

    def view_books(self) -> BooksView:
        """Return the books as they are now."""
        books = self._book.books
        held = ((key, books.position(key)) for key in sorted(books.symbols))
        return BooksView(
            cash=books.cash,
            positions=tuple(HeldView(key, each.qty, each.price) for key, each in held if each.qty),
            open_orders=tuple(
                OpenView(name, ticket.phase.value, books.filled_qty(ticket.venue_name))
                for name, ticket in sorted(self._desk.open.items())
            ),
            orders=self._desk.retired.order_count,
        )

    def refresh_account(self) -> None:
        """Ask for a snapshot of the account, which a later `next` takes over. In lock-step there are none."""
        if self._link is not None:
            self._link.refresh_account()

    def _value_of(self, key: str) -> float:
        units = float(self._book.books.position(key).qty) * contract_size(key)
        return units * self._book.last_price(key, self._datas())
