"""Bars a second from Parquet file to result, and peak memory, of an SMA cross in several engines.

Stock Backtrader and the lean engine must end with the same account, to the last digit, or there are no figures. The
others are no drop-in replacements; how they differ stands in docs/design/backtest.md. They are found in this Python
or in that of $BENCHMARK_PEERS_PYTHON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import backtest_engines
from benchmarks.table import Row, median

_SIZES = ((1, 1_000_000), (10, 100_000), (100, 10_000))
_TINY_SIZES = ((1, 2_000), (3, 500))
_LIMIT_S = 3600.0
_SEED = 20240102

# What stands beside the speed of each peer. Fills may come at other bars than Backtrader's.
PEERS = {
    "backtesting": "backtesting.py, symbol after symbol, an account each",
    "nautilus": "nautilus_trader, its own venue model",
    "back-trader-cpp": "back-trader-cpp 0.38.0, not equal to Backtrader",
}


def write_bars(folder: Path, symbols: int, bars: int) -> list[Path]:
    """Write random walks of minute bars with 4 decimals, one Parquet file for each symbol."""
    paths = []
    stamps = pd.date_range("2020-01-02", periods=bars, freq="min", tz="UTC")
    for number in range(symbols):
        rng = np.random.default_rng((_SEED, number))
        close = np.round(100 * np.exp(np.cumsum(rng.normal(0, 0.0005, bars))), 4)
        opened = np.round(np.concatenate(((100.0,), close[:-1])) * (1 + rng.normal(0, 0.0001, bars)), 4)
        spread = np.round(np.abs(rng.normal(0, 0.0003, bars)) * close, 4)
        frame = pd.DataFrame(
            {
                "symbol": f"S{number:03d}",
                "timestamp": stamps,
                "open": opened,
                "high": np.round(np.maximum(opened, close) + spread, 4),
                "low": np.round(np.minimum(opened, close) - spread, 4),
                "close": close,
                "volume": rng.integers(1, 10_000, bars).astype(np.float64),
            }
        )
        paths.append(folder / f"S{number:03d}.parquet")
        frame.to_parquet(paths[-1], index=False)
    return paths


def run_engine(engine: str, paths: list[Path]) -> dict[str, Any] | None:
    """Run one engine in a process of its own; None when it is not installed."""
    pythons = [sys.executable]
    if engine in PEERS and os.environ.get("BENCHMARK_PEERS_PYTHON"):
        pythons.append(os.environ["BENCHMARK_PEERS_PYTHON"])
    for python in pythons:
        done = subprocess.run(  # noqa: S603
            [python, "-W", "ignore", backtest_engines.__file__, engine, *map(str, paths)],
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(backtest_engines.__file__).parents[1])},
        )
        if done.returncode == backtest_engines.NOT_INSTALLED:
            continue
        if done.returncode:
            raise RuntimeError(f"{engine} ended with {done.returncode}: {done.stderr[-2000:]}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result
    return None


def measure(*, tiny: bool) -> list[Row]:
    """Return bars a second and peak megabytes of the lean engine, beside stock Backtrader and its peers."""
    rows: list[Row] = []
    for symbols, bars in _TINY_SIZES if tiny else _SIZES:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_bars(Path(folder), symbols, bars)
            rows.extend(_compare(paths, symbols * bars, f"{symbols} × {bars:,} bars", rounds=1 if tiny else 3))
    return rows


def _compare(paths: list[Path], bars: int, size: str, *, rounds: int) -> list[Row]:
    lean_runs = [run_engine("lean", paths) for _ in range(rounds)]
    stock = run_engine("stock", paths)
    lean = lean_runs[0]
    assert lean is not None
    assert stock is not None
    if (lean["value"], lean["fills"]) != (stock["value"], stock["fills"]):
        raise RuntimeError(f"{size}: the lean engine ends with {lean}, stock Backtrader with {stock}")
    rate = bars / median([run["seconds"] for run in lean_runs if run])
    stock_rate = bars / stock["seconds"]
    peak = median([run["peak_mb"] for run in lean_runs if run])
    speed, memory = f"backtest: {size}", f"backtest: {size}: peak memory"
    rows = [
        Row(
            what=speed,
            ours=rate,
            unit="bars/s",
            higher_is_better=True,
            other=stock_rate,
            other_name="stock Backtrader, same result",
            bar="≥ 5×",
        ),
        Row(what=memory, ours=peak, unit="MB", other=stock["peak_mb"], other_name="stock Backtrader", bar="≥ 1×"),
    ]
    for engine, name in PEERS.items():
        peer = run_engine(engine, paths)
        if peer is None:
            rows.append(Row(what=speed, ours=rate, unit="bars/s", other_name=f"{name}: not installed"))
            continue
        shown = f"{name}; {peer['fills']:,} fills for {stock['fills']:,}"
        other = bars / peer["seconds"]
        rows.append(Row(what=speed, ours=rate, unit="bars/s", higher_is_better=True, other=other, other_name=shown))
        rows.append(Row(what=memory, ours=peak, unit="MB", other=peer["peak_mb"], other_name=engine))
    return rows
