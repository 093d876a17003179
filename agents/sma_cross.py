"""Trade the crossing of two simple moving averages, on every data it is given.

Buys at market for a share of the cash when the fast average crosses above the slow one and nothing is held, and closes
the position when it crosses below. Stocks are bought in whole shares, crypto pairs (a name with a slash, such as
BTC/USD) in fractions.

    cerebro.addstrategy(SmaCross, fast_period=10, slow_period=30)
"""

from __future__ import annotations

import math
from typing import Any

import backtrader as bt


class SmaCross(bt.Strategy):
    """Moving average crossover with orders at market.

    Params:
      - ``fast_period`` (default: ``10``) bars of the fast average
      - ``slow_period`` (default: ``30``) bars of the slow average
      - ``cash_share`` (default: ``0.15``) part of the cash for one purchase
      - ``crypto_decimals`` (default: ``6``) decimals of a crypto quantity
    """

    params = (("fast_period", 10), ("slow_period", 30), ("cash_share", 0.15), ("crypto_decimals", 6))

    def __init__(self) -> None:
        # A crossing needs both averages at this bar and at the one before.
        self.bars_needed = max(self.p.fast_period, self.p.slow_period) + 1
        self.crossing: dict[Any, Any] = {}
        self.seen = dict.fromkeys(self.datas, 0)  # length of each data when it was last looked at
        self.pending: dict[Any, Any] = {}  # the open order of each data
        for data in self.datas:
            if 0 < data.buflen() < self.bars_needed:
                continue  # a whole recording that is too short to cross: Backtrader's fast mode would fail on it
            fast = bt.indicators.SimpleMovingAverage(data.close, period=self.p.fast_period)
            slow = bt.indicators.SimpleMovingAverage(data.close, period=self.p.slow_period)
            self.crossing[data] = bt.indicators.CrossOver(fast, slow)

    def prenext(self) -> None:
        # Backtrader calls `next` when every data has enough bars; a silent symbol shall not stop the others.
        self.next()

    def next(self) -> None:
        for data in self.datas:
            if len(data) == self.seen[data]:
                continue  # no new bar of this symbol: another one brought us here
            self.seen[data] = len(data)
            if len(data) < self.bars_needed or data in self.pending:
                continue
            position = self.getposition(data).size
            crossing = self.crossing[data][0]
            if crossing > 0 and not position:
                size = self.affordable_size(data)
                if size > 0:
                    self.pending[data] = self.buy(data=data, size=size)
            elif crossing < 0 and position > 0:
                self.pending[data] = self.sell(data=data, size=position)

    def affordable_size(self, data: Any) -> float:
        """Return how much of `data` the share of the cash buys at its last price, rounded down."""
        # Of 100 shares for an option.
        cost_of_one = self.broker.getcommissioninfo(data).getoperationcost(1, data.close[0])
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
