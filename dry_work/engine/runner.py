"""Build a run, run it, stop it in order, and tell what it did. Main thread only."""

from __future__ import annotations

import contextlib
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

from dry_work.alpaca.assets import check_symbols
from dry_work.alpaca.simulated import ExchangeControl, is_alpaca
from dry_work.alpaca.venues import open_venue
from dry_work.broker.journal import Journal, describe_record
from dry_work.broker.paper import AlpacaPaperTradingBroker
from dry_work.clock import Clock, SystemClock
from dry_work.engine.agents import Agent, derive_session, load_agent
from dry_work.engine.flight_session import RunFlight
from dry_work.engine.live import LiveCerebro
from dry_work.engine.local_run import start_local
from dry_work.engine.lookback import LookBack
from dry_work.engine.market_feeds import add_market_feeds
from dry_work.engine.observer import RunObserver, RunPlace
from dry_work.engine.progress import Progress, ProgressWatch
from dry_work.engine.result import RunResult
from dry_work.engine.run_market import (
    ExchangeSeat,
    ResumedSource,
    build_reader,
    describe_data,
    fetch_warmup,
    fill_from_history,
)
from dry_work.engine.run_outcome import EquityRecord, build_result, describe_finish
from dry_work.engine.state import AgentState, name_agent
from dry_work.engine.strategy_state import StrategyKeeper, keeps_by_slice
from dry_work.engine.thread_watch import ThreadWatch
from dry_work.errors import ConfigError, DryWorkError, StrategyError
from dry_work.feeds.choice import build_source
from dry_work.feeds.recorded import Recording
from dry_work.market.completeness import MarketHours
from dry_work.market.messages import Slice
from dry_work.orders.risk import RiskCommand, RiskState
from dry_work.ports import MarketSource
from dry_work.recording.recorder import SYMBOLS_FACT, Recorder
from dry_work.settings import Credentials, RunSettings
from dry_work.wakeup import Wakeup

# After the word to stop, user code that is still running gets so long before it is interrupted.
STOP_GRACE_S = 3.0
# The recordings of a run must not fill the disk that its orders journal needs.
RECORDINGS_BYTES = 1024 * 1024 * 1024
EXIT_RISK = 3  # exit code of a run that a risk limit has ended
Tell = Callable[[str], None]


class Stuck(BaseException):
    """Raised in the main thread when user code does not return after the word to stop."""


