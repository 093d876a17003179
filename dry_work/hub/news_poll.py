"""News that the stream missed: asked for over REST from time to time, and published as if it had come. Event-loop only.

The stream of news has no history: what Alpaca publishes while the connection is away does not come again.
https://docs.alpaca.markets/reference/news-3
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import structlog

from dry_work.addresses import is_loopback_url
from dry_work.clock import SECOND_NS, Clock
from dry_work.errors import BrokerUnavailableError
from dry_work.hub.bus import Bus
from dry_work.hub.events import ALL, NEWS
from dry_work.hub.queues import ClientQueue, Overflow
from dry_work.wire.pubsub import encode_time, parse_time

PATH = "/v1beta1/news"
PAGE = 50  # Alpaca's limit
MOST_PAGES = 20
REMEMBERED = 10_000
OVERLAP_NS = 60 * SECOND_NS  # clocks differ, and an article may be listed a little late
TIMEOUT_S = 15.0

_log = structlog.get_logger(__name__)


class NewsPoll:
    """Asks for the newest articles every so often, and publishes those that have not come.

    Args:
        bus: takes them, as events of the feed of news.
        url: base of the market-data REST API.
        headers: credentials.
        symbols: whose articles; empty: all.
        interval_s: seconds between two looks.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        url: str,
        headers: Mapping[str, str],
        symbols: Iterable[str],
        interval_s: float,
        clock: Clock,
    ) -> None:
        self._bus = bus
        self._url = url.rstrip("/")
        self._headers = dict(headers)
        self._symbols = ",".join(symbols)
        self._interval_s = interval_s
        self._clock = clock
        self._seen: OrderedDict[tuple[str, int | str], None] = OrderedDict()
        self._arrived = ClientQueue(REMEMBERED, Overflow.DROP_OLDEST, on_ready=lambda: None)
        self._since_ns = 0
        self.found = 0  # articles that had not come
        self.error = ""  # of the last look

    async def run(self) -> None:
        """Look until cancelled."""
        self._since_ns = self._clock.time_ns()
        self._bus.attach(self._arrived, [(NEWS, NEWS, ALL)])
        try:
            while True:
                await asyncio.sleep(self._interval_s)
                try:
                    await self.look()
                except BrokerUnavailableError as error:
                    if not self.error:
                        _log.warning("news cannot be asked for", reason=str(error))
                    self.error = str(error)
                else:
                    self.error = ""
        finally:
            self._bus.detach(self._arrived)

    async def look(self) -> None:
        """Publish the articles since the last look that have not come.

        Raises:
            BrokerUnavailableError: they cannot be had now; the next look reaches as far back.
        """
        started_ns = self._clock.time_ns()
        articles = await self._fetch(self._since_ns - OVERLAP_NS)
        for event in self._arrived.take():
            self._remember(event.item)
        for article in articles:
            if self._key(article) in self._seen:
                continue
            self.found += 1
            names = tuple(str(symbol) for symbol in article.get("symbols") or ())
            self._bus.publish(
                NEWS,
                NEWS,
                names[0] if names else "",
                {"T": "n", **article},
                ts_recv_ns=self._clock.time_ns(),
                symbols=names,
            )
        for event in self._arrived.take():
            self._remember(event.item)
        self._since_ns = started_ns

    async def _fetch(self, since_ns: int) -> list[dict[str, Any]]:
        from aiohttp import ClientError, ClientSession, ClientTimeout

        query = {"start": encode_time(since_ns), "sort": "asc", "limit": str(PAGE)}
        if self._symbols:
            query["symbols"] = self._symbols
        found: list[dict[str, Any]] = []
        try:
            async with ClientSession(
                headers=self._headers,
                timeout=ClientTimeout(total=TIMEOUT_S),
                trust_env=not is_loopback_url(self._url),
            ) as session:
                for _ in range(MOST_PAGES):
                    async with session.get(self._url + PATH, params=query, allow_redirects=False) as response:
                        if response.status != 200:
                            raise BrokerUnavailableError(
                                f"{self._url}{PATH}: HTTP {response.status}", http_status=response.status
                            )
                        answer = await response.json(content_type=None)
                    rows = answer.get("news") if isinstance(answer, dict) else None
                    found += [row for row in rows or () if isinstance(row, dict)]
                    token = answer.get("next_page_token") if isinstance(answer, dict) else None
                    if not token:
                        break
                    query["page_token"] = str(token)
        except (ClientError, TimeoutError, OSError, ValueError) as error:
            raise BrokerUnavailableError(f"{self._url}{PATH}: {type(error).__name__}: {error}") from error
        return found

    def _remember(self, item: Mapping[str, Any]) -> None:
        self._seen[self._key(item)] = None
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    @staticmethod
    def _key(item: Mapping[str, Any]) -> tuple[str, int | str]:
        updated: Any = item.get("updated_at")
        if hasattr(updated, "to_unix_nano"):  # of MessagePack
            return str(item.get("id")), int(updated.to_unix_nano())
        try:
            return str(item.get("id")), parse_time(str(updated))
        except ValueError:
            return str(item.get("id")), str(updated)
