"""The flight record of a run: what it was, and how it ended. Main thread."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import platform
import re
import secrets
import sqlite3
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import backtrader as bt
import msgspec
import structlog

from dry_work import __version__
from dry_work.broker.flight import NO_FLIGHT, Flight, FlightClock
from dry_work.broker.journal import Journal
from dry_work.clock import Clock
from dry_work.engine.agents import Agent
from dry_work.engine.state import name_agent
from dry_work.errors import DryWorkError, StrategyError
from dry_work.recording.flight_frames import FinishRecord, SessionFacts
from dry_work.recording.flight_recorder import FlightRecorder
from dry_work.recording.inputs import provide_inputs
from dry_work.recording.recorder import Recorder
from dry_work.settings import RunSettings

JOURNAL_BYTES = 64 * 1024 * 1024  # a compressed journal that is larger is left out
SOURCE_BYTES = 1024 * 1024  # of each file
SOURCE_FILES = 100
# What is kept of the settings: addresses and ids of accounts and projects are nobody else's business.
SETTINGS = (
    "symbols", "agent", "params", "mode", "cash", "tz", "timeframe", "resample", "extra_fields", "warmup",
    "forward_prenext", "data", "speed", "risk",
)  # fmt: skip
RAISED = "raised "  # begins the error of a turn in which the strategy raised
INTERRUPTED = "interrupted"

_MASK = "***"
_SECRET = re.compile(r"secret|token|passw|credential|api_?key|private", re.IGNORECASE)

_log = structlog.get_logger(__name__)


class RunFlight:
    """The flight of one run. Without a recorder nothing is kept.

    Args:
        recorder: not started; None: nothing is kept.
        clock: the machine's.
    """

    def __init__(self, recorder: Recorder | None, clock: Clock) -> None:
        self._kept = FlightRecorder(recorder, clock) if recorder is not None else None
        self.flight: Flight = self._kept or NO_FLIGHT
        self.clock: Clock = FlightClock(clock, self.flight)
        self._machine_clock = clock
        self._interrupted = False

    def note_interrupted(self) -> None:
        """The strategy did not return in time and was interrupted."""
        self._interrupted = True

    @contextlib.contextmanager
    def recorded(
        self,
        settings: RunSettings,
        agent: Agent,
        broker: Any,
        journal: Journal,
        strategy_path: Path,
        *,
        fingerprint: str,
        lockstep: bool,
        rules: str | None,
        finish: Callable[[], FinishRecord],
    ) -> Iterator[None]:
        """Record what happens within, with what the run is before it and how it ended behind it.

        Args:
            broker: not started.
            finish: returns how a run ended that did not fail.
        """
        kept = self._kept
        if kept is None:
            with provide_inputs(NO_FLIGHT, secrets.randbits(63)):
                yield
            return
        facts = describe_session(
            settings,
            agent,
            journal,
            strategy_path,
            started_ns=self._machine_clock.time_ns(),
            fingerprint=fingerprint,
            lockstep=lockstep,
            rules=rules,
        )
        kept.begin_session(facts)
        kept.follow(broker.view_books)
        try:
            with provide_inputs(kept, facts.seed):
                yield
            kept.finish(finish(), error=INTERRUPTED if self._interrupted else "")
        except BaseException as error:
            kept.finish(_describe_failure(error, finish), error=describe_error(error))
            raise


def describe_error(error: BaseException) -> str:
    """Return the error of a turn."""
    if isinstance(error, StrategyError):
        cause = error.__cause__ or error
        return f"{RAISED}{type(cause).__name__}: {cause}"
    return f"{type(error).__name__}: {error}"


def _describe_failure(error: BaseException, finish: Callable[[], FinishRecord]) -> FinishRecord:
    text = describe_error(error)
    try:
        return msgspec.structs.replace(finish(), reason="failed", detail=text)
    except (AttributeError, DryWorkError):  # it failed before there was anything to tell
        return FinishRecord(reason="failed", detail=text)


def describe_session(
    settings: RunSettings,
    agent: Agent,
    journal: Journal,
    strategy_path: Path,
    *,
    started_ns: int,
    fingerprint: str,
    lockstep: bool,
    rules: str | None,
) -> SessionFacts:
    """Return what a run is, without its secrets."""
    masked = tuple(name for name in agent.all_params if _SECRET.search(name))
    main, sources = collect_sources(agent)
    given = _mask(settings.params, masked)
    plain = msgspec.to_builtins(msgspec.structs.replace(settings, credentials=None, params=given), enc_hook=str)
    seed = secrets.randbits(63)
    if settings.mode == "local":  # equal runs are equal
        seed = int.from_bytes(hashlib.sha256(f"{fingerprint} {agent.source_digest}".encode()).digest()[:7], "big")
    return SessionFacts(
        dry_work=__version__,
        python=platform.python_version(),
        backtrader=bt.__version__,
        started_ns=started_ns,
        mode=settings.mode,
        agent=agent.spec,
        class_name=agent.strategy.__qualname__,
        params=given,
        all_params=_mask({name: repr(value) for name, value in agent.all_params.items()}, masked),
        masked=masked,
        source_digest=agent.source_digest,
        source_path=str(_file_of(sys.modules.get(agent.strategy.__module__)) or ""),
        main_source=main,
        sources=sources,
        seed=seed,
        settings={name: plain[name] for name in SETTINGS},
        agent_id=settings.agent_id,
        agent_name=name_agent(settings, journal.path.parent),
        fingerprint=fingerprint,
        lockstep=lockstep,
        rules=rules,
        journal=copy_journal(journal.path),
        strategy_state=strategy_path.read_bytes() if strategy_path.is_file() else None,
    )


def _mask(values: Mapping[str, str], masked: tuple[str, ...]) -> dict[str, str]:
    return {name: _MASK if name in masked else value for name, value in values.items()}


def collect_sources(agent: Agent) -> tuple[str, dict[str, str]]:
    """Return (name of the strategy's file, texts by name) of that file and of what it imports from its folder.

    Installed packages are left out.
    """
    main = sys.modules.get(agent.strategy.__module__)
    path = _file_of(main)
    if main is None or path is None:
        return "", {}
    folder = path.parent
    found: dict[str, str] = {}
    waiting = [(main, path)]
    seen = {path}
    while waiting and len(found) < SOURCE_FILES:
        module, path = waiting.pop(0)
        try:
            text = path.read_text(encoding="utf-8") if path.stat().st_size <= SOURCE_BYTES else ""
        except (OSError, UnicodeDecodeError) as error:
            _log.warning("a file of the strategy is not in the recording", path=str(path), error=str(error))
            continue
        found[path.relative_to(folder).as_posix()] = text
        for name in _imported_names(text, module.__package__ or ""):
            other = _file_of(sys.modules.get(name))
            if other is None or other in seen or not other.is_relative_to(folder):
                continue
            if "site-packages" not in other.relative_to(folder).parts:
                seen.add(other)
                waiting.append((sys.modules[name], other))
    return next(iter(found), ""), found


def _imported_names(text: str, package: str) -> Iterator[str]:
    """Yield the modules that a source may import."""
    with contextlib.suppress(SyntaxError, ValueError):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join(filter(None, [*parts, node.module or ""]))
                yield base
                yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)


def _file_of(module: ModuleType | None) -> Path | None:
    name = getattr(module, "__file__", None)
    if not isinstance(name, str) or not name.endswith(".py"):
        return None
    path = Path(name)
    return path.resolve() if path.is_file() else None


def copy_journal(path: Path) -> bytes:
    """Return an orders journal as it is now, compressed; nothing when it is too large or cannot be copied."""
    try:
        with (
            contextlib.closing(sqlite3.connect(path)) as source,
            contextlib.closing(sqlite3.connect(":memory:")) as copy,
        ):
            source.backup(copy)
            data = zlib.compress(copy.serialize(), 1)
    except sqlite3.Error as error:
        _log.warning("the orders journal is not in the recording, which cannot be replayed", error=str(error))
        return b""
    if len(data) > JOURNAL_BYTES:
        _log.warning("the orders journal is too large for the recording, which cannot be replayed", bytes=len(data))
        return b""
    return data
