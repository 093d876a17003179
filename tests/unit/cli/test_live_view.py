"""What the live view shows, and how it leaves a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from rich.console import Console

from dry_work.cli.live_view import LiveView, can_draw, choose_symbols, format_age, render
from dry_work.clock import MINUTE_NS, SECOND_NS
from dry_work.engine.progress import Event, Progress, SymbolProgress

DEADLINE_S = 60.0
NOON_NS = 1_718_107_200 * SECOND_NS  # 2024-06-11 12:00 UTC
SPY = SymbolProgress(symbol="SPY", bar_end_ns=NOON_NS, close=535.127, position=28.0, profit=12.5, open_orders=1)
ETH = SymbolProgress(symbol="ETH/USD")
PROGRESS = Progress(
    agent="my.py:Cross",
    mode="paper",
    symbols=(SPY, ETH),
    market_ns=NOON_NS,
    feed="LIVE",
    cash=85_000.0,
    equity=100_123.45,
    start_equity=100_000.0,
    bars=1_234,
    orders=12,
    open_orders=1,
    events=(Event(NOON_NS, "buy 28 SPY: filled at 534.68"),),
)


def text_of(progress: Progress | None, *, now_ns: int = NOON_NS, height: int = 40, width: int = 120) -> str:
    console = Console(width=width, height=height, record=True, file=io.StringIO())
    console.print(render(progress, now_ns=now_ns, height=height))
    return console.export_text()


def row_of(text: str, symbol: str) -> list[str]:
    return re.split(r" {2,}", next(line for line in text.splitlines() if line.startswith(symbol)).strip())


def test_all_figures_are_shown() -> None:
    text = text_of(PROGRESS, now_ns=NOON_NS + 75 * SECOND_NS)
    assert "my.py:Cross  paper  LIVE  2024-06-11 12:00 UTC  1,234 bars" in text
    assert "equity 100,123.45  +123.45 (+0.12%)  cash 85,000.00  orders 12, 1 open" in text
    assert row_of(text, "SPY") == ["SPY", "12:00", "1m 15s", "535.13", "28", "+12.50", "1"]
    assert row_of(text, "ETH/USD") == ["ETH/USD", "-", "-", "-", "0"]
    assert "12:00:00  buy 28 SPY: filled at 534.68" in text


def test_ages_at_a_simulated_exchange_are_measured_by_its_own_time() -> None:
    progress = replace(PROGRESS, own_time=True, market_ns=NOON_NS + 2 * MINUTE_NS)
    assert row_of(text_of(progress, now_ns=NOON_NS * 2), "SPY")[2] == "2m 00s"


def test_lost_market_data_and_a_halted_broker_are_told() -> None:
    progress = replace(PROGRESS, feed="DISCONNECTED", feed_detail="no stream on market-data", halted="blocked")
    text = text_of(progress)
    assert "DISCONNECTED (no stream on market-data)" in text
    assert "no orders are taken: blocked" in text


def test_before_the_first_snapshot_it_says_so() -> None:
    assert "starting" in text_of(None)
    assert "no market data yet" in text_of(Progress(agent="a", mode="local", symbols=()))


def test_it_fits_into_a_low_terminal_and_counts_what_it_leaves_out() -> None:
    many = tuple(SymbolProgress(symbol=f"S{number}") for number in range(50))
    text = text_of(replace(PROGRESS, symbols=(*many, SPY)), height=20)
    assert len(text.splitlines()) <= 20
    shown = re.findall(r"^S\d+", text, re.MULTILINE)
    assert "SPY" in text  # it has a position
    assert f"and {51 - len(shown) - 1} symbols more" in text


def test_symbols_with_positions_or_orders_go_first_and_keep_their_order() -> None:
    rows = [SymbolProgress(symbol=name) for name in "ABCD"]
    rows += [SymbolProgress(symbol="E", open_orders=1), SymbolProgress(symbol="F", position=-1.0)]
    assert [row.symbol for row in choose_symbols(rows, 4)] == ["A", "B", "E", "F"]
    assert [row.symbol for row in choose_symbols(rows, 6)] == list("ABCDEF")


@pytest.mark.parametrize(
    ("age_s", "text"),
    [(-3, "0s"), (59.9, "59s"), (60, "1m 00s"), (3_599, "59m 59s"), (7_620, "2h 07m"), (86_400 * 4 + 10_800, "4d 03h")],
)
def test_ages_are_told_in_their_two_largest_units(age_s: float, text: str) -> None:
    assert format_age(age_s) == text


def test_markup_in_what_others_say_is_no_markup() -> None:
    progress = replace(PROGRESS, feed_detail="[bold]x[/nonsense]", events=(Event(0, "[red]y"),))
    assert "[bold]x[/nonsense]" in text_of(progress)
    assert "[red]y" in text_of(progress)


class Terminal:
    """A pseudo-terminal of 30 lines whose output is kept."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (30, 110))
        self.output = ""
        self._ended = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while not self._ended.is_set() or select.select([self.master], [], [], 0.0)[0]:
            if select.select([self.master], [], [], 0.05)[0]:
                try:
                    self.output += os.read(self.master, 65_536).decode(errors="replace")
                except OSError:  # the other side is closed
                    return

    def wait_for(self, pattern: str) -> None:
        end_s = time.monotonic() + DEADLINE_S
        while not re.search(pattern, self.output):
            assert time.monotonic() < end_s, f"no {pattern!r} in {self.output[-3000:]!r}"
            time.sleep(0.01)

    def finish(self) -> str:
        """Return all that was written."""
        self._ended.set()
        self._reader.join(DEADLINE_S)
        return self.output

    def close(self) -> None:
        self.finish()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    found = Terminal()
    yield found
    found.close()


