"""A venue that does what a test says: real HTTP and a real WebSocket on loopback, in the words of the wire."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import orjson
from aiohttp import WSMsgType, web
from msgspec.structs import replace

from dry_work.orders.model import (
    AccountSnapshot,
    OrderClass,
    OrderRequest,
    OrderType,
    Replacement,
    Side,
    TradeEvent,
    VenueOrder,
    VenuePosition,
)
from dry_work.wire.alpaca_orders import encode_order, parse_order_request, parse_replacement
from dry_work.wire.alpaca_rest import (
    encode_account,
    encode_error,
    encode_position,
    encode_trade_event,
    parse_json,
)
from dry_work.wire.pubsub import encode_time

NOW_NS = 1_718_112_600_000_000_000  # 2024-06-11T13:30Z
MINUTE_NS = 60_000_000_000


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.005)


class ScriptedVenue:
    """Answers submits with `pending_new` unless `on_submit` says otherwise; events go out when a test sends them.

    `on_submit` takes the request and its number among the submits from 1 and returns None (go on), an answer
    (status, body), or "drop", "take_and_drop" or "hang". The legs of a group have the client order ids `<name>~profit`
    and `<name>~loss`. `on_replace` takes a change and its number and returns the same, but for "hang".
    """

    def __init__(self) -> None:
        self.cash = Decimal(100_000)
        self.equity: Decimal | None = None  # without one it is the cash
        self.positions: list[VenuePosition] = []
        self.orders: dict[str, VenueOrder] = {}
        self.requests: list[tuple[str, str]] = []  # (method, path) of everything
        self.submits: list[OrderRequest] = []
        self.reports: list[tuple[int, dict[str, Any]]] = []
        self.streams = 0
        self.credentials_are_good = True
        self.listens = True
        self.fail_account: tuple[int, dict[str, Any]] | None = None
        self.fail_cancel: tuple[int, dict[str, Any]] | None = None
        self.on_submit: Callable[[OrderRequest, int], Any] = lambda request, number: None
        self.on_replace: Callable[[Replacement, int], Any] = lambda change, number: None
        self.replacements: list[Replacement] = []
        self.tells_legs = True  # in the answer to a submit
        self.assets: dict[str, dict[str, Any]] = {}
        self.hidden: set[str] = set()  # client order ids that are not listed among the open orders
        self.bodies: list[bytes] = []
        self.strange_orders: list[dict[str, Any]] = []  # listed among the open orders as they are
        self.executions: list[dict[str, Any]] | None = None  # None: they are not listed
        self._events = 0
        self._sockets: set[web.WebSocketResponse] = set()
        self._started = threading.Event()
        self.port = 0

    # For tests, from their thread

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="scripted venue", daemon=True)
        self._thread.start()
        assert self._started.wait(60)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        assert not self._thread.is_alive()

    def count(self, method: str, path: str) -> int:
        return sum(1 for found in tuple(self.requests) if found[0] == method and found[1].startswith(path))

    def wait_submit(self, number: int) -> OrderRequest:
        wait_until(lambda: len(self.submits) >= number, f"submit {number}")
        return self.submits[number - 1]

    def update(self, name: str, **changes: Any) -> VenueOrder:
        """Change an order without telling of it."""
        self.orders[name] = replace(self.orders[name], **changes)
        return self.orders[name]

    def build_event(
        self, event: str, request: OrderRequest | VenueOrder, *, qty: str | None = None, price: str | None = None,
        status: str = "", code: int | None = None, message: str = "", execution_id: str = "",
        position_qty: str | None = None,
    ) -> TradeEvent:  # fmt: skip
        """Make an event, and the order as it is after it."""
        self._events += 1
        order = self.orders.get(request.client_order_id)
        if order is None:
            assert isinstance(request, OrderRequest)
            order = self._new_order(request)
        if qty is not None and price is not None:
            total = order.filled_qty + Decimal(qty)
            value = order.filled_qty * (order.filled_avg_price or 0) + Decimal(qty) * Decimal(price)
            order = replace(order, filled_qty=total, filled_avg_price=value / total, filled_ns=NOW_NS + self._events)
        names = {"fill": "filled", "partial_fill": "partially_filled"}
        order = replace(order, status=status or names.get(event, event), reject_reason=message)
        self.orders[request.client_order_id] = order
        return TradeEvent(
            event=event,
            event_id=f"E{self._events:08d}",
            ts_event_ns=NOW_NS + self._events * MINUTE_NS,
            order=order,
            execution_id=execution_id or (f"{self._events:08d}-0000-4000-8000-000000000000" if qty else ""),
            price=None if price is None else Decimal(price),
            qty=None if qty is None else Decimal(qty),
            position_qty=None if position_qty is None else Decimal(position_qty),
            code=code,
            message=message,
        )

    def send(self, event: TradeEvent) -> str:
        """Send an event to all streams; return its id."""
        frame = orjson.dumps({"stream": "trade_updates", "data": encode_trade_event(event)})
        self.send_frame(frame)
        return event.event_id

    def send_frame(self, frame: bytes) -> None:
        asyncio.run_coroutine_threadsafe(self._send(frame), self._loop).result(60)

    def drop_streams(self) -> None:
        """Close all streams."""
        asyncio.run_coroutine_threadsafe(self._drop(), self._loop).result(60)

    # The server

    async def tell(self, event: TradeEvent) -> None:
        """Send an event from the server's own thread."""
        await self._send(orjson.dumps({"stream": "trade_updates", "data": encode_trade_event(event)}))

    async def _send(self, frame: bytes) -> None:
        for socket in tuple(self._sockets):
            await socket.send_bytes(frame)

    async def _drop(self) -> None:
        for socket in tuple(self._sockets):
            await socket.close()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(middlewares=[self._note])
        router = app.router
        router.add_get("/v2/account", self._account)
        router.add_get("/v2/positions", self._positions)
        router.add_get("/v2/clock", self._clock)
        router.add_get("/v2/orders", self._open_orders)
        router.add_get("/v2/account/activities/FILL", self._activities)
        router.add_post("/v2/orders", self._submit)
        router.add_get("/v2/orders:by_client_order_id", self._by_client_id)
        router.add_get("/v2/orders/{id}", self._by_id)
        router.add_patch("/v2/orders/{id}", self._replace)
        router.add_get("/v2/assets/{symbol:.*}", self._asset)
        router.add_delete("/v2/orders/{id}", self._cancel)
        router.add_post("/dry-work/v1/slices/{number}/done", self._report)
        router.add_get("/stream", self._stream)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        self._started.set()
        await self._stop.wait()
        await self._drop()
        await runner.cleanup()

    @web.middleware
    async def _note(self, request: web.Request, handler: Any) -> Any:
        self.requests.append((request.method, request.path))
        if request.path != "/stream" and not self.credentials_are_good:
            return web.json_response(encode_error(40110000, "request is not authorized"), status=401)
        return await handler(request)

    async def _account(self, request: web.Request) -> web.Response:
        if self.fail_account is not None:
            return web.json_response(self.fail_account[1], status=self.fail_account[0])
        equity = self.cash if self.equity is None else self.equity
        snapshot = AccountSnapshot(id="a", account_number="1", cash=self.cash, equity=equity, buying_power=self.cash)
        return web.json_response(encode_account(snapshot, created_ns=NOW_NS))

    async def _positions(self, request: web.Request) -> web.Response:
        return web.json_response([encode_position(held, current_price=held.avg_entry_price) for held in self.positions])

    async def _clock(self, request: web.Request) -> web.Response:
        return web.json_response({"timestamp": encode_time(NOW_NS), "is_open": True})

    async def _open_orders(self, request: web.Request) -> web.Response:
        done = ("filled", "canceled", "expired", "rejected", "replaced")
        found = [order for name, order in self.orders.items() if order.status not in done and name not in self.hidden]
        if request.query.get("status") == "all":
            symbols = request.query.get("symbols", "").split(",")
            found = [order for order in self.orders.values() if order.symbol.replace("/", "") in symbols]
        return web.json_response([encode_order(order) for order in found] + self.strange_orders)

    async def _activities(self, request: web.Request) -> web.Response:
        if self.executions is None:
            return web.json_response(encode_error(40410000, "not found"), status=404)
        return web.json_response(self.executions)

    async def _submit(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.bodies.append(body)
        wanted = parse_order_request(parse_json(body))
        self.submits.append(wanted)
        answer = self.on_submit(wanted, len(self.submits))
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, tuple):
            return web.json_response(answer[1], status=answer[0])
        if answer in ("drop", "take_and_drop", "hang"):
            if answer == "take_and_drop":
                self._take(wanted)
            if answer == "hang":
                await asyncio.sleep(30)
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if wanted.client_order_id in self.orders and self._is_taken(wanted.client_order_id):
            return web.json_response(encode_error(40010001, "client_order_id must be unique"), status=422)
        order = self._take(wanted)
        return web.json_response(encode_order(self._nest(order) if self.tells_legs else order))

    def _is_taken(self, name: str) -> bool:
        return self.orders[name].id.startswith("taken")

    def _new_order(self, request: OrderRequest) -> VenueOrder:
        return VenueOrder(
            id=f"v-{request.client_order_id}", client_order_id=request.client_order_id, symbol=request.symbol,
            side=request.side, type=request.type, time_in_force=request.time_in_force, status="pending_new",
            qty=request.qty, limit_price=request.limit_price, stop_price=request.stop_price, notional=request.notional,
            trail_price=request.trail_price, trail_percent=request.trail_percent, order_class=request.order_class,
            created_ns=NOW_NS, updated_ns=NOW_NS, submitted_ns=NOW_NS,
        )  # fmt: skip

    def leg(self, request: OrderRequest | VenueOrder, name: str) -> VenueOrder:
        """Return the leg `profit` or `loss` of a group."""
        return self.orders[f"{request.client_order_id}~{name}"]

    def _nest(self, order: VenueOrder) -> VenueOrder:
        legs = [leg for name, leg in self.orders.items() if name.startswith(f"{order.client_order_id}~")]
        return replace(order, legs=tuple(legs))

    def _add_legs(self, request: OrderRequest) -> None:
        is_pair = request.order_class is OrderClass.OCO
        opposite = Side.SELL if request.side is Side.BUY else Side.BUY
        parts = {"profit": (OrderType.LIMIT, request.take_profit, None)} if request.take_profit and not is_pair else {}
        if request.stop_loss is not None:
            loss = request.stop_loss
            kind = OrderType.STOP if loss.limit_price is None else OrderType.STOP_LIMIT
            parts["loss"] = (kind, loss.limit_price, loss.stop_price)
        for part, (kind, limit, stop) in parts.items():
            name = f"{request.client_order_id}~{part}"
            self.orders[name] = VenueOrder(
                id=f"leg-{name}", client_order_id=name, symbol=request.symbol,
                side=request.side if is_pair else opposite, type=kind, time_in_force=request.time_in_force,
                status="held", qty=request.qty, limit_price=limit, stop_price=stop, order_class=request.order_class,
                created_ns=NOW_NS, updated_ns=NOW_NS, submitted_ns=NOW_NS,
            )  # fmt: skip

    def _take(self, request: OrderRequest) -> VenueOrder:
        order = self.orders.get(request.client_order_id) or self._new_order(request)
        self.orders[request.client_order_id] = order = replace(order, id=f"taken-{request.client_order_id}")
        if request.order_class is OrderClass.OCO:
            self.orders[request.client_order_id] = order = replace(order, limit_price=request.take_profit)
        if f"{request.client_order_id}~loss" not in self.orders:
            self._add_legs(request)
        return order

    async def _by_client_id(self, request: web.Request) -> web.Response:
        order = self.orders.get(request.query["client_order_id"])
        if order is None or not order.id.startswith("taken"):
            return web.json_response(encode_error(40410000, "order not found"), status=404)
        return web.json_response(encode_order(order))

    async def _by_id(self, request: web.Request) -> web.Response:
        for order in self.orders.values():
            if order.id == request.match_info["id"]:
                return web.json_response(encode_order(self._nest(order)))
        return web.json_response(encode_error(40410000, "order not found"), status=404)

    def take_replacement(self, order: VenueOrder, change: Replacement) -> VenueOrder:
        """Make the order that is to take the place of another, which is not told yet."""
        given = {
            name: getattr(change, name)
            for name in ("qty", "limit_price", "stop_price")
            if getattr(change, name) is not None
        }
        new = replace(
            order, id=f"taken-{change.client_order_id}", client_order_id=change.client_order_id, replaces=order.id,
            status="pending_new", filled_qty=Decimal(0), filled_avg_price=None, filled_ns=None, **given,
        )  # fmt: skip
        self.orders[new.client_order_id] = new
        return new

    def replaced(self, order: VenueOrder, new: VenueOrder) -> TradeEvent:
        """Make the event of the old order that the new one has taken its place."""
        self.update(order.client_order_id, replaced_by=new.id)
        return self.build_event("replaced", order)

    async def _replace(self, request: web.Request) -> web.StreamResponse:
        [old] = [order for order in self.orders.values() if order.id == request.match_info["id"]]
        change = parse_replacement(parse_json(await request.read()))
        self.replacements.append(change)
        answer = self.on_replace(change, len(self.replacements))
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, tuple):
            return web.json_response(answer[1], status=answer[0])
        if change.client_order_id in self.orders:
            return web.json_response(encode_error(40010001, "client_order_id must be unique"), status=422)
        if answer != "drop":
            new = self.take_replacement(old, change)
        if answer in ("drop", "take_and_drop"):
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        return web.json_response(encode_order(new))

    async def _asset(self, request: web.Request) -> web.Response:
        asset = self.assets.get(request.match_info["symbol"])
        if asset is None:
            return web.json_response(encode_error(40410000, "asset not found"), status=404)
        return web.json_response(asset)

    async def _cancel(self, request: web.Request) -> web.Response:
        if self.fail_cancel is not None:
            return web.json_response(self.fail_cancel[1], status=self.fail_cancel[0])
        return web.Response(status=204)

    async def _report(self, request: web.Request) -> web.Response:
        self.reports.append((int(request.match_info["number"]), await request.json()))
        return web.json_response({})

    async def _stream(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        try:
            async for message in socket:
                if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                    break
                said = orjson.loads(message.data)
                if said["action"] == "authenticate":
                    status = "authorized" if self.credentials_are_good else "unauthorized"
                    await socket.send_json(
                        {"stream": "authorization", "data": {"status": status, "action": "authenticate"}}
                    )
                elif self.listens:
                    await socket.send_json({"stream": "listening", "data": {"streams": ["trade_updates"]}})
                    self.streams += 1
                    self._sockets.add(socket)
        finally:
            self._sockets.discard(socket)
        return socket


def foreign_request(symbol: str, side: Side = Side.BUY) -> OrderRequest:
    """Return an order that somebody else has made with the account."""
    return parse_order_request(
        {"client_order_id": "manual-1", "symbol": symbol, "side": side.value, "type": "market", "time_in_force": "day",
         "qty": "1"}
    )  # fmt: skip
