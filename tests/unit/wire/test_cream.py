"""Alpaca's items and order updates as messages of cream.v1."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dry_work.errors import CodecError
from dry_work.proto.cream.v1 import common_pb2 as common
from dry_work.proto.cream.v1 import execution_pb2 as execution
from dry_work.proto.cream.v1 import stream_proxy_pb2 as cream
from dry_work.wire import alpaca_stream
from dry_work.wire.alpaca_stream import StreamCodec
from dry_work.wire.cream import (
    Losses,
    build_option_quote,
    build_option_trade,
    build_order_update,
    build_stock_bar,
    build_stock_quote,
    build_stock_trade,
    encode_offset,
)

EXAMPLES = int(os.environ.get("DRY_WORK_FUZZ_EXAMPLES", "60"))  # of Hypothesis, for each of its tests
INPUTS = int(os.environ.get("DRY_WORK_FUZZ_INPUTS", "5000"))  # mutations; a million take half a minute
TIME = "2024-01-02T14:30:00.123456789Z"
STAMP = msgpack.Timestamp(1_704_205_800, 123_456_789)
OPTION = "AAPL240315C00172500"
QUOTE = {"T": "q", "S": "AAPL", "bx": "V", "bp": 1.5, "bs": 3, "ax": "N", "ap": 1.75, "as": 4, "c": ["R"], "z": "C"}
TRADE = {"T": "t", "S": "AAPL", "i": 2**40, "x": "V", "p": 100.5, "s": 3, "c": ["@", "I"], "z": "C"}
BAR = {"T": "b", "S": "AAPL", "o": 1, "h": 3.5, "l": 0.5, "c": 2, "v": 900, "n": 4, "vw": 1.5}
ORDER = {
    "id": "61e69015",
    "client_order_id": "mine",
    "symbol": "AAPL",
    "asset_class": "us_equity",
    "order_class": "bracket",
    "type": "trailing_stop",
    "side": "sell",
    "time_in_force": "cls",
    "qty": "10",
    "filled_qty": "4.5",
    "filled_avg_price": "101.25",
    "limit_price": "100",
    "stop_price": None,
    "status": "partially_filled",
    "extended_hours": True,
    "created_at": TIME,
    "updated_at": TIME,
    "submitted_at": TIME,
    "filled_at": None,
    "canceled_at": TIME,
    "commission": "0.5",
    "legs": [{"id": "l1", "symbol": "AAPL", "side": "buy", "qty": "1", "ratio_qty": "2", "status": "held"}],
}
UPDATE = {"event": "partial_fill", "timestamp": TIME, "order": ORDER, "execution_id": "x1", "price": "101.25"}

BUILDERS: tuple[Callable[[Any, Losses], Any], ...] = (
    build_stock_quote,
    build_option_quote,
    build_stock_trade,
    build_option_trade,
    build_stock_bar,
)


@pytest.mark.parametrize("time", [TIME, STAMP, "2024-01-02T09:30:00.123456789-05:00"])
def test_a_quote_has_every_field_whatever_way_its_time_is_written(time: object) -> None:
    losses = Losses()
    quote = build_stock_quote({**QUOTE, "t": time}, losses).quote
    assert (quote.symbol, quote.bid_exchange, quote.bid_price, quote.bid_size) == ("AAPL", "V", 1.5, 3)
    assert (quote.ask_exchange, quote.ask_price, quote.ask_size, quote.tape) == ("N", 1.75, 4, "C")
    assert (quote.timestamp.seconds, quote.timestamp.nanos, list(quote.conditions)) == (STAMP.seconds, 123456789, ["R"])
    assert not losses.rounded
    assert not losses.limited


def test_a_trade_and_a_bar_have_every_field() -> None:
    trade = build_stock_trade({**TRADE, "t": STAMP}, Losses()).trade
    assert (trade.trade_id, trade.exchange, trade.price, trade.size) == (2**40, "V", 100.5, 3)
    assert (list(trade.conditions), trade.tape, trade.timestamp.seconds) == (["@", "I"], "C", STAMP.seconds)
    bar = build_stock_bar({**BAR, "t": TIME}, Losses()).bar
    assert (bar.symbol, bar.open, bar.high, bar.low, bar.close) == ("AAPL", 1.0, 3.5, 0.5, 2.0)
    assert (bar.volume, bar.vwap, bar.trade_count) == (900, 1.5, 4)


def test_a_real_option_frame_of_trades_quotes_and_an_answer_is_told_item_by_item() -> None:
    trade = {"T": "t", "S": OPTION, "t": STAMP, "p": 2.84, "s": 1, "x": "N", "c": "S"}
    quote = {
        "T": "q",
        "S": OPTION,
        "t": STAMP,
        "bx": "C",
        "bp": 9.0,
        "bs": 126,
        "ax": "N",
        "ap": 9.5,
        "as": 7,
        "c": "A",
    }
    items = [alpaca_stream.encode_subscription_item({"trades": [OPTION], "quotes": [OPTION]}), trade, quote]
    encoded = [alpaca_stream.encode_item(item, StreamCodec.MSGPACK) for item in items]
    (frame,) = alpaca_stream.join_items(encoded, StreamCodec.MSGPACK)
    _, first, second = alpaca_stream.decode_frame(frame)
    told = build_option_trade(first, Losses()).trade
    assert (told.symbol, told.price, told.size, told.exchange, told.condition) == (OPTION, 2.84, 1, "N", "S")
    assert told.timestamp.nanos == 123_456_789
    asked = build_option_quote(second, Losses()).quote
    assert (asked.bid_price, asked.bid_size, asked.ask_size, asked.condition) == (9.0, 126, 7, "A")


def test_a_size_with_a_fraction_is_rounded_down_and_counted() -> None:
    losses = Losses()
    assert build_stock_trade({**TRADE, "t": TIME, "s": 2.999}, losses).trade.size == 2
    assert build_stock_trade({**TRADE, "t": TIME, "s": 2.0}, losses).trade.size == 2
    assert build_stock_quote({**QUOTE, "t": TIME, "as": Decimal("0.5")}, losses).quote.ask_size == 0
    assert build_stock_bar({**BAR, "t": TIME, "v": 1e15 + 0.5}, losses).bar.volume == 10**15
    assert losses.rounded == {"StockTrade.size": 1, "StockQuote.ask_size": 1, "StockBar.volume": 1}
    assert not losses.limited


def test_a_number_beyond_its_field_is_limited_and_counted() -> None:
    losses = Losses()
    assert build_stock_trade({**TRADE, "t": TIME, "s": 2**40}, losses).trade.size == 2**31 - 1
    assert build_stock_trade({**TRADE, "t": TIME, "i": 2**64}, losses).trade.trade_id == 0
    assert build_stock_bar({**BAR, "t": TIME, "v": 1e30}, losses).bar.volume == 2**63 - 1
    assert losses.limited == {"StockTrade.size": 1, "StockTrade.trade_id": 1, "StockBar.volume": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"S": None}, "missing symbol"),
        ({"S": 5}, "S is no text"),
        ({"t": None}, "missing time"),
        ({"t": "soon"}, "malformed time"),
        ({"t": msgpack.Timestamp(2**33 * 100)}, "t is out of range"),
        ({"bp": "1"}, "bp is no number"),
        ({"bp": True}, "bp is no number"),
        ({"bp": float("nan")}, "bp is not finite"),
        ({"as": float("inf")}, "as is not finite"),
        ({"bp": 10**400}, "bp is out of range"),
        ({"bs": Decimal("sNaN")}, "bs is not finite"),
        ({"c": [1]}, "c is no list of texts"),
    ],
)
def test_an_item_that_cannot_be_read_says_why(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(CodecError) as caught:
        build_stock_quote({**QUOTE, "t": TIME, **change}, Losses())
    assert caught.value.reason == reason


def test_what_an_item_does_not_have_is_left_at_nothing() -> None:
    quote = build_stock_quote({"S": "AAPL", "t": "1970-01-01T00:00:00Z"}, Losses()).quote
    assert quote.HasField("timestamp")
    assert (quote.bid_price, quote.bid_size, quote.tape, list(quote.conditions)) == (0.0, 0, "", [])


def test_an_offset_is_put_behind_the_bytes_of_any_response() -> None:
    encoded = build_stock_bar({**BAR, "t": TIME}, Losses()).SerializeToString()
    for offset in (1, 127, 128, 2**40, 2**63):
        found = cream.StreamBarsResponse.FromString(encoded + encode_offset(offset))
        assert (found.offset, found.bar.close) == (offset, 2.0)
    assert "offset" not in str(cream.StreamBarsResponse.FromString(encoded))


# --- order updates


def test_an_order_update_has_every_field() -> None:
    losses = Losses()
    update = build_order_update({**UPDATE, "qty": "4.5", "position_qty": "-4.5"}, "01J", losses).update
    assert (update.event, update.event_id) == (cream.ORDER_EVENT_PARTIAL_FILL, "01J")
    assert (update.execution_id, update.price, update.qty, update.position_qty) == ("x1", "101.25", "4.5", "-4.5")
    assert update.timestamp.nanos == 123_456_789
    order = update.order
    assert (order.id, order.client_order_id, order.symbol, order.status) == (
        "61e69015",
        "mine",
        "AAPL",
        "partially_filled",
    )
    assert (order.asset_class, order.order_class) == (cream.ASSET_CLASS_US_EQUITY, cream.ORDER_CLASS_BRACKET)
    assert (order.order_type, order.time_in_force) == (common.ORDER_TYPE_TRAILING_STOP, common.TIME_IN_FORCE_CLS)
    assert (order.side, order.extended_hours) == (execution.ORDER_SIDE_SELL, True)
    assert (order.qty, order.filled_qty, order.filled_avg_price, order.limit_price) == ("10", "4.5", "101.25", "100")
    assert (order.HasField("stop_price"), order.commission) == (False, "0.5")
    assert order.created_at.nanos == order.updated_at.nanos == order.submitted_at.nanos == 123_456_789
    assert (order.HasField("filled_at"), order.HasField("canceled_at")) == (False, True)
    (leg,) = order.legs
    assert (leg.id, leg.symbol, leg.side, leg.qty) == ("l1", "AAPL", execution.ORDER_SIDE_BUY, "1")
    assert (leg.filled_qty, leg.ratio_qty, leg.status) == ("", "2", "held")
    assert not losses.unread


@pytest.mark.parametrize(("number", "name"), list(enumerate(cream.OrderEvent.keys()))[1:])
def test_every_event_with_a_number_has_it(number: int, name: str) -> None:
    event = name.removeprefix("ORDER_EVENT_").lower()
    assert build_order_update({**UPDATE, "event": event}, "", Losses()).update.event == number


@pytest.mark.parametrize(
    "event", ["held", "restated", "trade_correct", "order_cancel_rejected", "unspecified", "", None]
)
def test_an_event_without_a_number_is_unspecified_and_no_error(event: str | None) -> None:
    update = build_order_update({**UPDATE, "event": event}, "", Losses()).update
    assert (update.event, update.order.status) == (cream.ORDER_EVENT_UNSPECIFIED, "partially_filled")


def test_numbers_of_an_order_are_decimal_texts_and_none_is_never_zero() -> None:
    order = {**ORDER, "qty": None, "limit_price": 10.25, "filled_qty": Decimal("1E+3"), "filled_avg_price": 3}
    details = build_order_update({**UPDATE, "order": order, "price": ""}, "", Losses()).update
    assert (details.order.qty, details.order.limit_price) == ("", "10.25")
    assert (details.order.filled_qty, details.order.filled_avg_price) == ("1000", "3")
    assert not details.HasField("price")


def test_an_order_of_no_class_is_simple_and_of_an_unknown_one_unspecified() -> None:
    for name, number in (("", 1), (None, 1), ("simple", 1), ("mleg", 5), ("new_kind", 0)):
        update = build_order_update({**UPDATE, "order": {**ORDER, "order_class": name}}, "", Losses()).update
        assert update.order.order_class == number


def test_a_field_of_an_order_update_that_cannot_be_read_is_left_out_and_counted() -> None:
    losses = Losses()
    order = {**ORDER, "qty": ["1"], "created_at": "then", "legs": [5], "symbol": "\ud800A", "limit_price": float("inf")}
    update = build_order_update({**UPDATE, "order": order, "price": True}, "id", losses).update
    assert (update.order.qty, update.order.HasField("created_at"), len(update.order.legs)) == ("", False, 0)
    assert update.order.symbol == "?A"
    assert losses.unread == {"qty": 1, "created_at": 1, "legs": 1, "limit_price": 1, "price": 1}
    assert cream.StreamOrderUpdatesResponse.FromString(
        build_order_update({"event": "new"}, "id", losses).SerializeToString()
    )


# --- any input

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.decimals()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["AAPL", OPTION, "BTC/USD", TIME, "fill", "10.5", ""])
    | st.builds(msgpack.Timestamp, st.integers(-(2**63), 2**63 - 1), st.integers(0, 999_999_999))
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


def items_like(example: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Items with the keys of `example`, each its own value, any value, or missing."""
    keys = {name: st.just(value) | VALUES for name, value in example.items()}
    return st.fixed_dictionaries({}, optional=keys)


