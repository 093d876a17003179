"""What happens in the account beside the agent's orders: others' orders, trades by hand, busts, the unexplained."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import backtrader as bt
import pytest
from msgspec.structs import replace

from dry_work.broker.books_reader import read_books
from dry_work.broker.journal import Journal
from dry_work.broker.own_books import expect_positions, sum_positions
from dry_work.broker.status import VenueSnapshot, compare
from dry_work.orders.model import AccountSnapshot, OrderRequest, Side, VenuePosition
from dry_work.wire.alpaca_orders import encode_order

from .conftest import build_broker
from .restarting import Agent, told
from .scripted_venue import ScriptedVenue, foreign_request, wait_until
from .stepping import Recorder, buy, run, seen, settle


@pytest.fixture
def quick_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dry_work.broker.account.TICK_S", 0.01)
    monkeypatch.setattr("dry_work.broker.account.SETTLE_S", 0.01)


@pytest.fixture
def agent(venue: ScriptedVenue, tmp_path: Path) -> Agent:
    return Agent(venue, tmp_path)


class Listener(Recorder):
    """Also hears of the account."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[Any] = []

    def notify_store(self, message: str, *args: Any, **_: Any) -> None:
        if message == "reconciliation":
            self.notes.append(args[0])


def listen(broker: Any, actions: dict[int, Callable[[Any], Any]], scripts: dict[int, Callable[[], Any]]) -> Any:
    """Run and return a strategy that hears of the account."""
    return run(broker, actions, scripts, bars=8, strategy=Listener)


def refresh(broker: Any, condition: Callable[[], Any], what: str) -> None:
    """Let snapshots come until something is so."""

    def look() -> bool:
        broker.refresh_account()
        broker.next()
        return bool(condition())

    wait_until(look, what, timeout_s=30)


def hold(venue: ScriptedVenue, qty: str, price: str = "10") -> None:
    venue.positions = [VenuePosition(symbol="AAPL", qty=Decimal(qty), avg_entry_price=Decimal(price))]


def trade_by_hand(venue: ScriptedVenue, qty: str, *, name: str = "manual-1", side: Side = Side.BUY) -> OrderRequest:
    """Let an order of somebody else be filled, without telling of it."""
    request = replace(foreign_request("AAPL", side), client_order_id=name, qty=Decimal(qty))
    venue.build_event("fill", request, qty=qty, price="10")
    return request


# Others' orders


def test_an_order_of_somebody_else_is_marked_once(venue: ScriptedVenue, journal: Journal, quick_keeper: None) -> None:
    broker = build_broker(venue, journal)

    def place() -> None:
        venue.build_event("new", replace(foreign_request("AAPL"), client_order_id="manual-1"))
        refresh(broker, lambda: broker.counters["orders of others"], "it is seen")
        taken = venue.count("GET", "/v2/account")
        refresh(broker, lambda: venue.count("GET", "/v2/account") > taken + 2, "more snapshots are in")

    strategy = listen(broker, {}, {2: place})
    [note] = strategy.notes
    assert (note.kind, note.symbol, note.client_order_id) == ("foreign_order", "AAPL", "manual-1")
    assert note.text == "an order of nobody that is known (by hand, or another program): buy 1 market, new"
    assert broker.halted_symbols == {}
    [kept] = read_books(journal.path).foreign
    assert (kept.client_order_id, kept.side, kept.filled_qty) == ("manual-1", "buy", 0)


def test_closing_orders_of_flatten_are_no_mystery(venue: ScriptedVenue, journal: Journal, quick_keeper: None) -> None:
    broker = build_broker(venue, journal)

    def place() -> None:
        name = "dw-tester-flat12ab_AAPL-1"
        venue.build_event("new", replace(foreign_request("AAPL", Side.SELL), client_order_id=name))
        refresh(broker, lambda: broker.counters["orders of others"], "it is seen")

    strategy = listen(broker, {}, {2: place})
    assert [note.text for note in strategy.notes] == ["an order of dry-work flatten: sell 1 market, new"]
    assert broker.halted_symbols == {}


