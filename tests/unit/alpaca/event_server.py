"""A server of trade events that does what a test says: real HTTP on loopback."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from aiohttp import web

from dry_work.orders.model import OrderRequest, OrderType, Side, TimeInForce, TradeEvent, VenueOrder
from dry_work.wire.alpaca_rest import encode_trade_event

ACCOUNT, OTHER = "0f0ee2ab-bd0d-4b7e-8bb7-0f5e4ae4c4a8", "11111111-bd0d-4b7e-8bb7-0f5e4ae4c4a8"
DEADLINE_S = 60.0


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not in time: {what}"
        time.sleep(0.005)


def build_ulid(time_ms: int, count: int) -> str:
    return f"{time_ms:010d}{count:016d}"


def build_data(event_id: str | int, *, account_id: str = ACCOUNT, event: str = "new") -> str:
    """Return the data of an event of an order to buy."""
    request = OrderRequest(
        client_order_id="c", symbol="SPY", side=Side.BUY, type=OrderType.MARKET, time_in_force=TimeInForce.DAY,
        qty=Decimal(1),
    )  # fmt: skip
    order = VenueOrder(
        id="o", client_order_id="c", symbol="SPY", side=request.side, type=request.type, qty=request.qty,
        time_in_force=request.time_in_force, status=event,
    )  # fmt: skip
    body = encode_trade_event(TradeEvent(event=event, event_id="", ts_event_ns=1_718_112_600_000_000_000, order=order))
    return json.dumps({**body, "event_id": event_id, "account_id": account_id})


class EventServer:
    """Keeps every stream open until the test ends it; `refusals` are answered first, in their order."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], str]] = []  # path, query, credentials
        self.refusals: list[tuple[int, dict[str, str]]] = []
        self.refuse_path: dict[str, int] = {}
        self.content_type = "text/event-stream"
        self.greeting = b":heartbeat\n\n"
        self._streams: list[tuple[web.StreamResponse, asyncio.Event]] = []
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="event server", daemon=True)
        self._thread.start()
        assert self._started.wait(DEADLINE_S)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def send(self, *data: str) -> None:
        self.send_bytes(b"".join(f"data: {text}\n\n".encode() for text in data))

    def send_bytes(self, content: bytes) -> None:
        async def write() -> None:
            await self._streams[-1][0].write(content)

        asyncio.run_coroutine_threadsafe(write(), self._loop).result(DEADLINE_S)

    def end_stream(self) -> None:
        self._loop.call_soon_threadsafe(self._streams[-1][1].set)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_get("/{version}/events/trades", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._started.set()
        await self._stop.wait()
        for _, ended in self._streams:
            ended.set()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        credentials = base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")).decode()
        self.requests.append((request.path, dict(request.query), credentials))
        if request.path in self.refuse_path:
            return web.Response(status=self.refuse_path[request.path], text="no")
        if self.refusals:
            status, headers = self.refusals.pop(0)
            return web.Response(status=status, headers=headers, text='{"message":"no"}')
        response = web.StreamResponse(headers={"Content-Type": self.content_type})
        await response.prepare(request)
        await response.write(self.greeting)
        ended = asyncio.Event()
        self._streams.append((response, ended))
        await ended.wait()
        return response
