"""Turn logs of received messages into the catalog. Reads logs, writes through a `CatalogWriter`; one thread.

Each bar of the wanted symbols becomes a row, with the time of its receipt in the column `received`; of a bar that came
more than once the highest revision stays. The logs are left as they are: they also hold what is no bar.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from dry_work.clock import DAY_NS, MINUTE_NS
from dry_work.errors import CodecError
from dry_work.feeds.recorded_places import describe_length
from dry_work.market.messages import Bar, BarBatch, Envelope
from dry_work.recording.catalog import CatalogReport, CatalogWriter
from dry_work.recording.frames import Damage, Frame, SegmentHead
from dry_work.recording.log import SessionReader
from dry_work.recording.recorder import LENGTH_FACT, MESSAGE, SYMBOLS_FACT, decode_message
from dry_work.wire.pubsub import parse_message

_FUTURE_NS = DAY_NS  # as in the live feed: a bar further ahead has a wrong time
_BARS_AT_ONCE = 100_000


class CompactionReport(msgspec.Struct):
    """What was read from logs, and what became of it."""

    sessions: int = 0
    messages: int = 0
    bars: int = 0
    dropped: Counter[str] = msgspec.field(default_factory=Counter)  # messages and bars that cannot be used, by reason
    other_symbols: int = 0  # bars of symbols that were not wanted
    unfinished: int = 0  # sessions whose writer was killed
    damages: list[Damage] = msgspec.field(default_factory=list)
    catalog: CatalogReport = msgspec.field(default_factory=CatalogReport)

    def describe(self) -> list[str]:
        """Return sentences for people."""
        rows = self.catalog.rows
        sessions = f"{self.sessions} recorded session{'s' if self.sessions != 1 else ''}"
        lines = [f"{sessions}: {self.messages:,} messages, {self.bars:,} bars"]
        if self.bars:
            lines.append(
                f"catalog: {rows.added:,} new bars; {self.catalog.files_written} files written, "
                f"{self.catalog.files_unchanged} unchanged"
            )
        if rows.revised:
            lines.append(f"{rows.revised:,} bars were corrected by a later revision")
        if rows.conflicts:
            lines.append(f"{rows.conflicts:,} bars differ from the one of the same time that stays")
        if self.other_symbols:
            lines.append(f"{self.other_symbols:,} bars of other symbols stay in the log only")
        if self.unfinished:
            lines.append(f"{self.unfinished} of the sessions ended without being closed; all up to there was read")
        lines.extend(f"{count:,} dropped: {reason}" for reason, count in sorted(self.dropped.items()))
        lines.extend(f"damaged: {damage}" for damage in self.damages)
        return lines


def compact_sessions(
    sessions: Iterable[Path], catalog: CatalogWriter, *, symbols: Collection[str] | None = None
) -> CompactionReport:
    """Write the bars of recorded sessions into the catalog. The same sessions twice change nothing.

    Damaged segments give what is before the damage, and the ones behind them are read too.

    Args:
        sessions: folders of sessions, in the order of their time.
        symbols: wanted symbols; None: those that each log names, or all when it names none.

    Raises:
        DataFileError, StorageError: see `CatalogWriter.flush`; what is there already stays usable, and the same call
            completes it.
    """
    report = CompactionReport(catalog=catalog.report)
    for folder in sessions:
        reader = SessionReader(folder, salvage=True)
        waiting: list[Bar] = []
        frames = iter(reader)
        wanted: Collection[str] | None = symbols
        length_ns = MINUTE_NS
        first = next(frames, None)
        if reader.head is not None:
            wanted, length_ns = _read_facts(reader.head, symbols)
        for frame in itertools.chain(() if first is None else (first,), frames):
            if frame.kind != MESSAGE:
                continue
            report.messages += 1
            for bar in parse_bars(frame, length_ns, report.dropped):
                if wanted is not None and bar.symbol not in wanted:
                    report.other_symbols += 1
                else:
                    waiting.append(bar)
            if len(waiting) >= _BARS_AT_ONCE:
                _hand_over(waiting, catalog, report)
        _hand_over(waiting, catalog, report)
        report.sessions += 1
        report.unfinished += not reader.is_closed
        report.damages.extend(damage for damage in reader.damages if not (reader.is_cut and damage is reader.damage))
    catalog.flush()
    return report


def build_columns(bars: Sequence[Bar]) -> dict[str, Any]:
    """Return bars of one symbol as columns for `CatalogWriter.add`."""
    import numpy as np

    extras = sorted({name for bar in bars for name in bar.extra})
    columns: dict[str, Any] = {
        "ts_event_ns": np.array([bar.ts_event_ns for bar in bars], dtype=np.int64),
        **{
            name: np.array([getattr(bar, name) for bar in bars], dtype=np.float64)
            for name in ("open", "high", "low", "close", "volume", "trade_count", "vwap")
        },
        **{name: np.array([bar.extra.get(name, np.nan) for bar in bars], dtype=np.float64) for name in extras},
    }
    columns["revision"] = np.array([bar.revision for bar in bars], dtype=np.int64)
    columns["received"] = np.array([bar.ts_recv_ns or np.datetime64("NaT") for bar in bars], dtype="datetime64[ns]")
    return columns


def _read_facts(head: SegmentHead, symbols: Collection[str] | None) -> tuple[Collection[str] | None, int]:
    named = head.facts.get(SYMBOLS_FACT)
    length = head.facts.get(LENGTH_FACT)
    if symbols is None and isinstance(named, list):
        symbols = frozenset(map(str, named))
    return symbols, length if isinstance(length, int) and length > 0 else MINUTE_NS


def parse_bars(frame: Frame, length_ns: int, dropped: Counter[str]) -> list[Bar]:
    """Return the bars of a recorded message; the reasons of what cannot be used are those of the live feed."""
    try:
        message = decode_message(frame.payload)
        envelope = parse_message(
            message.topic, message.data, message.attributes, recv_ns=frame.recv_ns, length_ns=length_ns
        )
    except CodecError as error:
        dropped[error.reason] += 1
        return []
    except ValueError:
        dropped["no recorded message"] += 1
        return []
    bars = _bars_of(envelope, dropped)
    usable = [bar for bar in bars if bar.end_ns <= frame.recv_ns + _FUTURE_NS]
    if len(usable) < len(bars):
        dropped["future timestamp"] += len(bars) - len(usable)
    return usable


def _bars_of(envelope: Envelope, dropped: Counter[str]) -> Sequence[Bar]:
    if isinstance(envelope.message, Bar):
        return (envelope.message,)
    if isinstance(envelope.message, BarBatch):
        dropped.update(envelope.message.dropped)
        return envelope.message.bars
    return ()


def _hand_over(waiting: list[Bar], catalog: CatalogWriter, report: CompactionReport) -> None:
    by_symbol: dict[tuple[str, int], list[Bar]] = {}
    for bar in waiting:
        by_symbol.setdefault((bar.symbol, bar.length_ns), []).append(bar)
    for (symbol, length_ns), bars in by_symbol.items():
        report.bars += catalog.add("bars", symbol, build_columns(bars), timeframe=describe_length(length_ns))
    waiting.clear()
