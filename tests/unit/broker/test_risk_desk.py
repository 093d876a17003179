"""What the risk gate counts in a broker: parts, legs, replacements, the account as the venue sees it, and the time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import backtrader as bt
import pytest

from dry_work.broker.account import AccountState
from dry_work.broker.brake import Brake
from dry_work.broker.journal import Journal
from dry_work.broker.positions import PositionBook
from dry_work.broker.risk_desk import RiskDesk
from dry_work.clock import MINUTE_NS, ManualClock
from dry_work.feeds.base import line_time
from dry_work.orders.model import AccountSnapshot, OrderRequest, OrderType, Side, TimeInForce, VenuePosition
from dry_work.orders.risk import RiskCommand, RiskState
from dry_work.orders.risk_limits import Bound, RiskLimits
from dry_work.wire.alpaca_rest import encode_error

from .conftest import build_broker
from .scripted_venue import NOW_NS, ScriptedVenue, wait_until
from .stepping import buy, run, seen, settle

D = Decimal


def held(symbol: str, qty: int, price: int = 11) -> VenuePosition:
    return VenuePosition(symbol=symbol, qty=D(qty), avg_entry_price=D(price))


def code(order: Any) -> str:
    return str(order.info.get("reject_code", ""))


class Teller:
    """Says at the venue what has become of orders, and waits until the broker has heard it."""

    def __init__(self, venue: ScriptedVenue, broker: Any) -> None:
        self.venue, self.broker = venue, broker

    def say(self, event: str, order: Any, **facts: Any) -> None:
        settle(self.broker)
        seen(self.venue, self.broker, self.venue.build_event(event, order, **facts))

    def told(self, event: str, number: int, **facts: Any) -> Callable[[], None]:
        return lambda: self.say(event, self.venue.wait_submit(number), **facts)


# Orders that go through zero


def test_an_order_that_is_split_is_judged_as_one(venue: ScriptedVenue, journal: Journal) -> None:
    venue.positions = [held("AAPL", 5)]
    limits = RiskLimits(stale_bars=0, position_value=Bound(D(120)), order_value=None, orders_per_minute=1)
    broker = build_broker(venue, journal, risk=limits)

    def place(strategy: Any) -> None:
        # To 15 short at 11: too much, although closing 5 is not. To 10 short at 11 is allowed, and it is one order.
        strategy.orders += [strategy.sell(size=20), strategy.sell(size=15), strategy.sell(size=1)]

    ran = run(broker, {1: place}, {3: lambda: settle(broker)}, bars=4)
    assert [code(order) for order in ran.orders] == ["risk_position_value", "", "risk_orders_per_minute"]
    assert [request.qty for request in venue.submits] == [5]


def test_the_second_part_of_a_split_order_counts_until_it_is_filled(venue: ScriptedVenue, journal: Journal) -> None:
    venue.positions = [held("AAPL", 5)]
    # Bars close at 11, 12, 13: at the third, 10 short are worth 130 and one more share is too much for 140.
    broker = build_broker(venue, journal, risk=RiskLimits(stale_bars=0, position_value=Bound(D(140))))
    teller = Teller(venue, broker)
    first = teller.told("fill", 1, qty="5", price="11", position_qty="0")
    ran = run(
        broker, {1: lambda s: s.sell(size=15), 3: lambda s: s.sell(size=1), 4: lambda s: s.sell(size=1)}, {3: first},
        bars=5,
    )  # fmt: skip
    assert venue.wait_submit(2).qty == 10
    assert [code(order) for order in ran.orders[1:]] == ["risk_position_value"] * 2


def test_the_second_part_of_a_split_order_does_not_leave_while_reducing(venue: ScriptedVenue, journal: Journal) -> None:
    venue.positions = [held("AAPL", 5)]
    broker = build_broker(venue, journal)
    teller = Teller(venue, broker)

    def reduce() -> None:
        settle(broker)
        journal.change_risk(RiskCommand.REDUCE, reason="test", who="operator", at_ns=NOW_NS)
        teller.told("fill", 1, qty="5", price="11", position_qty="0")()

    ran = run(broker, {1: lambda s: s.sell(size=15)}, {3: reduce, 4: lambda: settle(broker)}, bars=6)
    assert [request.qty for request in venue.submits] == [5]
    assert ran.statuses(ran.orders[0])[-1] == "Rejected"
    assert code(ran.orders[0]) == "risk_reducing"


# Replacements and legs


def test_what_the_old_order_was_filled_is_not_taken_from_its_replacement(
    venue: ScriptedVenue, journal: Journal
) -> None:
    """A replacement begins without fills: 4 are held and 10 are still asked for, which is 14 and not 10."""
    broker = build_broker(venue, journal, risk=RiskLimits(stale_bars=0, position_value=Bound(D(15 * 16))))
    teller = Teller(venue, broker)
    old = "dw-tester-s-1"

    def part() -> None:
        settle(broker)
        teller.say("partial_fill", venue.orders[old], qty="4", price="9", position_qty="4")

    def land() -> None:
        settle(broker)
        [new] = [order for order in venue.orders.values() if order.replaces]
        seen(venue, broker, venue.replaced(venue.orders[old], new))
        teller.say("new", new)

    def ask(strategy: Any) -> None:
        assert strategy.broker.replace(strategy.orders[0], price=14.0)

    def more(strategy: Any) -> None:
        # Bar 6 closes at 16: 4 * 16 + 10 * 14 are taken, of 240 two shares are left.
        strategy.orders += [strategy.buy(size=3), strategy.buy(size=2), strategy.buy(size=1)]

    ran = run(
        broker, {1: buy(size=10, exectype=bt.Order.Limit, price=9.0), 3: ask, 6: more},
        {2: teller.told("new", 1), 4: part, 5: land}, bars=7,
    )  # fmt: skip
    assert [code(order) for order in ran.orders[1:]] == ["risk_position_value", "", "risk_position_value"]


def test_a_replacement_upwards_is_judged_anew_and_counts_while_it_is_under_way(
    venue: ScriptedVenue, journal: Journal
) -> None:
    broker = build_broker(venue, journal, risk=RiskLimits(stale_bars=0, position_value=Bound(D(140))))
    teller = Teller(venue, broker)
    answers: list[bool] = []

    def ask(strategy: Any) -> None:
        order = strategy.orders[0]
        answers.extend([broker.replace(order, size=16), broker.replace(order, size=15)])
        strategy.orders.append(strategy.buy(size=1, exectype=bt.Order.Limit, price=9.0))

    ran = run(
        broker, {1: buy(size=2, exectype=bt.Order.Limit, price=9.0), 3: ask, 5: buy(size=1)},
        {2: teller.told("new", 1)}, bars=6,
    )  # fmt: skip
    assert answers == [False, True]
    assert ran.orders[0].info.replace_code == "risk_position_value"
    assert [code(order) for order in ran.orders[1:]] == ["risk_position_value"] * 2


def test_the_stop_of_a_living_bracket_may_be_moved_while_reducing_and_nothing_may_be_added(
    venue: ScriptedVenue, journal: Journal
) -> None:
    broker = build_broker(venue, journal)
    teller = Teller(venue, broker)
    answers: list[bool] = []

    def bracket(strategy: Any) -> None:
        strategy.orders += strategy.buy_bracket(size=5, exectype=bt.Order.Market, stopprice=8.0, limitprice=20.0)

    def fill() -> None:
        entry = venue.wait_submit(1)
        teller.say("fill", entry, qty="5", price="11", position_qty="5")
        for name in ("profit", "loss"):
            seen(venue, broker, venue.build_event("new", venue.leg(entry, name)))
        journal.change_risk(RiskCommand.REDUCE, reason="test", who="operator", at_ns=NOW_NS)

    def move(strategy: Any) -> None:
        stop = strategy.orders[1]
        assert stop.alive()
        answers.append(broker.replace(stop, price=9.0))
        strategy.orders.append(strategy.sell(size=1))  # the exits have it all

    ran = run(broker, {1: bracket, 4: move}, {3: fill, 5: lambda: settle(broker)}, bars=6)
    assert answers == [True]
    assert [change.stop_price for change in venue.replacements] == [9]
    assert code(ran.orders[3]) == "risk_reducing"


def test_what_a_leg_was_filled_does_not_count_again(venue: ScriptedVenue, journal: Journal) -> None:
    """The venue tells of a leg under a name of its own."""
    broker = build_broker(venue, journal)
    teller = Teller(venue, broker)

    def entry_and_exit(strategy: Any) -> None:
        orders = strategy.buy_bracket(size=5, exectype=bt.Order.Market, stopexec=None, limitprice=20.0)
        strategy.orders += [order for order in orders if order is not None]

    def fill() -> None:
        entry = venue.wait_submit(1)
        teller.say("fill", entry, qty="5", price="11", position_qty="5")
        seen(venue, broker, venue.build_event("new", venue.leg(entry, "profit")))

    def part() -> None:
        leg = venue.leg(venue.submits[0], "profit")
        seen(venue, broker, venue.build_event("partial_fill", leg, qty="2", price="20", position_qty="3"))
        journal.change_risk(RiskCommand.REDUCE, reason="test", who="operator", at_ns=NOW_NS)

    asked: list[bool] = []

    def move(strategy: Any) -> None:
        strategy.orders.append(strategy.sell(size=1))
        asked.append(strategy.broker.cancel(strategy.orders[1]))

    def end() -> None:
        settle(broker)
        seen(venue, broker, venue.build_event("canceled", venue.leg(venue.submits[0], "profit")))

    ran = run(
        broker, {1: entry_and_exit, 5: move, 7: lambda s: s.sell(size=4), 8: lambda s: s.sell(size=3)},
        {3: fill, 5: part, 7: end}, bars=9,
    )  # fmt: skip
    assert asked == [True]
    assert [code(order) for order in ran.orders[2:]] == ["risk_reducing", "risk_reducing", ""]


# While reducing


def test_an_exit_whose_first_request_fails_is_sent_while_reducing(venue: ScriptedVenue, journal: Journal) -> None:
    venue.positions = [held("AAPL", 5)]
    journal.change_risk(RiskCommand.REDUCE, reason="test", who="operator", at_ns=NOW_NS)
    venue.on_submit = lambda request, number: (429, encode_error(42910000, "slow down")) if number < 3 else None
    broker = build_broker(venue, journal)
    ran = run(broker, {1: lambda s: s.sell(size=5)}, {3: lambda: venue.wait_submit(3)}, bars=4)
    assert code(ran.orders[0]) == ""
    assert len({request.client_order_id for request in venue.submits}) == 1


def test_all_ways_to_close_pass_while_reducing_and_none_while_halted(venue: ScriptedVenue, journal: Journal) -> None:
    venue.positions = [held("AAPL", 5), held("IBM", -3)]
    journal.change_risk(RiskCommand.REDUCE, reason="test", who="operator", at_ns=NOW_NS)
    broker = build_broker(venue, journal)
    run(broker, {1: lambda s: broker.close_all()}, {3: lambda: venue.wait_submit(2)}, bars=4, symbols=("AAPL", "IBM"))
    assert sorted((found.symbol, found.side, found.qty) for found in venue.submits) == [
        ("AAPL", Side.SELL, 5), ("IBM", Side.BUY, 3),
    ]  # fmt: skip
    journal.change_risk(RiskCommand.HALT, reason="test", who="operator", at_ns=NOW_NS)
    halted = build_broker(venue, journal)
    run(halted, {1: lambda s: halted.close_position(s.data)}, {3: lambda: settle(halted)}, bars=4)
    assert len(venue.submits) == 2


# Notional orders


def test_an_order_by_value_is_judged_by_its_value(venue: ScriptedVenue, journal: Journal) -> None:
    broker = build_broker(venue, journal, risk=RiskLimits(stale_bars=0, order_value=Bound(D(100))))
    given = [{"notional": 100.01}, {"notional": 100}]
    ran = run(broker, {1 + n: (lambda s, more=more: s.buy(**more)) for n, more in enumerate(given)}, bars=3)
    assert [code(order) for order in ran.orders] == ["risk_order_value", ""]


# The account


def test_marks_survive_a_restart_so_that_a_days_loss_cannot_be_begun_anew(
    venue: ScriptedVenue, journal: Journal
) -> None:
    limits = RiskLimits(stale_bars=0, day_loss=Bound(D(1000)))
    run(build_broker(venue, journal, risk=limits), {}, bars=2)
    assert journal.marks() is not None
    venue.cash = D(98_999)
    ran = run(build_broker(venue, journal, risk=limits), {2: buy(size=1)}, bars=3)
    assert code(ran.orders[0]) == "risk_reducing"
    assert journal.risk().who == "limit:day_loss"


def test_a_loss_in_a_symbol_without_data_is_seen_with_the_next_snapshot(venue: ScriptedVenue, journal: Journal) -> None:
    venue.positions, venue.equity = [held("IBM", 100)], D(101_100)
    broker = build_broker(venue, journal, risk=RiskLimits(stale_bars=0, drawdown=Bound(D(500))), refresh_s=0.3)

    def lose() -> None:
        venue.equity = D(100_500)
        asked = venue.count("GET", "/v2/account")
        # Two: the first may have been answered before.
        wait_until(lambda: venue.count("GET", "/v2/account") > asked + 1, "the account is looked at again")
        wait_until(lambda: any(isinstance(item, AccountState) for item in tuple(broker._link.inbox)), "it is told")

    ran = run(broker, {2: buy(size=1), 4: buy(size=1)}, {3: lose}, bars=5)
    assert [code(order) for order in ran.orders] == ["", "risk_reducing"]
    assert journal.risk().who == "limit:drawdown"


class Line:
    """Enough of a data: its bars so far."""

    def __init__(self, symbol: str) -> None:
        self.symbol, self.bar_length_ns = symbol, MINUTE_NS
        self.datetime: list[float] = []
        self.close: list[float] = []

    def show(self, end_ns: int, close: float) -> None:
        self.datetime, self.close = [line_time(end_ns)], [close]

    def __len__(self) -> int:
        return len(self.close)


class Scene:
    """A gate with an account, whose market a test moves."""

    def __init__(self, limits: RiskLimits, *symbols: str, positions: tuple[VenuePosition, ...] = ()) -> None:
        self.journal, self.clock = Journal(":memory:"), ManualClock(NOW_NS)
        venue: Any = None
        self.brake = Brake(
            self.journal, venue, agent="me", limits=limits, clock=self.clock, lockstep=False,
            is_sending=lambda: False, on_change=lambda: None, on_failure=lambda error: None,
        )  # fmt: skip
        self.lines = {symbol: Line(symbol) for symbol in symbols}
        self.book = PositionBook()
        self.positions = positions
        self.desk = RiskDesk(
            limits, self.brake, self.journal, book=self.book, open_tickets=list, is_known=lambda name: False,
            datas=lambda: list(self.lines.values()), tell=lambda record: None, lockstep=False, counters=Counter(),
        )  # fmt: skip

    def snapshot(self, equity: int, cash: int = 100_000) -> None:
        account = AccountSnapshot(id="a", account_number="1", cash=D(cash), equity=D(equity), buying_power=D(cash))
        state = AccountState(account, self.positions, (), 0)
        self.desk.take_state(state)
        self.book.take_snapshot(state)

    def look(self) -> str:
        self.desk.watch(self.clock.time_ns())
        return self.brake.record.who


OFF: dict[str, Any] = {"day_loss": None, "drawdown": None, "stale_bars": 0}


def test_the_first_bar_of_what_is_held_is_neither_gain_nor_loss() -> None:
    limits = RiskLimits(**{**OFF, "drawdown": Bound(D(100))})
    scene = Scene(limits, "AAPL", "IBM", positions=(held("AAPL", 10, 100), held("IBM", 10, 100)))
    scene.snapshot(101_500)  # both stand at 75
    assert scene.look() == ""
    scene.lines["AAPL"].show(NOW_NS, 75.0)
    assert scene.look() == ""
    scene.lines["AAPL"].show(NOW_NS + MINUTE_NS, 66.0)  # while the other has none yet, a loss is seen all the same
    assert scene.look() == ""
    scene.lines["IBM"].show(NOW_NS + MINUTE_NS, 75.0)
    assert scene.look() == ""
    scene.lines["AAPL"].show(NOW_NS + 2 * MINUTE_NS, 64.9)
    assert scene.look() == "limit:drawdown"
    scene.journal.close()


def test_a_symbol_without_a_bar_does_not_switch_the_limits_of_losses_off() -> None:
    limits = RiskLimits(**{**OFF, "day_loss": Bound(D(100))})
    scene = Scene(limits, "AAPL", "IBM", positions=(held("AAPL", 10, 100), held("IBM", 10, 100)))
    scene.snapshot(102_000)
    scene.lines["AAPL"].show(NOW_NS, 100.0)
    assert scene.look() == ""
    scene.lines["AAPL"].show(NOW_NS, 89.0)
    assert scene.look() == "limit:day_loss"
    scene.journal.close()


def test_a_snapshot_tells_of_losses_when_no_bar_comes_any_more() -> None:
    limits = RiskLimits(**{**OFF, "drawdown": Bound(D(100))})
    scene = Scene(limits, "AAPL", positions=(held("AAPL", 10, 100),))
    scene.lines["AAPL"].show(NOW_NS, 100.0)
    scene.snapshot(101_000)
    assert scene.look() == ""
    scene.snapshot(100_901)
    assert scene.look() == ""
    scene.snapshot(100_899)
    assert scene.look() == "limit:drawdown"
    assert scene.brake.state is RiskState.REDUCING
    scene.journal.close()


@pytest.mark.parametrize(("starts_late_s", "code"), [(0, "risk_stale_bars"), (3600, "")])
def test_bars_that_come_late_are_old_where_the_venues_time_is_real(starts_late_s: int, code: str) -> None:
    """The market's time follows the slices; a hub that lags would make old bars look new."""
    scene = Scene(RiskLimits(**{**OFF, "stale_bars": 15}), "BTC/USD")
    scene.snapshot(100_000)
    scene.desk.prepare(NOW_NS - starts_late_s * 1_000_000_000)
    scene.lines["BTC/USD"].show(NOW_NS, 100.0)
    scene.clock.advance(16 * 60)
    request = OrderRequest(
        client_order_id="a", symbol="BTC/USD", side=Side.BUY, type=OrderType.MARKET, time_in_force=TimeInForce.GTC,
        qty=D(1),
    )  # fmt: skip
    breach = scene.desk.check(request, now_ns=NOW_NS)
    assert (breach.code if breach is not None else "") == code
    scene.journal.close()
