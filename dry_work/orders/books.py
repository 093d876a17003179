"""Cash and positions from fills, each applied once. Pure; not thread-safe.

The venue tells of an order's executions twice: one by one on the stream, with an id, and as totals (`filled_qty`,
`filled_avg_price`) in every order it answers. `Books.apply` takes the first, `Books.missing_fill` finds from the
second what the first did not bring. An execution that a total has covered already is not applied again. What the venue
takes back (a bust) is a fill of negative quantity, and is undone as if it had never been.

What is known of orders that ended long ago may be in an archive (`Books.let_go`): it is fetched from there whenever the
venue speaks of one of them again, and no answer differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

import msgspec

from dry_work.market.symbols import contract_size
from dry_work.orders.model import Side, VenueOrder, VenuePosition

ZERO = Decimal(0)


class Fill(msgspec.Struct, frozen=True, kw_only=True):
    """One execution of an order."""

    execution_id: str
    client_order_id: str
    symbol: str
    side: Side
    qty: Decimal  # positive; negative: so much is taken back of what was executed on this side
    price: Decimal
    ts_event_ns: int
    filled_qty: Decimal | None = None  # of the order after this execution
    previous_execution_id: str = ""  # of what is taken back: the execution, if it is known

    @property
    def change(self) -> Decimal:
        """Signed change of the position."""
        return self.qty if self.side is Side.BUY else -self.qty


class PositionChange(msgspec.Struct, frozen=True, kw_only=True):
    """What a fill did to the position of its symbol; quantities are signed."""

    fill: Fill
    qty_before: Decimal
    price_before: Decimal  # average entry price, 0 when flat
    qty_after: Decimal
    price_after: Decimal
    closed: Decimal  # part of the fill that closed what was held
    opened: Decimal  # part that opened or added


def position_key(symbol: str) -> str:
    """Return what is equal for all spellings of a symbol: BTC/USD and BTCUSD are one position."""
    return symbol.replace("/", "").upper()


class HeldPosition(msgspec.Struct, frozen=True):
    """Signed quantity and average entry price."""

    qty: Decimal = ZERO
    price: Decimal = ZERO


_FLAT = HeldPosition()


@dataclass(slots=True)
class _Entry:
    """One execution that was applied."""

    execution_id: str
    filled_qty: Decimal | None  # of the order after it; None: not known
    qty: Decimal
    value: Decimal


@dataclass(slots=True)
class _Executions:
    """What is known of one order's executions."""

    entries: list[_Entry] = field(default_factory=list)
    covered_qty: Decimal = ZERO  # a total up to here was applied

    @property
    def qty(self) -> Decimal:
        return sum((entry.qty for entry in self.entries), ZERO)

    @property
    def value(self) -> Decimal:
        return sum((entry.value for entry in self.entries), ZERO)

    def take_back(self, execution_id: str, qty: Decimal, value: Decimal) -> None:
        """Forget an execution; one that is not known by its id is part of a total."""
        for index, entry in enumerate(self.entries):
            if execution_id and entry.execution_id == execution_id:
                del self.entries[index]
                for later in self.entries[index:]:
                    # What the venue told with them counted the one that is no more.
                    if later.filled_qty is not None:
                        later.filled_qty -= qty
                break
        else:
            self.entries.append(_Entry("", None, -qty, -value))
        self.covered_qty = min(self.covered_qty, self.qty)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Executions)


class SettledOrder(msgspec.Struct, frozen=True):
    """An order that is let go of, as the archive keeps it."""

    name: str  # client order id
    content: bytes
    execution_ids: tuple[str, ...]


class Archive(Protocol):
    """Where what is known of orders goes that are let go of."""

    def put(self, orders: Sequence[SettledOrder]) -> bool:
        """Take orders, all or none; False when that fails."""

    def find(self, name: str) -> bytes | None:
        """Return the content of an order, None when it is none of these."""

    def has_execution(self, execution_id: str) -> bool:
        """Tell whether an execution belongs to one of these orders."""


