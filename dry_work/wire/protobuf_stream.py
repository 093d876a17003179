"""Bars and news as `stream.v0`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dry_work.proto.stream.v0.stream_pb2 import Bar, News
from dry_work.wire.protobuf_fields import encode_count, encode_double, encode_text, set_time


def encode_bar(item: Mapping[str, Any]) -> bytes:
    """Return a bar of Alpaca's stream as `stream.v0.Bar`; a fractional volume, as of crypto, is rounded down."""
    bar = Bar(
        symbol=encode_text(item.get("S")),
        open=encode_double(item.get("o")),
        high=encode_double(item.get("h")),
        low=encode_double(item.get("l")),
        close=encode_double(item.get("c")),
        volume=encode_count(item.get("v")),
        trade_count=encode_count(item.get("n")),
        vwap=encode_double(item.get("vw")),
    )
    set_time(bar, "timestamp", item.get("t"))
    return bar.SerializeToString()


def encode_news(item: Mapping[str, Any]) -> bytes:
    """Return an article of Alpaca's stream as `stream.v0.News`."""
    symbols = item.get("symbols")
    news = News(
        id=encode_count(item.get("id")),
        symbols=[encode_text(symbol) for symbol in symbols] if isinstance(symbols, list | tuple) else (),
        headline=encode_text(item.get("headline")),
        author=encode_text(item.get("author")),
        summary=encode_text(item.get("summary")),
        content=encode_text(item.get("content")),
        url=encode_text(item.get("url")),
    )
    set_time(news, "created_at", item.get("created_at"))
    set_time(news, "updated_at", item.get("updated_at"))
    return news.SerializeToString()
