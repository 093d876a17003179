"""Fields of protocol buffers from values of Alpaca's JSON: text, numbers and times that may be anything. Pure.

What cannot be read is left out: an event is never lost for one of its fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from math import floor, isfinite
from typing import Any

import msgpack

from dry_work.clock import SECOND_NS
from dry_work.wire.pubsub import parse_time

UINT64_LIMIT = 2**64


def encode_text(value: object) -> str:
    """Return a value as text; None is empty."""
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return f"{value:f}"
    text = value if isinstance(value, str) else str(value)
    return text.encode("utf-8", "replace").decode()  # a lone surrogate is no UTF-8, and no field


def encode_double(value: object) -> float:
    """Return a number; what is none is 0."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return 0.0


def encode_count(value: object) -> int:
    """Return a number rounded down to a whole one of 64 bits without sign; what is none is 0."""
    if isinstance(value, int):
        return min(max(int(value), 0), UINT64_LIMIT - 1)
    number = encode_double(value)
    return min(max(floor(number), 0), UINT64_LIMIT - 1) if isfinite(number) else 0


def parse_time_ns(value: object) -> int | None:
    """Return a time, as JSON or MessagePack has it, in nanoseconds since 1970; None when it is none."""
    if isinstance(value, msgpack.Timestamp):
        return int(value.to_unix_nano())
    if not isinstance(value, str):
        return None
    try:
        return parse_time(value)
    except ValueError:
        return None


def set_time(message: Any, name: str, value: object) -> None:
    """Set a field of the type `google.protobuf.Timestamp`, if `value` is a time."""
    time_ns = parse_time_ns(value)
    if time_ns is not None:
        field = getattr(message, name)
        field.seconds, field.nanos = divmod(time_ns, SECOND_NS)
        field.SetInParent()


def enum_number(numbers: Mapping[str, int], prefix: str, value: object) -> int:
    """Return the number of Alpaca's word in an enum, 0 (unspecified) when it has none."""
    return numbers.get(f"{prefix}_{value}".upper(), 0)