class Books:
    """Cash and positions of the account.

    Args:
        cash: of the snapshot.
        positions: of the snapshot.
        archive: for orders that are let go of; None: all stay in memory.
    """

    def __init__(
        self,
        *,
        cash: Decimal = ZERO,
        positions: Iterable[VenuePosition] = (),
        archive: Archive | None = None,
    ) -> None:
        self.cash = cash
        self._archive = archive
        self._positions: dict[str, HeldPosition] = {}
        self._executions: dict[str, _Executions] = {}
        self._seen: set[str] = set()
        self._ignored: set[str] = set()
        self.duplicates = 0
        self.reset(cash, positions)

    def set_position(self, symbol: str, position: HeldPosition) -> None:
        """Take over a position as it is said to be."""
        self._set(symbol, position)

    def reset(self, cash: Decimal, positions: Iterable[VenuePosition]) -> set[str]:
        """Take over a snapshot of the venue; the executions that were applied stay known.

        Returns: symbols whose position differs from what was known.
        """
        before = self._positions
        self.cash = cash
        self._positions = {
            position.symbol: HeldPosition(position.qty, position.avg_entry_price)
            for position in positions
            if position.qty
        }
        return {
            symbol
            for symbol in before.keys() | self._positions.keys()
            if before.get(symbol, _FLAT).qty != self._positions.get(symbol, _FLAT).qty
        }

    @property
    def symbols(self) -> tuple[str, ...]:
        """Symbols with a position that is not flat."""
        return tuple(self._positions)

    def position(self, symbol: str) -> HeldPosition:
        """Return the position of a canonical symbol, flat when there is none."""
        return self._positions.get(symbol, _FLAT)

    def filled_qty(self, client_order_id: str) -> Decimal:
        """Return how much of an order has been applied."""
        known = self._look_up(client_order_id)
        return known.qty if known is not None else ZERO

    def find_execution(self, client_order_id: str, execution_id: str) -> tuple[Decimal, Decimal] | None:
        """Return quantity and price of an execution that was applied, None when it is not known by its id."""
        known = self._look_up(client_order_id)
        for entry in known.entries if known is not None else ():
            if execution_id and entry.execution_id == execution_id:
                return entry.qty, entry.value / entry.qty
        return None

    def restore(self, fill: Fill) -> None:
        """Take note of a fill that cash and positions hold already, so that it is not applied again."""
        self._seen.add(fill.execution_id)
        executions = self._fetch(fill.client_order_id)
        value = abs(fill.qty) * fill.price
        if fill.qty < 0:
            executions.take_back(fill.previous_execution_id, -fill.qty, value)
            return
        executions.entries.append(_Entry(fill.execution_id, fill.filled_qty, fill.qty, value))
        prefix, _, total = fill.execution_id.rpartition(":")
        if prefix == fill.client_order_id and _is_number(total):  # it was found in a total
            executions.covered_qty = max(executions.covered_qty, Decimal(total))

    def let_go(self, client_order_ids: Iterable[str]) -> None:
        """Put what is known of orders that have ended into the archive; when it takes nothing, all stays as it is."""
        if self._archive is None:
            return
        orders: list[SettledOrder] = []
        for name in client_order_ids:
            known = self._look_up(name) or _Executions()
            ids = tuple(entry.execution_id for entry in known.entries if entry.execution_id)
            orders.append(SettledOrder(name, _encoder.encode(known), ids))
        if not self._archive.put(orders):
            return
        for order in orders:
            self._executions.pop(order.name, None)
            self._seen.difference_update(order.execution_ids)

    def is_let_go(self, client_order_id: str) -> bool:
        """Tell whether an order is in the archive."""
        return self._archive is not None and self._archive.find(client_order_id) is not None

    def _look_up(self, client_order_id: str) -> _Executions | None:
        """Return what is known of an order, not to be changed; None when that is nothing."""
        known = self._executions.get(client_order_id)
        if known is None and self._archive is not None:
            content = self._archive.find(client_order_id)
            known = None if content is None else _decoder.decode(content)
        return known

    def _fetch(self, client_order_id: str) -> _Executions:
        """Return what is known of an order, to be changed: from now on it is in memory."""
        known = self._executions.get(client_order_id)
        if known is None:
            known = self._executions[client_order_id] = self._look_up(client_order_id) or _Executions()
        return known

    def ignore(self, execution_id: str) -> None:
        """Let an execution that was taken back not be applied, should it still come."""
        if execution_id:
            self._seen.add(execution_id)
            self._ignored.add(execution_id)

    def is_ignored(self, execution_id: str) -> bool:
        """Tell whether an execution was taken back."""
        return execution_id in self._ignored

    def is_applied(self, fill: Fill) -> bool:
        """Tell whether the fill is known by its id, or covered by a total."""
        if fill.execution_id in self._seen:
            return True
        if self._archive is not None and self._archive.has_execution(fill.execution_id):
            return True
        known = self._look_up(fill.client_order_id)
        return known is not None and fill.filled_qty is not None and fill.filled_qty <= known.covered_qty

    def apply(self, fill: Fill) -> PositionChange | None:
        """Apply a fill to cash and position; None when it was applied before."""
        if self.is_applied(fill):
            self._seen.add(fill.execution_id)
            self.duplicates += 1
            return None
        self._seen.add(fill.execution_id)
        value = fill.qty * fill.price
        executions = self._fetch(fill.client_order_id)
        if fill.qty < 0:
            executions.take_back(fill.previous_execution_id, -fill.qty, -value)
        else:
            executions.entries.append(_Entry(fill.execution_id, fill.filled_qty, fill.qty, value))
        self.cash -= (value if fill.side is Side.BUY else -value) * contract_size(fill.symbol)
        before = self.position(fill.symbol)
        after, closed, opened = _move(before, fill.change, fill.price)
        if fill.qty < 0:
            after = undo(before, -fill.change, fill.price)
        self._set(fill.symbol, after)
        return PositionChange(
            fill=fill,
            qty_before=before.qty,
            price_before=before.price,
            qty_after=after.qty,
            price_after=after.price,
            closed=closed,
            opened=opened,
        )

    def missing_fill(self, order: VenueOrder, ts_event_ns: int, *, without: Fill | None = None) -> Fill | None:
        """Return the part of the order's total that no fill has brought, as one fill at its average price.

        The total counts as covered afterwards, so the fill that is returned has to be applied next.

        Args:
            order: as the venue tells of it.
            ts_event_ns: time that the fill gets.
            without: a fill that the total holds and that is about to be applied.
        """
        total = order.filled_qty
        if total <= 0 or order.filled_avg_price is None:
            return None
        executions = self._fetch(order.client_order_id)
        # An execution behind the total is none of its parts; one that does not say where it stands is taken as one.
        parts = [entry for entry in executions.entries if entry.filled_qty is None or entry.filled_qty <= total]
        qty = total - sum((part.qty for part in parts), ZERO)
        value = total * order.filled_avg_price - sum((part.value for part in parts), ZERO)
        if without is not None:
            qty -= without.qty
            value -= without.qty * without.price
        covered = total - (without.qty if without is not None else ZERO)
        if qty <= 0:
            return None
        executions.covered_qty = max(executions.covered_qty, covered)
        price = value / qty
        return Fill(
            execution_id=f"{order.client_order_id}:{covered:f}",
            client_order_id=order.client_order_id,
            symbol=order.symbol,
            side=order.side,
            qty=qty,
            price=price if price > 0 else order.filled_avg_price,
            ts_event_ns=ts_event_ns,
        )

    def surplus_fill(self, order: VenueOrder, ts_event_ns: int, *, execution_id: str = "") -> Fill | None:
        """Return what was applied and is no more part of the order's total, as one fill of negative quantity.

        Only of an order that is newer than all that was applied of it: an older word lacks its last fills.

        Args:
            execution_id: of the execution that was taken back, if it is known.
        """
        known = self._look_up(order.client_order_id)
        qty = known.qty - order.filled_qty if known is not None else ZERO
        if known is None or qty <= 0:
            return None
        value = known.value - order.filled_qty * (order.filled_avg_price or ZERO)
        return Fill(
            execution_id=f"{order.client_order_id}:{order.filled_qty:f}:{execution_id or known.qty}:back",
            client_order_id=order.client_order_id,
            symbol=order.symbol,
            side=order.side,
            qty=-qty,
            price=max(value / qty, ZERO),
            ts_event_ns=ts_event_ns,
            previous_execution_id=execution_id,
        )

    def adopt_qty(self, symbol: str, qty: Decimal) -> bool:
        """Take over the venue's word on a position (fees in kind make it differ); tell whether it changed anything."""
        held = self.position(symbol)
        if held.qty == qty:
            return False
        self._set(symbol, HeldPosition(qty, held.price))
        return True

    def _set(self, symbol: str, position: HeldPosition) -> None:
        if position.qty:
            self._positions[symbol] = position
        else:
            self._positions.pop(symbol, None)


