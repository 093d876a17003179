"""A recorded session, to scrub through: run again once with a collector, and all that changed is kept by slice."""

from __future__ import annotations

import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from dry_work.alpaca.simulated import is_alpaca
from dry_work.broker.flight import Decision
from dry_work.clock import SECOND_NS
from dry_work.dashboard.board import Board, Chart
from dry_work.dashboard.collector import RunCollector
from dry_work.dashboard.sessions import DecisionView, SessionOutline, TurnView
from dry_work.dashboard.snapshot import ChartPart, Delta, FillMark, Head, LogLine, OrderRow, RunFacts, SymbolRow
from dry_work.dashboard.why import Waiting, describe_sent, explain_silence
from dry_work.engine.agents import Agent
from dry_work.engine.moment import describe_item
from dry_work.engine.replay import ReplayRun
from dry_work.engine.replay_flight import DivergedError, Divergence, ReplayFlight, describe_decision
from dry_work.errors import ConfigError
from dry_work.market.messages import Slice
from dry_work.recording.flight_log import FlightReader, Turn

BARS_KEPT = 50_000  # of each symbol
BARS_SHOWN = 400  # up to the slice that is looked at
LINES_SHOWN = 200
ORDERS_SHOWN = 200
HAPPENED_SHOWN = 30


class _TurnClock:
    """Tells the time of the turn at hand, as it was recorded: of its end."""

    def __init__(self, flight: ReplayFlight) -> None:
        self._flight = flight
        self._now_ns = 0

    def time_ns(self) -> int:
        turn = self._flight.turn
        if turn is not None:
            self._now_ns = turn.record.at_ns
        return self._now_ns

    def monotonic(self) -> float:
        return self.time_ns() / SECOND_NS


class _Slice(msgspec.Struct, kw_only=True):
    """What belongs to one slice."""

    turn: int
    time_ms: int
    head: Head
    new_orders: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()
    happened: tuple[str, ...] = ()
    bars: int = 0
    waiting: tuple[Waiting, ...] = ()
    log_total: int = 0


class RecordedSession:
    """What happened in a session, slice by slice. Made by `read_session`; then it may be read from any thread."""

    def __init__(self, name: str, symbols: Sequence[str]) -> None:
        self.name = name
        self.symbols = tuple(symbols)
        self.note = ""  # why it ends before the session did
        self.slices: list[_Slice] = []
        self.rows: dict[str, list[tuple[int, SymbolRow]]] = {symbol: [] for symbol in symbols}
        self.orders: dict[str, list[tuple[int, OrderRow]]] = {}
        self.marks: dict[str, list[tuple[int, FillMark]]] = {symbol: [] for symbol in symbols}
        self.log: list[LogLine] = []
        self.equity: list[list[float]] = []
        self.charts: dict[str, Chart] = {}
        self.board: Board | None = None  # as it was in the end
        self._times: list[int] = []

    def close(self) -> None:
        """All is there."""
        self._times = [each.time_ms for each in self.slices]

    def outline(self) -> SessionOutline:
        """Return what there is to scrub through."""
        return SessionOutline(
            name=self.name + (f": {self.note}" if self.note else ""),
            symbols=self.symbols,
            times_ms=[each.time_ms for each in self.slices],
            turns=[each.turn for each in self.slices],
            marked=[place for place, each in enumerate(self.slices) if each.new_orders or each.decisions],
        )

    def at(self, turn: int, symbol: str) -> TurnView:
        """Return a slice, with the bars of one symbol as they were known then.

        Raises:
            ConfigError: the session has no such slice.
        """
        place = bisect_left(self.slices, turn, key=lambda each: each.turn)
        if place == len(self.slices) or self.slices[place].turn != turn:
            raise ConfigError(f"turn {turn}: the session has no slice in it")
        found = self.slices[place]
        rows = {name: _last(versions, place) for name, versions in self.rows.items()}
        orders = {name: _last(versions, place) for name, versions in self.orders.items()}
        decisions = self._describe_decisions(place, found)
        board = Delta(
            cursor=f"{place}",
            whole=True,
            head=found.head,
            symbols=tuple(row for row in rows.values() if row is not None),
            orders=_choose_orders(order for order in orders.values() if order is not None),
            log=tuple(self.log[max(found.log_total - LINES_SHOWN, 0) : found.log_total]),
            equity=self.equity[: bisect_right(self.equity, float(found.time_ms), key=lambda point: point[0])],
            chart=self._cut_chart(symbol or next(iter(self.symbols), ""), place, rows),
        )
        silence = ""
        if not decisions:
            silence = explain_silence(
                bars=found.bars,
                symbols=len(self.symbols),
                waiting=found.waiting,
                risk=found.head.risk,
                halted={name: row.halted for name, row in rows.items() if row is not None and row.halted},
                open_orders=found.head.open_orders,
            )
        return TurnView(
            turn=turn,
            time_ms=found.time_ms,
            board=board,
            decisions=decisions,
            happened=found.happened[:HAPPENED_SHOWN],
            answer=silence or describe_sent(decisions),
        )

    def _cut_chart(self, symbol: str, place: int, rows: dict[str, SymbolRow | None]) -> ChartPart | None:
        chart, row = self.charts.get(symbol), rows.get(symbol)
        if chart is None or row is None:
            return None
        first, bars = chart.bars.read(max(row.bars - BARS_SHOWN, 0), row.bars)
        marks = self.marks[symbol]
        known = marks[: bisect_right(marks, place, key=lambda each: each[0])]
        return ChartPart(
            symbol=symbol,
            first=first,
            total=row.bars,
            lines=chart.lines,
            bars=bars,
            marks=tuple(mark for _, mark in known[-BARS_SHOWN:]),
            minutes=""
            if self.board is None
            else self.board.trace(symbol, until_ms=self.slices[place].time_ms, bars=row.bars),
        )

    def _describe_decisions(self, place: int, found: _Slice) -> tuple[DecisionView, ...]:
        """Return what was decided in a slice, with what became of it in the end."""
        asked = {each.client_order_id: each for each in found.decisions if each.kind == "submit"}
        legs = {leg.request.client_order_id: name for name, each in asked.items() for leg in each.legs}
        views = []
        for name in found.new_orders:
            versions = self.orders.get(name)
            if versions is None or (name in legs and name not in asked):
                continue  # it is listed with the order that it went out with
            last = versions[-1][1]
            sent = name in asked
            is_refused = last.status in ("rejected", "margin")
            views.append(
                DecisionView(
                    what=_describe_order(last),
                    symbol=last.symbol,
                    verdict="refused" if is_refused else "taken" if sent else "held back",
                    reason=last.reason if is_refused else _describe_end(last),
                    order=name,
                    legs=tuple(
                        _describe_order(self.orders[leg][-1][1]) for leg in legs if leg != name and leg in self.orders
                    )
                    if sent
                    else (),
                    latency=_describe_times(last),
                )
            )
        views += [
            DecisionView(what=describe_decision(each), symbol="", verdict="asked for", order=each.client_order_id)
            for each in found.decisions
            if each.kind != "submit"
        ]
        return tuple(views)


