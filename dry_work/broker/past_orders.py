"""The orders of an agent's earlier processes, as its journal and its strategy's state have them. Pure."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from decimal import Decimal

import msgspec

from dry_work.broker.books_reader import JournalBooks, JournalOrder
from dry_work.broker.own_books import LEG_ROLES, OrderState, OwnOrder, build_orders
from dry_work.broker.placed import PlacedOrder, parse_placed, place_from_request, request_of
from dry_work.broker.told import SavedLeg, ToldOrder, ToldRecord
from dry_work.errors import CodecError
from dry_work.orders.books import ZERO, Fill
from dry_work.orders.client_ids import parse_client_order_id
from dry_work.orders.groups import Role
from dry_work.orders.lifecycle import Phase, is_lack_of_funds
from dry_work.orders.mapping import apply_change
from dry_work.orders.model import OrderClass, OrderRequest, OrderType, Replacement, TimeInForce, VenueOrder
from dry_work.wire.alpaca_fields import RequestError
from dry_work.wire.alpaca_orders import parse_order_request, parse_replacement

_END_PHASES = {
    "filled": Phase.COMPLETED,
    "canceled": Phase.CANCELED,
    "expired": Phase.EXPIRED,
    "rejected": Phase.REJECTED,
}


class PastPart(msgspec.Struct, frozen=True, kw_only=True):
    """An order of the venue that stood, stands or was to stand for one of ours."""

    name: str  # client order id
    request: OrderRequest
    number: int
    outcome: str = ""  # as `JournalOrder` has it
    order_ids: tuple[str, ...] = ()
    message: str = ""
    code: int | None = None
    intended_ns: int = 0
    change: Replacement | None = None  # of a replacement
    is_journalled: bool = True

    @property
    def is_accepted(self) -> bool:
        """Tell whether the venue is known to have had it."""
        return bool(self.order_ids) or self.outcome in ("accepted", *_END_PHASES)


class PastOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order of an earlier process, with its replacements and its second part."""

    name: str
    session: str
    placed: PlacedOrder
    first: PastPart
    replacements: tuple[PastPart, ...] = ()
    remainder: PastPart | None = None
    head: str = ""  # of an exit: client order id of the order that it went out with
    role: Role | None = None
    fills: tuple[Fill, ...] = ()  # by the journal, in its order
    ended: Phase | None = None  # by the journal
    told: ToldOrder = ToldOrder()
    is_refused_here: bool = False  # before it could be sent
    is_told: bool = False  # the strategy knows all of it, though the journal may not

    @property
    def number(self) -> int:
        """Its place in its session."""
        return self.first.number

    @property
    def symbol(self) -> str:
        """Canonical."""
        return self.first.request.symbol

    @property
    def is_known_to_venue(self) -> bool:
        """Tell whether the venue has had it."""
        return self.first.is_accepted or bool(self.fills)


def list_past_orders(books: JournalBooks, record: ToldRecord | None, *, agent: str) -> list[PastOrder]:
    """Return the orders that are to go on, or of which there is something to tell; groups together, oldest first.

    Args:
        record: what the strategy's state knows; None: it keeps none, and knows what the journal knows.
        agent: whose orders.
    """
    by_name = {order.client_order_id: order for order in books.orders if order.agent == agent}
    filled: dict[str, list[Fill]] = defaultdict(list)
    for fill in books.fills:
        filled[fill.client_order_id].append(fill)
    owned = [own for own in build_orders(books) if own.name in by_name]
    found: dict[str, PastOrder] = {}
    for own in owned:
        if not own.is_open and not is_news(by_name[own.name], record):
            continue
        past = _build(own, by_name, filled, books)
        if record is not None and own.name not in record.orders and record.knows(past.session, past.number):
            # It knew all of it when it was written down, which the journal was not told any more.
            told = ToldOrder(phase=past.ended or Phase.CANCELED)
            found[own.name] = msgspec.structs.replace(past, told=told, is_told=True)
        else:
            found[own.name] = _with_saved(msgspec.structs.replace(past, told=_told_of(past, record)))
    if record is not None:
        for name, told in record.orders.items():
            # What was pruned has ended, whatever an old record says: above all it is not sent again.
            if name not in by_name and name not in found and name not in books.pruned:
                found.update(_build_saved(name, told, record))
    # The other orders of a group of which one goes on: they are what it hangs on.
    heads = {past.head or past.name for past in found.values() if past.role is not None}
    for own in owned:
        order = by_name[own.name]
        if own.name not in found and (order.parent if order.role in LEG_ROLES else own.name) in heads:
            past = _build(own, by_name, filled, books)
            phase = past.ended or (Phase.COMPLETED if own.state is OrderState.FILLED else Phase.CANCELED)
            found[own.name] = msgspec.structs.replace(past, told=ToldOrder(phase=phase), is_told=True)
    return sorted(found.values(), key=lambda past: (past.session, past.number))


