"""Brackets, OTO and OCO orders: one request, and the life of each order as the strategy hears it."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from typing import Any

import backtrader as bt
import pytest

from dry_work.broker.account import AccountState
from dry_work.broker.journal import Journal
from dry_work.orders.model import VenuePosition
from dry_work.wire.alpaca_rest import encode_error

from .conftest import build_broker
from .scripted_venue import ScriptedVenue, wait_until
from .stepping import holding, run, seen, settle

BRACKET = {"size": 10, "price": 10.0, "limitprice": 20.0, "stopprice": 5.0}


class Group:
    """A bracket that is placed at the first bar, and what the venue says of it."""

    def __init__(self, venue: ScriptedVenue, broker: Any, **changes: Any) -> None:
        self.venue, self.broker = venue, broker
        self.changes = {**BRACKET, **changes}
        self.orders: list[Any] = []

    def place(self, strategy: Any) -> None:
        self.orders = strategy.buy_bracket(**self.changes)

    def accept(self) -> None:
        head = self.venue.wait_submit(1)
        settle(self.broker)
        self.say("new", head)
        for leg in ("profit", "loss"):
            self.say("held", self.venue.leg(head, leg))

    def fill_entry(self) -> None:
        head = self.venue.wait_submit(1)
        self.say("fill", head, qty="10", price="10")
        self.say("new", self.venue.leg(head, "profit"))

    def say(self, event: str, order: Any, **facts: Any) -> None:
        seen(self.venue, self.broker, self.venue.build_event(event, order, **facts))

    def leg(self, name: str) -> Any:
        return self.venue.leg(self.venue.submits[0], name)


@pytest.fixture
def group(venue: ScriptedVenue, broker: Any) -> Group:
    return Group(venue, broker)


def told(strategy: Any, orders: list[Any]) -> list[list[str]]:
    return [strategy.statuses(order) for order in orders]


def test_a_bracket_is_one_request_with_two_legs(venue: ScriptedVenue, group: Group) -> None:
    strategy = run(group.broker, {1: group.place}, {2: group.accept})
    assert [json.loads(body) for body in venue.bodies] == [
        {
            "symbol": "AAPL", "side": "buy", "type": "limit", "time_in_force": "gtc", "qty": "10", "limit_price": "10",
            "client_order_id": "dw-tester-s-1", "order_class": "bracket", "take_profit": {"limit_price": "20"},
            "stop_loss": {"stop_price": "5"},
        }
    ]  # fmt: skip
    assert told(strategy, group.orders) == [["Submitted", "Accepted"]] * 3
    assert [status for _, status in strategy.told[:3]] == ["Submitted"] * 3
    assert [order.active() for order in group.orders] == [True, False, False]


@pytest.mark.parametrize(("winner", "loser"), [("profit", "loss"), ("loss", "profit")])
def test_one_exit_fills_and_the_other_is_canceled(group: Group, winner: str, loser: str) -> None:
    def exit_() -> None:
        group.say("fill", group.leg(winner), qty="10", price="20")
        group.say("canceled", group.leg(loser))

    strategy = run(group.broker, {1: group.place}, {2: group.accept, 3: group.fill_entry, 4: exit_})
    entry, stop, limit = group.orders
    won, lost = (limit, stop) if winner == "profit" else (stop, limit)
    assert strategy.statuses(entry) == ["Submitted", "Accepted", "Completed"]
    assert strategy.statuses(won) == ["Submitted", "Accepted", "Completed"]
    assert strategy.statuses(lost) == ["Submitted", "Accepted", "Canceled"]
    assert (won.executed.size, won.executed.price, won.executed.pnl) == (-10, 20.0, 100.0)
    assert [order.active() for order in (stop, limit)] == [True, True]
    assert [trade.isclosed for trade in strategy.trades] == [False, True]
    assert group.broker.position_of("AAPL") == 0
    assert group.broker.get_orders_open() == []


def test_of_a_group_one_order_at_a_time_counts_as_exposure(group: Group) -> None:
    seen_roles: list[list[str]] = []

    def look(strategy: Any) -> None:
        seen_roles.append([ticket.role.value for ticket in group.broker._desk.exposed()])

    run(group.broker, {1: group.place, 2: look, 3: look}, {2: group.accept, 3: group.fill_entry})
    assert seen_roles == [["entry"], ["take_profit"]]


def test_a_snapshot_without_the_held_leg_changes_nothing(
    venue: ScriptedVenue, journal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alpaca leaves held stop legs out of its list of open orders."""
    monkeypatch.setattr("dry_work.broker.account.TICK_S", 0.01)
    monkeypatch.setattr("dry_work.broker.account.SETTLE_S", 0.01)
    broker = build_broker(venue, journal, refresh_s=0.05)
    group = Group(venue, broker)

    def hide() -> None:
        group.fill_entry()
        leg = group.leg("loss")
        venue.hidden.add(leg.client_order_id)
        venue.positions = [VenuePosition(symbol="AAPL", qty=Decimal(10), avg_entry_price=Decimal(10))]
        venue.cash = Decimal(99_900)

    def await_snapshot() -> None:
        link = broker._link

        def has_come() -> bool:
            states = [item for item in tuple(link.inbox) if isinstance(item, AccountState)]
            return any(broker._cache.may_replace(state) for state in states)

        wait_until(has_come, "a snapshot that may be taken over")

    scripts = {2: group.accept, 3: hide, 4: await_snapshot, 5: await_snapshot, 6: lambda: settle(broker)}
    strategy = run(broker, {1: group.place}, scripts, bars=7)
    assert venue.count("GET", f"/v2/orders/{group.leg('loss').id}") > 0
    assert told(strategy, group.orders) == [["Submitted", "Accepted", "Completed"], *[["Submitted", "Accepted"]] * 2]
    assert broker.counters["stream restarts"] == 0


