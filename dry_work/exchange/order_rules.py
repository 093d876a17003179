"""What the simulated exchange refuses at submit, and with which words: the rules as data. Pure.

Every rule looks at the request alone. `REQUEST_RULES` hold for both rule sets, the others under `alpaca`; what
depends on the account (funds, quantity at hand, client order ids) is refused by the venue with the errors built at the
end of this module. The numbers and, where they are known, the texts are Alpaca's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal

import msgspec

from dry_work.errors import DryWorkError
from dry_work.exchange.account import AccountSettings, is_contract
from dry_work.exchange.assets import AssetTraits
from dry_work.market.symbols import is_crypto
from dry_work.orders.model import (
    TERMINAL,
    OrderClass,
    OrderRequest,
    OrderStatus,
    OrderType,
    Replacement,
    Side,
    TimeInForce,
    VenueOrder,
)

CODE_REQUEST = 40010001  # the request has not the right shape
CODE_ORDER = 42210000  # the order breaks a rule
CODE_FUNDS = 40310000  # money or shares are missing
CODE_NOT_FOUND = 40410000

MAX_CLIENT_ORDER_ID_LENGTH = 128
MAX_DECIMAL_PLACES = 9
MAX_NOTIONAL_PLACES = 2
MIN_FRACTIONAL_COST = Decimal(1)
MIN_CRYPTO_COST = Decimal(10)
_MAGNITUDE = 30  # a number of more digits is a mistake or an attack: written out it fills the memory
INSUFFICIENT_BUYING_POWER = "insufficient buying power"

IMMEDIATE = frozenset({TimeInForce.IOC, TimeInForce.FOK})
AUCTION = frozenset({TimeInForce.OPG, TimeInForce.CLS})

# Price fields by type: needed ones are given, the others are not.
_NEEDS_LIMIT = frozenset({OrderType.LIMIT, OrderType.STOP_LIMIT})
_NEEDS_STOP = frozenset({OrderType.STOP, OrderType.STOP_LIMIT})
_PAIRED = frozenset({OrderClass.BRACKET, OrderClass.OCO})


class RefusedError(DryWorkError):
    """The exchange said no to a request. Handled by its server: an answer with `http_status` and an error body.

    Args:
        http_status: of the answer.
        code: Alpaca's error code.
        message: for people.
        context: further fields of the error body.
    """

    def __init__(self, http_status: int, code: int, message: str, context: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.code = code
        self.message = message
        self.context: dict[str, str] = dict(context or {})

    def body(self) -> dict[str, object]:
        """Return the error body of the answer."""
        return {"code": self.code, "message": self.message, **self.context}


class Rule(msgspec.Struct, frozen=True):
    """One reason to refuse a request. `message` may name fields of the request as `{r.qty}`, and its price as `{p}`."""

    is_broken: Callable[[OrderRequest], bool]
    message: str
    code: int = CODE_ORDER
    http_status: int = 422
    price: Callable[[OrderRequest], Decimal | None] | None = None  # what `{p}` in the message stands for


def encode_decimal(value: Decimal) -> str:
    """Return a number as Alpaca writes it: no exponent, no zeros at the end."""
    text = f"{value:f}"
    return (text.rstrip("0").rstrip(".") or "0") if "." in text else text


def _is_positive(value: Decimal | None) -> bool:
    return value is not None and value.is_finite() and value > 0


def _is_in_range(value: Decimal | None) -> bool:
    return value is None or -_MAGNITUDE <= value.adjusted() <= _MAGNITUDE


def _decimal_places(value: Decimal) -> int:
    return len(encode_decimal(value).partition(".")[2])


def _is_fractional(request: OrderRequest) -> bool:
    return request.notional is not None or (request.qty is not None and _decimal_places(request.qty) > 0)


def _exit_prices(request: OrderRequest) -> tuple[Decimal | None, ...]:
    loss = request.stop_loss
    if loss is None:
        return (request.take_profit,)
    return request.take_profit, loss.stop_price, loss.limit_price


def _has_bad_tick(price: Decimal | None) -> bool:
    return price is not None and _decimal_places(price) > (2 if price >= 1 else 4)


_PRICES: Mapping[str, Callable[[OrderRequest], Decimal | None]] = {
    "limit_price": lambda r: r.limit_price,
    "stop_price": lambda r: r.stop_price,
    "take_profit.limit_price": lambda r: r.take_profit,
    "stop_loss.stop_price": lambda r: None if r.stop_loss is None else r.stop_loss.stop_price,
    "stop_loss.limit_price": lambda r: None if r.stop_loss is None else r.stop_loss.limit_price,
}

REQUEST_RULES: Sequence[Rule] = (
    Rule(
        lambda r: r.notional is not None and r.qty is not None,
        "only one of qty or notional is accepted",
        CODE_REQUEST,
    ),
    Rule(lambda r: r.qty is None and r.notional is None, "qty or notional is required", CODE_REQUEST),
    Rule(lambda r: r.qty is not None and not _is_positive(r.qty), "qty must be > 0"),
    Rule(lambda r: r.notional is not None and not _is_positive(r.notional), "notional must be > 0"),
    Rule(
        lambda r: len(r.client_order_id) > MAX_CLIENT_ORDER_ID_LENGTH,
        f"client_order_id must be no more than {MAX_CLIENT_ORDER_ID_LENGTH} characters",
        CODE_REQUEST,
    ),
    Rule(
        lambda r: r.type is OrderType.MARKET and (r.limit_price is not None or r.stop_price is not None),
        "market orders require no stop or limit price",
    ),
    Rule(
        lambda r: r.type is OrderType.STOP_LIMIT and (r.limit_price is None or r.stop_price is None),
        "stop limit orders require both stop and limit price",
        CODE_REQUEST,
    ),
    Rule(
        lambda r: r.type in _NEEDS_LIMIT and r.limit_price is None and r.order_class is not OrderClass.OCO,
        "limit orders require limit price",
        CODE_REQUEST,
    ),
    Rule(lambda r: r.type in _NEEDS_STOP and r.stop_price is None, "stop orders require stop price", CODE_REQUEST),
    Rule(lambda r: r.type is OrderType.LIMIT and r.stop_price is not None, "limit orders require no stop price"),
    Rule(lambda r: r.type is OrderType.STOP and r.limit_price is not None, "stop orders require no limit price"),
    Rule(lambda r: r.limit_price is not None and not _is_positive(r.limit_price), "limit price must be > 0"),
    Rule(lambda r: r.stop_price is not None and not _is_positive(r.stop_price), "stop price must be > 0"),
    Rule(
        lambda r: r.type is OrderType.TRAILING_STOP and (r.trail_price is None) == (r.trail_percent is None),
        "trailing_stop orders require either trail_price or trail_percent",
        CODE_REQUEST,
    ),
    Rule(
        lambda r: r.type is OrderType.TRAILING_STOP and (r.limit_price is not None or r.stop_price is not None),
        "trailing_stop orders require no stop or limit price",
    ),
    Rule(
        lambda r: r.type is not OrderType.TRAILING_STOP and (r.trail_price is not None or r.trail_percent is not None),
        "{r.type} orders require no trail_price or trail_percent",
    ),
    Rule(lambda r: r.trail_price is not None and not _is_positive(r.trail_price), "trail_price must be > 0"),
    Rule(
        lambda r: r.trail_percent is not None and not (_is_positive(r.trail_percent) and r.trail_percent < 100),
        "trail_percent must be > 0 and < 100",
    ),
    Rule(
        lambda r: r.order_class is OrderClass.SIMPLE and (r.take_profit is not None or r.stop_loss is not None),
        "simple orders require no take_profit or stop_loss",
    ),
    Rule(
        lambda r: r.order_class in _PAIRED and r.take_profit is None,
        "{r.order_class} orders require take_profit.limit_price",
    ),
    Rule(
        lambda r: r.order_class in _PAIRED and r.stop_loss is None,
        "{r.order_class} orders require stop_loss.stop_price",
    ),
    Rule(
        lambda r: r.order_class is OrderClass.OTO and (r.take_profit is None) == (r.stop_loss is None),
        "oto orders require either take_profit or stop_loss",
    ),
    Rule(
        lambda r: r.order_class is OrderClass.OCO and r.type is not OrderType.LIMIT,
        "oco orders must be limit orders",
    ),
    Rule(
        lambda r: any(price is not None and not _is_positive(price) for price in _exit_prices(r)),
        "take_profit.limit_price, stop_loss.stop_price and stop_loss.limit_price must be > 0",
    ),
    Rule(lambda r: r.order_class is not OrderClass.SIMPLE and r.qty is None, "{r.order_class} orders require qty"),
    Rule(
        lambda r: not all(map(_is_in_range, (r.qty, r.notional, r.limit_price, r.stop_price, *_exit_prices(r)))),
        "qty, limit price or stop price is out of range",
        CODE_REQUEST,
    ),
    Rule(lambda r: not all(map(_is_in_range, (r.trail_price, r.trail_percent))), "trail is out of range", CODE_REQUEST),
)

_BACKTRADER_RULES: Sequence[Rule] = (
    Rule(
        lambda r: (
            r.time_in_force in IMMEDIATE
            or r.time_in_force is TimeInForce.OPG
            or (r.time_in_force is TimeInForce.CLS and r.type is not OrderType.MARKET)
        ),
        "time_in_force {r.time_in_force} of {r.type} orders is not offered by this exchange under the rules "
        "backtrader: expected day or gtc, of market orders also cls",
    ),
    Rule(
        lambda r: r.notional is not None and r.type is not OrderType.MARKET,
        "notional {r.type} orders are not offered by this exchange under the rules backtrader: give qty",
    ),
    Rule(
        lambda r: r.order_class is not OrderClass.SIMPLE and r.time_in_force is TimeInForce.CLS,
        "{r.order_class} orders must be day or gtc",
    ),
)

_LASTING = frozenset({TimeInForce.DAY, TimeInForce.GTC})

_EXTENDED_HOURS = Rule(
    lambda r: r.extended_hours and (r.type is not OrderType.LIMIT or r.time_in_force is not TimeInForce.DAY),
    "extended hours order must be DAY limit orders",
)
_NOTIONAL_PLACES = Rule(
    lambda r: r.notional is not None and _decimal_places(r.notional) > MAX_NOTIONAL_PLACES,
    f"notional value must be limited to {MAX_NOTIONAL_PLACES} decimal places",
)

_ALPACA_STOCK_RULES: Sequence[Rule] = (
    _EXTENDED_HOURS,
    Rule(
        lambda r: r.extended_hours and r.order_class is not OrderClass.SIMPLE,
        "extended hours is not supported for {r.order_class} orders",
    ),
    Rule(
        lambda r: r.time_in_force not in _LASTING and r.type in (*_NEEDS_STOP, OrderType.TRAILING_STOP),
        "time_in_force {r.time_in_force} is not allowed for {r.type} orders: expected day or gtc",
    ),
    Rule(
        lambda r: r.order_class is not OrderClass.SIMPLE and r.time_in_force not in _LASTING,
        "{r.order_class} orders must be DAY or GTC orders",
    ),
    Rule(
        lambda r: r.order_class is not OrderClass.SIMPLE and r.type is OrderType.TRAILING_STOP,
        "trailing_stop orders must be simple orders",
    ),
    Rule(
        lambda r: _is_fractional(r) and r.type is OrderType.TRAILING_STOP,
        "fractional orders must be market, limit, stop, or stop_limit orders",
    ),
    Rule(
        lambda r: _is_fractional(r) and r.time_in_force is not TimeInForce.DAY,
        "fractional orders must be DAY orders",
    ),
    Rule(
        lambda r: _is_fractional(r) and r.order_class is not OrderClass.SIMPLE,
        "fractional orders must be simple orders",
    ),
    _NOTIONAL_PLACES,
    Rule(
        lambda r: r.qty is not None and _decimal_places(r.qty) > MAX_DECIMAL_PLACES,
        f"qty must have no more than {MAX_DECIMAL_PLACES} decimal places",
    ),
    *(
        Rule(
            lambda r, find=find: _has_bad_tick(find(r)),  # type: ignore[misc]
            f"invalid {name} {{p}}. sub-penny increment does not fulfill minimum pricing criteria",
            price=find,
        )
        for name, find in _PRICES.items()
    ),
)

_CRYPTO_TIMES = frozenset({TimeInForce.GTC, TimeInForce.IOC})
_CRYPTO_TYPES = frozenset({OrderType.MARKET, OrderType.LIMIT, OrderType.STOP_LIMIT})
_ALPACA_CRYPTO_RULES: Sequence[Rule] = (
    Rule(lambda r: r.order_class is not OrderClass.SIMPLE, "crypto orders must be simple orders"),
    Rule(lambda r: r.time_in_force not in _CRYPTO_TIMES, "invalid crypto time_in_force"),
    Rule(
        lambda r: r.type not in _CRYPTO_TYPES,
        "invalid order type for crypto order: expected market, limit or stop_limit",
    ),
    _EXTENDED_HOURS,
    _NOTIONAL_PLACES,
)


_OPTION_TYPES = frozenset({OrderType.MARKET, OrderType.LIMIT})
_ALPACA_OPTION_RULES: Sequence[Rule] = (
    Rule(lambda r: r.order_class is not OrderClass.SIMPLE, "complex orders not supported for options trading"),
    Rule(
        lambda r: r.type not in _OPTION_TYPES,
        "invalid order type for options trading: expected market or limit",
    ),
    Rule(lambda r: r.time_in_force is not TimeInForce.DAY, "invalid option time_in_force"),
    Rule(lambda r: r.extended_hours, "extended hours is not supported for options trading"),
    Rule(lambda r: r.notional is not None, "notional orders are not supported for options trading"),
    Rule(lambda r: r.qty is not None and not is_whole(r.qty), "qty must be integer for options trading"),
    Rule(
        lambda r: r.limit_price is not None and _decimal_places(r.limit_price) > MAX_NOTIONAL_PLACES,
        "invalid limit_price {p}. sub-penny increment does not fulfill minimum pricing criteria",
        price=lambda r: r.limit_price,
    ),
)


def check_request(request: OrderRequest) -> None:
    """Refuse what neither rule set takes."""
    _check(request, REQUEST_RULES)


def check_backtrader_request(request: OrderRequest) -> None:
    """Refuse what Backtrader's own broker does not know."""
    _check(request, _BACKTRADER_RULES)


