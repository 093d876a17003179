"""Frames of upstreams and of clients, mutated: whatever comes is passed on, answered or counted, and nothing fails."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import orjson
import pytest

from dry_work.alpaca.sse import EventParser, ServerEvent
from dry_work.alpaca.venues import open_venue
from dry_work.clock import SystemClock
from dry_work.errors import CodecError
from dry_work.hub.accounts import AccountSettings, HubAccount
from dry_work.hub.bus import Bus
from dry_work.hub.core import build_feeds
from dry_work.hub.events import ALL, FEEDS, ORDERS
from dry_work.hub.queues import ClientQueue, Overflow
from dry_work.hub.sinks.dialects import DataDialect, Dialect, OrderDialect
from dry_work.hub.targets import FeedTarget
from dry_work.hub.upstreams.alpaca_data import AlpacaDataConnection
from dry_work.hub.upstreams.broker_events import BrokerEventsConnection
from dry_work.hub.upstreams.connection import SessionEndError
from dry_work.hub.upstreams.trade_updates import TradeUpdatesConnection
from dry_work.wire import alpaca_stream
from dry_work.wire.alpaca_stream import FRAME_LIMIT_BYTES, StreamCodec
from dry_work.wire.protobuf_stream import encode_bar, encode_news
from dry_work.wire.protobuf_tradesvc import encode_trade_update

INPUTS = int(os.environ.get("DRY_WORK_FUZZ_INPUTS", "4000"))  # of each test
SLOWEST_S = 20.0  # of one input; a hang takes longer
ACCOUNT = "0f0ee2ab-bd0d-4b7e-8bb7-0f5e4ae4c4a8"
TIME = "2024-01-02T14:30:00.123456789Z"
STAMP = msgpack.Timestamp(1_704_205_800, 123_456_789)
OPTION = "AAPL240315C00172500"
ITEMS: list[dict[str, Any]] = [
    {"T": "t", "S": "AAPL", "i": 2**40, "x": "V", "p": 100.5, "s": 3, "c": ["@", "I"], "z": "C", "t": TIME},
    {"T": "q", "S": "BTC/USD", "bp": 1.5, "bs": 0.3, "ap": 1.75, "as": 4, "t": TIME},
    {"T": "b", "S": "AAPL", "o": 1, "h": 3.5, "l": 0.5, "c": 2, "v": 900, "n": 4, "vw": 1.5, "t": TIME},
    {"T": "q", "S": OPTION, "bx": "C", "bp": 1.5, "bs": 3, "ax": "C", "ap": 2, "as": 4, "c": "A", "t": STAMP},
    {"T": "n", "id": 7, "headline": "Grüße …", "symbols": ["SPY", "BRK.B"], "created_at": TIME, "updated_at": STAMP},
    {"T": "w", "slice": 1, "end": STAMP, "event_id": "e", "last": False},
    {"T": "error", "code": 405, "msg": "symbol limit exceeded"},
    {"T": "subscription", "trades": ["AAPL"], "quotes": [], "bars": ["*"]},
    {"T": "success", "msg": "authenticated"},
    {"T": "of the future", "S": "AAPL", "x": {"y": [1, {"z": None}]}},
]
UPDATES: list[dict[str, Any]] = [
    {
        "event": "fill", "event_id": "01HXYZ", "execution_id": "x", "timestamp": TIME, "price": "1.5", "qty": "1",
        "position_qty": "3", "account_id": ACCOUNT,
        "order": {
            "id": "o1", "client_order_id": "mine", "symbol": "AAPL", "status": "filled", "qty": "10",
            "filled_qty": "4.5",
            "legs": [{"id": "leg", "symbol": "AAPL", "status": "held"}], "created_at": TIME, "side": "sell",
        },
    },
    {"event": "new", "event_id": 8, "at": TIME, "account_id": ACCOUNT, "order": {"id": "o2", "symbol": "btc/usd"}},
]  # fmt: skip
PARTS: list[Any] = [
    None, True, False, 0, -1, 7, 2**63, -(2**63), 2**64 - 1, 1.5, -0.0, 1e308, float("nan"), float("inf"), "", "*", "x",
    "AAPL", "aapl", "BTC/USD", OPTION, "Ü…\U0001f600", "\x00", "x" * 300, TIME, "2024-13-41T99:99:99Z", [], {}, [[]],
    ["*"], ["AAPL", 7], [None], {"T": "t"}, {"symbol": "AAPL"}, "NaN", "1e400", "-5", "0x10", "\u2028",
]  # fmt: skip
BINARY_PARTS: list[Any] = [
    b"\xff\x00", msgpack.ExtType(5, b"abc"), msgpack.Timestamp(2**34 - 1, 0), msgpack.Timestamp(2**60, 1), STAMP,
    msgpack.Timestamp(0, 0),
]  # fmt: skip
MESSAGES: list[dict[str, Any]] = [
    {"action": "auth", "key": "k", "secret": "token"},
    {"action": "authenticate", "data": {"key_id": "k", "secret_key": "token"}},
    {"action": "listen", "data": {"streams": ["trade_updates"]}},
    {"action": "subscribe", "trades": ["AAPL", "BRK.B"], "quotes": ["*"], "bars": ["SPY"],
     "since": {"epoch": "e", "offset": 3}},
    {"action": "subscribe", "news": ["*"]},
    {"action": "subscribe", "trades": [OPTION], "quotes": [OPTION]},
    {"action": "unsubscribe", "trades": ["AAPL"], "snapshot": True},
]  # fmt: skip


def nest(rng: random.Random, leaf: Any) -> Any:
    for _ in range(rng.choice((1, 3, 30, 300, 900))):
        leaf = [leaf] if rng.random() < 0.5 else {"x": leaf}
    return leaf


def mutate(rng: random.Random, value: Any, parts: Sequence[Any]) -> Any:
    """Return a value with some of its parts gone, and others in their place."""
    chance = rng.random()
    if chance < 0.02:
        return nest(rng, rng.choice(parts))
    if chance < 0.1:
        return rng.choice(parts)
    if isinstance(value, dict):
        mutated = {name: mutate(rng, part, parts) for name, part in value.items() if rng.random() > 0.05}
        if rng.random() < 0.2:
            mutated[rng.choice(("T", "S", "symbols", "more", "", "Ü"))] = rng.choice(parts)
        return mutated
    if isinstance(value, list):
        return [mutate(rng, part, parts) for part in value if rng.random() > 0.1] * rng.choice((1, 1, 1, 3))
    return value


def damage(rng: random.Random, data: bytes) -> bytes:
    """Return the bytes with some of them wrong, gone or twice."""
    for _ in range(rng.choice((0, 0, 0, 1, 2, 8))):
        if not data:
            return data
        at, length = rng.randrange(len(data)), rng.randrange(1, 9)
        middle = rng.choice(
            (b"", rng.randbytes(length), data[at : at + length] * 2, b"\xc1", b"[", b'"', b"\xdd\xff\xff")
        )
        data = data[:at] + middle + data[at + rng.choice((0, length)) :]
    return data


def to_json(value: Any) -> bytes:
    return json.dumps(value, default=str).encode()


def to_msgpack(value: Any) -> bytes:
    try:
        packed = msgpack.packb(value)
    except (ValueError, OverflowError, TypeError):  # nested too deeply even for this
        packed = b"\x90"
    assert isinstance(packed, bytes)
    return packed


def run(make: Callable[[random.Random], Callable[[], None]]) -> None:
    """Make and take all inputs; an input that hangs is told by its number."""
    rng = random.Random(INPUTS)
    for number in range(INPUTS):
        take = make(rng)
        begun_s = time.monotonic()
        try:
            take()
        except Exception as error:
            raise AssertionError(f"input {number}") from error
        assert time.monotonic() - begun_s < SLOWEST_S, f"input {number} takes too long"


class Readers:
    """Takes every event of a bus, and writes it in every form that clients get."""

    def __init__(self, bus: Bus) -> None:
        self.queue = ClientQueue(100_000, Overflow.DROP_OLDEST, on_ready=lambda: None)
        channels = ("trades", "quotes", "bars", "news", "unknown", ORDERS, "watermarks")
        bus.attach(self.queue, [(feed, channel, ALL) for feed in FEEDS for channel in channels])
        self.data = [DataDialect("stocks", codec, admits=lambda _: True, tells_position=True) for codec in StreamCodec]
        self.orders = [
            OrderDialect("orders.paper", is_stream=False, admits=lambda _: True, is_hub_aware=aware)
            for aware in (False, True)
        ]
        self.events = 0

    def read(self) -> None:
        for event in self.queue.take():
            self.events += 1
            if event.feed.startswith("orders"):
                for orders in self.orders:
                    (frame,) = orders.encode([event])
                    assert json.loads(frame)["stream"] == "trade_updates"
                assert encode_trade_update(event.item, event_id=event.event_id)
                continue
            for data in self.data:
                assert all(alpaca_stream.decode_frame(frame) for frame in data.encode([event]))
            encode_bar(event.item)
            encode_news(event.item)


@pytest.mark.parametrize("codec", list(StreamCodec), ids=lambda codec: codec.name)
def test_frames_of_market_data_are_passed_on_or_counted(codec: StreamCodec) -> None:
    bus = Bus("e")
    feed = build_feeds(stock_feed="iex", market_topic="market-data", crypto_topic="crypto-data")[0]
    connection = AlpacaDataConnection(
        feed="iex", url="ws://127.0.0.1:1", key="k", secret="s", target=FeedTarget(feed, bus), clock=SystemClock(),
        rng=random.Random(1), codec=codec,
    )  # fmt: skip
    connection._target.reads_bars = True
    readers = Readers(bus)
    is_binary = codec is StreamCodec.MSGPACK
    parts = [*PARTS, *BINARY_PARTS] if is_binary else PARTS
    ended = 0

    def make(rng: random.Random) -> Callable[[], None]:
        items = [mutate(rng, rng.choice(ITEMS), parts) for _ in range(rng.choice((0, 1, 1, 2, 5)))]
        content = items if rng.random() < 0.98 else rng.choice(parts)
        frame = damage(rng, to_msgpack(content) if is_binary else to_json(content))

        def take() -> None:
            nonlocal ended
            try:
                connection._take_frame(frame)
            except SessionEndError:
                ended += 1
            readers.read()

        return take

    run(make)
    status = connection.status()
    assert readers.events > INPUTS / 3
    assert ended < INPUTS / 10
    assert sum(status.malformed.values()) > INPUTS / 20
    assert len(status.unknown) <= 201
    assert len(status.malformed) <= 201


def build_account() -> HubAccount:
    access = open_venue("KEY", "SECRET", url="http://127.0.0.1:1", account_id=ACCOUNT)
    return HubAccount(AccountSettings(environment="paper", access=access), threads=1)


def test_frames_of_order_streams_are_told_or_counted() -> None:
    account, bus = build_account(), Bus("e")
    options: dict[str, Any] = {"clock": SystemClock(), "rng": random.Random(1)}
    socket = TradeUpdatesConnection(account, bus, **options)
    events = BrokerEventsConnection(account, bus, **options)
    readers = Readers(bus)

    def make(rng: random.Random) -> Callable[[], None]:
        update = mutate(rng, rng.choice(UPDATES), PARTS)
        if isinstance(update, dict) and isinstance(update.get("event_id"), str):
            update["event_id"] += str(rng.randrange(INPUTS))  # or it were told before
        is_socket = rng.random() < 0.5
        message = (
            {"stream": "trade_updates", "data": update} if rng.random() < 0.95 else rng.choice([*PARTS, [ITEMS[6]]])
        )
        data = damage(rng, to_json(message if is_socket else update))
        frame = data if is_socket else damage(rng, b"id: 7\nevent: x\n:c\ndata: ") + data + b"\n\n"

        def take() -> None:
            try:
                if is_socket:
                    socket._take_frame(frame)
                else:
                    for item in EventParser().feed(frame):
                        if isinstance(item, ServerEvent):
                            events._take(item)
                        else:
                            events._take_comment(item.text)
            except SessionEndError:
                pass
            readers.read()

        return take

    run(make)
    account.close()
    assert readers.events > INPUTS / 10
    assert sum(socket.status().malformed.values()) > INPUTS / 50
    assert events.passed_over


DIALECTS: dict[str, Callable[[], Dialect]] = {
    **{
        f"{feed}-{codec.name}": lambda feed=feed, codec=codec: DataDialect(  # type: ignore[misc]
            feed, codec, admits=lambda secret: secret == "token", tells_position=codec is StreamCodec.JSON
        )
        for feed, codec in (
            ("stocks", StreamCodec.JSON),
            ("stocks", StreamCodec.MSGPACK),
            ("options", StreamCodec.MSGPACK),
            ("news", StreamCodec.JSON),
        )
    },
    "orders": lambda: OrderDialect("orders.paper", is_stream=False, admits=lambda s: s == "token", is_hub_aware=True),
    "stream": lambda: OrderDialect("orders.paper", is_stream=True, admits=lambda s: s == "token"),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_frames_of_clients_are_answered(name: str) -> None:
    build = DIALECTS[name]
    dialect, held, admitted = build(), set[Any](), 0

    def make(rng: random.Random) -> Callable[[], None]:
        message = rng.choice(MESSAGES)
        if rng.random() < 0.8:
            message = mutate(rng, message, [*PARTS, *BINARY_PARTS])
        if rng.random() < 0.5:
            frame: bytes | str = damage(rng, to_msgpack(message))
        else:
            frame = damage(rng, to_json(message))
            if rng.random() < 0.5:
                frame = frame.decode("utf-8", "replace")
        anew = rng.random() < 0.01

        def take() -> None:
            nonlocal dialect, admitted
            if anew:
                dialect = build()
                held.clear()
            answer = dialect.take(frame)
            assert answer.frames, "every message is answered"
            assert all(len(part) <= FRAME_LIMIT_BYTES for part in answer.frames)
            for part in answer.frames:
                msgpack.unpackb(part) if dialect.binary else orjson.loads(part)
            assert dialect.is_authenticated or not (answer.added or answer.removed)
            assert not held & set(answer.added)
            assert held >= set(answer.removed)
            held.update(answer.added)
            held.difference_update(answer.removed)
            admitted += bool(answer.added)

        return take

    run(make)
    assert admitted > INPUTS / 1_000


@pytest.mark.parametrize("codec", list(StreamCodec), ids=lambda codec: codec.name)
def test_an_item_that_an_encoding_cannot_hold_goes_on_as_text(codec: StreamCodec) -> None:
    deep: Any = "x"
    for _ in range(600):
        deep = [deep]
    item: dict[Any, Any] = {
        "T": "t",
        "S": "AAPL",
        "p": 1.5,
        "b": b"\xff",
        "e": msgpack.ExtType(1, b"\x01"),
        "d": deep,
        b"k": 2**70,
    }
    item["t"] = msgpack.Timestamp(2**50, 5)
    (frame,) = alpaca_stream.join_bytes([alpaca_stream.encode_item(item, codec)], codec)
    (found,) = alpaca_stream.decode_frame(frame)
    assert {name: found[name] for name in ("T", "S", "p", "b", "e", "k")} == {
        "T": "t", "S": "AAPL", "p": 1.5, "b": "\ufffd", "e": "01", "k": float(2**70),
    }  # fmt: skip


def test_what_is_no_frame_is_refused() -> None:
    for frame in ("", "7", b"\xc1", b"\x80", "{}"):
        with pytest.raises(CodecError):
            alpaca_stream.decode_frame(frame)