def test_the_exit_that_the_venue_forgot_to_cancel_in_words_is_asked_for(venue: ScriptedVenue, group: Group) -> None:
    def exit_() -> None:
        venue.update(group.leg("loss").client_order_id, status="canceled")
        group.say("fill", group.leg("profit"), qty="10", price="20")

    scripts = {2: group.accept, 3: group.fill_entry, 4: exit_, 6: lambda: settle(group.broker)}
    strategy = run(group.broker, {1: group.place}, scripts, bars=7)
    assert told(strategy, group.orders) == [
        ["Submitted", "Accepted", end] for end in ("Completed", "Canceled", "Completed")
    ]


def test_a_stop_that_the_venue_replaces_when_it_triggers_is_followed(venue: ScriptedVenue, group: Group) -> None:
    def trigger() -> None:
        loss = group.leg("loss")
        new = venue.take_replacement(loss, type("Change", (), {
            "client_order_id": "the-venues-own", "qty": None, "limit_price": None, "stop_price": None,
        })())  # fmt: skip
        seen(venue, group.broker, venue.replaced(loss, new))
        group.say("fill", new, qty="10", price="4.9")
        group.say("canceled", group.leg("profit"))

    strategy = run(group.broker, {1: group.place}, {2: group.accept, 3: group.fill_entry, 4: trigger}, bars=7)
    ends = [statuses[-1] for statuses in told(strategy, group.orders)]
    assert ends == ["Completed", "Completed", "Canceled"]
    assert group.orders[1].executed.price == 4.9
    assert [fill["client_order_id"] for fill in group.broker.results()[1]] == ["dw-tester-s-1", "dw-tester-s-2"]


def test_the_cancellation_of_the_entry_ends_all(venue: ScriptedVenue, group: Group) -> None:
    def cancel(strategy: Any) -> None:
        assert group.broker.cancel(group.orders[0])

    def confirm() -> None:
        settle(group.broker)
        assert venue.count("DELETE", "/v2/orders/taken-dw-tester-s-1") == venue.count("DELETE", "/") == 1
        for order in (venue.submits[0], group.leg("loss"), group.leg("profit")):
            group.say("canceled", order)

    strategy = run(group.broker, {1: group.place, 2: cancel}, {2: group.accept, 3: confirm})
    assert told(strategy, group.orders) == [["Submitted", "Accepted", "Canceled"]] * 3


