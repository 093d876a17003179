"""Groups, trailing stops and replacements in Alpaca's JSON."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from dry_work.errors import CodecError
from dry_work.orders.model import (
    OrderClass,
    OrderRequest,
    OrderType,
    Replacement,
    Side,
    StopLoss,
    TimeInForce,
    VenueOrder,
)
from dry_work.wire.alpaca_fields import RequestError
from dry_work.wire.alpaca_orders import (
    build_order_request,
    build_replacement,
    encode_order,
    parse_order,
    parse_order_request,
    parse_replacement,
)


def order(name: str, order_type: OrderType = OrderType.MARKET, **changes: Any) -> VenueOrder:
    given: dict[str, Any] = {
        "id": name, "client_order_id": f"c-{name}", "symbol": "AAPL", "side": Side.SELL, "type": order_type,
        "time_in_force": TimeInForce.GTC, "status": "held", "qty": Decimal(10), **changes,
    }  # fmt: skip
    return VenueOrder(**given)


def body(**changes: Any) -> dict[str, Any]:
    given = {
        "symbol": "AAPL", "side": "buy", "type": "market", "time_in_force": "gtc", "qty": "10",
        "client_order_id": "a", **changes,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


PROFIT, LOSS = {"limit_price": "12"}, {"stop_price": "8", "limit_price": "7.9"}


def test_an_order_keeps_its_legs_and_their_kinds() -> None:
    whole = order(
        "head", side=Side.BUY, order_class="bracket",
        legs=(
            order("profit", OrderType.LIMIT, limit_price=Decimal(12), order_class="bracket"),
            order("loss", OrderType.STOP, stop_price=Decimal(8), order_class="bracket"),
        ),
    )  # fmt: skip
    sent = json.loads(json.dumps(encode_order(whole)))
    assert [leg["status"] for leg in sent["legs"]] == ["held", "held"]
    assert parse_order(sent) == whole


def test_a_trailing_stop_shows_where_it_stands() -> None:
    trailing = order(
        "t", OrderType.TRAILING_STOP, trail_percent=Decimal("1.5"), hwm=Decimal(100), stop_price=Decimal("98.5")
    )
    sent = encode_order(trailing)
    assert (sent["trail_percent"], sent["trail_price"], sent["hwm"], sent["stop_price"]) == ("1.5", None, "100", "98.5")
    assert parse_order(sent) == trailing


def test_an_order_class_that_nobody_knows_stays_its_text() -> None:
    assert parse_order({**encode_order(order("a")), "order_class": "mleg"}).order_class == "mleg"
    assert parse_order({**encode_order(order("a")), "order_class": None}).order_class == "simple"


@pytest.mark.parametrize("legs", ["both", {"id": "a"}, [1], [encode_order(order("a"))] * 9])
def test_legs_that_are_none_cannot_be_read(legs: Any) -> None:
    with pytest.raises(CodecError):
        parse_order({**encode_order(order("a")), "legs": legs})


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        (
            body(order_class="bracket", take_profit=PROFIT, stop_loss=LOSS),
            {"order_class": OrderClass.BRACKET, "take_profit": Decimal(12),
             "stop_loss": StopLoss(Decimal(8), Decimal("7.9"))},
        ),
        (body(order_class="oto", take_profit=PROFIT), {"order_class": OrderClass.OTO, "take_profit": Decimal(12)}),
        (
            body(order_class="oco", type="limit", take_profit={"limit_price": 12}, stop_loss={"stop_price": 8}),
            {"order_class": OrderClass.OCO, "type": OrderType.LIMIT, "take_profit": Decimal(12),
             "stop_loss": StopLoss(Decimal(8))},
        ),
        (body(type="trailing_stop", trail_price="0.5"),
         {"type": OrderType.TRAILING_STOP, "trail_price": Decimal("0.5")}),
        (body(type="trailing_stop", trail_percent="2"), {"type": OrderType.TRAILING_STOP, "trail_percent": Decimal(2)}),
        (body(order_class="simple"), {}),
    ],
)  # fmt: skip
def test_a_request_is_read_and_written_alike(sent: dict[str, Any], wanted: dict[str, Any]) -> None:
    plain = OrderRequest(
        client_order_id="a", symbol="AAPL", side=Side.BUY, type=OrderType.MARKET, time_in_force=TimeInForce.GTC,
        qty=Decimal(10),
    )  # fmt: skip
    read = parse_order_request(sent)
    assert {name: getattr(read, name) for name in read.__struct_fields__} == {
        **{name: getattr(plain, name) for name in plain.__struct_fields__}, **wanted,
    }  # fmt: skip
    assert parse_order_request(build_order_request(read)) == read


def test_the_profit_exit_of_a_pair_may_be_its_limit_price() -> None:
    sent = body(order_class="oco", type="limit", limit_price="12", stop_loss=LOSS)
    read = parse_order_request(sent)
    assert (read.limit_price, read.take_profit) == (None, Decimal(12))
    assert parse_order_request({**sent, "take_profit": PROFIT}) == read


@pytest.mark.parametrize(
    ("sent", "code", "message"),
    [
        (body(order_class="mleg"), 42210000, "order class mleg is not supported"),
        (body(order_class="bracket", stop_loss=LOSS), 42210000, "bracket orders require take_profit.limit_price"),
        (body(order_class="bracket", take_profit=PROFIT), 42210000, "bracket orders require stop_loss.stop_price"),
        (body(order_class="oto"), 42210000, "oto orders require either take_profit or stop_loss"),
        (body(order_class="oto", take_profit=PROFIT, stop_loss=LOSS), 42210000,
         "oto orders require either take_profit or stop_loss"),
        (body(order_class="oco", take_profit=PROFIT, stop_loss=LOSS), 42210000, "oco orders must be limit orders"),
        (body(order_class="oco", type="limit", limit_price=11, take_profit=PROFIT, stop_loss=LOSS), 42210000,
         "oco orders require one price: take_profit.limit_price"),
        (body(take_profit=PROFIT), 42210000, "simple orders require no take_profit or stop_loss"),
        (body(order_class="oto", take_profit={}), 40010001, "take_profit.limit_price is required"),
        (body(order_class="oto", stop_loss={}), 40010001, "stop_loss.stop_price is required"),
        (body(order_class="oto", stop_loss=[8]), 40010001, "invalid stop_loss"),
        (body(order_class="oto", stop_loss={"stop_price": -8}), 42210000, "stop_loss.stop_price must be > 0"),
        (body(order_class="oto", take_profit={"limit_price": 0}), 42210000, "take_profit.limit_price must be > 0"),
        (body(type="trailing_stop"), 40010001, "trailing_stop orders require either trail_price or trail_percent"),
        (body(type="trailing_stop", trail_price="1", trail_percent="1"), 42210000,
         "trailing_stop orders require either trail_price or trail_percent"),
        (body(trail_price="1"), 42210000, "market orders require no trail_price or trail_percent"),
        (body(type="trailing_stop", trail_price="0"), 42210000, "trail_price must be > 0"),
    ],
)  # fmt: skip
def test_a_group_or_trail_that_is_none_is_refused(sent: dict[str, Any], code: int, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse_order_request(sent)
    assert (refused.value.code, refused.value.message) == (code, message)


@pytest.mark.parametrize(
    ("change", "sent"),
    [
        (Replacement(), {}),
        (Replacement(qty=Decimal(3), client_order_id="b"), {"qty": "3", "client_order_id": "b"}),
        (Replacement(limit_price=Decimal("10.50"), stop_price=Decimal("9.1")),
         {"limit_price": "10.5", "stop_price": "9.1"}),
        (Replacement(trail=Decimal("0.25"), time_in_force=TimeInForce.DAY), {"trail": "0.25", "time_in_force": "day"}),
    ],
)  # fmt: skip
def test_a_replacement_says_only_what_changes(change: Replacement, sent: dict[str, Any]) -> None:
    assert build_replacement(change) == sent
    assert parse_replacement(sent) == change
