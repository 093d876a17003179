"""The dashboard of a run: collector, server and log together, as the runner uses them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from dry_work.broker.operator import AgentPlace, Operator, Tell
from dry_work.clock import Clock, SystemClock
from dry_work.dashboard.access import Access
from dry_work.dashboard.address import publish_address, withdraw_address
from dry_work.dashboard.collector import RunCollector
from dry_work.dashboard.commands import ActionResult, act
from dry_work.dashboard.log_tap import LogTap
from dry_work.dashboard.server import DashboardServer, find_charts, start_server
from dry_work.dashboard.settings import DashboardSettings
from dry_work.dashboard.snapshot import RunFacts
from dry_work.engine.observer import RunPlace
from dry_work.engine.state import RECORDINGS
from dry_work.market.messages import Slice
from dry_work.orders.risk_limits import RiskLimits
from dry_work.settings import Credentials

_log = structlog.get_logger(__name__)


class RunDashboard:
    """Shows one run. `close` belongs to whoever makes it, all else to the runner, on the engine's thread.

    Args:
        settings: where it listens.
        clock: the machine's.
    """

    def __init__(self, settings: DashboardSettings, *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._collector: RunCollector | None = None
        self._server: DashboardServer | None = None
        self._folder: Path | None = None
        self._lines: list[str] = []
        self._tap: LogTap | None = None
        self._ended = False

    @property
    def link(self) -> str:
        """Address of the page with what it needs to be opened; empty before `open`."""
        return self._server.link if self._server is not None else ""

    def open(self, place: RunPlace) -> None:
        """Begin to serve.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        collector = self._collector = RunCollector(
            describe_run(place, self._clock), place.settings.symbols, clock=self._clock, wake=place.wake
        )
        self._tap = LogTap(collector.board.log.add, clock=self._clock)
        for line in self._lines:
            self._tap.add(line)
        self._tap.start()
        folder = self._folder = place.folder
        self._server = start_server(
            Access(self._settings.host, self._settings.token),
            self._settings,
            board=collector.board,
            watched=collector,
            act=partial(self._act, partial(_build_operator, place)),
            clock=self._clock,
        )
        with contextlib.suppress(OSError):  # only `dry-work dashboard` would need it
            publish_address(folder, self._server.link, pid=os.getpid())
        place.tell(f"dashboard: {self._server.link}")
        if find_charts() is None:
            place.tell(
                "dashboard: without charts, which need the extra `dashboard` (pip install 'dry-work[dashboard]')"
            )

    def _act(self, build: Callable[[Tell], Operator], action: str, reason: str) -> ActionResult:
        if self._ended:
            return ActionResult(done=False, lines=("the run has ended: there is nothing to act on",))
        return act(build, action, reason)

    # The runner

    def tell(self, line: str) -> None:
        """Take a line for people, also before `open`."""
        if self._tap is not None:
            self._tap.add(line)
        else:
            self._lines.append(line)

    def attach(self, cerebro: Any, broker: Any, feeds: Sequence[Any]) -> None:
        """Follow a Cerebro that is not running yet, with one feed for each symbol."""
        self._try(RunCollector.attach, cerebro, broker, feeds)

    def note_ready(self, strategies: Iterable[Any]) -> None:
        """Take note of the strategies, after the warm-up and before the first slice."""
        self._try(RunCollector.note_ready, strategies)

    def note_slice(self, piece: Slice, value: float) -> None:
        """Take note of a slice that was delivered, and of the account's value after it."""
        self._try(RunCollector.note_slice, piece, value)

    def look(self) -> None:
        """Write down what has changed, unless that was just done."""
        self._try(RunCollector.look)

    def _try(self, work: Callable[..., None], *given: Any) -> None:
        """Let the collector work. Whatever it meets, the run goes on."""
        collector = self._collector
        if collector is None:
            return
        try:
            work(collector, *given)
            if collector.failure is None:
                return
            raise collector.failure
        except Exception:
            _log.exception("the dashboard shows nothing more; the run goes on")
            self._collector = None

    def finish(self) -> None:
        """Write down the end of the run; what was shown stays until `close`. May be called twice."""
        if self._ended or self._collector is None:
            return
        self._ended = True
        self._try(RunCollector.finish, "ended")
        if self._folder is not None:
            withdraw_address(self._folder)

    def close(self) -> None:
        """End the server. May be called twice, and before `open`."""
        self._ended = True
        if self._folder is not None:
            withdraw_address(self._folder)
        if self._server is not None:
            self._server.stop()
        if self._tap is not None:
            self._tap.stop()


def _build_operator(place: RunPlace, tell: Tell) -> Operator:
    keys = place.settings.credentials
    assert keys is not None

    def choose_credentials(_mode: str) -> Credentials:
        return keys

    return Operator(
        AgentPlace(path=place.folder, agents=(place.agent_id,), pid=os.getpid()),
        tell=tell,
        credentials=choose_credentials,
        limits=place.settings.risk or RiskLimits(),
        account_id=place.settings.account_id,
    )


def describe_run(place: RunPlace, clock: Clock) -> RunFacts:
    """Return the facts of a run that is about to begin."""
    recorded = sum(1 for path in (place.folder / RECORDINGS).glob("*/") if path.is_dir())
    return RunFacts(
        agent=place.agent.spec,
        mode=place.settings.mode,
        symbols=len(place.settings.symbols),
        agent_id=place.agent_id,
        params=tuple((name, str(value)) for name, value in place.agent.all_params.items()),
        started_ms=clock.time_ns() // 1_000_000,
        restarts=recorded,
        own_time=place.own_time,
        lockstep=place.lockstep,
    )
