"""The live view of `dry-work record` on a terminal. Main thread only; `render` is pure."""

from __future__ import annotations

import time
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dry_work.cli.live_view import can_draw, format_age
from dry_work.clock import SECOND_NS, Clock, SystemClock
from dry_work.recording.session import Tally

_DRAW_S = 0.25
_LINES_AROUND = 8


def render(tally: Tally, *, now_ns: int, height: int) -> RenderableType:
    """Return the view: a row for each symbol, those that came last first when they do not all fit."""
    symbols = list(tally.symbols.items())
    rows = max(3, height - _LINES_AROUND)
    left_out = 0
    if len(symbols) > rows:
        symbols.sort(key=lambda item: -(item[1].last.ts_recv_ns if item[1].last is not None else 0))
        left_out = len(symbols) - rows
        symbols = symbols[:rows]
    table = Table("symbol", title="Recording", title_justify="left")
    for name in ("bars", "last bar (UTC)", "close", "volume", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    for symbol, found in symbols:
        bar = found.last
        if bar is None:
            table.add_row(symbol, "0", "", "", "", "", style="dim")
        else:
            at = time.strftime("%Y-%m-%d %H:%M", time.gmtime(bar.ts_event_ns // SECOND_NS))
            age = format_age((now_ns - bar.ts_recv_ns) / SECOND_NS)
            table.add_row(symbol, f"{found.bars:,}", at, f"{bar.close:,.10g}", f"{bar.volume:,.10g}", age)
    parts: list[RenderableType] = [table]
    if left_out:
        parts.append(Text(f"and {left_out} symbols more", style="dim"))
    parts.append(Text(f"{tally.recorded:,} messages, {tally.recorded_bytes / 1e6:,.1f} MB in the log; Ctrl-C stops"))
    if tally.not_recorded:
        parts.append(Text(f"{tally.not_recorded:,} messages are not recorded", style="bold red"))
    if tally.status:
        parts.append(Text(tally.status, style="bold yellow"))
    return Group(*parts)


class RecordView:
    """Draws what it is shown, at most some times a second; between `__enter__` and `__exit__`."""

    def __init__(self, stream: TextIO, *, clock: Clock | None = None) -> None:
        self._console = Console(file=stream, highlight=False)
        self._clock = clock if clock is not None else SystemClock()
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._drawn_s = 0.0

    @staticmethod
    def can_draw(stream: TextIO) -> bool:
        """Tell whether `stream` is a terminal that a view can be drawn on."""
        return can_draw(stream)

    def __enter__(self) -> RecordView:
        self._live.__enter__()
        return self

    def __exit__(self, *what: object) -> None:
        self._live.__exit__(None, None, None)

    def tell(self, line: str) -> None:
        """Print a line above the view."""
        self._console.print(line, soft_wrap=True, markup=False)

    def show(self, tally: Tally) -> None:
        """Draw the tally, unless the last drawing was just now."""
        now_s = self._clock.monotonic()
        if now_s - self._drawn_s < _DRAW_S:
            return
        self._drawn_s = now_s
        self._live.update(render(tally, now_ns=self._clock.time_ns(), height=self._console.size.height), refresh=True)
