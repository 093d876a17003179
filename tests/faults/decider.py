"""What is killed with a slice open: strategies that trade in each, so that one decided twice or not at all shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import backtrader as bt

END = "end.json"


class Decider(bt.Strategy):
    """Decides by bars, positions and open orders alone, and keeps nothing itself."""

    def prenext(self) -> None:
        self.next()

    def next(self) -> None:
        limits = [order for order in self.broker.get_orders_open() if order.exectype == bt.Order.Limit]
        resting = {order.data._name: order for order in limits}
        for rank, data in enumerate(self.datas):
            at, name = len(data), data._name
            if not at:
                continue
            rising = at > 1 and data.close[0] > data.close[-1]
            if at % 3 == rank:
                self.buy(data=data, size=2) if rising else self.sell(data=data, size=1)
            if name not in resting:
                self.buy(data=data, size=3, exectype=bt.Order.Limit, price=round(data.close[0] * 0.999, 2))
            elif at % 4 == rank:
                self.cancel(resting[name])

    def stop(self) -> None:
        books = {
            "cash": self.broker.getcash(),
            "value": self.broker.getvalue(),
            "positions": {data._name: self.broker.getposition(data).size for data in self.datas},
            "lengths": [len(data) for data in self.datas],
            **self.diary(),
        }
        Path(END).write_text(json.dumps(books))

    def diary(self) -> dict[str, Any]:
        return {}


class Diarist(Decider):
    """Keeps every slice that it was called with, and all that it was told."""

    def __init__(self) -> None:
        self.slices: list[list[Any]] = []
        self.told: dict[str, list[Any]] = {}  # by the number of the order

    def save_state(self) -> dict[str, Any]:
        return self.diary()

    def load_state(self, state: dict[str, Any]) -> None:
        self.slices, self.told = state["slices"], state["told"]

    def diary(self) -> dict[str, Any]:
        return {"slices": self.slices, "told": self.told}

    def notify_order(self, order: Any) -> None:
        name = order.info.get("client_order_id")
        if name:  # a position from before is told by an order that has none
            price = order.executed.price if order.executed.size else 0.0
            row = [order.data._name, order.getstatusname(), order.created.size, order.executed.size, price]
            self.told.setdefault(name.rpartition("-")[2], []).append(row)

    def next(self) -> None:
        bars = [[len(data), data.close[0] if len(data) else None] for data in self.datas]
        self.slices.append([str(self.datetime.datetime()), *bars])
        super().next()
