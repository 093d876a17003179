"""Every kind of order, asset and validity: an exact request or a refusal with its reason."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dry_work.orders.mapping import (
    ChangeTerms,
    OrderTerms,
    Refusal,
    RefusalCode,
    build_change,
    build_order_request,
    order_type_word,
    parse_qty,
)
from dry_work.orders.model import OrderClass, OrderRequest, Replacement, Side


def build(kind: str = "Market", symbol: str = "AAPL", size: Any = 10, **terms: Any) -> OrderRequest | Refusal:
    given = {"side": Side.BUY, "price": 10.25, "limit_price": 10.5, **terms}
    return build_order_request(OrderTerms(kind=kind, symbol=symbol, size=size, **given), "dw-a-s-1")


@pytest.mark.parametrize(
    ("kind", "order_type", "limit", "stop"),
    [
        ("Market", "market", None, None),
        ("Limit", "limit", "10.25", None),
        ("Stop", "stop", None, "10.25"),
        ("StopLimit", "stop_limit", "10.5", "10.25"),
    ],
)
@pytest.mark.parametrize(
    ("symbol", "size", "day", "time_in_force"),
    [
        ("AAPL", 10, False, "gtc"),
        ("AAPL", 10, True, "day"),
        ("AAPL", 0.5, False, "day"),
        ("AAPL", 0.5, True, "day"),
        ("BTC/USD", 0.5, False, "gtc"),
        ("BTC/USD", 2, True, "gtc"),
    ],
)
def test_a_kind_becomes_exactly_this_request(
    kind: str,
    order_type: str,
    limit: str | None,
    stop: str | None,
    symbol: str,
    size: float,
    day: bool,
    time_in_force: str,
) -> None:
    request = build(kind, symbol, size, day=day)
    if symbol == "BTC/USD" and kind == "Stop":
        assert isinstance(request, Refusal)
        assert request.code is RefusalCode.KIND
        assert "crypto" in request.reason
        return
    assert isinstance(request, OrderRequest)
    assert request.client_order_id == "dw-a-s-1"
    assert (request.symbol, request.side.value, request.type.value) == (symbol, "buy", order_type)
    assert request.time_in_force.value == time_in_force
    assert request.qty == Decimal(str(size))
    assert request.limit_price == (Decimal(limit) if limit else None)
    assert request.stop_price == (Decimal(stop) if stop else None)
    assert request.notional is None
    assert request.extended_hours is False


@pytest.mark.parametrize("kind", ["StopTrailLimit", "Historical", "99"])
@pytest.mark.parametrize("symbol", ["AAPL", "BTC/USD"])
def test_other_kinds_are_refused_by_name(kind: str, symbol: str) -> None:
    refusal = build(kind, symbol)
    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.KIND
    assert kind in refusal.reason


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"client_order_id": "mine"}, "client_order_id"),
        ({"order_class": "bracket"}, "order_class"),
        ({"take_profit": {"limit_price": 12}}, "take_profit"),
        ({"stop_loss": {"stop_price": 8}}, "stop_loss"),
        ({"limit_price": 10.0}, "limit_price"),
        ({"trail_percent": 2}, "trail_percent"),
        ({"qty": 3}, "qty"),
        ({"tif": "x"}, "tif"),
        ({"tif": "day", "time_in_force": "gtc"}, "tif"),
        ({"extended_hours": "yes"}, "extended_hours"),
        ({"notional": "much"}, "notional"),
        ({"notional": 0}, "notional"),
        ({"notional": True}, "notional"),
        ({"notional": 1e20}, "notional"),
    ],
)
def test_a_keyword_that_cannot_be_honoured_is_refused(options: dict[str, Any], rule: str) -> None:
    refusal = build(options=options)
    assert isinstance(refusal, Refusal)
    assert refusal.rule == rule
    assert rule in refusal.reason or "tif" in refusal.reason


def test_keywords_that_are_none_or_the_strategys_own_change_nothing() -> None:
    assert build(options={"notional": None, "tif": None, "extended_hours": None, "note": "mine"}) == build()


@pytest.mark.parametrize(
    ("terms", "rule"),
    [
        ({"day": True, "options": {"tif": "gtc"}}, "tif_and_valid"),
        ({"until": 739_000.0, "options": {"tif": "day"}}, "tif_and_valid"),
        ({"until": 739_000.0, "options": {"tif": "gtc"}}, ""),
        ({"day": True, "options": {"tif": " DAY "}}, ""),
    ],
)
def test_a_time_in_force_and_a_valid_time_have_to_agree(terms: dict[str, Any], rule: str) -> None:
    found = build(**terms)
    assert (found.rule if isinstance(found, Refusal) else "") == rule


@pytest.mark.parametrize(
    ("trail", "price", "percent", "rule"),
    [
        ({"trail_amount": 0.5}, "0.5", None, ""),
        ({"trail_percent": 0.02}, None, "2", ""),
        ({"trail_percent": 0.1}, None, "10", ""),
        ({"trail_percent": 0.0125}, None, "1.25", ""),
        ({"trail_amount": 0.5, "trail_percent": 0.02}, "0.5", None, ""),
        ({"trail_amount": 0.0, "trail_percent": 0.02}, None, "2", ""),
        ({}, None, None, "trail"),
        ({"trail_percent": 2}, None, None, "trail_percent"),
        ({"trail_percent": -0.1}, None, None, "trail_percent"),
        ({"trail_amount": -1.0}, None, None, "trail_amount"),
        ({"trail_amount": 0.5, "trail_start": 9.0}, None, None, "trail_start"),
    ],
)
def test_a_trail_is_an_amount_or_per_cent(trail: dict[str, Any], price: Any, percent: Any, rule: str) -> None:
    found = build("StopTrail", **trail)
    if rule:
        assert isinstance(found, Refusal)
        assert (found.code, found.rule) == (RefusalCode.PRICE, rule)
        return
    assert isinstance(found, OrderRequest)
    asked = (found.trail_price, found.trail_percent)
    assert asked == (price and Decimal(price), percent and Decimal(percent))


def order(kind: str = "Limit", **terms: Any) -> OrderRequest:
    found = build(kind, **terms)
    assert isinstance(found, OrderRequest)
    return found


@pytest.mark.parametrize(
    ("request_", "change", "wanted"),
    [
        (order(), {"size": 12}, {"qty": Decimal(12)}),
        (order(), {"price": 10.5}, {"limit_price": Decimal("10.5")}),
        (order(), {"price": 10.5, "size": 10}, {"limit_price": Decimal("10.5")}),
        (order("Stop"), {"price": 10.5}, {"stop_price": Decimal("10.5")}),
        (order("StopLimit"), {"price": 9.0, "limit_price": 9.5},
         {"stop_price": Decimal("9.0"), "limit_price": Decimal("9.5")}),
        (order("StopTrail", trail_amount=0.5), {"trail_amount": 0.75}, {"trail": Decimal("0.75")}),
        (order("StopTrail", trail_percent=0.02), {"trail_percent": 0.03}, {"trail": Decimal(3)}),
        (order(symbol="BTC/USD", size=0.5), {"size": 0.75}, {"qty": Decimal("0.75")}),
        (order(), {}, "replace_nothing"),
        (order(), {"price": 10.25, "size": 10}, "replace_nothing"),
        (order(), {"limit_price": 9.5}, "replace_limit_price"),
        (order(), {"price": -1}, "price"),
        (order(), {"size": 0}, "size"),
        (order("Market"), {"price": 9.5}, "replace_price"),
        (order("StopTrail", trail_amount=0.5), {"trail_percent": 0.02}, "replace_trail_percent"),
        (order("StopTrail", trail_percent=0.02), {"trail_percent": 2}, "trail_percent"),
        (order(size=1.5), {"size": 2}, "replace_fractional_size"),
        (order(), {"size": 2.5}, "replace_fractional_size"),
        (order(options={"notional": 100}), {"price": 9.5}, "replace_notional"),
        (replace(order(), order_class=OrderClass.OCO), {"size": 4}, "replace_group_size"),
        (replace(order(), order_class=OrderClass.OCO), {"price": 9.5}, {"limit_price": Decimal("9.5")}),
    ],
)  # fmt: skip
def test_a_change_names_what_is_new_or_the_rule_against_it(
    request_: OrderRequest, change: dict[str, Any], wanted: Any
) -> None:
    found = build_change(ChangeTerms(**change), request_, "dw-a-s-2")
    if isinstance(wanted, str):
        assert isinstance(found, Refusal)
        assert found.rule == wanted
    else:
        assert found == Replacement(client_order_id="dw-a-s-2", **wanted)


@pytest.mark.parametrize("size", [0, 0.0, 1e-10, float("nan"), float("inf"), 1e30, "many"])
def test_a_size_that_is_none_is_refused(size: Any) -> None:
    refusal = build(size=size)
    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.SIZE


@pytest.mark.parametrize("kind", ["Limit", "Stop", "StopLimit"])
@pytest.mark.parametrize("price", [None, 0, -1.5, float("nan"), float("inf")])
def test_a_price_that_is_none_is_refused(kind: str, price: float | None) -> None:
    refusal = build(kind, price=price, limit_price=price)
    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.PRICE


def test_a_name_that_is_no_symbol_is_refused() -> None:
    refusal = build(symbol="my data")
    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.SYMBOL


@pytest.mark.parametrize(
    ("size", "qty"),
    [
        (10, "10"),
        (-3, "3"),
        (0.1 + 0.2, "0.3"),
        (1e-9, "0.000000001"),
        (1234.5000000004, "1234.5"),
        (100.0, "100"),
        (1e6, "1000000"),
        (np.float64(0.25), "0.25"),
        (np.int64(7), "7"),
        (Decimal("0.125"), "0.125"),
    ],
)
def test_sizes_are_decimals_of_nine_places_without_zeros(size: Any, qty: str) -> None:
    found = parse_qty(size)
    assert found is not None
    assert f"{found:f}" == qty


@given(st.floats(1e-9, 1e12))
def test_a_size_is_off_by_half_a_step_at_most(size: float) -> None:
    qty = parse_qty(size)
    assert qty is not None
    assert abs(qty - Decimal(repr(size))) <= Decimal("0.0000000005")
    assert not f"{qty:f}".endswith("0") or qty == qty.to_integral_value()


def test_prices_keep_their_digits() -> None:
    request = build("Limit", price=0.1 + 0.2)
    assert isinstance(request, OrderRequest)
    assert request.limit_price == Decimal("0.30000000000000004")


def test_kinds_have_a_word_of_alpaca() -> None:
    assert [order_type_word(k) for k in ("Market", "StopLimit", "StopTrail", "99")] == [
        "market", "stop_limit", "trailing_stop", "99",
    ]  # fmt: skip
