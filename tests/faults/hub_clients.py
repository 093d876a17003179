"""Fifty programs that listen to one hub, ten on each of its transports, each with a ledger of what it got.

They use the libraries that a stranger would use, come back after every loss as the documentation of their transport
says, and never look at each other. All of them live in one event loop, on a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
import msgpack
import nats.errors
import nats.js.errors
import redis.asyncio
from google.api_core.exceptions import GoogleAPICallError
from google.pubsub_v1 import SubscriberAsyncClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport
from nats.aio.client import Client as NatsClient
from nats.js import api
from redis.exceptions import RedisError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from dry_work.proto.cream.v1 import stream_proxy_pb2 as cream
from dry_work.proto.stream.v0 import stream_pb2
from dry_work.proto.tradesvc.v0 import tradesvc_pb2

SYMBOL = "SPY"
PROJECT = "demo"
RETRY_S = (0.05, 0.1)
TRADES, BARS, ORDERS = "trades", "bars", "orders"
_DATA_STREAM = "nalpaca-data-stream-v0"
_METHODS = {ORDERS: "StreamOrderUpdates", TRADES: "StreamTrades", BARS: "StreamBars"}
_LOSSES = (
    OSError,
    EOFError,
    TimeoutError,
    WebSocketException,
    grpc.aio.AioRpcError,
    grpc.aio.UsageError,
    nats.errors.Error,
    RedisError,
    GoogleAPICallError,
    asyncio.InvalidStateError,
)

OrderKey = tuple[str, str]  # order id, event


class Addresses:
    """Where everything is."""

    def __init__(self, *, websocket: int, grpc: int, nats: int, redis: int, pubsub: int) -> None:
        self.websocket = websocket
        self.grpc = grpc
        self.nats = nats
        self.redis = redis
        self.pubsub = pubsub


class Listener(ABC):
    """One program.

    Args:
        kind: what it listens to: trades, bars or orders.
        resumes: it goes on where it stood, so that it must not miss anything of what the hub has.
    """

    def __init__(self, name: str, kind: str, at: Addresses, *, resumes: bool = False) -> None:
        self.name = name
        self.kind = kind
        self.at = at
        self.resumes = resumes
        self.numbers: dict[int, None] = {}  # of trades or bars
        self.orders: dict[str, OrderKey] = {}  # by event id
        self.recent: deque[tuple[int, float]] = deque(maxlen=400)  # numbers, of orders too: when they have come
        self.copies: Counter[Any] = Counter()  # what came again
        self.backwards = 0  # numbers below the last one
        self.sessions = 0
        self.is_listening = False
        self.told: list[str] = []  # states of the upstream
        self.recovered: list[bool] = []
        self.losses: list[str] = []
        self._last = -1

    def take_number(self, number: int) -> None:
        """Note a trade or a bar."""
        if number in self.numbers:
            self.copies[number] += 1
            return
        self.backwards += number < self._last
        self._last = max(self._last, number)
        self.numbers[number] = None
        self.recent.append((number, time.monotonic()))

    def take_order(self, event_id: str, order_id: str, event: str, client_order_id: str) -> None:
        """Note an update of an order."""
        if event_id in self.orders:
            self.copies[event_id] += 1
            return
        self.orders[event_id] = (order_id, event)
        if (number := number_of(client_order_id)) >= 0:
            self.recent.append((number, time.monotonic()))

    async def run(self, rng: random.Random) -> None:
        """Listen, again after every loss, until cancelled."""
        while True:
            try:
                self.sessions += 1
                await self._listen()
            except _LOSSES as error:
                self.losses = [*self.losses[-20:], f"{type(error).__name__}: {error}"[:200]]
            finally:
                self.is_listening = False
            await asyncio.sleep(rng.uniform(*RETRY_S))

    @abstractmethod
    async def _listen(self) -> None:
        """Listen until the connection is lost."""


class WebSocketListener(Listener):
    """Alpaca's own streams; with `hub` as the hub extends them."""

    def __init__(self, *args: Any, path: str, hub: bool = False, binary: bool = False) -> None:
        super().__init__(*args, resumes=hub)
        self._path = path
        self._hub = hub
        self._binary = binary
        self._since: dict[str, Any] | None = None

    async def _listen(self) -> None:
        headers = {"Content-Type": "application/msgpack"} if self._binary else {}
        url = f"ws://127.0.0.1:{self.at.websocket}{self._path}{'?hub=1' if self._hub else ''}"
        async with connect(url, additional_headers=headers, proxy=None, open_timeout=10, max_size=None) as socket:
            if self.kind == ORDERS:
                await self._read_orders(socket)
            else:
                await self._read_data(socket)

    async def _read_orders(self, socket: ClientConnection) -> None:
        is_stream = self._path == "/stream"
        since = {"since": self._since} if self._since else {}
        await socket.send(json.dumps({"action": "auth", "key": "k", "secret": "s", **({} if is_stream else since)}))
        if is_stream:
            await socket.send(json.dumps({"action": "listen", "data": {"streams": ["trade_updates"]}}))
        async for frame in socket:
            message = json.loads(frame)
            if isinstance(message, list):
                self.is_listening = self.is_listening or message[0].get("msg") == "authenticated"
                continue
            data = message["data"]
            if message["stream"] == "listening":
                self.is_listening = True
            elif message["stream"] == "hub_status":
                self.told.append(data["state"])
            elif message["stream"] == "hub_resume":
                self.recovered.append(data["recovered"])
            elif message["stream"] == "trade_updates":
                order = data["order"]
                event_id = message.get("event_id") or data.get("event_id") or f"{order['id']} {data['event']}"
                self.take_order(str(event_id), order["id"], data["event"], order["client_order_id"])
                if "offset" in message:
                    self._since = {"epoch": message["epoch"], "offset": message["offset"]}

    async def _read_data(self, socket: ClientConnection) -> None:
        await self._receive(socket)
        await self._send(socket, {"action": "auth", "key": "k", "secret": "s"})
        await self._receive(socket)
        wish: dict[str, Any] = {"action": "subscribe", self.kind: [SYMBOL]}
        if self._since:
            wish["since"] = self._since
        await self._send(socket, wish)
        while True:
            for item in await self._receive(socket):
                kind = item["T"]
                if kind == "subscription":
                    self.is_listening = True
                elif kind == "hub":
                    if "recovered" in item:
                        self.recovered.append(item["recovered"])
                    self._since = {"epoch": item["epoch"], "offset": item["offset"]}
                elif kind == "hub_status":
                    self.told.append(item["state"])
                elif kind in ("t", "b"):
                    self.take_number(item["i"] if kind == "t" else round(item["o"]))

    async def _send(self, socket: ClientConnection, message: dict[str, Any]) -> None:
        await socket.send(msgpack.packb(message) if self._binary else json.dumps(message))

    async def _receive(self, socket: ClientConnection) -> list[dict[str, Any]]:
        frame = await socket.recv()
        found: list[dict[str, Any]] = msgpack.unpackb(frame) if isinstance(frame, bytes) else json.loads(frame)
        return found


