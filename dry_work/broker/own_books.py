"""Our books as the orders journal alone has them: orders with what stands for them, and positions. Pure.

An order is open by the journal until it says otherwise: filled, refused, ended. Its replacements and the second part of
an order that goes through zero are the same order to its strategy, so they are the same here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import StrEnum

import msgspec

from dry_work.broker.books_reader import FINAL, JournalBooks, JournalOrder
from dry_work.market.symbols import SymbolSpelling, is_crypto
from dry_work.orders.books import ZERO, Books, Fill, HeldPosition, position_key
from dry_work.orders.model import OrderClass, Side

TAKEN_UP = "taken up from the venue, since the journal did not have it"  # in the journal, of an order
LEG_ROLES = ("take_profit", "stop_loss")
_PARTS = ("remainder", "replacement")  # what stands for an order under another name
_AT_ONCE = ("ioc", "fok")
_FILLED_BY_VALUE = Decimal("0.98")  # of an order by value: the rest is rounding


class OrderState(StrEnum):
    """What the journal says of an order."""

    OPEN = "open"
    UNKNOWN = "UNKNOWN"  # it may or may not have arrived
    FILLED = "filled"
    REFUSED = "refused"
    ENDED = "ended"


class OwnOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order of the agent with its replacements and its second part, as the journal has it."""

    name: str  # client order id that it was submitted with
    symbol: str
    side: Side
    type: str
    time_in_force: str
    qty: Decimal | None
    notional: Decimal | None
    limit_price: Decimal | None
    stop_price: Decimal | None
    trail: str
    filled_qty: Decimal
    state: OrderState
    names: tuple[str, ...]  # client order ids that it may have at the venue
    order_ids: tuple[str, ...]  # the venue's
    intended_ns: int
    parent: str = ""  # of an exit: the order that it went out with
    role: str = ""
    note: str = ""
    origin: str = ""  # how it came here, when the agent has not sent it with this journal

    @property
    def is_open(self) -> bool:
        """Tell whether it may still be filled."""
        return self.state in (OrderState.OPEN, OrderState.UNKNOWN)


def build_orders(books: JournalBooks) -> list[OwnOrder]:
    """Return the agent's orders as its strategy knows them, oldest first."""
    by_name = {order.client_order_id: order for order in books.orders}
    parts: dict[str, list[JournalOrder]] = defaultdict(list)
    for order in books.orders:
        parts[_root(order, by_name)].append(order)
    filled: dict[str, list[Fill]] = defaultdict(list)
    for fill in books.fills:
        known = by_name.get(fill.client_order_id)
        filled[_root(known, by_name) if known is not None else fill.client_order_id].append(fill)
    orders: dict[str, OwnOrder] = {}
    for name, members in parts.items():
        orders[name] = _build_order(members, filled[name], orders)
    return _end_pairs(orders, {name for name, order in by_name.items() if order.order_class == OrderClass.OCO})


def _end_pairs(orders: Mapping[str, OwnOrder], pairs: set[str]) -> list[OwnOrder]:
    """End the exit whose other was filled; `pairs` are the orders that are exits themselves."""
    filled = {name for name, order in orders.items() if order.state is OrderState.FILLED}
    over = {order.parent for name, order in orders.items() if order.role in LEG_ROLES and name in filled} | (
        filled & pairs
    )
    return [
        msgspec.structs.replace(order, state=OrderState.ENDED)
        if order.is_open and ((order.role in LEG_ROLES and order.parent in over) or (name in pairs and name in over))
        else order
        for name, order in orders.items()
    ]


def sum_positions(books: JournalBooks) -> dict[str, HeldPosition]:
    """Return the positions that follow from the journal's fills; symbols that are flat now are in it too."""
    spelling = spell_symbols(books)
    summed = Books()
    symbols = dict.fromkeys(spelling.canonical(order.symbol) for order in books.orders)
    for carried in books.carried:
        symbol = spelling.canonical(carried.symbol)
        symbols[symbol] = None
        summed.set_position(symbol, carried.own)
    for fill in books.fills:
        symbol = spelling.canonical(fill.symbol)
        symbols[symbol] = None
        summed.apply(msgspec.structs.replace(fill, symbol=symbol))
    return {symbol: summed.position(symbol) for symbol in symbols}


def expect_positions(books: JournalBooks) -> dict[str, HeldPosition]:
    """Return the account's positions as they follow from those that were taken over and the fills since.

    Keys are symbols without a slash; those that are flat now are in it too.
    """
    last = {mark.symbol: mark for mark in books.marks}
    summed = Books()
    for symbol, mark in last.items():
        summed.set_position(symbol, HeldPosition(mark.qty, mark.price))
    symbols = dict.fromkeys(last)
    for carried in books.carried:
        key = position_key(carried.symbol)
        if not carried.fills:
            continue  # its orders were not filled
        symbols[key] = None
        if key not in last or last[key].id <= carried.mark_id:
            # Fills on top of the mark are among those that were pruned.
            summed.set_position(key, carried.account)
            last.pop(key, None)
    for number, fill in enumerate(books.fills):
        key = position_key(fill.symbol)
        symbols[key] = None
        if key not in last or number >= last[key].fills:
            summed.apply(msgspec.structs.replace(fill, symbol=key))
    return {key: summed.position(key) for key in symbols}


