"""What upstreams answer and send, feed by feed: errors by their kind, refused subscriptions, and odd frames."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from dry_work.alpaca.venues import open_venue
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.hub.accounts import AccountSettings
from dry_work.hub.events import ALL, ORDERS, HubEvent, Topic
from dry_work.hub.service import HubService
from dry_work.hub.upstreams.connection import FeedStatus, UpstreamTiming

from .alpaca_upstream import DEADLINE_S, KEY, SECRET, Session, Upstream, wait_until
from .bus_history import read_history

QUICK = UpstreamTiming(
    open_timeout_s=30.0,
    auth_timeout_s=30.0,
    ping_interval_s=0.2,
    silence_timeout_s=30.0,
    slow_retry_s=0.1,
    first_wait_s=0.01,
    longest_wait_s=0.05,
    close_timeout_s=0.2,
)
FATAL, NOTED, LOST = (402, 406, 409, 411), (400, 403, 405, 410, 413), (401, 404, 407, 500)
OPTION = "AAPL240315C00172500"
TIME = "2024-01-02T14:30:00.123456789Z"
STAMP = msgpack.Timestamp(1_704_205_800, 123_456_789)

# By feed: its name in the status, its path, a topic and an item of it.
FEEDS: dict[str, tuple[str, str, Topic, dict[str, Any]]] = {
    "stocks": ("iex", "/v2/iex", ("stocks", "trades", "AAPL"), {"T": "t", "S": "AAPL", "p": 1.5, "s": 2, "t": TIME}),
    "options": (
        "indicative", "/v1beta1/indicative", ("options", "trades", OPTION),
        {"T": "t", "S": OPTION, "p": 1.5, "s": 2, "t": STAMP, "x": "C", "c": "S"},
    ),
    "crypto": (
        "crypto", "/v1beta3/crypto/us", ("crypto", "trades", "BTC/USD"),
        {"T": "t", "S": "BTC/USD", "p": 1.5, "s": 0.25, "t": TIME, "tks": "B"},
    ),
    "news": (
        "news", "/v1beta1/news", ("news", "news", "AAPL"),
        {"T": "n", "id": 1, "headline": "Ümlaut …", "symbols": ["AAPL"], "created_at": TIME},
    ),
}  # fmt: skip


class Stack:
    """A scripted upstream and a hub with a client that holds one topic of a feed."""

    def __init__(self) -> None:
        self.upstream = Upstream()
        self.upstream.offers_watermarks = False
        self.failures: list[BaseException] = []
        self.hub = HubService(
            self.upstream.url,
            key=KEY,
            secret=SECRET,
            rng=random.Random(1),
            timing=QUICK,
            on_failure=self.failures.append,
        )
        self.hub.start()

    def hold(self, *topics: Topic) -> None:
        self.hub.hold("client", topics)

    def feed(self, name: str) -> FeedStatus:
        return next(feed for feed in self.hub.status().feeds if feed.feed == name)

    def wait_subscribed(self, path: str) -> Session:
        """Return the open session of a path, once the hub has subscribed there."""

        def found() -> list[Session]:
            return [s for s in self.upstream.open if s.path == path and s.authenticated and len(s.messages) > 1]

        wait_until(found, "the hub has subscribed")
        return found()[0]

    def read(self, feed: str) -> tuple[HubEvent, ...]:
        channels = ("trades", "quotes", "bars", "news", "unknown")
        topics = [(feed, channel, ALL) for channel in channels]
        return read_history(self.hub.bus, feed, topics)

    def close(self) -> None:
        self.hub.stop()
        self.upstream.close()
        assert not self.failures
        wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("hub")], "no thread is left")


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack()
    yield stack
    stack.close()


# --- market data: error codes


@pytest.mark.parametrize("feed", FEEDS)
def test_each_error_code_has_the_effect_of_its_kind(stack: Stack, feed: str) -> None:
    name, path, topic, item = FEEDS[feed]
    stack.hold(topic)
    stack.wait_subscribed(path)
    sent = 0

    def flows() -> None:
        nonlocal sent
        sent += 1
        stack.upstream.send([item], path)
        wait_until(lambda: len(stack.read(feed)) == sent, "data flows")

    def fail(code: int) -> None:
        stack.upstream.send([{"T": "error", "code": code, "msg": f"no {code}"}], path)
        wait_until(lambda: code in stack.feed(name).errors, f"{code} is counted")

    flows()
    for code in NOTED:
        fail(code)
        flows()
    assert (stack.feed(name).reconnects, stack.feed(name).state) == (0, "connected")
    for number, code in enumerate(LOST, 1):
        fail(code)
        wait_until(lambda number=number: stack.feed(name).reconnects == number, "connected again")  # type: ignore[misc]
        wait_until(lambda: stack.feed(name).state == "connected", "and logged in")
        stack.wait_subscribed(path)
        flows()
    for code in FATAL:
        stack.upstream.auth_error = code
        stack.upstream.cut()
        wait_until(lambda: stack.feed(name).state == "error", f"{code} is an error of the feed")
        assert f"({code})" in stack.feed(name).error
        stack.upstream.auth_error = 0
        stack.wait_subscribed(path)
        flows()
        assert stack.feed(name).error == ""
    assert set(stack.feed(name).errors) == {*FATAL, *NOTED, *LOST}


@pytest.mark.parametrize("feed", FEEDS)
def test_what_is_unknown_passes_and_what_cannot_be_read_costs_only_itself(stack: Stack, feed: str) -> None:
    name, path, topic, item = FEEDS[feed]
    stack.hold(topic)
    session = stack.wait_subscribed(path)
    unknown = {"T": "zz", "S": topic[2], "of the future": {"deep": [1, None, "ü"]}}
    with_field = {**item, "of the future": ["x" * 100_000]}
    odd: list[bytes | str] = [
        "", "{no json", "null", "7", '"text"', "{}", "[[]]", "[null]", '[{"T":7}]', '[{"S":"AAPL"}]', "[" * 5_000,
        b"", b"\xff" * 20, b"\xc1", b"\x91\xc0", msgpack.packb([{"T": None}]), "[{\"T\":\"error\"}]",
        '[{"T":"subscription","trades":7}]', '[{"T":"success","msg":7}]', "[" + '{"T":"q"},' * 10_000 + '{"T":"q"}]',
        '[{"T":"t","S":"\U0001f600"}]', '[{"T":"error","code":"x","msg":null}]',
    ]  # fmt: skip
    for frame in odd:
        stack.upstream.send_raw(frame, session)
    stack.upstream.send([unknown, with_field], path)
    wait_until(lambda: any(event.item == with_field for event in stack.read(feed)), "what follows arrives")
    assert any(event.item == unknown and event.channel == "unknown" for event in stack.read(feed))
    status = stack.feed(name)
    assert (status.reconnects, status.state) == (0, "connected")
    assert status.unknown == {"zz": 1}
    assert sum(status.malformed.values()) >= 10
    assert stack.hub.status().dropped == sum(status.malformed.values())


def test_a_mixed_frame_of_options_keeps_every_item_and_its_times(stack: Stack) -> None:
    stack.hold(("options", "quotes", OPTION), ("options", "trades", OPTION))
    session = stack.wait_subscribed("/v1beta1/indicative")
    trade = FEEDS["options"][3]
    quote = {"T": "q", "S": OPTION, "t": STAMP, "bx": "C", "bp": 1.5, "bs": 3, "ax": "C", "ap": 1.75, "as": 4, "c": "A"}
    control = {"T": "subscription", "trades": [OPTION], "quotes": [OPTION]}
    stack.upstream.send_raw(msgpack.packb([quote, control, trade, quote]), session)
    wait_until(lambda: len(stack.read("options")) == 3, "all items arrive")
    assert [event.item for event in stack.read("options")] == [quote, trade, quote]
    assert stack.feed("indicative").subscribed == 2


# --- market data: refused subscriptions


def test_where_all_option_quotes_are_refused_those_that_are_named_flow(stack: Stack) -> None:
    stack.upstream.refuse = lambda _, message: 413 if "*" in message.get("quotes", ()) else 0
    path = FEEDS["options"][1]
    stack.hold(("options", "quotes", OPTION))
    session = stack.wait_subscribed(path)
    stack.hub.hold("greedy", [("options", "quotes", ALL), ("options", "trades", ALL)])
    wait_until(lambda: stack.feed("indicative").errors.get(413), "it is refused")
    wait_until(lambda: session.messages[-1].get("trades") == ["*"], "the trades are asked for without it")
    stack.hub.hold("modest", [("options", "quotes", "IBM240315C00172500")])
    wait_until(lambda: session.messages[-1].get("quotes") == ["IBM240315C00172500"], "and others after it")
    assert [m for m in session.messages if m["action"] == "unsubscribe"] == []
    assert sum("*" in m.get("quotes", ()) for m in session.messages) <= 2
    assert (stack.feed("indicative").state, stack.feed("indicative").refused) == ("connected", 1)


def test_what_is_over_the_limit_is_asked_for_when_others_let_go(stack: Stack) -> None:
    symbols = [f"A{number}" for number in range(40)]

    def refuse(session: Session, message: dict[str, Any]) -> int:
        wanted = session.bars | set(message.get("bars", ()))
        return 405 if message["action"] == "subscribe" and len(wanted) > 30 else 0

    stack.upstream.refuse = refuse
    for symbol in symbols:
        stack.hub.hold(symbol, [("stocks", "bars", symbol)])
    session = stack.wait_subscribed("/v2/iex")
    wait_until(lambda: stack.feed("iex").refused == 10, "ten are over the limit")
    assert len(session.bars) == 30
    count = len(session.messages)
    assert count < 40
    stack.hub.hold("late", [("stocks", "bars", "LATE")])
    wait_until(lambda: stack.feed("iex").refused == 11, "the late one is not asked for")
    assert len(session.messages) == count
    for symbol in list(session.bars)[:5]:
        stack.hub.release(symbol)
    wait_until(lambda: stack.feed("iex").refused == 6, "others take their places")
    assert len(session.bars) == 30
    assert stack.feed("iex").state == "connected"


# --- order updates


class TradingStream:
    """Alpaca's `/stream` as a scripted server, on a thread of its own."""

    def __init__(self) -> None:
        self.authorizes = True
        self.first: list[str] = []  # sent in answer to the credentials, in place of an authorization
        self.streams: list[Any] = ["trade_updates"]
        self.open: list[ServerConnection] = []
        self.connections = 0
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="trading stream")
        self._thread.start()
        assert self._started.wait(DEADLINE_S)

    def send(self, *frames: bytes | str) -> None:
        for frame in frames:
            asyncio.run_coroutine_threadsafe(self.open[-1].send(frame), self._loop).result(DEADLINE_S)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with serve(self._talk, "127.0.0.1", 0, close_timeout=0.2, ping_interval=None) as server:
            self.url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/stream"
            self._started.set()
            await self._stop.wait()

    async def _talk(self, socket: ServerConnection) -> None:
        self.connections += 1
        try:
            await socket.recv()
            for frame in self.first:
                await socket.send(frame)
            status = "authorized" if self.authorizes else "unauthorized"
            await socket.send(json.dumps({"stream": "authorization", "data": {"status": status}}))
            await socket.recv()
            await socket.send(json.dumps({"stream": "listening", "data": {"streams": self.streams}}).encode())
            self.open.append(socket)
            await socket.wait_closed()
        except ConnectionClosed:
            pass
        finally:
            if socket in self.open:
                self.open.remove(socket)


