"""Orders, trade events, accounts and positions in Alpaca's JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dry_work.errors import CodecError
from dry_work.orders.model import (
    AccountSnapshot,
    OrderRequest,
    OrderStatus,
    OrderType,
    Side,
    TimeInForce,
    TradeEvent,
    VenueOrder,
    VenuePosition,
)
from dry_work.wire.alpaca_orders import parse_orders
from dry_work.wire.alpaca_rest import (
    Replacement,
    RequestError,
    asset_id,
    build_order_request,
    encode_account,
    encode_decimal,
    encode_error,
    encode_order,
    encode_position,
    encode_trade_event,
    parse_account,
    parse_decimal,
    parse_error,
    parse_execution,
    parse_json,
    parse_order,
    parse_order_request,
    parse_position,
    parse_replacement,
    parse_trade_event,
)

START_NS = 1_718_112_600_000_000_000  # 2024-06-11T13:30:00Z

amounts = st.decimals(min_value="0.000000001", max_value="1000000000", places=9, allow_nan=False)
optional_amounts = st.none() | amounts
times = st.integers(0, 2**62)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=128)
symbols = st.sampled_from(["AAPL", "BRK.B", "BTC/USD", "ETH/BTC", "AAPL240315C00172500"])

orders = st.builds(
    VenueOrder,
    id=st.uuids().map(str),
    client_order_id=texts,
    symbol=symbols,
    side=st.sampled_from(Side),
    type=st.sampled_from(OrderType),
    time_in_force=st.sampled_from(TimeInForce),
    status=st.sampled_from([status.value for status in OrderStatus]) | st.just("a_new_state"),
    qty=optional_amounts,
    notional=optional_amounts,
    filled_qty=amounts,
    filled_avg_price=optional_amounts,
    limit_price=optional_amounts,
    stop_price=optional_amounts,
    extended_hours=st.booleans(),
    created_ns=times,
    updated_ns=times,
    submitted_ns=times,
    filled_ns=st.none() | times,
    canceled_ns=st.none() | times,
    expired_ns=st.none() | times,
    failed_ns=st.none() | times,
    reject_reason=st.sampled_from(["", "insufficient buying power"]),
)
events = st.builds(
    TradeEvent,
    event=st.sampled_from(["new", "fill", "partial_fill", "something_else"]),
    event_id=texts,
    ts_event_ns=times,
    order=orders,
    execution_id=st.just("") | st.uuids().map(str),
    price=optional_amounts,
    qty=optional_amounts,
    position_qty=optional_amounts | amounts.map(lambda amount: -amount),
    code=st.none() | st.just(40310000),
    message=st.sampled_from(["", "insufficient buying power"]),
)


def make_order(**fields: object) -> VenueOrder:
    return VenueOrder(
        **{  # type: ignore[arg-type]
            "id": "7b08df51-0e1f-4a5c-8f4e-1d7e3a4b5c6d",
            "client_order_id": "dw-1",
            "symbol": "AAPL",
            "side": Side.BUY,
            "type": OrderType.LIMIT,
            "time_in_force": TimeInForce.GTC,
            "status": "new",
            "qty": Decimal("2.0"),
            "limit_price": Decimal("150.250"),
            "created_ns": START_NS,
            "updated_ns": START_NS,
            "submitted_ns": START_NS,
            **fields,
        }
    )


def make_body(**fields: object) -> dict[str, object]:
    body = {"symbol": "AAPL", "side": "buy", "type": "market", "time_in_force": "day", "qty": "1", **fields}
    return {name: value for name, value in body.items() if value is not None}


def over_the_wire(body: object) -> object:
    return parse_json(json.dumps(body))


@given(orders)
def test_an_order_comes_back_as_it_went(order: VenueOrder) -> None:
    assert parse_order(over_the_wire(encode_order(order))) == order


@given(events)
def test_a_trade_event_comes_back_as_it_went(event: TradeEvent) -> None:
    assert parse_trade_event(over_the_wire(encode_trade_event(event))) == event


@given(
    st.builds(
        AccountSnapshot,
        id=texts,
        account_number=texts,
        cash=amounts | amounts.map(lambda amount: -amount),
        equity=amounts,
        buying_power=amounts,
        status=st.sampled_from(["ACTIVE", "DISABLED"]),
        trading_blocked=st.booleans(),
    )
)
def test_an_account_comes_back_as_it_went(account: AccountSnapshot) -> None:
    assert parse_account(over_the_wire(encode_account(account, created_ns=START_NS))) == account


@given(symbols, amounts, st.booleans(), amounts, amounts)
def test_a_position_comes_back_as_it_went(
    symbol: str, qty: Decimal, short: bool, entry: Decimal, price: Decimal
) -> None:
    position = VenuePosition(symbol=symbol, qty=-qty if short else qty, avg_entry_price=entry)
    assert parse_position(over_the_wire(encode_position(position, current_price=price))) == position


@given(
    st.builds(
        OrderRequest,
        client_order_id=texts,
        symbol=symbols,
        side=st.sampled_from(Side),
        type=st.just(OrderType.STOP_LIMIT),
        time_in_force=st.sampled_from(TimeInForce),
        qty=amounts,
        limit_price=amounts,
        stop_price=amounts,
        extended_hours=st.booleans(),
    )
)
def test_an_order_request_comes_back_as_it_went(request: OrderRequest) -> None:
    assert parse_order_request(over_the_wire(build_order_request(request))) == request


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from(
    [*list(encode_order(make_order())), "event", "order", "price", "cash", "timestamp", "code"]
)
readers: tuple[tuple[Callable[[object], object], type], ...] = (
    (parse_order, VenueOrder),
    (parse_trade_event, TradeEvent),
    (parse_account, AccountSnapshot),
    (parse_position, VenuePosition),
)
odd_objects = st.dictionaries(field_names, json_values, max_size=8)


@given(odd_objects)
def test_readers_refuse_what_they_cannot_read_with_their_own_error(payload: dict[str, object]) -> None:
    complete = encode_order(make_order())
    for body in (payload, {**complete, **payload}, {"event": "fill", "order": {**complete, **payload}, **payload}):
        for parse, kind in readers:
            with contextlib.suppress(CodecError):
                assert isinstance(parse(body), kind)
        with contextlib.suppress(RequestError):
            assert isinstance(parse_order_request(over_the_wire({**make_body(), **body})), OrderRequest)


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_json_from_outside_is_read_or_refused(data: bytes | str) -> None:
    with contextlib.suppress(CodecError):
        assert parse_json(data) == json.loads(data, parse_float=Decimal)


def test_json_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(CodecError):
        parse_json("[" * 100_000)


def test_json_without_finite_numbers_is_refused() -> None:
    with pytest.raises(CodecError):
        parse_json('{"qty": NaN}')


@pytest.mark.parametrize(
    ("token", "expected"),
    [("1.0", "1"), ("10.25", "10.25"), ("1e-09", "0.000000001"), ("1e+16", "10000000000000000"), ('"2.50"', "2.5")],
)
def test_a_quantity_is_read_from_the_digits_that_were_sent(token: str, expected: str) -> None:
    body = json.dumps(make_body(qty="?")).replace('"?"', token)
    request = parse_order_request(parse_json(body))
    assert request.qty is not None
    assert encode_decimal(request.qty) == expected


def test_a_number_keeps_every_digit_that_was_sent() -> None:
    body = json.dumps(make_body(qty="?")).replace('"?"', "0.30000000000000004")
    assert parse_order_request(parse_json(body)).qty == Decimal("0.30000000000000004")


@pytest.mark.parametrize(
    ("value", "text"),
    [("1.0", "1"), ("100", "100"), ("1E+3", "1000"), ("-0.0", "0"), ("0.10", "0.1"), ("-2.50", "-2.5")],
)
def test_a_decimal_is_written_without_exponent_and_trailing_zeros(value: str, text: str) -> None:
    assert encode_decimal(Decimal(value)) == text


@pytest.mark.parametrize(
    "value", ["abc", "NaN", "Infinity", "1e999999999", "1e-201", "1" * 257, "1_000", True, [], {}, "1e31"]
)
def test_what_is_no_usable_number_is_refused(value: object) -> None:
    with pytest.raises(CodecError):
        parse_decimal(value)


@pytest.mark.parametrize("value", [None, ""])
def test_an_absent_amount_is_not_zero(value: object) -> None:
    assert parse_decimal(value) is None


def test_an_order_has_alpacas_shape() -> None:
    body = encode_order(make_order(status="filled", filled_qty=Decimal("2"), filled_ns=START_NS + 1))
    assert body["qty"] == "2"
    assert body["limit_price"] == "150.25"
    assert body["stop_price"] is None
    assert body["order_class"] == ""
    assert body["type"] == body["order_type"] == "limit"
    assert body["asset_id"] == asset_id("AAPL")
    assert body["asset_class"] == "us_equity"
    assert body["submitted_at"] == "2024-06-11T13:30:00Z"
    assert body["filled_at"] == "2024-06-11T13:30:00.000000001Z"
    assert "reject_reason" not in body


def test_a_rejected_event_tells_code_and_reason_beside_alpacas_keys() -> None:
    event = TradeEvent(
        event="rejected",
        event_id="01J",
        ts_event_ns=START_NS,
        order=make_order(status="rejected"),
        code=40310000,
        message="insufficient buying power",
    )
    body = encode_trade_event(event)
    assert body["code"] == 40310000
    assert body["reject_reason"] == "insufficient buying power"
    assert body["timestamp"] == "2024-06-11T13:30:00Z"
    assert not {"execution_id", "price", "qty", "position_qty"} & body.keys()


def test_a_crypto_position_is_listed_without_slash_and_read_with_it() -> None:
    position = VenuePosition(symbol="BTC/USD", qty=Decimal("0.5"), avg_entry_price=Decimal(60000))
    body = encode_position(position, current_price=Decimal(61000))
    assert body["symbol"] == "BTCUSD"
    assert body["unrealized_pl"] == "500"
    assert parse_position(body).symbol == "BTC/USD"


@pytest.mark.parametrize(("text", "symbol"), [("BTCUSD", "BTC/USD"), ("ETHUSDT", "ETH/USDT"), ("ETH/BTC", "ETH/BTC")])
def test_an_old_spelling_of_a_crypto_order_is_read_canonically(text: str, symbol: str) -> None:
    assert parse_order({**encode_order(make_order()), "symbol": text, "asset_class": "crypto"}).symbol == symbol


def test_a_short_position_is_negative_whatever_the_sign_on_the_wire() -> None:
    body = encode_position(
        VenuePosition(symbol="AAPL", qty=Decimal(-3), avg_entry_price=Decimal(10)), current_price=Decimal(11)
    )
    assert (body["side"], body["qty"], body["market_value"]) == ("short", "-3", "-33")
    assert body["unrealized_pl"] == "-3"
    assert parse_position({**body, "qty": "3"}).qty == Decimal(-3)


def test_a_number_where_alpaca_sends_a_text_is_read_too() -> None:
    assert parse_order({**encode_order(make_order()), "qty": 1.5, "filled_qty": 0}).qty == Decimal("1.5")


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ([], 400, 40010000, "request body format is invalid"),
        (make_body(symbol=None), 422, 40010001, "symbol is required"),
        (make_body(symbol="no symbol"), 422, 42210000, "invalid symbol"),
        (make_body(side="hold"), 422, 40010001, "invalid side hold"),
        (make_body(type=None), 422, 40010001, "type is required"),
        (make_body(time_in_force=[1]), 422, 40010001, "invalid time_in_force [1]"),
        (make_body(qty=None), 422, 40010001, "qty or notional is required"),
        (make_body(notional="5"), 422, 42210000, "only one of qty or notional is accepted"),
        (make_body(qty="0"), 422, 42210000, "qty must be > 0"),
        (make_body(qty="-1"), 422, 42210000, "qty must be > 0"),
        (make_body(qty="many"), 422, 40010001, "invalid qty many"),
        (make_body(limit_price="5"), 422, 42210000, "market orders require no stop or limit price"),
        (make_body(type="limit"), 422, 40010001, "limit orders require limit_price"),
        (make_body(type="stop", limit_price="5", stop_price="5"), 422, 42210000, "stop orders require no limit_price"),
        (make_body(extended_hours="yes"), 422, 40010001, "extended_hours must be true or false"),
    ],
)
def test_a_bad_order_request_is_refused_with_code_and_text(body: object, status: int, code: int, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse_order_request(body)
    assert (refused.value.http_status, refused.value.code, refused.value.message) == (status, code, message)


def test_a_client_order_id_has_at_most_128_characters() -> None:
    assert parse_order_request(make_body(client_order_id="x" * 128)).client_order_id == "x" * 128
    with pytest.raises(RequestError):
        parse_order_request(make_body(client_order_id="x" * 129))


def test_an_absent_client_order_id_is_left_to_the_venue() -> None:
    assert parse_order_request(make_body()).client_order_id == ""


def test_an_error_body_carries_code_message_and_context() -> None:
    body = encode_error(40310000, "insufficient buying power", {"buying_power": "10"})
    assert body == {"code": 40310000, "message": "insufficient buying power", "buying_power": "10"}
    assert parse_error(json.dumps(body)) == (40310000, "insufficient buying power")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"message":"forbidden."}', (None, "forbidden.")),
        (b"<html>502</html>", (None, "502")),
        ("<html>\n<head><title>503 Busy</title></head><body><i>nginx</i></body></html>", (None, "503 Busy nginx")),
        (b"", (None, "")),
        (b"[1]", (None, "[1]")),
        (b"\xff", (None, "\ufffd")),
    ],
)
def test_an_error_body_of_another_shape_is_its_own_message(body: bytes, expected: tuple[int | None, str]) -> None:
    assert parse_error(body) == expected


# Chains of replacements


@settings(deadline=None)
@given(
    order=orders,
    replaces=st.just("") | st.uuids().map(str),
    replaced_by=st.just("") | st.uuids().map(str),
    replaced_ns=times,
)
def test_an_order_keeps_its_place_in_a_chain(
    order: VenueOrder, replaces: str, replaced_by: str, replaced_ns: int
) -> None:
    chained = replace(
        order, replaces=replaces, replaced_by=replaced_by, replaced_ns=replaced_ns if replaced_by else None
    )
    body = json.loads(json.dumps(encode_order(chained)))
    assert (body["replaces"], body["replaced_by"]) == (replaces or None, replaced_by or None)
    assert parse_order(body) == chained


def test_a_replacement_names_what_is_to_change_and_null_is_nothing() -> None:
    body = {
        "qty": 3,
        "limit_price": Decimal("10.25"),
        "stop_price": None,
        "time_in_force": "day",
        "client_order_id": "a",
    }
    assert parse_replacement(body) == Replacement(
        qty=Decimal(3), limit_price=Decimal("10.25"), time_in_force=TimeInForce.DAY, client_order_id="a"
    )
    assert parse_replacement({"qty": None, "trail": None, "client_order_id": None}) == Replacement()


@pytest.mark.parametrize(
    ("payload", "status", "code"),
    [
        ([], 400, 40010000),
        ({"qty": "much"}, 422, 40010001),
        ({"limit_price": 0}, 422, 42210000),
        ({"stop_price": "-1"}, 422, 42210000),
        ({"trail": "0"}, 422, 42210000),
        ({"time_in_force": "whenever"}, 422, 40010001),
        ({"client_order_id": 7}, 422, 40010001),
    ],
)
def test_a_replacement_that_cannot_be_read_is_refused(payload: object, status: int, code: int) -> None:
    with pytest.raises(RequestError) as caught:
        parse_replacement(payload)
    assert (caught.value.http_status, caught.value.code) == (status, code)


def test_an_account_shows_what_its_owner_switched_off() -> None:
    account = AccountSnapshot(id="a", account_number="b", cash=Decimal(1), equity=Decimal(1), buying_power=Decimal(1))
    body = encode_account(account, created_ns=START_NS, suspended=True, shorting_enabled=False)
    assert (body["trade_suspended_by_user"], body["shorting_enabled"]) == (True, False)


# The account's history, and orders that are none of ours


def test_an_execution_of_the_activities_is_read() -> None:
    row = {
        "id": "20240611133000123::8efc7b9a-8b2b-4000-9955-d36e7db0df74", "activity_type": "FILL",
        "transaction_time": "2024-06-11T13:30:00.123Z", "price": "10.5", "qty": "3", "cum_qty": "8", "side": "buy",
        "symbol": "AAPL", "order_id": "o-1",
    }  # fmt: skip
    found = parse_execution(over_the_wire(row))
    assert (found.execution_id, found.order_id) == ("8efc7b9a-8b2b-4000-9955-d36e7db0df74", "o-1")
    assert (found.qty, found.price, found.filled_qty) == (3, Decimal("10.5"), 8)
    assert found.ts_event_ns == 1_718_112_600_123_000_000
    for name in ("id", "order_id", "qty", "price", "transaction_time"):
        with pytest.raises(CodecError):
            parse_execution({**row, name: None})


def test_a_bust_names_the_execution_that_it_takes_back() -> None:
    order = {"id": "o", "symbol": "AAPL", "side": "buy", "type": "market", "time_in_force": "day", "status": "filled"}
    body = {"event": "trade_bust", "qty": "-3", "price": "10", "execution_id": "b", "previous_execution_id": "x"}
    event = parse_trade_event(over_the_wire({**body, "order": order}))
    assert (event.previous_execution_id, event.execution_id, event.qty) == ("x", "b", -3)
    assert encode_trade_event(event)["previous_execution_id"] == "x"


def test_an_order_of_several_options_is_read_and_one_that_cannot_be_hides_no_other() -> None:
    plain = {"id": "o", "symbol": "AAPL", "side": "buy", "type": "limit", "time_in_force": "day", "status": "new"}
    leg = {
        **plain, "symbol": "AAPL240621C00200000", "asset_class": "us_option", "type": "", "order_type": "",
        "order_class": "mleg", "qty": "1",
    }  # fmt: skip
    several = {
        **plain, "symbol": "", "side": "", "asset_class": "", "order_class": "mleg",
        "legs": [leg, {**leg, "side": "sell"}],
    }  # fmt: skip
    orders, unreadable = parse_orders([plain, several, {**plain, "type": "iceberg"}, "nonsense"])
    assert [order.symbol for order in orders] == ["AAPL", ""]
    assert [(found.side, found.type) for found in orders[1].legs] == [
        (Side.BUY, OrderType.LIMIT), (Side.SELL, OrderType.LIMIT),
    ]  # fmt: skip
    assert len(unreadable) == 2
    assert "iceberg" in unreadable[0]
    with pytest.raises(CodecError):
        parse_order({**plain, "symbol": ""})
