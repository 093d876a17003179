"""News and order updates on Pub/Sub, and what becomes of all of it while Pub/Sub is away."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import requests
from aiohttp import WSMsgType, web
from google.pubsub_v1 import SubscriberClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from websockets.sync.client import connect

from dry_work.alpaca.venues import open_venue
from dry_work.clock import SECOND_NS, ManualClock
from dry_work.embedded.pubsub import EmbeddedPubSub
from dry_work.errors import BrokerUnavailableError
from dry_work.exchange.news import Article, NewsFeed
from dry_work.exchange.offerings import Offerings
from dry_work.exchange.server import ExchangeServer
from dry_work.exchange.synthetic import synthetic_day
from dry_work.hub.access import Access
from dry_work.hub.accounts import AccountSettings
from dry_work.hub.assembly import build_hub
from dry_work.hub.bus import Bus
from dry_work.hub.events import HubEvent
from dry_work.hub.news_poll import NewsPoll
from dry_work.hub.ports import TopicStatus
from dry_work.hub.service import HubService
from dry_work.hub.settings import build_settings
from dry_work.hub.sinks.websocket import WebSocketSink
from dry_work.hub.upstreams.connection import UpstreamTiming
from dry_work.market.messages import News
from dry_work.wire import alpaca_stream
from dry_work.wire.pubsub import encode_time, parse_message

from .alpaca_upstream import KEY, SECRET, Upstream, build_bar, wait_until
from .test_hub_pubsub import Relay

PROJECT = "test-project"
TOPICS = ("market-data", "crypto-data", "news-data", "order-updates")
DEADLINE_S = 60.0
QUICK = UpstreamTiming(ping_interval_s=0.1, silence_timeout_s=30.0, slow_retry_s=0.3, first_wait_s=0.05)
NEWS_PATH = "/v1beta1/news"
ARTICLE = {
    "T": "n", "id": 24918784, "headline": "Ünusual", "summary": "s", "author": "a", "url": "http://n", "source": "x",
    "created_at": "2024-01-02T14:30:00Z", "updated_at": "2024-01-02T14:31:00Z", "content": "",
    "symbols": ["SPY", "IBM"],
}  # fmt: skip


class Stack:
    """A scripted upstream for data, the exchange for orders, and Pub/Sub behind a relay that can be cut."""

    def __init__(self) -> None:
        self.upstream = Upstream()
        self.upstream.offers_watermarks = False
        self.exchange = ExchangeServer(synthetic_day(["SPY"], seed=1), rules="alpaca", speed=1.0, consumers=0)
        self.exchange.start()
        self.pubsub = EmbeddedPubSub(topics=[f"projects/{PROJECT}/topics/{topic}" for topic in TOPICS])
        self.pubsub.start()
        self.relay = Relay(self.pubsub.port)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{self.pubsub.port}")
        self._client = SubscriberClient(transport=SubscriberGrpcTransport(channel=self._channel))
        for topic in TOPICS:
            self._client.create_subscription(
                request={"name": self._path(topic), "topic": f"projects/{PROJECT}/topics/{topic}"}
            )
        self.failures: list[BaseException] = []
        self.hub: HubService | None = None
        self.sink: WebSocketSink | None = None

    def start(self, *, with_websocket: bool = False, **settings: Any) -> HubService:
        def build(hub: HubService) -> WebSocketSink:
            self.sink = WebSocketSink(hub, access=Access("127.0.0.1"), port=0)
            return self.sink

        self.hub = HubService(
            self.upstream.url,
            key=KEY,
            secret=SECRET,
            project=PROJECT,
            symbols=["SPY"],
            pubsub_endpoint=f"127.0.0.1:{self.relay.port}",
            sinks=[build] if with_websocket else [],
            rng=random.Random(1),
            epoch="e1",
            timing=QUICK,
            on_failure=self.failures.append,
            **{"news_topic": "news-data", "news_symbols": ["SPY", "BTC/USD"], **settings},
        )
        self.hub.start()
        return self.hub

    def start_with_orders(self, **settings: Any) -> HubService:
        venue = open_venue(KEY, SECRET, url=self.exchange.url)
        accounts = [AccountSettings(environment="paper", access=venue)]
        hub = self.start(accounts=accounts, orders_topic="order-updates", **settings)
        wait_until(lambda: hub.status().feeds[-1].state == "connected", "the account's stream is connected")
        return hub

    def topic(self, name: str) -> TopicStatus:
        assert self.hub is not None
        return next(topic for topic in self.hub.status().topics if topic.topic == name)

    def read(self, topic: str, count: int) -> list[tuple[bytes, dict[str, str]]]:
        """Return payloads and attributes, each number once, in order."""
        found: dict[int, tuple[bytes, dict[str, str]]] = {}
        end_s = time.monotonic() + DEADLINE_S
        while len(found) < count:
            left_s = end_s - time.monotonic()
            assert left_s > 0, f"{len(found)} of {count} messages in time"
            request = {"subscription": self._path(topic), "max_messages": 1000}
            answer = self._client.pull(request=request, timeout=left_s, retry=None)
            for received in answer.received_messages:
                attributes = dict(received.message.attributes)
                found[int(attributes["seq"])] = (received.message.data, attributes)
            ids = [received.ack_id for received in answer.received_messages]
            self._client.acknowledge(request={"subscription": self._path(topic), "ack_ids": ids}, retry=None)
        return [found[seq] for seq in sorted(found)]

    def order(self, name: str) -> str:
        """Send an order that rests; return its id."""
        body = {
            "symbol": "SPY", "qty": "1", "side": "buy", "type": "limit", "limit_price": "1", "time_in_force": "gtc",
            "client_order_id": name,
        }  # fmt: skip
        return str(self.ask("POST", "/v2/orders", json=body)["id"])

    def ask(self, method: str, path: str, **more: Any) -> Any:
        headers = {"APCA-API-KEY-ID": KEY, "APCA-API-SECRET-KEY": SECRET}
        answer = requests.request(method, self.exchange.url + path, headers=headers, timeout=20, **more)
        assert answer.ok, answer.text
        return answer.json() if answer.content else None

    def close(self) -> None:
        if self.hub is not None:
            self.hub.stop()
        self._client.transport.close()
        self.relay.close()
        self.pubsub.stop()
        self.exchange.stop()
        self.upstream.close()
        assert not self.failures
        wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("hub")], "no thread is left")

    def _path(self, topic: str) -> str:
        return f"projects/{PROJECT}/subscriptions/reader-{topic}"


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack()
    yield stack
    stack.close()


def wait_for_news(stack: Stack) -> set[str]:
    """Return the symbols whose news are subscribed upstream, once there are some."""

    def wanted() -> set[str]:
        sessions = [session for session in stack.upstream.open if session.path == NEWS_PATH]
        return {name for session in sessions for message in session.messages for name in message.get("news", ())}

    wait_until(wanted, "news are subscribed")
    return wanted()


def test_news_go_to_their_topic_as_readers_know_them(stack: Stack) -> None:
    stack.start()
    assert wait_for_news(stack) == {"SPY", "BTC/USD", "BTCUSD"}
    stack.upstream.send([ARTICLE, {**ARTICLE, "id": 2, "symbols": ["BTCUSD"]}], NEWS_PATH)
    (first, attributes), (second, _) = stack.read("news-data", 2)
    assert attributes == {"symbol": "SPY", "type": "news", "epoch": "e1", "seq": "1"}
    body = json.loads(first)
    assert {name: body[name] for name in ("type", "symbols", "headline", "summary", "author", "url", "source")} == {
        "type": "news", "symbols": ["SPY", "IBM"], "headline": "Ünusual", "summary": "s", "author": "a",
        "url": "http://n", "source": "x",
    }  # fmt: skip
    assert (body["created_at"], body["updated_at"]) == ("2024-01-02T14:30:00Z", "2024-01-02T14:31:00Z")
    assert body["ingested_at"].startswith("20")
    assert json.loads(second)["symbols"] == ["BTCUSD"]
    found = parse_message("news-data", first, attributes, recv_ns=1)
    assert isinstance(found.message, News)
    assert (found.epoch, found.seq, found.message.headline) == ("e1", 1, "Ünusual")


def test_order_updates_go_to_their_topic_with_what_readers_choose_by(stack: Stack) -> None:
    hub = stack.start_with_orders()
    order_id = stack.order("one")
    stack.ask("DELETE", f"/v2/orders/{order_id}")
    account = hub.account("paper")
    assert account is not None
    wait_until(lambda: any(event.item["event"] == "canceled" for event in told_of(hub)), "the end is told")
    told = told_of(hub)
    found = stack.read("order-updates", len(told))
    assert [data for data, _ in found] == [event.raw for event in told]
    for number, (data, attributes) in enumerate(found, 1):
        frame = json.loads(data)
        assert frame["stream"] == "trade_updates"
        assert frame["data"]["order"]["client_order_id"] == "one"
        assert attributes == {
            "account": account.account_id, "symbol": "SPY", "event": frame["data"]["event"],
            "event_id": told[number - 1].event_id, "epoch": "e1", "seq": str(number),
        }  # fmt: skip
    assert [attributes["event"] for _, attributes in found][-2:] == ["new", "canceled"]


def told_of(hub: HubService) -> tuple[HubEvent, ...]:
    return hub.bus.replay("orders.paper", [("orders.paper", "orders", "*")], epoch="e1", offset=0).events


def test_order_updates_wait_while_pubsub_is_away_and_none_is_lost(stack: Stack) -> None:
    hub = stack.start_with_orders(capacity=2, with_websocket=True)
    stack.relay.cut()
    stack.order("order-0")
    wait_until(lambda: stack.topic("order-updates").pending >= 2, "the topic is full")
    for number in range(1, 12):
        stack.order(f"order-{number}")
    wait_until(lambda: sum(event.item["event"] == "new" for event in told_of(hub)) == 12, "all came to the hub")
    wait_until(lambda: stack.topic("order-updates").held >= 5, "some wait in the hub")
    assert stack.topic("order-updates").published == 0
    stack.relay.mend()
    told = told_of(hub)
    assert [data for data, _ in stack.read("order-updates", len(told))] == [event.raw for event in told]
    wait_until(lambda: stack.topic("order-updates").held == 0, "nothing waits")
    assert stack.topic("order-updates").dropped == 0


def test_what_leaves_the_bounded_history_meanwhile_is_counted_as_lost(stack: Stack) -> None:
    stack.start(capacity=1, with_websocket=True, data_history=3)
    wait_for_news(stack)
    stack.relay.cut()
    stack.upstream.send([{**ARTICLE, "id": 0}], NEWS_PATH)
    wait_until(lambda: stack.topic("news-data").pending == 1, "the topic is full")
    for number in range(1, 12):
        stack.upstream.send([{**ARTICLE, "id": number}], NEWS_PATH)
    wait_until(lambda: stack.topic("news-data").held == 11, "they wait in the hub")
    stack.relay.mend()
    wait_until(lambda: stack.topic("news-data").held == 0, "nothing waits")
    wait_until(lambda: stack.topic("news-data").pending == 0, "all is published")
    status = stack.topic("news-data")
    assert status.dropped >= 5
    assert status.published + status.dropped == 12


def test_beside_other_interfaces_a_full_topic_gives_up_its_oldest_bars_and_holds_nobody_back(stack: Stack) -> None:
    capacity, count = 50, 400
    stack.start(capacity=capacity, with_websocket=True)
    assert stack.sink is not None
    stack.upstream.wait_subscribed({"SPY"})
    with connect(f"ws://127.0.0.1:{stack.sink.port}/v2/iex", proxy=None) as client:
        client.send('{"action":"auth","key":"k","secret":"s"}')
        client.send('{"action":"subscribe","bars":["SPY"]}')
        while "subscription" not in str(client.recv(20)):
            pass
        stack.relay.cut()
        for number in range(count):
            stack.upstream.send([alpaca_stream.encode_bar_item(build_bar("SPY", number))])
        seen: list[Any] = []
        while len(seen) < count:
            seen += json.loads(client.recv(20))
    assert [bar["o"] for bar in seen] == [100.0 + number for number in range(count)]
    status = stack.topic("market-data")
    assert status.pending <= capacity
    assert status.dropped >= count - capacity - 1
    stack.relay.mend()
    wait_until(lambda: stack.topic("market-data").pending == 0, "the rest is published")
    status = stack.topic("market-data")
    assert status.published + status.dropped == count
    found = stack.read("market-data", status.published)
    assert json.loads(found[-1][0])["open"] == 100.0 + count - 1  # the newest, and in order
    assert [int(attributes["seq"]) for _, attributes in found] == sorted(int(a["seq"]) for _, a in found)
    assert int(found[-1][1]["seq"]) == count  # what was given up shows as a gap


# --- news that the stream missed


def test_news_that_the_stream_missed_are_asked_for_and_published_once() -> None:
    recording = synthetic_day(["SPY"], seed=1)
    start_ns = int(recording.columns("SPY")["ts_event_ns"][0])
    articles = [
        Article(
            id=number,
            headline=f"number {number}",
            source="test",
            created_ns=start_ns + number * SECOND_NS,
            updated_ns=start_ns + number * SECOND_NS,
            symbols=("SPY",) if number % 2 else ("BTCUSD",),
        )
        for number in range(120)
    ]
    exchange = ExchangeServer(
        recording, rules="alpaca", speed=1000.0, consumers=0, offerings=Offerings(news=NewsFeed(articles))
    )
    exchange.start()
    try:
        asyncio.run(asyncio.wait_for(check_poll(exchange.url, start_ns), 60.0))
    finally:
        exchange.stop()


async def check_poll(url: str, start_ns: int) -> None:
    bus = Bus("e1")
    clock = ManualClock(start_ns)
    headers = {"APCA-API-KEY-ID": KEY, "APCA-API-SECRET-KEY": SECRET}
    poll = NewsPoll(bus, url=url, headers=headers, symbols=["SPY", "BTC/USD"], interval_s=0.05, clock=clock)
    running = asyncio.create_task(poll.run())

    def told() -> list[int]:
        return [event.item["id"] for event in bus.replay("news", [("news", "news", "*")], epoch="e1", offset=0).events]

    await asyncio.sleep(0)
    item = {"T": "n", "id": 3, "symbols": ["SPY"], "updated_at": encode_time(start_ns + 3 * SECOND_NS)}
    bus.publish("news", "news", "SPY", item, ts_recv_ns=1, symbols=("SPY",))  # as the stream brings it
    try:
        while len(told()) < 120:
            await asyncio.sleep(0.01)
        looks = poll.found
        clock.advance(1)
        await poll.look()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert sorted(told()) == list(range(120))
    assert poll.found == looks == 119
    assert poll.error == ""
    assert bus.readers == 0


def test_a_venue_that_does_not_answer_for_news_is_asked_again() -> None:
    poll = NewsPoll(
        Bus("e1"), url="http://127.0.0.1:9", headers={}, symbols=[], interval_s=1.0, clock=ManualClock(10**18)
    )
    with pytest.raises(BrokerUnavailableError, match=re.escape("http://127.0.0.1:9/v1beta1/news")):
        asyncio.run(poll.look())


# --- a bearer token in place of a key pair


class TokenVenue:
    """As much of Alpaca as a hub needs that has nothing but a token; keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, Any]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="token venue")
        self._thread.start()
        self.port: int = asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(60)

    async def _serve(self) -> int:
        application = web.Application()
        application.router.add_get("/stream", self._stream_orders)
        application.router.add_get("/v2/iex", self._stream_data)
        application.router.add_get("/v2/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return int(self._runner.addresses[0][1])

    async def _answer(self, request: web.Request) -> web.Response:
        self.shown.append((request.path, request.headers.get("Authorization")))
        assert "APCA-API-KEY-ID" not in request.headers
        bodies: dict[str, Any] = {
            "/v2/account": {"id": "an-account", "account_number": "PA1"},
            "/v2/clock": {"timestamp": "2024-01-02T14:30:00Z"},
        }
        return web.json_response(bodies.get(request.path, []))

    async def _stream_orders(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                continue
            asked = message.json()
            if asked["action"] == "authenticate":
                self.shown.append(("/stream", asked["data"]))
                answer = {"stream": "authorization", "data": {"status": "authorized", "action": "authenticate"}}
            else:
                answer = {"stream": "listening", "data": {"streams": ["trade_updates"]}}
            await socket.send_json(answer)
        return socket

    async def _stream_data(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_json([{"T": "success", "msg": "connected"}])
        async for message in socket:
            asked = message.json()
            if asked["action"] == "auth":
                self.shown.append(("/v2/iex", (asked["key"], asked["secret"])))
                await socket.send_json([{"T": "success", "msg": "authenticated"}])
            else:
                await socket.send_json([{"T": "subscription", "bars": asked.get("bars", [])}])
        return socket

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def test_a_hub_with_a_token_shows_it_to_every_interface_of_alpaca(clean_environment: Any) -> None:
    venue = TokenVenue()
    environment = {
        "ALPACA_OAUTH": "the-bearer-token",
        "ALPACA_URL": f"http://127.0.0.1:{venue.port}",
        "ALPACA_STREAM_URL": f"ws://127.0.0.1:{venue.port}",
        "HUB_SINKS": "websocket",
        "HUB_SYMBOLS": "SPY",
        "PROXY_PORT": "0",
    }
    hub = build_hub(build_settings(environment), environment)
    hub.start()
    try:
        wait_until(
            lambda: {feed.feed for feed in hub.status().feeds if feed.state == "connected"} == {"iex", "orders.paper"},
            "both are connected",
        )
        wait_until(lambda: ("/v2/account", "Bearer the-bearer-token") in venue.shown, "the account is asked")
    finally:
        hub.stop()
        venue.close()
    assert ("/stream", {"oauth_token": "the-bearer-token"}) in venue.shown
    assert ("/v2/iex", ("oauth", "the-bearer-token")) in venue.shown
    assert {shown for path, shown in venue.shown if path.startswith("/v2/") and path != "/v2/iex"} == {
        "Bearer the-bearer-token"
    }
