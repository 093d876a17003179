"""Hold the symbols with the best mood, read from the extra line `sentiment_score` of the datas.

The scores of each symbol are smoothed. A symbol whose smoothed score is high is bought at market, the best one first
and only so many at a time; it is sold when its score has gone. A bar without a score (NaN) leaves the mood as it was,
and a data that never carries the line is left alone. The line may be declared, as in

    class ScoredData(bt.feeds.PandasData):
        lines = ("sentiment_score",)
        params = (("sentiment_score", -1),)

or appear on a live feed with the first bar that carries it.

    cerebro.addstrategy(SentimentTilt, buy_above=0.3, sell_below=0.0)
"""

from __future__ import annotations

import math
from typing import Any

import backtrader as bt


class SentimentTilt(bt.Strategy):
    """Long the symbols with the best smoothed score.

    Params:
      - ``field`` (default: ``sentiment_score``) the line with scores between -1 and 1
      - ``smoothing`` (default: ``0.2``) weight of the newest score, above 0 and up to 1
      - ``buy_above`` (default: ``0.3``) smoothed score from which a symbol is bought
      - ``sell_below`` (default: ``0.0``) smoothed score below which it is sold
      - ``most_positions`` (default: ``3``) symbols held at the same time
      - ``cash_share`` (default: ``0.2``) part of the cash for one purchase
      - ``crypto_decimals`` (default: ``6``) decimals of a crypto quantity
    """

    params = (
        ("field", "sentiment_score"),
        ("smoothing", 0.2),
        ("buy_above", 0.3),
        ("sell_below", 0.0),
        ("most_positions", 3),
        ("cash_share", 0.2),
        ("crypto_decimals", 6),
    )

    def __init__(self) -> None:
        self.seen = dict.fromkeys(self.datas, 0)  # length of each data when it was last looked at
        self.mood: dict[Any, float] = {}  # smoothed score of each data that has had one
        self.pending: dict[Any, Any] = {}  # the open order of each data

    def prenext(self) -> None:
        # Backtrader calls `next` when every data has a bar; a silent symbol shall not stop the others.
        self.next()

    def next(self) -> None:
        fresh = [data for data in self.datas if len(data) != self.seen[data]]
        for data in fresh:
            self.seen[data] = len(data)
            self.update_mood(data)
        scored = [data for data in fresh if data in self.mood and data not in self.pending]
        for data in scored:
            held = self.getposition(data).size
            if held > 0 and self.mood[data] < self.p.sell_below:
                self.pending[data] = self.sell(data=data, size=held)
        # Sorting keeps the order of the datas where moods are equal, so that every run is the same.
        for data in sorted(scored, key=lambda data: -self.mood[data]):
            if self.mood[data] < self.p.buy_above or self.positions_taken() >= self.p.most_positions:
                break
            if data not in self.pending and not self.getposition(data).size:
                size = self.affordable_size(data)
                if size > 0:
                    self.pending[data] = self.buy(data=data, size=size)

    def update_mood(self, data: Any) -> None:
        """Mix the score of the newest bar, if it has one, into the mood of `data`."""
        line = getattr(data.lines, self.p.field, None)
        if line is None:
            return
        score = line[0]
        if math.isnan(score):
            return
        before = self.mood.get(data, 0.0)
        self.mood[data] = before + self.p.smoothing * (score - before)

    def positions_taken(self) -> int:
        """Count the symbols that are held or about to be."""
        # Backtrader's broker values every data it was asked about, which a data without a bar cannot bear.
        seen = [data for data in self.datas if len(data)]
        return sum(1 for data in seen if data in self.pending or self.getposition(data).size)

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
