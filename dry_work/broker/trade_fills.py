"""The fills that trade events tell of. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from dry_work.orders.books import ZERO, Books, Fill
from dry_work.orders.model import TradeEvent


def build_reversal(event: TradeEvent, books: Books) -> list[Fill] | None:
    """Return what a bust or a correction does, as fills; None when it is not known what it is about."""
    order, previous = event.order, event.previous_execution_id
    known = books.find_execution(order.client_order_id, previous)
    applied = books.filled_qty(order.client_order_id)
    corrects = event.event == "trade_correct"
    if known is None and (corrects or not event.qty or not event.price):
        return None
    qty, price = known if known is not None else (abs(event.qty or ZERO), event.price or ZERO)
    if known is None and applied:
        # Its execution was lost on the way, or is part of a total that was found instead.
        qty = min(qty, applied - order.filled_qty)
        if qty <= 0:
            books.ignore(previous)
            return []
    name = event.execution_id or f"{previous}:{event.event_id}"
    back = Fill(
        execution_id=f"{name}:back" if corrects else name,
        client_order_id=order.client_order_id,
        symbol=order.symbol,
        side=order.side,
        qty=-qty,
        price=price,
        ts_event_ns=event.ts_event_ns,
        previous_execution_id=previous,
    )
    books.ignore(previous)
    if not corrects:
        return [back]
    fill = build_fill(event)
    return None if fill is None else [back, replace(fill, execution_id=name, filled_qty=None)]


def build_fill(event: TradeEvent) -> Fill | None:
    """Return the fill that an event tells of, None when it does not say how much at what price."""
    if not event.price or not event.qty or event.price < 0 or event.qty < 0:
        return None
    return Fill(
        execution_id=event.execution_id or f"{event.order.id}:{event.event_id}",
        client_order_id=event.order.client_order_id,
        symbol=event.order.symbol,
        side=event.order.side,
        qty=event.qty,
        price=event.price,
        ts_event_ns=event.ts_event_ns,
        filled_qty=event.order.filled_qty or None,
    )
