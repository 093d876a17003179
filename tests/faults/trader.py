"""The program that the kill matrix kills: one script of trades, written as a user would write a strategy.

It buys in parts, cancels, replaces, sends a bracket and a pair of exits, and ends with a sale. What it was told is its
state. A step begins when all orders of the step before have ended; everything it needs to know after a restart it has
from what it was told and from the broker's open orders.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import backtrader as bt

END = "end.json"


class Trader(bt.Strategy):
    """Trades its script once, then ends the run and leaves its books in `end.json`."""

    def __init__(self) -> None:
        self.told: list[list[Any]] = []  # order, status, executed size, price
        self.asked: list[str] = []  # orders given
        self.lost: list[str] = []  # orders that were given before a restart, and that nobody has heard of since
        self.canceled: set[str] = set()  # that this process has asked to cancel
        self.is_fresh = False  # nothing happened yet since a restart
        self.script: list[tuple[tuple[str, ...], Callable[[], Any]]] = [
            (("buy 25 Market",), lambda: self.buy(size=25)),
            (("buy 4 Limit",), lambda: self.buy(size=4, exectype=bt.Order.Limit, price=95.0)),
            (("buy 6 Limit",), lambda: self.buy(size=6, exectype=bt.Order.Limit, price=94.0)),
            (("buy 15 Market", "sell 15 Stop", "sell 15 Limit"), self.open_bracket),
            (("sell 12 Limit", "sell 12 Stop"), self.leave_by_pair),
            (("sell 8 Market",), lambda: self.sell(size=8)),
        ]

    def open_bracket(self) -> None:
        self.buy_bracket(size=15, exectype=bt.Order.Market, limitprice=100.5, stopprice=90.0)

    def leave_by_pair(self) -> None:
        first = self.sell(size=12, exectype=bt.Order.Limit, price=100.4)
        self.sell(size=12, exectype=bt.Order.Stop, price=91.0, oco=first)

    def save_state(self) -> dict[str, Any]:
        return {"told": self.told, "asked": self.asked, "lost": self.lost}

    def load_state(self, state: dict[str, Any]) -> None:
        self.told, self.asked, self.lost = state["told"], state["asked"], state["lost"]
        self.is_fresh = True

    def notify_order(self, order: Any) -> None:
        # A position that was there before is told of as an order that is no order of ours.
        if name_order(order) in self.names():
            price = round(order.created.price or 0.0, 2) if order.exectype != bt.Order.Market else 0.0
            self.told.append([name_order(order), order.getstatusname(), round(order.executed.size, 6), price])

    def names(self) -> set[str]:
        return {name for names, _ in self.script for name in names}

    def has_ended(self, name: str) -> bool:
        return any(
            row[0] == name and row[1] in ("Completed", "Canceled", "Rejected", "Margin", "Expired") for row in self.told
        )

    def next(self) -> None:
        opened = {name_order(order): order for order in self.broker.get_orders_open()}
        heard = {row[0] for row in self.told} | set(opened)
        if self.is_fresh:
            self.is_fresh = False
            forgotten = [name for name in self.asked if name not in heard]
            self.lost += forgotten
            self.asked = [name for name in self.asked if name not in forgotten]
        for names, place in self.script:
            if not any(name in heard or name in self.asked for name in names):
                self.asked += names
                place()
                return
            if not all(self.has_ended(name) for name in names):
                for name in names:
                    if name in opened:
                        self.change(name, opened[name])
                return
        self.env.runstop()

    def change(self, name: str, order: Any) -> None:
        """Cancel one order and replace another, once they are accepted."""
        if order.status != bt.Order.Accepted:
            return
        if name == "buy 4 Limit" and name not in self.canceled:
            self.canceled.add(name)
            self.cancel(order)
        elif name == "buy 6 Limit" and order.created.price < 99:
            self.broker.replace(order, price=99.5)

    def stop(self) -> None:
        books = {
            "cash": self.broker.getcash(),
            "position": self.broker.getposition(self.data).size,
            "told": self.told,
            "lost": self.lost,
        }
        Path(END).write_text(json.dumps(books))


def name_order(order: Any) -> str:
    """Return what tells an order of the script from all others."""
    side = "buy" if order.isbuy() else "sell"
    return f"{side} {abs(order.created.size):g} {bt.Order.ExecTypes[order.exectype]}"
