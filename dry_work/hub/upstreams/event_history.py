"""The venue's own history of trade events, by server-sent events, where it offers one to the key.

https://docs.alpaca.markets/reference/subscribetotradev2sse: without a bound the stream goes on with what is new, so the
history ends where it falls silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from dry_work.addresses import is_loopback_url
from dry_work.alpaca.sse import EventParser, ServerEvent
from dry_work.alpaca.venues import VenueAccess
from dry_work.errors import BrokerUnavailableError, CodecError
from dry_work.wire.alpaca_rest import parse_json

PATH = "/v2/events/trades"
OPEN_TIMEOUT_S = 10.0
SILENCE_S = 1.0  # after which the history is at its end
LONGEST_S = 60.0


async def read_history(access: VenueAccess, since_id: str) -> list[Mapping[str, Any]] | None:
    """Return the events behind `since_id`, oldest first; None when the venue offers no history there.

    Raises:
        BrokerUnavailableError: it broke off.
    """
    from aiohttp import ClientError, ClientSession, ClientTimeout

    headers = {"APCA-API-KEY-ID": access.api_key, "APCA-API-SECRET-KEY": access.secret_key}
    found: list[Mapping[str, Any]] = []
    parser = EventParser()
    loop = asyncio.get_running_loop()
    try:
        async with ClientSession(
            headers={**headers, "Accept": "text/event-stream"},
            timeout=ClientTimeout(total=LONGEST_S, connect=OPEN_TIMEOUT_S),
            trust_env=not is_loopback_url(access.url),
        ) as session:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                response = await session.get(
                    f"{access.url}{PATH}", params={"since_id": since_id}, allow_redirects=False
                )
            try:
                if response.status in (429, 500, 502, 503, 504):
                    raise BrokerUnavailableError(f"{PATH}: HTTP {response.status}", http_status=response.status)
                if response.status != 200 or response.content_type != "text/event-stream":
                    return None
                end_s = loop.time() + SILENCE_S
                while True:
                    try:
                        async with asyncio.timeout_at(end_s):
                            chunk = await response.content.readany()
                    except TimeoutError:
                        return found
                    if not chunk:
                        return found
                    for item in parser.feed(chunk):
                        if isinstance(item, ServerEvent):
                            end_s = loop.time() + SILENCE_S
                            _add(found, item)
            finally:
                response.close()
    except (ClientError, TimeoutError, OSError) as error:
        raise BrokerUnavailableError(f"{PATH}: {type(error).__name__}: {error}") from error
    except CodecError as error:
        raise BrokerUnavailableError(f"{PATH}: {error.reason}") from error


def _add(found: list[Mapping[str, Any]], item: ServerEvent) -> None:
    try:
        data = parse_json(item.data)
    except CodecError:
        return  # the comparison of orders would find what it meant; one odd event does not cost the others
    if isinstance(data, dict) and "event" in data:
        found.append(data)
