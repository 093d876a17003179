"""Orders, trade updates and positions as protocol buffers."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.errors import CodecError
from dry_work.proto.stream.v0 import stream_pb2
from dry_work.proto.tradesvc.v0 import tradesvc_pb2 as pb
from dry_work.wire.protobuf_stream import encode_bar, encode_news
from dry_work.wire.protobuf_tradesvc import decode_trade, encode_positions, encode_trade_update, is_same_order

EXAMPLES = int(os.environ.get("DRY_WORK_FUZZ_EXAMPLES", "50"))

GOOD = {
    "symbol": "spy",
    "qty": "1.50",
    "side": pb.SIDE_BUY,
    "order_type": pb.ORDER_TYPE_MARKET,
    "tif": pb.TIME_IN_FORCE_DAY,
}


def decode(**fields: Any) -> dict[str, Any]:
    values = {name: value for name, value in {**GOOD, **fields}.items() if value is not None}
    return decode_trade(pb.Trade(**values).SerializeToString(), client_order_id="id")


def test_a_trade_becomes_the_body_of_an_order() -> None:
    assert decode() == {
        "symbol": "SPY", "side": "buy", "type": "market", "time_in_force": "day", "qty": "1.50",
        "client_order_id": "id",
    }  # fmt: skip
    full = decode(
        symbol="brk.b",
        side=pb.SIDE_SELL,
        order_type=pb.ORDER_TYPE_STOP_LIMIT,
        tif=pb.TIME_IN_FORCE_GTC,
        limit_price="9.5",
        stop_price="10",
        extended_hours=True,
        take_profit=pb.TakeProfit(limit_price="12"),
        stop_loss=pb.StopLoss(stop="8", limit="7.9"),
        position_intent=pb.POSITION_INTENT_SELL_TO_CLOSE,
        **{"class": pb.ORDER_CLASS_BRACKET},
    )
    assert full == {
        "symbol": "BRK.B", "side": "sell", "type": "stop_limit", "time_in_force": "gtc", "qty": "1.50",
        "limit_price": "9.5", "stop_price": "10", "extended_hours": True, "order_class": "bracket",
        "take_profit": {"limit_price": "12"}, "stop_loss": {"stop_price": "8", "limit_price": "7.9"},
        "position_intent": "sell_to_close", "client_order_id": "id",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["day", "gtc", "opg", "ioc", "fok", "gtx", "gtd", "cls"])
def test_every_time_in_force_has_its_word(name: str) -> None:
    assert decode(tif=pb.TimeInForce.Value(f"TIME_IN_FORCE_{name.upper()}"))["time_in_force"] == name


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"symbol": None}, "symbol is missing"),
        ({"symbol": "  "}, "symbol is missing"),
        ({"side": None}, "side is missing"),
        ({"side": 7}, "side 7 is unknown: expected one of 1 SIDE_BUY, 2 SIDE_SELL"),
        ({"order_type": None}, "order_type is missing"),
        ({"tif": None}, "tif is missing"),
        ({"qty": None}, "qty or notional is missing"),
        ({"notional": "10"}, "both given"),
        ({"qty": "0"}, "qty '0' is not usable"),
        ({"qty": "0.000"}, "above 0"),
        ({"qty": "-1"}, "qty '-1'"),
        ({"qty": "NaN"}, "qty 'NaN'"),
        ({"qty": "1,5"}, "qty '1,5'"),
        ({"qty": "١"}, "is not usable"),
        ({"order_type": pb.ORDER_TYPE_LIMIT}, "limit_price is missing"),
        ({"order_type": pb.ORDER_TYPE_STOP}, "stop_price is missing"),
        ({"order_type": pb.ORDER_TYPE_STOP_LIMIT, "stop_price": "1"}, "limit_price is missing"),
        ({"order_type": pb.ORDER_TYPE_TRAILING_STOP}, "trail_price or trail_percent"),
        ({"order_type": pb.ORDER_TYPE_TRAILING_STOP, "trail_price": "1", "trail_percent": "1"}, "not both"),
        ({"class": 9}, "class 9 is unknown"),
        ({"position_intent": 9}, "position_intent 9 is unknown"),
        ({"stop_loss": pb.StopLoss(limit="1")}, "stop_loss.stop is missing"),
        ({"take_profit": pb.TakeProfit(limit_price="x")}, "take_profit.limit_price 'x'"),
    ],
)
def test_what_is_missing_or_wrong_is_said(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(CodecError, match=text):
        decode(**fields)


def test_an_id_is_at_most_128_characters_long() -> None:
    data = pb.Trade(**GOOD).SerializeToString()
    assert decode_trade(data, client_order_id="x" * 128)["client_order_id"] == "x" * 128
    with pytest.raises(CodecError, match="129 characters"):
        decode_trade(data, client_order_id="x" * 129)


def test_an_oco_order_has_its_limit_price_in_take_profit() -> None:
    fields = {"order_type": pb.ORDER_TYPE_LIMIT, "class": pb.ORDER_CLASS_OCO}
    assert "limit_price" not in decode(take_profit=pb.TakeProfit(limit_price="12"), **fields)


def test_the_same_order_is_known_again_and_another_is_not() -> None:
    body = decode(order_type=pb.ORDER_TYPE_LIMIT, limit_price="10.0", symbol="BTC/USD")
    order = {
        "symbol": "BTCUSD", "side": "buy", "type": "limit", "time_in_force": "day", "qty": "1.5", "limit_price": "10",
        "order_class": "", "extended_hours": False,
    }  # fmt: skip
    assert is_same_order(body, order)
    for change in (
        {"symbol": "SPY"}, {"side": "sell"}, {"type": "market"}, {"time_in_force": "gtc"}, {"qty": "2"}, {"qty": None},
        {"limit_price": "x"}, {"order_class": "oco"}, {"extended_hours": True},
    ):  # fmt: skip
        assert not is_same_order(body, {**order, **change}), change


def test_an_update_keeps_all_that_alpaca_said() -> None:
    order = {
        "id": "o", "client_order_id": "c", "symbol": "BRK.B", "asset_class": "us_equity", "order_class": "",
        "type": "trailing_stop", "side": "sell", "time_in_force": "cls", "status": "filled", "qty": "2",
        "filled_qty": "2", "filled_avg_price": "10.5", "trail_percent": "1", "hwm": "11", "extended_hours": True,
        "created_at": "2024-01-02T09:30:00-05:00", "filled_at": "2024-01-02T14:30:00.000000001Z", "canceled_at": None,
        "replaces": "before", "legs": [{"id": "leg", "symbol": "BRK.B", "type": "stop", "side": "buy"}],
    }  # fmt: skip
    data = {
        "event": "fill", "timestamp": "2024-01-02T14:30:00.5Z", "execution_id": "x", "price": "10.5", "qty": "2",
        "position_qty": "-2", "order": order,
    }  # fmt: skip
    update = pb.TradeUpdate.FromString(encode_trade_update(data, event_id="e-1"))
    assert (update.event, update.event_id, update.execution_id) == ("fill", "e-1", "x")
    assert (update.price, update.qty, update.position_qty) == ("10.5", "2", "-2")
    assert update.timestamp == update.at
    assert update.at.ToNanoseconds() == 1_704_205_800_500_000_000
    found = update.order
    assert (found.type, found.side, found.time_in_force) == (
        pb.ORDER_TYPE_TRAILING_STOP,
        pb.SIDE_SELL,
        pb.TIME_IN_FORCE_CLS,
    )
    assert (found.asset_class, found.order_class) == (pb.ASSET_CLASS_US_EQUITY, pb.ORDER_CLASS_SIMPLE)
    assert (found.trail_percent, found.hwm, found.ext_hours, found.replaces) == ("1", "11", True, "before")
    assert found.created_at.ToNanoseconds() == 1_704_205_800_000_000_000
    assert found.filled_at.nanos == 1
    assert not found.HasField("canceled_at")
    assert [(leg.id, leg.type) for leg in found.legs] == [("leg", pb.ORDER_TYPE_STOP)]


def test_positions_have_canonical_symbols_and_none_are_no_bytes() -> None:
    assert encode_positions([]) == b""
    data = encode_positions(
        [
            {"symbol": "BTCUSD", "asset_class": "crypto", "qty": "0.5", "side": "long", "asset_marginable": False},
            {"symbol": "AAPL240315C00172500", "asset_class": "us_option", "qty": "-1", "usd": {"x": 1}},
        ]
    )
    crypto, option = pb.Positions.FromString(data).positions
    assert (crypto.symbol, crypto.asset_class, crypto.qty) == ("BTC/USD", pb.ASSET_CLASS_CRYPTO, "0.5")
    assert (option.symbol, option.asset_class, option.qty) == ("AAPL240315C00172500", pb.ASSET_CLASS_UNSPECIFIED, "-1")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=8,
)


def _items(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(names), _JSON)


_ORDER = _items([field.name for field in pb.Order.DESCRIPTOR.fields])


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=200), st.text(max_size=140))
def test_any_payload_is_an_order_or_refused(data: bytes, client_order_id: str) -> None:
    try:
        body = decode_trade(data, client_order_id=client_order_id)
    except CodecError:
        return
    assert body["symbol"]
    assert ("qty" in body) != ("notional" in body)


@settings(max_examples=EXAMPLES, deadline=None)
@given(_items(["event", "timestamp", "at", "execution_id", "price", "qty", "position_qty"]), _ORDER | _JSON, _JSON)
def test_any_update_is_encoded(data: dict[str, Any], order: Any, legs: Any) -> None:
    order = {**order, "legs": legs} if isinstance(order, dict) else order
    update = pb.TradeUpdate.FromString(encode_trade_update({**data, "order": order}, event_id="e"))
    assert update.event_id == "e"


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.lists(_items([field.name for field in pb.Position.DESCRIPTOR.fields]), max_size=3),
    _items(["S", "o", "h", "l", "c", "v", "t", "n", "vw"]),
    _items([field.name for field in stream_pb2.News.DESCRIPTOR.fields]),
)
def test_any_positions_bars_and_news_are_encoded(
    positions: list[dict[str, Any]], bar: dict[str, Any], news: dict[str, Any]
) -> None:
    assert len(pb.Positions.FromString(encode_positions(positions)).positions) == len(positions)
    stream_pb2.Bar.FromString(encode_bar(bar))
    stream_pb2.News.FromString(encode_news(news))