def test_a_leg_is_canceled_by_the_venues_id(venue: ScriptedVenue, group: Group) -> None:
    def cancel(strategy: Any) -> None:
        assert group.broker.cancel(group.orders[1])

    scripts = {2: group.accept, 3: group.fill_entry, 4: lambda: settle(group.broker)}
    run(group.broker, {1: group.place, 3: cancel}, scripts)
    assert venue.count("DELETE", "/v2/orders/leg-dw-tester-s-1~loss") == 1


def test_an_entry_that_is_partly_filled_goes_on(group: Group) -> None:
    def part() -> None:
        head = group.venue.submits[0]
        group.say("partial_fill", head, qty="4", price="10")
        group.say("partial_fill", head, qty="5", price="10")
        group.say("fill", head, qty="1", price="9")

    strategy = run(group.broker, {1: group.place}, {2: group.accept, 3: part})
    assert strategy.statuses(group.orders[0]) == ["Submitted", "Accepted", "Partial", "Partial", "Completed"]
    assert group.orders[0].executed.price == pytest.approx(9.9)


def test_what_is_told_of_legs_before_the_answer_waits_for_them(venue: ScriptedVenue, group: Group) -> None:
    ids: list[str] = []

    async def hurry(request: Any, number: int) -> None:
        venue._take(request)
        for event, order, facts in (
            ("new", request, {}), ("fill", request, {"qty": "10", "price": "10"}),
            ("new", venue.leg(request, "profit"), {}),
            ("fill", venue.leg(request, "profit"), {"qty": "10", "price": "20"}),
            ("canceled", venue.leg(request, "loss"), {}),
        ):  # fmt: skip
            told_event = venue.build_event(event, order, **facts)
            ids.append(told_event.event_id)
            await venue.tell(told_event)

    venue.on_submit = hurry

    def await_all() -> None:
        settle(group.broker)
        wait_until(lambda: group.broker.has_seen(ids[-1]), "the last event")

    strategy = run(group.broker, {1: group.place}, {2: await_all})
    assert told(strategy, group.orders) == [
        ["Submitted", "Accepted", "Completed"],
        ["Submitted", "Canceled"],
        ["Submitted", "Accepted", "Completed"],
    ]
    assert group.broker.counters["fills of other orders"] == 0
    assert group.broker.position_of("AAPL") == 0


@pytest.mark.parametrize("tells_legs", [True, False])
def test_a_lost_answer_and_an_answer_without_legs_are_made_up_for(
    venue: ScriptedVenue, group: Group, tells_legs: bool
) -> None:
    venue.tells_legs = tells_legs
    venue.on_submit = lambda request, number: "take_and_drop" if tells_legs else None
    strategy = run(group.broker, {1: group.place}, {2: group.accept, 3: group.fill_entry})
    assert len(venue.submits) == 1
    assert told(strategy, group.orders) == [["Submitted", "Accepted", "Completed"], *[["Submitted", "Accepted"]] * 2]


@pytest.mark.parametrize(
    ("code", "message", "first"),
    [(40310000, "insufficient buying power", "Margin"), (42210000, "bracket orders must be entry orders", "Rejected")],
)
def test_a_refusal_of_the_entry_rejects_all(
    venue: ScriptedVenue, group: Group, code: int, message: str, first: str
) -> None:
    venue.on_submit = lambda request, number: (403, encode_error(code, message))
    strategy = run(group.broker, {1: group.place}, {2: lambda: settle(group.broker)})
    assert told(strategy, group.orders) == [["Submitted", first], *[["Submitted", "Rejected"]] * 2]
    assert all(message in order.info.reject_reason for order in group.orders)


