"""Orders over restarts: taken up as live orders, what ended meanwhile told once, whatever was kept by the end."""

from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import backtrader as bt
import pytest

from dry_work.broker.books_reader import read_books
from dry_work.broker.journal import Intent, Journal
from dry_work.broker.own_books import TAKEN_UP, OrderState, build_orders
from dry_work.broker.status import Mark, VenueSnapshot, compare
from dry_work.orders.model import (
    AccountSnapshot,
    OrderRequest,
    OrderType,
    Side,
    TimeInForce,
    VenuePosition,
)
from dry_work.wire.pubsub import encode_time

from .restarting import Agent, heard, told
from .scripted_venue import ScriptedVenue, wait_until
from .stepping import buy, settle

ACCOUNT = AccountSnapshot(id="acc", account_number="1", cash=Decimal(5), equity=Decimal(9), buying_power=Decimal(5))
LIMIT = {"exectype": bt.Order.Limit, "price": 9.5}


@pytest.fixture
def agent(venue: ScriptedVenue, tmp_path: Path) -> Agent:
    return Agent(venue, tmp_path)


def accept(agent: Agent, number: int = 1) -> Any:
    """Tell that the order of a submit is accepted."""

    def say() -> None:
        settle(agent.broker)
        request = agent.venue.wait_submit(number)
        send(agent, agent.venue.build_event("new", request))

    return say


def send(agent: Agent, *events: Any) -> None:
    for event in events:
        name = agent.venue.send(event)
        wait_until(lambda name=name: agent.broker.has_seen(name), f"event {name} has arrived")


def hold(agent: Agent, qty: str, price: str = "10") -> None:
    agent.venue.positions = [VenuePosition(symbol="AAPL", qty=Decimal(qty), avg_entry_price=Decimal(price))]


def test_an_open_limit_order_lives_on(agent: Agent) -> None:
    agent.live({1: buy(size=2, tag="entry", **LIMIT)}, {3: accept(agent)})
    assert told(agent.strategy, 1) == ["Submitted", "Accepted"]
    found: list[Any] = []

    def look(strategy: Any) -> None:
        found.append(strategy.broker.order_by_client_id(agent.venue.submits[0].client_order_id))

    strategy = agent.live({2: lambda s: s.cancel(found[0])}, {4: lambda: cancel(agent)}, loading=look, bars=5)
    [order] = found
    assert type(order) is bt.BuyOrder
    assert (order.size, order.exectype, order.created.price, order.price) == (2, bt.Order.Limit, 9.5, 9.5)
    assert order.info.tag == "entry"
    assert order.owner is strategy
    assert order.data is strategy.data
    assert heard(strategy, 1) == ["Canceled"]
    assert told(strategy, 1) == ["Submitted", "Accepted", "Canceled"]
    assert strategy.broker.order_by_client_id("dw-tester-unknown-1") is None


def cancel(agent: Agent) -> None:
    settle(agent.broker)
    assert agent.venue.count("DELETE", "/v2/orders/") == 1
    send(agent, agent.venue.build_event("canceled", agent.venue.submits[0]))


def test_nothing_is_told_of_an_order_that_stands_as_it_stood(agent: Agent) -> None:
    agent.live({1: buy(size=2, **LIMIT)}, {3: accept(agent)})
    statuses: list[Any] = []

    def look(strategy: Any) -> None:
        [order] = strategy.broker.get_orders_open()
        statuses.append((order.status, strategy.broker.orderstatus(order), order.alive(), order.owner is strategy))

    strategy = agent.live({1: look})
    assert statuses == [(bt.Order.Accepted, bt.Order.Accepted, True, True)]
    assert heard(strategy, 1) == []
    assert len(agent.venue.submits) == 1


@pytest.mark.parametrize("saves_until", [0, 1, 2, 3, None])
def test_what_the_state_does_not_know_is_told_again_and_nothing_twice(agent: Agent, saves_until: int | None) -> None:
    """A partial fill, told before the kill but perhaps not kept."""

    def fill() -> None:
        request = agent.venue.submits[0]
        hold(agent, "2", "9.5")
        send(agent, agent.venue.build_event("partial_fill", request, qty="2", price="9.5"))

    agent.live({1: buy(size=5, **LIMIT)}, {2: accept(agent), 3: fill}, saves_until=saves_until)
    strategy = agent.live({})
    assert told(strategy, 1) == ["Submitted", "Accepted", "Partial 2"]
    [order] = strategy.broker.get_orders_open()
    assert (order.executed.size, order.executed.price, order.executed.remsize) == (2, 9.5, 3)
    assert strategy.position.size == 2
    # Backtrader's trades hold the position once, wherever its fills were told.
    assert [(trade.size, trade.price) for trade in strategy.trades][-1] == (2, 9.5)
    assert len(read_books(agent.journal_path).fills) == 1
    assert len(agent.venue.submits) == 1


