"""Times as Backtrader's `datetime` line holds them. Pure."""

from __future__ import annotations

import datetime as dt

import backtrader as bt

EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - Backtrader's own times are naive UTC
_EPOCH_DAYS = float(EPOCH.toordinal())


def line_time(time_ns: int) -> float:
    """Return a time as Backtrader's `datetime` line holds it: days as a float, UTC, microseconds at most."""
    return float(bt.date2num(EPOCH + dt.timedelta(microseconds=time_ns // 1000)))


def line_time_ns(value: float) -> int:
    """Return what a `datetime` line holds as nanoseconds, to the millisecond: floats of days hold no more."""
    return round((value - _EPOCH_DAYS) * 86_400_000) * 1_000_000
