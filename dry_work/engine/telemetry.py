"""Metrics, alerts and heartbeat of a run. An observer of the runner: without one, none of this is there.

The engine's thread writes plain values, once in a while; threads of requests and of the heartbeat read them.
"""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import backtrader as bt
import msgspec
import structlog

from dry_work.broker.account_watch import STORE_MESSAGE as RECONCILIATION
from dry_work.broker.account_watch import AccountNote
from dry_work.broker.order_objects import ID_FACT
from dry_work.broker.outcomes import OrderRefused, OrderTaken, Outcome
from dry_work.broker.risk_desk import STORE_MESSAGE as RISK
from dry_work.broker.tickets import symbol_of
from dry_work.clock import SECOND_NS, Clock, SystemClock
from dry_work.engine.observer import RunPlace, overhear_orders
from dry_work.engine.order_lines import OrderLines
from dry_work.engine.run_market import describe_data
from dry_work.engine.telemetry_metrics import STAGES, RunCounts, build_run_metrics
from dry_work.errors import ConfigError, RiskRefusedError
from dry_work.market.calendar import shared_calendar
from dry_work.market.market_state import DataHealth
from dry_work.market.messages import Slice
from dry_work.market.symbols import is_crypto
from dry_work.observability.alerts import Alert, AlertSender
from dry_work.observability.heartbeat import Heartbeat
from dry_work.observability.metrics import Histogram, encode_metrics
from dry_work.observability.metrics_server import MetricsServer
from dry_work.observability.order_trails import OrderTrails, SliceTimes, measure_slice, trace_slice
from dry_work.observability.settings import WatchSettings
from dry_work.observability.tracing import is_tracing, start_tracing
from dry_work.orders.risk import RiskState

LOOK_S = 1.0  # between two looks at what is not free to read
DATA_LOOK_S = 5.0  # between two at all symbols' bars
HANGS_S = 60.0  # without a turn of the loop, which comes every 15 s at least
_FILLED = (bt.Order.Partial, bt.Order.Completed)
_TAKEN = (bt.Order.Accepted, *_FILLED)
SILENT_SYMBOL = "no bar for"  # how a source's word that a symbol is stale begins
# From a millisecond to some minutes.
BOUNDS_S = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    300,
)

_log = structlog.get_logger(__name__)


def _safe(work: Callable[..., None]) -> Callable[..., None]:
    """Let a method of the engine's thread raise nothing: whatever it meets, the run goes on."""

    @functools.wraps(work)
    def call(self: RunTelemetry, *given: Any, **named: Any) -> None:
        try:
            work(self, *given, **named)
        except Exception:
            if work.__name__ not in self.failures:
                _log.exception("the telemetry failed; told once", part=work.__name__)
            self.failures[work.__name__] += 1

    return call


