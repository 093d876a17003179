"""A parameter sweep: every set is run over the same data, ranked by what it did before the split, judged after it."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from dry_work import __version__
from dry_work.backtest.grid import ParamSet
from dry_work.backtest.run import BacktestSettings, cut_recording
from dry_work.backtest.sweep_data import SharedRecording
from dry_work.backtest.sweep_store import Identity, SweepStore
from dry_work.backtest.sweep_task import METRICS, SweepJob, SweepRow
from dry_work.engine.agents import Agent
from dry_work.errors import ConfigError
from dry_work.feeds.recorded import Recording
from dry_work.wire.pubsub import encode_time

_UNDEFINED = {  # why a metric may not be
    "sharpe": "it needs two days that differ",
    "sortino": "it needs two days, one of them with a loss",
    "calmar": "it needs a drawdown",
    "return": "",
    "drawdown": "",
}


class Executor(Protocol):
    """Something that runs parameter sets."""

    notes: list[str]

    def describe(self) -> str: ...
    def run(self, sets: Sequence[ParamSet], tick: Callable[[], None]) -> Iterator[SweepRow]: ...
    def request_stop(self) -> None: ...
    def close(self) -> None: ...


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter set and what came of it."""

    params: Mapping[str, Any]
    row: SweepRow


class SweepResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep found."""

    agent: str
    swept: tuple[str, ...]  # names of the parameters that have several values
    outcomes: tuple[Outcome, ...]  # best first; those that failed or did not trade in sample last
    asked: int  # how many sets the sweep has
    metric: str  # what they are ranked by
    split_ns: int | None
    slices: tuple[int, int]  # in sample and out of sample
    rank_correlation: float | None  # of the metric in and out of sample, -1 to 1
    out_rank: int | None  # of the best set, by the metric out of sample; 1 is best
    compared: int  # sets with a metric in and out of sample
    fingerprint: str
    seconds: float
    notes: tuple[str, ...]

    @property
    def best(self) -> Outcome | None:
        """The set that is best in sample; None when none traded there."""
        first = self.outcomes[0] if self.outcomes else None
        return first if first is not None and is_ranked(first.row, self.metric) else None

    @property
    def failed(self) -> int:
        """How many sets ended with an error."""
        return sum(bool(outcome.row.error) for outcome in self.outcomes)


class Sweep:
    """A sweep that is ready to run.

    Args:
        settings: of the backtests; its parameters are left to the sets.
        recording: the bars.
        agent: the strategy.
        sets: to be run.
        swept: names of the parameters that have several values.
        split: part of the slices that choose, above 0 and below 1; None: all do.

    Raises:
        ConfigError: nothing is left to trade on before or after the split.
    """

    def __init__(
        self,
        settings: BacktestSettings,
        recording: Recording,
        agent: Agent,
        sets: Sequence[ParamSet],
        *,
        swept: Sequence[str],
        split: float | None,
    ) -> None:
        period, begin_ns = cut_recording(settings, recording)
        ends = period.slice_ends()
        ends = ends[ends > begin_ns]
        self.split_ns, self.slices = _find_split(ends, split)
        self.sets = list(sets)
        self.swept = tuple(swept)
        self.agent = agent
        self.fingerprint = recording.fingerprint
        self.period = period
        settings = msgspec.structs.replace(settings, params={})
        self.job = SweepJob(
            settings=settings, agent=agent.spec, source_digest=agent.source_digest, split_ns=self.split_ns
        )
        self.identity = identify(settings, agent, recording.fingerprint, self.split_ns)

    def run(
        self,
        store: SweepStore,
        executor: Executor,
        *,
        show: Callable[[SweepRow | None], None] = lambda row: None,
    ) -> None:
        """Run the sets whose rows are not in `store` and add theirs.

        Args:
            store: where rows are kept.
            executor: runs the sets.
            show: is called with each new row, and a few times a second with None.
        """
        for row in executor.run(self.missing(store), lambda: show(None)):
            store.add(row)
            show(row)
        store.sync()

    def missing(self, store: SweepStore) -> list[ParamSet]:
        """Return the sets to be run: those without a row, and those whose worker died."""
        return [one for one in self.sets if (row := store.rows.get(one.key)) is None or row.died]

    def collect(
        self, store: SweepStore, *, metric: str | None, seconds: float, notes: Sequence[str] = ()
    ) -> SweepResult:
        """Return what the sweep found so far, ranked by `metric`; None: what the data allow."""
        found = [
            Outcome(params=one.values, row=row) for one in self.sets if (row := store.rows.get(one.key)) is not None
        ]
        metric, metric_notes = _choose_metric(found, metric)
        found.sort(key=lambda outcome: _rank_key(outcome.row, metric), reverse=True)
        pairs = _compare(found, metric)
        correlation = rank_correlation(pairs[:, 0], pairs[:, 1]) if len(pairs) > 2 else None
        out_rank = None
        if found and is_ranked(found[0].row, metric) and found[0].row.outside is not None:
            own = found[0].row.outside.score(metric)
            out_rank = None if own is None else 1 + int(np.count_nonzero(pairs[:, 1] > own))
        return SweepResult(
            agent=self.agent.spec,
            swept=self.swept,
            outcomes=tuple(found),
            asked=len(self.sets),
            metric=metric,
            split_ns=self.split_ns,
            slices=self.slices,
            rank_correlation=correlation,
            out_rank=out_rank,
            compared=len(pairs),
            fingerprint=self.fingerprint,
            seconds=seconds,
            notes=(*notes, *metric_notes, *_describe_outcomes(found, metric)),
        )


def identify(settings: BacktestSettings, agent: Agent, fingerprint: str, split_ns: int | None) -> Identity:
    """Return whose results a sweep's rows are."""
    words = msgspec.to_builtins(settings)
    for name in ("agent", "params", "data"):  # told by the digests of the agent and the data, and by the rows
        del words[name]
    words["split"] = "none" if split_ns is None else encode_time(split_ns)
    digest = hashlib.sha256(agent.source_digest.encode())
    for path in list_files(agent)[1:]:
        digest.update(path.read_bytes())
    where = agent.spec.partition(":")[0]
    return Identity(
        agent=f"{Path(where).name}:{agent.strategy.__qualname__}",
        source_digest=digest.hexdigest(),
        fingerprint=fingerprint,
        settings={name: _describe_value(value) for name, value in words.items()},
        version=__version__,
    )