def test_orders_that_cannot_be_told_do_not_stop_the_account(
    venue: ScriptedVenue, journal: Journal, quick_keeper: None
) -> None:
    """An order of several options has no symbol and no side; another one may be of a kind that nobody knows yet."""
    broker = build_broker(venue, journal)
    broker.start()
    body = encode_order(venue._new_order(foreign_request("AAPL")))
    leg = {**body, "symbol": "AAPL240621C00200000", "asset_class": "us_option", "type": "", "order_type": ""}
    several = {
        **body, "symbol": "", "side": "", "asset_id": "", "order_class": "mleg", "type": "limit", "limit_price": "1.2",
        "legs": [leg, {**leg, "side": "sell"}],
    }  # fmt: skip
    venue.strange_orders = [several, {**body, "id": "x", "type": "iceberg"}]
    venue.cash = Decimal(321)
    refresh(broker, lambda: broker.getcash() == 321, "the snapshot is taken over")
    assert broker.halted == ""
    assert broker._cache.failures == 0
    broker.stop()


def test_an_order_of_our_id_that_was_never_intended_halts_its_symbol_until_it_is_gone(
    venue: ScriptedVenue, journal: Journal, quick_keeper: None
) -> None:
    broker = build_broker(venue, journal)
    name = "dw-tester-s-77"

    def appear() -> None:
        venue.build_event("new", replace(foreign_request("AAPL"), client_order_id=name))
        refresh(broker, lambda: broker.halted_symbols, "the symbol is halted")

    def vanish() -> None:
        venue.build_event("canceled", replace(foreign_request("AAPL"), client_order_id=name))
        refresh(broker, lambda: not broker.halted_symbols, "the symbol is explained")

    strategy = listen(broker, {2: buy(size=1), 5: buy(size=1)}, {2: appear, 4: vanish})
    refused, taken = strategy.orders
    assert refused.getstatusname() == "Rejected"
    assert refused.info.reject_code == "unexplained"
    assert f"the venue has an order {name} that was never intended here" in refused.info.reject_reason
    assert taken.getstatusname() == "Submitted"
    assert [note.kind for note in strategy.notes] == ["foreign_order", "halt", "resume"]
    assert read_books(journal.path).halts == ()


# Positions


def test_a_trade_by_hand_while_running_is_marked_and_explained(
    venue: ScriptedVenue, journal: Journal, quick_keeper: None
) -> None:
    broker = build_broker(venue, journal)

    def trade() -> None:
        trade_by_hand(venue, "7")
        hold(venue, "7", "10")
        refresh(broker, lambda: broker.position_of("AAPL") == 7, "the position is taken over")

    strategy = listen(broker, {4: buy(size=1)}, {2: trade})
    assert broker.halted_symbols == {}
    [note] = strategy.notes
    assert note.kind == "position"
    assert note.text.startswith("the position is 7 instead of 0: buy 7 of nobody that is known")
    assert strategy.orders[0].getstatusname() == "Submitted"
    books = read_books(journal.path)
    assert expect_positions(books)["AAPL"].qty == 7
    assert sum_positions(books).get("AAPL") is None or sum_positions(books)["AAPL"].qty == 0


def test_a_position_that_nothing_explains_halts_its_symbol_alone(
    venue: ScriptedVenue, journal: Journal, quick_keeper: None
) -> None:
    broker = build_broker(venue, journal)

    def differ() -> None:
        hold(venue, "5")
        refresh(broker, lambda: broker.halted_symbols, "the symbol is halted")

    def look(strategy: Any) -> Any:
        aapl, ibm = strategy.datas
        return [
            strategy.buy(data=aapl, size=1), strategy.sell(data=aapl, size=6), strategy.sell(data=aapl, size=2),
            strategy.sell(data=aapl, size=4), strategy.buy(data=ibm, size=1),
        ]  # fmt: skip

    found: list[Any] = []
    strategy = run(broker, {2: lambda s: found.extend(look(s))}, {2: differ}, bars=4, symbols=("AAPL", "IBM"))
    codes = [order.info.get("reject_code") for order in found]
    assert codes == ["unexplained", "unexplained", None, "unexplained", None]
    assert "the venue's position 5 is +5 beside what our fills" in broker.halted_symbols["AAPL"]
    assert strategy.broker.position_of("AAPL") == 5
    [halt] = read_books(journal.path).halts
    assert (halt.symbol, halt.cause) == ("AAPL", "position")


