"""Flattening step by step at a venue in memory: what is repeated, raced or refused closes nothing twice."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dry_work.broker.flatten import Flattening, cancel_entries, run_flattening
from dry_work.errors import BrokerUnavailableError, OrderRejectedError, OutcomeUnknownError, RateLimitedError
from dry_work.orders.model import OrderRequest, OrderType, Side, TimeInForce, VenueOrder, VenuePosition


class Account:
    """Orders and positions; market orders are filled by `fill`, an id is taken once."""

    def __init__(self, **held: str) -> None:
        self.held = {symbol.replace("_", "/"): Decimal(qty) for symbol, qty in held.items()}
        self.orders: dict[str, VenueOrder] = {}
        self.lost: list[str] = []  # what happens to the next submits: "answer" or "request" is lost
        self.refusals: list[str] = []

    def place(self, name: str, symbol: str, side: str, qty: str, **given_: Any) -> None:
        self.orders[name] = VenueOrder(
            **{
                "id": f"v-{name}", "client_order_id": name, "symbol": symbol, "side": Side(side), "qty": Decimal(qty),
                "type": OrderType.LIMIT, "time_in_force": TimeInForce.GTC, "status": "new",
                "created_ns": len(self.orders), **given_,
            }
        )  # fmt: skip

    def positions(self) -> list[VenuePosition]:
        return [
            VenuePosition(symbol=symbol, qty=qty, avg_entry_price=Decimal(1))
            for symbol, qty in self.held.items()
            if qty
        ]

    def open_orders(self) -> list[VenueOrder]:
        return [order for order in self.orders.values() if order.status == "new"]

    def cancel(self, order_id: str) -> None:
        name = order_id.removeprefix("v-")
        if self.orders[name].status != "new":
            raise OrderRejectedError("the order has ended")
        self.orders[name] = replace(self.orders[name], status="canceled")

    def submit(self, request: OrderRequest) -> VenueOrder:
        lost = self.lost.pop(0) if self.lost else ""
        if lost == "request":
            raise OutcomeUnknownError("lost on the way")
        if self.refusals:
            raise OrderRejectedError(self.refusals.pop(0))
        if request.client_order_id in self.orders:
            raise OrderRejectedError("client_order_id must be unique", http_status=422)
        self.place(
            request.client_order_id, request.symbol, request.side.value, str(request.qty),
            type=request.type, time_in_force=request.time_in_force,
        )  # fmt: skip
        if lost == "answer":
            raise OutcomeUnknownError("lost on the way back")
        return self.orders[request.client_order_id]

    def order_by_client_id(self, client_order_id: str) -> VenueOrder | None:
        return self.orders.get(client_order_id)

    def fill(self, part: int = 1) -> None:
        """Fill the orders at market, or the part of one of `part` of them, and end them."""
        for name, order in self.orders.items():
            if order.status == "new" and order.type is OrderType.MARKET:
                assert order.qty is not None
                qty = (order.qty / part).quantize(Decimal("0.000000001"))
                self.held[order.symbol] += qty if order.side is Side.BUY else -qty
                self.orders[name] = replace(order, status="filled" if part == 1 else "canceled", filled_qty=qty)


def build(token: str = "abc") -> Flattening:
    return Flattening(agent="me", token=token)


def test_orders_are_canceled_before_positions_are_closed() -> None:
    account = Account(AAPL="10", BTC_USD="-0.5")
    account.place("dw-me-s-1", "AAPL", "buy", "3")
    account.place("somebody", "IBM", "sell", "3")
    flattening = build()
    assert not flattening.step(account)
    assert flattening.canceled == ["AAPL", "IBM"]
    closings = [order for order in account.orders.values() if order.type is OrderType.MARKET]
    assert [(order.symbol, order.side, order.qty, order.time_in_force) for order in closings] == [
        ("AAPL", "sell", 10, "day"),
        ("BTC/USD", "buy", Decimal("0.5"), "gtc"),
    ]
    assert [order.client_order_id for order in closings] == ["dw-me-flatabc_AAPL-1", "dw-me-flatabc_BTCUSD-1"]
    account.fill()
    assert [flattening.step(account) for _ in range(2)] == [False, True]  # nothing is left, seen twice
    assert flattening.describe() == "canceled 2 orders; closing orders: sell 10 AAPL, buy 0.5 BTC/USD"


def test_a_closing_order_that_waits_is_not_sent_again() -> None:
    account, flattening = Account(AAPL="10"), build()
    for _ in range(5):
        assert not flattening.step(account)
    assert len(account.orders) == 1


def test_what_a_closing_order_left_is_closed_by_the_next_one() -> None:
    account, flattening = Account(AAPL="10"), build()
    flattening.step(account)
    account.fill(part=2)
    for _ in range(3):
        flattening.step(account)
    assert [order.qty for order in account.orders.values()] == [10, 5]
    account.fill()
    assert [flattening.step(account) for _ in range(2)] == [False, True]


@pytest.mark.parametrize("lost", ["answer", "request"])
def test_a_submit_of_unknown_outcome_is_repeated_under_its_id(lost: str) -> None:
    account, flattening = Account(AAPL="10"), build()
    account.lost = [lost]
    with pytest.raises(OutcomeUnknownError):
        flattening.step(account)
    assert not flattening.step(account)
    account.fill()
    assert [flattening.step(account) for _ in range(2)] == [False, True]
    assert account.held["AAPL"] == 0


def test_a_refused_closing_order_is_told_and_tried_again() -> None:
    account, flattening = Account(AAPL="10"), build()
    account.refusals = ["insufficient qty available for order"]
    assert not flattening.step(account)
    assert flattening.problem == "AAPL: the position cannot be closed: insufficient qty available for order"
    assert not flattening.step(account)
    assert flattening.problem == ""
    account.fill()
    assert [flattening.step(account) for _ in range(2)] == [False, True]


def test_an_order_that_arrives_between_two_looks_is_found() -> None:
    account, flattening = Account(), build()
    assert not flattening.step(account)
    account.place("late", "AAPL", "buy", "3")
    assert not flattening.step(account)
    assert flattening.step(account)
    assert flattening.canceled == ["AAPL"]
    assert account.open_orders() == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["first", "second", "fill", "half", "lose", "drop"]), max_size=30))
def test_two_processes_that_flatten_at_once_never_turn_a_position(moves: list[str]) -> None:
    account = Account(AAPL="10", BTC_USD="-3")
    both = {"first": build(), "second": build()}

    def step(name: str) -> bool:
        try:
            return both[name].step(account)
        except OutcomeUnknownError:
            return False

    for move in [*moves, *["first", "fill"] * 12]:
        if move in both:
            step(move)
        elif move in ("fill", "half"):
            account.fill(1 if move == "fill" else 2)
        else:
            account.lost.append("answer" if move == "lose" else "request")
        assert 0 <= account.held["AAPL"] <= 10
        assert -3 <= account.held["BTC/USD"] <= 0
    assert all(not qty for qty in account.held.values())


def test_a_run_of_steps_waits_as_it_is_told_and_ends_in_time() -> None:
    errors = [RateLimitedError("slow down", retry_after_s=2.0), BrokerUnavailableError("away")]

    class Busy(Account):
        def open_orders(self) -> list[VenueOrder]:
            if errors:
                raise errors.pop(0)
            return super().open_orders()

    waits: list[float] = []
    ended = run_flattening(
        build(), Busy(), deadline_s=time.monotonic() + 60, may_go_on=lambda: True, sleep=waits.append
    )
    assert ended
    assert waits == [2.0, 0.25, 0.25]
    stuck = Account(AAPL="10")
    assert not run_flattening(build(), stuck, deadline_s=time.monotonic(), may_go_on=lambda: True)
    assert not run_flattening(build(), stuck, deadline_s=time.monotonic() + 60, may_go_on=lambda: False)


def test_entries_are_canceled_and_exits_and_orders_of_others_stay() -> None:
    account = Account(AAPL="10")
    account.place("dw-me-s-1", "AAPL", "sell", "10", type=OrderType.STOP)
    account.place("dw-me-s-2", "AAPL", "buy", "1")
    account.place("dw-me-s-3", "IBM", "sell", "1")
    account.place("manual", "IBM", "buy", "1")
    account.place("dw-you-s-1", "IBM", "buy", "1")
    assert cancel_entries(account, agent="me") == ["AAPL", "IBM"]
    assert sorted(order.client_order_id for order in account.open_orders()) == ["dw-me-s-1", "dw-you-s-1", "manual"]
    assert cancel_entries(account, agent="me") == []
    assert cancel_entries(account, agent="me", everything=True) == ["AAPL"]


def test_exits_that_cancel_each_other_both_stay() -> None:
    account = Account(AAPL="10")
    for name, kind in (("dw-me-s-1", OrderType.LIMIT), ("dw-me-s-2", OrderType.STOP)):
        account.place(name, "AAPL", "sell", "10", type=kind, order_class="oco", created_ns=5)
    assert cancel_entries(account, agent="me") == []
