"""From an order as Backtrader words it to a request to Alpaca, or to a refusal that says why not. Pure.

| Backtrader | Alpaca |
|---|---|
| Market, Limit, Stop, StopLimit | `market`, `limit`, `stop`, `stop_limit` |
| Close | `market`, time in force `cls` |
| StopTrail | `trailing_stop`: `trailamount` is the trail price, `trailpercent` 0.02 the trail percent 2 |
| `valid` None, DAY, a date | `gtc`, `day`, `gtc` and canceled at that date by the broker |

Keywords of `buy` and `sell` say more: `tif` (or `time_in_force`) names a time in force, `extended_hours=True` asks for
the extended hours, `notional` gives dollars instead of a size. Without a `tif` a fractional or notional order of a
stock, and every order of an option, goes as `day`. Crypto knows no `day`: it goes as `gtc` and is canceled when the day
is over. Everything else is refused rather than turned into something similar.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec.structs import replace

from dry_work.market.symbols import is_crypto, is_option, is_symbol
from dry_work.orders.model import OrderClass, OrderRequest, OrderType, Replacement, Side, TimeInForce
from dry_work.orders.rules import Refusal, RefusalCode, check_order

__all__ = [
    "KINDS",
    "OrderTerms",
    "Refusal",
    "RefusalCode",
    "build_change",
    "build_order_request",
    "build_request",
    "order_type_word",
    "parse_qty",
]

QTY_STEP = Decimal("0.000000001")  # Alpaca takes nine decimals
CENT = Decimal("0.01")

# Backtrader's names of order kinds; the ones without a type here cannot be sent.
KINDS: Mapping[str, OrderType] = MappingProxyType(
    {
        "Market": OrderType.MARKET,
        "Close": OrderType.MARKET,
        "Limit": OrderType.LIMIT,
        "Stop": OrderType.STOP,
        "StopLimit": OrderType.STOP_LIMIT,
        "StopTrail": OrderType.TRAILING_STOP,
    }
)
_WHY_NOT: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "StopTrailLimit": ("StopTrailLimit orders cannot be sent: Alpaca has no such order", "stop_trail_limit"),
        "Historical": ("Historical orders have no meaning at a venue", "historical"),
    }
)
_TYPE_WORDS: Mapping[str, OrderType] = MappingProxyType({**KINDS, "StopTrailLimit": OrderType.TRAILING_STOP})
_OFFERED = "Market, Close, Limit, Stop, StopLimit and StopTrail can be"
_TIMES = ", ".join(word.value for word in TimeInForce)
# Words of Alpaca that somebody may expect to have an effect, and what to give instead.
_FOREIGN_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "client_order_id": "the broker makes the client order ids",
        "order_class": "give parent= and transmit=, or oco=",
        "take_profit": "give a Limit order with parent=",
        "stop_loss": "give a Stop order with parent=",
        "limit_price": "give price=, for StopLimit orders plimit=",
        "stop_price": "give price=",
        "trail_price": "give trailamount=",
        "trail_percent": "give trailpercent=, 0.02 for two per cent",
        "qty": "give size=",
        "position_intent": "it follows from the position",
    }
)


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
    linked: str = ""  # ties to other orders that do not go together
    until: float | None = None  # `valid` was a date or a span of time, which ends then, as Backtrader holds times
    trail_amount: float | None = None
    trail_percent: float | None = None  # 0.02 is two per cent
    trail_start: float | None = None  # `price` of a StopTrail order as it was given
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


def build_order_request(terms: OrderTerms, client_order_id: str, *, at_ns: int | None = None) -> OrderRequest | Refusal:
    """Return the request that the terms ask for, or why it is not made: it would break one of Alpaca's rules.

    Prices are as they were given; `rules.round_prices` brings them on their ticks.

    Args:
        at_ns: time of the submit; None leaves rules of the time of day out.
    """
    built = build_request(terms, client_order_id)
    if isinstance(built, Refusal):
        return built
    return check_order(built, at_ns=at_ns) or built


def build_request(terms: OrderTerms, client_order_id: str) -> OrderRequest | Refusal:
    """Return the request that the terms ask for, whether Alpaca takes it or not; a refusal when there is none."""
    if terms.linked:
        return Refusal(RefusalCode.LINKED, f"orders with {terms.linked} cannot be sent as one", "linked")
    order_type = KINDS.get(terms.kind)
    if order_type is None:
        why, rule = _WHY_NOT.get(terms.kind, (f"orders of kind {terms.kind} are unknown", "unknown_kind"))
        return Refusal(RefusalCode.KIND, f"{why}: {_OFFERED}", rule)
    for name, instead in _FOREIGN_WORDS.items():
        if terms.options.get(name) is not None:
            return Refusal(RefusalCode.OPTION, f"{name}={terms.options[name]!r:.40} is not taken: {instead}", name)
    if not is_symbol(terms.symbol):
        return Refusal(RefusalCode.SYMBOL, f"{terms.symbol!r} is no symbol that can be traded", "symbol")
    amount = _read_amount(terms)
    if isinstance(amount, Refusal):
        return amount
    qty, notional = amount
    extended_hours = terms.options.get("extended_hours")
    if extended_hours not in (None, True, False):
        reason = f"extended_hours={extended_hours!r:.40}: expected True or False"
        return Refusal(RefusalCode.OPTION, reason, "extended_hours")
    time_in_force = _choose_time_in_force(terms, is_part=notional is not None or qty != _whole(qty))
    if isinstance(time_in_force, Refusal):
        return time_in_force
    prices = _read_prices(terms, order_type)
    if isinstance(prices, Refusal):
        return prices
    return OrderRequest(
        client_order_id=client_order_id,
        symbol=terms.symbol,
        side=terms.side,
        type=order_type,
        time_in_force=time_in_force,
        qty=qty,
        notional=notional,
        extended_hours=bool(extended_hours),
        **prices,
    )


class ChangeTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a strategy wants changed in an order, in Backtrader's words; None leaves as it is."""

    size: float | int | Decimal | None = None
    price: float | None = None
    limit_price: float | None = None  # `plimit`
    trail_amount: float | None = None
    trail_percent: float | None = None


