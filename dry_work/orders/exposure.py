"""What an account holds, and what it may come to hold by its open orders. Pure.

All judgements take the worst case: every open order of one side is filled, none of the other side. Positions and
orders are those of the whole account.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal

import msgspec
from msgspec.structs import replace

from dry_work.market.symbols import contract_size
from dry_work.orders.model import TERMINAL, OrderClass, OrderRequest, OrderType, Side, VenueOrder

ZERO = Decimal(0)


def units_of(symbol: str) -> Decimal:
    """Return how many times its price a unit of a symbol is worth."""
    return Decimal(contract_size(symbol))


class RiskOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order as the gate sees it, new or open.

    `qty` is what can still be filled. Of the orders with one `group` (legs that cancel each other) one is filled. An
    order with an `entry` does not live before that is filled, and does not count while that is open.
    """

    id: str
    symbol: str
    side: Side
    type: OrderType = OrderType.MARKET
    qty: Decimal | None = None
    notional: Decimal | None = None  # money instead of a quantity
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    trail_price: Decimal | None = None
    trail_percent: Decimal | None = None
    group: str = ""
    entry: str = ""  # id of the order whose exit it is
    replaces: str = ""  # id of an open order in whose place it comes

    def worth(self, price: Decimal | None) -> Decimal | None:
        """Return the price of a unit in the worst case, None when nothing is known of it.

        A buy limit is never filled above its limit. Every other order may be filled at `price`, the last one, too; a
        trailing stop that buys begins its trail above it.
        """
        if self.side is Side.BUY and self.limit_price is not None:
            return self.limit_price
        if self.side is Side.BUY and price is not None:
            price += (self.trail_price or ZERO) + price * (self.trail_percent or ZERO) / 100
        known = [value for value in (price, self.limit_price, self.stop_price) if value is not None]
        return max(known, default=None)

    def quantity(self, price: Decimal | None) -> Decimal | None:
        """Return the quantity; that of an order over an amount of money follows from the price."""
        if self.qty is not None:
            return self.qty
        worth = self.worth(price)
        return self.notional / worth if self.notional is not None and worth else None


class Holding(msgspec.Struct, frozen=True):
    """Signed quantity of a symbol and its last price."""

    qty: Decimal
    price: Decimal


class WorstCase(msgspec.Struct, frozen=True):
    """The largest long and the largest short position that open orders can lead to; the values are positive."""

    long_value: Decimal
    short_value: Decimal

    @property
    def value(self) -> Decimal:
        return max(self.long_value, self.short_value)


class Portfolio:
    """Positions, open orders and equity of the account at one moment. `add` keeps it up with new orders.

    Args:
        equity: of the account.
        holdings: by symbol; of those with open orders also where nothing is held, for the price.
        orders: that can still be filled.
    """

    def __init__(self, equity: Decimal, holdings: Mapping[str, Holding], orders: Iterable[RiskOrder] = ()) -> None:
        self.equity = equity
        self._holdings = dict(holdings)
        self._orders: dict[str, dict[str, RiskOrder]] = {}
        self._values: dict[str, Decimal] = {}
        self._gross = ZERO
        for order in orders:
            self._place(order)
        for symbol in self._holdings.keys() | self._orders.keys():
            self._measure(symbol)

    @property
    def gross(self) -> Decimal:
        """Value of all symbols in their worst cases."""
        return self._gross

    def held(self, symbol: str) -> Decimal:
        """Return the signed quantity of a symbol."""
        found = self._holdings.get(symbol)
        return found.qty if found is not None else ZERO

    def note_price(self, symbol: str, price: Decimal | None) -> None:
        """Take note of the last price of a symbol."""
        held = self._holdings.get(symbol, Holding(ZERO, ZERO))
        if price and price != held.price:
            self._holdings[symbol] = Holding(held.qty, price)
            self._measure(symbol)

    def add(self, order: RiskOrder) -> None:
        """Count an order that is about to leave. Of one that replaces another, and of that other, one is filled."""
        self._place(order)
        self._measure(order.symbol)

    def _place(self, order: RiskOrder) -> None:
        orders = self._orders.setdefault(order.symbol, {})
        order = self._succeed(order)
        replaced = orders.get(order.replaces)
        group = order.group or order.replaces
        if replaced is not None:
            orders[order.replaces] = replace(replaced, group=group)
        orders[order.id] = replace(order, group=group)

    def _succeed(self, order: RiskOrder) -> RiskOrder:
        """Return an order with what it takes over from the one that it replaces: an exit stays the exit that it was."""
        replaced = self._orders.get(order.symbol, {}).get(order.replaces)
        if replaced is None:
            return order
        return replace(order, group=order.group or replaced.group, entry=order.entry or replaced.entry)

    def worst_case(self, symbol: str, new: RiskOrder | None = None) -> WorstCase:
        """Return the worst case of a symbol, with a new order in it."""
        holding = self._holdings.get(symbol, Holding(ZERO, ZERO))
        orders = self._living(symbol, without=new.replaces if new is not None else "")
        if new is not None:
            new = self._succeed(new)
            orders += () if self._waits(new) else (new,)
        long_value = max(holding.qty, ZERO) * holding.price
        short_value = max(-holding.qty, ZERO) * holding.price
        long_value += _opening_value(_lots(orders, Side.BUY, holding.price), covered=max(-holding.qty, ZERO))
        short_value += _opening_value(_lots(orders, Side.SELL, holding.price), covered=max(holding.qty, ZERO))
        units = units_of(symbol)
        return WorstCase(long_value * units, short_value * units)

    def shrinks(self, order: RiskOrder) -> bool:
        """Tell whether an order can do nothing but shrink a position, whatever other open orders are filled."""
        held = self.held(order.symbol)
        if not held or (held > 0) == (order.side is Side.BUY):
            return False
        price = self._holdings[order.symbol].price
        order = self._succeed(order)
        others = self._living(order.symbol, without=order.replaces)
        if order.quantity(price) is None or self._waits(order):
            return False
        return sum((qty for qty, _ in _lots([*others, order], order.side, price)), ZERO) <= abs(held)

    def entries(self) -> list[str]:
        """Return the ids of the open orders that can do more than shrink a position, oldest first."""
        found: list[str] = []
        for symbol in self._orders:
            kept = Portfolio(self.equity, self._holdings)
            for order in self._living(symbol):
                if kept.shrinks(order):
                    kept._orders.setdefault(symbol, {})[order.id] = order
                else:
                    found.append(order.id)
        return found

    def _living(self, symbol: str, *, without: str = "") -> list[RiskOrder]:
        """Return the open orders of a symbol that can be filled now."""
        orders = self._orders.get(symbol, {})
        return [order for order in orders.values() if order.id != without and not self._waits(order)]

    def _waits(self, order: RiskOrder) -> bool:
        """Tell whether an order is the exit of an entry that is still open."""
        return order.entry in self._orders.get(order.symbol, {})

    def _measure(self, symbol: str) -> None:
        value = self.worst_case(symbol).value
        self._gross += value - self._values.get(symbol, ZERO)
        self._values[symbol] = value