def test_a_halt_is_lifted_by_a_snapshot_that_explains_it(
    venue: ScriptedVenue, journal: Journal, quick_keeper: None
) -> None:
    broker = build_broker(venue, journal)
    broker.start()
    hold(venue, "5")
    refresh(broker, lambda: broker.halted_symbols, "the symbol is halted")
    taken = venue.count("GET", "/v2/account")
    refresh(broker, lambda: venue.count("GET", "/v2/account") > taken + 2, "more snapshots are in")
    assert broker.halted_symbols, "the same position explains nothing"
    venue.positions = []
    refresh(broker, lambda: not broker.halted_symbols, "it is as our fills have it")
    assert broker.position_of("AAPL") == 0
    hold(venue, "5")
    refresh(broker, lambda: broker.halted_symbols, "the symbol is halted again")
    trade_by_hand(venue, "5")
    refresh(broker, lambda: not broker.halted_symbols, "an order explains it")
    assert broker.position_of("AAPL") == 5
    broker.stop()


def test_a_restart_takes_the_account_as_it_is(venue: ScriptedVenue, journal: Journal, quick_keeper: None) -> None:
    broker = build_broker(venue, journal)
    broker.start()
    hold(venue, "5")
    refresh(broker, lambda: broker.halted_symbols, "the symbol is halted")
    broker.stop()
    broker = build_broker(venue, journal)
    broker.start()
    assert broker.halted_symbols == {}
    assert read_books(journal.path).halts == ()
    broker.stop()


def test_status_shows_a_halt_and_what_was_marked(venue: ScriptedVenue, journal: Journal, quick_keeper: None) -> None:
    broker = build_broker(venue, journal)
    broker.start()
    hold(venue, "5")
    refresh(broker, lambda: broker.halted_symbols, "the symbol is halted")
    books = read_books(journal.path)
    account = AccountSnapshot(id="a", account_number="1", cash=Decimal(1), equity=Decimal(1), buying_power=Decimal(1))
    found = compare(books, [], VenueSnapshot(account=account, positions=tuple(venue.positions), history=()))
    assert not found.is_equal
    [row] = found.positions
    assert any("halted since" in reason and "is +5 beside" in reason for reason in row.reasons)
    assert not compare(books, [], None).is_equal
    broker.stop()


def test_a_manual_trade_after_a_run_whose_only_order_was_not_filled_is_marked(
    agent: Agent, venue: ScriptedVenue
) -> None:
    agent.live({1: buy(size=3, exectype=bt.Order.Limit, price=1.0)})
    trade_by_hand(venue, "2")
    hold(venue, "2")
    notes: list[Any] = []
    strategy = agent.live({}, {1: lambda: notes.extend(agent.broker._delivery._notes)})
    assert [note.text for note in notes if note.kind == "position"] == [
        "the position is 2 instead of 0: buy 2 of nobody that is known (by hand, or another program)"
    ]
    assert strategy.position.size == 2


def test_a_manual_trade_while_nobody_was_there_is_marked(agent: Agent, venue: ScriptedVenue) -> None:
    def fill() -> None:
        settle(agent.broker)
        seen(venue, agent.broker, venue.build_event("fill", venue.submits[0], qty="3", price="10"))
        hold(venue, "3")

    agent.live({1: buy(size=3)}, {3: fill})
    trade_by_hand(venue, "2", side=Side.SELL)
    hold(venue, "1")
    notes: list[Any] = []
    strategy = agent.live({}, {1: lambda: notes.extend(agent.broker._delivery._notes)})
    assert [note.text for note in notes if note.kind == "position"] == [
        "the position is 1 instead of 3: sell 2 of nobody that is known (by hand, or another program)"
    ]
    assert strategy.position.size == 1
    assert told(strategy, 1) == ["Submitted", "Accepted", "Completed 3"]
    assert expect_positions(read_books(agent.journal_path))["AAPL"].qty == 1
    notes.clear()
    agent.live({}, {1: lambda: notes.extend(agent.broker._delivery._notes)})
    assert notes == []


