"""What recorded sessions were: period, agent, orders, profit, gaps, end. Reads logs and changes nothing."""

from __future__ import annotations

from pathlib import Path

import msgspec

from dry_work.errors import ConfigError, DataFileError
from dry_work.market.messages import Slice
from dry_work.ports import SourceStatus
from dry_work.recording.flight_log import FlightReader
from dry_work.recording.log import find_sessions


class SessionSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One session. What cannot be known of a damaged one is empty."""

    name: str
    folder: str
    agent: str = ""
    params: str = ""
    mode: str = ""
    started_ns: int = 0
    ended_ns: int = 0  # of the last turn that can be read
    first_ns: int = 0  # end of the first slice
    last_ns: int = 0
    slices: int = 0
    bars: int = 0
    orders: int = 0
    fills: int = 0
    start_value: float | None = None
    end_value: float | None = None
    outages: int = 0  # times that market data were lost
    lost_messages: int = 0  # that were not recorded
    exit: str = ""  # done, stopped, limit, failed, killed; empty for a recording without a flight
    detail: str = ""  # of the exit
    problem: str = ""  # what is wrong with the recording
    bytes: int = 0

    @property
    def profit(self) -> float | None:
        """What the account has gained, None when it is not known."""
        if self.start_value is None or self.end_value is None:
            return None
        return self.end_value - self.start_value

    def describe_gaps(self) -> str:
        """Return what is missing in a few words, empty when nothing is."""
        parts = [f"{self.outages} outage{'s' * (self.outages != 1)}"] if self.outages else []
        if self.lost_messages:
            parts.append(f"{self.lost_messages:,} messages not recorded")
        return ", ".join(parts)


def list_sessions(root: Path) -> list[SessionSummary]:
    """Return the sessions at and below `root`, the oldest first.

    Raises:
        ConfigError: there is no such folder.
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: there is no such folder; name the state directory of a run")
    return [summarize_session(folder) for folder in find_sessions(root)]


def find_session(root: Path, name: str) -> Path:
    """Return the folder of the session whose name begins with, or ends with, `name`.

    Raises:
        ConfigError: there is none, or there are several.
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: there is no such folder; name the state directory of a run")
    sessions = find_sessions(root)
    found = [each for each in sessions if each.name == name] or [
        each for each in sessions if each.name.startswith(name) or each.name.endswith(name)
    ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(each.name for each in (found or sessions)[-5:]) or "there are none"
    what = "is the name of several sessions" if found else "is no session"
    raise ConfigError(f"{name!r} {what} below {root}: {names}")


def summarize_session(folder: Path) -> SessionSummary:
    """Return what a session was, as far as it can be read."""
    try:
        reader = FlightReader(folder)
    except DataFileError as error:
        size = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
        return SessionSummary(name=folder.name, folder=str(folder), problem=error.reason, bytes=size)
    facts = reader.facts
    first_ns = last_ns = ended_ns = slices = bars = outages = orders = fills = 0
    start_value = end_value = None
    for turn in reader.turns():
        ended_ns = turn.record.at_ns
        if isinstance(turn.event, Slice):
            first_ns, last_ns = first_ns or turn.event.end_ns, turn.event.end_ns
            slices += 1
            bars += len(turn.event.bars)
        elif isinstance(turn.event, SourceStatus):
            outages += not turn.event.connected
        if turn.record.value is not None:
            start_value = turn.record.value if start_value is None else start_value
            end_value = turn.record.value
        if turn.record.books is not None:
            orders = turn.record.books.orders
        fills += sum(each.status in ("Completed", "Partial") for each in turn.record.told)
    finish = reader.finish
    return SessionSummary(
        name=folder.name,
        folder=str(folder),
        agent=f"{facts.agent}",
        params=", ".join(f"{name}={value}" for name, value in facts.params.items()),
        mode=facts.mode,
        started_ns=facts.started_ns,
        ended_ns=ended_ns,
        first_ns=first_ns,
        last_ns=last_ns,
        slices=slices,
        bars=bars,
        orders=finish.orders if finish is not None else orders,
        fills=finish.fills if finish is not None else fills,
        start_value=finish.start_value if finish is not None else start_value,
        end_value=finish.end_value if finish is not None else end_value,
        outages=outages,
        lost_messages=reader.lost_messages,
        exit=finish.reason if finish is not None else "killed" if not _is_damaged(reader) else "damaged",
        detail=finish.detail if finish is not None else "",
        problem=reader.problem if _is_damaged(reader) else "",
        bytes=reader.bytes,
    )


def _is_damaged(reader: FlightReader) -> bool:
    return bool(reader.problem) and not reader.is_cut
