"""The trades that a contract's bar is taken to be made of: at its open, its extremes and its close. SYNTHETIC. Pure.

They give the bar back to whoever makes one of them: same prices, same volume.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dry_work.clock import SECOND_NS

Floats = NDArray[np.float64]

_BEFORE_END_NS = SECOND_NS // 1000  # the last trade
_PLACES = 4  # open, one extreme, the other, close


def split_bars(
    starts: NDArray[np.int64], columns: Mapping[str, Any], length_ns: int
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Return times, prices and sizes of the trades of bars that begin at `starts`, by rising time.

    A price that is no news is left out. Sizes are whole contracts where the volume is enough for that.
    """
    opens, highs, lows, closes, volume = (
        np.asarray(columns[name], dtype=np.float64) for name in ("open", "high", "low", "close", "volume")
    )
    rises = closes >= opens
    has_low, has_high = lows < np.minimum(opens, closes), highs > np.maximum(opens, closes)
    has_first, has_second = np.where(rises, has_low, has_high), np.where(rises, has_high, has_low)
    has_open = (opens != closes) | has_low | has_high
    kept = np.stack([has_open, has_first, has_second, np.ones(len(starts), dtype=bool)], axis=1)
    prices = np.stack([opens, np.where(rises, lows, highs), np.where(rises, highs, lows), closes], axis=1)
    others = kept.sum(axis=1) - 1
    is_enough = (volume == np.floor(volume)) & (volume > others)
    unit = np.where(is_enough, 1.0, volume / _PLACES)
    sizes = np.stack([unit, unit, unit, volume - unit * others], axis=1)
    offsets = np.array([length_ns // _PLACES * place for place in range(_PLACES)], dtype=np.int64)
    offsets[-1] = length_ns - min(_BEFORE_END_NS, length_ns // _PLACES)
    times = starts[:, None] + offsets[None, :]
    return times[kept], prices[kept], sizes[kept]
