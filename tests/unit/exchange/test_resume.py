"""An exchange that stopped at any moment and was started again in the same state directory."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from dry_work.errors import ConfigError, LeaseHeldError
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.state_log import LOG_NAME, StateLog
from dry_work.feeds.recorded import Recording
from dry_work.wire.pubsub import encode_time

Run = Callable[..., ExchangeServer]
Connect = Callable[..., Any]


@asynccontextmanager
async def stream(
    client: Any, *, since: str | None = None, streams: tuple[str, ...] = ("trade_updates", "slices")
) -> Any:
    """Listen to `/stream`; yields a function that returns the next message, and the answer to the listening."""
    async with client.session.ws_connect(client.server.stream_url + "/stream") as socket:

        async def receive() -> Any:
            return orjson.loads((await socket.receive(60.0)).data)

        await socket.send_json({"action": "auth", "key": client.headers["APCA-API-KEY-ID"], "secret": "secret"})
        await receive()
        data: dict[str, Any] = {"streams": list(streams)}
        if since is not None:
            data["since"] = since
        await socket.send_json({"action": "listen", "data": data})
        answer = await receive()
        assert answer["stream"] == "listening"
        yield receive, answer["data"]


async def tell_all(client: Any) -> dict[str, Any]:
    """Return what the account looks like from outside."""
    paths = (
        "/v2/account", "/v2/orders?status=all", "/v2/positions", "/v2/account/activities", "/v2/clock",
        "/v2/account/portfolio/history?period=1D&timeframe=1Min", "/v2/watchlists", "/v2/account/configurations",
        "/dry-work/v1/session", "/v2/stocks/SPY/bars?timeframe=1Min",
    )  # fmt: skip
    return {path: (await client.call("GET", path)) for path in paths}


async def test_accounts_orders_and_the_open_slice_are_as_they_were(
    run_exchange: Run, connect: Connect, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"rules": "alpaca", "state_dir": tmp_path}
    server = run_exchange(**options)
    assert not server.resumed
    client, other = connect(server), connect(server, "other")
    await client.register()
    async with client.reader() as reader:
        first, _ = await reader.receive_slice()
        await client.submit(client_order_id="mine", time_in_force="day")
        await client.submit(type="limit", limit_price=99, qty=2)
        await client.submit(qty="no number")
        await other.submit(symbol="BTC/USD", qty="0.5")
        await client.call("POST", "/v2/watchlists", {"name": "one", "symbols": ["SPY"]})
        await client.call("PATCH", "/v2/account/configurations", {"no_shorting": True})
        await client.report(1, orders=3)
        await reader.receive_slice()
        revision = {"symbol": "SPY", "timestamp": encode_time(first[0].ts_event_ns), "close": 100.4}
        assert (await client.call("POST", "/dry-work/v1/revisions", revision))[0] == 200
    before = [await tell_all(client), await tell_all(other)]
    assert before[0]["/v2/positions"][1][0]["qty"] == "1"
    assert before[0]["/v2/stocks/SPY/bars?timeframe=1Min"][1]["bars"][0]["c"] == 100.4
    server.stop()
    again = run_exchange(**options)
    assert again.resumed
    client, other = connect(again), connect(again, "other")
    after = [await tell_all(client), await tell_all(other)]
    for old, new in zip(before, after, strict=True):
        assert new == old
    async with client.reader() as reader:
        bars, mark = await reader.receive_slice()  # the open one, once more
        assert ([bar.symbol for bar in bars], mark.slice) == (["SPY"], 2)
        await client.report(2)
        assert (await reader.receive_slice())[1].slice == 3


async def test_orders_that_a_report_names_still_count_after_a_restart(
    run_exchange: Run, connect: Connect, tmp_path: Path
) -> None:
    server = run_exchange(state_dir=tmp_path)
    client = connect(server)
    await client.register()
    async with client.reader() as reader:
        await reader.receive_slice()
        await client.submit()
        await client.submit(qty=-1)  # refused, and yet a request
    server.stop()
    client = connect(run_exchange(state_dir=tmp_path))
    async with client.reader() as reader:
        await reader.receive_slice()
        await client.report(1, orders=2)
        assert (await reader.receive_slice())[1].slice == 2  # at once: nothing is missing


async def test_a_client_order_id_of_the_run_before_is_found_and_taken(
    run_exchange: Run, connect: Connect, tmp_path: Path
) -> None:
    server = run_exchange(state_dir=tmp_path)
    _, order = await connect(server).submit(client_order_id="answer was lost")
    server.stop()
    client = connect(run_exchange(state_dir=tmp_path))
    _, found = await client.call("GET", "/v2/orders:by_client_order_id?client_order_id=answer%20was%20lost")
    assert found == order
    status, refusal = await client.submit(client_order_id="answer was lost")
    assert (status, refusal["message"]) == (422, "client_order_id must be unique")


async def test_a_stream_goes_on_behind_the_last_event_that_the_client_has(
    run_exchange: Run, connect: Connect, tmp_path: Path
) -> None:
    server = run_exchange(state_dir=tmp_path)
    client = connect(server)
    await client.register()
    async with client.reader() as reader, stream(client) as (receive, answer):
        assert answer == {"streams": ["trade_updates", "slices"], "event_id": ""}
        await reader.receive_slice()
        assert (await receive())["data"] == {"slice": 1, "event_id": "", "account_event_id": ""}
        await client.submit()
        await client.report(1, orders=1)
        events = [await receive(), await receive()]
        mark = (await receive())["data"]
        assert [event["data"]["event"] for event in events] == ["new", "fill"]
        last = events[1]["data"]["event_id"]
        assert mark == {"slice": 2, "event_id": last, "account_event_id": last}
    server.stop()
    client = connect(run_exchange(state_dir=tmp_path))
    async with stream(client, since=events[0]["data"]["event_id"]) as (receive, answer):
        assert answer["resumed"] is True
        assert await receive() == events[1]
        assert (await receive())["data"] == mark
    async with stream(client, since=last) as (receive, answer):
        assert answer["resumed"] is True
        assert (await receive())["data"] == mark


async def test_an_exchange_that_has_forgotten_says_so_and_sends_nothing_old(
    run_exchange: Run, connect: Connect
) -> None:
    async with stream(connect(run_exchange()), since="01J02V1GV000000000000000ZZ") as (_, answer):
        assert answer == {"streams": ["trade_updates", "slices"], "resumed": False, "event_id": ""}


async def test_a_client_that_asks_for_trade_updates_alone_gets_nothing_else(
    run_exchange: Run, connect: Connect
) -> None:
    client = connect(run_exchange())
    await client.register()
    async with client.reader() as reader, stream(client, streams=("trade_updates",)) as (receive, answer):
        assert answer == {"streams": ["trade_updates"]}
        await reader.receive_slice()
        await client.submit()
        await client.report(1, orders=1)
        assert [(await receive())["data"]["event"] for _ in range(2)] == ["new", "fill"]


async def test_the_mark_of_a_slice_names_the_last_event_of_any_and_of_this_account(
    run_exchange: Run, connect: Connect
) -> None:
    server = run_exchange()
    client, other = connect(server), connect(server, "other")
    await client.register()
    async with client.reader() as reader, stream(client) as (receive, _), stream(other) as (receive_other, _):
        await reader.receive_slice()
        await receive()
        await receive_other()
        await other.submit()
        await client.report(1)
        events = [(await receive_other())["data"] for _ in range(2)]
        last = events[-1]["event_id"]
        assert (await receive_other())["data"] == {"slice": 2, "event_id": last, "account_event_id": last}
        assert (await receive())["data"] == {"slice": 2, "event_id": last, "account_event_id": ""}


async def test_a_market_that_has_ended_is_at_its_end_after_a_restart(
    run_exchange: Run, connect: Connect, tmp_path: Path
) -> None:
    server = run_exchange(speed=60_000.0, state_dir=tmp_path)
    await connect(server).wait_for(state="ended")
    server.stop()
    again = connect(run_exchange(speed=60_000.0, state_dir=tmp_path))
    assert (await again.wait_for(state="ended"))["slice"] == 5


async def test_a_paced_market_goes_on_behind_its_last_slice(
    run_exchange: Run, connect: Connect, build: Any, tmp_path: Path
) -> None:
    played: Recording = build({"SPY": 400})
    server = run_exchange(played, speed=600.0, state_dir=tmp_path)
    client = connect(server)
    async with client.reader() as reader:
        await reader.receive_slice()
        _, mark = await reader.receive_slice()
    server.stop()
    stopped = server.describe()["slice"]
    assert stopped >= mark.slice
    again = run_exchange(played, speed=600.0, state_dir=tmp_path)
    async with connect(again).reader() as reader:
        _, mark = await reader.receive_slice()
        assert stopped <= mark.slice
        assert (await reader.receive_slice())[1].slice == mark.slice + 1


async def test_a_silent_consumer_is_given_its_time_anew_after_a_restart(
    run_exchange: Run, connect: Connect, tmp_path: Path
) -> None:
    server = run_exchange(state_dir=tmp_path)
    client = connect(server)
    await client.register()
    async with client.reader() as reader:
        await reader.receive_slice()
    server.stop()
    again = connect(run_exchange(state_dir=tmp_path, consumer_timeout_s=30.0), "somebody else")
    async with again.reader() as reader:
        await reader.receive_slice()
    assert (await again.wait_for(state="running"))["registered"] == 1


def test_two_exchanges_cannot_have_one_state_directory(run_exchange: Run, tmp_path: Path) -> None:
    run_exchange(state_dir=tmp_path)
    with pytest.raises(LeaseHeldError, match="in use by another exchange"):
        run_exchange(state_dir=tmp_path)


def test_another_recording_is_refused(run_exchange: Run, build: Any, tmp_path: Path) -> None:
    run_exchange(state_dir=tmp_path).stop()
    with pytest.raises(ConfigError, match="was begun with data with fingerprint"):
        run_exchange(build({"SPY": 3}), state_dir=tmp_path)


async def test_an_exchange_that_cannot_write_its_log_answers_no_order_and_ends(
    run_exchange: Run, connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failures: list[BaseException] = []
    told = threading.Event()

    def take(error: BaseException) -> None:
        failures.append(error)
        told.set()

    client = connect(run_exchange(state_dir=tmp_path, on_failure=take))
    await client.call("GET", "/v2/account")

    def fail(self: StateLog, command: object, *, sync: bool = True) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StateLog, "append", fail)
    status, _ = await client.submit()
    assert status == 500
    assert told.wait(60.0)
    assert str(failures[0]) == f"{tmp_path / LOG_NAME} cannot be written: No space left on device"
    monkeypatch.undo()
    client = connect(run_exchange(state_dir=tmp_path))
    assert await client.call("GET", "/v2/orders?status=all") == (200, [])