def is_cursor_shown(output: str) -> bool:
    return output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l")


def test_only_a_terminal_that_can_be_drawn_on_gets_a_view(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    with os.fdopen(os.dup(terminal.slave), "w") as stream:
        assert can_draw(stream)
        monkeypatch.setenv("TERM", "dumb")
        assert not can_draw(stream)
    assert not can_draw(io.StringIO())


def test_it_draws_new_snapshots_and_asks_for_them(terminal: Terminal) -> None:
    asked = threading.Event()
    with os.fdopen(os.dup(terminal.slave), "w") as stream:
        view = LiveView(stream, draw_s=0.01)
        view.follow(asked.set)
        with view:
            assert asked.wait(DEADLINE_S)
            view.show(PROGRESS)
            terminal.wait_for("12, 1 open")
            view.tell("a line [bold]above")
            terminal.wait_for(r"a line \[bold\]above")
            print("from a strategy")
            terminal.wait_for("from a strategy")
            view.show(replace(PROGRESS, orders=13))
            terminal.wait_for("13, 1 open")
        view.stop()
    assert is_cursor_shown(terminal.finish())
    assert not [thread for thread in threading.enumerate() if thread.name == "live view"]


def test_an_exception_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    out, err = sys.stdout, sys.stderr

    def fail_while_it_draws() -> None:
        with LiveView(stream):
            terminal.wait_for("starting")
            raise ZeroDivisionError

    with os.fdopen(os.dup(terminal.slave), "w") as stream:
        with pytest.raises(ZeroDivisionError):
            fail_while_it_draws()
        assert (sys.stdout, sys.stderr) == (out, err)
    assert is_cursor_shown(terminal.finish())


def test_a_terminal_that_goes_away_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    asked = threading.Semaphore(0)
    stream = os.fdopen(terminal.slave, "w")
    view = LiveView(stream, draw_s=0.01)
    view.follow(asked.release)
    view.start()
    terminal.wait_for("starting")
    terminal.finish()
    os.close(terminal.master)
    view.show(PROGRESS)
    for _ in range(100):
        assert asked.acquire(timeout=DEADLINE_S)
    view.tell("nobody reads this")
    view.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "live view"]
    with contextlib.suppress(OSError):  # what was not written
        stream.close()


Launch = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def launch(terminal: Terminal, tmp_path: Path) -> Iterator[Launch]:
    """Start `dry-work run --local` on the terminal, which it sees as its own."""
    processes: list[subprocess.Popen[bytes]] = []
    (tmp_path / "symbols.txt").write_text("SPY\nBTC/USD\n")

    def start(*options: str, **settings: Any) -> subprocess.Popen[bytes]:
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "dry_work", "run", "--local", *options],
                cwd=tmp_path, stdin=terminal.slave, stdout=terminal.slave, stderr=terminal.slave, **settings,
            )
        )  # fmt: skip
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait(DEADLINE_S)


def test_a_run_on_a_terminal_shows_the_view_until_ctrl_c(terminal: Terminal, launch: Launch) -> None:
    process = launch("--speed", "600")
    terminal.wait_for(r"local\S*  LIVE")
    terminal.wait_for(r"BTC/USD +1\d:\d\d ")
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == 130
    output = terminal.finish()
    assert is_cursor_shown(output)
    assert output.index("\x1b[?25l") < output.index("last bar") < output.index("stopped by Ctrl-C")
    assert not re.search(r"UTC  [\d,]+ bars  \d+ orders  equity", output)  # no progress lines beside it


def test_a_strategy_that_raises_shows_its_traceback_on_a_restored_terminal(
    terminal: Terminal, launch: Launch, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(
        "import backtrader as bt\nclass Bad(bt.Strategy):\n    def next(self):\n        raise RuntimeError('no more')\n"
    )
    assert launch("--agent", "bad.py:Bad").wait(DEADLINE_S) == 1
    output = terminal.finish()
    assert is_cursor_shown(output)
    assert output.rfind("\x1b[?25h") < output.rfind("RuntimeError: no more")


def test_plain_prints_lines_on_a_terminal_too(terminal: Terminal, launch: Launch) -> None:
    process = launch("--plain", "--speed", "600")
    terminal.wait_for(r"UTC  [\d,]+ bars  \d+ orders  equity")
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == 130
    output = terminal.finish()
    assert "\x1b[?25l" not in output
    assert "last bar" not in output
