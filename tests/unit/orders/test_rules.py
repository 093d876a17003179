"""Alpaca's matrix: every kind × time in force × asset × class is an exact request, or a refusal by its rule's name."""

from __future__ import annotations

from decimal import Decimal
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.clock import HOUR_NS, MINUTE_NS
from dry_work.orders.groups import build_bracket, build_pair
from dry_work.orders.mapping import OrderTerms, build_order_request
from dry_work.orders.model import (
    OrderClass,
    OrderRequest,
    OrderType,
    Replacement,
    Side,
    StopLoss,
    TimeInForce,
)
from dry_work.orders.rules import (
    RULES,
    TABLE,
    WINDOWS,
    Asset,
    Refusal,
    RefusalCode,
    asset_of,
    check_order,
    round_change,
    round_prices,
)
from dry_work.wire.alpaca_orders import build_order_request as build_body
from dry_work.wire.alpaca_orders import parse_order_request

JUNE_11_NS = 1_718_078_400_000_000_000  # 2024-06-11, midnight in New York

KINDS = ("Market", "Close", "Limit", "Stop", "StopLimit", "StopTrail", "StopTrailLimit", "Historical")
TIMES = ("", "valid day", "valid date", "day", "gtc", "opg", "cls", "ioc", "fok")
ASSETS: dict[str, dict[str, Any]] = {
    "stock": {"symbol": "AAPL", "size": 10},
    "fractional": {"symbol": "AAPL", "size": 1.5},
    "notional": {"symbol": "AAPL", "size": 1, "options": {"notional": 1000}},
    "crypto": {"symbol": "BTC/USD", "size": 0.5},
    "crypto_notional": {"symbol": "BTC/USD", "size": 1, "options": {"notional": 1000}},
    "option": {"symbol": "AAPL240621C00190000", "size": 2},
}
CLASSES = ("simple", "bracket", "oto profit", "oto loss", "oco")

AMOUNTS = {
    "stock": {"qty": "10"}, "fractional": {"qty": "1.5"}, "notional": {"notional": "1000"}, "crypto": {"qty": "0.5"},
    "crypto_notional": {"notional": "1000"}, "option": {"qty": "2"},
}  # fmt: skip
BODIES: dict[str, dict[str, str]] = {
    "Market": {"type": "market"},
    "Close": {"type": "market"},
    "Limit": {"type": "limit", "limit_price": "10.25"},
    "Stop": {"type": "stop", "stop_price": "10.25"},
    "StopLimit": {"type": "stop_limit", "stop_price": "10.25", "limit_price": "10.5"},
    "StopTrail": {"type": "trailing_stop", "trail_percent": "2"},
}
EXITS = {
    "bracket": {"take_profit": {"limit_price": "12"}, "stop_loss": {"stop_price": "8"}},
    "oto profit": {"take_profit": {"limit_price": "12"}},
    "oto loss": {"stop_loss": {"stop_price": "8"}},
}

# What is sent: for each asset, class and kind the times in force.
EVERY, LASTING, DAY, COIN = "day gtc opg cls ioc fok", "day gtc", "day", "gtc ioc"
SENT: dict[tuple[str, str, str], str] = {
    ("stock", "simple", "Market"): EVERY,
    ("stock", "simple", "Limit"): EVERY,
    ("stock", "simple", "Close"): "cls",
    ("stock", "simple", "Stop"): LASTING,
    ("stock", "simple", "StopLimit"): LASTING,
    ("stock", "simple", "StopTrail"): LASTING,
    ("stock", "oco", "Limit"): LASTING,
    ("stock", "oco", "Stop"): LASTING,
    ("stock", "oco", "StopLimit"): LASTING,
    **{("stock", group, kind): LASTING for group in EXITS for kind in ("Market", "Limit", "Stop", "StopLimit")},
    **{("fractional", "simple", kind): DAY for kind in ("Market", "Limit", "Stop", "StopLimit")},
    **{("notional", "simple", kind): DAY for kind in ("Market", "Limit")},
    **{("crypto", "simple", kind): COIN for kind in ("Market", "Limit", "StopLimit")},
    **{("crypto_notional", "simple", kind): COIN for kind in ("Market", "Limit")},
    **{("option", "simple", kind): DAY for kind in ("Market", "Limit")},
}


def expect_time(asset: str, kind: str, time: str) -> str:
    """The time in force that is asked for, or the rule against it."""
    coin = asset.startswith("crypto")
    if kind == "Close":
        return "cls" if time in ("", "valid day", "valid date", "cls") else "close_is_cls"
    if time in ("", "valid date"):
        return "gtc" if coin or asset == "stock" else "day"
    if time == "valid day":
        return "gtc" if coin else "day"
    return time


