"""What a reader is given, however far it has got."""

from __future__ import annotations

import msgspec
import pytest

from dry_work.dashboard.board import LINES_KEPT, MARKS_KEPT, ORDERS_KEPT, Board, Chart
from dry_work.dashboard.snapshot import (
    Cursor,
    FillMark,
    Head,
    LineFacts,
    LogLine,
    OrderRow,
    RiskView,
    RunFacts,
    SymbolRow,
    encode_json,
    parse_cursor,
)

HEAD = Head(seq=1, run=RunFacts(agent="a.py:A", mode="local", symbols=2))


def order(name: str, seq: int, *, is_open: bool = False) -> OrderRow:
    return OrderRow(
        seq=seq, id=name, symbol="SPY", side="buy", type="market", qty=1, status="completed", is_open=is_open
    )


@pytest.fixture
def board() -> Board:
    """A board with two symbols, of which one has bars."""
    board = Board(HEAD, ["SPY", "BTC/USD"])
    board.charts["BTC/USD"] = Chart((LineFacts(label="SMA"),))
    board.rows = {name: SymbolRow(seq=1, symbol=name) for name in ("SPY", "BTC/USD")}
    for number in range(3):
        board.charts["BTC/USD"].bars.append((number * 60_000.0, 1, 2, 0.5, 1.5, 10, number + 0.5))
    return board


def publish(board: Board, **rows: SymbolRow) -> None:
    """Write down a change of rows."""
    seq = board.seq + 1
    for row in rows.values():
        board.rows[row.symbol] = msgspec.structs.replace(row, seq=seq)
    board.head = msgspec.structs.replace(board.head, seq=seq)
    board.seq = seq


def test_a_new_reader_is_given_everything(board: Board) -> None:
    board.log.add(LogLine(1, "info", "hello"))
    board.equity.append(60_000.0, 100.0)
    delta = board.changes(None, "BTC/USD")
    assert delta.whole
    assert delta.head is not None
    assert [row.symbol for row in delta.symbols] == ["SPY", "BTC/USD"]
    assert delta.log == (LogLine(1, "info", "hello"),)
    assert delta.equity == [[60_000.0, 100.0]]
    assert delta.chart is not None
    assert [bar[-1] for bar in delta.chart.bars] == [0.5, 1.5, 2.5]


def test_a_reader_that_has_seen_everything_is_given_nothing(board: Board) -> None:
    cursor = board.changes(None, "BTC/USD").cursor
    delta = board.changes(cursor, "BTC/USD")
    assert delta.is_empty
    assert not delta.whole


def test_a_slow_reader_is_given_the_newest_state_once(board: Board) -> None:
    cursor = board.changes(None).cursor
    for close in (1.0, 2.0, 3.0):
        publish(board, spy=SymbolRow(seq=0, symbol="SPY", close=close))
    delta = board.changes(cursor)
    assert [(row.symbol, row.close) for row in delta.symbols] == [("SPY", 3.0)]
    assert board.changes(delta.cursor).is_empty


def test_bars_and_fills_come_once_and_anew_for_another_symbol(board: Board) -> None:
    chart = board.charts["BTC/USD"]
    cursor = board.changes(None, "BTC/USD").cursor
    chart.bars.append((180_000.0, 1, 2, 0.5, 1.5, 10, 9.0))
    chart.add_mark(FillMark(180_000, "buy", 1.0, 1.5, False, "o-1"))
    delta = board.changes(cursor, "BTC/USD")
    assert delta.chart is not None
    assert (delta.chart.first, [bar[-1] for bar in delta.chart.bars]) == (3, [9.0])
    assert [mark.order for mark in delta.chart.marks] == ["o-1"]
    other = board.changes(delta.cursor, "SPY")
    assert other.chart is not None
    assert other.chart.bars == []
    back = board.changes(other.cursor, "BTC/USD")
    assert back.chart is not None
    assert len(back.chart.bars) == 4
    assert len(back.chart.marks) == 1


def test_a_cursor_of_another_run_says_nothing(board: Board) -> None:
    other = Board(HEAD, ["SPY"])
    publish(other)
    assert board.changes(other.changes(None).cursor).whole


@pytest.mark.parametrize(
    "text", ["", "x", "12345678.1.2.3.4.5", "12345678.1.-2.3.4.5.SPY", "1234567g.1.2.3.4.5.SPY", "1" * 4000]
)
def test_a_text_that_is_no_cursor_is_none(text: str) -> None:
    assert parse_cursor(text) is None


def test_a_cursor_survives_its_text() -> None:
    cursor = Cursor(epoch="0011aaff", seq=7, log=3, equity_ms=1_700_000_000_000, bars=12, marks=1, symbol="BRK.B")
    assert parse_cursor(cursor.encode()) == cursor


def test_open_orders_stay_and_the_oldest_ended_ones_go(board: Board) -> None:
    board.put_orders([order("open", 2, is_open=True)])
    board.put_orders(order(f"o-{number}", 3) for number in range(ORDERS_KEPT + 30))
    assert "open" in board.orders
    assert len(board.orders) == ORDERS_KEPT + 1
    assert "o-29" not in board.orders
    assert f"o-{ORDERS_KEPT + 29}" in board.orders


def test_log_and_fills_are_bounded(board: Board) -> None:
    for number in range(LINES_KEPT + 50):
        board.log.add(LogLine(number, "info", str(number)))
    total, lines = board.log.read()
    assert total == LINES_KEPT + 50
    assert [line.time_ms for line in lines] == list(range(50, LINES_KEPT + 50))
    assert [line.time_ms for line in board.log.read(total - 2)[1]] == [total - 2, total - 1]
    chart = board.charts["SPY"]
    for number in range(MARKS_KEPT + 5):
        chart.add_mark(FillMark(number, "sell", 1, 1, True, ""))
    first, marks = chart.read_marks()
    assert (first, len(marks)) == (5, MARKS_KEPT)
    assert [mark.time_ms for mark in chart.read_marks(MARKS_KEPT + 3)[1]] == [MARKS_KEPT + 3, MARKS_KEPT + 4]


def test_the_state_of_the_brake_is_read_when_it_is_asked_for(board: Board) -> None:
    states = iter(["active", "halted"])
    board.read_risk = lambda view: msgspec.structs.replace(view, state=next(states))
    assert board.risk().state == "active"
    assert board.risk().state == "halted"
    assert board.head.risk == RiskView()


def test_what_is_not_a_number_is_null() -> None:
    assert encode_json([1.5, float("nan"), float("inf")]) == b"[1.5,null,null]"
