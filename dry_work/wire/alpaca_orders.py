"""Orders in Alpaca's JSON, in both directions. Pure.

`encode_order` makes what a venue answers and `parse_order` reads it; `build_*` makes the bodies that a client sends and
`parse_order_request` and `parse_replacement` read them. JSON stands as decoded mappings here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from dry_work.errors import CodecError
from dry_work.market.symbols import is_symbol
from dry_work.orders.client_ids import CLIENT_ORDER_ID_LIMIT
from dry_work.orders.model import (
    OrderClass,
    OrderRequest,
    OrderType,
    Replacement,
    Side,
    StopLoss,
    TimeInForce,
    VenueOrder,
)
from dry_work.wire.alpaca_fields import (
    CODE_MALFORMED,
    CODE_REQUEST,
    CODE_VALIDATION,
    RequestError,
    asset_class,
    asset_id,
    encode_decimal,
    encode_optional_decimal,
    encode_optional_time,
    parse_decimal,
    parse_optional_time,
    parse_request_decimal,
    parse_request_word,
    parse_venue_symbol,
    parse_word,
    require_object,
    require_text,
)
from dry_work.wire.pubsub import encode_time

_ASSET_ID = re.compile(r"[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}", re.ASCII)
_SEVERAL_LEGS = "mleg"
_LEGS = 8  # of one order; more are a mistake or an attack


def encode_order(order: VenueOrder) -> dict[str, Any]:
    """Return the order as Alpaca answers it; an own key `reject_reason` follows when there is one."""
    body: dict[str, Any] = {
        "id": order.id,
        "client_order_id": order.client_order_id,
        "created_at": encode_time(order.created_ns),
        "updated_at": encode_time(order.updated_ns),
        "submitted_at": encode_time(order.submitted_ns),
        "filled_at": encode_optional_time(order.filled_ns),
        "expired_at": encode_optional_time(order.expired_ns),
        "expires_at": None,
        "canceled_at": encode_optional_time(order.canceled_ns),
        "failed_at": encode_optional_time(order.failed_ns),
        "replaced_at": encode_optional_time(order.replaced_ns),
        "replaced_by": order.replaced_by or None,
        "replaces": order.replaces or None,
        "asset_id": asset_id(order.symbol),
        "symbol": order.symbol,
        "asset_class": asset_class(order.symbol),
        "notional": encode_optional_decimal(order.notional),
        "qty": encode_optional_decimal(order.qty),
        "filled_qty": encode_decimal(order.filled_qty),
        "filled_avg_price": encode_optional_decimal(order.filled_avg_price),
        "order_class": "" if order.order_class == OrderClass.SIMPLE else order.order_class,
        "order_type": order.type.value,
        "type": order.type.value,
        "side": order.side.value,
        "time_in_force": order.time_in_force.value,
        "limit_price": encode_optional_decimal(order.limit_price),
        "stop_price": encode_optional_decimal(order.stop_price),
        "status": str(order.status),
        "extended_hours": order.extended_hours,
        "legs": [encode_order(leg) for leg in order.legs] or None,
        "trail_percent": encode_optional_decimal(order.trail_percent),
        "trail_price": encode_optional_decimal(order.trail_price),
        "hwm": encode_optional_decimal(order.hwm),
        "subtag": None,
        "source": None,
    }
    if order.commission is not None:
        body["commission"] = encode_decimal(order.commission)
    if order.reject_reason:
        body["reject_reason"] = order.reject_reason
    return body


def parse_order(payload: Mapping[str, Any]) -> VenueOrder:
    """Read an order of the venue with its legs; an unknown status or order class stays its text.

    An order of several options (`mleg`) has no symbol and no side: its symbol is empty here, its side says nothing.

    Raises:
        CodecError: when id, symbol, side, type or time in force is missing or unknown, or a number or time malformed.
    """
    payload = require_object(payload, "an order")
    try:
        legs = payload.get("legs") or ()
        if not isinstance(legs, (list, tuple)) or len(legs) > _LEGS:
            raise CodecError(f"legs {legs!r:.40} are no list of at most {_LEGS} orders")
        if payload.get("order_class") == _SEVERAL_LEGS:
            payload, legs = _complete_several_legs(payload, legs)
        return VenueOrder(
            id=require_text(payload, "id"),
            client_order_id=str(payload.get("client_order_id") or ""),
            symbol=_parse_symbol(payload),
            side=parse_word(Side, payload, "side"),
            type=parse_word(OrderType, payload, "type" if payload.get("type") else "order_type"),
            time_in_force=parse_word(TimeInForce, payload, "time_in_force"),
            status=require_text(payload, "status"),
            qty=parse_decimal(payload.get("qty")),
            notional=parse_decimal(payload.get("notional")),
            filled_qty=parse_decimal(payload.get("filled_qty")) or Decimal(0),
            filled_avg_price=parse_decimal(payload.get("filled_avg_price")),
            limit_price=parse_decimal(payload.get("limit_price")),
            stop_price=parse_decimal(payload.get("stop_price")),
            trail_price=parse_decimal(payload.get("trail_price")),
            trail_percent=parse_decimal(payload.get("trail_percent")),
            hwm=parse_decimal(payload.get("hwm")),
            extended_hours=bool(payload.get("extended_hours")),
            order_class=str(payload.get("order_class") or OrderClass.SIMPLE),
            legs=tuple(parse_order(leg) for leg in legs),
            replaces=str(payload.get("replaces") or ""),
            replaced_by=str(payload.get("replaced_by") or ""),
            replaced_ns=parse_optional_time(payload, "replaced_at"),
            created_ns=parse_optional_time(payload, "created_at") or 0,
            updated_ns=parse_optional_time(payload, "updated_at") or 0,
            submitted_ns=parse_optional_time(payload, "submitted_at") or 0,
            filled_ns=parse_optional_time(payload, "filled_at"),
            canceled_ns=parse_optional_time(payload, "canceled_at"),
            expired_ns=parse_optional_time(payload, "expired_at"),
            failed_ns=parse_optional_time(payload, "failed_at"),
            reject_reason=str(payload.get("reject_reason") or ""),
        )
    except CodecError as error:
        raise CodecError(f"order {str(payload.get('id'))[:64]}: {error.reason}") from None


def parse_orders(payloads: Iterable[Any]) -> tuple[list[VenueOrder], list[str]]:
    """Read orders of the venue; return those that can be read, and why others cannot: one must not hide all."""
    orders: list[VenueOrder] = []
    unreadable: list[str] = []
    for payload in payloads:
        try:
            orders.append(parse_order(payload))
        except CodecError as error:
            unreadable.append(error.reason)
    return orders, unreadable


def _parse_symbol(payload: Mapping[str, Any]) -> str:
    if payload.get("order_class") == _SEVERAL_LEGS and not payload.get("symbol"):
        return ""
    return parse_venue_symbol(require_text(payload, "symbol"), str(payload.get("asset_class") or ""))


def _complete_several_legs(payload: Mapping[str, Any], legs: Iterable[Any]) -> tuple[dict[str, Any], list[Any]]:
    """Return an order of several options and its legs with the fields that Alpaca leaves empty there."""
    whole = {**payload, "side": payload.get("side") or Side.BUY.value}
    kind = payload.get("type") or payload.get("order_type")
    shared = {"type": kind, "time_in_force": payload.get("time_in_force"), "side": whole["side"]}
    completed = [
        {**leg, **{name: value for name, value in shared.items() if not leg.get(name)}}
        if isinstance(leg, Mapping)
        else leg
        for leg in legs
    ]
    return whole, completed


def build_order_request(request: OrderRequest) -> dict[str, Any]:
    """Return the body of POST /v2/orders, money and quantities as strings."""
    body: dict[str, Any] = {
        "symbol": request.symbol,
        "side": request.side.value,
        "type": request.type.value,
        "time_in_force": request.time_in_force.value,
    }
    for name in ("qty", "notional", "limit_price", "stop_price", "trail_price", "trail_percent"):
        value = getattr(request, name)
        if value is not None:
            body[name] = encode_decimal(value)
    if request.client_order_id:
        body["client_order_id"] = request.client_order_id
    if request.extended_hours:
        body["extended_hours"] = True
    if request.order_class is not OrderClass.SIMPLE:
        body["order_class"] = request.order_class.value
    if request.take_profit is not None:
        body["take_profit"] = {"limit_price": encode_decimal(request.take_profit)}
    if request.stop_loss is not None:
        exit_ = body["stop_loss"] = {"stop_price": encode_decimal(request.stop_loss.stop_price)}
        if request.stop_loss.limit_price is not None:
            exit_["limit_price"] = encode_decimal(request.stop_loss.limit_price)
    return body


def build_replacement(change: Replacement) -> dict[str, Any]:
    """Return the body of PATCH /v2/orders/{id}: what is to be changed, as strings."""
    body: dict[str, Any] = {}
    for name in ("qty", "limit_price", "stop_price", "trail"):
        value = getattr(change, name)
        if value is not None:
            body[name] = encode_decimal(value)
    if change.time_in_force is not None:
        body["time_in_force"] = change.time_in_force.value
    if change.client_order_id:
        body["client_order_id"] = change.client_order_id
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
    order_class = _parse_order_class(payload)
    extended_hours = payload.get("extended_hours")
    if extended_hours not in (None, True, False):
        raise RequestError(422, CODE_REQUEST, "extended_hours must be true or false")
    limit_price, take_profit = parse_request_decimal(payload, "limit_price"), _parse_take_profit(payload)
    if order_class is OrderClass.OCO and limit_price is not None:
        if take_profit not in (None, limit_price):
            raise RequestError(422, CODE_VALIDATION, "oco orders require one price: take_profit.limit_price")
        limit_price, take_profit = None, limit_price
    request = OrderRequest(
        client_order_id=client_order_id,
        symbol=symbol.strip().upper(),
        side=parse_request_word(Side, payload, "side"),
        type=parse_request_word(OrderType, payload, "type"),
        time_in_force=parse_request_word(TimeInForce, payload, "time_in_force"),
        qty=parse_request_decimal(payload, "qty"),
        notional=parse_request_decimal(payload, "notional"),
        limit_price=limit_price,
        stop_price=parse_request_decimal(payload, "stop_price"),
        trail_price=parse_request_decimal(payload, "trail_price"),
        trail_percent=parse_request_decimal(payload, "trail_percent"),
        extended_hours=bool(extended_hours),
        order_class=order_class,
        take_profit=take_profit,
        stop_loss=_parse_stop_loss(payload),
        commission=_parse_commission(payload),
    )
    _check_request(request)
    _check_exits(request)
    return request


def parse_replacement(payload: object) -> Replacement:
    """Read the body of PATCH /v2/orders/{id}, decoded by `parse_json`; null means "leave as it is".

    Raises:
        RequestError: with the venue's status, code and message for what cannot be read.
    """
    if not isinstance(payload, Mapping):
        raise RequestError(400, CODE_MALFORMED, "request body format is invalid")
    amounts = {name: parse_request_decimal(payload, name) for name in ("qty", "limit_price", "stop_price", "trail")}
    for name, value in amounts.items():
        if value is not None and value <= 0:
            raise RequestError(422, CODE_VALIDATION, f"{name} must be > 0")
    given = payload.get("time_in_force") not in (None, "")
    return Replacement(
        time_in_force=parse_request_word(TimeInForce, payload, "time_in_force") if given else None,
        client_order_id=_parse_client_order_id(payload),
        **amounts,
    )


def _parse_commission(payload: Mapping[str, Any]) -> Decimal | None:
    """Return what the Broker API's orders have beside those of the trading API."""
    currency = payload.get("currency")
    if currency not in (None, "", "USD"):
        raise RequestError(422, CODE_REQUEST, f"currency {str(currency)[:10]} is not supported: expected USD")
    commission = parse_request_decimal(payload, "commission")
    if commission is not None and commission < 0:
        raise RequestError(422, CODE_VALIDATION, "commission must be >= 0")
    return commission


