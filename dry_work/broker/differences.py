"""The account's positions and others' orders against what we know of them: what explains a difference. Pure.

Our own executions that we have missed, the executions of orders that are not ours, and fees in coins explain a
position. What is left halts its symbol: nothing is made up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal

import msgspec

from dry_work.broker.actions import HaltSymbol, MarkForeign, MarkPosition, SymbolAction
from dry_work.broker.journal_books import MarkCause
from dry_work.orders.books import ZERO, HeldPosition, position_key
from dry_work.orders.client_ids import parse_client_order_id
from dry_work.orders.model import Side, VenueOrder

_CRYPTO_FEE_SHARE = Decimal("0.0025")  # the most that Alpaca takes of the coins that are bought
_CRYPTO_FEE_ROUNDING = Decimal("0.000001")  # each execution's fee is rounded up to 1e-9; there may be many
POSITION = "position"  # cause of a halt
FLATTEN = "dry-work flatten"

_FLAT = HeldPosition()


class Missed(msgspec.Struct, frozen=True, kw_only=True):
    """An order of ours whose total is not what we have of it."""

    order: VenueOrder
    change: Decimal  # signed, of the position


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What a position's difference comes from."""

    missed: tuple[Missed, ...] = ()  # to be applied
    foreign: tuple[VenueOrder, ...] = ()  # whose executions we did not count
    fees: Decimal = ZERO  # in coins, negative
    rest: Decimal = ZERO  # not explained


def describe_owner(order: VenueOrder, agent: str) -> str:
    """Return whose an order is that is not ours, in words."""
    parts = parse_client_order_id(order.client_order_id)
    if parts is None:
        return "nobody that is known (by hand, or another program)"
    if parts.agent != agent:
        return f"agent {parts.agent}"
    return FLATTEN if parts.session.startswith("flat") else f"agent {agent} with another journal"


def find_foreign(
    orders: Iterable[VenueOrder], *, agent: str, is_ours: Callable[[VenueOrder], bool], seen: Mapping[str, Decimal]
) -> list[SymbolAction]:
    """Return what is to be marked of the account's open orders.

    Args:
        agent: whose ids ours begin with.
        is_ours: tells whether an order, or one that it belongs to, is known to be ours.
        seen: what is filled of others' orders, by the venue's id, as it was marked.
    """
    found: list[SymbolAction] = []
    for order in orders:
        if is_ours(order):
            continue
        if order.id not in seen:
            found.append(MarkForeign(order=order, owner=describe_owner(order, agent), is_new=True))
        parts = parse_client_order_id(order.client_order_id)
        if parts is not None and parts.agent == agent and not parts.session.startswith("flat"):
            reason = f"the venue has an order {order.client_order_id} that was never intended here"
            found.append(HaltSymbol(symbol=position_key(order.symbol), cause=order.client_order_id, reason=reason))
    return found


def find_differences(ours: Mapping[str, HeldPosition], theirs: Mapping[str, HeldPosition]) -> dict[str, Decimal]:
    """Return by how much the venue's positions differ from ours, by symbol."""
    differences = {
        symbol: theirs.get(symbol, _FLAT).qty - ours.get(symbol, _FLAT).qty
        for symbol in sorted(ours.keys() | theirs.keys())
    }
    return {symbol: change for symbol, change in differences.items() if change}


def crypto_fee_limit(bought: Decimal) -> Decimal:
    """Return the most that Alpaca takes as fees of coins that were bought, in coins."""
    return _CRYPTO_FEE_SHARE * bought + _CRYPTO_FEE_ROUNDING if bought else ZERO


def explain(
    difference: Decimal,
    orders: Sequence[VenueOrder],
    *,
    our_total: Callable[[VenueOrder], Decimal | None],
    seen: Mapping[str, Decimal],
    is_crypto: bool,
) -> Explanation:
    """Return what explains that the venue's position is `difference` larger than ours.

    Args:
        orders: the newest of the symbol, of all states.
        our_total: returns what we have as filled of an order, None when it is not ours.
        seen: what we have counted of others' orders, by the venue's id.
        is_crypto: the venue takes fees in coins.
    """
    missed: list[Missed] = []
    others: list[tuple[VenueOrder, Decimal]] = []
    rest, bought = difference, ZERO
    for order in orders:
        if not order.symbol:
            continue
        bought += order.filled_qty if order.side is Side.BUY else ZERO
        total = our_total(order)
        counted = seen.get(order.id, ZERO) if total is None else total
        change = (order.filled_qty - counted) * (1 if order.side is Side.BUY else -1)
        if not change:
            continue
        if total is None:
            others.append((order, change))
        else:
            missed.append(Missed(order=order, change=change))
            rest -= change
    others.sort(key=lambda found: found[0].filled_ns or found[0].updated_ns, reverse=True)
    # Old ones may have been counted before anybody took note of them: of the newest, as many as it takes.
    fee_limit = crypto_fee_limit(bought) if is_crypto else ZERO
    for count in range(len(others) + 1):
        left = rest - sum((change for _, change in others[:count]), ZERO)
        if not left or -fee_limit <= left < 0:
            foreign = tuple(order for order, _ in others[:count])
            return Explanation(missed=tuple(missed), foreign=foreign, fees=left)
    return Explanation(missed=tuple(missed), rest=rest)


def mark_position(
    symbol: str, explanation: Explanation, *, before: Decimal, after: HeldPosition, agent: str
) -> list[SymbolAction]:
    """Return how a position is marked that has changed by other than our executions, and the orders that did it."""
    found: list[SymbolAction] = [
        MarkForeign(order=order, owner=describe_owner(order, agent), is_new=False) for order in explanation.foreign
    ]
    own = sum((missed.change for missed in explanation.missed), ZERO)
    change = after.qty - before - own
    if not change:
        return found
    if explanation.rest:
        cause = MarkCause.UNEXPLAINED
        detail = f"{_signed(explanation.rest)} by no order that is known"
    elif explanation.foreign:
        cause = MarkCause.MANUAL
        detail = describe_foreign(explanation.foreign, agent)
    else:
        cause = MarkCause.FEES
        detail = f"{_signed(explanation.fees)} taken as fees in coins"
    found.append(
        MarkPosition(symbol=symbol, before=before + own, after=after.qty, price=after.price, cause=cause, detail=detail)
    )
    return found


def describe_foreign(orders: Iterable[VenueOrder], agent: str) -> str:
    """Return in words by whose orders a position has changed."""
    by_owner: dict[str, list[str]] = defaultdict(list)
    for order in orders:
        by_owner[describe_owner(order, agent)].append(f"{order.side.value} {order.filled_qty:f}")
    return "; ".join(f"{', '.join(changes)} of {owner}" for owner, changes in by_owner.items())


def halt_for(symbol: str, rest: Decimal, after: Decimal) -> HaltSymbol:
    """Return the halt of a symbol whose position is not explained."""
    reason = (
        f"the venue's position {after:f} is {_signed(rest)} beside what our fills and the orders of the account explain"
    )
    return HaltSymbol(symbol=symbol, cause=POSITION, reason=reason)


def _signed(value: Decimal) -> str:
    return f"{value:+f}"
