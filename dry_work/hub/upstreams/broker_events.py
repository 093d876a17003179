"""A sub-account's order updates by the server-sent events of Alpaca's Broker API. Event-loop only.

The stream tells of all accounts of the key; those of others are passed over. It goes on behind the last event of ours,
and so brings itself what a lost connection swallowed; where the venue does not take our place in it, orders and
executions are compared.
https://docs.alpaca.markets/reference/subscribetotradev2sse
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dry_work.addresses import is_loopback_url
from dry_work.alpaca.broker_api import UNSET_HINT
from dry_work.alpaca.sse import EventParser, ServerComment, ServerEvent
from dry_work.clock import Clock
from dry_work.errors import CodecError
from dry_work.hub.accounts import HubAccount
from dry_work.hub.bus import Bus
from dry_work.hub.core import ErrorKind
from dry_work.hub.upstreams.connection import (
    FeedStatus,
    SessionEndError,
    UpstreamConnection,
    UpstreamTiming,
    parse_retry_after,
)
from dry_work.hub.upstreams.order_relay import OrderRelay
from dry_work.wire.alpaca_rest import parse_json

if TYPE_CHECKING:
    from aiohttp import ClientResponse

_REFUSED_CREDENTIALS = (401, 403)
_GONE = (404, 405, 410)
_REFUSED_PLACE = (400, 422)


class BrokerEventsConnection(UpstreamConnection["ClientResponse"]):
    """The trade events of one sub-account.

    Args:
        account: whose updates; also asked for orders and executions.
        bus: takes the updates.
        memory: file that keeps over a restart what was told; None: nothing is kept.
        on_change: called after every change of state.
    """

    pings = False  # the venue sends comments as a sign of life

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
        self._account_id = self._access.account_id.lower()
        self._place: dict[str, str] = {}  # where this session goes on
        self._refused_place: dict[str, str] = {}
        self.passed_over = 0  # events of other accounts
        self.relay = OrderRelay(
            account,
            bus,
            clock=clock,
            rng=rng,
            memory=memory,
            has_history=False,  # but for what the stream brings itself
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

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[ClientResponse]:
        from aiohttp import ClientError, ClientSession, ClientTimeout

        place = self.relay.place
        self._place = place if place != self._refused_place else {}
        access, timing = self._access, self._timing
        credentials = base64.b64encode(f"{access.api_key}:{access.secret_key}".encode()).decode()
        headers = {
            "Accept": "text/event-stream",
            "Cache-Control": "no-cache",
            "Authorization": f"Basic {credentials}",
            "User-Agent": "dry-work",
        }
        try:
            async with ClientSession(
                headers=headers, timeout=ClientTimeout(total=None), trust_env=not is_loopback_url(self._url)
            ) as session:
                try:
                    async with asyncio.timeout(timing.open_timeout_s):
                        response = await session.get(self._url, params=self._place, allow_redirects=False)
                except TimeoutError:
                    raise SessionEndError("connecting took too long", ErrorKind.LOST) from None
                try:
                    if response.status != 200:
                        raise await self._refuse(response)
                    if response.content_type != "text/event-stream":
                        raise SessionEndError(
                            f"the answer is {response.content_type}, not events; is ALPACA_URL right?", ErrorKind.FATAL
                        )
                    yield response
                finally:
                    response.close()
        except (ClientError, OSError) as error:
            raise SessionEndError(f"{type(error).__name__}: {error}", ErrorKind.LOST) from error

    async def _refuse(self, response: ClientResponse) -> SessionEndError:
        status = response.status
        try:
            async with asyncio.timeout(self._timing.open_timeout_s):
                text = (await response.content.read(500)).decode("utf-8", "replace").strip()
        except TimeoutError:
            text = ""
        what = f"the trade events were answered with HTTP {status}: {text[:200]}".rstrip(": ")
        if status in _REFUSED_CREDENTIALS:
            return SessionEndError(f"{what}; {UNSET_HINT}", ErrorKind.FATAL)
        if status in _GONE:
            return SessionEndError(f"{what}; is ALPACA_URL right? Or {UNSET_HINT}", ErrorKind.FATAL)
        if status in _REFUSED_PLACE and self._place:
            self._refused_place = self._place  # the next session begins with what is new, and orders are compared
            return SessionEndError(f"{what}; orders will be compared", ErrorKind.LOST)
        if 400 <= status < 500 and status not in (408, 429):
            return SessionEndError(what, ErrorKind.FATAL)
        retry_after_s = parse_retry_after(response.headers.get("Retry-After", ""))
        return SessionEndError(what, ErrorKind.LOST, retry_after_s=retry_after_s)

    async def _authenticate(self, link: ClientResponse) -> None:
        self.relay.hold()  # the credentials went along with the request

    def _begin_session(self) -> None:
        pass  # the updates wait until the relay has caught up

    def _end_session(self) -> None:
        pass  # what still waits does so until a gap could be filled, in a later session

    def _jobs(self, link: ClientResponse) -> list[Coroutine[Any, Any, NoReturn]]:
        return [self._read(link), self._catch_up()]

    async def _catch_up(self) -> NoReturn:
        await self.relay.catch_up(is_resumed=bool(self._place))
        timing = self._timing
        orders = await self.relay.watch(interval_s=timing.order_check_s, grace_s=timing.order_grace_s)
        raise SessionEndError(f"the stream keeps updates of orders back, of {orders} or more", ErrorKind.BEHIND)

    async def _read(self, response: ClientResponse) -> NoReturn:
        parser = EventParser()
        while True:
            chunk = await response.content.readany()
            if not chunk:
                raise SessionEndError("the venue closed the stream", ErrorKind.LOST)
            lines = parser.lines
            try:
                items = parser.feed(chunk)
            except CodecError as error:
                raise SessionEndError(error.reason, ErrorKind.LOST) from error
            if parser.lines > lines:  # bytes that make no line are no sign of life
                self._heard_s = self._clock.monotonic()
            begun_s = self._clock.monotonic()
            for item in items:
                if isinstance(item, ServerComment):
                    self._take_comment(item.text)
                else:
                    self._take(item)
            self._frames.note(begun_s, len(chunk))

    def _take_comment(self, text: str) -> None:
        if "dropped" in text or "error" in text:
            raise SessionEndError(f"the venue left events out: {text[:100]}", ErrorKind.LOST)

    def _take(self, item: ServerEvent) -> None:
        if not item.data:
            return
        try:
            data = parse_json(item.data)
        except CodecError as error:
            self._count_malformed("event", error.reason.partition(":")[0])
            return
        if not isinstance(data, dict):
            self._count_malformed("event", "no object")
        elif "event" not in data:
            self._count_unknown(item.name or "no event")
        elif str(data.get("account_id") or "").lower() != self._account_id:
            self.passed_over += 1
        else:
            self.relay.take(*_complete(data, item))


def _complete(data: dict[str, Any], item: ServerEvent) -> tuple[Mapping[str, Any], bytes]:
    """Return an update with its id, and as a message of `trade_updates`."""
    if data.get("event_id") or not item.id:
        return data, b'{"stream":"trade_updates","data":%s}' % item.data.encode()
    return {**data, "event_id": item.id}, b""