class RunTelemetry:
    """Watches one run. It is a context for whoever makes it, around the run; the rest belongs to the runner.

    Args:
        settings: what is told, and where.
        name: of the agent, for alerts before the run is open.
        clock: the machine's.

    Raises:
        ConfigError: the alerts cannot be sent as they are set.
    """

    def __init__(self, settings: WatchSettings, *, name: str, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._sender = AlertSender(settings.alert_urls, title=name) if settings.alert_urls else None
        self._heartbeat: Heartbeat | None = None
        self._server: MetricsServer | None = None
        self._place: RunPlace | None = None
        self._cerebro: Any = None
        self._broker: Any = None
        self._feeds: Sequence[Any] = ()
        self._source: Any = None
        self._calendar = shared_calendar()
        self._begun_s = self._turn_s = self._slice_s = self._clock.monotonic()
        self._next_look_s = 0.0
        self._is_ready = self._is_over = False
        self._market_ns = 0
        self._equity = 0.0
        self._stages = {name: Histogram(BOUNDS_S) for name in STAGES}
        self._states: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()  # of its own parts
        self._source_counts: Mapping[str, int] = {}
        self._data: DataHealth | None = None
        self._next_data_s = 0.0
        self._connected = True
        self._lost_s = 0.0
        self._is_lost_told = self._is_stale = False
        self._trails = OrderTrails()
        self._lines = OrderLines(self._trails, agent=self._agent_id, has_lines=settings.has_lines)
        self.describe_end: Callable[[], str] = lambda: ""  # says why a run ended that did not fail
        self._stop_tracing: Callable[[], None] = lambda: None

    # The runner

    def open(self, place: RunPlace) -> None:
        """Begin to serve and to send.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        self._place = place
        settings = self._settings
        if settings.has_metrics:
            self._server = MetricsServer(
                settings.metrics_host,
                settings.metrics_port,
                render=self._render,
                is_healthy=self._is_turning,
                is_ready=lambda: self._is_ready and self._connected and self._is_turning(),
            )
            place.tell(f"metrics: http://{settings.metrics_host}:{self._server.port}/metrics")
        if settings.heartbeat_url:
            self._heartbeat = Heartbeat(
                settings.heartbeat_url,
                every_s=settings.heartbeat_s,
                flows=self._flows,
                on_missed=lambda why: self._alert("heartbeat", why),
            )

    @property
    def metrics_port(self) -> int:
        """The port of the metrics, 0 without them."""
        return self._server.port if self._server is not None else 0

    def tell(self, line: str) -> None:
        """Take a line for people."""

    def attach(self, cerebro: Any, broker: Any, feeds: Sequence[Any]) -> None:
        """Follow a Cerebro that is not running yet."""
        self._cerebro, self._broker, self._feeds = cerebro, broker, feeds
        self._source = feeds[0].p.source if feeds else None
        cerebro.adddatacb(self._note_status)
        overhear_orders(broker, self._note_order)

    @_safe
    def note_ready(self, strategies: Iterable[Any]) -> None:
        """Take note that slices may come."""
        self._broker.watch_orders(on_sent=self._note_sent, on_note=self._note_account)
        self._is_ready = True
        self._slice_s = self._clock.monotonic()

    @_safe
    def note_slice(self, piece: Slice, value: float) -> None:
        """Take note of a slice that was delivered."""
        now_ns = time.time_ns()
        began_ns = self._cerebro.step_began_ns
        times = SliceTimes(
            end_ns=piece.end_ns,
            number=piece.number,
            hub_ns=max((bar.ts_hub_ns for bar in piece.bars), default=0),
            received_ns=max((bar.ts_recv_ns for bar in piece.bars), default=0),
            began_ns=began_ns,
            done_ns=now_ns,
        )
        for stage, seconds in measure_slice(times, own_time=self._has_own_time).items():
            self._stages[stage].observe(seconds)
        if is_tracing():
            link = trace_slice(times, agent=self._agent_id(), bars=len(piece.bars), slice_end_ns=piece.end_ns)
            times = msgspec.structs.replace(times, link=link)
        self._trails.note_slice(times)
        self._market_ns = piece.end_ns
        self._equity = value
        if self._settings.has_lines:
            _log.info(
                "slice",
                agent=self._agent_id(),
                end_ns=piece.end_ns,
                number=piece.number,
                bars=len(piece.bars),
                hub_ns=times.hub_ns,
                received_ns=times.received_ns,
                began_ns=began_ns,
                done_ns=now_ns,
                orders=self._broker.order_count,
                equity=value,
                **(times.link.fields if times.link is not None else {}),
            )
        self._slice_s = self._clock.monotonic()
        if self._is_stale:
            self._is_stale = False
            self._alert("stale_data", "market data flow again", "back")

    @_safe
    def look(self) -> None:
        """Look for what nobody tells, unless that was just done."""
        now_s = self._turn_s = self._clock.monotonic()
        self._lines.write(now_s, own_time=self._has_own_time, gate=self._broker.risk is not None)
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + LOOK_S
        if self._source is not None and self._server is not None:
            self._source_counts = self._source.counters()
            if self._place is not None and now_s >= self._next_data_s:
                self._next_data_s = now_s + DATA_LOOK_S
                self._data = describe_data(self._cerebro, self._place.settings)
        if not self._connected and not self._is_lost_told and now_s - self._lost_s >= self._settings.lost_s:
            self._is_lost_told = True
            self._alert("stream_lost", f"no market data connection for {self._settings.lost_s:g} s")
        if not self._is_stale and self._is_silent(now_s):
            self._is_stale = True
            self._alert("stale_data", f"no slice for {self._settings.stale_s:g} s while a market is open")

    def finish(self) -> None:
        """Take note of the end."""
        self._lines.write(None, own_time=self._has_own_time, gate=self._broker is not None and bool(self._broker.risk))
        self._is_over = True
        self._is_ready = False

    # Who made it

    def __enter__(self) -> Self:
        if self._settings.tracing is not None:
            self._stop_tracing = start_tracing(self._settings.tracing)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Tell how the run ended, and close."""
        if error is not None:
            text = str(error) if isinstance(error, Exception) else type(error).__name__
            self._alert("run_failed", f"the run failed: {text}", is_last=True)
        else:
            self._alert("run_ended", self.describe_end() or "the run has ended", is_last=True)
        self.close()

    def close(self) -> None:
        """End all threads. May be called twice."""
        self._is_over = True
        if self._heartbeat is not None:
            self._heartbeat.close()
        if self._server is not None:
            self._server.close()
        if self._sender is not None:
            self._sender.close()
        self._stop_tracing()

    # What happens

    def _alert(self, event: str, text: str, subject: str = "", *, is_last: bool = False) -> None:
        if self._sender is not None:
            self._sender.send(Alert(event=event, text=text, subject=subject, is_last=is_last))

    @_safe
    def _note_status(self, data: Any, status: int, *args: Any, **_: Any) -> None:
        if status == bt.DataBase.DELAYED and args and str(args[0]).startswith(SILENT_SYMBOL):
            self._alert("stale_data", f"{symbol_of(data)}: {args[0]}", symbol_of(data))
        connected = status not in (bt.DataBase.DISCONNECTED, bt.DataBase.CONNBROKEN)
        if connected == self._connected:
            return  # each feed tells of the same change
        self._connected = connected
        if not connected:
            self._lost_s = self._clock.monotonic()
            self._is_lost_told = False
        elif self._is_lost_told:
            self._is_lost_told = False
            self._alert("stream_lost", "the market data connection is back", "back")

    @_safe
    def _note_order(self, order: Any) -> None:
        name = order.getstatusname().lower()
        self._states[name] += 1
        is_over = not order.alive()
        identity = str(order.info.get(ID_FACT, ""))
        ended = self._trails.note_told(
            identity,
            now_ns=time.time_ns(),
            is_accepted=order.status in _TAKEN,
            is_filled=order.status in _FILLED,
            is_over=is_over,
        )
        for stage in ended:
            self._stages[stage].observe(self._trails.find(identity).measure(stage) or 0.0)
        if is_over and (self._settings.has_lines or is_tracing()):
            self._lines.add(order, name, identity, slice_end_ns=self._market_ns)
        elif is_over:
            self._trails.drop(identity)
        if order.status in (bt.Order.Rejected, bt.Order.Margin):
            symbol = symbol_of(order.data)
            reason = order.info.get("reject_reason") or name
            what = f"{order.ordtypename().lower()} {abs(order.created.size):g} {symbol}"
            self._alert("order_rejected", f"{what}: {reason}", symbol)

    @property
    def _has_own_time(self) -> bool:
        return self._place is None or self._place.own_time

    def _agent_id(self) -> str:
        return self._place.agent_id if self._place is not None else ""

    @_safe
    def _note_sent(self, name: str, outcome: Outcome, since_s: float, begun_s: float, done_s: float) -> None:
        # The order worker's thread: dictionaries and histograms of its own stages are written by it alone.
        self._stages["queue"].observe(max(0.0, begun_s - since_s))
        self._stages["request"].observe(max(0.0, done_s - begun_s))
        wall_ns = time.time_ns() - round(time.monotonic() * SECOND_NS)
        self._trails.note_sent(
            name,
            placed_ns=wall_ns + round(since_s * SECOND_NS),
            sent_ns=wall_ns + round(begun_s * SECOND_NS),
            answered_ns=wall_ns + round(done_s * SECOND_NS),
            is_passed=not isinstance(getattr(outcome, "error", None), RiskRefusedError),
        )
        if not isinstance(outcome, OrderTaken | OrderRefused):
            self._alert("order_rejected", f"order {name}: what became of it is not known", name)

    @_safe
    def _note_account(self, message: str, record: object) -> None:
        if message == RISK:
            state = getattr(record, "state", None)
            text = f"{getattr(state, 'value', state)} by {getattr(record, 'who', '')}: {getattr(record, 'reason', '')}"
            event = "halt" if state in (RiskState.HALTED, RiskState.FLATTENING) else "risk"
            self._alert(event, text, str(getattr(record, "id", "")))
        elif message == RECONCILIATION and isinstance(record, AccountNote):
            event = "halt" if record.kind in ("halt", "resume") else "reconciliation"
            self._alert(event, f"{record.symbol}: {record.text}", f"{record.kind} {record.symbol}")

    def _is_silent(self, now_s: float) -> bool:
        place = self._place
        if place is None or not self._is_ready or self._is_over or place.own_time:
            return False
        return now_s - self._slice_s >= self._settings.stale_s and self._is_market_open(place.settings.symbols)

    def _is_market_open(self, symbols: Sequence[str]) -> bool:
        if any(map(is_crypto, symbols)):
            return True
        try:
            session = self._calendar.session_at(self._clock.time_ns())
        except ConfigError:  # a time that the calendar does not know
            return True
        # The first slice comes some time after the bell.
        return session is not None and self._clock.time_ns() - session.open_ns >= self._settings.stale_s * SECOND_NS

    def _is_turning(self) -> bool:
        """Tell whether the loop turns; before the run is ready it cannot hang."""
        return self._is_over or not self._is_ready or self._clock.monotonic() - self._turn_s < HANGS_S

    def _flows(self) -> bool:
        """Tell whether all is well for the heartbeat: a closed market is no fault."""
        now_s = self._clock.monotonic()
        return self._is_ready and self._connected and self._is_turning() and not self._is_silent(now_s)

    # The threads of requests

    def _render(self) -> bytes:
        return encode_metrics(build_run_metrics(self._count()))

    def _count(self) -> RunCounts:
        place, broker, cerebro = self._place, self._broker, self._cerebro
        now_ns = self._clock.time_ns()
        if place is not None and place.own_time:
            now_ns = self._market_ns
        ages = sorted(
            ((max(0, now_ns - feed.last_end_ns) / SECOND_NS, feed.symbol) for feed in self._feeds if feed.last_end_ns),
            reverse=True,
        )
        risk = getattr(broker, "risk", None)
        journal_bytes = 0
        if place is not None:
            journal_bytes = sum(
                path.stat().st_size for path in sorted(place.folder.glob("*.sqlite*")) if path.is_file()
            )
        return RunCounts(
            agent=place.agent_id if place is not None else "",
            mode=place.settings.mode if place is not None else "",
            is_ready=self._is_ready,
            is_connected=self._connected,
            turn_age_s=max(0.0, self._clock.monotonic() - self._turn_s),
            ages_s={symbol: age for age, symbol in ages[: self._settings.metrics_symbols]},
            oldest_s=ages[0][0] if ages else 0.0,
            stages={name: histogram.read() for name, histogram in self._stages.items()},
            slices=cerebro.slices if cerebro is not None else 0,
            late_bars=cerebro.late_bars if cerebro is not None else 0,
            data=self._data or DataHealth(),
            source=self._source_counts,
            order_states=dict(self._states),
            orders=broker.order_count if broker is not None else 0,
            open_orders=broker.open_order_count if broker is not None else 0,
            broker=dict(broker.counters) if broker is not None else {},
            risk_state=risk.brake.state.value if risk is not None else "",
            limits_used=_measure_limits(risk, self._equity),
            halted_symbols=len(broker.halted_symbols) if broker is not None else 0,
            equity=self._equity,
            memory_bytes=_read_memory(),
            journal_bytes=journal_bytes,
            alerts=(
                {"sent": self._sender.sent, "failed": self._sender.failed, "held_back": self._sender.held_back}
                if self._sender is not None
                else {}
            ),
            heartbeats=(
                {"sent": self._heartbeat.sent, "failed": self._heartbeat.failed} if self._heartbeat is not None else {}
            ),
        )


def _measure_limits(risk: Any, equity: float) -> dict[str, float]:
    marks = risk.brake.marks if risk is not None else None
    if marks is None or not equity:
        return {}
    used: dict[str, float] = {}
    for name, bound, since in (
        ("day_loss", risk.limits.day_loss, marks.day_equity),
        ("drawdown", risk.limits.drawdown, marks.peak),
    ):
        if bound is not None and (most := float(bound.amount(since))) > 0:
            used[name] = max(0.0, (float(since) - equity) / most)
    return used


def _read_memory() -> int:
    """Return the resident bytes of this process, 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