def sum_totals(books: JournalBooks) -> dict[str, Decimal]:
    """Return what is filled of all orders, those that were pruned too, by the client order ids of the venue."""
    totals = {name: order.filled_qty for name, order in books.pruned.items()}
    for order in books.orders:
        totals.setdefault(order.client_order_id, ZERO)
    for fill in books.fills:
        name = books.fill_orders.get(fill.execution_id, fill.client_order_id)
        totals[name] = totals.get(name, ZERO) + fill.qty
    return totals


def spell_symbols(books: JournalBooks) -> SymbolSpelling:
    """Return what knows all spellings of the journal's symbols."""
    # Spellings with a slash last: they win.
    symbols = {order.symbol for order in books.orders} | {fill.symbol for fill in books.fills}
    symbols |= {carried.symbol for carried in books.carried}
    return SymbolSpelling(sorted(symbols, key=is_crypto))


def _root(order: JournalOrder, by_name: Mapping[str, JournalOrder]) -> str:
    """Return the name of the order that this one stands for."""
    seen = {order.client_order_id}
    while order.role in _PARTS and order.parent in by_name and order.parent not in seen:
        order = by_name[order.parent]
        seen.add(order.client_order_id)
    return order.client_order_id


def _build_order(members: Sequence[JournalOrder], fills: Sequence[Fill], before: Mapping[str, OwnOrder]) -> OwnOrder:
    first = members[0]
    rest = [member for member in members if member.role == "remainder" and member is not first]
    replaced = [m for m in members if m.role == "replacement" and m is not first and m.outcome not in ("", "unknown")]
    replaced = [member for member in replaced if member.outcome != "refused"]
    now = replaced[-1] if replaced else first
    qty = now.qty
    if qty is not None and not replaced:
        qty += sum((part.qty for part in rest if part.qty is not None and part.outcome not in FINAL - {"filled"}), ZERO)
    filled_qty = sum((fill.qty for fill in fills), ZERO)
    state, note = _judge_state(first, members, fills, qty, before)
    return OwnOrder(
        name=first.client_order_id,
        symbol=first.symbol,
        side=first.side,
        type=first.type,
        time_in_force=now.time_in_force,
        qty=qty,
        notional=first.notional,
        limit_price=now.limit_price,
        stop_price=now.stop_price,
        trail=now.trail or first.trail,
        filled_qty=filled_qty,
        state=state,
        names=tuple(member.client_order_id for member in members),
        order_ids=tuple(order_id for member in members for order_id in member.order_ids),
        intended_ns=first.intended_ns,
        parent=first.parent,
        role=first.role,
        note=note,
        origin=first.message if first.message == TAKEN_UP else "",
    )


def _judge_state(
    first: JournalOrder,
    members: Sequence[JournalOrder],
    fills: Sequence[Fill],
    qty: Decimal | None,
    before: Mapping[str, OwnOrder],
) -> tuple[OrderState, str]:
    filled_qty = sum((fill.qty for fill in fills), ZERO)
    if first.outcome == "refused":
        return OrderState.REFUSED, first.message
    if qty is not None and filled_qty >= qty:
        return OrderState.FILLED, ""
    if first.notional is not None and fills:
        value = sum((fill.qty * fill.price for fill in fills), ZERO)
        if value >= first.notional * _FILLED_BY_VALUE:
            return OrderState.FILLED, ""
    last = [member for member in members if member.outcome in FINAL - {"refused"}]
    if last:
        return (OrderState.FILLED if last[-1].outcome == "filled" else OrderState.ENDED), last[-1].message
    head = before.get(first.parent) if first.role in LEG_ROLES else None
    if not first.outcome and head is not None and head.state in (OrderState.REFUSED, OrderState.UNKNOWN):
        return head.state, head.note
    if head is not None and head.state is OrderState.ENDED and not head.filled_qty:
        return OrderState.ENDED, ""
    if first.outcome in ("", "unknown") and not fills and head is None:
        return OrderState.UNKNOWN, first.message
    if first.time_in_force in _AT_ONCE and first.outcome:
        return OrderState.ENDED, ""
    doubts = {member.role for member in members if member is not first and member.outcome == "unknown"} | {
        member.role for member in members if member.role == "replacement" and not member.outcome
    }
    if "remainder" in doubts:
        return OrderState.UNKNOWN, "whether its second part arrived is not known"
    return OrderState.OPEN, "whether a replacement arrived is not known" if doubts else ""