def _parse_client_order_id(payload: Mapping[str, Any]) -> str:
    client_order_id = payload.get("client_order_id")
    if client_order_id is None:
        return ""
    if not isinstance(client_order_id, str) or len(client_order_id) > CLIENT_ORDER_ID_LIMIT:
        message = f"client_order_id must be a text of no more than {CLIENT_ORDER_ID_LIMIT} characters"
        raise RequestError(422, CODE_REQUEST, message)
    return client_order_id


def _parse_order_class(payload: Mapping[str, Any]) -> OrderClass:
    word = payload.get("order_class")
    if word in (None, ""):
        return OrderClass.SIMPLE
    try:
        return OrderClass(word)
    except ValueError:
        raise RequestError(422, CODE_VALIDATION, f"order class {word!s:.20} is not supported") from None


def _parse_take_profit(payload: Mapping[str, Any]) -> Decimal | None:
    given = _parse_exit(payload, "take_profit")
    if given is None:
        return None
    price = parse_request_decimal(given, "limit_price")
    if price is None:
        raise RequestError(422, CODE_REQUEST, "take_profit.limit_price is required")
    return price


def _parse_stop_loss(payload: Mapping[str, Any]) -> StopLoss | None:
    given = _parse_exit(payload, "stop_loss")
    if given is None:
        return None
    price = parse_request_decimal(given, "stop_price")
    if price is None:
        raise RequestError(422, CODE_REQUEST, "stop_loss.stop_price is required")
    return StopLoss(price, parse_request_decimal(given, "limit_price"))