def test_an_order_that_vanished_halts_its_symbol_and_is_ended_at_the_next_start(agent: Agent) -> None:
    venue = agent.venue

    def accept() -> None:
        settle(agent.broker)
        seen(venue, agent.broker, venue.build_event("new", venue.submits[0]))

    def forget() -> None:
        venue.orders.clear()
        broker = agent.broker
        refresh(broker, lambda: broker.halted_symbols, "the symbol is halted")

    agent.live({1: buy(size=3, exectype=bt.Order.Limit, price=9.0)}, {2: accept, 3: forget}, saves_until=4)
    assert "the venue does not know dw-tester-" in agent.broker.halted_symbols["AAPL"]
    halted: list[str] = []
    strategy = agent.live({}, {1: lambda: halted.append(agent.broker.halted)})
    assert told(strategy, 1) == ["Submitted", "Accepted", "Canceled"]
    assert strategy.clones[-1].info.reject_reason == "the venue does not know the order any more"
    assert "does not know the order any more" in halted[0]
    agent.live({}, {1: lambda: halted.append(agent.broker.halted)})
    assert halted[1] == ""


# Busts and corrections


class Filled:
    """An order for five shares that is filled in two parts, 2 at 10 and 3 at 11."""

    def __init__(self, venue: ScriptedVenue, broker: Any) -> None:
        self.venue, self.broker = venue, broker
        self.parts: list[Any] = []

    def fill(self) -> None:
        request = self.venue.wait_submit(1)
        settle(self.broker)
        for event, qty, price in (("partial_fill", "2", "10"), ("fill", "3", "11")):
            self.parts.append(self.venue.build_event(event, request, qty=qty, price=price))
        seen(self.venue, self.broker, *self.parts)

    def bust(self, part: int, **changes: Any) -> Any:
        order, taken = self.venue.orders[self.venue.submits[0].client_order_id], self.parts[part]
        qty = order.filled_qty - taken.qty
        value = order.filled_qty * (order.filled_avg_price or 0) - taken.qty * taken.price
        order = self.venue.update(
            order.client_order_id, filled_qty=qty, filled_avg_price=value / qty if qty else None,
            updated_ns=taken.ts_event_ns + 10**12,
        )  # fmt: skip
        event = self.venue.build_event("trade_bust", order, status=order.status, execution_id=f"bust-{part}")
        return replace(event, qty=-taken.qty, price=taken.price, previous_execution_id=taken.execution_id, **changes)


@pytest.fixture
def filled(venue: ScriptedVenue, broker: Any) -> Filled:
    return Filled(venue, broker)


def test_a_bust_is_undone_in_books_position_order_and_trades(filled: Filled, broker: Any, journal: Journal) -> None:
    found: list[Any] = []

    def bust() -> None:
        event = filled.bust(1)
        seen(filled.venue, broker, event, replace(event, event_id="E99999999"))  # told twice

    def look(strategy: Any) -> None:
        found.extend(
            [broker.getcash(), broker.getposition(strategy.data).size, broker.getposition(strategy.data).price]
        )

    strategy = run(broker, {1: buy(size=5), 4: look}, {2: filled.fill, 4: bust})
    assert found == [100_000 - 20, 2, 10.0]
    clone = strategy.clones[-1]
    assert (clone.getstatusname(), clone.executed.size, clone.executed.price) == ("Completed", 2, 10.0)
    assert clone.executed.value == 20
    assert [(trade.size, trade.isclosed) for trade in strategy.trades] == [(2, False)]
    [trade] = strategy._trades[strategy.data][0]
    assert (trade.size, trade.isopen) == (2, True)
    fills = read_books(journal.path).fills
    assert [(fill.qty, fill.previous_execution_id) for fill in fills][2] == (-3, filled.parts[1].execution_id)
    assert len(fills) == 3
    assert sum_positions(read_books(journal.path))["AAPL"].qty == 2
    orders, records = broker.results()
    assert [record["qty"] for record in records] == [2.0]
    assert len(orders) == 1


def test_a_bust_of_all_leaves_nothing(filled: Filled, broker: Any) -> None:
    strategy = run(
        broker,
        {1: buy(size=5)},
        {2: filled.fill, 4: lambda: seen(filled.venue, broker, filled.bust(0), filled.bust(1))},
    )
    clone = strategy.clones[-1]
    assert (clone.getstatusname(), clone.executed.size, clone.executed.price) == ("Completed", 0, 0.0)
    assert (broker.getcash(), broker.position_of("AAPL")) == (100_000, 0)
    [trade] = strategy._trades[strategy.data][0]
    assert trade.isclosed


