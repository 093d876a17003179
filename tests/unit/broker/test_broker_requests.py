"""What the broker asks the venue for: orders through zero, prices, values, further kinds, and all at once."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import backtrader as bt
import pytest

from dry_work.broker.journal import Journal
from dry_work.wire.alpaca_rest import encode_error

from .conftest import build_broker
from .scripted_venue import ScriptedVenue, wait_until
from .stepping import buy, holding, run, seen, settle

# Through zero


def test_an_order_through_zero_goes_as_two_and_lives_as_one(
    venue: ScriptedVenue, broker: Any, journal: Journal
) -> None:
    holding(venue, "5")

    def fill_first() -> None:
        order = venue.wait_submit(1)
        settle(broker)
        assert len(venue.submits) == 1
        seen(venue, broker, venue.build_event("new", order), venue.build_event("fill", order, qty="5", price="12"))

    def fill_second() -> None:
        order = venue.wait_submit(2)
        seen(venue, broker, venue.build_event("new", order), venue.build_event("fill", order, qty="3", price="11"))

    strategy = run(broker, {1: lambda s: s.sell(size=8)}, {2: fill_first, 3: fill_second})
    [order] = strategy.orders
    assert strategy.statuses(order) == ["Submitted", "Accepted", "Partial", "Completed"]
    assert (order.executed.size, order.executed.price) == (-8, pytest.approx((5 * 12 + 3 * 11) / 8))
    assert order.executed.pnl == pytest.approx(5 * (12 - 8))
    assert broker.position_of("AAPL") == -3
    assert [(part.qty, part.client_order_id) for part in venue.submits] == [
        (5, "dw-tester-s-1"), (3, "dw-tester-s-2"),
    ]  # fmt: skip
    assert journal.links() == {"dw-tester-s-2": ("dw-tester-s-1", "remainder")}
    assert journal.unanswered() == []
    [record] = broker.results()[0]
    assert (record["qty"], record["status"]) == (8.0, "filled")
    assert {fill["client_order_id"] for fill in broker.results()[1]} == {"dw-tester-s-1"}
    assert [trade.isclosed for trade in strategy.trades] == [False, True, False]


def test_the_second_part_is_not_sent_when_the_order_is_canceled(venue: ScriptedVenue, broker: Any) -> None:
    holding(venue, "5")
    venue.fail_cancel = (422, encode_error(42210000, 'order is already in "filled" state'))
    place = lambda s: s.sell(size=8, exectype=bt.Order.Limit, price=12.0)  # noqa: E731

    def cancel(strategy: Any) -> None:
        assert broker.cancel(strategy.orders[0])

    def accept() -> None:
        seen(venue, broker, venue.build_event("new", venue.wait_submit(1)))

    def fill() -> None:
        settle(broker)
        seen(venue, broker, venue.build_event("fill", venue.submits[0], qty="5", price="12"))

    strategy = run(broker, {1: place, 2: cancel}, {2: accept, 3: fill, 5: lambda: settle(broker)})
    assert strategy.statuses(strategy.orders[0]) == ["Submitted", "Accepted", "Partial", "Canceled"]
    assert len(venue.submits) == 1
    assert broker.position_of("AAPL") == 0


def test_a_second_part_that_is_refused_ends_the_order(venue: ScriptedVenue, broker: Any) -> None:
    holding(venue, "5")
    venue.on_submit = lambda request, number: (
        (403, encode_error(40310000, "account is not allowed to short")) if number == 2 else None
    )

    def fill() -> None:
        order = venue.wait_submit(1)
        seen(venue, broker, venue.build_event("fill", order, qty="5", price="12"))

    strategy = run(broker, {1: lambda s: s.sell(size=8)}, {2: fill, 3: lambda: settle(broker)})
    [order] = strategy.orders
    assert strategy.statuses(order) == ["Submitted", "Accepted", "Partial", "Rejected"]
    assert (order.executed.size, order.info.reject_reason) == (-5, "account is not allowed to short")


def test_a_lost_answer_to_the_second_part_makes_one_order(venue: ScriptedVenue, broker: Any) -> None:
    holding(venue, "5")
    venue.on_submit = lambda request, number: "take_and_drop" if number == 2 else None

    def fill(number: int, qty: str) -> None:
        order = venue.wait_submit(number)
        settle(broker)
        seen(venue, broker, venue.build_event("fill", order, qty=qty, price="12"))

    scripts = {2: lambda: fill(1, "5"), 3: lambda: fill(2, "3")}
    strategy = run(broker, {1: lambda s: s.sell(size=8)}, scripts)
    assert strategy.statuses(strategy.orders[0])[-1] == "Completed"
    assert len(venue.submits) == 2


# Prices and keywords


def test_a_price_between_ticks_is_rounded_and_told(venue: ScriptedVenue, broker: Any) -> None:
    run_ = run(broker, {1: buy(size=1, exectype=bt.Order.Limit, price=10.257)}, {2: lambda: venue.wait_submit(1)})
    assert venue.submits[0].limit_price == Decimal("10.25")
    assert run_.orders[0].info.price_rounded == "limit_price 10.257 was rounded to 10.25"


def test_the_step_of_a_crypto_price_is_its_assets(venue: ScriptedVenue, broker: Any) -> None:
    venue.assets["BTC/USD"] = {"symbol": "BTC/USD", "price_increment": "0.5"}
    order = buy(size=1, exectype=bt.Order.Limit, price=10.3)
    run(broker, {1: order}, {2: lambda: venue.wait_submit(1)}, symbols=("BTC/USD",))
    assert venue.submits[0].limit_price == Decimal(10)


def test_an_order_by_value_is_as_large_as_it_was_filled(venue: ScriptedVenue, broker: Any) -> None:
    def fill() -> None:
        order = venue.wait_submit(1)
        seen(
            venue, broker, venue.build_event("new", order),
            venue.build_event("partial_fill", order, qty="1", price="12"),
            venue.build_event("fill", order, qty="82.3333", price="12"),
        )  # fmt: skip

    strategy = run(broker, {1: buy(notional=1000)}, {2: fill})
    [order] = strategy.orders
    assert json.loads(venue.bodies[0])["notional"] == "1000"
    assert "qty" not in json.loads(venue.bodies[0])
    assert strategy.statuses(order) == ["Submitted", "Accepted", "Partial", "Completed"]
    assert order.executed.size == order.created.size == pytest.approx(83.3333)
    assert not order.alive()


@pytest.mark.parametrize(
    ("asked", "body"),
    [
        ({"exectype": bt.Order.StopTrail, "trailpercent": 0.02}, {"type": "trailing_stop", "trail_percent": "2"}),
        ({"exectype": bt.Order.StopTrail, "trailamount": 0.5}, {"type": "trailing_stop", "trail_price": "0.5"}),
        ({"tif": "ioc"}, {"type": "market", "time_in_force": "ioc"}),
        ({"exectype": bt.Order.Limit, "price": 9.0, "valid": bt.Order.DAY, "extended_hours": True},
         {"type": "limit", "time_in_force": "day", "extended_hours": True}),
    ],
)  # fmt: skip
def test_further_kinds_go_out_in_alpacas_words(
    venue: ScriptedVenue, broker: Any, asked: dict[str, Any], body: dict[str, Any]
) -> None:
    run(broker, {1: buy(size=1, **asked)}, {2: lambda: venue.wait_submit(1)})
    assert body.items() <= json.loads(venue.bodies[0]).items()


def test_an_order_outside_of_its_hours_is_refused(venue: ScriptedVenue, journal: Any) -> None:
    from dry_work.clock import ManualClock

    from .scripted_venue import NOW_NS

    broker = build_broker(venue, journal, clock=ManualClock(NOW_NS))  # 09:30 in New York
    strategy = run(broker, {1: buy(size=1, tif="opg")})
    assert strategy.orders[0].info.reject_rule == "opg_window"
    assert strategy.orders[0].info.reject_code == "session_closed"


# All at once


def test_a_position_is_closed_when_the_orders_that_hold_it_are_gone(venue: ScriptedVenue, broker: Any) -> None:
    holding(venue, "10")
    place = lambda s: s.sell(size=10, exectype=bt.Order.Limit, price=20.0)  # noqa: E731

    def confirm() -> None:
        wait_until(lambda: venue.count("DELETE", "/v2/orders/") == 1, "the cancellation")
        assert len(venue.submits) == 1
        seen(venue, broker, venue.build_event("canceled", venue.submits[0]))

    def fill() -> None:
        order = venue.wait_submit(2)
        assert (order.side, order.type, order.qty) == ("sell", "market", 10)
        seen(venue, broker, venue.build_event("fill", order, qty="10", price="12"))

    def accept() -> None:
        seen(venue, broker, venue.build_event("new", venue.wait_submit(1)))

    strategy = run(broker, {1: place, 2: lambda s: broker.close_all()}, {2: accept, 3: confirm, 4: fill})
    assert broker.position_of("AAPL") == 0
    assert [status for _, status in strategy.told[-3:]] == ["Submitted", "Accepted", "Completed"]
    assert not broker.close_position(strategy.data)


def test_all_orders_are_canceled(venue: ScriptedVenue, broker: Any) -> None:
    def place(strategy: Any) -> None:
        for price in (5.0, 6.0):
            strategy.buy(size=1, exectype=bt.Order.Limit, price=price)

    counts: list[int] = []
    cancel = lambda s: counts.append(broker.cancel_all())  # noqa: E731
    run(broker, {1: place, 2: cancel, 3: cancel}, {4: lambda: settle(broker)})
    assert counts == [2, 0]
    assert venue.count("DELETE", "/v2/orders/") == 2
