"""The simulated exchange as a service: HTTP and WebSocket on one port, on a thread with a loop of its own.

`ExchangeServer.start`, `stop` and the attributes may be used from any thread. Everything that touches the venue runs on
the loop's thread, one step at a time, so that nothing is locked.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from dry_work.clock import Clock, SystemClock
from dry_work.errors import ConfigError
from dry_work.exchange.alpaca_matcher import Matching
from dry_work.exchange.answers import RequestBudget, build_middleware
from dry_work.exchange.apis import ExchangeApis
from dry_work.exchange.chance import PartialFills
from dry_work.exchange.commands import FORMAT, Command, LogHeader, OpenAccount
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.data_sockets import DataSockets, StreamLimits
from dry_work.exchange.event_session import HEARTBEAT_S
from dry_work.exchange.event_stream import EventStreams
from dry_work.exchange.fault_hooks import answer_with_faults
from dry_work.exchange.fault_store import FaultStore
from dry_work.exchange.faults import Fault, FaultPlan
from dry_work.exchange.market import MarketPlayer, OpenSlice
from dry_work.exchange.offerings import Offerings
from dry_work.exchange.option_contracts import OptionChains
from dry_work.exchange.order_rules import RefusedError
from dry_work.exchange.state import ExchangeState
from dry_work.exchange.state_log import StateLog
from dry_work.exchange.sub_accounts import SubAccounts
from dry_work.exchange.tables import MarketTables
from dry_work.exchange.tape import Tape
from dry_work.exchange.tick_matcher import fingerprint_ticks
from dry_work.exchange.trade_socket import TradeSocket
from dry_work.exchange.venue import RuleSet
from dry_work.feeds.recorded import Recording
from dry_work.feeds.recorded_ticks import TickRecording
from dry_work.market.calendar import shared_calendar
from dry_work.orders.model import TradeEvent
from dry_work.pulse import keep_pulse
from dry_work.wire.alpaca_rest import CODE_INTERNAL
from dry_work.wire.pubsub import encode_time

_log = structlog.get_logger(__name__)

START_TIMEOUT_S = 10.0
_ANY_HOST = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - only compared with
_CONNECTION_TIMEOUT_S = 1.0  # for requests that run when the server stops


class ExchangeServer:
    """Serves Alpaca's trading API, trade_updates and market data from a recording, and its own control API.

    Args:
        recording: the bars that are played, and matched against.
        ticks: trades and quotes that are told beside them, and with `matching` ticks matched against.
        rules: rule set of the venue.
        speed: data seconds a second; None is lock-step, as fast as the consumers report.
        skip_gaps: with a speed, nights and weekends pass at once.
        consumers: consumers that have to be there before the market starts; None is 1 in lock-step, otherwise 0.
        cash: of a new account.
        keys: secret by key id; None admits any credentials, each key id with an account of its own.
        accounts: sub-accounts that a Broker API key begins with.
        limits: of the streams; default: none but 10 s to authenticate.
        requests_per_minute: of a key, for trading and for market data each; more are answered 429. None is without
            limit.
        changes_in_flight: cancels and replacements may lose to a fill in the next slice; rule set `alpaca` only.
        matching: `bars` fills whole orders, `volume` no more than a bar's volume, `ticks` against recorded trades and
            quotes where a slice has some, else as `volume`; the last two with rule set `alpaca` only.
        wash_trades: take orders that would trade with the account's own; rule set `alpaca` only.
        offerings: options, assets, news and what else there is beside the recording; default: synthetic options.
        consumer_timeout_s: a consumer that was not heard of for so long no longer holds the market.
        state_dir: folder of the log from which an exchange that was killed goes on; None keeps nothing.
        heartbeat_s: how long nothing comes on a quiet stream of server-sent events.
        faults: what goes wrong on purpose, from the start; see `/dry-work/v1/faults` for later.
        on_failure: called once, from the server's thread, when it dies.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        ticks: TickRecording | None = None,
        rules: RuleSet = "backtrader",
        speed: float | None = None,
        skip_gaps: bool = False,
        consumers: int | None = None,
        cash: Decimal = Decimal(100_000),
        host: str = "127.0.0.1",
        port: int = 0,
        keys: Mapping[str, str] | None = None,
        accounts: int = 1,
        limits: StreamLimits | None = None,
        requests_per_minute: int | None = None,
        changes_in_flight: bool = False,
        matching: Matching = "bars",
        wash_trades: bool = False,
        offerings: Offerings | None = None,
        consumer_timeout_s: float = 30.0,
        state_dir: str | Path | None = None,
        heartbeat_s: float = HEARTBEAT_S,
        faults: Sequence[Fault] = (),
        clock: Clock | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        if speed is not None and not 0 < speed < float("inf"):
            raise ConfigError(f"speed {speed} is not usable: expected a number above 0, or max")
        if skip_gaps and speed is None:
            raise ConfigError("gaps are skipped with a speed alone: with speed max they take no time")
        if consumers is not None and consumers < (1 if speed is None else 0):
            raise ConfigError(f"{consumers} consumers are not enough: with speed max at least 1 has to be expected")
        if not cash.is_finite() or cash < 0:
            raise ConfigError(f"cash {cash} is not usable: expected an amount of at least 0")
        self.recording = recording
        self.rules = rules
        self.speed = speed
        self.host = host
        self.port = port
        self._limits = limits or StreamLimits()
        self._consumer_timeout_s = consumer_timeout_s
        self._heartbeat_s = heartbeat_s
        self._sub_accounts = SubAccounts(accounts, open_account=self._open_account)
        self._on_failure = on_failure
        self._clock = clock or SystemClock()
        self._budget = RequestBudget(requests_per_minute, clock=self._clock)
        self._offerings = offerings or Offerings()
        if self._offerings.partial_fills and rules != "alpaca":
            raise ConfigError("only the rule set alpaca fills some orders in part first")
        self._header = LogHeader(
            format=FORMAT,
            fingerprint=recording.fingerprint,
            rules=rules,
            cash=cash,
            changes_in_flight=changes_in_flight,
            matching=matching,
            ticks=fingerprint_ticks(ticks) if ticks is not None and matching == "ticks" else "",
            wash_trades=wash_trades,
            options=self._offerings.options and rules == "alpaca",
            assets=self._offerings.assets.fingerprint,
            partial_fills=self._offerings.partial_fills,
            seed=self._offerings.seed if self._offerings.partial_fills else 0,
        )
        self._matching: Matching = matching
        self._faults = FaultPlan(faults)
        self._fault_store = None if state_dir is None else FaultStore(state_dir, self._faults)
        self._log = None if state_dir is None else StateLog(state_dir)
        self._log_error: ConfigError | None = None
        self._started: Future[int] = Future()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        expected = (1 if speed is None else 0) if consumers is None else consumers
        self._build(ticks or TickRecording({}), expected=expected, cash=cash, keys=keys, skip_gaps=skip_gaps)
        self.resumed = False  # the state of an earlier run was found

    def _build(
        self, ticks: TickRecording, *, expected: int, cash: Decimal, keys: Mapping[str, str] | None, skip_gaps: bool
    ) -> None:
        calendar = shared_calendar()
        tables = MarketTables(self.recording, ticks)
        chains = OptionChains(self.recording, calendar, is_synthetic=self._header.options)
        state = self._state = ExchangeState(
            self.recording,
            tables=tables,
            rules=self.rules,
            cash=cash,
            expected=expected,
            calendar=calendar,
            changes_in_flight=self._header.changes_in_flight,
            matching=self._matching,
            ticks=ticks,
            refuse_wash_trades=not self._header.wash_trades,
            chains=chains,
            traits=self._offerings.assets,
            partial_fills=PartialFills(self._header.partial_fills, self._header.seed),
            write=None if self._log is None else self._write,
            tell=self._emit,
        )
        venue = state.venue
        self._tape = Tape(ticks, start_ns=state.start_ns)
        self._credentials = Credentials(
            keys, open_account=self._open_account, sub_accounts=self._sub_accounts, clock=self._clock
        )
        limits = self._limits
        self._trades = TradeSocket(
            self._credentials,
            open_slice=lambda: self._player.open_slice,
            account=lambda key_id: state.accounts[key_id],
            last_event_id=lambda: venue.last_event_id,
            clock=self._clock,
            faults=self._faults,
            auth_timeout_s=limits.auth_timeout_s,
            queue_bytes=limits.queue_bytes,
            connections=limits.trade_connections,
            stale_s=limits.stale_s,
        )
        self._data = DataSockets(
            self._credentials,
            limits=limits,
            open_slice=lambda: self._player.open_slice,
            daily_bar=lambda bar: tables.daily_bar(bar, bar.end_ns),
            on_change=self._wake,
            clock=self._clock,
            faults=self._faults,
        )
        self._events = EventStreams(
            self._credentials,
            accounts=state.accounts,
            open_slice=lambda: self._player.open_slice,
            last_event_id=lambda: venue.last_event_id,
            now_ns=self._now_ns,
            faults=self._faults,
            queue_bytes=limits.queue_bytes,
            heartbeat_s=self._heartbeat_s,
        )
        self._apis = ExchangeApis(
            state,
            self.recording,
            tables=tables,
            chains=chains,
            calendar=calendar,
            offerings=self._offerings,
            sockets=self._data,
            credentials=self._credentials,
            faults=self._faults,
            execute=self._execute,
            describe=self.describe,
            resend=self._repeat_slice,
            strike=self._strike,
            now_ns=self._now_ns,
            tick_now_ns=self._tick_now_ns,
        )
        self._skip_gaps = skip_gaps
        self._player = self._build_player()

    def _build_player(self) -> MarketPlayer:
        return MarketPlayer(
            self._state,
            speed=self.speed,
            publish=self._publish,
            is_subscribed=self._data.covers,
            silent_s=self._credentials.silent_s,
            publish_ticks=self._publish_ticks if len(self._tape) else None,
            skip_gaps=self._skip_gaps,
            consumer_timeout_s=self._consumer_timeout_s,
        )

    @property
    def url(self) -> str:
        """Base URL of the HTTP APIs, for clients on this machine."""
        return f"http://{self._address}"

    @property
    def stream_url(self) -> str:
        """Base URL of the WebSockets, for clients on this machine."""
        return f"ws://{self._address}"

    @property
    def _address(self) -> str:
        host = _ANY_HOST.get(self.host, self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def start(self) -> None:
        """Take up the state of an earlier run, if there is one, and listen; returns when clients can connect.

        Raises:
            ConfigError: when host and port cannot be listened on, or the state directory cannot be used.
            LeaseHeldError: when another exchange has the state directory.
        """
        if self._thread is not None:
            raise RuntimeError("the exchange was started before")
        if self._log is not None:
            self._resume(self._log)
        self._thread = threading.Thread(target=self._run_thread, name="exchange", daemon=True)
        self._thread.start()
        self.port = self._started.result(START_TIMEOUT_S)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Close all connections and end the thread. May be called twice, and before `start`."""
        thread, loop, stop = self._thread, self._loop, self._stop
        if thread is None or thread is threading.current_thread():
            return
        if loop is not None and stop is not None and thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(stop.set)
        thread.join(timeout_s)
        if thread.is_alive():
            _log.warning("exchange did not stop in time", timeout_s=timeout_s)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve all that the exchange has on a router, as `start` does on its own."""
        for part in (self._apis, self._trades, self._events, self._data):
            part.add_routes(router)

    def describe(self) -> dict[str, Any]:
        """Return what is played and how far it is, as `GET /dry-work/v1/session` answers it."""
        state = self._state
        return {
            "simulated": True,
            "rules": self.rules,
            "lockstep": self.speed is None,
            "speed": "max" if self.speed is None else self.speed,
            "fingerprint": self.recording.fingerprint,
            "symbols": list(self.recording.symbols),
            "slices": state.slices,
            "state": self._player.state.value,
            "slice": 0 if state.current is None else state.current.number,
            "start": encode_time(state.start_ns),
            "end": encode_time(state.end_ns),
            "time": encode_time(state.venue.now_ns),
            "registered": state.lockstep.registered,
            "expected": state.lockstep.expected,
            "orders": state.order_count,
            "fills": state.fill_count,
        }

    def _resume(self, log: StateLog) -> None:
        commands = log.open(self._header)
        try:
            if self._fault_store is not None:
                self._fault_store.load()
        except ConfigError:
            log.close()
            raise
        try:
            self._state.replay(commands)
        except ConfigError as error:
            log.close()
            raise ConfigError(f"{log.path}: {error}; give another --state-dir to begin anew") from error
        self.resumed = bool(commands)
        self._credentials.restore(self._state.accounts)
        self._tape.take(self._state.venue.now_ns)
        self._apis.offered.skip(self._state.venue.now_ns)
        self._player = self._build_player()

    def _write(self, command: Command, relied_on: bool) -> None:
        assert self._log is not None
        if self._log_error is None:
            try:
                self._log.append(command, sync=relied_on)
            except OSError as error:
                # What is not on the disk must not happen, and nothing after it.
                self._log_error = ConfigError(f"{self._log.path} cannot be written: {error.strerror or error}")
                if self._stop is not None:
                    self._stop.set()
        if self._log_error is not None:
            raise RefusedError(500, CODE_INTERNAL, "internal server error occurred")

    def _execute(self, command: Command) -> Any:
        try:
            return self._state.execute(command)
        finally:
            self._wake()

    def _emit(self, key_id: str, event: TradeEvent) -> None:
        self._trades.emit(key_id, event)
        self._events.emit(key_id, event)

    def _open_account(self, key_id: str, details: dict[str, Any] | None = None) -> None:
        self._state.execute(OpenAccount(key_id=key_id, details=details or {}))

    def _publish(self, current: OpenSlice) -> None:
        self._data.publish(current)
        self._apis.offered.publish(current.end_ns)
        self._trades.tell_slice(current)
        self._events.tell_slice(current)

    def _publish_ticks(self, until_ns: int) -> None:
        self._data.publish_ticks(self._tape.take(until_ns))

    def _now_ns(self) -> int:
        return self._state.venue.now_ns

    def _tick_now_ns(self) -> int:
        return max(self._state.venue.now_ns, self._tape.time_ns)

    def _strike(self) -> None:
        self._trades.strike()
        self._events.strike()
        self._data.strike()

    def _wake(self) -> None:
        self._player.notify()

    def _repeat_slice(self) -> None:
        if self._player.open_slice is not None:
            self._data.repeat(self._player.open_slice)

    def _run_thread(self) -> None:
        try:
            try:
                asyncio.run(self._serve())
            finally:
                if self._fault_store is not None:
                    self._fault_store.save()
                if self._log is not None:
                    self._log.close()
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
                return
            if error is self._log_error:
                _log.error("exchange failed", reason=str(error))
            else:
                _log.exception("exchange failed")
            if self._on_failure is not None:
                self._on_failure(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        keep_pulse(self._loop)
        self._stop = asyncio.Event()
        app = web.Application(middlewares=[build_middleware(self._budget, partial(answer_with_faults, self._faults))])
        self.add_routes(app.router)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_CONNECTION_TIMEOUT_S)
        await runner.setup()
        market: asyncio.Task[None] | None = None
        stopped = asyncio.create_task(self._stop.wait(), name="exchange stop")
        try:
            await self._listen(runner)
            self._started.set_result(runner.addresses[0][1])
            market = asyncio.create_task(self._player.run(), name="market player")
            await asyncio.wait({market, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if self._log_error is None and market.done():
                market.result()
            await stopped
            if self._log_error is not None:
                raise self._log_error
        finally:
            self._data.close()
            self._trades.close()
            self._events.close()
            await runner.cleanup()
            tasks = [task for task in (market, stopped) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, runner: web.AppRunner) -> None:
        try:
            await web.TCPSite(runner, self.host, self.port).start()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                message = f"port {self.port} on {self.host} is in use: stop what listens there, or give another --port"
            else:
                message = f"the exchange cannot listen on {self.host} (--host) port {self.port} (--port): {error}"
            raise ConfigError(message) from error
