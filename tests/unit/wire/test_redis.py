"""Messages on Redis channels: what is taken, why the rest is refused, and what goes out."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import msgpack
import pytest

from dry_work.errors import CodecError
from dry_work.wire.alpaca_fields import parse_json
from dry_work.wire.redis import (
    Registration,
    encode_bar,
    encode_item,
    encode_legacy_order,
    encode_legacy_price,
    encode_log,
    encode_order,
    encode_price,
    legacy_channel,
    parse_registration,
    price_channel,
    stream_key,
)

INPUTS = int(os.environ.get("DRY_WORK_FUZZ_INPUTS", "5000"))

TIME = "2021-08-04T20:00:00.123456789Z"
TRADE = {"T": "t", "S": "AAPL", "p": 150.25, "s": 100, "t": TIME}
UPDATE: dict[str, Any] = {
    "event": "fill",
    "timestamp": "2021-08-04T20:01:40.5Z",
    "execution_id": "e-1",
    "price": "150.25",
    "qty": "10",
    "position_qty": "10",
    "order": {
        "id": "o-1",
        "client_order_id": "my-1",
        "symbol": "AAPL",
        "status": "filled",
        "side": "buy",
        "qty": "10",
        "filled_qty": "10.000",
        "filled_avg_price": "150.250000001",
        "limit_price": None,
        "stop_price": 149.5,
        "extended_hours": False,
        "legs": None,
        "new_field": "passes by",
    },
}


def register(**fields: Any) -> dict[str, Any]:
    return {"action": "register", "symbols": ["AAPL"], **fields}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (register(), Registration(adds=True, symbols=("AAPL",))),
        (register(symbols=["aapl", " brk.b", "AAPL", "btc/usd"]), ("AAPL", "BRK.B", "BTC/USD")),
        ({"action": "subscribe", "ticker": "aapl"}, Registration(adds=True, symbols=("AAPL",))),
        ({"action": "unsubscribe", "ticker": "AAPL"}, Registration(adds=False, symbols=("AAPL",))),
        ({"action": "unregister", "symbols": ["AAPL"], "ticker": "MSFT"}, ("AAPL", "MSFT")),
        ({"action": "unregister", "client_id": "a"}, Registration(adds=False, client_id="a")),
        ({"action": "register", "symbols": [], "account_id": "PA1"}, Registration(adds=True, account_id="PA1")),
        (register(account_id="", client_id=None, channels=None), Registration(adds=True, symbols=("AAPL",))),
        (
            register(channels=["bars", "trades", "bars"], client_id="a", more=1),
            Registration(adds=True, symbols=("AAPL",), channels=("bars", "trades"), client_id="a"),
        ),
        (
            {"data": {"action": "subscribe", "ticker": "AAPL"}, "timestamp": "t", "sender": "unknown"},
            Registration(adds=True, symbols=("AAPL",)),
        ),
    ],
)
def test_registrations_are_taken_bare_and_in_the_envelope(message: dict[str, Any], expected: Any) -> None:
    found = parse_registration(json.dumps(message))
    assert (found if isinstance(expected, Registration) else found.symbols) == expected


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            register(action="Register"),
            "action 'Register': expected one of register, unregister, subscribe, unsubscribe",
        ),
        (register(action=7), "action 7: expected one of"),
        ({"symbols": ["AAPL"]}, "action is missing"),
        ({"action": "register"}, "symbols are missing"),
        ({"action": "unregister", "symbols": []}, "symbols are missing"),
        (register(symbols="AAPL"), "symbols 'AAPL': expected a list"),
        (register(symbols=["AAPL", None]), "None is not a symbol"),
        (register(symbols=["A" * 100]), "is not a symbol: expected a stock"),
        (register(symbols=["*"]), "'*' is not a symbol"),
        (register(symbols=["AAPL"] * 10_001), "10001 symbols: expected at most 10000"),
        (register(channels="bars"), "channels 'bars': expected a list"),
        (register(channels=[]), "channels []: expected a list"),
        (register(channels=["orderbooks"]), "channel 'orderbooks' of AAPL: expected one of trades, quotes, bars"),
        (
            register(symbols=["AAPL240315C00172500"], channels=["statuses"]),
            "expected one of bars, trades, quotes, news",
        ),
        (register(channels=[["bars"]]), "channel ['bars'] of AAPL"),
        (register(account_id=7), "account_id 7: expected text"),
        (register(client_id="x" * 129), "expected text of at most 128"),
        (register(client_id="a\nb"), "client_id 'a\\nb'"),
        ({"data": [1]}, "action is missing"),
        ([register()], "no JSON object"),
    ],
)
def test_what_is_refused_is_named_with_what_is_allowed(message: Any, reason: str) -> None:
    with pytest.raises(CodecError) as caught:
        parse_registration(json.dumps(message))
    assert reason in caught.value.reason
    assert len(caught.value.reason) < 300


def test_what_is_no_json_or_too_long_is_refused() -> None:
    for data in (b"", b"\xff", b"{", b"[" * 100_000, json.dumps(register(more="x" * 1_000_000))):
        with pytest.raises(CodecError):
            parse_registration(data)


def test_a_price_is_a_number_with_its_time_in_seconds_and_in_full() -> None:
    assert json.loads(encode_price("AAPL", TRADE)) == {
        "type": "price_update",
        "symbol": "AAPL",
        "price": 150.25,
        "timestamp": 1628107200,
        "at": TIME,
        "size": 100,
    }
    packed = {"p": 1, "s": 0.5, "t": msgpack.Timestamp(1628107200, 5)}
    assert (
        json.loads(encode_price("BTC/USD", packed)).items()
        >= {
            "timestamp": 1628107200,
            "at": "2021-08-04T20:00:00.000000005Z",
        }.items()
    )


@pytest.mark.parametrize("change", [{"p": None}, {"p": "1"}, {"p": float("nan")}, {"p": True}, {"t": 5}, {"t": ""}])
def test_a_trade_without_price_or_time_is_no_price(change: dict[str, Any]) -> None:
    with pytest.raises(CodecError):
        encode_price("AAPL", {**TRADE, **change})
    with pytest.raises(CodecError):
        encode_legacy_price("AAPL", {**TRADE, **change}, time_ns=0)


def test_a_bar_has_the_names_of_the_other_transports() -> None:
    bar = {"T": "b", "S": "AAPL", "o": 1, "h": 2, "l": 0.5, "c": 1.5, "v": 7, "n": 3, "vw": 1.25, "t": TIME}
    assert json.loads(encode_bar("AAPL", bar, epoch="e", offset=4)) == {
        "type": "bar",
        "symbol": "AAPL",
        "timestamp": TIME,
        "open": 1,
        "high": 2,
        "low": 0.5,
        "close": 1.5,
        "volume": 7,
        "trade_count": 3,
        "vwap": 1.25,
        "epoch": "e",
        "offset": 4,
    }


def test_an_order_update_has_numbers_with_all_their_digits() -> None:
    text = encode_order(UPDATE, event_id="ev-1", seq=17).decode()
    assert '"filled_avg_price":150.250000001,' in text
    assert '"filled_qty":10,' in text
    assert json.loads(text) == {
        "type": "order_update",
        "order_id": "o-1",
        "status": "filled",
        "filled_qty": 10,
        "filled_avg_price": 150.250000001,
        "side": "buy",
        "timestamp": 1628107300,
        "at": "2021-08-04T20:01:40.5Z",
        "symbol": "AAPL",
        "client_order_id": "my-1",
        "event": "fill",
        "event_id": "ev-1",
        "qty": 10,
        "seq": 17,
    }


@pytest.mark.parametrize("order", [{}, None, {"filled_avg_price": None, "qty": "many", "filled_qty": "NaN"}])
def test_what_an_order_update_does_not_have_is_null(order: Any) -> None:
    told = json.loads(encode_order({"event": "x", "order": order}, event_id="", seq=1))
    assert [told[key] for key in ("filled_qty", "filled_avg_price", "qty", "timestamp")] == [None] * 4


def test_the_legacy_price_is_a_string_in_an_envelope_with_six_digits_of_a_second() -> None:
    assert json.loads(encode_legacy_price("AAPL", {**TRADE, "t": "2021-08-04T20:00:00Z", "p": 1e-7}, time_ns=0)) == {
        "data": {
            "type": "price",
            "timestamp": "2021-08-04 20:00:00.000000+00:00",
            "price": "0.0000001",
            "volume": None,
            "symbol": "AAPL",
        },
        "timestamp": "1970-01-01T00:00:00Z",
        "sender": "alpaca_broker",
    }


def test_the_legacy_order_has_the_documented_keys_and_no_others() -> None:
    body = json.loads(encode_legacy_order(UPDATE, time_ns=0))["data"]
    assert (body["type"], body["symbol"]) == ("order", "AAPL")
    assert body["timestamp"] == "2021-08-04 20:01:40.500000+00:00"
    data = body["order_data"]
    assert {key: data[key] for key in ("event", "execution_id", "position_qty", "price", "qty")} == {
        "event": "fill",
        "execution_id": "e-1",
        "position_qty": "10",
        "price": "150.25",
        "qty": "10",
    }
    documented = (
        "id client_order_id created_at updated_at submitted_at filled_at expired_at canceled_at failed_at replaced_at "
        "replaced_by replaces asset_id symbol asset_class notional qty filled_qty filled_avg_price order_class "
        "order_type type side time_in_force limit_price stop_price status extended_hours legs trail_percent "
        "trail_price hwm source"
    )
    assert set(data["order"]) == set(documented.split())
    assert data["order"]["source"] == "alpaca"
    assert data["order"]["stop_price"] == "149.5"
    assert data["order"]["limit_price"] is None


def test_an_item_is_told_as_it_came_whatever_its_numbers_are() -> None:
    text = '{"a":1.10,"b":123456789012345678901234567890,"c":{"d":[null,true,"x"]}}'
    assert json.loads(encode_item(parse_json(text))).items() >= {"c": {"d": [None, True, "x"]}}.items()
    assert json.loads(encode_item(parse_json('{"a":1.10}'))) == {"a": 1.1}
    assert json.loads(encode_item({"t": msgpack.Timestamp(0, 1)})) == {"t": "1970-01-01T00:00:00.000000001Z"}
    with pytest.raises(CodecError):
        encode_item({"no": {b"json": float("nan")}})


def test_a_log_line_and_the_names_of_channels() -> None:
    assert json.loads(encode_log(0, "info", "start", "it starts", {"symbols": ["AAPL"]})) == {
        "timestamp": "1970-01-01T00:00:00Z",
        "level": "info",
        "event": "start",
        "message": "it starts",
        "symbols": ["AAPL"],
    }
    assert price_channel("BTC/USD") == "price:BTC/USD"
    assert legacy_channel("AAPL") == "TICKER_UPDATES_AAPL"
    assert stream_key("stocks", "bars", "AAPL") == "stream:stocks:bars:AAPL"


def test_random_registrations_are_taken_or_refused_and_never_crash() -> None:
    rng = random.Random(3)
    words: list[Any] = ["register", "AAPL", "trades", "", None, 7, [], {}, ["AAPL"], ["bars"], "x" * 200, 1e300, True]
    keys = ["action", "symbols", "ticker", "account_id", "client_id", "channels", "data", "sender"]
    taken = 0
    for _ in range(INPUTS):
        message = {rng.choice(keys): rng.choice(words) for _ in range(rng.randrange(6))} | {"action": "register"}
        data = bytearray(json.dumps(message).encode())
        if rng.random() < 0.3:
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            parse_registration(bytes(data))
            taken += 1
        except CodecError:
            continue
    assert taken
