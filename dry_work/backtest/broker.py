"""The broker of a backtest: BackBroker with one guard."""

from __future__ import annotations

from typing import Any

import backtrader as bt


class BacktestBroker(bt.brokers.BackBroker):
    """BackBroker that does not match a limit or stop order against a bar that ended before the order was made.

    Stock does that when another symbol ticks: the order's own symbol shows its last bar until the next one comes, and
    the order is tried on it again. Orders at market wait for a new bar in stock too, so for them nothing changes.

    Params:
        guard: False gives BackBroker as it is.
    """

    params = (("guard", True),)

    def submit(self, order: Any, check: bool = True) -> Any:
        """Take an order and note the time at which its strategy made it."""
        order.made_at = order.owner.lines.datetime[0]
        return super().submit(order, check)

    def _try_exec(self, order: Any) -> None:
        if self.p.guard and order.exectype != bt.Order.Market and order.data.datetime[0] <= order.made_at:
            return
        super()._try_exec(order)
