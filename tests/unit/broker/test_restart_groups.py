"""Brackets, pairs, replaced and split orders over restarts: handles, links, legs and remainders as they were."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import backtrader as bt
import pytest

from dry_work.broker.books_reader import read_books
from dry_work.broker.own_books import build_orders
from dry_work.clock import ManualClock
from dry_work.orders.model import OrderClass, VenuePosition

from .restarting import Agent, told
from .scripted_venue import NOW_NS, ScriptedVenue, wait_until
from .stepping import buy, settle

BRACKET = {"size": 10, "price": 10.0, "limitprice": 20.0, "stopprice": 5.0}


@pytest.fixture
def agent(venue: ScriptedVenue, tmp_path: Path) -> Agent:
    return Agent(venue, tmp_path)


def say(agent: Agent, event: str, order: Any, **facts: Any) -> None:
    name = agent.venue.send(agent.venue.build_event(event, order, **facts))
    wait_until(lambda: agent.broker.has_seen(name), f"event {name} has arrived")


def hold(agent: Agent, qty: str, price: str = "10") -> None:
    agent.venue.positions = [VenuePosition(symbol="AAPL", qty=Decimal(qty), avg_entry_price=Decimal(price))]


def by_number(agent: Agent, number: int) -> Any:
    [name] = [name for name in agent.broker._desk.tickets if name.endswith(f"-{number}")]
    return agent.broker.order_by_client_id(name)


class Bracket:
    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    def accept(self) -> None:
        settle(self.agent.broker)
        head = self.agent.venue.wait_submit(1)
        say(self.agent, "new", head)
        for leg in ("profit", "loss"):
            say(self.agent, "held", self.leg(leg))

    def fill_entry(self) -> None:
        say(self.agent, "fill", self.agent.venue.submits[0], qty="10", price="10")
        say(self.agent, "new", self.leg("profit"))
        hold(self.agent, "10")

    def leg(self, name: str) -> Any:
        return self.agent.venue.leg(self.agent.venue.submits[0], name)


def place_bracket(strategy: Any) -> None:
    strategy.buy_bracket(**BRACKET)


def test_a_bracket_whose_entry_is_filled_lives_on_with_its_exits(agent: Agent) -> None:
    bracket = Bracket(agent)
    agent.live({1: place_bracket}, {2: bracket.accept, 3: bracket.fill_entry})
    found: list[Any] = []

    def look(strategy: Any) -> None:
        entry, stop, limit = (by_number(agent, number) for number in (1, 2, 3))
        found.extend([entry, stop, limit])
        assert [order.status for order in found] == [bt.Order.Completed, bt.Order.Accepted, bt.Order.Accepted]
        assert (entry.executed.size, entry.executed.price) == (10, 10.0)
        assert (stop.parent, limit.parent) == (entry, entry)
        assert [order.transmit for order in found] == [False, False, True]
        assert stop.active()
        assert limit.active()
        assert (stop.exectype, stop.created.price) == (bt.Order.Stop, 5.0)
        assert (limit.exectype, limit.created.price) == (bt.Order.Limit, 20.0)
        assert {order.ref for order in strategy.broker.get_orders_open()} == {stop.ref, limit.ref}
        assert [ticket.role.value for ticket in agent.broker._desk.exposed()] == ["take_profit"]

    def exit_() -> None:
        say(agent, "fill", bracket.leg("profit"), qty="10", price="20")
        say(agent, "canceled", bracket.leg("loss"))

    strategy = agent.live({1: look}, {3: exit_})
    assert told(strategy, 1) == ["Submitted", "Accepted", "Completed 10"]
    assert told(strategy, 2) == ["Submitted", "Accepted", "Canceled"]
    assert told(strategy, 3) == ["Submitted", "Accepted", "Completed -10"]
    assert [trade.isclosed for trade in strategy.trades] == [False, True]
    assert strategy.trades[-1].pnl == 100


@pytest.mark.parametrize("saves_until", [0, 1, 2, None])
def test_a_bracket_that_went_on_while_nobody_was_there_is_told_in_order(agent: Agent, saves_until: int | None) -> None:
    bracket = Bracket(agent)
    agent.live({1: place_bracket}, {2: bracket.accept}, saves_until=saves_until)
    venue = agent.venue
    venue.build_event("fill", venue.submits[0], qty="10", price="10")
    venue.build_event("new", bracket.leg("profit"))
    venue.build_event("fill", bracket.leg("loss"), qty="10", price="5")
    venue.build_event("canceled", bracket.leg("profit"))
    for _ in range(2):
        strategy = agent.live({})
    assert told(strategy, 1) == ["Submitted", "Accepted", "Completed 10"]
    assert told(strategy, 2) == ["Submitted", "Accepted", "Completed -10"]
    assert told(strategy, 3) == ["Submitted", "Accepted", "Canceled"]
    order_of_fills = [row[0] for row in strategy.kept if row[1] == "Completed"]
    assert order_of_fills == [1, 2]
    assert strategy.position.size == 0
    assert len(venue.submits) == 1


def test_a_bracket_that_was_not_sent_is_sent_with_its_exits(agent: Agent) -> None:
    """The state knows of it, and the process died before the journal did."""
    agent.live({1: place_bracket}, loses_from=1)
    assert agent.venue.submits == []
    strategy = agent.live({}, {3: Bracket(agent).accept})
    [request] = agent.venue.submits
    assert (request.order_class, request.take_profit) == (OrderClass.BRACKET, 20)
    for number in (1, 2, 3):
        assert told(strategy, number) == ["Submitted", "Accepted"]
    assert [order.state for order in build_orders(read_books(agent.journal_path))] == ["open"] * 3


def test_a_pair_lives_on(agent: Agent) -> None:
    hold(agent, "5")

    def place(strategy: Any) -> None:
        first = strategy.sell(size=5, exectype=bt.Order.Limit, price=20.0)
        strategy.sell(size=5, exectype=bt.Order.Stop, price=5.0, oco=first)

    def accept() -> None:
        settle(agent.broker)
        head = agent.venue.wait_submit(1)
        say(agent, "new", head)
        say(agent, "held", agent.venue.leg(head, "loss"))

    agent.live({1: place}, {2: accept})

    def look(strategy: Any) -> None:
        limit, stop = by_number(agent, 1), by_number(agent, 2)
        assert stop.oco is limit
        assert [order.status for order in (limit, stop)] == [bt.Order.Accepted] * 2
        assert strategy.broker.cancel(stop)

    def cancel() -> None:
        settle(agent.broker)
        head = agent.venue.submits[0]
        say(agent, "canceled", head)
        say(agent, "canceled", agent.venue.leg(head, "loss"))

    strategy = agent.live({1: look}, {3: cancel})
    for number in (1, 2):
        assert told(strategy, number) == ["Submitted", "Accepted", "Canceled"]


# Replacements


def place_and_replace(strategy: Any) -> Any:
    return strategy.broker.replace(strategy.orders[0], price=9.0)


def accept_first(agent: Agent) -> Any:
    def accept() -> None:
        settle(agent.broker)
        say(agent, "new", agent.venue.wait_submit(1))

    return accept


LIMIT = {"exectype": bt.Order.Limit, "price": 9.5}


def settle_replacement(agent: Agent) -> None:
    settle(agent.broker)
    venue = agent.venue
    old = venue.orders[venue.submits[0].client_order_id]
    new = next(order for order in venue.orders.values() if order.replaces == old.id)
    name = venue.send(venue.replaced(old, new))
    wait_until(lambda: agent.broker.has_seen(name), "the end of the old order is in")
    say(agent, "new", new)


def test_a_replaced_order_is_the_same_order_after_a_restart(agent: Agent) -> None:
    agent.live(
        {1: buy(size=5, **LIMIT), 2: place_and_replace}, {2: accept_first(agent), 3: lambda: settle_replacement(agent)}
    )
    rows = [row[1:] for row in agent.strategy.kept]
    assert rows == [["Submitted", 0, 9.5], ["Accepted", 0, 9.5], ["Accepted", 0, 9.0]]

    def fill() -> None:
        new = next(order for order in agent.venue.orders.values() if order.replaces)
        say(agent, "fill", new, qty="5", price="9")
        hold(agent, "5", "9")

    def look(strategy: Any) -> None:
        order = by_number(agent, 1)
        assert (order.created.price, order.price, order.status) == (9.0, 9.0, bt.Order.Accepted)

    strategy = agent.live({1: look}, {3: fill})
    assert [row[1:] for row in strategy.kept][3:] == [["Completed", 5, 9.0]]
    [fill_] = read_books(agent.journal_path).fills
    assert fill_.client_order_id == agent.venue.submits[0].client_order_id
    again = agent.live({})
    assert len(again.kept) == 4


@pytest.mark.parametrize("is_sent", [True, False])
def test_a_replacement_whose_outcome_was_not_told_is_settled(agent: Agent, is_sent: bool) -> None:
    """It stood while nobody was there, or the process died before it was sent."""
    agent.live({1: buy(size=5, **LIMIT)}, {2: accept_first(agent)})
    order = agent.venue.submits[0]

    def ask(strategy: Any) -> None:
        strategy.broker.replace(by_number(agent, 1), price=9.0)

    agent.live({1: ask}, bars=1, loses_from=None if is_sent else 1)
    if is_sent:
        old = agent.venue.orders[order.client_order_id]
        new = next(found for found in agent.venue.orders.values() if found.replaces == old.id)
        agent.venue.replaced(old, new)
        agent.venue.build_event("new", new)
        strategy = agent.live({})
    else:
        assert agent.venue.replacements == []
        strategy = agent.live({}, {3: lambda: settle_replacement(agent)})
    assert len(agent.venue.replacements) == 1
    rows = [row[1:] for row in strategy.kept]
    assert rows == [["Submitted", 0, 9.5], ["Accepted", 0, 9.5], ["Accepted", 0, 9.0]]
    assert by_number(agent, 1).created.price == 9.0


def test_a_fill_of_the_old_order_is_told_before_what_replaced_it(agent: Agent) -> None:
    agent.live({1: buy(size=5, **LIMIT)}, {2: accept_first(agent)})
    agent.live({1: lambda s: s.broker.replace(by_number(agent, 1), price=9.0)}, bars=1)
    venue, request = agent.venue, agent.venue.submits[0]
    venue.build_event("partial_fill", request, qty="2", price="9.5")
    old = venue.orders[request.client_order_id]
    new = next(found for found in venue.orders.values() if found.replaces == old.id)
    venue.replaced(old, new)
    venue.build_event("fill", venue.update(new.client_order_id, qty=Decimal(5)), qty="3", price="9")
    hold(agent, "5", "9.2")
    strategy = agent.live({})
    rows = [row[1:] for row in strategy.kept]
    assert rows[2:] == [["Partial", 2, 9.5], ["Partial", 2, 9.0], ["Completed", 5, 9.0]]


# Orders through zero


def cross(strategy: Any) -> Any:
    return strategy.sell(size=5, exectype=bt.Order.Limit, price=11.0)


def test_the_second_part_of_a_split_order_follows_after_a_restart(agent: Agent) -> None:
    hold(agent, "2")
    agent.live({1: cross}, {2: accept_first(agent)})
    assert [request.qty for request in agent.venue.submits] == [2]

    def fill_first() -> None:
        say(agent, "fill", agent.venue.submits[0], qty="2", price="11")

    def fill_second() -> None:
        settle(agent.broker)
        say(agent, "fill", agent.venue.wait_submit(2), qty="3", price="11")
        hold(agent, "-3", "11")

    strategy = agent.live({}, {2: fill_first, 4: fill_second}, bars=5)
    assert [request.qty for request in agent.venue.submits] == [2, 3]
    assert told(strategy, 1) == ["Submitted", "Accepted", "Partial -2", "Completed -5"]
    assert strategy.position.size == -3
    assert told(agent.live({}), 1) == ["Submitted", "Accepted", "Partial -2", "Completed -5"]


@pytest.mark.parametrize("is_recent", [True, False])
def test_a_second_part_that_became_due_while_nobody_was_there(agent: Agent, is_recent: bool) -> None:
    """It is sent when its first part was filled just now, and given up when prices have moved on since."""
    hold(agent, "2")
    agent.live({1: cross}, {2: accept_first(agent)})
    venue = agent.venue
    venue.build_event("fill", venue.submits[0], qty="2", price="11")
    if not is_recent:
        venue.update(venue.submits[0].client_order_id, filled_ns=1)
    venue.positions = []
    strategy = agent.live({})
    if is_recent:
        assert [request.qty for request in venue.submits] == [2, 3]
        assert told(strategy, 1) == ["Submitted", "Accepted", "Partial -2"]
    else:
        assert [request.qty for request in venue.submits] == [2]
        assert told(strategy, 1) == ["Submitted", "Accepted", "Partial -2", "Canceled -2"]
        assert "its second part was not sent" in strategy.clones[-1].info.reject_reason
    assert strategy.trades[-1].isclosed


# Cancellations and dates


def test_a_cancellation_that_may_not_have_arrived_is_asked_for_again(agent: Agent) -> None:
    agent.live({1: buy(size=5, **LIMIT)}, {2: accept_first(agent)})

    agent.live({1: lambda strategy: strategy.cancel(by_number(agent, 1))}, bars=1, loses_from=1)
    assert agent.venue.count("DELETE", "/v2/orders/") == 0

    def cancel() -> None:
        settle(agent.broker)
        say(agent, "canceled", agent.venue.submits[0])

    strategy = agent.live({}, {2: cancel})
    assert agent.venue.count("DELETE", "/v2/orders/") == 1
    assert told(strategy, 1) == ["Submitted", "Accepted", "Canceled"]


def test_an_order_whose_date_passed_is_canceled_and_told_as_expired(venue: ScriptedVenue, tmp_path: Path) -> None:
    clock = ManualClock(NOW_NS)
    agent = Agent(venue, tmp_path, clock=clock)

    def place(strategy: Any) -> Any:
        until = bt.num2date(strategy.datetime[0] + 1.0)
        return strategy.buy(size=5, valid=until, **LIMIT)

    agent.live({1: place}, {2: accept_first(agent)})

    def look(strategy: Any) -> None:
        order = by_number(agent, 1)
        assert order.valid == pytest.approx(strategy.datetime[0] + 1.0)

    def expire() -> None:
        settle(agent.broker)
        say(agent, "canceled", agent.venue.submits[0])

    agent.live({1: look})
    clock.advance(2 * 86_400.0)
    strategy = agent.live({}, {3: expire})
    assert agent.venue.count("DELETE", "/v2/orders/") == 1
    assert told(strategy, 1) == ["Submitted", "Accepted", "Expired"]
