"""News: articles of a file, or made up from the recording, over HTTP as of the exchange's own time.

The file is JSON: a list of articles as `/v1beta1/news` answers them, that answer itself, or one article a line.
`NewsFeed` is pure, `NewsApi` event-loop only.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgpack
import msgspec
import numpy as np
from aiohttp import web

from dry_work.clock import DAY_NS
from dry_work.errors import CodecError
from dry_work.exchange.answers import build_answer, query_limit, query_symbols, query_time, query_word
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.history import admit_stock_request
from dry_work.exchange.order_rules import RefusedError
from dry_work.feeds.recorded import Recording
from dry_work.market.symbols import is_option
from dry_work.wire.alpaca_fields import parse_json
from dry_work.wire.pubsub import encode_time, parse_time

_LARGEST_LIMIT = 50
_DEFAULT_LIMIT = 10
_SYNTHETIC_SYMBOLS = 200
_HEADLINES = (
    "{symbol} opens new plant, says nobody",
    "Analyst without a name likes {symbol}",
    "{symbol} moves on no news at all",
    "What a made-up market expects of {symbol}",
    "{symbol} to report on a day that never was",
)
_YES = ("true", "1")


class Article(msgspec.Struct, frozen=True, kw_only=True):
    """An article, told when it was last updated. A crypto pair stands without its slash in `symbols`, as at Alpaca."""

    id: int
    headline: str
    source: str
    created_ns: int
    updated_ns: int
    symbols: tuple[str, ...]
    url: str | None = None
    summary: str = ""
    content: str = ""
    author: str = ""
    images: tuple[Mapping[str, str], ...] = ()

    def encode(self, *, with_content: bool) -> dict[str, Any]:
        """Return the article as the REST API answers it."""
        return {
            "id": self.id,
            "headline": self.headline,
            "author": self.author,
            "created_at": encode_time(self.created_ns),
            "updated_at": encode_time(self.updated_ns),
            "summary": self.summary,
            "content": self.content if with_content else "",
            "images": list(self.images),
            "symbols": list(self.symbols),
            "source": self.source,
            "url": self.url,
        }

    def encode_item(self) -> dict[str, Any]:
        """Return the article as an item of the stream."""
        created, updated = (msgpack.Timestamp.from_unix_nano(ns) for ns in (self.created_ns, self.updated_ns))
        item = {"T": "n", **self.encode(with_content=True), "created_at": created, "updated_at": updated}
        del item["images"]
        return item

    def is_about(self, symbols: Sequence[str]) -> bool:
        """Tell whether the article names one of some symbols, with or without slash."""
        named = {symbol.replace("/", "") for symbol in self.symbols}
        return any(symbol.replace("/", "") in named for symbol in symbols)


class NewsFeed:
    """Articles by the time of their update.

    Args:
        articles: in any order.
        make: makes further articles at the first question; slow where a recording is large.
    """

    def __init__(
        self, articles: Sequence[Article] = (), *, make: Callable[[], Sequence[Article]] | None = None
    ) -> None:
        self._given = list(articles)
        self._make = make
        self._sorted: list[Article] | None = None
        self._times: list[int] = []

    def between(self, first_ns: int, last_ns: int) -> Sequence[Article]:
        """Return the articles updated between two times, both included, the oldest first."""
        if self._sorted is None:
            made = [] if self._make is None else list(self._make())
            self._sorted = sorted([*self._given, *made], key=lambda found: (found.updated_ns, found.id))
            self._times = [article.updated_ns for article in self._sorted]
        return self._sorted[bisect_left(self._times, first_ns) : bisect_right(self._times, last_ns)]


def make_news(recording: Recording) -> NewsFeed:
    """Make up two articles for each symbol and day of a recording: SYNTHETIC, and said to be so in each of them."""
    return NewsFeed(make=lambda: _make_articles(recording))


def _make_articles(recording: Recording) -> list[Article]:
    articles: list[Article] = []
    stocks = [symbol for symbol in recording.symbols if not is_option(symbol)]
    for symbol in stocks[:_SYNTHETIC_SYMBOLS]:
        times = recording.columns(symbol)["ts_event_ns"]
        edges = np.flatnonzero(np.diff(times // DAY_NS, prepend=-1, append=times[-1] // DAY_NS + 1))
        for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            middle = (first + last) // 2
            for low, high in ((first, middle), (middle, last)):
                if high > low:
                    articles.append(_make_article(symbol, int(times[low]), int(times[high - 1])))
    return articles


def _make_article(symbol: str, first_ns: int, last_ns: int) -> Article:
    digest = hashlib.sha256(f"news {symbol} {first_ns}".encode()).digest()
    number = int.from_bytes(digest[:4], "big")
    time_ns = first_ns + int.from_bytes(digest[4:10], "big") % (last_ns - first_ns + 1)
    headline = _HEADLINES[number % len(_HEADLINES)].format(symbol=symbol)
    has_content = number % 4 != 0
    return Article(
        id=number,
        headline=f"SYNTHETIC: {headline}",
        author="Dry Work",
        source="synthetic",
        created_ns=time_ns,
        updated_ns=time_ns,
        summary="Made up by the simulated exchange.",
        content=f"<p>{headline}. Nothing of this has happened.</p>" if has_content else "",
        url=f"http://news.invalid/{number}",
        symbols=(symbol.replace("/", ""),),
    )


def parse_news(data: bytes) -> NewsFeed:
    """Read a file of articles.

    Raises:
        CodecError: with a sentence about the article that cannot be used.
    """
    try:
        body: Any = parse_json(data)
    except CodecError:
        body = [parse_json(line) for line in data.splitlines() if line.strip()]
    if isinstance(body, dict) and "news" in body:
        body = body["news"]
    rows = [body] if isinstance(body, dict) else body
    if not isinstance(rows, list):
        raise CodecError("news are a JSON list of articles, as /v1beta1/news answers them, or one article a line")
    articles = [_parse_article(number, row) for number, row in enumerate(rows, start=1)]
    if len({article.id for article in articles}) < len(articles):
        raise CodecError("two articles have the same id")
    return NewsFeed(articles)


def _parse_article(number: int, row: object) -> Article:
    if not isinstance(row, dict):
        raise CodecError(f"article {number} is no JSON object")
    known = {name: row[name] for name in ("id", "headline", "source", "url", "summary", "content", "author", "images")
             if row.get(name) is not None}  # fmt: skip
    try:
        created = parse_time(str(row.get("created_at", row.get("updated_at"))))
        updated = parse_time(str(row.get("updated_at", row.get("created_at"))))
    except ValueError:
        raise CodecError(f"article {number} has no readable created_at or updated_at") from None
    values = {"id": number, "headline": "", "source": "", **known, "symbols": row.get("symbols") or []}
    try:
        return msgspec.convert({**values, "created_ns": created, "updated_ns": updated}, Article)
    except msgspec.ValidationError as error:
        raise CodecError(f"article {number}: {error}") from None


class NewsApi:
    """Answers `/v1beta1/news`.

    Args:
        feed: the articles.
        now_ns: the exchange's time.
        open_session: carries on a WebSocket session, which has the same path here.
    """

    def __init__(
        self,
        feed: NewsFeed,
        *,
        credentials: Credentials,
        now_ns: Callable[[], int],
        open_session: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> None:
        self._open_session = open_session
        self._feed = feed
        self._credentials = credentials
        self._now_ns = now_ns

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve the news."""
        router.add_get("/v1beta1/news", self._get_news)

    async def _get_news(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._open_session(request)
        admit_stock_request(self._credentials, request)
        now_ns = self._now_ns()
        symbols = query_symbols(request)
        newest_first = query_word(request, "sort", ("desc", "asc"), code=0) == "desc"
        limit = query_limit(request, "limit", default=_DEFAULT_LIMIT, largest=_LARGEST_LIMIT, code=0)
        start_ns = query_time(request, "start", code=0)
        end_ns = query_time(request, "end", code=0)
        first_ns = now_ns // DAY_NS * DAY_NS if start_ns is None else start_ns
        last_ns = now_ns if end_ns is None else min(end_ns, now_ns)
        contentless = request.query.get("exclude_contentless", "").lower() not in _YES
        found = [
            article
            for article in self._feed.between(first_ns, last_ns)
            if (not symbols or article.is_about(symbols)) and (contentless or article.content)
        ]
        if newest_first:
            found.reverse()
        found = found[_find_place(found, request.query.get("page_token", "")) :]
        with_content = request.query.get("include_content", "").lower() in _YES
        token = f"{found[limit].updated_ns}-{found[limit].id}" if len(found) > limit else None
        rows = [article.encode(with_content=with_content) for article in found[:limit]]
        return build_answer({"news": rows, "next_page_token": token})


def _find_place(found: Sequence[Article], token: str) -> int:
    if not token:
        return 0
    for row, article in enumerate(found):
        if f"{article.updated_ns}-{article.id}" == token:
            return row
    raise RefusedError(400, 0, "invalid page_token")
