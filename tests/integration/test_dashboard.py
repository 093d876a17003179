"""The dashboard's server: who is let in, what is streamed and resumed, what a slow reader costs, what may be asked."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dry_work.dashboard import server as server_module
from dry_work.dashboard.access import Access
from dry_work.dashboard.board import Board
from dry_work.dashboard.commands import ActionResult
from dry_work.dashboard.server import READERS, DashboardServer, find_charts, start_server
from dry_work.dashboard.settings import DashboardSettings
from dry_work.errors import ConfigError
from tests.integration.dashboard_client import Client, build_board, publish, wait_for

TOKEN = "a-token-of-some-length"
PAGE = Path(server_module.__file__).with_name("page")


class Acts:
    """Takes what is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def __call__(self, action: str, reason: str) -> ActionResult:
        self.asked.append((action, reason))
        return ActionResult(done=True, lines=("done",))


@contextlib.contextmanager
def serving(
    board: Board, *, token: str = "", act: Any = None, **given: Any
) -> Iterator[tuple[DashboardServer, Client]]:
    server = DashboardServer(Access("127.0.0.1", token), board=board, act=act, **given)
    server.start()
    try:
        yield server, Client(server.url, token=token)
    finally:
        server.stop()


@pytest.fixture
def board() -> Board:
    return build_board()


def test_the_page_and_its_modules_are_served_with_a_policy_that_lets_nobody_else_in(board: Board) -> None:
    with serving(board) as (_, client):
        for path in PAGE.iterdir():
            status, text, headers = client.ask("/" + ("" if path.name == "index.html" else path.name))
            assert status == 200
            assert text == path.read_text(encoding="utf-8")
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert "unsafe" not in headers["Content-Security-Policy"]
            assert headers["X-Content-Type-Options"] == "nosniff"
        assert client.ask("/app.js")[2]["Content-Type"].startswith("text/javascript")
        for path in ("/nothing.js", "/..", "/..%2fserver.py", "/%2e%2e/server.py"):
            assert client.ask(path)[0] in (400, 404)


def test_the_script_that_draws_comes_from_the_installed_package(board: Board) -> None:
    if find_charts() is None:
        pytest.skip("no charts: the extra `dashboard` is not installed")
    with serving(board) as (_, client):
        status, text, headers = client.ask("/library.js")
        assert status == 200
        assert "Lightweight Charts" in text[:300]
        assert headers["Content-Type"].startswith("text/javascript")
        assert client.ask("/api/about")[1]["charts"] is True


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "rebound.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"X_Dry_Work": ""}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_another_page_cannot_halt_the_run(board: Board, headers: dict[str, str], status: int) -> None:
    acts = Acts()
    with serving(board, act=acts) as (_, client):
        given = {"Content_Type": "application/json", **headers}
        if given.pop("X_Dry_Work", None) == "":
            client.headers = {}
        answer = client.ask("/api/halt", method="POST", body=b"{}", **given)
        assert answer[0] == status
        assert acts.asked == []


def test_a_token_is_asked_for_where_one_is_set(board: Board) -> None:
    acts = Acts()
    with serving(board, token=TOKEN, act=acts) as (server, client):
        assert server.link == f"{server.url}#token={TOKEN}"
        assert client.ask("/api/about")[0] == 200
        assert client.act("halt", "news")[0] == 200
        stranger = Client(server.url)
        for path in ("/api/about", "/api/snapshot", "/api/events"):
            assert stranger.ask(path)[0] == 401
        assert stranger.act("flatten")[0] == 401
        assert stranger.ask("/")[0] == 200  # which asks for the token
    assert acts.asked == [("halt", "news")]


def test_actions_are_carried_out_with_their_reason_and_others_are_refused(board: Board) -> None:
    acts = Acts()
    with serving(board, act=acts) as (_, client):
        assert client.act("flatten", "end of the day") == (200, {"done": True, "lines": ["done"]})
        assert client.act("sell-everything")[0] == 404
        assert client.ask("/api/halt", method="POST", body=b"{", Content_Type="application/json")[0] == 400
        assert client.ask("/api/halt", method="POST", body=b"x" * 9000, Content_Type="application/json")[0] == 413
        assert client.ask("/api/halt")[0] in (404, 405)
    assert acts.asked == [("flatten", "end of the day")]


def test_without_a_way_to_act_the_page_is_told_so(board: Board) -> None:
    with serving(board) as (_, client):
        assert client.ask("/api/about")[1]["actions"] == []
        status, answer = client.act("halt")
        assert status == 409
        assert "only looked at" in answer["error"]


