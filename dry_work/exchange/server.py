"""The simulated exchange as a service: HTTP and WebSocket on one port, on a thread with a loop of its own.

`ExchangeServer.start`, `stop` and the attributes may be used from any thread. Everything that touches the venue runs on
the loop's thread, one step at a time, so that nothing is locked.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from decimal import Decimal
from typing import Any

import structlog
from aiohttp import web

from dry_work.clock import Clock, SystemClock
from dry_work.errors import ConfigError
from dry_work.exchange.account_api import AccountApi, EquityLog
from dry_work.exchange.answers import RequestBudget, build_middleware
from dry_work.exchange.control import ControlApi
from dry_work.exchange.credentials import Credentials
from dry_work.exchange.data_sockets import DataSockets, StreamLimits
from dry_work.exchange.history import MarketHistory
from dry_work.exchange.latest import LatestApi
from dry_work.exchange.market import Lockstep, MarketPlayer
from dry_work.exchange.rest import TradingApi, describe_asset
from dry_work.exchange.tables import MarketTables
from dry_work.exchange.tape import Tape
from dry_work.exchange.trade_socket import TradeSocket
from dry_work.exchange.venue import RuleSet, Venue
from dry_work.exchange.watchlists import WatchlistApi
from dry_work.feeds.recorded import Recording
from dry_work.feeds.recorded_ticks import TickRecording
from dry_work.market.calendar import SessionCalendar
from dry_work.market.messages import Bar
from dry_work.orders.model import TradeEvent
from dry_work.wire.pubsub import encode_time

_log = structlog.get_logger(__name__)

START_TIMEOUT_S = 10.0
_ANY_HOST = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - only compared with
_CONNECTION_TIMEOUT_S = 1.0  # for requests that run when the server stops


class ExchangeServer:
    """Serves Alpaca's trading API, trade_updates and market data from a recording, and its own control API.

    Args:
        recording: the bars that are played; orders are matched against them alone.
        ticks: trades and quotes that are told beside them.
        rules: rule set of the venue.
        speed: data seconds a second; None is lock-step, as fast as the consumers report.
        consumers: consumers that have to be there before the market starts; None is 1 in lock-step, otherwise 0.
        cash: of a new account.
        keys: secret by key id; None admits any credentials, each key id with an account of its own.
        limits: of the streams; default: none but 10 s to authenticate.
        requests_per_minute: of a key, for trading and for market data each; more are answered 429. None is without
            limit.
        changes_in_flight: cancels and replacements may lose to a fill in the next slice; rule set `alpaca` only.
        consumer_timeout_s: a consumer that was not heard of for so long no longer holds the market.
        on_failure: called once, from the server's thread, when it dies.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        ticks: TickRecording | None = None,
        rules: RuleSet = "backtrader",
        speed: float | None = None,
        consumers: int | None = None,
        cash: Decimal = Decimal(100_000),
        host: str = "127.0.0.1",
        port: int = 0,
        keys: Mapping[str, str] | None = None,
        limits: StreamLimits | None = None,
        requests_per_minute: int | None = None,
        changes_in_flight: bool = False,
        consumer_timeout_s: float = 30.0,
        clock: Clock | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        if speed is not None and not 0 < speed < float("inf"):
            raise ConfigError(f"speed {speed} is not usable: expected a number above 0, or max")
        if consumers is not None and consumers < (1 if speed is None else 0):
            raise ConfigError(f"{consumers} consumers are not enough: with speed max at least 1 has to be expected")
        if not cash.is_finite() or cash < 0:
            raise ConfigError(f"cash {cash} is not usable: expected an amount of at least 0")
        ends = recording.slice_ends()
        if not len(ends):
            raise ConfigError("the recording has no bars: there is nothing to play")
        self.recording = recording
        self.rules = rules
        self.speed = speed
        self.host = host
        self.port = port
        self._slices = len(ends)
        self._start_ns = int(ends[0]) - recording.length_ns
        self._end_ns = int(ends[-1])
        self._ticks = ticks or TickRecording({})
        self._tape = Tape(self._ticks, start_ns=self._start_ns)
        self._changes_in_flight = changes_in_flight
        self._consumer_timeout_s = consumer_timeout_s
        self._on_failure = on_failure
        self._lockstep = Lockstep((1 if speed is None else 0) if consumers is None else consumers)
        self._clock = clock or SystemClock()
        self._limits = limits or StreamLimits()
        self._budget = RequestBudget(requests_per_minute, clock=self._clock)
        self._keys = keys
        self._cash = cash
        self._fills: defaultdict[str, list[TradeEvent]] = defaultdict(list)
        self._equity: dict[str, EquityLog] = {}
        self._fill_count = 0
        self._order_count = 0
        self._started: Future[int] = Future()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._build()

    def _build(self) -> None:
        calendar = SessionCalendar()
        self._venue = Venue(
            rules=self.rules,
            assets=self.recording.symbols,
            emit=self._emit,
            now_ns=self._start_ns,
            is_open=calendar.is_open,
            session_close_ns=calendar.session_close_ns,
            changes_in_flight=self._changes_in_flight,
        )
        self._credentials = Credentials(self._keys, open_account=self._open_account, clock=self._clock)
        limits = self._limits
        self._trades = TradeSocket(
            self._credentials,
            clock=self._clock,
            auth_timeout_s=limits.auth_timeout_s,
            queue_bytes=limits.queue_bytes,
            connections=limits.trade_connections,
            stale_s=limits.stale_s,
        )
        tables = MarketTables(self.recording, self._ticks)
        self._data = DataSockets(
            self._credentials,
            limits=limits,
            open_slice=lambda: self._player.open_slice,
            daily_bar=lambda bar: tables.daily_bar(bar, bar.end_ns),
            on_change=self._wake,
            clock=self._clock,
        )
        self._trading = TradingApi(
            self._venue,
            credentials=self._credentials,
            calendar=calendar,
            opened_ns=self._start_ns,
            count_order=self._count_order,
        )
        self._account = AccountApi(
            self._venue,
            credentials=self._credentials,
            fills=lambda key_id: self._fills[key_id],
            equity=lambda key_id: self._equity[key_id],
        )
        self._watchlists = WatchlistApi(
            self._venue,
            credentials=self._credentials,
            canonical_symbol=self._trading.canonical_symbol,
            describe_asset=describe_asset,
        )
        self._history = MarketHistory(
            tables, credentials=self._credentials, now_ns=self._now_ns, tick_now_ns=self._tick_now_ns
        )
        self._latest = LatestApi(
            tables, credentials=self._credentials, now_ns=self._now_ns, tick_now_ns=self._tick_now_ns
        )
        self._control = ControlApi(
            self._lockstep,
            credentials=self._credentials,
            describe=self.describe,
            canonical_symbol=self._trading.canonical_symbol,
            assets=frozenset(self.recording.symbols),
            on_change=self._wake,
            resend=self._repeat_slice,
        )
        self._player = MarketPlayer(
            self.recording.slices(),
            speed=self.speed,
            lockstep=self._lockstep,
            advance=self._advance,
            publish=self._data.publish,
            is_subscribed=self._data.covers,
            silent_s=self._credentials.silent_s,
            publish_ticks=self._publish_ticks if len(self._tape) else None,
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
        """Listen; returns when clients can connect.

        Raises:
            ConfigError: when host and port cannot be listened on.
        """
        if self._thread is not None:
            raise RuntimeError("the exchange was started before")
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

    def describe(self) -> dict[str, Any]:
        """Return what is played and how far it is, as `GET /dry-work/v1/session` answers it."""
        player = self._player
        return {
            "simulated": True,
            "rules": self.rules,
            "lockstep": self.speed is None,
            "speed": "max" if self.speed is None else self.speed,
            "fingerprint": self.recording.fingerprint,
            "symbols": list(self.recording.symbols),
            "slices": self._slices,
            "state": player.state.value,
            "slice": 0 if player.current is None else player.current.number,
            "start": encode_time(self._start_ns),
            "end": encode_time(self._end_ns),
            "time": encode_time(self._venue.now_ns),
            "registered": self._lockstep.registered,
            "expected": self._lockstep.expected,
            "orders": self._order_count,
            "fills": self._fill_count,
        }

    def _emit(self, key_id: str, event: TradeEvent) -> None:
        if event.execution_id:
            self._fills[key_id].append(event)
            self._fill_count += 1
        self._trades.emit(key_id, event)

    def _open_account(self, key_id: str) -> None:
        self._venue.open_account(key_id, cash=self._cash)
        self._equity[key_id] = EquityLog(self._venue.now_ns, self._cash)

    def _count_order(self, key_id: str) -> None:
        self._order_count += 1
        self._lockstep.count_order(key_id)
        self._player.notify()

    def _advance(self, end_ns: int, bars: Sequence[Bar]) -> str:
        self._venue.advance(end_ns, bars)
        for key_id, log in self._equity.items():
            log.add(end_ns, self._venue.equity(key_id))
        return self._venue.last_event_id

    def _publish_ticks(self, until_ns: int) -> None:
        self._data.publish_ticks(self._tape.take(until_ns))

    def _now_ns(self) -> int:
        return self._venue.now_ns

    def _tick_now_ns(self) -> int:
        return max(self._venue.now_ns, self._tape.time_ns)

    def _wake(self) -> None:
        self._player.notify()

    def _repeat_slice(self) -> None:
        if self._player.open_slice is not None:
            self._data.repeat(self._player.open_slice)

    def _run_thread(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
                return
            _log.exception("exchange failed")
            if self._on_failure is not None:
                self._on_failure(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        app = web.Application(middlewares=[build_middleware(self._budget)])
        apis = (self._trading, self._account, self._watchlists, self._history, self._latest, self._control)
        for part in (*apis, self._trades, self._data):
            part.add_routes(app.router)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_CONNECTION_TIMEOUT_S)
        await runner.setup()
        market: asyncio.Task[None] | None = None
        stopped = asyncio.create_task(self._stop.wait(), name="exchange stop")
        try:
            await self._listen(runner)
            self._started.set_result(runner.addresses[0][1])
            market = asyncio.create_task(self._player.run(), name="market player")
            await asyncio.wait({market, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if market.done():
                market.result()
            await stopped
        finally:
            self._data.close()
            self._trades.close()
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