def list_files(agent: Agent) -> list[Path]:
    """Return the strategy's file and those in its folder that it has imported."""
    own = getattr(sys.modules.get(agent.strategy.__module__), "__file__", None)
    if own is None:
        return []
    folder = Path(own).resolve().parent
    where = agent.spec.partition(":")[0]
    if not (where.endswith(".py") or "/" in where):
        return [Path(own).resolve()]  # of a package: its version is not ours to know
    found = {Path(own).resolve(): None}
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if (
            not file
            or not str(file).endswith(".py")
            or name.partition(".")[0] in ("dry_work", "__main__", "__mp_main__")
        ):
            continue
        path = Path(file).resolve()
        if path.is_relative_to(folder) and "site-packages" not in path.parts and path.is_file():
            found[path] = None
    return list(found)


def _describe_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_describe_value(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_describe_value(part["text"] if isinstance(part, Mapping) else part) for part in value)
    return str(value)


def _find_split(ends: Any, split: float | None) -> tuple[int | None, tuple[int, int]]:
    count = len(ends)
    if split is None:
        return None, (count, 0)
    inside = int(split * count + 1e-9)
    if not 0 < inside < count:
        side = "before" if not inside else "after"
        raise ConfigError(
            f"--split {split:g}: of {count:,} slices none is left {side} the split; use more data or none"
        )
    return int(ends[inside - 1]), (inside, count - inside)


def parse_split(text: str) -> float | None:
    """Return the part of the slices that choose, None for none.

    Raises:
        ConfigError: when it is neither none nor a number between 0 and 1.
    """
    if text.strip().lower() in ("none", "off", "0"):
        return None
    try:
        split = float(text)
    except ValueError:
        split = 0.0
    if not 0 < split < 1:
        raise ConfigError(f"--split {text!r}: expected a part above 0 and below 1, such as 0.7, or none")
    return split


def is_ranked(row: SweepRow, metric: str) -> bool:
    """Tell whether a set can be chosen: it traded in sample, and has the metric there."""
    figures = row.chosen_by
    return figures is not None and figures.fills > 0 and figures.score(metric) is not None