class Runner:
    """One run of one agent.

    Args:
        settings: what to run.
        tell: takes lines for people.
        show: takes a snapshot of the run some times a second, on the thread of `run`; it returns at once. None:
            progress lines are told instead.
        observer: is told of the run while it goes on.
        clock: the machine's.
    """

    def __init__(
        self,
        settings: RunSettings,
        *,
        tell: Tell,
        show: Callable[[Progress], None] | None = None,
        observer: RunObserver | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._tell_people = tell
        self._observer = observer
        self._show = show
        self._watch: ProgressWatch | None = None
        self._clock = clock or SystemClock()
        self._wakeup = Wakeup()
        self._cerebro: LiveCerebro | None = None
        self._failures: list[BaseException] = []
        self._lock = threading.Lock()
        self._stop_code: int | None = None
        self._is_running = False  # the engine, and with it user code
        self.recording: Recording | None = None  # what a local run plays, for its report
        self._kept: StrategyKeeper | None = None
        self._flight = RunFlight(None, self._clock)
        self._equity = EquityRecord()
        self._next_line = 0.0
        self._threads = ThreadWatch(())
        self._lockstep = False
        self.stopped_by_limit = ""  # which one, and when

    @property
    def stop_code(self) -> int | None:
        """Exit code that belongs to the word to stop, or None when the run ended by itself."""
        return self._stop_code

    def request_stop(self, code: int) -> None:
        """End the run in order; called by signal handlers in the main thread. A second call does not wait."""
        again = self._stop_code is not None
        if not again:
            self._stop_code = code
        if self._cerebro is not None:
            self._cerebro.runstop()
        self._wakeup.set()
        if self._is_running:
            signal.signal(signal.SIGALRM, _interrupt)
            signal.setitimer(signal.ITIMER_REAL, 0.05 if again else STOP_GRACE_S)
        elif again:
            raise KeyboardInterrupt  # what is started is stopped on the way out

    def _tell(self, line: str) -> None:
        self._tell_people(line)
        if self._observer is not None:
            self._observer.tell(line)

    def refresh(self) -> None:
        """Let what has changed be shown soon; from any thread. Wakes nobody when nothing has."""
        if self._watch is not None and self._watch.is_behind:
            self._wakeup.set()

    def run(self) -> RunResult:
        """Run to the end of the data or to the word to stop.

        Raises:
            ConfigError: something of the user's is not usable.
            StrategyError: the user's code raised; its own exception is the cause.
            DryWorkError: a part failed.
        """
        begun = time.monotonic()
        self._threads = ThreadWatch(threading.enumerate())
        settings = self._settings
        agent = load_agent(settings.agent, settings.params)
        with contextlib.ExitStack() as stack:
            state = AgentState(settings)
            state.acquire()
            stack.callback(state.release)
            fingerprint, notes = "", list[str]()
            if settings.mode == "local":
                local = start_local(stack, settings, tell=self._tell, on_failure=self._fail)
                settings, notes, self.recording = local.settings, local.notes, local.recording
                fingerprint = local.recording.fingerprint
            if settings.credentials is None:
                raise ConfigError("no Alpaca credentials: set ALPACA_API_KEY and ALPACA_SECRET_KEY, or give --local")
            keys = settings.credentials
            api = open_venue(
                keys.key,
                keys.secret,
                url=settings.alpaca_url,
                account_id=settings.account_id,
                paper=settings.mode != "live",
                timeout_s=settings.request_timeout_s,
            ).open_api()
            stack.callback(api.close)
            control = None if is_alpaca(settings.alpaca_url) else ExchangeControl(api)
            session = None if control is None else control.session()
            check_symbols(settings.symbols, api)
            lockstep = self._lockstep = session is not None and session.lockstep
            if self._observer is not None:
                self._observer.open(
                    RunPlace(
                        agent=agent,
                        agent_id=state.agent_id,
                        folder=state.path,
                        settings=settings,
                        own_time=not is_alpaca(settings.alpaca_url),
                        lockstep=lockstep,
                        wake=self._wakeup.set,
                        tell=self._tell_people,
                    )
                )
            if session is not None and not fingerprint:
                fingerprint = session.fingerprint
            hours = MarketHours()
            if is_alpaca(settings.alpaca_url):
                hours.load()  # not at the first question, between two slices
            recorder = self._build_recorder(settings, state)
            flight = self._flight = RunFlight(recorder, self._clock)
            source = build_source(
                settings,
                build_reader(settings, hours, lockstep=lockstep),
                agent_id=state.agent_id,
                owner_nonce=state.nonce,
                clock=self._clock,
                recorder=recorder,
            )
            if recorder is not None:
                stack.callback(recorder.stop)  # after the source
                recorder.start()
            stack.callback(source.stop)
            source.start(self._wakeup)
            seat: ExchangeSeat | None = None
            if control is not None and session is not None:
                seat = ExchangeSeat(control, state.agent_id, settings.symbols)
            by_slice = keeps_by_slice(lockstep=lockstep, mode=settings.mode, agent_id=settings.agent_id)
            place = seat.find() if seat is not None and by_slice else None
            warmup = fetch_warmup(settings, api, place)
            if settings.warmup > 0:
                self._tell(f"warm-up: {sum(len(piece.bars) for piece in warmup):,} bars of history")
            kept = self._kept = StrategyKeeper(
                state.strategy_path,
                agent=agent.strategy.__qualname__,
                clock=flight.clock,
                flight=flight.flight,
                by_slice=by_slice,
            )
            market: MarketSource
            if lockstep:  # where the market stands still while nobody is there, nothing is missed
                market = ResumedSource(source, kept.is_decided)
            else:
                market = fill_from_history(source, settings, api, warmup, hours)
            journal = Journal(state.journal_path)
            stack.callback(journal.close)
            self._tell_risk(journal)
            broker = self._build_broker(
                settings,
                settings.credentials,
                agent,
                state,
                journal,
                lockstep,
                fingerprint,
                None if session is None else session.rules,
            )
            stack.callback(broker.stop)
            cerebro = self._build_cerebro(settings, agent, warmup, market, broker, state, lockstep)
            if self._observer is not None:
                stack.callback(self._observer.finish)
            if seat is not None:
                stack.callback(seat.leave)
                # What an outage of Pub/Sub swallowed, the simulated exchange sends again.
                cerebro.on_reconnect = partial(seat.take_again, lambda: self._stop_code is not None)
            kept.follow(broker, agent.strategy)
            kept.take_up(place.number if place is not None and place.owes else 0, 0 if place is None else place.end_ns)
            cerebro.on_decided = lambda piece: kept.note_decided(piece.number or 0, piece.end_ns)
            cerebro.on_ready = partial(self._make_ready, cerebro, kept, None if seat is None else seat.take)
            kept_flight = flight.recorded(
                settings,
                agent,
                broker,
                journal,
                state.strategy_path,
                fingerprint=fingerprint,
                lockstep=lockstep,
                rules=None if session is None else session.rules,
                finish=lambda: describe_finish(
                    cerebro,
                    broker,
                    stopped_by_limit=self.stopped_by_limit,
                    is_stopped=self._stop_code is not None,
                ),
            )
            with kept_flight, _stopping_feeds(cerebro):
                self._run_cerebro(cerebro, kept)
            seconds = time.monotonic() - begun
            if recorder is not None:
                notes = [*notes, *recorder.describe_trouble()]
            return build_result(
                self._settings,
                agent,
                cerebro,
                broker,
                counters=market.counters(),
                equity=self._equity,
                notes=notes,
                fingerprint=fingerprint,
                seconds=seconds,
            )

    # Building

    def _build_recorder(self, settings: RunSettings, state: AgentState) -> Recorder | None:
        if state.recordings_path is None:
            return None
        return Recorder(
            state.recordings_path,
            writer="run",
            facts={"agent_id": state.agent_id, "mode": settings.mode, SYMBOLS_FACT: settings.symbols},
            clock=self._clock,
            keep_bytes=RECORDINGS_BYTES,
        )

    def _build_broker(
        self,
        settings: RunSettings,
        credentials: Credentials,
        agent: Agent,
        state: AgentState,
        journal: Journal,
        lockstep: bool,
        fingerprint: str,
        rules: str | None,
    ) -> AlpacaPaperTradingBroker:
        broker: Any = AlpacaPaperTradingBroker  # Backtrader's metaclass takes the params
        built: AlpacaPaperTradingBroker = broker(
            api_key=credentials.key,
            secret_key=credentials.secret,
            sandbox=settings.mode != "live",
            url_override=settings.alpaca_url,
            account_id=settings.account_id or None,
            journal=journal,
            agent=name_agent(settings, state.path),
            # Equal runs get equal order ids: the session of a local run follows from what goes into it.
            session=derive_session(agent, fingerprint) if settings.mode == "local" else None,
            consumer=state.agent_id,
            wakeup=self._wakeup,
            lockstep=lockstep,
            request_timeout_s=settings.request_timeout_s,
            rules=rules,
            risk=settings.risk,
            mode=settings.mode,
            flight=self._flight.flight,
            journal_days=settings.journal_days,
        )
        return built

    def _tell_risk(self, journal: Journal) -> None:
        """Say which limits are in force, and what has stopped the agent before."""
        settings = self._settings
        if settings.risk is None:
            self._tell("risk: the gate is off")
            return
        for line in textwrap.wrap(f"risk: {settings.risk.describe()}", 100, subsequent_indent="      "):
            self._tell(line)
        if settings.resume_trading:
            journal.change_risk(
                RiskCommand.RELEASE, reason="--resume-trading", who="operator", at_ns=self._clock.time_ns()
            )
        record = journal.risk()
        if record.state is not RiskState.ACTIVE:
            self._tell(f"risk: {describe_record(record)}. To trade again: --resume-trading, or dry-work halt --release")

    def _build_cerebro(
        self,
        settings: RunSettings,
        agent: Agent,
        warmup: list[Slice],
        source: MarketSource,
        broker: AlpacaPaperTradingBroker,
        state: AgentState,
        lockstep: bool,
    ) -> LiveCerebro:
        live_cerebro: Any = LiveCerebro
        cerebro: LiveCerebro = live_cerebro(
            source=source,
            wakeup=self._wakeup,
            warmup=warmup,
            lockstep=lockstep,
            forward_prenext=settings.forward_prenext,
            beat=lambda: state.beat(self._clock, describe_data(self._cerebro, settings)),
            check=lambda: self._look_after(broker),
            on_slice=self._after_slice,
            flight=self._flight.flight,
            look_back=LookBack(settings.lookback, directory=state.path),
            tz=settings.tz,
        )
        feeds = add_market_feeds(cerebro, source, settings)
        cerebro.setbroker(broker)
        cerebro.addstrategy(agent.strategy, **agent.params)
        if self._show is not None:
            own_time = not is_alpaca(settings.alpaca_url)
            self._watch = ProgressWatch(
                self._show, agent=agent.spec, mode=settings.mode, own_time=own_time, clock=self._clock
            )
            self._watch.attach(cerebro, broker, feeds)
        if self._observer is not None:
            self._observer.attach(cerebro, broker, feeds)
        self._cerebro = cerebro
        return cerebro

    # Running

    def _make_ready(self, cerebro: LiveCerebro, kept: StrategyKeeper, register: Callable[[], object] | None) -> None:
        told = kept.load(cerebro.runningstrats[0])
        if told:
            self._tell(f"state: {told}")
        kept.save()  # so that it is there before the first order leaves
        if self._observer is not None:
            self._observer.note_ready(cerebro.runningstrats)
        self._threads.begin()
        if register is not None:
            register()

    def _run_cerebro(self, cerebro: LiveCerebro, kept: StrategyKeeper) -> None:
        if self._stop_code is not None:
            return
        try:
            self._is_running = True
            cerebro.run()
            kept.save()
        except Stuck:
            self._flight.note_interrupted()
            self._tell("the strategy did not return in time and was interrupted")
        except DryWorkError:
            raise
        except Exception as error:
            raise StrategyError(f"the strategy raised {type(error).__name__}: {error}") from error
        finally:
            self._is_running = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failures.append(error)
        self._wakeup.set()

    def _look_after(self, broker: AlpacaPaperTradingBroker) -> None:
        self._raise_failure(broker)
        self._threads.look(time.monotonic())
        if not self._lockstep:
            self._stop_for_limit(broker)
            if self._kept is not None:
                self._kept.after_turn()
        if self._watch is not None:
            self._watch.look()
        if self._observer is not None:
            self._observer.look()

    def _raise_failure(self, broker: AlpacaPaperTradingBroker) -> None:
        failure = self._failures[0] if self._failures else broker.failure
        if failure is None:
            return
        if isinstance(failure, DryWorkError):
            raise failure
        raise DryWorkError(f"a part of the run died: {type(failure).__name__}: {failure}") from failure

    def _after_slice(self, piece: Slice) -> None:
        assert self._cerebro is not None
        broker = self._cerebro.broker
        if self._lockstep:
            self._stop_for_limit(broker)  # here only, so that equal runs end with the same slice
        if self._kept is not None:
            self._kept.after_slice(broker.order_count)
        value = broker.getvalue()
        self._flight.flight.note_value(value)
        self._equity.add(piece.end_ns, value)
        if self._observer is not None:
            self._observer.note_slice(piece, value)
        if self._watch is not None:
            self._watch.note_slice(piece.end_ns)
            self._watch.look()
            return
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + 2.0
            at = time.strftime("%Y-%m-%d %H:%M", time.gmtime(piece.end_ns // 1_000_000_000))
            bars = sum(self._cerebro.bars.values())
            self._tell_people(f"{at} UTC  {bars:,} bars  {broker.order_count} orders  equity {value:,.2f}")

    def _stop_for_limit(self, broker: AlpacaPaperTradingBroker) -> None:
        record = broker.risk.stopped_by if broker.risk is not None else None
        if record is not None and not self.stopped_by_limit and self._stop_code is None and self._cerebro is not None:
            self.stopped_by_limit = describe_record(record)
            self._stop_code = EXIT_RISK
            self._cerebro.runstop()


@contextlib.contextmanager
def _stopping_feeds(cerebro: LiveCerebro) -> Iterator[None]:
    # Backtrader calls no `stop` when anything raises.
    try:
        yield
    finally:
        for data in cerebro.datas:
            data.stop()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Stuck