def check_alpaca_request(request: OrderRequest) -> None:
    """Refuse what Alpaca's rules for the asset class forbid, whatever the account holds."""
    if is_contract(request.symbol):
        _check(request, _ALPACA_OPTION_RULES)
    else:
        _check(request, _ALPACA_CRYPTO_RULES if is_crypto(request.symbol) else _ALPACA_STOCK_RULES)


def check_asset(request: OrderRequest, traits: AssetTraits) -> None:
    """Refuse what may not be done with an asset, whoever asks for it."""
    if traits.status != "active" or not traits.tradable:
        what = "active" if traits.status != "active" else "tradable"
        raise RefusedError(422, CODE_ORDER, f'asset "{request.symbol}" is not {what}')
    if not traits.fractionable and not is_crypto(request.symbol) and _is_fractional(request):
        raise RefusedError(403, CODE_FUNDS, f'asset "{request.symbol}" is not fractionable')


def check_borrow(request: OrderRequest, traits: AssetTraits) -> None:
    """Refuse to sell short what cannot be borrowed, or not for longer than a day."""
    if not traits.shortable:
        raise RefusedError(422, CODE_ORDER, f'asset "{request.symbol}" cannot be sold short')
    if not traits.easy_to_borrow and request.time_in_force is not TimeInForce.DAY:
        raise RefusedError(422, CODE_ORDER, f'only day orders are allowed for hard-to-borrow asset "{request.symbol}"')


