from __future__ import annotations

import pytest

from dry_work.dashboard.board import Board, Chart
from dry_work.dashboard.minutes import MINUTES_SHOWN, trace_minutes
from dry_work.dashboard.snapshot import Head, RunFacts, SymbolRow

MINUTE_MS = 60_000
AT_MS = 1_000 * MINUTE_MS  # end of the newest slice


def trace(*back: int, odd: dict[int, str] | None = None, since: int = 5, **given: object) -> str:
    """Return the letters of the bars that ended so many minutes before the newest slice."""
    values: dict[str, object] = {
        "odd": {AT_MS - minutes * MINUTE_MS: letter for minutes, letter in (odd or {}).items()},
        "pauses": (),
        "since_ms": AT_MS - since * MINUTE_MS,
        "until_ms": AT_MS,
        "length_ms": MINUTE_MS,
        "is_open": lambda _start_ms: True,
        **given,
    }
    return trace_minutes([float(AT_MS - minutes * MINUTE_MS) for minutes in back], **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("back", "odd", "letters"),
    [
        ((0, 1, 2, 3, 4, 5), {}, "aaaaaa"),
        ((0, 1, 3, 4), {}, "maamaa"),
        ((0, 1, 3, 4, 5), {1: "l", 4: "f"}, "afamla"),
        ((0, 1, 2, 3, 4, 5, 6, 7), {7: "f"}, "aaaaaa"),  # what was there before the count began is left out
        ((), {}, "mmmmmm"),
    ],
)
def test_each_bar_that_was_to_come_has_a_letter(back: tuple[int, ...], odd: dict[int, str], letters: str) -> None:
    assert trace(*back, odd=odd) == letters


def test_a_bar_is_not_missing_while_the_market_is_closed_or_the_symbol_halted() -> None:
    closed_ms = AT_MS - 3 * MINUTE_MS
    assert trace(0, 1, is_open=lambda start_ms: start_ms >= closed_ms) == "cccmaa"
    halt = (AT_MS - 4 * MINUTE_MS, AT_MS - 2 * MINUTE_MS)
    assert trace(0, 5, pauses=(halt,)) == "amhhma"
    assert trace(5, pauses=((AT_MS - 2 * MINUTE_MS, 0.0),)) == "ammmhh"  # it lasts


def test_an_option_that_did_not_trade_is_quiet(board: Board) -> None:
    board.charts["SPY240621C00550000"] = board.charts["SPY"]
    board.rows["SPY240621C00550000"] = SymbolRow(seq=1, symbol="SPY240621C00550000")
    board.begin_minutes(AT_MS - 3 * MINUTE_MS)
    assert board.trace("SPY240621C00550000", until_ms=AT_MS) == "aqla"


def test_no_more_are_told_than_are_shown() -> None:
    assert trace(since=500) == "m" * MINUTES_SHOWN


@pytest.fixture
def board() -> Board:
    found = Board(Head(seq=1, run=RunFacts(agent="a", mode="paper", symbols=1), market_ms=AT_MS), ["SPY"])
    found.charts["SPY"] = Chart(kept=100)
    found.rows["SPY"] = SymbolRow(seq=1, symbol="SPY")
    for back in (4, 3, 1, 0):
        found.charts["SPY"].bars.append((AT_MS - back * MINUTE_MS, 1.0, 1.0, 1.0, 1.0, 1.0))
    found.charts["SPY"].add_odd(AT_MS - MINUTE_MS, "l")
    found.is_open = lambda _symbol, _at_ns: True
    return found


def test_a_board_knows_the_minutes_from_its_first_slice_on(board: Board) -> None:
    assert board.trace("SPY", until_ms=AT_MS) == ""
    board.begin_minutes(AT_MS - 3 * MINUTE_MS)
    assert board.trace("SPY", until_ms=AT_MS) == "amla"
    assert board.trace("IBM", until_ms=AT_MS) == ""
    chart = board.changes(None, "SPY").chart
    assert chart is not None
    assert chart.minutes == "amla"


def test_minutes_are_told_as_they_were_known_then(board: Board) -> None:
    board.begin_minutes(AT_MS - 4 * MINUTE_MS)
    assert board.trace("SPY", until_ms=AT_MS - MINUTE_MS, bars=2) == "aamm"
    assert board.trace("SPY", until_ms=AT_MS - MINUTE_MS, bars=3) == "aaml"


def test_a_halt_is_on_the_chart_from_its_begin_to_its_end(board: Board) -> None:
    board.begin_minutes(AT_MS - 4 * MINUTE_MS)
    chart = board.charts["SPY"]
    chart.end_pause(AT_MS)  # of which no begin is known
    chart.begin_pause(AT_MS - 3 * MINUTE_MS)
    chart.end_pause(AT_MS - 2 * MINUTE_MS)
    assert board.trace("SPY", until_ms=AT_MS) == "aahla"


def test_what_is_kept_of_odd_bars_is_bounded() -> None:
    chart = Chart(kept=10)
    for number in range(1_000):
        chart.add_odd(number, "l")
    assert len(chart.odd) <= 4 * MINUTES_SHOWN
    assert 999 in chart.odd


def test_bars_that_came_after_the_head_was_written_hide_no_older_ones(board: Board) -> None:
    trail = Chart(kept=4 * MINUTES_SHOWN)
    for number in range(3 * MINUTES_SHOWN):
        trail.bars.append((AT_MS + (number - 2 * MINUTES_SHOWN) * MINUTE_MS, 1.0, 1.0, 1.0, 1.0, 1.0))
    board.charts["SPY"] = trail
    board.begin_minutes(AT_MS - 100 * MINUTE_MS)
    assert board.trace("SPY", until_ms=AT_MS) == "a" * MINUTES_SHOWN
    known = 2 * MINUTES_SHOWN  # the bar of `AT_MS` came next
    assert board.trace("SPY", until_ms=AT_MS, bars=known) == "a" * (MINUTES_SHOWN - 1) + "m"
