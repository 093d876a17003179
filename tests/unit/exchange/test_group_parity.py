"""Brackets, oto, oco pairs, trailing stops and Close under the rule set `backtrader`, against BackBroker itself."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, NamedTuple

import backtrader as bt
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import event as count_event
from hypothesis import strategies as st

from dry_work.clock import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS
from dry_work.exchange.venue import Venue
from dry_work.orders.model import OrderClass, OrderRequest, OrderType, Side, StopLoss, TimeInForce

from .parity import (
    EXECTYPES,
    FLAT,
    KEY,
    START_NS,
    SYMBOLS,
    Cancel,
    Case,
    Outcome,
    Slice,
    assert_alike,
    bars,
    cents,
    has_dust,
    run_backtrader,
    run_venue,
)


class Group(NamedTuple):
    """An order, and what belongs to it. `kind` says whether it is an entry or the first of a pair."""

    symbol: str
    side: Side
    type: OrderType
    size: float
    price: float | None = None
    limit: float | None = None  # of a stop-limit order
    trail: float | None = None  # of a trailing stop: dollars
    percent: float | None = None  # or a fraction
    kind: OrderClass = OrderClass.SIMPLE
    profit: float | None = None
    stop: float | None = None
    stop_limit: float | None = None
    day: bool = False
    close: bool = False  # Backtrader's Close

    @property
    def orders(self) -> int:
        return (
            1
            if self.kind is OrderClass.SIMPLE
            else 1 + (self.profit is not None) + (self.stop is not None) - (self.kind is OrderClass.OCO)
        )


def place(strategy: bt.Strategy, data: Any, asked: Group) -> list[bt.Order]:
    buy_or_sell = strategy.buy if asked.side is Side.BUY else strategy.sell
    base = {"data": data, "size": asked.size, "valid": bt.Order.DAY if asked.day else None}
    stop_type = bt.Order.Stop if asked.stop_limit is None else bt.Order.StopLimit
    if asked.kind is OrderClass.OCO:
        first = buy_or_sell(exectype=bt.Order.Limit, price=asked.profit, **base)
        return [first, buy_or_sell(exectype=stop_type, price=asked.stop, plimit=asked.stop_limit, oco=first, **base)]
    exectype = bt.Order.StopTrail if asked.type is OrderType.TRAILING_STOP else EXECTYPES.get(asked.type)
    entry = {
        "exectype": bt.Order.Close if asked.close else exectype,
        "price": asked.price,
        "plimit": asked.limit,
        "trailamount": asked.trail,
        "trailpercent": asked.percent,
    }
    if asked.kind is OrderClass.SIMPLE:
        return [buy_or_sell(**entry, **base)]
    bracket = strategy.buy_bracket if asked.side is Side.BUY else strategy.sell_bracket
    made = bracket(
        **entry,
        **base,
        stopprice=asked.stop,
        stopexec=None if asked.stop is None else stop_type,
        stopargs={} if asked.stop_limit is None else {"plimit": asked.stop_limit},
        limitprice=asked.profit,
        limitexec=None if asked.profit is None else bt.Order.Limit,
    )
    return [order for order in made if order is not None]


def money(value: float | None) -> Decimal | None:
    return None if value is None else Decimal(repr(value))


def build_request(asked: Group) -> OrderRequest:
    is_limit = asked.type is OrderType.LIMIT
    is_oco = asked.kind is OrderClass.OCO
    return OrderRequest(
        client_order_id="",
        symbol=asked.symbol,
        side=asked.side,
        type=asked.type,
        time_in_force=TimeInForce.CLS if asked.close else TimeInForce.DAY if asked.day else TimeInForce.GTC,
        qty=money(asked.size),
        limit_price=None if is_oco else money(asked.price if is_limit else asked.limit),
        stop_price=None if is_limit or is_oco else money(asked.price),
        trail_price=money(asked.trail),
        trail_percent=None if asked.percent is None else Decimal(repr(asked.percent)) * 100,
        order_class=asked.kind,
        take_profit=money(asked.profit),
        stop_loss=None if asked.stop is None else StopLoss(Decimal(repr(asked.stop)), money(asked.stop_limit)),
    )


def submit(venue: Venue, asked: Group) -> list[str]:
    """Place a group; its orders are an entry, its stop exit, its profit exit."""
    made = venue.submit(KEY, build_request(asked))
    return [made.id, *(leg.id for leg in reversed(made.legs))]


def ours_of(case: Case) -> Outcome:
    return run_venue(case, submit)


def theirs_of(case: Case) -> Outcome:
    return run_backtrader(case, place)


def price(draw: st.DrawFn) -> float:
    return (10_000 + draw(cents)) / 100


@st.composite
def groups(draw: st.DrawFn, symbols: list[str]) -> Group:
    side = draw(st.sampled_from(Side))
    kind = draw(st.sampled_from(OrderClass))
    types = [*EXECTYPES, OrderType.TRAILING_STOP]
    order_type = OrderType.LIMIT if kind is OrderClass.OCO else draw(st.sampled_from(types))
    close = kind is OrderClass.SIMPLE and order_type is OrderType.MARKET and draw(st.booleans())
    asked = Group(
        symbol=draw(st.sampled_from(symbols)),
        side=side,
        type=order_type,
        size=draw(st.integers(1, 200)) / 8,
        kind=kind,
        day=not close and draw(st.booleans()),
        close=close,
    )
    if order_type not in (OrderType.MARKET, OrderType.TRAILING_STOP):
        asked = asked._replace(price=price(draw))
    if order_type is OrderType.STOP_LIMIT:
        asked = asked._replace(limit=price(draw))
    if order_type is OrderType.TRAILING_STOP:
        if draw(st.booleans()):
            asked = asked._replace(trail=draw(st.integers(1, 200)) / 100)
        else:
            asked = asked._replace(percent=draw(st.integers(1, 200)) / 10_000)
    if kind is not OrderClass.SIMPLE:
        has_stop = kind is not OrderClass.OTO or draw(st.booleans())
        has_profit = kind is not OrderClass.OTO or not has_stop
        if has_stop:
            asked = asked._replace(stop=price(draw), stop_limit=price(draw) if draw(st.booleans()) else None)
        if has_profit:
            asked = asked._replace(profit=price(draw))
    return asked


@st.composite
def cases(draw: st.DrawFn) -> Case:
    symbols = list(SYMBOLS[: draw(st.integers(1, 2))])
    cash = draw(st.sampled_from([1000.0, 1234.56, 3000.0, 10_000.0, 100_000.0]))
    now_ns = START_NS
    slices = []
    for _ in range(draw(st.integers(2, 14))):
        now_ns += draw(st.sampled_from([MINUTE_NS, MINUTE_NS, 10 * MINUTE_NS, HOUR_NS]))
        present = draw(st.lists(st.sampled_from(symbols), min_size=1, unique=True))
        actions = draw(st.lists(st.one_of(groups(symbols), groups(symbols), st.integers(0, 8).map(Cancel)), max_size=2))
        slices.append(Slice(now_ns, {symbol: draw(bars()) for symbol in symbols if symbol in present}, actions))
    return Case(cash, slices)


def build_case(*parts: tuple[dict[str, tuple[float, float, float, float]], list[Group | Cancel]]) -> Case:
    slices = [Slice(START_NS + (number + 1) * MINUTE_NS, rows, asked) for number, (rows, asked) in enumerate(parts)]
    return Case(10_000.0, slices)


BOTH_FLAT = {"AAA": FLAT, "BBB": FLAT}
BRACKET = Group("AAA", Side.BUY, OrderType.MARKET, 5.0, kind=OrderClass.BRACKET, profit=101.0, stop=99.0)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(case=cases())
@example(  # both exits within one bar: the stop exit, which was submitted first
    build_case(({"AAA": FLAT}, [BRACKET]), ({"AAA": FLAT}, []), ({"AAA": (100.0, 102.0, 98.0, 100.0)}, []))
)
@example(  # another symbol ticks behind the fill of the entry: the exits are tried on the entry's own bar
    build_case(({"AAA": FLAT, "BBB": FLAT}, [BRACKET]), ({"AAA": (100.0, 102.0, 98.0, 100.0)}, []), ({"BBB": FLAT}, []))
)
@example(  # a trailing stop that has moved is hit by its own bar when another symbol ticks
    build_case(
        ({"AAA": FLAT, "BBB": FLAT}, [Group("AAA", Side.SELL, OrderType.TRAILING_STOP, 1.0, trail=1.0)]),
        ({"AAA": (100.0, 103.0, 99.5, 103.0)}, []),
        ({"BBB": FLAT}, []),
    )
)
@example(  # an exit that the cash is missing for takes the entry along
    Case(
        1000.0,
        [
            Slice(
                START_NS + MINUTE_NS,
                {"AAA": FLAT},
                [BRACKET._replace(side=Side.SELL, size=25.0, profit=99.0, stop=300.0)],
            ),
            Slice(START_NS + 2 * MINUTE_NS, {"AAA": FLAT}, []),
            Slice(START_NS + 3 * MINUTE_NS, {"AAA": FLAT}, []),
        ],
    )
)
@example(  # an exit that is filled in part, and then refused for want of cash, cancels its other one and not itself
    Case(
        1000.0,
        [
            Slice(START_NS + MINUTE_NS, BOTH_FLAT, [Group("AAA", Side.BUY, OrderType.LIMIT, 5.875, price=100.0)]),
            Slice(START_NS + 2 * MINUTE_NS, BOTH_FLAT, [Group("BBB", Side.SELL, OrderType.LIMIT, 22.625, price=100.0)]),
            Slice(
                START_NS + 3 * MINUTE_NS,
                BOTH_FLAT,
                [
                    Group("BBB", Side.BUY, OrderType.MARKET, 22.5, kind=OrderClass.OTO, profit=100.0),
                    Group(
                        "BBB",
                        Side.BUY,
                        OrderType.LIMIT,
                        4.375,
                        price=100.0,
                        kind=OrderClass.OCO,
                        profit=100.0,
                        stop=100.0,
                    ),
                ],
            ),
            Slice(START_NS + 4 * MINUTE_NS, BOTH_FLAT, []),
        ],
    )
)
def test_random_groups_and_trailing_stops_fill_as_in_back_broker(case: Case) -> None:
    theirs = theirs_of(case)
    assume(not has_dust(theirs))
    ours = ours_of(case)
    assert_alike(ours, theirs)
    for record in ours.records:
        count_event(record.event)


def test_a_close_order_fills_at_the_last_close_of_its_day_when_the_next_day_begins() -> None:
    last_ns = START_NS // DAY_NS * DAY_NS + DAY_NS - MINUTE_NS
    case = Case(
        10_000.0,
        [
            Slice(last_ns - 2 * MINUTE_NS, {"AAA": FLAT}, [Group("AAA", Side.BUY, OrderType.MARKET, 1.0, close=True)]),
            Slice(last_ns, {"AAA": (100.0, 103.0, 99.0, 102.5)}, []),
            Slice(last_ns + HOUR_NS, {"AAA": (105.0, 105.0, 105.0, 105.0)}, []),
        ],
    )
    ours = ours_of(case)
    assert_alike(ours, theirs_of(case))
    fill = ours.records[-1]
    assert (fill.event, fill.price, fill.slice, fill.time_s) == ("fill", 102.5, 2, last_ns // SECOND_NS)
