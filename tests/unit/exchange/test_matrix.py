"""Alpaca's matrix at the exchange: every type × time in force × asset × class is taken, or refused with code and words.

What a trader sends (`dry_work.orders.rules`, tested beside it) is compared as well: the exchange takes all of it, and
what it takes beyond that stands in `BEYOND`.
"""

from __future__ import annotations

from decimal import Decimal
from itertools import product
from typing import Any

import pytest

from dry_work.exchange.option_contracts import OptionChains
from dry_work.exchange.venue import RefusedError
from dry_work.orders.model import OrderClass, OrderRequest, OrderType, Side, StopLoss, TimeInForce
from dry_work.orders.rules import check_order
from dry_work.wire.alpaca_orders import build_order_request, parse_order_request

from .test_alpaca_rules import CALENDAR, at
from .test_options import record
from .venue_desk import KEY, Desk

D = Decimal
ASSETS: dict[str, dict[str, Any]] = {
    "stock": {"symbol": "SPY", "qty": D(10)},
    "fractional": {"symbol": "SPY", "qty": D("1.5")},
    "notional": {"symbol": "SPY", "notional": D(500)},
    "crypto": {"symbol": "BTC/USD", "qty": D("0.5")},
    "crypto_notional": {"symbol": "BTC/USD", "notional": D(500)},
    "option": {"symbol": "SPY240614C00100000", "qty": D(2)},
}
PRICES: dict[OrderType, dict[str, Any]] = {
    OrderType.MARKET: {},
    OrderType.LIMIT: {"limit_price": D(101)},
    OrderType.STOP: {"stop_price": D(102)},
    OrderType.STOP_LIMIT: {"stop_price": D(102), "limit_price": D(103)},
    OrderType.TRAILING_STOP: {"trail_percent": D(2)},
}
EXITS: dict[OrderClass, dict[str, Any]] = {
    OrderClass.SIMPLE: {},
    OrderClass.BRACKET: {"take_profit": D(120), "stop_loss": StopLoss(D(80))},
    OrderClass.OTO: {"take_profit": D(120)},
    OrderClass.OCO: {"take_profit": D(80), "stop_loss": StopLoss(D(120))},
}
EVERY, LASTING, DAY, COIN = "day gtc opg cls ioc fok", "day gtc", "day", "gtc ioc"
STOPS = ("stop", "stop_limit")

# What is taken: for each asset, class and type the times in force.
TAKEN: dict[tuple[str, str, str], str] = {
    ("stock", "simple", "market"): EVERY,
    ("stock", "simple", "limit"): EVERY,
    **{("stock", "simple", kind): LASTING for kind in (*STOPS, "trailing_stop")},
    **{("stock", group, kind): LASTING for group in ("bracket", "oto") for kind in ("market", "limit", *STOPS)},
    ("stock", "oco", "limit"): LASTING,
    **{(asset, "simple", kind): DAY for asset in ("fractional", "notional") for kind in ("market", "limit", *STOPS)},
    **{("crypto", "simple", kind): COIN for kind in ("market", "limit", "stop_limit")},
    **{("crypto_notional", "simple", kind): COIN for kind in ("market", "limit", "stop_limit")},
    **{("option", "simple", kind): DAY for kind in ("market", "limit")},
}
BEYOND = {("notional", "simple", kind, "day") for kind in STOPS} | {
    ("crypto_notional", "simple", "stop_limit", time) for time in COIN.split()
}
MESSAGES = {
    "complex orders not supported for options trading",
    "invalid order type for options trading: expected market or limit",
    "invalid option time_in_force",
    "crypto orders must be simple orders",
    "invalid crypto time_in_force",
    "invalid order type for crypto order: expected market, limit or stop_limit",
    "fractional orders must be market, limit, stop, or stop_limit orders",
    "fractional orders must be DAY orders",
    "fractional orders must be simple orders",
    "trailing_stop orders must be simple orders",
    "oco orders must be limit orders",
}
CELLS = list(product(ASSETS, OrderClass, OrderType, TimeInForce))


def build(asset: str, group: OrderClass, kind: OrderType, time: TimeInForce) -> OrderRequest:
    given = {**ASSETS[asset], **PRICES[kind], **EXITS[group]}
    if group is OrderClass.OCO and kind is OrderType.LIMIT:
        given.pop("limit_price")
    return OrderRequest(client_order_id="c", side=Side.BUY, type=kind, time_in_force=time, order_class=group, **given)


def open_desk(group: OrderClass, time: TimeInForce) -> Desk:
    """A desk in the session, for opg before it; oco orders find a hundred shares sold short to close."""
    hour = "08" if time is TimeInForce.OPG else "10"
    desk = Desk(
        "alpaca", cash="1000000", now_ns=at(f"2024-06-11 {hour}:00"), is_open=CALENDAR.is_open,
        session_close_ns=CALENDAR.session_close_ns, chains=OptionChains(record([100.0]), CALENDAR),
    )  # fmt: skip
    desk.step(SPY=100.0, BTC=100.0)
    if group is OrderClass.OCO:
        desk.sell("100", day=True)
        desk.step(SPY=100.0, BTC=100.0)
    return desk


def ask(desk: Desk, request: OrderRequest) -> tuple[int, int, str] | None:
    """Return how the exchange refuses a request that came as JSON; None when it takes it."""
    if (request.qty is None and request.order_class is not OrderClass.SIMPLE) or (
        request.order_class is OrderClass.OCO and request.type is not OrderType.LIMIT
    ):
        parsed = request
    else:
        parsed = parse_order_request(build_order_request(request))
        assert parsed == request
    try:
        order = desk.venue.submit(KEY, parsed)
    except RefusedError as error:
        return error.http_status, error.code, error.message
    desk.venue.cancel(KEY, order.id)
    return None


@pytest.mark.parametrize("group", OrderClass)
@pytest.mark.parametrize("asset", ASSETS)
def test_every_combination_is_taken_or_refused_with_code_and_words(asset: str, group: OrderClass) -> None:
    wrong: list[Any] = []
    for kind, time in product(OrderType, TimeInForce):
        refusal = ask(open_desk(group, time), build(asset, group, kind, time))
        is_taken = time.value in TAKEN.get((asset, group.value, kind.value), "").split()
        if is_taken != (refusal is None):
            wrong.append((kind.value, time.value, refusal))
        elif refusal is not None:
            status, code, message = refusal
            beginnings = (
                f"time_in_force {time} is not allowed for {kind} orders",
                f"{group} orders require qty",
                f"{group} orders must be DAY or GTC orders",
            )
            known = message in MESSAGES or message.startswith(beginnings)
            if (status, code) != (422, 42210000) or not known:
                wrong.append((kind.value, time.value, refusal))
    assert wrong == []


def test_the_matrix_takes_what_it_should() -> None:
    assert len(CELLS) == 720
    assert sum(len(times.split()) for times in TAKEN.values()) == 58


def test_what_a_trader_may_send_is_taken() -> None:
    sent = {
        (asset, group.value, kind.value, time.value)
        for asset, group, kind, time in CELLS
        if check_order(build(asset, group, kind, time)) is None
    }
    taken = {(*place, time) for place, times in TAKEN.items() for time in times.split()}
    assert taken - sent == BEYOND
    assert sent <= taken
