"""Which orders the orders journal no longer needs, and what has to stay of them. Pure.

An order is pruned with all that belongs to it, its exits, replacements and second part, when all of them have ended
before a moment, the strategy knows so, and no fill of theirs is part of what is held now: positions move on from what
the pruned fills add up to, so of each symbol only its oldest fills go, and only those before it was flat last.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

import msgspec

from dry_work.broker.books_reader import JournalBooks, JournalOrder
from dry_work.broker.journal_books import MarkCause, PositionMark
from dry_work.broker.journal_pruned import CarriedPosition, PrunedOrder
from dry_work.broker.own_books import build_orders, spell_symbols
from dry_work.broker.past_orders import is_news
from dry_work.broker.told import ToldRecord
from dry_work.orders.books import ZERO, Books, Fill, HeldPosition, position_key
from dry_work.orders.client_ids import parse_client_order_id
from dry_work.orders.model import Side

AT_A_TIME = 100  # orders, in one transaction
_SHOWN_CAUSES = (MarkCause.MANUAL, MarkCause.UNEXPLAINED)  # of marks that `dry-work status` shows


class PruneBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Orders that leave the journal in one transaction, and what stays of them."""

    orders: tuple[str, ...]  # client order ids of their intents
    executions: tuple[str, ...]  # ids of their fills
    outcome_count: int  # rows that they have; with others there is something new of them
    stays: Mapping[str, PrunedOrder]  # by every client order id that they had
    numbers: Mapping[tuple[str, str], int]  # the last of them, by agent and session
    carried: tuple[CarriedPosition, ...]
    mark_shifts: Mapping[int, int]  # fills less that a mark holds, by its id; others hold all of these less


class PrunePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What leaves the journal, in this order."""

    batches: tuple[PruneBatch, ...] = ()
    marks: tuple[int, ...] = ()  # ids of marks that later ones stand for, once the orders have left
    before_ns: int = 0

    @property
    def order_count(self) -> int:
        """Intents that leave."""
        return sum(len(batch.orders) for batch in self.batches)


class _Group(msgspec.Struct):
    """Orders that leave together."""

    names: list[str]
    fills: list[int] = []  # their places among all fills


def plan_pruning(
    books: JournalBooks, *, before_ns: int, record: ToldRecord | None = None, at_a_time: int = AT_A_TIME
) -> PrunePlan:
    """Return what the journal no longer needs.

    Args:
        books: what it says.
        before_ns: since 1970; what had something happen later stays.
        record: what the strategy's state, as it is kept now, knows; None: it keeps none.
        at_a_time: orders in a batch; more when their fills are entangled.
    """
    groups = _find_groups(books, before_ns, record)
    ends = _find_prefixes(books, groups)
    carrier = _Carrier(books)
    by_name = {order.client_order_id: order for order in books.orders}
    batches = [_build_batch(books, by_name, members, carrier) for members in _join(groups.values(), at_a_time)]
    return PrunePlan(batches=tuple(batches), marks=tuple(_find_marks(books, ends, before_ns)), before_ns=before_ns)


def _find_groups(books: JournalBooks, before_ns: int, record: ToldRecord | None) -> dict[str, _Group]:
    """Return the groups that have ended long ago, by the name of one of their orders."""
    by_name = {order.client_order_id: order for order in books.orders}
    heads: dict[str, str] = {}
    for order in books.orders:  # a parent stands before what belongs to it
        heads[order.client_order_id] = heads.get(order.parent, order.client_order_id)
    groups: dict[str, _Group] = {}
    for name, head in heads.items():
        groups.setdefault(head, _Group([])).names.append(name)
    doubted = {halt.cause for halt in books.halts} | (set(record.orders) if record is not None else set())
    kept = {heads[own.name] for own in build_orders(books) if own.is_open}
    for name, order in by_name.items():
        is_kept = order.updated_ns >= before_ns or order.intended_ns >= before_ns or name in doubted
        if is_kept or is_news(order, record):
            kept.add(heads[name])
    for index, fill in enumerate(books.fills):
        # Of an order that is not there any more: a later word on one that was pruned.
        head = heads.setdefault(fill.client_order_id, fill.client_order_id)
        groups.setdefault(head, _Group([])).fills.append(index)
        if fill.ts_event_ns >= before_ns:
            kept.add(head)
    return {head: group for head, group in groups.items() if head not in kept}


def _find_prefixes(books: JournalBooks, groups: dict[str, _Group]) -> dict[str, int]:
    """Take out of the groups those of which a fill is needed; return up to which fill each symbol's leave."""
    by_symbol: dict[str, list[int]] = defaultdict(list)
    for index, fill in enumerate(books.fills):
        by_symbol[position_key(fill.symbol)].append(index)
    carried = {position_key(each.symbol): each for each in books.carried}
    limits = {
        key: _find_opening(key, [(index, books.fills[index]) for index in places], books.marks, carried.get(key))
        for key, places in by_symbol.items()
    }
    owner = {index: head for head, group in groups.items() for index in group.fills}
    while True:
        ends: dict[str, int] = {}
        for key, places in by_symbol.items():
            stays = (index for index in places if index >= limits[key] or owner.get(index) not in groups)
            ends[key] = next(stays, len(books.fills))
        gone = [
            head
            for head, group in groups.items()
            if any(index >= ends[position_key(books.fills[index].symbol)] for index in group.fills)
        ]
        if not gone:
            return ends
        for head in gone:
            del groups[head]