def past_from_venue(order: VenueOrder) -> PastOrder | None:
    """Return an order that only the venue knows, under one of our ids; None when the id is not ours."""
    parts = parse_client_order_id(order.client_order_id)
    if parts is None:
        return None
    request = request_of(order)
    return PastOrder(
        name=order.client_order_id,
        session=parts.session,
        placed=place_from_request(request, placed_ns=order.created_ns),
        first=PastPart(
            name=order.client_order_id,
            request=request,
            number=parts.number,
            outcome="accepted",
            order_ids=(order.id,),
            intended_ns=order.created_ns,
            is_journalled=False,
        ),
        told=ToldOrder(phase=Phase.ACCEPTED),  # that it was taken is no news
    )


def is_news(order: JournalOrder, record: ToldRecord | None) -> bool:
    """Tell whether the strategy may not know all of an order that has ended."""
    if record is None or order.session not in record.numbers:
        return False
    return order.client_order_id in record.orders or not record.knows(order.session, order.number)


def _build(
    own: OwnOrder, by_name: Mapping[str, JournalOrder], filled: Mapping[str, list[Fill]], books: JournalBooks
) -> PastOrder:
    order = by_name[own.name]
    fills = [fill for name in own.names for fill in filled.get(name, ())]
    first = _build_part(order)
    standing = first.request
    replacements: list[PastPart] = []
    remainder: PastPart | None = None
    for name in own.names[1:]:
        part = by_name[name]
        if part.role == "remainder":
            remainder = _build_part(part)
        elif part.role == "replacement":
            built = _build_replacement(part, standing)
            replacements.append(built)
            if built.outcome != "refused":
                standing = built.request
    is_leg = order.role in LEG_ROLES
    head = by_name.get(order.parent) if is_leg else None
    role = Role(order.role) if is_leg else _role_of_head(order, first.request)
    return PastOrder(
        name=own.name,
        session=order.session,
        placed=_read_placed(order, first.request),
        first=first,
        replacements=tuple(replacements),
        remainder=remainder,
        head=head.client_order_id if head is not None else "",
        role=role,
        fills=tuple(_name_fill(fill, own, books) for fill in fills),
        ended=_judge_end(own, order, by_name),
    )


def _role_of_head(order: JournalOrder, request: OrderRequest) -> Role | None:
    if request.order_class is OrderClass.SIMPLE:
        return None
    return Role.TAKE_PROFIT if request.order_class is OrderClass.OCO else Role.ENTRY


def _judge_end(own: OwnOrder, order: JournalOrder, by_name: Mapping[str, JournalOrder]) -> Phase | None:
    members = [by_name[name] for name in own.names]
    words = [member.outcome for member in members if member.outcome in _END_PHASES]
    if words:
        return _END_PHASES[words[-1]]
    if order.outcome == "refused":
        return Phase.MARGIN if is_lack_of_funds(order.code, order.message) else Phase.REJECTED
    if own.state is OrderState.REFUSED:
        return Phase.REJECTED
    return None


def _build_part(order: JournalOrder) -> PastPart:
    return PastPart(
        name=order.client_order_id,
        request=_read_request(order),
        number=order.number,
        outcome=order.outcome,
        order_ids=order.order_ids,
        message=order.message,
        code=order.code,
        intended_ns=order.intended_ns,
    )


def _build_replacement(order: JournalOrder, standing: OrderRequest) -> PastPart:
    try:
        change = parse_replacement(json.loads(order.body, parse_float=Decimal)) if order.body else None
    except (ValueError, CodecError, RequestError):
        change = None
    if change is None:
        change = Replacement(
            qty=order.qty, limit_price=order.limit_price, stop_price=order.stop_price,
            client_order_id=order.client_order_id,
        )  # fmt: skip
    return PastPart(
        name=order.client_order_id,
        request=apply_change(change, standing),
        number=order.number,
        outcome=order.outcome,
        order_ids=order.order_ids,
        message=order.message,
        code=order.code,
        intended_ns=order.intended_ns,
        change=change,
    )


