"""Slices a second of a local run in lock-step, and which thread its time goes to."""

from __future__ import annotations

from benchmarks.local_run import LocalRun, run_local
from benchmarks.table import Row, median

SYMBOLS = ("SPY", "IBM", "BAC", "BTC/USD")
_SHOWN_THREADS = 6


def measure(*, tiny: bool) -> list[Row]:
    """Return slices a second at 1 and 4 symbols, and CPU milliseconds of a slice by thread at 4."""
    rows: list[Row] = []
    stop_after, rounds = (40, 1) if tiny else (0, 3)
    runs: list[LocalRun] = []
    for count in (1, 4):
        runs = [run_local(SYMBOLS[:count], stop_after=stop_after) for _ in range(rounds)]
        noun = "symbol" if count == 1 else "symbols"
        rate = median([run.slices_per_s for run in runs])
        rows.append(Row(what=f"lock-step, {count} {noun}", ours=rate, unit="slices/s", higher_is_better=True))
    middle = sorted(runs, key=lambda run: run.slices_per_s)[len(runs) // 2]
    rows.extend(_thread_rows(middle))
    return rows


def _thread_rows(run: LocalRun) -> list[Row]:
    slices = run.slices_per_s * run.seconds
    spent = dict(run.cpu_by_thread)
    whole = spent.pop("process")
    spent["threads without Python (gRPC)"] = max(0.0, whole - sum(spent.values()))
    busiest = sorted(spent, key=lambda name: -spent[name])[:_SHOWN_THREADS]
    rows = [Row(what="lock-step, 4 symbols: CPU of a slice", ours=1000 * whole / slices, unit="ms")]
    rows.extend(
        Row(what=f"– of which {name}", ours=1000 * spent[name] / slices, unit="ms")
        for name in busiest
        if spent[name] > 0
    )
    return rows
