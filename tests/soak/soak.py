"""A soak: an agent trades for simulated weeks on the local stack, every part a process, while the parts are disturbed.

    python -m tests.soak.soak --weeks 10 --symbols 100 --bars-a-day 390

Market time is in lock-step: it stands still while anybody is away, so every bar that the exchange produces must be
delivered once. What came while an agent was dead reaches the next one as history, with some bars that the dead one had
had; these are counted apart. Parts are killed in the first half only: in the second one each process lives on, under
all other disturbances, and its memory is measured from the moment on at which its bounded histories are full. Printed
are bars, disturbances and restarts, threads, and the slope of each process' memory with its confidence interval; the
exit code is 1 when a bar is lost or doubled, or threads pile up.

The hub's timers are shortened by its documented settings (`TIMERS`); `test_silence.py` has them as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import random
import signal
import string
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dry_work.hub.bus import DATA_HISTORY
from tests.e2e.processes import Program, Service

DAY_NS = 86_400_000_000_000
MINUTE_NS = 60_000_000_000
FIRST_DAY_NS = 1_704_672_000_000_000_000  # 2024-01-08, a Monday
OPEN_NS = 870 * MINUTE_NS  # 14:30 UTC
KEYS = {"ALPACA_API_KEY": "PKTEST", "ALPACA_SECRET_KEY": "not-a-secret", "GOOGLE_CLOUD_PROJECT": "soak"}
TIMERS = {"STREAM_PROXY_HEARTBEAT_INTERVAL_SECS": "5", "STREAM_PROXY_HEARTBEAT_TIMEOUT_SECS": "15"}  # not 30 and 60
OUTAGE_S = 120.0  # a turn of the market that takes longer fails the soak
_BATCHES = 20
_T_95 = {18: 2.101}  # of Student's distribution, for slopes of `_BATCHES` means
_SHARE = 0.97  # of the minutes have a bar of a symbol

AGENT = '''
import json
import os

import backtrader as bt

from dry_work.feeds.base import line_time_ns


class Soak(bt.Strategy):
    """Writes down every bar that it is given, and trades one symbol after the other."""

    params = (("log", "bars"), ("period", 20))

    def __init__(self):
        self.means = [bt.ind.SMA(data, period=self.p.period) for data in self.datas]
        self.crosses = [bt.ind.CrossOver(data, mean) for data, mean in zip(self.datas, self.means)]
        self.seen = [0] * len(self.datas)
        self.turn = 0
        self.file = open(f"{self.p.log}-{os.getpid()}.jsonl", "a", buffering=1)

    def prenext(self):
        self.next()

    def next(self):
        found = {}
        for number, data in enumerate(self.datas):
            if len(data) != self.seen[number]:
                for ago in range(self.seen[number] - len(data) + 1, 1):
                    found.setdefault(line_time_ns(data.datetime[ago]), []).append(number)
                self.seen[number] = len(data)
        for end_ns, numbers in found.items():
            self.file.write(json.dumps([end_ns, numbers]) + "\\n")
        self.turn += 1
        data = self.datas[self.turn % len(self.datas)]
        if len(data):
            (self.sell if self.getposition(data).size > 0 else self.buy)(data, size=1)
'''


class Sample(msgspec.Struct, frozen=True):
    """One look at a process."""

    slice: int
    rss_kb: int
    threads: int
    names: dict[str, int] = {}  # threads by the name that the system knows; those of Python have the program's


class Slope(msgspec.Struct, frozen=True):
    """Of memory over slices."""

    kb_a_slice: float
    plus_minus: float  # half of the 95 % confidence interval


def name_symbols(count: int) -> list[str]:
    """Return that many symbols."""
    return [
        "".join(letters) for letters in itertools.islice(itertools.product(string.ascii_uppercase, repeat=3), count)
    ]


def write_market(path: Path, symbols: Sequence[str], *, days: int, bars_a_day: int, seed: int) -> dict[int, int]:
    """Write random bars of weekdays to a Parquet file; return how many bars end at each time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    chance = np.random.default_rng(seed)
    starts = np.array(
        [
            FIRST_DAY_NS + (day // 5 * 7 + day % 5) * DAY_NS + OPEN_NS + place * MINUTE_NS
            for day in range(days)
            for place in range(bars_a_day)
        ],
        dtype=np.int64,
    )
    shape = (len(starts), len(symbols))
    there = chance.random(shape) < _SHARE
    there[:, 0] = True  # so that each slice has a bar
    closes = np.round(100.0 * np.exp(np.cumsum(chance.normal(0.0, 0.0008, shape), axis=0)), 2)
    rows, columns = np.nonzero(there)
    close = closes[rows, columns]
    table = {
        "symbol": pa.DictionaryArray.from_arrays(pa.array(columns.astype(np.int32)), pa.array(symbols)).cast(
            pa.string()
        ),
        "timestamp": pa.array(starts[rows], pa.timestamp("ns", tz="UTC")),
        "open": close,
        "high": close + 0.05,
        "low": close - 0.05,
        "close": close,
        "volume": np.full(len(rows), 100.0),
    }
    pq.write_table(pa.table(table), path)
    return {int(start) + MINUTE_NS: int(count) for start, count in zip(starts, there.sum(axis=1), strict=True)}


class Stack:
    """Pub/Sub, exchange, hub and agent as processes in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs: list[Program] = []
        self.restarts: Counter[str] = Counter()
        self.history: list[tuple[int, str]] = []
        self.samples: dict[tuple[str, int], list[Sample]] = {}
        topics = ("--topic", "market-data", "--topic", "crypto-data")
        self.pubsub = Service(
            self._start, "pubsub", "--project", "soak", *topics,
            ready=r"PUBSUB_EMULATOR_HOST=(?P<host>[^:]+:(?P<port>\d+))",
        )  # fmt: skip
        self.exchange = Service(
            self._start, "exchange", "--data", "market.parquet", "--rules", "backtrader", "--speed", "max",
            "--cash", "10000000", "--state-dir", "exchange", ready=r"ALPACA_URL=http://127.0.0.1:(?P<port>\d+)",
        )  # fmt: skip
        self.url = f"http://127.0.0.1:{self.exchange.port}"
        self.env = {
            **KEYS,
            "PUBSUB_EMULATOR_HOST": f"127.0.0.1:{self.pubsub.port}",
            "ALPACA_URL": self.url,
            "ALPACA_DATA_URL": self.url,
            "ALPACA_STREAM_URL": f"ws://127.0.0.1:{self.exchange.port}",
            "AGENT_ID": "soak",
            **TIMERS,
        }
        self.hub = Service(self._start, "hub", "--symbols", "symbols.txt", ready="connected", env=self.env)
        self.services = {"pubsub": self.pubsub, "exchange": self.exchange, "hub": self.hub}
        self.start_agent()

    def _start(self, *args: str, env: dict[str, str] | None = None) -> Program:
        self.programs.append(Program(*args, cwd=self.folder, env=env))
        return self.programs[-1]

    def start_agent(self) -> None:
        """Start the agent, which takes up where the last one ended."""
        self.agent = self._start(
            "run", "--symbols", "symbols.txt", "--agent", "soak.py:Soak", "--state-dir", "agent", "--warmup", "20",
            "--plain", env=self.env,
        )  # fmt: skip

    def restart(self, name: str, away_s: float) -> None:
        """Kill a part, and start it again after a while."""
        self.restarts[name] += 1
        if name == "agent":
            self.agent.send(signal.SIGKILL)
            self.agent.wait()
            time.sleep(away_s)
            self.start_agent()
            return
        self.services[name].kill()
        time.sleep(away_s)
        self.services[name].start()

    def ask(self, path: str, body: Any = None) -> Any:
        """Return the exchange's answer."""
        headers = {"APCA-API-KEY-ID": KEYS["ALPACA_API_KEY"], "APCA-API-SECRET-KEY": KEYS["ALPACA_SECRET_KEY"]}
        data = None if body is None else json.dumps(body).encode()
        for left in reversed(range(6)):  # a fault may strike this very request
            try:
                request = urllib.request.Request(self.url + path, data=data, headers=headers)
                with urllib.request.urlopen(request, timeout=10.0) as answer:
                    return json.loads(answer.read())
            except (OSError, urllib.error.URLError):
                if not left:
                    raise
                time.sleep(0.2)
        raise AssertionError("unreachable")

    def slice(self) -> int:
        """Return the number of the open slice."""
        return int(self.ask("/dry-work/v1/session")["slice"])

    def look(self, number: int) -> None:
        """Take a sample of every process."""
        parts = {**{name: service.program for name, service in self.services.items()}, "agent": self.agent}
        for name, program in parts.items():
            try:
                status = Path(f"/proc/{program.process.pid}/status").read_text()
            except OSError:
                continue
            found = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
            if "VmRSS" in found:
                names = _read_thread_names(program.process.pid)
                sample = Sample(number, int(found["VmRSS"].split()[0]), int(found["Threads"]), names)
                self.samples.setdefault((name, program.process.pid), []).append(sample)

    def close(self) -> None:
        """End all processes."""
        for program in reversed(self.programs):
            program.close()


def _read_thread_names(pid: int) -> dict[str, int]:
    names: Counter[str] = Counter()
    for path in Path(f"/proc/{pid}/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it has just ended
            names[path.read_text().strip()] += 1
    return dict(names)


# Disturbances: what is done, and to whom. Each is over by itself.

KILLS = ("hub", "pubsub", "exchange", "agent")
FAULTS: dict[str, dict[str, Any]] = {
    "data socket closed": {"on": "data", "kind": "close"},
    "data socket reset": {"on": "data", "kind": "reset"},
    "trade socket closed": {"on": "trades", "kind": "close"},
    "trade socket reset": {"on": "trades", "kind": "reset"},
    "trade event redelivered": {"on": "events", "kind": "duplicate", "times": 3},
    "answer lost": {"on": "http", "kind": "drop", "method": "POST", "path": "/v2/orders", "when": "after"},
    "slow answers": {"on": "http", "kind": "latency", "seconds": 0.3, "times": 5},
    "server error": {"on": "http", "kind": "status", "status": 503, "times": 2, "path": "/v2/orders"},
    "clock ahead": {"on": "clock", "kind": "skew", "seconds": 30.0},
    "clock behind": {"on": "clock", "kind": "skew", "seconds": -30.0},
}
SLOW_FAULTS: dict[str, dict[str, Any]] = {  # found by timers
    "data socket silent": {"on": "data", "kind": "half_open"},
    "trade socket silent": {"on": "trades", "kind": "half_open"},
}


def plan(rng: random.Random, slices: int, count: int, *, slow: int) -> list[tuple[int, str]]:
    """Return what is to happen in which slice, in order; the agent is killed at least once."""
    names = [*KILLS, *FAULTS] * math.ceil(count / (len(KILLS) + len(FAULTS)))
    rng.shuffle(names)
    names = names[:count]
    if names and "agent" not in names:
        names[0] = "agent"
    kills = [name for name in names if name in KILLS]
    others = [name for name in names if name not in KILLS] + rng.choices(list(SLOW_FAULTS), k=slow)
    rng.shuffle(others)
    early = rng.sample(range(5, max(6 + len(kills), slices // 2)), len(kills))
    moments = sorted({*range(5, max(6 + len(names) + slow, int(slices * 0.95)))} - {*early})
    return sorted(zip([*early, *rng.sample(moments, len(others))], [*kills, *others], strict=True))


def soak(
    folder: Path,
    *,
    symbols: Sequence[str],
    days: int,
    bars_a_day: int,
    disturbances: int,
    slow: int,
    seed: int,
    tell: Callable[[str], None],
    outage_s: float = OUTAGE_S,
) -> list[str]:
    """Run a soak and tell of it; return what is wrong."""
    expected = write_market(folder / "market.parquet", symbols, days=days, bars_a_day=bars_a_day, seed=seed)
    (folder / "symbols.txt").write_text("\n".join(symbols) + "\n")
    (folder / "soak.py").write_text(AGENT)
    total = len(expected)
    rng = random.Random(seed)
    todo = plan(rng, total, disturbances, slow=slow)
    done: Counter[str] = Counter()
    begun = time.monotonic()
    stack = Stack(folder)
    try:
        _drive(stack, todo, done, total, rng, tell, outage_s)
        if stack.agent.wait(outage_s) != 0:
            return [f"the agent ended with {stack.agent.process.returncode}:\n{stack.agent.output[-3000:]}"]
        seconds = time.monotonic() - begun
    finally:
        stack.close()
    weeks = days / 5
    speed = f"{total:,} slices in {seconds:,.0f} s ({total / seconds:.1f}/s)"
    tell(f"{weeks:g} simulated weeks of {bars_a_day} minutes a day, {len(symbols)} symbols: {speed}")
    tell(f"disturbances: {sum(done.values())}: " + ", ".join(f"{name} {count}" for name, count in sorted(done.items())))
    tell(f"restarts: {sum(stack.restarts.values())}: {dict(sorted(stack.restarts.items()))}")
    wrong = [
        *_judge_bars(folder, expected, tell),
        *_judge_processes(stack, fill_slices(len(symbols)), total / weeks, tell),
    ]
    if wrong:
        tell(f"what was done, and in which slice: {stack.history}")
    return wrong


def _drive(
    stack: Stack,
    todo: list[tuple[int, str]],
    done: Counter[str],
    total: int,
    rng: random.Random,
    tell: Callable[[str], None],
    outage_s: float,
) -> None:
    left = list(todo)
    looked = told = -(10**9)
    every = max(1, total // 1000)
    number, moved = 0, time.monotonic()
    begun = moved
    while stack.agent.process.poll() is None:
        now = stack.slice()
        if now > number:
            number, moved = now, time.monotonic()
        elif time.monotonic() - moved > outage_s:
            raise AssertionError(
                f"slice {number} of {total} stands still for {outage_s:g} s\n{stack.agent.output[-3000:]}"
            )
        if number >= looked + every:
            looked = number
            stack.look(number)
        if number >= told + total // 10:
            told = number
            seconds = time.monotonic() - begun
            tell(f"slice {number:,} of {total:,} after {seconds:,.0f} s, {sum(done.values())} disturbances")
        if left and number >= left[0][0]:
            name = left.pop(0)[1]
            done[name] += 1
            stack.history.append((number, name))
            if name in ("agent", *stack.services):
                stack.restart(name, rng.uniform(0.1, 1.0))
            else:
                stack.ask("/dry-work/v1/faults", {**FAULTS, **SLOW_FAULTS}[name])
        else:
            time.sleep(0.02)


def _judge_bars(folder: Path, expected: dict[int, int], tell: Callable[[str], None]) -> list[str]:
    """Compare what all agents were given with what there was."""
    given: Counter[tuple[int, int]] = Counter()
    doubled = agents = 0
    for path in sorted(folder.glob("bars-*.jsonl")):
        own: Counter[tuple[int, int]] = Counter()
        for line in path.read_text().splitlines():
            try:
                end_ns, numbers = json.loads(line)
            except ValueError:
                continue  # the last line of an agent that was killed while it wrote: the bars are given to the next one
            own.update((end_ns, number) for number in numbers)
        doubled += sum(count - 1 for count in own.values())
        given.update(own.keys())
        agents += 1
    delivered: Counter[int] = Counter(end_ns for end_ns, _ in given)
    lost = sum(max(0, count - delivered[end_ns]) for end_ns, count in expected.items())
    unknown = sum(count for end_ns, count in delivered.items() if count > expected.get(end_ns, 0))
    again = sum(count - 1 for count in given.values())
    tell(
        f"bars: {sum(expected.values()):,} produced, {len(given):,} delivered, {lost} lost, {doubled} doubled, "
        f"{again} given again to an agent that was started anew, as its history (of {agents} processes)"
    )
    missing = [number for number, end_ns in enumerate(sorted(expected), 1) if delivered[end_ns] < expected[end_ns]]
    wrong = [f"{lost} bars are lost, of the slices {missing[:10]}"] if lost else []
    wrong += [f"{doubled} bars came twice to one process"] if doubled else []
    wrong += [f"{unknown} bars that were never produced"] if unknown else []
    return wrong


def fill_slices(symbols: int) -> dict[str, int]:
    """Return after how many slices of its life the bounded histories of each process are full.

    The agent's: lines of 256 values and two blocks of as many, 512 minutes of completeness, 756 orders that have ended.
    """
    bars = max(1, int(symbols * (_SHARE - 0.05)))
    return {"agent": 1100, "hub": 2 * math.ceil(DATA_HISTORY / bars), "pubsub": 100, "exchange": 100}


def _judge_processes(
    stack: Stack, full: Mapping[str, int], slices_a_week: float, tell: Callable[[str], None]
) -> list[str]:
    """Tell of the longest life of each process; `full` says after how many slices its histories are full."""
    wrong = []
    for name in ("agent", "hub", "pubsub", "exchange"):
        lives = [samples for (owner, _), samples in stack.samples.items() if owner == name]
        if not lives:
            continue
        life = max(lives, key=lambda samples: samples[-1].slice - samples[0].slice)
        begin = life[0].slice + full[name]
        measured = [sample for sample in life if sample.slice >= begin]
        text = "too short for a slope"
        slope = fit_slope(measured)
        if slope is not None:
            text = f"{slope.kb_a_slice * slices_a_week:+,.0f} ± {slope.plus_minus * slices_a_week:,.0f} KB a week"
        measured = measured or life[-1:]
        tell(
            f"{name}: {measured[0].rss_kb / 1024:.1f} → {measured[-1].rss_kb / 1024:.1f} MB over the last "
            f"{measured[-1].slice - measured[0].slice:,} of {life[-1].slice - life[0].slice:,} slices of its longest "
            f"life, {text}; threads {measured[0].threads} → {measured[-1].threads}, "
            f"most {max(sample.threads for sample in life)}{_describe_change(measured[0], measured[-1])}"
        )
        wrong += _judge_threads(name, life)
    return wrong


def _describe_change(before: Sample, after: Sample) -> str:
    """Return which threads have come and gone."""
    change = {name: after.names.get(name, 0) - before.names.get(name, 0) for name in {*before.names, *after.names}}
    text = ", ".join(f"{count:+d} {name}" for name, count in sorted(change.items()) if count)
    return f" ({text})" if text else ""


def _judge_threads(name: str, life: Sequence[Sample]) -> list[str]:
    """Threads pile up when the fewest of the last quarter are more than the most of the quarter before the middle."""
    quarter = len(life) // 4
    if quarter < 10:
        return []
    before = max(sample.threads for sample in life[quarter : 2 * quarter])
    after = min(sample.threads for sample in life[-quarter:])
    return [f"{name}: threads pile up: {before} → {after}"] if after > before else []


def fit_slope(samples: Sequence[Sample]) -> Slope | None:
    """Return the slope of memory over slices by the means of equal batches, None for too few samples."""
    if len(samples) < 3 * _BATCHES:
        return None
    batches = np.array_split(np.array([(each.slice, each.rss_kb) for each in samples], dtype=float), _BATCHES)
    x, y = np.array([batch.mean(axis=0) for batch in batches]).T
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    rest = y - y.mean() - slope * x
    error = math.sqrt(float(rest @ rest) / (_BATCHES - 2) / float(x @ x))
    return Slope(slope, _T_95[_BATCHES - 2] * error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, soak, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.soak", description=__doc__)
    parser.add_argument("--weeks", type=float, default=10.0, help="of five days; default 10")
    parser.add_argument("--symbols", type=int, default=100)
    parser.add_argument("--bars-a-day", type=int, default=390, help="the first minutes of each; default 390")
    parser.add_argument("--disturbances", type=int, default=120)
    parser.add_argument("--silent", type=int, default=8, help="silent sockets, beside them")
    parser.add_argument("--outage", type=float, default=OUTAGE_S, help="seconds that a turn may take; default 120")
    parser.add_argument("--seed", type=int, default=20240108)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        wrong = soak(
            Path(name),
            symbols=name_symbols(given.symbols),
            days=max(1, round(given.weeks * 5)),
            bars_a_day=given.bars_a_day,
            disturbances=given.disturbances,
            slow=given.silent,
            seed=given.seed,
            outage_s=given.outage,
            tell=lambda line: print(line, flush=True),
        )
    for line in wrong:
        print(f"WRONG: {line}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
