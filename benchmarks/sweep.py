"""A sweep of an SMA cross: one core against two, the lean engine against Backtrader's own, in one run."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.table import Row, median
from dry_work.backtest.grid import Space, parse_axes
from dry_work.backtest.optimize import Sweep, open_sweep_data
from dry_work.backtest.run import BacktestSettings
from dry_work.backtest.sweep_local import LocalExecutor
from dry_work.backtest.sweep_store import SweepStore
from dry_work.clock import MINUTE_NS
from dry_work.engine.agents import load_agent
from dry_work.feeds.recorded import Recording

AGENT = "agents.sma_cross:SmaCross"
SYMBOL = "SPY"
_SEED = 20240102
_START_NS = 1_577_923_200 * 10**9


def make_recording(bars: int) -> Recording:
    """Return a random walk of minute bars."""
    chance = np.random.default_rng(_SEED)
    close = np.round(100 * np.exp(np.cumsum(chance.normal(0, 0.0005, bars))), 4)
    opened = np.concatenate(((100.0,), close[:-1]))
    columns = {
        "ts_event_ns": _START_NS + np.arange(bars) * MINUTE_NS,
        "open": opened,
        "high": np.maximum(opened, close),
        "low": np.minimum(opened, close),
        "close": close,
        "volume": np.full(bars, 1000.0),
    }
    return Recording({SYMBOL: columns})


def time_sweep(recording: Recording, *, sets: int, jobs: int, engine: str) -> float:
    """Return the seconds from the first worker's start to the last row, everything being made from nothing."""
    agent = load_agent(AGENT)
    given = {"fast_period": f"5:{5 * (sets // 20)}:5", "slow_period": "60:250:10"}
    space = Space(agent.strategy, parse_axes(agent.strategy, given))
    settings = BacktestSettings(symbols=(SYMBOL,), agent=AGENT, params={}, engine=engine)
    swept = [axis.name for axis in space.swept]
    sweep = Sweep(settings, recording, agent, space.list_sets(), swept=swept, split=0.7)
    with tempfile.TemporaryDirectory() as folder, open_sweep_data(sweep) as data:
        store = SweepStore(Path(folder), sweep.identity)
        begun = time.perf_counter()
        executor = LocalExecutor(sweep.job, data, jobs=jobs)
        try:
            sweep.run(store, executor)
        finally:
            executor.close()
            store.close()
        seconds = time.perf_counter() - begun
        failed = [row.error for row in store.rows.values() if row.error]
        if failed or len(store.rows) != len(sweep.sets):
            raise RuntimeError(f"{len(store.rows)} rows of {len(sweep.sets)} sets, {len(failed)} failed: {failed[:1]}")
    return seconds


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a sweep."""

    one_core: float
    two_cores: float


def measure_engine(engine: str, *, bars: int, sets: int, rounds: int) -> Figures:
    """Return the medians of alternating rounds."""
    recording = make_recording(bars)
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for jobs, found in times.items():
            found.append(time_sweep(recording, sets=sets, jobs=jobs, engine=engine))
    return Figures(one_core=median(times[1]), two_cores=median(times[2]))


def measure(*, tiny: bool) -> list[Row]:
    """Return sets a second on two cores beside one, and of the lean engine beside Backtrader's own."""
    bars, sets, rounds, stock_sets = (300, 20, 1, 20) if tiny else (10_000, 200, 3, 40)
    lean = measure_engine("lean", bars=bars, sets=sets, rounds=rounds)
    shown = f"{sets} sets × {bars:,} bars"
    rows = [
        Row(
            what=f"sweep, {shown}: two cores",
            ours=sets / lean.two_cores,
            unit="sets/s",
            higher_is_better=True,
            other=sets / lean.one_core,
            other_name="one core",
            bar="1.8×",
        )
    ]
    stock = time_sweep(make_recording(bars), sets=stock_sets, jobs=2, engine="stock")
    rows.append(
        Row(
            what=f"sweep, {stock_sets} sets × {bars:,} bars on two cores: lean",
            ours=stock_sets / time_sweep(make_recording(bars), sets=stock_sets, jobs=2, engine="lean"),
            unit="sets/s",
            higher_is_better=True,
            other=stock_sets / stock,
            other_name="stock Backtrader",
        )
    )
    return rows
