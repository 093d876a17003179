"""Orders, trade events, accounts and positions in Alpaca's JSON, in both directions. Pure.

`encode_*` makes what a venue sends, `parse_*` reads it; `build_order_request` makes what a client sends and
`parse_order_request` reads it. JSON stands as decoded mappings here; `parse_json` decodes without losing a digit of a
number. Money and quantities go out as decimal strings without exponent ("10.25") and come in as strings or numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any, NoReturn, TypeVar
from uuid import UUID, uuid5

import msgspec

from dry_work.errors import CodecError, DryWorkError
from dry_work.market.symbols import is_crypto, is_symbol
from dry_work.orders.model import (
    AccountSnapshot,
    OrderRequest,
    OrderType,
    Side,
    TimeInForce,
    TradeEvent,
    VenueOrder,
    VenuePosition,
)
from dry_work.wire.pubsub import encode_time, parse_time

CODE_MALFORMED = 40010000  # HTTP 400: the body is no JSON object
CODE_REQUEST = 40010001  # HTTP 422: a field is missing, malformed or already taken
CODE_UNAUTHORIZED = 40110000  # HTTP 401
CODE_FORBIDDEN = 40310000  # HTTP 403: funds, holdings, permissions
CODE_NOT_FOUND = 40410000  # HTTP 404
CODE_VALIDATION = 42210000  # HTTP 422: the order, or its state, does not allow it
CODE_RATE_LIMIT = 42910000  # HTTP 429
CODE_INTERNAL = 50010000  # HTTP 500

CLIENT_ORDER_ID_LIMIT = 128

_ASSETS = UUID("5f0b9f7e-6f5b-5d0a-9c0e-6d1c7a3b2e41")
_QUOTE_CURRENCIES = ("USDT", "USDC", "USD", "BTC")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_NUMBER_LENGTH = 256
_ASSET_ID = re.compile(r"[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}", re.ASCII)
_LARGEST_EXPONENT = 30
_SMALLEST_EXPONENT = -200

_Word = TypeVar("_Word", bound=StrEnum)


class RequestError(DryWorkError):
    """A client's request cannot be read. Handled by the exchange: answered with status, code and message."""

    def __init__(self, http_status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.code = code
        self.message = message


class ChainedOrder(VenueOrder, frozen=True, kw_only=True):
    """An order, and its place in a chain of replacements; the ids are empty where there is none."""

    replaces: str = ""
    replaced_by: str = ""
    replaced_ns: int | None = None


class Replacement(msgspec.Struct, frozen=True, kw_only=True):
    """What a client wants changed in an open order; None leaves as it is."""

    qty: Decimal | None = None
    time_in_force: TimeInForce | None = None
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    client_order_id: str = ""  # of the new order; empty: the venue makes one


def parse_json(data: bytes | str) -> Any:
    """Decode JSON with numbers that have a point or an exponent as `Decimal`.

    Raises:
        CodecError: when it is no JSON, nested too deeply, or holds NaN or Infinity.
    """
    try:
        return json.loads(data, parse_float=Decimal, parse_constant=_refuse_constant)
    except (ValueError, RecursionError, InvalidOperation) as error:
        raise CodecError(f"no JSON: {error}", data=data) from None


def encode_decimal(value: Decimal) -> str:
    """Return a finite decimal without exponent and without trailing zeros: "1", "10.25"."""
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def parse_decimal(value: object) -> Decimal | None:
    """Return a number or numeric string as `Decimal`; None and "" mean "not given".

    Raises:
        CodecError: for anything else, and for what is too long or too large to be an amount.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        raise CodecError(f"{value!r:.40} is no number")
    text = repr(value) if isinstance(value, float) else str(value).strip()
    if len(text) > _NUMBER_LENGTH or not _NUMBER.fullmatch(text):
        raise CodecError(f"{text[:40]!r} is no number")
    number = Decimal(text)
    if number.adjusted() > _LARGEST_EXPONENT or int(number.as_tuple().exponent) < _SMALLEST_EXPONENT:
        raise CodecError(f"{text[:40]!r} is out of range")
    return number


def asset_id(symbol: str) -> str:
    """Return the id of a symbol's asset, the same in every run."""
    return str(uuid5(_ASSETS, symbol))


def asset_class(symbol: str) -> str:
    """Return Alpaca's name of a canonical symbol's asset class."""
    return "crypto" if is_crypto(symbol) else "us_equity"


def parse_venue_symbol(text: str, asset_class_name: str = "") -> str:
    """Return the canonical symbol of what the venue writes; a crypto pair may come without its slash (BTCUSD)."""
    symbol = text.strip().upper()
    if asset_class_name == "crypto" and "/" not in symbol:
        for currency in _QUOTE_CURRENCIES:
            if symbol.endswith(currency) and len(symbol) > len(currency):
                return f"{symbol.removesuffix(currency)}/{currency}"
    return symbol


# Orders


def encode_order(order: VenueOrder) -> dict[str, Any]:
    """Return the order as Alpaca answers it; an own key `reject_reason` follows when there is one."""
    chain = order if isinstance(order, ChainedOrder) else None
    body: dict[str, Any] = {
        "id": order.id,
        "client_order_id": order.client_order_id,
        "created_at": encode_time(order.created_ns),
        "updated_at": encode_time(order.updated_ns),
        "submitted_at": encode_time(order.submitted_ns),
        "filled_at": _encode_optional_time(order.filled_ns),
        "expired_at": _encode_optional_time(order.expired_ns),
        "expires_at": None,
        "canceled_at": _encode_optional_time(order.canceled_ns),
        "failed_at": _encode_optional_time(order.failed_ns),
        "replaced_at": None if chain is None else _encode_optional_time(chain.replaced_ns),
        "replaced_by": None if chain is None else chain.replaced_by or None,
        "replaces": None if chain is None else chain.replaces or None,
        "asset_id": asset_id(order.symbol),
        "symbol": order.symbol,
        "asset_class": asset_class(order.symbol),
        "notional": _encode_optional_decimal(order.notional),
        "qty": _encode_optional_decimal(order.qty),
        "filled_qty": encode_decimal(order.filled_qty),
        "filled_avg_price": _encode_optional_decimal(order.filled_avg_price),
        "order_class": "",
        "order_type": order.type.value,
        "type": order.type.value,
        "side": order.side.value,
        "time_in_force": order.time_in_force.value,
        "limit_price": _encode_optional_decimal(order.limit_price),
        "stop_price": _encode_optional_decimal(order.stop_price),
        "status": str(order.status),
        "extended_hours": order.extended_hours,
        "legs": None,
        "trail_percent": None,
        "trail_price": None,
        "hwm": None,
        "subtag": None,
        "source": None,
    }
    if order.reject_reason:
        body["reject_reason"] = order.reject_reason
    return body


def parse_order(payload: Mapping[str, Any]) -> VenueOrder:
    """Read an order of the venue, a `ChainedOrder` when it has a place in a chain; an unknown status stays its text.

    Raises:
        CodecError: when id, symbol, side, type or time in force is missing or unknown, or a number or time malformed.
    """
    payload = _require_object(payload, "an order")
    try:
        chain: dict[str, Any] = {name: text for name in ("replaces", "replaced_by") if (text := payload.get(name))}
        if chain:
            chain = {name: str(text) for name, text in chain.items()}
            chain["replaced_ns"] = _parse_optional_time(payload, "replaced_at")
        return (ChainedOrder if chain else VenueOrder)(
            **chain,
            id=_require_text(payload, "id"),
            client_order_id=str(payload.get("client_order_id") or ""),
            symbol=parse_venue_symbol(_require_text(payload, "symbol"), str(payload.get("asset_class") or "")),
            side=_parse_word(Side, payload, "side"),
            type=_parse_word(OrderType, payload, "type" if payload.get("type") else "order_type"),
            time_in_force=_parse_word(TimeInForce, payload, "time_in_force"),
            status=_require_text(payload, "status"),
            qty=parse_decimal(payload.get("qty")),
            notional=parse_decimal(payload.get("notional")),
            filled_qty=parse_decimal(payload.get("filled_qty")) or Decimal(0),
            filled_avg_price=parse_decimal(payload.get("filled_avg_price")),
            limit_price=parse_decimal(payload.get("limit_price")),
            stop_price=parse_decimal(payload.get("stop_price")),
            extended_hours=bool(payload.get("extended_hours")),
            created_ns=_parse_optional_time(payload, "created_at") or 0,
            updated_ns=_parse_optional_time(payload, "updated_at") or 0,
            submitted_ns=_parse_optional_time(payload, "submitted_at") or 0,
            filled_ns=_parse_optional_time(payload, "filled_at"),
            canceled_ns=_parse_optional_time(payload, "canceled_at"),
            expired_ns=_parse_optional_time(payload, "expired_at"),
            failed_ns=_parse_optional_time(payload, "failed_at"),
            reject_reason=str(payload.get("reject_reason") or ""),
        )
    except CodecError as error:
        raise CodecError(f"order {str(payload.get('id'))[:64]}: {error.reason}") from None


def build_order_request(request: OrderRequest) -> dict[str, Any]:
    """Return the body of POST /v2/orders, money and quantities as strings."""
    body: dict[str, Any] = {
        "symbol": request.symbol,
        "side": request.side.value,
        "type": request.type.value,
        "time_in_force": request.time_in_force.value,
    }
    for name, value in (
        ("qty", request.qty),
        ("notional", request.notional),
        ("limit_price", request.limit_price),
        ("stop_price", request.stop_price),
    ):
        if value is not None:
            body[name] = encode_decimal(value)
    if request.client_order_id:
        body["client_order_id"] = request.client_order_id
    if request.extended_hours:
        body["extended_hours"] = True
    return body


def parse_order_request(payload: object) -> OrderRequest:
    """Read the body of POST /v2/orders, decoded by `parse_json`. An absent client order id is empty.

    The symbol, which may be an asset's id, is only raised to upper case: what is traded here is the venue's to say.

    Raises:
        RequestError: with the venue's status, code and message for what cannot be read.
    """
    if not isinstance(payload, Mapping):
        raise RequestError(400, CODE_MALFORMED, "request body format is invalid")
    symbol = payload.get("symbol")
    if not isinstance(symbol, str) or not symbol.strip():
        raise RequestError(422, CODE_REQUEST, "symbol is required")
    client_order_id = _parse_client_order_id(payload)
    if payload.get("order_class") not in (None, "", "simple"):
        raise RequestError(422, CODE_VALIDATION, f"order class {payload['order_class']!s:.20} is not supported")
    extended_hours = payload.get("extended_hours")
    if extended_hours not in (None, True, False):
        raise RequestError(422, CODE_REQUEST, "extended_hours must be true or false")
    order_type = _parse_request_word(OrderType, payload, "type")
    if order_type is OrderType.TRAILING_STOP:
        raise RequestError(422, CODE_VALIDATION, "trailing_stop orders are not supported")
    request = OrderRequest(
        client_order_id=client_order_id,
        symbol=symbol.strip().upper(),
        side=_parse_request_word(Side, payload, "side"),
        type=order_type,
        time_in_force=_parse_request_word(TimeInForce, payload, "time_in_force"),
        qty=_parse_request_decimal(payload, "qty"),
        notional=_parse_request_decimal(payload, "notional"),
        limit_price=_parse_request_decimal(payload, "limit_price"),
        stop_price=_parse_request_decimal(payload, "stop_price"),
        extended_hours=bool(extended_hours),
    )
    _check_request(request)
    return request


def parse_replacement(payload: object) -> Replacement:
    """Read the body of PATCH /v2/orders/{id}, decoded by `parse_json`; null means "leave as it is".

    Raises:
        RequestError: with the venue's status, code and message for what cannot be read.
    """
    if not isinstance(payload, Mapping):
        raise RequestError(400, CODE_MALFORMED, "request body format is invalid")
    if payload.get("trail") is not None:
        raise RequestError(422, CODE_VALIDATION, "trailing_stop orders are not supported")
    amounts = {name: _parse_request_decimal(payload, name) for name in ("qty", "limit_price", "stop_price")}
    for name, value in amounts.items():
        if value is not None and value <= 0:
            raise RequestError(422, CODE_VALIDATION, f"{name} must be > 0")
    given = payload.get("time_in_force") not in (None, "")
    return Replacement(
        time_in_force=_parse_request_word(TimeInForce, payload, "time_in_force") if given else None,
        client_order_id=_parse_client_order_id(payload),
        **amounts,
    )


# Trade events


def encode_trade_event(event: TradeEvent) -> dict[str, Any]:
    """Return the `data` of a trade_updates message."""
    time = encode_time(event.ts_event_ns)
    body: dict[str, Any] = {"event": event.event, "timestamp": time, "event_id": event.event_id, "at": time}
    if event.execution_id:
        body["execution_id"] = event.execution_id
    for name, value in (("price", event.price), ("qty", event.qty), ("position_qty", event.position_qty)):
        if value is not None:
            body[name] = encode_decimal(value)
    if event.code is not None:
        body["code"] = event.code
    if event.message:
        body["reject_reason"] = event.message
    body["order"] = encode_order(event.order)
    return body


def parse_trade_event(payload: Mapping[str, Any]) -> TradeEvent:
    """Read the `data` of a trade_updates message; any event name passes.

    Raises:
        CodecError: when the event has no name, or its order, a number or a time cannot be read.
    """
    payload = _require_object(payload, "a trade event")
    code = payload.get("code")
    if code is not None and (isinstance(code, bool) or not isinstance(code, int)):
        raise CodecError(f"code {code!r:.40} is no integer")
    event_ns = _parse_optional_time(payload, "timestamp")
    return TradeEvent(
        event=_require_text(payload, "event"),
        event_id=str(payload.get("event_id") or ""),
        ts_event_ns=event_ns if event_ns is not None else _parse_optional_time(payload, "at") or 0,
        order=parse_order(payload.get("order") or {}),
        execution_id=str(payload.get("execution_id") or ""),
        price=parse_decimal(payload.get("price")),
        qty=parse_decimal(payload.get("qty")),
        position_qty=parse_decimal(payload.get("position_qty")),
        code=code,
        message=str(payload.get("reject_reason") or ""),
    )


# Account and positions


def encode_account(
    account: AccountSnapshot,
    *,
    created_ns: int,
    long_market_value: Decimal = Decimal(0),
    short_market_value: Decimal = Decimal(0),
    last_equity: Decimal | None = None,
    multiplier: int = 1,
    non_marginable_buying_power: Decimal | None = None,
    suspended: bool = False,
    shorting_enabled: bool = True,
) -> dict[str, Any]:
    """Return the account as GET /v2/account answers it."""
    equity = encode_decimal(account.equity)
    buying_power = encode_decimal(account.buying_power)
    return {
        "id": account.id,
        "account_number": account.account_number,
        "status": account.status,
        "crypto_status": "ACTIVE",
        "currency": "USD",
        "cash": encode_decimal(account.cash),
        "buying_power": buying_power,
        "regt_buying_power": buying_power,
        "non_marginable_buying_power": encode_decimal(
            account.buying_power if non_marginable_buying_power is None else non_marginable_buying_power
        ),
        "options_buying_power": "0",
        "equity": equity,
        "last_equity": equity if last_equity is None else encode_decimal(last_equity),
        "portfolio_value": equity,
        "long_market_value": encode_decimal(long_market_value),
        "short_market_value": encode_decimal(short_market_value),
        "initial_margin": "0",
        "maintenance_margin": "0",
        "last_maintenance_margin": "0",
        "sma": "0",
        "accrued_fees": "0",
        "multiplier": str(multiplier),
        "shorting_enabled": shorting_enabled,
        "trading_blocked": account.trading_blocked,
        "transfers_blocked": False,
        "account_blocked": False,
        "trade_suspended_by_user": suspended,
        "created_at": encode_time(created_ns),
        "balance_asof": encode_time(created_ns)[:10],
        "options_approved_level": 0,
        "options_trading_level": 0,
        "intraday_adjustments": "0",
        "pending_reg_taf_fees": "0",
    }


def parse_account(payload: Mapping[str, Any]) -> AccountSnapshot:
    """Read an account of the venue.

    Raises:
        CodecError: when id, cash, equity or buying power is missing or malformed.
    """
    payload = _require_object(payload, "an account")
    return AccountSnapshot(
        id=_require_text(payload, "id"),
        account_number=str(payload.get("account_number") or ""),
        cash=_require_decimal(payload, "cash"),
        equity=_require_decimal(payload, "equity"),
        buying_power=_require_decimal(payload, "buying_power"),
        status=str(payload.get("status") or "ACTIVE"),
        trading_blocked=bool(payload.get("trading_blocked")),
    )


def encode_position(
    position: VenuePosition, *, current_price: Decimal, qty_available: Decimal | None = None
) -> dict[str, Any]:
    """Return a position as Alpaca answers it: a crypto pair without its slash, a short one with negative quantity."""
    crypto = is_crypto(position.symbol)
    cost = position.qty * position.avg_entry_price
    value = position.qty * current_price
    profit = value - cost
    ratio = profit / abs(cost) if cost else Decimal(0)
    return {
        "asset_id": asset_id(position.symbol),
        "symbol": position.symbol.replace("/", ""),
        "exchange": "CRYPTO" if crypto else "NASDAQ",
        "asset_class": asset_class(position.symbol),
        "asset_marginable": not crypto,
        "avg_entry_price": encode_decimal(position.avg_entry_price),
        "qty": encode_decimal(position.qty),
        "qty_available": encode_decimal(position.qty if qty_available is None else qty_available),
        "side": "short" if position.qty < 0 else "long",
        "market_value": encode_decimal(value),
        "cost_basis": encode_decimal(cost),
        "unrealized_pl": encode_decimal(profit),
        "unrealized_plpc": encode_decimal(ratio),
        "unrealized_intraday_pl": encode_decimal(profit),
        "unrealized_intraday_plpc": encode_decimal(ratio),
        "current_price": encode_decimal(current_price),
        "lastday_price": encode_decimal(current_price),
        "change_today": "0",
    }


def parse_position(payload: Mapping[str, Any]) -> VenuePosition:
    """Read a position of the venue; quantity is signed whatever the venue's sign, BTCUSD is BTC/USD.

    Raises:
        CodecError: when symbol, quantity or entry price is missing or malformed.
    """
    payload = _require_object(payload, "a position")
    qty = _require_decimal(payload, "qty")
    return VenuePosition(
        symbol=parse_venue_symbol(_require_text(payload, "symbol"), str(payload.get("asset_class") or "")),
        qty=-abs(qty) if payload.get("side") == "short" else qty,
        avg_entry_price=_require_decimal(payload, "avg_entry_price"),
    )


# Errors


def encode_error(code: int, message: str, context: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Return the body of a refusal."""
    return {"code": code, "message": message, **(context or {})}


def parse_error(body: bytes | str) -> tuple[int | None, str]:
    """Return code and message of a refusal's body; whatever is no such body is the message itself, shortened."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    try:
        payload = parse_json(text)
    except CodecError:
        return None, text.strip()[:200]
    if not isinstance(payload, Mapping) or not isinstance(payload.get("message"), str):
        return None, text.strip()[:200]
    code = payload.get("code")
    return (code if isinstance(code, int) and not isinstance(code, bool) else None), payload["message"]


# Private


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _encode_optional_decimal(value: Decimal | None) -> str | None:
    return None if value is None else encode_decimal(value)


def _encode_optional_time(time_ns: int | None) -> str | None:
    return None if time_ns is None else encode_time(time_ns)


def _parse_optional_time(payload: Mapping[str, Any], name: str) -> int | None:
    value = payload.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise CodecError(f"{name} {value!r:.40} is no time")
    try:
        return parse_time(value)
    except ValueError as error:
        raise CodecError(f"{name}: {error}") from None


def _require_object(payload: object, what: str) -> Mapping[str, Any]:
    if not isinstance(payload, Mapping):
        raise CodecError(f"{payload!r:.40} is not {what}")
    return payload


def _require_text(payload: Mapping[str, Any], name: str) -> str:
    value = payload.get(name)
    if not isinstance(value, str) or not value:
        raise CodecError(f"{name} {value!r:.40} is not a text")
    return value


def _require_decimal(payload: Mapping[str, Any], name: str) -> Decimal:
    value = parse_decimal(payload.get(name))
    if value is None:
        raise CodecError(f"{name} is missing")
    return value


def _parse_word(words: type[_Word], payload: Mapping[str, Any], name: str) -> _Word:
    value: Any = payload.get(name)
    try:
        return words(value)
    except ValueError:
        raise CodecError(f"{name} {value!r:.40} is unknown") from None


def _parse_request_word(words: type[_Word], payload: Mapping[str, Any], name: str) -> _Word:
    value = payload.get(name)
    if value is None or value == "":
        raise RequestError(422, CODE_REQUEST, f"{name} is required")
    try:
        return words(value)
    except ValueError:
        raise RequestError(422, CODE_REQUEST, f"invalid {name} {str(value)[:40]}") from None


def _parse_client_order_id(payload: Mapping[str, Any]) -> str:
    client_order_id = payload.get("client_order_id")
    if client_order_id is None:
        return ""
    if not isinstance(client_order_id, str) or len(client_order_id) > CLIENT_ORDER_ID_LIMIT:
        message = f"client_order_id must be a text of no more than {CLIENT_ORDER_ID_LIMIT} characters"
        raise RequestError(422, CODE_REQUEST, message)
    return client_order_id


def _parse_request_decimal(payload: Mapping[str, Any], name: str) -> Decimal | None:
    try:
        return parse_decimal(payload.get(name))
    except CodecError:
        raise RequestError(422, CODE_REQUEST, f"invalid {name} {str(payload[name])[:40]}") from None


def _check_request(request: OrderRequest) -> None:
    if (request.qty is None) == (request.notional is None):
        missing = request.qty is None
        message = "qty or notional is required" if missing else "only one of qty or notional is accepted"
        raise RequestError(422, CODE_REQUEST if missing else CODE_VALIDATION, message)
    for name, value in (
        ("qty", request.qty),
        ("notional", request.notional),
        ("limit_price", request.limit_price),
        ("stop_price", request.stop_price),
    ):
        if value is not None and value <= 0:
            raise RequestError(422, CODE_VALIDATION, f"{name} must be > 0")
    takes_limit = request.type in (OrderType.LIMIT, OrderType.STOP_LIMIT)
    takes_stop = request.type in (OrderType.STOP, OrderType.STOP_LIMIT)
    for name, value, taken in (
        ("limit_price", request.limit_price, takes_limit),
        ("stop_price", request.stop_price, takes_stop),
    ):
        if taken and value is None:
            raise RequestError(422, CODE_REQUEST, f"{request.type.value} orders require {name}")
        if not taken and value is not None:
            message = f"{request.type.value} orders require no {name}"
            if request.type is OrderType.MARKET:
                message = "market orders require no stop or limit price"
            raise RequestError(422, CODE_VALIDATION, message)
    if not is_symbol(request.symbol) and not _ASSET_ID.fullmatch(request.symbol):
        raise RequestError(422, CODE_VALIDATION, "invalid symbol")
