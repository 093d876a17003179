"""The orders and fills of a backtest, in the form in which a live run lists them."""

from __future__ import annotations

from typing import Any

import backtrader as bt

from dry_work.feeds.base import line_time_ns
from dry_work.orders.client_ids import build_client_order_id
from dry_work.orders.lifecycle import Phase, status_word
from dry_work.orders.mapping import order_type_word
from dry_work.wire.pubsub import encode_time

Record = dict[str, Any]

_PHASES = {
    bt.Order.Created: Phase.SUBMITTED,
    bt.Order.Submitted: Phase.SUBMITTED,
    bt.Order.Accepted: Phase.ACCEPTED,
    bt.Order.Partial: Phase.PARTIAL,
    bt.Order.Completed: Phase.COMPLETED,
    bt.Order.Canceled: Phase.CANCELED,
    bt.Order.Expired: Phase.EXPIRED,
    bt.Order.Margin: Phase.MARGIN,
    bt.Order.Rejected: Phase.REJECTED,
}
_LIMITS = (bt.Order.Limit,)
_STOPS = (bt.Order.Stop, bt.Order.StopLimit)


class OrderLog(bt.Analyzer):
    """Writes down every order that its strategy is told of.

    Params:
        session: part of the client order ids, which are those of a local run on the same data.
    """

    params = (("session", "backtest"),)

    def __init__(self) -> None:
        super().__init__()
        self._orders: dict[int, Any] = {}  # the newest copy of each, by ref
        self._fills: list[tuple[Any, int, Any]] = []  # execution bit, ref of its order, data

    def notify_order(self, order: Any) -> None:
        """Take note of an order and of what was executed since it was last told of."""
        self._orders[order.ref] = order
        if order.status in (bt.Order.Partial, bt.Order.Completed):
            self._fills.extend((bit, order.ref, order.data) for bit in order.executed.iterpending())

    def stop(self) -> None:
        """Take note of the orders of the last turn, of which nobody is told any more."""
        for order in self.strategy.broker.notifs:
            if order is not None and order.owner is self.strategy:
                self._orders.setdefault(order.ref, order)

    def records(self) -> tuple[list[Record], list[Record]]:
        """Return the orders, in order of their making, and the fills, in order of execution."""
        ids = {
            ref: build_client_order_id("local", self.p.session, number)
            for number, ref in enumerate(sorted(self._orders), 1)
        }
        orders = [self._describe(self._orders[ref], ids[ref]) for ref in sorted(self._orders)]
        fills = [
            {
                "time": encode_time(line_time_ns(bit.dt)),
                "symbol": symbol_of(data),
                "side": "buy" if bit.size > 0 else "sell",
                "qty": abs(float(bit.size)),
                "price": float(bit.price),
                "commission": float(bit.comm),
                "client_order_id": ids[ref],
            }
            for bit, ref, data in self._fills
        ]
        return orders, fills

    @staticmethod
    def _describe(order: Any, client_order_id: str) -> Record:
        created = order.created
        is_limit, is_stop = order.exectype in _LIMITS, order.exectype in _STOPS
        limit = created.price if is_limit else created.pricelimit if order.exectype == bt.Order.StopLimit else None
        return {
            "client_order_id": client_order_id,
            "symbol": symbol_of(order.data),
            "side": "buy" if order.isbuy() else "sell",
            "type": order_type_word(order.ExecTypes[order.exectype]),
            "qty": abs(float(created.size)),
            "limit_price": None if limit is None else float(limit),
            "stop_price": float(created.price) if is_stop else None,
            "status": status_word(_PHASES[order.status]).value,
            "submitted_at": encode_time(line_time_ns(getattr(order, "placed_at", created.dt))),
        }


def symbol_of(data: Any) -> str:
    """Return the symbol of a feed or of a resampled form of one."""
    return str(data._name).partition("@")[0]