def test_a_group_that_alpaca_cannot_take_is_refused_as_a_whole(venue: ScriptedVenue, broker: Any) -> None:
    group = Group(venue, broker, stopexec=bt.Order.StopTrail, stopargs={"trailpercent": 0.02, "price": None})
    strategy = run(broker, {1: group.place})
    assert told(strategy, group.orders) == [["Rejected"]] * 3
    assert {order.info.reject_rule for order in group.orders} == {"leg_kind"}
    assert venue.submits == []


@pytest.mark.parametrize(
    ("changes", "exits"),
    [
        ({"stopexec": None}, {"take_profit": {"limit_price": "20"}}),
        ({"limitexec": None}, {"stop_loss": {"stop_price": "5"}}),
    ],
)
def test_a_bracket_with_one_exit_is_an_oto(
    venue: ScriptedVenue, broker: Any, changes: dict[str, Any], exits: dict[str, Any]
) -> None:
    group = Group(venue, broker, **changes)
    run(broker, {1: group.place}, {2: lambda: settle(broker)})
    body = json.loads(venue.bodies[0])
    assert {name: body[name] for name in body if name in ("order_class", "take_profit", "stop_loss")} == {
        "order_class": "oto", **exits,
    }  # fmt: skip


def test_a_bracket_without_exits_is_a_plain_order(venue: ScriptedVenue, broker: Any) -> None:
    group = Group(venue, broker, stopexec=None, limitexec=None)
    run(broker, {1: group.place}, {2: lambda: settle(broker)})
    assert "order_class" not in json.loads(venue.bodies[0])


def test_a_child_without_a_waiting_parent_is_refused(venue: ScriptedVenue, broker: Any) -> None:
    def place(strategy: Any) -> Any:
        return strategy.sell(size=1, exectype=bt.Order.Stop, price=5.0, parent=strategy.buy(size=1))

    strategy = run(broker, {1: place}, {2: lambda: settle(broker)})
    assert strategy.orders[0].info.reject_rule == "parent"
    assert len(venue.submits) == 1


def test_the_journal_tells_the_legs_of_a_group_apart(venue: ScriptedVenue, journal: Journal, group: Group) -> None:
    known: list[Any] = []
    venue.on_submit = lambda request, number: known.append((journal.intents(), journal.links()))
    run(group.broker, {1: group.place}, {2: lambda: settle(group.broker)})
    names = [f"dw-tester-s-{number}" for number in (1, 2, 3)]
    links = {names[1]: (names[0], "stop_loss"), names[2]: (names[0], "take_profit")}
    assert known == [(names, links)]  # before the request
    assert journal.unanswered() == []
    assert journal.mint_session("tester", session="s").last_number == 3


def test_a_group_with_a_date_expires_as_one(venue: ScriptedVenue, journal: Any) -> None:
    from dry_work.clock import ManualClock

    from .scripted_venue import NOW_NS

    clock = ManualClock(NOW_NS)
    broker = build_broker(venue, journal, clock=clock)
    group = Group(venue, broker, valid=dt.datetime(2024, 6, 11, 13, 40))

    def confirm() -> None:
        settle(broker)
        assert venue.count("DELETE", "/") == 1
        for order in (venue.submits[0], group.leg("loss"), group.leg("profit")):
            group.say("canceled", order)

    scripts = {2: group.accept, 3: lambda: clock.advance(601), 5: confirm}
    strategy = run(broker, {1: group.place}, scripts, bars=7)
    assert [statuses[-1] for statuses in told(strategy, group.orders)] == ["Expired", "Canceled", "Canceled"]


# One cancels the other