def expect(asset: str, group: str, kind: str, time: str) -> dict[str, Any] | str:
    """The exact body, or the name of the rule that refuses it."""
    if kind in ("StopTrailLimit", "Historical"):
        return {"StopTrailLimit": "stop_trail_limit", "Historical": "historical"}[kind]
    word = expect_time(asset, kind, time)
    if word == "close_is_cls":
        return word
    if group == "oco" and kind not in ("Limit", "Stop", "StopLimit"):
        return "leg_kind"
    if group != "simple" and asset != "stock":
        return f"{asset}_order_class"
    times = SENT.get((asset, group, kind))
    if kind == "Close" and asset in ("fractional", "notional", "crypto", "crypto_notional", "option"):
        return f"{asset}_time_in_force"
    if kind == "Close" and group != "simple":
        return "stock_time_in_force"
    if times is None:
        return f"{asset}_type"
    if word not in times.split():
        return f"{asset}_time_in_force"
    order_class, _, _ = group.partition(" ")
    body: dict[str, Any] = {
        "symbol": ASSETS[asset]["symbol"], "side": "buy", "time_in_force": word, "client_order_id": "dw-a-s-1",
        **AMOUNTS[asset], **BODIES[kind],
    }  # fmt: skip
    if order_class != "simple":
        body["order_class"] = order_class
    if group == "oco":
        body = {name: value for name, value in body.items() if name not in ("limit_price", "stop_price")}
        loss = {"Limit": {"stop_price": "12"}, "Stop": {"stop_price": "10.25"}}
        body["type"] = "limit"
        body["take_profit"] = {"limit_price": "10.25" if kind == "Limit" else "8"}
        body["stop_loss"] = loss.get(kind, {"stop_price": "10.25", "limit_price": "10.5"})
    return body | EXITS.get(group, {})


def build_terms(kind: str, time: str, asset: str, **changes: Any) -> OrderTerms:
    given = {"side": Side.BUY, "price": 10.25, "limit_price": 10.5, **ASSETS[asset], **changes}
    options = dict(given.pop("options", {}))
    if time in tuple(TimeInForce):
        options["tif"] = time
    until = 739_000.0 if time == "valid date" else None
    percent = 0.02 if kind == "StopTrail" else None
    return OrderTerms(kind=kind, day=time == "valid day", until=until, options=options, trail_percent=percent, **given)


def build(asset: str, group: str, kind: str, time: str) -> OrderRequest | Refusal:
    entry = build_terms(kind, time, asset)
    if group == "simple":
        return build_order_request(entry, "dw-a-s-1")
    if group == "oco":
        # Two buys close what was sold short: the limit below, the stop above.
        other = ("Stop", 12.0) if kind == "Limit" else ("Limit", 8.0)
        found = build_pair(entry, build_terms(other[0], time, asset, price=other[1]), "dw-a-s-1")
    else:
        profit = build_terms("Limit", time, asset, side=Side.SELL, price=12.0)
        loss = build_terms("Stop", time, asset, side=Side.SELL, price=8.0)
        exits = {"bracket": [loss, profit], "oto profit": [profit], "oto loss": [loss]}[group]
        found = build_bracket(entry, exits, "dw-a-s-1")
    return found if isinstance(found, Refusal) else found.request


@pytest.mark.parametrize("group", CLASSES)
@pytest.mark.parametrize("asset", ASSETS)
def test_every_combination_is_an_exact_request_or_a_refusal_by_name(asset: str, group: str) -> None:
    wrong: list[Any] = []
    for kind, time in product(KINDS, TIMES):
        found = build(asset, group, kind, time)
        got = found.rule if isinstance(found, Refusal) else build_body(found)
        wanted = expect(asset, group, kind, time)
        if got != wanted:
            wrong.append((kind, time, wanted, got))
        elif isinstance(found, OrderRequest):
            assert parse_order_request(build_body(found)) == found
        else:
            assert found.reason
    assert wrong == []


def test_the_matrix_sends_what_it_should() -> None:
    """So that a table that refuses all, or takes all, is seen at a glance."""
    found = [build(*cell) for cell in product(ASSETS, CLASSES, KINDS, TIMES)]
    assert len(found) == 2160
    assert sum(isinstance(item, OrderRequest) for item in found) == 169


def test_a_refusal_says_what_would_be_taken() -> None:
    refusal = build("crypto", "simple", "Stop", "")
    assert refusal == Refusal(
        RefusalCode.KIND, "type stop is not taken for crypto: Alpaca takes market, limit, stop_limit", "crypto_type"
    )
    refusal = build("fractional", "simple", "Limit", "gtc")
    assert refusal == Refusal(
        RefusalCode.TIME,
        "time_in_force gtc is not taken for limit orders of fractional stock orders: Alpaca takes day",
        "fractional_time_in_force",
    )


