"""Orders that belong together, as values: bracket, OTO and OCO as one request, and one order sent in two parts. Pure.

Backtrader links orders one by one (`parent=` and `transmit=`, `oco=`); Alpaca takes a group as one order whose exits
are its legs. What it cannot say as one order is refused by the name of the rule, never emulated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from dry_work.market.symbols import is_crypto, is_option
from dry_work.orders.mapping import OrderTerms, build_request
from dry_work.orders.model import (
    OrderClass,
    OrderRequest,
    OrderStatus,
    OrderType,
    Side,
    StopLoss,
    TimeInForce,
    VenueOrder,
)
from dry_work.orders.rules import Refusal, RefusalCode, check_order


class Role(StrEnum):
    """What an order is in its group."""

    ENTRY = "entry"
    TAKE_PROFIT = "take_profit"
    STOP_LOSS = "stop_loss"
    REMAINDER = "remainder"  # the second part of an order that crosses zero


class GroupRequest(msgspec.Struct, frozen=True):
    """One request for several orders."""

    request: OrderRequest
    roles: tuple[Role, ...]  # of the orders, as they were given


EXIT_ROLES = {
    OrderType.LIMIT: Role.TAKE_PROFIT,
    OrderType.STOP: Role.STOP_LOSS,
    OrderType.STOP_LIMIT: Role.STOP_LOSS,
}


def build_bracket(
    entry: OrderTerms, exits: Sequence[OrderTerms], client_order_id: str, *, at_ns: int | None = None
) -> GroupRequest | Refusal:
    """Return the request for an entry with one exit (OTO) or two (bracket), or why Alpaca cannot take it as one order.

    Args:
        at_ns: time of the submit; None leaves rules of the time of day out.
    """
    if len(exits) not in (1, 2):
        return _refuse("three_children", f"an order with {len(exits)} children: Alpaca takes one or two")
    request = build_request(entry, client_order_id)
    if isinstance(request, Refusal):
        return request
    request = replace(request, order_class=OrderClass.OTO if len(exits) == 1 else OrderClass.BRACKET)
    refusal = check_order(request, at_ns=at_ns)
    if refusal is not None:
        return refusal
    side = exit_side(request)
    built = [_build_exit(terms, request, side, entry) for terms in exits]
    for found in built:
        if isinstance(found, Refusal):
            return found
    return _join(request, [found for found in built if isinstance(found, OrderRequest)], (Role.ENTRY,), at_ns)


def build_pair(
    first: OrderTerms, second: OrderTerms, client_order_id: str, *, at_ns: int | None = None
) -> GroupRequest | Refusal:
    """Return the request for two exits of which the first that fills cancels the other, or why it is none.

    The client order id is that of the limit order, which Alpaca takes as the order itself.

    Args:
        at_ns: time of the submit; None leaves rules of the time of day out.
    """
    request = build_request(first, client_order_id)
    if isinstance(request, Refusal):
        return request
    if request.type not in EXIT_ROLES:
        return _refuse("leg_kind", f"oco with a {first.kind} order: Alpaca takes a Limit and a Stop or StopLimit order")
    head = replace(request, type=OrderType.LIMIT, limit_price=None, stop_price=None, order_class=OrderClass.OCO)
    refusal = check_order(head, at_ns=at_ns)
    if refusal is not None:
        return refusal
    other = _build_exit(second, request, first.side, first)
    if isinstance(other, Refusal):
        return other
    return _join(head, [request, other], (), at_ns)


def build_leg(request: OrderRequest, role: Role, client_order_id: str) -> OrderRequest:
    """Return an exit of a group as a request of its own, as it is written down; it is never sent."""
    assert request.order_class is not OrderClass.SIMPLE
    loss = request.stop_loss if role is Role.STOP_LOSS else None
    order_type = OrderType.LIMIT
    if loss is not None:
        order_type = OrderType.STOP if loss.limit_price is None else OrderType.STOP_LIMIT
    return OrderRequest(
        client_order_id=client_order_id,
        symbol=request.symbol,
        side=exit_side(request),
        type=order_type,
        time_in_force=request.time_in_force,
        qty=request.qty,
        limit_price=request.take_profit if loss is None else loss.limit_price,
        stop_price=None if loss is None else loss.stop_price,
    )


def exit_side(request: OrderRequest) -> Side:
    """Return the side of the exits of a group."""
    if request.order_class is OrderClass.OCO:
        return request.side
    return Side.SELL if request.side is Side.BUY else Side.BUY


def assign_legs(legs: Iterable[VenueOrder], symbol: str, side: Side) -> dict[Role, VenueOrder]:
    """Return the legs of an order by their role, told by symbol, side and type; of several the one that stands last.

    Args:
        side: of the exits.
    """
    found: dict[Role, VenueOrder] = {}
    for leg in legs:
        role = EXIT_ROLES.get(leg.type)
        if role is None or leg.symbol != symbol or leg.side is not side:
            continue
        known = found.get(role)
        if known is None or known.status == OrderStatus.REPLACED or leg.replaces == known.id:
            found[role] = leg
    return found


def split_crossing(
    request: OrderRequest, held: Decimal, second_id: str
) -> tuple[OrderRequest, OrderRequest] | Refusal | None:
    """Return the two parts of an order that goes through zero, None when it does not, or why it cannot be split.

    Alpaca refuses an order that closes a position and opens the opposite one. The first part closes; the second is sent
    when the first is filled. What has triggered then has no trigger any more: a stop goes on as a market order, a
    stop-limit order as a limit order.

    Args:
        held: signed quantity of the position.
        second_id: client order id of the second part.
    """
    qty = request.qty
    if qty is None or request.order_class is not OrderClass.SIMPLE or is_crypto(request.symbol):
        return None
    closes = held > 0 if request.side is Side.SELL else held < 0
    rest = qty - abs(held)
    if not closes or rest <= 0:
        return None
    whole = rest == rest.to_integral_value()
    if request.side is Side.SELL and not whole:
        reason = f"{qty:f} sold with {held:f} held leaves {rest:f} to sell short, which has to be whole"
        return Refusal(RefusalCode.SIZE, reason, "crossing_fractional")
    if request.time_in_force in (TimeInForce.OPG, TimeInForce.CLS, TimeInForce.FOK):
        reason = (
            f"an order through zero ({qty:f} with {held:f} held) goes as two, "
            f"and {request.time_in_force.value} orders cannot be split"
        )
        return Refusal(RefusalCode.SIZE, reason, f"crossing_{request.time_in_force.value}")
    after = {OrderType.STOP: OrderType.MARKET, OrderType.TRAILING_STOP: OrderType.MARKET}
    after[OrderType.STOP_LIMIT] = OrderType.LIMIT
    second = replace(
        request,
        client_order_id=second_id,
        type=after.get(request.type, request.type),
        qty=rest,
        stop_price=None,
        trail_price=None,
        trail_percent=None,
    )
    return replace(request, qty=abs(held)), second


def may_be_paired(request: OrderRequest, held: Decimal) -> bool:
    """Tell whether an order might be the first of an oco pair: a plain exit of what is held."""
    closes = held > 0 if request.side is Side.SELL else held < 0
    return (
        closes
        and request.order_class is OrderClass.SIMPLE
        and request.type in EXIT_ROLES
        and request.time_in_force in (TimeInForce.DAY, TimeInForce.GTC)
        and not request.extended_hours
        and not is_crypto(request.symbol)
        and not is_option(request.symbol)
        and request.qty is not None
        and request.qty <= abs(held)
    )


def _build_exit(terms: OrderTerms, head: OrderRequest, side: Side, first: OrderTerms) -> OrderRequest | Refusal:
    """Return the request of an exit, checked against the order that it belongs to."""
    request = build_request(terms, "")
    if isinstance(request, Refusal):
        return request
    if request.type not in EXIT_ROLES:
        return _refuse("leg_kind", f"a {terms.kind} order as an exit: Alpaca takes Limit, Stop and StopLimit orders")
    for rule, what, ours, theirs in (
        ("leg_symbol", "symbol", request.symbol, head.symbol),
        ("leg_side", "side", request.side.value, side.value),
        ("leg_size", "size", request.qty, head.qty),
        ("leg_valid", "time in force", request.time_in_force.value, head.time_in_force.value),
        ("leg_valid", "valid time", terms.until, first.until),
        ("leg_options", "extended_hours", request.extended_hours, head.extended_hours),
    ):
        if ours != theirs:
            return _refuse(rule, f"linked orders need one {what}: an exit has {ours} instead of {theirs}")
    return request


def _join(
    head: OrderRequest, exits: Sequence[OrderRequest], roles: tuple[Role, ...], at_ns: int | None
) -> GroupRequest | Refusal:
    found = [EXIT_ROLES[request.type] for request in exits]
    if len(set(found)) < len(found):
        return _refuse(
            "two_of_a_kind", "Alpaca takes one Limit and one Stop or StopLimit order as exits, not two alike"
        )
    for role, leg in zip(found, exits, strict=True):
        if role is Role.TAKE_PROFIT:
            head = replace(head, take_profit=leg.limit_price)
        else:
            assert leg.stop_price is not None
            head = replace(head, stop_loss=StopLoss(leg.stop_price, leg.limit_price))
    return check_order(head, at_ns=at_ns) or GroupRequest(head, (*roles, *found))


def _refuse(rule: str, reason: str) -> Refusal:
    return Refusal(RefusalCode.LINKED, reason, rule)