class GrpcListener(Listener):
    """A stream of cream.v1, with the position in every response."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, resumes=True)
        self._position: tuple[str, int] | None = None

    async def _listen(self) -> None:
        method = _METHODS[self.kind]
        metadata = [("x-dry-work-offsets", "true")]
        if self._position is not None:
            metadata += [("x-dry-work-epoch", self._position[0]), ("x-dry-work-offset", str(self._position[1]))]
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 50))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.at.grpc}", options=options) as channel:
            stream = channel.unary_stream(
                f"/cream.v1.StreamProxyService/{method}",
                request_serializer=getattr(cream, f"{method}Request").SerializeToString,
                response_deserializer=lambda data: (
                    getattr(cream, f"{method}Response").FromString(data),
                    _read_offset(data),
                ),
            )
            request = getattr(cream, f"{method}Request")()
            if self.kind != ORDERS:
                request.symbols.append(SYMBOL)
            call = stream(request, metadata=tuple(metadata))
            told = dict(await call.initial_metadata())
            if "x-dry-work-epoch" not in told:
                raise ConnectionError("the call has failed")
            epoch = str(told["x-dry-work-epoch"])
            if "x-dry-work-recovered" in told:
                self.recovered.append(told["x-dry-work-recovered"] == "true")
            self.is_listening = True
            async for response, offset in call:
                self._take(response)
                self._position = (epoch, offset)

    def _take(self, response: Any) -> None:
        if self.kind == TRADES:
            self.take_number(response.trade.trade_id)
        elif self.kind == BARS:
            self.take_number(round(response.bar.open))
        else:
            update = response.update
            event = cream.OrderEvent.Name(update.event).removeprefix("ORDER_EVENT_").lower()
            self.take_order(update.event_id, update.order.id, event, update.order.client_order_id)


def number_of(client_order_id: str) -> int:
    """Return the number of an order of the load, -1 of any other."""
    name, _, number = client_order_id.partition("-")
    return int(number) if name == "load" else -1


def _read_offset(data: bytes) -> int:
    """Return the number in field 100, which stands at the end."""
    at = data.rindex(b"\xa0\x06") + 2
    value = 0
    for place, byte in enumerate(data[at:]):
        value |= (byte & 0x7F) << (7 * place)
    return value


class NatsListener(Listener):
    """A consumer of the data stream; of order updates a durable one of its own."""

    async def _listen(self) -> None:
        client = NatsClient()
        is_lost = asyncio.Event()

        async def note_lost() -> None:
            is_lost.set()

        async def ignore(_: Exception) -> None:
            pass

        try:
            await client.connect(
                f"nats://127.0.0.1:{self.at.nats}",
                allow_reconnect=False,
                connect_timeout=5,
                ping_interval=1,
                closed_cb=note_lost,
                disconnected_cb=note_lost,
                error_cb=ignore,
            )
            if self.kind == BARS:
                await client.subscribe("nalpaca.data.v0.stocks.*", cb=self._take_bar)
                await client.flush()
                self.is_listening = True
                await is_lost.wait()
            else:
                await self._pull(client, is_lost)
        finally:
            with contextlib.suppress(nats.errors.Error, OSError):
                await client.close()

    async def _pull(self, client: NatsClient, is_lost: asyncio.Event) -> None:
        js = client.jetstream(timeout=5)
        config = api.ConsumerConfig(
            durable_name=self.name,
            ack_policy=api.AckPolicy.EXPLICIT,
            deliver_policy=api.DeliverPolicy.ALL,
            filter_subject="nalpaca.data.v0.tradeupdates.*",
        )
        await js.add_consumer(_DATA_STREAM, config)
        pull = await js.pull_subscribe_bind(self.name, _DATA_STREAM)
        self.is_listening = True
        while not is_lost.is_set():
            try:
                messages = await pull.fetch(50, timeout=1)
            except TimeoutError:
                await js.consumer_info(_DATA_STREAM, self.name)  # or it waits for what is not there any more
                continue
            for message in messages:
                update = tradesvc_pb2.TradeUpdate.FromString(message.data)
                assert (message.headers or {}).get("Nats-Msg-Id") == update.event_id
                self.take_order(update.event_id, update.order.id, update.event, update.order.client_order_id)
                await message.ack()

    async def _take_bar(self, message: Any) -> None:
        self.take_number(round(stream_pb2.Bar.FromString(message.data).open))


class RedisListener(Listener):
    """A subscriber of a channel."""

    def __init__(self, *args: Any, channel: str) -> None:
        super().__init__(*args)
        self._channel = channel

    async def _listen(self) -> None:
        client = redis.asyncio.Redis(port=self.at.redis)
        try:
            if self.kind == TRADES:
                await self._register(client)
            async with client.pubsub() as listening:
                await listening.subscribe(self._channel)
                while True:
                    message = await listening.get_message(timeout=1.0)
                    if message is None:
                        await client.ping()
                    elif message["type"] == "subscribe":
                        self.is_listening = True
                    elif message["type"] == "message":
                        self._take(json.loads(message["data"]))
        finally:
            await client.aclose()

    async def _register(self, client: redis.asyncio.Redis) -> None:
        wish = {"action": "register", "symbols": [SYMBOL], "client_id": self.name}
        while not await client.publish("broker:registration", json.dumps(wish)):
            await asyncio.sleep(0.1)  # the hub does not listen

    def _take(self, message: dict[str, Any]) -> None:
        if self.kind == TRADES:
            self.take_number(round(message["price"]))
        else:
            self.take_order(message["event_id"], message["order_id"], message["event"], message["client_order_id"])


class RedisLogListener(RedisListener):
    """A subscriber of prices that watches broker:logs too."""

    async def _listen(self) -> None:
        client = redis.asyncio.Redis(port=self.at.redis)
        try:
            await self._register(client)
            async with client.pubsub() as listening:
                await listening.subscribe(self._channel, "broker:logs")
                while True:
                    message = await listening.get_message(timeout=1.0)
                    if message is None:
                        await client.ping()
                    elif message["type"] == "subscribe":
                        self.is_listening = True
                    elif message["type"] == "message" and message["channel"] == b"broker:logs":
                        line = json.loads(message["data"])
                        if line["event"] == "upstream" and not line["feed"].startswith("orders"):
                            self.told.append(line["state"])
                        elif line["event"] == "start":
                            await self._register(client)
                    elif message["type"] == "message":
                        self._take(json.loads(message["data"]))
        finally:
            await client.aclose()


class RedisStreamListener(RedisListener):
    """A reader of a stream, which goes on behind its last entry."""

    def __init__(self, *args: Any, channel: str) -> None:
        super().__init__(*args, channel=channel)
        self.resumes = True
        self._last_id = "0-0"

    async def _listen(self) -> None:
        client = redis.asyncio.Redis(port=self.at.redis)
        try:
            if self.kind == TRADES:
                await self._register(client)
            registered_s = time.monotonic()
            self.is_listening = True
            while True:
                found = await client.xread({self._channel: self._last_id}, block=500)
                for _, entries in found or ():
                    for self._last_id, fields in entries:
                        self._take_entry(fields)
                if not found and not await client.exists(self._channel):
                    self._last_id = "0-0"  # a server that has forgotten it counts from the start
                if self.kind == TRADES and time.monotonic() - registered_s > 2.0:
                    registered_s = time.monotonic()
                    await self._register(client)
        finally:
            await client.aclose()

    def _take_entry(self, fields: dict[bytes, bytes]) -> None:
        item = json.loads(fields[b"item"])
        if self.kind == TRADES:
            self.take_number(item["i"])
        else:
            order = item["order"]
            self.take_order(fields[b"event_id"].decode(), order["id"], item["event"], order["client_order_id"])


class PubSubListener(Listener):
    """A subscription of its own, pulled and acknowledged."""

    def __init__(self, *args: Any, topic: str) -> None:
        super().__init__(*args, resumes=True)
        self._topic = f"projects/{PROJECT}/topics/{topic}"
        self._path = f"projects/{PROJECT}/subscriptions/{self.name}"
        self.gaps = 0  # in seq, of one epoch
        self._seq: tuple[str, int] | None = None
        self.subscriptions = 0

    async def _listen(self) -> None:
        channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{self.at.pubsub}",
            options=(("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 50)),
        )
        client = SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel))
        try:
            await self._subscribe(client)
            self.is_listening = True
            while True:
                request = {"subscription": self._path, "max_messages": 500}
                try:
                    answer = await client.pull(request=request, retry=None, timeout=2.0)
                except GoogleAPICallError as error:
                    if getattr(error, "code", None) == 504:
                        continue
                    raise
                found = {int(item.message.attributes["seq"]): item.message for item in answer.received_messages}
                for seq in sorted(found):
                    self._take(found[seq], seq)
                ids = [item.ack_id for item in answer.received_messages]
                if ids:
                    await client.acknowledge(
                        request={"subscription": self._path, "ack_ids": ids}, retry=None, timeout=5.0
                    )
        finally:
            await channel.close()

    async def _subscribe(self, client: SubscriberAsyncClient) -> None:
        try:
            request = {"name": self._path, "topic": self._topic}
            await client.create_subscription(request=request, retry=None, timeout=5.0)
            self.subscriptions += 1
            self._seq = None
        except GoogleAPICallError as error:
            if getattr(error, "code", None) != 409:  # it is there
                raise

    def _take(self, message: Any, seq: int) -> None:
        attributes = message.attributes
        if self._seq is not None and self._seq[0] == attributes["epoch"]:
            self.gaps += max(0, seq - self._seq[1] - 1)
            self._seq = (self._seq[0], max(seq, self._seq[1]))
        else:
            self._seq = (attributes["epoch"], seq)
        body = json.loads(message.data)
        if self.kind == BARS:
            if "open" in body:
                self.take_number(round(float(body["open"])))
            return
        data = body["data"]
        order = data["order"]
        self.take_order(attributes["event_id"], order["id"], data["event"], order["client_order_id"])


def build_fleet(at: Addresses, account_id: str) -> list[Listener]:
    """Return ten listeners for each transport."""
    order_channel, order_stream = f"order:{account_id}", f"stream:orders.paper:orders:{account_id}"
    price, trades = f"price:{SYMBOL}", f"stream:stocks:trades:{SYMBOL}"
    ws = WebSocketListener
    return [
        ws("ws-alpaca-1", ORDERS, at, path="/stream"),
        ws("ws-alpaca-2", ORDERS, at, path="/stream"),
        ws("ws-proxy", ORDERS, at, path="/trade-updates-paper"),
        ws("ws-hub-orders-1", ORDERS, at, path="/trade-updates-paper", hub=True),
        ws("ws-hub-orders-2", ORDERS, at, path="/paper", hub=True),
        ws("ws-json", TRADES, at, path="/v2/iex"),
        ws("ws-msgpack", TRADES, at, path="/v2/iex", binary=True),
        ws("ws-bars", BARS, at, path="/v2/iex"),
        ws("ws-hub-json", TRADES, at, path="/v2/iex", hub=True),
        ws("ws-hub-msgpack", TRADES, at, path="/v2/iex", hub=True, binary=True),
        *(GrpcListener(f"grpc-orders-{number}", ORDERS, at) for number in range(5)),
        *(GrpcListener(f"grpc-trades-{number}", TRADES, at) for number in range(3)),
        *(GrpcListener(f"grpc-bars-{number}", BARS, at) for number in range(2)),
        *(NatsListener(f"nats-orders-{number}", ORDERS, at, resumes=True) for number in range(7)),
        *(NatsListener(f"nats-bars-{number}", BARS, at) for number in range(3)),
        *(RedisListener(f"redis-orders-{number}", ORDERS, at, channel=order_channel) for number in range(3)),
        *(
            RedisStreamListener(f"redis-stream-orders-{number}", ORDERS, at, channel=order_stream)
            for number in range(3)
        ),
        RedisListener("redis-prices", TRADES, at, channel=price),
        RedisLogListener("redis-prices-and-logs", TRADES, at, channel=price),
        *(RedisStreamListener(f"redis-log-trades-{number}", TRADES, at, channel=trades) for number in range(2)),
        *(PubSubListener(f"pubsub-orders-{number}", ORDERS, at, topic="order-updates") for number in range(5)),
        *(PubSubListener(f"pubsub-bars-{number}", BARS, at, topic="market-data") for number in range(5)),
    ]


class EventLoop:
    """An event loop on a thread of its own."""

    def __init__(self, name: str) -> None:
        self.failures: list[BaseException] = []
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name)
        self._thread.start()

    def start(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Run in the background; an error ends up in `failures`."""
        self._loop.call_soon_threadsafe(self._start, work)

    def run(self, work: Awaitable[Any], timeout_s: float = 60.0) -> Any:
        """Run, and return the result."""

        async def wait() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result(timeout_s)

    def close(self) -> None:
        """End everything."""

        async def cancel() -> None:
            while self._tasks:  # more than once: a library may take the cancellation for its own
                for task in self._tasks:
                    task.cancel()
                await asyncio.wait(self._tasks, timeout=0.5)

        self.run(cancel())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def _start(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        task = self._loop.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(error)