def test_a_stream_begins_with_everything_and_goes_on_with_what_changes(board: Board) -> None:
    with serving(board) as (_, client), client.stream("S1") as events:
        name, first, _ = next(events)
        assert name == "delta"
        assert first["whole"] is True
        assert [row["symbol"] for row in first["symbols"]] == ["S0", "S1", "S2"]
        assert len(first["chart"]["bars"]) == 5
        name, pulse, _ = next(events)
        assert (name, pulse["risk"]["state"]) == ("pulse", "active")
        board.charts["S1"].bars.append((2e12, 1.0, 2.0, 0.5, float("nan"), 3.0, float("nan")))
        publish(board, "S2", close=7.0)
        found = next(value for name, value, _ in events if name == "delta")
        assert [(row["symbol"], row["close"]) for row in found["symbols"]] == [("S2", 7.0)]
        assert found["chart"]["bars"] == [[2e12, 1.0, 2.0, 0.5, None, 3.0, None]]
        assert found["chart"]["first"] == 5


def test_a_stream_that_was_cut_goes_on_where_it_was(board: Board) -> None:
    with serving(board) as (_, client):
        with client.stream("S0") as events:
            *_, last = next(events)
        publish(board, "S1", close=8.0)
        publish(board, "S1", close=9.0)
        board.charts["S0"].bars.append((2e12, 1.0, 2.0, 0.5, 1.5, 3.0, 4.0))
        with client.stream("S0", last=last) as events:
            _, found, _ = next(events)
        assert "whole" not in found
        assert [(row["symbol"], row["close"]) for row in found["symbols"]] == [("S1", 9.0)]
        assert len(found["chart"]["bars"]) == 1
        for stranger in ("00000000.5.1.1.1.1.S0", "not a cursor"):
            with client.stream("S0", last=stranger) as events:
                assert next(events)[1]["whole"] is True


def test_a_reader_that_takes_nothing_holds_up_neither_the_writer_nor_another_reader() -> None:
    board = build_board(500, bars=1)
    symbols = tuple(board.rows)
    with serving(board) as (server, client), socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect(("127.0.0.1", server.port))
        stuck.sendall(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Dry-Work: 1\r\n\r\n")
        written = 0
        with client.stream() as events:
            next(events)
            stopping = threading.Event()

            def write() -> None:
                nonlocal written
                while not stopping.wait(0.002):
                    written += 1
                    publish(board, *symbols, close=float(written))

            writer = threading.Thread(target=write)
            writer.start()
            seen = 0
            closes = []
            for name, value, _ in events:
                if name == "delta":
                    closes.append(value["symbols"][0]["close"])
                    seen += 1
                if seen >= 6:
                    break
            stopping.set()
            writer.join(30)
        assert closes == sorted(closes)
        assert written > 5 * seen  # states in between were never sent
        # What the stuck one has: what fits into its buffers, not what was written.
        taken = 0
        with contextlib.suppress(TimeoutError):
            stuck.settimeout(1.0)
            while chunk := stuck.recv(65536):
                taken += len(chunk)
        assert 0 < taken < written * 100_000 / 4


def test_so_many_readers_are_let_in_and_no_more(board: Board) -> None:
    with serving(board) as (_, client), contextlib.ExitStack() as stack:
        for _ in range(READERS):
            next(stack.enter_context(client.stream()))
        status, answer, _ = client.ask("/api/events")
        assert status == 503
        assert f"{READERS} readers" in answer["error"]
        stack.close()
        publish(board, "S0", close=1.0)  # which lets the server notice that they are gone
        wait_for(lambda: client_can_read(client), what="readers that are gone are counted no more")


def client_can_read(client: Client) -> bool:
    """Tell whether another reader is let in."""
    with contextlib.suppress(AssertionError), client.stream() as events:
        next(events)
        return True
    return False


def test_who_looks_is_counted(board: Board) -> None:
    class Watched:
        readers = 0

    watched = Watched()
    with serving(board, watched=watched) as (_, client):
        with client.stream() as events:
            next(events)
            assert watched.readers == 1
        wait_for(lambda: publish(board, "S0", close=time.monotonic()) or watched.readers == 0)


def test_it_ends_at_once_with_readers_and_may_be_stopped_twice(board: Board) -> None:
    before = set(threading.enumerate())
    with serving(board) as (server, client), client.stream() as events:
        next(events)
        server.stop()
        assert list(events) is not None  # it ends
        server.stop()
        wait_for(lambda: not [thread for thread in threading.enumerate() if thread not in before])
    DashboardServer(Access("127.0.0.1"), board=board).stop()


def test_an_address_that_is_taken_is_told_and_the_default_one_moves(board: Board) -> None:
    with serving(board) as (server, _):
        taken = DashboardSettings(port=server.port)
        with pytest.raises(ConfigError, match=r"127\.0\.0\.1:\d+: cannot be listened on"):
            start_server(Access("127.0.0.1"), taken, board=board)
        moved = start_server(Access("127.0.0.1"), DashboardSettings(port=server.port, may_move=True), board=board)
        try:
            assert moved.port != server.port
        finally:
            moved.stop()
