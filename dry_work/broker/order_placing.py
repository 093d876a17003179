"""Orders as Backtrader and strategies ask for them. Part of `paper`. Engine thread only, and nothing here waits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import backtrader as bt

from dry_work.broker.closing import PositionCloser
from dry_work.broker.desk import OrderDesk
from dry_work.broker.entry import OrderEntry
from dry_work.broker.market_time import MarketTime
from dry_work.broker.order_objects import build_order
from dry_work.broker.positions import PositionBook
from dry_work.broker.tickets import Ticket, number, position_key
from dry_work.clock import Clock
from dry_work.feeds.base import line_time_ns
from dry_work.orders.mapping import ChangeTerms


class OrderPlacing:
    """Placing, changing, canceling and finding orders of a broker."""

    _is_running: bool
    _clock: Clock
    _time: MarketTime
    _desk: OrderDesk
    _entry: OrderEntry
    _book: PositionBook
    _closer: PositionCloser
    _datas: Callable[[], list[Any]]
    _own: Callable[[Ticket], None]
    getcommissioninfo: Callable[[Any], Any]

    def buy(
        self,
        owner: Any,
        data: Any,
        size: float,
        price: float | None = None,
        plimit: float | None = None,
        exectype: int | None = None,
        valid: Any = None,
        tradeid: int = 0,
        oco: Any = None,
        trailamount: float | None = None,
        trailpercent: float | None = None,
        parent: Any = None,
        transmit: bool = True,
        histnotify: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Place a buy order; see `bt.Strategy.buy`. A refusal is in the order's status."""
        # fmt: off
        return self._place(
            bt.BuyOrder, valid, oco, kwargs, owner=owner, data=data, size=size, price=price, pricelimit=plimit,
            exectype=exectype, tradeid=tradeid, trailamount=trailamount, trailpercent=trailpercent, parent=parent,
            transmit=transmit, histnotify=histnotify,
        )
        # fmt: on

    def sell(
        self,
        owner: Any,
        data: Any,
        size: float,
        price: float | None = None,
        plimit: float | None = None,
        exectype: int | None = None,
        valid: Any = None,
        tradeid: int = 0,
        oco: Any = None,
        trailamount: float | None = None,
        trailpercent: float | None = None,
        parent: Any = None,
        transmit: bool = True,
        histnotify: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Place a sell order; see `bt.Strategy.sell`. A refusal is in the order's status."""
        # fmt: off
        return self._place(
            bt.SellOrder, valid, oco, kwargs, owner=owner, data=data, size=size, price=price, pricelimit=plimit,
            exectype=exectype, tradeid=tradeid, trailamount=trailamount, trailpercent=trailpercent, parent=parent,
            transmit=transmit, histnotify=histnotify,
        )
        # fmt: on

    def _place(self, order_class: Any, valid: Any, oco: Any, info: dict[str, Any], *, data: Any, **given: Any) -> Any:
        order, terms = build_order(order_class, self.getcommissioninfo(data), valid, info, data=data, **given)
        self._entry.place(
            order,
            terms,
            is_started=self._is_running,
            has_bar=len(data) > 0,
            at_ns=self._time.slice_end_ns or (line_time_ns(data.datetime[0]) if len(data) else self._clock.time_ns()),
            parent=given["parent"],
            transmit=given["transmit"],
            oco=oco,
        )
        return order

    def submit(self, order: Any) -> Any:
        """Return the order: `buy` and `sell` have submitted it."""
        return order

    def cancel(self, order: Any) -> bool:
        """Ask for an order's cancellation; False when there is nothing to cancel. The venue's word follows."""
        ticket = self._desk.find(order)
        if ticket is None or not ticket.phase.is_open or not ticket.is_sent:
            return False
        if ticket.cancel_asked or ticket.cancel_wanted:
            return False
        self._entry.ask_cancel(ticket)
        return True

    def cancel_all(self) -> int:
        """Ask for the cancellation of all open orders of this run; return how many that were."""
        return sum(self.cancel(ticket.order) for ticket in tuple(self._desk.open.values()))

    def replace(
        self,
        order: Any,
        *,
        size: float | None = None,
        price: float | None = None,
        plimit: float | None = None,
        trailamount: float | None = None,
        trailpercent: float | None = None,
    ) -> bool:
        """Ask for a change of an open order, which stays the same order of Backtrader's.

        The strategy is told in any case: of the order as it stands then, or with the reason in
        `order.info.replace_reason`. A change that cannot be asked for is answered at once with False, and the reason
        in the same place.

        Args:
            size: new size of the whole order; its sign says nothing.
            price: as in `buy` and `sell`: the limit of a Limit order, the trigger of a Stop or StopLimit order.
            plimit: limit of a StopLimit order.
            trailamount, trailpercent: of a StopTrail order, of the kind that it has.
        """
        wanted = ChangeTerms(
            size=size, price=price, limit_price=plimit, trail_amount=trailamount, trail_percent=trailpercent
        )
        return self._entry.replace(order, wanted)

    def close_position(self, data: Any) -> bool:
        """Close the position of the data's symbol at market; False when there is none.

        Open orders of the symbol are canceled first, since they hold its quantity; the closing order follows when the
        venue has told of their end. It belongs to the first strategy.
        """
        return self._closer.ask(data)

    def close_all(self) -> int:
        """Close the positions of all datas as `close_position` does; return how many that were."""
        datas = {self._book.key_of(data): data for data in reversed(self._datas())}
        return sum(self.close_position(data) for data in datas.values())

    def _close(self, data: Any, qty: Decimal) -> None:
        place = self.sell if qty > 0 else self.buy
        place(None, data, number(abs(qty)), exectype=bt.Order.Market)

    def _open_of(self, key: str) -> list[Ticket]:
        return [ticket for ticket in self._desk.open.values() if position_key(ticket.symbol) == key]

    def orderstatus(self, order: Any) -> int:
        """Return the status of an order, or of the order that a clone was made of."""
        ticket = self._desk.find(order)
        return int(ticket.order.status if ticket is not None else order.status)

    def get_orders_open(self, safe: bool = False) -> list[Any]:
        """Return the orders that can still be filled, with `safe` copies of them."""
        for ticket in self._desk.open.values():
            self._own(ticket)
        orders = [ticket.order for ticket in self._desk.open.values()]
        # `Order.clone` would take the executions away from the next notification.
        return [copy.copy(order) for order in orders] if safe else orders
