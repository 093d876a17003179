"""Orders, trade updates, positions and market data over NATS: the real server, real clients, the simulated exchange."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nats.errors
import nats.js.errors
import pytest

from dry_work.errors import ConfigError, HubError
from dry_work.hub.sinks.nats import init_nats
from dry_work.hub.sinks.nats_settings import NatsSettings, StreamSettings
from dry_work.proto.stream.v0 import stream_pb2
from dry_work.proto.tradesvc.v0 import tradesvc_pb2 as pb

from .nats_stack import SYMBOLS, Stack, Trader, build_market, build_trade, serve_stack, until

ACTIONS, DATA = "nalpaca-action-stream-v0", "nalpaca-data-stream-v0"
TIME = "2024-01-02T14:30:00.123456789Z"


@pytest.fixture
def stack() -> Iterator[Stack]:
    yield from serve_stack()


@pytest.fixture
async def trader(stack: Stack) -> AsyncIterator[Trader]:
    trader = await Trader.connect(stack)
    yield trader
    await trader.close()


async def count_actions(trader: Trader) -> int:
    return int((await trader.js.stream_info(ACTIONS)).state.messages)


async def read_positions(trader: Trader) -> pb.Positions | None:
    kv = await trader.js.key_value("nalpaca")
    try:
        entry = await kv.get("positions")
    except nats.js.errors.KeyNotFoundError:
        return None
    return pb.Positions.FromString(entry.value or b"")


def names(orders: list[dict[str, Any]]) -> Counter[str]:
    return Counter(order["client_order_id"] for order in orders)


# --- orders and cancellations


async def test_an_order_becomes_one_order_at_alpaca_with_a_result_and_its_updates(stack: Stack, trader: Trader) -> None:
    stack.start_hub()
    await trader.order("first", build_trade(symbol="brk.b"))
    result = await trader.wait_result("first")
    (order,) = stack.orders()
    assert order["client_order_id"] == "first"
    assert order["symbol"] == "BRK.B"
    assert result["subject"] == "nalpaca.data.v0.results.first"
    assert result.items() >= {"action": "order", "outcome": "accepted", "order_id": order["id"], "attempts": 1}.items()
    assert result["at"].endswith("Z")
    await until(lambda: ("new", "first") in trader.events(), "the update")
    update = next(update for update in trader.updates if update.event == "new")
    assert update.event_id
    assert (update.order.symbol, update.order.limit_price, update.order.side) == ("BRK.B", "1", pb.SIDE_BUY)
    await until(lambda: count_actions_is(trader, 0), "it is acknowledged")


async def count_actions_is(trader: Trader, count: int) -> bool:
    return await count_actions(trader) == count


async def test_the_same_order_twice_is_a_duplicate_and_another_with_its_id_is_refused(
    stack: Stack, trader: Trader
) -> None:
    stack.start_hub()
    await trader.order("twice", build_trade())
    first = await trader.wait_result("twice")
    await trader.order("twice", build_trade(), once=False)
    second = await trader.wait_result("twice", 2)
    assert (second["outcome"], second["order_id"]) == ("duplicate", first["order_id"])
    await trader.order("twice", build_trade(limit_price="2"), once=False)
    third = await trader.wait_result("twice", 3)
    assert third["outcome"] == "refused"
    assert "different order" in third["message"]
    assert len(stack.orders()) == 1
    await until(lambda: count_actions_is(trader, 0), "nothing is left")


async def test_every_action_that_is_refused_has_a_result_that_says_why(stack: Stack, trader: Trader) -> None:
    stack.start_hub()
    bad = {
        "undecodable": (b"\xff\xff", "no tradesvc.v0.Trade"),
        "no-symbol": (build_trade(symbol=None), "symbol is missing"),
        "no-side": (build_trade(side=None), "side is missing"),
        "no-type": (build_trade(order_type=None), "order_type is missing"),
        "no-tif": (build_trade(tif=None), "tif is missing"),
        "not-a-number": (build_trade(qty="1e3"), "qty '1e3'"),
        "negative": (build_trade(qty="-1"), "qty '-1'"),
        "both": (build_trade(notional="5"), "both given"),
        "neither": (build_trade(qty=None), "qty or notional is missing"),
        "no-price": (build_trade(limit_price=None), "limit_price is missing"),
        "x" * 129: (build_trade(), "129 characters"),
        "by-alpaca": (build_trade(symbol="NOPE"), "NOPE"),
    }
    for name, (data, _) in bad.items():
        await trader.order(name, data)
    for name, (_, text) in bad.items():
        result = await trader.wait_result(name)
        assert result["outcome"] == "refused", name
        assert text in result["message"], name
    alpaca = (await trader.wait_result("by-alpaca")).items()
    assert alpaca >= {"http_status": 422, "code": 42210000, "attempts": 1}.items()
    assert not stack.orders()
    await until(lambda: count_actions_is(trader, 0), "nothing is delivered again")


async def test_a_subject_that_no_consumer_takes_is_refused_also_when_it_came_before_the_hub(
    stack: Stack, trader: Trader
) -> None:
    assert set(await asyncio.to_thread(init_nats, stack.settings())) > {ACTIONS, DATA}
    assert await asyncio.to_thread(init_nats, stack.settings()) == []
    await trader.order("with.dot", build_trade())
    stack.start_hub()
    assert (await trader.wait_result("with.dot"))["outcome"] == "refused"
    await trader.js.publish("nalpaca.action.v0.orderz.typo", build_trade())
    result = await trader.wait_result("orderz.typo")
    assert (result["action"], result["outcome"]) == ("unknown", "refused")
    assert result["subject"] == "nalpaca.data.v0.results.orderz.typo"
    await until(lambda: count_actions_is(trader, 0), "they are out of the stream")
    assert not stack.orders()


async def test_a_cancellation_takes_an_order_id_a_client_order_id_or_all(stack: Stack, trader: Trader) -> None:
    stack.start_hub()
    for name in ("a", "b", "c", "d"):
        await trader.order(name, build_trade())
        await trader.wait_result(name)
    ids = {order["client_order_id"]: order["id"] for order in stack.orders()}
    await trader.cancel(ids["a"])
    assert (await trader.wait_result(ids["a"]))["outcome"] == "accepted"
    await trader.cancel("b")
    result = await trader.wait_result("b", 2)
    assert result.items() >= {"action": "cancel", "outcome": "accepted", "order_id": ids["b"]}.items()
    await until(lambda: {("canceled", "a"), ("canceled", "b")} <= set(trader.events()), "both are canceled")
    await trader.cancel("all")
    assert (await trader.wait_result("all"))["outcome"] == "accepted"
    await until(lambda: {("canceled", "c"), ("canceled", "d")} <= set(trader.events()), "all are canceled")
    await trader.cancel("ALL")
    assert (await trader.wait_result("ALL"))["outcome"] == "accepted"
    await trader.cancel("nobody")
    result = await trader.wait_result("nobody")
    assert (result["outcome"], result["http_status"]) == ("refused", 404)
    await trader.cancel("5f0b9f7e-6f5b-5d0a-9c0e-6d1c7a3b2e41")
    assert (await trader.wait_result("5f0b9f7e-6f5b-5d0a-9c0e-6d1c7a3b2e41"))["outcome"] == "refused"
    await until(lambda: count_actions_is(trader, 0), "nothing is left")


async def test_answers_429_and_5xx_are_tried_again_and_a_4xx_is_not(stack: Stack, trader: Trader) -> None:
    stack.start_hub()
    stack.set_fault(on="http", kind="status", method="POST", path="/v2/orders", status=429)
    stack.set_fault(on="http", kind="status", method="POST", path="/v2/orders", status=503, skip=1)
    await trader.order("patient", build_trade())
    assert (await trader.wait_result("patient")).items() >= {"outcome": "accepted", "attempts": 3}.items()
    stack.set_fault(on="http", kind="status", method="POST", path="/v2/orders", status=504, when="after")
    await trader.order("carried-out", build_trade())
    result = await trader.wait_result("carried-out")
    assert result["outcome"] == "accepted"
    stack.set_fault(on="http", kind="status", method="POST", path="/v2/orders", status=422, times=1)
    await trader.order("refused", build_trade())
    assert (await trader.wait_result("refused")).items() >= {"outcome": "refused", "attempts": 1}.items()
    assert names(stack.orders()) == {"patient": 1, "carried-out": 1}


async def test_an_order_that_alpaca_never_answers_is_given_up_after_its_deliveries(
    stack: Stack, trader: Trader
) -> None:
    stack.start_hub(retry_limit=1)
    stack.set_fault(on="http", kind="status", method="POST", path="/v2/orders", status=500, times=None)
    await trader.order("in-vain", build_trade())
    result = await trader.wait_result("in-vain")
    assert result["outcome"] == "gave_up"
    await until(lambda: count_actions_is(trader, 0), "it is not delivered again")
    assert len(trader.result("in-vain")) == 1


async def test_a_call_that_takes_too_long_is_looked_up_before_it_is_made_again(stack: Stack, trader: Trader) -> None:
    stack.start_hub(processing_timeout_s=0.5)
    stack.set_fault(on="http", kind="silent", method="POST", path="/v2/orders", when="after", seconds=1.5)
    await trader.order("slow", build_trade())
    assert (await trader.wait_result("slow"))["outcome"] in ("accepted", "duplicate")
    assert names(stack.orders()) == {"slow": 1}


async def test_orders_wait_while_the_credentials_are_refused(stack: Stack, trader: Trader) -> None:
    sink = stack.start_hub()
    fault = stack.set_fault(on="http", kind="status", method="POST", path="/v2/orders", status=401, times=None)
    await trader.order("waits", build_trade())
    await until(lambda: "credentials" in sink.status().error, "the hub says so")
    assert not sink.status().is_ready
    assert not trader.results
    stack.ask("DELETE", f"/dry-work/v1/faults/{fault}")
    assert (await trader.wait_result("waits"))["outcome"] == "accepted"
    assert sink.status().is_ready


# --- at most one order


async def make_impatient(trader: Trader) -> None:
    """Make the things at NATS as an operator may: with a shorter time to acknowledge."""
    for name in ("orders", "cancel"):
        await trader.js.add_consumer(
            ACTIONS,
            name=f"nalpaca-{name}-consumer-v0",
            durable_name=f"nalpaca-{name}-consumer-v0",
            filter_subject=f"nalpaca.action.v0.{name}.*",
            ack_policy="explicit",
            max_deliver=3,
            ack_wait=1.0,
        )


async def prepare_impatient(stack: Stack, trader: Trader) -> None:
    await asyncio.to_thread(init_nats, stack.settings())
    for name in ("nalpaca-orders-consumer-v0", "nalpaca-cancel-consumer-v0"):
        await trader.js.delete_consumer(ACTIONS, name)
    await make_impatient(trader)


async def test_a_lost_acknowledgement_does_not_make_a_second_order(stack: Stack, trader: Trader) -> None:
    await prepare_impatient(stack, trader)
    sink = stack.start_hub()
    settle, lost = sink.link.settle, []

    async def lose(reply: str, answer: bytes) -> bool:
        if len(lost) < 3:  # all tries of one acknowledgement
            lost.append(answer)
            return False
        return await settle(reply, answer)

    sink.link.settle = lose  # type: ignore[method-assign]
    await trader.order("once", build_trade())
    result = await trader.wait_result("once", 2)
    assert result["outcome"] == "duplicate"
    assert lost == [b"+ACK"] * 3
    assert names(stack.orders()) == {"once": 1}
    await until(lambda: count_actions_is(trader, 0), "it is acknowledged")


async def test_a_hub_killed_between_submit_and_acknowledgement_makes_one_order(
    stack: Stack, trader: Trader, tmp_path: Path
) -> None:
    await prepare_impatient(stack, trader)
    stack.start_hub("a", state_dir=tmp_path)
    await trader.order("before", build_trade())  # or the hub knows nothing of the account, and nothing could be missed
    await until(lambda: ("new", "before") in trader.events(), "the hub knows the account")
    stack.set_fault(on="http", kind="silent", method="POST", path="/v2/orders", when="after", seconds=2.0)
    await trader.order("once", build_trade())
    await until(lambda: names(stack.orders())["once"] == 1, "Alpaca has it")
    stack.kill("a")
    assert not trader.result("once")
    assert await count_actions(trader) == 1
    stack.start_hub("b", state_dir=tmp_path)
    assert (await trader.wait_result("once"))["outcome"] == "duplicate"
    assert names(stack.orders()) == {"before": 1, "once": 1}
    await until(lambda: count_actions_is(trader, 0), "it is acknowledged")
    await until(lambda: ("new", "once") in trader.events(), "its update was told")


async def test_an_order_whose_deliveries_are_used_up_has_a_result(stack: Stack, trader: Trader) -> None:
    await prepare_impatient(stack, trader)
    await trader.order("unlucky", build_trade())
    consumer = await trader.js.pull_subscribe_bind("nalpaca-orders-consumer-v0", ACTIONS)
    for _ in range(3):
        (message,) = await consumer.fetch(1, timeout=60)
        await message.nak()
    stack.start_hub()
    assert (await trader.wait_result("unlucky"))["outcome"] == "gave_up"
    await until(lambda: count_actions_is(trader, 0), "it is out of the stream")
    assert not stack.orders()


async def test_nats_restarted_under_load_leaves_exactly_one_outcome_of_each_order(
    stack: Stack, trader: Trader, tmp_path: Path
) -> None:
    stack.start_hub(state_dir=tmp_path)
    wanted = [f"load-{number}" for number in range(40)]
    outcomes: dict[str, set[str]] = {name: set() for name in wanted}
    restart: asyncio.Task[None] | None = None

    async def do_restart() -> None:
        await asyncio.to_thread(stack.nats.kill)
        await asyncio.to_thread(stack.nats.start)

    async def send_and_listen() -> bool:
        """Send what has no outcome yet, as a sender does that comes back; tell whether all have one."""
        nonlocal restart
        left = [name for name in wanted if not outcomes[name]]
        sender = await Trader.connect(stack)
        try:
            await asyncio.wait_for(has_stream(sender), 2.0)
            for number, name in enumerate(left):
                trade = build_trade(symbol=SYMBOLS[wanted.index(name) % 3], qty="20")
                await asyncio.wait_for(sender.order(name, trade), 1.0)
                if restart is None and number == 20:
                    restart = asyncio.create_task(do_restart())
            for _ in range(100):
                if {result["client_order_id"] for result in sender.results} >= set(left):
                    break
                await asyncio.sleep(0.01)
        finally:
            for result in sender.results:
                outcomes[result["client_order_id"]].add(result["outcome"])
            await sender.close()
        return all(outcomes.values())

    async def send() -> bool:
        try:
            return await send_and_listen()
        except (OSError, TimeoutError, nats.errors.Error, nats.js.errors.Error):
            return False  # what a sender sees depends on the moment; it comes again

    await until(send, "an outcome of each")
    assert restart is not None
    await restart
    assert set().union(*outcomes.values()) <= {"accepted", "duplicate"}
    assert names(stack.orders()) == dict.fromkeys(wanted, 1)


async def has_stream(trader: Trader) -> bool:
    try:
        await trader.js.consumer_info(DATA, "nalpaca-datastream-stock-consumer-v0")
    except (nats.errors.Error, nats.js.errors.Error):
        return False
    return True


# --- trade updates and positions


async def test_fills_are_told_once_and_positions_follow_until_they_are_empty(stack: Stack, trader: Trader) -> None:
    sink = stack.start_hub()
    await until(lambda: has_positions(trader, 0), "an empty key at the start")
    kv = await trader.js.key_value("nalpaca")
    watcher = await kv.watch("positions")
    await trader.order("buy", build_market(symbol="BTC/USD", qty="0.5", tif=pb.TIME_IN_FORCE_GTC))
    await until(lambda: ("fill", "buy") in trader.events(), "the fill")
    positions = await until(lambda: has_positions(trader, 1), "the position")
    (position,) = positions.positions
    assert (position.symbol, position.asset_class) == ("BTC/USD", pb.ASSET_CLASS_CRYPTO)
    seen = [await watcher.updates(timeout=60) for _ in range(2)]
    assert any(entry is not None and entry.key == "positions" for entry in seen)
    await watcher.stop()
    fill = next(update for update in trader.updates if update.event == "fill")
    assert fill.execution_id
    assert fill.order.status == "filled"
    await trader.order(
        "sell", build_market(symbol="BTC/USD", qty=position.qty_available, side=pb.SIDE_SELL, tif=pb.TIME_IN_FORCE_GTC)
    )
    await until(lambda: ("fill", "sell") in trader.events(), "the second fill")
    await until(lambda: has_positions(trader, 0), "no positions again")
    ids = [update.event_id for update in trader.updates]
    assert len(ids) == len(set(ids))
    await until(lambda: sink.status().waiting == 0, "all is counted as delivered")
    status = sink.status()
    assert status.offered == status.delivered + status.dropped + status.conflated


async def has_positions(trader: Trader, count: int) -> pb.Positions | bool:
    positions = await read_positions(trader)
    return positions is not None and len(positions.positions) == count and (positions if count else True)


async def test_updates_wait_while_nats_is_away_and_over_a_restart_of_the_hub(
    stack: Stack, trader: Trader, tmp_path: Path
) -> None:
    sink = stack.start_hub("a", state_dir=tmp_path)
    await trader.order("first", build_trade())
    await until(lambda: ("new", "first") in trader.events(), "the first update")
    await asyncio.to_thread(stack.nats.stop)
    body = {"symbol": "SPY", "qty": "1", "side": "buy", "type": "limit", "limit_price": "1", "time_in_force": "gtc"}
    for number in range(3):
        stack.ask("POST", "/v2/orders", json={**body, "client_order_id": f"away-{number}"})
    await until(lambda: sink.status().waiting >= 3, "the updates wait")
    assert not sink.status().is_ready
    stack.hubs.pop("a").stop(0.5)
    await asyncio.to_thread(stack.nats.start)
    await trader.close()
    trader = await Trader.connect(stack)
    stack.start_hub("b", state_dir=tmp_path)
    expected = {("new", f"away-{number}") for number in range(3)}
    await until(lambda: expected <= set(trader.events()), "they are published after all")
    assert max(Counter(trader.events()).values()) == 1
    await trader.close()


async def test_what_nats_forgot_before_it_was_read_is_published_again(stack: Stack, trader: Trader) -> None:
    sink = stack.start_hub()
    await trader.order("kept", build_trade())
    await until(lambda: sink.status().delivered >= 1 and sink.status().waiting == 0, "the update is at NATS")
    await asyncio.to_thread(stack.nats.kill)  # its streams are in memory
    await asyncio.to_thread(stack.nats.start)
    client = await stack.connect()
    js = client.jetstream()
    fresh = Trader(client)
    await until(lambda: has_stream(fresh), "the hub has made its streams again")
    reader = await js.pull_subscribe_bind("nalpaca-tradeupdater-consumer-v0", DATA)
    found = []
    while not found or found[-1] != ("new", "kept"):
        (message,) = await reader.fetch(1, timeout=60)
        update = pb.TradeUpdate.FromString(message.data)
        assert message.headers == {"Nats-Msg-Id": update.event_id}
        found.append((update.event, update.order.client_order_id))
        await message.ack()
    assert len(found) == len(set(found))
    await client.close()


async def test_all_updates_that_nats_forgot_are_published_again_in_their_order(stack: Stack) -> None:
    sink = stack.start_hub()
    hub, count = stack.hubs["a"], 500

    def tell(first: int) -> None:
        for number in range(first, first + count):
            data = {"event": "new", "order": {"id": f"o{number}", "symbol": "SPY", "client_order_id": f"c{number}"}}
            hub.bus.publish("orders.paper", "orders", "SPY", data, ts_recv_ns=0, event_id=f"e{number:05}")

    def is_published() -> bool:
        status = sink.status()
        return status.delivered >= 2 * count and not status.waiting

    assert hub._loop is not None
    for first in (0, count):
        hub._loop.call_soon_threadsafe(tell, first)
    await until(is_published, "the updates are at NATS")
    await asyncio.to_thread(stack.nats.kill)  # its streams are in memory
    await asyncio.to_thread(stack.nats.start)
    client = await stack.connect()
    await until(lambda: has_stream(Trader(client)), "the hub has made its streams again")
    subject = stack.settings().subjects.trade_update("SPY")
    reader = await client.jetstream().subscribe(subject, stream=DATA, ordered_consumer=True)
    found: list[str] = []
    while len(found) < 2 * count:
        found.append(pb.TradeUpdate.FromString((await reader.next_msg(timeout=30)).data).event_id)
    assert found == [f"e{number:05}" for number in range(2 * count)]
    await client.close()


# --- who acts


async def test_of_two_hubs_one_acts_and_the_other_takes_over(stack: Stack, trader: Trader) -> None:
    first = stack.start_hub("a")
    await until(lambda: len(first.acting) == 5, "the first acts")
    second = stack.start_hub("b")
    await trader.order("one", build_trade())
    assert (await trader.wait_result("one"))["outcome"] == "accepted"
    await until(lambda: ("new", "one") in trader.events(), "its update")
    assert second.acting == ()
    stack.hubs.pop("a").stop()  # in order: the lease is given up
    await until(lambda: len(second.acting) == 5, "the second acts")
    await trader.order("two", build_trade())
    assert (await trader.wait_result("two"))["outcome"] == "accepted"
    await until(lambda: ("new", "two") in trader.events(), "its update")
    assert max(Counter(trader.events()).values()) == 1
    third = stack.start_hub("c")
    assert third.acting == ()
    stack.kill("b")  # without a word: the third waits until the lease is over
    await until(lambda: len(third.acting) == 5, "the third acts")
    await trader.order("three", build_trade())
    await until(lambda: ("new", "three") in trader.events(), "its update")
    subjects = (await trader.js.stream_info(DATA, subjects_filter="nalpaca.data.v0.tradeupdates.*")).state.subjects
    assert sum(subjects.values()) == len({update.event_id for update in trader.updates})


async def test_a_stream_with_other_subjects_or_retention_is_a_start_error_and_stays_as_it_is(
    stack: Stack, trader: Trader
) -> None:
    await trader.js.add_stream(name=ACTIONS, subjects=["nalpaca.action.v0.orders.*"], retention="limits")
    with pytest.raises(ConfigError, match=r"subjects is \['nalpaca.action.v0.orders.\*'\].*retention is 'limits'"):
        stack.start_hub()
    with pytest.raises(ConfigError, match="retention"):
        await asyncio.to_thread(init_nats, stack.settings())
    assert (await trader.js.stream_info(ACTIONS)).config.retention == "limits"


async def test_other_settings_of_a_stream_may_be_the_operators(stack: Stack, trader: Trader) -> None:
    await trader.js.add_stream(
        name=ACTIONS, subjects=["nalpaca.action.v0.>"], retention="workqueue", storage="file", duplicate_window=60
    )
    stack.start_hub()
    await trader.order("kept-in-a-file", build_trade())
    assert (await trader.wait_result("kept-in-a-file"))["outcome"] == "accepted"
    assert (await trader.js.stream_info(ACTIONS)).config.storage == "file"


async def test_streams_consumers_and_bucket_have_the_documented_settings(stack: Stack, trader: Trader) -> None:
    await asyncio.to_thread(init_nats, stack.settings())
    action, data = [(await trader.js.stream_info(name)).config for name in (ACTIONS, DATA)]
    for config in (action, data):
        assert (config.storage, config.discard, config.num_replicas, config.allow_direct) == ("memory", "old", 1, True)
        limits = (config.max_msgs, config.max_bytes, config.max_msg_size, config.max_consumers)
        assert limits == (-1, -1, -1, -1)
        assert (config.max_msgs_per_subject, config.max_age) == (-1, 0)
    assert (action.subjects, action.retention) == (["nalpaca.action.v0.>"], "workqueue")
    assert (action.duplicate_window, action.compression) == (20, "s2")
    assert (data.subjects, data.retention) == (["nalpaca.data.v0.>"], "interest")
    assert (data.duplicate_window, data.compression) == (120, "none")
    expected = {
        (ACTIONS, "nalpaca-orders-consumer-v0"): ("nalpaca.action.v0.orders.*", "explicit", 3),
        (ACTIONS, "nalpaca-cancel-consumer-v0"): ("nalpaca.action.v0.cancel.*", "explicit", 3),
        (DATA, "nalpaca-tradeupdater-consumer-v0"): ("nalpaca.data.v0.tradeupdates.*", "explicit", 3),
        (DATA, "nalpaca-datastream-stock-consumer-v0"): ("nalpaca.data.v0.stocks.*", "none", -1),
    }
    for (stream, name), found in expected.items():
        config = (await trader.js.consumer_info(stream, name)).config
        assert (config.filter_subject, config.ack_policy, config.max_deliver) == found
        assert (config.deliver_policy, config.replay_policy, config.deliver_subject) == ("all", "instant", None)
        assert config.durable_name == name
        if found[1] == "explicit":
            assert (config.ack_wait, config.num_replicas) == (30, 1)
    assert (await (await trader.js.key_value("nalpaca")).status()).history == 1


@pytest.mark.skipif(shutil.which("nats") is None, reason="the nats command line is not installed")
async def test_the_nats_command_line_sees_names_settings_and_a_fill(stack: Stack, trader: Trader) -> None:
    stack.start_hub()

    async def run(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "nats", "--server", stack.nats.url, *arguments, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0
        return out.decode()

    streams = await run("stream", "ls", "--names")
    assert {ACTIONS, DATA} <= set(streams.split())
    consumers = await run("consumer", "ls", "--names", ACTIONS)
    assert {"nalpaca-orders-consumer-v0", "nalpaca-cancel-consumer-v0"} <= set(consumers.split())
    assert '"retention": "workqueue"' in await run("stream", "info", "--json", ACTIONS)
    await trader.order("buy", build_market(symbol="BTC/USD", qty="0.5", tif=pb.TIME_IN_FORCE_GTC))
    await until(lambda: has_positions(trader, 1), "the position")
    assert "BTC/USD" in await run("kv", "get", "nalpaca", "positions", "--raw")


async def test_without_nats_the_hub_starts_and_comes_in_later(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dry_work.hub.sinks.nats.START_WAIT_S", 0.2)
    await asyncio.to_thread(stack.nats.stop)
    with pytest.raises(HubError, match="NATS_URL"):
        await asyncio.to_thread(init_nats, stack.settings())
    sink = stack.start_hub()
    assert not sink.status().is_ready
    await asyncio.to_thread(stack.nats.start)
    await until(lambda: sink.status().is_ready, "it is ready")


async def test_orders_without_an_account_are_a_start_error(stack: Stack) -> None:
    with pytest.raises(ConfigError, match=r"ENABLE_ORDERS.*credentials for the live account"):
        stack.start_hub(environment="live")


# --- bars and news


async def test_bars_and_news_go_out_on_their_subjects(stack: Stack, trader: Trader) -> None:
    bars = StreamSettings(is_enabled=True, symbols=("BRK.B", "BTC/USD"), processors=4)
    sink = stack.start_hub(stocks=bars, news=StreamSettings(is_enabled=True, symbols=("*",)))
    found: dict[str, bytes] = {}

    async def take(message: Any) -> None:
        found[message.subject] = message.data

    await trader.client.subscribe("nalpaca.data.v0.stocks.*", cb=take)
    await trader.client.subscribe("nalpaca.data.v0.news.*", cb=take)
    await trader.client.flush()
    await until(lambda: len(sink.acting) == 5, "it acts")
    await until(lambda: len([s for s in stack.upstream.open if s.messages]) >= 3, "all are subscribed upstream")
    bar = {"T": "b", "S": "BRK.B", "o": 1.5, "h": 2.0, "l": 1.0, "c": 1.25, "v": 10, "t": TIME, "n": 3, "vw": 1.3}
    article = {
        "T": "n", "id": 7, "headline": "h", "author": "a", "summary": "s", "content": "c", "url": "u",
        "symbols": ["SPY", "BRK.B"], "created_at": TIME, "updated_at": TIME, "source": "x",
    }  # fmt: skip

    def send() -> bool:
        stack.upstream.send([bar])
        stack.upstream.send([{**bar, "S": "BTC/USD", "v": 0.75}], "/v1beta3/crypto/us")
        stack.upstream.send([article], "/v1beta1/news")
        return len(found) == 3

    await until(send, "all three are published")
    message = stream_pb2.Bar.FromString(found["nalpaca.data.v0.stocks.BRK_B"])
    assert (message.symbol, message.open, message.volume, message.trade_count) == ("BRK.B", 1.5, 10, 3)
    assert message.timestamp.ToNanoseconds() == 1_704_205_800_123_456_789
    crypto = stream_pb2.Bar.FromString(found["nalpaca.data.v0.stocks.BTC-USD"])
    assert (crypto.symbol, crypto.volume) == ("BTC/USD", 0)
    news = stream_pb2.News.FromString(found["nalpaca.data.v0.news.7"])
    assert (news.id, list(news.symbols), news.headline) == (7, ["SPY", "BRK.B"], "h")
    await until(lambda: sink.status().waiting == 0, "all is delivered")
    status = sink.status()
    assert status.offered == status.delivered >= 3


def test_settings_show_no_password() -> None:
    settings = NatsSettings(user="u", password="a-password")
    assert "a-password" not in repr(settings)
    assert "a-password" not in str(settings.masked())
