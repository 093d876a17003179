"""The kill matrix: a trader killed with SIGKILL at every I/O boundary and at random moments, started again each time.

`python -m tests.faults.kill_matrix` prints the table; its exit code is 1 when anything was wrong. See
docs/design/faults.md.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tests.faults.kill_run import MARKETS, Ending, Kill, compare, run_trader, write_market
from tests.faults.programs import Program

MOMENT_ATTEMPTS = 5
_SIDES = ("before", "sent", "answered", "after")
_NAME = re.compile(r"(?P<what>.*) (?P<side>before|sent|answered|after) #\d+")


@dataclass(frozen=True)
class Case:
    """One run: what kills the trader in which market."""

    group: str  # boundary, moment or pair
    market: str
    kills: tuple[Kill, ...]

    def __str__(self) -> str:
        return f"{self.market}: {', then '.join(map(str, self.kills))}"


@dataclass(frozen=True)
class Verdict:
    """What came of a case."""

    case: Case
    kills: tuple[str, ...]  # that struck
    wrong: tuple[str, ...]
    folder: Path


class KillMatrix:
    """Runs cases, each in a folder of its own.

    Args:
        folder: for all of them.
        jobs: how many at a time.
    """

    def __init__(self, folder: Path, *, jobs: int = 2) -> None:
        self.folder = folder
        self._jobs = jobs
        self._peace: dict[str, Ending] = {}
        self._made = 0

    def __enter__(self) -> KillMatrix:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._recording = write_market(self.folder)
        self._pubsub = Program("pubsub", "--port", "0", folder=self.folder, log="pubsub.log")
        self._address = self._pubsub.wait_for_line(r"PUBSUB_EMULATOR_HOST=(\S+)")[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._pubsub.close()

    def peace(self, market: str) -> Ending:
        """Return what a run without kills leaves behind.

        Raises:
            AssertionError: it is not as it should be in itself.
        """
        if market not in self._peace:
            ending = self._run(self.folder / f"peace-{market}", (), market)
            wrong = compare(ending, ending, exact=True)
            if wrong:
                raise AssertionError("\n".join(["the run without kills is wrong:", *wrong]))
            self._peace[market] = ending
        return self._peace[market]

    def judge(self, cases: Sequence[Case], *, note: Callable[[Verdict], None] = lambda _verdict: None) -> list[Verdict]:
        """Run all cases; return what came of them, in their order."""
        for market in dict.fromkeys(case.market for case in cases):
            self.peace(market)
        with ThreadPoolExecutor(self._jobs) as pool:
            return list(pool.map(lambda numbered: self._judge(*numbered, note), enumerate(cases, 1)))

    def _judge(self, number: int, case: Case, note: Callable[[Verdict], None]) -> Verdict:
        folder = self.folder / f"run-{number:04}"
        ending = self._run(folder, case.kills, case.market)
        for attempt in range(1, MOMENT_ATTEMPTS):
            if ending.kills or ending.failure or case.group != "moment":
                break
            # The run was over before its moment: a run in peace is longer when the machine is busy.
            shutil.rmtree(folder, ignore_errors=True)
            case = replace(case, kills=tuple(Kill(after_s=(kill.after_s or 0.0) / 2) for kill in case.kills))
            folder = self.folder / f"run-{number:04}-{attempt}"
            ending = self._run(folder, case.kills, case.market)
        # In lock-step nothing passes while the trader is away, so that nothing may be told in one.
        wrong = compare(ending, self.peace(case.market), exact=case.market == "lockstep")
        verdict = Verdict(case, tuple(ending.kills), tuple(wrong), folder)
        if not wrong:
            shutil.rmtree(folder, ignore_errors=True)
        note(verdict)
        return verdict

    def _run(self, folder: Path, kills: Iterable[Kill], market: str) -> Ending:
        return run_trader(folder, list(kills), recording=self._recording, pubsub=self._address, market=market)


def boundary_cases(peace: Ending, market: str, pattern: str = "") -> list[Case]:
    """Return a case for each boundary of the run in peace whose name matches."""
    return [Case("boundary", market, (Kill(boundary=name),)) for name in peace.boundaries if re.search(pattern, name)]


def moment_cases(peace: Ending, market: str, count: int, rng: random.Random) -> list[Case]:
    """Return cases with one to three kills at random moments of a run as long as that in peace."""
    cases = []
    for _ in range(count):
        kills = [Kill(after_s=rng.uniform(0.0, peace.seconds))]
        while len(kills) < 3 and rng.random() < 0.4:
            kills.append(Kill(after_s=rng.uniform(0.0, peace.seconds)))
        cases.append(Case("moment", market, tuple(kills)))
    return cases


def pair_cases(peace: Ending, market: str, count: int, rng: random.Random) -> list[Case]:
    """Return cases with kills at two random boundaries, the second in the life after the first."""
    names = peace.boundaries
    return [
        Case("pair", market, (Kill(boundary=rng.choice(names)), Kill(boundary=rng.choice(names)))) for _ in range(count)
    ]


def print_table(verdicts: Sequence[Verdict]) -> None:
    """Print how many runs there were and how many were wrong: by boundary, then the others."""
    cells: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0, 0]))
    for verdict in verdicts:
        case = verdict.case
        what, side = f"{case.group}s, {case.market}", "after"
        if case.group == "boundary":
            match = _NAME.fullmatch(case.kills[0].boundary)
            assert match is not None
            what, side = f"{case.market}: {match['what']}", match["side"]
        cell = cells[what][side]
        cell[0] += 1
        cell[1] += bool(verdict.wrong)
        cell[2] += bool(verdict.kills)
    width = max(map(len, cells))
    rows = [what for what in cells if ": " in what]
    if rows:
        print(f"{'killed at':{width}}  " + "".join(f"{side:>11}" for side in _SIDES))
    for what in sorted(rows):
        print(f"{what:{width}}  " + "".join(f"{_cell(cells[what].get(side)):>11}" for side in _SIDES))
    for what in [what for what in cells if ": " not in what]:
        runs, wrong, _ = cells[what]["after"]
        print(f"{what:{width}}  {runs:>11} runs, {wrong} wrong")


def _cell(counts: list[int] | None) -> str:
    if counts is None:
        return "-"
    runs, wrong, _ = counts
    return f"{wrong}/{runs} wrong" if wrong else str(runs)


def print_failures(verdicts: Sequence[Verdict], most: int) -> None:
    """Print what was wrong, kinds first, then each run."""
    failed = [verdict for verdict in verdicts if verdict.wrong]
    kinds = Counter(kind for verdict in failed for kind in {_kind(line) for line in verdict.wrong})
    for kind, count in kinds.most_common():
        print(f"{count:6} runs: {kind}")
    for verdict in failed[:most]:
        print(f"\n{verdict.case}  ({verdict.folder})")
        for line in verdict.wrong:
            print(f"    {line}")
    if len(failed) > most:
        print(f"\nand {len(failed) - most} more: --details {len(failed)} prints them all")


def _kind(line: str) -> str:
    return re.sub(r"\d+ times instead of \d+", "too often", line.partition(": ")[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the matrix; return 1 when anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kill_matrix", description=__doc__)
    parser.add_argument("--moments", type=int, default=200, help="runs killed at random moments")
    parser.add_argument("--pairs", type=int, default=50, help="runs killed at a random boundary, twice")
    parser.add_argument("--boundaries", default="all", help="all, none, or a pattern of their names")
    parser.add_argument("--market", choices=[*MARKETS, "both"], default="both", help="does it wait for the trader?")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--details", type=int, default=20, help="how many failures are told in full")
    parser.add_argument("--keep", type=Path, help="folder for the runs; those that were right are removed")
    options = parser.parse_args(arguments)
    begun_s = time.monotonic()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="kill-matrix-"))
    markets = list(MARKETS) if options.market == "both" else [options.market]
    rng = random.Random(options.seed)
    with KillMatrix(folder, jobs=options.jobs) as matrix:
        cases: list[Case] = []
        for number, market in enumerate(markets):
            peace = matrix.peace(market)
            pattern = "" if options.boundaries == "all" else options.boundaries
            if options.boundaries != "none":
                cases += boundary_cases(peace, market, pattern)
            cases += moment_cases(peace, market, _share(options.moments, number, len(markets)), rng)
            cases += pair_cases(peace, market, _share(options.pairs, number, len(markets)), rng)
        done: list[Verdict] = []

        def note(verdict: Verdict) -> None:
            done.append(verdict)
            if len(done) % 50 == 0:
                wrong = sum(bool(verdict.wrong) for verdict in done)
                print(f"{len(done)} of {len(cases)} runs, {wrong} wrong", file=sys.stderr, flush=True)

        verdicts = matrix.judge(cases, note=note)
    print_table(verdicts)
    failed = sum(bool(verdict.wrong) for verdict in verdicts)
    kills = sum(len(verdict.kills) for verdict in verdicts)
    seconds = time.monotonic() - begun_s
    print(f"\n{len(verdicts)} runs, {kills} kills, {failed} wrong, seed {options.seed}, {seconds:.0f} s")
    spared = sum(not verdict.kills for verdict in verdicts)
    if spared:
        print(f"{spared} runs were not killed: what they were to be killed at did not come")
    print_failures(verdicts, options.details)
    if not failed and options.keep is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


def _share(total: int, number: int, parts: int) -> int:
    return total // parts + (number < total % parts)


if __name__ == "__main__":
    sys.exit(main())
