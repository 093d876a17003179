"""The pruner of a run: when it works, what it gives back to the disk, and what it leaves to the broker."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from dry_work.broker.books_reader import read_books
from dry_work.broker.journal import Journal
from dry_work.broker.journal_pruning import DAY_NS, JournalPruner
from dry_work.broker.own_books import sum_positions
from dry_work.clock import SystemClock
from dry_work.orders.model import Side

from .pruning_history import History, check_equal, trade
from .restarting import Agent
from .scripted_venue import ScriptedVenue, wait_until
from .stepping import buy, seen, settle


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with contextlib.closing(History(tmp_path)) as history:
        yield history


def build_pruner(journal: Journal, **changes: Any) -> JournalPruner:
    given: dict[str, Any] = {"days": 1, "time_ns": lambda: 10 * DAY_NS, "read_record": lambda: None, **changes}
    return JournalPruner(journal.path, journal.pruning, **given)


def test_the_file_shrinks_also_one_of_an_earlier_version(history: History, tmp_path: Path) -> None:
    for _ in range(150):
        trade(history), trade(history, side=Side.SELL)
    path = tmp_path / "old.sqlite"
    history.pruned._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copyfile(history.pruned.path, path)
    old = sqlite3.connect(path, isolation_level=None)
    for table in ("pruned_orders", "pruned_executions", "pruned_sessions", "carried_positions"):
        old.execute(f"DROP TABLE {table}")
    old.execute("PRAGMA journal_mode = DELETE")
    old.execute("PRAGMA auto_vacuum = NONE")
    old.execute("VACUUM")
    old.close()
    journal = Journal(path)
    before = path.stat().st_size
    assert journal._db.execute("PRAGMA auto_vacuum").fetchone()[0] == 0
    journal.pruning.prepare()
    assert build_pruner(journal).prune() == 300
    journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert journal._db.execute("PRAGMA freelist_count").fetchone()[0] == 0
    assert path.stat().st_size < before * 0.9
    assert sum_positions(read_books(path)) == sum_positions(read_books(history.whole.path))
    journal.close()


def test_few_old_orders_are_not_worth_it(history: History) -> None:
    trade(history), trade(history, side=Side.SELL)
    assert build_pruner(history.pruned).prune() == 0


def test_the_pruner_works_beside_whoever_writes(history: History) -> None:
    for _ in range(60):
        trade(history), trade(history, side=Side.SELL)
    pruner = build_pruner(history.pruned, first_s=0.0)
    pruner.start()
    wait_until(lambda: pruner.pruned, "orders were pruned", 60)
    while pruner.pruned < 120:
        trade(history), trade(history, side=Side.SELL)
        assert history.number < 5_000
    pruner.stop()
    pruner.stop()
    check_equal(history)


class TestABroker:
    @pytest.fixture(autouse=True)
    def worth_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dry_work.broker.journal_pruning.WORTH", 1)

    def test_what_is_told_again_of_a_pruned_order_changes_nothing(self, venue: ScriptedVenue, tmp_path: Path) -> None:
        agent = Agent(venue, tmp_path)
        events: list[Any] = []

        def fill(number: int) -> None:
            settle(agent.broker)
            events.append(venue.build_event("fill", venue.wait_submit(number), qty="1", price="10"))
            seen(venue, agent.broker, events[-1])

        agent.live(
            {1: buy(size=1), 3: lambda strategy: strategy.sell(size=1)},
            {2: lambda: fill(1), 4: lambda: fill(2)},
            bars=6,
        )
        journal = Journal(agent.journal_path)
        pruner = build_pruner(journal, time_ns=lambda: time.time_ns() + 2 * DAY_NS)
        assert pruner.prune() == 2
        journal.close()

        def again() -> None:
            for number, event in enumerate(events):
                seen(venue, agent.broker, msgspec.structs.replace(event, event_id=f"E9999999{number}"))
            canceled = msgspec.structs.replace(events[0], event="canceled", event_id="E99999999", qty=None, price=None)
            seen(venue, agent.broker, canceled)

        sizes: list[float] = []
        with structlog.testing.capture_logs() as lines:
            strategy = agent.live(
                {1: buy(size=3), 3: lambda _: sizes.append(agent.broker.position_of("AAPL"))}, {2: again}, bars=4
            )
        assert sizes == [0]
        assert agent.broker.counters["fills of other orders"] == 0
        assert "orders of others" not in agent.broker.counters
        assert [order.info.client_order_id.rpartition("-")[2] for order in strategy.orders] == ["3"]
        told = [line for line in lines if line["event"] == "an event of an order that has ended and was pruned"]
        assert {line["client_order_id"] for line in told} == {each.order.client_order_id for each in events}

    def test_a_run_prunes_what_its_strategy_knows(
        self, venue: ScriptedVenue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dry_work.broker.journal_pruning.FIRST_S", 0.0)
        agent = Agent(venue, tmp_path, journal_days=30, clock=LateClock())

        def end(number: int) -> None:
            settle(agent.broker)
            request = venue.wait_submit(number)
            seen(venue, agent.broker, venue.build_event("canceled", request))

        found: list[Any] = []

        def late() -> None:
            pruner = agent.broker._pruner
            assert pruner.prune() == 0  # all is new
            agent.broker.p.clock.days = 31
            wait_until(lambda: not agent.broker.has_untold_changes, "the state is kept")
            settle(agent.broker)
            found.append(pruner.prune())

        agent.live({1: buy(size=1), 2: buy(size=1)}, {3: lambda: end(1), 6: late}, bars=7)
        # The second may still be filled.
        assert found == [1]
        assert [order.number for order in read_books(agent.journal_path).orders] == [2]
        assert "journal pruner" not in {thread.name for thread in threading.enumerate()}


class LateClock(SystemClock):
    """The machine's clock, some days later."""

    days = 0

    def time_ns(self) -> int:
        return super().time_ns() + self.days * DAY_NS
