"""Trade events of a sub-account of Alpaca's Broker API, by server-sent events; stands where `TradeUpdates` does.

Alpaca-py's `get_trade_events` does not fit here: it asks for `/v1/events/trades`, which is gone; it takes a refusal for
an empty stream, waits for ever on a silent one, and does not connect again.

The stream tells of all accounts of the key; those of others are passed over. After a reconnect it goes on behind the
last event of our account, which Alpaca keeps in order; between accounts, and within a millisecond, the order of ids
means nothing, so the cursor is the last id of an earlier millisecond, and what comes twice is left out by its id.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from msgspec.structs import replace

from dry_work.addresses import is_loopback_url
from dry_work.alpaca.broker_api import UNSET_HINT
from dry_work.alpaca.sse import EventParser, ServerComment, ServerEvent
from dry_work.alpaca.streams import SLICES, EventStream, SliceMark
from dry_work.errors import BrokerUnavailableError, CodecError, RateLimitedError, VenueAuthError
from dry_work.wire.alpaca_rest import parse_json, parse_trade_event

if TYPE_CHECKING:
    from aiohttp import ClientResponse

SILENCE_S = 60.0  # Alpaca does not say how often it sends a heartbeat

_OPEN_TIMEOUT_S = 10.0
_REMEMBERED = 10_000  # ids of events, against those that come twice
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_MILLISECONDS = 10  # characters of a ULID that are its time
_COUNT_DIGITS = 20  # integers in this width sort as text
_LISTENING = "listening"  # of the simulated exchange
_V1, _V2 = "/v1/events/trades", "/v2/events/trades"

_log = structlog.get_logger(__name__)


class BrokerTradeEvents(EventStream):
    """The trade events of one sub-account.

    The older stream, whose ids are integers, is asked for only where there is no newer one; its ids are filled up with
    zeros, so that they sort as text.

    Args:
        url: whole URL of the endpoint.
        api_key, secret_key: credentials of the broker; never part of an error or of `repr`.
        account_id: of the sub-account.
        silence_s: without a line for so long, the connection counts as lost.
        on_slice: takes what the simulated exchange tells of slices, which is asked for only when this is given; then a
            reconnect goes on where the connection before it ended. Without it what was missed is looked up by REST too.
        options: as `EventStream` takes them.
    """

    name = "broker trade events"

    def __init__(
        self,
        url: str,
        *,
        api_key: str,
        secret_key: str,
        account_id: str,
        silence_s: float = SILENCE_S,
        on_slice: Callable[[SliceMark], None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(url, on_slice=on_slice, **options)
        credentials = base64.b64encode(f"{api_key}:{secret_key}".encode()).decode()
        self._headers = {
            "Accept": "text/event-stream",
            "Cache-Control": "no-cache",
            "Authorization": f"Basic {credentials}",
        }
        self._account_id = account_id.lower()
        self._silence_s = silence_s
        self._seen: OrderedDict[str, None] = OrderedDict()  # ids of our events
        self._has_worked = False  # the newer stream was there once

    @property
    def _counts(self) -> bool:
        """Whether the ids of the endpoint are integers."""
        return self.url.endswith(_V1)

    async def _listen(self) -> None:
        from aiohttp import ClientError

        try:
            async with self._open() as response:
                reader = _EventReader(response, self._silence_s)
                if self._on_slice is not None:
                    await self._take_answer(reader)
                await self._take_until_dropped(self._take_all(reader))
        except ClientError as error:
            raise BrokerUnavailableError(f"{type(error).__name__}: {error}") from error

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[ClientResponse]:
        from aiohttp import ClientSession, ClientTimeout

        cursor = find_cursor(list(self._seen))
        query = {} if cursor is None else {"since_id": str(int(cursor)) if self._counts else cursor}
        if self._on_slice is not None:
            query |= {"slices": "true", "id": self._account_id}
        async with ClientSession(
            headers=self._headers,
            timeout=ClientTimeout(total=None),
            trust_env=not is_loopback_url(self.url),
        ) as session:
            async with asyncio.timeout(_OPEN_TIMEOUT_S):
                response = await session.get(self.url, params=query, allow_redirects=False)
            try:
                if response.status != 200:
                    async with asyncio.timeout(_OPEN_TIMEOUT_S):
                        await self._refuse(response, cursor)
                if response.content_type != "text/event-stream":
                    raise BrokerUnavailableError(f"{self.url} answers with {response.content_type}, not with events")
                self._has_worked = True
                yield response
            finally:
                response.close()

    async def _refuse(self, response: ClientResponse, cursor: str | None) -> None:
        status = response.status
        text = (await response.content.read(500)).decode("utf-8", "replace").strip()
        what = f"{self.url}: HTTP {status}: {text[:200]}"
        if status in (401, 403):
            raise VenueAuthError(f"the trade events refused the credentials; {UNSET_HINT}", http_status=status)
        if status in (404, 410):
            if self.url.endswith(_V2) and not self._has_worked:
                _log.warning("there is no newer stream of trade events, the older one is taken", url=self.url)
                self.url = f"{self.url.removesuffix(_V2)}{_V1}"
                raise BrokerUnavailableError(what)
            if self._counts and not self._has_worked:
                self.url = f"{self.url.removesuffix(_V1)}{_V2}"
            raise BrokerUnavailableError(f"{what}; is ALPACA_URL right? Or {UNSET_HINT}")
        if status in (400, 422) and cursor is not None:
            _log.warning("the venue does not take the cursor of the trade events", cursor=cursor)
            self._seen.clear()
        if status == 429:
            retry_s = response.headers.get("Retry-After", "")
            raise RateLimitedError(what, retry_after_s=float(retry_s) if retry_s.isdigit() else None)
        raise BrokerUnavailableError(what)

    async def _take_answer(self, reader: _EventReader) -> None:
        """Take the simulated exchange's word on where the stream begins."""
        async with asyncio.timeout(_OPEN_TIMEOUT_S):
            while (item := await reader.read()) is not None:
                if isinstance(item, ServerEvent) and item.name == _LISTENING:
                    break
        if item is None:
            raise BrokerUnavailableError(f"{self.url} was closed without an answer")
        try:
            answer = msgspec.json.decode(item.data, type=_Listening)
        except msgspec.MsgspecError as error:
            raise BrokerUnavailableError(f"{self.url}: the answer cannot be read: {error}") from error
        self.resumed = answer.resumed
        if not self.resumed:
            self.position = answer.event_id

    async def _take_all(self, reader: _EventReader) -> None:
        while (item := await reader.read()) is not None:
            if isinstance(item, ServerComment):
                self._take_comment(item.text)
            elif item.name == SLICES:
                self._take_slice(item)
            else:
                self._take(item)

    def _take_slice(self, item: ServerEvent) -> None:
        if self._on_slice is None:
            return
        try:
            mark = msgspec.json.decode(item.data, type=SliceMark)
        except msgspec.MsgspecError as error:
            self._tell_unreadable(CodecError(f"a slice cannot be read: {error}", data=item.data))
            return
        self._on_slice(mark)

    def _take_comment(self, text: str) -> None:
        self.counters["comments"] += 1
        if "dropped" in text:
            self.counters["gaps"] += 1
            raise BrokerUnavailableError(f"the venue left events out: {text[:100]}")

    def _take(self, item: ServerEvent) -> None:
        try:
            payload = parse_json(item.data)
            if not isinstance(payload, dict):
                raise CodecError("the event is no object", data=item.data)
            account_id = str(payload.get("account_id") or "").lower()
            event_id = self._read_id(payload.get("event_id") or item.id)
            if not account_id or not event_id:
                raise CodecError("the event has no account_id or no event_id", data=item.data)
            if account_id != self._account_id:
                self.counters["other accounts"] += 1
                return
            if event_id in self._seen:
                self.counters["duplicates"] += 1
                return
            event = replace(parse_trade_event(payload), event_id=event_id)
        except CodecError as error:
            self._tell_unreadable(error)
            return
        self._seen[event_id] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        self.counters["events"] += 1
        self._on_event(event)
        self.position = max(self.position or "", event_id)

    def _read_id(self, event_id: object) -> str:
        text = str(event_id)
        if not self._counts:
            return text
        if not (text.isascii() and text.isdigit() and len(text) <= _COUNT_DIGITS):
            raise CodecError(f"the event id {text[:40]} is no integer")
        return text.zfill(_COUNT_DIGITS)


