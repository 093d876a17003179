"""Frames and messages of Alpaca's market-data WebSocket."""

from __future__ import annotations

import contextlib
import json
import math

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.errors import CodecError
from dry_work.market.messages import Bar
from dry_work.wire.alpaca_stream import (
    StreamCodec,
    StreamControl,
    StreamUnread,
    StreamWatermark,
    build_auth,
    build_subscription,
    encode_bar_item,
    encode_error_item,
    encode_item,
    encode_message,
    encode_quote_item,
    encode_rest_row,
    encode_subscription_item,
    encode_success_item,
    encode_trade_item,
    encode_watermark_item,
    join_items,
    parse_frame,
    parse_message,
)

START_NS = 1_718_112_600_000_000_000  # 2024-06-11T13:30:00Z
CODECS = list(StreamCodec)

prices = st.floats(0, 1e9, allow_nan=False)
bars = st.builds(
    Bar,
    symbol=st.sampled_from(["AAPL", "BRK.B", "BTC/USD"]),
    ts_event_ns=st.integers(0, 2**63 - 1),
    open=prices,
    high=prices,
    low=prices,
    close=prices,
    volume=prices,
    trade_count=st.none() | st.integers(0, 10**9).map(float),
    vwap=st.none() | prices,
    extra=st.dictionaries(st.sampled_from(["rsi", "sentiment_score"]), st.floats(-1, 1), max_size=2),
)
marks = st.builds(
    StreamWatermark,
    slice=st.integers(1, 10**9),
    end_ns=st.integers(0, 2**63 - 1),
    event_id=st.sampled_from(["", "01J3WE73W5PG672TC4XACXH5R0"]),
    last=st.booleans(),
)


def make_bar(**fields: object) -> Bar:
    return Bar(
        **{  # type: ignore[arg-type]
            "symbol": "AAPL",
            "ts_event_ns": START_NS,
            "open": 10.0,
            "high": 12.0,
            "low": 9.0,
            "close": 11.0,
            "volume": 100.0,
            **fields,
        }
    )


def make_frame(*items: dict[str, object]) -> str:
    return json.dumps([{"T": "b", "S": "AAPL", "o": 1, "h": 1, "l": 1, "c": 1, "v": 1, **item} for item in items])


@pytest.mark.parametrize("codec", CODECS)
@given(bar=bars)
def test_a_bar_comes_back_as_it_went(codec: StreamCodec, bar: Bar) -> None:
    (frame,) = join_items([encode_item(encode_bar_item(bar), codec)], codec)
    (read,) = parse_frame(frame, recv_ns=7)
    assert isinstance(read, Bar)
    source = "alpaca_crypto" if bar.symbol == "BTC/USD" else "alpaca_stock"
    assert (read.source, read.ts_recv_ns) == (source, 7)
    assert {**encode_bar_item(read)} == {**encode_bar_item(bar)}
    assert read.ts_event_ns == bar.ts_event_ns


@pytest.mark.parametrize("codec", CODECS)
@given(mark=marks)
def test_a_watermark_comes_back_as_it_went(codec: StreamCodec, mark: StreamWatermark) -> None:
    (frame,) = join_items([encode_item(encode_watermark_item(mark), codec)], codec)
    assert parse_frame(frame, recv_ns=0) == [mark]


@given(st.binary(max_size=200))
def test_bytes_from_outside_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(CodecError):
        assert isinstance(parse_frame(data, recv_ns=0), list)
    with contextlib.suppress(CodecError):
        assert isinstance(parse_message(data)["action"], str)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
item_names = st.sampled_from(
    ["T", "S", "o", "h", "l", "c", "v", "n", "vw", "t", "slice", "end", "extra", "msg", "code"]
)


