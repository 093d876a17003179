"""Run a recorded session again: the same engine and broker, no clock, no socket, no thread. Main thread.

What reached the strategy and the books is taken from the record; what it decides is compared with it, turn by turn.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import backtrader as bt
import msgspec

from dry_work import __version__
from dry_work.broker.flight import FlightClock
from dry_work.broker.journal import Journal
from dry_work.clock import Clock, SystemClock
from dry_work.engine.agents import Agent, load_agent
from dry_work.engine.divergence import Setting, explain_divergence
from dry_work.engine.flight_session import RAISED, collect_sources, describe_error
from dry_work.engine.live import LiveCerebro
from dry_work.engine.market_feeds import add_market_feeds
from dry_work.engine.moment import Moment, describe_moment
from dry_work.engine.replay_broker import ReplayBroker
from dry_work.engine.replay_flight import DivergedError, Divergence, ReplayFlight, ReplaySource
from dry_work.engine.strategy_state import StrategyKeeper, keeps_by_slice
from dry_work.errors import ConfigError, DataFileError, DryWorkError, StrategyError
from dry_work.market.messages import Slice
from dry_work.recording.flight_frames import FinishRecord, SessionFacts
from dry_work.recording.flight_log import FlightReader, Turn
from dry_work.recording.inputs import provide_inputs
from dry_work.settings import RunSettings

_MASKED = "***"


class ReplayResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay found."""

    session: str
    agent: str
    slices: int
    turns: int  # that were compared and are the same
    decisions: int  # the same
    divergence: Divergence | None
    causes: tuple[str, ...]  # of the divergence, the likeliest first
    problem: str  # why the record ends before the session did; empty when it does not
    finish: FinishRecord | None
    notes: tuple[str, ...] = ()
    moment: Moment | None = None  # at `until`

    @property
    def is_same(self) -> bool:
        """Tell whether everything up to the end of the record is the same."""
        return self.divergence is None


class NoSleep:
    """A wake-up for an engine that never waits."""

    def set(self) -> None:
        """Nobody sleeps."""

    def wait(self, timeout_s: float | None) -> bool:
        """Return at once."""
        return True


