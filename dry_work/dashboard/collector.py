"""Writes down what a run does, for the dashboard. Engine thread only, but for what says otherwise; never waits.

After a slice a bar costs some microseconds. Everything else is done some times a second, for what has changed alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import backtrader as bt
import msgspec

from dry_work.broker.tickets import position_key
from dry_work.clock import Clock
from dry_work.dashboard.board import Board, Chart
from dry_work.dashboard.indicators import DrawnLine, list_lines
from dry_work.dashboard.latency import StageTimes
from dry_work.dashboard.limits import measure_limits
from dry_work.dashboard.minutes import FILLED as FILLED_LETTER
from dry_work.dashboard.minutes import LATE
from dry_work.dashboard.order_watch import ACKNOWLEDGED, FILLED, OrderWatch
from dry_work.dashboard.snapshot import AccountView, BarCounts, Head, LogLine, RiskView, RunFacts, SymbolRow
from dry_work.dashboard.trails import BARS_KEPT
from dry_work.engine.observer import overhear_orders
from dry_work.engine.progress import describe_order
from dry_work.feeds.base import line_time_ns
from dry_work.market.completeness import MarketHours
from dry_work.market.messages import Bar, Slice
from dry_work.market.symbols import contract_size, is_crypto
from dry_work.orders.client_ids import parse_client_order_id
from dry_work.orders.risk import trading_day

LOOK_S = 0.25  # between two looks while somebody reads
UNSEEN_S = 2.0  # the same while nobody does
_STATISTICS_S = 1.0

ARRIVAL, BARRIER, NEXT = "bar's end → arrival", "arrival → slice", "slice → end of next"
HUB, TRANSPORT = "bar's end → hub", "hub → arrival"  # where the way here tells


class RunCollector:
    """Follows one run.

    Args:
        facts: of the run.
        symbols: in order.
        clock: the machine's.
        wake: lets the engine's loop turn; from any thread.
        bars_kept: of each symbol.
        phase: that it is in once it is ready.
    """

    def __init__(
        self,
        facts: RunFacts,
        symbols: Sequence[str],
        *,
        clock: Clock,
        wake: Callable[[], None],
        bars_kept: int = BARS_KEPT,
        phase: str = "running",
    ) -> None:
        self.board = Board(Head(seq=1, run=facts), symbols)
        self.readers = 0  # that look now; written by the server
        self.failure: Exception | None = None  # the first one that was met outside of the methods below
        self._facts = facts
        self._clock = clock
        self._wake = wake
        self._is_behind = False
        self._looked_s = -math.inf
        self._statistics_s = 0.0
        self._turned_s = clock.monotonic()
        self._slices = 0
        self._market_ns = 0
        self._value = 0.0
        self._day = 0
        self._day_equity = 0.0
        self._worth: dict[str, float] = {}  # signed value of positions
        self._feed = self._feed_detail = ""
        self._bars_kept = bars_kept
        self._ready_phase = phase
        self._phase, self._detail = "starting", ""
        self._stages = StageTimes((ARRIVAL, HUB, TRANSPORT, BARRIER, NEXT, ACKNOWLEDGED, FILLED))
        self._latency: tuple[Any, ...] = ()
        self._memory_bytes = 0
        self._drawn: Mapping[str, list[DrawnLine]] = {}
        self._lines: dict[str, list[DrawnLine]] = {}
        self._bars: dict[str, Bar] = {}  # newest of each symbol
        self._last_ms: dict[str, float] = {}
        self._delays: dict[str, float] = {}
        self._stirred: set[str] = set()
        self._orders = OrderWatch(self.board, self._stages, clock=clock, own_time=facts.own_time)
        self._counted_ns = 0  # end of the slice up to which the rows' bars are counted
        self._halted: dict[str, str] = {}
        self._paused: dict[str, str] = {}
        self._cerebro: Any = None
        self._broker: Any = None
        self._feeds: dict[str, Any] = {}

    # Connecting

    def attach(self, cerebro: Any, broker: Any, feeds: Sequence[Any]) -> None:
        """Follow a Cerebro that is not running yet, with one feed for each symbol."""
        self._cerebro, self._broker = cerebro, broker
        self._feeds = {feed.symbol: feed for feed in feeds}
        self._stirred.update(self._feeds)
        self.board.rows = {symbol: SymbolRow(seq=1, symbol=symbol) for symbol in self._feeds}  # in their order
        cerebro.adddatacb(partial(self._try, self._note_status))
        overhear_orders(broker, partial(self._try, self._note_order))
        self.board.nudge = self._nudge
        self.board.engine_age_s = lambda: self._clock.monotonic() - self._turned_s
        self.board.read_risk = self._overlay_risk
        hours = MarketHours()
        if not all(map(is_crypto, self._feeds)):
            hours.load()  # now, and not between two slices
        self.board.is_open = hours.is_open

    def _try(self, note: Callable[..., None], *given: Any, **named: Any) -> None:
        """Take note of something in the midst of Backtrader's own work, which goes on whatever comes of it."""
        try:
            note(*given, **named)
        except Exception as error:
            if self.failure is None:
                self.failure = error

    def note_ready(self, strategies: Iterable[Any]) -> None:
        """Take note of the strategies, after the warm-up and before the first slice."""
        self._phase = self._ready_phase
        self._drawn = list_lines(strategies)
        for symbol, feed in self._feeds.items():
            lines = list(self._drawn.get(symbol, ()))
            self._lines[symbol] = lines
            chart = Chart(tuple(line.facts for line in lines), kept=self._bars_kept)
            self._fill_chart(chart, feed, lines)
            self.board.charts[symbol] = chart
        for order in self._broker.get_orders_open():
            self._orders.note_open(order)

    def _fill_chart(self, chart: Chart, feed: Any, lines: list[DrawnLine]) -> None:
        """Draw the bars of the warm-up."""
        size = min(len(feed), BARS_KEPT)
        if not size:
            return
        names = ("open", "high", "low", "close", "volume")
        columns = [[line_time_ns(at) / 1e6 for at in feed.datetime.get(size=size)]]
        columns += [list(getattr(feed, name).get(size=size)) for name in names]
        for line in lines:
            values = line.last(size)
            # An indicator of longer bars has fewer values: only its newest one has a place.
            columns.append([math.nan] * (size - len(values)) + values if len(values) == size else [math.nan] * size)
        for row in zip(*columns, strict=True):
            chart.bars.append(row)
        self._last_ms[feed.symbol] = columns[0][-1]

    # What the engine tells

    def note_slice(self, piece: Slice, value: float) -> None:
        """Take note of a slice that was delivered.

        Args:
            value: of the account after it.
        """
        self._slices += 1
        self._market_ns = self._orders.market_ns = piece.end_ns
        if self._slices == 1:
            self.board.begin_minutes(piece.end_ns // 1_000_000)
        self._value = value
        charts, lines_of, last = self.board.charts, self._lines, self._last_ms
        newest_ns = 0
        for bar in piece.bars:
            symbol = bar.symbol
            lines = lines_of.get(symbol)
            end_ms = bar.end_ns / 1e6
            if lines is None or end_ms <= last.get(symbol, 0.0):
                continue
            last[symbol] = end_ms
            row = (end_ms, bar.open, bar.high, bar.low, bar.close, bar.volume)
            charts[symbol].bars.append((*row, *[line.value() for line in lines]) if lines else row)
            if piece.filled or bar.end_ns != piece.end_ns:
                charts[symbol].add_odd(int(end_ms), FILLED_LETTER if piece.filled else LATE)
            self._bars[symbol] = bar
            self._stirred.add(symbol)
            newest_ns = max(newest_ns, bar.ts_recv_ns)
        self._note_times(piece, newest_ns)
        self.board.equity.append(piece.end_ns / 1e6, value)
        self._is_behind = True

    def _note_times(self, piece: Slice, newest_ns: int) -> None:
        if not newest_ns:
            return
        began_ns, ended_ns = self._cerebro.step_began_ns, self._clock.time_ns()
        stages = self._stages
        for bar in piece.bars:
            if not bar.ts_recv_ns:
                continue
            if not self._facts.own_time:
                stages.add(ARRIVAL, max(bar.ts_recv_ns - bar.end_ns, 0) / 1e6)
                if bar.ts_hub_ns:
                    stages.add(HUB, max(bar.ts_hub_ns - bar.end_ns, 0) / 1e6)
            if bar.ts_hub_ns:
                stages.add(TRANSPORT, max(bar.ts_recv_ns - bar.ts_hub_ns, 0) / 1e6)
        if began_ns >= newest_ns:
            stages.add(BARRIER, (began_ns - newest_ns) / 1e6)
        stages.add(NEXT, max(ended_ns - began_ns, 0) / 1e6)
        for bar in piece.bars:
            if bar.ts_recv_ns:
                self._delays[bar.symbol] = max(ended_ns - bar.ts_recv_ns, 0) / 1e6

    def _note_status(self, data: Any, status: int, *args: Any, **_: Any) -> None:
        if data is not next(iter(self._feeds.values()), None):
            return  # each feed tells of the same change
        name = str(bt.DataBase._getstatusname(status))
        detail = str(args[0]) if args else ""
        if (name, detail) != (self._feed, self._feed_detail):
            self._feed, self._feed_detail = name, detail
            level = "info" if name in ("LIVE", "DELAYED") else "warning"
            self._log(f"market data {name}" + (f": {detail}" if detail else ""), level)

    def _note_order(self, order: Any) -> None:
        symbol = self._orders.note(order)
        if not symbol:
            return
        self._stirred.add(symbol)
        if order.status not in (bt.Order.Created, bt.Order.Submitted):
            bad = order.status in (bt.Order.Margin, bt.Order.Rejected)
            self._log(describe_order(order), "warning" if bad else "info")

    def _log(self, text: str, level: str) -> None:
        self.board.log.add(LogLine(self._clock.time_ns() // 1_000_000, level, text))
        self._is_behind = True

    # Some times a second

    def look(self) -> None:
        """Write down what has changed, unless that was just done."""
        now_s = self._turned_s = self._clock.monotonic()
        if now_s - self._looked_s >= (LOOK_S if self.readers else UNSEEN_S):
            self._looked_s = now_s
            self._publish(now_s)

    def write(self) -> None:
        """Write down what has changed, however short ago that was done."""
        self._turned_s = self._clock.monotonic()
        self._publish(self._turned_s)

    def finish(self, phase: str, detail: str = "") -> None:
        """Write down the end of the run."""
        self._phase, self._detail = phase, detail
        self._stirred.update(self._feeds)
        self._publish(self._clock.monotonic())
        self.board.nudge = self.board.engine_age_s = self.board.read_risk = None

    def _nudge(self) -> None:
        """From any thread: wake the engine when something has changed since the last look."""
        if self._is_behind:
            self._wake()

    def _publish(self, now_s: float) -> None:
        self._is_behind = False
        board = self.board
        seq = board.seq + 1
        halted, paused = self._read_halts(), self._read_pauses()
        # What is in one of the two alone, or differs: the symbols of those pairs.
        changed = {
            symbol for symbol, _ in (halted.items() ^ self._halted.items()) | (paused.items() ^ self._paused.items())
        }
        self._note_pauses(paused)
        stirred, self._halted, self._paused = self._stirred | changed | set(self._find_recounted()), halted, paused
        self._stirred = set()
        for symbol in stirred:
            feed = self._feeds.get(symbol)
            if feed is not None:
                board.rows[symbol] = self._describe_symbol(seq, symbol, feed)
        self._orders.publish(seq)
        if now_s >= self._statistics_s:
            self._statistics_s = now_s + _STATISTICS_S
            self._latency = self._stages.read()
            self._memory_bytes = 0 if self._ready_phase == "recorded" else _read_memory()
        board.head = self._describe_head(seq, now_s)
        board.seq = seq

    def _read_halts(self) -> dict[str, str]:
        halts = self._broker.halted_symbols
        if not halts:
            return {}
        by_key = {position_key(symbol): reason for symbol, reason in halts.items()}
        return {symbol: by_key[position_key(symbol)] for symbol in self._feeds if position_key(symbol) in by_key}

    def _read_pauses(self) -> dict[str, str]:
        halts = self._cerebro.market.halts
        return {symbol: status.describe() for symbol, status in halts.items()} if halts else {}

    def _note_pauses(self, paused: Mapping[str, str]) -> None:
        """Mark on the charts from when to when the exchange has halted their symbols."""
        for symbol in paused.keys() - self._paused.keys():
            if symbol in self.board.charts:
                self.board.charts[symbol].begin_pause(self._cerebro.market.halts[symbol].ts_event_ns / 1e6)
        for symbol in self._paused.keys() - paused.keys():
            if symbol in self.board.charts:
                self.board.charts[symbol].end_pause(self._market_ns / 1e6)

    def _find_recounted(self) -> Iterable[str]:
        """Return the symbols whose bars count otherwise since the last look: with each slice that is all of them."""
        if self._market_ns == self._counted_ns:
            return ()
        self._counted_ns = self._market_ns
        return self._feeds.keys()

    def _count_bars(self, symbol: str) -> BarCounts | None:
        tally = self._cerebro.completeness
        return BarCounts(*msgspec.structs.astuple(tally.of(symbol))) if symbol in tally.symbols else None

    def _describe_symbol(self, seq: int, symbol: str, feed: Any) -> SymbolRow:
        bar = self._bars.get(symbol)
        close = bar.close if bar is not None else float(feed.close[0]) if len(feed) else None
        position = self._broker.getposition(feed, clone=False)
        size, price = float(position.size), float(position.price)
        units = size * contract_size(symbol)
        self._worth[symbol] = units * (close if close is not None else price)
        arrival_ms = None
        if bar is not None and bar.ts_recv_ns and not self._facts.own_time:
            arrival_ms = max(bar.ts_recv_ns - bar.end_ns, 0) / 1e6
        return SymbolRow(
            seq=seq,
            symbol=symbol,
            crypto=is_crypto(symbol),
            bar_ms=int(self._last_ms.get(symbol, 0.0)),
            length_ms=feed.bar_length_ns // 1_000_000,
            close=close,
            bars=self.board.charts[symbol].bars.total,
            position=size,
            price=price if size else 0.0,
            profit=units * (close - price) if close is not None and size else 0.0,
            realised=self._orders.realised_by.get(symbol, 0.0),
            open_orders=len(self._orders.open_by.get(symbol, ())),
            fills=self._orders.fills_by.get(symbol, 0),
            arrival_ms=arrival_ms,
            delay_ms=self._delays.get(symbol),
            halted=self._halted.get(symbol, ""),
            paused=self._paused.get(symbol, ""),
            counts=self._count_bars(symbol),
        )

    def _describe_head(self, seq: int, now_s: float) -> Head:
        broker, cerebro = self._broker, self._cerebro
        cash = broker.getcash()
        equity = broker.getvalue() if not self._slices else self._value
        run = self._facts
        if not run.session and self.board.orders:
            parts = parse_client_order_id(next(iter(self.board.orders)))
            if parts is not None:
                run = self._facts = msgspec.structs.replace(run, session=parts.session)
        marks = None if broker.risk is None else broker.risk.brake.marks
        self._note_day(equity)
        account = AccountView(
            cash=cash,
            equity=equity,
            start_equity=broker.startingvalue,
            day_equity=float(marks.day_equity) if marks is not None else self._day_equity,
            gross=sum(map(abs, self._worth.values())),
            realised=self._orders.realised,
        )
        return Head(
            seq=seq,
            run=run,
            phase=self._phase,
            detail=self._detail,
            feed=self._feed,
            feed_detail=self._feed_detail,
            market_ms=self._market_ns // 1_000_000,
            at_ms=self._clock.time_ns() // 1_000_000,
            slices=self._slices,
            bars=sum(cerebro.bars.values()),
            late_bars=cerebro.late_bars,
            orders=broker.order_count,
            fills=self._orders.fills,
            open_orders=self._orders.open_count,
            memory_bytes=self._memory_bytes,
            account=account,
            risk=self._describe_risk(equity, now_s, marks),
            latency=self._latency,
        )

    def _note_day(self, equity: float) -> None:
        now_ns = self._market_ns or self._clock.time_ns()
        day = trading_day(now_ns)
        if day != self._day:
            self._day, self._day_equity = day, self._broker.startingvalue if not self._day else equity

    def _describe_risk(self, equity: float, now_s: float, marks: Any) -> RiskView:
        desk = self._broker.risk
        if desk is None:
            return RiskView(trouble=self._broker.halted)
        limits = measure_limits(
            desk.limits,
            equity=equity,
            positions=self._worth.values(),
            orders_last_minute=self._orders.count_last_minute(now_s),
            marks=marks,
        )
        halted = self._broker.halted
        return self._overlay_risk(RiskView(limits=limits, trouble="" if halted == desk.halted else halted))

    def _overlay_risk(self, view: RiskView) -> RiskView:
        """From any thread: put the newest state of the brake into a view."""
        desk = self._broker.risk
        if desk is None:
            return view
        record = desk.brake.record
        return msgspec.structs.replace(
            view,
            state=desk.brake.state.value,
            reason=record.reason,
            who=record.who,
            at_ms=record.at_ns // 1_000_000,
        )


def _read_memory() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):  # another system than Linux
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
