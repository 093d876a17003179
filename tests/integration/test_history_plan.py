"""History without a subscription, from a server that refuses the last quarter of an hour as Alpaca does.

With Alpaca's free plan such a request for options is answered 403, `OPRA agreement is not signed`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from dry_work.alpaca.history import BarHistory
from dry_work.alpaca.trading import TradingApi
from dry_work.errors import VenueAuthError
from dry_work.market.messages import Slice
from dry_work.settings import Credentials

NOW = datetime(2024, 6, 11, 15, 0, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * 1_000_000_000
HOUR_NS = 3_600_000_000_000
STOCK, CALL, PUT = "SPY", "SPY240621C00550000", "SPY240621P00550000"


class Venue(ThreadingHTTPServer):
    """A bar in every minute of the last two hours."""

    daemon_threads = True

    def __init__(self, *, has_any: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.has_any = has_any  # of options
        self.ends: list[str] = []  # of requests for bars of options
        self.feeds: list[str] = []  # of requests for bars of stocks

    def answer(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        if path == "/v2/clock":
            return 200, {"timestamp": NOW.isoformat(), "is_open": True}
        end = datetime.fromisoformat(query["end"][0])
        if path.startswith("/v2/stocks"):
            self.feeds += query["feed"]
            if query["feed"] == ["sip"] and end > NOW - timedelta(minutes=15):
                return 403, {"message": "subscription does not permit querying recent SIP data"}
        if path.startswith("/v1beta1/options"):
            self.ends.append(end.strftime("%H:%M"))
            if not self.has_any or end > NOW - timedelta(minutes=15):
                return 403, {"message": "OPRA agreement is not signed"}
        starts = [NOW - timedelta(minutes=back) for back in range(120)]
        wanted = [at for at in starts if datetime.fromisoformat(query["start"][0]) <= at <= end]
        rows = [{"t": at.isoformat(), "o": 1, "h": 1, "l": 1, "c": 1, "v": 1} for at in wanted]
        return 200, {"bars": {query["symbols"][0]: rows[: int(query["limit"][0])]}, "next_page_token": None}


class Handler(BaseHTTPRequestHandler):
    server: Venue

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        status, body = self.server.answer(parts.path, parse_qs(parts.query))
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def venue(request: pytest.FixtureRequest) -> Iterator[Venue]:
    with Venue(has_any=getattr(request, "param", True)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def connect(venue: Venue, feed: str = "iex") -> BarHistory:
    url = f"http://127.0.0.1:{venue.server_port}"
    keys = Credentials(key="k", secret="s")
    return BarHistory(keys, api=TradingApi("k", "s", url=url), data_url=url, stock_feed=feed)


def ends_of(slices: list[Slice], symbol: str) -> list[str]:
    """Ends of the first and the last bar."""
    found = [bar.end_ns for piece in slices for bar in piece.bars if bar.symbol == symbol]
    return [f"{datetime.fromtimestamp(end_ns / 1e9, UTC):%H:%M}" for end_ns in (found[0], found[-1])] if found else []


def test_a_warm_up_of_options_ends_a_quarter_of_an_hour_ago_without_a_subscription(venue: Venue) -> None:
    slices = connect(venue).newest_bars([STOCK, CALL, PUT], 10)
    assert ends_of(slices, STOCK) == ["14:51", "15:00"]
    assert ends_of(slices, CALL) == ends_of(slices, PUT) == ["14:36", "14:45"]
    assert venue.ends == ["15:00", "14:44", "14:44"], "what was refused is not asked for again"


def test_what_was_missed_is_filled_as_far_as_it_can_be(venue: Venue) -> None:
    slices = connect(venue).bars_between([STOCK, CALL], NOW_NS - HOUR_NS, NOW_NS)
    assert ends_of(slices, STOCK) == ["14:01", "15:00"]
    assert ends_of(slices, CALL) == ["14:01", "14:45"]
    recent = connect(venue).bars_between([STOCK, CALL], NOW_NS - HOUR_NS // 12, NOW_NS)
    assert ends_of(recent, STOCK) == ["14:56", "15:00"]
    assert ends_of(recent, CALL) == []


@pytest.mark.parametrize("venue", [False], indirect=True)
def test_stocks_are_filled_where_options_have_no_history_at_all(venue: Venue) -> None:
    slices = connect(venue).bars_between([CALL, STOCK, PUT], NOW_NS - HOUR_NS, NOW_NS)
    assert ends_of(slices, STOCK) == ["14:01", "15:00"]
    assert ends_of(slices, CALL) == []


@pytest.mark.parametrize("venue", [False], indirect=True)
def test_a_warm_up_that_is_refused_says_why(venue: Venue) -> None:
    with pytest.raises(VenueAuthError, match=f"gives no history of {CALL}: OPRA agreement is not signed"):
        connect(venue).newest_bars([STOCK, CALL], 10)


def test_a_stock_feed_that_is_not_subscribed_is_no_matter_of_the_credentials(venue: Venue) -> None:
    with pytest.raises(VenueAuthError, match="gives no history of SPY: subscription does not permit"):
        connect(venue, feed="sip").newest_bars([STOCK], 10)


def test_the_history_is_of_the_feed_that_comes_live(venue: Venue) -> None:
    for feed in ("iex", "otc", "test"):
        assert ends_of(connect(venue, feed).newest_bars([STOCK], 10), STOCK) == ["14:51", "15:00"]
    assert venue.feeds == ["iex", "otc", "iex"]


def test_the_history_of_a_delayed_feed_ends_where_that_is(venue: Venue) -> None:
    history = connect(venue, feed="delayed_sip")
    assert ends_of(history.newest_bars([STOCK], 10), STOCK) == ["14:36", "14:45"]
    assert ends_of(history.bars_between([STOCK], NOW_NS - HOUR_NS, NOW_NS), STOCK) == ["14:01", "14:45"]
    assert history.bars_between([STOCK], NOW_NS - HOUR_NS // 12, NOW_NS) == []
    assert set(venue.feeds) == {"sip"}
