"""BackBroker's account during a lean run: value and leverage computed when they are read, not at every bar.

Stock computes them at the end of every `broker.next()`. Between that and the next bar neither prices nor positions
move, so the first reading gives the same; what could come between (cash added or set, another commission scheme)
settles the account first. Orders, fills and cash are Backtrader's own code; its `next` only finds no open positions
to renew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import backtrader as bt
from backtrader.comminfo import CommInfoBase
from backtrader.order import BuyOrder, OrderData, SellOrder
from backtrader.position import Position

from dry_work.backtest.broker import BacktestBroker
from dry_work.backtest.lean_lines import Cursor
from dry_work.broker.option_scheme import is_contract

_METHODS = (
    "getvalue",
    "getvaluesize",
    "profitandloss",
    "get_leverage",
    "cashadjust",
    "get_credit_interest",
    "_get_credit_interest",
    "stocklike",
)


def is_simple(scheme: Any) -> bool:
    """Say whether a commission scheme only costs at fills: stock-like, no interest, Backtrader's own valuation."""
    kind = type(scheme)
    return (
        isinstance(scheme, CommInfoBase)
        and all(getattr(kind, name) is getattr(CommInfoBase, name) for name in _METHODS)
        and not any(name in scheme.__dict__ for name in _METHODS)
        and bool(scheme._stocklike)
        and scheme._creditrate == 0.0
    )


class _Position(Position):
    """An open position's time and base price, which stock renews at every bar: those of its feed's bar."""

    _feed: Any

    @property
    def datetime(self) -> Any:
        if self.size:
            return self._feed.datetime.datetime()
        if "datetime" in self.__dict__:
            return self.__dict__["datetime"]
        raise AttributeError("'Position' object has no attribute 'datetime'")

    @datetime.setter
    def datetime(self, value: Any) -> None:
        self.__dict__["datetime"] = value

    @property
    def adjbase(self) -> Any:
        return self._feed.close[0] if self.size else self.__dict__["adjbase"]

    @adjbase.setter
    def adjbase(self, value: Any) -> None:
        self.__dict__["adjbase"] = value

    def __reduce_ex__(self, protocol: Any) -> Any:  # copies are plain positions and stand still
        return _make_position, (_settled_state(self),)


def _make_position(state: dict[str, Any]) -> Position:
    position: Position = object.__new__(Position)
    position.__dict__.update(state)
    return position


def _settled_state(position: _Position) -> dict[str, Any]:
    state = {name: value for name, value in position.__dict__.items() if name != "_feed"}
    if position.size:
        state.update(datetime=position.datetime, adjbase=position.adjbase)
    return state


def adopt(position: Position, feed: Any) -> None:
    """Let a position give its time and base price when they are read."""
    position.__class__ = _Position
    position._feed = feed


# Who asks for the name of the class gets Backtrader's.
_Position.__name__, _Position.__qualname__, _Position.__module__ = (
    Position.__name__,
    Position.__qualname__,
    Position.__module__,
)

_SETTLED = ("_value", "_fundval", "_valuemkt", "_valuelever", "_valuemktlever", "_leverage", "_unrealized")


def _settled(name: str) -> property:
    def read(self: Any) -> Any:
        if self.lean_seen != self.lean_clock.index:
            self.settle()
        return self.__dict__[name]

    def write(self: Any, value: Any) -> None:
        if self.lean_seen != self.lean_clock.index:
            self.settle()
        self.__dict__[name] = value

    return property(read, write)