def _rank_key(row: SweepRow, metric: str) -> tuple[int, float]:
    figures = row.chosen_by
    if figures is None:
        return 0, 0.0
    score = figures.score(metric)
    return (2, score) if is_ranked(row, metric) and score is not None else (1, figures.total_return)


def _choose_metric(found: Sequence[Outcome], metric: str | None) -> tuple[str, list[str]]:
    """Return what to rank by, and why when it is not what was asked for, or does not tell of later data.

    Without a metric it is the Sharpe ratio, or the return where too few days are in a part of the data for a ratio.
    """
    asked = METRICS[0] if metric is None else metric
    if asked not in METRICS:
        raise ConfigError(f"--metric {asked!r}: expected one of {', '.join(METRICS)}")
    traded = [row for each in found if (row := each.row).chosen_by is not None and row.chosen_by.fills]
    if not traded:
        return asked, []
    why = _UNDEFINED[asked]
    if not any(row.chosen_by is not None and row.chosen_by.score(asked) is not None for row in traded):
        where = "in sample" if traded[0].inside is not None else "here"
        return "return", [f"{asked} is not defined for any set {where} ({why}): ranked by return"]
    later = [row.outside for row in traded if row.outside is not None]
    if later and not any(figures.score(asked) is not None for figures in later):
        if metric is None:
            return "return", [f"{asked} is not defined for any set out of sample ({why}): ranked by return"]
        return asked, [f"{asked} is not defined for any set out of sample ({why}): --metric return can be compared"]
    return asked, []


def _compare(found: Sequence[Outcome], metric: str) -> Any:
    pairs = []
    for outcome in found:
        row = outcome.row
        if row.inside is not None and row.outside is not None and is_ranked(row, metric):
            inside, outside = row.inside.score(metric), row.outside.score(metric)
            if inside is not None and outside is not None:
                pairs.append((inside, outside))
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def rank_correlation(first: Any, second: Any) -> float | None:
    """Return Spearman's rank correlation; ties share their mean rank. None when one side is all the same."""
    ranks = np.array([_mean_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second)])
    if np.any(ranks.std(axis=1) == 0):
        return None
    return float(np.corrcoef(ranks)[0, 1])


def _mean_ranks(values: Any) -> Any:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    lasts = np.cumsum(counts)
    return ((lasts - counts + 1 + lasts) / 2)[which]


def _describe_outcomes(found: Sequence[Outcome], metric: str) -> list[str]:
    notes = []
    failed = [outcome for outcome in found if outcome.row.error]
    if failed:
        first = failed[0]
        shown = ", ".join(f"{name}={value}" for name, value in first.params.items())
        few = "set" if len(failed) == 1 else "sets"
        notes.append(f"{len(failed):,} {few} failed; the first ({shown}): {first.row.error}")
    idle = sum((figures := each.row.chosen_by) is not None and not figures.fills for each in found)
    if idle:
        notes.append(f"{idle:,} {'set' if idle == 1 else 'sets'} did not trade in sample: ranked last")
    without = sum(
        (figures := each.row.chosen_by) is not None and figures.fills > 0 and figures.score(metric) is None
        for each in found
    )
    if without:
        notes.append(
            f"{without:,} {'set has' if without == 1 else 'sets have'} no {metric} in sample: ranked after those"
        )
    return notes


@contextlib.contextmanager
def open_sweep_data(sweep: Sweep) -> Iterator[SharedRecording]:
    """Yield the sweep's bars in a form that workers share, and let go of them at the end."""
    shared = SharedRecording(sweep.period, fingerprint=sweep.fingerprint)
    try:
        yield shared
    finally:
        shared.close()


class Stopwatch:
    """Tells how long is left, from the sets done since it was started."""

    def __init__(self, asked: int, done: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._asked = asked
        self._before = done
        self._clock = clock
        self._begun_s = clock()

    @property
    def seconds(self) -> float:
        return self._clock() - self._begun_s

    def left_s(self, done: int) -> float | None:
        """Return the seconds that are left, None before the first set is done."""
        new = done - self._before
        return self.seconds / new * (self._asked - done) if new > 0 else None