class ReplayRun:
    """A session, built again.

    Args:
        facts: about the session.
        agent: the strategy.
        flight: between the engine and the record.
        folder: an empty one, for journal and strategy state.
        venue: what the order worker talks to once it works, None: nothing.
        on_outcome: takes what came of that.
    """

    def __init__(
        self,
        facts: SessionFacts,
        agent: Agent,
        flight: ReplayFlight,
        folder: Path,
        *,
        venue: Any = None,
        on_outcome: Any = None,
    ) -> None:
        self.facts = facts
        self.settings = restore_settings(facts)
        self.flight = flight
        self.equity: list[tuple[int, float]] = []
        restore_files(facts, folder)
        self._journal = Journal(folder / "orders.sqlite")
        lockstep = facts.lockstep
        clock: Clock = FlightClock(SystemClock(), flight)
        broker: Any = ReplayBroker
        settings = self.settings
        self.broker = broker(
            api_key="replay",
            secret_key="replay",  # noqa: S106 - no venue is asked
            sandbox=facts.mode != "live",
            journal=self._journal,
            agent=facts.agent_name,
            lockstep=lockstep,
            rules=facts.rules,
            risk=settings.risk,
            mode=facts.mode,
            wakeup=NoSleep(),
            flight=flight,
            venue=venue,
            on_outcome=on_outcome,
        )
        live_cerebro: Any = LiveCerebro
        self.cerebro = live_cerebro(
            source=ReplaySource(flight),
            wakeup=NoSleep(),
            warmup=flight.turn.warmup if flight.turn is not None else (),
            lockstep=lockstep,
            forward_prenext=settings.forward_prenext,
            check=self._look_after,
            on_slice=self._after_slice,
            flight=flight,
            tz=settings.tz,
        )
        add_market_feeds(self.cerebro, ReplaySource(flight), settings)
        self.cerebro.setbroker(self.broker)
        self.cerebro.addstrategy(agent.strategy, **agent.params)
        self._kept = StrategyKeeper(
            folder / "strategy.json",
            agent=agent.strategy.__qualname__,
            clock=clock,
            flight=flight,
            by_slice=keeps_by_slice(lockstep=lockstep, mode=facts.mode, agent_id=facts.agent_id),
        )
        self._kept.follow(self.broker, agent.strategy)
        self.cerebro.on_ready = self._make_ready
        self.cerebro.on_decided = lambda piece: self._kept.note_decided(piece.number or 0, piece.end_ns)
        flight.follow(self.broker.view_books)

    @property
    def strategy(self) -> Any:
        """The strategy, once it runs."""
        return self.cerebro.runningstrats[0]

    def run(self) -> None:
        """Run to the end of the record.

        Raises:
            DivergedError: something is not as recorded.
            DryWorkError: the record cannot be run.
        """
        try:
            with provide_inputs(self.flight, self.facts.seed):
                self.cerebro.run()
                self._kept.save()
            error = ""
        except DryWorkError as failure:
            if self.flight.is_free:
                raise
            error = describe_error(failure)
        except Exception as failure:
            error = f"{RAISED}{type(failure).__name__}: {failure}"
            if self.flight.is_free:
                raise StrategyError(f"the strategy raised {type(failure).__name__}: {failure}") from failure
        self.flight.compare(error)

    def close(self) -> None:
        """Give back what is open. May be called twice."""
        self.broker.stop()
        for data in self.cerebro.datas:
            data.stop()
        self._journal.close()

    def _make_ready(self) -> None:
        self._kept.load(self.strategy)
        self._kept.save()

    def _look_after(self) -> None:
        if not self.facts.lockstep:
            self._kept.after_turn()

    def _after_slice(self, piece: Slice) -> None:
        if self.flight.is_free:
            risk = self.broker.risk
            if risk is not None and risk.stopped_by is not None:
                self.cerebro.runstop()
        self._kept.after_slice(self.broker.order_count)
        value = self.broker.getvalue()
        self.flight.note_value(value)
        self.equity.append((piece.end_ns, value))


def replay_session(
    reader: FlightReader, agent: Agent, *, until_ns: int | None = None, notes: tuple[str, ...] = ()
) -> ReplayResult:
    """Run a session again and compare it with its record.

    Args:
        until_ns: stop behind the last slice that ends by then, and describe that moment.

    Raises:
        ConfigError: the session cannot be run again.
    """

    def stop(divergence: Divergence) -> None:
        raise DivergedError(divergence)

    divergence: Divergence | None = None
    moment: Moment | None = None
    flight = ReplayFlight(reader.turns(), until_ns=until_ns, on_divergence=stop)
    if flight.is_over:  # the process was killed while it started, or --until is before all
        flight.drain()
        return _nothing(reader, agent, notes)
    with tempfile.TemporaryDirectory(prefix="dry-work-replay-") as folder:
        run = ReplayRun(reader.facts, agent, flight, Path(folder))

        def look() -> None:
            nonlocal moment
            moment = describe_moment(run.strategy, run.broker, flight)

        def forget(_turn: Turn) -> None:
            run.broker.link.gateway.work_off(drop=True)

        flight.on_until = look
        flight.on_turn_end = forget
        try:
            run.run()
            if until_ns is not None and moment is None and run.cerebro.runningstrats:
                look()
            flight.drain()
        except DivergedError as error:
            divergence = error.divergence
        finally:
            run.close()
    causes = explain(reader.facts, agent) if divergence is not None else ()
    return ReplayResult(
        session=reader.folder.name,
        agent=agent.spec,
        slices=flight.slices,
        turns=flight.turns_compared,
        decisions=flight.decisions_compared,
        divergence=divergence,
        causes=tuple(causes),
        problem="" if until_ns is not None and flight.is_cut else reader.problem,
        finish=reader.finish,
        notes=notes,
        moment=moment,
    )


