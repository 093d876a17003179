"""Requests of a hub's account: several at a time, in order where that matters, and none that hangs stops the others."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dry_work.alpaca.venues import open_venue
from dry_work.errors import BrokerUnavailableError, OrderRejectedError, OutcomeUnknownError
from dry_work.hub.accounts import AccountSettings, HubAccount

DEADLINE_S = 60.0


class Venue:
    """Answers each request with its path, those to /v2/hang only when the test says so."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.answered: list[str] = []
        self.released = threading.Event()
        venue = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                venue.begun.append(f"{self.command} {self.path}")
                if self.path.startswith("/v2/hang"):
                    venue.released.wait(DEADLINE_S)
                venue.answered.append(self.path)
                body = json.dumps({"path": self.path}).encode()
                self.send_response(422 if self.path == "/v2/bad" else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def venue() -> Iterator[Venue]:
    venue = Venue()
    yield venue
    venue.close()


def build_account(venue: Venue, **settings: float) -> HubAccount:
    access = open_venue("KEY", "SECRET", url=venue.url, timeout_s=DEADLINE_S)
    return HubAccount(AccountSettings(environment="paper", access=access), **settings)  # type: ignore[arg-type]


async def until_begun(venue: Venue, request: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while request not in venue.begun:
            await asyncio.sleep(0.005)


async def test_a_request_that_hangs_leaves_the_others_their_way(venue: Venue) -> None:
    account = build_account(venue)
    hanging = asyncio.create_task(account.call("POST", "/hang", lane="AAPL"))
    await until_begun(venue, "POST /v2/hang")
    assert await account.call("GET", "/positions") == {"path": "/v2/positions"}
    assert await account.call("POST", "/orders", lane="IBM") == {"path": "/v2/orders"}
    venue.released.set()
    assert await hanging == {"path": "/v2/hang"}
    account.close()
    account.close()


@pytest.mark.parametrize("lane", ["", "AAPL"])
async def test_what_is_of_one_lane_keeps_its_order_behind_one_that_was_given_up(venue: Venue, lane: str) -> None:
    account = build_account(venue)
    with pytest.raises(OutcomeUnknownError, match=r"POST /hang: no answer within 0\.05 s"):
        await account.call("POST", "/hang", lane=lane, timeout_s=0.05)
    later = [asyncio.create_task(account.call("POST", f"/orders/{number}", lane=lane)) for number in range(5)]
    await account.call("GET", "/clock")
    await until_begun(venue, "POST /v2/hang")
    assert sorted(venue.begun) == ["GET /v2/clock", "POST /v2/hang"]
    venue.released.set()
    await asyncio.gather(*later)
    assert venue.begun[2:] == [f"POST /v2/orders/{number}" for number in range(5)]
    assert not account._lanes
    account.close()


async def test_what_cannot_begin_was_not_sent(venue: Venue) -> None:
    account = build_account(venue, threads=1, turn_timeout_s=0.05)
    hanging = asyncio.create_task(account.call("GET", "/hang"))
    await until_begun(venue, "GET /v2/hang")
    with pytest.raises(BrokerUnavailableError, match="POST /orders: not sent"):
        await account.call("POST", "/orders")
    assert "not sent" in account.error
    venue.released.set()
    await hanging
    assert account.error == ""
    assert venue.begun == ["GET /v2/hang"]
    account.close()


async def test_a_caller_that_is_gone_leaves_its_turn_to_the_next(venue: Venue) -> None:
    account = build_account(venue, threads=1)
    gone = asyncio.create_task(account.call("POST", "/hang", lane="AAPL"))
    await until_begun(venue, "POST /v2/hang")
    waiting = asyncio.create_task(account.call("POST", "/never", lane="AAPL"))
    await asyncio.sleep(0)
    for task in (gone, waiting):
        task.cancel()
    await asyncio.gather(gone, waiting, return_exceptions=True)
    venue.released.set()
    assert await account.call("POST", "/orders", lane="AAPL") == {"path": "/v2/orders"}
    assert "POST /v2/never" not in venue.begun
    account.close()


async def test_a_refusal_is_no_failure_of_the_account_and_after_the_end_nothing_is_sent(venue: Venue) -> None:
    account = build_account(venue)
    with pytest.raises(OrderRejectedError):
        await account.call("POST", "/bad")
    assert account.error == ""
    account.close()
    with pytest.raises(BrokerUnavailableError, match="the hub stops"):
        await account.call("POST", "/orders")


async def test_closing_does_not_wait_for_a_request_that_hangs(venue: Venue) -> None:
    account = build_account(venue)
    hanging = asyncio.create_task(account.call("GET", "/hang"))
    await until_begun(venue, "GET /v2/hang")
    async with asyncio.timeout(DEADLINE_S / 3):
        await asyncio.to_thread(account.close)
    assert venue.answered == []
    venue.released.set()
    await asyncio.gather(hanging, return_exceptions=True)
    async with asyncio.timeout(DEADLINE_S):
        while any(thread.name.startswith("hub account") for thread in threading.enumerate()):
            await asyncio.sleep(0.005)
