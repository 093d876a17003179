"""The dashboard's page in a browser: what is seen, chosen and asked for, and what it does when it is cut off."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from dry_work.dashboard.access import Access
from dry_work.dashboard.board import Board
from dry_work.dashboard.commands import ActionResult
from dry_work.dashboard.server import DashboardServer, find_charts
from dry_work.dashboard.sessions import DecisionView, SessionOutline, TurnView
from dry_work.dashboard.snapshot import BarCounts, FillMark, LogLine, OrderRow, RiskView
from dry_work.errors import ConfigError
from tests.e2e.browser import Browser, Page, serve_browser
from tests.integration.dashboard_client import START_MS, build_board, publish
from tests.ports import find_free_port

TOKEN = "a-token-of-some-length"
# What stands beyond the right edge, but for what scrolls by itself or is for screen readers only.
CUT_OFF = """
[...document.body.querySelectorAll("*")].filter(e => !e.closest(".unseen, .skip, .scroll, .list, .chart, dialog")
  && e.offsetWidth && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.tagName + "." + e.className)
"""


class DashboardPage(Page):
    """The page, and the server behind it."""

    def __init__(self, browser: Browser, server: DashboardServer) -> None:
        super().__init__(browser)
        self.server = server

    def visit(self, link: str = "") -> None:
        """Open it as a new document."""
        self.browser.call("Page.navigate", url="about:blank")
        self.browser.call("Page.navigate", url=link or self.server.link)
        self.wait("document.readyState === 'complete' && document.getElementById('loading').hidden")

    def click(self, selector: str) -> None:
        """Click an element as soon as it is there."""
        self.wait(f"(e => e && e.offsetWidth && !e.disabled)(document.querySelector({json.dumps(selector)}))")
        self.browser.click(selector)

    def press(self, key: str) -> None:
        """Press a key."""
        codes = {"ArrowDown": 40, "End": 35, "Enter": 13}
        for kind in ("keyDown", "keyUp"):
            self.browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if find_charts() is None:
        pytest.skip("no charts: the extra `dashboard` is not installed")
    yield from serve_browser(tmp_path_factory)


@contextlib.contextmanager
def shown(chromium: Browser, *, forgiven: str = "", token: str = "", **given: Any) -> Iterator[DashboardPage]:
    """Serve, open the page; in the end nothing was complained of, and nobody else was asked."""
    server = DashboardServer(Access("127.0.0.1", token), **given)
    server.start()
    chromium.requests.clear()
    chromium.errors.clear()
    chromium.use_media()
    chromium.resize(1280, 900)
    try:
        page = DashboardPage(chromium, server)
        page.visit()
        yield page
        assert [error for error in chromium.errors if not forgiven or forgiven not in error] == []
        assert [url for url in chromium.requests if not url.startswith((server.url, "about:", "data:"))] == []
    finally:
        chromium.call("Page.navigate", url="about:blank")
        server.stop()


def order(board: Board, name: str, **given: Any) -> None:
    """Put an order on the board."""
    base: dict[str, Any] = {
        "symbol": "S1", "side": "buy", "type": "market", "qty": 12.0, "status": "completed", "is_open": False,
        "filled": 12.0, "price": 101.0, "placed_ms": START_MS + 60_000, "ack_ms": 12.5,
    }  # fmt: skip
    board.put_orders([OrderRow(seq=board.seq + 1, id=name, **{**base, **given})])


@pytest.fixture
def board() -> Board:
    """A run with orders, fills, a position and a log."""
    board = build_board(4, bars=60)
    order(board, "dw-a-1-1")
    order(board, "dw-a-1-2", parent="dw-a-1-1", side="sell", type="stop", stop=97.5, status="accepted", is_open=True,
          filled=0.0, price=None)  # fmt: skip
    order(board, "dw-a-1-3", status="rejected", filled=0.0, price=None, reason="risk limit order_value: 9 of 3")
    board.charts["S1"].add_mark(FillMark(START_MS + 120_000, "buy", 12.0, 101.0, False, "dw-a-1-1"))
    board.rows["S1"] = msgspec.structs.replace(board.rows["S1"], position=12.0, price=100.0, profit=12.0)
    board.log.add(LogLine(START_MS, "warning", "<b>a warning</b>"))
    board.equity.append(START_MS, 100_000.0)
    board.equity.append(START_MS + 60_000, 100_500.0)
    publish(board, close=101.0)
    return board


def test_the_page_shows_account_symbols_chart_orders_and_log(chromium: Browser, board: Board) -> None:
    with shown(chromium, board=board) as page:
        page.wait("document.querySelector('#chart canvas') && document.querySelectorAll('.symbol').length === 4")
        page.wait("document.getElementById('link-text').textContent === 'Live'")
        assert page.text("#agent") == "SmaCross"
        assert "100,500.00" in page.text("#tiles")
        assert "+500.00" in page.text("#tiles")
        page.click(".symbol:nth-child(2)")
        page.wait("document.getElementById('h-chart').textContent === 'S1'")
        page.wait("document.getElementById('legend').textContent.includes('SMA 100.50')")
        assert "C 101.00" in page.text("#readout")
        assert "+12.00" in page.text("#positions")
        rows = page.run("[...document.querySelectorAll('#orders tbody tr')].map(row => row.children[2].innerText)")
        assert rows == ["buy market", "buy market", "└ sell stop · stop 97.50"]
        assert "risk limit order_value: 9 of 3" in page.text("#orders")
        assert "<b>a warning</b>" in page.text("#log")  # text of others is text


def test_changes_appear_by_themselves_and_a_chart_grows(chromium: Browser, board: Board) -> None:
    with shown(chromium, board=board) as page:
        page.wait("document.getElementById('readout').textContent.includes('C 101.00')")
        board.charts["S0"].bars.append((START_MS + 61 * 60_000.0, 101.0, 104.0, 100.0, 103.25, 10.0, 101.5))
        publish(board, "S0", close=103.25, market_ms=START_MS + 61 * 60_000)
        page.wait("document.getElementById('readout').textContent.includes('C 103.25')")
        page.wait("document.querySelector('.symbol .last').textContent === '103.25'")
        assert "O 101.00" in page.text("#readout")
        assert page.text(".symbol .last") == "103.25"


def count_bars(board: Board) -> None:
    """Let three symbols have counts of their bars, and S1 a late, a filled, a missing and a halted one."""
    board.is_open = lambda _symbol, _at_ns: True
    board.begin_minutes(START_MS + 30 * 60_000)
    late, filled = board.charts["S1"], board.charts["S1"]
    late.add_odd(START_MS + 59 * 60_000, "l")
    filled.add_odd(START_MS + 58 * 60_000, "f")
    for name, counts in (
        ("S0", BarCounts(expected=31, arrived=31)),
        ("S1", BarCounts(expected=32, arrived=28, late=1, filled=2, missing=1, halted=1)),
        ("S2", BarCounts(expected=31, arrived=21, missing=10)),
    ):
        board.rows[name] = msgspec.structs.replace(board.rows[name], counts=counts)
    publish(board, "S0", "S1", "S2", close=101.0, market_ms=START_MS + 62 * 60_000)
    board.charts["S1"].begin_pause(START_MS + 61 * 60_000)


def test_how_complete_the_bars_are_is_shown_by_symbol_and_by_minute(chromium: Browser, board: Board) -> None:
    count_bars(board)
    with shown(chromium, board=board) as page:
        page.wait("document.querySelectorAll('#complete tbody tr').length === 3")  # of one nothing is known
        assert page.text("#complete-count") == "88.30 % of 94 expected bars"
        rows = page.run("[...document.querySelectorAll('#complete tbody tr')].map(e => e.innerText.split(/\\s+/))")
        assert rows == [
            ["S2", "67.74", "%", "31", "21", "0", "0", "10"],
            ["S1", "96.88", "%", "32", "28", "1", "2", "1"],
            ["S0", "100", "%", "31", "31", "0", "0", "0"],
        ]
        page.click("#complete tbody tr:nth-child(2) button")
        page.wait("document.getElementById('h-chart').textContent === 'S1'")
        kinds = "[...document.querySelectorAll('#minutes i')].map(e => e.dataset.kind).join('')"
        page.wait(f"{kinds} === 'a'.repeat(28) + 'flamh'")
        assert page.run("document.getElementById('minutes').getAttribute('aria-label')") == (
            "last 33 bars: 29 arrived, 1 late, 1 filled, 1 missing, 1 halted"
        )
        assert page.run("document.querySelector('#minutes i:nth-last-child(4)').title") == "14:29 late"
        # A minute more: the strip goes on by itself.
        publish(board, "S1", close=101.0, market_ms=START_MS + 63 * 60_000)
        page.wait(f"{kinds} === 'a'.repeat(28) + 'flamhh'")


def test_a_run_whose_bars_are_not_counted_shows_nothing_of_it(chromium: Browser, board: Board) -> None:
    with shown(chromium, board=board) as page:
        page.wait("document.querySelectorAll('#orders tbody tr').length === 3")
        for name in ("complete-part", "minutes", "minutes-words"):
            assert page.run(f"document.getElementById('{name}').offsetHeight") == 0


def test_late_and_silent_symbols_are_told_apart_from_fresh_ones(chromium: Browser, board: Board) -> None:
    for name, age in (("S1", 5), ("S2", 30)):
        board.rows[name] = msgspec.structs.replace(
            board.rows[name], crypto=True, bar_ms=board.head.market_ms - age * 60_000
        )
    board.rows["S0"] = msgspec.structs.replace(board.rows["S0"], crypto=True)
    board.rows["S3"] = msgspec.structs.replace(
        board.rows["S2"], symbol="S3", paused="Trading Halt: News Pending"
    )  # as silent as the one before, and the exchange has said why
    with shown(chromium, board=board) as page:
        page.wait("document.querySelectorAll('.symbol').length === 4")
        found = page.run("[...document.querySelectorAll('.symbol')].map(row => row.dataset.state)")
        assert found == ["fresh", "late", "stale", "paused"]
        assert "⏸" in page.text(".symbol:nth-child(4)")
        assert "Trading Halt: News Pending" in page.run("document.querySelector('.symbol:nth-child(4)').title")
        assert "! 30m 00s" in page.text(".symbol:nth-child(3) .age")
        assert "1 stale" in page.text("#symbol-count")


def test_halting_asks_first_and_says_what_came_of_it(chromium: Browser, board: Board) -> None:
    asked: list[tuple[str, str]] = []

    def act(action: str, reason: str) -> ActionResult:
        asked.append((action, reason))
        board.head = msgspec.structs.replace(
            board.head, risk=RiskView(state="halted", reason=reason, who="operator", at_ms=START_MS)
        )
        publish(board, close=1.0)
        return ActionResult(done=True, lines=("agent a is HALTED",))

    with shown(chromium, board=board, act=act) as page:
        page.click("#halt")
        page.wait("document.getElementById('ask').open")
        page.click("#ask-no")
        assert asked == []
        page.click("#halt")
        page.click("#reason")
        chromium.call("Input.insertText", text="enough")
        page.click("#ask-yes")
        page.wait("document.getElementById('action-answer').textContent.includes('agent a is HALTED')")
        page.wait("document.getElementById('risk-state').textContent === 'Halted'")
        assert asked == [("halt", "enough")]
        page.wait("document.getElementById('halt').hidden && !document.getElementById('release').hidden")


def test_a_cut_connection_is_said_and_the_page_goes_on_where_it_was(chromium: Browser, board: Board) -> None:
    port = find_free_port()
    with shown(chromium, board=board, forgiven="ERR_", port=port) as page:
        page.wait("document.getElementById('link-text').textContent === 'Live'")
        page.server.stop()
        page.wait("document.getElementById('link-text').textContent.startsWith('Stale since')")
        page.wait("document.getElementById('trouble').textContent.includes('Trying again')")
        publish(board, "S0", close=55.5)
        again = DashboardServer(Access("127.0.0.1"), board=board, port=port)
        again.start()
        try:
            page.wait("document.getElementById('link-text').textContent === 'Live'")
            page.wait("document.querySelector('.symbol .last').textContent === '55.50'")
            assert "Trying again" not in page.text("#trouble")
        finally:
            again.stop()


def test_a_page_without_the_token_asks_for_it(chromium: Browser, board: Board) -> None:
    with shown(chromium, board=board, token=TOKEN, forgiven="401") as page:
        page.wait("document.querySelectorAll('.symbol').length === 4")  # the link has the token
        assert TOKEN not in page.run("location.href")
        page.run("sessionStorage.clear()")
        page.visit(page.server.url)
        page.wait("!document.getElementById('sign-in').hidden")
        page.click("#token")
        chromium.call("Input.insertText", text=TOKEN)
        page.click("#sign-in button")
        page.wait("document.querySelectorAll('.symbol').length === 4")


def test_500_symbols_are_in_the_list_with_few_rows_in_the_page(chromium: Browser) -> None:
    board = build_board(500, bars=2)
    with shown(chromium, board=board) as page:
        page.wait("document.getElementById('symbol-count').textContent.startsWith('500')")
        count = page.run("document.querySelectorAll('.symbol:not([hidden])').length")
        assert 10 < count < 60
        page.run("document.getElementById('list').focus()")
        page.press("ArrowDown")
        page.wait("document.getElementById('h-chart').textContent === 'S1'")
        page.press("End")
        page.wait("document.getElementById('h-chart').textContent === 'S499'")
        chosen = "document.getElementById(document.getElementById('list').getAttribute('aria-activedescendant'))"
        page.wait(f"{chosen}.dataset.symbol === 'S499' && {chosen}.getAttribute('aria-posinset') === '500'")
        assert page.run("document.querySelectorAll('.symbol:not([hidden])').length") < 60
        publish(board, *board.rows, close=7.77)
        page.wait("[...document.querySelectorAll('.symbol:not([hidden]) .last')].every(e => e.textContent === '7.77')")


def test_nothing_is_cut_off_at_any_width_in_light_and_dark(chromium: Browser, board: Board) -> None:
    count_bars(board)
    with shown(chromium, board=board, act=lambda *_: ActionResult(done=True, lines=())) as page:
        page.wait("document.querySelector('#chart canvas') && document.querySelectorAll('#orders tbody tr').length > 2")
        for width, is_phone in ((1280, False), (390, True)):
            chromium.resize(width, 844, is_phone=is_phone)
            for scheme, paper in (("light", "rgb(252, 251, 248)"), ("dark", "rgb(19, 21, 24)")):
                chromium.use_media(scheme=scheme)
                chromium.settle()
                assert page.run(CUT_OFF) == [], (width, scheme)
                assert page.run("getComputedStyle(document.body).backgroundColor") == paper


def test_every_control_has_a_name_and_no_id_stands_twice(chromium: Browser, board: Board) -> None:
    with shown(chromium, board=board, act=lambda *_: ActionResult(done=True, lines=())) as page:
        page.wait("document.querySelectorAll('#orders tbody tr').length === 3")
        nodes = chromium.call("Accessibility.getFullAXTree")["nodes"]
        controls = {"button", "textbox", "searchbox", "combobox", "checkbox", "listbox", "option", "slider", "meter"}
        nameless = [
            node["role"]["value"]
            for node in nodes
            if not node.get("ignored")
            and node.get("role", {}).get("value") in controls
            and not node.get("name", {}).get("value")
        ]
        assert nameless == []
        ids = page.run("[...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(ids) == len(set(ids))


class Tape:
    """A recorded session of three slices."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def outline(self) -> SessionOutline:
        times = [START_MS + (at + 1) * 60_000 for at in range(3)]
        return SessionOutline(name="a session", symbols=("S0", "S1"), times_ms=times, turns=[2, 3, 5], marked=[1])

    def at(self, turn: int, symbol: str) -> TurnView:
        if turn == 5:
            raise ConfigError("turn 5: damaged")
        decision = DecisionView(
            what="buy 9 S1 market", symbol="S1", verdict="refused", reason="risk limit order_value", order="dw-a-1-9"
        )
        board = msgspec.structs.replace(self._board.changes(None, symbol or "S0"), cursor=str(turn))
        return TurnView(
            turn=turn,
            time_ms=START_MS,
            board=board,
            decisions=(decision,) if turn == 3 else (),
            happened=("2 bars: S0, S1",),
            answer="1 refused." if turn == 3 else "No order: next ran and asked for nothing.",
        )


def test_a_recorded_session_is_scrubbed_through(chromium: Browser, board: Board) -> None:
    with shown(chromium, session=Tape(board), forgiven="400") as page:
        page.wait("document.getElementById('answer').textContent === '1 refused.'")
        page.wait("document.getElementById('h-chart').textContent === 'S1'")  # what the decision is about
        assert "risk limit order_value" in page.text("#decisions")
        assert page.text("#link-text") == "Recorded"
        assert page.run("document.getElementById('buttons').hidden")
        page.click("#back-one")
        page.wait("document.getElementById('answer').textContent.startsWith('No order: next ran')")
        assert page.run("document.getElementById('back-mark').disabled")
        page.click("#forth-mark")
        page.wait("document.getElementById('answer').textContent === '1 refused.'")
        page.click("#forth-one")
        page.wait("document.getElementById('answer').textContent === 'turn 5: damaged'")
