"""Market data on Pub/Sub, plain form: one JSON object a message. Pure.

Attributes: `symbol` with `/` as `-`, `type` on all but bars, and `epoch` with `seq` when the publisher numbers its
messages. The body is written and read by `encode_*` and `parse_message`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from dry_work.clock import MINUTE_NS
from dry_work.errors import CodecError
from dry_work.market.messages import (
    Bar,
    BarBatch,
    Envelope,
    MarketMessage,
    News,
    PriceBands,
    TradingStatus,
    Watermark,
)
from dry_work.market.symbols import encode_attribute
from dry_work.wire.pubsub_bars import (
    INTEGER,
    RESERVED_NAMES,
    build_bar_body,
    is_extra_name,
    parse_bar,
    parse_integer,
)
from dry_work.wire.pubsub_bars import read_plain as _read_plain
from dry_work.wire.pubsub_bars import read_plain_batch as _read_plain_batch
from dry_work.wire.statuses import BANDS, STATUS, build_status_body, parse_status_body
from dry_work.wire.times import encode_time, parse_time

__all__ = [
    "RESERVED_NAMES",
    "encode_bar",
    "encode_batch",
    "encode_news",
    "encode_order_update",
    "encode_status",
    "encode_time",
    "encode_watermark",
    "is_extra_name",
    "parse_message",
    "parse_sequence",
    "parse_time",
]

BATCH_ENCODING = "batch"


def encode_bar(bar: Bar, *, epoch: str = "", seq: int = 0, hub_ns: int = 0) -> tuple[bytes, dict[str, str]]:
    """Return payload and attributes of a bar; fields that are not finite numbers are left out.

    Args:
        hub_ns: when the publisher received it, 0: that is not told.
    """
    data = orjson.dumps(build_bar_body(bar))
    return data, _build_attributes(symbol=bar.symbol, epoch=epoch, seq=seq, hub_ns=hub_ns)


def encode_watermark(mark: Watermark, *, epoch: str = "", seq: int = 0) -> tuple[bytes, dict[str, str]]:
    """Return payload and attributes of a watermark."""
    body: dict[str, Any] = {
        "type": "watermark",
        "slice": mark.slice,
        "end": encode_time(mark.end_ns),
        "bars": mark.bars,
        "event_id": mark.event_id,
    }
    if mark.last:
        body["last"] = True
    return orjson.dumps(body), _build_attributes(kind="watermark", epoch=epoch, seq=seq)


def encode_status(status: TradingStatus | PriceBands, *, epoch: str = "", seq: int = 0) -> tuple[bytes, dict[str, str]]:
    """Return payload and attributes of a trading status or of price bands."""
    body = build_status_body(status)
    return orjson.dumps(body), _build_attributes(kind=body["type"], symbol=status.symbol, epoch=epoch, seq=seq)


def encode_news(news: News, *, epoch: str = "", seq: int = 0) -> tuple[bytes, dict[str, str]]:
    """Return payload and attributes of a news item; its attribute `symbol` is the first of its symbols."""
    body = {
        "type": "news",
        "symbols": list(news.symbols),
        "headline": news.headline,
        "summary": news.summary,
        "author": news.author,
        "url": news.url,
        "created_at": news.created_at,
        "updated_at": news.updated_at,
        "source": news.source,
        "ingested_at": news.ingested_at,
    }
    first = news.symbols[0] if news.symbols else ""
    return orjson.dumps(body), _build_attributes(kind="news", symbol=first, epoch=epoch, seq=seq)


def encode_order_update(
    frame: bytes, *, account: str, symbol: str, event: str, event_id: str, epoch: str = "", seq: int = 0
) -> tuple[bytes, dict[str, str]]:
    """Return payload and attributes of an order update; its payload is the frame of `trade_updates`, unchanged."""
    attributes = _build_attributes(symbol=symbol, epoch=epoch, seq=seq)
    facts = {"account": account, "event": event, "event_id": event_id}
    return frame, {**attributes, **{name: value for name, value in facts.items() if value}}


def parse_message(
    topic: str, data: bytes, attributes: Mapping[str, str], *, recv_ns: int, length_ns: int = MINUTE_NS
) -> Envelope:
    """Return the message that `topic` delivered at `recv_ns`; bars are `length_ns` long.

    Raises:
        CodecError: when it cannot be used. Its `reason` is one of a fixed set of texts without values, so that drops
            can be counted by reason.
    """
    if attributes.get("encoding") == BATCH_ENCODING:
        return _parse_batch(topic, data, attributes, recv_ns=recv_ns, length_ns=length_ns)
    if attributes.get("type", "bar") == "bar":
        hub_ns = _parse_hub_time(attributes)
        bar = _read_plain(data, attributes.get("symbol", ""), recv_ns=recv_ns, hub_ns=hub_ns, length_ns=length_ns)
        if bar is not None:
            epoch, seq = parse_sequence(attributes)
            return Envelope(topic=topic, message=bar, epoch=epoch, seq=seq)
    body = _parse_object(data)
    kind = body.get("type")
    if kind is None:
        kind = attributes.get("type") or "bar"
    ignored: tuple[str, ...] = ()
    message: MarketMessage
    if kind == "bar":
        message, ignored = parse_bar(
            data,
            body,
            attributes.get("symbol", ""),
            recv_ns=recv_ns,
            hub_ns=_parse_hub_time(attributes),
            length_ns=length_ns,
        )
    elif kind == "watermark":
        message = _parse_watermark(data, body)
    elif kind == "news":
        message = _parse_news(data, body, recv_ns=recv_ns)
    elif kind in (STATUS, BANDS):
        message = parse_status_body(body, recv_ns=recv_ns)
    else:
        raise CodecError("unknown type", data=data)
    epoch, seq = parse_sequence(attributes)
    return Envelope(topic=topic, message=message, epoch=epoch, seq=seq, ignored_fields=ignored)


def encode_batch(
    bars: Iterable[Bar], *, epoch: str = "", seq: int = 0, hub_ns: int = 0
) -> tuple[bytes, dict[str, str]]:
    """Return payload and attributes of the batch form: an array of bars, for subscriptions without a filter.

    Args:
        hub_ns: when the publisher received the last of them, 0: that is not told.
    """
    payload = orjson.dumps([build_bar_body(bar) for bar in bars])
    return payload, {**_build_attributes(epoch=epoch, seq=seq, hub_ns=hub_ns), "encoding": BATCH_ENCODING}


def _parse_batch(topic: str, data: bytes, attributes: Mapping[str, str], *, recv_ns: int, length_ns: int) -> Envelope:
    hub_ns = _parse_hub_time(attributes)
    plain = _read_plain_batch(data, recv_ns=recv_ns, hub_ns=hub_ns, length_ns=length_ns)
    if plain is not None:
        epoch, seq = parse_sequence(attributes)
        return Envelope(topic=topic, message=BarBatch(bars=plain), epoch=epoch, seq=seq)
    body = _parse_json(data)
    if not isinstance(body, list):
        raise CodecError("not a JSON array", data=data)
    bars: list[Bar] = []
    dropped: list[str] = []
    ignored: list[str] = []
    for entry in body:
        try:
            if not isinstance(entry, dict):
                raise CodecError("not a JSON object", data=data)
            if entry.get("type", "bar") != "bar":
                raise CodecError("unknown type", data=data)
            bar, names = parse_bar(data, entry, "", recv_ns=recv_ns, hub_ns=hub_ns, length_ns=length_ns)
        except CodecError as error:
            dropped.append(error.reason)
        else:
            bars.append(bar)
            ignored.extend(names)
    epoch, seq = parse_sequence(attributes)
    message = BarBatch(bars=tuple(bars), dropped=tuple(dropped))
    return Envelope(topic=topic, message=message, epoch=epoch, seq=seq, ignored_fields=tuple(ignored))


def parse_sequence(attributes: Mapping[str, str]) -> tuple[str, int]:
    """Return epoch and seq; an empty epoch when one of them is missing or not of our form."""
    epoch, seq = attributes.get("epoch", ""), attributes.get("seq", "")
    if not epoch or not INTEGER.fullmatch(seq):
        return "", 0
    return epoch, int(seq)


def _build_attributes(*, kind: str = "", symbol: str = "", epoch: str, seq: int, hub_ns: int = 0) -> dict[str, str]:
    attributes = {}
    if symbol:
        attributes["symbol"] = encode_attribute(symbol)
    if kind:
        attributes["type"] = kind
    if epoch:
        attributes["epoch"] = epoch
        attributes["seq"] = str(seq)
    if hub_ns:
        attributes["hub_ns"] = str(hub_ns)
    return attributes


def _parse_hub_time(attributes: Mapping[str, str]) -> int:
    text = attributes.get("hub_ns", "")
    return int(text) if len(text) <= 19 and text.isascii() and text.isdigit() else 0


def _parse_object(data: bytes) -> dict[str, Any]:
    body = _parse_json(data)
    if not isinstance(body, dict):
        raise CodecError("not a JSON object", data=data)
    return body


def _parse_json(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # Python's own json writes NaN, Infinity and numbers of any size: read them, so that the drop has its reason.
        try:
            body = json.loads(data.decode("utf-8"))
            json.dumps(body, ensure_ascii=False).encode(
                "utf-8"
            )  # half a surrogate pair can be read, but never be written again
        except (ValueError, RecursionError):
            raise CodecError("not JSON", data=data) from None
        return body


def _parse_watermark(data: bytes, body: dict[str, Any]) -> Watermark:
    number, bars = parse_integer(body.get("slice")), parse_integer(body.get("bars"))
    end, event_id, last = body.get("end"), body.get("event_id"), body.get("last", False)
    if (
        not number
        or bars is None
        or not isinstance(end, str)
        or not isinstance(event_id or "", str)
        or not isinstance(last, bool)
    ):
        raise CodecError("bad watermark", data=data)
    try:
        end_ns = parse_time(end)
    except ValueError:
        raise CodecError("bad watermark", data=data) from None
    return Watermark(slice=number, end_ns=end_ns, bars=bars, event_id=event_id or "", last=last)


def _parse_news(data: bytes, body: dict[str, Any], *, recv_ns: int) -> News:
    symbols, headline = body.get("symbols"), body.get("headline")
    if symbols is None:
        symbols = []
    if not isinstance(symbols, list) or not isinstance(headline, str):
        raise CodecError("bad news", data=data)

    def text(key: str) -> str:
        value = body.get(key)
        return value if isinstance(value, str) else ""

    return News(
        symbols=tuple(symbol.strip().upper() for symbol in symbols if isinstance(symbol, str)),
        headline=headline,
        summary=text("summary"),
        author=text("author"),
        url=text("url"),
        source=text("source"),
        created_at=text("created_at"),
        updated_at=text("updated_at"),
        ingested_at=text("ingested_at"),
        ts_recv_ns=recv_ns,
    )
