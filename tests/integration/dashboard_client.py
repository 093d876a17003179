"""What tests of the dashboard share: a board with something on it, and a client for its server."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec

from dry_work.dashboard.access import HEADER
from dry_work.dashboard.board import Board, Chart
from dry_work.dashboard.snapshot import AccountView, Head, LineFacts, RiskView, RunFacts, SymbolRow

DEADLINE_S = 60.0
START_MS = 1_718_112_600_000


def build_board(symbols: int = 3, *, bars: int = 5) -> Board:
    """Return a board with rows and bars of symbols S0, S1, and so on."""
    names = [f"S{number}" for number in range(symbols)]
    run = RunFacts(agent="agents.sma_cross:SmaCross", mode="paper", symbols=symbols, own_time=True)
    board = Board(
        Head(
            seq=1,
            run=run,
            phase="running",
            feed="LIVE",
            market_ms=START_MS + bars * 60_000,
            account=AccountView(cash=90_000, equity=100_500, start_equity=100_000, day_equity=100_000),
            risk=RiskView(state="active"),
        ),
        names,
    )
    for name in names:
        chart = board.charts[name] = Chart((LineFacts(label="SMA"),))
        for bar in range(bars):
            chart.bars.append((START_MS + (bar + 1) * 60_000.0, 100.0, 102.0, 99.0, 101.0, 10.0, 100.5))
        board.rows[name] = SymbolRow(
            seq=1, symbol=name, bar_ms=START_MS + bars * 60_000, close=101.0, bars=bars, delay_ms=1.5
        )
    return board


def publish(board: Board, *symbols: str, close: float, market_ms: int | None = None) -> None:
    """Write down a change of some rows and of the head, as a run does."""
    seq = board.seq + 1
    at_ms = market_ms or board.head.market_ms
    for symbol in symbols:
        board.rows[symbol] = msgspec.structs.replace(board.rows[symbol], seq=seq, close=close, bar_ms=at_ms)
    board.head = msgspec.structs.replace(board.head, seq=seq, market_ms=at_ms)
    board.seq = seq


class Client:
    """Asks the server at `url` as its page does."""

    def __init__(self, url: str, *, token: str = "") -> None:
        self._host = urlsplit(url).hostname or ""
        self._port = urlsplit(url).port or 0
        self.headers = {HEADER: "1", **({"Authorization": f"Bearer {token}"} if token else {})}

    def ask(
        self, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Return status, JSON or text, and headers of an answer. A header that is empty is left out."""
        given = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection = http.client.HTTPConnection(self._host, self._port, timeout=DEADLINE_S)
        with contextlib.closing(connection):
            connection.request(method, path, body, {name: value for name, value in given.items() if value})
            answer = connection.getresponse()
            text = answer.read()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(text) if is_json else text.decode(), dict(answer.headers)

    def act(self, action: str, reason: str = "") -> tuple[int, Any]:
        """Ask for an action; return status and answer."""
        body = json.dumps({"reason": reason}).encode()
        status, answer, _ = self.ask(f"/api/{action}", method="POST", body=body, Content_Type="application/json")
        return status, answer

    @contextlib.contextmanager
    def stream(self, symbol: str = "", *, last: str = "") -> Iterator[Iterator[tuple[str, Any, str]]]:
        """Yield an iterator over events: name, value, id."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=DEADLINE_S)
        with contextlib.closing(connection):
            headers = {**self.headers, **({"Last-Event-ID": last} if last else {})}
            connection.request("GET", f"/api/events?symbol={symbol}", headers=headers)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            yield _read_events(answer)

    def head(self) -> Any:
        """Return the head of a snapshot."""
        return self.ask("/api/snapshot")[1]["head"]


def _read_events(answer: http.client.HTTPResponse) -> Iterator[tuple[str, Any, str]]:
    fields: dict[str, str] = {}
    while line := answer.readline().decode():
        if line == "\n":
            yield fields.get("event", ""), json.loads(fields["data"]), fields.get("id", "")
            fields = {}
        else:
            name, _, value = line.rstrip("\n").partition(": ")
            fields[name] = value


def wait_for(condition: Any, *, what: str = "") -> Any:
    """Return what a condition gives as soon as it is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what or condition
        time.sleep(0.05)
    return found
