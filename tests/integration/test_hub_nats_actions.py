"""Orders over NATS when much goes wrong: odd subjects, answers that hang, an end in the middle, a killed hub."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from dry_work.hub.sinks.nats import init_nats

from .nats_stack import KEY, SECRET, Stack, Trader, build_trade, serve_stack, until

ACTIONS, DATA = "nalpaca-action-stream-v0", "nalpaca-data-stream-v0"


@pytest.fixture
def stack() -> Iterator[Stack]:
    yield from serve_stack()


@pytest.fixture
async def trader(stack: Stack) -> AsyncIterator[Trader]:
    trader = await Trader.connect(stack)
    yield trader
    await trader.close()


async def is_empty(trader: Trader) -> bool:
    return not (await trader.js.stream_info(ACTIONS)).state.messages


async def test_what_is_no_token_is_refused_and_takes_no_other_action_with_it(stack: Stack, trader: Trader) -> None:
    await asyncio.to_thread(init_nats, stack.settings())
    good = ["good-1", "good-2"]
    for name in good:
        await trader.order(name, build_trade())
    for name in ("*", ">", "a*b"):
        await trader.order(name, build_trade(), once=False)
        await trader.cancel(name)
    await trader.js.publish("nalpaca.action.v0.>", b"")  # to read of it is to read of all
    await trader.js.publish("nalpaca.action.v0.*.good-1", b"")
    stack.start_hub()
    for name in good:
        assert (await trader.wait_result(name))["outcome"] == "accepted"
    for name in ("*", "a*b"):
        for number in (1, 2):
            result = await trader.wait_result(name, number)
            assert (result["outcome"], result["message"].count("no token")) == ("refused", 1)
    assert {
        result["outcome"] for result in await until(lambda: len(trader.result(">")) >= 3 and trader.result(">"), ">")
    } == {"refused"}
    assert (await trader.wait_result("*.good-1"))["outcome"] == "refused"
    await until(lambda: is_empty(trader), "nothing is left")
    assert sorted(order["client_order_id"] for order in stack.orders()) == good


async def test_an_answer_that_hangs_holds_up_its_own_symbol_alone_whose_orders_keep_their_order(
    stack: Stack, trader: Trader
) -> None:
    stack.start_hub()
    stack.set_fault(on="http", kind="silent", method="POST", path="/v2/orders", seconds=3.0)
    await trader.order("SPY-0", build_trade())
    await until(lambda: len(stack.hubs["a"]._accounts["paper"]._lanes) == 1, "its request is under way")
    for number in range(1, 4):
        await trader.order(f"SPY-{number}", build_trade())
    for number in range(4):
        await trader.order(f"BRK.B-{number}".replace(".", "_"), build_trade(symbol="BRK.B"))
    await trader.wait_result("BRK_B-3")
    assert not [result for result in trader.results if result["client_order_id"].startswith("SPY")]
    await trader.wait_result("SPY-3")
    told = [result["client_order_id"] for result in trader.results]
    for symbol in ("SPY", "BRK_B"):
        assert [name for name in told if name.startswith(symbol)] == [f"{symbol}-{number}" for number in range(4)]
    made = [order["client_order_id"] for order in reversed(stack.orders())]  # the newest comes first
    for symbol in ("SPY", "BRK_B"):
        assert [name for name in made if name.startswith(symbol)] == [f"{symbol}-{number}" for number in range(4)]


async def test_the_action_under_way_is_finished_at_the_end_and_those_behind_it_wait_for_the_next(
    stack: Stack, trader: Trader
) -> None:
    stack.start_hub("a")
    stack.set_fault(on="http", kind="latency", method="POST", path="/v2/orders", seconds=1.0)
    await trader.order("running", build_trade())
    await until(lambda: stack.hubs["a"]._accounts["paper"]._lanes, "its request is under way")
    hub = stack.hubs.pop("a")
    await trader.order("behind", build_trade())
    await asyncio.to_thread(hub.stop, 20.0)
    assert (await trader.wait_result("running"))["outcome"] == "accepted"
    stack.start_hub("b")
    assert (await trader.wait_result("behind"))["outcome"] in ("accepted", "duplicate")
    await until(lambda: is_empty(trader), "nothing is left")
    assert Counter(order["client_order_id"] for order in stack.orders()) == {"running": 1, "behind": 1}
    assert all(len(trader.result(name)) == 1 for name in ("running", "behind"))


async def test_every_update_carries_its_id_against_duplicates(stack: Stack, trader: Trader) -> None:
    stack.start_hub()
    await trader.order("one", build_trade())
    await until(lambda: ("new", "one") in trader.events(), "the update")
    assert trader.message_ids == [update.event_id for update in trader.updates]
    assert all(trader.message_ids)


def run_hub(stack: Stack, folder: Path) -> subprocess.Popen[bytes]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("ALPACA", "HUB", "NATS"))},
        "ALPACA_API_KEY": KEY,
        "ALPACA_API_SECRET": SECRET,
        "ALPACA_URL": stack.exchange.url,
        "ALPACA_STREAM_URL": stack.upstream.url,
        "NATS_URL": stack.nats.url,
        "ENABLE_ORDERS": "true",
        "ENABLE_TRADE_UPDATER": "true",
        "PROCESSING_TIMEOUT": "20s",
        "STREAM_PROXY_HEALTH_PORT": "0",
        "STREAM_PROXY_METRICS_PORT": "0",
        "OTEL_ENABLED": "false",
    }
    command = [sys.executable, "-m", "dry_work", "hub", "--sinks", "nats", "--state-dir", str(folder)]
    log = (folder / "log.txt").open("ab")
    with log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


async def test_a_hub_that_is_killed_with_orders_in_flight_leaves_one_outcome_of_each(
    stack: Stack, trader: Trader, tmp_path: Path
) -> None:
    await asyncio.to_thread(init_nats, stack.settings())
    name = "nalpaca-orders-consumer-v0"
    await trader.js.delete_consumer(ACTIONS, name)
    await trader.js.add_consumer(  # as an operator may make it: with a shorter time to acknowledge
        ACTIONS, name=name, durable_name=name, filter_subject="nalpaca.action.v0.orders.*", ack_policy="explicit",
        max_deliver=3, ack_wait=2.0,
    )  # fmt: skip
    first = run_hub(stack, tmp_path)
    second: subprocess.Popen[bytes] | None = None
    try:
        await until(lambda: any(tmp_path.glob("orders.paper.json")), "the hub knows where the account stands")
        await trader.order("before", build_trade())
        assert (await trader.wait_result("before"))["outcome"] == "accepted"
        # The exchange takes these two, and one more that it does not take; none is answered.
        stack.set_fault(on="http", kind="silent", method="POST", path="/v2/orders", when="after", seconds=5.0, times=2)
        stack.set_fault(on="http", kind="silent", method="POST", path="/v2/orders", seconds=5.0, skip=2)
        for symbol in ("SPY", "BRK.B"):
            await trader.order(f"taken-{symbol[:3]}", build_trade(symbol=symbol))
        await until(lambda: len(stack.orders()) == 3, "Alpaca has two of them")
        await trader.order("not-taken", build_trade(symbol="BTC/USD", limit_price="100"))
        first.send_signal(signal.SIGKILL)
        first.wait(60)
        second = run_hub(stack, tmp_path)
        outcomes = {}
        for order in ("taken-SPY", "taken-BRK", "not-taken"):
            outcomes[order] = (await trader.wait_result(order))["outcome"]
        assert outcomes["taken-SPY"] == outcomes["taken-BRK"] == "duplicate"
        assert outcomes["not-taken"] == "accepted"
        await until(lambda: is_empty(trader), "everything is acknowledged")
        assert Counter(order["client_order_id"] for order in stack.orders()) == dict.fromkeys(["before", *outcomes], 1)
        assert all(len(trader.result(order)) == 1 for order in outcomes)
        wanted = {("new", order) for order in outcomes}
        await until(lambda: wanted <= set(trader.events()), "their updates are told")
        # Published once more by the second hub, an update has the same id: JetStream keeps it once.
        wanted_subjects = "nalpaca.data.v0.tradeupdates.*"
        subjects = (await trader.js.stream_info(DATA, subjects_filter=wanted_subjects)).state.subjects
        assert sum(subjects.values()) == len(set(trader.message_ids)) == len(set(trader.events()))
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.wait(60)
