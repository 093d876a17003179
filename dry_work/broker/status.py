"""Our books beside the venue's: what the orders journal says, what the venue says, and where they differ. Pure.

Our positions are the sums of the journal's fills. That an order of ours ended while the agent was away is the venue's
to tell, and no difference.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from enum import StrEnum

import msgspec

from dry_work.broker.books_reader import JournalBooks
from dry_work.broker.differences import crypto_fee_limit
from dry_work.broker.journal_books import MarkCause
from dry_work.broker.own_books import LEG_ROLES, OrderState, OwnOrder, spell_symbols, sum_positions, sum_totals
from dry_work.clock import SECOND_NS
from dry_work.market.symbols import is_crypto
from dry_work.orders.books import ZERO, HeldPosition
from dry_work.orders.client_ids import parse_client_order_id
from dry_work.orders.model import TERMINAL, AccountSnapshot, OrderStatus, Side, VenueOrder, VenuePosition

_FLATTEN = "`dry-work flatten`"
_FEES = "{} is what the venue has taken of the coins as fees"
_ANY_CAUSE = (
    "a trade by hand, an order of another program, a fill that the agent has missed, or held before the agent began"
)


class Mark(StrEnum):
    """How a row of ours stands to the venue's."""

    EQUAL = "equal"
    DIFFERS = "DIFFERS"
    FOREIGN = "foreign"  # of another agent, or of nobody that we know
    ALONE = ""  # nothing to compare with


class VenueSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the venue says now."""

    account: AccountSnapshot
    positions: tuple[VenuePosition, ...] = ()
    open_orders: tuple[VenueOrder, ...] = ()
    history: tuple[VenueOrder, ...] | None = None  # orders of the symbols that differ, of all states
    is_history_whole: bool = True
    looked_up: Mapping[str, VenueOrder | None] = {}  # by our name; None: the venue does not know it


class PositionRow(msgspec.Struct, frozen=True, kw_only=True):
    """A symbol in our books and at the venue."""

    symbol: str
    ours: HeldPosition
    venue: HeldPosition | None  # None: not asked
    mark: Mark
    reasons: tuple[str, ...] = ()


class OrderRow(msgspec.Struct, frozen=True, kw_only=True):
    """An order in our books, at the venue, or both."""

    name: str
    symbol: str
    terms: str
    ours: str  # state and what is filled; empty: not in our books
    venue: str  # the same; empty: not there, or not asked
    mark: Mark
    reasons: tuple[str, ...] = ()


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Both books, row by row."""

    positions: tuple[PositionRow, ...]
    orders: tuple[OrderRow, ...]
    ended: Mapping[str, int] = {}  # orders that the journal has as open and that have ended at the venue, by status

    @property
    def is_equal(self) -> bool:
        """Tell whether no row differs."""
        marks = [row.mark for row in self.positions] + [row.mark for row in self.orders]
        return Mark.DIFFERS not in marks

    def symbols_to_explain(self) -> tuple[str, ...]:
        """Return the agent's symbols whose positions are not the sums of its fills."""
        return tuple(
            row.symbol
            for row in self.positions
            if row.venue is not None and row.mark is not Mark.FOREIGN and row.ours.qty != row.venue.qty
        )


# Whose is an order of the venue


class _Owners:
    """Finds the order of ours that an order of the venue stands for, and says whose another one is."""

    def __init__(self, books: JournalBooks, orders: Iterable[OwnOrder], venue_orders: Iterable[VenueOrder]) -> None:
        self._agents = {*books.agents, *(order.agent for order in books.orders)}
        self._by_name = {name: order for order in orders for name in order.names}
        self._by_id = {order_id: order for order in self._by_name.values() for order_id in order.order_ids}
        self._all = {order.id: order for order in venue_orders}
        totals = sum_totals(books)
        self._pruned = {name: totals[name] for name in books.pruned}

    def named(self, name: str) -> OwnOrder:
        """Return our order with this name."""
        return self._by_name[name]

    def find(self, order: VenueOrder) -> OwnOrder | None:
        """Return our order, also by the orders that this one has replaced."""
        seen: set[str] = set()
        found: VenueOrder | None = order
        while found is not None and found.id not in seen:
            seen.add(found.id)
            own = self._by_name.get(found.client_order_id) or self._by_id.get(found.id)
            if own is not None:
                return own
            own = self._by_id.get(found.replaces)
            if own is not None:
                return own
            found = self._all.get(found.replaces)
        return None

    def pruned_qty(self, order: VenueOrder) -> Decimal | None:
        """Return how much of an order was filled that was pruned, None when it is none of those."""
        return self._pruned.get(order.client_order_id)

    def is_closing(self, order: VenueOrder) -> bool:
        """Tell whether it is an order of `dry-work flatten` for this agent."""
        parts = parse_client_order_id(order.client_order_id)
        return parts is not None and parts.agent in self._agents and parts.session.startswith("flat")

    def is_orphan(self, order: VenueOrder) -> bool:
        """Tell whether it has this agent's name and is not in its journal."""
        parts = parse_client_order_id(order.client_order_id)
        return parts is not None and parts.agent in self._agents and not self.is_closing(order)

    def describe(self, order: VenueOrder) -> str:
        """Return whose order it is, in words."""
        parts = parse_client_order_id(order.client_order_id)
        if self.is_closing(order):
            return _FLATTEN
        if order.client_order_id in self._pruned:
            return "this agent that has ended by the journal and was pruned"
        if parts is None:
            return "nobody that is known (by hand, or another program)"
        if parts.agent in self._agents:
            return f"agent {parts.agent} with another journal than this"
        return f"agent {parts.agent}"


