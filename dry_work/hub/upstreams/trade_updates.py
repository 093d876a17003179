"""One account's order updates, kept up for as long as the hub runs. Event-loop only.

After a connection was lost, updates that arrive wait until the gap before them is filled: from the venue's history of
events where it has one behind our last event, otherwise from its orders and executions, compared with what was told.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import random
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import orjson
import structlog
from websockets.asyncio.client import ClientConnection

from dry_work.backoff import Backoff
from dry_work.clock import SECOND_NS, Clock
from dry_work.errors import BrokerError, CodecError
from dry_work.hub.accounts import HubAccount
from dry_work.hub.bus import Bus
from dry_work.hub.core import ErrorKind
from dry_work.hub.events import ORDERS
from dry_work.hub.order_events import MADE, OrderEvent, OrderLedger, OrderMemory
from dry_work.hub.upstreams.connection import FeedStatus, SessionEndError, UpstreamConnection, UpstreamTiming
from dry_work.hub.upstreams.event_history import read_history
from dry_work.storage import write_atomically
from dry_work.wire.alpaca_rest import parse_json
from dry_work.wire.pubsub import parse_time

STREAM = "trade_updates"
KEPT_EVERY_S = 1.0
OVERLAP_NS = 60 * SECOND_NS  # a comparison looks so much further back: clocks differ
PAGE = 500
ACTIVITY_PAGE = 100

_log = structlog.get_logger(__name__)


class TradeUpdatesConnection(UpstreamConnection):
    """The `trade_updates` of one account.

    Args:
        account: whose updates; also asked for orders and executions.
        bus: takes the updates.
        memory: file that keeps over a restart what was told; None: nothing is kept.
        on_change: called after every change of state.
    """

    def __init__(
        self,
        account: HubAccount,
        bus: Bus,
        *,
        clock: Clock,
        rng: random.Random,
        memory: Path | None = None,
        timing: UpstreamTiming | None = None,
        on_change: Callable[[FeedStatus], None] | None = None,
    ) -> None:
        access = account.access
        super().__init__(
            feed=account.feed, url=access.stream_url, clock=clock, rng=rng, timing=timing, on_change=on_change
        )
        self._account = account
        self._bus = bus
        self._memory = memory
        self.ledger = OrderLedger(_read_memory(memory))
        self._kept = b""
        self._waiting: list[tuple[Mapping[str, Any], bytes]] | None = None  # until the gap before them is filled
        self._has_history = True  # until the venue has refused it
        self.gaps = 0  # connections after which events were missing
        self.found = 0  # events that filled them

    @property
    def is_wanted(self) -> bool:
        return True

    def status(self) -> FeedStatus:
        return FeedStatus(
            feed=self._feed,
            state=self._state,
            wanted=1,
            subscribed=int(self._state.value == "connected"),
            attempts=self._attempts,
            reconnects=max(0, self._sessions - 1),
            connected_ns=self._connected_ns,
            items=dict(self._items),
            unknown=dict(self._unknown),
            malformed=dict(self._malformed),
            errors=dict(self._errors),
            error=self._error,
        )

    async def run(self) -> None:
        keeper = asyncio.create_task(self._keep_memory(), name=f"hub-{self._feed}-memory")
        try:
            await super().run()
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            self._write_memory()

    # --- one session

    async def _authenticate(self, socket: ClientConnection) -> None:
        access = self._account.access
        credentials = {"key_id": access.api_key, "secret_key": access.secret_key}
        if self._waiting is None:
            self._waiting = []
        await socket.send(json.dumps({"action": "authenticate", "data": credentials}))
        answer = await self._answer(socket, "authorization")
        if answer.get("status") != "authorized":
            raise SessionEndError("the stream refused the credentials", ErrorKind.FATAL)
        await socket.send(json.dumps({"action": "listen", "data": {"streams": [STREAM]}}))
        answer = await self._answer(socket, "listening")
        if STREAM not in (answer.get("streams") or ()):
            raise SessionEndError("the venue does not offer trade_updates on this stream", ErrorKind.FATAL)

    async def _answer(self, socket: ClientConnection, stream: str) -> Mapping[str, Any]:
        while True:
            message = self._take_frame(await self._receive(socket))
            if message is not None and message.get("stream") == stream and isinstance(message.get("data"), dict):
                data: dict[str, Any] = message["data"]
                return data

    def _begin_session(self) -> None:
        pass  # the updates wait until `_catch_up` is done

    def _end_session(self) -> None:
        pass  # what still waits does so until a gap could be filled, in a later session

    def _jobs(self, socket: ClientConnection) -> list[Coroutine[Any, Any, NoReturn]]:
        return [self._read(socket), self._catch_up()]

    async def _read(self, socket: ClientConnection) -> NoReturn:
        while True:
            self._take_frame(await self._receive(socket))

    def _take_frame(self, frame: bytes) -> Mapping[str, Any] | None:
        """Take an update; return any other message."""
        try:
            message = parse_json(frame)
        except CodecError as error:
            self._count_malformed("frame", error.reason.partition(":")[0])
            return None
        if isinstance(message, list):  # an error in the dialect of market data
            for item in message:
                if isinstance(item, dict) and item.get("T") == "error":
                    self._note_error(int(item.get("code") or 0), str(item.get("msg") or ""))
            return None
        if not isinstance(message, dict):
            self._count_malformed("frame", "no object")
            return None
        if message.get("action") == "error":
            raise SessionEndError(_describe_refusal(message), ErrorKind.LOST)
        if message.get("stream") != STREAM:
            return message
        data = message.get("data")
        if not isinstance(data, dict):
            self._count_malformed("update", "no data")
        elif self._waiting is not None:
            self._waiting.append((data, frame))
        else:
            self._take(data, frame)
        return None

    def _take(self, data: Mapping[str, Any], raw: bytes = b"") -> None:
        try:
            event = self.ledger.take(data)
        except CodecError as error:
            self._count_malformed("update", error.reason)
            return
        if event is not None:
            self._items[str(data["event"])] += 1
            self._publish(event, raw)

    def _publish(self, event: OrderEvent, raw: bytes = b"") -> None:
        self._bus.publish(
            self._feed,
            ORDERS,
            event.symbol,
            event.data,
            ts_recv_ns=self._clock.time_ns(),
            event_id=event.event_id,
            raw=raw or orjson.dumps({"stream": STREAM, "data": event.data}),
        )

    # --- what a lost connection swallowed

    async def _catch_up(self) -> NoReturn:
        backoff = Backoff(self._rng)
        while True:
            try:
                await self._fill_gap()
                break
            except BrokerError as error:
                wait_s = backoff.next_wait_s(self._clock.monotonic())
                _log.warning(
                    "order updates wait: what came before cannot be fetched",
                    feed=self._feed,
                    error=str(error),
                    retry_in_s=round(wait_s, 2),
                )
                await asyncio.sleep(wait_s)
        waiting, self._waiting = self._waiting or [], None
        for data, raw in waiting:
            self._take(data, raw)
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def _fill_gap(self) -> None:
        if not self._account.account_id:
            await self._account.identify()
        ledger = self.ledger
        if ledger.is_new:
            # The venue's clock, not ours: it is compared with times of the venue's orders.
            clock = await self._account.call("GET", "/clock")
            ledger.last_ns = _parse_clock(clock) or self._clock.time_ns()
            ledger.seed(await self._list_orders({"status": "open"}))
            return
        if self._has_history and ledger.last_id and not ledger.last_id.startswith(MADE):
            history = await read_history(self._account.access, ledger.last_id)
            self._has_history = history is not None
            before = ledger.told
            for data in history or ():
                self._take(data)
            self._note_found(ledger.told - before)
            if history is not None:
                return
        since_ns = max(0, ledger.last_ns - OVERLAP_NS)
        since = dt.datetime.fromtimestamp(since_ns // SECOND_NS, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        orders = {str(order.get("id")): order for order in await self._list_orders({"status": "open"})}
        for order in await self._list_orders({"status": "closed", "after": since}):
            orders.setdefault(str(order.get("id")), order)
        for order_id in ledger.open_ids - orders.keys():
            # It was made before the time in question, and has ended since.
            answer = await self._account.call("GET", f"/orders/{order_id}")
            if isinstance(answer, dict):
                orders[order_id] = answer
        found = ledger.compare(orders.values(), await self._list_executions(since))
        self._note_found(len(found))
        for event in found:
            self._items[str(event.data["event"])] += 1
            self._publish(event)

    def _note_found(self, events: int) -> None:
        if events:
            self.gaps += 1
            self.found += events
            _log.warning("order updates were missed and found", feed=self._feed, events=events)

    async def _list_orders(self, query: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return all orders that match, page by page, newest first."""
        found: dict[str, dict[str, Any]] = {}
        until: str | None = None
        while True:
            page = await self._account.call(
                "GET", "/orders", {**query, "limit": PAGE, **({"until": until} if until else {})}
            )
            rows = [row for row in page if isinstance(row, dict)] if isinstance(page, list) else []
            fresh = [row for row in rows if str(row.get("id")) not in found]
            found.update((str(row.get("id")), row) for row in fresh)
            if len(rows) < PAGE or not fresh:
                return list(found.values())
            until = str(rows[-1].get("submitted_at"))

    async def _list_executions(self, since: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            query = {"after": since, "direction": "asc", "page_size": ACTIVITY_PAGE}
            page = await self._account.call(
                "GET", "/account/activities/FILL", {**query, **({"page_token": token} if token else {})}
            )
            rows = [row for row in page if isinstance(row, dict)] if isinstance(page, list) else []
            found += rows
            if len(rows) < ACTIVITY_PAGE:
                return found
            token = str(rows[-1].get("id"))

    # --- over a restart

    async def _keep_memory(self) -> None:
        while self._memory is not None:
            await asyncio.sleep(KEPT_EVERY_S)
            self._write_memory()

    def _write_memory(self) -> None:
        if self._memory is None or self.ledger.is_new:
            return
        content = msgspec.json.encode(self.ledger.memory)
        if content == self._kept:
            return
        try:
            write_atomically(self._memory, content)
        except OSError as error:
            _log.error("what was told of orders cannot be kept", path=str(self._memory), error=str(error))
        else:
            self._kept = content


def _describe_refusal(message: Mapping[str, Any]) -> str:
    data = message.get("data")
    reason = data.get("error_message") if isinstance(data, Mapping) else None
    return f"the stream was refused: {reason or 'no reason given'}"


def _parse_clock(answer: object) -> int:
    text = answer.get("timestamp") if isinstance(answer, Mapping) else None
    try:
        return parse_time(text) if isinstance(text, str) else 0
    except ValueError:
        return 0


def _read_memory(path: Path | None) -> OrderMemory | None:
    if path is None:
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=OrderMemory)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        _log.warning("what was told of orders cannot be read, it begins anew", path=str(path), error=str(error))
        return None
