"""Scripts of bars and orders played to the venue under the rule set `backtrader` and to BackBroker, and compared."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any, NamedTuple

import backtrader as bt
import pytest
from hypothesis import strategies as st

from dry_work.clock import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS
from dry_work.exchange.venue import RefusedError, Venue
from dry_work.market.messages import Bar
from dry_work.orders.model import OrderType, Side, TradeEvent

KEY = "key"
SYMBOLS = ("AAA", "BBB", "CCC")
START_NS = 16_000 * DAY_NS + 24 * HOUR_NS - 11 * MINUTE_NS  # a little before midnight UTC

EXECTYPES = {
    OrderType.MARKET: bt.Order.Market,
    OrderType.LIMIT: bt.Order.Limit,
    OrderType.STOP: bt.Order.Stop,
    OrderType.STOP_LIMIT: bt.Order.StopLimit,
}
SIGNS = {Side.BUY: 1, Side.SELL: -1}
EVENTS = {
    bt.Order.Accepted: "new",
    bt.Order.Partial: "partial_fill",
    bt.Order.Completed: "fill",
    bt.Order.Canceled: "canceled",
    bt.Order.Expired: "expired",
    bt.Order.Margin: "rejected",
    bt.Order.Rejected: "rejected",
}
FLAT = (100.0, 100.0, 100.0, 100.0)


class Cancel(NamedTuple):
    """The script cancels the order that it placed as number `index`."""

    index: int


class Slice(NamedTuple):
    end_ns: int
    bars: dict[str, tuple[float, float, float, float]]
    actions: list[Any]  # what the script asks for, and cancellations


class Case(NamedTuple):
    cash: float
    slices: list[Slice]

    @property
    def symbols(self) -> list[str]:
        return [symbol for symbol in SYMBOLS if any(symbol in part.bars for part in self.slices)]


class Record(NamedTuple):
    """One event, as both sides tell it. `slice` is the slice in which it happened, `time_s` the time it carries."""

    event: str
    slice: int
    number: int
    symbol: str
    side: str
    qty: float
    price: float
    time_s: int


class Outcome(NamedTuple):
    records: list[Record]
    refused_cancels: list[int]
    cash: float
    positions: dict[str, float]
    rests: list[float]  # signed quantity by order that is not executed


# Backtrader's side


class ScriptedFeed(bt.feed.DataBase):
    params = (("bars", ()),)

    def start(self) -> None:
        super().start()
        self._rest = iter(self.p.bars)

    def _load(self) -> bool:
        found = next(self._rest, None)
        if found is None:
            return False
        end_ns, (open_, high, low, close) = found
        time = dt.datetime.fromtimestamp(end_ns / SECOND_NS, dt.UTC).replace(tzinfo=None)
        self.lines.datetime[0] = bt.date2num(time)
        self.lines.open[0], self.lines.high[0], self.lines.low[0], self.lines.close[0] = open_, high, low, close
        self.lines.volume[0] = 1.0
        self.lines.openinterest[0] = 0.0
        return True


def read_time(number: float) -> int:
    """Seconds since 1970 of Backtrader's time."""
    moment = bt.num2date(number).replace(tzinfo=dt.UTC)
    return round(moment.timestamp())


class GuardedBroker(bt.brokers.BackBroker):
    """BackBroker with the one guard, and a record of what it tells."""

    def init(self) -> None:
        super().init()
        self.told: list[tuple[str, int, Any]] = []
        self.made: dict[int, float] = {}

    def strategy_time(self) -> float:
        return max(data.datetime[0] for data in self.cerebro.datas if len(data))

    def submit(self, order: bt.Order, check: bool = True) -> bt.Order:
        self.made[order.ref] = self.strategy_time()
        return super().submit(order, check=check)

    def _try_exec(self, order: bt.Order) -> None:
        if order.exectype != bt.Order.Market and order.data.datetime[0] <= self.made[order.ref]:
            return
        super()._try_exec(order)

    def notify(self, order: bt.Order) -> None:
        if order.status in EVENTS:
            bit = order.executed.exbits[-1] if len(order.executed) else None
            self.told.append((EVENTS[order.status], read_time(self.strategy_time()), (order.ref, order, bit)))
        super().notify(order)


