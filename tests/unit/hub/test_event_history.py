"""The venue's history of order events: where it ends, and what it is when the venue does not give all."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from dry_work.alpaca.venues import VenueAccess, open_venue
from dry_work.errors import BrokerUnavailableError
from dry_work.hub.upstreams import event_history
from dry_work.hub.upstreams.event_history import read_history

Talk = Callable[[web.StreamResponse], Awaitable[None]]


def event(number: int) -> bytes:
    return b'data: {"event":"new","event_id":"e%d","order":{"id":"o"}}\n\n' % number


@contextlib.asynccontextmanager
async def serve(
    talk: Talk, *, status: int = 200, content_type: str = "text/event-stream"
) -> AsyncIterator[VenueAccess]:
    queries: list[dict[str, str]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        assert request.headers["APCA-API-KEY-ID"] == "KEY"
        queries.append(dict(request.query))
        if status != 200:
            return web.Response(status=status, text='{"message":"no"}')
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(request)
        await talk(response)
        return response

    app = web.Application()
    app.router.add_get("/v2/events/trades", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield open_venue("KEY", "SECRET", url=f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()
    assert queries == [{"since_id": "e0"}]


async def read(access: VenueAccess, *, last_known: str = "e1", live: str = "") -> tuple[list[str], bool]:
    history = await read_history(
        access, {"since_id": "e0"}, last_known=last_known, is_live=lambda event_id: event_id == live
    )
    assert history is not None
    for data, raw in history.events:
        assert not raw or json.loads(raw) == {"stream": "trade_updates", "data": data}
    return [str(data["event_id"]) for data, _ in history.events], history.is_complete


async def hold(_: web.StreamResponse) -> None:
    await asyncio.Event().wait()


async def test_it_ends_where_the_stream_falls_silent_once_the_last_known_event_has_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_history, "SILENCE_S", 0.2)

    async def talk(response: web.StreamResponse) -> None:
        await response.write(b":heartbeat\n\n")
        await asyncio.sleep(0.4)  # the silence before it does not end it
        told = event(1) + b"data: no json\n\ndata: [7]\n\n" + event(2)
        await response.write(told + b'id: e3\ndata: {"event":"fill","order":{}}\n\n')
        await hold(response)

    async with serve(talk) as access:
        assert await read(access) == (["e1", "e2", "e3"], True)


async def test_without_the_event_that_is_known_it_is_not_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_history, "FIRST_WAIT_S", 0.3)
    async with serve(hold) as access:
        assert await read(access) == ([], False)


async def test_it_ends_where_it_meets_what_the_live_stream_has_brought() -> None:
    async def talk(response: web.StreamResponse) -> None:
        for number in range(1, 1_000):  # it never falls silent
            await response.write(event(number))
            await asyncio.sleep(0.01)

    async with serve(talk) as access:
        assert await read(access, live="e4") == (["e1", "e2", "e3", "e4"], True)


async def test_one_that_never_falls_silent_is_left_and_not_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_history, "LONGEST_S", 1.5)

    async def talk(response: web.StreamResponse) -> None:
        for number in range(1, 1_000):
            await response.write(event(number))
            await asyncio.sleep(0.01)

    async with serve(talk) as access:
        ids, is_complete = await read(access)
    assert ids[:2] == ["e1", "e2"]
    assert not is_complete


@pytest.mark.parametrize("comment", [b": you are reading too slowly, dropped 7 messages", b": internal server error"])
async def test_a_venue_that_leaves_events_out_is_asked_again(comment: bytes) -> None:
    async def talk(response: web.StreamResponse) -> None:
        await response.write(event(1) + comment + b"\n\n")
        await hold(response)

    async with serve(talk) as access:
        with pytest.raises(BrokerUnavailableError, match="left events out"):
            await read(access)


@pytest.mark.parametrize(
    ("status", "content_type", "expected"),
    [(404, "", "none"), (401, "", "none"), (200, "text/html", "none"), (422, "", "unknown id"), (503, "", "error")],
)
async def test_what_the_venue_does_not_offer_is_no_history(status: int, content_type: str, expected: str) -> None:
    async with serve(hold, status=status, content_type=content_type) as access:
        asking = read_history(access, {"since_id": "e0"}, last_known="e1", is_live=lambda _: False)
        if expected == "error":
            with pytest.raises(BrokerUnavailableError, match="HTTP 503"):
                await asking
            return
        found = await asking
    assert (found is None) == (expected == "none")
    assert found is None or (found.events, found.is_complete) == ([], False)