@pytest.mark.parametrize("first", ["stop", "limit"])
def test_two_exits_with_oco_are_one_request(venue: ScriptedVenue, broker: Any, journal: Journal, first: str) -> None:
    holding(venue, "10")
    orders: list[Any] = []

    def place(strategy: Any) -> None:
        kinds = {
            "stop": {"exectype": bt.Order.Stop, "price": 5.0},
            "limit": {"exectype": bt.Order.Limit, "price": 20.0},
        }
        orders.append(strategy.sell(size=10, **kinds.pop(first)))
        [other] = kinds.values()
        orders.append(strategy.sell(size=10, oco=orders[0], **other))

    def accept() -> None:
        settle(broker)
        head = venue.submits[0]
        seen(venue, broker, venue.build_event("new", head), venue.build_event("held", venue.leg(head, "loss")))

    def fill() -> None:
        head = venue.submits[0]
        seen(
            venue, broker, venue.build_event("fill", head, qty="10", price="20"),
            venue.build_event("canceled", venue.leg(head, "loss")),
        )  # fmt: skip

    strategy = run(broker, {1: place}, {2: accept, 3: fill})
    head = "dw-tester-s-1" if first == "limit" else "dw-tester-s-2"
    assert [json.loads(body) for body in venue.bodies] == [
        {
            "symbol": "AAPL", "side": "sell", "type": "limit", "time_in_force": "gtc", "qty": "10",
            "client_order_id": head, "order_class": "oco", "take_profit": {"limit_price": "20"},
            "stop_loss": {"stop_price": "5"},
        }
    ]  # fmt: skip
    ends = ["Completed", "Canceled"] if first == "limit" else ["Canceled", "Completed"]
    assert told(strategy, orders) == [["Submitted", "Accepted", end] for end in ends]
    assert list(journal.links().values()) == [(head, "stop_loss")]
    assert journal.unanswered() == []
    assert [record["limit_price"] for record in broker.results()[0] if record["type"] == "limit"] == [20.0]


def test_an_exit_whose_pair_does_not_come_goes_out_alone(venue: ScriptedVenue, broker: Any) -> None:
    holding(venue, "10")
    place = lambda s: s.sell(size=10, exectype=bt.Order.Stop, price=5.0)  # noqa: E731
    run(broker, {1: place, 2: lambda s: None}, {3: lambda: settle(broker)})
    [body] = [json.loads(body) for body in venue.bodies]
    assert (body["type"], "order_class" in body) == ("stop", False)


@pytest.mark.parametrize(
    ("held", "first", "second", "rule", "sent"),
    [
        ("0", {"exectype": bt.Order.Limit, "price": 20.0}, {"exectype": bt.Order.Stop, "price": 5.0}, "oco", 1),
        ("10", {"exectype": bt.Order.Market}, {"exectype": bt.Order.Stop, "price": 5.0}, "oco", 1),
        ("10", {"exectype": bt.Order.Stop, "price": 6.0}, {"exectype": bt.Order.Stop, "price": 5.0}, "two_of_a_kind",
         1),
        ("10", {"exectype": bt.Order.Limit, "price": 20.0}, {"exectype": bt.Order.Stop, "price": 5.0, "size": 4},
         "leg_size", 1),
    ],
)  # fmt: skip
def test_a_pair_that_alpaca_does_not_take_is_refused(
    venue: ScriptedVenue, broker: Any, held: str, first: Any, second: Any, rule: str, sent: int
) -> None:
    holding(venue, held)
    orders: list[Any] = []

    def place(strategy: Any) -> None:
        orders.append(strategy.sell(**{"size": 10, **first}))
        orders.append(strategy.sell(**{"size": 10, "oco": orders[0], **second}))

    strategy = run(broker, {1: place}, {3: lambda: settle(broker)})
    assert strategy.statuses(orders[1]) == ["Rejected"]
    assert orders[1].info.reject_rule == rule
    assert len(venue.submits) == sent


def test_a_pair_that_comes_too_late_is_refused(venue: ScriptedVenue, broker: Any) -> None:
    holding(venue, "10")
    orders: list[Any] = []
    first = lambda s: orders.append(s.sell(size=10, exectype=bt.Order.Limit, price=20.0))  # noqa: E731
    second = lambda s: orders.append(s.sell(size=10, exectype=bt.Order.Stop, price=5.0, oco=orders[0]))  # noqa: E731
    run(broker, {1: first, 2: second}, {3: lambda: settle(broker)})
    assert orders[1].info.reject_rule == "oco"
    assert len(venue.submits) == 1
