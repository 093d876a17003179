"""Replacing an order: the same order for the strategy, another one at the venue, and the races between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import backtrader as bt
import pytest
from msgspec.structs import replace

from dry_work.broker.journal import Journal
from dry_work.wire.alpaca_rest import encode_error

from .conftest import build_broker
from .scripted_venue import ScriptedVenue, wait_until
from .stepping import buy, run, seen, settle

PLACE = buy(size=10, exectype=bt.Order.Limit, price=9.0)
OLD, NEW = "dw-tester-s-1", "dw-tester-s-2"


class Change:
    """A limit order at bar 1, a change of it at bar 3, and what the venue says."""

    def __init__(self, venue: ScriptedVenue, broker: Any) -> None:
        self.venue, self.broker = venue, broker
        self.answers: list[bool] = []

    def accept(self) -> None:
        order = self.venue.wait_submit(1)
        settle(self.broker)
        self.say("new", order)

    def ask(self, **changes: Any) -> Callable[[Any], None]:
        given = changes or {"price": 9.5, "size": 12}
        return lambda strategy: self.answers.append(self.broker.replace(strategy.orders[0], **given))

    def say(self, event: str, order: Any, **facts: Any) -> None:
        seen(self.venue, self.broker, self.venue.build_event(event, order, **facts))

    def land(self) -> None:
        settle(self.broker)
        seen(self.venue, self.broker, self.venue.replaced(self.venue.orders[OLD], self.venue.orders[NEW]))
        self.say("new", self.venue.orders[NEW])

    def run(self, scripts: dict[int, Any], *, actions: dict[int, Any] | None = None, bars: int = 8) -> Any:
        return run(self.broker, {1: PLACE, 3: self.ask(), **(actions or {})}, {2: self.accept, **scripts}, bars=bars)


@pytest.fixture
def change(venue: ScriptedVenue, broker: Any) -> Change:
    return Change(venue, broker)


def test_a_replaced_order_is_the_same_order_for_the_strategy(
    venue: ScriptedVenue, change: Change, journal: Journal
) -> None:
    strategy = change.run({4: change.land, 5: lambda: change.say("fill", venue.orders[NEW], qty="12", price="9.4")})
    [order] = strategy.orders
    assert change.answers == [True]
    [asked] = venue.replacements
    assert (asked.qty, asked.limit_price, asked.client_order_id) == (12, Decimal("9.5"), NEW)
    assert strategy.statuses(order) == ["Submitted", "Accepted", "Accepted", "Completed"]
    assert (order.created.size, order.created.price, order.executed.size) == (12, 9.5, 12)
    assert change.broker.position_of("AAPL") == 12
    assert journal.links() == {NEW: (OLD, "replacement")}
    assert journal.unanswered() == []
    [record] = change.broker.results()[0]
    assert (record["client_order_id"], record["qty"], record["limit_price"]) == (OLD, 12.0, 9.5)
    assert [fill["client_order_id"] for fill in change.broker.results()[1]] == [OLD]


def test_a_replacement_is_written_down_before_it_is_sent(
    venue: ScriptedVenue, change: Change, journal: Journal
) -> None:
    known: list[Any] = []
    venue.on_replace = lambda asked, number: known.append(journal.links())
    change.run({4: lambda: settle(change.broker)})
    assert known == [{NEW: (OLD, "replacement")}]


def test_a_fill_that_wins_the_race_stands_and_the_replacement_ends(venue: ScriptedVenue, change: Change) -> None:
    def race() -> None:
        settle(change.broker)
        change.say("fill", venue.orders[OLD], qty="10", price="9")
        change.say("order_replace_rejected", venue.orders[OLD], status="filled")
        change.say("rejected", venue.orders[NEW], message="order is not open")

    strategy = change.run({4: race})
    [order] = strategy.orders
    assert strategy.statuses(order) == ["Submitted", "Accepted", "Completed"]
    assert (order.created.size, order.executed.size, change.broker.position_of("AAPL")) == (10, 10, 10)


def test_a_fill_between_request_and_replacement_counts(venue: ScriptedVenue, change: Change) -> None:
    def race() -> None:
        settle(change.broker)
        change.say("partial_fill", venue.orders[OLD], qty="4", price="9")
        change.land()
        change.say("fill", venue.orders[NEW], qty="8", price="9.5")

    strategy = change.run({4: race})
    [order] = strategy.orders
    assert strategy.statuses(order)[-1] == "Completed"
    assert order.executed.size == change.broker.position_of("AAPL") == 12
    assert order.executed.remsize == 0


@pytest.mark.parametrize(
    "refusal", [(422, encode_error(42210000, "cannot replace order in pending_new status")), "event"]
)
def test_a_refused_replacement_leaves_the_order_as_it_was(venue: ScriptedVenue, change: Change, refusal: Any) -> None:
    def refuse() -> None:
        settle(change.broker)
        if refusal == "event":
            change.say("order_replace_rejected", venue.orders[OLD], status="new")

    if refusal != "event":
        venue.on_replace = lambda asked, number: refusal
    scripts = {4: refuse, 6: lambda: change.say("fill", venue.orders[OLD], qty="10", price="9")}
    strategy = change.run(scripts)
    [order] = strategy.orders
    assert strategy.statuses(order) == ["Submitted", "Accepted", "Accepted", "Completed"]
    assert (order.created.size, order.created.price, order.executed.size) == (10, 9.0, 10)
    assert order.info.replace_reason


@pytest.mark.parametrize("lose", ["drop", "take_and_drop"])
def test_a_lost_answer_makes_one_replacement(venue: ScriptedVenue, change: Change, lose: str) -> None:
    venue.on_replace = lambda asked, number: lose if number == 1 else None
    strategy = change.run({4: change.land})
    assert strategy.statuses(strategy.orders[0]) == ["Submitted", "Accepted", "Accepted"]
    assert len(venue.replacements) == (2 if lose == "drop" else 1)
    assert [name for name in venue.orders if name != OLD] == [NEW]


def test_a_replacement_that_no_event_told_is_found_by_a_look_up(venue: ScriptedVenue, change: Change) -> None:
    def forget() -> None:
        settle(change.broker)
        venue.update(OLD, status="replaced", replaced_by=venue.orders[NEW].id)
        venue.update(NEW, status="new")
        venue.drop_streams()
        wait_until(lambda: venue.streams == 2, "the stream is back")
        settle(change.broker)

    def fill() -> None:
        change.say("fill", venue.orders[NEW], qty="12", price="9.5")

    strategy = change.run({4: forget, 6: fill})
    assert strategy.statuses(strategy.orders[0]) == ["Submitted", "Accepted", "Accepted", "Completed"]
    assert strategy.orders[0].created.size == 12


def test_a_new_order_that_is_told_before_the_end_of_the_old_one_counts(venue: ScriptedVenue, change: Change) -> None:
    def turned() -> None:
        settle(change.broker)
        change.say("new", venue.orders[NEW])
        seen(venue, change.broker, venue.replaced(venue.orders[OLD], venue.orders[NEW]))
        change.say("fill", venue.orders[NEW], qty="12", price="9.5")

    strategy = change.run({4: turned})
    assert strategy.statuses(strategy.orders[0]) == ["Submitted", "Accepted", "Accepted", "Completed"]


def test_a_cancellation_waits_for_the_replacement(venue: ScriptedVenue, change: Change) -> None:
    def cancel(strategy: Any) -> None:
        assert change.broker.cancel(strategy.orders[0])

    def confirm() -> None:
        settle(change.broker)
        change.say("canceled", venue.orders[NEW])

    def land() -> None:
        settle(change.broker)
        assert venue.count("DELETE", "/") == 0
        change.land()

    strategy = change.run({4: land, 6: confirm}, actions={3: lambda s: (change.ask()(s), cancel(s))})
    assert strategy.statuses(strategy.orders[0]) == ["Submitted", "Accepted", "Accepted", "Canceled"]
    assert venue.count("DELETE", f"/v2/orders/taken-{NEW}") == venue.count("DELETE", "/") == 1


def test_an_order_may_be_replaced_again_and_again(venue: ScriptedVenue, change: Change) -> None:
    def land_second() -> None:
        settle(change.broker)
        third = venue.orders["dw-tester-s-3"]
        seen(venue, change.broker, venue.replaced(venue.orders[NEW], third))
        change.say("fill", third, qty="12", price="9.75")

    strategy = change.run({4: change.land, 6: land_second}, actions={5: change.ask(price=9.75)})
    assert strategy.orders[0].created.price == 9.75
    assert strategy.orders[0].executed.size == 12
    assert [asked.client_order_id for asked in venue.replacements] == [NEW, "dw-tester-s-3"]
    assert venue.count("PATCH", f"/v2/orders/taken-{NEW}") == 1


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"price": 9.0, "size": 10}, "replace_nothing"),
        ({"plimit": 9.0}, "replace_limit_price"),
        ({"size": 2.5}, "replace_fractional_size"),
        ({"price": -1.0}, "price"),
    ],
)
def test_a_change_that_cannot_be_asked_for_is_answered_at_once(
    venue: ScriptedVenue, change: Change, changes: dict[str, Any], code: str
) -> None:
    strategy = change.run({}, actions={3: change.ask(**changes)}, bars=4)
    assert change.answers == [False]
    assert strategy.orders[0].info.replace_code == code
    assert venue.replacements == []


def test_one_replacement_at_a_time_and_none_of_a_partly_filled_order(venue: ScriptedVenue, change: Change) -> None:
    codes: list[str] = []

    def again(strategy: Any) -> None:
        change.answers.append(change.broker.replace(strategy.orders[0], price=9.25))
        codes.append(strategy.orders[0].info.replace_code)

    def part() -> None:
        change.land()
        change.say("partial_fill", venue.orders[NEW], qty="3", price="9.5")

    actions = {3: lambda s: (change.ask()(s), again(s)), 5: again}
    change.run({4: part}, actions=actions)
    assert change.answers == [True, False, False]
    assert codes == ["replace_pending", "replace_partly_filled"]


def test_a_new_price_is_brought_on_its_tick(venue: ScriptedVenue, change: Change) -> None:
    strategy = change.run({4: lambda: settle(change.broker)}, actions={3: change.ask(price=9.559)})
    assert venue.replacements[0].limit_price == Decimal("9.55")
    assert "9.559" in strategy.orders[0].info.price_rounded


def test_a_leg_is_replaced_by_its_id(venue: ScriptedVenue, broker: Any) -> None:
    orders: list[Any] = []
    answers: list[bool] = []

    def place(strategy: Any) -> None:
        orders.extend(strategy.buy_bracket(size=10, price=10.0, limitprice=20.0, stopprice=5.0))

    def accept() -> None:
        head = venue.wait_submit(1)
        settle(broker)
        seen(venue, broker, venue.build_event("fill", head, qty="10", price="10"),
             venue.build_event("held", venue.leg(head, "loss")))  # fmt: skip

    def move(strategy: Any) -> None:
        answers.append(broker.replace(orders[1], size=5))
        answers.append(broker.replace(orders[1], price=6.0))

    def land() -> None:
        settle(broker)
        loss = venue.leg(venue.submits[0], "loss")
        new = venue.orders["dw-tester-s-4"]
        seen(venue, broker, venue.replaced(loss, new), venue.build_event("held", new),
             venue.build_event("fill", new, qty="10", price="6"))  # fmt: skip

    strategy = run(broker, {1: place, 3: move}, {2: accept, 4: land}, bars=7)
    assert answers == [False, True]
    assert json.loads(json.dumps([str(asked.stop_price) for asked in venue.replacements])) == ["6"]
    assert strategy.statuses(orders[1])[-1] == "Completed"
    assert (orders[1].created.price, orders[1].executed.size) == (6.0, -10)


def test_an_order_that_somebody_else_replaced_is_followed(venue: ScriptedVenue, change: Change) -> None:
    def by_hand() -> None:
        old = venue.orders[OLD]
        new = replace(
            old, id="taken-by-hand", client_order_id="by-hand", replaces=old.id, status="new", limit_price=Decimal(8)
        )
        venue.orders["by-hand"] = new
        seen(venue, change.broker, venue.replaced(old, new))

    scripts = {3: by_hand, 4: lambda: settle(change.broker)}
    scripts[6] = lambda: change.say("fill", venue.orders["by-hand"], qty="10", price="8")
    strategy = run(change.broker, {1: PLACE}, {2: change.accept, **scripts}, bars=8)
    assert strategy.statuses(strategy.orders[0])[-1] == "Completed"
    assert strategy.orders[0].created.price == 8.0  # what it is now, also for the risk gate
    assert change.broker.counters["orders replaced by others"] == 1
    assert change.broker.counters["fills of other orders"] == 0


def test_nothing_is_replaced_that_is_not_open(venue: ScriptedVenue, journal: Any) -> None:
    broker = build_broker(venue, journal)
    answers: list[bool] = []
    actions = {1: buy(size=-0.0), 2: PLACE, 3: lambda s: answers.append(broker.replace(s.orders[-1], price=8.0))}
    venue.on_submit = lambda request, number: (422, encode_error(42210000, "invalid symbol"))
    run(broker, actions, {3: lambda: settle(broker)})
    assert answers == [False]