class OrderStack:
    """A scripted stream, the exchange for the requests, and a hub."""

    def __init__(self) -> None:
        self.stream = TradingStream()
        self.exchange = ExchangeServer(synthetic_day(["SPY"], seed=1), rules="alpaca", speed=1.0, consumers=1)
        self.exchange.start()
        self.failures: list[BaseException] = []
        access = open_venue("KEY", "SECRET", url=self.exchange.url, stream_url=self.stream.url)
        self.hub = HubService(
            self.exchange.stream_url,
            key="KEY",
            secret="SECRET",
            accounts=[AccountSettings(environment="paper", access=access)],
            rng=random.Random(1),
            timing=QUICK,
            on_failure=self.failures.append,
        )
        self.numbers = 0

    def feed(self) -> FeedStatus:
        return next(feed for feed in self.hub.status().feeds if feed.feed == "orders.paper")

    def wait_connected(self) -> None:
        wait_until(lambda: self.feed().state == "connected" and self.stream.open, "it listens")

    def read(self) -> tuple[HubEvent, ...]:
        topic = ("orders.paper", ORDERS, ALL)
        return self.hub.bus.replay("orders.paper", [topic], epoch=self.hub.epoch, offset=0).events

    def flows(self, event: str = "new", **more: Any) -> None:
        """Send an update, and wait until it is told as it came."""
        self.numbers += 1
        order = {"id": f"o{self.numbers}", "symbol": "SPY", "status": "new", "filled_qty": "0", **more}
        frame = json.dumps(
            {"stream": "trade_updates", "data": {"event": event, "event_id": f"e{self.numbers}", "order": order}}
        )
        self.stream.send(frame.encode())
        wait_until(lambda: self.read() and self.read()[-1].event_id == f"e{self.numbers}", "the update is told")
        assert self.read()[-1].raw == frame.encode()

    def close(self) -> None:
        self.hub.stop()
        self.exchange.stop()
        self.stream.close()
        assert not self.failures