def _find_opening(
    key: str, fills: Sequence[tuple[int, Fill]], marks: Iterable[PositionMark], carried: CarriedPosition | None
) -> int:
    """Return before which fill a symbol was flat last, or turned round: by our fills, or in the account."""
    found = 0
    own = _Walk(key, carried.own if carried is not None else HeldPosition())
    account = _Walk(key, carried.account if carried is not None else HeldPosition())
    since = carried.mark_id if carried is not None else 0
    waiting = [mark for mark in marks if mark.symbol == key and mark.id > since]
    for index, fill in fills:
        while waiting and waiting[0].fills <= index:
            mark = waiting.pop(0)
            found = max(found, account.set(HeldPosition(mark.qty, mark.price), mark.fills))
        found = max(found, own.take(fill, index), account.take(fill, index))
    for mark in waiting:
        found = max(found, account.set(HeldPosition(mark.qty, mark.price), mark.fills))
    return found


class _Walk:
    """A position as it goes through fills and marks."""

    def __init__(self, key: str, start: HeldPosition) -> None:
        self._key = key
        self._books = Books()
        self._books.set_position(key, start)

    @property
    def held(self) -> HeldPosition:
        """What is held now."""
        return self._books.position(self._key)

    def take(self, fill: Fill, index: int) -> int:
        """Apply a fill; return before which fill the position was opened if this one ended another, else 0."""
        before = self.held.qty
        self._books.apply(msgspec.structs.replace(fill, symbol=self._key))
        if not self.held.qty:
            return index + 1
        return index if before and (before > 0) != (self.held.qty > 0) else 0

    def set(self, held: HeldPosition, index: int) -> int:
        """Take a position over; return as `take`."""
        before = self.held.qty
        self._books.set_position(self._key, held)
        return index if not held.qty or (before and (before > 0) != (held.qty > 0)) else 0


def _join(groups: Iterable[_Group], at_a_time: int) -> list[list[_Group]]:
    """Return the groups in batches, of which each takes the oldest fills that are there then."""
    groups = list(groups)
    filled = sorted((group for group in groups if group.fills), key=lambda group: group.fills[0])
    entangled: list[list[_Group]] = []
    last = -1
    for group in filled:
        if group.fills[0] > last:
            entangled.append([])
        entangled[-1].append(group)
        last = max(last, group.fills[-1])
    batches: list[list[_Group]] = []
    room = 0
    for members in (*entangled, *([group] for group in groups if not group.fills)):
        if room <= 0:
            batches.append([])
            room = at_a_time
        batches[-1].extend(members)
        room -= sum(max(1, len(group.names)) for group in members)
    return batches


