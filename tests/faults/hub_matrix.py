"""The hub's fault matrix: each fault of an upstream, each server killed, while fifty programs listen on all transports.

`python -m tests.faults.hub_matrix` prints the table; its exit code is 1 when anything was wrong. See
docs/design/hub-faults.md.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed

from dry_work.hub.upstreams.connection import UpstreamTiming
from tests.faults.hub_clients import BARS, ORDERS, TRADES, Listener
from tests.faults.hub_hostile import Attack
from tests.faults.hub_world import World, remove_folder, until

LIVE_WITHIN_S = 5.0  # of the upstream's return
AUTH_TIMEOUT_S = 10.0  # of the hub at its upstreams
BACK_WITHIN_S = 20.0  # of the start of what was killed; a hub's part at NATS is taken over after ten seconds
OUTAGE_S = 3.0
HEALTHY_S = 31.0  # between two cases: after so long the hub's waits begin anew
HEARTBEATS = {"STREAM_PROXY_HEARTBEAT_INTERVAL_SECS": "0.5", "STREAM_PROXY_HEARTBEAT_TIMEOUT_SECS": "1.5"}
ORDER_CHECK_S = 2.0
ORDER_GRACE_S = UpstreamTiming().order_grace_s
VARIABLES = {**HEARTBEATS, "ORDER_CHECK_INTERVAL": f"{ORDER_CHECK_S:g}"}


@dataclass(frozen=True)
class DataFault:
    """What the upstream of market data does for a while.

    Attributes:
        error: code in answer to authentication.
        status: HTTP status in answer to the handshake.
        frame: error frame on the open connection.
        cuts: the open connection is cut first; otherwise it stays.
        mutes: it stays open and silent, and nothing is read from it.
        slows_s: how much later every answer comes.
        gap: data of that time is missing.
    """

    name: str
    error: int = 0
    status: int = 0
    frame: int = 0
    cuts: bool = True
    mutes: bool = False
    slows_s: float = 0.0
    gap: bool = True

    def begin(self, world: World) -> None:
        upstream = world.upstream
        upstream.auth_error = self.error
        upstream.http_status = self.status
        upstream.answer_delay_s = self.slows_s
        if self.mutes:
            world.market.may_send.clear()
            upstream.mute()
        if self.frame:
            for session in list(upstream.open):
                with contextlib.suppress(ConnectionClosed):
                    upstream.send_raw(f'[{{"T":"error","code":{self.frame},"msg":"on purpose"}}]', session)
        if self.cuts:
            upstream.cut()

    def end(self, world: World) -> None:
        upstream = world.upstream
        upstream.auth_error = upstream.http_status = 0
        upstream.answer_delay_s = 0.0
        if self.mutes:
            world.market.may_send.set()
            upstream.cut()


@dataclass(frozen=True)
class OrderFault:
    """What the exchange does to the stream of order updates, and to the requests behind it, for a while."""

    name: str
    faults: tuple[dict[str, Any], ...] = ()
    resets: bool = True  # the open stream is reset first
    live_within_s: float = LIVE_WITHIN_S

    def begin(self, world: World) -> None:
        for fault in self.faults:
            world.set_fault(**fault)
        if self.resets:
            world.reset_orders()

    def end(self, world: World) -> None:
        world.clear_faults()


def _login(code: int) -> OrderFault:
    return OrderFault(f"{code} at login", ({"on": "trades", "kind": "error", "code": code},))


def _handshake(status: int) -> OrderFault:
    return OrderFault(
        f"HTTP {status} at handshake", ({"on": "http", "kind": "status", "status": status, "path": "/stream"},)
    )


def _catch_up(status: int) -> OrderFault:
    places = ("/v2/events/trades", "/v2/orders", "/v2/account/activities")
    return OrderFault(
        f"HTTP {status} to catch up",
        tuple({"on": "http", "kind": "status", "status": status, "method": "GET", "path": path} for path in places),
    )


def _frames(kind: str, *, live_within_s: float = LIVE_WITHIN_S, **more: Any) -> OrderFault:
    fault = {"on": "trades", "kind": kind, **more}
    return OrderFault(f"stream {kind}", (fault,), resets=False, live_within_s=live_within_s)


QUIET_DATA = DataFault("none", cuts=False, gap=False)
QUIET_ORDERS = OrderFault("none", resets=False)
DATA_FAULTS = (
    DataFault("cut, refused 503", status=503),
    DataFault("cut", gap=True),
    DataFault("muted", cuts=False, mutes=True),
    DataFault("slow answers", slows_s=0.8),
    *(DataFault(f"{code} at login", error=code) for code in (401, 402, 404, 406, 407, 409, 411, 500)),
    *(DataFault(f"{code} when open", frame=code, cuts=False) for code in (401, 402, 404, 406, 407, 409, 411, 500)),
    *(DataFault(f"{code} when open", frame=code, cuts=False, gap=False) for code in (400, 403, 405, 410)),
    *(DataFault(f"HTTP {status} at handshake", status=status) for status in (401, 403, 429, 500, 502)),
)
ORDER_FAULTS = (
    _frames("reset"),
    _frames("close", code=1001),
    # The answer to authentication may be what does not come: its time is ten seconds.
    _frames("half_open", live_within_s=AUTH_TIMEOUT_S + LIVE_WITHIN_S),
    _frames("slow"),
    # It shows when the orders are compared; pings are answered.
    _frames("silent", live_within_s=ORDER_CHECK_S + ORDER_GRACE_S + LIVE_WITHIN_S),
    *(_login(code) for code in (402, 406, 409, 500)),
    *(_handshake(status) for status in (401, 403, 429, 500, 503)),
    *(_catch_up(status) for status in (401, 403, 429, 500)),
    OrderFault("no history", ({"on": "http", "kind": "status", "status": 404, "path": "/v2/events/trades"},)),
    OrderFault("events doubled", ({"on": "events", "kind": "duplicate", "rate": 0.3, "seed": 3},)),
)
HOSTILE, STOPPED = "hostile clients", "stopped in order"
KILLS = ("hub", "nats", "redis", "pubsub", "everything")


@dataclass(frozen=True)
class Case:
    """One thing that happens, or two at a time: one to market data, one to orders."""

    data: DataFault = QUIET_DATA
    orders: OrderFault = QUIET_ORDERS
    kill: str = ""

    def __str__(self) -> str:
        if self.kill:
            return f"{self.kill} killed" if self.kill in KILLS else self.kill
        return " + ".join(f"{kind}: {fault.name}" for kind, fault in self._faults if fault.name != "none")

    @property
    def _faults(self) -> tuple[tuple[str, DataFault | OrderFault], ...]:
        return (("data", self.data), ("orders", self.orders))


@dataclass
class Verdict:
    """What came of a case."""

    case: Case
    wrong: list[str] = field(default_factory=list)
    data_live_s: float = 0.0  # after the return, the last of the listeners
    orders_live_s: float = 0.0
    missing: int = 0  # trades that were not sent on, as the upstream was away
    copies: int = 0  # deliveries that came again, by a number or an id that tells
    updates: int = 0  # order updates, of one listener


class Judge:
    """Lets cases happen to a world, and says what is wrong afterwards.

    Args:
        patience: how many times as long as it should it may take until everybody is live; more on a busy machine.
    """

    def __init__(self, world: World, *, patience: float = 1.0) -> None:
        self.world = world
        self._patience = patience

    def judge(self, case: Case, *, outage_s: float = OUTAGE_S) -> Verdict:
        """Let one case happen."""
        verdict = Verdict(case)
        try:
            if case.kill == HOSTILE:
                verdict.wrong += Attack(self.world).run()
            else:
                (self._kill if case.kill else self._disturb)(case, verdict, outage_s)
        except (AssertionError, TimeoutError) as error:
            verdict.wrong.append(f"{type(error).__name__}: {error}")
        world = self.world
        if world.orders.failure is not None:
            verdict.wrong.append(f"the orders ended: {world.orders.failure!r}")
        verdict.wrong += [f"a listener ended: {error!r}" for error in world.loop.failures]
        world.loop.failures.clear()
        world.go_on()
        return verdict

    # --- faults of the upstreams

    def _disturb(self, case: Case, verdict: Verdict, outage_s: float) -> None:
        world = self.world
        before = {listener.name: (listener.sessions, listener.copies.total()) for listener in world.listeners}
        told = {listener.name: len(listener.told) for listener in world.listeners}
        first = world.market.number + 1
        case.data.begin(world)
        case.orders.begin(world)
        time.sleep(outage_s)
        case.data.end(world)
        case.orders.end(world)
        returned_s = time.monotonic()
        mark = {"trade": world.market.number, "bar": world.market.bar, "order": world.orders.number}
        live = world.wait_live(world.listeners, **mark)
        verdict.data_live_s, verdict.orders_live_s = self._find_longest(live, returned_s)
        if verdict.data_live_s > LIVE_WITHIN_S * self._patience:
            verdict.wrong.append(f"market data live after {verdict.data_live_s:.1f} s")
        if verdict.orders_live_s > case.orders.live_within_s * self._patience:
            verdict.wrong.append(f"order updates live after {verdict.orders_live_s:.1f} s")
        verdict.wrong += world.settle_orders(world.of(ORDERS))
        verdict.updates = len(world.of(ORDERS)[0].orders)
        verdict.wrong += self._compare_data(case, verdict, first)
        verdict.wrong += self._check_peace(before)
        if case.data.gap:
            verdict.wrong += self._check_told(told)

    def _find_longest(self, live: dict[str, float], since_s: float) -> tuple[float, float]:
        kinds = {listener.name: listener.kind for listener in self.world.listeners}
        data = [at - since_s for name, at in live.items() if kinds[name] != ORDERS]
        orders = [at - since_s for name, at in live.items() if kinds[name] == ORDERS]
        return max(data), max(orders)

    def _compare_data(self, case: Case, verdict: Verdict, first: int) -> list[str]:
        """Return where listeners differ: what the hub has got, everybody has got."""
        world, wrong = self.world, []
        last = world.market.number
        last_bar = world.market.bar
        first_bar = first // 5 + 1
        for kind, begin, end in ((TRADES, first, last), (BARS, first_bar, last_bar)):
            listeners = world.of(kind)
            with contextlib.suppress(AssertionError):
                until(lambda listeners=listeners, end=end: all(end in x.numbers for x in listeners), "all", 10.0)  # type: ignore[misc]
            sets = {x.name: {n for n in list(x.numbers) if begin <= n <= end} for x in listeners}
            union = set[int]().union(*sets.values())
            for name, numbers in sets.items():
                if lost := union - numbers:
                    wrong.append(f"{name}: {len(lost)} {kind} of {len(union)} did not come, such as {min(lost)}")
            missing = set(range(begin, end + 1)) - union
            if kind == TRADES:
                verdict.missing = len(missing)
            if missing and not case.data.gap:
                wrong.append(f"{len(missing)} {kind} did not get through the hub, such as {min(missing)}")
            wrong += [f"{x.name}: {kind} went back {x.backwards} times" for x in listeners if x.backwards]
        return wrong

    def _check_peace(self, before: dict[str, tuple[int, int]]) -> list[str]:
        """Return whose connection was lost, or who got something twice: the upstream's troubles are none of theirs."""
        wrong = []
        for listener in self.world.listeners:
            sessions, copies = before[listener.name]
            if listener.sessions != sessions:
                wrong.append(f"{listener.name}: its connection was lost: {listener.losses[-1:]}")
            if listener.copies.total() != copies:
                wrong.append(f"{listener.name}: {listener.copies.total() - copies} came twice")
        return wrong

    def _check_told(self, before: dict[str, int]) -> list[str]:
        """Return who should have heard that market data are missing, and has not."""
        names = ("ws-hub-json", "ws-hub-msgpack", "redis-prices-and-logs")
        listeners = [x for x in self.world.listeners if x.name in names]
        with contextlib.suppress(AssertionError):
            until(lambda: all(x.told[before[x.name] :][-1:] == ["connected"] for x in listeners), "told", 5.0)
        wrong = []
        for listener in listeners:
            told = listener.told[before[listener.name] :]
            if not {"reconnecting", "error"}.intersection(told) or told[-1] != "connected":
                wrong.append(f"{listener.name}: the gap was not told, only {told}")
        return wrong

    # --- kills

    def _kill(self, case: Case, verdict: Verdict, outage_s: float) -> None:
        world = self.world
        victims = ("hub", "nats", "redis", "pubsub") if case.kill == "everything" else (case.kill,)
        before = sum(listener.copies.total() for listener in world.listeners)
        world.trader.excuse()
        for victim in victims:
            self._end(victim)
        world.trader.excuse()
        time.sleep(outage_s / 3)
        for victim in sorted(victims, key=("nats", "redis", "pubsub", "hub").index):
            self._begin(victim)
        returned_s = time.monotonic()
        world.wait_listening()
        mark = {"trade": world.market.number, "bar": world.market.bar, "order": world.orders.number}
        live = world.wait_live(world.listeners, **mark)
        verdict.data_live_s, verdict.orders_live_s = self._find_longest(live, returned_s)
        if (seconds := max(live.values()) - returned_s) > BACK_WITHIN_S * self._patience:
            verdict.wrong.append(f"live after {seconds:.1f} s")
        verdict.wrong += world.settle_orders(self._strict(victims))
        verdict.updates = len(world.of(ORDERS)[0].orders)
        verdict.copies = sum(listener.copies.total() for listener in world.listeners) - before
        verdict.wrong += self._forgive(victims)

    def _strict(self, victims: Iterable[str]) -> list[Listener]:
        """Return the listeners to orders that must have got everything."""
        found = []
        for listener in self.world.of(ORDERS):
            transport = listener.name.partition("-")[0]
            # Alpaca's own dialect, and Redis's channels, have no way to come back; a Pub/Sub without a disk forgets.
            touched = "hub" in victims or {"ws": "hub", "grpc": "hub"}.get(transport, transport) in victims
            if touched and (not listener.resumes or (transport == "pubsub" and "pubsub" in victims)):
                continue
            found.append(listener)
        return found

    def _forgive(self, victims: Iterable[str]) -> list[str]:
        """Take as told what those had no way to get; return what is wrong all the same."""
        world, wrong = self.world, []
        expected = world.expected_events()
        strict = self._strict(victims)
        for listener in world.of(ORDERS):
            if listener in strict:
                continue
            world.forgive(listener, expected - set(listener.orders.values()))
        wrong += [f"{x.name}: numbers went back {x.backwards} times" for x in world.of(TRADES, BARS) if x.backwards]
        return wrong

    def _end(self, victim: str) -> None:
        world = self.world
        getattr(world, victim).kill()

    def _begin(self, victim: str) -> None:
        world = self.world
        if victim in ("nats", "redis"):
            getattr(world, victim).start()
        elif victim == "pubsub":
            world.start_pubsub()
        else:
            world.start_hub()


