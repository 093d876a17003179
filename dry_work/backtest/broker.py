"""Brokers of a backtest: BackBroker with one guard, and one for feeds that are resampled."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from typing import Any

import backtrader as bt
from backtrader.position import Position

from dry_work.broker.option_scheme import fit_scheme

_UNGUARDED = (bt.Order.Market, bt.Order.Historical)


class BacktestBroker(bt.brokers.BackBroker):
    """BackBroker that does not match a limit or stop order against a bar that ended before the order was made.

    Stock does that when another symbol ticks: the order's own symbol shows its last bar until the next one comes, and
    the order is tried on it again. Orders at market wait for a new bar in stock too, and those of `add_order_history`
    are filled at once, so for them nothing changes.

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

    def start(self) -> None:
        """Begin a run; its datas are known by now."""
        super().start()
        self._sources = [data for data in self.cerebro.datas if not data._clone]

    def submit(self, order: Any, check: bool = True) -> Any:
        """Take an order and note the time at which its strategy made it."""
        self._stamp(order)
        return super().submit(order, check)

    def _stamp(self, order: Any) -> None:
        """Note when an order is placed, by the market, and from which time on bars may fill it."""
        owner, cerebro = order.owner, self.cerebro
        clock = owner.lines.datetime[0] if len(owner) else -math.inf
        order.placed_at = self._market_time(order.data, clock)
        # Timers that cheat, and `next_open`, may place orders that the slice's own bars fill.
        order.made_at = clock if cerebro._timerscheat or cerebro.p.cheat_on_open else order.placed_at

    def _market_time(self, data: Any, clock: float) -> float:
        """Return the end of the slice at hand, as a line holds it.

        Args:
            data: one of the run.
            clock: of a strategy. It is behind the market while timers are told, and ahead of it when the open bars of
                resamplers come at the end of the data.
        """
        time: float = data.lines.datetime[0]
        if not data._clone and (time > clock or (time == clock and not self.cerebro._timers)):
            return time
        return float(max(each.lines.datetime[0] for each in self._sources if len(each)))

    def _try_exec(self, order: Any) -> None:
        if self.p.guard and order.exectype not in _UNGUARDED and order.data.datetime[0] <= order.made_at:
            return
        super()._try_exec(order)


class SymbolBroker(BacktestBroker):
    """A broker that knows that a feed and its resampled forms are one symbol, as an account does.

    A position is the symbol's, whichever of its datas is asked for. An order for a longer data is, to the broker, one
    for the symbol's shortest data, while strategies see it as it was made. BackBroker keeps a position for each data,
    and matches an order with bars of its own data.
    """

    def start(self) -> None:
        """Begin with no positions; the datas are known by now."""
        super().start()
        shortest: dict[str, Any] = {}
        for data in self.cerebro.datas:
            shortest.setdefault(data.symbol, data)
        self._bases = {data: shortest[data.symbol] for data in self.cerebro.datas if data is not shortest[data.symbol]}
        self.positions = _SymbolPositions(self._bases)
        self._asked: Any = None  # the longer data of the order that is being made
        self._longer: list[_Disguise] = []  # of open orders

    def buy(self, owner: Any, data: Any, *args: Any, **given: Any) -> Any:
        """Place a buy order; see `bt.Strategy.buy`."""
        return self._place(super().buy, owner, data, *args, **given)

    def sell(self, owner: Any, data: Any, *args: Any, **given: Any) -> Any:
        """Place a sell order; see `bt.Strategy.sell`."""
        return self._place(super().sell, owner, data, *args, **given)

    def _place(
        self,
        place: Callable[..., Any],
        owner: Any,
        data: Any,
        size: float,
        price: float | None = None,
        plimit: float | None = None,
        exectype: int | None = None,
        valid: Any = None,
        **given: Any,
    ) -> Any:
        base = self._bases.get(data)
        if base is None:
            return place(owner, data, size, price, plimit, exectype, valid, **given)
        # What a live order takes from its data, it takes from the longer one.
        if not price and not plimit and exectype in (bt.Order.Limit, bt.Order.Stop, bt.Order.StopLimit):
            price = data.close[0]
        if isinstance(valid, dt.timedelta) and valid != bt.Order.DAY:
            valid = data.datetime.datetime() + valid
        self._asked = data
        try:
            return place(owner, base, size, price, plimit, exectype, valid, **given)
        finally:
            self._asked = None

    def _stamp(self, order: Any) -> None:
        super()._stamp(order)
        if self._asked is not None:
            order.disguise = disguise = _Disguise(order, self._asked)
            self._longer.append(disguise)
            disguise.put_on()

    def next(self) -> None:
        """Match the orders, those for longer datas as ones for the shortest."""
        longer = self._longer
        if not longer:
            super().next()
            return
        for disguise in longer:
            disguise.take_off()
        try:
            super().next()
        finally:
            for disguise in longer:
                disguise.put_on()
            self._longer = [disguise for disguise in longer if disguise.order.alive()]

    def notify(self, order: Any) -> None:
        """Tell of an order under the data that it was made for."""
        disguise = getattr(order, "disguise", None)
        if disguise is None:
            super().notify(order)
            return
        if order.status in _ENDS_WITHOUT_FILL:
            order.executed.dt = disguise.data.datetime[0]
        super().notify(order)
        self.notifs[-1].data = disguise.data


_ENDS_WITHOUT_FILL = frozenset({bt.Order.Canceled, bt.Order.Expired, bt.Order.Margin, bt.Order.Rejected})


class _Disguise:
    """What an order for a longer data shows to strategies: that data, with the time and the close that it had.

    Args:
        order: as Backtrader made it, for the shortest data.
        data: the longer one.
    """

    def __init__(self, order: Any, data: Any) -> None:
        self.order = order
        self.data = data
        created = order.created
        self._base = order.data
        # Market orders have a price for the check of the cash alone; others keep theirs, and trailing ones move it.
        unpriced = order.exectype in (bt.Order.Market, bt.Order.Close) and created.price == created.pclose
        names = ("dt", "pclose", "price") if unpriced else ("dt", "pclose")
        close = data.close[0]
        self._shown = dict(zip(names, (data.datetime[0], close, close), strict=False))
        self._real = {name: getattr(created, name) for name in names}

    def put_on(self) -> None:
        """Show the longer data."""
        self.order.data = self.data
        vars(self.order.created).update(self._shown)

    def take_off(self) -> None:
        """Show the shortest data, as the broker wants it."""
        self.order.data = self._base
        vars(self.order.created).update(self._real)


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
