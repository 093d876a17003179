"""Orders that belong together: an entry and its exits, or two exits of which one ends the other. Pure.

Every group is of one request. Its `head` is the order that the request made: the entry of a bracket or oto group, the
profit exit of an oco group. The other orders are its legs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from msgspec.structs import replace

from dry_work.orders.model import OrderClass, OrderRequest, OrderType, Side

Member = TypeVar("Member")


class OrderGroup(Generic[Member]):
    """The orders of one request that has legs, each in its present form: a replaced one is given up for the new one."""

    def __init__(self, kind: OrderClass, head: Member, legs: Sequence[Member]) -> None:
        self.kind = kind
        self.head = head
        self.legs = list(legs)
        self.is_linked = True  # the end of one is still the end of the others

    @property
    def members(self) -> list[Member]:
        """All orders, the head first."""
        return [self.head, *self.legs]

    @property
    def exits(self) -> list[Member]:
        """The orders that close, the profit exit first."""
        return self.members if self.kind is OrderClass.OCO else self.legs

    def is_entry(self, member: Member) -> bool:
        """Tell whether the exits wait for this order."""
        return member is self.head and self.kind is not OrderClass.OCO

    def others(self, member: Member) -> list[Member]:
        """Return the other orders, the head first."""
        return [other for other in self.members if other is not member]

    def swap(self, old: Member, new: Member) -> None:
        """Put an order in the place of the one that it replaces."""
        if old is self.head:
            self.head = new
        self.legs = [new if leg is old else leg for leg in self.legs]


def build_head(request: OrderRequest) -> OrderRequest:
    """Return the request of the head alone."""
    if request.order_class is OrderClass.OCO:
        return replace(request, limit_price=request.take_profit)
    return request


def build_legs(request: OrderRequest) -> list[OrderRequest]:
    """Return the requests of the legs, the profit exit first; their client order ids are the venue's."""
    is_oco = request.order_class is OrderClass.OCO
    base = replace(
        request,
        client_order_id="",
        side=request.side if is_oco else Side.SELL if request.side is Side.BUY else Side.BUY,
        limit_price=None,
        stop_price=None,
        take_profit=None,
        stop_loss=None,
        commission=None,
    )
    legs = []
    if request.take_profit is not None and not is_oco:
        legs.append(replace(base, type=OrderType.LIMIT, limit_price=request.take_profit))
    if request.stop_loss is not None:
        stop_price, limit_price = request.stop_loss.stop_price, request.stop_loss.limit_price
        kind = OrderType.STOP if limit_price is None else OrderType.STOP_LIMIT
        legs.append(replace(base, type=kind, stop_price=stop_price, limit_price=limit_price))
    return legs
