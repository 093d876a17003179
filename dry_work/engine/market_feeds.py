"""The feeds of a run: one for each symbol, and what is resampled from it. Main thread."""

from __future__ import annotations

from typing import Any

from dry_work.feeds.base import LiveFeed, resampling
from dry_work.feeds.pubsub import PubSubMarketDataFeed
from dry_work.ports import MarketSource
from dry_work.settings import RunSettings


def add_market_feeds(cerebro: Any, source: MarketSource, settings: RunSettings) -> list[LiveFeed]:
    """Give a Cerebro its datas, in the order of the symbols; return the feed of each symbol."""
    market_feed: Any = PubSubMarketDataFeed
    feeds = [
        market_feed(
            source=source,
            symbol=symbol,
            project_id=settings.project,
            extra_fields=settings.extra_fields,
            tz=settings.tz,
        )
        for symbol in settings.symbols
    ]
    for feed in feeds:
        if settings.timeframe.text == "1m":
            cerebro.adddata(feed, name=feed.symbol)
        else:
            cerebro.resampledata(feed, name=feed.symbol, **resampling(settings.timeframe))
    for frame in settings.resample:
        for feed in feeds:
            cerebro.resampledata(feed, name=f"{feed.symbol}@{frame.text}", **resampling(frame))
    return feeds