def test_rules_have_names_of_their_own_and_sources() -> None:
    names = [rule.name for rule in (*RULES, *WINDOWS)]
    assert len(set(names)) == len(names)
    assert all(rule.source for rule in (*RULES, *WINDOWS, *TABLE))
    assert {asset for row in TABLE for asset in row.assets} == set(Asset)


def request(**changes: Any) -> OrderRequest:
    given: dict[str, Any] = {
        "client_order_id": "dw-a-s-1", "symbol": "AAPL", "side": Side.BUY, "type": OrderType.LIMIT,
        "time_in_force": TimeInForce.DAY, "qty": Decimal(5), "limit_price": Decimal("10.25"), **changes,
    }  # fmt: skip
    return OrderRequest(**given)


MARKET = {"type": OrderType.MARKET, "limit_price": None}
SHORT = {"side": Side.SELL, "order_class": OrderClass.OTO}
OPTION = {"symbol": "AAPL240621C00190000"}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({}, ""),
        ({"extended_hours": True}, ""),
        ({"extended_hours": True, "time_in_force": TimeInForce.GTC}, "extended_hours_limit_day"),
        ({"extended_hours": True, **MARKET}, "extended_hours_limit_day"),
        ({"extended_hours": True, **OPTION}, "extended_hours_stock"),
        ({"extended_hours": True, "order_class": OrderClass.OTO, "take_profit": Decimal(12)}, "extended_hours_simple"),
        ({**OPTION, "qty": Decimal("1.5")}, "option_whole_contracts"),
        ({"qty": None, "notional": Decimal("0.99")}, "notional_minimum"),
        ({"qty": None, "notional": Decimal(1)}, ""),
        ({"order_class": OrderClass.OTO, "take_profit": Decimal("10.25")}, "take_profit_beyond_entry"),
        ({"order_class": OrderClass.OTO, "take_profit": Decimal("10.26")}, ""),
        ({"order_class": OrderClass.OTO, "stop_loss": StopLoss(Decimal("10.25"))}, "stop_loss_beyond_entry"),
        ({"order_class": OrderClass.OTO, "stop_loss": StopLoss(Decimal("10.24"))}, ""),
        ({**SHORT, "take_profit": Decimal("10.26")}, "take_profit_beyond_entry"),
        ({**SHORT, "take_profit": Decimal("10.24")}, ""),
        ({**SHORT, "stop_loss": StopLoss(Decimal(10))}, "stop_loss_beyond_entry"),
        ({**MARKET, "order_class": OrderClass.OTO, "stop_loss": StopLoss(Decimal(99))}, ""),
    ],
)  # fmt: skip
def test_what_a_row_cannot_say_is_a_rule(changes: dict[str, Any], rule: str) -> None:
    refusal = check_order(request(**changes))
    assert (refusal.rule if refusal else "") == rule


@pytest.mark.parametrize(
    ("side", "profit", "stop", "rule"),
    [
        (Side.SELL, "12", "8", ""),
        (Side.SELL, "8", "12", "stop_loss_beyond_entry"),
        (Side.BUY, "8", "12", ""),
        (Side.BUY, "12", "12", "stop_loss_beyond_entry"),
    ],
)
def test_the_stop_of_a_pair_lies_on_its_losing_side(side: Side, profit: str, stop: str, rule: str) -> None:
    pair = request(
        side=side, limit_price=None, order_class=OrderClass.OCO, take_profit=Decimal(profit),
        stop_loss=StopLoss(Decimal(stop)),
    )  # fmt: skip
    refusal = check_order(pair)
    assert (refusal.rule if refusal else "") == rule


@pytest.mark.parametrize(
    ("changes", "clock", "rule"),
    [
        ({"time_in_force": TimeInForce.OPG}, (9, 27), ""),
        ({"time_in_force": TimeInForce.OPG}, (9, 28), "opg_window"),
        ({"time_in_force": TimeInForce.OPG}, (18, 59), "opg_window"),
        ({"time_in_force": TimeInForce.OPG}, (19, 0), ""),
        ({"time_in_force": TimeInForce.CLS}, (15, 49), ""),
        ({"time_in_force": TimeInForce.CLS}, (15, 50), "cls_window"),
        ({**OPTION, **MARKET}, (9, 29), "option_market_before_open"),
        ({**OPTION, **MARKET}, (9, 30), ""),
        ({**OPTION, **MARKET}, (16, 0), "option_market_after_close"),
        (OPTION, (3, 0), ""),
        ({}, (3, 0), ""),
    ],
)
def test_some_orders_have_their_hours(changes: dict[str, Any], clock: tuple[int, int], rule: str) -> None:
    asked = request(**changes)
    refusal = check_order(asked, at_ns=JUNE_11_NS + clock[0] * HOUR_NS + clock[1] * MINUTE_NS)
    assert (refusal.rule if refusal else "") == rule
    assert check_order(asked) is None


