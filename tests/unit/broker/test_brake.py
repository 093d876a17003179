"""The brake and the gate in the broker: what is refused, what is told, what is durable."""

from __future__ import annotations

import sqlite3
from decimal import Decimal
from pathlib import Path
from typing import Any

import backtrader as bt
import pytest

from dry_work.broker.brake import Brake
from dry_work.broker.journal import AccountRecord, Journal, describe_record
from dry_work.clock import ManualClock
from dry_work.orders.model import OrderRequest, VenuePosition
from dry_work.orders.risk import LimitName, LossMarks, RiskCommand, RiskState
from dry_work.orders.risk_limits import Bound, LossAction, RiskLimits

from .conftest import build_broker
from .scripted_venue import NOW_NS, ScriptedVenue, wait_until
from .stepping import buy, run, settle

LIMITS = RiskLimits(stale_bars=0)


def change(journal: Journal, command: RiskCommand, reason: str = "test", who: str = "operator") -> Any:
    return journal.change_risk(command, reason=reason, who=who, at_ns=NOW_NS)


# The journal


def test_the_last_change_holds_and_survives(tmp_path: Path) -> None:
    path = tmp_path / "orders.sqlite"
    journal = Journal(path)
    assert journal.risk().state is RiskState.ACTIVE
    assert change(journal, RiskCommand.RELEASE) is None
    assert change(journal, RiskCommand.REDUCE, "too much lost", "limit:day_loss").state is RiskState.REDUCING
    journal.close()
    journal = Journal(path)
    found = journal.risk()
    assert (found.state, found.reason, found.who, found.is_by_limit) == (
        RiskState.REDUCING, "too much lost", "limit:day_loss", True,
    )  # fmt: skip
    assert describe_record(found) == "REDUCING since 2024-06-11 13:30:00 UTC by limit:day_loss: too much lost"
    assert change(journal, RiskCommand.REDUCE) is None
    journal.close()


def test_a_flattening_that_is_done_keeps_its_cause() -> None:
    journal = Journal(":memory:")
    first = change(journal, RiskCommand.FLATTEN, "lost", "limit:drawdown")
    done = change(journal, RiskCommand.FLATTENED, "closed 1 AAPL", "trader")
    assert (done.state, done.reason, done.who) == (RiskState.HALTED, "lost (closed 1 AAPL)", "limit:drawdown")
    assert [record.id for record in journal.risk_history()] == [first.id, done.id]
    journal.close()


def test_two_processes_see_each_others_changes(tmp_path: Path) -> None:
    ours, theirs = (Journal(tmp_path / "orders.sqlite") for _ in range(2))
    asked = change(theirs, RiskCommand.FLATTEN)
    assert ours.risk() == asked
    assert change(ours, RiskCommand.FLATTEN) is None  # one flattening, whoever asks
    ours.take_risk(asked, at_ns=7)
    assert theirs.risk().taken_ns == 7
    for journal in (ours, theirs):
        journal.close()


def test_marks_survive_and_are_forgotten_by_a_release() -> None:
    journal = Journal(":memory:")
    marks = LossMarks(day=3, day_equity=Decimal("100000.01"), peak=Decimal("100001"))
    assert journal.marks() is None
    journal.record_marks(LossMarks(day=2, day_equity=Decimal(1), peak=Decimal(1)))
    journal.record_marks(marks)
    assert journal.marks() == marks
    change(journal, RiskCommand.HALT)
    assert journal.marks() == marks
    change(journal, RiskCommand.RELEASE)
    assert journal.marks() is None
    journal.close()


def test_a_journal_from_before_the_risk_tables_gets_them(tmp_path: Path) -> None:
    path = tmp_path / "orders.sqlite"
    Journal(path).close()
    with sqlite3.connect(path) as db:
        for table in ("risk_transitions", "risk_marks", "account"):
            db.execute(f"DROP TABLE {table}")
    db.close()
    journal = Journal(path)
    assert journal.account() is None
    assert change(journal, RiskCommand.HALT).state is RiskState.HALTED
    journal.close()


# The broker


def test_a_refused_order_comes_back_rejected_and_is_not_journalled(venue: ScriptedVenue, journal: Journal) -> None:
    broker = build_broker(venue, journal, risk=RiskLimits(stale_bars=0, order_value=Bound(Decimal(100))))
    ran = run(broker, {1: buy(size=50), 2: buy(size=1)})
    refused, taken = ran.orders
    assert refused.info.reject_code == "risk_order_value"
    assert refused.info.reject_reason == "risk limit order_value: 550.00; allowed: 100.00"
    assert ran.statuses(refused) == ["Rejected"]
    assert ran.statuses(taken)[0] == "Submitted"
    assert [request.qty for request in venue.submits] == [1]
    assert journal.intents() == [venue.submits[0].client_order_id]
    assert broker.counters["orders refused by the risk limit order_value"] == 1