# Comparing


def list_doubts(orders: Iterable[OwnOrder], books: JournalBooks, snapshot: VenueSnapshot) -> list[OwnOrder]:
    """Return our open orders that the venue does not list as open: they are to be looked up, newest first."""
    orders = list(orders)
    owners = _Owners(books, orders, (*snapshot.open_orders, *(snapshot.history or ())))
    there = {own.name for order in snapshot.open_orders if (own := owners.find(order)) is not None}
    doubts = [order for order in orders if order.is_open and order.name not in there]
    return sorted(doubts, key=lambda order: order.intended_ns, reverse=True)


def compare(books: JournalBooks, orders: Sequence[OwnOrder], snapshot: VenueSnapshot | None) -> Comparison:
    """Return our books beside the venue's; without a snapshot ours alone."""
    held = sum_positions(books)
    if snapshot is None:
        alone = [
            PositionRow(symbol=symbol, ours=position, venue=None, mark=Mark.ALONE)
            for symbol, position in held.items()
            if position.qty
        ]
        return Comparison(
            positions=tuple(_add_notes(alone, books)),
            orders=tuple(
                _build_row(order, None, Mark.ALONE, [order.note] if order.note else [])
                for order in orders
                if order.is_open
            ),
        )
    at_venue = {order.id: order for order in snapshot.history or ()}
    at_venue.update((order.id, order) for order in snapshot.looked_up.values() if order is not None)
    at_venue.update((order.id, order) for order in snapshot.open_orders)
    owners = _Owners(books, orders, at_venue.values())
    order_rows, ended = _compare_orders(orders, snapshot, owners)
    return Comparison(
        positions=tuple(_add_notes(_compare_positions(books, held, orders, snapshot, owners, at_venue), books)),
        orders=tuple(order_rows),
        ended=dict(ended),
    )


def _compare_orders(
    orders: Sequence[OwnOrder], snapshot: VenueSnapshot, owners: _Owners
) -> tuple[list[OrderRow], Counter[str]]:
    there: dict[str, VenueOrder] = {}
    foreign: list[OrderRow] = []
    for order in sorted(snapshot.open_orders, key=lambda order: order.created_ns):
        own = owners.find(order)
        if own is not None:
            there[own.name] = order
            continue
        foreign.append(
            OrderRow(
                name=order.client_order_id or order.id,
                symbol=order.symbol,
                terms=_describe_terms(order),
                ours="",
                venue=_describe_fill(order.status, order.filled_qty),
                mark=Mark.DIFFERS if owners.is_orphan(order) else Mark.FOREIGN,
                reasons=(f"an order of {owners.describe(order)}",),
            )
        )
    rows: list[OrderRow] = []
    ended: Counter[str] = Counter()
    for own in orders:
        found = there.get(own.name)
        if found is not None:
            reasons = _compare_open(own, found)
            rows.append(_build_row(own, found, Mark.DIFFERS if reasons else Mark.EQUAL, reasons))
        elif own.is_open:
            row = _compare_missing(own, snapshot, ended)
            if row is not None:
                rows.append(row)
    return [*rows, *foreign], ended


def _compare_open(own: OwnOrder, found: VenueOrder) -> list[str]:
    """Return why an order that is open at the venue differs from ours."""
    if own.state is OrderState.UNKNOWN:
        return ["its answer was lost and the agent has not looked it up since: it did arrive"]
    if not own.is_open:
        return [f"it is {own.state.value} by the journal, but open at the venue"]
    reasons = []
    if found.filled_qty > own.filled_qty:
        reasons.append(
            f"the venue has filled {_text(found.filled_qty)} of it, the journal has {_text(own.filled_qty)}: "
            "the agent has not taken note of a fill"
        )
    is_single = own.role not in LEG_ROLES and len(own.names) == 1
    for what, ours, theirs in (
        ("quantity", own.qty if is_single else None, found.qty if is_single else None),
        ("limit price", own.limit_price, found.limit_price),
        ("stop price", None if own.trail else own.stop_price, found.stop_price),
    ):
        if ours is not None and theirs is not None and ours != theirs:
            reasons.append(
                f"its {what} is {_text(theirs)} at the venue and {_text(ours)} by the journal: somebody has replaced it"
            )
    return reasons