def build_cases(rng: random.Random, *, pairs: int) -> list[Case]:
    """Return cases with every fault once, one of each upstream at a time, and `pairs` more of them by chance."""
    count = max(len(DATA_FAULTS), len(ORDER_FAULTS))
    shuffled = [rng.sample(faults, len(faults)) for faults in (DATA_FAULTS, ORDER_FAULTS)]
    cases = [
        Case(shuffled[0][number % len(DATA_FAULTS)], shuffled[1][number % len(ORDER_FAULTS)])  # type: ignore[arg-type]
        for number in range(count)
    ]
    return cases + [Case(rng.choice(DATA_FAULTS), rng.choice(ORDER_FAULTS)) for _ in range(pairs)]


def judge_in_worlds(
    cases: Sequence[Case], folder: Path, *, jobs: int, note: Callable[[Verdict], None], healthy_s: float = HEALTHY_S
) -> list[Verdict]:
    """Let cases happen, each world to its share of them, one after another."""

    def work(number: int) -> list[Verdict]:
        verdicts = []
        world = World(folder / f"world-{number}", variables=VARIABLES)
        try:
            judge = Judge(world)
            for case in cases[number::jobs]:
                verdicts.append(judge.judge(case))
                note(verdicts[-1])
                if not case.kill:
                    time.sleep(healthy_s)
            verdicts.append(check_end(world))
            note(verdicts[-1])
        finally:
            world.close()
        return verdicts

    with ThreadPoolExecutor(jobs) as pool:
        return [verdict for verdicts in pool.map(work, range(jobs)) for verdict in verdicts]