class _Listening(msgspec.Struct):
    """The simulated exchange's answer to who asks for slices."""

    event_id: str  # the last one of any account so far
    resumed: bool  # what is behind the cursor is complete


class _EventReader:
    """Reads what one answer tells.

    Args:
        silence_s: without a line for so long, the connection counts as lost; bytes that make no line are no sign of
            life.
    """

    def __init__(self, response: ClientResponse, silence_s: float) -> None:
        self._content = response.content
        self._silence_s = silence_s
        self._parser = EventParser()
        self._items: deque[ServerEvent | ServerComment] = deque()
        self._end_s = asyncio.get_running_loop().time() + silence_s

    async def read(self) -> ServerEvent | ServerComment | None:
        """Return what comes next, None at the end.

        Raises:
            BrokerUnavailableError: it is silent, or cannot be read.
        """
        while not self._items:
            try:
                async with asyncio.timeout_at(self._end_s):
                    chunk = await self._content.readany()
            except TimeoutError:
                raise BrokerUnavailableError(f"no event and no heartbeat for {self._silence_s:g} s") from None
            if not chunk:
                return None
            lines = self._parser.lines
            try:
                self._items.extend(self._parser.feed(chunk))
            except CodecError as error:
                raise BrokerUnavailableError(error.reason) from error
            if self._parser.lines > lines:
                self._end_s = asyncio.get_running_loop().time() + self._silence_s
        return self._items.popleft()


def find_cursor(event_ids: list[str]) -> str | None:
    """Return the id behind which a stream is to go on; None when there is none yet.

    Args:
        event_ids: of one account, in the order in which they came. ULIDs of one millisecond are in no order, so the
            last one of an earlier millisecond is taken; other ids are taken as they are.
    """
    if not event_ids:
        return None
    last = event_ids[-1]
    if _ULID.fullmatch(last):
        for event_id in reversed(event_ids):
            if _ULID.fullmatch(event_id) and event_id[:_MILLISECONDS] < last[:_MILLISECONDS]:
                return event_id
    return last