def _nothing(reader: FlightReader, agent: Agent, notes: tuple[str, ...]) -> ReplayResult:
    return ReplayResult(
        session=reader.folder.name,
        agent=agent.spec,
        slices=0,
        turns=0,
        decisions=0,
        divergence=None,
        causes=(),
        problem=reader.problem or "the start was not finished",
        finish=reader.finish,
        notes=notes,
    )


def explain(facts: SessionFacts, agent: Agent) -> list[str]:
    """Return what may have made a replay with `agent` another one."""
    recorded = Setting(
        sources=facts.sources,
        params=facts.all_params,
        versions={"dry_work": facts.dry_work, "backtrader": facts.backtrader, "python": facts.python},
    )
    params = {name: _MASKED if name in facts.masked else repr(value) for name, value in agent.all_params.items()}
    replayed = Setting(
        sources=collect_sources(agent)[1],
        params=params,
        versions={"dry_work": __version__, "backtrader": bt.__version__, "python": platform.python_version()},
    )
    return explain_divergence(recorded, replayed)


def restore_settings(facts: SessionFacts) -> RunSettings:
    """Return the settings of a session, as far as it tells them.

    Raises:
        ConfigError: they cannot be read.
    """
    try:
        return msgspec.convert(facts.settings, RunSettings, dec_hook=lambda kind, value: kind(value))
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise ConfigError(f"the settings of the session cannot be read: {error}") from None


def restore_files(facts: SessionFacts, folder: Path) -> None:
    """Write journal and strategy state as they were at the start of a session.

    Raises:
        ConfigError: the journal is not in the record.
    """
    if not facts.journal:
        raise ConfigError("the session's orders journal was too large to be recorded: it cannot be replayed")
    (folder / "orders.sqlite").write_bytes(zlib.decompress(facts.journal))
    if facts.strategy_state is not None:
        (folder / "strategy.json").write_bytes(facts.strategy_state)


@contextlib.contextmanager
def recorded_agent(
    facts: SessionFacts,
    *,
    spec: str | None = None,
    params: Mapping[str, str] | None = None,
    recorded_source: bool = False,
) -> Iterator[tuple[Agent, tuple[str, ...]]]:
    """Load the strategy of a session, or another one; yield it with sentences about it.

    Args:
        spec: another strategy.
        params: other parameters, beside those of the session.
        recorded_source: take the source that is in the record, not the file as it is now.

    Raises:
        ConfigError: it cannot be loaded.
    """
    given = {name: value for name, value in facts.params.items() if name not in facts.masked}
    notes: list[str] = []
    missing = [name for name in facts.masked if name in facts.params and name not in (params or {})]
    if missing:
        notes.append(f"not in the record, as a secret: {', '.join(missing)}; give it with -p")
    given |= params or {}
    if spec is not None:
        yield load_agent(spec, given), tuple(notes)
        return
    path = Path(facts.source_path) if facts.source_path else None
    if not recorded_source and path is not None and path.is_file():
        agent = load_agent(f"{path}:{facts.class_name}", given)
        if agent.source_digest != facts.source_digest:
            notes.append(
                f"{path} has changed since the session: it runs as it is now; --recorded-source runs what ran then"
            )
        yield agent, tuple(notes)
        return
    if not facts.main_source or facts.main_source not in facts.sources:
        raise ConfigError(f"the source of {facts.agent} is not in the record; name it with --agent")
    if not recorded_source:
        notes.append(f"{facts.source_path or facts.agent} is not here: the source in the record runs")
    with tempfile.TemporaryDirectory(prefix="dry-work-source-") as folder:
        for name, text in facts.sources.items():
            target = (Path(folder) / name).resolve()
            if not target.is_relative_to(Path(folder).resolve()):
                raise DataFileError(name, "is no name of a source within its folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
            if name != facts.main_source:
                sys.modules.pop(Path(name).with_suffix("").as_posix().replace("/", "."), None)
        try:
            yield load_agent(f"{Path(folder) / facts.main_source}:{facts.class_name}", given), tuple(notes)
        finally:
            with contextlib.suppress(ValueError):
                sys.path.remove(str(Path(folder).resolve()))
