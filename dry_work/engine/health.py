"""Agents as their state directories show them: who runs, since when, what is kept. Reads only, and takes no lock."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from dry_work.clock import SECOND_NS
from dry_work.engine.state import HEARTBEAT, JOURNAL, RECORDINGS, STRATEGY
from dry_work.feeds.lease_holder import LeaseHolder, read_holder
from dry_work.market.market_state import DataHealth, parse_health

STALE_S = 60.0  # heartbeats come every 15 seconds from a strategy whose `next` returns


class Life(StrEnum):
    """Whether an agent runs."""

    RUNNING = "running"
    HANGS = "hangs"  # its process is there, but no heartbeat
    STOPPED = "stopped"  # in order
    DIED = "died"  # it did not give its lease back
    UNKNOWN = "unknown"


class StrategyFile(msgspec.Struct, frozen=True, kw_only=True):
    """What the strategy has kept."""

    strategy: str
    bytes: int
    saved_ns: int


class AgentHealth(msgspec.Struct, frozen=True, kw_only=True):
    """A state directory and the agent that used it last."""

    path: Path
    name: str
    names: tuple[str, ...]  # of all agents that have used it
    life: Life
    pid: int | None = None  # of the process that holds the lease, or held it when it died
    host: str = ""
    since_ns: int | None = None  # when it took the lease
    heartbeat_ns: int | None = None
    strategy: StrategyFile | None = None
    problem: str = ""  # with one of the files
    data: DataHealth | None = None  # how its market data stood at the heartbeat; None: not known
    recordings_bytes: int = 0
    recordings_sessions: int = 0

    @property
    def journal_path(self) -> Path:
        """Where the orders journal is."""
        return self.path / JOURNAL


def list_agents(roots: Sequence[Path], *, now_ns: int) -> list[AgentHealth]:
    """Return the agents below these state directories, as they are given to `--state-dir`."""
    return [read_health(folder, now_ns=now_ns) for root in roots for folder in _list_folders(root)]


def _list_folders(root: Path) -> Iterator[Path]:
    seen: set[Path] = set()
    for folder in (root, *sorted(root.glob("*/")), *sorted(root.glob("local/*/"))):
        if folder not in seen and (any(folder.glob("agent-*.lock")) or (folder / JOURNAL).is_file()):
            seen.add(folder)
            yield folder


def read_health(folder: Path, *, now_ns: int) -> AgentHealth:
    """Return what the state directory `folder` shows."""
    holders = sorted(
        (read_holder(lock) for lock in folder.glob("agent-*.lock")),
        key=lambda holder: (holder.is_alive is True, holder.changed_ns),
        reverse=True,
    )
    holder = holders[0] if holders else LeaseHolder(folder.name, 0)
    beat = _read_object(folder / HEARTBEAT)
    heartbeat_ns = beat.get("time_ns") if isinstance(beat.get("time_ns"), int) else None
    if holder.pid is not None and beat.get("pid") != holder.pid:
        heartbeat_ns, beat = None, {}  # of an earlier process
    strategy, problem = _read_strategy(folder / STRATEGY)
    sizes = _list_recordings(folder / RECORDINGS)
    return AgentHealth(
        path=folder,
        name=holder.name,
        names=tuple(holder.name for holder in holders),
        life=_judge(holder, heartbeat_ns, now_ns),
        pid=holder.pid,
        host=holder.host,
        since_ns=holder.since_ns,
        heartbeat_ns=heartbeat_ns,
        data=parse_health(beat.get("data")),
        strategy=strategy,
        problem=problem,
        recordings_bytes=sum(sizes.values()),
        recordings_sessions=len({path.parent for path in sizes}),
    )


def _judge(holder: LeaseHolder, heartbeat_ns: int | None, now_ns: int) -> Life:
    if not holder.is_readable:
        return Life.UNKNOWN
    if holder.pid is None:
        return Life.STOPPED
    is_stale = heartbeat_ns is not None and now_ns - heartbeat_ns > STALE_S * SECOND_NS
    if holder.is_alive is None:  # on another machine: its heartbeat is all that can be seen
        return Life.UNKNOWN if is_stale or heartbeat_ns is None else Life.RUNNING
    if not holder.is_alive:
        return Life.DIED
    return Life.HANGS if is_stale else Life.RUNNING


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_strategy(path: Path) -> tuple[StrategyFile | None, str]:
    try:
        size = path.stat().st_size
    except OSError:
        return None, ""
    content = _read_object(path)
    saved_ns = content.get("saved_ns")
    if not isinstance(saved_ns, int) or "agent" not in content:
        return None, f"{path}: not a strategy's state, or damaged"
    return StrategyFile(strategy=str(content["agent"]), bytes=size, saved_ns=saved_ns), ""


def _list_recordings(root: Path) -> dict[Path, int]:
    sizes: dict[Path, int] = {}
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):  # removed meanwhile
            if path.is_file():
                sizes[path] = path.stat().st_size
    return sizes
