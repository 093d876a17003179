"""The lengths of Alpaca's historical bars, and where each begins. Pure.

Minutes and hours are counted from midnight; days, weeks (from Monday) and months begin at midnight. It is midnight in
New York for stocks and in UTC for crypto.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
from numpy.typing import NDArray

from dry_work.clock import HOUR_NS, MINUTE_NS, SECOND_NS
from dry_work.market.symbols import is_crypto

Ints = NDArray[np.int64]

NEW_YORK = ZoneInfo("America/New_York")
ALLOWED = "[1-59]Min, [1-23]Hour, 1Day, 1Week or {1,2,3,4,6,12}Month"

_TEXT = re.compile(r"(\d{1,2})(min|t|hour|h|day|d|week|w|month|m)", re.IGNORECASE | re.ASCII)
_UNITS = {"t": "min", "h": "hour", "d": "day", "w": "week", "m": "month"}
_COUNTS = {"min": range(1, 60), "hour": range(1, 24), "day": (1,), "week": (1,), "month": (1, 2, 3, 4, 6, 12)}


class Timeframe(msgspec.Struct, frozen=True):
    """So many minutes, hours, days, weeks or months."""

    count: int
    unit: str  # min, hour, day, week, month


MINUTE = Timeframe(1, "min")
DAY = Timeframe(1, "day")


def parse_timeframe(text: str) -> Timeframe:
    """Read what Alpaca allows: `1Min`, `5T`, `1Hour`, `1Day`, ...

    Raises:
        ValueError: for anything else.
    """
    match = _TEXT.fullmatch(text)
    if match is not None:
        unit = _UNITS.get(match[2].lower(), match[2].lower())
        if int(match[1]) in _COUNTS[unit]:
            return Timeframe(int(match[1]), unit)
    raise ValueError(f"invalid timeframe: {text[:20]}; expected {ALLOWED}")


def find_zone(symbol: str) -> tzinfo:
    """Return the zone whose midnight begins the symbol's day."""
    return UTC if is_crypto(symbol) else NEW_YORK


def find_starts(times: Ints, timeframe: Timeframe, zone: tzinfo) -> Ints:
    """Return for each time (nanoseconds, rising) the start of the bar of `timeframe` that holds it."""
    # Zones change at full hours, so that one look an hour is enough.
    hours, places = np.unique(times // HOUR_NS, return_inverse=True)
    anchors = np.array([_find_anchor(int(hour) * 3600, timeframe, zone) for hour in hours], dtype=np.int64)
    starts: Ints = anchors[places] * SECOND_NS
    if timeframe.unit in ("min", "hour"):
        length_ns = timeframe.count * (MINUTE_NS if timeframe.unit == "min" else HOUR_NS)
        starts = starts + (times - starts) // length_ns * length_ns
    return starts


def _find_anchor(time_s: int, timeframe: Timeframe, zone: tzinfo) -> int:
    """Return the midnight, in seconds since 1970, that bars around `time_s` are counted from."""
    midnight = datetime.fromtimestamp(time_s, zone).replace(hour=0, minute=0, second=0)
    if timeframe.unit == "week":
        midnight -= timedelta(days=midnight.weekday())
    elif timeframe.unit == "month":
        midnight = midnight.replace(day=1, month=(midnight.month - 1) // timeframe.count * timeframe.count + 1)
    return int(midnight.timestamp())
