"""Watches what happens in the account beside the agent's own orders. Engine thread only.

Others' orders are marked once; a position that our fills do not explain is looked into, and its symbol halted when
nothing explains it. What is found is told, logged and written down. The decisions are in `differences`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal

import msgspec
import structlog

from dry_work.broker.account import AccountState
from dry_work.broker.actions import HaltSymbol, MarkForeign, MarkPosition, SymbolAction
from dry_work.broker.books_reader import JournalBooks, read_books
from dry_work.broker.desk import OrderDesk
from dry_work.broker.differences import (
    POSITION,
    Missed,
    describe_owner,
    explain,
    find_differences,
    find_foreign,
    halt_for,
    mark_position,
)
from dry_work.broker.flight import JOURNAL_BOOKS, NO_FLIGHT, Flight
from dry_work.broker.halts import SymbolHalts
from dry_work.broker.journal import Journal
from dry_work.broker.journal_books import ForeignOrder, MarkCause, PositionMark
from dry_work.broker.journal_pruned import PrunedOrder
from dry_work.broker.own_books import expect_positions, sum_totals
from dry_work.broker.positions import PositionBook
from dry_work.broker.reconcile import complete_fills
from dry_work.market.symbols import is_crypto
from dry_work.orders.books import ZERO, Books, Fill, HeldPosition, position_key
from dry_work.orders.model import TradeEvent, VenueOrder

STORE_MESSAGE = "reconciliation"  # first argument of `notify_store`

_log = structlog.get_logger(__name__)


class AccountNote(msgspec.Struct, frozen=True, kw_only=True):
    """Something of the account that a strategy did not do: second argument of `notify_store`."""

    kind: str  # foreign_order, position, bust, halt, resume
    symbol: str
    text: str
    client_order_id: str = ""


class AccountWatch:
    """Marks, explains, halts.

    Args:
        agent: whose orders are ours.
        journal: where marks are written down.
        tell: takes notes for strategies.
        ask: asks for another snapshot, with the orders of these symbols.
        write: calls something that writes to the journal, behind what is to be written already.
        time_ns: time of the machine.
        flight: what is read from the journal passes it, since another thread writes there.
    """

    def __init__(
        self,
        *,
        agent: str,
        journal: Journal,
        book: PositionBook,
        desk: OrderDesk,
        halts: SymbolHalts,
        tell: Callable[[AccountNote], None],
        ask: Callable[[Iterable[str]], None],
        write: Callable[[Callable[[], None]], None],
        time_ns: Callable[[], int],
        counters: Counter[str],
        flight: Flight = NO_FLIGHT,
    ) -> None:
        self._flight = flight
        self._agent = agent
        self._journal = journal
        self._book = book
        self._desk = desk
        self._halts = halts
        self._tell = tell
        self._ask = ask
        self._write = write
        self._time_ns = time_ns
        self._counters = counters
        self._seen: dict[str, Decimal] = {}  # what we count as filled of others' orders, by the venue's id
        self._totals: dict[str, Decimal] = {}  # the same of our orders of earlier runs, by client order id
        self._pruned: Mapping[str, PrunedOrder] = {}  # those of them of which the journal has no more than that
        self._unexplained: dict[str, Decimal] = {}  # part of positions, by symbol
        self._unintended: dict[str, str] = {}  # symbols by client order id
        self._new_foreign: dict[str, ForeignOrder] = {}
        self._new_marks: dict[str, tuple[MarkCause, str]] = {}

    # The start

    def begin(
        self,
        books: JournalBooks,
        recorded: Iterable[Fill],
        state: AccountState,
        fetch_history: Callable[[Iterable[str]], list[VenueOrder] | None],
    ) -> None:
        """Compare the account with what the journal expects of it, and take it over as it is.

        Args:
            books: the journal as it was before this run.
            recorded: fills that were written down since.
            state: of the account; the books hold it.
            fetch_history: returns the orders of symbols.
        """
        self._totals = sum_totals(books)
        self._pruned = books.pruned
        self._seen = {each.order_id: each.filled_qty for each in books.foreign}
        expected = _expect(books, recorded)
        theirs = _positions(state)
        # An order is written down after a look at the account, of which there is no mark when nothing was held.
        is_first = not (books.marks or books.fills or books.pruned or books.orders)
        differences = {} if is_first else find_differences(expected, theirs)
        history = (fetch_history(differences) or []) if differences else []
        for symbol, difference in differences.items():
            self._explain(symbol, difference, history, expected.get(symbol, HeldPosition()), theirs, may_halt=False)
        for symbol in theirs.keys() | expected.keys():
            if symbol in differences or expected.get(symbol) is None:
                self._new_marks.setdefault(symbol, (MarkCause.START, ""))
        self._book.take_snapshot(state)  # it holds what was found
        self._mark_foreign(state.open_orders)
        self.flush()

    # While trading

    def take_state(self, state: AccountState) -> bool:
        """Look at a snapshot in which all our open orders are as we know them; tell whether it may be taken over."""
        self._mark_foreign(state.open_orders)
        theirs = _positions(state)
        ours = self._explained_positions()
        differences = find_differences(ours, theirs)
        if differences and not differences.keys() <= state.history_of:
            self._ask(differences)
            return False
        for symbol, difference in differences.items():
            before = ours.get(symbol, HeldPosition())
            self._explain(symbol, difference, state.history, before, theirs, may_halt=True)
        for symbol in tuple(self._unexplained):
            if symbol not in differences:
                del self._unexplained[symbol]
                self._halts.lift(symbol, POSITION)
        return True

    def note_event(self, event: TradeEvent, fill: Fill | None) -> None:
        """Take note of an event of an order that is not ours, and of the fill that the books took from it."""
        order = event.order
        if not order.symbol:
            return
        if fill is None and self._is_ours(order):
            if order.client_order_id in self._pruned:
                _log.info(
                    "an event of an order that has ended and was pruned",
                    client_order_id=order.client_order_id,
                    trade_event=event.event,
                )
            return  # told again of an order that was let go of, or of an earlier run
        if order.id not in self._seen:
            self._apply(
                MarkForeign(order=order, owner=describe_owner(order, self._agent), is_new=True),
                counted=order.filled_qty,
            )
        if fill is None:
            return
        self._note_foreign(order, order.filled_qty)
        owner = describe_owner(order, self._agent)
        text = f"{order.side.value} {abs(fill.qty):f} at {fill.price:f} by an order of {owner}"
        if fill.qty < 0:
            text = f"taken back: {text}"
        self._new_marks[position_key(order.symbol)] = (MarkCause.MANUAL, text)
        self._note("position", order.symbol, text, order.client_order_id)

    def doubt(self, symbol: str, client_order_id: str, reason: str) -> None:
        """Halt the symbol of an order of ours that is not explained, until `clear`."""
        self._halts.halt(HaltSymbol(symbol=position_key(symbol), cause=client_order_id, reason=reason))

    def clear(self, symbol: str, client_order_id: str) -> None:
        """Take note that an order of ours is explained."""
        self._halts.lift(position_key(symbol), client_order_id)

    def note_bust(self, order: VenueOrder, fill: Fill) -> None:
        """Take note of an execution of an order of ours that was taken back, and is no order of this run."""
        text = f"taken back: {order.side.value} {abs(fill.qty):f} at {fill.price:f}"
        self._note("bust", order.symbol, text, order.client_order_id)

    def note_retired(self, names: Iterable[str]) -> None:
        """Take note of orders of this run that were let go of: from now on they are like those of earlier ones."""
        names = tuple(names)
        books = self._book.books
        books.let_go(names)
        self._totals.update((name, books.filled_qty(name)) for name in names if not books.is_let_go(name))

    def is_journalled(self, client_order_id: str) -> bool:
        """Tell whether an order is one of ours of an earlier run, or was let go of."""
        return self._total_of(client_order_id) is not None

    def holds(self, order: VenueOrder) -> bool:
        """Tell whether the books hold all that is filled of an order of ours of an earlier run, or let go of."""
        total = self._total_of(order.client_order_id)
        return total is not None and 0 < order.filled_qty <= total

    def _total_of(self, client_order_id: str) -> Decimal | None:
        """Return what is filled of an order of ours of an earlier run, or let go of; None when it is none of those."""
        total = self._totals.get(client_order_id)
        if total is None and self._book.books.is_let_go(client_order_id):
            total = self._book.books.filled_qty(client_order_id)
        return total

    def flush(self) -> None:
        """Let what was marked be written down, with the positions as they are now."""
        if not self._new_marks and not self._new_foreign:
            return
        at_ns = self._time_ns()
        marks = []
        for symbol, (cause, detail) in self._new_marks.items():
            held = self._book.books.position(symbol)
            marks.append(
                PositionMark(symbol=symbol, qty=held.qty, price=held.price, cause=cause, detail=detail, at_ns=at_ns)
            )
        foreign = [msgspec.structs.replace(each, at_ns=at_ns) for each in self._new_foreign.values()]
        self._new_marks, self._new_foreign = {}, {}

        def write() -> None:
            self._journal.books.note_foreign(foreign)
            self._journal.books.mark_positions(marks)

        self._write(write)

    # Others' orders

    def _mark_foreign(self, orders: Iterable[VenueOrder]) -> None:
        orders = [order for order in orders if order.symbol]
        for action in find_foreign(orders, agent=self._agent, is_ours=self._is_ours, seen=self._seen):
            self._apply(action)
        there = {order.client_order_id for order in orders}
        for name, symbol in tuple(self._unintended.items()):
            if name not in there:
                del self._unintended[name]
                self._halts.lift(symbol, name)

    def _is_ours(self, order: VenueOrder) -> bool:
        return self._desk.is_ours(order) or self.is_journalled(order.client_order_id)

    def _note_foreign(self, order: VenueOrder, counted: Decimal) -> None:
        self._seen[order.id] = counted
        self._new_foreign[order.id] = ForeignOrder(
            order_id=order.id,
            client_order_id=order.client_order_id,
            symbol=position_key(order.symbol),
            side=order.side.value,
            filled_qty=counted,
            status=str(order.status),
        )

    # Positions

    def _explained_positions(self) -> dict[str, HeldPosition]:
        """Return our positions without what was taken over and not explained."""
        books = self._book.books
        found = {symbol: books.position(symbol) for symbol in (*books.symbols, *self._unexplained)}
        return {
            symbol: HeldPosition(held.qty - self._unexplained.get(symbol, ZERO), held.price)
            for symbol, held in found.items()
        }

    def _explain(
        self,
        symbol: str,
        difference: Decimal,
        history: Iterable[VenueOrder],
        before: HeldPosition,
        theirs: Mapping[str, HeldPosition],
        *,
        may_halt: bool,
    ) -> None:
        orders = [order for order in history if order.symbol and position_key(order.symbol) == symbol]
        explanation = explain(
            difference,
            orders,
            our_total=self._our_total,
            seen=self._seen,
            is_crypto=any(is_crypto(order.symbol) for order in orders),
        )
        after = theirs.get(symbol, HeldPosition())
        for missed in explanation.missed:
            self._take_missed(missed)
        for action in mark_position(symbol, explanation, before=before.qty, after=after, agent=self._agent):
            self._apply(action)
        if may_halt and explanation.rest:
            self._unexplained[symbol] = explanation.rest
            self._apply(halt_for(symbol, explanation.rest, after.qty))
        elif symbol in self._unexplained:
            del self._unexplained[symbol]
            self._halts.lift(symbol, POSITION)

    def _our_total(self, order: VenueOrder) -> Decimal | None:
        if self._desk.is_ours(order):
            return self._book.books.filled_qty(order.client_order_id)
        return self._total_of(order.client_order_id)

    def _take_missed(self, missed: Missed) -> None:
        """Take executions of an order of ours that were missed, or that were taken back."""
        order = missed.order
        if self._desk.take_total(order):
            return
        books = self._flight.answer(JOURNAL_BOOKS, lambda: read_books(self._journal.path))
        names = books.fill_orders
        known = [
            msgspec.structs.replace(fill, client_order_id=names.get(fill.execution_id, fill.client_order_id))
            for fill in books.fills
        ]
        ours = {fill.client_order_id: own.client_order_id for own, fill in zip(books.fills, known, strict=True)}
        known = [*restore_pruned(order, books.pruned), *known]
        for fill in complete_fills(order, known, {}):
            self._book.apply(fill)
            own = ours.get(fill.client_order_id, fill.client_order_id)
            self._totals[order.client_order_id] = order.filled_qty
            self._journal.record_progress(
                [msgspec.structs.replace(fill, client_order_id=own)],
                order_names={fill.execution_id: fill.client_order_id} if own != fill.client_order_id else None,
            )
            word = "taken back" if fill.qty < 0 else "executed"
            text = f"{word}: {order.side.value} {abs(fill.qty):f} at {fill.price:f}, of an order of an earlier run"
            self._note("bust" if fill.qty < 0 else "position", order.symbol, text, own)

    def _apply(self, action: SymbolAction, *, counted: Decimal | None = None) -> None:
        if isinstance(action, HaltSymbol):
            if action.cause != POSITION:
                self._unintended[action.cause] = action.symbol
            self._halts.halt(action)
        elif isinstance(action, MarkPosition):
            self._counters["positions that differed from their fills"] += 1
            self._new_marks[action.symbol] = (action.cause, action.detail)
            text = f"the position is {action.after:f} instead of {action.before:f}: {action.detail}"
            if action.cause is MarkCause.FEES:
                _log.info("fees in coins", symbol=action.symbol, detail=action.detail)
            else:
                self._note("position", action.symbol, text)
        elif isinstance(action, MarkForeign):
            order = action.order
            self._note_foreign(order, order.filled_qty if counted is None else counted)
            if action.is_new:
                size = f"{order.qty:f}" if order.qty is not None else f"${order.notional or ZERO:f}"
                text = f"an order of {action.owner}: {order.side.value} {size} {order.type.value}, {order.status}"
                self._counters["orders of others"] += 1
                self._note("foreign_order", order.symbol, text, order.client_order_id)

    def _note(self, kind: str, symbol: str, text: str, client_order_id: str = "") -> None:
        _log.warning("account", kind=kind, symbol=symbol, text=text, client_order_id=client_order_id)
        self._tell(AccountNote(kind=kind, symbol=symbol, text=text, client_order_id=client_order_id))


def restore_pruned(order: VenueOrder, pruned: Mapping[str, PrunedOrder]) -> list[Fill]:
    """Return what was filled of an order that was pruned, as one fill."""
    told = pruned.get(order.client_order_id)
    if told is None or not told.filled_qty:
        return []
    return [
        Fill(
            execution_id=f"{order.client_order_id}:{told.filled_qty:f}",
            client_order_id=order.client_order_id,
            symbol=order.symbol,
            side=order.side,
            qty=told.filled_qty,
            price=told.filled_value / told.filled_qty,
            ts_event_ns=order.filled_ns or order.updated_ns,
        )
    ]


def _positions(state: AccountState) -> dict[str, HeldPosition]:
    return {
        position_key(held.symbol): HeldPosition(held.qty, held.avg_entry_price) for held in state.positions if held.qty
    }


def _expect(books: JournalBooks, recorded: Iterable[Fill]) -> dict[str, HeldPosition]:
    """Return the positions that the journal expects, with the fills that were written down since it was read."""
    expected = expect_positions(books)
    known = {fill.execution_id for fill in books.fills}
    summed = Books()
    for symbol, held in expected.items():
        summed.set_position(symbol, held)
    for fill in recorded:
        if fill.execution_id not in known:
            key = position_key(fill.symbol)
            summed.apply(msgspec.structs.replace(fill, symbol=key))
            expected[key] = summed.position(key)
    return expected