def read_session(
    reader: FlightReader, agent: Agent, *, on_progress: Callable[[int], None] | None = None
) -> RecordedSession:
    """Run a session again and keep what can be seen of it. Main thread.

    Args:
        on_progress: takes the number of slices so far, after each.

    Raises:
        ConfigError: the session cannot be run again.
    """
    name = reader.folder.name
    with tempfile.TemporaryDirectory(prefix="dry-work-session-") as folder:
        reading = _Reading(reader, agent, Path(folder), on_progress)
        try:
            reading.run()
        finally:
            reading.close()
    session = reading.session
    if reading.divergence is not None:
        session.note = f"replayed otherwise than recorded from slice {reading.divergence.slice_number:,} on"
    elif reader.problem:
        session.note = f"recorded up to here only: {reader.problem}"
    if not session.slices:
        raise ConfigError(f"session {name}: no slice can be read of it" + (f", {session.note}" if session.note else ""))
    session.close()
    return session


class _Reading:
    """One replay with a collector."""

    def __init__(
        self, reader: FlightReader, agent: Agent, folder: Path, on_progress: Callable[[int], None] | None
    ) -> None:
        self.divergence: Divergence | None = None
        self._on_progress = on_progress
        flight = self._flight = ReplayFlight(reader.turns(), until_ns=None, on_divergence=self._stop)
        run = self._run = ReplayRun(reader.facts, agent, flight, folder)
        symbols = run.settings.symbols
        self.session = RecordedSession(reader.folder.name, symbols)
        facts = reader.facts
        self._collector = RunCollector(
            RunFacts(
                agent=facts.agent,
                mode=facts.mode,
                symbols=len(symbols),
                agent_id=facts.agent_id,
                params=tuple(facts.all_params.items()),
                started_ms=facts.started_ns // 1_000_000,
                own_time=facts.mode == "local" or not is_alpaca(run.settings.alpaca_url),
                lockstep=facts.lockstep,
            ),
            symbols,
            clock=_TurnClock(flight),
            wake=lambda: None,
            bars_kept=BARS_KEPT,
            phase="recorded",
        )
        feeds = list({data.symbol: data for data in reversed(run.cerebro.datas)}.values())
        self._collector.attach(run.cerebro, run.broker, [feed for feed in feeds if feed.symbol in self.session.rows])
        begin = run.cerebro.on_ready

        def note_ready() -> None:
            begin()
            self._collector.note_ready(run.cerebro.runningstrats)

        run.cerebro.on_ready = note_ready
        flight.on_turn_end = self._end_turn
        self._orders = 0
        self._marks = dict.fromkeys(symbols, 0)
        self._log_total = 0
        self._decisions: list[Decision] = []  # of turns without a slice since the last one
        self._happened: list[str] = []

    def run(self) -> None:
        try:
            self._run.run()
            if self._flight.turn is not None:  # the last one of all has no end: the run is over within it
                self._end_turn(self._flight.turn)
            self._flight.drain()
        except DivergedError as error:
            self.divergence = error.divergence
        self.session.board = self._collector.board
        self.session.charts = dict(self._collector.board.charts)

    def close(self) -> None:
        self._run.close()

    @staticmethod
    def _stop(divergence: Divergence) -> None:
        raise DivergedError(divergence)

    def _end_turn(self, turn: Turn) -> None:
        self._run.broker.link.gateway.work_off(drop=True)
        self._decisions += turn.record.decisions
        self._happened += [describe_item(item.value) for item in turn.items]
        if isinstance(turn.event, Slice):
            self._note_slice(turn, turn.event)
        elif turn.event is not None:
            self._happened.append(f"{type(turn.event).__name__}: {turn.event}")

    def _note_slice(self, turn: Turn, piece: Slice) -> None:
        run, collector, session = self._run, self._collector, self.session
        run.cerebro.step_began_ns = turn.event_ns or turn.record.at_ns
        collector.note_slice(piece, run.broker.getvalue())
        collector.write()
        board, place = collector.board, len(session.slices)
        for symbol, row in board.rows.items():
            if row.seq == board.seq:
                session.rows[symbol].append((place, row))
        for name, order in board.orders.items():
            if order.seq == board.seq:
                session.orders.setdefault(name, []).append((place, order))
        for symbol, seen in self._marks.items():
            first, marks = board.charts[symbol].read_marks(seen)
            self._marks[symbol] = first + len(marks)
            session.marks[symbol] += [(place, mark) for mark in marks]
        self._log_total, lines = board.log.read(self._log_total)
        session.log += lines
        session.equity.append([piece.end_ns / 1e6, board.head.account.equity if board.head.account else 0.0])
        count = run.broker.order_count
        new: tuple[str, ...] = ()
        if count != self._orders:
            new = tuple(str(each["client_order_id"]) for each in run.broker.results()[0][self._orders :])
            self._orders = count
        session.slices.append(
            _Slice(
                turn=turn.record.number,
                time_ms=piece.end_ns // 1_000_000,
                head=board.head,
                new_orders=new,
                decisions=tuple(self._decisions),
                happened=(*_describe_slice(turn, piece), *self._happened),
                bars=len(piece.bars),
                waiting=tuple(_list_waiting(run.strategy)),
                log_total=len(session.log),
            )
        )
        self._decisions, self._happened = [], []
        if self._on_progress is not None:
            self._on_progress(len(session.slices))