def _lots(orders: Iterable[RiskOrder], side: Side, price: Decimal | None) -> list[tuple[Decimal, Decimal]]:
    """Return (quantity, price of a unit) of the orders of a side; a group counts once, with its largest."""
    lots: list[tuple[Decimal, Decimal]] = []
    groups: dict[str, tuple[Decimal, Decimal]] = {}
    for order in orders:
        if order.side is not side:
            continue
        lot = (order.quantity(price) or ZERO, order.worth(price) or ZERO)
        if order.notional is not None and not lot[1]:
            lot = (order.notional, Decimal(1))  # of a symbol without a price at least the money is known
        if not order.group:
            lots.append(lot)
        else:
            before = groups.get(order.group, (ZERO, ZERO))
            groups[order.group] = (max(before[0], lot[0]), max(before[1], lot[1]))
    return [*lots, *groups.values()]


def _opening_value(lots: list[tuple[Decimal, Decimal]], *, covered: Decimal) -> Decimal:
    """Return the value of what is opened when the cheapest cover what is held the other way."""
    value = ZERO
    for qty, price in sorted(lots, key=lambda lot: lot[1]):
        closing = min(qty, covered)
        covered -= closing
        value += (qty - closing) * price
    return value


# Requests and venue's orders as the gate sees them


def describe_request(request: OrderRequest, *, replaces: str = "") -> tuple[RiskOrder, ...]:
    """Return the order of a request and, behind it, the exits that come with it.

    Args:
        request: as it is sent.
        replaces: id of the open order in whose place it comes.
    """
    name, kind = request.client_order_id, request.order_class
    is_exit = kind is OrderClass.OCO
    order = RiskOrder(
        id=name,
        symbol=request.symbol,
        side=request.side,
        type=request.type,
        qty=request.qty,
        notional=request.notional,
        limit_price=request.limit_price,
        stop_price=request.stop_price,
        trail_price=request.trail_price,
        trail_percent=request.trail_percent,
        group=f"{name}:exits" if is_exit else "",
        replaces=replaces,
    )
    if kind is OrderClass.SIMPLE:
        return (order,)
    opposite = Side.SELL if request.side is Side.BUY else Side.BUY
    exits = RiskOrder(
        id=name,
        symbol=request.symbol,
        side=request.side if is_exit else opposite,
        qty=request.qty,
        notional=request.notional,
        group=f"{name}:exits",
        entry="" if is_exit else name,
    )
    found = [order]
    if request.take_profit is not None and not is_exit:
        found.append(replace(exits, id=f"{name}:profit", type=OrderType.LIMIT, limit_price=request.take_profit))
    if request.stop_loss is not None:
        stop = request.stop_loss
        kind_of_stop = OrderType.STOP if stop.limit_price is None else OrderType.STOP_LIMIT
        found.append(
            replace(
                exits, id=f"{name}:stop", type=kind_of_stop, stop_price=stop.stop_price, limit_price=stop.limit_price
            )
        )
    return tuple(found)


def describe_open_order(order: VenueOrder, *, entry: str = "") -> Iterator[RiskOrder]:
    """Yield an open order of the venue and the legs that are listed in it, under the venue's ids."""
    # Legs that cancel each other were made together; what else they have in common the venue does not list.
    is_linked = order.order_class not in ("", OrderClass.SIMPLE)
    group = f"{order.order_class}:{order.side}:{order.qty}:{order.created_ns}" if is_linked else ""
    notional = None if order.notional is None or order.qty is not None else order.notional
    yield RiskOrder(
        id=order.id,
        symbol=order.symbol,
        side=order.side,
        type=order.type,
        qty=None if order.qty is None else max(order.qty - order.filled_qty, ZERO),
        notional=notional,
        limit_price=order.limit_price,
        stop_price=order.stop_price,
        group=group,
        entry=entry,
    )
    entry = "" if order.order_class == OrderClass.OCO else order.id
    for leg in order.legs:
        if leg.status not in TERMINAL:
            yield from describe_open_order(leg, entry=entry)
