"""Server-sent trade events on a running exchange."""

from __future__ import annotations

import asyncio
import contextlib
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from dry_work.exchange.data_sockets import StreamLimits
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.sub_accounts import build_sub_account_ids

Run = Callable[..., ExchangeServer]
Connect = Callable[..., Any]

DEADLINE_S = 60.0
BASIC = {"Authorization": "Basic " + b64encode(b"key:secret").decode()}
FIRST, SECOND = build_sub_account_ids("key", 2)
HEARTBEAT = ":heartbeat"
FAILURE = ": internal server error"


class Events:
    """The frames of one stream."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def frame(self, timeout_s: float = DEADLINE_S) -> str:
        """Return the next frame, empty at the end."""
        async with asyncio.timeout(timeout_s):
            try:
                return (await self.answer.content.readuntil(b"\n\n")).decode().strip()
            except asyncio.IncompleteReadError as error:
                return error.partial.decode()

    async def tell(self) -> str:
        """Return the next frame that is no heartbeat."""
        while (frame := await self.frame()) == HEARTBEAT:
            pass
        return frame

    async def event(self) -> dict[str, Any]:
        """Return the next event, which has to be the next frame but for heartbeats."""
        frame = await self.tell()
        assert frame.startswith("data: "), frame
        assert "\n" not in frame
        told: dict[str, Any] = orjson.loads(frame.removeprefix("data: "))
        return told

    async def named(self, name: str) -> dict[str, Any]:
        """Return the data of the next frame, an event of this name."""
        first, _, data = (await self.tell()).partition("\n")
        assert first == f"event: {name}", (first, data)
        told: dict[str, Any] = orjson.loads(data.removeprefix("data: "))
        return told


@asynccontextmanager
async def listen(
    client: Any, path: str = "/v2/events/trades", *, headers: dict[str, str] = BASIC, **query: object
) -> AsyncIterator[Events]:
    params = {name: str(value) for name, value in query.items()}
    timeout = aiohttp.ClientTimeout(None)
    async with client.session.get(client.server.url + path, params=params, headers=headers, timeout=timeout) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.content_type == "text/event-stream"
        events = Events(answer)
        assert await events.frame() == HEARTBEAT  # from here on nothing is missed
        yield events


async def submit(client: Any, account_id: str = FIRST, **fields: object) -> dict[str, Any]:
    """Place an order that rests, which makes the events pending_new and new."""
    order = {"symbol": "SPY", "side": "buy", "type": "limit", "limit_price": 1, "time_in_force": "gtc", "qty": 1}
    path = f"/v1/trading/accounts/{account_id}/orders"
    status, answer = await client.call("POST", path, {**order, **fields}, headers=BASIC)
    assert status == 200, answer
    return dict(answer)


async def refuse(client: Any, path: str, headers: dict[str, str] = BASIC) -> tuple[int, str]:
    status, body = await client.call("GET", path, headers=headers)
    return status, body["message"]


@pytest.fixture
def serve(run_exchange: Run, connect: Connect) -> Callable[..., Any]:
    """Run an exchange with two sub-accounts a key; return a client of it."""
    return lambda **options: connect(run_exchange(**{"rules": "alpaca", "accounts": 2, **options}))


async def test_both_versions_tell_one_payload_with_ids_of_their_own(serve: Callable[..., Any]) -> None:
    client = serve()
    async with listen(client) as newer, listen(client, "/v1/events/trades") as older:
        order = await submit(client, client_order_id="mine")
        for number, name in enumerate(("pending_new", "new"), start=1):
            told, before = await newer.event(), await older.event()
            assert (told["event"], told["account_id"], told["order"]["id"]) == (name, FIRST, order["id"])
            assert told["order"]["client_order_id"] == "mine"
            assert {*told} >= {"at", "event_id", "timestamp"}
            assert (before.pop("event_id"), before.pop("event_ulid")) == (number, told["event_id"])
            assert before == {name: value for name, value in told.items() if name != "event_id"}


async def test_fills_are_told_with_price_quantity_and_position(serve: Callable[..., Any]) -> None:
    client = serve()
    await client.register()
    async with listen(client) as events, client.reader() as reader:
        await reader.receive_slice()
        await submit(client, type="market", limit_price=None, qty=2)
        await client.report(1, orders=1)  # the key reports what its sub-accounts have ordered
        await reader.receive_slice()
        told = [await events.event() for _ in range(3)]
        assert [event["event"] for event in told] == ["pending_new", "new", "fill"]
        assert (told[2]["price"], told[2]["qty"], told[2]["position_qty"]) == ("101", "2", "2")
        assert told[2]["execution_id"]


async def test_a_stream_tells_of_its_own_accounts_alone(serve: Callable[..., Any], connect: Connect) -> None:
    client = serve()
    mine = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret"}
    other = {"Authorization": "Basic " + b64encode(b"other:secret").decode()}
    async with (
        listen(client) as all_subs,
        listen(client, id=SECOND) as second,
        listen(client, headers=mine) as own,
        listen(client, headers=other) as foreign,
    ):
        await submit(client, FIRST)
        await submit(client, SECOND)
        await connect(client.server, "key").submit(type="limit", limit_price=1)
        (foreign_id,) = build_sub_account_ids("other", 1)
        path = f"/v1/trading/accounts/{foreign_id}/orders"
        order = {"symbol": "SPY", "side": "buy", "type": "limit", "limit_price": 1, "time_in_force": "gtc", "qty": 1}
        assert (await client.call("POST", path, order, headers=other))[0] == 200
        assert [(await all_subs.event())["account_id"] for _ in range(4)] == [FIRST, FIRST, SECOND, SECOND]
        assert [(await second.event())["account_id"] for _ in range(2)] == [SECOND] * 2
        _, account = await client.call("GET", "/v2/account")
        assert [(await own.event())["account_id"] for _ in range(2)] == [account["id"]] * 2
        assert [(await foreign.event())["account_id"] for _ in range(2)] == [foreign_id] * 2
    for narrowed in (foreign_id, "nonsense"):
        assert (await refuse(client, f"/v2/events/trades?id={narrowed}"))[0] == 401


async def test_an_account_that_is_opened_later_is_told_of_too(serve: Callable[..., Any]) -> None:
    client = serve()
    async with listen(client) as events:
        _, account = await client.call("POST", "/v1/accounts", {}, headers=BASIC)
        await submit(client, account["id"])
        assert (await events.event())["account_id"] == account["id"]


async def test_a_stream_that_was_cut_goes_on_behind_its_last_event(serve: Callable[..., Any]) -> None:
    client = serve()
    async with listen(client) as events:
        for account_id in (FIRST, SECOND, FIRST):
            await submit(client, account_id)
        told = [await events.event() for _ in range(3)]
    await submit(client, SECOND)
    async with listen(client, since_id=told[-1]["event_id"]) as events:
        await submit(client, FIRST)  # while the past is sent
        told += [await events.event() for _ in range(7)]
    async with listen(client, "/v1/events/trades", since_id=0) as events:
        everything = [await events.event() for _ in range(10)]
    assert [event["event_id"] for event in told] == [event["event_ulid"] for event in everything]
    assert [event["event_id"] for event in everything] == list(range(1, 11))
    accounts = [FIRST, SECOND, FIRST, SECOND, FIRST]
    assert [event["account_id"] for event in told] == [account for account in accounts for _ in range(2)]


async def test_a_stream_ends_at_its_bound(serve: Callable[..., Any]) -> None:
    client = serve()
    async with listen(client) as events:
        await submit(client)
        ids = [(await events.event())["event_id"] for _ in range(2)]
    async with listen(client, since_id=ids[0], until_id=ids[1]) as events:  # in the past
        assert (await events.event())["event_id"] == ids[1]
        assert await events.tell() == ""
    async with listen(client, "/v1/events/trades", since_id=1, until_id=3) as events:  # in the future
        assert (await events.event())["event_id"] == 2
        await submit(client, SECOND)
        assert (await events.event())["event_id"] == 3
        assert await events.tell() == ""
    async with listen(client, "/v1/events/trades", since_id=1, until_id=6, id=SECOND) as events:
        assert [(await events.event())["event_id"] for _ in range(2)] == [3, 4]
        await submit(client, FIRST)  # is not told, and ends the stream
        assert await events.tell() == ""


async def test_a_stream_ends_when_the_market_has_passed_its_time(serve: Callable[..., Any]) -> None:
    client = serve()
    await client.register()
    async with client.reader() as reader:
        await reader.receive_slice()
        async with listen(client, since="2024-06-11T13:30:00Z", until="2024-06-11T13:31:30Z") as events:
            await submit(client)
            assert [(await events.event())["event"] for _ in range(2)] == ["pending_new", "new"]
            await client.report(1)
            assert await events.tell() == ""
        async with listen(client, since="2020-01-01", until="2024-06-10") as events:
            assert await events.tell() == ""


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("until=2024-06-11", "since is required if until is specified"),
        ("since=2024-06-11&since_id=1", "since and since_id cannot be used at the same time"),
        ("since_id=x", "invalid since_id: x; expected an integer"),
    ],
)
async def test_a_bad_cursor_is_refused(serve: Callable[..., Any], query: str, message: str) -> None:
    assert await refuse(serve(), f"/v1/events/trades?{query}") == (422, message)


async def test_credentials_are_asked_for(serve: Callable[..., Any]) -> None:
    client = serve(keys={"key": "another secret"})
    for path in ("/v2/events/trades", "/v1/events/nta"):
        assert await refuse(client, path) == (401, "request is not authorized")
    assert (await client.call("HEAD", "/v2/events/trades", headers=BASIC))[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "/v1/events/accounts/status", "/v1/events/journals/status", "/v2/events/journals/status",
        "/v1/events/transfers/status", "/v2/events/funding/status", "/v1/events/nta", "/v2/events/trades",
    ],
)  # fmt: skip
async def test_a_quiet_stream_sends_heartbeats(serve: Callable[..., Any], path: str) -> None:
    client = serve(heartbeat_s=0.02)
    async with listen(client, path) as events:
        assert [await events.frame() for _ in range(3)] == [HEARTBEAT] * 3


async def test_other_streams_keep_the_rules_of_cursors(serve: Callable[..., Any]) -> None:
    client = serve()
    async with listen(client, "/v1/events/nta", since="2020-01-01", until="2020-01-02") as events:
        assert await events.tell() == ""
    assert (await refuse(client, "/v1/events/nta?until_id=1"))[0] == 422


async def test_cursors_hold_after_a_restart(
    run_exchange: Run, connect: Connect, serve: Callable[..., Any], tmp_path: Path
) -> None:
    client = serve(state_dir=tmp_path)
    async with listen(client) as events:
        for account_id in (FIRST, SECOND):
            await submit(client, account_id)
        told = [await events.event() for _ in range(4)]
    _, opened = await client.call("POST", "/v1/accounts", {"contact": {"email_address": "a@b.invalid"}}, headers=BASIC)
    client.server.stop()
    client = serve(state_dir=tmp_path)
    assert client.server.resumed
    async with listen(client, since_id=told[1]["event_id"]) as events:
        assert [await events.event() for _ in range(2)] == told[2:]
        await submit(client, opened["id"])
        assert (await events.event())["account_id"] == opened["id"]
    _, row = await client.call("GET", f"/v1/accounts/{opened['id']}", headers=BASIC)
    assert row == opened
    assert row["contact"] == {"email_address": "a@b.invalid"}


async def test_two_runs_tell_equal_events(run_exchange: Run, connect: Connect) -> None:
    runs = []
    for _ in range(2):
        client = connect(run_exchange(rules="alpaca", accounts=2))
        for account_id in (FIRST, SECOND, FIRST):
            await submit(client, account_id)
        async with listen(client, since="2020-01-01") as events:
            runs.append([await events.event() for _ in range(6)])
    assert runs[0] == runs[1]


# Slices


async def test_slices_are_told_to_who_asks_for_them(serve: Callable[..., Any]) -> None:
    client = serve()
    await client.register()
    async with listen(client, slices="true") as events, client.reader() as reader:
        assert await events.named("listening") == {"streams": ["slices"], "event_id": "", "resumed": False}
        await reader.receive_slice()
        assert await events.named("slices") == {"slice": 1, "event_id": "", "account_event_id": ""}
        await submit(client, type="market", limit_price=None)
        told = [await events.event() for _ in range(2)]
        await client.submit(type="limit", limit_price=1, symbol="IBM")  # of the key's own account
        await client.report(1, orders=2)
        _, mark = await reader.receive_slice()
        fill = await events.event()
        assert fill["event"] == "fill"
        expected = {"slice": 2, "event_id": mark.event_id, "account_event_id": fill["event_id"]}
        assert await events.named("slices") == expected
        async with listen(client, slices="true", since_id=told[0]["event_id"]) as again:
            assert await again.named("listening") == {
                "streams": ["slices"], "event_id": mark.event_id, "resumed": True,
            }  # fmt: skip
            assert [await again.event() for _ in range(2)] == [told[1], fill]
            assert await again.named("slices") == expected


async def test_a_cursor_of_a_state_that_is_lost_does_not_resume(serve: Callable[..., Any]) -> None:
    client = serve()
    await submit(client)
    async with listen(client, slices="true", since_id="7ZZZZZZZZZ0000000000000009") as events:
        assert (await events.named("listening"))["resumed"] is False


async def test_a_cursor_before_what_is_kept_is_refused(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dry_work.exchange.state._EVENTS_KEPT", 4)
    client = serve()
    async with listen(client) as events:
        for _ in range(4):
            await submit(client)
        ids = [(await events.event())["event_id"] for _ in range(8)]
        await client.call("DELETE", f"/v1/trading/accounts/{FIRST}/orders", headers=BASIC)
        ids += [(await events.event())["event_id"] for _ in range(4)]
    async with listen(client, since_id=ids[8]) as events:
        assert [(await events.event())["event_id"] for _ in range(3)] == ids[9:]
    assert await refuse(client, f"/v2/events/trades?since_id={ids[2]}") == (
        422,
        "events since then are no longer kept: begin later",
    )
    async with listen(client, slices="true", since_id=ids[2]) as events:
        assert (await events.named("listening"))["resumed"] is False


# Slow clients and faults


async def test_a_slow_client_is_told_how_much_it_has_lost(serve: Callable[..., Any]) -> None:
    client = serve(limits=StreamLimits(queue_bytes=4000))
    for _ in range(10):
        await submit(client)
    async with listen(client) as events:
        await client.call("DELETE", f"/v1/trading/accounts/{FIRST}/orders", headers=BASIC)  # ten events at once
        told = []
        while not (frame := await events.tell()).startswith(":"):
            told.append(frame)
        assert 1 <= len(told) < 10
        assert frame == f": you are reading too slowly, dropped {10 - len(told)} messages"
        await submit(client)
        assert (await events.event())["event"] == "pending_new"


async def set_faults(client: Any, *faults: dict[str, Any]) -> None:
    status, answer = await client.call("POST", "/dry-work/v1/faults", list(faults))
    assert status == 200, answer


@pytest.mark.parametrize(("code", "status"), [(402, 401), (406, 429), (409, 403), (500, 500)])
async def test_a_login_is_refused(serve: Callable[..., Any], code: int, status: int) -> None:
    client = serve()
    await set_faults(client, {"on": "trades", "kind": "error", "code": code, "path": "/v2/events"})
    assert (await refuse(client, "/v2/events/trades"))[0] == status
    async with listen(client) as events:
        await submit(client)
        assert (await events.event())["event"] == "pending_new"


@pytest.mark.parametrize(("path", "last"), [("/v2/events/trades", FAILURE), ("/v1/events/trades", "")])
async def test_a_stream_that_fails_says_so_and_ends(serve: Callable[..., Any], path: str, last: str) -> None:
    client = serve()
    async with listen(client, path) as events:
        await set_faults(client, {"on": "trades", "kind": "close", "key": "key", "path": path})
        assert await events.tell() == last
        assert await events.frame() == ""


async def test_a_stream_that_fails_in_the_past_goes_on_behind_it(serve: Callable[..., Any]) -> None:
    client = serve()
    for _ in range(3):
        await submit(client)
    await set_faults(client, {"on": "trades", "kind": "close", "skip": 2})
    async with listen(client, since="2020-01-01") as events:
        told = [await events.event() for _ in range(2)]
        assert await events.tell() == FAILURE
        assert await events.frame() == ""
    async with listen(client, since_id=told[-1]["event_id"]) as events:
        told += [await events.event() for _ in range(4)]
    assert len({event["event_id"] for event in told}) == 6


async def test_a_stream_is_reset(serve: Callable[..., Any]) -> None:
    client = serve()
    async with listen(client) as events:
        await set_faults(client, {"on": "trades", "kind": "reset"})
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await events.frame()


@pytest.mark.parametrize("kind", ["silent", "half_open"])
async def test_a_stream_is_silent_with_heartbeats_or_without(serve: Callable[..., Any], kind: str) -> None:
    client = serve(heartbeat_s=0.02)
    async with listen(client) as struck:
        await set_faults(client, {"on": "trades", "kind": kind})
        async with listen(client) as sound:
            await submit(client)
            assert (await sound.event())["event"] == "pending_new"
            frames: list[str] = []
            with contextlib.suppress(TimeoutError):
                while len(frames) < 10:
                    frames.append(await struck.frame(1.0))
        assert set(frames) <= {HEARTBEAT}
        assert (len(frames) == 10) == (kind == "silent")


async def test_a_fault_makes_a_stream_lose_messages(serve: Callable[..., Any]) -> None:
    client = serve()
    async with listen(client) as events:
        await set_faults(client, {"on": "trades", "kind": "slow", "key": "key"})
        await submit(client)
        assert await events.tell() == ": you are reading too slowly, dropped 1 messages"
        assert (await events.event())["event"] == "new"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"kind": "duplicate", "path": "new"}, ["pending_new", "new", "new", "pending_new", "new"]),
        ({"kind": "drop", "path": "new"}, ["pending_new", "pending_new", "new"]),
        ({"kind": "reorder", "path": "pending_new"}, ["new", "pending_new", "pending_new", "new"]),
        ({"kind": "unknown", "path": "new"}, ["pending_new", "new", "unheard_of", "pending_new", "new"]),
    ],
)
@pytest.mark.parametrize("path", ["/v2/events/trades", "/v1/events/trades"])
async def test_events_are_tampered_with_and_the_past_is_true(
    serve: Callable[..., Any], fault: dict[str, Any], told: list[str], path: str
) -> None:
    client = serve()
    await set_faults(client, {"on": "events", "key": "key", **fault})
    async with listen(client, path) as events:
        await submit(client)
        await submit(client)
        assert [(await events.event())["event"] for _ in told] == told
    async with listen(client, path, since="2020-01-01") as events:
        assert [(await events.event())["event"] for _ in range(4)] == ["pending_new", "new"] * 2


async def test_an_event_that_is_held_back_comes_with_the_end_of_its_minute(serve: Callable[..., Any]) -> None:
    client = serve()
    await client.register()
    async with listen(client) as events, client.reader() as reader:
        await reader.receive_slice()
        await set_faults(client, {"on": "events", "kind": "reorder", "path": "new"})
        await submit(client)
        assert (await events.event())["event"] == "pending_new"
        await client.report(1)
        assert (await events.event())["event"] == "new"


async def test_the_end_of_the_exchange_ends_its_streams(serve: Callable[..., Any]) -> None:
    client = serve()
    async with listen(client) as events:
        await asyncio.to_thread(client.server.stop)
        assert await events.tell() == ""
