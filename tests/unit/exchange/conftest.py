"""A running exchange, and plain clients of its HTTP and WebSocket sides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
import pytest

from dry_work.clock import MINUTE_NS
from dry_work.exchange.server import ExchangeServer
from dry_work.feeds.recorded import Recording
from dry_work.market.messages import Bar
from dry_work.wire.alpaca_stream import (
    StreamCodec,
    StreamItem,
    StreamWatermark,
    build_auth,
    build_subscription,
    encode_message,
    parse_frame,
)

START_NS = 1_718_112_600_000_000_000  # 2024-06-11T13:30:00Z, the open in New York
DEADLINE_S = 60.0


class DataClient:
    """A session of the market-data WebSocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, codec: StreamCodec) -> None:
        self.socket = socket
        self.codec = codec

    async def receive(self) -> list[StreamItem]:
        """Return the items of the next frame; fails when the connection is closed or nothing comes."""
        frame = await self.socket.receive(DEADLINE_S)
        kind = aiohttp.WSMsgType.BINARY if self.codec is StreamCodec.MSGPACK else aiohttp.WSMsgType.TEXT
        assert frame.type == kind, frame
        return parse_frame(frame.data, recv_ns=0)

    async def receive_slice(self) -> tuple[list[Bar], StreamWatermark]:
        """Return the bars up to the next watermark, and the watermark."""
        bars: list[Bar] = []
        while True:
            for item in await self.receive():
                if isinstance(item, StreamWatermark):
                    return bars, item
                assert isinstance(item, Bar), item
                bars.append(item)

    async def receive_close(self) -> None:
        """Wait for the server to close the connection."""
        frame = await self.socket.receive(DEADLINE_S)
        assert frame.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED), frame

    async def send(self, message: dict[str, Any]) -> None:
        data = encode_message(message, self.codec)
        await (self.socket.send_bytes(data) if isinstance(data, bytes) else self.socket.send_str(data))

    async def authenticate(self, key_id: str = "key") -> None:
        await self.receive()
        await self.send(build_auth(key_id, "secret"))
        await self.receive()

    async def subscribe(self, symbols: Sequence[str]) -> None:
        await self.send(build_subscription("subscribe", {"bars": symbols, "watermarks": ["*"]}))
        await self.receive()


class Client:
    """HTTP and WebSocket against one exchange, with one key."""

    def __init__(self, session: aiohttp.ClientSession, server: ExchangeServer, key_id: str) -> None:
        self.session = session
        self.server = server
        self.headers = {"APCA-API-KEY-ID": key_id, "APCA-API-SECRET-KEY": "secret"}

    async def call(self, method: str, path: str, body: object = None, **options: Any) -> tuple[int, Any]:
        """Return status and decoded body (None when there is none) of a request with credentials."""
        options.setdefault("headers", self.headers)
        if body is not None:
            options["json"] = body
        async with self.session.request(method, self.server.url + path, **options) as answer:
            return answer.status, await answer.json() if answer.content_type == "application/json" else None

    async def register(self, consumer: str = "a", symbols: Sequence[str] = ("SPY",)) -> tuple[int, Any]:
        return await self.call("POST", "/dry-work/v1/consumers", {"consumer": consumer, "symbols": list(symbols)})

    async def report(self, number: int, *, consumer: str = "a", orders: int = 0) -> tuple[int, Any]:
        body = {"consumer": consumer, "orders": orders}
        return await self.call("POST", f"/dry-work/v1/slices/{number}/done", body)

    async def submit(self, **fields: object) -> tuple[int, Any]:
        order = {"symbol": "SPY", "side": "buy", "type": "market", "time_in_force": "gtc", "qty": "1"}
        return await self.call("POST", "/v2/orders", {**order, **fields})

    async def wait_for(self, **facts: object) -> dict[str, Any]:
        """Wait until the session tells all these facts."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                _, session = await self.call("GET", "/dry-work/v1/session")
                if facts.items() <= session.items():
                    return dict(session)
                await asyncio.sleep(0.005)

    @asynccontextmanager
    async def data(self, path: str = "/v2/iex", codec: StreamCodec = StreamCodec.JSON) -> AsyncIterator[DataClient]:
        headers = {"Content-Type": codec.value}
        async with self.session.ws_connect(self.server.stream_url + path, headers=headers) as socket:
            yield DataClient(socket, codec)

    @asynccontextmanager
    async def reader(self, symbols: Sequence[str] = ("SPY",)) -> AsyncIterator[DataClient]:
        """A stock session that takes bars and watermarks."""
        async with self.data() as data:
            await data.authenticate(self.headers["APCA-API-KEY-ID"])
            await data.subscribe(symbols)
            yield data


def build_recording(counts: dict[str, int]) -> Recording:
    """Return a recording of so many minutes by symbol; prices are 100, 101, ..."""
    columns = {}
    for symbol, count in counts.items():
        prices = 100.0 + np.arange(count)
        columns[symbol] = {
            "ts_event_ns": START_NS + MINUTE_NS * np.arange(count),
            "open": prices,
            "high": prices + 0.5,
            "low": prices - 0.5,
            "close": prices + 0.25,
            "volume": np.full(count, 10.0),
        }
    return Recording(columns)


@pytest.fixture
def build() -> Callable[[dict[str, int]], Recording]:
    """Make recordings of so many minutes by symbol."""
    return build_recording


@pytest.fixture
def recording() -> Recording:
    return build_recording({"SPY": 5, "IBM": 4, "BTC/USD": 5})


@pytest.fixture
def run_exchange(recording: Recording) -> Iterator[Callable[..., ExchangeServer]]:
    """Start exchanges, by default in lock-step on the small recording; all are stopped at the end."""
    servers: list[ExchangeServer] = []

    def run(played: Recording = recording, **options: Any) -> ExchangeServer:
        server = ExchangeServer(played, **options)
        servers.append(server)
        server.start()
        return server

    yield run
    for server in servers:
        server.stop()


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Client]]:
    """Make clients of an exchange."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(DEADLINE_S)) as session:
        yield lambda server, key_id="key": Client(session, server, key_id)
