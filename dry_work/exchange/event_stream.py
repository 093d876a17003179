"""Trade events as server-sent events, `/v2/events/trades` and `/v1/events/trades`. Event-loop only.

With HTTP Basic, as on Alpaca's Broker API host, a stream tells of all sub-accounts of the key; with Alpaca's own pair
of headers, as on its trading host, of the key's own account. `id` narrows it to one account. What is told begins behind
`since`, `since_id` and their like (see `event_ranges`).

One thing is the exchange's own. With `slices=true` the event `listening` comes first: `event_id` is the last one of any
account so far, `resumed` whether the events since the beginning are complete. After each slice, behind its trade
events, comes the event `slices`: `slice`, its number; `event_id`, the last trade event of any account by then;
`account_event_id`, the last one of the stream's accounts.

The other streams of the Broker API are there and have nothing to tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from heapq import merge
from typing import Any

import orjson
from aiohttp import web

from dry_work.exchange.answers import authorize
from dry_work.exchange.credentials import KEY_HEADER, Credentials
from dry_work.exchange.event_ranges import EventRange, parse_range, read_count, select_events
from dry_work.exchange.event_session import HEARTBEAT_S, EventSession, build_frame
from dry_work.exchange.fault_hooks import EventFaults, StreamFaults
from dry_work.exchange.faults import FaultPlan
from dry_work.exchange.identifiers import build_account_id
from dry_work.exchange.market import OpenSlice
from dry_work.exchange.order_rules import RefusedError
from dry_work.exchange.socket_session import QUEUE_LIMIT_BYTES
from dry_work.exchange.state import AccountRecord
from dry_work.exchange.trade_socket import SLICES, encode_event
from dry_work.orders.model import TradeEvent
from dry_work.wire.alpaca_rest import CODE_FORBIDDEN, CODE_INTERNAL, CODE_RATE_LIMIT, CODE_REQUEST, CODE_UNAUTHORIZED

_QUIET = (
    "/v1/events/accounts/status",
    "/v1/events/journals/status",
    "/v2/events/journals/status",
    "/v1/events/transfers/status",
    "/v2/events/funding/status",
    "/v1/events/nta",
)
_REFUSALS = {
    402: (401, CODE_UNAUTHORIZED, "request is not authorized"),
    406: (429, CODE_RATE_LIMIT, "connection limit exceeded"),
    409: (403, CODE_FORBIDDEN, "forbidden."),
}


@dataclass(eq=False)
class _Stream:
    out: EventSession
    owner: str
    names: Callable[[], list[str]]  # the accounts that it tells of
    asked: EventRange
    counts: bool  # ids are counts
    tells_slices: bool

    def encode(self, name: str, body: Mapping[str, Any]) -> bytes:
        told = {"account_id": build_account_id(name), **body}
        if self.counts:
            told |= {"event_id": read_count(body["event_id"]), "event_ulid": body["event_id"]}
        return build_frame(orjson.dumps(told))


class EventStreams:
    """All streams of server-sent events.

    Args:
        accounts: what is remembered of each account.
        open_slice: the slice that is published and not yet done, None when there is none.
        last_event_id: id of the last trade event of any account.
        now_ns: the exchange's time.
        faults: what goes wrong; the streams are of the kind `trades`.
        queue_bytes: unread by the client, then it loses events.
        heartbeat_s: see `EventSession`.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        accounts: Mapping[str, AccountRecord],
        open_slice: Callable[[], OpenSlice | None],
        last_event_id: Callable[[], str],
        now_ns: Callable[[], int],
        faults: FaultPlan,
        queue_bytes: int = QUEUE_LIMIT_BYTES,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._credentials = credentials
        self._accounts = accounts
        self._open_slice = open_slice
        self._last_event_id = last_event_id
        self._now_ns = now_ns
        self._faults = StreamFaults(faults, "trades")
        self._event_faults = EventFaults(faults, encode_event)
        self._queue_bytes = queue_bytes
        self._heartbeat_s = heartbeat_s
        self._streams: set[_Stream] = set()

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve `/v1/events/...` and `/v2/events/...`."""
        for version in ("v1", "v2"):
            router.add_get(f"/{version}/events/trades", self._handle, allow_head=False)
        for path in _QUIET:
            router.add_get(path, self._handle_quiet, allow_head=False)

    def emit(self, name: str, event: TradeEvent) -> None:
        """Send an event to the streams that tell of the account; ends those that have come to their end."""
        if not self._streams:
            return
        streams = [stream for stream in self._streams if name in stream.names()]
        if streams:
            self._tell(streams, name, self._event_faults.tell(name, event))
        self._end_streams()

    def tell_slice(self, current: OpenSlice) -> None:
        """Tell the streams that asked for it that a slice and its events are out."""
        by_name: dict[str, list[_Stream]] = {}
        for stream in self._streams:
            for name in stream.names():
                by_name.setdefault(name, []).append(stream)
        for name, streams in by_name.items():
            self._tell(streams, name, self._event_faults.release(name))
        for stream in list(self._streams):
            if stream.tells_slices:
                stream.out.send(self._slice_frame(stream, current))
        self._end_streams()

    def strike(self) -> None:
        """Let new faults strike the streams that are open."""
        for stream in list(self._streams):
            stream.out.check()

    def close(self) -> None:
        """Begin to end all streams."""
        for stream in list(self._streams):
            stream.out.close()

    def _tell(self, streams: list[_Stream], name: str, bodies: list[dict[str, Any]]) -> None:
        for body in bodies:
            for stream in streams:
                if stream.asked.reaches(body["event_id"]):
                    stream.out.send(stream.encode(name, body))

    def _end_streams(self) -> None:
        last, now_ns = self._last_event_id(), self._now_ns()
        for stream in list(self._streams):
            if stream.asked.is_over(last, now_ns):
                stream.out.end()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        counts = request.path.startswith("/v1/")
        stream = self._open(request, authorize(self._credentials, request), counts=counts)
        code = self._faults.refuse(stream.owner, request.path)
        if code is not None:
            raise RefusedError(*_REFUSALS.get(code, (500, CODE_INTERNAL, "internal server error occurred")))
        history = self._find_history(stream)
        last = self._last_event_id()
        if history is None and not stream.tells_slices:
            raise RefusedError(422, CODE_REQUEST, "events since then are no longer kept: begin later")
        if stream.tells_slices:
            resumed = stream.asked.has_history and history is not None and not stream.asked.is_ahead_of(last)
            answer = {"streams": [SLICES], "event_id": last, "resumed": resumed}
            first = [build_frame(orjson.dumps(answer), event="listening")]
            current = self._open_slice()
            if current is not None:
                stream.out.send(self._slice_frame(stream, current))
        else:
            first = []
        self._faults.watch(stream.out, stream.owner, request.path, request.transport)
        # What is emitted from here on is queued behind the history, so that nothing is told twice or not at all.
        return await self._run(request, stream, self._encode_history(stream, first, history or []))

    async def _handle_quiet(self, request: web.Request) -> web.StreamResponse:
        owner = authorize(self._credentials, request)
        stream = self._open(request, owner, counts=request.path.startswith("/v1/"), is_quiet=True)
        return await self._run(request, stream, iter(()))

    def _open(self, request: web.Request, owner: str, *, counts: bool, is_quiet: bool = False) -> _Stream:
        sub_accounts, account_id = self._credentials.sub_accounts, request.query.get("id", "").lower()
        is_broker = KEY_HEADER not in request.headers
        known = sub_accounts.names(owner) if is_broker else [owner]
        if is_quiet:
            names: Callable[[], list[str]] = list
        elif account_id:
            found = [name for name in known if build_account_id(name) == account_id]
            if not found:
                raise RefusedError(401, CODE_UNAUTHORIZED, "request is not authorized")
            names = found.copy
        elif is_broker:
            names = lambda: sub_accounts.names(owner)  # noqa: E731 - those that are opened later too
        else:
            names = known.copy
        out = EventSession(
            request,
            limit_bytes=self._queue_bytes,
            heartbeat_s=self._heartbeat_s,
            tells_failures=request.path.startswith("/v2/"),
        )
        asked = parse_range(request.query, counts=counts)
        tells_slices = request.query.get("slices", "").lower() == "true" and not is_quiet
        return _Stream(out, owner, names, asked, counts, tells_slices)

    async def _run(self, request: web.Request, stream: _Stream, history: Iterator[bytes]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        self._streams.add(stream)
        if stream.asked.is_over(self._last_event_id(), self._now_ns()):
            stream.out.end()
        try:
            with self._credentials.hold_stream(stream.owner):
                await response.prepare(request)
                await stream.out.write(response, history)
        finally:
            self._streams.discard(stream)
            stream.out.end()
        return response

    def _find_history(self, stream: _Stream) -> list[tuple[str, TradeEvent]] | None:
        """Return the past events that are asked for with their accounts; None when some are gone."""
        if not stream.asked.has_history:
            return []
        parts: list[list[tuple[str, TradeEvent]]] = []
        for name in stream.names():
            record = self._accounts[name]
            if record.forgot_events and stream.asked.begins_by(record.events[0].event_id):
                return None
            parts.append([(name, event) for event in select_events(reversed(record.events), stream.asked)])
        return list(merge(*parts, key=lambda row: row[1].event_id))

    def _encode_history(
        self, stream: _Stream, first: list[bytes], history: list[tuple[str, TradeEvent]]
    ) -> Iterator[bytes]:
        yield from first
        for name, event in history:
            yield stream.encode(name, encode_event(event))

    def _slice_frame(self, stream: _Stream, current: OpenSlice) -> bytes:
        last = max((self._accounts[name].last_event_id for name in stream.names()), default="")
        data = {"slice": current.number, "event_id": current.event_id, "account_event_id": last}
        return build_frame(orjson.dumps(data), event=SLICES)