def _compare_missing(own: OwnOrder, snapshot: VenueSnapshot, ended: Counter[str]) -> OrderRow | None:
    """Return the row of an open order of ours that is not open at the venue; None when it has ended there in order."""
    if own.name not in snapshot.looked_up:
        ended["not looked up"] += 1
        return None
    found = snapshot.looked_up[own.name]
    if found is None:
        if own.state is OrderState.UNKNOWN:
            reason = "the venue does not know it: it never arrived, and the agent has not looked it up since"
        elif own.role in LEG_ROLES and not own.order_ids:
            reason = "its id at the venue is not known, so it could not be looked up"
        else:
            reason = "the venue does not know it: another account, or an exchange that has begun anew"
        return _build_row(own, None, Mark.DIFFERS, [reason])
    if found.status not in TERMINAL:  # it is open by now
        reasons = _compare_open(own, found)
        return _build_row(own, found, Mark.DIFFERS if reasons else Mark.EQUAL, reasons)
    if own.state is OrderState.UNKNOWN and found.filled_qty > own.filled_qty:
        reason = f"its answer was lost, it did arrive and was filled with {_text(found.filled_qty)}"
        return _build_row(own, found, Mark.DIFFERS, [reason])
    if found.filled_qty > own.filled_qty:
        reason = (
            f"the venue has filled {_text(found.filled_qty)} of it, the journal has {_text(own.filled_qty)}: "
            "the agent has not taken note of a fill"
        )
        return _build_row(own, found, Mark.DIFFERS, [reason])
    if found.status == OrderStatus.REPLACED:
        reason = "somebody has replaced it at the venue, by an order that is not ours"
        return _build_row(own, found, Mark.DIFFERS, [reason])
    ended[str(found.status)] += 1
    return None


def _compare_positions(
    books: JournalBooks,
    held: Mapping[str, HeldPosition],
    orders: Sequence[OwnOrder],
    snapshot: VenueSnapshot,
    owners: _Owners,
    at_venue: Mapping[str, VenueOrder],
) -> Iterable[PositionRow]:
    spelling = spell_symbols(books)
    theirs = {
        spelling.canonical(position.symbol): HeldPosition(position.qty, position.avg_entry_price)
        for position in snapshot.positions
    }
    by_symbol: dict[str, list[VenueOrder]] = defaultdict(list)
    for order in at_venue.values():
        by_symbol[spelling.canonical(order.symbol)].append(order)
    for symbol, ours in held.items():
        venue = theirs.pop(symbol, HeldPosition())
        if not ours.qty and not venue.qty:
            continue
        mark, reasons = Mark.EQUAL, list[str]()
        if ours.qty != venue.qty:
            bought = sum(
                (f.qty for f in books.fills if f.side is Side.BUY and spelling.canonical(f.symbol) == symbol), ZERO
            ) + sum((each.bought for each in books.carried if spelling.canonical(each.symbol) == symbol), ZERO)
            mark, reasons = _explain(symbol, venue.qty - ours.qty, by_symbol[symbol], owners, bought, snapshot)
        yield PositionRow(symbol=symbol, ours=ours, venue=venue, mark=mark, reasons=tuple(reasons))
    for symbol, venue in theirs.items():
        if venue.qty:
            yield PositionRow(
                symbol=symbol, ours=HeldPosition(), venue=venue, mark=Mark.FOREIGN,
                reasons=("the agent has never ordered it",),
            )  # fmt: skip


def _add_notes(rows: Iterable[PositionRow], books: JournalBooks) -> Iterable[PositionRow]:
    """Add to the positions why their symbols are halted, and what the agent has marked in them last."""
    spelling = spell_symbols(books)
    halts: dict[str, list[str]] = defaultdict(list)
    for halt in books.halts:
        halts[spelling.canonical(halt.symbol)].append(f"halted since {_minute(halt.at_ns)} UTC: {halt.reason}")
    marked = {
        spelling.canonical(mark.symbol): f"marked at {_minute(mark.at_ns)} UTC: {mark.detail}"
        for mark in books.marks
        if mark.cause in (MarkCause.MANUAL, MarkCause.UNEXPLAINED)
    }
    for row in rows:
        reasons = halts.pop(row.symbol, [])
        mark = Mark.DIFFERS if reasons else row.mark
        if row.venue is None or row.ours.qty != row.venue.qty:
            reasons = [*reasons, *([marked[row.symbol]] if row.symbol in marked else [])]
        yield msgspec.structs.replace(row, mark=mark, reasons=(*row.reasons, *reasons))
    for symbol, reasons in halts.items():
        yield PositionRow(symbol=symbol, ours=HeldPosition(), venue=None, mark=Mark.DIFFERS, reasons=tuple(reasons))