@pytest.fixture
def orders() -> Iterator[OrderStack]:
    stack = OrderStack()
    yield stack
    stack.close()


def test_each_error_code_of_the_order_stream_has_the_effect_of_its_kind(orders: OrderStack) -> None:
    orders.hub.start()
    orders.wait_connected()
    orders.flows()
    for code in NOTED:
        orders.stream.send(json.dumps([{"T": "error", "code": code, "msg": "no"}]))
        orders.flows()
        assert orders.feed().errors[code] == 1
    assert orders.feed().reconnects == 0
    for number, code in enumerate((*LOST, *FATAL), 1):
        orders.stream.send(json.dumps([{"T": "error", "code": code, "msg": "no"}]))
        wait_until(lambda number=number: orders.feed().reconnects == number, "connected again")  # type: ignore[misc]
        orders.wait_connected()
        orders.flows()
    orders.stream.send(json.dumps({"action": "error", "data": {"error_message": "too many"}}))
    wait_until(lambda: orders.feed().reconnects == number + 1, "connected again")
    orders.wait_connected()
    orders.flows()


@pytest.mark.parametrize("code", FATAL)
def test_a_fatal_answer_to_the_credentials_is_an_error_of_the_order_stream(orders: OrderStack, code: int) -> None:
    orders.stream.first = [json.dumps([{"T": "error", "code": code, "msg": "no"}])]
    orders.hub.start()
    wait_until(lambda: orders.feed().state == "error", "it is in error")
    assert orders.feed().error == f"no ({code})"
    orders.stream.first = []
    orders.wait_connected()
    assert orders.feed().error == ""
    orders.flows()


