"""What is known of a run, for readers that come and go. One thread writes, any may read; nobody waits for another.

A reader says how far it has got, and is given what has changed since: so a slow one costs no memory, since it is not
known, and gets the newest state instead of all states in between.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from dry_work.dashboard.minutes import MINUTES_SHOWN, MISSING, QUIET, Pause, trace_minutes
from dry_work.dashboard.snapshot import (
    ChartPart,
    Cursor,
    Delta,
    FillMark,
    Head,
    LineFacts,
    LogLine,
    OrderRow,
    RiskView,
    SymbolRow,
    parse_cursor,
)
from dry_work.dashboard.trails import BARS_KEPT, CurveTrail, RowTrail
from dry_work.market.symbols import is_option

ORDERS_KEPT = 200  # that have ended; open ones stay
MARKS_KEPT = 400  # of each symbol
LINES_KEPT = 400  # of the log
PAUSES_KEPT = 64  # of each symbol

BAR_WIDTH = 6  # end in ms, open, high, low, close, volume


class LogTail:
    """The last lines of a log. Any thread writes."""

    def __init__(self, kept: int = LINES_KEPT) -> None:
        self._lock = threading.Lock()
        self._lines: deque[LogLine] = deque(maxlen=kept)
        self._total = 0

    def add(self, line: LogLine) -> None:
        """Add a line."""
        with self._lock:
            self._lines.append(line)
            self._total += 1

    def read(self, since: int = 0) -> tuple[int, tuple[LogLine, ...]]:
        """Return how many lines there were, and those after the first `since` that are still there."""
        with self._lock:
            missing = max(self._total - since, 0)
            lines = tuple(self._lines) if missing else ()
            return self._total, lines[-missing:] if missing else ()


class Chart:
    """Bars, indicator lines and fills of one symbol."""

    def __init__(self, lines: tuple[LineFacts, ...] = (), *, kept: int = BARS_KEPT) -> None:
        self.lines = lines
        self.bars = RowTrail(BAR_WIDTH + len(lines), kept)
        self._marks: tuple[int, tuple[FillMark, ...]] = (0, ())
        self.odd: dict[int, str] = {}  # letters of bars that did not come with their slice, by end in ms
        self._odd_kept = max(2 * MINUTES_SHOWN, kept)
        self.pauses: tuple[Pause, ...] = ()  # halts of the exchange

    def add_mark(self, mark: FillMark) -> None:
        """Add a fill."""
        first, marks = self._marks
        dropped = max(len(marks) + 1 - MARKS_KEPT, 0)
        self._marks = (first + dropped, (*marks[dropped:], mark))

    def add_odd(self, end_ms: int, letter: str) -> None:
        """Note how a bar came that did not come with its slice."""
        self.odd[end_ms] = letter
        if len(self.odd) > 2 * self._odd_kept:
            self.odd = dict(list(self.odd.items())[-self._odd_kept :])

    def begin_pause(self, at_ms: float) -> None:
        """The exchange has halted the symbol."""
        self.pauses = (*self.pauses[1 - PAUSES_KEPT :], (at_ms, 0.0))

    def end_pause(self, at_ms: float) -> None:
        """It is traded again."""
        if self.pauses:
            self.pauses = (*self.pauses[:-1], (self.pauses[-1][0], at_ms))

    def read_marks(self, since: int = 0) -> tuple[int, tuple[FillMark, ...]]:
        """Return the number of the first mark, and the marks from number `since` on that are still there."""
        first, marks = self._marks
        begin = max(since, first)
        return begin, marks[begin - first :]


class Board:
    """The newest state of a run.

    Args:
        head: to begin with.
        symbols: of the run, in order.
    """

    def __init__(self, head: Head, symbols: Iterable[str]) -> None:
        self.epoch = secrets.token_hex(4)
        self.head = head
        self.log = LogTail()
        self.equity = CurveTrail()
        self.charts: dict[str, Chart] = {symbol: Chart() for symbol in symbols}
        self.rows: dict[str, SymbolRow] = {}
        self.orders: dict[str, OrderRow] = {}
        self.seq = 1  # what is numbered with it or below is there
        self.read_risk: Callable[[RiskView], RiskView] | None = None  # the state of the brake, from any thread
        self.engine_age_s: Callable[[], float] | None = None  # since the engine's loop turned last
        self.is_open: Callable[[str, int], bool] | None = None  # whether a symbol's market is open at a time in ns
        self._begun_ms = 0  # end of the first slice
        self.nudge: Callable[[], None] | None = None  # lets what is behind be collected soon

    # The one who writes

    def put_orders(self, orders: Iterable[OrderRow]) -> None:
        """Take orders that are new or have changed, and forget the oldest of those that have ended."""
        found = self.orders
        for order in orders:
            found.pop(order.id, None)  # the newest stand at the end
            found[order.id] = order
        ended = [name for name, order in found.items() if not order.is_open]
        for name in ended[: max(len(ended) - ORDERS_KEPT, 0)]:
            del found[name]

    def begin_minutes(self, at_ms: int) -> None:
        """Bars are to come from the one on that ends at `at_ms`."""
        self._begun_ms = at_ms

    # Those who read

    def refresh(self) -> None:
        """Let what has changed be written down soon. Called some times a second while somebody looks."""
        if self.nudge is not None:
            self.nudge()

    def changes(self, since: Cursor | str | None, symbol: str = "") -> Delta:
        """Return what has changed since a cursor, with the bars of one symbol.

        Args:
            since: None, or one of another run, gives everything.
            symbol: whose bars are wanted; empty: none.
        """
        cursor = parse_cursor(since) if isinstance(since, str) else since
        if cursor is None or cursor.epoch != self.epoch:
            cursor = Cursor(epoch=self.epoch)
        upto = self.seq
        is_whole = cursor.seq == 0
        head = self._newest_head() if self.head.seq > cursor.seq or is_whole else None
        rows = tuple(row for row in tuple(self.rows.values()) if row.seq > cursor.seq)
        orders = tuple(order for order in tuple(self.orders.values()) if order.seq > cursor.seq)
        log_total, lines = self.log.read(cursor.log)
        equity = self.equity.read(cursor.equity_ms)
        chart = self._read_chart(symbol, cursor)
        reached = Cursor(
            epoch=self.epoch,
            seq=upto,
            log=log_total,
            equity_ms=int(equity[-1][0]) if equity else cursor.equity_ms,
            bars=0 if chart is None else chart.first + len(chart.bars),
            marks=0 if chart is None else chart.first_mark + len(chart.marks),
            symbol=symbol if chart is not None else "",
        )
        return Delta(
            cursor=reached.encode(),
            whole=is_whole,
            head=head,
            symbols=rows,
            orders=orders,
            log=lines,
            equity=equity,
            chart=chart,
        )

    def _newest_head(self) -> Head:
        head = self.head
        if self.read_risk is None:
            return head
        # A strategy that hangs makes no head, but the brake works all the same.
        return msgspec.structs.replace(head, risk=self.read_risk(head.risk))

    def risk(self) -> RiskView:
        """Return the state of the risk gate as it is now."""
        return self._newest_head().risk

    def _read_chart(self, symbol: str, cursor: Cursor) -> ChartPart | None:
        chart = self.charts.get(symbol)
        if chart is None:
            return None
        bars_seen, marks_seen = (cursor.bars, cursor.marks) if cursor.symbol == symbol else (0, 0)
        first, bars = chart.bars.read(bars_seen)
        first_mark, marks = chart.read_marks(marks_seen)
        return ChartPart(
            symbol=symbol,
            first=first,
            total=first + len(bars),
            lines=chart.lines,
            bars=bars,
            marks=marks,
            first_mark=first_mark,
            minutes=self.trace(symbol, until_ms=self.head.market_ms),
        )

    def trace(self, symbol: str, *, until_ms: int, bars: int | None = None) -> str:
        """Return what became of the newest bars of a symbol, a letter each; empty when that is not known.

        Args:
            until_ms: end of the newest slice.
            bars: how many of those that are drawn were known then; None: all.
        """
        chart, is_open, row = self.charts.get(symbol), self.is_open, self.rows.get(symbol)
        if chart is None or is_open is None or row is None or not self._begun_ms:
            return ""
        # By time, not by number: the head is written down later than the bars.
        oldest_ms = until_ms - (MINUTES_SHOWN - 1) * row.length_ms
        _, rows = chart.bars.read(chart.bars.find(oldest_ms), bars)
        return trace_minutes(
            [found[0] for found in rows],
            odd=dict(chart.odd),
            pauses=chart.pauses,
            since_ms=self._begun_ms,
            until_ms=until_ms,
            length_ms=row.length_ms,
            is_open=lambda start_ms: is_open(symbol, start_ms * 1_000_000),
            absent=QUIET if is_option(symbol) else MISSING,
        )
