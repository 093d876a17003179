"""Orders as a strategy gave them, as they are kept in the journal. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from dry_work.errors import ConfigError
from dry_work.orders.mapping import OrderTerms
from dry_work.orders.model import OrderRequest, OrderType, Side, VenueOrder

_KINDS = {
    OrderType.MARKET: "Market",
    OrderType.LIMIT: "Limit",
    OrderType.STOP: "Stop",
    OrderType.STOP_LIMIT: "StopLimit",
    OrderType.TRAILING_STOP: "StopTrail",
}


class PlacedOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An order as Backtrader holds it, without what follows from its request."""

    kind: str  # Backtrader's name: Market, Limit, ...
    symbol: str  # canonical
    side: Side
    size: float = 0.0  # its sign says nothing
    data: str = ""  # name of its data
    price: float | None = None  # as they were given
    limit_price: float | None = None
    trail_amount: float | None = None
    trail_percent: float | None = None
    created_price: float | None = None  # as Backtrader read them
    created_limit: float | None = None
    day: bool = False
    until: float | None = None  # as Backtrader holds times
    tradeid: int = 0
    parent: str = ""  # client order id
    oco: str = ""  # client order id
    transmit: bool = True
    placed_ns: int = 0
    info: dict[str, Any] = {}

    @property
    def terms(self) -> OrderTerms:
        """The same for what is made into requests."""
        return OrderTerms(
            kind=self.kind,
            symbol=self.symbol,
            side=self.side,
            size=int(self.size) if self.size == int(self.size) else self.size,
            price=self.created_price,
            limit_price=self.created_limit,
            day=self.day,
            until=self.until,
            trail_amount=self.trail_amount,
            trail_percent=self.trail_percent,
            options=self.info,
        )


def encode_placed(placed: PlacedOrder) -> str:
    """Return an order as the journal keeps it."""
    return msgspec.json.encode(placed).decode()


def parse_placed(text: str) -> PlacedOrder:
    """Read what the journal keeps.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return msgspec.json.decode(text, type=PlacedOrder)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"the orders journal has terms of an order that cannot be read: {error}") from None


def place_from_request(request: OrderRequest, *, placed_ns: int) -> PlacedOrder:
    """Return an order by its request alone: of a journal that does not say more, or of the venue's word."""
    is_limit = request.type is OrderType.LIMIT
    price = request.limit_price if is_limit else request.stop_price
    kind = "Close" if request.type is OrderType.MARKET and request.time_in_force == "cls" else _KINDS[request.type]
    return PlacedOrder(
        kind=kind,
        symbol=request.symbol,
        side=request.side,
        size=float(request.qty or 0),
        price=_float(price),
        limit_price=None if is_limit else _float(request.limit_price),
        trail_amount=_float(request.trail_price),
        trail_percent=None if request.trail_percent is None else float(request.trail_percent) / 100,
        created_price=_float(price),
        created_limit=_float(request.limit_price),
        day=request.time_in_force == "day",
        placed_ns=placed_ns,
    )


def request_of(order: VenueOrder) -> OrderRequest:
    """Return the request that an order of the venue stands for."""
    return OrderRequest(
        client_order_id=order.client_order_id,
        symbol=order.symbol,
        side=order.side,
        type=order.type,
        time_in_force=order.time_in_force,
        qty=order.qty,
        notional=order.notional if order.qty is None else None,
        limit_price=order.limit_price,
        stop_price=None if order.type is OrderType.TRAILING_STOP else order.stop_price,
        trail_price=order.trail_price,
        trail_percent=order.trail_percent,
        extended_hours=order.extended_hours,
    )


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