@given(st.lists(st.dictionaries(item_names, values, max_size=9) | values, max_size=4), st.sampled_from("bwx"))
def test_one_odd_item_never_costs_the_others(items: list[object], kind: str) -> None:
    good = encode_bar_item(make_bar())
    odd = [{**good, "T": kind, **item} if isinstance(item, dict) else item for item in items]
    read = parse_frame(msgpack.packb([*odd, good]), recv_ns=0)
    assert len(read) == len(odd) + 1
    assert isinstance(read[-1], Bar)
    for item in read:
        if isinstance(item, Bar):
            assert all(math.isfinite(price) and price >= 0 for price in (item.open, item.high, item.low, item.close))


def test_a_bar_has_alpacas_keys_with_count_and_vwap_always_there() -> None:
    item = encode_bar_item(make_bar())
    assert list(item) == ["T", "S", "o", "h", "l", "c", "v", "n", "vw", "t"]
    assert (item["n"], item["vw"], item["v"]) == (None, None, 100)
    (text,) = join_items([encode_item(item, StreamCodec.JSON)], StreamCodec.JSON)
    assert json.loads(text)[0]["t"] == "2024-06-11T13:30:00Z"


def test_extra_fields_that_are_no_finite_numbers_are_not_sent() -> None:
    assert "extra" not in encode_bar_item(make_bar(extra={"rsi": math.nan}))
    assert encode_bar_item(make_bar(extra={"rsi": math.nan, "macd": 1.5}))["extra"] == {"macd": 1.5}


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"t": "2024-06-11T13:30:00Z", "o": None}, "missing price"),
        ({"t": "2024-06-11T13:30:00Z", "c": "ten"}, "non-finite price"),
        ({"t": "2024-06-11T13:30:00Z", "l": -1}, "negative price"),
        ({"t": "2024-06-11T13:30:00Z", "v": -1}, "negative volume"),
        ({"t": 5}, "malformed time"),
        ({"t": "yesterday"}, "malformed time"),
        ({"t": "2024-06-11T13:30:00Z", "S": "not a symbol"}, "malformed symbol"),
    ],
)
def test_a_bar_that_cannot_be_used_says_why(item: dict[str, object], reason: str) -> None:
    (read,) = parse_frame(make_frame(item), recv_ns=0)
    assert isinstance(read, StreamUnread)
    assert (read.kind, read.reason) == ("b", reason)


def test_items_of_other_types_are_left_unread_without_a_reason() -> None:
    assert parse_frame('[{"T":"q","S":"AAPL"}]', recv_ns=0) == [StreamUnread(kind="q")]


@pytest.mark.parametrize("codec", CODECS)
def test_control_messages_are_read(codec: StreamCodec) -> None:
    items = [
        encode_success_item("connected", watermarks=True),
        encode_success_item("authenticated"),
        encode_error_item(402),
        encode_subscription_item({"bars": {"MSFT", "AAPL"}, "trades": set()}),
    ]
    (frame,) = join_items([encode_item(item, codec) for item in items], codec)
    assert parse_frame(frame, recv_ns=0) == [
        StreamControl(kind="success", message="connected", watermarks=True),
        StreamControl(kind="success", message="authenticated"),
        StreamControl(kind="error", message="auth failed", code=402),
        StreamControl(kind="subscription", channels={"bars": ("AAPL", "MSFT"), "trades": ()}),
    ]


@pytest.mark.parametrize("codec", CODECS)
def test_frames_stay_below_their_limit_and_keep_the_order(codec: StreamCodec) -> None:
    items = [encode_item(encode_bar_item(make_bar(ts_event_ns=START_NS + n)), codec) for n in range(100)]
    frames = list(join_items(items, codec, limit_bytes=1000))
    assert all(len(frame) <= 1000 for frame in frames)
    assert len(frames) > 5
    read = [item for frame in frames for item in parse_frame(frame, recv_ns=0)]
    assert [item.ts_event_ns - START_NS for item in read if isinstance(item, Bar)] == list(range(100))


def test_no_items_make_no_frame() -> None:
    assert list(join_items([], StreamCodec.JSON)) == []


