"""A journal is read from outside without a trace, whoever has it open and however it was left."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from dry_work.broker.books_reader import read_books
from dry_work.broker.journal import AccountRecord, Intent, Journal
from dry_work.errors import ConfigError
from dry_work.orders.model import OrderRequest, OrderType, Side, TimeInForce
from dry_work.orders.risk import RiskCommand, RiskState

from .test_journal import WRITER, build_request, damage, record

# Opens and closes a journal all the time, which makes and removes the files beside it.
REOPENER = WRITER.replace("    print(name, flush=True)", "    print(name, flush=True); journal.close()").replace(
    "while True:\n    number += 1", "while True:\n    journal = Journal(sys.argv[1])\n    number += 1"
)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.iterdir())}


@pytest.fixture
def start_writer(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    writers: list[subprocess.Popen[str]] = []

    def start(code: str = WRITER, *, orders: int = 3) -> subprocess.Popen[str]:
        writer = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "orders.sqlite")], stdout=subprocess.PIPE, text=True
        )
        writers.append(writer)
        assert writer.stdout is not None
        for _ in range(orders):
            assert writer.stdout.readline()
        return writer

    yield start
    for writer in writers:
        writer.kill()
        writer.wait(60)
        assert writer.stdout is not None
        writer.stdout.close()


def test_all_that_was_written_is_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "orders.sqlite")
    name = record(journal, 1)
    journal.mint_session("a", session="s")
    journal.record_account(AccountRecord(agent="a", account_id="acc", url="http://x", mode="paper"))
    journal.change_risk(RiskCommand.HALT, reason="news", who="operator", at_ns=5)
    trailing = OrderRequest(
        client_order_id="dw-a-s-2", symbol="AAPL", side=Side.SELL, type=OrderType.TRAILING_STOP,
        time_in_force=TimeInForce.GTC, qty=Decimal(1), trail_percent=Decimal(2),
    )  # fmt: skip
    body = '{"trail_percent": "2", "order_class": "simple"}'
    intent = Intent(request=trailing, number=2, parent=name, role="stop_loss", body=body)
    journal.record_intents([intent], agent="a", session="s", at_ns=6)
    for path in (tmp_path / "orders.sqlite", tmp_path / "orders.sqlite-wal"):
        assert path.is_file()
    books = read_books(journal.path)
    journal.close()
    assert books == read_books(journal.path)
    assert books.agents == ("a",)
    assert books.account == AccountRecord(agent="a", account_id="acc", url="http://x", mode="paper")
    assert (books.risk.state, books.risk.reason) == (RiskState.HALTED, "news")
    first, second = books.orders
    request = build_request(name)
    assert (first.client_order_id, first.qty, first.limit_price) == (name, request.qty, request.limit_price)
    assert (second.trail, second.order_class, second.parent, second.role) == ("2%", "simple", name, "stop_loss")


def test_reading_beside_a_writer_changes_no_byte_and_sees_every_order(
    tmp_path: Path, start_writer: Callable[..., subprocess.Popen[str]]
) -> None:
    writer = start_writer()
    writer.send_signal(signal.SIGSTOP)  # a trader that hangs
    before = contents(tmp_path)
    assert len(read_books(tmp_path / "orders.sqlite").orders) >= 3
    assert contents(tmp_path) == before
    writer.send_signal(signal.SIGCONT)
    assert writer.stdout is not None
    assert writer.stdout.readline()


def test_the_books_grow_while_the_journal_is_written_and_its_writer_never_fails(
    tmp_path: Path, start_writer: Callable[..., subprocess.Popen[str]]
) -> None:
    writer = start_writer()
    counts = []
    assert writer.stdout is not None
    for _ in range(30):
        writer.stdout.readline()
        orders = read_books(tmp_path / "orders.sqlite").orders
        assert [order.number for order in orders] == list(range(1, len(orders) + 1))
        counts.append(len(orders))
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]
    assert writer.poll() is None


def test_a_journal_that_is_opened_and_closed_all_the_time_can_be_read(
    tmp_path: Path, start_writer: Callable[..., subprocess.Popen[str]]
) -> None:
    writer = start_writer(REOPENER)
    counts = [len(read_books(tmp_path / "orders.sqlite").orders) for _ in range(60)]
    assert counts == sorted(counts)
    assert counts[0] >= 1
    assert writer.poll() is None


@pytest.mark.parametrize("left", ["all", "no index", "read-only"])
def test_what_a_killed_process_left_in_its_wal_counts(
    tmp_path: Path, start_writer: Callable[..., subprocess.Popen[str]], left: str
) -> None:
    writer = start_writer(orders=20)
    writer.kill()
    writer.wait(60)
    if left == "no index":
        (tmp_path / "orders.sqlite-shm").unlink()
    if left == "read-only":
        tmp_path.chmod(0o555)
    before = contents(tmp_path)
    assert (tmp_path / "orders.sqlite-wal").stat().st_size > 0
    try:
        assert len(read_books(tmp_path / "orders.sqlite").orders) >= 20
        assert contents(tmp_path) == before
    finally:
        tmp_path.chmod(0o755)


def test_a_journal_closed_in_order_is_read_without_a_trace(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a folder?with #signs" / "orders.sqlite")
    record(journal, 1)
    journal.close()
    before = contents(journal.path.parent)
    assert list(before) == ["orders.sqlite"]
    assert len(read_books(journal.path).orders) == 1
    assert contents(journal.path.parent) == before


def test_a_journal_from_before_risk_and_links_is_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "orders.sqlite")
    record(journal, 1)
    journal.close()
    with sqlite3.connect(journal.path) as db:
        for table in ("risk_transitions", "risk_marks", "account", "order_links", "request_bodies"):
            db.execute(f"DROP TABLE {table}")
    db.close()
    books = read_books(journal.path)
    assert (len(books.orders), books.account, books.risk.state) == (1, None, RiskState.ACTIVE)


def test_an_empty_file_is_a_journal_that_is_being_made(tmp_path: Path) -> None:
    path = tmp_path / "orders.sqlite"
    path.touch()
    assert read_books(path).orders == ()


@pytest.mark.parametrize("kind", ["text", "damaged", "foreign", "later", "value", "missing", "folder"])
def test_a_file_that_is_no_journal_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "orders.sqlite"
    journal = Journal(path)
    record(journal, 1)
    journal.close()
    expected = {
        "foreign": "a database of another program",
        "later": "orders journal of version 99, this program reads up to 2",
        "missing": "there is no such orders journal",
    }.get(kind, "damaged")
    if kind == "text":
        path.write_text("not a database " * 100)
    elif kind == "damaged":
        damage(path)
    elif kind in ("missing", "folder"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
    else:
        statement = {
            "foreign": "PRAGMA application_id = 7",
            "later": "PRAGMA user_version = 99",
            "value": "UPDATE intents SET side = 'sideways'",
        }[kind]
        db = sqlite3.connect(path)
        db.execute(statement)
        db.commit()
        db.close()
    with pytest.raises(ConfigError) as caught:
        read_books(path)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


def test_a_copy_of_the_files_of_a_running_trader_is_read(
    tmp_path: Path, start_writer: Callable[..., subprocess.Popen[str]]
) -> None:
    writer = start_writer(orders=10)
    writer.send_signal(signal.SIGSTOP)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("orders.sqlite", "orders.sqlite-wal"):
        shutil.copyfile(tmp_path / name, copy / name)
    assert len(read_books(copy / "orders.sqlite").orders) >= 10
    assert sorted(path.name for path in copy.iterdir()) == ["orders.sqlite", "orders.sqlite-wal"]


def test_a_journal_from_before_a_table_is_read_and_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "orders.sqlite"
    journal = Journal(path)
    record(journal, 1)
    journal.close()
    tables = ("order_terms", "fill_orders", "reversals", "position_marks", "foreign_orders", "symbol_halts")
    db = sqlite3.connect(path)
    for table in tables:
        db.execute(f"DROP TABLE {table}")
    db.commit()
    db.close()
    books = read_books(path)
    assert len(books.orders) == 1
    assert (books.marks, books.foreign, books.halts, dict(books.fill_orders)) == ((), (), (), {})
    Journal(path).close()
    db = sqlite3.connect(path)
    found = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    db.close()
    assert set(tables) <= found