class ScriptedStrategy(bt.Strategy):
    """Does what the script says. `place(strategy, data, asked)` returns the orders that it places, by number."""

    params = (("case", None), ("place", None))

    def __init__(self) -> None:
        self.placed: list[bt.Order] = []  # by number
        self.refused_cancels: list[int] = []
        self.by_time = {part.end_ns // SECOND_NS: part for part in self.p.case.slices}

    def prenext(self) -> None:
        self.next()

    def next(self) -> None:
        for action in self.by_time[read_time(self.datetime[0])].actions:
            if isinstance(action, Cancel):
                if action.index < len(self.placed):
                    before = len(self.broker.told)
                    self.broker.cancel(self.placed[action.index])
                    if len(self.broker.told) == before:
                        self.refused_cancels.append(action.index)
                continue
            data = self.env.datasbyname.get(action.symbol)
            if data is not None and len(data):
                self.placed.extend(self.p.place(self, data, action))


def run_backtrader(case: Case, place: Callable[[bt.Strategy, Any, Any], list[bt.Order]]) -> Outcome:
    """Play a script to Backtrader. `place` places what is asked for, and returns its orders by number."""
    cerebro = bt.Cerebro(stdstats=False, preload=False, runonce=False)
    for symbol in case.symbols:
        rows = [(part.end_ns, part.bars[symbol]) for part in case.slices if symbol in part.bars]
        cerebro.adddata(ScriptedFeed(bars=rows), name=symbol)
    broker = GuardedBroker(cash=case.cash)
    cerebro.setbroker(broker)
    cerebro.addstrategy(ScriptedStrategy, case=case, place=place)
    (ran,) = cerebro.run()
    numbers = {order.ref: index for index, order in enumerate(ran.placed)}
    slices = {part.end_ns // SECOND_NS: index for index, part in enumerate(case.slices)}
    records = []
    for name, time_s, (ref, order, bit) in broker.told:
        is_fill = name in ("fill", "partial_fill")
        records.append(
            Record(
                event=name,
                slice=slices[time_s],
                number=numbers[ref],
                symbol=order.data._name,
                side="buy" if order.isbuy() else "sell",
                qty=abs(bit.size) if is_fill else 0.0,
                price=bit.price if is_fill else 0.0,
                time_s=read_time(bit.dt) if is_fill else time_s,
            )
        )
    positions = {data._name: broker.getposition(data).size for data in cerebro.datas}
    rests = [order.executed.remsize for order in ran.placed]
    return Outcome(records, ran.refused_cancels, broker.getcash(), positions, rests)


# Our side


def build_bar(symbol: str, end_ns: int, prices: tuple[float, float, float, float]) -> Bar:
    open_, high, low, close = prices
    return Bar(symbol=symbol, ts_event_ns=end_ns - MINUTE_NS, open=open_, high=high, low=low, close=close, volume=1.0)


def run_venue(case: Case, submit: Callable[[Venue, Any], list[str]]) -> Outcome:
    """Play a script to the venue. `submit` places what is asked for, and returns the ids of its orders by number."""
    events: list[tuple[int, TradeEvent]] = []
    current = -1
    venue = Venue(
        rules="backtrader",
        assets=case.symbols,
        emit=lambda key_id, event: events.append((current, event)),
        now_ns=START_NS,
        is_open=lambda now_ns: True,
        session_close_ns=lambda now_ns: now_ns,
    )
    cash = Decimal(repr(case.cash))
    venue.open_account(KEY, cash=cash)
    placed: list[str] = []
    refused = []
    for index, part in enumerate(case.slices):
        current = index
        venue.advance(part.end_ns, [build_bar(symbol, part.end_ns, prices) for symbol, prices in part.bars.items()])
        for action in part.actions:
            if isinstance(action, Cancel):
                if action.index < len(placed):
                    before = len(events)
                    with suppress(RefusedError):
                        venue.cancel(KEY, placed[action.index])
                    if len(events) == before:
                        refused.append(action.index)
            elif venue.last_price(action.symbol) is not None:
                placed.extend(submit(venue, action))
    numbers = {order_id: number for number, order_id in enumerate(placed)}
    held: set[str] = set()
    records = []
    for index, event in events:
        name = event.event
        if name == "held":
            held.add(event.order.id)
            name = "new"  # BackBroker accepts a leg when it is checked
        elif name == "new" and event.order.id in held:
            continue  # and does not say when it becomes active
        records.append(
            Record(
                event=name,
                slice=index,
                number=numbers[event.order.id],
                symbol=event.order.symbol,
                side=event.order.side.value,
                qty=float(event.qty or 0),
                price=float(event.price or 0),
                time_s=event.ts_event_ns // SECOND_NS,
            )
        )
    check_books(venue, cash, [event for _, event in events])
    positions = dict.fromkeys(case.symbols, 0.0)
    positions |= {position.symbol: float(position.qty) for position in venue.positions(KEY)}
    found = [venue.order(KEY, order_id) for order_id in placed]
    rests = [float(order.qty - order.filled_qty) * SIGNS[order.side] for order in found if order and order.qty]
    return Outcome(records, refused, float(venue.account(KEY).cash), positions, rests)


def check_books(venue: Venue, cash: Decimal, events: list[TradeEvent]) -> None:
    """Money and shares conserve exactly, event ids rise, and every order's sums are those of its fills."""
    ids = [event.event_id for event in events]
    assert ids == sorted(set(ids))
    held: dict[str, Decimal] = {}
    filled: dict[str, Decimal] = {}
    for event in events:
        if event.price is None or event.qty is None:
            continue
        change = event.qty if event.order.side is Side.BUY else -event.qty
        cash -= change * event.price
        held[event.order.symbol] = held.get(event.order.symbol, Decimal(0)) + change
        filled[event.order.id] = filled.get(event.order.id, Decimal(0)) + event.qty
        assert event.position_qty == held[event.order.symbol]
        assert event.order.filled_qty == filled[event.order.id]
    assert venue.account(KEY).cash == pytest.approx(cash, rel=Decimal("1e-20"), abs=Decimal("1e-20"))
    assert {position.symbol: position.qty for position in venue.positions(KEY)} == {s: q for s, q in held.items() if q}
    assert all(order.filled_qty == filled.get(order.id, 0) for order in venue.orders(KEY))


# The comparison

DUST = 1e-9


def has_dust(outcome: Outcome) -> bool:
    """Tell whether BackBroker's float quantities left a rest that is nothing but rounding.

    Positions and orders that should be at 0 are at 0.1 + 0.2 - 0.3 there, and the order goes on as partly filled. The
    venue's quantities are exact, so it cannot and does not follow.
    """
    return any(0 < abs(size) < DUST for size in [*outcome.positions.values(), *outcome.rests, *_fills(outcome)])


def _fills(outcome: Outcome) -> list[float]:
    return [record.qty for record in outcome.records if "fill" in record.event]


def assert_alike(ours: Outcome, theirs: Outcome) -> None:
    assert [record[:5] for record in ours.records] == [record[:5] for record in theirs.records]
    for mine, wanted in zip(ours.records, theirs.records, strict=True):
        assert mine.time_s == wanted.time_s, (mine, wanted)
        assert mine[5:7] == pytest.approx(wanted[5:7], rel=1e-9), (mine, wanted)
    assert ours.refused_cancels == theirs.refused_cancels
    assert ours.cash == pytest.approx(theirs.cash, rel=1e-9, abs=1e-7)
    assert ours.positions == pytest.approx(theirs.positions, rel=1e-9, abs=1e-12)
    assert ours.rests == pytest.approx(theirs.rests, rel=1e-9, abs=1e-12)


cents = st.integers(-300, 300)


@st.composite
def bars(draw: st.DrawFn) -> tuple[float, float, float, float]:
    open_ = draw(cents)
    close = draw(st.one_of(st.just(open_), cents, cents))
    high = max(open_, close) + draw(st.integers(0, 150))
    low = min(open_, close) - draw(st.integers(0, 150))
    return tuple((10_000 + value) / 100 for value in (open_, high, low, close))  # type: ignore[return-value]