def undo(after: HeldPosition, change: Decimal, price: Decimal) -> HeldPosition:
    """Return the position as it was before a signed change at a price.

    What was closed as a whole does not say at what price it was held: then it is that of the change.
    """
    qty = after.qty - change
    if not qty:
        return _FLAT
    if not after.qty or (after.qty > 0) != (qty > 0):
        return HeldPosition(qty, price)
    if (after.qty > 0) == (change > 0):  # it had added
        average = (after.price * after.qty - price * change) / qty
        return HeldPosition(qty, average if average > 0 else after.price)
    return HeldPosition(qty, after.price)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _move(before: HeldPosition, change: Decimal, price: Decimal) -> tuple[HeldPosition, Decimal, Decimal]:
    """Return the position after a signed change, and how much of the change closed and opened: Backtrader's rule."""
    qty = before.qty + change
    if not qty:
        return _FLAT, change, ZERO
    if not before.qty:
        return HeldPosition(qty, price), ZERO, change
    if (before.qty > 0) == (change > 0):
        average = (before.price * before.qty + price * change) / qty
        return HeldPosition(qty, average), ZERO, change
    if (before.qty > 0) == (qty > 0):
        return HeldPosition(qty, before.price), change, ZERO
    return HeldPosition(qty, price), -before.qty, qty
