"""Brokers of a backtest: BackBroker with one guard, and one for feeds that are resampled."""

from __future__ import annotations

from typing import Any

import backtrader as bt
from backtrader.position import Position

from dry_work.broker.option_scheme import fit_scheme


class BacktestBroker(bt.brokers.BackBroker):
    """BackBroker that does not match a limit or stop order against a bar that ended before the order was made.

    Stock does that when another symbol ticks: the order's own symbol shows its last bar until the next one comes, and
    the order is tried on it again. Orders at market wait for a new bar in stock too, so for them nothing changes.

    Params:
        guard: False gives BackBroker as it is.
    """

    params = (("guard", True),)

    def __init__(self) -> None:
        super().__init__()
        self._option_schemes: dict[int, Any] = {}

    def getcommissioninfo(self, data: Any) -> Any:
        """Return the commission scheme of a data; of an option it counts 100 shares a contract."""
        return fit_scheme(super().getcommissioninfo(data), data, self._option_schemes)

    def submit(self, order: Any, check: bool = True) -> Any:
        """Take an order and note the time at which its strategy made it."""
        order.made_at = order.owner.lines.datetime[0]
        return super().submit(order, check)

    def _try_exec(self, order: Any) -> None:
        if self.p.guard and order.exectype != bt.Order.Market and order.data.datetime[0] <= order.made_at:
            return
        super()._try_exec(order)


class SymbolBroker(BacktestBroker):
    """A broker that knows that a feed and its resampled forms are one symbol, as an account does.

    A position is the symbol's, whichever of its datas is asked for, and an order for a longer data is matched with
    the bars of the symbol's shortest one. BackBroker keeps a position for each data.
    """

    def start(self) -> None:
        """Begin with no positions; the datas are known by now."""
        super().start()
        shortest: dict[str, Any] = {}
        for data in self.cerebro.datas:
            shortest.setdefault(data.symbol, data)
        self._bases = {data: shortest[data.symbol] for data in self.cerebro.datas if data is not shortest[data.symbol]}
        self.positions = _SymbolPositions(self._bases)

    def notify(self, order: Any) -> None:
        """Tell of an order under the data that it was made for."""
        super().notify(order)
        self.notifs[-1].data = getattr(order, "made_for", order.data)

    def _try_exec(self, order: Any) -> None:
        base = self._bases.get(order.data)
        if base is None:
            super()._try_exec(order)
            return
        order.made_for = order.data
        order.data = base
        try:
            super()._try_exec(order)
        finally:
            order.data = order.made_for


class _SymbolPositions(dict[Any, Position]):
    """Positions by the shortest data of each symbol; any data of it finds them."""

    def __init__(self, bases: dict[Any, Any]) -> None:
        super().__init__()
        self._bases = bases

    def __getitem__(self, data: Any) -> Position:
        return super().__getitem__(self._bases.get(data, data))

    def __missing__(self, data: Any) -> Position:
        position = self[data] = Position()
        return position