@pytest.mark.parametrize("streams", [[], ["others"], None, 7])
def test_a_stream_without_trade_updates_is_an_error(orders: OrderStack, streams: Any) -> None:
    orders.stream.streams = streams
    orders.hub.start()
    wait_until(lambda: orders.feed().state == "error", "it is in error")
    assert "does not offer trade_updates" in orders.feed().error
    orders.stream.streams = ["trade_updates"]
    orders.wait_connected()


def test_odd_frames_of_the_order_stream_cost_only_themselves_and_unknown_events_are_told(orders: OrderStack) -> None:
    orders.hub.start()
    orders.wait_connected()
    orders.stream.send(
        "", "no json", b"\xff\xfe", "null", "7", "[]", "[7]", '[{"T":[]}]', '[{"T":"error","code":"x"}]', "{}",
        '{"stream":["trade_updates"]}', '{"stream":"trade_updates"}', '{"stream":"trade_updates","data":7}',
        '{"stream":"trade_updates","data":{}}', '{"stream":"trade_updates","data":{"event":"new","order":{"id":7}}}',
        '{"stream":"trade_updates","data":{"event":7,"order":{"id":"x"}}}', '{"stream":"of the future","data":{}}',
        '{"stream":"trade_updates","data":{"event":"new","event_id":"n","order":{"id":"x","symbol":NaN}}}',
        '{"stream":"trade_updates","data":{"event":"new","order":' + "[" * 100_000,
    )  # fmt: skip
    orders.flows("eaten_by_a_grue", note="Grüße " + "x" * 1_000_000)
    status = orders.feed()
    assert (status.reconnects, status.state) == (0, "connected")
    assert status.unknown["eaten_by_a_grue"] == 1
    assert status.unknown["of the future"] == 1
    assert sum(status.malformed.values()) >= 9
    assert len(orders.read()) == 1