def test_the_gate_is_on_by_default_and_may_be_off(venue: ScriptedVenue, journal: Journal) -> None:
    from dry_work.broker.paper import AlpacaPaperTradingBroker

    assert AlpacaPaperTradingBroker(api_key="K", secret_key="S").p.risk == RiskLimits()
    broker = build_broker(venue, journal, risk=None)
    run(broker, {1: buy(size=10**6)})
    assert [request.qty for request in venue.submits] == [10**6]
    assert journal.account() == AccountRecord(agent="tester", account_id="a", url=venue.url, mode="paper")


def test_orders_of_one_next_and_of_others_count_together(venue: ScriptedVenue, journal: Journal) -> None:
    from .scripted_venue import foreign_request

    venue.build_event("new", foreign_request("AAPL"))  # somebody's open order for one
    broker = build_broker(venue, journal, risk=RiskLimits(stale_bars=0, position_value=Bound(Decimal(33))))
    orders: list[Any] = []

    def place(strategy: Any) -> None:
        orders.extend(strategy.buy(size=1) for _ in range(3))

    run(broker, {1: place}, bars=2)
    assert [order.status for order in orders] == [bt.Order.Submitted, bt.Order.Submitted, bt.Order.Rejected]
    assert orders[2].info.reject_code == "risk_position_value"


def test_a_halt_from_another_process_stops_orders_and_is_told(venue: ScriptedVenue, tmp_path: Path) -> None:
    ours, theirs = (Journal(tmp_path / "orders.sqlite") for _ in range(2))
    broker = build_broker(venue, ours)
    told: list[Any] = []

    def halt() -> None:
        settle(broker)
        change(theirs, RiskCommand.HALT, "news")
        wait_until(lambda: theirs.risk().taken_ns is not None, "the brake has taken note")

    def listen(strategy: Any) -> None:
        strategy.notify_store = lambda message, *args, **_: told.append((message, args[0].state, args[0].reason))

    halted: list[str] = []
    actions = {2: buy(size=1), 4: buy(size=1), 5: lambda strategy: halted.append(strategy.broker.halted)}
    ran = run(broker, actions, {3: halt}, early=listen)
    first, second = ran.orders
    assert first.status != bt.Order.Rejected
    assert second.info.reject_code == "risk_halted"
    assert told == [("risk", RiskState.HALTED, "news")]
    assert halted == ["halted by operator: news"]
    for journal in (ours, theirs):
        journal.close()


def test_an_order_that_waits_in_the_queue_does_not_leave_after_a_halt(venue: ScriptedVenue, journal: Journal) -> None:
    """Right before its request, the worker looks at the state itself."""
    broker = build_broker(venue, journal)

    def halt_under_way(request: OrderRequest, number: int) -> Any:
        if number == 1:
            change(journal, RiskCommand.HALT)
        return None

    venue.on_submit = halt_under_way

    def place(strategy: Any) -> None:
        strategy.orders.extend(strategy.buy(size=1) for _ in range(2))

    ran = run(broker, {1: place}, {3: lambda: settle(broker)}, bars=4)
    assert len(venue.submits) == 1
    assert ran.orders[1].info.reject_code == "risk_halted"
    assert ran.statuses(ran.orders[1]) == ["Submitted", "Rejected"]
    assert journal.unanswered() == []


def test_a_loss_is_seen_and_reduces_to_exits(venue: ScriptedVenue, journal: Journal) -> None:
    venue.positions = [VenuePosition(symbol="AAPL", qty=Decimal(-100), avg_entry_price=Decimal(11))]
    # A short position of 100 loses 100 with every bar.
    broker = build_broker(venue, journal, risk=RiskLimits(stale_bars=0, day_loss=Bound(Decimal(150))))
    actions = {2: lambda s: s.sell(size=1), 4: lambda s: s.sell(size=1), 5: lambda s: s.buy(size=100)}
    # The first order is sent before the next bar brings the loss.
    ran = run(broker, actions, {3: lambda: settle(broker)})
    before, entry, exit_ = ran.orders
    assert before.status != bt.Order.Rejected
    assert entry.info.reject_code == "risk_reducing"
    assert exit_.status != bt.Order.Rejected
    record = journal.risk()
    assert (record.state, record.who) == (RiskState.REDUCING, "limit:day_loss")
    assert "200.00 lost since the day began" in record.reason
    marks = journal.marks()
    assert marks is not None
    assert marks.peak == marks.day_equity
    assert venue.count("DELETE", "/v2/orders/") >= 0