def _read_request(order: JournalOrder) -> OrderRequest:
    """Return the request of an intent: what was sent, else what the journal's columns say."""
    if order.body and order.role != "replacement":
        try:
            return parse_order_request(json.loads(order.body, parse_float=Decimal))
        except (ValueError, CodecError, RequestError):
            pass
    return OrderRequest(
        client_order_id=order.client_order_id,
        symbol=order.symbol,
        side=order.side,
        type=OrderType(order.type),
        time_in_force=TimeInForce(order.time_in_force),
        qty=order.qty,
        notional=order.notional,
        limit_price=order.limit_price,
        stop_price=order.stop_price,
    )


def _read_placed(order: JournalOrder, request: OrderRequest) -> PlacedOrder:
    if order.terms:
        return parse_placed(order.terms)
    return place_from_request(request, placed_ns=order.intended_ns)


def _name_fill(fill: Fill, own: OwnOrder, books: JournalBooks) -> Fill:
    """Let a fill have the client order id that the venue has for its order."""
    name = books.fill_orders.get(fill.execution_id, "")
    if not name:
        prefix, _, total = fill.execution_id.partition(":")
        name = prefix if total and prefix in own.names else fill.client_order_id
    return msgspec.structs.replace(fill, client_order_id=name)


# What the strategy knows


def _told_of(past: PastOrder, record: ToldRecord | None) -> ToldOrder:
    """Return what the strategy knows of an order."""
    if record is not None and past.name in record.orders:
        return record.orders[past.name]
    if record is not None and past.session in record.numbers:
        return ToldOrder()
    return _told_by_journal(past)


def _told_by_journal(past: PastOrder) -> ToldOrder:
    phase = Phase.SUBMITTED
    if past.is_known_to_venue or past.first.order_ids:
        phase = Phase.PARTIAL if past.fills else Phase.ACCEPTED
    stood = [part.name for part in past.replacements if part.is_accepted]
    return ToldOrder(phase=phase, filled=_sum(past.fills), standing=stood[-1] if stood else "")


def _with_saved(past: PastOrder) -> PastOrder:
    """Add the replacement that only the strategy's state knows."""
    saved = past.told.replacement
    if saved is None or any(part.name == saved.request.client_order_id for part in past.replacements):
        return past
    part = PastPart(
        name=saved.request.client_order_id, request=saved.request, number=saved.number, intended_ns=saved.at_ns,
        change=saved.change, is_journalled=False,
    )  # fmt: skip
    return msgspec.structs.replace(past, replacements=(*past.replacements, part))


def _build_saved(name: str, told: ToldOrder, record: ToldRecord) -> Mapping[str, PastOrder]:
    """Return an order, with its exits, that only the strategy's state knows."""
    saved, parts = told.submit, parse_client_order_id(name)
    if saved is None or parts is None:
        return {}
    request = saved.request
    first = PastPart(
        name=name,
        request=request or _describe_unsent(name, saved.placed),
        number=saved.number,
        intended_ns=saved.at_ns,
        is_journalled=False,
    )
    remainder = next((leg for leg in saved.legs if leg.role is Role.REMAINDER), None)
    is_pair = request is not None and request.order_class is OrderClass.OCO
    is_group = request is not None and request.order_class is not OrderClass.SIMPLE
    found = {
        name: PastOrder(
            name=name,
            session=parts.session,
            placed=saved.placed,
            first=first,
            remainder=None if remainder is None else _saved_part(remainder, saved.at_ns),
            role=(Role.TAKE_PROFIT if is_pair else Role.ENTRY) if is_group else None,
            told=told,
            is_refused_here=request is None,
        )
    }
    for leg in saved.legs:
        if leg.role is Role.REMAINDER or leg.placed is None:
            continue
        leg_name = leg.request.client_order_id
        found[leg_name] = PastOrder(
            name=leg_name,
            session=parts.session,
            placed=leg.placed,
            first=_saved_part(leg, saved.at_ns),
            head=name,
            role=leg.role,
            told=record.orders.get(leg_name, ToldOrder()),
        )
    return found


def _saved_part(leg: SavedLeg, at_ns: int) -> PastPart:
    return PastPart(
        name=leg.request.client_order_id, request=leg.request, number=leg.number, intended_ns=at_ns, is_journalled=False
    )


def _describe_unsent(name: str, placed: PlacedOrder) -> OrderRequest:
    return OrderRequest(
        client_order_id=name,
        symbol=placed.symbol,
        side=placed.side,
        type=OrderType.MARKET,
        time_in_force=TimeInForce.GTC,
        qty=Decimal(repr(placed.size)),
    )


def _sum(fills: Iterable[Fill]) -> Decimal:
    return sum((fill.qty for fill in fills), ZERO)
