"""The live view of `dry-work run` on a terminal: drawn from snapshots, by a thread of its own.

`render` is pure. `LiveView` never touches the run itself: it keeps the newest snapshot that it was shown.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dry_work.clock import SECOND_NS, Clock, SystemClock
from dry_work.engine.progress import Progress, SymbolProgress

DRAW_S = 0.25
_AGES_S = 1.0  # how often ages are drawn anew when nothing else has changed
_JOIN_S = 2.0
_LINES_AROUND = 8  # of the view beside its symbols and events, borders included
_LEAST_ROWS = 3


def can_draw(stream: TextIO) -> bool:
    """Tell whether `stream` is a terminal that a view can be drawn on."""
    if not stream.isatty():
        return False
    console = Console(file=stream)
    return console.is_terminal and not console.is_dumb_terminal


def render(progress: Progress | None, *, now_ns: int, height: int) -> RenderableType:
    """Return the view.

    Args:
        progress: what to show, None before there is anything.
        now_ns: the machine's time; ages of a simulated exchange's bars are measured by its own instead.
        height: lines of the terminal. Symbols that do not fit are counted; those with a position or an order go first.
    """
    if progress is None:
        return Text("starting; Ctrl-C stops", style="dim")
    parts: list[RenderableType] = [_head(progress), _figures(progress)]
    if progress.halted:
        parts.append(Text(f"no orders are taken: {progress.halted}", style="bold red"))
    rows = max(height - _LINES_AROUND - len(progress.events) - bool(progress.halted), _LEAST_ROWS)
    shown = choose_symbols(progress.symbols, rows)
    reference_ns = progress.market_ns if progress.own_time else now_ns
    parts.append(_symbol_table(shown, reference_ns))
    if len(shown) < len(progress.symbols):
        parts.append(Text(f"and {len(progress.symbols) - len(shown)} symbols more", style="dim"))
    for event in progress.events:
        at = datetime.fromtimestamp(event.time_ns // SECOND_NS, UTC)
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"{at:%H:%M:%S}  " if event.time_ns else "          ", style="dim")
        line.append(event.text)
        parts.append(line)
    return Group(*parts)


def choose_symbols(symbols: Sequence[SymbolProgress], rows: int) -> list[SymbolProgress]:
    """Return at most `rows` symbols in their order, those with a position or an open order before all others."""
    if len(symbols) <= rows:
        return list(symbols)
    busy = sorted(range(len(symbols)), key=lambda at: (not (symbols[at].position or symbols[at].open_orders), at))
    return [symbols[at] for at in sorted(busy[:rows])]


def format_age(age_s: float) -> str:
    """Return an age in its two largest units: 12s, 3m 05s, 2h 07m, 4d 03h."""
    seconds = max(int(age_s), 0)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02d}s"
    if seconds < 86_400:
        return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"
    return f"{seconds // 86_400}d {seconds % 86_400 // 3600:02d}h"


def _head(progress: Progress) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(progress.agent, style="bold")
    line.append(f"  {progress.mode}", style="bold red" if progress.mode == "live" else "")
    feed = progress.feed or "no market data yet"
    detail = f" ({progress.feed_detail})" if progress.feed_detail else ""
    line.append(f"  {feed}{detail}", style=_feed_style(progress.feed))
    if progress.market_ns:
        at = datetime.fromtimestamp(progress.market_ns // SECOND_NS, UTC)
        line.append(f"  {at:%Y-%m-%d %H:%M} UTC")
        line.append(f"  {progress.bars:,} bars")
    return line


def _figures(progress: Progress) -> Text:
    change = progress.equity - progress.start_equity
    share = change / progress.start_equity if progress.start_equity else 0.0
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"equity {progress.equity:,.2f}  ")
    line.append(f"{change:+,.2f} ({share:+.2%})", style=_sign_style(change))
    line.append(f"  cash {progress.cash:,.2f}  orders {progress.orders:,}, {progress.open_orders} open")
    return line


def _symbol_table(symbols: Sequence[SymbolProgress], reference_ns: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("symbol", no_wrap=True)
    for name in ("last bar", "age", "close", "position", "open P&L", "orders"):
        # A least width, so that columns do not move about while their numbers change.
        table.add_column(name, justify="right", no_wrap=True, min_width=8)
    for row in symbols:
        if not row.bar_end_ns:
            table.add_row(row.symbol, "-", "-", "-", f"{row.position:g}", "", str(row.open_orders or ""))
            continue
        at = datetime.fromtimestamp(row.bar_end_ns // SECOND_NS, UTC)
        table.add_row(
            row.symbol,
            f"{at:%H:%M}",
            format_age((reference_ns - row.bar_end_ns) / SECOND_NS),
            f"{row.close:,.2f}" if row.close >= 1 else f"{row.close:.6g}",
            f"{row.position:g}",
            Text(f"{row.profit:+,.2f}", style=_sign_style(row.profit)) if row.position else "",
            str(row.open_orders or ""),
        )
    return table


def _feed_style(status: str) -> str:
    return {"LIVE": "green", "DELAYED": "yellow", "": "dim"}.get(status, "bold red")


def _sign_style(value: float) -> str:
    return "green" if value > 0 else "red" if value < 0 else ""


def _do_nothing() -> None: ...


class _Frame:
    """Lines that are laid out already: whatever is printed above the view draws it again, which has to be cheap."""

    def __init__(self, lines: list[list[Segment]]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for number, line in enumerate(self._lines):
            if number:
                yield Segment.line()
            yield from line


class LiveView:
    """Draws what it is shown, some times a second, below the lines that are printed meanwhile.

    `start` and `stop` belong to one thread, `show` and `tell` to any. What is printed while it runs, by a strategy for
    example, appears above it. `stop` leaves the terminal as it was.

    Args:
        stream: the terminal.
        draw_s: between two drawings.
    """

    def __init__(self, stream: TextIO, *, clock: Clock | None = None, draw_s: float = DRAW_S) -> None:
        self._console = Console(file=stream, highlight=False)
        self._refresh: Callable[[], None] = _do_nothing
        self._clock = clock or SystemClock()
        self._draw_s = draw_s
        self._progress: Progress | None = None
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, refresh: Callable[[], None]) -> None:
        """Call `refresh` before each drawing, which asks for a new snapshot when something has changed."""
        self._refresh = refresh

    def show(self, progress: Progress) -> None:
        """Take the newest snapshot."""
        self._progress = progress

    def tell(self, line: str) -> None:
        """Print a line above the view."""
        with contextlib.suppress(OSError):  # the terminal is gone
            self._console.print(line, markup=False, soft_wrap=True)

    def start(self) -> None:
        """Begin to draw."""
        self._live.start()
        self._draw()
        self._thread = threading.Thread(target=self._run, name="live view", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take the view away and give the terminal back. May be called twice, and before `start`."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
            self._thread = None
        with contextlib.suppress(OSError):  # the terminal is gone
            try:
                self._live.stop()
            finally:
                self._console.show_cursor(True)

    def __enter__(self) -> LiveView:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _draw(self) -> None:
        console = self._console
        view = render(self._progress, now_ns=self._clock.time_ns(), height=console.size.height)
        self._live.update(_Frame(console.render_lines(view, pad=False)), refresh=True)

    def _run(self) -> None:
        drawn: Progress | None = None
        drawn_s = float("-inf")
        while not self._stopping.wait(self._draw_s):
            self._refresh()
            now_s = self._clock.monotonic()
            if self._progress is drawn and now_s - drawn_s < _AGES_S:
                continue
            drawn, drawn_s = self._progress, now_s
            try:
                self._draw()
            except OSError:  # the terminal is gone; the run goes on
                return
