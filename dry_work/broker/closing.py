"""Closing positions at market, behind the open orders that hold their quantity. Engine thread only."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from dry_work.broker.positions import PositionBook
from dry_work.broker.tickets import Ticket


class PositionCloser:
    """Positions that are to be closed when nothing of their symbols is open.

    Args:
        book: says what is held.
        open_of: returns the open orders of a symbol, by its key.
        cancel: asks for the cancellation of an order.
        close: places an order that closes a signed quantity of a data.
    """

    def __init__(
        self,
        *,
        book: PositionBook,
        open_of: Callable[[str], list[Ticket]],
        cancel: Callable[[Any], bool],
        close: Callable[[Any, Decimal], object],
    ) -> None:
        self._book = book
        self._open_of = open_of
        self._cancel = cancel
        self._close = close
        self._waiting: list[Any] = []  # datas

    def ask(self, data: Any) -> bool:
        """Close the position of a data's symbol; False when there is none."""
        key = self._book.key_of(data)
        if not self._book.books.position(key).qty:
            return False
        for ticket in self._open_of(key):
            self._cancel(ticket.order)
        if all(self._book.key_of(other) != key for other in self._waiting):
            self._waiting.append(data)
        self.work()
        return True

    def work(self) -> None:
        """Close what waits no more."""
        for data in tuple(self._waiting):
            key = self._book.key_of(data)
            if self._open_of(key):
                continue
            self._waiting.remove(data)
            qty = self._book.books.position(key).qty
            if qty:
                self._close(data, qty)
