"""Sessions of a trader that was killed at random moments, each replayed up to its kill.

A moment is a length of the log: it is there whenever the machine is quick or slow, and none is before the session.
`python -m tests.faults.replay_matrix [--kills 50]` prints a line for each; its exit code is 1 when one is not the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dry_work.cli.replay import quiet_log
from dry_work.engine.replay import ReplayResult, recorded_agent, replay_session
from dry_work.errors import DataFileError, DryWorkError
from dry_work.recording.flight_log import FlightReader
from dry_work.recording.log import find_sessions
from tests.faults.kill_run import LIFE_S, MARKETS, TRADER, Stage, write_market
from tests.faults.programs import Program

FIRST_BYTES = 9_000  # what a session begins with: what the run is, and the orders journal
# Disconnects, events that come twice or not at all, answers that are lost.
FAULTS: tuple[Mapping[str, Any], ...] = (
    {"on": "trades", "kind": "reset", "rate": 0.05, "times": 2},
    {"on": "events", "kind": "duplicate", "rate": 0.5, "times": None},
    {
        "on": "http",
        "kind": "status",
        "status": 504,
        "when": "after",
        "method": "POST",
        "path": "/v2/orders",
        "times": 1,
    },
    {"on": "http", "kind": "drop", "when": "after", "method": "PATCH", "path": "/v2/orders", "times": 1},
)
_LOOK_S = 0.002


@dataclass(frozen=True)
class Verdict:
    """What came of one session."""

    folder: Path
    is_cut: bool  # its process was killed
    wrong: str  # why the replay is not the same, empty when it is
    decisions: int
    turns: int


@dataclass
class Flown:
    """What became of one trader."""

    folder: Path
    kills: int = 0  # that struck
    struck: int = 0  # how often the faults did
    bytes: int = 0  # of its last session
    failure: str = ""


def fly(
    folder: Path,
    marks: list[int],
    *,
    recording: Path,
    pubsub: str,
    market: str,
    faults: Sequence[Mapping[str, Any]] = (),
) -> Flown:
    """Run the trader to the end of its script; each of its lives ends when its log is longer than the next mark."""
    flown = Flown(folder)
    stage = Stage(folder, recording=recording, pubsub=pubsub, market=market)
    try:
        stage.start()
        _set_faults(stage, faults)
        args = ["run", "--symbols", "symbols.txt", "--agent", f"{TRADER}:Trader", "--warmup", "0", "--plain"]
        for number in range(len(marks) + 1):
            known = set(find_sessions(folder / ".dry-work")) if (folder / ".dry-work").exists() else set()
            trader = Program(*args, folder=folder, log=f"trader-{number + 1}.log", env=stage.env)
            try:
                if number < len(marks):
                    flown.kills += _kill_at(trader, folder, known, marks[number])
                code = trader.wait(LIFE_S)
                if number == len(marks) and code != 0:
                    flown.failure = f"exit code {code}:\n{trader.output[-2000:]}"
            finally:
                trader.close()
        flown.bytes = _log_bytes(folder, set())
        flown.struck = sum(fault["struck"] for fault in stage.ask("/dry-work/v1/faults"))
    except Exception as error:
        flown.failure = f"{type(error).__name__}: {error}"
    finally:
        stage.close()
    return flown


def _set_faults(stage: Stage, faults: Sequence[Mapping[str, Any]]) -> None:
    if not faults:
        return
    key = stage.env["ALPACA_API_KEY"]
    body = json.dumps([{"key": key, "seed": seed, **fault} for seed, fault in enumerate(faults)]).encode()
    headers = {
        "APCA-API-KEY-ID": key,
        "APCA-API-SECRET-KEY": stage.env["ALPACA_SECRET_KEY"],
        "Content-Type": "application/json",
    }
    request = urllib.request.Request(f"{stage.url}/dry-work/v1/faults", data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=60.0):
        pass


def _kill_at(trader: Program, folder: Path, known: set[Path], mark: int) -> bool:
    """End the trader when the log of its session is longer than `mark`; False when it has ended before."""
    end_s = time.monotonic() + LIFE_S
    while trader.is_running and time.monotonic() < end_s:
        if _log_bytes(folder, known) > mark:
            trader.kill()
            return True
        time.sleep(_LOOK_S)
    return False


def _log_bytes(folder: Path, known: set[Path]) -> int:
    state = folder / ".dry-work"
    if not state.exists():
        return 0
    fresh = [session for session in find_sessions(state) if session not in known]
    return sum(path.stat().st_size for path in fresh[-1].glob("*.dwlog")) if fresh else 0


def fly_all(
    folder: Path,
    marks: list[list[int]],
    *,
    market: str,
    jobs: int = 1,
    faults: Sequence[Mapping[str, Any]] = (),
) -> list[Flown]:
    """Run a trader for each list of marks; the state directories stay."""
    folder.mkdir(parents=True, exist_ok=True)
    recording = write_market(folder)
    pubsub = Program("pubsub", "--port", "0", folder=folder, log="pubsub.log")
    try:
        address = pubsub.wait_for_line(r"PUBSUB_EMULATOR_HOST=(\S+)")[1]

        def run(numbered: tuple[int, list[int]]) -> Flown:
            number, given = numbered
            place = folder / f"replayed-{market}-{number}"
            return fly(place, given, recording=recording, pubsub=address, market=market, faults=faults)

        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(run, enumerate(marks)))
    finally:
        pubsub.close()


def draw_marks(count: int, most_bytes: int, rng: random.Random) -> list[list[int]]:
    """Return random lengths of a log for `count` traders; some have a second one, for the life behind the first."""
    found = []
    for _ in range(count):
        first = rng.randint(FIRST_BYTES, most_bytes)
        again = [rng.randint(FIRST_BYTES, most_bytes - first)] if rng.random() < 0.5 and first < most_bytes / 2 else []
        found.append([first, *again])
    return found


def replay_all(folder: Path) -> Iterator[Verdict]:
    """Replay every session below `folder`."""
    for session in find_sessions(folder):
        # The strategy writes a file where it runs.
        with quiet_log(), tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
            try:
                reader = FlightReader(session)
            except DataFileError as error:
                # Killed before it had written down what it is: there is nothing to replay.
                yield Verdict(session, True, "" if "there is no flight" in error.reason else str(error), 0, 0)
                continue
            try:
                with recorded_agent(reader.facts) as (agent, _):
                    result = replay_session(reader, agent)
            except DryWorkError as error:
                yield Verdict(session, reader.is_cut, f"{type(error).__name__}: {error}", 0, 0)
                continue
            yield Verdict(session, reader.is_cut, describe(result), result.decisions, result.turns)


def describe(result: ReplayResult) -> str:
    """Return why a replay is not the same, empty when it is."""
    found = result.divergence
    if found is None:
        return ""
    return f"turn {found.turn}, {found.what}: {found.recorded} instead of {found.replayed}; {result.causes}"


def main() -> int:
    """Print a line for each session."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=20131018)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    struck = wrong = 0
    with tempfile.TemporaryDirectory(prefix="replay-matrix-") as name:
        folder = Path(name)
        for market in MARKETS:
            [peace] = fly_all(folder / f"peace-{market}", [[]], market=market)
            kills = turn = 0
            while kills < given.kills / len(MARKETS) and not peace.failure and turn < given.kills:
                turn += 1
                [flown] = fly_all(folder / f"killed-{market}-{turn}", draw_marks(1, peace.bytes, rng), market=market)
                kills += flown.kills
                if flown.failure:
                    print(f"{market} {turn}: not done: {flown.failure}", flush=True)
            print(f"{market}: {kills} kills, a log of {peace.bytes:,} bytes without any; {peace.failure}", flush=True)
            struck += kills
        for verdict in replay_all(folder):
            wrong += bool(verdict.wrong)
            ended = "killed" if verdict.is_cut else "ended"
            state = verdict.wrong or f"the same: {verdict.decisions} decisions, {verdict.turns} turns"
            print(f"{verdict.folder.parents[3].name}/{verdict.folder.name} {ended}: {state}")
    print(f"{struck} kills struck, {wrong} sessions are not the same")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