def check_alpaca_cost(request: OrderRequest, cost: Decimal) -> None:
    """Refuse an order of too small a value."""
    if is_crypto(request.symbol):
        minimum = MIN_CRYPTO_COST
    elif _is_fractional(request):
        minimum = MIN_FRACTIONAL_COST
    else:
        return
    if cost < minimum:
        raise RefusedError(403, CODE_FUNDS, f"cost basis must be >= minimal amount of order {minimum}")


def check_change(order: VenueOrder, change: Replacement, *, is_linked: bool) -> None:
    """Refuse a change that Alpaca does not make of such an order, whatever the account holds."""
    new_qty = change.qty is not None and change.qty != order.qty
    if order.notional is not None:
        raise RefusedError(422, CODE_ORDER, "notional orders cannot be replaced")
    if is_linked and new_qty:
        raise RefusedError(422, CODE_ORDER, "qty cannot be changed for advanced orders")
    if new_qty and order.qty is not None and not is_whole(order.qty) and not is_crypto(order.symbol):
        raise RefusedError(422, CODE_ORDER, "qty cannot be changed for fractional orders")
    if change.trail is not None and order.type is not OrderType.TRAILING_STOP:
        raise RefusedError(422, CODE_ORDER, f"{order.type} orders have no trail")
    if order.type is OrderType.TRAILING_STOP and (change.limit_price is not None or change.stop_price is not None):
        raise RefusedError(422, CODE_ORDER, "trailing_stop orders require no stop or limit price")