def _parse_exit(payload: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    given = payload.get(name)
    if given is not None and not isinstance(given, Mapping):
        raise RequestError(422, CODE_REQUEST, f"invalid {name}")
    return given


def _check_request(request: OrderRequest) -> None:
    if (request.qty is None) == (request.notional is None):
        missing = request.qty is None
        message = "qty or notional is required" if missing else "only one of qty or notional is accepted"
        raise RequestError(422, CODE_REQUEST if missing else CODE_VALIDATION, message)
    for name in ("qty", "notional", "limit_price", "stop_price", "trail_price", "trail_percent"):
        value = getattr(request, name)
        if value is not None and value <= 0:
            raise RequestError(422, CODE_VALIDATION, f"{name} must be > 0")
    takes_limit = request.type in (OrderType.LIMIT, OrderType.STOP_LIMIT) and request.order_class is not OrderClass.OCO
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
    trails = sum(value is not None for value in (request.trail_price, request.trail_percent))
    if trails != (request.type is OrderType.TRAILING_STOP):
        message = "trailing_stop orders require either trail_price or trail_percent"
        if request.type is not OrderType.TRAILING_STOP:
            message = f"{request.type.value} orders require no trail_price or trail_percent"
        raise RequestError(422, CODE_VALIDATION if trails else CODE_REQUEST, message)
    if not is_symbol(request.symbol) and not _ASSET_ID.fullmatch(request.symbol):
        raise RequestError(422, CODE_VALIDATION, "invalid symbol")


def _check_exits(request: OrderRequest) -> None:
    kind = request.order_class
    profit, loss = request.take_profit, request.stop_loss
    for name, value in (
        ("take_profit.limit_price", profit),
        ("stop_loss.stop_price", None if loss is None else loss.stop_price),
        ("stop_loss.limit_price", None if loss is None else loss.limit_price),
    ):
        if value is not None and value <= 0:
            raise RequestError(422, CODE_VALIDATION, f"{name} must be > 0")
    if kind is OrderClass.SIMPLE and (profit is not None or loss is not None):
        raise RequestError(422, CODE_VALIDATION, "simple orders require no take_profit or stop_loss")
    if kind is OrderClass.OTO and (profit is None) == (loss is None):
        raise RequestError(422, CODE_VALIDATION, "oto orders require either take_profit or stop_loss")
    if kind in (OrderClass.BRACKET, OrderClass.OCO):
        if profit is None:
            raise RequestError(422, CODE_VALIDATION, f"{kind.value} orders require take_profit.limit_price")
        if loss is None:
            raise RequestError(422, CODE_VALIDATION, f"{kind.value} orders require stop_loss.stop_price")
    if kind is OrderClass.OCO and request.type is not OrderType.LIMIT:
        raise RequestError(422, CODE_VALIDATION, "oco orders must be limit orders")
