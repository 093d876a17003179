"""The venue's own history of trade events, by server-sent events, where it offers one to the key.

https://docs.alpaca.markets/reference/subscribetotradev2sse: without a bound the stream goes on with what is new, so the
history ends where it falls silent, once it has brought the last event that we know, or where it meets what the live
stream has brought.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from dry_work.addresses import is_loopback_url
from dry_work.alpaca.sse import EventParser, ServerComment, ServerEvent
from dry_work.alpaca.venues import VenueAccess
from dry_work.errors import BrokerUnavailableError, CodecError
from dry_work.wire.alpaca_rest import parse_json

PATH = "/v2/events/trades"
OPEN_TIMEOUT_S = 10.0
SILENCE_S = 1.0  # after which the history is at its end
FIRST_WAIT_S = 10.0  # for the event that we know
LONGEST_S = 60.0  # of reading


class EventHistory(msgspec.Struct):
    """What a history has."""

    events: list[tuple[Mapping[str, Any], bytes]] = []  # oldest first, each with its message of trade_updates
    is_complete: bool = False  # it has everything up to now, or up to what the live stream has brought


async def read_history(
    access: VenueAccess, place: Mapping[str, str], *, last_known: str, is_live: Callable[[str], bool]
) -> EventHistory | None:
    """Return the events from a place on; None when the venue offers no history there.

    Args:
        access: to the account.
        place: where it begins, `since_id` or `since`.
        last_known: id of the last event that is known, empty when there is none; when it is behind the id of `place`,
            the history has it.
        is_live: tells whether the live stream has brought the event with an id.

    Raises:
        BrokerUnavailableError: it broke off.
    """
    from aiohttp import ClientError, ClientSession, ClientTimeout

    try:
        async with ClientSession(
            headers={**access.headers, "Accept": "text/event-stream"},
            timeout=ClientTimeout(total=None),
            trust_env=not is_loopback_url(access.url),
        ) as session:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                response = await session.get(f"{access.url}{PATH}", params=place, allow_redirects=False)
            try:
                if response.status in (429, 500, 502, 503, 504):
                    raise BrokerUnavailableError(f"{PATH}: HTTP {response.status}", http_status=response.status)
                if response.status in (400, 422):
                    return EventHistory(events=[])  # nothing behind this id
                if response.status != 200 or response.content_type != "text/event-stream":
                    return None
                return await _read(response, last_known if last_known != place.get("since_id") else "", is_live)
            finally:
                response.close()
    except (ClientError, TimeoutError, OSError) as error:
        raise BrokerUnavailableError(f"{PATH}: {type(error).__name__}: {error}") from error
    except CodecError as error:
        raise BrokerUnavailableError(f"{PATH}: {error.reason}") from error


async def _read(response: Any, awaited: str, is_live: Callable[[str], bool]) -> EventHistory:
    """Read until it falls silent, or is live; before `awaited` has come it may be silent for longer."""
    history = EventHistory(events=[])
    parser = EventParser()
    loop = asyncio.get_running_loop()
    last_s = loop.time() + LONGEST_S
    end_s = loop.time() + (FIRST_WAIT_S if awaited else SILENCE_S)
    while True:
        try:
            async with asyncio.timeout_at(min(end_s, last_s)):
                chunk = await response.content.readany()
        except TimeoutError:
            history.is_complete = not awaited and loop.time() < last_s
            return history
        if not chunk:
            history.is_complete = not awaited
            return history
        for item in parser.feed(chunk):
            if isinstance(item, ServerComment):
                if "dropped" in item.text or "error" in item.text:
                    raise BrokerUnavailableError(f"{PATH}: the venue left events out: {item.text[:100]}")
                continue
            event_id = _add(history, item)
            if event_id and is_live(event_id):
                history.is_complete = True
                return history
            if event_id == awaited:
                awaited = ""
            end_s = max(end_s, loop.time() + SILENCE_S) if awaited else loop.time() + SILENCE_S


def _add(history: EventHistory, item: ServerEvent) -> str:
    """Take an event; return its id."""
    try:
        data = parse_json(item.data)
    except CodecError:
        return ""  # the comparison of orders would find what it meant; one odd event does not cost the others
    if not isinstance(data, dict) or "event" not in data:
        return ""
    if not data.get("event_id") and item.id:
        history.events.append(({**data, "event_id": item.id}, b""))
        return item.id
    history.events.append((data, b'{"stream":"trade_updates","data":%s}' % item.data.encode()))
    return str(data.get("event_id") or "")