def build_change(terms: ChangeTerms, request: OrderRequest, client_order_id: str) -> Replacement | Refusal:
    """Return the replacement that the terms ask for, or why it is not made.

    Args:
        request: of the order as it stands, an exit of a group as `groups.build_leg` words it but with its class.
        client_order_id: of the order that takes its place.
    """
    is_linked = request.order_class is not OrderClass.SIMPLE
    if request.notional is not None:
        return Refusal(RefusalCode.OPTION, "an order by value cannot be replaced", "replace_notional")
    qty = None
    if terms.size is not None:
        qty = parse_qty(terms.size)
        if qty is None:
            return Refusal(RefusalCode.SIZE, f"size {terms.size!r:.40}: expected a number above 0", "size")
        if is_linked and qty != request.qty:
            return Refusal(RefusalCode.LINKED, "the size of linked orders cannot be changed", "replace_group_size")
        is_part = qty != _whole(qty) or request.qty != _whole(request.qty)
        if qty != request.qty and is_part and not is_crypto(request.symbol):
            reason = "the size of a fractional order cannot be changed"
            return Refusal(RefusalCode.SIZE, reason, "replace_fractional_size")
        qty = None if qty == request.qty else qty
    trails = request.type is OrderType.TRAILING_STOP
    takes = {
        "price": request.type in (OrderType.LIMIT, OrderType.STOP, OrderType.STOP_LIMIT),
        "limit_price": request.type is OrderType.STOP_LIMIT,
        "trail_amount": trails and request.trail_price is not None,
        "trail_percent": trails and request.trail_percent is not None,
    }
    numbers: dict[str, Decimal] = {}
    for name, is_taken in takes.items():
        given = getattr(terms, name)
        if given is None:
            continue
        number = _parse_price(given)
        if not is_taken:
            word = {"limit_price": "plimit", "trail_amount": "trailamount", "trail_percent": "trailpercent"}
            reason = f"{word.get(name, name)} cannot be changed: this {request.type.value} order has none"
            return Refusal(RefusalCode.PRICE, reason, f"replace_{name}")
        if number is None or (name == "trail_percent" and number >= 1):
            return Refusal(RefusalCode.PRICE, f"{name} {given!r:.40} is no price", name)
        numbers[name] = number
    is_limit = request.type is OrderType.LIMIT
    fraction = numbers.get("trail_percent")
    wanted = Replacement(
        qty=qty,
        limit_price=numbers.get("price") if is_limit else numbers.get("limit_price"),
        stop_price=None if is_limit else numbers.get("price"),
        trail=numbers.get("trail_amount") if fraction is None else (fraction * 100).normalize(),
        client_order_id=client_order_id,
    )
    kept = Replacement(
        limit_price=None if wanted.limit_price == request.limit_price else wanted.limit_price,
        stop_price=None if wanted.stop_price == request.stop_price else wanted.stop_price,
        trail=None if wanted.trail in (request.trail_price, request.trail_percent) else wanted.trail,
        qty=qty,
        client_order_id=client_order_id,
    )
    if kept == Replacement(client_order_id=client_order_id):
        return Refusal(RefusalCode.OPTION, "nothing is to be changed", "replace_nothing")
    return kept


def apply_change(change: Replacement, request: OrderRequest) -> OrderRequest:
    """Return the request of an order as it stands after a replacement."""
    trail = change.trail
    return replace(
        request,
        client_order_id=change.client_order_id,
        qty=request.qty if change.qty is None else change.qty,
        limit_price=request.limit_price if change.limit_price is None else change.limit_price,
        stop_price=request.stop_price if change.stop_price is None else change.stop_price,
        trail_price=request.trail_price if trail is None or request.trail_price is None else trail,
        trail_percent=request.trail_percent if trail is None or request.trail_percent is None else trail,
    )


