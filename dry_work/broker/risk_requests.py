"""Changes of the risk state that are asked for beside the journal, while the journal cannot be written. Thread-safe.

A trader that is stopped in the middle of a write holds the journal's lock for as long as it stands still. What an
operator wants then stands in a folder beside the journal, a file for each request; whoever can write the journal next
takes it into the journal, and a trader looks there before each order leaves.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable
from pathlib import Path

import msgspec

from dry_work.orders.risk import RiskCommand, RiskState, next_state
from dry_work.storage import TEMPORARY_PREFIX, write_atomically

_SUFFIX = ".json"


class RiskRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A change that is asked for."""

    command: RiskCommand
    reason: str
    who: str
    at_ns: int  # wall time
    name: str = ""  # of its file


class RiskRequests:
    """The requests beside the journal in the file `journal`."""

    def __init__(self, journal: Path) -> None:
        self.folder = journal.with_name(f"{journal.name}-requests")

    def add(self, request: RiskRequest) -> None:
        """Write a request down, durable.

        Raises:
            OSError: as the system says.
        """
        self.folder.mkdir(exist_ok=True)
        # Names sort by time, so that requests are taken in the order in which they were made.
        path = self.folder / f"{request.at_ns:020d}-{secrets.token_hex(4)}{_SUFFIX}"
        write_atomically(path, msgspec.json.encode(request))

    def list(self) -> list[RiskRequest]:
        """Return the requests, oldest first; one that cannot be read asks for a halt.

        Raises:
            OSError: the folder cannot be read.
        """
        try:
            names = sorted(path.name for path in self.folder.iterdir())
        except FileNotFoundError:
            return []
        return [self._read(name) for name in names if name.endswith(_SUFFIX) and not name.startswith(TEMPORARY_PREFIX)]

    def _read(self, name: str) -> RiskRequest:
        try:
            found = msgspec.json.decode((self.folder / name).read_bytes(), type=RiskRequest)
        except (OSError, msgspec.MsgspecError) as error:
            reason = f"the request {name} cannot be read: {error}"
            return RiskRequest(command=RiskCommand.HALT, reason=reason, who="operator", at_ns=0, name=name)
        return msgspec.structs.replace(found, name=name)

    def remove(self, requests: Iterable[RiskRequest]) -> None:
        """Let go of requests that are in the journal; one that stays is taken again, which changes little."""
        for request in requests:
            with contextlib.suppress(OSError):
                (self.folder / request.name).unlink()


def foresee_state(state: RiskState, requests: Iterable[RiskRequest]) -> RiskState:
    """Return the state once the requests are taken."""
    for request in requests:
        state = next_state(state, request.command) or state
    return state
