"""One run of a recorder: subscribe, record, tell what arrives, and make the catalog at the end. Main thread.

The log is in `<state folder>/recordings`, the catalog anywhere. Sessions that a killed recorder left behind are brought
into the catalog by the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from dry_work.clock import SECOND_NS, Clock, SystemClock
from dry_work.errors import ConfigError
from dry_work.feeds.lease import AgentLease
from dry_work.feeds.router import PubSubMarketSource
from dry_work.market.messages import Bar, Slice
from dry_work.ports import SourceFailed, SourceStatus
from dry_work.recording.catalog import CatalogWriter
from dry_work.recording.compaction import CompactionReport, compact_sessions
from dry_work.recording.log import find_segments, find_sessions
from dry_work.recording.recorder import SYMBOLS_FACT, Recorder
from dry_work.storage import open_storage
from dry_work.wakeup import Wakeup
from dry_work.wire.pubsub import encode_time

RECORDINGS = "recordings"
MARK_NAME = "in-catalog.json"  # in a session's folder: it is in this catalog, whole

_BUFFER_MESSAGES = 100_000  # while sessions of before are read
_TELL_S = 2.0


class RecordSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a recorder needs to know."""

    symbols: tuple[str, ...]
    project: str
    market_topic: str
    crypto_topic: str
    endpoint: str | None
    state_dir: Path
    out: str  # folder or gs:// address of the catalog
    agent_id: str = ""  # of the agent beside it; empty: none
    take_over: bool = False
    duration_ns: int | None = None  # None: until it is stopped

    @property
    def recorder_id(self) -> str:
        """Name of its subscriptions: that of the agent with `-record`, otherwise one of this machine and folder."""
        if self.agent_id:
            return f"{self.agent_id[:56]}-record"
        place = f"{socket.gethostname()} {self.state_dir.resolve()}"
        return f"record-{hashlib.sha256(place.encode()).hexdigest()[:8]}"

    @property
    def folder(self) -> Path:
        """The recorder's own folder in the state directory."""
        return self.state_dir / self.recorder_id


class SymbolTally(msgspec.Struct):
    """What came of one symbol."""

    bars: int = 0
    last: Bar | None = None


class Tally(msgspec.Struct):
    """What has arrived so far, for a view."""

    symbols: dict[str, SymbolTally]
    status: str = ""  # when something is wrong
    recorded: int = 0
    recorded_bytes: int = 0
    not_recorded: int = 0


class RecordResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a recorder did."""

    folder: Path | None
    messages: int
    not_recorded: int
    failure: str  # empty when nothing failed
    compaction: CompactionReport | None  # None when the catalog could not be made

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        found: dict[str, Any] = {
            "log": None if self.folder is None else str(self.folder),
            "messages": self.messages,
            "not_recorded": self.not_recorded,
            "failure": self.failure or None,
            "bars": None,
            "catalog": None,
        }
        if self.compaction is not None:
            catalog = self.compaction.catalog
            found["bars"] = self.compaction.bars
            found["catalog"] = {
                "files_written": catalog.files_written,
                "files_unchanged": catalog.files_unchanged,
                **msgspec.to_builtins(catalog.rows),
            }
        return found


class RecordingSession:
    """Records until `stop` is called, the time is over, or something fails.

    Args:
        tell: takes lines for people.
        show: takes the tally whenever it may have changed; None: progress lines are told instead.
        show_s: seconds between two calls of `show` when nothing comes; None: none are needed.
    """

    def __init__(
        self,
        settings: RecordSettings,
        *,
        tell: Callable[[str], None],
        show: Callable[[Tally], None] | None = None,
        show_s: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._tell = tell
        self._show = show
        self._show_s = show_s
        self._clock = clock if clock is not None else SystemClock()
        self._wakeup = Wakeup()
        self._is_stopping = False
        self._tally = Tally(symbols={symbol: SymbolTally() for symbol in settings.symbols})
        self._told_s = self._clock.monotonic()
        self._told = 0

    def stop(self) -> None:
        """End in order; safe in a signal handler."""
        self._is_stopping = True
        self._wakeup.set()

    def run(self) -> RecordResult:
        """Record; return when it is over and the catalog is made.

        Raises:
            ConfigError: a setting cannot be used, or another process records under this id.
            FeedError: Pub/Sub is not reached at the start.
        """
        settings = self._settings
        storage = open_storage(settings.out)  # a wrong address is told now, not at the end
        with contextlib.closing(storage), AgentLease(settings.folder, settings.recorder_id) as lease:
            root = settings.folder / RECORDINGS
            recorder = Recorder(
                root,
                writer="record",
                facts={"agent_id": settings.recorder_id, "project": settings.project, SYMBOLS_FACT: settings.symbols},
                clock=self._clock,
            )
            source = PubSubMarketSource(
                project_id=settings.project,
                symbols=settings.symbols,
                agent_id=settings.recorder_id,
                owner_nonce=lease.nonce,
                market_topic=settings.market_topic,
                crypto_topic=settings.crypto_topic,
                endpoint=settings.endpoint,
                clock=self._clock,
                buffer_messages=_BUFFER_MESSAGES,
                # Slices are only looked at here, so none waits for what is missing in it.
                watermarks=False,
                grace_s=0.0,
                take_over=settings.take_over,
                recorder=recorder,
            )
            failure = ""
            try:
                recorder.start()
                source.start(self._wakeup)
                self._tell(
                    f"recording {len(settings.symbols)} symbols of project {settings.project} "
                    f"into {recorder.folder or root}; catalog: {settings.out}"
                )
                # Nothing is missed meanwhile, since the subscriptions are there.
                self._catch_up(root, recorder, CatalogWriter(storage))
                failure = self._follow(source, recorder)
            finally:
                source.stop()
                recorder.stop()
            self._refresh(recorder)
            for sentence in recorder.describe_trouble():
                self._tell(sentence)
            compaction = None
            try:
                compaction = _compact(root, CatalogWriter(storage))
            except ConfigError as error:
                failure = failure or f"the catalog could not be completed: {error}"
                self._tell(f"{failure}; the log is kept: `dry-work data {settings.out} --compact {root}` tries again")
            if recorder.failure is not None:
                failure = failure or f"the recording ended early: {recorder.failure}"
            return RecordResult(
                folder=recorder.folder,
                messages=recorder.recorded,
                not_recorded=recorder.not_recorded,
                failure=failure,
                compaction=compaction,
            )

    def _catch_up(self, root: Path, recorder: Recorder, catalog: CatalogWriter) -> None:
        """Bring sessions of before into the catalog; that this fails does not end the recording."""
        try:
            report = _compact(root, catalog, but=recorder.folder)
        except ConfigError as error:
            self._tell(f"what was recorded before is not in the catalog yet: {error}")
            return
        if report.messages or report.damages:
            for sentence in report.describe():
                self._tell(f"before: {sentence}")

    def _follow(self, source: PubSubMarketSource, recorder: Recorder) -> str:
        """Tell what comes until it is over; return what failed, empty when nothing did."""
        duration_ns = self._settings.duration_ns
        end_s = None if duration_ns is None else self._clock.monotonic() + duration_ns / SECOND_NS
        while not self._is_stopping:
            event = source.take()
            while event is not None:
                if isinstance(event, SourceFailed):
                    return f"{event.error}"
                if isinstance(event, SourceStatus):
                    self._tally.status = "" if event.connected else event.detail
                    self._tell(f"Pub/Sub: {event.detail}")
                elif isinstance(event, Slice):
                    self._count(event)
                event = source.take()
            self._refresh(recorder)
            if recorder.failure is not None:
                return ""
            now_s = self._clock.monotonic()
            if end_s is not None and now_s >= end_s:
                return ""
            waits = [source.wait_s(), self._show_s, None if end_s is None else end_s - now_s]
            if self._show is None and recorder.recorded != self._told:
                waits.append(max(0.0, self._told_s + _TELL_S - now_s))
            self._wakeup.wait(min((each for each in waits if each is not None), default=None))
        return ""

    def _count(self, piece: Slice) -> None:
        for bar in piece.bars:
            found = self._tally.symbols.setdefault(bar.symbol, SymbolTally())
            found.bars += 1
            found.last = bar

    def _refresh(self, recorder: Recorder) -> None:
        tally = self._tally
        tally.recorded = recorder.recorded
        tally.recorded_bytes = recorder.recorded_bytes
        tally.not_recorded = recorder.not_recorded
        if self._show is not None:
            self._show(tally)
            return
        now_s = self._clock.monotonic()
        if tally.recorded != self._told and (self._is_stopping or now_s - self._told_s >= _TELL_S):
            self._told, self._told_s = tally.recorded, now_s
            newest = max((each.last.end_ns for each in tally.symbols.values() if each.last is not None), default=0)
            bars = sum(each.bars for each in tally.symbols.values())
            until = f", up to {encode_time(newest)}" if newest else ""
            self._tell(f"{tally.recorded:,} messages recorded, {bars:,} bars{until}")


def _compact(root: Path, catalog: CatalogWriter, *, but: Path | None = None) -> CompactionReport:
    """Bring the sessions below `root` into the catalog that are not in it yet, and mark them."""
    fresh: list[tuple[Path, Mapping[str, Any]]] = []
    for session in find_sessions(root):
        if session != but:
            mark: Mapping[str, Any] = {
                "catalog": catalog.location,
                "bytes": sum(path.stat().st_size for path in find_segments(session)),
            }
            if _read_mark(session) != mark:
                fresh.append((session, mark))
    report = compact_sessions([session for session, _ in fresh], catalog)
    for session, mark in fresh:
        with contextlib.suppress(OSError):  # without the mark it is read again next time, to no effect
            (session / MARK_NAME).write_text(json.dumps(mark) + "\n")
    return report


def _read_mark(session: Path) -> Any:
    try:
        return json.loads((session / MARK_NAME).read_text())
    except (OSError, ValueError):
        return None
