"""Buy a little below the market and sell a little above it, with limit orders, on every data it is given.

While nothing is held there is one buy order below the last close, otherwise one sell order above it for all that is
held. An order that was not filled within some bars of its symbol is stale: it is cancelled, and the next bar brings a
new one at a new price. Limit prices are rounded to cents (to a hundredth of a cent below one dollar), as exchanges
want them; stocks are bought in whole shares, crypto pairs (a name with a slash, such as BTC/USD) in fractions.

    cerebro.addstrategy(LimitBounce, distance=0.001, patience=5)
"""

from __future__ import annotations

import math
from typing import Any

import backtrader as bt


class LimitBounce(bt.Strategy):
    """Limit orders on both sides of the market.

    Params:
      - ``distance`` (default: ``0.001``) how far from the last close the limit is, as a part of the price
      - ``patience`` (default: ``5``) bars of its symbol after which an order is stale
      - ``cash_share`` (default: ``0.1``) part of the cash for one purchase
      - ``crypto_decimals`` (default: ``6``) decimals of a crypto quantity
    """

    params = (("distance", 0.001), ("patience", 5), ("cash_share", 0.1), ("crypto_decimals", 6))

    def __init__(self) -> None:
        self.seen = dict.fromkeys(self.datas, 0)  # length of each data when it was last looked at
        self.pending: dict[Any, Any] = {}  # the open order of each data
        self.placed: dict[Any, int] = {}  # length of the data when its open order was made

    def prenext(self) -> None:
        # Backtrader calls `next` when every data has a bar; a silent symbol shall not stop the others.
        self.next()

    def next(self) -> None:
        for data in self.datas:
            if len(data) == self.seen[data]:
                continue  # no new bar of this symbol: another one brought us here
            self.seen[data] = len(data)
            if data in self.pending:
                self.cancel_if_stale(data)
            else:
                self.place(data)

    def cancel_if_stale(self, data: Any) -> None:
        """Ask to cancel the order of `data` when its time is over; `notify_order` tells when it is gone."""
        age = len(data) - self.placed[data]
        if age >= self.p.patience and age % self.p.patience == 0:
            self.cancel(self.pending[data])

    def place(self, data: Any) -> None:
        """Put the next order of `data` into the market."""
        close = data.close[0]
        held = self.getposition(data).size
        if held > 0:
            limit = round_price(close * (1 + self.p.distance))
            order = self.sell(data=data, size=held, price=limit, exectype=bt.Order.Limit)
        else:
            limit = round_price(close * (1 - self.p.distance))
            size = self.affordable_size(data, limit) if limit > 0 else 0
            if size <= 0:
                return
            order = self.buy(data=data, size=size, price=limit, exectype=bt.Order.Limit)
        self.pending[data] = order
        self.placed[data] = len(data)

    def affordable_size(self, data: Any, price: float) -> float:
        """Return how much of `data` the share of the cash buys at `price`, rounded down."""
        # Of 100 shares for an option.
        cost_of_one = self.broker.getcommissioninfo(data).getoperationcost(1, price)
        size: float = self.p.cash_share * self.broker.getcash() / cost_of_one
        if "/" in data._name:
            step: int = 10**self.p.crypto_decimals
            return math.floor(size * step) / step
        return math.floor(size)

    def notify_order(self, order: Any) -> None:
        # Orders come as copies; `ref` tells which one it is.
        pending = self.pending.get(order.data)
        if pending is not None and pending.ref == order.ref and not order.alive():
            del self.pending[order.data]


def round_price(price: float) -> float:
    """Round to the steps in which prices are quoted: 0.01 from one dollar on, 0.0001 below."""
    return round(price, 2 if price >= 1 else 4)
