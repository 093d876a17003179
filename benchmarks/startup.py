"""Seconds from the command to its effect: the first `next` of a local run, and the help text."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.local_run import LIMIT_S, run_local
from benchmarks.table import Row, median

# What a run imports from others. Nothing can start sooner, however it is written.
_LIBRARIES = "import backtrader, alpaca.trading.client, google.pubsub_v1, aiohttp.web, exchange_calendars"


def measure_imports() -> float:
    """Return the seconds of a process that only imports the libraries of a run."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-W", "ignore", "-c", _LIBRARIES], timeout=LIMIT_S, check=True)  # noqa: S603
    return time.monotonic() - begun


def measure_help() -> float:
    """Return the seconds of one `dry-work --help`."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "dry_work", "--help"], capture_output=True, timeout=LIMIT_S, check=True)
    return time.monotonic() - begun


def measure(*, tiny: bool) -> list[Row]:
    """Return medians of several runs."""
    runs = 1 if tiny else 7
    first, imports, shown = [], [], []
    for _ in range(runs):
        first.append(run_local(["SPY", "BTC/USD"], stop_after=1).to_first_next)
        imports.append(measure_imports())
        shown.append(measure_help())
    return [
        Row(
            what="`dry-work run --local` → first `next`",
            ours=median(first),
            other=median(imports),
            other_name="imports of its libraries alone",
            unit="s",
            bar="3 s",
        ),
        Row(what="`dry-work --help`", ours=median(shown), unit="s", bar="0.2 s"),
    ]