INCREMENTS = {"BTC/USD": Decimal("0.01")}


@pytest.mark.parametrize(
    ("symbol", "side", "price", "limit", "stop"),
    [
        ("AAPL", Side.BUY, "10.257", "10.25", "10.25"),
        ("AAPL", Side.SELL, "10.251", "10.26", "10.26"),
        ("AAPL", Side.BUY, "0.98765", "0.9876", "0.9876"),
        ("AAPL", Side.SELL, "0.98765", "0.9877", "0.9877"),
        ("AAPL", Side.SELL, "0.99999", "1", "1"),
        ("AAPL", Side.BUY, "10.25", "10.25", "10.25"),
        ("AAPL", Side.SELL, "0.30000000000000004", "0.3", "0.3"),
        ("AAPL", Side.BUY, "10.009999999999998", "10.01", "10.01"),
        ("AAPL240621C00190000", Side.BUY, "2.999", "2.99", "2.99"),
        ("AAPL240621C00190000", Side.BUY, "3.07", "3.05", "3.05"),
        ("BTC/USD", Side.SELL, "60000.001", "60000.01", "60000.01"),
        ("ETH/USD", Side.SELL, "3000.00123", "3000.00123", "3000.00123"),
    ],
)
def test_prices_move_to_their_tick_to_the_side_that_harms_nobody(
    symbol: str, side: Side, price: str, limit: str, stop: str
) -> None:
    asked = request(symbol=symbol, side=side, type=OrderType.STOP_LIMIT, limit_price=Decimal(price),
                    stop_price=Decimal(price))  # fmt: skip
    rounded, notices = round_prices(asked, INCREMENTS)
    assert (rounded.limit_price, rounded.stop_price) == (Decimal(limit), Decimal(stop))
    is_noise = abs(Decimal(price) - Decimal(limit)) < Decimal("1e-9")
    assert notices == (() if is_noise else (
        f"limit_price {price} was rounded to {rounded.limit_price}",
        f"stop_price {price} was rounded to {rounded.stop_price}",
    ))  # fmt: skip


def test_exits_move_by_their_own_side() -> None:
    asked = request(
        limit_price=Decimal("10.257"), order_class=OrderClass.BRACKET, take_profit=Decimal("12.001"),
        stop_loss=StopLoss(Decimal("8.001"), Decimal("7.991")),
    )  # fmt: skip
    rounded, notices = round_prices(asked, {})
    assert rounded.limit_price == Decimal("10.25")
    assert rounded.take_profit == Decimal("12.01")
    assert rounded.stop_loss == StopLoss(Decimal("8.01"), Decimal(8))
    assert len(notices) == 4


def test_a_trail_becomes_no_longer_and_a_change_follows_the_same_ticks() -> None:
    trailing = request(type=OrderType.TRAILING_STOP, side=Side.SELL, limit_price=None, trail_price=Decimal("0.259"))
    rounded, notices = round_prices(trailing, {})
    assert rounded.trail_price == Decimal("0.25")
    assert notices == ("trail_price 0.259 was rounded to 0.25",)
    change, notices = round_change(Replacement(trail=Decimal("0.301")), trailing, {})
    assert (change.trail, len(notices)) == (Decimal("0.3"), 1)
    change, notices = round_change(Replacement(limit_price=Decimal("10.257"), qty=Decimal(3)), request(), {})
    assert change == Replacement(limit_price=Decimal("10.25"), qty=Decimal(3))
    assert len(notices) == 1


@given(st.floats(0.0002, 1e6), st.sampled_from(list(Side)))
def test_a_rounded_price_is_less_than_a_tick_away_and_stays_where_it_is(price: float, side: Side) -> None:
    asked = request(side=side, limit_price=Decimal(repr(price)))
    rounded, _ = round_prices(asked, {})
    limit = rounded.limit_price
    assert limit is not None
    tick = Decimal("0.01") if price >= 1 else Decimal("0.0001")
    assert abs(limit - Decimal(repr(price))) < tick
    assert round_prices(rounded, {}) == (rounded, ())


@pytest.mark.parametrize("name", ASSETS)
def test_an_asset_follows_from_symbol_and_amount(name: str) -> None:
    built = build(name, "simple", "Market", "")
    assert isinstance(built, OrderRequest)
    assert asset_of(built).value == name