def test_fills_and_the_end_while_nobody_was_there_are_told_once(agent: Agent) -> None:
    agent.live({1: buy(size=5, **LIMIT)}, {2: accept(agent)})
    request = agent.venue.submits[0]
    agent.venue.build_event("partial_fill", request, qty="2", price="9.4")
    agent.venue.build_event("fill", request, qty="3", price="9.5")
    hold(agent, "5", "9.46")
    strategy = agent.live({})
    assert told(strategy, 1) == ["Submitted", "Accepted", "Completed 5"]
    assert strategy.clones[-1].executed.price == pytest.approx(9.46)
    [order] = build_orders(read_books(agent.journal_path))
    assert (order.state, order.filled_qty) == ("filled", 5)
    strategy = agent.live({})
    assert told(strategy, 1) == ["Submitted", "Accepted", "Completed 5"]
    assert strategy.broker.get_orders_open() == []


@pytest.mark.parametrize("event", ["canceled", "expired", "rejected"])
def test_how_an_order_ended_meanwhile_is_told_once(agent: Agent, event: str) -> None:
    agent.live({1: buy(size=5, **LIMIT)}, {2: accept(agent)})
    agent.venue.build_event(event, agent.venue.submits[0], message="not today" if event == "rejected" else "")
    for _ in range(2):
        strategy = agent.live({})
    assert told(strategy, 1) == ["Submitted", "Accepted", event.capitalize()]
    assert build_orders(read_books(agent.journal_path))[0].state == "ended"


def intend(agent: Agent, *, age_s: float = 0.0) -> OrderRequest:
    """Leave behind what a process does that is killed between its journal and the venue's answer."""
    agent.live({}, bars=1)
    journal = Journal(agent.journal_path)
    now_ns = time.time_ns()
    session = journal.mint_session("tester").session
    request = OrderRequest(
        client_order_id=f"dw-tester-{session}-1", symbol="AAPL", side=Side.BUY, type=OrderType.LIMIT,
        time_in_force=TimeInForce.GTC, qty=Decimal(5), limit_price=Decimal("9.5"),
    )  # fmt: skip
    at_ns = now_ns - int(age_s * 1e9)
    journal.record_intents([Intent(request=request, number=1)], agent="tester", session=session, at_ns=at_ns)
    journal.close()
    return request


@pytest.mark.parametrize("is_taken", [True, False])
def test_an_intent_without_an_answer_is_settled_and_makes_one_order(agent: Agent, is_taken: bool) -> None:
    request = intend(agent)
    if is_taken:
        agent.venue._take(request)

    def accept_it() -> None:
        settle(agent.broker)
        send(agent, agent.venue.build_event("new", request))

    strategy = agent.live({2: buy(size=1)}, {2: accept_it})
    assert told(strategy, 1) == ["Submitted", "Accepted"]
    assert [submit.client_order_id for submit in agent.venue.submits[:-1]] == [request.client_order_id] * (not is_taken)
    assert agent.venue.submits[-1].client_order_id.endswith("-2")
    first = build_orders(read_books(agent.journal_path))[0]
    assert (first.state, first.note) == ("open", "")


def test_an_intent_that_is_too_old_is_not_sent_any_more(agent: Agent) -> None:
    intend(agent, age_s=61.0)
    for _ in range(2):
        strategy = agent.live({})
    assert told(strategy, 1) == ["Submitted", "Rejected"]
    assert agent.venue.submits == []
    assert strategy.clones == []