def _read_amount(terms: OrderTerms) -> tuple[Decimal | None, Decimal | None] | Refusal:
    """Return quantity and dollars, one of them None."""
    asked = terms.options.get("notional")
    if asked is not None:
        dollars = _parse_price(asked)
        if dollars is None or dollars.adjusted() > 17:
            reason = f"notional={asked!r:.40}: expected a number of dollars above 0"
            return Refusal(RefusalCode.SIZE, reason, "notional")
        return None, dollars.quantize(CENT, ROUND_HALF_EVEN)
    qty = parse_qty(terms.size)
    if qty is None:
        reason = f"size {terms.size!r:.40}: expected a number of at least {QTY_STEP:f}"
        return Refusal(RefusalCode.SIZE, reason, "size")
    return qty, None


def _choose_time_in_force(terms: OrderTerms, *, is_part: bool) -> TimeInForce | Refusal:
    words = {
        str(word).strip().lower()
        for word in (terms.options.get("tif"), terms.options.get("time_in_force"))
        if word is not None
    }
    asked: TimeInForce | None = None
    if words:
        try:
            [word] = words
            asked = TimeInForce(word)
        except ValueError:
            given = " and ".join(sorted(words))
            return Refusal(RefusalCode.TIME, f"tif {given:.40}: expected one of {_TIMES}", "tif")
    at_close = terms.kind == "Close"
    if at_close and asked not in (None, TimeInForce.CLS):
        return Refusal(RefusalCode.TIME, f"Close orders go as cls, not as {asked}", "close_is_cls")
    if asked is not None and not at_close:
        if (terms.day and asked is not TimeInForce.DAY) or (terms.until is not None and asked is not TimeInForce.GTC):
            reason = f"tif {asked.value} and valid= contradict one another: give one of them"
            return Refusal(RefusalCode.TIME, reason, "tif_and_valid")
        return asked
    if at_close:
        return TimeInForce.CLS
    if is_crypto(terms.symbol):
        return TimeInForce.GTC
    return TimeInForce.DAY if terms.day or is_part or is_option(terms.symbol) else TimeInForce.GTC


def _read_prices(terms: OrderTerms, order_type: OrderType) -> dict[str, Any] | Refusal:
    found: dict[str, Any] = {}
    if order_type in (OrderType.STOP, OrderType.STOP_LIMIT):
        stop_price = _parse_price(terms.price)
        if stop_price is None:
            return Refusal(
                RefusalCode.PRICE, f"stop price {terms.price!r:.40}: expected a number above 0", "stop_price"
            )
        found["stop_price"] = stop_price
    if order_type in (OrderType.LIMIT, OrderType.STOP_LIMIT):
        asked = terms.price if order_type is OrderType.LIMIT else terms.limit_price
        limit_price = _parse_price(asked)
        if limit_price is None:
            return Refusal(RefusalCode.PRICE, f"limit price {asked!r:.40}: expected a number above 0", "limit_price")
        found["limit_price"] = limit_price
    if order_type is OrderType.TRAILING_STOP:
        return _read_trail(terms)
    return found


def _read_trail(terms: OrderTerms) -> dict[str, Any] | Refusal:
    """Return the trail; of both, the amount counts, as in Backtrader."""
    if terms.trail_start is not None:
        reason = f"price={terms.trail_start!r:.40}: Alpaca's trailing stops start at the market; give no price"
        return Refusal(RefusalCode.PRICE, reason, "trail_start")
    if terms.trail_amount:
        amount = _parse_price(terms.trail_amount)
        if amount is not None:
            return {"trail_price": amount}
        reason = f"trailamount {terms.trail_amount!r:.40}: expected a number above 0"
        return Refusal(RefusalCode.PRICE, reason, "trail_amount")
    fraction = None if terms.trail_percent is None else _parse_price(terms.trail_percent)
    if fraction is not None and fraction < 1:
        return {"trail_percent": (fraction * 100).normalize()}
    if not terms.trail_percent:
        return Refusal(RefusalCode.PRICE, "StopTrail orders need trailamount or trailpercent", "trail")
    reason = f"trailpercent {terms.trail_percent!r:.40}: expected a part between 0 and 1, 0.02 for two per cent"
    return Refusal(RefusalCode.PRICE, reason, "trail_percent")


def _whole(qty: Decimal | None) -> Decimal | None:
    return None if qty is None else qty.to_integral_value()


def _parse_price(price: object) -> Decimal | None:
    number = None if price is None or isinstance(price, bool) else _parse_float(price)
    if number is None or number <= 0:
        return None
    return number


def _parse_float(value: object) -> Decimal | None:
    try:
        number = float(value)  # type: ignore[arg-type] # numpy's numbers too, whose repr is not a number's
    except (TypeError, ValueError, OverflowError):
        return None
    return Decimal(repr(number)) if math.isfinite(number) else None