def check_settings(request: OrderRequest, settings: AccountSettings, held: Decimal) -> None:
    """Refuse what the owner of the account has switched off; `held` is the signed position."""
    if settings.suspend_trade:
        raise RefusedError(403, CODE_FUNDS, "new orders are rejected by user request")
    if not settings.fractional_trading and not is_crypto(request.symbol) and _is_fractional(request):
        raise RefusedError(403, CODE_FUNDS, "account is not allowed to trade fractional shares")
    shorts = held <= 0 if request.qty is None else request.qty > held
    if settings.no_shorting and request.side is Side.SELL and shorts and not is_contract(request.symbol):
        raise RefusedError(403, CODE_FUNDS, "account is not allowed to short")


def is_whole(qty: Decimal) -> bool:
    """Tell whether `qty` has no fraction."""
    return _decimal_places(qty) == 0


def build_unknown_asset(symbol: str) -> RefusedError:
    """Build the error for a symbol the exchange does not trade."""
    return RefusedError(422, CODE_ORDER, f'asset "{symbol}" not found')


def build_duplicate_client_id() -> RefusedError:
    """Build the error for a client order id that this account has used before."""
    return RefusedError(422, CODE_REQUEST, "client_order_id must be unique")


def build_no_buying_power(symbol: str, *, cost: Decimal, available: Decimal) -> RefusedError:
    """Build the error for an order that costs more than may be spent."""
    message = INSUFFICIENT_BUYING_POWER
    if is_crypto(symbol):
        money = symbol.partition("/")[2]
        message = (
            f"insufficient balance for {money} "
            f"(requested: {encode_decimal(cost)}, available: {encode_decimal(available)})"
        )
    context = {"buying_power": encode_decimal(available), "cost_basis": encode_decimal(cost)}
    return RefusedError(403, CODE_FUNDS, message, context)


