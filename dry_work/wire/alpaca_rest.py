"""Trade events, accounts, positions and errors in Alpaca's JSON, in both directions; orders as `alpaca_orders`. Pure.

`encode_*` makes what a venue sends, `parse_*` reads it. JSON stands as decoded mappings here; `parse_json` decodes
without losing a digit of a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from dry_work.errors import CodecError
from dry_work.market.symbols import is_crypto
from dry_work.orders.client_ids import CLIENT_ORDER_ID_LIMIT
from dry_work.orders.model import (
    AccountSnapshot,
    Execution,
    Replacement,
    TradeEvent,
    VenuePosition,
)
from dry_work.wire.alpaca_fields import (
    CODE_FORBIDDEN,
    CODE_INTERNAL,
    CODE_MALFORMED,
    CODE_NOT_FOUND,
    CODE_RATE_LIMIT,
    CODE_REQUEST,
    CODE_UNAUTHORIZED,
    CODE_VALIDATION,
    RequestError,
    asset_class,
    asset_id,
    encode_decimal,
    parse_decimal,
    parse_json,
    parse_optional_time,
    parse_venue_symbol,
    require_decimal,
    require_object,
    require_text,
)
from dry_work.wire.alpaca_orders import (
    build_order_request,
    encode_order,
    parse_order,
    parse_order_request,
    parse_replacement,
)
from dry_work.wire.pubsub import encode_time

__all__ = [
    "CLIENT_ORDER_ID_LIMIT",
    "CODE_FORBIDDEN",
    "CODE_INTERNAL",
    "CODE_MALFORMED",
    "CODE_NOT_FOUND",
    "CODE_RATE_LIMIT",
    "CODE_REQUEST",
    "CODE_UNAUTHORIZED",
    "CODE_VALIDATION",
    "Replacement",
    "RequestError",
    "asset_class",
    "asset_id",
    "build_order_request",
    "encode_account",
    "encode_decimal",
    "encode_error",
    "encode_order",
    "encode_position",
    "encode_trade_event",
    "lacks_subscription",
    "parse_account",
    "parse_decimal",
    "parse_error",
    "parse_execution",
    "parse_json",
    "parse_order",
    "parse_order_request",
    "parse_position",
    "parse_replacement",
    "parse_trade_event",
    "parse_venue_symbol",
]

# Trade events


def encode_trade_event(event: TradeEvent) -> dict[str, Any]:
    """Return the `data` of a trade_updates message."""
    time = encode_time(event.ts_event_ns)
    body: dict[str, Any] = {"event": event.event, "timestamp": time, "event_id": event.event_id, "at": time}
    for word, text in (
        ("execution_id", event.execution_id),
        ("previous_execution_id", event.previous_execution_id),
    ):
        if text:
            body[word] = text
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
    payload = require_object(payload, "a trade event")
    code = payload.get("code")
    if code is not None and (isinstance(code, bool) or not isinstance(code, int)):
        raise CodecError(f"code {code!r:.40} is no integer")
    event_ns = parse_optional_time(payload, "timestamp")
    return TradeEvent(
        event=require_text(payload, "event"),
        event_id=str(payload.get("event_id") or ""),
        ts_event_ns=event_ns if event_ns is not None else parse_optional_time(payload, "at") or 0,
        order=parse_order(payload.get("order") or {}),
        execution_id=str(payload.get("execution_id") or ""),
        price=parse_decimal(payload.get("price")),
        qty=parse_decimal(payload.get("qty")),
        position_qty=parse_decimal(payload.get("position_qty")),
        previous_execution_id=str(payload.get("previous_execution_id") or ""),
        code=code,
        message=str(payload.get("reject_reason") or ""),
    )


def parse_execution(payload: Mapping[str, Any]) -> Execution:
    """Read a FILL of the account's activities.

    Raises:
        CodecError: when id, order, quantity, price or time is missing or malformed.
    """
    payload = require_object(payload, "an execution")
    event_ns = parse_optional_time(payload, "transaction_time")
    if event_ns is None:
        raise CodecError("an execution has no transaction_time")
    name = require_text(payload, "id")
    return Execution(
        execution_id=name.rpartition("::")[2] or name,
        order_id=require_text(payload, "order_id"),
        qty=require_decimal(payload, "qty"),
        price=require_decimal(payload, "price"),
        ts_event_ns=event_ns,
        filled_qty=parse_decimal(payload.get("cum_qty")),
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
    payload = require_object(payload, "an account")
    return AccountSnapshot(
        id=require_text(payload, "id"),
        account_number=str(payload.get("account_number") or ""),
        cash=require_decimal(payload, "cash"),
        equity=require_decimal(payload, "equity"),
        buying_power=require_decimal(payload, "buying_power"),
        status=str(payload.get("status") or "ACTIVE"),
        trading_blocked=bool(payload.get("trading_blocked")),
    )


def encode_position(
    position: VenuePosition,
    *,
    current_price: Decimal,
    qty_available: Decimal | None = None,
    contract_size: Decimal = Decimal(1),
) -> dict[str, Any]:
    """Return a position as Alpaca answers it: a crypto pair without its slash, a short one with negative quantity."""
    crypto = is_crypto(position.symbol)
    cost = position.qty * position.avg_entry_price * contract_size
    value = position.qty * current_price * contract_size
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
    payload = require_object(payload, "a position")
    qty = require_decimal(payload, "qty")
    return VenuePosition(
        symbol=parse_venue_symbol(require_text(payload, "symbol"), str(payload.get("asset_class") or "")),
        qty=-abs(qty) if payload.get("side") == "short" else qty,
        avg_entry_price=require_decimal(payload, "avg_entry_price"),
    )


# Errors


def encode_error(code: int, message: str, context: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Return the body of a refusal."""
    return {"code": code, "message": message, **(context or {})}


def parse_error(body: bytes | str) -> tuple[int | None, str]:
    """Return code and message of a refusal's body; whatever is no such body is the message itself, shortened.

    Of a page of a gateway between, such as "503 Service Temporarily Unavailable", the words are the message.
    """
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    if text.lstrip().startswith("<"):
        return None, " ".join(re.sub(r"<[^>]*>", " ", text).split())[:200]
    try:
        payload = parse_json(text)
    except CodecError:
        return None, text.strip()[:200]
    if not isinstance(payload, Mapping) or not isinstance(payload.get("message"), str):
        return None, text.strip()[:200]
    code = payload.get("code")
    return (code if isinstance(code, int) and not isinstance(code, bool) else None), payload["message"]


def lacks_subscription(status: int | None, message: str) -> bool:
    """Tell whether market data were refused for want of a subscription; wrong credentials have status 403 too."""
    words = message.lower()
    return status == 403 and ("subscription" in words or "opra agreement" in words)