@pytest.mark.parametrize("codec", CODECS)
def test_client_messages_come_back_as_they_went(codec: StreamCodec) -> None:
    for message in (
        build_auth("key", "secret"),
        build_subscription("subscribe", {"bars": ["AAPL"], "watermarks": ["*"]}),
    ):
        assert parse_message(encode_message(message, codec)) == message


def test_json_in_a_binary_frame_is_read_too() -> None:
    assert parse_message(b'{"action":"auth"}') == {"action": "auth"}
    assert parse_frame(b'[{"T":"success","msg":"connected"}]', recv_ns=0) == [
        StreamControl(kind="success", message="connected")
    ]


@pytest.mark.parametrize("frame", ["{}", "nonsense", b"\x80", "[" * 10_000, b""])
def test_a_frame_that_is_no_array_is_refused(frame: bytes | str) -> None:
    with pytest.raises(CodecError):
        parse_frame(frame, recv_ns=0)


@pytest.mark.parametrize("message", ["[]", '{"action": 1}', "{}", "nonsense", msgpack.packb([1])])
def test_a_message_without_action_is_refused(message: bytes | str) -> None:
    with pytest.raises(CodecError):
        parse_message(message)


# Trades, quotes, daily bars


def test_a_stocks_trade_and_quote_have_alpacas_keys_and_json_times() -> None:
    trade = encode_trade_item(
        "AAPL",
        time_ns=START_NS + 1,
        price=178.26,
        size=100.0,
        trade_id=7,
        exchange="V",
        conditions=("@", "I"),
        tape="C",
    )
    quote = encode_quote_item(
        "AAPL", time_ns=START_NS, bid_price=178.2, bid_size=100.0, ask_price=0.0, ask_size=0.0, bid_exchange="V"
    )
    decoded = [json.loads(encode_item(item, StreamCodec.JSON)) for item in (trade, quote)]
    stamp = "2024-06-11T13:30:00.000000001Z"
    assert decoded == [
        {"T": "t", "S": "AAPL", "i": 7, "x": "V", "p": 178.26, "s": 100, "c": ["@", "I"], "z": "C", "t": stamp},
        {
            "T": "q",
            "S": "AAPL",
            "bx": "V",
            "bp": 178.2,
            "bs": 100,
            "ax": "",
            "ap": 0.0,
            "as": 0,
            "c": [],
            "z": "",
            "t": "2024-06-11T13:30:00Z",
        },
    ]
    assert encode_rest_row(trade) == {"t": stamp, "i": 7, "x": "V", "p": 178.26, "s": 100, "c": ["@", "I"], "z": "C"}


def test_a_coins_trade_and_quote_have_fractional_sizes_and_no_venue() -> None:
    trade = encode_trade_item("BTC/USD", time_ns=START_NS, price=6e4, size=1.0, trade_id=1, taker_side="B")
    quote = encode_quote_item("BTC/USD", time_ns=START_NS, bid_price=1.0, bid_size=0.5, ask_price=2.0, ask_size=1.0)
    assert list(trade) == ["T", "S", "i", "p", "s", "tks", "t"]
    assert list(quote) == ["T", "S", "bp", "bs", "ap", "as", "t"]
    assert isinstance(trade["s"], float)


@settings(deadline=None)
@given(time_ns=st.integers(0, 2**63 - 1))
def test_times_of_trades_keep_their_nanoseconds_in_messagepack(time_ns: int) -> None:
    item = encode_trade_item("AAPL", time_ns=time_ns, price=1.0, size=1.0, trade_id=1)
    decoded = msgpack.unpackb(encode_item(item, StreamCodec.MSGPACK))
    assert decoded["t"].to_unix_nano() == time_ns
    assert next(iter(decoded)) == "T"


@settings(deadline=None)
@given(bar=bars)
def test_a_daily_bar_differs_from_a_bar_by_its_type_alone(bar: Bar) -> None:
    assert encode_bar_item(bar, "d") == {**encode_bar_item(bar), "T": "d"}
    assert not {"T", "S", "extra"} & set(encode_rest_row(encode_bar_item(bar)))
