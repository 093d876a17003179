"""The orders journal survives what kills a process, and refuses what it cannot read."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from dry_work.broker.journal import Journal
from dry_work.errors import ConfigError
from dry_work.orders.books import Fill
from dry_work.orders.model import OrderRequest, OrderType, Side, TimeInForce

WRITER = """
import sys
from decimal import Decimal
from dry_work.broker.journal import Journal
from dry_work.orders.client_ids import build_client_order_id
from dry_work.orders.model import OrderRequest, OrderType, Side, TimeInForce

journal = Journal(sys.argv[1])
session = journal.mint_session("a", started_ns=5)
number = session.last_number
while True:
    number += 1
    name = build_client_order_id("a", session.session, number)
    request = OrderRequest(client_order_id=name, symbol="AAPL", side=Side.BUY, type=OrderType.MARKET,
                           time_in_force=TimeInForce.DAY, qty=Decimal(1))
    journal.record_intent(request, agent="a", session=session.session, number=number, at_ns=number)
    print(name, flush=True)
"""


def build_request(name: str) -> OrderRequest:
    return OrderRequest(
        client_order_id=name, symbol="AAPL", side=Side.BUY, type=OrderType.LIMIT, time_in_force=TimeInForce.DAY,
        qty=Decimal("0.5"), limit_price=Decimal("10.25"),
    )  # fmt: skip


def record(journal: Journal, number: int, session: str = "s") -> str:
    name = f"dw-a-{session}-{number}"
    journal.record_intent(build_request(name), agent="a", session=session, number=number, at_ns=number)
    return name


@pytest.mark.parametrize("round_trips", [1, 40])
def test_what_was_written_before_a_kill_is_there_after_it(tmp_path: Path, round_trips: int) -> None:
    path = tmp_path / "state" / "orders.sqlite"
    said: list[str] = []
    for _ in range(2):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        said += [writer.stdout.readline().strip() for _ in range(round_trips)]
        writer.send_signal(signal.SIGKILL)
        said += writer.stdout.read().split()
        writer.wait(60)
        writer.stdout.close()
    journal = Journal(path)
    found = journal.intents()
    # The last line may have been written to disk and killed before it was said.
    assert len(found) == len(set(found)) <= len(said) + 2
    assert set(said) <= set(found)
    session = journal.mint_session("a")
    assert session.started_ns == 5
    assert session.last_number == len(found)
    record(journal, session.last_number + 1, session.session)
    journal.close()


def test_a_session_is_minted_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "orders.sqlite")
    first = journal.mint_session("a", started_ns=7)
    assert (first.started_ns, first.last_number) == (7, 0)
    record(journal, 3, first.session)
    journal.close()
    journal.close()
    journal = Journal(tmp_path / "orders.sqlite")
    again = journal.mint_session("a", started_ns=99)
    assert (again.session, again.started_ns, again.last_number) == (first.session, 7, 3)
    assert journal.mint_session("b", started_ns=9).session != first.session
    given = journal.mint_session("a", session="abc", started_ns=11)
    assert (given.session, given.started_ns, given.last_number) == ("abc", 11, 0)
    journal.close()


def test_an_id_is_never_used_twice(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "orders.sqlite")
    record(journal, 1)
    with pytest.raises(sqlite3.IntegrityError):
        record(journal, 1)
    journal.close()


def test_an_intent_without_an_outcome_is_unanswered(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "orders.sqlite")
    names = [record(journal, number) for number in (1, 2, 3, 4)]
    journal.record_outcome(names[0], action="submit", outcome="accepted", order_id="v", at_ns=1)
    journal.record_outcome(names[1], action="submit", outcome="unknown", at_ns=1)
    journal.record_outcome(names[2], action="submit", outcome="refused", code=42210000, message="no", at_ns=1)
    journal.record_outcome(names[3], action="cancel", outcome="refused", at_ns=1)
    assert journal.unanswered() == [names[1], names[3]]
    journal.close()


def test_a_fill_is_kept_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "orders.sqlite")
    fill = Fill(
        execution_id="x", client_order_id="o", symbol="AAPL", side=Side.BUY, qty=Decimal("1e-9"), price=Decimal(3),
        ts_event_ns=1,
    )  # fmt: skip
    journal.record_progress([fill, fill])
    journal.record_progress([fill])
    assert journal.executions() == ["x"]
    assert sqlite3.connect(journal.path).execute("SELECT qty, price FROM fills").fetchall() == [("0.000000001", "3")]
    journal.close()


def test_fills_and_ends_are_written_together(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "orders.sqlite")
    fill = Fill(
        execution_id="x", client_order_id="o", symbol="AAPL", side=Side.BUY, qty=Decimal(2), price=Decimal(3),
        ts_event_ns=1,
    )  # fmt: skip
    journal.record_progress([fill], [("o", "filled"), ("p", "canceled")], at_ns=7)
    rows = sqlite3.connect(journal.path).execute("SELECT client_order_id, action, outcome, at_ns FROM outcomes")
    assert rows.fetchall() == [("o", "end", "filled", 7), ("p", "end", "canceled", 7)]
    assert journal.executions() == ["x"]
    assert journal.unanswered() == []
    journal.close()


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:8192] = b"\xff" * 8092
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["text", "damaged", "foreign", "later", "folder"])
def test_a_file_that_is_no_journal_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "orders.sqlite"
    if kind == "text":
        path.write_text("not a database, but long enough to be taken for one " * 100)
    elif kind == "folder":
        path.mkdir()
    else:
        if kind != "foreign":
            journal = Journal(path)
            for number in range(1, 50):
                record(journal, number)
            journal.close()
        if kind == "damaged":
            damage(path)
        else:
            with sqlite3.connect(path) as database:
                database.execute("CREATE TABLE theirs (x)" if kind == "foreign" else "PRAGMA user_version = 99")
            database.close()
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(ConfigError, match=r"orders\.sqlite: "):
        Journal(path)
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_the_file_is_in_wal_mode_with_full_synchronisation(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "orders.sqlite")
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)
    journal.close()
