"""Faults on purpose: which occasions they strike. And busts, which take executions back."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.clock import MINUTE_NS
from dry_work.errors import CodecError
from dry_work.exchange.faults import KINDS, RANDOM, Fault, FaultPlan, parse_faults
from dry_work.exchange.venue import RefusedError
from dry_work.orders.model import TradeEvent

from .venue_desk import KEY, Desk

D = Decimal


def strikes(fault: Fault, occasions: int) -> list[int]:
    plan = FaultPlan([fault])
    return [number for number in range(occasions) if plan.take(fault.on, path="/v2/orders")]


def test_a_fault_lets_some_pass_then_strikes_so_often() -> None:
    assert strikes(Fault(on="http", kind="drop", skip=2, times=3), 9) == [2, 3, 4]
    assert strikes(Fault(on="http", kind="drop"), 3) == [0]
    assert strikes(Fault(on="http", kind="drop", times=None), 3) == [0, 1, 2]


@given(seed=st.integers(0, 1000), rate=st.floats(0, 1))
def test_chance_comes_from_the_seed(seed: int, rate: float) -> None:
    fault = Fault(on="http", kind="drop", times=None, rate=rate, seed=seed)
    assert strikes(fault, 50) == strikes(fault, 50)
    half = strikes(Fault(on="http", kind="drop", times=None, rate=0.5, seed=seed), 400)
    assert 120 < len(half) < 280


def test_a_fault_strikes_only_what_it_is_meant_for() -> None:
    plan = FaultPlan([Fault(on="http", kind="status", key="k", method="POST", path="/v2/orders", times=None)])
    assert plan.take("http", key="k", method="POST", path="/v2/orders")
    assert not plan.take("http", key="other", method="POST", path="/v2/orders")
    assert not plan.take("http", key="k", method="GET", path="/v2/orders")
    assert not plan.take("http", key="k", method="POST", path="/v2/account")
    assert not plan.take("events", key="k", method="POST", path="/v2/orders")
    assert not plan.take("http", key="k", method="POST", path="/v2/orders", kinds={"drop"})
    assert [(row["seen"], row["struck"]) for row in plan.describe()] == [(1, 1)]


def test_faults_strike_together_and_are_removed_one_by_one() -> None:
    plan = FaultPlan([Fault(on="http", kind="latency", times=None), Fault(on="http", kind="reset", times=None)])
    assert [fault.kind for fault in plan.take("http")] == ["latency", "reset"]
    assert plan.remove("f1")
    assert not plan.remove("f1")
    assert [fault.kind for fault in plan.take("http")] == ["reset"]
    plan.clear()
    assert plan.take("http") == []


def test_the_clock_is_ahead_by_all_that_is_set() -> None:
    plan = FaultPlan([Fault(on="clock", kind="skew", seconds=5.0), Fault(on="clock", kind="skew", seconds=-2.0)])
    assert plan.skew_s == 3.0


def test_there_is_an_end_to_the_number_of_faults() -> None:
    plan = FaultPlan(Fault(on="http", kind="drop") for _ in range(1000))
    with pytest.raises(ValueError, match="there are 1000 faults"):
        plan.add(Fault(on="http", kind="drop"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (7, "a fault is an object"),
        ({}, "on is 'None': expected one of http, trades, data, events, clock"),
        ({"on": "http", "kind": "duplicate"}, "kind is 'duplicate': expected, on http, one of latency, status"),
        ({"on": "http", "kind": "drop", "color": 1}, "a fault has no color: expected some of on, kind, key"),
        ({"on": "http", "kind": "drop", "times": 0}, "times is 0: expected 1 to"),
        ({"on": "http", "kind": "drop", "skip": -1}, "skip is -1: expected 0 to"),
        ({"on": "http", "kind": "drop", "rate": D("1.5")}, "rate is 1.5: expected 0.0 to 1.0"),
        ({"on": "http", "kind": "status", "status": 200}, "status is 200: expected 400 to 599"),
        ({"on": "http", "kind": "drop", "when": "never"}, "when is 'never': expected before or after"),
        ({"on": "http", "kind": "drop", "times": "x"}, "a fault cannot be used: Expected `int | null`"),
        ({"on": "http", "kind": "latency", "seconds": -1}, "seconds is -1.0: expected 0 to"),
        ({"on": "data", "kind": "error", "code": 500_000}, "code is 500000: expected one of 402, 406, 409, 500"),
        ({"on": "data", "kind": "close", "code": 7}, "code is 7: expected a close code"),
        ({"random": 1}, "random is an object"),
        ({"random": {"kinds": ["x"]}}, "kinds is not usable: expected a list of some of latency, 429"),
        ({"random": {"seed": "x"}}, "seed is not usable"),
        ({"random": {"rate": 2}}, "rate is 2.0: expected 0.0 to 1.0"),
    ],
)
def test_what_cannot_be_used_is_said(body: object, message: str) -> None:
    with pytest.raises(CodecError) as caught:
        parse_faults(body)
    assert caught.value.reason.startswith(message)


def test_a_script_and_chance_are_read() -> None:
    script: Any = [
        {"on": "http", "kind": "status", "status": 504, "when": "after", "times": None},
        {"on": "data", "kind": "error"},
        {"on": "http", "kind": "silent"},
    ]
    first, second, third = parse_faults(script)
    assert first == Fault(on="http", kind="status", status=504, when="after", times=None)
    assert (second.code, third.seconds) == (406, 600.0)
    faults = parse_faults({"random": {"seed": 3, "rate": D("0.25")}})
    assert len(faults) == len(RANDOM) == len({fault.seed for fault in faults})
    assert {fault.rate for fault in faults} == {0.25}
    assert all(fault.kind in KINDS[fault.on] and fault.times is None for fault in faults)
    assert [fault.seed for fault in parse_faults({"random": {"seed": 3, "kinds": ["429"]}})] == [faults[1].seed]


# Busts


def bust(desk: Desk, fills: list[TradeEvent], index: int) -> None:
    rest = [fill for number, fill in enumerate(fills) if number != index]
    desk.venue.take_back(KEY, fills[index], rest)


@pytest.mark.parametrize("symbol", ["SPY", "BTC/USD"])
def test_a_bust_leaves_the_books_as_if_the_execution_had_never_been(symbol: str) -> None:
    name = symbol.partition("/")[0]
    desk, plain = (Desk("alpaca", cash="10000", now_ns=MINUTE_NS, session_close_ns=lambda _: 10**15) for _ in range(2))
    for price, qty in ((100.0, "2"), (110.0, "1"), (120.0, "3")):
        for one in (desk, plain):
            one.step(**{name: price})
            if one is desk or qty != "1":
                one.buy(qty, symbol)
            one.step(**{name: price})
    fills = [event for event in desk.events if event.execution_id]
    desk.news()
    bust(desk, fills, 1)
    (event,) = desk.news()
    assert (event.event, event.qty, event.price) == ("trade_bust", D(-1), D(110))
    assert (event.order.status, event.order.filled_qty, event.order.filled_avg_price) == ("filled", D(0), None)
    assert event.execution_id not in {fill.execution_id for fill in fills}
    assert event.previous_execution_id == fills[1].execution_id  # type: ignore[attr-defined]
    assert desk.venue.positions(KEY) == plain.venue.positions(KEY)
    assert event.position_qty == desk.qty(symbol)
    assert desk.cash == plain.cash


def test_the_rules_of_backtrader_know_no_busts() -> None:
    desk = Desk("backtrader", now_ns=MINUTE_NS)
    desk.step(SPY=100.0)
    desk.buy("1")
    fills = [event for event in desk.step(SPY=100.0) if event.execution_id]
    with pytest.raises(RefusedError, match="not taken back"):
        bust(desk, fills, 0)
