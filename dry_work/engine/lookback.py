"""How far back a live run can look: which lines are kept, and how much of each. Engine thread only.

Every line holds at least `bars` values in memory, and as many more as indicators are known to need or anybody has been
seen to read. What is older is on disk, up to a bound, so a read that nobody could foresee has its right value, and the
line is kept that far back from then on. Past that bound a read raises `LookBackError`. No read ever gets a wrong value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import structlog
from backtrader.lineiterator import LineIterator
from backtrader.lineroot import LineRoot, LineSingle

from dry_work.engine.kept_line import WHOLE, KeptLine, can_keep, keep
from dry_work.engine.line_archive import LineArchive
from dry_work.settings import parse_lookback

_log = structlog.get_logger(__name__)

DEFAULT_BARS = 256
DISK_BYTES = 256 * 1024 * 1024
BLOCK_VALUES = 256
_LOOK_EVERY = 512  # slices between two looks for new lines
_FIRST_LOOKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOLD_LINES = 10  # lines that are told by name when they are kept longer


class LookBack:
    """Keeps the lines of a run within bounds.

    Args:
        bars: values that each line holds in memory at least; `WHOLE`: all; None: what the strategies say with their
            attribute `kept_bars`, or `DEFAULT_BARS`.
        directory: where older values go; None: the machine's folder for temporary files.
        disk_bytes: how much of them; 0: none, and a read of one raises.
        block_values: how many values a line lets go of at a time.
    """

    def __init__(
        self,
        bars: int | None = None,
        *,
        directory: Path | None = None,
        disk_bytes: int = DISK_BYTES,
        block_values: int = BLOCK_VALUES,
    ) -> None:
        self._bars = bars
        self._archive = LineArchive(directory, block_values=block_values, max_bytes=disk_bytes)
        self._datas: list[Any] = []
        self._strategies: list[Any] = []
        self._lines: list[KeptLine] = []
        self._seen: tuple[int, int] | None = None
        self._slices = 0
        self._told = 0
        self.whole_lines = 0  # that cannot be kept within bounds, or whose array was taken

    def follow(self, datas: Iterable[Any], strategies: Iterable[Any]) -> None:
        """Take over the lines of a run; before its first bar.

        Raises:
            ConfigError: a strategy's `kept_bars` is no look-back.
        """
        self._datas, self._strategies = list(datas), list(strategies)
        self._lines.clear()
        self._seen = None
        self.whole_lines = 0
        if self._bars is None:
            declared = [
                parse_lookback(strat.kept_bars, name=f"{type(strat).__name__}.kept_bars")
                for strat in self._strategies
                if getattr(type(strat), "kept_bars", None) is not None
            ]
            self._bars = max(declared, default=DEFAULT_BARS)
        self._look()

    def after_slice(self) -> None:
        """Take over lines that were made during the run; call it after each slice."""
        self._slices += 1
        # Often at the beginning: the first bars bring the lines of their further fields.
        if self._slices % _LOOK_EVERY == 0 or self._slices in _FIRST_LOOKS:
            self._look()

    def measure(self) -> tuple[int, int]:
        """Return the bytes that the lines hold in memory and on disk."""
        return sum(8 * len(line._kept) for line in self._lines), self._archive.bytes_on_disk

    def close(self) -> None:
        """Let go of what is on disk."""
        self._archive.close()

    def _look(self) -> None:
        seen = (
            sum(len(data.lines.lines) for data in self._datas),
            sum(len(found) for strat in self._strategies for found in strat._lineiterators.values()),
        )
        if seen == self._seen:
            return
        self._seen = seen
        assert self._bars is not None
        nodes = list(_walk(self._strategies))
        for line in _lines_of(self._datas, nodes):
            if can_keep(line):
                kept = keep(line, self._bars, self._archive, self._hear, number=len(self._lines))
                self._lines.append(kept)
            elif not isinstance(line, KeptLine):
                self.whole_lines += 1
        for node in nodes:
            _keep_for(node)

    def _hear(self, line: KeptLine, bars: int) -> None:
        if bars == WHOLE:
            self.whole_lines += 1
        self._told += 1
        if self._told > _TOLD_LINES:
            return
        if bars == WHOLE:
            _log.info("a line is kept whole, since its array was taken", line=line.describe())
        else:
            _log.info("a line is kept longer, since it was read further back", line=line.describe(), bars=bars)


def _walk(owners: Iterable[Any]) -> Iterator[Any]:
    """Give strategies, and everything below them that Backtrader moves with them."""
    for owner in owners:
        yield owner
        inner = getattr(owner, "_lineiterators", None)
        if inner is not None and not isinstance(owner, LineSingle):
            for kind in (LineIterator.IndType, LineIterator.ObsType):
                yield from _walk(inner[kind])


def _lines_of(datas: Iterable[Any], nodes: Iterable[Any]) -> Iterator[Any]:
    for owner in (*datas, *nodes):
        # An operation is a line itself; all others have lines.
        yield from (owner,) if isinstance(owner, LineSingle) else owner.lines.lines


def _keep_for(node: Any) -> None:
    """Hold of the inputs of an indicator what its minimum period tells that it reads."""
    period = int(node._minperiod) + 1
    inputs = node._datas if isinstance(node, LineSingle) else node.datas
    for each in (node, *inputs):
        if not isinstance(each, LineRoot):
            continue
        for line in (each,) if isinstance(each, LineSingle) else each.lines.lines:
            if isinstance(line, KeptLine) and not line.is_whole():
                line.keep_more(period)
