"""Trading statuses and price bands: Alpaca's items `s` and `l`, and our own form of them on Pub/Sub. Pure.

On Pub/Sub they are JSON objects of the types `status` and `bands`, which a reader that does not know them leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dry_work.errors import CodecError
from dry_work.market.messages import PriceBands, TradingStatus
from dry_work.market.symbols import is_symbol
from dry_work.wire.times import encode_time, parse_item_time

STATUS, BANDS = "status", "bands"  # types on Pub/Sub


def parse_status_item(item: Mapping[str, Any], *, recv_ns: int) -> TradingStatus:
    """Read an item `s`.

    Raises:
        CodecError: symbol, time or code is missing or malformed.
    """
    code = item.get("sc")
    if not isinstance(code, str | int) or isinstance(code, bool) or not str(code):
        raise CodecError("malformed status code")
    return TradingStatus(
        symbol=_require_symbol(item.get("S")),
        ts_event_ns=parse_item_time(item.get("t")),
        code=str(code),
        message=_text(item.get("sm")),
        reason_code=_text(item.get("rc")),
        reason=_text(item.get("rm")),
        tape=_text(item.get("z")),
        ts_recv_ns=recv_ns,
    )


def parse_bands_item(item: Mapping[str, Any], *, recv_ns: int) -> PriceBands:
    """Read an item `l`.

    Raises:
        CodecError: symbol or time is missing or malformed, or a price is none.
    """
    return PriceBands(
        symbol=_require_symbol(item.get("S")),
        ts_event_ns=parse_item_time(item.get("t")),
        upper=_require_price(item.get("u")),
        lower=_require_price(item.get("d")),
        indicator=_text(item.get("i")),
        tape=_text(item.get("z")),
        ts_recv_ns=recv_ns,
    )


def build_status_body(status: TradingStatus | PriceBands) -> dict[str, Any]:
    """Return the JSON object of a status or of bands."""
    fields = msgspec.structs.asdict(status)
    at_ns = fields.pop("ts_event_ns")
    fields.pop("ts_recv_ns")
    kind = STATUS if isinstance(status, TradingStatus) else BANDS
    return {"type": kind, "timestamp": encode_time(at_ns), **fields}


def parse_status_body(body: Mapping[str, Any], *, recv_ns: int) -> TradingStatus | PriceBands:
    """Read such an object.

    Raises:
        CodecError: something in it is missing or malformed.
    """
    kind: type[TradingStatus | PriceBands] = TradingStatus if body.get("type") == STATUS else PriceBands
    at_ns = parse_item_time(body.get("timestamp"))
    symbol = _require_symbol(body.get("symbol"))
    try:
        found = msgspec.convert({**body, "symbol": symbol, "ts_event_ns": at_ns, "ts_recv_ns": recv_ns}, kind)
    except msgspec.ValidationError:
        raise CodecError(f"bad {body.get('type')}") from None
    if isinstance(found, PriceBands):
        _require_price(found.upper)
        _require_price(found.lower)
    return found


def _require_symbol(value: object) -> str:
    if not isinstance(value, str) or not is_symbol(value):
        raise CodecError("malformed symbol")
    return value


def _require_price(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise CodecError("malformed price")
    return float(value)


def _text(value: object) -> str:
    return value[:200] if isinstance(value, str) else ""