@pytest.mark.parametrize(
    ("symbol", "minutes", "code"),
    [
        ("AAPL", 12, ""),  # the bars end at 13:36
        ("AAPL", 60, "risk_stale_bars"),
        ("AAPL", 12 * 60, ""),  # the exchange is closed
        ("BTC/USD", 12 * 60, "risk_stale_bars"),
    ],
)
def test_old_data_refuse_entries_while_the_market_is_open(
    venue: ScriptedVenue, journal: Journal, symbol: str, minutes: int, code: str
) -> None:
    clock = ManualClock(NOW_NS + minutes * 60 * 1_000_000_000)
    broker = build_broker(venue, journal, risk=RiskLimits(stale_bars=15), clock=clock)
    ran = run(broker, {6: buy(size=1)}, symbols=(symbol,))
    assert str(ran.orders[0].info.get("reject_code", "")) == code


def test_a_broker_starts_in_the_state_that_it_had(venue: ScriptedVenue, journal: Journal) -> None:
    change(journal, RiskCommand.HALT, "yesterday")
    broker = build_broker(venue, journal)
    ran = run(broker, {1: buy(size=1)})
    assert ran.orders[0].info.reject_code == "risk_halted"
    assert venue.submits == []
    change(journal, RiskCommand.RELEASE)
    again = build_broker(venue, journal)
    assert run(again, {1: buy(size=1)}).orders[0].status != bt.Order.Rejected
    broker.stop()
    again.stop()


def test_the_account_is_read_without_io_while_the_brake_works(venue: ScriptedVenue, journal: Journal) -> None:
    broker = build_broker(venue, journal, risk=LIMITS)

    def look(strategy: Any) -> None:
        requests = len(venue.requests)
        for _ in range(100):
            strategy.broker.getcash()
            strategy.broker.getvalue()
            strategy.broker.getposition(strategy.data)
        assert len(venue.requests) == requests

    run(broker, {2: look})


# The brake without a broker


class NoVenue:
    """A venue that is not to be asked."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the venue was asked for {name}")


def build_brake(journal: Journal, limits: RiskLimits = LIMITS) -> Brake:
    venue: Any = NoVenue()
    return Brake(
        journal, venue, agent="me", limits=limits, clock=ManualClock(NOW_NS), lockstep=True,
        is_sending=lambda: False, on_change=lambda: None, on_failure=lambda error: None,
    )  # fmt: skip


def test_reducing_lets_out_only_what_was_found_to_shrink() -> None:
    journal = Journal(":memory:")
    brake = build_brake(journal)
    assert brake.judge("any") is None
    brake.allow("exit")
    brake.change(RiskCommand.REDUCE, reason="r", who="limit:day_loss")
    assert brake.judge("exit") is None
    assert brake.judge("exit") is None  # asked again after a request that did not get through
    refused = brake.judge("entry")
    assert refused is not None
    assert refused.limit is LimitName.REDUCING
    journal.close()


def test_a_journal_that_cannot_be_written_does_not_release_the_brake(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "orders.sqlite")
    brake = build_brake(journal)
    journal.close()
    brake.change(RiskCommand.HALT, reason="r", who="limit:drawdown")
    assert brake.state is RiskState.HALTED
    refused = brake.judge("any")
    assert refused is not None
    assert refused.code == "risk_halted"


def test_a_flattening_waits_for_a_request_that_is_under_way() -> None:
    journal = Journal(":memory:")
    sending = [True]

    class Empty:
        def open_orders(self) -> list[Any]:
            return []

        positions = open_orders

    venue: Any = Empty()
    brake = Brake(
        journal, venue, agent="me", limits=RiskLimits(loss_action=LossAction.FLATTEN), clock=ManualClock(NOW_NS),
        lockstep=True, is_sending=lambda: sending[0], on_change=lambda: None, on_failure=lambda error: None,
    )  # fmt: skip
    brake.change(RiskCommand.FLATTEN, reason="r", who="limit:drawdown")
    for _ in range(4):
        brake.work(venue)
    assert brake.state is RiskState.FLATTENING
    sending[0] = False
    for _ in range(2):
        brake.work(venue)
    assert brake.state is RiskState.HALTED
    journal.close()


@pytest.mark.parametrize("command", [RiskCommand.REDUCE, RiskCommand.HALT])
def test_the_brake_is_settled_when_no_entry_is_left(command: RiskCommand) -> None:
    from .test_brake_flatten import Account

    journal, account = Journal(":memory:"), Account(AAPL="10")
    account.place("dw-me-s-1", "AAPL", "buy", "1")
    brake = build_brake(journal)
    brake.change(command, reason="r", who="limit:drawdown")
    brake.work(account)
    assert not brake.is_settled  # another may have been under way
    brake.work(account)
    assert brake.is_settled
    assert account.open_orders() == []
    journal.close()