def _settling(name: str) -> Any:
    """Return a method that settles the account before it does what Backtrader's does."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.lean_seen != self.lean_clock.index:
            self.settle()
        return getattr(super(_Account, self), name)(*args, **kwargs)

    return method


class _PositionsInNext:
    """The positions as the broker's `next` sees them: they are found, but there are none to renew for the bar.

    What stock would have renewed is given to a position when it is used: its base price, the close of the bar before.
    """

    def __init__(self, group_of: Mapping[int, int]) -> None:
        self._group_of = group_of
        self._groups: Sequence[int] = ()
        self._used: set[int] = set()
        self.positions: Any = None

    def begin(self, positions: Any, groups: Sequence[int]) -> None:
        self.positions = positions
        self._groups = groups
        self._used.clear()

    def items(self) -> tuple[()]:
        return ()

    def __getitem__(self, feed: Any) -> Position:
        position: Position = self.positions[feed]
        if id(feed) not in self._used:
            self._used.add(id(feed))
            if type(position) is Position:
                adopt(position, feed)
            elif position.size:
                close = feed.lines.close
                moved = self._group_of[id(close)] in self._groups
                position.adjbase = close[-1 if moved else 0]
        return position


class _Account:
    """What a BackBroker is given for the time of a lean run."""

    lean_clock: Cursor  # one step for every `next` of the broker, done or left out
    lean_seen: int  # the step for which the account was settled last
    lean_forced: list[str]  # reasons for calling Backtrader's `next` at every bar from now on
    lean_view: _PositionsInNext
    _cash_addition: Any
    notifs: Any
    positions: Any
    comminfo: dict[Any, Any]
    next: Any
    p: Any

    @property
    def cash(self) -> Any:
        return self.__dict__["cash"]

    @cash.setter
    def cash(self, value: Any) -> None:
        if self.lean_seen != self.lean_clock.index:
            self.settle()
        self.__dict__["cash"] = value

    def settle(self) -> None:
        """Compute value and leverage as `_get_value` does, in the same order of additions."""
        self.lean_seen = self.lean_clock.index
        state = self.__dict__
        comminfo = self.comminfo
        default = comminfo[None]
        shortcash = self.p.shortcash
        value = unlevered = unrealized = 0.0
        for data, position in self.positions.items():
            scheme = comminfo.get(data._name, default)
            size = position.size
            close = data.close[0]
            held = size * close if shortcash else abs(scheme.getvalue(position, close))
            gain = size * (close - position.price) * scheme.p.mult
            value += held
            unrealized += gain
            if held > 0:
                unlevered += (held - gain) / scheme.p.leverage
                unlevered += gain
            else:
                unlevered += held
        cash = state["cash"]
        state["_value"] = cash + unlevered
        state["_fundval"] = state["_value"] / state["_fundshares"]
        state["_valuemkt"] = unlevered
        state["_valuelever"] = cash + value
        state["_valuemktlever"] = value
        state["_leverage"] = value / (unlevered or 1.0)
        state["_unrealized"] = unrealized

    def setcommission(self, *args: Any, **kwargs: Any) -> None:
        self._renew_schemes("setcommission", *args, **kwargs)

    def addcommissioninfo(self, *args: Any, **kwargs: Any) -> None:
        self._renew_schemes("addcommissioninfo", *args, **kwargs)

    def set_filler(self, *args: Any, **kwargs: Any) -> None:
        self._renew_schemes("set_filler", *args, **kwargs)

    def _renew_schemes(self, name: str, *args: Any, **kwargs: Any) -> None:
        if self.lean_seen != self.lean_clock.index:
            self.settle()
        getattr(super(), name)(*args, **kwargs)
        if self.p.filler is not None or not all(map(is_simple, self.comminfo.values())):
            self.force(name)

    def force(self, reason: str) -> None:
        """Settle, and let Backtrader's `next` do all of its work at every bar from now on."""
        if self.lean_seen != self.lean_clock.index:
            self.settle()
        if not self.lean_forced:
            self.release_positions()
        self.lean_forced.append(reason)

    def run_next(self, groups: Sequence[int]) -> None:
        """Run Backtrader's `next` at a step at which the feeds of `groups` have moved."""
        clock = self.lean_clock
        self.lean_seen = clock.index  # the account of the bar before cannot be asked for any more
        if self.lean_forced:
            self.next()
            clock.index += 1
            self.lean_seen = clock.index
            return
        positions = self.positions
        self.positions = self.lean_view
        self.lean_view.begin(positions, groups)
        try:
            self.next()
        finally:
            self.positions = positions
        clock.index += 1

    def release_positions(self) -> None:
        """Make the positions plain again, as they stand."""
        for position in self.positions.values():
            if type(position) is _Position:
                state = _settled_state(position)
                position.__class__ = Position
                position.__dict__.clear()
                position.__dict__.update(state)

    def notify(self, order: Any) -> None:
        """Announce an order with a copy of it, as stock does; a plain one is copied without asking how."""
        kind = type(order)
        if kind not in (BuyOrder, SellOrder) or type(order.executed) is not OrderData:
            super().notify(order)  # type: ignore[misc]
            return
        order.executed.markpending()
        executed = object.__new__(OrderData)
        executed.__dict__ = order.executed.__dict__.copy()
        copied = object.__new__(kind)
        copied.__dict__ = order.__dict__.copy()
        copied.executed = executed
        self.notifs.append(copied)

    def _get_value(self, datas: Any = None, lever: bool = False) -> Any:
        if self.lean_seen != self.lean_clock.index:
            self.settle()
        if self.positions is self.lean_view:  # the end of `next`: it is computed when it is read
            if not self._cash_addition:
                return None
            self.positions = self.lean_view.positions
        return super()._get_value(datas, lever)  # type: ignore[misc]


for _name in _SETTLED:
    setattr(_Account, _name, _settled(_name))
for _name in ("add_cash", "set_cash", "set_shortcash"):
    setattr(_Account, _name, _settling(_name))
_Account.setcash = _Account.set_cash  # type: ignore[attr-defined]


class _BackBroker(_Account, bt.brokers.BackBroker):
    pass


class _BacktestBroker(_Account, BacktestBroker):
    pass


_KINDS: dict[type, type] = {bt.brokers.BackBroker: _BackBroker, BacktestBroker: _BacktestBroker}
for _plain, _lean in _KINDS.items():
    _lean.__name__, _lean.__qualname__, _lean.__module__ = _plain.__name__, _plain.__qualname__, _plain.__module__


def is_known(broker: Any) -> bool:
    """Say whether a broker is one whose account can be kept this way at all."""
    return type(broker) in _KINDS and "next" not in broker.__dict__


def is_lazy(broker: Any) -> bool:
    """Say whether nothing that runs before the end of its `next` can read or change the account of a known broker."""
    return (
        not broker._userhist
        and not broker._fundhist
        and broker.p.filler is None
        and not any(map(is_contract, broker.cerebro.datas))
        and all(map(is_simple, broker.comminfo.values()))
    )


def take_over(broker: Any, clock: Cursor, group_of: Mapping[int, int]) -> None:
    """Keep the account of a known, lazy broker this way from now on, in steps of `clock`.

    `group_of` tells by the id of a feed's line which feeds move together.
    """
    broker.lean_clock = clock
    broker.lean_seen = clock.index
    broker.lean_forced = []
    broker.lean_view = _PositionsInNext(group_of)
    broker.__class__ = _KINDS[type(broker)]
    for feed, position in broker.positions.items():
        adopt(position, feed)


def give_back(broker: Any) -> None:
    """Make the broker Backtrader's again, its account as it stands."""
    if broker.lean_seen != broker.lean_clock.index:
        broker.settle()
    broker.release_positions()
    for plain, lean in _KINDS.items():
        if type(broker) is lean:
            broker.__class__ = plain
    for name in ("lean_clock", "lean_seen", "lean_forced", "lean_view"):
        del broker.__dict__[name]