@settings(max_examples=EXAMPLES, deadline=None)
@given(item=items_like({**QUOTE, **TRADE, **BAR, "t": STAMP}))
def test_any_item_is_told_or_refused(item: dict[str, Any]) -> None:
    for build in BUILDERS:
        try:
            response = build(item, Losses())
        except CodecError:
            continue
        assert type(response).FromString(response.SerializeToString()) == response


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    data=items_like({**UPDATE, "qty": "1", "position_qty": "1"}),
    order=items_like(ORDER) | VALUES,
    event_id=st.text(st.characters(), max_size=5),
)
def test_any_order_update_is_told(data: dict[str, Any], order: Any, event_id: str) -> None:
    response = build_order_update({**data, "order": order}, event_id, Losses())
    assert cream.StreamOrderUpdatesResponse.FromString(response.SerializeToString()) == response


PARTS: list[Any] = [None, True, 0, -1, 1.5, 2**31, 2**63, -(2**70), 10**400, float("nan"), float("inf"), 1e300, -0.0]
PARTS += [
    Decimal("1e-30"),
    Decimal("sNaN"),
    Decimal("1E+400"),
    "",
    "AAPL",
    OPTION,
    TIME,
    "1.5",
    "fill",
    "\ud800",
    "é" * 9,
]
PARTS += [
    [],
    {},
    ["R"],
    [None],
    {"id": "x"},
    [{"id": 5, "qty": "1"}],
    STAMP,
    msgpack.Timestamp(-1),
    msgpack.Timestamp(2**63),
]


def mutate(rng: random.Random, example: dict[str, Any]) -> dict[str, Any]:
    """Return the example with some keys gone and others of another value."""
    mutated = {name: value for name, value in example.items() if rng.random() > 0.1}
    for name in rng.sample(list(example), rng.randrange(4)):
        mutated[name] = rng.choice(PARTS)
    return mutated


def test_many_mutations_of_items_and_updates_are_told_or_refused() -> None:
    rng, losses = random.Random(INPUTS), Losses()
    refused = 0
    items = ({**QUOTE, "t": TIME}, {**TRADE, "t": STAMP}, {**BAR, "t": TIME})
    for number in range(INPUTS):
        if number % 3 == 0:
            order = mutate(rng, ORDER) if rng.random() < 0.9 else rng.choice(PARTS)
            update = build_order_update({**mutate(rng, UPDATE), "order": order}, "id", losses)
            assert cream.StreamOrderUpdatesResponse.FromString(update.SerializeToString()) == update
            continue
        try:
            assert BUILDERS[number % 5](mutate(rng, items[number // 5 % 3]), losses).SerializeToString()
        except CodecError:
            refused += 1
    assert INPUTS / 20 < refused < INPUTS / 2
    assert losses.rounded
    assert losses.limited
    assert losses.unread
