"""Orders in, trade updates and positions out, as `tradesvc.v0`. Pure.

The package has enums of its own: its numbers are nobody else's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from dry_work.errors import CodecError
from dry_work.orders.client_ids import CLIENT_ORDER_ID_LIMIT
from dry_work.proto.tradesvc.v0 import DecodeError
from dry_work.proto.tradesvc.v0 import tradesvc_pb2 as pb
from dry_work.wire.alpaca_fields import parse_venue_symbol
from dry_work.wire.protobuf_fields import encode_text, enum_number, set_time

_NOT_IN_TOKEN = frozenset(".*> ")
_DECIMAL = re.compile(r"\d{1,30}(\.\d{0,18})?|\.\d{1,18}", re.ASCII)
_DEPTH = 3  # of legs in legs
_AMOUNTS = ("qty", "notional", "limit_price", "stop_price", "trail_price", "trail_percent")
_NEEDED = {
    pb.ORDER_TYPE_LIMIT: ("limit_price",),
    pb.ORDER_TYPE_STOP: ("stop_price",),
    pb.ORDER_TYPE_STOP_LIMIT: ("limit_price", "stop_price"),
}
_ORDER_TEXTS = (
    "id", "client_order_id", "replaced_by", "replaces", "asset_id", "symbol", "status", "notional", "qty", "filled_qty",
    "filled_avg_price", "limit_price", "stop_price", "trail_price", "trail_percent", "hwm",
)  # fmt: skip
_ORDER_TIMES = (
    "created_at", "updated_at", "submitted_at", "filled_at", "expired_at", "canceled_at", "failed_at", "replaced_at",
)  # fmt: skip
_POSITION_TEXTS = (
    "asset_id", "exchange", "qty", "qty_available", "avg_entry_price", "side", "market_value", "cost_basis",
    "unrealized_pl", "unrealized_plpc", "unrealized_intraday_pl", "unrealized_intraday_plpc", "current_price",
    "lastday_price", "change_today",
)  # fmt: skip

_SIDES: Mapping[str, int] = dict(pb.Side.items())
_TYPES: Mapping[str, int] = dict(pb.OrderType.items())
_CLASSES: Mapping[str, int] = dict(pb.OrderClass.items())
_TIMES: Mapping[str, int] = dict(pb.TimeInForce.items())
_INTENTS: Mapping[str, int] = dict(pb.PositionIntent.items())
_ASSETS: Mapping[str, int] = dict(pb.AssetClass.items())


def check_client_order_id(token: str) -> None:
    """Check a client order id that came as the last token of a subject.

    Raises:
        CodecError: it is too long, or has what no token may have.
    """
    if not token or not token.isprintable() or not _NOT_IN_TOKEN.isdisjoint(token):
        raise CodecError(
            f"the client order id {token[:40]!r} is no token: it may have no '.', '*', '>' and no white space"
        )
    if len(token) > CLIENT_ORDER_ID_LIMIT:
        raise CodecError(
            f"the client order id has {len(token)} characters: at most {CLIENT_ORDER_ID_LIMIT} are allowed"
        )


def decode_trade(data: bytes, *, client_order_id: str) -> dict[str, Any]:
    """Return a `Trade` as the body of Alpaca's POST /v2/orders.

    Raises:
        CodecError: with what is missing or wrong, for its sender.
    """
    check_client_order_id(client_order_id)
    try:
        trade = pb.Trade.FromString(data)
    except DecodeError:
        raise CodecError("the payload is no tradesvc.v0.Trade", data=data) from None
    body: dict[str, Any] = {"symbol": trade.symbol.strip().upper()}
    if not body["symbol"]:
        raise CodecError("symbol is missing")
    body["side"] = _word(_SIDES, "SIDE", trade.side, "side")
    body["type"] = _word(_TYPES, "ORDER_TYPE", trade.order_type, "order_type")
    body["time_in_force"] = _word(_TIMES, "TIME_IN_FORCE", trade.tif, "tif")
    if getattr(trade, "class"):
        body["order_class"] = _word(_CLASSES, "ORDER_CLASS", getattr(trade, "class"), "class")
    if trade.position_intent:
        body["position_intent"] = _word(_INTENTS, "POSITION_INTENT", trade.position_intent, "position_intent")
    for name in _AMOUNTS:
        if text := _amount(getattr(trade, name), name):
            body[name] = text
    if trade.HasField("take_profit") and (text := _amount(trade.take_profit.limit_price, "take_profit.limit_price")):
        body["take_profit"] = {"limit_price": text}
    if trade.HasField("stop_loss"):
        stop, limit = _amount(trade.stop_loss.stop, "stop_loss.stop"), _amount(trade.stop_loss.limit, "stop_loss.limit")
        if limit and not stop:
            raise CodecError("stop_loss.stop is missing")
        if stop:
            body["stop_loss"] = {"stop_price": stop, **({"limit_price": limit} if limit else {})}
    _check(trade, body)
    if trade.extended_hours:
        body["extended_hours"] = True
    body["client_order_id"] = client_order_id
    return body


def _check(trade: pb.Trade, body: Mapping[str, Any]) -> None:
    if ("qty" in body) == ("notional" in body):
        raise CodecError("qty and notional are both given" if "qty" in body else "qty or notional is missing")
    is_oco = body.get("order_class") == "oco"  # its first exit is the order itself
    for name in _NEEDED.get(trade.order_type, ()):
        if name not in body and not (is_oco and name == "limit_price" and "take_profit" in body):
            raise CodecError(f"{name} is missing: an order of the type {body['type']} needs it")
    if trade.order_type == pb.ORDER_TYPE_TRAILING_STOP and ("trail_price" in body) == ("trail_percent" in body):
        raise CodecError("an order of the type trailing_stop needs trail_price or trail_percent, and not both")


def _word(numbers: Mapping[str, int], prefix: str, number: int, field: str) -> str:
    if not number:
        raise CodecError(f"{field} is missing")
    for name, value in numbers.items():
        if value == number:
            return name.removeprefix(f"{prefix}_").lower()
    allowed = ", ".join(f"{value} {name}" for name, value in numbers.items() if value)
    raise CodecError(f"{field} {number} is unknown: expected one of {allowed}")


def _amount(text: str, field: str) -> str:
    """Return a decimal above 0 as it was written; empty when it is not given."""
    text = text.strip()
    if not text:
        return ""
    if not _DECIMAL.fullmatch(text) or not Decimal(text):
        raise CodecError(f"{field} {text[:40]!r} is not usable: expected a decimal number above 0")
    return text


def is_same_order(body: Mapping[str, Any], order: Mapping[str, Any]) -> bool:
    """Tell whether an order of the venue is what `body`, made by `decode_trade`, asks for."""

    def word(name: str) -> str:
        return str(order.get(name) or "").lower()

    def flat(symbol: object) -> str:
        return str(symbol or "").upper().replace("/", "")

    if flat(body["symbol"]) != flat(order.get("symbol")):
        return False
    if (body["side"], body["time_in_force"]) != (word("side"), word("time_in_force")):
        return False
    if body["type"] not in (word("type"), word("order_type")):
        return False
    if body.get("order_class", "simple") != (word("order_class") or "simple"):
        return False
    if bool(body.get("extended_hours")) != bool(order.get("extended_hours")):
        return False
    return all(_is_equal(body[name], order.get(name)) for name in _AMOUNTS if name in body)


def _is_equal(given: str, found: object) -> bool:
    try:
        return found is not None and Decimal(given) == Decimal(str(found))
    except InvalidOperation:
        return False


def encode_trade_update(data: Mapping[str, Any], *, event_id: str) -> bytes:
    """Return an order update of Alpaca's as `TradeUpdate`.

    Args:
        data: as in the stream's `data`.
        event_id: the same for every delivery.
    """
    update = pb.TradeUpdate(
        event=encode_text(data.get("event")),
        event_id=encode_text(event_id),
        execution_id=encode_text(data.get("execution_id")),
        position_qty=encode_text(data.get("position_qty")),
        price=encode_text(data.get("price")),
        qty=encode_text(data.get("qty")),
    )
    set_time(update, "timestamp", data.get("timestamp") or data.get("at"))
    set_time(update, "at", data.get("at") or data.get("timestamp"))
    order = data.get("order")
    if isinstance(order, Mapping):
        _fill_order(update.order, order, _DEPTH)
    return update.SerializeToString()


def _fill_order(message: pb.Order, order: Mapping[str, Any], depth: int) -> None:
    message.SetInParent()
    for name in _ORDER_TEXTS:
        setattr(message, name, encode_text(order.get(name)))
    message.symbol = message.symbol.upper()
    for name in _ORDER_TIMES:
        set_time(message, name, order.get(name))
    message.asset_class = _enum(_ASSETS, "ASSET_CLASS", order.get("asset_class"))
    message.order_class = _enum(_CLASSES, "ORDER_CLASS", order.get("order_class") or "simple")
    message.type = _enum(_TYPES, "ORDER_TYPE", order.get("type") or order.get("order_type"))
    message.side = _enum(_SIDES, "SIDE", order.get("side"))
    message.time_in_force = _enum(_TIMES, "TIME_IN_FORCE", order.get("time_in_force"))
    message.ext_hours = bool(order.get("extended_hours"))
    legs = order.get("legs")
    if isinstance(legs, list | tuple) and depth:
        for leg in legs:
            if isinstance(leg, Mapping):
                _fill_order(message.legs.add(), leg, depth - 1)


def encode_positions(positions: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the positions that Alpaca answers as `Positions`; none are no bytes at all. Crypto: BTC/USD."""
    message = pb.Positions()
    for position in positions:
        found = message.positions.add()
        for name in _POSITION_TEXTS:
            setattr(found, name, encode_text(position.get(name)))
        asset = encode_text(position.get("asset_class"))
        found.symbol = parse_venue_symbol(encode_text(position.get("symbol")).upper(), asset)
        found.asset_class = _enum(_ASSETS, "ASSET_CLASS", asset)
        found.asset_marginable = bool(position.get("asset_marginable"))
    return message.SerializeToString()


def _enum(numbers: Mapping[str, int], prefix: str, value: object) -> Any:
    return enum_number(numbers, prefix, value)