class _Carrier:
    """Adds up what leaves."""

    def __init__(self, books: JournalBooks) -> None:
        self._spelling = spell_symbols(books)
        self._carried = {position_key(each.symbol): each for each in books.carried}
        self._marks: dict[str, list[PositionMark]] = defaultdict(list)
        for mark in books.marks:
            self._marks[mark.symbol].append(mark)

    def add(self, symbols: Iterable[str], fills: Iterable[tuple[int, Fill]]) -> list[CarriedPosition]:
        """Add fills, and symbols of orders that had none; return what is carried on of all of these symbols."""
        touched: dict[str, CarriedPosition] = {}
        for symbol in symbols:
            key = position_key(symbol)
            held = self._carried.get(key) or CarriedPosition(symbol=self._spelling.canonical(symbol))
            touched[key] = held
        for index, fill in fills:
            key = position_key(fill.symbol)
            before = touched.get(key) or self._carried.get(key)
            before = before or CarriedPosition(symbol=self._spelling.canonical(fill.symbol))
            touched[key] = self._take(before, index, fill)
        self._carried.update(touched)
        return list(touched.values())

    def _take(self, held: CarriedPosition, index: int, fill: Fill) -> CarriedPosition:
        key = position_key(fill.symbol)
        own, account, mark_id = _Walk(key, held.own), _Walk(key, held.account), held.mark_id
        for mark in self._marks[key]:
            if mark_id < mark.id and mark.fills <= index:
                account.set(HeldPosition(mark.qty, mark.price), mark.fills)
                mark_id = mark.id
        own.take(fill, index)
        account.take(fill, index)
        bought = held.bought + (fill.qty if fill.side is Side.BUY else ZERO)
        return CarriedPosition(
            symbol=held.symbol, own=own.held, account=account.held, mark_id=mark_id, bought=bought, fills=held.fills + 1
        )


def _build_batch(
    books: JournalBooks, by_name: Mapping[str, JournalOrder], members: Sequence[_Group], carrier: _Carrier
) -> PruneBatch:
    orders = [by_name[name] for group in members for name in group.names]
    places = sorted(index for group in members for index in group.fills)
    totals: dict[str, tuple[Decimal, Decimal]] = {order.client_order_id: (ZERO, ZERO) for order in orders}
    for index in places:
        fill = books.fills[index]
        totals.setdefault(fill.client_order_id, (ZERO, ZERO))
        name = books.fill_orders.get(fill.execution_id, fill.client_order_id)
        qty, value = totals.get(name, (ZERO, ZERO))
        totals[name] = (qty + fill.qty, value + fill.qty * fill.price)
    numbers: dict[tuple[str, str], int] = {}
    for order in orders:
        parts = parse_client_order_id(order.client_order_id)
        number = max(order.number, parts.number if parts is not None else 0)
        numbers[order.agent, order.session] = max(number, numbers.get((order.agent, order.session), 0))
    return PruneBatch(
        orders=tuple(order.client_order_id for order in orders),
        executions=tuple(books.fills[index].execution_id for index in places),
        outcome_count=sum(order.outcome_count for order in orders),
        stays={name: PrunedOrder(*total) for name, total in totals.items()},
        numbers=numbers,
        carried=tuple(
            carrier.add((order.symbol for order in orders), [(index, books.fills[index]) for index in places])
        ),
        mark_shifts={mark.id: bisect_left(places, mark.fills) for mark in books.marks},
    )


def _find_marks(books: JournalBooks, ends: Mapping[str, int], before_ns: int) -> list[int]:
    """Return the marks that nothing follows from any more."""
    by_symbol: dict[str, list[PositionMark]] = defaultdict(list)
    for mark in books.marks:
        by_symbol[mark.symbol].append(mark)
    found: list[int] = []
    for key, marks in by_symbol.items():
        first = ends.get(key, len(books.fills))
        # The fills that stay follow from the last mark before them; people are shown the last of somebody else's.
        governing = [mark.id for mark in marks if mark.fills <= first][-1:]
        kept = {*governing, *[mark.id for mark in marks if mark.cause in _SHOWN_CAUSES][-1:]}
        found += [mark.id for mark in marks if mark.fills <= first and mark.at_ns < before_ns and mark.id not in kept]
    return found