def _minute(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(time_ns // SECOND_NS))


def _explain(
    symbol: str,
    difference: Decimal,
    orders: Iterable[VenueOrder],
    owners: _Owners,
    bought: Decimal,
    snapshot: VenueSnapshot,
) -> tuple[Mark, list[str]]:
    """Return how a position that differs is to be marked, and why it can be: from the venue's orders of the symbol."""
    if snapshot.history is None:
        if is_crypto(symbol) and -crypto_fee_limit(bought) <= difference < 0:
            return Mark.EQUAL, [_FEES.format(_signed(difference))]
        return Mark.DIFFERS, [f"{_signed(difference)}: {_ANY_CAUSE}"]
    reasons, rest, is_ours = list[str](), difference, True
    told: dict[str, Decimal] = defaultdict(Decimal)
    by_owner: dict[str, list[Decimal]] = defaultdict(list)
    for order in orders:
        change = _sign(order.filled_qty, order.side)
        own = owners.find(order)
        pruned = owners.pruned_qty(order)
        if own is not None:
            told[own.name] += change
        elif pruned is not None:
            missed = change - _sign(pruned, order.side)
            if missed:
                rest -= missed
                is_ours = False
                reasons.append(_missed(missed, order.client_order_id))
        elif change:
            by_owner[owners.describe(order)].append(change)
            bought += max(change, ZERO)
    for name, change in told.items():
        own = owners.named(name)
        missed = change - _sign(own.filled_qty, own.side)
        # Of an order with replacements only some may be among those that were looked at.
        if missed and (snapshot.is_history_whole or (missed > 0) is (own.side is Side.BUY)):
            rest -= missed
            is_ours = False
            reasons.append(_missed(missed, name))
    for owner, changes in by_owner.items():
        rest -= sum(changes, ZERO)
        is_ours = is_ours and owner == _FLATTEN
        count = f"{len(changes)} order{'' if len(changes) == 1 else 's'}"
        reasons.append(f"{_signed(sum(changes, ZERO))} by {count} of {owner}")
    if rest and is_crypto(symbol) and -crypto_fee_limit(bought) <= rest < 0:
        reasons.append(_FEES.format(_signed(rest)))
        rest = ZERO
    if rest:
        where = "" if snapshot.is_history_whole else " of the newest that were looked at"
        reasons.append(
            f"{_signed(rest)} by no order{where} at the venue: held before the agent began, moved in, or a split"
        )
    return (Mark.EQUAL if is_ours and not rest else Mark.DIFFERS), reasons


# Words


def _missed(change: Decimal, name: str) -> str:
    return f"{_signed(change)} by fills of {short_name(name)} that the agent has not taken note of"


def _build_row(own: OwnOrder, found: VenueOrder | None, mark: Mark, reasons: Sequence[str]) -> OrderRow:
    return OrderRow(
        name=own.name,
        symbol=own.symbol,
        terms=_describe_terms(own),
        ours=_describe_fill(own.state.value, own.filled_qty),
        venue="" if found is None else _describe_fill(found.status, found.filled_qty),
        mark=mark,
        reasons=(*reasons, *([own.origin] if own.origin else [])),
    )


def _describe_terms(order: OwnOrder | VenueOrder) -> str:
    """Return an order in a few words: buy 5 limit 470.1 gtc, stop_loss."""
    size = _text(order.qty) if order.qty is not None else f"${_text(order.notional or ZERO)}"
    words = [order.side.value, size, str(order.type)]
    if order.stop_price is not None:
        words.append(_text(order.stop_price))
    if order.limit_price is not None:
        words.append(_text(order.limit_price) if order.stop_price is None else f"limit {_text(order.limit_price)}")
    if isinstance(order, OwnOrder):
        words += [order.trail] if order.trail else []
    words.append(str(order.time_in_force))
    if isinstance(order, OwnOrder) and order.role:
        words.append(f"({order.role} of {short_name(order.parent)})")
    if isinstance(order, OwnOrder) and len(order.names) > 1:
        words.append(f"(as {short_name(order.names[-1])})")
    return " ".join(words)


def short_name(client_order_id: str) -> str:
    """Return a client order id without what all of an agent's have in common."""
    parts = parse_client_order_id(client_order_id)
    return client_order_id if parts is None else f"{parts.session}-{parts.number}"


def _describe_fill(state: str, filled_qty: Decimal) -> str:
    return f"{state}, {_text(filled_qty)} filled" if filled_qty else state


def _text(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _signed(value: Decimal) -> str:
    return f"+{_text(value)}" if value > 0 else _text(value)


def _sign(qty: Decimal, side: Side) -> Decimal:
    return qty if side is Side.BUY else -qty
