"""One parameter set of a sweep: run it, and measure it before and after the split.

Both parts belong to one run over all the data. Up to the split it is what a run that ends there would be, since a
strategy sees no later bar; after it the indicators are warm and what is held stays held, as when it had been traded on.
"""

from __future__ import annotations

import gc
import math
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from dry_work.backtest.run import BacktestSettings, run_backtest
from dry_work.backtest.trades import build_trades
from dry_work.clock import DAY_NS
from dry_work.engine.agents import Agent, check_params, load_agent
from dry_work.engine.result import TRADING_DAYS_A_YEAR, EquityCurve, RunResult, daily_returns, measure_equity
from dry_work.errors import ConfigError, DryWorkError, StrategyError
from dry_work.feeds.recorded import Recording
from dry_work.wire.pubsub import parse_time

METRICS = ("sharpe", "sortino", "calmar", "return", "drawdown")

_YEAR_NS = 365.25 * DAY_NS
_MOST_ERROR_TEXT = 500


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a parameter set gave in one part of the data. A ratio that is not defined is None."""

    total_return: float  # fraction
    sharpe: float | None  # of daily returns, a year
    sortino: float | None  # of daily returns, a year
    calmar: float | None  # return a year over the drawdown
    max_drawdown: float  # fraction
    trades: int  # round trips that ended in it
    fills: int
    final_value: float

    def score(self, metric: str) -> float | None:
        """Return what is ranked by `metric`: higher is better."""
        match metric:
            case "return":
                return self.total_return
            case "drawdown":
                return -self.max_drawdown
            case "sharpe":
                return self.sharpe
            case "sortino":
                return self.sortino
        return self.calmar


class SweepRow(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one parameter set."""

    key: str  # `ParamSet.key`
    seconds: float
    whole: Figures | None = None
    inside: Figures | None = None  # up to the split; None without one
    outside: Figures | None = None  # after it
    error: str = ""
    died: bool = False  # its worker did; it is tried again when the sweep is

    @property
    def chosen_by(self) -> Figures | None:
        """The figures that may be looked at when a set is chosen."""
        return self.inside or self.whole


class SweepJob(msgspec.Struct, frozen=True, kw_only=True):
    """What all parameter sets of a sweep have in common."""

    settings: BacktestSettings
    agent: str
    source_digest: str
    split_ns: int | None = None  # end of the last slice in sample


class Evaluator:
    """Runs parameter sets in this process, one after the other.

    Args:
        job: what they have in common.
        recording: the bars.

    Raises:
        ConfigError: the strategy cannot be loaded, or is another one here.
    """

    def __init__(self, job: SweepJob, recording: Recording) -> None:
        self._job = job
        self._recording = recording
        self._agent = load_agent(job.agent)
        if self._agent.source_digest != job.source_digest:
            raise ConfigError(f"--agent {job.agent}: its file is not the one that the sweep was started with")

    def evaluate(self, key: str, texts: Mapping[str, str]) -> SweepRow:
        """Run one set. Whatever goes wrong is in the row.

        Args:
            key: of the set.
            texts: the parameters, as the command line has them.
        """
        begun = time.perf_counter()
        try:
            agent = msgspec.structs.replace(self._agent, params=check_params(self._agent.strategy, texts))
            row = measure_run(key, run_backtest(self._job.settings, self._recording, agent), self._job.split_ns)
        except BaseException as error:
            row = SweepRow(key=key, seconds=0.0, error=describe_failure(error, self._agent))
        # Backtrader's objects hold each other: without this the memory of many runs is held at a time.
        gc.collect()
        return msgspec.structs.replace(row, seconds=time.perf_counter() - begun)


def measure_run(key: str, result: RunResult, split_ns: int | None) -> SweepRow:
    """Return the figures of a run, of all of it and on both sides of the split."""
    curve = result.curve
    if curve is None or not len(curve):
        raise ConfigError("the run has no slice in its period")
    exits = np.array([trade.exit_ns for trade in build_trades(result.fills) if trade.exit_ns is not None], np.int64)
    fills = np.array([parse_time(str(fill["time"])) for fill in result.fills], np.int64)
    start = result.equity.start

    def measure(value: float, begin: int, end: int) -> Figures:
        part = EquityCurve(end_ns=curve.end_ns[begin:end], value=curve.value[begin:end])
        first_ns = int(curve.end_ns[begin - 1]) if begin else int(curve.end_ns[0]) - 1
        last_ns = int(curve.end_ns[end - 1]) if end < len(curve) else np.iinfo(np.int64).max
        return _measure_part(
            value,
            part,
            trades=int(np.count_nonzero((exits > first_ns) & (exits <= last_ns))),
            fills=int(np.count_nonzero((fills > first_ns) & (fills <= last_ns))),
        )

    whole = measure(start, 0, len(curve))
    if split_ns is None:
        return SweepRow(key=key, seconds=0.0, whole=whole)
    middle = int(np.searchsorted(curve.end_ns, split_ns, side="right"))
    inside = measure(start, 0, middle) if middle else None
    outside = measure(float(curve.value[middle - 1]), middle, len(curve)) if 0 < middle < len(curve) else None
    if inside is None or outside is None:
        side = "before" if inside is None else "after"
        raise ConfigError(f"the run has no slice {side} the split, since its warm-up or its period leaves none")
    return SweepRow(key=key, seconds=0.0, whole=whole, inside=inside, outside=outside)


def _measure_part(start: float, curve: EquityCurve, *, trades: int, fills: int) -> Figures:
    if not np.isfinite(curve.value).all():
        raise ConfigError("the account's value is no number in the end: a price or a size of the strategy is none")
    equity = measure_equity(start, curve)
    returns = daily_returns(start, curve)
    sortino = None
    if len(returns) >= 2:
        downside = math.sqrt(float(np.mean(np.minimum(returns, 0.0) ** 2)))
        if downside > 0:
            sortino = float(np.mean(returns)) / downside * math.sqrt(TRADING_DAYS_A_YEAR)
    return Figures(
        total_return=equity.total_return,
        sharpe=equity.sharpe,
        sortino=sortino,
        calmar=_measure_calmar(equity.total_return, equity.max_drawdown, int(curve.end_ns[-1] - curve.end_ns[0])),
        max_drawdown=equity.max_drawdown,
        trades=trades,
        fills=fills,
        final_value=equity.end,
    )


def _measure_calmar(total_return: float, max_drawdown: float, length_ns: int) -> float | None:
    if max_drawdown <= 0 or length_ns <= 0 or total_return <= -1:
        return None
    try:
        yearly = (1 + total_return) ** (_YEAR_NS / length_ns) - 1
    except OverflowError:
        return None
    ratio = yearly / max_drawdown
    return ratio if math.isfinite(ratio) else None


def describe_failure(error: BaseException, agent: Agent) -> str:
    """Return what went wrong in one line, with the line of the strategy's file where there is one."""
    cause = error.__cause__ if isinstance(error, StrategyError) and error.__cause__ is not None else error
    if isinstance(cause, DryWorkError):
        return str(cause)[:_MOST_ERROR_TEXT]
    text = f"{type(cause).__name__}: {cause}".strip().splitlines()[0].rstrip(": ")
    own = getattr(sys.modules.get(agent.strategy.__module__), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(cause.__traceback__) if frame.filename == own]
    where = f" ({Path(own).name}, line {lines[-1]})" if own and lines else ""
    return text[:_MOST_ERROR_TEXT] + where
