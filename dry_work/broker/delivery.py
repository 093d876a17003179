"""From the broker to strategies: notifications in order, what only Backtrader's trades hear of, notes of the account.

Engine thread only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import backtrader as bt

from dry_work.broker.account_watch import STORE_MESSAGE, AccountNote
from dry_work.broker.positions import PositionBook


class Delivery:
    """What is ready to be told.

    Args:
        cerebro: returns the Cerebro, None without one.
    """

    def __init__(self, cerebro: Callable[[], Any]) -> None:
        self._cerebro = cerebro
        self._ready: deque[Any] = deque()  # notifications up to the last `next`
        self._held: deque[Any] = deque()  # notifications that wait for a bar of their data
        self._notes: list[AccountNote] = []
        self.listen: Callable[[str, object], None] | None = None  # hears what strategies are told of the account

    @property
    def strategies(self) -> list[Any]:
        """The strategies that run."""
        return list(getattr(self._cerebro(), "runningstrats", None) or ())

    def extend(self, notifications: Iterable[Any]) -> None:
        """Make notifications ready."""
        self._ready.extend(notifications)

    def next_notification(self) -> Any:
        """Return the next notification for Backtrader to tell, None after the last one.

        What was filled before its data has a bar waits for one, and what comes after it for the same data too:
        Backtrader's trades take their times from it.
        """
        if self._held:
            self._ready.extendleft(reversed(self._held))
            self._held.clear()
        waiting: set[int] = set()
        while self._ready:
            order = self._ready.popleft()
            if order.p.simulated:
                self._tell_trades(order)
            elif id(order.data) in waiting or (order.executed.size and not len(order.data)):
                waiting.add(id(order.data))
                self._held.append(order)
            else:
                return order
        return None

    def _tell_trades(self, order: Any) -> None:
        """Let Backtrader's trades take an execution of an order that is nobody's."""
        strategies = self.strategies
        if not strategies:
            return
        owner = strategies[0]
        before = len(owner._tradespending)
        owner._addnotification(order, quicknotify=False)
        if not self._cerebro().p.quicknotify:
            return  # it hears of them with its next bar
        for trade in owner._tradespending[before:]:
            owner.notify_trade(trade)
            for analyzer in (*owner.analyzers, *owner._slave_analyzers):
                analyzer._notify_trade(trade)

    # Notes

    def add_note(self, note: AccountNote) -> None:
        """Keep a note for strategies."""
        self._notes.append(note)

    def add_halt(self, symbol: str, kind: str, text: str) -> None:
        """Keep a note of a symbol that is halted, or is so no more."""
        self._notes.append(AccountNote(kind=kind, symbol=symbol, text=text))

    def tell_notes(self) -> None:
        """Tell strategies what was noted."""
        strategies = self.strategies
        if not strategies:
            return
        notes, self._notes = self._notes, []
        for note in notes:
            self.tell_store(STORE_MESSAGE, note)

    def tell_store(self, message: str, record: object) -> None:
        """Call `notify_store` of all strategies."""
        if self.listen is not None:
            self.listen(message, record)
        for strategy in self.strategies:
            strategy.notify_store(message, record)


def build_seeds(datas: Iterable[Any], book: PositionBook, commission_of: Callable[[Any], Any]) -> list[Any]:
    """Return orders that tell Backtrader's trades of the positions that are there, and that no strategy hears of."""
    seeds: list[Any] = []
    for data in {book.key_of(data): data for data in reversed(list(datas))}.values():
        position = book.position(book.key_of(data))
        size, price = position.size, position.price
        if not size:
            continue
        order_class = bt.BuyOrder if size > 0 else bt.SellOrder
        order = order_class(data=data, size=abs(size), price=price, exectype=bt.Order.Market, simulated=True)
        order.addcomminfo(commission_of(data))
        order.execute(0, size, price, 0, 0.0, 0.0, size, size * price, 0.0, 0.0, 0.0, size, price)
        order.completed()
        seeds.append(order)
    return seeds
