"""The fault matrix: each fault of the exchange alone and in random pairs; the end has to be that of a run without.

`python -m tests.faults.fault_matrix` prints the table; its exit code is 1 when anything was wrong. See
docs/design/faults.md.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from tests.faults.fault_run import SLICES, Ending, Run, compare
from tests.faults.programs import warm_pool

BUSTS = (9, 17, 26)  # slices behind which the last execution is taken back
_ALWAYS: dict[str, Any] = {"times": None}


@dataclass(frozen=True)
class FaultKind:
    """Faults that go by one name.

    Attributes:
        name: in the table.
        faults: set when the broker has started.
        at_start: set before.
        busts: whether executions are taken back, in the run without faults too.
    """

    name: str
    faults: tuple[Mapping[str, Any], ...] = ()
    at_start: tuple[Mapping[str, Any], ...] = ()
    busts: bool = False


def _http(name: str, **fault: Any) -> FaultKind:
    """Return a fault of requests: often of those for orders, seldom of snapshots, which halt the broker in a row."""
    orders = ({"method": method, "path": "/v2/orders", "rate": 0.25} for method in ("POST", "PATCH", "DELETE"))
    others = ({"path": "/v2/orders:by_client_order_id", "rate": 0.25}, {"method": "GET", "path": "/v2/", "rate": 0.03})
    places = ({"on": "http", **_ALWAYS, **place, **fault} for place in (*orders, *others))
    return FaultKind(name, tuple(places))


def _stream(name: str, **fault: Any) -> FaultKind:
    # No more than some: the waits between two connections grow with each, as they should.
    return FaultKind(name, ({"on": "trades", "rate": 0.03, "times": 4, **fault},))


def _events(name: str, **fault: Any) -> FaultKind:
    return FaultKind(name, ({"on": "events", "rate": 0.3, **_ALWAYS, **fault},))


_RESETS: dict[str, Any] = {"on": "trades", "kind": "reset", "rate": 0.03, "times": 3}
KINDS = (
    _http("latency", kind="latency", seconds=0.05, rate=0.5),
    _http("429", kind="status", status=429),
    _http("500 before", kind="status", status=500),
    _http("500 after", kind="status", status=500, when="after"),
    _http("504 before", kind="status", status=504),
    _http("504 after acceptance", kind="status", status=504, when="after"),
    _http("dropped request", kind="drop"),
    _http("dropped answer", kind="drop", when="after"),
    _http("reset before", kind="reset"),
    _http("reset after", kind="reset", when="after"),
    _http("silent before", kind="silent", rate=0.03),
    _http("silent after", kind="silent", when="after", rate=0.03),
    _stream("stream reset", kind="reset"),
    _stream("stream closed", kind="close", code=1001),
    _stream("stream silent", kind="silent", times=2),
    _stream("stream half-open", kind="half_open", times=2),
    _stream("407 slow client", kind="slow"),
    FaultKind("406 at login", (_RESETS, {"on": "trades", "kind": "error", "code": 406, "times": 2})),
    FaultKind(
        "429 at handshake", (_RESETS, {"on": "http", "kind": "status", "status": 429, "path": "/stream", "times": 2})
    ),
    _events("duplicated events", kind="duplicate"),
    _events("reordered events", kind="reorder"),
    _events("dropped events", kind="drop", rate=0.2, times=8),  # each costs a new stream, and the wait before it
    _events("unknown events", kind="unknown"),
    _events("unknown statuses", kind="unknown_status"),
    FaultKind("clock an hour ahead", at_start=({"on": "clock", "kind": "skew", "seconds": 3600.0},)),
    FaultKind("clock an hour behind", at_start=({"on": "clock", "kind": "skew", "seconds": -3600.0},)),
    FaultKind("busts", busts=True),
)


@dataclass(frozen=True)
class Case:
    """One run: which faults, and the seed of its orders and market."""

    kinds: tuple[FaultKind, ...]
    seed: int
    slices: int = SLICES

    def __str__(self) -> str:
        return " + ".join(kind.name for kind in self.kinds) or "none"

    @property
    def has_busts(self) -> bool:
        return any(kind.busts for kind in self.kinds)


@dataclass(frozen=True)
class Verdict:
    """What came of a case."""

    case: Case
    ending: Ending
    wrong: tuple[str, ...]


def run_case(case: Case) -> Ending:
    """Run a case in this process, with a log of its own."""
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    number = itertools.count(case.seed * 1000)
    return Run(
        seed=case.seed,
        faults=[{"seed": next(number), **fault} for kind in case.kinds for fault in kind.faults],
        at_start=[fault for kind in case.kinds for fault in kind.at_start],
        busts=BUSTS if case.has_busts else (),
        slices=case.slices,
    ).run()


def judge(
    cases: Sequence[Case], *, jobs: int = 2, note: Callable[[Verdict], None] = lambda _verdict: None
) -> list[Verdict]:
    """Run all cases, each against the run of the same seed without faults; return what came of them, in their order."""
    calm = [Case((FaultKind("calm", busts=case.has_busts),), case.seed, case.slices) for case in cases]
    verdicts = []
    with warm_pool(jobs) as pool:
        distinct = list(dict.fromkeys(calm))
        peace = dict(zip(distinct, pool.imap(run_case, distinct), strict=True))
        for case, quiet, ending in zip(cases, calm, pool.imap(run_case, cases), strict=True):
            wrong = [f"without faults: {line}" for line in compare(peace[quiet], peace[quiet])]
            wrong += compare(ending, peace[quiet])
            verdicts.append(Verdict(case, ending, tuple(wrong)))
            note(verdicts[-1])
    return verdicts


def build_cases(*, singles: Sequence[FaultKind] = KINDS, pairs: int, seed: int, markets: int = 5) -> list[Case]:
    """Return a case for each fault alone and for random pairs; their markets are some that follow from the seed."""
    rng = random.Random(seed)
    seeds = [rng.randrange(10_000) for _ in range(markets)]
    cases = [Case((kind,), seeds[KINDS.index(kind) % markets]) for kind in singles]
    chosen = [tuple(rng.sample(KINDS, 2)) for _ in range(pairs)]
    return cases + [Case(pair, seeds[number % markets]) for number, pair in enumerate(chosen)]


def print_table(verdicts: Sequence[Verdict], most: int) -> None:
    """Print each run, then what was wrong."""
    width = max(len(str(verdict.case)) for verdict in verdicts)
    print(f"{'faults':{width}}  orders  struck  seconds  end state")
    for verdict in verdicts:
        ending = verdict.ending
        state = "differs" if verdict.wrong else "same"
        print(f"{verdict.case!s:{width}}  {ending.orders:6}  {ending.struck:6}  {ending.seconds:7.1f}  {state}")
    failed = [verdict for verdict in verdicts if verdict.wrong]
    for verdict in failed:
        print(f"\n{verdict.case} (seed {verdict.case.seed}; {verdict.ending.counters})")
        for line in verdict.wrong[:most]:
            print(f"    {line}")
        if len(verdict.wrong) > most:
            print(f"    and {len(verdict.wrong) - most} more: --details {len(verdict.wrong)} prints them all")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the matrix; return 1 when anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fault_matrix", description=__doc__)
    parser.add_argument("--pairs", type=int, default=30, help="runs with two faults")
    parser.add_argument("--only", default="", help="single faults whose name has this in it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--details", type=int, default=8, help="lines that are told of each failure")
    options = parser.parse_args(arguments)
    begun_s = time.monotonic()
    singles = [kind for kind in KINDS if options.only in kind.name]
    cases = build_cases(singles=singles, pairs=options.pairs, seed=options.seed)
    done: list[Verdict] = []

    def note(verdict: Verdict) -> None:
        done.append(verdict)
        if len(done) % 10 == 0:
            print(f"{len(done)} of {len(cases)} runs", file=sys.stderr, flush=True)

    verdicts = judge(cases, jobs=options.jobs, note=note)
    print_table(verdicts, options.details)
    failed = sum(bool(verdict.wrong) for verdict in verdicts)
    orders = sum(verdict.ending.orders for verdict in verdicts)
    struck = sum(verdict.ending.struck for verdict in verdicts)
    seconds = time.monotonic() - begun_s
    print(
        f"\n{len(verdicts)} runs, {orders} orders, {struck} faults struck, {failed} runs end differently, "
        f"seed {options.seed}, {seconds:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
