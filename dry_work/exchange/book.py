"""The orders of one account and the trade events they make. Pure."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from msgspec.structs import replace

from dry_work.exchange.account import EXACT, ZERO, Account, AccountSettings
from dry_work.exchange.groups import OrderGroup, build_head, build_legs
from dry_work.exchange.identifiers import EventIds, build_client_order_id, build_execution_id, build_order_id
from dry_work.exchange.order_rules import CODE_FUNDS, INSUFFICIENT_BUYING_POWER
from dry_work.orders.model import TERMINAL, OrderClass, OrderRequest, OrderStatus, Side, TradeEvent, VenueOrder


class BustEvent(TradeEvent, frozen=True, kw_only=True):
    """An execution is taken back; the quantity is that of the execution, negative."""

    previous_execution_id: str  # of the execution


class OpenOrder:
    """An order, and what the matcher has to remember of it."""

    __slots__ = (
        "active_ns",
        "cancel_requested",
        "check_price",
        "closing_ns",
        "closing_price",
        "executions",
        "expires_ns",
        "group",
        "is_active",
        "is_held",
        "is_landed",
        "order",
        "remaining",
        "seen_ns",
        "successor",
        "triggered",
    )

    def __init__(self, order: VenueOrder, qty: Decimal) -> None:
        self.order = order
        self.remaining = qty  # of an order by value: what the value is thought to buy, until its first execution
        self.group: OrderGroup[OpenOrder] | None = None
        self.is_active = True  # False: a leg whose entry has not been filled
        self.is_held = False  # shown as `held`: waits for its entry, or behind the other exit
        self.active_ns = order.created_ns  # what ended by then does not match it
        self.is_landed = True  # False: has yet to take its predecessor's place
        self.closing_price: Decimal | None = None  # of an order for the close: the last close that it has seen
        self.closing_ns = 0  # end of the session at whose close it executes
        self.seen_ns = 0  # when the last close was
        self.executions = 0
        self.triggered = False  # the stop of a stop-limit order was hit
        self.check_price: Decimal | None = None  # what its funds were checked with; None: no price was known
        self.expires_ns: int | None = None
        self.cancel_requested = False  # a cancel is on its way to the market
        self.successor: OpenOrder | None = None  # an order that is on its way to take this one's place

    @property
    def change(self) -> Decimal:
        """The signed quantity that is still to execute."""
        return self.remaining if self.order.side is Side.BUY else self.remaining.copy_negate()

    @property
    def is_done(self) -> bool:
        """Whether nothing happens to the order any more."""
        return self.order.status in TERMINAL


class Book:
    """All orders of an account, and the account. Every change of an order is told through `emit`."""

    def __init__(
        self, key_id: str, account: Account, *, emit: Callable[[str, TradeEvent], None], event_ids: EventIds
    ) -> None:
        self.key_id = key_id
        self.account = account
        self.settings = AccountSettings()
        self.orders: dict[str, OpenOrder] = {}  # by id, oldest first
        self.by_client_id: dict[str, OpenOrder] = {}
        self.submitted: list[OpenOrder] = []  # wait for the funds check of rule set `backtrader`
        self.pending: list[OpenOrder] = []  # open, in the order of matching
        self.changing: list[OpenOrder] = []  # with a cancel or replacement on its way, rule set `alpaca`
        self.activating: list[OpenOrder] = []  # legs that are active from the next slice on, rule set `backtrader`
        self._emit = emit
        self._event_ids = event_ids

    def add(self, request: OrderRequest, status: OrderStatus, now_ns: int, *, replaces: str = "") -> OpenOrder:
        """Make an order of a checked request, in the place of the order `replaces`; nothing is told yet."""
        number = len(self.orders) + 1
        order = VenueOrder(
            id=build_order_id(self.key_id, number),
            client_order_id=request.client_order_id or build_client_order_id(self.key_id, number),
            symbol=request.symbol,
            side=request.side,
            type=request.type,
            time_in_force=request.time_in_force,
            status=status,
            qty=request.qty,
            notional=request.notional,
            limit_price=request.limit_price,
            stop_price=request.stop_price,
            trail_price=request.trail_price,
            trail_percent=request.trail_percent,
            extended_hours=request.extended_hours,
            order_class=request.order_class,
            created_ns=now_ns,
            updated_ns=now_ns,
            submitted_ns=now_ns,
            replaces=replaces,
            commission=request.commission,
        )
        entry = OpenOrder(order, request.qty or ZERO)
        self.orders[order.id] = entry
        self.by_client_id[order.client_order_id] = entry
        return entry

    def add_all(
        self, request: OrderRequest, status: OrderStatus, now_ns: int, *, leg_status: OrderStatus
    ) -> tuple[OpenOrder, list[OpenOrder]]:
        """Make the order of a checked request and its legs; nothing is told yet. Legs of an entry are not active."""
        head = self.add(build_head(request), status, now_ns)
        if request.order_class is OrderClass.SIMPLE:
            return head, []
        legs = [self.add(leg, leg_status, now_ns) for leg in build_legs(request)]
        group = OrderGroup(request.order_class, head, legs)
        for member in group.members:
            member.group = group
        for leg in legs:
            leg.is_active = request.order_class is OrderClass.OCO
        return head, legs

    def open_orders(self) -> list[OpenOrder]:
        """Return all orders that are not at their end, those that wait for others too."""
        found: dict[str, OpenOrder] = {}
        for entry in (*self.pending, *self.submitted):
            for member in (entry, *(() if entry.group is None else entry.group.members)):
                if not member.is_done:
                    found.setdefault(member.order.id, member)
        return list(found.values())

    def nested(self, entry: OpenOrder) -> VenueOrder:
        """Return an order with its legs, in their present form, when it is the head of a group."""
        group = entry.group
        if group is None or entry is not group.head:
            return entry.order
        return replace(entry.order, legs=tuple(leg.order for leg in group.legs))

    def set_status(self, entry: OpenOrder, status: OrderStatus, now_ns: int) -> None:
        """Give the order a status that is also the name of its event: new, canceled, replaced, ..."""
        order = replace(entry.order, status=status, updated_ns=now_ns)
        if status is OrderStatus.CANCELED:
            order = replace(order, canceled_ns=now_ns)
        elif status is OrderStatus.EXPIRED:
            order = replace(order, expired_ns=now_ns)
        elif status is OrderStatus.REPLACED:
            order = replace(order, replaced_ns=now_ns)
        entry.order = order
        self.tell(entry, status.value, now_ns)

    def tell(self, entry: OpenOrder, event: str, now_ns: int) -> None:
        """Tell an event that leaves the order as it is."""
        self._tell(TradeEvent(event=event, event_id="", ts_event_ns=now_ns, order=entry.order), now_ns)

    def reject(
        self, entry: OpenOrder, now_ns: int, *, code: int = CODE_FUNDS, message: str = INSUFFICIENT_BUYING_POWER
    ) -> None:
        """End an order, or what is left of it, by default for lack of money."""
        entry.order = replace(
            entry.order,
            status=OrderStatus.REJECTED,
            updated_ns=now_ns,
            failed_ns=now_ns,
            reject_reason=message,
        )
        event = TradeEvent(
            event="rejected",
            event_id="",
            ts_event_ns=now_ns,
            order=entry.order,
            code=code,
            message=message,
        )
        self._tell(event, now_ns)

    def fill(self, entry: OpenOrder, qty: Decimal, price: Decimal, *, fill_ns: int, now_ns: int) -> None:
        """Enter an execution of `qty` at `price` that the account has booked; `fill_ns` is the end of its bar."""
        before = entry.order
        filled_qty = EXACT.add(before.filled_qty, qty)
        average = price
        if before.filled_avg_price is not None:
            average = (before.filled_avg_price * before.filled_qty + price * qty) / filled_qty
        entry.remaining = EXACT.subtract(entry.remaining, qty)
        if before.commission and not entry.executions:
            self.account.charge(before.commission)
        entry.executions += 1
        is_complete = not entry.remaining
        entry.order = replace(
            before,
            status=OrderStatus.FILLED if is_complete else OrderStatus.PARTIALLY_FILLED,
            filled_qty=filled_qty,
            filled_avg_price=average,
            updated_ns=now_ns,
            filled_ns=fill_ns if is_complete else before.filled_ns,
        )
        event = TradeEvent(
            event="fill" if is_complete else "partial_fill",
            event_id="",
            ts_event_ns=fill_ns,
            order=entry.order,
            execution_id=build_execution_id(before.id, entry.executions),
            price=price,
            qty=qty,
            position_qty=self.account.qty(before.symbol),
        )
        self._tell(event, now_ns)

    def take_back(self, fill: TradeEvent, now_ns: int) -> None:
        """Tell that an execution was taken back, which the account has booked; the order keeps its status."""
        assert fill.qty is not None
        assert fill.price is not None
        entry = self.orders[fill.order.id]
        before = entry.order
        left = EXACT.subtract(before.filled_qty, fill.qty)
        average = None
        if left and before.filled_avg_price is not None:
            average = (before.filled_avg_price * before.filled_qty - fill.price * fill.qty) / left
        entry.executions += 1
        entry.order = replace(before, filled_qty=left, filled_avg_price=average, updated_ns=now_ns)
        event = BustEvent(
            event="trade_bust",
            event_id="",
            ts_event_ns=now_ns,
            order=entry.order,
            execution_id=build_execution_id(before.id, entry.executions),
            previous_execution_id=fill.execution_id,
            price=fill.price,
            qty=-fill.qty,
            position_qty=self.account.qty(before.symbol),
        )
        self._tell(event, now_ns)

    def drop_done(self) -> None:
        """Take the orders that are at their end out of `pending`."""
        self.pending = [entry for entry in self.pending if not entry.is_done]

    def _tell(self, event: TradeEvent, now_ns: int) -> None:
        self._emit(self.key_id, replace(event, event_id=self._event_ids.take(now_ns)))
