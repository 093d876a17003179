"""Every kind of order, asset and validity: an exact request or a refusal with its reason."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.orders.mapping import (
    OrderTerms,
    Refusal,
    RefusalCode,
    build_order_request,
    order_type_word,
    parse_qty,
)
from dry_work.orders.model import OrderRequest, Side


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


@pytest.mark.parametrize("kind", ["Close", "StopTrail", "StopTrailLimit", "Historical", "99"])
@pytest.mark.parametrize("symbol", ["AAPL", "BTC/USD"])
def test_other_kinds_are_refused_by_name(kind: str, symbol: str) -> None:
    refusal = build(kind, symbol)
    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.KIND
    assert kind in refusal.reason


@pytest.mark.parametrize("linked", ["parent", "oco", "transmit", "parent, transmit"])
def test_linked_orders_are_refused(linked: str) -> None:
    refusal = build(linked=linked)
    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.LINKED
    assert linked in refusal.reason


@pytest.mark.parametrize("name", ["notional", "client_order_id", "extended_hours", "tif", "time_in_force"])
def test_an_option_that_would_be_ignored_is_refused(name: str) -> None:
    refusal = build(options={name: "x"})
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.reason) == (RefusalCode.OPTION, f"{name}='x' is not offered in this version")
    assert isinstance(build(options={name: None, "note": "mine"}), OrderRequest)


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
