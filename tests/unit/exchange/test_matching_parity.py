"""The rule set `backtrader` against Backtrader's own BackBroker, on random bars and orders."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, NamedTuple

import backtrader as bt
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import event as count_event
from hypothesis import strategies as st

from dry_work.clock import HOUR_NS, MINUTE_NS
from dry_work.exchange.venue import Venue
from dry_work.orders.model import OrderRequest, OrderType, Side, TimeInForce

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


class Ask(NamedTuple):
    """An order that the script places."""

    symbol: str
    side: Side
    type: OrderType
    size: float
    price: float | None = None
    limit: float | None = None  # of a stop-limit order
    day: bool = False


def place(strategy: bt.Strategy, data: Any, ask: Ask) -> list[bt.Order]:
    buy_or_sell = strategy.buy if ask.side is Side.BUY else strategy.sell
    order = buy_or_sell(
        data=data,
        size=ask.size,
        exectype=EXECTYPES[ask.type],
        price=ask.price,
        plimit=ask.limit,
        valid=bt.Order.DAY if ask.day else None,
    )
    return [order]


def build_request(ask: Ask, number: int) -> OrderRequest:
    price = None if ask.price is None else Decimal(repr(ask.price))
    limit = None if ask.limit is None else Decimal(repr(ask.limit))
    is_limit = ask.type is OrderType.LIMIT
    return OrderRequest(
        client_order_id=f"order-{number}",
        symbol=ask.symbol,
        side=ask.side,
        type=ask.type,
        time_in_force=TimeInForce.DAY if ask.day else TimeInForce.GTC,
        qty=Decimal(repr(ask.size)),
        limit_price=price if is_limit else limit,
        stop_price=None if is_limit else price,
    )


def submit(venue: Venue, ask: Ask) -> list[str]:
    return [venue.submit(KEY, build_request(ask, len(venue.orders(KEY)))).id]


def ours_of(case: Case) -> Outcome:
    return run_venue(case, submit)


def theirs_of(case: Case) -> Outcome:
    return run_backtrader(case, place)


@st.composite
def asks(draw: st.DrawFn, symbols: list[str], cash: float) -> Ask:
    kind = draw(st.sampled_from(list(EXECTYPES)))
    price = None if kind is OrderType.MARKET else (10_000 + draw(cents)) / 100
    limit = (10_000 + draw(cents)) / 100 if kind is OrderType.STOP_LIMIT else None
    # eighths have no rounding in floats, hundredths have; all the cash to the last float, twice for flips
    everything = cash / (price or (10_000 + draw(cents)) / 100)
    size = draw(
        st.one_of(
            st.integers(1, 200).map(lambda eighths: eighths / 8),
            st.integers(1, 4000).map(lambda hundredths: hundredths / 100),
            st.sampled_from([everything, 2 * everything]),
        )
    )
    return Ask(
        draw(st.sampled_from(symbols)), draw(st.sampled_from(Side)), kind, size, price, limit, draw(st.booleans())
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    symbols = list(SYMBOLS[: draw(st.integers(1, 3))])
    cash = draw(st.sampled_from([500.0, 1000.0, 1234.56, 3000.0, 10_000.0]))
    now_ns = START_NS
    slices = []
    for _ in range(draw(st.integers(2, 14))):
        # some long steps, so that slices end before, at and after midnight
        now_ns += draw(st.sampled_from([MINUTE_NS, MINUTE_NS, 10 * MINUTE_NS, HOUR_NS]))
        present = draw(st.lists(st.sampled_from(symbols), min_size=1, unique=True))
        actions = draw(
            st.lists(st.one_of(asks(symbols, cash), asks(symbols, cash), st.integers(0, 6).map(Cancel)), max_size=3)
        )
        slices.append(Slice(now_ns, {symbol: draw(bars()) for symbol in symbols if symbol in present}, actions))
    return Case(cash, slices)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(case=cases())
@example(  # a stop-limit order that triggers rests, and fills in the same bar when another symbol ticks
    Case(
        1000.0,
        [
            Slice(
                START_NS + MINUTE_NS,
                {"AAA": FLAT, "BBB": FLAT},
                [Ask("AAA", Side.BUY, OrderType.STOP_LIMIT, 1.0, 101.0, 100.5)],
            ),
            Slice(START_NS + 2 * MINUTE_NS, {"AAA": (100.0, 102.0, 99.5, 101.5)}, []),
            Slice(START_NS + 3 * MINUTE_NS, {"BBB": FLAT}, []),
        ],
    )
)
def test_random_orders_fill_as_in_back_broker(case: Case) -> None:
    theirs = theirs_of(case)
    assume(not has_dust(theirs))
    ours = ours_of(case)
    assert_alike(ours, theirs)
    for record in ours.records:
        count_event(record.event)


@pytest.mark.parametrize("price", [3.0, 7.0, 0.1, 33.33, 99.99, 123.457, 1.1])
@pytest.mark.parametrize("cash", [1000.0, 1234.56, 10_000.0, 99_999.99])
def test_an_order_of_all_the_cash_passes_where_it_passes_in_floats(price: float, cash: float) -> None:
    bar = (price, price, price, price)
    ask = Ask("AAA", Side.BUY, OrderType.MARKET, cash / price)
    case = Case(
        cash, [Slice(START_NS + MINUTE_NS, {"AAA": bar}, [ask]), Slice(START_NS + 2 * MINUTE_NS, {"AAA": bar}, [])]
    )
    assert_alike(ours_of(case), theirs_of(case))


def test_the_comparison_sees_a_cent_and_a_minute() -> None:
    def build_case(limit: float, minutes: int) -> Case:
        first = Slice(START_NS + MINUTE_NS, {"AAA": FLAT}, [Ask("AAA", Side.BUY, OrderType.LIMIT, 1.0, limit)])
        return Case(1000.0, [first, Slice(START_NS + minutes * MINUTE_NS, {"AAA": (101.0, 102.0, 99.0, 101.0)}, [])])

    theirs = theirs_of(build_case(100.0, 2))
    assert_alike(ours_of(build_case(100.0, 2)), theirs)
    assert theirs.records[-1].price == 100.0
    with pytest.raises(AssertionError):
        assert_alike(ours_of(build_case(100.01, 2)), theirs)
    with pytest.raises(AssertionError):
        assert_alike(ours_of(build_case(100.0, 3)), theirs)