def test_a_strategy_that_keeps_nothing_hears_what_the_journal_did_not_know(
    venue: ScriptedVenue, tmp_path: Path
) -> None:
    agent = Agent(venue, tmp_path, saves=False)
    agent.live({1: buy(size=5, **LIMIT)}, {2: accept(agent)})
    strategy = agent.live({})
    assert heard(strategy, 1) == []
    [order] = strategy.broker.get_orders_open()
    assert (order.size, order.status) == (5, bt.Order.Accepted)
    venue.build_event("partial_fill", venue.submits[0], qty="2", price="9.5")
    hold(agent, "2", "9.5")
    assert heard(agent.live({}), 1) == ["Partial"]
    assert heard(agent.live({}), 1) == []


def test_executions_are_told_one_by_one_where_the_venue_lists_them(agent: Agent, venue: ScriptedVenue) -> None:
    agent.live({1: buy(size=5, **LIMIT)}, {2: accept(agent)})
    request = venue.submits[0]
    parts = [
        venue.build_event(event, request, qty=qty, price=price)
        for event, qty, price in (("partial_fill", "2", "9.4"), ("fill", "3", "9.5"))
    ]
    venue.executions = [
        {
            "id": f"2024::{part.execution_id}", "activity_type": "FILL", "order_id": part.order.id, "side": "buy",
            "qty": str(part.qty), "price": str(part.price), "cum_qty": str(part.order.filled_qty), "symbol": "AAPL",
            "transaction_time": encode_time(part.ts_event_ns),
        }
        for part in parts
    ]  # fmt: skip
    hold(agent, "5", "9.46")
    strategy = agent.live({})
    assert told(strategy, 1) == ["Submitted", "Accepted", "Partial 2", "Completed 5"]
    ids = [fill.execution_id for fill in read_books(agent.journal_path).fills]
    assert ids == [part.execution_id for part in parts]
    assert [(trade.size, trade.price) for trade in strategy.trades] == [(2, 9.4)]
    assert strategy.position.size == 5


def test_an_order_in_a_symbol_without_data_is_left_as_it_is(agent: Agent, venue: ScriptedVenue) -> None:
    agent.live({1: buy(size=5, **LIMIT)}, {2: accept(agent)})
    strategy = agent.live({}, symbols=("IBM",))
    assert strategy.broker.get_orders_open() == []
    assert strategy.broker.counters["open orders of an earlier run"] == 1
    assert strategy.broker.halted_symbols == {}
    assert len(agent.live({}).broker.get_orders_open()) == 1


def test_an_order_of_another_journal_is_taken_up_by_the_venues_word(agent: Agent, venue: ScriptedVenue) -> None:
    """The state directory was lost: the venue alone has the order, with our agent's id."""
    agent.live({1: buy(size=5, **LIMIT)}, {2: accept(agent)})
    for name in ("orders.sqlite", "strategy.json"):
        (agent.folder / name).unlink()
    strategy = agent.live({})
    [order] = strategy.broker.get_orders_open()
    assert (order.size, order.exectype, order.created.price) == (5, bt.Order.Limit, 9.5)
    assert order.info.client_order_id == venue.submits[0].client_order_id
    assert heard(strategy, 1) == []
    assert strategy.broker.halted_symbols == {}


@pytest.mark.parametrize("filled", ["0", "2"])
def test_books_and_venue_agree_on_an_order_that_was_taken_up(agent: Agent, venue: ScriptedVenue, filled: str) -> None:
    def fill() -> None:
        if Decimal(filled):
            hold(agent, filled, "9.5")
            send(agent, venue.build_event("partial_fill", venue.submits[0], qty=filled, price="9.5"))

    agent.live({1: buy(size=5, **LIMIT)}, {2: accept(agent), 3: fill})
    for name in ("orders.sqlite", "strategy.json"):
        (agent.folder / name).unlink()
    for _ in range(2):  # at once, and after the next start
        agent.live({})
        books = read_books(agent.journal_path)
        [own] = build_orders(books)
        assert (own.state, own.filled_qty, own.origin) == (OrderState.OPEN, Decimal(filled), TAKEN_UP)
        alone = compare(books, [own], None)
        assert alone.orders[0].reasons == (TAKEN_UP,)
        snapshot = VenueSnapshot(
            account=ACCOUNT, open_orders=(venue.orders[own.name],), positions=tuple(venue.positions)
        )
        found = compare(books, [own], snapshot)
        assert found.is_equal
        [row] = found.orders
        assert row.mark is Mark.EQUAL
        assert row.reasons == (TAKEN_UP,)
        assert row.venue.partition(",")[0] in ("new", "partially_filled")
