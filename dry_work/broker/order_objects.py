"""Backtrader's order objects: what is kept of them, and how they are made again after a restart. Engine thread only."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
from collections import deque
from collections.abc import Iterator
from typing import Any

import backtrader as bt

from dry_work.broker.placed import PlacedOrder
from dry_work.broker.tickets import execute_order, number, symbol_of
from dry_work.feeds.base import line_time
from dry_work.orders.books import Fill, PositionChange
from dry_work.orders.mapping import OrderTerms
from dry_work.orders.model import Side

ID_FACT = "client_order_id"  # in `order.info`: stays the same over restarts


def build_order(
    order_class: Any, comminfo: Any, valid: Any, info: dict[str, Any], *, data: Any, **given: Any
) -> tuple[Any, OrderTerms]:
    """Return Backtrader's order and what it says.

    Args:
        order_class: of Backtrader.
        valid: as it was given.
        info: further keywords of `buy` or `sell`.
        given: the other arguments of the order.
    """
    day = _is_day(valid)
    has_bar = len(data) > 0
    # Without a bar Backtrader can build no order but a simulated one.
    valid = None if not has_bar else bt.Order.DAY if day else valid
    order = order_class(data=data, valid=valid, simulated=not has_bar, **given)
    order.addinfo(**info)
    order.addcomminfo(comminfo)
    kinds = bt.Order.ExecTypes
    is_trail = order.exectype == bt.Order.StopTrail
    terms = OrderTerms(
        kind=kinds[order.exectype] if order.exectype in range(len(kinds)) else str(order.exectype),
        symbol=symbol_of(data),
        side=Side.BUY if order.isbuy() else Side.SELL,
        size=given["size"],
        price=order.created.price,
        limit_price=order.created.pricelimit,
        day=day,
        until=None if day or order.valid is None else float(order.valid),
        trail_amount=given["trailamount"],
        trail_percent=given["trailpercent"],
        trail_start=given["price"] if is_trail else None,
        options=info,
    )
    return order, terms


def _is_day(valid: Any) -> bool:
    """Tell whether `valid` means DAY: Backtrader's constant, or 0, which Backtrader documents and does not honour."""
    if isinstance(valid, dt.timedelta):
        return bool(valid == bt.Order.DAY)
    return isinstance(valid, int | float) and valid == 0


def describe_placed(
    order: Any, terms: OrderTerms, *, placed_ns: int, parent: str = "", oco: str = "", transmit: bool = True
) -> PlacedOrder:
    """Return what has to be kept of an order of Backtrader's.

    Args:
        parent, oco: client order ids of the orders that it names.
    """
    given = order.p
    return PlacedOrder(
        kind=terms.kind,
        symbol=terms.symbol,
        side=terms.side,
        size=_finite(terms.size) or 0.0,
        data=order.data._name or "",
        price=_finite(given.price),
        limit_price=_finite(given.pricelimit),
        trail_amount=_finite(terms.trail_amount),
        trail_percent=_finite(terms.trail_percent),
        created_price=_finite(order.created.price),
        created_limit=_finite(order.created.pricelimit),
        day=terms.day,
        until=_finite(terms.until),
        tradeid=given.tradeid if isinstance(given.tradeid, int) else 0,
        parent=parent,
        oco=oco,
        transmit=bool(transmit),
        placed_ns=placed_ns,
        info={str(name): value for name, value in order.info.items() if _is_plain(value)},
    )


def build_past_order(
    placed: PlacedOrder, data: Any, *, name: str, owner: Any, parent: Any, oco: Any, comminfo: Any
) -> Any:
    """Return Backtrader's order again, as it was when it was placed.

    Args:
        name: its client order id.
        parent, oco: Backtrader's orders that it names, None where they are no more.
    """
    order_class = bt.BuyOrder if placed.side is Side.BUY else bt.SellOrder
    trails = placed.kind == "StopTrail"
    # Simulated: no other order can be built before its data has a bar.
    order = order_class(
        owner=owner, data=data, size=number_of(placed.size), price=placed.price if not trails else placed.price or 0.0,
        pricelimit=placed.limit_price, exectype=bt.Order.ExecTypes.index(placed.kind), valid=None,
        tradeid=placed.tradeid, oco=oco, trailamount=placed.trail_amount, trailpercent=placed.trail_percent,
        parent=parent, transmit=placed.transmit, simulated=True,
    )  # fmt: skip
    order.p.simulated = False
    order.valid = placed.until
    created = order.created
    created.dt = line_time(placed.placed_ns)
    if placed.created_price is not None:
        created.price = placed.created_price
    if placed.created_limit is not None:
        created.pricelimit = placed.created_limit
    order.addinfo(**{**placed.info, ID_FACT: name})
    order.addcomminfo(comminfo)
    return order


def number_of(size: float) -> int | float:
    """Return a size as strategies expect it: whole ones as int."""
    return int(size) if size == int(size) else size


def restore_execution(order: Any, *, qty: Any, price: Any, time_ns: int, comminfo: Any) -> None:
    """Give an order an execution that was told before this process; Backtrader's trades do not hear of it again."""
    size = number(qty)
    value = comminfo.getvaluesize(size, float(price))
    commission = comminfo.getcommission(size, float(price))
    if order.executed.size + size:
        order.execute(line_time(time_ns), size, float(price), 0, 0.0, 0.0, size, value, commission, 0.0, 0.0, 0, 0.0)
    order.executed.markpending()


def _is_plain(value: Any) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) in (bool, int, str)


def _finite(value: Any) -> float | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def take_back_execution(order: Any, fill: Fill, comminfo: Any) -> None:
    """Take an execution out of what an order has executed, as if it had never been.

    Args:
        fill: of negative quantity.
        comminfo: for what is not known of it by its execution.
    """
    executed = order.executed
    size, price = number(-fill.change), float(fill.price)
    rest = list(executed.exbits)
    found = next((bit for bit in rest if bit.size == size and bit.price == price), None)
    if found is not None:
        rest.remove(found)
        value, commission, pnl = found.value, found.comm, found.pnl
    else:
        value, commission, pnl = comminfo.getvaluesize(size, price), comminfo.getcommission(size, price), 0.0
    left = executed.size - size
    executed.price = (executed.price * executed.size - price * size) / left if left else 0.0
    executed.size = left
    executed.value -= value
    executed.comm -= commission
    executed.pnl -= pnl
    executed.remsize += size
    # Clones that were not heard of yet share what was there before.
    executed.exbits = deque(rest)
    executed.p1 = executed.p2 = len(rest)


def build_correction(data: Any, change: PositionChange, comminfo: Any, *, tradeid: int) -> Any:
    """Return an order that moves Backtrader's trades by a change, and that no strategy hears of."""
    fill = change.fill
    order_class = bt.BuyOrder if fill.change > 0 else bt.SellOrder
    order = order_class(
        data=data, size=abs(number(fill.change)), price=float(fill.price), exectype=bt.Order.Market, tradeid=tradeid,
        simulated=True,
    )  # fmt: skip
    execute_order(order, change, comminfo)
    order.completed()
    return order


@contextlib.contextmanager
def is_without_bar(order: Any) -> Iterator[None]:
    """Let an order take a phase although its data has no bar yet, from which it would take the time."""
    if order.p.simulated or len(order.data):
        yield
        return
    order.p.simulated = True
    try:
        yield
    finally:
        order.p.simulated = False