def test_an_open_order_goes_on_after_a_bust(venue: ScriptedVenue, broker: Any) -> None:
    filled = Filled(venue, broker)

    def part() -> None:
        request = venue.wait_submit(1)
        settle(broker)
        filled.parts.append(venue.build_event("partial_fill", request, qty="2", price="10"))
        seen(venue, broker, filled.parts[0])

    def rest() -> None:
        seen(venue, broker, venue.build_event("fill", venue.submits[0], qty="5", price="12"))

    strategy = run(broker, {1: buy(size=5)}, {2: part, 4: lambda: seen(venue, broker, filled.bust(0)), 5: rest}, bars=6)
    rows = [(clone.getstatusname(), clone.executed.size) for clone in strategy.clones]
    assert rows == [("Submitted", 0), ("Accepted", 0), ("Partial", 2), ("Accepted", 0), ("Completed", 5)]
    assert strategy.clones[-1].executed.price == 12.0
    assert broker.position_of("AAPL") == 5


def test_a_correction_puts_another_execution_in_the_place_of_one(filled: Filled, broker: Any, journal: Journal) -> None:
    def correct() -> None:
        event = filled.bust(1)
        order = replace(event.order, filled_qty=Decimal(4), filled_avg_price=Decimal("10.25"))
        seen(
            filled.venue, broker,
            replace(event, event="trade_correct", order=order, qty=Decimal(2), price=Decimal("10.5")),
        )  # fmt: skip

    strategy = run(broker, {1: buy(size=5)}, {2: filled.fill, 4: correct})
    clone = strategy.clones[-1]
    assert (clone.executed.size, clone.executed.price) == (4, 10.25)
    assert (broker.getcash(), broker.position_of("AAPL")) == (100_000 - 41, 4)
    assert [fill.qty for fill in read_books(journal.path).fills] == [2, 3, -3, 2]


def test_a_bust_before_its_execution_leaves_nothing_of_it(venue: ScriptedVenue, broker: Any) -> None:
    filled = Filled(venue, broker)

    def both() -> None:
        request = venue.wait_submit(1)
        settle(broker)
        filled.parts.append(venue.build_event("partial_fill", request, qty="2", price="10"))
        filled.parts.append(venue.build_event("partial_fill", request, qty="3", price="11"))
        bust = filled.bust(1)
        seen(venue, broker, filled.parts[0], bust, filled.parts[1])

    run(broker, {1: buy(size=9)}, {2: both})
    assert (broker.getcash(), broker.position_of("AAPL")) == (100_000 - 20, 2)


def test_a_bust_while_nobody_was_there_is_told_and_written_down_once(agent: Agent) -> None:
    venue = agent.venue
    filled = Filled(venue, None)

    def fill() -> None:
        filled.broker = agent.broker
        filled.fill()
        hold(venue, "5", "10.6")

    agent.live({1: buy(size=5)}, {2: fill})
    filled.bust(1)
    hold(venue, "2", "10")
    notes: list[Any] = []
    agent.live({}, {1: lambda: notes.extend(agent.broker._delivery._notes)})
    assert [(note.kind, note.text) for note in notes if note.kind == "bust"] == [
        ("bust", "taken back: buy 3 at 11, of an order of an earlier run")
    ]
    assert not [note for note in notes if note.kind == "position"]
    for _ in range(2):
        assert sum_positions(read_books(agent.journal_path))["AAPL"].qty == 2
        notes.clear()
        agent.live({}, {1: lambda: notes.extend(agent.broker._delivery._notes)})
        assert notes == []


def test_a_bust_of_an_open_order_while_nobody_was_there_is_told_to_its_strategy(agent: Agent) -> None:
    venue = agent.venue
    filled = Filled(venue, None)

    def part() -> None:
        filled.broker = agent.broker
        settle(agent.broker)
        filled.parts.append(venue.build_event("partial_fill", venue.submits[0], qty="2", price="10"))
        seen(venue, agent.broker, filled.parts[0])
        hold(venue, "2")

    agent.live({1: buy(size=5, exectype=bt.Order.Limit, price=10.0)}, {2: part})
    filled.bust(0)
    venue.positions = []
    strategy = agent.live({})
    assert told(strategy, 1) == ["Submitted", "Accepted", "Partial 2", "Accepted"]
    [order] = strategy.broker.get_orders_open()
    assert (order.executed.size, order.executed.remsize, strategy.position.size) == (0, 5, 0)
    assert told(agent.live({}), 1) == ["Submitted", "Accepted", "Partial 2", "Accepted"]
