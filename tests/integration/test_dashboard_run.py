"""A local run with its dashboard, read and halted over HTTP; its files and its recording afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from dry_work.broker.books_reader import read_books
from dry_work.cli.dashboard import command
from dry_work.dashboard.files import FilesReader
from dry_work.dashboard.recorded import RecordedSession, read_session
from dry_work.engine.replay import recorded_agent
from dry_work.orders.risk import RiskState
from dry_work.recording.flight_log import open_flight
from tests.integration.dashboard_client import DEADLINE_S, Client, wait_for

STRATEGY = '''
import time

import backtrader as bt


class Turner(bt.Strategy):
    """Buys one and sells it again, bar by bar; hangs at a bar when told so."""

    params = (("hang_at", 0),)

    def __init__(self):
        self.average = bt.indicators.SMA(self.data.close, period=3)
        self.calls = 0
        self.order = None

    def next(self):
        self.calls += 1
        while self.p.hang_at and self.calls >= self.p.hang_at:
            time.sleep(0.05)
        if self.order is not None:
            return
        self.order = self.close() if self.getposition(self.data).size else self.buy(size=1)

    def notify_order(self, order):
        if not order.alive():
            self.order = None
'''


class Run:
    """A `dry-work run --local --dashboard` in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        (folder / "symbols.txt").write_text("SPY\nBTC/USD\n")
        (folder / "turner.py").write_text(STRATEGY)
        self.output = folder / "output.txt"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("ALPACA", "DRY_WORK"))}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "dry_work", "run", "--local", "--plain", "--agent", "turner.py:Turner"),
                    *("--speed", "300", "--state-dir", "state", "--dashboard", "127.0.0.1:0", *arguments),
                ],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        found = wait_for(self._find_link, what="the address of the dashboard")
        self.client = Client(found)

    def _find_link(self) -> str:
        text = self.output.read_text()
        assert self.process.poll() is None, text
        found = re.search(r"^dashboard: (\S+)", text, re.MULTILINE)
        return found[1] if found else ""

    @property
    def state(self) -> Path:
        """The agent's state directory."""
        return next((self.folder / "state").glob("local/*/"))

    def stop(self) -> int:
        """End it in order; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(DEADLINE_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


@contextlib.contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Run]:
    run = Run(folder, *arguments)
    try:
        yield run
    finally:
        run.stop()


class Seen(msgspec.Struct):
    """What was seen of one run."""

    folder: Path
    before: Any  # a snapshot while it traded
    halted: Any  # answer to the halt
    after: Any  # a snapshot some slices later
    shown_by: str  # what `dry-work dashboard` said meanwhile
    state: RiskState  # in the journal, after the halt
    released: Any
    exit_code: int


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """One run that is looked at, halted, released and stopped."""
    folder = tmp_path_factory.mktemp("run")
    with running(folder) as run:
        client = run.client
        wait_for(lambda: client.head()["fills"] >= 3, what="the run trades")
        before = client.ask("/api/snapshot?symbol=SPY")[1]
        shown = CliRunner().invoke(command, ["--state-dir", str(run.state)], standalone_mode=False)
        halted = client.act("halt", "seen enough")
        slices = client.head()["slices"]
        wait_for(lambda: client.head()["slices"] >= slices + 5, what="the market goes on")
        after = client.ask("/api/snapshot?symbol=SPY")[1]
        state = read_books(run.state / "orders.sqlite").risk.state
        released = client.act("release")
        wait_for(lambda: client.head()["fills"] > after["head"]["fills"], what="it trades again")
        state_folder = run.state
        code = run.stop()
    return Seen(state_folder, before, halted, after, shown.output, state, released, code)


def test_a_run_shows_its_account_its_symbols_and_their_bars(seen: Seen) -> None:
    head = seen.before["head"]
    assert head["run"]["agent"].endswith("turner.py:Turner")
    assert head["run"]["mode"] == "local"
    assert head["run"]["session"]
    assert head["phase"] == "running"
    assert head["feed"] == "LIVE"
    assert head["account"]["start_equity"] == 100_000
    assert {each["stage"] for each in head["latency"]} >= {"arrival → slice", "slice → end of next"}
    assert [row["symbol"] for row in seen.before["symbols"]] == ["SPY", "BTC/USD"]
    for row in seen.before["symbols"]:
        expected, arrived, *_ = row["counts"]
        assert expected == sum(row["counts"][1:5])
        assert arrived >= 3
    chart = seen.before["chart"]
    assert chart["minutes"].count("a") >= 3
    assert set(chart["minutes"]) <= {"a", "m"}
    assert [line["label"] for line in chart["lines"]] == ["SMA (3)"]
    assert len(chart["bars"]) == chart["total"] >= 3
    times = [bar[0] for bar in chart["bars"]]
    assert times == sorted(set(times))
    for at in range(2, len(chart["bars"])):
        average = sum(bar[4] for bar in chart["bars"][at - 2 : at + 1]) / 3
        assert chart["bars"][at][6] == pytest.approx(average)
    assert seen.before["equity"][-1][1] == pytest.approx(head["account"]["equity"], rel=0.01)


def test_its_fills_are_orders_and_marks_on_the_chart(seen: Seen) -> None:
    orders = {order["id"]: order for order in seen.before["orders"]}
    marks = seen.before["chart"]["marks"]
    assert len(marks) >= 3
    assert [mark[1] for mark in marks[:3]] == ["buy", "sell", "buy"]
    assert [mark[4] for mark in marks[:3]] == [False, True, False]
    # A fill is marked at once, its order is written down some times a second.
    told = [mark for mark in marks if orders.get(mark[5], {}).get("filled")]
    assert len(told) >= 2
    for _, side, qty, price, _, name in told:
        order = orders[name]
        assert (order["side"], order["filled"], order["symbol"]) == (side, qty, "SPY")
        assert order["price"] == pytest.approx(price)
        assert order["status"] == "completed"
        assert order["fill_ms"] > 0


def test_halting_from_the_page_really_halts(seen: Seen) -> None:
    status, answer = seen.halted
    assert (status, answer["done"]) == (200, True)
    assert any("has taken note" in line for line in answer["lines"])
    assert seen.state is RiskState.HALTED
    head = seen.after["head"]
    assert head["risk"]["state"] == "halted"
    assert head["risk"]["reason"] == "seen enough"
    late = [order for order in seen.after["orders"] if order["status"] == "rejected"]
    assert late, "the strategy asked for orders, which were refused"
    assert all("halted" in order["reason"] for order in late)
    first = min(order["placed_ms"] for order in late)
    assert [order for order in seen.after["orders"] if order["placed_ms"] > first and order["filled"]] == []


def test_a_release_lets_it_trade_again_and_the_run_ends_in_order(seen: Seen) -> None:
    assert seen.released[1]["done"] is True
    assert seen.exit_code == 0
    assert not (seen.folder / "dashboard.json").exists()


def test_another_program_of_this_machine_is_told_where_the_dashboard_is(seen: Seen) -> None:
    assert re.search(r"shows itself: http://127\.0\.0\.1:\d+/", seen.shown_by)


def test_an_agent_without_a_dashboard_is_shown_by_its_files(seen: Seen) -> None:
    reader = FilesReader(seen.folder)
    reader.start()
    try:
        delta = reader.board.changes(None)
        assert delta.head is not None
        assert delta.head.phase == "files"
        assert delta.head.detail == "stopped"
        assert delta.head.account is None
        assert delta.head.risk.state == "active"
        assert delta.head.fills >= 4
        fills = sum(order.filled * (1 if order.side == "buy" else -1) for order in delta.orders)
        assert [row.position for row in delta.symbols if row.symbol == "SPY"] == [fills]
        assert delta.log
        before = delta.cursor
        reader.read()
        assert reader.board.changes(before).orders == ()  # nothing has changed
    finally:
        reader.close()
        reader.close()


@pytest.fixture(scope="module")
def session(seen: Seen) -> RecordedSession:
    """The same run, as it was recorded."""
    with open_flight(seen.folder) as reader, recorded_agent(reader.facts) as (agent, _):
        return read_session(reader, agent)


def test_a_recording_shows_bars_and_indicators_as_they_were_known(session: RecordedSession, seen: Seen) -> None:
    assert session.note == ""
    outline = session.outline()
    assert len(outline.turns) == len(outline.times_ms) == len(session.slices) > 10
    chart = seen.before["chart"]
    place = next(at for at, time_ms in enumerate(outline.times_ms) if time_ms == int(chart["bars"][-1][0]))
    then = session.at(outline.turns[place], "SPY")
    assert then.board.chart is not None
    assert [list(map(float, bar[:6])) for bar in then.board.chart.bars] == [
        pytest.approx(bar[:6]) for bar in chart["bars"]
    ]
    assert then.board.chart.bars[-1][6] == pytest.approx(chart["bars"][-1][6])
    assert then.board.head is not None
    assert then.board.head.phase == "recorded"
    early = session.at(outline.turns[3], "SPY")
    assert early.board.chart is not None
    assert len(early.board.chart.bars) == 4
    assert early.board.chart.minutes.replace("m", "") == "aaaa"
    [counts] = [row.counts for row in early.board.symbols if row.symbol == "SPY"]
    assert counts is not None
    assert (counts.arrived, counts.missing) == (4, early.board.chart.minutes.count("m"))
    assert len(early.board.equity) == 4


def test_a_recording_says_why_it_did_and_did_not_trade(session: RecordedSession) -> None:
    outline = session.outline()
    first = session.at(outline.turns[0], "")
    assert "prenext" in first.answer
    assert "of 3 bars" in first.answer
    taken = session.at(outline.turns[outline.marked[0]], "SPY")
    assert [(each.what, each.verdict) for each in taken.decisions] == [("buy 1 SPY market", "taken")]
    assert taken.decisions[0].reason.startswith("later completed, 1 at ")
    views = [session.at(outline.turns[place], "SPY") for place in outline.marked]
    refused = [view for view in views if any(each.verdict == "refused" for each in view.decisions)]
    assert refused, "orders were refused while it was halted"
    assert "seen enough" in refused[0].answer or "halted" in refused[0].answer
    fills = [mark for view in views[-1:] for mark in view.board.chart.marks] if views[-1].board.chart else []
    assert len(fills) >= 3


def test_a_recording_tells_how_long_orders_took(session: RecordedSession, seen: Seen) -> None:
    told: dict[tuple[str, str], int] = {}
    with open_flight(seen.folder) as reader:
        for turn in reader.turns():
            for each in turn.record.told:
                told.setdefault((each.client_order_id, each.status), turn.record.at_ns)
    filled = {name for name, status in told if status == "Completed"}
    assert len(filled) >= 3
    for name in filled:
        order = session.orders[name][-1][1]
        sent_ns = told[name, "Submitted"]
        assert order.ack_ms == pytest.approx((told[name, "Accepted"] - sent_ns) / 1e6, abs=0.01)
        assert order.fill_ms == pytest.approx((told[name, "Completed"] - sent_ns) / 1e6, abs=0.01)


def test_a_moment_of_a_recording_that_is_none_is_refused(session: RecordedSession) -> None:
    with pytest.raises(Exception, match="has no slice"):
        session.at(10**9, "SPY")


def test_a_strategy_that_hangs_is_halted_all_the_same_and_seen_to_hang(tmp_path: Path) -> None:
    with running(tmp_path, "-p", "hang_at=4") as run:
        client = run.client
        with client.stream() as events:
            pulses = (value for name, value, _ in events if name == "pulse")
            wait_for(lambda: (next(pulses)["engine_age_ms"] or 0) > 1500, what="its loop does not turn")
            status, answer = client.act("halt", "it hangs")
            assert (status, answer["done"]) == (200, True)
            wait_for(lambda: next(pulses)["risk"]["state"] == "halted", what="the halt is seen")
        assert read_books(run.state / "orders.sqlite").risk.state is RiskState.HALTED
