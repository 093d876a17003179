"""Alpaca's streams from the hub: unmodified alpaca-py and plain clients at its WebSocket port."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
from alpaca.data.enums import OptionsFeed
from alpaca.data.live import CryptoDataStream, NewsDataStream, OptionDataStream, StockDataStream
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from dry_work.errors import ConfigError
from dry_work.hub.access import Access
from dry_work.hub.service import HubService
from dry_work.hub.sinks.websocket import WebSocketSink

from .alpaca_upstream import KEY, SECRET, Upstream, wait_until

OPTION = "AAPL240315C00172500"
TIME = "2024-01-02T14:30:00.123456789Z"


class Stack:
    """A scripted upstream and a hub with a WebSocket sink."""

    def __init__(self) -> None:
        self.upstream = Upstream()
        self.failures: list[BaseException] = []
        self.hub: HubService | None = None
        self.sink: WebSocketSink

    def start(self, *, access: Access | None = None, **settings: Any) -> Stack:
        def build(hub: HubService) -> WebSocketSink:
            self.sink = WebSocketSink(hub, access=access or Access("127.0.0.1"), port=0, **settings)
            return self.sink

        self.hub = HubService(
            self.upstream.url,
            key=KEY,
            secret=SECRET,
            sinks=[build],
            rng=random.Random(1),
            epoch="e1",
            on_failure=self.failures.append,
        )
        self.hub.start()
        return self

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.sink.port}"

    def wait_subscribed(self, channel: str, symbols: set[str], path: str = "/v2/iex") -> None:
        def asked() -> set[str]:
            held: set[str] = set()
            for session in self.upstream.open:
                for message in session.messages if session.path == path else ():
                    names = message.get(channel, ())
                    held = held.union(names) if message["action"] == "subscribe" else held.difference(names)
            return held

        wait_until(lambda: asked() == symbols, f"{symbols} on {channel} upstream")

    def close(self) -> None:
        if self.hub is not None:
            self.hub.stop()
        self.upstream.close()
        assert not self.failures
        wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("hub")], "no thread is left")


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack()
    yield stack
    stack.close()


def make_trade(symbol: str, number: int, **more: Any) -> dict[str, Any]:
    return {"T": "t", "S": symbol, "i": number, "x": "V", "p": 100.5, "s": 3, "c": ["@"], "z": "C", "t": TIME, **more}


def make_quote(symbol: str, number: int) -> dict[str, Any]:
    return {"T": "q", "S": symbol, "bp": float(number), "bs": 1, "ap": number + 1.0, "as": 2, "t": TIME}


def run_stream(stream: Any) -> threading.Thread:
    thread = threading.Thread(target=stream.run, daemon=True)
    thread.start()
    return thread


def collect(found: list[Any]) -> Callable[[Any], Any]:
    async def handle(item: Any) -> None:
        found.append(item)

    return handle


# --- unmodified alpaca-py


def test_two_stock_streams_of_alpaca_py_share_one_upstream(stack: Stack) -> None:
    stack.start()
    first, second = (StockDataStream("k", "s", url_override=f"{stack.url}/v2/iex") for _ in range(2))
    trades, quotes, bars = [], [], []
    first.subscribe_trades(collect(trades), "AAPL")
    first.subscribe_quotes(collect(quotes), "AAPL")
    second.subscribe_bars(collect(bars), "IBM")
    threads = [run_stream(first), run_stream(second)]
    stack.wait_subscribed("trades", {"AAPL"})
    stack.wait_subscribed("bars", {"IBM"})
    assert len(stack.upstream.sessions) == 1
    bar = {"T": "b", "S": "IBM", "o": 1, "h": 2, "l": 1, "c": 2, "v": 9, "n": 1, "vw": 1.5, "t": TIME}
    stack.upstream.send([make_trade("AAPL", 1), make_quote("AAPL", 7), bar])
    wait_until(lambda: trades and quotes and bars, "everything arrives")
    assert (trades[0].symbol, trades[0].price, trades[0].timestamp.microsecond) == ("AAPL", 100.5, 123456)
    assert (quotes[0].bid_price, bars[0].close) == (7.0, 2.0)
    first.unsubscribe_trades("AAPL")
    stack.wait_subscribed("trades", set())
    for stream in (first, second):
        stream.stop()
    # A stream of alpaca-py looks whether it is to stop after each frame, or every five seconds.
    stack.upstream.send([make_quote("AAPL", 8), bar])
    for thread in threads:
        thread.join(60.0)
    stack.wait_subscribed("bars", set())


@pytest.mark.parametrize("kind", ["options", "crypto", "news"])
def test_the_other_streams_of_alpaca_py_work_too(stack: Stack, kind: str) -> None:
    stack.start()
    found: list[Any] = []
    stream: Any
    if kind == "options":
        path, symbol, channel = "/v1beta1/indicative", OPTION, "trades"
        stream = OptionDataStream("k", "s", feed=OptionsFeed.INDICATIVE, url_override=stack.url + path)
        stream.subscribe_trades(collect(found), symbol)
        item = {"T": "t", "S": symbol, "p": 1.25, "s": 2, "x": "C", "c": "g", "t": TIME}
    elif kind == "crypto":
        path, symbol, channel = "/v1beta3/crypto/us", "BTC/USD", "quotes"
        stream = CryptoDataStream("k", "s", url_override=stack.url + path)
        stream.subscribe_quotes(collect(found), symbol)
        item = make_quote(symbol, 5)
    else:
        path, symbol, channel = "/v1beta1/news", "AAPL", "news"
        stream = NewsDataStream("k", "s", url_override=stack.url + path)
        stream.subscribe_news(collect(found), symbol)
        item = {"T": "n", "id": 7, "headline": "Ärger", "summary": "", "author": "a", "content": "", "url": "u"}
        item |= {"created_at": TIME, "updated_at": TIME, "symbols": ["IBM", "AAPL"], "source": "s"}
    thread = run_stream(stream)
    stack.wait_subscribed(channel, {symbol}, path)
    stack.upstream.send([item], path)
    wait_until(lambda: found, "it arrives")
    assert symbol in (found[0].symbols if kind == "news" else found[0].symbol)
    stream.stop()
    stack.upstream.send([item], path)  # wakes it, or it looks five seconds later
    thread.join(60.0)


# --- plain clients


async def receive(socket: ClientConnection) -> Any:
    async with asyncio.timeout(60.0):
        frame = await socket.recv()
    return json.loads(frame) if isinstance(frame, str) else msgpack.unpackb(frame)


async def log_in(url: str, **more: Any) -> ClientConnection:
    socket = await connect(url, proxy=None, **more)
    assert await receive(socket) == [{"T": "success", "msg": "connected"}]
    await socket.send('{"action":"auth","key":"k","secret":"s"}')
    assert await receive(socket) == [{"T": "success", "msg": "authenticated"}]
    return socket


async def test_items_go_on_unchanged_those_of_unknown_types_and_with_unknown_keys_too(stack: Stack) -> None:
    stack.start()
    socket = await log_in(f"{stack.url}/v2/iex")
    await socket.send('{"action":"subscribe","trades":["aapl"]}')
    (state,) = await receive(socket)
    assert (state["trades"], state["corrections"], state["bars"]) == (["AAPL"], ["AAPL"], [])
    await asyncio.to_thread(stack.wait_subscribed, "trades", {"AAPL"})
    items = [make_trade("AAPL", 1, future={"a": [1]}), {"T": "zz", "S": "AAPL", "new": True}]
    stack.upstream.send([*items, make_trade("IBM", 2)])
    assert await receive(socket) == items
    await socket.close()


async def test_a_client_may_send_its_message_in_pieces_and_in_binary(stack: Stack) -> None:
    stack.start()
    socket = await log_in(f"{stack.url}/v2/iex")
    await socket.send(['{"action":"sub', 'scribe","bars":["*"]}'])
    assert (await receive(socket))[0]["bars"] == ["*"]
    await socket.send(b'{"action":"unsubscribe","bars":["*"]}')
    assert (await receive(socket))[0]["bars"] == []
    await socket.close()


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("no json", 400),
        ('{"action":"dance"}', 400),
        ('{"action":"auth","key":"k","secret":"s"}', 403),
        ('{"action":"subscribe","trades":"AAPL"}', 400),
        ('{"action":"subscribe","trades":["BTC/USD"]}', 400),
        ('{"action":"subscribe","orderbooks":["AAPL"]}', 410),
        ('{"action":"subscribe","nonsense":["AAPL"]}', 400),
        ("ÿþ – not ASCII", 400),
    ],
)
async def test_a_bad_message_is_answered_with_its_code_and_the_connection_stays(
    stack: Stack, message: str, code: int
) -> None:
    stack.start()
    socket = await log_in(f"{stack.url}/v2/iex")
    await socket.send(message)
    assert (await receive(socket))[0]["code"] == code
    await socket.send('{"action":"subscribe","trades":["AAPL"]}')
    assert (await receive(socket))[0]["trades"] == ["AAPL"]
    await socket.close()


async def test_nobody_hears_anything_before_authenticating_and_has_ten_seconds_for_it(stack: Stack) -> None:
    stack.start(auth_timeout_s=2.0)
    socket = await connect(f"{stack.url}/v2/iex", proxy=None)
    await receive(socket)
    await socket.send('{"action":"subscribe","trades":["AAPL"]}')
    assert (await receive(socket))[0]["code"] == 401
    assert (await receive(socket))[0] == {"T": "error", "code": 404, "msg": "auth timeout"}
    with pytest.raises(ConnectionClosed):
        await receive(socket)
    assert stack.hub is not None
    assert stack.hub.status().clients == 0


async def test_options_are_messagepack_only(stack: Stack) -> None:
    stack.start()
    socket = await connect(f"{stack.url}/v1beta1/indicative", proxy=None)
    assert (await receive(socket))[0]["code"] == 412
    await socket.wait_closed()


@pytest.mark.parametrize(
    ("path", "status"), [("/nothing", 404), ("/v2/sip", 404), ("/live", 503), ("/trade-updates-paper", 503)]
)
async def test_what_is_not_served_is_refused_in_the_handshake_with_a_reason(
    stack: Stack, path: str, status: int
) -> None:
    stack.start()
    with pytest.raises(InvalidStatus) as refused:
        await connect(stack.url + path, proxy=None)
    assert refused.value.response.status_code == status
    assert refused.value.response.body


async def test_elsewhere_than_on_loopback_the_token_is_asked_for(stack: Stack) -> None:
    with pytest.raises(ConfigError, match="set HUB_TOKEN"):
        Access("0.0.0.0")
    stack.start(access=Access("0.0.0.0", "right"))
    for secret, answer in (("wrong", 402), ("right", None)):
        socket = await connect(f"{stack.url}/v2/iex", proxy=None)
        await receive(socket)
        await socket.send(json.dumps({"action": "auth", "key": "k", "secret": secret}))
        assert (await receive(socket))[0].get("code") == answer
        await socket.close()
    with pytest.raises(InvalidStatus):
        await connect(f"{stack.url}/v2/iex", proxy=None, additional_headers={"Authorization": "Bearer wrong"})
    socket = await connect(f"{stack.url}/v2/iex", proxy=None, additional_headers={"Authorization": "Bearer right"})
    await receive(socket)
    await socket.send('{"action":"auth","key":"k","secret":"any"}')
    assert (await receive(socket))[0]["msg"] == "authenticated"
    await socket.close()


async def test_a_client_that_comes_back_gets_what_it_missed(stack: Stack) -> None:
    stack.start()
    keeper = await log_in(f"{stack.url}/v2/iex?hub=1")
    await keeper.send('{"action":"subscribe","trades":["AAPL"]}')
    await receive(keeper)
    await asyncio.to_thread(stack.wait_subscribed, "trades", {"AAPL"})
    stack.upstream.send([make_trade("AAPL", 1)])
    *_, position = await receive(keeper)
    assert position == {"T": "hub", "epoch": "e1", "offset": 1}
    stack.upstream.send([make_trade("AAPL", 2), make_trade("AAPL", 3)])
    await receive(keeper)
    for epoch, recovered, numbers in (("e1", True, [2, 3]), ("older", False, [3])):
        socket = await log_in(f"{stack.url}/v2/iex?hub=1")
        since = {"epoch": epoch, "offset": 1}
        await socket.send(json.dumps({"action": "subscribe", "trades": ["AAPL"], "since": since}))
        await receive(socket)
        assert await receive(socket) == [{"T": "hub", "epoch": "e1", "offset": 3, "recovered": recovered}]
        *items, position = await receive(socket)
        assert [item["i"] for item in items] == numbers
        assert position["offset"] == 3
        await socket.close()
    await keeper.close()


async def test_a_client_that_asks_for_it_hears_that_market_data_may_be_missing(stack: Stack) -> None:
    stack.start()
    aware, plain = await log_in(f"{stack.url}/v2/iex?hub=1"), await log_in(f"{stack.url}/v2/iex")
    for socket in (aware, plain):
        await socket.send('{"action":"subscribe","trades":["AAPL"]}')
        await receive(socket)
    await asyncio.to_thread(stack.wait_subscribed, "trades", {"AAPL"})
    await asyncio.to_thread(stack.upstream.cut)
    assert await receive(aware) == [{"T": "hub_status", "state": "reconnecting"}]
    assert await receive(aware) == [{"T": "hub_status", "state": "connected"}]
    await asyncio.to_thread(stack.wait_subscribed, "trades", {"AAPL"})
    stack.upstream.send([make_trade("AAPL", 1)])
    assert [item["T"] for item in await receive(aware)] == ["t", "hub"]
    assert [item["T"] for item in await receive(plain)] == ["t"]  # Alpaca's own clients hear nothing else
    for socket in (aware, plain):
        await socket.close()


async def subscribe_two(stack: Stack) -> tuple[ClientConnection, ClientConnection]:
    """Return a client that reads nothing of what follows, and one that reads all."""
    stuck = await log_in(f"{stack.url}/v2/iex", max_queue=1)
    reader = await log_in(f"{stack.url}/v2/iex", max_queue=None)
    for socket in (stuck, reader):
        await socket.send('{"action":"subscribe","trades":["AAPL"]}')
        await receive(socket)
    await asyncio.to_thread(stack.wait_subscribed, "trades", {"AAPL"})
    stuck.transport.pause_reading()
    return stuck, reader


async def send_until(stack: Stack, reader: ClientConnection, condition: Callable[[], bool]) -> int:
    """Send trades until `condition`, and check that the reader gets each; return how many that were."""
    sent = 0

    def send() -> None:
        nonlocal sent
        while not condition():
            stack.upstream.send([make_trade("AAPL", sent + offset, pad="x" * 2_000) for offset in range(50)])
            sent += 50
            assert sent < 200_000

    sending = asyncio.ensure_future(asyncio.to_thread(send))
    number = 0
    while not sending.done() or number < sent:
        try:
            async with asyncio.timeout(0.2):
                items = json.loads(await reader.recv())
        except TimeoutError:
            continue
        assert [item["i"] for item in items] == list(range(number, number + len(items)))
        number += len(items)
    await sending
    return sent


async def test_a_client_that_does_not_read_is_told_what_it_lost_and_costs_the_others_nothing(stack: Stack) -> None:
    stack.start(data_capacity=1_000)
    stuck, reader = await subscribe_two(stack)
    sent = await send_until(stack, reader, lambda: stack.sink.status().dropped >= 100)
    stuck.transport.resume_reading()
    found: list[Any] = []
    while not found or found[-1].get("i") != sent - 1:
        found += await receive(stuck)
    codes = [item["code"] for item in found if "code" in item]
    assert codes == [407]
    numbers = [item["i"] for item in found if "i" in item]
    assert numbers == sorted(set(numbers))
    status = stack.sink.status()
    assert status.offered == 2 * sent == status.delivered + status.conflated + status.dropped + status.waiting
    assert status.conflated + status.dropped == sent - len(numbers)
    await stuck.close()
    await reader.close()


async def test_a_client_that_stays_slow_is_disconnected(stack: Stack) -> None:
    stack.start(data_capacity=1_000, slow_limit_s=0.1)
    stuck, reader = await subscribe_two(stack)
    await send_until(stack, reader, lambda: stack.sink.status().clients == 1)
    stuck.transport.abort()
    status = stack.sink.status()
    assert status.offered == status.delivered + status.conflated + status.dropped + status.waiting
    await reader.close()


async def test_at_the_end_clients_are_told_that_the_server_goes_away(stack: Stack) -> None:
    stack.start()
    socket = await log_in(f"{stack.url}/v2/iex")
    assert stack.hub is not None
    await asyncio.to_thread(stack.hub.stop)
    await socket.wait_closed()
    assert socket.close_code == 1001


def test_a_port_in_use_is_told_with_its_setting(stack: Stack) -> None:
    stack.start()
    port = stack.sink.port
    hub = HubService(
        stack.upstream.url,
        key=KEY,
        secret=SECRET,
        sinks=[lambda hub: WebSocketSink(hub, access=Access("127.0.0.1"), port=port)],
    )
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} \(PROXY_PORT\) cannot be opened"):
        hub.start()