def check_end(world: World) -> Verdict:
    """Stop the hub in order; say whether its counts agree."""
    verdict = Verdict(Case(kill=STOPPED))
    try:
        world.pause()
        world.market.may_send.clear()
        wrong = check_counts(world.stop_hub())
    except AssertionError as error:
        wrong = [str(error)]
    verdict.wrong += wrong
    return verdict


def check_counts(output: str) -> list[str]:
    """Return the interfaces whose events are not all accounted for at the end."""
    wrong = []
    pattern = r"hub: (\w+): (\d+) events? offered, (\d+) delivered, (\d+) conflated, (\d+) dropped"
    found = re.findall(pattern, output)
    for name, *texts in found:
        offered, delivered, conflated, dropped = map(int, texts)
        if offered != delivered + conflated + dropped:
            wrong.append(f"{name}: {offered} offered, but {delivered} + {conflated} + {dropped}")
    if len(found) < 4:
        wrong.append(f"only {len(found)} interfaces told their counts:\n{output[-1000:]}")
    return wrong


def print_table(verdicts: Sequence[Verdict], most: int) -> None:
    """Print each case, then what was wrong."""
    width = max(len(str(verdict.case)) for verdict in verdicts)
    print(f"{'case':{width}}  data live  orders live  trades missing  copies  updates  end")
    for verdict in verdicts:
        state = "wrong" if verdict.wrong else "right"
        print(
            f"{verdict.case!s:{width}}  {verdict.data_live_s:7.1f} s  {verdict.orders_live_s:9.1f} s  "
            f"{verdict.missing:14}  {verdict.copies:6}  {verdict.updates:7}  {state}"
        )
    for verdict in verdicts:
        if verdict.wrong:
            print(f"\n{verdict.case}")
            for line in verdict.wrong[:most]:
                print(f"    {line}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the matrix; return 1 when anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.hub_matrix", description=__doc__)
    parser.add_argument("--pairs", type=int, default=4, help="further cases with two faults by chance")
    parser.add_argument("--kills", type=int, default=3, help="how often each server is killed")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="worlds at a time")
    parser.add_argument("--details", type=int, default=12, help="lines that are told of each failure")
    options = parser.parse_args(arguments)
    begun_s = time.monotonic()
    rng = random.Random(options.seed)
    cases = build_cases(rng, pairs=options.pairs)
    cases += [Case(kill=name) for _ in range(options.kills) for name in KILLS]
    cases += [Case(kill=HOSTILE)] * options.kills
    cases = [case for case in cases if options.only in str(case)]
    folder = Path(tempfile.mkdtemp(prefix="hub-matrix-"))

    def note(verdict: Verdict) -> None:
        what = "; ".join(verdict.wrong[:3]) or "right"
        print(f"{verdict.case}: {what}", file=sys.stderr, flush=True)

    verdicts = judge_in_worlds(cases, folder, jobs=max(1, min(options.jobs, len(cases))), note=note)
    print_table(verdicts, options.details)
    failed = sum(bool(verdict.wrong) for verdict in verdicts)
    print(f"\n{len(verdicts)} cases, {failed} wrong, seed {options.seed}, {time.monotonic() - begun_s:.0f} s")
    if not failed:
        remove_folder(folder)
    else:
        print(f"logs are in {folder}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
