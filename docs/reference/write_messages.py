"""Write `messages.md` beside this file from the structs, the encoders and the .proto modules.

`python docs/reference/write_messages.py`; the examples are what the encoders make of one bar, one slice and one fill.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor
from google.protobuf.message import Message
from source_notes import build_table, code, read_fields, read_summary

from dry_work.clock import MINUTE_NS
from dry_work.market import messages
from dry_work.market.messages import Bar, News, PriceBands, TradingStatus, Watermark
from dry_work.orders.model import OrderType, Side, TimeInForce, TradeEvent, VenueOrder
from dry_work.proto.cream.v1 import common_pb2, execution_pb2, stream_proxy_pb2
from dry_work.proto.stream.v0 import stream_pb2
from dry_work.proto.tradesvc.v0 import tradesvc_pb2
from dry_work.wire import alpaca_stream, cream, protobuf_stream, protobuf_tradesvc, pubsub, redis
from dry_work.wire.alpaca_rest import encode_trade_event
from dry_work.wire.alpaca_stream import StreamCodec, StreamWatermark
from dry_work.wire.nats_subjects import Subjects

PAGE = Path(__file__).with_name("messages.md")
PROTO = Path(__file__).parents[2] / "dry_work" / "proto"

STRUCTS = ("Bar", "News", "TradingStatus", "PriceBands", "Watermark", "BarBatch", "Envelope", "Slice")
PROTO_FILES = (
    common_pb2.DESCRIPTOR,
    execution_pb2.DESCRIPTOR,
    stream_proxy_pb2.DESCRIPTOR,
    stream_pb2.DESCRIPTOR,
    tradesvc_pb2.DESCRIPTOR,
)

START_NS = 1_718_112_600_000_000_000  # 2024-06-11 13:30 UTC
END_NS = START_NS + MINUTE_NS
EVENT_ID = "01J03KQ2C0000000000000000A"
ACCOUNT = "e6fe16f3-64a4-4921-8928-cadf02f92f98"
EPOCH = "17d7f1c2a9e04b00"
BAR = Bar(
    symbol="SPY",
    ts_event_ns=START_NS,
    open=535.1,
    high=535.6,
    low=534.9,
    close=535.4,
    volume=182_400.0,
    trade_count=1_204.0,
    vwap=535.27,
    source="alpaca_stock",
    extra={"sentiment_score": 0.25},
)
MARK = Watermark(slice=1, end_ns=END_NS, bars=1, event_id=EVENT_ID)
HALT = TradingStatus(
    symbol="SPY",
    ts_event_ns=START_NS,
    code="H",
    message="Trading Halt",
    reason_code="T1",
    reason="Halt News Pending",
    tape="B",
)
BANDS = PriceBands(symbol="SPY", ts_event_ns=START_NS, upper=562.2, lower=508.6, indicator="B", tape="B")
NEWS = News(
    symbols=("SPY",),
    headline="Markets open",
    author="A. Writer",
    url="https://example.com/1",
    source="benzinga",
    created_at="2024-06-11T13:30:05Z",
    updated_at="2024-06-11T13:30:05Z",
    ingested_at="2024-06-11T13:30:06Z",
)
FILL = TradeEvent(
    event="fill",
    event_id=EVENT_ID,
    ts_event_ns=END_NS,
    execution_id="2f63ea93-423d-4169-b3f6-3fdafc10c418",
    price=Decimal("535.4"),
    qty=Decimal(10),
    position_qty=Decimal(10),
    order=VenueOrder(
        id="61e69015-8549-4bfd-b9c3-01e75843f47d",
        client_order_id="dw-my-agent-1f2e3d4c-1",
        symbol="SPY",
        side=Side.BUY,
        type=OrderType.MARKET,
        time_in_force=TimeInForce.DAY,
        status="filled",
        qty=Decimal(10),
        filled_qty=Decimal(10),
        filled_avg_price=Decimal("535.4"),
        created_ns=START_NS,
        updated_ns=END_NS,
        submitted_ns=START_NS,
        filled_ns=END_NS,
    ),
)

HEAD = """\
# Messages

Written by `python docs/reference/write_messages.py`: the tables from the source, the examples by the encoders; a test
compares the page with both. How to use each transport: [Pub/Sub](pubsub.md), [gRPC](../howto/grpc.md),
[NATS](../howto/nats.md), [Redis](../howto/redis.md), [from other languages](../howto/languages.md).

