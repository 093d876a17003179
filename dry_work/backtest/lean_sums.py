"""Sums over sliding windows, each equal to `math.fsum` of its window to the last digit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CHUNK = 1 << 16  # windows that are summed at a time: temporaries stay small and in the cache
_MANTISSA = 53


def sliding_sums(values: Floats, period: int) -> Floats | None:
    """Return the correctly rounded sum of every `period` successive values; None when it cannot be had this way.

    Every value is a whole multiple of the smallest bit that any of them has. In this unit it is cut into two halves
    so short that `period` of them add up exactly, in int64 and as floats; adding the two sums rounds once, as
    `math.fsum` does. Values that are not finite, that spread over more than the two halves hold, or that are next to
    the ends of the floats' range are refused.
    """
    count = len(values) - period + 1
    largest = max(abs(float(values.max())), abs(float(values.min())))
    if not math.isfinite(largest):  # NaN is passed on by max and min
        return None
    if largest == 0.0:
        return None if np.signbit(values).any() else np.zeros(count)
    bits = _MANTISSA - period.bit_length()
    top = math.frexp(largest)[1]
    if top > 900 or top - 2 * bits < -900 or bits < _MANTISSA // 2:
        return None
    high_unit = math.ldexp(1.0, top - bits)
    low_unit = math.ldexp(1.0, top - 2 * bits)
    high = np.trunc(values * (1.0 / high_unit))
    low = (values - high * high_unit) * (1.0 / low_unit)
    if not np.array_equal(low, np.rint(low)):
        return None
    sums = _window_sums(high, period).astype(np.float64)
    sums *= high_unit
    lower = _window_sums(low, period).astype(np.float64)
    lower *= low_unit
    sums += lower
    if np.signbit(values[values == 0.0]).any():
        return None  # what fsum makes of negative zeros differs between versions of Python
    return sums


def _window_sums(parts: Floats, period: int) -> NDArray[Any]:
    # A cumulative sum may wrap around; the difference of two is right all the same.
    total = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum(parts.astype(np.int64), out=total[1:])
    difference: NDArray[Any] = total[period:] - total[:-period]
    return difference
