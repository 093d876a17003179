"""Run the benchmarks and print one table."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import platform
import sys
from collections.abc import Sequence

import structlog

from benchmarks.table import Row, format_table

NAMES = ("latency", "idle", "pubsub", "startup", "slices", "backtest", "sweep", "memory", "flight", "hub")


def run(names: Sequence[str], *, tiny: bool) -> list[Row]:
    """Run benchmarks by name, one after the other."""
    rows: list[Row] = []
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        rows.extend(importlib.import_module(f"benchmarks.{name}").measure(tiny=tiny))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; default: all")
    parser.add_argument("--tiny", action="store_true", help="a few seconds: does it run, not how fast")
    given = parser.parse_args(arguments)
    for name in given.names:
        if name not in NAMES:
            parser.error(f"there is no benchmark {name!r}; there are {', '.join(NAMES)}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    rows = run(given.names or NAMES, tiny=given.tiny)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {load}\n")
    print(format_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