def _list_waiting(strategy: Any) -> list[Waiting]:
    """Return the datas that are too short for the strategy's lines, so that `next` is not called."""
    found = []
    for data, period, length in zip(strategy.datas, strategy._minperiods, strategy._dlens, strict=False):
        if length < period:
            found.append(Waiting(data=str(data._name), bars=int(length), needed=int(period)))
    return found


def _describe_slice(turn: Turn, piece: Slice) -> list[str]:
    symbols = ", ".join(bar.symbol for bar in piece.bars[:8])
    more = f" and {len(piece.bars) - 8} more" if len(piece.bars) > 8 else ""
    lines = [f"{len(piece.bars)} bars: {symbols}{more}"]
    newest_ns = max((bar.ts_recv_ns for bar in piece.bars), default=0)
    if newest_ns and turn.event_ns >= newest_ns:
        waited_ms, took_ms = (turn.event_ns - newest_ns) / 1e6, (turn.record.at_ns - turn.event_ns) / 1e6
        lines.append(f"arrival → slice {waited_ms:.1f} ms, slice → end of next {took_ms:.1f} ms")
    return lines


def _last(versions: list[tuple[int, Any]], place: int) -> Any:
    """Return the newest version at a place, None before the first."""
    found = bisect_right(versions, place, key=lambda each: each[0])
    return versions[found - 1][1] if found else None


def _choose_orders(orders: Any) -> tuple[OrderRow, ...]:
    found = list(orders)
    ended = [order for order in found if not order.is_open][-ORDERS_SHOWN:]
    return (*ended, *(order for order in found if order.is_open))


def _describe_order(order: OrderRow) -> str:
    kind = order.type.replace("_", " ")
    prices = [(word, price) for word, price in (("limit", order.limit), ("stop", order.stop)) if price is not None]
    if len(prices) == 1 and prices[0][0] == kind:
        kind = ""
    words = [order.side, f"{order.qty:g}", order.symbol, kind, *(f"{word} {price:g}" for word, price in prices)]
    return " ".join(word for word in words if word)


def _describe_end(order: OrderRow) -> str:
    if order.filled and order.price is not None:
        return f"later {order.status}, {order.filled:g} at {order.price:g}"
    return f"later {order.status}"


def _describe_times(order: OrderRow) -> str:
    parts = [
        f"{word} after {time_ms:,.0f} ms"
        for word, time_ms in (("acknowledged", order.ack_ms), ("filled", order.fill_ms))
        if time_ms is not None
    ]
    return ", ".join(parts)
