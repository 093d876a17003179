"""From an order as Backtrader words it to a request to Alpaca, or to a refusal that says why not. Pure.

| Backtrader | Alpaca |
|---|---|
| Market, Limit, Stop, StopLimit | `market`, `limit`, `stop`, `stop_limit` |
| `valid` None, DAY, a date | `gtc`, `day`, `gtc` and canceled at that date by the broker |

A fractional quantity of a stock goes as `day`. Crypto knows no `day`: it goes as `gtc` and is canceled when the day is
over. Everything else is refused rather than turned into something similar.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal
from enum import StrEnum
from types import MappingProxyType

import msgspec

from dry_work.market.symbols import is_crypto, is_symbol
from dry_work.orders.model import OrderRequest, OrderType, Side, TimeInForce

QTY_STEP = Decimal("0.000000001")  # Alpaca takes nine decimals

# Backtrader's names of order kinds; the ones without a type here cannot be sent.
KINDS: Mapping[str, OrderType] = MappingProxyType(
    {
        "Market": OrderType.MARKET,
        "Limit": OrderType.LIMIT,
        "Stop": OrderType.STOP,
        "StopLimit": OrderType.STOP_LIMIT,
    }
)
_WHY_NOT: Mapping[str, str] = MappingProxyType(
    {
        "Close": "Close orders (market on close) are not offered in this version",
        "StopTrail": "StopTrail orders are not offered in this version",
        "StopTrailLimit": "StopTrailLimit orders cannot be sent: Alpaca has no such order",
        "Historical": "Historical orders have no meaning at a venue",
    }
)
_TYPE_WORDS: Mapping[str, OrderType] = MappingProxyType(
    {
        **KINDS,
        "Close": OrderType.MARKET,
        "StopTrail": OrderType.TRAILING_STOP,
        "StopTrailLimit": OrderType.TRAILING_STOP,
    }
)
_OFFERED = "this version sends Market, Limit, Stop and StopLimit"
_CRYPTO_TYPES = frozenset({OrderType.MARKET, OrderType.LIMIT, OrderType.STOP_LIMIT})


class RefusalCode(StrEnum):
    """Why an order was refused before it was sent."""

    KIND = "kind_not_supported"
    LINKED = "linked_orders_not_supported"
    OPTION = "option_not_supported"
    SYMBOL = "symbol_not_usable"
    SIZE = "size_not_usable"
    PRICE = "price_not_usable"
    NO_BAR = "no_bar_yet"
    NOT_TRADING = "not_trading"


class Refusal(msgspec.Struct, frozen=True):
    """An order that is not sent, and why."""

    code: RefusalCode
    reason: str


class OrderTerms(msgspec.Struct, frozen=True, kw_only=True):
    """An order as Backtrader holds it.

    `price` and `limit_price` are Backtrader's `created.price` and `created.pricelimit`: the first is the limit of a
    Limit order and the trigger of a Stop or StopLimit order.
    """

    kind: str  # Backtrader's name: Market, Limit, ...
    symbol: str  # canonical
    side: Side
    size: float | int | Decimal  # its sign says nothing
    price: float | None = None
    limit_price: float | None = None
    day: bool = False  # `valid` was DAY
    linked: str = ""  # what ties it to other orders: parent, transmit or oco
    options: Mapping[str, object] = {}  # further keywords of buy or sell


def parse_qty(size: float | int | Decimal) -> Decimal | None:
    """Return a size as a positive quantity with at most nine decimals; None when there is nothing to send."""
    number = size if isinstance(size, Decimal) else _parse_float(size)
    if number is None or not number.is_finite():
        return None
    if abs(number).adjusted() > 17:  # beyond what any venue takes, and beyond what can be quantized
        return None
    qty = abs(number).quantize(QTY_STEP, ROUND_HALF_EVEN)
    if not qty:
        return None
    qty = qty.normalize()
    return qty.quantize(Decimal(1)) if qty == qty.to_integral_value() else qty


def order_type_word(kind: str) -> str:
    """Return the kind of an order in Alpaca's words, also of one that is not sent."""
    found = _TYPE_WORDS.get(kind)
    return found.value if found is not None else kind.lower()


def build_order_request(terms: OrderTerms, client_order_id: str) -> OrderRequest | Refusal:
    """Return the request that the terms ask for, or why it is not made."""
    order_type = KINDS.get(terms.kind)
    if order_type is None:
        why = _WHY_NOT.get(terms.kind, f"orders of kind {terms.kind} are unknown")
        return Refusal(RefusalCode.KIND, f"{why}: {_OFFERED}")
    if terms.linked:
        return Refusal(
            RefusalCode.LINKED,
            f"orders with {terms.linked} (brackets, one cancels other) are not offered in this version",
        )
    for name in ("notional", "client_order_id", "extended_hours", "tif", "time_in_force"):
        if terms.options.get(name):
            return Refusal(RefusalCode.OPTION, f"{name}={terms.options[name]!r:.40} is not offered in this version")
    if not is_symbol(terms.symbol):
        return Refusal(RefusalCode.SYMBOL, f"{terms.symbol!r} is no symbol that can be traded")
    crypto = is_crypto(terms.symbol)
    if crypto and order_type not in _CRYPTO_TYPES:
        return Refusal(
            RefusalCode.KIND,
            f"{terms.kind} orders cannot be sent for crypto: Alpaca takes market, limit and stop_limit",
        )
    qty = parse_qty(terms.size)
    if qty is None:
        return Refusal(RefusalCode.SIZE, f"size {terms.size!r:.40}: expected a number of at least {QTY_STEP:f}")
    stop_price = limit_price = None
    if order_type in (OrderType.STOP, OrderType.STOP_LIMIT):
        stop_price = _parse_price(terms.price)
        if stop_price is None:
            return Refusal(RefusalCode.PRICE, f"stop price {terms.price!r:.40}: expected a number above 0")
    if order_type in (OrderType.LIMIT, OrderType.STOP_LIMIT):
        asked = terms.price if order_type is OrderType.LIMIT else terms.limit_price
        limit_price = _parse_price(asked)
        if limit_price is None:
            return Refusal(RefusalCode.PRICE, f"limit price {asked!r:.40}: expected a number above 0")
    fractional = qty != qty.to_integral_value()
    as_day = not crypto and (terms.day or fractional)
    return OrderRequest(
        client_order_id=client_order_id,
        symbol=terms.symbol,
        side=terms.side,
        type=order_type,
        time_in_force=TimeInForce.DAY if as_day else TimeInForce.GTC,
        qty=qty,
        limit_price=limit_price,
        stop_price=stop_price,
    )


def _parse_price(price: float | None) -> Decimal | None:
    number = None if price is None else _parse_float(price)
    if number is None or number <= 0:
        return None
    return number


def _parse_float(value: object) -> Decimal | None:
    try:
        number = float(value)  # type: ignore[arg-type] # numpy's numbers too, whose repr is not a number's
    except (TypeError, ValueError, OverflowError):
        return None
    return Decimal(repr(number)) if math.isfinite(number) else None
