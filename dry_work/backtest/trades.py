"""Fills into trades: round trips from flat to flat, at average cost. Pure.

A trade begins when a flat position is opened and ends when it is flat again, as Backtrader's own `Trade` does, so that
its numbers are those that `notify_trade` and the trade analyzers tell. What is sold in parts is measured against the
average cost of what is held, as Backtrader's and Alpaca's positions are; over a whole round trip FIFO gives the same.
A fill that turns a position round ends one trade and begins the next, and its commission is shared by quantity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from dry_work.market.symbols import contract_size
from dry_work.wire.pubsub import parse_time

# What is left of a position by rounding of its fills, as a part of its largest size, is nothing.
REST = 1e-9


class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """A fill, or the part of a fill that belongs to one trade."""

    time_ns: int
    side: str  # buy or sell
    qty: float  # positive
    price: float
    commission: float
    is_entry: bool


class Trade(msgspec.Struct, frozen=True, kw_only=True):
    """One round trip, or the open rest of one. Prices are averages; money is in the account's currency."""

    number: int  # from 1, in order of entry
    symbol: str
    direction: str  # long or short
    entry_ns: int  # first fill
    exit_ns: int | None  # the fill that made the position flat; None while it is open
    qty: float  # all that was entered
    open_qty: float  # what is still held, positive
    entry_price: float
    exit_price: float | None  # None as long as nothing was closed
    gross_pnl: float  # of what was closed, before costs
    commission: float  # of all fills so far
    open_pnl: float | None  # of what is still held, at the last known price; None when there is none
    executions: tuple[Execution, ...]

    @property
    def is_open(self) -> bool:
        """Whether something is still held."""
        return self.exit_ns is None

    @property
    def pnl(self) -> float:
        """Realised profit or loss after costs."""
        return self.gross_pnl - self.commission

    @property
    def return_share(self) -> float | None:
        """`pnl` as a fraction of the value entered; None when that is not positive."""
        value = self.qty * self.entry_price * contract_size(self.symbol)
        return self.pnl / value if value > 0 else None

    @property
    def holding_ns(self) -> int | None:
        """Time from the first fill to the last; None while the trade is open."""
        return None if self.exit_ns is None else self.exit_ns - self.entry_ns


class _Holding:
    """The position of one symbol and the trade that it belongs to."""

    def __init__(self, symbol: str, number: int, first: Execution) -> None:
        self.symbol = symbol
        self.number = number
        self.sign = 1 if first.side == "buy" else -1
        self.held = 0.0
        self.average = 0.0
        self.peak = 0.0
        self.gross = 0.0
        self.executions: list[Execution] = []

    def enter(self, execution: Execution) -> None:
        self.executions.append(execution)
        cost = self.held * self.average + execution.qty * execution.price
        self.held += execution.qty
        self.average = cost / self.held
        self.peak = max(self.peak, self.held)

    def leave(self, execution: Execution) -> None:
        self.executions.append(execution)
        self.gross += self.sign * execution.qty * (execution.price - self.average)
        self.held -= execution.qty
        if self.held <= REST * self.peak:
            self.held = 0.0

    def trade(self, mark: float | None = None) -> Trade:
        entries = [each for each in self.executions if each.is_entry]
        exits = [each for each in self.executions if not each.is_entry]
        qty = sum(each.qty for each in entries)
        left = sum(each.qty for each in exits)
        is_open, units = self.held > 0, contract_size(self.symbol)
        return Trade(
            number=self.number,
            symbol=self.symbol,
            direction="long" if self.sign > 0 else "short",
            entry_ns=entries[0].time_ns,
            exit_ns=None if is_open else exits[-1].time_ns,
            qty=qty,
            open_qty=self.held,
            entry_price=sum(each.qty * each.price for each in entries) / qty,
            exit_price=sum(each.qty * each.price for each in exits) / left if left else None,
            gross_pnl=self.gross * units,
            commission=sum(each.commission for each in self.executions),
            open_pnl=self.sign * self.held * (mark - self.average) * units if is_open and mark is not None else None,
            executions=tuple(self.executions),
        )


def build_trades(fills: Iterable[Mapping[str, Any]], marks: Mapping[str, float] | None = None) -> list[Trade]:
    """Return the round trips of fills, in order of entry; open ones are among them.

    Args:
        fills: in order of execution, each with `time` (ISO 8601), `symbol`, `side`, `qty` (positive), `price` and, when
            there is one, `commission`. It is taken that nothing was held before the first.
        marks: last known price by symbol, to value what is still held.
    """
    holdings: dict[str, _Holding] = {}
    ended: list[Trade] = []
    count = 0
    for fill in fills:
        symbol, side, qty = str(fill["symbol"]), str(fill["side"]), float(fill["qty"])
        if qty <= 0:
            continue
        price, commission = float(fill["price"]), float(fill.get("commission") or 0.0)
        time_ns = parse_time(str(fill["time"]))
        holding = holdings.get(symbol)
        left = qty
        if holding is not None and (side == "buy") != (holding.sign > 0):
            part = min(left, holding.held)
            if left - part <= REST * holding.peak:
                part = left  # a difference by rounding turns no position round
            holding.leave(_execution(time_ns, side, part, price, commission * part / qty, is_entry=False))
            left -= part
            if not holding.held:
                ended.append(holding.trade())
                del holdings[symbol]
                holding = None
        if left > 0:
            execution = _execution(time_ns, side, left, price, commission * left / qty, is_entry=True)
            if holding is None:
                count += 1
                holding = holdings[symbol] = _Holding(symbol, count, execution)
            holding.enter(execution)
    marks = marks or {}
    still_open = [holding.trade(marks.get(symbol)) for symbol, holding in holdings.items()]
    return sorted([*ended, *still_open], key=lambda trade: trade.number)


def _execution(time_ns: int, side: str, qty: float, price: float, commission: float, *, is_entry: bool) -> Execution:
    return Execution(time_ns=time_ns, side=side, qty=qty, price=price, commission=commission, is_entry=is_entry)
