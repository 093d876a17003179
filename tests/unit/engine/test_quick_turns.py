"""The short way through a tree of indicators leaves every line as Backtrader's own turn does, whatever happens to its
clock and whoever else takes a turn in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import backtrader as bt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.engine.live import LiveCerebro
from dry_work.engine.lookback import LookBack
from dry_work.engine.quick_indicators import quicken
from dry_work.feeds.base import LiveFeed
from dry_work.wakeup import Wakeup

from .sources import ListSource


class Spread(bt.Indicator):
    """Reads a data that is not its clock, and its own past, in a `next` of its own."""

    lines = ("spread", "sum")

    def __init__(self) -> None:
        self.mean = bt.ind.SMA(self.data1, period=2)

    def next(self) -> None:
        self.lines.spread[0] = self.data0[0] - self.mean[0]
        self.lines.sum[0] = self.lines.spread[0] + (self.lines.spread[-1] if len(self) > 2 else 0.0)


MAKERS: dict[str, Callable[[Any, Any], Any]] = {
    "average": lambda one, two: bt.ind.SMA(one, period=3),
    "smoothed": lambda one, two: bt.ind.EMA(one, period=3),
    "smoothed operation": lambda one, two: bt.ind.EMA(one.high - one.low, period=2),
    "many inner ones": lambda one, two: bt.ind.MACDHisto(one, period_me1=2, period_me2=3, period_signal=2),
    "crossing": lambda one, two: bt.ind.CrossOver(bt.ind.SMA(one, period=2), one.open),
    "bands": lambda one, two: bt.ind.BollingerBands(one, period=3),
    "range": lambda one, two: bt.ind.ATR(one, period=2),
    "two datas": lambda one, two: one.close - two.close,
    "inner clock of another data": lambda one, two: Spread(one, two),
    "delay": lambda one, two: one.close(-4) + two.high(-1),
    "highest": lambda one, two: bt.ind.Highest(one.high, period=3) - bt.ind.Lowest(two.low, period=2),
}

# What happens to one of the two datas, and whose turn it is then.
_DATA = st.integers(0, 1)
_EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("bar"), _DATA, st.floats(1, 100)),
        st.tuples(st.just("bar"), _DATA, st.floats(1, 100)),
        st.tuples(st.just("bar"), _DATA, st.floats(1, 100)),
        st.tuples(st.just("two bars"), _DATA, st.floats(1, 100)),
        st.tuples(st.just("correct"), _DATA, st.floats(1, 100)),
        st.tuples(st.just("rewind"), _DATA, st.just(0.0)),
        st.tuples(st.just("outside"), st.just(0), st.just(0.0)),
        st.tuples(st.just("again"), st.just(0), st.just(0.0)),
    ),
    min_size=15,
    max_size=40,
)


class World:
    """Two datas and what is made of them, in a run that has no slices."""

    def __init__(self, make: Callable[[Any, Any], Any], look_back: LookBack) -> None:
        class Holder(bt.Strategy):
            def __init__(self) -> None:
                make(*self.datas)

            def start(self) -> None:
                self.env.runstop()

        cerebro = LiveCerebro(source=ListSource([]), wakeup=Wakeup(), look_back=look_back)
        for symbol in ("AAA", "BBB"):
            cerebro.adddata(LiveFeed(symbol=symbol))
        cerebro.addstrategy(Holder)
        self.strategy: Any = cerebro.run()[0]
        self.nodes: list[Any] = list(self.strategy._lineiterators[bt.Strategy.IndType])
        self._behind = [0, 0]

    def happen(self, what: str, number: int, price: float) -> None:
        data = self.strategy.datas[number]
        if what == "rewind":
            if len(data) > 1 and not self._behind[number]:
                data.lines.rewind()
                self._behind[number] = 1
            return
        for _ in range({"bar": 1, "two bars": 2}.get(what, 0)):
            if self._behind[number]:
                data.lines.advance()
                self._behind[number] = 0
            else:
                data.lines.forward()
        if what not in ("outside", "again"):
            for factor, name in ((1.0, "close"), (0.5, "low"), (2.0, "high"), (0.75, "open")):
                getattr(data.lines, name)[0] = price * factor

    def read(self) -> str:
        lines = [line for node in walk(self.nodes) for line in node.lines]
        return repr([(len(line), line.buflen(), [line[-ago] for ago in range(len(line))]) for line in lines])


def walk(nodes: list[Any]) -> Any:
    for node in nodes:
        yield node
        if not isinstance(node, bt.linebuffer.LineActions):
            yield from walk(node._lineiterators[bt.Strategy.IndType])


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=15, deadline=None)
@given(events=_EVENTS)
def test_any_turn_leaves_what_backtraders_own_leaves(name: str, events: list[tuple[str, int, float]]) -> None:
    ours, stock = (World(MAKERS[name], LookBack(4, block_values=3)) for _ in range(2))
    turns = [quicken(node) for node in ours.nodes]
    assert None not in turns
    for world in (ours, stock):
        world.happen("bar", 0, 50.0)
        world.happen("bar", 1, 60.0)
    for event in events:
        for world in (ours, stock):
            world.happen(*event)
        for node, other, turn in zip(ours.nodes, stock.nodes, turns, strict=True):
            (node._next if event[0] == "outside" else turn)()
            other._next()
        assert ours.read() == stock.read(), event


def test_the_usual_turn_calls_no_method_of_backtraders_indicators(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(MAKERS["average"], LookBack(4, block_values=3))
    [node] = world.nodes
    turn = quicken(node)
    assert turn is not None
    for price in range(1, 5):
        world.happen("bar", 0, float(price))
        turn()
    called: list[str] = []
    monkeypatch.setattr(bt.indicators.basicops.Average, "next", lambda self: called.append("next"))
    world.happen("bar", 0, 5.0)
    turn()
    assert not called
    assert node[0] == 4.0
    turn()  # no new bar: the value is calculated again
    assert not called
    world.happen("two bars", 0, 5.0)
    turn()  # that is not usual
    assert called == ["next"]