The time of a bar is its start, on every transport; Backtrader's `datetime` is its end. Times are UTC.
"""

TEXTS = {
    "pubsub": "One message each, JSON; `epoch` and `seq` count the messages of a topic, so that a gap is seen. What "
    "the payload of a bar has beside the known names, and is a number, is an extra field of the feed.",
    "batch": "With `HUB_BATCH=true` the bars of one moment come in one message, an array, with `encoding`.",
    "watermark": "Behind the bars of a slice, from a simulated exchange; `last` with the final one.",
    "status": "A trading status or price bands of a stock, on the topic of its bars and in their place among them; "
    "none with `HUB_STATUSES=false`.",
    "news": "On the topic of news.",
    "orders": "On the topic of order updates; the payload is the frame of `trade_updates`, unchanged.",
    "websocket": "Alpaca's own: arrays of items, JSON or MessagePack (`Content-Type` of the handshake; times are then "
    "of its timestamp type). `extra` and the item `w` are own; `w` comes to those who subscribe `watermarks`. With "
    "`?hub=1` each frame ends with the reader's position.",
    "stream": "On `/stream`, after `{\"action\":\"listen\",\"data\":{\"streams\":[\"trade_updates\"]}}`.",
    "grpc": "In protobuf's text form. Field 100 is the position, 101 Alpaca's item as JSON; both for those who ask.",
    "nats": "In protobuf's text form, by subject. The last one is JSON, for readers who hold their symbols.",
    "redis": "By channel. Of what must not be missed each is in a stream too, with the fields below.",
}  # fmt: skip


def build_page() -> str:
    """Return the page."""
    return "\n".join(
        [
            HEAD,
            "## In Python\n\n`dry_work.market.messages`: immutable, times in nanoseconds since 1970.\n",
            *map(_build_struct, STRUCTS),
            "## Pub/Sub\n",
            *_build_pubsub(),
            "## WebSocket\n",
            *_build_websocket(),
            "## gRPC\n",
            *_build_grpc(),
            "## NATS\n",
            *_build_nats(),
            "## Redis\n",
            *_build_redis(),
            "## Protocol buffers\n\nThe files are in [`dry_work/proto`](../../dry_work/proto).\n",
            *map(_build_proto, PROTO_FILES),
        ]
    )


def _build_struct(name: str) -> str:
    kind = getattr(messages, name)
    rows = [
        [code(field.name), code(field.type), code(field.default) if field.default != "empty" else "empty", field.text]
        for field in read_fields(kind)
    ]
    return f"### {name}\n\n{read_summary(kind)}\n\n{build_table(['field', 'type', 'default', 'meaning'], rows)}\n"


# The transports


def _build_pubsub() -> Iterable[str]:
    frame = orjson.dumps({"stream": "trade_updates", "data": encode_trade_event(FILL)})
    yield _wrap(TEXTS["pubsub"])
    yield _show_message(*pubsub.encode_bar(BAR, epoch=EPOCH, seq=1))
    yield _wrap(TEXTS["batch"])
    yield _show_message(*pubsub.encode_batch([BAR], epoch=EPOCH, seq=1))
    yield _wrap(TEXTS["watermark"])
    yield _show_message(*pubsub.encode_watermark(MARK, epoch=EPOCH, seq=2))
    yield _wrap(TEXTS["status"])
    yield _show_message(*pubsub.encode_status(HALT, epoch=EPOCH, seq=3))
    yield _show_message(*pubsub.encode_status(BANDS, epoch=EPOCH, seq=4))
    yield _wrap(TEXTS["news"])
    yield _show_message(*pubsub.encode_news(NEWS, epoch=EPOCH, seq=1))
    yield _wrap(TEXTS["orders"])
    yield _show_message(
        *pubsub.encode_order_update(
            frame, account=ACCOUNT, symbol="SPY", event="fill", event_id=EVENT_ID, epoch=EPOCH, seq=1
        )
    )


def _build_websocket() -> Iterable[str]:
    mark = StreamWatermark(slice=1, end_ns=END_NS, event_id=EVENT_ID)
    items = [
        alpaca_stream.encode_bar_item(BAR),
        alpaca_stream.encode_watermark_item(mark),
        {"T": "hub", "epoch": EPOCH, "offset": 18},
    ]
    yield _wrap(TEXTS["websocket"])
    yield _block("json", *(b"[%b]" % alpaca_stream.encode_item(item, StreamCodec.JSON) for item in items))
    yield _wrap(TEXTS["stream"])
    yield _block("json", orjson.dumps({"stream": "trade_updates", "data": encode_trade_event(FILL)}))


def _build_grpc() -> Iterable[str]:
    item = alpaca_stream.encode_bar_item(BAR)
    yield _wrap(TEXTS["grpc"])
    yield _block("text", _show_proto(cream.build_stock_bar(item, cream.Losses())))
    yield _block("text", _show_proto(cream.build_order_update(encode_trade_event(FILL), EVENT_ID, cream.Losses())))


def _build_nats() -> Iterable[str]:
    subjects = Subjects("nalpaca")
    item = alpaca_stream.encode_bar_item(BAR)
    update = tradesvc_pb2.TradeUpdate.FromString(
        protobuf_tradesvc.encode_trade_update(encode_trade_event(FILL), event_id=EVENT_ID)
    )
    held = orjson.dumps({"epoch": EPOCH, "offset": 18, "lost": 0})
    held = held[:-1] + b',"item":' + alpaca_stream.encode_item(item, StreamCodec.JSON) + b"}"
    order = tradesvc_pb2.Trade(
        symbol="SPY",
        qty="10",
        side=tradesvc_pb2.SIDE_BUY,
        order_type=tradesvc_pb2.ORDER_TYPE_MARKET,
        tif=tradesvc_pb2.TIME_IN_FORCE_DAY,
    )
    yield _wrap(TEXTS["nats"])
    for subject, name, shown in (
        (
            subjects.bar("SPY"),
            "stream.v0.Bar",
            _show_proto(stream_pb2.Bar.FromString(protobuf_stream.encode_bar(item))),
        ),
        (subjects.trade_update("SPY"), "tradesvc.v0.TradeUpdate", _show_proto(update)),
        (subjects.order("my-order-1"), "tradesvc.v0.Trade", _show_proto(order)),
    ):
        yield f"`{subject}`: `{name}`\n"
        yield _block("text", shown)
    yield f"`{subjects.item('stocks', 'SPY')}`\n"
    yield _block("json", held)


def _build_redis() -> Iterable[str]:
    item = alpaca_stream.encode_bar_item(BAR)
    trade = alpaca_stream.encode_trade_item("SPY", time_ns=START_NS, price=535.4, size=100.0, trade_id=71_675)
    fields = {
        "epoch": EPOCH,
        "offset": "18",
        "at": pubsub.encode_time(END_NS + 35_000_000),
        "item": redis.encode_item(item).decode(),
    }
    yield _wrap(TEXTS["redis"])
    for channel, message in (
        (redis.price_channel("SPY"), redis.encode_price("SPY", trade)),
        (redis.bar_channel("SPY"), redis.encode_bar("SPY", item, epoch=EPOCH, offset=18)),
        (redis.order_channel("ACCOUNT_ID"), redis.encode_order(encode_trade_event(FILL), event_id=EVENT_ID, seq=17)),
    ):
        yield f"`{channel}`\n"
        yield _block("json", message)
    yield f"An entry of the stream `{redis.stream_key('stocks', 'bars', 'SPY')}`:\n"
    yield build_table(["field", "value"], [[code(name), code(value)] for name, value in fields.items()]) + "\n"


def _wrap(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def _show_message(data: bytes, attributes: Mapping[str, str]) -> str:
    shown = ", ".join(f"`{name}={value}`" for name, value in attributes.items())
    return f"{_block('json', data)}\nAttributes: {shown}.\n"


def _block(language: str, *lines: bytes | str) -> str:
    texts = [line.decode() if isinstance(line, bytes) else line for line in lines]
    return "\n".join([f"```{language}", *texts, "```\n"])


def _show_proto(message: Message) -> str:
    # The writer of protobuf's upb does not promise one space behind a colon.
    return re.sub(r"(?m)^(\s*\w+):\s+", r"\1: ", text_format.MessageToString(message)).rstrip()


# Protocol buffers


def _build_proto(file: FileDescriptor) -> str:
    name = file.name.removeprefix("dry_work/proto/")
    notes = _read_notes((PROTO / name).read_text(encoding="utf-8"))
    parts = [f"### {name}\n"]
    for service in file.services_by_name.values():
        rows = [[code(each.name), each.input_type.name, _name_output(each)] for each in service.methods]
        parts.append(f"Service `{service.full_name}`:\n\n{build_table(['call', 'request', 'response'], rows)}\n")
    for message in file.message_types_by_name.values():
        parts.append(_build_message(message, notes))
    for enum in file.enum_types_by_name.values():
        parts.append(_build_enum(enum))
    return "\n".join(parts)


def _name_output(method: Any) -> str:
    return f"stream of {method.output_type.name}" if method.server_streaming else str(method.output_type.name)


def _build_message(message: Descriptor, notes: Mapping[str, str]) -> str:
    rows = [
        [str(field.number), code(field.name), _name_type(field), notes.get(f"{message.name}.{field.name}", "")]
        for field in message.fields
    ]
    if not rows:
        return f"`{message.full_name}`: no fields.\n"
    return f"`{message.full_name}`\n\n{build_table(['', 'field', 'type', 'meaning'], rows)}\n"


def _build_enum(enum: EnumDescriptor) -> str:
    values = ", ".join(f"`{value.name}` {value.number}" for value in enum.values)
    return f"Enumeration `{enum.full_name}`: {values}.\n"


_KINDS = {getattr(FieldDescriptor, name): name[5:].lower() for name in dir(FieldDescriptor) if name.startswith("TYPE_")}


def _name_type(field: FieldDescriptor) -> str:
    named = field.message_type or field.enum_type
    kind = named.full_name if named is not None else _KINDS[field.type]
    if field.is_repeated:
        return f"repeated {kind}"
    return f"optional {kind}" if named is None and field.has_presence else kind


def _read_notes(text: str) -> dict[str, str]:
    """Return the comments behind the fields of a .proto file, by message and field."""
    found: dict[str, str] = {}
    message = ""
    for line in text.splitlines():
        if opened := re.match(r"message (\w+)", line):
            message = opened[1]
        elif field := re.match(r"\s+(?:repeated |optional )?[\w.]+ (\w+) = \d+;\s*// (.*)", line):
            found[f"{message}.{field[1]}"] = field[2]
    return found


if __name__ == "__main__":
    PAGE.write_text(build_page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