def build_no_quantity(symbol: str, *, requested: Decimal, existing: Decimal, held: Decimal) -> RefusedError:
    """Build the error for an order that closes more than is there and not held by other orders."""
    available = max(existing - held, Decimal(0))
    amounts = f"(requested: {encode_decimal(requested)}, available: {encode_decimal(available)})"
    what = f"balance for {symbol.partition('/')[0]}" if is_crypto(symbol) else "qty available for order"
    context = {
        "symbol": symbol,
        "existing_qty": encode_decimal(existing),
        "held_for_orders": encode_decimal(held),
        "available": encode_decimal(available),
    }
    return RefusedError(403, CODE_FUNDS, f"insufficient {what} {amounts}", context)


def build_no_short(*, is_whole: bool) -> RefusedError:
    """Build the error for a short sale that the asset or the account does not allow."""
    if not is_whole:
        return RefusedError(422, CODE_ORDER, "fractional orders cannot be sold short")
    return RefusedError(403, CODE_FUNDS, "account is not allowed to short")


def build_order_not_found(order_id: str) -> RefusedError:
    """Build the error for an order id that this account does not have."""
    return RefusedError(404, CODE_NOT_FOUND, f"order not found for {order_id}")


def build_order_closed(status: str) -> RefusedError:
    """Build the error for the cancel of an order that is at its end."""
    return RefusedError(422, CODE_ORDER, f'order is already in "{status}" state')


def build_order_not_checked(status: str) -> RefusedError:
    """Build the error for the cancel of an order that waits for its funds check at the next bar."""
    return RefusedError(422, CODE_ORDER, f'order is in "{status}" state and cannot be canceled before the next bar')


def build_order_not_replaceable(order: VenueOrder) -> RefusedError:
    """Build the error for the replacement of an order in a state that does not allow it."""
    if order.status == OrderStatus.REPLACED:
        return RefusedError(422, CODE_ORDER, "order already replaced")
    if order.status in TERMINAL:
        return RefusedError(422, CODE_ORDER, "order is not open")
    return RefusedError(422, CODE_ORDER, f"cannot replace order in {order.status} status")


def build_order_not_changed() -> RefusedError:
    """Build the error for a replacement that would change nothing."""
    return RefusedError(422, CODE_ORDER, "order parameters are not changed")


def build_chain_not_replaced() -> RefusedError:
    """Build the error for a change of an order that has yet to take its predecessor's place."""
    return RefusedError(422, CODE_ORDER, "order chain not fully replaced")


def build_position_not_found(symbol: str) -> RefusedError:
    """Build the error for a position that this account does not have."""
    return RefusedError(404, CODE_NOT_FOUND, f"position not found: {symbol.replace('/', '')}")


def _check(request: OrderRequest, rules: Sequence[Rule]) -> None:
    for rule in rules:
        if rule.is_broken(request):
            price = None if rule.price is None else rule.price(request)
            raise RefusedError(rule.http_status, rule.code, rule.message.format(r=request, p=price))
