"""Times in texts: ISO 8601 in, RFC 3339 out; and in items of Alpaca's streams. Pure."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

import msgpack

from dry_work.clock import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS
from dry_work.errors import CodecError

_TIME = re.compile(
    r"(\d{4})-?(\d\d)-?(\d\d)"
    r"(?:[Tt ](\d\d):?(\d\d)(?::?(\d\d)(?:[.,](\d{1,32}))?)?\s?(?:([Zz])|([+-])(\d\d)(?::?(\d\d))?)?)?",
    re.ASCII,
)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
TIME_LIMIT_NS = 2**63


def parse_time(text: str) -> int:
    """Return an ISO 8601 time as nanoseconds since 1970; a time without zone is UTC, a date alone is its midnight.

    Digits beyond the nanosecond are cut.

    Raises:
        ValueError: when it is no such time, or outside 1970 to 2262.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:40]!r} is no ISO 8601 time")
    year, month, day, hour, minute, second, fraction, _, sign, zone_hour, zone_minute = match.groups()
    h, m, s = int(hour or 0), int(minute or 0), int(second or 0)
    zh, zm = int(zone_hour or 0), int(zone_minute or 0)
    if h > 23 or m > 59 or s > 59 or zh > 23 or zm > 59:
        raise ValueError(f"{text[:40]!r} is no ISO 8601 time")
    days = date(int(year), int(month), int(day)).toordinal() - _EPOCH_DAY
    nanos = int((fraction or "0")[:9].ljust(9, "0"))
    zone_ns = (zh * HOUR_NS + zm * MINUTE_NS) * (-1 if sign == "-" else 1)
    time_ns = days * DAY_NS + h * HOUR_NS + m * MINUTE_NS + s * SECOND_NS + nanos - zone_ns
    if not 0 <= time_ns < TIME_LIMIT_NS:
        raise ValueError(f"{text[:40]!r} is outside 1970 to 2262")
    return time_ns


def parse_item_time(value: object) -> int:
    """Return the time of an item of Alpaca's streams, a text in JSON and a timestamp in MessagePack, as nanoseconds.

    Raises:
        CodecError: it is neither, or outside 1970 to 2262.
    """
    if isinstance(value, msgpack.Timestamp):
        time_ns = int(value.to_unix_nano())
        if 0 <= time_ns < TIME_LIMIT_NS:
            return time_ns
    elif isinstance(value, str):
        try:
            return parse_time(value)
        except ValueError:
            pass
    raise CodecError("malformed time")


def encode_time(time_ns: int) -> str:
    """Return the time as RFC 3339 UTC with 0, 3, 6 or 9 digits of a second, as few as hold it."""
    seconds, nanos = divmod(time_ns, SECOND_NS)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    if nanos == 0:
        return f"{text}Z"
    digits = f"{nanos:09d}"
    while digits.endswith("000"):
        digits = digits[:-3]
    return f"{text}.{digits}Z"
