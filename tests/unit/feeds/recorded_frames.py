"""Frames of bars for recordings, and files of them."""

from pathlib import Path

import numpy as np
import pandas as pd

from dry_work.clock import MINUTE_NS
from dry_work.feeds.recorded import Recording

START = pd.Timestamp("2024-06-11 13:30", tz="UTC")
START_NS = START.value


def frame(symbol: str = "SPY", minutes=(0, 1, 2), **columns) -> pd.DataFrame:
    """Good bars with prices that rise by one a minute; `columns` replaces or adds whole columns."""
    prices = 100.0 + np.array(minutes, dtype=float)
    values = {
        "symbol": symbol,
        "timestamp": [START + pd.Timedelta(minutes=minute) for minute in minutes],
        "open": prices,
        "high": prices + 0.5,
        "low": prices - 0.5,
        "close": prices + 0.25,
        "volume": 10.0,
    }
    return pd.DataFrame(values | columns)


def write(path: Path, *frames: pd.DataFrame) -> Path:
    table = pd.concat(frames, ignore_index=True)
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, index=False)
    return path


def starts(recording: Recording, symbol: str = "SPY") -> list[int]:
    """Minutes after START at which the bars begin."""
    return [(bar.ts_event_ns - START_NS) // MINUTE_NS for bar in recording.bars(symbol)]
