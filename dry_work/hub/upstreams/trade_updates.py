"""One account's order updates by Alpaca's `trade_updates` WebSocket, for as long as the hub runs. Event-loop only."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, NoReturn

from websockets.asyncio.client import ClientConnection

from dry_work.clock import Clock
from dry_work.errors import CodecError
from dry_work.hub.accounts import HubAccount
from dry_work.hub.bus import Bus
from dry_work.hub.core import ErrorKind
from dry_work.hub.upstreams.connection import FeedStatus, SessionEndError, UpstreamTiming, WebSocketConnection
from dry_work.hub.upstreams.order_relay import STREAM, OrderRelay
from dry_work.wire.alpaca_rest import parse_json
from dry_work.wire.alpaca_stream import parse_control_item

_ANSWERS = ("authorization", "listening")


class TradeUpdatesConnection(WebSocketConnection):
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
        self._access = account.access
        super().__init__(
            feed=account.feed,
            url=self._access.stream_url,
            clock=clock,
            rng=rng,
            timing=timing,
            on_change=on_change,
        )
        self.relay = OrderRelay(
            account,
            bus,
            clock=clock,
            rng=rng,
            memory=memory,
            has_history=True,
            count_event=self._count_event,
            count_malformed=lambda reason: self._count_malformed("update", reason),
        )

    @property
    def is_wanted(self) -> bool:
        return True

    def status(self) -> FeedStatus:
        return self._describe(wanted=1, subscribed=int(self._state.value == "connected"))

    async def run(self) -> None:
        keeper = asyncio.create_task(self.relay.keep_memory(), name=f"hub-{self._feed}-memory")
        try:
            await super().run()
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            self.relay.write_memory()

    # --- one session

    async def _authenticate(self, link: ClientConnection) -> None:
        self.relay.hold()
        await link.send(json.dumps({"action": "authenticate", "data": self._access.stream_credentials}))
        answer = await self._answer(link, "authorization")
        if answer.get("status") != "authorized":
            raise SessionEndError("the stream refused the credentials", ErrorKind.FATAL)
        await link.send(json.dumps({"action": "listen", "data": {"streams": [STREAM]}}))
        answer = await self._answer(link, "listening")
        streams = answer.get("streams")
        if not isinstance(streams, list) or STREAM not in streams:
            raise SessionEndError("the venue does not offer trade_updates on this stream", ErrorKind.FATAL)

    async def _answer(self, socket: ClientConnection, stream: str) -> Mapping[str, Any]:
        while True:
            message = self._take_frame(await self._receive(socket))
            if message is not None and message.get("stream") == stream and isinstance(message.get("data"), dict):
                data: dict[str, Any] = message["data"]
                return data

    def _begin_session(self) -> None:
        pass  # the updates wait until the relay has caught up

    def _end_session(self) -> None:
        pass  # what still waits does so until a gap could be filled, in a later session

    def _jobs(self, link: ClientConnection) -> list[Coroutine[Any, Any, NoReturn]]:
        return [self._read(link), self._catch_up()]

    async def _read(self, socket: ClientConnection) -> NoReturn:
        while True:
            frame = await self._receive(socket)
            begun_s = self._heard_s
            self._take_frame(frame)
            self._frames.note(begun_s, len(frame))

    async def _catch_up(self) -> NoReturn:
        await self.relay.catch_up()
        timing = self._timing
        orders = await self.relay.watch(interval_s=timing.order_check_s, grace_s=timing.order_grace_s)
        raise SessionEndError(f"the stream keeps updates of orders back, of {orders} or more", ErrorKind.BEHIND)

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
                    control = parse_control_item(item)
                    self._note_error(control.code, control.message)
                else:
                    self._count_unknown(str(item.get("T")) if isinstance(item, dict) else "no map")
            return None
        if not isinstance(message, dict):
            self._count_malformed("frame", "no object")
            return None
        if message.get("action") == "error":
            raise SessionEndError(_describe_refusal(message), ErrorKind.LOST)
        stream = message.get("stream")
        if stream != STREAM:
            if stream not in _ANSWERS:
                self._count_unknown(str(stream))
            return message
        data = message.get("data")
        if isinstance(data, dict):
            self.relay.take(data, frame)
        else:
            self._count_malformed("update", "no data")
        return None


def _describe_refusal(message: Mapping[str, Any]) -> str:
    data = message.get("data")
    reason = data.get("error_message") if isinstance(data, Mapping) else None
    return f"the stream was refused: {reason or 'no reason given'}"
