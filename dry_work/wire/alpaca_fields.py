"""Fields of Alpaca's JSON: numbers, times, words and symbols, in both directions, and the codes of refusals. Pure.

Money and quantities go out as decimal strings without exponent ("10.25") and come in as strings or numbers. What a
venue sent and cannot be read is a `CodecError`, what a client sent a `RequestError`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any, NoReturn, TypeVar
from uuid import UUID, uuid5

from dry_work.errors import CodecError, DryWorkError
from dry_work.market.symbols import is_crypto, is_option
from dry_work.wire.pubsub import encode_time, parse_time

CODE_MALFORMED = 40010000  # HTTP 400: the body is no JSON object
CODE_REQUEST = 40010001  # HTTP 422: a field is missing, malformed or already taken
CODE_UNAUTHORIZED = 40110000  # HTTP 401
CODE_FORBIDDEN = 40310000  # HTTP 403: funds, holdings, permissions
CODE_NOT_FOUND = 40410000  # HTTP 404
CODE_VALIDATION = 42210000  # HTTP 422: the order, or its state, does not allow it
CODE_RATE_LIMIT = 42910000  # HTTP 429
CODE_INTERNAL = 50010000  # HTTP 500

_ASSETS = UUID("5f0b9f7e-6f5b-5d0a-9c0e-6d1c7a3b2e41")
_QUOTE_CURRENCIES = ("USDT", "USDC", "USD", "BTC")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_NUMBER_LENGTH = 256
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
    return "crypto" if is_crypto(symbol) else "us_option" if is_option(symbol) else "us_equity"


def parse_venue_symbol(text: str, asset_class_name: str = "") -> str:
    """Return the canonical symbol of what the venue writes; a crypto pair may come without its slash (BTCUSD)."""
    symbol = text.strip().upper()
    if asset_class_name == "crypto" and "/" not in symbol:
        for currency in _QUOTE_CURRENCIES:
            if symbol.endswith(currency) and len(symbol) > len(currency):
                return f"{symbol.removesuffix(currency)}/{currency}"
    return symbol


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def encode_optional_decimal(value: Decimal | None) -> str | None:
    return None if value is None else encode_decimal(value)


def encode_optional_time(time_ns: int | None) -> str | None:
    return None if time_ns is None else encode_time(time_ns)


def parse_optional_time(payload: Mapping[str, Any], name: str) -> int | None:
    value = payload.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise CodecError(f"{name} {value!r:.40} is no time")
    try:
        return parse_time(value)
    except ValueError as error:
        raise CodecError(f"{name}: {error}") from None


def require_object(payload: object, what: str) -> Mapping[str, Any]:
    if not isinstance(payload, Mapping):
        raise CodecError(f"{payload!r:.40} is not {what}")
    return payload


def require_text(payload: Mapping[str, Any], name: str) -> str:
    value = payload.get(name)
    if not isinstance(value, str) or not value:
        raise CodecError(f"{name} {value!r:.40} is not a text")
    return value


def require_decimal(payload: Mapping[str, Any], name: str) -> Decimal:
    value = parse_decimal(payload.get(name))
    if value is None:
        raise CodecError(f"{name} is missing")
    return value


def parse_word(words: type[_Word], payload: Mapping[str, Any], name: str) -> _Word:
    value: Any = payload.get(name)
    try:
        return words(value)
    except ValueError:
        raise CodecError(f"{name} {value!r:.40} is unknown") from None


def parse_request_word(words: type[_Word], payload: Mapping[str, Any], name: str) -> _Word:
    value = payload.get(name)
    if value is None or value == "":
        raise RequestError(422, CODE_REQUEST, f"{name} is required")
    try:
        return words(value)
    except ValueError:
        raise RequestError(422, CODE_REQUEST, f"invalid {name} {str(value)[:40]}") from None


def parse_request_decimal(payload: Mapping[str, Any], name: str) -> Decimal | None:
    try:
        return parse_decimal(payload.get(name))
    except CodecError:
        raise RequestError(422, CODE_REQUEST, f"invalid {name} {str(payload[name])[:40]}") from None
