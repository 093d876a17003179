"""Which orders Alpaca takes: type × time in force × asset × class × session, as data; and the ticks of prices. Pure.

`TABLE` says what is allowed; what stands in no row is refused, and the refusal's rule names what does not fit:
`<asset>_order_class`, `<asset>_type` or `<asset>_time_in_force`. `RULES` and `WINDOWS` hold what a row cannot say.
Sources: Alpaca's documentation of orders, its OpenAPI specification, its published trading skills for programs
(skills), answers seen in public (seen), and what is only inferred from these (inferred). Where the texts disagree, the
narrower one stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, time
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from enum import StrEnum
from zoneinfo import ZoneInfo

import msgspec
from msgspec.structs import replace

from dry_work.clock import SECOND_NS
from dry_work.market.symbols import is_crypto, is_option
from dry_work.orders.model import OrderClass, OrderRequest, OrderType, Replacement, Side, StopLoss, TimeInForce


class RefusalCode(StrEnum):
    """Why an order was refused before it was sent."""

    KIND = "kind_not_supported"
    TIME = "time_in_force_not_supported"
    LINKED = "linked_orders_not_supported"
    OPTION = "option_not_supported"
    SESSION = "session_closed"
    SYMBOL = "symbol_not_usable"
    SIZE = "size_not_usable"
    PRICE = "price_not_usable"
    NO_BAR = "no_bar_yet"
    NOT_TRADING = "not_trading"
    UNEXPLAINED = "unexplained"  # what the venue says of the symbol


class Refusal(msgspec.Struct, frozen=True):
    """An order that is not sent, and why. `rule` names the rule that it breaks, empty where there is none."""

    code: RefusalCode
    reason: str
    rule: str = ""


class Asset(StrEnum):
    """What is traded, and how its amount is given."""

    STOCK = "stock"
    FRACTIONAL = "fractional"  # a quantity of a stock that is not whole
    NOTIONAL = "notional"  # dollars of a stock
    CRYPTO = "crypto"
    CRYPTO_NOTIONAL = "crypto_notional"
    OPTION = "option"


class Row(msgspec.Struct, frozen=True):
    """Orders that are allowed: every combination of what it holds."""

    assets: tuple[Asset, ...]
    classes: tuple[OrderClass, ...]
    types: tuple[OrderType, ...]
    times: tuple[TimeInForce, ...]
    source: str


class Rule(msgspec.Struct, frozen=True):
    """One more reason to refuse a request."""

    name: str
    code: RefusalCode
    is_broken: Callable[[OrderRequest], bool]
    reason: str
    source: str


class Window(msgspec.Struct, frozen=True):
    """Orders that are refused between two times of a day in New York, the first included."""

    name: str
    is_meant: Callable[[OrderRequest], bool]
    start: time
    end: time
    reason: str
    source: str


_SIMPLE = (OrderClass.SIMPLE,)
_ENTRIES = (OrderClass.BRACKET, OrderClass.OTO)
_WITHOUT_STOP = (OrderType.MARKET, OrderType.LIMIT)
_WITH_STOP = (OrderType.STOP, OrderType.STOP_LIMIT)
_LASTING = (TimeInForce.DAY, TimeInForce.GTC)

TABLE: Sequence[Row] = (
    Row((Asset.STOCK,), _SIMPLE, _WITHOUT_STOP, tuple(TimeInForce), "documentation: time in force"),
    Row((Asset.STOCK,), _SIMPLE, _WITH_STOP, _LASTING, "inferred: no text names another one for stops"),
    Row((Asset.STOCK,), _SIMPLE, (OrderType.TRAILING_STOP,), _LASTING, "documentation: trailing stop orders"),
    Row((Asset.STOCK,), _ENTRIES, (*_WITHOUT_STOP, *_WITH_STOP), _LASTING, "documentation: bracket and OTO orders"),
    Row((Asset.STOCK,), (OrderClass.OCO,), (OrderType.LIMIT,), _LASTING, "documentation: OCO orders"),
    Row(
        (Asset.FRACTIONAL,),
        _SIMPLE,
        (*_WITHOUT_STOP, *_WITH_STOP),
        (TimeInForce.DAY,),
        "documentation: fractional trading; seen: fractional orders must be DAY orders, must be simple orders",
    ),
    Row((Asset.NOTIONAL,), _SIMPLE, _WITHOUT_STOP, (TimeInForce.DAY,), "skills: notional market or limit"),
    Row(
        (Asset.CRYPTO,),
        _SIMPLE,
        (OrderType.MARKET, OrderType.LIMIT, OrderType.STOP_LIMIT),
        (TimeInForce.GTC, TimeInForce.IOC),
        "documentation: crypto orders; seen: invalid crypto time_in_force",
    ),
    Row(
        (Asset.CRYPTO_NOTIONAL,),
        _SIMPLE,
        _WITHOUT_STOP,
        (TimeInForce.GTC, TimeInForce.IOC),
        "inferred: as notional stocks, with the times of crypto",
    ),
    Row((Asset.OPTION,), _SIMPLE, _WITHOUT_STOP, (TimeInForce.DAY,), "specification: options are market or limit, day"),
)

RULES: Sequence[Rule] = (
    Rule(
        "option_whole_contracts",
        RefusalCode.SIZE,
        lambda r: is_option(r.symbol) and (r.qty is None or r.qty != r.qty.to_integral_value()),
        "options are traded in whole contracts",
        "specification: qty must be integer for options trading",
    ),
    Rule(
        "extended_hours_limit_day",
        RefusalCode.OPTION,
        lambda r: r.extended_hours and (r.type is not OrderType.LIMIT or r.time_in_force is not TimeInForce.DAY),
        "extended hours need a Limit order that is valid for the day (valid=Order.DAY or tif='day')",
        "seen: extended hours order must be DAY limit orders",
    ),
    Rule(
        "extended_hours_simple",
        RefusalCode.OPTION,
        lambda r: r.extended_hours and r.order_class is not OrderClass.SIMPLE,
        "linked orders are not taken in extended hours",
        "documentation: bracket orders",
    ),
    Rule(
        "extended_hours_stock",
        RefusalCode.OPTION,
        lambda r: r.extended_hours and (is_crypto(r.symbol) or is_option(r.symbol)),
        "only stocks have extended hours",
        "specification: extended hours is not supported for options trading",
    ),
    Rule(
        "notional_minimum",
        RefusalCode.SIZE,
        lambda r: r.notional is not None and r.notional < 1,
        "an order by value has to be of at least 1 dollar",
        "seen: cost basis must be >= minimal amount of order 1",
    ),
    Rule(
        "take_profit_beyond_entry",
        RefusalCode.PRICE,
        lambda r: _is_too_near(r.take_profit, _entry_price(r), above=_exit_side(r) is Side.SELL),
        "the profit exit has to be at least 0.01 beyond the entry's limit, on its winning side",
        "seen: take_profit.limit_price must be >= base_price + 0.01",
    ),
    Rule(
        "stop_loss_beyond_entry",
        RefusalCode.PRICE,
        lambda r: _is_too_near(_stop_price(r), _base_price(r), above=_exit_side(r) is Side.BUY),
        "the stop exit has to be at least 0.01 beyond the entry's limit, in an oco pair beyond the profit exit, on the "
        "losing side",
        "seen: stop_loss.stop_price must be <= base_price - 0.01",
    ),
)

WINDOWS: Sequence[Window] = (
    Window(
        "opg_window",
        lambda r: r.time_in_force is TimeInForce.OPG,
        time(9, 28),
        time(19, 0),
        "orders for the opening are not taken from 09:28 to 19:00 in New York",
        "documentation: time in force opg",
    ),
    Window(
        "cls_window",
        lambda r: r.time_in_force is TimeInForce.CLS,
        time(15, 50),
        time(19, 0),
        "orders for the close are not taken from 15:50 to 19:00 in New York",
        "documentation: time in force cls",
    ),
    Window(
        "option_market_before_open",
        lambda r: is_option(r.symbol) and r.type is OrderType.MARKET,
        time(0, 0),
        time(9, 30),
        "options are traded at market during market hours only",
        "specification: options market orders are only allowed during market hours",
    ),
    Window(
        "option_market_after_close",
        lambda r: is_option(r.symbol) and r.type is OrderType.MARKET,
        time(16, 0),
        time.max,
        "options are traded at market during market hours only",
        "specification: options market orders are only allowed during market hours",
    ),
)

_NEW_YORK = ZoneInfo("America/New_York")
_CENT = Decimal("0.01")
_NOISE = Decimal("0.001")  # of a tick: what a float leaves behind a calculation


def asset_of(request: OrderRequest) -> Asset:
    """Return what a request trades, as the table words it."""
    if is_option(request.symbol):
        return Asset.OPTION
    if is_crypto(request.symbol):
        return Asset.CRYPTO if request.notional is None else Asset.CRYPTO_NOTIONAL
    if request.notional is not None:
        return Asset.NOTIONAL
    whole = request.qty is None or request.qty == request.qty.to_integral_value()
    return Asset.STOCK if whole else Asset.FRACTIONAL


def check_order(request: OrderRequest, *, at_ns: int | None = None) -> Refusal | None:
    """Return why Alpaca would not take the request, whatever the account holds; None when it would.

    Args:
        request: one of the shape that its type and class ask for.
        at_ns: time of its submit; None leaves the times of the day out.
    """
    asset = asset_of(request)
    rows = [row for row in TABLE if asset in row.assets]
    dimensions: tuple[tuple[str, StrEnum, RefusalCode, str], ...] = (
        ("order_class", request.order_class, RefusalCode.LINKED, "classes"),
        ("type", request.type, RefusalCode.KIND, "types"),
        ("time_in_force", request.time_in_force, RefusalCode.TIME, "times"),
    )
    for dimension, value, code, column in dimensions:
        fitting = [row for row in rows if value in getattr(row, column)]
        if not fitting:
            allowed = ", ".join(dict.fromkeys(word.value for row in rows for word in getattr(row, column)))
            what = _describe(asset, request, dimension)
            reason = f"{dimension} {value.value} is not taken for {what}: Alpaca takes {allowed}"
            return Refusal(code, reason, f"{asset.value}_{dimension}")
        rows = fitting
    for rule in RULES:
        if rule.is_broken(request):
            return Refusal(rule.code, rule.reason, rule.name)
    if at_ns is not None:
        clock = datetime.fromtimestamp(at_ns // SECOND_NS, UTC).astimezone(_NEW_YORK).time()
        for window in WINDOWS:
            if window.is_meant(request) and window.start <= clock < window.end:
                return Refusal(RefusalCode.SESSION, window.reason, window.name)
    return None


# Ticks


def tick_of(symbol: str, price: Decimal, increments: Mapping[str, Decimal]) -> Decimal | None:
    """Return the step of a symbol's prices near `price`; None when it is not known.

    Args:
        increments: steps of crypto pairs, as their assets have them.
    """
    if is_crypto(symbol):
        return increments.get(symbol)
    if is_option(symbol):
        return _CENT if price < 3 else Decimal("0.05")
    return _CENT if price >= 1 else Decimal("0.0001")


def round_prices(request: OrderRequest, increments: Mapping[str, Decimal]) -> tuple[OrderRequest, tuple[str, ...]]:
    """Return the request with its prices on their ticks, and a notice for each that was moved.

    A limit moves to the side that gives nothing away: a buy pays no more, a sell takes no less. A stop moves towards
    the market and a trail becomes shorter, so that neither protects later than asked for. What a float left behind a
    calculation is taken away without a notice.
    """
    symbol, side, exit_side = request.symbol, request.side, _exit_side(request)
    notices: list[str] = []

    def move(name: str, price: Decimal | None, *, up: bool, near: Decimal | None = None) -> Decimal | None:
        moved = None if price is None else _round(price, tick_of(symbol, near or price, increments), up=up)
        if price is not None and moved is not None and abs(moved - price) > _tolerance(symbol, price, increments):
            notices.append(f"{name} {price:f} was rounded to {moved:f}")
        return moved

    loss = request.stop_loss
    if loss is not None:
        stop = move("stop_loss.stop_price", loss.stop_price, up=exit_side is Side.SELL)
        assert stop is not None
        loss = StopLoss(stop, move("stop_loss.limit_price", loss.limit_price, up=exit_side is Side.SELL))
    rounded = replace(
        request,
        limit_price=move("limit_price", request.limit_price, up=side is Side.SELL),
        stop_price=move("stop_price", request.stop_price, up=side is Side.SELL),
        trail_price=move("trail_price", request.trail_price, up=False, near=Decimal(1)),
        take_profit=move("take_profit.limit_price", request.take_profit, up=exit_side is Side.SELL),
        stop_loss=loss,
    )
    return rounded, tuple(notices)


def round_change(
    change: Replacement, request: OrderRequest, increments: Mapping[str, Decimal]
) -> tuple[Replacement, tuple[str, ...]]:
    """Return a change of the order of `request` with its prices on their ticks, and the notices; see `round_prices`."""
    of_price = request.type is OrderType.TRAILING_STOP and request.trail_price is not None
    shape = replace(
        request,
        limit_price=change.limit_price,
        stop_price=change.stop_price,
        trail_price=change.trail if of_price else None,
        take_profit=None,
        stop_loss=None,
    )
    rounded, notices = round_prices(shape, increments)
    trail = rounded.trail_price if of_price else change.trail
    return replace(change, limit_price=rounded.limit_price, stop_price=rounded.stop_price, trail=trail), notices


def _round(price: Decimal, tick: Decimal | None, *, up: bool) -> Decimal:
    if tick is None:
        return price
    steps = price / tick
    nearest = steps.to_integral_value(ROUND_HALF_EVEN)
    if abs(steps - nearest) > _NOISE:
        nearest = steps.to_integral_value(ROUND_CEILING if up else ROUND_FLOOR)
    # A price that falls below its first tick would be none; the venue refuses it as it is.
    return (nearest * tick).quantize(tick) if nearest else price


def _tolerance(symbol: str, price: Decimal, increments: Mapping[str, Decimal]) -> Decimal:
    tick = tick_of(symbol, price, increments)
    return tick * _NOISE if tick is not None else Decimal(0)


# Exits of a group


def _exit_side(request: OrderRequest) -> Side:
    if request.order_class is OrderClass.OCO:
        return request.side
    return Side.SELL if request.side is Side.BUY else Side.BUY


def _entry_price(request: OrderRequest) -> Decimal | None:
    return (
        request.limit_price if request.type is OrderType.LIMIT and request.order_class is not OrderClass.OCO else None
    )


def _base_price(request: OrderRequest) -> Decimal | None:
    return request.take_profit if request.order_class is OrderClass.OCO else _entry_price(request)


def _stop_price(request: OrderRequest) -> Decimal | None:
    return None if request.stop_loss is None else request.stop_loss.stop_price


def _is_too_near(price: Decimal | None, base: Decimal | None, *, above: bool) -> bool:
    if price is None or base is None:
        return False
    return price < base + _CENT if above else price > base - _CENT


def _describe(asset: Asset, request: OrderRequest, dimension: str) -> str:
    words = {
        Asset.STOCK: "stocks",
        Asset.FRACTIONAL: "fractional stock orders",
        Asset.NOTIONAL: "notional stock orders",
        Asset.CRYPTO: "crypto",
        Asset.CRYPTO_NOTIONAL: "notional crypto orders",
        Asset.OPTION: "options",
    }[asset]
    if dimension == "time_in_force":
        words = f"{request.type.value} orders of {words}"
    return words if request.order_class is OrderClass.SIMPLE else f"{request.order_class.value} orders of {words}"
