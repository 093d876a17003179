"""The Redis interface: the real server, redis-py, the simulated exchange and a scripted upstream."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from dry_work.errors import ConfigError
from dry_work.feeds.redis import RedisTransport
from dry_work.settings import FeedSettings

from .redis_stack import DEADLINE_S, KEY, SECRET, TIME, CommandLine, Stack, serve_stack, until

AAPL = ("stocks", "trades", "AAPL")


@pytest.fixture
def stack() -> Iterator[Stack]:
    yield from serve_stack()


def is_wanted(stack: Stack, *topics: tuple[str, str, str]) -> bool:
    return bool(stack.wanted() >= set(topics))


# --- test 9: the documented messages


def test_a_program_registers_gets_a_price_for_every_trade_and_unregisters(stack: Stack) -> None:
    sink = stack.start_hub()
    assert not stack.upstream.handshakes, "nothing is opened before a symbol is wanted"
    listener = stack.listen("price:AAPL", "price:BTC/USD", "broker:logs")
    assert stack.send({"action": "register", "symbols": ["aapl", "BTC/USD"], "account_id": None}) == 1
    until(lambda: listener.events("registered"), "the registration shows")
    stack.trade("AAPL", 150.25)
    stack.trade("AAPL", 151)
    stack.trade("BTC/USD", 42000.5, "/v1beta3/crypto/us")
    until(lambda: len(listener.on("price:AAPL")) == 2 and listener.on("price:BTC/USD"), "prices")
    first, second = listener.on("price:AAPL")
    assert first == {
        "type": "price_update",
        "symbol": "AAPL",
        "price": 150.25,
        "timestamp": 1704205800,
        "at": TIME,
        "size": 100,
    }
    assert second["price"] == 151
    assert stack.send({"action": "unregister", "symbols": ["Aapl"]}) == 1
    until(lambda: AAPL not in stack.wanted(), "it is let go of")
    assert ("crypto", "trades", "BTC/USD") in stack.wanted()
    line = until(lambda: listener.events("unregistered"), "it shows")[0]
    assert line["symbols"] == ["AAPL"]
    status = sink.status()
    assert status.offered == status.delivered == 3
    assert status.delivered_types == {"stock_trade": 2, "crypto_trade": 1}


def test_registrations_in_the_legacy_envelope_and_on_the_legacy_channel_are_taken(stack: Stack) -> None:
    stack.start_hub()
    envelope = {"data": {"action": "subscribe", "ticker": "aapl"}, "timestamp": "2024-01-02", "sender": "scale_t"}
    assert stack.send(envelope, "BROKER_REGISTRATION") == 1
    until(lambda: is_wanted(stack, AAPL), "the envelope is taken")
    assert stack.send({"action": "unsubscribe", "ticker": "AAPL"}, "BROKER_REGISTRATION") == 1
    until(lambda: not stack.wanted(), "a bare one too")
    assert stack.send(envelope) == 1
    until(lambda: is_wanted(stack, AAPL), "on the new channel too")


def test_two_programs_on_one_symbol_do_not_take_it_from_each_other(stack: Stack) -> None:
    stack.start_hub()
    logs = stack.listen("broker:logs", "price:AAPL")
    for _ in range(2):
        stack.send({"action": "register", "symbols": ["AAPL"], "client_id": "a"})
    stack.send({"action": "register", "symbols": ["AAPL"], "client_id": "b"})
    stack.send({"action": "register", "symbols": ["AAPL"]})
    until(lambda: len(logs.events("registered")) == 4, "all are taken")
    stack.send({"action": "unregister", "symbols": ["AAPL"], "client_id": "a"})
    stack.send({"action": "unregister", "symbols": ["AAPL"]})
    stack.send({"action": "unregister", "symbols": ["AAPL"]})  # nobody without a client id holds it any more
    stack.send({"action": "unregister", "symbols": ["AAPL"], "client_id": "a"})
    until(lambda: len(logs.events("refused")) == 2, "what holds nothing takes nothing")
    assert "not held without a client_id" in logs.events("refused")[0]["message"]
    assert "not held by client 'a'" in logs.events("refused")[1]["message"]
    assert is_wanted(stack, AAPL)
    stack.send({"action": "unregister", "client_id": "b"})
    until(lambda: not stack.wanted(), "the last one lets go")
    until(lambda: not any(session.path == "/v2/iex" for session in stack.upstream.open), "upstream is left")


def test_a_crashed_program_is_forgotten_after_the_lease_and_one_that_listens_is_not(stack: Stack) -> None:
    stack.start_hub(lease_s=2.0)
    logs = stack.listen("broker:logs")
    crashing, legacy, pattern = (
        stack.listen("price:AAPL"),
        stack.listen("TICKER_UPDATES_MSFT"),
        stack.listen(patterns=("price:SP*",)),
    )
    stack.send({"action": "register", "symbols": ["AAPL", "MSFT", "SPY", "QQQ"], "client_id": "a"})
    until(
        lambda: len(stack.wanted() & {("stocks", "trades", name) for name in ("AAPL", "MSFT", "SPY", "QQQ")}) == 4, ""
    )
    # Of QQQ a message tells that the subscription to a pattern is not for it; of SPY that it is.
    stack.trade("QQQ", 1)
    stack.trade("SPY", 1)
    until(lambda: logs.events("expired"), "QQQ has no listener")
    assert logs.events("expired")[0]["symbols"] == ["QQQ"]
    crashing.close()
    stack.trade("AAPL", 1)
    until(lambda: len(logs.events("expired")) == 2, "AAPL has none any more")
    assert logs.events("expired")[1]["symbols"] == ["AAPL"]
    assert is_wanted(stack, ("stocks", "trades", "MSFT"), ("stocks", "trades", "SPY"))
    legacy.close()
    pattern.close()
    until(lambda: not stack.wanted(), "they are gone as well")


def test_holds_outlast_the_hub_and_a_redis_that_forgets(stack: Stack) -> None:
    stack.start_hub()
    listener = stack.listen("price:AAPL", "broker:logs")
    stack.send({"action": "register", "symbols": ["AAPL"]})
    stack.send({"action": "register", "symbols": ["AAPL", "BRK.B"], "client_id": "a", "channels": ["trades", "bars"]})
    until(lambda: is_wanted(stack, AAPL, ("stocks", "bars", "BRK.B")), "held")
    until(lambda: stack.client().hlen("dry-work:holds") == 2, "kept")
    assert 3000 < stack.client().ttl("dry-work:holds") <= 3600
    wanted = stack.wanted()
    stack.kill_hub()
    stack.start_hub()
    assert stack.wanted() == wanted
    stack.trade("AAPL", 1)
    until(lambda: listener.on("price:AAPL"), "prices go on")

    stack.redis.kill()
    until(lambda: not stack.sink.status().is_ready, "not ready")
    assert stack.sink.status().error
    stack.redis.start()
    until(lambda: stack.sink.status().is_ready, "ready again")
    assert stack.wanted() == wanted
    until(lambda: stack.client().hlen("dry-work:holds") == 2, "kept again")
    until(lambda: dict(stack.client().pubsub_numsub("price:AAPL"))["price:AAPL"] == 1, "the listener is back")
    stack.trade("AAPL", 2)
    until(lambda: [price["price"] for price in listener.on("price:AAPL")] == [1, 2], "prices go on")
    until(lambda: listener.events("connected"), "it is told")
    # The counts are still those of before: one of `a`, one without.
    stack.send({"action": "unregister", "client_id": "a"})
    until(lambda: stack.wanted() == {AAPL, ("stocks", "corrections", "AAPL"), ("stocks", "cancelErrors", "AAPL")}, "")
    stack.send({"action": "unregister", "symbols": ["AAPL"]})
    until(lambda: not stack.wanted(), "all is let go of")
    until(lambda: not stack.client().exists("dry-work:holds"), "and nothing is kept")


def test_what_is_offered_while_redis_is_away_waits_in_bounds_and_comes_then(stack: Stack) -> None:
    stack.start_hub(capacity=100)
    listener = stack.listen("price:AAPL", "broker:logs")
    stack.send({"action": "register", "symbols": ["AAPL"]})
    until(lambda: listener.events("registered"), "registered")
    stack.redis.kill()
    until(lambda: not stack.sink.status().is_ready, "not ready")
    for number in range(150):
        stack.trade("AAPL", number)
    until(lambda: stack.sink.status().offered == 150, "all are offered")
    status = stack.sink.status()
    assert status.waiting <= 100
    assert status.dropped >= 50
    assert status.offered == status.delivered + status.conflated + status.dropped + status.waiting
    assert status.dropped_types == {"stock_trade": status.dropped}
    stack.redis.start()
    until(lambda: stack.sink.status().waiting == 0, "the rest is published")
    status = stack.sink.status()
    assert status.offered == status.delivered + status.dropped
    entries = stack.client().xrange("stream:stocks:trades:AAPL")
    assert [json.loads(fields["item"])["p"] for _, fields in entries] == list(range(status.dropped, 150))


def test_a_redis_that_is_not_there_at_the_start_is_tried_on(stack: Stack) -> None:
    stack.redis.stop()
    sink = stack.start_hub(is_working=False)
    status = sink.status()
    assert not status.is_ready
    assert "refused" in status.error.lower() or "connect" in status.error.lower()
    assert stack.hub is not None
    stack.hub.acquire("another interface", ["SPY"])
    stack.upstream.wait_subscribed({"SPY"})
    stack.redis.start()
    until(lambda: sink.status().is_ready, "it is ready then")
    assert not sink.status().error
    listener = stack.listen("price:AAPL")
    stack.send({"action": "register", "symbols": ["AAPL"]})
    until(lambda: is_wanted(stack, AAPL), "and works")
    stack.trade("AAPL", 3)
    until(lambda: listener.on("price:AAPL"), "prices")


def test_a_redis_that_says_nothing_is_left_and_the_hub_stops_in_time(stack: Stack) -> None:
    stack.start_hub(timeout_s=2.0)
    stack.send({"action": "register", "symbols": ["AAPL"]})
    stack.trade("AAPL", 1)
    until(lambda: stack.sink.status().delivered == 1, "it works")
    assert stack.redis.pid is not None
    os.kill(stack.redis.pid, signal.SIGSTOP)
    try:
        stack.trade("AAPL", 2)
        status = until(lambda: (found := stack.sink.status()).error and found, "it is noticed")
        assert not status.is_ready
        assert "TimeoutError" in status.error
    finally:
        os.kill(stack.redis.pid, signal.SIGCONT)
    until(lambda: stack.sink.status().delivered == 2, "it goes on")
    os.kill(stack.redis.pid, signal.SIGSTOP)
    try:
        stack.trade("AAPL", 3)
        assert stack.hub is not None
        begun_s = time.monotonic()
        stack.hub.stop(2.0)
        assert time.monotonic() - begun_s < 60
    finally:
        os.kill(stack.redis.pid, signal.SIGCONT)


# --- test 10: a refused registration shows


REFUSED = (
    ({"action": "sell", "symbols": ["AAPL"]}, "action 'sell': expected one of register, unregister"),
    ({"symbols": ["AAPL"]}, "action is missing"),
    ({"action": "register"}, "symbols are missing"),
    ({"action": "register", "symbols": "AAPL"}, "expected a list"),
    ({"action": "register", "symbols": ["AAPL", "no symbol"]}, "'no symbol' is not a symbol"),
    ({"action": "register", "symbols": ["AAPL"], "account_id": "nobody"}, "which holds no account"),
    ({"action": "register", "symbols": ["AAPL"], "channels": ["prices"]}, "channel 'prices' of AAPL"),
    ({"action": "unregister", "symbols": ["AAPL"]}, "AAPL: not held"),
    ("{", "no JSON"),
    ("[1]", "no JSON object"),
    (b"\xff\xfe", "no JSON"),
)


def test_redis_cli_sees_why_a_registration_is_refused_and_the_next_one_is_taken(stack: Stack) -> None:
    stack.start_hub()
    terminal = CommandLine(stack.redis.port, "broker:logs")
    try:
        for message, reason in REFUSED:
            assert stack.send(message) == 1
            kind, channel, text = terminal.read()
            assert (kind, channel) == ("message", "broker:logs")
            line = json.loads(text)
            assert (line["event"], line["level"]) == ("refused", "warning"), message
            assert reason in line["message"], message
        stack.send({"action": "register", "ticker": "AAPL"})
        assert json.loads(terminal.read()[2])["event"] == "registered"
        states = []
        while "connected" not in states:
            line = json.loads(terminal.read()[2])
            assert (line["event"], line["feed"]) == ("upstream", "iex")
            states.append(line["state"])
        stack.stop_hub()
        while line["event"] != "stop":
            line = json.loads(terminal.read()[2])
    finally:
        terminal.close()


# --- orders


def pick_new(updates: list[Any]) -> list[Any]:
    return [update for update in updates if update["event"] == "new"]


def test_order_updates_go_to_their_own_account_alone_by_its_id_its_number_and_as_it_was_spelled(stack: Stack) -> None:
    stack.start_hub(environments=("paper", "live"))
    account = {name: stack.ask(name, "GET", "/v2/account") for name in ("paper", "live")}
    paper, number = account["paper"]["id"], account["paper"]["account_number"]
    spelled = f"order:{paper.upper()}"
    listener = stack.listen(
        f"order:{paper}", f"order:{number}", spelled, f"order:{account['live']['id']}", "broker:logs"
    )
    stack.send({"action": "register", "symbols": [], "account_id": paper.upper()})
    until(lambda: listener.events("registered"), "the account is known")
    order = stack.order("paper", client_order_id="mine", type="limit", limit_price="1", qty="3")
    other = stack.order("live", client_order_id="theirs", type="limit", limit_price="1")
    until(lambda: listener.on(f"order:{account['live']['id']}"), "the other account's")
    for channel in (f"order:{paper}", f"order:{number}", spelled):
        (update,) = until(lambda channel=channel: pick_new(listener.on(channel)), channel)
        assert (
            update.items()
            >= {
                "type": "order_update",
                "order_id": order["id"],
                "status": "new",
                "filled_qty": 0,
                "filled_avg_price": None,
                "side": "buy",
                "symbol": "SPY",
                "client_order_id": "mine",
                "event": "new",
                "qty": 3,
            }.items()
        )
        assert isinstance(update["timestamp"], int)
        assert update["event_id"]
    assert {update["order_id"] for update in listener.on(f"order:{account['live']['id']}")} == {other["id"]}
    assert stack.send({"action": "register", "symbols": ["AAPL"], "account_id": "PA0000"}) == 1
    until(lambda: listener.events("refused"), "an account that the hub does not hold")
    assert (
        "'PA0000': not an account of this hub, which holds paper and live" in listener.events("refused")[0]["message"]
    )
    assert not stack.wanted()
    entries = [fields for _, fields in stack.client().xrange(f"stream:orders.paper:orders:{paper}")]
    told = listener.on(spelled)
    assert {json.loads(fields["item"])["order"]["id"] for fields in entries} == {order["id"]}
    assert [fields["event_id"] for fields in entries] == [update["event_id"] for update in told]
    assert [int(fields["offset"]) for fields in entries] == [update["seq"] for update in told]
    assert {fields["epoch"] for fields in entries} == {stack.hub.epoch if stack.hub else ""}


def test_a_fill_has_numbers(stack: Stack) -> None:
    stack.start_hub(environments=("paper",))
    account = stack.ask("paper", "GET", "/v2/account")["id"]
    listener = stack.listen(f"order:{account}")
    stack.order("paper", qty="2")
    updates = until(
        lambda: [update for update in listener.on(f"order:{account}") if update["status"] == "filled"], "a fill"
    )
    assert updates[0]["filled_qty"] == 2
    assert isinstance(updates[0]["filled_avg_price"], float | int)
    assert updates[0]["event"] == "fill"


def test_order_updates_wait_for_redis_and_over_a_restart_of_the_hub_and_come_once(stack: Stack, tmp_path: Path) -> None:
    stack.start_hub(environments=("paper",), state_dir=tmp_path)
    account = stack.ask("paper", "GET", "/v2/account")["id"]
    names = [f"order-{number}" for number in range(6)]

    def place(name: str) -> None:
        stack.order("paper", client_order_id=name, type="limit", limit_price="1")

    def told() -> list[str]:
        entries = stack.client().xrange(f"stream:orders.paper:orders:{account}")
        items = pick_new([json.loads(fields["item"]) for _, fields in entries])
        return [item["order"]["client_order_id"] for item in items]

    place(names[0])
    until(lambda: told() == names[:1], "the first")
    stack.redis.kill()
    until(lambda: not stack.sink.status().is_ready, "Redis is away")
    place(names[1])
    until(lambda: stack.sink.status().waiting == 2, "it waits")
    stack.kill_hub()
    place(names[2])  # while there is no hub
    stack.start_hub(environments=("paper",), state_dir=tmp_path, is_working=False)
    place(names[3])
    until(lambda: stack.sink.status().waiting >= 6, "all wait")  # pending_new and new of each
    stack.redis.start()
    listener = stack.listen(f"order:{account}")
    until(lambda: told() == names[1:4], "a Redis that has forgotten all gets what it has not had")
    status = until(lambda: not (found := stack.sink.status()).waiting and found, "nothing waits")
    assert status.offered == status.delivered
    stack.kill_hub()
    stack.start_hub(environments=("paper",), state_dir=tmp_path)
    place(names[4])
    until(lambda: names[4] in told(), "it goes on")
    place(names[5])
    until(lambda: names[5] in told(), "it goes on")
    assert told() == names[1:]
    heard = [update["client_order_id"] for update in pick_new(listener.on(f"order:{account}"))]
    assert heard == [name for name in names if name in heard]


def test_who_listened_before_redis_was_restarted_hears_what_happened_meanwhile(stack: Stack) -> None:
    stack.start_hub(environments=("paper",))
    account = stack.ask("paper", "GET", "/v2/account")["id"]
    listener = stack.listen(f"order:{account}")
    stack.order("paper", client_order_id="before", type="limit", limit_price="1")
    until(lambda: len(listener.on(f"order:{account}")) == 2, "pending_new and new")
    stack.redis.kill()
    until(lambda: not stack.sink.status().is_ready, "Redis is away")
    stack.order("paper", client_order_id="meanwhile", type="limit", limit_price="1")
    stack.redis.start()
    until(lambda: len(listener.on(f"order:{account}")) == 4, "the next two")
    updates = pick_new(listener.on(f"order:{account}"))
    assert [update["client_order_id"] for update in updates] == ["before", "meanwhile"]


def test_more_order_updates_than_may_wait_are_lost_aloud(stack: Stack) -> None:
    stack.start_hub(environments=("paper",), order_capacity=3)
    account = stack.ask("paper", "GET", "/v2/account")["id"]
    stack.redis.kill()
    until(lambda: not stack.sink.status().is_ready, "Redis is away")
    for number in range(5):
        stack.order("paper", client_order_id=f"order-{number}", type="limit", limit_price="1")
    until(lambda: stack.sink.status().offered == 10, "pending_new and new of each")
    status = stack.sink.status()
    assert (status.dropped, status.waiting) == (7, 3)
    stack.redis.start()
    until(lambda: stack.client().xlen(f"stream:orders.paper:orders:{account}") == 3, "the others come")
    lines = [json.loads(fields["line"]) for _, fields in stack.client().xrange("stream:broker:logs")]
    (line,) = [line for line in lines if line["event"] == "lost"]
    assert "order updates were lost" in line["message"]


def test_a_stream_that_cannot_be_written_does_not_stop_the_updates(stack: Stack) -> None:
    stack.start_hub(environments=("paper",))
    account = stack.ask("paper", "GET", "/v2/account")["id"]
    stack.client().set(f"stream:orders.paper:orders:{account}", "something else")
    stack.client().set("stream:stocks:trades:AAPL", "something else")
    listener = stack.listen(f"order:{account}", "price:AAPL", "broker:logs")
    stack.order("paper", type="limit", limit_price="1")
    until(lambda: listener.on(f"order:{account}"), "the update")
    assert "WRONGTYPE" in until(lambda: listener.events("lost"), "it is told")[0]["message"]
    stack.send({"action": "register", "symbols": ["AAPL"]})
    stack.trade("AAPL", 5)
    until(lambda: listener.on("price:AAPL"), "the price")
    status = until(lambda: (found := stack.sink.status()).dropped and found, "it counts as dropped")
    assert "WRONGTYPE" in status.error
    assert status.is_ready


# --- streams, bars, legacy


def test_every_event_of_the_channels_asked_for_is_in_a_stream_that_is_bounded(stack: Stack) -> None:
    stack.start_hub(stream_length=100)
    channels = ["trades", "quotes", "bars", "news", "watermarks"]
    listener = stack.listen("bar:AAPL", "price:AAPL")
    stack.send({"action": "register", "symbols": ["AAPL"], "client_id": "reader", "channels": channels})
    stack.wait_subscribed("AAPL", channel="bars")
    stack.wait_subscribed("AAPL", "/v1beta1/news", "news")
    bar = {"T": "b", "S": "AAPL", "o": 1, "h": 2.5, "l": 0.5, "c": 2, "v": 10, "n": 3, "vw": 1.5, "t": TIME}
    stack.upstream.send(
        [
            {"T": "t", "S": "AAPL", "p": 1.5, "s": 1, "t": TIME},
            {"T": "q", "S": "AAPL", "bp": 1, "ap": 2, "t": TIME},
            {"T": "q", "S": "MSFT", "bp": 1, "ap": 2, "t": TIME},
            {"T": "c", "S": "AAPL", "op": 1, "cp": 2, "t": TIME},
            bar,
            {"T": "w", "slice": 1, "end": TIME},
        ]
    )
    stack.upstream.send([{"T": "n", "id": 7, "symbols": ["AAPL", "TSLA"], "headline": "h"}], "/v1beta1/news")
    client = stack.client()
    for name, kind in (("trades", "t"), ("quotes", "q"), ("corrections", "c"), ("bars", "b")):
        until(lambda name=name: client.xlen(f"stream:stocks:{name}:AAPL") == 1, name)
        ((_, fields),) = client.xrange(f"stream:stocks:{name}:AAPL")
        assert json.loads(fields["item"])["T"] == kind
        assert set(fields) == {"epoch", "offset", "at", "item"}
        assert fields["epoch"] == (stack.hub.epoch if stack.hub else "")
        assert 500_000 < client.ttl(f"stream:stocks:{name}:AAPL") <= 7 * 86_400
    until(lambda: client.xlen("stream:news:news:AAPL") == 1, "news")
    until(lambda: client.xlen("stream:stocks:watermarks:*") == 1, "watermarks")
    assert not client.exists("stream:news:news:TSLA", "stream:stocks:quotes:MSFT")
    told = until(lambda: listener.on("bar:AAPL"), "the bar")[0]
    ((_, fields),) = client.xrange("stream:stocks:bars:AAPL")
    assert told == {
        "type": "bar",
        "symbol": "AAPL",
        "timestamp": TIME,
        "open": 1,
        "high": 2.5,
        "low": 0.5,
        "close": 2,
        "volume": 10,
        "trade_count": 3,
        "vwap": 1.5,
        "epoch": fields["epoch"],
        "offset": int(fields["offset"]),
    }
    assert json.loads(fields["item"]) == bar
    for number in range(1_000):
        stack.trade("AAPL", number)
    until(lambda: len(listener.on("price:AAPL")) == 1_001, "all prices")
    assert 100 <= client.xlen("stream:stocks:trades:AAPL") <= 300


def test_without_streams_nothing_is_written(stack: Stack) -> None:
    stack.start_hub(stream_length=0)
    listener = stack.listen("price:AAPL", "TICKER_UPDATES_AAPL")
    stack.send({"action": "register", "symbols": ["AAPL"]})
    stack.trade("AAPL", 5)
    until(lambda: listener.on("price:AAPL"), "the price")
    assert list(stack.client().scan_iter("*")) == ["dry-work:holds"]
    assert not listener.on("TICKER_UPDATES_AAPL"), "legacy channels are off"


def test_the_legacy_channels_carry_prices_and_orders_when_switched_on(stack: Stack) -> None:
    stack.start_hub(environments=("paper",), has_legacy=True)
    listener = stack.listen("TICKER_UPDATES_SPY")
    stack.send({"action": "subscribe", "ticker": "SPY"}, "BROKER_REGISTRATION")
    stack.trade("SPY", 150.25)
    (message,) = until(lambda: listener.on("TICKER_UPDATES_SPY"), "the price")
    assert set(message) == {"data", "timestamp", "sender"}
    assert message["sender"] == "alpaca_broker"
    assert message["data"] == {
        "type": "price",
        "timestamp": "2024-01-02 14:30:00.123456+00:00",
        "price": "150.25",
        "volume": None,
        "symbol": "SPY",
    }
    order = stack.order("paper", qty="2", type="limit", limit_price="1.25")
    until(lambda: len(listener.on("TICKER_UPDATES_SPY")) > 1, "the order")
    data = listener.on("TICKER_UPDATES_SPY")[1]["data"]
    assert (data["type"], data["symbol"]) == ("order", "SPY")
    told = data["order_data"]
    assert set(told) == {"event", "execution_id", "timestamp", "position_qty", "price", "qty", "order"}
    assert told["order"]["id"] == order["id"]
    assert told["order"]["source"] == "alpaca"
    assert told["order"]["limit_price"] == "1.25"
    assert told["order"]["stop_price"] is None


def test_an_account_is_judged_when_alpaca_has_told_which_ones_there_are(stack: Stack) -> None:
    account = stack.ask("paper", "GET", "/v2/account")["id"]
    fault = stack.ask(
        "paper",
        "POST",
        "/dry-work/v1/faults",
        json={"on": "http", "kind": "status", "status": 503, "path": "/v2/account", "times": None},
    )
    stack.start_hub(environments=("paper",), is_listening=False)
    listener = stack.listen("broker:logs")
    for name in (account, "PA0000"):
        stack.send({"action": "register", "symbols": ["AAPL"], "account_id": name, "client_id": name})
    stack.send({"action": "register", "symbols": ["MSFT"]})
    until(lambda: listener.events("registered"), "what names no account does not wait")
    assert listener.events("registered")[0]["symbols"] == ["MSFT"]
    assert not listener.events("refused")
    stack.ask("paper", "DELETE", f"/dry-work/v1/faults/{fault[0]['id']}")
    until(lambda: listener.events("refused"), "now it is known")
    assert [line["client_id"] for line in listener.events("refused")] == ["PA0000"]
    assert listener.events("registered")[1]["client_id"] == account


def test_a_wrong_password_is_shown_and_never_told(stack: Stack) -> None:
    stack.client().config_set("requirepass", "right")
    sink = stack.start_hub(is_working=False, password="wrong-secret", username="somebody")
    status = until(lambda: (found := sink.status()).error and found, "it is refused")
    assert not status.is_ready
    assert "WRONGPASS" in status.error
    assert "wrong-secret" not in status.error
    assert "wrong-secret" not in repr(sink.settings)


def test_a_hub_at_another_database_with_a_password_works(stack: Stack) -> None:
    stack.client().config_set("requirepass", "right")
    stack.start_hub(password="right", db=3)
    with redis.Redis(port=stack.redis.port, password="right", db=3) as client:
        assert client.publish("broker:registration", '{"action":"register","ticker":"AAPL"}') == 1
        until(lambda: client.exists("dry-work:holds"), "kept in that database")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_the_command_serves_redis_and_stops_in_order(stack: Stack, tmp_path: Path, number: int) -> None:
    listener = stack.listen("broker:logs", "price:AAPL")
    environment = {
        "PATH": os.environ["PATH"],
        "ALPACA_API_KEY": KEY,
        "ALPACA_SECRET_KEY": SECRET,
        "ALPACA_STREAM_URL": stack.upstream.url,
        "ALPACA_URL": stack.exchange.url,
        "HUB_SINKS": "redis",
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(stack.redis.port),
        "STREAM_PROXY_HEALTH_PORT": "0",
        "STREAM_PROXY_METRICS_PORT": "0",
        "HEALTH_PORT": "0",
        "OTEL_ENABLED": "false",
    }
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dry_work", "hub"], env=environment, cwd=tmp_path, stdout=output, stderr=output
        )
        try:
            until(lambda: listener.events("start") or process.poll() is not None, "it starts")
            assert stack.send({"action": "register", "symbols": ["AAPL"]}) == 1
            stack.trade("AAPL", 1)
            until(lambda: listener.on("price:AAPL"), "the price")
            process.send_signal(number)
            assert process.wait(DEADLINE_S) in (0, 130), (tmp_path / "output").read_text()
        finally:
            process.kill()
            process.wait(DEADLINE_S)
    until(lambda: listener.events("stop"), "it has said so")
    assert not stack.upstream.open
    assert stack.client().hkeys("dry-work:holds") == ["AAPL"], "what is held is there for the next hub"


def test_the_documented_rights_are_enough(stack: Stack) -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "redis.md").read_text(encoding="utf-8")
    rights = page[page.index("A user with an ACL") : page.index("## Watch the hub")]
    words = re.findall(r"`([^`]+)`", rights)
    channels, keys = words[: words.index("stream:*")], ("stream:*", "dry-work:*")
    commands = words[words.index("dry-work:*") + 1 :]
    rules = [*(f"&{name}" for name in channels), *(f"~{name}" for name in keys), *(f"+{name}" for name in commands)]
    stack.client().execute_command("ACL", "SETUSER", "hub", "on", ">secret", "resetchannels", *rules)
    stack.start_hub(environments=("paper",), username="hub", password="secret", db=1)
    account = stack.ask("paper", "GET", "/v2/account")["id"]
    listener = stack.listen("price:AAPL", f"order:{account}", "broker:logs")
    stack.send({"action": "register", "symbols": ["AAPL"]})
    stack.trade("AAPL", 1)
    stack.order("paper")
    until(lambda: listener.on("price:AAPL") and listener.on(f"order:{account}"), "both")
    stack.send({"action": "unregister", "symbols": ["AAPL"]})
    until(lambda: listener.events("unregistered"), "it")
    until(lambda: not stack.sink.status().waiting, "nothing waits")
    status = stack.sink.status()
    assert not status.error
    assert status.dropped == 0
    assert stack.client().execute_command("ACL", "LOG") == []


def test_a_reader_of_streams_is_told_that_the_hub_keeps_none(stack: Stack) -> None:
    stack.start_hub(stream_length=0)
    settings = FeedSettings(name="redis", address=f"127.0.0.1:{stack.redis.port}")
    session = RedisTransport(settings, symbols=["SPY"], client="reader").build_session(("stocks",), {})
    with pytest.raises(ConfigError, match="the hub keeps no streams: set its REDIS_STREAM_LENGTH to more than 0"):
        session.begin(DEADLINE_S)
    session.close(for_good=True)
